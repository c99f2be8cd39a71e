//! Control groups: limits for a whole tree of processes, and what it used.
//!
//! One group per sandbox, made fresh or as good as new (`spare.rs`), in every hierarchy that
//! has something to offer: a v2 tree with controllers has it all; v1 has one hierarchy per controller; on a
//! hybrid machine the v2 tree beside them, although without controllers, can still count
//! CPU time where v1 doesn't. `place.rs` finds where groups may be made, `remedy.rs` says what helps
//! where they may not, `v1.rs` and `v2.rs` know the names of files.
//!
//! The host makes the group, sets its limits and reads every one of them, ahead of
//! the run (`ahead.rs`) or while its sandbox is being set up, and passes descriptors on: the workload's process
//! joins by writing `0` to its own membership file, last before it gives up its
//! privileges. That is cheap on v1, where moving another process by pid waits for a grace
//! period of milliseconds; it leaves no moment without limits; and init and PID 1 stay
//! outside, where the out-of-memory killer of the group can't take them. init removes the
//! group when its processes are gone, also when the host is; those that
//! serve again are the host's to remove.
//!
//! cgroups-rs doesn't serve for this: it hard-codes its mount point, looks at the
//! root's controllers instead of the subtree's, and returns success for limits that it
//! did not set. It's the independent reader in our tests instead.

mod ahead;
mod command;
mod files;
mod limits;
pub(crate) mod place;
mod remedy;
mod spare;
mod turns;
mod v1;
mod v2;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::{Error, ErrorKind, Result, errno_text, exhaustion_hint, is_exhaustion};
use crate::probe::Layer;
pub(crate) use ahead::Ahead;
pub(crate) use command::{CommandGroup, Handles};
use files::{Open, Setting, Source, make_directory, open, read};
use limits::controller;
pub(crate) use limits::{CpuSet, Limits};
pub(crate) use place::{Hierarchy, Places};
pub(crate) use turns::Turns;

/// The group of one sandbox.
#[derive(Debug)]
pub(crate) struct Group {
    places: Arc<Places>,
    number: u64,
    /// Hierarchies that it's in or will be, by index among the places, and its uses there.
    chosen: Vec<(usize, u8)>,
    /// One directory for each, once made.
    members: Vec<Member>,
    /// Layers that could not be had and were only preferred.
    pub(crate) missing: u64,
    /// Set when init has been told of the group and will remove it.
    handed_over: bool,
    limits: Limits,
    /// Made, with its limits.
    ready: bool,
    /// See `spare.rs`.
    by_turns: bool,
    /// A sandbox has been asked for that may join it.
    told: bool,
    /// See [`keep_counters_open`](Self::keep_counters_open).
    open: Option<Open>,
    /// Its commands come one after the other.
    takes_turns: bool,
    /// And its peak of memory is each one's.
    sets_peak_back: bool,
}

#[derive(Debug)]
struct Member {
    /// Index among the places.
    hierarchy: usize,
    directory: OwnedFd,
    /// What it's used for here.
    uses: u8,
    /// Where the command is, if not in the group itself.
    inner: Option<OwnedFd>,
    /// Files of the directory that stay open.
    kept: Vec<(&'static str, File)>,
    /// In its name.
    number: u64,
    /// What v1 had counted there before.
    account: v1::Account,
    /// What the sandbox needs of it, as long as it may be sent.
    doors: Doors,
    /// See `spare.rs`.
    equipped: Option<Open>,
    /// Its limits have been read already.
    renewed: bool,
}

/// Descriptors that PID 1 gets.
#[derive(Debug, Default)]
struct Doors {
    join: Option<OwnedFd>,
    cpu: Option<OwnedFd>,
    /// On v1: the event and the count.
    oom: Option<[OwnedFd; 2]>,
}

impl Member {
    fn new(hierarchy: usize, directory: OwnedFd, uses: u8, number: u64) -> Member {
        Member {
            hierarchy,
            directory,
            uses,
            inner: None,
            kept: Vec::new(),
            number,
            account: v1::Account::default(),
            doors: Doors::default(),
            equipped: None,
            renewed: false,
        }
    }

