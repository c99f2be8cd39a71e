//! What a run used.

use std::time::Duration;

use crate::cgroup::Counters;

/// What a run used. What can't be known is `None`, never 0.
///
/// Where there's a control group the kernel has counted the whole run in it; without
/// one the figures are those of getrusage(2), with the limits that are named here.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// From exec to the end of the main process, on CLOCK_MONOTONIC.
    pub wall: Duration,
    /// CPU time in user mode. Without a group: of all processes but those that ended
    /// unnoticed because their parent ignores SIGCHLD, and nothing at all of a run whose
    /// first process was stopped from outside and so had to be ended from outside.
    pub user: Duration,
    /// CPU time in the kernel, without our own set-up.
    pub system: Duration,
    /// The most memory in use at a time, bytes. In a group: of all processes, with page
    /// cache and scratch files. Without: the largest resident set of any one process.
    pub peak_memory: Option<u64>,
    /// The most memory that any one process had in its address space at a time, bytes
    /// (getrusage(2), `ru_maxrss`): its own and the files that it has mapped, but no other
    /// page cache. With one process it tells how much of [`peak_memory`](Self::peak_memory)
    /// was the program's.
    pub peak_resident: Option<u64>,
    /// Page cache of files outside the scratch layer that was still there at the end,
    /// bytes: memory that the kernel would have taken back, and that counts in
    /// [`peak_memory`](Self::peak_memory). Known where memory is limited, of runs whose
    /// peak is 4 MiB or more.
    pub page_cache: Option<u64>,
    /// The most processes and threads at a time; needs a group with `pids.peak`
    /// (Linux 6.1, cgroup v2 and v1).
    pub peak_processes: Option<u64>,
    /// Processes that the kernel killed for want of memory; needs a group.
    pub oom_kills: Option<u64>,
    /// How often a fork was refused by the limit on processes; needs a group.
    pub fork_failures: Option<u64>,
    /// Time for which [`Sandbox::cpus`](crate::Sandbox::cpus) held the run back.
    pub throttled: Option<Duration>,
    /// From the call to exec: what the sandbox itself cost.
    pub setup: Duration,
    /// Bytes in the scratch layer at the end.
    pub scratch: Option<u64>,
    /// Files and directories in the scratch layer at the end, our own among them.
    pub scratch_files: Option<u64>,
    /// The scratch layer was full at the end: the workload has seen ENOSPC, or was about
    /// to. A fact, never a verdict.
    pub scratch_full: Option<bool>,
    /// Voluntary context switches: waits.
    pub context_switches: Option<u64>,
    /// Involuntary context switches: the CPU was given to somebody else.
    pub preemptions: Option<u64>,
    /// Bytes read from block devices; what was cached doesn't count.
    pub read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub written_bytes: Option<u64>,
}

impl Usage {
    /// What a group has counted so far.
    pub(crate) fn of_group(counters: &Counters, wall: u64) -> Usage {
        let all = counters.cpu.unwrap_or_default();
        let user = counters.user.unwrap_or_default().min(all);
        Usage {
            wall: Duration::from_nanos(wall),
            user,
            system: all - user,
            peak_memory: counters.peak_memory,
            peak_processes: counters.peak_processes,
            oom_kills: counters.oom_kills,
            fork_failures: counters.fork_failures,
            throttled: counters.throttled,
            ..Usage::default()
        }
    }

    /// User and system time together.
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}
