//! A hub on the loopback that answers as Hugging Face's does: large files by a redirect to another host, ETags in the first response alone,
//! ranges, tokens; and that misbehaves when told to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const OLD_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";
/// The model that it has.
pub const MODEL: &str = "owner/tiny";

/// How it misbehaves with a large file.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    /// Closes the connection after so many bytes, so often.
    Cut {
        after: usize,
        times: usize,
    },
    /// Sends so many bytes and then nothing more, once.
    Stall {
        after: usize,
    },
    /// Knows nothing of ranges; the first response is cut.
    NoRanges {
        after: usize,
    },
    /// Answers small files with an error's page, which has the state of an error.
    ErrorPage,
}

pub struct Hub {
    pub endpoint: String,
    state: Arc<State>,
}

struct State {
    files: HashMap<String, Vec<u8>>,
    fault: Fault,
    token: Option<&'static str>,
    cdn: String,
    faults_done: AtomicUsize,
    /// Requests of large files' bytes: name and first byte asked for.
    sent: Mutex<Vec<(String, usize)>>,
    /// Whether the second host was shown a token.
    leaked: AtomicUsize,
}

struct Request {
    is_head: bool,
    path: String,
    first: Option<usize>,
    token: Option<String>,
}

struct Response {
    status: &'static str,
    head: String,
    body: Vec<u8>,
    /// How much of the body is sent, and whether the connection then stays open in silence.
    sent: usize,
    stalls: bool,
}

impl Hub {
    /// Serves the files of a folder as `owner/tiny`, to those alone who show `token`, if there is one.
    pub fn start(folder: &Path, fault: Fault, token: Option<&'static str>) -> Self {
        let read = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        };
        let files = fs::read_dir(folder).unwrap().map(read).collect();
        let (hub, cdn) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        // Another name, so that it is another host to the client.
        let endpoint = format!("http://localhost:{}", hub.local_addr().unwrap().port());
        let state = Arc::new(State {
            files,
            fault,
            token,
            cdn: format!("http://{}", cdn.local_addr().unwrap()),
            faults_done: AtomicUsize::new(0),
            sent: Mutex::default(),
            leaked: AtomicUsize::new(0),
        });
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let (state, stream) = (Arc::clone(&state), stream.unwrap());
                    std::thread::spawn(move || state.serve(stream, is_cdn));
                }
            });
        }
        Self { endpoint, state }
    }

    /// Large files that were asked for, in order, with the first byte.
    pub fn sent(&self) -> Vec<(String, usize)> {
        self.state.sent.lock().unwrap().clone()
    }

    /// How often a token was shown to the other host.
    pub fn leaked(&self) -> usize {
        self.state.leaked.load(Ordering::SeqCst)
    }
}

fn request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace();
    let is_head = words.next()? == "HEAD";
    let path = words.next()?.split('?').next()?.to_owned();
    let mut request = Request { is_head, path, first: None, token: None };
    loop {
        let mut header = String::new();
        reader
            .read_line(&mut header)
            .ok()
            .filter(|read| *read > 2)
            .map_or_else(|| header.clear(), |_| ());
        let Some((name, value)) = header.split_once(':') else {
            return Some(request);
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                request.first = value.trim().strip_prefix("bytes=")?.split('-').next()?.parse().ok()
            }
            "authorization" => {
                request.token = Some(value.trim().strip_prefix("Bearer ")?.to_owned())
            }
            _ => {}
        }
    }
}

fn response(status: &'static str, head: String, body: Vec<u8>) -> Response {
    let sent = body.len();
    Response { status, head, body, sent, stalls: false }
}

