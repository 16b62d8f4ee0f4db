//! The run folder, damaged, full of other things, or left by a run that cannot go on.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use base::run_folder::RunFolder;
use serde_json::json;
use tempfile::TempDir;

use crate::run_folder::{
    append, event_files, folder_with_steps, group, metric_steps, metrics, points,
};

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// A checkpoint as far as a run folder looks.
fn checkpoint(path: &Path) {
    fs::create_dir_all(path.join("trainer_state")).unwrap();
    fs::write(path.join("model.safetensors"), path.to_str().unwrap()).unwrap();
}

fn steps_of_checkpoints(run: &RunFolder) -> Vec<u64> {
    let checkpoints = run.checkpoints().unwrap();
    checkpoints.into_iter().map(|(step, _)| step).collect()
}

#[test]
fn broken_lines_of_metrics_are_told_and_the_others_kept() {
    let good = |step: u64| format!("{{\"step\":{step},\"loss\":0.5}}\n").into_bytes();
    let damages: [&[u8]; 7] = [
        b"{\"stop\":2,\"loss\":0.5}\n",
        b"{\"step\":2,\"lo\n",
        b"{\"step\":-2}\n",
        b"\xff\xfe\n",
        b"\n",
        b"[2]\n",
        &[0; 40],
    ];
    for damage in damages {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("metrics.jsonl");
        let mut bytes = [good(1), damage.to_vec()].concat();
        if damage[0] == 0 {
            bytes.push(b'\n');
        }
        bytes.extend([good(3), good(9), b"{\"st".to_vec()].concat());
        fs::write(&file, &bytes).unwrap();
        let mut run = RunFolder::open(dir.path()).unwrap();
        run.cut_back_to(3).unwrap();
        assert_eq!(metric_steps(dir.path()), [1, 3]);
        let aside = dir.path().join("metrics.jsonl.damaged-1");
        assert_eq!(fs::read(&aside).unwrap(), bytes);
        let log = read(dir.path().join("log.txt"));
        assert!(log.contains("metrics.jsonl:2: not a line"), "{log}");
        assert!(log.contains("metrics.jsonl.damaged-1"), "{log}");
        // Told once: what is left is whole.
        run.cut_back_to(3).unwrap();
        assert!(!dir.path().join("metrics.jsonl.damaged-2").exists());
    }
}

#[test]
fn a_broken_event_costs_no_other() {
    let dir = TempDir::new().unwrap();
    drop(folder_with_steps(dir.path(), 1..=4));
    let file = event_files(dir.path()).remove(0);
    let whole = fs::read(&file).unwrap();
    for at in (0..whole.len()).step_by(3) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let mut run = RunFolder::open(dir.path()).unwrap();
        run.cut_back_to(3).unwrap();
        let mut aside = event_files(dir.path());
        aside.retain(|path| *path != file);
        for aside in aside {
            assert_eq!(fs::read(&aside).unwrap(), bytes, "byte {at}");
            // TensorBoard would read it.
            assert!(!aside.to_str().unwrap().contains("tfevents"));
            fs::remove_file(aside).unwrap();
        }
        let steps = points(dir.path());
        // Two points a step; of the four one may be lost, or the header, and the last is cut off.
        assert!(steps.len() >= 4, "byte {at}: {steps:?}");
        assert!(steps.iter().all(|(_, step, _)| *step <= 3), "byte {at}");
    }
}

#[test]
fn nothing_in_the_place_of_a_by_product_blocks() {
    let by_products = ["metrics.jsonl", "alerts.jsonl", "log.txt", "rollouts/index.jsonl"];
    let folders = ["rollouts", "tensorboard", "bad_steps", "eval"];
    type Put = fn(&Path);
    let kinds: [Put; 5] = [
        |path| fs::write(path, b"\xff\0 no lines").unwrap(),
        |path| fs::create_dir(path).unwrap(),
        |path| symlink("/nowhere/at/all", path).unwrap(),
        // Reading it never ends.
        |path| symlink("/dev/zero", path).unwrap(),
        // Opening it never ends.
        |path| {
            let made = std::process::Command::new("mkfifo").arg(path).status();
            assert!(made.unwrap().success());
        },
    ];
    for name in by_products.into_iter().chain(folders) {
        for put in kinds {
            let dir = TempDir::new().unwrap();
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            put(&path);
            let mut run = RunFolder::open(dir.path()).unwrap();
            run.is_logged(2).unwrap();
            run.cut_back_to(2).unwrap();
            run.log_step(3, &metrics(json!({"loss": 1.0}))).unwrap();
            run.log_rollouts(3, &[group(&["a"])], None).unwrap();
            run.log_bad_step(4, &[json!({"step": 4})]).unwrap();
            run.begin_evaluation(3).unwrap().commit().unwrap();
            run.begin_checkpoint(3).unwrap().commit().unwrap();
            let metrics = dir.path().join("metrics.jsonl");
            // What a device takes is gone, as its user wished.
            if fs::metadata(metrics).unwrap().is_file() {
                assert_eq!(metric_steps(dir.path()), [3], "{name}");
            }
        }
    }
    // A whole line of another kind, and names of steps that are folders.
    let dir = TempDir::new().unwrap();
    drop(folder_with_steps(dir.path(), 1..=3));
    append(&dir.path().join("metrics.jsonl"), b"no\n{\"step\":4}\n");
    fs::create_dir(dir.path().join("rollouts/step_000004.jsonl")).unwrap();
    fs::write(dir.path().join("rollouts/step_000002.jsonl"), b"\xff").unwrap();
    fs::create_dir(dir.path().join("env.json")).unwrap();
    let mut run = RunFolder::open(dir.path()).unwrap();
    run.cut_back_to(3).unwrap();
    run.log_rollouts(4, &[], None).unwrap();
    run.write_env(&json!({})).unwrap();
    assert_eq!(metric_steps(dir.path()), [1, 2, 3]);
}

