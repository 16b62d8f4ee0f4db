//! The flag by which a run is asked to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};

const RUNNING: u8 = 0;
const FINISH_STEP: u8 = 1;
const NOW: u8 = 2;

/// Whether a run should end. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<State>);

#[derive(Debug, Default)]
struct State {
    asked: AtomicU8,
    /// The signal that asked first; 0 where none did.
    signal: AtomicI32,
    /// Whether there is work that a stop may lose.
    begun: AtomicBool,
}

impl StopFlag {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the run to stop: the first time after the step and a checkpoint, the second time at once.
    pub fn raise(&self) {
        let next = |state: u8| Some((state + 1).min(NOW));
        // The closure always gives a state, so the update cannot fail.
        let _ = self.0.asked.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
    }

    /// As [`Self::raise`], because of a signal; the first one is remembered.
    pub fn raise_by(&self, signal: i32) {
        // Not the first: its signal stands.
        let _ = self.0.signal.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
        self.raise();
    }

    /// The first signal.
    pub fn signal(&self) -> Option<i32> {
        Some(self.0.signal.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }

    /// Marks that there is work to lose: before this, a stop may end the process on the spot.
    pub fn begin(&self) {
        self.0.begun.store(true, Ordering::SeqCst);
    }

    /// Whether [`Self::begin`] was called.
    pub fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::SeqCst)
    }

    /// Whether the run should end after this step.
    pub fn is_raised(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst) >= FINISH_STEP
    }

    /// Whether the run should end without finishing anything.
    pub fn is_now(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst) == NOW
    }

    /// Whether nobody has asked for a stop.
    pub fn is_running(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst) == RUNNING
    }
}
