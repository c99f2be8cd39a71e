//! From a directory to an archive: always the same bytes for the same content.
//!
//! Entries are in the order of their names, parents before what is in them, hard
//! links after the first name of their file; the marker of an opaque directory comes
//! first in it. What an archive says is content: times may be cut by
//! [`PackOptions::latest`], holes are where long runs of zeros are, whatever the file
//! system has made of them.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::UNIX_EPOCH;

use nix::sys::stat::{FileStat, SFlag, major, minor};

use super::contents::Contents;
use super::directory::{self, DEEPEST, Level, READ, is_directory, is_whiteout, kind, look, read_link};
use super::finish::append;
use super::{PackOptions, Packed, attributes, overlay_attribute, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::tar::{Entry, Kind, Time, Writer};

/// Writes the directory `root` to `out` as a tar archive.
pub(crate) fn pack(root: BorrowedFd<'_>, out: impl Write, options: &PackOptions) -> Result<Packed> {
    let mut packer = Packer { writer: Writer::new(out), options, links: HashMap::new(), packed: Packed::default() };
    packer.tree(root)?;
    packer.writer.finish().map_err(|error| Error::io("write", "the archive", error))?;
    Ok(packer.packed)
}

struct Packer<'a, W> {
    writer: Writer<W>,
    options: &'a PackOptions,
    /// The first names of files that have more than one.
    links: HashMap<(u64, u64), Vec<u8>>,
    packed: Packed,
}

/// A directory on the way, and the names in it that are still to come, the last one first.
struct Stage {
    level: Level,
    names: Vec<CString>,
    /// Bytes of its own path.
    length: usize,
}

impl Stage {
    fn open(parent: BorrowedFd<'_>, name: &CStr, length: usize) -> io::Result<Stage> {
        let mut level = Level::open(parent, name, READ)?;
        let mut names = Vec::new();
        while let Some((name, _)) = level.next()? {
            names.push(name);
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Stage { level, names, length })
    }
}

