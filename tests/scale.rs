//! Many sandboxes at once: two thousand that live, what happens where something runs out,
//! and that nobody waits much longer than the others.

mod support;

use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::{Child, Command, Error, ErrorKind, Exit, Layer, MIB, Sandbox};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::around::{self, Around};
use support::host::{self, Host};
use support::inventory::{inventory, nothing_more_than};
use support::{Need, available_memory, is_root};

const QUIET: Duration = Duration::from_secs(60);

/// With limits by control groups, where they can be had.
fn recipe() -> Sandbox {
    let limited = Sandbox::new().memory(64 * MIB).processes(16);
    [Layer::MemoryLimit, Layer::ProcessLimit].into_iter().fold(limited, Sandbox::prefer)
}

fn sleeping(sandbox: &Sandbox) -> Result<Child, Error> {
    sandbox.spawn(Command::new("sleep").arg("100000"))
}

/// What there is before the work is there afterwards, and a run is right.
fn leaves_nothing(work: impl FnOnce()) {
    let right = || assert!(recipe().run("true").expect("it runs").success());
    let quiet = || assert!(cofferdam::quiesce(QUIET).expect("init answers"));
    right();
    quiet();
    let before = inventory();
    work();
    right();
    quiet();
    nothing_more_than(&before);
}

/// In a host of its own; tells what that says.
fn alone_for_long(name: &str, body: impl FnOnce()) {
    if host::inside() {
        return body();
    }
    let mut host = Host::start(name);
    host.limit(support::patience(Duration::from_secs(300)));
    let log = host.success();
    log.lines().filter_map(|line| line.strip_prefix("host: ")).for_each(|line| println!("{name}: {line}"));
}

fn two_thousand_live_at_once() {
    alone_for_long("two_thousand_live_at_once", || {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the highest");
        leaves_nothing(two_thousand);
    });
}

fn two_thousand() {
    const LIVE: usize = 2000;
    const THREADS: usize = 8;

    let (sandbox, before, began) = (recipe(), available_memory(), Instant::now());
    let children: Vec<Child> = thread::scope(|scope| {
        let some = || (0..LIVE / THREADS).map(|_| sleeping(&sandbox).expect("it starts")).collect::<Vec<_>>();
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(some)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("children")).collect()
    });
    let (each, started) = (before.saturating_sub(available_memory()) / LIVE as u64, began.elapsed());
    // Two of init and the process, two streams, and on cgroup v1 three groups; some of those
    // keep more open.
    let descriptors = fs::read_dir("/proc/self/fd").expect("descriptors").count();
    assert!(descriptors < 7 * LIVE + 300, "{descriptors} descriptors");
    // One more is as good as the first.
    assert!(sandbox.run("true").expect("it runs").success());
    let began = Instant::now();
    for (i, child) in children.iter().enumerate() {
        if i % 2 == 0 { child.kill() } else { child.signal(15) }.expect("told");
    }
    for (i, mut child) in children.into_iter().enumerate() {
        // A third is dropped.
        if i % 3 != 0 {
            assert_eq!(child.wait().expect("a verdict"), if i % 2 == 0 { Exit::Killed } else { Exit::Signal(15) });
        }
    }
    host::say(&format!(
        "{} KiB of the machine's memory each, started in {:.1} s, ended in {:.1} s; {:.1} descriptors each in the host",
        each >> 10,
        started.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        descriptors as f64 / LIVE as f64
    ));
    // Who else uses the machine meanwhile counts too.
    assert!(each < 4 * MIB, "{each} bytes of memory each");
}

/// Starts sandboxes until one can't be had, whose error it gives; the others are as they
/// should be.
#[track_caller]
fn until_something_runs_out(sandbox: &Sandbox) -> Error {
    let mut children = Vec::new();
    let error = loop {
        assert!(children.len() < 1000, "nothing has run out");
        match sleeping(sandbox) {
            Ok(child) => children.push(child),
            Err(error) => break error,
        }
    };
    assert!(!children.is_empty(), "not even one: {error}");
    for mut child in children {
        assert_eq!(child.try_wait().expect("an answer"), None, "{error}");
        child.kill().expect("told");
        assert_eq!(child.wait().expect("a verdict"), Exit::Killed, "{error}");
    }
    error
}

#[track_caller]
fn names(error: &Error, resource: &str) {
    assert!(error.kind() == ErrorKind::Exhausted && error.to_string().contains(resource), "{error:?} and not {resource}");
}

fn too_few_descriptors_are_named() {
    host::alone("too_few_descriptors_are_named", || {
        setrlimit(Resource::RLIMIT_NOFILE, 256, 256).expect("a lower limit");
        leaves_nothing(|| names(&until_something_runs_out(&recipe()), "descriptors open; raise RLIMIT_NOFILE"));
    });
}

fn too_few_ids_are_named() {
    host::alone("too_few_ids_are_named", || {
        let last = recipe().id_base((u32::MAX / 65_536 - 5) * 65_536);
        leaves_nothing(|| {
            let error = until_something_runs_out(&last);
            names(&error, "ids");
            assert!(error.to_string().contains("all 5 ranges") && error.to_string().contains("Sandbox::id_base"), "{error}");
        });
    });
}

/// In the control group around the host.
fn too_few_processes_are_named() {
    const NAME: &str = "too_few_processes_are_named";
    if host::inside() {
        around::enter();
        if !is_root() {
            // Other processes of this user count too.
            setrlimit(Resource::RLIMIT_NPROC, 100, 100).expect("a lower limit");
        }
        let names_them = || names(&until_something_runs_out(&recipe()), "too many processes; raise");
        return leaves_nothing(names_them);
    }
    let group = is_root().then(|| Around::make("pids", "pids.max", "80").expect("a group"));
    let mut command = host::command(NAME);
    command.envs(group.iter().map(|group| (around::GROUP, group.path())));
    Host::start_command(command).success();
}

/// No thread of many that start sandboxes has to wait until the others are done.
fn nobody_starves() {
    alone_for_long("nobody_starves", || {
        const THREADS: usize = 64;
        const RUNS: usize = 10;
        let sandbox = recipe();
        assert!(sandbox.run("true").expect("it runs").success());
        let (go, began) = (Barrier::new(THREADS), Instant::now());
        let mut ends: Vec<Duration> = thread::scope(|scope| {
            let body = || {
                go.wait();
                (0..RUNS).for_each(|_| assert!(sandbox.run("true").expect("it runs").success()));
                began.elapsed()
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(body)).collect();
            threads.into_iter().map(|thread| thread.join().expect("a time")).collect()
        });
        ends.sort();
        let (first, last) = (ends[0], ends[THREADS - 1]);
        host::say(&format!("first {first:?}, middle {:?}, last {last:?}", ends[THREADS / 2]));
        // One that always comes last would be done when all others are: at ten times what
        // the first one took, or more.
        assert!(last < 4 * first + Duration::from_secs(1), "{ends:?}");
    });
}

fn main() {
    support::main(vec![
        test!(two_thousand_live_at_once, Need::Descriptors(14_000), Need::Memory(4096)),
        test!(too_few_descriptors_are_named),
        test!(too_few_ids_are_named, root),
        test!(too_few_processes_are_named, Need::GroupsAround("pids")),
        test!(nobody_starves),
    ])
}
