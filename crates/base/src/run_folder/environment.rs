//! `env.json`: the machine and the versions of a run.

use std::fs;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

static COMMIT: OnceLock<&'static str> = OnceLock::new();

/// Sets the commit of the program; only the first call counts.
pub fn declare_commit(commit: &'static str) {
    // A second call changes nothing.
    let _ = COMMIT.set(commit);
}

/// The commit that [`declare_commit`] named.
pub fn commit() -> Option<&'static str> {
    COMMIT.get().copied()
}

/// Time, commit, command line, working folder, system and hardware, with the versions and whatever else the caller knows.
pub fn environment(more: Map<String, Value>) -> Value {
    let mut environment = Map::new();
    let command: Vec<String> = std::env::args().collect();
    environment.insert("time".into(), utc_now().into());
    environment.insert("commit".into(), commit().into());
    environment.insert("command".into(), command.into());
    // What paths of settings and of rollouts begin at.
    let cwd = std::env::current_dir().map(|dir| dir.display().to_string());
    environment.insert("cwd".into(), cwd.ok().into());
    environment.insert("host".into(), host().into());
    environment.insert("os".into(), std::env::consts::OS.into());
    environment.insert("arch".into(), std::env::consts::ARCH.into());
    environment.insert("kernel".into(), file_line("/proc/sys/kernel/osrelease"));
    environment.insert("cpu".into(), after("/proc/cpuinfo", "model name"));
    let cores = std::thread::available_parallelism().map_or(Value::Null, |n| json!(n.get()));
    environment.insert("cores".into(), cores);
    environment.insert("memory".into(), after("/proc/meminfo", "MemTotal"));
    environment.extend(more);
    Value::Object(environment)
}

/// The name of this machine.
pub(super) fn host() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}

fn file_line(path: &str) -> Value {
    fs::read_to_string(path).map_or(Value::Null, |text| text.trim().into())
}

/// The text behind the colon of the first line that starts with `key`.
fn after(path: &str, key: &str) -> Value {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key));
    line.and_then(|line| line.split_once(':')).map_or(Value::Null, |(_, value)| value.trim().into())
}

/// The time, `2026-01-31T23:59:59Z`.
pub fn utc_now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    utc(now.map_or(0, |since| since.as_secs()))
}

fn utc(secs: u64) -> String {
    let (day, second) = (secs / 86_400, secs % 86_400);
    let (year, month, day) = civil(day);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day counted from 1970-01-01.
fn civil(mut day: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
    };
    let mut year = 1970;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_000_000_000), "2001-09-09T01:46:40Z");
        assert_eq!(utc(1_735_689_599), "2024-12-31T23:59:59Z");
    }
}
