//! The run folder, also as a killed process leaves it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use base::run_folder::{
    EventFile, LoggedGroup, RunError, RunFolder, Scalar, StopFlag, read_scalars,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

pub(crate) fn metrics(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

pub(crate) fn group(completions: &[&str]) -> LoggedGroup {
    let object = |text: &&str| json!({"completion": text});
    LoggedGroup {
        completions: completions.iter().map(object).collect(),
        summary: metrics(json!({"n": completions.len()})),
    }
}

pub(crate) fn folder_with_steps(dir: &Path, steps: std::ops::RangeInclusive<u64>) -> RunFolder {
    let mut run = RunFolder::open(dir).unwrap();
    for step in steps {
        let values = json!({"reward": step as f64 / 2.0, "secs": {"total": 1.5}, "note": "x"});
        run.log_step(step, &metrics(values)).unwrap();
        run.log_rollouts(step, &[group(&["a", "b"])], None).unwrap();
    }
    run
}

pub(crate) fn event_files(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir.join("tensorboard")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

pub(crate) fn points(dir: &Path) -> Vec<(String, u64, f32)> {
    let read = |path: &PathBuf| read_scalars(path).unwrap();
    event_files(dir)
        .iter()
        .flat_map(read)
        .map(|point| (point.tag, point.step, point.value))
        .collect()
}

pub(crate) fn metric_steps(dir: &Path) -> Vec<u64> {
    let text = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let step = |line: &str| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap();
    text.lines().map(step).collect()
}

fn rollouts(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("rollouts")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "index.jsonl")
        .collect();
    names.sort();
    names
}

/// Step, group and offset of each line of the index.
pub(crate) fn index(dir: &Path) -> Vec<[u64; 3]> {
    let text = fs::read_to_string(dir.join("rollouts/index.jsonl")).unwrap();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        ["step", "group", "offset"].map(|key| line[key].as_u64().unwrap())
    };
    text.lines().map(line).collect()
}

pub(crate) fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn a_folder_has_one_holder() {
    let dir = TempDir::new().unwrap();
    let run = RunFolder::open(dir.path()).unwrap();
    let error = RunFolder::open(dir.path()).unwrap_err();
    assert!(matches!(error, RunError::Locked { pid: Some(pid), .. } if pid == std::process::id()));
    assert!(error.to_string().contains(&format!("in use by process {}", std::process::id())));
    drop(run);
    RunFolder::open(dir.path()).unwrap();
}

#[test]
fn a_step_is_one_line_and_one_point_a_number() {
    let dir = TempDir::new().unwrap();
    let _run = folder_with_steps(dir.path(), 1..=2);
    let text = fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
    let first = r#"{"step":1,"reward":0.5,"secs":{"total":1.5},"note":"x"}"#;
    assert_eq!(text.lines().next().unwrap(), first);
    let expected =
        [("reward", 1, 0.5), ("secs/total", 1, 1.5), ("reward", 2, 1.0), ("secs/total", 2, 1.5)];
    assert_eq!(
        points(dir.path()),
        expected.map(|(tag, step, value)| (tag.to_owned(), step, value))
    );
    let lines = fs::read_to_string(dir.path().join("rollouts/step_000001.jsonl")).unwrap();
    assert_eq!(lines, "{\"completion\":\"a\"}\n{\"completion\":\"b\"}\n");
}

#[test]
fn later_steps_are_cut_off_and_the_run_goes_on() {
    let dir = TempDir::new().unwrap();
    drop(folder_with_steps(dir.path(), 1..=5));
    let mut run = RunFolder::open(dir.path()).unwrap();
    run.cut_back_to(3).unwrap();
    run.log_step(4, &metrics(json!({"reward": 9.0}))).unwrap();
    assert_eq!(metric_steps(dir.path()), [1, 2, 3, 4]);
    assert_eq!(
        rollouts(dir.path()),
        ["step_000001.jsonl", "step_000002.jsonl", "step_000003.jsonl"]
    );
    let rewards: Vec<(u64, f32)> = points(dir.path())
        .into_iter()
        .filter(|(tag, ..)| tag == "reward")
        .map(|(_, step, value)| (step, value))
        .collect();
    assert_eq!(rewards, [(1, 0.5), (2, 1.0), (3, 1.5), (4, 9.0)]);
    run.cut_back_to(3).unwrap();
    run.log_step(4, &metrics(json!({"reward": 8.0}))).unwrap();
    assert_eq!(metric_steps(dir.path()), [1, 2, 3, 4]);
}

