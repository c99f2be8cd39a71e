//! Endurance: random work with random ends, and what happens to hosts meanwhile. After
//! each round nothing is left of it, and the next run is right.
//!
//! `COFFERDAM_SOAK=100000 cargo test --test soak -- --nocapture` does so much work, and
//! tells how much memory the host and init have in the end; without it it's little.
//! `COFFERDAM_SOAK_SEED` makes the choices of an earlier run once more, which that run
//! printed; how the threads come between each other isn't chosen.

#[path = "../support/mod.rs"]
mod support;

mod calamity;
mod job;
mod place;
mod work;

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use calamity::Calamity;
use place::Place;
use support::around::{self, Around};
use support::host::{self, Host};
use support::inventory::{self, inventory, nothing_more_than, resident};
use support::processes::{self, inits};
use support::random::{self, Random};
use support::{Need, patience};

const THREADS: u64 = 3;
/// Pieces of work between two looks at what is left.
const ROUND: u64 = 60;
const QUIET: Duration = Duration::from_secs(600);

/// How much work there is to be done.
fn amount() -> u64 {
    std::env::var("COFFERDAM_SOAK").map_or(600 / u64::from(support::emulation()), |text| text.parse().expect("COFFERDAM_SOAK is a number"))
}

fn is_long() -> bool {
    std::env::var_os("COFFERDAM_SOAK").is_some()
}

/// Does something in a host of its own, which is told the seed and the place.
fn in_a_host(name: &str, body: impl FnOnce(u64)) {
    if host::inside() {
        return body(random::seed(SEED));
    }
    let seed = random::seed(SEED);
    println!("{name}: {SEED}={seed}");
    let group = calamity::little_memory();
    let mut host = Host::start_command(command(name, seed, &place::prepare(), group.as_ref()));
    host.limit(patience(Duration::from_secs(120)) + Duration::from_millis(200) * u32::try_from(amount()).unwrap_or(u32::MAX));
    let log = host.success();
    if is_long() {
        log.lines().filter_map(|line| line.strip_prefix("host: ")).for_each(|line| println!("{name}: {line}"));
    }
}

const SEED: &str = "COFFERDAM_SOAK_SEED";

fn command(name: &str, seed: u64, place: &Path, group: Option<&Around>) -> std::process::Command {
    let mut command = host::command(name);
    command.env(SEED, seed.to_string()).env(place::PLACE, place);
    if let Some(group) = group {
        command.env(around::GROUP, group.path());
    }
    command
}

/// Work in several threads; what goes wrong for a reason that `calamity` explains isn't
/// a failure.
fn work(place: &Place, seed: u64, round: u64, calamity: Calamity) {
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let mut random = Random::of(seed, round * THREADS + thread);
                for i in 0..ROUND / THREADS {
                    if let Err(error) = work::piece(&mut random, place, calamity) {
                        assert!(calamity.explains(&error), "round {round}, thread {thread}, piece {i}, {calamity:?}: {error:?}");
                    }
                }
            });
        }
        calamity.strike(place, &mut Random::of(seed, u64::MAX - round));
    });
}

/// Nothing is left of a round, and the next run is right.
fn quiet_after(place: &Place, before: &BTreeMap<String, usize>) {
    place.tidy();
    // Also in the place of an init that has been killed.
    work::right(place);
    assert!(cofferdam::quiesce(QUIET).expect("init answers"), "something lives on");
    nothing_more_than(before);
}

/// Whatever doesn't grow from here on.
fn begin(seed: u64) -> (Place, BTreeMap<String, usize>) {
    around::enter();
    let place = Place::open();
    work(&place, seed, 0, Calamity::None);
    place.tidy();
    work::right(&place);
    assert!(cofferdam::quiesce(QUIET).expect("init answers"));
    let before = inventory();
    assert_eq!((before["children"], before["processes below init"]), (1, 1), "{before:?}");
    (place, before)
}

fn memory_of_host_and_init() -> [u64; 2] {
    [resident(std::process::id()), resident(inits(std::process::id()).pop().expect("an init").pid)]
}

