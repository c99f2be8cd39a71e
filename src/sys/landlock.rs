//! landlock_create_ruleset(2), for the question which version the kernel has.

use std::io;

/// The kernel's version of Landlock. `ENOSYS` where it was built without, `EOPNOTSUPP`
/// where it's switched off (`lsm=`).
pub(crate) fn abi() -> io::Result<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_long = 1;
    let nothing: libc::c_long = 0;
    // SAFETY: no pointer and plain numbers: with this flag it returns a number and makes
    // nothing.
    let result = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, nothing, LANDLOCK_CREATE_RULESET_VERSION) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}
