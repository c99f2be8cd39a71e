//! Connections to servers inside, for tasks.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ::tokio::time::{sleep, timeout};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};

use super::Instance;
use super::watch::Watch;
use crate::error::{Error, Result};
use crate::instance::connect::{ATTEMPT, Address, PAUSE, not_yet};
use crate::supervise::session::{FILES, no_answer, take_answer};

impl Instance {
    /// Connects to a TCP server inside: [`Instance::connect`](crate::Instance::connect). The stream
    /// is non-blocking, as `tokio::net::TcpStream::from_std` wants it.
    pub async fn connect(&self, address: SocketAddr, limit: Duration) -> Result<TcpStream> {
        self.connect_to(&Address::tcp(address), limit).await.map(TcpStream::from)
    }

    /// Connects to a Unix stream socket inside, as [`connect`](Self::connect) does.
    pub async fn connect_unix(&self, path: impl AsRef<Path>, limit: Duration) -> Result<UnixStream> {
        self.connect_to(&Address::unix(path.as_ref())?, limit).await.map(UnixStream::from)
    }

    async fn connect_to(&self, address: &Address, limit: Duration) -> Result<OwnedFd> {
        let deadline = Instant::now().checked_add(limit);
        loop {
            let left = deadline.map_or(limit, |d| d.saturating_duration_since(Instant::now()));
            match self.attempt(address, left.max(ATTEMPT)).await {
                Ok(socket) => {
                    // Made a moment ago, and nobody else's.
                    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| Error::io("prepare", "a socket", e.into()))?;
                    return Ok(socket);
                }
                Err(error) if !not_yet(&error) || left <= PAUSE => return Err(error),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn attempt(&self, address: &Address, limit: Duration) -> Result<OwnedFd> {
        let (draft, session) = (address.steps(), self.inner.session());
        let reply = session.ask_to_perform(&draft, &[])?;
        let mut watch = Watch::new()?;
        let answered = watch.ready(|| vec![PollFd::new(reply.as_fd(), PollFlags::POLLIN)]);
        timeout(limit, answered).await.unwrap_or_else(|_| Err(no_answer(FILES, limit)))?;
        Address::socket(session.performed(&draft, take_answer(&reply, FILES)?)?)
    }
}
