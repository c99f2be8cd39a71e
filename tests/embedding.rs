//! The library inside hosts of all kinds, and what's left when they or parts of
//! the machinery die.

#![allow(unsafe_code, reason = "hosts fork and mount, which has no safe form")]

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::{Child, Command, ErrorKind, Exit, Sandbox, Stdio};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use support::host::{self, Host};
use support::processes::{self, Process, alive, descendants, eventually, inits, marked, marker, sandboxes};
use support::{Need, fresh_dir, is_root, shell};

const LONG: Duration = Duration::from_secs(30);
/// Nothing of a dead host lives longer.
const SOON: Duration = Duration::from_secs(2);

fn sandbox() -> Sandbox {
    Sandbox::new().wall_time(LONG)
}

/// That the library works, here and now.
#[track_caller]
fn works() {
    let out = sandbox().run(shell("read x; echo $x; exit 3").stdin("hello")).expect("it runs");
    assert_eq!((out.status, &*out.text()), (Exit::Code(3), "hello\n"));
    let mut child = sandbox().spawn(["sleep", "1000"]).expect("it starts");
    child.kill().expect("told");
    assert_eq!(child.wait().expect("a verdict"), Exit::Killed);
    assert_eq!(sandbox().run("no-such-program").expect_err("not there").kind(), ErrorKind::NotFound);
}

/// This host's only init.
#[track_caller]
fn own_init() -> Process {
    let inits = inits(std::process::id());
    assert_eq!(inits.len(), 1, "{inits:?}");
    inits[0].clone()
}

fn signal_to(process: &Process, signal: Signal) {
    kill(Pid::from_raw(process.pid as i32), signal).expect("a signal");
}

/// Ends this host's init, and only returns when it's dead.
fn end_init() {
    let init = own_init();
    signal_to(&init, Signal::SIGKILL);
    eventually(SOON, "init is gone", || alive(std::slice::from_ref(&init)).is_empty());
}

/// Forks. The child runs `body` and ends with 0 if that returned, 1 if it
/// panicked, SIGALRM if it hung.
fn fork(body: impl FnOnce()) -> Pid {
    // SAFETY: POSIX allows little between fork and exec in a program with threads;
    // that the library gets by with it is what's being tested.
    match unsafe { nix::unistd::fork() }.expect("a child") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // SAFETY: plain numbers.
            unsafe { libc::alarm(40) };
            let passed = catch_unwind(AssertUnwindSafe(body)).is_ok();
            // SAFETY: a plain number; no destructor of the parent's is to run here.
            unsafe { libc::_exit(i32::from(!passed)) }
        }
    }
}

#[track_caller]
fn forked_child_passed(child: Pid) {
    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
}

// Hosts

fn a_host_may_ignore_sigchld() {
    host::alone("a_host_may_ignore_sigchld", || {
        // SAFETY: no handler of ours is installed.
        unsafe { nix::sys::signal::signal(Signal::SIGCHLD, nix::sys::signal::SigHandler::SigIgn) }.expect("ignored");
        works();
        // init is nobody's zombie, and is replaced all the same.
        let first = own_init();
        end_init();
        works();
        assert_ne!(own_init(), first);
    });
}

