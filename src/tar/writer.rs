//! From entries to a stream: the PAX format, the same bytes for the same entries.

use std::io::{self, Write};

use super::{BLOCK, Entry, Kind, Segment, Time, padding};

/// Writes an archive. What doesn't fit a ustar header goes into PAX records, and only
/// that, so that plain archives are plain.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    stream: W,
    /// Data of the entry, and after them the padding, that are still to be written.
    data: u64,
    padding: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(stream: W) -> Writer<W> {
        Writer { stream, data: 0, padding: 0 }
    }

    /// Writes the headers of an entry. Its data follow by [`data`](Self::data): `size`
    /// bytes, or those of the stretches of a sparse file.
    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        debug_assert_eq!(self.data, 0, "an entry lacks data");
        let (map, stored) = match &entry.sparse {
            Some(map) => (sparse_map(map, entry.size), map.iter().map(|segment| segment.length).sum::<u64>()),
            None => (Vec::new(), if entry.kind == Kind::File { entry.size } else { 0 }),
        };
        let stored = stored + map.len() as u64;
        let records = records(entry, stored);
        if !records.is_empty() {
            // The name is only for readers that don't know PAX.
            let header = Header { path: b"PaxHeaders/entry", kind: b'x', size: records.len() as u64, mode: 0o644, ..Header::default() };
            self.stream.write_all(&header.block())?;
            self.stream.write_all(&records)?;
            self.pad(padding(records.len() as u64))?;
        }
        let kind = match entry.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        let header = Header {
            path: &entry.path,
            link: &entry.link,
            kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            size: stored,
            mtime: entry.mtime.seconds,
            device: entry.device,
        };
        self.stream.write_all(&header.block())?;
        self.stream.write_all(&map)?;
        (self.data, self.padding) = (stored - map.len() as u64, padding(stored));
        self.end_of_data()
    }

    /// Writes data of the entry; more than it has is an error.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let rest = self.data.checked_sub(bytes.len() as u64);
        self.data = rest.ok_or_else(|| io::Error::other("there are more data than the entry said"))?;
        self.stream.write_all(bytes)?;
        self.end_of_data()
    }

    /// Writes the archive's end.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        debug_assert_eq!(self.data, 0, "an entry lacks data");
        self.pad(2 * BLOCK as u64)?;
        self.stream.flush()?;
        Ok(self.stream)
    }

    fn end_of_data(&mut self) -> io::Result<()> {
        if self.data == 0 {
            let rest = std::mem::take(&mut self.padding);
            self.pad(rest)?;
        }
        Ok(())
    }

    fn pad(&mut self, count: u64) -> io::Result<()> {
        self.stream.write_all(&[0; 2 * BLOCK][..count as usize])
    }
}

/// Form 1.0: the count, then offset and length of each stretch, a line each. A hole at
/// the end is marked by an empty stretch, from which GNU tar has the file's length.
fn sparse_map(map: &[Segment], size: u64) -> Vec<u8> {
    let end = map.last().map_or(0, |last| last.offset + last.length);
    let mark = (end < size).then_some(Segment { offset: size, length: 0 });
    let mut text = format!("{}\n", map.len() + usize::from(mark.is_some()));
    for segment in map.iter().chain(&mark) {
        text.push_str(&format!("{}\n{}\n", segment.offset, segment.length));
    }
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len() + padding(bytes.len() as u64) as usize, 0);
    bytes
}

/// What a ustar header can't say.
fn records(entry: &Entry, stored: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut add = |key: &str, value: &[u8]| record(&mut out, key.as_bytes(), value);
    if entry.sparse.is_some() {
        add("GNU.sparse.major", b"1");
        add("GNU.sparse.minor", b"0");
        add("GNU.sparse.name", &entry.path);
        add("GNU.sparse.realsize", entry.size.to_string().as_bytes());
    }
    if split(&entry.path).is_none() {
        add("path", &entry.path);
    }
    if entry.link.len() > 100 || !entry.link.is_ascii() {
        add("linkpath", &entry.link);
    }
    if octal(stored, 11).is_none() {
        add("size", stored.to_string().as_bytes());
    }
    for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if octal(id.into(), 7).is_none() {
            add(key, id.to_string().as_bytes());
        }
    }
    let Time { seconds, nanoseconds } = entry.mtime;
    if nanoseconds != 0 || u64::try_from(seconds).ok().and_then(|s| octal(s, 11)).is_none() {
        add("mtime", time(entry.mtime).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        let mut key = b"SCHILY.xattr.".to_vec();
        for byte in name {
            match byte {
                b'=' => key.extend_from_slice(b"%3D"),
                b'%' => key.extend_from_slice(b"%25"),
                byte => key.push(*byte),
            }
        }
        record(&mut out, &key, value);
    }
    out
}

/// `<length> <key>=<value>\n`, where the length counts its own digits.
pub(super) fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn time(time: Time) -> String {
    let Time { seconds, nanoseconds } = time;
    let (sign, seconds, nanoseconds) = match (seconds < 0, nanoseconds) {
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        // 0.75 seconds after -2 are -1.25.
        (true, _) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - nanoseconds),
        (false, _) => ("", seconds.unsigned_abs(), nanoseconds),
    };
    if nanoseconds == 0 {
        return format!("{sign}{seconds}");
    }
    let text = format!("{sign}{seconds}.{nanoseconds:09}");
    text.trim_end_matches('0').to_string()
}

/// Prefix and name of a path that fits a ustar header.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    // PAX says what the bytes are; a bare header doesn't.
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // The slash in between isn't stored, and the name mustn't be empty.
    let places = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let at = places.rev().find(|at| *at <= 155 && *at > 0 && (1..=100).contains(&(path.len() - at - 1)))?;
    Some((&path[..at], &path[at + 1..]))
}

/// Octal digits, if there's room for them.
fn octal(value: u64, digits: usize) -> Option<String> {
    let text = format!("{value:0digits$o}");
    (text.len() <= digits).then_some(text)
}

#[derive(Default)]
struct Header<'a> {
    path: &'a [u8],
    link: &'a [u8],
    kind: u8,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    device: (u32, u32),
}

impl Header<'_> {
    /// What doesn't fit is cut or 0: a record says it then.
    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        let number = |value: u64, digits| octal(value, digits).unwrap_or_else(|| "0".repeat(digits));
        let (prefix, name) = split(self.path).unwrap_or((b"", &self.path[..self.path.len().min(100)]));
        put(0, name);
        put(100, number(self.mode.into(), 7).as_bytes());
        put(108, number(self.uid.into(), 7).as_bytes());
        put(116, number(self.gid.into(), 7).as_bytes());
        put(124, number(self.size, 11).as_bytes());
        put(136, number(u64::try_from(self.mtime).unwrap_or(0), 11).as_bytes());
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, number(self.device.0.into(), 7).as_bytes());
        put(337, number(self.device.1.into(), 7).as_bytes());
        put(345, prefix);
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}
