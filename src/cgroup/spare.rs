//! Groups that serve again, on v1.
//!
//! To make and to remove a group that limits memory takes as long there as a process with
//! all its namespaces: the kernel keeps counters for each processor, and takes a group apart
//! in its work queues. Where a sandbox has one command and ends with it, its groups are
//! taken over by a later one, if nobody can tell: everybody who was in them is dead, nothing
//! ever met the limit, next to nothing is charged any more. The peak is set back, and CPU time
//! is told by difference. The peak of processes can't be set back, so what limits them serves
//! again only after a command that never had more than its first one: that's the least that
//! any has.
//!
//! Limits are written and read back as in a new one. But some keep open what the next one needs
//! of them, and have their limits read, and written only if they are others: to open and close
//! a file of a group takes three times as long as to read it.
//!
//! On v2 there's one group for all, so it's made anew too.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::files::{Open, Source, field, open, write};
use super::limits::controller;
use super::{Counters, Doors, Group, Limits, Member, Places, v1};

/// Those of one process.
#[derive(Debug, Default)]
pub(super) struct Spares(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// In the order in which they became free.
    free: Vec<Spare>,
    /// How many are in use.
    lent: usize,
    /// Hierarchy and number of those that nobody will use and that aren't removed yet.
    busy: Vec<(usize, u64)>,
}

#[derive(Debug)]
struct Spare {
    member: Member,
    /// The limits that it had.
    memory: Option<u64>,
    processes: Option<u32>,
    /// How often it wasn't as good as new.
    refused: u8,
}

impl Spares {
    /// Of each hierarchy.
    const MOST: usize = 8;
    /// What is charged to one for so long is there to stay, as page cache is.
    const PATIENCE: u8 = 16;

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Places {
    /// Removes those that wait; whether there were any.
    pub(crate) fn remove_spares(&self) -> bool {
        if !self.is_ours() {
            return false;
        }
        let free = std::mem::take(&mut self.spares.state().free);
        let (any, busy) = (!free.is_empty(), self.spares.state().busy.len());
        self.remove(free.into_iter().map(|spare| (spare.member.hierarchy, spare.member.number)).collect());
        any || self.spares.state().busy.len() < busy
    }

    /// Whether none is left, whatever has become of it. Removes those that wait.
    pub(crate) fn has_settled(&self) -> bool {
        self.remove_spares();
        let state = self.spares.state();
        !self.is_ours() || state.lent == 0 && state.free.is_empty() && state.busy.is_empty()
    }

    /// Removes groups that are ours to remove, and those that were busy before; what is busy
    /// now is tried again with the next.
    pub(super) fn remove(&self, mut groups: Vec<(usize, u64)>) {
        groups.append(&mut self.spares.state().busy);
        groups.retain(|(hierarchy, number)| {
            let home = &self.hierarchies[*hierarchy].home;
            unlinkat(home, Group::name(*number).as_str(), UnlinkatFlags::RemoveDir) == Err(Errno::EBUSY)
        });
        self.spares.state().busy.append(&mut groups);
    }

    /// One whose use has ended well.
    fn keep_spare(&self, spare: Spare) {
        let hierarchy = spare.member.hierarchy;
        let mut state = self.spares.state();
        state.free.push(spare);
        let same = |spare: &Spare| spare.member.hierarchy == hierarchy;
        let too_many = state.free.iter().filter(|spare| same(spare)).count() > Spares::MOST;
        let oldest = if too_many { state.free.iter().position(same) } else { None };
        let surplus = oldest.map(|i| state.free.remove(i));
        drop(state);
        if let Some(Spare { member, .. }) = surplus {
            self.remove(vec![(hierarchy, member.number)]);
        }
    }
}

impl Group {
    /// From here on its groups may be others' before and after: it's for one command, with
    /// whom everybody in it ends.
    pub(crate) fn serve_by_turns(&mut self) {
        self.by_turns = !self.limits.in_reach;
    }

    /// Whether the host sees to the end of its part in a hierarchy, and not init.
    pub(super) fn is_turn(&self, hierarchy: usize, uses: u8) -> bool {
        const FIT: u8 = controller::MEMORY | controller::ACCOUNT | controller::PIDS;
        self.by_turns && !self.places.hierarchies[hierarchy].v2 && uses & !FIT == 0
    }

    /// One that's as good as new.
    pub(super) fn take_spare(&self, hierarchy: usize, uses: u8) -> Option<Member> {
        if !self.is_turn(hierarchy, uses) {
            return None;
        }
        let suits = |spare: &Spare| {
            let limits = (spare.memory, spare.processes) == (self.limits.memory, self.limits.processes);
            limits && (spare.member.hierarchy, spare.member.uses) == (hierarchy, uses)
        };
        // What was left last may still be being taken apart, so the oldest comes first.
        let tries = self.places.spares.state().free.iter().filter(|spare| suits(spare)).count();
        for _ in 0..tries {
            let mut state = self.places.spares.state();
            let mut spare = state.free.iter().position(suits).map(|i| state.free.remove(i))?;
            drop(state);
            if spare.renew() {
                spare.member.renewed = spare.member.equipped.is_some() && self.has_its_limits(&spare.member);
                return Some(spare.member);
            }
            spare.refused += 1;
            match spare.refused < Spares::PATIENCE {
                true => self.places.keep_spare(spare),
                false => self.places.remove(vec![(hierarchy, spare.member.number)]),
            }
        }
        None
    }

