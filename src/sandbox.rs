//! The recipe: what a sandbox is to be like.

mod limits;
mod view;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::capability::Capability;
use crate::cgroup::Limits;
use crate::child::Child;
use crate::command::Command;
use crate::cpu::Speculation;
use crate::error::Result;
use crate::image::Image;
use crate::instance::Instance;
use crate::net::Network;
use crate::outcome::{Line, Output};
use crate::plan::change::Change;
use crate::plan::explain::Explanation;
use crate::plan::limits::Rlimit;
use crate::policy::{SyscallPolicy, Syscalls};
use crate::probe::{Layer, Report};
use crate::volume::Volume;
use crate::{MIB, supervise};

/// What to run in: a recipe, and a value. Derive variants with `clone`, share it
/// between threads, run it as often as you like; every run is a fresh sandbox.
///
/// Without further words it is: the host's `/usr` read-only
/// ([`Image::host`]), 256 MiB of scratch space, no network but loopback, no
/// capabilities, the [default system call filter](Syscalls::Default), user 0 of
/// the sandbox (an unprivileged id of the host), host name `sandbox`.
///
/// ```
/// use cofferdam::Sandbox;
/// use std::time::Duration;
///
/// let sandbox = Sandbox::new().wall_time(Duration::from_secs(10));
/// let out = sandbox.run(["sh", "-c", "echo $((6 * 7)) > /tmp/answer; cat /tmp/answer"])?;
/// assert_eq!(out.text(), "42\n");
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub(crate) root: Image,
    mounts: Vec<Mount>,
    volumes: Vec<Volume>,
    files: Vec<FileSpec>,
    pub(crate) writable: u64,
    pub(crate) writable_files: u64,
    user: Option<(u32, u32)>,
    entrypoint: Option<Vec<OsString>>,
    pub(crate) hostname: String,
    pub(crate) network: Network,
    pub(crate) syscalls: SyscallPolicy,
    pub(crate) nesting: bool,
    pub(crate) speculation: Speculation,
    pub(crate) aslr: bool,
    pub(crate) capabilities: u64,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) limits: Limits,
    pub(crate) cpu_time: Option<Duration>,
    pub(crate) idle_time: Option<Duration>,
    pub(crate) reuse_network: bool,
    pub(crate) wall_time: Option<Duration>,
    pub(crate) output: Option<u64>,
    pub(crate) keep_output: u64,
    keep_tail: u64,
    pub(crate) id_base: u32,
    /// Only for [`check`](Self::check): the host's own procfs, as it is, takes the place of
    /// one that can't be mounted.
    pub(crate) borrowed_proc: bool,
    pub(crate) keep_changes: bool,
    /// Of [`Pool::reusing`](crate::Pool::reusing): see `plan/again.rs`.
    pub(crate) serves_again: bool,
    require: u64,
    prefer: u64,
    pub(crate) changes: Vec<Change>,
    /// The first thing that made no sense; told when the recipe is used.
    problem: Option<String>,
}

/// A bind or a tmpfs of a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) inside: PathBuf,
    pub(crate) kind: MountKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MountKind {
    Bind { host: PathBuf, writable: bool },
    Tmpfs { bytes: u64 },
}

/// A file given by its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileSpec {
    pub(crate) inside: PathBuf,
    pub(crate) contents: Arc<[u8]>,
    pub(crate) mode: u32,
    /// Belongs to root, not to the run's user.
    pub(crate) ours: bool,
}

/// First id of the ranges that boxes started by root get: from here to 2^31
/// systemd's list of id ranges has nothing (see its "Users, Groups, UIDs and GIDs").
const ID_BASE: u32 = 0x7000_0000;

impl Default for Sandbox {
    fn default() -> Sandbox {
        Sandbox::new()
    }
}

