//! Steps that set the resource limits of the workload's process (setrlimit(2)).
//!
//! They are back-stops that every process inherits and counts for itself. There
//! is no default for RLIMIT_AS and RLIMIT_DATA: Java, Node and Go reserve far
//! more address space than they use.

use super::namespaces::Ids;
use super::wire::{self, op};
use super::{Area, Draft};
use crate::limits::Resource;
use crate::probe::Facts;
use crate::sandbox::Sandbox;

/// One limit as it will be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rlimit {
    pub(crate) resource: Resource,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl Rlimit {
    /// The least [`Sandbox::open_files`]: with fewer a sandbox that waits for its command
    /// can't take what comes with that.
    pub(crate) const LEAST_FILES: u32 = 8;

    pub(crate) fn is_too_low_to_wait(&self) -> bool {
        self.resource == Resource::OpenFiles && self.soft < Self::LEAST_FILES.into()
    }

    /// It may leave set-up no open files.
    pub(crate) fn is_scant(&self) -> bool {
        self.resource == Resource::OpenFiles && self.soft < wire::SCANT
    }
}

/// Every limit that a command gets: the recipe's, else the default, the latter
/// never above what the host itself may have. `grouped` says that a control group
/// counts the processes.
pub(crate) fn rlimits(sandbox: &Sandbox, facts: &Facts, ids: Ids, grouped: bool) -> Vec<Rlimit> {
    let mut all: Vec<Rlimit> = Vec::new();
    for (resource, soft, hard) in Resource::DEFAULTS {
        if !sandbox.rlimits.iter().any(|l| l.resource == resource) {
            let bound = facts.hard_limit(resource);
            all.push(Rlimit { resource, soft: soft.min(bound), hard: hard.min(bound) });
        }
    }
    all.extend(sandbox.rlimits.iter().copied());
    if let Some(most) = sandbox.limits.processes
        && !grouped
    {
        // Where PID 1 has the same id the kernel counts it too.
        let pid1 = u64::from(ids.shield(sandbox.account().0).is_none());
        let value = u64::from(most) + pid1;
        all.retain(|l| l.resource != Resource::Processes);
        all.push(Rlimit { resource: Resource::Processes, soft: value, hard: value });
    }
    if let Some(limit) = sandbox.cpu_time
        && !all.iter().any(|l| l.resource == Resource::CpuSeconds)
    {
        // A back-stop: whole seconds, for each process, and never before our own limit
        // (unless the host itself may have less: that holds for its children anyway).
        let (seconds, bound) = (limit.as_secs().saturating_add(2), facts.hard_limit(Resource::CpuSeconds));
        let (soft, hard) = (seconds.min(bound), seconds.saturating_add(1).min(bound));
        all.push(Rlimit { resource: Resource::CpuSeconds, soft, hard });
    }
    all
}

/// Whether a command's descriptors can be arranged under these limits.
pub(crate) fn leave_room(limits: &[Rlimit], numbers: &[u32]) -> bool {
    /// More than a process has open then.
    const ROOM: u64 = 512;
    let highest = numbers.iter().max().map_or(0, |number| u64::from(*number));
    limits.iter().filter(|limit| limit.resource == Resource::OpenFiles).all(|limit| limit.soft >= highest + ROOM)
}

pub(crate) fn command(draft: &mut Draft, limits: &[Rlimit]) {
    draft.area(Area::Limit);
    if limits.iter().any(Rlimit::is_scant) {
        draft.step(op::MAKE_ROOM, &[], "close", "what isn't needed");
    }
    for limit in limits {
        let value = draft.words(&[limit.soft, limit.hard]);
        let name = limit.resource.kernel_name();
        draft.step(libc::SYS_prlimit64, &[0.into(), limit.resource.number().into(), value, 0.into()], "set", name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_nobody_asked_for_stays_below_the_hosts_own_limits() {
        let facts = Facts { hard_limits: vec![(Resource::CpuSeconds, 11), (Resource::OpenFiles, 100)], ..Facts::of_root() };
        let of = |sandbox: &Sandbox, resource| {
            rlimits(sandbox, &facts, Ids::Range { first: 1 << 20, shared: false }, true)
                .into_iter()
                .find(|l| l.resource == resource)
                .expect("a limit")
        };
        let cpu = |seconds| of(&Sandbox::new().cpu_time(Duration::from_secs(seconds)), Resource::CpuSeconds);
        assert_eq!(cpu(1), Rlimit { resource: Resource::CpuSeconds, soft: 3, hard: 4 });
        assert_eq!(cpu(100), Rlimit { resource: Resource::CpuSeconds, soft: 11, hard: 11 });
        assert_eq!(of(&Sandbox::new(), Resource::OpenFiles), Rlimit { resource: Resource::OpenFiles, soft: 100, hard: 100 });
        let asked = Sandbox::new().rlimit(Resource::CpuSeconds, 20, 20);
        assert_eq!(of(&asked, Resource::CpuSeconds).hard, 20, "an error then, and not less than was asked for");
    }

    #[test]
    fn pid_1_is_counted_where_it_has_the_id_of_the_run() {
        let most = |user, ids| {
            let all = rlimits(&Sandbox::new().processes(10).user(user, user), &Facts::of_root(), ids, false);
            all.into_iter().find(|l| l.resource == Resource::Processes).map(|l| l.hard)
        };
        assert_eq!(most(0, Ids::Outer { count: 65_536 }), Some(10), "PID 1 has one that no run has");
        assert_eq!(most(0, Ids::Outer { count: 1 }), Some(11));
        assert_eq!(most(1000, Ids::Outer { count: 65_536 }), Some(10));
        assert_eq!(most(1000, Ids::Single { uid: 1000, gid: 1000 }), Some(11));
    }
}
