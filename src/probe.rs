//! What this kernel and this user can do.

use std::fmt;
use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use crate::cpu;
use crate::limits::Resource;
use crate::plan::overlay::takes_layers_from_anywhere;
use crate::plan::proc::Present;
use crate::plan::start::Start;

/// One of the things that stand between a workload and the host.
///
/// All are on by default, and one that can't be had is an error with its remedy.
/// [`Sandbox::prefer`](crate::Sandbox::prefer) goes on without those marked
/// *optional*; the others carry the rest.
#[non_exhaustive]
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    /// Its root is nobody outside. Everything else is built in it.
    UserNamespace = 0,
    /// A root file system of its own.
    MountNamespace = 1,
    /// It sees, and can signal, only its own processes; they all end with it.
    PidNamespace = 2,
    /// Shared memory, semaphores and message queues of its own; POSIX ones show in
    /// `/dev/mqueue`.
    IpcNamespace = 3,
    /// A host name of its own.
    UtsNamespace = 4,
    /// A network of its own (with [`Network::None`](crate::Network::None)).
    NetworkNamespace = 5,
    /// It doesn't see where in the host's cgroups it runs. *Optional.*
    CgroupNamespace = 6,
    /// The writable layer above an image. *Optional*: without it each run has a copy of
    /// the image in its writable layer, which must be large enough ([`Sandbox::writable`]
    /// counts it) and takes as long as copying does; names of one file become files of
    /// their own there, and extended attributes and devices are left out. Runs that
    /// [keep their changes](crate::Sandbox::keep_changes) need it.
    ///
    /// [`Sandbox::writable`]: crate::Sandbox::writable
    Overlay = 7,
    /// As root: files of images and binds have their right owners inside.
    /// *Optional*: without it they belong to nobody, and can't be written. Sandboxes on a
    /// [`Checkpoint`](crate::Checkpoint) share their ids where tmpfs doesn't have it,
    /// unless it's [required](crate::Sandbox::require).
    IdMappedMounts = 8,
    /// As an ordinary user: 65,536 ids from /etc/subuid instead of one, with which files of
    /// images have their owners. Not required by default;
    /// [`require`](crate::Sandbox::require) it for images whose programs change users.
    /// *Optional.*
    SubordinateIds = 9,
    /// Setuid programs and file capabilities give nothing.
    NoNewPrivileges = 10,
    /// All capability sets are empty, or as the recipe says.
    Capabilities = 11,
    /// The system call filter. *Optional*, and the last to give up.
    SyscallFilter = 12,
    /// A control group that limits memory (with [`Sandbox::memory`](crate::Sandbox::memory)).
    /// *Optional.*
    MemoryLimit = 13,
    /// A limit on processes. Without a control group each user's processes are counted
    /// by themselves (RLIMIT_NPROC). *Optional.*
    ProcessLimit = 14,
    /// A control group that limits CPU bandwidth (with [`Sandbox::cpus`](crate::Sandbox::cpus)).
    /// *Optional.*
    CpuBandwidth = 15,
    /// A control group that counts CPU time (with [`Sandbox::cpu_time`](crate::Sandbox::cpu_time)
    /// or [`idle_time`](crate::Sandbox::idle_time)). *Optional*: without it the main process
    /// and its dead children are counted, and every other process has the limit for itself.
    CpuAccount = 16,
    /// A control group that pins the run to CPUs (with
    /// [`Sandbox::cpuset`](crate::Sandbox::cpuset)). *Optional.*
    CpuPinning = 17,
    /// Landlock, the second fence: only what the mounts make writable can be written; no
    /// signal and no abstract socket reaches out of the sandbox; no TCP where the system
    /// call policy knows no sockets. Which of these the kernel has is its version's
    /// matter (Linux 5.19 to 6.12). Not required by default: where it's missing
    /// [`Output::missing`](crate::Output::missing) says so. *Optional.*
    Landlock = 18,
    /// The threads of one processor core never run two sandboxes at a time, nor one and
    /// the host: what they share tells much. It needs a kernel with core scheduling
    /// (CONFIG_SCHED_CORE), and nothing where cores have one thread. Not required by
    /// default, and only told as missing to whom
    /// [prefers](crate::Sandbox::prefer) it. *Optional.*
    CoreScheduling = 19,
    /// Before the command is executed the host reads from outside what its process is,
    /// and compares it with the recipe. It needs to see that process in its own /proc.
    /// *Optional.*
    ReadBack = 20,
}

