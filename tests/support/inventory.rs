//! What a host has at a moment, counted: whatever grows from run to run is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::processes::{children, inits};

/// Everything that runs could leave, counted.
pub fn inventory() -> BTreeMap<String, usize> {
    let count = |path: PathBuf| fs::read_dir(path).map_or(0, Iterator::count);
    let lines = |path: PathBuf| fs::read_to_string(path).map_or(0, |text| text.lines().count());
    let own = std::process::id();
    let mut all = BTreeMap::from([
        ("descriptors".into(), count("/proc/self/fd".into())),
        ("mounts".into(), lines("/proc/self/mountinfo".into())),
        ("threads".into(), count("/proc/self/task".into())),
        ("children".into(), children(own).len()),
        ("temporary files".into(), count(std::env::temp_dir())),
        ("files in /dev/shm".into(), ours_in("/dev/shm")),
        ("files in /tmp".into(), ours_in("/tmp")),
        ("files in /run/cofferdam".into(), count("/run/cofferdam".into())),
        ("control groups".into(), groups().len()),
        ("claims on ids".into(), claims()),
    ]);
    for init in inits(own) {
        let proc = PathBuf::from(format!("/proc/{}", init.pid));
        // Network namespaces that serve again wait there, so many at most.
        let (networks, others): (Vec<PathBuf>, Vec<PathBuf>) =
            descriptors(init.pid).into_iter().partition(|link| link.to_string_lossy().starts_with("net:["));
        all.insert("descriptors of init".into(), others.len());
        all.insert("network namespaces of init beyond twenty".into(), networks.len().saturating_sub(20));
        all.insert("mounts of init".into(), lines(proc.join("mountinfo")));
        all.insert("processes below init".into(), children(init.pid).len());
    }
    all
}

/// Files with our name that aren't those of some test's.
fn ours_in(directory: &str) -> usize {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    const TESTS: [&str; 3] = ["cofferdam-test-", "cofferdam-tar-", "cofferdam-fuzz-"];
    let ours = |name: &OsString| {
        let name = name.to_string_lossy();
        name.contains("cofferdam") && !TESTS.iter().any(|prefix| name.starts_with(prefix))
    };
    names.filter(ours).count()
}

/// Where groups of ours would be: below the one that we're in, in each hierarchy.
pub fn own_groups() -> Vec<PathBuf> {
    let (groups, mounts) =
        (fs::read_to_string("/proc/self/cgroup").unwrap_or_default(), fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    let points = mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let paths: Vec<&str> = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
    let all = points.flat_map(|point| paths.iter().map(move |path| Path::new(point).join(path.trim_start_matches('/'))));
    let mut all: Vec<PathBuf> = all.filter(|path| path.is_dir()).collect();
    all.sort();
    all.dedup();
    all
}

/// Names of the directories of a host's groups, of which init has descriptors.
pub fn homes_of(host: u32) -> BTreeSet<OsString> {
    let links = inits(host).into_iter().flat_map(|init| descriptors(init.pid));
    let homes = links.filter_map(|link| link.file_name().map(OsString::from));
    homes.filter(|name| name.to_string_lossy().starts_with("cofferdam-")).collect()
}

/// What a process's descriptors are of, as far as we may know.
fn descriptors(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|fd| fs::read_link(fd.path()).ok()).collect()
}

/// Groups of this host's: of all its inits that have been [noted](note_homes).
fn groups() -> Vec<PathBuf> {
    let homes = note_homes();
    let ours = own_groups().into_iter().flat_map(|group| directories(&group));
    ours.filter(|(name, _)| homes.contains(name)).flat_map(|(_, path)| with_all_below(path)).collect()
}

/// Takes note of the homes of this host's inits, for what is left of them when they are
/// dead; all that are known.
pub fn note_homes() -> BTreeSet<OsString> {
    static KNOWN: Mutex<BTreeSet<OsString>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock().unwrap_or_else(|e| e.into_inner());
    known.extend(homes_of(std::process::id()));
    known.clone()
}

fn with_all_below(directory: PathBuf) -> Vec<PathBuf> {
    let below = directories(&directory).into_iter().flat_map(|(_, path)| with_all_below(path));
    below.chain([directory.clone()]).collect()
}

fn directories(below: &Path) -> Vec<(OsString, PathBuf)> {
    let entries = fs::read_dir(below).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| (e.file_name(), e.path())).collect()
}

/// Ranges of ids that this process has locked.
fn claims() -> usize {
    let infos = fs::read_dir("/proc/self/fdinfo").expect("fdinfo").flatten();
    infos.map(|info| fs::read_to_string(info.path()).unwrap_or_default().matches("OFDLCK").count()).sum()
}

/// Waits until there's nothing more of anything than there was.
#[track_caller]
pub fn nothing_more_than(before: &BTreeMap<String, usize>) {
    // Others may have files and groups for a moment where we look too, and init the
    // socket through which it has just answered; what is lost stays.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let after = inventory();
        let more: Vec<_> = after.iter().filter(|(what, n)| before.get(*what).is_none_or(|b| b < n)).collect();
        if more.is_empty() {
            return;
        }
        let of_inits = || inits(std::process::id()).iter().map(|init| descriptors(init.pid)).collect::<Vec<_>>();
        assert!(Instant::now() < deadline, "{more:?} instead of {before:?}; groups {:?}; descriptors of init {:?}", groups(), of_inits());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Memory of a process that's in use and not on disk only, in KiB.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
