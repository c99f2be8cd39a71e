//! init: the first process of every sandbox, and the server that starts them.
//!
//! This is a program of its own: no std, no libc, no allocation, a few
//! kilobytes. The crate embeds it, starts it once per host process from a
//! sealed memfd with its control socket as standard input, and asks it for
//! sandboxes. It's the only code of ours that lives inside a sandbox.
//!
//! | file | what it does |
//! | --- | --- |
//! | `server.rs`, `server/` | the spawn server: polls, clones and reaps, nothing else |
//! | `outer.rs` | the child per sandbox that opens what is the host's |
//! | `interpret.rs`, `interpret/` | performs the steps of a plan |
//! | `inside.rs`, `inside/` | PID 1 of a sandbox: polls, reaps, keeps time, reports |
//! | `command.rs` | one command: its way to exec, its clocks, its end |
//! | `tree.rs` | all processes that a command has started |
//! | `reuse.rs` | whether a sandbox may serve again |
//! | `census.rs` | what set-up has made, and whether it's still so |
//! | `files.rs` | what is done to files of an ordinary user's subordinate ids |
//! | `helper.rs` | steps in a process of its own that return descriptors |
//! | `network.rs` | network namespaces, made ahead |
//! | `sockets.rs` | whether there was a socket in one of them |
//! | `listener.rs` | commands whose filter tells PID 1 of forbidden calls |
//! | `sys.rs`, `arch/` | system calls |
//! | `memory.rs` | what the compiler takes from a C library elsewhere |
//! | `../plan/wire.rs`, `../plan/message.rs` | the format of plans and of messages, shared with the crate |
//!
//! It never allocates: what it needs is static, on the stack, or in the mapping
//! of a plan. It never touches a path of a caller's itself: a dead NFS server or
//! a hung FUSE file system would stall every sandbox of the host. A child per
//! sandbox does that.

#![no_std]
#![no_main]

mod ahead;
#[cfg_attr(target_arch = "x86_64", path = "arch/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "arch/aarch64.rs")]
mod arch;
mod census;
mod command;
mod files;
mod helper;
mod inside;
mod interpret;
mod layers;
mod listener;
mod memory;
#[path = "../plan/message.rs"]
#[allow(dead_code, reason = "each side uses its half")]
mod message;
mod network;
mod outer;
mod reuse;
mod server;
mod sockets;
mod sys;
mod tree;
#[path = "../plan/wire.rs"]
#[allow(dead_code, reason = "the encoding half is the host's")]
mod wire;

/// The host must come from the same build: see `message.rs`.
const BUILD: u64 = parse(env!("COFFERDAM_BUILD"));

const fn parse(digits: &str) -> u64 {
    let bytes = digits.as_bytes();
    let (mut value, mut i) = (0u64, 0);
    while i < bytes.len() {
        value = value * 10 + (bytes[i] - b'0') as u64;
        i += 1;
    }
    value
}

extern "C" fn main() -> ! {
    server::main()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Everything below dies with us (PDEATHSIG, PID namespace), and the host
    // sees the end of its sockets.
    sys::exit(101)
}
