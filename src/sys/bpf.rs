//! bpf(2): a map, a program of control groups, and the link between the two and a group.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// `union bpf_attr`, as far as any command here reads it.
#[repr(C, align(8))]
struct Attributes([u32; 32]);

impl Attributes {
    fn new(first: &[u32]) -> Attributes {
        let mut words = [0; 32];
        words[..first.len()].copy_from_slice(first);
        Attributes(words)
    }

    /// An address, in two words.
    fn point(mut self, at: usize, to: *const u8) -> Attributes {
        let address = to as u64;
        (self.0[at], self.0[at + 1]) = (address as u32, (address >> 32) as u32);
        self
    }
}

/// A command that makes a descriptor.
fn make(command: libc::c_int, attributes: &Attributes) -> io::Result<OwnedFd> {
    // SAFETY: the address of a live local structure with its true size, and addresses in it
    // of slices that the caller has borrowed.
    super::made(unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *const Attributes, size_of::<Attributes>()) })
}

/// A map from words to words of 64 bits, without an entry.
pub(crate) fn map(entries: u32) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    const BPF_MAP_TYPE_HASH: u32 = 1;
    const BPF_F_NO_PREALLOC: u32 = 1;
    make(BPF_MAP_CREATE, &Attributes::new(&[BPF_MAP_TYPE_HASH, 8, 8, entries, BPF_F_NO_PREALLOC]))
}

/// What a program for this is attached to.
const BPF_CGROUP_INET_SOCK_CREATE: u32 = 2;

/// Loads a program that runs when a socket of IPv4 or IPv6 is made.
pub(crate) fn socket_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_SOCK: u32 = 9;
    const INSTRUCTIONS: usize = 2;
    const LICENSE: usize = 4;
    const EXPECTED_ATTACH_TYPE: usize = 17;
    let license = c"Dual MIT/GPL";
    let mut attributes = Attributes::new(&[BPF_PROG_TYPE_CGROUP_SOCK, instructions.len() as u32])
        .point(INSTRUCTIONS, instructions.as_ptr().cast())
        .point(LICENSE, license.as_ptr().cast());
    attributes.0[EXPECTED_ATTACH_TYPE] = BPF_CGROUP_INET_SOCK_CREATE;
    make(BPF_PROG_LOAD, &attributes)
}

/// Has the program run for all processes of a group and those below it, as long as
/// somebody holds the link.
pub(crate) fn link(program: BorrowedFd<'_>, group: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_int = 28;
    make(BPF_LINK_CREATE, &Attributes::new(&[program.as_raw_fd() as u32, group.as_raw_fd() as u32, BPF_CGROUP_INET_SOCK_CREATE]))
}