fn a_host_may_reap_everything_itself() {
    host::alone("a_host_may_reap_everything_itself", || {
        let (reaped, stop) = (Arc::new(std::sync::Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
        let reaper = thread::spawn({
            let (reaped, stop) = (reaped.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    match waitpid(None, None) {
                        Ok(status) => drop(reaped.lock().expect("a lock").insert(status.pid().expect("a pid"))),
                        Err(Errno::ECHILD) => thread::sleep(Duration::from_millis(1)),
                        Err(errno) => panic!("{errno}"),
                    }
                }
            }
        });
        for _ in 0..3 {
            works();
            let init = own_init();
            signal_to(&init, Signal::SIGKILL);
            eventually(SOON, "the host's own loop reaps init", || reaped.lock().expect("a lock").contains(&Pid::from_raw(init.pid as i32)));
        }
        works();
        stop.store(true, Ordering::Relaxed);
        signal_to(&own_init(), Signal::SIGKILL);
        reaper.join().expect("a thread");
    });
}

fn a_thousand_threads_are_no_hindrance() {
    host::alone("a_thousand_threads_are_no_hindrance", || {
        let (gate, end) = (Arc::new(Barrier::new(1001)), Arc::new(Barrier::new(1001)));
        let park = |_| {
            let (gate, end) = (gate.clone(), end.clone());
            let start = thread::Builder::new().stack_size(64 * 1024).spawn(move || {
                gate.wait();
                end.wait();
            });
            start.expect("a thread")
        };
        let threads: Vec<_> = (0..1000).map(park).collect();
        gate.wait();
        works();
        end.wait();
        for thread in threads {
            thread.join().expect("a thread");
        }
    });
}

fn ten_thousand_descriptors_stay_with_the_host() {
    host::alone("ten_thousand_descriptors_stay_with_the_host", || {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        const MANY: u64 = 10_000;
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        if hard < MANY + 200 && setrlimit(Resource::RLIMIT_NOFILE, MANY + 200, MANY + 200).is_err() {
            println!("skipped: needs a hard limit of {} open files (ulimit -Hn says {hard})", MANY + 200);
            return;
        }
        setrlimit(Resource::RLIMIT_NOFILE, hard.max(MANY + 200), hard.max(MANY + 200)).expect("a limit");
        let null = File::open("/dev/null").expect("null");
        let mut files: Vec<File> = Vec::new();
        for i in 0..MANY {
            let copy = null.try_clone().expect("a copy");
            if i % 2 == 0 {
                // As a careless C library leaves them.
                nix::fcntl::fcntl(&copy, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("a flag");
            }
            files.push(copy);
        }
        works();
        let out = sandbox().run(["ls", "/proc/self/fd"]).expect("it runs");
        assert_eq!(out.text(), "0\n1\n2\n3\n", "3 is the directory that ls reads");
        if let Ok(kept) = fs::read_dir(format!("/proc/{}/fd", own_init().pid)) {
            let kept = kept.count();
            assert!(kept < 40, "init keeps {kept} descriptors");
        }
        assert_eq!(files.len() as u64, MANY);
    });
}

fn a_child_outlives_the_thread_that_started_it() {
    host::alone("a_child_outlives_the_thread_that_started_it", || {
        // The first use too: init must not die with the thread that started it.
        let start = || sandbox().spawn(shell("read x; echo $x; exit 7").stdin(Stdio::piped())).expect("it starts");
        let (mut child, tid) = thread::spawn(move || (start(), nix::unistd::gettid())).join().expect("a thread");
        eventually(LONG, "the thread is gone", || !Path::new(&format!("/proc/self/task/{tid}")).exists());
        let init = own_init();
        assert_eq!(child.try_wait().expect("alive"), None);
        child.stdin.as_mut().expect("a pipe").write_all(b"still here\n").expect("written");
        let out = thread::spawn(move || child.wait_with_output()).join().expect("a thread").expect("an outcome");
        assert_eq!((out.status, &*out.text()), (Exit::Code(7), "still here\n"));
        works();
        assert_eq!(own_init(), init);
    });
}

fn two_gibibytes_of_memory_are_no_hindrance() {
    host::alone("two_gibibytes_of_memory_are_no_hindrance", || {
        const SIZE: usize = 2 << 30;
        let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
        let available = text.lines().find_map(|l| l.strip_prefix("MemAvailable:")).and_then(|l| l.trim().strip_suffix(" kB"));
        let available: u64 = available.and_then(|n| n.parse().ok()).unwrap_or(0);
        if available < 4 << 20 {
            println!("skipped: needs 4 GiB of free memory, there are {available} KiB");
            return;
        }
        let mut memory = vec![0u8; SIZE];
        for page in memory.chunks_mut(4096) {
            page[0] = 1;
        }
        let resident = fs::read_to_string("/proc/self/statm").expect("statm");
        let pages: usize = resident.split(' ').nth(1).expect("a number").parse().expect("a number");
        assert!(pages * 4096 >= SIZE, "{pages} pages are resident");
        works();
        assert!(memory.iter().step_by(4096).all(|b| *b == 1));
    });
}

fn sixty_four_threads_run_at_once() {
    host::alone("sixty_four_threads_run_at_once", || {
        const THREADS: usize = 64;
        // The test's thread is one more: it looks at all of them while they live.
        let (live, go) = (Arc::new(Barrier::new(THREADS + 1)), Arc::new(Barrier::new(THREADS + 1)));
        let start = |i: usize| {
            let (live, go) = (live.clone(), go.clone());
            thread::spawn(move || {
                let script = format!("read x; echo {i} $x; exit {}", i + 1);
                let mut child = sandbox().spawn(shell(&script).stdin(Stdio::piped())).expect("it starts");
                let id = child.id().expect("alive");
                live.wait();
                go.wait();
                child.stdin.take().expect("a pipe").write_all(format!("in{i}\n").as_bytes()).expect("written");
                let out = child.wait_with_output().expect("an outcome");
                assert_eq!((out.status, &*out.text()), (Exit::Code(i as i32 + 1), &*format!("{i} in{i}\n")));
                for n in 0..3 {
                    let out = sandbox().run(shell(&format!("echo {i}-{n}"))).expect("it runs");
                    assert_eq!(out.text(), format!("{i}-{n}\n"));
                }
                id
            })
        };
        let threads: Vec<_> = (0..THREADS).map(start).collect();
        live.wait();
        // One init for all, one PID 1 and one shell for each.
        assert_eq!(sandboxes(processes::children(own_init().pid)).len(), THREADS);
        assert_eq!(sandboxes(descendants(own_init().pid)).len(), 2 * THREADS);
        go.wait();
        let ids: BTreeSet<u32> = threads.into_iter().map(|t| t.join().expect("a thread")).collect();
        assert_eq!(ids.len(), THREADS);
    });
}

/// Files in memory count too, and what's beyond the limit is a deadly signal.
fn a_tiny_limit_on_files_is_an_error_and_no_signal() {
    host::alone("a_tiny_limit_on_files_is_an_error_and_no_signal", || {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let limit = Resource::RLIMIT_FSIZE;
        let (soft, hard) = getrlimit(limit).expect("a limit");
        // Not even init fits: neither in memory nor in a file.
        setrlimit(limit, 1000, hard).expect("a limit");
        let error = sandbox().run("true").expect_err("no room");
        assert!(error.to_string().contains("File too large"), "{error}");
        setrlimit(limit, soft, hard).expect("a limit");
        works();
        // init does, but not what it's asked for.
        setrlimit(limit, 1000, hard).expect("a limit");
        for result in [sandbox().run("true"), sandbox().run(Command::new("cat").stdin(vec![0; 1 << 20]))] {
            let error = result.expect_err("no room");
            assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
            assert!(error.to_string().contains("RLIMIT_FSIZE"), "{error}");
        }
        setrlimit(limit, soft, hard).expect("a limit");
        // What is passed on into a file that may not grow is lost, and nothing else is.
        let relay = nix::sys::memfd::memfd_create(c"relay", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("a file");
        let mut child =
            sandbox().spawn(shell("read x; head -c 100000 /dev/zero; exit 4").stdin(Stdio::piped()).stdout(Stdio::relay(relay)));
        let child = child.as_mut().expect("it starts");
        setrlimit(limit, 1000, hard).expect("a limit");
        assert_eq!(child.wait().expect("a verdict"), Exit::Code(4));
        setrlimit(limit, soft, hard).expect("a limit");
        works();
    });
}

// Forks

fn a_forked_child_has_an_init_of_its_own() {
    host::alone("a_forked_child_has_an_init_of_its_own", || {
        works();
        let ours = own_init();
        let mut running = sandbox().spawn(shell("read x; exit 5").stdin(Stdio::piped())).expect("it starts");
        let children: Vec<Pid> = (0..4)
            .map(|_| {
                fork(|| {
                    works();
                    assert_ne!(own_init(), ours);
                })
            })
            .collect();
        works();
        children.into_iter().for_each(forked_child_passed);
        assert_eq!(running.try_wait().expect("alive"), None);
        running.stdin = None;
        assert_eq!(running.wait().expect("a verdict"), Exit::Code(5));
        assert_eq!(own_init(), ours);
        works();
    });
}

/// A thread that starts init holds a lock that a forked child can never get.
fn a_child_forked_while_init_starts_is_not_stuck() {
    host::alone("a_child_forked_while_init_starts_is_not_stuck", || {
        let stop = Arc::new(AtomicBool::new(false));
        let busy = thread::spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    works();
                    end_init();
                }
            }
        });
        let children: Vec<Pid> = (0..30)
            .map(|_| {
                thread::sleep(Duration::from_millis(1));
                fork(works)
            })
            .collect();
        children.into_iter().for_each(forked_child_passed);
        stop.store(true, Ordering::Relaxed);
        busy.join().expect("a thread");
    });
}

