//! Recipe and command in, plan out.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use super::landlock::{self, Ruleset};
use super::scratch::Kept;
use super::wire::{self, Stage, op};
use super::{Area, Arg, Draft, Mark, again, files, limits, namespaces, privileges};
use crate::command::Command;
use crate::error::{Error, Result};
use crate::net::Network;
use crate::policy::filter::{Circumstances, Filter};
use crate::probe::{Facts, Layer};
use crate::sandbox::Sandbox;
use namespaces::Ids;

/// Descriptors that travel with a request, in this order from
/// [`PASSED`](wire::slot::PASSED): the numbers that the command wants them under.
pub(crate) type Numbers = Vec<u32>;

/// What a command gets of the sandbox's control group: slots of passed descriptors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grouped {
    /// Membership files.
    pub(crate) join: Vec<u8>,
    /// Counter of CPU time and its unit in nanoseconds.
    pub(crate) cpu: Option<(u8, u64)>,
    /// Out-of-memory event and count.
    pub(crate) oom: Option<(u8, u8)>,
    /// The group of this command alone: its directory and, on v2, what kills it.
    pub(crate) own: Option<(u8, Option<u8>)>,
    /// It counts processes.
    pub(crate) processes: bool,
    /// CPUs that a run can use at once.
    pub(crate) cpus: f64,
}

/// A command with what it needs besides the recipe.
pub(crate) struct Wanted<'a> {
    pub(crate) command: &'a Command,
    pub(crate) numbers: &'a Numbers,
    pub(crate) group: &'a Grouped,
    /// Among its descriptors are files of the host's.
    pub(crate) files: bool,
    /// Descriptors that are its terminal, if it has one.
    pub(crate) terminal: &'a [u32],
    /// Those that the caller gave for writing.
    pub(crate) writable: &'a [bool],
    /// The slot of the first descriptor.
    pub(crate) first: u8,
}

/// What a sandbox is made for.
pub(crate) enum Purpose<'a> {
    /// One command, with which it ends.
    Run(Wanted<'a>),
    /// One command, which isn't known yet; how long its process waits to be looked at.
    Later(&'a Grouped, Option<Duration>),
    /// Commands that come later.
    Live {
        /// What PID 1 gets of the group.
        group: &'a Grouped,
        /// The writable layer may become a checkpoint's.
        keeps_layer: bool,
    },
}

impl Purpose<'_> {
    /// The slot of the root's mount namespace, if that is a checkpoint: it comes behind
    /// what is the command's.
    fn checkpoint(&self) -> u8 {
        let before = if let Purpose::Run(wanted) = self { wanted.numbers.len() } else { 0 };
        wire::slot::PASSED + before as u8
    }

    fn kept(&self, sandbox: &Sandbox) -> Kept {
        match self {
            Purpose::Live { keeps_layer: true, .. } => Kept::Layer,
            Purpose::Run(_) | Purpose::Later(..) if sandbox.keep_changes => Kept::Changes,
            _ => Kept::No,
        }
    }
}

/// One more command for a sandbox that stands.
pub(crate) fn beside(sandbox: &Sandbox, facts: &Facts, ids: Ids, wanted: &Wanted<'_>) -> Result<Draft> {
    let mut draft = Draft::new();
    let filter = filter(sandbox, wanted.files)?;
    // The descriptors that this one is given are allowed to all from now on, who
    // don't have them.
    draft.stage(Stage::Command);
    let ruleset = landlock::standing(sandbox, facts, self::filter(sandbox, false)?.is_none_or(|filter| filter.sockets));
    if let Some(ruleset) = ruleset {
        ruleset.allow_passed(&mut draft, wanted.writable);
    }
    command(&mut draft, sandbox, facts, ids, wanted, ruleset, filter.as_deref())?;
    Ok(draft)
}

