//! Descriptors that a tokio runtime watches. `AsyncFd` leaves it to its caller that a
//! descriptor stays the same; for what is registered here that holds by its type, and
//! nobody takes it out or puts another in its place.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use nix::sys::epoll::{Epoll, EpollCreateFlags};

/// An epoll(7) set, as the runtime wants it.
#[derive(Debug)]
pub(crate) struct Set(pub(crate) Epoll);

impl AsRawFd for Set {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// An empty epoll set that the runtime watches.
pub(crate) fn epoll() -> io::Result<AsyncFd<Set>> {
    let set = Set(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
    // SAFETY: a `Set` owns its descriptor, and closes it when it's dropped with the `AsyncFd`.
    unsafe { AsyncFd::register_with_interest(set, Interest::READABLE) }.map_err(Into::into)
}

/// A terminal that the runtime watches.
pub(crate) fn terminal(master: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` owns its descriptor, as above.
    unsafe { AsyncFd::register(master) }.map_err(Into::into)
}
