//! Counts sockets by network namespace, so that one in which there never was any can serve
//! again.
//!
//! To make a network namespace and take it apart is a fifth of what a run costs the machine,
//! and most workloads have no use for it. What they could do to one that belongs to init's
//! user namespace takes a socket of IPv4 or IPv6 (those of other families leave nothing
//! behind, see `init/sockets.rs`). No file of the kernel's tells whether there ever was one: with
//! no socket left, no packet sent and all counters at zero there may still be a timer of a
//! multicast group that was left, which sends its report into the next run. A filter that
//! tells PID 1 of the call that makes sockets (SECCOMP_RET_USER_NOTIF) would let signals
//! interrupt that call, which they can't otherwise. But the kernel runs a program at that very
//! place, BPF_CGROUP_INET_SOCK_CREATE, which costs nobody else anything that
//! could be measured: it adds one to the number of the namespace in a map, if it's there.
//!
//! It takes root with CAP_BPF and CAP_NET_ADMIN, Linux 5.15 and a cgroup2 tree that all
//! processes of a sandbox are in. That isn't believed but tried: the command's process makes
//! one socket itself when it's where it will be, and a namespace serves again only if that one
//! was counted, and no other.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::cgroup::Places;
use crate::sys;

/// It counts as long as somebody holds both.
#[derive(Debug)]
pub(crate) struct Counter {
    /// From the cookie of a network namespace (SO_NETNS_COOKIE of socket(7)) to the number of its
    /// sockets so far. Only what is in it is counted.
    pub(crate) map: OwnedFd,
    pub(crate) link: OwnedFd,
}

/// More sandboxes than that at once, and some network namespaces are used once.
const NAMESPACES: u32 = 8192;

impl Counter {
    pub(crate) fn start(places: &Places) -> io::Result<Counter> {
        let map = sys::bpf::map(NAMESPACES)?;
        let program = sys::bpf::socket_program(&program(&map))?;
        // Commands are below our own directory, or in the group that init is in as we are.
        let link = match (places.hierarchies.iter().find(|hierarchy| hierarchy.v2), &places.unified) {
            (Some(ours), _) => sys::bpf::link(program.as_fd(), ours.home.as_fd())?,
            (None, Some(own)) => sys::bpf::link(program.as_fd(), File::open(own)?.as_fd())?,
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Counter { map, link })
    }
}

/// Adds one to the number under the namespace's cookie, if there's one, and lets the socket
/// be made (the kernel's `Documentation/bpf/standardization/instruction-set.rst`).
fn program(map: &OwnedFd) -> [u64; 12] {
    const GET_NETNS_COOKIE: i32 = 122;
    const MAP_LOOKUP_ELEM: i32 = 1;
    const MAP_FD: u8 = 1;
    let instruction = |code: u8, destination: u8, source: u8, offset: i16, value: i32| {
        let [low, high] = offset.to_le_bytes();
        let [v0, v1, v2, v3] = value.to_le_bytes();
        u64::from_le_bytes([code, source << 4 | destination, low, high, v0, v1, v2, v3])
    };
    let (call, exit) = (|function| instruction(0x85, 0, 0, 0, function), instruction(0x95, 0, 0, 0, 0));
    let set = |register, value| instruction(0xb7, register, 0, 0, value);
    [
        // r1 is the socket.
        call(GET_NETNS_COOKIE),
        // The cookie goes on the stack, which ends at r10, and its address to r2.
        instruction(0x7b, 10, 0, -8, 0),
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -8),
        // r1 = map: one instruction of double length.
        instruction(0x18, 1, MAP_FD, 0, map.as_raw_fd()),
        0,
        call(MAP_LOOKUP_ELEM),
        // Nothing there: over the next two.
        instruction(0x15, 0, 0, 2, 0),
        set(1, 1),
        // *r0 += r1, atomically.
        instruction(0xdb, 0, 1, 0, 0),
        set(0, 1),
        exit,
    ]
}
