//! Sandboxes that serve again show nothing of what they have served: whatever leaves a trace
//! ends its sandbox, and whatever doesn't leaves it as the first command found it.

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use cofferdam::{Capability, Command, ErrorKind, Exit, Image, Layer, Limit, MIB, Output, Pool, Sandbox, Stdio, Syscalls};
use support::processes::{children, inits, sandboxes};
use support::{Need, host};

const LONG: Duration = Duration::from_secs(60);

fn recipe() -> Sandbox {
    Sandbox::new().wall_time(support::patience(Duration::from_secs(30)))
}

/// A pool that is full, and whose next command reads no file for the first time.
fn pool(sandbox: Sandbox, size: usize) -> Pool {
    let pool = Pool::reusing(sandbox, size).expect("a pool");
    fill(&pool);
    pool
}

fn fill(pool: &Pool) {
    assert!(pool.wait_full(LONG).expect("started"), "{:?}", pool.stats());
}

fn sh(script: &str) -> Command {
    Command::new("sh").args(["-c", script])
}

fn text(out: &Output) -> String {
    assert!(out.success(), "{out}: {}", String::from_utf8_lossy(&out.stderr));
    out.text().into_owned()
}

/// The directory of `traces`, to be bound.
fn traces() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| support::compile_c("traces", include_str!("programs/traces.c"), &["-static"]));
    program.parent().expect("a directory").to_path_buf()
}

/// Whether the command's sandbox serves again: as the only one of its pool it would be the
/// next command's.
#[track_caller]
fn serves_again_after(pool: &Pool, command: Command) -> (bool, Output) {
    fill(pool);
    let out = pool.run(command).expect("it runs");
    let (before, next) = (pool.stats(), pool.run("true").expect("it runs"));
    assert!(next.success(), "{next}");
    (pool.stats().reused > before.reused, out)
}

/// It serves again; but for pages of files, now and then, that had to be read once more: see
/// [`warm`].
#[track_caller]
fn must_serve_again_after(pool: &Pool, command: impl Fn() -> Command) -> Output {
    for _ in 0..3 {
        let (again, out) = serves_again_after(pool, command());
        if again {
            return out;
        }
    }
    panic!("it doesn't serve again: {:?}", pool.stats());
}

/// What pages of a program are charged to the first group that reads them, and too much of
/// that is a reason not to serve again: so it's read before.
fn warm(pool: &Pool, command: &str) {
    for _ in 0..3 {
        fill(pool);
        pool.run(sh(command)).expect("it runs");
    }
}

fn what_leaves_nothing_serves_again() {
    for syscalls in [Syscalls::Default, Syscalls::Strict] {
        let pool = pool(recipe().syscalls(syscalls), 1);
        warm(&pool, "read word");
        let before = pool.stats();
        for i in 0..20 {
            let out = pool.run(sh("read word; echo $word; ls / /tmp >/dev/null; cat /etc/passwd >/dev/null").stdin(format!("{i}\n")));
            assert_eq!(text(&out.expect("it runs")), format!("{i}\n"));
        }
        let stats = pool.stats();
        assert!(stats.reused - before.reused >= 15, "{stats:?}");
    }
}

