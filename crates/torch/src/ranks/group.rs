//! Collectives.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use tch::{Device, Kind, TchError, Tensor};

use super::c10d::{Backend, Called, Operation};
use super::store::failure;
use super::{Count, Counts, GroupOptions, Interrupt, RankError, Store, Transport};
use crate::kind_name;

/// How long is waited between two looks at the interrupt.
const SLICE: Duration = Duration::from_millis(200);
/// libtorch's own limit is later than ours by this: its end closes connections, ours says who is late.
const MARGIN: Duration = Duration::from_secs(60);
/// Bytes of a rank's collective as ranks tell it each other.
const CHECK_BYTES: usize = 128;
/// Bytes of an exchange that go with their length.
const FIRST_BYTES: usize = 1016;

/// What Gloo and NCCL add and compare.
const ARITHMETIC: [Kind; 8] = [
    Kind::Float,
    Kind::BFloat16,
    Kind::Half,
    Kind::Double,
    Kind::Int64,
    Kind::Int,
    Kind::Int8,
    Kind::Uint8,
];

/// Ranks that compute together. Every method that sends must be called by all of them, in the same order, by one thread at a time; each
/// waits for the result, and returns the group's first error once there was one.
pub struct Group {
    rank: usize,
    size: usize,
    /// None of a rank alone.
    connection: Option<Connection>,
    counts: Cell<Counts>,
    /// Why nothing more can be sent.
    error: RefCell<Option<RankError>>,
}

struct Connection {
    backend: Option<Backend>,
    /// Where ranks tell each other which collective they are at, if that is not `backend`.
    checks: Option<Backend>,
    options: GroupOptions,
    interrupt: Interrupt,
    device: Device,
    /// Collectives begun.
    begun: Cell<u64>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("rank", &self.rank)
            .field("size", &self.size)
            .field("options", &self.connection.as_ref().map(|connection| &connection.options))
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl Group {
    /// One rank: all of it is the identity.
    pub fn alone() -> Self {
        Self::of(0, 1, None)
    }

    /// Meets the other ranks of `store`, which no other group may use: see [`Store::prefixed`].
    ///
    /// # Errors
    /// Ranks that do not come in time or cannot be reached; the interrupt.
    pub fn new(
        store: &Store,
        options: GroupOptions,
        interrupt: Interrupt,
    ) -> Result<Self, RankError> {
        let (device, checks) = match options.transport {
            Transport::Gloo => (Device::Cpu, None),
            Transport::Nccl { card } => {
                // Before ranks wait for each other.
                super::nccl::functions()
                    .map_err(|cause| refused(&joining(options.size), format!("NCCL: {cause}")))?;
                let gloo = GroupOptions { transport: Transport::Gloo, ..options.clone() };
                let checks =
                    options.checks.then(|| connect(&store.prefixed("checks"), &gloo, &interrupt));
                (Device::Cuda(card), checks.transpose()?)
            }
        };
        let backend = Some(connect(store, &options, &interrupt)?);
        let (rank, size) = (options.rank, options.size);
        let begun = Cell::new(0);
        let connection = Connection { backend, checks, options, interrupt, device, begun };
        Ok(Self::of(rank, size, Some(connection)))
    }

    fn of(rank: usize, size: usize, connection: Option<Connection>) -> Self {
        Self { rank, size, connection, counts: Cell::default(), error: RefCell::default() }
    }

    /// So many ranks of this process, with checks: tests have one in each thread.
    ///
    /// # Panics
    /// Where they do not meet.
    pub fn of_threads(size: usize, limit: Duration) -> Vec<Self> {
        let never: Interrupt = std::sync::Arc::new(|| None);
        Self::of_threads_with(size, limit, &never)
    }

    pub(super) fn of_threads_with(
        size: usize,
        limit: Duration,
        interrupt: &Interrupt,
    ) -> Vec<Self> {
        let store = Store::in_process();
        let join = |rank| {
            let transport = Transport::Gloo;
            let options =
                GroupOptions { rank, size, transport, address: None, limit, checks: true };
            Self::new(&store, options, interrupt.clone()).expect("ranks of this process meet")
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || join(rank))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
        })
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The collectives of this group so far.
    pub fn counts(&self) -> Counts {
        self.counts.get()
    }

