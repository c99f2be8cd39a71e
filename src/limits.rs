//! Per-process resource limits, their names and their defaults.

/// A resource that setrlimit(2) limits, for every process of a run by itself.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// RLIMIT_AS: bytes of address space. No default: interpreters reserve much.
    AddressSpace,
    /// RLIMIT_CORE: bytes of a core dump. Default 1, which makes the kernel skip
    /// it even where `core_pattern` names a program.
    Core,
    /// RLIMIT_CPU: seconds of CPU time. No default.
    CpuSeconds,
    /// RLIMIT_DATA: bytes of private writable memory. No default.
    Data,
    /// RLIMIT_FSIZE: bytes of any one file. Default 16 GiB.
    FileSize,
    /// RLIMIT_MEMLOCK: bytes of locked memory. Default 8 MiB.
    LockedMemory,
    /// RLIMIT_MSGQUEUE: bytes in POSIX message queues. Default 819,200.
    MessageQueues,
    /// RLIMIT_NICE: 20 minus the lowest nice value. Default 0.
    Nice,
    /// RLIMIT_NOFILE: open descriptors. Default 1,024 soft, 65,536 hard.
    OpenFiles,
    /// RLIMIT_NPROC: processes and threads of the run's user. Default 4,096.
    Processes,
    /// RLIMIT_RTPRIO: real-time priority. Default 0.
    RealTimePriority,
    /// RLIMIT_SIGPENDING: queued signals. Default 4,096.
    PendingSignals,
    /// RLIMIT_STACK: bytes of the main thread's stack, and the default for
    /// others. Default 8 MiB soft, 1 GiB hard.
    Stack,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Resource {
    /// Soft and hard limits that hold unless a recipe says otherwise; each is
    /// lowered to the host program's own hard limit.
    pub(crate) const DEFAULTS: [(Resource, u64, u64); 10] = [
        (Resource::Core, 1, 1),
        (Resource::FileSize, 16 * GIB, 16 * GIB),
        (Resource::LockedMemory, 8 * MIB, 8 * MIB),
        (Resource::MessageQueues, 800 * KIB, 800 * KIB),
        (Resource::Nice, 0, 0),
        (Resource::OpenFiles, 1024, 65_536),
        (Resource::Processes, 4096, 4096),
        (Resource::RealTimePriority, 0, 0),
        (Resource::PendingSignals, 4096, 4096),
        (Resource::Stack, 8 * MIB, GIB),
    ];

    /// The kernel's number.
    pub(crate) fn number(self) -> u32 {
        self.names().0
    }

    /// The kernel's name.
    pub(crate) fn kernel_name(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (u32, &'static str) {
        match self {
            Resource::AddressSpace => (libc::RLIMIT_AS, "RLIMIT_AS"),
            Resource::Core => (libc::RLIMIT_CORE, "RLIMIT_CORE"),
            Resource::CpuSeconds => (libc::RLIMIT_CPU, "RLIMIT_CPU"),
            Resource::Data => (libc::RLIMIT_DATA, "RLIMIT_DATA"),
            Resource::FileSize => (libc::RLIMIT_FSIZE, "RLIMIT_FSIZE"),
            Resource::LockedMemory => (libc::RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK"),
            Resource::MessageQueues => (libc::RLIMIT_MSGQUEUE, "RLIMIT_MSGQUEUE"),
            Resource::Nice => (libc::RLIMIT_NICE, "RLIMIT_NICE"),
            Resource::OpenFiles => (libc::RLIMIT_NOFILE, "RLIMIT_NOFILE"),
            Resource::Processes => (libc::RLIMIT_NPROC, "RLIMIT_NPROC"),
            Resource::RealTimePriority => (libc::RLIMIT_RTPRIO, "RLIMIT_RTPRIO"),
            Resource::PendingSignals => (libc::RLIMIT_SIGPENDING, "RLIMIT_SIGPENDING"),
            Resource::Stack => (libc::RLIMIT_STACK, "RLIMIT_STACK"),
        }
    }
}
