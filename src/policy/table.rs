//! Every system call by name, with its numbers: the one place that knows them.
//!
//! From the kernel's own tables (`arch/x86/entry/syscalls/syscall_64.tbl`, and
//! `scripts/syscall.tbl` for aarch64), up to Linux 6.19. Names are those of the kernel,
//! which libseccomp and Docker's profiles use too.

/// Not a system call of that architecture.
const NONE: i16 = -1;

/// Name, number on x86_64, number on aarch64.
#[rustfmt::skip]
const TABLE: &[(&str, i16, i16)] = &[
    ("read", 0, 63),
    ("write", 1, 64),
    ("open", 2, NONE),
    ("close", 3, 57),
    ("stat", 4, NONE),
    ("fstat", 5, 80),
    ("lstat", 6, NONE),
    ("poll", 7, NONE),
    ("lseek", 8, 62),
    ("mmap", 9, 222),
    ("mprotect", 10, 226),
    ("munmap", 11, 215),
    ("brk", 12, 214),
    ("rt_sigaction", 13, 134),
    ("rt_sigprocmask", 14, 135),
    ("rt_sigreturn", 15, 139),
    ("ioctl", 16, 29),
    ("pread64", 17, 67),
    ("pwrite64", 18, 68),
    ("readv", 19, 65),
    ("writev", 20, 66),
    ("access", 21, NONE),
    ("pipe", 22, NONE),
    ("select", 23, NONE),
    ("sched_yield", 24, 124),
    ("mremap", 25, 216),
    ("msync", 26, 227),
    ("mincore", 27, 232),
    ("madvise", 28, 233),
    ("shmget", 29, 194),
    ("shmat", 30, 196),
    ("shmctl", 31, 195),
    ("dup", 32, 23),
    ("dup2", 33, NONE),
    ("pause", 34, NONE),
    ("nanosleep", 35, 101),
    ("getitimer", 36, 102),
    ("alarm", 37, NONE),
    ("setitimer", 38, 103),
    ("getpid", 39, 172),
    ("sendfile", 40, 71),
    ("socket", 41, 198),
    ("connect", 42, 203),
    ("accept", 43, 202),
    ("sendto", 44, 206),
    ("recvfrom", 45, 207),
    ("sendmsg", 46, 211),
    ("recvmsg", 47, 212),
    ("shutdown", 48, 210),
    ("bind", 49, 200),
    ("listen", 50, 201),
    ("getsockname", 51, 204),
    ("getpeername", 52, 205),
    ("socketpair", 53, 199),
    ("setsockopt", 54, 208),
    ("getsockopt", 55, 209),
    ("clone", 56, 220),
    ("fork", 57, NONE),
    ("vfork", 58, NONE),
    ("execve", 59, 221),
    ("exit", 60, 93),
    ("wait4", 61, 260),
    ("kill", 62, 129),
    ("uname", 63, 160),
    ("semget", 64, 190),
    ("semop", 65, 193),
    ("semctl", 66, 191),
    ("shmdt", 67, 197),
    ("msgget", 68, 186),
    ("msgsnd", 69, 189),
    ("msgrcv", 70, 188),
    ("msgctl", 71, 187),
    ("fcntl", 72, 25),
    ("flock", 73, 32),
    ("fsync", 74, 82),
    ("fdatasync", 75, 83),
    ("truncate", 76, 45),
    ("ftruncate", 77, 46),
    ("getdents", 78, NONE),
    ("getcwd", 79, 17),
    ("chdir", 80, 49),
    ("fchdir", 81, 50),
    ("rename", 82, NONE),
    ("mkdir", 83, NONE),
    ("rmdir", 84, NONE),
    ("creat", 85, NONE),
    ("link", 86, NONE),
    ("unlink", 87, NONE),
    ("symlink", 88, NONE),
    ("readlink", 89, NONE),
    ("chmod", 90, NONE),
    ("fchmod", 91, 52),
    ("chown", 92, NONE),
    ("fchown", 93, 55),
    ("lchown", 94, NONE),
    ("umask", 95, 166),
    ("gettimeofday", 96, 169),
    ("getrlimit", 97, 163),
    ("getrusage", 98, 165),
    ("sysinfo", 99, 179),
    ("times", 100, 153),
    ("ptrace", 101, 117),
    ("getuid", 102, 174),
    ("syslog", 103, 116),
    ("getgid", 104, 176),
    ("setuid", 105, 146),
    ("setgid", 106, 144),
    ("geteuid", 107, 175),
    ("getegid", 108, 177),
    ("setpgid", 109, 154),
    ("getppid", 110, 173),
    ("getpgrp", 111, NONE),
    ("setsid", 112, 157),
    ("setreuid", 113, 145),
    ("setregid", 114, 143),
    ("getgroups", 115, 158),
    ("setgroups", 116, 159),
    ("setresuid", 117, 147),
    ("getresuid", 118, 148),
    ("setresgid", 119, 149),
    ("getresgid", 120, 150),
    ("getpgid", 121, 155),
    ("setfsuid", 122, 151),
    ("setfsgid", 123, 152),
    ("getsid", 124, 156),
    ("capget", 125, 90),
    ("capset", 126, 91),
    ("rt_sigpending", 127, 136),
    ("rt_sigtimedwait", 128, 137),
    ("rt_sigqueueinfo", 129, 138),
    ("rt_sigsuspend", 130, 133),
    ("sigaltstack", 131, 132),
    ("utime", 132, NONE),
    ("mknod", 133, NONE),
    ("uselib", 134, NONE),
    ("personality", 135, 92),
    ("ustat", 136, NONE),
    ("statfs", 137, 43),
    ("fstatfs", 138, 44),
    ("sysfs", 139, NONE),
    ("getpriority", 140, 141),
    ("setpriority", 141, 140),
    ("sched_setparam", 142, 118),
    ("sched_getparam", 143, 121),
    ("sched_setscheduler", 144, 119),
    ("sched_getscheduler", 145, 120),
    ("sched_get_priority_max", 146, 125),
    ("sched_get_priority_min", 147, 126),
    ("sched_rr_get_interval", 148, 127),
    ("mlock", 149, 228),
    ("munlock", 150, 229),
    ("mlockall", 151, 230),
    ("munlockall", 152, 231),
    ("vhangup", 153, 58),
    ("modify_ldt", 154, NONE),
    ("pivot_root", 155, 41),
    ("_sysctl", 156, NONE),
    ("prctl", 157, 167),
    ("arch_prctl", 158, NONE),
    ("adjtimex", 159, 171),
    ("setrlimit", 160, 164),
    ("chroot", 161, 51),
    ("sync", 162, 81),
    ("acct", 163, 89),
    ("settimeofday", 164, 170),
    ("mount", 165, 40),
    ("umount2", 166, 39),
    ("swapon", 167, 224),
    ("swapoff", 168, 225),
    ("reboot", 169, 142),
    ("sethostname", 170, 161),
    ("setdomainname", 171, 162),
    ("iopl", 172, NONE),
    ("ioperm", 173, NONE),
    ("create_module", 174, NONE),
    ("init_module", 175, 105),
    ("delete_module", 176, 106),
    ("get_kernel_syms", 177, NONE),
    ("query_module", 178, NONE),
    ("quotactl", 179, 60),
    ("nfsservctl", 180, 42),
    ("getpmsg", 181, NONE),
    ("putpmsg", 182, NONE),
    ("afs_syscall", 183, NONE),
    ("tuxcall", 184, NONE),
    ("security", 185, NONE),
    ("gettid", 186, 178),
    ("readahead", 187, 213),
    ("setxattr", 188, 5),
    ("lsetxattr", 189, 6),
    ("fsetxattr", 190, 7),
    ("getxattr", 191, 8),
    ("lgetxattr", 192, 9),
    ("fgetxattr", 193, 10),
    ("listxattr", 194, 11),
    ("llistxattr", 195, 12),
    ("flistxattr", 196, 13),
    ("removexattr", 197, 14),
    ("lremovexattr", 198, 15),
    ("fremovexattr", 199, 16),
    ("tkill", 200, 130),
    ("time", 201, NONE),
    ("futex", 202, 98),
    ("sched_setaffinity", 203, 122),
    ("sched_getaffinity", 204, 123),
    ("set_thread_area", 205, NONE),
    ("io_setup", 206, 0),
    ("io_destroy", 207, 1),
    ("io_getevents", 208, 4),
    ("io_submit", 209, 2),
    ("io_cancel", 210, 3),
    ("get_thread_area", 211, NONE),
    ("lookup_dcookie", 212, 18),
    ("epoll_create", 213, NONE),
    ("epoll_ctl_old", 214, NONE),
    ("epoll_wait_old", 215, NONE),
    ("remap_file_pages", 216, 234),
    ("getdents64", 217, 61),
    ("set_tid_address", 218, 96),
    ("restart_syscall", 219, 128),
    ("semtimedop", 220, 192),
    ("fadvise64", 221, 223),
    ("timer_create", 222, 107),
    ("timer_settime", 223, 110),
    ("timer_gettime", 224, 108),
    ("timer_getoverrun", 225, 109),
    ("timer_delete", 226, 111),
    ("clock_settime", 227, 112),
    ("clock_gettime", 228, 113),
    ("clock_getres", 229, 114),
    ("clock_nanosleep", 230, 115),
    ("exit_group", 231, 94),
    ("epoll_wait", 232, NONE),
    ("epoll_ctl", 233, 21),
    ("tgkill", 234, 131),
    ("utimes", 235, NONE),
    ("vserver", 236, NONE),
    ("mbind", 237, 235),
    ("set_mempolicy", 238, 237),
    ("get_mempolicy", 239, 236),
    ("mq_open", 240, 180),
    ("mq_unlink", 241, 181),
    ("mq_timedsend", 242, 182),
    ("mq_timedreceive", 243, 183),
    ("mq_notify", 244, 184),
    ("mq_getsetattr", 245, 185),
    ("kexec_load", 246, 104),
    ("waitid", 247, 95),
    ("add_key", 248, 217),
    ("request_key", 249, 218),
    ("keyctl", 250, 219),
    ("ioprio_set", 251, 30),
    ("ioprio_get", 252, 31),
    ("inotify_init", 253, NONE),
    ("inotify_add_watch", 254, 27),
    ("inotify_rm_watch", 255, 28),
    ("migrate_pages", 256, 238),
    ("openat", 257, 56),
    ("mkdirat", 258, 34),
    ("mknodat", 259, 33),
    ("fchownat", 260, 54),
    ("futimesat", 261, NONE),
    ("newfstatat", 262, 79),
    ("unlinkat", 263, 35),
    ("renameat", 264, 38),
    ("linkat", 265, 37),
    ("symlinkat", 266, 36),
    ("readlinkat", 267, 78),
    ("fchmodat", 268, 53),
    ("faccessat", 269, 48),
    ("pselect6", 270, 72),
    ("ppoll", 271, 73),
    ("unshare", 272, 97),
    ("set_robust_list", 273, 99),
    ("get_robust_list", 274, 100),
    ("splice", 275, 76),
    ("tee", 276, 77),
    ("sync_file_range", 277, 84),
    ("vmsplice", 278, 75),
    ("move_pages", 279, 239),
    ("utimensat", 280, 88),
    ("epoll_pwait", 281, 22),
    ("signalfd", 282, NONE),
    ("timerfd_create", 283, 85),
    ("eventfd", 284, NONE),
    ("fallocate", 285, 47),
    ("timerfd_settime", 286, 86),
    ("timerfd_gettime", 287, 87),
    ("accept4", 288, 242),
    ("signalfd4", 289, 74),
    ("eventfd2", 290, 19),
    ("epoll_create1", 291, 20),
    ("dup3", 292, 24),
    ("pipe2", 293, 59),
    ("inotify_init1", 294, 26),
    ("preadv", 295, 69),
    ("pwritev", 296, 70),
    ("rt_tgsigqueueinfo", 297, 240),
    ("perf_event_open", 298, 241),
    ("recvmmsg", 299, 243),
    ("fanotify_init", 300, 262),
    ("fanotify_mark", 301, 263),
    ("prlimit64", 302, 261),
    ("name_to_handle_at", 303, 264),
    ("open_by_handle_at", 304, 265),
    ("clock_adjtime", 305, 266),
    ("syncfs", 306, 267),
    ("sendmmsg", 307, 269),
    ("setns", 308, 268),
    ("getcpu", 309, 168),
    ("process_vm_readv", 310, 270),
    ("process_vm_writev", 311, 271),
    ("kcmp", 312, 272),
    ("finit_module", 313, 273),
    ("sched_setattr", 314, 274),
    ("sched_getattr", 315, 275),
    ("renameat2", 316, 276),
    ("seccomp", 317, 277),
    ("getrandom", 318, 278),
    ("memfd_create", 319, 279),
    ("kexec_file_load", 320, 294),
    ("bpf", 321, 280),
    ("execveat", 322, 281),
    ("userfaultfd", 323, 282),
    ("membarrier", 324, 283),
    ("mlock2", 325, 284),
    ("copy_file_range", 326, 285),
    ("preadv2", 327, 286),
    ("pwritev2", 328, 287),
    ("pkey_mprotect", 329, 288),
    ("pkey_alloc", 330, 289),
    ("pkey_free", 331, 290),
    ("statx", 332, 291),
    ("io_pgetevents", 333, 292),
    ("rseq", 334, 293),
    ("uretprobe", 335, NONE),
    ("uprobe", 336, NONE),
    ("pidfd_send_signal", 424, 424),
    ("io_uring_setup", 425, 425),
    ("io_uring_enter", 426, 426),
    ("io_uring_register", 427, 427),
    ("open_tree", 428, 428),
    ("move_mount", 429, 429),
    ("fsopen", 430, 430),
    ("fsconfig", 431, 431),
    ("fsmount", 432, 432),
    ("fspick", 433, 433),
    ("pidfd_open", 434, 434),
    ("clone3", 435, 435),
    ("close_range", 436, 436),
    ("openat2", 437, 437),
    ("pidfd_getfd", 438, 438),
    ("faccessat2", 439, 439),
    ("process_madvise", 440, 440),
    ("epoll_pwait2", 441, 441),
    ("mount_setattr", 442, 442),
    ("quotactl_fd", 443, 443),
    ("landlock_create_ruleset", 444, 444),
    ("landlock_add_rule", 445, 445),
    ("landlock_restrict_self", 446, 446),
    ("memfd_secret", 447, 447),
    ("process_mrelease", 448, 448),
    ("futex_waitv", 449, 449),
    ("set_mempolicy_home_node", 450, 450),
    ("cachestat", 451, 451),
    ("fchmodat2", 452, 452),
    ("map_shadow_stack", 453, 453),
    ("futex_wake", 454, 454),
    ("futex_wait", 455, 455),
    ("futex_requeue", 456, 456),
    ("statmount", 457, 457),
    ("listmount", 458, 458),
    ("lsm_get_self_attr", 459, 459),
    ("lsm_set_self_attr", 460, 460),
    ("lsm_list_modules", 461, 461),
    ("mseal", 462, 462),
    ("setxattrat", 463, 463),
    ("getxattrat", 464, 464),
    ("listxattrat", 465, 465),
    ("removexattrat", 466, 466),
    ("open_tree_attr", 467, 467),
    ("file_getattr", 468, 468),
    ("file_setattr", 469, 469),
    ("listns", 470, 470),
];

