//! A command that is running.

use std::io::{PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::outcome::{Exit, Output};
use crate::plan::message::Request;
use crate::pty::Pty;
use crate::supervise::{Live, Pipes, Started, tell};

/// A command that runs, in a sandbox of its own ([`Sandbox::spawn`](crate::Sandbox::spawn))
/// or in a live one ([`Instance::spawn`](crate::Instance::spawn)).
///
/// Dropping it kills the command with everything that it has started, which is everything
/// in a sandbox of its own, and waits for that. Captured streams
/// are read while one of the `wait` functions runs; a workload that prints more
/// than a pipe holds (64 KiB) waits until then.
///
/// [`as_fd`](AsFd::as_fd) is for event loops: the descriptor becomes readable when
/// [`try_wait`](Self::try_wait) may have something to say. It's the sandbox's
/// socket and not a pidfd, because a pidfd becomes readable a moment before the
/// verdict is known, which an edge-triggered loop would miss.
#[derive(Debug)]
pub struct Child {
    /// The command's standard input, if it's [piped](crate::Stdio::piped).
    pub stdin: Option<PipeWriter>,
    /// The command's standard output, if it's piped.
    pub stdout: Option<PipeReader>,
    /// The command's standard error, if it's piped.
    pub stderr: Option<PipeReader>,
    /// The other side of the command's terminal, if it has [one](crate::Stdio::pty).
    pub pty: Option<Pty>,
    live: Live,
    pidfd: OwnedFd,
}

impl Child {
    pub(crate) fn new(live: Live, pipes: Pipes, started: Started) -> Child {
        let Started { pidfd, terminal } = started;
        let pty = terminal.map(Pty::new);
        Child { stdin: pipes.stdin, stdout: pipes.stdout, stderr: pipes.stderr, pty, live, pidfd }
    }

    /// Waits for the end. A piped standard input that is still here is closed
    /// first, so that a command that reads to its end isn't waited for in vain.
    pub fn wait(&mut self) -> Result<Exit> {
        self.stdin = None;
        loop {
            if let Some(exit) = self.wait_until(None)? {
                return Ok(exit);
            }
        }
    }

    /// The verdict if it has ended, without waiting.
    pub fn try_wait(&mut self) -> Result<Option<Exit>> {
        self.wait_until(Some(Instant::now()))
    }

    /// The verdict if it ends within this time. Standard input stays open.
    pub fn wait_timeout(&mut self, limit: Duration) -> Result<Option<Exit>> {
        self.wait_until(Instant::now().checked_add(limit))
    }

    fn wait_until(&mut self, deadline: Option<Instant>) -> Result<Option<Exit>> {
        self.live.wait(deadline)?;
        self.live.verdict()
    }

    /// Waits for the end and returns everything. Like [`wait`](Self::wait) it closes
    /// a piped standard input; piped output that is still here is read.
    pub fn wait_with_output(mut self) -> Result<Output> {
        self.stdin = None;
        for (i, pipe) in [self.stdout.take(), self.stderr.take()].into_iter().enumerate() {
            if let Some(pipe) = pipe {
                self.live.capture(i, pipe.into())?;
            }
        }
        self.live.wait(None)?;
        self.live.finish()
    }

    /// Kills the command with everything that it has started. The verdict will be [`Exit::Killed`], unless
    /// it has ended by itself before.
    pub fn kill(&self) -> Result<()> {
        self.live.tell(Request::KILL, 0, Duration::ZERO)
    }

    /// Sends a signal to the command's main process.
    pub fn signal(&self, signal: i32) -> Result<()> {
        check_signal(signal)?;
        self.live.tell(Request::SIGNAL, signal as u64, Duration::ZERO)
    }

    /// Asks the command to end (SIGTERM, or what the image says), and kills everything after `grace` if it
    /// hasn't; the verdict is [`Exit::Killed`] then. This returns at once: wait
    /// afterwards.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        self.live.tell(Request::STOP, self.live.stop_signal() as u64, grace)
    }

    /// A handle that another thread can kill it with.
    pub fn killer(&self) -> Killer {
        Killer::of(&self.live)
    }

    /// The process id of the command's main process, on the host; `None` when it
    /// has ended. Use it to look: signals are safer through
    /// [`signal`](Self::signal), for which no other process can take the number.
    pub fn id(&self) -> Option<u32> {
        crate::sys::pidfd::number(self.pidfd.as_fd()).ok().flatten()
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.live.reply.as_fd()
    }
}

/// Kills a [`Child`] from elsewhere; harmless when it has ended.
#[derive(Clone, Debug)]
pub struct Killer {
    reply: Arc<OwnedFd>,
    stop_signal: i32,
}

impl Killer {
    pub(crate) fn of(live: &Live) -> Killer {
        Killer { reply: live.reply.clone(), stop_signal: live.stop_signal() }
    }

    /// Like [`Child::kill`].
    pub fn kill(&self) -> Result<()> {
        tell(&self.reply, Request::KILL, 0, Duration::ZERO)
    }

    /// Like [`Child::stop`].
    pub fn stop(&self, grace: Duration) -> Result<()> {
        tell(&self.reply, Request::STOP, self.stop_signal as u64, grace)
    }

    /// Like [`Child::signal`].
    pub fn signal(&self, signal: i32) -> Result<()> {
        check_signal(signal)?;
        tell(&self.reply, Request::SIGNAL, signal as u64, Duration::ZERO)
    }
}

pub(crate) fn check_signal(signal: i32) -> Result<()> {
    match signal {
        1..=64 => Ok(()),
        _ => Err(crate::Error::invalid(format!("{signal} is not a signal; they go from 1 to 64"))),
    }
}
