//! A recipe becomes a plan: a list of steps that init performs.
//!
//! Compiling is pure: it opens nothing and needs no privilege, so the order of
//! set-up can be printed ([`Explanation`](crate::Explanation)), tested without
//! root and fuzzed. What happens after `clone` decides nothing and allocates
//! nothing. Each step has a note that says what it is for; a failure comes back
//! as (step, errno), and the note turns it into a sentence.
//!
//! | stage | performed by | files |
//! | --- | --- | --- |
//! | start | init, once | `start.rs` |
//! | outer | a child of init's, with the host's files in view | `namespaces.rs`, `files.rs`, `scratch.rs`, `overlay.rs`, `again.rs` |
//! | inner | PID 1 of the sandbox | `namespaces.rs`, `files.rs` |
//! | command | the workload's process, up to exec | `privileges.rs`, `limits.rs` |

mod again;
pub(crate) mod change;
pub(crate) mod compile;
pub(crate) mod explain;
pub(crate) mod failure;
pub(crate) mod files;
pub(crate) mod landlock;
pub(crate) mod limits;
#[allow(dead_code, unreachable_pub, reason = "each side uses its half; init includes the same file")]
pub(crate) mod message;
pub(crate) mod namespaces;
pub(crate) mod overlay;
pub(crate) mod privileges;
pub(crate) mod proc;
pub(crate) mod scratch;
pub(crate) mod start;
#[allow(dead_code, unreachable_pub, reason = "the decoding half is init's, which includes the same file")]
pub(crate) mod wire;

use std::borrow::Cow;

use crate::probe::Layer;
use wire::{Kind, NO_LAYER, NO_SLOT, Settings, Stage, Step, slot};

/// What a step is for, in the words of an error: `cannot <doing> <object>`.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub(crate) doing: &'static str,
    pub(crate) object: Cow<'static, str>,
    pub(crate) area: Area,
}

impl Note {
    /// What a step is for, as [`Explanation`](crate::Explanation) prints it.
    pub(crate) fn purpose(&self) -> String {
        format!("{} {}", self.doing, self.object).trim_end().to_string()
    }
}

/// Which part of the set-up a step belongs to: decides an error's kind and hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Area {
    Setup,
    Namespaces,
    Network,
    IdMap,
    IdMappedMount,
    Image,
    Checkpoint,
    Overlay,
    /// tmpfs with `user.*` attributes, for an ordinary user's overlay.
    UserXattr,
    Proc,
    Mount,
    Privileges,
    Filter,
    Landlock,
    Processor,
    ReadBack,
    Limit,
    Group,
    Chdir,
    Exec,
    /// What the host asks for in a sandbox that stands.
    Inside,
}

/// An argument of a step while it's being written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg {
    Value(u64),
    Blob(u64),
    Slot(u8),
}

impl From<i32> for Arg {
    fn from(n: i32) -> Arg {
        Arg::Value(n as i64 as u64)
    }
}
impl From<u32> for Arg {
    fn from(n: u32) -> Arg {
        Arg::Value(n.into())
    }
}
impl From<u64> for Arg {
    fn from(n: u64) -> Arg {
        Arg::Value(n)
    }
}
impl From<usize> for Arg {
    fn from(n: usize) -> Arg {
        Arg::Value(n as u64)
    }
}

/// A plan while it's being written, and afterwards the notes to its steps.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) steps: Vec<Step>,
    pub(crate) notes: Vec<Note>,
    blobs: Vec<u8>,
    relocations: Vec<u64>,
    pub(crate) settings: Settings,
    /// Layers (a bit each) that the plan itself does without.
    pub(crate) missing: u64,
    /// Something in the sandbox can have a socket, or pass descriptors on by one.
    pub(crate) sockets: bool,
    /// Its network namespace may have served others.
    pub(crate) reuses_network: bool,
    /// Its network namespace may serve others if there was no socket in it.
    pub(crate) counts_sockets: bool,
    stage: Stage,
    area: Area,
    /// Where blobs of the stage ahead are.
    ahead: std::ops::Range<usize>,
    next_slot: u8,
    /// The next one of the other kind of stage.
    other_slot: u8,
    next_temporary: u8,
    overflow: bool,
}

impl Draft {
    pub(crate) fn new() -> Draft {
        Draft {
            steps: Vec::with_capacity(160),
            notes: Vec::with_capacity(160),
            // Offset 0 is the empty string.
            blobs: vec![0; 8],
            relocations: Vec::new(),
            settings: Settings::default(),
            missing: 0,
            sockets: true,
            reuses_network: false,
            counts_sockets: false,
            stage: Stage::Start,
            area: Area::Setup,
            ahead: 0..0,
            next_slot: slot::LOCAL,
            other_slot: slot::AHEAD,
            next_temporary: slot::TEMPORARY,
            overflow: false,
        }
    }

