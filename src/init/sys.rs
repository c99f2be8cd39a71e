//! The few system calls that init makes on its own account, as functions.
//!
//! # Safety
//! Every call passes addresses of live local variables or of mappings that are
//! never unmapped while in use, with their true sizes; descriptors and pids are
//! plain numbers to the kernel, and a wrong one is an errno.

use crate::arch::{nr, syscall};
use crate::message::{Report, Request};
use crate::wire::{MAX_FDS, MAX_INLINE};

pub const EINTR: i32 = 4;
pub const EIO: i32 = 5;
pub const ENOENT: i32 = 2;
pub const ECHILD: i32 = 10;
pub const EAGAIN: i32 = 11;
pub const EACCES: i32 = 13;
pub const EEXIST: i32 = 17;
pub const ENOTDIR: i32 = 20;
pub const EINVAL: i32 = 22;
pub const EMFILE: i32 = 24;
pub const EBUSY: i32 = 16;
pub const ENOSPC: i32 = 28;
pub const EPROTO: i32 = 71;
pub const EUSERS: i32 = 87;
pub const ECANCELED: i32 = 125;

pub const AT_SYMLINK_NOFOLLOW: usize = 0x100;
pub const AT_REMOVEDIR: usize = 0x200;
pub const O_NONBLOCK: usize = 0o4000;
pub const O_RDONLY: usize = 0;
pub const O_WRONLY: usize = 1;
pub const O_RDWR: usize = 2;
pub const O_CREAT: usize = 0o100;
pub const O_EXCL: usize = 0o200;
pub const O_CLOEXEC: usize = 0o2000000;
pub const O_PATH: usize = 0o10000000;
#[cfg(target_arch = "x86_64")]
pub const O_DIRECTORY: usize = 0o200000;
#[cfg(target_arch = "x86_64")]
pub const O_NOFOLLOW: usize = 0o400000;
#[cfg(target_arch = "aarch64")]
pub const O_DIRECTORY: usize = 0o40000;
#[cfg(target_arch = "aarch64")]
pub const O_NOFOLLOW: usize = 0o100000;

pub const F_GETFD: usize = 1;
pub const SIGKILL: usize = 9;
pub const SIGCONT: usize = 18;
pub const SIGSTOP: usize = 19;
pub const SIGCHLD: u64 = 17;
pub const AT_FDCWD: i32 = -100;

pub type Result<T> = core::result::Result<T, i32>;

/// A system call with plain numbers; errno as `Err`.
pub fn call(number: usize, args: [usize; 6]) -> Result<usize> {
    // SAFETY: see the head of this file; plan steps pass addresses inside the
    // plan's own mapping, checked by the decoder.
    let result = unsafe { syscall(number, args) };
    if result < 0 { Err(-result as i32) } else { Ok(result as usize) }
}

pub fn exit(code: i32) -> ! {
    loop {
        let _ = call(nr::EXIT_GROUP, [code as usize, 0, 0, 0, 0, 0]);
    }
}

/// Negative is none.
pub fn close(fd: i32) {
    if fd >= 0 {
        let _ = call(nr::CLOSE, [fd as usize, 0, 0, 0, 0, 0]);
    }
}

pub fn close_range(first: u32, last: u32) {
    let _ = call(nr::CLOSE_RANGE, [first as usize, last as usize, 0, 0, 0, 0]);
}

pub fn kill(pid: i32, signal: usize) -> Result<usize> {
    call(nr::KILL, [pid as usize, signal, 0, 0, 0, 0])
}

pub fn prctl(option: usize, a: usize) -> Result<usize> {
    call(nr::PRCTL, [option, a, 0, 0, 0, 0])
}

pub const PR_SET_PDEATHSIG: usize = 1;
pub const PR_SET_NAME: usize = 15;

/// From now on this process is killed when its parent ends; it ends at once if `parent`
/// already has.
pub fn end_with_parent(parent: i32) {
    let _ = prctl(PR_SET_PDEATHSIG, SIGKILL);
    if call(nr::GETPPID, [0; 6]) != Ok(parent as usize) {
        exit(1);
    }
}

