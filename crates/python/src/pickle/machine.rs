//! The machine that a pickle is a program for, without the instructions that call.

use std::collections::HashMap;

use super::PickleFault;
use super::numpy::{self, DType, Global};

/// The newest protocol that is read.
const NEWEST: u8 = 5;

/// Something that a pickle has built; containers hold indices of others.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<usize>),
    Tuple(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    /// One of the names that are known.
    Global(Global),
    /// Type of the numbers of an array.
    DType(DType),
    /// An array whose numbers are still to come.
    Array,
}

impl Node {
    /// What it is, for a message.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a name",
            Self::DType(_) => "a NumPy type",
            Self::Array => "a NumPy array",
        }
    }
}

/// What a pickle has built so far.
pub(super) struct Machine {
    nodes: Vec<Node>,
    stack: Vec<usize>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, usize>,
    result: usize,
}

type Done<T = ()> = Result<T, String>;

impl Machine {
    /// Runs a pickle to its end.
    pub(super) fn run(bytes: &[u8]) -> Result<Self, PickleFault> {
        let mut machine = Self {
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            result: 0,
        };
        let mut reader = Reader { bytes, at: 0 };
        loop {
            let start = reader.at;
            let step = reader.byte().and_then(|code| machine.step(code, &mut reader));
            match step {
                Ok(true) => return Ok(machine),
                Ok(false) => {}
                Err(reason) => {
                    return Err(PickleFault { byte: start, reason });
                }
            }
        }
    }

    pub(super) fn result(&self) -> usize {
        self.result
    }

    pub(super) fn node(&self, id: usize) -> &Node {
        &self.nodes[id]
    }

