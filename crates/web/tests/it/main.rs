//! The server against callers that misbehave, while others are answered.

mod access;
mod flood;
mod requests;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::{get, post};
use base::run_folder::StopFlag;
use web::{Access, Limits, Server, WebError};

/// Longest that a test waits for what should come at once.
const LONG: Duration = Duration::from_secs(60);

const BIG_BYTES: usize = 24 << 20;
static BIG: OnceLock<Bytes> = OnceLock::new();

/// A server that ends with its test.
struct Running {
    address: SocketAddr,
    stop: StopFlag,
    served: Option<JoinHandle<Result<(), WebError>>>,
}

fn router() -> Router {
    Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/length", post(|body: Bytes| async move { body.len().to_string() }))
        // More than the system keeps for a caller.
        .route("/big", get(|| async { BIG.get_or_init(|| vec![b'x'; BIG_BYTES].into()).clone() }))
        .route(
            "/slow",
            get(|| async {
                tokio::time::sleep(Duration::from_millis(600)).await;
                "slow"
            }),
        )
}

fn open() -> Access {
    Access::new(None, &[], false).expect("no hosts")
}

fn serve(limits: Limits) -> Running {
    serve_to(open(), limits)
}

fn serve_to(access: Access, limits: Limits) -> Running {
    let server = Server::bind("127.0.0.1:0", access, limits).expect("a port");
    let (address, stop) = (server.address(), StopFlag::new());
    let raised = stop.clone();
    let served = Some(thread::spawn(move || server.run(router(), &raised)));
    Running { address, stop, served }
}

impl Running {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(LONG)).expect("a limit");
        stream.set_write_timeout(Some(LONG)).expect("a limit");
        stream
    }

    /// A connection on which this was sent.
    fn sent(&self, bytes: impl AsRef<[u8]>) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(bytes.as_ref()).expect("it is taken");
        stream
    }

    /// All that is answered until the connection closes.
    fn said(&self, bytes: impl AsRef<[u8]>) -> String {
        all_of(&mut self.sent(bytes))
    }

    /// The response to a well-behaved request.
    fn ask(&self, head: &str, body: &[u8]) -> String {
        let length = body.len();
        let head = format!(
            "{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        let mut stream = self.sent(head);
        stream.write_all(body).expect("it is taken");
        all_of(&mut stream)
    }

    /// Others are answered all the same.
    fn is_well(&self) {
        let said = self.ask("GET /", b"");
        assert!(said.starts_with("HTTP/1.1 200 OK") && said.ends_with("hello"), "{said}");
        let said = self.ask("POST /length", b"abc");
        assert!(said.starts_with("HTTP/1.1 200 OK") && said.ends_with("3"), "{said}");
    }

    fn end(&mut self) {
        self.stop.raise();
        if let Some(served) = self.served.take() {
            served.join().expect("no panic").expect("no error");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.end();
        }
    }
}

/// What still comes; a connection that is cut ends it too.
fn all_of(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(said: &str) -> &str {
    said.split(' ').nth(1).unwrap_or(said)
}
