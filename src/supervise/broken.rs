//! Why a sandbox could not do its job.

use crate::cgroup::Group;
use crate::error::{Error, ErrorKind};
use crate::plan::message::Report;
use crate::plan::{Draft, failure};
use crate::sandbox::Sandbox;

/// The error for a failure that was reported. Where no step is to blame perhaps init itself
/// refused, and then its group, if it has one, is the host's to remove.
pub(super) fn failed(report: &Report, draft: &Draft, sandbox: &Sandbox, group: Option<&mut Group>) -> Error {
    if let (None, Some(group)) = (draft.notes.get(report.status as usize), group) {
        group.take_back();
    }
    failure::error(draft, Some(sandbox), report)
}

/// The error for a sandbox that ended without a word, with the wait status of its PID 1.
pub(crate) fn lost(status: Option<u32>) -> Error {
    let how = match status {
        Some(status) if status & 0x7f == libc::SIGKILL as u32 => "its first process was killed from outside (is the host out of memory?)",
        Some(_) => "its first process ended early",
        None => "init ended, and all sandboxes with it",
    };
    Error::new(ErrorKind::Lost, format!("the sandbox is lost: {how}"))
}

/// What becomes of those who ran beside a command at whose wall limit PID 1 did nothing.
pub(super) fn overslept() -> Error {
    Error::new(
        ErrorKind::Lost,
        "the sandbox is lost: its first process did not see to a wall limit, so all of it was ended (has it been stopped from outside?)",
    )
}

pub(super) fn out_of_memory() -> Error {
    Error::new(
        ErrorKind::Exhausted,
        "the run was killed because the host, or a control group around it, is out of memory; its own limit was not reached",
    )
}

/// Set-up hangs.
pub(crate) fn overdue() -> Error {
    Error::new(
        ErrorKind::Setup,
        "cannot start the sandbox: set-up did not end within 60 s (does a bind or the root lie on a file system that hangs?)",
    )
}
