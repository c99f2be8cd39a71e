//! Archives that we take, beside GNU tar: what both unpack is the same. Whoever reads an
//! archive otherwise than the tool that everybody has is the one who can be deceived.
#![no_main]

#[path = "../../tests/support/gnu_tar.rs"]
mod gnu_tar;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cofferdam::internals::layers::{Unpack, with_checksums};
use gnu_tar::{Comparison, compare};

fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let scratch = base.join(format!("cofferdam-tar-{}", std::process::id()));
        fs::create_dir_all(&scratch).expect("a directory");
        fs::set_permissions(&scratch, fs::Permissions::from_mode(0o755)).expect("its mode");
        scratch
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let bytes = with_checksums(bytes);
    // A layer's markers are files to tar.
    if bytes.windows(4).any(|window| window == b".wh.") {
        return;
    }
    let how = Unpack { single: true, max_bytes: Some(1 << 20), max_inodes: Some(1000), ..Unpack::default() };
    if let Comparison::Different(how) = compare(&bytes, scratch(), &how, false) {
        panic!("{how}");
    }
});
