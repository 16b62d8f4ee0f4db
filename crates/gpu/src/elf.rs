//! Reads the names that a shared library needs.
//!
//! Only what x86_64 Linux uses: 64-bit little-endian ELF, whose layout is in elf(5).

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

const SECTION_DYNAMIC: u32 = 6;
const SECTION_HEADER_BYTES: usize = 64;
const TAG_NEEDED: u64 = 1;

/// The `DT_NEEDED` names of the library at `path`, in file order.
///
/// # Errors
/// Where it cannot be read, or is no whole ELF file.
pub fn needed(path: &Path) -> io::Result<Vec<String>> {
    read(path).map_err(|error| {
        let text = format!("cannot read the shared library `{}`: {error}", path.display());
        io::Error::new(error.kind(), text)
    })
}

fn bad(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

fn read(path: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let head = bytes(&mut file, 0, 64)?;
    if head[..6] != *b"\x7fELF\x02\x01" {
        return Err(bad("not a 64-bit little-endian ELF file"));
    }
    let count = usize::from(u16_at(&head, 60));
    let table = bytes(&mut file, u64_at(&head, 40), count * SECTION_HEADER_BYTES)?;
    let sections: Vec<&[u8]> = table.chunks_exact(SECTION_HEADER_BYTES).collect();
    let Some(dynamic) = sections.iter().find(|s| u32_at(s, 4) == SECTION_DYNAMIC) else {
        return Ok(Vec::new());
    };
    let strings =
        sections.get(u32_at(dynamic, 40) as usize).ok_or_else(|| bad("no string table"))?;
    let entries = section(&mut file, dynamic)?;
    let strings = section(&mut file, strings)?;
    entries
        .chunks_exact(16)
        .filter(|entry| u64_at(entry, 0) == TAG_NEEDED)
        .map(|entry| name(&strings, u64_at(entry, 8)))
        .collect()
}

fn section(file: &mut File, header: &[u8]) -> io::Result<Vec<u8>> {
    bytes(file, u64_at(header, 24), u64_at(header, 32) as usize)
}

fn bytes(file: &mut File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    if offset.saturating_add(len as u64) > file.metadata()?.len() {
        return Err(bad("the file is cut short"));
    }
    let mut buffer = vec![0; len];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut buffer)?;
    Ok(buffer)
}

fn name(strings: &[u8], offset: u64) -> io::Result<String> {
    let rest = strings.get(offset as usize..).ok_or_else(|| bad("a name outside its table"))?;
    let end = rest.iter().position(|byte| *byte == 0).ok_or_else(|| bad("a name without end"))?;
    Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_needs_libc() {
        let me = std::env::current_exe().expect("path");
        let names = needed(&me).expect("elf");
        assert!(names.iter().any(|name| name == "libc.so.6"), "{names:?}");
    }

    #[test]
    fn cut_and_foreign_files_are_errors() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x.so");
        std::fs::write(&path, [b'x'; 64]).expect("write");
        assert!(needed(&path).expect_err("foreign").to_string().contains("not a 64-bit"));
        let me = std::fs::read(std::env::current_exe().expect("path")).expect("read");
        std::fs::write(&path, &me[..me.len() / 2]).expect("write");
        assert!(needed(&path).expect_err("cut").to_string().contains("cut short"));
    }
}
