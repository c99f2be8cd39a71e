//! Performs the steps of a plan.
//!
//! A step is a system call with its arguments as data, or one of the few
//! operations that need a result in the middle. The first failure ends a stage;
//! it's reported as (step, errno), and the host knows what that step was for.

use crate::arch::nr;
use crate::message::{Report, Request};
use crate::sys::*;
use crate::wire::{ANY, AT_FDCWD as WIRE_CWD, Kind, MAX_FDS, NO_LAYER, NO_SLOT, Plan, SLOTS, Stage, Step, op, slot};

/// A plan in memory with its descriptors.
pub struct Context {
    pub plan: Plan<'static>,
    /// Address of the blob area.
    base: usize,
    mapping: (*mut u8, usize),
    pub slots: [i32; SLOTS],
    /// Slots that outer steps filled, to be handed over.
    made: [bool; SLOTS],
    /// Host's pid of the sandbox's PID 1, once cloned.
    pub pid1: i32,
    /// Outer's and PID 1's ends of the channel between them.
    pub channel: [i32; 2],
    /// A pidfd of init.
    pub init: i32,
    /// Outer: a PID 1 that was made ahead, at the other end of the channel; or 0. See
    /// ahead.rs.
    pub waiting: i32,
    answered: bool,
    /// PID 1: what the outer child hands over has come already.
    received: bool,
    /// Layers left out by tolerated failures.
    pub missing: u64,
    /// Our own CPU clock when the first control group was joined, and at exec.
    joined: Option<u64>,
    pub executed: u64,
    /// CLOCK_MONOTONIC right before exec: taken afterwards, by PID 1, it would be late
    /// on a busy machine.
    pub began: u64,
    /// Where the command's process tells PID 1 how far it got, or -1.
    pub announce: i32,
}

/// What a command's process tells PID 1, in a pipe that exec closes: right before exec,
/// and again if that, or anything before it, fails.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Progress {
    /// Its process, which a courier may have cloned.
    pub pid: i32,
    pub failure: Failure,
    /// See [`Context::began`]; 0 if it never came to exec.
    pub began: u64,
    pub executed: u64,
    pub charged: u64,
    pub missing: u64,
}

impl Progress {
    pub const NONE: Progress = Progress {
        pid: 0,
        failure: Failure { step: Failure::NO_STEP, errno: 0, detail: 0 },
        began: 0,
        executed: 0,
        charged: 0,
        missing: 0,
    };
}

/// Bytes before the slot names in a message from the outer child to PID 1: whether
/// another message follows, the layers that the outer stage left out, and where init's
/// entry of the sandbox is.
const HANDED: usize = 1 + 2 * size_of::<u64>();

/// A step that failed.
#[derive(Clone, Copy)]
pub struct Failure {
    pub step: u32,
    pub errno: i32,
    pub detail: u32,
}

impl Failure {
    /// [`Failure::step`] when no step of the plan is to blame.
    pub const NO_STEP: u32 = u32::MAX;

    pub fn outside(errno: i32) -> Failure {
        Failure { step: Failure::NO_STEP, errno, detail: 0 }
    }
}

/// What [`Context::run`] came to.
pub enum Ran {
    /// All steps of the stage are done.
    Done,
    /// We're PID 1 of the sandbox now.
    Cloned,
}

impl Context {
    /// Maps and checks the plan in `fd`.
    pub fn map(fd: i32) -> Result<Context> {
        let (at, size) = map_file(fd)?;
        // SAFETY: the mapping is private, so nobody else changes it, and is
        // unmapped only in `drop_plan`. Relocation below writes to it before
        // any other use.
        let bytes = unsafe { core::slice::from_raw_parts(at, size) };
        let Some(plan) = Plan::parse(bytes) else {
            unmap(at, size);
            return Err(EPROTO);
        };
        let base = at as usize + plan.blob_start();
        for i in 0..plan.relocations() {
            let place = (base + plan.relocation(i) as usize) as *mut u64;
            // SAFETY: `parse` checked that the place lies in the blob area and is
            // aligned; no reference to the blob area's bytes is read as a plan.
            unsafe { place.write(base as u64 + place.read()) };
        }
        let mut slots = [-1; SLOTS];
        slots[slot::PLAN as usize] = fd;
        Ok(Context {
            plan,
            base,
            mapping: (at, size),
            slots,
            made: [false; SLOTS],
            pid1: 0,
            channel: [-1; 2],
            init: -1,
            waiting: 0,
            answered: false,
            received: false,
            missing: 0,
            joined: None,
            executed: 0,
            began: 0,
            announce: -1,
        })
    }

