//! Damage in the folder of a killed run; the same command must come to the same weights, or refuse and say why.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::bench::{Bench, Ended, RUNS, Tiny, checkpoints, files, tail};
use super::random::Random;
use super::tally::Tried;

/// What is damaged, and whether a run may refuse to go on with it.
const CLASSES: [(&str, bool); 10] = [
    ("weights", true),
    ("optimizer.safetensors", true),
    ("state.json", true),
    ("another file of a checkpoint", true),
    ("config.yaml", true),
    ("metrics.jsonl", false),
    ("an event file", false),
    ("a rollouts file", false),
    ("env.json", false),
    ("log.txt", false),
];

const HURTS: [&str; 7] = [
    "a bit flipped",
    "cut off",
    "deleted",
    "emptied",
    "64 bytes zeroed",
    "more at its end",
    "a folder in its place",
];

/// A file damaged; of a checkpoint, one of the newest or one of each.
pub fn trial(bench: &Bench, random: &mut Random, folder: &Path) -> Result<Vec<Tried>> {
    let (number, run) = half(bench, random, folder)?;
    let out = folder.join("out");
    let all = random.below(4) == 0;
    let (class, may_refuse) = *random.pick(&CLASSES);
    let targets = targets(&out, class, all, random);
    let hurt_kind = *random.pick(&HURTS);
    for target in &targets {
        hurt(target, hurt_kind, random).with_context(|| target.display().to_string())?;
    }
    let shown: Vec<String> = targets.iter().map(|path| path.display().to_string()).collect();
    fs::write(folder.join("damage.txt"), format!("{hurt_kind}:\n{}\n", shown.join("\n")))?;
    let newest = checkpoints(&out).last().map(|(step, _)| *step);
    let ended = bench.go_on(run, folder)?;
    let how = if ended.is_done() {
        let differs = if may_refuse && class != "config.yaml" {
            bench.differs(number, &out)
        } else {
            bench.weights_differ(number, &out)
        };
        differs.map(|()| way(&ended, newest))
    } else {
        refused(&ended, &targets, may_refuse)
    };
    let how = told_without_panic(&ended, how).map_err(|why| format!("{hurt_kind}: {why}"));
    Ok(vec![Tried::new(class, how)])
}

/// Names that are in the way, links, things in the place of others.
pub fn odd_trial(bench: &Bench, random: &mut Random, folder: &Path) -> Result<Vec<Tried>> {
    let (number, run) = half(bench, random, folder)?;
    let out = folder.join("out");
    let odd = *random.pick(&ODD);
    fs::write(folder.join("damage.txt"), odd)?;
    make_odd(&out, odd).with_context(|| odd.to_owned())?;
    let newest = checkpoints(&out).last().map(|(step, _)| *step);
    let ended = bench.go_on(run, folder)?;
    let how = if ended.is_done() {
        let differs = bench.weights_differ(number, &out);
        differs.map(|()| way(&ended, newest))
    } else {
        Err(format!("is refused: {}", tail(&ended.said)))
    };
    Ok(vec![Tried::new(odd, told_without_panic(&ended, how))])
}

/// A run that was killed when it had some checkpoints.
fn half(bench: &Bench, random: &mut Random, folder: &Path) -> Result<(usize, &'static Tiny)> {
    let number = random.below(RUNS.len());
    let run = &RUNS[number];
    let (out, wanted) = (folder.join("out"), 1 + random.below(2));
    let mut child = bench.start(run, folder)?;
    while child.try_wait()?.is_none() && checkpoints(&out).len() < wanted {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Where it was quicker it is done, and the damage hits a run with nothing left to do.
    child.kill()?;
    child.wait()?;
    Ok((number, run))
}

/// The files of a class: of the newest checkpoint, or of all.
fn targets(out: &Path, class: &str, all: bool, random: &mut Random) -> Vec<PathBuf> {
    let is_weights = |path: &Path| path.extension().is_some_and(|end| end == "safetensors");
    let is_of_class = |path: &PathBuf| match class {
        "weights" => is_weights(path) && !path.ends_with("trainer_state/optimizer.safetensors"),
        "optimizer.safetensors" | "state.json" => path.ends_with(class),
        "another file of a checkpoint" => !is_weights(path) && !path.ends_with("state.json"),
        _ => true,
    };
    let of_checkpoint = CLASSES[..4].iter().any(|(name, _)| *name == class);
    let folders: Vec<PathBuf> = match class {
        _ if of_checkpoint => {
            let mut folders: Vec<PathBuf> =
                checkpoints(out).into_iter().map(|(_, path)| path).collect();
            folders.reverse();
            folders.truncate(if all { usize::MAX } else { 1 });
            folders
        }
        "an event file" => vec![out.join("tensorboard")],
        "a rollouts file" => vec![out.join("rollouts")],
        _ => {
            return [out.join(class)].into_iter().filter(|path| path.exists()).collect();
        }
    };
    let mut targets = Vec::new();
    for folder in folders {
        let files: Vec<PathBuf> = files(&folder).into_iter().filter(is_of_class).collect();
        if !files.is_empty() {
            targets.push(random.pick(&files).clone());
        }
    }
    targets
}

fn hurt(path: &Path, kind: &str, random: &mut Random) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let at = random.below(bytes.len().max(1));
    match kind {
        "a bit flipped" if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        "cut off" => bytes.truncate(at),
        "emptied" => bytes.clear(),
        "64 bytes zeroed" => bytes.iter_mut().skip(at).take(64).for_each(|byte| *byte = 0),
        "more at its end" => bytes.extend((0..=at % 200).map(|n| n as u8)),
        "deleted" => return Ok(fs::remove_file(path)?),
        "a folder in its place" => {
            fs::remove_file(path)?;
            return Ok(fs::create_dir(path)?);
        }
        _ => {}
    }
    Ok(fs::write(path, bytes)?)
}

