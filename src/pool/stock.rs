//! What is kept ready, and the thread that sees to it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::PoolStats;
use crate::error::{Error, Result};
use crate::sandbox::Sandbox;

/// The most sandboxes of one pool.
const MOST: usize = 4096;

/// So many of a recipe's sandboxes, each made ahead, and given away once or lent.
#[derive(Debug)]
pub(super) struct Stock<T: Send + 'static> {
    shared: Arc<Shared<T>>,
    filler: Option<JoinHandle<()>>,
    owner: u32,
}

/// What is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ware<T> {
    pub(super) make: fn(&Sandbox) -> Result<T>,
    pub(super) stands: fn(&T) -> bool,
    /// Has it ended, and doesn't wait for that, as its drop does.
    pub(super) let_go: fn(&T),
    /// Each is [given back](Stock::returns) after its use.
    pub(super) returns: bool,
    /// It has been used and given back before.
    pub(super) is_used: fn(&T) -> bool,
}

#[derive(Debug)]
struct Shared<T> {
    recipe: Sandbox,
    ware: Ware<T>,
    size: usize,
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    ready: VecDeque<T>,
    hits: u64,
    misses: u64,
    reused: u64,
    /// Those that will be given back.
    lent: usize,
    /// What came back or is left, and isn't used any more: the thread ends it.
    spent: Vec<T>,
    /// Somebody waits until all are ready.
    awaited: usize,
    /// Commands that somebody waits for.
    running: usize,
    /// The last attempt to prepare one failed: the next is made when one is wanted.
    failed: Option<Error>,
    ended: bool,
}

impl<T> Shared<T> {
    /// How long the thread waits for the end of commands, as long as a sandbox is ready.
    const PATIENCE: Duration = Duration::from_millis(5);

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The thread: prepares one after the other.
    fn fill(&self) {
        loop {
            let mut state = self.state();
            let is_full = |state: &State<T>| state.ready.len() + state.lent >= self.size || state.failed.is_some();
            while !state.ended && state.spent.is_empty() && is_full(&state) {
                state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
            }
            let spent = std::mem::take(&mut state.spent);
            if !spent.is_empty() {
                drop(state);
                spent.iter().for_each(self.ware.let_go);
                continue;
            }
            // A short command's own time is not the time to prepare the next one.
            let since = Instant::now();
            while state.running + state.lent > 0 && !state.ready.is_empty() && !state.ended && since.elapsed() < Self::PATIENCE {
                state = self.changed.wait_timeout(state, Self::PATIENCE).map_or_else(|e| e.into_inner().0, |(state, _)| state);
            }
            if state.ended {
                return;
            }
            drop(state);
            let prepared = (self.ware.make)(&self.recipe);
            let mut state = self.state();
            match prepared {
                // Ended with the state, if the pool has been dropped meanwhile.
                Ok(one) => state.ready.push_back(one),
                Err(error) => state.failed = Some(error),
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// One that is ready and lives. The thread is told when the command is on its way.
    fn take(&self, fits: bool) -> Option<T> {
        let mut state = self.state();
        // Perhaps it works again.
        state.failed = None;
        while let Some(one) = if fits { state.ready.pop_front() } else { None } {
            if (self.ware.stands)(&one) {
                state.hits += 1;
                state.reused += u64::from((self.ware.is_used)(&one));
                state.lent += usize::from(self.ware.returns);
                return Some(one);
            }
            state.spent.push(one);
            self.changed.notify_all();
        }
        state.misses += 1;
        None
    }

    /// Takes one back. The thread is only told if that isn't used any more.
    fn take_back(&self, one: T, good: bool) {
        let mut state = self.state();
        state.lent -= 1;
        if state.ended {
            // Ended here, when nobody waits for the state.
            drop(state);
            return;
        }
        if good {
            // The latest is the warmest.
            state.ready.push_front(one);
        } else {
            state.spent.push(one);
        }
        let tell = !good || state.awaited > 0;
        drop(state);
        if tell {
            self.changed.notify_all();
        }
    }
}

impl<T: Send + 'static> Stock<T> {
    pub(super) fn new(recipe: Sandbox, size: usize, ware: Ware<T>) -> Result<Stock<T>> {
        if !(1..=MOST).contains(&size) {
            return Err(Error::invalid(format!("a pool has 1 to {MOST} sandboxes, not {size}")));
        }
        let ready = VecDeque::from([(ware.make)(&recipe)?]);
        let state =
            State { ready, hits: 0, misses: 0, reused: 0, lent: 0, spent: Vec::new(), awaited: 0, running: 0, failed: None, ended: false };
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { recipe, ware, size, state, changed: Condvar::new() });
        let thread = thread::Builder::new().name("cofferdam-pool".into());
        let filler = {
            let shared = shared.clone();
            thread.spawn(move || shared.fill()).map_err(|e| Error::io("start", "the thread of a pool", e))?
        };
        Ok(Stock { shared, filler: Some(filler), owner: std::process::id() })
    }

    pub(super) fn recipe(&self) -> &Sandbox {
        &self.shared.recipe
    }

    /// One that is ready and lives; it counts as a miss if there's none or if it doesn't
    /// `fit`. Afterwards, when what it's for is on its way, comes [`refill`](Self::refill).
    pub(super) fn take(&self, fits: bool) -> Option<T> {
        if self.owner != std::process::id() {
            return None;
        }
        self.shared.take(fits)
    }

    /// What gives one back that was taken.
    pub(super) fn returns(&self) -> impl FnOnce(T, bool) + Send + Sync + 'static {
        let (shared, owner) = (self.shared.clone(), self.owner);
        move |one, good| {
            // A forked child's copy means nothing, and its lock may be nobody's.
            if owner == std::process::id() {
                shared.take_back(one, good);
            }
        }
    }

    pub(super) fn refill(&self) {
        self.shared.changed.notify_all();
    }

    /// Does something with one of them that somebody waits for, and not for what is left.
    pub(super) fn busy<O>(&self, work: impl FnOnce() -> (O, Option<T>)) -> O {
        self.shared.state().running += 1;
        let (out, left) = work();
        let mut state = self.shared.state();
        state.running -= 1;
        state.spent.extend(left);
        drop(state);
        self.refill();
        out
    }

    pub(super) fn stats(&self) -> PoolStats {
        let state = self.shared.state();
        PoolStats { hits: state.hits, misses: state.misses, ready: state.ready.len(), reused: state.reused }
    }

    pub(super) fn wait_full(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now().checked_add(limit);
        self.shared.state().awaited += 1;
        let full = self.wait_until_full(deadline);
        self.shared.state().awaited -= 1;
        full
    }

    fn wait_until_full(&self, deadline: Option<Instant>) -> Result<bool> {
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

impl<T: Send + 'static> Drop for Stock<T> {
    fn drop(&mut self) {
        if self.owner != std::process::id() {
            return;
        }
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
        if let Some(filler) = self.filler.take() {
            let _ = filler.join();
        }
        let (waiting, spent) = {
            let mut state = self.shared.state();
            (std::mem::take(&mut state.ready), std::mem::take(&mut state.spent))
        };
        // All are told before the first is waited for.
        waiting.iter().chain(&spent).for_each(self.shared.ware.let_go);
        drop((waiting, spent));
    }
}
