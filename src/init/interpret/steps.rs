//! Steps that are more than one system call.

use super::{Context, push, text};
use crate::arch::nr;
use crate::sys::*;
use crate::wire::{AT_FDCWD as WIRE_CWD, MAX_FDS, SCANT, slot};

const F_DUPFD_CLOEXEC: usize = 1030;

impl Context {
    /// See [`op::FDS`]. Sources that stand below the highest wanted number are
    /// first moved above it, so that no `dup3` overwrites one still needed.
    pub(super) fn arrange(&mut self, pairs: *const u32, count: usize, counts_sockets: bool) -> Result<usize> {
        const CLOSE_RANGE_CLOEXEC: usize = 4;
        // SAFETY: the decoder checked place, alignment and count.
        let pairs = unsafe { core::slice::from_raw_parts(pairs.cast::<[u32; 2]>(), count) };
        let above = pairs.iter().map(|p| p[1] as usize + 1).max().unwrap_or(0);
        let mut sources = [-1i32; MAX_FDS];
        for (source, pair) in sources.iter_mut().zip(pairs) {
            let fd = self.slots[pair[0] as usize];
            *source = if (fd as usize) < above { call(nr::FCNTL, [fd as usize, F_DUPFD_CLOEXEC, above, 0, 0, 0])? as i32 } else { fd };
        }
        // Some more are needed after this: the way to the host, that to PID 1, a courier's
        // channel and pidfd, which are in the same table (see listener.rs), and the rules.
        let [reply, .., ruleset] = &mut self.slots[slot::REPLY as usize..=slot::RULESET as usize] else { return Err(EINVAL) };
        for fd in [reply, ruleset, &mut self.channel[1], &mut self.announce, &mut self.pidfd] {
            if (0..above as i32).contains(fd) {
                *fd = call(nr::FCNTL, [*fd as usize, F_DUPFD_CLOEXEC, above, 0, 0, 0])? as i32;
            }
        }
        call(nr::CLOSE_RANGE, [0, u32::MAX as usize, CLOSE_RANGE_CLOEXEC, 0, 0, 0])?;
        for (source, pair) in sources.iter().zip(pairs) {
            call(nr::DUP3, [*source as usize, pair[1] as usize, 0, 0, 0, 0])?;
        }
        // By one of these the network namespace's files could get to others.
        if counts_sockets && pairs.iter().any(|pair| crate::sockets::leads_out(pair[1] as i32)) {
            crate::sockets::make_one()?;
        }
        Ok(0)
    }

    /// See [`op::MAKE_ROOM`]. What is needed yet moves out of the way. What has been arranged
    /// for the command stays: exec won't close it.
    pub(super) fn make_room(&mut self) -> usize {
        const F_GETFD: usize = 1;
        const FD_CLOEXEC: usize = 1;
        let low = 0..SCANT as i32;
        let mut kept = [-1; 5];
        let [_, channel] = &mut self.channel;
        let [reply, .., ruleset] = &mut self.slots[slot::REPLY as usize..=slot::RULESET as usize] else { return 0 };
        for (fd, kept) in [reply, ruleset, channel, &mut self.announce, &mut self.pidfd].into_iter().zip(&mut kept) {
            if low.contains(fd) {
                // If that fails it has to stay.
                *fd = call(nr::FCNTL, [*fd as usize, F_DUPFD_CLOEXEC, SCANT as usize, 0, 0, 0]).map_or(*fd, |moved| moved as i32);
                *kept = *fd;
            }
        }
        for fd in low.filter(|fd| !kept.contains(fd)) {
            if call(nr::FCNTL, [fd as usize, F_GETFD, 0, 0, 0, 0]) == Ok(FD_CLOEXEC) {
                close(fd);
            }
        }
        0
    }
}

