//! The ranks of a run as [`World`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base::world::{World, WorldError, operation_of};
use torch::ranks::{Group, RankError};

use crate::error::{JoinError, in_words};
use crate::error_file;
use crate::fault::Fault;
use crate::monitor::Monitor;
use crate::shared::Shared;

/// How long a broken connection may wait for the word of which rank broke it.
const NEWS: Duration = Duration::from_secs(3);

/// Ranks that are processes.
pub struct Processes {
    control: Group,
    shared: Arc<Shared>,
    monitor: Monitor,
    limit: Duration,
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processes")
            .field("control", &self.control)
            .field("hosts", &self.shared.hosts)
            .finish_non_exhaustive()
    }
}

impl Processes {
    pub(crate) fn new(
        control: Group,
        shared: Arc<Shared>,
        monitor: Monitor,
        limit: Duration,
    ) -> Self {
        Self { control, shared, monitor, limit }
    }

    /// The first fault that this rank has heard of; nothing is sent. Long work that waits for nobody may ask it now and then.
    pub fn fault(&self) -> Option<WorldError> {
        self.shared.fault().map(Fault::into_error)
    }

    /// Compares facts, each a name and a value, that must be the same on all ranks. All ranks get the same answer.
    ///
    /// # Errors
    /// Facts that differ, with who has which value; those of [`World::gather`].
    pub fn agree(&self, facts: &[(&str, String)]) -> Result<(), JoinError> {
        let own = serde_json::to_vec(facts).map_err(|error| WorldError::Connection {
            cause: format!("facts of this rank: {error}"),
        })?;
        let mut all: Vec<BTreeMap<String, String>> = Vec::with_capacity(self.size());
        for (rank, bytes) in self.gather("handshake", &own)?.iter().enumerate() {
            let read: Result<Vec<(String, String)>, _> = serde_json::from_slice(bytes);
            let facts = read.map_err(|_| WorldError::Message { rank, bytes: bytes.len() })?;
            all.push(facts.into_iter().collect());
        }
        let differences = differences(&all, &self.shared.hosts);
        if differences.is_empty() { Ok(()) } else { Err(JoinError::Differ { differences }) }
    }

    /// What an error of the groups of this run means: a rank that failed or ended is named. May wait some seconds for that.
    pub fn explain(&self, error: &RankError) -> WorldError {
        explain(error, &self.shared, &self.monitor, self.limit)
    }

    /// Ends an orderly run: returns when all ranks are done. Call it before groups are dropped; rank 0 returns last, since it may serve what the
    /// others still need.
    ///
    /// # Errors
    /// Where another rank failed, ended or did not come in time.
    pub fn finish(&self) -> Result<(), WorldError> {
        self.barrier("the end of the run")?;
        self.monitor.finish(&self.shared, self.limit);
        self.fault().map_or(Ok(()), Err)
    }
}

impl World for Processes {
    fn rank(&self) -> usize {
        self.control.rank()
    }

    fn size(&self) -> usize {
        self.control.size()
    }

    fn exchange(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, WorldError> {
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        self.shared.begin_wait(operation_of(&bytes).unwrap_or("bytes of all ranks"));
        let all = self.control.exchange(bytes);
        let all = all.map_err(|error| self.explain(&error));
        self.shared.end_wait();
        all
    }

    fn at(&self, place: &str) {
        self.shared.set_place(place);
    }

    /// Others hear of the first failure alone. `torchrun` finds `cause` in its error file.
    fn fail(&self, cause: &str) {
        let rank = self.shared.rank;
        let fault = Fault::Failed {
            rank,
            host: self.shared.host(rank).to_owned(),
            at: self.shared.status().at,
            cause: cause.to_owned(),
        };
        let is_first = self.monitor.declare(&self.shared, fault);
        error_file::write(cause, is_first);
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.monitor.close(&self.shared);
    }
}

pub(crate) fn explain(
    error: &RankError,
    shared: &Shared,
    monitor: &Monitor,
    limit: Duration,
) -> WorldError {
    let fault = match error {
        RankError::Interrupted { .. } => shared.fault(),
        RankError::TimedOut { .. } => monitor.late(shared, limit),
        RankError::Connection { .. } => shared.wait_for_fault(NEWS),
        RankError::Mismatch { rank, operation, other, theirs } => {
            return WorldError::Parted {
                rank: *rank,
                operation: operation.clone(),
                other: *other,
                theirs: theirs.clone(),
            };
        }
        RankError::Refused { .. } => None,
    };
    match fault {
        Some(fault) => fault.into_error(),
        None => WorldError::Connection { cause: error.to_string() },
    }
}

/// ``libtorch: `2.11.0` on ranks 0-3 (host a), `2.11.0+cu130` on rank 4 (host b)``
fn differences(all: &[BTreeMap<String, String>], hosts: &[String]) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    let mut lines = Vec::new();
    for name in names {
        let mut values: Vec<(Option<&String>, Vec<usize>)> = Vec::new();
        for (rank, facts) in all.iter().enumerate() {
            let value = facts.get(name);
            match values.iter_mut().find(|(known, _)| *known == value) {
                Some((_, ranks)) => ranks.push(rank),
                None => values.push((value, vec![rank])),
            }
        }
        if values.len() > 1 {
            let shown: Vec<String> = values
                .iter()
                .map(|(value, ranks)| {
                    let value = value.map_or("nothing".to_owned(), |value| format!("`{value}`"));
                    format!("{value} on {}", ranks_on_hosts(ranks, hosts))
                })
                .collect();
            lines.push(format!("  {name}: {}", shown.join(", ")));
        }
    }
    lines
}

/// `ranks 0-3 (host a)`
fn ranks_on_hosts(ranks: &[usize], hosts: &[String]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for host in ranks.iter().filter_map(|rank| hosts.get(*rank)) {
        if !names.contains(&&**host) {
            names.push(host);
        }
    }
    let ranks_word = if ranks.len() == 1 { "rank" } else { "ranks" };
    let hosts_word = if names.len() == 1 { "host" } else { "hosts" };
    format!("{ranks_word} {} ({hosts_word} {})", in_words(ranks), names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_with_who_has_which_value() {
        let facts = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let hosts = ["a", "a", "b", "b"].map(str::to_owned);
        let same: BTreeMap<String, String> = facts(&[("threads", "4"), ("libtorch", "2.11.0")]);
        let other = facts(&[("threads", "4"), ("libtorch", "2.11.0+cu130")]);
        let less = facts(&[("libtorch", "2.11.0")]);
        assert!(differences(&vec![same.clone(); 4], &hosts).is_empty());
        let all = [same.clone(), same, other, less];
        assert_eq!(
            differences(&all, &hosts),
            [
                "  libtorch: `2.11.0` on ranks 0, 1, 3 (hosts a, b), `2.11.0+cu130` on rank 2 (host b)",
                "  threads: `4` on ranks 0-2 (hosts a, b), nothing on rank 3 (host b)",
            ]
        );
    }
}