#[test]
fn bad_steps_after_the_checkpoint_are_cut_off() {
    let dir = TempDir::new().unwrap();
    let run = folder_with_steps(dir.path(), 1..=1);
    let file = |step: u64| dir.path().join(format!("bad_steps/step_{step:06}.jsonl"));
    for step in [2, 4] {
        let lines = [json!({"step": step}), json!({"completion": "x"})];
        assert_eq!(run.log_bad_step(step, &lines).unwrap(), file(step));
    }
    assert_eq!(fs::read_to_string(file(2)).unwrap(), "{\"step\":2}\n{\"completion\":\"x\"}\n");
    drop(run);
    let torn = dir.path().join("bad_steps/.tmp-step_000005.jsonl");
    fs::write(&torn, "{").unwrap();
    let mut run = RunFolder::open(dir.path()).unwrap();
    assert!(!torn.exists());
    run.cut_back_to(2).unwrap();
    assert!(file(2).exists() && !file(4).exists());
}

#[test]
fn torn_ends_of_a_killed_run_are_forgotten() {
    let dir = TempDir::new().unwrap();
    drop(folder_with_steps(dir.path(), 1..=3));
    let metrics_file = dir.path().join("metrics.jsonl");
    let events = event_files(dir.path()).remove(0);
    let whole = (fs::read(&metrics_file).unwrap(), fs::read(&events).unwrap());
    for torn in [1, 9, 20] {
        append(&metrics_file, &br#"{"step":4,"reward":0.123}"#[..torn]);
        append(&events, &whole.1[..torn]);
        fs::write(dir.path().join("rollouts/.tmp-step_000004.jsonl"), "{").unwrap();
        let mut run = RunFolder::open(dir.path()).unwrap();
        run.cut_back_to(3).unwrap();
        assert_eq!(fs::read(&metrics_file).unwrap(), whole.0, "{torn}");
        assert_eq!(fs::read(&events).unwrap(), whole.1, "{torn}");
        assert_eq!(rollouts(dir.path()).len(), 3);
    }
    // A whole line without its end may have lost digits of a number: it is torn too.
    append(&metrics_file, br#"{"step":2,"reward":0.1}"#);
    RunFolder::open(dir.path()).unwrap().cut_back_to(3).unwrap();
    assert_eq!(fs::read(&metrics_file).unwrap(), whole.0);
}

#[test]
fn a_checkpoint_is_whole_or_not_there() {
    let dir = TempDir::new().unwrap();
    let mut run = RunFolder::open(dir.path()).unwrap();
    assert_eq!(run.latest_checkpoint().unwrap(), None);
    for step in [2, 10, 9] {
        let pending = run.begin_checkpoint(step).unwrap();
        fs::create_dir(pending.path().join("trainer_state")).unwrap();
        fs::write(pending.path().join("trainer_state/a"), step.to_string()).unwrap();
        assert!(!dir.path().join(format!("checkpoint-{step}")).exists());
        assert_eq!(pending.commit().unwrap(), dir.path().join(format!("checkpoint-{step}")));
    }
    let abandoned = run.begin_checkpoint(11).unwrap();
    let path = abandoned.path().to_owned();
    drop(abandoned);
    assert!(!path.exists());
    assert_eq!(run.latest_checkpoint().unwrap(), Some((10, dir.path().join("checkpoint-10"))));
    assert_eq!(fs::read_to_string(dir.path().join("checkpoint-10/trainer_state/a")).unwrap(), "10");
    run.prune_checkpoints(2).unwrap();
    let steps: Vec<u64> = run.checkpoints().unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [9, 10]);
}

/// Rollouts are whole as soon as they are written, and put on the disk by the next checkpoint alone: syncing the file of every
/// step took up to a third of a short one.
#[test]
fn a_checkpoint_puts_the_rollouts_before_it_on_the_disk() {
    let dir = TempDir::new().unwrap();
    let mut run = folder_with_steps(dir.path(), 1..=3);
    let file = |step: u64| dir.path().join(format!("rollouts/step_{step:06}.jsonl"));
    // What a user removed is no loss of ours; what cannot be synced is, as here a device.
    fs::remove_file(file(1)).unwrap();
    drop(run.begin_checkpoint(3).unwrap());
    for step in [2, 3] {
        fs::remove_file(file(step)).unwrap();
        std::os::unix::fs::symlink("/dev/null", file(step)).unwrap();
    }
    drop(run.begin_checkpoint(3).expect("those were synced before"));
    run.log_rollouts(4, &[group(&["c"])], None).unwrap();
    fs::remove_file(file(4)).unwrap();
    std::os::unix::fs::symlink("/dev/null", file(4)).unwrap();
    let error = run.begin_checkpoint(4).unwrap_err();
    assert!(matches!(&error, RunError::Io { path, .. } if *path == file(4)), "{error}");
}

#[test]
fn what_a_killed_process_left_unfinished_is_removed() {
    let dir = TempDir::new().unwrap();
    let mut run = RunFolder::open(dir.path()).unwrap();
    let pending = run.begin_checkpoint(4).unwrap();
    fs::write(pending.path().join("model.safetensors"), "half").unwrap();
    // A killed process runs no destructor.
    let left = pending.path().to_owned();
    std::mem::forget(pending);
    drop(run);
    assert!(left.exists());
    let run = RunFolder::open(dir.path()).unwrap();
    assert!(!left.exists());
    assert_eq!(run.latest_checkpoint().unwrap(), None);
}

#[test]
fn config_environment_and_log_are_written() {
    let dir = TempDir::new().unwrap();
    let run = RunFolder::open(dir.path()).unwrap();
    assert_eq!(run.config().unwrap(), None);
    run.write_config("beta: 0.1\n").unwrap();
    assert_eq!(run.config().unwrap().unwrap(), "beta: 0.1\n");
    let environment = base::run_folder::environment(metrics(json!({"version": "1"})));
    run.write_env(&environment).unwrap();
    let read: Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("env.json")).unwrap()).unwrap();
    assert_eq!(read["version"], "1");
    assert!(read["commit"].is_null());
    let cwd = std::env::current_dir().unwrap();
    assert_eq!(read["cwd"], cwd.to_str().unwrap());
    assert!(!read["host"].as_str().unwrap().is_empty());
    assert!(read["cores"].as_u64().unwrap() > 0);
    run.log_line("one");
    drop(run);
    RunFolder::open(dir.path()).unwrap().log_line("two");
    let log = fs::read_to_string(dir.path().join("log.txt")).unwrap();
    let words: Vec<&str> = log.lines().map(|line| line.split_once("Z ").unwrap().1).collect();
    assert_eq!(words, ["one", "two"]);
}

