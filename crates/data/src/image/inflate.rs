//! The zlib streams of PNG (RFC 1950, RFC 1951), bit by bit as zlib reads them.
//!
//! The PNG decoder of the crate `image` accepts other damaged files than Pillow and gives no access to the stream. Output is
//! produced in pieces, so that a small file cannot take much memory.

/// Bits of a code that are looked up at once.
const FAST_BITS: u32 = 10;
const MAX_BITS: usize = 15;
/// How far back a stream may copy from, bytes.
const WINDOW: usize = 1 << 15;
/// What is unpacked before what lies beyond the window is let go, bytes.
const KEPT: usize = 1 << 18;

const LENGTH_BASE: [u16; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
    163, 195, 227, 258,
];
const LENGTH_EXTRA: [u8; 29] =
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
const DISTANCE_BASE: [u16; 30] = [
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537,
    2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577,
];
const DISTANCE_EXTRA: [u8; 30] = [
    0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13,
    13,
];
/// The order in which the lengths of the code of lengths stand.
const LENGTHS_ORDER: [usize; 19] =
    [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

const TOO_FAR: &str = "invalid distance too far back";

/// Why a stream cannot be unpacked further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The input is over before the stream is.
    Input,
    /// The stream contradicts itself.
    Broken(&'static str),
}

/// A stream that is unpacked piece by piece.
pub(super) struct Inflate<'a> {
    bits: Bits<'a>,
    block: Block,
    is_last: bool,
    /// Unpacked: the window, then what was not taken yet.
    out: Vec<u8>,
    taken: usize,
    sum: Adler,
}

enum Block {
    Header,
    Stored(usize),
    Coded(Box<[Code; 2]>),
    /// The end of the stream, its checksum compared.
    End,
}

impl<'a> Inflate<'a> {
    /// Begins with the header of the stream.
    pub(super) fn new(input: &'a [u8]) -> Result<Self, Stop> {
        let mut bits = Bits::new(input);
        let [method, flags] = [bits.take(8)?, bits.take(8)?];
        let broken = match () {
            () if (method << 8 | flags) % 31 != 0 => Some("incorrect header check"),
            () if method & 15 != 8 => Some("unknown compression method"),
            () if method >> 4 > 7 => Some("invalid window size"),
            () if flags & 0x20 != 0 => Some("a dictionary is needed"),
            () => None,
        };
        match broken {
            Some(why) => Err(Stop::Broken(why)),
            None => Ok(Self {
                bits,
                block: Block::Header,
                is_last: false,
                out: Vec::new(),
                taken: 0,
                sum: Adler::default(),
            }),
        }
    }

    /// The next `length` bytes; fewer where the stream is over. Bytes that do not fill the piece are lost
    /// with an error.
    pub(super) fn take(&mut self, length: usize) -> Result<&[u8], Stop> {
        if self.taken > KEPT {
            self.out.drain(..self.taken - WINDOW);
            self.taken = WINDOW;
        }
        self.fill(length)?;
        let end = self.out.len().min(self.taken + length);
        let piece = &self.out[self.taken..end];
        self.taken = end;
        self.sum.add(piece);
        Ok(piece)
    }

    /// Whether the stream ends where the last piece did. Its checksum is compared where it does.
    pub(super) fn is_over(&mut self) -> Result<bool, Stop> {
        match self.fill(1) {
            // zlib looks at a distance only where there is room for what lies there.
            Err(Stop::Broken(TOO_FAR)) => Ok(false),
            filled => filled.map(|()| self.taken == self.out.len()),
        }
    }

