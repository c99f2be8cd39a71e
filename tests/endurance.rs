//! What thousands of runs leave behind: nothing.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::{Command, ErrorKind, Exit, Image, Limit, Sandbox, Stdio};
use support::processes::{children, inits};
use support::{Need, host};

const THREADS: usize = 4;

/// One run, every second of which fails or is ended.
fn one(sandbox: &Sandbox, i: usize) {
    let sleep = || sandbox.spawn(Command::new("sleep").arg("1000")).expect("it starts");
    match i % 12 {
        1 => assert_eq!(sandbox.run("no-such-program").expect_err("not there").kind(), ErrorKind::NotFound),
        3 => {
            let mut child = sleep();
            child.kill().expect("told");
            assert_eq!(child.wait().expect("a verdict"), Exit::Killed);
        }
        5 => {
            let out = sandbox.clone().wall_time(Duration::from_millis(1)).run(["sleep", "1000"]).expect("it runs");
            assert_eq!(out.status, Exit::Limit(Limit::WallTime));
        }
        7 => drop(sleep()),
        9 => {
            let out = sandbox.clone().output(10).run(["yes"]).expect("it runs");
            assert_eq!(out.status, Exit::Limit(Limit::Output));
        }
        11 => {
            let error = sandbox.clone().bind("/no/such/place", "/x").spawn("true").expect_err("no such bind");
            assert_eq!(error.kind(), ErrorKind::Mount);
        }
        // Files, streams and mounts of all kinds.
        2 => {
            let sandbox = sandbox.clone().file("/a/b", "x").tmpfs("/t", 1 << 20).bind("/usr/bin", "/u");
            let mut child = sandbox.spawn(Command::new("cat").stdin("text").stdout(Stdio::piped())).expect("it starts");
            assert_eq!(child.wait().expect("a verdict"), Exit::Code(0));
        }
        _ => assert_eq!(sandbox.run("true").expect("it runs").status, Exit::Code(0)),
    }
}

/// Everything that runs could leave, counted.
fn inventory() -> BTreeMap<String, usize> {
    let count = |path: PathBuf| fs::read_dir(path).map_or(0, Iterator::count);
    let lines = |path: PathBuf| fs::read_to_string(path).map_or(0, |text| text.lines().count());
    let own = std::process::id();
    let mut all = BTreeMap::from([
        ("descriptors".into(), count("/proc/self/fd".into())),
        ("mounts".into(), lines("/proc/self/mountinfo".into())),
        ("threads".into(), count("/proc/self/task".into())),
        ("children".into(), children(own).len()),
        ("temporary files".into(), count(std::env::temp_dir())),
        ("files in /dev/shm".into(), ours_in("/dev/shm")),
        ("files in /tmp".into(), ours_in("/tmp")),
        ("files in /run/cofferdam".into(), count("/run/cofferdam".into())),
        ("control groups".into(), own_groups().into_iter().map(|group| directories(group, &own_homes())).sum()),
        ("claims on ids".into(), claims()),
    ]);
    for init in inits(own) {
        let proc = PathBuf::from(format!("/proc/{}", init.pid));
        all.insert("descriptors of init".into(), count(proc.join("fd")));
        all.insert("mounts of init".into(), lines(proc.join("mountinfo")));
        all.insert("processes below init".into(), children(init.pid).len());
    }
    all
}

/// Files with our name that aren't those of some test's.
fn ours_in(directory: &str) -> usize {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let ours = |name: &OsString| name.to_string_lossy().contains("cofferdam") && !name.to_string_lossy().starts_with("cofferdam-test-");
    names.filter(ours).count()
}

/// Where groups of ours would be: below the one that we're in, in each hierarchy.
fn own_groups() -> Vec<PathBuf> {
    let (groups, mounts) =
        (fs::read_to_string("/proc/self/cgroup").unwrap_or_default(), fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    let points = mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let paths: Vec<&str> = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
    let all = points.flat_map(|point| paths.iter().map(move |path| Path::new(point).join(path.trim_start_matches('/'))));
    let mut all: Vec<PathBuf> = all.filter(|path| path.is_dir()).collect();
    all.sort();
    all.dedup();
    all
}

/// Names of the directories of this host's groups, of which init has descriptors.
fn own_homes() -> BTreeSet<OsString> {
    let fds = inits(std::process::id()).into_iter().flat_map(|init| fs::read_dir(format!("/proc/{}/fd", init.pid)).into_iter().flatten());
    let links = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    let homes = links.filter_map(|link| link.file_name().map(OsString::from));
    homes.filter(|name| name.to_string_lossy().starts_with("cofferdam-")).collect()
}

/// Directories below, but for those of other hosts.
fn directories(below: PathBuf, homes: &BTreeSet<OsString>) -> usize {
    let entries = fs::read_dir(below).into_iter().flatten().flatten();
    let own = |name: &OsString| !name.to_string_lossy().starts_with("cofferdam-") || homes.contains(name);
    let entries = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()) && own(&e.file_name()));
    entries.map(|e| 1 + directories(e.path(), homes)).sum()
}

/// Ranges of ids that this process has locked.
fn claims() -> usize {
    let infos = fs::read_dir("/proc/self/fdinfo").expect("fdinfo").flatten();
    infos.map(|info| fs::read_to_string(info.path()).unwrap_or_default().matches("OFDLCK").count()).sum()
}

