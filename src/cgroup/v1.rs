//! Names and formats of cgroup v1 files (the kernel's admin-guide/cgroup-v1).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::files::{Setting, Source, field, open, page_cache, read, same, same_pages, write};
use super::limits::{bandwidth, controller};
use super::{Counters, Limits};
use crate::probe::Layer;

/// Joined by writing `0`. Not `cgroup.procs`: that takes a lock for which the first
/// comer after a pause waits 15 ms.
pub(super) const JOIN: &str = "tasks";
pub(super) const CPU_COUNTER: (&str, u64) = ("cpuacct.usage", 1);

pub(super) const PEAK: &str = "memory.max_usage_in_bytes";

pub(super) fn settings(limits: &Limits, uses: u8) -> Vec<Setting> {
    let mut settings = Vec::new();
    if uses & controller::MEMORY != 0
        && let Some(bytes) = limits.memory
    {
        let memory = |file, optional| Setting { file, value: bytes.to_string(), holds: same_pages, layer: Layer::MemoryLimit, optional };
        settings.push(memory("memory.limit_in_bytes", false));
        // Memory and swap together; absent without swap accounting. It can't be
        // below the other, so it comes second.
        settings.push(memory("memory.memsw.limit_in_bytes", true));
    }
    if uses & controller::PIDS != 0
        && let Some(most) = limits.processes
    {
        settings.push(Setting { file: "pids.max", value: most.to_string(), holds: same, layer: Layer::ProcessLimit, optional: false });
    }
    if uses & controller::CPU != 0
        && let Some(cpus) = limits.cpus
    {
        let (quota, period) = bandwidth(cpus);
        let cpu = |file, value: u64| Setting { file, value: value.to_string(), holds: same, layer: Layer::CpuBandwidth, optional: false };
        settings.push(cpu("cpu.cfs_period_us", period));
        settings.push(cpu("cpu.cfs_quota_us", quota));
    }
    if uses & controller::CPUSET != 0
        && let Some(cpus) = limits.cpuset
    {
        settings.push(Setting { file: "cpuset.cpus", value: cpus.list(), holds: same, layer: Layer::CpuPinning, optional: false });
    }
    settings
}

pub(super) const EFFECTIVE_CPUS: &str = "cpuset.effective_cpus";

/// A fresh v1 group has no CPU and no memory node, and nothing can join it.
pub(super) fn inherit_cpuset(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        write(to, file, read(from, file)?.trim())?;
    }
    Ok(())
}

/// An eventfd that the kernel signals when the group runs out of memory, and the
/// file that counts what it killed. v1 has no `memory.oom.group`: PID 1 watches.
pub(super) fn watch_oom(directory: &OwnedFd) -> io::Result<[OwnedFd; 2]> {
    let control = open(directory, "memory.oom_control", OFlag::O_RDONLY)?;
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let text = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    write(directory, "cgroup.event_control", &text)?;
    Ok([crate::sys::not_standard(event.into())?, control])
}

/// Files that [`events`] reads of most groups, and those that [`count`] reads of all beside
/// them.
pub(super) const EVENTS: [(u8, &str); 2] = [(controller::MEMORY, "memory.oom_control"), (controller::PIDS, "pids.events")];
pub(super) const COUNTERS: [(u8, &str); 3] =
    [(controller::ACCOUNT, CPU_COUNTER.0), (controller::MEMORY, PEAK), (controller::PIDS, "pids.peak")];

/// What else [`spare`](super::spare) looks at.
pub(super) const STATE: [(u8, &str); 5] = [
    (controller::MEMORY, "memory.usage_in_bytes"),
    (controller::MEMORY, "memory.limit_in_bytes"),
    (controller::MEMORY, "memory.memsw.limit_in_bytes"),
    (controller::PIDS, "pids.current"),
    (controller::PIDS, "pids.max"),
];