#[test]
fn alerts_go_with_their_steps() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("alerts.jsonl");
    let kept = "{\"step\":1}\n{\"kind\":\"disk\"}\n";
    fs::write(&file, format!("{kept}{{\"step\":5}}\n{{\"st")).unwrap();
    RunFolder::open(dir.path()).unwrap().cut_back_to(3).unwrap();
    assert_eq!(read(&file), kept);
}

#[test]
fn a_run_without_a_checkpoint_is_moved_and_not_lost() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    for round in 1..=2 {
        let run = folder_with_steps(&out, 1..=3);
        run.write_config(&format!("seed: {round}\n")).unwrap();
        run.write_env(&json!({})).unwrap();
        run.log_bad_step(2, &[json!({"step": 2})]).unwrap();
        run.begin_evaluation(2).unwrap().commit().unwrap();
        run.log_line(&format!("round {round}"));
        drop(run);
        checkpoint(&out.join("checkpoint-3.damaged-1"));
        // Of the user, and of caches.
        for own in ["notes.txt", "rollouts/mine.csv", "eval/score.py"] {
            fs::write(out.join(own), own).unwrap();
        }
        fs::create_dir_all(out.join("judge_cache/x")).unwrap();
        let mut run = RunFolder::open(&out).unwrap();
        run.log_line(&format!("before {round}"));
        run.start_over().unwrap();
        let old = dir.path().join(format!("out.old-{round}"));
        assert_eq!(metric_steps(&old), [1, 2, 3]);
        assert_eq!(points(&old).len(), 6);
        // And their index.
        assert_eq!(names(&old.join("rollouts")).len(), 4);
        assert_eq!(read(old.join("config.yaml")), format!("seed: {round}\n"));
        for there in [
            "bad_steps/step_000002.jsonl",
            "eval/step_000002",
            "checkpoint-3.damaged-1/trainer_state",
        ] {
            assert!(old.join(there).exists(), "{there}");
        }
        let (before, now) = (read(old.join("log.txt")), read(out.join("log.txt")));
        let said = format!("before {round}");
        assert!(before.contains(&format!("round {round}")) && !before.contains(&said));
        assert!(now.contains(&said) && now.contains("out.old-"));
        assert!(!now.contains(&format!("round {round}")), "{now}");
        assert_eq!(run.config().unwrap(), None);
        for own in ["notes.txt", "rollouts/mine.csv", "eval/score.py"] {
            assert_eq!(read(out.join(own)), own);
        }
        assert!(out.join("judge_cache/x").exists());
        drop(run);
    }
    // Nothing was done: nothing is lost where it begins anew.
    let mut run = RunFolder::open(&out).unwrap();
    run.write_config("seed: 3\n").unwrap();
    run.start_over().unwrap();
    assert!(!dir.path().join("out.old-3").exists());
}

#[test]
fn any_single_trace_of_work_is_kept() {
    let traces = [
        "metrics.jsonl",
        "alerts.jsonl",
        "rollouts/step_000001.jsonl",
        "bad_steps/step_000001.jsonl",
        "eval/step_000000/val/summary.json",
        "tensorboard/events.out.tfevents.0000000001.vlm-r1.7.0",
        "checkpoint-9/model.safetensors",
    ];
    for trace in traces {
        let dir = TempDir::new().unwrap();
        let out = dir.path().join("out");
        fs::create_dir_all(out.join(trace).parent().unwrap()).unwrap();
        fs::write(out.join(trace), b"not empty, \xff broken").unwrap();
        RunFolder::open(&out).unwrap().start_over().unwrap();
        assert!(!out.join(trace).exists(), "{trace}");
        let old = dir.path().join("out.old-1").join(trace);
        assert_eq!(fs::read(old).unwrap(), b"not empty, \xff broken", "{trace}");
    }
}

