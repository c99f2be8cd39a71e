//! The contents of a file on its way into an archive.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

use super::directory::open_file;
use crate::tar::Segment;

/// Where zeros are looked for, and how many are worth a hole: a smaller file is written
/// as it is, because not every program reads sparse ones.
const PIECE: u64 = 64 << 10;
const WORTH: u64 = 4 << 20;
/// Stretches of data; what comes after so many is written as it is.
const SEGMENTS: usize = 4096;

/// A file that is read once, or twice if it may have holes.
pub(super) struct Contents {
    file: File,
    size: u64,
    buffer: Vec<u8>,
    /// What is still to be read.
    rest: Vec<Segment>,
}

impl Contents {
    pub(super) fn open(parent: BorrowedFd<'_>, name: &CStr, size: u64) -> io::Result<Contents> {
        let whole = if size > 0 { vec![Segment { offset: 0, length: size }] } else { Vec::new() };
        let file = open_file(parent, name)?;
        Ok(Contents { file: file.into(), size, buffer: Vec::new(), rest: whole })
    }

    /// Where there's something other than zeros, if much isn't.
    pub(super) fn map(&mut self) -> io::Result<Option<Vec<Segment>>> {
        if self.size < WORTH {
            return Ok(None);
        }
        let mut map: Vec<Segment> = Vec::new();
        let mut at = 0;
        while at < self.size {
            // A hole is zeros that needn't be read: a terabyte of them, maybe.
            at = match lseek64(&self.file, at as i64, Whence::SeekData) {
                Ok(data) => (data as u64 / PIECE * PIECE).max(at),
                Err(Errno::ENXIO) => break,
                Err(Errno::EINVAL) => at,
                Err(errno) => return Err(errno.into()),
            };
            let length = PIECE.min(self.size - at);
            let bytes = read(&self.file, &mut self.buffer, at, length)?;
            if map.len() == SEGMENTS {
                let last = map.last_mut().expect("many");
                last.length = self.size - last.offset;
                break;
            }
            if bytes.iter().any(|byte| *byte != 0) {
                match map.last_mut() {
                    Some(last) if last.offset + last.length == at => last.length += length,
                    _ => map.push(Segment { offset: at, length }),
                }
            }
            at += length;
        }
        let data: u64 = map.iter().map(|segment| segment.length).sum();
        if self.size - data < WORTH {
            return Ok(None);
        }
        self.rest = map.iter().rev().copied().collect();
        Ok(Some(map))
    }

    /// The next bytes for the archive.
    pub(super) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let Some(segment) = self.rest.last_mut() else { return Ok(None) };
        let (at, length) = (segment.offset, segment.length.min(PIECE));
        segment.offset += length;
        segment.length -= length;
        if segment.length == 0 {
            self.rest.pop();
        }
        read(&self.file, &mut self.buffer, at, length).map(Some)
    }
}

fn read<'a>(file: &File, buffer: &'a mut Vec<u8>, at: u64, length: u64) -> io::Result<&'a [u8]> {
    buffer.resize(length as usize, 0);
    match file.read_exact_at(buffer, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(io::Error::other("it became shorter while it was read")),
        result => result.map(|()| &buffer[..]),
    }
}
