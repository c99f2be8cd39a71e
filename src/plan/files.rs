//! Steps that build the root file system.
//!
//! The outer child opens sources in the host's mount namespace and turns them
//! into detached mounts; with an image it also builds the overlay there, because
//! a lower layer that was opened outside is EPERM for an overlay mounted inside,
//! while a finished mount from outside can be attached. PID 1 attaches, pivots,
//! and completes the tree when nothing of the host is in reach any more.
//!
//! Everything writable of a sandbox lies in one tmpfs, the *scratch*: the
//! overlay's upper directory (or, with the host's /usr, the root itself),
//! `/tmp` and `/dev/shm`. So one size is the disk limit, and all of it is gone
//! with the last process.

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::message::Report;
use super::wire::{AT_FDCWD, op, slot};
use super::{Area, Arg, Draft, Mark};
use crate::image::{HostLayout, Root};
use crate::probe::Layer;
use crate::sandbox::{Mount, MountKind, Sandbox};
use crate::store::Chain;

const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
/// Where init's root has room for a scratch, in the outer child's copy of it.
pub(crate) const SCRATCH: &str = "/mnt";
const HERE: Arg = Arg::Value(AT_FDCWD);
/// nosuid and nodev hold for every mount that a workload sees.
const BASE: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

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
    for (key, value) in options {
        let object = format!("{kind} option {key}={value}");
        let (key, value) = (draft.text(key), draft.text(value));
        draft.step(libc::SYS_fsconfig, &[Arg::Slot(context), FSCONFIG_SET_STRING.into(), key, value, 0.into()], "set", object);
    }
    draft.step(libc::SYS_fsconfig, &[Arg::Slot(context), FSCONFIG_CMD_CREATE.into(), 0.into(), 0.into(), 0.into()], "create", kind);
    draft.step(libc::SYS_fsmount, &[Arg::Slot(context), libc::FSMOUNT_CLOEXEC.into(), attributes.into()], "mount", kind).keep_in(slot);
    draft.close(context);
}

/// Attaches a detached mount at a path.
pub(crate) fn attach(draft: &mut Draft, mount: u8, path: Arg, object: impl Into<Cow<'static, str>>) {
    let args = [Arg::Slot(mount), Draft::EMPTY, HERE, path, libc::MOVE_MOUNT_F_EMPTY_PATH.into()];
    draft.step(libc::SYS_move_mount, &args, "mount", object);
}

/// mount_setattr(2) on a detached tree, submounts included. Propagation from the
/// host ends here. `ids` is the user namespace of an idmapped mount.
pub(crate) fn set_attributes(draft: &mut Draft, mount: u8, set: u64, ids: Option<(u8, bool)>, object: impl Into<Cow<'static, str>>) {
    let object = object.into();
    set_attributes_with(draft, mount, set, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, object.clone());
    if let Some((namespace, prefer)) = ids {
        // Apart from the others, so that a file system without idmapped mounts
        // can be told from one that refuses read-only.
        let area = std::mem::replace(&mut draft.area, Area::IdMappedMount);
        draft.step(op::ID_MAP, &[Arg::Slot(mount), Arg::Slot(namespace)], "map the owners of", object).layer(Layer::IdMappedMounts, prefer);
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
}

/// How ids are mapped on mounts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owners {
    /// Slot of the sandbox's user namespace, if mounts can be idmapped.
    pub(crate) namespace: Option<u8>,
    /// The caller goes on without.
    pub(crate) prefer: bool,
    /// An ordinary user: overlayfs keeps its marks in `user.*` attributes.
    pub(crate) ordinary: bool,
    /// The sandbox's root in the numbers of the outer stage, if an image may belong
    /// to ids that don't exist inside: an ordinary user's, or one not idmapped.
    pub(crate) substitute: Option<u32>,
}

