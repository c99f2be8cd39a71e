//! From headers to the entry that they describe together.

use super::header::Header;
use super::pax::{Pax, name};
use super::sparse::Place;
use super::{Entry, Kind, Segment, Wrong};

/// Headers that speak about the entry after them.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    pub(super) pax: Option<Pax>,
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
    /// How many there were, and how large; also such as say nothing.
    pub(super) headers: usize,
    pub(super) bytes: u64,
}

impl Metadata {
    /// Whether it says something about the next entry.
    pub(super) fn speaks(&self) -> bool {
        self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some()
    }
}

/// Where the rest of an entry is.
#[derive(Debug)]
pub(super) enum Rest {
    /// Plain data, or none.
    Plain,
    Sparse(Place),
    /// An old GNU map: what was in the header, and whether blocks with more follow.
    OldGnu(Vec<Segment>, bool),
}

/// The entry, how many bytes the archive holds for it, and how.
pub(super) fn describe(header: &Header<'_>, metadata: Metadata) -> Result<(Entry, u64, Rest), Wrong> {
    let pax = metadata.pax.unwrap_or_default();
    // Go's reader takes GNU's name, GNU's own takes PAX's.
    let path = agreed(metadata.long_name, pax.path)?.unwrap_or_else(|| header.path());
    let link = agreed(metadata.long_link, pax.link)?.unwrap_or_else(|| header.link());
    let stored = pax.size.map_or_else(|| header.size(), Ok)?;
    let sparse_name = pax.sparse.name.clone();
    let sparse = pax.sparse.place()?;
    let kind = kind(header, &path)?;
    let mut entry = Entry {
        path: sparse_name.unwrap_or(path),
        kind,
        link: Vec::new(),
        mode: header.mode()?,
        uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
        gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
        mtime: pax.mtime.map_or_else(|| header.mtime(), Ok)?,
        size: stored,
        device: (0, 0),
        xattrs: pax.xattrs,
        sparse: None,
    };
    if entry.path.is_empty() {
        return Err("an entry has no name");
    }
    if kind != Kind::File {
        // Some readers skip so many bytes, others take them for headers.
        if stored != 0 || header.size()? != 0 {
            return Err("an entry that has no data has a size");
        }
        if sparse.is_some() {
            return Err("an entry that is no file is sparse");
        }
    }
    match kind {
        Kind::HardLink | Kind::Symlink if link.is_empty() => return Err("a link has no target"),
        Kind::HardLink | Kind::Symlink => entry.link = link,
        Kind::CharDevice | Kind::BlockDevice => entry.device = header.device()?,
        Kind::File if entry.path.ends_with(b"/") => return Err("a file's name ends like a directory's"),
        _ => {}
    }
    let rest = match (header.kind() == b'S', sparse) {
        (false, None) => Rest::Plain,
        (false, Some((size, place))) => {
            entry.size = size;
            Rest::Sparse(place)
        }
        (true, None) => {
            let mut map = Vec::new();
            let more = header.sparse(&mut map)?;
            entry.size = header.sparse_size()?;
            Rest::OldGnu(map, more)
        }
        (true, Some(_)) => return Err("a sparse file has two maps"),
    };
    Ok((entry, stored, rest))
}

fn kind(header: &Header<'_>, path: &[u8]) -> Result<Kind, Wrong> {
    Ok(match header.kind() {
        // The oldest archives have no kinds: a slash marks a directory.
        0 if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' if header.is_gnu() => Kind::File,
        b'M' => return Err("it's one of several volumes"),
        b'D' | b'N' => return Err("it's an incremental backup of GNU tar's"),
        _ => return Err("an entry is of an unknown kind"),
    })
}

/// One name, or two that are the same.
fn agreed(gnu: Option<Vec<u8>>, pax: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, Wrong> {
    match (gnu, pax) {
        (Some(gnu), Some(pax)) if gnu != pax => Err("an entry has two names"),
        (gnu, pax) => Ok(pax.or(gnu)),
    }
}

/// A name in GNU's own long form: up to a NUL, and nothing after that.
pub(super) fn long(mut bytes: Vec<u8>) -> Result<Vec<u8>, Wrong> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    if bytes[end..].iter().any(|b| *b != 0) {
        return Err("a name holds a NUL byte");
    }
    bytes.truncate(end);
    name(&bytes)
}
