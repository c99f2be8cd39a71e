//! getdents64(2): the entries of a directory, one buffer at a time.
//!
//! readdir(3) as nix has it starts over when its iterator is dropped, so a walk
//! can't leave a directory and come back; and a list of all names of a directory
//! has no bound.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What an entry is, as far as the directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Directory,
    Other,
    /// This file system doesn't say: ask fstatat(2).
    Unknown,
}

/// A place in a directory. It holds no descriptor: that's given to each call.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    buffer: Vec<u8>,
    at: usize,
    end: usize,
}

const SIZE: usize = 16 << 10;

impl Entries {
    /// The next entry but `.` and `..`.
    pub(crate) fn next(&mut self, directory: BorrowedFd<'_>) -> io::Result<Option<(&CStr, EntryKind)>> {
        loop {
            if self.at == self.end {
                self.buffer.resize(SIZE, 0);
                // SAFETY: the address and the length of our own buffer.
                let count = unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), self.buffer.as_mut_ptr(), SIZE) };
                (self.at, self.end) = (0, usize::try_from(count).map_err(|_| io::Error::last_os_error())?);
                if self.end == 0 {
                    self.buffer = Vec::new();
                    return Ok(None);
                }
            }
            // d_ino, d_off: 8 bytes each; d_reclen: 2; d_type: 1; d_name.
            let record = &self.buffer[self.at..self.end];
            let length = usize::from(u16::from_ne_bytes([record[16], record[17]]));
            let kind = match record[18] {
                libc::DT_DIR => EntryKind::Directory,
                libc::DT_UNKNOWN => EntryKind::Unknown,
                _ => EntryKind::Other,
            };
            let start = self.at + 19;
            self.at += length;
            let name = CStr::from_bytes_until_nul(&self.buffer[start..self.at]);
            if !name.is_ok_and(|name| matches!(name.to_bytes(), b"." | b"..")) {
                // Once more, because a name that is borrowed and maybe returned can't be let go.
                let name = CStr::from_bytes_until_nul(&self.buffer[start..self.at]);
                return name.map(|name| Some((name, kind))).map_err(|_| io::Error::from_raw_os_error(libc::EIO));
            }
        }
    }
}
