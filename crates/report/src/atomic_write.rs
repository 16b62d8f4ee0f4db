//! Atomic writes.

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
    base::unfinished::write_whole(path, bytes)
        .map_err(|source| ReportError::Io { path: path.to_owned(), source })
}
