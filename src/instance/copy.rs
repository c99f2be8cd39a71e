//! Trees in and out of a live sandbox.
//!
//! Out of it the host walks from directory to directory by descriptor, never by a path:
//! each name is opened on its own, beneath its directory, on the same mount, without
//! following anything and without waiting, and only then looked at. What the workload
//! puts under that name meanwhile is either what is copied, or refused.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::symlinkat;

use super::Instance;
use super::files::{EntryKind, too_large};
use super::inside::inside;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::wire::{AT_FDCWD, op, slot};
use crate::plan::{Arg, Draft, Mark};

/// The deepest tree that is copied; each level holds two descriptors.
const DEPTH: usize = 64;
/// Files whose descriptors travel in one request.
const BATCH: usize = 32;

impl Instance {
    /// Copies a file or a tree of the host's into the sandbox. Modes are kept, but for
    /// set-ID bits; everything belongs to the run's user. Files replace what is there,
    /// directories are merged. Symbolic links are copied as they are; FIFOs, sockets and
    /// devices are refused.
    pub fn copy_in(&self, host: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let path = inside(path.as_ref())?;
        let mut batch = Batch { instance: self, draft: self.steps(), files: Vec::new(), steps: 0 };
        batch.add_tree(host.as_ref(), path, 0)?;
        batch.send()
    }

    /// Copies a file or a tree out of the sandbox, to a place on the host that doesn't
    /// exist yet. Modes are kept, but for set-ID bits; everything belongs to the host
    /// program.
    ///
    /// Nothing is copied that isn't below `path`, on the same mount. Symbolic links are
    /// copied only if they stay in the tree, whatever the other links are: relative, with
    /// `..` only at the start and no more of them than directories above. Any other link,
    /// a FIFO, a socket or a device is an error of kind [`NotAFile`](ErrorKind::NotAFile).
    ///
    /// The copy is at most as large as the recipe's scratch layer, in bytes and in files,
    /// however large sparse files claim to be; else the error is
    /// [`FileTooLarge`](ErrorKind::FileTooLarge). What was copied until an error
    /// remains, for the caller to remove.
    pub fn copy_out(&self, path: impl AsRef<Path>, host: impl AsRef<Path>) -> Result<()> {
        let (path, host) = (inside(path.as_ref())?, host.as_ref());
        let source = self.open(path, 0)?;
        let sandbox = self.session.sandbox();
        let mut copy = Copy { root: path, bytes: sandbox.writable, files: sandbox.writable_files };
        let stat = fstat(&source).map_err(|e| Error::io("look at", &path.display().to_string(), e.into()))?;
        let made = |e| Error::io("make", &host.display().to_string(), e);
        match EntryKind::of(stat.st_mode) {
            EntryKind::File => {
                let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(host).map_err(made)?;
                copy.file(source.into(), target, stat.st_mode)
            }
            EntryKind::Directory => {
                fs::DirBuilder::new().mode(0o700).create(host).map_err(made)?;
                copy.tree(source, File::open(host).map_err(made)?.into(), stat.st_mode)
            }
            _ => Err(special(path)),
        }
    }
}

fn special(path: &Path) -> Error {
    Error::new(ErrorKind::NotAFile, format!("cannot copy {}: it's a FIFO, a socket or a device", path.display()))
}

fn too_deep(path: &Path) -> Error {
    Error::new(ErrorKind::FileTooLarge, format!("{} is deeper than {DEPTH} directories", path.display()))
}

/// A copy on its way out, with what it may still take.
struct Copy<'a> {
    root: &'a Path,
    bytes: u64,
    files: u64,
}

/// A directory on both sides.
struct Level {
    source: OwnedFd,
    /// What is still to be copied of it.
    names: Vec<CString>,
    target: OwnedFd,
    mode: u32,
}

