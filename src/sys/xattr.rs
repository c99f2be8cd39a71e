//! Extended attributes of open files, and of links and devices, which can't be opened.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;

/// fsetxattr(2)
pub(crate) fn set(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: a C string and a slice with its length.
    done(unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

/// fremovexattr(2)
pub(crate) fn remove(file: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: a C string.
    done(unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) })
}

/// lsetxattr(2) of `entry` in a directory, without following it.
pub(crate) fn set_at(directory: BorrowedFd<'_>, entry: &CStr, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = path_of(directory, entry);
    // SAFETY: two C strings and a slice with its length.
    done(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

/// llistxattr(2) of `entry` in a directory: names, each with its NUL. None where the
/// file system has no attributes.
pub(crate) fn list_at(directory: BorrowedFd<'_>, entry: &CStr) -> io::Result<Vec<u8>> {
    let path = path_of(directory, entry);
    // SAFETY: a C string; the buffer and its length come from `grown`.
    let names = grown(|buffer, length| unsafe { libc::llistxattr(path.as_ptr(), buffer.cast(), length) });
    match names {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        names => names,
    }
}

/// flistxattr(2): as [`list_at`].
pub(crate) fn list(file: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    // SAFETY: the buffer and its length come from `grown`.
    let names = grown(|buffer, length| unsafe { libc::flistxattr(file.as_raw_fd(), buffer.cast(), length) });
    match names {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        names => names,
    }
}

/// lgetxattr(2) of `entry` in a directory.
pub(crate) fn get_at(directory: BorrowedFd<'_>, entry: &CStr, name: &CStr) -> io::Result<Vec<u8>> {
    let path = path_of(directory, entry);
    // SAFETY: two C strings; the buffer and its length come from `grown`.
    grown(|buffer, length| unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.cast(), length) })
}

/// Leads through the descriptor, so that only the last component can be a link. There
/// are no `*xattrat` calls before Linux 6.13.
fn path_of(directory: BorrowedFd<'_>, entry: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(entry.to_bytes());
    CString::new(path).expect("it was a C string")
}

/// Asks for the size, then for that much.
fn grown(call: impl Fn(*mut u8, usize) -> isize) -> io::Result<Vec<u8>> {
    loop {
        let size = call(null_mut(), 0);
        let size = usize::try_from(size).map_err(|_| io::Error::last_os_error())?;
        let mut value = vec![0; size];
        if size == 0 {
            return Ok(value);
        }
        match usize::try_from(call(value.as_mut_ptr(), size)) {
            Ok(size) => {
                value.truncate(size);
                return Ok(value);
            }
            // It has grown meanwhile.
            Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ERANGE) => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
