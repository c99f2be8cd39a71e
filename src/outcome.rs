//! How a run ended: facts, and the verdict that follows from them.

mod usage;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::cgroup::Counters;
use crate::changes::Upper;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::message::Report;
use crate::policy::SystemCall;
use crate::probe::Layer;
pub use usage::Usage;

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
    /// The last bytes of standard output that found no room in [`stdout`](Self::stdout):
    /// see [`Sandbox::keep_tail`](crate::Sandbox::keep_tail).
    pub stdout_tail: Vec<u8>,
    /// The same of standard error.
    pub stderr_tail: Vec<u8>,
    /// What became of standard output as a whole.
    pub stdout_stream: StreamEnd,
    /// What became of standard error as a whole.
    pub stderr_stream: StreamEnd,
    /// What it used.
    pub usage: Usage,
    /// How the main process ended, whatever the verdict: `Exit::Code` or
    /// `Exit::Signal`.
    pub raw: Exit,
    /// Layers that stood around the run.
    pub layers: Vec<Layer>,
    /// Layers that could not be had: those that the recipe preferred, and
    /// [`Layer::Landlock`] where the kernel has none.
    pub missing: Vec<Layer>,
    pub(crate) limits: Values,
    pub(crate) phases: Phases,
    pub(crate) upper: Option<Arc<Upper>>,
}

/// The values of a recipe's limits, for the evidence.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Values {
    pub(crate) output: Option<u64>,
    pub(crate) memory: Option<u64>,
    pub(crate) cpu_time: Option<Duration>,
    pub(crate) wall_time: Option<Duration>,
    pub(crate) idle_time: Option<Duration>,
}

impl fmt::Display for Output {
    /// The verdict and its evidence in one line, such as
    /// `memory limit: 256 MiB, 1 OOM kill, peak 256 MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.status.fmt(f)?;
        let Exit::Limit(limit) = self.status else { return Ok(()) };
        let (usage, limits) = (&self.usage, &self.limits);
        let time = |limit: Option<Duration>| limit.map_or_else(String::new, |t| format!(": {t:?}"));
        match limit {
            Limit::Memory => {
                write!(f, ": {}", Bytes(limits.memory.unwrap_or(0)))?;
                if let Some(kills) = usage.oom_kills {
                    write!(f, ", {kills} OOM kill{}", if kills == 1 { "" } else { "s" })?;
                }
                usage.peak_memory.map_or(Ok(()), |peak| write!(f, ", peak {}", Bytes(peak)))
            }
            Limit::CpuTime => write!(f, "{}, used {:.3} s", time(limits.cpu_time), usage.cpu().as_secs_f64()),
            Limit::WallTime => write!(f, "{}, used {:.3} s of CPU", time(limits.wall_time), usage.cpu().as_secs_f64()),
            Limit::IdleTime => write!(f, "{}, used {:.3} s of CPU before", time(limits.idle_time), usage.cpu().as_secs_f64()),
            Limit::Syscall(_) => Ok(()),
            Limit::Output => {
                let (out, err) = (self.stdout_stream.bytes, self.stderr_stream.bytes);
                write!(
                    f,
                    ": {}, wrote {} to standard output and {} to standard error",
                    Bytes(limits.output.unwrap_or(0)),
                    Bytes(out),
                    Bytes(err)
                )
            }
        }
    }
}