impl Sandbox {
    /// The default recipe.
    pub fn new() -> Sandbox {
        Sandbox {
            root: Image::host(),
            mounts: Vec::new(),
            volumes: Vec::new(),
            files: Vec::new(),
            writable: 256 * MIB,
            writable_files: 65_536,
            user: None,
            entrypoint: None,
            hostname: "sandbox".into(),
            network: Network::None,
            syscalls: Syscalls::Default.into(),
            nesting: false,
            speculation: Speculation::Kernel,
            aslr: true,
            capabilities: 0,
            rlimits: Vec::new(),
            limits: Limits::default(),
            cpu_time: None,
            idle_time: None,
            reuse_network: false,
            wall_time: None,
            output: None,
            keep_output: 16 * MIB,
            keep_tail: 0,
            id_base: ID_BASE,
            borrowed_proc: false,
            keep_changes: false,
            serves_again: false,
            require: 0,
            prefer: 0,
            changes: Vec::new(),
            problem: None,
        }
    }

    fn check_that(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds && self.problem.is_none() {
            self.problem = Some(problem());
        }
    }

    fn inside(&mut self, path: &Path) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let bytes = path.as_os_str().as_bytes();
        let plain = path.is_absolute() && !bytes.contains(&0) && bytes.len() < 4096;
        let climbs = path.components().any(|c| c == std::path::Component::ParentDir);
        self.check_that(plain && !climbs && path != Path::new("/"), || {
            format!("{} can't be a place in the sandbox: it must be an absolute path below /, without `..`", path.display())
        });
        path.to_path_buf()
    }

    /// The root file system: an [`Image`], or a [`Checkpoint`](crate::Checkpoint).
    /// Default: [`Image::host`].
    pub fn rootfs(mut self, image: impl Into<Image>) -> Sandbox {
        self.root = image.into();
        self
    }

    /// Shows a file or directory of the host's, read-only, with everything that is
    /// mounted below it. A relative host path is taken from the current directory
    /// of this call. The place inside is made if it's missing.
    ///
    /// As root, owners are mapped: a file of user 1000 of the host belongs to user
    /// 1000 inside, and what only the host's root may read the sandbox's root can read (idmapped mounts; see [`Image::dir`] for what supports them).
    pub fn bind(self, host: impl AsRef<Path>, inside: impl AsRef<Path>) -> Sandbox {
        self.add_bind(host.as_ref(), inside.as_ref(), false)
    }

    /// Like [`bind`](Self::bind), writable: what the workload writes there stays.
    ///
    /// As an ordinary user with subordinate ids, only user 0 of the sandbox, which is the
    /// default, is that user: a run of another [user](Self::user) has a subordinate id and
    /// can write what permissions give to everybody. Without subordinate ids every user of
    /// a sandbox is the host's.
    ///
    /// As root, a file that the sandbox's root makes there belongs to the host's
    /// root. It can't be made set-user-ID: the default system call filter refuses
    /// that as soon as a recipe has a writable bind. Nor can it get capabilities, which
    /// would count on the host: [`Capability::Setfcap`] isn't given then. With
    /// [`Syscalls::Unfiltered`] neither is refused, and a workload that is root inside
    /// can leave programs there that make whoever executes them root on the host.
    pub fn bind_rw(self, host: impl AsRef<Path>, inside: impl AsRef<Path>) -> Sandbox {
        self.add_bind(host.as_ref(), inside.as_ref(), true)
    }

    /// Shows a directory that outlives the sandbox: see [`Volume`].
    ///
    /// # Errors
    /// When the sandbox starts, [`ErrorKind::Busy`](crate::ErrorKind::Busy) if it's to be
    /// [exclusive](Volume::exclusive) and another sandbox has it.
    pub fn volume(mut self, volume: &Volume, inside: impl AsRef<Path>) -> Sandbox {
        self.volumes.push(volume.clone());
        self.add_bind(volume.path(), inside.as_ref(), !volume.is_read_only())
    }

    fn add_bind(mut self, host: &Path, inside: &Path, writable: bool) -> Sandbox {
        use std::os::unix::ffi::OsStrExt;
        let bytes = host.as_os_str().as_bytes();
        self.check_that(!bytes.is_empty() && !bytes.contains(&0), || "the host's side of a bind is empty or holds a NUL byte".into());
        let inside = self.inside(inside);
        let host = std::path::absolute(host).unwrap_or_else(|_| host.to_path_buf());
        self.mounts.push(Mount { inside, kind: MountKind::Bind { host, writable } });
        self
    }

    /// A file system in memory of this many bytes, apart from the
    /// [scratch layer](Self::writable).
    pub fn tmpfs(mut self, inside: impl AsRef<Path>, bytes: u64) -> Sandbox {
        self.check_that(bytes >= 4096, || format!("a tmpfs of {bytes} bytes holds nothing; the smallest is 4,096 bytes"));
        self.check_that(bytes <= MAX_SCRATCH, too_large("a tmpfs", bytes));
        let inside = self.inside(inside.as_ref());
        self.mounts.push(Mount { inside, kind: MountKind::Tmpfs { bytes } });
        self
    }

    /// A file with these contents, mode 0644, of the run's user. It replaces what
    /// the image has under that name; missing directories are made.
    pub fn file(self, inside: impl AsRef<Path>, contents: impl Into<Vec<u8>>) -> Sandbox {
        self.file_mode(inside, contents, 0o644)
    }

    /// Like [`file`](Self::file), with a mode: the nine permission bits.
    pub fn file_mode(mut self, inside: impl AsRef<Path>, contents: impl Into<Vec<u8>>, mode: u32) -> Sandbox {
        self.check_that(mode <= 0o777, || format!("mode {mode:o} of a file has more than permission bits"));
        let inside = self.inside(inside.as_ref());
        self.files.push(FileSpec { inside, contents: contents.into().into(), mode, ours: false });
        self
    }

    /// Size in bytes of the scratch layer, in which everything is that the workload
    /// writes, `/tmp` and `/dev/shm` included: the disk limit. It's memory, and
    /// gone with the run. Default: 256 MiB.
    pub fn writable(mut self, bytes: u64) -> Sandbox {
        self.check_that(bytes >= 64 * 1024, || {
            format!("a scratch layer of {bytes} bytes is too small to start in; the smallest is 64 KiB")
        });
        self.check_that(bytes <= MAX_SCRATCH, too_large("a scratch layer", bytes));
        self.writable = bytes;
        self
    }

    /// How many files and directories the scratch layer holds. Default: 65,536.
    pub fn writable_files(mut self, files: u64) -> Sandbox {
        self.check_that((64..=1 << 32).contains(&files), || format!("{files} files: a scratch layer holds 64 to 2^32"));
        self.writable_files = files;
        self
    }

    /// User and group of the command, inside. Default: what the image's configuration
    /// says, or 0 and 0, the sandbox's root, which has no capability and is an
    /// unprivileged id of the host. The image's user is in the groups that its
    /// `/etc/group` puts it in, unless the configuration names one; who is named here is in
    /// no others.
    ///
    /// An ordinary user without subordinate ids has only one id to give; whatever
    /// number it gets here, it's that user outside.
    pub fn user(mut self, uid: u32, gid: u32) -> Sandbox {
        self.check_that(uid < 65_536 && gid < 65_536, || format!("user {uid}, group {gid}: ids inside a sandbox go from 0 to 65,535"));
        self.user = Some((uid, gid));
        self
    }

    /// The program, with its first arguments, that commands are arguments of, instead of
    /// the [image's](crate::ImageConfig::entrypoint). An empty one makes commands what they
    /// are without an image.
    pub fn entrypoint<I>(mut self, words: I) -> Sandbox
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        self.entrypoint = Some(words.into_iter().map(Into::into).collect());
        self
    }

    /// Keeps what a run writes to its root file system when it's over:
    /// [`Output::changes`](crate::Output::changes) lists it and
    /// [`Output::commit`](crate::Output::commit) makes an image of it. The writable layer
    /// is memory, and lives as long as the [`Output`]. It needs a root file system other
    /// than the host's. An [`Instance`] tells and commits its changes without this.
    pub fn keep_changes(mut self, keep: bool) -> Sandbox {
        self.keep_changes = keep;
        self
    }

    /// The host name. Default: `sandbox`.
    pub fn hostname(mut self, name: impl Into<String>) -> Sandbox {
        self.hostname = name.into();
        let name = &self.hostname;
        let good = (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_');
        let text = format!("{name:?} can't be a host name: 1 to 64 letters, digits, `-`, `_` or `.`");
        self.check_that(good, || text);
        self
    }

    /// The network. Default: [`Network::None`]. With [`Network::Host`] names are only
    /// looked up if the host's `/etc/resolv.conf` is [bound](Self::bind) too.
    pub fn network(mut self, network: Network) -> Sandbox {
        self.network = network;
        self
    }

    /// Lets a run have the network namespace of an earlier one of this process that set this
    /// too, once every process of that one is dead. Default: false, a new one for each.
    ///
    /// To make a network namespace and take it apart is a tenth of the work that a run is for
    /// the machine. It's done beside the run, so this saves no latency, but more runs can be
    /// had from a busy machine. What it costs is some isolation, from earlier runs only: the
    /// loopback device keeps its counters, a port may be in TIME-WAIT, the kernel may still
    /// send for a multicast group that was left, and a socket that a workload has passed out
    /// of its sandbox is a socket in later ones too.
    ///
    /// It's about [`run`](Self::run) and [`spawn`](Self::spawn) with [`Network::None`] and
    /// without [capabilities](Self::capabilities); elsewhere each has one of its own as ever.
    ///
    /// Namespaces in which nothing can have happened serve again in any case, each in one
    /// sandbox at a time: those of [`Syscalls::Strict`](crate::Syscalls::Strict), which has no
    /// sockets, and those of the default filter in which the kernel has counted none. That takes
    /// a program that runs as root with CAP_BPF and CAP_NET_ADMIN, Linux 5.15, a cgroup2 tree
    /// in view, a recipe without [binds](Self::bind), [volumes](Self::volume) and
    /// [nesting](Self::nesting), and a command that is given neither sockets nor directories.
    pub fn reuse_network(mut self, reuse: bool) -> Sandbox {
        self.reuse_network = reuse;
        self
    }

    /// The system call filter: one of [`Syscalls`], a
    /// [`SyscallProfile`](crate::SyscallProfile), or one of these with single calls
    /// [allowed](Syscalls::allow) or [refused](Syscalls::deny). Default:
    /// [`Syscalls::Default`].
    pub fn syscalls(mut self, syscalls: impl Into<SyscallPolicy>) -> Sandbox {
        self.syscalls = syscalls.into();
        if let Some(problem) = self.syscalls.problem() {
            self.check_that(false, || problem);
        }
        self
    }

    /// Lets the workload make sandboxes of its own: a browser's, Bazel's, Nix's, or this
    /// library's. It opens much of the kernel to the workload, and for that reason is
    /// never on by accident: namespaces and mounts pass the system call filter, user
    /// namespaces aren't limited, /proc is shown without masks (the kernel demands it
    /// from whoever mounts another one), and Landlock leaves files alone (it refuses all
    /// mounts). The run's [user](Self::user) shouldn't be 0, whom the kernel lets map
    /// itself only with [`Capability::Setfcap`].
    pub fn nesting(mut self) -> Sandbox {
        self.nesting = true;
        self
    }

    /// Speculative execution of the workload. Default: [`Speculation::Kernel`].
    pub fn speculation(mut self, speculation: Speculation) -> Sandbox {
        self.speculation = speculation;
        self
    }

    /// Whether programs are loaded at random addresses. Default: yes, whatever the host
    /// program runs with. Without, a crash can be reproduced, and an exploit too.
    pub fn aslr(mut self, on: bool) -> Sandbox {
        self.aslr = on;
        self
    }

    /// Capabilities of the command within the sandbox. Default: none, in all five
    /// sets. [`Capability::DOCKER`] is what package managers and servers need to
    /// change owners and users within the image.
    pub fn capabilities(mut self, capabilities: impl IntoIterator<Item = Capability>) -> Sandbox {
        self.capabilities = capabilities.into_iter().fold(0, |set, c| set | 1 << c.number());
        self
    }

    /// First host id of the ranges that sandboxes get when root runs them: each live
    /// one has 65,536 ids of its own from here on (below Linux 6.3 those on a
    /// [`Checkpoint`](crate::Checkpoint) have the same). A multiple of 65,536, at least
    /// 65,536. Default: 1,879,048,192, which systemd's list leaves unused.
    pub fn id_base(mut self, first: u32) -> Sandbox {
        self.check_that(first >= 65_536 && first.is_multiple_of(65_536), || {
            format!("{first} can't be the first id: it must be a multiple of 65,536 and not 0")
        });
        self.id_base = first;
        self
    }

    /// Makes it an error if this layer can't be had. That's the default for all
    /// but [`Layer::SubordinateIds`], [`Layer::Landlock`] and [`Layer::CoreScheduling`].
    pub fn require(mut self, layer: Layer) -> Sandbox {
        self.require |= layer.bit();
        self.prefer &= !layer.bit();
        self
    }

    /// Goes on without this layer where it can't be had; what was left out stands
    /// in [`Output::missing`](crate::Output::missing). Only some layers can be
    /// given up: see [`Layer`].
    pub fn prefer(mut self, layer: Layer) -> Sandbox {
        self.check_that(layer.optional(), || format!("the layer `{layer}` carries the others and can't be given up"));
        self.prefer |= layer.bit();
        self.require &= !layer.bit();
        self
    }

    /// Tries, in a throwaway sandbox without a command, what of this recipe this
    /// machine and user can have. An `Err` means that not even the attempt could be
    /// made.
    pub fn check(&self) -> Result<Report> {
        supervise::check(self)
    }

    /// What a run of `true` would do, step by step.
    pub fn explain(&self) -> Result<Explanation> {
        supervise::explain(self)
    }

    /// Runs a command in a fresh sandbox and waits for its end. However it ends, by
    /// itself or by a limit, is an [`Output`]; an `Err` means that it could not be
    /// started, or that the sandbox broke.
    ///
    /// When this returns every process of the run is dead and its files are out of
    /// reach.
    ///
    /// A program that runs a recipe again and again, one run at a time, has the next sandbox
    /// made for it ahead: after a run or, in a stream of runs, beside it, in a thread that
    /// ends with the call. Each is used once and is what the recipe says when it's used; one
    /// that nobody uses is gone after two seconds. Recipes with binds, volumes, a checkpoint as
    /// root or [`keep_changes`](Self::keep_changes) have theirs made when they're run, and so
    /// does everything but this function.
    pub fn run(&self, command: impl Into<Command>) -> Result<Output> {
        supervise::run(self, command.into())
    }

    /// Like [`run`](Self::run), with each line of captured output told as soon as it's
    /// there, beside being captured. A stream's last line may lack its end, and a line of
    /// more than 64 KiB comes in pieces. Lines of the two streams come in the order in
    /// which the host sees them; [`Stdio::stdout`](crate::Stdio::stdout) makes one stream
    /// of them, whose order is true.
    ///
    /// The callback runs in this thread; as long as it does, nothing is read.
    ///
    /// ```
    /// use cofferdam::Sandbox;
    ///
    /// let mut lines = Vec::new();
    /// Sandbox::new().run_lines(["sh", "-c", "echo one; echo two"], |line| {
    ///     lines.push(format!("{:?} {}", line.source, line.text().trim_end()));
    /// })?;
    /// assert_eq!(lines, ["Stdout one", "Stdout two"]);
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn run_lines(&self, command: impl Into<Command>, mut on_line: impl FnMut(Line<'_>)) -> Result<Output> {
        supervise::run_lines(self, command.into(), &mut on_line)
    }

    /// Starts a command in a fresh sandbox. It returns when the program has been
    /// executed; what keeps it from that is an `Err`.
    pub fn spawn(&self, command: impl Into<Command>) -> Result<Child> {
        supervise::spawn(self, command.into())
    }

    /// Starts a live sandbox, in which several commands can run.
    pub fn start(&self) -> Result<Instance> {
        Instance::start(self)
    }

    /// Leaves steps out of the plan: all whose purpose is this text, as
    /// [`explain`](Self::explain) prints it. For the crate's own tests, which show that
    /// each fence holds by itself and that a test fails without it; not part of the API.
    #[doc(hidden)]
    pub fn without_step(mut self, purpose: &str) -> Sandbox {
        self.changes.push(Change::Drop(purpose.into()));
        self
    }

    /// Makes a step of the plan fail, by its number in [`explain`](Self::explain); one that
    /// there isn't is an error of the run. In a live sandbox, or one of a pool, numbers go
    /// on through the plan of each command. Like [`without_step`](Self::without_step).
    #[doc(hidden)]
    pub fn with_failing_step(mut self, number: usize) -> Sandbox {
        self.changes.push(Change::Fail(number));
        self
    }

    /// Clears bits of an argument, or of the first word of the structure that it points
    /// to; else like [`without_step`](Self::without_step).
    #[doc(hidden)]
    pub fn with_bits_cleared(mut self, purpose: &str, argument: usize, bits: u64) -> Sandbox {
        self.changes.push(Change::Clear(purpose.into(), argument, bits));
        self
    }

    /// The same recipe with these changes to plans instead of its own.
    pub(crate) fn with_changes(&self, changes: Vec<Change>) -> Sandbox {
        Sandbox { changes, ..self.clone() }
    }
}

const MAX_SCRATCH: u64 = 1 << 50;

fn too_large(what: &'static str, bytes: u64) -> impl FnOnce() -> String {
    move || format!("{what} of {bytes} bytes is beyond any machine; the largest is 1 PiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn nonsense_is_refused_with_the_sensible_bound() {
        let cases = [
            (Sandbox::new().wall_time(Duration::ZERO), "smallest"),
            (Sandbox::new().writable(1), "64 KiB"),
            (Sandbox::new().tmpfs("/x", 1), "4,096"),
            (Sandbox::new().bind("/usr", "relative"), "absolute"),
            (Sandbox::new().file("/a/../../etc/passwd", ""), "`..`"),
            (Sandbox::new().tmpfs("/", 1 << 20), "below /"),
            (Sandbox::new().user(70_000, 0), "65,535"),
            (Sandbox::new().hostname("a b"), "host name"),
            (Sandbox::new().processes(0), "smallest"),
            (Sandbox::new().memory(256), "did you mean 256 * MIB?"),
            (Sandbox::new().memory(0), "smallest"),
            (Sandbox::new().memory(u64::MAX), "largest"),
            (Sandbox::new().cpus(0.0), "0.01"),
            (Sandbox::new().cpus(f64::NAN), "0.01"),
            (Sandbox::new().cpu_time(Duration::ZERO), "smallest"),
            (Sandbox::new().cpuset([]), "at least one"),
            (Sandbox::new().cpuset([1 << 20]), "highest"),
            (Sandbox::new().idle_time(Duration::from_millis(1)), "smallest"),
            (Sandbox::new().id_base(5), "multiple"),
            (Sandbox::new().prefer(Layer::UserNamespace), "can't be given up"),
        ];
        for (sandbox, word) in cases {
            let error = sandbox.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn a_recipe_is_a_value_that_threads_share() {
        fn shared<T: Send + Sync + Clone + std::fmt::Debug + 'static>() {}
        shared::<Sandbox>();
    }
}