/// What a thread forks while another one loads a module gets a broken dynamic loader:
/// looking up a user's name would load some (nsswitch.conf(5)).
fn no_modules_are_loaded_into_the_host() {
    host::alone("no_modules_are_loaded_into_the_host", || {
        let mapped = || -> BTreeSet<String> {
            let maps = fs::read_to_string("/proc/self/maps").expect("our mappings");
            maps.lines().filter_map(|line| line.find('/').map(|at| line[at..].to_string())).filter(|file| file.contains(".so")).collect()
        };
        let before = mapped();
        works();
        Sandbox::new().check().expect("a report");
        assert_eq!(mapped(), before);
    });
}

/// Such a child may have got a copy of init's end of its socket.
fn a_child_forked_while_init_starts_does_not_hide_its_end() {
    host::alone("a_child_forked_while_init_starts_does_not_hide_its_end", || {
        for _ in 0..5 {
            let first = thread::spawn(works);
            let mut children = Vec::new();
            while !first.is_finished() && children.len() < 100 {
                children.push(fork(|| thread::sleep(LONG)));
            }
            first.join().expect("a thread");
            end_init();
            works();
            end_init();
            for child in children {
                kill(child, Signal::SIGKILL).expect("a signal");
                waitpid(child, None).expect("a status");
            }
        }
    });
}

