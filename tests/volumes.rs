//! Volumes: what outlives sandboxes, who owns it, who may have it, and how it goes.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use cofferdam::{Child, ErrorKind, Exit, Sandbox, Store, Volume};
use support::{fresh_dir, shell};

const LONG: Duration = Duration::from_secs(60);
const NOW: Duration = Duration::ZERO;

fn store() -> Store {
    Store::open(fresh_dir("store-").join("store")).expect("a store")
}

fn sandbox(volume: &Volume) -> Sandbox {
    Sandbox::new().wall_time(support::patience(LONG)).volume(volume, "/v")
}

fn run(sandbox: &Sandbox, script: &str) -> String {
    sandbox.run(shell(script)).expect("it runs").exit_ok().expect("success").text().into_owned()
}

/// A command that runs until it's killed.
fn lasting(sandbox: &Sandbox) -> Child {
    sandbox.spawn(["sleep", "1000"]).expect("it starts")
}

/// Users that a sandbox can have here.
fn users() -> Vec<u32> {
    vec![0, 1000]
}

fn what_is_written_outlives_the_sandbox() {
    let store = store();
    for user in users() {
        let volume = store.volume(&format!("v{user}")).expect("a volume");
        let sandbox = sandbox(&volume).user(user, user);
        run(&sandbox, "mkdir /v/d && echo one > /v/d/file");
        assert_eq!(run(&sandbox, "echo two >> /v/d/file; cat /v/d/file; stat -c %u /v/d"), format!("one\ntwo\n{user}\n"));
        let again = store.volume(&format!("v{user}")).expect("the same volume");
        assert_eq!(fs::read_to_string(again.path().join("d/file")).expect("there"), "one\ntwo\n");
    }
    let volume = store.volume("live").expect("a volume");
    let instance = sandbox(&volume).start().expect("it starts");
    instance.run(shell("echo live > /v/file")).expect("it runs").exit_ok().expect("success");
    assert_eq!(run(&sandbox(&volume), "cat /v/file"), "live\n");
    assert_eq!(store.volumes().expect("a list"), ["live", "v0", "v1000"]);
    drop(instance);
    // What other users have made nobody else could remove.
    ["live", "v0", "v1000"].iter().for_each(|name| store.remove_volume(name).expect("it goes"));
}

fn read_only_it_cannot_be_written() {
    let volume = store().volume("v").expect("a volume");
    run(&sandbox(&volume), "echo one > /v/file");
    let out = sandbox(&volume.read_only()).run(shell("cat /v/file; echo two > /v/file || echo refused")).expect("it runs");
    assert_eq!(out.text(), "one\nrefused\n");
    assert_eq!(fs::read_to_string(volume.path().join("file")).expect("there"), "one\n");
}

fn one_that_is_exclusive_has_one_writer() {
    let store = store();
    let directory = fresh_dir("volume-");
    for volume in [store.volume("v").expect("a volume"), Volume::dir(&directory).expect("a volume")] {
        let mut first = lasting(&sandbox(&volume.exclusive(NOW)));
        let refused = sandbox(&volume.exclusive(NOW)).run("true").expect_err("it's taken");
        assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
        assert_eq!(sandbox(&volume.exclusive(NOW)).start().expect_err("it's taken").kind(), ErrorKind::Busy);
        let refused = sandbox(&volume.read_only().exclusive(Duration::from_millis(50))).run("true").expect_err("it's taken");
        assert_eq!(refused.kind(), ErrorKind::Busy, "a reader that wants to be alone with readers");
        assert!(sandbox(&volume).run("true").expect("who doesn't ask isn't refused").success());
        assert!(sandbox(&volume.exclusive(NOW)).check().expect("a report").works(), "an attempt locks nothing");
        // Who waits gets it when the first has ended.
        thread::scope(|scope| {
            let second = scope.spawn(|| sandbox(&volume.exclusive(LONG)).run("true"));
            first.kill().expect("a signal");
            assert_eq!(first.wait().expect("its end"), Exit::Killed);
            assert!(second.join().expect("no panic").expect("it waited").success());
        });
        let _readers = [(); 2].map(|()| lasting(&sandbox(&volume.read_only().exclusive(NOW))));
        let twice = sandbox(&volume.read_only()).volume(&volume, "/w").volume(&volume, "/x");
        assert_eq!(run(&twice, "echo same > /w/file; cat /x/file /v/file"), "same\nsame\n");
    }
}

