//! Performs the steps of a plan.
//!
//! A step is a system call with its arguments as data, or one of the few
//! operations that need a result in the middle. The first failure ends a stage;
//! it's reported as (step, errno), and the host knows what that step was for.

mod handover;
mod paths;
mod steps;
mod waits;

use crate::arch::nr;
use crate::sys::*;
use crate::wire::{ANY, AT_FDCWD as WIRE_CWD, Kind, NO_LAYER, NO_SLOT, Plan, SLOTS, Stage, Step, op, slot};
pub use paths::copy_all;
use paths::like;
use steps::{allow, drop_bounding, execute, id_map, raise_files, self_open, user_xattr};

/// A plan in memory with its descriptors.
pub struct Context {
    pub plan: Plan<'static>,
    /// Address of the blob area.
    base: usize,
    mapping: Bytes,
    /// That of the plan before, where another took its place and nobody was to wait for
    /// its end.
    stale: Option<Bytes>,
    pub slots: [i32; SLOTS],
    /// Slots that outer steps filled, to be handed over.
    made: [bool; SLOTS],
    /// Host's pid of the sandbox's PID 1, once cloned.
    pub pid1: i32,
    /// Outer's and PID 1's ends of the channel between them.
    pub channel: [i32; 2],
    /// A pidfd of init.
    pub init: i32,
    /// Outer: a PID 1 that was made ahead, at the other end of the channel; or 0. See
    /// ahead.rs.
    pub waiting: i32,
    answered: bool,
    /// PID 1: what the outer child hands over has come already.
    received: bool,
    /// Layers left out by tolerated failures.
    pub missing: u64,
    /// Our own CPU clock when the first control group was joined, and at exec.
    joined: Option<u64>,
    pub executed: u64,
    /// CLOCK_MONOTONIC right before exec: taken afterwards, by PID 1, it would be late
    /// on a busy machine.
    pub began: u64,
    /// Where the command's process tells PID 1 how far it got, or -1.
    pub announce: i32,
    /// The pidfd of a command that a courier has cloned, in the table that they share.
    pub pidfd: i32,
}

/// What a command's process tells PID 1, in a pipe that exec closes: right before exec,
/// and again if that, or anything before it, fails.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Progress {
    /// Its process, which a courier may have cloned.
    pub pid: i32,
    pub failure: Failure,
    /// See [`Context::began`]; 0 if it never came to exec.
    pub began: u64,
    pub executed: u64,
    pub charged: u64,
    pub missing: u64,
}

impl Progress {
    pub const NONE: Progress = Progress {
        pid: 0,
        failure: Failure { step: Failure::NO_STEP, errno: 0, detail: 0 },
        began: 0,
        executed: 0,
        charged: 0,
        missing: 0,
    };
}

/// A step that failed.
#[derive(Clone, Copy)]
pub struct Failure {
    pub step: u32,
    pub errno: i32,
    pub detail: u32,
}

impl Failure {
    /// [`Failure::step`] when no step of the plan is to blame.
    pub const NO_STEP: u32 = u32::MAX;

    pub fn outside(errno: i32) -> Failure {
        Failure { step: Failure::NO_STEP, errno, detail: 0 }
    }
}

/// What [`Context::run`] came to.
pub enum Ran {
    /// All steps of the stage are done.
    Done,
    /// We're PID 1 of the sandbox now.
    Cloned,
}

impl Context {
    /// Maps and checks the plan in `fd`.
    pub fn map(fd: i32) -> Result<Context> {
        let mut context = Context::of(map_file(fd)?)?;
        context.slots[slot::PLAN as usize] = fd;
        Ok(context)
    }

    /// Checks the plan of a request: what came in its message or, if that's nothing, the
    /// first of the descriptors. The others are the plan's.
    pub fn sent(plan: Bytes, fds: &[i32]) -> Result<(Context, &[i32])> {
        if !plan.is_empty() {
            return Ok((Context::of(plan)?, fds));
        }
        let [plan, passed @ ..] = fds else { return Err(EPROTO) };
        Ok((Context::map(*plan)?, passed))
    }

