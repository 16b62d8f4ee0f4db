//! Cores, threads, memory, and the Python of rewards.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base::console::size;
use base::run_folder::free_bytes;

use super::section::Section;
use super::within::{run, within};

const LIMIT: Duration = Duration::from_secs(10);
/// Variables that say how many threads compute and how they wait.
const THREADS: [&str; 4] =
    ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];
/// Above it a limit of memory is none.
const NO_LIMIT: u64 = 1 << 60;

/// What the host is.
pub fn section() -> Section {
    let mut section = Section::new("host");
    section.fact("processor", line_of("/proc/cpuinfo", "model name").unwrap_or_default());
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    section.fact("cores", cores.to_string());
    for name in THREADS {
        if let Ok(value) = std::env::var(name) {
            section.fact(name, value);
        }
    }
    let bytes = |key: &str| kibibytes(&line_of("/proc/meminfo", key)?);
    let shown = |bytes: Option<u64>| bytes.map_or("not told".to_owned(), size);
    section.fact(
        "memory",
        format!("{}, {} free", shown(bytes("MemTotal")), shown(bytes("MemAvailable"))),
    );
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = memory_limit(Path::new("/sys/fs/cgroup"), &groups);
    section.fact("memory limit", limit.map_or("none".to_owned(), size));
    let shared = within(LIMIT, || free_bytes(Path::new("/dev/shm"))).flatten();
    section.fact("/dev/shm", format!("{} free", shown(shared)));
    section.fact("python", python());
    section
}

/// The interpreter of rewards in Python. Nothing else needs one.
fn python() -> String {
    let given = std::env::var_os("VLM_R1_PYTHON").filter(|given| !given.is_empty());
    let mut command = Command::new(given.unwrap_or_else(|| "python3".into()));
    command.args(["-c", "import sys; print(sys.version.split()[0], sys.executable)"]);
    match run(command, LIMIT) {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        Ok(output) => format!("does not run ({})", output.status),
        Err(error) => format!("none ({error}); only rewards in Python need it"),
    }
}

/// The lowest limit of memory of the control groups that this process is in, below `root`.
fn memory_limit(root: &Path, groups: &str) -> Option<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (folder, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            of if of.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // Within a container the path is that outside, and the root is its own.
        let inside = folder.join(path.trim_start_matches('/'));
        let places = inside.ancestors().take_while(|place| place.starts_with(&folder));
        let read =
            |place: &Path| fs::read_to_string(place.join(file)).ok()?.trim().parse::<u64>().ok();
        limits.extend(places.filter_map(read));
    }
    limits.into_iter().filter(|limit| *limit < NO_LIMIT).min()
}

/// The text behind the colon of the first line that starts with `key`.
fn line_of(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn kibibytes(text: &str) -> Option<u64> {
    Some(text.strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(memory_limit(root.path(), "0::/a/b\n"), None);
        write("a/b/memory.max", "max\n");
        assert_eq!(memory_limit(root.path(), "0::/a/b\n"), None);
        write("a/memory.max", "5000\n");
        assert_eq!(memory_limit(root.path(), "0::/a/b\n"), Some(5000));
        // A container: its own root, whatever it is called outside.
        write("memory.max", "4000\n");
        assert_eq!(memory_limit(root.path(), "0::/outside/c\n"), Some(4000));
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let groups = "5:cpu,cpuacct:/\n4:memory:/x\n";
        assert_eq!(memory_limit(root.path(), groups), None);
        write("memory/memory.limit_in_bytes", "3000\n");
        assert_eq!(memory_limit(root.path(), groups), Some(3000));
    }

    #[test]
    fn memory_is_told_here() {
        let total = line_of("/proc/meminfo", "MemTotal").unwrap();
        assert!(kibibytes(&total) > Some(1 << 20), "{total}");
        assert_eq!(kibibytes("12"), None);
    }
}
