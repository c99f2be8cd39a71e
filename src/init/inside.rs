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
//!
//! A sandbox is made for one command and ends with it, or is a live one, which starts
//! commands and helpers as it's asked to and ends with its host's end of the socket.

mod poll;

use core::mem::MaybeUninit;

use crate::arch::nr;
use crate::command::{Command, FREE};
use crate::helper::{Helper, NOBODY, report_failure};
use crate::interpret::{Context, Failure};
use crate::message::{Report, Request};
use crate::reuse::Reuse;
use crate::sockets::Traces;
use crate::sys::*;
use crate::wire::{self, NO_SLOT, Stage, slot};
use poll::{POLLIN, POLLRDHUP, Poll};

const COMMANDS: usize = 64;
const HELPERS: usize = 32;

struct Inside {
    reply: i32,
    children: i32,
    /// Its own /proc, and the Landlock ruleset of its commands, in a live sandbox.
    proc: i32,
    ruleset: i32,
    /// Grows, see [`places`].
    commands: &'static mut [Command],
    helpers: [Helper; HELPERS],
    oom: Oom,
    /// Of what was done to its network namespace, where that may serve again.
    traces: Traces,
    reuse: Reuse,
    /// More may have died than one turn reaps.
    more: bool,
    /// Nobody else is in the sandbox.
    childless: bool,
    paused: bool,
    /// When to look after those that others may have stopped.
    nudge: u64,
    spent: Spent,
}

/// What is to be let go of when there's time: a short command is over before anybody misses
/// that, and the host needn't wait for it.
struct Spent {
    /// What a command was started with.
    context: Option<Context>,
    /// That is PID 1's own, with all descriptors that it has from before.
    own: bool,
    /// Those of a command that has ended.
    fds: [i32; Command::KEPT],
    /// When; 0 if there's nothing.
    due: u64,
}

impl Spent {
    const NONE: Spent = Spent { context: None, own: false, fds: [-1; Command::KEPT], due: 0 };
}

/// How long it waits after a command's start or end, nanoseconds.
const LEISURE: u64 = 2_000_000;

/// How long what a command was started with may wait.
fn leisure(context: &Context) -> u64 {
    if context.plan.flags() & wire::GIVEN == 0 { LEISURE } else { 0 }
}

/// Room for all commands, of which only as much is touched as is used: each page of it
/// costs a new sandbox a fault.
static mut PLACES: [MaybeUninit<Command>; COMMANDS] = [const { MaybeUninit::uninit() }; COMMANDS];

/// The first `count` places, of which the last is new.
fn places(count: usize) -> &'static mut [Command] {
    // SAFETY: this program has no threads, and the slice takes the place of the one that
    // was handed out before. Places are handed out in their order, so all but the last
    // have been written.
    unsafe {
        let first = (&raw mut PLACES).cast::<Command>();
        first.add(count - 1).write(FREE);
        core::slice::from_raw_parts_mut(first, count)
    }
}

/// cgroup v1 tells of an out-of-memory before it kills, and kills only one.
struct Oom {
    event: i32,
    count: i32,
    /// Kills that have been answered for.
    seen: u64,
}

/// How often they're looked after, nanoseconds.
const NUDGE: u64 = 5_000_000;

/// Never returns: ends when the last command has, or with its host.
pub fn main(mut context: Context) -> ! {
    if let Err(failure) = context.run(Stage::Ahead) {
        fail(context.slots[slot::REPLY as usize], failure);
    }
    go_on(context)
}

