//! A long run holds no more memory than a short one.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use train::train_grpo_with_rewards;

use crate::golden;
use crate::runs::{grpo, metrics_lines, share, watch};

const STEPS: i64 = 500;

/// Other tests' tensors would be counted, so the run has a process of its own.
#[test]
fn memory_stays_flat_over_500_steps() {
    let folder = tempfile::tempdir().unwrap();
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::five_hundred_steps", "--ignored", "--nocapture"])
        .env("VLM_R1_TEST_RUN", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
    let lines = metrics_lines(&folder.path().join("run").display().to_string());
    assert_eq!(lines.len(), STEPS as usize);
    let bytes = |step: usize, key: &str| lines[step - 1][key].as_u64().unwrap();
    let at_start = bytes(50, "live_bytes");
    assert!(at_start > 1 << 20, "{at_start}");
    for step in 50..=STEPS as usize {
        let now = bytes(step, "live_bytes");
        assert!(
            now.abs_diff(at_start) <= 4096,
            "step {step}: {now} bytes live, {at_start} after step 50"
        );
    }
    let peak = |steps: std::ops::RangeInclusive<usize>| {
        steps.map(|step| bytes(step, "peak_live_bytes")).max().unwrap()
    };
    let (early, late) = (peak(10..=100), peak(401..=500));
    assert!(late <= early + early / 10, "peaks {early}, then {late}");
    let resident = |step| bytes(step, "peak_memory_bytes");
    // The system counts pages in batches: its highest number may come out a few lower later.
    let grown = resident(500).saturating_sub(resident(250));
    assert!(grown < 8 << 20, "the process grew by {grown} bytes");
}

#[test]
#[ignore = "run by memory_stays_flat_over_500_steps in a process of its own"]
fn five_hundred_steps() {
    let folder = std::env::var("VLM_R1_TEST_RUN").unwrap();
    let config = grpo(Path::new(&folder), "run").with(|c| {
        c.optimizer.max_steps = STEPS;
        c.algorithm.num_generations = 2;
        c.optimizer.per_device_train_batch_size = 4;
        c.sampling.max_completion_length = 4;
        c.optimizer.learning_rate = 1e-4;
        c.save.save_steps = 0;
    });
    let mut watch = watch(None);
    let stop = watch.stop.clone();
    let rewards = share(char::is_ascii_lowercase);
    let model = golden::checkpoint("nested");
    let outcome = train_grpo_with_rewards(&config, &model, rewards, &mut watch, &stop).unwrap();
    assert!(outcome.finished);
    let last: &Value = &metrics_lines(&config.run.output_dir)[STEPS as usize - 1];
    assert_eq!(last["step"], STEPS);
}
