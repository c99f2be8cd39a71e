//! init from the host's side: one per host process, started when first needed and
//! again if it died.
//!
//! init is started with plain [`std::process::Command`] from a sealed memfd: std
//! uses a vfork-like clone, so nothing of the host's memory is copied, no code of
//! ours runs between fork and exec, and a host of 10 GB pays what one of 10 MB
//! does. There are no threads, no signal handlers and no reliance on `waitpid`: a
//! host that ignores SIGCHLD or reaps everything itself only makes init's own exit
//! status disappear, which nobody asks for.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::cgroup::{Ahead, Group, Places};
use crate::error::{Error, ErrorKind, Result, is_exhaustion};
use crate::ids::Ranges;
use crate::layer::IdMap;
use crate::net::count::Counter;
use crate::plan::failure;
use crate::plan::message::{Report, Request};
use crate::plan::namespaces::Ids;
use crate::plan::start::{Start, start_plan};
use crate::probe::{Facts, Subordinate, starts};
use crate::supervise::next;
use crate::sys;

static BINARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cofferdam-init"));

/// init must come from this very build: see `plan/message.rs`.
fn build() -> u64 {
    env!("COFFERDAM_BUILD").parse().unwrap_or(0)
}

/// A running init.
#[derive(Debug)]
pub(crate) struct Init {
    control: OwnedFd,
    process: Mutex<Child>,
    /// Tells its end even while a forked child of the host keeps a copy of init's
    /// end of the socket, made in the moment before that was closed here.
    pidfd: OwnedFd,
    pub(crate) facts: Facts,
    pub(crate) start: Start,
    /// What init saw of the host's files when it started.
    sight: Option<Sight>,
    /// Ids from 1 on inside an ordinary user's sandboxes, or why there are none.
    pub(crate) subordinate: std::result::Result<Subordinate, String>,
    pub(crate) ranges: Option<Arc<Ranges>>,
    /// Before the places, which hold their directories.
    pub(crate) ahead: Ahead,
    pub(crate) places: Arc<Places>,
    groups: AtomicU64,
    seen: Mutex<HashSet<u64>>,
    /// Writable layers can't be mapped to other ids: it was tried.
    unmapped_layers: AtomicBool,
    /// To the process of [`Request::FILES`], once there is one.
    files: Mutex<Option<OwnedFd>>,
}

/// Where a process keeps its init. A forked child of the host finds a foreign pid
/// in its parent's place and takes the next one, with a lock of its own: the
/// parent's may have been held by a thread that the child doesn't have.
struct Place {
    owner: AtomicU32,
    init: Mutex<Option<Arc<Init>>>,
    next: OnceLock<Box<Place>>,
}

impl Place {
    const fn new() -> Place {
        Place { owner: AtomicU32::new(0), init: Mutex::new(None), next: OnceLock::new() }
    }
}

static FIRST: Place = Place::new();

/// The init of this process, if it has one.
fn current() -> MutexGuard<'static, Option<Arc<Init>>> {
    let pid = std::process::id();
    let mut place = &FIRST;
    while let Err(owner) = place.owner.compare_exchange(0, pid, Ordering::Relaxed, Ordering::Relaxed) {
        if owner == pid {
            break;
        }
        // Our copies of the parent's descriptors have no use here.
        if let Ok(mut parents) = place.init.try_lock() {
            *parents = None;
        }
        place = place.next.get_or_init(|| Box::new(Place::new()));
    }
    place.init.lock().unwrap_or_else(|e| e.into_inner())
}

/// The init of this process, started if need be.
pub(crate) fn init() -> Result<Arc<Init>> {
    let mut current = current();
    if let Some(init) = &*current {
        return Ok(init.clone());
    }
    let init = Arc::new(Init::start()?);
    *current = Some(init.clone());
    Ok(init)
}

/// Whether [`init`] will find one that lives, and so return at once.
#[cfg(feature = "tokio")]
pub(crate) fn is_running() -> bool {
    if FIRST.owner.load(Ordering::Relaxed) != std::process::id() {
        return false;
    }
    // Whoever holds the lock may be starting one.
    let Some(init) = FIRST.init.try_lock().ok().and_then(|init| init.clone()) else { return false };
    let dead = wait_readable(init.pidfd(), Duration::ZERO).unwrap_or(false);
    if dead {
        discard(&init);
    }
    !dead
}