#[test]
fn event_files_of_one_second_do_not_collide() {
    let dir = TempDir::new().unwrap();
    for value in [1.0, 2.0] {
        let scalar = Scalar { tag: "a/b".into(), step: 300, value };
        EventFile::create(dir.path()).unwrap().write(&[scalar]).unwrap();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_stop_is_asked_for_once_or_twice() {
    let stop = StopFlag::new();
    let seen = stop.clone();
    assert!(seen.is_running());
    assert!(!seen.has_begun() && seen.signal().is_none());
    stop.begin();
    stop.raise_by(15);
    assert!(seen.is_raised() && !seen.is_now() && !seen.is_running() && seen.has_begun());
    assert_eq!(seen.signal(), Some(15));
    stop.raise_by(2);
    assert_eq!(seen.signal(), Some(15));
    stop.raise();
    assert!(seen.is_raised() && seen.is_now());
}

#[test]
fn evaluations_are_whole_and_go_with_the_lines_of_their_steps() {
    let dir = TempDir::new().unwrap();
    let run = folder_with_steps(dir.path(), 1..=4);
    let folder = |step: u64| dir.path().join(format!("eval/step_{step:06}"));
    for step in [0, 2, 4] {
        let pending = run.begin_evaluation(step).unwrap();
        assert_eq!(pending.name(), folder(step));
        fs::create_dir(pending.path().join("val")).unwrap();
        fs::write(pending.path().join("val/summary.json"), "{}").unwrap();
        assert!(!folder(step).exists());
        pending.commit().unwrap();
    }
    std::mem::forget(run.begin_evaluation(5).unwrap());
    drop(run);
    let mut run = RunFolder::open(dir.path()).unwrap();
    assert!(!dir.path().join("eval/.tmp-step_000005").exists());
    run.cut_back_to(3).unwrap();
    assert!(folder(2).join("val/summary.json").exists() && !folder(4).exists());
    // The checkpoint of a step that was not evaluated to the end: its rollouts stand.
    append(&dir.path().join("metrics.jsonl"), b"{\"step\":7,\"re\xff");
    assert_eq!([2, 3, 7].map(|step| run.is_logged(step).unwrap()), [true, true, false]);
    run.cut_back_to_unlogged(2).unwrap();
    assert_eq!(metric_steps(dir.path()), [1]);
    assert_eq!(rollouts(dir.path()).len(), 2);
    assert!(points(dir.path()).iter().all(|(_, step, _)| *step == 1));
    assert!(folder(0).exists() && !folder(2).exists());
}

#[test]
fn the_index_has_a_line_for_each_group_and_leads_to_its_completions() {
    let dir = TempDir::new().unwrap();
    let mut run = RunFolder::open(dir.path()).unwrap();
    let groups = [group(&["a", "b"]), group(&[]), group(&["cc"])];
    run.log_rollouts(1, &groups, None).unwrap();
    run.log_rollouts(2, &[], None).unwrap();
    run.log_rollouts(3, &groups[..1], None).unwrap();
    let lines = fs::read_to_string(dir.path().join("rollouts/index.jsonl")).unwrap();
    assert!(lines.starts_with("{\"step\":1,\"group\":0,\"offset\":0,\"n\":2}\n"), "{lines}");
    let index = index(dir.path());
    assert_eq!(index, [[1, 0, 0], [1, 1, 38], [1, 2, 38], [3, 0, 0]]);
    let file = fs::read_to_string(dir.path().join("rollouts/step_000001.jsonl")).unwrap();
    assert_eq!(&file[38..], "{\"completion\":\"cc\"}\n");
}

/// Neither a line of a step that is done again, nor two of one, nor a part of one.
#[test]
fn the_index_goes_back_with_the_run() {
    for (torn, done) in [("", 2), ("{\"step\":4,\"gro", 2), ("", 0), ("{\"step\":4}\n", 3)] {
        let dir = TempDir::new().unwrap();
        drop(folder_with_steps(dir.path(), 1..=3));
        append(&dir.path().join("rollouts/index.jsonl"), torn.as_bytes());
        let mut run = RunFolder::open(dir.path()).unwrap();
        run.cut_back_to(done).unwrap();
        let steps = |dir: &Path| index(dir).iter().map(|line| line[0]).collect::<Vec<_>>();
        assert_eq!(steps(dir.path()), (1..=done).collect::<Vec<_>>(), "{torn}");
        for step in done + 1..=4 {
            run.log_rollouts(step, &[group(&["x"])], None).unwrap();
        }
        assert_eq!(steps(dir.path()), [1, 2, 3, 4], "{torn}");
        // The step is done, and not logged: its rollouts stay.
        run.cut_back_to_unlogged(4).unwrap();
        assert_eq!(steps(dir.path()), [1, 2, 3, 4]);
        drop(run.begin_checkpoint(4).unwrap());
    }
    // A run that begins anew has an index of its own.
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("run");
    let mut run = folder_with_steps(&folder, 1..=3);
    run.start_over().unwrap();
    run.log_rollouts(1, &[group(&["x"])], None).unwrap();
    assert_eq!(index(&folder), [[1, 0, 0]]);
    assert_eq!(index(&dir.path().join("run.old-1")).len(), 3);
}

#[test]
fn few_files_of_rollouts_are_kept_and_all_of_the_index() {
    let dir = TempDir::new().unwrap();
    let mut run = folder_with_steps(dir.path(), 1..=5);
    let log = |run: &mut RunFolder, step, keep| {
        run.log_rollouts(step, &[group(&["x"])], Some(keep)).unwrap();
    };
    let steps = |dir: &Path| -> Vec<u64> {
        let names = rollouts(dir).into_iter();
        names.map(|name| name[5..11].parse().unwrap()).collect()
    };
    log(&mut run, 6, 100);
    assert_eq!(steps(dir.path()), [1, 2, 3, 4, 5, 6]);
    log(&mut run, 7, 3);
    assert_eq!(steps(dir.path()), [5, 6, 7]);
    log(&mut run, 8, 3);
    assert_eq!(steps(dir.path()), [6, 7, 8]);
    assert_eq!(index(dir.path()).len(), 8);
    drop(run.begin_checkpoint(8).expect("what is gone is not synced"));
    // One that goes on with another number, from an earlier step.
    run.cut_back_to(6).unwrap();
    assert_eq!(steps(dir.path()), [6]);
    log(&mut run, 7, 1);
    assert_eq!(steps(dir.path()), [7]);
    // A file of another name is nobody's.
    fs::write(dir.path().join("rollouts/step_1.txt"), "mine").unwrap();
    log(&mut run, 8, 1);
    assert_eq!(rollouts(dir.path()), ["step_000008.jsonl", "step_1.txt"]);
}