fn a_forked_childs_copy_of_a_child_can_be_dropped() {
    host::alone("a_forked_childs_copy_of_a_child_can_be_dropped", || {
        let mut child = Some(sandbox().spawn(shell("read x; exit 5").stdin(Stdio::piped())).expect("it starts"));
        // Root claims ids for each sandbox by a lock of an open file description.
        let claims = || -> usize {
            let infos = fs::read_dir("/proc/self/fdinfo").expect("fdinfo").flatten();
            infos.map(|i| fs::read_to_string(i.path()).unwrap_or_default().matches("OFDLCK").count()).sum()
        };
        let before = claims();
        assert_eq!(before, usize::from(is_root()));
        forked_child_passed(fork(|| drop(child.take())));
        assert_eq!(claims(), before);
        let mut child: Child = child.expect("ours is still here");
        assert_eq!(child.try_wait().expect("alive"), None);
        child.stdin = None;
        assert_eq!(child.wait().expect("a verdict"), Exit::Code(5));
    });
}

// Deaths

/// A host with sandboxes in all states: one that is waited for, one that isn't,
/// one whose processes have left their session.
fn busy_host(marker: &str) {
    let (waited, daemons) = (format!("sleep {marker}"), format!("setsid -f sleep {marker}; trap '' TERM; exec sleep {marker}"));
    thread::spawn(move || sandbox().run(shell(&waited)));
    let children = [sandbox().spawn(shell(&daemons)), sandbox().spawn(["sleep", marker])].map(|c| c.expect("it starts"));
    eventually(LONG, "all sleep", || marked(&format!("sleep\0{marker}")).len() == 4);
    std::mem::forget(children);
}

