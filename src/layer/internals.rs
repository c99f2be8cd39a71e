//! Archives and layers on their own, for tests, fuzz targets and benchmarks.

use std::ffi::OsStr;
use std::io::{BufRead, Write};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::SystemTime;

use super::{self as layer, ChangeKind, Form, IdMap, IdRange, Limits, Options, Owners, PackOptions, Unknown};
use crate::compress::{Bounds, ahead, reader};
use crate::{Result, tar};

/// How to unpack.
#[derive(Clone, Debug, Default)]
pub struct Unpack {
    /// The overlay form, with `user.*` attributes if true.
    pub overlay: Option<bool>,
    /// All files belong to the caller.
    pub single: bool,
    /// Bytes of data in files.
    pub max_bytes: Option<u64>,
    /// Things made.
    pub max_inodes: Option<u64>,
    /// Bytes to remember.
    pub max_memory: Option<usize>,
}

/// What came of it, questions and owners in words.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Of data in files.
    pub bytes: u64,
    /// Things made.
    pub inodes: u64,
    /// The layer hides all below it.
    pub opaque_root: bool,
    /// The root has an entry.
    pub root_entry: bool,
    /// Paths, and what isn't known of them.
    pub questions: Vec<(PathBuf, String)>,
    /// Inodes, and their users and groups, that weren't set.
    pub owners: Vec<(u64, u32, u32)>,
    /// What was left out.
    pub notes: Vec<String>,
}

/// Unpacks an archive, compressed or not, as an image's layer is.
pub fn unpack(archive: impl BufRead + Send, root: BorrowedFd<'_>, how: &Unpack) -> Result<Unpacked> {
    let (_, reader) = reader(archive, &Bounds::default())?;
    ahead(reader, |tar| unpack_here(tar, root, how))?
}

fn unpack_here(tar: impl BufRead, root: BorrowedFd<'_>, how: &Unpack) -> Result<Unpacked> {
    let defaults = Limits::default();
    let options = Options {
        form: how.overlay.map_or(Form::Flat, |user_xattr| Form::Overlay { user_xattr }),
        owners: if how.single { Owners::Later } else { Owners::Real },
        limits: Limits {
            bytes: how.max_bytes.unwrap_or(defaults.bytes),
            inodes: how.max_inodes.unwrap_or(defaults.inodes),
            memory: how.max_memory.unwrap_or(defaults.memory),
            ..defaults
        },
    };
    let applied = layer::apply(tar, root, &options)?;
    let questions = applied.questions.into_iter().map(|question| {
        let kind = match question.kind {
            Unknown::Implied => "implied".into(),
            Unknown::Whiteout => "whiteout".into(),
            Unknown::Link { target } => format!("link to {}", target.display()),
        };
        (question.path, kind)
    });
    Ok(Unpacked {
        bytes: applied.bytes,
        inodes: applied.inodes,
        opaque_root: applied.opaque_root,
        root_entry: applied.root_entry,
        questions: questions.collect(),
        owners: applied.owners.into_iter().map(|(inode, (uid, gid))| (inode, uid, gid)).collect(),
        notes: applied.notes,
    })
}

/// Packs a directory; entries and bytes of data.
pub fn pack(
    root: BorrowedFd<'_>,
    out: impl Write,
    overlay: bool,
    latest: Option<SystemTime>,
    ids: &[(u32, u32, u32)],
) -> Result<(u64, u64)> {
    let options = PackOptions { ids: id_map(ids), latest, overlay, root_entry: !overlay, exclude: Vec::new() };
    let packed = layer::pack(root, out, &options)?;
    Ok((packed.entries, packed.bytes))
}

/// What an upper layer changes: `A`, `C` or `D` and the path.
pub fn changes(upper: BorrowedFd<'_>, lower: &[BorrowedFd<'_>], ids: &[(u32, u32, u32)]) -> Result<Vec<(char, PathBuf)>> {
    let as_they_are = IdMap::default();
    let lower: Vec<_> = lower.iter().map(|layer| (*layer, &as_they_are)).collect();
    let changes = layer::changes((upper, &id_map(ids)), &lower)?;
    let letter = |kind| match kind {
        ChangeKind::Added => 'A',
        ChangeKind::Modified => 'C',
        ChangeKind::Deleted => 'D',
    };
    Ok(changes.into_iter().map(|change| (letter(change.kind), change.path)).collect())
}

