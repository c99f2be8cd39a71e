//! Removal of trees.
//!
//! A workload can make trees that are deeper than any path, than the stack of a
//! recursion, or than the descriptors of a process. So what lies deep is moved up to
//! the tree's top and removed from there: a bounded number of descriptors, and no
//! path anywhere.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::renameat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::directory::{CHANGE, Level, open};
use crate::error::{Error, Result};
use crate::sys::directory::Entries;

/// Directories that are open at once.
const OPEN: usize = 32;

/// Removes `name` in the directory `parent` and everything below it. Nothing there is
/// fine. Nothing that is mounted there is entered: that's an error.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let failed = |error| Error::io("remove", &super::shown(name.as_bytes()), error);
    let name = CString::new(name.as_bytes()).map_err(|_| failed(Errno::EINVAL.into()))?;
    remove(parent, &name, &mut |_| {}).map_err(failed)
}

/// The same; `gone` is told the inode number of each directory. What vanishes meanwhile,
/// since somebody else removes the same tree, is as good as removed.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &CStr, gone: &mut dyn FnMut(u64)) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut moved = 0u64;
    let Some(top) = still_there(Level::open(parent, name, CHANGE))? else { return Ok(()) };
    let mut levels = vec![(top, name.to_owned())];
    loop {
        let depth = levels.len();
        let Some((level, _)) = levels.last_mut() else { return Ok(()) };
        match still_there(level.next())?.flatten() {
            Some((child, _)) => match unlinkat(&level.fd, child.as_c_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(Errno::EISDIR) if depth < OPEN => {
                    if let Some(below) = still_there(Level::open(level.fd.as_fd(), &child, CHANGE))? {
                        levels.push((below, child));
                    }
                }
                Err(Errno::EISDIR) => {
                    // To move a directory one has to be able to write to it.
                    still_there(open(level.fd.as_fd(), &child, CHANGE))?;
                    still_there(move_up(&levels, &child, &mut moved))?;
                }
                Err(errno) => return Err(errno.into()),
            },
            None => {
                let (mut level, name) = levels.pop().expect("looked at");
                let above = levels.last().map_or(parent, |(level, _)| level.fd.as_fd());
                match unlinkat(above, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                    Ok(()) | Err(Errno::ENOENT) => gone(level.stat.st_ino),
                    // What was moved here after the place where we read; or a file system
                    // whose lists shift when something is removed.
                    Err(Errno::ENOTEMPTY) => {
                        level.entries = Entries::default();
                        nix::unistd::lseek(&level.fd, 0, nix::unistd::Whence::SeekSet)?;
                        levels.push((level, name));
                    }
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
    }
}

fn still_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Moves a directory of the deepest level to the first one, under a name that's free there.
fn move_up(levels: &[(Level, CString)], child: &CStr, moved: &mut u64) -> io::Result<()> {
    let (top, deepest) = (&levels[0].0, &levels[levels.len() - 1].0);
    loop {
        *moved += 1;
        let name = CString::new(format!(".cofferdam-deep-{moved}")).expect("no NUL");
        match renameat(&deepest.fd, child, &top.fd, name.as_c_str()) {
            // A file or a full directory has the name. An empty one is replaced, as good.
            Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
            result => return Ok(result?),
        }
    }
}