    /// Unpacks until `length` bytes are there to be taken, or the stream is over.
    fn fill(&mut self, length: usize) -> Result<(), Stop> {
        while self.out.len() - self.taken < length {
            match &mut self.block {
                Block::End => return Ok(()),
                Block::Header if self.is_last => {
                    self.end()?;
                    self.block = Block::End;
                }
                Block::Header => {
                    self.is_last = self.bits.take(1)? == 1;
                    self.block = match self.bits.take(2)? {
                        0 => Block::Stored(self.bits.stored_length()?),
                        1 => Block::Coded(Box::new(fixed_codes()?)),
                        2 => Block::Coded(Box::new(self.bits.codes()?)),
                        _ => return Err(Stop::Broken("invalid block type")),
                    };
                }
                Block::Stored(0) => self.block = Block::Header,
                Block::Stored(left) => {
                    let wanted = length + self.taken - self.out.len();
                    let bytes = self.bits.bytes(wanted.min(*left))?;
                    *left -= bytes.len();
                    self.out.extend_from_slice(bytes);
                }
                Block::Coded(codes) => {
                    let goal = self.taken + length;
                    if self.bits.unpack(codes, &mut self.out, goal)? {
                        self.block = Block::Header;
                    }
                }
            }
        }
        Ok(())
    }

    /// What follows the last block.
    fn end(&mut self) -> Result<(), Stop> {
        self.bits.align();
        let mut stored = 0;
        for _ in 0..4 {
            stored = stored << 8 | self.bits.take(8)?;
        }
        let mut sum = self.sum;
        sum.add(&self.out[self.taken..]);
        match sum.value() == stored {
            true => Ok(()),
            false => Err(Stop::Broken("incorrect data check")),
        }
    }
}

/// Adler-32.
#[derive(Clone, Copy)]
struct Adler([u32; 2]);

impl Default for Adler {
    fn default() -> Self {
        Self([1, 0])
    }
}

impl Adler {
    fn add(&mut self, bytes: &[u8]) {
        let [mut a, mut b] = self.0;
        // So many sums stay below 2^32.
        for bytes in bytes.chunks(5552) {
            for byte in bytes {
                a += u32::from(*byte);
                b += a;
            }
            a %= 65521;
            b %= 65521;
        }
        self.0 = [a, b];
    }

    fn value(self) -> u32 {
        self.0[1] << 16 | self.0[0]
    }
}