    /// Gives the mapping back; nothing of the plan may be used afterwards.
    pub fn drop_plan(&mut self) {
        unmap(self.mapping.0, self.mapping.1);
    }

    /// Closes the plan and what came with it.
    pub fn close(&mut self) {
        for slot in &mut self.slots {
            if *slot >= 0 {
                close(core::mem::replace(slot, -1));
            }
        }
    }

    /// Performs all steps of `stage`.
    pub fn run(&mut self, stage: Stage) -> core::result::Result<Ran, Failure> {
        for i in 0..self.plan.len() {
            let Some(step) = self.plan.step(i) else { break };
            if step.stage != stage {
                continue;
            }
            match self.perform(&step) {
                Ok(0) if step.op == op::CLONE => return Ok(Ran::Cloned),
                // From here on it's another plan.
                Ok(_) if step.op == op::AWAIT_COMMAND => return self.run(stage),
                Ok(result) => self.keep(&step, result),
                Err((errno, _)) if step.tolerate == ANY || (errno != 0 && errno == i32::from(step.tolerate)) => {
                    if step.layer != NO_LAYER {
                        self.missing |= 1u64.checked_shl(u32::from(step.layer)).unwrap_or(0);
                    }
                }
                Err((errno, detail)) => return Err(Failure { step: i as u32, errno, detail }),
            }
        }
        Ok(Ran::Done)
    }

    fn keep(&mut self, step: &Step, result: usize) {
        if step.slot != NO_SLOT {
            self.slots[step.slot as usize] = result as i32;
            self.made[step.slot as usize] = step.stage == Stage::Outer && step.slot < slot::TEMPORARY;
        }
    }

    fn argument(&self, step: &Step, i: usize) -> usize {
        match step.kinds[i] {
            Kind::Value => step.args[i] as usize,
            Kind::Blob => self.base + step.args[i] as usize,
            Kind::Slot => self.slots[step.args[i] as usize] as usize,
        }
    }

    fn perform(&mut self, step: &Step) -> core::result::Result<usize, (i32, u32)> {
        let a = core::array::from_fn(|i| self.argument(step, i));
        let plain = |result: Result<usize>| result.map_err(|errno| (errno, 0));
        match step.op {
            op::CLONE => plain(self.clone_pid1(a[0] as u64)),
            op::PROC_OPEN => plain(self.proc_open(a[0] as *const u8, a[1])),
            op::HAND_OVER => plain(self.hand_over()),
            op::RECEIVE => plain(self.receive()),
            op::MAKE_PATH => plain(self.make_path(step, a)),
            op::FILE => plain(self.file(a, |fd| self.contents(fd, a[1], a[2]))),
            op::COPY => plain(self.file(a, |fd| copy_all(fd, a[1]))),
            op::LIKE => plain(like(a[0] as i32, a[1] as i32, a[2] == 1)),
            op::DROP_BOUNDING => plain(drop_bounding(a[0] as u64)),
            op::DIE_WITH_INIT => plain(self.die_with_init()),
            op::FDS => plain(self.arrange(a[0] as *const u32, a[1])),
            op::JOIN => plain(self.join(a[0])),
            op::AWAIT_GROUP => plain(self.await_group(a[0], a[1])),
            op::EXEC => {
                self.executed = clock(CPU_TIME);
                self.began = clock(1);
                self.tell(Progress::NONE.failure);
                Err(execute(a))
            }
            op::SELF_OPEN => plain(self_open(a[0] as *const u8)),
            op::RAISE_FILES => plain(raise_files()),
            op::STACK => plain(self.stack(a)),
            op::USER_XATTR => plain(user_xattr(a[0])),
            op::ALLOW => plain(allow(a[0] as i32, a[1], a[2] as *const u8, a[3] as u64)),
            op::STAND => plain(self.stand()),
            op::AWAIT_LOOK => plain(self.await_look()),
            op::AWAIT_COMMAND => plain(self.await_command(a[0])),
            op::ID_MAP => plain(id_map(a[0], a[1])),
            // One that waits has its own.
            op::NETWORK if self.one_waits() => Ok(0),
            op::NETWORK => plain(crate::network::enter(self.slots[slot::NETWORK as usize])),
            op::SHOW => plain(self.show(a[0] as i32, a[1] as u32)),
            op::TERMINAL => plain(self.pass_terminal(a[0] as i32)),
            op::AWAIT_MAPS => plain(crate::server::await_maps()),
            number => plain(call(number as usize, a)),
        }
    }

