//! init's own start: user and mount namespaces that all its sandboxes grow from.
//!
//! An ordinary user's init first makes the *outer* user namespace, in which it
//! may mount. Then every init moves into a mount namespace of its own that holds
//! nothing but `/proc` and a ready-made `/dev`: cloning a sandbox's namespace
//! from that is cheaper than from the host's with its hundred mounts, and it
//! pins none of the host's file systems. The host's namespace stays reachable
//! through a descriptor, which only the outer child of a sandbox uses.

use super::files::{SCRATCH, Tree, attach, new_filesystem, pivot, set_attributes, set_attributes_with};
use super::wire::{AT_FDCWD, Stage, op, slot};
use super::{Area, Arg, Draft, Mark};

/// In which privileges init starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// As root, in the host's user namespace.
    Root,
    /// As an ordinary user with this one uid and gid.
    Single { uid: u32, gid: u32 },
    /// As an ordinary user whose further ids newuidmap and newgidmap write.
    Subordinate,
}

/// Device nodes that every workload may expect (OCI runtime-spec, "Default Devices").
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 5] = [
    ("dev/fd", "/proc/self/fd"),
    ("dev/stdin", "/proc/self/fd/0"),
    ("dev/stdout", "/proc/self/fd/1"),
    ("dev/stderr", "/proc/self/fd/2"),
    ("dev/ptmx", "pts/ptmx"),
];

pub(crate) fn start_plan(start: Start) -> Draft {
    let mut draft = Draft::new();
    draft.stage(Stage::Start);
    draft.step(op::RAISE_FILES, &[], "raise", "the limit on open files");
    draft.area(Area::Namespaces);
    if start != Start::Root {
        draft.step(libc::SYS_unshare, &[libc::CLONE_NEWUSER.into()], "make", "a user namespace");
        draft.area(Area::IdMap);
        match start {
            Start::Single { uid, gid } => {
                write_self(&mut draft, "setgroups", "deny");
                write_self(&mut draft, "uid_map", &format!("0 {uid} 1"));
                write_self(&mut draft, "gid_map", &format!("0 {gid} 1"));
            }
            _ => {
                draft.step(op::AWAIT_MAPS, &[], "wait for", "newuidmap and newgidmap");
                draft.step(libc::SYS_setresgid, &[0.into(), 0.into(), 0.into()], "become", "group 0 of the user namespace");
                draft.step(libc::SYS_setgroups, &[0.into(), 0.into()], "drop", "supplementary groups");
                draft.step(libc::SYS_setresuid, &[0.into(), 0.into(), 0.into()], "become", "user 0 of the user namespace");
            }
        }
        draft.area(Area::Namespaces);
        // A copy of the host's mounts that this user namespace owns. The kernel
        // makes it a slave: what the host mounts and unmounts later still shows.
        draft.step(libc::SYS_unshare, &[libc::CLONE_NEWNS.into()], "make", "a mount namespace");
    }
    let name = draft.text("ns/mnt");
    draft.step(op::SELF_OPEN, &[name], "open", "/proc/self/ns/mnt").keep_in(slot::HOST_MOUNTS);
    let root = draft.text("/");
    draft
        .step(libc::SYS_openat, &[Arg::Value(AT_FDCWD), root, (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC).into()], "open", "/")
        .keep_in(slot::HOST_ROOT);
    draft.step(libc::SYS_unshare, &[libc::CLONE_NEWNS.into()], "make", "a mount namespace");
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    draft.step(libc::SYS_mount, &[0.into(), root, 0.into(), flags.into(), 0.into()], "make private", "/");
    slim_root(&mut draft);
    draft.step(op::SELF_OPEN, &[name], "open", "/proc/self/ns/mnt").keep_in(slot::INIT_MOUNTS);
    draft
}

/// A read-only place in init's root that holds an empty file and an empty directory.
pub(crate) const COVERS: &str = "/covers";
pub(crate) const COVER_FILE: &str = "/covers/file";
pub(crate) const COVER_DIRECTORY: &str = "/covers/directory";

