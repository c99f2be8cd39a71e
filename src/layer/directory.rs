//! Opening the directories of a tree that is ours, and walking through them.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat};

use crate::subordinate::{self, is_denied};
use crate::sys::directory::{Entries, EntryKind};
use crate::sys::xattr;

/// What an owner needs of a directory's mode to read and enter it.
pub(super) const READ: u32 = 0o500;
/// What an owner needs to change it.
pub(super) const CHANGE: u32 = 0o700;

/// How deep a walk goes that keeps all directories on its way open: twice what a layer
/// may have, and half of what a process may usually open.
pub(super) const DEEPEST: usize = 512;

/// Opens the directory `name` for reading. Never through a link, nor into another
/// file system or a bind mount.
///
/// An ordinary user may own directories that it can't enter: those are given the bits
/// of `needed` first. The answer has the mode that was there before.
pub(super) fn open(parent: BorrowedFd<'_>, name: &CStr, needed: u32) -> io::Result<(OwnedFd, FileStat)> {
    match open_with(parent, name, OFlag::O_RDONLY) {
        Ok(directory) => {
            let stat = fstat(&directory)?;
            if lacks(&stat, needed) {
                fchmod(&directory, Mode::from_bits_truncate((stat.st_mode & 0o7777) | needed))?;
            }
            Ok((directory, stat))
        }
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => match open_closed(parent, name, needed) {
            Err(error) if is_denied(&error) => {
                let directory = subordinate::open(parent, name.to_bytes(), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
                let stat = fstat(&directory)?;
                Ok((directory, stat))
            }
            other => other,
        },
        Err(error) => Err(error),
    }
}

fn open_closed(parent: BorrowedFd<'_>, name: &CStr, needed: u32) -> io::Result<(OwnedFd, FileStat)> {
    let closed = open_with(parent, name, OFlag::O_PATH)?;
    let stat = fstat(&closed)?;
    if lacks(&stat, needed) {
        set_mode(closed.as_fd(), (stat.st_mode & 0o7777) | needed)?;
    }
    Ok((open_with(closed.as_fd(), c".", OFlag::O_RDONLY)?, stat))
}

/// Whether it's our own directory, and closed to ourselves.
fn lacks(stat: &FileStat, needed: u32) -> bool {
    let user = nix::unistd::geteuid();
    stat.st_mode & needed != needed && !user.is_root() && stat.st_uid == user.as_raw()
}

fn open_with(parent: BorrowedFd<'_>, name: &CStr, flags: OFlag) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH;
    match openat2(parent, name, OpenHow::new().flags(flags).resolve(resolve)) {
        // A filter of system calls that doesn't know it (there's none for one's own file).
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let opened = openat(parent, name, flags, Mode::empty())?;
            if fstat(&opened)?.st_dev != fstat(parent)?.st_dev {
                return Err(Errno::EXDEV.into());
            }
            Ok(opened)
        }
        result => Ok(result?),
    }
}

/// fchmod(2) of what an O_PATH descriptor stands for, which the kernel refuses on itself.
pub(super) fn set_mode(file: BorrowedFd<'_>, mode: u32) -> nix::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fchmodat(AT_FDCWD, path.as_str(), Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
}

/// Reads something of a file or directory by `read`, which is tried once more while its
/// owner, who may not have read it, may; of a file that isn't ours by `foreign`.
fn readable<T>(
    parent: BorrowedFd<'_>,
    name: &CStr,
    read: impl Fn() -> io::Result<T>,
    foreign: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let opened = || -> io::Result<T> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let closed = openat(parent, name, flags, Mode::empty())?;
        let mode = fstat(&closed)?.st_mode & 0o7777;
        set_mode(closed.as_fd(), mode | 0o400)?;
        let result = read();
        set_mode(closed.as_fd(), mode)?;
        result
    };
    match read() {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => match opened() {
            Err(error) if is_denied(&error) => foreign(),
            other => other,
        },
        result => result,
    }
}

