//! Ranges of host ids for sandboxes that root starts.
//!
//! Each live sandbox has 65,536 ids of its own, so that two of them share neither
//! files nor per-user limits of the kernel. A range is claimed by a lock on one
//! byte of `/run/cofferdam/ids` (an open file description lock: byte n stands for
//! the ids from 65,536 n on), which the kernel drops when the last holder is gone,
//! whatever way. init holds the same file open, so a claim outlives a killed host
//! for as long as its sandboxes do. Within a process a list tells claims apart,
//! which share the open file.
//!
//! Sandboxes on one checkpoint share a claim where its files can't be mapped to other ids
//! (tmpfs before Linux 6.3).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::sync::{Arc, Mutex};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, ErrorKind, Result, is_exhaustion};
use crate::plan::namespaces::RANGE;

const DIRECTORY: &str = "/run/cofferdam";
/// Ranges tried from a recipe's base on.
const RANGES: u32 = 4096;

/// The claims of one process.
#[derive(Debug)]
pub(crate) struct Ranges {
    file: File,
    state: Mutex<State>,
    /// The process that claims. A forked child shares the open file, so what it
    /// unlocked would be unlocked for its parent too.
    owner: u32,
}

#[derive(Debug)]
struct State {
    taken: Vec<Taken>,
    /// Where to look first: round robin, so that a range rests after its use.
    next: u32,
}

#[derive(Debug)]
struct Taken {
    unit: u32,
    claimed: bool,
    /// Sockets of its sandboxes that didn't end in time.
    late: Vec<Arc<OwnedFd>>,
}

impl Taken {
    fn is_free(&self) -> bool {
        !self.claimed && self.late.is_empty()
    }
}

/// A range, until it's dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    ranges: Arc<Ranges>,
    unit: u32,
}

impl Claim {
    pub(crate) fn first(&self) -> u32 {
        self.unit * RANGE
    }

    /// Whether it's of this process and not of one that this was forked from, which
    /// doesn't know what its child still uses.
    pub(crate) fn is_ours(&self) -> bool {
        self.ranges.owner == std::process::id()
    }

    /// Keeps the range, also when this is dropped, until nobody has the other end of this
    /// socket, which is init's and PID 1's: processes that can't be killed yet still have
    /// the ids.
    pub(crate) fn outlast(&self, sandbox: Arc<OwnedFd>) {
        let mut state = self.ranges.state.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(taken) = state.taken.iter_mut().find(|taken| taken.unit == self.unit) {
            taken.late.push(sandbox);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        let mut state = self.ranges.state.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(taken) = state.taken.iter_mut().find(|taken| taken.unit == self.unit) {
            taken.claimed = false;
        }
        self.ranges.release(&mut state);
    }
}

impl Ranges {
    pub(crate) fn open() -> Result<Ranges> {
        let failed = |error: io::Error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            if is_exhaustion(errno) {
                return Error::io("open", "/run/cofferdam/ids", error);
            }
            let hint = "root needs it to give each sandbox ids of its own; make /run writable";
            Error::failed(ErrorKind::Setup, "open", "/run/cofferdam/ids", errno, Some(hint))
        };
        match DirBuilder::new().mode(0o700).create(DIRECTORY) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(format!("{DIRECTORY}/ids"))
            .and_then(|file| crate::sys::not_standard(file.into()))
            .map_err(failed)?
            .into();
        // Two processes that start at once begin in different places.
        let owner = std::process::id();
        Ok(Ranges { file, state: Mutex::new(State { taken: Vec::new(), next: owner }), owner })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A free range at or above `base`.
    pub(crate) fn claim(self: &Arc<Ranges>, base: u32) -> Result<Claim> {
        let first = base / RANGE;
        // The last id of all, 2^32 - 1, means "none" to the kernel.
        let count = RANGES.min(u32::MAX / RANGE - first);
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        self.release(&mut state);
        for _ in 0..count {
            let unit = first + state.next % count;
            state.next = state.next.wrapping_add(1);
            if state.taken.iter().any(|taken| taken.unit == unit) {
                continue;
            }
            match self.lock(unit, libc::F_WRLCK as i16) {
                Ok(()) => {
                    state.taken.push(Taken { unit, claimed: true, late: Vec::new() });
                    return Ok(Claim { ranges: self.clone(), unit });
                }
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {}
                Err(errno) => return Err(Error::io("lock", "/run/cofferdam/ids", errno.into())),
            }
        }
        Err(Error::new(
            ErrorKind::Exhausted,
            format!(
                "cannot find free ids: all {count} ranges from {base} on belong to live sandboxes (choose other ids with `Sandbox::id_base`)"
            ),
        ))
    }

    /// Gives up the ranges whose late sandboxes have ended, as the next claim would.
    pub(crate) fn settle(&self) {
        self.release(&mut self.state.lock().unwrap_or_else(|e| e.into_inner()));
    }

    /// Releases what nobody claims any more, and whose late sandboxes have ended.
    fn release(&self, state: &mut State) {
        let ended = |socket: &Arc<OwnedFd>| {
            let mut polled = [PollFd::new(socket.as_fd(), PollFlags::empty())];
            poll(&mut polled, PollTimeout::ZERO).is_ok() && polled[0].revents().is_some_and(|r| r.contains(PollFlags::POLLHUP))
        };
        state.taken.retain_mut(|taken| {
            taken.late.retain(|socket| !ended(socket));
            if taken.is_free() {
                // Unlocking can't fail for a reason that matters: the lock ends with us.
                let _ = self.lock(taken.unit, libc::F_UNLCK as i16);
            }
            !taken.is_free()
        });
    }

    fn lock(&self, unit: u32, kind: i16) -> nix::Result<()> {
        let lock = libc::flock { l_type: kind, l_whence: libc::SEEK_SET as i16, l_start: i64::from(unit), l_len: 1, l_pid: 0 };
        fcntl(&self.file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u32 = 5 * RANGE;

    fn ranges(file: &File) -> Arc<Ranges> {
        let state = Mutex::new(State { taken: Vec::new(), next: 0 });
        Arc::new(Ranges { file: file.try_clone().expect("a copy"), state, owner: std::process::id() })
    }

    /// Whether another process could claim this range.
    fn is_free(file: &tempfile::NamedTempFile, claimed: u32) -> bool {
        let own = ranges(&OpenOptions::new().read(true).write(true).open(file.path()).expect("it's there"));
        let unit = claimed / RANGE;
        own.lock(unit, libc::F_WRLCK as i16).is_ok()
    }

    #[test]
    fn a_range_is_taken_until_nobody_claims_it_and_nobody_is_late() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let ranges = ranges(file.as_file());
        let claim = Arc::new(ranges.claim(BASE).expect("a range"));
        let first = claim.first();
        assert!(first >= BASE && !is_free(&file, first));
        assert_ne!(ranges.claim(BASE).expect("another").first(), first);

        let [(one, its), (other, others)] = [(); 2].map(|()| crate::sys::socket::pair().expect("a socket"));
        let again = claim.clone();
        again.outlast(Arc::new(one));
        claim.outlast(Arc::new(other));
        drop(its);
        drop(again);
        ranges.claim(BASE).expect("one that looks for late ones");
        assert!(!is_free(&file, first), "one sandbox has ended, and another claims it");
        drop(claim);
        ranges.claim(BASE).expect("one that looks for late ones");
        assert!(!is_free(&file, first), "a sandbox is late");
        drop(others);
        ranges.claim(BASE).expect("one that looks for late ones");
        assert!(is_free(&file, first));
    }
}
