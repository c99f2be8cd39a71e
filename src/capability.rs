//! Capabilities that a workload may be given inside its user namespace.

/// A capability (capabilities(7)) over what belongs to the sandbox. None of them
/// has any power over the host: they count inside the sandbox's user namespace
/// only. CAP_SYS_ADMIN and its like are not offered; with it a workload could
/// change the mounts that confine it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Capability {
    /// CAP_CHOWN: change owners of files.
    Chown,
    /// CAP_DAC_OVERRIDE: ignore permissions of files.
    DacOverride,
    /// CAP_FOWNER: act as the owner of any file.
    Fowner,
    /// CAP_FSETID: keep set-ID bits when a file changes.
    Fsetid,
    /// CAP_KILL: signal any process of the sandbox.
    Kill,
    /// CAP_SETGID: change group ids.
    Setgid,
    /// CAP_SETUID: change user ids.
    Setuid,
    /// CAP_SETPCAP: hand on capabilities that one has.
    Setpcap,
    /// CAP_NET_BIND_SERVICE: ports below 1024.
    NetBindService,
    /// CAP_NET_RAW: raw sockets.
    NetRaw,
    /// CAP_SYS_CHROOT: chroot(2); refused by the default filter all the same.
    SysChroot,
    /// CAP_MKNOD: device nodes; the kernel refuses them in a user namespace.
    Mknod,
    /// CAP_AUDIT_WRITE: write to the audit log; without effect in a user namespace.
    AuditWrite,
    /// CAP_SETFCAP: give files capabilities. Not given, under the default filter, to a
    /// command with a writable bind: see [`Sandbox::bind_rw`](crate::Sandbox::bind_rw).
    Setfcap,
    /// CAP_SYS_PTRACE: trace processes of other users of the sandbox.
    SysPtrace,
    /// CAP_SYS_NICE: raise priorities; the resource limit on nice values stays.
    SysNice,
    /// CAP_IPC_LOCK: lock memory beyond the limit, as far as the host allows.
    IpcLock,
}

impl Capability {
    /// What Docker gives a container by default: enough for package managers and
    /// for servers that start as root and become another user.
    pub const DOCKER: [Capability; 14] = [
        Capability::Chown,
        Capability::DacOverride,
        Capability::Fowner,
        Capability::Fsetid,
        Capability::Kill,
        Capability::Setgid,
        Capability::Setuid,
        Capability::Setpcap,
        Capability::NetBindService,
        Capability::NetRaw,
        Capability::SysChroot,
        Capability::Mknod,
        Capability::AuditWrite,
        Capability::Setfcap,
    ];

    /// The kernel's number (linux/capability.h).
    pub(crate) fn number(self) -> u32 {
        match self {
            Capability::Chown => 0,
            Capability::DacOverride => 1,
            Capability::Fowner => 3,
            Capability::Fsetid => 4,
            Capability::Kill => 5,
            Capability::Setgid => 6,
            Capability::Setuid => 7,
            Capability::Setpcap => 8,
            Capability::NetBindService => 10,
            Capability::NetRaw => 13,
            Capability::IpcLock => 14,
            Capability::SysChroot => 18,
            Capability::SysPtrace => 19,
            Capability::SysNice => 23,
            Capability::Mknod => 27,
            Capability::AuditWrite => 29,
            Capability::Setfcap => 31,
        }
    }
}

/// Every capability's name, by the kernel's number (linux/capability.h).
const KERNEL_NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The number of the capability of that name, also of one that's never given.
pub(crate) fn number_of(kernel_name: &str) -> Option<u32> {
    KERNEL_NAMES.iter().position(|name| *name == kernel_name).map(|number| number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_names_have_the_kernels_numbers() {
        for (name, capability) in
            [("CAP_CHOWN", Capability::Chown), ("CAP_SYS_NICE", Capability::SysNice), ("CAP_SETFCAP", Capability::Setfcap)]
        {
            assert_eq!(number_of(name), Some(capability.number()));
        }
        assert_eq!(number_of("CAP_CHECKPOINT_RESTORE"), Some(40));
    }
}
