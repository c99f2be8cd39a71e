//! Ways to run `true` to its end, each with the isolation that its maker offers.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam::{Image, MIB, Sandbox};
use nix::sched::{CloneFlags, setns, unshare};

pub(crate) struct Launcher<'a> {
    pub(crate) name: &'static str,
    run: Box<dyn Fn() + Sync + 'a>,
    /// What is done before each run without being counted.
    rest: Option<Box<dyn Fn() + 'a>>,
    pub(crate) times: Vec<Duration>,
}

impl<'a> Launcher<'a> {
    pub(crate) fn new(name: &'static str, run: impl Fn() + Sync + 'a) -> Launcher<'a> {
        Launcher { name, run: Box::new(run), rest: None, times: Vec::new() }
    }

    pub(crate) fn resting(self, rest: impl Fn() + 'a) -> Launcher<'a> {
        Launcher { rest: Some(Box::new(rest)), ..self }
    }

    pub(crate) fn once(&self) {
        (self.run)();
    }
}

/// Rounds of all launchers, `chunk` runs of one in a row, after two runs each that
/// don't count. Their order changes every round.
pub(crate) fn interleave(launchers: &mut [Launcher<'_>], rounds: usize, chunk: usize) {
    for launcher in launchers.iter_mut() {
        launcher.times.clear();
        launcher.once();
        launcher.once();
    }
    for round in 0..rounds {
        for i in 0..launchers.len() {
            let count = launchers.len();
            let launcher = &mut launchers[(i + round) % count];
            for _ in 0..chunk {
                if let Some(rest) = &launcher.rest {
                    rest();
                }
                let begin = Instant::now();
                launcher.once();
                launcher.times.push(begin.elapsed());
            }
        }
    }
}

/// What all of them run, and where.
pub(crate) struct Place {
    /// A root file system with a static busybox as `/bin/true`.
    pub(crate) root: PathBuf,
    pub(crate) program: PathBuf,
    /// A bundle of the OCI runtime-spec over the same root.
    bundle: PathBuf,
}

impl Place {
    pub(crate) fn make(at: &Path, busybox: &Path) -> std::io::Result<Place> {
        let (root, bundle) = (at.join("root"), at.join("bundle"));
        for directory in ["bin", "proc", "dev", "tmp", "etc", "home"] {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::copy(busybox, root.join("bin/busybox"))?;
        fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
        for name in ["true", "sh", "sleep", "cat"] {
            symlink("busybox", root.join("bin").join(name))?;
        }
        fs::create_dir_all(&bundle)?;
        fs::write(bundle.join("config.json"), runtime_config(&root))?;
        let program = root.join("bin/true");
        Ok(Place { root, program, bundle })
    }

    /// Everything on, limits by control groups included.
    pub(crate) fn sandbox(&self) -> Sandbox {
        Sandbox::new().rootfs(Image::dir(&self.root)).memory(256 * MIB).processes(64).cpu_time(Duration::from_secs(10))
    }
}

/// All namespaces, usual mounts, limits on memory, processes and bandwidth.
fn runtime_config(root: &Path) -> String {
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| serde_json::json!({ "type": kind }));
    let mount =
        |at: &str, kind: &str, options: &[&str]| serde_json::json!({ "destination": at, "type": kind, "source": kind, "options": options });
    serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"], "cwd": "/", "env": ["PATH=/bin"],
            "noNewPrivileges": true, "capabilities": {},
        },
        "root": { "path": root, "readonly": true },
        "hostname": "sandbox",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "nodev", "noexec"]),
            mount("/dev", "tmpfs", &["nosuid", "mode=755", "size=64k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666"]),
            mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": { "memory": { "limit": 256 << 20 }, "pids": { "limit": 64 }, "cpu": { "quota": 100_000, "period": 100_000 } },
        },
    })
    .to_string()
}

pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn succeed(command: &mut Command) {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("it starts").success(), "{command:?}");
}

pub(crate) fn plain(place: &Place) {
    succeed(&mut Command::new(&place.program));
}

pub(crate) fn captured(place: &Place) {
    let output = Command::new(&place.program).output().expect("it starts");
    assert!(output.status.success(), "{output:?}");
}

