//! What an ordinary user's own user namespace may do to files of subordinate ids, and the
//! user may not: see `Files` in `../plan/message.rs`.
//!
//! A process of its own, because all of it takes the time that a disk takes. It lives as
//! long as its socket, with no other descriptor of init's.

use crate::arch::nr;
use crate::layers::{About, DEEPEST, ENAMETOOLONG};
use crate::message::Files;
use crate::sys::*;

const PATH: usize = 4096;
const SET_ID: u32 = 0o6000;
const EISDIR: i32 = 21;

pub fn serve(socket: i32, init: i32) -> ! {
    end_with_parent(init);
    close_all_but(&mut [socket]);
    let mut question = [0u8; Files::QUESTION];
    let mut answer = [0u8; Files::ANSWER];
    loop {
        let Ok(received) = receive(socket, &mut question, true) else { exit(1) };
        if received.length == 0 {
            exit(0);
        }
        let done = if received.truncated { Err(EMFILE) } else { act(&question[..received.length], received.fds(), &mut answer[4..]) };
        received.close();
        let (errno, length, opened) = match done {
            Ok((length, opened)) => (0, length, opened),
            Err(errno) => (errno, 0, -1),
        };
        answer[..4].copy_from_slice(&errno.to_le_bytes());
        let fds = if opened < 0 { &[][..] } else { &[opened][..] };
        if send(socket, &answer[..4 + length], fds).is_err() {
            exit(0);
        }
        close(opened);
    }
}

/// How many bytes of the answer there are, and a descriptor or -1.
fn act(question: &[u8], fds: &[i32], answer: &mut [u8]) -> Result<(usize, i32)> {
    let word = |at: usize| question.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let (Some(kind), Some(flags), Some(directory)) = (word(0), word(4), fds.first()) else { return Err(EPROTO) };
    let (path, rest) = first_name(&question[8..])?;
    match kind {
        Files::OPEN => Ok((0, open_below(*directory, path, flags as usize)?)),
        Files::ATTRIBUTE => {
            let file = open_below(*directory, path, O_RDONLY | O_NONBLOCK)?;
            let (at, room) = (answer.as_mut_ptr() as usize, answer.len());
            let length = match first_name(rest) {
                Ok((name, _)) => call(nr::FGETXATTR, [file as usize, name.as_ptr() as usize, at, room, 0, 0]),
                Err(_) => call(nr::FLISTXATTR, [file as usize, at, room, 0, 0, 0]),
            };
            close(file);
            Ok((length?, -1))
        }
        Files::GIVE => {
            let bytes = map_file(*fds.get(1).ok_or(EPROTO)?)?;
            // SAFETY: the mapping is private and of a sealed file, has that size, and stays
            // until it's unmapped below; any bytes are lines.
            let table = unsafe { core::slice::from_raw_parts(bytes.at.cast::<Line>(), bytes.size / Files::LINE) };
            let done = give(*directory, path, table, 0);
            unmap(bytes);
            done.map(|()| (0, -1))
        }
        Files::REMOVE => remove(*directory, path, 0).map(|()| (0, -1)),
        _ => Err(EPROTO),
    }
}

/// A name with its NUL, and what follows.
fn first_name(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0).filter(|end| *end < PATH).ok_or(EINVAL)?;
    Ok(bytes.split_at(end + 1))
}

fn open_below(directory: i32, path: &[u8], flags: usize) -> Result<i32> {
    // RESOLVE_NO_XDEV, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH: openat2(2)
    let how = [(flags | O_NOFOLLOW | O_CLOEXEC) as u64, 0, 0x01 | 0x04 | 0x08];
    let arguments = [directory as usize, path.as_ptr() as usize, how.as_ptr() as usize, size_of_val(&how), 0, 0];
    call(nr::OPENAT2, arguments).map(|fd| fd as i32)
}

/// A line of the table.
#[repr(C)]
struct Line {
    inode: u64,
    uid: u32,
    gid: u32,
}

/// Gives the file `name`, and what is below it, to its owners.
fn give(parent: i32, name: &[u8], table: &[Line], depth: usize) -> Result<()> {
    let about = About::of(parent, name.as_ptr())?;
    if about.kind() == About::DIRECTORY {
        each_below(parent, name, depth, |directory, name| give(directory, name, table, depth + 1))?;
    }
    let Ok(line) = table.binary_search_by_key(&about.inode, |line| line.inode) else { return Ok(()) };
    let Line { uid, gid, .. } = table[line];
    let at = [parent as usize, name.as_ptr() as usize];
    call(nr::FCHOWNAT, [at[0], at[1], uid as usize, gid as usize, AT_SYMLINK_NOFOLLOW, 0])?;
    // chown(2) has taken them away.
    if about.kind() != About::LINK && about.mode & SET_ID != 0 {
        call(nr::FCHMODAT, [at[0], at[1], (about.mode & 0o7777) as usize, 0, 0, 0])?;
    }
    Ok(())
}

/// Removes a name with all below it; none is as good.
fn remove(parent: i32, name: &[u8], depth: usize) -> Result<()> {
    let unlink = |flags| call(nr::UNLINKAT, [parent as usize, name.as_ptr() as usize, flags, 0, 0, 0]).map(drop);
    match unlink(0) {
        Err(ENOENT) => Ok(()),
        Err(EISDIR) => {
            each_below(parent, name, depth, |directory, name| remove(directory, name, depth + 1))?;
            unlink(AT_REMOVEDIR)
        }
        other => other,
    }
}

/// Does something with each name in a directory. A small buffer: trees are deep.
fn each_below(parent: i32, name: &[u8], depth: usize, mut action: impl FnMut(i32, &[u8]) -> Result<()>) -> Result<()> {
    if depth == DEEPEST {
        return Err(ENAMETOOLONG);
    }
    let directory = open_below(parent, name, O_RDONLY | O_DIRECTORY)?;
    let done = each_name(directory, &mut [0u64; 128], |name| action(directory, name));
    close(directory);
    done
}