impl Copy<'_> {
    fn tree(&mut self, source: OwnedFd, target: OwnedFd, mode: u32) -> Result<()> {
        let mut levels = vec![Level { names: self.names(&source)?, source, target, mode }];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                let mode = Mode::from_bits_truncate(level.mode & 0o777);
                fchmod(&level.target, mode).map_err(|e| failed(self.root, e))?;
                levels.pop();
                continue;
            };
            let depth = levels.len();
            let level = &levels[depth - 1];
            let Some((source, mode)) = self.entry(level, &name, depth - 1)? else { continue };
            if depth == DEPTH {
                return Err(too_deep(self.root));
            }
            let target = make_directory(&level.target, &name).map_err(|e| self.failed(&name, e))?;
            levels.push(Level { names: self.names(&source)?, source, target, mode });
        }
        Ok(())
    }

    /// The names in a directory, as many as may still be copied.
    fn names(&mut self, directory: &OwnedFd) -> Result<Vec<CString>> {
        let mut directory = Dir::openat(directory, c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|e| failed(self.root, e))?;
        let mut names = Vec::new();
        for entry in directory.iter() {
            let entry = entry.map_err(|e| failed(self.root, e))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.files = self.files.checked_sub(1).ok_or_else(|| {
                Error::new(ErrorKind::FileTooLarge, format!("{} holds more files than the recipe's scratch layer", self.root.display()))
            })?;
            names.push(name.to_owned());
        }
        Ok(names)
    }

    /// Copies one entry, unless it's a directory, which is returned.
    fn entry(&mut self, level: &Level, name: &CStr, depth: usize) -> Result<Option<(OwnedFd, u32)>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new().flags(flags).resolve(resolve);
        // EAGAIN: something was renamed meanwhile, and the kernel can't tell (openat2(2)).
        let mut attempts = (0..100).map(|_| openat2(&level.source, name, how));
        let opened = attempts.find(|opened| !matches!(opened, Err(Errno::EAGAIN))).unwrap_or(Err(Errno::EAGAIN));
        let source = match opened {
            Ok(source) => source,
            // Removed meanwhile.
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => return self.link(level, name, depth).map(|()| None),
            // A socket can't be opened, a device not on these mounts.
            Err(Errno::ENXIO | Errno::ENODEV) => return Err(special(&self.root.join(OsStr::from_bytes(name.to_bytes())))),
            Err(errno) => return Err(self.failed(name, errno)),
        };
        let stat = fstat(&source).map_err(|e| self.failed(name, e))?;
        match EntryKind::of(stat.st_mode) {
            EntryKind::Directory => Ok(Some((source, stat.st_mode))),
            EntryKind::File => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let target = openat(&level.target, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| self.failed(name, e))?;
                self.file(source.into(), target.into(), stat.st_mode).map(|()| None)
            }
            _ => Err(special(&self.root.join(OsStr::from_bytes(name.to_bytes())))),
        }
    }

    fn link(&mut self, level: &Level, name: &CStr, depth: usize) -> Result<()> {
        let target = match readlinkat(&level.source, name) {
            Ok(target) => PathBuf::from(target),
            // Another thing, or nothing, has taken its place.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(self.failed(name, errno)),
        };
        if !stays(&target, depth) {
            let name = self.root.join(OsStr::from_bytes(name.to_bytes()));
            let text = format!("cannot copy {}: it's a link to {}, out of the tree", name.display(), target.display());
            return Err(Error::new(ErrorKind::NotAFile, text));
        }
        symlinkat(&target, &level.target, name).map_err(|e| self.failed(name, e))
    }

    fn file(&mut self, source: File, mut target: File, mode: u32) -> Result<()> {
        let copied = io::copy(&mut source.take(self.bytes.saturating_add(1)), &mut target);
        let copied = copied.map_err(|e| Error::io("copy from", &self.root.display().to_string(), e))?;
        self.bytes = self.bytes.checked_sub(copied).ok_or_else(|| too_large(self.root, self.bytes))?;
        let mode = Mode::from_bits_truncate(mode & 0o777);
        fchmod(&target, mode).and_then(|()| target.flush().map_err(|_| Errno::EIO)).map_err(|e| failed(self.root, e))
    }

    fn failed(&self, name: &CStr, errno: Errno) -> Error {
        failed(&self.root.join(OsStr::from_bytes(name.to_bytes())), errno)
    }
}

fn failed(path: &Path, errno: Errno) -> Error {
    Error::io("copy", &path.display().to_string(), errno.into())
}

/// Whether a link that stands below `depth` directories of the tree leads to a place in
/// it. A `..` behind a name might climb from wherever another link leads; at the start
/// it climbs from the link's own directory, by known steps.
fn stays(target: &Path, depth: usize) -> bool {
    let climbs = target.components().take_while(|c| *c == Component::ParentDir).count();
    let rest = target.components().skip(climbs);
    climbs <= depth && rest.clone().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

fn make_directory(parent: &OwnedFd, name: &CStr) -> nix::Result<OwnedFd> {
    mkdirat(parent, name, Mode::S_IRWXU)?;
    openat(parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// What goes in with the next request.
struct Batch<'a> {
    instance: &'a Instance,
    draft: Draft,
    files: Vec<OwnedFd>,
    steps: usize,
}

impl Batch<'_> {
    fn add_tree(&mut self, host: &Path, path: &Path, depth: usize) -> Result<()> {
        let failed = |e| Error::io("copy", &host.display().to_string(), e);
        if depth > DEPTH {
            return Err(too_deep(host));
        }
        let metadata = fs::symlink_metadata(host).map_err(failed)?;
        let mode = metadata.mode() & 0o777;
        match EntryKind::of(metadata.mode()) {
            EntryKind::File => {
                let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(host).map_err(failed)?;
                let source = slot::PASSED + self.files.len() as u8;
                self.instance.copy_step(&mut self.draft, path, source, mode);
                self.files.push(file.into());
            }
            EntryKind::Directory => {
                self.directory(path, mode);
                let mut entries = fs::read_dir(host).map_err(failed)?.collect::<io::Result<Vec<_>>>().map_err(failed)?;
                entries.sort_by_key(|entry| entry.file_name());
                for entry in entries {
                    self.add_tree(&entry.path(), &path.join(entry.file_name()), depth + 1)?;
                }
                return Ok(());
            }
            EntryKind::Link => {
                let target = fs::read_link(host).map_err(failed)?;
                let (target, name) = (self.draft.text(target.as_os_str().as_bytes()), self.draft.text(path.as_os_str().as_bytes()));
                let args = [target, Arg::Value(AT_FDCWD), name];
                self.draft.step(libc::SYS_symlinkat, &args, "make", path.display().to_string());
            }
            EntryKind::Special => return Err(special(host)),
        }
        self.steps += 1;
        if self.files.len() == BATCH || self.steps == 4096 { self.send() } else { Ok(()) }
    }

    fn directory(&mut self, path: &Path, mode: u32) {
        let (uid, gid) = self.instance.session.sandbox().account();
        let (name, made) = (self.draft.text(path.as_os_str().as_bytes()), self.draft.temporary());
        // The owner must be able to fill it.
        let args = [Arg::Slot(slot::ROOT), name, 0.into(), (mode | 0o700).into(), uid.into(), gid.into()];
        self.draft.step(op::MAKE_PATH, &args, "make", path.display().to_string()).keep_in(made);
        self.draft.close(made);
        self.steps += 1;
    }

    fn send(&mut self) -> Result<()> {
        let draft = std::mem::replace(&mut self.draft, self.instance.steps());
        let files = std::mem::take(&mut self.files);
        self.steps = 0;
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        self.instance.perform(&draft, &fds).map(drop)
    }
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