/// The same from the end of the first stage.
pub fn go_on(mut context: Context) -> ! {
    let reply = context.slots[slot::REPLY as usize];
    let children = match signalfd() {
        Ok(fd) => fd,
        Err(errno) => fail(reply, Failure::outside(errno)),
    };
    if let Err(failure) = context.run(Stage::Inner) {
        fail(reply, failure);
    }
    let oom = Oom { event: -1, count: -1, seen: 0 };
    let (commands, helpers, reuse) = (places(1), [NOBODY; HELPERS], Reuse::begin(&context));
    let mut inside = Inside {
        reply,
        children,
        proc: -1,
        ruleset: -1,
        commands,
        helpers,
        oom,
        traces: Traces::begin(&context),
        reuse,
        more: false,
        childless: false,
        paused: false,
        nudge: 0,
        spent: Spent::NONE,
    };
    if context.plan.flags() & wire::NO_COMMAND != 0 {
        let path = c"/proc".as_ptr() as usize;
        match call(nr::OPENAT, [AT_FDCWD as usize, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, 0, 0]) {
            Ok(fd) => inside.proc = fd as i32,
            Err(errno) => fail(reply, Failure::outside(errno)),
        }
        inside.ruleset = context.slots[slot::RULESET as usize];
        report(reply, &Report { kind: Report::READY, missing: context.missing, detail: inside.reuse.state, ..Report::default() }, &[]);
    } else {
        let ruleset = context.slots[slot::RULESET as usize];
        match Command::start_alone(&mut context, reply, ruleset) {
            Ok(command) => inside.commands[0] = command,
            Err(failure) => fail(reply, failure),
        }
        inside.promise();
        inside.commands[0].say_started();
    }
    // A command that has been waited for has brought a plan of its own, which says what is
    // to be watched. What has happened since is in the event's counter.
    let watch = context.plan.watch();
    let mut watched = |slot: u8| if slot == NO_SLOT { -1 } else { core::mem::replace(&mut context.slots[slot as usize], -1) };
    (inside.oom.event, inside.oom.count) = (watched(watch.oom_event), watched(watch.oom_count));
    let hurries = context.plan.flags() & wire::NO_COMMAND == 0;
    let due = inside.commands[0].began + leisure(&context);
    inside.spent = Spent { context: Some(context), own: true, due, ..Spent::NONE };
    if !hurries {
        inside.tidy_up();
    }
    inside.serve()
}

fn fail(reply: i32, failure: Failure) -> ! {
    report_failure(reply, failure);
    exit(1)
}

impl Inside {
    /// Closes everything but what PID 1 itself needs.
    fn close_foreign(&self) {
        let mut keep = [-1i32; 6 + 2 + Command::KEPT + Reuse::KEPT];
        keep[..6].copy_from_slice(&[self.reply, self.children, self.proc, self.ruleset, self.oom.event, self.oom.count]);
        keep[6..8].copy_from_slice(&self.traces.kept());
        keep[8..8 + Command::KEPT].copy_from_slice(&self.commands[0].kept());
        self.reuse.kept(&mut keep[8 + Command::KEPT..]);
        close_all_but(&mut keep);
    }

    fn tidy_up(&mut self) {
        let spent = self.drop_plan();
        self.close(spent);
    }

    /// There's room for one plan. What came with it can wait.
    fn drop_plan(&mut self) -> Spent {
        let mut spent = core::mem::replace(&mut self.spent, Spent::NONE);
        if let Some(context) = &mut spent.context {
            context.drop_plan();
        }
        spent
    }

    fn close(&self, spent: Spent) {
        for fd in spent.fds {
            close(fd);
        }
        match spent.context {
            Some(context) if spent.own => {
                crate::network::started(context.slots[slot::MAKER as usize]);
                // Pipe ends and sources belong to the command.
                self.close_foreign();
            }
            Some(mut context) => context.close(),
            None => {}
        }
    }

