//! Files of a layer.

use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};

use super::apply::{At, Layer, failed, owner_failed, refused, spec};
use super::{Owners, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::tar::Entry;

impl<R: BufRead> Layer<'_, R> {
    /// A new file: what stood there isn't opened, so that a FIFO or a link there
    /// can do nothing.
    pub(super) fn file(&mut self, at: &At<'_>, entry: &Entry) -> Result<()> {
        let stored = match &entry.sparse {
            Some(map) => map.iter().map(|segment| segment.length).sum(),
            None => entry.size,
        };
        let limits = &self.options.limits;
        self.applied.bytes = self.applied.bytes.saturating_add(stored);
        if self.applied.bytes > limits.bytes {
            let text = format!("cannot unpack the archive: it holds more than {} MiB of files (allow more)", limits.bytes >> 20);
            return Err(Error::new(ErrorKind::Image, text));
        }
        if entry.size > limits.file {
            return Err(refused(at.path, "the file is too long"));
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = self.first_mode(entry);
        let mut file = File::from(self.make(at, || openat(&at.parent.fd, at.name, flags, mode))?);
        self.data(at, entry, &mut file)?;
        // Most files are right as they were made, and looking costs a tenth of setting. The
        // umask and the directory have had their say in both, so nothing is taken for granted.
        let stat = fstat(&file).map_err(|errno| failed(at.path, errno))?;
        // This order: chown(2) takes set-user-id bits and capabilities away, and nobody may
        // set attributes of a file that isn't writable.
        if self.options.owners == Owners::Real && (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
            let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
            fchown(&file, uid, gid).map_err(|errno| owner_failed(at.path, entry, errno))?;
        }
        self.tree.owner_later(stat.st_ino, entry.uid, entry.gid)?;
        self.attributes(at.path, file.as_fd(), entry)?;
        if stat.st_mode & 0o7777 != entry.mode {
            fchmod(&file, Mode::from_bits_truncate(entry.mode)).map_err(|errno| failed(at.path, errno))?;
        }
        futimens(&file, &TimeSpec::UTIME_OMIT, &spec(entry.mtime)).map_err(|errno| failed(at.path, errno))
    }

    /// The mode that a file is made with: its own, as far as nobody gets more by it than in
    /// the end. Bits that change who somebody is come after the owner.
    fn first_mode(&self, entry: &Entry) -> Mode {
        let owned = self.options.owners != Owners::Real || self.caller == (entry.uid, entry.gid);
        let open = owned && entry.xattrs.is_empty();
        Mode::from_bits_truncate(if open { entry.mode & 0o777 } else { 0o600 })
    }

    /// The data go from the decompressor's buffer to the file. Holes stay holes.
    fn data(&mut self, at: &At<'_>, entry: &Entry, file: &mut File) -> Result<()> {
        let failed = |error| Error::io("write", &shown(at.path), error);
        let Some(map) = &entry.sparse else {
            loop {
                let bytes = self.tar.data()?;
                if bytes.is_empty() {
                    return Ok(());
                }
                file.write_all(bytes).map_err(failed)?;
                let count = bytes.len();
                self.tar.consume(count);
            }
        };
        file.set_len(entry.size).map_err(failed)?;
        for segment in map {
            let mut done = 0;
            while done < segment.length {
                let bytes = self.tar.data()?;
                let rest = usize::try_from(segment.length - done).unwrap_or(usize::MAX);
                let count = bytes.len().min(rest);
                file.write_all_at(&bytes[..count], segment.offset + done).map_err(failed)?;
                self.tar.consume(count);
                done += count as u64;
            }
        }
        Ok(())
    }
}
