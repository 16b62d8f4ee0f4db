//! `reward --serve` as a caller meets it, good and bad.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{call, command};

/// A server, ended with the test.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(flags: &str) -> Self {
        let mut child = command()
            .args(["reward", "--serve", "127.0.0.1:0"])
            .args(flags.split_whitespace())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("serving on http://");
        let address = address.unwrap_or_else(|| panic!("{line}")).to_owned();
        // Nobody may block on a full pipe.
        thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Self { child, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Status and body of the response to `head` and `body`.
    fn ask(&self, head: &str, body: &[u8]) -> (u16, String) {
        let mut stream = self.connect();
        let length = body.len();
        let host = &self.address;
        let head = format!("{head} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        response(&mut stream)
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.ask(&format!("POST {path}"), body.to_string().as_bytes());
        (status, serde_json::from_str(&text).expect(&text))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn response(stream: &mut TcpStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status.expect(&text), body.expect(&text))
}

fn row(completion: &str) -> Value {
    json!({"completion": completion, "solution": "<answer> cat </answer>", "mine": 7})
}

const GOOD: &str = "<think>a</think><answer>cat</answer>";

#[test]
fn rows_are_scored_and_explained() {
    let server = Server::start("--reward_method all_match --reward_weights 1 0.5");
    let (status, usage) = server.ask("GET /", b"");
    assert_eq!(status, 200);
    assert!(usage.contains("POST /score") && usage.contains("accuracy, format"), "{usage}");

    let request = json!({"id": "x", "rows": [row(GOOD), row("dog")]});
    let expected = json!({"id": "x", "scores": [1.5, 0.0]});
    assert_eq!(server.post("/score", &request), (200, expected));
    let request = json!({"rows": []});
    assert_eq!(server.post("/score", &request), (200, json!({"scores": []})));

    let (status, written) = server.post("/rows", &row(GOOD));
    let mut expected = row(GOOD);
    expected["rewards"] = json!({"accuracy": 1.0, "format": 1.0});
    expected["reward"] = json!(1.5);
    assert_eq!((status, &written), (200, &expected));
    let list = json!([row(GOOD), row("dog")]);
    let (status, written) = server.post("/rows?explain=true", &list);
    assert_eq!(status, 200);
    assert_eq!(written[1]["reward"], 0.0);
    assert!(written[0]["explanations"]["accuracy"]["reason"].is_string(), "{written}");
    let (status, written) = server.post("/rows", &json!({"rows": [row(GOOD)]}));
    assert_eq!((status, &written["rows"][0]), (200, &expected));
}

#[test]
fn what_is_wrong_is_said_and_harms_nobody_else() {
    let server = Server::start("--reward_method all_match");
    let long = vec![b' '; (16 << 20) + 1];
    let deep = "[".repeat(100_000);
    for (head, body, status, why) in [
        ("POST /score", &b"{\"rows\": "[..], 400, "broken JSON at line 1, column 10"),
        ("POST /score", b"\xff\xfe", 400, "broken JSON"),
        ("POST /score", deep.as_bytes(), 400, "broken JSON"),
        ("POST /score", b"", 400, "broken JSON"),
        ("POST /score", b"[1]", 400, "got a list of 1, expected `{\\\"rows\\\": [...]}`"),
        ("POST /score", b"{\"id\": 1}", 400, "missing key `rows`"),
        ("POST /score", b"{\"rows\": 5}", 400, "got number `5`"),
        ("POST /score", b"{\"rows\": [{}, 5]}", 422, "\"row\":1"),
        ("POST /rows", b"{\"completion\": \"a\"}", 422, "row 0: missing key `solution`"),
        ("POST /rows", b"[{\"completion\": 5}]", 422, "got number `5`, expected text"),
        ("POST /rows?explain=perhaps", b"[]", 400, "expected `?explain=true`"),
        ("GET /score", b"", 405, "see GET /"),
        ("POST /none", b"", 404, "no `/none` here"),
        ("POST /score", &long, 413, "body over 16777216 bytes"),
    ] {
        let (got, text) = server.ask(head, body);
        assert_eq!(got, status, "{head}: {text}");
        assert!(text.contains(why), "{head}: {text}, expected {why}");
    }
    for noise in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"POST /score HTTP/1.1\r\n"] {
        let mut stream = server.connect();
        stream.write_all(noise).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // Whatever it says, it says goodbye.
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    let request = json!({"rows": [row(GOOD)]});
    assert_eq!(server.post("/score", &request), (200, json!({"scores": [2.0]})));
}

#[test]
fn a_silent_caller_keeps_nobody_waiting() {
    let server = Server::start("--reward_method all_match");
    let mut silent = server.connect();
    silent
        .write_all(b"POST /score HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
        .unwrap();
    // The crate `web` tests that who says nothing at all is sent away.
    let _speechless = server.connect();
    let request = json!({"rows": [row(GOOD)]});
    assert_eq!(server.post("/score", &request).0, 200);
}

/// The bounds themselves are tested where they are, in the crate `web`.
#[test]
fn callers_who_never_end_starve_nobody() {
    let server = Server::start("--reward_method all_match");
    let half: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(b"POST /score HTTP/1.1\r\n").unwrap();
            stream
        })
        .collect();
    // Their responses are longer than what the system keeps for them.
    let long = row(&"x".repeat(12 << 20)).to_string();
    let deaf: Vec<TcpStream> = (0..12)
        .map(|_| {
            let mut stream = server.connect();
            let length = long.len();
            let head = format!(
                "POST /rows HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(long.as_bytes()).unwrap();
            stream
        })
        .collect();
    let request = json!({"rows": [row(GOOD)]});
    assert_eq!(server.post("/score", &request), (200, json!({"scores": [2.0]})));
    drop((half, deaf));
}

#[test]
fn names_and_keys_are_asked_for() {
    let dir = TempDir::new().unwrap();
    let key = dir.path().join("key");
    fs::write(&key, "correct-horse-battery\n").unwrap();
    let server = Server::start(&format!(
        "--reward_method all_match --allowed_hosts scorer --api_key_file {}",
        key.display()
    ));
    let get = |host: &str, more: &str| {
        let mut stream = server.connect();
        let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\n{more}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        response(&mut stream)
    };
    let with_key = "authorization: Bearer correct-horse-battery\r\n";
    assert_eq!(get("scorer:1", with_key).0, 200);
    let (status, text) = get("evil.example", with_key);
    assert_eq!(status, 403, "{text}");
    assert!(text.contains("--allowed_hosts evil.example"), "{text}");
    assert_eq!(get("scorer", "").0, 401);
    assert_eq!(server.ask("POST /score", b"{\"rows\": []}").0, 401);

    // The other side sends it.
    let input = dir.path().join("rows.jsonl");
    fs::write(&input, format!("{}\n", row(GOOD))).unwrap();
    let asking = format!(
        "reward --input {} --reward_funcs http://{}/score",
        input.display(),
        server.address
    );
    let refused = call(&asking);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("status 401"), "{}", refused.stderr);
    let scored = call(&format!("{asking} --reward_api_key_file {}", key.display()));
    assert_eq!(scored.code, Some(0), "{}", scored.stderr);
    for text in [&refused.stderr, &scored.stderr, &scored.stdout] {
        assert!(!text.contains("correct-horse"), "{text}");
    }
}

#[test]
fn other_machines_are_served_with_a_key_or_on_purpose() {
    let result = call("reward --serve 0.0.0.0:0 --reward_funcs format");
    assert_eq!(result.code, Some(1), "{}", result.stderr);
    assert!(
        result
            .stderr
            .contains("is open to other machines, and there is no key\nhint: --api_key_file FILE"),
        "{}",
        result.stderr
    );
    let mut child = command()
        .args(["reward", "--serve", "0.0.0.0:0", "--reward_funcs", "format"])
        .args(["--allow_no_key", "true"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let second = lines.next().unwrap().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(first.starts_with("serving on http://0.0.0.0:"), "{first}");
    assert_eq!(second, "warning: other machines may ask, without a key");
}

#[test]
fn a_proxy_is_named_without_its_password() {
    let dir = TempDir::new().unwrap();
    let input = dir.path().join("rows.jsonl");
    fs::write(&input, format!("{}\n", row(GOOD))).unwrap();
    let ask = |url: &str| {
        let output = command()
            .args(["reward", "--reward_timeout_secs", "0.2", "--input"])
            .arg(&input)
            .args(["--reward_funcs", url])
            .env("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let (proxied, direct) = thread::scope(|scope| {
        let direct = scope.spawn(|| ask("http://127.0.0.1:9/score"));
        (ask("http://scorer.invalid/score"), direct.join().unwrap())
    });
    assert!(proxied.contains("asked by the proxy `127.0.0.1:9` of the environment"), "{proxied}");
    assert!(!proxied.contains("secret"), "{proxied}");
    assert!(!direct.contains("proxy"), "{direct}");
}

#[test]
fn images_stay_in_their_folder() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("images")).unwrap();
    image::RgbImage::new(224, 112).save(dir.path().join("images/a.png")).unwrap();
    image::RgbImage::new(8, 8).save(dir.path().join("secret.png")).unwrap();
    let rec = "--task_type rec --is_reward_customized_from_vlm_module true";
    let request = |image: &str| {
        json!({"completion": "<answer>[10, 10, 60, 50]</answer>", "solution": "[20, 20, 120, 100]",
               "image_path": image, "image_grid_thw": [1, 4, 8]})
    };
    let folder = dir.path().join("images");
    let server = Server::start(&format!("{rec} --image_folder {}", folder.display()));
    let (status, response) = server.post("/rows", &request("a.png"));
    assert_eq!((status, &response["rewards"]["accuracy"]), (200, &json!(1.0)), "{response}");
    let outside = dir.path().join("secret.png").display().to_string();
    for name in ["../secret.png", &outside] {
        let (status, response) = server.post("/rows", &request(name));
        assert_eq!(status, 422, "{response}");
        let why = response["error"].as_str().unwrap();
        assert!(why.contains("leaves its image folder"), "{why}");
    }
    // Without a folder no image is opened: sizes must be in the row.
    let server = Server::start(rec);
    let (status, response) = server.post("/rows", &request(&outside));
    assert_eq!(status, 422, "{response}");
    assert!(response["error"].as_str().unwrap().contains("no image_size"), "{response}");
    let mut sized = request(&outside);
    sized["image_size"] = json!([224, 112]);
    assert_eq!(server.post("/rows", &sized).1["rewards"]["accuracy"], 1.0);
}

#[test]
fn one_program_is_the_reward_of_another_and_a_signal_ends_it() {
    let dir = TempDir::new().unwrap();
    let input = dir.path().join("rows.jsonl");
    fs::write(&input, format!("{}\n{}\n", row(GOOD), row("dog"))).unwrap();
    let mut server = Server::start("--reward_method all_match --reward_weights 1 0.5");
    let url = format!("http://{}/score", server.address);
    let result = call(&format!("reward --input {} --reward_funcs {url}", input.display()));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let scores = result.stdout.lines().map(|line| {
        let row: Value = serde_json::from_str(line).unwrap();
        row["reward"].as_f64().unwrap()
    });
    assert_eq!(scores.collect::<Vec<_>>(), [1.5, 0.0]);
    // A refusal reaches the other side with its reason.
    fs::write(
        &input,
        "{\"completion\": \"a\", \"solution\": \"a\", \"accu_reward_method\": \"no\"}",
    )
    .unwrap();
    let result = call(&format!("reward --input {} --reward_funcs {url}", input.display()));
    assert_eq!(result.code, Some(1));
    assert!(result.stderr.contains("unknown accuracy method `no`"), "{}", result.stderr);

    let mut kill = Command::new("kill");
    kill.args(["-USR1", &server.child.id().to_string()]);
    assert!(kill.status().unwrap().success());
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn file_and_server_exclude_each_other() {
    for (flags, cause) in [
        ("", "`input`: got nothing"),
        ("--input a --serve b", "both `input` and `serve`"),
        ("--input a --allow_no_key true", "`allow_no_key`: got no `serve`"),
        ("--input a --api_key_file b", "`api_key_file`: got no `serve`"),
        ("--input a --allowed_hosts b", "`allowed_hosts`: got no `serve`"),
        ("--serve 127.0.0.1:0 --output a", "`output` or `html` beside it"),
    ] {
        let result = call(&format!("reward {flags}"));
        assert_eq!(result.code, Some(2), "{}", result.stderr);
        assert!(result.stderr.contains(cause), "{}", result.stderr);
    }
    let result = call("reward --serve 127.0.0.1:0 --allowed_hosts http://a");
    assert_eq!(result.code, Some(1));
    assert!(
        result.stderr.contains("allowed hosts: got `http://a`, expected a name"),
        "{}",
        result.stderr
    );
    let result = call("reward --serve nowhere");
    assert_eq!(result.code, Some(1));
    assert!(
        result.stderr.contains("--serve nowhere: expected a free HOST:PORT"),
        "{}",
        result.stderr
    );
}

/// What a terminal obeys, from a completion and from a reward's traceback.
#[test]
fn replies_carry_no_control_characters() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("r.py");
    let python =
        "def r(completions):\n    raise ValueError('\\x1b]0;t\\x07 \\x9b2J ' + completions[0])\n";
    fs::write(&file, python).unwrap();
    let server = Server::start(&format!("--reward_funcs {}:r", file.display()));
    let bad = "\u{1b}[31m \u{7f} \u{9b}31m \u{202e}abc\u{2066}";
    let body = json!({"rows": [row(bad)]}).to_string();
    let (status, text) = server.ask("POST /rows", body.as_bytes());
    assert_eq!(status, 500, "{text}");
    let obeyed = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{2069}').contains(&c);
    assert!(!text.contains(obeyed), "{text:?}");
    let error: Value = serde_json::from_str(&text).unwrap();
    let error = error["error"].as_str().unwrap();
    assert!(error.contains("\u{9b}2J") && error.contains(bad), "nothing is lost: {error}");

    let server = Server::start("--reward_funcs format");
    let (status, text) = server.ask("POST /rows", body.as_bytes());
    assert_eq!(status, 200, "{text}");
    assert!(!text.contains(obeyed), "{text:?}");
    let response: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(response["rows"][0]["completion"], bad);
}
