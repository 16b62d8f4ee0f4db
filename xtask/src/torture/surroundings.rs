//! What is around a run: readers that go away, disks that fill up or cannot be written.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::bench::{Bench, Ended, RUNS, tail, wait};
use super::random::Random;
use super::tally::Tried;

const LIMIT: Duration = Duration::from_secs(180);

/// Those that need to mount come first.
const KINDS: [&str; 9] = [
    "the disk fills up, then has room",
    "the folder is read-only, then not",
    "the reader of stderr goes away",
    "the reader of stdout goes away",
    "stderr is full",
    "stdout is full",
    "stdout and stderr are closed",
    "metrics.jsonl cannot be written, then can",
    "log.txt cannot be written",
];

/// How a disk of one's own is had here: by root, or in a user's own name space; none where neither is allowed.
pub fn own_disks() -> Option<&'static [&'static str]> {
    const WAYS: [&[&str]; 2] = [&["--mount"], &["--mount", "--user", "--map-root-user"]];
    WAYS.into_iter().find(|way| {
        let mut unshare = Command::new("unshare");
        unshare.args(*way);
        unshare.args(["mount", "-t", "tmpfs", "-o", "size=1m", "torture", "/tmp"]);
        unshare.stderr(Stdio::null());
        unshare.status().is_ok_and(|status| status.success())
    })
}

/// One kind after the other; those that need to mount only with a way to.
pub fn trial(
    bench: &Bench,
    disks: Option<&[&str]>,
    number: u64,
    random: &mut Random,
    folder: &Path,
) -> Result<Vec<Tried>> {
    let kinds = if disks.is_some() { &KINDS[..] } else { &KINDS[2..] };
    let kind = kinds[(number % kinds.len() as u64) as usize];
    let run = random.below(RUNS.len());
    let how = match (kind, disks) {
        ("the disk fills up, then has room", Some(way)) => {
            full_disk(bench, way, run, random, folder)?
        }
        ("the folder is read-only, then not", Some(way)) => read_only(bench, way, run, folder)?,
        ("metrics.jsonl cannot be written, then can", _) => full_metrics(bench, run, folder)?,
        _ => listeners(bench, kind, run, random, folder)?,
    };
    Ok(vec![Tried::new(kind, how)])
}

/// To the end, whoever listens.
fn listeners(
    bench: &Bench,
    kind: &str,
    run: usize,
    random: &mut Random,
    folder: &Path,
) -> Result<Result<String, String>> {
    let mut command = bench.command(&RUNS[run], folder);
    let full = || File::options().write(true).open("/dev/full");
    command.stdout(Stdio::null());
    command.stderr(File::create(folder.join("said.txt"))?);
    match kind {
        "the reader of stderr goes away" => _ = command.stderr(Stdio::piped()),
        "the reader of stdout goes away" => _ = command.stdout(Stdio::piped()),
        "stderr is full" => _ = command.stderr(full()?),
        "stdout is full" => _ = command.stdout(full()?),
        "stdout and stderr are closed" => command = closed(&command),
        _ => {
            fs::create_dir(folder.join("out"))?;
            symlink("/dev/full", folder.join("out/log.txt"))?;
        }
    }
    let mut child = command.spawn().context("cannot start the binary")?;
    drop(child.stdout.take());
    if let Some(stderr) = child.stderr.take() {
        let lines = random.below(6);
        let read = BufReader::new(stderr.take(1 << 16)).lines().take(lines).count();
        fs::write(folder.join("said.txt"), format!("{read} lines were read\n"))?;
    }
    let status = wait(&mut child, LIMIT)?;
    let said = fs::read_to_string(folder.join("said.txt")).unwrap_or_default();
    let ended = Ended { status, said };
    if !ended.is_done() {
        let status = status.map_or("nothing".to_owned(), |status| status.to_string());
        return Ok(Err(format!("ends with {status}: {}", tail(&ended.said))));
    }
    let differs = bench.differs(run, &folder.join("out"));
    Ok(differs.map(|()| "went on to its end".to_owned()))
}

/// The same command with nothing open to write to.
fn closed(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" >&- 2>&-"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.stdin(Stdio::null());
    shell
}

