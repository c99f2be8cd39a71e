//! The next sandbox of a recipe that's run again and again, made while nobody waits for it.
//!
//! What a run needs but its command is the same each time. So when a recipe is run again,
//! with few others in between, the host asks for the next sandbox as a pool does: init, the
//! outer child and PID 1 set it up to the point where it's looked at. The next run of the
//! same recipe takes it, if it's still what the recipe says, and costs two thirds of what it
//! would cost otherwise. It's used once, and nothing has run in it before.
//!
//! What it sees of the host was opened before the run was asked for, so that must not make a
//! difference: recipes with binds, volumes or checkpoints aren't served, and whatever set-up
//! has passed below the root must be the same and unchanged (`view.rs`). Nor does anybody go
//! without for it: it's asked for only by a host that has a single run at work, and so leaves
//! a processor idle; and who can't have something that is used up gets what it holds.
//!
//! It keeps nothing for long: if nobody takes it, it ends by itself (its process waits two
//! seconds, [`LIFE`]), and with it all but a control group and a few descriptors. There's one
//! for a recipe, and four at most.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};

use super::live::Live;
use super::view::View;
use super::{Question, late, monotonic};
use crate::command::Command;
use crate::error::Result;
use crate::image::{Image, Root};
use crate::plan::limits::Rlimit;
use crate::sandbox::Sandbox;
use crate::store::Imported;

/// How long its process waits for the look.
pub(crate) const LIFE: Duration = Duration::from_secs(2);
/// How long after it was asked for it's taken: long before that.
const FRESH: Duration = Duration::from_secs(1);
/// How long after it was asked for it has been told to go on, whatever the host was held up by.
const IN_TIME: Duration = Duration::from_millis(1500);

/// A command that takes longer isn't short.
const SHORT: Duration = Duration::from_millis(1);
/// Of the thread that prepares the question.
const STACK: usize = 256 << 10;

/// A recipe to be recognised, and so without what others would miss: as long as somebody has
/// an image its layers can't be removed.
#[derive(Debug)]
struct Known {
    recipe: Sandbox,
    image: Option<Weak<Imported>>,
}

impl Known {
    fn of(sandbox: &Sandbox) -> Known {
        match &sandbox.root.root {
            Root::Layers(image) => Known { recipe: sandbox.clone().rootfs(Image::dir("/")), image: Some(Arc::downgrade(image)) },
            _ => Known { recipe: sandbox.clone(), image: None },
        }
    }

    fn is(&self, sandbox: &Sandbox) -> bool {
        let root = match (&self.image, &sandbox.root.root) {
            (Some(image), Root::Layers(other)) => std::ptr::eq(image.as_ptr(), Arc::as_ptr(other)),
            (None, _) => self.recipe.root.is_like(&sandbox.root),
            _ => false,
        };
        root && self.recipe.is_like_but_for_its_root(sandbox)
    }
}

/// One that waits.
#[derive(Debug)]
struct Waiting {
    recipe: Known,
    live: Live,
    asked: Instant,
    view: View,
}

#[derive(Debug)]
struct State {
    /// One for a recipe.
    waiting: Vec<Waiting>,
    /// The recipes of the latest runs, the latest last.
    known: Vec<Known>,
}

impl State {
    /// So many recipes may take turns.
    const MOST: usize = 4;
    const NOTHING: State = State { waiting: Vec::new(), known: Vec::new() };

    /// One that's for this recipe, and others that have had their time.
    fn take(&mut self, sandbox: &Sandbox) -> (Option<Waiting>, Vec<Waiting>) {
        let place = self.waiting.iter().position(|waiting| waiting.recipe.is(sandbox));
        let found = place.map(|place| self.waiting.remove(place));
        let late = self.waiting.extract_if(.., |waiting| waiting.asked.elapsed() >= FRESH).collect();
        (found, late)
    }
}

static STATE: Mutex<State> = Mutex::new(State::NOTHING);
/// Whose that is. A forked child of the host, which may have inherited the lock as a thread
/// held it, keeps away from it.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// Runs at work.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// How many had one that waited; for tests.
pub(crate) static SERVED: AtomicU64 = AtomicU64::new(0);
/// When the latest of them ended, on CLOCK_MONOTONIC.
static ENDED: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds between two runs of a stream.
const STREAM: u64 = 500_000;

/// A run at work, as long as it lives.
pub(super) struct Running {
    /// Another one has just ended.
    in_stream: bool,
}

impl Running {
    pub(super) fn new() -> Running {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Running { in_stream: monotonic().saturating_sub(ENDED.load(Ordering::Relaxed)) < STREAM }
    }

    fn is_alone(&self) -> bool {
        RUNNING.load(Ordering::Relaxed) == 1
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        ENDED.store(monotonic(), Ordering::Relaxed);
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

fn state() -> Option<MutexGuard<'static, State>> {
    let own = std::process::id();
    match OWNER.compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed) {
        Err(owner) if owner != own => None,
        // Nobody waits here: who comes second does without.
        _ => STATE.try_lock().ok(),
    }
}

