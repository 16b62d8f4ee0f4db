//! Output for people: the only way to write to stderr and stdout. It cannot fail, because a closed
//! pipe (`2>&1 | head`) or a full disk behind a log must not end a run.
//!
//! Control characters are shown, never sent to the terminal: rewards, templates and files may hold
//! any.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::run_folder::utc_now;

/// [`say`](fn@say) with a format.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::console::say(&format!($($arg)*)) };
}

/// [`print`](fn@print) with a format.
#[macro_export]
macro_rules! print_data {
    ($($arg:tt)*) => { $crate::console::print(&format!($($arg)*)) };
}

/// Hides the progress bar, runs the closure, shows the bar again.
type Around = dyn Fn(&mut dyn FnMut()) + Send + Sync;

static LOGS: Mutex<Vec<Weak<LogFile>>> = Mutex::new(Vec::new());
static SAID_ONCE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static EARLY: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Lines that are kept for a log.
const MAX_EARLY: usize = 200;
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);
static AROUND: Mutex<Option<Arc<Around>>> = Mutex::new(None);

/// Tells the user: a line on stderr, and in the log of every run that this process writes.
pub fn say(text: &str) {
    show(text);
    for log in open_logs() {
        log.line(text);
    }
}

/// As [`say`](fn@say), once in the life of this process: policy, reference and evaluation read the same folder.
pub fn say_once(text: &str) {
    if lock(&SAID_ONCE).insert(text.to_owned()) {
        let mut early = lock(&EARLY);
        if open_logs().is_empty() && early.len() < MAX_EARLY {
            early.push(text.to_owned());
        }
        drop(early);
        say(text);
    }
}

/// What [`say_once`] wrote while no log was open, for the log of the run to come. Returned once.
pub fn take_early() -> Vec<String> {
    std::mem::take(&mut *lock(&EARLY))
}

/// A rank above 0 of several, whose lines others see among those of rank 0.
#[derive(Clone, Copy, Debug)]
struct Rank {
    rank: usize,
    /// Whether all that it says is shown, or errors alone.
    is_heard: bool,
}

static RANK: Mutex<Option<Rank>> = Mutex::new(None);

/// From now on lines of this process begin with its rank, where that is not 0; until [`be_heard`], errors alone are shown: what rank 0 says
/// of the start is true of all.
pub fn speak_as(rank: usize) {
    *lock(&RANK) = (rank > 0).then_some(Rank { rank, is_heard: false });
}

/// Lets all be shown that a rank says.
pub fn be_heard() {
    if let Some(rank) = lock(&RANK).as_mut() {
        rank.is_heard = true;
    }
}

/// A line on stderr alone: for progress bars, and for what is in the log already.
pub fn show(text: &str) {
    let rank = *lock(&RANK);
    let prefix = match rank {
        Some(Rank { is_heard: false, .. }) if !text.starts_with("error") => return,
        Some(Rank { rank, .. }) => format!("rank {rank}: "),
        None => String::new(),
    };
    let text = printable(text);
    let line = match prefix.as_str() {
        "" => format!("{text}\n"),
        prefix => text.lines().map(|line| format!("{prefix}{line}\n")).collect(),
    };
    let mut write = || {
        // stderr is closed: there is nowhere to report it.
        let _ = io::stderr().lock().write_all(line.as_bytes());
    };
    // Not called under the lock: a bar may write a line itself.
    let around = lock(&AROUND).clone();
    match around {
        Some(around) => around(&mut write),
        None => write(),
    }
}

/// Writes a line of data to stdout. A closed pipe is ignored; other failures are kept for [`lost`].
pub fn print(text: &str) {
    if let Err(error) = write_data(text)
        && !is_closed(&error)
    {
        lock(&LOST).get_or_insert(error);
    }
}

/// The first failure to write to stdout. Returned once.
pub fn lost() -> Option<io::Error> {
    lock(&LOST).take()
}

