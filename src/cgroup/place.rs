//! Where groups may be made: tried, never inferred.
//!
//! The ladder, for each controller that a limit may need:
//!
//! 1. cgroup v2: the group that this process is in, then its parents, the first in
//!    which a directory can be made that has the controller. (A group with processes
//!    can't hand controllers on, so a process alone in its delegated group finds its
//!    place one level up, if that's delegated too; the root group may.)
//! 2. cgroup v1: the group of this process in the controller's hierarchy, and its
//!    parents.
//! 3. cgroup v2 without controllers, as on hybrid machines: CPU time still.
//! 4. None: the limit is an error with its remedy, or left out if the recipe prefers.
//!
//! In each place this process has a directory, `cofferdam-<number>`, locked while it
//! or its init lives. One whose lock is free belongs to the dead and is swept.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::files::{read, write};
use super::limits::controller;
use super::spare::Spares;

/// A directory of ours in one hierarchy.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    pub(crate) v2: bool,
    /// What groups below [`home`](Self::home) can do.
    pub(crate) controllers: u8,
    /// Where `home` was made.
    base: OwnedFd,
    /// This process's directory, locked.
    pub(crate) home: OwnedFd,
    path: PathBuf,
}

impl Hierarchy {
    pub(crate) fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

/// All places of this process.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) hierarchies: Vec<Hierarchy>,
    /// The v2 group that this process is in, if it's in view.
    pub(crate) unified: Option<PathBuf>,
    /// The number in the name of our directories.
    pub(crate) nonce: u64,
    /// What stood in the way, for errors.
    pub(super) obstacles: Vec<Obstacle>,
    /// Controllers that v1 hierarchies hold, which can't be had elsewhere.
    held_by_v1: u8,
    /// The process that made them. A forked child's copy means nothing.
    owner: u32,
    /// Who owns our groups exists in sandboxes too.
    pub(super) exposed: bool,
    pub(super) spares: Spares,
}

/// Why a group gave no place, or one with less than all controllers.
#[derive(Debug)]
pub(super) struct Obstacle {
    pub(super) group: PathBuf,
    /// What it was about.
    pub(super) controllers: u8,
    pub(super) cause: Cause,
}

#[derive(Debug)]
pub(super) enum Cause {
    /// No directory can be made there. On v2 it matters where the root group is.
    Refused { v2: Option<PathBuf>, error: io::Error },
    /// It has processes, so it can't hand controllers on (cgroups(7), "no internal
    /// processes").
    Occupied,
    /// It has no such controller itself.
    Without,
}

/// A mounted hierarchy and our group in it.
struct Mounted {
    v2: bool,
    controllers: u8,
    /// Path of the mount point.
    point: PathBuf,
    /// Our group, below the mount point.
    own: PathBuf,
}

impl Places {
    /// Looks for places, sweeps what dead hosts left there, and makes ours. Unless we're
    /// `privileged` our own id is one of the sandboxes' ids.
    pub(crate) fn find(privileged: bool) -> Places {
        let nonce = nonce();
        let (owner, exposed) = (std::process::id(), !privileged);
        let mut places = Places {
            hierarchies: Vec::new(),
            unified: None,
            nonce,
            obstacles: Vec::new(),
            held_by_v1: 0,
            owner,
            exposed,
            spares: Spares::default(),
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let groups = fs::read_to_string("/proc/thread-self/cgroup").unwrap_or_default();
        let mut covered = 0;
        let mounted = mounted(&mounts, &groups);
        places.held_by_v1 = mounted.iter().filter(|m| !m.v2).fold(0, |all, m| all | m.controllers);
        places.unified = mounted.iter().find(|m| m.v2).map(|m| join(&m.point, &m.own));
        for mounted in mounted {
            let useful = mounted.v2 || mounted.controllers & !covered != 0;
            if !useful {
                continue;
            }
            match places.settle(&mounted, covered) {
                Ok(hierarchy) if hierarchy.controllers & !covered != 0 => {
                    covered |= hierarchy.controllers;
                    places.hierarchies.push(hierarchy);
                }
                Ok(unused) => remove_home(&unused.base, nonce),
                Err(Nowhere) => {}
            }
        }
        places
    }

    /// Descriptors by which init removes our groups: base and home of each place.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.hierarchies.iter().flat_map(|h| [h.base.as_fd(), h.home.as_fd()]).collect()
    }

    /// Not a forked child's copy.
    pub(crate) fn is_ours(&self) -> bool {
        self.owner == std::process::id()
    }

