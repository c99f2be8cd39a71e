//! Images in tar archives: where each member lies in the file.
//!
//! Members are read where they stand, whatever they are called: a name is only a key of
//! a table here. Between members we seek, so that an archive of gigabytes is looked
//! through in as many reads as it has members.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use super::digest::is_hex;
use super::files::Member;
use super::json::{MAX_LAYERS, refused};
use crate::compress::{self, Bounds, Compression};
use crate::error::{Error, Result};
use crate::tar;

/// The most members of an image: of old archives of `docker save` each layer has four.
const MAX_MEMBERS: usize = 8 * MAX_LAYERS;
/// How many links are followed to a member: old archives have `layer.tar` as a link
/// to another layer's.
const MAX_LINKS: usize = 8;

/// An archive's members.
#[derive(Debug)]
pub(crate) struct Archive {
    file: Arc<File>,
    members: HashMap<String, Place>,
}

/// Where a member is.
#[derive(Clone, Debug)]
enum Place {
    Data { at: u64, size: u64 },
    Link { target: String },
    Other,
}

/// What a file holds.
pub(crate) enum Kind {
    /// A root file system's archive; the file as it is.
    RootFs(File),
    Image(Archive),
}

impl Archive {
    /// An archive of nothing.
    pub(crate) fn empty() -> Result<Archive> {
        let file = File::open("/dev/null").map_err(|e| Error::io("open", "/dev/null", e))?;
        Ok(Archive { file: Arc::new(file), members: HashMap::new() })
    }

    /// An archive with one member, which has no name: the whole file.
    pub(crate) fn of_one(file: File) -> Result<Archive> {
        let size = file.metadata().map_err(|e| Error::io("look at", "a file", e))?.len();
        Ok(Archive { file: Arc::new(file), members: HashMap::from([(String::new(), Place::Data { at: 0, size })]) })
    }

    /// Finds out what a file holds. An image that's compressed as a whole is
    /// decompressed into an unnamed file in `scratch`, at most `limit` bytes of it.
    pub(crate) fn look(file: File, limit: u64, scratch: impl FnOnce() -> Result<std::path::PathBuf>) -> Result<Kind> {
        let file = Arc::new(file);
        let whole = || -> Result<Member> {
            let size = file.metadata().map_err(|e| Error::io("look at", "the archive", e))?.len();
            Ok(Member::new(file.clone(), 0, size))
        };
        let (compression, contents) = compress::reader(BufReader::new(whole()?), &Bounds::default())?;
        if !is_image(&mut tar::Reader::new(BufReader::new(contents)))? {
            let file = file.try_clone().map_err(|e| Error::io("copy", "a descriptor", e))?;
            return Ok(Kind::RootFs(file));
        }
        if compression == Compression::None {
            return Archive::index(file).map(Kind::Image);
        }
        let (_, contents) = compress::reader(BufReader::new(whole()?), &Bounds::default())?;
        Archive::index(Arc::new(spool(contents, limit, &scratch()?)?)).map(Kind::Image)
    }

    /// Reads the headers of all members.
    fn index(file: Arc<File>) -> Result<Archive> {
        let size = file.metadata().map_err(|e| Error::io("look at", "the archive", e))?.len();
        let mut members = HashMap::new();
        let mut at = 0;
        while at < size {
            let mut reader = tar::Reader::new(BufReader::with_capacity(HEADERS, Member::new(file.clone(), at, size - at)));
            let Some(entry) = reader.next_entry()? else { break };
            let (begin, stored, padding) = reader.extent();
            let begin = at + begin;
            at = begin.saturating_add(stored).saturating_add(padding);
            let name = clean(&entry.path)?;
            let place = match entry.kind {
                tar::Kind::File if entry.sparse.is_none() && begin.saturating_add(stored) <= size => {
                    Place::Data { at: begin, size: stored }
                }
                tar::Kind::File => return Err(refused(format!("{name} is cut off, or has holes, which nothing in an image has"))),
                tar::Kind::Symlink => Place::Link { target: beside(&name, &entry.link)? },
                tar::Kind::HardLink => Place::Link { target: clean(&entry.link)? },
                _ => Place::Other,
            };
            // Programs disagree about which of two counts.
            if members.insert(name.clone(), place).is_some_and(|old| !matches!(old, Place::Other)) {
                return Err(refused(format!("{name} stands twice in the archive")));
            }
            if members.len() > MAX_MEMBERS {
                return Err(refused(format!("the archive has more than {MAX_MEMBERS} members")));
            }
        }
        Ok(Archive { file, members })
    }

