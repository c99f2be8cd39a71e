//! A sandbox that several commands share, from the host's side.

mod share;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::AsRawFd;

use super::broken::{failed, lost};
use super::place::Place;
use super::request::send_group;
use super::{Keep, Live, Pipes, SETUP_LIMIT, again, cpus, expected, monotonic, pass, send_with_plan, start_empty};
use crate::cgroup::{Counters, Group, Handles, Turns};
use crate::changes::Upper;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Claim;
use crate::launch::{self, Init};
use crate::layer::{IdMap, IdRange};
use crate::plan::compile::{self, Grouped, Wanted};
use crate::plan::message::{Report, Request};
use crate::plan::namespaces::{Ids, RANGE};
use crate::plan::{Draft, failure, wire};
use crate::probe::Layer as Fence;
use crate::sandbox::Sandbox;
use crate::sys;
use crate::trace::Trace;
use crate::volume::Hold;
use share::Joined;
pub(crate) use share::Share;

/// How long the end waits for what it killed.
const END_LIMIT: Duration = Duration::from_secs(2);

/// A sandbox that stands.
#[derive(Debug)]
pub(crate) struct Session {
    reply: Arc<OwnedFd>,
    sandbox: Mutex<Sandbox>,
    /// Kept as long as the sandbox may live.
    claim: Option<Arc<Claim>>,
    /// Until its end.
    volumes: Mutex<Option<Arc<Hold>>>,
    group: Mutex<Group>,
    init: Arc<Init>,
    pub(crate) ids: Ids,
    /// Numbers of commands, and of their groups.
    commands: AtomicU32,
    next: AtomicU32,
    /// Commands whose end hasn't been seen.
    running: AtomicU32,
    /// Left by a command, for the next.
    spare: Mutex<Option<Joined>>,
    /// What its group said when a command had ended that was alone in it, and the number of
    /// the command before whose start nothing else can have happened there.
    events: Mutex<Option<(u32, Counters)>>,
    /// Its id maps have been read back, and can't change any more (user_namespaces(7)).
    mapped: AtomicBool,
    layer: Mutex<Option<Shown>>,
    missing: u64,
    pub(crate) began: u64,
    trace: Trace,
    pub(crate) paused: Mutex<bool>,
    /// If it's to serve again: of its group.
    turns: Option<Turns>,
    /// The group of a command could not be removed.
    crowded: AtomicBool,
    ended: AtomicBool,
    /// The process that started it: a forked child's copy means nothing.
    owner: u32,
}

/// The writable layer of a sandbox.
#[derive(Debug)]
pub(crate) struct Shown {
    /// The mount namespace that has it with all that is below.
    pub(crate) mounts: OwnedFd,
    pub(crate) upper: Upper,
    /// The ids that other sandboxes on it must have.
    pub(crate) ids: Option<Arc<Claim>>,
}

/// Stands for a kernel whose tmpfs has no idmapped mounts; for tests.
pub(crate) static WITHOUT_IDMAPPED_TMPFS: AtomicBool = AtomicBool::new(false);

/// A message with its descriptors.
pub(crate) type Answer = (Report, Vec<OwnedFd>);

/// What steps inside are about, for errors.
pub(crate) const FILES: &str = "the files of the sandbox";

impl Session {
    /// Starts one whose writable layer may become a checkpoint's. For root the layer is
    /// mapped to the ids of each sandbox on it. Where tmpfs has no idmapped mounts (before
    /// Linux 6.3), which nothing but trying tells, they'll share the ids of this one.
    ///
    /// With the locks on its volumes, where another one has just had them.
    pub(crate) fn start(sandbox: &Sandbox, held: Option<Arc<Hold>>) -> Result<Session> {
        let init = launch::init()?;
        if init.maps_layers() {
            let attempt = match WITHOUT_IDMAPPED_TMPFS.load(Ordering::Relaxed) && init.facts.privileged {
                true => Err(Error::unsupported("tmpfs has no idmapped mounts").about(Some(Fence::IdMappedMounts))),
                false => Session::attempt(sandbox, Keep::Layer, held.clone()),
            };
            match attempt {
                Err(error) if error.layer() == Some(Fence::IdMappedMounts) => {}
                other => return other,
            }
        }
        if sandbox.requires(Fence::IdMappedMounts) {
            return Session::attempt(sandbox, Keep::Nothing, held);
        }
        let session = Session::attempt(sandbox, Keep::LayerWithIds, held)?;
        // Else it may have been the image.
        if session.missing & Fence::IdMappedMounts.bit() == 0 {
            init.maps_no_layers();
        }
        Ok(session)
    }

