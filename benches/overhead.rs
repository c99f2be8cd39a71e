//! What a workload pays for being in a sandbox, as ratios to the same outside.
//!
//! `cargo bench --bench overhead -- [rounds=NUMBER] [PART]...`: parts are `compile` (`gcc -c`), `files` (many
//! small ones are copied, searched, put into an archive and removed) and `filter` (its
//! installation, and a system call under it), all by default. The ways take turns, a round of
//! each. What counts of the first two is CPU time, the kernel's included, which others on the
//! machine disturb little; of a run that is the time from exec on, because the start is what
//! `compare` measures.
//!
//! *Inside* is the default recipe; *without filter* the same with `Syscalls::Unfiltered`,
//! which tells the filter's part from that of the file systems. Everybody writes to a
//! tmpfs. In the job of many files all that is read lies on an overlay.

#![allow(unsafe_code, reason = "a filter is installed by a system call that has no safe form here")]

#[allow(dead_code, reason = "shared with `compare`")]
#[path = "compare/figures.rs"]
mod figures;
#[allow(dead_code, reason = "shared with `compare`")]
#[path = "compare/report.rs"]
mod report;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::time::{Duration, Instant};

use cofferdam::internals::{Instruction, filter};
use cofferdam::{Command, Image, Sandbox, Syscalls};
use figures::{Figures, Goal, Line};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

fn rounds() -> usize {
    let given = std::env::args().find_map(|argument| argument.strip_prefix("rounds=")?.parse().ok());
    given.unwrap_or(30)
}

fn wanted(part: &str) -> bool {
    let mut parts = std::env::args().skip(1).filter(|argument| !argument.starts_with("--") && !argument.contains('=')).peekable();
    parts.peek().is_none() || parts.any(|wanted| wanted == part)
}

/// Of all children that this process has waited for.
fn cpu_time_of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("it's known");
    Duration::from_micros((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as u64)
}

/// A way to do something; the time that it took.
type Way<'a> = Box<dyn Fn() -> Duration + 'a>;