/// The whole way: a fresh sandbox and, if it's for one, its only command.
pub(crate) fn sandbox(sandbox: &Sandbox, facts: &Facts, ids: Ids, purpose: Purpose<'_>) -> Result<Draft> {
    let mut draft = Draft::new();
    let prefer = sandbox.prefers(Layer::IdMappedMounts);
    let (root, foreign) = match ids {
        Ids::Range { first, .. } => (first, prefer),
        Ids::Outer { .. } | Ids::Single { .. } => (0, true),
    };
    let shared = matches!(ids, Ids::Range { shared: true, .. });
    let owners = files::Owners { namespace: None, prefer, shared, ordinary: !facts.privileged, root, substitute: foreign.then_some(root) };
    let kept = purpose.kept(sandbox);
    draft.stage(Stage::Outer);
    let wanted = facts.privileged && (sandbox.maps_owners() || (kept == Kept::Layer && !shared));
    let mut outside = files::sources(&mut draft, sandbox, purpose.checkpoint());
    let namespace = namespaces::outer(&mut draft, sandbox, facts, ids, wanted);
    files::outer(&mut draft, sandbox, facts, files::Owners { namespace, ..owners }, kept, &mut outside);
    namespaces::hand_over(&mut draft);

    draft.stage(Stage::Ahead);
    namespaces::alone(&mut draft, sandbox, facts);
    let devices = files::alone(&mut draft, sandbox, facts);
    draft.stage(Stage::Inner);
    namespaces::receive(&mut draft, ids);
    let filter = filter(sandbox, matches!(&purpose, Purpose::Run(wanted) if wanted.files))?;
    if let (Err(why), true) = (&facts.landlock, sandbox.requires(Layer::Landlock)) {
        return Err(Error::unsupported(format!("cannot restrict the command with Landlock: {why}")).about(Some(Layer::Landlock)));
    }
    let ruleset = landlock::ruleset(&mut draft, sandbox, facts, filter.as_ref().is_none_or(|filter| filter.sockets));
    files::inner(&mut draft, sandbox, &outside, devices, ids.groups(), ruleset);
    if let (Some(ruleset), Purpose::Run(wanted)) = (ruleset, &purpose) {
        ruleset.allow_passed(&mut draft, wanted.writable);
    }
    namespaces::settle(&mut draft, sandbox, ids);
    if draft.overflowed() {
        return Err(Error::invalid("too many binds and tmpfs mounts for one sandbox (about 130 are possible)"));
    }
    if !matches!(purpose, Purpose::Live { .. }) {
        draft.sockets =
            sandbox.prefers(Layer::SyscallFilter) || filter.as_ref().is_none_or(|filter| filter.sockets || filter.passes_descriptors);
        draft.counts_sockets = namespaces::counts_sockets(sandbox, facts, filter.as_deref());
    }
    match purpose {
        Purpose::Run(wanted) => {
            await_group(&mut draft, wanted.group);
            draft.settings.flags |= wire::LAST_COMMAND;
            command(&mut draft, sandbox, facts, ids, &wanted, ruleset, filter.as_deref())?;
        }
        Purpose::Later(group, patience) => {
            await_group(&mut draft, group);
            draft.settings.flags |= wire::LAST_COMMAND;
            if let Some(patience) = patience {
                wait_no_longer_than(&mut draft, patience);
            }
            early(&mut draft, sandbox, facts, ids, group, ruleset, filter.as_deref())?;
            // The command brings its own; PID 1 notes what the counter says before it.
            draft.settings.watch = watch(sandbox, group);
        }
        Purpose::Live { group, .. } => {
            await_group(&mut draft, group);
            draft.settings.watch = watch(sandbox, group);
            draft.settings.flags |= wire::NO_COMMAND | again::flags(sandbox, filter.as_deref());
            // Any of its commands may have a limit of its own; init looks once a second.
            draft.settings.wall_limit = u64::MAX;
        }
    }
    Ok(draft)
}

/// The command stage.
fn command(
    draft: &mut Draft,
    sandbox: &Sandbox,
    facts: &Facts,
    ids: Ids,
    wanted: &Wanted<'_>,
    ruleset: Option<Ruleset>,
    filter: Option<&Filter>,
) -> Result<()> {
    let Wanted { command, group, .. } = wanted;
    enter(draft, sandbox, facts, group)?;
    let limits = limits::rlimits(sandbox, facts, ids, group.processes);
    // A terminal is a session's, and is made with privileges.
    let early = !wanted.terminal.is_empty() || !limits::leave_room(&limits, wanted.numbers);
    if early {
        session(draft);
        descriptors(draft, sandbox, ids, wanted);
    }
    limits::command(draft, &limits);
    privileges::credentials(draft, sandbox, ids.groups());
    draft.area(Area::ReadBack);
    draft.step(op::STAND, &[], "let the host look at", "the command's process");
    // While the host looks, which takes as long as all this: what it doesn't look at.
    if let Some(ruleset) = ruleset {
        ruleset.enforce(draft, sandbox);
    }
    if !early {
        session(draft);
        descriptors(draft, sandbox, ids, wanted);
    }
    directory(draft, command);
    privileges::fences(draft, sandbox, filter);
    draft.area(Area::ReadBack);
    draft.step(op::AWAIT_LOOK, &[], "wait for", "the host's look");
    execute(draft, sandbox, command);
    watches(draft, sandbox, group);
    Ok(())
}

