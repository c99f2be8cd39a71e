//! Steps that build the root file system.
//!
//! The outer child opens sources in the host's mount namespace and turns them
//! into detached mounts; with an image it also builds the overlay there, because
//! a lower layer that was opened outside is EPERM for an overlay mounted inside,
//! while a finished mount from outside can be attached. PID 1 attaches, enters,
//! and completes the tree when nothing of the host is in reach any more.
//!
//! Everything writable of a sandbox lies in one tmpfs, the *scratch*: the
//! overlay's upper directory (or, with the host's /usr, the root itself),
//! `/tmp` and `/dev/shm`. So one size is the disk limit, and all of it is gone
//! with the last process.

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::landlock::{self, Ruleset};
use super::overlay::{Lower, overlay};
use super::scratch::{Kept, bare_root, open_checkpoint};
use super::wire::{AT_FDCWD, op, slot};
use super::{Area, Arg, Draft, Mark, again, namespaces, proc};
use crate::image::{HostLayout, Root};
use crate::policy::landlock::right;
use crate::probe::{Facts, Layer};
use crate::sandbox::{Mount, MountKind, Sandbox};

pub(super) const FSCONFIG_CMD_CREATE: u32 = 6;
/// Where init's root has room for a scratch, in the outer child's copy of it.
pub(crate) const SCRATCH: &str = "/mnt";
pub(super) const HERE: Arg = Arg::Value(AT_FDCWD);
/// nosuid and nodev hold for every mount that a workload sees.
pub(crate) const BASE: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// fsopen, fsconfig, fsmount: a new file system as a detached mount.
pub(crate) fn new_filesystem(draft: &mut Draft, kind: &'static str, options: &[(&str, &str)], attributes: u64) -> u8 {
    let slot = draft.slot();
    new_filesystem_into(draft, slot, kind, options, attributes);
    slot
}

fn new_filesystem_into(draft: &mut Draft, slot: u8, kind: &'static str, options: &[(&str, &str)], attributes: u64) {
    let context = draft.temporary();
    let name = draft.text(kind);
    draft.step(libc::SYS_fsopen, &[name, libc::FSOPEN_CLOEXEC.into()], "use file system", kind).keep_in(context);
    set_options(draft, context, kind, options);
    draft.step(libc::SYS_fsconfig, &[Arg::Slot(context), FSCONFIG_CMD_CREATE.into(), 0.into(), 0.into(), 0.into()], "create", kind);
    draft.step(libc::SYS_fsmount, &[Arg::Slot(context), libc::FSMOUNT_CLOEXEC.into(), attributes.into()], "mount", kind).keep_in(slot);
    draft.close(context);
}

/// Options of a file system that is being configured.
pub(super) fn set_options(draft: &mut Draft, context: u8, kind: &str, options: &[(&str, &str)]) {
    const FSCONFIG_SET_STRING: u32 = 1;
    for (key, value) in options {
        let object = format!("{kind} option {key}={value}");
        let (key, value) = (draft.text(key), draft.text(value));
        draft.step(libc::SYS_fsconfig, &[Arg::Slot(context), FSCONFIG_SET_STRING.into(), key, value, 0.into()], "set", object);
    }
}

/// Attaches a detached mount at a path.
pub(crate) fn attach(draft: &mut Draft, mount: u8, path: Arg, object: impl Into<Cow<'static, str>>) {
    let args = [Arg::Slot(mount), Draft::EMPTY, HERE, path, libc::MOVE_MOUNT_F_EMPTY_PATH.into()];
    draft.step(libc::SYS_move_mount, &args, "mount", object);
}

/// Attaches one, or moves it, to the place in a slot.
fn attach_to(draft: &mut Draft, mount: u8, place: u8, object: impl Into<Cow<'static, str>>) {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let args = [Arg::Slot(mount), Draft::EMPTY, Arg::Slot(place), Draft::EMPTY, flags.into()];
    draft.step(libc::SYS_move_mount, &args, "mount", object);
}

