//! A control group around a host, with a limit that all its sandboxes share.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// In the environment of a host: the group that is to be around it.
pub const GROUP: &str = "COFFERDAM_TEST_GROUP";

/// Such a group, removed in the end.
pub struct Around(PathBuf);

impl Around {
    /// Below this process's own in the v1 hierarchy of a controller: on v2 a group can't
    /// have processes and hand its controllers on.
    pub fn make(controller: &str, file: &str, value: &str) -> Option<Around> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("around-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let group = Around(own_group(controller)?.join(name));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join(file), value).expect("a limit");
        Some(group)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Whether this process could make one.
pub fn is_possible(controller: &str) -> bool {
    own_group(controller).is_some_and(|group| nix::unistd::access(&group, nix::unistd::AccessFlags::W_OK).is_ok())
}

fn own_group(controller: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let mount = mounts.lines().find(|line| line.contains(" - cgroup ") && line.split([' ', ',']).any(|word| word == controller))?;
    let groups = fs::read_to_string("/proc/self/cgroup").expect("groups");
    let own = groups.lines().find_map(|line| line.split_once(&format!(":{controller}:")))?.1;
    Some(Path::new(mount.split(' ').nth(4)?).join(own.trim_start_matches('/')))
}

/// Puts this process into the group that is meant for it, if one is, before it has an init.
pub fn enter() {
    if let Some(group) = std::env::var_os(GROUP) {
        fs::write(Path::new(&group).join("cgroup.procs"), "0").expect("this process moves");
    }
}

impl Drop for Around {
    /// When those that were in it are gone.
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
        }
    }
}
