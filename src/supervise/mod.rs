//! From recipe to outcome: the host's side of a run.
//!
//! There's one poll loop for the reply socket and the streams, in the thread that
//! waits, and none in between: what must happen without the host's attention (the
//! wall clock, the killing of leftovers) is PID 1's business.

pub(crate) mod capture;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::stat::{SFlag, fstat};
use std::os::fd::AsRawFd;

use crate::cgroup::{Counters, Group};
use crate::child::Child;
use crate::command::{Command, FdKind, Stdio, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Claim;
use crate::launch::{self, Init, sealed, timeout_until};
use crate::net::Network;
use crate::outcome::{Facts, Output};
use crate::plan::compile::{Grouped, Wanted};
use crate::plan::explain::Explanation;
use crate::plan::namespaces::Ids;
use crate::plan::start::Start;
use crate::plan::wire::{Report, Request};
use crate::plan::{Draft, compile, failure, wire};
use crate::probe::{Layer, LayerState, Report as CheckReport};
use crate::sandbox::Sandbox;
use crate::sys;
use capture::Capture;

/// Set-up takes a millisecond or two; a minute means that it hangs on something of
/// the host's, a dead network file system for example.
const SETUP_LIMIT: Duration = Duration::from_secs(60);
/// How long `drop` waits for the end of what it killed.
const DROP_LIMIT: Duration = Duration::from_secs(2);

/// A sandbox that has been asked for.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) reply: Arc<OwnedFd>,
    draft: Draft,
    sandbox: Sandbox,
    /// Kept as long as the sandbox may live.
    _claim: Option<Claim>,
    group: Group,
    init: Arc<Init>,
    counters: Counters,
    asked: u64,
    streams: [Option<Capture>; 2],
    ended: Option<Report>,
    output_exceeded: bool,
    gone: bool,
    /// The process that started it. A forked child has a copy of this value, whose
    /// end means nothing.
    owner: u32,
}

/// Streams of a command that the caller holds.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    pub(crate) stdin: Option<io::PipeWriter>,
    pub(crate) stdout: Option<io::PipeReader>,
    pub(crate) stderr: Option<io::PipeReader>,
}

/// Descriptors for the command, and their numbers there.
struct Passed {
    fds: Vec<OwnedFd>,
    numbers: Vec<u32>,
    streams: [Option<Capture>; 2],
    pipes: Pipes,
    /// Some of them are files of the host's, which the workload could change.
    files: bool,
}

pub(crate) fn run(sandbox: &Sandbox, command: Command) -> Result<Output> {
    for stream in [&command.stdin, &command.stdout, &command.stderr] {
        if matches!(stream.0, Stream::Piped) {
            return Err(Error::invalid("`run` waits for the end, so nobody could use a piped stream; take `spawn`"));
        }
    }
    let (mut live, _) = launch(sandbox, Some(command), wire::NOTIFY_START)?;
    live.started()?;
    live.wait(None)?;
    live.finish()
}

