//! From an image's members to layers of the store.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use super::chain::{self, Chain, LayerFacts};
use super::lease::Lease;
use super::lock::{Kind, Lock};
use super::record::{self, Blob, ImageRecord, LayerRecord, encode, unique};
use super::stream::{self, STOPPED, Shared};
use super::{Store, make_directory};
use crate::error::{Error, Result};
use crate::image::json::{ConfigDocument, refused};
use crate::image::{Digest, Files, ImageConfig, LayerSource, Platform, Progress, Source, User, user};
use crate::layer::{self, Applied};
use crate::subordinate;

/// How an image is taken into a store.
pub(crate) struct Import<'a> {
    pub(crate) store: &'a Store,
    pub(crate) limits: &'a layer::Limits,
    pub(crate) progress: Callback<'a>,
}

/// An image of a store, held there by a lease.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) store: Store,
    pub(crate) id: Digest,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) config: ImageConfig,
    pub(crate) chain: Chain,
    _lease: Lease,
}

impl Imported {
    /// The store's directory, in which the chain is.
    pub(crate) fn store_path(&self) -> &Path {
        self.store.path()
    }

    pub(crate) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The directories of its layers, the topmost first.
    pub(crate) fn directories(&self) -> impl Iterator<Item = PathBuf> {
        let directory = self.store.path().join(&self.chain.directory);
        (0..self.chain.layers).map(move |i| directory.join(i.to_string()))
    }

    /// The image's configuration as it came.
    pub(crate) fn config_bytes(&self) -> Result<Vec<u8>> {
        record::config(self.store.path(), &self.id)
    }

    /// What of it is kept as it came.
    pub(crate) fn stored(&self) -> Result<Stored> {
        let config = self.config_bytes()?;
        let mut layers = Vec::new();
        for diff_id in &self.diff_ids {
            let gone = || refused(format!("layer {diff_id} vanished from the store"));
            let Blob { digest, size } = record::layer(self.store.path(), diff_id)?.ok_or_else(gone)?.blob;
            layers.push(StoredLayer { path: self.store.blob(&digest), digest, size });
        }
        Ok(Stored { id: self.id.clone(), config, layers })
    }
}

/// An image as it came.
pub(crate) struct Stored {
    pub(crate) id: Digest,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<StoredLayer>,
}

/// A layer as it came, perhaps compressed.
pub(crate) struct StoredLayer {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) path: PathBuf,
}

impl Stored {
    pub(crate) fn platform(&self) -> Result<Option<Platform>> {
        Ok(ConfigDocument::parse(&self.config)?.platform())
    }
}

/// An image that the store has, complete; for a holder of the shared lock.
pub(super) fn opened(store: &Store, _lock: &Lock, id: &Digest, document: Option<&ConfigDocument>) -> Result<Option<Arc<Imported>>> {
    let Some(record) = record::image(store.path(), id)? else { return Ok(None) };
    // After a crash of the machine a record may have outlived what it names.
    if !record.chain.is_for(store)? || !record.chain.is_complete(store.path()) {
        return Ok(None);
    }
    let stored;
    let document = match document {
        Some(document) => document,
        None => {
            stored = record::document(store.path(), id)?;
            &stored
        }
    };
    let lease = Lease::take(store.path(), &record.chain.directory)?;
    let config = ImageConfig::new(document, record.user);
    let diff_ids = document.diff_ids().to_vec();
    Ok(Some(Arc::new(Imported { store: store.clone(), id: id.clone(), diff_ids, config, chain: record.chain, _lease: lease })))
}

/// An image of the store whose trees aren't there, or not for our ids.
pub(super) fn again(store: &Store, id: &Digest) -> Result<Arc<Imported>> {
    let path = store.path();
    let config = record::config(path, id)?;
    let document = ConfigDocument::parse(&config)?;
    let mut layers = Vec::new();
    for diff_id in document.diff_ids() {
        let gone = || refused("it is incomplete; import it again");
        let Blob { digest, size } = record::layer(path, diff_id)?.ok_or_else(gone)?.blob;
        layers.push(LayerSource { diff_id: diff_id.clone(), path: digest.file_name(), blob: Some((digest, size)), foreign: false });
    }
    let blobs = File::open(path.join("blobs")).map_err(|e| Error::io("open", "the blobs of the store", e))?;
    let source = Source { files: Files::Directory(blobs.into()), id: id.clone(), config, document, layers, name: None };
    Import { store, limits: &layer::Limits::default(), progress: None }.image(&source)
}

/// Files of an image that is being made; removed unless they reach their places.
pub(super) struct Staging {
    pub(super) path: PathBuf,
    /// What its trees are called.
    pub(super) tree: String,
}