/// mount_setattr(2) on a detached tree, submounts included. Propagation from the
/// host ends here.
pub(crate) fn set_attributes(draft: &mut Draft, mount: u8, set: u64, object: impl Into<Cow<'static, str>>) {
    set_attributes_with(draft, mount, set, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, object);
}

/// Makes a detached tree idmapped, if that is wanted. Apart from the other attributes,
/// so that a file system without idmapped mounts can be told from one that refuses
/// read-only.
pub(super) fn map_ids(draft: &mut Draft, mount: u8, owners: Owners, object: String) {
    if let Some(namespace) = owners.namespace {
        let area = std::mem::replace(&mut draft.area, Area::IdMappedMount);
        draft
            .step(op::ID_MAP, &[Arg::Slot(mount), Arg::Slot(namespace)], "map the owners of", object)
            .layer(Layer::IdMappedMounts, owners.prefer);
        draft.area(area);
    }
}

/// mount_setattr(2) with flags of the caller's.
pub(crate) fn set_attributes_with(draft: &mut Draft, mount: u8, set: u64, flags: i32, object: impl Into<Cow<'static, str>>) {
    let attributes = draft.words(&[set, 0, libc::MS_PRIVATE, 0]);
    draft.step(
        libc::SYS_mount_setattr,
        &[Arg::Slot(mount), Draft::EMPTY, flags.into(), attributes, 32.into()],
        "set the attributes of",
        object,
    );
}

/// A part of the host's tree to be cloned.
pub(crate) struct Tree {
    pub(crate) path: Arg,
    pub(crate) recursive: bool,
}

impl Tree {
    pub(crate) fn clone_into(self, draft: &mut Draft, object: impl Into<Cow<'static, str>>) -> u8 {
        let slot = draft.slot();
        let recursive = if self.recursive { libc::AT_RECURSIVE as u32 } else { 0 };
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | recursive;
        draft.step(libc::SYS_open_tree, &[HERE, self.path, flags.into()], "open", object).keep_in(slot);
        slot
    }
}

/// Makes an attached mount the root and lets go of the old one: pivot_root(2)
/// with "." twice stacks the old root on the new one, from where it's detached.
pub(crate) fn pivot(draft: &mut Draft, root: u8) {
    let dot = draft.text(".");
    draft.step(libc::SYS_fchdir, &[Arg::Slot(root)], "enter", "the new root");
    draft.step(libc::SYS_pivot_root, &[dot, dot], "pivot to", "the new root");
    draft.step(libc::SYS_umount2, &[dot, libc::MNT_DETACH.into()], "detach", "the old root");
}

/// A mount that the outer stage prepared, on its way to its place.
pub(crate) struct Prepared<'a> {
    mount: &'a Mount,
    slot: u8,
}

/// What the outer stage left for the inner one.
pub(crate) struct Outside<'a> {
    /// Sources of binds.
    binds: Vec<Prepared<'a>>,
    /// `/dev/shm`, if the scratch was made outside.
    shm: Option<u8>,
    /// With the host's root: its parts, by the name inside.
    parts: Vec<(&'a str, u8)>,
    /// The image, or the checkpoint with all that lies below it.
    lower: Option<u8>,
}

/// How ids are mapped on mounts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owners {
    /// Slot of the sandbox's user namespace, if mounts can be idmapped.
    pub(crate) namespace: Option<u8>,
    /// The caller goes on without.
    pub(crate) prefer: bool,
    /// Files of checkpoints have the sandbox's own ids, outside too, and aren't mapped.
    pub(crate) shared: bool,
    /// An ordinary user: overlayfs keeps its marks in `user.*` attributes.
    pub(crate) ordinary: bool,
    /// The sandbox's root in the numbers of the outer stage.
    pub(crate) root: u32,
    /// The same, if an image may belong to ids that don't exist inside: an ordinary
    /// user's, or one not idmapped.
    pub(crate) substitute: Option<u32>,
}

