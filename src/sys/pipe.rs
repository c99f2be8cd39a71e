//! How much a pipe holds (FIONREAD, pipe(7)), which nix has no function for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that have been written to a pipe and not been read; either end may be asked.
pub(crate) fn unread(end: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the address of a live local of the type that this request writes.
    match unsafe { libc::ioctl(end.as_raw_fd(), libc::FIONREAD, &raw mut bytes) } {
        0 => Ok(usize::try_from(bytes).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}
