//! Bodies: those of requests, read whole within their bounds, and those of responses, whose end is noted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use tokio::time::timeout;

use crate::connections::Place;
use crate::{Limits, Reply};

/// How much of what is refused is read all the same, in longest bodies: who still sends does not hear the refusal.
const DRAINED: usize = 4;

/// For the next part of it.
const DRAIN_PAUSE: Duration = Duration::from_secs(1);

/// The whole body.
///
/// # Errors
/// With the response, where it is too long, too slow or broken.
pub(crate) async fn read(body: Incoming, place: &Place, limits: &Limits) -> Result<Bytes, Reply> {
    // What says so beforehand is not read.
    if body.size_hint().lower() > limits.body_bytes as u64 {
        drain(body, limits);
        return Err(too_long(limits));
    }
    let secs = limits.body;
    timeout(secs, collected(body, place, limits)).await.unwrap_or_else(|_| Err(too_slow(secs)))
}

fn too_long(limits: &Limits) -> Reply {
    Reply::refusal(413, &format!("body over {} bytes", limits.body_bytes))
}

fn too_slow(limit: Duration) -> Reply {
    let why = format!("no whole body after {} s", limit.as_secs_f64());
    Reply::refusal(408, &why)
}

async fn collected(mut body: Incoming, place: &Place, limits: &Limits) -> Result<Bytes, Reply> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Reply::refusal(400, &format!("broken body: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > limits.body_bytes {
            drain(body, limits);
            return Err(too_long(limits));
        }
        place.keep_bytes(data.len()).await;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.into())
}

/// Reads on beside the response, keeps nothing, and ends with the connection.
pub(crate) fn drain(mut body: Incoming, limits: &Limits) {
    let (most, longest) = (limits.body_bytes.saturating_mul(DRAINED), limits.body);
    if body.size_hint().lower() > most as u64 {
        return;
    }
    tokio::spawn(timeout(longest, async move {
        let mut length = 0;
        while let Ok(Some(Ok(frame))) = timeout(DRAIN_PAUSE, body.frame()).await {
            length += frame.data_ref().map_or(0, Bytes::len);
            if length > most {
                return;
            }
        }
    }));
}

/// The body of a response.
pub(crate) struct Noted {
    pub(crate) body: Body,
    pub(crate) place: Arc<Place>,
}

impl HttpBody for Noted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.place.has_response();
    }
}