/// A size as people read it: `256 MiB`, `1.5 KiB`, `17 bytes`.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        let (unit, name) = match bytes {
            0..1024 => return write!(f, "{bytes} bytes"),
            1024..0x10_0000 => (1u64 << 10, "KiB"),
            0x10_0000..0x4000_0000 => (1 << 20, "MiB"),
            _ => (1 << 30, "GiB"),
        };
        if bytes.is_multiple_of(unit) {
            write!(f, "{} {name}", bytes / unit)
        } else {
            write!(f, "{:.1} {name}", bytes as f64 / unit as f64)
        }
    }
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

    /// How long each part of the run took: see [`Phases`].
    ///
    /// ```
    /// use cofferdam::Sandbox;
    /// use std::time::Duration;
    ///
    /// let phases = Sandbox::new().run(["sleep", "0.02"])?.phases();
    /// assert!(phases.run >= Duration::from_millis(20) && phases.setup > Duration::ZERO);
    /// println!("{:?} of {:?} were the sandbox's", phases.setup + phases.teardown, phases.total());
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn phases(&self) -> Phases {
        self.phases
    }

    /// Standard output as text; bytes that aren't UTF-8 are replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }
}

/// The parts of a run, one after another, on CLOCK_MONOTONIC. The sandbox's first process
/// takes the times, but for the beginning: a busy host program, or one that asks late for
/// the outcome, doesn't lengthen them.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// From the call to the program's exec: checking the recipe, waiting for volumes, the
    /// first time starting init, and making the sandbox, or in a live one joining it. The
    /// same as [`Usage::setup`].
    pub setup: Duration,
    /// From exec to the end of the main process: [`Usage::wall`].
    pub run: Duration,
    /// From there until every process that the command left behind was dead, and what they
    /// used was counted. What the kernel and init take apart afterwards (mounts,
    /// namespaces, control groups) isn't in it, because nobody waits for that.
    pub teardown: Duration,
}

impl Phases {
    /// All of them together.
    pub fn total(&self) -> Duration {
        self.setup + self.run + self.teardown
    }
}

/// Why a command is gone. Never an error.
///
/// When several things are true the first of this order is the verdict: killed by
/// the caller, forbidden system call, output limit, memory limit, CPU time, wall time, idle time, signal, exit
/// code.
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
    /// [`Sandbox::memory`](crate::Sandbox::memory).
    Memory,
    /// [`Sandbox::cpu_time`](crate::Sandbox::cpu_time).
    CpuTime,
    /// [`Sandbox::idle_time`](crate::Sandbox::idle_time).
    IdleTime,
    /// It made this system call, which its policy
    /// ([`Syscalls::Strict`](crate::Syscalls::Strict) or a profile) ends a run for. The
    /// call itself has had no effect.
    Syscall(SystemCall),
}

impl Limit {
    /// The name in snake_case.
    pub fn name(self) -> &'static str {
        match self {
            Limit::WallTime => "wall_time",
            Limit::Output => "output",
            Limit::Memory => "memory",
            Limit::CpuTime => "cpu_time",
            Limit::IdleTime => "idle_time",
            Limit::Syscall(_) => "syscall",
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
            Limit::Memory => "memory limit",
            Limit::CpuTime => "CPU time limit",
            Limit::IdleTime => "idle time limit",
            Limit::Syscall(call) => return write!(f, "forbidden system call {call}"),
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

/// A line of output, or a piece of a very long one: see
/// [`Sandbox::run_lines`](crate::Sandbox::run_lines).
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// Which stream it came on.
    pub source: Source,
    /// When the host has read it, from the command's exec on.
    pub at: Duration,
    /// Its bytes, with the line feed.
    pub bytes: &'a [u8],
}

impl Line<'_> {
    /// It as text; bytes that aren't UTF-8 are replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.bytes)
    }
}

/// One of a command's two output streams.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
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

/// Everything that the verdict is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) report: Report,
    /// What the control group counted.
    pub(crate) counters: Counters,
    /// The host saw a stream grow beyond its limit.
    pub(crate) output_exceeded: bool,
    pub(crate) cpu_limit: Option<Duration>,
    pub(crate) memory_limit: Option<u64>,
    /// CLOCK_MONOTONIC, nanoseconds, when the run was asked for.
    pub(crate) asked: u64,
}

