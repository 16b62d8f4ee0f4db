//! Files that are whole or not there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::error::ReportError;
use crate::svg::{LineChart, Target};

/// Writes `chart` as an SVG file that carries its own style, as a README shows it.
///
/// # Errors
/// Where the file cannot be written; the old one then stands as it was.
pub fn write_svg(path: &Path, chart: &LineChart) -> Result<(), ReportError> {
    write_whole(path, chart.svg(Target::Standalone).as_bytes())
}

/// Writes beside the final name, syncs, renames.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".tmp-{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = write_and_rename(&temporary, path, bytes);
    if written.is_err() {
        // The first error is the one to tell; the temporary file may not exist at all.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(|source| ReportError::Io {
        path: path.to_owned(),
        source,
    })
}

fn write_and_rename(temporary: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(temporary, path)
}
