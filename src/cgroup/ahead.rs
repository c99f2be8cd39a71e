//! Groups made ahead.
//!
//! Making a group and writing and reading back its limits takes a tenth of a fresh run,
//! and nothing in it depends on that run. So the host makes the next one while it waits
//! for a command, when it has nothing else to do. Each is used by one sandbox.

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

    fn groups(&self) -> MutexGuard<'_, Vec<Group>> {
        self.groups.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// One that's ready in place of one that would have to be made.
    pub(crate) fn take(&self, wanted: Group) -> Group {
        let mut groups = self.groups();
        match groups.iter().position(|group| group.is_like(&wanted)) {
            Some(place) => groups.swap_remove(place),
            None => wanted,
        }
    }

    /// Makes one for the next sandbox of the same recipe, unless there is one. Failing to
    /// is harmless: who needs one makes it, and tells why it can't be had.
    pub(crate) fn prepare(&self, group: &Group, number: impl FnOnce() -> u64) {
        let waits = |groups: &[Group]| groups.iter().any(|other| other.is_like(group));
        group.catch_up();
        if waits(&self.groups()) {
            return;
        }
        let mut next = group.another(number());
        if next.make().is_ok() {
            let mut groups = self.groups();
            if !waits(&groups) {
                // The one that waits longest is of a recipe that's not in use any more.
                let oldest = if groups.len() < Ahead::MOST { None } else { Some(groups.remove(0)) };
                groups.push(next);
                drop((groups, oldest));
            }
        }
    }

    /// Removes them all; whether there were any.
    pub(crate) fn clear(&self) -> bool {
        let groups = std::mem::take(&mut *self.groups());
        !groups.is_empty()
    }
}
