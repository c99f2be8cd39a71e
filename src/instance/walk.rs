//! The way through a tree of a live sandbox.
//!
//! The host walks from directory to directory by descriptor, never by a path: each name
//! is opened on its own, beneath its directory, on the same mount, without following
//! anything and without waiting, and only then looked at. What the workload puts under
//! that name meanwhile is either what is found, or refused.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::Instance;
use super::files::{EntryKind, too_large};
use crate::error::{Error, ErrorKind, Result};

/// The deepest tree that is copied; each level holds two descriptors.
pub(super) const DEPTH: usize = 64;

/// A way through a tree, with what may still be taken of it.
pub(super) struct Walk<'a> {
    root: &'a Path,
    bytes: u64,
    files: u64,
}

/// A directory on the way, and what is still to be looked at in it.
pub(super) struct Level {
    directory: OwnedFd,
    /// For errors.
    pub(super) path: PathBuf,
    pub(super) names: Vec<CString>,
}

/// What stands under a name.
pub(super) enum Found {
    Directory(OwnedFd, FileStat),
    File(File, FileStat),
    /// A symbolic link that stays in the tree.
    Link(PathBuf, FileStat),
}

impl Level {
    /// Where a name stands.
    pub(super) fn at(&self, name: &CStr) -> PathBuf {
        self.path.join(OsStr::from_bytes(name.to_bytes()))
    }
}

impl<'a> Walk<'a> {
    /// One that takes as much as the recipe's scratch layer has room for.
    pub(super) fn new(instance: &Instance, root: &'a Path) -> Walk<'a> {
        let sandbox = instance.session.sandbox();
        Walk { root, bytes: sandbox.writable, files: sandbox.writable_files }
    }

    /// What the tree itself is.
    pub(super) fn start(&self, opened: OwnedFd) -> Result<Found> {
        let stat = fstat(&opened).map_err(|e| Error::io("look at", &self.root.display().to_string(), e.into()))?;
        match EntryKind::of(stat.st_mode) {
            EntryKind::File => Ok(Found::File(opened.into(), stat)),
            EntryKind::Directory => Ok(Found::Directory(opened, stat)),
            _ => Err(special(self.root)),
        }
    }

    /// Enters a directory: the names in it, as many as may still be taken, the last one
    /// first.
    pub(super) fn enter(&mut self, directory: OwnedFd, path: PathBuf) -> Result<Level> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut reader = Dir::openat(&directory, c".", flags, Mode::empty()).map_err(|e| failed(&path, e))?;
        let mut names = Vec::new();
        for entry in reader.iter() {
            let entry = entry.map_err(|e| failed(&path, e))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.files = self.files.checked_sub(1).ok_or_else(|| {
                Error::new(ErrorKind::FileTooLarge, format!("{} holds more files than the recipe's scratch layer", self.root.display()))
            })?;
            names.push(name.to_owned());
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Level { directory, path, names })
    }

    /// What stands under a name in a directory that is `depth` below the root; nothing if
    /// it's gone.
    pub(super) fn find(&self, level: &Level, name: &CStr, depth: usize) -> Result<Option<Found>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new().flags(flags).resolve(resolve);
        // EAGAIN: something was renamed meanwhile, and the kernel can't tell (openat2(2)).
        let mut attempts = (0..100).map(|_| openat2(&level.directory, name, how));
        let opened = attempts.find(|opened| !matches!(opened, Err(Errno::EAGAIN))).unwrap_or(Err(Errno::EAGAIN));
        let opened = match opened {
            Ok(opened) => opened,
            // Removed meanwhile.
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => return link(level, name, depth),
            // A socket can't be opened, a device not on these mounts.
            Err(Errno::ENXIO | Errno::ENODEV) => return Err(special(&level.at(name))),
            Err(errno) => return Err(failed(&level.at(name), errno)),
        };
        let stat = fstat(&opened).map_err(|e| failed(&level.at(name), e))?;
        match EntryKind::of(stat.st_mode) {
            EntryKind::Directory if depth + 1 == DEPTH => Err(too_deep(&level.at(name))),
            EntryKind::Directory => Ok(Some(Found::Directory(opened, stat))),
            EntryKind::File => Ok(Some(Found::File(opened.into(), stat))),
            _ => Err(special(&level.at(name))),
        }
    }

    /// Bytes that may still be taken.
    pub(super) fn room(&self) -> u64 {
        self.bytes
    }

    /// Takes bytes, unless there are too many.
    pub(super) fn take(&mut self, bytes: u64) -> Result<()> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(|| too_large(self.root, self.bytes))?;
        Ok(())
    }
}

fn link(level: &Level, name: &CStr, depth: usize) -> Result<Option<Found>> {
    let target = match readlinkat(&level.directory, name) {
        Ok(target) => PathBuf::from(target),
        // Another thing, or nothing, has taken its place.
        Err(Errno::EINVAL | Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(failed(&level.at(name), errno)),
    };
    if !stays(&target, depth) {
        let text = format!("cannot copy {}: it's a link to {}, out of the tree", level.at(name).display(), target.display());
        return Err(Error::new(ErrorKind::NotAFile, text));
    }
    match fstatat(&level.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Found::Link(target, stat))),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(failed(&level.at(name), errno)),
    }
}

pub(super) fn failed(path: &Path, errno: Errno) -> Error {
    Error::io("copy", &path.display().to_string(), errno.into())
}

pub(super) fn special(path: &Path) -> Error {
    Error::new(ErrorKind::NotAFile, format!("cannot copy {}: it's a FIFO, a socket or a device", path.display()))
}

pub(super) fn too_deep(path: &Path) -> Error {
    Error::new(ErrorKind::FileTooLarge, format!("{} is deeper than {DEPTH} directories", path.display()))
}

/// Whether a link that stands below `depth` directories of the tree leads to a place in
/// it. A `..` behind a name might climb from wherever another link leads; at the start
/// it climbs from the link's own directory, by known steps.
fn stays(target: &Path, depth: usize) -> bool {
    let climbs = target.components().take_while(|c| *c == Component::ParentDir).count();
    let rest = target.components().skip(climbs);
    climbs <= depth && rest.clone().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_could_leave_the_tree_are_told() {
        let good = [("a", 0), ("./a/b", 0), ("../a", 1), ("../../a/b", 2), ("", 0)];
        let bad = [("/etc/passwd", 3), ("..", 0), ("../a", 0), ("a/../b", 5), ("../../a", 1), ("../a/..", 2)];
        for (target, depth) in good {
            assert!(stays(Path::new(target), depth), "{target}");
        }
        for (target, depth) in bad {
            assert!(!stays(Path::new(target), depth), "{target}");
        }
    }
}
