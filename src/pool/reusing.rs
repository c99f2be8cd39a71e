//! Which recipes a pool can use a sandbox of again and again.
//!
//! A sandbox serves again only if nothing shows in it of what it has served. What a command
//! may change must be in the sight of PID 1, or be refused: keyrings, mounts and whatever
//! else outlives processes are refused by the presets of system calls, and need capabilities.

use crate::error::{Error, Result};
use crate::probe::Layer;
use crate::sandbox::Sandbox;

/// An error that says why not.
pub(super) fn fits(sandbox: &Sandbox) -> Result<()> {
    let reasons = [
        (sandbox.capabilities != 0, "with capabilities a command could change what no file shows"),
        (sandbox.nesting, "with nesting a command could leave mounts and namespaces"),
        (
            sandbox.syscalls.allows_more() || sandbox.prefers(Layer::SyscallFilter),
            "it needs the filter of Syscalls::Default or Strict, with nothing more allowed",
        ),
        (sandbox.keep_changes, "changes that are kept are a sandbox's own"),
        (sandbox.has_volumes(), "the lock of a volume is held by one sandbox, and as long as that lives"),
    ];
    match reasons.iter().find(|(holds, _)| *holds) {
        Some((_, why)) => Err(Error::invalid(format!("cannot use a sandbox again: {why}"))),
        None => Ok(()),
    }
}
