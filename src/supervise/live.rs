//! A live sandbox as its host sees it: messages, streams, and the end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};

use super::applied;
use super::capture::Capture;
use super::descriptors::{Passed, Pipes};
use super::place::Place;
use super::proof::{self, Expected};
use crate::cgroup::Counters;
use crate::changes::Upper;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::image::ImageConfig;
use crate::launch::{self, timeout_until};
use crate::layer::IdRange;
use crate::outcome::{Facts, Line, Output, Source};
use crate::plan::compile::{self, Wanted};
use crate::plan::message::{Report, Request};
use crate::plan::{Draft, failure, wire};
use crate::probe::Layer;
use crate::sandbox::Sandbox;
use crate::sys;
use crate::volume::Hold;

/// Set-up takes a millisecond or two; a minute means that it hangs on something of
/// the host's, a dead network file system for example.
pub(crate) const SETUP_LIMIT: Duration = Duration::from_secs(60);
/// How long `drop` waits for the end of what it killed.
const DROP_LIMIT: Duration = Duration::from_secs(2);

/// What comes with a command's start.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pidfd: OwnedFd,
    pub(crate) terminal: Option<OwnedFd>,
}

/// A command that has been asked for, in a sandbox of its own or another's.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) reply: Arc<OwnedFd>,
    draft: Draft,
    kind: u64,
    sandbox: Sandbox,
    place: Place,
    expected: Expected,
    counters: Counters,
    asked: u64,
    streams: [Option<Capture>; 2],
    /// The writable layer, if the recipe keeps it.
    upper: Option<OwnedFd>,
    /// How ids in it are called inside.
    pub(super) ids: Vec<IdRange>,
    /// Until its end.
    pub(super) volumes: Option<Hold>,
    started: Option<Report>,
    ended: Option<Report>,
    output_exceeded: bool,
    /// It was prepared, and somebody else prepares the next one.
    pooled: bool,
    gone: bool,
    /// The process that started it. A forked child has a copy of this value, whose
    /// end means nothing.
    owner: u32,
}

impl Live {
    pub(super) fn new(
        began: u64,
        sandbox: &Sandbox,
        reply: OwnedFd,
        draft: Draft,
        expected: Expected,
        place: Place,
        streams: [Option<Capture>; 2],
    ) -> Live {
        Live {
            reply: Arc::new(reply),
            // While init is at work.
            kind: draft.kind(),
            draft,
            sandbox: sandbox.clone(),
            place,
            expected,
            counters: Counters::default(),
            asked: began,
            streams,
            upper: None,
            ids: Vec::new(),
            volumes: None,
            started: None,
            ended: None,
            output_exceeded: false,
            pooled: false,
            gone: false,
            owner: std::process::id(),
        }
    }

    /// Makes the control group while init is at work, unless it was made ahead, and passes
    /// it to PID 1, which waits for it before the command.
    pub(super) fn give_group(&mut self) -> Result<()> {
        let Place::Own { group, .. } = &mut self.place else { return Ok(()) };
        group.make()?;
        send_group(&self.reply, &group.handles())
    }

    /// What the next sandbox of this recipe will need, while there's nothing to do.
    fn prepare_next(&self) {
        if let (Place::Own { group, init, .. }, false) = (&self.place, self.pooled) {
            init.ahead.prepare(group, || init.next_group());
        }
    }

    /// Waits for the program's exec.
    pub(crate) fn started(&mut self) -> Result<Started> {
        let mut terminal = None;
        loop {
            self.await_setup()?;
            match self.message(true)? {
                Some((report, fds)) if report.kind == Report::STANDING && !fds.is_empty() => self.let_proceed(fds[0].as_fd())?,
                Some((report, mut fds)) if report.kind == Report::STARTED && !fds.is_empty() => {
                    self.started = Some(report);
                    if let Some(checkpoint) = self.sandbox.root.checkpoint() {
                        checkpoint.has_been_sealed();
                    }
                    return Ok(Started { pidfd: fds.remove(0), terminal });
                }
                Some((report, mut fds)) if report.kind == Report::TERMINAL => terminal = fds.pop(),
                Some((report, _)) if report.kind == Report::READY => {
                    return Err(Error::new(ErrorKind::Setup, "the sandbox has no command"));
                }
                _ => return Err(self.lost(None)),
            }
        }
    }

