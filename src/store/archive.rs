//! Root file systems that are one archive.
//!
//! Such an archive has no JSON that names it: its name is the digest of all of it. So that
//! what the store has needn't be read to its end each time, the store also remembers which
//! file it was, by what any change of a file changes: device, inode, size and both times,
//! of which ctime can't be set (inode(7)).

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::import::{Import, Imported, Staging, opened, teller};
use super::lock::{Kind, Lock};
use super::record::{self, encode};
use super::stream::{self, Shared, Unpacked};
use crate::error::{Error, Result};
use crate::image::json::refused;
use crate::image::{Digest, Hasher, Member, rootfs};

impl Import<'_> {
    /// Takes in a root file system that is one archive.
    pub(crate) fn archive(&self, file: File, name: String) -> Result<Arc<Imported>> {
        let path = self.store.path();
        let lock = Lock::take(path, Kind::UseShared)?;
        let stands_for = |source: Option<Digest>| -> Result<Option<Arc<Imported>>> {
            let Some(imported) = source.map_or(Ok(None), |id| opened(self.store, &lock, &id, None))? else { return Ok(None) };
            record::set_name(path, &name, &imported.id)?;
            Ok(Some(imported))
        };
        let identity = Identity::of(&file)?;
        if let Some(imported) = stands_for(record::file_source(path, &identity.key())?)? {
            return Ok(imported);
        }
        let (began, size, file) = (SystemTime::now(), identity.size, Arc::new(file));
        let key = hash(Member::new(file.clone(), 0, size))?;
        let known = || -> Result<Option<Arc<Imported>>> {
            let imported = stands_for(record::source(path, &key)?)?;
            if let Some(imported) = imported.as_ref().filter(|_| identity.is_older_than(began))
                && Identity::of(&file)? == identity
            {
                record::set_file_source(path, &identity.key(), &imported.id)?;
            }
            Ok(imported)
        };
        if let Some(imported) = known()? {
            return Ok(imported);
        }
        lock.also([&key])?;
        if let Some(imported) = known()? {
            return Ok(imported);
        }
        let staging = Staging::new(self.store)?;
        let shared = Shared::new(self.options()?);
        let place = staging.layer("archive")?;
        let tell = teller(self.progress, 0, 1, &key);
        let member = Member::new(file, 0, size);
        let unpacked = stream::unpack(member, Hasher::sha256(), place.root.as_fd(), Some(place.copy), &shared, &|read| tell(read, size))?;
        if unpacked.received != key {
            return Err(refused("the archive changed while it was read"));
        }
        let Unpacked { diff_id, blob, applied, .. } = unpacked;
        staging.record(&place.directory, blob, applied)?;
        staging.rename("archive", &diff_id.file_name())?;
        let source = rootfs::source(&diff_id, name)?;
        lock.also([&diff_id, &source.id].into_iter().filter(|digest| **digest != key))?;
        let record = self.finish(&source, &staging)?;
        record::write(path, &format!("images/{}.json", source.id.file_name()), &encode(&record)?)?;
        record::set_source(path, &key, &source.id)?;
        self.name(&source, &source.id)?;
        opened(self.store, &lock, &source.id, Some(&source.document))?.ok_or_else(|| refused("the image vanished from the store"))
    }
}

/// Which file, in which state.
///
/// Who may write to the file may keep its ctime by writing through a mapping that the
/// kernel thinks changed anyway. That one's old contents are opened then, which were that
/// one's too, and checked.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Identity {
    fn of(file: &File) -> Result<Identity> {
        let m = file.metadata().map_err(|e| Error::io("look at", "the archive", e))?;
        let (mtime, ctime) = ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()));
        Ok(Identity { device: m.dev(), inode: m.ino(), size: m.len(), mtime, ctime })
    }

    fn key(&self) -> Digest {
        Digest::of(format!("{self:?}").as_bytes())
    }

    /// Whether a change at that time, or later, gives another ctime: the clock that stamps
    /// files moves in steps, of some milliseconds or, on some file systems, two seconds.
    fn is_older_than(&self, time: SystemTime) -> bool {
        const STEP: Duration = Duration::from_secs(3);
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.saturating_sub(STEP).as_secs()).is_ok_and(|seconds| 0 < self.ctime.0 && self.ctime.0 < seconds)
    }
}

/// The digest of a whole file.
fn hash(mut member: Member) -> Result<Digest> {
    let (mut hasher, mut buffer) = (Hasher::sha256(), vec![0; 256 << 10]);
    loop {
        match member.read(&mut buffer).map_err(|e| Error::io("read", "the archive", e))? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}