    /// The first group upwards from ours where a directory can be made.
    fn settle(&mut self, mounted: &Mounted, covered: u8) -> Result<Hierarchy, Nowhere> {
        let mut relative = Some(mounted.own.as_path());
        let mut best: Option<Hierarchy> = None;
        while let Some(group) = relative {
            let path = join(&mounted.point, group);
            match self.try_at(&path, mounted) {
                Ok(hierarchy) => {
                    if mounted.v2 {
                        self.note_what_lacks(&hierarchy, &path);
                    }
                    // One without controllers: maybe a parent has them.
                    let enough = !mounted.v2 || has_controllers(&hierarchy, covered);
                    let worse = match best {
                        Some(other) if !enough && other.controllers.count_ones() >= hierarchy.controllers.count_ones() => {
                            best = Some(other);
                            Some(hierarchy)
                        }
                        other => {
                            best = Some(hierarchy);
                            other
                        }
                    };
                    if let Some(worse) = worse {
                        remove_home(&worse.base, self.nonce);
                    }
                    if enough {
                        break;
                    }
                }
                Err(error) => {
                    let controllers = if mounted.v2 { !self.held_by_v1 } else { mounted.controllers };
                    let v2 = mounted.v2.then(|| mounted.point.clone());
                    self.obstacles.push(Obstacle { group: path, controllers, cause: Cause::Refused { v2, error } });
                }
            }
            relative = group.parent();
        }
        best.ok_or(Nowhere)
    }

    /// Why a v2 group below `group` has less than all controllers.
    fn note_what_lacks(&mut self, hierarchy: &Hierarchy, group: &Path) {
        let lacking = LIMITS & !hierarchy.controllers & !self.held_by_v1;
        let available = read(&hierarchy.base, "cgroup.controllers").map_or(0, |names| controllers_of(names.split_whitespace()));
        for (controllers, cause) in [(lacking & available, Cause::Occupied), (lacking & !available, Cause::Without)] {
            if controllers != 0 {
                self.obstacles.push(Obstacle { group: group.into(), controllers, cause });
            }
        }
    }

    fn try_at(&self, path: &Path, mounted: &Mounted) -> io::Result<Hierarchy> {
        let base = crate::sys::not_standard(File::open(path)?.into())?;
        if mounted.v2 {
            hand_down(&base);
        }
        sweep(&base, mounted.v2);
        let name = home_name(self.nonce);
        let home = make_home(&base, &name)?;
        let finish = || -> io::Result<u8> {
            let controllers = if mounted.v2 {
                hand_down(&home);
                let enabled = read(&home, "cgroup.subtree_control")?;
                // Every v2 group counts CPU time.
                controllers_of(enabled.split_whitespace()) | controller::ACCOUNT
            } else {
                if mounted.controllers & controller::CPUSET != 0 {
                    super::v1::inherit_cpuset(&base, &home)?;
                }
                mounted.controllers
            };
            // A threaded group, or one in a threaded subtree ("domain invalid"), takes
            // no processes.
            if mounted.v2 && read(&home, "cgroup.type").is_ok_and(|kind| kind.trim_end() != "domain") {
                return Err(io::Error::other("it's in a threaded subtree"));
            }
            Ok(controllers)
        };
        match finish() {
            Ok(controllers) => {
                let path = path.join(name);
                Ok(Hierarchy { v2: mounted.v2, controllers, base, home, path })
            }
            Err(error) => {
                remove_home(&base, self.nonce);
                Err(error)
            }
        }
    }
}

/// No group of a hierarchy is a place; why is among the obstacles.
#[derive(Debug)]
struct Nowhere;

/// What v2 groups have only if it's handed down to them.
const LIMITS: u8 = controller::MEMORY | controller::PIDS | controller::CPU | controller::CPUSET;

fn has_controllers(hierarchy: &Hierarchy, covered: u8) -> bool {
    // Bandwidth is rarely wanted, and not delegated by older systemds.
    const ENOUGH: u8 = controller::MEMORY | controller::PIDS;
    // What v1 hierarchies hold can't be had here.
    hierarchy.controllers & ENOUGH == ENOUGH || covered & ENOUGH == ENOUGH
}

/// Lets children have what this group has.
///
/// Not in a group with processes: it must not have the memory controller enabled
/// below it, and with the others, which can be enabled, it would become the root of a
/// threaded subtree, whose children take no processes (cgroups(7), "domain invalid").
/// Only the root group, which has no type, may have both.
fn hand_down(group: &OwnedFd) {
    let typed = read(group, "cgroup.type").is_ok();
    if typed && read(group, "cgroup.procs").is_ok_and(|processes| !processes.is_empty()) {
        return;
    }
    for controller in ["+memory", "+pids", "+cpu", "+cpuset"] {
        let _ = write(group, "cgroup.subtree_control", controller);
    }
}