    fn source(&self) -> Source<'_> {
        Source { directory: &self.directory, kept: &self.kept }
    }

    /// Those of the files that are for what it's used for.
    fn keep_open(&mut self, files: &[(u8, &'static str)]) {
        for (_, file) in files.iter().filter(|(controller, _)| self.uses & controller != 0) {
            if self.kept.iter().all(|(name, _)| name != file)
                && let Ok(opened) = open(&self.directory, file, OFlag::O_RDONLY)
            {
                self.kept.push((file, opened.into()));
            }
        }
    }
}

/// Name of a group below one with limits, in which its command is; init knows it too.
const INNER: &str = "cmd-0";

/// Which descriptors the sandbox needs of its group, in this order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// So many files that a process joins by writing `0`.
    pub(crate) join: usize,
    /// A counter of CPU time: how many nanoseconds its unit is.
    pub(crate) cpu: Option<u64>,
    /// On v1: an eventfd that tells of an out-of-memory, and a file that counts kills.
    pub(crate) oom: bool,
}

/// What a group counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) cpu: Option<Duration>,
    pub(crate) user: Option<Duration>,
    pub(crate) system: Option<Duration>,
    pub(crate) throttled: Option<Duration>,
    pub(crate) peak_memory: Option<u64>,
    /// What's left of files that were read and written, without tmpfs.
    pub(crate) page_cache: Option<u64>,
    pub(crate) oom_kills: Option<u64>,
    /// The group's own limit stood in the way at least once.
    pub(crate) limit_hits: Option<u64>,
    pub(crate) peak_processes: Option<u64>,
    /// fork was refused this often.
    pub(crate) fork_failures: Option<u64>,
}

impl Group {
    /// Chooses where a group with these limits will be. `prefer` says which layers may be
    /// missing.
    pub(crate) fn choose(places: &Arc<Places>, number: u64, limits: Limits, prefers: impl Fn(Layer) -> bool) -> Result<Group> {
        let mut missing = 0;
        for (need, layer) in limits.needs() {
            if places.with(need).is_none() {
                if !prefers(layer) {
                    return Err(Error::unsupported(format!("cannot set the {layer}: {}", places.why_not(need))).about(Some(layer)));
                }
                missing |= layer.bit();
            }
        }
        let mut chosen: Vec<(usize, u8)> = Vec::new();
        for wanted in controller::ALL {
            if wanted == controller::CPU && limits.cpus.is_none() || wanted == controller::CPUSET && limits.cpuset.is_none() {
                continue;
            }
            let Some(index) = places.with(wanted) else { continue };
            match chosen.iter_mut().find(|(hierarchy, _)| *hierarchy == index) {
                Some((_, uses)) => *uses |= wanted,
                None => chosen.push((index, wanted)),
            }
        }
        Ok(Group::unmade(places.clone(), number, chosen, missing, limits))
    }

    fn unmade(places: Arc<Places>, number: u64, chosen: Vec<(usize, u8)>, missing: u64, limits: Limits) -> Group {
        Group {
            places,
            number,
            chosen,
            members: Vec::new(),
            missing,
            handed_over: false,
            limits,
            ready: false,
            by_turns: false,
            told: false,
            open: None,
            takes_turns: false,
            sets_peak_back: false,
        }
    }

    /// Another one like it, still to be made.
    fn another(&self, number: u64) -> Group {
        let mut other = Group::unmade(self.places.clone(), number, self.chosen.clone(), self.missing, self.limits);
        other.by_turns = self.by_turns;
        other
    }

    /// Whether it can take that one's part.
    fn is_like(&self, other: &Group) -> bool {
        Arc::ptr_eq(&self.places, &other.places)
            && (self.limits, &self.chosen, self.missing, self.by_turns) == (other.limits, &other.chosen, other.missing, other.by_turns)
    }