/// A pair of connected sockets that keep messages apart.
pub fn socket_pair() -> Result<[i32; 2]> {
    let mut pair = [-1i32; 2];
    // AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC
    call(nr::SOCKETPAIR, [1, 5 | O_CLOEXEC, 0, pair.as_mut_ptr() as usize, 0, 0])?;
    Ok(pair)
}

/// Clock id: CPU time of this process.
pub const CPU_TIME: usize = 2;

/// Nanoseconds of a clock: 1 is CLOCK_MONOTONIC.
pub fn clock(id: usize) -> u64 {
    let mut time = [0u64; 2];
    let _ = call(nr::CLOCK_GETTIME, [id, time.as_mut_ptr() as usize, 0, 0, 0, 0]);
    time[0] * 1_000_000_000 + time[1]
}

/// `clone3` without a stack: the child goes on with a copy of everything, as
/// after fork. `parent_tid` is written before the child first runs.
pub fn fork(flags: u64, exit_signal: u64, parent_tid: *mut i32) -> Result<i32> {
    const CLONE_PARENT_SETTID: u64 = 0x0010_0000;
    let args = [flags | CLONE_PARENT_SETTID, 0, 0, parent_tid as u64, exit_signal, 0, 0, 0];
    call(nr::CLONE3, [args.as_ptr() as usize, size_of_val(&args), 0, 0, 0, 0]).map(|pid| pid as i32)
}

/// [`fork`] with nothing special: a child of ours that ends with SIGCHLD.
pub fn fork_child() -> Result<i32> {
    let mut tid = 0;
    fork(0, SIGCHLD, &raw mut tid)
}

/// Like [`fork`], with a pidfd of the child.
pub fn fork_with_pidfd(pidfd: &mut i32) -> Result<i32> {
    const CLONE_PIDFD: u64 = 0x1000;
    let pidfd: *mut i32 = pidfd;
    let args = [CLONE_PIDFD, pidfd as u64, 0, 0, SIGCHLD, 0, 0, 0];
    call(nr::CLONE3, [args.as_ptr() as usize, size_of_val(&args), 0, 0, 0, 0]).map(|pid| pid as i32)
}

/// What `wait4` told about a dead child.
pub struct Dead {
    pub pid: i32,
    pub status: u32,
}

impl Dead {
    /// [`Dead::pid`] when nobody has died: a child made us its tracer and stopped.
    pub const NOBODY: i32 = i32::MIN;
}

/// Reaps any child; `None` when none is dead yet (only with `nohang`).
///
/// A child that calls PTRACE_TRACEME makes us its tracer unasked, and then wait4 tells
/// of its stops too, with a status that looks like a signal. It's let go, with the
/// signal that it stopped for.
pub fn reap(nohang: bool, usage: &mut Rusage) -> Result<Option<Dead>> {
    // Children of every kind, also those whose exit signal isn't SIGCHLD.
    const WALL: usize = 0x4000_0000;
    let mut status = 0u32;
    loop {
        let options = WALL | usize::from(nohang);
        let usage: *mut Rusage = usage;
        match call(nr::WAIT4, [usize::MAX, &raw mut status as usize, options, usage as usize, 0, 0]) {
            Err(EINTR) => continue,
            Err(errno) => return Err(errno),
            Ok(0) => return Ok(None),
            Ok(pid) if status & 0xff == 0x7f => {
                const PTRACE_DETACH: usize = 17;
                const SIGTRAP: u32 = 5;
                // That one only says that it has executed something.
                let signal = Some(status >> 8 & 0x7f).filter(|signal| *signal != SIGTRAP).unwrap_or(0);
                let _ = call(nr::PTRACE, [PTRACE_DETACH, pid, 0, signal as usize, 0, 0]);
                return Ok(Some(Dead { pid: Dead::NOBODY, status }));
            }
            Ok(pid) => return Ok(Some(Dead { pid: pid as i32, status })),
        }
    }
}

