//! Waiting in a task for what poll would tell a thread.
//!
//! Which descriptors matter changes as a run goes on, and one of them, init's pidfd, is the
//! same for all runs, while a runtime knows each descriptor once. So each run has an epoll
//! set of its own, and that is what the runtime watches. The set only wakes; what has
//! happened poll says, without waiting.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use ::tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::error::{Error, Result};
use crate::supervise::happened;
use crate::sys::reactor::{self, Set};

/// An epoll set that the runtime watches.
#[derive(Debug)]
pub(super) struct Watch {
    set: AsyncFd<Set>,
    /// What was asked for last.
    followed: Vec<(RawFd, PollFlags)>,
}

impl Watch {
    pub(super) fn new() -> Result<Watch> {
        let set = reactor::epoll().map_err(|e| Error::io("watch", "the sandbox", e))?;
        Ok(Watch { set, followed: Vec::new() })
    }

    /// Waits until poll has something to say about `interest`; its answers.
    pub(super) async fn ready<'a>(&mut self, interest: impl Fn() -> Vec<PollFd<'a>>) -> Result<Vec<bool>> {
        let failed = |e: io::Error| Error::io("wait for", "the sandbox", e);
        self.follow(&interest()).map_err(failed)?;
        let mut woken: Option<AsyncFdReadyGuard<'_, Set>> = None;
        loop {
            let ready = {
                let mut polled = interest();
                match poll(&mut polled, PollTimeout::ZERO) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(failed(errno.into())),
                }
                polled.iter().map(happened).collect::<Vec<bool>>()
            };
            if ready.contains(&true) {
                return Ok(ready);
            }
            // What comes between this look and the next wait leaves the set ready: it was
            // woken before the look.
            if let Some(mut woken) = woken.take() {
                woken.clear_ready();
            }
            woken = Some(self.set.readable().await.map_err(failed)?);
        }
    }

    /// Adds what isn't in the set. What's no longer wanted stays there and may wake in vain,
    /// until its descriptor is closed.
    fn follow(&mut self, interest: &[PollFd<'_>]) -> io::Result<()> {
        let wanted: Vec<(RawFd, PollFlags)> = interest.iter().map(|one| (one.as_fd().as_raw_fd(), one.events())).collect();
        for (one, new) in interest.iter().zip(&wanted) {
            if self.followed.contains(new) {
                continue;
            }
            let events = if new.1.contains(PollFlags::POLLOUT) { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            match self.set.get_ref().0.add(one.as_fd(), EpollEvent::new(events, 0)) {
                // EEXIST: from before. EPERM: a regular file, which poll calls ready at once.
                Ok(()) | Err(Errno::EEXIST | Errno::EPERM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.followed = wanted;
        Ok(())
    }
}