/// Kills a host that [`busy_host`] made; within two seconds nothing of it is left.
fn nothing_is_left_of(mut host: Host, but: &[u32]) {
    let marker = host.hear("ready ");
    let below: Vec<Process> = descendants(host.pid()).into_iter().filter(|p| !but.contains(&p.pid)).collect();
    // init, a PID 1 for each of three sandboxes, and what runs in them.
    assert!(below.len() >= 8, "{below:?}");
    assert_eq!(below.iter().filter(|p| p.name == "cofferdam-init").count(), 4, "{below:?}");
    let began = Instant::now();
    host.kill();
    eventually(SOON, "everything of the host's is gone", || alive(&below).is_empty() && marked(&marker).is_empty());
    assert!(began.elapsed() < SOON + SOON / 10);
}

fn nothing_is_left_of_a_killed_host() {
    if host::inside() {
        let marker = marker();
        busy_host(&marker);
        host::say(&format!("ready {marker}"));
        thread::sleep(2 * LONG);
        return;
    }
    nothing_is_left_of(Host::start("nothing_is_left_of_a_killed_host"), &[]);
}

fn nothing_is_left_of_a_killed_host_whose_descriptors_live_on() {
    if host::inside() {
        let marker = marker();
        busy_host(&marker);
        // It holds copies of all our sockets, whose end init will therefore not see.
        let copy = fork(|| thread::sleep(LONG));
        host::say(&format!("copy {copy}"));
        host::say(&format!("ready {marker}"));
        thread::sleep(2 * LONG);
        return;
    }
    let mut host = Host::start("nothing_is_left_of_a_killed_host_whose_descriptors_live_on");
    let copy: u32 = host.hear("copy ").parse().expect("a pid");
    host.hear("ready ");
    let process = processes::find(copy).expect("it lives");
    nothing_is_left_of(host, &[copy]);
    assert_eq!(alive(std::slice::from_ref(&process)).len(), 1, "the copy has lived on");
    signal_to(&process, Signal::SIGKILL);
}

fn ctrl_c_is_the_hosts_alone() {
    if host::inside() {
        let mut interrupt = SigSet::empty();
        interrupt.add(Signal::SIGINT);
        interrupt.thread_block().expect("blocked");
        works();
        let init = own_init();
        let mut child = sandbox().spawn(shell("read x; exit 5").stdin(Stdio::piped())).expect("it starts");
        host::say("ready");
        assert_eq!(interrupt.wait(), Ok(Signal::SIGINT));
        works();
        assert_eq!(own_init(), init, "init lives");
        assert_eq!(child.try_wait().expect("alive"), None);
        child.stdin = None;
        assert_eq!(child.wait().expect("a verdict"), Exit::Code(5));
        return;
    }
    let mut host = Host::start("ctrl_c_is_the_hosts_alone");
    host.hear("ready");
    killpg(Pid::from_raw(host.pid() as i32), Signal::SIGINT).expect("a signal");
    host.success();
}

fn a_killed_init_is_a_loss_and_is_replaced() {
    host::alone("a_killed_init_is_a_loss_and_is_replaced", || {
        let marker = marker();
        let sleep = || sandbox().spawn(shell(&format!("sleep {marker}; :"))).expect("it starts");
        let mut children = [sleep(), sleep(), sleep()];
        let line = format!("sleep {marker}; :");
        let run = thread::spawn(move || sandbox().run(shell(&line)));
        eventually(LONG, "four sleep", || marked(&format!("sleep\0{marker}")).len() == 4);
        let init = own_init();
        signal_to(&init, Signal::SIGKILL);
        for child in &mut children {
            assert_eq!(child.wait().expect_err("lost").kind(), ErrorKind::Lost);
            assert_eq!(child.try_wait().expect_err("still lost").kind(), ErrorKind::Lost);
            child.kill().expect("harmless");
        }
        assert_eq!(run.join().expect("a thread").expect_err("lost").kind(), ErrorKind::Lost);
        works();
        assert_ne!(own_init(), init);
        eventually(SOON, "nothing of the old sandboxes is left", || marked(&marker).is_empty());
        assert!(children.iter().all(|child| child.id().is_none()));
        drop(children);
        works();
    });
}

