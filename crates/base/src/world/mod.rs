//! The ranks of a run, as far as they must agree: sums, votes, gathered bytes. All of it is made of one operation,
//! [`World::exchange`], so that every implementation sums in the same order and finds ranks that have parted.
//!
//! A run of one process has [`Local`]; [`Threads`] are ranks for tests. How tensors travel is not known here.

mod error;
mod threads;

use std::ops::Range;

pub use error::WorldError;
pub use threads::Threads;

/// One rank's view of all. Every method but [`Self::rank`], [`Self::size`], [`Self::is_main`], [`Self::share`] and
/// [`Self::fail`] must be called by all ranks, in the same order; it waits for them. `operation` says what for, such as
/// `stop of step 3`: ranks that name different ones get an error.
pub trait World {
    /// From 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// Sends `bytes` to all ranks and returns what each sent, by rank. Lengths may differ.
    ///
    /// # Errors
    /// Where another rank failed, ended or did not come in time. Later calls fail too.
    fn exchange(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, WorldError>;

    /// Tells the other ranks that this one ends by an error: what they wait for fails with `cause`.
    fn fail(&self, cause: &str);

    /// Whether this is the rank that writes the run folder.
    fn is_main(&self) -> bool {
        self.rank() == 0
    }

    /// This rank's part of `count` things: parts follow one another by rank, and differ by at most one.
    fn share(&self, count: usize) -> Range<usize> {
        share(self.rank(), self.size(), count)
    }

    /// What each rank gives, by rank.
    ///
    /// # Errors
    /// Those of [`Self::exchange`], and where ranks are at different operations.
    fn gather(&self, operation: &str, bytes: &[u8]) -> Result<Vec<Vec<u8>>, WorldError> {
        let mut message = (operation.len() as u64).to_le_bytes().to_vec();
        message.extend(operation.as_bytes());
        message.extend(bytes);
        let mut all = Vec::with_capacity(self.size());
        for (rank, message) in self.exchange(message)?.into_iter().enumerate() {
            let (theirs, bytes) =
                unpack(&message).ok_or(WorldError::Message { rank, bytes: message.len() })?;
            if theirs != operation.as_bytes() {
                return Err(WorldError::Parted {
                    rank: self.rank(),
                    operation: operation.to_owned(),
                    other: rank,
                    theirs: String::from_utf8_lossy(theirs).into_owned(),
                });
            }
            all.push(bytes.to_vec());
        }
        Ok(all)
    }

    /// The numbers of each rank, by rank. How many may differ.
    ///
    /// # Errors
    /// Those of [`Self::gather`].
    fn gather_numbers(
        &self,
        operation: &str,
        numbers: &[f64],
    ) -> Result<Vec<Vec<f64>>, WorldError> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let read = |(rank, bytes): (usize, Vec<u8>)| {
            let (numbers, rest) = bytes.as_chunks::<8>();
            match rest {
                [] => Ok(numbers.iter().copied().map(f64::from_le_bytes).collect()),
                _ => Err(WorldError::Message { rank, bytes: bytes.len() }),
            }
        };
        self.gather(operation, &bytes)?.into_iter().enumerate().map(read).collect()
    }

    /// The sum over ranks of each number, in the order of ranks: all get the same bits.
    ///
    /// # Errors
    /// Those of [`Self::gather`], and where ranks give different counts of numbers.
    fn sum(&self, operation: &str, numbers: &[f64]) -> Result<Vec<f64>, WorldError> {
        fold(&self.gather_numbers(operation, numbers)?, operation, |a, b| a + b)
    }

    /// The largest over ranks of each number; NaN where one is.
    ///
    /// # Errors
    /// As [`Self::sum`].
    fn max(&self, operation: &str, numbers: &[f64]) -> Result<Vec<f64>, WorldError> {
        let larger = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
        fold(&self.gather_numbers(operation, numbers)?, operation, larger)
    }

    /// Whether it is so on any rank.
    ///
    /// # Errors
    /// Those of [`Self::gather`].
    fn any(&self, operation: &str, here: bool) -> Result<bool, WorldError> {
        Ok(self.gather(operation, &[u8::from(here)])?.contains(&vec![1]))
    }

    /// What rank 0 gives; `bytes` of others are not read.
    ///
    /// # Errors
    /// Those of [`Self::gather`].
    fn broadcast(&self, operation: &str, bytes: &[u8]) -> Result<Vec<u8>, WorldError> {
        let own = if self.is_main() { bytes } else { &[] };
        Ok(self.gather(operation, own)?.swap_remove(0))
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// Those of [`Self::gather`].
    fn barrier(&self, operation: &str) -> Result<(), WorldError> {
        self.gather(operation, &[]).map(drop)
    }
}

/// The part of `count` things that rank `rank` of `size` has, as [`World::share`].
pub fn share(rank: usize, size: usize, count: usize) -> Range<usize> {
    rank * count / size..(rank + 1) * count / size
}

/// What bytes for [`World::exchange`] are for, where [`World::gather`] made them.
pub fn operation_of(message: &[u8]) -> Option<&str> {
    unpack(message).and_then(|(operation, _)| std::str::from_utf8(operation).ok())
}

/// The name of the operation, and what was given to it.
fn unpack(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = message.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

fn fold(
    all: &[Vec<f64>],
    operation: &str,
    join: impl Fn(f64, f64) -> f64,
) -> Result<Vec<f64>, WorldError> {
    let Some((first, others)) = all.split_first() else { return Ok(Vec::new()) };
    let mut result = first.clone();
    for (index, numbers) in others.iter().enumerate() {
        if numbers.len() != first.len() {
            return Err(WorldError::Counts {
                operation: operation.to_owned(),
                expected: first.len(),
                rank: index + 1,
                got: numbers.len(),
            });
        }
        for (joined, number) in result.iter_mut().zip(numbers) {
            *joined = join(*joined, *number);
        }
    }
    Ok(result)
}

/// The world of a run of one rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

impl World for Local {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, WorldError> {
        Ok(vec![bytes])
    }

    fn fail(&self, _cause: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_everything_is_ones_own() {
        let world = Local;
        assert!(world.is_main());
        assert_eq!(world.share(7), 0..7);
        assert_eq!(world.sum("loss", &[1.5, -2.0]).unwrap(), [1.5, -2.0]);
        assert_eq!(world.max("norm", &[0.5]).unwrap(), [0.5]);
        assert!(!world.any("stop", false).unwrap() && world.any("stop", true).unwrap());
        assert_eq!(world.broadcast("seed", b"42").unwrap(), b"42");
        assert_eq!(world.gather("rows", b"").unwrap(), [b""]);
    }

    #[test]
    fn a_message_that_is_cut_off_is_no_message() {
        assert_eq!(unpack(&[1, 0, 0]), None);
        assert_eq!(unpack(&9_u64.to_le_bytes()), None);
        let whole = [&4_u64.to_le_bytes()[..], b"stop", b"x"].concat();
        assert_eq!(operation_of(&whole), Some("stop"));
        assert_eq!(operation_of(b"bytes"), None);
        assert_eq!(unpack(&whole), Some((&b"stop"[..], &b"x"[..])));
    }
}
