//! Who is connected, what each does, and who has to go when a place or memory is needed.
//!
//! Whose turn it is decides: a connection whose request is being answered stays. One that keeps the server waiting goes for a
//! new one, the one that has done so for longest first: so no number of silent callers keeps another out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::Limits;

/// A wait that is shorter is none: what was sent may not have been looked at yet.
const GRACE: Duration = Duration::from_millis(250);

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Nothing of a request has come.
    Idle,
    /// A part of a head has come.
    Head,
    /// A body is read.
    Body,
    /// The server works on the response.
    Busy,
    /// The response is written; whether all of it is there.
    Response { is_whole: bool },
}

struct Entry {
    peer: IpAddr,
    phase: Phase,
    /// Begin of the phase; of a response, when the caller last took a part of it.
    since: Instant,
    /// Since when what was written is not taken whole.
    unread_since: Option<Instant>,
    /// Bytes of the body, then of the response.
    bytes: usize,
    is_sent_away: bool,
    sent_away: Arc<Notify>,
}

impl Entry {
    /// How soon it has to go: class, then begin of the wait; none where the server itself is waited for.
    fn waits(&self) -> Option<(u8, Instant)> {
        if self.is_sent_away {
            return None;
        }
        match self.phase {
            Phase::Idle | Phase::Head => Some((0, self.since)),
            Phase::Response { .. } => self.unread_since.map(|_| (1, self.since)),
            Phase::Body => Some((2, self.since)),
            Phase::Busy => None,
        }
    }

    fn is_late(&self, limits: &Limits, now: Instant) -> bool {
        let since = |since: Instant| now.saturating_duration_since(since);
        match self.phase {
            Phase::Idle => since(self.since) > limits.idle,
            Phase::Head => since(self.since) > limits.head,
            // A body that is late is answered by who reads it.
            Phase::Body | Phase::Busy => false,
            Phase::Response { .. } => {
                self.unread_since.is_some_and(|unread| since(unread) > limits.response)
            }
        }
    }

    fn send_away(&mut self) {
        self.is_sent_away = true;
        self.sent_away.notify_one();
    }
}

#[derive(Default)]
struct State {
    next: u64,
    entries: HashMap<u64, Entry>,
    /// Bytes of all bodies and responses.
    bytes: usize,
}

/// What was found for one who needs room.
enum Room {
    /// One was sent away, with bytes that are free soon.
    Made(usize),
    /// Some wait, none long enough.
    Soon,
    /// The server works for all.
    None,
}

impl State {
    /// Sends away the one that waits for longest of those that `may_go`.
    fn make_room(&mut self, may_go: impl Fn(u64, &Entry) -> bool) -> Room {
        let mut room = Room::None;
        let waiting = self.entries.iter_mut().filter_map(|(id, entry)| {
            let waits = entry.waits()?;
            may_go(*id, entry).then_some((waits, entry))
        });
        let late = waiting.filter(|((_, since), _)| {
            room = Room::Soon;
            since.elapsed() > GRACE
        });
        if let Some((_, entry)) = late.min_by_key(|(waits, _)| *waits) {
            entry.send_away();
            room = Room::Made(entry.bytes);
        }
        room
    }

    fn count(&self, is_counted: impl Fn(&Entry) -> bool) -> usize {
        let here = self.entries.values().filter(|entry| !entry.is_sent_away);
        here.filter(|entry| is_counted(entry)).count()
    }
}

/// All connections.
pub(crate) struct Connections {
    pub(crate) limits: Limits,
    state: Mutex<State>,
    /// A connection has ended, or bytes are free.
    changed: Notify,
}

/// What a new connection gets.
pub(crate) enum Admission {
    Place(Place),
    /// Its address has all that it may have, and the server works for each.
    TooMany,
    /// There is no place yet.
    Full,
}

impl Connections {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default(), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of `address`.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Admission {
        let peer = peer_of(address);
        let mut state = self.lock();
        if state.count(|entry| entry.peer == peer) >= self.limits.connections_of_peer {
            match state.make_room(|_, entry| entry.peer == peer) {
                Room::Made(_) => {}
                Room::Soon => return Admission::Full,
                Room::None => return Admission::TooMany,
            }
        }
        let is_full = state.count(|_| true) >= self.limits.connections;
        if is_full && !matches!(state.make_room(|_, _| true), Room::Made(_)) {
            return Admission::Full;
        }
        let id = state.next;
        state.next += 1;
        let sent_away = Arc::new(Notify::new());
        let entry = Entry {
            peer,
            phase: Phase::Idle,
            since: Instant::now(),
            unread_since: None,
            bytes: 0,
            is_sent_away: false,
            sent_away: Arc::clone(&sent_away),
        };
        state.entries.insert(id, entry);
        Admission::Place(Place {
            connections: Arc::clone(self),
            id,
            requests: AtomicUsize::new(0),
            sent_away,
        })
    }

    /// Sends the slowest away, as where the system has no more files.
    pub(crate) fn make_room(&self) {
        self.lock().make_room(|_, _| true);
    }

    /// Until a connection ends.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// A connection's place; dropped, it is free.
pub(crate) struct Place {
    connections: Arc<Connections>,
    id: u64,
    requests: AtomicUsize,
    sent_away: Arc<Notify>,
}

impl Place {
    fn with<T>(&self, act: impl FnOnce(&mut State, u64) -> T) -> T {
        act(&mut self.connections.lock(), self.id)
    }