pub(crate) fn spawn(sandbox: &Sandbox, command: Command) -> Result<Child> {
    let (mut live, pipes) = launch(sandbox, Some(command), wire::NOTIFY_START)?;
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
    let wanted = Wanted { command: &command, numbers: &vec![0, 1, 2], group, files: false };
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

fn launch(sandbox: &Sandbox, command: Option<Command>, flags: u64) -> Result<(Live, Pipes)> {
    let asked = monotonic();
    sandbox.validate()?;
    if let Some(command) = &command {
        command.validate()?;
    }
    let mut command = command;
    let passed = match &mut command {
        Some(command) => pass(command, sandbox)?,
        None => Passed { fds: Vec::new(), numbers: Vec::new(), streams: [None, None], pipes: Pipes::default(), files: false },
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
    let Asked { reply, draft, claim, group, init } = result?;
    let mut live = Live {
        reply: Arc::new(reply),
        draft,
        sandbox: sandbox.clone(),
        _claim: claim,
        group,
        init,
        counters: Counters::default(),
        asked,
        streams: passed.streams,
        ended: None,
        output_exceeded: false,
        gone: false,
        owner: std::process::id(),
    };
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
}

fn ask(sandbox: &Sandbox, command: Option<&Command>, flags: u64, passed: &Passed) -> Result<Asked> {
    let init = launch::init()?;
    let (ids, claim) = ids(sandbox, &init)?;
    let mut group = group(sandbox, &init)?;
    let grouped = grouped(sandbox, &group, passed.fds.len());
    let wanted = command.map(|command| Wanted { command, numbers: &passed.numbers, group: &grouped, files: passed.files });
    let mut draft = compile::sandbox(sandbox, &init.facts, ids, wanted)?;
    draft.settings.flags |= flags;
    let bytes = draft.encode();
    if draft.steps.len() > wire::MAX_STEPS {
        return Err(Error::invalid("the recipe has more than 65,000 files and mounts; bind a directory instead"));
    }
    if bytes.len() > wire::MAX_PLAN {
        return Err(Error::invalid("files and arguments of the run are larger than 256 MiB together; bind a directory instead"));
    }
    let plan = sealed(c"cofferdam-plan", &bytes)?;
    let fds: Vec<BorrowedFd<'_>> = passed.fds.iter().map(AsFd::as_fd).collect();
    let reply = launch::start_sandbox(&init, plan.as_fd(), &fds, &mut group)?;
    Ok(Asked { reply, draft, claim, group, init })
}

/// Opens what the command's descriptors are connected to.
fn pass(command: &mut Command, sandbox: &Sandbox) -> Result<Passed> {
    let mut passed = Passed { fds: Vec::new(), numbers: vec![0, 1, 2], streams: [None, None], pipes: Pipes::default(), files: false };
    let pipe = || io::pipe().map_err(|e| Error::io("make", "a pipe", e));
    let null = || {
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
        file.map(OwnedFd::from).map_err(|e| Error::io("open", "/dev/null", e))
    };
    // Only of what the caller gives: /dev/null, pipes and bytes of ours are harmless.
    let mut files = false;
    let taken = |stdio: &mut Stdio| std::mem::replace(stdio, Stdio::null()).0;
    let stdin = match taken(&mut command.stdin) {
        Stream::Null | Stream::Captured => null()?,
        Stream::Piped => {
            let (reader, writer) = pipe()?;
            passed.pipes.stdin = Some(writer);
            reader.into()
        }
        Stream::Inherit => noted(inherited(io::stdin().as_fd())?, &mut files)?,
        Stream::Bytes(bytes) => sealed(c"stdin", &bytes)?,
        Stream::Fd(fd) => {
            check_kind(&fd, FdKind::Plain, "standard input")?;
            noted(fd, &mut files)?
        }
        Stream::Relay(_) => return Err(Error::invalid("an input can't be relayed; pass the descriptor itself")),
    };
    passed.fds.push(stdin);
    for i in 0..2 {
        let (stdio, name) = if i == 0 { (&mut command.stdout, "standard output") } else { (&mut command.stderr, "standard error") };
        let stream = taken(stdio);
        let fd = match stream {
            Stream::Null => null()?,
            Stream::Captured | Stream::Relay(_) => {
                let (reader, writer) = pipe()?;
                let target = if let Stream::Relay(target) = stream { Some(target) } else { None };
                let capture =
                    Capture::new(reader.into(), target, sandbox.output, sandbox.keep_output).map_err(|e| Error::io("prepare", name, e))?;
                passed.streams[i] = Some(capture);
                writer.into()
            }
            Stream::Piped => {
                let (reader, writer) = pipe()?;
                *(if i == 0 { &mut passed.pipes.stdout } else { &mut passed.pipes.stderr }) = Some(reader);
                writer.into()
            }
            Stream::Inherit if i == 0 => noted(inherited(io::stdout().as_fd())?, &mut files)?,
            Stream::Inherit => noted(inherited(io::stderr().as_fd())?, &mut files)?,
            Stream::Bytes(_) => return Err(Error::invalid(format!("{name} can't be connected to bytes"))),
            Stream::Fd(fd) => {
                check_kind(&fd, FdKind::Plain, name)?;
                noted(fd, &mut files)?
            }
        };
        passed.fds.push(fd);
    }
    for (number, fd, kind) in std::mem::take(&mut command.fds) {
        check_kind(&fd, kind, &format!("descriptor {number}"))?;
        passed.fds.push(noted(fd, &mut files)?);
        passed.numbers.push(number);
    }
    passed.files = files;
    Ok(passed)
}

fn inherited(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(|e| Error::io("inherit", "a standard stream", e))
}

/// Takes note of a descriptor of something that could be made set-user-ID: all but
/// pipes, terminals and the like.
fn noted(fd: OwnedFd, files: &mut bool) -> Result<OwnedFd> {
    let stat = fstat(&fd).map_err(|e| Error::io("look at", "a descriptor", e.into()))?;
    let found = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    *files |= found != SFlag::S_IFIFO && found != SFlag::S_IFCHR;
    Ok(fd)
}

/// Refuses descriptors that are a way out of a sandbox.
fn check_kind(fd: &OwnedFd, kind: FdKind, name: &str) -> Result<()> {
    let stat = fstat(fd).map_err(|e| Error::io("look at", name, e.into()))?;
    let found = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    let fits = match kind {
        FdKind::Plain => found == SFlag::S_IFREG || found == SFlag::S_IFIFO || found == SFlag::S_IFCHR,
        FdKind::Socket => found == SFlag::S_IFSOCK,
        FdKind::Directory => found == SFlag::S_IFDIR,
    };
    if fits {
        return Ok(());
    }
    let (what, instead) = match found {
        SFlag::S_IFDIR => {
            ("a directory", "through which the host's files could be reached; `Command::directory_fd` passes it all the same")
        }
        SFlag::S_IFSOCK => ("a socket", "through which further descriptors could come in; `Command::socket` passes it all the same"),
        SFlag::S_IFBLK => ("a block device", "which a sandbox must not have"),
        _ => ("neither a file, a pipe nor a character device", "and can't be passed"),
    };
    Err(Error::invalid(format!("{name} is {what}, {instead}")))
}

impl Live {
    /// Makes the control group while init is at work, and passes it to PID 1, which
    /// waits for it before the command.
    fn give_group(&mut self) -> Result<()> {
        self.group.make()?;
        let handles = self.group.handles()?;
        if handles.is_empty() {
            return Ok(());
        }
        let fds: Vec<BorrowedFd<'_>> = handles.iter().map(AsFd::as_fd).collect();
        let request = Request { kind: Request::GROUP, command: 0, value: 0, time: 0 };
        match sys::socket::send(self.reply.as_fd(), &request.encode(), &fds) {
            // It has failed; why is on the way.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => Ok(()),
            other => other.map_err(|e| Error::io("pass", "the control group", e)),
        }
    }

    /// Waits for the program's exec; the pidfd of its process.
    fn started(&mut self) -> Result<OwnedFd> {
        if !launch::wait_readable(self.reply.as_fd(), SETUP_LIMIT).map_err(|e| Error::io("wait for", "the sandbox", e))? {
            return Err(Error::new(
                ErrorKind::Setup,
                "cannot start the sandbox: set-up did not end within 60 s (does a bind or the root lie on a file system that hangs?)",
            ));
        }
        match self.message(true)? {
            Some((report, mut fds)) if report.kind == Report::STARTED && !fds.is_empty() => Ok(fds.remove(0)),
            Some((report, _)) if report.kind == Report::READY => Err(Error::new(ErrorKind::Setup, "the sandbox has no command")),
            _ => Err(self.lost(None)),
        }
    }

    /// The next message; failures become errors. `None` if there's none now.
    fn message(&mut self, wait: bool) -> Result<Option<(Report, Vec<OwnedFd>)>> {
        let mut bytes = [0; Report::SIZE];
        let (length, fds) = match sys::socket::receive(self.reply.as_fd(), &mut bytes, wait) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other.map_err(|e| Error::io("hear from", "the sandbox", e))?,
        };
        let Some(report) = Report::decode(&bytes[..length]) else {
            self.gone = true;
            return Err(self.lost(None));
        };
        match report.kind {
            Report::FAILED => {
                // No step is to blame, so perhaps init itself refused.
                if self.draft.notes.get(report.status as usize).is_none() {
                    self.group.take_back();
                }
                Err(failure::error(&self.draft, Some(&self.sandbox), &report))
            }
            Report::GONE => {
                self.gone = true;
                if self.ended.is_some() { Ok(Some((report, fds))) } else { Err(self.lost(Some(report.status))) }
            }
            Report::ENDED => {
                self.ended = Some(report);
                // All are dead, so this is final; init removes the group when we let go.
                self.counters = self.group.counters();
                let _ = shutdown(self.reply.as_raw_fd(), Shutdown::Write);
                Ok(Some((report, fds)))
            }
            _ => Ok(Some((report, fds))),
        }
    }

    fn lost(&self, status: Option<u32>) -> Error {
        let how = match status {
            Some(status) if status & 0x7f == libc::SIGKILL as u32 => {
                "its first process was killed from outside (is the host out of memory?)"
            }
            Some(_) => "its first process ended early",
            None => "init ended, and all sandboxes with it",
        };
        Error::new(ErrorKind::Lost, format!("the sandbox is lost: {how}"))
    }

    /// Tells PID 1 something about the command. It may be gone already.
    pub(crate) fn tell(&self, kind: u32, value: u64, time: Duration) -> Result<()> {
        tell(&self.reply, kind, value, time)
    }

    /// Takes a piped stream back, to be captured.
    pub(crate) fn capture(&mut self, i: usize, pipe: OwnedFd) -> Result<()> {
        let capture =
            Capture::new(pipe, None, self.sandbox.output, self.sandbox.keep_output).map_err(|e| Error::io("prepare", "a stream", e))?;
        self.streams[i] = Some(capture);
        Ok(())
    }

    /// Until the end, or until `deadline`; true at the end.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> Result<bool> {
        let mut buffer = Vec::new();
        while self.ended.is_none() {
            self.turn(deadline, &mut buffer)?;
            // Asked here and not when poll times out: with a stream that always has
            // something to read it never does.
            if self.ended.is_none() && deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(false);
            }
        }
        // Every process is dead, so what the pipes hold now is the rest.
        for stream in self.streams.iter_mut().flatten() {
            stream.drain(&mut buffer).map_err(|e| Error::io("read", "the output", e))?;
        }
        self.note_excess()?;
        while let Some(stream) = self.streams.iter_mut().flatten().find(|s| !s.settled()) {
            let Some((fd, events)) = stream.wants() else { break };
            let mut polled = [PollFd::new(fd, events)];
            let ready = poll(&mut polled, deadline.map_or(PollTimeout::NONE, timeout_until));
            match ready {
                Ok(0) => return Ok(false),
                Ok(_) => stream.advance(&mut buffer).map_err(|e| Error::io("pass on", "the output", e))?,
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("wait for", "the sandbox", errno.into())),
            }
        }
        Ok(true)
    }

    /// One turn of the poll loop: until something happens, or until `deadline`.
    fn turn(&mut self, deadline: Option<Instant>, buffer: &mut Vec<u8>) -> Result<()> {
        let ready: Vec<bool> = {
            // init's end is the sandbox's, and is seen here even if a forked child of
            // ours holds a copy of the other end of the socket.
            let mut polled = vec![PollFd::new(self.reply.as_fd(), PollFlags::POLLIN), PollFd::new(self.init.pidfd(), PollFlags::POLLIN)];
            let mut places = Vec::new();
            for (i, stream) in self.streams.iter().enumerate() {
                if let Some((fd, events)) = stream.as_ref().and_then(Capture::wants) {
                    polled.push(PollFd::new(fd, events));
                    places.push(i);
                }
            }
            match poll(&mut polled, deadline.map_or(PollTimeout::NONE, timeout_until)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("wait for", "the sandbox", errno.into())),
            }
            let happened = |p: &PollFd<'_>| p.revents().is_some_and(|r| !r.is_empty());
            let mut ready = vec![happened(&polled[0]), false, false, happened(&polled[1])];
            for (place, p) in places.iter().zip(&polled[2..]) {
                ready[place + 1] = happened(p);
            }
            ready
        };
        for (stream, ready) in self.streams.iter_mut().zip(&ready[1..3]) {
            if let (Some(stream), true) = (stream, ready) {
                stream.advance(buffer).map_err(|e| Error::io("read", "the output", e))?;
            }
        }
        self.note_excess()?;
        if ready[0] {
            self.message(false)?;
        } else if ready[3] {
            self.gone = true;
            return Err(self.lost(None));
        }
        Ok(())
    }

    /// Latches that a stream is too long, and ends the run.
    fn note_excess(&mut self) -> Result<()> {
        if !self.output_exceeded && self.streams.iter().flatten().any(Capture::exceeded) {
            self.output_exceeded = true;
            if self.ended.is_none() {
                self.tell(Request::KILL, 1, Duration::ZERO)?;
            }
        }
        Ok(())
    }

    fn facts(&self) -> Option<Facts> {
        self.ended.map(|report| Facts {
            report,
            counters: self.counters,
            output_exceeded: self.output_exceeded,
            cpu_limit: self.sandbox.cpu_time,
            memory_limit: self.sandbox.limits.memory,
            asked: self.asked,
        })
    }

    /// The verdict, once it has ended.
    pub(crate) fn verdict(&self) -> Result<Option<crate::Exit>> {
        match self.facts() {
            Some(facts) if facts.host_out_of_memory() => Err(out_of_memory()),
            facts => Ok(facts.map(|facts| facts.verdict())),
        }
    }

    /// The outcome, once it has ended.
    pub(crate) fn finish(mut self) -> Result<Output> {
        let Some(facts) = self.facts() else { return Err(self.lost(None)) };
        if facts.host_out_of_memory() {
            return Err(out_of_memory());
        }
        let [stdout, stderr] = std::mem::take(&mut self.streams).map(|s| s.map(Capture::finish).unwrap_or_default());
        Ok(Output {
            status: facts.verdict(),
            stdout: stdout.0,
            stderr: stderr.0,
            stdout_stream: stdout.1,
            stderr_stream: stderr.1,
            usage: facts.usage(),
            raw: facts.raw(),
            missing: Layer::of_bits(facts.report.missing | self.group.missing),
            limits: self.sandbox.limit_values(),
        })
    }
}

