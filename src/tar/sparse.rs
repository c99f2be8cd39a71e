//! Maps of sparse files. GNU tar has had four ways to write them.

use super::number::decimal;
use super::{SEGMENTS, Segment, Wrong};

/// The `GNU.sparse.*` records of an extended header.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    major: Option<u64>,
    minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    count: Option<u64>,
    /// Form 0.1: all numbers in one record.
    map: Option<Vec<Segment>>,
    /// Form 0.0: a pair of records for each stretch, in order.
    pairs: Vec<Segment>,
    offset: Option<u64>,
    any: bool,
}

/// Where the map of a sparse file is.
#[derive(Debug)]
pub(super) enum Place {
    Here(Vec<Segment>),
    /// Form 1.0: before the data.
    Data,
}

impl PaxSparse {
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Wrong> {
        self.any = true;
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = Some(super::pax::name(value)?),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"numblocks" => self.count = Some(decimal(value)?),
            b"map" => self.map = Some(list(value)?),
            b"offset" if self.offset.is_none() => self.offset = Some(decimal(value)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or("a map of a sparse file is malformed")?;
                self.pairs.push(Segment { offset, length: decimal(value)? });
                at_most(self.pairs.len())?;
            }
            _ => return Err("a sparse file has an unknown form"),
        }
        Ok(())
    }

    /// The length with holes and the map's place; nothing if the file isn't sparse.
    pub(super) fn place(self) -> Result<Option<(u64, Place)>, Wrong> {
        if !self.any {
            return Ok(None);
        }
        let size = self.size.ok_or("a sparse file has no size")?;
        if self.offset.is_some() {
            return Err("a map of a sparse file is malformed");
        }
        let (map, pairs) = (self.map, self.pairs);
        let place = match (self.major, self.minor) {
            (Some(1), Some(0)) if map.is_none() && pairs.is_empty() => Place::Data,
            (None, None) | (Some(0), Some(0 | 1)) => {
                let map = match map {
                    Some(map) if pairs.is_empty() => map,
                    None => pairs,
                    Some(_) => return Err("a sparse file has two maps"),
                };
                if self.count.is_some_and(|count| count != map.len() as u64) {
                    return Err("a map of a sparse file is malformed");
                }
                Place::Here(map)
            }
            _ => return Err("a sparse file has an unknown form"),
        };
        Ok(Some((size, place)))
    }
}

fn at_most(count: usize) -> Result<(), Wrong> {
    if count > SEGMENTS { Err("a sparse file has too many stretches of data") } else { Ok(()) }
}

/// `offset,length,offset,length,...`
fn list(value: &[u8]) -> Result<Vec<Segment>, Wrong> {
    let mut map = Vec::new();
    if value.is_empty() {
        return Ok(map);
    }
    let mut numbers = value.split(|b| *b == b',');
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or("a map of a sparse file is malformed")?;
        map.push(Segment { offset: decimal(offset)?, length: decimal(length)? });
        at_most(map.len())?;
    }
    Ok(map)
}

/// The lines of a map of form 1.0, byte by byte, until it's complete.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    count: Option<usize>,
    offset: Option<u64>,
    map: Vec<Segment>,
}

impl Lines {
    /// Takes one block; the map if it ends in it. What follows in the block is padding.
    pub(super) fn block(&mut self, block: &[u8]) -> Result<Option<Vec<Segment>>, Wrong> {
        for byte in block {
            if *byte != b'\n' {
                // The longest number has 20 digits.
                if self.line.len() == 20 {
                    return Err("a map of a sparse file is malformed");
                }
                self.line.push(*byte);
                continue;
            }
            let number = decimal(&self.line)?;
            self.line.clear();
            match (self.count, self.offset.take()) {
                (None, _) => {
                    let count = usize::try_from(number).unwrap_or(usize::MAX);
                    at_most(count)?;
                    self.count = Some(count);
                }
                (Some(_), None) => self.offset = Some(number),
                (Some(_), Some(offset)) => self.map.push(Segment { offset, length: number }),
            }
            if self.count == Some(self.map.len()) {
                return Ok(Some(std::mem::take(&mut self.map)));
            }
        }
        Ok(None)
    }
}

/// A map is in order, doesn't overlap, ends inside the file, and its data are what the
/// archive holds. Returns the map without empty stretches.
///
/// A hole at the end needs no mark: the size says where that is, to Go and libarchive too.
/// GNU tar, which always writes one, makes the file end with its data.
pub(super) fn check(map: Vec<Segment>, size: u64, stored: u64) -> Result<Vec<Segment>, Wrong> {
    at_most(map.len())?;
    let (mut end, mut data) = (0u64, 0u64);
    for segment in &map {
        let next = segment.offset.checked_add(segment.length).ok_or("a map of a sparse file overflows")?;
        if segment.offset < end || next > size {
            return Err("a map of a sparse file overlaps or leads out of the file");
        }
        end = next;
        data += segment.length;
    }
    if data != stored {
        return Err("a sparse file's map and its data have different lengths");
    }
    Ok(map.into_iter().filter(|segment| segment.length > 0).collect())
}
