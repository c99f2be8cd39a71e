//! Where a command's counters and its init are: in a sandbox of its own or in a live one.

use std::sync::Arc;

use super::session::Share;
use crate::cgroup::{Counters, Group};
use crate::ids::Claim;
use crate::launch::Init;

/// What a command runs in.
#[derive(Debug)]
pub(super) enum Place {
    /// A sandbox of its own.
    Own {
        /// Kept as long as the sandbox may live.
        claim: Option<Arc<Claim>>,
        group: Box<Group>,
        init: Arc<Init>,
    },
    /// One that it shares with other commands.
    Shared(Box<Share>),
}

impl Place {
    pub(super) fn init(&self) -> &Init {
        match self {
            Place::Own { init, .. } => init,
            Place::Shared(share) => share.init(),
        }
    }

    /// When its command has ended.
    pub(super) fn counters(&mut self) -> Counters {
        match self {
            Place::Own { group, .. } => {
                let counters = group.counters();
                group.ended(&counters);
                counters
            }
            Place::Shared(share) => share.counters(),
        }
    }

    /// Whether the id maps have still to be read back.
    pub(super) fn is_unmapped(&self) -> bool {
        match self {
            Place::Own { .. } => true,
            Place::Shared(share) => share.is_unmapped(),
        }
    }

    /// They have been, and were right.
    pub(super) fn is_mapped(&self) {
        if let Place::Shared(share) = self {
            share.is_mapped();
        }
    }

    /// Layers that could not be had.
    pub(super) fn missing(&self) -> u64 {
        match self {
            Place::Own { group, .. } => group.missing,
            Place::Shared(share) => share.missing(),
        }
    }
}
