//! TensorBoard event files: records of length, checksum, message, checksum; the message is a
//! `tensorflow.Event` in protocol buffers, of which scalars need six fields.
//!
//! Source: `event.proto`, `summary.proto` and the record format of TensorFlow 2.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::RunError;
use super::files::io;
use crate::metrics;

/// One point of one curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalar {
    /// Name of the curve.
    pub tag: String,
    /// Training step.
    pub step: u64,
    /// Its value.
    pub value: f32,
}

/// An event file that is being written.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    path: PathBuf,
}

const VERSION: &str = "brain.Event:2";
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;
/// Field numbers of `Event`.
const WALL_TIME: u64 = 1;
const STEP: u64 = 2;
const FILE_VERSION: u64 = 3;
const SUMMARY: u64 = 5;
/// Field number of `Summary`, and those of its `Value`.
const VALUE: u64 = 1;
const TAG: u64 = 1;
const SIMPLE_VALUE: u64 = 2;

impl EventFile {
    /// Creates the next file of `folder`: TensorBoard reads them in the order of their names.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn create(folder: &Path) -> Result<Self, RunError> {
        let (secs, pid) = (wall_time(), std::process::id());
        let mut number = 0;
        loop {
            let name = format!("events.out.tfevents.{:010}.vlm-r1.{pid}.{number}", secs as u64);
            let path = folder.join(name);
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Ok(file) => {
                    let mut events = Self { file, path };
                    events.append(&encode(&first_message()))?;
                    return Ok(events);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(io(&path)(error)),
            }
        }
    }

    /// Appends points, all of one step.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn write(&mut self, scalars: &[Scalar]) -> Result<(), RunError> {
        let Some(first) = scalars.first() else {
            return Ok(());
        };
        let mut summary = Vec::new();
        for Scalar { tag, value, .. } in scalars {
            let mut point = Vec::new();
            put_bytes(&mut point, TAG, tag.as_bytes());
            put_key(&mut point, SIMPLE_VALUE, FIXED32);
            point.extend(value.to_le_bytes());
            put_bytes(&mut summary, VALUE, &point);
        }
        let mut event = Vec::new();
        put_key(&mut event, WALL_TIME, FIXED64);
        event.extend(wall_time().to_le_bytes());
        put_key(&mut event, STEP, VARINT);
        put_varint(&mut event, first.step);
        put_bytes(&mut event, SUMMARY, &summary);
        self.append(&encode(&event))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), RunError> {
        self.file.write_all(bytes).map_err(io(&self.path))
    }

    pub(super) fn sync(&self) -> Result<(), RunError> {
        self.file.sync_all().map_err(io(&self.path))
    }
}

/// The numbers of a step's metrics, tagged with their [names](crate::metrics::flat).
pub(super) fn scalars(step: u64, metrics: &Map<String, Value>) -> Vec<Scalar> {
    let numbers = metrics::flat(metrics).into_iter().filter(|(name, _)| name != "step");
    numbers
        .filter_map(|(tag, value)| Some(Scalar { tag, step, value: value.as_f64()? as f32 }))
        .collect()
}

/// All points of an event file.
///
/// # Errors
/// Where it cannot be read or has a broken record that is not the last one.
pub fn read_scalars(path: &Path) -> Result<Vec<Scalar>, RunError> {
    let bytes = std::fs::read(path).map_err(io(path))?;
    let mut scalars = Vec::new();
    let (records, broken) = records(&bytes);
    if let Some(&offset) = broken.first() {
        let path = path.to_owned();
        return Err(RunError::Events { path, offset });
    }
    for Record { payload, step } in records {
        for (_, summary) in fields(payload).filter(|(number, _)| *number == SUMMARY) {
            for (_, point) in fields(summary.bytes()).filter(|(number, _)| *number == VALUE) {
                let mut scalar = Scalar { tag: String::new(), step, value: f32::NAN };
                for (number, value) in fields(point.bytes()) {
                    match (number, value) {
                        (TAG, Wire::Bytes(tag)) => {
                            scalar.tag = String::from_utf8_lossy(tag).into_owned();
                        }
                        (SIMPLE_VALUE, Wire::Fixed32(bits)) => scalar.value = f32::from_bits(bits),
                        _ => {}
                    }
                }
                scalars.push(scalar);
            }
        }
    }
    Ok(scalars)
}

/// A message of an event file.
pub(super) struct Record<'a> {
    pub payload: &'a [u8],
    pub step: u64,
}

