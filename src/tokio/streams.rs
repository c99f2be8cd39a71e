//! A command's pipes and its terminal, for tasks.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::tokio::io::unix::AsyncFd;
use ::tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ::tokio::net::unix::pipe::{Receiver, Sender};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::error::{Error, Result};
use crate::sys;

/// What a command prints, if it's piped. Reading ends, with 0 bytes, when nobody has the
/// other side open any more.
#[derive(Debug)]
pub struct PipeReader(Receiver);

impl PipeReader {
    pub(super) fn new(pipe: io::PipeReader) -> Result<PipeReader> {
        Receiver::from_owned_fd(pipe.into()).map(PipeReader).map_err(|e| Error::io("watch", "a pipe", e))
    }

    /// The descriptor, for another's use; reads of it don't wait.
    pub(super) fn into_fd(self) -> Result<OwnedFd> {
        self.0.into_nonblocking_fd().map_err(|e| Error::io("take back", "a pipe", e))
    }
}

impl AsyncRead for PipeReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsFd for PipeReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A command's standard input, if it's piped. Dropping it is the end of input.
#[derive(Debug)]
pub struct PipeWriter(Sender);

impl PipeWriter {
    pub(super) fn new(pipe: io::PipeWriter) -> Result<PipeWriter> {
        Sender::from_owned_fd(pipe.into()).map(PipeWriter).map_err(|e| Error::io("watch", "a pipe", e))
    }
}

impl AsyncWrite for PipeWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: the end of input is the drop.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsFd for PipeWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The host's side of a command's terminal: what [`cofferdam::Pty`](crate::Pty) is for
/// threads. `tokio::io::split` makes two halves of it, to read and write in two tasks.
#[derive(Debug)]
pub struct Pty(AsyncFd<File>);

impl Pty {
    pub(super) fn new(master: OwnedFd) -> Result<Pty> {
        let failed = |e: io::Error| Error::io("watch", "a terminal", e);
        let flags = OFlag::from_bits_retain(fcntl(&master, FcntlArg::F_GETFL).map_err(|e| failed(e.into()))?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(|e| failed(e.into()))?;
        sys::reactor::terminal(master.into()).map(Pty).map_err(failed)
    }

    /// Tells the terminal its size; programs in the foreground get SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        sys::terminal::resize(self.as_fd(), rows, columns).map_err(|e| Error::io("resize", "a terminal", e))
    }
}

impl AsyncRead for Pty {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            match ready.try_io(|master| master.get_ref().read(unfilled)) {
                Ok(Ok(n)) => {
                    buffer.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // How Linux tells the master that the last slave has been closed.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_not_yet) => {}
            }
        }
    }
}

impl AsyncWrite for Pty {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(written) = ready.try_io(|master| master.get_ref().write(bytes)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: dropping the terminal hangs up.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