impl<W: Write> Packer<'_, W> {
    fn tree(&mut self, root: BorrowedFd<'_>) -> Result<()> {
        let mut path = Vec::new();
        let top = Stage::open(root, c".", 0).map_err(|error| failed(&path, error))?;
        if self.options.root_entry {
            self.directory(root, c".", b"./", &top.level.stat)?;
        }
        let mut stages = vec![top];
        while let Some(stage) = stages.last_mut() {
            path.truncate(stage.length);
            let Some(name) = stage.names.pop() else {
                let stage = stages.pop().expect("looked at");
                stage.level.leave().map_err(|error| failed(&path, error))?;
                continue;
            };
            append(&mut path, name.to_bytes());
            if self.options.exclude.iter().any(|excluded| excluded.as_os_str().as_bytes() == path) {
                continue;
            }
            let fd = stage.level.fd.as_fd();
            let Some(stat) = look(fd, name.to_bytes()).map_err(|errno| failed(&path, errno.into()))? else {
                return Err(refused(&path, "it vanished while it was read"));
            };
            if name.to_bytes().starts_with(b".wh.") {
                return Err(refused(&path, "in an archive that name would be a whiteout"));
            }
            if !is_directory(&stat) {
                self.other(fd, &name, &path, &stat)?;
                continue;
            }
            let entry_path = [&path[..], b"/"].concat();
            self.directory(fd, &name, &entry_path, &stat)?;
            let stage = Stage::open(fd, &name, path.len()).map_err(|error| failed(&path, error))?;
            stages.push(stage);
            if stages.len() > DEEPEST {
                return Err(refused(&path, &format!("it's below more than {DEEPEST} directories")));
            }
        }
        Ok(())
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: &FileStat) -> Result<()> {
        let mut entry = self.entry(parent, name, path, stat)?;
        entry.kind = Kind::Directory;
        self.write(&entry)?;
        if self.options.overlay && self.overlay_has(parent, name, path, "opaque", b"y")? {
            self.marker([path, b".wh..wh..opq"].concat())?;
        }
        Ok(())
    }

    /// Anything but a directory.
    fn other(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: &FileStat) -> Result<()> {
        if kind(stat) == SFlag::S_IFSOCK {
            // It means something to a process that listens, and there's none.
            return Ok(());
        }
        if is_whiteout(stat) || (self.is_empty_file(stat) && self.overlay_has(parent, name, path, "whiteout", b"")?) {
            if !self.options.overlay {
                return Err(refused(path, "a device 0:0 would be a whiteout to overlayfs"));
            }
            let at = path.len() - name.count_bytes();
            return self.marker([&path[..at], b".wh.", &path[at..]].concat());
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let entry = self.plain(path, stat);
                let link = Entry { kind: Kind::HardLink, link: first.clone(), size: 0, ..entry };
                return self.write(&link);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        let mut entry = self.entry(parent, name, path, stat)?;
        let device = (major(stat.st_rdev), minor(stat.st_rdev));
        entry.device = (device.0 as u32, device.1 as u32);
        entry.kind = match kind(stat) {
            SFlag::S_IFREG => return self.file(parent, name, entry),
            SFlag::S_IFLNK => {
                let target = read_link(parent, name.to_bytes()).map_err(|errno| failed(path, errno.into()))?;
                entry.link = target.into_vec();
                Kind::Symlink
            }
            SFlag::S_IFCHR => Kind::CharDevice,
            SFlag::S_IFBLK => Kind::BlockDevice,
            _ => Kind::Fifo,
        };
        if entry.kind == Kind::Symlink || entry.kind == Kind::Fifo {
            entry.device = (0, 0);
        }
        self.write(&entry)
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, mut entry: Entry) -> Result<()> {
        if self.options.overlay && self.overlay_has(parent, name, &entry.path, "metacopy", b"")? {
            return Err(refused(&entry.path, "its data are in a lower layer (an overlay with metacopy=on)"));
        }
        let path = entry.path.clone();
        let mut contents = Contents::open(parent, name, entry.size).map_err(|error| failed(&path, error))?;
        entry.sparse = contents.map().map_err(|error| failed(&path, error))?;
        self.write(&entry)?;
        let failed_writing = |error| Error::io("write", "the archive", error);
        while let Some(bytes) = contents.next().map_err(|error| failed(&path, error))? {
            self.packed.bytes += bytes.len() as u64;
            self.writer.data(bytes).map_err(failed_writing)?;
        }
        Ok(())
    }

    /// What entries of all kinds have, with attributes.
    fn entry(&self, parent: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: &FileStat) -> Result<Entry> {
        let mut entry = self.plain(path, stat);
        let names = directory::attributes(parent, name).map_err(|error| failed(path, error))?;
        for attribute in attributes::kept_of(&names) {
            let value = directory::attribute(parent, name, &attribute).map_err(|error| failed(path, error))?;
            let value = if attribute.as_c_str() == c"security.capability" { attributes::capability(value) } else { value };
            entry.xattrs.push((attribute.into_bytes(), value));
        }
        entry.xattrs.sort();
        Ok(entry)
    }

    fn plain(&self, path: &[u8], stat: &FileStat) -> Entry {
        let mtime = Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 };
        let (uid, gid) = self.options.ids.owner(stat.st_uid, stat.st_gid);
        Entry {
            path: path.to_vec(),
            mode: stat.st_mode & 0o7777,
            uid,
            gid,
            mtime: self.time(mtime),
            size: if kind(stat) == SFlag::S_IFREG { stat.st_size as u64 } else { 0 },
            ..Entry::default()
        }
    }

    fn time(&self, time: Time) -> Time {
        let Some(latest) = self.options.latest else { return time };
        let latest = latest.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Time { seconds: time.seconds.min(i64::try_from(latest).unwrap_or(i64::MAX)), nanoseconds: 0 }
    }

    fn is_empty_file(&self, stat: &FileStat) -> bool {
        self.options.overlay && kind(stat) == SFlag::S_IFREG && stat.st_size == 0
    }

    /// Whether overlayfs has set this attribute, to this value if one is given.
    fn overlay_has(&self, parent: BorrowedFd<'_>, name: &CStr, path: &[u8], attribute: &str, value: &[u8]) -> Result<bool> {
        match directory::attribute(parent, name, &overlay_attribute(attribute)) {
            Ok(found) => Ok(value.is_empty() || found == value),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(false),
            Err(error) => Err(failed(path, error)),
        }
    }

    /// An empty file that says that something is hidden. Nothing else about it is content.
    fn marker(&mut self, path: Vec<u8>) -> Result<()> {
        self.write(&Entry { path, mode: 0o600, ..Entry::default() })
    }

    fn write(&mut self, entry: &Entry) -> Result<()> {
        self.packed.entries += 1;
        self.writer.entry(entry).map_err(|error| Error::io("write", "the archive", error))
    }
}

fn failed(path: &[u8], error: io::Error) -> Error {
    let name = if path.is_empty() { "the root".into() } else { shown(path) };
    Error::io("pack", &name, error)
}

fn refused(path: &[u8], why: &str) -> Error {
    Error::new(ErrorKind::Image, format!("cannot pack {}: {why}", shown(path)))
}
