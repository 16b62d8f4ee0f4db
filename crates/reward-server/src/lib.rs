//! Rewards over HTTP: the protocol by which a run asks for rewards that live elsewhere, and rows scored as the command
//! `reward` scores them. What callers may take is bounded by [`web`]; what rows mean is known to whoever implements
//! [`Score`].

mod routes;
mod service;

use axum::Router;
use python::json::Lost;
use serde_json::{Map, Value};

/// A row as a caller sent it.
#[derive(Debug)]
pub struct AskedRow {
    /// What stands there.
    pub columns: Map<String, Value>,
    /// What of it JSON does not have.
    pub lost: Vec<Lost>,
}

/// Why rows have no scores.
#[derive(Debug)]
pub struct Failure {
    /// The row at fault, counted from 0, where one is.
    pub row: Option<usize>,
    /// Whether a reward of the user's own did not answer, which is no fault of the caller.
    pub is_of_reward: bool,
    /// What happened, in words.
    pub error: String,
}

/// Scores rows.
pub trait Score: Send + Sync {
    /// Names of the rewards.
    fn names(&self) -> Vec<String>;

    /// The weighted sum of each row; null where no reward applies.
    ///
    /// # Errors
    /// Where a row cannot be read or scored.
    fn totals(&self, rows: Vec<AskedRow>) -> Result<Vec<Value>, Failure>;

    /// Each row with its scores and, where asked, why it has them.
    ///
    /// # Errors
    /// As [`Score::totals`].
    fn written(&self, rows: Vec<AskedRow>, explain: bool) -> Result<Vec<Value>, Failure>;
}

/// Scores by `scorer`; rows are explained where `explain` says so and the request does not say otherwise.
pub fn router(scorer: impl Score + 'static, explain: bool) -> Router {
    routes::router(service::Service::new(Box::new(scorer), explain))
}
