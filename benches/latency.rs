//! How long one short run takes, beside a bare spawn and beside bubblewrap.
//!
//! `cargo bench --bench latency -- rounds=200`. Options: `rounds`, `chunk` (runs of
//! one launcher in a row), `gap_ms` (rest between two chunks), `gib` (resident memory
//! for the second part, 0 for none) and `phases` (runs for the third part).
//!
//! Launchers take turns, a few runs each, in an order that changes every round:
//! whatever else the machine does meets them all alike. So the ratios are the
//! result; the absolute figures belong to this machine and this minute. p25 is near
//! what the kernel needs, the median has some waiting for a CPU in it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cofferdam::{GIB, Image, Sandbox, quiesce};

/// What the figures have to stay below.
mod goal {
    /// A fresh sandbox against bubblewrap, which has neither limits nor a filter.
    pub(super) const OF_BWRAP: f64 = 0.5;
    /// A fresh sandbox against a bare spawn of the same program.
    pub(super) const OF_COMMAND: f64 = 5.0;
    /// A host with 4 GiB resident against a small one.
    pub(super) const OF_SMALL_HOST: f64 = 1.1;
}

const QUIET: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Options {
    rounds: usize,
    chunk: usize,
    gap: Duration,
    gib: usize,
    phases: usize,
}

impl Options {
    fn parse() -> Result<Options, String> {
        let mut options = Options { rounds: 100, chunk: 4, gap: Duration::ZERO, gib: 4, phases: 200 };
        // cargo adds `--bench`.
        for argument in std::env::args().skip(1).filter(|a| !a.starts_with("--")) {
            let number = argument.split_once('=').and_then(|(name, n)| Some((name, n.parse::<usize>().ok()?)));
            match number {
                Some(("rounds", n)) => options.rounds = n.max(1),
                Some(("chunk", n)) => options.chunk = n.max(1),
                Some(("gap_ms", n)) => options.gap = Duration::from_millis(n as u64),
                Some(("gib", n)) => options.gib = n,
                Some(("phases", n)) => options.phases = n,
                _ => return Err(format!("{argument:?} is none of rounds=N chunk=N gap_ms=N gib=N phases=N")),
            }
        }
        Ok(options)
    }
}

/// One way to run `true` to its end.
struct Launcher<'a> {
    name: &'static str,
    run: Box<dyn FnMut() + 'a>,
    /// What is done between runs without being counted.
    rest: fn(),
    times: Vec<Duration>,
}

impl<'a> Launcher<'a> {
    fn new(name: &'static str, run: impl FnMut() + 'a) -> Launcher<'a> {
        Launcher { name, run: Box::new(run), rest: || {}, times: Vec::new() }
    }

    fn resting(self, rest: fn()) -> Launcher<'a> {
        Launcher { rest, ..self }
    }
}

/// Rounds of all launchers, after two runs each that don't count.
fn interleave(launchers: &mut [Launcher<'_>], options: &Options, rounds: usize) {
    for launcher in launchers.iter_mut() {
        launcher.times.clear();
        (launcher.run)();
        (launcher.run)();
    }
    for round in 0..rounds {
        for i in 0..launchers.len() {
            let count = launchers.len();
            let launcher = &mut launchers[(i + round) % count];
            for _ in 0..options.chunk {
                (launcher.rest)();
                let begin = Instant::now();
                (launcher.run)();
                launcher.times.push(begin.elapsed());
            }
            std::thread::sleep(options.gap);
        }
    }
}

/// Minimum, p25, median and p95 in microseconds.
#[derive(Clone, Copy, Debug)]
struct Figures {
    min: f64,
    p25: f64,
    median: f64,
    p95: f64,
}

impl Figures {
    fn of(times: &[Duration]) -> Figures {
        let mut sorted: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e6).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        Figures { min: at(0.0), p25: at(0.25), median: at(0.5), p95: at(0.95) }
    }
}

const HEAD: &str = "                                      min       p25    median       p95";

fn row(name: &str, f: Figures) -> String {
    format!("{name:<32} {:>8.0}  {:>8.0}  {:>8.0}  {:>8.0}", f.min, f.p25, f.median, f.p95)
}

fn ratio(a: Figures, b: Figures) -> String {
    format!("{:>6.2} {:>6.2}", a.p25 / b.p25, a.median / b.median)
}

/// Whether a ratio keeps its goal, at p25 and at the median.
fn verdict(what: &str, a: Figures, b: Figures, goal: f64) -> String {
    let (p25, median) = (a.p25 / b.p25, a.median / b.median);
    let word = |n: f64| if n <= goal { "kept" } else { "MISSED" };
    format!("{what:<32} p25 {p25:>5.2}  median {median:>5.2}  goal {goal:<4} {} / {}", word(p25), word(median))
}

fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A root file system with a static busybox as `/bin/true`.
fn root(at: &Path, busybox: &Path) -> std::io::Result<()> {
    for directory in ["bin", "proc", "dev", "tmp", "etc"] {
        fs::create_dir_all(at.join(directory))?;
    }
    fs::copy(busybox, at.join("bin/busybox"))?;
    fs::set_permissions(at.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    symlink("busybox", at.join("bin/true"))
}

fn plain(program: &Path) {
    let status = Command::new(program).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("it starts").success());
}

fn ours(sandbox: &Sandbox) {
    let out = sandbox.run(["/bin/true"]).expect("it runs");
    assert!(out.success(), "{}", out.status);
}