/// As [`print`], for callers that stop when the reader is gone.
///
/// # Errors
/// Where it cannot be written; [`is_closed`] tells a reader that has gone from a full disk.
pub fn write_data(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(format!("{text}\n").as_bytes())?;
    stdout.flush()
}

/// Whether the reader has gone away.
pub fn is_closed(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

/// Hides a progress bar around each line until the guard is dropped.
pub fn around(suspend: impl Fn(&mut dyn FnMut()) + Send + Sync + 'static) -> AroundGuard {
    AroundGuard(lock(&AROUND).replace(Arc::new(suspend)))
}

/// Ends [`around`]; the bar set before is active again.
#[must_use = "dropped, nothing goes around the bar"]
pub struct AroundGuard(Option<Arc<Around>>);

impl Drop for AroundGuard {
    fn drop(&mut self) {
        *lock(&AROUND) = self.0.take();
    }
}

/// An error with its causes, without those that its text already quotes; hints come last.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut hints) = (String::new(), String::new());
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        let cause = error.to_string();
        let (cause, hint) = cause.split_once("\nhint: ").unwrap_or((&cause, ""));
        if text.ends_with(cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(cause);
        if !hint.is_empty() && !hints.contains(hint) {
            let _ = write!(hints, "\nhint: {hint}");
        }
    }
    text + &hints
}

/// `9.5 GB`: bytes as disks and cards are sold.
pub fn size(bytes: u64) -> String {
    const UNITS: [(f64, &str); 3] = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let bytes = bytes as f64;
    let unit = UNITS.into_iter().find(|(size, _)| bytes >= *size);
    match unit {
        Some((size, name)) => format!("{:.1} {name}", bytes / size),
        None => format!("{bytes} bytes"),
    }
}

/// `1 row`, `2 rows`, `0 rows`: a number of things.
pub fn count(number: u64, thing: &str) -> String {
    let ends_in = |ends: &[&str]| ends.iter().any(|end| thing.ends_with(end));
    match thing.strip_suffix('y') {
        _ if number == 1 => format!("1 {thing}"),
        Some(stem) if !ends_in(&["ay", "ey", "oy"]) => format!("{number} {stem}ies"),
        _ if ends_in(&["s", "x", "ch", "sh"]) => format!("{number} {thing}es"),
        _ => format!("{number} {thing}s"),
    }
}

/// A number to be printed with so many decimals; one that would print as `-0.000` is 0.
pub fn plain_zero(value: f64, decimals: i32) -> f64 {
    let is_zero = (value * 10f64.powi(decimals)).round() == 0.0;
    if is_zero { 0.0 } else { value }
}

/// The text without characters that a terminal acts on: `ESC` becomes `\x1b`, a direction override
/// `\u{202e}`, and so do invisible characters. Line breaks and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if !is_obeyed(c) {
            shown.push(c);
        } else if (c as u32) < 0x100 {
            let _ = write!(shown, "\\x{:02x}", c as u32);
        } else {
            let _ = write!(shown, "\\u{{{:x}}}", c as u32);
        }
    }
    Cow::Owned(shown)
}

fn is_obeyed(c: char) -> bool {
    // Marks and overrides of direction, line ends of Unicode, and what has no width.
    let is_unseen = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    (c.is_control() && c != '\n' && c != '\t') || is_unseen
}

/// The log of a run: while it is open, every line goes there too.
#[derive(Clone, Debug)]
pub struct Log(Arc<LogFile>);

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: Mutex<File>,
    /// Whether a line could not be written, which is said once.
    failed: AtomicBool,
}

impl Log {
    /// Takes a file that lines are added to.
    pub fn open(path: &Path, file: File) -> Self {
        let log = Arc::new(LogFile {
            path: path.to_owned(),
            file: Mutex::new(file),
            failed: AtomicBool::new(false),
        });
        lock(&LOGS).push(Arc::downgrade(&log));
        Self(log)
    }