#[test]
fn links_and_names_that_take_no_number_are_moved_inside() {
    // Beside it there can be no longer name.
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("x".repeat(254));
    folder_with_steps(&out, 1..=1).start_over().unwrap();
    assert_eq!(metric_steps(&out.join("old-1")), [1]);
    assert!(!out.join("metrics.jsonl").exists());
    assert_eq!(names(dir.path()).len(), 1);
    // What a link leads to is moved beside itself.
    let (real, link) = (dir.path().join("disk/run"), dir.path().join("out"));
    fs::create_dir_all(&real).unwrap();
    symlink(&real, &link).unwrap();
    folder_with_steps(&link, 1..=1).start_over().unwrap();
    assert_eq!(metric_steps(&dir.path().join("disk/run.old-1")), [1]);
    assert!(link.is_symlink() && link.join(".lock").exists());
}

#[test]
fn settings_of_a_user_are_not_overwritten() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.yaml"), "# mine\nseed: 1\n").unwrap();
    let run = RunFolder::open(dir.path()).unwrap();
    for seed in [1, 2] {
        run.write_config(&format!("seed: {seed}\n")).unwrap();
        run.write_env(&json!({})).unwrap();
    }
    let aside = dir.path().join("config.yaml.old-1");
    assert_eq!(read(aside), "# mine\nseed: 1\n");
    assert!(!dir.path().join("config.yaml.old-2").exists());
}

#[test]
fn what_only_looks_like_a_checkpoint_is_none_and_in_nobodys_way() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    checkpoint(&at("checkpoint-4"));
    for name in ["checkpoint-", "checkpoint-x", "checkpoint-99999"] {
        fs::create_dir(at(name)).unwrap();
    }
    for name in ["checkpoint-007", "checkpoint-+7", "checkpoint-1e3", "old-checkpoint-7"] {
        checkpoint(&at(name));
    }
    fs::write(at("checkpoint-8"), "a file").unwrap();
    fs::create_dir(at("checkpoint-9")).unwrap();
    fs::write(at("checkpoint-9/notes.txt"), "mine").unwrap();
    symlink(at("gone"), at("checkpoint-10")).unwrap();
    symlink(at("checkpoint-11"), at("checkpoint-11")).unwrap();
    let mut run = RunFolder::open(dir.path()).unwrap();
    assert_eq!(steps_of_checkpoints(&run), [4]);
    let log = read(at("log.txt"));
    for name in ["007", "+7", "1e3", "8", "9", "10", "11", "99999"] {
        let line = format!("checkpoint-{name}: no checkpoint: ");
        assert_eq!(log.matches(&line).count(), 1, "{name}: {log}");
    }
    // Of the steps to come: those up to 9 at the start, the others when they are written.
    run.make_way(4, 9).unwrap();
    assert_eq!(read(at("checkpoint-8.old-1")), "a file");
    assert_eq!(read(at("checkpoint-9.old-1/notes.txt")), "mine");
    for step in [8, 9, 10, 11, 99999] {
        let pending = run.begin_checkpoint(step).unwrap();
        checkpoint(pending.path());
        pending.commit().unwrap();
    }
    assert_eq!(steps_of_checkpoints(&run), [4, 8, 9, 10, 11, 99999]);
    assert!(at("checkpoint-10.old-1").is_symlink() && at("checkpoint-99999.old-1").is_dir());
    // One of an earlier life is not lost either.
    run.begin_checkpoint(8).unwrap().commit().unwrap();
    assert!(at("checkpoint-8.old-2/model.safetensors").exists());
}

#[test]
fn a_checkpoint_on_another_disk_is_read_and_never_deleted() {
    let dir = TempDir::new().unwrap();
    let (out, disk) = (dir.path().join("out"), dir.path().join("disk/a"));
    checkpoint(&disk);
    let mut run = RunFolder::open(&out).unwrap();
    symlink(&disk, out.join("checkpoint-5")).unwrap();
    let newest = run.latest_checkpoint().unwrap();
    assert_eq!(newest, Some((5, out.join("checkpoint-5"))));
    let pending = run.begin_checkpoint(6).unwrap();
    checkpoint(pending.path());
    pending.commit().unwrap();
    run.prune_checkpoints(1).unwrap();
    assert_eq!(steps_of_checkpoints(&run), [6]);
    assert!(!out.join("checkpoint-5").is_symlink());
    assert!(disk.join("model.safetensors").exists());
}

#[test]
fn only_what_a_run_leaves_unfinished_is_removed() {
    let dir = TempDir::new().unwrap();
    for name in [".tmp-checkpoint-5", ".tmp-step_000001", ".tmp-config.yaml"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join(".tmp-notes"), "mine").unwrap();
    drop(RunFolder::open(dir.path()).unwrap());
    let left: Vec<String> =
        names(dir.path()).into_iter().filter(|name| name.starts_with(".tmp-")).collect();
    assert_eq!(left, [".tmp-notes"]);
}
