//! A recipe, a command, and what becomes of it.

use std::time::Duration;

use cofferdam::{Capability, Command, ErrorKind, Exit, Image, KIB, Layer, Limit, MIB, Network, Sandbox, Syscalls, Volume};

use crate::place::Place;
use crate::support::random::Random;
use crate::support::{patience, shell};

/// What comes of a command that nobody disturbs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Exit(Exit),
    /// It succeeds, and says this.
    Says(&'static str),
    Error(ErrorKind),
}

#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) sandbox: Sandbox,
    pub(crate) command: Command,
    pub(crate) end: End,
}

/// Limits that hold nobody up.
const LONG: Duration = Duration::from_secs(600);

/// A command that needs so many mebibytes of memory.
pub(crate) fn eats(mib: u64) -> Command {
    shell(&format!("head -c {0} /dev/zero | tail -c {0} > /dev/null", mib << 20))
}

pub(crate) fn recipe(random: &mut Random, place: &Place) -> Sandbox {
    let which = random.below(4);
    let image = match which {
        0 => Image::dir(&place.root),
        1 => place.image.clone(),
        _ => Image::host(),
    };
    let mut sandbox = Sandbox::new().rootfs(image).wall_time(patience(LONG));
    if random.one_in(3) {
        sandbox = sandbox.file("/made/by/recipe", "text").tmpfs("/made/tmpfs", MIB);
    }
    if random.one_in(4) {
        sandbox = sandbox.bind("/usr/share", "/made/bind").bind_rw(&place.data, "/made/data");
    }
    if random.one_in(5) {
        sandbox = sandbox.volume(&Volume::dir(&place.data).expect("a volume"), "/made/volume");
    }
    if random.one_in(4) {
        sandbox = sandbox.user(1000, 1000);
    }
    if random.one_in(3) {
        let limits = [Layer::MemoryLimit, Layer::ProcessLimit, Layer::CpuAccount, Layer::CpuBandwidth];
        sandbox = sandbox.memory(128 * MIB).processes(64).cpu_time(LONG).cpus(1.5);
        sandbox = limits.into_iter().fold(sandbox, Sandbox::prefer);
    }
    if random.one_in(4) {
        sandbox = sandbox.reuse_network(true);
    }
    if random.one_in(6) {
        sandbox = sandbox.hostname("other").aslr(false).output(16 * MIB).keep_tail(100);
    }
    match random.below(12) {
        0 => sandbox.network(Network::Host),
        1 => sandbox.nesting(),
        2 => sandbox.capabilities(Capability::DOCKER),
        3 => sandbox.syscalls(Syscalls::Unfiltered),
        // busybox sets its ids, which isn't allowed then.
        4 | 5 if which > 1 => sandbox.syscalls(Syscalls::Strict),
        _ => sandbox,
    }
}

pub(crate) fn job(random: &mut Random, place: &Place) -> Job {
    let sandbox = recipe(random, place);
    let job = |sandbox, command: Command, end| Job { sandbox, command, end };
    let code = |code| End::Exit(Exit::Code(code));
    let limit = |limit| End::Exit(Exit::Limit(limit));
    let moment = Duration::from_millis(1 + random.below(30));
    match random.below(if place.groups { 15 } else { 12 }) {
        0 => job(sandbox, shell("exit 7"), code(7)),
        1 => job(sandbox, shell("kill -SEGV $$"), End::Exit(Exit::Signal(11))),
        2 => job(sandbox.wall_time(moment), Command::new("sleep").arg("1000"), limit(Limit::WallTime)),
        3 => job(sandbox.wall_time(moment), shell("kill -STOP $$"), limit(Limit::WallTime)),
        4 => job(sandbox.output(random.below(100_000)), Command::new("yes"), limit(Limit::Output)),
        5 => job(sandbox, Command::new("cat").stdin("text"), End::Says("text")),
        6 => job(sandbox, Command::new("no-such-program"), End::Error(ErrorKind::NotFound)),
        7 => job(sandbox, shell("for i in 1 2 3 4; do sleep 1000 & done; (setsid sleep 1000 &); echo done"), End::Says("done\n")),
        8 => {
            let full = shell("dd if=/dev/zero of=/tmp/full bs=64k 2>/dev/null || echo full");
            job(sandbox.writable(MIB), full, End::Says("full\n"))
        }
        9 => job(sandbox.bind("/no/such/place", "/made/nothing"), Command::new("true"), End::Error(ErrorKind::Mount)),
        // For these there are control groups.
        12 => job(sandbox.idle_time(Duration::from_millis(50)), Command::new("sleep").arg("1000"), limit(Limit::IdleTime)),
        13 => job(sandbox.memory(16 * MIB), eats(64), limit(Limit::Memory)),
        14 => job(sandbox.cpu_time(Duration::from_millis(20)), shell("while :; do :; done"), limit(Limit::CpuTime)),
        _ => job(sandbox.keep_output(KIB), Command::new("true"), code(0)),
    }
}
