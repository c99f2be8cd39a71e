//! pidfd_open(2) and pidfd_send_signal(2), which nix 0.31 doesn't have.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A pidfd of this very process, by which init learns of our end even while a
/// forked child keeps our sockets open.
pub(crate) fn of_this_process() -> io::Result<OwnedFd> {
    of(std::process::id())
}

/// A pidfd of a process that nobody has reaped; it becomes readable at its end.
pub(crate) fn of(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(result).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, close-on-exec; nobody else has it.
    super::not_standard(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends SIGKILL to the process of a pidfd, and to no later one of the same number.
pub(crate) fn kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain numbers; no siginfo.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The number of a pidfd's process as this process sees it; `None` when it has ended,
/// or is out of sight (pidfd_open(2), "fdinfo").
pub(crate) fn number(pidfd: BorrowedFd<'_>) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let pid: i64 = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
    u32::try_from(pid).ok().filter(|pid| *pid > 0)
}
