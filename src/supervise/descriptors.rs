//! What the command's descriptors are connected to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::stat::{SFlag, fstat};

use super::capture::Capture;
use crate::command::{Command, FdKind, Stdio, Stream};
use crate::error::{Error, Result};
use crate::launch::sealed;
use crate::sandbox::Sandbox;

/// Streams of a command that the caller holds.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    pub(crate) stdin: Option<io::PipeWriter>,
    pub(crate) stdout: Option<io::PipeReader>,
    pub(crate) stderr: Option<io::PipeReader>,
}

/// Descriptors for the command, and their numbers there.
pub(crate) struct Passed {
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) numbers: Vec<u32>,
    pub(crate) streams: [Option<Capture>; 2],
    pub(crate) pipes: Pipes,
    /// Some of them are files of the host's, which the workload could change.
    pub(crate) files: bool,
    /// Numbers of those that are its terminal.
    pub(crate) terminal: Vec<u32>,
}

impl Passed {
    pub(crate) fn nothing() -> Passed {
        Passed { fds: Vec::new(), numbers: Vec::new(), streams: [None, None], pipes: Pipes::default(), files: false, terminal: Vec::new() }
    }

    fn add(&mut self, number: u32, fd: Option<OwnedFd>) {
        match fd {
            Some(fd) => {
                self.fds.push(fd);
                self.numbers.push(number);
            }
            None => self.terminal.push(number),
        }
    }
}

/// Opens what the command's descriptors are connected to.
pub(crate) fn pass(command: &mut Command, sandbox: &Sandbox) -> Result<Passed> {
    let mut passed = Passed::nothing();
    let pipe = || io::pipe().map_err(|e| Error::io("make", "a pipe", e));
    let null = || {
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
        file.map(OwnedFd::from).map_err(|e| Error::io("open", "/dev/null", e))
    };
    // Only of what the caller gives: /dev/null, pipes and bytes of ours are harmless.
    let mut files = false;
    let taken = |stdio: &mut Stdio| std::mem::replace(stdio, Stdio::null()).0;
    let stdin = match taken(&mut command.stdin) {
        Stream::Null | Stream::Captured => Some(null()?),
        Stream::Piped => {
            let (reader, writer) = pipe()?;
            passed.pipes.stdin = Some(writer);
            Some(reader.into())
        }
        Stream::Pty => None,
        Stream::Inherit => Some(noted(inherited(io::stdin().as_fd())?, &mut files)?),
        Stream::Bytes(bytes) => Some(sealed(c"stdin", &bytes)?),
        Stream::Fd(fd) => {
            check_kind(&fd, FdKind::Plain, "standard input")?;
            Some(noted(fd, &mut files)?)
        }
        Stream::Stdout => return Err(Error::invalid("standard input can't be what standard output is")),
        Stream::Relay(_) => return Err(Error::invalid("an input can't be relayed; pass the descriptor itself")),
    };
    passed.add(0, stdin);
    for i in 0..2 {
        let (stdio, name) = if i == 0 { (&mut command.stdout, "standard output") } else { (&mut command.stderr, "standard error") };
        let stream = taken(stdio);
        let fd = match stream {
            Stream::Pty => None,
            Stream::Stdout if i == 0 => return Err(Error::invalid("standard output can't be itself; this is for standard error")),
            // The last that was added, if it's no terminal.
            Stream::Stdout if passed.numbers.last() == Some(&1) => {
                passed.fds.last().map(|fd| fd.try_clone()).transpose().map_err(|e| Error::io("copy", name, e))?
            }
            Stream::Stdout => None,
            Stream::Null => Some(null()?),
            Stream::Captured | Stream::Relay(_) => {
                let (reader, writer) = pipe()?;
                let target = if let Stream::Relay(target) = stream { Some(target) } else { None };
                let capture =
                    Capture::new(reader.into(), target, sandbox.output, sandbox.keep()).map_err(|e| Error::io("prepare", name, e))?;
                passed.streams[i] = Some(capture);
                Some(writer.into())
            }
            Stream::Piped => {
                let (reader, writer) = pipe()?;
                *(if i == 0 { &mut passed.pipes.stdout } else { &mut passed.pipes.stderr }) = Some(reader);
                Some(writer.into())
            }
            Stream::Inherit if i == 0 => Some(noted(inherited(io::stdout().as_fd())?, &mut files)?),
            Stream::Inherit => Some(noted(inherited(io::stderr().as_fd())?, &mut files)?),
            Stream::Bytes(_) => return Err(Error::invalid(format!("{name} can't be connected to bytes"))),
            Stream::Fd(fd) => {
                check_kind(&fd, FdKind::Plain, name)?;
                Some(noted(fd, &mut files)?)
            }
        };
        passed.add(i as u32 + 1, fd);
    }
    for (number, fd, kind) in std::mem::take(&mut command.fds) {
        check_kind(&fd, kind, &format!("descriptor {number}"))?;
        passed.fds.push(noted(fd, &mut files)?);
        passed.numbers.push(number);
    }
    passed.files = files;
    Ok(passed)
}

fn inherited(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(|e| Error::io("inherit", "a standard stream", e))
}

/// Takes note of a descriptor of something that could be made set-user-ID: all but
/// pipes, terminals and the like.
fn noted(fd: OwnedFd, files: &mut bool) -> Result<OwnedFd> {
    let stat = fstat(&fd).map_err(|e| Error::io("look at", "a descriptor", e.into()))?;
    let found = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    *files |= found != SFlag::S_IFIFO && found != SFlag::S_IFCHR;
    Ok(fd)
}

/// Refuses descriptors that are a way out of a sandbox.
fn check_kind(fd: &OwnedFd, kind: FdKind, name: &str) -> Result<()> {
    let stat = fstat(fd).map_err(|e| Error::io("look at", name, e.into()))?;
    let found = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    let fits = match kind {
        FdKind::Plain => found == SFlag::S_IFREG || found == SFlag::S_IFIFO || found == SFlag::S_IFCHR,
        FdKind::Socket => found == SFlag::S_IFSOCK,
        FdKind::Directory => found == SFlag::S_IFDIR,
    };
    if fits {
        return Ok(());
    }
    let (what, instead) = match found {
        SFlag::S_IFDIR => {
            ("a directory", "through which the host's files could be reached; `Command::directory_fd` passes it all the same")
        }
        SFlag::S_IFSOCK => ("a socket", "through which further descriptors could come in; `Command::socket` passes it all the same"),
        SFlag::S_IFBLK => ("a block device", "which a sandbox must not have"),
        _ => ("neither a file, a pipe nor a character device", "and can't be passed"),
    };
    Err(Error::invalid(format!("{name} is {what}, {instead}")))
}
