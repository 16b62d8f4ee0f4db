//! The disk that runs are to be written to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base::console::size;
use base::run_folder::{DiskTrial, free_bytes};

use super::section::Section;
use super::within::within;

/// The trial writes for a second; a disk that takes so much longer hangs.
const LIMIT: Duration = Duration::from_secs(20);
/// A checkpoint of a 3B model with its moments takes 36 GB: over ten minutes at this rate.
const SLOW_BYTES_PER_SEC: f64 = 50e6;

/// Tries the disk of `folder`.
pub fn section(folder: &Path) -> Section {
    let mut section = Section::new("disk");
    let shown = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    section.fact("folder", shown.display().to_string());
    let tried: PathBuf = shown.clone();
    let answer = within(LIMIT, move || (free_bytes(&tried), DiskTrial::of(&tried)));
    let Some((free, trial)) = answer else {
        section.problem(
            format!("{}: the disk does not answer within {} s", shown.display(), LIMIT.as_secs()),
            "a network disk whose server is away? `--folder` names another",
        );
        return section;
    };
    section.fact("free", free.map_or("not told".to_owned(), size));
    match trial {
        Ok(trial) => tell(&mut section, &trial),
        Err(error) => {
            section.fact("written", "no");
            section.problem(
                format!("{}: cannot be written: {error}", shown.display()),
                "runs need a folder that they can write; `doctor --folder` tries another",
            );
        }
    }
    section
}

fn tell(section: &mut Section, trial: &DiskTrial) {
    let rate = trial.bytes as f64 / trial.secs;
    let (bytes, secs) = (size(trial.bytes as u64), trial.secs);
    section.fact(
        "written",
        format!("{}/s ({bytes} in {secs:.2} s, brought to the disk)", size(rate as u64)),
    );
    section
        .fact("locks", if trial.has_locks { "yes" } else { "no: a file names who writes a run" });
    if rate < SLOW_BYTES_PER_SEC {
        section.problem(
            format!("the disk writes {}/s: a checkpoint takes long", size(rate as u64)),
            "take a local disk for --output_dir, or save seldom (--save_steps)",
        );
    }
}