/// The input, lowest bit first.
struct Bits<'a> {
    input: &'a [u8],
    /// Where the next byte is that is not held.
    at: usize,
    /// Bits to come; beyond `count` there may be more, which are read once more.
    hold: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0, hold: 0, count: 0 }
    }

    /// As many bits as fit, 56 at least where the input has them.
    fn refill(&mut self) {
        if let Some(word) = self.input[self.at..].first_chunk::<8>() {
            self.hold |= u64::from_le_bytes(*word) << self.count;
            let bytes = (63 - self.count) / 8;
            self.count += 8 * bytes;
            self.at += bytes as usize;
            return;
        }
        while self.count <= 56
            && let Some(byte) = self.input.get(self.at)
        {
            self.hold |= u64::from(*byte) << self.count;
            self.count += 8;
            self.at += 1;
        }
    }

    fn take(&mut self, count: u32) -> Result<u32, Stop> {
        if self.count < count {
            self.refill();
            if self.count < count {
                return Err(Stop::Input);
            }
        }
        let bits = self.hold & ((1 << count) - 1);
        self.skip(count);
        Ok(bits as u32)
    }

    /// Passes over bits that are held.
    fn skip(&mut self, count: u32) {
        self.hold >>= count;
        self.count -= count;
    }

    /// Passes over the rest of a byte.
    fn align(&mut self) {
        self.skip(self.count % 8);
    }

    fn stored_length(&mut self) -> Result<usize, Stop> {
        self.align();
        let [length, inverse] = [self.take(16)?, self.take(16)?];
        match length == !inverse & 0xffff {
            true => Ok(length as usize),
            false => Err(Stop::Broken("invalid stored block lengths")),
        }
    }

    /// Whole bytes, `most` or fewer, but some.
    fn bytes(&mut self, most: usize) -> Result<&'a [u8], Stop> {
        // Those that were held go back.
        self.at -= (self.count / 8) as usize;
        (self.hold, self.count) = (0, 0);
        let rest = &self.input[self.at..];
        let bytes = &rest[..most.min(rest.len())];
        self.at += bytes.len();
        match bytes {
            [] => Err(Stop::Input),
            _ => Ok(bytes),
        }
    }

    fn symbol(&mut self, code: &Code) -> Result<usize, Stop> {
        if self.count < MAX_BITS as u32 {
            self.refill();
        }
        let entry = code.fast[(self.hold & ((1 << FAST_BITS) - 1)) as usize];
        let (symbol, length) = match entry {
            0 => code.slow(self.hold, self.count)?,
            _ => (usize::from(entry >> 4), u32::from(entry & 15)),
        };
        if length > self.count {
            return Err(Stop::Input);
        }
        self.skip(length);
        Ok(symbol)
    }

    /// Unpacks to `goal` bytes and a little more; true at the end of the block.
    fn unpack(
        &mut self,
        [literals, distances]: &[Code; 2],
        out: &mut Vec<u8>,
        goal: usize,
    ) -> Result<bool, Stop> {
        while out.len() < goal {
            let symbol = match self.symbol(literals)? {
                literal @ 0..=255 => {
                    out.push(literal as u8);
                    continue;
                }
                256 => return Ok(true),
                symbol => symbol - 257,
            };
            let Some(base) = LENGTH_BASE.get(symbol) else {
                return Err(Stop::Broken("invalid literal/length code"));
            };
            let length = usize::from(*base) + self.take(LENGTH_EXTRA[symbol].into())? as usize;
            let symbol = self.symbol(distances)?;
            let Some(base) = DISTANCE_BASE.get(symbol) else {
                return Err(Stop::Broken("invalid distance code"));
            };
            let distance = usize::from(*base) + self.take(DISTANCE_EXTRA[symbol].into())? as usize;
            let Some(start) = out.len().checked_sub(distance) else {
                return Err(Stop::Broken(TOO_FAR));
            };
            if distance >= length {
                out.extend_from_within(start..start + length);
            } else {
                for at in start..start + length {
                    out.push(out[at]);
                }
            }
        }
        Ok(false)
    }

    /// The codes of a block that brings its own.
    fn codes(&mut self) -> Result<[Code; 2], Stop> {
        let num_literals = self.take(5)? as usize + 257;
        let num_distances = self.take(5)? as usize + 1;
        let num_lengths = self.take(4)? as usize + 4;
        if num_literals > 286 || num_distances > 30 {
            return Err(Stop::Broken("too many length or distance symbols"));
        }
        let mut lengths = [0; 19];
        for index in &LENGTHS_ORDER[..num_lengths] {
            lengths[*index] = self.take(3)? as u8;
        }
        let code = Code::new(&lengths, "invalid code lengths set", false)?;
        let mut lengths = Vec::with_capacity(num_literals + num_distances);
        while lengths.len() < num_literals + num_distances {
            let (length, times) = match self.symbol(&code)? {
                16 => match lengths.last() {
                    Some(last) => (*last, 3 + self.take(2)?),
                    None => return Err(Stop::Broken("invalid bit length repeat")),
                },
                17 => (0, 3 + self.take(3)?),
                18 => (0, 11 + self.take(7)?),
                length => (length as u8, 1),
            };
            lengths.extend(std::iter::repeat_n(length, times as usize));
        }
        if lengths.len() > num_literals + num_distances {
            return Err(Stop::Broken("invalid bit length repeat"));
        }
        if lengths[256] == 0 {
            return Err(Stop::Broken("invalid code -- missing end-of-block"));
        }
        let (literals, distances) = lengths.split_at(num_literals);
        Ok([
            Code::new(literals, "invalid literal/lengths set", true)?,
            Code::new(distances, "invalid distances set", true)?,
        ])
    }
}

