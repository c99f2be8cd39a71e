//! What the command's descriptors are connected to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::sys::statfs::fstatfs;

use super::capture::Capture;
use crate::command::{Command, FdKind, Stdio, Stream};
use crate::error::{Error, Result};
use crate::launch::sealed;
use crate::plan::wire;
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
    /// The caller gave some of them, or they are of a terminal.
    pub(crate) given: bool,
    /// Numbers of those that are its terminal.
    pub(crate) terminal: Vec<u32>,
    /// Those that the caller gave, and gave for writing.
    pub(crate) writable: Vec<bool>,
    /// Which of them is /dev/null.
    null: Option<usize>,
}

impl Passed {
    /// Flags of the command's plan.
    pub(crate) fn flags(&self) -> u64 {
        if self.given { wire::GIVEN } else { 0 }
    }

    pub(crate) fn nothing() -> Passed {
        Passed {
            fds: Vec::new(),
            numbers: Vec::new(),
            streams: [None, None],
            pipes: Pipes::default(),
            files: false,
            given: false,
            terminal: Vec::new(),
            writable: Vec::new(),
            null: None,
        }
    }

    /// /dev/null. To open it takes ten times as long as to copy it.
    fn null(&mut self) -> Result<OwnedFd> {
        let failed = |e| Error::io("open", "/dev/null", e);
        if let Some(opened) = self.null.and_then(|i| self.fds.get(i)) {
            return opened.try_clone().map_err(failed);
        }
        self.null = Some(self.fds.len());
        std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from).map_err(failed)
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
    let pipe = || {
        let (reader, writer) = io::pipe().map_err(|e| Error::io("make", "a pipe", e))?;
        // It belongs to this program's user, who is nobody inside; but whoever has it may
        // open it once more as /dev/stdout, as scripts do.
        fchmod(&writer, Mode::from_bits_truncate(0o666)).map_err(|e| Error::io("open to all", "a pipe", e.into()))?;
        Ok((reader, writer))
    };
    // Only of what the caller gives: /dev/null, pipes and bytes of ours are harmless.
    let mut given = Given::default();
    let taken = |stdio: &mut Stdio| std::mem::replace(stdio, Stdio::null()).0;
    let stdin = match taken(&mut command.stdin) {
        Stream::Null | Stream::Captured => Some(passed.null()?),
        Stream::Piped => {
            let (reader, writer) = pipe()?;
            passed.pipes.stdin = Some(writer);
            Some(reader.into())
        }
        Stream::Pty => None,
        Stream::Inherit => Some(given.note(inherited(io::stdin().as_fd(), "standard input")?)?),
        Stream::Bytes(bytes) => Some(sealed(c"stdin", &bytes)?),
        Stream::Fd(fd) => {
            check_kind(&fd, FdKind::Plain, "standard input")?;
            Some(given.note(fd)?)
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
            Stream::Null => Some(passed.null()?),
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
            Stream::Inherit if i == 0 => Some(given.note(inherited(io::stdout().as_fd(), name)?)?),
            Stream::Inherit => Some(given.note(inherited(io::stderr().as_fd(), name)?)?),
            Stream::Bytes(_) => return Err(Error::invalid(format!("{name} can't be connected to bytes"))),
            Stream::Fd(fd) => {
                check_kind(&fd, FdKind::Plain, name)?;
                Some(given.note(fd)?)
            }
        };
        passed.add(i as u32 + 1, fd);
    }
    for (number, fd, kind) in std::mem::take(&mut command.fds) {
        check_kind(&fd, kind, &format!("descriptor {number}"))?;
        passed.fds.push(given.note(fd)?);
        passed.numbers.push(number);
    }
    passed.files = given.files;
    passed.given = given.any || !passed.terminal.is_empty();
    passed.writable = passed.fds.iter().map(|fd| given.writable.contains(&fd.as_raw_fd())).collect();
    Ok(passed)
}

fn inherited(fd: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let fd = fd.try_clone_to_owned().map_err(|e| Error::io("inherit", name, e))?;
    check_kind(&fd, FdKind::Inherited, name)?;
    Ok(fd)
}

/// What is known of descriptors that the caller gave.
#[derive(Default)]
struct Given {
    any: bool,
    files: bool,
    /// Numbers, here, of those that can be written.
    writable: Vec<i32>,
}

impl Given {
    /// Takes note of a descriptor: whether it can be written, and whether it's of
    /// something that could be made set-user-ID: all but pipes, terminals and the like.
    fn note(&mut self, fd: OwnedFd) -> Result<OwnedFd> {
        self.any = true;
        let look = |e: nix::errno::Errno| Error::io("look at", "a descriptor", e.into());
        let stat = fstat(&fd).map_err(look)?;
        let found = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        self.files |= found != SFlag::S_IFIFO && found != SFlag::S_IFCHR;
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).map_err(look)?);
        // A directory is given with all that it holds.
        if flags & OFlag::O_ACCMODE != OFlag::O_RDONLY || found == SFlag::S_IFDIR {
            self.writable.push(fd.as_raw_fd());
        }
        Ok(fd)
    }
}

/// Whether what claims to be a regular file is one, opened to be read or written: not a
/// namespace, a process or another of the kernel's own objects.
fn is_file(fd: &OwnedFd) -> nix::Result<bool> {
    /// File systems that nobody mounts (the kernel's uapi/linux/magic.h): anon_inodefs,
    /// nsfs, pidfs, secretmem.
    const INTERNAL: [i64; 4] = [0x0904_1934, 0x6e73_6673, 0x5049_4446, 0x5345_434d];
    let path_only = fcntl(fd, FcntlArg::F_GETFL)? & libc::O_PATH != 0;
    Ok(!path_only && !INTERNAL.contains(&(fstatfs(fd)?.filesystem_type().0 as i64)))
}

/// Refuses descriptors that are a way out of a sandbox.
fn check_kind(fd: &OwnedFd, kind: FdKind, name: &str) -> Result<()> {
    let stat = fstat(fd).map_err(|e| Error::io("look at", name, e.into()))?;
    let found = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    let plain = match found {
        SFlag::S_IFREG => is_file(fd).map_err(|e| Error::io("look at", name, e.into()))?,
        _ => found == SFlag::S_IFIFO || found == SFlag::S_IFCHR,
    };
    let fits = match kind {
        FdKind::Plain => plain,
        // A service's output often goes to a socket of the journal's.
        FdKind::Inherited => plain || found == SFlag::S_IFSOCK,
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