    /// Does one instruction; true where it was the last.
    fn step(&mut self, code: u8, reader: &mut Reader<'_>) -> Done<bool> {
        match code {
            0x80 => match reader.byte()? {
                version if version <= NEWEST => {}
                version => return Err(format!("protocol {version}, expected at most {NEWEST}")),
            },
            // The length of what follows, which its end tells as well.
            0x95 => drop(reader.take(8)?),
            b'.' => {
                self.result = self.pop()?;
                return Ok(true);
            }
            b'N' | 0x88 | 0x89 | b'I' | b'J' | b'K' | b'M' | b'L' | 0x8a | 0x8b | b'F' | b'G' => {
                let node = number(code, reader)?;
                self.push(node);
            }
            b'S' | b'T' | b'U' | b'V' | b'X' | 0x8c | 0x8d | b'B' | b'C' | 0x8e | 0x96 => {
                let node = text(code, reader)?;
                self.push(node);
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' | b'1' | b'2' => self.shuffle(code)?,
            b'g' | b'h' | b'j' | b'p' | b'q' | b'r' | 0x94 => self.remember(code, reader)?,
            b'c' | 0x93 => self.name(code, reader)?,
            b'R' => self.call()?,
            b'b' => self.build()?,
            _ => self.contain(code)?,
        }
        Ok(false)
    }

    /// Instructions of lists, tuples, dicts and sets.
    fn contain(&mut self, code: u8) -> Done {
        match code {
            b']' | 0x8f => self.push(Node::List(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            b')' => self.push(Node::Tuple(Vec::new())),
            b'l' | 0x91 => {
                let items = self.since_mark()?;
                self.push(Node::List(items));
            }
            b't' => {
                let items = self.since_mark()?;
                self.push(Node::Tuple(items));
            }
            b'd' => {
                let items = self.since_mark()?;
                self.push(Node::Dict(pairs(&items)?));
            }
            0x85..=0x87 => {
                let mut items: Vec<usize> =
                    (0x85..=code).map(|_| self.pop()).collect::<Done<_>>()?;
                items.reverse();
                self.push(Node::Tuple(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.since_mark()?;
                self.append(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set(pairs(&items)?)?;
            }
            b'i' | b'o' | 0x81 | 0x92 | b'P' | b'Q' | 0x82..=0x84 => {
                return Err(refused("an object of a class"));
            }
            _ => return Err(format!("unknown instruction {code:#04x}: not a pickle?")),
        }
        Ok(())
    }

    fn push(&mut self, node: Node) {
        self.nodes.push(node);
        self.stack.push(self.nodes.len() - 1);
    }

    /// The top of the stack, above the last mark.
    fn pop(&mut self) -> Done<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().ok_or_else(nothing),
            false => Err(nothing()),
        }
    }

    fn top(&self) -> Done<usize> {
        self.stack.last().copied().ok_or_else(nothing)
    }

    /// All above the last mark, which goes too.
    fn since_mark(&mut self) -> Done<Vec<usize>> {
        let mark = self.marks.pop().ok_or("no mark to go back to")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn append(&mut self, items: Vec<usize>) -> Done {
        let id = self.top()?;
        match &mut self.nodes[id] {
            Node::List(list) => list.extend(items),
            other => return Err(format!("items for {}, expected a list", other.kind())),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<(usize, usize)>) -> Done {
        let id = self.top()?;
        match &mut self.nodes[id] {
            Node::Dict(pairs) => pairs.extend(items),
            other => return Err(format!("keys for {}, expected a dict", other.kind())),
        }
        Ok(())
    }

    /// Takes things off the stack, or doubles its top.
    fn shuffle(&mut self, code: u8) -> Done {
        match code {
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            _ => self.stack.push(self.top()?),
        }
        Ok(())
    }

    /// Puts the top of the stack into the memo, or takes something from there.
    fn remember(&mut self, code: u8, reader: &mut Reader<'_>) -> Done {
        let key = match code {
            b'g' | b'p' => {
                let line = reader.line()?;
                line.parse().map_err(|_| format!("memo number `{line}`"))?
            }
            b'h' | b'q' => u64::from(reader.byte()?),
            b'j' | b'r' => reader.unsigned(4)?,
            _ => self.memo.len() as u64,
        };
        match code {
            b'g' | b'h' | b'j' => {
                let id = self.memo.get(&key).ok_or_else(|| format!("nothing in memo {key}"))?;
                self.stack.push(*id);
            }
            _ => {
                self.memo.insert(key, self.top()?);
            }
        }
        Ok(())
    }

    /// A name out of a module, if it is one of those known.
    fn name(&mut self, code: u8, reader: &mut Reader<'_>) -> Done {
        let (module, name) = if code == b'c' {
            (reader.line()?.to_owned(), reader.line()?.to_owned())
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (&self.nodes[module], &self.nodes[name]) {
                (Node::Text(module), Node::Text(name)) => (module.clone(), name.clone()),
                _ => return Err("a name that is no text".to_owned()),
            }
        };
        let known = Global::known(&module, &name);
        let global = known.ok_or_else(|| refused(&format!("`{module}.{name}`")))?;
        self.push(Node::Global(global));
        Ok(())
    }

    /// What a known name makes of its arguments.
    fn call(&mut self) -> Done {
        let (arguments, name) = (self.pop()?, self.pop()?);
        let Node::Global(global) = self.nodes[name] else {
            return Err(refused("a call"));
        };
        let Node::Tuple(arguments) = self.nodes[arguments].clone() else {
            return Err("a call without arguments".to_owned());
        };
        let node = numpy::call(global, &arguments, &mut self.nodes)?;
        self.push(node);
        Ok(())
    }

    /// Gives the top of the stack its state.
    fn build(&mut self) -> Done {
        let (state, id) = (self.pop()?, self.top()?);
        let node = numpy::build(id, state, &mut self.nodes)?;
        self.nodes[id] = node;
        Ok(())
    }
}

fn nothing() -> String {
    "nothing on the stack to take".to_owned()
}

fn refused(what: &str) -> String {
    format!(
        "{what}: only plain data is read\n\
         hint: in Python, load it and write lists, dicts, numbers and texts, as JSON or pickle"
    )
}

fn pairs(items: &[usize]) -> Done<Vec<(usize, usize)>> {
    match items.len().is_multiple_of(2) {
        true => Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()),
        false => Err("a key without a value".to_owned()),
    }
}

/// A number, a boolean or None.
fn number(code: u8, reader: &mut Reader<'_>) -> Done<Node> {
    Ok(match code {
        b'N' => Node::None,
        0x88 => Node::Bool(true),
        0x89 => Node::Bool(false),
        b'I' => match reader.line()? {
            "00" => Node::Bool(false),
            "01" => Node::Bool(true),
            line => Node::Int(whole(line)?),
        },
        b'L' => Node::Int(whole(reader.line()?.trim_end_matches('L'))?),
        b'J' => Node::Int(i64::from(reader.unsigned(4)? as u32 as i32)),
        b'K' => Node::Int(i64::from(reader.byte()?)),
        b'M' => Node::Int(reader.unsigned(2)? as i64),
        0x8a => {
            let length = usize::from(reader.byte()?);
            Node::Int(long(reader.take(length)?)?)
        }
        0x8b => {
            let length = reader.length(4)?;
            Node::Int(long(reader.take(length)?)?)
        }
        b'F' => {
            let line = reader.line()?;
            Node::Float(line.parse().map_err(|_| format!("number `{line}`"))?)
        }
        _ => {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(reader.take(8)?);
            Node::Float(f64::from_be_bytes(bytes))
        }
    })
}

fn whole(text: &str) -> Done<i64> {
    let wrong = || format!("whole number `{text}`, expected one of 64 bits");
    text.trim().parse().map_err(|_| wrong())
}

/// A whole number in two's complement, the lowest byte first.
fn long(bytes: &[u8]) -> Done<i64> {
    if bytes.len() > 8 {
        return Err(format!("a whole number of {} bytes, expected at most 64 bits", bytes.len()));
    }
    let is_negative = bytes.last().is_some_and(|byte| *byte >= 0x80);
    let mut all = [if is_negative { 0xff } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Ok(i64::from_le_bytes(all))
}

/// A text or bytes. Python 2's texts are bytes, and read as UTF-8 where they are that, else as Latin-1.
fn text(code: u8, reader: &mut Reader<'_>) -> Done<Node> {
    let length = match code {
        b'S' => return quoted(reader.line_bytes()?),
        b'V' => return unescaped(&latin_1(reader.line_bytes()?)),
        b'U' | b'C' | 0x8c => usize::from(reader.byte()?),
        b'T' | b'X' | b'B' => reader.length(4)?,
        _ => reader.length(8)?,
    };
    let bytes = reader.take(length)?;
    match code {
        b'B' | b'C' | 0x8e | 0x96 => Ok(Node::Bytes(bytes.to_vec())),
        b'T' | b'U' => Ok(Node::Text(python_2_text(bytes))),
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Node::Text(text.to_owned())),
            // Halves of surrogate pairs, which Python's texts may hold.
            Err(_) => Err("a text that is not UTF-8".to_owned()),
        },
    }
}

fn python_2_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => latin_1(bytes),
    }
}

fn latin_1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// `repr` of Python 2's text, quotes around it.
fn quoted(line: &[u8]) -> Done<Node> {
    let inner =
        [b"'", b"\""].into_iter().find_map(|quote| line.strip_prefix(quote)?.strip_suffix(quote));
    let inner = inner.ok_or_else(|| "a text without its quotes".to_owned())?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let escape = rest.next().ok_or("a text that ends in a backslash")?;
        bytes.push(match escape {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let digits = [rest.next(), rest.next()].map(Option::unwrap_or_default);
                hexadecimal(&digits)? as u8
            }
            other => other,
        });
    }
    Ok(Node::Text(python_2_text(&bytes)))
}

