//! What the integration tests share: a harness that can skip, and that runs a test
//! a second time as an ordinary user.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod around;
pub mod gnu_tar;
pub mod host;
pub mod image;
pub mod inventory;
pub mod processes;
pub mod random;
pub mod trees;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::resource::{Resource, getrlimit};

/// An id that belongs to nobody on the machine.
pub const ORDINARY: u32 = 54_321;

/// What a test needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To be root.
    Root,
    /// A program on the host.
    Tool(&'static str),
    /// A Debian root file system; see [`debian_root`].
    DebianRoot,
    /// That root file system's package archive, over the network.
    DebianMirror,
    /// The setting vm.memfd_noexec (Linux 6.3).
    MemfdNoexec,
    /// A C program of `tests/programs`: a compiler, or the program itself; see [`compile_c`].
    Program(&'static str),
    /// cgroup v2 with the controllers.
    Unified,
    /// Time that passes as on a real processor: promises of precision are measured.
    Clock,
    /// A clock that's nobody else's: that of the virtual machine.
    OwnClock,
    /// This version of Landlock, or a later one.
    Landlock(u32),
    /// The ABIs of x86_64.
    X86,
    /// An overlay of whoever runs it: an ordinary user's needs Linux 6.6.
    Overlay,
    /// An ordinary user's overlay, whoever runs the test.
    UsersOverlay,
    /// Checkpoints: an ordinary user's need an overlay.
    Checkpoint,
    /// To be allowed this many descriptors.
    Descriptors(u64),
    /// This many mebibytes of memory that nobody uses.
    Memory(u64),
    /// As root, a v1 hierarchy of this controller, for a group [`around`] a host.
    GroupsAround(&'static str),
    /// That root's sandboxes on a checkpoint share their ids; see [`main_with_shared_ids`].
    SharedIds,
}

impl Need {
    /// Why it isn't there.
    fn missing(self, root: bool) -> Option<String> {
        match self {
            Need::Root => (!root).then(|| "needs root".into()),
            Need::Tool(name) => which(name).is_none().then(|| format!("needs the program `{name}` (tests/run.sh installs it)")),
            Need::MemfdNoexec => (kernel() < (6, 3)).then(|| "vm.memfd_noexec came with Linux 6.3".into()),
            Need::Program(name) => match prebuilt(name) {
                Some(program) => (!program.is_file()).then(|| format!("needs {}", program.display())),
                None => Need::Tool("gcc").missing(root),
            },
            Need::Unified => {
                let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
                (!controllers.contains("memory")).then(|| "needs cgroup v2 with its controllers".into())
            }
            Need::Clock => (emulation() > 1).then(|| format!("this machine is emulated ({EMULATED}), so it measures nothing")),
            Need::OwnClock => {
                std::env::var_os(EMULATED).is_none().then(|| "sets the clock, in the virtual machine of tests/vm only".into())
            }
            Need::Overlay => (!root && kernel() < (6, 6)).then(|| "an ordinary user's overlay needs Linux 6.6".into()),
            Need::UsersOverlay => Need::Overlay.missing(false),
            Need::Checkpoint => Need::Overlay.missing(root),
            Need::Descriptors(least) => {
                let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
                (hard < least).then(|| format!("needs {least} descriptors (the hard limit of RLIMIT_NOFILE is {hard})"))
            }
            Need::Memory(least) => {
                let mib = available_memory() >> 20;
                (mib < least).then(|| format!("needs {least} MiB of memory, and {mib} are available"))
            }
            Need::GroupsAround(name) => (root && !around::is_possible(name)).then(|| format!("needs cgroup v1 with the controller {name}")),
            Need::SharedIds => (!shares_ids()).then(|| "tmpfs has idmapped mounts here".into()),
            Need::Landlock(least) => (landlock() < least).then(|| format!("needs version {least} of Landlock")),
            Need::X86 => (!cfg!(target_arch = "x86_64")).then(|| "it's about x86_64".into()),
            Need::DebianMirror => unreachable_mirror(),
            Need::DebianRoot => match debian_root() {
                Ok(path) if !root && !open_to_all(&path) => Some(format!("an ordinary user can't reach {}", path.display())),
                Ok(_) => None,
                Err(why) => Some(why),
            },
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
    ($body:ident, root, $($need:expr),+) => { $crate::support::Test { name: stringify!($body), needs: &[$crate::support::Need::Root, $($need),+], both: false, body: $body } };
    ($body:ident, $($need:expr),+) => { $crate::support::Test { name: stringify!($body), needs: &[$($need),+], both: true, body: $body } };
}

/// Runs the tests and ends the process.
pub fn main(tests: Vec<Test>) -> ! {
    run(tests, &[])
}

/// Like [`main`], and as root once more as an ordinary user who has subordinate ids.
pub fn main_with_subordinate_ids(tests: Vec<Test>) -> ! {
    run(tests, &[Again::SubordinateIds])
}

/// Like [`main_with_subordinate_ids`], and as root once more as if tmpfs had no idmapped
/// mounts.
pub fn main_with_shared_ids(tests: Vec<Test>) -> ! {
    if shares_ids() {
        cofferdam::internals::without_idmapped_tmpfs();
    }
    run(tests, &[Again::SubordinateIds, Again::SharedIds])
}

/// In which other surroundings root runs a test once more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    SubordinateIds,
    SharedIds,
}

fn run(tests: Vec<Test>, more: &[Again]) -> ! {
    let mut arguments = Arguments::from_args();
    // Two cores, and sandboxes that use both: more at once only makes time limits lie.
    arguments.test_threads.get_or_insert(2);
    let mut trials = Vec::new();
    for test in tests {
        let Test { name, needs, both, body } = test;
        let trial = Trial::test(name, move || {
            body();
            Ok(())
        });
        trials.push(unless_missing(trial, needs, is_root(), &arguments));
        if is_root() && more.contains(&Again::SharedIds) && !shares_ids() {
            let needs: Vec<Need> = needs.iter().copied().filter(|need| *need != Need::SharedIds).collect();
            let trial = Trial::test(format!("{name}::with_shared_ids"), move || {
                rerun(&["env", &format!("{SHARED_IDS}=1")], name, true);
                Ok(())
            });
            trials.push(unless_missing(trial, &needs, true, &arguments));
        }
        if both && is_root() {
            let trial = Trial::test(format!("{name}::as_ordinary_user"), move || as_ordinary_user(name));
            trials.push(unless_missing(trial, needs, false, &arguments));
            if more.contains(&Again::SubordinateIds) {
                let trial = Trial::test(format!("{name}::with_subordinate_ids"), move || {
                    in_subordinate_ids(name, false);
                    Ok(())
                });
                trials.push(unless_missing(trial, &[needs, &[Need::Tool("newuidmap"), Need::Tool("setpriv")]].concat(), false, &arguments));
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(directory) = SCRATCH.get() {
        let _ = fs::remove_dir_all(directory.path());
    }
    conclusion.exit()
}

/// Marks a test as ignored, aloud, if something that it needs isn't there. What
/// nobody asked to run isn't looked into: an answer may take a while.
fn unless_missing(trial: Trial, needs: &[Need], root: bool, arguments: &Arguments) -> Trial {
    if arguments.list || arguments.is_filtered_out(&trial) || is_again() {
        return trial;
    }
    let missing: Vec<String> = needs.iter().filter_map(|need| need.missing(root)).collect();
    if !missing.is_empty() {
        eprintln!("skipped: {}: {}", trial.name(), missing.join("; "));
    }
    trial.with_ignored_flag(!missing.is_empty())
}

/// Runs one test of this binary in a process of an ordinary user.
fn as_ordinary_user(name: &str) -> Result<(), Failed> {
    let output = ordinary(&world_readable_copy(), &[name, "--exact", "--test-threads=1", "--nocapture"]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Not ignored, which would count as passed: what it needs was looked into before.
    if output.status.success() && text.contains("1 passed") { Ok(()) } else { Err(text.into()) }
}

/// Runs a program as an ordinary user, in a directory of its own.
pub fn ordinary(program: &Path, arguments: &[&str]) -> std::process::Output {
    ordinary_command(program).args(arguments).output().expect("the program starts")
}

/// A command that will run as an ordinary user.
pub fn ordinary_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.uid(ORDINARY).gid(ORDINARY).current_dir("/").env("TMPDIR", std::env::temp_dir()).env("HOME", "/nonexistent");
    command
}

/// Set for such a second run.
pub const AGAIN: &str = "COFFERDAM_TEST_AGAIN";
const SHARED_IDS: &str = "COFFERDAM_TEST_SHARED_IDS";

/// Memory of the machine that can be had, in bytes.
pub fn available_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Whether root's sandboxes on a checkpoint share their ids.
pub fn shares_ids() -> bool {
    is_root() && (kernel() < (6, 3) || std::env::var_os(SHARED_IDS).is_some())
}

/// Runs one test of this binary once more in other surroundings: `through` is the
/// command line of a program that makes them and executes what follows.
pub fn again(through: &[&str], name: &str) {
    rerun(through, name, true);
}

fn rerun(through: &[&str], name: &str, by_itself: bool) {
    let mut command = Command::new(through[0]);
    command.args(&through[1..]).arg(world_readable_copy()).args([name, "--exact", "--test-threads=1", "--nocapture"]);
    if by_itself {
        command.env(AGAIN, "1");
    }
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", through[0]));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{through:?}: {text}");
}

/// Runs one test of this binary once more, as an ordinary user to whom a copy of /etc
/// gives subordinate ids.
pub fn with_subordinate_ids(name: &str) {
    in_subordinate_ids(name, true);
}

fn in_subordinate_ids(name: &str, by_itself: bool) {
    rerun(&subordinate_ids().iter().map(String::as_str).collect::<Vec<_>>(), name, by_itself);
}

/// Runs one test of this binary once more as an ordinary user, who has subordinate ids or
/// not, with these variables in its environment.
pub fn as_user(name: &str, subordinate: bool, variables: &[(&str, &std::ffi::OsStr)]) {
    let variables = variables.iter().map(|(name, value)| format!("{name}={}", value.to_str().expect("a text")));
    let mut through: Vec<String> = ["env".to_string()].into_iter().chain(variables).collect();
    match subordinate {
        true => through.extend(subordinate_ids()),
        false => {
            through.extend(["setpriv", &format!("--reuid={ORDINARY}"), &format!("--regid={ORDINARY}"), "--clear-groups"].map(String::from))
        }
    }
    rerun(&through.iter().map(String::as_str).collect::<Vec<_>>(), name, true);
}

/// A command line that makes an ordinary user with subordinate ids, and executes what
/// follows. What that one leaves for want of an id this process removes at its end.
fn subordinate_ids() -> Vec<String> {
    static ETC: OnceLock<PathBuf> = OnceLock::new();
    let etc = ETC.get_or_init(|| {
        let etc = fresh_dir("etc-");
        let script = format!(
            "cp -a /etc/. . && rm -f subuid subgid && echo ordinary:x:{ORDINARY}:{ORDINARY}::/nonexistent:/bin/sh >> passwd &&
            echo ordinary:200000:65536 | tee subuid > subgid"
        );
        let made = Command::new("sh").args(["-c", &script]).current_dir(&etc).status().expect("sh runs");
        assert!(made.success(), "a copy of /etc");
        etc
    });
    static TEMPORARY: OnceLock<PathBuf> = OnceLock::new();
    let temporary = TEMPORARY.get_or_init(|| {
        let temporary = fresh_dir("tmp-");
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o1777)).expect("its mode");
        temporary
    });
    let script = format!(
        "mount --bind {} /etc && export TMPDIR={} && exec setpriv --reuid={ORDINARY} --regid={ORDINARY} --clear-groups \"$@\"",
        etc.display(),
        temporary.display()
    );
    ["unshare", "--mount", "sh", "-c", &script, "sh"].map(String::from).to_vec()
}

/// Whether this is such a second run, which a test has started by itself.
pub fn is_again() -> bool {
    std::env::var_os(AGAIN).is_some()
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
    copy_program(executable, &copy);
    copy
}

/// Copies it by another process: a child that a thread of ours forks meanwhile would hold
/// the copy open for writing, and nobody could execute it.
fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success(), "cp {}", from.display());
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).expect("its mode");
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

const EMULATED: &str = "COFFERDAM_EMULATED";

/// How many times slower than a processor this machine is said to be; 1 for a real one.
pub fn emulation() -> u32 {
    std::env::var(EMULATED).map_or(1, |factor| factor.parse().expect("COFFERDAM_EMULATED is a number"))
}

/// How long to wait here for what takes at most this long on a real machine.
pub fn patience(time: Duration) -> Duration {
    time * emulation()
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

/// The version of Landlock, as far as `check` tells it; 0 where there's none.
pub fn landlock() -> u32 {
    use cofferdam::{Layer, LayerState, Sandbox};
    static VERSION: OnceLock<u32> = OnceLock::new();
    *VERSION.get_or_init(|| match Sandbox::new().check().expect("a report").state(Layer::Landlock) {
        // All that we use came with version 6.
        LayerState::Works => 6,
        LayerState::Partial(text) => {
            let digits = text.trim_start_matches("version ").chars().take_while(char::is_ascii_digit);
            digits.collect::<String>().parse().expect("a version")
        }
        _ => 0,
    })
}

/// A Debian root file system by mmdebstrap, made once and kept below cargo's target
/// directory, or found where COFFERDAM_TEST_ROOTS says.
pub fn debian_root() -> Result<PathBuf, String> {
    static ROOT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    ROOT.get_or_init(|| {
        let roots = match std::env::var_os("COFFERDAM_TEST_ROOTS") {
            Some(roots) => PathBuf::from(roots),
            None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-roots"),
        };
        let root = roots.join("debian");
        if root.is_dir() { Ok(root) } else { make_debian_root(root) }
    })
    .clone()
}

fn make_debian_root(root: PathBuf) -> Result<PathBuf, String> {
    if !is_root() {
        return Err("there's no Debian root, which a run of the tests by root makes".into());
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| release.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim_matches('"').to_string());
    let suite = field("VERSION_CODENAME=").filter(|_| field("ID=").as_deref() == Some("debian")).unwrap_or("stable".into());
    let unfinished = root.with_file_name(format!("debian.{}", std::process::id()));
    fs::create_dir_all(&unfinished).map_err(|e| format!("{}: {e}", unfinished.display()))?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", &suite]).arg(&unfinished);
    // The host's own sources, if there are any.
    let sources = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    command.args(sources.iter().find(|path| Path::new(path).is_file()));
    let made = match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).lines().next_back().unwrap_or_default().to_string()),
        Err(error) => Err(format!("{error} (tests/run.sh installs it)")),
    };
    // Another test binary may have been quicker.
    if made.is_err() || fs::rename(&unfinished, &root).is_err() {
        let _ = fs::remove_dir_all(&unfinished);
    }
    match made {
        Ok(()) if root.is_dir() => Ok(root),
        Ok(()) => Err(format!("cannot keep {}", root.display())),
        Err(why) => Err(format!("mmdebstrap can't make a Debian root: {why}")),
    }
}