    /// Starts one that serves one command after another, as long as each leaves it as it was.
    pub(super) fn start_to_serve_again(sandbox: &Sandbox) -> Result<Session> {
        let mut sandbox = sandbox.clone();
        sandbox.serves_again = true;
        let mut session = Session::attempt(&sandbox, Keep::Nothing, None)?;
        let turns = session.group().take_turns()?;
        session.turns = Some(turns);
        Ok(session)
    }

    /// Whether the next command would find it as the first one did, as far as the host can
    /// tell: PID 1 has told the rest.
    pub(super) fn is_as_it_was(&self) -> bool {
        self.turns.as_ref().is_some_and(Turns::next) && !self.crowded.load(Ordering::Relaxed) && self.stands()
    }

    /// It has had a command.
    pub(super) fn has_served(&self) -> bool {
        self.commands.load(Ordering::Relaxed) > 1
    }

    fn attempt(sandbox: &Sandbox, keep: Keep, held: Option<Arc<Hold>>) -> Result<Session> {
        let began = monotonic();
        let mut trace = Trace::of_instance(sandbox);
        let volumes = held.map_or_else(|| sandbox.hold_volumes().map(Arc::new), Ok)?;
        let asked = start_empty(sandbox, keep)?;
        let mut group = asked.group;
        if let Err(error) = group.make() {
            // init removes the group of a sandbox that it can't start, and has said why.
            return Err(has_failed(&asked.reply, &asked.draft, sandbox, &mut group).unwrap_or(error));
        }
        group.prepare_for_commands();
        // The others are for commands.
        send_group(&asked.reply, &group.oom_handles())?;
        group.sent();
        let (missing, shown) = stands(&asked.reply, &asked.draft, sandbox, &mut group).inspect_err(|error| trace.failed(error))?;
        trace.started();
        if let Some(checkpoint) = sandbox.root.checkpoint() {
            checkpoint.has_been_sealed();
        }
        let ids = match asked.expected.ids {
            // As they are inside: see plan/scratch.rs.
            Ids::Range { shared: false, .. } => IdMap::same(vec![IdRange { here: 0, there: 0, count: RANGE }]),
            others => asked.init.id_map(others),
        };
        let shared = asked.claim.clone().filter(|_| matches!(asked.expected.ids, Ids::Range { shared: true, .. }));
        let shown = shown.map(|(mounts, upper)| Shown { mounts, upper: Upper::new(upper, sandbox, ids), ids: shared });
        Ok(Session {
            trace,
            reply: Arc::new(asked.reply),
            sandbox: Mutex::new(sandbox.with_changes(asked.later)),
            claim: asked.claim,
            volumes: Mutex::new(Some(volumes)),
            missing: missing | group.missing | asked.draft.missing,
            group: Mutex::new(group),
            init: asked.init,
            ids: asked.expected.ids,
            commands: AtomicU32::new(1),
            next: AtomicU32::new(1),
            running: AtomicU32::new(0),
            spare: Mutex::new(None),
            events: Mutex::new(None),
            mapped: AtomicBool::new(false),
            layer: Mutex::new(shown),
            began,
            paused: Mutex::new(false),
            turns: None,
            crowded: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            owner: std::process::id(),
        })
    }

    /// Does something with its writable layer.
    pub(crate) fn with_layer<T>(&self, look: impl FnOnce(&Upper) -> Result<T>) -> Result<T> {
        let layer = lock(&self.layer);
        look(&layer.as_ref().ok_or_else(|| self.no_layer())?.upper)
    }

