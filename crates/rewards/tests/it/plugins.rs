//! Rewards of the user's own: Python functions and programs, well-behaved and not.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rewards::{PluginOptions, RewardError, RewardInput, RewardOptions, RewardSet};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::{generic_options, input};

/// A folder of reward files, made for one test.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().expect("a folder"))
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("written");
        path
    }

    pub(crate) fn python(&self, text: &str) -> String {
        format!("{}:score", self.file("mine.py", text).display())
    }

    fn shell(&self, text: &str) -> String {
        let path = self.file("score.sh", text);
        format!("program:sh {}", path.display())
    }
}

fn with_plugins(plugins: PluginOptions) -> RewardOptions {
    RewardOptions { plugins, ..generic_options() }
}

pub(crate) fn set(name: &str, plugins: PluginOptions) -> Result<RewardSet, RewardError> {
    RewardSet::build(&[name.to_owned()], None, &with_plugins(plugins))
}

pub(crate) fn quick() -> PluginOptions {
    PluginOptions { timeout_secs: 120.0, ..PluginOptions::default() }
}

pub(crate) fn score(
    set: &RewardSet,
    completions: &[&str],
) -> Result<Vec<Option<f64>>, RewardError> {
    let columns = Map::new();
    let samples: Vec<String> =
        (0..completions.len()).map(|i| format!("rows.jsonl:{}", i + 1)).collect();
    let rows: Vec<RewardInput<'_>> = completions
        .iter()
        .zip(&samples)
        .map(|(text, sample)| RewardInput {
            sample: Some(sample),
            ..input(text, "<answer> [0, 0, 10, 10] </answer>", &columns)
        })
        .collect();
    set.score(&rows).map(|mut scores| scores.per_reward.remove(0))
}

#[test]
fn the_example_scores_by_iou() {
    let file = testing::repository("examples/rewards/my_iou.py");
    let set = set(&format!("{}:my_iou", file.display()), quick()).expect("it loads");
    assert_eq!(set.names().collect::<Vec<_>>(), ["my_iou"]);
    let scores = score(&set, &["<answer>[0, 0, 10, 10]</answer>", "[0, 0, 10, 5]", "no box"]);
    assert_eq!(scores, Ok(vec![Some(1.0), Some(0.5), Some(0.0)]));
}

#[test]
fn python_is_given_every_column_sizes_prompt_and_step() {
    let folder = Folder::new();
    let name = folder.python(
        r#"
import json
def score(completions, solution, prompts, step, **kwargs):
    kwargs.update(completions=completions, solution=solution, prompts=prompts, step=step)
    wanted = json.loads(kwargs["wanted"][0])
    for key, value in wanted.items():
        assert kwargs[key] == value, (key, kwargs[key], value)
    return [len(wanted), None]
"#,
    );
    let wanted = json!({
        "completions": ["a", "b"], "solution": ["s", "s"], "prompts": ["q", null], "step": 9,
        "problem": ["q", null], "image_path": [["x/1.png"], ["x/1.png"]],
        "image_size": [[[112, 112]], [[112, 112]]], "image_grid_thw": [[[1, 8, 8]], [[1, 8, 8]]],
        "sample": ["f:1", null], "mine": [[7, "é\n"], null], "accu_reward_method": ["all_match", "all_match"],
    });
    let mut columns = Map::new();
    columns.insert("wanted".into(), Value::String(wanted.to_string()));
    columns.insert("mine".into(), json!([7, "é\n"]));
    columns.insert("completion".into(), json!("not this one"));
    let images = [PathBuf::from("x/1.png")];
    let first = RewardInput {
        problem: Some("q"),
        images: &images,
        sample: Some("f:1"),
        step: Some(9),
        completion_tokens: None,
        ..input("a", "s", &columns)
    };
    let others = Map::new();
    let second = RewardInput {
        images: &images,
        step: Some(9),
        completion_tokens: None,
        ..input("b", "s", &others)
    };
    let set = set(&name, quick()).expect("it loads");
    let scores = set.score(&[first, second]).expect("every column is right");
    assert_eq!(scores.per_reward, [[Some(11.0), None]]);
    assert_eq!(scores.total, [11.0, 0.0]);
}

