//! Waiting for a command in a thread: `poll`, and what [`Live`] does then.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};

use super::broken::overdue;
use super::live::{Live, SETUP_LIMIT, Started, happened};
use crate::error::{Error, Result};
use crate::launch::{timeout_until, wait_readable};
use crate::outcome::Line;

impl Live {
    /// Waits for the program's exec.
    pub(crate) fn started(&mut self) -> Result<Started> {
        loop {
            self.await_setup()?;
            if let Some(started) = self.arrive()? {
                return Ok(started);
            }
        }
    }

    /// Waits until the command's process has been looked at and goes on to its exec. What
    /// becomes of that is heard with the end: who runs a command and waits for it asks for
    /// no notice in between, which would wake host and PID 1 while a short command ends.
    pub(crate) fn looked_at(&mut self) -> Result<()> {
        self.stands_within(SETUP_LIMIT).inspect_err(|error| self.trace.failed(error))?;
        self.proceeded = Some(super::monotonic());
        if let Some(checkpoint) = self.sandbox.root.checkpoint() {
            checkpoint.has_been_sealed();
        }
        self.trace.started();
        Ok(())
    }

    /// Waits for the next message of the set-up.
    pub(super) fn await_setup(&self) -> Result<()> {
        self.await_setup_for(SETUP_LIMIT)
    }

    /// The same for so long.
    pub(super) fn await_setup_for(&self, limit: Duration) -> Result<()> {
        match wait_readable(self.socket(), limit) {
            Ok(true) => Ok(()),
            Ok(false) => Err(overdue()),
            Err(error) => Err(Error::io("wait for", "the sandbox", error)),
        }
    }

    /// Until the end, or until `deadline`; true at the end.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> Result<bool> {
        self.prepare_next();
        self.wait_a_moment(deadline)?;
        self.wait_with(deadline, |_, _| {})
    }

    /// Waits for the end alone, for a moment and once. A command closes one stream after the
    /// other when it ends: whoever looks at them is woken, and switched to, for each. What a
    /// short command has said is still in its pipes when it's over; one with more to say than
    /// they hold waits no longer than this.
    fn wait_a_moment(&mut self, deadline: Option<Instant>) -> Result<()> {
        const MOMENT: Duration = Duration::from_millis(2);
        if std::mem::take(&mut self.is_new) && !self.has_ended() && self.streams.iter().any(Option::is_some) {
            let mut polled = self.interest();
            polled.truncate(Live::OWN);
            let moment = Instant::now() + MOMENT;
            match poll(&mut polled, timeout_until(deadline.map_or(moment, |deadline| deadline.min(moment)))) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("wait for", "the sandbox", errno.into())),
            }
        }
        Ok(())
    }

    /// Until the end, telling each captured line of stream 0 or 1 as soon as it's there.
    pub(crate) fn wait_lines(&mut self, on_line: &mut dyn FnMut(Line<'_>)) -> Result<()> {
        self.keep_lines();
        self.prepare_next();
        self.wait_with(None, |live, end| live.tell_lines(end, &mut *on_line)).map(drop)
    }

    fn wait_with(&mut self, deadline: Option<Instant>, mut news: impl FnMut(&mut Live, bool)) -> Result<bool> {
        let mut buffer = Vec::new();
        while !self.has_ended() {
            self.turn(deadline, &mut buffer)?;
            news(self, false);
            // Asked here and not when poll times out: with a stream that always has
            // something to read it never does.
            if !self.has_ended() && deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(false);
            }
        }
        self.gather(&mut buffer)?;
        news(self, true);
        while !self.settled() {
            if !self.turn(deadline, &mut buffer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One turn of the poll loop: until something happens, or until `deadline`; false then.
    fn turn(&mut self, deadline: Option<Instant>, buffer: &mut Vec<u8>) -> Result<bool> {
        let ready: Vec<bool> = {
            let mut polled = self.interest();
            match poll(&mut polled, deadline.map_or(PollTimeout::NONE, timeout_until)) {
                Ok(0) => return Ok(false),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("wait for", "the sandbox", errno.into())),
            }
            polled.iter().map(happened).collect()
        };
        self.advance(&ready, buffer)?;
        Ok(true)
    }
}
