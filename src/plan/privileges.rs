//! Steps of the command stage that give up what the workload must not have.
//!
//! The order matters: groups before the user id, capabilities after it (a change
//! of user clears some), no_new_privs before the filter (which needs it), the
//! filter last, because every step after it must pass it.

use super::{Area, Arg, Draft, Mark};
use crate::policy::bpf::Instruction;
use crate::probe::Layer;
use crate::sandbox::Sandbox;

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Becomes the run's user, with `capabilities` or, by default, none.
pub(crate) fn credentials(draft: &mut Draft, sandbox: &Sandbox, groups: bool) {
    draft.area(Area::Privileges);
    let (uid, gid) = sandbox.account();
    let keep = sandbox.kept_capabilities();
    draft.step(libc::SYS_setresgid, &[gid.into(), gid.into(), gid.into()], "become", format!("group {gid}"));
    if groups {
        draft.step(libc::SYS_setgroups, &[0.into(), 0.into()], "drop", "supplementary groups");
    }
    if keep != 0 && uid != 0 {
        prctl(draft, libc::PR_SET_KEEPCAPS, 1, "keep capabilities");
    }
    draft.step(libc::SYS_setresuid, &[uid.into(), uid.into(), uid.into()], "become", format!("user {uid}"));
    // Root regains its bounding set at exec; anybody else needs the ambient set.
    let inheritable = if uid == 0 { 0 } else { keep };
    let header = draft.data(&u64::from(CAPABILITY_VERSION_3).to_le_bytes());
    let halves = |set: u64| [set as u32, (set >> 32) as u32];
    let (own, handed_on) = (halves(keep), halves(inheritable));
    let words = [own[0], own[0], handed_on[0], own[1], own[1], handed_on[1]];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let sets = draft.data(&bytes);
    draft.step(libc::SYS_capset, &[header, sets], "set", "the capabilities");
    for capability in (0..64u64).filter(|c| inheritable >> c & 1 == 1) {
        let args = [libc::PR_CAP_AMBIENT.into(), libc::PR_CAP_AMBIENT_RAISE.into(), capability.into(), 0.into(), 0.into()];
        draft.step(libc::SYS_prctl, &args, "keep", "a capability");
    }
}

/// no_new_privs and the system call filter.
pub(crate) fn fences(draft: &mut Draft, sandbox: &Sandbox, filter: Option<&[Instruction]>) {
    draft.area(Area::Privileges);
    if filter.is_none() || sandbox.prefers(Layer::SyscallFilter) {
        // The host's session keyring is inherited, and whoever possesses it may read its
        // keys, whatever the ids. The default filter refuses all calls that could.
        let args = [libc::KEYCTL_JOIN_SESSION_KEYRING.into(), 0.into()];
        draft.step(libc::SYS_keyctl, &args, "make", "a session keyring").tolerate(libc::ENOSYS);
    }
    prctl(draft, libc::PR_SET_NO_NEW_PRIVS, 1, "set no_new_privs");
    let Some(filter) = filter else { return };
    draft.area(Area::Filter);
    let bytes: Vec<u8> = filter
        .iter()
        .flat_map(|i| {
            let [c0, c1] = i.code.to_le_bytes();
            let [k0, k1, k2, k3] = i.k.to_le_bytes();
            [c0, c1, i.jt, i.jf, k0, k1, k2, k3]
        })
        .collect();
    let program = draft.data(&bytes);
    // struct sock_fprog: a length, padding, a pointer.
    let header = draft.words(&[filter.len() as u64, 0]);
    draft.point(header, 8, program);
    let prefer = sandbox.prefers(Layer::SyscallFilter);
    draft
        .step(libc::SYS_seccomp, &[libc::SECCOMP_SET_MODE_FILTER.into(), 0.into(), header], "install", "the system call filter")
        .layer(Layer::SyscallFilter, prefer);
}

fn prctl(draft: &mut Draft, option: i32, value: u32, doing: &'static str) {
    draft.step(libc::SYS_prctl, &[option.into(), value.into(), 0.into(), 0.into(), 0.into()] as &[Arg], doing, "");
}