/// Its lock goes over to the sandbox that takes its place, past those who wait for it.
fn an_instance_keeps_its_volume_when_it_is_made_anew() {
    let store = store();
    let volume = store.volume("v").expect("a volume").exclusive(NOW);
    let mut instance = sandbox(&volume).start().expect("it starts");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| sandbox(&volume.exclusive(LONG)).run(shell("cat /v/count")));
        for i in 0..20 {
            instance.reset().expect("it's still ours");
            if i % 5 == 0 {
                instance.checkpoint().expect("it's still ours");
            }
            assert!(instance.run(shell("echo x >> /v/count")).expect("it runs").success());
        }
        assert!(!waiter.is_finished());
        drop(instance);
        assert_eq!(waiter.join().expect("no panic").expect("it waited").text(), "x\n".repeat(20));
    });
}

fn two_with_the_same_volumes_take_turns() {
    let store = store();
    let (a, b) = (store.volume("a").expect("a volume").exclusive(LONG), store.volume("b").expect("a volume").exclusive(LONG));
    let orders = [[&a, &b], [&b, &a]].map(|[one, two]| Sandbox::new().volume(one, "/1").volume(two, "/2"));
    thread::scope(|scope| {
        for sandbox in &orders {
            scope.spawn(move || (0..10).for_each(|_| assert!(sandbox.run("true").expect("its turn comes").success())));
        }
    });
}

fn who_has_it_keeps_it_from_being_removed() {
    let store = store();
    let volume = store.volume("v").expect("a volume");
    let mut user = lasting(&sandbox(&volume.read_only()));
    assert_eq!(store.remove_volume("v").expect_err("it's used").kind(), ErrorKind::Busy);
    assert_eq!(store.volumes().expect("a list"), ["v"]);
    user.kill().expect("a signal");
    user.wait().expect("its end");
    store.remove_volume("v").expect("nobody has it");
    assert_eq!(store.remove_volume("v").expect_err("there's none").kind(), ErrorKind::NotFound);
    let gone = sandbox(&volume).run("true").expect_err("it has been removed");
    assert_eq!(gone.kind(), ErrorKind::Mount, "{gone}");
}

fn whatever_a_workload_made_can_be_removed() {
    let store = store();
    for user in users() {
        let volume = store.volume("v").expect("a volume");
        let script = "umask 077; mkdir -p /v/a/b/c && echo x > /v/a/b/c/file && chmod 0 /v/a/b/c /v/a/b /v/a;
            mkdir -p /v/$(printf 'x/%.0s' $(seq 400)) && mkfifo /v/fifo && ln -s /nowhere /v/link";
        run(&sandbox(&volume).user(user, user), script);
        store.remove_volume("v").expect("it goes");
        let left: Vec<_> = fs::read_dir(store.path().join("volumes")).expect("a directory").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
    // What a process that was killed had still to remove.
    store.volume("v").expect("a volume");
    let volumes = store.path().join("volumes");
    fs::rename(volumes.join("v"), volumes.join(".1-2-3")).expect("renamed");
    assert_eq!(store.volumes().expect("a list").len(), 0);
    assert_eq!(store.prune().expect("pruned").leftovers, 1);
    assert!(!volumes.join(".1-2-3").exists());
}

fn names_that_lead_elsewhere_are_refused() {
    let store = store();
    let long = "x".repeat(65);
    for name in ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "-rf", "a\0b", "a b", "ö", long.as_str()] {
        assert_eq!(store.volume(name).expect_err("no name").kind(), ErrorKind::Invalid, "{name:?}");
        assert_eq!(store.remove_volume(name).expect_err("no name").kind(), ErrorKind::Invalid, "{name:?}");
    }
    assert!(store.volumes().expect("a list").is_empty());
}

