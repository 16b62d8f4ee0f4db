//! Servers that send what would harm: elsewhere, too much, for too long, packed.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rewards::{JudgeOptions, PluginOptions, RewardInput, RewardOptions, RewardSet};
use serde_json::{Map, json};

use crate::http::{ok, serve};
use crate::{generic_options, input};

/// A server whose every connection is `talk`ed to after the head of its request; its address, and how many came.
fn talking(talk: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (count, talk) = (Arc::new(AtomicUsize::new(0)), Arc::new(talk));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (talk, counted) = (Arc::clone(&talk), Arc::clone(&counted));
            thread::spawn(move || {
                let mut stream = stream.expect("a connection");
                counted.fetch_add(1, Ordering::SeqCst);
                let mut some = [0; 65536];
                // The caller may leave at any time.
                let _ = stream.read(&mut some);
                talk(&mut stream);
            });
        }
    });
    (format!("http://{address}"), count)
}

fn plugins(timeout_secs: f64) -> PluginOptions {
    PluginOptions { timeout_secs, retry_secs: 0.0, ..PluginOptions::default() }
}

fn options(plugins: PluginOptions) -> RewardOptions {
    RewardOptions { plugins, ..generic_options() }
}

/// What is said of the one row that the server is asked to score.
fn said(url: &str, plugins: PluginOptions) -> String {
    let set = RewardSet::build(&[url.to_owned()], None, &options(plugins)).expect("an address");
    let columns = Map::new();
    let row = RewardInput { sample: Some("rows.jsonl:5"), ..input("a", "b", &columns) };
    set.score(&[row]).expect_err("no scores").to_string()
}

/// A redirect could send the answers, and the key, anywhere.
#[test]
fn redirects_are_named_and_not_followed() {
    let (other, others_asked) = talking(|_| {});
    for status in [301, 302, 303, 307, 308] {
        for to in [
            format!("location: {other}/next?token=secret\r\n"),
            "location: /elsewhere\r\n".to_owned(),
            String::new(),
        ] {
            let head = to.clone();
            let (url, asked) = talking(move |stream| {
                let _ = write!(stream, "HTTP/1.1 {status} See\r\n{head}content-length: 0\r\n\r\n");
            });
            let text = said(&url, plugins(60.0));
            assert!(text.contains(&format!("rows.jsonl:5: status {status}")), "{text}");
            assert!(text.contains("redirects are not followed"), "{text}");
            assert!(!text.contains("secret"), "{text}");
            let place = to.trim().strip_prefix("location: ").unwrap_or_default();
            let place = place.split('?').next().unwrap_or_default();
            assert!(text.contains(place), "{text}");
            assert_eq!(asked.load(Ordering::SeqCst), 1);
        }
    }
    assert_eq!(others_asked.load(Ordering::SeqCst), 0);
}

type Talk = Box<dyn Fn(&mut TcpStream) + Send + Sync>;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\n";

fn until_gone(stream: &mut TcpStream, bytes: &[u8], pause: Duration) {
    while stream.write_all(bytes).is_ok() {
        thread::sleep(pause);
    }
}

#[test]
fn what_is_too_much_is_refused_at_once() {
    let long = vec![b'x'; 1 << 16];
    let (zeros, line) = (vec![b'0'; 1 << 16], format!("x-{}: y\r\n", "a".repeat(4000)));
    let cases: Vec<(Talk, &str)> = vec![
        (
            Box::new(|stream| {
                let _ = stream.write_all(OK);
                let _ = stream.write_all(b"content-length: 99999999999\r\n\r\n");
                until_gone(stream, &vec![b' '; 1 << 16], Duration::ZERO);
            }),
            "an answer of over 16777216 bytes",
        ),
        (
            Box::new(move |stream| {
                let _ = stream.write_all(OK);
                let _ = stream.write_all(b"\r\n");
                until_gone(stream, &zeros, Duration::ZERO);
            }),
            "an answer of over 16777216 bytes",
        ),
        (
            Box::new(move |stream| {
                let _ = stream.write_all(OK);
                let _ = stream.write_all(b"x: ");
                until_gone(stream, &long, Duration::ZERO);
            }),
            "the head of the answer is over 65536 bytes",
        ),
        (
            Box::new(move |stream| {
                let _ = stream.write_all(OK);
                until_gone(stream, line.as_bytes(), Duration::ZERO);
            }),
            "the head of the answer is over 65536 bytes",
        ),
        (
            Box::new(|stream| {
                let body = "[".repeat(1 << 20);
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
            }),
            "the answer is not JSON (recursion limit",
        ),
        (
            Box::new(|stream| {
                let body = format!("{{\"scores\": [{}0{}]}}", "[".repeat(500), "]".repeat(500));
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
            }),
            "the answer is not JSON (recursion limit",
        ),
        (
            Box::new(|stream| {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00");
            }),
            "the answer has the content-encoding `gzip`, for which it was not asked",
        ),
        (
            Box::new(|stream| {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xfe");
            }),
            "the answer is not UTF-8",
        ),
    ];
    for (talk, expected) in cases {
        let (url, asked) = talking(talk);
        let text = said(&url, plugins(60.0));
        assert!(text.contains(expected), "{expected}: {text}");
        let asked = asked.load(Ordering::SeqCst);
        assert_eq!(asked, 1, "{expected}: {text}");
    }
}

