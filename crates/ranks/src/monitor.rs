//! Rank 0 hears of all ranks, and all of rank 0, over one TCP connection each: lines of JSON ([`Message`]). A connection that closes is a rank
//! that has ended, which the operating system tells at once, whatever the rank was doing.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::fault::{Fault, Known, Message, Status};
use crate::shared::Shared;

/// How often a rank looks whether its place has changed.
const TICK: Duration = Duration::from_millis(250);
/// How often it is told anyway.
const BEAT: Duration = Duration::from_secs(1);
/// Small messages go into the system's buffer; a peer that takes none is stopped.
const WRITE_LIMIT: Duration = Duration::from_secs(1);
/// How long rank 0 gathers places before it says who is late.
const GATHERING: Duration = Duration::from_millis(600);
/// How long an answer of rank 0 may take.
const ANSWER: Duration = Duration::from_secs(3);
/// How long rank 0 stays for others to leave.
const LEAVING: Duration = Duration::from_secs(10);

/// This rank's end.
#[derive(Debug)]
pub enum Monitor {
    /// Of rank 0.
    Server(Arc<Server>),
    /// Of another rank.
    Client(Arc<Client>),
    /// One rank alone.
    None,
}

impl Monitor {
    /// Tells all ranks, unless they have heard of an earlier fault; whether this was the first.
    pub fn declare(&self, shared: &Shared, fault: Fault) -> bool {
        match self {
            Monitor::Server(server) => server.declare(fault),
            Monitor::Client(client) => {
                let is_first = shared.set_fault(fault.clone());
                if is_first {
                    client.send(&Message::Fault(fault));
                }
                is_first
            }
            Monitor::None => shared.set_fault(fault),
        }
    }

    /// This rank has waited too long. Returns what rank 0 makes of it.
    pub fn late(&self, shared: &Shared, limit: Duration) -> Option<Fault> {
        let limit_secs = limit.as_secs_f64();
        match self {
            Monitor::Server(server) => {
                server.late(limit_secs);
                shared.fault()
            }
            Monitor::Client(client) => {
                client.send(&Message::Late { limit_secs });
                if let Some(fault) = shared.wait_for_fault(ANSWER) {
                    return Some(fault);
                }
                let line = lock(&client.rank_0).line(0, shared.host(0), Instant::now());
                base::say!("rank 0, which knows of all ranks, does not answer\n  {line}");
                let fault = Fault::Late { missing: vec![0], limit_secs, places: vec![line] };
                shared.set_fault(fault);
                shared.fault()
            }
            Monitor::None => None,
        }
    }

    /// This rank is done. Returns when all are, or with the fault; rank 0 stays until the others have left.
    pub fn finish(&self, shared: &Shared, limit: Duration) {
        match self {
            Monitor::Server(server) => server.finish(limit),
            Monitor::Client(client) => {
                client.send(&Message::Bye);
                shared.wait_for_end(limit);
            }
            Monitor::None => {}
        }
        self.close(shared);
    }

