//! An archive beside GNU tar: shared with a fuzz target.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use cofferdam::internals::layers::{Unpack, remove_tree, unpack};

/// What came of an archive.
pub enum Comparison {
    /// We refuse it, which is nobody's loss.
    Refused,
    /// GNU tar complains about it, so nobody is deceived: a file in the way of a directory,
    /// say.
    Complaint,
    Same,
    /// What only one of the two has.
    Different(String),
}

/// Unpacks an archive twice in the directory `around`. `owners`: to the users that it says,
/// or else by a tar that has no rights, because nobody knows what the archive says.
pub fn compare(bytes: &[u8], around: &Path, how: &Unpack, owners: bool) -> Comparison {
    const NOBODY: u32 = 65534;
    let (ours, theirs, file) = (around.join("ours"), around.join("theirs"), around.join("archive"));
    let clear = || {
        let parent = File::open(around).expect("a directory");
        ["ours", "theirs"].iter().for_each(|name| remove_tree(parent.as_fd(), name.as_ref()).expect("it's removed"));
    };
    clear();
    fs::create_dir(&ours).expect("a directory");
    let unpacked = unpack(bytes, File::open(&ours).expect("a directory").as_fd(), how);
    let comparison = match unpacked {
        Err(_) => Comparison::Refused,
        Ok(_) => {
            fs::create_dir(&theirs).expect("a directory");
            fs::write(&file, bytes).expect("a file");
            let mut tar = Command::new("tar");
            tar.args(["--numeric-owner", "--warning=no-timestamp", "-xpf"]).arg(&file).arg("-C").arg(&theirs);
            if !owners && is_root() {
                chown(&theirs, Some(NOBODY), Some(NOBODY)).expect("root may");
                tar.uid(NOBODY).gid(NOBODY);
            }
            let output = tar.output().expect("tar runs");
            let (ours, theirs) = (outline(&ours, owners), outline(&theirs, owners));
            let same = |(ours, theirs): (&Outline, &Outline)| {
                // What isn't said in a map of a sparse file: see src/tar/sparse.rs.
                let ends = ours.length == theirs.length || (ours.length > theirs.length && is_sparse(bytes));
                ours.about == theirs.about && ends
            };
            if !output.status.success() {
                Comparison::Complaint
            } else if ours.len() == theirs.len() && ours.iter().zip(&theirs).all(same) {
                Comparison::Same
            } else {
                let only = |one: &[Outline], other: &[Outline]| {
                    one.iter().filter(|line| !other.contains(line)).map(|line| format!("{line:?}")).collect::<Vec<_>>()
                };
                Comparison::Different(format!("ours {:?}, theirs {:?}", only(&ours, &theirs), only(&theirs, &ours)))
            }
        }
    };
    clear();
    comparison
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// What every program has to agree about.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Outline {
    about: String,
    length: usize,
}

fn is_sparse(archive: &[u8]) -> bool {
    archive.windows(11).any(|window| window == b"GNU.sparse.") || archive.chunks_exact(512).any(|header| header[156] == b'S')
}

fn outline(root: &Path, owners: bool) -> Vec<Outline> {
    fn walk(root: &Path, directory: &Path, owners: bool, into: &mut Vec<Outline>) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let about = fs::symlink_metadata(&path).expect("it's there");
            let owner = if owners { (about.uid(), about.gid()) } else { (0, 0) };
            let contents = if about.is_file() { fs::read(&path).unwrap_or_default() } else { Vec::new() };
            let (name, target) = (path.strip_prefix(root).expect("below it"), fs::read_link(&path).ok());
            let links = if about.is_dir() { 0 } else { about.nlink() };
            // Zeros at the end count by their number only.
            let end = contents.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let sum = contents[..end].iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            let about_it = format!("{name:?} {:o} {owner:?} {links} {target:?} {end} {sum:x}", about.mode());
            into.push(Outline { about: about_it, length: contents.len() });
            if about.is_dir() && fs::read_dir(&path).is_ok() {
                walk(root, &path, owners, into);
            }
        }
    }
    let mut lines = Vec::new();
    walk(root, root, owners, &mut lines);
    lines.sort();
    lines
}