#[test]
fn functions_of_vlm_r1_read_chat_messages_and_one_grid_a_row() {
    let folder = Folder::new();
    let text = r#"
def score(completions, solution, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [float(c == "hello") * kwargs["image_grid_thw"][i][1] for i, c in enumerate(contents)]
"#;
    let plain = folder.python(text);
    let chat = set(&format!("{plain}:chat"), quick()).expect("it loads");
    assert_eq!(score(&chat, &["hello", "x"]), Ok(vec![Some(8.0), Some(0.0)]));
    // Said in the signature.
    let annotated =
        text.replace("completions, solution", "completions: list[list[dict]], solution");
    let name = format!("{}:score", folder.file("annotated.py", &annotated).display());
    let annotated = set(&name, quick()).expect("it loads");
    assert_eq!(score(&annotated, &["hello"]), Ok(vec![Some(8.0)]));
    // Not said at all: the error says how.
    let error = score(&set(&plain, quick()).expect("it loads"), &["hello"]).expect_err("a string");
    assert!(error.to_string().contains("FILE.py:FUNCTION:chat"), "{error}");
}

#[test]
fn what_a_function_prints_reads_or_starts_does_not_reach_the_protocol() {
    let folder = Folder::new();
    let name = folder.python(
        r#"
import os, subprocess, sys
print("on loading")
def score(completions):
    print("plain")
    sys.__stdout__.write("underneath\n")
    os.write(1, b"by number\n")
    subprocess.run(["echo", "a child"])
    assert sys.stdin.read() == ""
    return [len(c) for c in completions]
"#,
    );
    let set = set(&name, quick()).expect("it loads");
    for _ in 0..3 {
        assert_eq!(score(&set, &["ab", ""]), Ok(vec![Some(2.0), Some(0.0)]));
    }
}

#[test]
fn an_exception_shows_reward_samples_traceback_and_what_was_printed() {
    let folder = Folder::new();
    let name = folder.python(
        "def score(completions, **kwargs):\n    print('so far')\n    return [1 / 0 for c in completions]\n",
    );
    let reward = set(&name, quick()).expect("it loads");
    let text = score(&reward, &["a", "b"]).expect_err("an exception").to_string();
    assert!(text.starts_with("reward `score`, rows.jsonl:1 to rows.jsonl:2: Traceback"), "{text}");
    assert!(text.contains("ZeroDivisionError"), "{text}");
    assert!(text.ends_with("its stderr:\n  so far"), "{text}");
    // The error ends no more than the request.
    assert!(score(&reward, &["a"]).is_err());
}

#[test]
fn scores_that_are_none_are_named_by_their_sample() {
    let folder = Folder::new();
    let name = folder
        .python("def score(completions, **kwargs):\n    return [eval(c) for c in completions]\n");
    let set = set(&name, quick()).expect("it loads");
    let says = |texts: &[&str]| score(&set, texts).expect_err("not scores");
    let nan = says(&["1", "float('nan')"]);
    assert_eq!(nan.row(), Some(1));
    assert_eq!(
        nan.to_string(),
        "reward `score`, rows.jsonl:2: returned nan, expected a finite number"
    );
    let text = says(&["'x'", "1"]);
    assert_eq!(
        text.to_string(),
        "reward `score`, rows.jsonl:1: returned 'x' (str) as a score, expected a number or None"
    );
    let name = folder.python("def score(completions, **kwargs):\n    return [1.0]\n");
    let short = self::set(&name, quick()).expect("it loads");
    let error = score(&short, &["a", "b"]).expect_err("too few");
    assert!(error.to_string().contains("returned 1 score for 2 completions"), "{error}");
}

/// What a function may return, as `numpy` and `torch` have it too, and what it may not.
#[test]
fn scores_come_in_order_or_are_refused() {
    let folder = Folder::new();
    let name = folder.python(
        r#"
import collections, decimal, fractions
class Array:
    def __init__(self, value): self.value = value
    def tolist(self): return self.value
    def __repr__(self): return f"array({self.value})"
class Scalar:
    ndim = 0
    def __init__(self, value): self.value = value
    def item(self): return self.value
async def later(): return [1, 2]
def score(completions, **kwargs):
    return eval(completions[0])
"#,
    );
    let set = set(&name, quick()).expect("it loads");
    for good in [
        "[1, 2]",
        "(1, 2)",
        "range(1, 3)",
        "(x for x in [1, 2])",
        "map(float, '12')",
        "{'a': 1, 'b': 2}.values()",
        "collections.deque([True, 2])",
        "Array([1.0, 2])",
        "[Scalar(True), Scalar(2.0)]",
        "[fractions.Fraction(1), decimal.Decimal(2)]",
        "later()",
    ] {
        let scores = score(&set, &[good, ""]);
        assert_eq!(scores, Ok(vec![Some(1.0), Some(2.0)]), "{good}");
    }
    for (bad, got) in [
        ("{'a': 1, 'b': 2}", "{'a': 1, 'b': 2} (dict), expected a list of 2 numbers"),
        ("collections.Counter('ab')", "(Counter), expected a list of 2 numbers"),
        ("{'a': 1, 'b': 2}.keys()", "(dict_keys), expected a list of 2 numbers"),
        ("{1, 2}", "{1, 2} (set), expected a list of 2 numbers"),
        ("'12'", "'12' (str), expected a list of 2 numbers"),
        ("b'12'", "b'12' (bytes), expected a list of 2 numbers"),
        ("None", "None (NoneType), expected a list of 2 numbers"),
        ("True", "True (bool), expected a list of 2 numbers"),
        ("0.5", "0.5 (float), expected a list of 2 numbers"),
        ("Array(0.5)", "array(0.5) (Array), expected a list of 2 numbers"),
        ("Array([[1], [2]])", "returned [1] (list) as a score"),
        ("[[1], [2]]", "returned [1] (list) as a score"),
        ("['1', '2']", "returned '1' (str) as a score"),
        ("[{'score': 1}, 2]", "returned {'score': 1} (dict) as a score"),
        ("[Array([1]), 2]", "returned array([1]) (Array) as a score"),
        ("[1j, 2]", "returned 1j (complex) as a score"),
        ("[10 ** 400, 2]", "returned inf, expected a finite number"),
        ("iter(int, 1)", "returned over 2 scores for 2 completions"),
        ("'x' * 10000", "... (str), expected a list of 2 numbers"),
    ] {
        let text = score(&set, &[bad, ""]).expect_err(bad).to_string();
        assert!(text.starts_with("reward `score`, rows.jsonl:1"), "{text}");
        assert!(text.contains(got), "{bad}: {text}");
        assert!(text.len() < 500, "{text}");
    }
}

#[test]
fn a_file_that_does_not_load_is_an_error_before_any_batch() {
    let folder = Folder::new();
    let says = |name: &str| set(name, quick()).err().expect("an error").to_string();
    let broken = says(&folder.python("def score(:\n"));
    assert!(broken.contains("SyntaxError"), "{broken}");
    let other = says(&folder.python("def scores(completions): return []\n"));
    assert!(other.contains("no function `score`; defined: scores"), "{other}");
    let gone = says("nowhere/mine.py:score");
    assert!(gone.contains("nowhere/mine.py"), "{gone}");
    assert!(says("mine.py").contains("expected `FILE.py:FUNCTION`"));
    assert!(says("mine.py:score:chatty").contains("expected `:chat`"));
    let python = PluginOptions { python: Some("no-such-python".to_owned()), ..quick() };
    let text = set("mine.py:score", python).err().expect("an error").to_string();
    assert!(text.starts_with("reward `score`: `no-such-python` does not start"), "{text}");
    let none = PluginOptions { workers: 0, ..quick() };
    assert!(matches!(
        set("mine.py:score", none).err(),
        Some(RewardError::PluginOption { option: "reward_workers", .. })
    ));
}

#[test]
fn a_function_that_hangs_is_killed_and_the_next_batch_is_scored() {
    let folder = Folder::new();
    let name = folder.python(
        r#"
import subprocess
def score(completions, **kwargs):
    if completions[0] == "hang":
        subprocess.run(["sleep", "1000"])
    return [1.0 for c in completions]
"#,
    );
    let plugins = PluginOptions { timeout_secs: 6.5, ..quick() };
    let set = set(&name, plugins).expect("it loads");
    let start = Instant::now();
    let text = score(&set, &["hang"]).expect_err("no answer").to_string();
    assert!(start.elapsed() < Duration::from_secs(500), "{:?}", start.elapsed());
    assert!(text.starts_with("reward `score`, rows.jsonl:1: no answer in 6.5 s"), "{text}");
    assert_eq!(score(&set, &["fine"]), Ok(vec![Some(1.0)]));
}

#[test]
fn a_worker_that_dies_is_restarted_a_bounded_number_of_times() {
    let folder = Folder::new();
    let marker = folder.0.path().join("died");
    let name = folder.python(&format!(
        r#"
import os, signal, sys
def score(completions, **kwargs):
    if completions[0] == "once" and not os.path.exists({marker:?}):
        open({marker:?}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if completions[0] == "always":
        print("goodbye")
        os._exit(3)
    return [2.0]
"#
    ));
    let set = set(&name, quick()).expect("it loads");
    assert_eq!(score(&set, &["once"]), Ok(vec![Some(2.0)]));
    assert!(marker.exists());
    let text = score(&set, &["always"]).expect_err("it ends each time").to_string();
    assert!(text.contains("the process ended (exit status: 3), also after 2 restarts"), "{text}");
    assert!(text.ends_with("goodbye"), "{text}");
    assert_eq!(score(&set, &["fine"]), Ok(vec![Some(2.0)]));
}

#[test]
fn a_worker_killed_between_batches_is_replaced() {
    let folder = Folder::new();
    let name = folder.python("import os\ndef score(completions):\n    return [os.getpid()]\n");
    let set = set(&name, quick()).expect("it loads");
    let process = || score(&set, &["x"]).expect("scored")[0].expect("a process id");
    let first = process();
    assert_eq!(process(), first, "the worker stays alive");
    let killed = std::process::Command::new("kill").args(["-9", &first.to_string()]).status();
    assert!(killed.expect("kill runs").success());
    assert_ne!(process(), first);
}

/// A function that answers only when `together` of its like are being asked.
fn meeting(name: &str, folder: &Path, together: usize) -> String {
    format!(
        r#"
import os, time
def {name}(completions):
    open(os.path.join({folder:?}, f"{name}-{{os.getpid()}}"), "w").close()
    end = time.monotonic() + 60
    while len(os.listdir({folder:?})) < {together}:
        assert time.monotonic() < end, "the others are not asked at the same time"
        time.sleep(0.01)
    return [int(c) for c in completions]
"#
    )
}

#[test]
fn workers_share_a_batch_in_order_and_at_the_same_time() {
    let (folder, room) = (Folder::new(), Folder::new());
    let name = folder.python(&meeting("score", room.0.path(), 4));
    let plugins = PluginOptions { workers: 4, ..quick() };
    let set = set(&name, plugins).expect("it loads");
    let texts: Vec<String> = (0..10).map(|i| i.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let wanted: Vec<Option<f64>> = (0..10).map(|i| Some(f64::from(i))).collect();
    assert_eq!(score(&set, &texts), Ok(wanted));
}

#[test]
fn rewards_of_one_batch_run_at_the_same_time() {
    let (folder, room) = (Folder::new(), Folder::new());
    let names = ["one", "two", "three"].map(|name| {
        let text = meeting(name, room.0.path(), 3);
        let file = folder.file(&format!("{name}.py"), &text);
        format!("{}:{name}", file.display())
    });
    let set = RewardSet::build(&names, None, &with_plugins(quick())).expect("all load");
    let columns = Map::new();
    let scores = set.score(&[input("1", "b", &columns)]).expect("scores");
    assert_eq!(scores.total, [3.0]);
}

/// Echoes a fixed score for each row of one-row batches; `sed` takes the id from the request.
const SHELL: &str = r#"
while read -r line; do
  id=$(printf '%s' "$line" | sed 's/^{"id":\([0-9]*\).*/\1/')
  case "$line" in
    *'"completion":"yes"'*) echo "{\"id\": $id, \"scores\": [1]}" ;;
    *'"completion":"skip"'*) echo "{\"id\": $id, \"scores\": [null]}" ;;
    *'"completion":"refuse"'*) echo "{\"id\": $id, \"error\": \"will not\", \"row\": 0}" ;;
    *'"completion":"babble"'*) echo "babble" ;;
    *) echo "{\"id\": $id, \"scores\": [0]}" ;;
  esac
