//! Why ranks do not come together.

use std::io;
use std::time::Duration;

use base::world::WorldError;
use torch::ranks::RankError;

/// Why ranks do not come together.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No way to the host of rank 0.
    #[error(
        "MASTER_ADDR `{address}`: {source}\nhint: expected a name or an address of rank 0's host that this host knows"
    )]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The store where ranks meet cannot be served or reached.
    #[error("{error}\nhint: {hint}")]
    Store {
        /// What is wrong.
        error: RankError,
        /// What to do.
        hint: &'static str,
    },
    /// Ranks that did not come.
    #[error(
        "waited {} s for {} of {size} ranks: {}\nhint: their logs say why they did not start; --ddp_timeout gives them more time",
        limit.as_secs_f64(), missing.len(), in_words(missing)
    )]
    Missing {
        /// Which.
        missing: Vec<usize>,
        /// Of how many.
        size: usize,
        /// How long they were waited for.
        limit: Duration,
    },
    /// Two processes that claim the same rank.
    #[error(
        "another process is rank {rank} already\nhint: is an earlier run still there? Each process needs a RANK of its own, each run a MASTER_PORT of its own"
    )]
    Taken {
        /// The rank.
        rank: usize,
    },
    /// Two ranks that would use the same card.
    #[error(
        "ranks {first} and {second} of host {host} both have local rank {local_rank}\nhint: set LOCAL_RANK and LOCAL_WORLD_SIZE, as `vlm-r1 launch` and `torchrun` do"
    )]
    SharedLocalRank {
        /// Their host.
        host: String,
        /// A rank.
        first: usize,
        /// Another one.
        second: usize,
        /// What both have.
        local_rank: usize,
    },
    /// Ranks that are not of one run.
    #[error("ranks differ\n{}\nhint: all ranks need the same program, libtorch, settings and data", differences.join("\n"))]
    Differ {
        /// A line for each fact: its name, values and who has them.
        differences: Vec<String>,
    },
    /// The connection to rank 0.
    #[error("rank 0 at {address}: {source}")]
    Monitor {
        /// Where it listens.
        address: String,
        /// What is wrong.
        source: io::Error,
    },
    /// What libtorch says, as long as ranks cannot tell each other more.
    #[error(transparent)]
    Ranks(#[from] RankError),
    /// A rank that failed or ended.
    #[error(transparent)]
    World(#[from] WorldError),
}

/// `2, 3, 7-9`
pub(crate) fn in_words(ranks: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &rank in ranks {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == rank => *end = rank,
            _ => runs.push((rank, rank)),
        }
    }
    let words: Vec<String> = runs
        .into_iter()
        .map(|(start, end)| match end - start {
            0 => start.to_string(),
            1 => format!("{start}, {end}"),
            _ => format!("{start}-{end}"),
        })
        .collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn ranks_in_a_row_are_a_range() {
        assert_eq!(super::in_words(&[0]), "0");
        assert_eq!(super::in_words(&[0, 1, 3, 5, 6, 7]), "0, 1, 3, 5-7");
    }
}
