//! What prctl(2) tells of this process; nothing here changes anything.

use std::io;

// libc has these for x86 only.
const PR_GET_SPECULATION_CTRL: i32 = 52;
pub(crate) const PR_SET_SPECULATION_CTRL: i32 = 53;

fn ask(option: libc::c_int, arguments: [libc::c_ulong; 4]) -> io::Result<i32> {
    let [a, b, c, d] = arguments;
    // SAFETY: plain numbers, and for PR_SCHED_CORE the address of the caller's variable.
    match unsafe { libc::prctl(option, a, b, c, d) } {
        -1 => Err(io::Error::last_os_error()),
        answer => Ok(answer),
    }
}

/// Whether core scheduling works: `ENODEV` where no core runs two threads, `EINVAL`
/// where the kernel was built without (PR_SCHED_CORE of prctl(2)).
pub(crate) fn core_scheduling() -> io::Result<()> {
    const PR_SCHED_CORE: libc::c_int = 62;
    const PR_SCHED_CORE_GET: libc::c_ulong = 0;
    const ONE_THREAD: libc::c_ulong = 0;
    let mut cookie = 0u64;
    ask(PR_SCHED_CORE, [PR_SCHED_CORE_GET, 0, ONE_THREAD, &raw mut cookie as libc::c_ulong]).map(drop)
}

/// The state of a kind of speculation (PR_GET_SPECULATION_CTRL of prctl(2)).
pub(crate) fn speculation(kind: u32) -> io::Result<i32> {
    ask(PR_GET_SPECULATION_CTRL, [kind.into(), 0, 0, 0])
}
