//! Writing that never ends the program with a signal: SIGPIPE when a reader is gone,
//! SIGXFSZ when a file grows beyond RLIMIT_FSIZE (which counts files in memory too).
//!
//! Rust programs ignore the first from their start; a C or Python host of this library
//! need not, and nobody ignores the second. There's no flag against them (RWF_NOSIGNAL
//! is for pipes only, from Linux 6.18), so the thread blocks both meanwhile and takes the
//! one that it has caused.

use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// Does `write`; what would have been a signal is its error and nothing else.
pub(crate) fn unharmed<T>(write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let (mut deadly, mut old, mut pending) = (empty(), empty(), empty());
    // SAFETY: three signal sets of our own, initialised by `empty`.
    let blocked = unsafe {
        libc::sigaddset(&mut deadly, libc::SIGPIPE);
        libc::sigaddset(&mut deadly, libc::SIGXFSZ);
        libc::sigpending(&mut pending);
        libc::pthread_sigmask(libc::SIG_BLOCK, &deadly, &mut old) == 0
    };
    let result = write();
    if blocked {
        let caused = match result.as_ref().err().and_then(io::Error::raw_os_error) {
            Some(libc::EPIPE) => Some(libc::SIGPIPE),
            Some(libc::EFBIG) => Some(libc::SIGXFSZ),
            _ => None,
        };
        // One that was pending before is somebody else's, and merges with ours.
        // SAFETY: as above.
        if let Some(signal) = caused.filter(|signal| unsafe { libc::sigismember(&pending, *signal) } == 0) {
            take(signal);
        }
        // SAFETY: as above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, null_mut()) };
    }
    result
}

/// Takes a signal that is blocked, directed at this thread and perhaps pending.
fn take(signal: i32) {
    let (mut only, now) = (empty(), libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: a signal set of our own.
    unsafe { libc::sigaddset(&mut only, signal) };
    // SAFETY: as above; nobody asks for the siginfo.
    while unsafe { libc::sigtimedwait(&only, null_mut(), &now) } == -1 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {}
}

fn empty() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset(3) initialises the set that it's given.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}