    fn serve(&mut self) -> ! {
        loop {
            let mut poll = self.poll();
            let time = if self.more { Some(0) } else { self.timeout() };
            if poll.wait(time).is_err() {
                continue;
            }
            // The order matters: what has ended has ended, whatever was asked or
            // ran out in the same moment.
            if self.more || poll.ready(Poll::CHILDREN, 1).next().is_some() {
                drain(self.children);
                self.reap();
            }
            for i in poll.ready(Poll::STARTING, COMMANDS) {
                if self.commands[i].starting >= 0 && self.commands[i].advance() {
                    self.commands[i].settle();
                    self.promise();
                    self.commands[i].say_started();
                }
            }
            if poll.ready(Poll::OOM, 1).next().is_some() {
                self.out_of_memory();
            }
            for i in poll.ready(Poll::LISTENER, COMMANDS) {
                let waiting = poll.says(Poll::LISTENER + i) & POLLIN != 0;
                if self.commands[i].pid != 0 && self.commands[i].hears_forbidden_call(waiting) {
                    self.kill(i);
                }
            }
            self.deadlines();
            for i in poll.ready(Poll::COMMAND, COMMANDS) {
                self.command_request(i);
            }
            for i in poll.ready(Poll::HELPER, HELPERS) {
                // There's nothing to be said to one: the host let go.
                if self.helpers[i].pid != 0 {
                    let _ = kill(self.helpers[i].pid, SIGKILL);
                }
            }
            if poll.ready(Poll::REPLY, 1).next().is_some() {
                self.request();
            }
        }
    }

    fn poll(&self) -> Poll {
        let mut poll = Poll::NOBODY;
        poll.add(self.reply, Poll::REPLY);
        poll.add(self.children, Poll::CHILDREN);
        poll.add(self.oom.event, Poll::OOM);
        for (i, command) in self.commands.iter().enumerate().filter(|(_, c)| c.pid != 0) {
            poll.add(command.starting, Poll::STARTING + i);
            if command.reply != self.reply && !command.let_go {
                // What the host says before exec is for the command's own process.
                let events = if command.starting >= 0 { POLLRDHUP } else { POLLIN | POLLRDHUP };
                poll.add_for(command.reply, Poll::COMMAND + i, events);
            }
            poll.add_for(command.listener, Poll::LISTENER + i, POLLIN);
        }
        for (i, helper) in self.helpers.iter().enumerate().filter(|(_, h)| h.pid != 0) {
            poll.add(helper.reply, Poll::HELPER + i);
        }
        poll
    }

    fn live(&self) -> impl Iterator<Item = &Command> {
        self.commands.iter().filter(|c| c.pid != 0)
    }

    /// Nanoseconds until the next deadline.
    fn timeout(&self) -> Option<u64> {
        let own = [self.nudge, self.spent.due];
        let next = self.live().flat_map(|c| [c.wall_deadline, c.stop_deadline, c.next_check]).chain(own).filter(|d| *d != 0).min()?;
        Some(next.saturating_sub(clock(1)))
    }

    /// Tells init when to end the sandbox if we don't: at the first wall limit that we
    /// have still to see to.
    fn promise(&self) {
        let limits = self.live().map(|c| c.wall_deadline);
        crate::server::promise(limits.filter(|limit| *limit != 0).min().unwrap_or(u64::MAX));
    }

    fn deadlines(&mut self) {
        if self.nudge | self.spent.due == 0 && self.live().all(|c| c.wall_deadline | c.stop_deadline | c.next_check == 0) {
            return;
        }
        let now = clock(1);
        if self.spent.due != 0 && now >= self.spent.due {
            self.tidy_up();
        }
        if self.nudge != 0 && now >= self.nudge {
            self.look_after(now);
        }
        for i in 0..self.commands.len() {
            let command = &mut self.commands[i];
            if command.pid == 0 || command.over != 0 {
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
                if self.paused {
                    command.active = now;
                }
                cause |= command.look(now);
            }
            if cause != 0 {
                self.end(i, cause);
            }
        }
    }

