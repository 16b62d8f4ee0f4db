//! Limits of time: what hangs (a driver, a network disk, a program) is left behind.

use std::io::Read;
use std::panic::resume_unwind;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);

/// What `probe` gives; `None` where it takes longer. Its thread then ends with this program.
///
/// # Panics
/// Where `probe` does.
pub fn within<T: Send + 'static>(
    limit: Duration,
    probe: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (send, receive) = mpsc::channel();
    let thread = thread::spawn(move || {
        // Nobody waits any more: nothing is to be done.
        let _ = send.send(probe());
    });
    match receive.recv_timeout(limit) {
        Ok(given) => Some(given),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => resume_unwind(panic),
            Ok(()) => None,
        },
    }
}

/// What a program wrote until it ended.
///
/// # Errors
/// Where it does not start, or runs longer; then it is killed.
pub fn run(mut command: Command, limit: Duration) -> Result<Output, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let end = Instant::now() + limit;
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let (stdout, stderr) = (read(child.stdout.take()), read(child.stderr.take()));
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => thread::sleep(PAUSE),
            Ok(None) => {
                // A process that cannot be killed is left behind.
                let _ = child.kill();
                return Err(format!("it does not end within {} s", limit.as_secs_f64()));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    // A child of its own may hold the pipes open.
    let rest = || end.saturating_duration_since(Instant::now()).max(PAUSE);
    let stdout = stdout.recv_timeout(rest()).unwrap_or_default();
    let stderr = stderr.recv_timeout(rest()).unwrap_or_default();
    Ok(Output { status, stdout, stderr })
}

fn read(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came counts.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = send.send(bytes);
    });
    receive
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_hangs_is_left_behind() {
        assert_eq!(within(LONG, || 7), Some(7));
        assert_eq!(within(PAUSE, || thread::sleep(LONG)), None);
        assert!(std::panic::catch_unwind(|| within(LONG, || panic!("broken"))).is_err());
        let error = run(shell("exec sleep 3600"), PAUSE).unwrap_err();
        assert!(error.contains("does not end within 0.02 s"), "{error}");
    }

    #[test]
    fn programs_are_heard() {
        let output = run(shell("echo a; echo b >&2; exit 3"), LONG).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"a\n"[..], &b"b\n"[..]));
        // More than a pipe holds.
        let output = run(shell("head -c 1000000 /dev/zero"), LONG).unwrap();
        assert_eq!(output.stdout.len(), 1_000_000);
        assert!(run(Command::new("/nonexistent/program"), LONG).is_err());
    }
}
