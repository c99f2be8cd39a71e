//! Steps that set the resource limits of the workload's process (setrlimit(2)).
//!
//! They are back-stops that every process inherits and counts for itself. There
//! is no default for RLIMIT_AS and RLIMIT_DATA: Java, Node and Go reserve far
//! more address space than they use.

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

/// Every limit that a command gets: the recipe's, else the default, the latter
/// never above what the host itself may have. `grouped` says that a control group
/// counts the processes.
pub(crate) fn rlimits(sandbox: &Sandbox, facts: &Facts, grouped: bool) -> Vec<Rlimit> {
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
        let pid1 = u64::from(!facts.privileged || sandbox.account().0 == 0);
        let value = u64::from(most) + pid1;
        all.retain(|l| l.resource != Resource::Processes);
        all.push(Rlimit { resource: Resource::Processes, soft: value, hard: value });
    }
    if let Some(limit) = sandbox.cpu_time
        && !all.iter().any(|l| l.resource == Resource::CpuSeconds)
    {
        // A back-stop: whole seconds, for each process, and never before our own limit.
        let seconds = limit.as_secs().saturating_add(2);
        all.push(Rlimit { resource: Resource::CpuSeconds, soft: seconds, hard: seconds.saturating_add(1) });
    }
    all
}

pub(crate) fn command(draft: &mut Draft, limits: &[Rlimit]) {
    draft.area(Area::Limit);
    for limit in limits {
        let value = draft.words(&[limit.soft, limit.hard]);
        let name = limit.resource.kernel_name();
        draft.step(libc::SYS_prlimit64, &[0.into(), limit.resource.number().into(), value, 0.into()], "set", name);
    }
}