impl Drop for Places {
    /// Nobody has a sandbox of this init's any more. If that has ended in order, homes are
    /// empty; if it was killed, this is the last one to know of them.
    fn drop(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        if !self.is_ours() {
            return;
        }
        let until = Instant::now() + PATIENCE;
        for hierarchy in &self.hierarchies {
            remove_dead(&hierarchy.base, &home_name(self.nonce), &hierarchy.home, hierarchy.v2, until);
        }
    }
}

fn home_name(nonce: u64) -> String {
    format!("cofferdam-{nonce}")
}

fn remove_home(base: &OwnedFd, nonce: u64) {
    let _ = unlinkat(base, home_name(nonce).as_str(), UnlinkatFlags::RemoveDir);
}

/// Unlike any other host's at the same time.
fn nonce() -> u64 {
    let mut bytes = [0; 8];
    let random = File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    if random.is_err() {
        bytes = u64::from(std::process::id()).to_le_bytes();
    }
    // Decimal digits that init can write too.
    u64::from_le_bytes(bytes) >> 16
}

/// A directory of ours, locked. Between its making and its locking another host that
/// sweeps may take it for a dead one's, and remove it: then once more.
fn make_home(base: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    const ATTEMPTS: u32 = 100;
    for attempt in 1.. {
        // Closed to others, who could lock it and so keep it from being swept.
        match mkdirat(base, name, Mode::S_IRWXU) {
            Err(Errno::EEXIST) if attempt > 1 => {}
            other => other?,
        }
        match opened_and_locked(base, name) {
            // The lock goes with a copy.
            Ok(home) => return crate::sys::not_standard(home),
            Err(_) if attempt < ATTEMPTS => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => {
                let _ = unlinkat(base, name, UnlinkatFlags::RemoveDir);
                return Err(error);
            }
        }
    }
    unreachable!("the last attempt returns")
}

/// Opens a directory of some host and takes its lock (flock(2)), which lasts as long
/// as this open file: here and, because it's passed on, in init. Whoever has the lock
/// may remove the directory, so after a wait for it the name may mean another.
fn opened_and_locked(base: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let open = || openat(base, name, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let home = File::from(open()?);
    home.try_lock()?;
    if fstat(&home)?.st_ino != fstat(open()?)?.st_ino {
        return Err(Errno::ESTALE.into());
    }
    Ok(home.into())
}

/// Removes directories of hosts that are dead: nobody holds their lock.
fn sweep(base: &OwnedFd, v2: bool) {
    // The next host sweeps too.
    const PATIENCE: Duration = Duration::from_millis(20);
    for name in subdirectories(base) {
        if !name.starts_with("cofferdam-") {
            continue;
        }
        let Ok(home) = opened_and_locked(base, &name) else { continue };
        remove_dead(base, &name, &home, v2, Instant::now() + PATIENCE);
    }
}

/// Removes a home that no init sees to any more, with all groups in it. Their processes
/// may take a moment to be dead, and the kernel one to forget a group that has been removed:
/// until then what is above it is busy.
fn remove_dead(base: &OwnedFd, name: &str, home: &OwnedFd, v2: bool, until: Instant) {
    loop {
        for group in subdirectories(home) {
            if let Ok(directory) = openat(home.as_fd(), group.as_str(), OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
                end_all(&directory, v2);
                for command in subdirectories(&directory) {
                    let _ = unlinkat(directory.as_fd(), command.as_str(), UnlinkatFlags::RemoveDir);
                }
            }
            let _ = unlinkat(home.as_fd(), group.as_str(), UnlinkatFlags::RemoveDir);
        }
        match unlinkat(base, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::EBUSY | Errno::ENOTEMPTY) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            _ => return,
        }
    }
}

/// Kills what is still in a dead host's group.
fn end_all(group: &OwnedFd, v2: bool) {
    if v2 && write(group, "cgroup.kill", "1").is_ok() {
        return;
    }
    // The members are a dead host's workload: its PID 1 died with init, so these
    // are on their way out already.
    for pid in members(group) {
        // By the time that it's open the number may be another process's. If it's still
        // a member's then this is the member, or dead.
        if let Ok(pidfd) = crate::sys::pidfd::of(pid)
            && members(group).contains(&pid)
        {
            let _ = crate::sys::pidfd::kill(pidfd.as_fd());
        }
    }
}