/// Each byte comes in time, and the answer never ends.
#[test]
fn what_trickles_is_waited_for_no_longer_than_a_whole_answer() {
    let cases: Vec<&[u8]> = vec![
        b"",
        b"HTTP/1.1 200 OK\r\nx: ",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffff\r\n",
    ];
    let waits = cases.into_iter().map(|begin| {
        thread::spawn(move || {
            let (url, _asked) = talking(move |stream| {
                let _ = stream.write_all(begin);
                match begin {
                    b"" => thread::sleep(Duration::from_secs(600)),
                    _ => until_gone(stream, b" ", Duration::from_millis(20)),
                }
            });
            let start = Instant::now();
            let text = said(&url, plugins(0.3));
            assert!(
                text.ends_with("no whole answer in 0.3 s (--reward_timeout_secs), 5 times"),
                "{text}"
            );
            assert!(start.elapsed() < Duration::from_secs(60));
        })
    });
    let waits: Vec<_> = waits.collect();
    for wait in waits {
        wait.join().expect("it ends");
    }
}

#[test]
fn a_key_is_sent_and_never_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    fs::write(&file, "sesame-0123456789\n").expect("written");
    let with_key = || PluginOptions { api_key_file: Some(file.clone()), ..plugins(60.0) };
    assert!(!format!("{:?}", with_key()).contains("sesame"));
    let (url, requests) = serve(|index, _| match index {
        0 => ok(&json!({"scores": [1]})),
        _ => Some(("401 Unauthorized", "", "no".to_owned())),
    });
    let set = RewardSet::build(&[url], None, &options(with_key())).expect("an address");
    let columns = Map::new();
    set.score(&[input("a", "b", &columns)]).expect("scores");
    let error = set.score(&[input("a", "b", &columns)]).expect_err("401");
    assert!(!error.to_string().contains("sesame"), "{error}");
    let asked: Vec<_> = requests.try_iter().collect();
    assert!(
        asked
            .iter()
            .all(|request| request.authorization.as_deref() == Some("Bearer sesame-0123456789"))
    );
    for (text, expected) in [("", "expected a key"), ("two words", "expected a key")] {
        fs::write(&file, text).expect("written");
        let set = RewardSet::build(&["http://host/".to_owned()], None, &options(with_key()));
        let error = set.err().expect("an error").to_string();
        assert!(error.contains(expected) && !error.contains("words"), "{error}");
    }
    fs::remove_file(&file).expect("removed");
    let set = RewardSet::build(&["http://host/".to_owned()], None, &options(with_key()));
    let error = set.err().expect("an error").to_string();
    assert!(error.contains("key`: No such file"), "{error}");
}

#[test]
fn a_judges_address_shows_no_password_and_no_redirect_is_followed() {
    let judged = |base: &str| {
        let judge = JudgeOptions {
            model: Some("m".to_owned()),
            api_base: Some(base.to_owned()),
            ..JudgeOptions::default()
        };
        let plugins = PluginOptions { judge, ..plugins(60.0) };
        let set = RewardSet::build(&["llm".to_owned()], None, &options(plugins));
        let columns = Map::new();
        set.and_then(|set| set.score(&[input("a", "b", &columns)]))
            .expect_err("no verdict")
            .to_string()
    };
    let text = judged("http://user:word@host/v1");
    assert!(
        text.starts_with("reward `llm`: `http://host/v1/chat/completions`: passwords"),
        "{text}"
    );
    assert!(!text.contains("word@"), "{text}");
    assert!(judged("nonsense").contains("not an address"));
    let (other, others_asked) = talking(|_| {});
    let (url, _asked) = talking(move |stream| {
        let _ =
            write!(stream, "HTTP/1.1 307 See\r\nlocation: {other}/v1\r\ncontent-length: 0\r\n\r\n");
    });
    let text = judged(&url);
    assert!(text.contains("redirects are not followed"), "{text}");
    assert_eq!(others_asked.load(Ordering::SeqCst), 0);
}
