//! Modes and times of directories, when nothing more will happen in them.

use std::ffi::CString;
use std::io::{self, BufRead};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;

use super::apply::{Layer, spec};
use super::directory::{DEEPEST, Level, READ};
use super::tree::{Node, Origin};
use super::{Form, Unknown, shown};
use crate::error::{Error, Result};

impl<R: BufRead> Layer<'_, R> {
    /// Sets what each directory of the archive, and each that something happened in, has
    /// in the end; the deepest first, because one may be closed to ourselves afterwards.
    pub(super) fn finish(&mut self) -> Result<()> {
        let overlay = self.options.form != Form::Flat;
        let mut path = Vec::new();
        let failed = |path: &[u8], error| Error::io("finish the directory", &shown(path), error);
        let top = Level::open(self.tree.root().fd.as_fd(), c".", READ).map_err(|error| failed(&path, error))?;
        let mut levels = vec![(top, 0)];
        // Once all is done the rest of a large tree needn't be looked through.
        while let Some((level, _)) = levels.last_mut() {
            let name = if self.tree.nodes.is_empty() { None } else { next_directory(level).map_err(|error| failed(&path, error))? };
            if let Some(name) = name {
                let below = Level::open(level.fd.as_fd(), &name, READ).map_err(|error| failed(&path, error))?;
                levels.push((below, path.len()));
                append(&mut path, name.as_bytes());
                if levels.len() > DEEPEST {
                    return Err(failed(&path, Errno::ENAMETOOLONG.into()));
                }
                continue;
            }
            let (level, length) = levels.pop().expect("looked at");
            match self.tree.nodes.remove(&level.stat.st_ino) {
                Some(node) => {
                    finished(&level, &node).map_err(|error| failed(&path, error))?;
                    if overlay && !path.is_empty() && matches!(node.origin, Origin::Implied | Origin::Marker) {
                        self.question(&path, Unknown::Implied)?;
                    }
                }
                None => level.leave().map_err(|error| failed(&path, error))?,
            }
            path.truncate(length);
        }
        self.applied.questions.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(())
    }
}

fn next_directory(level: &mut Level) -> io::Result<Option<CString>> {
    while let Some((name, directory)) = level.next()? {
        if directory {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn finished(level: &Level, node: &Node) -> io::Result<()> {
    fchmod(&level.fd, Mode::from_bits_truncate(node.mode))?;
    Ok(futimens(&level.fd, &TimeSpec::UTIME_OMIT, &spec(node.mtime))?)
}

/// Goes one component further.
pub(super) fn append(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}
