//! The spawn server: one per host process.
//!
//! It polls its control socket, the host's pidfd, SIGCHLD and, for their end
//! only, the reply sockets of live sandboxes; it clones a child per request and
//! reaps. Nothing here may block on anything that a caller or a workload
//! controls, so it opens no path after its start and never uses CLONE_VFORK.
//!
//! A sandbox is two children at most: the *outer* child (`outer.rs`), which opens what is
//! the host's and clones PID 1 as its sibling (CLONE_PARENT), and PID 1. The
//! sandbox is gone when both have been reaped: reaping PID 1 of a PID namespace
//! means that every process in it is dead.

mod entry;
mod groups;
mod host;

use crate::ahead::{Ahead, Place, Waiting};
use crate::arch::nr;
use crate::helper::report_failure;
use crate::interpret::{Context, Failure};
use crate::message::{Report, Request};
use crate::network::{Maker, Network};
use crate::outer::{Job, Spare, outer};
use crate::sys::*;
use crate::wire::{AHEAD, Stage, WALL_LIMIT, slot};
use entry::{BUSY, Entry, UNUSED};
pub use entry::{entry, no_socket_is_left, pid1_place, promise, set_entry};
use groups::{remove_below, remove_directory, remove_with_commands};
use host::{give_up_precedence, reset_signals};

const CONTROL: i32 = 0;
const SANDBOXES: usize = 8192;
/// How many may ask at once to be told when nothing lives.
const WAITERS: usize = 16;

struct Server {
    table: *mut Entry,
    /// No entry at or above this index is in use.
    used: usize,
    epoll: i32,
    children: i32,
    pid: i32,
    /// Slots that the start plan filled.
    slots: [i32; slot::KEPT as usize],
    waiters: [i32; WAITERS],
    live: usize,
    /// Base and home directory of each control group hierarchy.
    homes: [[i32; 2]; HIERARCHIES],
    /// The number in the home's name.
    nonce: u64,
    /// Entries whose group could not be removed yet.
    unremoved: usize,
    /// Sandboxes so far.
    generation: u32,
    networks: Maker,
    ahead: Ahead,
    spare: Spare,
    /// A sandbox has ended, so that there's time to make another.
    wants_spare: bool,
    /// The process of [`Request::FILES`], or 0.
    files: i32,
    /// The first [`Entry::look`] of all.
    next_look: u64,
}

/// How long after the wall limit PID 1 is thought to have failed. It may be stopped,
/// or stuck; a machine that's busy makes it late, but hardly by so much, and what
/// we do then is what it would have done.
const GRACE: u64 = 1_000_000_000;
/// The most that set-up takes: see `Live::started` of the crate.
const SETUP: u64 = 60 * GRACE;

const HIERARCHIES: usize = 8;

/// What all outer children have of init.
pub struct Common {
    pub init: i32,
    /// Slots that the start plan filled.
    pub slots: [i32; slot::KEPT as usize],
    /// See [`Ahead::place`].
    pub place: *mut Place,
}

/// The upper half of a tag is a generation, the lower one an index, far from these.
const TAG_CONTROL: u64 = u64::MAX;
const TAG_CHILDREN: u64 = u64::MAX - 1;
const TAG_HOST: u64 = u64::MAX - 2;
const EPOLLIN: u32 = 1;
const EPOLLRDHUP: u32 = 0x2000;

/// Of an entry's socket.
fn tag(index: usize, generation: u32) -> u64 {
    u64::from(generation) << 32 | index as u64
}

pub fn main() -> ! {
    // Nothing that the host leaked or ignored survives: descriptors, signal
    // dispositions (an ignored SIGCHLD would take our children's statuses),
    // the mask, the session (its terminal's Ctrl-C).
    close_range(1, u32::MAX);
    reset_signals();
    let _ = call(nr::SETSID, [0; 6]);
    give_up_precedence();
    let _ = call(nr::UMASK, [0; 6]);
    let _ = prctl(PR_SET_NAME, c"cofferdam-init".as_ptr() as usize);
    let Some(mut server) = Server::start() else { exit(1) };
    server.serve()
}

