//! Where a party runs.

use std::sync::Arc;

use crate::instance::Instance;
use crate::sandbox::Sandbox;
use crate::supervise::session::Session;

/// Where a party of an [`Interaction`](super::Interaction) runs: a recipe, of which it gets a
/// sandbox of its own, or a live one ([`Instance`]).
#[derive(Clone, Debug)]
pub struct PartyHome(pub(super) Home);

#[derive(Clone, Debug)]
pub(super) enum Home {
    Fresh(Box<Sandbox>),
    Live(Arc<Session>),
}

impl Home {
    /// As it is now.
    pub(super) fn recipe(&self) -> Sandbox {
        match self {
            Home::Fresh(recipe) => (**recipe).clone(),
            Home::Live(session) => session.sandbox(),
        }
    }

    pub(super) fn live(&self) -> Option<&Arc<Session>> {
        match self {
            Home::Fresh(_) => None,
            Home::Live(session) => Some(session),
        }
    }
}

impl From<&Sandbox> for PartyHome {
    fn from(recipe: &Sandbox) -> PartyHome {
        PartyHome(Home::Fresh(Box::new(recipe.clone())))
    }
}

impl From<Sandbox> for PartyHome {
    fn from(recipe: Sandbox) -> PartyHome {
        PartyHome(Home::Fresh(Box::new(recipe)))
    }
}

impl From<&Instance> for PartyHome {
    fn from(instance: &Instance) -> PartyHome {
        PartyHome(Home::Live(instance.shared()))
    }
}
