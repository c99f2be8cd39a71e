//! Window sizes of terminals (ioctl_tty(2)), which nix has no function for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets rows and columns; the foreground process group gets SIGWINCH if they change.
pub(crate) fn resize(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the address of a live local of the type that this request reads.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
