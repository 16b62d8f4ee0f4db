//! Rewards that a server computes, against a server that misbehaves on order.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use base::run_folder::StopFlag;
use rewards::{PluginOptions, RewardError, RewardInput, RewardOptions, RewardSet};
use serde_json::{Map, Value, json};

use crate::{generic_options, input};

/// A request as the server saw it.
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
}

/// Status line, further headers, body; or nothing, the connection cut.
pub(crate) type Reply = Option<(&'static str, &'static str, String)>;

pub(crate) fn ok(body: &Value) -> Reply {
    Some(("200 OK", "", body.to_string()))
}

/// Serves on a free port, each connection by a thread and one request; address and what was asked.
pub(crate) fn serve(
    reply: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
) -> (String, Receiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (seen, requests) = mpsc::channel();
    let reply = std::sync::Arc::new(reply);
    thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let (seen, reply) = (seen.clone(), std::sync::Arc::clone(&reply));
            thread::spawn(move || {
                let mut stream = stream.expect("a connection");
                let request = read(&stream);
                let answer = reply(index, &request);
                // The test may have ended.
                let _ = seen.send(request);
                if let Some((status, headers, body)) = answer {
                    let length = body.len();
                    let _ = write!(
                        stream,
                        "HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
                    );
                }
            });
        }
    });
    (format!("http://{address}"), requests)
}

fn read(stream: &TcpStream) -> Request {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).expect("a request line");
    let path = line.split(' ').nth(1).expect("a path").to_owned();
    let (mut length, mut authorization) = (0, None);
    loop {
        line.clear();
        reader.read_line(&mut line).expect("a header");
        let Some((name, value)) = line.trim().split_once(": ") else {
            break;
        };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().expect("a length"),
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    Request { path, authorization, body: serde_json::from_slice(&body).expect("JSON") }
}

fn set(url: &str, plugins: PluginOptions) -> Result<RewardSet, RewardError> {
    let options = RewardOptions { plugins, ..generic_options() };
    RewardSet::build(&[url.to_owned()], None, &options)
}

fn score(url: &str, plugins: PluginOptions, rows: usize) -> Result<Vec<Option<f64>>, RewardError> {
    let columns = Map::new();
    let texts: Vec<String> = (0..rows).map(|i| i.to_string()).collect();
    let rows: Vec<RewardInput<'_>> = texts
        .iter()
        .map(|text| RewardInput {
            sample: Some("rows.jsonl:5"),
            step: Some(3),
            completion_tokens: None,
            ..input(text, "s", &columns)
        })
        .collect();
    let scores = set(url, plugins)?.score(&rows)?;
    Ok(scores.per_reward.into_iter().next().expect("one reward"))
}

/// Each completion, a number, is its score.
fn numbers(request: &Request) -> Value {
    let rows = request.body["rows"].as_array().expect("rows");
    let scores: Vec<f64> = rows
        .iter()
        .map(|row| row["completion"].as_str().expect("text").parse().expect("a number"))
        .collect();
    json!({"id": request.body["id"], "scores": scores})
}

#[test]
fn a_server_scores_a_batch_by_one_request() {
    let (url, requests) = serve(|_, request| ok(&numbers(request)));
    let url = format!("{url}/score?key=1");
    let scores = score(&url, PluginOptions::default(), 5);
    assert_eq!(scores, Ok((0..5).map(|i| Some(f64::from(i))).collect()));
    let asked: Vec<Request> = requests.try_iter().collect();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, "/score?key=1");
    assert_eq!(asked[0].authorization, None, "the judge's key is for the judge");
    assert_eq!(asked[0].body["step"], 3);
    assert_eq!(asked[0].body["rows"][4]["sample"], "rows.jsonl:5");
    let set = set(&url, PluginOptions::default()).expect("a good address");
    let name = set.names().next().expect("a name").to_owned();
    assert!(name.starts_with("127.0.0.1:") && name.ends_with("/score"), "{name}");
}

