//! A live sandbox as its host sees it: messages, streams, and the end.
//!
//! Nothing here waits, but for `drop` in a synchronous program: `wait.rs` does it for
//! threads, `tokio/run.rs` for tasks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{Shutdown, shutdown};

use super::again::Loan;
use super::applied;
use super::broken::{failed, lost, out_of_memory, overslept};
use super::capture::Capture;
use super::place::Place;
use super::proof::{self, Expected, Looks};
use super::request::{send_group, tell};
use crate::cgroup::Counters;
use crate::changes::Upper;
use crate::error::{Error, ErrorKind, Result};
use crate::image::ImageConfig;
use crate::launch;
use crate::layer::IdMap;
use crate::net::Network;
use crate::outcome::{Facts, Line, Output, Source};
use crate::plan::Draft;
use crate::plan::message::{Report, Request};
use crate::probe::Layer;
use crate::sandbox::Sandbox;
use crate::sys;
use crate::trace::Trace;
use crate::volume::Hold;

/// How long a process that can't be looked at any more may take to be dead.
const DYING: Duration = Duration::from_millis(100);

/// Set-up takes a millisecond or two; a minute means that it hangs on something of
/// the host's, a dead network file system for example.
pub(crate) const SETUP_LIMIT: Duration = Duration::from_secs(60);
/// How long `drop` waits in a synchronous program.
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
    pub(super) trace: Trace,
    pub(super) draft: Draft,
    kind: u64,
    pub(super) sandbox: Sandbox,
    pub(super) place: Place,
    pub(super) expected: Expected,
    counters: Counters,
    pub(super) asked: u64,
    pub(super) streams: [Option<Capture>; 2],
    /// The writable layer, if the recipe keeps it.
    upper: Option<OwnedFd>,
    /// How ids in it are called inside.
    pub(super) ids: IdMap,
    /// Until its end.
    pub(super) volumes: Option<Hold>,
    /// The host's side of the command's terminal, until the start.
    terminal: Option<OwnedFd>,
    /// What a look at the command's process has found after that had ended.
    pub(super) doubt: Option<Error>,
    pub(super) started: Option<Report>,
    /// Of one whose exec nobody is told: when it could go on to it.
    pub(super) proceeded: Option<u64>,
    pub(super) ended: Option<Report>,
    output_exceeded: bool,
    /// Nobody has waited for its end.
    pub(super) is_new: bool,
    /// Somebody will let go of it when it has ended.
    pub(super) lingers: bool,
    /// It was prepared, and somebody else prepares the next one.
    pub(super) pooled: bool,
    gone: bool,
    /// See `epitaph.rs`.
    pub(super) epitaph: Option<Arc<OwnedFd>>,
    /// How long `drop` waits for the end of what it killed.
    patience: Duration,
    /// The process that started it. A forked child has a copy of this value, whose
    /// end means nothing.
    owner: u32,
    /// The sandbox goes back to its pool. Behind `place`, whose end comes first.
    pub(super) loan: Option<Loan>,
}

impl Live {
    #[allow(clippy::too_many_arguments, reason = "each is a part of it")]
    pub(super) fn new(
        began: u64,
        trace: Trace,
        sandbox: Sandbox,
        reply: OwnedFd,
        draft: Draft,
        expected: Expected,
        place: Place,
        streams: [Option<Capture>; 2],
    ) -> Live {
        Live {
            reply: Arc::new(reply),
            trace,
            // While init is at work.
            // A plan that lacks a network by mistake is that of a recipe which wants none.
            kind: draft.kind() ^ u64::from(sandbox.network == Network::Host),
            draft,
            sandbox,
            place,
            expected,
            counters: Counters::default(),
            asked: began,
            streams,
            upper: None,
            ids: IdMap::default(),
            volumes: None,
            terminal: None,
            doubt: None,
            started: None,
            proceeded: None,
            ended: None,
            output_exceeded: false,
            is_new: true,
            lingers: false,
            pooled: false,
            gone: false,
            epitaph: None,
            patience: DROP_LIMIT,
            owner: std::process::id(),
            loan: None,
        }
    }

