//! What a sandbox that serves again needs beside others: PID 1 sees all that may be changed,
//! and can count processes anew. See `../init/reuse.rs`.

use super::files::HERE;
use super::wire::{self, op, slot};
use super::{Area, Arg, Draft, Mark};
use crate::policy::filter::Filter;
use crate::sandbox::Sandbox;

/// Reading leaves no trace: what is read for the first time would get another atime.
pub(super) fn attributes(sandbox: &Sandbox) -> u64 {
    if sandbox.serves_again { libc::MOUNT_ATTR_NOATIME } else { 0 }
}

/// The same for mount(2).
pub(super) fn mount_flags(sandbox: &Sandbox) -> u64 {
    if sandbox.serves_again { libc::MS_NOATIME } else { 0 }
}

/// Queues are each command's own and aren't seen in `/dev/mqueue`, which nobody may write to:
/// its clock counts seconds, so that a change might not show.
pub(super) fn queue_attributes(sandbox: &Sandbox) -> u64 {
    if sandbox.serves_again { libc::MOUNT_ATTR_RDONLY } else { 0 }
}

/// Keeps the scratch in sight, whatever will lie over its parts.
pub(super) fn show_scratch(draft: &mut Draft, sandbox: &Sandbox, scratch: u8) {
    if sandbox.serves_again {
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
        let args = [Arg::Slot(scratch), Draft::EMPTY, flags.into()];
        draft.step(libc::SYS_open_tree, &args, "keep in sight", "the writable layer").keep_in(slot::SCRATCH);
    }
}

/// Opens what says which number the next process gets, while procfs is PID 1's root and
/// nothing of it is closed yet. Not every kernel has it.
pub(super) fn numbers(draft: &mut Draft, sandbox: &Sandbox) {
    if sandbox.serves_again {
        let path = draft.text("/sys/kernel/ns_last_pid");
        let args = [HERE, path, (libc::O_WRONLY | libc::O_CLOEXEC).into()];
        draft.step(libc::SYS_openat, &args, "open", "kernel.ns_last_pid").keep_in(slot::NUMBERS).tolerate(libc::ENOENT);
    }
}

/// Takes down what has been made: below these, of some of them also the names.
pub(super) fn census(draft: &mut Draft, sandbox: &Sandbox, roots: &[(u8, bool)]) {
    if sandbox.serves_again {
        draft.area(Area::Mount);
        for (root, names) in roots {
            draft.step(op::CENSUS, &[Arg::Slot(*root), u32::from(*names).into()], "take down", "what has been made");
        }
    }
}

/// What PID 1 is to do for it. A new IPC namespace takes some 50 us, so not for nothing.
pub(super) fn flags(sandbox: &Sandbox, filter: Option<&Filter>) -> u64 {
    let queues = if filter.is_none_or(|filter| filter.queues) { wire::RENEWS_QUEUES } else { 0 };
    if sandbox.serves_again { wire::SERVES_AGAIN | queues } else { 0 }
}
