//! The next sandbox of a recipe, made while nobody waits for it: a run that has it can't tell,
//! and the host isn't left with it.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam::internals::runs_with_next;
use cofferdam::{Command, ErrorKind, Exit, Image, Layer, Limit, MIB, Pool, Sandbox};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::host::alone;
use support::{processes, shell};

const LONG: Duration = Duration::from_secs(30);

fn sandbox() -> Sandbox {
    Sandbox::new().wall_time(LONG)
}

fn quiet() {
    assert!(cofferdam::quiesce(LONG).expect("init answers"), "something lives on");
}

fn said(recipe: &Sandbox, script: &str) -> String {
    let out = recipe.run(shell(script)).expect("it runs");
    assert_eq!(out.status, Exit::Code(0), "{out}: {}", String::from_utf8_lossy(&out.stderr));
    out.text().trim().to_string()
}

/// Runs the recipe until the next run would have a sandbox that was made ahead.
fn warm(recipe: &Sandbox) {
    let before = runs_with_next();
    for _ in 0..100 {
        said(recipe, "true");
        if runs_with_next() > before {
            return;
        }
    }
    panic!("no run had one that was made ahead");
}

/// A copy of busybox's root that may be changed.
fn root(name: &str, mark: &str) -> PathBuf {
    let root = support::fresh_dir(name).join("root");
    let copied = std::process::Command::new("cp").args(["-a".as_ref(), support::busybox_root().as_os_str(), root.as_os_str()]).status();
    assert!(copied.expect("cp").success());
    fs::write(root.join("mark"), mark).expect("a file");
    root
}

/// Every verdict and figure is that of a run, whoever had what before.
fn verdicts_are_the_same() {
    alone("verdicts_are_the_same", || {
        let recipe = sandbox().output(4096).wall_time(Duration::from_millis(700));
        let before = runs_with_next();
        for turn in 0..4 {
            let status = |script: &str| recipe.run(shell(script)).expect("it runs").status;
            assert_eq!(status("exit 7"), Exit::Code(7));
            assert_eq!(status("kill -TERM $$"), Exit::Signal(15));
            assert_eq!(status("sleep 60"), Exit::Limit(Limit::WallTime));
            assert_eq!(status("head -c 100000 /dev/zero"), Exit::Limit(Limit::Output));
            let out = recipe.run(Command::new("cat").stdin(format!("turn {turn}"))).expect("it runs");
            assert_eq!((out.status, out.text()), (Exit::Code(0), format!("turn {turn}").into()));
            let error = recipe.run("/no/such/program").expect_err("there's none");
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            assert!(error.to_string().contains("/no/such/program"), "{error}");
            let out =
                recipe.run(Command::new("sh").args(["-c", "echo $TURN; pwd; echo $$"]).env("TURN", turn.to_string()).current_dir("/tmp"));
            assert_eq!(out.expect("it runs").text(), format!("{turn}\n/tmp\n2\n"));
        }
        assert!(runs_with_next() > before, "the test means nothing");
    });
}

fn limits_hold_each_time() {
    let hungry = || shell("head -c 60M /dev/zero | tail -c 60M >/dev/null; sleep 0.3; echo survived");
    alone("limits_hold_each_time", || {
        let recipe = sandbox().memory(32 * MIB).prefer(Layer::MemoryLimit);
        for _ in 0..4 {
            let hungry = recipe.run(hungry()).expect("it runs");
            if hungry.missing.contains(&Layer::MemoryLimit) {
                return;
            }
            assert_eq!(hungry.status, Exit::Limit(Limit::Memory), "{hungry}");
            assert_eq!(hungry.text(), "", "everything dies together");
            let small = recipe.run("true").expect("it runs");
            assert!(small.success() && small.usage.peak_memory.is_some_and(|peak| peak < 16 * MIB), "{:?}", small.usage);
        }
        let pool = Pool::new(recipe.clone(), 1).expect("a pool");
        for _ in 0..2 {
            let hungry = pool.run(hungry()).expect("it runs");
            assert_eq!((hungry.status, hungry.text().as_ref()), (Exit::Limit(Limit::Memory), ""), "everything dies together");
        }
        drop(pool);
        let recipe = recipe.cpu_time(Duration::from_millis(300));
        for _ in 0..4 {
            let busy = recipe.run(shell("while :; do :; done")).expect("it runs");
            assert_eq!(busy.status, Exit::Limit(Limit::CpuTime), "{busy}");
            let small = recipe.run("true").expect("it runs");
            assert!(small.success() && small.usage.cpu() < Duration::from_millis(200), "{:?}", small.usage);
        }
    });
}

