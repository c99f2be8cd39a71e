//! The parts of the comparison.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cofferdam::{Command, GIB, Pool, Sandbox, Syscalls, quiesce};

use crate::Options;
use crate::figures::{Figures, Goal, Line};
use crate::launchers::{Launcher, Place, Views, bubblewrap, captured, hakoniwa, interleave, ours, plain, runtime, silent, which};

const QUIET: Duration = Duration::from_secs(30);

pub(crate) fn settle() {
    assert!(quiesce(QUIET).expect("init answers"), "sandboxes are still there after {QUIET:?}");
}

/// Everybody side by side; each run after a pause, in which what the one before it left
/// to the kernel is done. The first row is a bare spawn, the second one ours.
pub(crate) fn fresh(options: &Options, place: &Place, lines: &mut Vec<Line>) -> Vec<(&'static str, Figures)> {
    side_by_side(options, place, "fresh", lines, Some(Duration::from_millis(2)))
}

/// The same in streams of runs, where each pays for what the one before it left.
pub(crate) fn stream(options: &Options, place: &Place, lines: &mut Vec<Line>) -> Vec<(&'static str, Figures)> {
    side_by_side(options, place, "in a stream", lines, None)
}

fn side_by_side(
    options: &Options,
    place: &Place,
    what: &str,
    lines: &mut Vec<Line>,
    pause: Option<Duration>,
) -> Vec<(&'static str, Figures)> {
    let (sandbox, host) = (place.sandbox(), Sandbox::new());
    let strict = sandbox.clone().syscalls(Syscalls::Strict);
    let views = Views::make();
    let views = views.as_ref();
    let mut launchers = vec![
        Launcher::new("std::process::Command", || plain(place)),
        Launcher::new("cofferdam", || ours(&sandbox)),
        Launcher::new("cofferdam, Strict", || ours(&strict)),
        Launcher::new("cofferdam, host's /usr", || ours(&host)),
    ];
    let mut goals = vec![("std::process::Command", Goal::AtMost(4.5))];
    let mut missing = Vec::new();
    match which("bwrap") {
        Some(bwrap) => {
            launchers.push(Launcher::new("bwrap", move || bubblewrap(&bwrap, place)));
            goals.push(("bwrap", Goal::AtMost(0.45)));
        }
        None => missing.push("bwrap (Debian: bubblewrap)"),
    }
    let is_root = nix::unistd::geteuid().is_root();
    for (name, goal) in [("crun", Goal::AtMost(0.2)), ("runc", Goal::None)] {
        match which(name) {
            Some(program) if is_root => {
                launchers.push(Launcher::new(name, move || runtime(&program, place, views)));
                goals.push((name, goal));
            }
            Some(_) => {}
            None => missing.push(if name == "crun" { "crun (Debian: crun)" } else { "runc (Debian: runc)" }),
        }
    }
    // Without its filter it does less than we.
    let (name, goal) = if cfg!(feature = "peers") { ("hakoniwa", Goal::AtMost(0.35)) } else { ("hakoniwa without its filter", Goal::None) };
    launchers.push(Launcher::new(name, || hakoniwa(place)));
    goals.push((name, goal));
    if let Some(pause) = pause {
        launchers = launchers.into_iter().map(|launcher| launcher.resting(move || std::thread::sleep(pause))).collect();
    }
    interleave(&mut launchers, options.rounds, options.chunk);
    let rows: Vec<_> = launchers.iter().map(|l| (l.name, Figures::of(&l.times))).collect();
    for (name, goal) in goals {
        if let Some((_, peer)) = rows.iter().find(|(n, _)| *n == name) {
            lines.push(Line::ratio(&format!("{what} / {name}"), rows[1].1, *peer, goal));
        }
    }
    lines.extend(missing.iter().map(|missing| Line::told("missing", (*missing).into())));
    rows
}