impl Layer {
    /// Every layer.
    pub const ALL: [Layer; 21] = [
        Layer::UserNamespace,
        Layer::MountNamespace,
        Layer::PidNamespace,
        Layer::IpcNamespace,
        Layer::UtsNamespace,
        Layer::NetworkNamespace,
        Layer::CgroupNamespace,
        Layer::Overlay,
        Layer::IdMappedMounts,
        Layer::SubordinateIds,
        Layer::NoNewPrivileges,
        Layer::Capabilities,
        Layer::SyscallFilter,
        Layer::MemoryLimit,
        Layer::ProcessLimit,
        Layer::CpuBandwidth,
        Layer::CpuAccount,
        Layer::CpuPinning,
        Layer::Landlock,
        Layer::CoreScheduling,
        Layer::ReadBack,
    ];

    /// The name in snake_case.
    pub fn name(self) -> &'static str {
        match self {
            Layer::UserNamespace => "user_namespace",
            Layer::MountNamespace => "mount_namespace",
            Layer::PidNamespace => "pid_namespace",
            Layer::IpcNamespace => "ipc_namespace",
            Layer::UtsNamespace => "uts_namespace",
            Layer::NetworkNamespace => "network_namespace",
            Layer::CgroupNamespace => "cgroup_namespace",
            Layer::Overlay => "overlay",
            Layer::IdMappedMounts => "id_mapped_mounts",
            Layer::SubordinateIds => "subordinate_ids",
            Layer::NoNewPrivileges => "no_new_privileges",
            Layer::Capabilities => "capabilities",
            Layer::SyscallFilter => "syscall_filter",
            Layer::MemoryLimit => "memory_limit",
            Layer::ProcessLimit => "process_limit",
            Layer::CpuBandwidth => "cpu_bandwidth",
            Layer::CpuAccount => "cpu_account",
            Layer::CpuPinning => "cpu_pinning",
            Layer::Landlock => "landlock",
            Layer::CoreScheduling => "core_scheduling",
            Layer::ReadBack => "read_back",
        }
    }

    /// The layer of that name.
    pub fn from_name(name: &str) -> Option<Layer> {
        Layer::ALL.into_iter().find(|layer| layer.name() == name)
    }

    /// Whether [`prefer`](crate::Sandbox::prefer) may leave it out.
    pub fn optional(self) -> bool {
        use Layer::{
            CgroupNamespace, CoreScheduling, CpuAccount, CpuBandwidth, CpuPinning, IdMappedMounts, Landlock, MemoryLimit, Overlay,
            ProcessLimit, ReadBack, SubordinateIds, SyscallFilter,
        };
        matches!(
            self,
            CgroupNamespace
                | IdMappedMounts
                | Overlay
                | SubordinateIds
                | SyscallFilter
                | MemoryLimit
                | ProcessLimit
                | CpuBandwidth
                | CpuAccount
                | CpuPinning
                | Landlock
                | CoreScheduling
                | ReadBack
        )
    }

    /// Whether a recipe goes on without it unless it's [required](crate::Sandbox::require).
    pub(crate) fn by_choice(self) -> bool {
        matches!(self, Layer::SubordinateIds | Layer::Landlock | Layer::CoreScheduling)
    }

    pub(crate) fn bit(self) -> u64 {
        1 << self as u8
    }

    pub(crate) fn of_bits(bits: u64) -> Vec<Layer> {
        Layer::ALL.into_iter().filter(|layer| bits & layer.bit() != 0).collect()
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().replace('_', " "))
    }
}

/// Whether a layer of a recipe can be had here.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// It was made, just now.
    Works,
    /// It was made, as far as this kernel has it; the text says what stands.
    Partial(String),
    /// The recipe has no use for it, for the reason given.
    Unused(String),
    /// It can't be had; the text says why and what would help.
    Missing(String),
    /// An earlier failure kept it from being tried.
    Untried,
}