impl Facts {
    /// The one table that turns facts into a verdict.
    pub(crate) fn verdict(&self) -> Exit {
        let cause = |bit| self.report.cause & bit != 0;
        if cause(Report::KILLED) {
            Exit::Killed
        } else if cause(Report::SYSCALL) {
            Exit::Limit(Limit::Syscall(SystemCall::of_report(self.report.syscall)))
        } else if self.output_exceeded {
            Exit::Limit(Limit::Output)
        } else if self.out_of_memory() {
            Exit::Limit(Limit::Memory)
        } else if cause(Report::CPU) || self.cpu_limit.is_some_and(|limit| self.usage().cpu() > limit) {
            Exit::Limit(Limit::CpuTime)
        } else if cause(Report::WALL) {
            Exit::Limit(Limit::WallTime)
        } else if cause(Report::IDLE) {
            Exit::Limit(Limit::IdleTime)
        } else {
            self.raw()
        }
    }

    /// By what the kernel did, never by the peak: that counts page cache, and can stand
    /// at the limit without anything having been killed.
    fn out_of_memory(&self) -> bool {
        self.memory_limit.is_some() && (self.report.cause & Report::MEMORY != 0 || self.counters.oom_kills.is_some_and(|n| n > 0))
    }

    /// The kernel killed something for want of memory, but not of the run's own: its
    /// limit never stood in the way. The host, or a group around us, ran out.
    pub(crate) fn host_out_of_memory(&self) -> bool {
        self.counters.oom_kills.is_some_and(|n| n > 0) && (self.memory_limit.is_none() || self.counters.limit_hits == Some(0))
    }

    pub(crate) fn raw(&self) -> Exit {
        Exit::of_wait_status(self.report.status)
    }

    pub(crate) fn phases(&self) -> Phases {
        let Report { began, ended, cleared, .. } = self.report;
        let time = |from: u64, to: u64| Duration::from_nanos(to.saturating_sub(from));
        Phases { setup: time(self.asked, began), run: time(began, ended), teardown: time(ended, cleared) }
    }

