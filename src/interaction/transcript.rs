//! What was said, up to a bound.

use std::time::Instant;

use super::{Message, Party};

/// What a message counts beside its bytes.
const MESSAGE: usize = 64;

#[derive(Debug)]
pub(super) struct Transcript {
    began: Instant,
    room: usize,
    pub(super) truncated: bool,
    pub(super) messages: Vec<Message>,
}

impl Transcript {
    pub(super) fn new(began: Instant, room: usize) -> Transcript {
        Transcript { began, room, truncated: false, messages: Vec::new() }
    }

    pub(super) fn add(&mut self, pipe: usize, from: Party, to: Party, bytes: &[u8]) {
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
