//! The tree that a layer is unpacked into: finding and making directories in it, and
//! what's remembered of those until the end.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};

use super::directory::{CHANGE, is_directory, kind, look, open, set_mode};
use super::name::components;
use super::remove::remove;
use super::{Form, Limits, OwnerTable, Owners, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::directory::Entries;
use crate::tar::Time;

/// Links that one path may lead through, as in the kernel.
const LINKS: usize = 40;
/// Components that one path may have once all its links are read.
const STEPS: usize = 10_000;
/// Bytes that an owner takes, with the room that a hash table keeps free.
const OWNER: usize = 2 * size_of::<(u64, (u32, u32))>();
/// Parents that stay open.
const OPEN: usize = 16;

/// A directory of the tree.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    pub(super) inode: u64,
}

/// What a directory gets at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) mode: u32,
    pub(super) mtime: Time,
    pub(super) origin: Origin,
    /// Hides what's below it.
    pub(super) opaque: bool,
}

/// Where a directory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The archive has an entry for it.
    Entry,
    /// It's on the way to something in the archive, and wasn't there.
    Implied,
    /// It was there; its mode and time are what they were.
    Before,
    /// It's on the way to a whiteout only.
    Marker,
}

pub(super) struct Tree<'a> {
    root: Rc<Directory>,
    device: u64,
    form: Form,
    owners: Owners,
    pub(super) owners_later: OwnerTable,
    limits: &'a Limits,
    /// By inode number: the whole tree is on one file system, and a directory that's
    /// removed is taken out.
    pub(super) nodes: HashMap<u64, Node>,
    /// What this layer has put there that's no directory, where whiteouts will have to
    /// spare it: keyed hashes of parent and name.
    added: Option<HashSet<u64>>,
    hasher: RandomState,
    /// Parents by their names in the archive, the last one first. An entry that replaces a
    /// directory or a link empties it: node-tar's was poisoned otherwise.
    open: Vec<(Vec<u8>, Rc<Directory>)>,
    /// openat2(2) works here.
    pub(super) fast: bool,
    /// Bytes remembered, and things made.
    memory: usize,
    pub(super) inodes: u64,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: BorrowedFd<'_>, form: Form, owners: Owners, limits: &'a Limits, later: OwnerTable) -> Result<Tree<'a>> {
        let failed = |error| Error::io("open", "the directory to unpack into", error);
        let (fd, stat) = open(root, c".", CHANGE).map_err(failed)?;
        let empty = Entries::default().next(fd.as_fd()).map_err(failed)?.is_none();
        if !empty && form != Form::Flat {
            return Err(Error::new(ErrorKind::Image, "cannot unpack a layer for an overlay: the directory isn't empty"));
        }
        let mut tree = Tree {
            device: stat.st_dev,
            root: Rc::new(Directory { fd, inode: stat.st_ino }),
            form,
            owners,
            memory: later.len() * OWNER,
            owners_later: later,
            limits,
            nodes: HashMap::new(),
            // What's in a directory that was empty is all of this layer.
            added: (!empty).then(HashSet::new),
            hasher: RandomState::new(),
            open: Vec::new(),
            fast: true,
            inodes: 0,
        };
        match form {
            Form::Flat => tree.remember_before(&stat),
            Form::Overlay { .. } => tree.implied(&tree.root.clone(), Origin::Implied),
        }
        .map_err(|errno| failed(errno.into()))?;
        Ok(tree)
    }

    pub(super) fn root(&self) -> Rc<Directory> {
        Rc::clone(&self.root)
    }

    /// Nothing but this layer is in the tree.
    pub(super) fn is_fresh(&self) -> bool {
        self.added.is_none()
    }

    /// Counts something that's made.
    pub(super) fn count(&mut self) -> Result<()> {
        self.inodes += 1;
        if self.inodes > self.limits.inodes {
            let text = format!("cannot unpack the archive: it holds more than {} files (allow more)", self.limits.inodes);
            return Err(Error::new(ErrorKind::Image, text));
        }
        Ok(())
    }

    /// Counts what has to be remembered.
    pub(super) fn remember(&mut self, bytes: usize) -> Result<()> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > self.limits.memory {
            let text = format!(
                "cannot unpack the archive: its directories, whiteouts and owners take more than {} MiB of memory (allow more)",
                self.limits.memory >> 20
            );
            return Err(Error::new(ErrorKind::Image, text));
        }
        Ok(())
    }

    /// The directory `path`, made if it isn't there, in which something will be made.
    pub(super) fn parent(&mut self, path: &[u8]) -> Result<Rc<Directory>> {
        let found = self.resolve(path, Some(Origin::Implied))?;
        Ok(found.expect("it's made where it's missing"))
    }

    /// The directory `path`, if there's one.
    pub(super) fn find(&mut self, path: &[u8]) -> Result<Option<Rc<Directory>>> {
        self.resolve(path, None)
    }

    fn resolve(&mut self, path: &[u8], make: Option<Origin>) -> Result<Option<Rc<Directory>>> {
        if path.is_empty() {
            return Ok(Some(self.root()));
        }
        if let Some(at) = self.open.iter().position(|(name, _)| name == path) {
            self.open[..=at].rotate_right(1);
            return Ok(Some(Rc::clone(&self.open[0].1)));
        }
        let failed = |errno: Errno| Error::io("open", &shown(path), errno.into());
        let found = match self.open_fast(path).map_err(failed)? {
            Some(directory) => Some(directory),
            None => self.walk(path, make)?.map(|(directory, _)| directory),
        };
        if let Some(directory) = &found {
            self.keep_open(path, directory);
        }
        Ok(found)
    }

    /// Forgets the open parents: something on a way to them was removed.
    pub(super) fn forget_open(&mut self) {
        self.open.clear();
    }

    /// Keeps a directory open under its name.
    pub(super) fn keep_open(&mut self, path: &[u8], directory: &Rc<Directory>) {
        self.open.truncate(OPEN - 1);
        self.open.insert(0, (path.to_vec(), Rc::clone(directory)));
    }

    /// One system call for a path whose directories are all there. Nothing if the long
    /// way has to be gone.
    fn open_fast(&mut self, path: &[u8]) -> nix::Result<Option<Rc<Directory>>> {
        if !self.fast {
            return Ok(None);
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        match openat2(&self.root.fd, path, OpenHow::new().flags(flags).resolve(resolve)) {
            Ok(fd) => {
                let stat = fstat(&fd)?;
                self.remember_before(&stat)?;
                Ok(Some(Rc::new(Directory { fd, inode: stat.st_ino })))
            }
            // Something is missing or no directory, closed to us, or (EAGAIN) another
            // process renamed something while `..` was resolved.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::EAGAIN) => Ok(None),
            Err(Errno::ENOSYS | Errno::EPERM) => {
                self.fast = false;
                Ok(None)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Goes to a directory component by component, as chroot(2) would: links are
    /// followed inside the root, `..` ends there. What's missing is made, and what is
    /// in the way of a directory is replaced by one, if `make` says so. Also tells
    /// whether one of the directories on the way is opaque, or the directory itself.
    pub(super) fn walk(&mut self, path: &[u8], make: Option<Origin>) -> Result<Option<(Rc<Directory>, bool)>> {
        let failed = |doing: &str, errno: Errno| Error::io(doing, &shown(path), errno.into());
        let refused = |why: &str| Error::new(ErrorKind::Image, format!("cannot unpack {}: {why}", shown(path)));
        let mut at = vec![self.root()];
        let mut ahead: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = ahead.pop() {
            steps += 1;
            if steps > STEPS {
                return Err(refused("its links lead through too many directories"));
            }
            let here = Rc::clone(&at[at.len() - 1]);
            match &name[..] {
                b"." => continue,
                b".." => {
                    if at.len() > 1 {
                        at.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut opened = openat(&here.fd, &name[..], flags, Mode::empty());
            if matches!(opened, Err(Errno::EACCES)) {
                loosen(&here).map_err(|errno| failed("open", errno))?;
                opened = openat(&here.fd, &name[..], flags, Mode::empty());
            }
            let found = match opened {
                Ok(fd) => {
                    let stat = fstat(&fd).map_err(|errno| failed("look at", errno))?;
                    Some((fd, stat))
                }
                Err(Errno::ENOENT) => None,
                Err(errno) => return Err(failed("open", errno)),
            };
            match found {
                Some((_, stat)) if stat.st_dev != self.device => return Err(failed("open", Errno::EXDEV)),
                Some((fd, stat)) if is_directory(&stat) => {
                    self.remember_before(&stat).map_err(|errno| failed("remember", errno))?;
                    at.push(Rc::new(Directory { fd, inode: stat.st_ino }));
                }
                Some((fd, stat)) if kind(&stat) == SFlag::S_IFLNK => {
                    links += 1;
                    if links > LINKS {
                        return Err(refused("too many levels of symbolic links"));
                    }
                    let target = readlinkat(&fd, "").map_err(|errno| failed("read the link", errno))?;
                    let target = std::os::unix::ffi::OsStringExt::into_vec(target);
                    if target.first() == Some(&b'/') {
                        at.truncate(1);
                    }
                    ahead.extend(components(&target).rev().map(<[u8]>::to_vec));
                }
                missing_or_other => {
                    let Some(origin) = make else { return Ok(None) };
                    if origin == Origin::Marker && self.is_opaque(&at) {
                        // What's below it is hidden as it is.
                        return Ok(None);
                    }
                    if let Some((_, stat)) = missing_or_other {
                        if origin == Origin::Marker {
                            // A file or a whiteout: nothing below it is left to hide.
                            return Ok(None);
                        }
                        self.clear(&here, &name, Some(&stat))?;
                    }
                    at.push(self.make_implied(&here, &name, origin)?);
                }
            }
            if at.len() > self.limits.depth + 1 {
                return Err(refused("its links lead below too many directories"));
            }
        }
        let opaque = self.is_opaque(&at);
        Ok(at.pop().map(|directory| (directory, opaque)))
    }

    /// Whether one of these hides what's below it.
    fn is_opaque(&self, directories: &[Rc<Directory>]) -> bool {
        directories.iter().any(|directory| self.nodes.get(&directory.inode).is_some_and(|node| node.opaque))
    }

    fn make_implied(&mut self, parent: &Directory, name: &[u8], origin: Origin) -> Result<Rc<Directory>> {
        let failed = |errno: Errno| Error::io("make the directory", &shown(name), errno.into());
        self.count()?;
        self.made(parent, || mkdirat(&parent.fd, name, Mode::S_IRWXU)).map_err(failed)?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat(&parent.fd, name, flags, Mode::empty()).map_err(failed)?;
        let inode = fstat(&fd).map_err(failed)?.st_ino;
        let directory = Rc::new(Directory { fd, inode });
        self.implied(&directory, origin).map_err(failed)?;
        self.remember(size_of::<(u64, Node)>() * 2)?;
        Ok(directory)
    }

    /// Whether [`owner_later`](Self::owner_later) has anything to do.
    pub(super) fn wants_owner(&self, uid: u32, gid: u32) -> bool {
        // The number may be that of something which had another owner, and is gone.
        self.owners == Owners::Later && ((uid, gid) != (0, 0) || !self.owners_later.is_empty())
    }

    /// Keeps whose something is to be.
    pub(super) fn owner_later(&mut self, inode: u64, uid: u32, gid: u32) -> Result<()> {
        if !self.wants_owner(uid, gid) {
            return Ok(());
        }
        if (uid, gid) == (0, 0) {
            self.owners_later.remove(&inode);
        } else if self.owners_later.insert(inode, (uid, gid)).is_none() {
            self.remember(OWNER)?;
        }
        Ok(())
    }

    /// A directory without an entry: 0755 and root's, whatever the umask.
    fn implied(&mut self, directory: &Directory, origin: Origin) -> nix::Result<()> {
        if self.owners == Owners::Real {
            fchownat(&directory.fd, "", Some(Uid::from_raw(0)), Some(Gid::from_raw(0)), AtFlags::AT_EMPTY_PATH)?;
        }
        self.owners_later.remove(&directory.inode);
        self.nodes.insert(directory.inode, Node { mode: 0o755, mtime: Time::default(), origin, opaque: false });
        Ok(())
    }

    /// Remembers mode and time of a directory before something happens in it.
    pub(super) fn remember_before(&mut self, stat: &FileStat) -> nix::Result<()> {
        if self.form == Form::Flat && !self.nodes.contains_key(&stat.st_ino) {
            let mtime = Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 };
            let node = Node { mode: stat.st_mode & 0o7777, mtime, origin: Origin::Before, opaque: false };
            self.nodes.insert(stat.st_ino, node);
            self.memory += size_of::<(u64, Node)>() * 2;
        }
        Ok(())
    }

    /// Makes something in a directory by `make`, which is tried once more if the
    /// directory was closed to us.
    pub(super) fn made<T>(&self, parent: &Directory, make: impl Fn() -> nix::Result<T>) -> nix::Result<T> {
        match make() {
            Err(Errno::EACCES) => {
                loosen(parent)?;
                make()
            }
            result => result,
        }
    }

    /// Removes what stands where something else will be. `stat` is what it is, if that's known.
    pub(super) fn clear(&mut self, parent: &Directory, name: &[u8], stat: Option<&FileStat>) -> Result<()> {
        let failed = |error: std::io::Error| Error::io("replace", &shown(name), error);
        let looked = match stat {
            Some(stat) => Some(*stat),
            None => look(parent.fd.as_fd(), name).map_err(|errno| failed(errno.into()))?,
        };
        let Some(stat) = looked else { return Ok(()) };
        match kind(&stat) {
            SFlag::S_IFDIR => {
                self.open.clear();
                let name = CString::new(name).map_err(|_| failed(Errno::EINVAL.into()))?;
                let mut gone = |inode| {
                    self.nodes.remove(&inode);
                };
                let mut removed = remove(parent.fd.as_fd(), &name, &mut gone);
                if removed.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EACCES)) {
                    loosen(parent).map_err(|errno| failed(errno.into()))?;
                    removed = remove(parent.fd.as_fd(), &name, &mut gone);
                }
                removed.map_err(failed)
            }
            other => {
                if other == SFlag::S_IFLNK {
                    self.open.clear();
                }
                let unlinked = self.made(parent, || unlinkat(&parent.fd, name, UnlinkatFlags::NoRemoveDir));
                unlinked.map_err(|errno| failed(errno.into()))
            }
        }
    }

    /// Remembers that this layer has put something there.
    pub(super) fn added(&mut self, parent: &Directory, name: &[u8]) -> Result<()> {
        if let Some(added) = &mut self.added
            && added.insert(self.hasher.hash_one((parent.inode, name)))
        {
            // With the room that a hash table keeps free.
            self.remember(16)?;
        }
        Ok(())
    }

    /// Whether this layer has put something there.
    pub(super) fn has_added(&self, inode: u64, name: &[u8]) -> bool {
        self.added.as_ref().is_none_or(|added| added.contains(&self.hasher.hash_one((inode, name))))
    }
}

/// Lets an ordinary user into a directory of its own. The old mode comes back at the end.
fn loosen(directory: &Directory) -> nix::Result<()> {
    let stat = fstat(&directory.fd)?;
    if stat.st_mode & 0o700 == 0o700 {
        return Err(Errno::EACCES);
    }
    set_mode(directory.fd.as_fd(), (stat.st_mode & 0o7777) | 0o700)
}
