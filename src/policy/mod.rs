//! What the kernel is asked to refuse: system calls.

pub(crate) mod bpf;
pub(crate) mod syscalls;

/// Which system calls the workload may make.
///
/// The filter is installed right before the command is executed and holds for
/// everything that it starts. It's one fence among several: without
/// capabilities and in namespaces of its own, a workload can't do much with the
/// calls that are refused here, unless the kernel has a bug in them.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Syscalls {
    /// What compilers, interpreters, servers and test suites need.
    ///
    /// Refused with `EPERM`: administration of the machine, mounts, modules,
    /// namespaces (also through `clone`'s flags), kernel keyrings, `bpf`,
    /// `perf_event_open`, `userfaultfd`, `io_uring`, handles to files, and the
    /// terminal ioctls that inject input. Sockets are limited to Unix, IPv4,
    /// IPv6 and route netlink (`EAFNOSUPPORT`). `clone3` and calls newer than
    /// this table answer `ENOSYS`, on which C libraries fall back. Calls of a
    /// foreign ABI (i386, x32) end the process with SIGSYS.
    ///
    /// With a writable bind ([`Sandbox::bind_rw`](crate::Sandbox::bind_rw)), or when
    /// the command is given a file of the host's as a stream or descriptor, files can't
    /// be made set-user-ID or set-group-ID either: such a file would keep its power
    /// outside.
    #[default]
    Default,
    /// No filter at all. The name is meant to show in a review.
    Unfiltered,
}
