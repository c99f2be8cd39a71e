//! Network namespaces, made ahead.
//!
//! A network namespace costs more than all the others together: 0.35 ms of about
//! 1.5. Nothing in it depends on the sandbox, so a second process of init's, the
//! *maker*, makes the next one while a workload runs. Each is used by one sandbox;
//! it belongs to init's user namespace, so that no capability inside reaches it
//! (a recipe that asks for capabilities gets one of its own, made by `clone3`).
//! If none is ready the outer child of the sandbox makes one itself.

use crate::arch::nr;
use crate::sys::*;

const CLONE_NEWNET: usize = 0x4000_0000;

/// Moves into `ready`, or into a new one.
pub fn enter(ready: i32) -> Result<usize> {
    if ready >= 0 {
        return call(nr::SETNS, [ready as usize, CLONE_NEWNET, 0, 0, 0, 0]);
    }
    close(make()?);
    Ok(0)
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
    channel: i32,
    /// One has been asked for, and not taken yet.
    asked: bool,
}

impl Maker {
    pub const NONE: Maker = Maker { pid: 0, channel: -1, asked: false };

    /// A namespace, if one is ready.
    pub fn take(&mut self) -> i32 {
        if !self.asked {
            return -1;
        }
        let mut answer = [0];
        match receive(self.channel, &mut answer, false) {
            Ok(received) => {
                self.asked = false;
                if received.count == 1 { received.fds[0] } else { -1 }
            }
            Err(_) => -1,
        }
    }

    /// Has the next one made, by a maker that is started if need be. Failing is
    /// harmless: sandboxes can do without.
    pub fn ask(&mut self, init: i32) {
        if self.asked || (self.pid == 0 && self.start(init).is_err()) {
            return;
        }
        self.asked = send(self.channel, &[0], &[]).is_ok();
    }

    fn start(&mut self, init: i32) -> Result<()> {
        let mut pair = [-1i32; 2];
        // AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC
        call(nr::SOCKETPAIR, [1, 5 | O_CLOEXEC, 0, pair.as_mut_ptr() as usize, 0, 0])?;
        let mut tid = 0;
        match fork(0, SIGCHLD, &raw mut tid) {
            Ok(0) => serve(pair[1], init),
            Ok(pid) => {
                close(pair[1]);
                *self = Maker { pid, channel: pair[0], asked: false };
                Ok(())
            }
            Err(errno) => {
                close(pair[0]);
                close(pair[1]);
                Err(errno)
            }
        }
    }

    /// It has ended; the next question starts another.
    pub fn ended(&mut self) {
        close(self.channel);
        *self = Maker::NONE;
    }

    /// Keeps this from being closed in the children of init. Negative if there's none.
    pub fn channel(&self) -> i32 {
        self.channel
    }
}

/// The maker: makes one namespace per message and stays in it until the next (an
/// ordinary user couldn't return to where it was). It ends with init.
fn serve(channel: i32, init: i32) -> ! {
    const PR_SET_PDEATHSIG: usize = 1;
    const PR_SET_NAME: usize = 15;
    const SIOCGSKNS: usize = 0x894c;
    let _ = prctl(PR_SET_NAME, c"cofferdam-net".as_ptr() as usize);
    let _ = prctl(PR_SET_PDEATHSIG, SIGKILL);
    if call(nr::GETPPID, [0; 6]) != Ok(init as usize) {
        exit(1);
    }
    close_all_but(&mut [channel]);
    loop {
        let mut question = [0];
        match receive(channel, &mut question, true) {
            Ok(received) if received.length == 1 => {}
            _ => exit(0),
        }
        let Ok(socket) = make() else { exit(1) };
        // The namespace of a socket (ioctl_ns(2) knows /proc only).
        let namespace = call(nr::IOCTL, [socket as usize, SIOCGSKNS, 0, 0, 0, 0]);
        close(socket);
        let Ok(namespace) = namespace else { exit(1) };
        let sent = send(channel, &[0], &[namespace as i32]);
        close(namespace as i32);
        if sent.is_err() {
            exit(0);
        }
    }
}
