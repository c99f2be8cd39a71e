//! What the sandbox tells init and the host on its way, and waits for.

use super::{Context, Failure, Progress};
use crate::arch::nr;
use crate::message::{Report, Request};
use crate::sys::*;
use crate::wire::slot;

impl Context {
    /// Tells PID 1, if this process is another: see [`Progress`].
    pub fn tell(&self, failure: Failure) {
        if self.announce >= 0 {
            let (began, executed, charged, missing) = (self.began, self.executed, self.charged(), self.missing);
            let pid = call(nr::GETPID, [0; 6]).unwrap_or(0) as i32;
            let progress = Progress { pid, failure, began, executed, charged, missing };
            let _ = call(nr::WRITE, [self.announce as usize, &raw const progress as usize, size_of::<Progress>(), 0, 0, 0]);
        }
    }

    /// CPU time between joining the control group and exec: our own, in its account.
    pub fn charged(&self) -> u64 {
        self.joined.map_or(0, |joined| self.executed.saturating_sub(joined))
    }

    pub(super) fn await_group(&mut self, first: usize, count: usize) -> Result<usize> {
        match receive_request(self.slots[slot::REPLY as usize], true)? {
            Some((request, received)) if request.kind == Request::GROUP && !received.truncated && received.count == count => {
                self.slots[first..first + count].copy_from_slice(received.fds());
                Ok(0)
            }
            Some(_) => Err(EPROTO),
            // The host let go.
            None => exit(1),
        }
    }

    pub(super) fn show(&self, fd: i32, kind: u32) -> Result<usize> {
        report(self.slots[slot::REPLY as usize], &Report { kind, ..Report::default() }, &[fd]);
        Ok(0)
    }

    pub(super) fn pass_terminal(&self, master: i32) -> Result<usize> {
        let terminal = Report { kind: Report::TERMINAL, ..Report::default() };
        send(self.slots[slot::REPLY as usize], &terminal.encode(), &[master]).map(|()| 0)
    }

    /// See [`op::STAND`].
    pub(super) fn stand(&self) -> Result<usize> {
        let standing = Report { kind: Report::STANDING, ..Report::default() };
        let stand = |pidfd| {
            // No more descriptors of one user may be on their way than the sender may have open
            // (unix(7)), which is the recipe's own limit by now. Those of others arrive soon.
            const ETOOMANYREFS: i32 = 109;
            let attempt = || send(self.slots[slot::REPLY as usize], &standing.encode(), &[pidfd]);
            for _ in 0..2000 {
                match attempt() {
                    Err(ETOOMANYREFS) => pause(1_000_000),
                    other => return other.map(|()| 0),
                }
            }
            attempt().map(|()| 0)
        };
        if self.pidfd >= 0 {
            return stand(self.pidfd);
        }
        let own = call(nr::GETPID, [0; 6])?;
        let pidfd = call(nr::PIDFD_OPEN, [own, 0, 0, 0, 0, 0])? as i32;
        let stood = stand(pidfd);
        // It would count for a limit on open files.
        close(pidfd);
        stood
    }

    /// See [`op::AWAIT_LOOK`]. By read(2), because a filter may refuse what is for sockets.
    pub(super) fn await_look(&self) -> Result<usize> {
        let (mut bytes, reply) = ([0u8; Request::SIZE], self.slots[slot::REPLY as usize] as usize);
        let length = loop {
            match call(nr::READ, [reply, bytes.as_mut_ptr() as usize, bytes.len(), 0, 0, 0]) {
                Err(EINTR) => continue,
                other => break other?,
            }
        };
        match Request::decode(&bytes[..length]) {
            Some(request) if request.kind == Request::PROCEED => Ok(0),
            // A host that lets go is no reason to execute.
            _ => Err(EPROTO),
        }
    }

    /// See [`op::AWAIT_COMMAND`]. The host has looked and will say something, however long it
    /// takes: no limit on the wait before holds for this one.
    pub(super) fn await_command(&mut self, first: usize) -> Result<usize> {
        let message = loop {
            match receive_with_plan(self.slots[slot::REPLY as usize], true) {
                Err(EAGAIN) => continue,
                other => break other?,
            }
        };
        match message {
            Some((request, received, plan)) if request.kind == Request::EXECUTE && !received.truncated => {
                let (new, passed) = Context::sent(plan, received.fds())?;
                self.stale = Some(self.mapping);
                (self.plan, self.base, self.mapping) = (new.plan, new.base, new.mapping);
                self.slots[slot::PLAN as usize] = new.slots[slot::PLAN as usize];
                self.slots[first..first + passed.len()].copy_from_slice(passed);
                Ok(0)
            }
            Some(_) => Err(EPROTO),
            // The host let go.
            None => exit(1),
        }
    }

    pub(super) fn join(&mut self, file: usize) -> Result<usize> {
        self.joined.get_or_insert_with(|| clock(CPU_TIME));
        call(nr::WRITE, [file, c"0".as_ptr() as usize, 1, 0, 0, 0])
    }

    pub(super) fn die_with_init(&self) -> Result<usize> {
        const POLLIN: u64 = 1;
        prctl(PR_SET_PDEATHSIG, SIGKILL)?;
        if poll_one(self.init, POLLIN, 0)? != 0 {
            exit(1);
        }
        Ok(0)
    }
}