/// The part of it that can be done before the command is known.
fn early(
    draft: &mut Draft,
    sandbox: &Sandbox,
    facts: &Facts,
    ids: Ids,
    group: &Grouped,
    ruleset: Option<Ruleset>,
    filter: Option<&Filter>,
) -> Result<()> {
    enter(draft, sandbox, facts, group)?;
    session(draft);
    if let Some(ruleset) = ruleset {
        // Before descriptors are arranged, which may take the place of this one.
        ruleset.enforce(draft, sandbox);
    }
    limits::command(draft, &limits::rlimits(sandbox, facts, ids, group.processes));
    privileges::credentials(draft, sandbox, ids.groups());
    draft.area(Area::ReadBack);
    draft.step(op::STAND, &[], "let the host look at", "the command's process");
    if fenced_early(filter) {
        privileges::fences(draft, sandbox, filter);
        draft.area(Area::ReadBack);
    }
    draft.step(op::AWAIT_LOOK, &[], "wait for", "the host's look");
    draft.area(Area::Exec);
    draft.step(op::AWAIT_COMMAND, &[u32::from(wire::slot::LATE).into()], "wait for", "the command");
    if filter.is_some_and(|filter| filter.listens) {
        draft.settings.flags |= wire::LISTEN;
    }
    // init has to look after it from time to time, but not before it has a command.
    draft.settings.wall_limit = sandbox.wall_time.map_or(0, |_| u64::MAX);
    Ok(())
}

/// Whether a process can wait for its command under this filter.
fn fenced_early(filter: Option<&Filter>) -> bool {
    filter.is_some_and(|filter| filter.lets_wait)
}

/// What is left of it then; a plan of its own. Only for commands whose descriptors are
/// neither files nor a terminal.
pub(crate) fn late(sandbox: &Sandbox, ids: Ids, wanted: &Wanted<'_>) -> Result<Draft> {
    let mut draft = Draft::new();
    draft.stage(Stage::Command);
    let filter = filter(sandbox, wanted.files)?;
    // Whether they are counted isn't known here; it does no harm if not.
    draft.counts_sockets = filter.as_ref().is_some_and(|filter| filter.plain_sockets) && sandbox.network == Network::None;
    descriptors(&mut draft, sandbox, ids, wanted);
    directory(&mut draft, wanted.command);
    if !fenced_early(filter.as_deref()) {
        privileges::fences(&mut draft, sandbox, filter.as_deref());
    }
    execute(&mut draft, sandbox, wanted.command);
    draft.settings.flags |= wire::LAST_COMMAND;
    watches(&mut draft, sandbox, wanted.group);
    Ok(draft)
}

fn watches(draft: &mut Draft, sandbox: &Sandbox, group: &Grouped) {
    draft.settings.watch = watch(sandbox, group);
    if let Some(limit) = sandbox.wall_time {
        draft.settings.wall_limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1);
    }
}

/// In the groups that hold for it, and on its processors.
fn enter(draft: &mut Draft, sandbox: &Sandbox, facts: &Facts, group: &Grouped) -> Result<()> {
    draft.stage(Stage::Command);
    privileges::processor(draft, sandbox, facts)?;
    draft.area(Area::Setup);
    join(draft, facts, group);
    if draft.counts_sockets {
        draft.step(op::MAKE_SOCKET, &[], "make", "a socket to be counted");
    }
    Ok(())
}

/// A session of its own, with nothing of PID 1's.
fn session(draft: &mut Draft) {
    draft.area(Area::Setup);
    draft.step(libc::SYS_umask, &[0o022.into()], "set", "the umask");
    draft.step(libc::SYS_setsid, &[], "make", "a session");
    // Dispositions are at their defaults since init's start.
    let none = draft.words(&[0]);
    draft.step(libc::SYS_rt_sigprocmask, &[libc::SIG_SETMASK.into(), none, 0.into(), 8.into()], "unblock", "signals");
}