impl Staging {
    pub(super) fn new(store: &Store) -> Result<Staging> {
        let tree = store.tree_name()?.to_string();
        let path = store.path().join("tmp").join(unique());
        make_directory(&path)?;
        Ok(Staging { path, tree })
    }
}

impl Staging {
    /// Where a layer is made, and where it's kept as it came.
    pub(super) fn layer(&self, name: &str) -> Result<Place> {
        let (directory, blob) = (self.path.join(name), self.path.join(format!("{name}.blob")));
        make_directory(&directory)?;
        let tree = directory.join(&self.tree);
        chain::make_tree(&tree)?;
        let root = File::open(&tree).map_err(|e| Error::io("open", &tree.to_string_lossy(), e))?;
        let copy = File::create_new(&blob).map_err(|e| Error::io("make", &blob.to_string_lossy(), e))?;
        Ok(Place { directory, root, copy })
    }

    /// Gives the files of a layer to whom they belong, and writes down what's known of it.
    pub(super) fn record(&self, directory: &Path, blob: Blob, applied: Applied) -> Result<()> {
        self.give(directory, &applied.owners)?;
        let (bytes, inodes) = (applied.bytes, applied.inodes);
        let record = LayerRecord { bytes, inodes, blob, facts: LayerFacts::of(applied) };
        let path = directory.join("layer.json");
        let attempt = || -> io::Result<()> {
            let mut file = BufWriter::new(File::create_new(&path)?);
            serde_json::to_writer(&mut file, &record)?;
            file.flush()
        };
        attempt().map_err(|e| Error::io("write", &path.to_string_lossy(), e))
    }

    /// Gives the files of a tree to whom they belong.
    pub(super) fn give(&self, directory: &Path, owners: &layer::OwnerTable) -> Result<()> {
        if owners.is_empty() {
            return Ok(());
        }
        let above = File::open(directory).map_err(|e| Error::io("open", &directory.to_string_lossy(), e))?;
        subordinate::give(above.as_fd(), self.tree.as_bytes(), owners)
    }

    /// Gives a layer its name; one that is there may lack the tree for our ids.
    pub(super) fn place_layer(&self, staged: &Path, store: &Path, name: &str) -> Result<()> {
        let target = store.join("layers").join(name);
        place(staged, &target)?;
        match target.join(&self.tree).exists() {
            true => Ok(()),
            false => place(&staged.join(&self.tree), &target.join(&self.tree)),
        }
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<()> {
        place(&self.path.join(from), &self.path.join(to))?;
        place(&self.path.join(format!("{from}.blob")), &self.path.join(format!("{to}.blob")))
    }
}

/// A layer that is being made.
pub(super) struct Place {
    pub(super) directory: PathBuf,
    pub(super) root: File,
    pub(super) copy: File,
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name())
            && let Ok(parent) = File::open(parent)
        {
            let _ = super::prune::remove(&parent, name);
        }
    }
}

