//! How long unpacking an image takes, beside GNU tar and umoci; and how long opening one
//! that the store has, beside reading its JSON.
//!
//! `cargo bench --bench unpack -- ARCHIVE [rounds=N] [into=DIRECTORY]` with a tar archive
//! (`mmdebstrap --variant=minbase stable debian.tar` makes one), which is compressed here.
//! Each tool unpacks into a fresh directory; they take turns, and what they have made is
//! removed only at the end: ext4 is slow for minutes after many removals. Where others use
//! the machine, the CPU time of a way and its children says more than the wall time.
//!
//! *Import* is all of it: digests checked, a copy of the layer kept, the image given its
//! name; nothing of what umoci unpacks from is checked less.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cofferdam::internals::layers::{Unpack, unpack};
use cofferdam::{Image, Store};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// What the figures have to stay below.
mod goal {
    pub(super) const OF_GZIP_AND_TAR: f64 = 0.5;
    pub(super) const OF_UMOCI: f64 = 1.0 / 3.0;
    pub(super) const OF_READING_JSON: f64 = 5.0;
}

struct Options {
    archive: PathBuf,
    rounds: usize,
    into: PathBuf,
}

fn options() -> Result<Options, String> {
    let mut options = Options { archive: PathBuf::new(), rounds: 5, into: std::env::temp_dir() };
    for argument in std::env::args().skip(1).filter(|a| a != "--bench") {
        match argument.split_once('=') {
            Some(("rounds", n)) => options.rounds = n.parse().map_err(|_| format!("{n} is no number"))?,
            Some(("into", directory)) => options.into = directory.into(),
            _ => options.archive = argument.into(),
        }
    }
    if options.archive.is_file() { Ok(options) } else { Err("give it a tar archive".into()) }
}

fn sh(script: &str, arguments: &[&Path]) {
    let mut command = Command::new("sh");
    command.args(["-ec", script, "sh"]).args(arguments.iter().map(OsString::from)).stdout(Stdio::null());
    assert!(command.status().expect("sh runs").success(), "{script}");
}

fn ours(archive: &Path, into: &Path) {
    let into = File::open(into).expect("a directory");
    let archive = BufReader::with_capacity(64 << 10, File::open(archive).expect("an archive"));
    unpack(archive, into.as_fd(), &Unpack::default()).expect("it unpacks");
}

fn import(layout: &Path, into: &Path) {
    let store = Store::open(into.join("store")).expect("a store").without_sync();
    Image::options().store(&store).open(layout).expect("an image");
}

/// An image of several layers, about equally large, with what the archive holds.
fn several_layers(archive: &Path, work: &Path) -> PathBuf {
    let (root, layout) = (work.join("root"), work.join("several"));
    let script = r#"
        mkdir "$2"; tar -xf "$1" -C "$2"; umoci init --layout "$3"; umoci new --image "$3":a
        add() { tar -C "$2" --no-recursion -cf "$2.tar" -T "$2.list"; umoci raw add-layer --image "$3":a "$2.tar" 2>/dev/null; }
        cd "$2"; find . -path ./usr/lib -o -path './usr/lib/*' > "$2.list"; add "$@"
        find . -path ./usr/share -o -path './usr/share/*' > "$2.list"; add "$@"
        find . ! -path './usr/lib/*' ! -path './usr/share/*' > "$2.list"; add "$@""#;
    sh(script, &[archive, &root, &layout]);
    layout
}

/// What anybody does who opens an image: the files of JSON that lead to its configuration.
fn read_json(layout: &Path) {
    let read = |path: PathBuf| -> serde_json::Value { serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON") };
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        read(layout.join("blobs").join(digest.replace(':', "/")))
    };
    read(layout.join("oci-layout"));
    let manifest = blob(&read(layout.join("index.json"))["manifests"][0]);
    std::hint::black_box(blob(&manifest["config"]));
}

/// Opens an image again and again, taking turns with reading its JSON.
fn opening(layout: &Path, work: &Path) {
    const ROUNDS: usize = 1000;
    let open = || {
        let store = Store::open(work.join("opened")).expect("a store").without_sync();
        drop(Image::options().store(&store).open(layout).expect("an image"));
    };
    open();
    let timed = |what: &dyn Fn()| {
        let start = Instant::now();
        what();
        start.elapsed()
    };
    let (opened, read): (Vec<_>, Vec<_>) = (0..ROUNDS).map(|_| (timed(&open), timed(&|| read_json(layout)))).unzip();
    let (opened, read) = (middle(&opened).as_secs_f64(), middle(&read).as_secs_f64());
    println!(
        "opening what the store has: {:.0} us, {:.1} times reading its JSON ({:.0} us; goal {:.0})",
        opened * 1e6,
        opened / read,
        read * 1e6,
        goal::OF_READING_JSON
    );
}

