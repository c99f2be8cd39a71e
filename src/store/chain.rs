//! Chains: the layers of an image as overlayfs stacks them.
//!
//! A layer's tree is made once, without its image, so it leaves questions open that
//! only the layers below can answer: what a directory looks like for which it has no
//! entry, whether `lib/x` lies behind a link `lib -> usr/lib`, which file a hard link
//! means. For nearly all images the answers change nothing. Where one does, the
//! layers are merged into one flat tree instead, for this image alone, in which each
//! finds what is below it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::import::{Staging, place};
use super::merged::{Found, Merged};
use super::{Store, make_directory, record};
use crate::compress::{self, Bounds};
use crate::error::{Error, Result};
use crate::image::json::refused;
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
    pub(crate) questions: Vec<Question>,
}

/// See [`layer::Question`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Question {
    #[serde(with = "latin1")]
    path: Vec<u8>,
    kind: Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Unknown {
    Implied,
    Whiteout,
    Link,
}

/// Bytes as a string of JSON, each as the character of that number: paths needn't be
/// UTF-8, and a list of numbers is four times as long.
mod latin1 {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&bytes.iter().map(|byte| char::from(*byte)).collect::<String>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.chars().map(|c| u8::try_from(c).map_err(D::Error::custom)).collect()
    }
}

impl LayerFacts {
    pub(super) fn of(applied: layer::Applied) -> LayerFacts {
        let question = |question: layer::Question| Question {
            path: question.path.into_os_string().into_vec(),
            kind: match question.kind {
                layer::Unknown::Implied => Unknown::Implied,
                layer::Unknown::Whiteout => Unknown::Whiteout,
                layer::Unknown::Link { .. } => Unknown::Link,
            },
        };
        LayerFacts {
            opaque_root: applied.opaque_root,
            root: applied.root_entry,
            questions: applied.questions.into_iter().map(question).collect(),
        }
    }
}

impl Question {
    /// Whether the layer's own tree is right above these.
    fn is_harmless(&self, below: &Merged) -> Result<bool> {
        let path = Path::new(OsStr::from_bytes(&self.path));
        match self.kind {
            Unknown::Link => Ok(false),
            // Made as a directory of root's, 0755.
            Unknown::Implied => below.is_plain_directory(path),
            // Where overlayfs merges nothing it doesn't hide whiteouts either.
            Unknown::Whiteout => Ok(matches!(below.find(path.parent().unwrap_or(Path::new("")), false)?, Some(Found::Directory(_)))),
        }
    }
}

/// Above this many layers looking up names gets slow; overlayfs's own limit is 500.
const MOST_STACKED: usize = 400;

/// A layer of the stack: its directory in `layers`.
struct Entry {
    name: String,
    root: bool,
}

