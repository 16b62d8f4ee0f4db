//! Python pickles of plain data as JSON values: numbers, texts, lists, dicts, and NumPy's arrays and
//! numbers of them.
//!
//! A pickle is a program for a stack machine. This machine has the instructions that build plain data
//! and none that calls a function. A name from a module is an error, except for those by which NumPy
//! describes arrays. Protocols 0 to 5
//! (<https://docs.python.org/3/library/pickletools.html>).

mod machine;
mod numpy;

use serde_json::{Map, Number, Value};

use machine::{Machine, Node};

/// Levels of lists and dicts inside each other.
const MAX_DEPTH: usize = 64;
/// Values that a byte of the file may become, by references to what was read before.
const VALUES_PER_BYTE: usize = 4;
/// Values that any file may become.
const FREE_VALUES: usize = 10_000;

/// Where and why a pickle cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub struct PickleFault {
    /// Offset in the file.
    pub byte: usize,
    /// What was met there, in words.
    pub reason: String,
}

/// The value in the bytes of a pickle. Tuples and sets become lists, keys that are numbers texts, and
/// bytes, of which no format here needs the content, null.
///
/// # Errors
/// A pickle that is cut off or holds more than plain data.
pub fn parse(bytes: &[u8]) -> Result<Value, PickleFault> {
    let machine = Machine::run(bytes)?;
    let mut export = Export {
        machine: &machine,
        left: bytes.len().saturating_mul(VALUES_PER_BYTE) + FREE_VALUES,
    };
    let value = export.value(machine.result(), 0);
    value.map_err(|reason| PickleFault { byte: bytes.len(), reason })
}

/// Converts the nodes of the machine to values. Shared nodes are copied, so depth and number are
/// bounded.
struct Export<'a> {
    machine: &'a Machine,
    left: usize,
}

impl Export<'_> {
    fn value(&mut self, id: usize, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err(format!("data nested deeper than {MAX_DEPTH} levels, or in itself"));
        }
        self.left = self
            .left
            .checked_sub(1)
            .ok_or("data that grows beyond its file by references to itself")?;
        match self.machine.node(id) {
            Node::None | Node::Bytes(_) => Ok(Value::Null),
            Node::Bool(value) => Ok(Value::Bool(*value)),
            Node::Int(value) => Ok(Value::from(*value)),
            Node::Float(value) => Number::from_f64(*value)
                .map(Value::Number)
                .ok_or_else(|| format!("the number {value}, which JSON does not have")),
            Node::Text(text) => Ok(Value::String(text.clone())),
            Node::List(items) | Node::Tuple(items) => {
                let items = items.iter().map(|item| self.value(*item, depth + 1));
                items.collect::<Result<_, _>>().map(Value::Array)
            }
            Node::Dict(pairs) => self.object(pairs, depth),
            Node::Global(global) => Err(format!("the name `{}` as a value", global.name())),
            Node::DType(_) | Node::Array => Err("an unfinished NumPy array".to_owned()),
        }
    }

    fn object(&mut self, pairs: &[(usize, usize)], depth: usize) -> Result<Value, String> {
        let mut object = Map::new();
        for (key, value) in pairs {
            let key = match self.machine.node(*key) {
                Node::Text(text) => text.clone(),
                Node::Int(number) => number.to_string(),
                other => return Err(format!("a key that is {}", other.kind())),
            };
            object.insert(key, self.value(*value, depth + 1)?);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Bytes of a pickle written as Python's `repr` would show them.
    fn parsed(bytes: &[u8]) -> Result<Value, String> {
        parse(bytes).map_err(|fault| format!("{}: {}", fault.byte, fault.reason))
    }

    #[test]
    fn texts_of_protocol_0_are_read() {
        // pickle.dumps([{'a': 1, 'b': (2.5, None, True)}, 'x\ny'], 0)
        let bytes = b"(lp0\n(dp1\nVa\np2\nI1\nsVb\np3\n(F2.5\nNI01\ntp4\nsaVx\\u000ay\np5\na.";
        assert_eq!(parsed(bytes), Ok(json!([{"a": 1, "b": [2.5, null, true]}, "x\ny"])));
        // pickle.dumps('caf\xe9', 0): Latin-1 outside of escapes.
        assert_eq!(parsed(b"Vcaf\xe9\np0\n."), Ok(json!("caf\u{e9}")));
        // Of Python 2: 'caf\xc3\xa9' and a long.
        let bytes = b"(lp0\nS'caf\\xc3\\xa9'\np1\naL12L\na.";
        assert_eq!(parsed(bytes), Ok(json!(["caf\u{e9}", 12])));
    }

    #[test]
    fn calls_are_refused_by_name() {
        for (bytes, name) in [
            (&b"cos\nsystem\n(S'true'\ntR."[..], "os.system"),
            (b"\x80\x02cbuiltins\neval\nU\x011\x85R.", "builtins.eval"),
            (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "os.system"),
            (b"\x80\x02cnumpy\nload\nU\x01x\x85R.", "numpy.load"),
        ] {
            let error = parsed(bytes).expect_err("a call");
            assert!(
                error.contains(&format!("`{name}`")) && error.contains("plain data"),
                "{error}"
            );
        }
        for bytes in
            [&b"(S'a'\nios\nsystem\n."[..], b"\x80\x02N\x81.", b"\x80\x02P0\n.", b"\x80\x02NQ."]
        {
            assert!(parsed(bytes).is_err());
        }
    }

    #[test]
    fn cut_off_and_broken_pickles_are_refused_where_they_break() {
        let whole = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00]\x94(K\x01\x8c\x03abc\x94G?\xf0\x00\x00\x00\x00\x00\x00e.";
        assert_eq!(parsed(whole), Ok(json!([1, "abc", 1.0])));
        for length in 0..whole.len() {
            assert!(parsed(&whole[..length]).is_err(), "{length}");
        }
        for (bytes, reason) in [
            (&b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff."[..], "ends"),
            (b"\x80\x04X\xff\xff\xff\xff.", "ends"),
            (b"\x80\x09N.", "protocol 9"),
            (b"\x80\x04\xff.", "instruction"),
            (b"e.", "mark"),
            (b"a.", "nothing"),
            (b"h\x05.", "memo"),
            (b"\x80\x04K\x01K\x02a.", "list"),
            (b"\x80\x02\x8a\x09\x01\x01\x01\x01\x01\x01\x01\x01\x01.", "64 bits"),
        ] {
            let error = parsed(bytes).expect_err("broken");
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn data_that_refers_to_itself_does_not_grow_or_hang() {
        // x = []; x.append(x)
        let error = parsed(b"\x80\x02]q\x00h\x00a.").expect_err("endless");
        assert!(error.contains("nested"), "{error}");
        // Thirty lists, each of the one before, twice: a thousand million values.
        let mut bytes = b"\x80\x02]q\x00".to_vec();
        for level in 1..=30 {
            bytes.extend([b']', b'q', level, b'h', level - 1, b'a', b'h', level - 1, b'a']);
        }
        bytes.extend(b".");
        assert!(parsed(&bytes).expect_err("a bomb").contains("grows"));
        // A hundred thousand lists in each other.
        let mut bytes = vec![b']'; 100_000];
        bytes.extend(vec![b'a'; 99_999]);
        bytes.extend(b".");
        assert!(parsed(&bytes).expect_err("deep").contains("nested"));
    }
}
