//! What befalls a host.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::{Error, ErrorKind, Sandbox};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::job::eats;
use crate::place::Place;
use crate::support::around::{self, Around};
use crate::support::inventory::note_homes;
use crate::support::is_root;
use crate::support::processes::{children, inits};
use crate::support::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calamity {
    None,
    /// SIGKILL of init.
    InitKilled,
    /// SIGKILL of first processes, and of others that init has.
    FirstKilled,
    /// EMFILE.
    FewDescriptors,
    /// ENOSPC.
    DiskFull,
    /// Out of memory, in a control group around the host.
    LittleMemory,
}

impl Calamity {
    /// Those that can be brought about here.
    pub(crate) fn possible(place: &Place) -> Vec<Calamity> {
        let mut all = vec![Calamity::InitKilled, Calamity::FirstKilled, Calamity::FewDescriptors];
        all.extend(place.small.is_some().then_some(Calamity::DiskFull));
        all.extend(std::env::var_os(around::GROUP).is_some().then_some(Calamity::LittleMemory));
        all
    }

    /// Whether work may fail in this way then. The error must name what has run out.
    pub(crate) fn explains(self, error: &Error) -> bool {
        let text = error.to_string();
        match self {
            Calamity::None => false,
            Calamity::InitKilled | Calamity::FirstKilled => matches!(error.kind(), ErrorKind::Lost | ErrorKind::Setup),
            Calamity::FewDescriptors => error.kind() == ErrorKind::Exhausted && text.contains("descriptors"),
            Calamity::DiskFull => text.contains("No space left on device"),
            Calamity::LittleMemory => {
                matches!(error.kind(), ErrorKind::Lost) || error.kind() == ErrorKind::Exhausted && text.contains("memory")
            }
        }
    }

    /// Brings it about, while others work.
    pub(crate) fn strike(self, place: &Place, random: &mut Random) {
        let own = std::process::id();
        match self {
            // Who uses much of it: see `provoke`.
            Calamity::None | Calamity::LittleMemory => {}
            Calamity::FewDescriptors => {
                // Some numbers are in use already.
                let most = 24 + random.below(64);
                let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
                setrlimit(Resource::RLIMIT_NOFILE, most, hard).expect("a lower limit");
            }
            Calamity::DiskFull => fill(place.small.as_deref().expect("a small file system")),
            Calamity::InitKilled | Calamity::FirstKilled => {
                let end = Instant::now() + Duration::from_millis(200 + random.below(300));
                while Instant::now() < end {
                    let inits = inits(own);
                    note_homes();
                    let victims = match self {
                        Calamity::InitKilled => inits,
                        _ => inits.iter().flat_map(|init| children(init.pid)).collect(),
                    };
                    if !victims.is_empty() {
                        let victim = &victims[random.below(victims.len() as u64) as usize];
                        let _ = kill(Pid::from_raw(victim.pid as i32), Signal::SIGKILL);
                    }
                    thread::sleep(Duration::from_micros(random.below(40_000)));
                }
            }
        }
    }

    /// Does what fails of it.
    pub(crate) fn provoke(self) -> Result<(), Error> {
        if self == Calamity::LittleMemory {
            let out = Sandbox::new().run(eats(2 * SMALL_MIB))?;
            panic!("it had the memory: {out}");
        }
        Ok(())
    }

    /// Things are as before.
    pub(crate) fn end(self, place: &Place) {
        match self {
            Calamity::FewDescriptors => {
                let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
                setrlimit(Resource::RLIMIT_NOFILE, place.descriptors, hard).expect("the limit as before");
            }
            Calamity::DiskFull => fs::remove_file(place.small.as_ref().expect("a small file system").join(FILLER)).expect("removed"),
            _ => {}
        }
    }
}

const FILLER: &str = "filler";

/// But for a few pages.
fn fill(directory: &Path) {
    let mut file = File::create(directory.join(FILLER)).expect("a file");
    let mut length = 0;
    while file.write_all(&[1; 1 << 16]).is_ok() {
        length += 1 << 16;
    }
    file.set_len(length - (1 << 16)).expect("shorter");
}

/// Memory of the control group around the host.
const SMALL_MIB: u64 = 300;

/// That group, where root can make one.
pub(crate) fn little_memory() -> Option<Around> {
    if is_root() { Around::make("memory", "memory.limit_in_bytes", &format!("{SMALL_MIB}M")) } else { None }
}
