//! One command: its way to exec, its clocks, its end.

use crate::arch::{clone_onto, nr};
use crate::helper::report_failure;
use crate::interpret::{Context, Failure, Progress};
use crate::listener;
use crate::message::Report;
use crate::sys::*;
use crate::tree::Tree;
use crate::wire::{self, NO_SLOT, Stage, Watch, slot};

#[derive(Clone, Copy)]
pub struct Command {
    /// 0 when free.
    pub pid: i32,
    pub name: u32,
    pub flags: u64,
    /// Where everything about it is said.
    pub reply: i32,
    /// The host has nothing to say any more.
    pub let_go: bool,
    /// As long as it's on its way to exec: the pipe that tells how far it got, and its
    /// pidfd.
    pub starting: i32,
    pidfd: i32,
    progress: Progress,
    /// CLOCK_MONOTONIC nanoseconds; 0 for none.
    pub wall_deadline: u64,
    pub stop_deadline: u64,
    pub cause: u32,
    pub began: u64,
    wall_limit: u64,
    watch: Watch,
    /// Descriptor of the counter of CPU time, -1 for none, and what others had used by it.
    cpu: i32,
    before: u64,
    /// While a courier is at work: our end of its channel.
    channel: i32,
    /// Tells of calls that its filter forbids, and the first of them.
    pub listener: i32,
    syscall: u64,
    pub tree: Tree,
    /// When to look at the counter again; 0 for never.
    pub next_check: u64,
    /// What it said last, and since when.
    last_cpu: u64,
    pub active: u64,
    /// Its main process has been reaped: when, how, with what. What it left is being
    /// killed.
    pub over: u64,
    status: u32,
    usage: Rusage,
}

pub const FREE: Command = Command {
    pid: 0,
    name: 0,
    flags: 0,
    reply: -1,
    let_go: false,
    starting: -1,
    pidfd: -1,
    progress: Progress::NONE,
    wall_deadline: 0,
    stop_deadline: 0,
    cause: 0,
    began: 0,
    wall_limit: 0,
    watch: Watch::NONE,
    cpu: -1,
    before: 0,
    channel: -1,
    listener: -1,
    syscall: 0,
    tree: Tree::NONE,
    next_check: 0,
    last_cpu: 0,
    active: 0,
    over: 0,
    status: 0,
    usage: Rusage::NONE,
};

/// The least time between two looks at a counter: it moves once a tick.
const LOOK: u64 = 2_000_000;
/// How long the end of a command's leftovers is waited for: what hangs in the kernel
/// may never end.
const LEFTOVERS: u64 = 1_000_000_000;

/// What the command's process leaves behind for PID 1. It shares our memory
/// until exec (CLONE_VM), and we're suspended meanwhile (CLONE_VFORK).
pub struct Shared {
    pub context: *mut Context,
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

    /// The courier's end of its channel, the command's pidfd, and the listener that it left.
    pub fn handed(&self) -> (i32, [i32; 2]) {
        // SAFETY: `start`'s own context, whose frame is suspended.
        let context = unsafe { &*self.context };
        (context.channel[1], [context.pidfd, context.slots[listener::SLOT]])
    }
}

