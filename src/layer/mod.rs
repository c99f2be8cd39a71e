//! Layers: archives of changes, and the directories that they become.
//!
//! [`apply`] writes a layer's archive into a directory, in one of two forms.
//! [`Form::Overlay`] is a directory for overlayfs to stack: it says what the layer
//! hides with whiteouts and opaque directories. [`Form::Flat`] merges the layer onto a
//! tree that is there, and what it hides is removed. [`pack`] goes the other way:
//! a sandbox's writable layer becomes an archive again.
//!
//! # A layer alone doesn't know everything
//! An overlay layer is unpacked once for all images that have it, so its lower layers
//! aren't known. What depends on them is handed back as [`Question`]s. Almost all
//! layers have none that matter; where one does, merging the chain into a flat tree
//! always gives the right answer.
//!
//! # Nothing outside the root
//! A parent directory is opened by one openat2(2) with RESOLVE_IN_ROOT, and what
//! happens in it is done by `*at` calls that follow no link (CVE-2018-15664 and
//! CVE-2025-47290 are what becomes of checking a path and then using it). Metadata is
//! set through descriptors of what we have just made (CVE-2021-32760). Every kind of
//! entry goes through the same resolver.

mod apply;
mod attributes;
mod changes;
mod contents;
pub(crate) mod directory;
mod file;
mod finish;
mod hide;
pub mod internals;
mod name;
mod pack;
mod remove;
mod tree;

use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::SystemTime;

pub(crate) use apply::{apply, apply_onto};
pub(crate) use changes::changes;
pub(crate) use name::clean;
pub(crate) use pack::pack;
pub(crate) use remove::remove_tree;

use crate::tar::shown;

/// What an unpacked layer looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For overlayfs, in a directory that was empty: whiteouts are character devices
    /// 0:0, opaque directories have the attribute `trusted.overlay.opaque`, or
    /// `user.overlay.opaque` for a mount with `userxattr`.
    Overlay {
        /// For a mount in a user namespace, where `trusted.*` can't be set and is ignored.
        user_xattr: bool,
    },
    /// Merged onto the tree that is there; what the layer hides is removed.
    Flat,
}

/// Whose the files become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Whom the archive says. Needs CAP_CHOWN over those ids: root's, or a user
    /// namespace's with a range.
    Real,
    /// The caller's, whatever the archive says.
    Single,
    /// The caller's at first; [`Applied::owners`] keeps whose they are to be.
    Later,
}

/// Whose what isn't 0:0 is to be, by inode number. Names wouldn't do: they lead through
/// links, and what they stand for is replaced and removed again.
pub(crate) type OwnerTable = HashMap<u64, (u32, u32)>;

/// What a layer may cost. An archive that wants more is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of data in files. 16 GiB.
    pub(crate) bytes: u64,
    /// The length of one file, holes included. 1 TiB.
    pub(crate) file: u64,
    /// Entries and directories made for them, also such as replace others. 2,000,000.
    pub(crate) inodes: u64,
    /// Bytes of a path. 4,095.
    pub(crate) path: usize,
    /// Directories below each other. 255.
    pub(crate) depth: usize,
    /// Bytes that are remembered of a layer until its end: directories, whiteouts,
    /// owners that can't be set. 32 MiB.
    pub(crate) memory: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { bytes: 16 << 30, file: 1 << 40, inodes: 2_000_000, path: 4095, depth: 255, memory: 32 << 20 }
    }
}

/// How to unpack.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) form: Form,
    pub(crate) owners: Owners,
    pub(crate) limits: Limits,
}