/// Outer stage: everything that needs the host's files.
pub(crate) fn outer<'a>(draft: &mut Draft, sandbox: &'a Sandbox, owners: Owners) -> Outside<'a> {
    let mut outside = Outside { binds: Vec::new(), shm: None, parts: Vec::new() };
    draft.area(Area::Mount);
    draft.step(libc::SYS_setns, &[Arg::Slot(slot::HOST_MOUNTS), libc::CLONE_NEWNS.into()], "look at", "the host's mounts");
    draft.step(libc::SYS_fchdir, &[Arg::Slot(slot::HOST_ROOT)], "enter", "the host's root");
    let dot = draft.text(".");
    draft.step(libc::SYS_chroot, &[dot], "enter", "the host's root");
    let ids = owners.namespace.map(|namespace| (namespace, owners.prefer));
    for mount in sandbox.sorted_mounts() {
        let MountKind::Bind { host, writable } = &mount.kind else { continue };
        let name = display(host);
        let path = draft.text(host.as_os_str().as_bytes());
        let tree = Tree { path, recursive: true }.clone_into(draft, name.clone());
        let read_only = if *writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
        set_attributes(draft, tree, BASE | read_only, ids, name);
        outside.binds.push(Prepared { mount, slot: tree });
    }
    draft.area(Area::Image);
    match &sandbox.root.root {
        Root::Host(layout) => {
            for part in &layout.parts {
                // Not idmapped: seen by the sandbox, the host's files belong to
                // nobody, so that its root can't read what only the host's may.
                let path = draft.text(part.host.as_bytes());
                let tree = Tree { path, recursive: true }.clone_into(draft, part.host.clone());
                set_attributes(draft, tree, BASE | libc::MOUNT_ATTR_RDONLY, None, part.host.clone());
                outside.parts.push((part.inside.as_str(), tree));
            }
        }
        Root::Dir(path) => outside.shm = Some(overlay(draft, sandbox, &Lower { path, chain: None }, owners)),
        Root::Layers(image) => {
            let lower = Lower { path: image.store_path(), chain: Some(image.chain()) };
            outside.shm = Some(overlay(draft, sandbox, &lower, owners));
        }
    }
    outside
}

/// The read-only side of an overlay.
struct Lower<'a> {
    /// The layer itself or, with a chain, the store that holds it.
    path: &'a Path,
    chain: Option<&'a Chain>,
}

impl Lower<'_> {
    /// Value of the option `lowerdir`, the topmost layer first, from a working
    /// directory that [`enter`](Self::enter) makes. mount(2) takes 4,095 bytes of
    /// options: 500 layers, the most that overlayfs stacks, need 1,889 of them.
    fn names(&self) -> String {
        match self.chain {
            None => ".".into(),
            Some(chain) => (0..chain.layers).map(|i| i.to_string()).collect::<Vec<_>>().join(":"),
        }
    }

    /// Enters the directory that has the layers under these names.
    fn enter(&self, draft: &mut Draft, object: &str) {
        let path = match self.chain {
            None => draft.text("lower"),
            Some(chain) => draft.text(format!("lower/{}", chain.directory)),
        };
        draft.step(libc::SYS_chdir, &[path], "find the layers of", object.to_string());
    }

    /// What the new root directory is to look like.
    fn pattern(&self) -> String {
        self.chain.map_or_else(|| ".".into(), |chain| chain.root.to_string())
    }
}