const STACK: usize = 64 * 1024;
#[repr(align(16))]
struct Stack(#[allow(dead_code, reason = "only its address is used")] [u8; STACK]);
static mut COMMAND_STACK: Stack = Stack([0; STACK]);

/// The command's process: from here to exec.
pub extern "C" fn command_main(shared: usize) -> ! {
    // SAFETY: the address of a live local of `start`, whose frame is suspended
    // until we exec or exit; nothing else touches it meanwhile.
    let shared = unsafe { &mut *(shared as *mut Shared) };
    // SAFETY: as above.
    let context = unsafe { &mut *shared.context };
    shared.failure = to_exec(context);
    shared.failed = true;
    context.tell(shared.failure);
    exit(127)
}

/// What the counter of a command's CPU time says before it begins: its group may have been
/// another's before.
fn used_before(context: &Context) -> u64 {
    let watch = context.plan.watch();
    if watch.cpu == NO_SLOT {
        return 0;
    }
    counter(context.slots[watch.cpu as usize]).unwrap_or(0) * u64::from(watch.cpu_unit)
}

/// Reaps one child, which is dead or about to be; its CPU time in nanoseconds.
fn wait_for(pid: i32) -> u64 {
    let mut usage = Rusage::NONE;
    let _ = call(nr::WAIT4, [pid as usize, 0, 0x4000_0000, &raw mut usage as usize, 0, 0]);
    usage.user_ns() + usage.system_ns()
}

/// Returns only if it fails.
fn to_exec(context: &mut Context) -> Failure {
    match context.run(Stage::Command) {
        Err(failure) => failure,
        // A plan whose command stage doesn't end in exec.
        Ok(_) => Failure::outside(EPROTO),
    }
}

impl Command {
    /// Runs the command stage of a plan, up to exec, in a sandbox where nobody else is: so
    /// nobody can hold it up, and we can share our memory and wait. That saves a copy of
    /// our page tables, a tenth of what a command costs.
    pub fn start_alone(context: &mut Context, reply: i32, ruleset: i32) -> core::result::Result<Command, Failure> {
        const CLONE_VM: u64 = 0x100;
        const CLONE_VFORK: u64 = 0x4000;
        const CLONE_PIDFD: u64 = 0x1000;
        let listens = context.plan.flags() & wire::LISTEN != 0;
        if listens {
            context.channel = socket_pair().map_err(Failure::outside)?;
        }
        let before = used_before(context);
        let (slots, channel) = (context.slots, context.channel);
        context.slots[slot::REPLY as usize] = reply;
        context.slots[slot::RULESET as usize] = ruleset;
        let mut shared = Shared { context, failure: Failure::outside(EIO), failed: false, main: 0 };
        let mut pidfd = -1i32;
        // For the host, which asks for no notice of such a command's start.
        let unwanted = context.plan.flags() & wire::ALONE != 0 && !listens;
        let flags = CLONE_VM | CLONE_VFORK | if unwanted { 0 } else { CLONE_PIDFD };
        let stack = &raw mut COMMAND_STACK as u64;
        let args = [flags, &raw mut pidfd as u64, 0, 0, SIGCHLD, stack, STACK as u64, 0];
        let entry = if listens { listener::courier } else { command_main };
        // SAFETY: `args` is a clone_args with its own stack, used by one command
        // at a time because CLONE_VFORK suspends us; both entries never return.
        let result = unsafe { clone_onto(args.as_ptr(), size_of_val(&args), entry, &raw mut shared as usize) };
        // SAFETY: `shared` is alive; read after the child has let go of our memory.
        let Shared { mut failed, mut failure, main, .. } = unsafe { (&raw const shared).read_volatile() };
        // Its descriptors were its own, and it may have moved them.
        (context.slots, context.channel, context.pidfd) = (slots, [-1; 2], -1);
        close(channel[1]);
        if result < 0 {
            close(channel[0]);
            return Err(Failure::outside(-result as i32));
        }
        let (mut pid, mut listener, mut courier) = (result as i32, -1, 0);
        if listens {
            courier = wait_for(pid);
            close(pidfd);
            pid = main;
            match listener::take(channel[0]) {
                Some(handed) => (pidfd, listener) = handed,
                // It was killed before it could hand over.
                None if !failed => (failed, failure, pidfd) = (true, Failure::outside(EIO), -1),
                None => pidfd = -1,
            }
            close(channel[0]);
        }
        if failed {
            close(pidfd);
            close(listener);
            if pid > 0 {
                let _ = kill(pid, SIGKILL);
                wait_for(pid);
            }
            return Err(failure);
        }
        let mut command = Command { before, ..Command::of(context, pid, reply) };
        (command.pidfd, command.listener) = (pidfd, listener);
        command.progress = Progress {
            pid,
            began: context.began,
            // Only of the last command all children's time is told, this one's among it.
            executed: context.executed + if context.plan.flags() & wire::LAST_COMMAND == 0 { 0 } else { courier },
            charged: context.charged(),
            missing: context.missing,
            ..Progress::NONE
        };
        command.executed();
        Ok(command)
    }

    /// Starts a command beside others, who have its very id from a certain moment on and
    /// could stop it on its way to exec. So PID 1 doesn't wait for it.
    pub fn start_beside(context: &mut Context, reply: i32, ruleset: i32) -> Result<Command> {
        let listens = context.plan.flags() & wire::LISTEN != 0;
        if listens {
            context.channel = socket_pair()?;
        }
        let before = used_before(context);
        let mut pipe = [-1i32; 2];
        call(nr::PIPE2, [pipe.as_mut_ptr() as usize, O_CLOEXEC | O_NONBLOCK, 0, 0, 0, 0])?;
        let mut pidfd = -1i32;
        match fork_with_pidfd(&mut pidfd) {
            Ok(0) => {
                context.announce = pipe[1];
                context.slots[slot::REPLY as usize] = reply;
                context.slots[slot::RULESET as usize] = ruleset;
                let mut shared = Shared { context, failure: Failure::outside(EIO), failed: false, main: 0 };
                let address = &raw mut shared as usize;
                if listens { listener::courier(address) } else { command_main(address) }
            }
            Ok(pid) => {
                close(pipe[1]);
                close(core::mem::replace(&mut context.channel[1], -1));
                let mut command = Command { before, ..Command::of(context, pid, reply) };
                (command.starting, command.pidfd, command.channel) = (pipe[0], pidfd, context.channel[0]);
                Ok(command)
            }
            Err(errno) => {
                for fd in pipe.iter().chain(&context.channel) {
                    close(*fd);
                }
                Err(errno)
            }
        }
    }

    fn of(context: &mut Context, pid: i32, reply: i32) -> Command {
        let watch = context.plan.watch();
        let mut watched = |slot: u8| if slot == NO_SLOT { -1 } else { core::mem::replace(&mut context.slots[slot as usize], -1) };
        let tree = Tree { session: pid, group: watched(watch.group), kill: watched(watch.kill), proc: -1 };
        let cpu = watched(watch.cpu);
        let (name, flags, wall_limit) = (context.plan.command(), context.plan.flags(), context.plan.wall_limit());
        Command { pid, name, flags, reply, wall_limit, watch, cpu, tree, ..FREE }
    }

    /// Its first process isn't the command's own.
    pub fn has_courier(&self) -> bool {
        self.channel >= 0
    }

    pub fn is_last(&self) -> bool {
        self.flags & wire::LAST_COMMAND != 0
    }

    /// Takes note of how far a command on its way got; true at the end of the pipe.
    pub fn advance(&mut self) -> bool {
        let mut progress = Progress::NONE;
        let size = size_of::<Progress>();
        loop {
            match call(nr::READ, [self.starting as usize, &raw mut progress as usize, size, 0, 0, 0]) {
                // The second message, if there is one, says more.
                Ok(n) if n == size => self.progress = progress,
                end => return end == Ok(0),
            }
        }
    }

    /// Whether it has ended when this process has. A courier's end says something only if
    /// the command never came to exec.
    pub fn ends_with(&mut self, dead: i32) -> bool {
        if self.starting >= 0 {
            self.advance();
        }
        let Progress { pid, began, failure, .. } = self.progress;
        let executed = began != 0 && failure.errno == 0;
        if self.channel >= 0 && executed { dead == pid } else { dead == self.pid }
    }

    /// What a courier hands over. It's on its way, and nothing holds it up for long.
    fn take_over(&mut self) {
        const POLLIN: u64 = 1;
        let _ = kill(self.pid, SIGCONT);
        let _ = poll_one(self.channel, POLLIN, 100_000_000);
        close(core::mem::replace(&mut self.pidfd, -1));
        if let Some((pidfd, listener)) = listener::take(self.channel) {
            (self.pidfd, self.listener) = (pidfd, listener);
        }
        close(core::mem::replace(&mut self.channel, -1));
        self.pid = self.progress.pid;
        self.tree.session = self.pid;
        if self.pidfd < 0 {
            // The courier was killed.
            self.pidfd = call(nr::PIDFD_OPEN, [self.pid as usize, 0, 0, 0, 0, 0]).map_or(-1, |fd| fd as i32);
        }
        if self.cause != 0 {
            // So was the command to be, when only the courier was known.
            let _ = kill(self.pid, SIGKILL);
        }
    }

    /// The pipe has ended: it has executed its program, or never will.
    pub fn settle(&mut self) {
        self.advance();
        close(core::mem::replace(&mut self.starting, -1));
        if self.progress.failure.errno == 0 && self.progress.began != 0 {
            if self.channel >= 0 {
                self.take_over();
            }
            self.executed();
        } else {
            let failure = if self.progress.failure.errno == 0 { Failure::outside(ECANCELED) } else { self.progress.failure };
            report_failure(self.reply, failure);
        }
    }

    fn executed(&mut self) {
        let Progress { began, .. } = self.progress;
        self.began = began;
        self.active = began;
        self.wall_deadline = if self.wall_limit == 0 { 0 } else { began.saturating_add(self.wall_limit) };
        // It hasn't used anything yet.
        self.next_check = if self.watch.cpu_limit | self.watch.idle_limit == 0 { 0 } else { self.next_look(began, self.watch.cpu_limit) };
    }

    /// When there's something to see again: what's left of its CPU time can have run out, or
    /// it may have been idle for too long.
    fn next_look(&self, now: u64, left: u64) -> u64 {
        let watch = &self.watch;
        let runs_out = if watch.cpu_limit == 0 { u64::MAX } else { left.saturating_mul(1000) / u64::from(watch.cpu_rate).max(1) };
        // Often enough to notice short activity not much too late.
        let idle = if watch.idle_limit == 0 { u64::MAX } else { watch.idle_limit / 8 };
        now.saturating_add(runs_out.min(idle).max(LOOK))
    }

    /// Reports that it has been executed. After init has been told of its limit.
    pub fn say_started(&mut self) {
        let Progress { began, missing, .. } = self.progress;
        if self.began != 0 && self.flags & wire::NOTIFY_START != 0 {
            if self.pidfd >= 0 {
                let started = Report { kind: Report::STARTED, command: self.name, began, missing, ..Report::default() };
                report(self.reply, &started, &[self.pidfd]);
            } else {
                report_failure(self.reply, Failure::outside(ECANCELED));
            }
        }
        close(core::mem::replace(&mut self.pidfd, -1));
    }

    /// A process waits in a call that its filter forbids or, if none is `waiting`, none is
    /// left that could: then the listener has hung up for good. True at the first such
    /// call: the command is to be killed.
    pub fn hears_forbidden_call(&mut self, waiting: bool) -> bool {
        if !waiting {
            close(core::mem::replace(&mut self.listener, -1));
            return false;
        }
        // Nothing, if that one has been killed meanwhile. Otherwise the first is enough; it
        // isn't answered, and the listener stays, so that no call ever returns.
        let Some(syscall) = listener::told(self.listener) else { return false };
        let first = self.cause & Report::SYSCALL == 0;
        if first {
            self.cause |= Report::SYSCALL;
            self.syscall = syscall;
        }
        first
    }

    /// Looks at the CPU counter: what limit has been reached, if one has.
    pub fn look(&mut self, now: u64) -> u32 {
        let used = self.cpu_time();
        let watch = self.watch;
        let left = watch.cpu_limit.saturating_sub(used);
        if watch.cpu_limit != 0 && left == 0 {
            return Report::CPU;
        }
        if watch.idle_limit != 0 {
            if used != self.last_cpu {
                self.last_cpu = used;
                self.active = now;
            }
            if now.saturating_sub(self.active) >= watch.idle_limit {
                return Report::IDLE;
            }
        }
        self.next_check = self.next_look(now, left);
        0
    }

    /// CPU time of the whole group or, without one, of the main process and of the
    /// dead: what its living children use doesn't show until they have ended.
    fn cpu_time(&self) -> u64 {
        if self.cpu >= 0 {
            let counted = counter(self.cpu).unwrap_or(0) * u64::from(self.watch.cpu_unit);
            return counted.saturating_sub(self.before + self.progress.charged);
        }
        // The clock of another process (CPUCLOCK_SCHED).
        let main = clock((!(self.pid as isize) << 3 | 2) as usize);
        if self.is_last() {
            let dead = Rusage::of_children();
            return (main + dead.user_ns() + dead.system_ns()).saturating_sub(self.progress.executed);
        }
        main.max(self.tree.ticks()).saturating_sub(self.progress.executed)
    }

    /// Its main process has been reaped.
    pub fn ended(&mut self, status: u32, usage: Rusage) {
        if self.starting >= 0 {
            self.settle();
            self.say_started();
        }
        (self.over, self.status, self.usage) = (clock(1), status, usage);
        (self.wall_deadline, self.stop_deadline, self.next_check) = (0, 0, 0);
    }

    /// It's no use to wait any longer for what it left.
    pub fn is_overdue(&self, now: u64) -> bool {
        now >= self.over.saturating_add(LEFTOVERS)
    }

    /// Reports the end. `all` is the usage of everybody, where that's
    /// this command's, `sandbox` what it has left of its sandbox (see [`Report::detail`]), and
    /// `alone` says that PID 1 has no children.
    pub fn finish(&mut self, all: Option<Rusage>, sandbox: u32, alone: bool) {
        let usage = all.unwrap_or(self.usage);
        let Progress { began, executed, charged, missing, .. } = self.progress;
        let (scratch, scratch_files, full) = usage_of_root();
        let ((switches, preemptions), (read, written)) = (usage.switches(), usage.blocks());
        let ended = Report {
            kind: Report::ENDED,
            command: self.name,
            status: self.status,
            errno: 0,
            detail: sandbox,
            cause: self.cause | if alone { Report::ALONE } else { 0 },
            missing,
            began,
            ended: self.over,
            cleared: clock(1),
            user: usage.user_ns(),
            system: usage.system_ns().saturating_sub(executed),
            peak: usage.peak_bytes(),
            setup: charged,
            scratch,
            scratch_files,
            full: u64::from(full),
            switches,
            preemptions,
            read,
            written,
            syscall: self.syscall,
        };
        // Of one that never came to exec all has been said.
        if self.began != 0 {
            report(self.reply, &ended, &[]);
            // What we do next is nothing that the host has to wait for.
            let _ = call(nr::SCHED_YIELD, [0; 6]);
        }
    }

    /// How many descriptors PID 1 keeps for one.
    pub const KEPT: usize = 8;

    /// Those, first its reply socket.
    pub fn kept(&self) -> [i32; Command::KEPT] {
        [self.reply, self.cpu, self.tree.group, self.tree.kill, self.pidfd, self.starting, self.channel, self.listener]
    }
}