#[test]
fn requests_share_a_batch_in_order() {
    let (url, requests) = serve(|_, request| ok(&numbers(request)));
    let plugins = PluginOptions { workers: 3, ..PluginOptions::default() };
    let scores = score(&url, plugins, 7);
    assert_eq!(scores, Ok((0..7).map(|i| Some(f64::from(i))).collect()));
    assert_eq!(requests.try_iter().count(), 3);
}

#[test]
fn failures_that_may_pass_are_tried_again() {
    let (url, requests) = serve(|index, request| match index {
        0 => None,
        1 => Some(("503 Service Unavailable", "retry-after: 1\r\n", "busy".to_owned())),
        _ => ok(&numbers(request)),
    });
    let start = Instant::now();
    assert_eq!(score(&url, PluginOptions::default(), 1), Ok(vec![Some(0.0)]));
    assert!(start.elapsed() >= Duration::from_millis(1250), "{:?}", start.elapsed());
    assert_eq!(requests.try_iter().count(), 3);
}

#[test]
fn failures_that_stay_name_reward_sample_and_cause() {
    let (url, requests) = serve(|_, _| Some(("400 Bad Request", "", "no such field".to_owned())));
    let error = score(&url, PluginOptions::default(), 1).expect_err("refused");
    let host = url.trim_start_matches("http://");
    assert_eq!(
        error.to_string(),
        format!("reward `{host}/`, rows.jsonl:5: status 400 Bad Request: `no such field`")
    );
    assert_eq!(requests.try_iter().count(), 1, "not tried again");

    let (url, requests) = serve(|_, _| Some(("500 Oh", "", String::new())));
    let text = score(&url, PluginOptions::default(), 1).expect_err("refused").to_string();
    assert!(text.contains("status 500") && text.ends_with("5 times"), "{text}");
    assert_eq!(requests.try_iter().count(), 5);

    let (url, _requests) = serve(|_, _| ok(&json!({"scores": [1, 2]})));
    let text = score(&url, PluginOptions::default(), 1).expect_err("too many").to_string();
    assert!(text.ends_with("got 2 scores, expected 1, one for each row"), "{text}");
}

/// A server that fails from the second request on, up to request `until`, as `fails` says.
fn breaking(
    until: usize,
    fails: impl Fn() -> Reply + Send + Sync + 'static,
) -> (String, Receiver<Request>) {
    serve(move |index, request| match index {
        i if i > 0 && i < until => fails(),
        _ => ok(&numbers(request)),
    })
}

fn twice(url: &str, plugins: PluginOptions) -> Result<Vec<Option<f64>>, RewardError> {
    let set = set(url, plugins).expect("a good address");
    let columns = Map::new();
    let row = [input("1", "s", &columns)];
    set.score(&row).expect("the first answers");
    set.score(&row).map(|mut scores| scores.per_reward.remove(0))
}

/// Five failures are one more than a server is given that never answered.
#[test]
fn a_server_that_has_answered_is_waited_for() {
    let ways: [fn() -> Reply; 3] = [
        || None,
        || Some(("429 Too Many Requests", "retry-after: 1\r\n", String::new())),
        || Some(("502 Bad Gateway", "", "<html>".to_owned())),
    ];
    let waits = ways.map(|fails| {
        thread::spawn(move || {
            let (url, requests) = breaking(6, fails);
            assert_eq!(twice(&url, PluginOptions::default()), Ok(vec![Some(1.0)]));
            assert_eq!(requests.try_iter().count(), 7);
        })
    });
    for wait in waits {
        wait.join().expect("it was waited for");
    }
}