    /// Makes the control group while init is at work, unless it was made ahead, and passes
    /// it to PID 1, which waits for it before the command.
    pub(super) fn give_group(&mut self) -> Result<()> {
        let Place::Own { group, .. } = &mut self.place else { return Ok(()) };
        if let Err(error) = group.make() {
            // init removes the group of a sandbox that it can't start, and has said why.
            return self.message().and(Err(error));
        }
        let sent = send_group(&self.reply, &group.handles());
        group.sent();
        sent
    }

    /// What the next sandbox of this recipe will need, while there's nothing to do.
    pub(crate) fn prepare_next(&self) {
        if let Place::Own { group, init, .. } = &self.place
            && !self.pooled
            && self.ended.is_none()
        {
            init.ahead.prepare(group, || init.next_group());
        }
    }

    /// Takes the next message of the set-up, if there's one: the program's exec is its end.
    pub(crate) fn arrive(&mut self) -> Result<Option<Started>> {
        let arrived = self.next_of_setup();
        match &arrived {
            Ok(Some(_)) => self.trace.started(),
            Ok(None) => {}
            Err(error) => self.trace.failed(error),
        }
        arrived
    }

    fn next_of_setup(&mut self) -> Result<Option<Started>> {
        match self.setup_message()? {
            Some((report, fds)) if report.kind == Report::STANDING && !fds.is_empty() => self.let_proceed(fds[0].as_fd())?,
            Some((report, mut fds)) if report.kind == Report::STARTED && !fds.is_empty() => {
                self.started = Some(report);
                if let Some(checkpoint) = self.sandbox.root.checkpoint() {
                    checkpoint.has_been_sealed();
                }
                return Ok(Some(Started { pidfd: fds.remove(0), terminal: self.terminal.take() }));
            }
            Some((report, mut fds)) if report.kind == Report::TERMINAL => self.terminal = fds.pop(),
            Some((report, _)) if report.kind == Report::READY => {
                return Err(Error::new(ErrorKind::Setup, "the sandbox has no command"));
            }
            Some(_) => return Err(self.lost(None)),
            None => {}
        }
        Ok(None)
    }

    /// When it was executed, as far as that's known, and the layers that it does without.
    pub(super) fn began(&self) -> Option<(u64, u64)> {
        self.started.map(|report| (report.began, report.missing)).or(self.proceeded.map(|began| (began, 0)))
    }