    /// The sum over ranks, in place. The order of summands depends on the place of a number in the tensor, and is the same on all ranks
    /// and in each run.
    ///
    /// # Errors
    /// [`RankError`]; types that are not summed.
    pub fn all_reduce_sum(&self, tensor: &Tensor) -> Result<(), RankError> {
        let call = Call::new("all_reduce_sum", Operation::AllReduceSum, tensor);
        self.run(&call, |counts| &mut counts.all_reduce)
    }

    /// The largest over ranks, in place.
    ///
    /// # Errors
    /// [`RankError`]; types that are not compared.
    pub fn all_reduce_max(&self, tensor: &Tensor) -> Result<(), RankError> {
        let call = Call::new("all_reduce_max", Operation::AllReduceMax, tensor);
        self.run(&call, |counts| &mut counts.all_reduce)
    }

    /// The sum over ranks of this rank's part of `whole`, which is flat and has [`Self::size`] equal parts. The result is a view of `whole`,
    /// whose other parts are undefined afterwards.
    ///
    /// # Errors
    /// [`RankError`]; types that are not summed.
    pub fn reduce_scatter_sum(&self, whole: &Tensor) -> Result<Tensor, RankError> {
        // Gloo's own copies the whole and sums it all.
        let operation = match self.transport() {
            Some(Transport::Nccl { .. }) => Operation::ReduceScatterSum,
            Some(Transport::Gloo) | None => Operation::AllReduceSum,
        };
        let call = Call::new("reduce_scatter_sum", operation, whole);
        let part = self.check_parts(&call)?;
        self.run(&call, |counts| &mut counts.reduce_scatter)?;
        whole.f_narrow(0, self.rank as i64 * part, part).map_err(|error| call.refused(error))
    }

    /// All parts of `whole`, which is flat and has [`Self::size`] equal parts, of which this rank has filled its own.
    ///
    /// # Errors
    /// [`RankError`].
    pub fn all_gather(&self, whole: &Tensor) -> Result<(), RankError> {
        let call = Call::new("all_gather", Operation::AllGather, whole);
        self.check_parts(&call)?;
        self.run(&call, |counts| &mut counts.all_gather)
    }

    /// The tensor of rank `root`, in place.
    ///
    /// # Errors
    /// [`RankError`].
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<(), RankError> {
        let call = Call { root, ..Call::new("broadcast", Operation::Broadcast, tensor) };
        if root >= self.size {
            return Err(call.refused(format!("expected a root below {}, got {root}", self.size)));
        }
        self.run(&call, |counts| &mut counts.broadcast)
    }

