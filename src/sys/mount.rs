//! fsopen(2) and its like.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::made;

const CREATE: libc::c_uint = 6;
const SET_FD: libc::c_uint = 5;

/// A file system that is being configured.
pub(crate) struct Context(OwnedFd);

impl Context {
    pub(crate) fn open(kind: &CStr) -> io::Result<Context> {
        // SAFETY: the address of a string that lives, and a number.
        made(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) }).map(Context)
    }

    /// Sets an option to a file (FSCONFIG_SET_FD).
    pub(crate) fn set(&self, option: &CStr, file: BorrowedFd<'_>) -> io::Result<()> {
        self.configure(SET_FD, option.as_ptr(), file.as_raw_fd())
    }

    /// Makes it.
    pub(crate) fn create(&self) -> io::Result<()> {
        self.configure(CREATE, std::ptr::null(), 0)
    }

    fn configure(&self, command: libc::c_uint, option: *const libc::c_char, number: i32) -> io::Result<()> {
        let nothing = std::ptr::null::<libc::c_void>();
        // SAFETY: numbers, no addresses but that of a string that the caller has borrowed.
        match unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, option, nothing, number) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its root, attached nowhere.
    pub(crate) fn mount(&self) -> io::Result<OwnedFd> {
        // SAFETY: numbers.
        made(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), libc::FSMOUNT_CLOEXEC, 0) })
    }
}

/// A mount of what's below this directory, attached nowhere.
pub(crate) fn cloned(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: numbers, and the address of a string that lives.
    made(unsafe { libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), c"".as_ptr(), flags) })
}