/// Forgets an init that turned out to be dead.
fn discard(dead: &Arc<Init>) {
    let mut current = current();
    if current.as_ref().is_some_and(|init| Arc::ptr_eq(init, dead)) {
        *current = None;
    }
    // So that no zombie stays; somebody else may have reaped it.
    if let Ok(mut process) = dead.process.lock() {
        let _ = process.try_wait();
    }
}

/// Asks for a sandbox, of a fresh init if the present one is gone. Returns the
/// host's end of the reply socket.
pub(crate) fn start_sandbox(
    init: &Arc<Init>,
    plan: BorrowedFd<'_>,
    fds: &[BorrowedFd<'_>],
    network: u32,
    group: &mut Group,
) -> Result<OwnedFd> {
    let (ours, theirs) = sys::socket::pair().map_err(|e| Error::io("make", "a socket", e))?;
    let mut all = vec![theirs.as_fd(), plan];
    all.extend_from_slice(fds);
    let request = Request { kind: Request::START, command: network, value: group.number(), time: group.hierarchies() };
    let sent = match wait_readable(init.pidfd.as_fd(), Duration::ZERO) {
        Ok(true) => Err(io::ErrorKind::BrokenPipe.into()),
        _ => sys::socket::send(init.control.as_fd(), &request.encode(), &all),
    };
    match sent {
        Ok(()) => {
            group.hand_over();
            Ok(ours)
        }
        Err(error) if is_gone(&error) => {
            discard(init);
            Err(Error::new(ErrorKind::Lost, "cannot start the sandbox: init has ended"))
        }
        Err(error) => Err(Error::io("ask init for", "a sandbox", error)),
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

/// Waits until every sandbox of this process is torn down to the last mount, or the
/// time is over; true if it is. A run's processes are dead and its files out of
/// reach when it returns; what the kernel has to take apart afterwards takes some
/// milliseconds more. Control groups that were made ahead are removed too. For tests
/// that count what's left.
pub fn quiesce(limit: Duration) -> Result<bool> {
    let init = match &*current() {
        Some(init) => init.clone(),
        None => return Ok(true),
    };
    next::clear();
    init.release();
    let (ours, theirs) = sys::socket::pair().map_err(|e| Error::io("make", "a socket", e))?;
    let request = Request { kind: Request::QUIESCE, command: 0, value: 0, time: 0 };
    if let Err(error) = sys::socket::send(init.control.as_fd(), &request.encode(), &[theirs.as_fd()]) {
        return if is_gone(&error) { Ok(true) } else { Err(Error::io("ask", "init", error)) };
    }
    drop(theirs);
    // An answer or the end of the socket.
    let deadline = Instant::now().checked_add(limit);
    let quiet = wait_readable(ours.as_fd(), limit).map_err(|e| Error::io("wait for", "init", e))?;
    // What init doesn't know of: another thread of ours may just be letting go of them.
    while !init.places.has_settled() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        std::thread::sleep(Duration::from_millis(1));
    }
    if let Some(ranges) = &init.ranges {
        ranges.settle();
    }
    Ok(quiet)
}

/// Removes the control groups that wait to be used; whether there were any.
pub(crate) fn release() -> bool {
    current().as_ref().is_some_and(|init| init.release())
}

/// Waits for input or the end of input.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    // None is further away than the clock can tell.
    let deadline = Instant::now().checked_add(limit);
    loop {
        let mut polled = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut polled, deadline.map_or(PollTimeout::NONE, timeout_until)) {
            Ok(n) if n > 0 => return Ok(true),
            Ok(_) if deadline.is_some_and(|d| Instant::now() >= d) => return Ok(false),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Time left as poll wants it, rounded up so that it doesn't spin at the end.
pub(crate) fn timeout_until(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    PollTimeout::try_from(left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX)
}

impl Init {
    fn start() -> Result<Init> {
        spare_descriptors()?;
        let mut facts = Facts::gather();
        if !facts.privileged && !facts.nested && facts.uid == 0 {
            return Err(Error::unsupported(
                "cannot start as root without CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID, CAP_CHOWN, CAP_FOWNER, CAP_DAC_OVERRIDE and CAP_SYS_CHROOT \
                 (grant them, or run as an ordinary user)",
            ));
        }
        let ranges = if facts.privileged { Some(Arc::new(Ranges::open()?)) } else { None };
        let places = Arc::new(Places::find(facts.privileged));
        // Without it every run has a network namespace of its own.
        let counter = facts.privileged.then(|| Counter::start(&places).ok()).flatten();
        facts.counts_sockets = counter.is_some();
        // And so it was meanwhile.
        spare_descriptors()?;
        let mut why = String::from("/etc/subuid or /etc/subgid gives this user no ids (add a line with usermod --add-subuids)");
        let mut last = None;
        for (start, ids) in starts(&facts) {
            match attempt(start, ids, ranges.as_deref(), &places, counter.as_ref()) {
                Ok((control, process, pidfd)) => {
                    let subordinate = match (start, ids) {
                        (Start::Subordinate, Some(ids)) => Ok(ids),
                        (Start::Root, _) => Err("root maps ids without them".into()),
                        _ => Err(why),
                    };
                    let process = Mutex::new(process);
                    return Ok(Init {
                        control,
                        process,
                        pidfd,
                        facts,
                        start,
                        sight: Sight::now(),
                        subordinate,
                        ranges,
                        ahead: Ahead::default(),
                        places,
                        groups: AtomicU64::new(1),
                        seen: Mutex::default(),
                        unmapped_layers: AtomicBool::new(false),
                        files: Mutex::default(),
                    });
                }
                Err(error) => {
                    why = error.to_string();
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::unsupported("there's no way to start init")))
    }
}

/// A mount namespace and a root in it, by their inodes.
#[derive(Debug, PartialEq, Eq)]
struct Sight([u64; 3]);

impl Sight {
    /// The calling thread's.
    fn now() -> Option<Sight> {
        let (namespace, root) = (fs::metadata("/proc/thread-self/ns/mnt").ok()?, fs::metadata("/").ok()?);
        Some(Sight([namespace.ino(), root.dev(), root.ino()]))
    }
}

impl Init {
    /// Whether a path leads the calling thread where it leads init.
    pub(crate) fn sees_what_we_see(&self) -> bool {
        self.sight.is_some() && self.sight == Sight::now()
    }

    /// Removes the control groups that wait to be used; whether there were any.
    fn release(&self) -> bool {
        self.ahead.clear() | self.places.remove_spares()
    }

    /// How ids outside are called inside.
    pub(crate) fn id_map(&self, ids: Ids) -> IdMap {
        ids.map(&self.facts, self.subordinate.as_ref().ok())
    }

    /// Asks the process of [`Request::FILES`], which is started if need be, and returns how
    /// many bytes of `answer` it has filled.
    pub(crate) fn ask_for_files(&self, question: &[u8], fds: &[BorrowedFd<'_>], answer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut files = self.files.lock().unwrap_or_else(|e| e.into_inner());
        // Taken out, because after a failure the next answer might be this question's.
        let socket = match files.take() {
            Some(socket) if sys::socket::send(socket.as_fd(), question, fds).is_ok() => socket,
            _ => {
                let (ours, theirs) = sys::socket::pair()?;
                let request = Request { kind: Request::FILES, command: 0, value: 0, time: 0 };
                sys::socket::send(self.control.as_fd(), &request.encode(), &[theirs.as_fd()])?;
                drop(theirs);
                sys::socket::send(ours.as_fd(), question, fds)?;
                ours
            }
        };
        let (length, fds) = sys::socket::receive(socket.as_fd(), answer, true)?;
        if length == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        *files = Some(socket);
        Ok((length, fds))
    }

    /// Readable when init has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether a sandbox of this kind has been looked at in full; see
    /// [`Draft::kind`](crate::plan::Draft::kind).
    pub(crate) fn has_seen(&self, kind: u64) -> bool {
        self.seen.try_lock().is_ok_and(|seen| seen.contains(&kind))
    }

    /// It has, and was right.
    pub(crate) fn see(&self, kind: u64) {
        /// Recipes of one host; beyond them it's looked again.
        const MOST: usize = 1024;
        if let Ok(mut seen) = self.seen.try_lock() {
            if seen.len() >= MOST {
                seen.clear();
            }
            seen.insert(kind);
        }
    }

    /// Whether the writable layers of live sandboxes can be mapped to other ids, as far as
    /// is known.
    pub(crate) fn maps_layers(&self) -> bool {
        !self.unmapped_layers.load(Ordering::Relaxed)
    }

    /// They can't.
    pub(crate) fn maps_no_layers(&self) {
        self.unmapped_layers.store(true, Ordering::Relaxed);
    }

    /// A number that no other group of this init has.
    pub(crate) fn next_group(&self) -> u64 {
        self.groups.fetch_add(1, Ordering::Relaxed)
    }
}

/// What can't be opened for want of a descriptor would pass for what isn't there, a
/// control group or a range of ids, as long as this init lives. So there must be more than
/// looking takes at once.
fn spare_descriptors() -> Result<()> {
    const PAIRS: usize = 6;
    let pairs: io::Result<Vec<_>> = (0..PAIRS).map(|_| sys::socket::pair()).collect();
    pairs.map(drop).map_err(|e| Error::io("start", "init", e))
}

/// Starts init one way and greets it.
fn attempt(
    start: Start,
    ids: Option<Subordinate>,
    ranges: Option<&Ranges>,
    places: &Places,
    counter: Option<&Counter>,
) -> Result<(OwnedFd, Child, OwnedFd)> {
    let (control, theirs) = sys::socket::pair().map_err(|e| Error::io("make", "a socket", e))?;
    let mut process = execute(theirs)?;
    let pidfd = sys::pidfd::of(process.id()).map_err(|e| Error::io("open", "a pidfd of init (Linux 5.3)", e));
    match pidfd.and_then(|pidfd| greet(&control, &process, start, ids, ranges, places, counter).map(|()| pidfd)) {
        Ok(pidfd) => Ok((control, process, pidfd)),
        Err(error) => {
            drop(control);
            // It ends by itself at the end of its socket; ECHILD is somebody else's reaping.
            let _ = process.wait();
            Err(error)
        }
    }
}

fn greet(
    control: &OwnedFd,
    process: &Child,
    start: Start,
    ids: Option<Subordinate>,
    ranges: Option<&Ranges>,
    places: &Places,
    counter: Option<&Counter>,
) -> Result<()> {
    let draft = start_plan(start);
    let plan = sealed(c"cofferdam-plan", &draft.encode())?;
    let host = sys::pidfd::of_this_process().map_err(|e| Error::io("open", "a pidfd of this process (Linux 5.3)", e))?;
    let mut fds = vec![plan.as_fd(), host.as_fd()];
    fds.extend(counter.iter().flat_map(|counter| [counter.map.as_fd(), counter.link.as_fd()]));
    fds.extend(ranges.map(Ranges::as_fd));
    let directories = places.fds();
    let counts = counter.map_or(0, |_| Request::COUNTS_SOCKETS);
    let hello = Request { kind: Request::HELLO, command: (directories.len() as u32 / 2) | counts, value: build(), time: places.nonce };
    fds.extend(directories);
    let ended = || Error::new(ErrorKind::Setup, "cannot start init: it ended at once (was it killed?)");
    let talk = |e: io::Error| if is_gone(&e) { ended() } else { Error::io("talk to", "init", e) };
    sys::socket::send(control.as_fd(), &hello.encode(), &fds).map_err(talk)?;
    loop {
        if !wait_readable(control.as_fd(), Duration::from_secs(20)).map_err(talk)? {
            return Err(Error::new(ErrorKind::Setup, "cannot start init: no answer within 20 s"));
        }
        let mut bytes = [0; Report::SIZE];
        let (length, _) = sys::socket::receive(control.as_fd(), &mut bytes, true).map_err(talk)?;
        match Report::decode(&bytes[..length]) {
            Some(report) if report.kind == Report::MAPS => {
                write_maps(process.id(), ids)?;
                let mapped = Request { kind: Request::MAPPED, command: 0, value: 0, time: 0 };
                sys::socket::send(control.as_fd(), &mapped.encode(), &[]).map_err(talk)?;
            }
            Some(report) if report.kind == Report::HELLO && report.errno == 0 => return Ok(()),
            Some(report) => return Err(failure::error(&draft, None, &report)),
            None => return Err(ended()),
        }
    }
}

/// newuidmap(1) and newgidmap(1): setuid helpers that check /etc/subuid.
fn write_maps(pid: u32, ids: Option<Subordinate>) -> Result<()> {
    let Some(ids) = ids else { return Err(Error::unsupported("init asked for id maps that nobody wanted")) };
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    for (helper, own, first) in [("newuidmap", own.0, ids.uid), ("newgidmap", own.1, ids.gid)] {
        let arguments = [pid, 0, own, 1, 1, first, ids.count].map(|n| n.to_string());
        let output = Command::new(helper).args(arguments).stdin(Stdio::null()).output();
        let said = match output {
            Ok(output) if output.status.success() => continue,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_string(),
            // Somebody else reaped it (SIGCHLD ignored): whether it worked shows below.
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => String::from("its status was taken by the host program"),
            Err(error) => error.to_string(),
        };
        let map = if helper == "newuidmap" { "uid_map" } else { "gid_map" };
        if fs::read_to_string(format!("/proc/{pid}/{map}")).is_ok_and(|text| text.lines().count() == 2) {
            continue;
        }
        return Err(Error::unsupported(format!("cannot map subordinate ids: {helper}: {said} (install uidmap; it must be setuid root)")));
    }
    Ok(())
}

/// A memfd with these contents that nobody can change any more.
pub(crate) fn sealed(name: &std::ffi::CStr, contents: &[u8]) -> Result<OwnedFd> {
    let make = || -> io::Result<OwnedFd> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        // Not executable, where the kernel knows the difference (Linux 6.3).
        let fd = match memfd_create(name, flags | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL)) {
            Err(nix::errno::Errno::EINVAL) => memfd_create(name, flags)?,
            other => other?,
        };
        fill_and_seal(fd, contents)
    };
    make().map_err(|error| match error.raw_os_error() {
        Some(errno @ libc::EFBIG) => Error::failed(ErrorKind::Exhausted, "make", "a file in memory", errno, Some(FILE_SIZE)),
        _ => Error::io("make", "a file in memory", error),
    })
}

const FILE_SIZE: &str = "the host program's own limit on the size of files is too small for what a run needs (RLIMIT_FSIZE, `ulimit -f`)";

fn fill_and_seal(fd: OwnedFd, contents: &[u8]) -> io::Result<OwnedFd> {
    let file = File::from(fd);
    sys::write::unharmed(|| std::os::unix::fs::FileExt::write_all_at(&file, contents, 0))?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// Executes init with `control` as its standard input.
fn execute(control: OwnedFd) -> Result<Child> {
    let mut tried = Vec::new();
    let from_memory = executable_memfd().and_then(|fd| spawn(&fd, control.try_clone()?));
    match from_memory {
        Ok(child) => return Ok(child),
        // Elsewhere there'd be no more of it.
        Err(error) if error.raw_os_error().is_some_and(is_exhaustion) => return Err(Error::io("execute", "init", error)),
        Err(error) => tried.push(format!("from a memfd: {error}")),
    }
    // vm.memfd_noexec=2 refuses executable memfds: an unnamed file will do.
    for directory in [std::env::temp_dir(), PathBuf::from("/dev/shm"), PathBuf::from("/var/tmp"), PathBuf::from("/run")] {
        let attempt = unnamed_file(&directory).and_then(|fd| spawn(&fd, control.try_clone()?));
        match attempt {
            Ok(child) => return Ok(child),
            Err(error) => tried.push(format!("from {}: {error}", directory.display())),
        }
    }
    Err(Error::new(
        ErrorKind::Setup,
        format!("cannot execute init: {} (set vm.memfd_noexec=1 or TMPDIR to a place without noexec)", tried.join("; ")),
    ))
}

fn spawn(executable: &OwnedFd, control: OwnedFd) -> io::Result<Child> {
    // An absolute path, and no pre_exec, uid or current_dir: with those std would
    // fork. The descriptor is close-on-exec and still there when exec resolves it.
    Command::new(format!("/proc/self/fd/{}", executable.as_raw_fd())).arg0("cofferdam-init").env_clear().stdin(control).spawn()
}

fn executable_memfd() -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = match memfd_create(c"cofferdam-init", flags | MFdFlags::from_bits_retain(libc::MFD_EXEC)) {
        Err(nix::errno::Errno::EINVAL) => memfd_create(c"cofferdam-init", flags)?,
        other => other?,
    };
    fill_and_seal(fd, BINARY)
}

fn unnamed_file(directory: &std::path::Path) -> io::Result<OwnedFd> {
    let mut writer = OpenOptions::new().write(true).mode(0o500).custom_flags(libc::O_TMPFILE).open(directory)?;
    sys::write::unharmed(|| writer.write_all(BINARY))?;
    // Executing a file that is open for writing is ETXTBSY.
    let reader = File::open(format!("/proc/self/fd/{}", writer.as_raw_fd()))?;
    drop(writer);
    Ok(reader.into())
}