    /// What each rank gives, by rank. Lengths may differ.
    ///
    /// # Errors
    /// [`RankError`].
    pub fn exchange(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, RankError> {
        let Some(connection) = &self.connection else { return Ok(vec![bytes]) };
        let first = bytes.len().min(FIRST_BYTES);
        let mut block = (bytes.len() as u64).to_le_bytes().to_vec();
        block.extend(&bytes[..first]);
        let firsts = self.gather_blocks(connection, &block, 8 + FIRST_BYTES)?;
        let mut all = Vec::with_capacity(self.size);
        let mut longest = 0;
        for block in firsts.chunks(8 + FIRST_BYTES) {
            let (length, rest) =
                block.split_first_chunk::<8>().expect("a block of more than 8 bytes");
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
            longest = longest.max(length.saturating_sub(FIRST_BYTES));
            all.push((length, rest[..length.min(FIRST_BYTES)].to_vec()));
        }
        if longest > 0 {
            let rests = self.gather_blocks(connection, &bytes[first..], longest)?;
            for ((length, bytes), rest) in all.iter_mut().zip(rests.chunks(longest)) {
                bytes.extend(&rest[..*length - bytes.len()]);
            }
        }
        Ok(all.into_iter().map(|(_, bytes)| bytes).collect())
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// [`RankError`].
    pub fn barrier(&self) -> Result<(), RankError> {
        self.exchange(Vec::new()).map(drop)
    }

    fn transport(&self) -> Option<Transport> {
        self.connection.as_ref().map(|connection| connection.options.transport)
    }

    /// Blocks of all ranks, one after another; shorter ones are filled with zeros.
    fn gather_blocks(
        &self,
        connection: &Connection,
        own: &[u8],
        length: usize,
    ) -> Result<Vec<u8>, RankError> {
        let whole = blocks(connection.device, self.rank, self.size, own, length)
            .map_err(|error| refused("exchange", error))?;
        let call = Call::new("exchange", Operation::AllGather, &whole);
        self.run(&call, |counts| &mut counts.exchange)?;
        Vec::<u8>::try_from(&whole).map_err(|error| refused("exchange", error))
    }

    /// The length of a part.
    fn check_parts(&self, call: &Call<'_>) -> Result<i64, RankError> {
        let sizes = call.tensor.size();
        match sizes[..] {
            [length] if length % self.size as i64 == 0 => Ok(length / self.size as i64),
            _ => Err(call.refused(format!(
                "expected a flat tensor of {} equal parts, got {sizes:?}",
                self.size
            ))),
        }
    }

    fn run(
        &self,
        call: &Call<'_>,
        count: impl FnOnce(&mut Counts) -> &mut Count,
    ) -> Result<(), RankError> {
        let Some(connection) = &self.connection else { return Ok(()) };
        if let Some(error) = &*self.error.borrow() {
            return Err(error.clone());
        }
        let began = Instant::now();
        let result = connection.run(call, self.rank, self.size);
        if let Err(error) = &result
            && !matches!(error, RankError::Refused { .. })
        {
            self.error.replace(Some(error.clone()));
        }
        let mut counts = self.counts.get();
        let count = count(&mut counts);
        count.operations += 1;
        count.bytes += (call.tensor.numel() * call.tensor.kind().elt_size_in_bytes()) as u64;
        count.secs += began.elapsed().as_secs_f64();
        self.counts.set(counts);
        result
    }
}

impl Drop for Group {
    /// A group with work that cannot end is left alone: deleting it would wait for that.
    fn drop(&mut self) {
        if self.error.get_mut().is_some()
            && let Some(connection) = &mut self.connection
        {
            std::mem::forget(connection.backend.take());
            std::mem::forget(connection.checks.take());
        }
    }
}

impl Connection {
    fn backend(&self) -> &Backend {
        self.backend.as_ref().expect("taken by drop alone")
    }

    fn run(&self, call: &Call<'_>, rank: usize, size: usize) -> Result<(), RankError> {
        call.check_tensor(self.device)?;
        let number = self.begun.get() + 1;
        self.begun.set(number);
        if self.options.checks {
            self.agree(call, number, rank, size)?;
        }
        if call.tensor.numel() == 0 {
            return Ok(());
        }
        let tensor = call.sent().map_err(|error| call.refused(error))?;
        self.wait_for(
            call.name,
            self.backend().start(call.operation, &tensor, call.root),
            |cause| call.refused(cause),
        )
    }

    /// Refuses where ranks are at different collectives.
    fn agree(
        &self,
        call: &Call<'_>,
        number: u64,
        rank: usize,
        size: usize,
    ) -> Result<(), RankError> {
        let checks = self.checks.as_ref().unwrap_or_else(|| self.backend());
        let mut own = call.described(number).into_bytes();
        own.truncate(CHECK_BYTES);
        let whole =
            blocks(Device::Cpu, rank, size, &own, CHECK_BYTES).map_err(|e| call.refused(e))?;
        let work = checks.start(Operation::AllGather, &whole, 0);
        self.wait_for(call.name, work, |cause| call.refused(cause))?;
        let all = Vec::<u8>::try_from(&whole).map_err(|error| call.refused(error))?;
        let text = |block: &[u8]| String::from_utf8_lossy(block).trim_end_matches('\0').to_owned();
        let (first, others) = all.split_at(CHECK_BYTES);
        match others.chunks(CHECK_BYTES).position(|other| other != first) {
            None => Ok(()),
            Some(index) => Err(RankError::Mismatch {
                rank: 0,
                operation: text(first),
                other: index + 1,
                theirs: text(&others[index * CHECK_BYTES..][..CHECK_BYTES]),
            }),
        }
    }

    fn wait_for(
        &self,
        operation: &str,
        work: Called<super::c10d::Work>,
        refused: impl FnOnce(String) -> RankError,
    ) -> Result<(), RankError> {
        let (began, limit) = (Instant::now(), self.options.limit);
        let work = work.map_err(refused)?;
        loop {
            let is_done = work
                .wait(SLICE.min(limit))
                .map_err(|cause| failure(operation.to_owned(), cause, began, limit))?;
            if is_done {
                return Ok(());
            }
            self.backend()
                .check()
                .map_err(|cause| failure(operation.to_owned(), cause, began, limit))?;
            if let Some(cause) = (self.interrupt)() {
                return Err(RankError::Interrupted { operation: operation.to_owned(), cause });
            }
            let waited = began.elapsed();
            if waited >= limit {
                let (operation, secs) = (operation.to_owned(), waited.as_secs_f64());
                return Err(RankError::TimedOut { operation, secs });
            }
        }
    }
}

/// Meets the other ranks, in a thread of its own: libtorch would wait without a look at the interrupt.
fn connect(
    store: &Store,
    options: &GroupOptions,
    interrupt: &Interrupt,
) -> Result<Backend, RankError> {
    let (began, limit) = (Instant::now(), options.limit);
    let operation = || joining(options.size);
    let (sender, receiver) = channel();
    let (store, joining) = (store.clone(), options.clone());
    thread::spawn(move || {
        let joined = join(&store, &joining);
        // Where nobody waits any more the group ends here.
        let _ = sender.send(joined);
    });
    loop {
        match receiver.recv_timeout(SLICE) {
            Ok(joined) => return joined.map_err(|cause| failure(operation(), cause, began, limit)),
            Err(RecvTimeoutError::Disconnected) => {
                let cause = "its thread ended".to_owned();
                return Err(RankError::Connection { operation: operation(), cause });
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(cause) = interrupt() {
            return Err(RankError::Interrupted { operation: operation(), cause });
        }
    }
}

fn join(store: &Store, options: &GroupOptions) -> Called<Backend> {
    let GroupOptions { rank, size, transport, address, limit, .. } = options;
    match transport {
        Transport::Gloo => {
            let address = address.as_deref().unwrap_or("127.0.0.1");
            let backend = Backend::gloo(&store.0, address, *rank, *size, *limit)?;
            backend.set_limit(*limit + MARGIN).map(|()| backend)
        }
        Transport::Nccl { card } => Backend::nccl(&store.0, *card, *rank, *size, *limit + MARGIN),
    }
}

fn joining(size: usize) -> String {
    format!("join {size} ranks")
}

/// A collective that is asked for.
struct Call<'a> {
    name: &'static str,
    operation: Operation,
    tensor: &'a Tensor,
    root: usize,
}

impl<'a> Call<'a> {
    fn new(name: &'static str, operation: Operation, tensor: &'a Tensor) -> Self {
        Self { name, operation, tensor, root: 0 }
    }

    fn check_tensor(&self, device: Device) -> Result<(), RankError> {
        if self.tensor.device() != device {
            let got = self.tensor.device();
            return Err(
                self.refused(format!("expected a tensor on {device:?}, got one on {got:?}"))
            );
        }
        if !self.tensor.is_contiguous() {
            return Err(self.refused("expected a contiguous tensor, got one with gaps"));
        }
        let kind = self.tensor.kind();
        if self.is_arithmetic() && !ARITHMETIC.contains(&kind) {
            return Err(self.refused(format!("no arithmetic of {}", kind_name(kind))));
        }
        Ok(())
    }

    fn is_arithmetic(&self) -> bool {
        !matches!(self.operation, Operation::AllGather | Operation::Broadcast)
    }

    /// The same memory: as bytes where no arithmetic is done, since not all types travel.
    fn sent(&self) -> Result<Tensor, TchError> {
        let flat = self.tensor.f_detach()?.f_view([-1])?;
        if self.is_arithmetic() { Ok(flat) } else { flat.f_view_dtype(Kind::Uint8) }
    }

    fn described(&self, number: u64) -> String {
        let (kind, count) = (kind_name(self.tensor.kind()), self.tensor.numel());
        let from = match self.operation {
            Operation::Broadcast => format!(" from rank {}", self.root),
            _ => String::new(),
        };
        format!("{} of {count} {kind}{from}, collective {number}", self.name)
    }

    fn refused(&self, cause: impl fmt::Display) -> RankError {
        refused(self.name, cause)
    }
}

fn refused(operation: &str, cause: impl fmt::Display) -> RankError {
    RankError::Refused { operation: operation.to_owned(), cause: cause.to_string() }
}

/// `[size * length]` bytes, this rank's filled with `own`.
fn blocks(
    device: Device,
    rank: usize,
    size: usize,
    own: &[u8],
    length: usize,
) -> Result<Tensor, TchError> {
    let mut block = vec![0; length];
    block[..own.len()].copy_from_slice(own);
    let whole = Tensor::f_zeros([(size * length) as i64], (Kind::Uint8, device))?;
    let mut part = whole.f_narrow(0, (rank * length) as i64, length as i64)?;
    part.f_copy_(&Tensor::f_from_slice(&block)?)?;
    Ok(whole)
}
