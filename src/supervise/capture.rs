//! What comes out of a run, kept within bounds whatever the workload prints.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;

use crate::outcome::StreamEnd;
use crate::sys;

/// A relay writes no more than this at once, so that a pipe that polled writable
/// takes it without blocking (pipe(7): PIPE_BUF).
const RELAY_CHUNK: usize = 4096;
const READ_CHUNK: usize = 64 * 1024;
/// A line that is longer comes in pieces.
const MOST_OF_A_LINE: usize = 64 * 1024;

/// How much of a stream is kept if it isn't limited.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    pub(crate) head: u64,
    pub(crate) tail: u64,
}

/// One output stream on its way through the host.
#[derive(Debug)]
pub(crate) struct Capture {
    /// Our end of the pipe, until its end.
    pipe: Option<File>,
    /// Where a relay passes it on.
    target: Option<File>,
    /// Captured bytes, or those that a relay has still to write.
    kept: Vec<u8>,
    /// The last of what found no room.
    tail: VecDeque<u8>,
    tail_room: usize,
    /// What is to be told line by line, if anything is.
    lines: Option<Vec<u8>>,
    room: u64,
    limit: Option<u64>,
    end: StreamEnd,
}

impl Capture {
    pub(crate) fn new(pipe: OwnedFd, target: Option<OwnedFd>, limit: Option<u64>, keep: Keep) -> io::Result<Capture> {
        // It has no other flags.
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let room = if target.is_some() { limit.unwrap_or(u64::MAX) } else { limit.unwrap_or(keep.head) };
        let tail_room = if target.is_some() { 0 } else { usize::try_from(keep.tail).unwrap_or(usize::MAX) };
        Ok(Capture {
            pipe: Some(pipe.into()),
            target: target.map(File::from),
            kept: Vec::new(),
            tail: VecDeque::new(),
            tail_room,
            lines: None,
            room,
            limit,
            end: StreamEnd::default(),
        })
    }

    /// What to poll for: input, unless a relay has something left to write.
    pub(crate) fn wants(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.target {
            Some(target) if !self.kept.is_empty() => Some((target.as_fd(), PollFlags::POLLOUT)),
            _ => self.pipe.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::POLLIN)),
        }
    }

    /// Whether all that came has been kept, counted or passed on.
    pub(crate) fn settled(&self) -> bool {
        self.target.is_none() || self.kept.is_empty()
    }

    /// Whether there's anything to wait for; once its writers have `ended` only a relay has.
    pub(crate) fn is_open(&self, ended: bool) -> bool {
        !ended || !self.settled()
    }

    /// The stream has grown beyond the recipe's limit.
    pub(crate) fn exceeded(&self) -> bool {
        self.limit.is_some_and(|limit| self.end.bytes > limit)
    }

    /// One step after poll said that it's possible. `buffer` is scratch space.
    pub(crate) fn advance(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        if self.target.is_some() && !self.kept.is_empty() { self.write() } else { self.read(buffer).map(drop) }
    }

    /// Reads what there is; false at the end or when there's nothing now.
    fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        let Some(pipe) = &mut self.pipe else { return Ok(false) };
        buffer.resize(READ_CHUNK, 0);
        match pipe.read(buffer) {
            Ok(0) => {
                self.pipe = None;
                Ok(false)
            }
            Ok(n) => {
                self.take(&buffer[..n]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let fits = usize::try_from(self.room).unwrap_or(usize::MAX).min(bytes.len());
        self.kept.extend_from_slice(&bytes[..fits]);
        self.room -= fits as u64;
        self.end.bytes += bytes.len() as u64;
        if let Some(lines) = &mut self.lines {
            lines.extend_from_slice(bytes);
        }
        let rest = &bytes[fits..];
        let last = if self.tail_room > 0 { bytes } else { &bytes[..fits] };
        self.end.last_byte = last.last().copied().or(self.end.last_byte);
        let tail = &rest[rest.len().saturating_sub(self.tail_room)..];
        let surplus = (self.tail.len() + tail.len()).saturating_sub(self.tail_room);
        self.end.truncated |= tail.len() < rest.len() || surplus > 0;
        self.tail.drain(..surplus);
        self.tail.extend(tail);
    }

    /// From now on [`next_line`](Self::next_line) has something to say.
    pub(crate) fn keep_lines(&mut self) {
        self.lines = Some(Vec::new());
    }

    /// The lines that are complete, each with its end, or that are too long to be waited
    /// for; at the end of all also one without.
    pub(crate) fn take_lines(&mut self, end: bool, mut each: impl FnMut(&[u8])) {
        let Some(lines) = &mut self.lines else { return };
        let mut done = 0;
        while let Some(length) = lines[done..].iter().position(|b| *b == b'\n') {
            each(&lines[done..=done + length]);
            done += length + 1;
        }
        if done < lines.len() && (end || lines.len() - done >= MOST_OF_A_LINE) {
            each(&lines[done..]);
            done = lines.len();
        }
        lines.drain(..done);
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(target) = &mut self.target else { return Ok(()) };
        let chunk = self.kept.len().min(RELAY_CHUNK);
        match sys::write::unharmed(|| target.write(&self.kept[..chunk])) {
            Ok(n) => {
                self.kept.drain(..n);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
            // Whoever read the relay has gone; the workload needn't know.
            Err(_) => {
                self.end.truncated = true;
                self.kept.clear();
                self.room = 0;
                Ok(())
            }
        }
    }

    /// After the last process has ended: what's in the pipe now is all there'll be,
    /// even if somebody outside holds its other end.
    pub(crate) fn drain(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        while self.read(buffer)? {}
        self.pipe = None;
        Ok(())
    }

    /// The captured bytes from the start, the last ones, and the totals.
    pub(crate) fn finish(self) -> (Vec<u8>, Vec<u8>, StreamEnd) {
        let kept = if self.target.is_some() { Vec::new() } else { self.kept };
        (kept, self.tail.into(), self.end)
    }
}
