//! Programs that talk with each other, for tasks.

use ::tokio::runtime::Handle;
use ::tokio::task::yield_now;
use ::tokio::time::timeout_at;

use super::watch::Watch;
use super::{Instance, blocking, have_init};
use crate::error::Result;
use crate::interaction::round::Round;
use crate::interaction::{Conversation, Interaction, PartyHome, TalkKiller};

/// An interaction that runs: what [`cofferdam::Talk`](crate::Talk) is for threads.
///
/// Dropping it kills all parties, and doesn't wait for that.
///
/// ```
/// use cofferdam::tokio::Talk;
/// use cofferdam::{Interaction, Sandbox};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> cofferdam::Result<()> {
/// let mut talk = Interaction::new();
/// let judge = talk.judge(Sandbox::new(), ["sh", "-c", "echo 20; read n; test $n = 400"]);
/// let player = talk.player(Sandbox::new(), ["sh", "-c", "read n; echo $((n * n))"]);
/// talk.connect(judge, player);
/// assert!(Talk::start(talk).await?.wait().await?.verdict.accepted());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Talk {
    /// Until it's finished.
    round: Option<Round>,
    killer: TalkKiller,
    runtime: Handle,
}

impl Talk {
    /// Starts them all: [`Interaction::start`]. A blocking thread of the runtime does it.
    pub async fn start(interaction: Interaction) -> Result<Talk> {
        have_init().await?;
        let talk = blocking(move || interaction.start()).await?;
        let killer = talk.killer();
        Ok(Talk { round: Some(talk.into_round()), killer, runtime: Handle::current() })
    }

    /// Passes on what is said until each party has ended: [`Talk::wait`](crate::Talk::wait). If
    /// the future is dropped before, all are killed.
    pub async fn wait(mut self) -> Result<Conversation> {
        let mut watch = Watch::new()?;
        while let Some(round) = self.round.as_mut().filter(|round| !round.has_ended()) {
            let ready = timeout_at(round.next_turn().into(), watch.ready(|| round.interest())).await;
            round.turn(&ready.unwrap_or_else(|_nothing| Ok(Vec::new()))?)?;
            yield_now().await;
        }
        let round = self.round.take().expect("it's taken by what takes all of it");
        // A relay may wait for whoever reads it.
        blocking(|| round.finish()).await
    }

    /// Kills all parties: [`Talk::kill`](crate::Talk::kill).
    pub fn kill(&self) -> Result<()> {
        self.killer.kill()
    }

    /// A handle that another task or thread can kill them with.
    pub fn killer(&self) -> TalkKiller {
        self.killer.clone()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let Some(round) = self.round.take() else { return };
        // At once, while the rest waits for a thread.
        let _ = self.killer.kill();
        drop(self.runtime.spawn_blocking(move || drop(round)));
    }
}

impl From<&Instance> for PartyHome {
    fn from(instance: &Instance) -> PartyHome {
        PartyHome::from(&*instance.inner)
    }
}
