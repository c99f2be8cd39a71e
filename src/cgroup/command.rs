//! The group of one command among several in a sandbox.
//!
//! It lies below the sandbox's group in the hierarchy that counts CPU time, and has no
//! limits of its own: it tells this command's usage from the others', and which
//! processes are the command's. On v2 with controllers it counts memory and processes
//! too.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::files::{Source, make_directory, open, read, write};
use super::limits::controller;
use super::{Counters, Group, Limits, v1, v2};
use crate::error::{Error, Result};

#[derive(Debug)]
pub(crate) struct CommandGroup {
    name: String,
    directory: OwnedFd,
    v2: bool,
    uses: u8,
    /// What commands used that had it before, on v2 and on v1.
    before: Counters,
    account: v1::Account,
    /// If several commands have it: files that stay open.
    kept: Vec<(&'static str, File)>,
}

/// What a command takes along into its groups.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    /// Membership files.
    pub(crate) join: Vec<OwnedFd>,
    /// The counter of CPU time, if there's a limit on it, and its unit in nanoseconds.
    pub(crate) cpu: Option<(OwnedFd, u64)>,
    /// Directory of the command's own group and, on v2, what kills everything in it.
    pub(crate) own: Option<(OwnedFd, Option<OwnedFd>)>,
}

impl CommandGroup {
    fn source(&self) -> Source<'_> {
        Source { directory: &self.directory, kept: &self.kept }
    }

    /// What its present command used.
    fn count(&self) -> Counters {
        let mut counters = Counters::default();
        if !self.v2 {
            self.account.count(self.source(), &mut counters);
            return counters;
        }
        v2::count(self.source(), &Limits::default(), self.uses, &mut counters);
        let less = |now: Option<Duration>, then: Option<Duration>| now.map(|now| now.saturating_sub(then.unwrap_or_default()));
        counters.cpu = less(counters.cpu, self.before.cpu);
        counters.user = less(counters.user, self.before.user);
        counters.system = less(counters.system, self.before.system);
        counters
    }

    /// Whether another command can have it: it counts CPU time and nothing else, what it has
    /// counted so far is known, and nobody is left in it, as where PID 1 is `alone`.
    pub(crate) fn serves_again(&mut self, alone: bool) -> bool {
        if self.uses != controller::ACCOUNT {
            return false;
        }
        let counter = if self.v2 { v2::CPU_COUNTER.0 } else { v1::CPU_COUNTER.0 };
        if self.kept.is_empty() {
            self.kept.extend(open(&self.directory, counter, OFlag::O_RDONLY).ok().map(|file| (counter, file.into())));
        }
        let known = if self.v2 {
            let mut used = Counters::default();
            v2::count(Source { directory: &self.directory, kept: &self.kept }, &Limits::default(), self.uses, &mut used);
            self.before = used;
            used.cpu.is_some()
        } else {
            self.account.begin(Source { directory: &self.directory, kept: &self.kept })
        };
        // Not from a file that's kept open: what that says on v1 may be a second old.
        known && (alone || read(&self.directory, v2::JOIN).is_ok_and(|processes| processes.is_empty()))
    }
}

impl Group {
    /// Lets the groups of commands count what they can.
    pub(crate) fn prepare_for_commands(&self) {
        if let Some(member) = self.counting()
            && self.places.hierarchies[member.hierarchy].v2
        {
            for controller in ["+memory", "+pids"] {
                let _ = write(&member.directory, "cgroup.subtree_control", controller);
            }
        }
    }

    /// Where the groups of commands are.
    fn counting(&self) -> Option<&super::Member> {
        self.members.iter().find(|member| member.uses & controller::ACCOUNT != 0)
    }

    /// Makes a group for one command; `None` where nothing counts CPU time, or where it
    /// needs none.
    pub(crate) fn command(&self, number: u32) -> Result<Option<CommandGroup>> {
        let Some(member) = self.counting().filter(|_| !self.tells_by_difference()) else { return Ok(None) };
        let name = format!("cmd-{number}");
        let directory =
            make_directory(&member.directory, &name).map_err(|e| Error::io("make", "the control group of a command", e.into()))?;
        let v2 = self.places.hierarchies[member.hierarchy].v2;
        let uses = if v2 { member.uses } else { controller::ACCOUNT };
        let (before, account) = (Counters::default(), v1::Account::default());
        Ok(Some(CommandGroup { name, directory, v2, uses, before, account, kept: Vec::new() }))
    }

