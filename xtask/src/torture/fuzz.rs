//! Texts that no reward, and data that no reader may break on.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::bench::{Bench, Ended, rows, tail, wait};
use super::random::Random;
use super::tally::{Tally, Tried};

/// More than any small file may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Answers of the first call, which measures how many more there is time for.
const FIRST: u64 = 20_000;

/// The rewards' own fuzzer, for as long as there is time.
pub fn rewards(
    root: &Path,
    target: &Path,
    seed: u64,
    time: Duration,
    folder: &Path,
    tally: &mut Tally,
) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Of the whole workspace, so that dependencies have the features that `make test` compiled.
    cargo.args(["build", "--quiet", "--release", "--workspace", "--example", "fuzz"]);
    // Set by the cargo that runs this program; inherited, it would count as changed.
    cargo.current_dir(root).env_remove("LIBTORCH");
    if !cargo.status().context("cannot run `cargo`")?.success() {
        bail!("the fuzzer of the rewards does not build");
    }
    let start = Instant::now();
    let first = call(target, seed, FIRST, folder, tally)?;
    let rate = first as f64 / start.elapsed().as_secs_f64().max(0.01);
    let left = time.saturating_sub(start.elapsed());
    let more = (rate * left.as_secs_f64()) as u64;
    if more > FIRST {
        call(target, seed.wrapping_add(1), more, folder, tally)?;
    }
    Ok(())
}

fn call(target: &Path, seed: u64, answers: u64, folder: &Path, tally: &mut Tally) -> Result<u64> {
    let mut fuzz = Command::new(target.join("release/examples/fuzz"));
    fuzz.args(["--answers", &answers.to_string(), "--seed", &seed.to_string()]);
    // The machine does other things too: only what hangs is too slow here.
    fuzz.args(["--max-ms", "5000"]);
    let output = fuzz.output().context("cannot run the fuzzer of the rewards")?;
    let said = folder.join(format!("rewards-{seed}.json"));
    fs::write(&said, &output.stdout)?;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let done = report["answers"].as_u64().unwrap_or_default();
    let findings = report["findings"].as_array().map_or(0, Vec::len);
    let how = match (output.status.success(), done, findings) {
        (true, 1.., 0) => Ok("scored".to_owned()),
        _ => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            Err(format!("{findings} findings, {}: {}", output.status, tail(&stderr)))
        }
    };
    tally.count("rewards", "generated answers", done.max(1), &how, &said);
    Ok(done)
}

/// Mutated rows, files and images for `data check`: it may find them bad, and may not break.
pub fn data_trial(bench: &Bench, random: &mut Random, folder: &Path) -> Result<Vec<Tried>> {
    let images = folder.join("images");
    fs::create_dir(&images)?;
    let mut what = "rows";
    for entry in fs::read_dir(&bench.images)?.flatten() {
        let mut bytes = fs::read(entry.path())?;
        if random.below(3) == 0 {
            mutate(&mut bytes, random);
        }
        fs::write(images.join(entry.file_name()), bytes)?;
    }
    let good = rows();
    let lines = (0..60).map(|_| {
        let row = random.pick(&good).as_str();
        let row: Value = serde_json::from_str(row).unwrap_or_default();
        format!("{}\n", twist(row, random, 4))
    });
    let mut bytes = lines.collect::<Vec<_>>().concat().into_bytes();
    match random.below(4) {
        0 => {
            what = "bytes of a JSONL file";
            for _ in 0..1 + random.below(30) {
                mutate(&mut bytes, random);
            }
        }
        1 => {
            what = "images";
            bytes = good.concat().into_bytes();
        }
        _ => {}
    }
    let data = folder.join(*random.pick(&["train.jsonl", "train.json", "train.parquet"]));
    fs::write(&data, bytes)?;
    let mut command = Command::new(&bench.binary);
    command.args(["data", "check", "--data_file_paths"]).arg(&data);
    command.arg("--image_folders").arg(&images);
    if random.below(2) == 0 {
        command.arg("--model_name_or_path").arg(&bench.model);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(fs::File::create(folder.join("said.txt"))?);
    let status = wait(&mut command.spawn()?, LIMIT)?;
    let said = fs::read(folder.join("said.txt"))?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let ended = Ended { status, said };
    let how = match ended.is_done() {
        true => Ok("found good".to_owned()),
        false => ended.refused().map(|_| "found bad, in an orderly way".to_owned()),
    };
    Ok(vec![Tried::new(format!("data check: {what}"), how)])
}

/// Changes bytes: one bit, one byte, a piece cut, doubled, zeroed or moved.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    let at = random.below(bytes.len());
    let end = (at + 1 + random.below(64)).min(bytes.len());
    match random.below(8) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..end)),
        4 => bytes[at..end].fill(0),
        5 => bytes[at..end].fill(0xff),
        6 => {
            let piece = bytes[at..end].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, piece);
        }
        _ => {
            let head = *random.pick(&HEADS);
            bytes.splice(..head.len().min(bytes.len()), head.iter().copied());
        }
    }
}

/// Marks that files of other kinds begin with.
const HEADS: [&[u8]; 8] = [
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x1f\x8b\x08",
    b"PAR1",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"RIFF\xff\xff\xff\xffWEBP",
];

/// Replaces parts of a row by values of any other kind.
fn twist(value: Value, random: &mut Random, depth: usize) -> Value {
    if random.below(8) == 0 {
        return strange(random);
    }
    match value {
        Value::Object(fields) if depth > 0 => {
            let mut twisted = serde_json::Map::new();
            for (key, value) in fields {
                match random.below(30) {
                    0 => {}
                    1 => _ = twisted.insert(strange_text(random), value),
                    _ => _ = twisted.insert(key, twist(value, random, depth - 1)),
                }
            }
            Value::Object(twisted)
        }
        Value::Array(items) if depth > 0 => {
            let twisted = items.into_iter().map(|item| twist(item, random, depth - 1));
            twisted.collect()
        }
        other => other,
    }
}

fn strange(random: &mut Random) -> Value {
    match random.below(10) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(1e308),
        4 => json!(u64::MAX),
        5 => json!([]),
        6 => json!({}),
        7 => (0..100).fold(json!(1), |inner, _| json!([inner])),
        8 => json!({"from": "gpt", "value": null, "image": ["a", "a"]}),
        _ => json!(strange_text(random)),
    }
}

fn strange_text(random: &mut Random) -> String {
    let long = "<image>".repeat(300);
    let texts = [
        "",
        " ",
        "\0",
        "\u{202e}",
        "\u{feff}",
        "<image>",
        "<|image_pad|><|vision_start|>",
        "../../etc",
        "/",
        "scene.png/",
        "[1, 2, 3",
        "[[[[",
        "{\"bbox_2d\": [1e999, NaN, -0, 1]}",
        "$\\frac{1}{0}$",
        "\u{1f469}\u{200d}\u{1f469}\u{200d}\u{1f466}",
        &long,
    ];
    (*random.pick(&texts)).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutations_never_break_the_mutator() {
        let mut random = Random::of_trial(3, "fuzz", 0);
        let mut bytes = rows().concat().into_bytes();
        for _ in 0..5_000 {
            mutate(&mut bytes, &mut random);
            if bytes.len() < 4 {
                bytes = rows().concat().into_bytes();
            }
        }
        let row: Value = serde_json::from_str(&rows()[0]).unwrap();
        let twisted = (0..50).filter(|_| twist(row.clone(), &mut random, 4) != row);
        assert!(twisted.count() > 25);
    }
}
