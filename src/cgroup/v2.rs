//! Names and formats of cgroup v2 files (the kernel's admin-guide/cgroup-v2).

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::files::{Setting, Source, field, page_cache, read, same, same_pages, write};
use super::limits::{bandwidth, controller};
use super::{Counters, Limits};
use crate::probe::Layer;

/// Joined by writing `0`.
pub(super) const JOIN: &str = "cgroup.procs";
/// Ends everything in the group, atomically.
pub(super) const KILL: &str = "cgroup.kill";
/// Starts with `usage_usec`.
pub(super) const CPU_COUNTER: (&str, u64) = ("cpu.stat", 1000);

pub(super) fn settings(limits: &Limits, uses: u8) -> Vec<Setting> {
    let mut settings = Vec::new();
    if uses & controller::MEMORY != 0
        && let Some(bytes) = limits.memory
    {
        let memory = |file, value: String, holds, optional| Setting { file, value, holds, layer: Layer::MemoryLimit, optional };
        settings.push(memory("memory.max", bytes.to_string(), same_pages, false));
        // Without this the limit would only make it swap. Absent where the kernel
        // accounts no swap, which then isn't there to be used.
        settings.push(memory("memory.swap.max", "0".into(), same, true));
        settings.push(memory("memory.oom.group", if limits.spare_others { "0" } else { "1" }.into(), same, false));
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
        settings.push(Setting {
            file: "cpu.max",
            value: format!("{quota} {period}"),
            holds: same,
            layer: Layer::CpuBandwidth,
            optional: false,
        });
    }
    if uses & controller::CPUSET != 0
        && let Some(cpus) = limits.cpuset
    {
        settings.push(Setting { file: "cpuset.cpus", value: cpus.list(), holds: same, layer: Layer::CpuPinning, optional: false });
    }
    settings
}

/// What is really in force: a set that its parent doesn't have falls back to the
/// parent's.
pub(super) const EFFECTIVE_CPUS: &str = "cpuset.cpus.effective";

/// Freezes or thaws a group and waits, for a bounded time, until it is. What hangs in the
/// kernel freezes when it comes back.
pub(super) fn freeze(directory: &OwnedFd, frozen: bool) -> io::Result<()> {
    write(directory, "cgroup.freeze", if frozen { "1" } else { "0" })?;
    let deadline = Instant::now() + Duration::from_secs(1);
    let wanted = u64::from(frozen);
    while field(&read(directory, "cgroup.events")?, "frozen") != Some(wanted) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Files that [`events`] reads of most groups, and those that [`count`] reads of all beside
/// them.
pub(super) const EVENTS: [(u8, &str); 2] = [(controller::MEMORY, "memory.events"), (controller::PIDS, "pids.events")];
pub(super) const COUNTERS: [(u8, &str); 3] =
    [(controller::ACCOUNT, CPU_COUNTER.0), (controller::MEMORY, "memory.peak"), (controller::PIDS, "pids.peak")];

pub(super) fn count(from: Source<'_>, limits: &Limits, uses: u8, counters: &mut Counters) {
    if uses & controller::ACCOUNT != 0
        && let Ok(text) = from.read("cpu.stat")
    {
        let micros = |key| field(&text, key).map(Duration::from_micros);
        counters.cpu = micros("usage_usec");
        counters.user = micros("user_usec");
        counters.system = micros("system_usec");
        // On a hybrid machine the v1 group knows.
        counters.throttled = micros("throttled_usec").or(counters.throttled);
    }
    if uses & controller::MEMORY != 0 {
        counters.peak_memory = from.number("memory.peak");
        if limits.memory.is_some() {
            counters.page_cache = page_cache(from, counters.peak_memory, "file", "shmem");
        }
    }
    if uses & controller::PIDS != 0 {
        counters.peak_processes = from.number("pids.peak");
    }
    // Time has been counted, what was throttled among it.
    let rest = if uses & controller::ACCOUNT == 0 { uses } else { uses & !controller::CPU };
    events(from, rest, counters);
}

/// What [`count`] counts of time, undivided.
pub(super) fn cpu_time(from: Source<'_>) -> Option<Duration> {
    from.read(CPU_COUNTER.0).ok().and_then(|text| field(&text, "usage_usec")).map(Duration::from_micros)
}

/// What [`count`] counts of limits that stood in the way.
pub(super) fn events(from: Source<'_>, uses: u8, counters: &mut Counters) {
    if uses & controller::CPU != 0
        && let Ok(text) = from.read("cpu.stat")
    {
        counters.throttled = field(&text, "throttled_usec").map(Duration::from_micros).or(counters.throttled);
    }
    if uses & controller::MEMORY != 0
        && let Ok(text) = from.read("memory.events")
    {
        counters.oom_kills = field(&text, "oom_kill");
        counters.limit_hits = field(&text, "oom").zip(field(&text, "max")).map(|(oom, max)| oom + max);
    }
    if uses & controller::PIDS != 0 {
        counters.fork_failures = from.read("pids.events").ok().and_then(|text| field(&text, "max"));
    }
}
