//! Layers in a scratch directory, on a tmpfs where there's one: whatever they say, nothing
//! beside their root changes, and what they leave can be removed.
#![no_main]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cofferdam::internals::layers::{Unpack, layers, remove_tree};

fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let scratch = base.join(format!("cofferdam-fuzz-{}", std::process::id()));
        fs::create_dir_all(scratch.join("s")).expect("a directory");
        fs::write(scratch.join("s/a"), "safe").expect("a file");
        scratch
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let scratch = scratch();
    fs::create_dir(scratch.join("root")).expect("a directory");
    let how = Unpack {
        overlay: [None, Some(true), Some(false), None][usize::from(first % 4)],
        single: true,
        max_bytes: Some(1 << 20),
        max_inodes: Some(1000),
        ..Unpack::default()
    };
    layers(bytes, File::open(scratch.join("root")).expect("a directory").as_fd(), &how);
    remove_tree(File::open(scratch).expect("a directory").as_fd(), "root".as_ref()).expect("it's removed");
    let beside: Vec<_> = fs::read_dir(scratch).expect("a directory").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(beside, ["s"]);
    assert_eq!(fs::read_dir(scratch.join("s")).expect("a directory").count(), 1);
    assert_eq!(fs::read(scratch.join("s/a")).expect("a file"), b"safe");
});
