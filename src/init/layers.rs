//! The layers of an image copied on top of each other, where overlayfs can't be had.
//!
//! Names are taken one at a time, in open directories, and no link is followed: what
//! the layers hold is an image's. The copy lies in the sandbox's own tmpfs, so its size
//! has the writable layer's bound, and it's gone with the last process. Names of one
//! file become files of their own; extended attributes are left out.

use crate::arch::nr;
use crate::interpret::copy_all;
use crate::sys::*;

/// Directories below each other. Each costs two descriptors and some stack.
pub const DEEPEST: usize = 260;
pub const ENAMETOOLONG: i32 = 36;
const EPERM: i32 = 1;
const DIRECTORY: usize = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

/// Copies `count` layers, called by their numbers in the current directory with the
/// topmost as 0, or the current directory itself if that's none, into `to`.
pub fn copy(count: usize, to: i32) -> Result<()> {
    if count == 0 {
        let layer = open(AT_FDCWD, c".".as_ptr().cast(), DIRECTORY)?;
        return tree(layer, to, 0);
    }
    for number in (0..count).rev() {
        let mut name = [0u8; 8];
        let mut at = name.len() - 1;
        let mut rest = number;
        while at == name.len() - 1 || rest > 0 {
            at -= 1;
            name[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        // The store's own link.
        let layer = open(AT_FDCWD, name[at..].as_ptr(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)?;
        let copied = tree(layer, to, 0);
        close(layer);
        copied?;
    }
    Ok(())
}

/// What is in a directory, but not its own attributes.
fn tree(from: i32, to: i32, depth: usize) -> Result<()> {
    if depth == DEEPEST {
        return Err(ENAMETOOLONG);
    }
    each(from, |name| {
        let about = About::of(from, name)?;
        match about.kind() {
            About::DIRECTORY => directory(from, to, name, &about, depth),
            About::CHARACTERS if about.device == (0, 0) => remove(to, name, depth),
            _ => other(from, to, name, &about, depth),
        }
    })
}

fn directory(from: i32, to: i32, name: *const u8, about: &About, depth: usize) -> Result<()> {
    let make = || call(nr::MKDIRAT, [to as usize, name as usize, 0o700, 0, 0, 0]);
    let made = make();
    let mut there = made == Err(EEXIST);
    if !there {
        made?;
    } else if About::of(to, name)?.kind() != About::DIRECTORY {
        remove(to, name, depth)?;
        make()?;
        there = false;
    }
    let from = open(from, name, DIRECTORY)?;
    let copied = open(to, name, DIRECTORY).and_then(|to| {
        let filled = if there && is_opaque(from) { each(to, |name| remove(to, name, depth + 1)) } else { Ok(()) }
            .and_then(|()| tree(from, to, depth + 1))
            .and_then(|()| about.give(to));
        close(to);
        filled
    });
    close(from);
    copied
}

/// Everything but directories and whiteouts. Not a part of its callers, whose frames are
/// on the stack once a level.
#[inline(never)]
fn other(from: i32, to: i32, name: *const u8, about: &About, depth: usize) -> Result<()> {
    remove(to, name, depth)?;
    let at = [to as usize, name as usize];
    match about.kind() {
        About::FILE => {
            let from = open(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)?;
            let copied = call(nr::OPENAT, [at[0], at[1], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600, 0, 0]).and_then(|to| {
                let copied = copy_all(to, from as usize).and_then(|_| about.give(to as i32));
                close(to as i32);
                copied
            });
            close(from);
            copied
        }
        About::LINK => {
            let mut target = [0u8; 4097];
            let room = target.len() - 1;
            call(nr::READLINKAT, [from as usize, name as usize, target.as_mut_ptr() as usize, room, 0, 0])?;
            call(nr::SYMLINKAT, [target.as_ptr() as usize, at[0], at[1], 0, 0, 0])?;
            own(call(nr::FCHOWNAT, [at[0], at[1], about.uid, about.gid, AT_SYMLINK_NOFOLLOW, 0]))?;
            call(nr::UTIMENSAT, [at[0], at[1], about.times().as_ptr() as usize, AT_SYMLINK_NOFOLLOW, 0, 0]).map(drop)
        }
        About::FIFO => {
            call(nr::MKNODAT, [at[0], at[1], (About::FIFO | about.mode & 0o777) as usize, 0, 0, 0])?;
            own(call(nr::FCHOWNAT, [at[0], at[1], about.uid, about.gid, AT_SYMLINK_NOFOLLOW, 0]))
        }
        // Devices could not be used, and a socket has nobody behind it.
        _ => Ok(()),
    }
}

/// Removes a name with all below it; none is as good.
fn remove(parent: i32, name: *const u8, depth: usize) -> Result<()> {
    if depth > DEEPEST {
        return Err(ENAMETOOLONG);
    }
    let unlink = |flags| call(nr::UNLINKAT, [parent as usize, name as usize, flags, 0, 0, 0]).map(drop);
    match About::of(parent, name) {
        Err(ENOENT) => Ok(()),
        Err(errno) => Err(errno),
        Ok(about) if about.kind() != About::DIRECTORY => unlink(0),
        Ok(_) => {
            let directory = open(parent, name, DIRECTORY)?;
            let emptied = each(directory, |name| remove(directory, name, depth + 1));
            close(directory);
            emptied.and_then(|()| unlink(AT_REMOVEDIR))
        }
    }
}

/// Hides what lower layers have in it, as either of the two ways to mount would see it.
fn is_opaque(directory: i32) -> bool {
    [c"trusted.overlay.opaque", c"user.overlay.opaque"].iter().any(|name| {
        let mut value = 0u8;
        call(nr::FGETXATTR, [directory as usize, name.as_ptr() as usize, &raw mut value as usize, 1, 0, 0]) == Ok(1) && value == b'y'
    })
}

fn open(directory: i32, name: *const u8, flags: usize) -> Result<i32> {
    call(nr::OPENAT, [directory as usize, name as usize, flags, 0, 0, 0]).map(|fd| fd as i32)
}

/// Ids that don't exist here are those of nobody we know: what we made stays ours.
fn own(result: Result<usize>) -> Result<()> {
    match result {
        Err(EINVAL | EPERM) => Ok(()),
        other => other.map(drop),
    }
}

/// See [`each_name`]. A small buffer: trees are deep.
fn each(directory: i32, mut action: impl FnMut(*const u8) -> Result<()>) -> Result<()> {
    each_name(directory, &mut [0u64; 128], |name| action(name.as_ptr()))
}

/// What a file is.
pub struct About {
    pub mode: u32,
    pub inode: u64,
    uid: usize,
    gid: usize,
    mtime: [u64; 2],
    device: (u32, u32),
}

impl About {
    const FIFO: u32 = 0o010000;
    const CHARACTERS: u32 = 0o020000;
    pub const DIRECTORY: u32 = 0o040000;
    const FILE: u32 = 0o100000;
    pub const LINK: u32 = 0o120000;

    pub fn of(directory: i32, name: *const u8) -> Result<About> {
        const STATX_BASIC_STATS: usize = 0x7ff;
        let mut s = [0u32; 64];
        call(nr::STATX, [directory as usize, name as usize, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, s.as_mut_ptr() as usize, 0])?;
        // struct statx in words: uid 5, gid 6, mode 7 (u16), inode from 8, mtime from 28, device 32 and 33
        let seconds = u64::from(s[28]) | u64::from(s[29]) << 32;
        let inode = u64::from(s[8]) | u64::from(s[9]) << 32;
        Ok(About {
            mode: s[7] & 0xffff,
            inode,
            uid: s[5] as usize,
            gid: s[6] as usize,
            mtime: [seconds, s[30].into()],
            device: (s[32], s[33]),
        })
    }

    pub fn kind(&self) -> u32 {
        self.mode & 0o170000
    }

    fn times(&self) -> [u64; 4] {
        const UTIME_OMIT: u64 = 0x3fff_fffe;
        [0, UTIME_OMIT, self.mtime[0], self.mtime[1]]
    }

    /// Owner, mode and time, in this order: chown(2) clears bits of the mode.
    fn give(&self, to: i32) -> Result<()> {
        own(call(nr::FCHOWN, [to as usize, self.uid, self.gid, 0, 0, 0]))?;
        call(nr::FCHMOD, [to as usize, (self.mode & 0o7777) as usize, 0, 0, 0, 0])?;
        call(nr::UTIMENSAT, [to as usize, 0, self.times().as_ptr() as usize, 0, 0, 0]).map(drop)
    }
}
