//! NumPy's arrays and numbers as pickles describe them: a handful of names, none of which is called.

use super::machine::Node;

/// A name that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `numpy.ndarray`, an argument of the next.
    Array,
    /// `numpy.core.multiarray._reconstruct`: an array whose numbers follow as state.
    Reconstruct,
    /// `numpy.core.numeric._frombuffer`: an array of bytes.
    FromBuffer,
    /// `numpy.core.multiarray.scalar`: a number.
    Scalar,
    /// `numpy.dtype`: a type.
    DType,
    /// `_codecs.encode`: Python 3's bytes in protocols before 3.
    Encode,
}

const NAMES: [(&str, &str, Global); 9] = [
    ("numpy", "ndarray", Global::Array),
    ("numpy", "dtype", Global::DType),
    ("numpy.core.multiarray", "_reconstruct", Global::Reconstruct),
    ("numpy._core.multiarray", "_reconstruct", Global::Reconstruct),
    ("numpy.core.multiarray", "scalar", Global::Scalar),
    ("numpy._core.multiarray", "scalar", Global::Scalar),
    ("numpy.core.numeric", "_frombuffer", Global::FromBuffer),
    ("numpy._core.numeric", "_frombuffer", Global::FromBuffer),
    ("_codecs", "encode", Global::Encode),
];

impl Global {
    pub(super) fn known(module: &str, name: &str) -> Option<Self> {
        let found = NAMES.iter().find(|(m, n, _)| (*m, *n) == (module, name));
        found.map(|(_, _, global)| *global)
    }

    pub(super) fn name(self) -> &'static str {
        let found = NAMES.iter().find(|(_, _, global)| *global == self);
        found.map_or("", |(_, name, _)| name)
    }
}

/// Type of the numbers of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DType {
    /// `i`, `u`, `f` or `b`.
    kind: u8,
    num_bytes: usize,
    is_big_endian: bool,
}

impl DType {
    /// From NumPy's short name, `f8`.
    fn parse(name: &str) -> Result<Self, String> {
        let plain = name.trim_start_matches(['<', '>', '=', '|']);
        let bytes = plain.as_bytes();
        let kind = bytes.first().copied().unwrap_or_default();
        let num_bytes = plain.get(1..).and_then(|digits| digits.parse().ok()).unwrap_or(0);
        let is_known = match kind {
            b'i' | b'u' => [1, 2, 4, 8].contains(&num_bytes),
            b'f' => [4, 8].contains(&num_bytes),
            b'b' => num_bytes == 1,
            _ => false,
        };
        match is_known {
            true => Ok(Self { kind, num_bytes, is_big_endian: name.starts_with('>') }),
            false => Err(format!("NumPy type `{name}`, expected whole numbers, f4, f8 or b1")),
        }
    }

    /// The numbers in `bytes`.
    fn numbers(self, bytes: &[u8]) -> Result<Vec<Node>, String> {
        let chunks = bytes.chunks_exact(self.num_bytes);
        if !chunks.remainder().is_empty() {
            return Err(format!("{} bytes for numbers of {}", bytes.len(), self.num_bytes));
        }
        chunks.map(|chunk| self.number(chunk)).collect()
    }

    fn number(self, chunk: &[u8]) -> Result<Node, String> {
        // The lowest byte first, extended to 64 bits by the sign.
        let mut ordered = chunk.to_vec();
        if self.is_big_endian {
            ordered.reverse();
        }
        let is_negative = self.kind == b'i' && ordered.last().is_some_and(|byte| *byte >= 0x80);
        let mut all = [if is_negative { 0xff } else { 0 }; 8];
        all[..ordered.len()].copy_from_slice(&ordered);
        let whole = u64::from_le_bytes(all);
        Ok(match (self.kind, self.num_bytes) {
            (b'f', 4) => Node::Float(f64::from(f32::from_bits(whole as u32))),
            (b'f', _) => Node::Float(f64::from_bits(whole)),
            (b'b', _) => Node::Bool(whole != 0),
            (b'u', _) => match i64::try_from(whole) {
                Ok(number) => Node::Int(number),
                Err(_) => return Err(format!("the number {whole}, over 63 bits")),
            },
            _ => Node::Int(whole as i64),
        })
    }
}