fn out_of_memory() -> Error {
    Error::new(
        ErrorKind::Exhausted,
        "the run was killed because the host, or a control group around it, is out of memory; its own limit was not reached",
    )
}

impl Drop for Live {
    /// What has not ended is killed, and its end is awaited: init does it when our
    /// end of the socket is shut.
    fn drop(&mut self) {
        if self.ended.is_some() || self.owner != std::process::id() {
            return;
        }
        // Also of one that is gone without a word: init waits for it, and a Killer or a
        // forked child may keep the socket open.
        let _ = shutdown(self.reply.as_raw_fd(), Shutdown::Write);
        let deadline = Instant::now() + DROP_LIMIT;
        while !self.gone {
            let left = deadline.saturating_duration_since(Instant::now());
            match launch::wait_readable(self.reply.as_fd(), left) {
                // Whatever else is still in the socket comes first.
                Ok(true) => drop(self.message(true)),
                _ => break,
            }
        }
    }
}

/// Sends a request about the (only) command of a sandbox.
pub(crate) fn tell(reply: &OwnedFd, kind: u32, value: u64, time: Duration) -> Result<()> {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let request = Request { kind, command: 0, value, time };
    match sys::socket::send(reply.as_fd(), &request.encode(), &[]) {
        Ok(()) => Ok(()),
        // It has ended by itself; its report is on the way.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => Ok(()),
        Err(error) => Err(Error::io("tell", "the sandbox", error)),
    }
}

