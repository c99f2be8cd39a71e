//! The run of an interaction: one poll loop for all of its sandboxes and pipes.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, poll};

use super::edge::Edge;
use super::verdict::{Seen, verdict};
use super::watch::{self, Look};
use super::{Conversation, End, Interaction, Message, Party, PipeEnd, Verdict, Wait, WaitReason};
use crate::command::{Command, FdKind, Stream};
use crate::error::{Error, Result};
use crate::launch::timeout_until;
use crate::outcome::Exit;
use crate::plan::message::Request;
use crate::plan::wire::NOTIFY_START;
use crate::sandbox::Sandbox;
use crate::supervise::{self, Live, happened, refuse_piped};

/// How long an end of file is held back at most.
const HOLD: Duration = Duration::from_secs(1);
/// Between two looks at those who may be asleep: from here, doubled, up to there. An end of
/// file that waits is worth an early one.
const FIRST_LOOK: Duration = Duration::from_millis(8);
const EARLY_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(500);
/// For how long nobody may have run before it's a standstill.
const STILL: Duration = Duration::from_millis(20);
/// What a message of the transcript counts beside its bytes.
const MESSAGE: usize = 64;

pub(super) fn run(mut spec: Interaction) -> Result<Conversation> {
    let began = Instant::now();
    let mut parties = std::mem::take(&mut spec.parties);
    let woken: Vec<bool> = parties.iter().enumerate().map(|(i, (_, _, command))| hears_others(command, i, &spec)).collect();
    let edges = connect(&spec.pipes, &mut parties)?;
    // All are set up at once.
    let mut asked = Vec::new();
    for (party, sandbox, command) in parties {
        let recipe = command.limits.over(&sandbox).unwrap_or(sandbox);
        if recipe.idle_time.is_some() {
            // Whoever waits for another that's busy isn't idle.
            return Err(Error::invalid(format!("{party} can't have an idle time of its own; the interaction has one for all")));
        }
        refuse_piped(&command)?;
        let (live, _) = supervise::start(&recipe, command, NOTIFY_START).map_err(|e| e.within(&party.to_string()))?;
        asked.push((party, recipe.output, live));
    }
    let mut seats = Vec::new();
    for ((party, most, mut live), woken) in asked.into_iter().zip(woken) {
        let process = live.started().map_err(|e| e.within(&party.to_string()))?.pidfd;
        seats.push(Seat { party, live, process, most, woken, told: false, seen: false });
    }
    let transcript = Transcript { began, room: spec.transcript, truncated: false, messages: Vec::new() };
    let mut round = Round { spec, seats, edges, transcript, pause: FIRST_LOOK, still: None, deadline: None, over: false, waits: None };
    round.go()?;
    round.finish()
}

/// Makes the pipes, and gives the commands their ends.
fn connect(pipes: &[(End, End)], parties: &mut [(Party, Sandbox, Command)]) -> Result<Vec<Edge>> {
    let mut edges = Vec::new();
    for (from, to) in pipes {
        let (edge, writer, reader) = Edge::new(*from, *to).map_err(|e| Error::io("make", "a pipe", e))?;
        for ((party, number), fd) in [(*from, writer), (*to, reader)] {
            let command = &mut parties[party].2;
            match number {
                0 => command.stdin = fd.into(),
                1 => command.stdout = fd.into(),
                2 => command.stderr = fd.into(),
                _ => command.fds.push((number, fd, FdKind::Plain)),
            }
        }
        edges.push(edge);
    }
    Ok(edges)
}

/// Whether a party has a descriptor through which somebody else could wake it.
fn hears_others(command: &Command, party: usize, spec: &Interaction) -> bool {
    let replaced = spec.pipes.iter().any(|(from, to)| *from == (party, 0) || *to == (party, 0));
    !command.fds.is_empty() || !replaced && matches!(command.stdin.0, Stream::Fd(_) | Stream::Inherit)
}

/// A party in its sandbox.
struct Seat {
    party: Party,
    live: Live,
    process: OwnedFd,
    /// The most that it may write into a pipe.
    most: Option<u64>,
    /// Others than the parties may wake it.
    woken: bool,
    told: bool,
    /// Its end has been taken notice of.
    seen: bool,
}

impl Seat {
    fn ended(&self) -> bool {
        self.live.ended_at().is_some()
    }

    /// How it ended, if it has.
    fn end(&self) -> Result<Option<Seen>> {
        let (Some(exit), Some(at)) = (self.live.verdict()?, self.live.ended_at()) else { return Ok(None) };
        Ok(Some(Seen { party: self.party, exit, at, told: self.told }))
    }

    fn kill(&self) -> Result<()> {
        if self.ended() { Ok(()) } else { self.live.tell(Request::KILL, 0, Duration::ZERO) }
    }

    /// It sleeps, or nobody can tell.
    fn sleeps(&self) -> bool {
        watch::look(self.process.as_fd()).is_none_or(|look| look.asleep)
    }
}

