//! What to do where a limit can't be had: the commands that would help, in this place.

use std::io::ErrorKind;
use std::path::Path;

use super::limits::controller;
use super::place::{Cause, Obstacle, Places};
use crate::error::errno_text;

impl Places {
    /// Why a controller can't be had, and what would help.
    pub(super) fn why_not(&self, wanted: u8) -> String {
        let name = name(wanted);
        let of = |cause: fn(&Cause) -> bool| self.obstacles.iter().filter(move |o| o.controllers & wanted != 0 && cause(&o.cause));
        // The nearest to a place comes first.
        let obstacle = of(|c| matches!(c, Cause::Occupied))
            .next()
            .or_else(|| of(|c| matches!(c, Cause::Without)).next_back())
            .or_else(|| of(|c| matches!(c, Cause::Refused { .. })).next());
        match obstacle {
            Some(obstacle) => format!("no control group with the {name} controller can be made: {}", describe(obstacle, name)),
            None => format!(
                "no control groups with the {name} controller are mounted (as root: `mount -t cgroup2 none /sys/fs/cgroup`; \
                 or the kernel lacks it, see /proc/cgroups)"
            ),
        }
    }
}

fn name(wanted: u8) -> &'static str {
    match wanted {
        controller::MEMORY => "memory",
        controller::PIDS => "pids",
        controller::CPU => "cpu",
        controller::CPUSET => "cpuset",
        _ => "cpuacct",
    }
}

fn describe(obstacle: &Obstacle, name: &str) -> String {
    let group = obstacle.group.display();
    match &obstacle.cause {
        Cause::Occupied => format!(
            "{group} has processes and so can't hand controllers on (before the program starts, move them to a child: \
             `mkdir {group}/host; for p in $(cat {group}/cgroup.procs); do echo $p >{group}/host/cgroup.procs; done`)"
        ),
        Cause::Without => {
            let parent = obstacle.group.parent().filter(|parent| parent.join("cgroup.subtree_control").exists());
            match parent.map(Path::display) {
                Some(parent) => format!(
                    "{group} isn't given it (as root: `echo +{name} >{parent}/cgroup.subtree_control`; with systemd set \
                     `Delegate=memory pids cpu cpuset` in a drop-in of the unit, for a user's session that of user@.service)"
                ),
                None => format!("{group} has no such controller (the kernel lacks it, or whoever runs this container keeps it back)"),
            }
        }
        Cause::Refused { error, .. } if error.kind() == ErrorKind::ReadOnlyFilesystem => {
            format!(
                "{group}: {} (mount it writable; for a container `--cgroupns=private -v /sys/fs/cgroup:/sys/fs/cgroup:rw`)",
                errno_text(error)
            )
        }
        Cause::Refused { v2: Some(root), error } => {
            let user = nix::unistd::geteuid();
            // sd_booted(3)
            let remedy = if Path::new("/run/systemd/system").exists() {
                "start it with `systemd-run --user --scope -p Delegate=yes`, or as a service with `Delegate=yes`".to_string()
            } else {
                // On hybrid machines v1 has the controllers.
                let has = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
                let all = ["memory", "pids", "cpu", "cpuset"].into_iter().filter(|one| has.split_whitespace().any(|name| name == *one));
                let enable: String = all.map(|one| format!("echo +{one} >cgroup.subtree_control; ")).collect();
                let root = root.display();
                format!(
                    "as root `cd {root}; {enable}mkdir -p user-{user}/host; chown -R {user} user-{user}`, then start it in there: \
                     `echo $$ >{root}/user-{user}/host/cgroup.procs`"
                )
            };
            format!("{group}: {} (run the program as root, or {remedy})", errno_text(error))
        }
        Cause::Refused { v2: None, error } => {
            let user = nix::unistd::geteuid();
            format!(
                "{group}: {} (run the program as root, or as root `mkdir {group}/user-{user}; chown -R {user} {group}/user-{user}`, then start it \
                 in there: `echo $$ >{group}/user-{user}/tasks`; or boot with systemd.unified_cgroup_hierarchy=1)",
                errno_text(error)
            )
        }
    }
}
