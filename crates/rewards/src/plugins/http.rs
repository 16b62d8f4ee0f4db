//! Rewards that a server computes, and the client that the judge shares.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use base::config::RewardBatch;

use super::PluginOptions;
use super::protocol::{self, Refusal};
use crate::error::RewardError;
use crate::registry::{Reward, RewardInput};

/// Requests after the first that failed.
const MAX_RETRIES: u32 = 4;
/// Pause before the first of them; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause that a server may ask for by `Retry-After`.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Longest answer that is read, bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// Posts JSON, again where a failure may pass.
pub(super) struct Client {
    agent: ureq::Agent,
    url: String,
    authorization: Option<String>,
}

/// Why one request failed.
struct Failure {
    reason: String,
    /// Whether and when another try may help.
    retry: Option<Duration>,
}

impl Client {
    /// `key` is sent as a bearer token; no message shows it.
    pub(super) fn new(url: String, key: Option<&str>, timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            // The text of a refusal is worth showing.
            .http_status_as_error(false)
            .build();
        Self {
            agent: config.into(),
            url,
            authorization: key.map(|key| format!("Bearer {key}")),
        }
    }

    /// The body of the answer; else what went wrong last.
    pub(super) fn post(&self, body: &str) -> Result<String, String> {
        let mut pause = FIRST_PAUSE;
        let mut tries = 1;
        loop {
            let failure = match self.post_once(body) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let Some(asked) = failure.retry else {
                return Err(failure.reason);
            };
            if tries > MAX_RETRIES {
                return Err(format!("{}, {tries} times", failure.reason));
            }
            thread::sleep(asked.clamp(pause, LONGEST_PAUSE));
            pause *= 2;
            tries += 1;
        }
    }

    fn post_once(&self, body: &str) -> Result<String, Failure> {
        let passing = |error: ureq::Error| Failure {
            retry: may_pass(&error).then_some(Duration::ZERO),
            reason: error.to_string(),
        };
        let mut request = self
            .agent
            .post(&self.url)
            .header("content-type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let mut response = request.send(body).map_err(passing)?;
        let status = response.status();
        let asked = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map_or(Duration::ZERO, Duration::from_secs);
        let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES);
        let text = body.read_to_string().map_err(passing)?;
        if status.is_success() {
            return Ok(text);
        }
        let busy = status.is_server_error() || [408, 429].contains(&status.as_u16());
        Err(Failure {
            reason: format!("status {status}: `{}`", protocol::shortened(text.trim())),
            retry: busy.then_some(asked),
        })
    }
}

fn may_pass(error: &ureq::Error) -> bool {
    use ureq::Error::{BodyExceedsLimit, ConnectionFailed, HostNotFound, Io, Protocol, Timeout};
    !matches!(error, BodyExceedsLimit(_))
        && matches!(
            error,
            ConnectionFailed | HostNotFound | Io(_) | Protocol(_) | Timeout(_)
        )
}

/// A reward that a server computes; its name is the address without scheme and query.
pub(super) struct HttpReward {
    name: String,
    client: Client,
    requests: usize,
    batch: RewardBatch,
    next_id: AtomicU64,
}

impl HttpReward {
    /// Nothing is asked yet: the server may start later than the training.
    pub(super) fn new(url: &str, options: &PluginOptions) -> Result<Self, RewardError> {
        let invalid = |reason| RewardError::PluginName {
            name: url.to_owned(),
            reason,
        };
        let parsed: ureq::http::Uri = url.parse().map_err(|_| invalid("not an address"))?;
        let host = parsed
            .authority()
            .map(|authority| match authority.as_str().rsplit_once('@') {
                Some(_) => Err(invalid("passwords in an address are not sent")),
                None => Ok(authority.as_str()),
            })
            .ok_or_else(|| invalid("no host"))??;
        Ok(Self {
            name: format!("{host}{}", parsed.path()),
            client: Client::new(url.to_owned(), None, options.timeout()?),
            requests: options.workers()?,
            batch: options.batch,
            next_id: AtomicU64::new(0),
        })
    }

    fn score_part(
        &self,
        first: usize,
        rows: &[RewardInput<'_>],
    ) -> Result<Vec<Option<f64>>, RewardError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.client
            .post(&protocol::request(id, rows).to_string())
            .map_err(Refusal::whole)
            .and_then(|answer| protocol::scores(&answer, id, rows.len()))
            .map_err(|refusal| super::failed(&self.name, first, rows, refusal, ""))
    }
}

impl Reward for HttpReward {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_by_row(&self) -> bool {
        false
    }

    fn batch(&self) -> RewardBatch {
        self.batch
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        super::in_parts(rows, self.requests, |_, first, rows| {
            self.score_part(first, rows)
        })
    }
}
