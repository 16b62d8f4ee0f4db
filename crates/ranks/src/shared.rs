//! What the threads of one rank share: where it is, and the first fault it heard of.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::fault::{Fault, Status};

/// Of one rank.
#[derive(Debug)]
pub struct Shared {
    pub rank: usize,
    /// The host of each rank.
    pub hosts: Vec<String>,
    own: Mutex<Own>,
    news: Mutex<News>,
    changed: Condvar,
}

#[derive(Debug)]
struct Own {
    at: String,
    at_since: Instant,
    /// A wait that was announced.
    waits_for: Option<(String, Instant)>,
    /// A wait that asked whether to give up: since when, and when last.
    asked: Option<(Instant, Instant)>,
}

#[derive(Debug, Default)]
struct News {
    fault: Option<Fault>,
    /// All are done: who leaves now is not missed.
    is_over: bool,
    /// This rank does not listen any more.
    is_closed: bool,
}

/// A wait asks five times a second.
const ASKING: Duration = Duration::from_secs(1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panics leaves no half-written state.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(rank: usize, hosts: Vec<String>) -> Self {
        let own = Own { at: String::new(), at_since: Instant::now(), waits_for: None, asked: None };
        let (own, news) = (Mutex::new(own), Mutex::default());
        Self { rank, hosts, own, news, changed: Condvar::new() }
    }

    pub fn host(&self, rank: usize) -> &str {
        self.hosts.get(rank).map_or("?", |host| host)
    }

    pub fn set_place(&self, at: &str) {
        let mut own = lock(&self.own);
        if own.at != at {
            at.clone_into(&mut own.at);
            own.at_since = Instant::now();
        }
    }

    pub fn begin_wait(&self, operation: &str) {
        lock(&self.own).waits_for = Some((operation.to_owned(), Instant::now()));
    }

    pub fn end_wait(&self) {
        lock(&self.own).waits_for = None;
    }

    /// For a wait that goes on: why it should end.
    pub fn ask(&self) -> Option<String> {
        let now = Instant::now();
        let mut own = lock(&self.own);
        let since = own.asked.filter(|(_, last)| now - *last < ASKING).map_or(now, |asked| asked.0);
        own.asked = Some((since, now));
        drop(own);
        self.fault().map(|fault| fault.into_error().to_string())
    }

    pub fn status(&self) -> Status {
        let now = Instant::now();
        let own = lock(&self.own);
        let asked = own.asked.filter(|(_, last)| now - *last < ASKING);
        let waits = match (&own.waits_for, asked) {
            (Some((operation, since)), _) => Some((operation.clone(), *since)),
            (None, Some((since, _))) => Some(("tensors of all ranks".to_owned(), since)),
            (None, None) => None,
        };
        let secs = |since: Instant| (now - since).as_secs_f64();
        Status {
            at: own.at.clone(),
            at_secs: secs(own.at_since),
            waits_secs: waits.as_ref().map_or(0.0, |(_, since)| secs(*since)),
            waits_for: waits.map(|(operation, _)| operation),
        }
    }

    pub fn fault(&self) -> Option<Fault> {
        lock(&self.news).fault.clone()
    }

    /// Keeps the first; whether it was.
    pub fn set_fault(&self, fault: Fault) -> bool {
        let mut news = lock(&self.news);
        let is_first = news.fault.is_none() && !news.is_over;
        if is_first {
            news.fault = Some(fault);
        }
        self.changed.notify_all();
        is_first
    }

    pub fn set_over(&self) {
        lock(&self.news).is_over = true;
        self.changed.notify_all();
    }

    pub fn is_over(&self) -> bool {
        lock(&self.news).is_over
    }

    pub fn close(&self) {
        lock(&self.news).is_closed = true;
        self.changed.notify_all();
    }

    pub fn is_closed(&self) -> bool {
        lock(&self.news).is_closed
    }

    /// Sleeps; less where this rank stops listening.
    pub fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        self.wait(until, |news| news.is_closed);
    }

    /// Waits for a fault.
    pub fn wait_for_fault(&self, time: Duration) -> Option<Fault> {
        self.wait(Instant::now() + time, |news| news.fault.is_some());
        self.fault()
    }

    /// Waits until all are done or something is wrong; whether one of them came.
    pub fn wait_for_end(&self, time: Duration) -> bool {
        self.wait(Instant::now() + time, |news| news.is_over || news.fault.is_some())
    }

    fn wait(&self, until: Instant, is_so: impl Fn(&News) -> bool) -> bool {
        let mut news = lock(&self.news);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if is_so(&news) || left.is_zero() {
                return is_so(&news);
            }
            let waited = self.changed.wait_timeout(news, left);
            news = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
