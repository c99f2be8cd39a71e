//! What is left of an interaction.

use std::fmt;
use std::time::Duration;

use super::{Party, Verdict};
use crate::outcome::Output;

/// What an [`Interaction`](super::Interaction) left.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Conversation {
    /// What came of it.
    pub verdict: Verdict,
    /// Everybody, in the order in which they ended. Of two that ended because of each
    /// other the cause stands first; two that had nothing to do with each other may stand
    /// in any order.
    pub ends: Vec<Party>,
    /// Who waited for whom at the end, if the verdict is [`Idle`](Verdict::Idle).
    pub waits: Vec<Wait>,
    /// What went through each pipe, in the order of [`Interaction::pipe`](super::Interaction::pipe).
    pub pipes: Vec<PipeEnd>,
    /// What was said, in the order in which the host passed it on, as far as a
    /// [transcript](super::Interaction::transcript) was asked for.
    pub transcript: Vec<Message>,
    /// Whether there was more than the transcript has.
    pub transcript_truncated: bool,
    pub(super) outputs: Vec<Output>,
}

impl Conversation {
    /// How one of them ended, what it used, and what it wrote elsewhere.
    pub fn output(&self, party: Party) -> &Output {
        &self.outputs[party.index]
    }
}

/// Somebody waited for somebody else.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Who.
    pub party: Party,
    /// For whom.
    pub on: Party,
    /// For what.
    pub reason: WaitReason,
}

/// What a party waits for.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// That the other one writes.
    Input,
    /// That the other one reads: the pipe is full.
    Room,
}

impl fmt::Display for Wait {
    /// `the judge waits for input of player 1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            WaitReason::Input => write!(f, "{} waits for input of {}", self.party, self.on),
            WaitReason::Room => write!(f, "{} waits until {} reads", self.party, self.on),
        }
    }
}

/// What went through a pipe.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PipeEnd {
    /// Who wrote.
    pub from: Party,
    /// Who was to read.
    pub to: Party,
    /// Bytes that were written.
    pub bytes: u64,
}

/// What was said at one time. What follows in the same pipe, with nothing said elsewhere
/// in between, is the same message.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who wrote.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// When the host read the first of it, from the call on.
    pub at: Duration,
    /// The bytes.
    pub bytes: Vec<u8>,
    pub(super) pipe: usize,
}