/// See [`crate::wire::op::AWAIT_MAPS`].
pub fn await_maps() -> Result<usize> {
    report(CONTROL, &Report { kind: Report::MAPS, ..Report::default() }, &[]);
    match receive_request(CONTROL, true)? {
        Some((request, _)) if request.kind == Request::MAPPED => Ok(0),
        Some(_) => Err(EPROTO),
        None => exit(0),
    }
}

impl Server {
    /// Greets the host and performs the start plan.
    fn start() -> Option<Server> {
        let (request, received) = receive_request(CONTROL, true).ok()??;
        if request.kind != Request::HELLO || request.value != crate::BUILD || received.count < 2 {
            report(CONTROL, &Report { kind: Report::HELLO, status: Failure::NO_STEP, errno: EPROTO as u32, ..Report::default() }, &[]);
            return None;
        }
        // Descriptors beyond the second are kept open for as long as we live; the
        // last of them are directories of control groups.
        let [plan, host] = [received.fds[0], received.fds[1]];
        let counts = request.command & Request::COUNTS_SOCKETS != 0;
        let hierarchies = ((request.command & !Request::COUNTS_SOCKETS) as usize).min(HIERARCHIES);
        let first = received.count.checked_sub(2 * hierarchies).filter(|first| *first >= 2)?;
        let mut homes = [[-1; 2]; HIERARCHIES];
        for (i, home) in homes[..hierarchies].iter_mut().enumerate() {
            *home = [received.fds[first + 2 * i], received.fds[first + 2 * i + 1]];
        }
        if counts {
            crate::sockets::count_by(*received.fds().get(2)?);
        }
        let mut context = match Context::map(plan) {
            Ok(context) => context,
            Err(errno) => return refuse(Failure::outside(errno)),
        };
        if let Err(failure) = context.run(Stage::Start) {
            return refuse(failure);
        }
        let size = SANDBOXES * size_of::<Entry>();
        let table: *mut Entry = map_shared(size + size_of::<crate::ahead::Place>()).ok()?.cast();
        // SAFETY: the mapping is larger than the table by that.
        let place = unsafe { table.add(SANDBOXES) }.cast();
        let epoll = call(nr::EPOLL_CREATE1, [O_CLOEXEC, 0, 0, 0, 0, 0]).ok()? as i32;
        let slots = core::array::from_fn(|i| context.slots[i]);
        context.drop_plan();
        close(plan);
        let server = Server {
            table,
            used: 0,
            epoll,
            children: signalfd().ok()?,
            pid: call(nr::GETPID, [0; 6]).ok()? as i32,
            slots,
            waiters: [-1; WAITERS],
            live: 0,
            homes,
            nonce: request.time,
            unremoved: 0,
            generation: 0,
            networks: Maker::NONE,
            ahead: Ahead::new(place),
            spare: Spare::NONE,
            wants_spare: false,
            files: 0,
            next_look: u64::MAX,
        };
        server.watch(CONTROL, EPOLLIN | EPOLLRDHUP, TAG_CONTROL).ok()?;
        server.watch(server.children, EPOLLIN, TAG_CHILDREN).ok()?;
        server.watch(host, EPOLLIN, TAG_HOST).ok()?;
        report(CONTROL, &Report { kind: Report::HELLO, missing: context.missing, ..Report::default() }, &[]);
        Some(server)
    }

    fn watch(&self, fd: i32, events: u32, tag: u64) -> Result<usize> {
        self.epoll_ctl(1, fd, events, tag)
    }

    fn unwatch(&self, fd: i32) {
        let _ = self.epoll_ctl(2, fd, 0, 0);
    }

    fn epoll_ctl(&self, operation: usize, fd: i32, events: u32, tag: u64) -> Result<usize> {
        let event = EpollEvent { events, tag };
        call(nr::EPOLL_CTL, [self.epoll as usize, operation, fd as usize, &raw const event as usize, 0, 0])
    }

