//! The store where ranks meet.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use super::{RankError, c10d};

/// Keys and values that all ranks see. Clones share one connection, which does one thing at a time: who waits for a key holds it.
#[derive(Clone, Debug)]
pub struct Store(pub(super) Arc<c10d::Store>);

impl Store {
    /// Of this process, for ranks in threads.
    ///
    /// # Panics
    /// Where libtorch has none.
    pub fn in_process() -> Self {
        Store(Arc::new(c10d::Store::in_process().expect("a table in memory")))
    }

    /// The store at `host:port`; `hosts`: this process is its server, and it ends with the last clone. Waits for the server at most `limit`.
    ///
    /// # Errors
    /// A port in use; no server in time.
    pub fn tcp(host: &str, port: u16, hosts: bool, limit: Duration) -> Result<Self, RankError> {
        let began = Instant::now();
        let operation = || format!("store at {host}:{port}");
        let (sender, receiver) = channel();
        let name = host.to_owned();
        // libtorch tries longer than it is told to.
        thread::spawn(move || {
            // Where nobody waits any more the connection ends here.
            let _ = sender.send(c10d::Store::tcp(&name, port, hosts, limit));
        });
        match receiver.recv_timeout(limit) {
            Ok(made) => made
                .map(|store| Store(Arc::new(store)))
                .map_err(|cause| failure(operation(), cause, began, limit)),
            Err(_) => {
                let secs = began.elapsed().as_secs_f64();
                Err(RankError::TimedOut { operation: operation(), secs })
            }
        }
    }

    /// The keys of this store that begin with `prefix/`.
    ///
    /// # Panics
    /// For a prefix with a zero byte.
    pub fn prefixed(&self, prefix: &str) -> Self {
        Store(Arc::new(self.0.prefixed(prefix).expect("a prefix is text")))
    }

    /// Puts `value` under `key`.
    ///
    /// # Errors
    /// A server that is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), RankError> {
        self.0.set(key, value).map_err(|cause| connection("set", key, cause))
    }

    /// What lies under `key`, at once; `None` where nothing does.
    ///
    /// # Errors
    /// A server that is gone.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, RankError> {
        self.0.get(key).map_err(|cause| connection("get", key, cause))
    }

    /// What lies under `key`, as soon as something does.
    ///
    /// # Errors
    /// A server that is gone; nothing in time.
    pub fn wait(&self, key: &str, limit: Duration) -> Result<Vec<u8>, RankError> {
        let began = Instant::now();
        self.0
            .wait(key, limit)
            .map_err(|cause| failure(named("wait for", key), cause, began, limit))?;
        self.get(key)?.ok_or_else(|| connection("wait for", key, "it is gone again".to_owned()))
    }

    /// Adds to the number under `key`, which begins as 0, and returns the sum.
    ///
    /// # Errors
    /// A server that is gone.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64, RankError> {
        self.0.add(key, amount).map_err(|cause| connection("add to", key, cause))
    }
}

fn named(operation: &str, key: &str) -> String {
    format!("store, {operation} `{key}`")
}

fn connection(operation: &str, key: &str, cause: String) -> RankError {
    RankError::Connection { operation: named(operation, key), cause }
}

/// What went wrong after `limit` is a wait that was in vain, whatever libtorch calls it.
pub(super) fn failure(
    operation: String,
    cause: String,
    began: Instant,
    limit: Duration,
) -> RankError {
    let waited = began.elapsed();
    if waited < limit {
        return RankError::Connection { operation, cause };
    }
    RankError::TimedOut { operation, secs: waited.as_secs_f64() }
}
