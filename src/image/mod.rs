//! Root file systems.
//!
//! [`ImageOptions`] finds out what stands at a path (`options.rs`). A container image
//! is read as far as its configuration, from an OCI layout (`layout.rs`) or an archive
//! of `docker save` (`docker.rs`), and its layers are the [store](crate::store)'s
//! business. What images say of themselves is JSON (`json.rs`) and digests
//! (`digest.rs`), all of it untrusted.

mod archive;
mod config;
mod digest;
mod docker;
mod files;
mod host;
pub(crate) mod json;
mod layout;
mod options;
mod platform;
pub(crate) mod rootfs;
mod save;
mod source;
mod unpack;
pub(crate) mod user;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::Frozen;
use crate::error::Result;
use crate::store::{Imported, Store};

pub(crate) use archive::Archive;
pub use config::ImageConfig;
pub(crate) use digest::{Digest, Hasher};
pub(crate) use files::{Files, Member};
pub(crate) use host::{HostLayout, USER_HOME, hosts};
pub use options::{ImageOptions, Progress};
pub use platform::Platform;
pub use save::ImageFormat;
pub(crate) use source::{LayerSource, Source};
pub(crate) use user::User;

/// The file system that a sandbox starts from. Nothing that a workload does
/// changes it: writes go to a layer of the run's own, which is gone afterwards.
#[derive(Clone, Debug)]
pub struct Image {
    pub(crate) root: Root,
}

#[derive(Clone, Debug)]
pub(crate) enum Root {
    Host(HostLayout),
    Dir(PathBuf),
    /// Layers in a store.
    Layers(Arc<Imported>),
    /// One of these with what a sandbox wrote.
    Checkpoint(Arc<Frozen>),
}

