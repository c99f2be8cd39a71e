//! Builds init, the freestanding program that the crate embeds.
//!
//! init is compiled by the same `rustc` as the crate, without std, without libc
//! and without relocations, and is linked into a static executable of a few
//! kilobytes. Flags from `RUSTFLAGS` don't reach it on purpose: coverage or
//! sanitizer instrumentation would need a runtime that it doesn't have.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What the host compiles too; the rest is all that lies in `src/init`.
const SHARED: [&str; 2] = ["src/plan/message.rs", "src/plan/wire.rs"];

fn main() {
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let rustc = env::var("RUSTC").expect("cargo sets RUSTC");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        panic!("cofferdam needs Linux: the sandbox is made of the kernel's own parts");
    }
    let build = fingerprint();
    println!("cargo:rustc-env=COFFERDAM_BUILD={build}");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");

    let binary = Path::new(&out).join("cofferdam-init");
    let mut compile = Command::new(rustc);
    compile
        .args(["--edition", "2024", "--crate-name", "cofferdam_init", "--crate-type", "bin", "--target", &target])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "relocation-model=static", "-C", "target-feature=+crt-static"])
        .args(["-C", "debuginfo=0", "-C", "strip=symbols", "-C", "force-unwind-tables=no", "-C", "codegen-units=1", "-C", "lto=fat"])
        .env("COFFERDAM_BUILD", &build)
        .arg("-o")
        .arg(&binary)
        .arg("src/init/main.rs");
    if target.contains("musl") {
        // rustc would add the C start files that it brings along for musl.
        compile.args(["-C", "link-self-contained=no"]);
    }
    match env::var("RUSTC_LINKER") {
        Ok(linker) => {
            compile.arg("-C").arg(format!("linker={linker}"));
            let name = Path::new(&linker).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            compile.args(if name.contains("lld") { lld_arguments() } else { cc_arguments() });
        }
        Err(_) => {
            compile.args(cc_arguments());
        }
    }
    let status = compile.status().expect("cannot run rustc");
    assert!(status.success(), "cannot compile init, the first process of every sandbox (see the messages of rustc above)");
}

/// Arguments for a C compiler that serves as linker, the default.
fn cc_arguments() -> Vec<&'static str> {
    vec!["-C", "link-args=-nostartfiles -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,max-page-size=4096"]
}

/// Arguments for lld used directly, where there is no C compiler.
fn lld_arguments() -> Vec<&'static str> {
    vec!["-C", "linker-flavor=ld.lld", "-C", "link-args=-static --build-id=none -z noexecstack -z max-page-size=4096"]
}

/// A hash (FNV-1a) of everything that host and init must agree on.
fn fingerprint() -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut sources = SHARED.map(PathBuf::from).to_vec();
    add_sources(Path::new("src/init"), &mut sources);
    sources.sort();
    for source in sources {
        println!("cargo:rerun-if-changed={}", source.display());
        let text = fs::read(&source).unwrap_or_else(|error| panic!("cannot read {}: {error}", source.display()));
        for byte in text {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash.to_string()
}

fn add_sources(directory: &Path, sources: &mut Vec<PathBuf>) {
    // A file that's new is noticed too.
    println!("cargo:rerun-if-changed={}", directory.display());
    for entry in fs::read_dir(directory).expect("src/init can be read") {
        let path = entry.expect("src/init can be read").path();
        if path.is_dir() {
            add_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
}