pub(super) fn drop_bounding(keep: u64) -> Result<usize> {
    const PR_CAPBSET_DROP: usize = 24;
    for capability in 0..64 {
        if keep >> capability & 1 == 0 {
            match prctl(PR_CAPBSET_DROP, capability) {
                Ok(_) => {}
                // The first number that this kernel doesn't know ends the list.
                Err(EINVAL) => break,
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(0)
}

pub(super) fn self_open(name: *const u8) -> Result<usize> {
    let mut path = [0u8; 64];
    let at = push(&mut path, 0, b"/proc/self/")?;
    push(&mut path, at, text(name))?;
    call(nr::OPENAT, [AT_FDCWD as usize, path.as_ptr() as usize, O_RDONLY | O_CLOEXEC, 0, 0, 0])
}

pub(super) fn raise_files() -> Result<usize> {
    const RLIMIT_NOFILE: usize = 7;
    let mut limit = [0u64; 2];
    call(nr::PRLIMIT64, [0, RLIMIT_NOFILE, 0, limit.as_mut_ptr() as usize, 0, 0])?;
    limit[0] = limit[1];
    call(nr::PRLIMIT64, [0, RLIMIT_NOFILE, limit.as_ptr() as usize, 0, 0, 0])
}

/// See [`op::ALLOW`].
pub(super) fn allow(ruleset: i32, directory: usize, path: *const u8, rights: u64) -> Result<usize> {
    /// What a rule on a file may name: WRITE_FILE and TRUNCATE, of all that we use.
    const ON_FILES: u64 = 1 << 1 | 1 << 14;
    const LANDLOCK_RULE_PATH_BENEATH: usize = 1;
    // The ruleset couldn't be made, and the recipe goes on without.
    if ruleset < 0 {
        return Ok(0);
    }
    let below = !text(path).is_empty();
    let place = if below { call(nr::OPENAT, [directory, path as usize, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0, 0, 0])? } else { directory };
    let add = |rights: u64| {
        // struct landlock_path_beneath_attr is packed: 12 bytes.
        let rule = [rights, place as u64];
        call(nr::LANDLOCK_ADD_RULE, [ruleset as usize, LANDLOCK_RULE_PATH_BENEATH, rule.as_ptr() as usize, 0, 0, 0])
    };
    let added = match add(rights) {
        Err(EINVAL) => add(rights & ON_FILES),
        other => other,
    };
    if below {
        close(place as i32);
    }
    added
}

/// mount_setattr(2) with a descriptor inside its structure.
pub(super) fn id_map(mount: usize, namespace: usize) -> Result<usize> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    const AT_EMPTY_PATH_RECURSIVE: usize = 0x9000;
    let attributes = [MOUNT_ATTR_IDMAP, 0, 0, namespace as u64];
    let at = attributes.as_ptr() as usize;
    call(nr::MOUNT_SETATTR, [mount, c"".as_ptr() as usize, AT_EMPTY_PATH_RECURSIVE, at, size_of_val(&attributes), 0])
}

pub(super) fn user_xattr(directory: usize) -> Result<usize> {
    call(nr::FSETXATTR, [directory, c"user.cofferdam".as_ptr() as usize, c"".as_ptr() as usize, 0, 0, 0])
}

/// Tries each program of the list as execvp(3) does: what isn't there is passed
/// over, what may not be executed is remembered, anything else is final. Also
/// tells the mode of the file that failed, so that the host can tell a missing
/// program from a missing interpreter, and a directory from a file.
pub(super) fn execute(a: [usize; 6]) -> (i32, u32) {
    // SAFETY: the decoder checked place, alignment and count of the list, and
    // relocation turned its entries into addresses inside the mapping.
    let candidates = unsafe { core::slice::from_raw_parts(a[0] as *const usize, a[1]) };
    let mut failure = (ENOENT, 0);
    for path in candidates {
        let Err(errno) = call(nr::EXECVE, [*path, a[2], a[3], 0, 0, 0]) else { continue };
        let mode = stat(WIRE_CWD as i32, *path as *const u8).map_or(0, |s| s.0);
        match errno {
            ENOENT | ENOTDIR if mode == 0 => {
                if failure.0 == ENOENT {
                    failure = (errno, 0);
                }
            }
            EACCES => failure = (errno, mode),
            _ => return (errno, mode),
        }
    }
    failure
}
