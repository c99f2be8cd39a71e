//! Commands whose filter tells of forbidden calls (SECCOMP_RET_USER_NOTIF), and PID 1
//! as the one who is told.
//!
//! PID 1 notes number and ABI and then kills; the call itself waits until its thread is
//! dead, and is never made. No process of the workload can reach the listener: PID 1
//! isn't dumpable, and signals and memory of it are out of bounds.
//!
//! The listener's descriptor is born in the process that installs the filter, which can
//! hand it to nobody: its next calls are under the filter already, and exec closes it.
//! So that process, the command, is cloned by a *courier* which shares its descriptors
//! (CLONE_FILES) but not its filter, and which goes on when the command has been
//! executed: exec took a copy of the descriptors for itself, and the courier still has
//! them all.

use crate::arch::{clone_onto, nr};
use crate::command::{Shared, command_main};
use crate::sys::*;
use crate::wire::slot;

const CLONE_VM: u64 = 0x100;
const CLONE_FILES: u64 = 0x400;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT: u64 = 0x8000;

const STACK: usize = 64 * 1024;
#[repr(align(16))]
struct Stack(#[allow(dead_code, reason = "only its address is used")] [u8; STACK]);
static mut COMMAND_STACK: Stack = Stack([0; STACK]);

/// The courier's process. PID 1 is suspended (CLONE_VFORK) until it ends.
pub extern "C" fn courier(address: usize) -> ! {
    // SAFETY: the address of a live local of PID 1's, whose frame is suspended; while
    // the command's process uses it we're suspended ourselves.
    let shared = unsafe { &mut *(address as *mut Shared) };
    // SAFETY: as above.
    let pidfd = unsafe { &raw mut (*shared.context).pidfd };
    // A child of PID 1's, as we are; with our exit signal, which clone3 wants to be 0 here.
    let flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_PARENT | CLONE_PIDFD;
    let stack = &raw mut COMMAND_STACK as u64;
    let args = [flags, pidfd as u64, 0, 0, 0, stack, STACK as u64, 0];
    // SAFETY: `args` is a clone_args with a stack that only one command uses at a time,
    // because PID 1 waits for us; `command_main` never returns.
    let result = unsafe { clone_onto(args.as_ptr(), size_of_val(&args), command_main, address) };
    if result < 0 {
        shared.fail(-result as i32);
        exit(0);
    }
    shared.main = result as i32;
    let (channel, handed) = shared.handed();
    let count = if handed[1] >= 0 { 2 } else { 1 };
    if send(channel, &[0], &handed[..count]).is_err() {
        shared.fail(EIO);
    }
    exit(0);
}

/// The command's pidfd and its listener, from the courier. -1 for a listener where the
/// recipe goes on without a filter.
pub fn take(channel: i32) -> Option<(i32, i32)> {
    let received = receive(channel, &mut [0], false).ok()?;
    match received.fds() {
        [pidfd] => Some((*pidfd, -1)),
        [pidfd, listener] => Some((*pidfd, *listener)),
        _ => None,
    }
}

/// What a listener has to tell: the number of a call and, above it, its ABI.
pub fn told(listener: i32) -> Option<u64> {
    const SECCOMP_IOCTL_NOTIF_RECV: usize = 0xc050_2100;
    // struct seccomp_notif: id, pid, flags, and struct seccomp_data, which begins with
    // number and ABI. It must be zero before.
    let mut notification = [0u64; 10];
    call(nr::IOCTL, [listener as usize, SECCOMP_IOCTL_NOTIF_RECV, notification.as_mut_ptr() as usize, 0, 0, 0]).ok()?;
    Some(notification[2])
}

/// Slot of the listener in the plan of a command.
pub const SLOT: usize = slot::LISTENER as usize;