    /// What a command needs to join its own group, if it has one, and the sandbox's.
    pub(crate) fn command_handles(&self, own: Option<&CommandGroup>, cpu_limit: bool) -> Result<Handles> {
        let failed = |what: &'static str| move |e| Error::io("open", what, e);
        let mut handles = Handles::default();
        for member in &self.members {
            let v2 = self.places.hierarchies[member.hierarchy].v2;
            let join = if v2 { v2::JOIN } else { v1::JOIN };
            let own = own.filter(|_| member.uses & controller::ACCOUNT != 0);
            let directory = own.map_or(&member.directory, |own| &own.directory);
            handles.join.push(open(directory, join, OFlag::O_WRONLY).map_err(failed(join))?);
            let counts = own.is_some() || member.uses & controller::ACCOUNT != 0 && self.tells_by_difference();
            if cpu_limit && counts {
                let (file, unit) = if v2 { v2::CPU_COUNTER } else { v1::CPU_COUNTER };
                handles.cpu = Some((open(directory, file, OFlag::O_RDONLY).map_err(failed(file))?, unit));
            }
            let Some(own) = own else { continue };
            let kill = if v2 { Some(open(directory, v2::KILL, OFlag::O_WRONLY).map_err(failed(v2::KILL))?) } else { None };
            let copy = own.directory.as_fd().try_clone_to_owned().map_err(failed("a control group"))?;
            handles.own = Some((copy, kill));
        }
        Ok(handles)
    }

    /// What one command used: its own group's figures and, where only the sandbox's group
    /// counts something, what came to pass there since `before`, its
    /// [`events`](Self::events) at the start. Also those of now.
    pub(crate) fn command_counters(&self, own: Option<&mut CommandGroup>, before: &Counters) -> (Counters, Counters) {
        let whole = if self.takes_turns { self.counters() } else { self.events() };
        let mut counters = Counters::default();
        if let Some(own) = own {
            counters = own.count();
        }
        let since = |now: Option<u64>, then: Option<u64>| now.zip(then).map(|(now, then)| now.saturating_sub(then));
        counters.oom_kills = counters.oom_kills.or(since(whole.oom_kills, before.oom_kills));
        counters.fork_failures = counters.fork_failures.filter(|n| *n > 0).or(since(whole.fork_failures, before.fork_failures));
        counters.throttled = whole.throttled.zip(before.throttled).map(|(now, then)| now.saturating_sub(then));
        // It only tells whose out-of-memory it was.
        if counters.oom_kills.is_some_and(|kills| kills > 0) {
            counters.limit_hits = self.counters().limit_hits;
        }
        if self.takes_turns {
            self.count_turn(&mut counters, &whole, before);
        }
        (counters, whole)
    }

    /// How often limits stood in the way so far: of the [`counters`](Self::counters), those
    /// that are no peaks and no times but of the group's own bandwidth. Each file that is
    /// read costs a command in a live sandbox some 3 us, twice. Where commands take turns
    /// CPU time too, which is told by difference then.
    pub(crate) fn events(&self) -> Counters {
        let mut counters = Counters::default();
        for member in &self.members {
            if self.places.hierarchies[member.hierarchy].v2 {
                v2::events(member.source(), member.uses, &mut counters);
            } else {
                v1::events(member.source(), member.uses, &mut counters);
            }
            if self.takes_turns && member.uses & controller::ACCOUNT != 0 {
                counters.cpu = self.cpu_time(member);
            }
        }
        counters
    }

    /// Removes the group of a command whose processes are dead. One that is still busy
    /// goes with the sandbox's: false then.
    pub(crate) fn remove_command(&self, own: &CommandGroup) -> bool {
        self.counting().is_none_or(|member| unlinkat(&member.directory, own.name.as_str(), UnlinkatFlags::RemoveDir).is_ok())
    }

    /// Stops everything in the group, or lets it go on; false where no v2 tree can.
    pub(crate) fn freeze(&self, frozen: bool) -> std::io::Result<bool> {
        let member = self.members.iter().find(|member| self.places.hierarchies[member.hierarchy].v2);
        let Some(member) = member else { return Ok(false) };
        v2::freeze(&member.directory, frozen)?;
        Ok(true)
    }
}