    fn serve(&mut self) -> ! {
        loop {
            let mut events = [EpollEvent { events: 0, tag: 0 }; 64];
            let wait = [self.epoll as usize, events.as_mut_ptr() as usize, events.len(), self.timeout(), 0, 0];
            let Ok(count) = call(nr::EPOLL_PWAIT, wait) else { continue };
            if self.unremoved > 0 {
                self.remove_groups();
            }
            for event in &events[..count] {
                match event.tag {
                    TAG_CONTROL => self.request(),
                    TAG_CHILDREN => {
                        drain(self.children);
                        self.reap();
                    }
                    TAG_HOST => self.end(),
                    tag => self.let_go(tag as u32 as usize, (tag >> 32) as u32),
                }
            }
            // Afterwards: what has ended by itself is known by now.
            self.end_overdue();
            if self.wants_spare {
                self.spare.make(&self.common());
                self.wants_spare = false;
            }
        }
    }

    /// Milliseconds until something has to be done, as epoll_wait(2) takes them.
    fn timeout(&self) -> usize {
        // A group that was busy is tried again.
        if self.unremoved > 0 {
            return 5;
        }
        match self.next_look {
            u64::MAX => usize::MAX,
            look => (look.saturating_sub(clock(1)) / 1_000_000 + 1).min(i32::MAX as u64) as usize,
        }
    }

    /// Ends sandboxes whose PID 1 has failed to at its wall limit.
    fn end_overdue(&mut self) {
        if self.next_look == u64::MAX {
            return;
        }
        let now = clock(1);
        if now < self.next_look {
            return;
        }
        self.next_look = u64::MAX;
        for index in 0..self.used {
            let entry = self.entry(index);
            if entry.outer == 0 || entry.gone || entry.look == 0 {
                continue;
            }
            if now >= entry.look {
                // SAFETY: one word of our own table, which PID 1 may just be writing.
                let deadline = unsafe { (&raw const entry.deadline).read_volatile() };
                let due = match deadline {
                    // Still being set up, which the host doesn't wait for longer.
                    0 => entry.asked.saturating_add(entry.limit).saturating_add(SETUP),
                    deadline => deadline,
                };
                entry.look = if due == u64::MAX { now + GRACE } else { due.saturating_add(GRACE) };
                if now >= entry.look {
                    (entry.overdue, entry.look) = (true, 0);
                    self.kill_sandbox(index);
                    continue;
                }
            }
            self.next_look = self.next_look.min(self.entry(index).look);
        }
    }

    /// What outer children have of us.
    fn common(&self) -> Common {
        Common { init: self.pid, slots: self.slots, place: self.ahead.place() }
    }

    fn entry(&mut self, index: usize) -> &mut Entry {
        // SAFETY: indices come from `start_sandbox` or our own epoll tags, below
        // SANDBOXES; the mapping lives as long as we do. Children write only
        // `pid1`, `deadline` and `no_socket_is_left`, before they are reaped.
        unsafe { &mut *self.table.add(index) }
    }

    fn request(&mut self) {
        let (request, received) = match receive_request(CONTROL, false) {
            Ok(Some(message)) => message,
            Ok(None) => self.end(),
            Err(_) => return,
        };
        match request.kind {
            Request::START if received.count >= 1 => self.start_sandbox(&request, &received),
            Request::START => {
                let _ = self.remove_group(request.value, request.time as u32);
            }
            Request::QUIESCE if received.count == 1 => self.quiesce(received.fds[0]),
            Request::FILES if received.count == 1 => self.serve_files(received.fds[0]),
            _ => received.close(),
        }
    }

    fn start_sandbox(&mut self, request: &Request, received: &Received) {
        let reply = received.fds[0];
        let result = if received.truncated || received.count < 2 { Err(EMFILE) } else { self.launch(request, received) };
        match result {
            Ok(()) => {
                for fd in &received.fds()[1..] {
                    close(*fd);
                }
            }
            Err(errno) => {
                report_failure(reply, Failure::outside(errno));
                report(reply, &Report { kind: Report::GONE, ..Report::default() }, &[]);
                received.close();
                self.remove_group(request.value, request.time as u32);
            }
        }
    }

