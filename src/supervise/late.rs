//! Sandboxes that wait for their command, as a pool has them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};

use super::live::Live;
use super::next::Running;
use super::place::Place;
use super::{For, Passed, Pipes, Question, SETUP_LIMIT, ask, grouped, insist, monotonic, next, pass, question, send_with_plan};
use crate::child::Child;
use crate::command::{Command, Stdio, Stream};
use crate::error::Result;
use crate::launch;
use crate::outcome::Output;
use crate::plan::compile::{self, Wanted};
use crate::plan::message::{Report, Request};
use crate::plan::wire;
use crate::sandbox::Sandbox;
use crate::trace::Trace;

/// A sandbox that waits for its command: everything has been done that doesn't need to
/// know it, and it has been looked at.
pub(crate) fn prepare(sandbox: &Sandbox) -> Result<Live> {
    sandbox.validate()?;
    let began = monotonic();
    let volumes = sandbox.hold_volumes()?;
    let mut asked = insist(|| ask(sandbox, For::LaterCommand(None), 0, &Passed::nothing()))?;
    let recipe = sandbox.with_changes(std::mem::take(&mut asked.later));
    let mut live = asked.live(began, Trace::of_nothing(), recipe, [None, None], volumes)?;
    live.stands_within(SETUP_LIMIT)?;
    if let Place::Own { group, .. } = &mut live.place {
        group.keep_counters_open();
    }
    Ok(live)
}

/// The question for one, which ends by itself if it isn't looked at in time; with its group.
pub(super) fn question_ahead(sandbox: &Sandbox) -> Result<Question> {
    let mut question = question(sandbox, For::LaterCommand(Some(next::LIFE)), 0, &Passed::nothing())?;
    question.group.make()?;
    question.group.keep_counters_open();
    Ok(question)
}

/// Asks for that one, and waits for nothing.
pub(super) fn ask_ahead(sandbox: &Sandbox, question: Question) -> Result<Live> {
    let asked = question.ask(sandbox, &Passed::nothing())?;
    asked.live(monotonic(), Trace::of_nothing(), sandbox.clone(), [None, None], sandbox.hold_volumes()?)
}

/// Also what is left of it, for somebody to let go of whom nobody waits for: that wakes init,
/// which may have work to do on this very processor then.
pub(crate) fn run_in(live: Live, sandbox: &Sandbox, command: Command) -> (Result<Output>, Option<Live>) {
    let run = || {
        // Nobody asks when it was executed.
        let (mut live, _) = execute(live, sandbox, command, 0)?;
        live.lingers = true;
        live.wait(None)?;
        let output = live.outcome();
        std::mem::replace(&mut live.trace, Trace::of_nothing()).outcome(live.facts().as_ref());
        Ok((output, live))
    };
    match run() {
        Ok((output, live)) => (output, Some(live)),
        Err(error) => (Err(error), None),
    }
}

/// The same for one that was asked for ahead: so is the next.
pub(super) fn run_ahead(running: &Running, live: Live, sandbox: &Sandbox, command: Command) -> Result<Output> {
    let (mut live, _) = execute(live, sandbox, command, 0)?;
    next::wait_and_prepare(running, sandbox, &mut live)?;
    live.finish()
}

/// Doesn't wait for its exec.
#[cfg(feature = "tokio")]
pub(crate) fn begin_in(live: Live, sandbox: &Sandbox, command: Command) -> Result<(Live, Pipes)> {
    execute(live, sandbox, command, wire::NOTIFY_START)
}

pub(crate) fn spawn_in(live: Live, sandbox: &Sandbox, command: Command) -> Result<Child> {
    let (mut live, pipes) = execute(live, sandbox, command, wire::NOTIFY_START)?;
    let started = live.started()?;
    Ok(Child::new(live, pipes, started))
}

/// Whether a command can be executed in a prepared sandbox: with limits of its own, files
/// of the host's or a terminal it needs a sandbox made for it.
pub(crate) fn fits_prepared(sandbox: &Sandbox, command: &Command) -> bool {
    let plain = |stdio: &Stdio| matches!(stdio.0, Stream::Null | Stream::Captured | Stream::Piped | Stream::Bytes(_) | Stream::Stdout);
    command.limits.over(sandbox).is_none()
        && command.fds.is_empty()
        && [&command.stdin, &command.stdout, &command.stderr].into_iter().all(plain)
}

/// Executes a command that [fits](fits_prepared) in a [prepared](prepare) sandbox.
fn execute(mut live: Live, sandbox: &Sandbox, command: Command, flags: u64) -> Result<(Live, Pipes)> {
    let mut command = sandbox.complete(command)?;
    command.validate()?;
    let passed = pass(&mut command, sandbox)?;
    let pipes = live.execute(&command, flags, passed)?;
    Ok((live, pipes))
}

impl Live {
    /// Waits until the process of a command, which may not be known yet, has been looked at.
    pub(super) fn stands_within(&mut self, limit: Duration) -> Result<()> {
        loop {
            self.await_setup_for(limit)?;
            match self.setup_message()? {
                Some((report, fds)) if report.kind == Report::STANDING && !fds.is_empty() => {
                    self.let_proceed(fds[0].as_fd())?;
                    if self.doubt.is_none() {
                        return Ok(());
                    }
                }
                Some(_) => return Err(self.lost(None)),
                None => {}
            }
        }
    }

    /// Whether it has said nothing since: it would be its end.
    pub(crate) fn still_stands(&self) -> bool {
        matches!(launch::wait_readable(self.reply.as_fd(), Duration::ZERO), Ok(false))
    }

    /// Whether it has ended, and init with it or before it; what it said before may still
    /// be there to be read.
    pub(super) fn is_lost(&self) -> bool {
        let mut polled = [
            PollFd::new(self.place.init().pidfd(), PollFlags::POLLIN),
            // Its end and nothing else.
            PollFd::new(self.reply.as_fd(), PollFlags::empty()),
        ];
        poll(&mut polled, PollTimeout::ZERO) != Ok(0)
    }

    /// Tells init that it's not wanted any more.
    pub(crate) fn let_go(&self) {
        let _ = shutdown(self.reply.as_raw_fd(), Shutdown::Write);
    }

    /// Tells the command that it stands for.
    fn execute(&mut self, command: &Command, flags: u64, passed: Passed) -> Result<Pipes> {
        let Place::Own { group, .. } = &self.place else { return Err(self.lost(None)) };
        self.asked = monotonic();
        self.trace = Trace::of_command(None, &self.sandbox, command);
        let group = grouped(&self.sandbox, group, 0);
        let wanted = Wanted {
            command,
            numbers: &passed.numbers,
            group: &group,
            files: false,
            terminal: &[],
            writable: &passed.writable,
            first: wire::slot::LATE,
        };
        let mut draft = compile::late(&self.sandbox, self.expected.ids, &wanted)?;
        draft.change(&self.sandbox.changes)?;
        draft.settings.flags |= flags;
        draft.missing |= self.draft.missing;
        let fds: Vec<BorrowedFd<'_>> = passed.fds.iter().map(AsFd::as_fd).collect();
        let request = Request { kind: Request::EXECUTE, command: 0, value: 0, time: 0 };
        send_with_plan(self.reply.as_fd(), &request, &draft, None, &fds)?.map_err(|_| self.lost(None))?;
        (self.draft, self.streams, self.pooled) = (draft, passed.streams, true);
        if flags & wire::NOTIFY_START == 0 {
            // Nobody will hear when it was.
            self.proceeded = Some(self.asked);
            self.trace.started();
        }
        Ok(passed.pipes)
    }
}
