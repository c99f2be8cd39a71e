//! Verb two: steps in a process of its own, which returns descriptors.
//!
//! Not in PID 1 itself: a path may lead into a bind of a file system that hangs, and
//! the clocks of all commands are here.

use crate::arch::nr;
use crate::interpret::{Context, Failure, Ran};
use crate::message::Report;
use crate::sys::*;
use crate::wire::{MAX_FDS, Stage, slot};

/// A process at work.
#[derive(Clone, Copy)]
pub struct Helper {
    /// 0 when free.
    pub pid: i32,
    pub reply: i32,
}

pub const NOBODY: Helper = Helper { pid: 0, reply: -1 };

impl Helper {
    /// Starts one.
    pub fn start(context: &mut Context, reply: i32) -> Result<Helper> {
        match fork_child()? {
            0 => work(context, reply),
            pid => Ok(Helper { pid, reply }),
        }
    }

    /// It has been reaped. One that did its work has said so itself.
    pub fn ended(&mut self, status: u32) {
        if status != 0 {
            report_failure(self.reply, Failure::outside(ECANCELED));
        }
        close(self.reply);
        *self = NOBODY;
    }
}

pub fn report_failure(reply: i32, failure: Failure) {
    let Failure { step, errno, detail } = failure;
    report(reply, &Report { kind: Report::FAILED, status: step, errno: errno as u32, detail, ..Report::default() }, &[]);
}

fn work(context: &mut Context, reply: i32) -> ! {
    match context.run(Stage::Inner) {
        Ok(Ran::Done) => {}
        Ok(Ran::Cloned) => exit(1),
        Err(failure) => {
            report_failure(reply, failure);
            exit(0)
        }
    }
    let (mut fds, mut count, mut made) = ([0i32; MAX_FDS], 0, 0u64);
    let keeping = (0..context.plan.len()).filter_map(|i| context.plan.step(i)).filter(|s| slot::is_returned(s.slot));
    for (i, step) in keeping.enumerate().take(MAX_FDS) {
        let fd = context.slots[step.slot as usize];
        if fd >= 0 && call(nr::FCNTL, [fd as usize, F_GETFD, 0, 0, 0, 0]).is_ok() {
            fds[count] = fd;
            count += 1;
            made |= 1 << i;
        }
    }
    report(reply, &Report { kind: Report::DONE, missing: made, ..Report::default() }, &fds[..count]);
    exit(0)
}
