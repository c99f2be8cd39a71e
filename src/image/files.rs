//! The members of an image, wherever they lie.
//!
//! Nothing of an image is extracted by the names that it gives: a layout's files are
//! opened below its directory, without following links, and the members of an archive
//! are read where they stand.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::archive::Archive;
use super::digest::Digest;
use super::json::{Descriptor, MAX_JSON, refused};
use crate::error::{Error, Result};

/// Where an image's members are.
#[derive(Debug)]
pub(crate) enum Files {
    Directory(OwnedFd),
    Archive(Archive),
}

/// A member, to be read from its beginning.
#[derive(Debug)]
pub(crate) struct Member {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Member {
    /// A part of a file.
    pub(crate) fn new(file: Arc<File>, at: u64, size: u64) -> Member {
        Member { file, at, end: at.saturating_add(size) }
    }

    /// Whether it begins so, without reading on.
    pub(crate) fn starts_with(&self, magic: &[u8]) -> io::Result<bool> {
        let mut bytes = vec![0; magic.len()];
        if self.len() < magic.len() as u64 {
            return Ok(false);
        }
        self.file.read_exact_at(&mut bytes, self.at)?;
        Ok(bytes == magic)
    }

    /// Bytes that are left.
    pub(crate) fn len(&self) -> u64 {
        self.end - self.at
    }
}

impl Read for Member {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        if read == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was"));
        }
        self.at += read as u64;
        Ok(read)
    }
}

impl Files {
    /// Opens a member by its path; `None` if there is none of that name.
    pub(crate) fn open(&self, path: &str) -> Result<Option<Member>> {
        match self {
            Files::Archive(archive) => archive.open(path),
            Files::Directory(directory) => open_below(directory, path),
        }
    }

    /// Reads a whole small member.
    pub(crate) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(mut member) = self.open(path)? else { return Ok(None) };
        if member.len() > limit {
            return Err(refused(format!("{path} has {} bytes; {limit} are possible", member.len())));
        }
        // The length is the file's or, in an archive, checked against it.
        let mut bytes = Vec::with_capacity(member.len() as usize);
        member.read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
        Ok(Some(bytes))
    }

    /// Reads an index, a manifest or a configuration, and checks it against its descriptor.
    pub(crate) fn document(&self, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>> {
        let digest = &descriptor.digest;
        if descriptor.size > MAX_JSON {
            return Err(refused(format!("{what} {digest} has {} bytes; {MAX_JSON} are possible", descriptor.size)));
        }
        let bytes = self.read(&blob_path(digest), MAX_JSON)?;
        let bytes = bytes.ok_or_else(|| refused(format!("{what} {digest} isn't in the image")))?;
        if bytes.len() as u64 != descriptor.size {
            return Err(refused(format!("{what} {digest} has {} bytes, its descriptor says {}", bytes.len(), descriptor.size)));
        }
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        let computed = hasher.finish();
        if computed != *digest {
            return Err(refused(format!("{what} {digest} is damaged: its digest is {computed}")));
        }
        Ok(bytes)
    }
}

/// Where a layout keeps a blob (image-spec, "Blobs").
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Opens a regular file below a directory. A FIFO would block and a link could lead
/// anywhere: neither is followed or waited for.
fn open_below(directory: &OwnedFd, path: &str) -> Result<Option<Member>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let file = match openat2(directory, path, OpenHow::new().flags(flags).resolve(resolve)) {
        Ok(fd) => File::from(fd),
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(Errno::ELOOP) => return Err(refused(format!("{path} is, or lies behind, a symbolic link"))),
        Err(errno) => return Err(Error::io("open", path, errno.into())),
    };
    let metadata = file.metadata().map_err(|e| Error::io("look at", path, e))?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let what = if kind.is_dir() {
            "a directory"
        } else if kind.is_fifo() {
            "a FIFO"
        } else {
            "a special file"
        };
        return Err(refused(format!("{path} is {what}, not a file")));
    }
    Ok(Some(Member::new(Arc::new(file), 0, metadata.len())))
}
