//! Whom PID 1 listens to.

use super::{COMMANDS, HELPERS};
use crate::sys::*;

pub const POLLIN: u64 = 1;
pub const POLLRDHUP: u64 = 0x2000;

/// What poll is asked about, and who that is.
pub struct Poll {
    entries: [u64; Poll::MOST],
    tags: [usize; Poll::MOST],
    count: usize,
}

impl Poll {
    pub const NOBODY: Poll = Poll { entries: [0; Poll::MOST], tags: [0; Poll::MOST], count: 0 };
    const MOST: usize = 3 + 3 * COMMANDS + HELPERS;
    pub const REPLY: usize = 0;
    pub const CHILDREN: usize = 1;
    pub const OOM: usize = 2;
    pub const STARTING: usize = 3;
    pub const COMMAND: usize = Poll::STARTING + COMMANDS;
    pub const LISTENER: usize = Poll::COMMAND + COMMANDS;
    pub const HELPER: usize = Poll::LISTENER + COMMANDS;

    pub fn add(&mut self, fd: i32, tag: usize) {
        self.add_for(fd, tag, POLLIN | POLLRDHUP);
    }

    pub fn add_for(&mut self, fd: i32, tag: usize, events: u64) {
        if fd >= 0 {
            self.entries[self.count] = u64::from(fd as u32) | events << 32;
            self.tags[self.count] = tag;
            self.count += 1;
        }
    }

    /// Waits until somebody has something to say, or so many nanoseconds.
    pub fn wait(&mut self, limit: Option<u64>) -> Result<usize> {
        poll(&mut self.entries[..self.count], limit)
    }

    /// Events of that one.
    pub fn says(&self, tag: usize) -> u64 {
        let found = self.tags[..self.count].iter().position(|t| *t == tag);
        found.map_or(0, |i| self.entries[i] >> 48)
    }

    /// Who of those from `first` on has something to say.
    pub fn ready(&self, first: usize, count: usize) -> impl Iterator<Item = usize> {
        let pairs = self.entries[..self.count].iter().zip(&self.tags);
        pairs.filter(move |(entry, tag)| **entry >> 48 != 0 && (first..first + count).contains(*tag)).map(move |(_, tag)| tag - first)
    }
}