    /// The steps that follow belong to this stage.
    pub(crate) fn stage(&mut self, stage: Stage) {
        // That of the stage ahead is alike in all plans, whatever comes before it.
        if stage == Stage::Ahead {
            self.blobs.resize(self.blobs.len().next_multiple_of(8), 0);
            self.ahead = self.blobs.len()..self.blobs.len();
            std::mem::swap(&mut self.next_slot, &mut self.other_slot);
        } else if self.stage == Stage::Ahead {
            self.ahead.end = self.blobs.len();
            std::mem::swap(&mut self.next_slot, &mut self.other_slot);
        }
        self.stage = stage;
        self.next_temporary = slot::TEMPORARY;
    }

    /// See [`Settings::ahead`](wire::Settings::ahead).
    fn ahead(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        let blobs = self.ahead.clone();
        self.blobs.get(blobs.clone()).hash(&mut hasher);
        self.reuses_network.hash(&mut hasher);
        for step in &self.steps {
            match (step.stage, step.op) {
                (Stage::Ahead, _) => {
                    let place = |i: usize| match step.kinds[i] {
                        Kind::Blob => step.args[i].wrapping_sub(blobs.start as u64),
                        _ => step.args[i],
                    };
                    let kinds = step.kinds.map(|kind| kind as u8);
                    (step.op, step.slot, step.tolerate, step.layer, kinds, std::array::from_fn::<u64, 6, _>(place)).hash(&mut hasher);
                }
                (_, wire::op::CLONE | wire::op::NETWORK) => (step.op, step.args).hash(&mut hasher),
                _ => {}
            }
        }
        hasher.finish().max(1)
    }

    /// The steps that follow belong to this area.
    pub(crate) fn area(&mut self, area: Area) {
        self.area = area;
    }

    /// The empty string.
    pub(crate) const EMPTY: Arg = Arg::Blob(0);

    /// A NUL-terminated string.
    pub(crate) fn text(&mut self, text: impl AsRef<[u8]>) -> Arg {
        let at = self.blobs.len();
        self.blobs.extend_from_slice(text.as_ref());
        self.blobs.push(0);
        Arg::Blob(at as u64)
    }

    /// A structure, aligned to 8 bytes.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> Arg {
        self.blobs.resize(self.blobs.len().next_multiple_of(8), 0);
        let at = self.blobs.len();
        self.blobs.extend_from_slice(bytes);
        Arg::Blob(at as u64)
    }

    /// A structure of 64-bit numbers.
    pub(crate) fn words(&mut self, words: &[u64]) -> Arg {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.data(&bytes)
    }

    /// A vector of pointers to strings; NULL at the end if it's `terminated`.
    pub(crate) fn vector<T: AsRef<[u8]>>(&mut self, texts: &[T], terminated: bool) -> Arg {
        let offsets: Vec<u64> = texts
            .iter()
            .map(|text| match self.text(text) {
                Arg::Blob(at) => at,
                _ => 0,
            })
            .collect();
        let count = offsets.len();
        let mut words = offsets;
        if terminated {
            words.push(0);
        }
        let at = self.words(&words);
        if let Arg::Blob(base) = at {
            self.relocations.extend((0..count as u64).map(|i| base + 8 * i));
        }
        at
    }

    /// A pointer inside the structure `at` to another blob.
    pub(crate) fn point(&mut self, at: Arg, offset: u64, to: Arg) {
        if let (Arg::Blob(at), Arg::Blob(to)) = (at, to) {
            let place = at + offset;
            self.blobs[place as usize..place as usize + 8].copy_from_slice(&to.to_le_bytes());
            self.relocations.push(place);
        }
    }

    /// A slot that lasts, and is handed over to PID 1.
    pub(crate) fn slot(&mut self) -> u8 {
        let slot = self.next_slot;
        let end = if self.stage == Stage::Ahead { slot::TEMPORARY } else { slot::AHEAD };
        if slot + 1 < end {
            self.next_slot += 1;
        } else {
            self.overflow = true;
        }
        slot
    }

    /// A slot for a descriptor that the same stage closes again.
    pub(crate) fn temporary(&mut self) -> u8 {
        let slot = self.next_temporary;
        // After the last one comes the first again: nothing may still be in it by then.
        self.next_temporary += 1;
        if usize::from(self.next_temporary) >= wire::SLOTS {
            self.next_temporary = slot::TEMPORARY;
        }
        slot
    }

    /// More mounts were asked for than a plan has slots.
    pub(crate) fn overflowed(&self) -> bool {
        self.overflow
    }

    /// Appends a step: a system call or one of [`wire::op`].
    pub(crate) fn step(
        &mut self,
        op: impl TryInto<u32>,
        args: &[Arg],
        doing: &'static str,
        object: impl Into<Cow<'static, str>>,
    ) -> &mut Step {
        let mut step = Step {
            op: op.try_into().unwrap_or(u32::MAX),
            stage: self.stage,
            slot: NO_SLOT,
            tolerate: 0,
            layer: NO_LAYER,
            kinds: [Kind::Value; 6],
            args: [0; 6],
        };
        for (i, arg) in args.iter().enumerate() {
            (step.kinds[i], step.args[i]) = match *arg {
                Arg::Value(n) => (Kind::Value, n),
                Arg::Blob(at) => (Kind::Blob, at),
                Arg::Slot(slot) => (Kind::Slot, slot.into()),
            };
        }
        self.notes.push(Note { doing, object: object.into(), area: self.area });
        let at = self.steps.len();
        self.steps.push(step);
        &mut self.steps[at]
    }

    /// Closes a slot's descriptor.
    pub(crate) fn close(&mut self, slot: u8) {
        self.step(libc::SYS_close, &[Arg::Slot(slot)], "close", "a descriptor");
    }

    /// The string that a blob argument names; for `explain`.
    pub(crate) fn blob_text(&self, at: u64) -> &[u8] {
        let rest = self.blobs.get(at as usize..).unwrap_or_default();
        let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
        &rest[..end]
    }

    /// Plans of one kind make sandboxes with the same namespaces and mounts.
    pub(crate) fn kind(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        let around = |(step, _): &(&Step, &Note)| step.stage != Stage::Command;
        for (step, note) in self.steps.iter().zip(&self.notes).filter(around) {
            (step.op, note.doing).hash(&mut hasher);
            // Offsets of blobs depend on their neighbours; what they hold is named in
            // the note, but for ids, which are read back every time.
            if note.area != Area::IdMap {
                note.object.hash(&mut hasher);
            }
            for (kind, argument) in step.kinds.iter().zip(step.args) {
                if *kind == Kind::Value {
                    argument.hash(&mut hasher);
                } else if *kind == Kind::Blob && step.op == libc::SYS_mount_setattr as u32 {
                    self.blobs.get(argument as usize..).and_then(|rest| rest.first_chunk::<8>()).hash(&mut hasher);
                }
            }
        }
        hasher.finish()
    }

    /// The byte form.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let blob = (self.blobs.len() + 1).next_multiple_of(8);
        let mut out = Vec::with_capacity(64 + 64 * self.steps.len() + 8 * self.relocations.len() + blob);
        let settings = Settings { ahead: if self.ahead.is_empty() { 0 } else { self.ahead() }, ..self.settings };
        wire::encode_header(self.steps.len(), self.relocations.len(), blob, settings, &mut out);
        for step in &self.steps {
            wire::encode_step(step, &mut out);
        }
        for place in &self.relocations {
            out.extend(place.to_le_bytes());
        }
        out.extend_from_slice(&self.blobs);
        out.resize(out.len() + blob - self.blobs.len(), 0);
        out
    }
}

