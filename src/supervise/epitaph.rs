//! What became of a command whose PID 1 died without a word, in a sandbox that it shared.
//!
//! Its own socket has ended then; init tells the sandbox's, once, and all commands look there.

use std::os::fd::{AsFd, BorrowedFd};

use super::live::Live;
use super::place::Place;
use crate::plan::message::Report;

impl Live {
    /// Where its next message comes.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.epitaph.as_ref().unwrap_or(&self.reply).as_fd()
    }

    /// At the end of its socket: whether there's something to be heard elsewhere. Not after
    /// its own end, and not of one that never began, of which all has been said.
    pub(super) fn turns_to_epitaph(&mut self) -> bool {
        let (Place::Shared(share), None) = (&self.place, &self.epitaph) else { return false };
        if self.began().is_some() && self.ended.is_none() {
            self.epitaph = share.epitaph();
        }
        self.epitaph.is_some()
    }

    /// Whether init ended it because PID 1 should have.
    pub(super) fn is_overdue(&self, began: u64, gone: &Report) -> bool {
        let limit = self.sandbox.wall_time.map_or(u64::MAX, |limit| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
        gone.cause & Report::WALL != 0 && began.saturating_add(limit) <= gone.ended
    }
}
