//! Network namespaces, made ahead.
//!
//! A network namespace costs more than all the others together: to make and to take
//! apart it's a fifth of what a run takes. Nothing in it depends on the sandbox, so a
//! second process of init's, the *maker*, makes the next one while a workload runs. It
//! belongs to init's user namespace, so that no capability inside reaches it (a recipe
//! that asks for capabilities gets one of its own, made by `clone3`). If none is ready
//! the outer child of the sandbox makes one itself.
//!
//! Each is used by one sandbox, unless the caller doesn't mind (`Sandbox::reuse_network`) or
//! there was no socket in it, because the system call filter leaves no way to one or because
//! they are counted (`sockets.rs`): nothing can have happened in such a namespace, so it serves
//! again.

use crate::arch::nr;
use crate::sys::*;

const CLONE_NEWNET: usize = 0x4000_0000;

/// One that was made ahead.
#[derive(Clone, Copy)]
pub struct Network {
    /// -1 for none.
    pub fd: i32,
    /// By which its sockets are counted.
    cookie: u64,
}

impl Network {
    pub const NONE: Network = Network { fd: -1, cookie: 0 };

    /// It's used no more, at least not as one that is counted.
    pub fn close(self) {
        close(self.fd);
        crate::sockets::end(self.cookie);
    }

    /// Whether there was just the one that set-up makes, to be counted.
    pub fn had_one_socket(self) -> bool {
        crate::sockets::count(self.cookie) == Some(1)
    }
}

/// Moves into `ready`, or into a new one.
pub fn enter(ready: i32) -> Result<usize> {
    if ready >= 0 {
        call(nr::SETNS, [ready as usize, CLONE_NEWNET, 0, 0, 0, 0])?;
        if crate::sockets::map() < 0 || forget_routes().is_ok() {
            return Ok(0);
        }
    }
    close(make()?);
    Ok(0)
}

/// Makes what was asked of IPv4 routes forgotten: the kernel keeps the way to an address, with
/// a bit that whoever asks may set, and when it was last asked for (ip-sysctl.rst of the
/// kernel, `route/flush`).
fn forget_routes() -> Result<()> {
    let path = c"/proc/sys/net/ipv4/route/flush".as_ptr() as usize;
    let file = call(nr::OPENAT, [AT_FDCWD as usize, path, O_WRONLY | O_CLOEXEC, 0, 0, 0])?;
    let written = call(nr::WRITE, [file, c"1".as_ptr() as usize, 1, 0, 0, 0]);
    close(file as i32);
    written.map(drop)
}

/// Moves into a new network namespace whose loopback device is up: servers on
/// 127.0.0.1 would fail otherwise. Returns a socket in it.
fn make() -> Result<i32> {
    const AF_INET: usize = 2;
    const SOCK_DGRAM: usize = 2;
    const SIOCSIFFLAGS: usize = 0x8914;
    const IFF_UP_RUNNING: u16 = 0x41;
    call(nr::UNSHARE, [CLONE_NEWNET, 0, 0, 0, 0, 0])?;
    let socket = call(nr::SOCKET, [AF_INET, SOCK_DGRAM | O_CLOEXEC, 0, 0, 0, 0])?;
    // struct ifreq: a name of 16 bytes, then the flags.
    let mut request = [0u8; 40];
    request[..2].copy_from_slice(b"lo");
    request[16..18].copy_from_slice(&IFF_UP_RUNNING.to_le_bytes());
    match call(nr::IOCTL, [socket, SIOCSIFFLAGS, request.as_ptr() as usize, 0, 0, 0]) {
        Ok(_) => Ok(socket as i32),
        Err(errno) => {
            close(socket as i32);
            Err(errno)
        }
    }
}

/// init's side of the maker.
pub struct Maker {
    pub pid: i32,
    /// Where it leaves what it has made, one at most.
    channel: i32,
    /// An eventfd that says when: see [`started`] and [`Maker::sandbox_ended`].
    pub signal: i32,
    /// Those that came back, and nothing has happened in.
    kept: [Network; KEPT],
    /// Those that came back, for those that don't mind.
    used: [Network; USED],
}

/// How many may wait to be used again.
const KEPT: usize = 16;
const USED: usize = 16;

impl Maker {
    pub const NONE: Maker = Maker { pid: 0, channel: -1, signal: -1, kept: [Network::NONE; KEPT], used: [Network::NONE; USED] };

    /// A namespace, if one is ready: one of the `used`, if those will do. Starts the maker if
    /// need be; failing to is harmless, because sandboxes can do without.
    pub fn take(&mut self, init: i32, used: bool) -> Network {
        let came_back = if used { &mut self.used[..] } else { &mut self.kept[..] };
        if let Some(kept) = came_back.iter_mut().find(|kept| kept.fd >= 0) {
            return core::mem::replace(kept, Network::NONE);
        }
        if self.pid == 0 {
            let _ = self.start(init);
            return Network::NONE;
        }
        self.waiting()
    }

