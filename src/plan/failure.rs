//! From (step, errno) to a sentence with its remedy.

use super::limits::Rlimit;
use super::message::Report;
use super::{Area, Draft, Note};
use crate::error::{Error, ErrorKind, exhaustion_hint, is_exhaustion};
use crate::image::Root;
use crate::probe::Layer;
use crate::remedy;
use crate::sandbox::Sandbox;

/// The error for a failed step.
pub(crate) fn error(draft: &Draft, sandbox: Option<&Sandbox>, report: &Report) -> Error {
    let errno = report.errno as i32;
    let Some(note) = draft.notes.get(report.status as usize) else {
        match errno {
            libc::EUSERS => return Error::new(ErrorKind::Exhausted, "cannot start one more: 64 commands run in this sandbox already"),
            libc::ECANCELED => {
                let text = "cannot start the command: it was killed before exec (by another process of the sandbox, or for want of memory)";
                return Error::new(ErrorKind::Setup, text);
            }
            _ => {}
        }
        // Not a step of the plan: init itself could not go on.
        let kind = if is_exhaustion(errno) || errno == libc::ENOSPC { ErrorKind::Exhausted } else { ErrorKind::Setup };
        let hint = if errno == libc::ENOSPC { Some("8,192 sandboxes live already") } else { exhaustion_hint(errno) };
        return Error::failed(kind, "start", "the sandbox", errno, hint);
    };
    let (kind, hint) = judge(note, errno, report.detail, sandbox);
    Error::failed(kind, note.doing, &note.object, errno, hint).about(Some(layer(note.area)))
}

/// The layer that a step belongs to, for `check`.
fn layer(area: Area) -> Layer {
    match area {
        Area::Namespaces | Area::IdMap => Layer::UserNamespace,
        Area::Network => Layer::NetworkNamespace,
        Area::IdMappedMount => Layer::IdMappedMounts,
        Area::Overlay | Area::UserXattr => Layer::Overlay,
        Area::Privileges => Layer::Capabilities,
        Area::Filter => Layer::SyscallFilter,
        Area::Landlock => Layer::Landlock,
        Area::Processor => Layer::CoreScheduling,
        Area::ReadBack => Layer::ReadBack,
        Area::Proc => Layer::PidNamespace,
        Area::Group => Layer::CgroupNamespace,
        Area::Setup | Area::Image | Area::Checkpoint | Area::Mount | Area::Limit | Area::Chdir | Area::Exec | Area::Inside => {
            Layer::MountNamespace
        }
    }
}