/// Nothing of one run is there in the next.
fn each_is_fresh() {
    alone("each_is_fresh", || {
        for recipe in [sandbox(), sandbox().rootfs(Image::dir(support::busybox_root()))] {
            warm(&recipe);
            let before = runs_with_next();
            for _ in 0..6 {
                let found =
                    said(&recipe, "ls /tmp /dev/shm; touch /tmp/left /dev/shm/left; sleep 60 & echo; cat /proc/sys/kernel/ns_last_pid");
                assert!(!found.contains("left"), "{found}");
            }
            assert!(runs_with_next() > before, "the test means nothing");
        }
    });
}

/// What a path of the root leads to is looked up for each run.
fn another_root_is_seen() {
    alone("another_root_is_seen", || {
        let (path, other) = (root("next-", "first"), root("other-", "second"));
        let recipe = sandbox().rootfs(Image::dir(&path));
        warm(&recipe);
        assert_eq!(said(&recipe, "cat /mark"), "first");
        fs::rename(&path, path.with_extension("away")).expect("renamed");
        fs::rename(&other, &path).expect("renamed");
        assert_eq!(said(&recipe, "cat /mark"), "second");
        fs::remove_dir_all(&path).expect("removed");
        let error = recipe.run("true").expect_err("there's no root any more");
        assert_eq!(error.kind(), ErrorKind::Image, "{error}");
    });
}

/// So is what lies in it.
fn changes_of_the_root_are_seen() {
    alone("changes_of_the_root_are_seen", || {
        let path = root("next-", "0");
        fs::create_dir(path.join("etc")).expect("a directory");
        let recipe = sandbox().rootfs(Image::dir(&path));
        warm(&recipe);
        for turn in 1..20 {
            fs::write(path.join("mark"), turn.to_string()).expect("a file");
            fs::write(path.join("etc").join(format!("new-{turn}")), "").expect("a file");
            assert_eq!(said(&recipe, &format!("cat /mark; echo; ls /etc/new-{turn}")), format!("{turn}\n/etc/new-{turn}"));
        }
    });
}

/// What set-up has passed on its way may lead elsewhere in the next run: directories and
/// links that are switched, modes.
fn what_lies_below_the_root_is_looked_up_again() {
    alone("what_lies_below_the_root_is_looked_up_again", || {
        let path = root("next-", "");
        for version in ["v1", "v2"] {
            fs::create_dir_all(path.join("app").join(version)).expect("a directory");
            fs::write(path.join("app").join(version).join("name"), version).expect("a file");
        }
        let app = path.join("app");
        let current = app.join("current");
        fs::rename(app.join("v1"), &current).expect("renamed");
        let recipe = sandbox().rootfs(Image::dir(&path)).file("/app/current/config", "x");
        warm(&recipe);
        fs::rename(&current, app.join("v1")).expect("renamed");
        fs::rename(app.join("v2"), &current).expect("renamed");
        assert_eq!(said(&recipe, "cat /app/current/name /app/current/config"), "v2x");
        fs::rename(&current, app.join("v2")).expect("renamed");
        std::os::unix::fs::symlink("v1", &current).expect("a link");
        assert_eq!(said(&recipe, "cat /app/current/name"), "v1");
        std::thread::sleep(Duration::from_millis(50));
        std::os::unix::fs::symlink("v2", app.join("new")).expect("a link");
        fs::rename(app.join("new"), &current).expect("renamed");
        assert_eq!(said(&recipe, "cat /app/current/name"), "v2");

        // An ordinary user's sandboxes have an /etc of their own over it.
        if !support::is_root() {
            return;
        }
        let path = root("modes-", "");
        fs::create_dir(path.join("etc")).expect("a directory");
        let recipe = sandbox().rootfs(Image::dir(&path));
        warm(&recipe);
        for mode in [0o700, 0o755, 0o711] {
            fs::set_permissions(path.join("etc"), fs::Permissions::from_mode(mode)).expect("a mode");
            assert_eq!(said(&recipe, "stat -c %a /etc"), format!("{mode:o}"));
        }
    });
}

/// A mount of the recipe's in the host's /usr stays where the recipe says.
fn mounts_stay_in_their_place() {
    alone("mounts_stay_in_their_place", || {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("private");
        let place = Path::new("/usr/local/share");
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounted");
        for name in ["a", "b"] {
            fs::create_dir(place.join(name)).expect("a directory");
            fs::write(place.join(name).join("hosts"), "").expect("a file");
        }
        let recipe = sandbox().tmpfs("/usr/local/share/a", MIB);
        for _ in 0..6 {
            assert_eq!(said(&recipe, "ls /usr/local/share/a"), "");
        }
        std::thread::sleep(Duration::from_millis(50));
        fs::rename(place.join("a"), place.join("c")).expect("renamed");
        fs::rename(place.join("b"), place.join("a")).expect("renamed");
        assert_eq!(said(&recipe, "ls /usr/local/share/a"), "");
    });
}