/// The kernel's `struct rusage`, as far as we read it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Rusage {
    user: [i64; 2],
    system: [i64; 2],
    maxrss_kib: i64,
    rest: [i64; 13],
}

impl Rusage {
    pub const NONE: Rusage = Rusage { user: [0; 2], system: [0; 2], maxrss_kib: 0, rest: [0; 13] };

    pub fn of_children() -> Rusage {
        let mut usage = Rusage::default();
        let _ = call(nr::GETRUSAGE, [usize::MAX, &raw mut usage as usize, 0, 0, 0, 0]);
        usage
    }

    /// Takes in what another has used.
    pub fn add(&mut self, other: &Rusage) {
        for (ours, theirs) in [(&mut self.user, other.user), (&mut self.system, other.system)] {
            // Seconds and microseconds.
            let sum = ours[1] + theirs[1];
            *ours = [ours[0] + theirs[0] + sum / 1_000_000, sum % 1_000_000];
        }
        self.maxrss_kib = self.maxrss_kib.max(other.maxrss_kib);
        for (ours, theirs) in self.rest.iter_mut().zip(other.rest) {
            *ours += theirs;
        }
    }

    pub fn user_ns(&self) -> u64 {
        self.user[0] as u64 * 1_000_000_000 + self.user[1] as u64 * 1000
    }

    pub fn system_ns(&self) -> u64 {
        self.system[0] as u64 * 1_000_000_000 + self.system[1] as u64 * 1000
    }

    /// Voluntary and involuntary context switches.
    pub fn switches(&self) -> (u64, u64) {
        (self.rest[11] as u64, self.rest[12] as u64)
    }

    /// Bytes read and written, in blocks of 512 (getrusage(2): `ru_inblock`).
    pub fn blocks(&self) -> (u64, u64) {
        (self.rest[6] as u64 * 512, self.rest[7] as u64 * 512)
    }

    pub fn peak_bytes(&self) -> u64 {
        self.maxrss_kib as u64 * 1024
    }
}

/// `st_mode`, owner and group of an open file, or of a path below it.
pub fn stat(dir: i32, path: *const u8) -> Result<(u32, u32, u32)> {
    const AT_EMPTY_PATH: usize = 0x1000;
    const STATX_BASIC_STATS: usize = 0x7ff;
    let mut buffer = [0u32; 64];
    call(nr::STATX, [dir as usize, path as usize, AT_EMPTY_PATH, STATX_BASIC_STATS, buffer.as_mut_ptr() as usize, 0])?;
    // struct statx: mask, blksize, attributes (u64), nlink, uid, gid, mode (u16)
    Ok((buffer[7] & 0xffff, buffer[5], buffer[6]))
}

/// Bytes and files in use on the file system of `/`, and whether it's full.
pub fn usage_of_root() -> (u64, u64, bool) {
    // struct statfs: type, bsize, blocks, bfree, bavail, files, ffree, ...
    let mut buffer = [0u64; 15];
    if call(nr::STATFS, [c"/".as_ptr() as usize, buffer.as_mut_ptr() as usize, 0, 0, 0, 0]).is_err() {
        return (Report::UNKNOWN, Report::UNKNOWN, false);
    }
    let [_, size, blocks, free, available, files, free_files, ..] = buffer;
    (blocks.saturating_sub(free) * size, files.saturating_sub(free_files), available == 0 || free_files == 0)
}

/// A signalfd for SIGCHLD, which must be blocked.
pub fn signalfd() -> Result<i32> {
    let mask = 1u64 << (SIGCHLD - 1);
    const SFD_CLOEXEC_NONBLOCK: usize = 0o2004000;
    call(nr::SIGNALFD4, [usize::MAX, &raw const mask as usize, 8, SFD_CLOEXEC_NONBLOCK, 0, 0]).map(|fd| fd as i32)
}

/// Takes what is pending from a signalfd. Once: it stays readable if there's more,
/// and a workload that sends signals without end must not keep us here.
pub fn drain(fd: i32) {
    let mut buffer = [0u8; 128 * 4];
    let _ = call(nr::READ, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0]);
}

