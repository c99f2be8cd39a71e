//! Layers as one tree, as overlayfs would show them, without mounting anything.
//!
//! It answers few questions (whom does a name in /etc/passwd mean, what is below this
//! directory), so each walks the layers anew. No path of the host's is in reach: every
//! step opens one name in one directory and follows no link; links are resolved here,
//! against the root of the image.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{getegid, geteuid};

use crate::error::{Error, Result};
use crate::image::json::refused;
use crate::layer::Owners;
use crate::layer::directory::{attribute, look, open_as_it_is, read_link};

/// How many links are followed for one path, as the kernel has it.
const MAX_LINKS: usize = 40;

/// The layers of an image, the topmost first.
#[derive(Debug)]
pub(crate) struct Merged {
    roots: Rc<Vec<OwnedFd>>,
    opaque: &'static CStr,
    owners: Owners,
}

/// What stands under a name.
pub(crate) enum Found {
    /// A directory, in one layer or more.
    Directory(Rc<Vec<OwnedFd>>),
    /// Anything else, by the directory of the layer that has it.
    Other { parent: OwnedFd, name: OsString, stat: FileStat },
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

impl Merged {
    pub(crate) fn open(layers: impl IntoIterator<Item = PathBuf>, user_xattr: bool, owners: Owners) -> Result<Merged> {
        // Not for reading, here and below: it may be closed to us as a directory of somebody else's.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = |path: PathBuf| {
            nix::fcntl::open(&path, flags, Mode::empty()).map_err(|e| Error::io("open the layer", &path.to_string_lossy(), e.into()))
        };
        let roots: Vec<OwnedFd> = layers.into_iter().map(open).collect::<Result<_>>()?;
        let opaque = if user_xattr { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
        Ok(Merged { roots: Rc::new(roots), opaque, owners })
    }

    /// What `name` is in a merged directory.
    fn child(&self, directory: &[OwnedFd], name: &OsStr) -> Result<Option<Found>> {
        let failed = |errno: Errno| Error::io("look at", &name.to_string_lossy(), errno.into());
        let mut merged = Vec::new();
        for layer in directory {
            let stat = match look(layer.as_fd(), name.as_bytes()) {
                Ok(Some(stat)) => stat,
                Ok(None) | Err(Errno::ENAMETOOLONG) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            let whiteout = kind(&stat) == SFlag::S_IFCHR && stat.st_rdev == 0;
            if kind(&stat) != SFlag::S_IFDIR {
                if merged.is_empty() && !whiteout {
                    let parent = layer.try_clone().map_err(|e| Error::io("copy", "a descriptor", e))?;
                    return Ok(Some(Found::Other { parent, name: name.to_os_string(), stat }));
                }
                break;
            }
            let opened = open_as_it_is(layer.as_fd(), name.as_bytes(), OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(failed)?;
            let opaque = attribute(opened.as_fd(), c".", self.opaque).is_ok_and(|value| value == b"y");
            merged.push(opened);
            if opaque {
                break;
            }
        }
        Ok(if merged.is_empty() { None } else { Some(Found::Directory(Rc::new(merged))) })
    }

    /// What a path leads to. `follow` is for a link at its end; those before are
    /// followed anyway, within the image.
    pub(crate) fn find(&self, path: &Path, follow: bool) -> Result<Option<Found>> {
        let mut links = 0;
        let mut above: Vec<Rc<Vec<OwnedFd>>> = Vec::new();
        let mut here = self.roots.clone();
        // What is left of the path, the next component last.
        let components = |path: &Path| path.as_os_str().as_bytes().split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
        let mut left = components(path);
        while let Some(name) = left.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    here = above.pop().unwrap_or_else(|| self.roots.clone());
                    continue;
                }
                _ => {}
            }
            let last = left.iter().all(|c| c.is_empty() || c == b".");
            match self.child(&here, OsStr::from_bytes(&name))? {
                Some(Found::Directory(directory)) => above.push(std::mem::replace(&mut here, directory)),
                Some(Found::Other { parent, stat, .. }) if kind(&stat) == SFlag::S_IFLNK && (follow || !last) => {
                    links += 1;
                    let target = read_link(parent.as_fd(), &name).map_err(|e| Error::io("read", "a link", e.into()))?;
                    if links > MAX_LINKS || left.len() > 4096 {
                        return Err(refused(format!("{} leads through too many symbolic links", path.display())));
                    }
                    if target.as_bytes().starts_with(b"/") {
                        above.clear();
                        here = self.roots.clone();
                    }
                    left.extend(components(Path::new(&target)));
                }
                Some(other) if last => return Ok(Some(other)),
                _ => return Ok(None),
            }
        }
        Ok(Some(Found::Directory(here)))
    }

    /// Whether a directory is missing, or looks as one does that nobody said anything
    /// about: 0755, root's.
    pub(crate) fn is_plain_directory(&self, path: &Path) -> Result<bool> {
        let Some(found) = self.find(path, false)? else { return Ok(true) };
        let Found::Directory(layers) = found else { return Ok(false) };
        let Some(top) = layers.first() else { return Ok(true) };
        let stat = fstat(top).map_err(|e| Error::io("look at", &path.to_string_lossy(), e.into()))?;
        let roots = match self.owners {
            Owners::Single => true,
            Owners::Real => (stat.st_uid, stat.st_gid) == (0, 0),
            Owners::Later => (stat.st_uid, stat.st_gid) == (geteuid().as_raw(), getegid().as_raw()),
        };
        Ok(stat.st_mode & 0o7777 == 0o755 && roots)
    }

    /// The contents of a regular file, links followed within the image; `None` if it's
    /// missing.
    pub(crate) fn read_file(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let (parent, name, stat) = match self.find(Path::new(path), true)? {
            None => return Ok(None),
            Some(Found::Directory(_)) => return Err(refused(format!("the image's /{path} is a directory"))),
            Some(Found::Other { parent, name, stat }) => (parent, name, stat),
        };
        // A FIFO would make us wait, a device do whatever it does (CVE-2024-9676).
        if kind(&stat) != SFlag::S_IFREG {
            return Err(refused(format!("the image's /{path} is no regular file")));
        }
        let too_large = || refused(format!("the image's /{path} is larger than {limit} bytes"));
        if stat.st_size as u64 > limit {
            return Err(too_large());
        }
        let failed = |e: std::io::Error| Error::io("read the image's", path, e);
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = File::from(open_as_it_is(parent.as_fd(), name.as_bytes(), flags).map_err(|e| failed(e.into()))?);
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(Some(bytes)) }
    }
}