    /// Adds a line, with the time, to this log alone.
    pub fn line(&self, text: &str) {
        self.0.line(text);
    }
}

impl LogFile {
    fn line(&self, text: &str) {
        let line = format!("{} {}\n", utc_now(), printable(text));
        let written = lock(&self.file).write_all(line.as_bytes());
        if let Err(error) = written
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            show(&format!("warning: {}: {error}; lines are missing there", self.path.display()));
        }
    }
}

fn open_logs() -> Vec<Arc<LogFile>> {
    let mut logs = lock(&LOGS);
    logs.retain(|log| log.strong_count() > 0);
    logs.iter().filter_map(Weak::upgrade).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first of a list, and how many more there are.
pub fn first_of(list: &[String]) -> String {
    const NAMED: usize = 3;
    let mut text = list[..list.len().min(NAMED)].join(", ");
    if list.len() > NAMED {
        text += &format!(" and {} more", list.len() - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_not_several() {
        for (number, thing, expected) in [
            (1, "row", "1 row"),
            (0, "row", "0 rows"),
            (2, "reply", "2 replies"),
            (3, "day", "3 days"),
            (1, "batch", "1 batch"),
            (2, "batch", "2 batches"),
            (2, "micro-batch", "2 micro-batches"),
        ] {
            assert_eq!(count(number, thing), expected);
        }
    }

    #[test]
    fn what_a_terminal_obeys_is_shown() {
        let title = "a\u{1b}]0;owned\u{7}b";
        assert_eq!(printable(title), "a\\x1b]0;owned\\x07b");
        assert_eq!(printable("50 %\r100 %"), "50 %\\x0d100 %");
        assert_eq!(printable("\u{9b}2J \u{202e}cba"), "\\x9b2J \\u{202e}cba");
        assert_eq!(
            printable("\u{feff}a\u{2028}b\u{200b}c\u{200f}d\u{2060}e\u{ad}f\u{61c}"),
            "\\u{feff}a\\u{2028}b\\u{200b}c\\u{200f}d\\u{2060}e\\xadf\\u{61c}"
        );
        // Joiners belong to how emoji and Persian are written.
        let family = "\u{1f468}\u{200d}\u{1f469} \u{646}\u{200c}\u{627}";
        assert_eq!(printable(family), family);
        assert_eq!(printable("line\n\tIoU ≥ 0.5 é 红"), "line\n\tIoU ≥ 0.5 é 红");
    }

    #[test]
    fn no_zero_has_a_sign() {
        let shown = |value| format!("{:.3}", plain_zero(value, 3));
        assert_eq!(
            [-0.0, -1e-9, -0.0004, -0.0006, 0.0, 2.5].map(shown),
            ["0.000", "0.000", "0.000", "-0.001", "0.000", "2.500"]
        );
        assert_eq!(format!("{:.3}", plain_zero(f64::NAN, 3)), "NaN");
    }

    #[test]
    fn a_log_that_cannot_be_written_is_no_error() {
        let path = Path::new("/dev/full");
        let file = std::fs::OpenOptions::new().append(true).open(path);
        let log = Log::open(path, file.unwrap());
        log.line("one");
        log.line("two");
        assert!(log.0.failed.load(Ordering::Relaxed));
    }

    #[test]
    fn what_is_said_stands_in_every_open_log() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let path = dir.path().join(name);
            Log::open(&path, File::create(&path).unwrap())
        };
        let (a, b) = (open("a"), open("b"));
        say("console test: both");
        drop(a);
        say("console test: one");
        drop(b);
        say("console test: none");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let lines = |name| read(name).matches("console test").count();
        assert_eq!((lines("a"), lines("b")), (1, 2));
    }

    #[test]
    fn causes_are_told_once_and_hints_last() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer\nhint: do this")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::other("inner"));
        assert_eq!(describe(&error), "outer: inner\nhint: do this");
    }
}
