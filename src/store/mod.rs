//! The content-addressed store of unpacked images.
//!
//! ```text
//! STORE/                 0700; one user's
//!   format               version and the way layers are written
//!   lock                 see lock.rs
//!   layers/DIFFID/       fs/ (a tree for overlayfs) and layer.json
//!   layers/flat-CHAIN/   all of an image in one tree; see chain.rs
//!   chains/CHAIN/        links 0, 1, 2 ... to trees, the topmost first
//!   images/ID.json       which chain it has; ID is the configuration's digest
//!   configs/ID           the configuration as it came
//!   refs/NAME.json       which image a name stands for; NAME is the name's digest
//!   sources/KEY.json     which image a root file system archive became, see archive.rs
//!   blobs/DIGEST         layers as they came, to be saved again
//!   volumes/NAME/        see volume/named.rs
//!   leases/PID-TIME      what a live process uses; flocked by it
//!   tmp/PID-TIME/        what is being made
//!   trash/PID-TIME/      what is being removed
//! ```
//!
//! Layers are known by the digest of their contents (the *diff id*), so that images
//! which share one share its tree, and a name that exists is complete: a tree is made
//! in `tmp`, synced once per image, and renamed. A process that is killed leaves
//! nothing but entries of `tmp`, `trash` and `leases`, and the next
//! [`prune`](Store::prune) removes them: no entry of `tmp` has an owner while the
//! collector has the lock.
//!
//! An ordinary user with subordinate ids has trees whose files belong to these: `fs-` and
//! the ids, with chains of their own. Whoever may map other ids, or none, unpacks anew.
//!
//! What is in use is found by looking (images and leases), not by counting: counts
//! drift.

mod archive;
mod chain;
pub(crate) mod commit;
mod import;
mod lease;
mod lock;
mod merged;
mod prune;
mod record;
pub(crate) mod stream;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, ErrorKind, Result};
use crate::image::{Digest, Image, ImageConfig};
use crate::{layer, subordinate};

pub(crate) use chain::Chain;
pub(crate) use import::{Import, Imported, Stored, teller};
use lock::{Kind, Lock};
pub use prune::Pruned;
pub(crate) use record::{list, unique};

/// Unpacked images on disk, shared by all sandboxes and processes of one user.
///
/// An image that the store has is opened without unpacking anything: the cost is that
/// of reading its JSON. A store is safe to use from any number of threads and
/// processes at once, and a process that is killed at any moment leaves a usable one.
/// Its layers are only for overlayfs on this machine: don't copy or change them.
///
/// A store belongs to one user: the one who made it. A clone of this value is the same
/// store.
///
/// ```no_run
/// use cofferdam::{Image, Sandbox, Store};
///
/// let store = Store::open("/var/tmp/my-store")?;
/// let image = Image::options().store(&store).open("image.tar")?;
/// let out = Sandbox::new().rootfs(&image).run(["cat", "/etc/os-release"])?;
/// for image in store.images()? {
///     println!("{} {}", image.id(), image.names().join(" "));
/// }
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
    sync: bool,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// overlayfs's marks are `user.*` attributes, because an ordinary user mounts it.
    user_xattr: bool,
    /// See [`Store::tree_name`].
    tree_name: OnceLock<String>,
}

const DIRECTORIES: [&str; 10] = ["layers", "chains", "images", "configs", "refs", "sources", "blobs", "leases", "tmp", "trash"];

impl Store {
    /// The user's own store: `/var/lib/cofferdam` for root, else
    /// `$XDG_DATA_HOME/cofferdam` or `~/.local/share/cofferdam`.
    pub fn open_default() -> Result<Store> {
        if nix::unistd::geteuid().is_root() {
            return Store::open("/var/lib/cofferdam");
        }
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
        match data {
            Some(data) => Store::open(data.join("cofferdam")),
            None => Err(Error::unsupported("cannot find a place for the image store: set HOME or XDG_DATA_HOME, or name a directory")),
        }
    }

