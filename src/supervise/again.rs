//! Live sandboxes that serve one command after another, as a pool has them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::session::Session;
use super::{Live, Pipes};
use crate::cgroup::Counters;
use crate::child::Child;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::outcome::Output;
use crate::plan::message::Report;
use crate::plan::wire::NOTIFY_START;
use crate::sandbox::Sandbox;

/// A sandbox that is as it was when it stood.
#[derive(Debug)]
pub(crate) struct Kept {
    session: Arc<Session>,
}

impl Kept {
    /// Starts one, and waits until the clock of files has gone on: PID 1 couldn't tell what
    /// a command changes before that.
    pub(crate) fn start(sandbox: &Sandbox) -> Result<Kept> {
        let session = Session::start_to_serve_again(sandbox)?;
        ripen();
        Ok(Kept { session: Arc::new(session) })
    }

    /// Whether the host knows of nothing that has changed.
    pub(crate) fn stands(&self) -> bool {
        self.session.is_as_it_was()
    }

    /// It has had a command.
    pub(crate) fn has_served(&self) -> bool {
        self.session.has_served()
    }

    /// Has everything killed, and doesn't wait.
    pub(crate) fn let_go(&self) {
        self.session.let_go();
    }

    /// Lends it for one command; afterwards `back` is called with it, and whether it's as it
    /// was.
    pub(crate) fn lend(self, back: impl FnOnce(Kept, bool) + Send + Sync + 'static) -> Loan {
        Loan { kept: Some(self), untouched: false, back: Some(Box::new(back)) }
    }
}

/// Runs a command in one that was lent for it.
pub(crate) fn run_again(loan: Loan, command: Command) -> Result<Output> {
    let (mut live, _) = loan.begin(command, 0)?;
    live.looked_at()?;
    live.wait(None)?;
    live.finish()
}

pub(crate) fn spawn_again(loan: Loan, command: Command) -> Result<Child> {
    let (mut live, pipes) = loan.begin(command, NOTIFY_START)?;
    let started = live.started()?;
    Ok(Child::new(live, pipes, started))
}

/// Waits for the next tick of the clock of files, some milliseconds at most.
fn ripen() {
    const TICK: Duration = Duration::from_millis(1);
    const TICKS: usize = 20;
    let now = || clock_gettime(ClockId::CLOCK_REALTIME_COARSE).ok();
    let before = now();
    for _ in 0..TICKS {
        if now() > before {
            return;
        }
        std::thread::sleep(TICK);
    }
}

/// What becomes of a sandbox after its command.
type Back = Box<dyn FnOnce(Kept, bool) + Send + Sync>;

/// A sandbox that has been lent for one command.
pub(crate) struct Loan {
    kept: Option<Kept>,
    untouched: bool,
    back: Option<Back>,
}

impl Loan {
    /// Asks for the command, with these flags of its plan, and doesn't wait for it.
    pub(crate) fn begin(mut self, command: Command, flags: u64) -> Result<(Live, Pipes)> {
        let Some(kept) = &self.kept else { return Err(Error::new(ErrorKind::Lost, "the sandbox has been given back")) };
        match kept.session.command(command, flags) {
            Ok((mut live, pipes)) => {
                live.loan = Some(self);
                Ok((live, pipes))
            }
            Err(error) => {
                // Nobody has asked the sandbox for anything.
                self.untouched = error.kind() == ErrorKind::Invalid;
                Err(error)
            }
        }
    }

    /// Its command has ended, and everything that it had started.
    pub(super) fn ended(&mut self, report: &Report, counters: &Counters) {
        // What a group does that has run out of memory may not be over.
        let had_memory = [counters.oom_kills, counters.limit_hits].iter().all(|count| count.unwrap_or(0) == 0);
        // Who was over its bandwidth leaves a debt, which the next one would pay.
        let in_debt = counters.throttled.is_some_and(|time| !time.is_zero());
        self.untouched = report.detail == Report::UNTOUCHED && report.cause & Report::MEMORY == 0 && had_memory && !in_debt;
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some((kept, back)) = self.kept.take().zip(self.back.take()) {
            back(kept, self.untouched);
        }
    }
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").field("kept", &self.kept).field("untouched", &self.untouched).finish_non_exhaustive()
    }
}

/// What PID 1 says of a sandbox that stands: an error if it won't be able to tell whether it
/// has been touched.
pub(super) fn can_be_told(detail: u32) -> Result<()> {
    let why = match detail {
        // Nobody has asked, or it can.
        0 | Report::UNTOUCHED => return Ok(()),
        Report::TOO_MANY_FILES => "set-up makes more than 96 files and directories (bind a directory instead)",
        Report::TOO_LONG_FILES => {
            "files that the recipe writes, and the workload may, have more than 64 KiB together (give them a mode without write permission, or bind them)"
        }
        _ => {
            let text = "cannot use a sandbox again: its first process can't see whether it has been touched (does the kernel have kernel.ns_last_pid, from CONFIG_CHECKPOINT_RESTORE?)";
            return Err(Error::unsupported(text));
        }
    };
    Err(Error::invalid(format!("cannot use a sandbox again: {why}")))
}
