//! Steps that make the scratch outside the sandbox, and that keep it.
//!
//! The outer child mounts it in a mount namespace of its own. Where the writable layer
//! may become a checkpoint's there are two of them: the first is shown to the host, whose
//! descriptor keeps it, and with it the layer and all that lies below; in a copy of it the
//! sandbox is built. So a layer that is kept is attached somewhere, which open_tree(2)
//! wants of what it clones (before Linux 6.15) and overlayfs of its layers, and no mount
//! of the old overlay keeps its upper directory in use.
//!
//! ```text
//! /mnt             the scratch
//!   upper, work    of the overlay; without one, upper is the root itself
//!   shm            /dev/shm
//!   lower          what lies below: an image, or a checkpoint's whole /mnt, which has a
//!                  `lower` of its own
//! ```
//!
//! Files in a kept scratch have the ids of the inside, because the sandbox writes to it
//! by an idmapped mount. So the next sandbox, which has other ids outside, can map them
//! to its own, the whole stack in one call. Where tmpfs has no idmapped mounts (before
//! Linux 6.3) they have the sandbox's ids outside, and so has every sandbox on it.

use super::files::{BASE, HERE, Owners, SCRATCH, attach, map_ids, scratch_into, set_attributes};
use super::message::Report;
use super::wire::{op, slot};
use super::{Arg, Draft, Mark, again};
use crate::checkpoint::Frozen;
use crate::sandbox::Sandbox;

/// What is kept of the scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Nothing: it's gone with the sandbox.
    No,
    /// The upper directory, to be looked at when the run has ended.
    Changes,
    /// All of it, to be what lies below another sandbox.
    Layer,
}

/// Where a checkpoint is, in a scratch that lies on it.
pub(super) const LOWER: &str = "lower";

/// The read-only side of the root, in a slot, with its name.
pub(super) struct Below {
    pub(super) tree: u8,
    pub(super) name: String,
}

/// Makes the scratch and enters it; the slot of its root. `mode` is that of the upper
/// directory.
pub(super) fn scratch(draft: &mut Draft, sandbox: &Sandbox, below: Option<&Below>, owners: Owners, kept: Kept, mode: u32) -> u8 {
    unshare(draft);
    let scratch = draft.temporary();
    scratch_into(draft, scratch, sandbox, "755");
    let place = draft.text(SCRATCH);
    attach(draft, scratch, place, "the writable layer");
    draft.step(libc::SYS_fchdir, &[Arg::Slot(scratch)], "enter", "the writable layer");
    // PID 1 looks into all of them, if it's to tell whether they are as they were.
    let closed = if sandbox.serves_again { 0o755 } else { 0o700 };
    for (directory, mode) in [(LOWER, closed), ("upper", mode), ("work", closed), ("shm", 0o1777)] {
        make_directory(draft, directory, mode);
    }
    again::show_scratch(draft, sandbox, scratch);
    if let Some(Below { tree, name }) = below {
        let place = draft.text(LOWER);
        attach(draft, *tree, place, name.clone());
    }
    if kept != Kept::Layer {
        return scratch;
    }
    show_directory(draft, "upper", Report::UPPER);
    let (mounts, name) = (draft.temporary(), draft.text("ns/mnt"));
    draft.step(op::SELF_OPEN, &[name], "open", "/proc/self/ns/mnt").keep_in(mounts);
    draft.step(op::SHOW, &[Arg::Slot(mounts), Report::MOUNTS.into()], "show the host", "its mount namespace");
    draft.close(mounts);
    draft.close(scratch);
    unshare(draft);
    let mapped = draft.temporary();
    clone_all(draft, mapped);
    if !owners.shared {
        map_ids(draft, mapped, Owners { prefer: false, ..owners }, "the writable layer".into());
    }
    attach(draft, mapped, place, "the writable layer");
    draft.step(libc::SYS_fchdir, &[Arg::Slot(mapped)], "enter", "the writable layer");
    if owners.namespace.is_some() && !owners.shared {
        // What is made from here on by an idmapped mount must belong to somebody who
        // exists in it, be it made by overlayfs for itself (else it's EOVERFLOW). Our
        // capabilities stay, in spite of the change.
        let securebits = libc::SECBIT_NO_SETUID_FIXUP.into();
        draft.step(libc::SYS_prctl, &[libc::PR_SET_SECUREBITS.into(), securebits], "keep", "capabilities");
        draft.step(libc::SYS_setfsgid, &[owners.root.into()], "write as", "group 0 of the sandbox");
        draft.step(libc::SYS_setfsuid, &[owners.root.into()], "write as", "user 0 of the sandbox");
    }
    mapped
}

