//! One layer's way from an image's member to a tree: copied and hashed as it comes,
//! decompressed, hashed again, unpacked.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::record::Blob;
use crate::compress::{self, Bounds};
use crate::error::{Error, Result};
use crate::image::json::refused;
use crate::image::{Digest, Hasher, LayerSource, Member, Source};
use crate::layer::{self, Applied};

/// What the layers of an image, unpacked at the same time, share.
pub(crate) struct Shared {
    pub(crate) options: layer::Options,
    /// Bytes of all layers without compression, and how many there may be.
    spent: AtomicU64,
    /// One has failed, so the others needn't go on.
    stop: AtomicBool,
}

/// In an error of a layer that has only been stopped.
pub(crate) const STOPPED: &str = "another layer failed";

impl Shared {
    pub(crate) fn new(options: layer::Options) -> Shared {
        Shared { options, spent: AtomicU64::new(0), stop: AtomicBool::new(false) }
    }

    pub(crate) fn spend(&self, bytes: u64) {
        self.spent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The xz file format's first bytes.
const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";
const BUFFER: usize = 128 << 10;

/// A layer that was unpacked.
pub(crate) struct Unpacked {
    pub(crate) diff_id: Digest,
    pub(crate) received: Digest,
    pub(crate) blob: Blob,
    pub(crate) applied: Applied,
}

/// Unpacks a layer of an image and checks it against everything that the image says of it.
pub(crate) fn layer(
    source: &Source,
    wanted: &LayerSource,
    root: BorrowedFd<'_>,
    copy: Option<File>,
    shared: &Shared,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Unpacked> {
    let member = source.open_layer(wanted)?;
    let total = member.len();
    if let Some((_, size)) = &wanted.blob
        && *size != total
    {
        return Err(refused(format!("it has {total} bytes, its descriptor says {size}")));
    }
    let hasher = wanted.blob.as_ref().map_or_else(Hasher::sha256, |(digest, _)| digest.hasher());
    let unpacked = unpack(member, hasher, root, copy, shared, &|read| progress(read, total))?;
    if let Some((digest, _)) = &wanted.blob
        && unpacked.received != *digest
    {
        return Err(refused(format!("it is damaged: instead of {digest} its digest is {}", unpacked.received)));
    }
    if unpacked.diff_id != wanted.diff_id {
        return Err(refused(format!("its contents have the digest {}, which the configuration doesn't name", unpacked.diff_id)));
    }
    Ok(unpacked)
}

/// Unpacks an archive into `root`; as it came, it's written to `copy` too.
pub(crate) fn unpack(
    member: Member,
    hasher: Hasher,
    root: BorrowedFd<'_>,
    copy: Option<File>,
    shared: &Shared,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Unpacked> {
    // Nobody takes xz for layers, so such a one is kept without compression.
    let is_xz = member.starts_with(XZ_MAGIC).map_err(|e| Error::io("read", "the layer", e))?;
    let (as_it_came, plain) = if is_xz { (None, copy) } else { (copy, None) };
    let mut received = Received { member, copy: as_it_came, hasher, read: 0, shared, progress };
    let (diff_id, size, applied) = {
        let (_, inner) = compress::reader(BufReader::with_capacity(BUFFER, &mut received), &Bounds::default())?;
        let mut contents = Contents { inner, copy: plain, hasher: Hasher::sha256(), size: 0, shared };
        let applied = compress::ahead(&mut contents, |tar| layer::apply(tar, root, &shared.options))??;
        (contents.hasher.finish(), contents.size, applied)
    };
    if received.member.len() != 0 {
        return Err(refused("something follows its end"));
    }
    let (read, received) = (received.read, received.hasher.finish());
    let blob = if is_xz { Blob { digest: diff_id.clone(), size } } else { Blob { digest: received.clone(), size: read } };
    Ok(Unpacked { diff_id, received, blob, applied })
}

/// The layer as it comes.
struct Received<'a> {
    member: Member,
    copy: Option<File>,
    hasher: Hasher,
    read: u64,
    shared: &'a Shared,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Read for Received<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.shared.stopped() {
            return Err(io::Error::other(STOPPED));
        }
        let count = self.member.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..count])?;
        }
        self.read += count as u64;
        if count > 0 {
            (self.progress)(self.read);
        }
        Ok(count)
    }
}

/// The archive in it.
struct Contents<'a, R> {
    inner: R,
    copy: Option<File>,
    hasher: Hasher,
    size: u64,
    shared: &'a Shared,
}

impl<R: Read> Read for Contents<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        let most = self.shared.options.limits.bytes;
        if self.shared.spent.fetch_add(count as u64, Ordering::Relaxed) + count as u64 > most {
            return Err(io::Error::other(format!("the image unpacks to more than {most} bytes (raise the limit if you trust it)")));
        }
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..count])?;
        }
        Ok(count)
    }
}
