//! One layer's way from an image's member to a tree: copied and hashed as it comes,
//! decompressed, hashed again, unpacked.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::chain::make_tree;
use super::record::Blob;
use crate::compress;
use crate::error::{Error, Result};
use crate::image::{Digest, Hasher, Member};
use crate::layer::{self, Applied};

/// What the layers of an image, unpacked at the same time, share.
pub(super) struct Shared {
    pub(super) options: layer::Options,
    /// Bytes of all layers without compression, and how many there may be.
    spent: AtomicU64,
    /// One has failed, so the others needn't go on.
    stop: AtomicBool,
}

/// In an error of a layer that has only been stopped.
pub(super) const STOPPED: &str = "another layer failed";

/// A layer may hold this many bytes, and [`RATIO`] times its compressed size more. Real
/// layers stay far below; bombs don't.
const RATIO_FREE: u64 = 64 << 20;
const RATIO: u64 = 100;

impl Shared {
    pub(super) fn new(options: layer::Options) -> Shared {
        Shared { options, spent: AtomicU64::new(0), stop: AtomicBool::new(false) }
    }

    pub(super) fn spend(&self, bytes: u64) {
        self.spent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A layer that was unpacked.
pub(super) struct Unpacked {
    pub(super) diff_id: Digest,
    pub(super) received: Digest,
    pub(super) blob: Blob,
    pub(super) applied: Applied,
}

/// Unpacks a layer into `directory`/fs, and keeps it as it came in `blob`.
pub(super) fn unpack(
    mut member: Member,
    hasher: Hasher,
    directory: &Path,
    blob: &Path,
    shared: &Shared,
    progress: &dyn Fn(u64),
) -> Result<Unpacked> {
    let tree = directory.join("fs");
    make_tree(&tree)?;
    let root = File::open(&tree).map_err(|e| Error::io("open", &tree.to_string_lossy(), e))?;
    let copy = File::create_new(blob).map_err(|e| Error::io("make", &blob.to_string_lossy(), e))?;
    // Nobody takes xz for layers, so such a one is kept without compression.
    let (as_it_came, plain) = if starts_with(&mut member, compress::XZ_MAGIC)? { (None, Some(copy)) } else { (Some(copy), None) };
    let read = AtomicU64::new(0);
    let mut received = Received { member, copy: as_it_came, hasher, read: &read, shared, progress };
    let (diff_id, size, applied) = {
        let inner = compress::reader(&mut received)?;
        let mut contents = Contents { inner, copy: plain, hasher: Hasher::sha256(), size: 0, read: &read, shared };
        let applied = layer::apply(&mut contents, root.as_fd(), &shared.options);
        // What the file system said of a bomb is less than what we know of it.
        let applied = applied?;
        (contents.hasher.finish(), contents.size, applied)
    };
    // Whatever follows the last compressed member is part of the digest.
    io::copy(&mut received, &mut io::sink()).map_err(|e| Error::io("read", "the layer", e))?;
    let kept_plain = received.copy.is_none();
    let received = received.hasher.finish();
    let blob = if kept_plain {
        Blob { digest: diff_id.clone(), size }
    } else {
        Blob { digest: received.clone(), size: read.load(Ordering::Relaxed) }
    };
    Ok(Unpacked { diff_id, received, blob, applied })
}

fn starts_with(member: &mut Member, magic: &[u8]) -> Result<bool> {
    member.starts_with(magic).map_err(|e| Error::io("read", "the layer", e))
}

/// The layer as it comes.
struct Received<'a> {
    member: Member,
    copy: Option<File>,
    hasher: Hasher,
    read: &'a AtomicU64,
    shared: &'a Shared,
    progress: &'a dyn Fn(u64),
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
        let read = self.read.fetch_add(count as u64, Ordering::Relaxed) + count as u64;
        (self.progress)(read);
        Ok(count)
    }
}

/// The archive in it.
struct Contents<'a, R> {
    inner: R,
    copy: Option<File>,
    hasher: Hasher,
    size: u64,
    read: &'a AtomicU64,
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
        if self.size > self.read.load(Ordering::Relaxed).saturating_mul(RATIO).saturating_add(RATIO_FREE) {
            return Err(io::Error::other(format!("it unpacks to more than {RATIO} times its size, as a decompression bomb does")));
        }
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..count])?;
        }
        Ok(count)
    }
}
