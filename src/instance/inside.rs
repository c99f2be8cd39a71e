//! Steps that the host has done inside, with the rights of the run's user.
//!
//! Not with root's, and never by the host itself: a workload that changes directories
//! into links while a path is being walked can lead it only to where the workload
//! could have gone alone. Whatever the path says stays in the sandbox's root, because
//! the process that walks it has no other.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::time::Duration;

use super::Instance;
use crate::error::{Error, Result};
use crate::plan::wire::{AT_FDCWD, Stage, op, slot};
use crate::plan::{Area, Arg, Draft, Mark, privileges};

/// How long steps inside may take: a bind may lie on a file system that hangs.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// A path inside that makes sense: absolute, and naming something.
pub(super) fn inside(path: &Path) -> Result<&Path> {
    let named = matches!(path.components().next_back(), Some(Component::Normal(_)));
    if path.is_absolute() && named && !path.as_os_str().as_bytes().contains(&0) && path.as_os_str().len() < 4096 {
        return Ok(path);
    }
    Err(Error::invalid(format!("{} can't be a place in the sandbox: it must be an absolute path below /", path.display())))
}

impl Instance {
    /// A plan whose steps have the rights of the run's user.
    pub(super) fn steps(&self) -> Draft {
        let sandbox = self.session.sandbox();
        let (uid, gid) = sandbox.account();
        let mut draft = Draft::new();
        draft.stage(Stage::Inner);
        draft.area(Area::Privileges);
        draft.step(libc::SYS_setresgid, &[gid.into(), gid.into(), gid.into()], "become", "the run's group");
        // Who may send a signal is decided by the real and the saved id, access to files
        // by the effective one. So the workload can't kill this process.
        let shield = self.session.ids.shield(uid).unwrap_or(uid);
        draft.step(libc::SYS_setresuid, &[shield.into(), uid.into(), shield.into()], "become", "the run's user");
        privileges::no_capabilities(&mut draft);
        draft.area(Area::Inside);
        let root = draft.text("/");
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        draft.step(libc::SYS_openat, &[Arg::Value(AT_FDCWD), root, flags.into()], "open", "/").keep_in(slot::ROOT);
        draft
    }

    /// Has steps done inside; the descriptors that they keep.
    pub(super) fn perform(&self, draft: &Draft, fds: &[BorrowedFd<'_>]) -> Result<Vec<Option<OwnedFd>>> {
        self.session.perform(draft, fds, LIMIT)
    }

    /// Opens something inside for reading: nothing is followed in the last place, and
    /// neither a FIFO nor a lease holds it up.
    pub(super) fn open(&self, path: &Path, flags: i32) -> Result<OwnedFd> {
        let mut draft = self.steps();
        let flags = (flags | libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_CLOEXEC) as u64;
        let how = draft.words(&[flags, 0, libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS]);
        let name = draft.text(path.as_os_str().as_bytes());
        let slot = draft.slot();
        let args = [Arg::Slot(slot::ROOT), name, how, 24.into()];
        draft.step(libc::SYS_openat2, &args, "open", path.display().to_string()).keep_in(slot);
        match self.perform(&draft, &[])?.pop() {
            Some(Some(fd)) => Ok(fd),
            _ => Err(Error::invalid("the sandbox passed no descriptor")),
        }
    }

    /// The step that makes a file of what is in a passed descriptor.
    pub(super) fn copy_step(&self, draft: &mut Draft, path: &Path, source: u8, mode: u32) {
        let (uid, gid) = self.session.sandbox().account();
        let name = draft.text(path.as_os_str().as_bytes());
        let args = [name, Arg::Slot(source), 0.into(), mode.into(), uid.into(), gid.into()];
        draft.step(op::COPY, &args, "write", path.display().to_string());
    }
}