/// A text with `\uXXXX` and `\UXXXXXXXX`, all else as it stands.
fn unescaped(line: &str) -> Done<Node> {
    let mut units: Vec<u16> = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let digits = match rest.get(..2) {
            Some("\\u") => 4,
            Some("\\U") => 8,
            _ => {
                units.extend(c.encode_utf16(&mut [0; 2]).iter());
                rest = &rest[c.len_utf8()..];
                continue;
            }
        };
        let escape = rest.as_bytes().get(2..2 + digits);
        let escape = escape.ok_or("a text that ends in an escape")?;
        let code = hexadecimal(escape)?;
        match u16::try_from(code) {
            Ok(unit) => units.push(unit),
            Err(_) => {
                let c = char::from_u32(code).ok_or("an escape that is no character")?;
                units.extend(c.encode_utf16(&mut [0; 2]).iter());
            }
        }
        rest = &rest[2 + digits..];
    }
    let text = String::from_utf16(&units);
    text.map(Node::Text).map_err(|_| "a text with half a character".to_owned())
}

fn hexadecimal(digits: &[u8]) -> Done<u32> {
    digits.iter().try_fold(0u32, |code, digit| {
        let value = char::from(*digit).to_digit(16).ok_or("an escape that is not hexadecimal")?;
        Ok(code << 4 | value)
    })
}

/// The bytes that are left.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Done<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        if length > rest.len() {
            return Err(format!("the file ends {} bytes too early", length - rest.len()));
        }
        self.at += length;
        Ok(&rest[..length])
    }

    fn byte(&mut self) -> Done<u8> {
        Ok(self.take(1)?[0])
    }

    /// A number of up to 8 bytes, the lowest first.
    fn unsigned(&mut self, length: usize) -> Done<u64> {
        let bytes = self.take(length)?.iter().rev();
        Ok(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn length(&mut self, length: usize) -> Done<usize> {
        usize::try_from(self.unsigned(length)?).map_err(|_| "a length over 64 bits".to_owned())
    }

    /// Up to the end of the line, which goes too.
    fn line_bytes(&mut self) -> Done<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or("the file ends within a line")?;
        self.at += end + 1;
        let line = &rest[..end];
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }

    /// The same as text.
    fn line(&mut self) -> Done<&'a str> {
        let line = std::str::from_utf8(self.line_bytes()?);
        line.map_err(|_| "a line that is not UTF-8".to_owned())
    }
}