/// A disk that is too small for some step or checkpoint, then large enough.
fn full_disk(
    bench: &Bench,
    way: &[&str],
    run: usize,
    random: &mut Random,
    folder: &Path,
) -> Result<Result<String, String>> {
    let kib = 64 + random.below(6 << 10);
    let script = format!(
        "mount -t tmpfs -o size={kib}k torture out || exit 9
         \"$0\" \"$@\" > first.txt 2>&1; echo $? > first.code
         mount -o remount,size=1g out || exit 9
         \"$0\" \"$@\" > second.txt 2>&1; echo $? > second.code
         cp -r out/. kept"
    );
    in_own_disks(bench, way, run, &script, folder, &["o space left", "free", "full"])
}

/// A folder on a disk that is mounted read-only, then not.
fn read_only(
    bench: &Bench,
    way: &[&str],
    run: usize,
    folder: &Path,
) -> Result<Result<String, String>> {
    let script = "mount --bind out out && mount -o remount,bind,ro out || exit 9
         \"$0\" \"$@\" > first.txt 2>&1; echo $? > first.code
         umount out || exit 9
         \"$0\" \"$@\" > second.txt 2>&1; echo $? > second.code
         cp -r out/. kept";
    in_own_disks(bench, way, run, script, folder, &["ead-only"])
}

/// Runs a script that calls the command twice: it may refuse first, with one of `causes`, and must be done then.
fn in_own_disks(
    bench: &Bench,
    way: &[&str],
    run: usize,
    script: &str,
    folder: &Path,
    causes: &[&str],
) -> Result<Result<String, String>> {
    for name in ["out", "kept"] {
        fs::create_dir(folder.join(name))?;
    }
    let command = bench.command(&RUNS[run], folder);
    let mut unshare = Command::new("unshare");
    unshare.args(way).args(["sh", "-c", script]);
    unshare.arg(command.get_program()).args(command.get_args());
    unshare.current_dir(folder).stdin(Stdio::null());
    let status = unshare.status().context("cannot run `unshare`")?;
    if !status.success() {
        return Err(anyhow!("the script ends with {status}"));
    }
    let read = |name: &str| fs::read_to_string(folder.join(name));
    let (code, said) = (read("first.code")?, read("first.txt")?);
    if read("second.code")?.trim() != "0" {
        let said = read("second.txt")?;
        return Ok(Err(format!("cannot go on: {}", tail(&said))));
    }
    if let Err(differs) = bench.differs(run, &folder.join("kept")) {
        return Ok(Err(differs));
    }
    if code.trim() == "0" {
        return Ok(Ok("had room enough".to_owned()));
    }
    let error = said.rfind("error: ").map_or("", |at| &said[at..]);
    let names_it = error.contains(&*folder.join("out").to_string_lossy());
    let is_told = code.trim() == "1" && causes.iter().any(|cause| error.contains(cause));
    if said.contains("panicked at") || !is_told || !names_it || !error.contains("hint: ") {
        let code = code.trim();
        return Ok(Err(format!("the first call ends with {code}: {}", tail(&said))));
    }
    Ok(Ok("refused with file, cause and hint, then went on".to_owned()))
}

/// The metrics on a full disk: refused, then gone on.
fn full_metrics(bench: &Bench, run: usize, folder: &Path) -> Result<Result<String, String>> {
    let metrics = folder.join("out/metrics.jsonl");
    fs::create_dir(folder.join("out"))?;
    symlink("/dev/full", &metrics)?;
    let ended = bench.go_on(&RUNS[run], folder)?;
    if let Err(why) = ended.refused() {
        return Ok(Err(why));
    }
    let error = ended.refused().unwrap_or_default();
    if !error.contains("metrics.jsonl: No space left") || !error.contains("hint: ") {
        return Ok(Err(format!("without file, cause and hint: {}", tail(error))));
    }
    if fs::symlink_metadata(&metrics).is_ok() {
        fs::remove_file(&metrics)?;
    }
    let ended = bench.go_on(&RUNS[run], folder)?;
    if !ended.is_done() {
        return Ok(Err(format!("cannot go on: {}", tail(&ended.said))));
    }
    let differs = bench.weights_differ(run, &folder.join("out"));
    Ok(differs.map(|()| "refused with file, cause and hint, then went on".to_owned()))
}
