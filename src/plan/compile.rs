//! Recipe and command in, plan out.

use std::os::unix::ffi::OsStrExt;

use super::wire::{self, Stage, op};
use super::{Area, Arg, Draft, files, limits, namespaces, privileges};
use crate::command::Command;
use crate::error::{Error, Result};
use crate::policy::Syscalls;
use crate::policy::bpf::Instruction;
use crate::probe::{Facts, Layer};
use crate::sandbox::Sandbox;
use namespaces::Ids;

/// Descriptors that travel with a request, in this order from
/// [`PASSED`](wire::slot::PASSED): the numbers that the command wants them under.
pub(crate) type Numbers = Vec<u32>;

/// The whole way: a fresh sandbox and, if there is one, its only command.
pub(crate) fn sandbox(sandbox: &Sandbox, facts: &Facts, ids: Ids, command: Option<(&Command, &Numbers)>) -> Result<Draft> {
    let mut draft = Draft::new();
    let owners = files::Owners { namespace: None, prefer: sandbox.prefers(Layer::IdMappedMounts), ordinary: !facts.privileged };
    draft.stage(Stage::Outer);
    let wanted = facts.privileged && sandbox.maps_owners();
    let namespace = namespaces::outer(&mut draft, sandbox, ids, facts.cgroup_namespace, wanted);
    let outside = files::outer(&mut draft, sandbox, files::Owners { namespace, ..owners });
    namespaces::hand_over(&mut draft);

    draft.stage(Stage::Inner);
    namespaces::inner(&mut draft, sandbox, ids);
    files::inner(&mut draft, sandbox, &outside, ids.groups());
    namespaces::settle(&mut draft, sandbox.capabilities);
    if draft.overflowed() {
        return Err(Error::invalid("too many binds and tmpfs mounts for one sandbox (about 150 are possible)"));
    }
    match command {
        Some((command, numbers)) => {
            draft.settings.flags |= wire::LAST_COMMAND;
            self::command(&mut draft, sandbox, facts, ids, command, numbers)?;
        }
        None => draft.settings.flags |= wire::NO_COMMAND,
    }
    Ok(draft)
}

/// The command stage.
fn command(draft: &mut Draft, sandbox: &Sandbox, facts: &Facts, ids: Ids, command: &Command, numbers: &Numbers) -> Result<()> {
    draft.stage(Stage::Command);
    draft.area(Area::Setup);
    draft.step(libc::SYS_umask, &[0o022.into()], "set", "the umask");
    draft.step(libc::SYS_setsid, &[], "make", "a session");
    // Dispositions are at their defaults since init's start.
    let none = draft.words(&[0]);
    draft.step(libc::SYS_rt_sigprocmask, &[libc::SIG_SETMASK.into(), none, 0.into(), 8.into()], "unblock", "signals");
    let pairs: Vec<u8> = numbers
        .iter()
        .enumerate()
        .flat_map(|(i, number)| {
            let slot = u32::from(wire::slot::PASSED) + i as u32;
            slot.to_le_bytes().into_iter().chain(number.to_le_bytes())
        })
        .collect();
    let pairs = draft.data(&pairs);
    draft.step(op::FDS, &[pairs, numbers.len().into()], "arrange", "the descriptors");
    limits::command(draft, &limits::rlimits(sandbox, facts));
    privileges::credentials(draft, sandbox, ids.groups());
    draft.area(Area::Chdir);
    let directory = command.directory();
    let path = draft.text(directory.as_os_str().as_bytes());
    draft.step(libc::SYS_chdir, &[path], "enter the working directory", files::display(directory));
    privileges::fences(draft, sandbox, filter(sandbox).as_deref());
    execute(draft, sandbox, command);
    if let Some(limit) = sandbox.wall_time {
        draft.settings.wall_limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1);
    }
    Ok(())
}

fn filter(sandbox: &Sandbox) -> Option<Vec<Instruction>> {
    match sandbox.syscalls {
        Syscalls::Default => Some(crate::policy::syscalls::default_filter(!sandbox.writes_to_host())),
        Syscalls::Unfiltered => None,
    }
}

fn execute(draft: &mut Draft, sandbox: &Sandbox, command: &Command) {
    draft.area(Area::Exec);
    let environment = command.environment(sandbox.home());
    let candidates = command.candidates(&environment);
    let programs = draft.vector(&candidates, false);
    let arguments: Vec<&[u8]> = command.arguments().iter().map(|a| a.as_bytes()).collect();
    let argv = draft.vector(&arguments, true);
    let pairs: Vec<Vec<u8>> = environment.iter().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()).collect();
    let envp = draft.vector(&pairs, true);
    let args: [Arg; 4] = [programs, candidates.len().into(), argv, envp];
    draft.step(op::EXEC, &args, "execute", command.program().to_string_lossy().into_owned());
}
