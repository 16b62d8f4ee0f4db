//! What ranks tell each other beside the run: where each is, and the first thing that went wrong.

use std::time::{Duration, Instant};

use base::world::WorldError;
use serde::{Deserialize, Serialize};

/// Where a rank is. Times are as of when it is sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Step, phase, sample.
    pub at: String,
    /// Since when, in seconds.
    pub at_secs: f64,
    /// What it waits for, if it does.
    pub waits_for: Option<String>,
    /// Since when, in seconds.
    pub waits_secs: f64,
}

/// Why a run cannot go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fault {
    /// A rank that said why.
    Failed { rank: usize, host: String, at: String, cause: String },
    /// A rank that is gone without a word.
    Ended { rank: usize, host: String, at: String },
    /// Ranks for which others waited in vain; none where all wait for each other.
    Late { missing: Vec<usize>, limit_secs: f64, places: Vec<String> },
}

/// A line between a rank and rank 0.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Its first: who it is, and what only ranks of this run know.
    Hello { rank: usize, key: String },
    /// Where it is; both directions.
    At(Status),
    /// Both directions.
    Fault(Fault),
    /// It has waited too long.
    Late { limit_secs: f64 },
    /// It is done.
    Bye,
    /// All are done.
    End,
}

impl Fault {
    pub fn into_error(self) -> WorldError {
        match self {
            Fault::Failed { rank, host, at, cause } => {
                WorldError::Failed { rank, cause: format!("{}: {cause}", on_host(&host, &at)) }
            }
            Fault::Ended { rank, host, at } => {
                WorldError::Ended { rank, place: on_host(&host, &at) }
            }
            Fault::Late { missing, limit_secs, .. } => {
                let limit = Duration::try_from_secs_f64(limit_secs).unwrap_or(Duration::MAX);
                WorldError::TimedOut { missing, limit }
            }
        }
    }
}

/// `host b, step 12, rollout`
fn on_host(host: &str, at: &str) -> String {
    if at.is_empty() { format!("host {host}") } else { format!("host {host}, {at}") }
}

/// What rank 0 knows of a rank.
#[derive(Clone, Debug)]
pub struct Known {
    pub status: Status,
    pub heard: Instant,
}

/// A rank that says nothing for so long is stopped, or its host cannot be reached: each says something every second.
const SILENCE: Duration = Duration::from_secs(5);

impl Known {
    /// Whether others wait for it.
    pub fn is_late(&self, now: Instant) -> bool {
        self.status.waits_for.is_none() || now - self.heard > SILENCE
    }

    /// `rank 3 (host b): step 12, rollout, train.jsonl:42, for 1803 s`
    pub fn line(&self, rank: usize, host: &str, now: Instant) -> String {
        let Status { at, at_secs, waits_for, waits_secs } = &self.status;
        let silent = now - self.heard;
        let place = if at.is_empty() { "the start" } else { at };
        let since = |secs: f64| (secs + silent.as_secs_f64()).round();
        let does = if silent > SILENCE {
            let silent = silent.as_secs_f64().round();
            format!("not heard of for {silent} s; it was at {place}")
        } else if let Some(operation) = waits_for {
            format!("{place}; waits for {} s ({operation})", since(*waits_secs))
        } else {
            format!("{place}, for {} s", since(*at_secs))
        };
        format!("rank {rank} (host {host}): {does}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(at: &str, waits_for: Option<&str>, silent: u64) -> (Known, Instant) {
        let waits_for = waits_for.map(str::to_owned);
        let status = Status { at: at.to_owned(), at_secs: 7.2, waits_for, waits_secs: 3.0 };
        let heard = Instant::now();
        (Known { status, heard }, heard + Duration::from_secs(silent))
    }

    #[test]
    fn a_place_says_who_waits_and_who_is_late() {
        let (working, now) = known("step 12, rollout, train.jsonl:42", None, 1);
        assert!(working.is_late(now));
        assert_eq!(
            working.line(3, "b", now),
            "rank 3 (host b): step 12, rollout, train.jsonl:42, for 8 s"
        );
        let (waiting, now) = known("step 12, update", Some("stop of step 12"), 0);
        assert!(!waiting.is_late(now));
        assert_eq!(
            waiting.line(0, "a", now),
            "rank 0 (host a): step 12, update; waits for 3 s (stop of step 12)"
        );
        let (silent, now) = known("", Some("stop of step 12"), 60);
        assert!(silent.is_late(now));
        assert_eq!(
            silent.line(1, "a", now),
            "rank 1 (host a): not heard of for 60 s; it was at the start"
        );
    }

    #[test]
    fn a_fault_names_host_and_place() {
        let (rank, host, at) = (3, "b".to_owned(), "step 12, rollout".to_owned());
        let failed =
            Fault::Failed { rank, host: host.clone(), at: at.clone(), cause: "no memory".into() };
        let text = serde_json::to_string(&failed).unwrap();
        assert_eq!(serde_json::from_str::<Fault>(&text).unwrap(), failed);
        assert_eq!(
            failed.into_error().to_string(),
            "rank 3 failed: host b, step 12, rollout: no memory"
        );
        let ended = Fault::Ended { rank, host, at }.into_error().to_string();
        assert!(ended.starts_with("rank 3 (host b, step 12, rollout) ended\nhint: "), "{ended}");
        let late = Fault::Late { missing: vec![1, 3], limit_secs: 1800.0, places: Vec::new() };
        assert_eq!(late.into_error().to_string(), "waited 1800 s for ranks 1, 3");
    }
}
