//! Processes of the machine, as /proc shows them.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

/// A process that can't be mistaken for a later one of the same number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    pub name: String,
    began: u64,
}

/// The process of that number, unless it's dead. A zombie is: whose child it was
/// decides how long it's shown.
pub fn find(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): the name stands in parentheses and may hold any character.
    let (name, rest) = (stat.split_once('(')?.1.rsplit_once(')')?.0, stat.rsplit_once(')')?.1);
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if matches!(fields[0], "Z" | "X") {
        return None;
    }
    Some(Process { pid, parent: fields[1].parse().ok()?, name: name.into(), began: fields[19].parse().ok()? })
}

pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(find).collect()
}

pub fn children(parent: u32) -> Vec<Process> {
    all().into_iter().filter(|p| p.parent == parent).collect()
}

/// Children, their children, and so on.
pub fn descendants(ancestor: u32) -> Vec<Process> {
    let all = all();
    let mut known = BTreeSet::from([ancestor]);
    // Parents aren't always older numbers, so until nothing is new.
    while let Some(more) = all.iter().find(|p| known.contains(&p.parent) && !known.contains(&p.pid)) {
        known.insert(more.pid);
    }
    all.into_iter().filter(|p| p.pid != ancestor && known.contains(&p.pid)).collect()
}

/// Of an init, without the process that makes network namespaces ahead, and the outer and first
/// process of a sandbox to come.
pub fn sandboxes(processes: Vec<Process>) -> Vec<Process> {
    processes.into_iter().filter(|p| !["cofferdam-net", "cofferdam-next", "cofferdam-outer"].contains(&&*p.name)).collect()
}

/// Processes with this text in their command line.
pub fn marked(marker: &str) -> Vec<Process> {
    let has = |p: &Process| {
        let line = fs::read(format!("/proc/{}/cmdline", p.pid)).unwrap_or_default();
        line.windows(marker.len()).any(|window| window == marker.as_bytes())
    };
    all().into_iter().filter(has).collect()
}

/// Those of the list that still live.
pub fn alive(processes: &[Process]) -> Vec<Process> {
    processes.iter().filter(|p| find(p.pid).is_some_and(|now| now.began == p.began)).cloned().collect()
}

/// The inits that the library started for a host process.
pub fn inits(host: u32) -> Vec<Process> {
    children(host).into_iter().filter(|p| p.name == "cofferdam-init").collect()
}

/// A number of seconds to sleep that nobody else sleeps: marks a command line.
pub fn marker() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("98765.{}{:03}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Asks until it's so; says what was expected when the time is over.
#[track_caller]
pub fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The most memory that this process has at once during something, in KiB, its program
/// and libraries included. Only for a process of its own: other tests would count.
pub fn peak_during(what: impl FnOnce()) -> u64 {
    fs::write("/proc/self/clear_refs", "5").expect("the peak can be reset");
    what();
    let status = fs::read_to_string("/proc/self/status").expect("it's readable");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    peak.trim().trim_end_matches(" kB").parse().expect("a number")
}