/// The scratch, the lower layers and the overlay over both; returns `/dev/shm`.
fn overlay(draft: &mut Draft, sandbox: &Sandbox, lower: &Lower<'_>, owners: Owners) -> u8 {
    let name = display(lower.path);
    let directory = draft.temporary();
    let path = draft.text(lower.path.as_os_str().as_bytes());
    // Not O_PATH: a directory that this user can't read is told here.
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    draft.step(libc::SYS_openat, &[HERE, path, flags.into()], "open the root file system", name.clone()).keep_in(directory);
    // One mount for however many layers a store has: overlayfs takes directories in
    // it as layers, and each keeps its id map.
    let tree = draft.temporary();
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    draft
        .step(libc::SYS_open_tree, &[Arg::Slot(directory), Draft::EMPTY, flags.into()], "open the root file system", name.clone())
        .keep_in(tree);
    let ids = owners.namespace.map(|namespace| (namespace, owners.prefer));
    set_attributes(draft, tree, BASE | libc::MOUNT_ATTR_RDONLY, ids, name.clone());

    // overlayfs wants its layers attached in the caller's mount namespace
    // (before Linux 6.15), so this child takes a copy of init's small one.
    draft.area(Area::Overlay);
    draft.step(libc::SYS_setns, &[Arg::Slot(slot::INIT_MOUNTS), libc::CLONE_NEWNS.into()], "return to", "init's mounts");
    draft.step(libc::SYS_unshare, &[libc::CLONE_NEWNS.into()], "make", "a mount namespace");
    let scratch = draft.temporary();
    scratch_into(draft, scratch, sandbox);
    let path = draft.text(SCRATCH);
    attach(draft, scratch, path, "the writable layer");
    draft.step(libc::SYS_fchdir, &[Arg::Slot(scratch)], "enter", "the writable layer");
    for (directory, mode) in [("lower", 0o700), ("upper", 0o755), ("work", 0o700), ("shm", 0o1777)] {
        let path = draft.text(directory);
        draft.step(libc::SYS_mkdirat, &[HERE, path, mode.into()], "make", "the writable layer");
    }
    let path = draft.text("lower");
    attach(draft, tree, path, name.clone());
    let upper = draft.temporary();
    let path = draft.text("upper");
    draft.step(libc::SYS_openat, &[HERE, path, (libc::O_DIRECTORY | libc::O_CLOEXEC).into()], "open", "the writable layer").keep_in(upper);
    if owners.ordinary {
        draft.area(Area::UserXattr);
        draft.step(op::USER_XATTR, &[Arg::Slot(upper)], "keep overlayfs attributes in", "a tmpfs");
        draft.area(Area::Overlay);
    }
    if let Some(root) = owners.substitute {
        // Directories whose owner doesn't exist inside can be neither written nor
        // copied up. So those that every run writes to stand in the upper layer from
        // the start, owned by the sandbox's root; overlayfs merges them with the
        // image's.
        for (directory, mode) in [("upper", None), ("upper/etc", Some(0o755)), ("upper/tmp", Some(0o1777))] {
            let path = draft.text(directory);
            if let Some(mode) = mode {
                draft.step(libc::SYS_mkdirat, &[HERE, path, Arg::from(mode)], "make", "the writable layer");
            }
            draft.step(libc::SYS_fchownat, &[HERE, path, root.into(), root.into(), 0.into()], "own", "the writable layer");
        }
    }
    lower.enter(draft, &name);
    let path = draft.text(lower.pattern());
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    draft.step(libc::SYS_openat, &[HERE, path, flags.into()], "open the root directory of", name.clone()).keep_in(directory);
    let same_owner = u32::from(owners.substitute.is_none());
    draft.step(op::LIKE, &[Arg::Slot(directory), Arg::Slot(upper), same_owner.into()], "copy the owner and mode of", name.clone());
    let mut options = format!("lowerdir={},upperdir={SCRATCH}/upper,workdir={SCRATCH}/work", lower.names());
    // An image may carry overlayfs's own attributes. Redirects among them could
    // lead into directories that its layers keep closed (many kernels follow
    // them unless told otherwise).
    options.push_str(if owners.ordinary { ",userxattr" } else { ",redirect_dir=nofollow,metacopy=off,index=off" });
    overlay_filesystem(draft, &options);
    draft.step(libc::SYS_fchdir, &[Arg::Slot(scratch)], "enter", "the writable layer");
    let shm = draft.text("shm");
    let shm = Tree { path: shm, recursive: false }.clone_into(draft, "/dev/shm");
    set_attributes(draft, shm, BASE | libc::MOUNT_ATTR_NOEXEC, None, "/dev/shm");
    if sandbox.keep_changes {
        draft.step(op::SHOW, &[Arg::Slot(upper), Report::UPPER.into()], "show the host", "the writable layer");
    }
    for slot in [directory, tree, scratch, upper] {
        draft.close(slot);
    }
    shm
}

/// The overlay as a detached mount in [`slot::ROOT`].
///
/// By mount(2), because fsconfig(2) takes 255 bytes of a value, which are some 80
/// layers, and several values only from Linux 6.7 on (`lowerdir+`).
fn overlay_filesystem(draft: &mut Draft, options: &str) {
    let (name, place, text) = (draft.text("overlay"), draft.text(SCRATCH), draft.text(options));
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    draft.step(libc::SYS_mount, &[name, place, name, flags.into(), text], "mount", "the overlay").layer(Layer::Overlay, false);
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    draft.step(libc::SYS_open_tree, &[HERE, place, flags.into()], "open", "the overlay").keep_in(slot::ROOT);
}

/// The tmpfs that holds all that a workload writes.
fn scratch_into(draft: &mut Draft, slot: u8, sandbox: &Sandbox) {
    let (size, inodes) = (sandbox.writable.to_string(), sandbox.writable_files.to_string());
    new_filesystem_into(draft, slot, "tmpfs", &[("size", &size), ("nr_inodes", &inodes), ("mode", "755")], BASE);
}

/// Inner stage, as long as the outer child is busy: PID 1 moves from init's small root
/// to its own procfs; returns the slot of `/dev`.
///
/// Detaching a root waits for a grace period of the kernel (synchronize_rcu_expedited
/// in namespace_unlock), some 50 us on an idle machine and milliseconds on a busy one.
/// Here PID 1 would wait anyway. The final pivot then needs no umount: procfs, as the
/// old root, is put where it belongs.
pub(crate) fn alone(draft: &mut Draft) -> u8 {
    draft.area(Area::Proc);
    // While init's /proc is still in view: the kernel mounts procfs in a user
    // namespace only where one is visible in full already.
    let proc = draft.temporary();
    new_filesystem_into(draft, proc, "proc", &[], BASE | libc::MOUNT_ATTR_NOEXEC);
    draft.area(Area::Mount);
    let path = draft.text("/dev");
    let dev = Tree { path, recursive: true }.clone_into(draft, "/dev");
    let slash = draft.text("/");
    attach(draft, proc, slash, "/proc");
    pivot(draft, proc);
    draft.close(proc);
    dev
}

