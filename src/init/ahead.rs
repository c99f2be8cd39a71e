//! The first process of the next sandbox, made ahead.
//!
//! What PID 1 does before it needs anything of its sandbox (its namespaces, procfs with
//! masks, a root that hides init's) is a quarter of a fresh run, and the same for most
//! recipes: [`Stage::Ahead`]. So the outer child, when it has handed over, makes the next
//! sandbox's PID 1 as well, at a time when its processor would be idle. That one does its
//! first stage and waits for the outer child of a sandbox with the same stage
//! ([`Settings::ahead`](crate::wire::Settings::ahead) of its plan). Nothing else runs in it
//! meanwhile, it's used once, and there's one at most.

use crate::arch::nr;
use crate::interpret::Context;
use crate::network::Network;
use crate::sys::*;
use crate::wire::{Stage, op, slot};

/// How many sandboxes of other kinds one outlasts.
const PATIENCE: u32 = 8;

/// init's side.
pub struct Ahead {
    place: *mut Place,
    /// 0 for one that has been given up.
    kind: u64,
    /// Our end of its channel.
    channel: i32,
    /// Its network namespace, if that may be given back.
    network: Network,
    /// Whose outer child is making it, by index.
    maker: Option<usize>,
    refused: u32,
}

/// One that waits.
pub struct Waiting {
    pub pid: i32,
    pub channel: i32,
    pub network: Network,
}

impl Ahead {
    /// `place` is zeroed memory shared with our children, for as long as we live.
    pub fn new(place: *mut Place) -> Ahead {
        Ahead { place, kind: 0, channel: -1, network: Network::NONE, maker: None, refused: 0 }
    }

    /// The memory that [`new`](Self::new) was given.
    pub fn place(&self) -> *mut Place {
        self.place
    }

    fn pid(&self) -> i32 {
        // SAFETY: see `new`; one aligned word.
        unsafe { (&raw const (*self.place).pid).read_volatile() }
    }

    fn ready(&self) -> bool {
        // SAFETY: as above.
        unsafe { (&raw const (*self.place).ready).read_volatile() != 0 }
    }

    /// It's there, or may come to be.
    pub fn is_some(&self) -> bool {
        self.maker.is_some() || self.pid() != 0
    }

    pub fn take(&mut self, kind: u64) -> Option<Waiting> {
        let pid = self.pid();
        if pid == 0 || !self.ready() {
            return None;
        }
        if self.kind != kind || kind == 0 {
            self.refused += 1;
            if self.refused > PATIENCE {
                self.kill();
            }
            return None;
        }
        let waiting = Waiting { pid, channel: self.channel, network: self.network };
        self.forget();
        Some(waiting)
    }

    fn forget(&mut self) {
        // SAFETY: see `new`; nobody makes another one now.
        unsafe { self.place.write_volatile(Place { pid: 0, ready: 0 }) };
        *self = Ahead::new(self.place);
    }

    /// The outer child of this sandbox is to make one, if that's wanted; its end of the
    /// channel.
    pub fn begin(&mut self, maker: usize, kind: u64) -> Option<i32> {
        if kind == 0 || self.is_some() {
            return None;
        }
        let [ours, theirs] = socket_pair().ok()?;
        *self = Ahead { kind, channel: ours, maker: Some(maker), ..Ahead::new(self.place) };
        Some(theirs)
    }

    pub fn keep_network(&mut self, network: Network) {
        self.network = network;
    }

    /// An outer child has ended, or never came to be.
    pub fn outer_ended(&mut self, index: usize) {
        if self.maker == Some(index) {
            self.maker = None;
            if self.pid() == 0 {
                self.close();
            }
        }
    }

    /// Whether this was it, which has died.
    pub fn ended(&mut self, pid: i32) -> bool {
        let was = pid == self.pid();
        if was {
            self.close();
        }
        was
    }

    fn close(&mut self) {
        close(self.channel);
        self.network.close();
        self.forget();
    }

    /// Nobody is given it any more, although it takes a while to die.
    pub fn kill(&mut self) {
        self.kind = 0;
        let pid = self.pid();
        if pid > 0 {
            let _ = kill(pid, SIGKILL);
        }
    }
}

/// In memory that outer children and the one that waits share with init.
#[repr(C)]
pub struct Place {
    /// 0 for none: the clone writes it.
    pid: i32,
    /// It has done its stage. If that fails the next sandbox tells why.
    ready: i32,
}

/// What an outer child is told to make.
#[derive(Clone, Copy)]
pub struct Next {
    /// The other end of the channel; -1 for nothing.
    pub channel: i32,
    pub network: i32,
    pub place: *mut Place,
}

/// The outer child, when it's done: makes it. Returns in the outer child only.
pub fn make(context: &mut Context, next: Next) {
    const CLONE_NEWNS: usize = 0x0002_0000;
    const CLONE_PARENT: u64 = 0x8000;
    let steps = || (0..context.plan.len()).filter_map(|i| context.plan.step(i));
    let Some(flags) = steps().find(|step| step.op == op::CLONE).map(|step| step.args[0]) else { return };
    // This one's own mounts are no business of the next one's.
    if call(nr::SETNS, [context.slots[slot::INIT_MOUNTS as usize] as usize, CLONE_NEWNS, 0, 0, 0, 0]).is_err() {
        return;
    }
    if steps().any(|step| step.op == op::NETWORK) && crate::network::enter(next.network).is_err() {
        return;
    }
    // SAFETY: see `Ahead::new`.
    let pid = unsafe { &raw mut (*next.place).pid };
    if let Ok(0) = fork(flags | CLONE_PARENT, 0, pid) {
        stand_by(context, next)
    }
}

/// PID 1 to be: its first stage, and then the wait for its sandbox. If anything fails it's
/// as if it had never been, and the next sandbox makes its own and tells what failed.
fn stand_by(context: &mut Context, next: Next) -> ! {
    let channel = next.channel;
    let _ = prctl(PR_SET_NAME, c"cofferdam-next".as_ptr() as usize);
    close_all_but(&mut [channel, context.init]);
    context.forget_descriptors(channel);
    if context.run(Stage::Ahead).is_err() {
        exit(1)
    }
    // SAFETY: see `Ahead::new`; one aligned word, which nobody else writes meanwhile.
    unsafe { (&raw mut (*next.place).ready).write_volatile(1) };
    let context = context.adopted();
    let _ = prctl(PR_SET_NAME, c"cofferdam-init".as_ptr() as usize);
    crate::inside::go_on(context)
}
