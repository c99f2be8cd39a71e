//! PID 1 of a sandbox.
//!
//! The workload is never PID 1 itself: as PID 1 it would ignore signals that it
//! has no handler for, so that `abort()` shows up as SIGSEGV and `raise(SIGFPE)`
//! returns. PID 1 starts commands, reaps everything, keeps the clocks and reports by
//! message; its own exit status says nothing.
//!
//! It stays outside the control group that limits a command, and watches its
//! counters: CPU time is checked at the first moment at which what remains can have
//! run out (remainder divided by CPUs), so a run that waits costs nothing.

use crate::arch::{clone_onto, nr};
use crate::interpret::{Context, Failure, Ran};
use crate::listener;
use crate::message::{Report, Request};
use crate::sys::*;
use crate::wire::{self, NO_SLOT, Stage, Watch, slot};

const COMMANDS: usize = 64;

#[derive(Clone, Copy)]
struct Command {
    /// 0 when free.
    pid: i32,
    name: u32,
    flags: u64,
    /// CLOCK_MONOTONIC nanoseconds; 0 for none.
    wall_deadline: u64,
    stop_deadline: u64,
    cause: u32,
    began: u64,
    /// CPU time that our own code used before exec, all of it and in the group.
    setup: u64,
    charged: u64,
    missing: u64,
    watch: Watch,
    /// Descriptors of what is watched, -1 for none.
    cpu: i32,
    oom_event: i32,
    oom_count: i32,
    /// Tells of calls that its filter forbids.
    listener: i32,
    /// The first of them.
    syscall: u64,
    /// When to look at the counter again; 0 for never.
    next_check: u64,
    /// What it said last, and since when.
    last_cpu: u64,
    active: u64,
}

const FREE: Command = Command {
    pid: 0,
    name: 0,
    flags: 0,
    wall_deadline: 0,
    stop_deadline: 0,
    cause: 0,
    began: 0,
    setup: 0,
    charged: 0,
    missing: 0,
    watch: Watch { cpu: NO_SLOT, oom_event: NO_SLOT, oom_count: NO_SLOT, cpu_unit: 1, cpu_rate: 1000, cpu_limit: 0, idle_limit: 0 },
    cpu: -1,
    oom_event: -1,
    oom_count: -1,
    listener: -1,
    syscall: 0,
    next_check: 0,
    last_cpu: 0,
    active: 0,
};

/// The least time between two looks at a counter: it moves once a tick.
const LOOK: u64 = 2_000_000;

/// What the command's process leaves behind for PID 1. It shares our memory
/// until exec (CLONE_VM), and we're suspended meanwhile (CLONE_VFORK).
pub struct Shared {
    context: *mut Context,
    failure: Failure,
    failed: bool,
    /// With a courier: the command's own process.
    pub main: i32,
}

impl Shared {
    /// What kept the command from being executed, unless something else did before.
    pub fn fail(&mut self, errno: i32) {
        if !self.failed {
            (self.failed, self.failure) = (true, Failure::outside(errno));
        }
    }

    /// The courier's end of its channel, and the listener that the command left.
    pub fn handed(&self) -> (i32, i32) {
        // SAFETY: `start`'s own context, whose frame is suspended.
        let context = unsafe { &*self.context };
        (context.channel[1], context.slots[listener::SLOT])
    }
}