/// Inner stage: from detached mounts to a root with everything in its place.
pub(crate) fn inner(draft: &mut Draft, sandbox: &Sandbox, outside: &Outside<'_>, dev: u8, terminal_group: bool) {
    draft.area(Area::Mount);
    let mut options = vec![("ptmxmode", "0666"), ("mode", "0620")];
    if terminal_group {
        options.push(("gid", "5"));
    }
    let pts = new_filesystem(draft, "devpts", &options, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC);

    if outside.shm.is_none() {
        scratch_into(draft, slot::ROOT, sandbox);
    }
    let slash = draft.text("/");
    attach(draft, slot::ROOT, slash, "the root");
    draft.step(libc::SYS_fchdir, &[Arg::Slot(slot::ROOT)], "enter", "the new root");
    for (name, mode) in [("proc", 0o555), ("dev", 0o755), ("tmp", 0o1777)] {
        directory(draft, name, mode);
    }
    let shm = outside.shm.unwrap_or_else(|| hidden_shm(draft));
    // The old root, procfs, becomes /proc. pivot_root follows links, so an image's link
    // of that name is refused before.
    let (place, path) = (draft.temporary(), draft.text("proc"));
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    draft.step(libc::SYS_openat, &[HERE, path, flags.into()], "mount", "/proc").keep_in(place);
    draft.close(place);
    let (dot, proc) = (draft.text("."), draft.text("proc"));
    draft.step(libc::SYS_pivot_root, &[dot, proc], "pivot to", "the new root");

    // From here on "/" is the new root, and paths can't leave it.
    if let Root::Host(layout) = &sandbox.root.root {
        host_tree(draft, layout, outside);
    }
    let (uid, gid) = sandbox.account();
    if sandbox.makes_home() {
        make_path(draft, Path::new(sandbox.home()), 0o700, (uid, gid));
    }
    for directory in sandbox.image_directories() {
        make_path(draft, directory, 0o755, (0, 0));
    }
    attach_at(draft, dev, "dev", "/dev");
    attach_at(draft, pts, "dev/pts", "/dev/pts");
    attach_at(draft, shm, "dev/shm", "/dev/shm");
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
                let source = new_filesystem(draft, "tmpfs", &[("size", &size), ("nr_inodes", &inodes), ("mode", "1777")], BASE);
                (source, 0.into())
            }
        };
        let target = draft.temporary();
        let path = draft.text(mount.inside.as_os_str().as_bytes());
        draft
            .step(
                op::MAKE_PATH,
                &[Arg::Slot(slot::ROOT), path, kind, 0o755.into(), uid.into(), gid.into()],
                "make a place to mount",
                name.clone(),
            )
            .keep_in(target);
        let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
        draft.step(libc::SYS_move_mount, &[Arg::Slot(source), Draft::EMPTY, Arg::Slot(target), Draft::EMPTY, flags.into()], "mount", name);
        draft.close(target);
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
    set_attributes(draft, shm, BASE | libc::MOUNT_ATTR_NOEXEC, None, "/dev/shm");
    shm
}

/// The directories, links and mounts of the host's root.
fn host_tree(draft: &mut Draft, layout: &HostLayout, outside: &Outside<'_>) {
    for (name, mode) in &layout.directories {
        directory(draft, name, *mode);
    }
    for (name, target) in &layout.links {
        let (path, target) = (draft.text(name), draft.text(target));
        draft.step(libc::SYS_symlinkat, &[target, HERE, path], "make", format!("/{name}"));
    }
    for (inside, tree) in &outside.parts {
        let target = draft.temporary();
        let path = draft.text(inside);
        let args = [Arg::Slot(slot::ROOT), path, Arg::Slot(*tree), 0o755.into(), 0.into(), 0.into()];
        draft.step(op::MAKE_PATH, &args, "make a place to mount", inside.to_string()).keep_in(target);
        let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
        draft.step(
            libc::SYS_move_mount,
            &[Arg::Slot(*tree), Draft::EMPTY, Arg::Slot(target), Draft::EMPTY, flags.into()],
            "mount",
            inside.to_string(),
        );
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
