//! The byte format of a plan. The messages around it are in `message.rs`.
//!
//! This file is compiled twice: into the crate, which writes plans, and into
//! init, which reads them. It is `no_std`, allocates nothing when decoding and
//! holds no `unsafe`. Numbers are little-endian; both sides run on one machine
//! and come from one build (the first message compares a hash of it), so
//! the format needs no versions.
//!
//! ```text
//! header (96 bytes) | steps (64 bytes each) | relocations (8 bytes each) | blob area
//! ```
//!
//! A step's argument is a number, an offset into the blob area (init adds the
//! address of its mapping) or a *slot*: a descriptor that was passed with the
//! request or that an earlier step returned. Blobs that hold addresses
//! themselves (argument vectors, filter programs) are listed in the relocation
//! table: each entry is the place of such an address in the blob area.

/// Descriptors that a plan can name.
pub const SLOTS: usize = 254;
/// A step that keeps no result.
pub const NO_SLOT: u8 = 0xff;
/// Argument that stands for "the current directory" where a slot is expected.
pub const AT_FDCWD: u64 = -100i64 as u64;
/// The most descriptors in one message (the kernel's own bound is 253).
pub const MAX_FDS: usize = 64;
/// An upper bound for a plan: the kernel takes at most 6 MiB of arguments
/// (three quarters of an 8 MiB stack), and files given by content travel here
/// too.
pub const MAX_PLAN: usize = 256 << 20;
/// The longest plan that comes with its request, in the same message; others come as a
/// descriptor. Those of a sandbox never do, because they are handed on.
pub const MAX_INLINE: usize = 8 << 10;

/// The most steps of a plan: a recipe may have some ten thousand files.
pub const MAX_STEPS: usize = 1 << 16;

/// Slots with a fixed meaning.
pub mod slot {
    /// The sandbox's end of its reply socket.
    pub const REPLY: u8 = 0;
    /// The plan itself.
    pub const PLAN: u8 = 1;
    /// The mount namespace in which the host program lives.
    pub const HOST_MOUNTS: u8 = 2;
    /// The host program's root directory.
    pub const HOST_ROOT: u8 = 3;
    /// init's own, nearly empty, mount namespace.
    pub const INIT_MOUNTS: u8 = 4;
    /// How many of them init keeps from its start for every sandbox.
    pub const KEPT: u8 = 5;
    /// A network namespace that was made ahead, if one was ready.
    pub const NETWORK: u8 = 5;
    /// An eventfd that has the next one made.
    pub const MAKER: u8 = 6;
    /// The sandbox's root directory.
    pub const ROOT: u8 = 8;
    /// The listener of the command's filter, with [`LISTEN`](super::LISTEN).
    pub const LISTENER: u8 = 9;
    /// The Landlock ruleset, which PID 1 of a live sandbox keeps.
    pub const RULESET: u8 = 10;
    /// In a sandbox that serves again: what says which number the next process gets.
    pub const NUMBERS: u8 = 11;
    /// In a sandbox that serves again: the root of its scratch.
    pub const SCRATCH: u8 = 12;
    /// What says how many sockets there are in the sandbox's network namespace.
    pub const SOCKETS: u8 = 13;
    /// What says what has been asked of its routes.
    pub const ROUTES: u8 = 14;
    /// The first of the descriptors that came with the request.
    pub const PASSED: u8 = 16;
    /// The first of those that came with a command that was told late.
    pub const LATE: u8 = 40;
    /// The first of those for results of steps; what an outer step leaves in
    /// one of these (or in [`ROOT`]) is handed over to PID 1.
    pub const LOCAL: u8 = 80;
    /// The first of those of [`Stage::Ahead`](super::Stage::Ahead).
    pub const AHEAD: u8 = 214;
    /// The first of those for results that are soon closed.
    pub const TEMPORARY: u8 = 238;

    /// Whether a helper returns what it keeps in this slot.
    pub fn is_returned(slot: u8) -> bool {
        (LOCAL..TEMPORARY).contains(&slot)
    }
}

