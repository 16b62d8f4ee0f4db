//! Prefetching: threads run jobs ahead of need, and results come out in the order of the jobs.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::error::DataError;

/// An iterator over `work(job)` for each job, computed by worker threads at most `ahead` jobs before
/// the one that is asked for. A panic in `work` or in the jobs is an error at its place, never a
/// hang. Dropping it stops the workers after the job they are at.
#[derive(Debug)]
pub struct Prefetcher<R> {
    queue: Arc<Queue<R>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Queue<R> {
    state: Mutex<State<R>>,
    /// A result has come, or the jobs have ended.
    filled: Condvar,
    /// A result was taken, or all is over.
    drained: Condvar,
    ahead: u64,
}

#[derive(Debug)]
struct State<R> {
    /// Number of the next job to be handed out.
    next_job: u64,
    /// Number of the next result to be given out.
    next_result: u64,
    results: BTreeMap<u64, Result<R, DataError>>,
    /// No further job will be handed out.
    exhausted: bool,
}

impl<R> Queue<R> {
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Send + 'static> Prefetcher<R> {
    /// Starts `workers` threads (at least one).
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn new<J: Send + 'static>(
        jobs: impl Iterator<Item = J> + Send + 'static,
        workers: usize,
        ahead: usize,
        work: impl Fn(J) -> R + Send + Sync + 'static,
    ) -> Result<Self, DataError> {
        let queue = Arc::new(Queue {
            state: Mutex::new(State {
                next_job: 0,
                next_result: 0,
                results: BTreeMap::new(),
                exhausted: false,
            }),
            filled: Condvar::new(),
            drained: Condvar::new(),
            ahead: ahead.max(1) as u64,
        });
        let jobs = Arc::new(Mutex::new(jobs));
        let work = Arc::new(work);
        let mut prefetcher = Self { queue: Arc::clone(&queue), threads: Vec::new() };
        for index in 0..workers.max(1) {
            let (queue, jobs, work) = (Arc::clone(&queue), Arc::clone(&jobs), Arc::clone(&work));
            let thread = Builder::new()
                .name(format!("data-{index}"))
                .spawn(move || run_worker(&queue, &jobs, &*work))
                .map_err(|error| DataError::Worker { reason: error.to_string() })?;
            prefetcher.threads.push(thread);
        }
        Ok(prefetcher)
    }
}

impl<R> Iterator for Prefetcher<R> {
    type Item = Result<R, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut state = self.queue.lock();
        loop {
            let wanted = state.next_result;
            if let Some(result) = state.results.remove(&wanted) {
                state.next_result += 1;
                self.queue.drained.notify_all();
                return Some(result);
            }
            if state.exhausted && state.next_result == state.next_job {
                return None;
            }
            state = self.queue.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<R> Drop for Prefetcher<R> {
    fn drop(&mut self) {
        self.queue.lock().exhausted = true;
        self.queue.drained.notify_all();
        for thread in self.threads.drain(..) {
            // A worker catches the panics of its jobs; any other cannot be reported.
            let _ = thread.join();
        }
    }
}

fn run_worker<J, R>(
    queue: &Queue<R>,
    jobs: &Mutex<impl Iterator<Item = J>>,
    work: &(impl Fn(J) -> R + ?Sized),
) {
    while let Some((number, job)) = take_job(queue, jobs) {
        let result = job.and_then(|job| guarded(|| work(job)));
        queue.lock().results.insert(number, result);
        queue.filled.notify_all();
    }
}

/// The next job and its number, once the queue has room for its result. A panic of the jobs'
/// iterator takes the place of the job and is the last one.
fn take_job<J, R>(
    queue: &Queue<R>,
    jobs: &Mutex<impl Iterator<Item = J>>,
) -> Option<(u64, Result<J, DataError>)> {
    // Held while waiting for room, so that jobs are numbered in the order they come.
    let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
    let mut state = queue.lock();
    while !state.exhausted && state.next_job >= state.next_result + queue.ahead {
        state = queue.drained.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    if state.exhausted {
        return None;
    }
    drop(state);
    let job = guarded(|| jobs.next()).transpose();
    let mut state = queue.lock();
    if !matches!(job, Some(Ok(_))) {
        state.exhausted = true;
        queue.filled.notify_all();
    }
    let job = job?;
    state.next_job += 1;
    Some((state.next_job - 1, job))
}

/// Runs `f`; a panic becomes an error with the panic's message.
fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, DataError> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        let reason = format!("panicked: {}", text.unwrap_or_else(|| "no message".to_owned()));
        DataError::Worker { reason }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn values<R>(prefetcher: Prefetcher<R>) -> Vec<Result<R, String>> {
        prefetcher.map(|result| result.map_err(|e| e.to_string())).collect()
    }

    #[test]
    fn results_come_in_order() {
        let work = |n: u64| {
            std::thread::sleep(Duration::from_micros(n * 7919 % 300));
            n * n
        };
        for (workers, ahead) in [(1, 1), (4, 1), (4, 3), (3, 100), (0, 0)] {
            let all = Prefetcher::new(0..100, workers, ahead, work).expect("threads");
            let all: Vec<u64> = all.map(|r| r.expect("no panic")).collect();
            assert!(all.into_iter().eq((0..100).map(|n| n * n)), "{workers} {ahead}");
        }
    }

    #[test]
    fn a_panic_is_an_error_at_its_place() {
        let all = values(
            Prefetcher::new(0..5, 2, 2, |n| {
                assert!(n != 2, "job {n} is broken");
                n
            })
            .expect("threads"),
        );
        let broken = "data worker: panicked: job 2 is broken".to_owned();
        assert_eq!(all, [Ok(0), Ok(1), Err(broken), Ok(3), Ok(4)]);
    }

    #[test]
    fn a_panic_of_the_jobs_ends_them() {
        let jobs = (0..5).inspect(|n| assert!(*n != 2, "no job {n}"));
        let all = values(Prefetcher::new(jobs, 3, 2, |n| n).expect("threads"));
        assert_eq!(all, [Ok(0), Ok(1), Err("data worker: panicked: no job 2".to_owned())]);
    }

    #[test]
    fn no_more_than_ahead_is_computed_and_dropping_stops() {
        let started = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&started);
        let mut all = Prefetcher::new(0.., 3, 4, move |n: usize| {
            counter.fetch_add(1, Ordering::SeqCst);
            n
        })
        .expect("threads");
        assert_eq!(all.next().and_then(Result::ok), Some(0));
        // Results 1 to 4 come to wait; the fifth may not be begun.
        while started.load(Ordering::SeqCst) < 5 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(started.load(Ordering::SeqCst), 5);
        drop(all);
        assert_eq!(started.load(Ordering::SeqCst), 5);
        assert_eq!(Arc::strong_count(&started), 1);
    }
}
