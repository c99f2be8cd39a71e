//! From recipe to outcome: the host's side of a run.
//!
//! There's one poll loop for the reply socket and the streams, in the thread or the task
//! that waits, and none in between: what must happen without the host's attention (the
//! wall clock, the killing of leftovers) is PID 1's business.

mod again;
mod broken;
pub(crate) mod capture;
mod check;
mod descriptors;
mod epitaph;
mod late;
mod live;
pub(crate) mod next;
mod place;
mod proof;
mod request;
pub(crate) mod session;
mod view;
mod wait;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::cgroup::Group;
use crate::child::Child;
use crate::command::{Command, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Claim;
use crate::launch::{self, Init, sealed};
use crate::layer::IdMap;
use crate::outcome::{Line, Output};
use crate::plan::change::{self, Change};
use crate::plan::compile::{Grouped, Purpose, Wanted};
use crate::plan::explain::Explanation;
use crate::plan::message::Request;
use crate::plan::namespaces::{Ids, Origin, network_origin};
use crate::plan::start::Start;
use crate::plan::{Draft, compile, limits, wire};
use crate::probe::Layer;
use crate::sandbox::Sandbox;
use crate::sys;
use crate::trace::Trace;
use crate::volume::Hold;

pub(crate) use again::{Kept, Loan, run_again, spawn_again};
#[cfg(feature = "tokio")]
pub(crate) use broken::overdue;
use capture::Capture;
use check::applied;
pub(crate) use check::check;
pub(crate) use descriptors::Pipes;
pub(crate) use descriptors::{Passed, pass};
#[cfg(feature = "tokio")]
pub(crate) use late::begin_in;
pub(crate) use late::{fits_prepared, prepare, run_in, spawn_in};
pub(crate) use live::{Live, SETUP_LIMIT, Started, happened};
use place::Place;
pub(crate) use proof::Expected;
pub(crate) use request::tell;

/// Nobody could use a stream that only `Child` has.
pub(crate) fn refuse_piped(command: &Command) -> Result<()> {
    for stream in [&command.stdin, &command.stdout, &command.stderr] {
        if matches!(stream.0, Stream::Piped | Stream::Pty) {
            return Err(Error::invalid("`run` waits for the end, so nobody could use a piped stream; take `spawn`"));
        }
    }
    Ok(())
}

pub(crate) fn run(sandbox: &Sandbox, command: Command) -> Result<Output> {
    refuse_piped(&command)?;
    let running = next::Running::new();
    if let Some(live) = next::take(sandbox, &command) {
        return late::run_ahead(&running, live, sandbox, command);
    }
    let (mut live, _) = start(sandbox, command, wire::NOTIFY_START)?;
    live.started()?;
    next::wait_and_prepare(&running, sandbox, &mut live)?;
    live.finish()
}

pub(crate) fn run_lines(sandbox: &Sandbox, command: Command, on_line: &mut dyn FnMut(Line<'_>)) -> Result<Output> {
    refuse_piped(&command)?;
    let (mut live, _) = start(sandbox, command, wire::NOTIFY_START)?;
    live.started()?;
    live.wait_lines(on_line)?;
    live.finish()
}

pub(crate) fn spawn(sandbox: &Sandbox, command: Command) -> Result<Child> {
    let (mut live, pipes) = start(sandbox, command, wire::NOTIFY_START)?;
    let started = live.started()?;
    Ok(Child::new(live, pipes, started))
}

pub(crate) fn explain(sandbox: &Sandbox) -> Result<Explanation> {
    Ok(Explanation::of(&compiled(sandbox)?))
}

/// The plan of a run, with ids that nobody keeps.
pub(crate) fn compiled(sandbox: &Sandbox) -> Result<Draft> {
    sandbox.validate()?;
    let init = launch::init()?;
    let (ids, _claim) = ids(sandbox, &init, Keep::Nothing)?;
    let command = Command::new("true");
    let group = group(sandbox, &init)?;
    let group = &grouped(sandbox, &group, 3);
    let first = wire::slot::PASSED;
    let wanted = Wanted { command: &command, numbers: &vec![0, 1, 2], group, files: false, terminal: &[], writable: &[], first };
    compile::sandbox(sandbox, &init.facts, ids, Purpose::Run(wanted))
}

/// What becomes of the writable layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// It goes with the sandbox, or only its changes are looked at.
    Nothing,
    /// It may become a checkpoint's.
    Layer,
    /// So it may, and sandboxes on that share the ids of this one.
    LayerWithIds,
}

/// Which ids the sandbox gets, and the claim on them.
fn ids(sandbox: &Sandbox, init: &Init, keep: Keep) -> Result<(Ids, Option<Arc<Claim>>)> {
    let (ids, claim) = match (init.start, &init.ranges) {
        (Start::Root, Some(ranges)) => {
            let checkpoint = sandbox.root.checkpoint();
            let given = checkpoint.map_or(Ok(None), |frozen| frozen.ids_for(sandbox))?;
            let shared = given.is_some() || (checkpoint.is_none() && keep == Keep::LayerWithIds);
            let claim = given.map_or_else(|| ranges.claim(sandbox.id_base).map(Arc::new), Ok)?;
            (Ids::Range { first: claim.first(), shared }, Some(claim))
        }
        (Start::Subordinate, _) => (Ids::Outer { count: init.subordinate.as_ref().map_or(1, |further| further.count + 1) }, None),
        _ => (Ids::Single { uid: sandbox.account().0, gid: sandbox.account().1 }, None),
    };
    if sandbox.requires(Layer::SubordinateIds)
        && let (Ids::Single { .. }, Err(why)) = (ids, &init.subordinate)
    {
        return Err(Error::unsupported(format!("cannot map subordinate ids: {why}")));
    }
    let (uid, gid) = sandbox.account();
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

/// What the plan needs of the group: slots behind those of so many descriptors of the
/// command's, and of a checkpoint.
fn grouped(sandbox: &Sandbox, group: &Group, after: usize) -> Grouped {
    let needs = group.needs();
    let after = after + usize::from(sandbox.root.checkpoint().is_some());
    let mut slots = wire::slot::PASSED + after as u8..;
    let mut next = || slots.next().unwrap_or(wire::NO_SLOT);
    Grouped {
        join: (0..needs.join).map(|_| next()).collect(),
        cpu: needs.cpu.map(|unit| (next(), unit)),
        oom: needs.oom.then(|| (next(), next())),
        own: None,
        processes: group.limits_processes(),
        cpus: cpus(sandbox),
    }
}

/// CPUs that a run can use at once; only a limit on CPU time depends on them. std reads
/// three files to know, and knows of quotas, which don't matter here.
pub(crate) fn cpus(sandbox: &Sandbox) -> f64 {
    match sandbox.limits.cpuset {
        _ if !sandbox.group_limits().cpu_account => 1.0,
        Some(cpus) => f64::from(cpus.len()),
        None => {
            let affinity = sched_getaffinity(Pid::from_raw(0));
            let count = affinity.map(|set| (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).count());
            // More CPUs than the call's set has room for: EINVAL.
            count.or_else(|_| std::thread::available_parallelism().map(usize::from)).map_or(1.0, |count| count as f64)
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds, as PID 1 stamps its reports.
pub(crate) fn monotonic() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// Asks for a sandbox with a command in it, and doesn't wait for it.
pub(crate) fn start(sandbox: &Sandbox, command: Command, flags: u64) -> Result<(Live, Pipes)> {
    let prepared = Prepared::new(sandbox, command)?;
    let volumes = prepared.sandbox.hold_volumes()?;
    prepared.start(volumes, flags)
}

/// A command that's in order, with what its streams are connected to.
pub(crate) struct Prepared {
    began: u64,
    trace: Trace,
    pub(crate) sandbox: Sandbox,
    command: Command,
    passed: Passed,
}

impl Prepared {
    pub(crate) fn new(sandbox: &Sandbox, command: Command) -> Result<Prepared> {
        let began = monotonic();
        let sandbox = command.limits.over(sandbox).unwrap_or_else(|| sandbox.clone());
        sandbox.validate()?;
        let mut command = sandbox.complete(command)?;
        command.validate()?;
        let trace = Trace::of_command(None, &sandbox, &command);
        let passed = pass(&mut command, &sandbox)?;
        Ok(Prepared { began, trace, sandbox, command, passed })
    }

    /// Asks for its sandbox. It waits for nothing but init's attention, if init lives.
    pub(crate) fn start(self, volumes: Hold, flags: u64) -> Result<(Live, Pipes)> {
        let Prepared { began, mut trace, sandbox, command, passed } = self;
        let asked = insist(|| ask(&sandbox, For::Command(&command), flags, &passed)).inspect_err(|error| trace.failed(error))?;
        let live = asked.live(began, trace, sandbox, passed.streams, volumes)?;
        // Our copies of the command's ends are closed here, or its readers would wait
        // for us.
        Ok((live, passed.pipes))
    }
}

/// A dead init is noticed by the first request after it; the second one starts another.
/// Nothing has happened by then, so trying again is safe.
fn insist(mut attempt: impl FnMut() -> Result<Asked>) -> Result<Asked> {
    match attempt() {
        Err(error) if error.kind() == ErrorKind::Lost => attempt(),
        // Those that were made ahead may have had it.
        Err(error) if error.kind() == ErrorKind::Exhausted && (next::clear() | launch::release()) => attempt(),
        other => other,
    }
}

/// A sandbox without a command.
pub(crate) fn start_empty(sandbox: &Sandbox, keep: Keep) -> Result<Asked> {
    sandbox.validate()?;
    insist(|| ask(sandbox, For::Commands(keep), 0, &Passed::nothing()))
}

/// What a sandbox is asked for.
#[derive(Clone, Copy)]
enum For<'a> {
    Command(&'a Command),
    /// That comes in time, if there's a limit: then a process waits no longer for the look.
    LaterCommand(Option<Duration>),
    Commands(Keep),
}

/// What init has been asked for, and what lives as long.
pub(crate) struct Asked {
    pub(crate) reply: OwnedFd,
    pub(crate) draft: Draft,
    pub(crate) claim: Option<Arc<Claim>>,
    /// How ids in the writable layer are called inside, if it's kept.
    pub(crate) ids: IdMap,
    pub(crate) group: Group,
    pub(crate) init: Arc<Init>,
    pub(crate) expected: Expected,
    /// Changes to the plans of its commands.
    pub(crate) later: Vec<Change>,
}

impl Asked {
    fn live(self, began: u64, trace: Trace, sandbox: Sandbox, streams: [Option<Capture>; 2], volumes: Hold) -> Result<Live> {
        let Asked { reply, draft, claim, ids, group, init, expected, later: _ } = self;
        let place = Place::Own { claim, group: Box::new(group), init };
        let mut live = Live::new(began, trace, sandbox, reply, draft, expected, place, streams);
        (live.ids, live.volumes) = (ids, Some(volumes));
        live.give_group()?;
        Ok(live)
    }
}

/// What init is to be asked: all of it that takes time.
#[derive(Debug)]
pub(crate) struct Question {
    init: Arc<Init>,
    draft: Draft,
    plan: OwnedFd,
    claim: Option<Arc<Claim>>,
    ids: Ids,
    group: Group,
    expected: Expected,
    later: Vec<Change>,
    network: u32,
}

fn ask(sandbox: &Sandbox, what: For<'_>, flags: u64, passed: &Passed) -> Result<Asked> {
    question(sandbox, what, flags, passed)?.ask(sandbox, passed)
}

fn question(sandbox: &Sandbox, what: For<'_>, flags: u64, passed: &Passed) -> Result<Question> {
    let init = launch::init()?;
    let keep = if let For::Commands(keep) = what { keep } else { Keep::Nothing };
    let (ids, claim) = ids(sandbox, &init, keep)?;
    let mut group = group(sandbox, &init)?;
    if !matches!(what, For::Commands(_)) {
        group.serve_by_turns();
    }
    let group = init.ahead.take(group);
    let mut grouped = grouped(sandbox, &group, passed.fds.len());
    let purpose = match what {
        For::Command(command) => Purpose::Run(Wanted {
            command,
            numbers: &passed.numbers,
            group: &grouped,
            files: passed.files,
            terminal: &passed.terminal,
            writable: &passed.writable,
            first: wire::slot::PASSED,
        }),
        For::LaterCommand(patience) => Purpose::Later(&grouped, patience),
        For::Commands(_) => {
            // Commands bring their own; PID 1 gets what is about all of them.
            (grouped.join, grouped.cpu) = (Vec::new(), None);
            let first = wire::slot::PASSED + u8::from(sandbox.root.checkpoint().is_some());
            grouped.oom = grouped.oom.map(|_| (first, first + 1));
            Purpose::Live { group: &grouped, keeps_layer: keep != Keep::Nothing }
        }
    };
    let mut draft = compile::sandbox(sandbox, &init.facts, ids, purpose)?;
    let (changes, later) = match what {
        For::Command(_) => (sandbox.changes.clone(), Vec::new()),
        For::LaterCommand(_) | For::Commands(_) => change::split(&sandbox.changes, draft.steps.len()),
    };
    draft.change(&changes)?;
    let expected = expected(sandbox, &init, ids, grouped.processes);
    draft.settings.flags |= flags | passed.flags();
    // Others may hold what they have of its network.
    draft.reuses_network = sandbox.reuse_network && draft.sockets && matches!(what, For::Command(_) | For::LaterCommand(_));
    let plan = encoded(&draft)?;
    let network = match network_origin(sandbox, &init.facts) {
        // Unless a test has taken the filter away.
        Origin::Ahead if !draft.sockets && sandbox.changes.is_empty() => Request::UNREACHED_NETWORK,
        Origin::Ahead if draft.reuses_network => Request::REUSED_NETWORK,
        Origin::Ahead if draft.counts_sockets && sandbox.changes.is_empty() => Request::COUNTED_NETWORK,
        Origin::Ahead => Request::OWN_NETWORK,
        _ => Request::OTHER_NETWORK,
    };
    Ok(Question { init, draft, plan, claim, ids, group, expected, later, network })
}

impl Question {
    fn ask(self, sandbox: &Sandbox, passed: &Passed) -> Result<Asked> {
        let Question { init, draft, plan, claim, ids, mut group, expected, later, network } = self;
        let mut fds: Vec<BorrowedFd<'_>> = passed.fds.iter().map(AsFd::as_fd).collect();
        fds.extend(sandbox.root.checkpoint().map(|frozen| frozen.mounts()));
        let reply = launch::start_sandbox(&init, plan.as_fd(), &fds, network, &mut group)?;
        let ids = if sandbox.keep_changes { init.id_map(ids) } else { IdMap::default() };
        Ok(Asked { reply, draft, claim, ids, group, init, expected, later })
    }
}

/// What must be so before a command is executed.
pub(crate) fn expected(sandbox: &Sandbox, init: &Init, ids: Ids, processes: bool) -> Expected {
    let facts = &init.facts;
    let limits = limits::rlimits(sandbox, facts, ids, processes);
    Expected { ids, own: (facts.uid, facts.gid), privileged: facts.privileged, limits }
}

/// A plan as it travels to init.
fn encoded(draft: &Draft) -> Result<OwnedFd> {
    sealed(c"cofferdam-plan", &checked(draft)?)
}

/// Sends a request with the plan of a command, in the same message or beside it, and the
/// descriptors before and behind that.
fn send_with_plan(
    reply: BorrowedFd<'_>,
    request: &Request,
    draft: &Draft,
    before: Option<BorrowedFd<'_>>,
    after: &[BorrowedFd<'_>],
) -> Result<io::Result<()>> {
    let (mut message, plan) = (request.encode().to_vec(), checked(draft)?);
    let file = if plan.len() <= wire::MAX_INLINE { None } else { Some(sealed(c"cofferdam-plan", &plan)?) };
    if file.is_none() {
        message.extend_from_slice(&plan);
    }
    let fds: Vec<BorrowedFd<'_>> = before.into_iter().chain(file.as_ref().map(AsFd::as_fd)).chain(after.iter().copied()).collect();
    Ok(sys::socket::send(reply, &message, &fds))
}

fn checked(draft: &Draft) -> Result<Vec<u8>> {
    let bytes = draft.encode();
    if draft.steps.len() > wire::MAX_STEPS {
        return Err(Error::invalid("the recipe has more than 65,000 files and mounts; bind a directory instead"));
    }
    if bytes.len() > wire::MAX_PLAN {
        return Err(Error::invalid("files and arguments of the run are larger than 256 MiB together; bind a directory instead"));
    }
    Ok(bytes)
}
