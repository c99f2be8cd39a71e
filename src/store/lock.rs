//! Locks between threads and processes.
//!
//! They are byte ranges of one file, `lock`, taken by open file description
//! (fcntl(2), F_OFD_SETLKW): the kernel drops them with the description, however its
//! process ends, threads exclude each other too, and no lock file is left to be
//! cleaned up. Each kind of thing has its own bytes:
//!
//! | byte | shared by | exclusive for |
//! | --- | --- | --- |
//! | 0 | whoever adds to the store or takes a lease | collecting garbage |
//! | 1 | | emptying the trash |
//! | 2 | | changing names |
//! | 2^62 + the first 62 bits of a digest | | making that layer, image or source |
//!
//! Order: byte 0, then digests in ascending order, then the rest. So nobody waits in
//! a circle.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, Result};
use crate::image::Digest;

/// What is locked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Everything against the garbage collection.
    UseShared,
    Collect,
    Trash,
    Names,
}

/// Locks that last as long as this value.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// Opens a store's lock file, and waits for the first lock.
    pub(super) fn take(store: &Path, kind: Kind) -> Result<Lock> {
        let path = store.join("lock");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(&path);
        let lock = Lock { file: file.map_err(|e| Error::io("open", &path.to_string_lossy(), e))? };
        let (how, byte) = match kind {
            Kind::UseShared => (libc::F_RDLCK, 0),
            Kind::Collect => (libc::F_WRLCK, 0),
            Kind::Trash => (libc::F_WRLCK, 1),
            Kind::Names => (libc::F_WRLCK, 2),
        };
        lock.wait(how, byte)?;
        Ok(lock)
    }

    /// Waits until nobody else makes one of these.
    pub(super) fn also<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> Result<()> {
        let mut bytes: Vec<i64> = digests.into_iter().map(byte_of).collect();
        bytes.sort_unstable();
        bytes.dedup();
        bytes.into_iter().try_for_each(|byte| self.wait(libc::F_WRLCK, byte))
    }

    fn wait(&self, how: i32, byte: i64) -> Result<()> {
        let range = libc::flock { l_type: how as i16, l_whence: libc::SEEK_SET as i16, l_start: byte, l_len: 1, l_pid: 0 };
        loop {
            match fcntl(&self.file, FcntlArg::F_OFD_SETLKW(&range)) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("lock", "the store", io::Error::from(errno))),
            }
        }
    }
}

fn byte_of(digest: &Digest) -> i64 {
    let number = u64::from_str_radix(&digest.hex()[..16], 16).unwrap_or(0);
    (1 << 62) | (number >> 2) as i64
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn threads_that_want_the_same_layers_in_any_order_take_turns() {
        let directory = tempfile::tempdir().expect("a directory");
        let digests = [Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c")];
        let (inside, turns) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for i in 0..8 {
                let (digests, inside, turns, directory) = (&digests, &inside, &turns, directory.path());
                scope.spawn(move || {
                    for _ in 0..50 {
                        let lock = Lock::take(directory, Kind::UseShared).expect("a lock");
                        lock.also([&digests[i % 3], &digests[(i + 1) % 3], &digests[1]]).expect("locks");
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two have digest 1 at once");
                        turns.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(turns.into_inner(), 400);
    }
}
