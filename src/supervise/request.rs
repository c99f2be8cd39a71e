//! What the host tells a sandbox that it has asked for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::plan::message::Request;
use crate::sys;

/// Passes the descriptors of a group to PID 1, which waits for them.
pub(crate) fn send_group(reply: &OwnedFd, handles: &[BorrowedFd<'_>]) -> Result<()> {
    if handles.is_empty() {
        return Ok(());
    }
    let request = Request { kind: Request::GROUP, command: 0, value: 0, time: 0 };
    match sys::socket::send(reply.as_fd(), &request.encode(), handles) {
        // It has failed; why is on the way.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => Ok(()),
        other => other.map_err(|e| Error::io("pass", "the control group", e)),
    }
}

/// Sends a request about the (only) command of a sandbox.
pub(crate) fn tell(reply: &OwnedFd, kind: u32, value: u64, time: Duration) -> Result<()> {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let request = Request { kind, command: 0, value, time };
    match sys::socket::send(reply.as_fd(), &request.encode(), &[]) {
        Ok(()) => Ok(()),
        // It has ended by itself; its report is on the way.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => Ok(()),
        Err(error) => Err(Error::io("tell", "the sandbox", error)),
    }
}