/// Processes in a group; not those of another PID namespace, which are shown as 0.
fn members(group: &OwnedFd) -> Vec<u32> {
    read(group, "cgroup.procs").unwrap_or_default().lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

fn subdirectories(directory: &impl AsFd) -> Vec<String> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(mut directory) = Dir::openat(directory.as_fd(), ".", flags, Mode::empty()) else { return Vec::new() };
    directory
        .iter()
        .flatten()
        .filter(|entry| entry.file_type() == Some(nix::dir::Type::Directory))
        .filter_map(|entry| entry.file_name().to_str().ok().map(String::from))
        .filter(|name| name != "." && name != "..")
        .collect()
}

fn controllers_of<'a>(names: impl Iterator<Item = &'a str>) -> u8 {
    names
        .map(|name| match name {
            "memory" => controller::MEMORY,
            "pids" => controller::PIDS,
            "cpu" => controller::CPU,
            "cpuacct" => controller::ACCOUNT,
            "cpuset" => controller::CPUSET,
            _ => 0,
        })
        .fold(0, |all, one| all | one)
}

/// The hierarchies in `mountinfo` (proc_pid_mountinfo(5)) in which we have a group
/// according to `groups` (cgroups(7)); v2 first, which has all in one.
fn mounted(mountinfo: &str, groups: &str) -> Vec<Mounted> {
    let mut all = Vec::new();
    for line in mountinfo.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(dash) = fields.iter().position(|f| *f == "-") else { continue };
        let (Some(root), Some(point), Some(kind)) = (fields.get(3), fields.get(4), fields.get(dash + 1)) else { continue };
        let options = fields.get(dash + 3).copied().unwrap_or_default();
        let v2 = *kind == "cgroup2";
        if !v2 && *kind != "cgroup" {
            continue;
        }
        let controllers = controllers_of(options.split(','));
        let own = groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (number, names, path) = (parts.next()?, parts.next()?, parts.next()?);
            let ours =
                if v2 { number == "0" && names.is_empty() } else { controllers != 0 && controllers_of(names.split(',')) == controllers };
            ours.then_some(path)
        });
        let Some(own) = own else { continue };
        // The mount may show only a part of the hierarchy, and our group lie
        // elsewhere; its root is what can be reached then.
        let own = Path::new(own).strip_prefix(unescape(root)).unwrap_or(Path::new("")).to_path_buf();
        let climbs = own.components().any(|c| c == std::path::Component::ParentDir);
        let own = if climbs { PathBuf::new() } else { own };
        all.push(Mounted { v2, controllers, point: unescape(point).into(), own });
    }
    all.sort_by_key(|m| !m.v2);
    // A v2 tree without controllers is the last resort: v1 comes first then.
    if all.iter().any(|m| !m.v2 && m.controllers & controller::MEMORY != 0) {
        // Its `cgroup.procs` is joined under a lock for which the first comer after a
        // pause waits some milliseconds; `tasks` of v1 doesn't need it.
        all.sort_by_key(|m| m.v2);
    }
    all
}

/// Mount points have spaces and the like as octal escapes.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn join(point: &Path, group: &Path) -> PathBuf {
    // Joined with nothing it would end with a slash.
    if group.as_os_str().is_empty() { point.into() } else { point.join(group.strip_prefix("/").unwrap_or(group)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_every_layout() {
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        let found = mounted(v2, "0::/user.slice/app.scope\n");
        assert_eq!(found.len(), 1);
        assert_eq!(join(&found[0].point, &found[0].own), Path::new("/sys/fs/cgroup/user.slice/app.scope"));

        let hybrid = "1 0 0:1 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n2 0 0:2 / /cg/memory rw - cgroup cgroup rw,memory\n\
                      3 0 0:3 / /cg/unified rw - cgroup2 cgroup2 rw\n4 0 0:4 / /cg/systemd rw - cgroup cgroup rw,name=systemd";
        let found = mounted(hybrid, "4:name=systemd:/x\n3:memory:/m\n2:cpu,cpuacct:/\n0::/u\n");
        let points: Vec<_> = found.iter().map(|m| join(&m.point, &m.own)).collect();
        assert_eq!(points, [Path::new("/cg/cpu,cpuacct"), Path::new("/cg/memory/m"), Path::new("/cg/unified/u")]);

        // A container's view: the mount shows only our part.
        let part = "5 0 0:5 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let found = mounted(part, "1:memory:/docker/abc\n");
        assert_eq!(join(&found[0].point, &found[0].own), Path::new("/sys/fs/cgroup/memory"));
        assert!(mounted("nonsense", "more nonsense").is_empty());
    }
}