done
"#;

#[test]
fn any_program_can_score() {
    let folder = Folder::new();
    let set = set(&folder.shell(SHELL), quick()).expect("it starts");
    assert_eq!(score(&set, &["yes"]), Ok(vec![Some(1.0)]));
    assert_eq!(score(&set, &["skip"]), Ok(vec![None]));
    assert_eq!(score(&set, &["no"]), Ok(vec![Some(0.0)]));
    let says = |text: &str| score(&set, &[text]).expect_err("no scores").to_string();
    assert_eq!(says("refuse"), "reward `sh score.sh`, rows.jsonl:1: will not");
    let babble = says("babble");
    assert!(babble.contains("got `babble`, expected `{\"id\": "), "{babble}");
    assert_eq!(score(&set, &["yes"]), Ok(vec![Some(1.0)]), "started again");
}

#[test]
#[cfg(unix)]
fn a_path_is_a_program() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let path = folder.file("a score", &format!("#!/bin/sh\n{SHELL}"));
    let name = path.display().to_string();
    let error = set(&name, quick()).err().expect("not executable");
    assert!(matches!(error, RewardError::PluginStart { .. }), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
    let set = set(&name, quick()).expect("it starts");
    assert_eq!(set.names().collect::<Vec<_>>(), ["a score"]);
    assert_eq!(score(&set, &["yes"]), Ok(vec![Some(1.0)]));
}