/// What of a recipe can be had on this machine: the answer of
/// [`Sandbox::check`](crate::Sandbox::check). Its [`Display`](fmt::Display) form is
/// a table.
#[derive(Clone, Debug)]
pub struct Report {
    pub(crate) layers: Vec<(Layer, LayerState)>,
    pub(crate) works: bool,
    pub(crate) notes: Vec<String>,
}

impl Report {
    /// Whether the recipe would run, with what it said it can do without left out.
    pub fn works(&self) -> bool {
        self.works
    }

    /// What the recipe's parts mean for each other and may surprise, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(crate) fn set(&mut self, layer: Layer, state: LayerState) {
        self.layers[layer as usize].1 = state;
    }

    /// Of all that nothing is known of yet.
    pub(crate) fn set_untried(&mut self, state: impl Fn(Layer) -> LayerState) {
        for (layer, known) in self.layers.iter_mut().filter(|(_, known)| *known == LayerState::Untried) {
            *known = state(*layer);
        }
    }

    /// Every layer and its state.
    pub fn layers(&self) -> impl Iterator<Item = (Layer, &LayerState)> {
        self.layers.iter().map(|(layer, state)| (*layer, state))
    }

    /// The state of one layer.
    pub fn state(&self, layer: Layer) -> &LayerState {
        self.layers.iter().find(|(l, _)| *l == layer).map_or(&LayerState::Untried, |(_, state)| state)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (layer, state) in &self.layers {
            let (word, text) = match state {
                LayerState::Works => ("works", ""),
                LayerState::Partial(what) => ("partial", what.as_str()),
                LayerState::Unused(why) => ("unused", why.as_str()),
                LayerState::Missing(why) => ("MISSING", why.as_str()),
                LayerState::Untried => ("untried", "an earlier failure came first"),
            };
            writeln!(f, "{}", format!("{:<20} {word:<8} {text}", layer.to_string()).trim_end())?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        writeln!(f, "{}", if self.works { "this recipe runs here" } else { "this recipe can't run here" })
    }
}

/// What the host program is, gathered once when init starts.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// It may map any id and mount: CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID.
    pub(crate) privileged: bool,
    /// It's in a user namespace that has only some ids: a rootless container, or
    /// `unshare -r`. Whatever it's called there, it's an ordinary user to us.
    pub(crate) nested: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) cgroup_namespace: bool,
    /// The kernel has POSIX message queues.
    pub(crate) message_queues: bool,
    /// It may configure network devices (in a user namespace of its own anybody may).
    pub(crate) network_admin: bool,
    /// Layers of an overlay may be anywhere (Linux 6.15).
    pub(crate) takes_layers_from_anywhere: bool,
    /// Sockets are counted: see `net/count.rs`.
    pub(crate) counts_sockets: bool,
    pub(crate) hard_limits: Vec<(Resource, u64)>,
    pub(crate) cpu: cpu::Facts,
    /// Parts of /proc that can be masked.
    pub(crate) proc: Present,
    /// The version of Landlock, or why there's none.
    pub(crate) landlock: Result<u32, String>,
}

impl Facts {
    pub(crate) fn gather() -> Facts {
        const NET_ADMIN: u64 = 1 << 12;
        let effective = crate::sys::capabilities::effective().unwrap_or(0);
        // What is limited unasked must not be above the host's own limits.
        let implicit = Resource::DEFAULTS.iter().map(|(resource, ..)| *resource).chain([Resource::CpuSeconds]);
        let nested = nested();
        let privileged = !nested && suffices(effective);
        Facts {
            privileged,
            network_admin: !privileged || effective & NET_ADMIN != 0,
            takes_layers_from_anywhere: privileged && takes_layers_from_anywhere(),
            counts_sockets: false,
            nested,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            cgroup_namespace: fs::exists("/proc/self/ns/cgroup").unwrap_or(false),
            message_queues: fs::exists("/proc/sys/fs/mqueue").unwrap_or(false),
            hard_limits: implicit.map(|resource| (resource, hard_limit(resource))).collect(),
            cpu: cpu::Facts::gather(),
            proc: Present::look(),
            landlock: landlock(),
        }
    }

