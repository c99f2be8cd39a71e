//! Sandboxes prepared ahead are as fresh, as tight and as mortal as others.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::thread;
use std::time::Duration;

use cofferdam::{Command, ErrorKind, Exit, InstancePool, Limit, MIB, Pool, Sandbox, Stdio, Syscalls};
use support::host;
use support::processes::{children, inits, sandboxes};

const LONG: Duration = Duration::from_secs(60);

fn recipe() -> Sandbox {
    Sandbox::new().wall_time(support::patience(Duration::from_secs(30)))
}

fn full(sandbox: Sandbox, size: usize) -> Pool {
    let pool = Pool::new(sandbox, size).expect("a pool");
    assert!(pool.wait_full(LONG).expect("prepared"), "{:?}", pool.stats());
    pool
}

fn sh(script: &str) -> Command {
    Command::new("sh").args(["-c", script])
}

fn a_prepared_sandbox_is_what_a_fresh_one_is() {
    // Identity, limits, descriptors, places: everything that a process can ask for. Numbers
    // of namespaces and of inodes differ between any two.
    let script = "id; umask; hostname; pwd; env | sort; ulimit -a; ls -l /proc/self/fd | sed 's/.* -> //; s/[0-9]//g'
        grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Sig|NSpid|NSsid)' /proc/self/status
        sed 's/^[0-9]* [0-9]* [0-9:]* //' /proc/self/mountinfo | sed 's/[ug]id=[0-9]*//g' | sort; cat /proc/self/oom_score_adj /proc/1/comm; ls -a / /tmp /dev /dev/shm /etc";
    let other = recipe().user(1000, 1000).hostname("other").processes(50);
    for recipe in [recipe(), if support::is_root() { other.memory(64 * MIB) } else { other }] {
        let fresh = recipe.run(sh(script)).expect("it runs");
        let pool = full(recipe, 2);
        let prepared = pool.run(sh(script)).expect("it runs");
        assert_eq!(pool.stats().hits, 1);
        let (fresh, prepared) = (fresh.text().into_owned(), prepared.text().into_owned());
        let other = fresh.lines().zip(prepared.lines()).find(|(fresh, prepared)| fresh != prepared);
        assert_eq!(other, None);
        assert_eq!(fresh.lines().count(), prepared.lines().count());
    }
}

fn each_is_used_once() {
    let pool = full(recipe(), 3);
    for i in 0..9 {
        let out = pool
            .run(sh("ls /tmp /dev/shm; ps -e 2>/dev/null | wc -l >/dev/null; touch /tmp/left /dev/shm/left; sleep 1000 & echo $$"))
            .expect("it runs");
        assert!(!out.text().contains("left"), "run {i}: {}", out.text());
    }
    let stats = pool.stats();
    assert_eq!(stats.hits + stats.misses, 9);
}

fn verdicts_and_errors_are_the_same() {
    let short = full(recipe().wall_time(Duration::from_millis(300)), 1);
    assert_eq!(short.run(sh("sleep 1000")).expect("it runs").status, Exit::Limit(Limit::WallTime));
    let pool = full(recipe().output(1000), 2);
    let status = |command: Command| {
        assert!(pool.wait_full(LONG).expect("prepared"));
        pool.run(command).map(|out| out.status)
    };
    assert_eq!(status(sh("exit 7")).expect("it runs"), Exit::Code(7));
    assert_eq!(status(sh("kill -ABRT $$")).expect("it runs"), Exit::Signal(6));
    assert_eq!(status(sh("yes")).expect("it runs"), Exit::Limit(Limit::Output));
    let kind = |command: Command| status(command).expect_err("it can't be").kind();
    assert_eq!(kind(Command::new("no-such-program")), ErrorKind::NotFound);
    assert_eq!(kind(Command::new("/etc/passwd")), ErrorKind::PermissionDenied);
    assert_eq!(kind(sh("true").current_dir("/no/such/place")), ErrorKind::BadWorkingDirectory);
    assert_eq!(pool.stats().misses, 0, "all of them in prepared sandboxes");
}

fn a_forbidden_call_is_told() {
    let pool = full(recipe().syscalls(Syscalls::Strict), 1);
    let out = pool.run(["perl", "-e", "socket(S, 2, 1, 0)"]).expect("it runs");
    assert!(matches!(out.status, Exit::Limit(Limit::Syscall(_))), "{out}");
    assert_eq!(pool.stats().hits, 1);
}

fn what_does_not_fit_gets_a_fresh_one() {
    let pool = full(recipe(), 1);
    let out = pool.run(sh("sleep 1000").wall_time(Duration::from_millis(100))).expect("it runs");
    assert_eq!(out.status, Exit::Limit(Limit::WallTime));
    let file = fs::File::open("/etc/hostname").expect("a file");
    assert!(pool.run(Command::new("cat").stdin(file)).expect("it runs").success());
    assert_eq!((pool.stats().hits, pool.stats().misses), (0, 2));
}

fn streams_work_both_ways() {
    let pool = full(recipe(), 1);
    let mut child = pool.spawn(Command::new("cat").stdin(Stdio::piped())).expect("it starts");
    child.stdin.take().expect("a pipe").write_all(b"through").expect("written");
    assert_eq!(child.wait_with_output().expect("an outcome").text(), "through");
    assert!(pool.wait_full(LONG).expect("prepared"));
    assert_eq!(pool.run(Command::new("cat").stdin("bytes")).expect("it runs").text(), "bytes");
    assert_eq!(pool.stats().hits, 2);
}

