//! Groups made ahead.
//!
//! Making a group and writing and reading back its limits takes a sixth of a fresh run,
//! and nothing in it depends on that run. So the next one is made before it's needed: its
//! directories, which take most of the time, by the outer child of the present sandbox
//! when that has handed over to PID 1 (a processor is idle then); its limits by the host
//! while it waits for a command and has nothing else to do. Each is used by one sandbox.

use std::sync::{Mutex, MutexGuard};

use super::Group;

/// Those of one init that wait for their sandbox.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    groups: Mutex<Vec<Group>>,
}

impl Ahead {
    /// Recipes that take turns find one each.
    const MOST: usize = 4;
    /// With those that were only promised, which can't be given up before init is done.
    const PROMISES: usize = 16;

    fn groups(&self) -> MutexGuard<'_, Vec<Group>> {
        self.groups.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// One that's ready, or nearly, in place of one that would have to be made.
    pub(crate) fn take(&self, wanted: Group) -> Group {
        let mut groups = self.groups();
        match groups.iter().position(|group| group.is_like(&wanted)) {
            Some(place) => groups.remove(place),
            None => wanted,
        }
    }

    /// The number of one for the next sandbox of the same recipe, whose directories init
    /// is then to make; 0 if that isn't needed.
    pub(crate) fn promise(&self, group: &Group, number: impl FnOnce() -> u64) -> u64 {
        let mut groups = self.groups();
        if group.hierarchies() == 0 || groups.len() >= Ahead::PROMISES || groups.iter().any(|other| other.is_like(group)) {
            return 0;
        }
        let next = group.another(number());
        let number = next.number();
        groups.push(next);
        number
    }

    /// Makes the one that was promised ready, if nobody has taken it. Failing to is
    /// harmless: who needs one makes it, and tells why it can't be had.
    pub(crate) fn prepare(&self, group: &Group) {
        let mut groups = self.groups();
        let Some(place) = groups.iter().position(|other| other.is_like(group) && other.ready.is_none()) else { return };
        let mut next = groups.remove(place);
        drop(groups);
        if next.make().is_err() {
            return;
        }
        let mut groups = self.groups();
        // Those that wait longest are of recipes that aren't in use any more.
        let mut ready = groups.iter().enumerate().filter(|(_, other)| other.ready.is_some()).map(|(place, _)| place);
        let surplus = ready.clone().count() >= Ahead::MOST;
        let oldest = ready.next().filter(|_| surplus).map(|place| groups.remove(place));
        groups.push(next);
        drop((groups, oldest));
    }

    /// Removes them all. Those that init is making may come to be all the same.
    pub(crate) fn clear(&self) {
        let groups = std::mem::take(&mut *self.groups());
        drop(groups);
    }
}
