//! What is particular to x86_64: entry, system calls, a clone that runs on a
//! stack of its own, and the copying and filling of memory.
//!
//! # Safety
//! The kernel's x86_64 calling convention: number in rax, arguments in rdi,
//! rsi, rdx, r10, r8, r9; rcx and r11 are clobbered, the rest is preserved.

use core::arch::{asm, global_asm};

// The kernel enters with a stack aligned to 16 bytes; `call` makes that what the
// ABI promises to a function.
global_asm!(".globl _start", "_start:", "xor %ebp, %ebp", "and $-16, %rsp", "call {main}", "ud2", main = sym crate::main, options(att_syntax));

/// Numbers of the system calls that init itself makes.
pub mod nr {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const PREAD64: usize = 17;
    pub const SENDFILE: usize = 40;
    pub const CLOSE: usize = 3;
    pub const MMAP: usize = 9;
    pub const MUNMAP: usize = 11;
    pub const IOCTL: usize = 16;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const LSEEK: usize = 8;
    pub const GETDENTS64: usize = 217;
    pub const PIPE2: usize = 293;
    pub const SENDMSG: usize = 46;
    pub const RECVMSG: usize = 47;
    pub const BPF: usize = 321;
    pub const GETSOCKOPT: usize = 55;
    pub const SOCKET: usize = 41;
    pub const SOCKETPAIR: usize = 53;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const FCNTL: usize = 72;
    pub const FCHMOD: usize = 91;
    pub const FCHOWN: usize = 93;
    pub const GETRUSAGE: usize = 98;
    pub const GETPID: usize = 39;
    pub const GETPPID: usize = 110;
    pub const SETSID: usize = 112;
    pub const UMASK: usize = 95;
    pub const PTRACE: usize = 101;
    pub const GETPRIORITY: usize = 140;
    pub const SETPRIORITY: usize = 141;
    pub const SCHED_SETSCHEDULER: usize = 144;
    pub const SCHED_YIELD: usize = 24;
    pub const SCHED_GETSCHEDULER: usize = 145;
    pub const PWRITE64: usize = 18;
    pub const PRCTL: usize = 157;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
    pub const EPOLL_CTL: usize = 233;
    pub const OPENAT: usize = 257;
    pub const MKDIRAT: usize = 258;
    pub const FCHOWNAT: usize = 260;
    pub const UNSHARE: usize = 272;
    pub const SETNS: usize = 308;
    pub const UNLINKAT: usize = 263;
    pub const PPOLL: usize = 271;
    pub const EPOLL_PWAIT: usize = 281;
    pub const SIGNALFD4: usize = 289;
    pub const EVENTFD2: usize = 290;
    pub const EPOLL_CREATE1: usize = 291;
    pub const DUP3: usize = 292;
    pub const PRLIMIT64: usize = 302;
    pub const EXECVE: usize = 59;
    pub const FSETXATTR: usize = 190;
    pub const STATFS: usize = 137;
    pub const FSTATFS: usize = 138;
    pub const MADVISE: usize = 28;
    pub const RT_SIGPENDING: usize = 127;
    pub const SCHED_GETAFFINITY: usize = 204;
    pub const SCHED_GETATTR: usize = 315;
    pub const IOPRIO_GET: usize = 252;
    pub const STATX: usize = 332;
    pub const PIDFD_OPEN: usize = 434;
    pub const CLONE3: usize = 435;
    pub const CLOSE_RANGE: usize = 436;
    pub const OPENAT2: usize = 437;
    pub const OPEN_TREE: usize = 428;
    pub const READLINKAT: usize = 267;
    pub const SYMLINKAT: usize = 266;
    pub const MKNODAT: usize = 259;
    pub const UTIMENSAT: usize = 280;
    pub const FGETXATTR: usize = 193;
    pub const FLISTXATTR: usize = 196;
    pub const FCHMODAT: usize = 268;
    pub const MOUNT_SETATTR: usize = 442;
    pub const LANDLOCK_ADD_RULE: usize = 445;
}

/// A system call with up to six arguments; a negative result is an errno.
///
/// # Safety
/// As the system call demands of its arguments.
pub unsafe fn syscall(nr: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the registers follow the convention above; memory may be read and
    // written by the kernel, which `asm!` assumes by default.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr as isize => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// `clone3` whose child calls `entry(argument)` on the stack that `args` names.
/// With CLONE_VM the child must not return into the parent's frames, which is
/// why this can't be a plain system call.
///
/// # Safety
/// `args` points to a valid `clone_args` of `size` bytes with a stack; `entry`
/// never returns.
pub unsafe fn clone_onto(args: *const u64, size: usize, entry: extern "C" fn(usize) -> !, argument: usize) -> isize {
    let result: isize;
    // SAFETY: in the child only rax and rsp differ from the parent, so entry and
    // argument are still in their registers; the stack top is aligned to 16
    // bytes and `call` pushes onto it.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r9",
            "call r8",
            "ud2",
            "2:",
            inlateout("rax") nr::CLONE3 as isize => result,
            in("rdi") args, in("rsi") size, in("r8") entry, in("r9") argument,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's ranges are valid and don't overlap.
    unsafe { asm!("rep movsb", inout("rcx") n => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags)) };
    to
}

/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller's range is valid.
    unsafe { asm!("rep stosb", inout("rcx") n => _, inout("rdi") to => _, in("al") byte as u8, options(nostack, preserves_flags)) };
    to
}
