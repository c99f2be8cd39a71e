//! write(2) that never ends the program with SIGPIPE.
//!
//! Rust programs ignore that signal from their start; a C or Python host of this
//! library need not. There's no flag for pipes before Linux 6.18 (RWF_NOSIGNAL), so
//! the thread blocks the signal meanwhile and takes the one that it has caused.

use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// Like `file.write`; a reader that is gone is `BrokenPipe` and nothing else.
pub(crate) fn write(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    let (mut pipe, mut old, mut pending) = (empty(), empty(), empty());
    // SAFETY: three signal sets of our own, initialised by `empty`.
    let blocked = unsafe {
        libc::sigaddset(&mut pipe, libc::SIGPIPE);
        // One that was pending before is somebody else's, and merges with ours.
        libc::sigpending(&mut pending);
        libc::sigismember(&pending, libc::SIGPIPE) == 0 && libc::pthread_sigmask(libc::SIG_BLOCK, &pipe, &mut old) == 0
    };
    let result = file.write(bytes);
    if blocked {
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: as above; the signal is directed at this thread and pending.
            while unsafe { libc::sigtimedwait(&pipe, null_mut(), &now) } == -1
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
        // SAFETY: as above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, null_mut()) };
    }
    result
}

fn empty() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset(3) initialises the set that it's given.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}
