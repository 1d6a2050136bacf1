//! The tar format: POSIX's, with the extended headers of pax and GNU's long names. Reader and writer are in one
//! file: what one of them writes into a field the other one takes out of it.
use crate::{fail, on_stream, Failure, Kind, Result};
use std::io::{self, Read};

pub const BLOCK: usize = 512;
/// Extended headers of one entry: names, links and attributes of 64 KiB each.
const MAX_EXTENDED_BYTES: u64 = 1 << 20;
const MAX_RECORDS: usize = 256;

/// The type flags.
pub mod kind {
    pub const FILE: u8 = b'0';
    pub const OLD_FILE: u8 = 0;
    pub const LINK: u8 = b'1';
    pub const SYMLINK: u8 = b'2';
    pub const CHARACTER: u8 = b'3';
    pub const BLOCK: u8 = b'4';
    pub const DIRECTORY: u8 = b'5';
    pub const FIFO: u8 = b'6';
    pub const CONTIGUOUS: u8 = b'7';
    pub const GLOBAL: u8 = b'g';
    pub const EXTENDED: u8 = b'x';
    pub const LONG_NAME: u8 = b'L';
    pub const LONG_LINK: u8 = b'K';
}

/// Where the fields of a header are.
mod field {
    use std::ops::Range;
    pub const NAME: Range<usize> = 0..100;
    pub const MODE: Range<usize> = 100..108;
    pub const UID: Range<usize> = 108..116;
    pub const GID: Range<usize> = 116..124;
    pub const SIZE: Range<usize> = 124..136;
    pub const MTIME: Range<usize> = 136..148;
    pub const CHECKSUM: Range<usize> = 148..156;
    pub const KIND: usize = 156;
    pub const LINK: Range<usize> = 157..257;
    pub const MAGIC: Range<usize> = 257..265;
    pub const MAJOR: Range<usize> = 329..337;
    pub const MINOR: Range<usize> = 337..345;
    pub const PREFIX: Range<usize> = 345..500;
}

/// Names and values of extended attributes.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// What a header says of an entry.
#[derive(Debug, Default, Clone)]
pub struct Entry {
    pub kind: u8,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Of the data that follows.
    pub size: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    pub device: (u32, u32),
    pub attributes: Attributes,
    /// The file's size; its data begins with a list of its pieces (`sparse`).
    pub sparse_bytes: Option<u64>,
}

/// Reads entries; between two of them the data of the former is there to be read.
pub struct Archive<R> {
    input: R,
    left: u64,
    padding: u64,
    /// The input ended without the two empty blocks of an archive's end.
    pub is_cut: bool,
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.input.read(&mut buffer[..wanted])?;
        self.left -= count as u64;
        Ok(count)
    }
}

