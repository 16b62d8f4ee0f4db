//! `reward` from rows to rows.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::call;

pub fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn write(dir: &TempDir, rows: &[Value]) -> String {
    let path = dir.path().join("rows.jsonl");
    let text: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(&path, text.concat()).unwrap();
    path.display().to_string()
}

/// A summary without what differs from run to run.
fn without_times(text: &str, dir: &TempDir) -> String {
    let folder = format!("{}/", dir.path().display());
    let mut plain = String::new();
    for line in text.replace(&folder, "").lines() {
        assert!(line.chars().count() <= 80, "{line}");
        match line.split_once("  rows.jsonl:") {
            Some((time, _)) => {
                let words: Vec<&str> = time.split_whitespace().collect();
                let number = words[words.len() - 2];
                assert!(number.parse::<f64>().is_ok(), "{line}");
                let name = if words.len() == 3 { words[0] } else { "" };
                plain.push_str(&format!("{name:16}TIME  rows.jsonl:LINE\n"));
            }
            None => plain.push_str(&format!("{line}\n")),
        }
    }
    plain
}

/// A completion of a question, with the method that compares them.
fn completed_row(completion: &str, solution: &str) -> Value {
    json!({"completion": completion, "solution": solution, "accu_reward_method": "all_match"})
}

#[test]
fn completions_are_scored_and_summed_up() {
    let dir = TempDir::new().unwrap();
    let input = write(
        &dir,
        &[
            json!({"completion": "<think>a</think> <answer>Cat.</answer>", "solution": "<answer> cat </answer>",
                   "accu_reward_method": "all_match", "mine": 7}),
            json!({"completion": "cat", "solution": "<answer> cat </answer>"}),
            json!({"completion": "<think></think><answer>dog</answer>", "solution": "<answer> cat </answer>"}),
        ],
    );
    let result =
        call(&format!("reward --input {input} --reward_method all_match --reward_weights 1 0.5"));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let rows = lines(&result.stdout);
    let scores: Vec<Value> = rows.iter().map(|row| row["rewards"].clone()).collect();
    let expected =
        [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)].map(|(a, f)| json!({"accuracy": a, "format": f}));
    assert_eq!(scores, expected);
    let totals: Vec<f64> = rows.iter().map(|row| row["reward"].as_f64().unwrap()).collect();
    assert_eq!(totals, [1.5, 1.0, 0.5]);
    assert_eq!(rows[0]["mine"], 7);
    let summary = "\
accuracy    mean 0.6667  std 0.5774  0.0000 to 1.0000  3 rows
            [▄        █]  1 0 0 0 0 0 0 0 0 2
format      mean 0.6667  std 0.5774  0.0000 to 1.0000  3 rows
            [▄        █]  1 0 0 0 0 0 0 0 0 2
reward      mean 1.0000  std 0.5000  0.5000 to 1.5000  3 rows
            [█    █   █]  1 0 0 0 0 1 0 0 0 1
slowest         TIME  rows.jsonl:LINE
                TIME  rows.jsonl:LINE
                TIME  rows.jsonl:LINE
            each row alone, by accuracy, format
";
    assert_eq!(without_times(&result.stderr, &dir), summary);
}

#[test]
fn boxes_are_scaled_by_the_sizes_of_row_or_image() {
    let dir = TempDir::new().unwrap();
    // 8 x 4 patches of 14 px: the model saw 112 x 56 of an image of 224 x 112.
    image::RgbImage::new(224, 112).save(dir.path().join("a.png")).unwrap();
    let completion = "<think>t</think><answer>{\"bbox_2d\": [10, 10, 60, 50]}</answer>";
    let row = json!({"completion": completion, "solution": "<answer> [20, 20, 120, 100] </answer>", "image_grid_thw": [1, 4, 8]});
    let with = |key: &str, value: Value| {
        let mut row = row.clone();
        row[key] = value;
        row
    };
    let input =
        write(&dir, &[with("image_size", json!([224, 112])), with("image_path", json!(["a.png"]))]);
    let output = dir.path().join("out.jsonl");
    let flags = "--task_type rec --is_reward_customized_from_vlm_module true --family qwen2_5_vl";
    let result = call(&format!("reward --input {input} --output {} {flags}", output.display()));
    assert_eq!((result.code, result.stdout.as_str()), (Some(0), ""), "{}", result.stderr);
    for row in lines(&fs::read_to_string(&output).unwrap()) {
        assert_eq!(row["rewards"], json!({"accuracy": 1.0, "format": 1.0}));
    }
}

