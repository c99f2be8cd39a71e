//! Steps that make directories and files in a root that may be hostile.

use super::{Context, text};
use crate::arch::nr;
use crate::sys::*;
use crate::wire::{Kind, Step, op, slot};

impl Context {
    /// See [`op::MAKE_PATH`]. Resolution stays inside the directory whatever
    /// links the image holds; a component that's missing is made in the
    /// directory that the part before it led to.
    pub(super) fn make_path(&self, step: &Step, a: [usize; 6]) -> Result<usize> {
        const DIRECTORY: u32 = 0o040000;
        let file = match step.kinds[2] {
            Kind::Slot => stat(a[2] as i32, c"".as_ptr().cast())?.0 & 0o170000 != DIRECTORY,
            _ => a[2] == 1,
        };
        make_path(a[0] as i32, a[1] as *mut u8, file, staying(a[3]), a[3] & 0o7777, a[4], a[5]).map(|fd| fd as usize)
    }

    /// See [`op::FILE`].
    pub(super) fn file(&self, a: [usize; 6], fill: impl Fn(usize) -> Result<usize>) -> Result<usize> {
        let path = a[0] as *mut u8;
        let length = text(path).len();
        let mut cut = length;
        // SAFETY: the path lies in our private mapping and ends at `length`.
        while cut > 0 && unsafe { path.add(cut - 1).read() } != b'/' {
            cut -= 1;
        }
        let root = self.slots[slot::ROOT as usize];
        let parent = if cut == 0 {
            root
        } else {
            // SAFETY: as above; the byte is a slash and is put back.
            unsafe { path.add(cut - 1).write(0) };
            let parent = make_path(root, path, false, staying(a[3]), 0o755, a[4], a[5]);
            // SAFETY: as above.
            unsafe { path.add(cut - 1).write(b'/') };
            parent?
        };
        let made = write_file(parent, path as usize + cut, a, fill);
        if parent != root {
            close(parent);
        }
        made
    }