struct Round {
    spec: Interaction,
    seats: Vec<Seat>,
    edges: Vec<Edge>,
    transcript: Transcript,
    /// Until the next look.
    pause: Duration,
    /// Since when nobody has run, and what they looked like.
    still: Option<(Instant, Vec<Look>)>,
    /// When those who are left are killed.
    deadline: Option<Instant>,
    /// They have been: whatever comes of that nobody is told any more.
    over: bool,
    /// Who waited for whom when nobody went on.
    waits: Option<Vec<Wait>>,
}

impl Round {
    fn go(&mut self) -> Result<()> {
        let mut buffer = Vec::new();
        while !self.seats.iter().all(Seat::ended) {
            let next = Instant::now() + self.pause;
            let quiet = self.turn(self.deadline.map_or(next, |deadline| deadline.min(next)), &mut buffer)?;
            self.ends()?;
            self.pass_ends()?;
            if !quiet {
                self.stir();
            } else if !self.over {
                self.pause = (2 * self.pause).min(LAST_LOOK);
                self.look()?;
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.deadline = None;
                self.kill()?;
            }
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.over = true;
        self.seats.iter().try_for_each(Seat::kill)
    }

    /// One turn of the poll loop; true if nothing has happened until `until`.
    fn turn(&mut self, until: Instant, buffer: &mut Vec<u8>) -> Result<bool> {
        let (mut polled, mut counts) = (Vec::new(), Vec::new());
        for seat in self.seats.iter().filter(|seat| !seat.ended()) {
            let interest = seat.live.interest();
            counts.push(interest.len());
            polled.extend(interest);
        }
        // Those who are being killed aren't given room for more.
        let edges = if self.over { 0 } else { self.edges.len() };
        let interest = self.edges[..edges].iter().filter_map(Edge::interest);
        polled.extend(interest.map(|(fd, events)| PollFd::new(fd, events)));
        match poll(&mut polled, timeout_until(until)) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(false),
            Err(errno) => return Err(Error::io("wait for", "the parties", errno.into())),
        }
        let ready: Vec<bool> = polled.iter().map(happened).collect();
        let mut ready = &ready[..];
        for (seat, count) in self.seats.iter_mut().filter(|seat| !seat.ended()).zip(counts) {
            let (own, rest) = ready.split_at(count);
            seat.live.advance(own, buffer)?;
            ready = rest;
        }
        let mut ready = ready.iter();
        for i in 0..edges {
            // As it was asked: nothing but its own turn changes an edge.
            if self.edges[i].interest().is_some() && ready.next() == Some(&true) {
                self.advance(i)?;
            }
        }
        Ok(false)
    }

    fn advance(&mut self, i: usize) -> Result<()> {
        let (edge, transcript) = (&mut self.edges[i], &mut self.transcript);
        let (from, to) = (self.seats[edge.from.0].party, self.seats[edge.to.0].party);
        edge.advance(&mut |bytes| transcript.add(i, from, to, bytes)).map_err(|e| Error::io("pass on", "what was said", e))?;
        self.count(i)
    }

    /// What is written into a pipe is output.
    fn count(&mut self, i: usize) -> Result<()> {
        let seat = &mut self.seats[self.edges[i].from.0];
        if seat.most.is_some_and(|most| self.edges[i].bytes > most) { seat.live.exceed_output() } else { Ok(()) }
    }

    /// Takes notice of new ends: who is to end now, and by when.
    fn ends(&mut self) -> Result<()> {
        for i in 0..self.seats.len() {
            if self.seats[i].seen {
                continue;
            }
            let Some(end) = self.seats[i].end()? else { continue };
            self.seats[i].seen = true;
            let accepts = matches!(end.exit, Exit::Code(code) if self.spec.codes.accept.contains(&code));
            if end.party.is_judge() && !accepts {
                self.kill()?;
            } else if end.party.is_judge() || end.failed_alone() {
                self.deadline = self.deadline.or(Instant::now().checked_add(self.spec.grace));
            }
        }
        Ok(())
    }

    /// Passes on each end of file whose time has come.
    fn pass_ends(&mut self) -> Result<()> {
        for i in 0..self.edges.len() {
            if self.over || !self.edges[i].at_end() {
                continue;
            }
            let held = self.edges[i].held.get_or_insert_with(Instant::now).elapsed();
            let (edge, writer, reader) = (&self.edges[i], &self.seats[self.edges[i].from.0], &self.seats[self.edges[i].to.0]);
            let end = writer.end()?;
            let judged = end.is_some_and(|end| end.party.is_judge());
            let known = end.is_some() || writer.sleeps();
            let needed = reader.ended() || edge.taken() && reader.sleeps();
            if known && needed || held >= HOLD && !judged {
                let matters = end.is_some_and(|end| judged || end.failed_alone());
                self.edges[i].pass_end();
                let reader = self.edges[i].to.0;
                self.seats[reader].told |= matters && !self.seats[reader].ended();
                self.stir();
            }
        }
        Ok(())
    }