    /// Lets the command's process, which waits, execute it, if it's as it should be.
    pub(super) fn let_proceed(&mut self, process: BorrowedFd<'_>) -> Result<()> {
        match self.look(process) {
            Ok(()) => self.tell(Request::PROCEED, 0, Duration::ZERO),
            // It may have failed and ended meanwhile: why is on the way.
            Err(error) if matches!(launch::wait_readable(process, Duration::ZERO), Ok(true)) => {
                self.doubt = Some(error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The next message of the set-up. After a look that has found nobody only a failure
    /// explains that.
    pub(super) fn setup_message(&mut self) -> Result<Option<(Report, Vec<OwnedFd>)>> {
        let message = self.message()?;
        match self.doubt.take_if(|_| message.is_some()) {
            Some(error) => Err(error),
            None => Ok(message),
        }
    }

    /// Compares the command's process, which waits, with the recipe.
    fn look(&mut self, process: BorrowedFd<'_>) -> Result<()> {
        let kind = self.kind;
        let looks = Looks { maps: self.place.is_unmapped(), places: !self.place.init().has_seen(kind) };
        let looked = match sys::pidfd::number(process) {
            Ok(Some(pid)) => proof::check(&self.sandbox, &self.expected, pid, looks),
            Ok(None) => Err(proof::out_of_sight()),
            Err(error) => Err(Error::io("read back", "the sandbox", error)),
        };
        match looked {
            Ok(()) => {
                self.place.init().see(kind);
                self.place.is_mapped();
                Ok(())
            }
            // There's nothing left to look at, or soon won't be, and nothing to execute; what
            // became of it is on its way.
            Err(error) if error.kind() == ErrorKind::Lost || launch::wait_readable(process, DYING).unwrap_or(false) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Unsupported && self.sandbox.prefers(Layer::ReadBack) => {
                self.draft.missing |= Layer::ReadBack.bit();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The next message; failures become errors. `None` if there's none now.
    fn message(&mut self) -> Result<Option<(Report, Vec<OwnedFd>)>> {
        let mut bytes = [0; Report::SIZE];
        let received = match &self.epitaph {
            None => sys::socket::receive(self.reply.as_fd(), &mut bytes, false),
            Some(socket) => sys::socket::peek(socket.as_fd(), &mut bytes).map(|length| (length, Vec::new())),
        };
        let (length, fds) = match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other.map_err(|e| Error::io("hear from", "the sandbox", e))?,
        };
        let Some(report) = Report::decode(&bytes[..length]) else {
            if self.turns_to_epitaph() {
                return self.message();
            }
            self.gone = true;
            return Err(self.lost(None));
        };
        match report.kind {
            Report::FAILED => {
                // It never began after all, and this is all that's said of it.
                self.proceeded = None;
                let group = if let Place::Own { group, .. } = &mut self.place { Some(&mut **group) } else { None };
                Err(failed(&report, &self.draft, &self.sandbox, group))
            }
            Report::GONE => {
                self.gone = true;
                match self.began() {
                    _ if self.ended.is_some() => {}
                    // PID 1 has been stopped from outside, or was stuck. What it would have
                    // told about the run's use of things nobody knows.
                    Some((began, missing)) if self.is_overdue(began, &report) => {
                        self.conclude(Report { began, missing, ..report.with_unknown_use() });
                    }
                    _ if report.cause & Report::WALL != 0 => return Err(overslept()),
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
                self.message()
            }
            _ => Ok(Some((report, fds))),
        }
    }

    /// All are dead, so the counters are final; init removes the group when we let go.
    fn conclude(&mut self, report: Report) {
        self.ended = Some(report);
        self.trace.ended();
        self.counters = self.place.counters();
        self.volumes = None;
        if let Place::Shared(share) = &mut self.place {
            share.ended(report.cause & Report::ALONE != 0);
        }
        if let Some(loan) = &mut self.loan {
            loan.ended(&report, &self.counters);
        }
        if !self.lingers {
            self.let_go();
        }
    }

    pub(super) fn lost(&self, status: Option<u32>) -> Error {
        match &self.place {
            Place::Own { .. } => lost(status),
            Place::Shared(share) => share.lost(status),
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

    /// Whether the verdict is known. Streams may still have to be [gathered](Self::gather)
    /// and [passed on](Self::settled).
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// From now on [`tell_lines`](Self::tell_lines) has something to tell.
    pub(crate) fn keep_lines(&mut self) {
        self.streams.iter_mut().flatten().for_each(Capture::keep_lines);
    }

    /// Tells the lines that have come since; at the `end` also one without its line feed.
    pub(crate) fn tell_lines(&mut self, end: bool, mut on_line: impl FnMut(Line<'_>)) {
        let began = self.began().map_or(0, |(began, _)| began);
        let at = Duration::from_nanos(super::monotonic().saturating_sub(began));
        for (stream, source) in self.streams.iter_mut().zip([Source::Stdout, Source::Stderr]) {
            if let Some(stream) = stream {
                stream.take_lines(end, |bytes| on_line(Line { source, at, bytes }));
            }
        }
    }

    /// How many of [`interest`](Self::interest) are about its own end, which come first.
    pub(super) const OWN: usize = 2;

    /// What poll is to be asked about; [`advance`](Self::advance) takes the answers in
    /// this order.
    pub(crate) fn interest(&self) -> Vec<PollFd<'_>> {
        let mut polled = Vec::with_capacity(4);
        if self.ended.is_none() {
            // init's end is the sandbox's, and is seen here even if a forked child of
            // ours holds a copy of the other end of the socket.
            polled.push(PollFd::new(self.socket(), PollFlags::POLLIN));
            polled.push(PollFd::new(self.place.init().pidfd(), PollFlags::POLLIN));
        }
        let ended = self.ended.is_some();
        let streams = self.streams.iter().flatten().filter(|stream| stream.is_open(ended)).filter_map(Capture::wants);
        polled.extend(streams.map(|(fd, events)| PollFd::new(fd, events)));
        polled
    }

    /// Does what is possible now. `buffer` is scratch space.
    pub(crate) fn advance(&mut self, ready: &[bool], buffer: &mut Vec<u8>) -> Result<()> {
        let ended = self.ended.is_some();
        let (own, ready) = ready.split_at(if ended { 0 } else { Live::OWN });
        let asked = self.streams.iter_mut().flatten().filter(|stream| stream.is_open(ended) && stream.wants().is_some());
        for (stream, _) in asked.zip(ready).filter(|(_, ready)| **ready) {
            stream.advance(buffer).map_err(|e| Error::io("pass on", "the output", e))?;
        }
        if ended {
            return Ok(());
        }
        self.note_excess()?;
        if own[0] {
            self.message().map(drop).inspect_err(|error| self.trace.failed(error))
        } else if own[1] {
            self.gone = true;
            Err(self.lost(None)).inspect_err(|error| self.trace.failed(error))
        } else {
            Ok(())
        }
    }

    /// After the end: every process is dead, so what the pipes hold now is the rest.
    pub(crate) fn gather(&mut self, buffer: &mut Vec<u8>) -> Result<()> {
        for stream in self.streams.iter_mut().flatten() {
            stream.drain(buffer).map_err(|e| Error::io("read", "the output", e))?;
        }
        self.note_excess()
    }

    /// Whether relays have passed on all that came.
    pub(crate) fn settled(&self) -> bool {
        self.streams.iter().flatten().all(Capture::settled)
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

    pub(super) fn facts(&self) -> Option<Facts> {
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

    /// Has what has not ended killed; false if there's nothing to be done.
    pub(crate) fn abandon(&self) -> bool {
        if self.ended.is_some() || self.owner != std::process::id() {
            return false;
        }
        // Also of one that is gone without a word: init waits for it, and a Killer or a
        // forked child may keep the socket open.
        let _ = shutdown(self.reply.as_raw_fd(), Shutdown::Write);
        true
    }

    /// After that: takes what is still in the socket; true when every process is dead.
    pub(crate) fn takes_leave(&mut self) -> bool {
        while !self.gone {
            if let Ok(None) = self.message() {
                return false;
            }
        }
        true
    }

    /// From now on `drop` waits for nothing.
    pub(crate) fn without_patience(mut self) -> Live {
        self.patience = Duration::ZERO;
        self
    }

    /// It waits as ever.
    pub(super) fn with_patience(mut self) -> Live {
        self.patience = DROP_LIMIT;
        self
    }

    /// The outcome, once it has ended.
    pub(crate) fn finish(mut self) -> Result<Output> {
        self.outcome()
    }

    /// The same, once. What is left of it is to be [let go of](Self::let_go).
    pub(super) fn outcome(&mut self) -> Result<Output> {
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

impl Drop for Live {
    /// What has not ended is killed, and its end is awaited: init does it when our
    /// end of the socket is shut.
    fn drop(&mut self) {
        self.trace.outcome(self.facts().as_ref());
        if !self.abandon() {
            return;
        }
        self.trace.ended();
        let deadline = Instant::now() + self.patience;
        while !self.takes_leave() {
            let left = deadline.saturating_duration_since(Instant::now());
            if !launch::wait_readable(self.socket(), left).unwrap_or(false) {
                break;
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
