//! The locks on a sandbox's volumes, from its start to its end.
//!
//! A named volume has two files beside its contents, where no workload can reach them:
//! every sandbox that has the volume holds `use` shared, so that nobody removes it
//! meanwhile, and who wants it exclusively holds `writer`. They are locked with flock(2),
//! which the kernel undoes when the process ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Volume;
use crate::error::{Error, ErrorKind, Result};

pub(super) const USE: &str = "use";
pub(super) const WRITER: &str = "writer";

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// Locks that last until it's dropped.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    files: Vec<File>,
    /// A forked child has copies, with which it would unlock its parent's.
    owner: u32,
}

/// A lock to be taken.
struct Want {
    path: PathBuf,
    alone: bool,
    limit: Duration,
}

impl Hold {
    /// Takes all locks for these volumes, one after the other in the order of their paths,
    /// so that two sandboxes with the same volumes don't wait for each other.
    pub(crate) fn take(volumes: &[Volume]) -> Result<Hold> {
        let mut wants: Vec<Want> = Vec::new();
        for Volume { directory, home, read_only, exclusive } in volumes {
            if let Some(home) = home {
                wants.push(Want { path: home.join(USE), alone: false, limit: Duration::ZERO });
            }
            if let Some(limit) = *exclusive {
                let path = home.as_ref().map_or_else(|| directory.clone(), |home| home.join(WRITER));
                wants.push(Want { path, alone: !read_only, limit });
            }
        }
        // Of a volume that is there twice, the stronger lock.
        wants.sort_by(|a, b| a.path.cmp(&b.path).then(b.alone.cmp(&a.alone)));
        wants.dedup_by(|a, b| a.path == b.path);
        let mut hold = Hold { files: Vec::new(), owner: std::process::id() };
        for want in &wants {
            hold.files.push(want.take()?);
        }
        Ok(hold)
    }

    /// Keeps the locks as long as this program lives: of a sandbox that may not be dead.
    pub(crate) fn keep(mut self) {
        std::mem::forget(std::mem::take(&mut self.files));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.owner == std::process::id() {
            // A forked child's copies would keep the locks.
            self.files.iter().for_each(|file| drop(file.unlock()));
        }
    }
}

impl Want {
    fn take(&self) -> Result<File> {
        let file = open(&self.path)?;
        let deadline = Instant::now().checked_add(self.limit);
        loop {
            let locked = if self.alone { file.try_lock() } else { file.try_lock_shared() };
            match locked {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", &shown(&self.path), error)),
                Err(TryLockError::WouldBlock) => {
                    let left = deadline.map_or(PAUSE, |deadline| deadline.saturating_duration_since(Instant::now()));
                    if left.is_zero() {
                        return Err(busy(&self.path, "another sandbox has it exclusively, or it's being removed"));
                    }
                    sleep(left.min(PAUSE));
                }
            }
        }
        // Whoever removed it meanwhile had the lock before us.
        let same = |file: &File| Some((file.metadata().ok()?.ino(), self.path.symlink_metadata().ok()?.ino()));
        match same(&file) {
            Some((ours, there)) if ours == there => Ok(file),
            _ => Err(gone(&self.path)),
        }
    }
}

/// Opens what is to be locked.
pub(super) fn open(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => gone(path),
        _ => Error::io("open", &shown(path), error),
    })
}

pub(super) fn busy(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Busy, format!("cannot lock {}: {why} (wait for its end)", shown(path)))
}

fn gone(path: &Path) -> Error {
    Error::new(ErrorKind::Mount, format!("cannot use {}: the volume has been removed (ask the store for it again)", shown(path)))
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
