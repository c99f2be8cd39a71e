//! The messages between the host, init and the sandboxes. Compiled twice, as
//! `wire.rs` is, under the same rules.

use super::wire::{u32_at, u64_at};

/// A message from the host to init or to PID 1; its descriptors travel beside
/// it. Requests on init's control socket are [`HELLO`](Request::HELLO),
/// [`START`](Request::START), [`QUIESCE`](Request::QUIESCE) and [`FILES`](Request::FILES); those on a
/// sandbox's reply socket are the two verbs [`RUN`](Request::RUN) and
/// [`DO`](Request::DO), and what concerns all that runs in it.
///
/// Each use of a verb brings a reply socket of its own, on which everything about it
/// is said, and whose end means that the host lets go of it. The only command of a
/// sandbox has the sandbox's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// One of the constants.
    pub kind: u32,
    /// Which command, where one is meant.
    pub command: u32,
    /// A signal, a build hash: see the constants.
    pub value: u64,
    /// A duration in nanoseconds.
    pub time: u64,
}

impl Request {
    /// [`START`](Self::START): none.
    pub const OTHER_NETWORK: u32 = 0;
    /// One, which nobody can have after it.
    pub const OWN_NETWORK: u32 = 1;
    /// One that others may have afterwards: it can do nothing in it.
    pub const UNREACHED_NETWORK: u32 = 2;
    /// One that was such a one's before, or will be: see `Sandbox::reuse_network`.
    pub const REUSED_NETWORK: u32 = 3;
    /// One that others may have afterwards if there was no socket in it.
    pub const COUNTED_NETWORK: u32 = 4;

    /// First message: `value` is the build hash; descriptors are the start plan, a
    /// pidfd of the host, whatever must live as long as init and, last, base and home
    /// directory of `command` control group hierarchies, in which `time` is the number
    /// of the home. With [`COUNTS_SOCKETS`](Self::COUNTS_SOCKETS) in `command` the third
    /// descriptor is the map of that.
    pub const HELLO: u32 = 1;
    /// See [`HELLO`](Self::HELLO).
    pub const COUNTS_SOCKETS: u32 = 1 << 31;
    /// Start a sandbox: the reply socket, the plan, the plan's descriptors. `value`
    /// is the number of its control group, in the hierarchies whose bits `time` has;
    /// `command` says what it takes of network namespaces that were made ahead.
    pub const START: u32 = 2;
    /// Answer on the passed socket once no sandbox is left.
    pub const QUIESCE: u32 = 3;
    /// The id maps that init waits for have been written.
    pub const MAPPED: u32 = 4;
    /// Verb one: run the command stage of a plan. A reply socket, the plan, the plan's
    /// descriptors.
    pub const RUN: u32 = 5;
    /// Verb two: do the inner stage of a plan, in a process of its own, and return the
    /// descriptors that it keeps. Descriptors as with [`RUN`](Self::RUN).
    pub const DO: u32 = 6;
    /// Send signal `value` to the command; on a sandbox's socket: to each of them.
    pub const SIGNAL: u32 = 7;
    /// Kill the command and all that it left; reported as killed unless `value` is 1,
    /// which stands for a limit that the host enforces.
    pub const KILL: u32 = 8;
    /// Send signal `value`, then kill after `time`.
    pub const STOP: u32 = 9;
    /// The control group has been made: its descriptors, for
    /// [`AWAIT_GROUP`](super::wire::op::AWAIT_GROUP).
    pub const GROUP: u32 = 10;
    /// Kill everything, report it, and end the sandbox.
    pub const END: u32 = 11;
    /// The sandbox is paused from now on if `value` is 1, else no longer. With 1 in
    /// `time` it's for PID 1 to stop everybody, because there's no group to freeze.
    pub const PAUSE: u32 = 12;
    /// The command's process is as it should be, and may execute.
    pub const PROCEED: u32 = 13;
    /// The command of a sandbox that was made before it was known: a plan and the plan's
    /// descriptors.
    pub const EXECUTE: u32 = 14;

    /// Start a process that does to files what [`Files`] says; on the passed socket, until
    /// its end. Instead of an earlier one.
    pub const FILES: u32 = 15;

    /// Bytes of a request.
    pub const SIZE: usize = 24;

    /// Its byte form.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[0..4].copy_from_slice(&self.kind.to_le_bytes());
        out[4..8].copy_from_slice(&self.command.to_le_bytes());
        out[8..16].copy_from_slice(&self.value.to_le_bytes());
        out[16..24].copy_from_slice(&self.time.to_le_bytes());
        out
    }

    /// Reads a request; `None` unless it has exactly the right size.
    pub fn decode(bytes: &[u8]) -> Option<Request> {
        if bytes.len() != Self::SIZE {
            return None;
        }
        Some(Request { kind: u32_at(bytes, 0)?, command: u32_at(bytes, 4)?, value: u64_at(bytes, 8)?, time: u64_at(bytes, 16)? })
    }
}

