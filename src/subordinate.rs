//! Files of an ordinary user's subordinate ids.
//!
//! An image's files belong to whom the image says, and a workload's to who made them: on
//! the host these are ids that /etc/subuid gives to the user, but not the user. What that
//! may not do to them, root of init's user namespace may, where all of these ids are
//! mapped; a process there does it (init/files.rs). It's asked where the kernel has
//! refused something, so where nothing is foreign nothing is slower.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

use crate::error::{Error, Result};
use crate::launch;
use crate::layer::{NOBODY, OwnerTable};
use crate::plan::message::Files;
use crate::plan::namespaces::RANGE;
use crate::probe::{Subordinate, privileged};

/// The subordinate ids that sandboxes of this process have, if they have any.
pub(crate) fn ids() -> Result<Option<Subordinate>> {
    // What needs no init is asked first.
    if privileged() || Subordinate::of(geteuid().as_raw()).is_none() {
        return Ok(None);
    }
    Ok(launch::init()?.subordinate.clone().ok())
}

/// Whether this may be for want of rights that a user namespace has.
pub(crate) fn is_denied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) && !geteuid().is_root()
}

/// Opens a file by a path below a directory that leads through no link.
pub(crate) fn open(directory: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
    let (_, opened) = ask(Files::OPEN, flags.bits() as u32, &[path], &[directory])?;
    opened.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// An extended attribute of a file or directory.
pub(crate) fn attribute(directory: BorrowedFd<'_>, path: &[u8], name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(ask(Files::ATTRIBUTE, 0, &[path, name], &[directory])?.0)
}

/// The names of all of them, each with a NUL.
pub(crate) fn attributes(directory: BorrowedFd<'_>, path: &[u8]) -> io::Result<Vec<u8>> {
    Ok(ask(Files::ATTRIBUTE, 0, &[path], &[directory])?.0)
}

/// Removes a tree of at most 260 directories below each other.
pub(crate) fn remove(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    ask(Files::REMOVE, 0, &[name], &[directory]).map(drop)
}

/// Gives what is in a tree to whom the table says: owners as an image has them. Owners
/// that no sandbox has are nobody's, as root's sandboxes show them.
pub(crate) fn give(directory: BorrowedFd<'_>, name: &[u8], table: &OwnerTable) -> Result<()> {
    let failed = |error| Error::io("give its owners to", &String::from_utf8_lossy(name), error);
    let count = ids()?.map_or(0, |ids| ids.count);
    let known = |id: u32| if id < RANGE { id } else { NOBODY };
    let mut lines: Vec<(u64, u32, u32)> = table.iter().map(|(inode, (uid, gid))| (*inode, known(*uid), known(*gid))).collect();
    if let Some((_, uid, gid)) = lines.iter().find(|(_, uid, gid)| *uid.max(gid) > count) {
        return Err(Error::unsupported(format!(
            "cannot give a file to {uid}:{gid}: this user has only {count} subordinate ids (add a larger range to /etc/subuid and /etc/subgid)"
        )));
    }
    lines.sort_unstable();
    let mut bytes = Vec::with_capacity(lines.len() * Files::LINE);
    for (inode, uid, gid) in lines {
        bytes.extend(inode.to_ne_bytes());
        bytes.extend(uid.to_ne_bytes());
        bytes.extend(gid.to_ne_bytes());
    }
    let table = File::from(launch::sealed(c"cofferdam-owners", &bytes)?);
    ask(Files::GIVE, 0, &[name], &[directory, table.as_fd()]).map(drop).map_err(failed)
}

fn ask(kind: u32, flags: u32, names: &[&[u8]], fds: &[BorrowedFd<'_>]) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    if ids().map_err(io::Error::other)?.is_none() {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    let mut question = Files::question(kind, flags).to_vec();
    for name in names {
        question.extend_from_slice(name);
        question.push(0);
    }
    if question.len() > Files::QUESTION {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let mut answer = vec![0; if kind == Files::ATTRIBUTE { Files::ANSWER } else { 4 }];
    let init = launch::init().map_err(io::Error::other)?;
    let (length, mut fds) = init.ask_for_files(&question, fds, &mut answer)?;
    answer.truncate(length);
    let Some((errno, rest)) = answer.split_first_chunk::<4>() else { return Err(io::ErrorKind::InvalidData.into()) };
    match i32::from_le_bytes(*errno) {
        0 => Ok((rest.to_vec(), fds.pop())),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}
