//! Extended attributes by descriptor, which nix 0.31 doesn't have.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// fgetxattr(2); `None` if there's none of that name, or none at all here.
pub(crate) fn get(fd: BorrowedFd<'_>, name: &str) -> io::Result<Option<Vec<u8>>> {
    let name = CString::new(name)?;
    // No attribute is larger (XATTR_SIZE_MAX).
    let mut value = vec![0u8; 256];
    loop {
        // SAFETY: a NUL-terminated name and a buffer of our own with its true size.
        let size = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        if let Ok(size) = usize::try_from(size) {
            value.truncate(size);
            return Ok(Some(value));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENODATA | libc::ENOTSUP) => return Ok(None),
            Some(libc::ERANGE) if value.len() < 1 << 16 => value.resize(1 << 16, 0),
            _ => return Err(error),
        }
    }
}