impl<R: Read> Archive<R> {
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, is_cut: false }
    }

    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; nothing at the archive's end.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let mut extended: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let Some(block) = self.block()? else { return Ok(None) };
            let mut entry = parse(&block)?;
            match entry.kind {
                kind::EXTENDED => extended = records(&self.document(entry.size)?)?,
                kind::LONG_NAME => long_name = Some(text_of(&self.document(entry.size)?).to_vec()),
                kind::LONG_LINK => long_link = Some(text_of(&self.document(entry.size)?).to_vec()),
                kind::GLOBAL => drop(self.document(entry.size)?),
                _ => {
                    entry.name = long_name.unwrap_or(entry.name);
                    entry.link = long_link.unwrap_or(entry.link);
                    for (key, value) in extended {
                        entry.extend(&key, value)?;
                    }
                    self.begin(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn document(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENDED_BYTES {
            return fail(Kind::Stream, format!("an extended header of {size} bytes"));
        }
        self.begin(size);
        let mut bytes = vec![0; size as usize];
        self.read_exact(&mut bytes).map_err(|error| on_stream(&error))?;
        Ok(bytes)
    }

    /// The next header.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let rest = std::mem::take(&mut self.left) + std::mem::take(&mut self.padding);
        let skipped =
            io::copy(&mut self.input.by_ref().take(rest), &mut io::sink()).map_err(|error| on_stream(&error))?;
        let mut block = [0; BLOCK];
        let mut count = 0;
        while count < BLOCK {
            match self.input.read(&mut block[count..]).map_err(|error| on_stream(&error))? {
                0 => break,
                read => count += read,
            }
        }
        if skipped < rest || (count > 0 && count < BLOCK) {
            return fail(Kind::Stream, "the stream ended in the middle");
        }
        self.is_cut = count == 0;
        Ok((count > 0 && block.iter().any(|byte| *byte != 0)).then_some(block))
    }
}

fn parse(block: &[u8; BLOCK]) -> Result<Entry> {
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = block[field::CHECKSUM].iter().map(|byte| u64::from(*byte)).sum();
    if number(&block[field::CHECKSUM])? != sum - own + 8 * u64::from(b' ') {
        return fail(Kind::Stream, "not a tar stream");
    }
    let narrow = |range| -> Result<u32> {
        u32::try_from(number(&block[range])?).or_else(|_| fail(Kind::Stream, "a number of more than 32 bits"))
    };
    let mut name = text_of(&block[field::NAME]).to_vec();
    // GNU's own headers have times in the place of the prefix.
    let prefix = text_of(&block[field::PREFIX]);
    if &block[field::MAGIC] == b"ustar\x0000" && !prefix.is_empty() {
        name = [prefix, b"/", &name].concat();
    }
    let kind = block[field::KIND];
    let has_data =
        !matches!(kind, kind::LINK | kind::SYMLINK | kind::CHARACTER | kind::BLOCK | kind::DIRECTORY | kind::FIFO);
    let is_device = matches!(kind, kind::CHARACTER | kind::BLOCK);
    Ok(Entry {
        // The oldest archives say by a slash what is a directory.
        kind: if kind == kind::OLD_FILE && name.ends_with(b"/") { kind::DIRECTORY } else { kind },
        name,
        link: text_of(&block[field::LINK]).to_vec(),
        mode: number(&block[field::MODE])? as u32 & 0o7777,
        owner: (narrow(field::UID)?, narrow(field::GID)?),
        size: if has_data { number(&block[field::SIZE])? } else { 0 },
        mtime: (number(&block[field::MTIME])? as i64, 0),
        device: if is_device { (narrow(field::MAJOR)?, narrow(field::MINOR)?) } else { (0, 0) },
        attributes: Vec::new(),
        sparse_bytes: None,
    })
}

/// Up to the first NUL.
fn text_of(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, or GNU's binary form for large and negative numbers.
fn number(field: &[u8]) -> Result<u64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let first = if negative { u64::MAX } else { u64::from(field[0] & 0x3f) };
        return Ok(field[1..].iter().fold(first, |value, byte| (value << 8) | u64::from(*byte)));
    }
    let digits = text_of(field).trim_ascii();
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'7' if value < 1 << 60 => Ok(value << 3 | u64::from(digit - b'0')),
        _ => fail(Kind::Stream, "a header's number is none"),
    })
}

