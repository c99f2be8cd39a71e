//! Sandboxes prepared ahead.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::child::Child;
use crate::command::Command;
use crate::error::{Error, Result};
use crate::outcome::Output;
use crate::sandbox::Sandbox;
use crate::supervise::{self, Live};

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
    shared: Arc<Shared>,
    filler: Option<JoinHandle<()>>,
    owner: u32,
}

/// How a [`Pool`] has served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Commands that found a sandbox ready.
    pub hits: u64,
    /// Commands for which a fresh one was made.
    pub misses: u64,
    /// Sandboxes that are ready now.
    pub ready: usize,
}

#[derive(Debug)]
struct Shared {
    recipe: Sandbox,
    size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Live>,
    hits: u64,
    misses: u64,
    /// Commands that somebody waits for.
    running: usize,
    /// The last attempt to prepare one failed: the next is made when one is wanted.
    failed: Option<Error>,
    ended: bool,
}

/// The most sandboxes of one pool.
const MOST: usize = 4096;

impl Shared {
    /// How long the thread waits for the end of commands, as long as a sandbox is ready.
    const PATIENCE: Duration = Duration::from_millis(5);

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The thread: prepares one after the other.
    fn fill(&self) {
        loop {
            let mut state = self.state();
            while !state.ended && (state.ready.len() >= self.size || state.failed.is_some()) {
                state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
            }
            // A short command's own time is not the time to prepare the next one.
            let since = Instant::now();
            while state.running > 0 && !state.ready.is_empty() && !state.ended && since.elapsed() < Shared::PATIENCE {
                state = self.changed.wait_timeout(state, Shared::PATIENCE).map_or_else(|e| e.into_inner().0, |(state, _)| state);
            }
            if state.ended {
                return;
            }
            drop(state);
            let prepared = supervise::prepare(&self.recipe);
            let mut state = self.state();
            match prepared {
                // Ended with the state, if the pool has been dropped meanwhile.
                Ok(live) => state.ready.push_back(live),
                Err(error) => state.failed = Some(error),
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// One that is ready and lives. The thread is told when the command is on its way.
    fn take(&self, fits: bool) -> Option<Live> {
        let mut state = self.state();
        // Perhaps it works again.
        state.failed = None;
        let live = if fits { std::iter::from_fn(|| state.ready.pop_front()).find(Live::still_stands) } else { None };
        if live.is_some() {
            state.hits += 1;
        } else {
            state.misses += 1;
        }
        live
    }
}

impl Pool {
    /// A pool of `size` sandboxes, at least 1 and at most 4,096, which a thread of its own
    /// begins to prepare. The first one is prepared here: a recipe that can't be had is an
    /// error at once.
    pub fn new(sandbox: Sandbox, size: usize) -> Result<Pool> {
        if !(1..=MOST).contains(&size) {
            return Err(Error::invalid(format!("a pool has 1 to {MOST} sandboxes, not {size}")));
        }
        let first = supervise::prepare(&sandbox)?;
        let state = Mutex::new(State { ready: VecDeque::from([first]), ..State::default() });
        let shared = Arc::new(Shared { recipe: sandbox, size, state, changed: Condvar::new() });
        let thread = thread::Builder::new().name("cofferdam-pool".into());
        let filler = {
            let shared = shared.clone();
            thread.spawn(move || shared.fill()).map_err(|e| Error::io("start", "the thread of a pool", e))?
        };
        Ok(Pool { shared, filler: Some(filler), owner: std::process::id() })
    }

    /// Runs a command in one of the sandboxes and waits for its end, as
    /// [`Sandbox::run`] does, with the same errors.
    pub fn run(&self, command: impl Into<Command>) -> Result<Output> {
        let command = command.into();
        supervise::refuse_piped(&command)?;
        match self.take(&command) {
            Some(live) => {
                self.shared.state().running += 1;
                let out = supervise::run_in(live, &self.shared.recipe, command);
                self.shared.state().running -= 1;
                self.shared.changed.notify_all();
                out
            }
            None => {
                self.shared.changed.notify_all();
                self.shared.recipe.run(command)
            }
        }
    }

    /// Starts a command in one of the sandboxes, as [`Sandbox::spawn`] does.
    pub fn spawn(&self, command: impl Into<Command>) -> Result<Child> {
        let command = command.into();
        let child = match self.take(&command) {
            Some(live) => supervise::spawn_in(live, &self.shared.recipe, command),
            None => self.shared.recipe.spawn(command),
        };
        self.shared.changed.notify_all();
        child
    }

    fn take(&self, command: &Command) -> Option<Live> {
        if self.owner != std::process::id() {
            return None;
        }
        self.shared.take(supervise::fits_prepared(&self.shared.recipe, command))
    }

    /// How it has served so far.
    pub fn stats(&self) -> PoolStats {
        let state = self.shared.state();
        PoolStats { hits: state.hits, misses: state.misses, ready: state.ready.len() }
    }

    /// Waits until all sandboxes are ready, or until the time is over; true if they are.
    ///
    /// # Errors
    /// What keeps one from being prepared; the next attempt is made when a command comes,
    /// or this is called again.
    pub fn wait_full(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now().checked_add(limit);
        let mut state = self.shared.state();
        state.failed = None;
        self.shared.changed.notify_all();
        while state.ready.len() < self.shared.size {
            if let Some(error) = state.failed.take() {
                return Err(error);
            }
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() || self.owner != std::process::id() {
                return Ok(false);
            }
            let wait = left.min(Duration::from_secs(3600));
            state = self.shared.changed.wait_timeout(state, wait).map_or_else(|e| e.into_inner().0, |(state, _)| state);
        }
        Ok(true)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.owner != std::process::id() {
            return;
        }
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
        if let Some(filler) = self.filler.take() {
            let _ = filler.join();
        }
        let waiting = std::mem::take(&mut self.shared.state().ready);
        // All are told before the first is waited for.
        waiting.iter().for_each(Live::let_go);
        drop(waiting);
    }
}
