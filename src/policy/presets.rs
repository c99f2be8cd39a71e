//! The tables of our own presets, by name.
//!
//! The base of [`default`] is what Docker documents for its default profile ("Seccomp
//! security profiles for Docker"), for a container without capabilities. Beyond that
//! these are refused: modify_ldt(2), fanotify, name_to_handle_at(2), the clock's
//! adjustment, the two-argument epoll calls that never worked, and sockets of any
//! family but Unix, IPv4, IPv6 and route netlink.

use super::bpf::{Check, Rule, Verdict};

/// What a preset says.
pub(crate) struct Preset {
    /// Calls that pass.
    pub(crate) allowed: &'static [&'static [&'static str]],
    /// Calls that are decided otherwise, or by their arguments.
    pub(crate) special: Vec<(&'static str, Verdict)>,
    /// Every other call that the table of names knows.
    pub(crate) rest: Verdict,
}

/// See [`Syscalls::Default`](super::Syscalls::Default).
pub(crate) fn default() -> Preset {
    let mut special = vec![
        ("clone", namespaces_refused(Verdict::EPERM)),
        // Namespaces can only be asked for in clone3's memory, which a filter can't
        // read: ENOSYS makes C libraries take clone.
        ("clone3", Verdict::ENOSYS),
        ("ioctl", injection_refused(Verdict::EPERM)),
        ("socket", sockets()),
        ("socketpair", sockets()),
        ("personality", personalities(Verdict::EPERM)),
    ];
    // Newer than the programs that would miss them.
    special.extend(["file_getattr", "file_setattr", "listns"].map(|name| (name, Verdict::ENOSYS)));
    Preset { allowed: &[COMPUTE, FILES, PROCESSES, SERVERS, SYSTEM_V], special, rest: Verdict::EPERM }
}

/// See [`Syscalls::Strict`](super::Syscalls::Strict).
pub(crate) fn strict() -> Preset {
    let mut special = vec![
        ("clone", namespaces_refused(Verdict::End)),
        ("clone3", Verdict::ENOSYS),
        ("ioctl", injection_refused(Verdict::End)),
        ("personality", personalities(Verdict::End)),
        // The C library asks a name service cache for users, and goes on without.
        (
            "socket",
            Verdict::Rules(
                vec![Rule { checks: vec![Check::Is(0, libc::AF_UNIX as u32)], verdict: Verdict::Errno(libc::EAFNOSUPPORT as u16) }],
                Box::new(Verdict::End),
            ),
        ),
    ];
    // What runtimes try by themselves, and do without.
    special.extend(QUIETLY_REFUSED.iter().map(|name| (*name, Verdict::EPERM)));
    special.extend(["io_uring_setup", "memfd_secret", "file_getattr"].map(|name| (name, Verdict::ENOSYS)));
    Preset { allowed: &[COMPUTE, FILES], special, rest: Verdict::End }
}

fn namespaces_refused(refusal: Verdict) -> Verdict {
    // `CLONE_NEW*` of clone(2). CLONE_NEWTIME shares its bit with the exit signal there,
    // and means nothing.
    const NAMESPACES: u32 = (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET) as u32;
    Verdict::Rules(vec![Rule { checks: vec![Check::Has(0, NAMESPACES)], verdict: refusal }], Box::new(Verdict::Allow))
}

/// Input injected into a terminal would be read by the host's shell (CVE-2017-5226).
fn injection_refused(refusal: Verdict) -> Verdict {
    let rules =
        [libc::TIOCSTI, libc::TIOCLINUX].map(|request| Rule { checks: vec![Check::Is(1, request as u32)], verdict: refusal.clone() });
    Verdict::Rules(rules.to_vec(), Box::new(Verdict::Allow))
}

/// Unix, IPv4, IPv6 and route sockets.
pub(crate) fn sockets() -> Verdict {
    let allow = |checks: Vec<Check>| Rule { checks, verdict: Verdict::Allow };
    Verdict::Rules(
        vec![
            allow(vec![Check::Is(0, libc::AF_UNIX as u32)]),
            allow(vec![Check::Is(0, libc::AF_INET as u32)]),
            allow(vec![Check::Is(0, libc::AF_INET6 as u32)]),
            allow(vec![Check::Is(0, libc::AF_NETLINK as u32), Check::Is(2, libc::NETLINK_ROUTE as u32)]),
        ],
        Box::new(Verdict::Errno(libc::EAFNOSUPPORT as u16)),
    )
}

/// PER_LINUX, PER_LINUX32, UNAME26, both, and the question which one it is.
fn personalities(refusal: Verdict) -> Verdict {
    let rules = [0, 0x0008, 0x2_0000, 0x2_0008, u32::MAX].map(|p| Rule { checks: vec![Check::Is(0, p)], verdict: Verdict::Allow });
    Verdict::Rules(rules.to_vec(), Box::new(refusal))
}

/// What is refused whatever a policy says, unless there's no filter at all: it protects
/// our own first process, and the host's files.
pub(crate) fn guards(keep_set_id: bool) -> Vec<(&'static str, Vec<Rule>)> {
    // Of setpriority(2); C libraries disagree about their type.
    const PRIO_PROCESS: u32 = 0;
    const PRIO_USER: u32 = 2;
    const SET_ID_BITS: u32 = 0o6000;
    let refuse = |checks: Vec<Check>| Rule { checks, verdict: Verdict::EPERM };
    // PID 1 keeps the limits on time. It may have the workload's own ids, which is
    // all that prlimit asks for, and slowing it down takes CAP_SYS_NICE only.
    let mut guards: Vec<(&str, Vec<Rule>)> = ["prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"]
        .map(|name| (name, vec![refuse(vec![Check::Is(0, 1)])]))
        .to_vec();
    guards.push(("setpriority", vec![refuse(vec![Check::Is(0, PRIO_PROCESS), Check::Is(1, 1)]), refuse(vec![Check::Is(0, PRIO_USER)])]));
    if !keep_set_id {
        // A set-user-ID file in a directory of the host's would keep its power outside.
        let modes = [
            ("chmod", 1),
            ("fchmod", 1),
            ("fchmodat", 2),
            ("fchmodat2", 2),
            ("mknod", 1),
            ("mknodat", 2),
            ("creat", 1),
            ("open", 2),
            ("openat", 3),
        ];
        guards.extend(modes.map(|(name, at)| (name, vec![refuse(vec![Check::Has(at, SET_ID_BITS)])])));
        // Its mode is in memory.
        guards.push(("openat2", vec![Rule { checks: vec![], verdict: Verdict::ENOSYS }]));
    }
    guards
}

/// Memory, threads, time, signals, and what a process asks about itself.
#[rustfmt::skip]
const COMPUTE: &[&str] = &[
    "alarm", "arch_prctl", "brk", "capget", "clock_getres", "clock_gettime", "clock_nanosleep", "execve", "execveat", "exit",
    "exit_group", "fork", "futex", "futex_requeue", "futex_wait", "futex_waitv", "futex_wake", "get_robust_list", "getcpu",
    "getegid", "geteuid", "getgid", "getgroups", "getitimer", "getpgid", "getpgrp", "getpid", "getppid", "getpriority",
    "getrandom", "getresgid", "getresuid", "getrlimit", "getrusage", "getsid", "gettid", "gettimeofday", "getuid", "kill",
    "madvise", "map_shadow_stack", "membarrier", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mprotect", "mremap", "mseal",
    "msync", "munlock", "munlockall", "munmap", "nanosleep", "pause", "pidfd_open", "pidfd_send_signal", "pkey_alloc", "pkey_free",
    "pkey_mprotect", "prctl", "prlimit64", "process_mrelease", "restart_syscall", "rseq", "rt_sigaction", "rt_sigpending",
    "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo",
    "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam",
    "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity", "sched_yield", "set_robust_list", "set_tid_address",
    "setitimer", "setpgid", "setrlimit", "setsid", "sigaltstack", "signalfd", "signalfd4", "sysinfo", "tgkill", "time",
    "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime", "timerfd_create", "timerfd_gettime",
    "timerfd_settime", "times", "tkill", "umask", "uname", "uprobe", "uretprobe", "vfork", "wait4", "waitid",
];

/// Files, pipes, and waiting for them.
#[rustfmt::skip]
const FILES: &[&str] = &[
    "access", "cachestat", "chdir", "chmod", "close", "close_range", "copy_file_range", "creat", "dup", "dup2", "dup3",
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd", "eventfd2",
    "faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fcntl", "fdatasync",
    "fgetxattr", "flistxattr", "flock", "fstat", "fstatfs", "fsync", "ftruncate", "futimesat", "getcwd", "getdents", "getdents64",
    "getxattr", "getxattrat", "lgetxattr", "link", "linkat", "listxattr", "listxattrat", "llistxattr", "lseek", "lstat",
    "memfd_create", "mkdir", "mkdirat", "newfstatat", "open", "openat", "openat2", "pipe", "pipe2", "poll", "ppoll", "pread64",
    "preadv", "preadv2", "pselect6", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv",
    "rename", "renameat", "renameat2", "rmdir", "select", "sendfile", "splice", "stat", "statfs", "statx", "symlink", "symlinkat",
    "sync_file_range", "tee", "truncate", "unlink", "unlinkat", "utime", "utimensat", "utimes", "write", "writev",
];

/// Users, owners, scheduling, tracing of own processes, further sandboxing.
#[rustfmt::skip]
const PROCESSES: &[&str] = &[
    "capset", "chown", "fchown", "fchownat", "fremovexattr", "fsetxattr", "inotify_add_watch", "inotify_init", "inotify_init1",
    "inotify_rm_watch", "ioprio_get", "ioprio_set", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self",
    "lchown", "lremovexattr", "lsetxattr", "memfd_secret", "mknod", "mknodat", "process_vm_readv", "process_vm_writev", "ptrace",
    "remap_file_pages", "removexattr", "removexattrat", "sched_setattr", "sched_setparam", "sched_setscheduler", "seccomp",
    "setfsgid", "setfsuid", "setgid", "setgroups", "setpriority", "setregid", "setresgid", "setresuid", "setreuid", "setuid",
    "setxattr", "setxattrat", "sync", "syncfs", "vmsplice",
];

/// Sockets and asynchronous I/O.
#[rustfmt::skip]
const SERVERS: &[&str] = &[
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "io_cancel", "io_destroy", "io_getevents",
    "io_pgetevents", "io_setup", "io_submit", "listen", "recvfrom", "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto",
    "setsockopt", "shutdown",
];

/// IPC that has a namespace of its own.
#[rustfmt::skip]
const SYSTEM_V: &[&str] = &[
    "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl", "msgget", "msgrcv",
    "msgsnd", "semctl", "semget", "semop", "semtimedop", "shmat", "shmctl", "shmdt", "shmget",
];

/// Under [`strict`]: EPERM.
#[rustfmt::skip]
const QUIETLY_REFUSED: &[&str] = &[
    "chown", "fchown", "fchownat", "get_mempolicy", "inotify_init", "inotify_init1", "ioprio_get", "ioprio_set", "lchown", "mbind",
    "perf_event_open", "sched_setattr", "sched_setparam", "sched_setscheduler", "set_mempolicy", "setpriority", "userfaultfd",
];

/// What a workload needs to make namespaces and mounts of its own; clone3 stays away, so
/// that C libraries take clone.
#[rustfmt::skip]
pub(crate) const NESTING: &[&str] = &[
    "chroot", "clone", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "open_tree",
    "open_tree_attr", "pivot_root", "setdomainname", "sethostname", "setns", "umount2", "unshare",
];