/// Outer stage, first part: opens everything of the host's, before PID 1 is cloned.
/// It inherits these descriptors; and the later it's born, the less often it has to
/// wait for the processor on which the outer child goes on (0.2 ms of two). In slot
/// `checkpoint` is the mount namespace of the root, if that is one.
pub(crate) fn sources<'a>(draft: &mut Draft, sandbox: &'a Sandbox, checkpoint: u8) -> Outside<'a> {
    let mut outside = Outside { binds: Vec::new(), shm: None, parts: Vec::new(), lower: None };
    draft.area(Area::Mount);
    if looks_at_host(sandbox) {
        draft.step(libc::SYS_setns, &[Arg::Slot(slot::HOST_MOUNTS), libc::CLONE_NEWNS.into()], "look at", "the host's mounts");
        draft.step(libc::SYS_fchdir, &[Arg::Slot(slot::HOST_ROOT)], "enter", "the host's root");
        let dot = draft.text(".");
        draft.step(libc::SYS_chroot, &[dot], "enter", "the host's root");
    }
    for mount in sandbox.sorted_mounts() {
        let MountKind::Bind { host, writable } = &mount.kind else { continue };
        let name = display(host);
        let path = draft.text(host.as_os_str().as_bytes());
        let tree = Tree { path, recursive: true }.clone_into(draft, name.clone());
        let read_only = if *writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
        set_attributes(draft, tree, BASE | read_only, name);
        outside.binds.push(Prepared { mount, slot: tree });
    }
    draft.area(Area::Image);
    if let Root::Host(layout) = sandbox.root.base() {
        for part in &layout.parts {
            // Not idmapped: seen by the sandbox, the host's files belong to
            // nobody, so that its root can't read what only the host's may.
            let path = draft.text(part.host.as_bytes());
            let tree = Tree { path, recursive: true }.clone_into(draft, part.host.clone());
            set_attributes(draft, tree, BASE | libc::MOUNT_ATTR_RDONLY, part.host.clone());
            outside.parts.push((part.inside.as_str(), tree));
        }
    }
    outside.lower = Lower::of(&sandbox.root).and_then(|lower| lower.open(draft));
    if let Some(frozen) = sandbox.root.checkpoint() {
        draft.area(Area::Checkpoint);
        outside.lower = Some(open_checkpoint(draft, frozen, checkpoint));
    }
    draft.area(Area::Mount);
    draft.step(libc::SYS_setns, &[Arg::Slot(slot::INIT_MOUNTS), libc::CLONE_NEWNS.into()], "return to", "init's mounts");
    outside
}

/// Whether anything of the host's is opened; a checkpoint has its image with it.
fn looks_at_host(sandbox: &Sandbox) -> bool {
    let binds = sandbox.mounts().iter().any(|mount| matches!(mount.kind, MountKind::Bind { .. }));
    binds || sandbox.root.checkpoint().is_none() || matches!(sandbox.root.base(), Root::Host(_))
}

/// Outer stage, second part: what needs the user namespace.
pub(crate) fn outer(draft: &mut Draft, sandbox: &Sandbox, facts: &Facts, owners: Owners, kept: Kept, outside: &mut Outside<'_>) {
    for bind in &outside.binds {
        if let MountKind::Bind { host, .. } = &bind.mount.kind {
            draft.area(Area::Mount);
            map_ids(draft, bind.slot, owners, display(host));
        }
    }
    if let (Some(tree), Some(lower)) = (outside.lower, Lower::of(&sandbox.root)) {
        // What is kept is mapped as a whole, with the scratch on it.
        let by_itself = if owners.shared { lower.is_base() } else { kept != Kept::Layer };
        if by_itself {
            draft.area(Area::Image);
            map_ids(draft, tree, owners, lower.name());
        }
        outside.shm = Some(overlay(draft, sandbox, &lower, tree, owners, kept, facts.takes_layers_from_anywhere));
    } else if kept == Kept::Layer {
        draft.area(Area::Mount);
        outside.shm = Some(bare_root(draft, sandbox, owners));
    }
}