    /// What the maker has left.
    fn waiting(&self) -> Network {
        let mut cookie = [0; 8];
        match receive(self.channel, &mut cookie, false) {
            Ok(received) if received.count == 1 => Network { fd: received.fds[0], cookie: u64::from_ne_bytes(cookie) },
            Ok(received) if received.length == cookie.len() => {
                // There was no descriptor left for it.
                crate::sockets::end(u64::from_ne_bytes(cookie));
                Network::NONE
            }
            _ => Network::NONE,
        }
    }

    /// The sandbox that had it is gone, and can't have done anything to it unless it's
    /// `used`.
    pub fn give_back(&mut self, network: Network, used: bool) {
        let places = if used { &mut self.used[..] } else { &mut self.kept[..] };
        match places.iter_mut().find(|kept| kept.fd < 0) {
            Some(place) => {
                crate::sockets::begin(network.cookie);
                *place = network;
            }
            None => network.close(),
        }
    }

    /// A sandbox is gone, and its host has been told everything: a good time.
    pub fn sandbox_ended(&self) {
        if self.signal >= 0 {
            add(self.signal, ENDED);
        }
    }

    fn start(&mut self, init: i32) -> Result<()> {
        let [ours, theirs] = socket_pair()?;
        self.channel = ours;
        let started = call(nr::EVENTFD2, [0, O_CLOEXEC, 0, 0, 0, 0]).and_then(|signal| {
            self.signal = signal as i32;
            fork_child()
        });
        match started {
            Ok(0) => serve(theirs, self.signal, init),
            Ok(pid) => {
                close(theirs);
                self.pid = pid;
                Ok(())
            }
            Err(errno) => {
                close(theirs);
                self.ended();
                Err(errno)
            }
        }
    }

    /// It has ended; the next question starts another.
    pub fn ended(&mut self) {
        self.waiting().close();
        close(self.channel);
        close(self.signal);
        *self = Maker { kept: self.kept, used: self.used, ..Maker::NONE };
    }
}

/// PID 1: a command has been executed, so the next namespace will be wanted: but not at
/// once, because the maker can't be preempted and would be in the way of a short command.
pub fn started(signal: i32) {
    add(signal, 1);
}

/// What the counter is above when a sandbox has ended.
const ENDED: u64 = 1 << 32;
/// How long the end of the sandbox is waited for, nanoseconds.
const PATIENCE: u64 = 3_000_000;

fn add(signal: i32, number: u64) {
    let _ = call(nr::WRITE, [signal as usize, &raw const number as usize, 8, 0, 0, 0]);
}

/// The maker: makes a namespace when told to and none is waiting, and stays in it
/// until the next (an ordinary user couldn't return to where it was). It ends with
/// init.
fn serve(channel: i32, signal: i32, init: i32) -> ! {
    const PR_SET_TIMERSLACK: usize = 29;
    const SIOCGSKNS: usize = 0x894c;
    const SIOCOUTQ: usize = 0x5411;
    const POLLIN: u64 = 1;
    let _ = prctl(PR_SET_NAME, c"cofferdam-net".as_ptr() as usize);
    end_with_parent(init);
    close_all_but(&mut [channel, signal, crate::sockets::map()]);
    let _ = prctl(PR_SET_TIMERSLACK, 1000);
    loop {
        let mut count = 0u64;
        match call(nr::READ, [signal as usize, &raw mut count as usize, 8, 0, 0, 0]) {
            Ok(8) => {}
            Err(EINTR) => continue,
            _ => exit(1),
        }
        let mut waiting = 0i32;
        if call(nr::IOCTL, [channel as usize, SIOCOUTQ, &raw mut waiting as usize, 0, 0, 0]).is_err() {
            exit(1);
        }
        if waiting > 0 {
            continue;
        }
        if count < ENDED {
            let _ = poll_one(signal, POLLIN, PATIENCE);
        }
        let Ok(socket) = make() else { exit(1) };
        // The namespace of a socket (ioctl_ns(2) knows /proc only).
        let namespace = call(nr::IOCTL, [socket as usize, SIOCGSKNS, 0, 0, 0, 0]);
        let cookie = crate::sockets::cookie(socket);
        close(socket);
        crate::sockets::begin(cookie);
        let Ok(namespace) = namespace else { exit(1) };
        let sent = send(channel, &cookie.to_ne_bytes(), &[namespace as i32]);
        close(namespace as i32);
        if sent.is_err() {
            exit(0);
        }
    }
}
