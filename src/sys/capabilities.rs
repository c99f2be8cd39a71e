//! capget(2): what this thread may do. /proc says the same, forty times slower.

use std::io;

/// `_LINUX_CAPABILITY_VERSION_3`: 64 capabilities, in two words.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Each word has the low or the high half of three sets.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The calling thread's effective set.
pub(crate) fn effective() -> io::Result<u64> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: a header and two words of data of our own, as version 3 has them.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if result == 0 { Ok(u64::from(data[0].effective) | u64::from(data[1].effective) << 32) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_says_what_proc_says() {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("procfs");
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a set");
        assert_eq!(super::effective().expect("a set"), u64::from_str_radix(line.trim(), 16).expect("a number"));
    }
}
