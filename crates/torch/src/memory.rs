//! How much memory the process took.

use std::fs;

/// Peak resident memory of this process, bytes; 0 where the system does not tell.
pub fn peak_memory_bytes() -> u64 {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return 0;
    };
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| {
            rest.trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .ok()
        })
        .map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_takes_some_memory() {
        assert!(super::peak_memory_bytes() > 1 << 20);
    }
}