fn each_finds_what_a_fresh_one_finds() {
    // As for prepared ones (tests/pool.rs); and numbers that count up.
    let script = "echo $$; id; umask; hostname; pwd; env | sort; ulimit -a; ls -l /proc/self/fd | sed 's/.* -> //; s/[0-9]//g'
        grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Sig|Shd|NSpid|NSsid|Cpus_allowed)' /proc/self/status
        sed '/ \\/proc\\/1 /d; s/^[0-9]* [0-9]* [0-9:]* //; s/noatime/relatime/; /mqueue/s/ro,/rw,/' /proc/self/mountinfo | sed 's/[ug]id=[0-9]*//g' | sort
        cat /proc/self/oom_score_adj; ls -a / /tmp /dev /dev/shm /dev/mqueue /etc; echo /proc/[0-9]*; cat /proc/sysvipc/*; ls -a /dev/pts";
    let other = recipe().user(1000, 1000).hostname("other").processes(50);
    for recipe in [recipe(), if support::is_root() { other.memory(64 * MIB) } else { other }] {
        let fresh = text(&recipe.run(sh(script)).expect("it runs"));
        let pool = pool(recipe, 1);
        warm(&pool, script);
        let before = pool.stats().reused;
        let again = text(&must_serve_again_after(&pool, || sh(script)));
        assert!(pool.stats().reused > before + 1, "one that has served has run it");
        let other = fresh.lines().zip(again.lines()).find(|(fresh, again)| fresh != again);
        assert_eq!(other, None);
        assert_eq!(fresh.lines().count(), again.lines().count());
    }
}

/// What can be seen of any trace.
const LOOK: &str =
    "ls -aln / /tmp /etc /t /dev/shm /dev/mqueue /dev/pts | grep -vE ' (proc|w)$' | sed -E 's/ [A-Z][a-z]{2} +[0-9]+ +[0-9:]+ / /; s/ +/ /g'
    ls /bin/; cat /etc/hosts /etc/hostname /f/given; /w/traces beyond && echo beyond; wc -l </proc/sysvipc/shm";

/// Each leaves a trace, if it can at all: that it couldn't shows in its status.
const SCRIPTS: &[&str] = &[
    "echo x >/tmp/x",
    "mkdir /tmp/x",
    "ln -s x /tmp/x",
    "echo x >/dev/shm/x",
    "echo x >/t/x",
    "echo x >/x",
    "echo x >/etc/x",
    "echo x >/bin/x",
    "echo x >/dev/mqueue/x",
    "echo x >/tmp/x; rm /tmp/x",
    "mkdir /tmp/x && rmdir /tmp/x",
    "echo x >/dev/shm/x; rm /dev/shm/x",
    "echo x >/t/x; rm /t/x",
    "echo x >/dev/mqueue/x; rm /dev/mqueue/x",
    "printf x | dd of=/etc/hosts bs=1 conv=notrunc",
    "printf x | dd of=/f/given bs=1 conv=notrunc",
    "rm /etc/hosts",
    "mv /etc/hosts /etc/hosts.old && mv /etc/hosts.old /etc/hosts",
    "ln /etc/hosts /etc/other",
    "chmod 700 /tmp",
    "chmod 1777 /tmp",
    "chmod 600 /etc/hosts",
    "chmod 600 /dev/pts/ptmx",
    "chmod 700 /dev/pts",
    "chmod 700 /dev/shm",
    "chmod 700 /t",
    "chmod 700 /",
    "touch /etc/hosts",
    "touch -d 2000-01-01 /tmp",
    "rm /bin/sh",
    "/w/traces map /etc/hosts",
    "/w/traces map /f/given",
    "/w/traces map-beyond",
    "/w/traces attribute /tmp",
    "/w/traces hole",
    "/w/traces priority",
    "/w/traces io-priority",
    "/w/traces affinity",
    "/w/traces limit",
    "/w/traces signal",
];

fn leaves_no_trace(sandbox: Sandbox) {
    let sandbox = sandbox.bind(traces(), "/w").tmpfs("/t", MIB).file("/f/given", "contents\n");
    let pool = pool(sandbox.clone(), 1);
    warm(&pool, LOOK);
    let expected = text(&sandbox.run(sh(LOOK)).expect("it runs"));
    let mut left = 0;
    for script in SCRIPTS {
        fill(&pool);
        let out = pool.run(sh(script)).expect("it runs");
        let before = pool.stats().reused;
        let seen = text(&pool.run(sh(LOOK)).expect("it runs"));
        let other = seen.lines().zip(expected.lines()).find(|(seen, expected)| seen != expected);
        assert_eq!((other, seen.len()), (None, expected.len()), "after `{script}`");
        let again = pool.stats().reused > before;
        assert!(!(out.success() && again), "`{script}` has left something, and its sandbox served again");
        left += usize::from(out.success());
    }
    assert!(left >= 10, "only {left} of them could leave something");
    let stats = pool.stats();
    assert!(stats.reused > 0, "{stats:?}");
}

fn nothing_is_left_in_the_hosts_own_root() {
    leaves_no_trace(recipe());
    leaves_no_trace(recipe().user(1000, 1000));
}

fn nothing_is_left_in_an_image() {
    leaves_no_trace(recipe().rootfs(Image::dir(support::busybox_root())));
}

fn nothing_is_left_on_a_checkpoint() {
    let instance = recipe().rootfs(Image::dir(support::busybox_root())).start().expect("it starts");
    instance.write("/tmp/program", "echo compiled\n").expect("written");
    let checkpoint = instance.into_checkpoint().expect("a checkpoint");
    let pool = pool(checkpoint.sandbox(), 1);
    warm(&pool, "true");
    let out = must_serve_again_after(&pool, || sh("sh /tmp/program"));
    assert_eq!(text(&out), "compiled\n");
    assert!(!serves_again_after(&pool, sh("echo echo spoilt >/tmp/program")).0);
    fill(&pool);
    assert_eq!(text(&pool.run(sh("sh /tmp/program")).expect("it runs")), "compiled\n");
}

/// Whatever has its ids could change these from inside, if it weren't refused.
fn what_commands_inherit_of_the_first_process_is_looked_at() {
    host::alone("what_commands_inherit_of_the_first_process_is_looked_at", || {
        let pool = pool(recipe(), 1);
        warm(&pool, "true");
        let init = inits(std::process::id()).pop().expect("an init").pid;
        for change in ["renice -n 7 -p", "chrt -b -p 0", "taskset -p 1", "ionice -c 3 -p", "prlimit --msgqueue=4096: --pid"] {
            fill(&pool);
            must_serve_again_after(&pool, || sh("true"));
            // The one before it, and who has made it, may still be on their way out.
            support::processes::eventually(LONG, "one sandbox", || sandboxes(children(init)).len() == 1);
            let first = sandboxes(children(init)).pop().expect("it's there");
            let done = std::process::Command::new("sh").args(["-c", &format!("{change} {}", first.pid)]).output().expect("sh");
            assert!(done.status.success(), "{change}: {done:?}");
            assert!(!serves_again_after(&pool, sh("true")).0, "after `{change}`");
        }
    });
}

fn whatever_was_started_is_dead() {
    let pool = pool(recipe(), 1);
    let look = "echo /proc/[0-9]*; echo $$";
    warm(&pool, "sleep 0; setsid true");
    for leave in [
        "sleep 1000 &",
        "setsid sleep 1000 &",
        "(setsid sh -c 'sleep 1000 & sleep 1000' &) &",
        "trap '' TERM HUP; sleep 1000 & sleep 1000 &",
    ] {
        let out = must_serve_again_after(&pool, || sh(&format!("{leave} {look}")));
        assert!(out.success(), "after `{leave}`: {out}");
        assert_eq!(text(&pool.run(sh(look)).expect("it runs")), "/proc/1 /proc/2\n2\n", "after `{leave}`");
    }
}

fn queues_and_shared_memory_are_each_commands_own() {
    let program = support::compile_c("leftovers", include_str!("programs/leftovers.c"), &["-static"]);
    let directory = program.parent().expect("a directory").to_path_buf();
    let pool = pool(recipe().bind(directory, "/w"), 1);
    warm(&pool, "true");
    for _ in 0..5 {
        fill(&pool);
        let out = pool.run(["/w/leftovers"]).expect("it runs");
        assert!(!out.text().contains("found"), "{}", out.text());
    }
}

fn verdicts_and_usage_are_each_commands_own() {
    let limit = support::patience(Duration::from_millis(300));
    let limited = || recipe().bind(traces(), "/w").cpu_time(limit).prefer(Layer::CpuAccount).output(1000);
    let pool = pool(limited(), 1);
    warm(&pool, "/w/traces burn 0; /w/traces memory 1");
    let small = |what: &str| {
        fill(&pool);
        let out = pool.run(["/w/traces", "memory", "1"]).expect("it runs");
        assert!(out.success(), "after {what}: {out}");
        let used = out.usage.user + out.usage.system;
        assert!(used < support::patience(Duration::from_millis(80)), "{used:?} after {what}");
        let peak = out.usage.peak_memory.expect("a peak");
        assert!((MIB..12 * MIB).contains(&peak), "{peak} after {what}");
        let resident = out.usage.peak_resident.expect("a peak");
        assert!((MIB..12 * MIB).contains(&resident), "{resident} after {what}");
        assert!(out.usage.wall < support::patience(Duration::from_secs(2)), "{:?} after {what}", out.usage.wall);
    };
    let (_, out) = serves_again_after(&pool, sh("/w/traces memory 100; /w/traces memory 2"));
    assert!(out.usage.peak_memory.expect("a peak") > 100 * MIB, "{out}");
    assert!(out.usage.peak_resident.expect("a peak") > 100 * MIB, "{out}");
    small("a large one");
    let out = must_serve_again_after(&pool, || sh("/w/traces burn 100 & /w/traces burn 100 & wait"));
    assert!(out.success(), "{out}");
    assert!(out.usage.user + out.usage.system >= Duration::from_millis(190), "{:?}", out.usage);
    small("a busy one");
    let out = must_serve_again_after(&pool, || Command::new("/w/traces").args(["burn", "100000"]));
    assert_eq!(out.status, Exit::Limit(Limit::CpuTime));
    small("the limit on CPU time");
    let out = must_serve_again_after(&pool, || sh("while :; do echo yes; done"));
    assert_eq!(out.status, Exit::Limit(Limit::Output));
    small("the limit on output");
    let out = must_serve_again_after(&pool, || sh("kill -ABRT $$"));
    assert_eq!(out.status, Exit::Signal(6));
    let out = must_serve_again_after(&pool, || sh("exit 7"));
    assert_eq!(out.status, Exit::Code(7));
    let error = pool.run("no-such-program").expect_err("there's none");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    small("a failure");
}

fn a_wall_clock_is_each_commands_own() {
    let limit = support::patience(Duration::from_millis(300));
    let pool = pool(Sandbox::new().wall_time(limit), 1);
    warm(&pool, "sleep 0");
    for _ in 0..3 {
        let out = must_serve_again_after(&pool, || sh("sleep 1000"));
        assert_eq!(out.status, Exit::Limit(Limit::WallTime));
        thread::sleep(limit);
        assert!(pool.run(sh("sleep 0.1")).expect("it runs").success());
    }
}

fn memory_that_ran_out_ends_a_sandbox() {
    let sandbox = recipe().bind(traces(), "/w").memory(32 * MIB);
    if let Err(error) = sandbox.run("true") {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        let error = Pool::reusing(sandbox, 1).expect_err("no group");
        return assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    let pool = pool(sandbox, 1);
    warm(&pool, "/w/traces memory 1");
    for _ in 0..3 {
        let (again, out) = serves_again_after(&pool, sh("/w/traces memory 100"));
        assert_eq!((again, out.status), (false, Exit::Limit(Limit::Memory)), "{out}");
        fill(&pool);
        let out = must_serve_again_after(&pool, || sh("/w/traces memory 10"));
        assert!(out.success(), "{out}");
    }
}

fn a_forbidden_call_is_told_and_made_by_nobody() {
    let pool = pool(recipe().syscalls(Syscalls::Strict), 1);
    warm(&pool, "perl -e 1");
    for _ in 0..3 {
        let out = must_serve_again_after(&pool, || Command::new("perl").args(["-e", "socket(S, 2, 1, 0)"]));
        assert!(matches!(out.status, Exit::Limit(Limit::Syscall(_))), "{out}");
    }
}

fn children_give_their_sandbox_back() {
    let pool = pool(recipe(), 1);
    warm(&pool, "true");
    let before = pool.stats().reused;
    for _ in 0..3 {
        let child = pool.spawn(Command::new("cat").stdin(Stdio::piped())).expect("it starts");
        assert_eq!(pool.stats().ready, 0);
        drop(child);
        fill(&pool);
        let child = pool.spawn(sh("echo $$")).expect("it starts");
        assert_eq!(child.wait_with_output().expect("an outcome").text(), "2\n");
    }
    assert!(pool.stats().reused - before >= 4, "{:?}", pool.stats());
}

fn what_does_not_fit_gets_a_fresh_one() {
    let pool = pool(recipe(), 1);
    let out = pool.run(sh("sleep 1000").wall_time(Duration::from_millis(100))).expect("it runs");
    assert_eq!(out.status, Exit::Limit(Limit::WallTime));
    let file = fs::File::open("/etc/hostname").expect("a file");
    assert!(pool.run(Command::new("cat").stdin(file)).expect("it runs").success());
    assert_eq!((pool.stats().hits, pool.stats().misses), (0, 2));
    let error = pool.run(sh("nothing \0")).expect_err("no argument");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(pool.stats().ready, 1, "nobody has asked it for anything");
}

fn many_threads_share_one() {
    let pool = pool(recipe(), 4);
    thread::scope(|scope| {
        for i in 0..8 {
            let pool = &pool;
            scope.spawn(move || {
                for j in 0..25 {
                    let script = if j % 5 == 0 { "cat; ls /tmp; touch /tmp/left" } else { "cat; ls /tmp" };
                    let out = pool.run(sh(script).stdin(format!("{i} {j}\n"))).expect("it runs");
                    assert_eq!(out.text(), format!("{i} {j}\n"));
                }
            });
        }
    });
    let stats = pool.stats();
    assert_eq!(stats.hits + stats.misses, 200);
    assert!(stats.reused > 20, "{stats:?}");
    fill(&pool);
    assert_eq!(pool.stats().ready, 4);
}

fn nothing_waits_after_the_end() {
    host::alone("nothing_waits_after_the_end", || {
        let pool = pool(recipe(), 5);
        let init = inits(std::process::id()).pop().expect("an init").pid;
        let live = || sandboxes(children(init)).len();
        support::processes::eventually(LONG, "who has made them is gone", || live() == 5);
        for script in ["true", "touch /tmp/x", "true"] {
            assert!(pool.run(sh(script)).expect("it runs").success());
        }
        fill(&pool);
        let child = pool.spawn(["sleep", "1000"]).expect("it starts");
        drop(pool);
        support::processes::eventually(LONG, "all others are gone", || live() == 1);
        drop(child);
        assert!(cofferdam::quiesce(LONG).expect("init answers"));
        assert_eq!(live(), 0);
    });
}

fn the_dead_do_not_serve() {
    host::alone("the_dead_do_not_serve", || {
        let pool = pool(recipe(), 3);
        let init = inits(std::process::id()).pop().expect("an init").pid;
        for process in sandboxes(children(init)) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid as i32), nix::sys::signal::Signal::SIGKILL).expect("killed");
        }
        support::processes::eventually(LONG, "they are gone", || sandboxes(children(init)).len() < 3);
        for _ in 0..4 {
            let out = pool.run("true");
            assert!(out.as_ref().is_ok_and(|out| out.success()) || out.is_err_and(|e| e.kind() == ErrorKind::Lost));
        }
        fill(&pool);
        assert!(pool.run("true").expect("it runs").success());
    });
}

fn recipes_that_leave_traces_unseen_are_refused() {
    let refused = [
        recipe().capabilities([Capability::NetRaw]),
        recipe().nesting(),
        recipe().syscalls(Syscalls::Unfiltered),
        recipe().syscalls(Syscalls::Default.allow("keyctl")),
        recipe().prefer(Layer::SyscallFilter),
        recipe().rootfs(Image::dir(support::busybox_root())).keep_changes(true),
        recipe().file("/large", vec![b'x'; 100_000]),
        (0..120).fold(recipe(), |recipe, i| recipe.file(format!("/many/{i}"), "")),
    ];
    for sandbox in refused {
        let error = Pool::reusing(sandbox, 1).expect_err("it can't be");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().starts_with("cannot use a sandbox again: "), "{error}");
    }
    for size in [0, 5000] {
        assert_eq!(Pool::reusing(recipe(), size).expect_err("no size").kind(), ErrorKind::Invalid);
    }
    // What nobody may write is as it was.
    let pool = pool(recipe().file_mode("/large", vec![b'x'; 1 << 20], 0o444).syscalls(Syscalls::Default.deny("ptrace")), 1);
    assert!(pool.run(["cat", "/large"]).expect("it runs").success());
    let (again, out) = serves_again_after(&pool, sh("chmod u+w /large && printf y | dd of=/large bs=1 conv=notrunc"));
    assert!(!again && out.success(), "{out}");
}

/// The first process counts what all commands have used, and isn't to be seen.
fn the_first_process_tells_nothing() {
    let pool = pool(recipe(), 1);
    for _ in 0..2 {
        let out = pool
            .run(sh("cat /proc/1/stat /proc/1/status /proc/1/sched /proc/1/schedstat 2>/dev/null; ls -A /proc/1; echo $$"))
            .expect("it runs");
        assert_eq!(out.text(), "2\n");
    }
}

fn main() {
    support::main(vec![
        test!(the_first_process_tells_nothing),
        test!(what_leaves_nothing_serves_again),
        test!(each_finds_what_a_fresh_one_finds),
        test!(nothing_is_left_in_the_hosts_own_root, Need::Program("traces")),
        test!(nothing_is_left_in_an_image, Need::Program("traces"), Need::Tool("busybox"), Need::Overlay),
        test!(nothing_is_left_on_a_checkpoint, Need::Tool("busybox"), Need::Checkpoint),
        test!(what_commands_inherit_of_the_first_process_is_looked_at),
        test!(whatever_was_started_is_dead),
        test!(queues_and_shared_memory_are_each_commands_own, Need::Program("leftovers")),
        test!(verdicts_and_usage_are_each_commands_own, Need::Program("traces")),
        test!(a_wall_clock_is_each_commands_own),
        test!(memory_that_ran_out_ends_a_sandbox, Need::Program("traces")),
        test!(a_forbidden_call_is_told_and_made_by_nobody, Need::Tool("perl")),
        test!(children_give_their_sandbox_back),
        test!(what_does_not_fit_gets_a_fresh_one),
        test!(many_threads_share_one),
        test!(nothing_waits_after_the_end),
        test!(the_dead_do_not_serve),
        test!(recipes_that_leave_traces_unseen_are_refused, Need::Tool("busybox")),
    ]);
}
