//! Each step of a plan made to fail once: an error that says what could not be done, and
//! nothing left. So for runs, for live sandboxes and the commands in them, for pools, and
//! on checkpoints.

mod support;

use std::fs;
use std::time::Duration;

use cofferdam::{Capability, Error, ErrorKind, Image, InstancePool, Layer, MIB, Network, Output, Pool, Sandbox, Store};
use support::inventory::{inventory, nothing_more_than};
use support::{Need, busybox_root, fresh_dir, host};

const QUIET: Duration = Duration::from_secs(30);

/// Does something with a recipe of which step 0 fails, then step 1, until there's none.
fn step_by_step(sandbox: &Sandbox, attempt: fn(&Sandbox) -> Result<Output, Error>) {
    let (mut tolerated, mut failed) = (0, 0);
    for number in 0.. {
        let error = match attempt(&sandbox.clone().with_failing_step(number)) {
            Ok(out) => {
                // The kernel may lack it, and the outcome tells.
                assert!(out.success() && out.missing.contains(&Layer::Landlock), "step {number}: {out}, without {:?}", out.missing);
                tolerated += 1;
                continue;
            }
            Err(error) => error,
        };
        let text = error.to_string();
        if text.contains("the plan has no step") {
            break;
        }
        failed += 1;
        assert_ne!(error.kind(), ErrorKind::Lost, "step {number}: {text}");
        assert!(text.starts_with("cannot ") && text.contains("Function not implemented"), "step {number}: {text}");
        if number % 8 == 0 {
            assert!(attempt(sandbox).expect("it works").success(), "after step {number}");
        }
    }
    assert!(failed >= 100, "{failed} steps failed");
    // A ruleset of Landlock's is made, and is put in force.
    assert!(tolerated <= 2, "{tolerated} steps may fail unnoticed");
}

/// In a host of its own: for nothing may be left.
fn nothing_is_left_after(name: &str, sandbox: fn() -> Sandbox, attempt: fn(&Sandbox) -> Result<Output, Error>) {
    host::alone(name, || {
        let sandbox = sandbox();
        for _ in 0..4 {
            assert!(attempt(&sandbox).expect("it works").success());
        }
        assert!(cofferdam::quiesce(QUIET).expect("an answer"));
        let before = inventory();
        step_by_step(&sandbox, attempt);
        assert!(cofferdam::quiesce(QUIET).expect("an answer"));
        nothing_more_than(&before);
    });
}

fn run(sandbox: &Sandbox) -> Result<Output, Error> {
    sandbox.run("true")
}

/// A live sandbox, and a command in it.
fn live(sandbox: &Sandbox) -> Result<Output, Error> {
    sandbox.start()?.run("true")
}

/// A sandbox made ahead, and its command.
fn prepared(sandbox: &Sandbox) -> Result<Output, Error> {
    Pool::new(sandbox.clone(), 1)?.run("true")
}

/// A live sandbox made ahead, and a command in it.
fn prepared_live(sandbox: &Sandbox) -> Result<Output, Error> {
    InstancePool::new(sandbox.clone(), 1)?.take()?.run("true")
}

fn plain() -> Sandbox {
    Sandbox::new().tmpfs("/t", MIB).file("/f", "text").bind("/usr/bin", "/b")
}

fn of_an_image() -> Sandbox {
    Sandbox::new().rootfs(Image::dir(busybox_root())).user(1000, 1000)
}

/// With everything that an image can be given.
fn of_an_image_with_all() -> Sandbox {
    let directory = fresh_dir("store-");
    let tar = directory.join("image.tar");
    let made = std::process::Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(busybox_root()).arg(".").status();
    assert!(made.expect("tar runs").success());
    let store = Store::open(directory.join("store")).expect("a store").without_sync();
    let image = Image::options().store(&store).open(&tar).expect("an image");
    let volume = store.volume("data").expect("a volume");
    let data = directory.join("data");
    fs::create_dir(&data).expect("a directory");
    let sandbox = Sandbox::new().rootfs(&image).keep_changes(true).volume(&volume.exclusive(QUIET), "/volume").bind_rw(&data, "/data");
    let sandbox = sandbox.file("/etc/made", "text").file_mode("/made/here", "text", 0o600).tmpfs("/made/tmpfs", MIB);
    let sandbox = sandbox.capabilities(Capability::DOCKER).nesting().network(Network::Host).aslr(false).hostname("other");
    let sandbox = sandbox.memory(64 * MIB).processes(32).cpu_time(QUIET);
    [Layer::MemoryLimit, Layer::ProcessLimit, Layer::CpuAccount].into_iter().fold(sandbox, Sandbox::prefer)
}

/// On a checkpoint, whose own steps don't fail.
fn on_a_checkpoint() -> Sandbox {
    let instance = of_an_image().start().expect("it starts");
    instance.write("/tmp/kept", "kept").expect("written");
    instance.into_checkpoint().expect("a checkpoint").sandbox()
}

fn any_step_of_a_run_may_fail() {
    nothing_is_left_after("any_step_of_a_run_may_fail", plain, run);
}

fn any_step_in_an_image_may_fail() {
    nothing_is_left_after("any_step_in_an_image_may_fail", of_an_image, run);
}

fn any_step_of_whatever_an_image_is_given_may_fail() {
    nothing_is_left_after("any_step_of_whatever_an_image_is_given_may_fail", of_an_image_with_all, run);
}

fn any_step_of_a_live_sandbox_may_fail() {
    nothing_is_left_after("any_step_of_a_live_sandbox_may_fail", of_an_image_with_all, live);
}

fn any_step_of_a_pool_may_fail() {
    nothing_is_left_after("any_step_of_a_pool_may_fail", plain, prepared);
}

fn any_step_of_a_pool_of_live_sandboxes_may_fail() {
    nothing_is_left_after("any_step_of_a_pool_of_live_sandboxes_may_fail", on_a_checkpoint, prepared_live);
}

fn any_step_on_a_checkpoint_may_fail() {
    nothing_is_left_after("any_step_on_a_checkpoint_may_fail", on_a_checkpoint, run);
}

fn any_step_of_a_live_sandbox_on_a_checkpoint_may_fail() {
    nothing_is_left_after("any_step_of_a_live_sandbox_on_a_checkpoint_may_fail", on_a_checkpoint, live);
}

fn main() {
    const BUSYBOX: Need = Need::Tool("busybox");
    support::main(vec![
        test!(any_step_of_a_run_may_fail),
        test!(any_step_in_an_image_may_fail, BUSYBOX, Need::Overlay),
        test!(any_step_of_whatever_an_image_is_given_may_fail, BUSYBOX, Need::Overlay),
        test!(any_step_of_a_live_sandbox_may_fail, BUSYBOX, Need::Overlay),
        test!(any_step_of_a_pool_may_fail),
        test!(any_step_of_a_pool_of_live_sandboxes_may_fail, BUSYBOX, Need::Checkpoint),
        test!(any_step_on_a_checkpoint_may_fail, BUSYBOX, Need::Checkpoint),
        test!(any_step_of_a_live_sandbox_on_a_checkpoint_may_fail, BUSYBOX, Need::Checkpoint),
    ])
}