    pub(crate) fn hard_limit(&self, resource: Resource) -> u64 {
        self.hard_limits.iter().find(|(r, _)| *r == resource).map_or(u64::MAX, |(_, limit)| *limit)
    }

    /// Facts for tests of plans, which look at no machine.
    #[cfg(test)]
    pub(crate) fn of_root() -> Facts {
        Facts {
            privileged: true,
            nested: false,
            uid: 0,
            gid: 0,
            cgroup_namespace: true,
            message_queues: true,
            network_admin: true,
            takes_layers_from_anywhere: true,
            counts_sockets: true,
            hard_limits: Vec::new(),
            cpu: cpu::Facts::all(),
            proc: Present::all(),
            landlock: Ok(7),
        }
    }
}

/// Whether this thread is root as [`Facts::privileged`] means it, and nothing else: for
/// what is done more often than starting init.
pub(crate) fn privileged() -> bool {
    crate::sys::capabilities::effective().is_ok_and(suffices) && !nested()
}

fn suffices(capabilities: u64) -> bool {
    const CHOWN: u64 = 1;
    const DAC_OVERRIDE: u64 = 1 << 1;
    const FOWNER: u64 = 1 << 3;
    const SETGID: u64 = 1 << 6;
    const SETUID: u64 = 1 << 7;
    const SYS_CHROOT: u64 = 1 << 18;
    const SYS_ADMIN: u64 = 1 << 21;
    const NEEDED: u64 = CHOWN | DAC_OVERRIDE | FOWNER | SETGID | SETUID | SYS_CHROOT | SYS_ADMIN;
    capabilities & NEEDED == NEEDED
}

fn nested() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !has_all_ids(&map))
}

fn landlock() -> Result<u32, String> {
    match crate::sys::landlock::abi() {
        Ok(abi) if abi < crate::policy::landlock::LEAST => {
            Err("the first version of Landlock refuses renames between directories (Linux 5.19 has the second)".into())
        }
        Ok(abi) => Ok(abi),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Err("Landlock is switched off (add landlock to the kernel's lsm= list)".into())
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            Err("this kernel was built without CONFIG_SECURITY_LANDLOCK, or a system call filter around this program hides it".into())
        }
        Err(error) => Err(format!("Landlock can't be used: {error}")),
    }
}

/// Whether a map (user_namespaces(7)) is that of the initial user namespace.
fn has_all_ids(map: &str) -> bool {
    let numbers: Vec<u64> = map.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    numbers == [0, 0, u64::from(u32::MAX)]
}

fn hard_limit(resource: Resource) -> u64 {
    use nix::sys::resource::{Resource as Kernel, getrlimit};
    let kernel = match resource {
        Resource::Core => Kernel::RLIMIT_CORE,
        Resource::FileSize => Kernel::RLIMIT_FSIZE,
        Resource::LockedMemory => Kernel::RLIMIT_MEMLOCK,
        Resource::MessageQueues => Kernel::RLIMIT_MSGQUEUE,
        Resource::Nice => Kernel::RLIMIT_NICE,
        Resource::OpenFiles => Kernel::RLIMIT_NOFILE,
        Resource::Processes => Kernel::RLIMIT_NPROC,
        Resource::RealTimePriority => Kernel::RLIMIT_RTPRIO,
        Resource::PendingSignals => Kernel::RLIMIT_SIGPENDING,
        Resource::Stack => Kernel::RLIMIT_STACK,
        Resource::AddressSpace => Kernel::RLIMIT_AS,
        Resource::CpuSeconds => Kernel::RLIMIT_CPU,
        Resource::Data => Kernel::RLIMIT_DATA,
    };
    getrlimit(kernel).map_or(u64::MAX, |(_, hard)| hard)
}

/// Ids that /etc/subuid and /etc/subgid give to a user (subuid(5)): the first
/// range of each that has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subordinate {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) count: u32,
}

