//! From a stream to entries.

use std::io::{BufRead, ErrorKind as IoKind};

use super::entry::{Metadata, Rest, describe, long};
use super::header::{Header, more_sparse};
use super::pax::Pax;
use super::sparse::{Lines, Place, check};
use super::{BLOCK, Entry, METADATA_BYTES, METADATA_HEADERS, SEGMENTS, Segment, Wrong, padding, shown};
use crate::error::{Error, ErrorKind, Result};

/// Reads an archive once, from front to back.
///
/// After each [`next_entry`](Self::next_entry) the data are taken with
/// [`data`](Self::data) and [`consume`](Self::consume), or left: they are skipped then.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    stream: R,
    /// Bytes of the stream that are behind us.
    position: u64,
    /// Data of the entry, and after them the padding, that are still to come.
    data: u64,
    padding: u64,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(stream: R) -> Reader<R> {
        Reader { stream, position: 0, data: 0, padding: 0, ended: false }
    }

    /// The next entry; nothing at the archive's end.
    ///
    /// The end is two blocks of zeros, one at the end of the stream, or just the end of
    /// the stream. What follows two blocks of zeros isn't looked at.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>> {
        if self.ended {
            return Ok(None);
        }
        let (data, padding) = (std::mem::take(&mut self.data), std::mem::take(&mut self.padding));
        self.skip(data)?;
        self.skip(padding)?;
        let mut metadata = Metadata::default();
        loop {
            let start = self.position;
            let block = self.block()?.filter(|block| *block != [0; BLOCK]);
            let Some(block) = block else {
                if metadata.headers > 0 {
                    return Err(self.wrong("it ends after a header that speaks about an entry"));
                }
                // Neither a block of zeros nor the end may be followed by an entry that
                // one program sees and the other doesn't.
                if self.position > start && self.block()?.is_some_and(|block| block != [0; BLOCK]) {
                    return Err(self.wrong("something follows a single block of zeros"));
                }
                self.ended = true;
                return Ok(None);
            };
            let header = Header::parse(&block).map_err(|wrong| self.wrong(wrong))?;
            match header.kind() {
                b'x' | b'g' | b'L' | b'K' | b'V' => self.metadata(&header, &mut metadata)?,
                _ => return self.entry(&header, metadata).map(Some),
            }
        }
    }

    /// Where the entry's data begin in the stream, how many are stored, and how many
    /// bytes of padding follow.
    pub(crate) fn extent(&self) -> (u64, u64, u64) {
        (self.position, self.data, self.padding)
    }

    /// Some of the entry's data that are still to come; none at their end. For a sparse
    /// file that's the data without the holes.
    pub(crate) fn data(&mut self) -> Result<&[u8]> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let most = usize::try_from(self.data).unwrap_or(usize::MAX);
        let position = self.position;
        let bytes = fill(&mut self.stream, position)?;
        if bytes.is_empty() {
            return Err(wrong(position, "it ends in the middle of an entry"));
        }
        Ok(&bytes[..bytes.len().min(most)])
    }

    /// Takes so many of the bytes that [`data`](Self::data) returned.
    pub(crate) fn consume(&mut self, count: usize) {
        self.stream.consume(count);
        self.position += count as u64;
        self.data -= count as u64;
    }

    /// Reads what follows the archive's end, which belongs to its digest. More than
    /// `most` bytes are an error.
    pub(crate) fn drain(&mut self, most: u64) -> Result<()> {
        let limit = self.position.saturating_add(most);
        loop {
            let count = fill(&mut self.stream, self.position)?.len();
            if count == 0 {
                return Ok(());
            }
            self.stream.consume(count);
            self.position += count as u64;
            if self.position > limit {
                return Err(self.wrong("there's too much after its end"));
            }
        }
    }

    /// A header that speaks about the next entry.
    fn metadata(&mut self, header: &Header<'_>, metadata: &mut Metadata) -> Result<()> {
        const TWICE: Wrong = "two headers say the same about one entry";
        let size = header.size().map_err(|wrong| self.wrong(wrong))?;
        metadata.headers += 1;
        metadata.bytes = metadata.bytes.saturating_add(size);
        if metadata.headers > METADATA_HEADERS || metadata.bytes > METADATA_BYTES {
            return Err(self.wrong("the headers of an entry are too large (1 MiB in 16 headers at most)"));
        }
        let bytes = self.payload(size)?;
        let taken = match header.kind() {
            b'x' if metadata.pax.is_some() => Err(TWICE),
            b'x' => Pax::parse(&bytes).map(|pax| metadata.pax = Some(pax)),
            b'L' if metadata.long_name.is_some() => Err(TWICE),
            b'L' => long(bytes).map(|name| metadata.long_name = Some(name)),
            b'K' if metadata.long_link.is_some() => Err(TWICE),
            b'K' => long(bytes).map(|name| metadata.long_link = Some(name)),
            // GNU tar takes what was said before for the label's.
            b'V' if metadata.speaks() => Err("a volume's label stands between an entry and its headers"),
            // What holds for all entries (a comment of git's) and a volume's label.
            _ => Ok(()),
        };
        taken.map_err(|wrong| self.wrong(wrong))
    }

    /// The entry itself, with the map that a sparse file has before its data.
    fn entry(&mut self, header: &Header<'_>, metadata: Metadata) -> Result<Entry> {
        let about = |reader: &Self, wrong| reader.wrong_about(&header.path(), wrong);
        let (mut entry, mut stored, rest) = describe(header, metadata).map_err(|wrong| about(self, wrong))?;
        let map = match rest {
            Rest::Plain => None,
            Rest::Sparse(Place::Here(map)) => Some(map),
            Rest::OldGnu(map, more) => Some(self.old_gnu_map(map, more)?),
            Rest::Sparse(Place::Data) => Some(self.map_in_data(&mut stored)?),
        };
        (self.data, self.padding) = (stored, padding(stored));
        if let Some(map) = map {
            entry.sparse = Some(check(map, entry.size, stored).map_err(|wrong| about(self, wrong))?);
        }
        Ok(entry)
    }

    /// The further blocks of a map that begins in the header.
    fn old_gnu_map(&mut self, mut map: Vec<Segment>, mut more: bool) -> Result<Vec<Segment>> {
        while more {
            let block = self.block()?.ok_or_else(|| self.wrong("it ends in a map of a sparse file"))?;
            more = more_sparse(&block, &mut map).map_err(|wrong| self.wrong(wrong))?;
            if map.len() > SEGMENTS {
                return Err(self.wrong("a sparse file has too many stretches of data"));
            }
        }
        Ok(map)
    }

    /// The map that the first blocks of the data are; `stored` is then what's left.
    fn map_in_data(&mut self, stored: &mut u64) -> Result<Vec<Segment>> {
        let mut lines = Lines::default();
        loop {
            *stored = stored.checked_sub(BLOCK as u64).ok_or_else(|| self.wrong("a map of a sparse file doesn't end"))?;
            let block = self.block()?.ok_or_else(|| self.wrong("it ends in a map of a sparse file"))?;
            if let Some(map) = lines.block(&block).map_err(|wrong| self.wrong(wrong))? {
                return Ok(map);
            }
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let bytes = fill(&mut self.stream, self.position)?;
            if bytes.is_empty() {
                if have > 0 {
                    return Err(self.wrong("it ends in the middle of a block"));
                }
                return Ok(None);
            }
            let count = bytes.len().min(BLOCK - have);
            block[have..have + count].copy_from_slice(&bytes[..count]);
            self.stream.consume(count);
            self.position += count as u64;
            have += count;
        }
        Ok(Some(block))
    }

    /// The data of a header, read as they come and never made room for in advance.
    fn payload(&mut self, size: u64) -> Result<Vec<u8>> {
        (self.data, self.padding) = (size, padding(size));
        let payload = self.rest()?;
        let padding = std::mem::take(&mut self.padding);
        self.skip(padding)?;
        Ok(payload)
    }

    /// What is left of an entry's [`data`](Self::data).
    pub(crate) fn rest(&mut self) -> Result<Vec<u8>> {
        let mut rest = Vec::new();
        loop {
            let bytes = self.data()?;
            if bytes.is_empty() {
                return Ok(rest);
            }
            rest.extend_from_slice(bytes);
            let count = bytes.len();
            self.consume(count);
        }
    }

    fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            let bytes = fill(&mut self.stream, self.position)?;
            if bytes.is_empty() {
                return Err(self.wrong("it ends in the middle of an entry"));
            }
            let some = bytes.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            self.stream.consume(some);
            self.position += some as u64;
            count -= some as u64;
        }
        Ok(())
    }

    fn wrong(&self, what: Wrong) -> Error {
        wrong(self.position, what)
    }

    fn wrong_about(&self, path: &[u8], what: Wrong) -> Error {
        wrong(self.position, &format!("{what} (`{}`)", shown(path)))
    }
}

fn wrong(position: u64, what: &str) -> Error {
    Error::new(ErrorKind::Image, format!("cannot read the archive: {what} (at byte {position})"))
}

/// What the stream has next; empty at its end.
fn fill<R: BufRead>(stream: &mut R, position: u64) -> Result<&[u8]> {
    loop {
        match stream.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == IoKind::Interrupted => {}
            Err(error) => return Err(Error::from_stream(error, position)),
        }
    }
    // Filled already: this call reads nothing, and satisfies the borrow checker.
    stream.fill_buf().map_err(|error| Error::from_stream(error, position))
}
