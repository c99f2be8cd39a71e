//! Programs that talk with each other, each in a sandbox of its own.
//!
//! The host stands in the middle of each pipe. What is written is passed on at once; an
//! *end of file* is passed on as late as it can be, and that's what makes the verdict
//! true. With a plain pipe the judge sees the end of file of a player that crashes while
//! the kernel is still busy with its death, says "wrong" and may well be reaped first; and
//! a player that is told "wrong" and then crashes may be reaped before the judge has
//! ended. Which of them *was first* is an accident of scheduling; who acted *because of*
//! whom isn't, and here it's known: nobody can have reacted to an end that it hasn't been
//! told of.

mod conversation;
mod edge;
mod home;
pub(crate) mod round;
mod start;
mod talk;
mod transcript;
mod verdict;
mod watch;

use std::fmt;
use std::time::Duration;

use crate::command::Command;
use crate::error::Result;

pub use conversation::{Conversation, Message, PipeEnd, Wait, WaitReason};
use home::Home;
pub use home::PartyHome;
pub use talk::{Talk, TalkKiller};
use verdict::Codes;
pub use verdict::Verdict;

/// A party's descriptor: the index of the party, and the number that it has there.
type End = (usize, u32);

/// Two programs or more that talk through pipes, each in a sandbox of its own: a judge
/// (interactor, manager) with one player (solution) or several, or players alone.
///
/// A party's sandbox is made for it from a recipe, or is a live one
/// ([`Instance`](crate::Instance)), such as the one that its program has been compiled in. No two of
/// them share a live one, and other commands of that count as the party's: as long as one
/// of them runs it doesn't sleep.
///
/// # Pipes
/// Each pipe goes through the host, which reads and writes it in one poll loop in the
/// calling thread, and holds at most 64 KiB of it. What is written is passed on at once.
/// What a party writes into a pipe counts against its recipe's
/// [limit on output](crate::Sandbox::output), each pipe for itself.
///
/// Nobody gets SIGPIPE for what another did: what the reader doesn't read any more, since it
/// has closed its end or is dead, is read by the host, counted and dropped.
///
/// # Ends
/// An end of file, by a close or a death, is passed on when
/// 1. its writer has ended and that has been recorded, or it lives and sleeps; and
/// 2. its reader sleeps and has read everything: it needs to know.
///
/// Else it waits, for a second at most; one of a judge that has accepted waits on. So a party
/// that crashes right after a close has crashed; a judge that has all it needs to decide
/// isn't disturbed by what becomes of the players meanwhile; and the verdict doesn't depend
/// on who was quicker. (Where /proc isn't mounted nobody's sleep can be seen and only
/// the record of the end is waited for.)
///
/// # Verdict
/// A party is *told* when it's given the end of file of a judge that has ended, or of a
/// player that had failed: had ended with another exit code than 0, by a signal, or by
/// a limit. The first rule that fits:
///
/// | what happened | verdict |
/// | --- | --- |
/// | the judge ended without being told, with a code that rejects | [`Rejected`](Verdict::Rejected), whatever the players did |
/// | the same, with a signal, a limit or a code that means nothing | [`JudgeFailed`](Verdict::JudgeFailed): never the players' fault |
/// | the caller [killed](Talk::kill) it, and not all had ended by themselves | [`Killed`](Verdict::Killed), also if a player had failed |
/// | a player failed without being told | [`Failed`](Verdict::Failed), the first of them; also if the judge then rejects, crashes or accepts |
/// | everybody who was left waited for somebody | [`Idle`](Verdict::Idle) |
/// | a player went on after the judge's end, neither ended nor looked for more input, and was killed | `Failed`, with [`Exit::Killed`](crate::Exit::Killed) |
/// | the judge accepted, or there's none | [`Accepted`](Verdict::Accepted), whatever players did that had been told |
///
/// So a player that crashes because the judge has gone isn't blamed, and a judge that
/// crashes because a player has gone isn't either. When the judge has rejected or failed
/// the players are killed; when it has accepted, or when a player has failed, the others
/// have some [time](Self::grace) to end.
///
/// # Standstill
/// When all parties that live wait in a pipe or for a child, nothing is on its way, and none
/// of them has run between two looks, it can't go on: the verdict is `Idle`, some
/// hundredths of a second later. A party that waits otherwise (in poll(2), epoll(7) or a
/// lock) might be woken by a clock: for those there is [`idle_time`](Self::idle_time),
/// and there are the recipe's own limits. A timer's signal, or a FIFO in a
/// [bind](crate::Sandbox::bind) that others write to, is not seen.
///
/// ```
/// use cofferdam::{Interaction, Sandbox, Verdict};
///
/// let mut talk = Interaction::new();
/// let judge = talk.judge(&Sandbox::new(), ["sh", "-c", "echo 20; read n; test $n = 400"]);
/// let player = talk.player(&Sandbox::new(), ["sh", "-c", "read n; echo $((n * n))"]);
/// talk.connect(judge, player);
/// talk.transcript(1024);
/// let outcome = talk.run()?;
/// assert_eq!(outcome.verdict, Verdict::Accepted);
/// assert_eq!(outcome.transcript[1].bytes, b"400\n");
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Debug)]
pub struct Interaction {
    parties: Vec<(Party, Home, Command)>,
    pipes: Vec<(End, End)>,
    codes: Codes,
    grace: Duration,
    idle_time: Option<Duration>,
    transcript: usize,
    problem: Option<String>,
}

