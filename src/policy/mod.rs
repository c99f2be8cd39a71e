//! What the kernel is asked to refuse: system calls, and by Landlock.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `table.rs` | names and numbers of all system calls |
//! | `presets.rs` | our own presets, by name |
//! | `profile/` | profiles in Docker's JSON format |
//! | `filter.rs` | from a policy to verdicts by number, compiled once per recipe |
//! | `bpf.rs` | from verdicts to a program |
//! | `landlock.rs` | rights by version of Landlock |

pub(crate) mod bpf;
pub(crate) mod filter;
pub(crate) mod landlock;
mod presets;
mod profile;
pub(crate) mod table;

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use filter::Cache;
pub use profile::SyscallProfile;

/// Which system calls the workload may make.
///
/// The filter is installed right before the command is executed and holds for
/// everything that it starts. It's one fence among several: without
/// capabilities and in namespaces of its own, a workload can't do much with the
/// calls that are refused here, unless the kernel has a bug in them.
///
/// With any of these but `Unfiltered`, calls of a foreign ABI (i386, x32) are never made;
/// the first process of the sandbox can't be slowed down or limited; and with a writable
/// bind ([`Sandbox::bind_rw`](crate::Sandbox::bind_rw)), or when the command is given a
/// file of the host's as a stream or descriptor, files can't be made set-user-ID or
/// set-group-ID: such a file would keep its power outside.
///
/// [`allow`](Self::allow) and [`deny`](Self::deny) change single calls:
///
/// ```
/// use cofferdam::{Sandbox, Syscalls};
///
/// let sandbox = Sandbox::new().syscalls(Syscalls::Default.deny("ptrace").deny("io_submit"));
/// assert!(sandbox.run("true")?.success());
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Syscalls {
    /// What compilers, interpreters, servers and test suites need: a little less than
    /// Docker's default profile.
    ///
    /// Refused with `EPERM`: administration of the machine, mounts, modules,
    /// namespaces (also through `clone`'s flags), kernel keyrings, `bpf`,
    /// `perf_event_open`, `userfaultfd`, `io_uring`, handles to files, and the
    /// terminal ioctls that inject input. Sockets are limited to Unix, IPv4,
    /// IPv6 and route netlink (`EAFNOSUPPORT`). `clone3` and calls newer than
    /// this table answer `ENOSYS`, on which C libraries fall back. A call of a
    /// foreign ABI ends the process with SIGSYS.
    #[default]
    Default,
    /// To compute and nothing else: what a judged C++, Python, Java or node program
    /// needs. It may start threads and processes, read and write files and pipes, and
    /// wait.
    ///
    /// Any other call, sockets and `ptrace` among them, ends the run as
    /// [`Limit::Syscall`](crate::Limit::Syscall), with the call's name and number. What
    /// runtimes try on their own and do without (a connection to the name service cache,
    /// scheduling, NUMA) is refused with an errno, and calls that nobody knew yet with
    /// `ENOSYS`.
    Strict,
    /// No filter at all. The name is meant to show in a review: among much else the workload
    /// may then have vsock(7) sockets, which no namespace keeps from the hypervisor.
    Unfiltered,
    /// A profile in Docker's JSON format. What it kills for ends the run as
    /// [`Limit::Syscall`](crate::Limit::Syscall).
    Profile(SyscallProfile),
}

impl Syscalls {
    /// This policy, but with a call allowed whatever its arguments. For an effect it
    /// also needs what the kernel asks for by itself, such as a
    /// [`Capability`](crate::Capability). A name that no system call has is an error when
    /// the recipe is used; one that only other architectures have changes nothing.
    pub fn allow(self, name: impl Into<String>) -> SyscallPolicy {
        SyscallPolicy::from(self).allow(name)
    }

    /// This policy, but with a call refused, in the way in which this policy refuses:
    /// `EPERM` or, under [`Strict`](Self::Strict), the end of the run. Names are as for
    /// [`allow`](Self::allow).
    pub fn deny(self, name: impl Into<String>) -> SyscallPolicy {
        SyscallPolicy::from(self).deny(name)
    }
}

impl From<SyscallProfile> for Syscalls {
    fn from(profile: SyscallProfile) -> Syscalls {
        Syscalls::Profile(profile)
    }
}