impl Chain {
    /// Whether its trees are those with the owners that our sandboxes map.
    pub(super) fn is_for(&self, store: &Store) -> Result<bool> {
        let suffix = self.directory.find('+').map_or("", |at| &self.directory[at..]);
        Ok(suffix == suffix_of(store.tree_name()?))
    }

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
                // ../../layers/NAME/TREE
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
        Merged::open((0..self.layers).map(|i| directory.join(i.to_string())), store.user_xattr(), store.owners()?)
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

/// What the name of a chain of such trees ends with.
fn suffix_of(tree: &str) -> String {
    tree.strip_prefix("fs-").map_or_else(String::new, |ids| format!("+{ids}"))
}

/// Makes the chain of these layers, which are all in the store.
pub(super) fn build(store: &Store, diff_ids: &[Digest], limits: &layer::Limits, staging: &Staging) -> Result<Chain> {
    let path = store.path();
    let mut stack: Vec<Entry> = Vec::new();
    let mut id: Option<Digest> = None;
    let mut flat = diff_ids.len() > MOST_STACKED;
    for diff_id in diff_ids {
        id = Some(chain_id(id.as_ref(), diff_id));
        let record = record::layer(path, diff_id)?.ok_or_else(|| refused(format!("layer {diff_id} vanished from the store")))?;
        let name = diff_id.file_name();
        if record.facts.opaque_root {
            stack.clear();
        }
        if !flat && !record.facts.questions.is_empty() {
            let below = stack.iter().rev().map(|entry| path.join("layers").join(&entry.name).join(&staging.tree));
            let below = Merged::open(below, store.user_xattr(), store.owners()?)?;
            for question in &record.facts.questions {
                flat |= !question.is_harmless(&below)?;
            }
        }
        // overlayfs refuses a layer that stands twice. All of the lower one shows
        // through the upper one, so it can go.
        stack.retain(|entry| entry.name != name);
        stack.push(Entry { name, root: record.facts.root });
    }
    let name = id.map_or_else(|| "empty".to_string(), |id| id.file_name());
    if flat {
        stack = vec![Entry { name: flatten(store, diff_ids, &name, limits, staging)?, root: true }];
    }
    if stack.is_empty() {
        stack.push(Entry { name: empty_layer(path, staging)?, root: true });
    }
    stack.reverse();
    let root = stack.iter().position(|entry| entry.root).unwrap_or(stack.len() - 1);
    let directory = format!("chains/{name}{}", suffix_of(&staging.tree));
    let chain = Chain { directory, layers: stack.len(), root };
    let staged = staging.path.join("chain");
    make_directory(&staged)?;
    for (i, entry) in stack.iter().enumerate() {
        let link = staged.join(i.to_string());
        symlink(format!("../../layers/{}/{}", entry.name, staging.tree), &link)
            .map_err(|e| Error::io("make", &link.to_string_lossy(), e))?;
    }
    let place_of = path.join(&chain.directory);
    if place_of.exists() && !chain.is_complete(path) {
        place(&place_of, &staging.path.join("broken-chain"))?;
    }
    place(&staged, &place_of)?;
    Ok(chain)
}

/// The layers of an image in one tree, from what is kept of them.
fn flatten(store: &Store, diff_ids: &[Digest], chain: &str, limits: &layer::Limits, staging: &Staging) -> Result<String> {
    let (path, name) = (store.path(), format!("flat-{chain}"));
    if path.join("layers").join(&name).join(&staging.tree).exists() {
        return Ok(name);
    }
    let staged = staging.path.join("flat");
    make_directory(&staged)?;
    make_tree(&staged.join(&staging.tree))?;
    let failed = |e| Error::io("merge the layers in", &staged.to_string_lossy(), e);
    let root = File::open(staged.join(&staging.tree)).map_err(failed)?;
    let mut owners = layer::OwnerTable::new();
    let options = layer::Options { form: layer::Form::Flat, owners: store.owners()?, limits: limits.clone() };
    for diff_id in diff_ids {
        let record = record::layer(path, diff_id)?.ok_or_else(|| refused(format!("layer {diff_id} vanished from the store")))?;
        let blob = File::open(store.blob(&record.blob.digest)).map_err(failed)?;
        let (_, contents) = compress::reader(BufReader::new(blob), &Bounds::default())?;
        owners = compress::ahead(contents, |tar| layer::apply_onto(tar, root.as_fd(), &options, owners))??.owners;
    }
    staging.give(&staged, &owners)?;
    store.sync()?;
    staging.place_layer(&staged, path, &name)?;
    Ok(name)
}

/// The layer of an image without any: overlayfs wants one.
fn empty_layer(store: &Path, staging: &Staging) -> Result<String> {
    let staged = staging.path.join("empty");
    make_directory(&staged)?;
    make_tree(&staged.join(&staging.tree))?;
    staging.place_layer(&staged, store, "empty")?;
    Ok("empty".into())
}

/// A root directory of a layer: as one without an entry for it (image-spec).
pub(super) fn make_tree(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    make_directory(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(|e| Error::io("make", &path.to_string_lossy(), e))
}