/// One of those who talk. It only means something to the [`Interaction`] that it's of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Party {
    index: usize,
    /// 0 is the judge.
    player: usize,
}

impl Party {
    /// Whether it's the judge.
    pub fn is_judge(self) -> bool {
        self.player == 0
    }
}

impl fmt::Display for Party {
    /// `the judge`, `player 1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_judge() { f.write_str("the judge") } else { write!(f, "player {}", self.player) }
    }
}

impl Default for Interaction {
    fn default() -> Interaction {
        Interaction::new()
    }
}

impl Interaction {
    /// Nobody yet.
    pub fn new() -> Interaction {
        Interaction {
            parties: Vec::new(),
            pipes: Vec::new(),
            codes: Codes { accept: vec![0], reject: vec![1, 2] },
            grace: Duration::from_secs(10),
            idle_time: None,
            transcript: 0,
            problem: None,
        }
    }

    fn check_that(&mut self, holds: bool, problem: &str) {
        if !holds && self.problem.is_none() {
            self.problem = Some(problem.into());
        }
    }

    /// Adds the one whose exit code decides, in a sandbox of this recipe or in a live one. At
    /// most one.
    pub fn judge(&mut self, home: impl Into<PartyHome>, command: impl Into<Command>) -> Party {
        let first = self.parties.iter().all(|(party, ..)| !party.is_judge());
        self.check_that(first, "an interaction has one judge at most; the others are players");
        self.add(0, home.into(), command.into())
    }

    /// Adds somebody who is to end with exit code 0, in a sandbox of this recipe or in a live
    /// one.
    pub fn player(&mut self, home: impl Into<PartyHome>, command: impl Into<Command>) -> Party {
        let player = 1 + self.parties.iter().filter(|(party, ..)| !party.is_judge()).count();
        self.add(player, home.into(), command.into())
    }

    fn add(&mut self, player: usize, home: PartyHome, command: Command) -> Party {
        let party = Party { index: self.parties.len(), player };
        self.parties.push((party, home.0, command));
        party
    }

    /// Two pipes: from the standard output of each to the standard input of the other.
    /// What the commands say of these streams is replaced.
    pub fn connect(&mut self, one: Party, other: Party) -> &mut Interaction {
        self.pipe((one, 1), (other, 0)).pipe((other, 1), (one, 0))
    }

