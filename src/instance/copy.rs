//! Trees in and out of a live sandbox.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::symlinkat;

use super::Instance;
use super::files::EntryKind;
use super::inside::inside;
use super::walk::{DEPTH, Found, Level, Walk, failed, special, too_deep};
use crate::error::{Error, Result};
use crate::plan::wire::{AT_FDCWD, op, slot};
use crate::plan::{Arg, Draft, Mark};

/// Files whose descriptors travel in one request.
const BATCH: usize = 32;

impl Instance {
    /// Copies a file or a tree of the host's into the sandbox. Modes are kept, but for
    /// set-ID bits; everything belongs to the run's user. Files replace what is there,
    /// directories are merged. Symbolic links are copied as they are; FIFOs, sockets and
    /// devices are refused.
    pub fn copy_in(&self, host: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let path = inside(path.as_ref())?;
        let mut batch = Batch::new(self);
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
    /// a FIFO, a socket or a device is an error of kind [`NotAFile`](crate::ErrorKind::NotAFile).
    ///
    /// The copy is at most as large as the recipe's scratch layer, in bytes and in files,
    /// however large sparse files claim to be; else the error is
    /// [`FileTooLarge`](crate::ErrorKind::FileTooLarge). What was copied until an error
    /// remains, for the caller to remove.
    pub fn copy_out(&self, path: impl AsRef<Path>, host: impl AsRef<Path>) -> Result<()> {
        let (path, host) = (inside(path.as_ref())?, host.as_ref());
        let source = self.open(path, 0)?;
        let mut walk = Walk::new(self, path);
        let made = |e| Error::io("make", &host.display().to_string(), e);
        match walk.start(source)? {
            Found::Directory(source, stat) => {
                fs::DirBuilder::new().mode(0o700).create(host).map_err(made)?;
                copy_tree(&mut walk, path, source, File::open(host).map_err(made)?.into(), stat.st_mode)
            }
            Found::File(source, stat) => {
                let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(host).map_err(made)?;
                copy_file(&mut walk, path, source, target, stat.st_mode)
            }
            Found::Link(..) => Err(special(path)),
        }
    }
}

/// Copies a directory to one that's empty.
fn copy_tree(walk: &mut Walk<'_>, path: &Path, source: OwnedFd, target: OwnedFd, mode: u32) -> Result<()> {
    let mut levels: Vec<(Level, OwnedFd, u32)> = vec![(walk.enter(source, path.to_path_buf())?, target, mode)];
    while let Some((level, target, mode)) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            // Last, because it may forget to let us in.
            fchmod(&*target, Mode::from_bits_truncate(*mode & 0o777)).map_err(|e| failed(&level.path, e))?;
            levels.pop();
            continue;
        };
        let depth = levels.len() - 1;
        let (level, target, _) = &levels[depth];
        let failed = |e| failed(&level.at(&name), e);
        match walk.find(level, &name, depth)? {
            Some(Found::Directory(source, stat)) => {
                let (target, path) = (make_directory(target, &name).map_err(failed)?, level.at(&name));
                levels.push((walk.enter(source, path)?, target, stat.st_mode));
            }
            Some(Found::File(source, stat)) => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let target = openat(target, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?;
                copy_file(walk, &level.at(&name), source, target.into(), stat.st_mode)?;
            }
            Some(Found::Link(link, _)) => symlinkat(&link, target, name.as_c_str()).map_err(failed)?,
            None => {}
        }
    }
    Ok(())
}

fn copy_file(walk: &mut Walk<'_>, path: &Path, source: File, mut target: File, mode: u32) -> Result<()> {
    let copied = io::copy(&mut source.take(walk.room().saturating_add(1)), &mut target);
    walk.take(copied.map_err(|e| Error::io("copy", &path.display().to_string(), e))?)?;
    let mode = Mode::from_bits_truncate(mode & 0o777);
    fchmod(&target, mode).and_then(|()| target.flush().map_err(|_| Errno::EIO)).map_err(|e| failed(path, e))
}

fn make_directory(parent: &OwnedFd, name: &CStr) -> nix::Result<OwnedFd> {
    mkdirat(parent, name, Mode::S_IRWXU)?;
    openat(parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// What goes in with the next request.
pub(super) struct Batch<'a> {
    instance: &'a Instance,
    draft: Draft,
    files: Vec<OwnedFd>,
    steps: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(instance: &'a Instance) -> Batch<'a> {
        Batch { instance, draft: instance.steps(), files: Vec::new(), steps: 0 }
    }

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
                self.file(path, file.into(), mode)
            }
            EntryKind::Directory => {
                self.directory(path, mode)?;
                let mut entries = fs::read_dir(host).map_err(failed)?.collect::<io::Result<Vec<_>>>().map_err(failed)?;
                entries.sort_by_key(|entry| entry.file_name());
                for entry in entries {
                    self.add_tree(&entry.path(), &path.join(entry.file_name()), depth + 1)?;
                }
                Ok(())
            }
            EntryKind::Link => {
                let target = fs::read_link(host).map_err(failed)?;
                self.link(path, target.as_os_str().as_bytes())
            }
            EntryKind::Special => Err(special(host)),
        }
    }

    /// A file with the contents of `source`.
    pub(super) fn file(&mut self, path: &Path, source: OwnedFd, mode: u32) -> Result<()> {
        self.instance.copy_step(&mut self.draft, path, slot::PASSED + self.files.len() as u8, mode);
        self.files.push(source);
        self.added()
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &Path, target: &[u8]) -> Result<()> {
        let (target, name) = (self.draft.text(target), self.draft.text(path.as_os_str().as_bytes()));
        let args = [target, Arg::Value(AT_FDCWD), name];
        self.draft.step(libc::SYS_symlinkat, &args, "make", path.display().to_string());
        self.added()
    }

    /// Another name of a file.
    pub(super) fn hard_link(&mut self, path: &Path, target: &Path) -> Result<()> {
        let (target, name) = (self.draft.text(target.as_os_str().as_bytes()), self.draft.text(path.as_os_str().as_bytes()));
        let args = [Arg::Value(AT_FDCWD), target, Arg::Value(AT_FDCWD), name, 0.into()];
        self.draft.step(libc::SYS_linkat, &args, "make", path.display().to_string());
        self.added()
    }

    fn added(&mut self) -> Result<()> {
        self.steps += 1;
        if self.files.len() == BATCH || self.steps == 4096 { self.send() } else { Ok(()) }
    }

    /// A directory, with those on the way to it.
    pub(super) fn directory(&mut self, path: &Path, mode: u32) -> Result<()> {
        let (uid, gid) = self.instance.session.sandbox().account();
        let (name, made) = (self.draft.text(path.as_os_str().as_bytes()), self.draft.temporary());
        // The owner must be able to fill it.
        let args = [Arg::Slot(slot::ROOT), name, 0.into(), (mode | 0o700).into(), uid.into(), gid.into()];
        self.draft.step(op::MAKE_PATH, &args, "make", path.display().to_string()).keep_in(made);
        self.draft.close(made);
        self.added()
    }

    pub(super) fn send(&mut self) -> Result<()> {
        let draft = std::mem::replace(&mut self.draft, self.instance.steps());
        let files = std::mem::take(&mut self.files);
        self.steps = 0;
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        self.instance.perform(&draft, &fds).map(drop)
    }
}
