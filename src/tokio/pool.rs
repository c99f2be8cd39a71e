//! Sandboxes prepared ahead, for tasks.

use std::sync::Arc;
use std::time::Duration;

use ::tokio::runtime::Handle;

use super::run::Run;
use super::{Child, Instance, begin, blocking, have_init};
use crate::command::Command;
use crate::error::Result;
use crate::outcome::Output;
use crate::pool::PoolStats;
use crate::sandbox::Sandbox;
use crate::supervise::{Pipes, refuse_piped};

/// Sandboxes of one recipe, prepared up to the point where only the command is missing: what
/// [`cofferdam::Pool`](crate::Pool) is for threads. A thread of its own prepares them.
///
/// Dropping it doesn't wait; commands that run go on.
///
/// ```
/// use cofferdam::Sandbox;
/// use cofferdam::tokio::Pool;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> cofferdam::Result<()> {
/// let pool = Pool::new(Sandbox::new(), 2).await?;
/// assert_eq!(pool.run(["expr", "6", "*", "7"]).await?.text(), "42\n");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pool {
    inner: Kept<crate::Pool>,
}

impl Pool {
    /// A pool of so many sandboxes: [`Pool::new`](crate::Pool::new).
    pub async fn new(sandbox: Sandbox, size: usize) -> Result<Pool> {
        have_init().await?;
        Ok(Pool { inner: Kept::new(blocking(move || crate::Pool::new(sandbox, size)).await?) })
    }

    /// A pool whose sandboxes serve again: [`Pool::reusing`](crate::Pool::reusing). One whose
    /// future or [`Child`] was dropped before the end doesn't.
    pub async fn reusing(sandbox: Sandbox, size: usize) -> Result<Pool> {
        have_init().await?;
        Ok(Pool { inner: Kept::new(blocking(move || crate::Pool::reusing(sandbox, size)).await?) })
    }

    /// Runs a command in one of the sandboxes and waits for its end:
    /// [`Pool::run`](crate::Pool::run). If the future is dropped before, it's killed.
    pub async fn run(&self, command: impl Into<Command>) -> Result<Output> {
        let command = command.into();
        refuse_piped(&command)?;
        self.begin(command).await?.0.into_output().await
    }

    /// Starts a command in one of the sandboxes: [`Pool::spawn`](crate::Pool::spawn).
    pub async fn spawn(&self, command: impl Into<Command>) -> Result<Child> {
        let (run, pipes) = self.begin(command.into()).await?;
        Child::started(run, pipes).await
    }

    async fn begin(&self, command: Command) -> Result<(Run, Pipes)> {
        match self.inner.take_ready(&command) {
            Some(taken) => {
                let (live, pipes) = self.inner.begin_in(taken, command)?;
                Ok((Run::new(live)?, pipes))
            }
            None => begin(self.inner.recipe(), command).await,
        }
    }

    /// How it has served so far.
    pub fn stats(&self) -> PoolStats {
        self.inner.stats()
    }

    /// Waits until all are ready, or until the time is over; true if they are. A blocking
    /// thread of the runtime waits: [`Pool::wait_full`](crate::Pool::wait_full).
    pub async fn wait_full(&self, limit: Duration) -> Result<bool> {
        let inner = self.inner.share();
        blocking(move || inner.wait_full(limit)).await
    }
}

/// Live sandboxes of one recipe, started ahead: what
/// [`cofferdam::InstancePool`](crate::InstancePool) is for threads.
///
/// Dropping it ends those that wait, and doesn't wait for that.
#[derive(Debug)]
pub struct InstancePool {
    inner: Kept<crate::InstancePool>,
}

impl InstancePool {
    /// A pool of so many live sandboxes:
    /// [`InstancePool::new`](crate::InstancePool::new).
    pub async fn new(sandbox: Sandbox, size: usize) -> Result<InstancePool> {
        have_init().await?;
        Ok(InstancePool { inner: Kept::new(blocking(move || crate::InstancePool::new(sandbox, size)).await?) })
    }

    /// One of them, or a fresh one if none is ready:
    /// [`InstancePool::take`](crate::InstancePool::take).
    pub async fn take(&self) -> Result<Instance> {
        match self.inner.take_ready() {
            Some(instance) => Ok(Instance::of(instance)),
            None => Instance::start(self.inner.recipe()).await,
        }
    }

    /// How it has served so far.
    pub fn stats(&self) -> PoolStats {
        self.inner.stats()
    }

    /// Waits until all are ready, or until the time is over; true if they are. A blocking
    /// thread of the runtime waits: [`InstancePool::wait_full`](crate::InstancePool::wait_full).
    pub async fn wait_full(&self, limit: Duration) -> Result<bool> {
        let inner = self.inner.share();
        blocking(move || inner.wait_full(limit)).await
    }
}

/// What waits when it's dropped, and so is dropped in a blocking thread.
#[derive(Debug)]
struct Kept<T: Send + Sync + 'static> {
    inner: Option<Arc<T>>,
    runtime: Handle,
}

impl<T: Send + Sync + 'static> Kept<T> {
    fn new(inner: T) -> Kept<T> {
        Kept { inner: Some(Arc::new(inner)), runtime: Handle::current() }
    }

    fn share(&self) -> Arc<T> {
        self.inner.clone().expect("it's there until the drop")
    }
}

impl<T: Send + Sync + 'static> std::ops::Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.inner.as_ref().expect("it's there until the drop")
    }
}

impl<T: Send + Sync + 'static> Drop for Kept<T> {
    fn drop(&mut self) {
        let inner = self.inner.take();
        drop(self.runtime.spawn_blocking(move || drop(inner)));
    }
}
