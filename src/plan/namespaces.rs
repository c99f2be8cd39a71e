//! Steps that make the namespaces and the id maps, in the outer stage, and that
//! settle PID 1 in them, in the inner one.

use super::wire::{AT_FDCWD, op, slot};
use super::{Area, Arg, Draft, Mark};
use crate::layer::{IdMap, IdRange};
use crate::net::Network;
use crate::policy::filter::Filter;
use crate::probe::{Facts, Layer, Subordinate};
use crate::sandbox::Sandbox;

/// Which ids exist inside, and what they are outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    /// 65,536 ids from this one on, which belong to nobody on the host; `shared` with all
    /// sandboxes on a checkpoint, whose files have them.
    Range { first: u32, shared: bool },
    /// An ordinary user with subordinate ids: the same ids as in init's user
    /// namespace, this many.
    Outer { count: u32 },
    /// An ordinary user's own id, under one number inside.
    Single { uid: u32, gid: u32 },
}

/// Ids in a sandbox started by root: 0 to 65,535.
pub(crate) const RANGE: u32 = 65_536;

impl Ids {
    fn maps(self) -> (String, String) {
        match self {
            Ids::Range { first, .. } => (format!("0 {first} {RANGE}"), format!("0 {first} {RANGE}")),
            // Two lines: one may not span two lines of the parent's map, which are
            // the user's own id and the subordinate ones (map_write in the kernel).
            Ids::Outer { count } => {
                let map = format!("0 0 1\n1 1 {}", count - 1);
                (map.clone(), map)
            }
            Ids::Single { uid, gid } => (format!("{uid} 0 1"), format!("{gid} 0 1")),
        }
    }

    /// The ids of PID 1 inside.
    fn init(self) -> (u32, u32) {
        match self {
            Ids::Single { uid, gid } => (uid, gid),
            _ => (0, 0),
        }
    }

    /// setgroups(2) works.
    pub(crate) fn groups(self) -> bool {
        !matches!(self, Ids::Single { .. })
    }

    /// How ids outside are called inside.
    pub(crate) fn map(self, facts: &Facts, further: Option<&Subordinate>) -> IdMap {
        let range = |here, there, count| IdRange { here, there, count };
        match self {
            Ids::Range { first, .. } => IdMap::same(vec![range(first, 0, RANGE)]),
            Ids::Outer { count } => {
                let mut map = IdMap { uids: vec![range(facts.uid, 0, 1)], gids: vec![range(facts.gid, 0, 1)] };
                if let Some(further) = further {
                    map.uids.push(range(further.uid, 1, count - 1));
                    map.gids.push(range(further.gid, 1, count - 1));
                }
                map
            }
            Ids::Single { uid, gid } => IdMap { uids: vec![range(facts.uid, uid, 1)], gids: vec![range(facts.gid, gid, 1)] },
        }
    }

    /// A user id that no process of the run has, if there is one.
    pub(crate) fn shield(self, user: u32) -> Option<u32> {
        let shield = if user == 1 { 2 } else { 1 };
        (self.contains(shield) && !matches!(self, Ids::Single { .. })).then_some(shield)
    }

    /// Whether inside id `id` exists.
    pub(crate) fn contains(self, id: u32) -> bool {
        match self {
            Ids::Range { .. } => id < RANGE,
            Ids::Outer { count } => id < count,
            Ids::Single { .. } => true,
        }
    }
}

/// Where the network namespace comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It's the host's.
    Host,
    /// Made ahead by init, whose user namespace owns it.
    Ahead,
    /// Made with the sandbox, whose user namespace owns it.
    Own,
}

pub(crate) fn network_origin(sandbox: &Sandbox, facts: &Facts) -> Origin {
    match sandbox.network {
        Network::Host => Origin::Host,
        // What capabilities over a network are good for needs one of the sandbox's own.
        Network::None if facts.network_admin && sandbox.kept_capabilities() == 0 => Origin::Ahead,
        Network::None => Origin::Own,
    }
}

