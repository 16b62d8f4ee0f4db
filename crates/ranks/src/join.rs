//! How ranks find each other: at the store of MASTER_ADDR each says where it is; rank 0 tells all.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use torch::ranks::{Group, GroupOptions, Interrupt, RankError, Store, Transport};

use crate::address::{host_name, reachable, towards};
use crate::error::JoinError;
use crate::monitor::{Client, Monitor, Server};
use crate::place::Place;
use crate::processes::{Processes, explain};
use crate::shared::Shared;

/// How ranks work together.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// How long ranks wait for each other.
    pub limit: Duration,
    /// As [`GroupOptions::checks`].
    pub checks: bool,
    /// How tensors travel.
    pub transport: Transport,
}

/// The ranks of a run, as one of them has them.
#[derive(Debug)]
pub struct Ranks {
    /// For numbers, votes and texts.
    pub world: Processes,
    /// For tensors. Its errors are explained by [`Processes::explain`].
    pub tensors: Group,
}

/// What a rank says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Member {
    host: String,
    address: IpAddr,
    local_rank: usize,
}

/// What rank 0 makes of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Meeting {
    Members { members: Vec<Member>, monitor: SocketAddr, key: String },
    Missing { missing: Vec<usize>, limit_secs: f64 },
}

/// Joins the other ranks of `place`. One rank is alone: nothing is opened.
///
/// # Errors
/// Ranks that do not come, cannot be reached, fail or end.
pub fn join(place: &Place, options: &JoinOptions) -> Result<Ranks, JoinError> {
    if place.size == 1 {
        let shared = Arc::new(Shared::new(0, vec![host_name()]));
        let world = Processes::new(Group::alone(), shared, Monitor::None, options.limit);
        return Ok(Ranks { world, tensors: Group::alone() });
    }
    let own = Member {
        host: host_name(),
        address: towards(&place.master_addr, place.master_port)
            .map_err(|source| JoinError::Address { address: place.master_addr.clone(), source })?,
        local_rank: place.local_rank,
    };
    let meeting = Meet::new(place, options.limit)?;
    let met = meeting.meet(&own)?;
    let interrupt: Interrupt = {
        let shared = Arc::clone(&met.shared);
        Arc::new(move || shared.ask())
    };
    let group = |name: &str, transport, limit: Duration| {
        let options = GroupOptions {
            rank: place.rank,
            size: place.size,
            transport,
            address: Some(met.address.to_string()),
            limit,
            checks: options.checks,
        };
        Group::new(&meeting.store.prefixed(name), options, Arc::clone(&interrupt))
            .map_err(|error| explained(&error, &met, limit))
    };
    met.shared.set_place("joining");
    let control = group("control", Transport::Gloo, options.limit)?;
    let tensors = group("tensors", options.transport, options.limit)?;
    met.shared.set_place("");
    let world = Processes::new(control, met.shared, met.monitor, options.limit);
    Ok(Ranks { world, tensors })
}

/// What libtorch refuses is its own; what breaks is another rank's.
fn explained(error: &RankError, met: &Met, limit: Duration) -> JoinError {
    match error {
        RankError::Refused { .. } => error.clone().into(),
        _ => explain(error, &met.shared, &met.monitor, limit).into(),
    }
}

struct Meet<'a> {
    place: &'a Place,
    store: Store,
    began: Instant,
    limit: Duration,
}

/// Ranks that know each other.
struct Met {
    address: IpAddr,
    shared: Arc<Shared>,
    monitor: Monitor,
}

const SERVE: &str = "rank 0 serves it at MASTER_PORT; is another run using that port?";
const REACH: &str = "is rank 0 running, are MASTER_ADDR and MASTER_PORT the same on all ranks, and can this host reach that port?";
/// Others wait so much longer than rank 0, which tells them who is missing.
const TELLING: Duration = Duration::from_secs(5);

