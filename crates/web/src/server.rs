//! Connections from their begin to their end, and requests from head to response.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::response::{IntoResponse, Response};
use base::run_folder::StopFlag;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, EXPECT, HeaderMap, HeaderName, HeaderValue,
    REFERRER_POLICY, TRANSFER_ENCODING, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tower_service::Service;

use crate::body::{self, Noted};
use crate::connections::{Admission, Connections, Place};
use crate::stream::Watched;
use crate::{Access, Limits, Reply, WebError};

/// How often it is looked for signals and for those who are late.
const TICK: Duration = Duration::from_millis(100);
/// To one who has too many connections, written as far as it is taken at once.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    content-length: 48\r\nretry-after: 1\r\nconnection: close\r\n\r\n{\"error\": \"too many connections of one address\"}";

/// What a browser may do with a response that does not say more.
const HEADERS: [(HeaderName, &str); 6] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// A server that has its address.
#[derive(Debug)]
pub struct Server {
    listener: std::net::TcpListener,
    address: SocketAddr,
    access: Access,
    limits: Limits,
}

impl Server {
    /// Takes `HOST:PORT`; port 0 is a free one.
    ///
    /// # Errors
    /// Where the address cannot be had, and where other machines reach it and there is no key.
    pub fn bind(address: &str, access: Access, limits: Limits) -> Result<Self, WebError> {
        let failed = |source| WebError::Bind { address: address.to_owned(), source };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !is_this_machine(address.ip()) && !access.has_key() && !access.needs_no_key {
            return Err(WebError::NoKey(address));
        }
        Ok(Self { listener, address, access, limits })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until a signal comes.
    ///
    /// # Errors
    /// Where the system refuses threads or the listener.
    pub fn run(self, router: Router, stop: &StopFlag) -> Result<(), WebError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_io()
            .enable_time()
            .build()
            .map_err(WebError::Threads)?;
        let served = runtime.block_on(self.accept(router, stop));
        runtime.shutdown_background();
        served
    }

    async fn accept(self, router: Router, stop: &StopFlag) -> Result<(), WebError> {
        let address = self.address;
        let failed = |source| WebError::Bind { address: address.to_string(), source };
        let listener = TcpListener::from_std(self.listener).map_err(failed)?;
        base::say!("serving on http://{address}");
        if !is_this_machine(address.ip()) && !self.access.has_key() {
            base::say!("warning: other machines may ask, without a key");
        }
        let connections = Connections::new(self.limits);
        let shared = Arc::new(Shared {
            // Bodies are bounded before they come there.
            router: router.layer(DefaultBodyLimit::disable()),
            access: self.access,
            connections: Arc::clone(&connections),
            is_stopping: AtomicBool::new(false),
        });
        let mut running = JoinSet::new();
        while !stop.is_raised() {
            while running.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sleep(TICK) => continue,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if let Some(place) = shared.place(&stream, peer.ip(), stop).await {
                        running.spawn(Arc::clone(&shared).converse(stream, place));
                    }
                }
                // No more files, or the caller has gone: the next may fare better.
                Err(error) => {
                    base::say!("a connection failed: {error}");
                    connections.make_room();
                    sleep(TICK).await;
                }
            }
        }
        drop(listener);
        shared.is_stopping.store(true, Ordering::Relaxed);
        // Those that take longer are cut off with the program.
        let all = async { while running.join_next().await.is_some() {} };
        let _ = timeout(connections.limits.stop, all).await;
        Ok(())
    }
}

struct Shared {
    router: Router,
    access: Access,
    connections: Arc<Connections>,
    is_stopping: AtomicBool,
}

impl Shared {
    /// A place for a new connection, once there is one; none for one that is sent away.
    async fn place(
        &self,
        stream: &TcpStream,
        address: IpAddr,
        stop: &StopFlag,
    ) -> Option<Arc<Place>> {
        while !stop.is_raised() {
            match self.connections.admit(address) {
                Admission::Place(place) => return Some(Arc::new(place)),
                Admission::TooMany => {
                    // Whether it hears that is its own affair.
                    let _ = stream.try_write(TOO_MANY);
                    return None;
                }
                Admission::Full => {
                    let _ = timeout(TICK / 5, self.connections.changed()).await;
                }
            }
        }
        None
    }

    async fn converse(self: Arc<Self>, stream: TcpStream, place: Arc<Place>) {
        // Responses are written in one go.
        let _ = stream.set_nodelay(true);
        let stream = Watched { stream, place: Arc::clone(&place) };
        let service = service_fn(|request| {
            let (shared, place) = (Arc::clone(&self), Arc::clone(&place));
            async move { Ok::<_, Infallible>(shared.respond(request, place).await) }
        });
        let connection = http1::Builder::new()
            .max_buf_size(self.connections.limits.head_bytes)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut ticks = interval(TICK);
        // A caller who breaks off is told nothing, and there is nobody else to tell.
        loop {
            tokio::select! {
                _ = connection.as_mut() => return,
                () = place.sent_away() => return,
                _ = ticks.tick() => {}
            }
            if place.is_late() {
                return;
            }
            if self.is_stopping.load(Ordering::Relaxed) {
                if place.is_before_request() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        place: Arc<Place>,
    ) -> hyper::Response<Noted> {
        let may_go_on = place.begins_body();
        let (head, body) = request.into_parts();
        let closes = !may_go_on || head.headers.contains_key(TRANSFER_ENCODING);
        let (mut response, is_refused) = match self.routed(head, body, &place).await {
            Ok(response) => (response, false),
            Err(refusal) => (refusal.into_response(), true),
        };
        // What follows a body that was not read, or of which others may see another end, is no request.
        let headers = response.headers_mut();
        if closes || is_refused {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        complete(headers);
        if response.status() == hyper::StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        let length = hyper::body::Body::size_hint(response.body()).lower();
        place.begins_response(usize::try_from(length).unwrap_or(usize::MAX));
        response.map(|body| Noted { body, place })
    }

    async fn routed(&self, head: Parts, body: Incoming, place: &Place) -> Result<Response, Reply> {
        let limits = &self.connections.limits;
        if let Err(refusal) = self.access.check(&head) {
            // Who waits for a word before it sends has it.
            if !head.headers.contains_key(EXPECT) {
                body::drain(body, limits);
            }
            return Err(refusal);
        }
        let body = body::read(body, place, limits).await?;
        place.begins_work();
        let request = Request::from_parts(head, Body::from(body));
        let response = self.router.clone().call(request).await;
        Ok(response.unwrap_or_else(|never: Infallible| match never {}))
    }
}

fn complete(headers: &mut HeaderMap) {
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

fn is_this_machine(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
