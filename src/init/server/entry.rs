//! What init knows of each sandbox, in memory that it shares with its children.

use crate::network::Network;

/// [`Entry::outer`]: the group could not be removed yet.
pub const BUSY: i32 = -3;

/// One sandbox. The table is memory that children share, because the outer
/// child's clone is what writes `pid1`.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Free when 0, then outer's pid until it has been reaped (-1 afterwards);
    /// [`BUSY`] when only its control group is left.
    pub outer: i32,
    /// 0 until cloned, -1 once reaped.
    pub pid1: i32,
    pub reply: i32,
    /// The host let go of it.
    pub dying: bool,
    /// Both children have been reaped, and the host told.
    pub gone: bool,
    /// Tells it from others that had this place, see [`Server::let_go`].
    pub generation: u32,
    /// Raw wait status of PID 1.
    pub status: u32,
    /// When its wall limit is over, on CLOCK_MONOTONIC: PID 1 writes it when a command has
    /// been executed, and `u64::MAX` when it has seen to it.
    pub deadline: u64,
    /// When it was asked for, and its wall limit.
    pub asked: u64,
    pub limit: u64,
    /// When to look whether PID 1 did; 0 for never.
    pub look: u64,
    /// PID 1 didn't, so we have.
    pub overdue: bool,
    /// Number of its control group, and the hierarchies (a bit each) it's in.
    pub group: u64,
    pub hierarchies: u32,
    /// Its network namespace, if that may be given back, and to whom: one of
    /// [`Request::OWN_NETWORK`](crate::message::Request::OWN_NETWORK) and its like.
    pub network: Network,
    pub network_use: u32,
    /// PID 1 has seen that nothing is left of sockets, when everybody was dead.
    pub no_socket_is_left: bool,
}

pub const UNUSED: Entry = Entry {
    outer: 0,
    pid1: 0,
    reply: -1,
    dying: false,
    gone: false,
    generation: 0,
    status: 0,
    deadline: 0,
    asked: 0,
    limit: 0,
    look: 0,
    overdue: false,
    group: 0,
    hierarchies: 0,
    network: Network::NONE,
    network_use: 0,
    no_socket_is_left: false,
};

/// The sandbox's own entry; set in the outer child, and PID 1 has it from there.
static mut ENTRY: *mut Entry = core::ptr::null_mut();

/// Where the clone of PID 1 is to leave its pid.
pub fn pid1_place() -> *mut i32 {
    // SAFETY: written once, before the child that reads it does anything else;
    // this program has no threads. The entry lies in memory that we share with init.
    unsafe { &raw mut (*ENTRY).pid1 }
}

/// The same as a number, for PID 1; see [`set_entry`].
pub fn entry() -> usize {
    // SAFETY: see `pid1_place`.
    unsafe { ENTRY as usize }
}

/// PID 1 learns of its entry, in the memory that it shares with init: `address` is what
/// the outer child had from [`entry`].
pub fn set_entry(address: usize) {
    // SAFETY: see `pid1_place`.
    unsafe { ENTRY = address as *mut Entry }
}

/// PID 1 says so of its network namespace.
pub fn no_socket_is_left() {
    // SAFETY: as in `pid1_place`; init reads the byte when PID 1 has been reaped.
    unsafe { (&raw mut (*ENTRY).no_socket_is_left).write_volatile(true) }
}

/// PID 1 promises to end the sandbox then; `u64::MAX` takes the promise back.
pub fn promise(deadline: u64) {
    // SAFETY: as above. init reads it whenever it likes: one aligned word, and the place
    // is this sandbox's until PID 1 has been reaped.
    unsafe { (&raw mut (*ENTRY).deadline).write_volatile(deadline) }
}
