//! From an archive to a directory.

use std::ffi::CString;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, getegid, geteuid, linkat, symlinkat};

use super::directory::{CHANGE, is_directory, look, set_mode};
use super::name::{self, Name, split};
use super::tree::{Directory, Node, Origin, Tree};
use super::{Applied, Form, Options, OwnerTable, Owners, Question, Unknown, attributes, path_of, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::xattr;
use crate::tar::{Entry, Kind, Reader, Time};

/// Unpacks the layer `tar` (not compressed) into the directory `root`, and reads the
/// stream to its end. After an error the directory is in an unknown state.
pub(crate) fn apply(tar: impl BufRead, root: BorrowedFd<'_>, options: &Options) -> Result<Applied> {
    apply_onto(tar, root, options, OwnerTable::new())
}

/// The same, for a tree that has layers already: `owners` are theirs.
pub(crate) fn apply_onto(tar: impl BufRead, root: BorrowedFd<'_>, options: &Options, owners: OwnerTable) -> Result<Applied> {
    into(Tree::new(root, options.form, options.owners, &options.limits, owners)?, tar, options)
}

fn into<'a>(tree: Tree<'a>, tar: impl BufRead, options: &'a Options) -> Result<Applied> {
    let caller = (geteuid().as_raw(), getegid().as_raw());
    let mut layer = Layer { tar: Reader::new(tar), tree, options, caller, applied: Applied::default(), markers: Vec::new() };
    while let Some(entry) = layer.tar.next_entry()? {
        layer.entry(entry)?;
    }
    layer.tar.drain(options.limits.bytes.saturating_sub(layer.applied.bytes))?;
    layer.hide()?;
    layer.finish()?;
    layer.applied.inodes = layer.tree.inodes;
    layer.applied.owners = layer.tree.owners_later;
    Ok(layer.applied)
}

/// A layer on its way to the disk.
pub(super) struct Layer<'a, R> {
    pub(super) tar: Reader<R>,
    pub(super) tree: Tree<'a>,
    pub(super) options: &'a Options,
    /// Whose what we make is at first.
    pub(super) caller: (u32, u32),
    pub(super) applied: Applied,
    /// Whiteouts and opaque directories, for the end: they hide what's in lower layers,
    /// never what is in this one, wherever in the archive they stand.
    pub(super) markers: Vec<Marker>,
}

/// What a layer hides.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Marker {
    Whiteout(Vec<u8>),
    Opaque(Vec<u8>),
}

impl Marker {
    pub(super) fn path(&self) -> &[u8] {
        match self {
            Marker::Whiteout(path) | Marker::Opaque(path) => path,
        }
    }
}