    /// A workload may have stopped those that have its id and are on their way: so they
    /// are told to go on, until they are there. And what has ended may have left
    /// somebody.
    fn look_after(&mut self, now: u64) {
        let starting = self.commands.iter().filter(|c| c.starting >= 0).map(|c| c.pid);
        for pid in starting.chain(self.helpers.iter().map(|h| h.pid)).filter(|pid| *pid > 0) {
            if !self.paused {
                let _ = kill(pid, SIGCONT);
            }
        }
        self.conclude();
        let waits = self.live().any(|c| c.starting >= 0 || c.over != 0) || self.helpers.iter().any(|h| h.pid != 0);
        self.nudge = if waits { now + NUDGE } else { 0 };
    }

    fn nudge_later(&mut self) {
        if self.nudge == 0 {
            self.nudge = clock(1) + NUDGE;
        }
    }

    /// Latches a cause, and kills everything of a command.
    fn end(&mut self, i: usize, cause: u32) {
        let command = &mut self.commands[i];
        command.cause |= cause;
        (command.wall_deadline, command.stop_deadline, command.next_check) = (0, 0, 0);
        // What we kill may take its time to die.
        self.promise();
        self.kill(i);
    }

    /// Nobody in the sandbox belongs to anybody else.
    fn is_alone(&self, i: usize) -> bool {
        self.commands.iter().enumerate().all(|(j, c)| j == i || c.pid == 0) && self.helpers.iter().all(|h| h.pid == 0)
    }

    fn kill(&self, i: usize) {
        let command = &self.commands[i];
        if self.is_alone(i) {
            // Everything but us; atomic against fork, because a process with a
            // fatal signal pending can't fork.
            let _ = kill(-1, SIGKILL);
            return;
        }
        if command.over == 0 {
            let _ = kill(command.pid, SIGKILL);
        }
        command.tree.kill();
    }

    /// When the group's memory has run out everybody is killed.
    fn out_of_memory(&mut self) {
        const TRIES: u32 = 1000;
        let mut buffer = 0u64;
        let _ = call(nr::READ, [self.oom.event as usize, &raw mut buffer as usize, 8, 0, 0, 0]);
        for _ in 0..TRIES {
            let count = number_after(self.oom.count, b"oom_kill ").unwrap_or(self.oom.seen + 1);
            if count > self.oom.seen {
                self.oom.seen = count;
                for command in self.commands.iter_mut().filter(|c| c.pid != 0) {
                    command.cause |= Report::MEMORY;
                }
                let _ = kill(-1, SIGKILL);
                return;
            }
            pause(100_000);
        }
        // Something was freed after all.
    }

    /// Reaps a bounded number: orphans may die faster than they can be reaped, and
    /// deadlines and requests have to be looked at in between.
    fn reap(&mut self) {
        const TURN: usize = 64;
        let mut usage = Rusage::NONE;
        self.more = true;
        for _ in 0..TURN {
            match reap(true, &mut usage) {
                Ok(Some(dead)) => self.died(&dead, usage),
                other => {
                    self.more = false;
                    self.childless = other.is_err();
                    break;
                }
            }
        }
        self.conclude();
        self.childless = false;
    }

    fn died(&mut self, dead: &Dead, usage: Rusage) {
        self.reuse.reaped(dead.pid, &usage);
        if let Some(command) =
            self.commands.iter_mut().filter(|c| c.pid != 0 && c.over == 0).find_map(|c| c.ends_with(dead.pid).then_some(c))
        {
            command.ended(dead.status, usage);
            self.promise();
        } else if let Some(helper) = self.helpers.iter_mut().find(|h| h.pid == dead.pid) {
            helper.ended(dead.status);
        }
    }

    /// A command ends when all is dead that it has started.
    fn conclude(&mut self) {
        for i in 0..self.commands.len() {
            if self.commands[i].pid == 0 || self.commands[i].over == 0 {
                continue;
            }
            if self.commands[i].is_last() {
                self.finish_last(i);
            }
            let gone = self.childless || self.commands[i].is_overdue(clock(1)) || !self.is_alone(i) && !self.commands[i].tree.alive();
            if gone {
                self.finish(i);
            } else {
                self.kill(i);
                self.nudge_later();
            }
        }
    }