#[repr(C)]
struct Message {
    name: usize,
    name_length: usize,
    vectors: *mut [usize; 2],
    vector_count: usize,
    control: *mut u8,
    control_length: usize,
    flags: usize,
}

/// A control message that carries descriptors.
#[repr(C)]
struct Control {
    length: usize,
    level: i32,
    kind: i32,
    fds: [i32; MAX_FDS],
}

const CONTROL_HEADER: usize = 16;
const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;

/// Sends one message with descriptors, waiting if the socket is full.
pub fn send(socket: i32, bytes: &[u8], fds: &[i32]) -> Result<()> {
    const MSG_NOSIGNAL: usize = 0x4000;
    let mut control = Control { length: CONTROL_HEADER + 4 * fds.len(), level: SOL_SOCKET, kind: SCM_RIGHTS, fds: [0; MAX_FDS] };
    let Some(room) = control.fds.get_mut(..fds.len()) else { return Err(EINVAL) };
    room.copy_from_slice(fds);
    let mut vector = [bytes.as_ptr() as usize, bytes.len()];
    let message = Message {
        name: 0,
        name_length: 0,
        vectors: &raw mut vector,
        vector_count: 1,
        control: if fds.is_empty() { core::ptr::null_mut() } else { (&raw mut control).cast() },
        control_length: if fds.is_empty() { 0 } else { control.length },
        flags: 0,
    };
    loop {
        match call(nr::SENDMSG, [socket as usize, &raw const message as usize, MSG_NOSIGNAL, 0, 0, 0]) {
            Err(EINTR) => continue,
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(()),
        }
    }
}

pub fn report(socket: i32, report: &Report, fds: &[i32]) {
    // A host that is gone doesn't read; its end ends us too.
    let _ = send(socket, &report.encode(), fds);
}

/// A received message: bytes, and descriptors that the caller now owns.
pub struct Received {
    pub length: usize,
    pub fds: [i32; MAX_FDS],
    pub count: usize,
    /// Descriptors were lost (MSG_CTRUNC): too many, or no room for them here.
    pub truncated: bool,
}

impl Received {
    pub fn fds(&self) -> &[i32] {
        &self.fds[..self.count]
    }

    pub fn close(&self) {
        for fd in self.fds() {
            close(*fd);
        }
    }
}

/// Receives one message; a length of 0 is the end of the socket.
pub fn receive(socket: i32, bytes: &mut [u8], wait: bool) -> Result<Received> {
    receive_into(socket, &mut [[bytes.as_mut_ptr() as usize, bytes.len()]], wait)
}

/// The same into several pieces of memory, which must be ours to write.
fn receive_into(socket: i32, pieces: &mut [[usize; 2]], wait: bool) -> Result<Received> {
    const MSG_CTRUNC: usize = 0x8;
    const MSG_DONTWAIT: usize = 0x40;
    const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
    let mut control = Control { length: 0, level: 0, kind: 0, fds: [-1; MAX_FDS] };
    let mut message = Message {
        name: 0,
        name_length: 0,
        vectors: pieces.as_mut_ptr(),
        vector_count: pieces.len(),
        control: (&raw mut control).cast(),
        control_length: size_of::<Control>(),
        flags: 0,
    };
    let flags = MSG_CMSG_CLOEXEC | if wait { 0 } else { MSG_DONTWAIT };
    let length = loop {
        match call(nr::RECVMSG, [socket as usize, &raw mut message as usize, flags, 0, 0, 0]) {
            Err(EINTR) => continue,
            Err(errno) => return Err(errno),
            Ok(length) => break length,
        }
    };
    let carries = message.control_length > CONTROL_HEADER && control.level == SOL_SOCKET && control.kind == SCM_RIGHTS;
    let count = if carries { ((control.length - CONTROL_HEADER) / 4).min(MAX_FDS) } else { 0 };
    Ok(Received { length, fds: control.fds, count, truncated: message.flags & MSG_CTRUNC != 0 })
}

