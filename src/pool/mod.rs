//! Sandboxes prepared ahead.

mod instances;
mod reusing;
mod stock;

use std::time::Duration;

use crate::child::Child;
use crate::command::Command;
use crate::error::Result;
use crate::outcome::Output;
use crate::sandbox::Sandbox;
use crate::supervise::{self, Kept, Live, Loan};
#[cfg(feature = "tokio")]
use crate::{plan::wire::NOTIFY_START, supervise::Pipes};
pub use instances::InstancePool;
use stock::{Stock, Ware};

/// Sandboxes of one recipe, prepared up to the point where only the command is missing.
///
/// A command then costs little more than its own start: namespaces, mounts, control group,
/// identity and limits are there, and the process that will be the command has been looked
/// at. Each sandbox is used once, so what a command finds is as fresh as with
/// [`Sandbox::run`]; a thread prepares the next one meanwhile. With
/// [`Pool::reusing`] those that commands leave untouched are used again.
///
/// If none is ready, and for a command that a prepared sandbox doesn't suit (one with
/// [limits of its own](Command::wall_time), a terminal, inherited streams or descriptors),
/// a fresh one is made. [`stats`](Self::stats) tells how often.
/// For several commands in one sandbox, or files to put there first, there's
/// [`InstancePool`].
///
/// Each one that waits takes the memory of a sandbox (below a mebibyte, the kernel's part
/// included), a control group, and two to nine descriptors, by kind and number of the
/// machine's control groups. The recipe's files are read when a sandbox is prepared, not
/// when the command comes. To run tests in copies of a state, make the pool from [`Checkpoint::sandbox`](crate::Checkpoint::sandbox).
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
    stock: Stock<Ready>,
}

/// A sandbox that waits for a command.
#[derive(Debug)]
enum Ready {
    /// For its only one.
    Once(Box<Live>),
    /// For the next one.
    Again(Kept),
}

impl Ready {
    fn stands(&self) -> bool {
        match self {
            Ready::Once(live) => live.still_stands(),
            Ready::Again(kept) => kept.stands(),
        }
    }

    fn has_served(&self) -> bool {
        matches!(self, Ready::Again(kept) if kept.has_served())
    }

    fn let_go(&self) {
        match self {
            Ready::Once(live) => live.let_go(),
            Ready::Again(kept) => kept.let_go(),
        }
    }
}

/// One that has been taken for a command.
#[derive(Debug)]
pub(crate) enum Taken {
    Once(Box<Live>),
    Again(Loan),
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
    /// How often a sandbox served again: see [`Pool::reusing`].
    pub reused: u64,
}

impl Pool {
    /// A pool of `size` sandboxes, at least 1 and at most 4,096, which a thread of its own
    /// begins to prepare. The first one is prepared here: a recipe that can't be had is an
    /// error at once.
    pub fn new(sandbox: Sandbox, size: usize) -> Result<Pool> {
        Pool::of(sandbox, size, false, |sandbox| supervise::prepare(sandbox).map(|live| Ready::Once(Box::new(live))))
    }