/// A canonical Huffman code.
struct Code {
    /// By the next bits: symbol and length of short codes; 0 where that takes more.
    fast: Vec<u16>,
    /// Number of codes of each length.
    counts: [u16; MAX_BITS + 1],
    /// Symbols in the order of their codes.
    symbols: Vec<u16>,
}

impl Code {
    /// A code by the lengths of its symbols; one that is not full holds a single symbol at most, if `may_lack`.
    fn new(lengths: &[u8], wrong: &'static str, may_lack: bool) -> Result<Self, Stop> {
        let mut counts = [0u16; MAX_BITS + 1];
        for length in lengths {
            counts[usize::from(*length)] += 1;
        }
        counts[0] = 0;
        let longest = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
        let mut left = 1i32;
        for count in &counts[1..] {
            left = left * 2 - i32::from(*count);
            if left < 0 {
                return Err(Stop::Broken(wrong));
            }
        }
        if left > 0 && longest > 0 && (longest > 1 || !may_lack) {
            return Err(Stop::Broken(wrong));
        }
        let mut symbols = Vec::with_capacity(lengths.len());
        let mut fast = vec![0; 1 << FAST_BITS];
        let mut next = 0u32;
        for length in 1..=MAX_BITS as u32 {
            let of_length = lengths.iter().enumerate();
            for (symbol, _) in of_length.filter(|(_, own)| u32::from(**own) == length) {
                symbols.push(symbol as u16);
                if length <= FAST_BITS {
                    let first = (next.reverse_bits() >> (32 - length)) as usize;
                    for entry in fast.iter_mut().skip(first).step_by(1 << length) {
                        *entry = (symbol as u16) << 4 | length as u16;
                    }
                }
                next += 1;
            }
            next <<= 1;
        }
        Ok(Self { fast, counts, symbols })
    }

    /// Symbol and length of any code, bit by bit.
    fn slow(&self, hold: u64, available: u32) -> Result<(usize, u32), Stop> {
        let (mut code, mut first, mut index) = (0i32, 0i32, 0i32);
        for length in 1..=MAX_BITS as u32 {
            if length > available {
                return Err(Stop::Input);
            }
            code |= (hold >> (length - 1) & 1) as i32;
            let count = i32::from(self.counts[length as usize]);
            if code - count < first {
                let symbol = self.symbols[(index + code - first) as usize];
                return Ok((usize::from(symbol), length));
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        Err(Stop::Broken("invalid code"))
    }
}

fn fixed_codes() -> Result<[Code; 2], Stop> {
    let mut lengths = [8u8; 288];
    lengths[144..256].fill(9);
    lengths[256..280].fill(7);
    Ok([Code::new(&lengths, "fixed code", true)?, Code::new(&[5; 32], "fixed code", true)?])
}

/// The result of unpacking a stream whose content is not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measured {
    /// Bytes, as far as the stream is there.
    Length(usize),
    /// More than the limit.
    TooLong,
    /// It is no stream.
    Broken,
}

/// Unpacks a stream to nowhere, `limit` bytes of it at most, whole KiB.
pub(super) fn measure(input: &[u8], limit: usize) -> Measured {
    const PIECE: usize = 1 << 10;
    let mut length = 0;
    let mut stream = match Inflate::new(input) {
        Ok(stream) => stream,
        Err(Stop::Input) => return Measured::Length(0),
        Err(Stop::Broken(_)) => return Measured::Broken,
    };
    loop {
        match stream.take(PIECE) {
            Ok([]) | Err(Stop::Input) => return Measured::Length(length),
            Ok(piece) => length += piece.len(),
            Err(Stop::Broken(_)) => return Measured::Broken,
        }
        if length >= limit {
            return match stream.is_over() {
                Ok(false) => Measured::TooLong,
                Ok(true) | Err(Stop::Input) => Measured::Length(length),
                Err(Stop::Broken(_)) => Measured::Broken,
            };
        }
    }
}
