//! Steps of the command stage that give up what the workload must not have.
//!
//! The order matters: groups before the user id, capabilities after it (a change
//! of user clears some), no_new_privs before the filter (which needs it), the
//! filter last, because every step after it must pass it.

use super::wire::{self, slot};
use super::{Area, Arg, Draft, Mark};
use crate::cpu::Speculation;
use crate::error::{Error, Result};
use crate::policy::filter::Filter;
use crate::probe::{Facts, Layer};
use crate::sandbox::Sandbox;
use crate::sys::prctl::PR_SET_SPECULATION_CTRL;

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Becomes the run's user, with `capabilities` or, by default, none, and for good.
pub(crate) fn credentials(draft: &mut Draft, sandbox: &Sandbox, groups: bool) {
    draft.area(Area::Privileges);
    let (uid, gid) = sandbox.account();
    let keep = sandbox.kept_capabilities();
    draft.step(libc::SYS_setresgid, &[gid.into(), gid.into(), gid.into()], "become", format!("group {gid}"));
    if groups {
        let list = sandbox.groups();
        if list.is_empty() {
            draft.step(libc::SYS_setgroups, &[0.into(), 0.into()], "drop", "supplementary groups");
        } else {
            let bytes: Vec<u8> = list.iter().flat_map(|group| group.to_le_bytes()).collect();
            let ids = draft.data(&bytes);
            draft.step(libc::SYS_setgroups, &[list.len().into(), ids], "join", "the groups of the image's user");
        }
    }
    if keep != 0 && uid != 0 {
        prctl(draft, libc::PR_SET_KEEPCAPS, 1, "keep capabilities");
    }
    draft.step(libc::SYS_setresuid, &[uid.into(), uid.into(), uid.into()], "become", format!("user {uid}"));
    // Root regains its bounding set at exec; anybody else needs the ambient set.
    let inheritable = if uid == 0 { 0 } else { keep };
    set_capabilities(draft, keep, inheritable);
    for capability in (0..64u64).filter(|c| inheritable >> c & 1 == 1) {
        let args = [libc::PR_CAP_AMBIENT.into(), libc::PR_CAP_AMBIENT_RAISE.into(), capability.into(), 0.into(), 0.into()];
        draft.step(libc::SYS_prctl, &args, "keep", "a capability");
    }
    prctl(draft, libc::PR_SET_NO_NEW_PRIVS, 1, "set no_new_privs");
}

/// Gives up all that this process could do beyond its user's rights.
pub(crate) fn no_capabilities(draft: &mut Draft) {
    set_capabilities(draft, 0, 0);
}

fn set_capabilities(draft: &mut Draft, own: u64, inheritable: u64) {
    let header = draft.data(&u64::from(CAPABILITY_VERSION_3).to_le_bytes());
    let halves = |set: u64| [set as u32, (set >> 32) as u32];
    let (own, handed_on) = (halves(own), halves(inheritable));
    let words = [own[0], own[0], handed_on[0], own[1], own[1], handed_on[1]];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let sets = draft.data(&bytes);
    draft.step(libc::SYS_capset, &[header, sets], "set", "the capabilities");
}

/// What is a matter of the processor: which sandboxes share a core, how far it
/// speculates, and where programs lie in memory.
pub(crate) fn processor(draft: &mut Draft, sandbox: &Sandbox, facts: &Facts) -> Result<()> {
    const PR_SCHED_CORE: i32 = 62;
    const PR_SCHED_CORE_CREATE: u32 = 1;
    const WHOLE_PROCESS: u32 = 1;
    const PR_SPEC_FORCE_DISABLE: u32 = 8;
    const ADDR_NO_RANDOMIZE: u32 = 0x004_0000;
    draft.area(Area::Processor);
    let required = sandbox.requires(Layer::CoreScheduling);
    match &facts.cpu.cores {
        Ok(false) => {}
        Ok(true) => {
            let args = [PR_SCHED_CORE.into(), PR_SCHED_CORE_CREATE.into(), 0.into(), WHOLE_PROCESS.into(), 0.into()];
            draft.step(libc::SYS_prctl, &args, "keep cores to", "this sandbox").layer(Layer::CoreScheduling, !required);
        }
        Err(why) if required => {
            return Err(Error::unsupported(format!("cannot keep cores to the sandbox: {why}")).about(Some(Layer::CoreScheduling)));
        }
        Err(_) if sandbox.prefers(Layer::CoreScheduling) => draft.missing |= Layer::CoreScheduling.bit(),
        Err(_) => {}
    }
    if sandbox.speculation == Speculation::Restricted {
        for (kind, name) in facts.cpu.restrictable()? {
            let args = [PR_SET_SPECULATION_CTRL.into(), kind.into(), PR_SPEC_FORCE_DISABLE.into(), 0.into(), 0.into()];
            draft.step(libc::SYS_prctl, &args, "switch off", name);
        }
    }
    let personality = if sandbox.aslr { 0 } else { ADDR_NO_RANDOMIZE };
    draft.step(libc::SYS_personality, &[personality.into()], "set", "the personality");
    Ok(())
}

/// The system call filter.
pub(crate) fn fences(draft: &mut Draft, sandbox: &Sandbox, filter: Option<&Filter>) {
    draft.area(Area::Privileges);
    if filter.is_none_or(|filter| !filter.closes_keyrings) || sandbox.prefers(Layer::SyscallFilter) {
        // The host's session keyring is inherited, and whoever possesses it may read its
        // keys, whatever the ids. Our own presets refuse all calls that could.
        let args = [libc::KEYCTL_JOIN_SESSION_KEYRING.into(), 0.into()];
        draft.step(libc::SYS_keyctl, &args, "make", "a session keyring").tolerate(libc::ENOSYS);
    }
    let Some(filter) = filter else { return };
    draft.area(Area::Filter);
    let bytes: Vec<u8> = filter
        .program
        .iter()
        .flat_map(|i| {
            let [c0, c1] = i.code.to_le_bytes();
            let [k0, k1, k2, k3] = i.k.to_le_bytes();
            [c0, c1, i.jt, i.jf, k0, k1, k2, k3]
        })
        .collect();
    let program = draft.data(&bytes);
    // struct sock_fprog: a length, padding, a pointer.
    let header = draft.words(&[filter.program.len() as u64, 0]);
    draft.point(header, 8, program);
    let prefer = sandbox.prefers(Layer::SyscallFilter);
    let listener = if filter.listens { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 } else { 0 };
    let unrestricted = sandbox.speculation == Speculation::Unrestricted;
    let speculation = if unrestricted { libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32 } else { 0 };
    let args = [libc::SECCOMP_SET_MODE_FILTER.into(), (filter.flags | listener | speculation).into(), header];
    let step = draft.step(libc::SYS_seccomp, &args, "install", "the system call filter").layer(Layer::SyscallFilter, prefer);
    if filter.listens {
        step.keep_in(slot::LISTENER);
        draft.settings.flags |= wire::LISTEN;
    }
}

fn prctl(draft: &mut Draft, option: i32, value: u32, doing: &'static str) {
    draft.step(libc::SYS_prctl, &[option.into(), value.into(), 0.into(), 0.into(), 0.into()] as &[Arg], doing, "");
}
