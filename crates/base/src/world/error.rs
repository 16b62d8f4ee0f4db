//! Why ranks cannot go on together.

use std::time::Duration;

/// Why ranks cannot go on together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorldError {
    /// A rank that ended by an error.
    #[error("rank {rank} failed: {cause}")]
    Failed {
        /// The rank.
        rank: usize,
        /// What it said.
        cause: String,
    },
    /// A rank that is gone, and did not say why.
    #[error("rank {rank} ended while others wait for it\nhint: the last lines of its log say why")]
    Gone {
        /// The rank.
        rank: usize,
    },
    /// The process of a rank that is gone, and did not say why.
    #[error(
        "rank {rank} ({place}) ended\nhint: the last lines of its log say why; a process that vanishes without any was killed, often for lack of memory"
    )]
    Ended {
        /// The rank.
        rank: usize,
        /// Its host, and where it was in the run.
        place: String,
    },
    /// Ranks that cannot hear each other.
    #[error("connection of ranks: {cause}")]
    Connection {
        /// What was under way, and what is wrong.
        cause: String,
    },
    /// Ranks that did not come in time; none where all wait, each for another thing.
    #[error("waited {} s for {}", limit.as_secs_f64(), ranks_in_words(missing))]
    TimedOut {
        /// Those that did not come.
        missing: Vec<usize>,
        /// How long it was waited.
        limit: Duration,
    },
    /// Ranks at different operations: this is our bug.
    #[error("rank {rank} is at `{operation}`, rank {other} at `{theirs}`; expected the same")]
    Parted {
        /// This rank.
        rank: usize,
        /// Where it is.
        operation: String,
        /// The other rank.
        other: usize,
        /// Where that is.
        theirs: String,
    },
    /// Ranks that give different counts of numbers.
    #[error(
        "`{operation}`: rank 0 gave {expected} numbers, rank {rank} gave {got}; expected as many"
    )]
    Counts {
        /// What for.
        operation: String,
        /// Of rank 0.
        expected: usize,
        /// The other rank.
        rank: usize,
        /// Its count.
        got: usize,
    },
    /// A message that is not as it was sent.
    #[error("rank {rank}: a message of {bytes} bytes that cannot be read")]
    Message {
        /// The sender.
        rank: usize,
        /// Its length.
        bytes: usize,
    },
}

/// `rank 1`, `ranks 1, 3`
fn ranks_in_words(ranks: &[usize]) -> String {
    if ranks.is_empty() {
        return "ranks that wait for each other, at different operations".to_owned();
    }
    let numbers: Vec<String> = ranks.iter().map(ToString::to_string).collect();
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{word} {}", numbers.join(", "))
}
