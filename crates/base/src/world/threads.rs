//! Ranks in threads of one process: tests try with them what several processes will do.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{World, WorldError};

/// A rank of several in this process. One that is dropped while others wait for it gives them an error.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: Duration,
    state: Mutex<State>,
    /// A round is over, or there is an error.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Exchanges that are over.
    round: u64,
    /// What came so far of the next one, by rank.
    arrived: Vec<Option<Vec<u8>>>,
    /// Of the last one.
    result: Vec<Vec<u8>>,
    gone: Vec<bool>,
    error: Option<WorldError>,
}

impl Threads {
    /// So many ranks; each waits at most `limit` for the others.
    pub fn new(size: usize, limit: Duration) -> Vec<Self> {
        let state = State {
            round: 0,
            arrived: vec![None; size],
            result: Vec::new(),
            gone: vec![false; size],
            error: None,
        };
        let shared = Shared { limit, state: Mutex::new(state), changed: Condvar::new() };
        let shared = Arc::new(shared);
        (0..size).map(|rank| Self { rank, shared: Arc::clone(&shared) }).collect()
    }

    /// Runs `work` as each of so many ranks at the same time; returns their results by rank.
    ///
    /// # Panics
    /// If one panics, when all have ended.
    pub fn run<R: Send>(
        size: usize,
        limit: Duration,
        work: impl Fn(Threads) -> R + Sync,
    ) -> Vec<R> {
        let work = &work;
        thread::scope(|scope| {
            let ranks = Self::new(size, limit).into_iter();
            let handles: Vec<_> = ranks.map(|rank| scope.spawn(move || work(rank))).collect();
            let result = |handle: thread::ScopedJoinHandle<'_, R>| {
                handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            handles.into_iter().map(result).collect()
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A rank that panics holds no half-written state.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_error(&self, state: &mut State, error: WorldError) -> WorldError {
        self.shared.changed.notify_all();
        state.error.get_or_insert(error).clone()
    }
}

impl World for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.state().arrived.len()
    }

    fn exchange(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, WorldError> {
        let mut state = self.state();
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        if let Some(rank) = state.gone.iter().position(|is_gone| *is_gone) {
            return Err(self.set_error(&mut state, WorldError::Gone { rank }));
        }
        let round = state.round;
        state.arrived[self.rank] = Some(bytes);
        if state.arrived.iter().all(Option::is_some) {
            state.result = state.arrived.iter_mut().filter_map(Option::take).collect();
            state.round += 1;
            self.shared.changed.notify_all();
            return Ok(state.result.clone());
        }
        let deadline = Instant::now() + self.shared.limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            // The next round cannot end without this rank.
            if state.round > round {
                return Ok(state.result.clone());
            }
            if let Some(error) = &state.error {
                return Err(error.clone());
            }
            if Instant::now() >= deadline {
                let late = |(rank, of): (usize, &Option<_>)| of.is_none().then_some(rank);
                let missing = state.arrived.iter().enumerate().filter_map(late).collect();
                let error = WorldError::TimedOut { missing, limit: self.shared.limit };
                return Err(self.set_error(&mut state, error));
            }
        }
    }

    fn fail(&self, cause: &str) {
        let error = WorldError::Failed { rank: self.rank, cause: cause.to_owned() };
        self.set_error(&mut self.state(), error);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let mut state = self.state();
        state.gone[self.rank] = true;
        if state.arrived.iter().any(Option::is_some) {
            self.set_error(&mut state, WorldError::Gone { rank: self.rank });
        }
    }
}