/// A message from init, or from a sandbox, to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One of the constants.
    pub kind: u32,
    /// Which command.
    pub command: u32,
    /// Failed: the step. Ended: the raw wait status of the main process.
    pub status: u32,
    /// Failed: the errno.
    pub errno: u32,
    /// Failed: `st_mode` of the program, where it exists. Ready and ended, of a sandbox that
    /// is to serve again: [`UNTOUCHED`](Self::UNTOUCHED), or why it can't.
    pub detail: u32,
    /// Ended: [`WALL`](Self::WALL) and its like, latched before the kill.
    pub cause: u32,
    /// Layers (a bit each) that a tolerated failure left out.
    pub missing: u64,
    /// CLOCK_MONOTONIC at exec, nanoseconds.
    pub began: u64,
    /// CLOCK_MONOTONIC at the end of the main process.
    pub ended: u64,
    /// CLOCK_MONOTONIC when everything that it left was dead too, and counted.
    pub cleared: u64,
    /// User CPU time of all that ran, nanoseconds.
    pub user: u64,
    /// System CPU time, without our own part before exec.
    pub system: u64,
    /// Largest resident set of any one process, bytes.
    pub peak: u64,
    /// CPU time that our own code used in the control group, nanoseconds.
    pub setup: u64,
    /// Bytes and files in the scratch layer at the end, or [`UNKNOWN`](Self::UNKNOWN).
    pub scratch: u64,
    /// See [`scratch`](Self::scratch).
    pub scratch_files: u64,
    /// 1 if the scratch layer was full at the end.
    pub full: u64,
    /// Voluntary and involuntary context switches.
    pub switches: u64,
    /// See [`switches`](Self::switches).
    pub preemptions: u64,
    /// Bytes read from and written to block devices.
    pub read: u64,
    /// See [`read`](Self::read).
    pub written: u64,
    /// With [`SYSCALL`](Self::SYSCALL): number of the call and, in the upper half, the
    /// kernel's mark of the ABI (AUDIT_ARCH).
    pub syscall: u64,
}

impl Report {
    /// init is ready; `status` is 0, or the failed step with `errno`.
    pub const HELLO: u32 = 1;
    /// init made its user namespace and waits for maps.
    pub const MAPS: u32 = 2;
    /// A step failed.
    pub const FAILED: u32 = 3;
    /// The sandbox stands; no command was given.
    pub const READY: u32 = 4;
    /// A command has been executed; its pidfd comes along.
    pub const STARTED: u32 = 5;
    /// A command ended and, if it was the last, everything else with it.
    pub const ENDED: u32 = 6;
    /// Every process of the sandbox is gone; from init. With [`WALL`](Self::WALL) PID 1 has
    /// failed to end it and init has: this is its end, with all that's known of it.
    pub const GONE: u32 = 7;
    /// No sandbox is left.
    pub const QUIET: u32 = 8;
    /// The steps of [`Request::DO`] are done; descriptors come along. Each set bit of
    /// `missing` stands for one: of the steps that keep a descriptor, in their order.
    pub const DONE: u32 = 9;
    /// The master of a command's terminal comes along; before [`STARTED`](Self::STARTED).
    pub const TERMINAL: u32 = 10;
    /// The command's process, whose pidfd comes along, has given up what it gives up, and
    /// executes nothing before it's told to.
    pub const STANDING: u32 = 11;
    /// The writable layer, for a host that wants to keep it; its directory comes along.
    pub const UPPER: u32 = 12;
    /// The mount namespace in which the writable layer of a live sandbox lies, with all
    /// that is below it.
    pub const MOUNTS: u32 = 13;

    /// The wall-time limit was reached.
    pub const WALL: u32 = 1;
    /// The caller killed it, or it did not stop in time.
    pub const KILLED: u32 = 2;
    /// The CPU time limit was reached.
    pub const CPU: u32 = 4;
    /// It used no CPU for too long.
    pub const IDLE: u32 = 8;
    /// The control group ran out of memory, and the kernel killed something in it.
    pub const MEMORY: u32 = 16;
    /// It made a system call that its filter doesn't forgive.
    pub const SYSCALL: u32 = 32;
    /// No cause: at its end PID 1 had no children any more, so nobody was left.
    pub const ALONE: u32 = 64;

