//! The one error type, and the words for what can be done about an errno.

use std::fmt;
use std::io;

use crate::probe::Layer;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The sandbox could not do its job.
///
/// What a workload does, or what a limit does to it, is never an error but an
/// [`Exit`](crate::Exit). The text reads
/// `cannot <do> <object>: <what the kernel said> (<what to do about it>)`;
/// [`kind`](Self::kind) is for programs, and
/// [`source`](std::error::Error::source) is the [`io::Error`] where there was
/// one.
///
/// The type is opaque, so that what is inside may grow; and it holds no type
/// of a dependency.
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Inner>);

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
    /// The layer that can't be had, for [`Sandbox::check`](crate::Sandbox::check).
    layer: Option<Layer>,
}

/// What kind of thing went wrong.
///
/// The second half are the reasons for which execve(2) and chdir(2) refuse to
/// start a command.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The recipe or the command makes no sense: a NUL byte in an argument, a
    /// relative path inside, a value that can't work.
    Invalid,
    /// This kernel, this user or this build can't do it; the text says what
    /// would make it possible.
    Unsupported,
    /// The root file system can't be used: missing, unreadable, not a directory.
    Image,
    /// A bind, a tmpfs or a file of the recipe can't be put in its place.
    Mount,
    /// A step of the set-up failed for another reason.
    Setup,
    /// Something ran out in the host: descriptors, processes, memory, id ranges.
    Exhausted,
    /// A live sandbox has it: a volume.
    Busy,
    /// init or the sandbox's first process is gone; the workload's fate is
    /// unknown. Out of memory on the host is the usual reason.
    Lost,
    /// Reading or writing on the host's side failed.
    Io,
    /// A file, a directory or a tree inside is larger than the caller wants it.
    FileTooLarge,
    /// What should be a file or a directory inside is a FIFO, a socket, a device, or a
    /// link that leads out of what is copied.
    NotAFile,
    /// The output said otherwise: from [`Output::exit_ok`](crate::Output::exit_ok).
    Failed,

    /// There's no such program, or file, in the sandbox.
    NotFound,
    /// The program may not be executed, the file not be read or written, or a directory
    /// on the way not be entered.
    PermissionDenied,
    /// The program, or the file, is a directory.
    IsADirectory,
    /// The file is neither a script nor a binary for this machine.
    ExecFormat,
    /// The program exists, its interpreter (the `#!` line's, or the dynamic
    /// loader) doesn't.
    InterpreterNotFound,
    /// Arguments and environment are larger than the kernel takes.
    ArgumentListTooLong,
    /// The program is open for writing somewhere.
    TextFileBusy,
    /// Too many symbolic links on the way to the program.
    FilesystemLoop,
    /// The program's name is too long.
    NameTooLong,
    /// The working directory is missing, no directory, or closed to the user.
    BadWorkingDirectory,
    /// execve(2) failed for another reason.
    Exec,
}

impl ErrorKind {
    /// The name in snake_case, as `examples/run.rs` prints it.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Invalid => "invalid",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Image => "image",
            ErrorKind::Mount => "mount",
            ErrorKind::Setup => "setup",
            ErrorKind::Exhausted => "exhausted",
            ErrorKind::Busy => "busy",
            ErrorKind::Lost => "lost",
            ErrorKind::Io => "io",
            ErrorKind::FileTooLarge => "file_too_large",
            ErrorKind::NotAFile => "not_a_file",
            ErrorKind::Failed => "failed",
            ErrorKind::NotFound => "not_found",
            ErrorKind::PermissionDenied => "permission_denied",
            ErrorKind::IsADirectory => "is_a_directory",
            ErrorKind::ExecFormat => "exec_format",
            ErrorKind::InterpreterNotFound => "interpreter_not_found",
            ErrorKind::ArgumentListTooLong => "argument_list_too_long",
            ErrorKind::TextFileBusy => "text_file_busy",
            ErrorKind::FilesystemLoop => "filesystem_loop",
            ErrorKind::NameTooLong => "name_too_long",
            ErrorKind::BadWorkingDirectory => "bad_working_directory",
            ErrorKind::Exec => "exec",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().replace('_', " "))
    }
}