    /// The root as overlayfs stacks it, or as a copy.
    fn stack(&self, a: [usize; 6]) -> Result<usize> {
        // OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
        const CLONE: usize = 1 | O_CLOEXEC;
        const AT_EMPTY_PATH: usize = 0x1000;
        if self.missing & a[1] as u64 == 0 {
            return call(nr::OPEN_TREE, [WIRE_CWD as usize, a[0], CLONE, 0, 0, 0]);
        }
        crate::layers::copy(a[3], a[2] as i32)?;
        call(nr::OPEN_TREE, [a[2], c"".as_ptr() as usize, CLONE | AT_EMPTY_PATH, 0, 0, 0])
    }

    /// Outer: whether there's a PID 1 that was made ahead, and answers. One that somebody
    /// has killed is no reason to fail.
    fn one_waits(&mut self) -> bool {
        if self.waiting > 0 && !self.answered {
            self.answered = receive(self.channel[0], &mut [0], true).is_ok_and(|received| received.length == 1);
            if !self.answered {
                close(self.channel[0]);
                (self.waiting, self.channel) = (0, socket_pair().unwrap_or([-1; 2]));
            }
        }
        self.waiting > 0
    }

    fn clone_pid1(&mut self, flags: u64) -> Result<usize> {
        const CLONE_PARENT: u64 = 0x8000;
        if self.one_waits() {
            self.pid1 = self.waiting;
            return Ok(self.pid1 as usize);
        }
        let tid = crate::server::pid1_place();
        let pid = fork(flags | CLONE_PARENT, 0, tid)?;
        // PID 1 has inherited what was opened before.
        self.made = [false; SLOTS];
        if pid == 0 {
            close(self.channel[0]);
            self.channel[0] = -1;
            for slot in &mut self.slots[slot::TEMPORARY as usize..] {
                if *slot >= 0 {
                    close(*slot);
                    *slot = -1;
                }
            }
            return Ok(0);
        }
        close(self.channel[1]);
        self.pid1 = pid;
        Ok(pid as usize)
    }

    /// /proc/<PID 1>/<name>
    fn proc_open(&self, name: *const u8, flags: usize) -> Result<usize> {
        let mut path = [0u8; 64];
        let mut at = push(&mut path, 0, b"/proc/")?;
        let mut digits = [0u8; 10];
        let mut i = digits.len();
        let mut pid = self.pid1 as u32;
        while pid > 0 {
            i -= 1;
            digits[i] = b'0' + (pid % 10) as u8;
            pid /= 10;
        }
        at = push(&mut path, at, &digits[i..])?;
        at = push(&mut path, at, b"/")?;
        push(&mut path, at, text(name))?;
        call(nr::OPENAT, [AT_FDCWD as usize, path.as_ptr() as usize, flags | O_CLOEXEC, 0, 0, 0])
    }

    fn hand_over(&mut self) -> Result<usize> {
        let (mut names, mut fds, mut count) = ([0u8; HANDED + MAX_FDS], [0i32; MAX_FDS], 0);
        names[1..9].copy_from_slice(&self.missing.to_le_bytes());
        names[9..HANDED].copy_from_slice(&(crate::server::entry() as u64).to_le_bytes());
        // One that waits has inherited nothing of this.
        let inherited = |slot: usize| {
            [slot::REPLY, slot::PLAN, slot::MAKER].contains(&(slot as u8)) || (slot::PASSED..slot::LOCAL).contains(&(slot as u8))
        };
        for slot in 0..SLOTS {
            if self.made[slot] || self.waiting > 0 && self.slots[slot] >= 0 && inherited(slot) {
                if count == MAX_FDS {
                    names[0] = 1;
                    send(self.channel[0], &names, &fds)?;
                    count = 0;
                }
                names[HANDED + count] = slot as u8;
                fds[count] = self.slots[slot];
                count += 1;
            }
        }
        names[0] = 0;
        send(self.channel[0], &names[..HANDED + count], &fds[..count])?;
        close(core::mem::replace(&mut self.channel[0], -1));
        Ok(0)
    }