/// The tmpfs that holds all that a workload writes.
pub(super) fn scratch_into(draft: &mut Draft, slot: u8, sandbox: &Sandbox, mode: &str) {
    let (size, inodes) = (sandbox.writable.to_string(), sandbox.writable_files.to_string());
    let attributes = BASE | again::attributes(sandbox);
    new_filesystem_into(draft, slot, "tmpfs", &[("size", &size), ("nr_inodes", &inodes), ("mode", mode)], attributes);
}

/// Mounts that PID 1 made while it was [`alone`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Devices {
    dev: u8,
    /// What will be `/proc`.
    shown: u8,
    /// `/dev/mqueue`, if the kernel has message queues.
    queues: Option<u8>,
}

/// Inner stage, as long as the outer child is busy: PID 1 moves from init's small root
/// to its own procfs.
///
/// Detaching a root waits for a grace period of the kernel (synchronize_rcu_expedited
/// in namespace_unlock), some 50 us on an idle machine and milliseconds on a busy one.
/// Here PID 1 would wait anyway. To pivot looks at every thread of the machine, so the final
/// root is only stacked on procfs and entered: for a path that leads upwards, or begins at the
/// root of the mount namespace, there's no difference, and below it lies nothing but the
/// sandbox's own procfs. `/proc` is another mount of that.
pub(crate) fn alone(draft: &mut Draft, sandbox: &Sandbox, facts: &Facts) -> Devices {
    draft.area(Area::Proc);
    // While init's /proc is still in view: the kernel mounts procfs in a user
    // namespace only where one is visible in full already.
    let procfs = if sandbox.borrowed_proc {
        let path = draft.text("/proc");
        let procfs = Tree { path, recursive: true }.clone_into(draft, "/proc");
        set_attributes(draft, procfs, BASE | libc::MOUNT_ATTR_NOEXEC, "/proc");
        procfs
    } else {
        let procfs = draft.temporary();
        new_filesystem_into(draft, procfs, "proc", &[], BASE | libc::MOUNT_ATTR_NOEXEC);
        procfs
    };
    draft.area(Area::Mount);
    let path = draft.text("/dev");
    let dev = Tree { path, recursive: true }.clone_into(draft, "/dev");
    // The file system that mq_open(2) uses behind the scenes. In view, because Landlock
    // allows only what a rule leads to.
    let attributes = BASE | libc::MOUNT_ATTR_NOEXEC | again::queue_attributes(sandbox);
    let queues = facts.message_queues.then(|| new_filesystem(draft, "mqueue", &[], attributes));
    let closed =
        (!sandbox.nesting && !sandbox.borrowed_proc).then(|| (&facts.proc, proc::covers(draft, &facts.proc, sandbox.serves_again)));
    draft.area(Area::Mount);
    let slash = draft.text("/");
    attach(draft, procfs, slash, "/proc");
    pivot(draft, procfs);
    draft.close(procfs);
    let shown = Tree { path: slash, recursive: sandbox.borrowed_proc }.clone_into(draft, "/proc");
    if let Some((present, covers)) = closed {
        namespaces::limits(draft);
        namespaces::show_sockets(draft, sandbox, facts);
        again::numbers(draft, sandbox);
        // Only what is attached can be covered. From here it's moved.
        let place = draft.text("/fs");
        attach(draft, shown, place, "/proc");
        draft.step(libc::SYS_fchdir, &[Arg::Slot(shown)], "enter", "/proc");
        proc::close(draft, present, &covers);
    }
    Devices { dev, shown, queues }
}

