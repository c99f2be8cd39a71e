//! A live sandbox, for tasks.

use std::sync::Arc;

use ::tokio::runtime::Handle;

use super::run::Run;
use super::{Child, blocking, have_init};
use crate::changes::CommitOptions;
use crate::checkpoint::Checkpoint;
use crate::command::Command;
use crate::error::Result;
use crate::image::Image;
use crate::layer::Change;
use crate::outcome::{Line, Output, Usage};
use crate::sandbox::Sandbox;
use crate::supervise::{Pipes, refuse_piped};

/// A live sandbox, in which several commands can run, one after another or at once: what
/// [`cofferdam::Instance`](crate::Instance) is for threads.
///
/// Dropping it kills everything in it and doesn't wait. Methods that only send something
/// ([`kill`](Self::kill), [`pause`](Self::pause), [`update`](Self::update) and the like) are
/// no futures, because there's nothing to wait for.
///
/// ```
/// use cofferdam::Sandbox;
/// use cofferdam::tokio::Instance;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> cofferdam::Result<()> {
/// let instance = Instance::start(&Sandbox::new()).await?;
/// instance.run(["sh", "-c", "echo 42 >/tmp/answer"]).await?.exit_ok()?;
/// assert_eq!(instance.run(["cat", "/tmp/answer"]).await?.text(), "42\n");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Instance {
    pub(super) inner: Arc<crate::Instance>,
    runtime: Handle,
}

impl Instance {
    /// Starts one: [`Sandbox::start`].
    pub async fn start(sandbox: &Sandbox) -> Result<Instance> {
        have_init().await?;
        let recipe = sandbox.clone();
        Ok(Instance::of(blocking(move || recipe.start()).await?))
    }

    pub(super) fn of(instance: crate::Instance) -> Instance {
        Instance { inner: Arc::new(instance), runtime: Handle::current() }
    }

    /// Runs a command and waits for its end: [`Instance::run`](crate::Instance::run). If the
    /// future is dropped before, that command is killed.
    pub async fn run(&self, command: impl Into<Command>) -> Result<Output> {
        let command = command.into();
        refuse_piped(&command)?;
        self.begin(command)?.0.into_output().await
    }

    /// Runs a command and tells its lines: [`Instance::run_lines`](crate::Instance::run_lines).
    pub async fn run_lines(&self, command: impl Into<Command>, on_line: impl FnMut(Line<'_>)) -> Result<Output> {
        let command = command.into();
        refuse_piped(&command)?;
        self.begin(command)?.0.into_output_with_lines(on_line).await
    }

    /// Starts a command: [`Instance::spawn`](crate::Instance::spawn).
    pub async fn spawn(&self, command: impl Into<Command>) -> Result<Child> {
        let (run, pipes) = self.begin(command.into())?;
        Child::started(run, pipes).await
    }

    fn begin(&self, command: Command) -> Result<(Run, Pipes)> {
        let (live, pipes) = self.inner.begin(command)?;
        Ok((Run::new(live)?, pipes))
    }

    /// Sends a signal to the main process of each running command.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.inner.signal(signal)
    }

    /// Kills every running command: [`Instance::kill`](crate::Instance::kill).
    pub fn kill(&self) -> Result<()> {
        self.inner.kill()
    }

    /// Stops everything until [`resume`](Self::resume):
    /// [`Instance::pause`](crate::Instance::pause).
    pub fn pause(&self) -> Result<()> {
        self.inner.pause()
    }

    /// Lets everything go on. Harmless if nothing is paused.
    pub fn resume(&self) -> Result<()> {
        self.inner.resume()
    }

    /// What all commands together have used so far:
    /// [`Instance::usage`](crate::Instance::usage).
    pub fn usage(&self) -> Usage {
        self.inner.usage()
    }

    /// Takes over the limits of this recipe: [`Instance::update`](crate::Instance::update).
    pub fn update(&self, recipe: &Sandbox) -> Result<()> {
        self.inner.update(recipe)
    }

    /// Makes it as it was when it was started: [`Instance::reset`](crate::Instance::reset).
    /// If the future is dropped before its end, the instance has ended.
    pub async fn reset(&mut self) -> Result<()> {
        let old = self.inner.clone();
        self.inner = Arc::new(blocking(move || old.renewed()).await?);
        Ok(())
    }

    /// Makes a checkpoint of the root file system as it is:
    /// [`Instance::checkpoint`](crate::Instance::checkpoint). If the future is dropped before its end,
    /// the instance has ended. [`start`](Self::start) makes a copy of it, from the checkpoint's
    /// [recipe](Checkpoint::sandbox).
    pub async fn checkpoint(&mut self) -> Result<Checkpoint> {
        let old = self.inner.clone();
        let (checkpoint, fresh) = blocking(move || old.frozen()).await?;
        self.inner = Arc::new(fresh);
        Ok(checkpoint)
    }

    /// Like [`checkpoint`](Self::checkpoint), and ends the instance.
    pub async fn into_checkpoint(self) -> Result<Checkpoint> {
        let inner = self.inner.clone();
        blocking(move || inner.freeze()).await
    }

    /// What has been written: [`Instance::changes`](crate::Instance::changes).
    pub async fn changes(&self) -> Result<Vec<Change>> {
        let inner = self.inner.clone();
        blocking(move || inner.changes()).await
    }

    /// Makes an image of it: [`Instance::commit`](crate::Instance::commit). What has begun is
    /// done, even if the future is dropped.
    pub async fn commit(&self, options: &CommitOptions) -> Result<Image> {
        let (inner, options) = (self.inner.clone(), options.clone());
        blocking(move || inner.commit(&options)).await
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // At once, while the rest waits for a thread.
        let _ = self.inner.kill();
        let inner = self.inner.clone();
        drop(self.runtime.spawn_blocking(move || inner.end()));
    }
}