fn refusal(status: &'static str, code: &str, message: &str) -> Response {
    response(status, format!("X-Error-Code: {code}\r\nX-Error-Message: {message}\r\n"), Vec::new())
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl State {
    fn serve(&self, stream: TcpStream, is_cdn: bool) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(request) = request(&mut reader) {
            let response = if is_cdn { self.bytes(&request) } else { self.respond(&request) };
            let (status, length, more) = (response.status, response.body.len(), &response.head);
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}\r\n");
            let body = if request.is_head { &[] } else { &response.body[..response.sent] };
            if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(body)).is_err() {
                return;
            }
            if response.stalls && !request.is_head {
                // Until the other end gives up.
                let _ = reader.read(&mut [0; 1]);
                return;
            }
            if response.sent < length && !request.is_head {
                return;
            }
        }
    }

    fn respond(&self, request: &Request) -> Response {
        if self.token.is_some() && request.token.as_deref() != self.token {
            return match &request.token {
                None => refusal(
                    "401 Unauthorized",
                    "GatedRepo",
                    "Access to model owner/tiny is restricted.",
                ),
                Some(_) => {
                    refusal("403 Forbidden", "GatedRepo", "You are not in the authorized list.")
                }
            };
        }
        if let Some(revision) = request.path.strip_prefix("/api/models/owner/tiny/tree/") {
            return if [COMMIT, OLD_COMMIT].contains(&revision) {
                self.tree()
            } else {
                self.no_revision()
            };
        }
        if let Some(revision) = request.path.strip_prefix("/api/models/owner/tiny/revision/") {
            return match revision {
                "main" | COMMIT => self.info(COMMIT),
                "v1" | OLD_COMMIT => self.info(OLD_COMMIT),
                _ => self.no_revision(),
            };
        }
        match request.path.as_str() {
            "/api/models/owner/tiny" => self.info(COMMIT),
            path => path
                .strip_prefix("/owner/tiny/resolve/")
                .map_or_else(|| self.nothing(), |rest| self.resolve(rest)),
        }
    }

    fn nothing(&self) -> Response {
        refusal("404 Not Found", "RepoNotFound", "Repository not found")
    }

    fn no_revision(&self) -> Response {
        refusal("404 Not Found", "RevisionNotFound", "Invalid rev id")
    }

    fn json(&self, value: &Value) -> Response {
        response(
            "200 OK",
            "Content-Type: application/json\r\n".into(),
            value.to_string().into_bytes(),
        )
    }

    fn info(&self, commit: &str) -> Response {
        self.json(&json!({"id": MODEL, "modelId": MODEL, "sha": commit, "private": false, "tags": [], "downloads": 0, "likes": 0}))
    }

    fn tree(&self) -> Response {
        let entry = |(name, bytes): (&String, &Vec<u8>)| {
            let size = bytes.len();
            let mut entry = json!({"type": "file", "oid": &sha256(name.as_bytes())[..40], "size": size, "path": name});
            if is_large(name) {
                entry["lfs"] = json!({"oid": sha256(bytes), "size": size, "pointerSize": 134});
            }
            entry
        };
        self.json(&self.files.iter().map(entry).collect())
    }

    fn resolve(&self, rest: &str) -> Response {
        let Some((commit, name)) = rest.split_once('/') else {
            return self.nothing();
        };
        let Some(bytes) = self.files.get(name) else {
            return self.nothing();
        };
        if is_large(name) {
            let (etag, size, cdn) = (sha256(bytes), bytes.len(), &self.cdn);
            let head = format!(
                "X-Repo-Commit: {commit}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\nLocation: {cdn}/{name}\r\n"
            );
            return response("302 Found", head, Vec::new());
        }
        let head = format!("X-Repo-Commit: {commit}\r\nETag: \"etag-{name}\"\r\n");
        if self.fault == Fault::ErrorPage && name == "tokenizer.json" {
            self.faults_done.fetch_add(1, Ordering::SeqCst);
            // The head of the response speaks of the file, as a proxy's does whose storage is down.
            return response("200 OK", head, b"<html>busy</html>".to_vec());
        }
        response("200 OK", head, bytes.clone())
    }

    /// The second host, which holds large files.
    fn bytes(&self, request: &Request) -> Response {
        let name = request.path.trim_start_matches('/');
        let Some(bytes) = self.files.get(name) else {
            return self.nothing();
        };
        if request.token.is_some() {
            self.leaked.fetch_add(1, Ordering::SeqCst);
        }
        if !request.is_head {
            self.sent.lock().unwrap().push((name.to_owned(), request.first.unwrap_or(0)));
        }
        let first = if matches!(self.fault, Fault::NoRanges { .. }) { None } else { request.first };
        let mut response = match first {
            Some(first) => {
                let head =
                    format!("Content-Range: bytes {first}-{}/{}\r\n", bytes.len() - 1, bytes.len());
                response("206 Partial Content", head, bytes[first..].to_vec())
            }
            None => response("200 OK", String::new(), bytes.clone()),
        };
        let (after, times) = match self.fault {
            Fault::Cut { after, times } => (after, times),
            Fault::Stall { after } | Fault::NoRanges { after } => (after, 1),
            Fault::None | Fault::ErrorPage => return response,
        };
        if !request.is_head
            && name.starts_with("model-00002")
            && self.faults_done.fetch_add(1, Ordering::SeqCst) < times
        {
            response.sent = after.min(response.body.len());
            response.stalls = matches!(self.fault, Fault::Stall { .. });
        }
        response
    }
}

/// Waits until `holds`; fails after a minute.
pub fn wait_until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{what}: still not after a minute");
}
