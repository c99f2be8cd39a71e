//! Whether there was a socket in a network namespace: what `net/count.rs` of the crate counts.
//!
//! That counts sockets of IPv4 and IPv6. The other kinds that a workload may have leave
//! little behind. A Unix socket has its name as long as it exists, but may outlive its
//! processes, in a message on its way to itself; a route socket lets those without
//! capabilities ask, and the kernel keeps the way that it has found. So PID 1 looks, when
//! everybody is dead, whether any socket is left, and whether the numbers of IPv6 routes have
//! changed; those of IPv4 are forgotten before the next one has the namespace (`network.rs`).
//!
//! By a socket that leads out of the sandbox a workload could give an open file of its
//! `/proc/net` to somebody who would then see what the next one does. So there's no such socket
//! in its reach, neither among its descriptors ([`leads_out`]) nor in what the recipe binds (the
//! plan's part). One below the host's own `/usr` would have to be a host program's, and those
//! see `/proc/<pid>/net` of every sandbox anyway.

use crate::arch::nr;
use crate::interpret::Context;
use crate::sys::*;
use crate::wire::{LAST_COMMAND, slot};

/// The counter's map; -1 without one.
static mut MAP: i32 = -1;

/// init has a counter from now on.
pub fn count_by(map: i32) {
    // SAFETY: this program has no threads; nobody has a reference.
    unsafe { MAP = map }
}

/// For those who keep it: the counter's map.
pub fn map() -> i32 {
    // SAFETY: as above.
    unsafe { MAP }
}

/// The cookie of a socket's network namespace; 0 if the kernel has none.
pub fn cookie(socket: i32) -> u64 {
    const SOL_SOCKET: usize = 1;
    const SO_NETNS_COOKIE: usize = 71;
    let (mut cookie, mut size) = (0u64, 8u32);
    let at = &raw mut cookie as usize;
    let asked = call(nr::GETSOCKOPT, [socket as usize, SOL_SOCKET, SO_NETNS_COOKIE, at, &raw mut size as usize, 0]);
    if asked.is_ok() { cookie } else { 0 }
}

/// How many there have been since [`begin`]; `None` if nobody counts.
pub fn count(cookie: u64) -> Option<u64> {
    let mut number = 0;
    element(LOOKUP, cookie, &raw mut number).ok()?;
    Some(number)
}

/// Counts them from now on, from zero.
pub fn begin(cookie: u64) {
    if cookie != 0 {
        let mut zero = 0;
        let _ = element(UPDATE, cookie, &raw mut zero);
    }
}

/// Counts them no longer.
pub fn end(cookie: u64) {
    if cookie != 0 {
        // There's no value to it.
        let _ = element(DELETE, cookie, core::ptr::null_mut());
    }
}

/// BPF_MAP_LOOKUP_ELEM and its like of bpf(2).
const LOOKUP: usize = 1;
const UPDATE: usize = 2;
const DELETE: usize = 3;

fn element(command: usize, cookie: u64, number: *mut u64) -> Result<usize> {
    if map() < 0 {
        return Err(EINVAL);
    }
    // The map; addresses of key and value; flags.
    let attributes = [map() as u64, &raw const cookie as u64, number as u64, 0];
    call(nr::BPF, [command, attributes.as_ptr() as usize, size_of_val(&attributes), 0, 0, 0])
}

/// The command's process, where it will be: the one that is counted, if they are counted
/// there.
pub fn make_one() -> Result<usize> {
    const AF_INET: usize = 2;
    const SOCK_DGRAM: usize = 2;
    close(call(nr::SOCKET, [AF_INET, SOCK_DGRAM | O_CLOEXEC, 0, 0, 0, 0])? as i32);
    Ok(0)
}

/// Whether a descriptor is a socket, or leads to some: a directory.
pub fn leads_out(fd: i32) -> bool {
    const S_IFMT: u32 = 0o170_000;
    const S_IFSOCK: u32 = 0o140_000;
    const S_IFDIR: u32 = 0o040_000;
    stat(fd, c"".as_ptr().cast()).is_ok_and(|(mode, ..)| [S_IFSOCK, S_IFDIR].contains(&(mode & S_IFMT)))
}

/// What PID 1 looks at.
pub struct Traces {
    /// `/proc/net/sockstat`, and `rt6_stats` where there's IPv6; -1 for none.
    files: [i32; 2],
    /// What that said of routes when nobody had done anything.
    routes: [u8; LINE],
}

/// `rt6_stats` is seven numbers.
const LINE: usize = 64;

impl Traces {
    pub fn begin(context: &Context) -> Traces {
        // Those of live sandboxes serve once.
        let serves_again = context.plan.flags() & LAST_COMMAND != 0;
        let files = [slot::SOCKETS, slot::ROUTES].map(|slot| if serves_again { context.slots[slot as usize] } else { -1 });
        Traces { files, routes: first_bytes(files[1]) }
    }

    pub fn kept(&self) -> [i32; 2] {
        self.files
    }

    /// When everybody else is dead.
    pub fn none_is_left(&self) -> bool {
        let [sockets, routes] = self.files;
        sockets >= 0 && number_after(sockets, b"used ") == Some(0) && first_bytes(routes) == self.routes
    }
}

fn first_bytes(file: i32) -> [u8; LINE] {
    let mut bytes = [0; LINE];
    if file >= 0 && call(nr::PREAD64, [file as usize, bytes.as_mut_ptr() as usize, LINE, 0, 0, 0]).is_err() {
        // Unlike any other.
        bytes[0] = b'?';
    }
    bytes
}
