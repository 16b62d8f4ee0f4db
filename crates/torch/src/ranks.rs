//! Ranks that compute together: a store where they meet, and collectives over tensors and bytes.
//!
//! It is libtorch's c10d: `TCPStore`, Gloo on CPUs, and NCCL on GPUs. A [`Group`] waits for a collective before it returns, and looks at its [`Interrupt`]
//! while it waits, so that a rank need not wait for one that has failed. Where ranks are found and what is done about faults is left to `ranks`.

mod c10d;
mod group;
mod nccl;
mod store;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

pub use group::Group;
pub use store::Store;

unsafe extern "C" {
    fn _exit(code: std::ffi::c_int) -> !;
}

/// Ends the process at once. After an error collectives may still be under way in libtorch's threads, and an ordinary end would wait for them.
pub fn leave(code: i32) -> ! {
    // Rust keeps a part of a line; what libtorch has is on stderr, which is not kept.
    let _ = std::io::stdout().flush();
    // SAFETY: it does not return, and nothing of this process runs after it.
    unsafe { _exit(code) }
}

/// Why a collective that waits should give up: that another rank has failed, for example. It is asked five times a second by the thread
/// that waits, so it must return at once.
pub type Interrupt = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// How tensors travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Tensors of the CPU, over TCP.
    Gloo,
    /// Tensors of a GPU.
    Nccl {
        /// Its index.
        card: usize,
    },
}

/// What a group is made of.
#[derive(Clone, Debug)]
pub struct GroupOptions {
    /// This rank, from 0.
    pub rank: usize,
    /// How many ranks the group has.
    pub size: usize,
    /// How its tensors travel.
    pub transport: Transport,
    /// The address of this host at which other ranks reach it; none: ranks of this host alone.
    pub address: Option<String>,
    /// How long a collective waits for other ranks.
    pub limit: Duration,
    /// Before each collective ranks tell each other which it is, and refuse where they differ. Without, that hangs or ends the process.
    pub checks: bool,
}

/// Why ranks cannot go on together.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RankError {
    /// The interrupt spoke.
    #[error("{operation}: gave up waiting: {cause}")]
    Interrupted {
        /// What was waited for.
        operation: String,
        /// What the interrupt said.
        cause: String,
    },
    /// Other ranks did not come in time.
    #[error("{operation}: waited {secs:.1} s for other ranks")]
    TimedOut {
        /// What was waited for.
        operation: String,
        /// How long.
        secs: f64,
    },
    /// A connection that broke or could not be made.
    #[error("{operation}: {cause}")]
    Connection {
        /// What was under way.
        operation: String,
        /// libtorch's words.
        cause: String,
    },
    /// Ranks at different collectives: this is our bug.
    #[error(
        "rank {rank} is at `{operation}`, rank {other} at `{theirs}`; expected the same on all ranks"
    )]
    Mismatch {
        /// A rank.
        rank: usize,
        /// Its collective.
        operation: String,
        /// A rank at another one.
        other: usize,
        /// Which.
        theirs: String,
    },
    /// What cannot be done with such inputs; nothing was sent.
    #[error("{operation}: {cause}")]
    Refused {
        /// What was asked for.
        operation: String,
        /// Why not.
        cause: String,
    },
}

/// The collectives of one kind so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// How many.
    pub operations: u64,
    /// The bytes of their tensors on this rank.
    pub bytes: u64,
    /// The time in them, waiting for slower ranks included.
    pub secs: f64,
}

/// The collectives of a group so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Sums and maxima.
    pub all_reduce: Count,
    /// Sums of which each rank keeps its part.
    pub reduce_scatter: Count,
    /// Parts of all ranks.
    pub all_gather: Count,
    /// Tensors of one rank.
    pub broadcast: Count,
    /// Bytes of all ranks.
    pub exchange: Count,
}
