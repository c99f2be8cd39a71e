//! A group whose commands come one after the other, each alone in it, as a sandbox that
//! serves again has it.
//!
//! What the kernel counts up in it is told by differences (`command.rs`). A peak isn't, and
//! has to be set back: on v2 each command's own group has one, on v1 it can be written.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::fcntl::OFlag;

use super::files::{Setting, open};
use super::limits::controller;
use super::{Counters, Group, Member, v1, v2};
use crate::error::{Error, Result};

/// What tells whether a group is as it was made.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Limits, with what was written.
    limits: Vec<(File, Setting)>,
    /// Counts processes.
    processes: Option<File>,
    /// Counts memory.
    memory: Option<File>,
    /// The peak on v1.
    peak: Option<File>,
}

impl Turns {
    /// The most bytes that may be charged to it when nobody is in it: page cache and what
    /// the kernel keeps for itself, which the next command's peak would have in it. Above it
    /// may be shared memory whose namespace is still being taken apart.
    const LEFT: u64 = 4 << 20;

    /// Whether the next command finds it as the first one did: nobody is in it, its limits
    /// are as they were written, and little is charged to it.
    pub(crate) fn next(&self) -> bool {
        let none = |file: &File, most: u64| number(file).is_some_and(|n| n <= most);
        self.limits.iter().all(|(file, setting)| text(file).is_some_and(|read| (setting.holds)(&setting.value, read.trim())))
            && self.processes.iter().all(|file| none(file, 0))
            && self.memory.iter().all(|file| none(file, Turns::LEFT))
            && self.peak.iter().all(|file| file.write_at(b"0", 0).is_ok())
    }
}

fn text(file: &File) -> Option<String> {
    let mut buffer = [0; 256];
    let length = file.read_at(&mut buffer, 0).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn number(file: &File) -> Option<u64> {
    text(file)?.trim().parse().ok()
}

impl Group {
    /// From now on each of its commands is alone in it.
    pub(crate) fn take_turns(&mut self) -> Result<Turns> {
        let failed = |what: &'static str| move |error| Error::io("open", what, error);
        let mut turns = Turns { limits: Vec::new(), processes: None, memory: None, peak: None };
        for member in &self.members {
            let v2 = self.places.hierarchies[member.hierarchy].v2;
            let file = |name: &'static str, flags| open(&member.directory, name, flags).map(File::from).map_err(failed(name));
            for setting in self.settings(member) {
                if let Some(opened) = present(open(&member.directory, setting.file, OFlag::O_RDONLY)).map_err(failed(setting.file))? {
                    turns.limits.push((opened, setting));
                }
            }
            if member.uses & controller::PIDS != 0 {
                turns.processes = Some(file("pids.current", OFlag::O_RDONLY)?);
            }
            if member.uses & controller::MEMORY != 0 {
                turns.memory = Some(file(if v2 { "memory.current" } else { "memory.usage_in_bytes" }, OFlag::O_RDONLY)?);
                if !v2 {
                    turns.peak = Some(file(v1::PEAK, OFlag::O_RDWR)?);
                }
            }
        }
        (self.takes_turns, self.sets_peak_back) = (true, turns.peak.is_some());
        Ok(turns)
    }

    /// What only the sandbox's group tells of a command that was alone in it, from `before` on.
    pub(super) fn count_turn(&self, counters: &mut Counters, whole: &Counters, before: &Counters) {
        if self.sets_peak_back {
            counters.peak_memory = counters.peak_memory.or(whole.peak_memory);
            counters.page_cache = counters.page_cache.or(whole.page_cache);
        }
        counters.limit_hits = whole.limit_hits;
        if self.tells_by_difference() {
            // How it's divided PID 1 knows better: it's sampled on v1.
            counters.cpu = whole.cpu.zip(before.cpu).map(|(now, then)| now.saturating_sub(then));
        }
    }

    /// What its processes have used so far.
    pub(super) fn cpu_time(&self, member: &Member) -> Option<Duration> {
        if self.places.hierarchies[member.hierarchy].v2 { v2::cpu_time(member.source()) } else { v1::cpu_time(member.source()) }
    }

    /// Whether what it counts tells all about a command that's alone in it, so that the
    /// command needs no group of its own. Only on v2 a peak of memory can't be set back
    /// everywhere (`memory.peak` can be written from Linux 6.12 on).
    pub(super) fn tells_by_difference(&self) -> bool {
        let peaks = |member: &Member| self.places.hierarchies[member.hierarchy].v2 && member.uses & controller::MEMORY != 0;
        self.takes_turns && !self.members.iter().any(peaks)
    }
}

/// `None` for a file that this kernel lacks.
fn present(opened: io::Result<OwnedFd>) -> io::Result<Option<File>> {
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(|fd| Some(File::from(fd))),
    }
}