/// How much more memory than early on a host and its init may have in the end, in KiB:
/// the allocator of each thread keeps some, and init grows by a page where more
/// sandboxes than before live at once.
const SLACK: [u64; 2] = [8 * 1024, 64];

fn random_work_leaves_nothing_and_takes_no_memory() {
    in_a_host("random_work_leaves_nothing_and_takes_no_memory", |seed| {
        let (place, before) = begin(seed);
        let (rounds, began) = (amount().div_ceil(ROUND).max(4), Instant::now());
        let mut early = memory_of_host_and_init();
        for round in 1..=rounds {
            work(&place, seed, round, Calamity::None);
            quiet_after(&place, &before);
            let now = memory_of_host_and_init();
            if round <= rounds / 4 {
                early = [0, 1].map(|i| early[i].max(now[i]));
            }
            if round % 50 == 0 {
                host::say(&format!("{} pieces of work; KiB of host and init: {now:?}", round * ROUND));
            }
            if round == rounds {
                host::say(&format!(
                    "{} pieces of work in {:.0} s; host {} KiB, {} early on; init {} KiB, {} early on; seed {seed}",
                    rounds * ROUND,
                    began.elapsed().as_secs_f64(),
                    now[0],
                    early[0],
                    now[1],
                    early[1]
                ));
                assert!((0..2).all(|i| now[i] <= early[i] + SLACK[i]), "KiB of host and init: {early:?}, then {now:?}");
            }
        }
    });
}

fn no_calamity_leaves_anything() {
    in_a_host("no_calamity_leaves_anything", |seed| {
        let (place, before) = begin(seed);
        let (rounds, began) = ((amount() / 4).div_ceil(ROUND).max(4), Instant::now());
        let calamities = Calamity::possible(&place);
        for round in 1..=rounds {
            let calamity = calamities[(round % calamities.len() as u64) as usize];
            println!("round {round}: {calamity:?}");
            work(&place, seed, round, calamity);
            calamity.end(&place);
            quiet_after(&place, &before);
        }
        host::say(&format!("{} pieces of work in {:.0} s with {calamities:?}", rounds * ROUND, began.elapsed().as_secs_f64()));
    });
}

/// A host is killed at any moment of its work; the next one finds the store whole.
fn killed_hosts_leave_nothing() {
    const NAME: &str = "killed_hosts_leave_nothing";
    if host::inside() {
        let place = Place::at(Path::new(&std::env::var_os(place::PLACE).expect("a place")));
        work::right(&place);
        host::say("works");
        for round in 0..u64::MAX {
            work(&place, random::seed(SEED), round, Calamity::None);
        }
    }
    let (seed, place) = (random::seed(SEED), place::prepare());
    println!("{NAME}: {SEED}={seed}");
    let mut random = Random::of(seed, 0);
    for i in 0..(amount() / 100).max(8) {
        let mut host = Host::start_command(command(NAME, seed.wrapping_add(i), &place, None));
        host.hear("works");
        thread::sleep(Duration::from_micros(random.below(200_000)));
        // A process that begins from here on is below one of these.
        let (below, homes) = (processes::descendants(host.pid()), inventory::homes_of(host.pid()));
        host.kill();
        let log = host.log();
        assert!(!log.contains("panicked"), "{log}");
        processes::eventually(patience(Duration::from_secs(2)), "every process of a killed host's is dead", || {
            processes::alive(&below).is_empty()
        });
        let left = || inventory::own_groups().iter().flat_map(|group| homes.iter().map(move |home| group.join(home))).find(|p| p.exists());
        processes::eventually(patience(Duration::from_secs(2)), "the groups of a killed host are removed", || left().is_none());
    }
    // What those have left that were killed is known as such.
    Place::at(&place).tidy();
}

fn main() {
    // Places are image and store at once.
    let needs: &[Need] = &[Need::Tool("busybox"), Need::Overlay];
    let mut tests =
        vec![test!(random_work_leaves_nothing_and_takes_no_memory), test!(no_calamity_leaves_anything), test!(killed_hosts_leave_nothing)];
    tests.iter_mut().for_each(|test| test.needs = needs);
    support::main(tests)
}
