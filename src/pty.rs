//! The host's side of a command's terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{Error, Result};
use crate::sys;

/// The host's side of a command's terminal: what is written here the command reads as if
/// it were typed, and what it prints is read here, with the terminal's line ends (`\r\n`).
///
/// Reading ends, with 0 bytes, when nobody has the command's side open any more. A byte
/// of 3 is Ctrl-C, which the terminal makes a SIGINT of, and 4 at the start of a line is
/// the end of input. Dropping the last one hangs up: the session gets SIGHUP.
#[derive(Debug)]
pub struct Pty {
    master: File,
}

impl Pty {
    pub(crate) fn new(master: OwnedFd) -> Pty {
        Pty { master: master.into() }
    }

    /// Tells the terminal its size; programs in the foreground get SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        sys::terminal::resize(self.master.as_fd(), rows, columns).map_err(|e| Error::io("resize", "a terminal", e))
    }

    /// Another handle for the same side, to read and write in two threads.
    pub fn try_clone(&self) -> Result<Pty> {
        self.master.try_clone().map(|master| Pty { master }).map_err(|e| Error::io("copy", "a terminal", e))
    }
}

impl Read for Pty {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.master.read(buffer) {
            // How Linux tells the master that the last slave has been closed.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
            other => other,
        }
    }
}

impl Write for Pty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.master.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }
}
