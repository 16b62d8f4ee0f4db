//! The processes of one run, and what came of them.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::rank::{FOLDER, LIMIT, NAME, ODD, TASK};

/// Processes start slowly on a busy machine.
const START: Duration = Duration::from_secs(120);

pub struct Run {
    folder: TempDir,
    children: Vec<(usize, Child)>,
}

/// What one rank left.
#[derive(Debug)]
pub struct Left {
    pub rank: usize,
    /// None where a signal ended it.
    pub code: Option<i32>,
    /// Its lines that begin with `said: `, and those after them.
    pub said: String,
    /// All of its stdout and stderr.
    pub output: String,
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The variables of rank `rank`, as `vlm-r1 launch` sets them.
pub fn variables(rank: usize, size: usize, port: u16) -> Vec<(&'static str, String)> {
    vec![
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", size.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("LOCAL_WORLD_SIZE", size.to_string()),
        ("MASTER_ADDR", "127.0.0.1".to_owned()),
        ("MASTER_PORT", port.to_string()),
    ]
}

impl Run {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), children: Vec::new() }
    }

    /// All ranks with one task.
    pub fn start(size: usize, task: &str, odd: usize, limit_secs: u64) -> Self {
        let (mut run, port) = (Self::new(), free_port());
        for rank in 0..size {
            run.add(rank, task, odd, limit_secs, &variables(rank, size, port));
        }
        run
    }

    pub fn add(
        &mut self,
        rank: usize,
        task: &str,
        odd: usize,
        limit_secs: u64,
        variables: &[(&'static str, String)],
    ) {
        let file = || File::create(self.folder.path().join(format!("out-{}", self.children.len())));
        let output = file().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", NAME, "--ignored", "--nocapture"])
            .env("TORCHELASTIC_ERROR_FILE", self.folder.path().join(format!("error-{rank}.json")))
            .env("OMP_NUM_THREADS", "1")
            .env("RUST_BACKTRACE", "0")
            .env(TASK, task)
            .env(ODD, odd.to_string())
            .env(LIMIT, limit_secs.to_string())
            .env(FOLDER, self.folder.path())
            .envs(variables.iter().map(|(name, value)| (*name, value)))
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        self.children.push((rank, command.spawn().unwrap()));
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until all of `size` ranks have met and have come to where the others wait for the odd one.
    pub fn wait_until_ready(&mut self, size: usize) {
        let until = Instant::now() + START;
        while !(0..size).all(|rank| self.folder.path().join(format!("ready-{rank}")).exists()) {
            let is_early = Instant::now() < until;
            assert!(is_early, "{}", self.outputs());
            thread::sleep(Duration::from_millis(20));
        }
        // Places travel, and waits begin.
        thread::sleep(Duration::from_millis(1500));
    }

    fn outputs(&self) -> String {
        (0..self.children.len()).map(|index| self.output(index)).collect::<Vec<_>>().join("\n---\n")
    }

    fn output(&self, index: usize) -> String {
        let path = self.folder.path().join(format!("out-{index}"));
        String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
    }

    pub fn send(&self, rank: usize, signal: Signal) {
        let (_, child) = &self.children[rank];
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// The ranks but `except`, which must end within `limit`.
    pub fn wait(&mut self, except: Option<usize>, limit: Duration) -> Vec<Left> {
        let until = Instant::now() + limit;
        let mut all = Vec::new();
        for index in 0..self.children.len() {
            let rank = self.children[index].0;
            if Some(rank) == except {
                continue;
            }
            all.push(self.wait_for_process(index, until));
        }
        all
    }

    /// The process that was added as the `index`-th.
    pub fn wait_for_added(&mut self, index: usize) -> Left {
        self.wait_for_process(index, Instant::now() + START)
    }

    fn wait_for_process(&mut self, index: usize, until: Instant) -> Left {
        let rank = self.children[index].0;
        let status = loop {
            if let Some(status) = self.children[index].1.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "rank {rank} runs still\n{}", self.outputs());
            thread::sleep(Duration::from_millis(20));
        };
        let output = self.output(index);
        let said = output.split_once("said: ").map_or("", |(_, said)| said).trim().to_owned();
        Left { rank, code: status.code(), said, output }
    }

    /// As [`Self::wait`] for all, with the time that processes need to start.
    pub fn wait_for_all(&mut self) -> Vec<Left> {
        self.wait(None, START)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            // One that has ended is no error.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
