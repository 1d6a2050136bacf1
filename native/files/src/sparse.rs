//! Files with holes, as version 1.0 of GNU tar's sparse format: the extents stand in front of the data, as decimal numbers.
use crate::{fail, on_stream, Kind, Result};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;

const BLOCK: usize = 512;
/// Extents of one file. A file with more goes without holes.
const MAX_EXTENTS: usize = 1 << 16;
/// Digits of a 64-bit number.
const MAX_DIGITS: usize = 20;

/// Offset and length of data.
pub type Extent = (u64, u64);

/// The file's data, or nothing where it has no holes to speak of.
pub fn extents(file: &File, size: u64) -> Option<Vec<Extent>> {
    let seek = |offset: u64, whence| {
        // SAFETY: no memory is passed.
        u64::try_from(unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) }).ok()
    };
    let mut found = Vec::new();
    let mut offset = 0;
    while offset < size {
        // No data from here on: ENXIO.
        let Some(start) = seek(offset, libc::SEEK_DATA).filter(|start| *start < size) else { break };
        let end = seek(start, libc::SEEK_HOLE)?.min(size);
        if end <= start || found.len() >= MAX_EXTENTS {
            return None;
        }
        found.push((start, end - start));
        offset = end;
    }
    seek(0, libc::SEEK_SET)?;
    let holds: u64 = found.iter().map(|(_, length)| length).sum();
    // GNU tar ends its list with an empty extent where the file ends in a hole.
    found.push((size, 0));
    (holds < size).then_some(found)
}

pub fn encode(extents: &[Extent]) -> Vec<u8> {
    let mut text = format!("{}\n", extents.len());
    for (offset, length) in extents {
        text.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// Reads the list from the beginning of an entry's data; what follows are the extents' bytes.
pub fn decode(data: &mut impl Read) -> Result<Vec<Extent>> {
    let mut taken = 0;
    let count = number(data, &mut taken)?;
    if count > 1 << 20 {
        return fail(Kind::Stream, format!("a sparse file of {count} pieces"));
    }
    let mut extents = Vec::new();
    let mut end = 0;
    for _ in 0..count {
        let (offset, length) = (number(data, &mut taken)?, number(data, &mut taken)?);
        if offset < end || offset.checked_add(length).is_none() {
            return fail(Kind::Stream, "the pieces of a sparse file overlap");
        }
        end = offset + length;
        extents.push((offset, length));
    }
    let mut padding = vec![0; taken.next_multiple_of(BLOCK) - taken];
    data.read_exact(&mut padding).map_err(|error| on_stream(&error))?;
    Ok(extents)
}

fn number(data: &mut impl Read, taken: &mut usize) -> Result<u64> {
    let mut digits = String::new();
    loop {
        let mut byte = [0];
        data.read_exact(&mut byte).map_err(|error| on_stream(&error))?;
        *taken += 1;
        match byte[0] {
            b'\n' => break,
            digit @ b'0'..=b'9' if digits.len() < MAX_DIGITS => digits.push(char::from(digit)),
            _ => return fail(Kind::Stream, "the list of a sparse file's pieces is no list of numbers"),
        }
    }
    digits.parse().or_else(|_| fail(Kind::Stream, "the list of a sparse file's pieces is no list of numbers"))
}