/// Receives a request; `Ok(None)` at the end of the socket.
pub fn receive_request(socket: i32, wait: bool) -> Result<Option<(Request, Received)>> {
    let mut bytes = [0; Request::SIZE];
    let received = receive(socket, &mut bytes, wait)?;
    if received.length == 0 {
        received.close();
        return Ok(None);
    }
    match Request::decode(&bytes[..received.length]) {
        Some(request) => Ok(Some((request, received))),
        None => {
            received.close();
            Err(EPROTO)
        }
    }
}

/// Closes the descriptors of all requests that have come, which nobody else will answer:
/// whoever waits at their other ends learns that way. True at the end of the socket.
pub fn decline(socket: i32) -> bool {
    loop {
        match receive_request(socket, false) {
            Ok(Some((_, received))) => received.close(),
            end => return matches!(end, Ok(None)),
        }
    }
}

/// What poll(2) tells of one descriptor, within so many nanoseconds.
pub fn poll_one(fd: i32, events: u64, nanos: u64) -> Result<u64> {
    let mut polled = u64::from(fd as u32) | events << 32;
    poll(core::slice::from_mut(&mut polled), Some(nanos))?;
    Ok(polled >> 48)
}

/// ppoll(2) of entries as [`poll_one`] makes one, for so many nanoseconds.
pub fn poll(entries: &mut [u64], nanos: Option<u64>) -> Result<usize> {
    let limit = nanos.map(|nanos| [nanos / 1_000_000_000, nanos % 1_000_000_000]);
    let limit_at = limit.as_ref().map_or(0, |limit| limit.as_ptr() as usize);
    call(nr::PPOLL, [entries.as_mut_ptr() as usize, entries.len(), limit_at, 0, 0, 0])
}

/// Does nothing for so many nanoseconds.
pub fn pause(nanos: u64) {
    let _ = poll(&mut [], Some(nanos));
}

/// Does something with each name in a directory but `.` and `..`, from where it was read
/// last; what is done there may add and remove names. The buffer says how much is read at
/// once. A name ends with a NUL, and bytes of others may follow.
pub fn each_name(directory: i32, buffer: &mut [u64], mut action: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    loop {
        let read = [directory as usize, buffer.as_mut_ptr() as usize, size_of_val(buffer), 0, 0, 0];
        let length = call(nr::GETDENTS64, read)?;
        if length == 0 {
            return Ok(());
        }
        // SAFETY: the kernel has filled so many bytes of the buffer.
        let bytes = unsafe { core::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
        let mut at = 0;
        // struct linux_dirent64: inode, offset (u64 each), length (u16), type, name
        while let Some(entry) = bytes.get(at..) {
            let Some([low, high]) = entry.get(16..18) else { break };
            at += usize::from(u16::from_le_bytes([*low, *high]));
            let name = entry.get(19..).unwrap_or_default();
            if !name.starts_with(b".\0") && !name.starts_with(b"..\0") {
                action(name)?;
            }
        }
    }
}

/// The first number in a file, read from its start: a counter of a control group.
pub fn counter(fd: i32) -> Option<u64> {
    number_after(fd, b"")
}

/// The first number behind `key` in a file's first bytes.
pub fn number_after(fd: i32, key: &[u8]) -> Option<u64> {
    let mut text = [0u8; 256];
    let length = call(nr::PREAD64, [fd as usize, text.as_mut_ptr() as usize, text.len(), 0, 0, 0]).ok()?;
    let text = &text[..length];
    let start = (0..text.len()).find(|i| text[*i..].starts_with(key))? + key.len();
    let mut digits = text[start..].iter().skip_while(|b| !b.is_ascii_digit()).take_while(|b| b.is_ascii_digit()).peekable();
    digits.peek()?;
    Some(digits.fold(0u64, |n, b| n.wrapping_mul(10).wrapping_add(u64::from(b - b'0'))))
}

/// A 64-bit number in a file of ours; 0 if it isn't there.
pub fn word_at(fd: i32, at: usize) -> u64 {
    let mut word = 0u64;
    let _ = call(nr::PREAD64, [fd as usize, &raw mut word as usize, size_of_val(&word), at, 0, 0]);
    word
}

/// Closes every descriptor but those of the list, which it sorts; negative ones
/// don't count.
pub fn close_all_but(keep: &mut [i32]) {
    for i in 1..keep.len() {
        let mut j = i;
        while j > 0 && keep[j - 1] > keep[j] {
            keep.swap(j - 1, j);
            j -= 1;
        }
    }
    let mut next = 0u32;
    for fd in keep.iter().filter(|fd| **fd >= 0) {
        if *fd as u32 > next {
            close_range(next, *fd as u32 - 1);
        }
        next = *fd as u32 + 1;
    }
    close_range(next, u32::MAX);
}

/// Memory that forked children share with us.
pub fn map_shared(size: usize) -> Result<*mut u8> {
    call(nr::MMAP, [0, size, 3, 0x21, usize::MAX, 0]).map(|at| at as *mut u8)
}

/// Memory with a plan or a file in it, until [`unmap`].
#[derive(Clone, Copy)]
pub struct Bytes {
    pub at: *mut u8,
    pub size: usize,
}

impl Bytes {
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }
}

