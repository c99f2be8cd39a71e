//! What a sandbox that was made ahead rests on: where the paths lead that set-up looked up,
//! below the root too.
//!
//! An overlay keeps what it has looked up, and a mount follows a directory that's renamed. So
//! each file and directory that set-up passes is taken down, and has to be the same, unchanged,
//! when the sandbox is used. What it hasn't passed is looked up by the workload.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

use crate::image::{HostLayout, Root};
use crate::launch;
use crate::plan::Draft;
use crate::plan::wire::{Kind, Stage, op};
use crate::sandbox::Sandbox;

/// What has been passed.
#[derive(Debug)]
pub(super) struct View {
    /// What these paths, followed, lead to.
    roots: Vec<(PathBuf, Place)>,
    /// Below an unpacked root; `None` for what isn't there.
    below: Vec<(PathBuf, Option<Place>)>,
    /// Polled: tells of every change of the table (proc_pid_mountinfo(5)).
    mounts: File,
}

/// A file or directory. If its entries or attributes have changed it counts as another.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl View {
    /// Before a sandbox by this plan is asked for. `None` where that can't be told.
    pub(super) fn of(sandbox: &Sandbox, draft: &Draft) -> Option<View> {
        // Before the look at the paths.
        let mut mounts = File::open("/proc/thread-self/mountinfo").ok()?;
        if !launch::init().ok()?.sees_what_we_see() {
            return None;
        }
        let mut table = String::new();
        mounts.read_to_string(&mut table).ok()?;
        let mut below = BTreeSet::new();
        let paths: Vec<&Path> = match sandbox.root.base() {
            Root::Host(layout) if keeps_off(sandbox, layout) => layout.parts.iter().map(|part| Path::new(&part.host)).collect(),
            Root::Dir(path) => {
                below = passed(path, draft);
                vec![path]
            }
            // What's in them never changes.
            Root::Layers(image) => vec![image.store_path()],
            Root::Host(_) | Root::Checkpoint(_) => return None,
        };
        if !paths.iter().all(|path| is_local(path, &table)) {
            return None;
        }
        let roots =
            paths.into_iter().map(|path| Some((path.to_path_buf(), Place::of(&fs::metadata(path).ok()?)))).collect::<Option<_>>()?;
        let below = below.into_iter().map(|path| Some((path.clone(), Place::below(&path)?))).collect::<Option<_>>()?;
        Some(View { roots, below, mounts }).filter(View::is_ripe)
    }

    /// Whatever changes from now on gets another ctime than what was taken down: the clock of
    /// ctime stands still for some milliseconds at a time (before Linux 6.13).
    fn is_ripe(&self) -> bool {
        let Ok(now) = clock_gettime(ClockId::CLOCK_REALTIME_COARSE) else { return false };
        let now = (now.tv_sec(), now.tv_nsec());
        let places = self.roots.iter().map(|(_, place)| place).chain(self.below.iter().filter_map(|(_, place)| place.as_ref()));
        places.into_iter().all(|place| place.changed < now)
    }

    pub(super) fn is_as_it_was(&self) -> bool {
        let mut polled = [PollFd::new(self.mounts.as_fd(), PollFlags::POLLPRI)];
        poll(&mut polled, PollTimeout::ZERO) == Ok(0)
            && self.roots.iter().all(|(path, place)| fs::metadata(path).is_ok_and(|now| Place::of(&now) == *place))
            && self.below.iter().all(|(path, place)| Place::below(path).is_some_and(|now| now == *place))
    }
}

impl Place {
    fn of(found: &Metadata) -> Place {
        Place { device: found.dev(), inode: found.ino(), changed: (found.ctime(), found.ctime_nsec()) }
    }

    /// `None` for a link, behind which there may be anything.
    fn below(path: &Path) -> Option<Option<Place>> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_symlink() => None,
            Ok(found) => Some(Some(Place::of(&found))),
            Err(_) => Some(None),
        }
    }
}

/// Whether what a recipe mounts and writes is in none of the parts that are the host's.
fn keeps_off(sandbox: &Sandbox, layout: &HostLayout) -> bool {
    let own = sandbox.mounts().iter().map(|mount| &mount.inside).chain(sandbox.files().iter().map(|file| &file.inside));
    let is_hosts = |path: &Path| {
        let first = path.components().find_map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        let link = layout.links.iter().any(|(name, _)| first.is_some_and(|first| first == name.as_str()));
        link || layout.parts.iter().any(|part| path.starts_with(&part.inside))
    };
    let plain = |path: &Path| path.components().all(|component| matches!(component, Component::RootDir | Component::Normal(_)));
    own.into_iter().all(|path| plain(path) && !is_hosts(path))
}

/// What PID 1 passes below an unpacked root.
fn passed(root: &Path, draft: &Draft) -> BTreeSet<PathBuf> {
    const CALLS: [i64; 5] = [libc::SYS_mkdirat, libc::SYS_openat, libc::SYS_move_mount, libc::SYS_open_tree, libc::SYS_symlinkat];
    let looks = |number: u32| [op::MAKE_PATH, op::FILE, op::COPY].contains(&number) || CALLS.contains(&i64::from(number));
    let mut passed = BTreeSet::new();
    for step in draft.steps.iter().filter(|step| step.stage == Stage::Inner && looks(step.op)) {
        for (_, at) in step.kinds.iter().zip(step.args).filter(|(kind, _)| **kind == Kind::Blob) {
            let text = draft.blob_text(at);
            // What isn't a path, as the contents of a file, leads to nothing.
            if text.len() >= libc::PATH_MAX as usize {
                continue;
            }
            let mut path = root.to_path_buf();
            for component in Path::new(std::ffi::OsStr::from_bytes(text)).components() {
                if let Component::Normal(name) = component {
                    path.push(name);
                    passed.insert(path.clone());
                }
            }
        }
    }
    passed
}

/// Whether a path lies on a file system of this machine's own, by the table of mounts: another
/// may hang, and whoever looks at it with it.
fn is_local(path: &Path, table: &str) -> bool {
    const LOCAL: [&str; 8] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "overlay"];
    let of = |line: &str| {
        let (mount, rest) = line.split_once(" - ")?;
        let place = mount.split(' ').nth(4)?.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
        path.starts_with(&place).then(|| (place.len(), LOCAL.contains(&rest.split(' ').next().unwrap_or_default())))
    };
    // Of those that lie on each other the last is seen.
    table.lines().filter_map(of).max_by_key(|(length, _)| *length).is_some_and(|(_, local)| local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_that_a_path_is_on_is_the_longest_and_the_last() {
        let table = "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:9 / /net rw shared:1 - nfs server rw\n3 2 0:7 / /net/a\\040b rw - tmpfs t rw\n\
                     4 1 0:8 / /over rw - xfs x rw\n5 4 0:9 / /over rw - fuse.x f rw\n";
        let local = |path: &str| is_local(Path::new(path), table);
        assert!(local("/usr") && local("/net/a b/c") && local("/network"));
        assert!(!local("/net/x") && !local("/over/x"));
        assert!(!is_local(Path::new("/"), ""));
    }
}
