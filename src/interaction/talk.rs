//! An interaction that runs.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Conversation;
use super::round::{Round, Seat};
use crate::error::Result;
use crate::plan::message::Request;
use crate::supervise::tell;

/// An [`Interaction`](super::Interaction) that runs, from
/// [`Interaction::start`](super::Interaction::start). What is said waits in the pipes until
/// [`wait`](Self::wait) passes it on.
///
/// Dropping it kills all parties, and waits for that.
#[derive(Debug)]
pub struct Talk {
    pub(super) round: Round,
}

impl Talk {
    /// Passes on what is said until each party has ended. An `Err` means that a sandbox broke;
    /// then the others have been killed.
    pub fn wait(mut self) -> Result<Conversation> {
        self.round.go()?;
        self.round.finish()
    }

    /// What an asynchronous one is made of.
    #[cfg(feature = "tokio")]
    pub(crate) fn into_round(self) -> Round {
        self.round
    }

    /// Kills all parties. The verdict will be [`Killed`](super::Verdict::Killed), unless each
    /// has ended by itself before, or the judge with another word than that it accepts.
    pub fn kill(&self) -> Result<()> {
        self.round.killer().kill()
    }

    /// A handle that another thread can kill them with.
    pub fn killer(&self) -> TalkKiller {
        self.round.killer().clone()
    }
}

/// Kills the parties of a [`Talk`] from elsewhere; harmless when they have ended.
#[derive(Clone, Debug)]
pub struct TalkKiller {
    killed: Arc<AtomicBool>,
    parties: Arc<[Arc<OwnedFd>]>,
}

impl TalkKiller {
    pub(super) fn of(seats: &[Seat]) -> TalkKiller {
        TalkKiller { killed: Arc::default(), parties: seats.iter().map(|seat| seat.live.reply.clone()).collect() }
    }

    /// Like [`Talk::kill`].
    pub fn kill(&self) -> Result<()> {
        // First: no end that comes of it may be seen before.
        self.killed.store(true, Ordering::SeqCst);
        self.parties.iter().try_for_each(|party| tell(party, Request::KILL, 0, Duration::ZERO))
    }

    pub(super) fn has_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }
}