/// Inner stage: from detached mounts to a root with everything in its place.
pub(crate) fn inner(
    draft: &mut Draft,
    sandbox: &Sandbox,
    outside: &Outside<'_>,
    devices: Devices,
    terminal_group: bool,
    ruleset: Option<Ruleset>,
) {
    draft.area(Area::Mount);
    let mut options = vec![("ptmxmode", "0666"), ("mode", "0620")];
    if terminal_group {
        options.push(("gid", "5"));
    }
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC | again::attributes(sandbox);
    let pts = new_filesystem(draft, "devpts", &options, attributes);
    let mut taken = vec![(slot::SCRATCH, false), (pts, true)];

    if outside.shm.is_none() {
        // Nobody but us puts anything into `/` itself: see landlock.rs.
        scratch_into(draft, slot::ROOT, sandbox, "555");
    }
    let slash = draft.text("/");
    attach(draft, slot::ROOT, slash, "the root");
    if outside.shm.is_none() {
        again::show_scratch(draft, sandbox, slot::ROOT);
    }
    draft.step(libc::SYS_fchdir, &[Arg::Slot(slot::ROOT)], "enter", "the new root");
    for (name, mode) in [("proc", 0o555), ("dev", 0o755), ("tmp", 0o1777)] {
        directory(draft, name, mode);
    }
    let shm = outside.shm.unwrap_or_else(|| hidden_shm(draft));
    // An image's link of that name is refused.
    let (place, path) = (draft.temporary(), draft.text("proc"));
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    draft.step(libc::SYS_openat, &[HERE, path, flags.into()], "mount", "/proc").keep_in(place);
    attach_to(draft, devices.shown, place, "/proc");
    draft.close(place);
    draft.close(devices.shown);
    let dot = draft.text(".");
    draft.step(libc::SYS_chroot, &[dot], "enter", "the new root");

    // From here on "/" is the new root, and paths can't leave it.
    if let Root::Host(layout) = sandbox.root.base() {
        host_tree(draft, layout, outside, sandbox.root.checkpoint().is_none());
    }
    let (uid, gid) = sandbox.account();
    if sandbox.makes_home() {
        make_path(draft, Path::new(sandbox.home()), 0o700, (uid, gid));
    }
    for directory in sandbox.image_directories() {
        make_path(draft, directory, 0o755, (0, 0));
    }
    attach_at(draft, devices.dev, "dev", "/dev");
    attach_at(draft, pts, "dev/pts", "/dev/pts");
    attach_at(draft, shm, "dev/shm", "/dev/shm");
    if let Some(queues) = devices.queues {
        attach_at(draft, queues, "dev/mqueue", "/dev/mqueue");
    }
    let mut binds = outside.binds.iter();
    for mount in sandbox.sorted_mounts() {
        let name = display(&mount.inside);
        let (source, kind) = match &mount.kind {
            MountKind::Bind { .. } => {
                let Some(prepared) = binds.next() else { break };
                debug_assert!(std::ptr::eq(prepared.mount, mount));
                (prepared.slot, Arg::Slot(prepared.slot))
            }
            MountKind::Tmpfs { bytes } => {
                let (size, inodes) = (bytes.to_string(), (bytes / 4096).clamp(16, 1 << 20).to_string());
                let options = [("size", &*size), ("nr_inodes", &*inodes), ("mode", "1777")];
                let source = new_filesystem(draft, "tmpfs", &options, BASE | again::attributes(sandbox));
                taken.push((source, false));
                (source, 0.into())
            }
        };
        let target = draft.temporary();
        let path = draft.text(mount.inside.as_os_str().as_bytes());
        // An image's link must not lead us into the host's directory of a writable bind.
        let mode = if sandbox.mounts_within(mount) { 0o755 } else { 0o755 | op::STAY };
        draft
            .step(
                op::MAKE_PATH,
                &[Arg::Slot(slot::ROOT), path, kind, mode.into(), uid.into(), gid.into()],
                "make a place to mount",
                name.clone(),
            )
            .keep_in(target);
        attach_to(draft, source, target, name.clone());
        draft.close(target);
        if let Some(ruleset) = ruleset.filter(|_| landlock::writable(&mount.kind)) {
            ruleset.allow(draft, source, right::WRITE, name);
        }
    }
    for file in sandbox.all_files() {
        let name = display(&file.inside);
        let (path, contents) = (draft.text(file.inside.as_os_str().as_bytes()), draft.data(&file.contents));
        let (uid, gid) = if file.ours { (0, 0) } else { (uid, gid) };
        // An image's /etc may be a link, and must not lead us into the host's directory
        // of a writable bind. What the caller wants may lie in a mount.
        let stays = !sandbox.covers(&file.inside);
        let mode = if stays { file.mode | op::STAY } else { file.mode };
        let args = [path, contents, file.contents.len().into(), mode.into(), uid.into(), gid.into()];
        draft.step(op::FILE, &args, "write", name);
    }
    if let Some(ruleset) = ruleset {
        ruleset.allow_root(draft, sandbox);
        ruleset.allow(draft, shm, right::WRITE, "/dev/shm");
        if let Some(queues) = devices.queues.filter(|_| !sandbox.serves_again) {
            ruleset.allow(draft, queues, right::WRITE, "/dev/mqueue");
        }
    }
    again::census(draft, sandbox, &taken);
    draft.close(slot::ROOT);
}