    fn finish(&mut self, i: usize) {
        let used = self.reuse.ends(self.childless && self.is_alone(i));
        self.commands[i].finish(used, self.reuse.state, self.childless);
        if !self.reuse.renew() {
            // It may serve again, as the host has been told, and can't.
            exit(1);
        }
        let command = core::mem::replace(&mut self.commands[i], FREE);
        for fd in core::mem::replace(&mut self.spent.fds, command.kept()) {
            close(fd);
        }
        let due = command.over + LEISURE;
        // What was given is closed at once.
        self.spent.due = if self.spent.due == 0 { due } else { self.spent.due.min(due) };
    }

    fn finish_last(&mut self, i: usize) -> ! {
        // Daemons and orphans end with the command; when wait4 says ECHILD
        // there's nobody left but us, and their time has been counted.
        let _ = kill(-1, SIGKILL);
        let mut each = Rusage::NONE;
        while reap(false, &mut each).is_ok() {}
        // Before the host knows, because init ends what the host has let go of.
        if self.traces.none_is_left() {
            crate::server::no_socket_is_left();
        }
        self.commands[i].finish(Some(Rusage::of_children()), 0, true);
        exit(0)
    }

    /// A request about one command.
    fn command_request(&mut self, i: usize) {
        if self.commands[i].pid == 0 {
            return;
        }
        if self.commands[i].starting >= 0 {
            // Only its end is told here.
            return self.let_go(i);
        }
        match receive_request(self.commands[i].reply, false) {
            Ok(Some((request, received))) => {
                received.close();
                self.signal(i, &request);
            }
            Ok(None) => self.let_go(i),
            Err(_) => {}
        }
    }

    /// The host wants nothing more of a command than to hear of its end, for which it may be
    /// waiting.
    fn let_go(&mut self, i: usize) {
        self.commands[i].let_go = true;
        self.end(i, Report::KILLED);
    }

    fn request(&mut self) {
        let mut spent = self.drop_plan();
        if spent.own {
            // It's all that isn't PID 1's, as what is received now won't be.
            self.close(core::mem::replace(&mut spent, Spent::NONE));
        }
        let (request, received, plan) = match receive_with_plan(self.reply, false) {
            Ok(Some(message)) => message,
            // The host let go; PID 1's end is the end of all.
            Ok(None) => exit(0),
            Err(_) => return self.close(spent),
        };
        if request.kind != Request::RUN {
            // Not before: with a request unread the kernel would look for descriptors that
            // nobody can receive any more.
            self.close(core::mem::replace(&mut spent, Spent::NONE));
        }
        match request.kind {
            Request::RUN | Request::DO if received.count >= 1 && !received.truncated => {
                return self.verb(&request, &received, plan, spent);
            }
            Request::RUN | Request::DO if received.count >= 1 => report_failure(received.fds[0], Failure::outside(EMFILE)),
            Request::SIGNAL | Request::KILL | Request::STOP => {
                for i in 0..self.commands.len() {
                    if self.commands[i].pid != 0 {
                        self.signal(i, &request);
                    }
                }
            }
            Request::PAUSE => self.pause(request.value == 1, request.time == 1),
            Request::END => self.end_all(),
            _ => {}
        }
        self.close(spent);
        received.close();
        unmap(plan);
    }

    fn signal(&mut self, i: usize, request: &Request) {
        if self.commands[i].over != 0 {
            return;
        }
        let pid = self.commands[i].pid;
        match request.kind {
            Request::KILL => self.end(i, if request.value == 0 { Report::KILLED } else { 0 }),
            Request::STOP => {
                self.commands[i].stop_deadline = clock(1).saturating_add(request.time).max(1);
                let _ = kill(pid, request.value as usize);
            }
            Request::SIGNAL => {
                let _ = kill(pid, request.value as usize);
            }
            _ => {}
        }
    }