/// init learns of several things at once when it has been kept from looking.
fn a_sandbox_is_not_killed_in_the_place_of_one_that_ended() {
    host::alone("a_sandbox_is_not_killed_in_the_place_of_one_that_ended", || {
        let mut first = sandbox().spawn(shell("read x").stdin(Stdio::piped())).expect("it starts");
        let init = own_init();
        eventually(LONG, "only PID 1 is left of the start", || sandboxes(processes::children(init.pid)).len() == 1);
        signal_to(&init, Signal::SIGSTOP);
        eventually(LONG, "init stops", || fs::read_to_string(format!("/proc/{}/status", init.pid)).is_ok_and(|s| s.contains("State:\tT")));
        // The order matters: PID 1 dies, a sandbox is asked for, the first one's
        // socket is closed.
        assert_eq!(first.wait().expect("a verdict"), Exit::Code(1));
        let second = thread::spawn(|| sandbox().spawn(shell("read x; exit 5").stdin(Stdio::piped())));
        eventually(LONG, "the second waits for its start", || {
            let tasks = fs::read_dir("/proc/self/task").expect("tasks").flatten();
            let calls = tasks.map(|t| fs::read_to_string(t.path().join("syscall")).unwrap_or_default());
            let polls = [libc::SYS_ppoll, POLL].map(|n| format!("{n} "));
            calls.filter(|c| polls.iter().any(|p| c.starts_with(p))).count() == 1
        });
        drop(first);
        signal_to(&init, Signal::SIGCONT);
        let mut second = second.join().expect("a thread").expect("it starts");
        works();
        second.stdin = None;
        assert_eq!(second.wait().expect("a verdict"), Exit::Code(5));
    });
}

#[cfg(target_arch = "x86_64")]
const POLL: i64 = libc::SYS_poll;
#[cfg(not(target_arch = "x86_64"))]
const POLL: i64 = libc::SYS_ppoll;

fn a_killed_pid_1_is_a_loss_and_not_a_signal_of_the_command() {
    let marker = marker();
    let mut child = sandbox().spawn(shell(&format!("sleep {marker} & sleep {marker}; :"))).expect("it starts");
    let command = processes::find(child.id().expect("alive")).expect("alive");
    let pid1 = processes::find(command.parent).expect("alive");
    assert_eq!(pid1.name, "cofferdam-init");
    signal_to(&pid1, Signal::SIGKILL);
    let error = child.wait().expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(error.to_string().contains("killed from outside"), "{error}");
    assert_eq!(marked(&marker), []);
    works();
}

fn a_dropped_child_is_dead_on_return() {
    for _ in 0..10 {
        let marker = marker();
        let script = format!("setsid -f sleep {marker}; trap '' TERM HUP; sleep {marker} & sleep {marker}; :");
        let child = sandbox().spawn(shell(&script)).expect("it starts");
        eventually(LONG, "three sleep", || marked(&format!("sleep\0{marker}")).len() == 3);
        let pid1 = processes::find(child.id().expect("alive")).expect("alive").parent;
        let below = [descendants(pid1), processes::find(pid1).into_iter().collect()].concat();
        assert_eq!(below.len(), 5, "{below:?}");
        drop(child);
        assert_eq!((alive(&below), marked(&marker)), (vec![], vec![]));
    }
}

/// While init can't reap its processes they may still use them.
fn ids_of_a_sandbox_that_does_not_end_stay_its_own() {
    host::alone("ids_of_a_sandbox_that_does_not_end_stay_its_own", || {
        // The last range that there is.
        let only = || sandbox().id_base(65_534 << 16);
        let child = only().spawn(["sleep", "100"]).expect("it starts");
        let init = own_init();
        signal_to(&init, Signal::SIGSTOP);
        drop(child);
        let error = only().spawn(["sleep", "100"]).expect_err("no ids");
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
        signal_to(&init, Signal::SIGCONT);
        eventually(LONG, "it has ended", || only().run("true").is_ok());
        works();
    });
}