/// "LENGTH KEY=VALUE\n", one after the other; a value may hold anything.
fn records(mut bytes: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let bad = || Failure { kind: Kind::Stream, text: "an extended header is malformed".into() };
    let mut found = Vec::new();
    while !bytes.is_empty() && bytes[0] != 0 {
        let space = bytes.iter().position(|byte| *byte == b' ').filter(|at| *at <= 10).ok_or_else(bad)?;
        let length: usize =
            std::str::from_utf8(&bytes[..space]).ok().and_then(|text| text.parse().ok()).ok_or_else(bad)?;
        if length < space + 3 || length > bytes.len() || bytes[length - 1] != b'\n' || found.len() >= MAX_RECORDS {
            return Err(bad());
        }
        let record = &bytes[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        found.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(found)
}

impl Entry {
    fn extend(&mut self, key: &[u8], value: Vec<u8>) -> Result<()> {
        let text = || std::str::from_utf8(&value).unwrap_or_default();
        fn parsed<T: std::str::FromStr>(text: &str) -> Result<T> {
            text.parse().or_else(|_| fail(Kind::Stream, format!("an extended header says {text:?} for a number")))
        }
        match key {
            b"path" | b"GNU.sparse.name" => self.name = value,
            b"linkpath" => self.link = value,
            b"size" => self.size = parsed(text())?,
            b"uid" => self.owner.0 = parsed(text())?,
            b"gid" => self.owner.1 = parsed(text())?,
            b"mtime" => self.mtime = parse_time(text())?,
            b"GNU.sparse.major" if value != b"1" => return fail(Kind::Stream, "a sparse file of an old kind"),
            b"GNU.sparse.realsize" => self.sparse_bytes = Some(parsed(text())?),
            b"GNU.sparse.size" | b"GNU.sparse.map" => return fail(Kind::Stream, "a sparse file of an old kind"),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.".as_slice()) {
                    self.attributes.push((name.to_vec(), value));
                }
            }
        }
        Ok(())
    }
}

/// "1700000000.123456789", also negative.
fn parse_time(text: &str) -> Result<(i64, i64)> {
    let bad = || Failure { kind: Kind::Stream, text: format!("{text:?} is no time") };
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 32 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let whole: i64 = seconds.parse().map_err(|_| bad())?;
    let nanoseconds: i64 = format!("{fraction:0<9}")[..9].parse().map_err(|_| bad())?;
    if nanoseconds > 0 && seconds.starts_with('-') {
        return Ok((whole.saturating_sub(1), 1_000_000_000 - nanoseconds));
    }
    Ok((whole, nanoseconds))
}

