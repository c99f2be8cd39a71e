//! Whiteouts and opaque directories, once all else is there.
//!
//! They hide lower layers and never their own one. In an overlay layer they become
//! marks for the kernel, but never where nothing below can exist: overlayfs lists a
//! whiteout by name in a directory that it doesn't merge, and then can't look at it.

use std::ffi::CString;
use std::io::BufRead;
use std::os::fd::AsFd;
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use super::apply::{Layer, Marker, failed};
use super::directory::{CHANGE, DEEPEST, Level, is_directory, look};
use super::name::{components, split};
use super::tree::{Directory, Node, Origin};
use super::{Form, Owners, Unknown, shown};
use crate::error::{Error, Result};
use crate::sys::xattr;
use crate::tar::Time;

impl<R: BufRead> Layer<'_, R> {
    pub(super) fn hide(&mut self) -> Result<()> {
        let mut markers = std::mem::take(&mut self.markers);
        // What's high first: below a directory that is gone nothing has to be hidden.
        markers.sort_by(|a, b| {
            let depth = |marker: &Marker| components(marker.path()).count();
            depth(a).cmp(&depth(b)).then_with(|| a.path().cmp(b.path()))
        });
        markers.dedup();
        // A hundred thousand whiteouts in one directory ask one thing.
        let mut asked: Option<&[u8]> = None;
        for marker in &markers {
            match (self.options.form, marker) {
                (Form::Flat, _) if self.tree.is_fresh() => {}
                (Form::Flat, Marker::Whiteout(path)) => self.remove_lower(path)?,
                (Form::Flat, Marker::Opaque(path)) => {
                    if let Some(directory) = self.tree.find(path)? {
                        self.prune(path, &directory)?;
                    }
                }
                (Form::Overlay { user_xattr }, Marker::Whiteout(path)) => {
                    if self.whiteout(path, user_xattr)? && asked.replace(split(path).0) != Some(split(path).0) {
                        self.question(path, Unknown::Whiteout)?;
                    }
                }
                (Form::Overlay { user_xattr }, Marker::Opaque(path)) => {
                    let found = self.tree.walk(path, Some(Origin::Marker))?;
                    if let Some((directory, false)) = found {
                        self.opaque(path, &directory, user_xattr)?;
                    }
                }
            }
            self.applied.opaque_root |= *marker == Marker::Opaque(Vec::new());
        }
        Ok(())
    }

    /// Hides a name of lower layers; whether by a whiteout.
    fn whiteout(&mut self, path: &[u8], user_xattr: bool) -> Result<bool> {
        let (above, name) = split(path);
        // Nothing: a parent is hidden, or a file of this layer. Opaque: what's below it is hidden.
        let Some((parent, false)) = self.tree.walk(above, Some(Origin::Marker))? else { return Ok(false) };
        if let Some(stat) = look(parent.fd.as_fd(), name).map_err(|errno| failed(path, errno))? {
            if !is_directory(&stat) {
                // It hides what's below it by itself.
                return Ok(false);
            }
            if self.tree.nodes.get(&stat.st_ino).is_none_or(|node| node.origin != Origin::Marker) {
                // The directory is new, and begins empty.
                let found = self.tree.walk(path, None)?;
                found.map_or(Ok(()), |(directory, _)| self.opaque(path, &directory, user_xattr))?;
                return Ok(false);
            }
            // Nothing but whiteouts in it, and those are moot.
            self.tree.clear(&parent, name, Some(&stat))?;
        }
        self.tree.count()?;
        // Anybody may make this one device, since Linux 5.8.
        mknodat(&parent.fd, name, SFlag::S_IFCHR, Mode::empty(), 0).map_err(|errno| failed(path, errno))?;
        Ok(true)
    }

    fn opaque(&mut self, path: &[u8], directory: &Directory, user_xattr: bool) -> Result<()> {
        let failed = |error: std::io::Error| Error::io("make opaque the directory", &shown(path), error);
        let (fd, stat) = super::directory::open(directory.fd.as_fd(), c".", CHANGE).map_err(failed)?;
        let name = if user_xattr { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
        xattr::set(fd.as_fd(), name, b"y").map_err(failed)?;
        // The root's own attribute is ignored by the kernel; the caller cuts the stack.
        if let Some(node) = self.tree.nodes.get_mut(&stat.st_ino) {
            node.opaque = true;
            if node.origin == Origin::Marker {
                node.origin = Origin::Implied;
            }
        }
        Ok(())
    }

    /// Removes what lower layers have under a name. What is this layer's stays.
    fn remove_lower(&mut self, path: &[u8]) -> Result<()> {
        let (above, name) = split(path);
        let Some(parent) = self.tree.find(above)? else { return Ok(()) };
        let Some(stat) = look(parent.fd.as_fd(), name).map_err(|errno| failed(path, errno))? else { return Ok(()) };
        if !is_directory(&stat) {
            return if self.tree.has_added(parent.inode, name) { Ok(()) } else { self.tree.clear(&parent, name, Some(&stat)) };
        }
        // By descriptor, not by `find`: a link isn't followed.
        let c_name = CString::new(name).map_err(|_| failed(path, Errno::EINVAL))?;
        let opened = super::directory::open(parent.fd.as_fd(), &c_name, CHANGE);
        let (fd, stat) = opened.map_err(|error| Error::io("open", &shown(path), error))?;
        let directory = Rc::new(Directory { fd, inode: stat.st_ino });
        self.prune(path, &directory)?;
        self.remove_or_renew(&parent, &directory, name).map_err(|errno| failed(path, errno))
    }

    /// Removes everything in a directory that isn't this layer's.
    fn prune(&mut self, path: &[u8], directory: &Directory) -> Result<()> {
        self.prune_below(directory).map_err(|error| Error::io("hide what's in", &shown(path), error))
    }

    fn prune_below(&mut self, directory: &Directory) -> std::io::Result<()> {
        self.tree.forget_open();
        let top = Level::open(directory.fd.as_fd(), c".", CHANGE)?;
        self.tree.remember_before(&top.stat)?;
        let mut levels = vec![(top, CString::default())];
        while let Some((level, _)) = levels.last_mut() {
            match level.next()? {
                Some((name, true)) => {
                    let below = Level::open(level.fd.as_fd(), &name, CHANGE)?;
                    levels.push((below, name));
                    // Layers are never so deep; what else was here may be.
                    if levels.len() > DEEPEST {
                        return Err(Errno::ENAMETOOLONG.into());
                    }
                }
                Some((name, false)) => {
                    if !self.tree.has_added(level.stat.st_ino, name.to_bytes()) {
                        unlinkat(&level.fd, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
                    }
                }
                None => {
                    let (level, name) = levels.pop().expect("looked at");
                    if let Some((above, _)) = levels.last() {
                        let inode = level.stat.st_ino;
                        let above = Directory { fd: above.fd.try_clone()?, inode: above.stat.st_ino };
                        let directory = Directory { fd: level.fd, inode };
                        self.remove_or_renew(&above, &directory, name.to_bytes())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A directory of lower layers goes, unless something of this layer is in it: then
    /// it's a new one, on the way to that.
    fn remove_or_renew(&mut self, parent: &Directory, directory: &Directory, name: &[u8]) -> nix::Result<()> {
        let own = self.tree.nodes.get(&directory.inode).is_some_and(|node| node.origin != Origin::Before);
        if own {
            return Ok(());
        }
        self.tree.forget_open();
        match self.tree.made(parent, || unlinkat(&parent.fd, name, UnlinkatFlags::RemoveDir)) {
            Ok(()) => {
                self.tree.nodes.remove(&directory.inode);
                Ok(())
            }
            Err(Errno::ENOTEMPTY) => {
                if self.options.owners == Owners::Real {
                    fchown(&directory.fd, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)))?;
                }
                self.tree.owners_later.remove(&directory.inode);
                let node = Node { mode: 0o755, mtime: Time::default(), origin: Origin::Implied, opaque: false };
                self.tree.nodes.insert(directory.inode, node);
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }
}