/// Rounds of all ways, in an order that changes, after one that doesn't count.
fn take_turns<const N: usize>(rounds: usize, ways: [Way<'_>; N]) -> [Figures; N] {
    let mut times = [const { Vec::new() }; N];
    for round in 0..=rounds {
        for step in 0..N {
            let which = (round + step) % N;
            let time = ways[which]();
            if round > 0 {
                times[which].push(time);
            }
        }
    }
    times.map(|times| Figures::of(&times))
}

/// With this shell, in this directory.
fn outside((shell, script, directory): (&Path, &str, &Path)) -> Duration {
    let before = cpu_time_of_children();
    let status = Program::new(shell).args(["-ec", script]).current_dir(directory).status().expect("a shell runs");
    assert!(status.success(), "{script}");
    cpu_time_of_children() - before
}

fn inside(sandbox: &Sandbox, script: &str) -> Duration {
    let out = sandbox.run(Command::new("sh").args(["-ec", script]).current_dir("/tmp")).expect("it runs");
    assert!(out.success(), "{out}: {}", String::from_utf8_lossy(&out.stderr));
    out.usage.cpu()
}

/// Of a job done outside, inside, and inside without a filter.
fn tell(what: &str, [outside, inside, unfiltered]: [Figures; 3], lines: &mut Vec<Line>) {
    let mut line = Line::ratio(&format!("{what}: inside / outside"), inside, outside, Goal::None);
    line.note = format!("{:.0} ms of CPU time outside", outside.median / 1000.0);
    lines.push(line);
    lines.push(Line::ratio(&format!("{what}: inside / inside without filter"), inside, unfiltered, Goal::None));
}

/// Does a job in three ways; outside with a shell of its own.
fn compare(what: &str, rounds: usize, lines: &mut Vec<Line>, sandbox: &Sandbox, out: (&Path, &str, &Path), within: &str) {
    let open = sandbox.clone().syscalls(Syscalls::Unfiltered);
    let ways = [
        Box::new(|| outside(out)) as Way<'_>,
        Box::new(|| inside(sandbox, within)) as Way<'_>,
        Box::new(|| inside(&open, within)) as Way<'_>,
    ];
    tell(what, take_turns(rounds, ways), lines);
}

/// Many functions, so that the compiler is at work for a while.
fn source() -> String {
    let function = |i: usize| format!("int f{i}(int a, int *b) {{ for (int j = 0; j < a; j++) b[j] += a * j + {i}; return b[a - 1]; }}\n");
    (0..200).map(function).collect()
}

fn compile(rounds: usize, lines: &mut Vec<Line>, scratch: &Path) {
    if Program::new("gcc").arg("--version").output().is_err() {
        return lines.push(Line::told("a compile", "not measured: there's no gcc".into()));
    }
    fs::write(scratch.join("source.c"), source()).expect("a file");
    let sandbox = Sandbox::new().file("/tmp/source.c", source());
    let script = "gcc -O1 -c source.c -o source.o";
    compare("gcc -O1 -c", rounds, lines, &sandbox, (Path::new("/bin/sh"), script, scratch), script);
}

const DIRECTORIES: usize = 40;
const FILES: usize = 50;

/// A root file system with busybox and a tree of small files.
fn root(scratch: &Path, busybox: &Path) -> PathBuf {
    let root = scratch.join("root");
    for directory in ["bin", "proc", "dev", "tmp", "etc", "tree"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    fs::copy(busybox, root.join("bin/busybox")).expect("a copy");
    for name in ["sh", "cp", "find", "grep", "tar", "rm"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("a link");
    }
    for i in 0..DIRECTORIES {
        let directory = root.join("tree").join(i.to_string());
        fs::create_dir(&directory).expect("a directory");
        for j in 0..FILES {
            fs::write(directory.join(j.to_string()), format!("{i} {j}\n").repeat(200)).expect("a file");
        }
    }
    root
}

fn many_files(rounds: usize, lines: &mut Vec<Line>, scratch: &Path) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(busybox) = std::env::split_paths(&path).map(|directory| directory.join("busybox")).find(|file| file.is_file()) else {
        return lines.push(Line::told("many small files", "not measured: there's no busybox (Debian: busybox-static)".into()));
    };
    let root = root(scratch, &busybox);
    let sandbox = Sandbox::new().rootfs(Image::dir(&root));
    let job = |tree: &str, bin: &str| {
        format!(
            "PATH={bin}; cp -r {tree} copy; find copy -type f -name '*7' | grep -c 7 >/dev/null; \
             tar -cf copy.tar -C copy .; grep -r no-such-word {tree} || true; rm -r copy copy.tar"
        )
    };
    // The same programs on both sides.
    let (tree, bin) = (root.join("tree"), root.join("bin"));
    let out = job(&tree.to_string_lossy(), &bin.to_string_lossy());
    compare("many small files", rounds, lines, &sandbox, (&bin.join("sh"), &out, scratch), &job("/tree", "/bin"));
}

/// In a process of its own, just forked as a sandbox's is, of which the filter is.
fn apart(body: impl FnOnce() -> Duration) -> Duration {
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    // SAFETY: this program has one thread.
    match unsafe { nix::unistd::fork() }.expect("a process") {
        nix::unistd::ForkResult::Child => {
            let time = body().as_nanos() as u64;
            let _ = writer.write_all(&time.to_le_bytes());
            // SAFETY: nothing of the parent's is to be done twice.
            unsafe { libc::_exit(0) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            drop(writer);
            let mut time = [0; 8];
            reader.read_exact(&mut time).expect("a time");
            nix::sys::wait::waitpid(child, None).expect("its end");
            Duration::from_nanos(u64::from_le_bytes(time))
        }
    }
}

/// seccomp(2), as PID 1 does it.
fn install(program: &[Instruction]) -> Duration {
    let program: Vec<libc::sock_filter> = program.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: plain numbers; this process ends soon.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let begin = Instant::now();
    // SAFETY: the program lives and has that length.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    let time = begin.elapsed();
    assert_eq!(result, 0, "the filter is taken");
    time
}

/// AUDIT_ARCH_X86_64 or AUDIT_ARCH_AARCH64.
const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

fn the_filter(rounds: usize, lines: &mut Vec<Line>) {
    // The least that means anything: whatever is of this architecture is allowed. BPF_LD of
    // the architecture, BPF_JEQ, BPF_RET twice; and a load of the number, as all have it.
    let of_number = (0x20, 0, 0, 0);
    let allow_all = [
        (0x20, 0, 0, 4),
        (0x15, 1, 0, ARCHITECTURE),
        (0x06, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        of_number,
        (0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let (default, strict) = (filter(Syscalls::Default), filter(Syscalls::Strict));
    let time = |program: &[Instruction]| apart(|| install(program));
    let ways = [Box::new(|| time(&allow_all)) as Way<'_>, Box::new(|| time(&default)) as Way<'_>, Box::new(|| time(&strict)) as Way<'_>];
    let [least, of_default, of_strict] = take_turns(20 * rounds, ways);
    let mut line = Line::ratio("installing the default filter / an allow-all filter", of_default, least, Goal::AtMost(3.0));
    line.note = format!("{} instructions, {:.0} µs", default.len(), of_default.median);
    lines.push(line);
    lines.push(Line::ratio("installing the strict filter / an allow-all filter", of_strict, least, Goal::None));

    let calls = || {
        let begin = Instant::now();
        for _ in 0..100_000 {
            std::hint::black_box(nix::unistd::getppid());
        }
        begin.elapsed()
    };
    let under = |program: Option<&[Instruction]>| {
        apart(|| {
            program.map(install);
            calls()
        })
    };
    let ways = [Box::new(|| under(None)) as Way<'_>, Box::new(|| under(Some(&default))) as Way<'_>];
    let [without, with] = take_turns(rounds, ways);
    let mut line = Line::ratio("getppid with the default filter / without", with, without, Goal::AtMost(1.5));
    line.note = format!("{:.0} ns without", without.median * 1000.0 / 100_000.0);
    lines.push(line);
}

fn main() {
    let (rounds, mut lines) = (rounds(), Vec::new());
    // Where everybody writes to memory.
    let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    if wanted("compile") {
        compile(rounds, &mut lines, scratch.path());
    }
    if wanted("files") {
        many_files(rounds, &mut lines, scratch.path());
    }
    if wanted("filter") {
        the_filter(rounds, &mut lines);
    }
    print!("{}", report::lines(&lines));
}
