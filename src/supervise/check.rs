//! Trying a recipe without a command.

use std::sync::Arc;

use super::start;
use crate::cgroup::{Group, Places};
use crate::command::Command;
use crate::error::{ErrorKind, Result};
use crate::image::Root;
use crate::launch::{self, Init};
use crate::net::Network;
use crate::outcome::Bytes;
use crate::plan::wire;
use crate::policy::landlock;
use crate::probe::{Facts, Layer, LayerState, Report};
use crate::sandbox::Sandbox;

/// Tries a recipe without a command; see [`Sandbox::check`].
pub(crate) fn check(sandbox: &Sandbox) -> Result<Report> {
    sandbox.validate()?;
    let layers = Layer::ALL.into_iter().map(|layer| (layer, LayerState::Untried)).collect();
    let mut report = Report { layers, works: true, notes: notes(sandbox) };
    let facts = match launch::init() {
        Ok(init) => {
            try_all(sandbox, &init, &mut report);
            init.facts.clone()
        }
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            report.works = false;
            report.set(Layer::UserNamespace, LayerState::Missing(error.to_string()));
            let facts = Facts::gather();
            try_groups(sandbox, &Arc::new(Places::find(facts.privileged)), 0, &facts, &mut report);
            facts
        }
        Err(error) => return Err(error),
    };
    for (layer, why) in absent(&facts) {
        report.set(layer, LayerState::Missing(why));
        report.works &= if layer.by_choice() { !sandbox.requires(layer) } else { sandbox.prefers(layer) };
    }
    if let Some(what) = facts.landlock.as_ref().ok().and_then(|abi| Some(format!("version {abi}: {}", landlock::lacks(*abi)?)))
        && *report.state(Layer::Landlock) == LayerState::Works
    {
        report.set(Layer::Landlock, LayerState::Partial(what));
    }
    Ok(report)
}

/// Makes sandboxes until one stands, each without what turned out to be missing.
fn try_all(sandbox: &Sandbox, init: &Init, report: &mut Report) {
    match &init.subordinate {
        Ok(_) => report.set(Layer::SubordinateIds, LayerState::Works),
        Err(why) if init.facts.privileged => report.set(Layer::SubordinateIds, LayerState::Unused(why.clone())),
        Err(why) => {
            report.works = !sandbox.requires(Layer::SubordinateIds);
            report.set(Layer::SubordinateIds, LayerState::Missing(why.clone()));
        }
    }
    // The command stage can't be tried without a command: one that any image has,
    // because it's our own. Its exec fails with ENOEXEC after everything else worked.
    // Without preferences at first: a layer that was left out can't say why.
    let mut probe = sandbox.clone().without_preferences().without_locks().entrypoint([""; 0]).file_mode("/.cofferdam-check", "\n", 0o755);
    loop {
        let attempt =
            start(&probe, Command::new("/.cofferdam-check"), wire::NOTIFY_START).and_then(|(mut live, _)| live.started().map(drop));
        let error = match attempt {
            Err(error) if error.kind() != ErrorKind::ExecFormat => error,
            _ => break report.set_untried(|layer| works_or_unused(sandbox, &init.facts, layer)),
        };
        // Whether the recipe can do without it or not, the rest can be tried.
        match error.layer() {
            Some(layer) if layer.optional() && !probe.prefers(layer) => {
                report.works &= sandbox.prefers(layer);
                report.set(layer, LayerState::Missing(error.to_string()));
                probe = probe.prefer(layer);
            }
            Some(Layer::PidNamespace) if !probe.borrowed_proc => {
                report.works = false;
                report.set(Layer::PidNamespace, LayerState::Missing(error.to_string()));
                probe = probe.with_borrowed_proc();
            }
            layer => {
                report.works = false;
                report.set(layer.unwrap_or(Layer::MountNamespace), LayerState::Missing(error.to_string()));
                break try_groups(sandbox, &init.places, init.next_group(), &init.facts, report);
            }
        }
    }
}

