//! Routes, and turns: which request is answered by what, and when.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::{Method, Uri};
use axum::routing::{get, post};
use tokio::sync::{AcquireError, Semaphore};
use web::Reply;

use crate::service::Service;

/// Requests scored at a time: some rewards only wait for other programs.
const MAX_SCORING: usize = 8;
/// Bytes from which a body is scored alone among its like: read, it takes up to some hundred times as many.
const LARGE_BYTES: usize = 1 << 20;
/// What all requests share.
struct Asked {
    service: Service,
    turns: Semaphore,
    /// Large bodies are few at a time, so that memory is bounded and small ones find a turn.
    large: Semaphore,
}

type Shared = State<Arc<Asked>>;

/// Routes to `service`.
pub(crate) fn router(service: Service) -> Router {
    let asked = Asked { service, turns: Semaphore::new(MAX_SCORING), large: Semaphore::new(1) };
    Router::new()
        .route("/", get(usage))
        .route("/score", post(score))
        .route("/rows", post(rows))
        .method_not_allowed_fallback(no_method)
        .fallback(no_path)
        .with_state(Arc::new(asked))
}

async fn usage(State(asked): Shared) -> Reply {
    asked.service.usage()
}

async fn score(State(asked): Shared, body: Bytes) -> Reply {
    let size = body.len();
    asked.work(size, move |service| service.score(&body)).await
}

async fn rows(State(asked): Shared, RawQuery(query): RawQuery, body: Bytes) -> Reply {
    let size = body.len();
    asked.work(size, move |service| service.rows(query.as_deref(), &body)).await
}

async fn no_method(method: Method, uri: Uri) -> Reply {
    let path = uri.path();
    Reply::refusal(405, &format!("{method} {path}: got {method}, see GET /"))
}

async fn no_path(uri: Uri) -> Reply {
    let path = uri.path();
    let why = format!("no `{path}` here: GET /, POST /score, POST /rows");
    Reply::refusal(404, &why)
}

impl Asked {
    /// Scores a body of `size` bytes when it is this request's turn.
    async fn work(
        self: Arc<Self>,
        size: usize,
        act: impl FnOnce(&Service) -> Reply + Send + 'static,
    ) -> Reply {
        let turn = async {
            let large = match size >= LARGE_BYTES {
                true => Some(self.large.acquire().await?),
                false => None,
            };
            Ok::<_, AcquireError>((large, self.turns.acquire().await?))
        };
        let Ok(_turn) = turn.await else {
            return Reply::refusal(503, "the server is stopping");
        };
        let asked = Arc::clone(&self);
        let scoring = tokio::task::spawn_blocking(move || act(&asked.service));
        // A panic is a bug of ours, and no reason to leave the others unanswered.
        let failed = |_| Reply::refusal(500, "the server failed on this request");
        scoring.await.unwrap_or_else(failed)
    }
}
