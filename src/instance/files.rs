//! Files in and out of a live sandbox, while the workload may be at work on them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};

use super::Instance;
use super::inside::inside;
use crate::error::{Error, ErrorKind, Result};
use crate::launch::sealed;
use crate::plan::wire::slot;

/// The most entries of a directory that [`Instance::list`] returns.
const MOST_ENTRIES: usize = 1 << 16;

/// What a directory inside holds under one name.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name in its directory.
    pub name: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of a file.
    pub size: u64,
    /// The permission bits.
    pub mode: u32,
}

/// What a directory entry is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A FIFO, a socket or a device.
    Special,
}

impl EntryKind {
    pub(super) fn of(mode: u32) -> EntryKind {
        match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => EntryKind::File,
            SFlag::S_IFDIR => EntryKind::Directory,
            SFlag::S_IFLNK => EntryKind::Link,
            _ => EntryKind::Special,
        }
    }
}

/// Files are read and written with the rights of the run's user, and within the
/// sandbox's root, whatever links the workload makes of them meanwhile.
impl Instance {
    /// Makes a file with these contents, mode 0644, of the run's user. It replaces what
    /// was there, but a directory; missing directories are made.
    pub fn write(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> Result<()> {
        self.write_mode(path, contents, 0o644)
    }

    /// Like [`write`](Self::write), with a mode: the nine permission bits.
    pub fn write_mode(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        let path = inside(path.as_ref())?;
        if mode > 0o777 {
            return Err(Error::invalid(format!("mode {mode:o} of a file has more than permission bits")));
        }
        // Written inside, so that no fork of the host's holds it open for writing when
        // it's to be executed.
        let source = sealed(c"cofferdam-file", contents.as_ref())?;
        let mut draft = self.steps();
        self.copy_step(&mut draft, path, slot::PASSED, mode);
        self.perform(&draft, &[source.as_fd()]).map(drop)
    }

    /// The contents of a regular file; more than `most` bytes are an error of kind
    /// [`FileTooLarge`](ErrorKind::FileTooLarge). A symbolic link isn't followed if it
    /// stands in the last place; a FIFO or a device is refused without being waited for.
    pub fn read(&self, path: impl AsRef<Path>, most: u64) -> Result<Vec<u8>> {
        let path = inside(path.as_ref())?;
        let file = self.open(path, 0)?;
        regular(&file, path)?;
        let mut contents = Vec::new();
        let read = File::from(file).take(most.saturating_add(1)).read_to_end(&mut contents);
        read.map_err(|e| Error::io("read", &path.display().to_string(), e))?;
        if contents.len() as u64 > most { Err(too_large(path, most)) } else { Ok(contents) }
    }

    /// What a directory holds, sorted by name; 65,536 entries at most.
    pub fn list(&self, path: impl AsRef<Path>) -> Result<Vec<Entry>> {
        let path = path.as_ref();
        if path != Path::new("/") {
            inside(path)?;
        }
        let failed = |e: nix::Error| Error::io("list", &path.display().to_string(), e.into());
        let directory = self.open(path, libc::O_DIRECTORY)?;
        let copy = directory.try_clone().map_err(|e| Error::io("copy", "a descriptor", e))?;
        let mut entries = Vec::new();
        for entry in Dir::from_fd(copy).map_err(failed)?.iter() {
            let entry = entry.map_err(failed)?;
            let name = PathBuf::from(OsStr::from_bytes(entry.file_name().to_bytes()));
            if name == Path::new(".") || name == Path::new("..") {
                continue;
            }
            if entries.len() == MOST_ENTRIES {
                return Err(Error::new(ErrorKind::FileTooLarge, format!("{} has more than {MOST_ENTRIES} entries", path.display())));
            }
            // Gone meanwhile, or not to be looked at: then what the directory says.
            let stat = fstatat(&directory, entry.file_name(), AtFlags::AT_SYMLINK_NOFOLLOW).ok();
            let kind = stat.map_or_else(|| kind_of(entry.file_type()), |s| EntryKind::of(s.st_mode));
            let (size, mode) = stat.map_or((0, 0), |s| (s.st_size as u64, s.st_mode & 0o7777));
            entries.push(Entry { name, kind, size, mode });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }
}

fn kind_of(kind: Option<Type>) -> EntryKind {
    match kind {
        Some(Type::File) => EntryKind::File,
        Some(Type::Directory) => EntryKind::Directory,
        Some(Type::Symlink) => EntryKind::Link,
        _ => EntryKind::Special,
    }
}

/// Refuses what isn't a regular file.
pub(super) fn regular(file: &OwnedFd, path: &Path) -> Result<FileStat> {
    let stat = fstat(file).map_err(|e| Error::io("look at", &path.display().to_string(), e.into()))?;
    let what = match EntryKind::of(stat.st_mode) {
        EntryKind::File => return Ok(stat),
        EntryKind::Directory => return Err(Error::new(ErrorKind::IsADirectory, format!("{} is a directory", path.display()))),
        EntryKind::Link => "a symbolic link",
        EntryKind::Special => "a FIFO, a socket or a device",
    };
    Err(Error::new(ErrorKind::NotAFile, format!("{} is {what}, which is never read", path.display())))
}

pub(super) fn too_large(path: &Path, most: u64) -> Error {
    Error::new(ErrorKind::FileTooLarge, format!("{} is larger than {most} bytes", path.display()))
}
