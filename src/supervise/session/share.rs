//! One command's part in a sandbox that several share: its group, and what of the sandbox's
//! counters is its own.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Session, lock};
use crate::cgroup::{CommandGroup, Counters, Handles};
use crate::error::{Error, Result};
use crate::launch::Init;
use crate::supervise::broken::lost;

/// A command's own group, if there's one, and what it joins by.
#[derive(Debug)]
pub(super) struct Joined {
    own: Option<CommandGroup>,
    pub(super) handles: Handles,
    cpu_limit: bool,
}

/// One command's part in it.
#[derive(Debug)]
pub(crate) struct Share {
    session: Arc<Session>,
    pub(super) number: u32,
    running: bool,
    pub(super) joined: Option<Joined>,
    before: Counters,
    /// What the sandbox's group said at its end.
    after: Option<Counters>,
    /// See [`ended`](Self::ended).
    alone: bool,
}

impl Share {
    pub(crate) fn init(&self) -> &Init {
        &self.session.init
    }

    pub(crate) fn counters(&mut self) -> Counters {
        // Else something may come to pass before this is over.
        let alone = self.session.running.load(Ordering::Relaxed) == 1;
        let own = self.joined.as_mut().and_then(|joined| joined.own.as_mut());
        let (counters, after) = self.session.group().command_counters(own, &self.before);
        self.after = alone.then_some(after);
        counters
    }

    pub(crate) fn missing(&self) -> u64 {
        self.session.missing
    }

    /// Whether the id maps have still to be read back.
    pub(crate) fn is_unmapped(&self) -> bool {
        !self.session.mapped.load(Ordering::Relaxed)
    }

    /// They have been, and were right.
    pub(crate) fn is_mapped(&self) {
        self.session.mapped.store(true, Ordering::Relaxed);
    }

    /// Its command has ended, and nobody is left in the sandbox if PID 1 was `alone`.
    pub(crate) fn ended(&mut self, alone: bool) {
        self.alone = alone;
        if std::mem::take(&mut self.running) {
            self.session.running.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Where init says what has become of the sandbox; `None` if the host has ended it. It
    /// says it once, to all commands: that's for looking at, not for taking.
    pub(crate) fn epitaph(&self) -> Option<Arc<OwnedFd>> {
        (!self.session.ended.load(Ordering::Relaxed)).then(|| self.session.reply.clone())
    }

    /// With the wait status of its PID 1, where that's known.
    pub(crate) fn lost(&self, status: Option<u32>) -> Error {
        match status {
            Some(_) if !self.session.ended.load(Ordering::Relaxed) => lost(status),
            _ => self.session.over(),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.ended(self.alone);
        if let Some(joined) = self.joined.take() {
            let counted = joined.own.is_some();
            let empty = self.session.give_back(joined, self.alone);
            if counted && empty && self.session.running.load(Ordering::Relaxed) == 0 {
                *lock(&self.session.events) = self.after.map(|after| (self.number + 1, after));
            }
        }
    }
}

impl Session {
    pub(super) fn share(self: &Arc<Session>, cpu_limit: bool) -> Result<Share> {
        // First, so that whoever sees nobody running sees those with lower numbers at their end.
        self.running.fetch_add(1, Ordering::Relaxed);
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        if number == 2 {
            // It's one that has many.
            self.group().keep_events_open();
        }
        let mut share =
            Share { session: self.clone(), number, running: true, joined: None, before: Counters::default(), after: None, alone: false };
        let spare = lock(&self.spare).take_if(|spare| spare.cpu_limit == cpu_limit);
        share.joined = Some(spare.map_or_else(|| self.joined(cpu_limit), Ok)?);
        let known = lock(&self.events).take().filter(|(next, _)| *next == number);
        share.before = known.map_or_else(|| self.group().events(), |(_, events)| events);
        Ok(share)
    }

    fn joined(&self, cpu_limit: bool) -> Result<Joined> {
        let group = self.group();
        let own = group.command(self.next.fetch_add(1, Ordering::Relaxed))?;
        let handles = group.command_handles(own.as_ref(), cpu_limit);
        if handles.is_err()
            && let Some(own) = &own
        {
            group.remove_command(own);
        }
        Ok(Joined { handles: handles?, own, cpu_limit })
    }

    /// A command that had this has ended. Its group serves the next one, if nobody can tell:
    /// to make and remove one takes as long as all else that the host does for a command.
    /// True if nobody is left in it.
    fn give_back(&self, mut joined: Joined, alone: bool) -> bool {
        if !self.is_ours() {
            return false;
        }
        let empty = joined.own.as_mut().is_none_or(|own| own.serves_again(alone));
        // There's one: another that isn't wanted any more goes too.
        let unwanted = if empty { lock(&self.spare).replace(joined) } else { Some(joined) };
        if let Some(own) = unwanted.as_ref().and_then(|joined| joined.own.as_ref())
            && !self.group().remove_command(own)
        {
            self.crowded.store(true, Ordering::Relaxed);
        }
        empty
    }
}
