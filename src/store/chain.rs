//! Chains: the layers of an image as overlayfs stacks them.
//!
//! A layer's tree is made once, without its image, so it leaves questions open that
//! only the layers below can answer. An answer is a *fix-up* layer right above it,
//! with copies of what it should have kept: mode and owner of a directory for which it
//! has no entry, or the file of a layer below that it links to. Hardly any image needs
//! one. A layer that writes *through* a symbolic link of a lower layer (`lib/x` where
//! `lib -> usr/lib`) is unpacked once more, for this chain alone.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::import::{Staging, place, sync};
use super::merged::Merged;
use super::{Store, make_directory, record};
use crate::error::{Error, Result};
use crate::image::json::{MAX_LAYERS, refused};
use crate::image::{Digest, Hasher};
use crate::layer;

/// Where a store has the layers of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Chain {
    /// Directory below the store's, with a link to each layer by its number.
    pub(crate) directory: String,
    /// How many there are, at least one.
    pub(crate) layers: usize,
    /// The number of the layer whose root directory is the image's.
    pub(crate) root: usize,
}

/// What a layer leaves to its chain.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LayerFacts {
    /// Hides everything below it.
    pub(crate) opaque_root: bool,
    /// Says how the root directory is to be.
    pub(crate) root: bool,
    pub(crate) questions: Vec<layer::Question>,
}

/// A layer of the stack: its directory in `layers`.
struct Entry {
    name: String,
    root: bool,
}

impl Chain {
    /// Whether all of it is there.
    pub(super) fn is_complete(&self, store: &Path) -> bool {
        let directory = store.join(&self.directory);
        (0..self.layers).all(|i| directory.join(i.to_string()).is_dir())
    }

    /// The layers' directories in the store, the topmost first.
    pub(super) fn names(store: &Path, directory: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for i in 0.. {
            match fs::read_link(store.join(directory).join(i.to_string())) {
                // ../../layers/NAME/fs
                Ok(target) => names.extend(target.iter().rev().nth(1).map(|name| name.to_string_lossy().into_owned())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(Error::io("read", directory, error)),
            }
        }
        Ok(names)
    }

    /// The files of the whole image.
    pub(crate) fn merged(&self, store: &Store) -> Result<Merged> {
        let directory = store.path().join(&self.directory);
        Merged::open((0..self.layers).map(|i| directory.join(i.to_string())), store.user_xattr())
    }
}

/// The digest of a stack: OCI's chain id.
fn chain_id(below: Option<&Digest>, layer: &Digest) -> Digest {
    match below {
        None => layer.clone(),
        Some(below) => {
            let mut hasher = Hasher::sha256();
            hasher.update(below.as_str().as_bytes());
            hasher.update(b" ");
            hasher.update(layer.as_str().as_bytes());
            hasher.finish()
        }
    }
}

/// Makes the chain of these layers, which are all in the store.
pub(super) fn build(store: &Store, diff_ids: &[Digest], staging: &Staging) -> Result<Chain> {
    let path = store.path();
    let mut stack: Vec<Entry> = Vec::new();
    let mut id: Option<Digest> = None;
    for diff_id in diff_ids {
        id = Some(chain_id(id.as_ref(), diff_id));
        let record = record::layer(path, diff_id)?.ok_or_else(|| refused(format!("layer {diff_id} vanished from the store")))?;
        let name = diff_id.file_name();
        if record.facts.opaque_root {
            stack.clear();
        }
        // overlayfs refuses a layer that stands twice. All of the lower one shows
        // through the upper one, so it can go.
        stack.retain(|entry| entry.name != name);
        let fix = match &id {
            Some(id) if !record.facts.questions.is_empty() && !stack.is_empty() => {
                answer(store, &stack, &record.facts.questions, &format!("fix-{}", id.file_name()), staging)?
            }
            _ => None,
        };
        stack.push(Entry { name, root: record.facts.root });
        stack.extend(fix.map(|name| Entry { name, root: false }));
    }
    if stack.is_empty() {
        stack.push(Entry { name: empty_layer(path, staging)?, root: true });
    }
    if stack.len() > MAX_LAYERS {
        return Err(refused(format!("the image needs {} layers; {MAX_LAYERS} are possible", stack.len())));
    }
    stack.reverse();
    let root = stack.iter().position(|entry| entry.root).unwrap_or(stack.len() - 1);
    let name = id.map_or_else(|| "empty".to_string(), |id| id.file_name());
    let (staged, directory) = (staging.path.join("chain"), format!("chains/{name}"));
    make_directory(&staged)?;
    for (i, entry) in stack.iter().enumerate() {
        let link = staged.join(i.to_string());
        symlink(format!("../../layers/{}/fs", entry.name), &link).map_err(|e| Error::io("make", &link.to_string_lossy(), e))?;
    }
    place(&staged, &path.join(&directory))?;
    Ok(Chain { directory, layers: stack.len(), root })
}

/// The layer of an image without any: overlayfs wants one.
fn empty_layer(store: &Path, staging: &Staging) -> Result<String> {
    let staged = staging.path.join("empty");
    make_directory(&staged)?;
    make_tree(&staged.join("fs"))?;
    place(&staged, &store.join("layers/empty"))?;
    Ok("empty".into())
}

/// A root directory of a layer: as one without an entry for it (image-spec).
pub(super) fn make_tree(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    make_directory(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(|e| Error::io("make", &path.to_string_lossy(), e))
}
