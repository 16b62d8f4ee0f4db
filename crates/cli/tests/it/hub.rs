//! Models by name: fetched from a hub (a small one on the loopback), cached as Hugging Face caches.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::run::{Said, command, golden, said};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn checkpoint() -> PathBuf {
    golden().join("parity/checkpoints/nested")
}

fn files() -> Vec<String> {
    let entries = fs::read_dir(checkpoint()).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Answers one request as the hub does for the model `owner/tiny`.
fn answer(stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return;
        }
        let mut header = String::new();
        while reader.read_line(&mut header).unwrap_or(0) > 2 {
            header.clear();
        }
        let mut words = request.split_whitespace();
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let (status, more, body) = respond(path.split('?').next().unwrap());
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{more}\r\n",
            body.len()
        );
        let body = if method == "HEAD" { Vec::new() } else { body };
        if writer
            .write_all(head.as_bytes())
            .and_then(|()| writer.write_all(&body))
            .is_err()
        {
            return;
        }
    }
}

fn respond(path: &str) -> (&'static str, String, Vec<u8>) {
    let json = |value: Value| {
        (
            "200 OK",
            "Content-Type: application/json\r\n".into(),
            value.to_string().into_bytes(),
        )
    };
    if path.starts_with("/api/models/owner/tiny/tree/") {
        let entry = |name: String| {
            let size = fs::metadata(checkpoint().join(&name)).unwrap().len();
            json!({"type": "file", "oid": format!("{:040x}", name.len()), "size": size, "path": name})
        };
        return json(files().into_iter().map(entry).collect());
    }
    if path.starts_with("/api/models/owner/tiny") {
        let siblings: Vec<Value> = files()
            .into_iter()
            .map(|name| json!({"rfilename": name}))
            .collect();
        return json(
            json!({"id": "owner/tiny", "modelId": "owner/tiny", "sha": COMMIT, "private": false,
            "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}),
        );
    }
    match path.strip_prefix(&format!("/owner/tiny/resolve/{COMMIT}/")) {
        Some(name) if files().iter().any(|file| file == name) => {
            let headers = format!("ETag: \"etag-{name}\"\r\nX-Repo-Commit: {COMMIT}\r\n");
            (
                "200 OK",
                headers,
                fs::read(checkpoint().join(name)).unwrap(),
            )
        }
        _ => ("404 Not Found", String::new(), Vec::new()),
    }
}

fn ask(model: &str, cache: &Path, settings: &[(&str, &str)]) -> Said {
    let mut command = command();
    command.args([
        "generate",
        "--model",
        model,
        "--prompt",
        "How many?",
        "--temperature",
        "0",
    ]);
    command
        .args(["--max_new_tokens", "4", "--device", "cpu"])
        .env("HF_HOME", cache);
    for (name, value) in settings {
        match *name {
            "REVISION" if value.is_empty() => &mut command,
            "REVISION" => command.args(["--model_revision", value]),
            name => command.env(name, value),
        };
    }
    said(command.output().unwrap())
}

#[test]
fn a_model_is_fetched_once_and_then_taken_from_the_cache() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || answer(stream.unwrap()));
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let fetched = ask("owner/tiny", cache.path(), &[("HF_ENDPOINT", &endpoint)]);
    assert_eq!(fetched.code, Some(0), "{}", fetched.stderr);
    assert_eq!(
        fetched.stderr.matches("fetching `owner/tiny`").count(),
        1,
        "{}",
        fetched.stderr
    );
    let snapshot = cache
        .path()
        .join("hub/models--owner--tiny/snapshots")
        .join(COMMIT);
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert_eq!(
            fs::read(snapshot.join(name)).unwrap(),
            fs::read(checkpoint().join(name)).unwrap()
        );
    }
    let local = ask(&checkpoint().display().to_string(), cache.path(), &[]);
    assert_eq!(fetched.stdout, local.stdout);
    let offline_answer = local.stdout.clone();
    let offline = ask("owner/tiny", cache.path(), &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(
        (offline.code, offline.stdout),
        (Some(0), local.stdout.clone()),
        "{}",
        offline.stderr
    );

    // Another branch, tag or commit: by its flag, or behind the name.
    for (model, more) in [("owner/tiny@v1", ""), ("owner/tiny", "v1")] {
        let cache = tempfile::tempdir().unwrap();
        let settings = [("HF_ENDPOINT", endpoint.as_str()), ("REVISION", more)];
        let fetched = ask(model, cache.path(), &settings);
        assert_eq!(
            (fetched.code, &fetched.stdout),
            (Some(0), &offline_answer),
            "{}",
            fetched.stderr
        );
        let reference = cache.path().join("hub/models--owner--tiny/refs/v1");
        assert_eq!(fs::read_to_string(reference).unwrap(), COMMIT);
        let offline = ask(
            model,
            cache.path(),
            &[("HF_HUB_OFFLINE", "1"), ("REVISION", more)],
        );
        assert_eq!(offline.code, Some(0), "{}", offline.stderr);
        let other = ask("owner/tiny@v2", cache.path(), &[("HF_HUB_OFFLINE", "1")]);
        assert!(
            other
                .stderr
                .contains("`owner/tiny` at `v2` is not in the cache"),
            "{}",
            other.stderr
        );
    }

    let absent = ask("owner/absent", cache.path(), &[("HF_ENDPOINT", &endpoint)]);
    assert_eq!(absent.code, Some(1));
    assert!(
        absent.stderr.contains("hint: check the name"),
        "{}",
        absent.stderr
    );
}
