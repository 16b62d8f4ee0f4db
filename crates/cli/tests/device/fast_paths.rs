//! Fast paths that go wrong on purpose: the run goes on without them, exact, and says so.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use testing::read_json;

use crate::runs::{computed, line};
use crate::{call_with, device, done, done_with};

/// Each path, and the operation of the stand-in that makes it wrong.
const PATHS: [(&str, &str); 8] = [
    ("fused_norm", "_fused_rms_norm"),
    ("rotation", "addcmul"),
    ("residual_product", "addmm.residual"),
    ("decode_attention", "_flash_attention_forward.ranges"),
    ("flash_attention", "_flash_attention_forward"),
    ("cuda_graphs", "graph"),
    ("fused_adamw", "_fused_adamw_"),
    ("pinned_copies", "pinned"),
];

fn verdicts(folder: &Path) -> Vec<(String, String)> {
    let environment: Value = read_json(folder.join("env.json"));
    let text = |verdict: &Value, key: &str| verdict[key].as_str().unwrap().to_owned();
    let verdicts = environment["fast_paths"].as_array().unwrap().iter();
    verdicts.map(|verdict| (text(verdict, "name"), text(verdict, "verdict"))).collect()
}

#[test]
fn a_path_that_goes_wrong_is_switched_off() {
    let dir = TempDir::new().unwrap();
    let run = |name: &str, more: &str| {
        line("grpo", dir.path(), name, &device(), &format!("--bf16 true --max_steps 2 {more}"))
    };
    for (path, operation) in PATHS {
        let others: Vec<&str> =
            PATHS.iter().map(|(name, _)| *name).filter(|name| *name != path).collect();
        let without = format!("without-{path}");
        done(&run(&without, &format!("--fast_paths {}", others.join(","))));
        for how in ["number", "nan", "throw"] {
            let name = format!("{path}-{how}");
            let wrong = format!("{operation}:{how}");
            let result = done_with(&run(&name, ""), &[("VLM_R1_STAND_IN_WRONG", &wrong)]);
            let warning =
                format!("warning: fast path `{path}` is off, the run goes on without it: ");
            assert!(result.stderr.contains(&warning), "{wrong}: {}", result.stderr);
            for (name, verdict) in verdicts(&dir.path().join(&name)) {
                match name == path {
                    true => assert!(verdict.starts_with("off: "), "{wrong}: {name} {verdict}"),
                    false => assert_eq!(verdict, "proven", "{wrong}: {name}"),
                }
            }
            let (found, expected) =
                (computed(&dir.path().join(&name)), computed(&dir.path().join(&without)));
            assert_eq!(found, expected, "{wrong}");
        }
    }
}

#[test]
fn all_hold_and_the_run_says_so() {
    let dir = TempDir::new().unwrap();
    for (name, more, graphs) in [
        ("auto", "", true),
        ("off", "--cuda_graphs false", false),
        ("none", "--fast_paths none", false),
        ("one", "--fast_paths cuda_graphs", true),
    ] {
        let report = dir.path().join(format!("{name}.json"));
        let line =
            line("grpo", dir.path(), name, &device(), &format!("--bf16 true --max_steps 1 {more}"));
        let result = done_with(&line, &[("VLM_R1_STAND_IN_REPORT", &report.display().to_string())]);
        let counts: Value = read_json(&report);
        // The trial itself replays twice.
        assert_eq!(counts["replays"].as_i64() > Some(2), graphs, "{name}: {counts}");
        let told = match name {
            "none" => "none (--fast_paths, untried)",
            "one" => "cuda_graphs (--fast_paths, untried)",
            _ => {
                "fused_norm, rotation, residual_product, decode_attention, flash_attention, cuda_graphs, fused_adamw, pinned_copies (proven in "
            }
        };
        assert!(result.stderr.contains(told), "{name}: {}", result.stderr);
        assert!(!result.stderr.contains("warning: fast path"), "{name}: {}", result.stderr);
    }
    let refused =
        call_with(&line("grpo", dir.path(), "bad", &device(), "--fast_paths rotations"), &[]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("got `rotations`, expected `auto`, `all`, `none`"),
        "{}",
        refused.stderr
    );
}

/// Verdicts are kept for a card that the driver names; a failure is not.
#[test]
fn what_held_is_not_tried_again() {
    let dir = TempDir::new().unwrap();
    testing::stand_in_driver(dir.path());
    let libraries = testing::library_path(&[dir.path()]).into_string().unwrap();
    let cache = dir.path().join("cache").display().to_string();
    let run = |name: &str, wrong: &[(&str, &str)]| {
        let line = line("sft", dir.path(), name, &device(), "--max_steps 1");
        let variables = [("LD_LIBRARY_PATH", libraries.as_str()), ("VLM_R1_CACHE", &cache)];
        done_with(&line, &[&variables, wrong].concat()).stderr
    };
    let wrong = [("VLM_R1_STAND_IN_WRONG", "addcmul:number")];
    assert!(run("failed", &wrong).contains("`rotation` is off"));
    let first = run("first", &[]);
    assert!(first.contains("pinned_copies (proven in "), "{first}");
    let second = run("second", &[]);
    assert!(second.contains("pinned_copies (proven before)"), "{second}");
    let told = call_with("doctor", &[("VLM_R1_CACHE", &cache), ("HF_HUB_OFFLINE", "1")]).stdout;
    assert!(told.contains("rotation") && told.contains("proven, differs by"), "{told}");
}
