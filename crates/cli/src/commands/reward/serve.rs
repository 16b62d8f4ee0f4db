//! `reward --serve`: the rewards of the command, asked over HTTP.

use std::path::Path;

use anyhow::{Context, Result};
use base::run_folder::StopFlag;
use config::RewardConfig;
use reward_server::{AskedRow, Failure, Score};
use rewards::RewardError;
use serde_json::{Value, json};
use web::{Access, Key, Limits, Server, WebError};

use super::scorer::{self, Scored, Scorer};
use crate::program::message;
use crate::rows::Row;

/// Names the key where no file does.
const KEY_VARIABLE: &str = "VLM_R1_API_KEY";

/// Serves until a signal comes.
///
/// # Errors
/// Where the address cannot be had, or may not be without a key.
pub fn serve(config: &RewardConfig, address: &str, scorer: Scorer, stop: &StopFlag) -> Result<()> {
    let key = Key::find(config.server.api_key_file.as_deref().map(Path::new), KEY_VARIABLE)?;
    let access = Access::new(key, &config.server.allowed_hosts, config.server.allow_no_key)?;
    let limits = Limits {
        // A request takes as long as the rewards: there is little to win by a second one.
        requests_of_connection: 1,
        ..Limits::default()
    };
    let server = match Server::bind(address, access, limits) {
        Err(error @ WebError::Bind { .. }) => {
            let what = format!("--serve {address}: expected a free HOST:PORT");
            return Err(error).context(what);
        }
        bound => bound?,
    };
    Ok(server.run(reward_server::router(scorer, config.shown.explain), stop)?)
}

impl Score for Scorer {
    fn names(&self) -> Vec<String> {
        Self::names(self)
    }

    fn totals(&self, rows: Vec<AskedRow>) -> Result<Vec<Value>, Failure> {
        let rows = named(rows);
        let scored = self.score(&rows, false).map_err(failure)?;
        Ok((0..rows.len()).map(|row| total(&scored, row)).collect())
    }

    fn written(&self, rows: Vec<AskedRow>, explain: bool) -> Result<Vec<Value>, Failure> {
        let rows = named(rows);
        let scored = self.score(&rows, explain).map_err(failure)?;
        let rows = rows.into_iter().enumerate();
        Ok(rows.map(|(index, row)| self.output(row, index, &scored)).collect())
    }
}

fn named(rows: Vec<AskedRow>) -> Vec<Row> {
    let rows = rows.into_iter().enumerate();
    let named = rows.map(|(index, AskedRow { columns, lost })| Row {
        place: format!("row {index}"),
        columns,
        lost,
    });
    named.collect()
}

fn failure(scorer::Failure { row, error }: scorer::Failure) -> Failure {
    let is_of_reward = matches!(
        error.downcast_ref(),
        Some(RewardError::Plugin { .. } | RewardError::JudgeFailed { .. })
    );
    Failure { row, is_of_reward, error: message(&error) }
}

/// The weighted sum; none where no reward applies.
fn total(scored: &Scored, row: usize) -> Value {
    let mut each = scored.scores.per_reward.iter();
    match each.any(|scores| scores[row].is_some()) {
        true => json!(scored.scores.total[row]),
        false => Value::Null,
    }
}