fn descriptors(draft: &mut Draft, sandbox: &Sandbox, ids: Ids, wanted: &Wanted<'_>) {
    let Wanted { command, numbers, terminal, first, .. } = wanted;
    draft.area(Area::Setup);
    let passed = numbers.iter().enumerate().map(|(i, number)| (first + i as u8, *number));
    let mut pairs: Vec<(u8, u32)> = passed.collect();
    if !terminal.is_empty() {
        let slave = self::terminal(draft, sandbox, ids, command.terminal_size());
        pairs.extend(terminal.iter().map(|number| (slave, *number)));
    }
    let bytes: Vec<u8> =
        pairs.iter().flat_map(|(slot, number)| u32::from(*slot).to_le_bytes().into_iter().chain(number.to_le_bytes())).collect();
    let list = draft.data(&bytes);
    let counts = u32::from(draft.counts_sockets);
    draft.step(op::FDS, &[list, pairs.len().into(), counts.into()], "arrange", "the descriptors");
}

fn directory(draft: &mut Draft, command: &Command) {
    draft.area(Area::Chdir);
    let directory = command.directory();
    let path = draft.text(directory.as_os_str().as_bytes());
    draft.step(libc::SYS_chdir, &[path], "enter the working directory", files::display(directory));
}

/// A terminal of the sandbox's own devpts, which becomes the session's controlling one;
/// the host gets the master. Returns the slot of the slave.
fn terminal(draft: &mut Draft, sandbox: &Sandbox, ids: Ids, (rows, columns): (u16, u16)) -> u8 {
    const TIOCSPTLCK: u32 = 0x4004_5431;
    const TIOCGPTPEER: u32 = 0x5441;
    const TIOCSWINSZ: u32 = 0x5414;
    const TIOCSCTTY: u32 = 0x540e;
    let (master, slave) = (draft.slot(), draft.slot());
    let path = draft.text("/dev/pts/ptmx");
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let args = [Arg::Value(wire::AT_FDCWD), path, flags.into()];
    draft.step(libc::SYS_openat, &args, "open", "a terminal").keep_in(master);
    let unlocked = draft.words(&[0]);
    draft.step(libc::SYS_ioctl, &[Arg::Slot(master), TIOCSPTLCK.into(), unlocked], "unlock", "a terminal");
    // struct winsize: rows, columns, and the same in pixels.
    let size = draft.words(&[u64::from(rows) | u64::from(columns) << 16]);
    draft.step(libc::SYS_ioctl, &[Arg::Slot(master), TIOCSWINSZ.into(), size], "set the size of", "a terminal");
    draft.step(libc::SYS_ioctl, &[Arg::Slot(master), TIOCGPTPEER.into(), flags.into()], "open", "a terminal").keep_in(slave);
    if ids.groups() {
        let group = Arg::Value(u64::from(u32::MAX));
        draft.step(libc::SYS_fchown, &[Arg::Slot(slave), sandbox.account().0.into(), group], "own", "a terminal");
    }
    draft.step(libc::SYS_ioctl, &[Arg::Slot(slave), TIOCSCTTY.into(), 0.into()], "take", "a controlling terminal");
    draft.step(op::TERMINAL, &[Arg::Slot(master)], "pass on", "a terminal");
    slave
}

/// Has every wait for the host end in a failure then, but that for the command.
fn wait_no_longer_than(draft: &mut Draft, patience: Duration) {
    draft.area(Area::Setup);
    // struct timeval
    let time = draft.words(&[patience.as_secs(), patience.subsec_micros().into()]);
    let args = [Arg::Slot(wire::slot::REPLY), libc::SOL_SOCKET.into(), libc::SO_RCVTIMEO.into(), time, 16.into()];
    draft.step(libc::SYS_setsockopt, &args, "limit", "the wait for the host");
}

/// Takes the descriptors of the group, which the host has made meanwhile.
fn await_group(draft: &mut Draft, group: &Grouped) {
    let watched = group.cpu.map(|(slot, _)| slot).into_iter().chain(group.oom.into_iter().flat_map(|(event, count)| [event, count]));
    let slots: Vec<u8> = group.join.iter().copied().chain(watched).collect();
    if let Some(first) = slots.first() {
        draft.area(Area::Group);
        draft.step(op::AWAIT_GROUP, &[u32::from(*first).into(), slots.len().into()], "receive", "the control group");
    }
}