    /// Writes contents of the plan's to a file. Of a large plan not by way of our memory:
    /// what we have had there counts as the command's (execve(2) keeps the largest
    /// resident set of the process).
    pub(super) fn contents(&self, fd: usize, at: usize, length: usize) -> Result<usize> {
        const LARGE: usize = 1 << 20;
        let (start, size) = (self.mapping.at as usize, self.mapping.size);
        let (mut done, mut offset) = (0, at - start);
        while done < length {
            let moved = if size > LARGE {
                let plan = self.slots[slot::PLAN as usize] as usize;
                call(nr::SENDFILE, [fd, plan, &raw mut offset as usize, length - done, 0, 0])
            } else {
                call(nr::WRITE, [fd, at + done, length - done, 0, 0, 0])
            };
            match moved {
                Ok(0) => return Err(ENOSPC),
                Ok(n) => done += n,
                Err(EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(0)
    }
}

/// What [`op::STAY`] in a mode means to openat2(2).
pub(super) fn staying(mode: usize) -> u64 {
    const RESOLVE_NO_XDEV: u64 = 1;
    if mode & op::STAY as usize != 0 { RESOLVE_NO_XDEV } else { 0 }
}

/// Opens `path` as if `root` were the root directory; `resolve` are further RESOLVE_
/// flags of openat2(2).
pub(super) fn open_in(root: i32, path: *const u8, flags: usize, resolve: u64) -> Result<i32> {
    const RESOLVE_NO_MAGICLINKS: u64 = 2;
    const RESOLVE_IN_ROOT: u64 = 0x10;
    let how = [(flags | O_PATH | O_CLOEXEC) as u64, 0, resolve | RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS];
    call(nr::OPENAT2, [root as usize, path as usize, how.as_ptr() as usize, size_of_val(&how), 0, 0]).map(|fd| fd as i32)
}

pub(super) fn make_path(root: i32, path: *mut u8, file: bool, resolve: u64, mode: usize, uid: usize, gid: usize) -> Result<i32> {
    let last_flags = if file { 0 } else { O_DIRECTORY };
    match open_in(root, path, last_flags, resolve) {
        Err(ENOENT) => {}
        other => return other,
    }
    let length = text(path).len();
    let mut parent = open_in(root, c"/".as_ptr().cast(), O_DIRECTORY, resolve)?;
    let mut begin = 0;
    while begin < length {
        let mut end = begin;
        // SAFETY: `end` stays below the string's length.
        while end < length && unsafe { path.add(end).read() } != b'/' {
            end += 1;
        }
        if end > begin {
            let last = end == length;
            // SAFETY: the byte at `end` is a slash or the final NUL; it's put back.
            unsafe { path.add(end).write(0) };
            let name = path as usize + begin;
            let as_file = file && last;
            let next = match open_in(root, path, if as_file { 0 } else { O_DIRECTORY }, resolve) {
                Err(ENOENT) => make_one(parent, name, as_file, mode, uid, gid),
                other => other,
            };
            if !last {
                // SAFETY: as above.
                unsafe { path.add(end).write(b'/') };
            }
            close(parent);
            parent = next?;
        }
        begin = end + 1;
    }
    Ok(parent)
}

/// Makes one directory, or one empty file, and opens it.
pub(super) fn make_one(parent: i32, name: usize, file: bool, mode: usize, uid: usize, gid: usize) -> Result<i32> {
    let parent = parent as usize;
    if file {
        let flags = O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY | O_CLOEXEC;
        close(call(nr::OPENAT, [parent, name, flags, 0o644, 0, 0])? as i32);
    } else {
        call(nr::MKDIRAT, [parent, name, mode, 0, 0, 0])?;
    }
    if uid != 0 || gid != 0 {
        call(nr::FCHOWNAT, [parent, name, uid, gid, AT_SYMLINK_NOFOLLOW, 0])?;
    }
    call(nr::OPENAT, [parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0, 0, 0]).map(|fd| fd as i32)
}

/// Replaces `name` in `parent`: whatever stands there, a link or a FIFO among
/// them, is removed and not opened.
pub(super) fn write_file(parent: i32, name: usize, a: [usize; 6], fill: impl Fn(usize) -> Result<usize>) -> Result<usize> {
    let parent = parent as usize;
    let create = || call(nr::OPENAT, [parent, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY | O_CLOEXEC, 0o600, 0, 0]);
    let fd = match create() {
        Err(EEXIST) => {
            call(nr::UNLINKAT, [parent, name, 0, 0, 0, 0])?;
            create()?
        }
        other => other?,
    };
    let finish = || {
        fill(fd)?;
        if a[4] != 0 || a[5] != 0 {
            call(nr::FCHOWN, [fd, a[4], a[5], 0, 0, 0])?;
        }
        call(nr::FCHMOD, [fd, a[3] & 0o7777, 0, 0, 0, 0])
    };
    let result = finish();
    close(fd as i32);
    result
}

/// The whole of a regular file, whatever its offset is.
pub fn copy_all(to: usize, from: usize) -> Result<usize> {
    const MOST: usize = 1 << 30;
    let mut offset = 0u64;
    loop {
        match call(nr::SENDFILE, [to, from, &raw mut offset as usize, MOST, 0, 0]) {
            Ok(0) => return Ok(0),
            Ok(_) | Err(EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

pub(super) fn like(from: i32, to: i32, owner: bool) -> Result<usize> {
    let (mode, uid, gid) = stat(from, c"".as_ptr().cast())?;
    if owner {
        call(nr::FCHOWN, [to as usize, uid as usize, gid as usize, 0, 0, 0])?;
    }
    // fchmod after fchown, which clears setid bits; `to` is a real descriptor.
    call(nr::FCHMOD, [to as usize, (mode & 0o7777) as usize, 0, 0, 0, 0])
}