#[test]
fn what_will_not_pass_is_not_waited_for() {
    let says = |fails: fn() -> Reply, plugins| {
        let (url, requests) = breaking(1_000, fails);
        let start = Instant::now();
        let error = twice(&url, plugins).expect_err("it fails");
        (error, requests.try_iter().count() - 1, start.elapsed())
    };
    for (status, fails) in [
        ("401", (|| Some(("401 Unauthorized", "", String::new()))) as fn() -> Reply),
        ("403", || Some(("403 Forbidden", "", String::new()))),
        ("404", || Some(("404 Not Found", "retry-after: 1\r\n", String::new()))),
    ] {
        let (error, tries, _) = says(fails, PluginOptions::default());
        assert!(error.to_string().contains(status), "{error}");
        assert_eq!(tries, 1, "{status}");
    }
    // The reward itself failed on a row, whatever the status.
    let raised = || {
        let body = json!({"error": "division by zero", "row": 0}).to_string();
        Some(("500 Internal Server Error", "", body))
    };
    let (error, tries, _) = says(raised, PluginOptions::default());
    assert!(error.to_string().ends_with(", 1 row: division by zero"), "{error}");
    assert_eq!((error.row(), tries), (Some(0), 1));
    // The time is up; a pause that the server asks for is kept within it.
    let busy = || Some(("503 Busy", "retry-after: 600\r\n", String::new()));
    let plugins = PluginOptions { retry_secs: 1.0, ..PluginOptions::default() };
    let (error, tries, took) = says(busy, plugins);
    let text = error.to_string();
    assert!(text.contains("in an outage of 1 s\nhint: a higher --reward_retry_secs"), "{text}");
    assert_eq!(tries, 5);
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn a_stop_ends_the_wait() {
    let stop = StopFlag::new();
    let (url, _requests) =
        breaking(1_000, || Some(("503 Busy", "retry-after: 200\r\n", String::new())));
    let plugins = PluginOptions { stop: stop.clone(), ..PluginOptions::default() };
    let start = Instant::now();
    let stopper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        stop.raise();
    });
    let text = twice(&url, plugins).expect_err("it was stopped").to_string();
    assert!(text.contains("then a stop was asked for"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    stopper.join().expect("it stops");
}

#[test]
fn answers_of_another_form_say_what_came_and_what_should() {
    let says = |answer: fn() -> String| {
        let (url, _requests) = serve(move |_, _| Some(("200 OK", "", answer())));
        let error = score(&url, PluginOptions::default(), 2);
        error.expect_err("no scores").to_string()
    };
    for (answer, wanted) in [
        (
            (|| r#"{"scores": {"a": 1, "b": 2}}"#.to_owned()) as fn() -> String,
            "`scores` is an object, no list",
        ),
        (|| r#"{"scores": "01"}"#.to_owned(), "`scores` is text `01`, no list"),
        (|| r#"{"scores": null}"#.to_owned(), "`scores` is null, no list"),
        (|| r#"{"scores": 0.5}"#.to_owned(), "`scores` is number `0.5`, no list"),
        (|| r#"[0.5, 1]"#.to_owned(), "no list `scores`: got `[0.5, 1]`, expected `{\"id\": "),
        (|| r#"{"rewards": [0.5, 1]}"#.to_owned(), "no list `scores`"),
        (|| r#"{"scores": [[1], [2]]}"#.to_owned(), "got score `[1]`, expected a number or `null`"),
        (|| r#"{"scores": [1, "2"]}"#.to_owned(), "got score `\"2\"`, expected a number or `null`"),
        (|| r#"{"scores": [1, {"score": 2}]}"#.to_owned(), "expected a number or `null`"),
        (|| r#"{"scores": [1, NaN]}"#.to_owned(), "not JSON"),
        (|| r#"{"scores": [1, 1e999]}"#.to_owned(), "not JSON"),
        (String::new, "not JSON"),
        (|| r#"{"scores": [1, 2, 3]}"#.to_owned(), "got 3 scores, expected 2"),
    ] {
        let text = says(answer);
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn addresses_that_are_none_are_errors_at_once() {
    let says = |url: &str| set(url, PluginOptions::default()).err().expect("an error").to_string();
    assert_eq!(says("http://"), "reward `http://`: not an address");
    for url in
        ["http://user:word@host/x?key=word", "http://word@host", "https://a:word@b:word@host/x"]
    {
        let text = says(url);
        assert!(text.contains("passwords in an address"), "{text}");
        assert!(!text.contains("word@") && !text.contains("key="), "{text}");
    }
}
