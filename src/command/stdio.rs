//! Where the standard streams of a command lead.

use std::fs::File;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::OwnedFd;

/// What a standard stream of a command is connected to.
#[derive(Debug)]
pub struct Stdio(pub(crate) Stream);

#[derive(Debug)]
pub(crate) enum Stream {
    Null,
    Captured,
    Piped,
    Inherit,
    Bytes(Vec<u8>),
    Fd(OwnedFd),
    Relay(OwnedFd),
    Pty,
    Stdout,
}

impl Stdio {
    /// Reads as empty, swallows what is written.
    pub fn null() -> Stdio {
        Stdio(Stream::Null)
    }

    /// Output is kept for [`Output`](crate::Output), up to the recipe's limit. Of
    /// an input there's nothing to capture: it's empty.
    pub fn captured() -> Stdio {
        Stdio(Stream::Captured)
    }

    /// A pipe whose other end is in [`Child`](crate::Child). With
    /// [`run`](crate::Sandbox::run) nobody could hold that end, and it's refused.
    pub fn piped() -> Stdio {
        Stdio(Stream::Piped)
    }

    /// The host program's own stream, directly: what the workload does to it
    /// (offset, O_NONBLOCK, terminal modes) the host sees. Limits on output don't
    /// reach it. It may be a socket, as a service's often is; a directory is refused.
    pub fn inherit() -> Stdio {
        Stdio(Stream::Inherit)
    }

    /// Output is passed on to this descriptor as it comes, by the host while it
    /// waits: unlike [`inherit`](Self::inherit) it's counted and limited, and the
    /// workload never holds the descriptor. If nobody reads there, waiting waits.
    pub fn relay(to: impl Into<OwnedFd>) -> Stdio {
        Stdio(Stream::Relay(to.into()))
    }

    /// A terminal: all streams of a command that are given this are one and the same,
    /// which is the command's controlling terminal. Its other side is
    /// [`Child::pty`](crate::Child::pty). Usually all three: [`Command::pty`](crate::Command::pty).
    pub fn pty() -> Stdio {
        Stdio(Stream::Pty)
    }

    /// For standard error: the very stream that standard output is, so that what is
    /// captured or passed on is in the order in which it was written, like `2>&1`.
    pub fn stdout() -> Stdio {
        Stdio(Stream::Stdout)
    }

    /// An input of these bytes: an unlinked file, so it ends where they end and
    /// nobody has to feed it.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Stdio {
        Stdio(Stream::Bytes(bytes.into()))
    }
}

impl From<OwnedFd> for Stdio {
    fn from(fd: OwnedFd) -> Stdio {
        Stdio(Stream::Fd(fd))
    }
}

impl From<File> for Stdio {
    fn from(file: File) -> Stdio {
        Stdio(Stream::Fd(file.into()))
    }
}

impl From<PipeReader> for Stdio {
    fn from(pipe: PipeReader) -> Stdio {
        Stdio(Stream::Fd(pipe.into()))
    }
}

impl From<PipeWriter> for Stdio {
    fn from(pipe: PipeWriter) -> Stdio {
        Stdio(Stream::Fd(pipe.into()))
    }
}

impl From<Vec<u8>> for Stdio {
    fn from(bytes: Vec<u8>) -> Stdio {
        Stdio::bytes(bytes)
    }
}

impl From<&[u8]> for Stdio {
    fn from(bytes: &[u8]) -> Stdio {
        Stdio::bytes(bytes)
    }
}

impl<const N: usize> From<&[u8; N]> for Stdio {
    fn from(bytes: &[u8; N]) -> Stdio {
        Stdio::bytes(bytes.as_slice())
    }
}

impl From<&str> for Stdio {
    fn from(text: &str) -> Stdio {
        Stdio::bytes(text)
    }
}

impl From<String> for Stdio {
    fn from(text: String) -> Stdio {
        Stdio::bytes(text)
    }
}