/// Whether it can be told if there was a socket in its network namespace, which may serve
/// again otherwise.
pub(crate) fn counts_sockets(sandbox: &Sandbox, facts: &Facts, filter: Option<&Filter>) -> bool {
    let plain = filter.is_some_and(|filter| filter.plain_sockets) && !sandbox.prefers(Layer::SyscallFilter);
    // What is bound may have a socket in it that leads to others: see `init/sockets.rs`.
    shows_sockets(sandbox, facts) && plain && !sandbox.reuse_network && sandbox.has_own_files_only()
}

/// The same as far as PID 1 needs it that is made ahead.
fn shows_sockets(sandbox: &Sandbox, facts: &Facts) -> bool {
    // Of what may change its mounts PID 1 opens nothing.
    facts.counts_sockets && !sandbox.nesting && !sandbox.borrowed_proc && network_origin(sandbox, facts) == Origin::Ahead
}

/// Opens what says whether something is left of sockets, while procfs is PID 1's root.
pub(crate) fn show_sockets(draft: &mut Draft, sandbox: &Sandbox, facts: &Facts) {
    if shows_sockets(sandbox, facts) {
        draft.area(Area::Setup);
        for (slot, name) in [(slot::SOCKETS, "sockstat"), (slot::ROUTES, "rt6_stats")] {
            let path = draft.text(format!("/self/net/{name}"));
            let args = [AT_FDCWD.into(), path, (libc::O_RDONLY | libc::O_CLOEXEC).into()];
            draft.step(libc::SYS_openat, &args, "open", format!("/proc/net/{name}")).keep_in(slot).tolerate(libc::ENOENT);
        }
    }
}

/// Clones PID 1 into new namespaces and maps its ids; returns the slot of its
/// user namespace if `wanted`.
pub(crate) fn outer(draft: &mut Draft, sandbox: &Sandbox, facts: &Facts, ids: Ids, wanted: bool) -> Option<u8> {
    draft.area(Area::Namespaces);
    let mut flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    match network_origin(sandbox, facts) {
        Origin::Host => {}
        Origin::Ahead => {
            draft.step(op::NETWORK, &[], "make", "a network namespace").layer(Layer::NetworkNamespace, false);
        }
        Origin::Own => flags |= libc::CLONE_NEWNET,
    }
    draft.step(op::CLONE, &[(flags as u32).into()], "make", "the namespaces").layer(Layer::UserNamespace, false);
    draft.area(Area::IdMap);
    let (uids, gids) = ids.maps();
    write_map(draft, "uid_map", &uids);
    write_map(draft, "gid_map", &gids);
    wanted.then(|| {
        let (slot, name) = (draft.temporary(), draft.text("ns/user"));
        draft.step(op::PROC_OPEN, &[name, libc::O_RDONLY.into()], "open", "the user namespace").keep_in(slot);
        slot
    })
}

fn write_map(draft: &mut Draft, name: &'static str, map: &str) {
    let (slot, path, text) = (draft.temporary(), draft.text(name), draft.text(map));
    draft.step(op::PROC_OPEN, &[path, libc::O_WRONLY.into()], "open", name).keep_in(slot);
    draft.step(libc::SYS_write, &[Arg::Slot(slot), text, map.len().into()], "write", format!("{name} ({})", map.replace('\n', ", ")));
    draft.close(slot);
}

/// Ends the outer stage.
pub(crate) fn hand_over(draft: &mut Draft) {
    draft.area(Area::Setup);
    draft.step(op::HAND_OVER, &[], "hand over", "what was opened");
}

/// First part of the inner stage: what needs neither a file nor an id, while the outer
/// child is still busy with them.
pub(crate) fn alone(draft: &mut Draft, sandbox: &Sandbox, facts: &Facts) {
    draft.area(Area::Setup);
    if network_origin(sandbox, facts) == Origin::Own {
        draft.area(Area::Network);
        loopback_up(draft);
        draft.area(Area::Setup);
    }
    let name = draft.text(&sandbox.hostname);
    draft.step(libc::SYS_sethostname, &[name, sandbox.hostname.len().into()], "set", "the host name");
    draft.area(Area::Privileges);
    draft.step(op::DROP_BOUNDING, &[sandbox.kept_capabilities().into()], "drop", "the capability bounding set");
}

