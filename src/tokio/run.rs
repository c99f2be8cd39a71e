//! Waiting for a command in a task: what `supervise/wait.rs` is for threads.

use ::tokio::runtime::Handle;
use ::tokio::task::yield_now;
use ::tokio::time::timeout;
use nix::poll::{PollFd, PollFlags};

use super::watch::Watch;
use crate::error::Result;
use crate::outcome::{Line, Output};
use crate::supervise::{Live, SETUP_LIMIT, Started, overdue};

/// A command in the care of a runtime. Dropping it kills the command and doesn't wait.
#[derive(Debug)]
pub(super) struct Run {
    /// Until it's finished.
    inner: Option<Inner>,
    runtime: Handle,
}

#[derive(Debug)]
struct Inner {
    live: Live,
    watch: Watch,
}

impl Run {
    pub(super) fn new(live: Live) -> Result<Run> {
        // First of all: if there can be no watch, no drop may wait either.
        let live = live.without_patience();
        let runtime = Handle::current();
        Ok(Run { inner: Some(Inner { live, watch: Watch::new()? }), runtime })
    }

    fn inner(&mut self) -> &mut Inner {
        self.inner.as_mut().expect("it's taken by what takes all of it")
    }

    pub(super) fn live(&self) -> &Live {
        &self.inner.as_ref().expect("it's taken by what takes all of it").live
    }

    pub(super) fn live_mut(&mut self) -> &mut Live {
        &mut self.inner().live
    }

    /// Waits for the program's exec.
    pub(super) async fn started(&mut self) -> Result<Started> {
        let inner = self.inner();
        timeout(SETUP_LIMIT, inner.started()).await.unwrap_or_else(|_| Err(overdue()))
    }

    /// Waits for the end.
    pub(super) async fn wait(&mut self) -> Result<()> {
        self.inner().wait(|_, _| {}).await
    }

    /// From the start to the outcome.
    pub(super) async fn into_output(mut self) -> Result<Output> {
        self.started().await?;
        self.wait().await?;
        self.finish()
    }

    /// As [`into_output`](Self::into_output), telling each captured line as soon as it's there.
    pub(super) async fn into_output_with_lines(mut self, mut on_line: impl FnMut(Line<'_>)) -> Result<Output> {
        self.started().await?;
        let inner = self.inner();
        inner.live.keep_lines();
        inner.wait(|live, end| live.tell_lines(end, &mut on_line)).await?;
        self.finish()
    }

    /// The outcome, once it has ended.
    pub(super) fn finish(mut self) -> Result<Output> {
        let inner = self.inner.take().expect("it's taken by what takes all of it");
        inner.live.finish()
    }
}

impl Inner {
    async fn started(&mut self) -> Result<Started> {
        loop {
            self.message().await?;
            if let Some(started) = self.live.arrive()? {
                return Ok(started);
            }
        }
    }

    /// Waits for a message or the end of them.
    async fn message(&mut self) -> Result<()> {
        let live = &self.live;
        self.watch.ready(|| vec![PollFd::new(live.socket(), PollFlags::POLLIN)]).await.map(drop)
    }

    async fn wait(&mut self, mut news: impl FnMut(&mut Live, bool)) -> Result<()> {
        self.live.prepare_next();
        let mut buffer = Vec::new();
        while !self.live.has_ended() {
            self.turn(&mut buffer).await?;
            news(&mut self.live, false);
            if !self.live.has_ended() {
                // A workload that never stops printing leaves room for other tasks.
                yield_now().await;
            }
        }
        self.live.gather(&mut buffer)?;
        news(&mut self.live, true);
        while !self.live.settled() {
            self.turn(&mut buffer).await?;
            yield_now().await;
        }
        Ok(())
    }

    /// Until something happens, which is taken in.
    async fn turn(&mut self, buffer: &mut Vec<u8>) -> Result<()> {
        let live = &self.live;
        let ready = self.watch.ready(|| live.interest()).await?;
        self.live.advance(&ready, buffer)
    }

    /// Waits until every process of what was abandoned is dead.
    async fn take_leave(&mut self) {
        while !self.live.takes_leave() {
            if self.message().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.take() else { return };
        if inner.live.abandon() {
            // Ids, locks and the command's group are let go of when it's dead. A runtime
            // that's shutting down drops the task at once.
            drop(self.runtime.spawn(async move { inner.take_leave().await }));
        }
    }
}
