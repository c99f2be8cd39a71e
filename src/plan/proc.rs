//! Steps that close parts of /proc.
//!
//! The lists are those of the OCI runtime-spec's default configuration (`maskedPaths`
//! and `readonlyPaths` as runc, containerd and Docker fill them), without /sys, which
//! a sandbox doesn't have. Much of it is closed to an unprivileged id anyway; but
//! /proc/sys belongs to the sandbox's root in part, and what the rest tells of the
//! machine (keys of other users, interrupts, timers) is none of a workload's business.

use super::files::{BASE, Tree, attach, set_attributes};
use super::start::{COVER_DIRECTORY, COVER_FILE};
use super::{Area, Draft, Mark};

/// Hidden: an empty file or directory lies over it. (Not `/dev/null` as with
/// runc: that would be a device node outside of /dev.).
const MASKED: &[(&str, Kind)] = &[
    ("acpi", Kind::Directory),
    ("asound", Kind::Directory),
    ("interrupts", Kind::File),
    ("kcore", Kind::File),
    ("keys", Kind::File),
    ("latency_stats", Kind::File),
    ("sched_debug", Kind::File),
    ("scsi", Kind::Directory),
    ("timer_list", Kind::File),
    ("timer_stats", Kind::File),
];

/// Shown, but not to be written.
const READ_ONLY: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
}

/// Which of them this kernel has: asked once, so that runs don't ask for each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Present(Vec<&'static str>);

impl Present {
    pub(crate) fn look() -> Present {
        let all = MASKED.iter().map(|(name, _)| *name).chain(READ_ONLY.iter().copied());
        // Whatever else is missing, there's no procfs in full without this one; a
        // container may hide some, and then all of them are tried.
        let full = std::fs::exists("/proc/sys/kernel").unwrap_or(false);
        Present(all.filter(|name| !full || std::fs::symlink_metadata(format!("/proc/{name}")).is_ok()).collect())
    }

    #[cfg(test)]
    pub(crate) fn all() -> Present {
        Present(MASKED.iter().map(|(name, _)| *name).chain(READ_ONLY.iter().copied()).collect())
    }
}

/// Copies of what will lie over the masked places; taken as long as init's root is in
/// view.
pub(crate) fn covers(draft: &mut Draft, present: &Present, first_process: bool) -> Vec<(&'static str, u8)> {
    draft.area(Area::Proc);
    let masked = MASKED.iter().filter(|(name, _)| present.0.contains(name));
    // It counts what all have used that it has reaped.
    let first = first_process.then_some(&("1", Kind::Directory));
    masked
        .chain(first)
        .map(|(name, kind)| {
            let path = draft.text(if *kind == Kind::File { COVER_FILE } else { COVER_DIRECTORY });
            let cover = Tree { path, recursive: false }.clone_into(draft, "a mask");
            (*name, cover)
        })
        .collect()
}

/// Masks and closes, when procfs is the working directory.
pub(crate) fn close(draft: &mut Draft, present: &Present, covers: &[(&'static str, u8)]) {
    draft.area(Area::Proc);
    for (name, cover) in covers {
        let path = draft.text(*name);
        attach(draft, *cover, path, format!("a mask over /proc/{name}"));
        tolerate_absence(draft);
        draft.close(*cover);
    }
    for name in READ_ONLY.iter().filter(|name| present.0.contains(name)) {
        let object = format!("/proc/{name}");
        let path = draft.text(*name);
        let tree = Tree { path, recursive: false }.clone_into(draft, object.clone());
        tolerate_absence(draft);
        set_attributes(draft, tree, BASE | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOEXEC, object.clone());
        let path = draft.text(*name);
        attach(draft, tree, path, format!("{object} read-only"));
        draft.close(tree);
    }
}

/// What isn't there needs no mask.
fn tolerate_absence(draft: &mut Draft) {
    if let Some(step) = draft.steps.last_mut() {
        step.tolerate(libc::ENOENT);
    }
}