    fn await_setup(&self) -> Result<()> {
        match launch::wait_readable(self.reply.as_fd(), SETUP_LIMIT) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::new(
                ErrorKind::Setup,
                "cannot start the sandbox: set-up did not end within 60 s (does a bind or the root lie on a file system that hangs?)",
            )),
            Err(error) => Err(Error::io("wait for", "the sandbox", error)),
        }
    }

    fn let_proceed(&mut self, process: BorrowedFd<'_>) -> Result<()> {
        let Err(error) = self.look(process) else { return self.tell(Request::PROCEED, 0, Duration::ZERO) };
        // It may have failed and ended meanwhile: why is on the way.
        const MOMENT: Duration = Duration::from_secs(1);
        let ended = matches!(launch::wait_readable(process, Duration::ZERO), Ok(true));
        if ended && matches!(launch::wait_readable(self.reply.as_fd(), MOMENT), Ok(true)) {
            self.message(true)?;
        }
        Err(error)
    }

    /// Waits until the process of a command that isn't known yet has been looked at.
    pub(super) fn stands(&mut self) -> Result<()> {
        self.await_setup()?;
        match self.message(true)? {
            Some((report, fds)) if report.kind == Report::STANDING && !fds.is_empty() => self.let_proceed(fds[0].as_fd()),
            _ => Err(self.lost(None)),
        }
    }

    /// Whether it has said nothing since: it would be its end.
    pub(crate) fn still_stands(&self) -> bool {
        matches!(launch::wait_readable(self.reply.as_fd(), Duration::ZERO), Ok(false))
    }

    /// Tells init that it's not wanted any more.
    pub(crate) fn let_go(&self) {
        let _ = shutdown(self.reply.as_raw_fd(), Shutdown::Write);
    }

    /// Tells the command that it stands for.
    pub(super) fn execute(&mut self, command: &Command, flags: u64, passed: Passed) -> Result<Pipes> {
        let Place::Own { group, .. } = &self.place else { return Err(self.lost(None)) };
        self.asked = super::monotonic();
        let group = super::grouped(&self.sandbox, group, 0);
        let wanted = Wanted {
            command,
            numbers: &passed.numbers,
            group: &group,
            files: false,
            terminal: &[],
            writable: &passed.writable,
            first: wire::slot::LATE,
        };
        let mut draft = compile::late(&self.sandbox, self.expected.ids, &wanted)?;
        draft.change(&self.sandbox.changes)?;
        draft.settings.flags |= flags;
        draft.missing |= self.draft.missing;
        let plan = super::encoded(&draft)?;
        let mut fds = vec![plan.as_fd()];
        fds.extend(passed.fds.iter().map(AsFd::as_fd));
        let request = Request { kind: Request::EXECUTE, command: 0, value: 0, time: 0 };
        sys::socket::send(self.reply.as_fd(), &request.encode(), &fds).map_err(|_| self.lost(None))?;
        (self.draft, self.streams, self.pooled) = (draft, passed.streams, true);
        Ok(passed.pipes)
    }

    /// Compares the command's process, which waits, with the recipe.
    fn look(&mut self, process: BorrowedFd<'_>) -> Result<()> {
        let kind = self.kind;
        let seen = self.place.init().has_seen(kind);
        let looked = match sys::pidfd::number(process) {
            Some(pid) => proof::check(&self.sandbox, &self.expected, pid, !seen),
            None => Err(proof::out_of_sight()),
        };
        match looked {
            Ok(()) => {
                self.place.init().see(kind);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Unsupported && self.sandbox.prefers(Layer::ReadBack) => {
                self.draft.missing |= Layer::ReadBack.bit();
                Ok(())
            }
            Err(error) => Err(error),
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
                if self.draft.notes.get(report.status as usize).is_none()
                    && let Place::Own { group, .. } = &mut self.place
                {
                    group.take_back();
                }
                Err(failure::error(&self.draft, Some(&self.sandbox), &report))
            }
            Report::GONE => {
                self.gone = true;
                match self.started {
                    _ if self.ended.is_some() => {}
                    // PID 1 has been stopped from outside, or was stuck. What it would have
                    // told about the run's use of things nobody knows.
                    Some(Report { began, missing, .. }) if report.cause & Report::WALL != 0 => {
                        self.conclude(Report { began, missing, ..report.with_unknown_use() });
                    }
                    _ => return Err(self.lost(Some(report.status))),
                }
                Ok(Some((report, fds)))
            }
            Report::ENDED => {
                self.conclude(report);
                Ok(Some((report, fds)))
            }
            Report::UPPER => {
                self.upper = fds.into_iter().next();
                self.message(wait)
            }
            _ => Ok(Some((report, fds))),
        }
    }

    /// All are dead, so the counters are final; init removes the group when we let go.
    fn conclude(&mut self, report: Report) {
        self.ended = Some(report);
        self.counters = self.place.counters();
        self.volumes = None;
        if let Place::Shared(share) = &mut self.place {
            share.ended();
        }
        let _ = shutdown(self.reply.as_raw_fd(), Shutdown::Write);
    }

    fn lost(&self, status: Option<u32>) -> Error {
        match &self.place {
            Place::Own { .. } => lost(status),
            Place::Shared(share) => share.lost(),
        }
    }

    /// What asks the command to end.
    pub(crate) fn stop_signal(&self) -> i32 {
        self.sandbox.root.config().and_then(ImageConfig::stop_signal).unwrap_or(libc::SIGTERM)
    }

    /// Tells PID 1 something about the command. It may be gone already.
    pub(crate) fn tell(&self, kind: u32, value: u64, time: Duration) -> Result<()> {
        tell(&self.reply, kind, value, time)
    }

    /// Takes a piped stream back, to be captured.
    pub(crate) fn capture(&mut self, i: usize, pipe: OwnedFd) -> Result<()> {
        let capture =
            Capture::new(pipe, None, self.sandbox.output, self.sandbox.keep()).map_err(|e| Error::io("prepare", "a stream", e))?;
        self.streams[i] = Some(capture);
        Ok(())
    }

    /// Until the end, or until `deadline`; true at the end.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> Result<bool> {
        self.wait_with(deadline, |_, _| {})
    }

    /// Until the end, telling each captured line of stream 0 or 1 as soon as it's there.
    pub(crate) fn wait_lines(&mut self, on_line: &mut dyn FnMut(Line<'_>)) -> Result<()> {
        self.streams.iter_mut().flatten().for_each(Capture::keep_lines);
        let began = self.started.map_or(0, |report| report.began);
        let names = [Source::Stdout, Source::Stderr];
        self.wait_with(None, |streams, end| {
            let at = Duration::from_nanos(super::monotonic().saturating_sub(began));
            for (stream, source) in streams.iter_mut().zip(names) {
                if let Some(stream) = stream {
                    stream.take_lines(end, |bytes| on_line(Line { source, at, bytes }));
                }
            }
        })
        .map(drop)
    }

    fn wait_with(&mut self, deadline: Option<Instant>, mut news: impl FnMut(&mut [Option<Capture>; 2], bool)) -> Result<bool> {
        if self.ended.is_none() {
            self.prepare_next();
        }
        let mut buffer = Vec::new();
        while self.ended.is_none() {
            self.turn(deadline, &mut buffer)?;
            news(&mut self.streams, false);
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
        news(&mut self.streams, true);
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
            let mut polled = self.interest();
            match poll(&mut polled, deadline.map_or(PollTimeout::NONE, timeout_until)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("wait for", "the sandbox", errno.into())),
            }
            polled.iter().map(happened).collect()
        };
        self.advance(&ready, buffer)
    }

    /// What poll is to be asked about; [`advance`](Self::advance) takes the answers in
    /// this order.
    pub(crate) fn interest(&self) -> Vec<PollFd<'_>> {
        // init's end is the sandbox's, and is seen here even if a forked child of
        // ours holds a copy of the other end of the socket.
        let mut polled =
            vec![PollFd::new(self.reply.as_fd(), PollFlags::POLLIN), PollFd::new(self.place.init().pidfd(), PollFlags::POLLIN)];
        let streams = self.streams.iter().flatten().filter_map(Capture::wants);
        polled.extend(streams.map(|(fd, events)| PollFd::new(fd, events)));
        polled
    }

    /// Does what is possible now. `buffer` is scratch space.
    pub(crate) fn advance(&mut self, ready: &[bool], buffer: &mut Vec<u8>) -> Result<()> {
        let asked = self.streams.iter_mut().flatten().filter(|stream| stream.wants().is_some());
        for (stream, _) in asked.zip(&ready[2..]).filter(|(_, ready)| **ready) {
            stream.advance(buffer).map_err(|e| Error::io("read", "the output", e))?;
        }
        self.note_excess()?;
        if ready[0] {
            self.message(false)?;
        } else if ready[1] {
            self.gone = true;
            return Err(self.lost(None));
        }
        Ok(())
    }

    /// When the command ended, on CLOCK_MONOTONIC, once that's known.
    pub(crate) fn ended_at(&self) -> Option<u64> {
        self.ended.map(|report| report.ended)
    }

    /// Latches that a stream is too long, and ends the run.
    pub(crate) fn exceed_output(&mut self) -> Result<()> {
        if self.output_exceeded {
            return Ok(());
        }
        self.output_exceeded = true;
        if self.ended.is_some() { Ok(()) } else { self.tell(Request::KILL, 1, Duration::ZERO) }
    }

    fn note_excess(&mut self) -> Result<()> {
        if self.streams.iter().flatten().any(Capture::exceeded) { self.exceed_output() } else { Ok(()) }
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
        let missing = facts.report.missing | self.place.missing() | self.draft.missing;
        let [stdout, stderr] = std::mem::take(&mut self.streams).map(|s| s.map(Capture::finish).unwrap_or_default());
        Ok(Output {
            status: facts.verdict(),
            stdout: stdout.0,
            stderr: stderr.0,
            stdout_tail: stdout.1,
            stderr_tail: stderr.1,
            stdout_stream: stdout.2,
            stderr_stream: stderr.2,
            usage: facts.usage(),
            raw: facts.raw(),
            layers: applied(&self.sandbox, self.place.init(), missing),
            missing: Layer::of_bits(missing),
            limits: self.sandbox.limit_values(),
            phases: facts.phases(),
            upper: self.upper.take().map(|directory| Arc::new(Upper::new(directory, &self.sandbox, self.ids.clone()))),
        })
    }
}