fn bubblewrap(program: &Path, root: &Path) {
    let status = Command::new(program)
        .args(["--unshare-all", "--hostname", "sandbox", "--die-with-parent", "--new-session", "--ro-bind"])
        .arg(root)
        .args(["/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--cap-drop", "ALL", "/bin/true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.expect("it starts").success());
}

fn settle() {
    assert!(quiesce(QUIET).expect("init answers"), "sandboxes are still there after {QUIET:?}");
}

fn main() -> ExitCode {
    let options = match Options::parse() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let Some(busybox) = which("busybox") else {
        println!("nothing measured: there's no busybox (Debian: busybox-static), which everything here runs");
        return ExitCode::SUCCESS;
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = directory.path().join("root");
    root(&image, &busybox).expect("a root file system");
    let program = image.join("bin/true");
    let bwrap = which("bwrap");

    let goals = peers(&options, &image, &program, bwrap.as_deref());
    let resident = if options.gib > 0 { resident(&options, &image, &program) } else { Vec::new() };
    phases(&options, &image);
    println!();
    for line in goals.iter().chain(&resident) {
        println!("{line}");
    }
    ExitCode::SUCCESS
}

/// Part one: everybody side by side.
fn peers(options: &Options, image: &Path, program: &Path, bwrap: Option<&Path>) -> Vec<String> {
    let dir = Sandbox::new().rootfs(Image::dir(image));
    let host = Sandbox::new();
    let mut launchers = vec![
        Launcher::new("std::process::Command", || plain(program)),
        Launcher::new("cofferdam, image", || ours(&dir)),
        Launcher::new("cofferdam, image, after quiesce", || ours(&dir)).resting(settle),
        Launcher::new("cofferdam, host's /usr", || ours(&host)),
    ];
    match bwrap {
        Some(bwrap) => launchers.push(Launcher::new("bwrap", move || bubblewrap(bwrap, image))),
        None => println!("missing: bwrap (Debian: bubblewrap)"),
    }
    interleave(&mut launchers, options, options.rounds);

    let figures: Vec<Figures> = launchers.iter().map(|l| Figures::of(&l.times)).collect();
    let peer = bwrap.and(figures.last().copied());
    println!("Latency of `true` from call to status, microseconds, {} runs each", options.rounds * options.chunk);
    println!("{HEAD}   / Command: p25, median   / bwrap: p25, median");
    for (launcher, f) in launchers.iter().zip(&figures) {
        let of_peer = peer.map_or(String::from("missing"), |peer| ratio(*f, peer));
        println!("{}            {}          {of_peer}", row(launcher.name, *f), ratio(*f, figures[0]));
    }
    let mut goals = vec![verdict("cofferdam / Command", figures[1], figures[0], goal::OF_COMMAND)];
    match peer {
        Some(peer) => goals.push(verdict("cofferdam / bwrap", figures[1], peer, goal::OF_BWRAP)),
        None => goals.push(String::from("cofferdam / bwrap                missing: bwrap")),
    }
    goals
}

/// Part two: the host program has gigabytes of touched memory, which a launcher
/// that forks would copy page tables of.
fn resident(options: &Options, image: &Path, program: &Path) -> Vec<String> {
    let bytes = options.gib * GIB as usize;
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    if available.is_some_and(|kib| kib * 1024 < bytes + bytes / 2) {
        println!("\nmissing: {} GiB of memory to spare", options.gib);
        return Vec::new();
    }
    let sandbox = Sandbox::new().rootfs(Image::dir(image));
    let rounds = options.rounds.div_ceil(2);
    let measure = || {
        let mut launchers =
            [Launcher::new("std::process::Command", || plain(program)), Launcher::new("cofferdam, image", || ours(&sandbox))];
        interleave(&mut launchers, options, rounds);
        launchers.map(|l| l.times)
    };
    let before = measure();
    // In small pages, of which there are most.
    let _ = nix::sys::prctl::set_thp_disable(true);
    let mut memory: Vec<u8> = Vec::with_capacity(bytes);
    memory.resize(bytes, 1);
    let _ = nix::sys::prctl::set_thp_disable(false);
    let during = measure();
    assert_eq!(std::hint::black_box(&memory)[bytes - 1], 1);
    drop(memory);
    let after = measure();

    println!("\nThe same with {} GiB resident in this process, {} runs each", options.gib, rounds * options.chunk);
    println!("{HEAD}");
    let mut goals = Vec::new();
    for (i, name) in ["Command", "cofferdam"].into_iter().enumerate() {
        let small: Vec<Duration> = before[i].iter().chain(&after[i]).copied().collect();
        let (small, large) = (Figures::of(&small), Figures::of(&during[i]));
        for (when, times) in [("before", &before[i]), ("with it", &during[i]), ("after", &after[i])] {
            println!("{}", row(&format!("{name}, {when}"), Figures::of(times)));
        }
        goals.push(verdict(&format!("{name}, {} GiB / small", options.gib), large, small, goal::OF_SMALL_HOST));
    }
    goals
}

/// Part three: where the time of a run goes.
fn phases(options: &Options, image: &Path) {
    let sandbox = Sandbox::new().rootfs(Image::dir(image));
    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..options.phases {
        settle();
        let begin = Instant::now();
        let mut child = sandbox.spawn(["/bin/true"]).expect("it starts");
        let started = Instant::now();
        child.wait().expect("it ends");
        let ended = Instant::now();
        let out = child.wait_with_output().expect("it has ended");
        settle();
        let quiet = Instant::now();
        times[0].push(started - begin);
        times[1].push(out.usage.wall);
        times[2].push(ended - started);
        times[3].push(quiet - ended);
    }
    if options.phases > 0 {
        println!("\nPhases of a run that nothing precedes, {} runs", options.phases);
        println!("{HEAD}");
        let names = ["spawn(): call to exec", "Usage::wall: exec to end", "wait(): what is left then", "quiesce(): tearing down"];
        for (name, times) in names.iter().zip(&times) {
            println!("{}", row(name, Figures::of(times)));
        }
    }
}