    /// Makes it, if that hasn't been done ahead, and sets its limits.
    pub(crate) fn make(&mut self) -> Result<()> {
        if self.ready {
            return Ok(());
        }
        for (hierarchy, uses) in self.chosen.clone() {
            let last = self.members.len();
            let made = || Ok(Member::new(hierarchy, self.make_in(hierarchy)?, uses, self.number));
            let member = self.take_spare(hierarchy, uses).map_or_else(made, Ok)?;
            self.lend(&member);
            // Known from here on, whatever fails.
            self.members.push(member);
            if self.needs_inner(hierarchy, uses) {
                self.members[last].inner = Some(self.make_inner(hierarchy, &self.members[last].directory)?);
            }
        }
        self.members.iter().filter(|member| !member.renewed).try_for_each(|member| self.set(member))?;
        self.open_doors()?;
        self.equip();
        self.ready = true;
        Ok(())
    }

    fn name(number: u64) -> String {
        format!("box-{number}")
    }

    /// A fresh directory: one that exists is never taken over.
    fn make_in(&self, index: usize) -> Result<OwnedFd> {
        self.catch_up();
        let (hierarchy, name) = (&self.places.hierarchies[index], Group::name(self.number));
        make_directory(&hierarchy.home, &name).map_err(|errno| {
            let kind = if matches!(errno, Errno::ENOSPC | Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE) {
                ErrorKind::Exhausted
            } else {
                ErrorKind::Setup
            };
            let hint = match errno {
                Errno::ENOSPC | Errno::EAGAIN => Some("the limit on groups is reached (cgroup.max.descendants)"),
                _ => exhaustion_hint(errno as i32),
            };
            Error::failed(kind, "make the control group", &hierarchy.describe(), errno as i32, hint)
        })
    }

    /// Whether the command has to be kept off the group that limits it. Its cgroup
    /// namespace begins where it is; a workload that may mount would find the files of its
    /// own limits there, and unless root runs it they belong to an id that it can have.
    /// It's not for nothing (some 100 us), so not where nobody may mount. On v1, where an
    /// ordinary user's groups are rare, the counters of a group leave out those below.
    fn needs_inner(&self, hierarchy: usize, uses: u8) -> bool {
        self.limits.in_reach && self.places.exposed && self.places.hierarchies[hierarchy].v2 && uses & !controller::ACCOUNT != 0
    }

    /// A group below, without controllers and so without limits to change.
    fn make_inner(&self, hierarchy: usize, directory: &OwnedFd) -> Result<OwnedFd> {
        make_directory(directory, INNER).map_err(|errno| {
            let what = self.places.hierarchies[hierarchy].describe();
            let hint = exhaustion_hint(errno as i32).filter(|_| errno != Errno::EAGAIN).or(Some("cgroup.max.depth may be reached"));
            Error::failed(ErrorKind::Exhausted, "make a control group below", &what, errno as i32, hint)
        })
    }

    fn set(&self, member: &Member) -> Result<()> {
        let hierarchy = &self.places.hierarchies[member.hierarchy];
        if !hierarchy.v2 && member.uses & controller::CPUSET != 0 {
            v1::inherit_cpuset(&hierarchy.home, &member.directory).map_err(|e| Error::io("set", "the CPUs of a control group", e))?;
        }
        for setting in self.settings(member) {
            setting.apply(&member.directory).map_err(|error| {
                let (layer, place) = (setting.layer, hierarchy.describe());
                // It's no want of the layer.
                if error.raw_os_error().is_some_and(is_exhaustion) {
                    return Error::io("set", &format!("the {layer} of {place}"), error);
                }
                let why = errno_text(&error);
                Error::new(ErrorKind::Unsupported, format!("cannot set the {layer}: {}: {why} (in {place})", setting.file))
                    .about(Some(layer))
            })?;
        }
        match self.limits.cpuset {
            Some(wanted) if member.uses & controller::CPUSET != 0 => {
                let file = if hierarchy.v2 { v2::EFFECTIVE_CPUS } else { v1::EFFECTIVE_CPUS };
                let effective = read(&member.directory, file).map_err(|e| Error::io("read back", "the CPUs of a control group", e))?;
                if effective.trim() == wanted.list() {
                    return Ok(());
                }
                let layer = Layer::CpuPinning;
                let text = format!("cannot set the {layer} to CPUs {}: only {} can be had here", wanted.list(), effective.trim());
                Err(Error::unsupported(text).about(Some(layer)))
            }
            _ => Ok(()),
        }
    }