    /// A pool whose sandboxes serve again, as long as nothing shows of what they have served.
    ///
    /// What they are made of is kept: the user, mount, PID, network and UTS namespaces, the
    /// first process and the control group. A command then costs little more than one in an
    /// [`Instance`](crate::Instance), and finds what it would find in a fresh sandbox: nobody
    /// else, process ids from 2 on, an IPC namespace, filter and limits of its own, and the
    /// files as set-up has made them. It has its own verdict, and its own [`Usage`](crate::Usage);
    /// with cgroup v1, a peak of memory may have up to 4 MiB in it of earlier commands: page
    /// cache, and what the kernel is about to free.
    ///
    /// When a command has ended, and everything that it had started is dead, the first process,
    /// which no workload reaches, compares the sandbox with what it was before the first
    /// command: all that stat(2) tells of each file and directory in the scratch layer, `/tmp`,
    /// `/dev/shm`, `/dev/pts` and the recipe's [tmpfs mounts](Sandbox::tmpfs); the contents of
    /// files that may be written; how full these file systems are; its own priorities,
    /// processors, resource limits and signals. If anything is different the sandbox is thrown away,
    /// even if a file was only made and removed again, and so it is when memory has run out
    /// in it. A thread starts another one. So this is for commands that mostly read and
    /// write streams, such as a judge's test cases: those that write files get a sandbox that
    /// nobody has used, and make the pool slower than one of [`new`](Self::new).
    ///
    /// What shows of earlier commands all the same:
    ///
    /// * in the network namespace, what [`reuse_network`](Sandbox::reuse_network) names;
    /// * numbers that the kernel counts up, such as those of inodes, and hints on a file's
    ///   lifetime (`F_SET_RW_HINT` of fcntl(2));
    /// * in [writable binds](Sandbox::bind_rw), what they have written there, as ever;
    /// * how fast something is: what caches hold.
    ///
    /// Three things are different from a fresh sandbox. Reading a file doesn't change its access
    /// time. `/proc/1` is empty: the first process counts what earlier commands have used. And
    /// `/dev/mqueue` is empty and read-only: POSIX message queues are each command's
    /// own, and where [Landlock](crate::Layer::Landlock) is in force they are refused. (If the
    /// filter refuses `semget`, `shmget`, `msgget` and `mq_open`, as
    /// [`Syscalls::Strict`](crate::Syscalls::Strict) does, the machine is spared a new IPC
    /// namespace for each command.)
    ///
    /// While none is ready, a fresh sandbox is made, as for commands that don't suit. A child
    /// that was [spawned](Self::spawn) gives its sandbox back when it's waited for or dropped.
    ///
    /// ```
    /// use cofferdam::{Command, Pool, Sandbox};
    ///
    /// let pool = Pool::reusing(Sandbox::new(), 2)?;
    /// for n in 1..4 {
    ///     let out = pool.run(Command::new("wc").arg("-c").stdin("x".repeat(n)))?;
    ///     assert_eq!(out.text(), format!("{n}\n"));
    /// }
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for a recipe with which it could not be
    /// told: with [capabilities](Sandbox::capabilities), [nesting](Sandbox::nesting),
    /// [volumes](Sandbox::volume), [kept changes](Sandbox::keep_changes) or a system call
    /// filter that allows more than [`Syscalls::Default`](crate::Syscalls::Default) or
    /// [`Strict`](crate::Syscalls::Strict); if set-up makes more than 96 files and directories; or if
    /// the files that it writes, and the workload may too, have more than 64 KiB together:
    /// [without write permission](Sandbox::file_mode) they don't count.
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) on a kernel without
    /// `kernel.ns_last_pid`.
    pub fn reusing(sandbox: Sandbox, size: usize) -> Result<Pool> {
        sandbox.validate()?;
        reusing::fits(&sandbox)?;
        Pool::of(sandbox, size, true, |sandbox| Kept::start(sandbox).map(Ready::Again))
    }

    fn of(sandbox: Sandbox, size: usize, returns: bool, make: fn(&Sandbox) -> Result<Ready>) -> Result<Pool> {
        let ware = Ware { make, stands: Ready::stands, let_go: Ready::let_go, returns, is_used: Ready::has_served };
        Ok(Pool { stock: Stock::new(sandbox, size, ware)? })
    }

    /// Runs a command in one of the sandboxes and waits for its end, as
    /// [`Sandbox::run`] does, with the same errors.
    pub fn run(&self, command: impl Into<Command>) -> Result<Output> {
        let command = command.into();
        supervise::refuse_piped(&command)?;
        match self.take(&command) {
            Some(Taken::Once(live)) => self.stock.busy(|| {
                let (output, left) = supervise::run_in(*live, self.stock.recipe(), command);
                (output, left.map(|live| Ready::Once(Box::new(live))))
            }),
            Some(Taken::Again(loan)) => supervise::run_again(loan, command),
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
            Some(Taken::Once(live)) => supervise::spawn_in(*live, self.stock.recipe(), command),
            Some(Taken::Again(loan)) => return supervise::spawn_again(loan, command),
            None => self.stock.recipe().spawn(command),
        };
        self.stock.refill();
        child
    }

    fn take(&self, command: &Command) -> Option<Taken> {
        let ready = self.stock.take(supervise::fits_prepared(self.stock.recipe(), command))?;
        Some(match ready {
            Ready::Once(live) => Taken::Once(live),
            Ready::Again(kept) => {
                let back = self.stock.returns();
                Taken::Again(kept.lend(move |kept, good| back(Ready::Again(kept), good)))
            }
        })
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
    pub(crate) fn take_ready(&self, command: &Command) -> Option<Taken> {
        let taken = self.take(command);
        if taken.is_none() {
            self.stock.refill();
        }
        taken
    }

    /// Doesn't wait for the command's exec.
    pub(crate) fn begin_in(&self, taken: Taken, command: Command) -> Result<(Live, Pipes)> {
        let live = match taken {
            Taken::Once(live) => *live,
            Taken::Again(loan) => return loan.begin(command, NOTIFY_START),
        };
        let begun = supervise::begin_in(live, self.stock.recipe(), command);
        self.stock.refill();
        begun
    }
}
