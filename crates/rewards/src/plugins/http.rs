//! Rewards over HTTP.

use std::sync::atomic::{AtomicU64, Ordering};

use config::RewardBatch;

use super::PluginOptions;
use super::client::{self, Client};
use super::protocol::{self, Refusal};
use crate::error::RewardError;
use crate::registry::{Reward, RewardInput};

/// Longest response that is read, bytes; parsing takes a few times as much memory.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// A reward that a server computes; its name is the address without scheme and query.
pub(super) struct HttpReward {
    name: String,
    client: Client,
    requests: usize,
    batch: RewardBatch,
    next_id: AtomicU64,
}

impl HttpReward {
    /// Sends nothing yet: the server may start after the training.
    pub(super) fn new(url: &str, options: &PluginOptions) -> Result<Self, RewardError> {
        let (host, parsed) = client::host(url)
            .map_err(|reason| RewardError::PluginName { name: client::shown(url), reason })?;
        let name = format!("{host}{}", parsed.path());
        let key = options.api_key()?;
        Ok(Self {
            client: Client::new(
                &name,
                url.to_owned(),
                key.as_ref().map(|key| key.0.as_str()),
                MAX_ANSWER_BYTES,
                options,
            )?,
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
        let scored = self.client.post(&request, |answer| protocol::scores(answer, id, rows.len()));
        scored.map_err(|refusal| {
            // A row index outside the request is dropped: the error is that of the batch.
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
        super::in_parts(rows, self.requests, |_, first, rows| self.score_part(first, rows))
    }
}
