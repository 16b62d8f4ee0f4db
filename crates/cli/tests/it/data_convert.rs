//! `data convert`, as a user calls it: files, counts, and what is refused.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;
use testing::golden;

use crate::program::call;

#[test]
fn refcoco_becomes_a_file_for_each_split() {
    let dir = TempDir::new().unwrap();
    let sources = golden("sources");
    let result = call(&format!(
        "data convert --from refcoco --input {} --annotations {} --output {}/ref_{{split}}.jsonl",
        sources.join("refs_protocol_2.p").display(),
        sources.join("instances.json").display(),
        dir.path().display()
    ));
    assert_eq!((result.code, result.stdout.as_str()), (Some(0), ""), "{}", result.stderr);
    assert!(result.stderr.starts_with("6 rows kept, 2 left out\nrows left out, bad_row: 2\n  "));
    let lines = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap().lines().count();
    assert_eq!(
        [lines("ref_train.jsonl"), lines("ref_val.jsonl"), lines("ref_testA.jsonl")],
        [2, 1, 3]
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    // For all to read whom the user's mask lets, as any other file.
    fs::write(dir.path().join("any"), "x").unwrap();
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("ref_val.jsonl"), mode("any"));
}

#[test]
fn converted_tables_pass_the_check() {
    let dir = TempDir::new().unwrap();
    let (rows, images) = (dir.path().join("rows.jsonl"), dir.path().join("images"));
    let result = call(&format!(
        "data convert --from parquet --input {} --image_folder {} --output {}",
        golden("sources/one_image.parquet").display(),
        images.display(),
        rows.display()
    ));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    assert_eq!(result.stderr, "3 rows kept, 0 left out, 2 images written\n");
    let result = call(&format!(
        "data check --data_file_paths {} --image_folders {}",
        rows.display(),
        images.display()
    ));
    assert_eq!(result.code, Some(0), "{}", result.stdout);
    assert!(
        result.stdout.contains("3 rows, 3 without errors\nimages: 2 different ones\n"),
        "{}",
        result.stdout
    );
}

#[test]
fn what_cannot_be_converted_leaves_no_file() {
    let dir = TempDir::new().unwrap();
    let hostile = dir.path().join("refs.p");
    fs::write(&hostile, b"cos\nsystem\n(S'touch hacked'\ntR.").unwrap();
    let result = call(&format!(
        "data convert --from refcoco --input {} --annotations {} --output {}/rows.jsonl",
        hostile.display(),
        golden("sources/instances.json").display(),
        dir.path().display()
    ));
    assert_eq!(result.code, Some(1));
    assert!(
        result.stderr.contains("byte 0 of the pickle: `os.system`: only plain data"),
        "{}",
        result.stderr
    );
    assert!(result.stderr.contains("\nhint: "), "{}", result.stderr);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let nothing = dir.path().join("none.json");
    fs::write(&nothing, "[{\"problem\": 1}]").unwrap();
    let result = call(&format!("data convert --from vlm-r1-json --input {}", nothing.display()));
    assert_eq!(result.code, Some(1));
    assert!(
        result.stderr.starts_with("error: no row was kept\n0 rows kept, 1 left out\n"),
        "{}",
        result.stderr
    );
    let result = call("data convert --from csv --input x");
    assert_eq!(result.code, Some(2), "{}", result.stderr);
    let result = call("data convert --from refcoco --input x");
    assert!(result.code == Some(2) && result.stderr.contains("annotations"), "{}", result.stderr);
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What a killed run left stayed for good, and a full disk was told without its name.
#[test]
fn what_a_killed_run_left_goes_and_a_full_disk_is_told() {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("rows.jsonl");
    for name in [".tmp-rows.jsonl-4194999-0", ".tmp-00112233445566778899aabbccddeeff.png-4194999-3"]
    {
        fs::write(dir.path().join(name), "half").unwrap();
    }
    let convert = |output: &str| {
        call(&format!(
            "data convert --from parquet --input {} --image_folder {} --output {output}",
            golden("sources/one_image.parquet").display(),
            dir.path().display(),
        ))
    };
    let result = convert(&output.display().to_string());
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let left = names(&dir);
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left.iter().all(|name| !name.starts_with(".tmp")), "{left:?}");
    let result = convert("/dev/full");
    assert_eq!((result.code, result.stdout.as_str()), (Some(1), ""));
    assert!(
        result.stderr.starts_with("error: /dev/full: No space left on device"),
        "{}",
        result.stderr
    );
    let device = fs::metadata("/dev/full").unwrap();
    assert!(!device.is_file(), "the device is still there");
    assert_eq!(names(&dir), left);
}

/// A signal while the source is still read, which nothing asks after, ends the run at the second one.
#[test]
fn signals_leave_no_file() {
    let dir = TempDir::new().unwrap();
    let pipe = dir.path().join("source.json");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let mut command = crate::program::command();
    command.args(["data", "convert", "--from", "llama-factory"]);
    command.arg("--input").arg(&pipe).arg("--output").arg(dir.path().join("rows.jsonl"));
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let wait = |count: usize| {
        let reached = (0..3000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            names(&dir).len() == count
        });
        assert!(reached, "{:?}", names(&dir));
    };
    wait(2);
    for signal in ["-TERM", "-INT"] {
        let id = child.id().to_string();
        let kill = std::process::Command::new("kill").args([signal, &id]).status();
        assert!(kill.unwrap().success());
        // Two that come at once may count as one.
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    // By the first that it heeded.
    let code = child.wait().unwrap().code();
    assert!([Some(143), Some(130)].contains(&code), "{code:?}");
    wait(1);
}
