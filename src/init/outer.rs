//! The outer child of one sandbox: opens what is the host's, clones PID 1, hands over, makes
//! the next sandbox's PID 1 (`ahead.rs`), and ends. If it hangs on a caller's path, only its
//! sandbox does.
//!
//! To fork it and get it going takes a tenth of a fresh run, so when a sandbox has ended
//! init forks a *spare* one, which waits for its job. Each does one.

use crate::ahead::Next;
use crate::arch::nr;
use crate::helper::report_failure;
use crate::interpret::{Context, Failure, Ran};
use crate::server::Common;
use crate::sys::*;
use crate::wire::{MAX_FDS, Stage, slot};

/// What it's to do, beside the descriptors of the request: the reply socket, the plan and
/// the plan's.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Job {
    /// Where init's entry of the sandbox is, in memory that we share with init.
    pub entry: usize,
    /// A PID 1 that was made ahead, or 0.
    pub waiting: i32,
    /// How many descriptors are the request's.
    pub own: u32,
    /// More descriptors, or -1: a network namespace, what tells the maker of those, the
    /// channel of the PID 1 that waits; for the next PID 1 its channel and network namespace.
    pub extra: [i32; EXTRA],
    /// So that no byte is undefined.
    pub unused: u32,
}

const EXTRA: usize = 5;

impl Job {
    const NONE: Job = Job { entry: 0, waiting: 0, own: 0, extra: [-1; EXTRA], unused: 0 };
}

/// One that waits, as init knows it.
pub struct Spare {
    /// 0 for none.
    pid: i32,
    /// Our end of its channel; -1 for one that has been given up.
    channel: i32,
    /// That of the one before, which waits to be closed at a better time.
    spent: i32,
}

impl Spare {
    pub const NONE: Spare = Spare { pid: 0, channel: -1, spent: -1 };

    pub fn is_some(&self) -> bool {
        self.pid > 0
    }

    /// Forks one, unless there is one. Failing to is harmless: a sandbox can have its outer
    /// child forked when it's asked for.
    pub fn make(&mut self, common: &Common) {
        close(core::mem::replace(&mut self.spent, -1));
        if self.is_some() {
            return;
        }
        let Ok([ours, theirs]) = socket_pair() else { return };
        let forked = fork_child();
        if forked == Ok(0) {
            stand_by(common, theirs)
        }
        close(theirs);
        match forked {
            Ok(pid) => *self = Spare { pid, channel: ours, spent: -1 },
            Err(_) => close(ours),
        }
    }

    /// Gives it the job, if there is one that can take it; its pid.
    pub fn give(&mut self, job: &Job, fds: &[i32]) -> Option<i32> {
        let mut all = [-1; MAX_FDS];
        let extra = job.extra.iter().filter(|fd| **fd >= 0);
        let count = fds.len() + extra.clone().count();
        if self.channel < 0 || count > MAX_FDS {
            return None;
        }
        for (place, fd) in all.iter_mut().zip(fds.iter().chain(extra)) {
            *place = *fd;
        }
        // SAFETY: a plain structure without padding, which outlives the slice.
        let bytes = unsafe { core::slice::from_raw_parts((&raw const *job).cast(), size_of::<Job>()) };
        // If somebody has killed it it's reaped later.
        send(self.channel, bytes, &all[..count]).ok()?;
        let Spare { pid, channel, .. } = *self;
        *self = Spare { spent: channel, ..Spare::NONE };
        Some(pid)
    }

    /// Whether this was it, which has died.
    pub fn ended(&mut self, pid: i32) -> bool {
        let was = pid == self.pid;
        if was {
            close(self.channel);
            close(self.spent);
            *self = Spare::NONE;
        }
        was
    }

    /// Nobody is given it any more, although it takes a while to die.
    pub fn kill(&mut self) {
        close(core::mem::replace(&mut self.channel, -1));
        close(core::mem::replace(&mut self.spent, -1));
        if self.is_some() {
            let _ = kill(self.pid, SIGKILL);
        }
    }
}

