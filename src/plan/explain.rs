//! A plan as text.

use std::fmt;

use super::Draft;
use super::wire::{Kind, NO_SLOT, Stage, op, slot};

/// What a run would do, step by step: the answer of
/// [`Sandbox::explain`](crate::Sandbox::explain).
///
/// Its [`Display`](fmt::Display) form is one line a step: number, stage, what the
/// step is for, and the system call.
#[derive(Clone, Debug)]
pub struct Explanation {
    lines: Vec<Line>,
}

#[derive(Clone, Debug)]
struct Line {
    stage: Stage,
    purpose: String,
    call: String,
}

impl Explanation {
    pub(crate) fn of(draft: &Draft) -> Explanation {
        let lines = draft.steps.iter().zip(&draft.notes).map(|(step, note)| {
            let arguments: Vec<String> = step
                .kinds
                .iter()
                .zip(step.args)
                .rev()
                .skip_while(|(kind, arg)| **kind == Kind::Value && *arg == 0)
                .map(|(kind, arg)| argument(draft, step.op, *kind, arg))
                .collect();
            let arguments: Vec<String> = arguments.into_iter().rev().collect();
            let result = if step.slot == NO_SLOT { String::new() } else { format!(" = {}", slot_name(step.slot)) };
            Line { stage: step.stage, purpose: note.purpose(), call: format!("{}({}){result}", name(step.op), arguments.join(", ")) }
        });
        Explanation { lines: lines.collect() }
    }

    /// The number of steps.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there's no step at all.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, line) in self.lines.iter().enumerate() {
            let stage = match line.stage {
                Stage::Start => "start",
                Stage::Outer => "outer",
                Stage::Ahead => "ahead",
                Stage::Inner => "inner",
                Stage::Command => "command",
            };
            writeln!(f, "{i:>3}  {stage:<7}  {:<48}  {}", line.purpose, line.call)?;
        }
        Ok(())
    }
}

fn slot_name(slot: u8) -> String {
    match slot {
        slot::REPLY => "<reply>".into(),
        slot::PLAN => "<plan>".into(),
        slot::HOST_MOUNTS => "<host mounts>".into(),
        slot::HOST_ROOT => "<host root>".into(),
        slot::INIT_MOUNTS => "<init mounts>".into(),
        slot::ROOT => "<root>".into(),
        n => format!("<{n}>"),
    }
}

fn argument(draft: &Draft, op: u32, kind: Kind, value: u64) -> String {
    match kind {
        Kind::Slot => slot_name(value as u8),
        Kind::Value if value == super::wire::AT_FDCWD => "AT_FDCWD".into(),
        Kind::Value if value < 10 => value.to_string(),
        Kind::Value => format!("{value:#x}"),
        Kind::Blob => {
            let text = draft.blob_text(value);
            let printable = text.iter().all(|b| (0x20..0x7f).contains(b));
            if TEXTUAL.contains(&op) && printable { format!("\"{}\"", String::from_utf8_lossy(text)) } else { "&..".into() }
        }
    }
}

/// Calls whose blobs are strings.
const TEXTUAL: &[u32] = &[
    libc::SYS_openat as u32,
    libc::SYS_open_tree as u32,
    libc::SYS_move_mount as u32,
    libc::SYS_mkdirat as u32,
    libc::SYS_fchownat as u32,
    libc::SYS_mknodat as u32,
    libc::SYS_symlinkat as u32,
    libc::SYS_fsopen as u32,
    libc::SYS_fsconfig as u32,
    libc::SYS_fspick as u32,
    libc::SYS_write as u32,
    libc::SYS_chdir as u32,
    libc::SYS_chroot as u32,
    libc::SYS_pivot_root as u32,
    libc::SYS_umount2 as u32,
    libc::SYS_mount as u32,
    libc::SYS_sethostname as u32,
    op::PROC_OPEN,
    op::SELF_OPEN,
    op::MAKE_PATH,
    op::ALLOW,
    op::STACK,
];