fn time_text((seconds, nanoseconds): (i64, i64)) -> String {
    if nanoseconds == 0 {
        return seconds.to_string();
    }
    // Before 1970 the fraction counts down from the second above.
    if seconds < 0 {
        let whole = seconds + 1;
        let sign = if whole == 0 { "-" } else { "" };
        return format!("{sign}{whole}.{:09}", 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
}

/// The header blocks of an entry. `extra`: further extended records. What a plain header has no room for goes into an extended one.
pub fn header(entry: &Entry, extra: &[(&str, &[u8])]) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| records.extend(record(key, value));
    for (key, value) in extra {
        add(key.as_bytes(), value);
    }
    let mut put = |key: &str, value: &[u8], room: usize| {
        if value.len() > room {
            add(key.as_bytes(), value);
        }
    };
    put("path", &entry.name, field::NAME.len());
    put("linkpath", &entry.link, field::LINK.len());
    let mut plain = entry.clone();
    for (key, id) in [("uid", &mut plain.owner.0), ("gid", &mut plain.owner.1)] {
        if !fits(u64::from(*id), field::UID.len()) {
            add(key.as_bytes(), id.to_string().as_bytes());
            *id = 0;
        }
    }
    if !fits(entry.size, field::SIZE.len()) {
        add(b"size", entry.size.to_string().as_bytes());
        plain.size = 0;
    }
    let (seconds, nanoseconds) = entry.mtime;
    if nanoseconds != 0 || seconds < 0 || !fits(seconds as u64, field::MTIME.len()) {
        add(b"mtime", time_text(entry.mtime).as_bytes());
        plain.mtime.0 = if fits(seconds.max(0) as u64, field::MTIME.len()) { seconds.max(0) } else { 0 };
    }
    for (name, value) in &entry.attributes {
        add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    let mut blocks = Vec::new();
    if !records.is_empty() {
        let size = records.len() as u64;
        let describes = Entry { kind: kind::EXTENDED, name: b"pax".to_vec(), mode: 0o644, size, ..Entry::default() };
        blocks.extend(plain_header(&describes));
        records.resize(records.len().next_multiple_of(BLOCK), 0);
        blocks.extend(records);
    }
    blocks.extend(plain_header(&plain));
    blocks
}

/// The length counts its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Whether a number's octal digits fit into a field, before its NUL.
fn fits(value: u64, width: usize) -> bool {
    value >> (3 * (width - 1)) == 0
}

fn plain_header(entry: &Entry) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut fill = |range: std::ops::Range<usize>, value: &[u8]| {
        let length = value.len().min(range.len());
        block[range.start..range.start + length].copy_from_slice(&value[..length]);
    };
    let octal = |value: u64, width: usize| format!("{value:0>width$o}", width = width - 1);
    let wide = |value: u64, range: std::ops::Range<usize>| octal(value, range.len());
    fill(field::NAME, &entry.name);
    fill(field::LINK, &entry.link);
    fill(field::MODE, wide(u64::from(entry.mode), field::MODE).as_bytes());
    fill(field::UID, wide(u64::from(entry.owner.0), field::UID).as_bytes());
    fill(field::GID, wide(u64::from(entry.owner.1), field::GID).as_bytes());
    fill(field::SIZE, wide(entry.size, field::SIZE).as_bytes());
    fill(field::MTIME, wide(entry.mtime.0 as u64, field::MTIME).as_bytes());
    fill(field::MAGIC, b"ustar\x0000");
    // Device numbers have 20 bits at most.
    fill(field::MAJOR, wide(u64::from(entry.device.0), field::MAJOR).as_bytes());
    fill(field::MINOR, wide(u64::from(entry.device.1), field::MINOR).as_bytes());
    fill(field::CHECKSUM, b"        ");
    block[field::KIND] = entry.kind;
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let text = format!("{sum:06o}\0 ");
    block[field::CHECKSUM].copy_from_slice(text.as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(entry: &Entry) -> Entry {
        let mut stream = header(entry, &[]);
        stream.extend(vec![b'x'; entry.size as usize]);
        stream.resize(stream.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
        let mut archive = Archive::new(stream.as_slice());
        let read = archive.next().unwrap().unwrap();
        assert!(archive.next().unwrap().is_none() && !archive.is_cut);
        read
    }

    #[test]
    fn what_is_written_is_read_again() {
        let long = |letter: u8| vec![letter; 300];
        let entry = Entry {
            kind: kind::FILE,
            name: [long(b'n'), b"\nwith=a line".to_vec()].concat(),
            link: long(b'l'),
            mode: 0o4755,
            owner: (4_000_000_000, 65_534),
            size: 700,
            mtime: (-2, 250_000_000),
            attributes: vec![(b"user.\xc3\xa4".to_vec(), b"a\nb\0c".to_vec())],
            ..Entry::default()
        };
        assert_eq!(format!("{:?}", there_and_back(&entry)), format!("{entry:?}"));
        for mtime in [(0, 0), (-1, 500_000_000), (-5, 0), (1 << 40, 1)] {
            assert_eq!(there_and_back(&Entry { kind: kind::DIRECTORY, mtime, ..Entry::default() }).mtime, mtime);
        }
    }

    #[test]
    fn numbers_of_every_form() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b" 17 \0\0\0\0").unwrap(), 15);
        assert_eq!(number(&[0x80, 0, 0, 0, 1, 0, 0, 0]).unwrap(), 1 << 24);
        assert_eq!(number(&[0xff; 12]).unwrap() as i64, -1);
        assert!(number(b"12x\0").is_err());
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in ["5 a=b\n", "x a=b\n", "6 ab=c", "99 a=b\n", "6 abcd\n", "3 \n"] {
            assert!(records(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert_eq!(records(b"6 a=b\n6 c=d\n\0\0").unwrap().len(), 2);
    }
}