    /// Opens a member by its name.
    pub(crate) fn open(&self, path: &str) -> Result<Option<Member>> {
        let mut name = clean(path.as_bytes())?;
        for _ in 0..=MAX_LINKS {
            match self.members.get(&name) {
                None => return Ok(None),
                Some(Place::Data { at, size }) => return Ok(Some(Member::new(self.file.clone(), *at, *size))),
                Some(Place::Link { target }) => name.clone_from(target),
                Some(Place::Other) => return Err(refused(format!("{name} in the archive is no file"))),
            }
        }
        Err(refused(format!("{path:.200} leads through too many links in the archive")))
    }
}

/// Enough for a header and the metadata that usually come before it.
const HEADERS: usize = 4096;

/// Whether an archive is an image's: all that an image's has at its top are these names.
fn is_image<R: io::BufRead>(reader: &mut tar::Reader<R>) -> Result<bool> {
    for _ in 0..MAX_MEMBERS {
        let Some(entry) = reader.next_entry()? else { return Ok(false) };
        // What can't be cleaned up is the business of whoever unpacks it.
        let Ok(name) = clean(&entry.path) else { return Ok(false) };
        let (first, rest) = name.split_once('/').unwrap_or((&name, ""));
        let layer = |name: &str| name.len() == 64 && is_hex(name);
        match first {
            "" | "blobs" => {}
            "oci-layout" | "index.json" | "manifest.json" if rest.is_empty() => return Ok(true),
            "repositories" => {}
            other if layer(other.trim_end_matches(".json").trim_end_matches(".tar")) => {}
            _ => return Ok(false),
        }
    }
    Ok(false)
}

/// A name without what means nothing, and refused if it climbs out of the archive.
fn clean(path: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(path).map_err(|_| refused(format!("{} is no name for a member of an image", tar::shown(path))))?;
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.pop().is_none() => return Err(refused(format!("{} leads out of the archive", tar::shown(path)))),
            ".." => {}
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// Where a symbolic link at `name` leads.
fn beside(name: &str, target: &[u8]) -> Result<String> {
    if target.starts_with(b"/") {
        return clean(target);
    }
    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
    clean(&[parent.as_bytes(), b"/", target].concat())
}

/// A copy of a stream in a file without a name.
fn spool(mut contents: impl Read, limit: u64, scratch: &Path) -> Result<File> {
    let failed = |e| Error::io("decompress the image into", &scratch.to_string_lossy(), e);
    let mut file =
        File::options().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE | libc::O_EXCL).open(scratch).map_err(failed)?;
    let (mut buffer, mut written) = (vec![0; 128 << 10], 0);
    loop {
        let count = match contents.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("decompress", "the image", error)),
        };
        written += count as u64;
        if written > limit {
            return Err(refused(format!("the image unpacks to more than {limit} bytes (raise the limit if you trust it)")));
        }
        file.write_all(&buffer[..count]).map_err(failed)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_keys_and_lead_nowhere_else() {
        for (name, key) in [("./a//b/", "a/b"), ("/a", "a"), ("a/../b", "b"), ("./", ""), ("a/./b", "a/b")] {
            assert_eq!(clean(name.as_bytes()).expect("a name"), key);
        }
        for bad in [&b".."[..], b"a/../..", b"\xff"] {
            assert!(clean(bad).is_err(), "{bad:?}");
        }
        assert_eq!(beside("a/layer.tar", b"../b/layer.tar").expect("a name"), "b/layer.tar");
        assert_eq!(beside("a/layer.tar", b"/b").expect("a name"), "b");
        assert!(beside("layer.tar", b"../b").is_err());
    }
}
