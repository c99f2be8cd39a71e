//! Garbage collection: mark what images and leases need, rename the rest to the trash,
//! let go of the lock, and remove it then.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::chain::Chain;
use super::lock::{Kind, Lock};
use super::record::{self, list, unique};
use super::{Store, lease, make_directory};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Digest;
use crate::{layer, subordinate};

/// What [`Store::prune`] removed.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Layers.
    pub layers: u64,
    /// Bytes of their files, and of what was kept to save them again.
    pub bytes: u64,
    /// Unfinished pieces of processes that were killed.
    pub leftovers: u64,
}

pub(super) fn prune(store: &Store) -> Result<Pruned> {
    let path = store.path();
    let mut pruned = Pruned::default();
    {
        let _lock = Lock::take(path, Kind::Collect)?;
        let trash = path.join("trash").join(unique());
        make_directory(&trash)?;
        let used = Used::find(path)?;
        for name in list(&path.join("layers"))? {
            if !used.layers.contains(&name) {
                pruned.layers += 1;
                if let Some(digest) = Digest::from_file_name(&name) {
                    // A damaged record is no reason to keep its layer.
                    pruned.bytes += record::layer(path, &digest).ok().flatten().map_or(0, |layer| layer.bytes);
                }
                discard(path, "layers", &name, &trash)?;
            }
        }
        for name in list(&path.join("chains"))? {
            if !used.chains.contains(&name) {
                discard(path, "chains", &name, &trash)?;
            }
        }
        for name in list(&path.join("blobs"))? {
            if !used.blobs.contains(&name) {
                pruned.bytes += fs::metadata(path.join("blobs").join(&name)).map_or(0, |m| m.len());
                discard(path, "blobs", &name, &trash)?;
            }
        }
        for name in list(&path.join("configs"))? {
            if !Digest::from_file_name(&name).is_some_and(|id| used.images.contains(&id)) {
                discard(path, "configs", &name, &trash)?;
            }
        }
        // What points to an image that is gone.
        for (name, image) in record::names(path)? {
            if !used.images.contains(&image) {
                record::remove_name(path, &name)?;
            }
        }
        for name in list(&path.join("sources"))? {
            let key = name.strip_suffix(".json").and_then(Digest::from_file_name);
            let image = key.and_then(|key| record::source(path, &key).ok().flatten());
            if !image.is_some_and(|image| used.images.contains(&image)) {
                discard(path, "sources", &name, &trash)?;
            }
        }
        // Whoever makes something holds the shared lock, so nobody does.
        for name in list(&path.join("tmp"))? {
            pruned.leftovers += 1;
            discard(path, "tmp", &name, &trash)?;
        }
    }
    empty_trash(path)?;
    pruned.leftovers += crate::volume::sweep(path)?;
    Ok(pruned)
}

/// What must stay.
#[derive(Default)]
struct Used {
    images: HashSet<Digest>,
    chains: HashSet<String>,
    layers: HashSet<String>,
    blobs: HashSet<String>,
}

impl Used {
    fn find(store: &Path) -> Result<Used> {
        let mut used = Used::default();
        let mut directories: Vec<String> = lease::live(store)?;
        for (id, image) in record::images(store)? {
            // Also those that the chain leaves out: they are part of the image.
            used.layers.extend(record::document(store, &id)?.diff_ids().iter().map(Digest::file_name));
            used.images.insert(id);
            directories.push(image.chain.directory);
        }
        for directory in directories {
            used.layers.extend(Chain::names(store, &directory)?);
            used.chains.extend(directory.strip_prefix("chains/").map(String::from));
        }
        for layer in used.layers.iter().filter_map(|name| Digest::from_file_name(name)) {
            used.blobs.extend(record::layer(store, &layer)?.map(|layer| layer.blob.digest.file_name()));
        }
        Ok(used)
    }
}

/// Moves an entry to the trash.
fn discard(store: &Path, directory: &str, name: &str, trash: &Path) -> Result<()> {
    let (from, to) = (store.join(directory).join(name), trash.join(format!("{directory}-{name}")));
    match fs::rename(&from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &from.to_string_lossy(), error)),
        _ => Ok(()),
    }
}

/// Removes everything in the trash, also of those that were killed at it.
fn empty_trash(store: &Path) -> Result<()> {
    let _lock = Lock::take(store, Kind::Trash)?;
    let path = store.join("trash");
    let directory = File::open(&path).map_err(|e| Error::io("open", &path.to_string_lossy(), e))?;
    for name in list(&path)? {
        remove(&directory, name.as_ref())?;
    }
    Ok(())
}

/// Removes a tree, whoever of us owns what is in it.
pub(super) fn remove(parent: &File, name: &OsStr) -> Result<()> {
    let own = layer::remove_tree(parent.as_fd(), name);
    let denied = |error: &Error| {
        let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<io::Error>());
        source.is_some_and(subordinate::is_denied)
    };
    if !own.as_ref().is_err_and(denied) {
        return own;
    }
    subordinate::remove(parent.as_fd(), name.as_bytes()).map_err(|error| {
        let why = "files in it belong to subordinate ids that this user doesn't have here: as root remove it by its name";
        Error::failed(ErrorKind::Io, "remove", &name.to_string_lossy(), error.raw_os_error().unwrap_or(libc::EIO), Some(why))
    })
}