fn judge(note: &Note, errno: i32, mode: u32, sandbox: Option<&Sandbox>) -> (ErrorKind, Option<&'static str>) {
    let exhausted = if is_exhaustion(errno) { ErrorKind::Exhausted } else { ErrorKind::Setup };
    let hint = exhaustion_hint(errno);
    let late = matches!(note.area, Area::ReadBack | Area::Filter | Area::Exec);
    if errno == libc::EMFILE && late && sandbox.is_some_and(|sandbox| sandbox.rlimits.iter().any(Rlimit::is_scant)) {
        return (ErrorKind::Invalid, Some("the recipe's own limit on open files leaves none to set-up; see `Sandbox::open_files`"));
    }
    match note.area {
        Area::Setup | Area::Privileges | Area::Network | Area::Processor | Area::ReadBack => (exhausted, hint),
        Area::Namespaces => match errno {
            libc::EPERM | libc::EACCES => (ErrorKind::Unsupported, Some(remedy::user_namespaces())),
            libc::ENOSPC | libc::EUSERS => (
                ErrorKind::Unsupported,
                Some(
                    "the limit on namespaces is reached: raise user.max_user_namespaces and its siblings with sysctl; nesting ends at 32 levels",
                ),
            ),
            libc::EINVAL => (
                ErrorKind::Unsupported,
                Some("this kernel was built without one of the namespaces: user, mount, pid, ipc, uts, net, cgroup"),
            ),
            _ => (exhausted, hint),
        },
        Area::IdMap => match errno {
            libc::EPERM | libc::EACCES => (ErrorKind::Unsupported, Some(remedy::user_namespaces())),
            libc::EINVAL => (
                ErrorKind::Unsupported,
                Some("the ids don't exist in the host's own user namespace; choose others with `Sandbox::id_base`"),
            ),
            _ => (exhausted, hint),
        },
        Area::IdMappedMount => match errno {
            libc::EINVAL | libc::EOPNOTSUPP | libc::EPERM => (
                ErrorKind::Unsupported,
                Some(
                    "this file system has no idmapped mounts (tmpfs has them from Linux 6.3, overlayfs and FUSE mostly not); move it to ext4, xfs or btrfs, or use `prefer(Layer::IdMappedMounts)`: its files then belong to nobody inside",
                ),
            ),
            _ => (exhausted, hint),
        },
        Area::Image => match errno {
            libc::ENOTDIR => (ErrorKind::Image, Some("a root file system is a directory")),
            libc::ENOENT => (ErrorKind::Image, Some("it must exist on the host")),
            libc::EACCES | libc::EPERM => (ErrorKind::Image, Some("this user may not read it")),
            libc::EINVAL => (ErrorKind::Image, Some("a directory with mounts below it can't be an ordinary user's root file system")),
            _ => (if is_exhaustion(errno) { exhausted } else { ErrorKind::Image }, hint),
        },
        Area::Checkpoint => match errno {
            libc::EBUSY => (ErrorKind::Invalid, Some("a file in it is still open for writing: the sandbox has passed it out")),
            libc::EPERM => (
                ErrorKind::Lost,
                Some("an ordinary user's checkpoints end with the init that made them: it was killed, or this is a forked process"),
            ),
            _ => (exhausted, hint),
        },
        Area::Overlay => {
            let from_host = sandbox.is_some_and(|s| matches!(s.root.root, Root::Host(_)));
            match errno {
                libc::ENODEV if !from_host => (
                    ErrorKind::Unsupported,
                    Some("this kernel has no overlayfs: load the module `overlay`; `prefer(Layer::Overlay)` copies the image for each run"),
                ),
                libc::EPERM | libc::EINVAL => (
                    ErrorKind::Unsupported,
                    Some(
                        "overlayfs refuses it here, and the kernel's log says why; `prefer(Layer::Overlay)` copies the image for each run",
                    ),
                ),
                libc::ENOSPC => (ErrorKind::Image, Some("a copy of the image doesn't fit; see `Sandbox::writable`")),
                _ => (exhausted, hint),
            }
        }
        Area::UserXattr => (
            ErrorKind::Unsupported,
            Some(
                "an ordinary user's overlay on tmpfs needs Linux 6.6; run as root, use `Image::host()`, or copy the image for each run with `prefer(Layer::Overlay)`",
            ),
        ),
        Area::Proc => match errno {
            libc::EPERM => (
                ErrorKind::Unsupported,
                Some(
                    "parts of the host's /proc are masked, as in a container; start that with systempaths=unconfined (Docker) or procMount: Unmasked (Kubernetes)",
                ),
            ),
            _ => (exhausted, hint),
        },
        Area::Mount => {
            let hint = match errno {
                libc::ENOENT => Some("it must exist on the host"),
                libc::EACCES | libc::EPERM => Some("this user may not use it"),
                libc::EXDEV => Some("it lies in another mount, or a link in the image leads there"),
                libc::EROFS => Some("it lies in a read-only mount"),
                libc::ENOSPC => Some("the writable layer is full; see `Sandbox::writable`"),
                libc::ENOTDIR => Some("a directory goes onto a directory, a file onto a file"),
                libc::EISDIR => Some("there's a directory of that name"),
                _ => hint,
            };
            (if is_exhaustion(errno) { exhausted } else { ErrorKind::Mount }, hint)
        }
        Area::Filter => match errno {
            libc::EINVAL | libc::ENOSYS => {
                (ErrorKind::Unsupported, Some("this kernel has no seccomp filters; `prefer(Layer::SyscallFilter)` goes on without"))
            }
            // Only one of a process's filters may have a listener.
            libc::EBUSY => (
                ErrorKind::Unsupported,
                Some(
                    "something around this program listens to its system calls already; take a policy that ends no run, such as `Syscalls::Default`",
                ),
            ),
            _ => (exhausted, hint),
        },
        Area::Landlock => match errno {
            libc::E2BIG => {
                (ErrorKind::Unsupported, Some("16 rulesets hold for this program already; `prefer(Layer::Landlock)` goes on without"))
            }
            libc::ENOSYS | libc::EOPNOTSUPP => {
                (ErrorKind::Unsupported, Some("this kernel has no Landlock; `prefer(Layer::Landlock)` goes on without"))
            }
            _ => (exhausted, hint),
        },
        Area::Limit => match errno {
            libc::EPERM => (
                ErrorKind::Unsupported,
                Some("it's above the hard limit of the host program, which only CAP_SYS_RESOURCE may exceed; see `ulimit -H`"),
            ),
            _ => (exhausted, hint),
        },
        Area::Group => match errno {
            libc::EAGAIN => (ErrorKind::Exhausted, Some("an enclosing control group's limit on processes is reached")),
            _ => (exhausted, hint),
        },
        Area::Chdir => (ErrorKind::BadWorkingDirectory, None),
        Area::Exec => exec(errno, mode),
        Area::Inside => inside(errno),
    }
}