/// One of [`Syscalls`] with single calls allowed or refused on top; the last word on a
/// call counts.
#[derive(Clone, Debug)]
pub struct SyscallPolicy {
    base: Syscalls,
    changes: Vec<(String, bool)>,
    /// Compiled once for all copies.
    cache: Arc<Cache>,
}

/// Whether both say the same in the same words.
impl PartialEq for SyscallPolicy {
    fn eq(&self, other: &SyscallPolicy) -> bool {
        (&self.base, &self.changes) == (&other.base, &other.changes)
    }
}

impl Eq for SyscallPolicy {}

impl SyscallPolicy {
    /// See [`Syscalls::allow`].
    pub fn allow(self, name: impl Into<String>) -> SyscallPolicy {
        self.with(name.into(), true)
    }

    /// See [`Syscalls::deny`].
    pub fn deny(self, name: impl Into<String>) -> SyscallPolicy {
        self.with(name.into(), false)
    }

    fn with(mut self, name: String, allowed: bool) -> SyscallPolicy {
        self.changes.push((name, allowed));
        self.cache = Arc::default();
        self
    }

    /// It may let a workload mount file systems.
    pub(crate) fn may_mount(&self) -> bool {
        self.allows_more()
    }

    /// It may allow what neither [`Syscalls::Default`] nor [`Syscalls::Strict`] does.
    pub(crate) fn allows_more(&self) -> bool {
        !matches!(self.base, Syscalls::Default | Syscalls::Strict) || self.changes.iter().any(|(_, allowed)| *allowed)
    }

    /// There's no filter.
    pub(crate) fn is_unfiltered(&self) -> bool {
        self.base == Syscalls::Unfiltered && self.changes.is_empty()
    }

    /// What makes no sense in it.
    pub(crate) fn problem(&self) -> Option<String> {
        let unknown = self.changes.iter().find(|(name, _)| table::number(name) == table::Named::Unknown);
        unknown.map(|(name, _)| format!("no system call is called `{name}`"))
    }

    /// Its filter, if it has one.
    pub(crate) fn filter(&self, circumstances: filter::Circumstances) -> Result<Option<Arc<filter::Filter>>> {
        let filter = filter::of(self, circumstances)?;
        match filter.as_ref().and_then(|filter| filter.hinders) {
            Some(name) => {
                Err(Error::invalid(format!("the system call policy refuses {name}, without which no command can be started; allow it")))
            }
            None => Ok(filter),
        }
    }
}

impl From<Syscalls> for SyscallPolicy {
    fn from(base: Syscalls) -> SyscallPolicy {
        SyscallPolicy { base, changes: Vec::new(), cache: Arc::default() }
    }
}

impl From<SyscallProfile> for SyscallPolicy {
    fn from(profile: SyscallProfile) -> SyscallPolicy {
        Syscalls::Profile(profile).into()
    }
}

/// A system call that a workload made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SystemCall {
    number: u32,
    /// The kernel's mark of an ABI, `AUDIT_ARCH_*` of linux/audit.h.
    abi: u32,
}

impl SystemCall {
    pub(crate) fn of_report(word: u64) -> SystemCall {
        SystemCall { number: word as u32, abi: (word >> 32) as u32 }
    }

    /// Its number, in the ABI that it was made with.
    pub fn number(self) -> u32 {
        self.number
    }

    /// Its name; `None` for one that isn't known here, or of a foreign ABI.
    pub fn name(self) -> Option<&'static str> {
        if self.foreign() { None } else { table::name(self.number) }
    }

    /// Whether it was made through another ABI than this machine's own: i386 or x32 on
    /// x86_64, 32-bit arm on aarch64. No policy lets such a call pass.
    pub fn foreign(self) -> bool {
        self.abi != bpf::AUDIT_ARCH || (cfg!(target_arch = "x86_64") && self.number >= bpf::X32)
    }
}

impl fmt::Display for SystemCall {
    /// `ptrace (101)`, or `20 of a foreign ABI`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.number),
            None if self.foreign() => write!(f, "{} of a foreign ABI", self.number),
            None => write!(f, "{}", self.number),
        }
    }
}