/// A model of a family that has no rewards of its own ends nothing: it is taken to write thousandths.
#[test]
fn a_family_that_is_not_known_is_rewarded_by_the_default_and_a_note_says_so() {
    let dir = TempDir::new().unwrap();
    let completion = "<think>t</think><answer>[100, 200, 500, 900]</answer>";
    let row = json!({"completion": completion, "solution": "<answer> [20, 20, 100, 90] </answer>", "image_size": [200, 100]});
    let input = write(&dir, &[row.clone(), row]);
    let flags = "--task_type rec --is_reward_customized_from_vlm_module true --family unheard_of";
    let result = call(&format!("reward --input {input} {flags}"));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    for row in lines(&result.stdout) {
        assert_eq!(row["rewards"], json!({"accuracy": 1.0, "format": 1.0}));
    }
    let note = "note: family `unheard_of` has no rewards of its own";
    assert_eq!(result.stderr.matches(note).count(), 1, "{}", result.stderr);
}

#[test]
fn bad_rows_are_named_and_nothing_is_written() {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("out.jsonl");
    let good = json!({"completion": "a", "solution": "<answer> a </answer>", "accu_reward_method": "all_match"});
    for (row, cause) in [
        (json!([1]), "expected a JSON object, got a list"),
        (json!({"solution": "a"}), "missing key `completion`"),
        (json!({"completion": 5, "solution": "a"}), "`completion`: got number `5`, expected text"),
        (
            json!({"completion": "a", "solution": "a", "image_size": [1, -2]}),
            "`image_size`: got a list of 2, expected 2 whole numbers",
        ),
        (
            json!({"completion": "a", "solution": "a", "accu_reward_method": "all_mach"}),
            "unknown accuracy method `all_mach`",
        ),
        (
            json!({"completion": "a", "solution": "a", "image_path": "../a.png"}),
            "leaves its image folder",
        ),
        (json!({"completion": "a", "solution": "a", "image_path": "none.png"}), "no such file"),
    ] {
        let input = write(&dir, &[good.clone(), row]);
        let result = call(&format!("reward --input {input} --output {}", output.display()));
        assert_eq!(result.code, Some(1), "{cause}");
        assert!(result.stderr.starts_with(&format!("error: {input}:2: ")), "{}", result.stderr);
        assert!(result.stderr.contains(cause), "{cause}: {}", result.stderr);
        assert!(!output.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something is left over");
    }
    fs::write(dir.path().join("rows.jsonl"), "{\"completion\": \"a\"\n").unwrap();
    let result = call(&format!("reward --input {}", dir.path().join("rows.jsonl").display()));
    assert!(result.stderr.contains("rows.jsonl:1: broken JSON at column"), "{}", result.stderr);
}

#[test]
fn an_unknown_reward_is_refused_with_the_nearest() {
    let dir = TempDir::new().unwrap();
    let input = write(&dir, &[json!({"completion": "a", "solution": "a"})]);
    let result = call(&format!("reward --input {input} --reward_funcs acuracy"));
    assert_eq!(result.code, Some(1));
    assert!(
        result
            .stderr
            .starts_with("error: unknown reward `acuracy`\nhint: did you mean `accuracy`?"),
        "{}",
        result.stderr
    );
}

#[test]
fn groups_without_spread_are_counted() {
    let dir = TempDir::new().unwrap();
    let in_group = |group: Value, completion: &str| {
        let mut row = completed_row(completion, "a");
        row["group"] = group.clone();
        row["mine"] = group;
        row
    };
    let mut rows = vec![];
    for (group, completions) in [(json!(1), ["a", "a"]), (json!("1 b"), ["a", "b"])] {
        rows.extend(completions.map(|text| in_group(group.clone(), text)));
    }
    rows.push(in_group(json!(3), "a"));
    rows.push(completed_row("a", "a"));
    let input = write(&dir, &rows);
    let line = "groups      2 by `group`, 1 without spread (50.0 %): they give no gradient; \
                1 of one row, not counted\n";
    // Groups go over the ends of batches.
    for size in [1, 2, 100] {
        let result =
            call(&format!("reward --input {input} --reward_funcs accuracy --batch_size {size}"));
        assert_eq!(result.code, Some(0), "{}", result.stderr);
        assert!(result.stderr.contains(line), "{}", result.stderr);
        assert_eq!(lines(&result.stdout).len(), 6);
    }
    let result = call(&format!("reward --input {input} --group_column mine"));
    assert_eq!(result.code, Some(1));
    let expected = format!("error: {input}:6: missing key `mine`\n");
    assert_eq!(result.stderr, expected);
}

#[test]
fn equal_scores_have_no_histogram_and_plug_ins_are_timed_by_the_batch() {
    let dir = TempDir::new().unwrap();
    let script = dir.path().join("one.py");
    fs::write(&script, "def one(completions, **kwargs):\n    return [1.0] * len(completions)\n")
        .unwrap();
    let input =
        write(&dir, &[completed_row("a", "a"), completed_row("b", "a"), completed_row("c", "a")]);
    let result = call(&format!(
        "reward --input {input} --reward_funcs {}:one --batch_size 2",
        script.display()
    ));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let plain = result.stderr.replace(&format!("{}/", dir.path().display()), "");
    let lines: Vec<&str> = plain.lines().collect();
    assert_eq!(
        lines[..4],
        [
            "one         mean 1.0000  std 0.0000  1.0000 to 1.0000  3 rows",
            "            all equal",
            "reward      mean 1.0000  std 0.0000  1.0000 to 1.0000  3 rows",
            "            all equal",
        ]
    );
    assert!(lines[4].starts_with("one         "), "{plain}");
    assert!(lines[4].contains(" for 2 batches of up to 2, longest "), "{plain}");
    assert_eq!(lines.len(), 5, "rows of a plug-in are not timed: {plain}");
}

/// A REC row about an image of 224 x 112 that the model saw at half its size.
fn rec_row(dir: &TempDir) -> Value {
    image::RgbImage::new(224, 112).save(dir.path().join("a.png")).unwrap();
    let completion = "<think>hm <script>alert(1)</script></think>\
                      <answer>{\"bbox_2d\": [10, 10, 60, 30]}</answer>";
    json!({"completion": completion, "solution": "<answer> [20, 20, 120, 100] </answer>",
           "problem": "Where is <b>it</b>?", "image_path": "a.png", "image_grid_thw": [1, 4, 8]})
}

const REC: &str = "--task_type rec --is_reward_customized_from_vlm_module true";

#[test]
fn rows_say_why_they_scored_so() {
    let dir = TempDir::new().unwrap();
    let input = write(&dir, &[rec_row(&dir)]);
    let result = call(&format!("reward --input {input} {REC} --explain"));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let row = &lines(&result.stdout)[0];
    let why = &row["explanations"]["accuracy"];
    assert_eq!(why["predicted"][0]["bbox_2d"], json!([20.0, 20.0, 120.0, 60.0]));
    assert_eq!(why["truths"][0]["bbox_2d"], json!([20.0, 20.0, 120.0, 100.0]));
    assert_eq!(why["matches"][0]["iou"], row["rewards"]["accuracy"]);
    assert_eq!(why["answer"], "{\"bbox_2d\": [10, 10, 60, 30]}");
    let silent = call(&format!("reward --input {input} {REC}"));
    assert!(lines(&silent.stdout)[0].get("explanations").is_none());
}

#[test]
fn the_page_shows_boxes_and_runs_no_script_of_a_row() {
    let dir = TempDir::new().unwrap();
    let mut rows = vec![rec_row(&dir); 7];
    rows[6]["image_size"] = json!([224, 112]);
    rows[6]["image_path"] = json!("gone.png");
    let input = write(&dir, &rows);
    let page = dir.path().join("out.html");
    let result = call(&format!(
        "reward --input {input} {REC} --html {} --output {}",
        page.display(),
        dir.path().join("out.jsonl").display()
    ));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let html = fs::read_to_string(&page).unwrap();
    assert_eq!(html.matches("<script>").count(), 1, "ours alone");
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(html.contains("Where is &lt;b&gt;it&lt;/b&gt;?"));
    assert_eq!(html.matches("data:image/png;base64,").count(), 6);
    assert!(html.contains("no image: ") && html.contains("gone.png"));
    assert_eq!(html.matches("<article").count(), 7);
    assert!(html.contains("All 7 rows.") && html.contains("true: 1"));
    // 224 px are drawn 320 wide, so a corner at 20 px lies at 28.6; the IoU is 40 of 80 lines.
    assert!(html.contains("x=\"28.6\" y=\"28.6\""));
    assert!(html.contains(">0.49<") || html.contains(">0.50<"), "the IoU beside the box");
    let few =
        call(&format!("reward --input {input} {REC} --html {} --html_rows 3", page.display()));
    assert_eq!(few.code, Some(0), "{}", few.stderr);
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("3 of 7 rows, chosen evenly"));
    assert_eq!(html.matches("<article").count(), 3);
}

