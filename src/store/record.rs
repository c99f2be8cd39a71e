//! The JSON files of a store. Each is written whole and renamed into place.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::image::json::ConfigDocument;
use crate::image::{Digest, User};

/// `images/ID.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) chain: Chain,
    /// Whom the configuration's user is, by the image's own passwd and group.
    pub(crate) user: std::result::Result<User, String>,
}

/// `layers/DIFFID/layer.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// What is kept of the layer as it came.
    pub(crate) blob: Blob,
    /// What its chain has to answer.
    #[serde(flatten)]
    pub(crate) facts: super::chain::LayerFacts,
}

/// A layer as it came, in `blobs`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

#[derive(Serialize, Deserialize)]
struct NameRecord {
    name: String,
    image: Digest,
}

/// A name that nobody else in this machine gives to a file of the store now.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
    format!("{}-{time:x}-{:x}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Replaces a file as a whole.
pub(super) fn write(store: &Path, name: &str, contents: &[u8]) -> Result<()> {
    let (target, new) = (store.join(name), store.join("tmp").join(unique()));
    let attempt = || -> io::Result<()> {
        let mut file = File::create_new(&new)?;
        file.write_all(contents)?;
        fs::rename(&new, &target)
    };
    attempt().map_err(|e| {
        let _ = fs::remove_file(&new);
        Error::io("write", &target.to_string_lossy(), e)
    })
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::new(ErrorKind::Io, format!("cannot write a record of the store: {e}")))
}

/// Reads one of our own files; `None` if it isn't there.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path.to_string_lossy(), error)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(Error::new(ErrorKind::Image, format!("cannot use {}: it is damaged: {error} (remove it)", path.display()))),
    }
}

pub(crate) fn layer(store: &Path, diff_id: &Digest) -> Result<Option<LayerRecord>> {
    read(&store.join("layers").join(diff_id.file_name()).join("layer.json"))
}

fn image_path(store: &Path, id: &Digest) -> std::path::PathBuf {
    store.join("images").join(id.file_name() + ".json")
}

pub(crate) fn image(store: &Path, id: &Digest) -> Result<Option<ImageRecord>> {
    read(&image_path(store, id))
}

pub(super) fn remove_image(store: &Path, id: &Digest) -> Result<()> {
    remove(&image_path(store, id))
}

/// `configs/ID`: an image's configuration as it came.
pub(crate) fn config(store: &Path, id: &Digest) -> Result<Vec<u8>> {
    let path = store.join("configs").join(id.file_name());
    fs::read(&path).map_err(|e| Error::io("read", &path.to_string_lossy(), e))
}

pub(crate) fn document(store: &Path, id: &Digest) -> Result<ConfigDocument> {
    ConfigDocument::parse(&config(store, id)?)
}

/// The ids of all images.
pub(super) fn image_ids(store: &Path) -> Result<Vec<Digest>> {
    let names = list(&store.join("images"))?;
    Ok(names.iter().filter_map(|name| Digest::from_file_name(name.strip_suffix(".json")?)).collect())
}

pub(super) fn images(store: &Path) -> Result<Vec<(Digest, ImageRecord)>> {
    let mut images = Vec::new();
    for id in image_ids(store)? {
        if let Some(record) = image(store, &id)? {
            images.push((id, record));
        }
    }
    Ok(images)
}

fn name_path(store: &Path, name: &str) -> std::path::PathBuf {
    store.join("refs").join(Digest::of(name.as_bytes()).file_name() + ".json")
}

/// All names with the images that they stand for.
pub(super) fn names(store: &Path) -> Result<Vec<(String, Digest)>> {
    let mut names = Vec::new();
    for file in list(&store.join("refs"))? {
        if let Some(NameRecord { name, image }) = read(&store.join("refs").join(file))? {
            names.push((name, image));
        }
    }
    Ok(names)
}

pub(super) fn set_name(store: &Path, name: &str, image: &Digest) -> Result<()> {
    if name.is_empty() || name.len() > 1024 || name.chars().any(char::is_control) {
        return Err(Error::invalid(format!("{name:?} can't be the name of an image")));
    }
    let path = name_path(store, name);
    if read::<NameRecord>(&path)?.is_some_and(|record| record.image == *image) {
        return Ok(());
    }
    let record = NameRecord { name: name.to_string(), image: image.clone() };
    write(store, &format!("refs/{}.json", Digest::of(name.as_bytes()).file_name()), &encode(&record)?)
}

pub(super) fn remove_name(store: &Path, name: &str) -> Result<()> {
    remove(&name_path(store, name))
}

/// `sources/KEY.json`: what a root file system archive became.
pub(super) fn source(store: &Path, key: &Digest) -> Result<Option<Digest>> {
    read(&store.join("sources").join(key.file_name() + ".json"))
}

pub(super) fn set_source(store: &Path, key: &Digest, image: &Digest) -> Result<()> {
    write(store, &format!("sources/{}.json", key.file_name()), &encode(image)?)
}

/// `sources/file-KEY.json`: what a file became that was read to its end; a hint, which
/// [`prune`](super::Store::prune) removes.
pub(super) fn file_source(store: &Path, key: &Digest) -> Result<Option<Digest>> {
    read(&store.join(format!("sources/file-{}.json", key.file_name())))
}

pub(super) fn set_file_source(store: &Path, key: &Digest, image: &Digest) -> Result<()> {
    write(store, &format!("sources/file-{}.json", key.file_name()), &encode(image)?)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path.to_string_lossy(), error)),
        _ => Ok(()),
    }
}

/// The names in a directory of the store.
pub(crate) fn list(directory: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io("list", &directory.to_string_lossy(), e);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}
