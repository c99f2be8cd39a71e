//! One layer's way from an image's member to a tree: copied and hashed as it comes,
//! decompressed, hashed again, unpacked.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::chain::make_tree;
use super::record::Blob;
use crate::compress::{self, Bounds};
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

/// The xz file format's first bytes.
const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";
const BUFFER: usize = 128 << 10;

/// A layer that was unpacked.
pub(super) struct Unpacked {
    pub(super) diff_id: Digest,
    pub(super) received: Digest,
    pub(super) blob: Blob,
    pub(super) applied: Applied,
}

/// Unpacks a layer into `directory`/fs, and keeps it as it came in `blob`.
pub(super) fn unpack(
    member: Member,
    hasher: Hasher,
    directory: &Path,
    blob: &Path,
    shared: &Shared,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Unpacked> {
    let tree = directory.join("fs");
    make_tree(&tree)?;
    let root = File::open(&tree).map_err(|e| Error::io("open", &tree.to_string_lossy(), e))?;
    let copy = File::create_new(blob).map_err(|e| Error::io("make", &blob.to_string_lossy(), e))?;
    // Nobody takes xz for layers, so such a one is kept without compression.
    let is_xz = member.starts_with(XZ_MAGIC).map_err(|e| Error::io("read", "the layer", e))?;
    let (as_it_came, plain) = if is_xz { (None, Some(copy)) } else { (Some(copy), None) };
    let mut received = Received { member, copy: as_it_came, hasher, read: 0, shared, progress };
    let (diff_id, size, applied) = {
        let (_, inner) = compress::reader(BufReader::with_capacity(BUFFER, &mut received), &Bounds::default())?;
        let mut contents = Contents { inner, copy: plain, hasher: Hasher::sha256(), size: 0, shared };
        let applied = compress::ahead(&mut contents, |tar| layer::apply(tar, root.as_fd(), &shared.options))??;
        (contents.hasher.finish(), contents.size, applied)
    };
    let kept_plain = received.copy.is_none();
    let hashed = received.hasher.finish();
    let blob = if kept_plain { Blob { digest: diff_id.clone(), size } } else { Blob { digest: hashed.clone(), size: received.read } };
    Ok(Unpacked { diff_id, received: hashed, blob, applied })
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
        (self.progress)(self.read);
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
