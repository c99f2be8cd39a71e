//! Opening images.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archive::{Archive, Kind};
use super::digest::Digest;
use super::files::Files;
use super::json::refused;
use super::platform::Platform;
use super::source::Source;
use super::{Image, docker, layout};
use crate::error::{Error, Result};
use crate::layer::Limits;
use crate::store::{Import, Store};

/// How far a layer has come, for a progress display: see [`ImageOptions::progress`].
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Which layer, from 1 at the bottom.
    pub layer: usize,
    /// How many layers the image has.
    pub layers: usize,
    /// Digest of the layer's contents.
    pub digest: &'a str,
    /// Bytes of the layer, as it's stored, that have been read.
    pub read: u64,
    /// Bytes of the layer as it's stored.
    pub total: u64,
}

type Callback = Arc<dyn Fn(Progress<'_>) + Send + Sync>;

/// What to open, and how: from [`Image::options`].
///
/// ```no_run
/// # use cofferdam::{Image, Sandbox};
/// let image = Image::options().reference("app:1.2").open("layout")?;
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct ImageOptions {
    reference: Option<String>,
    platform: Option<Platform>,
    store: Option<Store>,
    pub(super) limits: Limits,
    pub(super) progress: Option<Callback>,
}

impl fmt::Debug for ImageOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ImageOptions { reference, platform, store, limits, progress: _ } = self;
        f.debug_struct("ImageOptions")
            .field("reference", reference)
            .field("platform", platform)
            .field("store", store)
            .field("limits", limits)
            .finish_non_exhaustive()
    }
}

/// What stands at a path.
pub(super) enum Opened {
    Directory,
    Image(Box<Source>),
    /// A root file system in a tar archive.
    Archive(File),
}

impl ImageOptions {
    /// Which image, where a layout or an archive holds several: the name that it has
    /// there, a tag, or the digest of a manifest. Without it there must be only one.
    pub fn reference(mut self, reference: impl Into<String>) -> ImageOptions {
        self.reference = Some(reference.into());
        self
    }

    /// For which platform, where an image is made for several. Default: this
    /// machine's.
    pub fn platform(mut self, platform: Platform) -> ImageOptions {
        self.platform = Some(platform);
        self
    }

    /// Where its layers are kept. Default: [`Store::open_default`].
    pub fn store(mut self, store: &Store) -> ImageOptions {
        self.store = Some(store.clone());
        self
    }

    /// The most bytes that the image's layers may unpack to. Default: 16 GiB.
    pub fn max_bytes(mut self, bytes: u64) -> ImageOptions {
        self.limits.bytes = bytes;
        self
    }

    /// The most files and directories of a layer. Default: 2,000,000.
    pub fn max_inodes(mut self, inodes: u64) -> ImageOptions {
        self.limits.inodes = inodes;
        self
    }

    /// Called now and then while layers are unpacked, from several threads.
    pub fn progress(mut self, callback: impl Fn(Progress<'_>) + Send + Sync + 'static) -> ImageOptions {
        self.progress = Some(Arc::new(callback));
        self
    }

    /// Opens what [`Image::open`] takes, and brings it into the store.
    ///
    /// # Errors
    /// [`ErrorKind::Image`](crate::ErrorKind::Image) if it's no image, is damaged or
    /// hostile, or exceeds a limit; then nothing of it is in the store.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Image> {
        let path = path.as_ref();
        self.open_any(path).map_err(|error| error.within(&format!("cannot open the image {}", path.display())))
    }

    fn open_any(&self, path: &Path) -> Result<Image> {
        let scratch = || Ok(self.chosen_store()?.path().join("tmp"));
        let opened = self.look(path, &scratch)?;
        if let Opened::Directory = opened {
            return Ok(Image::dir(path));
        }
        let store = self.chosen_store()?;
        let import = Import { store: &store, limits: &self.limits, progress: self.progress.as_deref() };
        let imported = match opened {
            Opened::Image(mut source) => {
                source.name = source.name.or_else(|| Some(stem(path)));
                import.image(&source)?
            }
            Opened::Archive(file) => import.archive(file, stem(path))?,
            Opened::Directory => unreachable!("returned above"),
        };
        Ok(Image::imported(imported))
    }

    fn chosen_store(&self) -> Result<Store> {
        self.store.clone().map_or_else(Store::open_default, Ok)
    }

    pub(super) fn look(&self, path: &Path, scratch: &dyn Fn() -> Result<PathBuf>) -> Result<Opened> {
        let failed = |e| Error::io("open", &path.to_string_lossy(), e);
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let (reference, platform) = (self.reference.as_deref(), self.platform.as_ref());
        if metadata.is_dir() {
            let files = Files::Directory(File::open(path).map_err(failed)?.into());
            return if layout::is_layout(&files)? {
                Ok(Opened::Image(Box::new(layout::read(files, reference, platform)?)))
            } else {
                self.nameless().map(|()| Opened::Directory)
            };
        }
        if !metadata.is_file() {
            return Err(refused("it is neither a file nor a directory"));
        }
        // To tar it's an archive of nothing; to people it's a download that failed.
        if metadata.len() == 0 {
            return Err(refused("it is empty"));
        }
        let file = File::open(path).map_err(failed)?;
        match Archive::look(file, self.limits.bytes, scratch)? {
            Kind::RootFs(file) => self.nameless().map(|()| Opened::Archive(file)),
            Kind::Image(archive) => {
                let files = Files::Archive(archive);
                // Docker 25 and later write both forms into one archive. Tags stand in
                // manifest.json as people type them.
                let docker = files.open("manifest.json")?.is_some();
                let oci = layout::is_layout(&files)?;
                let by_tag = reference.is_some_and(|r| Digest::parse(r).is_none());
                let source = if docker && (by_tag || !oci) {
                    docker::read(files, reference, platform)?
                } else {
                    layout::read(files, reference, platform)?
                };
                Ok(Opened::Image(Box::new(source)))
            }
        }
    }
}

impl ImageOptions {
    /// For what is no image with names.
    fn nameless(&self) -> Result<()> {
        match self.reference {
            Some(_) => Err(refused("it is a root file system, which has no names to choose from")),
            None => Ok(()),
        }
    }
}

/// The name of an image that has none: its file's, without what says how it's packed.
fn stem(path: &Path) -> String {
    let name = path.file_name().map_or_else(|| "image".into(), |name| name.to_string_lossy().into_owned());
    let name = ["gz", "zst", "xz", "tgz", "tzst", "txz"].iter().find_map(|end| name.strip_suffix(&format!(".{end}"))).unwrap_or(&name);
    let name = name.strip_suffix(".tar").unwrap_or(name);
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    if name.is_empty() { "image".into() } else { name }
}
