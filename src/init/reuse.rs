//! Whether a sandbox may serve again after a command.
//!
//! Only PID 1 can tell: the workload has no way to it, and it knows when nobody else is left.
//! It may if nothing is different from what it was before the first command: no process, no
//! file ([`census`](crate::census)), nothing of PID 1's own that commands inherit. What is
//! counted up is set back: the next process gets number 2, as the first one did.

use crate::arch::nr;
use crate::census::Census;
use crate::interpret::Context;
use crate::message::Report;
use crate::sys::*;
use crate::wire::{self, slot};

pub struct Reuse {
    /// What [`Report::detail`] says: 0 where nobody asks, and as long as it's
    /// [`Report::UNTOUCHED`] the sandbox may serve.
    pub state: u32,
    /// /proc/sys/kernel/ns_last_pid, or -1.
    numbers: i32,
    renews_queues: bool,
    /// Of all that have been reaped since the command began.
    used: Rusage,
    /// A process of our own, which isn't the command's; 0 for none.
    courier: i32,
    /// There was more than one command at a time, or a helper.
    shared: bool,
}

impl Reuse {
    /// The sandbox stands.
    pub fn begin(context: &Context) -> Reuse {
        let numbers = context.slots[slot::NUMBERS as usize];
        let state = match context.plan.flags() & wire::SERVES_AGAIN {
            0 => 0,
            _ if numbers < 0 => Report::UNSEEN,
            _ => Census::get().seal(),
        };
        let renews_queues = context.plan.flags() & wire::RENEWS_QUEUES != 0;
        let mut reuse = Reuse { state, numbers, renews_queues, used: Rusage::NONE, courier: 0, shared: false };
        if !reuse.renew() {
            reuse.state = Report::UNSEEN;
        }
        reuse
    }

    /// After a command, when the host has been told: the next one's IPC namespace, because the
    /// numbers of semaphores, shared memory and queues count up, and what is left of them
    /// would stay. False if it can't be had.
    pub fn renew(&self) -> bool {
        const CLONE_NEWIPC: usize = 0x0800_0000;
        self.state != Report::UNTOUCHED || !self.renews_queues || call(nr::UNSHARE, [CLONE_NEWIPC, 0, 0, 0, 0, 0]).is_ok()
    }

    /// A command is about to be started; `alone` in the sandbox, or not.
    pub fn starts(&mut self, alone: bool) {
        if self.state != 0 {
            (self.used, self.shared) = (Rusage::NONE, self.shared || !alone);
            self.prepare(alone);
        }
    }

    fn prepare(&mut self, alone: bool) {
        if self.state != Report::UNTOUCHED {
            return;
        }
        let ready = alone && Census::get().is_ripe();
        if !ready || call(nr::PWRITE64, [self.numbers as usize, c"1".as_ptr() as usize, 1, 0, 0, 0]).is_err() {
            self.state = Report::TOUCHED;
        }
    }

    /// Its first process is one that only hands over.
    pub fn has_courier(&mut self, pid: i32) {
        self.courier = pid;
    }

    /// Somebody has been reaped.
    pub fn reaped(&mut self, pid: i32, usage: &Rusage) {
        if pid != self.courier && self.state != 0 {
            self.used.add(usage);
        }
    }

    /// Its command has ended; `alone` if nobody is left, whatever it had started. What all
    /// of them have used, if that's known.
    pub fn ends(&mut self, alone: bool) -> Option<Rusage> {
        let used = (self.state != 0 && !self.shared).then_some(self.used);
        if self.state == Report::UNTOUCHED && !(alone && Census::get().holds()) {
            self.state = Report::TOUCHED;
        }
        used
    }

    /// Something else happens in the sandbox.
    pub fn spoil(&mut self) {
        self.shared = true;
        if self.state == Report::UNTOUCHED {
            self.state = Report::TOUCHED;
        }
    }

    /// The descriptors that PID 1 keeps for it.
    pub fn kept(&self, keep: &mut [i32]) {
        if self.state != 0 {
            keep[0] = self.numbers;
            Census::get().kept(&mut keep[1..]);
        }
    }

    /// The most of them.
    pub const KEPT: usize = 1 + Census::KEPT;
}