/// Tries a recipe without a command; see [`Sandbox::check`].
pub(crate) fn check(sandbox: &Sandbox) -> Result<CheckReport> {
    sandbox.validate()?;
    let mut layers: Vec<(Layer, LayerState)> = Layer::ALL.into_iter().map(|layer| (layer, LayerState::Untried)).collect();
    let mut set = |layer: Layer, state: LayerState| layers[layer as usize].1 = state;
    let init = match launch::init() {
        Ok(init) => init,
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            set(Layer::UserNamespace, LayerState::Missing(error.to_string()));
            return Ok(CheckReport { layers, works: false });
        }
        Err(error) => return Err(error),
    };
    let mut works = true;
    match &init.subordinate {
        Ok(_) => set(Layer::SubordinateIds, LayerState::Works),
        Err(why) if init.facts.privileged => set(Layer::SubordinateIds, LayerState::Unused(why.clone())),
        Err(why) => {
            works = !sandbox.requires(Layer::SubordinateIds);
            set(Layer::SubordinateIds, LayerState::Missing(why.clone()));
        }
    }
    // The command stage can't be tried without a command: one that any image has,
    // because it's our own. Its exec fails with ENOEXEC after everything else worked.
    // Without preferences at first: a layer that was left out can't say why.
    let mut probe = sandbox.clone().without_preferences().file_mode("/.cofferdam-check", "\n", 0o755);
    let failed = loop {
        let attempt =
            launch(&probe, Some(Command::new("/.cofferdam-check")), wire::NOTIFY_START).and_then(|(mut live, _)| live.started().map(drop));
        match attempt {
            Err(error) if error.kind() != ErrorKind::ExecFormat => {
                // Whether the recipe can do without it or not, the rest can be tried.
                let spared = error.layer().filter(|layer| layer.optional() && !probe.prefers(*layer));
                let Some(layer) = spared else { break Some(error) };
                works &= sandbox.prefers(layer);
                set(layer, LayerState::Missing(error.to_string()));
                probe = probe.prefer(layer);
            }
            _ => break None,
        }
    };
    let unused = |layer: Layer| match layer {
        Layer::NetworkNamespace if sandbox.network == Network::Host => Some("the recipe shares the host's network"),
        Layer::Overlay if matches!(sandbox.root.root, crate::image::Root::Host(_)) => Some("the host's /usr is shown read-only as it is"),
        Layer::IdMappedMounts if !init.facts.privileged => Some("only root can make them"),
        Layer::IdMappedMounts if !sandbox.maps_owners() => Some("the recipe has neither an image nor a bind"),
        Layer::MemoryLimit if sandbox.limits.memory.is_none() => Some("the recipe limits no memory"),
        Layer::ProcessLimit if sandbox.limits.processes.is_none() => Some("the recipe limits no processes"),
        Layer::CpuBandwidth if sandbox.limits.cpus.is_none() => Some("the recipe limits no bandwidth"),
        Layer::CpuPinning if sandbox.limits.cpuset.is_none() => Some("the recipe pins to no CPUs"),
        Layer::CpuAccount if !sandbox.group_limits().cpu_account => Some("the recipe limits no CPU time"),
        Layer::SyscallFilter if sandbox.syscalls == crate::Syscalls::Unfiltered => Some("the recipe asks for none"),
        _ => None,
    };
    match failed {
        None => {
            for layer in Layer::ALL {
                if layer != Layer::SubordinateIds && !probe.prefers(layer) {
                    set(layer, unused(layer).map_or(LayerState::Works, |why| LayerState::Unused(why.into())));
                }
            }
        }
        Some(error) => {
            works = false;
            set(error.layer().unwrap_or(Layer::MountNamespace), LayerState::Missing(error.to_string()));
        }
    }
    if !init.facts.cgroup_namespace {
        set(Layer::CgroupNamespace, LayerState::Missing("this kernel was built without CONFIG_CGROUPS".into()));
        works &= sandbox.prefers(Layer::CgroupNamespace);
    }
    Ok(CheckReport { layers, works })
}