    fn settings(&self, member: &Member) -> Vec<Setting> {
        let v2 = self.places.hierarchies[member.hierarchy].v2;
        if v2 { v2::settings(&self.limits, member.uses) } else { v1::settings(&self.limits, member.uses) }
    }

    /// What the sandbox will need of it.
    pub(crate) fn needs(&self) -> Needs {
        let used =
            |wanted: u8| self.chosen.iter().find(|(_, uses)| uses & wanted != 0).map(|(index, _)| self.places.hierarchies[*index].v2);
        // The counter is only read where there's a limit.
        let cpu = used(controller::ACCOUNT).filter(|_| self.limits.cpu_account);
        Needs {
            join: self.chosen.len(),
            cpu: cpu.map(|v2| if v2 { v2::CPU_COUNTER.1 } else { v1::CPU_COUNTER.1 }),
            oom: used(controller::MEMORY) == Some(false) && self.limits.memory.is_some() && !self.limits.spare_others,
        }
    }

    /// The descriptors that [`needs`](Self::needs) promised, until they are [`sent`](Self::sent).
    pub(crate) fn handles(&self) -> Vec<BorrowedFd<'_>> {
        let needs = self.needs();
        let doors = || self.members.iter().map(|member| &member.doors);
        let mut handles: Vec<BorrowedFd<'_>> = doors().filter_map(|doors| doors.join.as_ref()).map(AsFd::as_fd).collect();
        handles.extend(doors().filter_map(|doors| doors.cpu.as_ref()).filter(|_| needs.cpu.is_some()).map(AsFd::as_fd));
        handles.extend(self.oom_handles());
        handles
    }

    /// Those of [`Needs::oom`].
    pub(crate) fn oom_handles(&self) -> Vec<BorrowedFd<'_>> {
        let all = self.members.iter().filter_map(|member| member.doors.oom.as_ref()).filter(|_| self.needs().oom);
        all.flatten().map(AsFd::as_fd).collect()
    }

    /// Nobody will ask for them again.
    pub(crate) fn sent(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.equipped.is_none()) {
            member.doors = Doors::default();
        }
    }

    fn open_doors(&mut self) -> Result<()> {
        let failed = |what: &'static str| move |e: io::Error| Error::io("open", what, e);
        let needs = self.needs();
        for member in &mut self.members {
            let v2 = self.places.hierarchies[member.hierarchy].v2;
            let join = if v2 { v2::JOIN } else { v1::JOIN };
            let joined = member.inner.as_ref().unwrap_or(&member.directory);
            if member.doors.join.is_none() {
                member.doors.join = Some(open(joined, join, OFlag::O_WRONLY).map_err(failed(join))?);
            }
            if member.uses & controller::ACCOUNT != 0 && needs.cpu.is_some() && member.doors.cpu.is_none() {
                let (file, _) = if v2 { v2::CPU_COUNTER } else { v1::CPU_COUNTER };
                member.doors.cpu = Some(open(&member.directory, file, OFlag::O_RDONLY).map_err(failed(file))?);
            }
            if member.uses & controller::MEMORY != 0 && needs.oom && member.doors.oom.is_none() {
                member.doors.oom = Some(v1::watch_oom(&member.directory).map_err(failed("the out-of-memory notice"))?);
            }
        }
        Ok(())
    }

    /// Opens once what [`counters`](Self::counters) reads: to open and close a file of a group
    /// takes three times as long as to read it, and a caller waits for that. Not for many
    /// groups: descriptors are dearer then.
    pub(crate) fn keep_counters_open(&mut self) {
        if self.opens() {
            self.keep_open(&v1::EVENTS, &v2::EVENTS);
            self.keep_open(&v1::COUNTERS, &v2::COUNTERS);
        }
    }

    /// The same for [`events`](Self::events).
    pub(crate) fn keep_events_open(&mut self) {
        if self.opens() {
            self.keep_open(&v1::EVENTS, &v2::EVENTS);
        }
    }

    fn opens(&mut self) -> bool {
        let first = self.open.is_none();
        self.open = self.open.take().or_else(Open::group);
        first && self.open.is_some()
    }

    fn keep_open(&mut self, of_v1: &[(u8, &'static str)], of_v2: &[(u8, &'static str)]) {
        for member in &mut self.members {
            let files = if self.places.hierarchies[member.hierarchy].v2 { of_v2 } else { of_v1 };
            member.keep_open(files);
        }
    }

    /// The number under which init knows it.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Other limits from now on; what a hierarchy can't do is an error, as at the start.
    pub(crate) fn update(&mut self, limits: Limits) -> Result<()> {
        let before = std::mem::replace(&mut self.limits, limits);
        // On v1 one of two limits of memory must not be above the other at any time, so
        // the order depends on the direction: the first attempts may fail.
        for member in &self.members {
            for setting in self.settings(member).iter().rev() {
                let _ = setting.apply(&member.directory);
            }
        }
        let changed = self.members.iter().try_for_each(|member| self.set(member));
        if changed.is_err() {
            self.limits = before;
        }
        changed
    }

    /// From now on init removes it: when the sandbox is gone and we have let go of it.
    pub(crate) fn hand_over(&mut self) {
        (self.handed_over, self.told) = (true, true);
    }

    /// init may have forgotten the sandbox before there was a group.
    pub(crate) fn take_back(&mut self) {
        self.handed_over = false;
    }

    /// The hierarchies where init is to remove it, a bit each.
    pub(crate) fn hierarchies(&self) -> u64 {
        let removed = self.chosen.iter().filter(|(hierarchy, uses)| !self.is_turn(*hierarchy, *uses));
        removed.fold(0, |all, (hierarchy, _)| all | 1 << hierarchy)
    }

    /// Whether the kernel counts processes in it.
    pub(crate) fn limits_processes(&self) -> bool {
        self.chosen.iter().any(|(_, uses)| uses & controller::PIDS != 0)
    }

    /// What it counted so far.
    pub(crate) fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for member in &self.members {
            if self.places.hierarchies[member.hierarchy].v2 {
                v2::count(member.source(), &self.limits, member.uses, &mut counters);
            } else {
                v1::count(member.source(), &self.limits, member.uses, &member.account, &mut counters);
            }
        }
        counters
    }
}

impl Drop for Group {
    /// One that no sandbox was started in is ours to remove; it's empty. So are those parts
    /// that serve by turns.
    fn drop(&mut self) {
        if !self.places.is_ours() {
            return;
        }
        // One that was made to its end, and that nobody was ever told of.
        let unused = self.ready && !self.told;
        for member in std::mem::take(&mut self.members) {
            if self.is_turn(member.hierarchy, member.uses) {
                self.part_with(member, unused);
            } else if !self.handed_over {
                if member.inner.is_some() {
                    let _ = unlinkat(&member.directory, INNER, UnlinkatFlags::RemoveDir);
                }
                self.places.remove(vec![(member.hierarchy, member.number)]);
            }
        }
    }
}

impl Places {
    fn with(&self, wanted: u8) -> Option<usize> {
        self.hierarchies.iter().position(|h: &Hierarchy| h.controllers & wanted != 0)
    }
}