    /// The sandbox is as it was when it stood.
    pub const UNTOUCHED: u32 = 1;
    /// It isn't, or nobody can tell.
    pub const TOUCHED: u32 = 2;
    /// It can't be told: set-up has made more files and directories than PID 1 keeps an eye on.
    pub const TOO_MANY_FILES: u32 = 3;
    /// It can't be told: the contents of files that may be written are too long.
    pub const TOO_LONG_FILES: u32 = 4;
    /// PID 1 can't look at everything that it would have to, or count processes anew.
    pub const UNSEEN: u32 = 5;

    /// A number that isn't known, where it could be.
    pub const UNKNOWN: u64 = u64::MAX;

    /// Bytes of a report.
    pub const SIZE: usize = 152;

    /// The same end, of a run of which nobody has counted what it used.
    pub fn with_unknown_use(&self) -> Report {
        let unknown = Report::UNKNOWN;
        Report {
            scratch: unknown,
            scratch_files: unknown,
            switches: unknown,
            preemptions: unknown,
            read: unknown,
            written: unknown,
            ..*self
        }
    }

    /// Its byte form.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        let small = [self.kind, self.command, self.status, self.errno, self.detail, self.cause];
        for (i, n) in small.iter().enumerate() {
            out[4 * i..4 * i + 4].copy_from_slice(&n.to_le_bytes());
        }
        let large = [
            self.missing,
            self.began,
            self.ended,
            self.user,
            self.system,
            self.peak,
            self.setup,
            self.scratch,
            self.scratch_files,
            self.full,
            self.switches,
            self.preemptions,
            self.read,
            self.written,
            self.syscall,
            self.cleared,
        ];
        for (i, n) in large.iter().enumerate() {
            out[24 + 8 * i..32 + 8 * i].copy_from_slice(&n.to_le_bytes());
        }
        out
    }

    /// Reads a report; `None` unless it has exactly the right size.
    pub fn decode(bytes: &[u8]) -> Option<Report> {
        if bytes.len() != Self::SIZE {
            return None;
        }
        Some(Report {
            kind: u32_at(bytes, 0)?,
            command: u32_at(bytes, 4)?,
            status: u32_at(bytes, 8)?,
            errno: u32_at(bytes, 12)?,
            detail: u32_at(bytes, 16)?,
            cause: u32_at(bytes, 20)?,
            missing: u64_at(bytes, 24)?,
            began: u64_at(bytes, 32)?,
            ended: u64_at(bytes, 40)?,
            user: u64_at(bytes, 48)?,
            system: u64_at(bytes, 56)?,
            peak: u64_at(bytes, 64)?,
            setup: u64_at(bytes, 72)?,
            scratch: u64_at(bytes, 80)?,
            scratch_files: u64_at(bytes, 88)?,
            full: u64_at(bytes, 96)?,
            switches: u64_at(bytes, 104)?,
            preemptions: u64_at(bytes, 112)?,
            read: u64_at(bytes, 120)?,
            written: u64_at(bytes, 128)?,
            syscall: u64_at(bytes, 136)?,
            cleared: u64_at(bytes, 144)?,
        })
    }
}

/// What the process of [`Request::FILES`] is asked for: two words, one of the constants and
/// flags, and then names, each with a NUL. The first descriptor is a directory, and the
/// first name a path below it, which leads through no link. The answer is an errno in four
/// bytes, 0 for none, and what was asked for.
pub struct Files;

impl Files {
    /// Open it, with these flags of open(2): a descriptor.
    pub const OPEN: u32 = 1;
    /// The extended attribute that the second name says, of a file or directory; without
    /// a second name the names of all, each with a NUL.
    pub const ATTRIBUTE: u32 = 2;
    /// Give what is in the tree to other owners: the second descriptor is a table in the
    /// order of inode numbers, of which each line has [`LINE`](Self::LINE) bytes: an inode
    /// (u64), a user and a group (u32 each).
    pub const GIVE: u32 = 3;
    /// Remove the tree.
    pub const REMOVE: u32 = 4;

    /// Bytes of a line of [`GIVE`](Self::GIVE).
    pub const LINE: usize = 16;
    /// Bytes of the longest question: two words, a path and a name.
    pub const QUESTION: usize = 8 + 4096 + 256;
    /// Bytes of the longest answer: an extended attribute has at most 64 KiB (xattr(7)).
    pub const ANSWER: usize = 4 + (64 << 10);

    /// Byte form of a question.
    pub fn question(kind: u32, flags: u32) -> [u8; 8] {
        let mut out = [0; 8];
        out[..4].copy_from_slice(&kind.to_le_bytes());
        out[4..].copy_from_slice(&flags.to_le_bytes());
        out
    }
}