/// What a name makes of its arguments.
pub(super) fn call(
    global: Global,
    arguments: &[usize],
    nodes: &mut Vec<Node>,
) -> Result<Node, String> {
    let wrong = || format!("`{}` with other arguments than NumPy writes", global.name());
    let argument = |index: usize| arguments.get(index).map(|id| nodes[*id].clone());
    match (global, argument(0), argument(1)) {
        (Global::Reconstruct, Some(Node::Global(Global::Array)), _) => Ok(Node::Array),
        (Global::DType, Some(Node::Text(name)), _) => DType::parse(&name).map(Node::DType),
        (Global::Scalar, Some(Node::DType(dtype)), Some(Node::Bytes(bytes))) => {
            let numbers = dtype.numbers(&bytes)?;
            numbers.into_iter().next().ok_or_else(wrong)
        }
        (Global::Encode, Some(Node::Text(text)), Some(Node::Text(codec))) if codec == "latin1" => {
            let bytes = text.chars().map(|c| u8::try_from(c).map_err(|_| wrong()));
            bytes.collect::<Result<_, _>>().map(Node::Bytes)
        }
        (Global::FromBuffer, Some(Node::Bytes(bytes)), Some(Node::DType(dtype))) => {
            let (Some(shape), Some(Node::Text(order))) = (arguments.get(2), argument(3)) else {
                return Err(wrong());
            };
            array(&bytes, dtype, *shape, order == "F", nodes)
        }
        _ => Err(wrong()),
    }
}

/// What an unfinished array or type becomes by its state.
pub(super) fn build(id: usize, state: usize, nodes: &mut Vec<Node>) -> Result<Node, String> {
    let Node::Tuple(state) = nodes[state].clone() else {
        return Err("a state that is no tuple".to_owned());
    };
    let part = |index: usize| state.get(index).map(|id| nodes[*id].clone());
    match (nodes[id].clone(), part(1), part(2), part(3), part(4)) {
        (Node::DType(dtype), Some(Node::Text(order)), ..) => {
            Ok(Node::DType(DType { is_big_endian: order == ">", ..dtype }))
        }
        (
            Node::Array,
            Some(Node::Tuple(_)),
            Some(Node::DType(dtype)),
            Some(Node::Bool(is_fortran)),
            Some(Node::Bytes(bytes)),
        ) => array(&bytes, dtype, state[1], is_fortran, nodes),
        (other, ..) => Err(format!("a state for {}, as NumPy does not write it", other.kind())),
    }
}

/// The array as lists in lists.
fn array(
    bytes: &[u8],
    dtype: DType,
    shape: usize,
    is_fortran: bool,
    nodes: &mut Vec<Node>,
) -> Result<Node, String> {
    let Node::Tuple(sides) = &nodes[shape] else {
        return Err("a shape that is no tuple".to_owned());
    };
    let sides = sides.iter().map(|side| match nodes[*side] {
        Node::Int(side) => usize::try_from(side).map_err(|_| "a negative side".to_owned()),
        ref other => Err(format!("a side that is {}", other.kind())),
    });
    let sides: Vec<usize> = sides.collect::<Result<_, _>>()?;
    if is_fortran && sides.len() > 1 {
        return Err("an array in Fortran's order".to_owned());
    }
    let numbers = dtype.numbers(bytes)?;
    let expected = sides.iter().try_fold(1usize, |all, side| all.checked_mul(*side));
    if expected != Some(numbers.len()) {
        return Err(format!("{} numbers for an array of shape {sides:?}", numbers.len()));
    }
    if numbers.is_empty() {
        return Ok(Node::List(Vec::new()));
    }
    let mut level: Vec<usize> = numbers.into_iter().map(|node| push(nodes, node)).collect();
    for side in sides.iter().skip(1).rev() {
        let lists = level.chunks(*side).map(<[usize]>::to_vec);
        level = lists.map(|list| push(nodes, Node::List(list))).collect();
    }
    match sides.is_empty() {
        true => Ok(nodes[level[0]].clone()),
        false => Ok(Node::List(level)),
    }
}

fn push(nodes: &mut Vec<Node>, node: Node) -> usize {
    nodes.push(node);
    nodes.len() - 1
}
