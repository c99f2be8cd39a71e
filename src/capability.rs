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