/// The attribute `attribute` of `name`.
pub(crate) fn attribute(parent: BorrowedFd<'_>, name: &CStr, attribute: &CStr) -> io::Result<Vec<u8>> {
    let foreign = || match subordinate::attribute(parent, name.to_bytes(), attribute.to_bytes()) {
        // A link, a socket or a device, which have none that one has to be asked for.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO | libc::ENODEV)) => Err(Errno::ENODATA.into()),
        other => other,
    };
    readable(parent, name, || xattr::get_at(parent, name, attribute), foreign)
}

/// The names of all attributes of `name`, each with a NUL.
pub(super) fn attributes(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>> {
    match xattr::list_at(parent, name) {
        Err(error) if is_denied(&error) => match subordinate::attributes(parent, name.to_bytes()) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO | libc::ENODEV | libc::EOPNOTSUPP)) => {
                Ok(Vec::new())
            }
            other => other,
        },
        other => other,
    }
}

/// Opens a file for reading, whatever it is, without waiting.
pub(super) fn open_file(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let own = || Ok(openat(parent, name, flags, Mode::empty())?);
    readable(parent, name, own, || subordinate::open(parent, name.to_bytes(), flags))
}

/// Opens what stands under a name as it is; a link isn't followed.
pub(crate) fn open_as_it_is(parent: BorrowedFd<'_>, name: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    either(openat(parent, name, flags, Mode::empty()), || subordinate::open(parent, name, flags))
}

/// Where a link leads.
pub(crate) fn read_link(parent: BorrowedFd<'_>, name: &[u8]) -> nix::Result<std::ffi::OsString> {
    either(readlinkat(parent, name), || Ok(readlinkat(&subordinate::open(parent, name, OFlag::O_PATH)?, "")?))
}

/// What `name` is, without following it; nothing if there's nothing.
pub(crate) fn look(parent: BorrowedFd<'_>, name: &[u8]) -> nix::Result<Option<FileStat>> {
    let foreign = || Ok(fstat(&subordinate::open(parent, name, OFlag::O_PATH)?)?);
    match either(fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW), foreign) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What we find ourselves or, in a directory of somebody else's that is closed, by `foreign`.
fn either<T>(own: nix::Result<T>, foreign: impl FnOnce() -> io::Result<T>) -> nix::Result<T> {
    match own {
        Err(Errno::EACCES) => foreign().map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
        other => other,
    }
}

pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

pub(super) fn is_directory(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFDIR
}

/// A character device 0:0, by which overlayfs hides a name.
pub(super) fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

/// Where a walk stands: a directory and the place in it.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) fd: OwnedFd,
    pub(super) stat: FileStat,
    pub(super) entries: Entries,
}

impl Level {
    pub(super) fn open(parent: BorrowedFd<'_>, name: &CStr, needed: u32) -> io::Result<Level> {
        let (fd, stat) = open(parent, name, needed)?;
        Ok(Level { fd, stat, entries: Entries::default() })
    }

    /// Gives a directory that was only read its own mode back.
    pub(super) fn leave(self) -> io::Result<()> {
        if lacks(&self.stat, READ) {
            fchmod(&self.fd, Mode::from_bits_truncate(self.stat.st_mode))?;
        }
        Ok(())
    }

    /// The next entry's name, and whether it's a directory.
    pub(super) fn next(&mut self) -> io::Result<Option<(std::ffi::CString, bool)>> {
        let Some((name, kind)) = self.entries.next(self.fd.as_fd())? else { return Ok(None) };
        let directory = match kind {
            EntryKind::Directory => true,
            EntryKind::Other => false,
            EntryKind::Unknown => look(self.fd.as_fd(), name.to_bytes())?.is_some_and(|stat| is_directory(&stat)),
        };
        Ok(Some((name.to_owned(), directory)))
    }
}
