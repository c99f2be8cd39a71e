//! From recipe to outcome: the host's side of a run.
//!
//! There's one poll loop for the reply socket and the streams, in the thread that
//! waits, and none in between: what must happen without the host's attention (the
//! wall clock, the killing of leftovers) is PID 1's business.

pub(crate) mod capture;
mod check;
mod descriptors;
mod live;
mod proof;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::cgroup::Group;
use crate::child::Child;
use crate::command::{Command, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Claim;
use crate::launch::{self, Init, sealed};
use crate::outcome::Output;
use crate::plan::compile::{Grouped, Wanted};
use crate::plan::explain::Explanation;
use crate::plan::namespaces::{Ids, Origin, network_origin};
use crate::plan::start::Start;
use crate::plan::{Draft, compile, limits, wire};
use crate::probe::Layer;
use crate::sandbox::Sandbox;

use check::applied;
pub(crate) use check::check;
pub(crate) use descriptors::Pipes;
use descriptors::{Passed, pass};
pub(crate) use live::{Live, tell};
use proof::Expected;

pub(crate) fn run(sandbox: &Sandbox, command: Command) -> Result<Output> {
    for stream in [&command.stdin, &command.stdout, &command.stderr] {
        if matches!(stream.0, Stream::Piped) {
            return Err(Error::invalid("`run` waits for the end, so nobody could use a piped stream; take `spawn`"));
        }
    }
    let (mut live, _) = start(sandbox, Some(command), wire::NOTIFY_START)?;
    live.started()?;
    live.wait(None)?;
    live.finish()
}

pub(crate) fn spawn(sandbox: &Sandbox, command: Command) -> Result<Child> {
    let (mut live, pipes) = start(sandbox, Some(command), wire::NOTIFY_START)?;
    let pidfd = live.started()?;
    Ok(Child::new(live, pipes, pidfd))
}

pub(crate) fn explain(sandbox: &Sandbox) -> Result<Explanation> {
    sandbox.validate()?;
    let init = launch::init()?;
    let (ids, _claim) = ids(sandbox, &init)?;
    let command = Command::new("true");
    let group = group(sandbox, &init)?;
    let group = &grouped(sandbox, &group, 3);
    let wanted = Wanted { command: &command, numbers: &vec![0, 1, 2], group, files: false, writable: &[] };
    let draft = compile::sandbox(sandbox, &init.facts, ids, Some(wanted))?;
    Ok(Explanation::of(&draft))
}

/// Which ids the sandbox gets, and the claim on them.
fn ids(sandbox: &Sandbox, init: &Init) -> Result<(Ids, Option<Claim>)> {
    let (ids, claim) = match (init.start, &init.ranges) {
        (Start::Root, Some(ranges)) => {
            let claim = ranges.claim(sandbox.id_base)?;
            (Ids::Range { first: claim.first() }, Some(claim))
        }
        (Start::Subordinate, _) => (Ids::Outer { count: init.subordinate.clone().unwrap_or(1) }, None),
        _ => (Ids::Single { uid: sandbox.user.0, gid: sandbox.user.1 }, None),
    };
    if sandbox.requires(Layer::SubordinateIds)
        && let (Ids::Single { .. }, Err(why)) = (ids, &init.subordinate)
    {
        return Err(Error::unsupported(format!("cannot map subordinate ids: {why}")));
    }
    let (uid, gid) = sandbox.user;
    if !ids.contains(uid) || !ids.contains(gid) {
        return Err(Error::unsupported(format!(
            "cannot become user {uid}, group {gid}: this user has fewer subordinate ids (add a larger range to /etc/subuid and /etc/subgid)"
        )));
    }
    Ok((ids, claim))
}

/// Where the recipe's control group will be.
fn group(sandbox: &Sandbox, init: &Init) -> Result<Group> {
    Group::choose(&init.places, init.next_group(), sandbox.group_limits(), |layer| sandbox.prefers(layer))
}

/// What the plan needs of the group: slots behind those of so many descriptors.
fn grouped(sandbox: &Sandbox, group: &Group, after: usize) -> Grouped {
    let needs = group.needs();
    let mut slots = wire::slot::PASSED + after as u8..;
    let mut next = || slots.next().unwrap_or(wire::NO_SLOT);
    Grouped {
        join: (0..needs.join).map(|_| next()).collect(),
        cpu: needs.cpu.map(|unit| (next(), unit)),
        oom: needs.oom.then(|| (next(), next())),
        processes: group.limits_processes(),
        cpus: cpus(sandbox, group),
    }
}

/// CPUs that a run can use at once. Only a limit on CPU time depends on them, and std
/// reads three files to know.
fn cpus(sandbox: &Sandbox, group: &Group) -> f64 {
    match sandbox.limits.cpuset {
        _ if !group.limits_cpu_time() => 1.0,
        Some(cpus) => f64::from(cpus.len()),
        None => std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64),
    }
}

