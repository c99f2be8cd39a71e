//! Messages with descriptors over SEQPACKET sockets.
//!
//! SEQPACKET, because one message is one request and because the end of the
//! peer is seen, which a datagram socket doesn't show.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair};

use crate::plan::wire::MAX_FDS;

/// Two connected sockets, closed on exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    Ok((super::not_standard(one)?, super::not_standard(other)?))
}

/// Sends one message. A peer that is gone is `BrokenPipe`, never a SIGPIPE.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one message into `bytes`; length 0 is the end of the socket.
/// `WouldBlock` unless `wait`.
pub(crate) fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], wait: bool) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut flags = MsgFlags::MSG_CMSG_CLOEXEC;
    flags.set(MsgFlags::MSG_DONTWAIT, !wait);
    loop {
        let mut vectors = [IoSliceMut::new(bytes)];
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut vectors, Some(&mut space), flags) {
            Ok(message) => message,
            // A peer that closed before it read all of ours is told once, and before
            // what it has sent: its last messages, then the end, come next.
            Err(Errno::EINTR | Errno::ECONNRESET) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let (length, truncated) = (message.bytes, message.flags.contains(MsgFlags::MSG_CTRUNC));
        let mut fds = Vec::new();
        if !truncated {
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = control {
                    // SAFETY: the kernel has just made these descriptors for us.
                    let made: Vec<OwnedFd> = raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
                    for fd in made {
                        fds.push(super::not_standard(fd)?);
                    }
                }
            }
        }
        if truncated {
            // Descriptors that did not fit were never made; this table is full.
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        return Ok((length, fds));
    }
}
