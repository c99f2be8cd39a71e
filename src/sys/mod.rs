//! The library's only `unsafe`: one file per kernel interface that nix lacks.
//!
//! # Safety
//! Each function passes to the kernel either plain numbers or the address of a
//! live local variable with its true size, and turns a descriptor that the
//! kernel has just made into an [`OwnedFd`](std::os::fd::OwnedFd) exactly once.

#![allow(unsafe_code)]

pub(crate) mod bpf;
pub(crate) mod capabilities;
pub(crate) mod directory;
pub(crate) mod landlock;
pub(crate) mod mount;
pub(crate) mod pidfd;
pub(crate) mod pipe;
pub(crate) mod prctl;
#[cfg(feature = "tokio")]
pub(crate) mod reactor;
pub(crate) mod rlimit;
pub(crate) mod socket;
pub(crate) mod terminal;
pub(crate) mod write;
pub(crate) mod xattr;

/// The descriptor that a system call has just made, or its error.
fn made(result: libc::c_long) -> std::io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    not_standard(unsafe { std::os::fd::OwnedFd::from_raw_fd(result as i32) })
}

/// The descriptor under a number that isn't a standard stream's. In a host that closed
/// those, the first things that we open for long would stand for them, and
/// [`Stdio::inherit`](crate::Stdio::inherit) would hand init's socket to a workload.
pub(crate) fn not_standard(fd: std::os::fd::OwnedFd) -> std::io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::AsRawFd;
    // std's copies start at 3.
    if fd.as_raw_fd() > 2 { Ok(fd) } else { fd.try_clone() }
}