    fn launch(&mut self, request: &Request, received: &Received) -> Result<()> {
        let index = (0..SANDBOXES).find(|i| self.entry(*i).outer == 0).ok_or(ENOSPC)?;
        let reply = received.fds[0];
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        self.watch(reply, EPOLLRDHUP, tag(index, generation))?;
        let (group, hierarchies) = (request.value, request.time as u32);
        // PID 1 knows when the limit's time began; not before now, in any case.
        let (asked, limit) = (clock(1), word_at(received.fds[1], WALL_LIMIT));
        let look = match limit {
            0 => 0,
            // It waits for its command; PID 1 will say.
            u64::MAX => asked + GRACE,
            limit => asked.saturating_add(limit).saturating_add(GRACE),
        };
        let kind = word_at(received.fds[1], AHEAD);
        if self.ahead.is_some() || self.spare.is_some() {
            // One that has died meanwhile is nobody to wait for.
            self.reap();
        }
        let waiting = self.ahead.take(kind).unwrap_or(Waiting { pid: 0, channel: -1, network: Network::NONE });
        *self.entry(index) = Entry { outer: -2, pid1: waiting.pid, reply, generation, group, hierarchies, asked, limit, look, ..UNUSED };
        let network_use = request.command;
        let used = network_use == Request::REUSED_NETWORK;
        let mut made_ahead = || if network_use == Request::OTHER_NETWORK { Network::NONE } else { self.networks.take(self.pid, used) };
        let network = if waiting.pid == 0 { made_ahead() } else { waiting.network };
        let next = self.ahead.begin(index, kind).unwrap_or(-1);
        let next_network = if next < 0 { Network::NONE } else { made_ahead() };
        let job = Job {
            entry: (&raw mut *self.entry(index)) as usize,
            waiting: waiting.pid,
            own: received.count as u32,
            extra: [network.fd, self.networks.signal, waiting.channel, next, next_network.fd],
            unused: 0,
        };
        let forked = self.spare.give(&job, received.fds()).map_or_else(fork_child, Ok);
        if forked == Ok(0) {
            outer(&self.common(), &job, received.fds())
        }
        if network_use > Request::OWN_NETWORK && forked.is_ok() {
            (self.entry(index).network, self.entry(index).network_use) = (network, network_use);
            if next >= 0 {
                self.ahead.keep_network(next_network);
            }
        } else {
            network.close();
            next_network.close();
        }
        close(next);
        close(waiting.channel);
        match forked {
            Ok(pid) => {
                self.entry(index).outer = pid;
                if look != 0 {
                    self.next_look = self.next_look.min(look);
                }
                self.used = self.used.max(index + 1);
                self.live += 1;
                Ok(())
            }
            Err(errno) => {
                self.ahead.outer_ended(index);
                if waiting.pid > 0 {
                    let _ = kill(waiting.pid, SIGKILL);
                }
                self.unwatch(reply);
                self.entry(index).outer = 0;
                Err(errno)
            }
        }
    }

    /// The host closed its end, or shut it down: kill what is left.
    ///
    /// Earlier events of the same batch may have ended that sandbox and given its
    /// place to another, which this event isn't about.
    fn let_go(&mut self, index: usize, generation: u32) {
        if self.entry(index).outer == 0 || self.entry(index).generation != generation {
            return;
        }
        let Entry { reply, gone, .. } = *self.entry(index);
        if gone && !decline(reply) {
            return;
        }
        self.unwatch(reply);
        self.entry(index).dying = true;
        self.networks.sandbox_ended();
        self.wants_spare = true;
        if gone {
            self.clear(index);
        } else {
            self.kill_sandbox(index);
        }
    }