    /// Outer: whether PID 1 is dead, or dying: it has no memory any more before it has no
    /// descriptors, and no id map can be written then. Only asked when something failed.
    pub fn has_lost_pid1(&self) -> bool {
        const POLLHUP: u64 = 0x10;
        let hung_up = || poll_one(self.channel[0], 0, 100_000_000).is_ok_and(|events| events & POLLHUP != 0);
        self.pid1 > 0 && self.channel[0] >= 0 && hung_up()
    }

    /// From a PID 1 that was made ahead, when it has been told of its sandbox.
    pub fn adopted(&mut self) -> Context {
        self.drop_plan();
        if self.receive().is_err() {
            exit(1);
        }
        match Context::map(self.slots[slot::PLAN as usize]) {
            Ok(new) => Context { slots: self.slots, channel: self.channel, init: self.init, missing: self.missing, received: true, ..new },
            Err(errno) => {
                crate::helper::report_failure(self.slots[slot::REPLY as usize], Failure::outside(errno));
                exit(1)
            }
        }
    }

    /// Somebody else's have been closed; what is left is our end of the channel.
    pub fn forget_descriptors(&mut self, channel: i32) {
        (self.slots, self.made, self.channel) = ([-1; SLOTS], [false; SLOTS], [-1, channel]);
        (self.missing, self.waiting) = (0, 0);
    }