    fn pause(&mut self, paused: bool, by_signal: bool) {
        self.paused = paused;
        if by_signal {
            // Atomic against fork, as with SIGKILL.
            let _ = kill(-1, if paused { SIGSTOP } else { SIGCONT });
        }
        let now = clock(1);
        for command in self.commands.iter_mut().filter(|c| c.pid != 0) {
            command.active = now;
        }
    }

    fn end_all(&mut self) -> ! {
        for command in self.commands.iter_mut().filter(|c| c.pid != 0 && c.over == 0) {
            command.cause |= Report::KILLED;
        }
        let _ = kill(-1, SIGKILL);
        let mut usage = Rusage::NONE;
        while let Ok(dead) = reap(false, &mut usage) {
            if let Some(dead) = dead {
                self.died(&dead, usage);
            }
        }
        for command in self.commands.iter_mut().filter(|c| c.pid != 0) {
            command.finish(None, 0, false);
        }
        exit(0)
    }

    /// RUN and DO.
    fn verb(&mut self, request: &Request, received: &Received, plan: Bytes, spent: Spent) {
        let reply = received.fds[0];
        let (mut context, passed) = match Context::sent(plan, &received.fds()[1..]) {
            Ok(context) => context,
            Err(errno) => {
                report_failure(reply, Failure::outside(errno));
                self.close(spent);
                return received.close();
            }
        };
        for (place, fd) in context.slots[slot::PASSED as usize..].iter_mut().zip(passed) {
            *place = *fd;
        }
        context.slots[slot::REPLY as usize] = -1;
        let started = if request.kind == Request::RUN {
            self.run(&mut context, reply, spent)
        } else {
            self.perform(&mut context, reply).map_err(Failure::outside)
        };
        if let Err(failure) = started {
            report_failure(reply, failure);
            close(reply);
        }
        // The process has copies of all that is its own.
        let due = clock(1) + leisure(&context);
        self.spent = Spent { context: Some(context), due, ..Spent::NONE };
        self.nudge_later();
    }

    fn run(&mut self, context: &mut Context, reply: i32, mut spent: Spent) -> core::result::Result<(), Failure> {
        let used = self.commands.len();
        let place = self.commands.iter().position(|c| c.pid == 0).unwrap_or(used);
        let alone = self.is_empty();
        let waits = alone && context.plan.flags() & wire::ALONE != 0 && place < COMMANDS;
        if !waits {
            // A copy would hide the ends of the last command's pipes until exec, whenever
            // that comes.
            self.close(core::mem::replace(&mut spent, Spent::NONE));
        }
        if place >= COMMANDS {
            return Err(Failure::outside(EUSERS));
        }
        self.reuse.starts(alone);
        let started = if waits {
            Command::start_alone(context, reply, self.ruleset)
        } else {
            Command::start_beside(context, reply, self.ruleset).map_err(Failure::outside)
        };
        // One that's alone is executed already, or never will be.
        self.close(spent);
        let mut command = started?;
        self.reuse.has_courier(if command.has_courier() { command.pid } else { 0 });
        command.tree.proc = self.proc;
        if place == used {
            self.commands = places(used + 1);
        }
        self.commands[place] = command;
        if waits {
            self.promise();
            self.commands[place].say_started();
        }
        Ok(())
    }

    /// There's no process but us.
    fn is_empty(&mut self) -> bool {
        let mut usage = Rusage::NONE;
        match reap(true, &mut usage) {
            Ok(Some(dead)) => {
                self.died(&dead, usage);
                false
            }
            other => matches!(other, Err(ECHILD)),
        }
    }

    fn perform(&mut self, context: &mut Context, reply: i32) -> Result<()> {
        let place = self.helpers.iter().position(|h| h.pid == 0).ok_or(EUSERS)?;
        self.reuse.spoil();
        self.helpers[place] = Helper::start(context, reply)?;
        Ok(())
    }
}
