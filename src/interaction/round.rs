//! The run of an interaction: one poll loop for all of its sandboxes and pipes.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, poll};

use super::edge::Edge;
use super::talk::TalkKiller;
use super::transcript::Transcript;
use super::verdict::{Cut, Seen, verdict};
use super::watch::{self, Look};
use super::{Conversation, Interaction, Party, PipeEnd, Verdict, Wait, WaitReason};
use crate::error::{Error, Result};
use crate::launch::timeout_until;
use crate::outcome::Exit;
use crate::plan::message::Request;
use crate::supervise::{Live, happened};

/// How long an end of file is held back at most.
const HOLD: Duration = Duration::from_secs(1);
/// Between two looks at those who may be asleep: from here, doubled, up to there. An end of
/// file that waits is worth an early one.
const FIRST_LOOK: Duration = Duration::from_millis(8);
const EARLY_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(500);
/// For how long nobody may have run before it's a standstill.
const STILL: Duration = Duration::from_millis(20);

/// A party in its sandbox.
#[derive(Debug)]
pub(super) struct Seat {
    party: Party,
    pub(super) live: Live,
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
    pub(super) fn new(party: Party, live: Live, process: OwnedFd, most: Option<u64>, woken: bool) -> Seat {
        Seat { party, live, process, most, woken, told: false, seen: false }
    }

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

#[derive(Debug)]
pub(crate) struct Round {
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
    /// By whom, unless it came to its end.
    cut: Option<Cut>,
    /// Who waited for whom when nobody went on.
    waits: Vec<Wait>,
    killer: TalkKiller,
    /// Scratch space.
    buffer: Vec<u8>,
}

impl Round {
    pub(super) fn new(mut spec: Interaction, seats: Vec<Seat>, edges: Vec<Edge>, began: Instant) -> Round {
        let transcript = Transcript::new(began, std::mem::take(&mut spec.transcript));
        let killer = TalkKiller::of(&seats);
        let (still, deadline, over, cut, waits) = (None, None, false, None, Vec::new());
        Round { spec, seats, edges, transcript, pause: FIRST_LOOK, still, deadline, over, cut, waits, killer, buffer: Vec::new() }
    }

    pub(super) fn killer(&self) -> &TalkKiller {
        &self.killer
    }

    pub(super) fn go(&mut self) -> Result<()> {
        while !self.has_ended() {
            let ready: Vec<bool> = {
                let mut polled = self.interest();
                match poll(&mut polled, timeout_until(self.next_turn())) {
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(errno) => return Err(Error::io("wait for", "the parties", errno.into())),
                }
                polled.iter().map(happened).collect()
            };
            self.turn(&ready)?;
        }
        Ok(())
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.seats.iter().all(Seat::ended)
    }

    /// When something may be to be done though nothing happens.
    pub(crate) fn next_turn(&self) -> Instant {
        let next = Instant::now() + self.pause;
        self.deadline.map_or(next, |deadline| deadline.min(next))
    }

    /// What poll is to be asked about; [`turn`](Self::turn) takes the answers in this order.
    pub(crate) fn interest(&self) -> Vec<PollFd<'_>> {
        let mut polled = Vec::new();
        for seat in self.seats.iter().filter(|seat| !seat.ended()) {
            polled.extend(seat.live.interest());
        }
        let interest = self.edges[..self.open_edges()].iter().filter_map(Edge::interest);
        polled.extend(interest.map(|(fd, events)| PollFd::new(fd, events)));
        polled
    }

    /// Those who are being killed aren't given room for more.
    fn open_edges(&self) -> usize {
        if self.over { 0 } else { self.edges.len() }
    }

    /// Does what is to be done now.
    pub(crate) fn turn(&mut self, ready: &[bool]) -> Result<()> {
        let quiet = !ready.contains(&true);
        if !quiet {
            self.take(ready)?;
        }
        // Before an end that has come of it is taken for anything else.
        if self.killer.has_killed() && !self.over {
            self.cut = Some(Cut::Caller);
            self.kill()?;
        }
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
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.over = true;
        self.seats.iter().try_for_each(Seat::kill)
    }

    /// Takes in what has happened.
    fn take(&mut self, mut ready: &[bool]) -> Result<()> {
        for seat in self.seats.iter_mut().filter(|seat| !seat.ended()) {
            let (own, rest) = ready.split_at(seat.live.interest().len());
            seat.live.advance(own, &mut self.buffer)?;
            ready = rest;
        }
        let mut ready = ready.iter();
        for i in 0..self.open_edges() {
            // As it was asked: nothing but its own turn changes an edge.
            if self.edges[i].interest().is_some() && ready.next() == Some(&true) {
                self.advance(i)?;
            }
        }
        Ok(())
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
            (self.cut, self.waits) = (Some(Cut::Standstill), self.who_waits(&looks));
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

    /// After the end of all.
    pub(crate) fn finish(mut self) -> Result<Conversation> {
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
        let verdict = verdict(&seen, &self.spec.codes, self.cut);
        seen.sort_by_key(|end| end.at);
        let waits = if verdict == Verdict::Idle { std::mem::take(&mut self.waits) } else { Vec::new() };
        let name = |i: usize| self.seats[i].party;
        let pipes = self.edges.iter().map(|edge| PipeEnd { from: name(edge.from.0), to: name(edge.to.0), bytes: edge.bytes }).collect();
        Ok(Conversation {
            verdict,
            ends: seen.iter().map(|end| end.party).collect(),
            waits,
            pipes,
            transcript_truncated: self.transcript.truncated,
            transcript: std::mem::take(&mut self.transcript.messages),
            outputs: std::mem::take(&mut self.seats).into_iter().map(|seat| seat.live.finish()).collect::<Result<_>>()?,
        })
    }
}

impl Drop for Round {
    /// All are let go of before the first is waited for.
    fn drop(&mut self) {
        for seat in &self.seats {
            seat.live.abandon();
        }
    }
}
