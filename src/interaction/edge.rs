//! One direction of a conversation: a pipe from the writer to the host, one from the host
//! to the reader, and what is on its way between them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::stat::{Mode, fchmod};

use super::End;
use crate::sys;

/// As much as a pipe holds. Until it has been passed on nothing more is read, so the
/// writer waits as it would with one pipe.
const ROOM: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Edge {
    pub(super) from: End,
    pub(super) to: End,
    /// Our end of the writer's pipe, until its end of file.
    source: Option<File>,
    /// Our end of the reader's pipe, until the end of file has been passed on or the
    /// reader doesn't read any more.
    target: Option<File>,
    /// Made when it's needed.
    buffer: Vec<u8>,
    /// The part of the buffer that has still to be passed on.
    rest: Range<usize>,
    pub(super) bytes: u64,
    /// Since when an end of file waits to be passed on.
    pub(super) held: Option<Instant>,
}

impl Edge {
    /// The edge, the writer's descriptor and the reader's.
    pub(super) fn new(from: End, to: End) -> io::Result<(Edge, OwnedFd, OwnedFd)> {
        let (source, writer) = io::pipe()?;
        let (reader, target) = io::pipe()?;
        // As with captured streams: it's nobody's inside, and may be opened once more as
        // /dev/stdout.
        fchmod(&writer, Mode::from_bits_truncate(0o666))?;
        fchmod(&reader, Mode::from_bits_truncate(0o666))?;
        let (source, target) = (nonblocking(source.into())?, nonblocking(target.into())?);
        let edge = Edge { from, to, source: Some(source), target: Some(target), buffer: Vec::new(), rest: 0..0, bytes: 0, held: None };
        Ok((edge, writer.into(), reader.into()))
    }

    fn full(&self) -> bool {
        !self.rest.is_empty()
    }

    /// What to poll for: room, if something is on its way, else input.
    pub(super) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.target {
            Some(target) if self.full() => Some((target.as_fd(), PollFlags::POLLOUT)),
            _ => self.source.as_ref().map(|source| (source.as_fd(), PollFlags::POLLIN)),
        }
    }

    /// Passes on what there is; what is new is told.
    pub(super) fn advance(&mut self, news: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        if !self.full() {
            let Some(source) = &mut self.source else { return Ok(()) };
            self.buffer.resize(ROOM, 0);
            let count = match source.read(&mut self.buffer) {
                Err(error) if would_wait(&error) => return Ok(()),
                other => other?,
            };
            if count == 0 {
                self.source = None;
            }
            self.rest = 0..count;
            self.bytes += count as u64;
            news(&self.buffer[..count]);
        }
        self.pass()
    }

    fn pass(&mut self) -> io::Result<()> {
        while self.full() {
            let Some(target) = &mut self.target else { break };
            match sys::write::unharmed(|| target.write(&self.buffer[self.rest.clone()])) {
                Ok(count) => self.rest.start += count,
                Err(error) if would_wait(&error) => return Ok(()),
                // Nobody will read it. The writer needn't know: see the module's rules.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.target = None,
                Err(error) => return Err(error),
            }
        }
        self.rest = 0..0;
        Ok(())
    }

    /// What is still in the writer's pipe when everybody is dead.
    pub(super) fn drain(&mut self, news: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.target = None;
        while self.source.is_some() {
            let before = self.bytes;
            self.advance(news)?;
            if self.bytes == before {
                break;
            }
        }
        self.source = None;
        Ok(())
    }

    /// Nothing but an end of file is left to be passed on.
    pub(super) fn at_end(&self) -> bool {
        self.source.is_none() && self.target.is_some() && !self.full()
    }

    pub(super) fn pass_end(&mut self) {
        self.target = None;
    }

    /// The reader has taken all that it was given.
    pub(super) fn taken(&self) -> bool {
        self.target.as_ref().is_some_and(|target| sys::pipe::unread(target.as_fd()).is_ok_and(|bytes| bytes == 0))
    }

    /// The writer has to wait until the reader reads.
    pub(super) fn stuck(&self) -> bool {
        self.full() && self.target.is_some()
    }

    /// The reader has nothing to read, and something may still come.
    pub(super) fn quiet(&self) -> bool {
        self.source.is_some() && !self.full() && self.taken()
    }
}

fn nonblocking(fd: OwnedFd) -> io::Result<File> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd.into())
}

fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge() -> (Edge, File, File) {
        let (edge, writer, reader) = Edge::new((0, 1), (1, 0)).expect("pipes");
        (edge, writer.into(), reader.into())
    }

    #[test]
    fn bytes_and_then_the_end_are_passed_on() {
        let (mut edge, mut writer, mut reader) = edge();
        let mut seen = Vec::new();
        writer.write_all(b"hello").expect("room");
        edge.advance(&mut |bytes| seen.extend_from_slice(bytes)).expect("moved");
        assert!(!edge.taken() && !edge.at_end());
        let mut five = [0; 5];
        reader.read_exact(&mut five).expect("passed on");
        assert_eq!((&five, &seen[..], edge.bytes), (b"hello", &b"hello"[..], 5));
        assert!(edge.quiet());
        drop(writer);
        edge.advance(&mut |_| {}).expect("its end");
        assert!(edge.at_end());
        edge.pass_end();
        assert_eq!(reader.read(&mut five).expect("the end"), 0);
    }

    #[test]
    fn a_reader_that_never_reads_makes_the_writer_wait_and_costs_little() {
        let (mut edge, writer, _reader) = edge();
        let mut writer = nonblocking(writer.into()).expect("a flag");
        let mut written = 0;
        while let Ok(count) = writer.write(&[0; 4096]) {
            written += count;
            edge.advance(&mut |_| {}).expect("moved");
        }
        assert!(edge.stuck());
        assert!(written <= 3 * ROOM, "{written} bytes are on their way");
    }

    #[test]
    fn what_nobody_reads_is_counted_and_dropped() {
        let (mut edge, mut writer, reader) = edge();
        drop(reader);
        for _ in 0..100 {
            writer.write_all(&[0; 60_000]).expect("no SIGPIPE and no waiting");
            edge.advance(&mut |_| {}).expect("moved");
        }
        assert_eq!(edge.bytes, 6_000_000);
        assert!(!edge.stuck() && !edge.at_end());
    }
}