impl Import<'_> {
    /// Takes an image in, or finds that it's there.
    pub(crate) fn image(&self, source: &Source) -> Result<Arc<Imported>> {
        let path = self.store.path();
        let lock = Lock::take(path, Kind::UseShared)?;
        if let Some(imported) = opened(self.store, &lock, &source.id, Some(&source.document))? {
            self.name(source, &imported.id)?;
            return Ok(imported);
        }
        lock.also(source.document.diff_ids().iter().chain([&source.id]))?;
        // Somebody else may have made it meanwhile.
        if let Some(imported) = opened(self.store, &lock, &source.id, Some(&source.document))? {
            self.name(source, &imported.id)?;
            return Ok(imported);
        }
        let staging = Staging::new(self.store)?;
        self.layers(source, &staging)?;
        let record = self.finish(source, &staging)?;
        record::write(path, &format!("images/{}.json", source.id.file_name()), &encode(&record)?)?;
        self.name(source, &source.id)?;
        opened(self.store, &lock, &source.id, Some(&source.document))?.ok_or_else(|| refused("the image vanished from the store"))
    }

    pub(super) fn name(&self, source: &Source, id: &Digest) -> Result<()> {
        source.name.as_ref().map_or(Ok(()), |name| record::set_name(self.store.path(), name, id))
    }

    /// Unpacks the layers that the store lacks, several at once.
    fn layers(&self, source: &Source, staging: &Staging) -> Result<()> {
        let shared = Shared::new(self.options()?);
        let mut missing: Vec<(usize, &LayerSource)> = Vec::new();
        let layers = self.store.path().join("layers");
        let has_tree = |diff_id: &Digest| layers.join(diff_id.file_name()).join(&staging.tree).is_dir();
        for (i, wanted) in source.layers.iter().enumerate() {
            match record::layer(self.store.path(), &wanted.diff_id)?.filter(|_| has_tree(&wanted.diff_id)) {
                Some(record) => shared.spend(record.bytes),
                None if missing.iter().all(|(_, other)| other.diff_id != wanted.diff_id) => missing.push((i, wanted)),
                None => {}
            }
        }
        let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(MOST_THREADS).min(missing.len());
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while !shared.stopped() {
                let Some((i, wanted)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                if let Err(error) = self.layer(source, *i, wanted, staging, &shared) {
                    let stopped = shared.stopped();
                    shared.stop();
                    // One that was only stopped says less than the one that failed.
                    if stopped && error.to_string().contains(STOPPED) {
                        break;
                    }
                    return Err(error.within(&format!("layer {} ({}) can't be used", i + 1, wanted.diff_id)));
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            others.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).fold(own, Result::and)
        })
    }

    pub(super) fn options(&self) -> Result<layer::Options> {
        let form = layer::Form::Overlay { user_xattr: self.store.user_xattr() };
        Ok(layer::Options { form, owners: self.store.owners()?, limits: self.limits.clone() })
    }

    /// Unpacks one layer.
    fn layer(&self, source: &Source, i: usize, wanted: &LayerSource, staging: &Staging, shared: &Shared) -> Result<()> {
        let place = staging.layer(&wanted.diff_id.file_name())?;
        let tell = teller(self.progress, i, source.layers.len(), &wanted.diff_id);
        let unpacked = stream::layer(source, wanted, place.root.as_fd(), Some(place.copy), shared, &tell)?;
        staging.record(&place.directory, unpacked.blob, unpacked.applied)
    }

    /// Gives everything its name, from the layers to the chain.
    pub(super) fn finish(&self, source: &Source, staging: &Staging) -> Result<ImageRecord> {
        let path = self.store.path();
        self.store.sync()?;
        for wanted in &source.layers {
            let name = wanted.diff_id.file_name();
            let staged = staging.path.join(&name);
            if !staged.exists() {
                continue;
            }
            if let Some(record) = read_staged(&staged)? {
                let blob = record.blob.digest.file_name();
                place(&staging.path.join(format!("{name}.blob")), &path.join("blobs").join(blob))?;
            }
            staging.place_layer(&staged, path, &name)?;
        }
        let chain = chain::build(self.store, source.document.diff_ids(), self.limits, staging)?;
        let account = self.account(source, &chain)?;
        record::write(path, &format!("configs/{}", source.id.file_name()), &source.config)?;
        Ok(ImageRecord { chain, user: account })
    }

    /// Whom the image runs as.
    fn account(&self, source: &Source, chain: &Chain) -> Result<std::result::Result<User, String>> {
        let wanted = source.document.config.as_ref().and_then(|c| c.user.as_deref()).unwrap_or_default();
        let merged = chain.merged(self.store)?;
        let read = |path: &str| merged.read_file(path, user::MAX_FILE);
        let found = match (read("etc/passwd"), read("etc/group")) {
            (Ok(passwd), Ok(group)) => User::find(wanted, &passwd.unwrap_or_default(), &group.unwrap_or_default()),
            // Whoever needs no name needs no file.
            (Err(error), _) | (_, Err(error)) => User::find(wanted, b"", b"").map_err(|_| error.to_string()),
        };
        Ok(found)
    }
}

type Callback<'a> = Option<&'a (dyn Fn(Progress<'_>) + Send + Sync)>;

/// Tells the caller how far a layer is, once a megabyte.
pub(crate) fn teller<'a>(progress: Callback<'a>, i: usize, layers: usize, digest: &'a Digest) -> impl Fn(u64, u64) + Sync + 'a {
    const STEP: u64 = 1 << 20;
    let told = AtomicU64::new(u64::MAX);
    move |read, total| {
        let Some(progress) = progress else { return };
        if told.swap(read / STEP, Ordering::Relaxed) != read / STEP || read == total {
            progress(Progress { layer: i + 1, layers, digest: digest.as_str(), read, total });
        }
    }
}

/// More layers at once gain nothing: one file system takes them all.
const MOST_THREADS: usize = 3;

fn read_staged(staged: &Path) -> Result<Option<LayerRecord>> {
    let bytes = fs::read(staged.join("layer.json")).map_err(|e| Error::io("read", &staged.to_string_lossy(), e))?;
    Ok(serde_json::from_slice(&bytes).ok())
}

/// Renames a finished entry to its name. That it's there already is as good.
pub(super) fn place(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTEMPTY)) => Ok(()),
        Err(error) => Err(Error::io("make", &to.to_string_lossy(), error)),
        Ok(()) => Ok(()),
    }
}