/// Who performs a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// init itself, once, when it starts.
    Start = 0,
    /// A child of init's outside the sandbox: opens what is the host's.
    Outer = 1,
    /// PID 1 of the sandbox: what needs nothing of the outer stage, and is the same for
    /// most recipes. It may have been done before the sandbox was asked for.
    Ahead = 2,
    /// PID 1 of the sandbox, before anything else runs in it.
    Inner = 3,
    /// The workload's own process, up to exec.
    Command = 4,
}

/// Operations that are more than one system call. All are above any number
/// that the kernel uses; a smaller [`Step::op`] is a system call.
pub mod op {
    /// `clone3` of PID 1 with the flags in argument 0; or the one that was made ahead.
    pub const CLONE: u32 = 0x1_0000;
    /// Open `/proc/<PID 1>/<argument 0>` with the flags in argument 1.
    pub const PROC_OPEN: u32 = 0x1_0001;
    /// Outer: pass the slots that outer steps filled since [`CLONE`] to PID 1, but for
    /// [`TEMPORARY`](super::slot::TEMPORARY) ones. It inherited the others.
    pub const HAND_OVER: u32 = 0x1_0002;
    /// Inner: wait for [`HAND_OVER`].
    pub const RECEIVE: u32 = 0x1_0003;
    /// Walk path (1) below directory (0), making what is missing: directories
    /// with mode (3), a last component of kind (2) 0 directory, 1 file; what was
    /// made belongs to uid (4) and gid (5). With [`STAY`] in the mode no link leads
    /// into another mount. Keeps an `O_PATH` descriptor.
    pub const MAKE_PATH: u32 = 0x1_0004;
    /// Replace path (0) below [`slot::ROOT`](super::slot::ROOT) by a file with
    /// contents (1), length (2), mode (3), uid (4) and gid (5), making missing
    /// parents as [`MAKE_PATH`] does, and with [`STAY`] as it does.
    pub const FILE: u32 = 0x1_0005;
    /// See [`MAKE_PATH`].
    pub const STAY: u32 = 0x1_0000;
    /// Give directory (1) the mode of directory (0) and, if (2) is 1, its owner.
    pub const LIKE: u32 = 0x1_0006;
    /// Drop every capability from the bounding set that mask (0) lacks.
    pub const DROP_BOUNDING: u32 = 0x1_0007;
    /// Die with init, and check that it still lives.
    pub const DIE_WITH_INIT: u32 = 0x1_0008;
    /// Arrange descriptors: argument 0 points to pairs of u32 (slot, number),
    /// argument 1 counts them. All others are closed on exec. With 1 in (2) make a socket
    /// if one of them leads out of the sandbox, as [`MAKE_SOCKET`] does.
    pub const FDS: u32 = 0x1_0009;
    /// Try the programs in the list (0), counted by (1), with arguments (2) and
    /// environment (3).
    pub const EXEC: u32 = 0x1_000a;
    /// Start: tell the host that maps are wanted and wait until it wrote them.
    pub const AWAIT_MAPS: u32 = 0x1_000b;
    /// Keep a descriptor of /proc/self/<argument 0> in the step's slot.
    pub const SELF_OPEN: u32 = 0x1_000c;
    /// Set every soft limit on open files to the hard one.
    pub const RAISE_FILES: u32 = 0x1_000d;
    /// Fail with EOPNOTSUPP-like errno (1) unless directory (0) takes
    /// `user.*` attributes: overlayfs needs them when it is mounted by an
    /// ordinary user, and tmpfs has them from Linux 6.6.
    pub const USER_XATTR: u32 = 0x1_000e;
    /// Make detached mount (0) idmapped by user namespace (1), recursively.
    pub const ID_MAP: u32 = 0x1_000f;
    /// Join the control group whose membership file is slot (0).
    pub const JOIN: u32 = 0x1_0010;
    /// Inner: wait for [`Request::GROUP`](super::super::message::Request::GROUP) and keep its
    /// descriptors, (1) of them, in the slots from (0) on.
    pub const AWAIT_GROUP: u32 = 0x1_0011;
    /// Outer: move into a new network namespace: the one in
    /// [`slot::NETWORK`](super::slot::NETWORK), if it was made ahead. PID 1 inherits it.
    pub const NETWORK: u32 = 0x1_0012;
    /// Inner: a rule of Landlock ruleset (0) for path (2) below directory (1), or for
    /// (1) itself if that's empty: rights (3) on it and all below.
    pub const ALLOW: u32 = 0x1_0013;
    /// Command: tell the host that it may look, with a pidfd
    /// ([`Report::STANDING`](super::super::message::Report::STANDING)).
    pub const STAND: u32 = 0x1_0014;
    /// Like [`FILE`], with the contents of the regular file in slot (1); (2) is unused.
    pub const COPY: u32 = 0x1_0015;
    /// Command: pass slot (0), the master of a terminal, to the host.
    pub const TERMINAL: u32 = 0x1_0016;
    /// Outer: send the host the descriptor in slot (0) with a report of kind (1).
    pub const SHOW: u32 = 0x1_0017;
    /// Command: wait until the host has looked
    /// ([`Request::PROCEED`](super::super::message::Request::PROCEED)).
    pub const AWAIT_LOOK: u32 = 0x1_0018;
    /// Outer: a detached mount of what is at path (0) or, if a layer of mask (1) is missing
    /// by now, of directory (2), into which the layers in the current directory are
    /// copied: (3) of them by their numbers, or it itself if that's 0.
    pub const STACK: u32 = 0x1_0019;
    /// Command: wait for [`Request::EXECUTE`](super::super::message::Request::EXECUTE), take
    /// its plan in place of this one, and go on with the command stage of that; its
    /// descriptors are in slots from (0) on.
    pub const AWAIT_COMMAND: u32 = 0x1_001a;
    /// Inner: take down everything below directory (0), which stays on one file system, for
    /// a sandbox that serves again. With 1 in (1) also what names are in the directory
    /// itself.
    pub const CENSUS: u32 = 0x1_001b;
    /// Command: make a socket, for those who count them, and close it.
    pub const MAKE_SOCKET: u32 = 0x1_001c;
    /// Command: close what isn't needed any more, and move the rest out of the way, because
    /// what is open counts for the limit on open files that comes next, and some more are to
    /// be opened.
    pub const MAKE_ROOM: u32 = 0x1_001d;
    /// The last of them.
    pub const LAST: u32 = 0x1_001d;
}