/// The one that waits, if it's for this recipe and command; it has been looked at, and goes
/// on to wait for the command.
pub(super) fn take(sandbox: &Sandbox, command: &Command) -> Option<Live> {
    let (found, late) = state()?.take(sandbox);
    drop(late);
    let waiting = found?;
    let suits = waiting.asked.elapsed() < FRESH && late::fits_prepared(sandbox, command) && waiting.view.is_as_it_was();
    let mut live = waiting.live;
    live.sandbox = sandbox.clone();
    // What keeps it from standing the caller will hear of a sandbox that it waits for. One
    // that was told to go on too late may have given up just before, and not said so yet.
    let stands = suits && !live.is_lost() && live.stands_within(FRESH).is_ok() && waiting.asked.elapsed() < IN_TIME;
    if !stands || live.is_lost() || !live.still_stands() {
        return None;
    }
    SERVED.fetch_add(1, Ordering::Relaxed);
    Some(live.with_patience())
}

/// Waits for the end of a command. If another run of the recipe is to be expected the next
/// sandbox is asked for: when the command has ended or, if it takes its time, after a while.
/// Set-up would be in the way of a short command, which waits for the same locks of the
/// kernel, and on two processors for one of them. But in a stream of runs it's asked for at
/// once, because the next run comes at once.
pub(super) fn wait_and_prepare(running: &Running, sandbox: &Sandbox, live: &mut Live) -> Result<()> {
    if !running.is_alone() || !is_expected(sandbox) {
        return live.wait(None).map(drop);
    }
    let in_stream = running.in_stream;
    thread::scope(|scope| {
        // To make the question and the group takes a fifth of a millisecond, and we have
        // just woken the command up, which is often on this very processor then. So it's
        // another thread that does it; where there are none to be had there's no next one.
        let work = || match prepare(sandbox) {
            Some((question, view)) if in_stream => {
                ask(sandbox, question, view);
                None
            }
            prepared => prepared,
        };
        // The host's signal handlers have no business there: it begins with our mask.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let ready = thread::Builder::new().name("cofferdam-next".into()).stack_size(STACK).spawn_scoped(scope, work);
        if let Ok(mask) = mask {
            let _ = mask.thread_set_mask();
        }
        let mut ended = live.wait((!in_stream).then(|| Instant::now() + SHORT))?;
        if let Some((question, view)) = ready.ok().and_then(|ready| ready.join().ok().flatten()) {
            ask(sandbox, question, view);
        }
        while !ended {
            ended = live.wait(None)?;
        }
        Ok(())
    })
}

/// Whether another run of this recipe is to be expected, and a sandbox for it needed.
fn is_expected(sandbox: &Sandbox) -> bool {
    if !suits(sandbox) {
        return false;
    }
    let Some(mut state) = state() else { return false };
    let known = match state.known.iter().position(|known| known.is(sandbox)) {
        Some(place) => Some(state.known.remove(place)),
        None if state.known.len() >= State::MOST => {
            state.known.remove(0);
            None
        }
        None => None,
    };
    let again = known.is_some();
    state.known.push(known.unwrap_or_else(|| Known::of(sandbox)));
    again && state.waiting.len() < State::MOST && !state.waiting.iter().any(|waiting| waiting.recipe.is(sandbox))
}

fn prepare(sandbox: &Sandbox) -> Option<(Question, View)> {
    let question = late::question_ahead(sandbox).ok()?;
    let view = View::of(sandbox, &question.draft)?;
    Some((question, view))
}

fn ask(sandbox: &Sandbox, question: Question, view: View) {
    let Some(mut state) = state() else { return };
    // Before it can begin to wait.
    let asked = Instant::now();
    if state.waiting.len() < State::MOST
        && let Ok(live) = late::ask_ahead(sandbox, question)
    {
        let (recipe, mut live) = (Known::of(sandbox), live.without_patience());
        live.sandbox = recipe.recipe.clone();
        state.waiting.push(Waiting { recipe, live, asked, view });
    }
}

/// Lets go of those that wait, with all that they hold, and waits for their end; whether
/// there were any.
pub(crate) fn clear() -> bool {
    if OWNER.load(Ordering::Relaxed) != std::process::id() {
        return false;
    }
    let State { waiting, .. } = std::mem::replace(&mut *STATE.lock().unwrap_or_else(|e| e.into_inner()), State::NOTHING);
    let any = !waiting.is_empty();
    // All are told before the first is waited for.
    waiting.iter().for_each(|waiting| waiting.live.let_go());
    waiting.into_iter().for_each(|waiting| drop(waiting.live.with_patience()));
    any
}

/// Whether nothing of the recipe depends on when it's made, and it can be kept in mind.
fn suits(sandbox: &Sandbox) -> bool {
    /// Bytes of files that are given by their contents.
    const SMALL: usize = 256 << 10;
    sandbox.has_own_files_only()
        && sandbox.size_of_files() <= SMALL
        && !sandbox.keep_changes
        && sandbox.changes.is_empty()
        && sandbox.root.checkpoint().is_none()
        && !sandbox.rlimits.iter().any(Rlimit::is_too_low_to_wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Exit;

    /// The host may be stopped, or its command's arguments fill megabytes.
    #[test]
    fn one_that_was_taken_waits_for_its_command_as_long_as_it_takes() {
        let recipe = Sandbox::new();
        let command = || Command::new("echo").arg("here");
        let live = (0..100).find_map(|_| {
            recipe.run(command()).expect("it runs");
            take(&recipe, &command())
        });
        thread::sleep(LIFE + Duration::from_millis(200));
        let out = late::run_ahead(&Running::new(), live.expect("one was made ahead"), &recipe, command()).expect("it runs");
        assert_eq!((out.status, out.text()), (Exit::Code(0), "here\n".into()));
    }
}