/// How a run went on.
fn way(ended: &Ended, newest: Option<u64>) -> String {
    let step = ended.said.split_once("resuming after step ").and_then(|(_, rest)| {
        let number = rest.split(|c: char| !c.is_ascii_digit()).next();
        number?.parse::<u64>().ok()
    });
    let way = match step {
        None => "began anew",
        Some(_) if step == newest => "went on from the newest checkpoint",
        Some(_) => "went on from an older checkpoint",
    };
    way.to_owned()
}

/// A refusal must name what is damaged, and say what to do.
fn refused(ended: &Ended, targets: &[PathBuf], may_refuse: bool) -> Result<String, String> {
    let error = ended.refused()?;
    if !may_refuse {
        return Err(format!("a by-product blocks: {}", tail(error)));
    }
    let name =
        |path: &PathBuf| path.file_name().is_some_and(|n| error.contains(&*n.to_string_lossy()));
    let of_checkpoint = |path: &PathBuf| {
        let mut above = path.ancestors().filter_map(|path| path.file_name());
        above.any(|n| {
            n.to_string_lossy().starts_with("checkpoint-") && error.contains(&*n.to_string_lossy())
        })
    };
    let is_named = targets.iter().any(|path| name(path) || of_checkpoint(path));
    match (is_named, error.contains("hint: ")) {
        (true, true) => Ok("refused, with its name and a hint".to_owned()),
        (false, _) => Err(format!("refused without the damaged path: {}", tail(error))),
        _ => Err(format!("refused without a hint: {}", tail(error))),
    }
}

fn told_without_panic(ended: &Ended, how: Result<String, String>) -> Result<String, String> {
    match ended.said.contains("panicked at") {
        true => Err(format!("panics: {}", tail(&ended.said))),
        false => how,
    }
}

const ODD: [&str; 10] = [
    "an empty checkpoint-99999",
    "a file named as the last checkpoint",
    "a link to nowhere named as the last checkpoint",
    "a folder of notes named as the last checkpoint",
    "checkpoint-007 and checkpoint-1e3 beside the others",
    "the newest checkpoint on another disk, behind a link",
    "every checkpoint gone, metrics left",
    "a folder named metrics.jsonl",
    "a file named rollouts",
    "a link to nowhere named tensorboard",
];

fn make_odd(out: &Path, odd: &str) -> Result<()> {
    let last = out.join("checkpoint-8");
    let anew = |name: &str| -> Result<PathBuf> {
        let path = out.join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else if path.exists() {
            fs::remove_file(&path)?;
        }
        Ok(path)
    };
    match ODD.iter().position(|name| *name == odd) {
        Some(0) => fs::create_dir(out.join("checkpoint-99999"))?,
        // A run that was done has a last checkpoint: it is lost, and made again.
        Some(1) => fs::write(anew("checkpoint-8")?, "a file")?,
        Some(2) => symlink("nowhere", anew("checkpoint-8")?)?,
        Some(3) => {
            fs::create_dir(anew("checkpoint-8")?)?;
            fs::write(last.join("notes.txt"), "mine")?;
        }
        Some(4) => {
            for name in ["checkpoint-007", "checkpoint-1e3"] {
                fs::create_dir_all(out.join(name).join("trainer_state"))?;
            }
        }
        Some(5) => {
            if let Some((_, newest)) = checkpoints(out).pop() {
                let elsewhere = out.with_file_name("elsewhere");
                fs::rename(&newest, &elsewhere)?;
                symlink(fs::canonicalize(elsewhere)?, newest)?;
            }
        }
        Some(6) => {
            for (_, path) in checkpoints(out) {
                fs::remove_dir_all(path)?;
            }
        }
        Some(7) => fs::create_dir(anew("metrics.jsonl")?)?,
        Some(8) => fs::write(anew("rollouts")?, "a file")?,
        _ => symlink("nowhere", anew("tensorboard")?)?,
    }
    Ok(())
}
