//! A command that runs, for a task.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::run::Run;
use super::streams::{PipeReader, PipeWriter, Pty};
use crate::child::{Killer, check_signal};
use crate::error::Result;
use crate::outcome::{Exit, Output};
use crate::plan::message::Request;
use crate::supervise::{Pipes, Started};

/// A command that runs, in a sandbox of its own ([`spawn`](super::spawn)) or in a live one
/// ([`Instance::spawn`](super::Instance::spawn)): what [`cofferdam::Child`](crate::Child)
/// is for threads.
///
/// Dropping it kills the command with everything that it has started, and doesn't wait.
/// Captured streams are read while one of the `wait` functions is being awaited; a workload that
/// prints more than a pipe holds (64 KiB) waits until then.
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
    run: Run,
    pidfd: OwnedFd,
}

impl Child {
    /// Waits for the program's exec.
    pub(super) async fn started(mut run: Run, pipes: Pipes) -> Result<Child> {
        let stdin = pipes.stdin.map(PipeWriter::new).transpose()?;
        let stdout = pipes.stdout.map(PipeReader::new).transpose()?;
        let stderr = pipes.stderr.map(PipeReader::new).transpose()?;
        let Started { pidfd, terminal } = run.started().await?;
        let pty = terminal.map(Pty::new).transpose()?;
        Ok(Child { stdin, stdout, stderr, pty, run, pidfd })
    }

    /// Waits for the end. A piped standard input that is still here is closed
    /// first, so that a command that reads to its end isn't waited for in vain.
    ///
    /// The future may be dropped, by `tokio::time::timeout` or `select!`, and the wait begun
    /// again: the command goes on, and nothing that it says is lost.
    pub async fn wait(&mut self) -> Result<Exit> {
        self.stdin = None;
        loop {
            self.run.wait().await?;
            if let Some(exit) = self.run.live().verdict()? {
                return Ok(exit);
            }
        }
    }

    /// The verdict if it has ended, without waiting. Standard input stays open.
    pub fn try_wait(&mut self) -> Result<Option<Exit>> {
        let live = self.run.live_mut();
        live.wait(Some(Instant::now()))?;
        live.verdict()
    }

    /// Waits for the end and returns everything. Like [`wait`](Self::wait) it closes
    /// a piped standard input; piped output that is still here is read. If the future is
    /// dropped the command is killed.
    pub async fn wait_with_output(mut self) -> Result<Output> {
        self.stdin = None;
        for (i, pipe) in [self.stdout.take(), self.stderr.take()].into_iter().enumerate() {
            if let Some(pipe) = pipe {
                self.run.live_mut().capture(i, pipe.into_fd()?)?;
            }
        }
        self.run.wait().await?;
        self.run.finish()
    }

    /// Kills the command with everything that it has started: [`Child::kill`](crate::Child::kill).
    pub fn kill(&self) -> Result<()> {
        self.run.live().tell(Request::KILL, 0, Duration::ZERO)
    }

    /// Sends a signal to the command's main process.
    pub fn signal(&self, signal: i32) -> Result<()> {
        check_signal(signal)?;
        self.run.live().tell(Request::SIGNAL, signal as u64, Duration::ZERO)
    }

    /// Asks the command to end, and has everything killed after `grace` if it hasn't. This
    /// returns at once: await [`wait`](Self::wait) afterwards. See [`Child::stop`](crate::Child::stop).
    pub fn stop(&self, grace: Duration) -> Result<()> {
        let live = self.run.live();
        live.tell(Request::STOP, live.stop_signal() as u64, grace)
    }

    /// A handle that another task or thread can kill it with.
    pub fn killer(&self) -> Killer {
        Killer::of(self.run.live())
    }

    /// The process id of the command's main process, on the host; `None` when it has
    /// ended. See [`Child::id`](crate::Child::id).
    pub fn id(&self) -> Option<u32> {
        use std::os::fd::AsFd;
        crate::sys::pidfd::number(self.pidfd.as_fd()).ok().flatten()
    }
}