    fn kill_sandbox(&mut self, index: usize) {
        // Neither pid has been reaped while it's positive, so it can't be
        // another process's.
        let (outer, pid1) = (self.entry(index).outer, self.entry(index).pid1);
        for pid in [outer, pid1] {
            if pid > 0 {
                let _ = kill(pid, SIGKILL);
            }
        }
    }

    fn reap(&mut self) {
        let mut usage = Rusage::default();
        while let Ok(Some(dead)) = reap(true, &mut usage) {
            if dead.pid == self.networks.pid {
                self.networks.ended();
                continue;
            }
            if dead.pid == self.files {
                self.files = 0;
                continue;
            }
            if self.spare.ended(dead.pid) || self.ahead.ended(dead.pid) {
                self.answer_waiters();
                continue;
            }
            let Some(index) = (0..self.used).find(|i| {
                let entry = self.entry(*i);
                entry.outer != 0 && (entry.outer == dead.pid || entry.pid1 == dead.pid)
            }) else {
                continue;
            };
            if self.entry(index).outer == dead.pid {
                self.ahead.outer_ended(index);
            }
            let entry = self.entry(index);
            if entry.outer == dead.pid {
                entry.outer = -1;
                if entry.dying && entry.pid1 > 0 {
                    // It may have been cloned after we killed what we knew.
                    let _ = kill(entry.pid1, SIGKILL);
                }
            } else {
                entry.pid1 = -1;
                entry.status = dead.status;
            }
            if entry.outer == -1 && entry.pid1 <= 0 {
                self.gone(index);
            }
        }
    }

    /// Every process of a sandbox has been reaped. Its control group stays until the
    /// host has read the counters and let go.
    fn gone(&mut self, index: usize) {
        let Entry { reply, status, overdue, .. } = *self.entry(index);
        let cause = if overdue { Report::WALL } else { 0 };
        let now = clock(1);
        report(reply, &Report { kind: Report::GONE, status, cause, ended: now, cleared: now, ..Report::default() }, &[]);
        self.entry(index).gone = true;
        if self.entry(index).dying {
            self.clear(index);
        } else {
            // The host of a live one may ask for more before it learns of this.
            self.listen(index);
        }
    }

    /// Has what its host says noticed from now on, and not only its end.
    fn listen(&mut self, index: usize) {
        let Entry { reply, generation, limit, .. } = *self.entry(index);
        // The others' hosts have nothing to ask for.
        if limit == u64::MAX {
            let _ = self.epoll_ctl(3, reply, EPOLLIN | EPOLLRDHUP, tag(index, generation));
        }
    }

    fn clear(&mut self, index: usize) {
        let Entry { reply, group, hierarchies, network, network_use, no_socket_is_left, .. } = *self.entry(index);
        if reply >= 0 {
            close(reply);
            self.entry(index).reply = -1;
        }
        if network.fd >= 0 {
            match network_use {
                Request::COUNTED_NETWORK if !no_socket_is_left || !network.had_one_socket() => network.close(),
                _ => self.networks.give_back(network, network_use == Request::REUSED_NETWORK),
            }
            self.entry(index).network = Network::NONE;
        }
        let left = self.remove_group(group, hierarchies);
        let waited = self.entry(index).outer == BUSY;
        self.entry(index).hierarchies = left;
        self.entry(index).outer = if left == 0 { 0 } else { BUSY };
        match (waited, left != 0) {
            (false, true) => self.unremoved += 1,
            (true, false) => self.unremoved -= 1,
            _ => {}
        }
        if left != 0 {
            return;
        }
        self.live -= 1;
        while self.used > 0 && self.entry(self.used - 1).outer == 0 {
            self.used -= 1;
        }
        self.answer_waiters();
    }

    /// Tells those who wait for it that nothing lives any more: not even what was made for
    /// a sandbox to come.
    fn answer_waiters(&mut self) {
        if self.live > 0 || self.waiters.iter().all(|waiter| *waiter < 0) {
            return;
        }
        self.wants_spare = false;
        self.spare.kill();
        if self.ahead.is_some() || self.spare.is_some() {
            self.ahead.kill();
            return;
        }
        for i in 0..WAITERS {
            if self.waiters[i] >= 0 {
                self.answer(self.waiters[i]);
                self.waiters[i] = -1;
            }
        }
    }

