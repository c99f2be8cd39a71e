//! How a run ended: facts, and the verdict that follows from them.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::plan::wire::Report;
use crate::probe::Layer;

/// What a run left: its verdict, what it printed, what it used.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Output {
    /// Why it ended.
    pub status: Exit,
    /// Captured standard output; empty unless it was captured.
    pub stdout: Vec<u8>,
    /// Captured standard error.
    pub stderr: Vec<u8>,
    /// What became of standard output as a whole.
    pub stdout_stream: StreamEnd,
    /// What became of standard error as a whole.
    pub stderr_stream: StreamEnd,
    /// What it used.
    pub usage: Usage,
    /// How the main process ended, whatever the verdict: `Exit::Code` or
    /// `Exit::Signal`.
    pub raw: Exit,
    /// Layers that the recipe preferred and that could not be had.
    pub missing: Vec<Layer>,
}

impl Output {
    /// Whether it ended by itself with exit code 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// This output if it was a success, else an error of kind
    /// [`Failed`](ErrorKind::Failed) with the verdict and the end of standard error.
    pub fn exit_ok(self) -> Result<Output> {
        if self.success() {
            return Ok(self);
        }
        let text = String::from_utf8_lossy(&self.stderr);
        let lines: Vec<&str> = text.trim_end().lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n");
        let separator = if tail.is_empty() { "" } else { "\n" };
        Err(Error::new(ErrorKind::Failed, format!("the command ended with {}{separator}{tail}", self.status)))
    }

    /// Standard output as text; bytes that aren't UTF-8 are replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }
}

/// Why a command is gone. Never an error.
///
/// When several things are true the first of this order is the verdict: killed by
/// the caller, output limit, wall time, signal, exit code.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It ended by itself with this code, 0 to 255.
    Code(i32),
    /// A signal of its own making ended it: `abort()` is 6, SIGABRT.
    Signal(i32),
    /// A limit of the recipe ended it.
    Limit(Limit),
    /// The caller ended it.
    Killed,
}

/// Which limit ended a run.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// [`Sandbox::wall_time`](crate::Sandbox::wall_time).
    WallTime,
    /// [`Sandbox::output`](crate::Sandbox::output).
    Output,
}

impl Limit {
    /// The name in snake_case.
    pub fn name(self) -> &'static str {
        match self {
            Limit::WallTime => "wall_time",
            Limit::Output => "output",
        }
    }
}

impl Exit {
    /// Whether it's `Code(0)`.
    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }

    /// The exit code, if it ended by itself.
    pub fn code(self) -> Option<i32> {
        if let Exit::Code(code) = self { Some(code) } else { None }
    }

    /// The signal, if one ended it.
    pub fn signal(self) -> Option<i32> {
        if let Exit::Signal(signal) = self { Some(signal) } else { None }
    }

    /// The limit, if one ended it.
    pub fn limit(self) -> Option<Limit> {
        if let Exit::Limit(limit) = self { Some(limit) } else { None }
    }

    /// A wait status as waitpid(2) has it.
    fn of_wait_status(status: u32) -> Exit {
        match status & 0x7f {
            0 => Exit::Code((status >> 8 & 0xff) as i32),
            signal => Exit::Signal(signal as i32),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::WallTime => "wall time limit",
            Limit::Output => "output limit",
        })
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => match signal_name(*signal) {
                Some(name) => f.write_str(name),
                None => write!(f, "signal {signal}"),
            },
            Exit::Limit(limit) => limit.fmt(f),
            Exit::Killed => f.write_str("killed by the caller"),
        }
    }
}

/// The name of a signal, `SIGABRT` for 6; real-time signals have none.
pub fn signal_name(signal: i32) -> Option<&'static str> {
    nix::sys::signal::Signal::try_from(signal).ok().map(nix::sys::signal::Signal::as_str)
}

/// What a stream carried.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamEnd {
    /// Bytes that the workload wrote, kept or not; 0 if the stream didn't pass
    /// through the host.
    pub bytes: u64,
    /// Whether some of them were discarded.
    pub truncated: bool,
    /// The last byte that was kept or passed on: whether a line is still open.
    pub last_byte: Option<u8>,
}

/// What a run used. What can't be known is `None`, never 0.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// From exec to the end of the main process, on CLOCK_MONOTONIC.
    pub wall: Duration,
    /// CPU time in user mode, of all processes that ended as somebody's child.
    pub user: Duration,
    /// CPU time in the kernel, without our own set-up.
    pub system: Duration,
    /// Bytes of the largest process's resident set (`ru_maxrss`): an upper bound for
    /// what one process held, no bound for all together.
    pub peak_memory: Option<u64>,
    /// The most processes at a time.
    pub peak_processes: Option<u64>,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
}

impl Usage {
    /// User and system time together.
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

/// Everything that the verdict is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) report: Report,
    /// The host saw a stream grow beyond its limit.
    pub(crate) output_exceeded: bool,
}

impl Facts {
    /// The one table that turns facts into a verdict.
    pub(crate) fn verdict(&self) -> Exit {
        let cause = self.report.cause;
        if cause & Report::KILLED != 0 && !self.output_exceeded {
            Exit::Killed
        } else if self.output_exceeded {
            Exit::Limit(Limit::Output)
        } else if cause & Report::WALL != 0 {
            Exit::Limit(Limit::WallTime)
        } else {
            self.raw()
        }
    }

    pub(crate) fn raw(&self) -> Exit {
        Exit::of_wait_status(self.report.status)
    }

    pub(crate) fn usage(&self) -> Usage {
        let report = &self.report;
        Usage {
            wall: Duration::from_nanos(report.ended.saturating_sub(report.began)),
            user: Duration::from_nanos(report.user),
            system: Duration::from_nanos(report.system),
            peak_memory: (report.peak > 0).then_some(report.peak),
            peak_processes: None,
            oom_kills: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(status: u32, cause: u32, output_exceeded: bool) -> Facts {
        Facts { report: Report { status, cause, ..Report::default() }, output_exceeded }
    }

    #[test]
    fn the_first_true_cause_is_the_verdict() {
        let killed = 9;
        assert_eq!(facts(3 << 8, 0, false).verdict(), Exit::Code(3));
        assert_eq!(facts(6 | 0x80, 0, false).verdict(), Exit::Signal(6), "a core dump doesn't change the signal");
        assert_eq!(facts(killed, 0, false).verdict(), Exit::Signal(9), "a SIGKILL of its own");
        assert_eq!(facts(killed, Report::WALL, false).verdict(), Exit::Limit(Limit::WallTime));
        assert_eq!(facts(killed, Report::WALL | Report::KILLED, false).verdict(), Exit::Killed);
        assert_eq!(facts(killed, Report::WALL | Report::KILLED, true).verdict(), Exit::Limit(Limit::Output));
        assert_eq!(facts(0, 0, true).verdict(), Exit::Limit(Limit::Output), "it printed too much and then ended by itself");
    }
}
