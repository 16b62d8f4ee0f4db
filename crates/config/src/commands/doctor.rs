//! What `doctor` takes.

use crate::{Validate, section};

section! {
    /// A page about this machine.
    pub struct DoctorConfig {
        "page" {
            /// Folder whose disk is tried: where runs are to be written.
            folder: String = ".".into(),
            /// Print JSON.
            json: bool = false,
        }
    }
}

impl Validate for DoctorConfig {}