fn id_map(ids: &[(u32, u32, u32)]) -> IdMap {
    IdMap::same(ids.iter().map(|&(here, there, count)| IdRange { here, there, count }).collect())
}

/// Removes a tree.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    layer::remove_tree(parent, name)
}

/// Reads bytes as an archive, as they are and with right checksums. What is accepted is
/// written again and has to read the same.
pub fn archive(bytes: &[u8]) {
    round_trip(bytes);
    round_trip(&with_checksums(bytes));
}

/// The same bytes, with right checksums in what looks like headers.
pub fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut summed = bytes.to_vec();
    for block in summed.chunks_exact_mut(tar::BLOCK).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    summed
}

fn round_trip(bytes: &[u8]) {
    let Ok(entries) = read_all(bytes) else { return };
    let mut writer = tar::Writer::new(Vec::new());
    for (entry, data) in &entries {
        assert!(!entry.path.is_empty() && !entry.path.contains(&0) && !entry.link.contains(&0));
        writer.entry(entry).expect("a Vec takes all");
        writer.data(data).expect("as many as the entry says");
    }
    let again = read_all(&writer.finish().expect("a Vec takes all")).expect("what we write we read");
    assert_eq!(entries, again);
}

fn read_all(bytes: &[u8]) -> Result<Vec<(tar::Entry, Vec<u8>)>> {
    let mut reader = tar::Reader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push((entry, reader.rest()?));
    }
    Ok(entries)
}

/// Unpacks bytes as layers on top of each other: those of an archive, or, since chance
/// finds few of those, what the bytes say about a few names that lead to each other.
pub fn layers(bytes: &[u8], root: BorrowedFd<'_>, how: &Unpack) {
    let _ = unpack_here(bytes, root, how);
    for layer in bytes.split(|byte| *byte == b'\n') {
        let _ = unpack_here(&told(layer)[..], root, how);
    }
}

/// An archive with an entry for each three bytes: a kind, a name, a target.
fn told(bytes: &[u8]) -> Vec<u8> {
    const NAMES: [&str; 16] = [
        "a",
        "b",
        "a/b",
        "a/b/c",
        "b/a",
        "./",
        "../s",
        "/a",
        "s",
        ".wh.a",
        "a/.wh.b",
        ".wh..wh..opq",
        "a/.wh..wh..opq",
        "b/.wh.a",
        "c/d",
        "l/a",
    ];
    const TARGETS: [&str; 16] =
        ["a", "b", "..", "../s", "/", "/a", "a/b", "b/a", "/proc/self/root", "../../s", "l", "a/..", ".", "c", "/b/../..", "s"];
    const KINDS: [tar::Kind; 8] = [
        tar::Kind::File,
        tar::Kind::Directory,
        tar::Kind::Symlink,
        tar::Kind::HardLink,
        tar::Kind::Fifo,
        tar::Kind::CharDevice,
        tar::Kind::Symlink,
        tar::Kind::Directory,
    ];
    let mut writer = tar::Writer::new(Vec::new());
    for entry in bytes.chunks_exact(3) {
        let kind = KINDS[usize::from(entry[0] % 8)];
        let is_link = matches!(kind, tar::Kind::Symlink | tar::Kind::HardLink);
        let entry = tar::Entry {
            kind,
            path: NAMES[usize::from(entry[1] % 16)].into(),
            link: if is_link { TARGETS[usize::from(entry[2] % 16)].into() } else { Vec::new() },
            mode: u32::from(entry[2]),
            device: if kind == tar::Kind::CharDevice { (1, 3) } else { (0, 0) },
            ..tar::Entry::default()
        };
        writer.entry(&entry).expect("a Vec takes all");
    }
    writer.finish().expect("a Vec takes all")
}
