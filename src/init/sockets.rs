//! Whether there was a socket in a network namespace: what `net/count.rs` of the crate counts.
//!
//! That counts sockets of IPv4 and IPv6. The other kinds that a workload may have leave
//! nothing behind: a Unix socket has its name as long as it exists, and a route socket lets
//! those without capabilities ask. But one may outlive its processes, in a message on its way to
//! itself; so PID 1 looks, when everybody is dead, whether any socket is left. And by one that
//! leads out of the sandbox a workload could give an open file of its `/proc/net` to somebody
//! who would then see what the next one does: so there's no such socket in its reach, neither
//! among its descriptors ([`is_one`]) nor in a directory of the host's (the plan's part).

use crate::arch::nr;
use crate::sys::*;

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
    element(1, cookie, &mut number).ok()?;
    Some(number)
}

/// Counts them from now on, from zero.
pub fn begin(cookie: u64) {
    if cookie != 0 {
        let _ = element(2, cookie, &mut 0);
    }
}

/// Counts them no longer.
pub fn end(cookie: u64) {
    if cookie != 0 {
        let _ = element(3, cookie, &mut 0);
    }
}

/// BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM and BPF_MAP_DELETE_ELEM.
fn element(command: usize, cookie: u64, number: &mut u64) -> Result<usize> {
    if map() < 0 {
        return Err(EINVAL);
    }
    // The map; addresses of key and value; flags.
    let attributes = [map() as u64, &raw const cookie as u64, &raw mut *number as u64, 0];
    // Deleting knows no value, and wants zeros there.
    let attributes = if command == 3 { [attributes[0], attributes[1], 0, 0] } else { attributes };
    call(nr::BPF, [command, attributes.as_ptr() as usize, size_of_val(&attributes), 0, 0, 0])
}

/// The command's process, where it will be: the one that is counted, if they are counted
/// there. Without one the namespace is used once, so it may fail.
pub fn make_one() {
    const AF_INET: usize = 2;
    const SOCK_DGRAM: usize = 2;
    if let Ok(socket) = call(nr::SOCKET, [AF_INET, SOCK_DGRAM | O_CLOEXEC, 0, 0, 0, 0]) {
        close(socket as i32);
    }
}

/// Whether a descriptor is a socket.
pub fn is_one(fd: i32) -> bool {
    const S_IFMT: u32 = 0o170_000;
    const S_IFSOCK: u32 = 0o140_000;
    stat(fd, c"".as_ptr().cast()).is_ok_and(|(mode, ..)| mode & S_IFMT == S_IFSOCK)
}

/// Whether there's none in the namespace of this file, `/proc/net/sockstat`.
pub fn none_is_left(file: i32) -> bool {
    number_after(file, b"used ") == Some(0)
}
