//! Sandboxes prepared ahead.

mod instances;
mod stock;

use std::time::Duration;

use crate::child::Child;
use crate::command::Command;
use crate::error::Result;
use crate::outcome::Output;
use crate::sandbox::Sandbox;
#[cfg(feature = "tokio")]
use crate::supervise::Pipes;
use crate::supervise::{self, Live};
pub use instances::InstancePool;
use stock::{Stock, Ware};

/// Sandboxes of one recipe, prepared up to the point where only the command is missing.
///
/// A command then costs little more than its own start: namespaces, mounts, control group,
/// identity and limits are there, and the process that will be the command has been looked
/// at. Each sandbox is used once, so what a command finds is as fresh as with
/// [`Sandbox::run`]; a thread prepares the next one meanwhile.
///
/// If none is ready, and for a command that a prepared sandbox doesn't suit (one with
/// [limits of its own](Command::wall_time), a terminal, inherited streams or descriptors),
/// a fresh one is made. [`stats`](Self::stats) tells how often.
/// For several commands in one sandbox, or files to put there first, there's
/// [`InstancePool`].
///
/// Each one that waits takes the memory of a sandbox (below a mebibyte, the kernel's part
/// included), a control group, and two or three descriptors. The recipe's files are read
/// when a sandbox is prepared, not when the command comes. To run tests in copies of a
/// state, make the pool from [`Checkpoint::sandbox`](crate::Checkpoint::sandbox).
///
/// Dropping the pool ends those that wait; commands that run go on. In a forked child of
/// the host program it makes fresh sandboxes only.
///
/// ```
/// use cofferdam::{Pool, Sandbox};
///
/// let pool = Pool::new(Sandbox::new(), 2)?;
/// for n in 1..4 {
///     let out = pool.run(["expr", &n.to_string(), "*", "2"])?;
///     assert_eq!(out.text(), format!("{}\n", n * 2));
/// }
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Debug)]
pub struct Pool {
    stock: Stock<Live>,
}

/// How a pool has served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// How often a sandbox was ready.
    pub hits: u64,
    /// How often a fresh one had to be made.
    pub misses: u64,
    /// Sandboxes that are ready now.
    pub ready: usize,
}

impl Pool {
    /// A pool of `size` sandboxes, at least 1 and at most 4,096, which a thread of its own
    /// begins to prepare. The first one is prepared here: a recipe that can't be had is an
    /// error at once.
    pub fn new(sandbox: Sandbox, size: usize) -> Result<Pool> {
        let ware = Ware { make: supervise::prepare, stands: Live::still_stands, let_go: Live::let_go };
        Ok(Pool { stock: Stock::new(sandbox, size, ware)? })
    }

    /// Runs a command in one of the sandboxes and waits for its end, as
    /// [`Sandbox::run`] does, with the same errors.
    pub fn run(&self, command: impl Into<Command>) -> Result<Output> {
        let command = command.into();
        supervise::refuse_piped(&command)?;
        match self.take(&command) {
            Some(live) => self.stock.busy(|| supervise::run_in(live, self.stock.recipe(), command)),
            None => {
                self.stock.refill();
                self.stock.recipe().run(command)
            }
        }
    }

    /// Starts a command in one of the sandboxes, as [`Sandbox::spawn`] does.
    pub fn spawn(&self, command: impl Into<Command>) -> Result<Child> {
        let command = command.into();
        let child = match self.take(&command) {
            Some(live) => supervise::spawn_in(live, self.stock.recipe(), command),
            None => self.stock.recipe().spawn(command),
        };
        self.stock.refill();
        child
    }

    fn take(&self, command: &Command) -> Option<Live> {
        self.stock.take(supervise::fits_prepared(self.stock.recipe(), command))
    }

    /// How it has served so far.
    pub fn stats(&self) -> PoolStats {
        self.stock.stats()
    }

    /// Waits until all sandboxes are ready, or until the time is over; true if they are.
    ///
    /// # Errors
    /// What keeps one from being prepared; the next attempt is made when a command comes,
    /// or this is called again.
    pub fn wait_full(&self, limit: Duration) -> Result<bool> {
        self.stock.wait_full(limit)
    }
}

/// What the asynchronous one is made of.
#[cfg(feature = "tokio")]
impl Pool {
    pub(crate) fn recipe(&self) -> &Sandbox {
        self.stock.recipe()
    }

    /// One that suits the command, if it's ready; [`begin_in`](Self::begin_in) comes next.
    pub(crate) fn take_ready(&self, command: &Command) -> Option<Live> {
        let live = self.take(command);
        if live.is_none() {
            self.stock.refill();
        }
        live
    }

    /// Doesn't wait for the command's exec.
    pub(crate) fn begin_in(&self, live: Live, command: Command) -> Result<(Live, Pipes)> {
        let begun = supervise::begin_in(live, self.stock.recipe(), command);
        self.stock.refill();
        begun
    }
}
