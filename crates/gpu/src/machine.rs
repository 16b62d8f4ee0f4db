//! What this process can know of the machine's cards, asked once.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::{Driver, DriverError, Nvml};

/// The variable that says which cards a process sees.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Driver, cards, and what hides them.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The driver, or why it does not answer.
    pub driver: Result<Driver, DriverError>,
    /// The driver's own version, `580.65.06`, where anything tells it.
    pub driver_version: Option<String>,
    /// Files of cards, as `/dev/nvidia0`: the system knows them, whether or not a driver answers.
    pub device_files: Vec<String>,
    /// The value of `CUDA_VISIBLE_DEVICES`.
    pub visible: Option<String>,
}

impl Machine {
    /// Asks the machine. A driver may take seconds to wake its cards.
    pub fn read() -> Self {
        Self {
            driver: Driver::read(),
            driver_version: Nvml::open().and_then(|nvml| nvml.driver_version()).or_else(|| {
                loaded_module(&fs::read_to_string("/proc/driver/nvidia/version").ok()?)
            }),
            device_files: device_files(Path::new("/dev")),
            visible: std::env::var_os(VISIBLE).map(|value| value.to_string_lossy().into_owned()),
        }
    }
}

/// The machine as it was when this process first asked.
pub fn machine() -> &'static Machine {
    static MACHINE: OnceLock<Machine> = OnceLock::new();
    MACHINE.get_or_init(Machine::read)
}

/// `/dev/nvidia0` and so on, not `/dev/nvidiactl`.
fn device_files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_card = |name: &String| {
        let number = name.strip_prefix("nvidia").unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let mut files: Vec<String> =
        names.filter(is_card).map(|name| folder.join(name).display().to_string()).collect();
    files.sort();
    files
}

/// The version in the kernel module's own line: the first word of numbers and points.
fn loaded_module(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.contains("Kernel Module"))?;
    let is_version = |word: &&str| {
        word.contains('.') && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    line.split_whitespace().find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_line_names_its_version() {
        for (line, version) in [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  525.60.13  Wed Nov 30 06:39:21 UTC 2022",
                Some("525.60.13"),
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build",
                Some("580.82.07"),
            ),
            ("GCC version: 12.2.0", None),
        ] {
            assert_eq!(loaded_module(line).as_deref(), version, "{line}");
        }
    }

    #[test]
    fn cards_are_told_from_other_files_of_the_driver() {
        let dev = tempfile::tempdir().unwrap();
        for name in ["nvidia1", "nvidia0", "nvidiactl", "nvidia-uvm", "null"] {
            fs::write(dev.path().join(name), "").unwrap();
        }
        let expected = ["nvidia0", "nvidia1"].map(|name| dev.path().join(name));
        assert_eq!(device_files(dev.path()), expected.map(|path| path.display().to_string()));
        assert!(device_files(Path::new("/nonexistent")).is_empty());
    }
}
