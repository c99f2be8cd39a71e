//! What is particular to aarch64: see the x86_64 file, which this one mirrors.
//!
//! # Safety
//! The kernel's aarch64 calling convention: number in x8, arguments in x0 to
//! x5, the result in x0; everything else is preserved.

use core::arch::{asm, global_asm};

global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "bl {main}", "brk #1", main = sym crate::main);

/// Numbers of the system calls that init itself makes: the kernel's asm-generic table.
pub mod nr {
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const PREAD64: usize = 67;
    pub const SENDFILE: usize = 71;
    pub const CLOSE: usize = 57;
    pub const MMAP: usize = 222;
    pub const MUNMAP: usize = 215;
    pub const IOCTL: usize = 29;
    pub const RT_SIGACTION: usize = 134;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const LSEEK: usize = 62;
    pub const GETDENTS64: usize = 61;
    pub const PIPE2: usize = 59;
    pub const SENDMSG: usize = 211;
    pub const RECVMSG: usize = 212;
    pub const EVENTFD2: usize = 19;
    pub const UNSHARE: usize = 97;
    pub const BPF: usize = 280;
    pub const GETSOCKOPT: usize = 209;
    pub const SOCKET: usize = 198;
    pub const SETNS: usize = 268;
    pub const SOCKETPAIR: usize = 199;
    pub const WAIT4: usize = 260;
    pub const KILL: usize = 129;
    pub const FCNTL: usize = 25;
    pub const FCHMOD: usize = 52;
    pub const FCHOWN: usize = 55;
    pub const GETRUSAGE: usize = 165;
    pub const GETPID: usize = 172;
    pub const GETPPID: usize = 173;
    pub const SETSID: usize = 157;
    pub const UMASK: usize = 166;
    pub const PTRACE: usize = 117;
    pub const GETPRIORITY: usize = 141;
    pub const SETPRIORITY: usize = 140;
    pub const SCHED_SETSCHEDULER: usize = 119;
    pub const SCHED_YIELD: usize = 124;
    pub const SCHED_GETSCHEDULER: usize = 120;
    pub const PWRITE64: usize = 68;
    pub const PRCTL: usize = 167;
    pub const CLOCK_GETTIME: usize = 113;
    pub const EXIT_GROUP: usize = 94;
    pub const EPOLL_CTL: usize = 21;
    pub const OPENAT: usize = 56;
    pub const MKDIRAT: usize = 34;
    pub const FCHOWNAT: usize = 54;
    pub const UNLINKAT: usize = 35;
    pub const PPOLL: usize = 73;
    pub const EPOLL_PWAIT: usize = 22;
    pub const SIGNALFD4: usize = 74;
    pub const EPOLL_CREATE1: usize = 20;
    pub const DUP3: usize = 24;
    pub const PRLIMIT64: usize = 261;
    pub const EXECVE: usize = 221;
    pub const FSETXATTR: usize = 7;
    pub const STATFS: usize = 43;
    pub const FSTATFS: usize = 44;
    pub const MADVISE: usize = 233;
    pub const RT_SIGPENDING: usize = 136;
    pub const SCHED_GETAFFINITY: usize = 123;
    pub const SCHED_GETATTR: usize = 275;
    pub const IOPRIO_GET: usize = 31;
    pub const STATX: usize = 291;
    pub const PIDFD_OPEN: usize = 434;
    pub const CLONE3: usize = 435;
    pub const CLOSE_RANGE: usize = 436;
    pub const OPENAT2: usize = 437;
    pub const OPEN_TREE: usize = 428;
    pub const READLINKAT: usize = 78;
    pub const SYMLINKAT: usize = 36;
    pub const MKNODAT: usize = 33;
    pub const UTIMENSAT: usize = 88;
    pub const FGETXATTR: usize = 10;
    pub const FLISTXATTR: usize = 13;
    pub const FCHMODAT: usize = 53;
    pub const MOUNT_SETATTR: usize = 442;
    pub const LANDLOCK_ADD_RULE: usize = 445;
}

/// A system call with up to six arguments; a negative result is an errno.
///
/// # Safety
/// As the system call demands of its arguments.
pub unsafe fn syscall(nr: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the registers follow the convention above.
    unsafe {
        asm!(
            "svc #0",
            in("x8") nr, inlateout("x0") a[0] as isize => result,
            in("x1") a[1], in("x2") a[2], in("x3") a[3], in("x4") a[4], in("x5") a[5],
            options(nostack),
        );
    }
    result
}

/// `clone3` whose child calls `entry(argument)` on the stack that `args` names.
///
/// # Safety
/// `args` points to a valid `clone_args` of `size` bytes with a stack; `entry`
/// never returns.
pub unsafe fn clone_onto(args: *const u64, size: usize, entry: extern "C" fn(usize) -> !, argument: usize) -> isize {
    let result: isize;
    // SAFETY: in the child only x0 and sp differ from the parent.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x10",
            "blr x9",
            "brk #1",
            "2:",
            in("x8") nr::CLONE3, inlateout("x0") args as isize => result, in("x1") size,
            in("x9") entry, in("x10") argument,
            lateout("x30") _,
        );
    }
    result
}

/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's ranges are valid; written in assembly so that the
    // compiler can't turn the loop into a call of itself.
    unsafe {
        asm!(
            "cbz {n}, 3f",
            "2: ldrb {byte:w}, [{from}], #1",
            "strb {byte:w}, [{to}], #1",
            "subs {n}, {n}, #1",
            "b.ne 2b",
            "3:",
            n = inout(reg) n => _, from = inout(reg) from => _, to = inout(reg) to => _, byte = out(reg) _, options(nostack)
        );
    }
    to
}

/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    let mut i = 0;
    while i < n {
        // SAFETY: i < n, and the range has n bytes.
        unsafe { to.add(i).write_volatile(byte as u8) };
        i += 1;
    }
    to
}