/// Joins the control group, and hides where it is. Here, because the namespace needs
/// privileges that are given up next, and because what comes after is little.
fn join(draft: &mut Draft, facts: &Facts, group: &Grouped) {
    draft.area(Area::Group);
    for slot in &group.join {
        draft.step(op::JOIN, &[Arg::Slot(*slot)], "join", "the control group");
    }
    if facts.cgroup_namespace {
        draft.step(libc::SYS_unshare, &[libc::CLONE_NEWCGROUP.into()], "make", "a control group namespace");
    }
}

/// What PID 1 is to watch.
fn watch(sandbox: &Sandbox, group: &Grouped) -> wire::Watch {
    let nanos = |time: Option<Duration>| time.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX));
    let cpus = sandbox.limits.cpus.map_or(group.cpus, |cpus| cpus.min(group.cpus));
    let mut watch = wire::Watch {
        cpu_rate: ((cpus * 1000.0).ceil() as u32).max(1),
        cpu_limit: nanos(sandbox.cpu_time),
        idle_limit: nanos(sandbox.idle_time),
        ..wire::Watch::default()
    };
    // Without a limit there's nothing to watch, and a descriptor less to keep.
    if let (Some((slot, unit)), true) = (group.cpu, watch.cpu_limit | watch.idle_limit != 0) {
        (watch.cpu, watch.cpu_unit) = (slot, unit as u32);
    }
    if let Some((event, count)) = group.oom {
        (watch.oom_event, watch.oom_count) = (event, count);
    }
    if let Some((directory, kill)) = group.own {
        (watch.group, watch.kill) = (directory, kill.unwrap_or(wire::NO_SLOT));
    }
    watch
}

/// The system call filter of a command; `files` says that it's given some of the host's.
fn filter(sandbox: &Sandbox, files: bool) -> Result<Option<Arc<Filter>>> {
    let circumstances = Circumstances {
        keep_set_id: !sandbox.writes_to_host() && !files,
        capabilities: sandbox.kept_capabilities(),
        nesting: sandbox.nesting,
    };
    sandbox.syscalls.filter(circumstances)
}

fn execute(draft: &mut Draft, sandbox: &Sandbox, command: &Command) {
    draft.area(Area::Exec);
    let environment = command.environment(sandbox.home());
    let candidates = command.candidates(&environment);
    let programs = draft.vector(&candidates, false);
    let arguments: Vec<&[u8]> = command.arguments().iter().map(|a| a.as_bytes()).collect();
    let argv = draft.vector(&arguments, true);
    let pairs: Vec<Vec<u8>> = environment.iter().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()).collect();
    let envp = draft.vector(&pairs, true);
    let args: [Arg; 4] = [programs, candidates.len().into(), argv, envp];
    draft.step(op::EXEC, &args, "execute", command.program().to_string_lossy().into_owned());
}

#[cfg(test)]
mod tests {
    use super::super::explain::NAMES;
    use super::super::wire::Plan;
    use super::*;
    use crate::{Image, MIB, Network, Syscalls};

    fn recipes() -> Vec<Sandbox> {
        vec![
            Sandbox::new(),
            Sandbox::new().user(1000, 1000).capabilities(crate::Capability::DOCKER),
            Sandbox::new().network(Network::Host).syscalls(Syscalls::Unfiltered),
            Sandbox::new().rootfs(Image::dir("/some/root")).bind("/a", "/b").bind_rw("/c", "/d").tmpfs("/t", MIB).file("/f", "contents"),
            Sandbox::new().rootfs(Image::dir("/some/root")).prefer(Layer::IdMappedMounts),
        ]
    }

    fn all_ids() -> [(bool, Ids); 3] {
        [
            (true, Ids::Range { first: 1 << 20, shared: false }),
            (false, Ids::Outer { count: 65_536 }),
            (false, Ids::Single { uid: 0, gid: 0 }),
        ]
    }

    fn each(mut check: impl FnMut(&Draft)) {
        for recipe in recipes() {
            for (privileged, ids) in all_ids() {
                let facts = Facts { privileged, ..Facts::of_root() };
                let command = Command::new("sh").arg("-c").arg("true");
                let group =
                    Grouped { join: vec![19, 20], cpu: Some((21, 1000)), oom: Some((22, 23)), own: None, processes: true, cpus: 2.0 };
                let wanted = Wanted {
                    command: &command,
                    numbers: &vec![1, 2],
                    group: &group,
                    files: false,
                    terminal: &[0],
                    writable: &[true, true],
                    first: wire::slot::PASSED,
                };
                check(&sandbox(&recipe, &facts, ids, Purpose::Run(wanted)).expect("a plan"));
            }
        }
    }