const STACK: usize = 64 * 1024;
#[repr(align(16))]
struct Stack(#[allow(dead_code, reason = "only its address is used")] [u8; STACK]);
static mut COMMAND_STACK: Stack = Stack([0; STACK]);

struct Inside {
    reply: i32,
    children: i32,
    commands: [Command; COMMANDS],
    /// More may have died than one turn reaps.
    more: bool,
}

/// Never returns: ends when the last command has, or with its host.
pub fn main(mut context: Context) -> ! {
    let reply = context.slots[slot::REPLY as usize];
    let children = match signalfd() {
        Ok(fd) => fd,
        Err(errno) => fail(reply, 0, Failure::outside(errno)),
    };
    if let Err(failure) = context.run(Stage::Inner) {
        fail(reply, 0, failure);
    }
    let mut inside = Inside { reply, children, commands: [FREE; COMMANDS], more: false };
    if context.plan.flags() & wire::NO_COMMAND != 0 {
        report(reply, &Report { kind: Report::READY, missing: context.missing, ..Report::default() }, &[]);
    } else if !inside.start(&mut context) {
        exit(1);
    }
    crate::network::now(context.slots[slot::MAKER as usize]);
    context.drop_plan();
    // Pipe ends and sources belong to the command.
    inside.close_foreign();
    inside.serve()
}

fn report_failure(reply: i32, command: u32, failure: Failure) {
    let failed = Report {
        kind: Report::FAILED,
        command,
        status: failure.step,
        errno: failure.errno as u32,
        detail: failure.detail,
        ..Report::default()
    };
    report(reply, &failed, &[]);
}

fn fail(reply: i32, command: u32, failure: Failure) -> ! {
    report_failure(reply, command, failure);
    exit(1)
}

/// Reaps one child, which is dead or about to be; its CPU time in nanoseconds.
fn wait_for(pid: i32) -> u64 {
    let mut usage = Rusage::default();
    let _ = call(nr::WAIT4, [pid as usize, 0, 0x4000_0000, &raw mut usage as usize, 0, 0]);
    usage.user_ns() + usage.system_ns()
}

/// The command's process: from here to exec.
pub extern "C" fn command_main(shared: usize) -> ! {
    // SAFETY: the address of a live local of `start`, whose frame is suspended
    // until we exec or exit; nothing else touches it meanwhile.
    let shared = unsafe { &mut *(shared as *mut Shared) };
    // SAFETY: as above.
    let context = unsafe { &mut *shared.context };
    match context.run(Stage::Command) {
        Err(failure) => shared.failure = failure,
        // A plan whose command stage doesn't end in exec.
        Ok(_) => shared.failure = Failure::outside(EPROTO),
    }
    shared.failed = true;
    exit(127)
}

impl Command {
    /// Looks at the CPU counter: what limit has been reached, if one has.
    fn look(&mut self, now: u64) -> u32 {
        let used = self.cpu_time();
        let watch = self.watch;
        let mut next = u64::MAX;
        if watch.cpu_limit != 0 {
            let Some(left) = watch.cpu_limit.checked_sub(used).filter(|left| *left > 0) else { return Report::CPU };
            next = left.saturating_mul(1000) / u64::from(watch.cpu_rate).max(1);
        }
        if watch.idle_limit != 0 {
            if used != self.last_cpu {
                self.last_cpu = used;
                self.active = now;
            }
            if now.saturating_sub(self.active) >= watch.idle_limit {
                return Report::IDLE;
            }
            // Often enough to notice short activity not much too late.
            next = next.min(watch.idle_limit / 8);
        }
        self.next_check = now.saturating_add(next.max(LOOK));
        0
    }

    /// CPU time of the whole group or, without one, of the main process and of the
    /// dead: what its living children use doesn't show until they have ended.
    fn cpu_time(&self) -> u64 {
        if self.cpu >= 0 {
            let counted = counter(self.cpu).unwrap_or(0) * u64::from(self.watch.cpu_unit);
            return counted.saturating_sub(self.charged);
        }
        // The clock of another process (CPUCLOCK_SCHED).
        let main = clock((!(self.pid as isize) << 3 | 2) as usize);
        let dead = Rusage::of_children();
        (main + dead.user_ns() + dead.system_ns()).saturating_sub(self.setup)
    }
}

impl Inside {
    /// Runs the command stage of a plan; false if it didn't come to exec.
    fn start(&mut self, context: &mut Context) -> bool {
        const CLONE_VM: u64 = 0x100;
        const CLONE_VFORK: u64 = 0x4000;
        const CLONE_PIDFD: u64 = 0x1000;
        let name = context.plan.command();
        let Some(place) = self.commands.iter().position(|c| c.pid == 0) else {
            report_failure(self.reply, name, Failure::outside(EMFILE));
            return false;
        };
        let listens = context.plan.flags() & wire::LISTEN != 0;
        if listens {
            match listener::channel() {
                Ok(channel) => context.channel = channel,
                Err(errno) => {
                    report_failure(self.reply, name, Failure::outside(errno));
                    return false;
                }
            }
        }
        let channel = context.channel[0];
        let mut shared = Shared { context, failure: Failure::outside(EIO), failed: false, main: 0 };
        let mut pidfd = -1i32;
        let flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD;
        let stack = &raw mut COMMAND_STACK as u64;
        let args = [flags, &raw mut pidfd as u64, 0, 0, SIGCHLD, stack, STACK as u64, 0];
        let entry = if listens { listener::courier } else { command_main };
        // SAFETY: `args` is a clone_args with its own stack, used by one command
        // at a time because CLONE_VFORK suspends us; both entries never return.
        let result = unsafe { clone_onto(args.as_ptr(), size_of_val(&args), entry, &raw mut shared as usize) };
        // SAFETY: `shared` is alive; read after the child has let go of our memory.
        let Shared { mut failed, mut failure, main, .. } = unsafe { (&raw const shared).read_volatile() };
        if result < 0 {
            report_failure(self.reply, name, Failure::outside(-result as i32));
            return false;
        }
        let (mut pid, mut listener, mut courier) = (result as i32, -1, 0);
        if listens {
            courier = wait_for(pid);
            close(pidfd);
            pid = main;
            match listener::take(channel) {
                Some(handed) => (pidfd, listener) = handed,
                // It was killed before it could hand over.
                None if !failed => (failed, failure, pidfd) = (true, Failure::outside(EIO), -1),
                None => pidfd = -1,
            }
            close(channel);
        }
        if failed {
            close(pidfd);
            close(listener);
            if pid > 0 {
                let _ = kill(pid, SIGKILL);
                wait_for(pid);
            }
            report_failure(self.reply, name, failure);
            return false;
        }
        let began = context.began;
        let flags = context.plan.flags();
        let limit = context.plan.wall_limit();
        let watch = context.plan.watch();
        let mut watched = |slot: u8| if slot == NO_SLOT { -1 } else { core::mem::replace(&mut context.slots[slot as usize], -1) };
        self.commands[place] = Command {
            pid,
            name,
            flags,
            wall_deadline: if limit == 0 { 0 } else { began.saturating_add(limit) },
            began,
            cpu: watched(watch.cpu),
            oom_event: watched(watch.oom_event),
            oom_count: watched(watch.oom_count),
            listener,
            watch,
            setup: context.executed + courier,
            charged: context.charged(),
            missing: context.missing,
            next_check: if watch.cpu_limit | watch.idle_limit == 0 { 0 } else { began },
            active: began,
            ..FREE
        };
        self.promise();
        if flags & wire::NOTIFY_START != 0 {
            let started = Report { kind: Report::STARTED, command: name, began, missing: context.missing, ..Report::default() };
            report(self.reply, &started, &[pidfd]);
        }
        close(pidfd);
        true
    }

    /// Tells init when to end the sandbox if we don't: at the first wall limit that we
    /// have still to see to.
    fn promise(&self) {
        let limits = self.commands.iter().filter(|c| c.pid != 0).map(|c| c.wall_deadline);
        crate::server::promise(limits.filter(|limit| *limit != 0).min().unwrap_or(u64::MAX));
    }

    /// Closes everything but what PID 1 itself needs.
    fn close_foreign(&self) {
        let mut keep = [-1i32; 2 + 4 * COMMANDS];
        keep[0] = self.reply;
        keep[1] = self.children;
        for (places, command) in keep[2..].chunks_mut(4).zip(&self.commands) {
            places.copy_from_slice(&[command.cpu, command.oom_event, command.oom_count, command.listener]);
        }
        close_all_but(&mut keep);
    }

    fn serve(&mut self) -> ! {
        const POLLIN: u64 = 1;
        const POLLRDHUP: u64 = 0x2000;
        let entry = |fd: i32, events: u64| u64::from(fd as u32) | events << 32;
        loop {
            // A negative descriptor is passed over.
            let mut poll = [entry(-1, 0); 2 + 2 * COMMANDS];
            poll[0] = entry(self.reply, POLLIN | POLLRDHUP);
            poll[1] = entry(self.children, POLLIN);
            for (places, command) in poll[2..].chunks_mut(2).zip(&self.commands) {
                places.copy_from_slice(&[entry(command.oom_event, POLLIN), entry(command.listener, POLLIN)]);
            }
            let time = if self.more { Some(0) } else { self.timeout() };
            let time = time.map(|t| [t / 1_000_000_000, t % 1_000_000_000]);
            let time_at = time.as_ref().map_or(0, |t| t.as_ptr() as usize);
            let ready = call(nr::PPOLL, [poll.as_mut_ptr() as usize, poll.len(), time_at, 0, 0, 0]);
            if ready.is_err() {
                continue;
            }
            // The order matters: what has ended has ended, whatever was asked or
            // ran out in the same moment.
            if poll[1] >> 48 != 0 || self.more {
                drain(self.children);
                self.reap();
            }
            for i in 0..COMMANDS {
                if poll[2 + 2 * i] >> 48 != 0 && self.commands[i].pid != 0 {
                    self.out_of_memory(i);
                }
                if poll[3 + 2 * i] >> 48 != 0 && self.commands[i].pid != 0 {
                    self.forbidden_call(i);
                }
            }
            self.deadlines();
            if poll[0] >> 48 != 0 {
                self.request();
            }
        }
    }

    /// Nanoseconds until the next deadline.
    fn timeout(&self) -> Option<u64> {
        let live = self.commands.iter().filter(|c| c.pid != 0);
        let next = live.flat_map(|c| [c.wall_deadline, c.stop_deadline, c.next_check]).filter(|d| *d != 0).min()?;
        Some(next.saturating_sub(clock(1)))
    }

    fn deadlines(&mut self) {
        if self.commands.iter().all(|c| c.wall_deadline | c.stop_deadline | c.next_check == 0) {
            return;
        }
        let now = clock(1);
        for i in 0..COMMANDS {
            let command = &mut self.commands[i];
            if command.pid == 0 {
                continue;
            }
            // The cause is latched before the kill: a SIGKILL has no author.
            let mut cause = 0;
            if command.wall_deadline != 0 && now >= command.wall_deadline {
                cause = Report::WALL;
            }
            if command.stop_deadline != 0 && now >= command.stop_deadline {
                cause |= Report::KILLED;
            }
            if command.next_check != 0 && now >= command.next_check {
                cause |= command.look(now);
            }
            if cause != 0 {
                command.cause |= cause;
                (command.wall_deadline, command.stop_deadline, command.next_check) = (0, 0, 0);
                // What we kill may take its time to die.
                self.promise();
                self.kill(i);
            }
        }
    }

    /// cgroup v1 tells of an out-of-memory before it kills, and kills only one. When
    /// it has, the others follow.
    fn out_of_memory(&mut self, i: usize) {
        const TRIES: u32 = 1000;
        let command = &mut self.commands[i];
        let mut buffer = 0u64;
        let _ = call(nr::READ, [command.oom_event as usize, &raw mut buffer as usize, 8, 0, 0, 0]);
        for _ in 0..TRIES {
            if number_after(command.oom_count, b"oom_kill ").unwrap_or(1) > 0 {
                command.cause |= Report::MEMORY;
                close(command.oom_event);
                command.oom_event = -1;
                return self.kill(i);
            }
            let pause = [0u64, 100_000];
            let _ = call(nr::PPOLL, [0, 0, pause.as_ptr() as usize, 0, 0, 0]);
        }
        // Something was freed after all.
    }

    /// A process waits in a call that its filter forbids, or none is left that could.
    fn forbidden_call(&mut self, i: usize) {
        let command = &mut self.commands[i];
        let told = listener::told(command.listener);
        // One is enough; and at the end of all its processes a listener hangs up, for
        // good. Closed later, by when nobody can be woken by it any more.
        if let Some(syscall) = told
            && command.cause & Report::SYSCALL == 0
        {
            command.cause |= Report::SYSCALL;
            command.syscall = syscall;
            return self.kill(i);
        }
        if told.is_none() {
            close(core::mem::replace(&mut command.listener, -1));
        }
    }

    fn kill(&self, i: usize) {
        let command = &self.commands[i];
        if command.flags & wire::LAST_COMMAND != 0 {
            // Everything but us; atomic against fork, because a process with a
            // fatal signal pending can't fork.
            let _ = kill(-1, SIGKILL);
        } else {
            let _ = kill(command.pid, SIGKILL);
            let _ = kill(-command.pid, SIGKILL);
        }
    }

    /// Reaps a bounded number: orphans may die faster than they can be reaped, and
    /// deadlines and requests have to be looked at in between.
    fn reap(&mut self) {
        const TURN: usize = 64;
        let mut usage = Rusage::default();
        self.more = true;
        for _ in 0..TURN {
            let Ok(Some(dead)) = reap(true, &mut usage) else {
                self.more = false;
                break;
            };
            if let Some(i) = self.commands.iter().position(|c| c.pid == dead.pid) {
                self.ended(i, dead.status, usage);
            }
        }
    }

    fn ended(&mut self, i: usize, status: u32, own: Rusage) {
        let ended = clock(1);
        let command = self.commands[i];
        self.commands[i] = FREE;
        self.promise();
        let last = command.flags & wire::LAST_COMMAND != 0;
        let mut usage = own;
        if last {
            // Daemons and orphans end with the command; when wait4 says ECHILD
            // there's nobody left but us, and their time has been counted.
            let _ = kill(-1, SIGKILL);
            let mut each = Rusage::default();
            while reap(false, &mut each).is_ok() {}
            usage = Rusage::of_children();
        }
        let (scratch, scratch_files, full) = usage_of_root();
        let ((switches, preemptions), (read, written)) = (usage.switches(), usage.blocks());
        let report_ended = Report {
            kind: Report::ENDED,
            command: command.name,
            status,
            errno: 0,
            detail: 0,
            cause: command.cause,
            missing: command.missing,
            began: command.began,
            ended,
            user: usage.user_ns(),
            system: usage.system_ns().saturating_sub(command.setup),
            peak: usage.peak_bytes(),
            setup: command.charged,
            scratch,
            scratch_files,
            full: u64::from(full),
            switches,
            preemptions,
            read,
            written,
            syscall: command.syscall,
        };
        for fd in [command.cpu, command.oom_event, command.oom_count, command.listener] {
            close(fd);
        }
        report(self.reply, &report_ended, &[]);
        if last {
            exit(0);
        }
    }

    fn request(&mut self) {
        let (request, received) = match receive_request(self.reply, false) {
            Ok(Some(message)) => message,
            // The host let go; PID 1's end is the end of all.
            Ok(None) => exit(0),
            Err(_) => return,
        };
        match request.kind {
            Request::RUN => self.run(request.command, &received),
            Request::DO => self.perform(request.command, &received),
            Request::SIGNAL | Request::KILL | Request::STOP => self.signal(&request),
            _ => {}
        }
        if request.kind != Request::RUN {
            received.close();
        }
    }

    fn signal(&mut self, request: &Request) {
        let Some(i) = self.commands.iter().position(|c| c.pid != 0 && c.name == request.command) else { return };
        match request.kind {
            Request::KILL => {
                if request.value == 0 {
                    self.commands[i].cause |= Report::KILLED;
                }
                self.kill(i);
            }
            Request::STOP => {
                self.commands[i].stop_deadline = clock(1).saturating_add(request.time).max(1);
                let _ = kill(self.commands[i].pid, request.value as usize);
            }
            _ => {
                let _ = kill(self.commands[i].pid, request.value as usize);
            }
        }
    }

    /// The plan of a verb, with its descriptors in their slots.
    fn plan(&self, command: u32, received: &Received) -> Option<Context> {
        let mapped = match received.fds().first() {
            Some(_) if received.truncated => Err(EMFILE),
            Some(plan) => Context::map(*plan),
            None => Err(EINVAL),
        };
        match mapped {
            Ok(mut context) => {
                for (i, fd) in received.fds()[1..].iter().enumerate() {
                    context.slots[slot::PASSED as usize + i] = *fd;
                }
                Some(context)
            }
            Err(errno) => {
                report_failure(self.reply, command, Failure::outside(errno));
                None
            }
        }
    }

    fn run(&mut self, command: u32, received: &Received) {
        if let Some(mut context) = self.plan(command, received) {
            self.start(&mut context);
            context.drop_plan();
        }
        self.close_foreign();
    }

    /// Does the inner stage of a plan and returns the descriptors it made.
    fn perform(&mut self, command: u32, received: &Received) {
        let Some(mut context) = self.plan(command, received) else { return };
        match context.run(Stage::Inner) {
            Ok(Ran::Done) => {
                let (mut fds, mut count) = ([0i32; wire::MAX_FDS], 0);
                let made = (0..context.plan.len()).filter_map(|i| context.plan.step(i)).filter(|s| s.slot != NO_SLOT);
                for step in made.take(wire::MAX_FDS) {
                    let fd = context.slots[step.slot as usize];
                    if fd >= 0 {
                        fds[count] = fd;
                        count += 1;
                    }
                }
                report(self.reply, &Report { kind: Report::DONE, command, ..Report::default() }, &fds[..count]);
                for fd in &fds[..count] {
                    close(*fd);
                }
            }
            Ok(Ran::Cloned) => exit(1),
            Err(failure) => report_failure(self.reply, command, failure),
        }
        context.drop_plan();
    }
}
