//! What thousands of runs leave behind: nothing.

mod support;

use std::path::Path;
use std::thread;
use std::time::Duration;

use cofferdam::{Command, ErrorKind, Exit, Image, Limit, Sandbox, Stdio};
use support::inventory::{inventory, nothing_more_than};
use support::processes::{alive, children, eventually, inits};
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
        nothing_more_than(&before);
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

/// The first process of the next sandbox and its outer child are nobody's: their death is no
/// reason to fail.
fn a_first_process_made_ahead_may_be_killed() {
    host::alone("a_first_process_made_ahead_may_be_killed", || {
        let sandbox = Sandbox::new();
        sandbox.run("true").expect("it runs");
        let init = inits(std::process::id()).pop().expect("an init").pid;
        let named = |name| children(init).into_iter().filter(|p| p.name == name).collect::<Vec<_>>();
        let killed = |name| {
            let found = named(name);
            for process in &found {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid as i32), nix::sys::signal::Signal::SIGKILL);
            }
            found
        };
        for _ in 0..50 {
            killed("cofferdam-next");
            // Whoever is given a job when it's as good as dead takes the sandbox along.
            let outer = killed("cofferdam-outer");
            eventually(Duration::from_secs(30), "it's dead", || alive(&outer).is_empty());
            assert!(sandbox.run("true").expect("it runs").success());
        }
        assert!(cofferdam::quiesce(Duration::from_secs(30)).expect("an answer"));
        assert_eq!(children(init).into_iter().filter(|p| p.name != "cofferdam-net").count(), 0);
    });
}

fn main() {
    support::main(vec![
        test!(a_first_process_made_ahead_may_be_killed),
        test!(two_thousand_runs_leave_nothing_behind),
        test!(runs_in_an_image_leave_nothing_behind, Need::Tool("busybox"), Need::Overlay),
    ])
}
