//! Rewards over HTTP. Requests are untrusted: bodies, heads, waits and connections are bounded, and
//! each connection carries one request. [`super::service`] knows what they mean.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base::run_folder::StopFlag;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::scorer::Scorer;
use super::service::{Reply, Service};
use crate::signals;

/// Longest body, bytes: some thousand long answers.
const MAX_BODY_BYTES: usize = 16 << 20;
/// Bytes after which a body that is too long is read no further.
const MAX_READ_BYTES: usize = 4 * MAX_BODY_BYTES;
/// Connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 32;
/// Requests scored at a time: some rewards only wait for other programs.
const MAX_SCORING: usize = 8;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// For the response to be taken; scoring has the time-outs of the rewards.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a signal is looked for.
const STOP_INTERVAL: Duration = Duration::from_millis(100);
/// For requests under way when a signal comes.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// Serves until a signal comes.
///
/// # Errors
/// Where the address cannot be had.
pub fn serve(address: &str, scorer: Scorer, explain: bool) -> Result<()> {
    let stop = signals::stop_flag("stopping; what was asked is answered first")?;
    let server = Arc::new(Server {
        service: Service::new(scorer, explain),
        scoring: Arc::new(Semaphore::new(MAX_SCORING)),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_io()
        .enable_time()
        .build()
        .context("cannot start the server's threads")?;
    let served = runtime.block_on(server.accept(address, &stop));
    runtime.shutdown_background();
    served
}

struct Server {
    service: Service,
    scoring: Arc<Semaphore>,
}

impl Server {
    async fn accept(self: Arc<Self>, address: &str, stop: &StopFlag) -> Result<()> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("--serve {address}: expected a free HOST:PORT"))?;
        base::say!("serving on http://{}", listener.local_addr()?);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut running = JoinSet::new();
        while !stop.is_raised() {
            while running.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = next(&listener, &places) => accepted,
                () = sleep(STOP_INTERVAL) => continue,
            };
            match accepted {
                Ok((stream, place)) => {
                    running.spawn(Arc::clone(&self).converse(stream, place));
                }
                // No more files, or the caller has gone: the next may fare better.
                Err(error) => {
                    base::say!("a connection failed: {error}");
                    sleep(STOP_INTERVAL).await;
                }
            }
        }
        drop(listener);
        // Those that take longer are cut off with the program.
        let _ = timeout(LAST_WAIT, running.join_all()).await;
        Ok(())
    }

    async fn converse(self: Arc<Self>, stream: TcpStream, _place: OwnedSemaphorePermit) {
        let responded = Notify::new();
        let handler = service_fn(|request| async {
            let reply = Arc::clone(&self).respond(request).await;
            responded.notify_one();
            Ok::<_, Infallible>(response(reply))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), handler);
        let late = async {
            responded.notified().await;
            sleep(RESPONSE_TIMEOUT).await;
        };
        // A caller who breaks off is told nothing, and there is nobody else to tell.
        tokio::select! {
            _ = connection => {}
            () = late => {}
        }
    }

    async fn respond(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let body = match read(body).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        let Ok(turn) = Arc::clone(&self.scoring).acquire_owned().await else {
            return Reply::refusal(503, "the server is stopping");
        };
        let scoring = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let (path, query) = (head.uri.path(), head.uri.query());
            self.service
                .answer(head.method.as_str(), path, query, &body)
        });
        // A panic is a bug of ours, and no reason to leave the others unanswered.
        let failed = |_| Reply::refusal(500, "the server failed on this request");
        scoring.await.unwrap_or_else(failed)
    }
}

/// The next connection, once there is a place for it.
async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn read(body: Incoming) -> Result<Vec<u8>, Reply> {
    timeout(BODY_TIMEOUT, collected(body))
        .await
        .unwrap_or_else(|_| {
            let why = format!("no whole body after {} s", BODY_TIMEOUT.as_secs());
            Err(Reply::refusal(408, &why))
        })
}

async fn collected(mut body: Incoming) -> Result<Vec<u8>, Reply> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Reply::refusal(400, &format!("broken body: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length += data.len();
        if length <= MAX_BODY_BYTES {
            bytes.extend_from_slice(&data);
        } else if length <= MAX_READ_BYTES {
            // Read on, for who still sends does not hear the refusal; but keep nothing.
            bytes = Vec::new();
        } else {
            break;
        }
    }
    if length > MAX_BODY_BYTES {
        let why = format!("body over {MAX_BODY_BYTES} bytes");
        return Err(Reply::refusal(413, &why));
    }
    Ok(bytes)
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = HeaderValue::from_static(reply.content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