fn many_threads_share_one() {
    let pool = Pool::new(recipe(), 4).expect("a pool");
    thread::scope(|scope| {
        for i in 0..16 {
            let pool = &pool;
            scope.spawn(move || {
                for j in 0..4 {
                    assert_eq!(pool.run(["echo", &format!("{i} {j}")]).expect("it runs").text(), format!("{i} {j}\n"));
                }
            });
        }
    });
    let stats = pool.stats();
    assert_eq!(stats.hits + stats.misses, 64);
}

fn nothing_waits_after_the_end() {
    // Of no other test's sandboxes.
    host::alone("nothing_waits_after_the_end", || {
        let pool = full(recipe(), 5);
        let init = inits(std::process::id()).pop().expect("an init").pid;
        assert!(sandboxes(children(init)).len() >= 5);
        let child = pool.spawn(["sleep", "1000"]).expect("it starts");
        drop(pool);
        // The command goes on.
        assert_eq!(sandboxes(children(init)).len(), 1);
        drop(child);
        assert!(cofferdam::quiesce(LONG).expect("init answers"));
        assert_eq!(sandboxes(children(init)).len(), 0);
    });
}

fn the_dead_are_not_handed_out() {
    // Of no other test's sandboxes.
    host::alone("the_dead_are_not_handed_out", || {
        let pool = full(recipe(), 3);
        let init = inits(std::process::id()).pop().expect("an init").pid;
        let firsts: BTreeSet<u32> = sandboxes(children(init)).iter().map(|p| p.pid).collect();
        for pid in firsts {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL).expect("killed");
        }
        support::processes::eventually(LONG, "they are gone", || sandboxes(children(init)).len() < 3);
        for _ in 0..4 {
            let out = pool.run("true");
            // Between a death and the news of it one may still be tried.
            assert!(out.as_ref().is_ok_and(|out| out.success()) || out.is_err_and(|e| e.kind() == ErrorKind::Lost));
        }
        assert!(pool.wait_full(LONG).expect("prepared"));
        assert!(pool.run("true").expect("it runs").success());
    });
}

fn wrong_pools_are_errors() {
    assert_eq!(Pool::new(recipe(), 0).expect_err("none").kind(), ErrorKind::Invalid);
    assert_eq!(Pool::new(recipe(), 5000).expect_err("too many").kind(), ErrorKind::Invalid);
    let error = Pool::new(recipe().bind("/no/such/place", "/x"), 1).expect_err("no such bind");
    assert_eq!(error.kind(), ErrorKind::Mount, "{error}");
    assert_eq!(InstancePool::new(recipe(), 0).expect_err("none").kind(), ErrorKind::Invalid);
    let error = InstancePool::new(recipe().bind("/no/such/place", "/x"), 1).expect_err("no such bind");
    assert_eq!(error.kind(), ErrorKind::Mount, "{error}");
}

fn full_of_instances(sandbox: Sandbox, size: usize) -> InstancePool {
    let pool = InstancePool::new(sandbox, size).expect("a pool");
    assert!(pool.wait_full(LONG).expect("started"), "{:?}", pool.stats());
    pool
}

fn instances_are_copies_of_a_checkpoint_each_used_once() {
    let instance = recipe().start().expect("it starts");
    instance.write("/tmp/state", "made\n").expect("written");
    let pool = full_of_instances(instance.into_checkpoint().expect("a checkpoint").sandbox(), 3);
    let mut kept = Vec::new();
    for i in 0..9 {
        let copy = pool.take().expect("an instance");
        assert_eq!(
            copy.run(sh("cat /tmp/state; ls /dev/shm; echo x >>/tmp/state; touch /dev/shm/left")).expect("it runs").text(),
            "made\n"
        );
        if i < 3 {
            kept.push(copy);
        }
    }
    let stats = pool.stats();
    assert_eq!(stats.hits + stats.misses, 9);
    assert!(stats.hits >= 3, "{stats:?}");
    drop(pool);
    for copy in kept {
        assert_eq!(copy.read("/tmp/state", 100).expect("it goes on"), b"made\nx\n");
    }
}

fn no_instance_waits_after_the_end() {
    // Of no other test's sandboxes.
    host::alone("no_instance_waits_after_the_end", || {
        let pool = full_of_instances(recipe(), 5);
        let init = inits(std::process::id()).pop().expect("an init").pid;
        let pids = || sandboxes(children(init)).iter().map(|p| p.pid).collect::<BTreeSet<u32>>();
        let firsts = pids();
        assert!(firsts.len() >= 5, "{firsts:?}");
        for pid in &firsts {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid as i32), nix::sys::signal::Signal::SIGKILL).expect("killed");
        }
        support::processes::eventually(LONG, "they are gone", || pids().is_disjoint(&firsts));
        let taken = pool.take().expect("a fresh one");
        assert!(taken.run("true").expect("it runs").success());
        assert_eq!((pool.stats().hits, pool.stats().misses), (0, 1), "the dead aren't handed out");
        assert!(pool.wait_full(LONG).expect("started again"));
        drop(pool);
        assert!(taken.run("true").expect("what was taken goes on").success());
        drop(taken);
        assert!(cofferdam::quiesce(LONG).expect("init answers"));
        assert_eq!(pids(), BTreeSet::new());
    });
}

fn main() {
    support::main(vec![
        test!(a_prepared_sandbox_is_what_a_fresh_one_is),
        test!(each_is_used_once),
        test!(verdicts_and_errors_are_the_same),
        test!(a_forbidden_call_is_told, support::Need::Tool("perl")),
        test!(what_does_not_fit_gets_a_fresh_one),
        test!(streams_work_both_ways),
        test!(many_threads_share_one),
        test!(nothing_waits_after_the_end),
        test!(the_dead_are_not_handed_out),
        test!(wrong_pools_are_errors),
        test!(instances_are_copies_of_a_checkpoint_each_used_once),
        test!(no_instance_waits_after_the_end),
    ]);
}
