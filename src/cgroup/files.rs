//! The files of a group: limits are written and read back, counters are read.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::probe::Layer;

/// Where the counters of a group are read.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) directory: &'a OwnedFd,
    /// Those that stay open.
    pub(super) kept: &'a [(&'static str, File)],
}

impl Source<'_> {
    pub(super) fn read(self, file: &str) -> io::Result<String> {
        match self.kept.iter().find(|(name, _)| *name == file) {
            Some((_, opened)) => text(|buffer, at| opened.read_at(buffer, at)),
            None => read(self.directory, file),
        }
    }

    pub(super) fn number(self, file: &str) -> Option<u64> {
        self.read(file).ok()?.trim().parse().ok()
    }
}

/// One that keeps files open, of which there may be so many.
#[derive(Debug)]
pub(super) struct Open(&'static AtomicUsize);

static GROUPS: AtomicUsize = AtomicUsize::new(0);
static MEMBERS: AtomicUsize = AtomicUsize::new(0);

impl Open {
    /// A group.
    pub(super) fn group() -> Option<Open> {
        Open::one_of(&GROUPS, 16)
    }

    /// A part of a group that serves again.
    pub(super) fn member() -> Option<Open> {
        Open::one_of(&MEMBERS, 24)
    }

    fn one_of(all: &'static AtomicUsize, most: usize) -> Option<Open> {
        let one_more = |open| (open < most).then_some(open + 1);
        all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok().then(|| Open(all))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A file of a group to be written, and what it must say afterwards.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) file: &'static str,
    pub(super) value: String,
    /// Whether what was read back is as good as what was written.
    pub(super) holds: fn(wrote: &str, read: &str) -> bool,
    pub(super) layer: Layer,
    /// The kernel may lack it.
    pub(super) optional: bool,
}

impl Setting {
    pub(super) fn apply(&self, directory: &OwnedFd) -> io::Result<()> {
        let mut file = match open(directory, self.file, OFlag::O_RDWR) {
            Err(error) if self.optional && error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => File::from(other?),
        };
        file.write_all(self.value.as_bytes())?;
        let mut buffer = [0; 4096];
        let length = file.read_at(&mut buffer, 0).map_err(|e| io::Error::new(e.kind(), format!("can't be read back: {e}")))?;
        let read = String::from_utf8_lossy(&buffer[..length]);
        if (self.holds)(&self.value, read.trim()) {
            Ok(())
        } else {
            Err(io::Error::other(format!("it says {:?} after {:?} was written", read.trim(), self.value)))
        }
    }
}

pub(super) fn same(wrote: &str, read: &str) -> bool {
    wrote == read
}

/// Limits of memory are rounded down to pages.
pub(super) fn same_pages(wrote: &str, read: &str) -> bool {
    let (Ok(wrote), Ok(read)) = (wrote.parse::<u64>(), read.parse::<u64>()) else { return wrote == read };
    read <= wrote && wrote - read < 65_536
}

/// A group below another: one that exists is never taken over.
pub(super) fn make_directory(parent: &OwnedFd, name: &str) -> nix::Result<OwnedFd> {
    mkdirat(parent, name, Mode::from_bits_truncate(0o755))?;
    let opened = openat(parent, name, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let lasting = opened.and_then(|fd| crate::sys::not_standard(fd).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))));
    if lasting.is_err() {
        // Without a descriptor nobody would know of it.
        let _ = unlinkat(parent, name, UnlinkatFlags::RemoveDir);
    }
    lasting
}

pub(super) fn open(directory: &OwnedFd, file: &str, flags: OFlag) -> io::Result<OwnedFd> {
    crate::sys::not_standard(openat(directory.as_fd(), file, flags | OFlag::O_CLOEXEC, Mode::empty())?)
}

pub(super) fn write(directory: &OwnedFd, file: &str, value: &str) -> io::Result<()> {
    File::from(open(directory, file, OFlag::O_WRONLY)?).write_all(value.as_bytes())
}

pub(super) fn read(directory: &OwnedFd, file: &str) -> io::Result<String> {
    let file = File::from(open(directory, file, OFlag::O_RDONLY)?);
    text(|buffer, at| file.read_at(buffer, at))
}

/// What a file says. Most are a line, which one read gives; some are a page or two.
fn text(read_at: impl Fn(&mut [u8], u64) -> io::Result<usize>) -> io::Result<String> {
    const MOST: usize = 1 << 20;
    let (mut buffer, mut bytes) = ([0; 4096], Vec::new());
    loop {
        let n = read_at(&mut buffer, bytes.len() as u64)?;
        bytes.extend_from_slice(&buffer[..n]);
        if n == 0 || bytes.len() <= buffer.len() / 2 || bytes.len() >= MOST {
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}

/// The number after `key` in a file of lines like `key 123`.
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Page cache by `memory.stat`: all of it without what lies in tmpfs. That file takes as
/// long to read as all the others together, so it isn't where there can be little of it.
pub(super) fn page_cache(from: Source<'_>, peak: Option<u64>, all: &str, tmpfs: &str) -> Option<u64> {
    const LITTLE: u64 = 4 << 20;
    if peak.is_some_and(|peak| peak < LITTLE) {
        return None;
    }
    let text = from.read("memory.stat").ok()?;
    Some(field(&text, all)?.saturating_sub(field(&text, tmpfs)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(field(text, "oom"), Some(3));
        assert_eq!(field(text, "oom_kill"), Some(2));
        assert_eq!(field(text, "oom_ki"), None);
    }

    #[test]
    fn no_more_keep_files_open_than_may() {
        static ALL: AtomicUsize = AtomicUsize::new(0);
        let mut open: Vec<Open> = (0..10).filter_map(|_| Open::one_of(&ALL, 3)).collect();
        assert_eq!(open.len(), 3);
        open.pop();
        assert!(Open::one_of(&ALL, 3).is_some());
        drop(open);
        assert_eq!(ALL.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_limit_that_was_not_taken_is_noticed() {
        assert!(same_pages("1000000", "999424"));
        assert!(!same_pages("1000000", "max"));
        assert!(!same_pages("1000000", "9223372036854771712"));
        assert!(!same_pages("10000000", "4096"));
    }
}