    /// How ids outside are called inside.
    pub(crate) fn id_map(&self) -> IdMap {
        self.init.id_map(self.ids)
    }

    fn no_layer(&self) -> Error {
        if self.ended.load(Ordering::Relaxed) {
            return self.over();
        }
        Error::unsupported(
            "the writable layer can't be kept: the recipe requires idmapped mounts, which tmpfs doesn't have here (it has them from Linux 6.3)",
        )
    }

    /// Ends it, and hands over its writable layer. If that can't be, nothing happens.
    pub(crate) fn freeze(&self) -> Result<Shown> {
        if self.running.load(Ordering::Relaxed) > 0 {
            return Err(Error::invalid("a command is still running, or nobody has waited for its end; a checkpoint has no processes"));
        }
        let layer = lock(&self.layer).take().ok_or_else(|| self.no_layer())?;
        if !self.end() {
            return Err(Error::new(ErrorKind::Lost, "the sandbox could not be ended in time, so its files are no checkpoint"));
        }
        Ok(layer)
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.owner == std::process::id()
    }

    pub(crate) fn group(&self) -> MutexGuard<'_, Group> {
        lock(&self.group)
    }

    /// The recipe as it is now.
    pub(crate) fn sandbox(&self) -> Sandbox {
        lock(&self.sandbox).clone()
    }

    pub(crate) fn set_sandbox(&self, sandbox: Sandbox) {
        *lock(&self.sandbox) = sandbox;
    }

    /// Sends PID 1 something about all commands.
    pub(crate) fn tell(&self, kind: u32, value: u64, time: u64) -> Result<()> {
        let request = Request { kind, command: 0, value, time };
        self.sent(sys::socket::send(self.reply.as_fd(), &request.encode(), &[]))
    }

    fn sent(&self, sent: io::Result<()>) -> Result<()> {
        match sent {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN)) => Err(self.over()),
            other => other.map_err(|e| Error::io("tell", "the sandbox", e)),
        }
    }

    fn over(&self) -> Error {
        if self.ended.load(Ordering::Relaxed) { Error::new(ErrorKind::Lost, "the sandbox has been ended") } else { lost(Some(0)) }
    }

    /// Asks for one of the two verbs. Returns the host's end of its reply socket.
    pub(crate) fn ask(&self, kind: u32, command: u32, plan: &Draft, fds: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
        let (ours, theirs) = sys::socket::pair().map_err(|e| Error::io("make", "a socket", e))?;
        let request = Request { kind, command, value: 0, time: 0 };
        self.sent(send_with_plan(self.reply.as_fd(), &request, plan, Some(theirs.as_fd()), fds)?)?;
        Ok(ours)
    }

    /// Does the steps inside, in a process of the sandbox's root that ends after `limit`;
    /// the descriptors that they keep, `None` for a step whose failure was tolerated.
    pub(crate) fn perform(&self, draft: &Draft, fds: &[BorrowedFd<'_>], limit: Duration) -> Result<Vec<Option<OwnedFd>>> {
        let reply = self.ask_to_perform(draft, fds)?;
        self.performed(draft, answer(&reply, FILES, limit)?)
    }

    /// The first half of [`perform`](Self::perform): returns the socket of the answer.
    pub(crate) fn ask_to_perform(&self, draft: &Draft, fds: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
        self.ask(Request::DO, 0, draft, fds)
    }

    /// Its second half.
    pub(crate) fn performed(&self, draft: &Draft, answer: Option<Answer>) -> Result<Vec<Option<OwnedFd>>> {
        let Some((report, fds)) = answer else { return Err(self.over()) };
        if report.kind != Report::DONE {
            return Err(failure::error(draft, None, &report));
        }
        let mut fds = fds.into_iter();
        let keeping = draft.steps.iter().filter(|step| wire::slot::is_returned(step.slot));
        Ok(keeping.enumerate().map(|(i, _)| if report.missing >> i & 1 == 1 { fds.next() } else { None }).collect())
    }

    /// Asks for a command, with further flags of its plan.
    pub(crate) fn command(self: &Arc<Session>, mut command: Command, flags: u64) -> Result<(Live, Pipes)> {
        let began = monotonic();
        let recipe = self.sandbox();
        let sandbox = command.limits.over(&recipe).unwrap_or(recipe);
        sandbox.validate()?;
        command = sandbox.complete(command)?;
        command.validate()?;
        if *lock(&self.paused) {
            return Err(Error::invalid("a paused sandbox starts no command; resume it first"));
        }
        let trace = Trace::of_command(Some(&self.trace), &sandbox, &command);
        let passed = pass(&mut command, &sandbox)?;
        let share = self.share(sandbox.group_limits().cpu_account)?;
        let number = share.number;
        let none = Handles::default();
        let handles = share.joined.as_ref().map_or(&none, |joined| &joined.handles);
        let mut fds: Vec<BorrowedFd<'_>> = passed.fds.iter().map(AsFd::as_fd).collect();
        let group = grouped(&sandbox, handles, &mut fds, self.group().limits_processes());
        let wanted = Wanted {
            first: wire::slot::PASSED,
            command: &command,
            numbers: &passed.numbers,
            group: &group,
            files: passed.files,
            terminal: &passed.terminal,
            writable: &passed.writable,
        };
        let mut draft = compile::beside(&sandbox, &self.init.facts, self.ids, &wanted)?;
        draft.change(&sandbox.changes)?;
        draft.settings.flags |= flags | passed.flags();
        // A host that wants no notice looks at once. And what a bind leads to may hold up an
        // exec: a lease that somebody elsewhere has on the program (fcntl(2)), or a server.
        if flags & wire::NOTIFY_START == 0 && sandbox.has_own_files_only() {
            draft.settings.flags |= wire::ALONE;
        }
        draft.settings.command = number;
        let expected = expected(&sandbox, &self.init, self.ids, group.processes);
        let reply = self.ask(Request::RUN, number, &draft, &fds)?;
        let place = Place::Shared(Box::new(share));
        Ok((Live::new(began, trace, sandbox, reply, draft, expected, place, passed.streams), passed.pipes))
    }

    /// Whether it has said nothing since its start: it would be its end.
    pub(crate) fn stands(&self) -> bool {
        matches!(launch::wait_readable(self.reply.as_fd(), Duration::ZERO), Ok(false))
    }

    /// Tells init that it's not wanted any more.
    pub(crate) fn let_go(&self) {
        let _ = shutdown(self.reply.as_raw_fd(), Shutdown::Write);
    }

    /// The locks on its volumes, for the one that takes its place when it has
    /// [ended](Self::end): nobody else gets them in between.
    pub(crate) fn volumes(&self) -> Option<Arc<Hold>> {
        lock(&self.volumes).clone()
    }

    /// Kills everything, has it reported, and waits for the end; true if that came.
    pub(crate) fn end(&self) -> bool {
        if !self.is_ours() || self.ended.swap(true, Ordering::Relaxed) {
            return false;
        }
        // So that what is frozen dies on every kernel.
        let _ = self.group().freeze(false);
        let asked = self.tell(Request::END, 0, 0).is_ok();
        if !asked {
            let _ = shutdown(self.reply.as_raw_fd(), Shutdown::Write);
        }
        let mut gone = wait_for_end(&self.reply, if asked { END_LIMIT } else { Duration::ZERO });
        if !gone {
            // init kills PID 1 when it sees this.
            let _ = shutdown(self.reply.as_raw_fd(), Shutdown::Write);
            gone = wait_for_end(&self.reply, END_LIMIT);
        }
        let _ = shutdown(self.reply.as_raw_fd(), Shutdown::Write);
        let volumes = lock(&self.volumes).take();
        if let Some(volumes) = volumes.filter(|_| !gone) {
            // As long as this program lives: it may not be dead.
            std::mem::forget(volumes);
        }
        if let Some(claim) = self.claim.as_ref().filter(|_| !gone) {
            claim.outlast(self.reply.clone());
        }
        gone
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// True when everybody is dead.
fn wait_for_end(reply: &OwnedFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if !launch::wait_readable(reply.as_fd(), left).unwrap_or(false) {
            return false;
        }
        let mut bytes = [0; Report::SIZE];
        let received = sys::socket::receive(reply.as_fd(), &mut bytes, false).ok();
        match received.and_then(|(length, _)| Report::decode(&bytes[..length])) {
            Some(report) if report.kind != Report::GONE => {}
            _ => return true,
        }
    }
}

/// Waits until a sandbox stands; the layers that could not be had and, if it's shown, the
/// writable layer: its mount namespace and its directory.
fn stands(reply: &OwnedFd, draft: &Draft, sandbox: &Sandbox, group: &mut Group) -> Result<(u64, Option<(OwnedFd, OwnedFd)>)> {
    let (mut mounts, mut upper) = (None, None);
    let report = loop {
        match answer(reply, "the sandbox", SETUP_LIMIT)? {
            Some((report, fds)) if report.kind == Report::MOUNTS => mounts = fds.into_iter().next(),
            Some((report, fds)) if report.kind == Report::UPPER => upper = fds.into_iter().next(),
            other => break other,
        }
    };
    match report {
        Some((report, _)) if report.kind == Report::READY => {
            again::can_be_told(report.detail)?;
            Ok((report.missing, mounts.zip(upper)))
        }
        Some((report, _)) if report.kind == Report::FAILED => Err(failed(&report, draft, sandbox, Some(group))),
        Some((report, _)) => Err(lost(Some(report.status))),
        None => Err(lost(None)),
    }
}

/// What has kept a sandbox from standing, if it has said so by now.
fn has_failed(reply: &OwnedFd, draft: &Draft, sandbox: &Sandbox, group: &mut Group) -> Option<Error> {
    while let Ok(true) = launch::wait_readable(reply.as_fd(), Duration::ZERO) {
        let (report, _) = take_answer(reply, "the sandbox").ok()??;
        if report.kind == Report::FAILED {
            return Some(failed(&report, draft, sandbox, Some(group)));
        }
    }
    None
}

/// The next message on a reply socket, within `limit`; `None` at its end.
fn answer(reply: &OwnedFd, object: &str, limit: Duration) -> Result<Option<Answer>> {
    if !launch::wait_readable(reply.as_fd(), limit).map_err(|e| Error::io("wait for", object, e))? {
        return Err(no_answer(object, limit));
    }
    take_answer(reply, object)
}

pub(crate) fn no_answer(object: &str, limit: Duration) -> Error {
    let text = format!("cannot go on with {object}: no answer within {limit:?} (does a bind lie on a file system that hangs?)");
    Error::new(ErrorKind::Setup, text)
}

/// The message that is there, or will be soon.
pub(crate) fn take_answer(reply: &OwnedFd, object: &str) -> Result<Option<Answer>> {
    let mut bytes = [0; Report::SIZE];
    let (length, fds) = sys::socket::receive(reply.as_fd(), &mut bytes, true).map_err(|e| Error::io("hear from", object, e))?;
    Ok(Report::decode(&bytes[..length]).map(|report| (report, fds)))
}

/// Puts the descriptors of the groups behind the command's own.
fn grouped<'a>(sandbox: &Sandbox, handles: &'a Handles, fds: &mut Vec<BorrowedFd<'a>>, processes: bool) -> Grouped {
    let mut add = |fd: &'a OwnedFd| {
        fds.push(fd.as_fd());
        wire::slot::PASSED + (fds.len() - 1) as u8
    };
    Grouped {
        join: handles.join.iter().map(&mut add).collect(),
        cpu: handles.cpu.as_ref().map(|(fd, unit)| (add(fd), *unit)),
        oom: None,
        own: handles.own.as_ref().map(|(directory, kill)| (add(directory), kill.as_ref().map(&mut add))),
        processes,
        cpus: cpus(sandbox),
    }
}