/// Commands that find their sandbox ready: from a pool, used once or again, and in a live
/// one.
pub(crate) fn ready(options: &Options, place: &Place, lines: &mut Vec<Line>) {
    let sandbox = place.sandbox();
    let (pool, instance) = (Pool::new(sandbox.clone(), 4).expect("a pool"), sandbox.start().expect("it starts"));
    let reusing = Pool::reusing(sandbox, 4).expect("a pool");
    let full = || {
        for pool in [&pool, &reusing] {
            assert!(pool.wait_full(QUIET).expect("prepared"), "the pool isn't full after {QUIET:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let bwrap = which("bwrap");
    let mut launchers = vec![
        Launcher::new("std::process::Command", || plain(place)).resting(full),
        Launcher::new("Command, output captured", || captured(place)).resting(full),
        Launcher::new("from a pool, output captured", || assert!(pool.run("/bin/true").expect("it runs").success())).resting(full),
        Launcher::new("in a live sandbox", || assert!(instance.run(silent()).expect("it runs").success())).resting(full),
        Launcher::new("from a pool that reuses", || assert!(reusing.run(silent()).expect("it runs").success())).resting(full),
    ];
    if let Some(bwrap) = &bwrap {
        launchers.push(Launcher::new("bwrap", || bubblewrap(bwrap, place)).resting(full));
    }
    interleave(&mut launchers, options.rounds, options.chunk);
    let figures: Vec<Figures> = launchers.iter().map(|launcher| Figures::of(&launcher.times)).collect();
    let (bare, captured, pooled, live, again) = (figures[0], figures[1], figures[2], figures[3], figures[4]);
    lines.push(Line::ratio("from a pool, output captured / Command with output", pooled, captured, Goal::AtMost(1.4)));
    lines.push(Line::ratio("in a live sandbox / std::process::Command", live, bare, Goal::AtMost(1.5)));
    lines.push(Line::ratio("from a pool that reuses / std::process::Command", again, bare, Goal::AtMost(3.0)));
    if let Some(bwrap) = figures.get(5) {
        lines.push(Line::ratio("from a pool that reuses / bwrap", again, *bwrap, Goal::AtMost(0.3)));
    }
}

/// After a pause, against a stream, each relative to itself: what gets cold. On cgroup
/// v1 and v2, moving a process by pid waits up to 15 ms then.
pub(crate) fn idle(options: &Options, place: &Place, lines: &mut Vec<Line>) {
    let pause = || std::thread::sleep(Duration::from_millis(60));
    let sandbox = place.sandbox();
    let mut stream = [Launcher::new("Command", || plain(place)), Launcher::new("cofferdam", || ours(&sandbox))];
    interleave(&mut stream, options.rounds.div_ceil(2), options.chunk);
    let mut after =
        [Launcher::new("Command", || plain(place)).resting(pause), Launcher::new("cofferdam", || ours(&sandbox)).resting(pause)];
    interleave(&mut after, options.rounds.div_ceil(2), 1);
    let figures = |launchers: &[Launcher<'_>]| launchers.iter().map(|l| Figures::of(&l.times)).collect::<Vec<_>>();
    let (stream, after) = (figures(&stream), figures(&after));
    let at = |of: fn(&Figures) -> f64| (of(&after[1]) / of(&stream[1])) / (of(&after[0]) / of(&stream[0]));
    lines.push(Line {
        what: "ours after 60 ms idle ÷ in a stream, ÷ the same of Command".into(),
        ratio: Some((at(|f| f.p25), at(|f| f.median))),
        goal: Goal::AtMost(1.5),
        note: String::new(),
    });
}

/// The host program has gigabytes of touched memory, which a launcher that forks would
/// copy page tables of; or hundreds of threads. By turns, as a machine's speed changes.
pub(crate) fn large_host(options: &Options, place: &Place, lines: &mut Vec<Line>) {
    const TURNS: usize = 4;
    let sandbox = place.sandbox();
    let measure = || {
        let mut launchers = [Launcher::new("cofferdam", || ours(&sandbox))];
        interleave(&mut launchers, options.rounds.div_ceil(4), options.chunk);
        std::mem::take(&mut launchers[0].times)
    };
    let compare = |name: &str, lines: &mut Vec<Line>, with: &dyn Fn(&mut Vec<Duration>)| {
        let (mut large, mut small) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            small.append(&mut measure());
            with(&mut large);
            small.append(&mut measure());
        }
        lines.push(Line::ratio(name, Figures::of(&large), Figures::of(&small), Goal::AtMost(1.1)));
    };
    compare("host with 500 threads / one", lines, &|times| {
        let stop = std::sync::Barrier::new(501);
        std::thread::scope(|scope| {
            for _ in 0..500 {
                scope.spawn(|| stop.wait());
            }
            times.append(&mut measure());
            stop.wait();
        });
    });

    let bytes = options.gib * GIB as usize;
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if options.gib == 0 || memory_available(&text).is_some_and(|available| available < (bytes + bytes / 2) as u64) {
        lines.push(Line::told("host with resident memory", format!("not measured: no {} GiB to spare", options.gib)));
        return;
    }
    compare(&format!("host with {} GiB resident / small host", options.gib), lines, &|times| {
        // In small pages, of which there are most.
        let _ = nix::sys::prctl::set_thp_disable(true);
        let mut memory: Vec<u8> = Vec::with_capacity(bytes);
        memory.resize(bytes, 1);
        let _ = nix::sys::prctl::set_thp_disable(false);
        times.append(&mut measure());
        assert_eq!(std::hint::black_box(&memory)[bytes - 1], 1);
    });
}

fn memory_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Runs per second of so many threads; the best of several passes.
pub(crate) fn throughput(options: &Options, place: &Place, lines: &mut Vec<Line>) {
    let sandbox = place.sandbox();
    let reusing = sandbox.clone().reuse_network(true);
    let bwrap = which("bwrap");
    for at_once in [1, 2, 8, 32] {
        let run_ours = || ours(&sandbox);
        let (mut mine, mut kept, mut again, mut theirs, mut bare) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
        for _ in 0..if at_once == 8 { 5 } else { 3 } {
            mine = mine.max(rate(options.seconds, at_once, &run_ours));
            settle();
            if at_once == 8 {
                kept = kept.max(rate(options.seconds, at_once, &|| ours(&reusing)));
                settle();
                let pool = Pool::reusing(sandbox.clone(), at_once).expect("a pool");
                assert!(pool.wait_full(QUIET).expect("prepared"), "the pool isn't full after {QUIET:?}");
                again = again.max(rate(options.seconds, at_once, &|| assert!(pool.run(silent()).expect("it runs").success())));
                drop(pool);
                settle();
            }
            bare = bare.max(rate(options.seconds, at_once, &|| plain(place)));
            if let Some(bwrap) = &bwrap {
                theirs = theirs.max(rate(options.seconds, at_once, &|| bubblewrap(bwrap, place)));
            }
        }
        let note = format!("{mine:.0}, {theirs:.0} and {bare:.0} runs/s of ours, bwrap and Command");
        let goal = if at_once == 8 { Goal::AtLeast(1.7) } else { Goal::None };
        lines.push(match theirs {
            0.0 => Line::told(&format!("throughput at {at_once} at once"), note),
            theirs => Line::single(&format!("runs per second at {at_once} at once / bwrap's"), mine / theirs, goal, note),
        });
        if kept > 0.0 && theirs > 0.0 {
            let note = format!("{kept:.0} runs/s of ours");
            lines.push(Line::single("the same with network namespaces kept", kept / theirs, Goal::None, note));
            let note = format!("{again:.0} runs/s of ours");
            let goal = Goal::AtLeast(3.5);
            lines.push(Line::single("the same with kept namespaces and groups / bwrap's", again / theirs, goal, note));
        }
    }
}

fn rate(seconds: f64, threads: usize, run: &(dyn Fn() + Sync)) -> f64 {
    let (count, begin) = (AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while begin.elapsed().as_secs_f64() < seconds {
                    run();
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    count.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64()
}

/// Memory of so many live sandboxes that sleep, the kernel's part included.
pub(crate) fn live(options: &Options, place: &Place, lines: &mut Vec<Line>) {
    if options.live == 0 {
        return;
    }
    let _ = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard));
    let sandbox = place.sandbox();
    let available = || memory_available(&fs::read_to_string("/proc/meminfo").unwrap_or_default()).unwrap_or(0);
    ours(&sandbox);
    settle();
    let (before, begin) = (available(), Instant::now());
    let mut children = Vec::new();
    for i in 0..options.live {
        match sandbox.spawn(Command::new("/bin/sleep").arg("1000")) {
            Ok(child) => children.push(child),
            Err(error) => {
                lines.push(Line::told("live sandboxes", format!("{i}, then: {error}")));
                break;
            }
        }
    }
    let started = begin.elapsed();
    let each = before.saturating_sub(available()) as f64 / children.len().max(1) as f64 / (1 << 20) as f64;
    let begin = Instant::now();
    let count = children.len();
    children.into_iter().for_each(drop);
    settle();
    let note =
        format!("{each:.2} MiB each, {count} started in {:.1} s, gone in {:.1} s", started.as_secs_f64(), begin.elapsed().as_secs_f64());
    lines.push(Line::single("memory per live sleeping sandbox / 1 MiB", each, Goal::AtMost(1.0), note));
}

/// What is there after so many runs and wasn't before.
pub(crate) fn left(options: &Options, place: &Place, lines: &mut Vec<Line>) {
    let sandbox = place.sandbox();
    for _ in 0..20 {
        ours(&sandbox);
    }
    settle();
    let before = inventory();
    for _ in 0..options.left {
        ours(&sandbox);
    }
    settle();
    let after = inventory();
    let more: Vec<String> =
        before.iter().zip(&after).filter(|(b, a)| a.1 > b.1).map(|(b, a)| format!("{}: {} more", b.0, a.1 - b.1)).collect();
    let sum: usize = before.iter().zip(&after).map(|(b, a)| a.1.saturating_sub(b.1)).sum();
    let note = if more.is_empty() { String::from("control groups, mounts, descriptors, processes, files") } else { more.join(", ") };
    lines.push(Line::single(&format!("left after {} runs", options.left), sum as f64, Goal::AtMost(0.0), note));
}

fn inventory() -> Vec<(&'static str, usize)> {
    let count = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
    let lines = |path: &str| fs::read_to_string(path).map_or(0, |text| text.lines().count());
    vec![
        ("control groups", ours_below("/sys/fs/cgroup".into(), 4)),
        ("mounts", lines("/proc/self/mountinfo")),
        ("descriptors", count("/proc/self/fd")),
        ("threads", count("/proc/self/task")),
        ("files in /run/cofferdam", count("/run/cofferdam")),
        ("files in /tmp", count("/tmp")),
    ]
}

/// Directories of our groups, a few levels down.
fn ours_below(path: PathBuf, depth: usize) -> usize {
    let entries = fs::read_dir(path).into_iter().flatten().flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    entries
        .map(|entry| {
            let own = usize::from(entry.file_name().to_string_lossy().starts_with("box-"));
            own + if depth > 0 { ours_below(entry.path(), depth - 1) } else { 0 }
        })
        .sum()
}

/// Where the time of a run goes.
pub(crate) fn phases(options: &Options, place: &Place) -> Vec<(&'static str, Figures)> {
    let sandbox = place.sandbox();
    let mut phases = [const { Vec::new() }; 4];
    for _ in 0..options.rounds {
        settle();
        let begin = Instant::now();
        let child = sandbox.spawn(["/bin/true"]).expect("it starts");
        let spawned = begin.elapsed();
        let out = child.wait_with_output().expect("an outcome");
        let all = begin.elapsed();
        settle();
        let gone = begin.elapsed();
        let wall = out.usage.wall;
        for (phase, time) in phases.iter_mut().zip([spawned, wall, all.saturating_sub(spawned + wall), gone - all]) {
            phase.push(time);
        }
    }
    let names = ["spawn(): call to exec", "exec to end", "wait(): what is left then", "taken apart afterwards"];
    names.into_iter().zip(phases.iter().map(|times| Figures::of(times))).collect()
}