/// Without pipes, as with the others.
pub(crate) fn silent() -> cofferdam::Command {
    cofferdam::Command::new("/bin/true").stdout(cofferdam::Stdio::null()).stderr(cofferdam::Stdio::null())
}

pub(crate) fn ours(sandbox: &Sandbox) {
    let out = sandbox.run(silent()).expect("it runs");
    assert!(out.success(), "{}", out.status);
}

pub(crate) fn bubblewrap(program: &Path, place: &Place) {
    succeed(
        Command::new(program)
            .args(["--unshare-all", "--hostname", "sandbox", "--die-with-parent", "--new-session", "--ro-bind"])
            .arg(&place.root)
            .args(["/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--cap-drop", "ALL", "/bin/true"]),
    );
}

/// crun refuses a cgroup2 tree beside v1 hierarchies: two mount namespaces, the thread's own
/// and one without that tree, where there is one.
pub(crate) struct Views([fs::File; 2]);

impl Views {
    /// For one thread only: others may not share its working directory.
    pub(crate) fn make() -> Option<Views> {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        let unified = Path::new("/sys/fs/cgroup/unified");
        if !unified.join("cgroup.procs").exists() {
            return None;
        }
        let view = || fs::File::open("/proc/thread-self/ns/mnt").ok();
        let own = view()?;
        unshare(CloneFlags::CLONE_NEWNS).ok()?;
        let private = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>);
        let hidden = private.and_then(|()| umount2(unified, MntFlags::MNT_DETACH)).ok().and_then(|()| view());
        setns(&own, CloneFlags::CLONE_NEWNS).expect("it was its own");
        Some(Views([own, hidden?]))
    }

    fn without_the_tree(&self, run: impl FnOnce()) {
        let Views([own, hidden]) = self;
        setns(hidden, CloneFlags::CLONE_NEWNS).expect("it was its own");
        run();
        setns(own, CloneFlags::CLONE_NEWNS).expect("it was its own");
    }
}

/// crun or runc.
pub(crate) fn runtime(program: &Path, place: &Place, views: Option<&Views>) {
    match views {
        Some(views) => views.without_the_tree(|| run_bundle(program, place)),
        None => run_bundle(program, place),
    }
}

fn run_bundle(program: &Path, place: &Place) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("compare-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let state = place.bundle.join("state");
    succeed(Command::new(program).arg("--root").arg(state).args(["run", "--bundle"]).arg(&place.bundle).arg(name));
}

/// All that it offers on a machine without systemd (its control groups need that), as far
/// as the feature `peers` lets it: its filter needs the C library libseccomp.
pub(crate) fn hakoniwa(place: &Place) {
    use hakoniwa::{Container, Namespace};
    let mut container = Container::new();
    container.rootdir(&place.root);
    for namespace in [Namespace::Cgroup, Namespace::Ipc, Namespace::Network, Namespace::Uts] {
        container.unshare(namespace);
    }
    container.bindmount_ro(&place.root.join("bin").to_string_lossy(), "/bin").devfsmount("/dev").tmpfsmount("/tmp").hostname("sandbox");
    #[cfg(feature = "peers")]
    confine(&mut container);
    let status = container.command("/bin/true").status().expect("it starts");
    assert!(status.success(), "{status:?}");
}

/// Landlock, and a filter that allows so many calls as a container's does.
#[cfg(feature = "peers")]
fn confine(container: &mut hakoniwa::Container) {
    use hakoniwa::landlock::{CompatMode, FsAccess, Resource, Ruleset};
    use hakoniwa::seccomp::{Action, Arch, Filter};
    let mut ruleset = Ruleset::default();
    ruleset.restrict(Resource::FS, CompatMode::Enforce);
    for (path, access) in [("/bin", FsAccess::R | FsAccess::X), ("/dev", FsAccess::R | FsAccess::W), ("/tmp", FsAccess::R | FsAccess::W)] {
        ruleset.allow_path(path, access);
    }
    let mut filter = Filter::new(Action::Errno(1));
    filter.add_arch(Arch::X8664);
    for call in include_str!("calls.txt").lines() {
        filter.add_rule(Action::Allow, call);
    }
    container.landlock_ruleset(ruleset).seccomp_filter(filter);
}