    fn receive(&mut self) -> Result<usize> {
        if self.received {
            return Ok(0);
        }
        loop {
            let mut names = [0u8; HANDED + MAX_FDS];
            let received = receive(self.channel[1], &mut names, true)?;
            if received.length == 1 {
                // The question whether we live: see `one_waits`.
                send(self.channel[1], &[0], &[])?;
                continue;
            }
            if received.length == 0 {
                // The outer child failed and has said why.
                exit(1);
            }
            if received.truncated || received.count + HANDED != received.length {
                return Err(EMFILE);
            }
            let word = |at: usize| names[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.missing |= word(1);
            crate::server::set_entry(word(9) as usize);
            for (slot, fd) in names[HANDED..].iter().zip(received.fds()) {
                self.slots[*slot as usize] = *fd;
            }
            if names[0] == 0 {
                close(self.channel[1]);
                self.channel[1] = -1;
                return Ok(0);
            }
        }
    }

    /// See [`op::MAKE_PATH`]. Resolution stays inside the directory whatever
    /// links the image holds; a component that's missing is made in the
    /// directory that the part before it led to.
    fn make_path(&self, step: &Step, a: [usize; 6]) -> Result<usize> {
        const DIRECTORY: u32 = 0o040000;
        let file = match step.kinds[2] {
            Kind::Slot => stat(a[2] as i32, c"".as_ptr().cast())?.0 & 0o170000 != DIRECTORY,
            _ => a[2] == 1,
        };
        make_path(a[0] as i32, a[1] as *mut u8, file, staying(a[3]), a[3] & 0o7777, a[4], a[5]).map(|fd| fd as usize)
    }

    /// See [`op::FILE`].
    fn file(&self, a: [usize; 6], fill: impl Fn(usize) -> Result<usize>) -> Result<usize> {
        let path = a[0] as *mut u8;
        let length = text(path).len();
        let mut cut = length;
        // SAFETY: the path lies in our private mapping and ends at `length`.
        while cut > 0 && unsafe { path.add(cut - 1).read() } != b'/' {
            cut -= 1;
        }
        let root = self.slots[slot::ROOT as usize];
        let parent = if cut == 0 {
            root
        } else {
            // SAFETY: as above; the byte is a slash and is put back.
            unsafe { path.add(cut - 1).write(0) };
            let parent = make_path(root, path, false, staying(a[3]), 0o755, a[4], a[5]);
            // SAFETY: as above.
            unsafe { path.add(cut - 1).write(b'/') };
            parent?
        };
        let made = write_file(parent, path as usize + cut, a, fill);
        if parent != root {
            close(parent);
        }
        made
    }

    /// Tells PID 1, if this process is another: see [`Progress`].
    pub fn tell(&self, failure: Failure) {
        if self.announce >= 0 {
            let (began, executed, charged, missing) = (self.began, self.executed, self.charged(), self.missing);
            let pid = call(nr::GETPID, [0; 6]).unwrap_or(0) as i32;
            let progress = Progress { pid, failure, began, executed, charged, missing };
            let _ = call(nr::WRITE, [self.announce as usize, &raw const progress as usize, size_of::<Progress>(), 0, 0, 0]);
        }
    }

    /// Writes contents of the plan's to a file. Of a large plan not by way of our memory:
    /// what we have had there counts as the command's (execve(2) keeps the largest
    /// resident set of the process).
    fn contents(&self, fd: usize, at: usize, length: usize) -> Result<usize> {
        const LARGE: usize = 1 << 20;
        let (start, size) = (self.mapping.0 as usize, self.mapping.1);
        let (mut done, mut offset) = (0, at - start);
        while done < length {
            let moved = if size > LARGE {
                let plan = self.slots[slot::PLAN as usize] as usize;
                call(nr::SENDFILE, [fd, plan, &raw mut offset as usize, length - done, 0, 0])
            } else {
                call(nr::WRITE, [fd, at + done, length - done, 0, 0, 0])
            };
            match moved {
                Ok(0) => return Err(ENOSPC),
                Ok(n) => done += n,
                Err(EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(0)
    }

    /// CPU time between joining the control group and exec: our own, in its account.
    pub fn charged(&self) -> u64 {
        self.joined.map_or(0, |joined| self.executed.saturating_sub(joined))
    }

    fn await_group(&mut self, first: usize, count: usize) -> Result<usize> {
        match receive_request(self.slots[slot::REPLY as usize], true)? {
            Some((request, received)) if request.kind == Request::GROUP && !received.truncated && received.count == count => {
                self.slots[first..first + count].copy_from_slice(received.fds());
                Ok(0)
            }
            Some(_) => Err(EPROTO),
            // The host let go.
            None => exit(1),
        }
    }

    fn show(&self, fd: i32, kind: u32) -> Result<usize> {
        report(self.slots[slot::REPLY as usize], &Report { kind, ..Report::default() }, &[fd]);
        Ok(0)
    }

    fn pass_terminal(&self, master: i32) -> Result<usize> {
        let terminal = Report { kind: Report::TERMINAL, ..Report::default() };
        send(self.slots[slot::REPLY as usize], &terminal.encode(), &[master]).map(|()| 0)
    }

    /// See [`op::STAND`].
    fn stand(&self) -> Result<usize> {
        let own = call(nr::GETPID, [0; 6])?;
        let pidfd = call(nr::PIDFD_OPEN, [own, 0, 0, 0, 0, 0])?;
        let standing = Report { kind: Report::STANDING, ..Report::default() };
        send(self.slots[slot::REPLY as usize], &standing.encode(), &[pidfd as i32])?;
        Ok(0)
    }

    /// See [`op::AWAIT_LOOK`]. By read(2), because a filter may refuse what is for sockets.
    fn await_look(&self) -> Result<usize> {
        let (mut bytes, reply) = ([0u8; Request::SIZE], self.slots[slot::REPLY as usize] as usize);
        let length = loop {
            match call(nr::READ, [reply, bytes.as_mut_ptr() as usize, bytes.len(), 0, 0, 0]) {
                Err(EINTR) => continue,
                other => break other?,
            }
        };
        match Request::decode(&bytes[..length]) {
            Some(request) if request.kind == Request::PROCEED => Ok(0),
            // A host that lets go is no reason to execute.
            _ => Err(EPROTO),
        }
    }

    /// See [`op::AWAIT_COMMAND`].
    fn await_command(&mut self, first: usize) -> Result<usize> {
        match receive_request(self.slots[slot::REPLY as usize], true)? {
            Some((request, received)) if request.kind == Request::EXECUTE && !received.truncated && received.count >= 1 => {
                let [plan, passed @ ..] = received.fds() else { return Err(EPROTO) };
                let new = Context::map(*plan)?;
                self.drop_plan();
                (self.plan, self.base, self.mapping) = (new.plan, new.base, new.mapping);
                self.slots[slot::PLAN as usize] = *plan;
                self.slots[first..first + passed.len()].copy_from_slice(passed);
                Ok(0)
            }
            Some(_) => Err(EPROTO),
            // The host let go.
            None => exit(1),
        }
    }

    fn join(&mut self, file: usize) -> Result<usize> {
        self.joined.get_or_insert_with(|| clock(CPU_TIME));
        call(nr::WRITE, [file, c"0".as_ptr() as usize, 1, 0, 0, 0])
    }

    fn die_with_init(&self) -> Result<usize> {
        const POLLIN: u64 = 1;
        prctl(PR_SET_PDEATHSIG, SIGKILL)?;
        if poll_one(self.init, POLLIN, 0)? != 0 {
            exit(1);
        }
        Ok(0)
    }

    /// See [`op::FDS`]. Sources that stand below the highest wanted number are
    /// first moved above it, so that no `dup3` overwrites one still needed.
    fn arrange(&mut self, pairs: *const u32, count: usize) -> Result<usize> {
        const F_DUPFD_CLOEXEC: usize = 1030;
        const CLOSE_RANGE_CLOEXEC: usize = 4;
        // SAFETY: the decoder checked place, alignment and count.
        let pairs = unsafe { core::slice::from_raw_parts(pairs.cast::<[u32; 2]>(), count) };
        let above = pairs.iter().map(|p| p[1] as usize + 1).max().unwrap_or(0);
        let mut sources = [-1i32; MAX_FDS];
        for (source, pair) in sources.iter_mut().zip(pairs) {
            let fd = self.slots[pair[0] as usize];
            *source = if (fd as usize) < above { call(nr::FCNTL, [fd as usize, F_DUPFD_CLOEXEC, above, 0, 0, 0])? as i32 } else { fd };
        }
        // Some more are needed after this: the way to the host, that to PID 1, and a
        // courier's channel, which is in the same table (see listener.rs).
        for fd in [&mut self.slots[slot::REPLY as usize], &mut self.channel[1], &mut self.announce] {
            if (0..above as i32).contains(fd) {
                *fd = call(nr::FCNTL, [*fd as usize, F_DUPFD_CLOEXEC, above, 0, 0, 0])? as i32;
            }
        }
        call(nr::CLOSE_RANGE, [0, u32::MAX as usize, CLOSE_RANGE_CLOEXEC, 0, 0, 0])?;
        for (source, pair) in sources.iter().zip(pairs) {
            call(nr::DUP3, [*source as usize, pair[1] as usize, 0, 0, 0, 0])?;
        }
        Ok(0)
    }
}

fn push(to: &mut [u8; 64], at: usize, bytes: &[u8]) -> Result<usize> {
    // One byte stays for the NUL.
    let Some(room) = to[..63].get_mut(at..at + bytes.len()) else { return Err(EINVAL) };
    room.copy_from_slice(bytes);
    Ok(at + bytes.len())
}

/// A NUL-terminated string of the blob area.
fn text(at: *const u8) -> &'static [u8] {
    let mut length = 0;
    // SAFETY: blob offsets lie in the mapping, whose last byte is NUL.
    while unsafe { at.add(length).read() } != 0 {
        length += 1;
    }
    // SAFETY: as above.
    unsafe { core::slice::from_raw_parts(at, length) }
}

/// What [`op::STAY`] in a mode means to openat2(2).
fn staying(mode: usize) -> u64 {
    const RESOLVE_NO_XDEV: u64 = 1;
    if mode & op::STAY as usize != 0 { RESOLVE_NO_XDEV } else { 0 }
}

/// Opens `path` as if `root` were the root directory; `resolve` are further RESOLVE_
/// flags of openat2(2).
fn open_in(root: i32, path: *const u8, flags: usize, resolve: u64) -> Result<i32> {
    const RESOLVE_NO_MAGICLINKS: u64 = 2;
    const RESOLVE_IN_ROOT: u64 = 0x10;
    let how = [(flags | O_PATH | O_CLOEXEC) as u64, 0, resolve | RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS];
    call(nr::OPENAT2, [root as usize, path as usize, how.as_ptr() as usize, size_of_val(&how), 0, 0]).map(|fd| fd as i32)
}

fn make_path(root: i32, path: *mut u8, file: bool, resolve: u64, mode: usize, uid: usize, gid: usize) -> Result<i32> {
    let last_flags = if file { 0 } else { O_DIRECTORY };
    match open_in(root, path, last_flags, resolve) {
        Err(ENOENT) => {}
        other => return other,
    }
    let length = text(path).len();
    let mut parent = open_in(root, c"/".as_ptr().cast(), O_DIRECTORY, resolve)?;
    let mut begin = 0;
    while begin < length {
        let mut end = begin;
        // SAFETY: `end` stays below the string's length.
        while end < length && unsafe { path.add(end).read() } != b'/' {
            end += 1;
        }
        if end > begin {
            let last = end == length;
            // SAFETY: the byte at `end` is a slash or the final NUL; it's put back.
            unsafe { path.add(end).write(0) };
            let name = path as usize + begin;
            let as_file = file && last;
            let next = match open_in(root, path, if as_file { 0 } else { O_DIRECTORY }, resolve) {
                Err(ENOENT) => make_one(parent, name, as_file, mode, uid, gid),
                other => other,
            };
            if !last {
                // SAFETY: as above.
                unsafe { path.add(end).write(b'/') };
            }
            close(parent);
            parent = next?;
        }
        begin = end + 1;
    }
    Ok(parent)
}

/// Makes one directory, or one empty file, and opens it.
fn make_one(parent: i32, name: usize, file: bool, mode: usize, uid: usize, gid: usize) -> Result<i32> {
    let parent = parent as usize;
    if file {
        let flags = O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY | O_CLOEXEC;
        close(call(nr::OPENAT, [parent, name, flags, 0o644, 0, 0])? as i32);
    } else {
        call(nr::MKDIRAT, [parent, name, mode, 0, 0, 0])?;
    }
    if uid != 0 || gid != 0 {
        const AT_SYMLINK_NOFOLLOW: usize = 0x100;
        call(nr::FCHOWNAT, [parent, name, uid, gid, AT_SYMLINK_NOFOLLOW, 0])?;
    }
    call(nr::OPENAT, [parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0, 0, 0]).map(|fd| fd as i32)
}

/// Replaces `name` in `parent`: whatever stands there, a link or a FIFO among
/// them, is removed and not opened.
fn write_file(parent: i32, name: usize, a: [usize; 6], fill: impl Fn(usize) -> Result<usize>) -> Result<usize> {
    let parent = parent as usize;
    let create = || call(nr::OPENAT, [parent, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY | O_CLOEXEC, 0o600, 0, 0]);
    let fd = match create() {
        Err(EEXIST) => {
            call(nr::UNLINKAT, [parent, name, 0, 0, 0, 0])?;
            create()?
        }
        other => other?,
    };
    let finish = || {
        fill(fd)?;
        if a[4] != 0 || a[5] != 0 {
            call(nr::FCHOWN, [fd, a[4], a[5], 0, 0, 0])?;
        }
        call(nr::FCHMOD, [fd, a[3] & 0o7777, 0, 0, 0, 0])
    };
    let result = finish();
    close(fd as i32);
    result
}

/// The whole of a regular file, whatever its offset is.
pub fn copy_all(to: usize, from: usize) -> Result<usize> {
    const MOST: usize = 1 << 30;
    let mut offset = 0u64;
    loop {
        match call(nr::SENDFILE, [to, from, &raw mut offset as usize, MOST, 0, 0]) {
            Ok(0) => return Ok(0),
            Ok(_) | Err(EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn like(from: i32, to: i32, owner: bool) -> Result<usize> {
    let (mode, uid, gid) = stat(from, c"".as_ptr().cast())?;
    if owner {
        call(nr::FCHOWN, [to as usize, uid as usize, gid as usize, 0, 0, 0])?;
    }
    // fchmod after fchown, which clears setid bits; `to` is a real descriptor.
    call(nr::FCHMOD, [to as usize, (mode & 0o7777) as usize, 0, 0, 0, 0])
}

fn drop_bounding(keep: u64) -> Result<usize> {
    const PR_CAPBSET_DROP: usize = 24;
    for capability in 0..64 {
        if keep >> capability & 1 == 0 {
            match prctl(PR_CAPBSET_DROP, capability) {
                Ok(_) => {}
                // The first number that this kernel doesn't know ends the list.
                Err(EINVAL) => break,
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(0)
}

fn self_open(name: *const u8) -> Result<usize> {
    let mut path = [0u8; 64];
    let at = push(&mut path, 0, b"/proc/self/")?;
    push(&mut path, at, text(name))?;
    call(nr::OPENAT, [AT_FDCWD as usize, path.as_ptr() as usize, O_RDONLY | O_CLOEXEC, 0, 0, 0])
}

fn raise_files() -> Result<usize> {
    const RLIMIT_NOFILE: usize = 7;
    let mut limit = [0u64; 2];
    call(nr::PRLIMIT64, [0, RLIMIT_NOFILE, 0, limit.as_mut_ptr() as usize, 0, 0])?;
    limit[0] = limit[1];
    call(nr::PRLIMIT64, [0, RLIMIT_NOFILE, limit.as_ptr() as usize, 0, 0, 0])
}

/// See [`op::ALLOW`].
fn allow(ruleset: i32, directory: usize, path: *const u8, rights: u64) -> Result<usize> {
    /// What a rule on a file may name: WRITE_FILE and TRUNCATE, of all that we use.
    const ON_FILES: u64 = 1 << 1 | 1 << 14;
    const LANDLOCK_RULE_PATH_BENEATH: usize = 1;
    // The ruleset couldn't be made, and the recipe goes on without.
    if ruleset < 0 {
        return Ok(0);
    }
    let below = !text(path).is_empty();
    let place = if below { call(nr::OPENAT, [directory, path as usize, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0, 0, 0])? } else { directory };
    let add = |rights: u64| {
        // struct landlock_path_beneath_attr is packed: 12 bytes.
        let rule = [rights, place as u64];
        call(nr::LANDLOCK_ADD_RULE, [ruleset as usize, LANDLOCK_RULE_PATH_BENEATH, rule.as_ptr() as usize, 0, 0, 0])
    };
    let added = match add(rights) {
        Err(EINVAL) => add(rights & ON_FILES),
        other => other,
    };
    if below {
        close(place as i32);
    }
    added
}

/// mount_setattr(2) with a descriptor inside its structure.
fn id_map(mount: usize, namespace: usize) -> Result<usize> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    const AT_EMPTY_PATH_RECURSIVE: usize = 0x9000;
    let attributes = [MOUNT_ATTR_IDMAP, 0, 0, namespace as u64];
    let at = attributes.as_ptr() as usize;
    call(nr::MOUNT_SETATTR, [mount, c"".as_ptr() as usize, AT_EMPTY_PATH_RECURSIVE, at, size_of_val(&attributes), 0])
}

fn user_xattr(directory: usize) -> Result<usize> {
    call(nr::FSETXATTR, [directory, c"user.cofferdam".as_ptr() as usize, c"".as_ptr() as usize, 0, 0, 0])
}

/// Tries each program of the list as execvp(3) does: what isn't there is passed
/// over, what may not be executed is remembered, anything else is final. Also
/// tells the mode of the file that failed, so that the host can tell a missing
/// program from a missing interpreter, and a directory from a file.
fn execute(a: [usize; 6]) -> (i32, u32) {
    // SAFETY: the decoder checked place, alignment and count of the list, and
    // relocation turned its entries into addresses inside the mapping.
    let candidates = unsafe { core::slice::from_raw_parts(a[0] as *const usize, a[1]) };
    let mut failure = (ENOENT, 0);
    for path in candidates {
        let Err(errno) = call(nr::EXECVE, [*path, a[2], a[3], 0, 0, 0]) else { continue };
        let mode = stat(WIRE_CWD as i32, *path as *const u8).map_or(0, |s| s.0);
        match errno {
            ENOENT | ENOTDIR if mode == 0 => {
                if failure.0 == ENOENT {
                    failure = (errno, 0);
                }
            }
            EACCES => failure = (errno, mode),
            _ => return (errno, mode),
        }
    }
    failure
}