    /// One more of its parts is in use, which [`part_with`](Self::part_with) ends.
    pub(super) fn lend(&self, member: &Member) {
        if self.is_turn(member.hierarchy, member.uses) {
            self.places.spares.state().lent += 1;
        }
    }

    /// Its command has ended, and so have all whom that has started; nothing more will be
    /// asked of those parts that serve by turns.
    pub(crate) fn ended(&mut self, counters: &Counters) {
        let none = |count: Option<u64>| count.unwrap_or(0) == 0;
        let well = none(counters.oom_kills) && none(counters.limit_hits);
        let alone = counters.peak_processes == Some(1) && counters.fork_failures == Some(0);
        for member in std::mem::take(&mut self.members) {
            match self.is_turn(member.hierarchy, member.uses) {
                true if member.uses & controller::PIDS != 0 && !alone => self.remove_later(member),
                true => self.part_with(member, well),
                false => self.members.push(member),
            }
        }
    }

    /// Somebody waits now.
    fn remove_later(&self, member: Member) {
        let mut state = self.places.spares.state();
        state.lent -= 1;
        state.busy.push((member.hierarchy, member.number));
        let many = state.busy.len() > Spares::MOST;
        drop((state, member));
        if many {
            self.catch_up();
        }
    }

    /// Removes what was to be removed later.
    pub(super) fn catch_up(&self) {
        if !self.places.spares.state().busy.is_empty() {
            self.places.remove(Vec::new());
        }
    }

    /// Has parts that serve by turns keep open what they are asked for each time, if there
    /// aren't too many.
    pub(super) fn equip(&mut self) {
        for i in 0..self.members.len() {
            let Member { hierarchy, uses, equipped, .. } = &self.members[i];
            if equipped.is_none() && self.is_turn(*hierarchy, *uses) {
                let member = &mut self.members[i];
                member.equipped = Open::member();
                if member.equipped.is_some() {
                    if member.uses & controller::MEMORY != 0
                        && let Ok(peak) = open(&member.directory, v1::PEAK, OFlag::O_RDWR)
                    {
                        member.kept.retain(|(name, _)| *name != v1::PEAK);
                        member.kept.push((v1::PEAK, peak.into()));
                    }
                    [&v1::EVENTS[..], &v1::COUNTERS, &v1::STATE].iter().for_each(|files| member.keep_open(files));
                }
            }
        }
    }

    fn has_its_limits(&self, member: &Member) -> bool {
        self.settings(member).iter().all(|setting| match member.source().read(setting.file) {
            Ok(text) => (setting.holds)(&setting.value, text.trim()),
            Err(error) => setting.optional && error.kind() == io::ErrorKind::NotFound,
        })
    }

    /// Everybody who was in it is dead if it was used `well`; else they will be.
    pub(super) fn part_with(&self, mut member: Member, well: bool) {
        if member.equipped.is_none() {
            member.kept.clear();
            member.doors = Doors::default();
        }
        member.renewed = false;
        self.places.spares.state().lent -= 1;
        if well {
            let Limits { memory, processes, .. } = self.limits;
            self.places.keep_spare(Spare { member, memory, processes, refused: 0 });
        } else {
            self.places.remove(vec![(member.hierarchy, member.number)]);
        }
    }
}

impl Member {
    fn set_peak_back(&self) -> io::Result<()> {
        match self.kept.iter().find(|(name, _)| *name == v1::PEAK && self.equipped.is_some()) {
            Some((_, file)) => file.write_at(b"0", 0).map(|_| ()),
            None => write(&self.directory, v1::PEAK, "0"),
        }
    }
}

impl Spare {
    /// The most bytes that may be charged to it: the kernel charges in batches for each CPU.
    const LEFT: u64 = 1 << 20;

    /// Whether the next command finds it as if it were new.
    fn renew(&mut self) -> bool {
        let from = self.member.source();
        if self.member.uses & controller::MEMORY != 0 {
            let most = Spare::LEFT.min(self.memory.map_or(u64::MAX, |limit| limit / 128));
            // What couldn't be read at the end of a run may have been one.
            let spared = from.read("memory.oom_control").is_ok_and(|text| field(&text, "oom_kill").unwrap_or(0) == 0);
            let clean = spared && from.number("memory.usage_in_bytes").is_some_and(|bytes| bytes <= most);
            if !clean || self.member.set_peak_back().is_err() {
                return false;
            }
            if let Some([event, _]) = &self.member.doors.oom {
                // Where the group around ours ran out of memory all below it are told.
                let _ = nix::unistd::read(event, &mut [0; 8]);
            }
        }
        if self.member.uses & controller::PIDS != 0 && from.number("pids.current") != Some(0) {
            return false;
        }
        let source = Source { directory: &self.member.directory, kept: &self.member.kept };
        self.member.uses & controller::ACCOUNT == 0 || self.member.account.begin(source)
    }
}