/// The whole messages of an event file, and where it is broken; a torn last message is neither.
pub(super) fn records(bytes: &[u8]) -> (Vec<Record<'_>>, Vec<usize>) {
    let (mut records, mut broken) = (Vec::new(), Vec::new());
    let mut offset = 0;
    while offset < bytes.len() {
        match read_record(&bytes[offset..]) {
            Read::Whole(payload) => {
                let step = fields(payload).find_map(|(number, value)| match (number, value) {
                    (STEP, Wire::Varint(step)) => Some(step),
                    _ => None,
                });
                let step = step.unwrap_or(0);
                records.push(Record { payload, step });
                offset += payload.len() + FRAME;
            }
            Read::Torn => break,
            Read::Broken => {
                broken.push(offset);
                // Two checksums that both hold mark where the next whole one begins.
                let whole = |at: &usize| matches!(read_record(&bytes[*at..]), Read::Whole(_));
                match (offset + 1..bytes.len()).find(whole) {
                    Some(next) => offset = next,
                    None => break,
                }
            }
        }
    }
    (records, broken)
}

/// Bytes of a record beside its message.
const FRAME: usize = 8 + 4 + 4;

enum Read<'a> {
    Whole(&'a [u8]),
    Torn,
    Broken,
}

fn read_record(bytes: &[u8]) -> Read<'_> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Read::Torn;
    };
    let Some((checksum, rest)) = rest.split_first_chunk::<4>() else {
        return Read::Torn;
    };
    if masked_checksum(length) != u32::from_le_bytes(*checksum) {
        return Read::Broken;
    }
    let length = u64::from_le_bytes(*length) as usize;
    let Some((payload, rest)) = rest.split_at_checked(length) else {
        return Read::Torn;
    };
    let Some((checksum, _)) = rest.split_first_chunk::<4>() else {
        return Read::Torn;
    };
    if masked_checksum(payload) != u32::from_le_bytes(*checksum) {
        return Read::Broken;
    }
    Read::Whole(payload)
}

/// Whether a message is the first of a file, which says the version.
pub(super) fn is_first(payload: &[u8]) -> bool {
    fields(payload).any(|(number, _)| number == FILE_VERSION)
}

/// The first message of a file.
pub(super) fn first_message() -> Vec<u8> {
    let mut first = Vec::new();
    put_key(&mut first, WALL_TIME, FIXED64);
    first.extend(wall_time().to_le_bytes());
    put_bytes(&mut first, FILE_VERSION, VERSION.as_bytes());
    first
}

/// A message as it stands in the file.
pub(super) fn encode(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(payload.len() + 16);
    record.extend(length);
    record.extend(masked_checksum(&length).to_le_bytes());
    record.extend(payload);
    record.extend(masked_checksum(payload).to_le_bytes());
    record
}

/// The checksum of the record format: CRC-32C, rotated and offset so that checksums of data that
/// holds checksums stay good.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_key(out: &mut Vec<u8>, field: u64, wire: u64) {
    put_varint(out, field << 3 | wire);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

enum Wire<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn bytes(&self) -> &'a [u8] {
        match self {
            Wire::Bytes(bytes) => bytes,
            _ => &[],
        }
    }
}

/// The fields of a message; ends where it is not one.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, Wire<'_>)> {
    std::iter::from_fn(move || {
        let key = take_varint(&mut message)?;
        let value = match key & 7 {
            VARINT => Wire::Varint(take_varint(&mut message)?),
            FIXED64 => {
                message = message.get(8..)?;
                Wire::Fixed64
            }
            BYTES => {
                let length = take_varint(&mut message)? as usize;
                let (bytes, rest) = message.split_at_checked(length)?;
                message = rest;
                Wire::Bytes(bytes)
            }
            FIXED32 => {
                let (bits, rest) = message.split_first_chunk::<4>()?;
                message = rest;
                Wire::Fixed32(u32::from_le_bytes(*bits))
            }
            _ => return None,
        };
        Some((key >> 3, value))
    })
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_those_of_the_encoding_guide() {
        for (value, bytes) in
            [(0, vec![0]), (127, vec![127]), (150, vec![0x96, 1]), (300, vec![0xac, 2])]
        {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out, bytes);
            assert_eq!(take_varint(&mut out.as_slice()), Some(value));
        }
        let mut out = Vec::new();
        put_varint(&mut out, u64::MAX);
        assert_eq!((out.len(), take_varint(&mut out.as_slice())), (10, Some(u64::MAX)));
    }

    #[test]
    fn a_record_is_laid_out_by_hand() {
        // CRC-32C of eight bytes `3 0 0 0 0 0 0 0` and of `abc` (0x364b3fb7, the published value).
        let rotate = |crc: u32| crc.rotate_right(15).wrapping_add(0xa282_ead8);
        let record = encode(b"abc");
        assert_eq!(record.len(), 8 + 4 + 3 + 4);
        assert_eq!(record[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(record[12..15], *b"abc");
        assert_eq!(record[15..], rotate(0x364b_3fb7).to_le_bytes());
    }
}