fn unshare(draft: &mut Draft) {
    draft.step(libc::SYS_unshare, &[libc::CLONE_NEWNS.into()], "make", "a mount namespace");
}

pub(super) fn make_directory(draft: &mut Draft, name: &str, mode: u32) {
    let path = draft.text(name);
    draft.step(libc::SYS_mkdirat, &[HERE, path, mode.into()], "make", "the writable layer");
}

/// Shows the host a directory of the scratch.
pub(super) fn show_directory(draft: &mut Draft, name: &str, kind: u32) {
    let (directory, path) = (draft.temporary(), draft.text(name));
    let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
    draft.step(libc::SYS_openat, &[HERE, path, flags.into()], "open", "the writable layer").keep_in(directory);
    draft.step(op::SHOW, &[Arg::Slot(directory), kind.into()], "show the host", "the writable layer");
    draft.close(directory);
}

/// The scratch with everything in it, as a detached tree.
fn clone_all(draft: &mut Draft, slot: u8) {
    let place = draft.text(SCRATCH);
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as u32;
    draft.step(libc::SYS_open_tree, &[HERE, place, flags.into()], "open", "the writable layer").keep_in(slot);
}

/// A checkpoint, whose mount namespace is in slot `mounts`, as a detached, read-only tree.
/// Leaves us in that namespace.
pub(super) fn open_checkpoint(draft: &mut Draft, checkpoint: &Frozen, mounts: u8) -> u8 {
    let tree = draft.temporary();
    draft.step(libc::SYS_setns, &[Arg::Slot(mounts), libc::CLONE_NEWNS.into()], "look at", "the checkpoint");
    if !checkpoint.is_sealed() {
        seal(draft);
    }
    clone_all(draft, tree);
    set_attributes(draft, tree, BASE | libc::MOUNT_ATTR_RDONLY, "the checkpoint");
    tree
}

/// Makes the topmost scratch of a checkpoint read-only as a file system, whoever looks at
/// it. The kernel refuses that as long as a file in it is open for writing: a sandbox that
/// has ended may have passed such a descriptor out of it.
fn seal(draft: &mut Draft) {
    const FSPICK_CLOEXEC: u32 = 1;
    const FSCONFIG_SET_FLAG: u32 = 0;
    const FSCONFIG_CMD_RECONFIGURE: u32 = 7;
    let (context, place, flag) = (draft.temporary(), draft.text(SCRATCH), draft.text("ro"));
    draft.step(libc::SYS_fspick, &[HERE, place, FSPICK_CLOEXEC.into()], "look at", "the checkpoint").keep_in(context);
    let set = [Arg::Slot(context), FSCONFIG_SET_FLAG.into(), flag, 0.into(), 0.into()];
    draft.step(libc::SYS_fsconfig, &set, "seal", "the checkpoint");
    let reconfigure = [Arg::Slot(context), FSCONFIG_CMD_RECONFIGURE.into(), 0.into(), 0.into(), 0.into()];
    draft.step(libc::SYS_fsconfig, &reconfigure, "seal", "the checkpoint");
    draft.close(context);
}

/// The root of a sandbox that has nothing below its kept scratch; returns `/dev/shm`.
pub(super) fn bare_root(draft: &mut Draft, sandbox: &Sandbox, owners: Owners) -> u8 {
    // Nobody but us puts anything into `/` itself: see landlock.rs.
    let scratch = scratch(draft, sandbox, None, owners, Kept::Layer, 0o555);
    let path = draft.text("upper");
    draft.step(libc::SYS_fchownat, &[HERE, path, owners.root.into(), owners.root.into(), 0.into()], "own", "the writable layer");
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    draft.step(libc::SYS_open_tree, &[HERE, path, flags.into()], "open", "the writable layer").keep_in(slot::ROOT);
    let shm = shared_memory(draft);
    draft.close(scratch);
    shm
}

/// `/dev/shm` of a scratch that was made outside, and that we're in.
pub(super) fn shared_memory(draft: &mut Draft) -> u8 {
    let (shm, path) = (draft.slot(), draft.text("shm"));
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    draft.step(libc::SYS_open_tree, &[HERE, path, flags.into()], "open", "/dev/shm").keep_in(shm);
    set_attributes(draft, shm, BASE | libc::MOUNT_ATTR_NOEXEC, "/dev/shm");
    shm
}
