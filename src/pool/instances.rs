//! Live sandboxes started ahead.

use std::time::Duration;

use super::PoolStats;
use super::stock::{Stock, Ware};
use crate::error::Result;
use crate::instance::Instance;
use crate::sandbox::Sandbox;

/// Live sandboxes of one recipe, started ahead: [`take`](Self::take) gives one away as
/// soon as it's asked for, and a thread starts the next.
///
/// Each is used once, so it's as fresh as one from [`Sandbox::start`], and
/// ends when it's dropped, as any [`Instance`]. To try things in copies of one state, make the pool from
/// [`Checkpoint::sandbox`](crate::Checkpoint::sandbox). For one command each there's
/// [`Pool`](crate::Pool), whose sandboxes are ready up to that command's exec.
///
/// Each one that waits takes the memory of a sandbox (below a mebibyte, the kernel's part
/// included), a control group, and up to four descriptors. If none is ready a fresh one is
/// started; [`stats`](Self::stats) tells how often. Dropping the pool ends those that wait, not those
/// that were taken. In a forked child of the host program it starts fresh ones only.
///
/// ```
/// use cofferdam::{InstancePool, Sandbox};
///
/// let mut instance = Sandbox::new().start()?;
/// instance.write("/tmp/state", "compiled\n")?;
/// let pool = InstancePool::new(instance.checkpoint()?.sandbox(), 2)?;
/// for _ in 0..3 {
///     let copy = pool.take()?;
///     copy.run(["sh", "-c", "echo used >> /tmp/state"])?.exit_ok()?;
///     assert_eq!(copy.read("/tmp/state", 100)?, b"compiled\nused\n");
/// }
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Debug)]
pub struct InstancePool {
    stock: Stock<Instance>,
}

impl InstancePool {
    /// A pool of `size` live sandboxes, at least 1 and at most 4,096, which a thread of its
    /// own begins to start. The first one is started here: a recipe that can't be had is
    /// an error at once.
    pub fn new(sandbox: Sandbox, size: usize) -> Result<InstancePool> {
        let (stands, let_go) = (Instance::stands, Instance::let_go);
        let ware = Ware { make: Sandbox::start, stands, let_go, returns: false, is_used: |_| false };
        Ok(InstancePool { stock: Stock::new(sandbox, size, ware)? })
    }

    /// One of them, or a fresh one if none is ready.
    pub fn take(&self) -> Result<Instance> {
        match self.take_ready() {
            Some(instance) => Ok(instance),
            None => self.stock.recipe().start(),
        }
    }

    pub(crate) fn take_ready(&self) -> Option<Instance> {
        let instance = self.stock.take(true);
        self.stock.refill();
        instance
    }

    /// How it has served so far.
    pub fn stats(&self) -> PoolStats {
        self.stock.stats()
    }

    /// Waits until all are ready, or until the time is over; true if they are.
    ///
    /// # Errors
    /// What keeps one from being started; the next attempt is made when one is taken, or
    /// this is called again.
    pub fn wait_full(&self, limit: Duration) -> Result<bool> {
        self.stock.wait_full(limit)
    }
}

/// What the asynchronous one is made of.
#[cfg(feature = "tokio")]
impl InstancePool {
    pub(crate) fn recipe(&self) -> &Sandbox {
        self.stock.recipe()
    }
}