/// Why packages can't be had from where the Debian root file system gets them.
fn unreachable_mirror() -> Option<String> {
    use std::net::{TcpStream, ToSocketAddrs};
    let sources = debian_root().ok()?.join("etc/apt");
    let output = Command::new("grep").args(["-rhE", "^(URIs:|deb) .*https?://"]).arg(sources).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some((before, after)) = text.lines().next().and_then(|line| line.split_once("://")) else {
        return Some("the Debian root has no sources of packages".into());
    };
    let host = after.split(['/', ' ']).next().unwrap_or_default();
    let port = if before.ends_with('s') { 443 } else { 80 };
    let mut addresses = (host, port).to_socket_addrs().into_iter().flatten();
    let reached = addresses.any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok());
    (!reached).then(|| format!("{host} can't be reached"))
}

/// Whether an ordinary user gets to this directory.
fn open_to_all(directory: &Path) -> bool {
    directory.ancestors().all(|d| fs::metadata(d).is_ok_and(|m| m.permissions().mode() & 0o005 == 0o005))
}

/// A root file system of nothing but static busybox.
pub fn busybox_root() -> PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = fresh_dir("busybox-");
        let bin = root.join("bin");
        fs::create_dir(&bin).expect("bin");
        copy_program(&which("busybox").expect("busybox"), &bin.join("busybox"));
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

/// Where a compiled program lies, if COFFERDAM_TEST_PROGRAMS says where to look: on a
/// machine without a compiler.
fn prebuilt(name: &str) -> Option<PathBuf> {
    Some(Path::new(&std::env::var_os("COFFERDAM_TEST_PROGRAMS")?).join(name))
}

/// Compiles a C program, unless it lies compiled already; where everybody can execute it.
pub fn compile_c(name: &str, source: &str, flags: &[&str]) -> PathBuf {
    if let Some(program) = prebuilt(name) {
        return copy_for_all(&program);
    }
    let directory = fresh_dir("c-");
    let (file, program) = (directory.join(format!("{name}.c")), directory.join(name));
    fs::write(&file, source).expect("the source");
    let output = Command::new("gcc").arg("-O1").arg("-o").arg(&program).arg(&file).args(flags).output().expect("gcc runs");
    assert!(output.status.success(), "gcc: {}", String::from_utf8_lossy(&output.stderr));
    program
}

/// A script of the shell's.
pub fn shell(script: &str) -> cofferdam::Command {
    cofferdam::Command::new("sh").args(["-c", script])
}