    /// The store in this directory, which is made if it's missing.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it belongs to somebody else, is open to others, or was made
    /// by a version of this crate or in a way that this process can't use.
    pub fn open(path: impl AsRef<Path>) -> Result<Store> {
        let path = path.as_ref();
        let shown = path.display().to_string();
        let path = std::path::absolute(path).map_err(|e| Error::io("open the store", &shown, e))?;
        let look = || fs::symlink_metadata(&path);
        let metadata = look().or_else(|_| {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|e| Error::io("make", &parent.to_string_lossy(), e))?;
            }
            make_directory(&path)?;
            look().map_err(|e| Error::io("look at the store", &shown, e))
        })?;
        // A world-readable store would hand out set-user-ID programs and other users'
        // files (CVE-2021-41103).
        let user = nix::unistd::geteuid().as_raw();
        if !metadata.is_dir() || metadata.uid() != user || metadata.mode() & 0o077 != 0 {
            return Err(Error::new(
                ErrorKind::Image,
                format!("cannot use the store {shown}: it must be a directory of user {user} that is closed to others (mode 0700)"),
            ));
        }
        let user_xattr = !crate::probe::privileged();
        let format = format!("cofferdam store 1\nlayers {}\n", if user_xattr { "user.overlay" } else { "trusted.overlay" });
        match fs::read_to_string(path.join("format")) {
            Ok(found) if found == format => {}
            Ok(found) => {
                let found = found.trim_end().replace('\n', ", ");
                let wanted = format.trim_end().replace('\n', ", ");
                return Err(Error::new(
                    ErrorKind::Image,
                    format!("cannot use the store {shown}: it is {found:?}, and this process needs {wanted:?}"),
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                for directory in DIRECTORIES {
                    make_directory(&path.join(directory))?;
                }
                record::write(&path, "format", format.as_bytes())?;
            }
            Err(error) => return Err(Error::io("read", &path.join("format").to_string_lossy(), error)),
        }
        Ok(Store { inner: Arc::new(Inner { path, user_xattr, tree_name: OnceLock::new() }), sync: true })
    }

    /// The same store, without waiting for the disk when an image is unpacked: for
    /// machines that are thrown away, and for tests. If the *machine* crashes soon
    /// afterwards, layers may have empty files in them; no crash of a process harms a
    /// store.
    pub fn without_sync(mut self) -> Store {
        self.sync = false;
        self
    }

    /// syncfs(2), once for all that is about to get its name: file by file it takes
    /// fifty times as long.
    fn sync(&self) -> Result<()> {
        if !self.sync {
            return Ok(());
        }
        let failed = |e| Error::io("sync", &self.path().to_string_lossy(), e);
        let directory = File::open(self.path()).map_err(failed)?;
        nix::unistd::syncfs(&directory).map_err(|errno| failed(errno.into()))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Every image in it, in the order of their ids.
    pub fn images(&self) -> Result<Vec<StoredImage>> {
        let _lock = Lock::take(self.path(), Kind::UseShared)?;
        let names = record::names(self.path())?;
        let mut images = Vec::new();
        for (id, record) in record::images(self.path())? {
            let mut names: Vec<String> = names.iter().filter(|(_, of)| *of == id).map(|(name, _)| name.clone()).collect();
            names.sort();
            let (mut bytes, mut inodes) = (0, 0);
            let document = record::document(self.path(), &id)?;
            for diff_id in document.diff_ids() {
                if let Some(layer) = record::layer(self.path(), diff_id)? {
                    bytes += layer.bytes;
                    inodes += layer.inodes;
                }
            }
            let config = ImageConfig::new(&document, record.user.clone());
            images.push(StoredImage { id, names, bytes, inodes, layers: document.diff_ids().len(), created: document.created, config });
        }
        images.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(images)
    }

    /// An image that is in the store: by a name, by its id, or by the first digits of
    /// its id, at least four. If this process maps other ids than the one that made it, its
    /// layers are unpacked once more, from what the store keeps of them.
    pub fn image(&self, reference: &str) -> Result<Image> {
        let lock = Lock::take(self.path(), Kind::UseShared)?;
        let id = self.find(reference)?;
        let imported = match import::opened(self, &lock, &id, None)? {
            Some(imported) => imported,
            None => import::again(self, &id).map_err(|error| error.within(&format!("cannot use the image {reference}")))?,
        };
        Ok(Image::imported(imported))
    }

    /// Gives an image of the store a further name; another image that had it loses it.
    pub fn tag(&self, reference: &str, name: &str) -> Result<()> {
        let _lock = Lock::take(self.path(), Kind::UseShared)?;
        let id = self.find(reference)?;
        record::set_name(self.path(), name, &id)
    }

    /// Removes an image, by what [`image`](Self::image) takes. Of several names only the
    /// one that was given goes. The layers stay until the next
    /// [`prune`](Self::prune).
    pub fn remove(&self, reference: &str) -> Result<()> {
        let _lock = Lock::take(self.path(), Kind::UseShared)?;
        let _names = Lock::take(self.path(), Kind::Names)?;
        let id = self.find(reference)?;
        let names: Vec<String> = record::names(self.path())?.into_iter().filter(|(_, of)| *of == id).map(|(name, _)| name).collect();
        let by_name = names.iter().any(|name| name == reference);
        for name in names.iter().filter(|name| !by_name || *name == reference) {
            record::remove_name(self.path(), name)?;
        }
        if !by_name || names.len() == 1 {
            record::remove_image(self.path(), &id)?;
        }
        Ok(())
    }

    /// Removes every layer that neither an image nor anything live uses, and what killed
    /// processes have left.
    pub fn prune(&self) -> Result<Pruned> {
        prune::prune(self)
    }

    fn find(&self, reference: &str) -> Result<Digest> {
        if let Some((_, id)) = record::names(self.path())?.into_iter().find(|(name, _)| name == reference) {
            return Ok(id);
        }
        let ids = record::image_ids(self.path())?;
        let digits = reference.strip_prefix("sha256:").unwrap_or(reference);
        let mut fitting = ids.into_iter().filter(|id| digits.len() >= 4 && id.hex().starts_with(digits));
        match (fitting.next(), fitting.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(Error::invalid(format!("several images of the store have an id that begins with {digits}"))),
            (None, _) => Err(Error::new(ErrorKind::Image, format!("the store {} has no image {reference:?}", self.path().display()))),
        }
    }

    /// Whoever makes, renames or removes something by its name has this.
    pub(crate) fn lock_names(&self) -> Result<impl Sized> {
        Lock::take(self.path(), Kind::Names)
    }

    /// What trees are called whose files have the owners that our sandboxes map.
    fn tree_name(&self) -> Result<&str> {
        if let Some(name) = self.inner.tree_name.get() {
            return Ok(name);
        }
        let name = match subordinate::ids()? {
            None => "fs".into(),
            Some(ids) => format!("fs-{}-{}-{}", ids.uid, ids.gid, ids.count),
        };
        Ok(self.inner.tree_name.get_or_init(|| name))
    }

    /// Whose files become that are unpacked here.
    fn owners(&self) -> Result<layer::Owners> {
        Ok(match self.tree_name()? {
            "fs" if self.user_xattr() => layer::Owners::Single,
            "fs" => layer::Owners::Real,
            _ => layer::Owners::Later,
        })
    }

    pub(crate) fn user_xattr(&self) -> bool {
        self.inner.user_xattr
    }

    /// Where a blob is kept.
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.path().join("blobs").join(digest.file_name())
    }
}

pub(crate) fn make_directory(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("make", &path.to_string_lossy(), error)),
        _ => Ok(()),
    }
}

/// An image in a [`Store`], as [`Store::images`] lists it.
#[derive(Clone, Debug)]
pub struct StoredImage {
    id: Digest,
    names: Vec<String>,
    bytes: u64,
    inodes: u64,
    layers: usize,
    created: Option<String>,
    config: ImageConfig,
}

impl StoredImage {
    /// `sha256:` and the digest of its configuration.
    pub fn id(&self) -> &str {
        self.id.as_str()
    }

    /// Its names, sorted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Bytes of its files, without what the file system needs besides. Layers that it
    /// shares with other images count for each.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Files and directories of its layers.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// When it was made, as it says itself.
    pub fn created(&self) -> Option<&str> {
        self.created.as_deref()
    }

    /// How it's to be run.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }
}