impl Error {
    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner { kind, message: message.into(), source: None, layer: None }))
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Invalid, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Unsupported, message)
    }

    /// `cannot <doing> <object>: <errno text> (<hint>)`
    pub(crate) fn failed(kind: ErrorKind, doing: &str, object: &str, errno: i32, hint: Option<&str>) -> Error {
        let source = io::Error::from_raw_os_error(errno);
        let space = if object.is_empty() { "" } else { " " };
        let hint = hint.map(|h| format!(" ({h})")).unwrap_or_default();
        let message = format!("cannot {doing}{space}{object}: {}{hint}", errno_text(&source));
        Error(Box::new(Inner { kind, message, source: Some(source), layer: None }))
    }

    /// The same error with what it was about in front.
    pub(crate) fn within(mut self, what: &str) -> Error {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }

    pub(crate) fn about(mut self, layer: Option<Layer>) -> Error {
        self.0.layer = layer;
        self
    }

    pub(crate) fn layer(&self) -> Option<Layer> {
        self.0.layer
    }

    /// What a stream of an image said, after so many bytes: one of our own errors on its
    /// way through [`io::Read`], a failure of the kernel's, or bytes that can't be right.
    pub(crate) fn from_stream(error: io::Error, position: u64) -> Error {
        if error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
            let inner = error.into_inner().expect("looked at").downcast::<Error>();
            return *inner.expect("looked at");
        }
        if error.raw_os_error().is_some() {
            return Error::io("read", "the archive", error);
        }
        Error::new(ErrorKind::Image, format!("cannot read the archive: {error} (at byte {position})"))
    }

    /// A failure of the host program's own system call.
    pub(crate) fn io(doing: &str, object: &str, source: io::Error) -> Error {
        let errno = source.raw_os_error();
        let kind = if errno.is_some_and(is_exhaustion) { ErrorKind::Exhausted } else { ErrorKind::Io };
        let space = if object.is_empty() { "" } else { " " };
        let hint = errno.and_then(exhaustion_hint).map(|h| format!(" ({h})")).unwrap_or_default();
        let message = format!("cannot {doing}{space}{object}: {}{hint}", errno_text(&source));
        Error(Box::new(Inner { kind, message, source: Some(source), layer: None }))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What `unwrap` and `main` print: readable, and with the kind.
        write!(f, "{} [{}]", self.0.message, self.0.kind.name())
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match error.kind() {
            ErrorKind::Invalid => io::ErrorKind::InvalidInput,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::NotFound => io::ErrorKind::NotFound,
            ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// The kernel's words without Rust's "(os error 2)".
pub(crate) fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}

pub(crate) fn is_exhaustion(errno: i32) -> bool {
    matches!(errno, libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM | libc::ETOOMANYREFS)
}

/// What to do about an errno that means "too many".
pub(crate) fn exhaustion_hint(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EMFILE => "this process has too many descriptors open; raise RLIMIT_NOFILE",
        libc::ENFILE => "the machine has too many files open; raise fs.file-max",
        libc::EAGAIN => "too many processes; raise RLIMIT_NPROC, kernel.pid_max or the group's pids.max",
        libc::ENOMEM => "the host is out of memory",
        // unix(7)
        libc::ETOOMANYREFS => "this user has too many descriptors on their way through sockets; raise RLIMIT_NOFILE",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_what_was_tried_on_what_and_what_to_do() {
        let error = Error::failed(ErrorKind::Mount, "bind", "/nope", libc::ENOENT, Some("it must exist on the host"));
        assert_eq!(error.to_string(), "cannot bind /nope: No such file or directory (it must exist on the host)");
        assert_eq!(error.kind(), ErrorKind::Mount);
        assert_eq!(format!("{error:?}"), format!("{error} [mount]"));
        let source = std::error::Error::source(&error).and_then(|s| s.downcast_ref::<io::Error>());
        assert_eq!(source.and_then(io::Error::raw_os_error), Some(libc::ENOENT));
    }

    #[test]
    fn errors_travel_between_threads() {
        fn travels<T: Send + Sync + 'static>() {}
        travels::<Error>();
    }
}