    fn remove_groups(&mut self) {
        for index in 0..self.used {
            if self.entry(index).outer == BUSY {
                self.clear(index);
            }
        }
    }

    /// Removes a group from the hierarchies that it's in; those that were busy.
    fn remove_group(&self, group: u64, hierarchies: u32) -> u32 {
        let mut left = 0;
        for (i, [_, home]) in self.homes.iter().enumerate() {
            if hierarchies >> i & 1 == 1 && remove_with_commands(*home, group) == Err(EBUSY) {
                left |= 1 << i;
            }
        }
        left
    }

    fn quiesce(&mut self, socket: i32) {
        // Dead children whose SIGCHLD we haven't read yet count as gone.
        self.reap();
        match self.waiters.iter().position(|w| *w < 0) {
            Some(place) => self.waiters[place] = socket,
            None => close(socket),
        }
        self.answer_waiters();
    }

    fn serve_files(&mut self, socket: i32) {
        self.end_files();
        match fork_child() {
            Ok(0) => crate::files::serve(socket, self.pid),
            Ok(pid) => self.files = pid,
            // The host sees the end of the socket.
            Err(_) => {}
        }
        close(socket);
    }

    fn end_files(&mut self) {
        if self.files > 0 {
            let _ = kill(self.files, SIGKILL);
            self.files = 0;
        }
    }

    fn answer(&self, socket: i32) {
        report(socket, &Report { kind: Report::QUIET, ..Report::default() }, &[]);
        close(socket);
    }

    /// The host is gone: so is everything else.
    fn end(&mut self) -> ! {
        for index in 0..self.used {
            if self.entry(index).outer != 0 {
                self.entry(index).dying = true;
                self.kill_sandbox(index);
            }
        }
        if self.networks.pid > 0 {
            let _ = kill(self.networks.pid, SIGKILL);
        }
        self.spare.kill();
        self.end_files();
        self.ahead.kill();
        let mut usage = Rusage::default();
        while let Ok(Some(dead)) = reap(false, &mut usage) {
            if !self.ahead.ended(dead.pid) {
                // It may have been cloned after we killed what we knew, and waits for us.
                self.ahead.kill();
            }
            for index in 0..self.used {
                let entry = self.entry(index);
                if entry.outer == dead.pid && entry.pid1 > 0 {
                    let _ = kill(entry.pid1, SIGKILL);
                }
            }
        }
        // Groups become removable a moment after their last process.
        for _ in 0..400 {
            let mut left = 0;
            for index in 0..self.used {
                let Entry { outer, group, hierarchies, .. } = *self.entry(index);
                if outer != 0 {
                    self.entry(index).hierarchies = self.remove_group(group, hierarchies);
                    left |= self.entry(index).hierarchies;
                }
            }
            if left == 0 {
                for [base, home] in &mut self.homes {
                    if *home >= 0 {
                        // Groups that the host had made ahead, or would have removed itself.
                        remove_below(*home, true);
                        match remove_directory(*base, b"cofferdam-", self.nonce) {
                            Err(EBUSY) => left |= 1,
                            _ => *home = -1,
                        }
                    }
                }
            }
            if left == 0 {
                break;
            }
            pause(5_000_000);
        }
        exit(0)
    }
}

fn refuse(failure: Failure) -> Option<Server> {
    let refused = Report { kind: Report::HELLO, status: failure.step, errno: failure.errno as u32, ..Report::default() };
    report(CONTROL, &refused, &[]);
    None
}

#[cfg_attr(target_arch = "x86_64", repr(C, packed))]
#[cfg_attr(not(target_arch = "x86_64"), repr(C))]
#[derive(Clone, Copy)]
struct EpollEvent {
    events: u32,
    tag: u64,
}