impl<'a> Meet<'a> {
    fn new(place: &'a Place, limit: Duration) -> Result<Self, JoinError> {
        let began = Instant::now();
        let serves = place.hosts_store && place.rank == 0;
        let hint = if serves { SERVE } else { REACH };
        let store = Store::tcp(&place.master_addr, place.master_port, serves, limit)
            .map_err(|error| JoinError::Store { error, hint })?
            // A restart finds nothing of the run before.
            .prefixed(&format!("vlm-r1/{}", place.restarts));
        let meet = Self { place, store, began, limit };
        let claims = meet.store.add(&format!("rank/{}", place.rank), 1).map_err(of_store)?;
        if claims > 1 {
            return Err(JoinError::Taken { rank: place.rank });
        }
        Ok(meet)
    }

    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.began.elapsed())
    }

    fn meet(&self, own: &Member) -> Result<Met, JoinError> {
        let key = format!("member/{}", self.place.rank);
        self.store.set(&key, &serde_json::to_vec(own).unwrap_or_default()).map_err(of_store)?;
        let listener = if self.place.rank == 0 { self.invite(own)? } else { None };
        let text = self.store.wait("meeting", self.left() + TELLING);
        let text = text.map_err(|error| match error {
            RankError::TimedOut { .. } => {
                JoinError::Missing { missing: vec![0], size: self.place.size, limit: self.limit }
            }
            error => of_store(error),
        })?;
        self.store.add("told", 1).map_err(of_store)?;
        let meeting = serde_json::from_slice(&text).map_err(|error| {
            of_store(RankError::Connection {
                operation: "join".to_owned(),
                cause: format!("rank 0 sent what cannot be read: {error}"),
            })
        })?;
        let size = self.place.size;
        let (came, met) = match meeting {
            Meeting::Missing { missing, limit_secs } => {
                let limit = Duration::try_from_secs_f64(limit_secs).unwrap_or(self.limit);
                (size - missing.len(), Err(JoinError::Missing { missing, size, limit }))
            }
            Meeting::Members { members, monitor, key } => {
                (size, self.introduce(own, &members, monitor, key, listener))
            }
        };
        if met.is_err() {
            self.stay(came);
        }
        met
    }

    /// Of rank 0 where it serves the store: stays until the ranks that came have read why they cannot go on.
    fn stay(&self, came: usize) {
        let until = Instant::now() + TELLING;
        let is_told = || self.store.add("told", 0).map_or(true, |told| told >= came as i64);
        while self.place.rank == 0 && !is_told() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Of rank 0: waits for the others, and tells all.
    fn invite(&self, own: &Member) -> Result<Option<TcpListener>, JoinError> {
        let mut members = vec![own.clone()];
        let mut missing = Vec::new();
        for rank in 1..self.place.size {
            match self.store.wait(&format!("member/{rank}"), self.left()) {
                Ok(text) => members.extend(serde_json::from_slice::<Member>(&text)),
                Err(RankError::TimedOut { .. }) => missing.push(rank),
                Err(error) => return Err(of_store(error)),
            }
        }
        if !missing.is_empty() {
            let limit_secs = self.limit.as_secs_f64();
            self.tell(&Meeting::Missing { missing, limit_secs })?;
            return Ok(None);
        }
        let address = of_this_host(own, &members)?;
        let listened = TcpListener::bind((address, 0)).and_then(|listener| {
            let monitor = listener.local_addr()?;
            Ok((listener, monitor))
        });
        let (listener, monitor) = listened
            .map_err(|source| JoinError::Monitor { address: address.to_string(), source })?;
        let half = || RandomState::new().build_hasher().finish();
        let key = format!("{:016x}{:016x}", half(), half());
        self.tell(&Meeting::Members { members, monitor, key })?;
        Ok(Some(listener))
    }

    fn tell(&self, meeting: &Meeting) -> Result<(), JoinError> {
        let text = serde_json::to_vec(meeting).unwrap_or_default();
        self.store.set("meeting", &text).map_err(of_store)
    }

    fn introduce(
        &self,
        own: &Member,
        members: &[Member],
        monitor: SocketAddr,
        key: String,
        listener: Option<TcpListener>,
    ) -> Result<Met, JoinError> {
        check_local_ranks(members)?;
        let address = of_this_host(own, members)?;
        let hosts = members.iter().map(|member| member.host.clone()).collect();
        let shared = Arc::new(Shared::new(self.place.rank, hosts));
        let monitor = match listener {
            Some(listener) => Server::start(listener, key, &shared).map(Monitor::Server),
            None => {
                let limit = self.left().max(TELLING);
                Client::start(monitor, key, &shared, limit).map(Monitor::Client)
            }
        }
        .map_err(|source| JoinError::Monitor { address: monitor.to_string(), source })?;
        Ok(Met { address, shared, monitor })
    }
}

fn of_store(error: RankError) -> JoinError {
    JoinError::Store { error, hint: REACH }
}

fn of_this_host(own: &Member, members: &[Member]) -> Result<IpAddr, JoinError> {
    let all: Vec<IpAddr> = members.iter().map(|member| member.address).collect();
    reachable(own.address, &all)
        .map_err(|source| JoinError::Address { address: own.address.to_string(), source })
}

fn check_local_ranks(members: &[Member]) -> Result<(), JoinError> {
    for (second, member) in members.iter().enumerate() {
        let same =
            |other: &Member| (&other.host, other.local_rank) == (&member.host, member.local_rank);
        if let Some(first) = members[..second].iter().position(same) {
            let (host, local_rank) = (member.host.clone(), member.local_rank);
            return Err(JoinError::SharedLocalRank { host, first, second, local_rank });
        }
    }
    Ok(())
}
