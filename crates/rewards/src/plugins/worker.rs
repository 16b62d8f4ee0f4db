//! One living process that answers a line with a line, under a time-out.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::watchdog;

/// Longest answer that is read, bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// Lines of stderr that are shown for one request, and kept for messages.
const STDERR_LINES: usize = 20;
/// How long a process that closed its stdout may take to end, and stderr to be read to its end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Clone, Debug)]
pub(super) struct CommandLine {
    pub(super) program: OsString,
    pub(super) arguments: Vec<OsString>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Broken {
    /// None came in time.
    TimedOut,
    /// The process ended; its status where it could be had.
    Ended(Option<ExitStatus>),
    /// An answer that could not be read.
    Unreadable(io::Error),
}

/// A process with its pipes. Dropping it kills it and what it started; so does the end of this process, however it comes.
pub(super) struct Worker {
    child: Child,
    is_gone: bool,
    requests: Sender<Vec<u8>>,
    answers: Receiver<io::Result<String>>,
    stderr: Arc<Stderr>,
}

/// What the process says beside its answers.
struct Stderr {
    reward: String,
    closed: AtomicBool,
    state: Mutex<StderrState>,
}

#[derive(Default)]
struct StderrState {
    samples: String,
    shown: usize,
    last: VecDeque<String>,
}

impl Worker {
    /// Starts `command` in a process group of its own, so that the Ctrl-C by which the user ends a
    /// run after its step does not take the reward away within it.
    pub(super) fn start(reward: &str, command: &CommandLine) -> io::Result<Self> {
        let mut builder = Command::new(&command.program);
        builder
            .args(&command.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        std::os::unix::process::CommandExt::process_group(&mut builder, 0);
        let mut child = builder.spawn()?;
        watchdog::watch(Pid::from_child(&child));
        let missing = || io::Error::other("the process has no pipe");
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let pipe = child.stderr.take().ok_or_else(missing)?;
        let stderr = Arc::new(Stderr {
            reward: reward.to_owned(),
            closed: AtomicBool::new(false),
            state: Mutex::default(),
        });
        let (requests, to_write) = mpsc::channel();
        let (read, answers) = mpsc::channel();
        thread::spawn(move || write_requests(stdin, &to_write));
        thread::spawn(move || read_answers(stdout, &read));
        let shared = Arc::clone(&stderr);
        thread::spawn(move || shared.read(pipe));
        Ok(Self { child, is_gone: false, requests, answers, stderr })
    }

    /// Names the samples that lines of stderr are about from now on.
    pub(super) fn begin(&self, samples: &str) {
        let mut state = self.stderr.lock();
        state.samples = samples.to_owned();
        state.shown = 0;
    }

    /// Sends one line, without its end, and waits for one.
    pub(super) fn exchange(
        &mut self,
        mut request: Vec<u8>,
        timeout: Duration,
    ) -> Result<String, Broken> {
        request.push(b'\n');
        if self.requests.send(request).is_err() {
            return Err(self.end());
        }
        self.answer(timeout)
    }

    /// Waits for one line.
    pub(super) fn answer(&mut self, timeout: Duration) -> Result<String, Broken> {
        match self.answers.recv_timeout(timeout) {
            Ok(Ok(line)) => Ok(line),
            Ok(Err(error)) => Err(Broken::Unreadable(error)),
            Err(RecvTimeoutError::Timeout) => Err(Broken::TimedOut),
            Err(RecvTimeoutError::Disconnected) => Err(self.end()),
        }
    }

    fn end(&mut self) -> Broken {
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    // What it started is of no use without it.
                    self.kill();
                    return Broken::Ended(Some(status));
                }
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => return Broken::Ended(None),
            }
        }
    }

    /// The last lines of stderr; kills the process first, so that they are all.
    pub(super) fn last_words(mut self) -> String {
        self.kill();
        let deadline = Instant::now() + LAST_WORDS;
        while !self.stderr.closed.load(Ordering::Acquire) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let state = self.stderr.lock();
        let lines: Vec<&str> = state.last.iter().map(String::as_str).collect();
        lines.join("\n")
    }

    fn kill(&mut self) {
        if self.is_gone {
            return;
        }
        self.is_gone = true;
        let group = Pid::from_child(&self.child);
        // What a shell started would hold the pipes open. An error means that all are gone.
        let _ = kill_process_group(group, Signal::KILL);
        // Both fail only where the process has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        watchdog::forget(group);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Stderr {
    fn lock(&self) -> std::sync::MutexGuard<'_, StderrState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, pipe: impl Read) {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        // Lines without end are cut, so that memory is bounded.
        while let Ok(1..) = pipe.by_ref().take(4096).read_until(b'\n', &mut line) {
            self.note(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
        self.closed.store(true, Ordering::Release);
    }

    fn note(&self, line: &str) {
        let mut state = self.lock();
        state.shown += 1;
        if state.shown <= STDERR_LINES {
            base::say!("reward `{}`, {}: {line}", self.reward, state.samples);
        } else if state.shown == STDERR_LINES + 1 {
            base::say!("reward `{}`, {}: (more)", self.reward, state.samples);
        }
        if state.last.len() == STDERR_LINES {
            state.last.pop_front();
        }
        state.last.push_back(line.to_owned());
    }
}

/// Ends when the worker is dropped or the process no longer reads.
fn write_requests(mut stdin: impl Write, requests: &Receiver<Vec<u8>>) {
    while let Ok(request) = requests.recv() {
        if stdin.write_all(&request).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

/// Ends when the process closes its stdout or the receiver is dropped.
fn read_answers(stdout: impl Read, answers: &Sender<io::Result<String>>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = stdout.by_ref().take(MAX_ANSWER_BYTES).read_until(b'\n', &mut line);
        let answer = match read {
            Ok(0) => return,
            Ok(_) if line.ends_with(b"\n") => String::from_utf8(line)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
            Ok(_) if line.len() as u64 == MAX_ANSWER_BYTES => {
                Err(io::Error::other(format!("an answer of over {MAX_ANSWER_BYTES} bytes")))
            }
            // Cut off in the middle of a line: the process ended.
            Ok(_) => return,
            Err(error) => Err(error),
        };
        let failed = answer.is_err();
        if answers.send(answer).is_err() || failed {
            return;
        }
    }
}
