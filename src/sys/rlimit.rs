//! prlimit(2) of another process, which nix doesn't have.

use std::io;

/// The soft and the hard limit of a process, by the kernel's number of the resource.
pub(crate) fn of(pid: u32, resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: nothing is set, and what's told goes to a live local of the right type.
    let result = unsafe { libc::prlimit64(pid as libc::pid_t, resource, std::ptr::null(), &raw mut limit) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((limit.rlim_cur, limit.rlim_max)) }
}