/// A spare one, until it has a job.
fn stand_by(common: &Common, channel: i32) -> ! {
    let _ = prctl(PR_SET_NAME, c"cofferdam-outer".as_ptr() as usize);
    end_with_parent(common.init);
    keep_only(common, &[channel]);
    let mut job = Job::NONE;
    // SAFETY: any bytes are a job, and it outlives the slice.
    let bytes = unsafe { core::slice::from_raw_parts_mut((&raw mut job).cast(), size_of::<Job>()) };
    let received = match receive(channel, bytes, true) {
        Ok(received) if received.length == size_of::<Job>() && !received.truncated => received,
        // init is gone.
        Ok(received) if received.length == 0 => exit(0),
        _ => exit(1),
    };
    close(channel);
    let Some((own, extra)) = received.fds().split_at_checked(job.own as usize) else { exit(1) };
    for (place, fd) in job.extra.iter_mut().filter(|fd| **fd >= 0).zip(extra) {
        *place = *fd;
    }
    let _ = prctl(PR_SET_NAME, c"cofferdam-init".as_ptr() as usize);
    work(common, &job, own)
}

/// One that was forked for its job, with all descriptors of init.
pub fn outer(common: &Common, job: &Job, fds: &[i32]) -> ! {
    end_with_parent(common.init);
    let mut own = [-1; MAX_FDS + EXTRA];
    for (place, fd) in own.iter_mut().zip(fds.iter().chain(&job.extra)) {
        *place = *fd;
    }
    keep_only(common, &own);
    work(common, job, fds)
}

/// Closes every descriptor but ours and init's fixed ones: a copy of another sandbox's
/// reply socket would hide its end from the host.
fn keep_only(common: &Common, ours: &[i32]) {
    let mut keep = [-1i32; MAX_FDS + EXTRA + slot::KEPT as usize];
    for (place, fd) in keep.iter_mut().zip(ours.iter().chain(&common.slots)) {
        *place = *fd;
    }
    close_all_but(&mut keep);
}

fn work(common: &Common, job: &Job, fds: &[i32]) -> ! {
    let [reply, plan, passed @ ..] = fds else { exit(1) };
    let fail = |failure: Failure| -> ! {
        report_failure(*reply, failure);
        exit(1)
    };
    crate::server::set_entry(job.entry);
    let init = match call(nr::PIDFD_OPEN, [common.init as usize, 0, 0, 0, 0, 0]) {
        Ok(fd) => fd as i32,
        Err(errno) => fail(Failure::outside(errno)),
    };
    let mut context = match Context::map(*plan) {
        Ok(context) => context,
        Err(errno) => fail(Failure::outside(errno)),
    };
    let [network, maker, channel, next_channel, next_network] = job.extra;
    context.slots[..common.slots.len()].copy_from_slice(&common.slots);
    context.slots[slot::NETWORK as usize] = network;
    context.slots[slot::MAKER as usize] = maker;
    context.slots[slot::REPLY as usize] = *reply;
    context.slots[slot::PLAN as usize] = *plan;
    context.slots[slot::PASSED as usize..][..passed.len()].copy_from_slice(passed);
    context.init = init;
    if job.waiting > 0 {
        (context.waiting, context.channel[0]) = (job.waiting, channel);
        // It answers while we open what is the host's.
        let _ = send(channel, &[0], &[]);
    } else {
        // Here, and not when it's needed: it would be among the sockets of its network then.
        match socket_pair() {
            Ok(channel) => context.channel = channel,
            Err(errno) => fail(Failure::outside(errno)),
        }
    }
    match context.run(Stage::Outer) {
        Ok(Ran::Cloned) => {
            // What is for the next one would hide its end as long as this one is set up.
            close(next_channel);
            close(next_network);
            crate::inside::main(context)
        }
        Ok(Ran::Done) => {
            if next_channel >= 0 {
                let next = Next { channel: next_channel, network: next_network, place: common.place };
                crate::ahead::make(&mut context, next);
            }
            exit(0)
        }
        // What has been done to a dead process failed for that, and init knows of it.
        Err(_) if context.has_lost_pid1() => exit(1),
        Err(failure) => fail(failure),
    }
}
