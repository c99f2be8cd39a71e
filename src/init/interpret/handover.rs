//! The outer child and PID 1: how the one makes the other, or finds it waiting, and hands over
//! what it has opened.

use super::{Context, Failure, push, text};
use crate::arch::nr;
use crate::sys::*;
use crate::wire::{MAX_FDS, SLOTS, slot};

/// Bytes before the slot names in a message from the outer child to PID 1: whether
/// another message follows, the layers that the outer stage left out, and where init's
/// entry of the sandbox is.
const HANDED: usize = 1 + 2 * size_of::<u64>();

impl Context {
    /// Outer: whether there's a PID 1 that was made ahead, and answers. One that somebody
    /// has killed is no reason to fail.
    pub(super) fn one_waits(&mut self) -> bool {
        if self.waiting > 0 && !self.answered {
            self.answered = receive(self.channel[0], &mut [0], true).is_ok_and(|received| received.length == 1);
            if !self.answered {
                close(self.channel[0]);
                (self.waiting, self.channel) = (0, socket_pair().unwrap_or([-1; 2]));
            }
        }
        self.waiting > 0
    }

    pub(super) fn clone_pid1(&mut self, flags: u64) -> Result<usize> {
        const CLONE_PARENT: u64 = 0x8000;
        if self.one_waits() {
            self.pid1 = self.waiting;
            return Ok(self.pid1 as usize);
        }
        let tid = crate::server::pid1_place();
        let pid = fork(flags | CLONE_PARENT, 0, tid)?;
        // PID 1 has inherited what was opened before.
        self.made = [false; SLOTS];
        if pid == 0 {
            close(self.channel[0]);
            self.channel[0] = -1;
            for slot in &mut self.slots[slot::TEMPORARY as usize..] {
                if *slot >= 0 {
                    close(*slot);
                    *slot = -1;
                }
            }
            return Ok(0);
        }
        close(self.channel[1]);
        self.pid1 = pid;
        Ok(pid as usize)
    }

    /// /proc/<PID 1>/<name>
    pub(super) fn proc_open(&self, name: *const u8, flags: usize) -> Result<usize> {
        let mut path = [0u8; 64];
        let mut at = push(&mut path, 0, b"/proc/")?;
        let mut digits = [0u8; 10];
        let mut i = digits.len();
        let mut pid = self.pid1 as u32;
        while pid > 0 {
            i -= 1;
            digits[i] = b'0' + (pid % 10) as u8;
            pid /= 10;
        }
        at = push(&mut path, at, &digits[i..])?;
        at = push(&mut path, at, b"/")?;
        push(&mut path, at, text(name))?;
        call(nr::OPENAT, [AT_FDCWD as usize, path.as_ptr() as usize, flags | O_CLOEXEC, 0, 0, 0])
    }

    pub(super) fn hand_over(&mut self) -> Result<usize> {
        let (mut names, mut fds, mut count) = ([0u8; HANDED + MAX_FDS], [0i32; MAX_FDS], 0);
        names[1..9].copy_from_slice(&self.missing.to_le_bytes());
        names[9..HANDED].copy_from_slice(&(crate::server::entry() as u64).to_le_bytes());
        // One that waits has inherited nothing of this.
        let inherited = |slot: usize| {
            [slot::REPLY, slot::PLAN, slot::MAKER].contains(&(slot as u8)) || (slot::PASSED..slot::LOCAL).contains(&(slot as u8))
        };
        for slot in 0..SLOTS {
            if self.made[slot] || self.waiting > 0 && self.slots[slot] >= 0 && inherited(slot) {
                if count == MAX_FDS {
                    names[0] = 1;
                    send(self.channel[0], &names, &fds)?;
                    count = 0;
                }
                names[HANDED + count] = slot as u8;
                fds[count] = self.slots[slot];
                count += 1;
            }
        }
        names[0] = 0;
        send(self.channel[0], &names[..HANDED + count], &fds[..count])?;
        close(core::mem::replace(&mut self.channel[0], -1));
        Ok(0)
    }

    /// Outer: whether PID 1 is dead, or dying: it has no memory any more before it has no
    /// descriptors, and no id map can be written then. Only asked when something failed.
    pub fn has_lost_pid1(&self) -> bool {
        const POLLHUP: u64 = 0x10;
        let hung_up = || poll_one(self.channel[0], 0, 100_000_000).is_ok_and(|events| events & POLLHUP != 0);
        self.pid1 > 0 && self.channel[0] >= 0 && hung_up()
    }

    /// From a PID 1 that was made ahead, when it has been told of its sandbox.
    pub fn adopted(&mut self) -> Context {
        self.drop_plan();
        if self.receive().is_err() {
            exit(1);
        }
        match Context::map(self.slots[slot::PLAN as usize]) {
            Ok(new) => Context { slots: self.slots, channel: self.channel, init: self.init, missing: self.missing, received: true, ..new },
            Err(errno) => {
                crate::helper::report_failure(self.slots[slot::REPLY as usize], Failure::outside(errno));
                exit(1)
            }
        }
    }

    /// Somebody else's have been closed; what is left is our end of the channel.
    pub fn forget_descriptors(&mut self, channel: i32) {
        (self.slots, self.made, self.channel) = ([-1; SLOTS], [false; SLOTS], [-1, channel]);
        (self.missing, self.waiting) = (0, 0);
    }

    pub(super) fn receive(&mut self) -> Result<usize> {
        if self.received {
            return Ok(0);
        }
        loop {
            let mut names = [0u8; HANDED + MAX_FDS];
            let received = receive(self.channel[1], &mut names, true)?;
            if received.length == 1 {
                // The question whether we live: see `one_waits`.
                send(self.channel[1], &[0], &[])?;
                continue;
            }
            if received.length == 0 {
                // The outer child failed and has said why.
                exit(1);
            }
            if received.truncated || received.count + HANDED != received.length {
                return Err(EMFILE);
            }
            let word = |at: usize| names[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.missing |= word(1);
            crate::server::set_entry(word(9) as usize);
            for (slot, fd) in names[HANDED..].iter().zip(received.fds()) {
                self.slots[*slot as usize] = *fd;
            }
            if names[0] == 0 {
                close(self.channel[1]);
                self.channel[1] = -1;
                return Ok(0);
            }
        }
    }
}
