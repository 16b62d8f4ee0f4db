//! How libtorch's threads wait. libgomp lets idle threads spin for milliseconds; where anything else
//! wants the cores, threads then wait for spinning ones, and a step takes many times as long.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Rounds of spinning before a thread sleeps (libgomp's own choice is 300,000).
const SPIN_COUNT: &str = "1000";

/// libgomp reads its settings before `main`: where the user has made none, the program starts itself
/// again, once, with ours. Returns where it cannot; the program then runs with libgomp's choice.
pub fn let_idle_threads_sleep() {
    if ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"].iter().any(|name| env::var_os(name).is_some()) {
        return;
    }
    let Ok(program) = env::current_exe() else {
        return;
    };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).env("GOMP_SPINCOUNT", SPIN_COUNT).exec();
    base::say!("warning: cannot set GOMP_SPINCOUNT: {error}");
}