    #[test]
    fn every_plan_passes_the_decoder() {
        each(|draft| {
            let bytes = draft.encode();
            let plan = Plan::parse(&bytes).expect("init accepts it");
            assert_eq!(plan.len(), draft.notes.len(), "a note for every step");
        });
    }

    #[test]
    fn steps_are_operations_that_every_architecture_has() {
        each(|draft| {
            for (step, note) in draft.steps.iter().zip(&draft.notes) {
                assert!(NAMES.iter().any(|(op, _)| *op == step.op), "{} {}: {:#x} isn't in the table", note.doing, note.object, step.op);
            }
        });
    }

    /// The order that a workload's confinement hangs on.
    #[test]
    fn privileges_go_in_the_right_order() {
        each(|draft| {
            let places = |op: u32| -> Vec<usize> { (0..draft.steps.len()).filter(|i| draft.steps[*i].op == op).collect() };
            let last = |op: i64| places(op as u32).last().copied().unwrap_or(0);
            let first = |op: i64| places(op as u32).first().copied().unwrap_or(usize::MAX);
            let exec = last(op::EXEC.into());
            assert_eq!(exec, draft.steps.len() - 1, "nothing comes after exec");
            assert!(last(libc::SYS_setresgid) < last(libc::SYS_setresuid), "groups before the user");
            assert!(last(libc::SYS_setresuid) < last(libc::SYS_capset), "capabilities after the user");
            assert!(last(libc::SYS_capset) < exec);
            // init's root is stacked on procfs and detached; on that the new root is stacked.
            let pivots = places(libc::SYS_pivot_root as u32);
            let path = |step: usize, i: usize| draft.blob_text(draft.steps[step].args[i]);
            assert_eq!(pivots.len(), 1);
            assert_eq!((path(pivots[0], 0), path(pivots[0], 1)), (&b"."[..], &b"."[..]));
            assert_eq!(places(libc::SYS_umount2 as u32), [pivots[0] + 1], "the old root is detached");
            assert!(last(libc::SYS_umount2) < first(op::RECEIVE.into()), "nothing of the host's is here yet");
            let entered = last(libc::SYS_chroot);
            assert_eq!((path(entered, 0), draft.steps[entered].stage), (&b"."[..], Stage::Inner));
            assert!(last(op::DROP_BOUNDING.into()) < exec);
            if let Some(filter) = places(libc::SYS_seccomp as u32).first() {
                assert_eq!(*filter, exec - 2, "the filter is the last before exec but for a wait");
                assert_eq!(draft.steps[exec - 1].op, op::AWAIT_LOOK);
                let last = places(libc::SYS_prctl as u32).last().copied().expect("some");
                assert_eq!(draft.notes[last].doing, "set no_new_privs");
                assert!(last < places(op::STAND)[0], "and the host has seen no_new_privs");
            }
            assert!(last(op::DIE_WITH_INIT.into()) > places(libc::SYS_setresuid as u32)[0], "a change of credentials would undo it");
        });
    }

    #[test]
    fn only_root_makes_idmapped_mounts() {
        let recipe = &recipes()[3];
        for (privileged, ids) in all_ids() {
            let facts = Facts { privileged, ..Facts::of_root() };
            let draft = sandbox(recipe, &facts, ids, Purpose::Live { group: &Grouped::default(), keeps_layer: false }).expect("a plan");
            let maps = draft.steps.iter().filter(|step| step.op == op::ID_MAP).count();
            assert_eq!(maps, if privileged { 3 } else { 0 }, "the image and two binds");
        }
    }

    #[test]
    fn what_is_kept_is_mapped_as_a_whole_or_but_for_the_scratch() {
        let (recipe, group) = (Sandbox::new().rootfs(Image::dir("/some/root")), Grouped::default());
        for (shared, object) in [(false, "the writable layer"), (true, "/some/root")] {
            let ids = Ids::Range { first: 1 << 20, shared };
            let draft = sandbox(&recipe, &Facts::of_root(), ids, Purpose::Live { group: &group, keeps_layer: true }).expect("a plan");
            let maps = (0..draft.steps.len()).filter(|i| draft.steps[*i].op == op::ID_MAP);
            assert_eq!(maps.map(|i| &draft.notes[i].object[..]).collect::<Vec<_>>(), [object]);
        }
    }
}
