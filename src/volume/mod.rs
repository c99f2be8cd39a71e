//! Directories that outlive sandboxes.

mod hold;
mod named;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

pub(crate) use hold::Hold;
pub(crate) use named::sweep;

/// A directory that outlives the sandboxes which [have it](crate::Sandbox::volume): a
/// cache of packages, a database, what one step leaves for the next.
///
/// It's writable unless it's made [read-only](Self::read_only), and any number of sandboxes
/// may have it at once, unless they ask [to be alone](Self::exclusive).
///
/// # Owners
/// Every user of a sandbox can write in a named volume. What a workload makes there belongs,
/// on the host, to
/// * root: the same number as inside, on a disk that nobody but root can look at
///   (idmapped mounts; see [`Image::dir`](crate::Image::dir) for what supports them);
/// * an ordinary user with subordinate ids: that user for user 0 of the sandbox, else a
///   subordinate id of that user's;
/// * any other ordinary user: that user.
///
/// Programs there have neither set-user-ID nor capabilities, inside or outside: see
/// [`Sandbox::bind_rw`](crate::Sandbox::bind_rw), of which a volume is a special case.
///
/// # Size
/// There's no quota: what a workload writes into a volume takes the host's disk, and only
/// [`file_size`](crate::Sandbox::file_size) bounds each single file. The kernel's project
/// quotas would need a file system that is mounted with them, and root. Where it
/// matters put the volume on a file system of its own, or of a size that it may fill.
///
/// # Trust
/// The host never follows anything that a workload has left in a volume, nor does this
/// library when it [removes](Store::remove_volume) one. Your own program should open
/// files there as it would open anything else that an enemy has made, or let a sandbox do
/// it. What a recipe itself puts below a volume's place, a file or another mount, follows
/// links in the volume as the workload would: never out of the sandbox, but perhaps into
/// another volume of it.
///
/// ```no_run
/// use cofferdam::{Sandbox, Volume};
///
/// let cache = Volume::named("packages")?;
/// Sandbox::new().volume(&cache, "/cache").run(["sh", "-c", "date >> /cache/log"])?;
/// let out = Sandbox::new().volume(&cache.read_only(), "/cache").run(["cat", "/cache/log"])?;
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Volume {
    /// What the sandbox sees.
    directory: PathBuf,
    /// Of a named one: where it lies, with its locks.
    home: Option<PathBuf>,
    read_only: bool,
    exclusive: Option<Duration>,
}

impl Volume {
    /// The volume of that name in the user's own store
    /// ([`Store::open_default`]), which is made if it's missing. For another
    /// store see [`Store::volume`].
    pub fn named(name: &str) -> Result<Volume> {
        Store::open_default()?.volume(name)
    }

    /// A directory of yours, which must exist, and not by a symbolic link: that might be
    /// an earlier workload's. Its owners and modes stay as they are, and decide
    /// what a workload can do in it: see [`Sandbox::bind_rw`](crate::Sandbox::bind_rw).
    pub fn dir(path: impl AsRef<Path>) -> Result<Volume> {
        let path = path.as_ref();
        let failed = |why: &str| Error::new(ErrorKind::Mount, format!("cannot use {} as a volume: {why}", path.display()));
        let directory = std::path::absolute(path).map_err(|e| failed(&e.to_string()))?;
        let found = fs::symlink_metadata(&directory).map_err(|e| failed(&crate::error::errno_text(&e)))?;
        if !found.is_dir() {
            return Err(failed("it's no directory (a link to one is not followed; give the directory itself)"));
        }
        Ok(Volume { directory, home: None, read_only: false, exclusive: None })
    }

    fn at(home: PathBuf) -> Volume {
        Volume { directory: home.join(named::CONTENTS), home: Some(home), read_only: false, exclusive: None }
    }

    /// The same volume, which the workload can't write.
    pub fn read_only(&self) -> Volume {
        Volume { read_only: true, ..self.clone() }
    }

    /// The same volume, for a sandbox that wants to be the only one to write: it starts
    /// only when no other has it *in this way*, and keeps others that want it in this way
    /// from starting, from its start to its end. Two that are
    /// [read-only](Self::read_only) don't exclude each other.
    ///
    /// It waits for the others up to `limit`; then it's [`ErrorKind::Busy`], as it is at
    /// once with a limit of zero. The lock is the host program's: when that is killed it's
    /// free a moment before its sandboxes are gone. Of a [directory](Self::dir) the lock is
    /// flock(2) of the directory itself, which a workload that has it can take too.
    pub fn exclusive(&self, limit: Duration) -> Volume {
        Volume { exclusive: Some(limit), ..self.clone() }
    }

    /// Where it is on the host. Nothing in it deserves trust.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }
}