/// A file of the host's that nobody in a sandbox may change.
fn secret() -> PathBuf {
    let directory = fresh_dir("secret-");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).expect("its mode");
    let file = directory.join("file");
    fs::write(&file, "secret").expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("its mode");
    file
}

fn links_that_a_workload_left_lead_nobody_out() {
    let store = store();
    let volume = store.volume("v").expect("a volume");
    let file = secret();
    let directory = file.parent().expect("a directory");
    run(
        &sandbox(&volume),
        &format!("ln -s {} /v/file; ln -s {} /v/dir; ln -s ../../../../../../.. /v/up", file.display(), directory.display()),
    );
    // Everything that a recipe can put at such a place.
    let up = format!("/v/up{}", directory.display());
    let recipes = [
        sandbox(&volume).file("/v/file", "changed"),
        sandbox(&volume).file("/v/dir/new", "changed"),
        sandbox(&volume).file(format!("{up}/new"), "changed"),
        sandbox(&volume).tmpfs("/v/dir/new", 4096),
        sandbox(&volume).volume(&store.volume("w").expect("a volume"), "/v/dir"),
        sandbox(&volume).volume(&store.volume("w").expect("a volume"), format!("{up}/new")),
    ];
    for (i, recipe) in recipes.iter().enumerate() {
        // Whether it's refused or happens inside: the host isn't touched.
        let _ = recipe.run(shell(&format!("cat /v/file; echo changed > /v/file; echo changed > /v/dir/new; rm -r {up}/*")));
        assert_eq!(fs::read_to_string(&file).expect("there"), "secret", "recipe {i}");
        assert_eq!(fs::read_dir(directory).expect("a directory").count(), 1, "recipe {i}");
    }
    store.remove_volume("v").expect("it goes");
    assert_eq!(fs::read_to_string(&file).expect("there"), "secret");
}

fn a_directory_is_taken_as_it_is_and_never_through_a_link() {
    let directory = fresh_dir("volume-");
    let (inner, link, plain) = (directory.join("d"), directory.join("link"), directory.join("file"));
    fs::create_dir(&inner).expect("made");
    symlink(&inner, &link).expect("made");
    fs::write(&plain, "").expect("written");
    for wrong in [link, plain, directory.join("missing")] {
        assert_eq!(Volume::dir(&wrong).expect_err("no directory").kind(), ErrorKind::Mount, "{}", wrong.display());
    }
    run(&sandbox(&Volume::dir(&inner).expect("a volume")), "echo x > /v/file");
    assert_eq!(fs::read_to_string(inner.join("file")).expect("there"), "x\n");
}

fn no_program_there_gains_rights() {
    let volume = store().volume("v").expect("a volume");
    let script = "cp /bin/true /v/program; chmod 4755 /v/program; chmod 0755 /v/program 2>/dev/null; stat -c %a /v/program";
    assert_eq!(run(&sandbox(&volume), script), "755\n");
    let mode = fs::metadata(volume.path().join("program")).expect("there").permissions().mode();
    assert_eq!(mode & 0o6000, 0);
}

fn main() {
    support::main_with_subordinate_ids(vec![
        test!(what_is_written_outlives_the_sandbox),
        test!(read_only_it_cannot_be_written),
        test!(one_that_is_exclusive_has_one_writer),
        test!(an_instance_keeps_its_volume_when_it_is_made_anew, support::Need::Checkpoint),
        test!(two_with_the_same_volumes_take_turns),
        test!(who_has_it_keeps_it_from_being_removed),
        test!(whatever_a_workload_made_can_be_removed),
        test!(names_that_lead_elsewhere_are_refused),
        test!(links_that_a_workload_left_lead_nobody_out),
        test!(a_directory_is_taken_as_it_is_and_never_through_a_link),
        test!(no_program_there_gains_rights),
    ]);
}