/// What became of a layer.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Bytes of data written to files.
    pub(crate) bytes: u64,
    /// Files, directories and everything else that was made.
    pub(crate) inodes: u64,
    /// The layer hides everything below it. overlayfs ignores the attribute on a
    /// layer's root: the stack has to end with this layer. (Flat: done already.)
    pub(crate) opaque_root: bool,
    /// The archive has an entry for the root, whose mode, owner and time the root
    /// directory now has; otherwise those are the lower layer's, or 0755 and root's.
    pub(crate) root_entry: bool,
    /// What only the lower layers can answer. Always empty for [`Form::Flat`].
    pub(crate) questions: Vec<Question>,
    /// With [`Owners::Later`]. It may have inodes that are gone.
    pub(crate) owners: OwnerTable,
    /// What was left out because this user, or this file system, can't have it:
    /// devices, attributes; each reason once, with the first path.
    pub(crate) notes: Vec<String>,
}

/// Something about a path that depends on the layers below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// Relative to the root.
    pub(crate) path: PathBuf,
    pub(crate) kind: Unknown,
}

/// What isn't known of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// A directory that the archive has things in but no entry for. It was made 0755 and
    /// root's; a directory below has to lend its mode, owner and attributes, and a
    /// symbolic link below has to be followed, which takes a flat tree.
    Implied,
    /// A whiteout. Where nothing below has its directory, in the base layer above all,
    /// overlayfs lists a name that can't be looked at. One stands for all of a directory.
    Whiteout,
    /// A hard link to a file that isn't in this layer. It wasn't made; this takes a flat tree.
    Link {
        /// The target, relative to the root.
        target: PathBuf,
    },
}

/// How the ids in a directory are called in an archive; as they are if it's empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IdMap {
    pub(crate) uids: Vec<IdRange>,
    pub(crate) gids: Vec<IdRange>,
}

/// `count` ids from `here` on are `there` and on. Ids in no range become 65534.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdRange {
    pub(crate) here: u32,
    pub(crate) there: u32,
    pub(crate) count: u32,
}

/// How to make an archive of a directory.
#[derive(Clone, Debug, Default)]
pub(crate) struct PackOptions {
    pub(crate) ids: IdMap,
    /// No time later than this, and whole seconds: what SOURCE_DATE_EPOCH asks for.
    pub(crate) latest: Option<SystemTime>,
    /// The directory is an overlay's upper layer: its whiteouts and opaque directories
    /// become markers. Otherwise it's a tree of its own, and a device 0:0 is an error.
    pub(crate) overlay: bool,
    /// Have an entry `./` for the root.
    pub(crate) root_entry: bool,
    /// Relative paths that are left out, with everything below them.
    pub(crate) exclude: Vec<PathBuf>,
}

/// What an archive holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packed {
    /// Bytes of data in files.
    pub(crate) bytes: u64,
    /// Entries, markers included.
    pub(crate) entries: u64,
}

/// A difference between a writable layer and what's below it.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Relative to the root.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// What happened to a path.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It wasn't there.
    Added,
    /// Written, replaced, or its mode or owner set. A directory isn't modified by what
    /// happened in it.
    Modified,
    /// It's gone, with everything below it.
    Deleted,
}

impl IdMap {
    /// The same for users and groups.
    pub(crate) fn same(ranges: Vec<IdRange>) -> IdMap {
        IdMap { uids: ranges.clone(), gids: ranges }
    }

    /// The user and the group that an archive has for those on disk.
    pub(crate) fn owner(&self, uid: u32, gid: u32) -> (u32, u32) {
        (mapped(&self.uids, uid), mapped(&self.gids, gid))
    }
}

/// Who owns what has no owner here.
pub(crate) const NOBODY: u32 = 65534;

fn mapped(ids: &[IdRange], id: u32) -> u32 {
    if ids.is_empty() {
        return id;
    }
    let range = ids.iter().find(|range| id.checked_sub(range.here).is_some_and(|n| n < range.count));
    range.map_or(NOBODY, |range| range.there + (id - range.here))
}

/// Overlayfs' own attribute of this name on a layer that this process has written: root
/// mounts with `trusted.*`, everybody else in a user namespace with `user.*`.
fn overlay_attribute(name: &str) -> CString {
    let namespace = if nix::unistd::geteuid().is_root() { "trusted" } else { "user" };
    CString::new(format!("{namespace}.overlay.{name}")).expect("no NUL")
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}
