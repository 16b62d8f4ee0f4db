//! Rewards that a server computes, and the client that the judge shares.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::config::RewardBatch;

use super::PluginOptions;
use super::patience::Patience;
use super::protocol::{self, Refusal};
use crate::error::RewardError;
use crate::registry::{Reward, RewardInput};

/// Longest answer that is read, bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// Posts JSON, again where a failure may pass.
pub(super) struct Client {
    agent: ureq::Agent,
    url: String,
    authorization: Option<String>,
    patience: Patience,
    timeout: Duration,
}

/// Why one request failed.
pub(super) struct Failure {
    pub(super) reason: String,
    /// Whether and when another try may help.
    pub(super) retry: Option<Duration>,
    /// The body of an answer that refuses.
    pub(super) body: Option<String>,
}

impl Client {
    /// `reward` asks; `key` is sent as a bearer token; no message shows it.
    ///
    /// # Errors
    /// Where an option is out of range.
    pub(super) fn new(
        reward: &str,
        url: String,
        key: Option<&str>,
        options: &PluginOptions,
    ) -> Result<Self, RewardError> {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(options.timeout()?))
            // The text of a refusal is worth showing.
            .http_status_as_error(false)
            .build();
        Ok(Self {
            agent: config.into(),
            url,
            authorization: key.map(|key| format!("Bearer {key}")),
            patience: Patience::new(reward, options)?,
            timeout: options.timeout()?,
        })
    }

    /// What `read` makes of the body of the answer; else what went wrong last. From the first answer that `read`
    /// takes, failures that may pass are waited for longer.
    pub(super) fn post<T>(
        &self,
        body: &str,
        read: impl Fn(&str) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut tries = self.patience.tries();
        loop {
            let failure = match self.post_once(body) {
                Ok(answer) => {
                    let read = read(&answer)?;
                    self.patience.note_answer();
                    return Ok(read);
                }
                Err(failure) => failure,
            };
            if let Some(refusal) = failure.body.as_deref().and_then(protocol::refusal) {
                return Err(refusal);
            }
            let Some(asked) = failure.retry else {
                return Err(Refusal::whole(failure.reason));
            };
            if let Err(given_up) = tries.wait(asked, &failure.reason) {
                return Err(Refusal::whole(format!("{}, {given_up}", failure.reason)));
            }
        }
    }

    fn post_once(&self, body: &str) -> Result<String, Failure> {
        let passing = |error: ureq::Error| Failure {
            retry: may_pass(&error).then_some(Duration::ZERO),
            reason: match error {
                ureq::Error::Timeout(_) => {
                    let secs = self.timeout.as_secs_f64();
                    format!("no answer in {secs} s (--reward_timeout_secs)")
                }
                error => error.to_string(),
            },
            body: None,
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
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
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
            body: Some(text),
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
        let name = format!("{host}{}", parsed.path());
        Ok(Self {
            client: Client::new(&name, url.to_owned(), None, options)?,
            name,
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
        let request = protocol::request(id, rows).to_string();
        let scored = self
            .client
            .post(&request, |answer| protocol::scores(answer, id, rows.len()));
        scored.map_err(|refusal| {
            // What a server says of a row that it was not sent is said of the batch.
            let row = refusal.row.filter(|&row| row < rows.len());
            super::failed(&self.name, first, rows, Refusal { row, ..refusal }, "")
        })
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