/// What marks a step for [`Layer`] bookkeeping.
pub(crate) trait Mark {
    /// Keep the result in this slot.
    fn keep_in(&mut self, slot: u8) -> &mut Self;
    /// Count this errno as success.
    fn tolerate(&mut self, errno: i32) -> &mut Self;
    /// If `prefer`, any failure only means that the layer is missing.
    fn layer(&mut self, layer: Layer, prefer: bool) -> &mut Self;
}

impl Mark for Step {
    fn keep_in(&mut self, slot: u8) -> &mut Step {
        self.slot = slot;
        self
    }

    fn tolerate(&mut self, errno: i32) -> &mut Step {
        self.tolerate = errno as u16;
        self
    }

    fn layer(&mut self, layer: Layer, prefer: bool) -> &mut Step {
        self.layer = layer as u8;
        if prefer {
            self.tolerate = wire::ANY;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Plan;

    #[test]
    fn what_is_written_is_what_init_reads() {
        let mut draft = Draft::new();
        draft.stage(Stage::Inner);
        let path = draft.text("/some/where");
        draft
            .step(libc::SYS_mkdirat, &[Arg::Value(wire::AT_FDCWD), path, 0o755.into()], "make", "/some/where")
            .tolerate(libc::EEXIST)
            .keep_in(90);
        draft.settings = Settings { wall_limit: 7, flags: wire::LAST_COMMAND, command: 3, ..Settings::default() };
        let bytes = draft.encode();
        let plan = Plan::parse(&bytes).expect("a plan of our own passes");
        assert_eq!(plan.len(), 1);
        assert_eq!(plan.step(0), Some(draft.steps[0]));
        assert_eq!((plan.wall_limit(), plan.flags(), plan.command()), (7, wire::LAST_COMMAND, 3));
    }

    #[test]
    fn a_damaged_plan_is_refused_or_harmless() {
        let mut draft = Draft::new();
        draft.stage(Stage::Command);
        let list = draft.vector(&["/bin/a", "/bin/b"], false);
        let argv = draft.vector(&["a"], true);
        draft.step(wire::op::EXEC, &[list, 2usize.into(), argv, argv], "execute", "a");
        let good = draft.encode();
        assert!(Plan::parse(&good).is_some());
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let length = bad.len();
                if let Some(plan) = Plan::parse(&bad) {
                    // What still passes stays inside its own bytes.
                    let blob = (length - plan.blob_start()) as u64;
                    for i in 0..plan.relocations() {
                        assert!(plan.relocation(i) + 8 <= blob);
                    }
                }
            }
            assert!(Plan::parse(&good[..at]).is_none(), "cut at {at}");
        }
    }
}
