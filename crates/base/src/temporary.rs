//! Files beside their final name.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// A file in `folder` without its final name, for all to read whom the user's mask lets: the library's own are for the user alone,
/// under their final name too.
///
/// # Errors
/// Where nothing can be written into `folder`.
pub fn temporary_file(folder: &Path) -> io::Result<NamedTempFile> {
    Builder::new()
        .prefix(".writing-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
}