// A file system that never answers

/// Mounts a FUSE file system without a server, and returns what would be its end.
fn mute_file_system(at: &Path) -> File {
    let device = File::options().read(true).write(true).open("/dev/fuse").expect("the device");
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let [at, options] = [at.to_str().expect("text"), &options].map(|s| std::ffi::CString::new(s).expect("no NUL"));
    // SAFETY: C strings that live.
    let result = unsafe { libc::mount(c"mute".as_ptr(), at.as_ptr(), c"fuse".as_ptr(), libc::MS_NODEV, options.as_ptr().cast()) };
    assert_eq!(Errno::result(result), Ok(0));
    device
}

fn a_hung_bind_delays_no_other_sandbox() {
    if host::inside() {
        // SAFETY: plain numbers and C strings.
        let private = unsafe {
            Errno::result(libc::unshare(libc::CLONE_NEWNS)).and_then(|_| {
                Errno::result(libc::mount(
                    std::ptr::null(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ))
            })
        };
        private.expect("a mount namespace of our own");
        let (first, second) = (fresh_dir("mute-"), fresh_dir("mute-"));
        let (device, _other) = (mute_file_system(&first), mute_file_system(&second));
        works();
        // The spawn server and PID 1s look the same; the one that hangs has no
        // sandbox yet, so it's init's direct child.
        let hang = |at: PathBuf| thread::spawn(move || sandbox().bind(at.join("below"), "/mute").spawn("true").map(drop));
        let hung = [hang(first), hang(second)];
        let init = own_init();
        let waits = |p: &Process| {
            fs::read_to_string(format!("/proc/{}/syscall", p.pid)).is_ok_and(|s| s.starts_with(&format!("{} ", libc::SYS_open_tree)))
        };
        eventually(LONG, "two hang", || processes::children(init.pid).iter().filter(|p| waits(p)).count() == 2);
        let began = Instant::now();
        for _ in 0..20 {
            works();
        }
        assert!(began.elapsed() < LONG / 3, "{:?}", began.elapsed());
        assert!(hung.iter().all(|h| !h.is_finished()), "it did not hang");
        // The kernel ends what waits for a server that is gone: told as what it is.
        let [hung, _forever] = hung;
        drop(device);
        let error = hung.join().expect("a thread").expect_err("no such file system any more");
        assert_eq!(error.kind(), ErrorKind::Mount, "{error}");
        assert!(error.to_string().contains("/below"), "{error}");
        // The other one's server "lives" on, so that only SIGKILL can end the wait.
        let copy = fork(|| thread::sleep(LONG));
        host::say(&format!("copy {copy}"));
        host::say("ready");
        thread::sleep(2 * LONG);
        return;
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        println!("skipped: needs /dev/fuse: {error}");
        return;
    }
    let mut host = Host::start("a_hung_bind_delays_no_other_sandbox");
    let copy: u32 = host.hear("copy ").parse().expect("a pid");
    host.hear("ready");
    let below = || -> Vec<Process> { descendants(host.pid()).into_iter().filter(|p| p.pid != copy).collect() };
    // init and the child that hangs, when what was made ahead has gone.
    eventually(LONG, "only one hangs", || sandboxes(below()).len() == 2);
    let below = below();
    host.kill();
    let result = catch_unwind(|| eventually(SOON, "everything of the host's is gone", || alive(&below).is_empty()));
    kill(Pid::from_raw(copy as i32), Signal::SIGKILL).expect("a signal");
    assert!(result.is_ok(), "left: {:?}", alive(&below));
}

// Hosts in other languages

/// The crate as a shared library with a C interface, built as a user of the crate
/// would; where everybody can read it.
fn shared_library() -> PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let package = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ffi");
        fs::create_dir_all(&package).expect("a directory");
        // A package made here and not kept in tests/: cargo leaves packages within
        // a package out when it publishes that.
        let manifest = format!(
            "[package]\nname = \"cofferdam-ffi\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n[lib]\npath = {:?}\ncrate-type = [\"cdylib\"]\n[dependencies]\ncofferdam = {{ path = {root:?} }}\n",
            root.join("tests/ffi/lib.rs")
        );
        fs::write(package.join("Cargo.toml"), manifest).expect("a manifest");
        // The versions that the crate itself was built with: nothing is downloaded.
        let _ = fs::copy(root.join("Cargo.lock"), package.join("Cargo.lock"));
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = std::process::Command::new(cargo);
        command.args(["build", "--quiet", "--offline", "--target-dir"]).arg(package.join("target")).current_dir(&package);
        let output = command.output().expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        support::copy_for_all(&package.join("target/debug/libcofferdam_ffi.so"))
    };
    LIBRARY.get_or_init(build).clone()
}