    /// A pipe from one party's descriptor to another's. A judge of two players writes to
    /// them through its descriptors 3 and 5, say, and hears from them on 4 and 6:
    ///
    /// ```
    /// # use cofferdam::{Interaction, Sandbox};
    /// # let mut talk = Interaction::new();
    /// # let manager = talk.judge(&Sandbox::new(), ["sh", "-c", "echo 1 >&3; echo 2 >&5; read a <&4; read b <&6; test $a$b = 12"]);
    /// for (first, player) in [(3, "cat"), (5, "cat")] {
    ///     let player = talk.player(&Sandbox::new(), player);
    ///     talk.pipe((manager, first), (player, 0)).pipe((player, 1), (manager, first + 1));
    /// }
    /// # assert!(talk.run()?.verdict.accepted());
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn pipe(&mut self, from: (Party, u32), to: (Party, u32)) -> &mut Interaction {
        let known = [from, to].iter().all(|(party, _)| self.parties.get(party.index).is_some_and(|(known, ..)| known == party));
        self.check_that(known, "a pipe is between parties of the same interaction");
        self.check_that(from.0 != to.0, "a pipe goes from one party to another");
        let used = |end: End| self.pipes.iter().any(|(from, to)| *from == end || *to == end);
        let (from, to) = ((from.0.index, from.1), (to.0.index, to.1));
        let fresh = !used(from) && !used(to);
        self.check_that(fresh, "each descriptor of a party is one pipe's");
        self.pipes.push((from, to));
        self
    }

    /// Which exit codes of the judge accept, and which reject; any other means that the
    /// judge is broken. Default: 0 accepts, and 1 and 2 reject. Kattis has 42 and 43.
    pub fn codes(&mut self, accept: impl IntoIterator<Item = i32>, reject: impl IntoIterator<Item = i32>) -> &mut Interaction {
        self.codes = Codes { accept: accept.into_iter().collect(), reject: reject.into_iter().collect() };
        let both = self.codes.accept.iter().any(|code| self.codes.reject.contains(code));
        self.check_that(!both, "an exit code of the judge either accepts or rejects");
        self
    }

    /// How long parties may go on after the judge has accepted, or after a player has
    /// failed; then they're killed. Default: 10 s.
    pub fn grace(&mut self, time: Duration) -> &mut Interaction {
        self.grace = time;
        self
    }

    /// Ends it, as [`Verdict::Idle`], when for this long nobody has run and nothing has
    /// been written. Default: no limit. At least 50 ms. The
    /// [idle time of a recipe](crate::Sandbox::idle_time) is refused here: whoever waits for
    /// another that computes uses no CPU time either.
    pub fn idle_time(&mut self, limit: Duration) -> &mut Interaction {
        self.check_that(limit >= Duration::from_millis(50), "the smallest idle time is 50 ms");
        self.idle_time = Some(limit);
        self
    }

    /// Keeps what was said, in [`Conversation::transcript`], up to so many bytes; each
    /// message counts 64 bytes more than it has. Default: none.
    pub fn transcript(&mut self, bytes: usize) -> &mut Interaction {
        self.transcript = bytes;
        self
    }

    /// Runs them all, at once, and waits until each has ended. An `Err` means that one
    /// could not be started, or that a sandbox broke; then the others have been killed.
    pub fn run(self) -> Result<Conversation> {
        self.start()?.wait()
    }

    /// Starts them all, at once, without waiting for their ends: what [`run`](Self::run)
    /// does first. For those who may have to [end](Talk::killer) it before it ends by itself.
    ///
    /// ```
    /// # use cofferdam::{Interaction, Sandbox, Verdict};
    /// # let mut talk = Interaction::new();
    /// # let judge = talk.judge(&Sandbox::new(), "cat");
    /// # let player = talk.player(&Sandbox::new(), ["sleep", "1000"]);
    /// # talk.connect(judge, player);
    /// let talk = talk.start()?;
    /// let killer = talk.killer();
    /// std::thread::spawn(move || killer.kill());
    /// assert_eq!(talk.wait()?.verdict, Verdict::Killed);
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn start(self) -> Result<Talk> {
        Ok(Talk { round: start::start(self)? })
    }
}

/// As many of them as one loop has to look after.
const MOST: usize = 64;