fn middle(durations: &[Duration]) -> Duration {
    let mut sorted = durations.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

/// Of this process and those that it has waited for.
fn cpu_time() -> Duration {
    let of = |who| {
        let usage = getrusage(who).expect("it's known");
        let (user, system) = (usage.user_time(), usage.system_time());
        Duration::from_micros((user.num_microseconds() + system.num_microseconds()) as u64)
    };
    of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)
}

/// A way to unpack.
type Way = (&'static str, Box<dyn Fn(&Path)>);

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            // `cargo bench` without arguments runs this one too.
            println!("skipped: {why}");
            return ExitCode::SUCCESS;
        }
    };
    let work = tempfile::Builder::new().prefix("unpack-bench-").tempdir_in(&options.into).expect("a directory");
    let (plain, gz, zst, layout) =
        (options.archive.clone(), work.path().join("a.tar.gz"), work.path().join("a.tar.zst"), work.path().join("oci"));
    sh("gzip -c \"$1\" > \"$2\"; zstd -q \"$1\" -o \"$3\"", &[&plain, &gz, &zst]);
    sh(
        "umoci init --layout \"$2\"; umoci new --image \"$2\":a; umoci raw add-layer --image \"$2\":a \"$1\" 2>/dev/null",
        &[&plain, &layout],
    );
    let several = several_layers(&plain, work.path());
    let tar = |script: &'static str, archive: &Path| -> Box<dyn Fn(&Path)> {
        let archive = archive.to_path_buf();
        Box::new(move |into| sh(script, &[&archive, into]))
    };
    let own = |archive: &Path| -> Box<dyn Fn(&Path)> {
        let archive = archive.to_path_buf();
        Box::new(move |into| ours(&archive, into))
    };
    let imported = |layout: &Path| -> Box<dyn Fn(&Path)> {
        let layout = layout.to_path_buf();
        Box::new(move |into| import(&layout, into))
    };
    let ways: Vec<Way> = vec![
        ("tar -x", tar("tar -xf \"$1\" -C \"$2\"", &plain)),
        ("gzip -d | tar -x", tar("gzip -dc \"$1\" | tar -x -C \"$2\"", &gz)),
        ("zstd -d | tar -x", tar("zstd -qdc \"$1\" | tar -x -C \"$2\"", &zst)),
        ("umoci raw unpack", tar("umoci raw unpack --image \"$1\":a \"$2/r\" 2>/dev/null", &layout)),
        ("umoci unpack", tar("umoci unpack --image \"$1\":a \"$2/b\" 2>/dev/null", &layout)),
        ("ours, plain", own(&plain)),
        ("ours, gzip", own(&gz)),
        ("ours, zstd", own(&zst)),
        ("import", imported(&layout)),
        ("import, 3 layers", imported(&several)),
    ];
    let mut times = vec![Vec::new(); ways.len()];
    let mut costs = vec![Vec::new(); ways.len()];
    for round in 0..options.rounds {
        for step in 0..ways.len() {
            let which = (step + round) % ways.len();
            let into = work.path().join(format!("{round}.{which}"));
            fs::create_dir(&into).expect("a directory");
            // What the one before has left to be written isn't this one's.
            nix::unistd::sync();
            let (start, before) = (Instant::now(), cpu_time());
            (ways[which].1)(&into);
            times[which].push(start.elapsed());
            costs[which].push(cpu_time() - before);
        }
    }
    let median = |which: usize| middle(&times[which]);
    for (which, (name, _)) in ways.iter().enumerate() {
        let best = times[which].iter().min().expect("a round");
        let cpu = middle(&costs[which]).as_secs_f64();
        println!("{name:18} median {:6.3} s, best {:6.3} s, CPU {cpu:6.3} s", median(which).as_secs_f64(), best.as_secs_f64());
    }
    let ratio = |a: usize, b: usize| median(a).as_secs_f64() / median(b).as_secs_f64();
    println!("gzip: {:.2} of gzip and tar (goal {:.2})", ratio(6, 1), goal::OF_GZIP_AND_TAR);
    println!("gzip: {:.2} of umoci (goal {:.2})", ratio(6, 4), goal::OF_UMOCI);
    println!("import: {:.2} of umoci; 3 layers: {:.2} of one", ratio(8, 4), ratio(9, 8));
    opening(&layout, work.path());
    ExitCode::SUCCESS
}