    /// Stops listening.
    pub fn close(&self, shared: &Shared) {
        shared.close();
        match self {
            Monitor::Server(server) => {
                server.peers().iter().flatten().for_each(|peer| peer.line.close())
            }
            Monitor::Client(client) => lock(&client.line).close(),
            Monitor::None => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panics leaves no half-written state.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end to write to.
#[derive(Debug)]
struct Line {
    stream: TcpStream,
    /// A message went out in part, or not at all. Its other end is heard by who reads.
    is_broken: bool,
}

impl Line {
    fn to(stream: &TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_LIMIT))?;
        Ok(Self { stream: stream.try_clone()?, is_broken: false })
    }

    fn send(&mut self, message: &Message) {
        if !self.is_broken {
            let mut line = serde_json::to_vec(message).unwrap_or_default();
            line.push(b'\n');
            self.is_broken = self.stream.write_all(&line).is_err();
        }
    }

    fn close(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Reads lines until the end; `idle` is called whenever nothing has come for a [`TICK`].
fn read_lines(
    stream: TcpStream,
    mut idle: impl FnMut(),
    mut take: impl FnMut(Message),
) -> io::Result<()> {
    stream.set_read_timeout(Some(TICK))?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        match reader.read_until(b'\n', &mut line) {
            Ok(_) if line.last() == Some(&b'\n') => {
                take(serde_json::from_slice(&line)?);
                line.clear();
            }
            Ok(_) => return Ok(()),
            // What came of a line stays in it.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                idle();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Rank 0's end of another rank's connection.
#[derive(Debug)]
struct Peer {
    line: Line,
    is_done: bool,
    has_left: bool,
}

/// Of rank 0.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    key: String,
    /// By rank; none until it has connected.
    peers: Mutex<Vec<Option<Peer>>>,
    known: Mutex<Vec<Known>>,
}

impl Server {
    /// Hears the ranks that come to `listener` and know `key`.
    pub fn start(
        listener: TcpListener,
        key: String,
        shared: &Arc<Shared>,
    ) -> io::Result<Arc<Self>> {
        let size = shared.hosts.len();
        let known = Known { status: Status::default(), heard: Instant::now() };
        let server = Arc::new(Self {
            shared: Arc::clone(shared),
            key,
            peers: Mutex::new((0..size).map(|_| None).collect()),
            known: Mutex::new(vec![known; size]),
        });
        listener.set_nonblocking(true)?;
        let listening = Arc::clone(&server);
        thread::Builder::new()
            .name("ranks".to_owned())
            .spawn(move || listening.listen(&listener))?;
        Ok(server)
    }

    fn peers(&self) -> MutexGuard<'_, Vec<Option<Peer>>> {
        lock(&self.peers)
    }

    fn listen(self: Arc<Self>, listener: &TcpListener) {
        let mut beaten = Instant::now();
        while !self.shared.is_closed() {
            while let Ok((stream, _)) = listener.accept() {
                let server = Arc::clone(&self);
                let heard = thread::Builder::new()
                    .name("rank".to_owned())
                    .spawn(move || server.hear(stream));
                if let Err(error) = heard {
                    base::say!("warning: no thread to hear a rank: {error}");
                }
            }
            if beaten.elapsed() >= BEAT {
                beaten = Instant::now();
                self.send_all(&Message::At(self.shared.status()));
            }
            self.shared.pause(TICK / 5);
        }
    }

    /// One connection, to its end.
    fn hear(&self, stream: TcpStream) {
        let Ok(line) = Line::to(&stream) else { return };
        let mut line = Some(line);
        let mut rank = None;
        // What cannot be read is an end too.
        let _ = read_lines(
            stream,
            || {},
            |message| match (rank, message) {
                (None, Message::Hello { rank: said, key }) if key == self.key => {
                    if let Some(line) = line.take().filter(|_| self.admits(said)) {
                        self.add(said, line);
                        rank = Some(said);
                    }
                }
                (Some(rank), message) => self.take(rank, message),
                _ => {}
            },
        );
        if let Some(rank) = rank {
            self.has_left(rank);
        }
    }

    fn admits(&self, rank: usize) -> bool {
        self.peers().get(rank).is_some_and(Option::is_none)
    }

    fn add(&self, rank: usize, mut line: Line) {
        // Under this lock faults are told: who comes late hears of an earlier one here.
        let mut peers = self.peers();
        if let Some(fault) = self.shared.fault() {
            line.send(&Message::Fault(fault));
        }
        peers[rank] = Some(Peer { line, is_done: false, has_left: false });
    }

    fn take(&self, rank: usize, message: Message) {
        match message {
            Message::At(status) => {
                lock(&self.known)[rank] = Known { status, heard: Instant::now() };
            }
            Message::Fault(fault) => drop(self.declare(fault)),
            Message::Late { limit_secs } => self.late(limit_secs),
            Message::Bye => {
                if let Some(peer) = &mut self.peers()[rank] {
                    peer.is_done = true;
                }
            }
            Message::Hello { .. } | Message::End => {}
        }
    }

    fn has_left(&self, rank: usize) {
        let is_done = match &mut self.peers()[rank] {
            Some(peer) => {
                peer.has_left = true;
                peer.is_done
            }
            None => false,
        };
        if !is_done && !self.shared.is_closed() {
            let at = lock(&self.known)[rank].status.at.clone();
            let host = self.shared.host(rank).to_owned();
            self.declare(Fault::Ended { rank, host, at });
        }
    }

    fn declare(&self, fault: Fault) -> bool {
        let is_first = self.shared.set_fault(fault.clone());
        if is_first {
            self.send_all(&Message::Fault(fault));
        }
        is_first
    }

    fn send_all(&self, message: &Message) {
        self.peers().iter_mut().flatten().for_each(|peer| peer.line.send(message));
    }

    /// Says where all ranks are, and ends the run.
    fn late(&self, limit_secs: f64) {
        // Others' waits end about now too, and the last places are under way.
        if self.shared.wait_for_fault(GATHERING).is_some() {
            return;
        }
        let now = Instant::now();
        let mut known = lock(&self.known).clone();
        known[0] = Known { status: self.shared.status(), heard: now };
        let is_late = |(rank, known): (usize, &Known)| known.is_late(now).then_some(rank);
        let missing: Vec<usize> = known.iter().enumerate().filter_map(is_late).collect();
        let line = |(rank, known): (usize, &Known)| known.line(rank, self.shared.host(rank), now);
        let places: Vec<String> = known.iter().enumerate().map(line).collect();
        let table = format!("waited {limit_secs} s for other ranks\n  {}", places.join("\n  "));
        if self.declare(Fault::Late { missing, limit_secs, places }) {
            base::say!("{table}");
        }
    }

    fn finish(&self, limit: Duration) {
        let all = |is_so: fn(&Peer) -> bool| {
            self.peers().iter().skip(1).all(|peer| peer.as_ref().is_some_and(is_so))
        };
        self.wait_until(limit, || all(|peer| peer.is_done || peer.has_left));
        self.shared.set_over();
        self.send_all(&Message::End);
        // Others may still need the store that this process serves.
        self.wait_until(LEAVING, || all(|peer| peer.has_left));
    }

    fn wait_until(&self, limit: Duration, is_so: impl Fn() -> bool) {
        let until = Instant::now() + limit;
        while !is_so() && self.shared.fault().is_none() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Of another rank than 0.
#[derive(Debug)]
pub struct Client {
    line: Mutex<Line>,
    rank_0: Mutex<Known>,
}

impl Client {
    /// Connects to rank 0.
    pub fn start(
        address: SocketAddr,
        key: String,
        shared: &Arc<Shared>,
        limit: Duration,
    ) -> io::Result<Arc<Self>> {
        let stream = TcpStream::connect_timeout(&address, limit)?;
        let mut line = Line::to(&stream)?;
        line.send(&Message::Hello { rank: shared.rank, key });
        let known = Known { status: Status::default(), heard: Instant::now() };
        let client = Arc::new(Self { line: Mutex::new(line), rank_0: Mutex::new(known) });
        let (listening, shared) = (Arc::clone(&client), Arc::clone(shared));
        thread::Builder::new()
            .name("ranks".to_owned())
            .spawn(move || listening.listen(stream, &shared))?;
        Ok(client)
    }

    fn listen(&self, stream: TcpStream, shared: &Shared) {
        let mut told = (Status::default(), Instant::now() - BEAT);
        let tell = || {
            let status = shared.status();
            let is_new = status.at != told.0.at || status.waits_for != told.0.waits_for;
            if is_new || told.1.elapsed() >= BEAT {
                self.send(&Message::At(status.clone()));
                told = (status, Instant::now());
            }
        };
        // What cannot be read is an end too.
        let _ = read_lines(stream, tell, |message| match message {
            Message::At(status) => {
                *lock(&self.rank_0) = Known { status, heard: Instant::now() };
            }
            Message::Fault(fault) => drop(shared.set_fault(fault)),
            Message::End => shared.set_over(),
            _ => {}
        });
        if !shared.is_over() && !shared.is_closed() {
            let at = lock(&self.rank_0).status.at.clone();
            let host = shared.host(0).to_owned();
            shared.set_fault(Fault::Ended { rank: 0, host, at });
        }
    }

    fn send(&self, message: &Message) {
        lock(&self.line).send(message);
    }
}