/// A limit on open files below this may leave none to set-up: see [`op::MAKE_ROOM`].
pub const SCANT: u64 = 64;

/// How an argument is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A plain number.
    Value = 0,
    /// An offset into the blob area.
    Blob = 1,
    /// The number of a slot.
    Slot = 2,
}

/// One step: a system call or an [`op`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// System call number or one of [`op`].
    pub op: u32,
    /// Who performs it.
    pub stage: Stage,
    /// Where the result is kept as a descriptor, or [`NO_SLOT`].
    pub slot: u8,
    /// An errno that counts as success; 0 for none, [`ANY`] for all.
    pub tolerate: u16,
    /// The layer whose absence a tolerated failure means, or [`NO_LAYER`].
    pub layer: u8,
    /// How to read each argument.
    pub kinds: [Kind; 6],
    /// The arguments.
    pub args: [u64; 6],
}

/// [`Step::tolerate`]: every errno.
pub const ANY: u16 = 0xffff;
/// [`Step::layer`]: none.
pub const NO_LAYER: u8 = 0xff;

const STEP: usize = 64;
const HEADER: usize = 96;
/// Where [`Settings::ahead`] and [`Plan::wall_limit`] stand: init looks them up without
/// reading the plan itself.
pub const AHEAD: usize = 0;
pub const WALL_LIMIT: usize = 24;

/// Flag: send [`Report::STARTED`] with the command's pidfd.
pub const NOTIFY_START: u64 = 1;
/// Flag: a plan without a command; PID 1 reports [`Report::READY`].
pub const NO_COMMAND: u64 = 2;
/// Flag: the sandbox ends with this command.
pub const LAST_COMMAND: u64 = 4;