impl Subordinate {
    pub(crate) fn of(uid: u32) -> Option<Subordinate> {
        let [uids, gids] = [fs::read_to_string("/etc/subuid").ok()?, fs::read_to_string("/etc/subgid").ok()?];
        // Most users have no line at all, or one with their number.
        let named = [&uids, &gids].iter().any(|table| range(table, uid, None).is_none() && has_names(table));
        let name = if named { user_name(uid) } else { None };
        let find = |table| range(table, uid, name.as_deref());
        let ((uid, uids), (gid, gids)) = (find(&uids)?, find(&gids)?);
        Some(Subordinate { uid, gid, count: uids.min(gids).min(65_535) })
    }
}

fn has_names(table: &str) -> bool {
    table.lines().any(|line| line.starts_with(|c: char| !c.is_ascii_digit() && c != '#'))
}

/// The name of a user.
///
/// Never by getpwuid(3), which loads modules into the host program (nsswitch.conf(5)): a
/// child that another thread forks meanwhile finds its dynamic loader in the middle of
/// that, and dies of it. Users that aren't in the file are looked up in another process.
fn user_name(uid: u32) -> Option<String> {
    let listed = fs::read_to_string("/etc/passwd").ok().and_then(|table| name_in(&table, uid));
    listed.or_else(|| {
        let mut id = Command::new("id")
            .args(["-un", &uid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut name = String::new();
        let read = id.stdout.take()?.take(1000).read_to_string(&mut name);
        // Somebody else may have reaped it: what it said is the answer.
        let _ = id.wait();
        read.ok().map(|_| name.trim().to_string()).filter(|name| !name.is_empty())
    })
}

/// passwd(5)
fn name_in(table: &str, uid: u32) -> Option<String> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        (id.parse() == Ok(uid)).then(|| name.to_string())
    })
}

fn range(table: &str, uid: u32, name: Option<&str>) -> Option<(u32, u32)> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        if owner != uid.to_string() && Some(owner) != name {
            return None;
        }
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?);
        (count > 0).then_some((first, count))
    })
}

/// How init can start for these facts, best first, with what is known of the way.
pub(crate) fn starts(facts: &Facts) -> Vec<(Start, Option<Subordinate>)> {
    if facts.privileged {
        return vec![(Start::Root, None)];
    }
    let single = (Start::Single { uid: facts.uid, gid: facts.gid }, None);
    match Subordinate::of(facts.uid) {
        Some(ids) => vec![(Start::Subordinate, Some(ids)), single],
        None => vec![single],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_found_by_name_and_by_number() {
        let table = "# comment\nalice:100000:65536\n1001:200000:65536\nbroken:x:y\nempty:1:0\n";
        assert_eq!(range(table, 1000, Some("alice")), Some((100_000, 65_536)));
        assert_eq!(range(table, 1001, None), Some((200_000, 65_536)));
        assert_eq!(range(table, 1002, Some("empty")), None);
        assert_eq!(range(table, 1003, Some("broken")), None);
        assert!(has_names(table) && !has_names("# comment\n1001:200000:65536\n"));
    }

    #[test]
    fn users_are_found_in_a_table() {
        let table = "root:x:0:0:root:/root:/bin/sh\n+nis\nalice:x:1000:1000::/home/alice:/bin/sh\nbob:x:no\n";
        assert_eq!(name_in(table, 1000).as_deref(), Some("alice"));
        assert_eq!(name_in(table, 1001), None);
        // By a process of its own: this one is in every table.
        assert_eq!(user_name(0).as_deref(), Some("root"));
    }

    #[test]
    fn the_initial_user_namespace_is_known_by_its_map() {
        assert!(has_all_ids("         0          0 4294967295\n"));
        assert!(!has_all_ids("0 1000 1\n"));
        assert!(!has_all_ids("0 1000 1\n1 100000 65536\n"));
        assert!(!has_all_ids(""));
    }

    #[test]
    fn names_of_layers_lead_back_to_them() {
        for layer in Layer::ALL {
            assert_eq!(Layer::from_name(layer.name()), Some(layer));
            assert_eq!(Layer::of_bits(layer.bit()), [layer]);
        }
        assert_eq!(Layer::from_name("no such"), None);
    }
}
