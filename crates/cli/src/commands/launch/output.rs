//! What ranks other than the first say, line by line.

use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base::console;

/// How long last lines are waited for: a process that a rank has started may hold its outputs open for ever.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Threads that pass on the lines of a rank.
pub struct Output(Vec<JoinHandle<()>>);

impl Output {
    /// Of a process whose outputs are pipes: stdout to stdout, stderr to stderr.
    pub fn of(child: &mut Child, rank: usize) -> Self {
        let out = child.stdout.take().map(|pipe| pass_on(pipe, rank, console::print));
        let err = child.stderr.take().map(|pipe| pass_on(pipe, rank, console::show));
        Self(out.into_iter().chain(err).collect())
    }

    /// Waits until all is passed on, within bounds.
    pub fn finish(self) {
        let start = Instant::now();
        while !self.0.iter().all(JoinHandle::is_finished) && start.elapsed() < LAST_LINES {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn pass_on(pipe: impl Read + Send + 'static, rank: usize, show: fn(&str)) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut lines = BufReader::new(pipe);
        let mut line = Vec::new();
        // An error is an end: nothing more can be read.
        while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let text = String::from_utf8_lossy(&line);
            let said = text.trim_end_matches(['\n', '\r']);
            let prefix = format!("rank {rank}: ");
            // A rank says itself who it is.
            match said.starts_with(&prefix) {
                true => show(said),
                false => show(&format!("{prefix}{said}")),
            }
            line.clear();
        }
    })
}