/// Flag: the command's filter tells forbidden calls to a listener.
pub const LISTEN: u64 = 8;

/// Flag: after each command PID 1 tells whether the sandbox is as it was.
pub const SERVES_AGAIN: u64 = 16;
/// PID 1 may wait for this command's exec, if nobody else is in the sandbox: nobody can hold
/// that up, and its host won't.
pub const ALONE: u64 = 64;

/// Flag: the caller gave the command some of its descriptors. To close the last copy of a
/// socket may take as long as the workload likes (SO_LINGER of socket(7)), so PID 1 doesn't
/// keep one.
pub const GIVEN: u64 = 128;

/// Flag: and there's a new IPC namespace for each.
pub const RENEWS_QUEUES: u64 = 32;

/// A plan in its byte form, checked.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    bytes: &'a [u8],
    steps: usize,
    relocations: usize,
    blob: usize,
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let b = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let low = u32_at(bytes, at)?;
    let high = u32_at(bytes, at.checked_add(4)?)?;
    Some(u64::from(high) << 32 | u64::from(low))
}

impl<'a> Plan<'a> {
    /// Checks a plan: sizes, stages in order, slots and offsets in range, and
    /// every blob argument and relocation inside the blob area. What passes
    /// can be interpreted without looking outside the plan's own bytes.
    pub fn parse(bytes: &'a [u8]) -> Option<Plan<'a>> {
        if bytes.len() < HEADER || bytes.len() > MAX_PLAN {
            return None;
        }
        let size = usize::try_from(u64_at(bytes, 8)?).ok()?;
        let steps = u32_at(bytes, 16)? as usize;
        let relocations = u32_at(bytes, 20)? as usize;
        if size != bytes.len() || steps > MAX_STEPS {
            return None;
        }
        let blob = HEADER.checked_add(steps.checked_mul(STEP)?)?.checked_add(relocations.checked_mul(8)?)?;
        if blob > size {
            return None;
        }
        let plan = Plan { bytes, steps, relocations, blob };
        let length = (size - blob) as u64;
        // Blobs are strings or structures; a NUL behind the last one lets no
        // string run out of the mapping.
        if length != 0 && bytes[size - 1] != 0 {
            return None;
        }
        let mut stage = Stage::Start;
        for i in 0..steps {
            let step = plan.decode(i)?;
            if step.stage < stage {
                return None;
            }
            stage = step.stage;
            for (kind, arg) in step.kinds.iter().zip(step.args) {
                let bound = match kind {
                    Kind::Value => continue,
                    Kind::Blob => length,
                    Kind::Slot => SLOTS as u64,
                };
                if arg >= bound {
                    return None;
                }
            }
            if !plan.lengths_fit(&step) {
                return None;
            }
        }
        for i in 0..relocations {
            let place = plan.relocation(i);
            let inside = place.is_multiple_of(8) && place.checked_add(8)? <= length;
            if !inside || plan.blob_u64(place)? >= length {
                return None;
            }
        }
        Some(plan)
    }

    /// The operations of our own that read a counted blob stay inside it.
    fn lengths_fit(&self, step: &Step) -> bool {
        let length = (self.bytes.len() - self.blob) as u64;
        let fits =
            |start: u64, count: u64, size: u64| count.checked_mul(size).and_then(|n| n.checked_add(start)).is_some_and(|end| end <= length);
        let blob = |i: usize| step.kinds[i] == Kind::Blob;
        match step.op {
            op::FDS => blob(0) && step.args[0].is_multiple_of(4) && fits(step.args[0], step.args[1], 8) && self.pairs_fit(step),
            op::EXEC => {
                blob(0) && blob(2) && blob(3) && step.args[1] != 0 && step.args[0].is_multiple_of(8) && fits(step.args[0], step.args[1], 8)
            }
            op::FILE => blob(0) && blob(1) && fits(step.args[1], step.args[2], 1),
            op::TERMINAL => step.kinds[0] == Kind::Slot,
            op::COPY => blob(0) && step.kinds[1] == Kind::Slot,
            op::MAKE_PATH => blob(1),
            op::PROC_OPEN | op::SELF_OPEN => blob(0),
            op::AWAIT_COMMAND => step.args[0] <= (SLOTS - MAX_FDS) as u64,
            op::AWAIT_GROUP => step.args[1] <= MAX_FDS as u64 && step.args[0] <= (SLOTS - MAX_FDS) as u64,
            op::ALLOW => step.kinds[..3] == [Kind::Slot, Kind::Slot, Kind::Blob],
            op::LIKE => step.kinds[0] == Kind::Slot && step.kinds[1] == Kind::Slot,
            op::CENSUS => step.kinds[0] == Kind::Slot,
            _ => true,
        }
    }

    fn pairs_fit(&self, step: &Step) -> bool {
        step.args[1] <= MAX_FDS as u64
            && (0..step.args[1]).all(|i| {
                let at = self.blob + (step.args[0] + 8 * i) as usize;
                let slot = u32_at(self.bytes, at).unwrap_or(u32::MAX);
                let number = u32_at(self.bytes, at + 4).unwrap_or(u32::MAX);
                (slot as usize) < SLOTS && number < 1 << 20
            })
    }

    fn decode(&self, i: usize) -> Option<Step> {
        let at = HEADER + i * STEP;
        let b = self.bytes.get(at..at + STEP)?;
        let op = u32_at(b, 0)?;
        if op > op::LAST {
            return None;
        }
        let stage = self.stage(i)?;
        let slot = b[5];
        if slot != NO_SLOT && slot as usize >= SLOTS {
            return None;
        }
        let mut kinds = [Kind::Value; 6];
        let mut args = [0; 6];
        for j in 0..6 {
            kinds[j] = match b[9 + j] {
                0 => Kind::Value,
                1 => Kind::Blob,
                2 => Kind::Slot,
                _ => return None,
            };
            args[j] = u64_at(b, 16 + 8 * j)?;
        }
        Some(Step { op, stage, slot, tolerate: u16::from_le_bytes([b[6], b[7]]), layer: b[8], kinds, args })
    }

    /// The number of steps.
    pub fn len(&self) -> usize {
        self.steps
    }

    /// Step `i`, of those that [`parse`](Self::parse) checked.
    pub fn step(&self, i: usize) -> Option<Step> {
        if i < self.steps { self.decode(i) } else { None }
    }

    /// The stage of step `i`, which takes a tenth of the time that the whole step does.
    pub fn stage(&self, i: usize) -> Option<Stage> {
        match self.bytes.get(HEADER + i * STEP + 4)? {
            0 => Some(Stage::Start),
            1 => Some(Stage::Outer),
            2 => Some(Stage::Ahead),
            3 => Some(Stage::Inner),
            4 => Some(Stage::Command),
            _ => None,
        }
    }

    /// Where the blob area starts.
    pub fn blob_start(&self) -> usize {
        self.blob
    }

    /// The number of relocations.
    pub fn relocations(&self) -> usize {
        self.relocations
    }

    /// The place, in the blob area, of relocation `i`.
    pub fn relocation(&self, i: usize) -> u64 {
        u64_at(self.bytes, HEADER + self.steps * STEP + i * 8).unwrap_or(u64::MAX)
    }

    fn blob_u64(&self, place: u64) -> Option<u64> {
        u64_at(self.bytes, self.blob.checked_add(usize::try_from(place).ok()?)?)
    }

    /// Wall-time limit of the command, nanoseconds from exec; 0 for none.
    pub fn wall_limit(&self) -> u64 {
        u64_at(self.bytes, WALL_LIMIT).unwrap_or(0)
    }

    /// [`NOTIFY_START`] and its like.
    pub fn flags(&self) -> u64 {
        u64_at(self.bytes, 32).unwrap_or(0)
    }

    /// The name that reports about this command carry.
    pub fn command(&self) -> u32 {
        u32_at(self.bytes, 40).unwrap_or(0)
    }

    /// What PID 1 watches for this command.
    pub fn watch(&self) -> Watch {
        let slot = |at: usize| self.bytes.get(at).copied().filter(|s| (*s as usize) < SLOTS).unwrap_or(NO_SLOT);
        Watch {
            cpu: slot(44),
            oom_event: slot(45),
            oom_count: slot(46),
            group: slot(47),
            kill: slot(72),
            cpu_unit: u32_at(self.bytes, 48).unwrap_or(1),
            cpu_rate: u32_at(self.bytes, 52).unwrap_or(1000),
            cpu_limit: u64_at(self.bytes, 56).unwrap_or(0),
            idle_limit: u64_at(self.bytes, 64).unwrap_or(0),
        }
    }
}

/// Counters that PID 1 reads, and the limits on them; times are nanoseconds, 0 is "no
/// limit".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Slot of a file whose first number is CPU time; [`NO_SLOT`] for none.
    pub cpu: u8,
    /// Slot of an eventfd that tells of an out-of-memory (cgroup v1).
    pub oom_event: u8,
    /// Slot of the file that then tells whether something was killed.
    pub oom_count: u8,
    /// Slot of the directory of the command's own control group; [`NO_SLOT`] for none.
    pub group: u8,
    /// Slot of the file that kills everything in it (cgroup v2).
    pub kill: u8,
    /// Nanoseconds of the counter's unit.
    pub cpu_unit: u32,
    /// Thousandths of a CPU that the command can use at once.
    pub cpu_rate: u32,
    /// CPU time after which it ends.
    pub cpu_limit: u64,
    /// Time without CPU use after which it ends.
    pub idle_limit: u64,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch::NONE
    }
}