/// Runs a program of another language as a host, once for each user we can be.
fn foreign_host(program: &Path, arguments: &[&Path]) {
    let own = std::process::Command::new(program);
    let others = is_root().then(|| support::ordinary_command(program));
    for mut command in [Some(own), others].into_iter().flatten() {
        command.args(arguments);
        let log = Host::start_command(command).success();
        assert!(log.contains("host: done"), "{log}");
    }
}

fn a_c_host_with_deadly_sigpipe_survives() {
    let library = shared_library();
    let source = include_str!("ffi/host.c");
    let program = support::compile_c("host", source, &[library.to_str().expect("text")]);
    foreign_host(&program, &[]);
}

fn a_python_host_has_threads_and_forks() {
    let script = fresh_dir("python-").join("host.py");
    fs::write(&script, include_str!("ffi/host.py")).expect("a script");
    // Version managers' wrappers don't work for other users.
    let system = PathBuf::from("/usr/bin/python3");
    let python = if system.exists() { system } else { support::which("python3").expect("python3") };
    foreign_host(&python, &[&script, &shared_library()]);
}

fn main() {
    let mut tests = vec![
        test!(a_host_may_ignore_sigchld),
        test!(a_host_may_reap_everything_itself),
        test!(a_thousand_threads_are_no_hindrance),
        test!(ten_thousand_descriptors_stay_with_the_host),
        test!(a_child_outlives_the_thread_that_started_it),
        test!(two_gibibytes_of_memory_are_no_hindrance),
        test!(sixty_four_threads_run_at_once),
        test!(a_tiny_limit_on_files_is_an_error_and_no_signal),
        test!(a_forked_child_has_an_init_of_its_own),
        test!(a_child_forked_while_init_starts_is_not_stuck),
        test!(no_modules_are_loaded_into_the_host),
        test!(a_child_forked_while_init_starts_does_not_hide_its_end),
        test!(a_forked_childs_copy_of_a_child_can_be_dropped),
        test!(nothing_is_left_of_a_killed_host),
        test!(nothing_is_left_of_a_killed_host_whose_descriptors_live_on),
        test!(ctrl_c_is_the_hosts_alone),
        test!(a_killed_init_is_a_loss_and_is_replaced),
        test!(a_sandbox_is_not_killed_in_the_place_of_one_that_ended),
        test!(a_killed_pid_1_is_a_loss_and_not_a_signal_of_the_command),
        test!(a_dropped_child_is_dead_on_return),
        test!(ids_of_a_sandbox_that_does_not_end_stay_its_own, root),
        test!(a_hung_bind_delays_no_other_sandbox, root),
    ];
    // These see to both users themselves: only one of them can build.
    for mut test in [
        test!(a_c_host_with_deadly_sigpipe_survives, Need::Tool("gcc"), Need::Tool("cargo")),
        test!(a_python_host_has_threads_and_forks, Need::Tool("python3"), Need::Tool("cargo")),
    ] {
        test.both = false;
        tests.push(test);
    }
    support::main(tests)
}
