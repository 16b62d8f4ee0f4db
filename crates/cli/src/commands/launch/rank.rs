//! A rank as a process.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::low_level::signal_name;

use super::output::Output;
use crate::launch::LAUNCHER_VARIABLE;

/// Variables of a launcher around this one that are not true for its ranks.
const OF_OTHERS: [&str; 3] =
    ["TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_RUN_ID"];

/// Which rank a process is, and where all meet.
pub struct Place<'a> {
    pub rank: usize,
    pub size: usize,
    pub local_rank: usize,
    pub local_size: usize,
    /// Number of the machine.
    pub group: usize,
    pub addr: &'a str,
    pub port: u16,
    /// How often all were started before.
    pub restarts: usize,
}

impl Place<'_> {
    /// torchrun's names.
    fn variables(&self) -> [(&'static str, String); 8] {
        [
            ("RANK", self.rank.to_string()),
            ("WORLD_SIZE", self.size.to_string()),
            ("LOCAL_RANK", self.local_rank.to_string()),
            ("LOCAL_WORLD_SIZE", self.local_size.to_string()),
            ("GROUP_RANK", self.group.to_string()),
            ("MASTER_ADDR", self.addr.to_owned()),
            ("MASTER_PORT", self.port.to_string()),
            ("TORCHELASTIC_RESTART_COUNT", self.restarts.to_string()),
        ]
    }
}

/// A rank that was started.
pub struct Rank {
    pub number: usize,
    child: Child,
    status: Option<ExitStatus>,
    output: Option<Output>,
}

impl Rank {
    /// Starts it. Of rank 0 input and outputs are those of the launcher, of others their lines with `rank 3: ` before.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn start(place: &Place<'_>, launched: &[OsString]) -> Result<Self> {
        let program = env::current_exe().context("where this program lies is not known")?;
        let mut command = Command::new(&program);
        command.args(launched).envs(place.variables());
        command.env(LAUNCHER_VARIABLE, std::process::id().to_string());
        for name in OF_OTHERS {
            command.env_remove(name);
        }
        let is_first = place.rank == 0;
        if !is_first {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let mut child = command.spawn().with_context(|| format!("rank {}", place.rank))?;
        let output = (!is_first).then(|| Output::of(&mut child, place.rank));
        Ok(Self { number: place.rank, child, status: None, output })
    }

    /// Whether it has ended by now.
    pub fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status.is_some()
    }

    /// How it ended; none while it runs.
    pub fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// Sends a signal, where it still runs.
    pub fn signal(&mut self, signal: i32) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let signal = Signal::from_named_raw(signal);
        if let (Some(id), Some(signal), false) = (id, signal, self.has_ended()) {
            // An error means that it has just ended.
            let _ = kill_process(id, signal);
        }
    }

    /// Ends it at once, and waits for that.
    pub fn kill(&mut self) {
        if !self.has_ended() {
            // An error means that it has just ended.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Waits until its last lines are shown.
    pub fn finish_output(&mut self) {
        if let Some(output) = self.output.take() {
            output.finish();
        }
    }
}

/// An end in words.
pub fn described(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => {
            format!("was killed by {}", signal_name(signal).unwrap_or("a signal"))
        }
        (None, None) => "ended".to_owned(),
    }
}
