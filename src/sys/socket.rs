//! Messages with descriptors over SEQPACKET sockets.
//!
//! SEQPACKET, because one message is one request and because the end of the
//! peer is seen, which a datagram socket doesn't show.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};

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
    // Not by nix's recvmsg: when descriptors didn't fit, it lets go of those that did
    // without closing them.
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: zero is a valid value of each member.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut vector, 1);
    let flags = libc::MSG_CMSG_CLOEXEC | if wait { 0 } else { libc::MSG_DONTWAIT };
    let length = loop {
        (message.msg_control, message.msg_controllen) = (space.as_mut_ptr().cast(), space.capacity() as _);
        // SAFETY: `message` names live buffers with their true sizes.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
        match Errno::result(length) {
            Ok(length) => break length as usize,
            Err(errno) if comes_next(errno) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    // SAFETY: the kernel has just filled in this message.
    let fds = unsafe { taken(&message) };
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        // The rest was never made: there's no room in our table.
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    let fds: io::Result<Vec<OwnedFd>> = fds.into_iter().map(super::not_standard).collect();
    Ok((length, fds?))
}

/// Looks at the next message and leaves it there, as if it had no descriptors.
/// `WouldBlock` if there's none.
pub(crate) fn peek(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(socket.as_raw_fd(), bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
            Err(errno) if comes_next(errno) => {}
            other => return Ok(other?),
        }
    }
}

/// Whether that says nothing of what is to be received. A peer that closed before it read
/// all of ours is told once, and before what it has sent: its last messages, then the end,
/// come next.
fn comes_next(errno: Errno) -> bool {
    matches!(errno, Errno::EINTR | Errno::ECONNRESET)
}

/// The descriptors that came with a message, each once.
///
/// # Safety
/// recvmsg(2) must have filled the message in, and this may be called once for it.
unsafe fn taken(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the macros walk the control buffer, as far as the kernel says that it
    // has filled it.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(control) = header.as_ref() {
            if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                #[allow(clippy::unnecessary_cast, reason = "a smaller number with musl")]
                let length = control.cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let first: *const RawFd = libc::CMSG_DATA(header).cast();
                // The kernel has just made these descriptors for us.
                fds.extend((0..length / size_of::<RawFd>()).map(|i| OwnedFd::from_raw_fd(first.add(i).read_unaligned())));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    fds
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    #[test]
    fn a_peer_that_ended_in_haste_is_heard_to_its_end() {
        for looks in [true, false] {
            let (ours, theirs) = pair().expect("sockets");
            send(ours.as_fd(), b"never read", &[]).expect("sent");
            send(theirs.as_fd(), b"last words", &[]).expect("sent");
            drop(theirs);
            let mut bytes = [0; 16];
            if looks {
                assert_eq!(peek(ours.as_fd(), &mut bytes).expect("a message"), 10);
            }
            assert_eq!(receive(ours.as_fd(), &mut bytes, true).expect("a message").0, 10);
            assert_eq!(receive(ours.as_fd(), &mut bytes, true).expect("the end").0, 0);
        }
    }

    #[test]
    fn descriptors_of_a_truncated_message_are_closed() {
        let (ours, theirs) = pair().expect("sockets");
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let many: Vec<BorrowedFd<'_>> = (0..=MAX_FDS).map(|_| writer.as_fd()).collect();
        send(theirs.as_fd(), b"x", &many[..MAX_FDS]).expect("sent");
        assert_eq!(receive(ours.as_fd(), &mut [0; 8], true).expect("received").1.len(), MAX_FDS);
        send(theirs.as_fd(), b"x", &many).expect("sent");
        let error = receive(ours.as_fd(), &mut [0; 8], true).expect_err("one too many");
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        drop(writer);
        // Its end comes when nobody has a copy.
        assert_eq!(reader.read(&mut [0; 8]).expect("the end"), 0);
    }
}
