//! Being asked to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const RUNNING: u8 = 0;
const FINISH_STEP: u8 = 1;
const NOW: u8 = 2;

/// Says whether a run should end; all clones are one flag.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicU8>);

impl StopFlag {
    /// A flag that says nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the end: once, after the step and a checkpoint; twice, at once.
    pub fn raise(&self) {
        let next = |state: u8| Some((state + 1).min(NOW));
        // The closure always gives a state, so the update cannot fail.
        let _ = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
    }

    /// Whether the run should end after this step.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst) >= FINISH_STEP
    }

    /// Whether the run should end without finishing anything.
    pub fn is_now(&self) -> bool {
        self.0.load(Ordering::SeqCst) == NOW
    }

    /// Whether nobody has asked for the end.
    pub fn is_running(&self) -> bool {
        self.0.load(Ordering::SeqCst) == RUNNING
    }
}