/// A root with nothing but /proc and /dev.
fn slim_root(draft: &mut Draft) {
    let options = [("size", "1m"), ("nr_inodes", "64"), ("mode", "755")];
    let root = new_filesystem(draft, "tmpfs", &options, libc::MOUNT_ATTR_NOSUID);
    let slash = draft.text("/");
    attach(draft, root, slash, "/");
    draft.step(libc::SYS_fchdir, &[Arg::Slot(root)], "enter", "init's root");
    make_directory(draft, "proc", 0o555);
    make_directory(draft, "dev", 0o755);
    make_directory(draft, &SCRATCH[1..], 0o755);
    covers(draft);
    let proc_path = draft.text("/proc");
    let proc = Tree { path: proc_path, recursive: true }.clone_into(draft, "/proc");
    let target = draft.text("proc");
    attach(draft, proc, target, "/proc");

    let options = [("size", "64k"), ("nr_inodes", "32"), ("mode", "755")];
    let dev = new_filesystem(draft, "tmpfs", &options, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC);
    let target = draft.text("dev");
    attach(draft, dev, target, "/dev");
    make_directory(draft, "dev/pts", 0o755);
    make_directory(draft, "dev/shm", 0o1777);
    make_directory(draft, "dev/mqueue", 0o1777);
    for (name, target) in LINKS {
        let (name, target) = (draft.text(name), draft.text(target));
        draft.step(libc::SYS_symlinkat, &[target, Arg::Value(AT_FDCWD), name], "make", "a link in /dev");
    }
    for device in DEVICES {
        let path = format!("/dev/{device}");
        let source = draft.text(&path);
        let node = Tree { path: source, recursive: false }.clone_into(draft, path.clone());
        // The one place where device nodes work; they can't be executed.
        set_attributes(draft, node, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC, path.clone());
        let target = draft.text(&path[1..]);
        draft.step(libc::SYS_mknodat, &[Arg::Value(AT_FDCWD), target, (libc::S_IFREG | 0o644).into(), 0.into()], "make", path.clone());
        attach(draft, node, target, path);
    }
    // Itself only: the nodes in it keep their own attributes.
    let closed = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    set_attributes_with(draft, dev, closed, libc::AT_EMPTY_PATH, "/dev");
    draft.close(dev);
    pivot(draft, root);
    draft.close(root);
}

/// What lies over masked parts of /proc: copies of these mounts.
fn covers(draft: &mut Draft) {
    make_directory(draft, &COVERS[1..], 0o755);
    let options = [("size", "4k"), ("nr_inodes", "4"), ("mode", "755")];
    let closed = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let covers = new_filesystem(draft, "tmpfs", &options, closed);
    let target = draft.text(&COVERS[1..]);
    attach(draft, covers, target, COVERS);
    make_directory(draft, &COVER_DIRECTORY[1..], 0o555);
    let file = draft.text(&COVER_FILE[1..]);
    draft.step(libc::SYS_mknodat, &[Arg::Value(AT_FDCWD), file, (libc::S_IFREG | 0o444).into(), 0.into()], "make", COVER_FILE);
    set_attributes_with(draft, covers, closed | libc::MOUNT_ATTR_RDONLY, libc::AT_EMPTY_PATH, COVERS);
    draft.close(covers);
}

fn make_directory(draft: &mut Draft, name: &'static str, mode: u32) {
    let path = draft.text(name);
    draft.step(libc::SYS_mkdirat, &[Arg::Value(AT_FDCWD), path, mode.into()], "make", name);
}

/// Writes a file of /proc/self that takes everything in one write.
fn write_self(draft: &mut Draft, name: &'static str, contents: &str) {
    let path = draft.text(format!("/proc/self/{name}"));
    let slot = draft.temporary();
    draft.step(libc::SYS_openat, &[Arg::Value(AT_FDCWD), path, (libc::O_WRONLY | libc::O_CLOEXEC).into()], "open", name).keep_in(slot);
    let text = draft.text(contents);
    draft.step(libc::SYS_write, &[Arg::Slot(slot), text, contents.len().into()], "write", name);
    draft.close(slot);
}

#[cfg(test)]
mod tests {
    use super::super::wire::Plan;
    use super::*;

    #[test]
    fn every_start_is_a_valid_plan() {
        for start in [Start::Root, Start::Single { uid: 1000, gid: 1000 }, Start::Subordinate] {
            assert!(Plan::parse(&start_plan(start).encode()).is_some());
        }
    }
}
