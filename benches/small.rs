//! Small functions that a run, or the opening of an image, passes through.
//!
//! `cargo bench --bench small -- [FILTER]`.

use std::fs;
use std::path::Path;

use cofferdam::internals::{compiled, filter};
use cofferdam::{Image, ImageFormat, MIB, Sandbox, SyscallPolicy, Syscalls};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

fn recipe(image: &Image) -> Sandbox {
    Sandbox::new().rootfs(image).tmpfs("/t", MIB).file("/etc/made", "text").bind("/usr/share", "/share").user(1000, 1000)
}

/// It looks at the host's root.
#[divan::bench]
fn make_the_default_recipe() -> Sandbox {
    Sandbox::new()
}

/// With the claim on a range of ids, as root.
#[divan::bench]
fn compile_the_default_recipe(bencher: Bencher<'_, '_>) {
    let recipe = Sandbox::new();
    bencher.bench(|| compiled(black_box(&recipe)).expect("a plan"));
}

#[divan::bench]
fn compile_a_recipe_with_an_image(bencher: Bencher<'_, '_>) {
    let root = tempfile::tempdir().expect("a directory");
    let recipe = recipe(&Image::dir(root.path()));
    bencher.bench(|| compiled(black_box(&recipe)).expect("a plan"));
}

/// A policy that isn't one of the presets, which are compiled once for all.
#[divan::bench]
fn compile_a_filter() -> usize {
    filter(SyscallPolicy::from(Syscalls::Default).allow(black_box("ptrace"))).len()
}

#[divan::bench]
fn look_up_the_default_filter() -> usize {
    filter(black_box(Syscalls::Default)).len()
}

/// An archive of a few files, in a directory.
fn archive(directory: &Path) -> std::path::PathBuf {
    let (root, tar) = (directory.join("root"), directory.join("root.tar"));
    fs::create_dir(&root).expect("a directory");
    for name in ["one", "two"] {
        fs::write(root.join(name), name).expect("a file");
    }
    let made = std::process::Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".").status().expect("tar runs");
    assert!(made.success());
    tar
}

/// One whose layers the store has.
#[divan::bench]
fn open_a_known_image(bencher: Bencher<'_, '_>) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = cofferdam::Store::open(directory.path().join("store")).expect("a store").without_sync();
    let layout = directory.path().join("layout");
    let image = Image::options().store(&store).open(archive(directory.path())).expect("an image");
    image.save(&layout, ImageFormat::OciDirectory, "small").expect("saved");
    bencher.bench(|| Image::options().store(&store).open(black_box(&layout)).expect("an image"));
}