/// A directory by its path, and those on the way to it.
fn make_path(draft: &mut Draft, path: &Path, mode: u32, (uid, gid): (u32, u32)) {
    let (text, slot) = (draft.text(path.as_os_str().as_bytes()), draft.temporary());
    let args = [Arg::Slot(slot::ROOT), text, 0.into(), mode.into(), uid.into(), gid.into()];
    draft.step(op::MAKE_PATH, &args, "make", display(path)).keep_in(slot);
    draft.close(slot);
}

/// `/dev/shm` in a root that is the scratch itself: `/dev` will hide this directory.
fn hidden_shm(draft: &mut Draft) -> u8 {
    directory(draft, "dev/shm", 0o1777);
    let path = draft.text("dev/shm");
    let shm = Tree { path, recursive: false }.clone_into(draft, "/dev/shm");
    set_attributes(draft, shm, BASE | libc::MOUNT_ATTR_NOEXEC, "/dev/shm");
    shm
}

/// The directories and links of the host's root, unless a checkpoint has them, and its
/// mounts.
fn host_tree(draft: &mut Draft, layout: &HostLayout, outside: &Outside<'_>, fresh: bool) {
    for (name, mode) in layout.directories.iter().filter(|_| fresh) {
        directory(draft, name, *mode);
    }
    for (name, target) in layout.links.iter().filter(|_| fresh) {
        let (path, target) = (draft.text(name), draft.text(target));
        draft.step(libc::SYS_symlinkat, &[target, HERE, path], "make", format!("/{name}"));
    }
    for (inside, tree) in &outside.parts {
        let target = draft.temporary();
        let path = draft.text(inside);
        let args = [Arg::Slot(slot::ROOT), path, Arg::Slot(*tree), 0o755.into(), 0.into(), 0.into()];
        draft.step(op::MAKE_PATH, &args, "make a place to mount", inside.to_string()).keep_in(target);
        attach_to(draft, *tree, target, inside.to_string());
        draft.close(target);
    }
}

fn directory(draft: &mut Draft, name: &str, mode: u32) {
    let path = draft.text(name);
    draft.step(libc::SYS_mkdirat, &[HERE, path, mode.into()], "make", format!("/{name}")).tolerate(libc::EEXIST);
}

fn attach_at(draft: &mut Draft, mount: u8, path: &str, object: &'static str) {
    let path = draft.text(path);
    attach(draft, mount, path, object);
}

pub(crate) fn display(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