    fn update(&self, act: impl FnOnce(&mut Entry)) {
        self.with(|state, id| state.entries.get_mut(&id).map(act));
    }

    fn begin(&self, phase: Phase) {
        self.update(|entry| {
            entry.phase = phase;
            entry.since = Instant::now();
            entry.unread_since = None;
        });
    }

    /// A head has come whole; whether the connection may have a further one.
    pub(crate) fn begins_body(&self) -> bool {
        self.begin(Phase::Body);
        let before = self.requests.fetch_add(1, Ordering::Relaxed);
        before + 1 < self.connections.limits.requests_of_connection
    }

    /// The request has come whole.
    pub(crate) fn begins_work(&self) {
        self.begin(Phase::Busy);
    }

    /// The response is known, of `count` bytes; the body of the request is gone. Others that leave theirs unread may go for it.
    pub(crate) fn begins_response(&self, count: usize) {
        self.begin(Phase::Response { is_whole: false });
        self.free_bytes();
        self.with(|state, id| {
            state.bytes += count;
            if let Some(entry) = state.entries.get_mut(&id) {
                entry.bytes = count;
            }
            // Those that were sent away before take theirs along.
            let going = state.entries.values().filter(|entry| entry.is_sent_away);
            let mut left = state.bytes - going.map(|entry| entry.bytes).sum::<usize>();
            while left > self.connections.limits.bodies_bytes {
                let is_unread = |entry: &Entry| matches!(entry.phase, Phase::Response { .. });
                let room = state
                    .make_room(|other, entry| other != id && entry.bytes > 0 && is_unread(entry));
                match room {
                    Room::Made(bytes) => left = left.saturating_sub(bytes),
                    Room::Soon | Room::None => break,
                }
            }
        });
    }

    /// All of the response is with hyper.
    pub(crate) fn has_response(&self) {
        self.update(|entry| {
            if let Phase::Response { is_whole } = &mut entry.phase {
                *is_whole = true;
            }
        });
    }

    pub(crate) fn has_read(&self) {
        self.update(|entry| {
            if entry.phase == Phase::Idle {
                entry.phase = Phase::Head;
                entry.since = Instant::now();
            }
        });
    }

    pub(crate) fn writes(&self) {
        self.update(|entry| {
            if matches!(entry.phase, Phase::Response { .. }) {
                entry.unread_since.get_or_insert_with(Instant::now);
            }
        });
    }

    /// The system took a part of what was written.
    pub(crate) fn has_written_some(&self) {
        self.update(|entry| {
            if matches!(entry.phase, Phase::Response { .. }) {
                entry.since = Instant::now();
            }
        });
    }

    /// The system took all that was written.
    pub(crate) fn has_written(&self) {
        let mut is_done = false;
        self.update(|entry| {
            if let Phase::Response { is_whole } = entry.phase {
                entry.unread_since = None;
                if is_whole {
                    entry.phase = Phase::Idle;
                    entry.since = Instant::now();
                    is_done = true;
                }
            }
        });
        if is_done {
            self.free_bytes();
        }
    }

    /// Whether the caller takes too long.
    pub(crate) fn is_late(&self) -> bool {
        let limits = &self.connections.limits;
        self.with(|state, id| {
            let entry = state.entries.get(&id);
            entry.is_none_or(|entry| entry.is_late(limits, Instant::now()))
        })
    }

    /// Whether no request has come whole.
    pub(crate) fn is_before_request(&self) -> bool {
        self.with(|state, id| {
            let entry = state.entries.get(&id);
            entry.is_none_or(|entry| matches!(entry.phase, Phase::Idle | Phase::Head))
        })
    }

    /// Until the place is needed.
    pub(crate) async fn sent_away(&self) {
        self.sent_away.notified().await;
    }

    /// Waits until `count` more bytes of the body may be kept; others that are slow with theirs go for it.
    pub(crate) async fn keep_bytes(&self, count: usize) {
        loop {
            let mut freed = std::pin::pin!(self.connections.changed.notified());
            // Before the look, so that what is freed in between is heard of.
            freed.as_mut().enable();
            let is_kept = self.with(|state, id| {
                let fits = state.bytes + count <= self.connections.limits.bodies_bytes;
                if fits {
                    state.bytes += count;
                    if let Some(entry) = state.entries.get_mut(&id) {
                        entry.bytes += count;
                    }
                } else {
                    let going = state.entries.values();
                    let is_going = |entry: &Entry| entry.is_sent_away && entry.bytes > 0;
                    if !going.into_iter().any(is_going) {
                        state.make_room(|other, entry| other != id && entry.bytes > 0);
                    }
                }
                fits
            });
            if is_kept {
                return;
            }
            // Some may have waited for long enough by then.
            let _ = timeout(GRACE, freed).await;
        }
    }

    fn free_bytes(&self) {
        self.with(|state, id| {
            if let Some(entry) = state.entries.get_mut(&id) {
                state.bytes -= std::mem::take(&mut entry.bytes);
            }
        });
        self.connections.changed.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.free_bytes();
        self.with(|state, id| state.entries.remove(&id));
        self.connections.changed.notify_waiters();
    }
}

/// An address as it is counted: whoever has one of IPv6 has its whole network.
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let network = address.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
    }
}
