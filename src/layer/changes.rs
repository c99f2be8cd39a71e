//! What a writable layer changes.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::stat::FileStat;

use super::directory::{self, DEEPEST, Level, READ, is_directory, is_whiteout, look};
use super::finish::append;
use super::{Change, ChangeKind, IdMap, overlay_attribute, path_of, shown};
use crate::error::{Error, Result};

/// A layer to be looked at: its directory, and what ids in it are called inside.
pub(crate) type Looked<'a> = (BorrowedFd<'a>, &'a IdMap);

/// What the upper layer changes of the layers `lower`, uppermost first; sorted by path.
pub(crate) fn changes((upper, ids): Looked<'_>, lower: &[Looked<'_>]) -> Result<Vec<Change>> {
    let mut path = Vec::new();
    let mut comparison = Comparison { lower, ids, changes: Vec::new() };
    comparison.walk(upper, &mut path).map_err(|error| {
        let name = if path.is_empty() { "the root".into() } else { shown(&path) };
        Error::io("compare with the lower layers", &name, error)
    })?;
    let mut changes = comparison.changes;
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

struct Comparison<'a> {
    lower: &'a [Looked<'a>],
    ids: &'a IdMap,
    changes: Vec<Change>,
}

/// A directory of the upper layer, and which lower layers it's merged with. What they
/// have is found by paths from their roots: a descriptor for each would be too many.
struct Stage {
    level: Level,
    below: Vec<usize>,
    length: usize,
    /// Hides what's below it; and the names that it has itself.
    opaque: bool,
    names: HashSet<CString>,
}

impl Comparison<'_> {
    fn walk(&mut self, upper: BorrowedFd<'_>, path: &mut Vec<u8>) -> io::Result<()> {
        let below = (0..self.lower.len()).collect();
        let level = Level::open(upper, c".", READ)?;
        let mut stages = vec![Stage { level, below, length: 0, opaque: false, names: HashSet::new() }];
        while let Some(stage) = stages.last_mut() {
            path.truncate(stage.length);
            let Some((name, _)) = stage.level.next()? else {
                let stage = stages.pop().expect("looked at");
                if stage.opaque {
                    self.hidden(path, &stage)?;
                }
                stage.level.leave()?;
                continue;
            };
            append(path, name.to_bytes());
            let fd = stage.level.fd.as_fd();
            let Some(stat) = look(fd, name.to_bytes())? else { continue };
            let (found, below) = self.find(path, &stage.below)?;
            let opaque = is_directory(&stat) && !below.is_empty() && has(fd, &name, "opaque")?;
            if stage.opaque {
                stage.names.insert(name.clone());
            }
            let whiteout = is_whiteout(&stat) || (stat.st_size == 0 && !is_directory(&stat) && has(fd, &name, "whiteout")?);
            let kind = match found {
                Some(_) if whiteout => Some(ChangeKind::Deleted),
                None if whiteout => None,
                None => Some(ChangeKind::Added),
                Some(old) if is_directory(&old) && is_directory(&stat) => self.differs(&old, &stat).then_some(ChangeKind::Modified),
                Some(_) => Some(ChangeKind::Modified),
            };
            if let Some(kind) = kind {
                self.changes.push(Change { path: path_of(path), kind });
            }
            if is_directory(&stat) {
                let level = Level::open(fd, &name, READ)?;
                stages.push(Stage { level, below, length: path.len(), opaque, names: HashSet::new() });
                if stages.len() > DEEPEST {
                    return Err(nix::errno::Errno::ENAMETOOLONG.into());
                }
            }
        }
        Ok(())
    }

    /// What the lower layers have at a path, with ids as inside, and those whose directories are merged there.
    fn find(&self, path: &[u8], layers: &[usize]) -> io::Result<(Option<FileStat>, Vec<usize>)> {
        let (mut found, mut merged) = (None, Vec::new());
        for &layer in layers {
            let (directory, ids) = self.lower[layer];
            let Some(mut stat) = look(directory, path)? else { continue };
            (stat.st_uid, stat.st_gid) = ids.owner(stat.st_uid, stat.st_gid);
            if is_whiteout(&stat) {
                break;
            }
            found = found.or(Some(stat));
            if !is_directory(&stat) {
                break;
            }
            merged.push(layer);
            let name = CString::new(path).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
            if has(directory, &name, "opaque")? {
                break;
            }
        }
        // A file in front of directories hides them.
        if found.as_ref().is_some_and(|stat| !is_directory(stat)) {
            merged.clear();
        }
        Ok((found, merged))
    }

    /// What an opaque directory hides of those below it.
    fn hidden(&mut self, path: &mut Vec<u8>, stage: &Stage) -> io::Result<()> {
        let mut seen = stage.names.clone();
        for &layer in &stage.below {
            let name = CString::new(path.as_slice()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
            let mut level = Level::open(self.lower[layer].0, &name, READ)?;
            while let Some((name, _)) = level.next()? {
                if seen.insert(name.clone()) {
                    path.truncate(stage.length);
                    append(path, name.to_bytes());
                    if self.find(path, &stage.below)?.0.is_some() {
                        self.changes.push(Change { path: path_of(path), kind: ChangeKind::Deleted });
                    }
                }
            }
            path.truncate(stage.length);
            level.leave()?;
        }
        Ok(())
    }

    /// Whether mode or owner of a directory were changed, not only what is in it.
    fn differs(&self, old: &FileStat, new: &FileStat) -> bool {
        old.st_mode != new.st_mode || (old.st_uid, old.st_gid) != self.ids.owner(new.st_uid, new.st_gid)
    }
}

/// Whether overlayfs' attribute is set: `opaque` to `y`, `whiteout` to anything.
fn has(parent: BorrowedFd<'_>, name: &CStr, attribute: &str) -> io::Result<bool> {
    match directory::attribute(parent, name, &overlay_attribute(attribute)) {
        Ok(value) => Ok(attribute != "opaque" || value == b"y"),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(false),
        Err(error) => Err(error),
    }
}