impl Image {
    /// Whether it's the same one.
    pub(crate) fn is_like(&self, other: &Image) -> bool {
        match (&self.root, &other.root) {
            (Root::Host(one), Root::Host(other)) => one == other,
            (Root::Dir(one), Root::Dir(other)) => one == other,
            (Root::Layers(one), Root::Layers(other)) => Arc::ptr_eq(one, other),
            (Root::Checkpoint(one), Root::Checkpoint(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// The host's own programs: its `/usr`, read-only, with the `/bin`, `/lib`,
    /// `/lib64` and `/sbin` that lead into it. Compilers and interpreters work as
    /// they do on the host; there's nothing to download.
    ///
    /// The rest is new: an `/etc` with `passwd`, `group`, `hosts`, `nsswitch.conf`
    /// and the host's `ld.so.cache`, `alternatives` and Java configuration, empty
    /// `/home`, `/root`, `/run`, `/tmp` and `/var`. Nothing of the host's `/home`,
    /// `/root`, `/var`, `/run` or other parts of `/etc` is in reach. Seen from
    /// inside, the host's files belong to nobody (65534), so that what only the
    /// host's root may read stays closed.
    ///
    /// The host is looked at when this is called: what is installed later shows
    /// in `/usr`, but a new directory in `/etc` needs a new `Image`.
    pub fn host() -> Image {
        Image { root: Root::Host(HostLayout::look()) }
    }

    /// An unpacked root file system: debootstrap's, an exported container's, any
    /// directory with an executable in it. It's the read-only lower layer of an
    /// overlay; sandboxes on the same directory don't see each other's writes.
    ///
    /// As root its files keep their owners inside (idmapped mounts: the file
    /// system must support them, as ext4, xfs and btrfs do, and tmpfs from Linux
    /// 6.3). An ordinary user sees files of other users as nobody's, can't change
    /// those, can make new ones in `/`, `/etc`, `/tmp` and directories of its own, and
    /// needs Linux 6.6.
    ///
    /// A relative path is taken from the current directory of this call. The
    /// directory is opened when a sandbox starts; what is wrong with it is an
    /// error then.
    pub fn dir(path: impl AsRef<Path>) -> Image {
        let path = path.as_ref();
        Image { root: Root::Dir(std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())) }
    }

    /// A container image or a packed root file system, whatever this path holds:
    ///
    /// * an OCI image layout, as a directory or a tar archive (`skopeo copy … oci:`,
    ///   `umoci`, `buildah push … oci:`),
    /// * an archive of `docker save` or `podman save`, of old and new form,
    /// * a tar archive of a root file system (`docker export`, mmdebstrap),
    /// * a directory that is a root file system: then it's [`Image::dir`].
    ///
    /// Archives may be compressed with gzip, zstd or xz. The layers are unpacked once,
    /// into the user's [store](crate::Store::open_default), and shared from then on: opening
    /// the same image again costs little more than reading its JSON. Every digest and
    /// size is checked while the layers are unpacked.
    ///
    /// Where there are several images name one: see [`options`](Self::options).
    ///
    /// # Owners
    /// As root, and as an ordinary user with subordinate ids
    /// ([`Layer::SubordinateIds`](crate::Layer::SubordinateIds)), files belong to whom the
    /// image says; for that user they are on the host those of these ids, which nobody but a
    /// [`prune`](crate::Store::prune) in that user's name, or root, may remove. Without
    /// subordinate ids all of an image belongs to the one id that there is. Ids above 65,535,
    /// which no sandbox has, are shown as 65,534, nobody's. An ordinary user has no device
    /// nodes and no file capabilities, which do nothing in any sandbox.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if there are subordinate
    /// ids, but not as many as the image needs.
    pub fn open(path: impl AsRef<Path>) -> Result<Image> {
        Image::options().open(path)
    }

    /// Which of several images, for which platform, in which store, within which
    /// limits.
    pub fn options() -> ImageOptions {
        ImageOptions::default()
    }

    pub(crate) fn imported(imported: Arc<Imported>) -> Image {
        Image { root: Root::Layers(imported) }
    }

    pub(crate) fn frozen(frozen: Arc<Frozen>) -> Image {
        Image { root: Root::Checkpoint(frozen) }
    }

    pub(crate) fn checkpoint(&self) -> Option<&Arc<Frozen>> {
        if let Root::Checkpoint(frozen) = &self.root { Some(frozen) } else { None }
    }

    /// What lies below all checkpoints.
    pub(crate) fn base(&self) -> &Root {
        let mut root = &self.root;
        while let Root::Checkpoint(frozen) = root {
            root = &frozen.recipe.root.root;
        }
        root
    }

    fn layers(&self) -> Option<&Imported> {
        if let Root::Layers(imported) = &self.root { Some(imported) } else { None }
    }

    /// How the image wants to be run, also as a checkpoint; a root file system without an
    /// image doesn't say.
    pub fn config(&self) -> Option<&ImageConfig> {
        if let Root::Layers(imported) = self.base() { Some(&imported.config) } else { None }
    }

    /// `sha256:` and the digest of the image's configuration, which names the contents of
    /// all its layers; `None` for a root file system without an image.
    pub fn id(&self) -> Option<&str> {
        self.layers().map(|imported| imported.id.as_str())
    }

    /// The store that holds the image's layers, if it has some.
    pub fn store(&self) -> Option<&Store> {
        self.layers().map(|imported| &imported.store)
    }
}

impl From<&Path> for Image {
    fn from(path: &Path) -> Image {
        Image::dir(path)
    }
}

impl From<PathBuf> for Image {
    fn from(path: PathBuf) -> Image {
        Image::dir(path)
    }
}

impl From<&Image> for Image {
    fn from(image: &Image) -> Image {
        image.clone()
    }
}

/// Reads `bytes` as each of the documents of an image and, as a file, as an archive.
/// Whatever it is, it's an image or an error, and names no file outside.
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = json::check_layout(bytes);
    let _ = json::Document::parse(bytes, "", "a manifest");
    if let Ok(document) = json::ConfigDocument::parse(bytes) {
        let config = ImageConfig::new(&document, User::find("web:staff", bytes, bytes));
        let _ = (config.env().count(), config.volumes().count(), config.stop_signal());
        config.arguments(None, &[]);
    }
    let whole = || -> Result<()> {
        let file = crate::launch::sealed(c"fuzz", bytes)?;
        let scratch = || Ok(std::env::temp_dir());
        if let archive::Kind::Image(archive) = Archive::look(file.into(), 1 << 20, scratch)? {
            let source = layout::read(Files::Archive(archive), None, None)?;
            for layer in &source.layers {
                assert!(!layer.path.contains(".."));
                source.open_layer(layer)?;
            }
        }
        Ok(())
    };
    let _ = whole();
    let docker = || -> Result<()> {
        let file = crate::launch::sealed(c"fuzz", bytes)?;
        if let archive::Kind::Image(archive) = Archive::look(file.into(), 1 << 20, || Ok(std::env::temp_dir()))? {
            docker::read(Files::Archive(archive), None, None)?;
        }
        Ok(())
    };
    let _ = docker();
}