/// Paths and addresses in a sandbox that stands.
fn inside(errno: i32) -> (ErrorKind, Option<&'static str>) {
    match errno {
        libc::ENOENT => (ErrorKind::NotFound, None),
        libc::EACCES | libc::EPERM | libc::EROFS => (ErrorKind::PermissionDenied, None),
        libc::EISDIR => (ErrorKind::IsADirectory, None),
        libc::ELOOP => (ErrorKind::FilesystemLoop, Some("it's a symbolic link, or there are too many on the way")),
        libc::ENAMETOOLONG => (ErrorKind::NameTooLong, None),
        libc::ENOSPC => (ErrorKind::Io, Some("the writable layer is full; see `Sandbox::writable`")),
        _ if is_exhaustion(errno) => (ErrorKind::Exhausted, exhaustion_hint(errno)),
        _ => (ErrorKind::Io, None),
    }
}

/// The reasons of execve(2). `mode` is the file's, 0 if it isn't there.
fn exec(errno: i32, mode: u32) -> (ErrorKind, Option<&'static str>) {
    let directory = mode & libc::S_IFMT == libc::S_IFDIR;
    match errno {
        libc::ENOENT if mode != 0 => {
            (ErrorKind::InterpreterNotFound, Some("the file exists, but not the interpreter that its first line or its ELF header names"))
        }
        libc::ENOTDIR if mode != 0 => (ErrorKind::InterpreterNotFound, Some("the path of its interpreter leads through a file")),
        libc::ENOENT | libc::ENOTDIR => (ErrorKind::NotFound, Some("there's no such program in the sandbox")),
        libc::EACCES | libc::EISDIR if directory => (ErrorKind::IsADirectory, Some("it's a directory")),
        libc::EACCES | libc::EPERM => {
            (ErrorKind::PermissionDenied, Some("it must be an executable file that the user of the run may reach"))
        }
        libc::ENOEXEC => (ErrorKind::ExecFormat, Some("it's neither a script with a `#!` line nor a binary for this machine")),
        libc::EINVAL => (ErrorKind::ExecFormat, Some("its ELF header names more than one interpreter")),
        libc::ELIBBAD => (ErrorKind::ExecFormat, Some("its interpreter isn't a binary for this machine")),
        libc::EISDIR => (ErrorKind::InterpreterNotFound, Some("its interpreter is a directory")),
        libc::E2BIG => {
            (ErrorKind::ArgumentListTooLong, Some("a single argument ends at 128 KiB, all together at a quarter of the stack limit"))
        }
        libc::ETXTBSY => (ErrorKind::TextFileBusy, Some("somebody has it open for writing")),
        libc::ELOOP => (ErrorKind::FilesystemLoop, None),
        libc::ENAMETOOLONG => (ErrorKind::NameTooLong, None),
        libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE => (ErrorKind::Exhausted, exhaustion_hint(errno)),
        _ => (ErrorKind::Exec, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn execve_failures_are_told_apart() {
        let file = libc::S_IFREG | 0o755;
        let kinds = [
            (libc::ENOENT, 0, ErrorKind::NotFound),
            (libc::ENOENT, file, ErrorKind::InterpreterNotFound),
            (libc::EACCES, file, ErrorKind::PermissionDenied),
            (libc::EACCES, libc::S_IFDIR | 0o755, ErrorKind::IsADirectory),
            (libc::ENOEXEC, file, ErrorKind::ExecFormat),
            (libc::E2BIG, file, ErrorKind::ArgumentListTooLong),
            (libc::ETXTBSY, file, ErrorKind::TextFileBusy),
            (libc::ELOOP, 0, ErrorKind::FilesystemLoop),
            (libc::ENAMETOOLONG, 0, ErrorKind::NameTooLong),
        ];
        for (errno, mode, kind) in kinds {
            assert_eq!(exec(errno, mode).0, kind, "errno {errno}, mode {mode:o}");
        }
    }
}
