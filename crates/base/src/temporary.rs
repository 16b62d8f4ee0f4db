//! Temporary files beside their final name.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// A temporary file in `folder` with the permissions of the user's umask: those of the crate
/// `tempfile` stay private to the user even after the rename.
///
/// # Errors
/// Where nothing can be written into `folder`.
pub fn temporary_file(folder: &Path) -> io::Result<NamedTempFile> {
    Builder::new()
        .prefix(".writing-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
}
