//! tar archives: a strict reader for what strangers made, and a writer.
//!
//! There's one kind of archive that two programs read differently, and it's an attack:
//! one of them is the scanner (CVE-2025-62518, RUSTSEC-2026-0068). So the reader takes
//! what the tools write (ustar, PAX, GNU, v7, sparse files in four forms) and refuses
//! what they disagree about, as a size on an entry that has no data. It never
//! skips something that it doesn't understand, and it allocates only for what it has read.
//!
//! References: pax(1) of POSIX.1-2017, "ustar Interchange Format" and "pax Extended
//! Header"; the manual of GNU tar, appendix "Tar Internals"; star(5).

mod entry;
mod header;
mod number;
mod pax;
mod reader;
mod sparse;
mod writer;

pub(crate) use reader::Reader;
pub(crate) use writer::Writer;

/// The unit of archives: a header, and what data is padded to.
pub(crate) const BLOCK: usize = 512;

/// What is wrong with an archive.
type Wrong = &'static str;

/// Bytes of extended headers and long names before one entry, as in Go's reader.
const METADATA_BYTES: u64 = 1 << 20;
/// Such headers in a row.
const METADATA_HEADERS: usize = 16;
/// Stretches of data in a sparse file.
const SEGMENTS: usize = 10_000;

/// One member of an archive, as its headers together say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it stands there: absolute, with `..`, whatever; never empty, and without NUL.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// The target of a hard or symbolic link; never empty there, and without NUL.
    pub(crate) link: Vec<u8>,
    /// The low twelve bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// The file's length, holes included. The data may be shorter: see `sparse`.
    pub(crate) size: u64,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes: names and values, each name once.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data goes if there are holes: in order, without overlap, inside `size`.
    pub(crate) sparse: Option<Vec<Segment>>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// Seconds since 1970, and nanoseconds after that; a time before 1970 has negative
/// seconds and nanoseconds all the same after them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// A stretch of data in a sparse file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// How many bytes complete the last block of `size` bytes.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// A name from an archive, fit for a line of an error: it may hold anything.
pub(crate) fn shown(name: &[u8]) -> String {
    const MOST: usize = 200;
    let text: String = String::from_utf8_lossy(&name[..name.len().min(MOST)]).escape_debug().collect();
    if name.len() > MOST { format!("{text}…") } else { text }
}

#[cfg(test)]
mod tests;