#[test]
fn a_page_without_a_folder_is_refused_before_rows_are_scored() {
    let dir = TempDir::new().unwrap();
    let input = write(&dir, &[completed_row("a", "a")]);
    let result =
        call(&format!("reward --input {input} --html {}/none/out.html", dir.path().display()));
    assert_eq!((result.code, result.stdout.as_str()), (Some(1), ""));
    assert!(result.stderr.contains("no folder `"), "{}", result.stderr);
}

#[test]
fn an_interrupted_run_leaves_no_file() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let dir = TempDir::new().unwrap();
    let script = dir.path().join("slow.py");
    let code = "import sys, time\ndef slow(completions, **kwargs):\n    time.sleep(0.3)\n    return [1.0] * len(completions)\n";
    fs::write(&script, code).unwrap();
    let input = write(&dir, &vec![completed_row("a", "a"); 200]);
    let output = dir.path().join("out.jsonl");
    let mut command = crate::program::command();
    command.args(["reward", "--input", &input, "--batch_size", "1"]);
    command.args(["--reward_funcs", &format!("{}:slow", script.display())]);
    command.arg("--output").arg(&output).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let left_over = || {
        let names = fs::read_dir(dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let ours = ["rows.jsonl", "slow.py", "__pycache__"];
        names.filter(|name| !ours.contains(&name.as_str())).count()
    };
    // Rows are written beside the final name from the start.
    while left_over() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended early");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let kill = std::process::Command::new("kill")
        .args(["-USR1", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let result: Vec<String> = stderr.lines().map(|line| line.unwrap()).collect();
    assert_eq!(child.wait().unwrap().code(), Some(138));
    let last = result.last().unwrap();
    assert!(
        last.contains("stopped after ") && (last.ends_with(" rows") || last.ends_with(" 1 row")),
        "{result:?}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something is left over");
}

/// A reward that prints and raises what a terminal obeys: lines of its stderr, its traceback, the error.
#[test]
fn nothing_that_a_terminal_obeys_is_said() {
    let dir = TempDir::new().unwrap();
    let input = write(&dir, &[completed_row("\u{1b}[31mred", "<answer>a</answer>")]);
    let python = dir.path().join("r.py");
    let shell = dir.path().join("r.sh");
    fs::write(
        &python,
        "import sys\nprint('\\x1b[2J loading', file=sys.stderr)\ndef r(completions):\n    print('\\x9b2J')\n    \
         raise ValueError('\\x1b]0;title\\x07 \\u202e' + completions[0])\n",
    )
    .unwrap();
    fs::write(
        &shell,
        "read -r line; printf '\\033[2Jsaid\\n' >&2; printf '\\033]0;title\\007\\n'\n",
    )
    .unwrap();
    let page = dir.path().join("page.html");
    for reward in [format!("{}:r", python.display()), format!("program:sh,{}", shell.display())] {
        let mut call = crate::program::command();
        call.args(["reward", "--input", &input, "--reward_funcs"]);
        let result =
            crate::program::call_result(call.arg(reward.replace(',', " ")).output().unwrap());
        assert_eq!(result.code, Some(1), "{}", result.stderr);
        assert!(
            result.stderr.contains("\\x1b") && result.stderr.contains("title\\x07"),
            "{}",
            result.stderr
        );
        let raw = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
        assert!(!result.stderr.contains(raw), "{:?}", result.stderr);
    }
    let result = call(&format!(
        "reward --input {input} --reward_funcs format --html {} --output {}/o.jsonl",
        page.display(),
        dir.path().display()
    ));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let html = fs::read_to_string(page).unwrap();
    assert!(!html.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
}