pub(super) fn count(from: Source<'_>, limits: &Limits, uses: u8, account: &Account, counters: &mut Counters) {
    if uses & controller::ACCOUNT != 0 {
        account.count(from, counters);
    }
    if uses & controller::MEMORY != 0 {
        counters.peak_memory = from.number(PEAK);
    }
    if let (Some(limit), true) = (limits.memory, uses & controller::MEMORY != 0) {
        counters.page_cache = page_cache(from, counters.peak_memory, "total_cache", "total_shmem");
        // A run that met its limit has a peak just below it: charges come in batches for
        // each CPU. Recent kernels count no refusals (on 6.18 it stays 0), so one with
        // such a peak counts as one.
        const BATCHES: u64 = 4 << 20;
        let peak = counters.peak_memory.unwrap_or(u64::MAX);
        let hits = if peak.saturating_add(BATCHES.min(limit / 8)) >= limit {
            // Whichever of the two limits is met first counts; they are the same.
            let counted = ["memory.failcnt", "memory.memsw.failcnt"].map(|file| from.number(file).unwrap_or(0));
            counted.iter().sum::<u64>().max(1)
        } else {
            0
        };
        counters.limit_hits = Some(hits);
    }
    if uses & controller::PIDS != 0 {
        counters.peak_processes = from.number("pids.peak");
    }
    events(from, uses, counters);
}

/// How far the counters of CPU time had come when a command began. They can be set back only
/// in part.
#[derive(Debug, Default)]
pub(crate) struct Account {
    used: Duration,
    /// How often user and system time had been sampled, in ticks.
    samples: (u64, u64),
    /// What had been used by then.
    sampled: Duration,
}

impl Account {
    /// What uses less CPU time than this may not be sampled once.
    const TICK: Duration = Duration::from_millis(4);
    /// Hundredths of a second.
    const ENOUGH: u64 = 20;

    /// What was used since.
    pub(super) fn count(&self, from: Source<'_>, counters: &mut Counters) {
        counters.cpu = cpu_time(from).map(|used| used.saturating_sub(self.used));
        if let Some((user, system)) = counters.cpu.filter(|used| *used > Account::TICK).and_then(|_| samples(from)) {
            let since = (user.saturating_sub(self.samples.0), system.saturating_sub(self.samples.1));
            // What was before may be in the first ones.
            if self.used.is_zero() || since.0 + since.1 >= Account::ENOUGH {
                (counters.user, counters.system) = divided(counters.cpu, since).unzip();
            }
        }
    }

    /// Begins anew, if it's known how far they are.
    pub(super) fn begin(&mut self, from: Source<'_>) -> bool {
        let Some(used) = cpu_time(from) else { return false };
        self.used = used;
        if used.saturating_sub(self.sampled) > Account::TICK {
            let Some(samples) = samples(from) else { return false };
            (self.samples, self.sampled) = (samples, used);
        }
        true
    }
}

fn samples(from: Source<'_>) -> Option<(u64, u64)> {
    let text = from.read("cpuacct.stat").ok()?;
    field(&text, "user").zip(field(&text, "system"))
}

/// Of samples, unlike their sum, which is what the scheduler counted, only the proportion is
/// used, as the kernel does for a process (cputime_adjust). Without a sample PID 1 knows better.
fn divided(used: Option<Duration>, (user, system): (u64, u64)) -> Option<(Duration, Duration)> {
    let used = used.filter(|_| user + system > 0)?;
    let part = used.as_nanos() * u128::from(user) / u128::from(user + system);
    let user = Duration::from_nanos(part as u64);
    Some((user, used - user))
}

/// What [`count`] counts of time, undivided.
pub(super) fn cpu_time(from: Source<'_>) -> Option<Duration> {
    from.number(CPU_COUNTER.0).map(Duration::from_nanos)
}

/// What [`count`] counts of limits that stood in the way.
pub(super) fn events(from: Source<'_>, uses: u8, counters: &mut Counters) {
    if uses & controller::CPU != 0 {
        counters.throttled = from.read("cpu.stat").ok().and_then(|text| field(&text, "throttled_time")).map(Duration::from_nanos);
    }
    if uses & controller::MEMORY != 0 {
        counters.oom_kills = from.read("memory.oom_control").ok().and_then(|text| field(&text, "oom_kill"));
    }
    if uses & controller::PIDS != 0 {
        counters.fork_failures = from.read("pids.events").ok().and_then(|text| field(&text, "max"));
    }
}