    /// Something has happened.
    fn stir(&mut self) {
        let held = !self.over && self.edges.iter().any(Edge::at_end);
        (self.pause, self.still) = (if held { EARLY_LOOK } else { FIRST_LOOK }, None);
    }

    /// Looks whether anybody can go on.
    fn look(&mut self) -> Result<()> {
        let live: Vec<&Seat> = self.seats.iter().filter(|seat| !seat.ended()).collect();
        let asleep = |seat: &&Seat| watch::look(seat.process.as_fd()).filter(|look| look.asleep);
        // The first who is awake is enough.
        let looks: Option<Vec<Look>> = live.iter().map(asleep).collect();
        let Some(looks) = looks.filter(|looks| !looks.is_empty() && !self.edges.iter().any(Edge::at_end)) else {
            self.still = None;
            return Ok(());
        };
        let since = match &self.still {
            Some((since, before)) if *before == looks => *since,
            _ => Instant::now(),
        };
        let for_good = looks.iter().all(|look| look.for_good) && live.iter().all(|seat| !seat.woken);
        let limit = if for_good { Some(STILL) } else { self.spec.idle_time };
        if limit.is_some_and(|limit| since.elapsed() >= limit) {
            self.waits = Some(self.who_waits(&looks));
            return self.kill();
        }
        // A standstill that's near is looked for more often.
        self.pause = self.pause.min(limit.map_or(LAST_LOOK, |limit| (limit / 2).max(EARLY_LOOK)));
        self.still = Some((since, looks));
        Ok(())
    }

    /// Of those who live, with what they look like.
    fn who_waits(&self, looks: &[Look]) -> Vec<Wait> {
        let mut waits = Vec::new();
        for ((i, seat), look) in self.seats.iter().enumerate().filter(|(_, seat)| !seat.ended()).zip(looks) {
            let mut add = |on: usize, reason| waits.push(Wait { party: seat.party, on: self.seats[on].party, reason });
            // What doesn't wait in a pipe itself may wait for any of them.
            let any = !look.reads && !look.writes;
            for edge in &self.edges {
                if edge.from.0 == i && edge.stuck() && (look.writes || any) {
                    add(edge.to.0, WaitReason::Room);
                }
                if edge.to.0 == i && edge.quiet() && (look.reads || any) {
                    add(edge.from.0, WaitReason::Input);
                }
            }
        }
        waits
    }

    fn finish(mut self) -> Result<Conversation> {
        for i in 0..self.edges.len() {
            let (edge, transcript) = (&mut self.edges[i], &mut self.transcript);
            let (from, to) = (self.seats[edge.from.0].party, self.seats[edge.to.0].party);
            edge.drain(&mut |bytes| transcript.add(i, from, to, bytes)).map_err(|e| Error::io("read", "what was said", e))?;
            self.count(i)?;
        }
        let mut seen = Vec::new();
        for seat in &mut self.seats {
            // Only what it has captured is left to be read.
            seat.live.wait(None)?;
            seen.extend(seat.end()?);
        }
        let verdict = verdict(&seen, &self.spec.codes, self.waits.is_some());
        seen.sort_by_key(|end| end.at);
        let waits = self.waits.take().filter(|_| verdict == Verdict::Idle).unwrap_or_default();
        let name = |i: usize| self.seats[i].party;
        let pipes = self.edges.iter().map(|edge| PipeEnd { from: name(edge.from.0), to: name(edge.to.0), bytes: edge.bytes }).collect();
        Ok(Conversation {
            verdict,
            ends: seen.iter().map(|end| end.party).collect(),
            waits,
            pipes,
            transcript: self.transcript.messages,
            transcript_truncated: self.transcript.truncated,
            outputs: self.seats.into_iter().map(|seat| seat.live.finish()).collect::<Result<_>>()?,
        })
    }
}

/// What was said, up to a bound.
struct Transcript {
    began: Instant,
    room: usize,
    truncated: bool,
    messages: Vec<Message>,
}

impl Transcript {
    fn add(&mut self, pipe: usize, from: Party, to: Party, bytes: &[u8]) {
        if bytes.is_empty() || self.truncated {
            return;
        }
        let goes_on = self.messages.last().is_some_and(|last| last.pipe == pipe);
        let fits = self.room.saturating_sub(if goes_on { 0 } else { MESSAGE }).min(bytes.len());
        self.truncated = fits < bytes.len();
        if fits == 0 {
            return;
        }
        if !goes_on {
            self.room -= MESSAGE;
            self.messages.push(Message { from, to, at: self.began.elapsed(), bytes: Vec::new(), pipe });
        }
        self.room -= fits;
        if let Some(message) = self.messages.last_mut() {
            message.bytes.extend_from_slice(&bytes[..fits]);
        }
    }
}