/// Waits for the outer child; from here on ids are mapped.
pub(crate) fn receive(draft: &mut Draft, ids: Ids) {
    draft.area(Area::Setup);
    draft.step(op::RECEIVE, &[], "receive", "what was opened");
    draft.area(Area::IdMap);
    // The process was the host's root until here, an id that doesn't exist
    // inside. Capabilities stay: they belong to the user namespace.
    let (uid, gid) = ids.init();
    draft.step(libc::SYS_setresgid, &[gid.into(), gid.into(), gid.into()], "become", "group 0 of the sandbox");
    if ids.groups() {
        draft.step(libc::SYS_setgroups, &[0.into(), 0.into()], "drop", "supplementary groups");
    }
    draft.step(libc::SYS_setresuid, &[uid.into(), uid.into(), uid.into()], "become", "user 0 of the sandbox");
}

/// A new network namespace's loopback device is down: servers on 127.0.0.1
/// would fail.
fn loopback_up(draft: &mut Draft) {
    let socket = draft.temporary();
    let args = [libc::AF_INET.into(), (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC).into(), 0.into()];
    draft.step(libc::SYS_socket, &args, "open", "a socket").keep_in(socket);
    // struct ifreq: a name of 16 bytes, then the flags.
    let mut request = [0u8; 40];
    request[..2].copy_from_slice(b"lo");
    request[16..18].copy_from_slice(&((libc::IFF_UP | libc::IFF_RUNNING) as u16).to_le_bytes());
    let request = draft.data(&request);
    draft.step(libc::SYS_ioctl, &[Arg::Slot(socket), libc::SIOCSIFFLAGS.into(), request], "bring up", "the loopback device");
    draft.close(socket);
}

/// Limits what the kernel counts by user namespace (namespaces(7), "The
/// /proc/sys/user directory"), when procfs is PID 1's root: no user namespace below this
/// one, where a workload would have all capabilities; and not so much of what
/// one user of the host may have in all that its other programs go without.
pub(crate) fn limits(draft: &mut Draft) {
    draft.area(Area::Privileges);
    for (name, most) in [("max_user_namespaces", "0"), ("max_inotify_instances", "64"), ("max_inotify_watches", "65536")] {
        let (slot, path, text) = (draft.temporary(), draft.text(format!("/sys/user/{name}")), draft.text(most));
        let args = [AT_FDCWD.into(), path, (libc::O_WRONLY | libc::O_CLOEXEC).into()];
        draft.step(libc::SYS_openat, &args, "open", format!("user.{name}")).keep_in(slot);
        draft.step(libc::SYS_write, &[Arg::Slot(slot), text, most.len().into()], "limit", format!("user.{name}"));
        draft.close(slot);
    }
}

/// Last part of the inner stage: PID 1 settles.
pub(crate) fn settle(draft: &mut Draft, sandbox: &Sandbox, ids: Ids) {
    draft.area(Area::Privileges);
    // Whoever has the very ids of a process may change its resource limits, and with
    // RLIMIT_CPU kill it (prlimit(2) asks for all three of each kind); whoever has its
    // real or saved user id may send it signals, which PID 1 is safe from, but not what it
    // forks. Nobody has different ones by exec, and the command gives these up at once.
    if let Some(shield) = ids.shield(sandbox.account().0) {
        draft.step(libc::SYS_setresgid, &[0.into(), 0.into(), 1.into()], "protect", "PID 1");
        draft.step(libc::SYS_setresuid, &[shield.into(), 0.into(), shield.into()], "protect", "PID 1");
    }
    // Nobody inside may trace PID 1 or open its memory or executable.
    draft.step(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE.into(), 0.into(), 0.into(), 0.into(), 0.into()], "protect", "PID 1");
    // After the last change of credentials, which would clear it.
    draft.area(Area::Setup);
    draft.step(op::DIE_WITH_INIT, &[], "tie PID 1 to", "init");
}