/// The error for a sandbox that ended without a word, with the wait status of its PID 1.
pub(crate) fn lost(status: Option<u32>) -> Error {
    let how = match status {
        Some(status) if status & 0x7f == libc::SIGKILL as u32 => "its first process was killed from outside (is the host out of memory?)",
        Some(_) => "its first process ended early",
        None => "init ended, and all sandboxes with it",
    };
    Error::new(ErrorKind::Lost, format!("the sandbox is lost: {how}"))
}

/// Passes the descriptors of a group to PID 1, which waits for them.
pub(crate) fn send_group(reply: &OwnedFd, handles: &[OwnedFd]) -> Result<()> {
    if handles.is_empty() {
        return Ok(());
    }
    let fds: Vec<BorrowedFd<'_>> = handles.iter().map(AsFd::as_fd).collect();
    let request = Request { kind: Request::GROUP, command: 0, value: 0, time: 0 };
    match sys::socket::send(reply.as_fd(), &request.encode(), &fds) {
        // It has failed; why is on the way.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => Ok(()),
        other => other.map_err(|e| Error::io("pass", "the control group", e)),
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
        if let Some(volumes) = self.volumes.take().filter(|_| !self.gone) {
            volumes.keep();
        }
        if let Place::Own { claim, .. } = &mut self.place
            && let Some(claim) = claim.take().filter(|_| !self.gone)
        {
            claim.outlast(self.reply.clone());
        }
    }
}

/// Whether poll has anything to say about it.
pub(crate) fn happened(polled: &PollFd<'_>) -> bool {
    polled.revents().is_some_and(|events| !events.is_empty())
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