/// Every operation that a plan may hold, with its name. System calls are those
/// of the kernel's asm-generic table, so that each architecture has them.
pub(crate) const NAMES: &[(u32, &str)] = &[
    (libc::SYS_capset as u32, "capset"),
    (libc::SYS_chdir as u32, "chdir"),
    (libc::SYS_chroot as u32, "chroot"),
    (libc::SYS_close as u32, "close"),
    (libc::SYS_connect as u32, "connect"),
    (libc::SYS_fchdir as u32, "fchdir"),
    (libc::SYS_fchown as u32, "fchown"),
    (libc::SYS_fchownat as u32, "fchownat"),
    (libc::SYS_fsconfig as u32, "fsconfig"),
    (libc::SYS_fsmount as u32, "fsmount"),
    (libc::SYS_fsopen as u32, "fsopen"),
    (libc::SYS_fspick as u32, "fspick"),
    (libc::SYS_ioctl as u32, "ioctl"),
    (libc::SYS_landlock_create_ruleset as u32, "landlock_create_ruleset"),
    (libc::SYS_landlock_restrict_self as u32, "landlock_restrict_self"),
    (libc::SYS_linkat as u32, "linkat"),
    (libc::SYS_mkdirat as u32, "mkdirat"),
    (libc::SYS_mknodat as u32, "mknodat"),
    (libc::SYS_mount as u32, "mount"),
    (libc::SYS_mount_setattr as u32, "mount_setattr"),
    (libc::SYS_move_mount as u32, "move_mount"),
    (libc::SYS_open_tree as u32, "open_tree"),
    (libc::SYS_openat as u32, "openat"),
    (libc::SYS_openat2 as u32, "openat2"),
    (libc::SYS_pivot_root as u32, "pivot_root"),
    (libc::SYS_keyctl as u32, "keyctl"),
    (libc::SYS_personality as u32, "personality"),
    (libc::SYS_prctl as u32, "prctl"),
    (libc::SYS_prlimit64 as u32, "prlimit64"),
    (libc::SYS_rt_sigprocmask as u32, "rt_sigprocmask"),
    (libc::SYS_seccomp as u32, "seccomp"),
    (libc::SYS_setfsgid as u32, "setfsgid"),
    (libc::SYS_setfsuid as u32, "setfsuid"),
    (libc::SYS_setgroups as u32, "setgroups"),
    (libc::SYS_sethostname as u32, "sethostname"),
    (libc::SYS_setns as u32, "setns"),
    (libc::SYS_setresgid as u32, "setresgid"),
    (libc::SYS_setresuid as u32, "setresuid"),
    (libc::SYS_setsid as u32, "setsid"),
    (libc::SYS_socket as u32, "socket"),
    (libc::SYS_symlinkat as u32, "symlinkat"),
    (libc::SYS_umask as u32, "umask"),
    (libc::SYS_umount2 as u32, "umount2"),
    (libc::SYS_unshare as u32, "unshare"),
    (libc::SYS_write as u32, "write"),
    (op::CLONE, "clone PID 1"),
    (op::PROC_OPEN, "open /proc/<PID 1>/"),
    (op::HAND_OVER, "hand over"),
    (op::RECEIVE, "receive"),
    (op::MAKE_PATH, "make path"),
    (op::FILE, "write file"),
    (op::LIKE, "copy attributes"),
    (op::DROP_BOUNDING, "drop bounding set"),
    (op::DIE_WITH_INIT, "die with init"),
    (op::FDS, "arrange descriptors"),
    (op::EXEC, "execve"),
    (op::AWAIT_MAPS, "await maps"),
    (op::SELF_OPEN, "open /proc/self/"),
    (op::RAISE_FILES, "raise RLIMIT_NOFILE"),
    (op::USER_XATTR, "try user.* attributes"),
    (op::ID_MAP, "mount_setattr idmap"),
    (op::JOIN, "join group"),
    (op::AWAIT_COMMAND, "await the command"),
    (op::AWAIT_GROUP, "await group"),
    (op::ALLOW, "landlock_add_rule"),
    (op::STAND, "stand before the host"),
    (op::AWAIT_LOOK, "await the host's look"),
    (op::NETWORK, "enter a network namespace"),
    (op::SHOW, "show the host"),
    (op::COPY, "copy file"),
    (op::TERMINAL, "pass the terminal"),
    (op::STACK, "open_tree or copy"),
    (op::CENSUS, "take a census"),
    (op::MAKE_SOCKET, "make a socket"),
    (op::MAKE_ROOM, "close what isn't needed"),
];

fn name(op: u32) -> &'static str {
    NAMES.iter().find(|(number, _)| *number == op).map_or("?", |(_, name)| name)
}