/// CLOCK_MONOTONIC in nanoseconds, as PID 1 stamps its reports.
fn monotonic() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

fn start(sandbox: &Sandbox, command: Option<Command>, flags: u64) -> Result<(Live, Pipes)> {
    let began = monotonic();
    sandbox.validate()?;
    if let Some(command) = &command {
        command.validate()?;
    }
    let mut command = command;
    let passed = match &mut command {
        Some(command) => pass(command, sandbox)?,
        None => Passed {
            fds: Vec::new(),
            numbers: Vec::new(),
            streams: [None, None],
            pipes: Pipes::default(),
            files: false,
            writable: Vec::new(),
        },
    };
    // A dead init is noticed by the first request after it; the second one starts
    // another. Nothing has happened by then, so trying again is safe.
    let mut result = Err(Error::new(ErrorKind::Lost, "cannot start the sandbox"));
    for _ in 0..2 {
        result = ask(sandbox, command.as_ref(), flags, &passed);
        if !matches!(&result, Err(error) if error.kind() == ErrorKind::Lost) {
            break;
        }
    }
    let mut live = Live::new(began, sandbox, result?, passed.streams);
    if command.is_some() {
        live.give_group()?;
    }
    // Our copies of the command's ends are closed here, or its readers would wait
    // for us.
    Ok((live, passed.pipes))
}

/// What init has been asked for, and what lives as long.
struct Asked {
    reply: OwnedFd,
    draft: Draft,
    claim: Option<Claim>,
    group: Group,
    init: Arc<Init>,
    expected: Expected,
}

fn ask(sandbox: &Sandbox, command: Option<&Command>, flags: u64, passed: &Passed) -> Result<Asked> {
    let init = launch::init()?;
    let (ids, claim) = ids(sandbox, &init)?;
    let mut group = group(sandbox, &init)?;
    let grouped = grouped(sandbox, &group, passed.fds.len());
    let wanted = command.map(|command| Wanted {
        command,
        numbers: &passed.numbers,
        group: &grouped,
        files: passed.files,
        writable: &passed.writable,
    });
    let mut draft = compile::sandbox(sandbox, &init.facts, ids, wanted)?;
    draft.change(&sandbox.changes)?;
    let facts = &init.facts;
    let limits = limits::rlimits(sandbox, facts, ids, grouped.processes);
    let expected = Expected { ids, own: (facts.uid, facts.gid), privileged: facts.privileged, limits };
    draft.settings.flags |= flags;
    let bytes = draft.encode();
    if draft.steps.len() > wire::MAX_STEPS {
        return Err(Error::invalid("the recipe has more than 65,000 files and mounts; bind a directory instead"));
    }
    if bytes.len() > wire::MAX_PLAN {
        return Err(Error::invalid("files and arguments of the run are larger than 256 MiB together; bind a directory instead"));
    }
    let plan = sealed(c"cofferdam-plan", &bytes)?;
    let network = network_origin(sandbox, &init.facts) == Origin::Ahead;
    let fds: Vec<BorrowedFd<'_>> = passed.fds.iter().map(AsFd::as_fd).collect();
    let reply = launch::start_sandbox(&init, plan.as_fd(), &fds, network, &mut group)?;
    Ok(Asked { reply, draft, claim, group, init, expected })
}