    pub(crate) fn usage(&self) -> Usage {
        let known = |number: u64| (number != Report::UNKNOWN).then_some(number);
        let (report, counters) = (&self.report, &self.counters);
        let (user, system) = match counters.cpu {
            Some(all) => {
                // Our own part before exec is the kernel's work.
                let all = all.saturating_sub(Duration::from_nanos(report.setup));
                let user = counters.user.unwrap_or(Duration::from_nanos(report.user)).min(all);
                (user, all - user)
            }
            None => (Duration::from_nanos(report.user), Duration::from_nanos(report.system)),
        };
        let phases = self.phases();
        Usage {
            wall: phases.run,
            user,
            system,
            peak_memory: counters.peak_memory.or((report.peak > 0).then_some(report.peak)),
            peak_resident: (report.peak > 0).then_some(report.peak),
            page_cache: counters.page_cache,
            peak_processes: counters.peak_processes,
            oom_kills: counters.oom_kills,
            fork_failures: counters.fork_failures,
            throttled: counters.throttled,
            setup: phases.setup,
            scratch: known(report.scratch),
            scratch_files: known(report.scratch_files),
            scratch_full: known(report.scratch).map(|_| report.full != 0),
            context_switches: known(report.switches),
            preemptions: known(report.preemptions),
            read_bytes: known(report.read),
            written_bytes: known(report.written),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(status: u32, cause: u32, output_exceeded: bool) -> Facts {
        Facts {
            report: Report { status, cause, ..Report::default() },
            counters: Counters::default(),
            output_exceeded,
            cpu_limit: None,
            memory_limit: None,
            asked: 0,
        }
    }

    #[test]
    fn the_first_true_cause_is_the_verdict() {
        let killed = 9;
        assert_eq!(facts(3 << 8, 0, false).verdict(), Exit::Code(3));
        assert_eq!(facts(6 | 0x80, 0, false).verdict(), Exit::Signal(6), "a core dump doesn't change the signal");
        assert_eq!(facts(killed, 0, false).verdict(), Exit::Signal(9), "a SIGKILL of its own");
        assert_eq!(facts(killed, Report::WALL, false).verdict(), Exit::Limit(Limit::WallTime));
        assert_eq!(facts(killed, Report::WALL | Report::KILLED, false).verdict(), Exit::Killed);
        assert_eq!(facts(killed, Report::WALL, true).verdict(), Exit::Limit(Limit::Output));
        assert_eq!(facts(killed, Report::KILLED, true).verdict(), Exit::Killed, "by the caller, whatever it printed");
        assert_eq!(facts(0, 0, true).verdict(), Exit::Limit(Limit::Output), "it printed too much and then ended by itself");
        assert_eq!(facts(killed, Report::CPU | Report::WALL, false).verdict(), Exit::Limit(Limit::CpuTime));
        assert_eq!(facts(killed, Report::IDLE, false).verdict(), Exit::Limit(Limit::IdleTime));
        let forbidden = facts(killed, Report::SYSCALL | Report::CPU, true).verdict();
        assert!(matches!(forbidden, Exit::Limit(Limit::Syscall(_))), "{forbidden}");
        assert_eq!(facts(killed, Report::SYSCALL | Report::KILLED, false).verdict(), Exit::Killed);
    }

    #[test]
    fn the_evidence_is_one_line() {
        let output = |limit, usage| Output {
            status: Exit::Limit(limit),
            stdout: Vec::new(),
            stdout_tail: vec![],
            stderr_tail: vec![],
            stderr: Vec::new(),
            stdout_stream: StreamEnd { bytes: 1536, ..StreamEnd::default() },
            stderr_stream: StreamEnd::default(),
            usage,
            raw: Exit::Signal(9),
            layers: Vec::new(),
            missing: Vec::new(),
            limits: Values { output: Some(1024), memory: Some(256 << 20), cpu_time: Some(Duration::from_secs(1)), ..Values::default() },
            phases: Phases::default(),
            upper: None,
        };
        let usage = Usage { oom_kills: Some(1), peak_memory: Some(256 << 20), user: Duration::from_millis(1003), ..Usage::default() };
        assert_eq!(output(Limit::Memory, usage).to_string(), "memory limit: 256 MiB, 1 OOM kill, peak 256 MiB");
        assert_eq!(output(Limit::CpuTime, usage).to_string(), "CPU time limit: 1s, used 1.003 s");
        assert_eq!(
            output(Limit::Output, usage).to_string(),
            "output limit: 1 KiB, wrote 1.5 KiB to standard output and 0 bytes to standard error"
        );
    }

    #[test]
    fn memory_is_judged_by_kills_and_never_by_the_peak() {
        let with = |oom_kills, limit_hits, peak| Facts {
            counters: Counters { oom_kills: Some(oom_kills), limit_hits: Some(limit_hits), peak_memory: Some(peak), ..Counters::default() },
            memory_limit: Some(1000),
            ..facts(9, 0, false)
        };
        assert_eq!(with(1, 5, 1000).verdict(), Exit::Limit(Limit::Memory));
        assert_eq!(with(0, 116, 1000).verdict(), Exit::Signal(9), "page cache at the limit, nothing killed");
        assert!(!with(1, 5, 1000).host_out_of_memory());
        assert!(with(1, 0, 700).host_out_of_memory(), "killed although its own limit was never reached");
    }

    #[test]
    fn cpu_time_is_judged_by_the_final_count() {
        let late = Facts {
            counters: Counters { cpu: Some(Duration::from_millis(1003)), ..Counters::default() },
            cpu_limit: Some(Duration::from_secs(1)),
            ..facts(0, 0, false)
        };
        assert_eq!(late.verdict(), Exit::Limit(Limit::CpuTime), "it ended by itself, but too late");
        let setup = Report { setup: 5_000_000, ..late.report };
        assert_eq!(Facts { report: setup, ..late }.verdict(), Exit::Code(0), "our own part isn't the workload's");
    }
}