fn endure(name: &str, runs: usize, sandbox: fn() -> Sandbox) {
    nothing_is_left_of(name, sandbox, |sandbox| {
        thread::scope(|scope| {
            for first in 0..THREADS {
                scope.spawn(move || (first..runs).step_by(THREADS).for_each(|i| one(sandbox, i)));
            }
        });
    });
}

/// Does something in a host of its own, and compares what there is with what was before.
fn nothing_is_left_of(name: &str, sandbox: fn() -> Sandbox, work: impl FnOnce(&Sandbox)) {
    host::alone(name, || {
        let sandbox = sandbox();
        let quiet = || cofferdam::quiesce(Duration::from_secs(30)).expect("an answer");
        // The first runs make what stays: init, its descriptors, and the process that
        // makes network namespaces.
        (0..12).for_each(|i| one(&sandbox, i));
        assert!(quiet());
        let before = inventory();
        // A directory of the host's own, so that nobody else's files are counted.
        assert_ne!(std::env::temp_dir(), Path::new("/tmp"));
        assert_eq!((before["children"], before["processes below init"], before["claims on ids"]), (1, 1, 0), "{before:?}");
        work(&sandbox);
        assert!(quiet());
        // Others may have files and groups for a moment where we look too, and init
        // the socket through which it has just answered; what is lost stays.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let after = inventory();
            let more: Vec<_> = after.iter().filter(|(what, n)| before.get(*what).is_none_or(|b| b < n)).collect();
            if more.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{more:?} instead of {before:?}");
            thread::sleep(Duration::from_millis(50));
        }
    });
}

fn two_thousand_runs_leave_nothing_behind() {
    endure("two_thousand_runs_leave_nothing_behind", 2000, || Sandbox::new().wall_time(Duration::from_secs(60)));
}

fn runs_in_an_image_leave_nothing_behind() {
    endure("runs_in_an_image_leave_nothing_behind", 600, || {
        Sandbox::new().rootfs(Image::dir(support::busybox_root())).wall_time(Duration::from_secs(60))
    });
}

/// Makes each step of the plan fail once, for a run and for a live sandbox.
fn fail_step_by_step(sandbox: &Sandbox) {
    let mut tolerated = Vec::new();
    for number in 0.. {
        let failing = sandbox.clone().with_failing_step(number);
        let error = match failing.run("true") {
            Ok(out) => {
                assert!(out.success(), "step {number}: {out}");
                tolerated.push(number);
                continue;
            }
            Err(error) => error,
        };
        let text = error.to_string();
        if text.contains("the plan has no step") {
            break;
        }
        assert_ne!(error.kind(), ErrorKind::Lost, "step {number}: {text}");
        assert!(text.starts_with("cannot ") && text.contains("Function not implemented"), "step {number}: {text}");
        if let Err(error) = failing.start() {
            assert!(error.to_string().starts_with("cannot ") || error.to_string().contains("no step"), "step {number}: {error}");
        }
        if number % 8 == 0 {
            assert!(sandbox.run("true").expect("it runs").success(), "after step {number}");
        }
    }
    // What a kernel may lack, and the outcome tells.
    let plan = sandbox.explain().expect("a plan").to_string();
    for number in tolerated {
        let line = plan.lines().nth(number).expect("a step");
        assert!(["a session keyring", "/proc", "Landlock"].iter().any(|what| line.contains(what)), "{line} may fail unnoticed");
    }
}

fn any_step_may_fail() {
    nothing_is_left_of(
        "any_step_may_fail",
        || Sandbox::new().tmpfs("/t", 1 << 20).file("/f", "text").bind("/usr/bin", "/b"),
        fail_step_by_step,
    );
}

fn any_step_of_an_images_may_fail() {
    nothing_is_left_of(
        "any_step_of_an_images_may_fail",
        || Sandbox::new().rootfs(Image::dir(support::busybox_root())).user(1000, 1000),
        fail_step_by_step,
    );
}

/// The first process of the next sandbox is nobody's: its death is no reason to fail.
fn a_first_process_made_ahead_may_be_killed() {
    host::alone("a_first_process_made_ahead_may_be_killed", || {
        let sandbox = Sandbox::new();
        sandbox.run("true").expect("it runs");
        let init = inits(std::process::id()).pop().expect("an init").pid;
        for _ in 0..50 {
            for next in children(init).into_iter().filter(|p| ["cofferdam-next", "cofferdam-outer"].contains(&&*p.name)) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(next.pid as i32), nix::sys::signal::Signal::SIGKILL);
            }
            assert!(sandbox.run("true").expect("it runs").success());
        }
        assert!(cofferdam::quiesce(Duration::from_secs(30)).expect("an answer"));
        assert_eq!(children(init).into_iter().filter(|p| p.name != "cofferdam-net").count(), 0);
    });
}

fn main() {
    support::main(vec![
        test!(a_first_process_made_ahead_may_be_killed),
        test!(any_step_may_fail),
        test!(any_step_of_an_images_may_fail, Need::Tool("busybox"), Need::Overlay),
        test!(two_thousand_runs_leave_nothing_behind),
        test!(runs_in_an_image_leave_nothing_behind, Need::Tool("busybox"), Need::Overlay),
    ])
}