impl<R: BufRead> Layer<'_, R> {
    fn entry(&mut self, entry: Entry) -> Result<()> {
        self.tree.count()?;
        let name = name::parse(&entry.path, &self.options.limits).map_err(|why| refused(&entry.path, why))?;
        let path = match name {
            Name::Skip => return Ok(()),
            Name::Whiteout(_) | Name::Opaque(_) if entry.kind == Kind::Directory => {
                return Err(refused(&entry.path, "a whiteout is no directory"));
            }
            Name::Whiteout(path) => return self.marker(Marker::Whiteout(path)),
            Name::Opaque(path) => return self.marker(Marker::Opaque(path)),
            Name::Root if entry.kind == Kind::Directory => return self.root(&entry),
            Name::Root => return Err(refused(&entry.path, "the root is a directory")),
            Name::Plain(path) => path,
        };
        let (above, last) = split(&path);
        let parent = self.tree.parent(above)?;
        let at = At { path: &path, parent: &parent, name: last };
        match entry.kind {
            Kind::Directory => return self.directory(&at, &entry),
            Kind::HardLink => return self.hard_link(&at, &entry),
            Kind::File => self.file(&at, &entry)?,
            Kind::Symlink => self.symlink(&at, &entry)?,
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                if !self.special(&at, &entry)? {
                    return Ok(());
                }
            }
        }
        self.tree.added(&parent, last)
    }

    fn marker(&mut self, marker: Marker) -> Result<()> {
        self.tree.remember(size_of::<Marker>() * 2 + marker.path().len())?;
        self.markers.push(marker);
        Ok(())
    }

    /// The entry of the root directory: it has a mode, an owner and a time, too.
    fn root(&mut self, entry: &Entry) -> Result<()> {
        let root = self.tree.root();
        self.applied.root_entry = true;
        self.described(b"", &root, entry, true)
    }

    fn directory(&mut self, at: &At<'_>, entry: &Entry) -> Result<()> {
        let mut there = false;
        let make = || mkdirat(&at.parent.fd, at.name, Mode::S_IRWXU);
        match self.tree.made(at.parent, make) {
            Err(Errno::EEXIST) => {
                let stat = look(at.parent.fd.as_fd(), at.name).map_err(|errno| failed(at.path, errno))?;
                there = stat.as_ref().is_some_and(is_directory);
                if !there {
                    self.tree.clear(at.parent, at.name, stat.as_ref())?;
                    make().map_err(|errno| failed(at.path, errno))?;
                }
            }
            result => result.map_err(|errno| failed(at.path, errno))?,
        }
        let name = CString::new(at.name).map_err(|_| failed(at.path, Errno::EINVAL))?;
        let opened = super::directory::open(at.parent.fd.as_fd(), &name, CHANGE);
        let (fd, stat) = opened.map_err(|error| Error::io("open", &shown(at.path), error))?;
        let directory = Rc::new(Directory { fd, inode: stat.st_ino });
        self.described(at.path, &directory, entry, there)?;
        // What is in it comes next, most likely.
        self.tree.keep_open(at.path, &directory);
        Ok(())
    }

    /// Owner and attributes of a directory, which isn't open as O_PATH; mode and time
    /// come at the end.
    fn described(&mut self, path: &[u8], directory: &Directory, entry: &Entry, there: bool) -> Result<()> {
        if !self.tree.nodes.contains_key(&directory.inode) {
            self.tree.remember(size_of::<(u64, Node)>() * 2)?;
        }
        let opaque = self.tree.nodes.get(&directory.inode).is_some_and(|node| node.opaque);
        let node = Node { mode: entry.mode, mtime: entry.mtime, origin: Origin::Entry, opaque };
        self.tree.nodes.insert(directory.inode, node);
        if self.options.owners == Owners::Real {
            fchown(&directory.fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
                .map_err(|errno| owner_failed(path, entry, errno))?;
        }
        if there {
            self.without_attributes(path, directory.fd.as_fd())?;
        }
        self.attributes(path, directory.fd.as_fd(), entry)?;
        self.tree.owner_later(directory.inode, entry.uid, entry.gid)
    }

    /// An entry for a directory that's there says all of its attributes, not some more.
    fn without_attributes(&mut self, path: &[u8], fd: BorrowedFd<'_>) -> Result<()> {
        let failed = |error| Error::io("remove attributes of", &shown(path), error);
        for name in attributes::kept_of(&xattr::list(fd).map_err(failed)?) {
            match xattr::remove(fd, &name) {
                Err(error) if error.raw_os_error() != Some(libc::EPERM) => return Err(failed(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn symlink(&mut self, at: &At<'_>, entry: &Entry) -> Result<()> {
        if entry.link.len() > 4095 {
            return Err(refused(at.path, "the target of a link is longer than 4095 bytes"));
        }
        self.make(at, || symlinkat(&entry.link[..], &at.parent.fd, at.name))?;
        self.described_at(at, entry)
    }

    /// A device or a FIFO; whether it could be made.
    fn special(&mut self, at: &At<'_>, entry: &Entry) -> Result<bool> {
        let (major, minor) = entry.device;
        let kind = match entry.kind {
            Kind::CharDevice => SFlag::S_IFCHR,
            Kind::BlockDevice => SFlag::S_IFBLK,
            _ => SFlag::S_IFIFO,
        };
        if kind != SFlag::S_IFIFO && (major > 0xfff || minor > 0xf_ffff) {
            return Err(refused(at.path, "a device's number is out of range"));
        }
        if kind == SFlag::S_IFCHR && (major, minor) == (0, 0) {
            return Err(refused(at.path, "a device 0:0 would be a whiteout to overlayfs"));
        }
        let number = if kind == SFlag::S_IFIFO { 0 } else { makedev(major.into(), minor.into()) };
        match self.try_make(at, || mknodat(&at.parent.fd, at.name, kind, Mode::S_IRUSR | Mode::S_IWUSR, number))? {
            // In a user namespace, and for an ordinary user: devices are root's.
            Err(Errno::EPERM) if kind != SFlag::S_IFIFO => {
                self.note("this user can't make devices", at.path);
                return Ok(false);
            }
            result => result.map_err(|errno| failed(at.path, errno))?,
        }
        self.described_at(at, entry)?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(&at.parent.fd, at.name, flags, Mode::empty()).map_err(|errno| failed(at.path, errno))?;
        set_mode(made.as_fd(), entry.mode).map_err(|errno| failed(at.path, errno))?;
        Ok(true)
    }

    /// Owner, attributes and time of what can't be opened.
    fn described_at(&mut self, at: &At<'_>, entry: &Entry) -> Result<()> {
        if self.options.owners == Owners::Real {
            let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
            fchownat(&at.parent.fd, at.name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(|errno| owner_failed(at.path, entry, errno))?;
        }
        if self.tree.wants_owner(entry.uid, entry.gid)
            && let Some(stat) = look(at.parent.fd.as_fd(), at.name).map_err(|errno| failed(at.path, errno))?
        {
            self.tree.owner_later(stat.st_ino, entry.uid, entry.gid)?;
        }
        for (name, value) in &entry.xattrs {
            // The kernel has user.* for files and directories only.
            if !attributes::kept(name) || name.starts_with(b"user.") {
                continue;
            }
            let c_strings = CString::new(at.name).and_then(|at| Ok((at, CString::new(name.as_slice())?)));
            let (entry_name, name) = c_strings.map_err(|_| refused(at.path, "an attribute's name holds a NUL byte"))?;
            let set = xattr::set_at(at.parent.fd.as_fd(), &entry_name, &name, value);
            self.attribute_set(at.path, &name, set)?;
        }
        let time = spec(entry.mtime);
        utimensat(&at.parent.fd, at.name, &TimeSpec::UTIME_OMIT, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(|errno| failed(at.path, errno))
    }

    /// A further name of a file. Its own mode, owner and time don't count.
    fn hard_link(&mut self, at: &At<'_>, entry: &Entry) -> Result<()> {
        let target = name::clean(&entry.link, &self.options.limits).map_err(|why| refused(&entry.link, why))?;
        let (above, last) = split(&target);
        let found = match self.tree.find(above)? {
            Some(directory) => look(directory.fd.as_fd(), last).map_err(|errno| failed(&target, errno))?.map(|stat| (directory, stat)),
            None => None,
        };
        let Some((directory, stat)) = found else {
            if self.options.form == Form::Flat {
                return Err(refused(at.path, &format!("it's a hard link to {}, which isn't there", shown(&target))));
            }
            let kind = Unknown::Link { target: path_of(&target) };
            return self.question(at.path, kind);
        };
        if last.is_empty() || is_directory(&stat) {
            return Err(refused(at.path, "it's a hard link to a directory"));
        }
        if (directory.inode, last) == (at.parent.inode, at.name) {
            return Err(refused(at.path, "it's a hard link to itself"));
        }
        // Two names of one file already: to replace one by the other would lose it.
        let same = look(at.parent.fd.as_fd(), at.name).map_err(|errno| failed(at.path, errno))?;
        if same.is_none_or(|same| same.st_ino != stat.st_ino) {
            self.make(at, || linkat(&directory.fd, last, &at.parent.fd, at.name, AtFlags::empty()))?;
        }
        self.tree.added(at.parent, at.name)
    }

    /// Makes something, after removing what stands there.
    pub(super) fn make<T>(&mut self, at: &At<'_>, make: impl Fn() -> nix::Result<T>) -> Result<T> {
        self.try_make(at, make)?.map_err(|errno| failed(at.path, errno))
    }

    fn try_make<T>(&mut self, at: &At<'_>, make: impl Fn() -> nix::Result<T>) -> Result<nix::Result<T>> {
        match self.tree.made(at.parent, &make) {
            Err(Errno::EEXIST) => {
                self.tree.clear(at.parent, at.name, None)?;
                Ok(make())
            }
            result => Ok(result),
        }
    }

    /// Sets the attributes of an open file.
    pub(super) fn attributes(&mut self, path: &[u8], fd: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
        for (name, value) in &entry.xattrs {
            if !attributes::kept(name) {
                continue;
            }
            let name = CString::new(name.as_slice()).map_err(|_| refused(path, "an attribute's name holds a NUL byte"))?;
            let set = xattr::set(fd, &name, value);
            self.attribute_set(path, &name, set)?;
        }
        Ok(())
    }

    fn attribute_set(&mut self, path: &[u8], name: &CString, set: std::io::Result<()>) -> Result<()> {
        let Err(error) = set else { return Ok(()) };
        match attributes::unsettable(&error) {
            Some(why) => self.note(why, path),
            None => return Err(Error::io(&format!("set the attribute {} of", shown(name.as_bytes())), &shown(path), error)),
        }
        Ok(())
    }

    pub(super) fn question(&mut self, path: &[u8], kind: Unknown) -> Result<()> {
        self.tree.remember(size_of::<Question>() + path.len())?;
        self.applied.questions.push(Question { path: path_of(path), kind });
        Ok(())
    }

    /// Says once why something is left out.
    pub(super) fn note(&mut self, why: &str, path: &[u8]) {
        if !self.applied.notes.iter().any(|note| note.starts_with(why)) {
            self.applied.notes.push(format!("{why}: {}", shown(path)));
        }
    }
}

/// Where an entry goes.
pub(super) struct At<'a> {
    pub(super) path: &'a [u8],
    pub(super) parent: &'a Directory,
    pub(super) name: &'a [u8],
}

pub(super) fn refused(path: &[u8], why: &str) -> Error {
    Error::new(ErrorKind::Image, format!("cannot unpack {}: {why}", shown(path)))
}

pub(super) fn failed(path: &[u8], errno: Errno) -> Error {
    Error::io("unpack", &shown(path), errno.into())
}

pub(super) fn owner_failed(path: &[u8], entry: &Entry, errno: Errno) -> Error {
    let hint = match errno {
        Errno::EPERM => Some("only root may"),
        Errno::EINVAL => Some("this user namespace has no such id"),
        _ => None,
    };
    Error::failed(ErrorKind::Io, &format!("give to {}:{}", entry.uid, entry.gid), &shown(path), errno as i32, hint)
}

pub(super) fn spec(time: Time) -> TimeSpec {
    TimeSpec::new(time.seconds, time.nanoseconds.into())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::super::Limits;
    use super::*;
    use crate::tar::Writer;

    fn archive() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        let mut put = |path: &str, kind, link: &str| {
            let (path, link) = (path.into(), link.into());
            writer.entry(&Entry { path, kind, link, mode: 0o755, ..Entry::default() }).expect("a Vec takes all");
        };
        put("d/e/", Kind::Directory, "");
        put("abs", Kind::Symlink, "/d/e");
        put("d/up", Kind::Symlink, "../../../d/./e/");
        put("chain", Kind::Symlink, "d/up/../../abs");
        put("dangling", Kind::Symlink, "x/../y//z");
        for (i, parent) in ["abs", "d/up", "chain", "chain/../e", "dangling", "abs/new/deep", "d/e/f/g"].iter().enumerate() {
            if !parent.contains("..") {
                put(&format!("{parent}/{i}"), Kind::File, "");
            }
        }
        put("d", Kind::Symlink, "y");
        put("d/last", Kind::File, "");
        put("abs/gone", Kind::File, "");
        writer.finish().expect("a Vec takes all")
    }

    fn listed(directory: &Path, into: &mut Vec<(String, u32)>) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("it's there");
            into.push((path.display().to_string(), metadata.mode()));
            if metadata.is_dir() {
                listed(&path, into);
            }
        }
    }

    /// The long way is what happens where openat2(2) is forbidden, and the reference for it.
    #[test]
    fn the_fast_way_to_a_directory_and_the_long_one_lead_to_the_same() {
        let trees = [true, false].map(|fast| {
            let root = tempfile::tempdir().expect("a directory");
            let fd = File::open(root.path()).expect("a directory");
            let options = Options { form: Form::Flat, owners: Owners::Single, limits: Limits::default() };
            let mut tree = Tree::new(fd.as_fd(), options.form, options.owners, &options.limits, OwnerTable::new()).expect("a tree");
            tree.fast = fast;
            into(tree, &archive()[..], &options).expect("a layer");
            let mut list = Vec::new();
            listed(root.path(), &mut list);
            let mut list: Vec<_> = list.iter().map(|(path, mode)| (path[root.path().as_os_str().len()..].to_string(), *mode)).collect();
            list.sort();
            list
        });
        assert_eq!(trees[0], trees[1]);
        assert!(trees[0].iter().any(|(path, _)| path == "/y/z/4") && trees[0].iter().any(|(path, _)| path == "/y/last"), "{trees:?}");
    }
}