    /// Checks a plan that is ours, and lets go of it if it's none.
    fn of(mapping: Bytes) -> Result<Context> {
        // SAFETY: nobody else changes it, and it's unmapped only in `drop_plan`.
        // Relocation below writes to it before any other use.
        let bytes = unsafe { core::slice::from_raw_parts(mapping.at, mapping.size) };
        let Some(plan) = Plan::parse(bytes) else {
            unmap(mapping);
            return Err(EPROTO);
        };
        let base = mapping.at as usize + plan.blob_start();
        for i in 0..plan.relocations() {
            let place = (base + plan.relocation(i) as usize) as *mut u64;
            // SAFETY: `parse` checked that the place lies in the blob area and is
            // aligned; no reference to the blob area's bytes is read as a plan.
            unsafe { place.write(base as u64 + place.read()) };
        }
        Ok(Context {
            plan,
            base,
            mapping,
            stale: None,
            slots: [-1; SLOTS],
            made: [false; SLOTS],
            pid1: 0,
            channel: [-1; 2],
            init: -1,
            waiting: 0,
            answered: false,
            received: false,
            missing: 0,
            joined: None,
            executed: 0,
            began: 0,
            announce: -1,
            pidfd: -1,
        })
    }

    /// Gives the mapping back; nothing of the plan may be used afterwards.
    pub fn drop_plan(&mut self) {
        for mapping in self.stale.take().into_iter().chain([self.mapping]) {
            unmap(mapping);
        }
    }

    /// Closes the plan and what came with it.
    pub fn close(&mut self) {
        for slot in &mut self.slots {
            if *slot >= 0 {
                close(core::mem::replace(slot, -1));
            }
        }
    }

    /// Performs all steps of `stage`.
    pub fn run(&mut self, stage: Stage) -> core::result::Result<Ran, Failure> {
        for i in 0..self.plan.len() {
            if self.plan.stage(i) != Some(stage) {
                continue;
            }
            let Some(step) = self.plan.step(i) else { break };
            match self.perform(&step) {
                Ok(0) if step.op == op::CLONE => return Ok(Ran::Cloned),
                // From here on it's another plan.
                Ok(_) if step.op == op::AWAIT_COMMAND => return self.run(stage),
                Ok(result) => self.keep(&step, result),
                Err((errno, _)) if step.tolerate == ANY || (errno != 0 && errno == i32::from(step.tolerate)) => {
                    if step.layer != NO_LAYER {
                        self.missing |= 1u64.checked_shl(u32::from(step.layer)).unwrap_or(0);
                    }
                }
                Err((errno, detail)) => return Err(Failure { step: i as u32, errno, detail }),
            }
        }
        Ok(Ran::Done)
    }

    fn keep(&mut self, step: &Step, result: usize) {
        if step.slot != NO_SLOT {
            self.slots[step.slot as usize] = result as i32;
            self.made[step.slot as usize] = step.stage == Stage::Outer && step.slot < slot::TEMPORARY;
        }
    }

    fn argument(&self, step: &Step, i: usize) -> usize {
        match step.kinds[i] {
            Kind::Value => step.args[i] as usize,
            Kind::Blob => self.base + step.args[i] as usize,
            Kind::Slot => self.slots[step.args[i] as usize] as usize,
        }
    }