/// Control groups need no sandbox around them.
fn try_groups(sandbox: &Sandbox, places: &Arc<Places>, number: u64, facts: &Facts, report: &mut Report) {
    const LAYERS: [Layer; 5] = [Layer::MemoryLimit, Layer::ProcessLimit, Layer::CpuBandwidth, Layer::CpuAccount, Layer::CpuPinning];
    let mut probe = sandbox.clone().without_preferences();
    loop {
        let made = Group::choose(places, number, probe.group_limits(), |layer| probe.prefers(layer)).and_then(|mut group| group.make());
        match made {
            Ok(()) => {
                break report.set_untried(|layer| {
                    if LAYERS.contains(&layer) { works_or_unused(sandbox, facts, layer) } else { LayerState::Untried }
                });
            }
            Err(error) => match error.layer() {
                Some(layer) if layer.optional() && !probe.prefers(layer) => {
                    report.set(layer, LayerState::Missing(error.to_string()));
                    probe = probe.prefer(layer);
                }
                _ => break,
            },
        }
    }
}

fn works_or_unused(sandbox: &Sandbox, facts: &Facts, layer: Layer) -> LayerState {
    unused(sandbox, facts, layer).map_or(LayerState::Works, |why| LayerState::Unused(why.into()))
}

/// What a recipe says without meaning to.
fn notes(sandbox: &Sandbox) -> Vec<String> {
    let mut notes = Vec::new();
    let files = sandbox.files_in_memory();
    if let Some(memory) = sandbox.limits.memory.filter(|memory| files > *memory) {
        notes.push(format!(
            "files of the scratch layer and in tmpfs mounts are memory: of the {} that they may hold the limit of {} on memory is reached first",
            Bytes(files),
            Bytes(memory)
        ));
    }
    notes
}

/// Layers that this kernel doesn't have, with the reason.
fn absent(facts: &Facts) -> Vec<(Layer, String)> {
    let mut absent = Vec::new();
    absent.extend(facts.landlock.as_ref().err().map(|why| (Layer::Landlock, why.clone())));
    absent.extend(facts.cpu.cores.as_ref().err().map(|why| (Layer::CoreScheduling, why.clone())));
    absent.extend((!facts.cgroup_namespace).then(|| (Layer::CgroupNamespace, "this kernel was built without CONFIG_CGROUPS".into())));
    absent
}

/// Why a recipe has no use for a layer, on a machine like this.
fn unused(sandbox: &Sandbox, facts: &Facts, layer: Layer) -> Option<&'static str> {
    Some(match layer {
        Layer::NetworkNamespace if sandbox.network == Network::Host => "the recipe shares the host's network",
        Layer::Overlay if matches!(sandbox.root.root, Root::Host(_)) => "the host's /usr is shown read-only as it is",
        Layer::IdMappedMounts if !facts.privileged => "only root can make them",
        Layer::IdMappedMounts if !sandbox.maps_owners() => "the recipe has neither an image nor a bind",
        Layer::MemoryLimit if sandbox.limits.memory.is_none() => "the recipe limits no memory",
        Layer::ProcessLimit if sandbox.limits.processes.is_none() => "the recipe limits no processes",
        Layer::CpuBandwidth if sandbox.limits.cpus.is_none() => "the recipe limits no bandwidth",
        Layer::CpuPinning if sandbox.limits.cpuset.is_none() => "the recipe pins to no CPUs",
        Layer::CpuAccount if !sandbox.group_limits().cpu_account => "the recipe limits no CPU time",
        Layer::SyscallFilter if sandbox.syscalls.is_unfiltered() => "the recipe asks for none",
        Layer::CoreScheduling if facts.cpu.cores == Ok(false) => "each core has one thread",
        _ => return None,
    })
}

/// The layers that stand around a run, but for those that turned out to be missing.
pub(super) fn applied(sandbox: &Sandbox, init: &Init, missing: u64) -> Vec<Layer> {
    let absent = absent(&init.facts).iter().fold(missing, |bits, (layer, _)| bits | layer.bit());
    let stands = |layer: &Layer| match layer {
        Layer::SubordinateIds => init.subordinate.is_ok(),
        layer => absent & layer.bit() == 0 && unused(sandbox, &init.facts, *layer).is_none(),
    };
    Layer::ALL.into_iter().filter(stands).collect()
}
