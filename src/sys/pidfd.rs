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
/// or is out of sight (pidfd_open(2), "fdinfo"). An error if that can't be seen now, for
/// want of a descriptor for example.
pub(crate) fn number(pidfd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let pid: Option<i64> = match asked(pidfd) {
        Some(pid) => Some(pid),
        None => match std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())) {
            Ok(info) => info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok()),
            // No /proc, or not this one's.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        },
    };
    Ok(pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0))
}

/// The same by PIDFD_GET_INFO (ioctl_pidfd, Linux 6.13), a tenth of the work of the file;
/// `None` where the kernel doesn't know it, or the process has ended.
fn asked(pidfd: BorrowedFd<'_>) -> Option<i64> {
    /// The first version of struct pidfd_info: a mask, the id of its control group, the pid
    /// (u64, u64, u32), and what isn't of interest here.
    type Info = [u32; 16];
    const PIDFD_GET_INFO: libc::c_ulong = 0xc000_ff0b | ((size_of::<Info>() as libc::c_ulong) << 16);
    let mut info: Info = [0; 16];
    // SAFETY: the address of a live local of the size that the request names.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    (result == 0).then_some(i64::from(info[4]))
}