    fn perform(&mut self, step: &Step) -> core::result::Result<usize, (i32, u32)> {
        let a = core::array::from_fn(|i| self.argument(step, i));
        let plain = |result: Result<usize>| result.map_err(|errno| (errno, 0));
        match step.op {
            op::CLONE => plain(self.clone_pid1(a[0] as u64)),
            op::PROC_OPEN => plain(self.proc_open(a[0] as *const u8, a[1])),
            op::HAND_OVER => plain(self.hand_over()),
            op::RECEIVE => plain(self.receive()),
            op::MAKE_PATH => plain(self.make_path(step, a)),
            op::FILE => plain(self.file(a, |fd| self.contents(fd, a[1], a[2]))),
            op::COPY => plain(self.file(a, |fd| copy_all(fd, a[1]))),
            op::LIKE => plain(like(a[0] as i32, a[1] as i32, a[2] == 1)),
            op::DROP_BOUNDING => plain(drop_bounding(a[0] as u64)),
            op::DIE_WITH_INIT => plain(self.die_with_init()),
            op::FDS => plain(self.arrange(a[0] as *const u32, a[1], a[2] == 1)),
            op::JOIN => plain(self.join(a[0])),
            op::AWAIT_GROUP => plain(self.await_group(a[0], a[1])),
            op::EXEC => {
                self.executed = clock(CPU_TIME);
                self.began = clock(1);
                self.tell(Progress::NONE.failure);
                Err(execute(a))
            }
            op::SELF_OPEN => plain(self_open(a[0] as *const u8)),
            op::RAISE_FILES => plain(raise_files()),
            op::STACK => plain(self.stack(a)),
            op::USER_XATTR => plain(user_xattr(a[0])),
            op::ALLOW => plain(allow(a[0] as i32, a[1], a[2] as *const u8, a[3] as u64)),
            op::STAND => plain(self.stand()),
            op::AWAIT_LOOK => plain(self.await_look()),
            op::AWAIT_COMMAND => plain(self.await_command(a[0])),
            op::ID_MAP => plain(id_map(a[0], a[1])),
            // One that waits has its own.
            op::NETWORK if self.one_waits() => Ok(0),
            op::NETWORK => plain(crate::network::enter(self.slots[slot::NETWORK as usize])),
            op::SHOW => plain(self.show(a[0] as i32, a[1] as u32)),
            op::TERMINAL => plain(self.pass_terminal(a[0] as i32)),
            op::AWAIT_MAPS => plain(crate::server::await_maps()),
            // Without it the network namespace is used once.
            op::MAKE_SOCKET => Ok(crate::sockets::make_one().unwrap_or(0)),
            op::MAKE_ROOM => Ok(self.make_room()),
            op::CENSUS => plain(crate::census::take(a[0] as i32, a[1] == 1)),
            number => plain(call(number as usize, a)),
        }
    }

    /// The root as overlayfs stacks it, or as a copy.
    fn stack(&self, a: [usize; 6]) -> Result<usize> {
        // OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
        const CLONE: usize = 1 | O_CLOEXEC;
        const AT_EMPTY_PATH: usize = 0x1000;
        if self.missing & a[1] as u64 == 0 {
            return call(nr::OPEN_TREE, [WIRE_CWD as usize, a[0], CLONE, 0, 0, 0]);
        }
        crate::layers::copy(a[3], a[2] as i32)?;
        call(nr::OPEN_TREE, [a[2], c"".as_ptr() as usize, CLONE | AT_EMPTY_PATH, 0, 0, 0])
    }
}

/// A NUL-terminated string of the blob area.
fn text(at: *const u8) -> &'static [u8] {
    let mut length = 0;
    // SAFETY: blob offsets lie in the mapping, whose last byte is NUL.
    while unsafe { at.add(length).read() } != 0 {
        length += 1;
    }
    // SAFETY: as above.
    unsafe { core::slice::from_raw_parts(at, length) }
}

fn push(to: &mut [u8; 64], at: usize, bytes: &[u8]) -> Result<usize> {
    // One byte stays for the NUL.
    let Some(room) = to[..63].get_mut(at..at + bytes.len()) else { return Err(EINVAL) };
    room.copy_from_slice(bytes);
    Ok(at + bytes.len())
}