impl Watch {
    /// Nothing.
    pub const NONE: Watch = Watch {
        cpu: NO_SLOT,
        oom_event: NO_SLOT,
        oom_count: NO_SLOT,
        group: NO_SLOT,
        kill: NO_SLOT,
        cpu_unit: 1,
        cpu_rate: 1000,
        cpu_limit: 0,
        idle_limit: 0,
    };
}

/// What [`encode`] writes besides steps and blobs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Tells plans whose [`Stage::Ahead`] and clone of PID 1 are the same from others; 0 if
    /// it's to be done by the sandbox's own process.
    pub ahead: u64,
    /// See [`Plan::wall_limit`].
    pub wall_limit: u64,
    /// See [`Plan::flags`].
    pub flags: u64,
    /// See [`Plan::command`].
    pub command: u32,
    /// See [`Plan::watch`].
    pub watch: Watch,
}

/// Appends one step's 64 bytes.
pub fn encode_step(step: &Step, out: &mut impl Extend<u8>) {
    out.extend(step.op.to_le_bytes());
    out.extend([step.stage as u8, step.slot]);
    out.extend(step.tolerate.to_le_bytes());
    out.extend([step.layer]);
    out.extend(step.kinds.iter().map(|k| *k as u8));
    out.extend([0]);
    for arg in step.args {
        out.extend(arg.to_le_bytes());
    }
}

/// Appends the header of a plan with so many steps, relocations and blob bytes.
pub fn encode_header(steps: usize, relocations: usize, blob: usize, settings: Settings, out: &mut impl Extend<u8>) {
    let size = HEADER + steps * STEP + relocations * 8 + blob;
    out.extend(settings.ahead.to_le_bytes());
    out.extend((size as u64).to_le_bytes());
    out.extend((steps as u32).to_le_bytes());
    out.extend((relocations as u32).to_le_bytes());
    out.extend(settings.wall_limit.to_le_bytes());
    out.extend(settings.flags.to_le_bytes());
    out.extend(settings.command.to_le_bytes());
    let watch = settings.watch;
    out.extend([watch.cpu, watch.oom_event, watch.oom_count, watch.group]);
    out.extend(watch.cpu_unit.to_le_bytes());
    out.extend(watch.cpu_rate.to_le_bytes());
    out.extend(watch.cpu_limit.to_le_bytes());
    out.extend(watch.idle_limit.to_le_bytes());
    out.extend([watch.kill]);
    out.extend([0; HEADER - 73]);
}
