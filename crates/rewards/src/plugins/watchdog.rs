//! Ends the processes of rewards if this process dies without doing so, as after SIGKILL or OOM.
//!
//! A process cannot act on its own death, and one that computes does not look for that of another. So a shell waits
//! beside: it reads the process groups of the rewards from a pipe whose other end only this process holds. The
//! system closes that end however the process ends; the groups that are on the shell's list are then killed.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Pid;

/// Lines `+ GROUP` and `- GROUP`; a scheduler's signals to all processes of a job are not heeded.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM USR1 USR2
groups=' '
while read -r sign group; do
  case $sign in
    +) groups="$groups$group " ;;
    -) case $groups in *" $group "*) groups="${groups%% $group *} ${groups#* $group }" ;; esac ;;
  esac
done
for group in $groups; do kill -9 "-$group"; done
"#;

static WATCHDOG: Mutex<Watchdog> =
    Mutex::new(Watchdog { shell: None, groups: BTreeSet::new(), is_missed: false });

struct Watchdog {
    shell: Option<ChildStdin>,
    groups: BTreeSet<u32>,
    /// Whether it was said that there is none.
    is_missed: bool,
}

/// From now on the process group does not outlive this process.
pub(super) fn watch(group: Pid) {
    let group = id(group);
    let mut watchdog = lock();
    watchdog.groups.insert(group);
    watchdog.tell(&format!("+ {group}\n"));
}

/// The process group is gone: its number may become that of another.
pub(super) fn forget(group: Pid) {
    let group = id(group);
    let mut watchdog = lock();
    if watchdog.groups.remove(&group) {
        watchdog.tell(&format!("- {group}\n"));
    }
}

fn id(group: Pid) -> u32 {
    group.as_raw_nonzero().get().unsigned_abs()
}

fn lock() -> MutexGuard<'static, Watchdog> {
    WATCHDOG.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchdog {
    fn tell(&mut self, line: &str) {
        if let Some(shell) = &mut self.shell
            && shell.write_all(line.as_bytes()).is_ok()
        {
            return;
        }
        // There is none yet, or it was killed: the new one gets all groups.
        self.shell = None;
        if self.groups.is_empty() {
            return;
        }
        match self.start() {
            Ok(shell) => self.shell = Some(shell),
            Err(error) if !self.is_missed => {
                self.is_missed = true;
                base::say!(
                    "warning: `sh` does not start: {error}; processes of rewards may go on where this process is killed"
                );
            }
            Err(_) => {}
        }
    }

    fn start(&self) -> io::Result<ChildStdin> {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // Ctrl-C at a terminal is not for it.
            .process_group(0)
            .spawn()?;
        let missing = || io::Error::other("the process has no pipe");
        let mut stdin = shell.stdin.take().ok_or_else(missing)?;
        for group in &self.groups {
            stdin.write_all(format!("+ {group}\n").as_bytes())?;
        }
        Ok(stdin)
    }
}