/// Who needs the last range of ids has it.
fn it_keeps_nothing_from_others() {
    alone("it_keeps_nothing_from_others", || {
        let two = sandbox().id_base(0xfffd_0000);
        warm(&two);
        let one = two.start().expect("a range is free");
        let other = two.start().expect("so is the other");
        assert_eq!(two.start().expect_err("there are two").kind(), ErrorKind::Exhausted);
        drop((one, other));
    });
}

/// A recipe that differs in anything isn't the same recipe.
fn another_recipe_has_its_own() {
    alone("another_recipe_has_its_own", || {
        let recipe = sandbox().file("/etc/answer", "one");
        for turn in 0..5 {
            warm(&recipe);
            assert_eq!(said(&recipe.clone().file("/etc/answer", format!("{turn}")), "cat /etc/answer"), turn.to_string());
            warm(&recipe);
            assert_eq!(said(&recipe.clone().hostname("other"), "hostname"), "other");
            warm(&recipe);
            assert_eq!(said(&recipe.clone().tmpfs("/work", MIB), "df /work | tail -n 1 | grep -c ' /work$'"), "1");
            warm(&recipe);
            let few = recipe.clone().open_files(77);
            assert_eq!(said(&few, "ulimit -n"), "77");
            warm(&recipe);
            assert_eq!(said(&recipe, "cat /etc/answer"), "one");
        }
    });
}

/// A mount that the host makes below its /usr shows in the next run.
fn the_hosts_mounts_are_seen() {
    alone("the_hosts_mounts_are_seen", || {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("private");
        let recipe = sandbox();
        warm(&recipe);
        let place = Path::new("/usr/local/share");
        assert!(place.is_dir(), "no {}", place.display());
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounted");
        fs::write(place.join("mounted-over"), "").expect("a file");
        assert_eq!(said(&recipe, "ls /usr/local/share"), "mounted-over");
    });
}

/// What nobody takes ends by itself, and soon.
fn it_does_not_wait_for_long() {
    alone("it_does_not_wait_for_long", || {
        let recipe = sandbox();
        warm(&recipe);
        let ours = || processes::inits(std::process::id()).iter().flat_map(|init| processes::children(init.pid)).collect::<Vec<_>>();
        // One that init has made ahead has no child; a sandbox that stands has its command's process.
        let standing = || ours().iter().filter(|process| !processes::children(process.pid).is_empty()).count();
        processes::eventually(support::patience(LONG), "nothing stands", || standing() == 0);
        // And it's no loss.
        assert_eq!(said(&recipe, "echo fine"), "fine");
        quiet();
    });
}

/// Whoever kills it spoils nothing.
fn one_that_was_killed_is_no_loss() {
    alone("one_that_was_killed_is_no_loss", || {
        let recipe = sandbox();
        for _ in 0..20 {
            warm(&recipe);
            let init = processes::inits(std::process::id()).remove(0);
            let victims = processes::children(init.pid);
            for process in &victims {
                let _ = kill(Pid::from_raw(process.pid as i32), Signal::SIGKILL);
            }
            let began = Instant::now();
            match recipe.run("true") {
                Ok(out) => assert!(out.success(), "{out}"),
                // It was killed between the look at it and its command, or its maker was.
                Err(error) => assert!(matches!(error.kind(), ErrorKind::Lost | ErrorKind::Setup), "{error}"),
            }
            processes::eventually(LONG, "they are dead", || processes::alive(&victims).is_empty());
            assert!(began.elapsed() < support::patience(LONG), "it hung");
        }
        quiet();
    });
}

/// Threads that run at the same time have nothing from each other.
fn threads_do_not_mix() {
    alone("threads_do_not_mix", || {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    let recipe = sandbox().file("/thread", thread.to_string());
                    for turn in 0..40 {
                        assert_eq!(said(&recipe, &format!("cat /thread; echo {turn}")), format!("{thread}{turn}"));
                    }
                });
            }
        });
        quiet();
    });
}

fn main() {
    support::main(vec![
        test!(verdicts_are_the_same),
        test!(limits_hold_each_time),
        test!(each_is_fresh),
        test!(another_root_is_seen),
        test!(changes_of_the_root_are_seen),
        test!(what_lies_below_the_root_is_looked_up_again),
        test!(mounts_stay_in_their_place, root),
        test!(it_keeps_nothing_from_others, root),
        test!(another_recipe_has_its_own),
        test!(the_hosts_mounts_are_seen, root),
        test!(it_does_not_wait_for_long),
        test!(one_that_was_killed_is_no_loss),
        test!(threads_do_not_mix),
    ])
}
