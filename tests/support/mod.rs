//! What the integration tests share: a harness that can skip, and that runs a test
//! a second time as an ordinary user.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod host;
pub mod processes;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libtest_mimic::{Arguments, Failed, Trial};

/// An id that belongs to nobody on the machine.
pub const ORDINARY: u32 = 54_321;

/// What a test needs of the machine.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// To be root.
    Root,
    /// A program on the host.
    Tool(&'static str),
    /// An overlay of an ordinary user: tmpfs with user.* attributes (Linux 6.6).
    UserOverlay,
}

impl Need {
    /// Why it isn't there.
    fn missing(self) -> Option<String> {
        match self {
            Need::Root => (!is_root()).then(|| "needs root".into()),
            Need::Tool(name) => which(name).is_none().then(|| format!("needs the program `{name}` (tests/run.sh installs it)")),
            Need::UserOverlay => (!is_root() && kernel() < (6, 6)).then(|| "an ordinary user's overlay needs Linux 6.6".into()),
        }
    }
}

/// A test: its name, what it needs, whether it runs as an ordinary user too.
pub struct Test {
    pub name: &'static str,
    pub needs: &'static [Need],
    pub both: bool,
    pub body: fn(),
}

/// `test!(name)` runs the function as whoever runs the tests and, if that's root,
/// once more as an ordinary user; `test!(name, root)` only as root.
#[macro_export]
macro_rules! test {
    ($body:ident) => { $crate::support::Test { name: stringify!($body), needs: &[], both: true, body: $body } };
    ($body:ident, root) => { $crate::support::Test { name: stringify!($body), needs: &[$crate::support::Need::Root], both: false, body: $body } };
    ($body:ident, $($need:expr),+) => { $crate::support::Test { name: stringify!($body), needs: &[$($need),+], both: true, body: $body } };
}

/// Runs the tests and ends the process.
pub fn main(tests: Vec<Test>) -> ! {
    let mut arguments = Arguments::from_args();
    // Two cores, and sandboxes that use both: more at once only makes time limits lie.
    arguments.test_threads.get_or_insert(2);
    let mut trials = Vec::new();
    for test in tests {
        trials.push(trial(test.name.to_string(), test.needs, test.body));
        if test.both && is_root() {
            let name = test.name;
            trials.push(Trial::test(format!("{name}::as_ordinary_user"), move || as_ordinary_user(name)));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(directory) = SCRATCH.get() {
        let _ = fs::remove_dir_all(directory.path());
    }
    conclusion.exit()
}

fn trial(name: String, needs: &[Need], body: fn()) -> Trial {
    let missing: Vec<String> = needs.iter().filter_map(|need| need.missing()).collect();
    if !missing.is_empty() {
        eprintln!("skipped: {name}: {}", missing.join("; "));
    }
    Trial::test(name, move || {
        body();
        Ok(())
    })
    .with_ignored_flag(!missing.is_empty())
}

/// Runs one test of this binary in a process of an ordinary user.
fn as_ordinary_user(name: &str) -> Result<(), Failed> {
    let output = ordinary(&world_readable_copy(), &[name, "--exact", "--test-threads=1", "--nocapture"]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(text.into());
    }
    if text.contains("1 ignored") {
        // The harness can't mark a running test as skipped: say it, at least.
        println!("skipped as an ordinary user: {text}");
    }
    Ok(())
}

/// Runs a program as an ordinary user, in a directory of its own.
pub fn ordinary(program: &Path, arguments: &[&str]) -> std::process::Output {
    ordinary_command(program).args(arguments).output().expect("the program starts")
}

/// A command that will run as an ordinary user.
pub fn ordinary_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.uid(ORDINARY).gid(ORDINARY).current_dir("/").env("TMPDIR", "/tmp").env("HOME", "/nonexistent");
    command
}

/// This test binary where everybody can execute it.
pub fn world_readable_copy() -> PathBuf {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| {
        let own = std::env::current_exe().expect("a path of our own");
        copy_for_all(&own)
    })
    .clone()
}

/// Copies an executable to a place that everybody can reach.
pub fn copy_for_all(executable: &Path) -> PathBuf {
    let directory = scratch();
    let copy = directory.join(executable.file_name().expect("a name"));
    fs::copy(executable, &copy).expect("a copy");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("its mode");
    copy
}

static SCRATCH: OnceLock<tempfile::TempDir> = OnceLock::new();

/// A directory of this process's, open to all, removed when the tests have ended.
pub fn scratch() -> PathBuf {
    let directory = SCRATCH.get_or_init(|| {
        let directory = tempfile::Builder::new().prefix("cofferdam-test-").tempdir().expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
        directory
    });
    directory.path().to_path_buf()
}

/// A fresh, empty directory below [`scratch`].
pub fn fresh_dir(name: &str) -> PathBuf {
    let directory = tempfile::Builder::new().prefix(name).tempdir_in(scratch()).expect("a directory").keep();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("its mode");
    directory
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Where a program of that name is.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|d| d.join(name)).find(|p| p.is_file())
}

/// The kernel's version.
pub fn kernel() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = text.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// A root file system of nothing but static busybox.
pub fn busybox_root() -> PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = fresh_dir("busybox-");
        let bin = root.join("bin");
        fs::create_dir(&bin).expect("bin");
        fs::copy(which("busybox").expect("busybox"), bin.join("busybox")).expect("busybox");
        fs::set_permissions(bin.join("busybox"), fs::Permissions::from_mode(0o755)).expect("its mode");
        let list = Command::new(bin.join("busybox")).arg("--list").output().expect("busybox runs");
        for applet in String::from_utf8_lossy(&list.stdout).lines() {
            let link = bin.join(applet);
            if !link.exists() {
                std::os::unix::fs::symlink("busybox", link).expect("a link");
            }
        }
        root
    })
    .clone()
}

/// Compiles a C program; where everybody can execute it.
pub fn compile_c(name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let directory = fresh_dir("c-");
    let (file, program) = (directory.join(format!("{name}.c")), directory.join(name));
    fs::write(&file, source).expect("the source");
    let output = Command::new("gcc").arg("-O1").arg("-o").arg(&program).arg(&file).args(flags).output().expect("gcc runs");
    assert!(output.status.success(), "gcc: {}", String::from_utf8_lossy(&output.stderr));
    program
}
