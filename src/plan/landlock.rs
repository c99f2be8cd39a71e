//! Steps that make Landlock the second fence around files, signals and sockets.
//!
//! What the mounts make writable may be written, and nothing else: a read-only mount
//! that turned writable by a bug in the kernel, or a mount that isn't ours, stays closed.
//! Reading isn't restricted, because the mounts show nothing but what may be read, and
//! each `open` would cost a microsecond more. Where the root is an image everything below
//! it is in reach of one rule, since rules can't be taken back further down: there the
//! mounts alone keep what is read-only.
//!
//! PID 1 makes the ruleset, of descriptors that it has just mounted, and is not under it;
//! so the workload can't signal PID 1.

use super::wire::{op, slot};
use super::{Area, Arg, Draft, Mark};
use crate::image::Root;
use crate::policy::landlock::{Handled, LEAST, right};
use crate::probe::{Facts, Layer};
use crate::sandbox::{MountKind, Sandbox};

/// A ruleset that is being made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ruleset {
    handled: Handled,
}

/// Creates the ruleset, if this kernel has any. `sockets` says that the workload may
/// have some.
pub(crate) fn ruleset(draft: &mut Draft, sandbox: &Sandbox, facts: &Facts, sockets: bool) -> Option<Ruleset> {
    if facts.landlock.as_ref().is_ok_and(|abi| *abi < LEAST) || facts.landlock.is_err() {
        draft.missing |= Layer::Landlock.bit();
    }
    let ruleset = standing(sandbox, facts, sockets)?;
    let area = draft.area;
    draft.area(Area::Landlock);
    let Handled { files, tcp, scopes } = ruleset.handled;
    let attributes = draft.words(&[files, tcp, scopes]);
    draft
        .step(libc::SYS_landlock_create_ruleset, &[attributes, 24.into(), 0.into()], "make", "a Landlock ruleset")
        .keep_in(slot::RULESET)
        .layer(Layer::Landlock, !sandbox.requires(Layer::Landlock));
    draft.area(area);
    Some(ruleset)
}

/// The ruleset that the sandbox was made with, for one more command of it.
pub(crate) fn standing(sandbox: &Sandbox, facts: &Facts, sockets: bool) -> Option<Ruleset> {
    let abi = facts.landlock.as_ref().ok().filter(|abi| **abi >= LEAST)?;
    let mut handled = Handled::by(*abi, sockets);
    if sandbox.nesting {
        // A ruleset about files refuses all mounts.
        handled.files = 0;
    }
    (handled != Handled::NOTHING).then_some(Ruleset { handled })
}

impl Ruleset {
    /// Lets `rights` be used on what a descriptor names and all below it.
    pub(crate) fn allow(&self, draft: &mut Draft, place: u8, rights: u64, object: impl Into<String>) {
        self.rule(draft, Arg::Slot(place), "", rights, object);
    }

    fn rule(&self, draft: &mut Draft, directory: Arg, path: &str, rights: u64, object: impl Into<String>) {
        if self.handled.files == 0 {
            return;
        }
        let area = draft.area;
        draft.area(Area::Landlock);
        let path = draft.text(path);
        let args = [Arg::Slot(slot::RULESET), directory, path, (rights & self.handled.files).into()];
        draft.step(op::ALLOW, &args, "let Landlock allow", object.into());
        draft.area(area);
    }

    /// Lets the parts of the root be written that no mount covers.
    pub(crate) fn allow_root(&self, draft: &mut Draft, sandbox: &Sandbox) {
        let root = Arg::Slot(slot::ROOT);
        match sandbox.root.base() {
            // `/` itself stays as it is: a rule for it would hold for all below.
            Root::Host(layout) => {
                let own = layout.directories.iter().map(|(name, _)| *name).chain(["tmp"]).filter(|name| !name.contains('/'));
                let mut names: Vec<String> = own.map(String::from).collect();
                let recipes = std::iter::successors(Some(sandbox), |recipe| recipe.root.checkpoint().map(|frozen| &frozen.recipe));
                let made = recipes.flat_map(|recipe| {
                    recipe.mounts().iter().map(|mount| &mount.inside).chain(recipe.files().iter().map(|file| &file.inside))
                });
                names.extend(made.filter_map(|path| Some(path.components().nth(1)?.as_os_str().to_string_lossy().into_owned())));
                names.sort();
                names.dedup();
                let mounted = |name: &String| {
                    let path = format!("/{name}");
                    layout.parts.iter().any(|part| part.inside == path) || sandbox.mounts().iter().any(|mount| mount.inside == *path)
                };
                let special = ["proc", "dev"];
                for name in names.iter().filter(|name| !mounted(name) && !special.contains(&name.as_str())) {
                    self.rule(draft, root, name, right::WRITE, format!("/{name}"));
                }
                // Its own entries: /proc/self/oom_score_adj and the like.
                self.rule(draft, root, "proc", right::CONTENTS, "/proc");
                self.rule(draft, root, "dev", right::CONTENTS, "/dev");
            }
            _ => self.rule(draft, root, ".", right::WRITE, "/"),
        }
    }

    /// Lets descriptors that the command is given be opened again as they were given:
    /// `/dev/stdout` of a file, for example.
    pub(crate) fn allow_passed(&self, draft: &mut Draft, writable: &[bool]) {
        for i in writable.iter().enumerate().filter_map(|(i, writable)| writable.then_some(i)) {
            self.rule(draft, Arg::Slot(slot::PASSED + i as u8), "", right::WRITE, "a descriptor");
            // Pipes and sockets lie below nothing.
            if let Some(step) = draft.steps.last_mut() {
                step.tolerate(libc::EBADFD);
            }
        }
    }

    /// Puts the command's process under it.
    pub(crate) fn enforce(&self, draft: &mut Draft, sandbox: &Sandbox) {
        draft.area(Area::Landlock);
        draft
            .step(libc::SYS_landlock_restrict_self, &[Arg::Slot(slot::RULESET), 0.into()], "restrict with", "Landlock")
            .layer(Layer::Landlock, !sandbox.requires(Layer::Landlock));
    }
}

/// Whether a mount of the recipe may be written.
pub(crate) fn writable(kind: &MountKind) -> bool {
    matches!(kind, MountKind::Tmpfs { .. } | MountKind::Bind { writable: true, .. })
}