/// Room for the plan of a message, one at a time: to map memory, to touch it and to unmap it
/// takes as long as ten other calls, and a command in a sandbox that stands waits for that.
#[repr(align(16))]
struct Room(#[allow(dead_code, reason = "only its address is used")] [u8; MAX_INLINE]);
static mut ROOM: Room = Room([0; MAX_INLINE]);
static mut TAKEN: bool = false;

/// Whether the room was taken; now it is, or isn't.
fn was_taken(now: bool) -> bool {
    // SAFETY: this program has no threads, and a process that shares its memory runs while
    // the other one is suspended.
    unsafe { (&raw mut TAKEN).replace(now) }
}

/// The contents of a file, private and writable (for relocation).
pub fn map_file(fd: i32) -> Result<Bytes> {
    const STATX_SIZE_AT: usize = 10;
    let mut buffer = [0u32; 64];
    call(nr::STATX, [fd as usize, c"".as_ptr() as usize, 0x1000, 0x200, buffer.as_mut_ptr() as usize, 0])?;
    let size = buffer[STATX_SIZE_AT] as usize | (buffer[STATX_SIZE_AT + 1] as usize) << 32;
    if size == 0 {
        return Err(EINVAL);
    }
    call(nr::MMAP, [0, size, 3, 2, fd as usize, 0]).map(|at| Bytes { at: at as *mut u8, size })
}

/// Receives a request that may have a plan behind it, in the message itself.
pub fn receive_with_plan(socket: i32, wait: bool) -> Result<Option<(Request, Received, Bytes)>> {
    if was_taken(true) {
        // The plan before hasn't been let go of.
        return Err(EPROTO);
    }
    let (mut head, at) = ([0; Request::SIZE], (&raw mut ROOM).cast::<u8>());
    let received = receive_into(socket, &mut [[head.as_mut_ptr() as usize, head.len()], [at as usize, MAX_INLINE]], wait);
    let length = received.as_ref().map_or(0, |received| received.length);
    let plan = Bytes { at, size: length.saturating_sub(head.len()) };
    was_taken(!plan.is_empty());
    let received = received?;
    if length == 0 {
        received.close();
        return Ok(None);
    }
    match Request::decode(&head[..length.min(head.len())]) {
        Some(request) => Ok(Some((request, received, plan))),
        None => {
            received.close();
            Err(EPROTO)
        }
    }
}

pub fn unmap(bytes: Bytes) {
    if bytes.at == (&raw mut ROOM).cast() {
        was_taken(false);
    } else if !bytes.is_empty() {
        let _ = call(nr::MUNMAP, [bytes.at as usize, bytes.size, 0, 0, 0, 0]);
    }
}