#[cfg(target_arch = "x86_64")]
fn here(row: &(&'static str, i16, i16)) -> i16 {
    row.1
}
#[cfg(target_arch = "aarch64")]
fn here(row: &(&'static str, i16, i16)) -> i16 {
    row.2
}

/// What a name means on this architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// This number.
    Number(u32),
    /// A call that only other architectures have.
    Elsewhere,
    /// No call that this table knows.
    Unknown,
}

/// The call of that name.
pub(crate) fn number(name: &str) -> Named {
    match TABLE.iter().find(|row| row.0 == name).map(here) {
        Some(NONE) => Named::Elsewhere,
        Some(number) => Named::Number(number as u32),
        None => Named::Unknown,
    }
}

/// The name of a call of this architecture.
pub(crate) fn name(number: u32) -> Option<&'static str> {
    TABLE.iter().find(|row| i64::from(here(row)) == i64::from(number)).map(|row| row.0)
}

/// The numbers of all calls that this architecture has, in no order.
pub(crate) fn numbers() -> impl Iterator<Item = u32> {
    TABLE.iter().map(here).filter(|number| *number != NONE).map(|number| number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of libc's names and numbers.
    macro_rules! of_libc {
        ($($name:ident)*) => { &[$((stringify!($name), libc::$name)),*] };
    }

    #[rustfmt::skip]
    const COMMON: &[(&str, i64)] = of_libc! {
        SYS_read SYS_write SYS_close SYS_fstat SYS_lseek SYS_mmap SYS_mprotect SYS_munmap SYS_brk SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn
        SYS_ioctl SYS_pread64 SYS_pwrite64 SYS_readv SYS_writev SYS_sched_yield SYS_mremap SYS_msync SYS_mincore SYS_madvise SYS_shmget SYS_shmat SYS_shmctl
        SYS_dup SYS_nanosleep SYS_getitimer SYS_setitimer SYS_getpid SYS_sendfile SYS_socket SYS_connect SYS_accept SYS_sendto SYS_recvfrom SYS_sendmsg
        SYS_recvmsg SYS_shutdown SYS_bind SYS_listen SYS_getsockname SYS_getpeername SYS_socketpair SYS_setsockopt SYS_getsockopt SYS_clone SYS_execve
        SYS_exit SYS_wait4 SYS_kill SYS_uname SYS_semget SYS_semop SYS_semctl SYS_shmdt SYS_msgget SYS_msgsnd SYS_msgrcv SYS_msgctl SYS_fcntl SYS_flock
        SYS_fsync SYS_fdatasync SYS_truncate SYS_ftruncate SYS_getcwd SYS_chdir SYS_fchdir SYS_fchmod SYS_fchown SYS_umask SYS_gettimeofday SYS_getrusage
        SYS_sysinfo SYS_times SYS_ptrace SYS_getuid SYS_syslog SYS_getgid SYS_setuid SYS_setgid SYS_geteuid SYS_getegid SYS_setpgid SYS_getppid SYS_setsid
        SYS_setreuid SYS_setregid SYS_getgroups SYS_setgroups SYS_setresuid SYS_getresuid SYS_setresgid SYS_getresgid SYS_getpgid SYS_setfsuid SYS_setfsgid
        SYS_getsid SYS_capget SYS_capset SYS_rt_sigpending SYS_rt_sigtimedwait SYS_rt_sigqueueinfo SYS_rt_sigsuspend SYS_sigaltstack SYS_personality
        SYS_statfs SYS_fstatfs SYS_getpriority SYS_setpriority SYS_sched_setparam SYS_sched_getparam SYS_sched_setscheduler SYS_sched_getscheduler
        SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_mlock SYS_munlock SYS_mlockall SYS_munlockall SYS_vhangup
        SYS_pivot_root SYS_prctl SYS_adjtimex SYS_chroot SYS_sync SYS_acct SYS_settimeofday SYS_mount SYS_umount2 SYS_swapon SYS_swapoff SYS_reboot
        SYS_sethostname SYS_setdomainname SYS_init_module SYS_delete_module SYS_quotactl SYS_nfsservctl SYS_gettid SYS_readahead SYS_setxattr SYS_lsetxattr
        SYS_fsetxattr SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr
        SYS_tkill SYS_futex SYS_sched_setaffinity SYS_sched_getaffinity SYS_io_setup SYS_io_destroy SYS_io_getevents SYS_io_submit SYS_io_cancel
        SYS_lookup_dcookie SYS_remap_file_pages SYS_getdents64 SYS_set_tid_address SYS_restart_syscall SYS_semtimedop SYS_fadvise64 SYS_timer_create
        SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete SYS_clock_settime SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep
        SYS_exit_group SYS_epoll_ctl SYS_tgkill SYS_mbind SYS_set_mempolicy SYS_get_mempolicy SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive
        SYS_mq_notify SYS_mq_getsetattr SYS_kexec_load SYS_waitid SYS_add_key SYS_request_key SYS_keyctl SYS_ioprio_set SYS_ioprio_get SYS_inotify_add_watch
        SYS_inotify_rm_watch SYS_migrate_pages SYS_openat SYS_mkdirat SYS_mknodat SYS_fchownat SYS_newfstatat SYS_unlinkat SYS_linkat SYS_symlinkat
        SYS_readlinkat SYS_fchmodat SYS_faccessat SYS_pselect6 SYS_ppoll SYS_unshare SYS_set_robust_list SYS_get_robust_list SYS_splice SYS_tee SYS_vmsplice
        SYS_move_pages SYS_utimensat SYS_epoll_pwait SYS_timerfd_create SYS_fallocate SYS_timerfd_settime SYS_timerfd_gettime SYS_accept4 SYS_signalfd4
        SYS_eventfd2 SYS_epoll_create1 SYS_dup3 SYS_pipe2 SYS_inotify_init1 SYS_preadv SYS_pwritev SYS_rt_tgsigqueueinfo SYS_perf_event_open SYS_recvmmsg
        SYS_fanotify_init SYS_fanotify_mark SYS_prlimit64 SYS_name_to_handle_at SYS_open_by_handle_at SYS_clock_adjtime SYS_syncfs SYS_sendmmsg SYS_setns
        SYS_getcpu SYS_process_vm_readv SYS_process_vm_writev SYS_kcmp SYS_finit_module SYS_sched_setattr SYS_sched_getattr SYS_renameat2 SYS_seccomp
        SYS_getrandom SYS_memfd_create SYS_kexec_file_load SYS_bpf SYS_execveat SYS_userfaultfd SYS_membarrier SYS_mlock2 SYS_copy_file_range SYS_preadv2
        SYS_pwritev2 SYS_pkey_mprotect SYS_pkey_alloc SYS_pkey_free SYS_statx SYS_rseq SYS_pidfd_send_signal SYS_io_uring_setup SYS_io_uring_enter
        SYS_io_uring_register SYS_open_tree SYS_move_mount SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick SYS_pidfd_open SYS_clone3 SYS_close_range
        SYS_openat2 SYS_pidfd_getfd SYS_faccessat2 SYS_process_madvise SYS_epoll_pwait2 SYS_mount_setattr SYS_quotactl_fd SYS_landlock_create_ruleset
        SYS_landlock_add_rule SYS_landlock_restrict_self SYS_memfd_secret SYS_process_mrelease SYS_futex_waitv SYS_set_mempolicy_home_node SYS_mseal
    };
    #[cfg(target_arch = "x86_64")]
    #[rustfmt::skip]
    const HERE: &[(&str, i64)] = of_libc! {
        SYS_open SYS_stat SYS_lstat SYS_poll SYS_access SYS_pipe SYS_select SYS_dup2 SYS_pause SYS_alarm SYS_fork SYS_vfork SYS_getdents SYS_rename SYS_mkdir
        SYS_rmdir SYS_creat SYS_link SYS_unlink SYS_symlink SYS_readlink SYS_chmod SYS_chown SYS_lchown SYS_getrlimit SYS_getpgrp SYS_utime SYS_mknod
        SYS_uselib SYS_ustat SYS_sysfs SYS_modify_ldt SYS__sysctl SYS_arch_prctl SYS_setrlimit SYS_iopl SYS_ioperm SYS_getpmsg SYS_putpmsg SYS_afs_syscall
        SYS_tuxcall SYS_security SYS_time SYS_set_thread_area SYS_get_thread_area SYS_epoll_create SYS_epoll_ctl_old SYS_epoll_wait_old SYS_epoll_wait
        SYS_utimes SYS_vserver SYS_inotify_init SYS_futimesat SYS_renameat SYS_sync_file_range SYS_signalfd SYS_eventfd SYS_fchmodat2
    };
    #[cfg(target_arch = "aarch64")]
    const HERE: &[(&str, i64)] = &[];

    #[test]
    fn numbers_are_those_of_libc() {
        for (libc_name, expected) in COMMON.iter().chain(HERE) {
            let plain = libc_name.trim_start_matches("SYS_");
            assert_eq!(number(plain), Named::Number(*expected as u32), "{plain}");
            assert_eq!(name(*expected as u32), Some(plain));
        }
        assert!(COMMON.len() > 290, "libc names nearly all of them");
    }

    #[test]
    fn no_name_and_no_number_stands_there_twice() {
        for (i, row) in TABLE.iter().enumerate() {
            for other in &TABLE[i + 1..] {
                assert_ne!(row.0, other.0);
                assert!(row.1 != other.1 || row.1 == NONE, "{} and {}", row.0, other.0);
                assert!(row.2 != other.2 || row.2 == NONE, "{} and {}", row.0, other.0);
            }
        }
    }
}
