//! What a run wrote to its root file system, and images made of it.
//!
//! The writable layer is a tmpfs that the outer child mounts in a namespace of its own
//! and shows the host by a descriptor. Nothing but that descriptor is left of it when
//! the run has ended. Of a run it's only kept where the recipe asks for it; of a live
//! sandbox always, because it may become a checkpoint.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::{Error, Result};
use crate::image::{HostLayout, Image, Root};
use crate::layer::{self, Change, ChangeKind, IdMap, PackOptions};
use crate::outcome::Output;
use crate::sandbox::Sandbox;
use crate::store::commit;

/// A writable layer, with what is below it.
#[derive(Debug)]
pub(crate) struct Upper {
    directory: OwnedFd,
    image: Image,
    /// Ids in the directory, as they were inside.
    ids: IdMap,
    /// What isn't the run's: our own files, mounts and volumes.
    ours: Vec<PathBuf>,
    /// Directories and links that we make where they are missing. What is in them is the
    /// run's.
    made: Vec<PathBuf>,
}

/// How [`Output::commit`] and [`Instance::commit`](crate::Instance::commit) make an image.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    name: Option<String>,
    time: Option<SystemTime>,
    comment: Option<String>,
}

impl CommitOptions {
    /// No name, as of now.
    pub fn new() -> CommitOptions {
        CommitOptions::default()
    }

    /// The name of the new image in the store.
    pub fn name(mut self, name: impl Into<String>) -> CommitOptions {
        self.name = Some(name.into());
        self
    }

    /// When the image is made, as it says itself; and no file in its new layer is later
    /// than this. Equal changes then become equal images (`SOURCE_DATE_EPOCH`).
    pub fn time(mut self, time: SystemTime) -> CommitOptions {
        self.time = Some(time);
        self
    }

    /// What the image's history says of the new layer.
    pub fn comment(mut self, comment: impl Into<String>) -> CommitOptions {
        self.comment = Some(comment.into());
        self
    }
}

impl Upper {
    pub(crate) fn new(directory: OwnedFd, sandbox: &Sandbox, ids: IdMap) -> Upper {
        let relative = |path: &Path| path.strip_prefix("/").unwrap_or(path).to_path_buf();
        let mut ours: Vec<PathBuf> = ["etc/hosts", "etc/hostname", "proc", "dev"].map(PathBuf::from).to_vec();
        ours.extend(sandbox.sorted_mounts().iter().map(|mount| relative(&mount.inside)));
        ours.extend(sandbox.root.config().into_iter().flat_map(|config| config.volumes().map(relative)));
        let mut made: Vec<PathBuf> = ["etc", "tmp"].map(PathBuf::from).to_vec();
        if let Root::Host(layout) = &sandbox.root.root {
            ours.extend(layout.parts.iter().map(|part| relative(Path::new(&part.inside))));
            ours.extend(HostLayout::files("", 0, 0).iter().map(|(name, _)| relative(Path::new(name))));
            made.extend(layout.directories.iter().map(|(name, _)| PathBuf::from(name)));
            made.extend(layout.links.iter().map(|(name, _)| PathBuf::from(name)));
            made.push(relative(Path::new(sandbox.home())));
        }
        Upper { directory, image: sandbox.root.clone(), ids, ours, made }
    }

    fn is_ours(&self, change: &Change) -> bool {
        let made = change.kind == ChangeKind::Added && self.made.contains(&change.path);
        made || self.ours.iter().any(|ours| change.path.starts_with(ours))
    }

    /// The layers below, the topmost first, each with what its ids are called inside.
    fn lower(&self) -> Result<Vec<(OwnedFd, &IdMap)>> {
        // Root's are as they are inside: the mounts are idmapped.
        static AS_INSIDE: IdMap = IdMap { uids: Vec::new(), gids: Vec::new() };
        let ids = if crate::probe::privileged() { &AS_INSIDE } else { &self.ids };
        // Not for reading: a layer's root directory may be closed to its owner's user.
        let how = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = |path: PathBuf| match nix::fcntl::open(&path, how, Mode::empty()) {
            Ok(directory) => Ok((directory, ids)),
            Err(errno) => Err(Error::io("open", &path.to_string_lossy(), errno.into())),
        };
        match &self.image.root {
            Root::Host(_) => Ok(Vec::new()),
            Root::Dir(path) => Ok(vec![open(path.clone())?]),
            Root::Layers(imported) => imported.directories().map(open).collect(),
            Root::Checkpoint(frozen) => {
                let directory = frozen.upper.directory.try_clone().map_err(|e| Error::io("copy", "a descriptor", e))?;
                let mut lower = vec![(directory, &frozen.upper.ids)];
                lower.extend(frozen.upper.lower()?);
                Ok(lower)
            }
        }
    }

    /// What it changes of what is below it.
    pub(crate) fn changes(&self) -> Result<Vec<Change>> {
        let lower = self.lower()?;
        let lower: Vec<_> = lower.iter().map(|(directory, ids)| (directory.as_fd(), *ids)).collect();
        let mut changes = layer::changes((self.directory.as_fd(), &self.ids), &lower)?;
        changes.retain(|change| !self.is_ours(change));
        Ok(changes)
    }

    /// The image below with this as one more layer, and one for each checkpoint between.
    pub(crate) fn commit(&self, options: &CommitOptions) -> Result<Image> {
        let committed;
        let base = match &self.image.root {
            Root::Layers(base) => base,
            Root::Checkpoint(frozen) => {
                committed = frozen.upper.commit(&CommitOptions { name: None, ..options.clone() })?;
                match &committed.root {
                    Root::Layers(base) => base,
                    _ => return Err(not_an_image()),
                }
            }
            Root::Host(_) | Root::Dir(_) => return Err(not_an_image()),
        };
        let created = options.time.unwrap_or_else(SystemTime::now);
        let pack =
            PackOptions { ids: self.ids.clone(), latest: options.time, overlay: true, root_entry: false, exclude: self.ours.clone() };
        let write = |out: &mut dyn std::io::Write| layer::pack(self.directory.as_fd(), out, &pack).map(|_| ());
        let new = commit::Commit { base, created, name: options.name.as_deref(), comment: options.comment.as_deref() };
        new.write(write).map(Image::imported).map_err(|error| error.within("cannot commit the run"))
    }
}

fn not_an_image() -> Error {
    Error::invalid("only a run on an image can be committed; open the root file system as an archive with `Image::open`")
}

impl Output {
    fn upper(&self) -> Result<&Upper> {
        let missing = || Error::invalid("the run's changes weren't kept; ask for it with `keep_changes`");
        self.upper.as_deref().ok_or_else(missing)
    }

    /// What the run added, modified and deleted in its root file system, sorted by path.
    /// What the recipe mounts, and the image's volumes, aren't part of it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) unless the recipe says
    /// [`keep_changes`](Sandbox::keep_changes).
    pub fn changes(&self) -> Result<Vec<Change>> {
        self.upper()?.changes()
    }

    /// A new image: the run's, with what it wrote as one more layer. It's in the same
    /// store.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) unless the recipe says
    /// [`keep_changes`](Sandbox::keep_changes), and if the run's root file system isn't an
    /// image of a [`Store`](crate::Store).
    pub fn commit(&self, options: &CommitOptions) -> Result<Image> {
        self.upper()?.commit(options)
    }
}
