//! What a sandbox costs, beside a bare spawn and beside its peers, in one run.
//!
//! `cargo bench --bench compare -- [OPTION=NUMBER]... [PART]...`: parts are `fresh`, `stream`, `ready`,
//! `cases`, `idle`, `host`, `throughput`, `live`, `left` and `phases`, all by default. Options:
//! `rounds` and `chunk` (rounds of all launchers, and runs of one in a row), `gib`
//! (resident memory of the large host), `seconds` (of each throughput pass), `live`
//! (sandboxes at once), `left` (runs after which things are counted).
//!
//! Launchers take turns, a few runs each, in an order that changes every round:
//! whatever else the machine does meets them all alike. So the ratios are the
//! result; the absolute figures belong to this machine and this minute. p25 is near
//! what the kernel needs, the median has some waiting for a CPU in it.
//!
//! Tables go to standard output and to `target/compare.md`, a chart to
//! `target/compare.svg`.

mod cases;
mod figures;
mod launchers;
mod parts;
mod report;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use launchers::{Place, which};

/// How much is measured, and what.
#[derive(Debug)]
pub(crate) struct Options {
    rounds: usize,
    chunk: usize,
    gib: usize,
    seconds: f64,
    live: usize,
    left: usize,
    parts: Vec<String>,
}

const PARTS: [&str; 10] = ["fresh", "stream", "ready", "cases", "idle", "host", "throughput", "live", "left", "phases"];

impl Options {
    fn parse() -> Result<Options, String> {
        let mut options = Options { rounds: 60, chunk: 4, gib: 4, seconds: 1.0, live: 1000, left: 10_000, parts: Vec::new() };
        // cargo adds `--bench`.
        for argument in std::env::args().skip(1).filter(|a| !a.starts_with("--")) {
            let number = argument.split_once('=').and_then(|(name, n)| Some((name, n.parse::<usize>().ok()?)));
            match number {
                Some(("rounds", n)) => options.rounds = n.max(1),
                Some(("chunk", n)) => options.chunk = n.max(1),
                Some(("gib", n)) => options.gib = n,
                Some(("seconds", n)) => options.seconds = n as f64,
                Some(("live", n)) => options.live = n,
                Some(("left", n)) => options.left = n,
                None if PARTS.contains(&&*argument) => options.parts.push(argument),
                _ => {
                    return Err(format!(
                        "{argument:?} is neither one of {PARTS:?} nor one of rounds=N chunk=N gib=N seconds=N live=N left=N"
                    ));
                }
            }
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|p| p == part)
    }
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
    let place = Place::make(directory.path(), &busybox).expect("a root file system");

    let (mut lines, mut text, mut chart) = (Vec::new(), String::new(), None);
    if options.wants("fresh") {
        let rows = parts::fresh(&options, &place, &mut lines);
        text += &format!("Latency of `true` from call to status, {} runs each, after pauses\n\n", options.rounds * options.chunk);
        text += &report::latencies(&rows);
        chart = Some(report::chart(&rows));
    }
    if options.wants("stream") {
        let rows = parts::stream(&options, &place, &mut lines);
        text += &format!("\nThe same in streams of {} runs\n\n", options.chunk);
        text += &report::latencies(&rows);
    }
    let part = |name: &str, run: &mut dyn FnMut()| {
        if options.wants(name) {
            eprintln!("{name} ...");
            run();
        }
    };
    part("ready", &mut || parts::ready(&options, &place, &mut lines));
    part("cases", &mut || cases::cases(&mut lines));
    part("idle", &mut || parts::idle(&options, &place, &mut lines));
    part("host", &mut || parts::large_host(&options, &place, &mut lines));
    part("throughput", &mut || parts::throughput(&options, &place, &mut lines));
    part("live", &mut || parts::live(&options, &place, &mut lines));
    part("left", &mut || parts::left(&options, &place, &mut lines));
    if options.wants("phases") {
        text += "\nPhases of a run that nothing precedes\n\n";
        text += &report::latencies(&parts::phases(&options, &place));
    }
    text += "\n";
    text += &report::lines(&lines);
    print!("{text}");
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    if target.is_dir() {
        let _ = fs::write(target.join("compare.md"), &text);
        if let Some(chart) = chart {
            let _ = fs::write(target.join("compare.svg"), chart);
        }
    }
    ExitCode::SUCCESS
}
