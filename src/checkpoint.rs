//! Checkpoints: writable layers that have become read-only.
//!
//! Nothing is copied. A layer is a directory in a tmpfs, and what keeps that is one
//! descriptor of the mount namespace in which it lies with all that is below it
//! (`plan/scratch.rs`). A sandbox on it clones the whole stack of mounts in one call,
//! maps its ids to its own in another, and has overlayfs put a fresh writable layer on top.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::changes::Upper;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Claim;
use crate::image::Image;
use crate::instance::Instance;
use crate::probe::Layer;
use crate::sandbox::Sandbox;
use crate::supervise::session::Shown;

/// The files of a live sandbox as they were at one moment, made by
/// [`Instance::checkpoint`]: what any number of sandboxes start from, one after
/// another or at once. None of them changes it or sees the others.
///
/// It holds the root file system: not processes, not `/dev/shm`, and not what the recipe
/// mounts ([binds](Sandbox::bind) are what they are then, each
/// [tmpfs](Sandbox::tmpfs) is fresh).
///
/// A sandbox on it is made from a recipe, [its own](Self::sandbox) or another with it as
/// [`rootfs`](Sandbox::rootfs), with a fresh scratch layer of the size that the recipe
/// says. A file of the checkpoint that is written to is copied there first, as a whole.
///
/// It's cheap to hold and to clone: one mount namespace and two descriptors, whatever its
/// size. Its files are memory, as they were before, with what `/dev/shm` held; at most the
/// [scratch layer](Sandbox::writable) of the instance, which was charged to that and
/// is in nobody's [memory limit](Sandbox::memory) any more. They are freed when nobody
/// uses them any more: the last clone of the checkpoint, sandboxes on it, checkpoints
/// of those; and when the host program ends, however it ends.
///
/// It belongs to the process that made it. An ordinary user's can't be used by a
/// forked child of that, whose own sandboxes are of another user namespace; nor can
/// root's below Linux 6.3.
///
/// As root each sandbox on it has [ids of its own](Sandbox::id_base), to which the kernel
/// maps the files. Below Linux 6.3 it can't do that with files in memory: there all
/// sandboxes on a checkpoint, and on checkpoints of those, have the host ids of the
/// instance that it was made of, which are nobody else's as long as any of them lives.
/// They still have neither files, processes nor any namespace in common, but what the
/// kernel counts by user on the whole machine: buffers of pipes, epoll watches,
/// descriptors on their way through sockets, keys. Where that must not be,
/// [`require`](Sandbox::require) [`Layer::IdMappedMounts`]: then it's an error.
///
/// Compile once, run each test in a fresh copy:
///
/// ```
/// use cofferdam::{Command, Sandbox};
///
/// let mut instance = Sandbox::new().start()?;
/// instance.run(["sh", "-c", "echo 'read n; echo $((n * n)); rm /tmp/square' > /tmp/square"])?.exit_ok()?;
/// let compiled = instance.checkpoint()?;
/// for n in 1..4 {
///     let out = compiled.sandbox().run(Command::new("sh").arg("/tmp/square").stdin(n.to_string()))?;
///     assert_eq!(out.text(), format!("{}\n", n * n));
/// }
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    frozen: Arc<Frozen>,
}

/// A layer with what is below it.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// The mount namespace that has both.
    mounts: OwnedFd,
    /// The layer, and the recipe's root below it.
    pub(crate) upper: Upper,
    /// What the sandbox was.
    pub(crate) recipe: Sandbox,
    /// Checkpoints in the stack, this one among them.
    pub(crate) depth: usize,
    /// The kernel keeps it from being written: the first sandbox on it has seen to that.
    sealed: AtomicBool,
    /// As root where tmpfs has no idmapped mounts: the ids of its files, which every
    /// sandbox on it has.
    ids: Option<Arc<Claim>>,
}

/// The deepest stack of checkpoints; see `Lower::names`.
pub(crate) const DEEPEST: usize = 24;

impl Frozen {
    pub(crate) fn mounts(&self) -> BorrowedFd<'_> {
        self.mounts.as_fd()
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Relaxed)
    }

    /// A sandbox stands on it.
    pub(crate) fn has_been_sealed(&self) {
        self.sealed.store(true, Ordering::Relaxed);
    }

    /// The ids that a sandbox on it must have, unless it may have any.
    pub(crate) fn ids_for(&self, sandbox: &Sandbox) -> Result<Option<Arc<Claim>>> {
        let Some(ids) = &self.ids else { return Ok(None) };
        if sandbox.requires(Layer::IdMappedMounts) {
            let text = "cannot map the owners of the checkpoint: tmpfs has no idmapped mounts here (it has them from Linux 6.3)";
            return Err(Error::unsupported(text).about(Some(Layer::IdMappedMounts)));
        }
        if !ids.is_ours() {
            let text = "cannot use the checkpoint in a forked process: the ids of its files belong to the one that made it (from Linux 6.3 it can be)";
            return Err(Error::new(ErrorKind::Lost, text));
        }
        Ok(Some(ids.clone()))
    }

    /// The recipe with this as its root. Files that it gives by contents are there
    /// already, but for those in its mounts.
    fn sandbox(self: &Arc<Frozen>) -> Sandbox {
        let recipe = self.recipe.clone().without_written_files();
        recipe.rootfs(&Checkpoint { frozen: self.clone() })
    }
}

/// How many checkpoints a recipe's root has.
fn depth(recipe: &Sandbox) -> usize {
    recipe.root.checkpoint().map_or(0, |below| below.depth)
}

impl Checkpoint {
    /// Whether one may be made of a sandbox with this recipe.
    pub(crate) fn check_depth(recipe: &Sandbox) -> Result<()> {
        if depth(recipe) < DEEPEST {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{DEEPEST} checkpoints lie on each other already, the most that are possible; make an image of them (`commit`)"
        )))
    }

    pub(crate) fn new(shown: Shown, recipe: Sandbox) -> Checkpoint {
        let depth = depth(&recipe) + 1;
        let Shown { mounts, upper, ids } = shown;
        Checkpoint { frozen: Arc::new(Frozen { mounts, upper, recipe, depth, sealed: AtomicBool::new(false), ids }) }
    }

    /// The recipe of the instance that it was made of, with the checkpoint as its root:
    /// to [`run`](Sandbox::run) or [`spawn`](Sandbox::spawn) in, or to derive others from,
    /// with a test's limits instead of a compiler's. Files that the recipe
    /// [gives](Sandbox::file) are those of the checkpoint, as the commands left them.
    pub fn sandbox(&self) -> Sandbox {
        self.frozen.sandbox()
    }

    /// Starts `n` live sandboxes on it, each as it was at the checkpoint. If one can't be
    /// started, none is.
    ///
    /// ```
    /// use cofferdam::Sandbox;
    ///
    /// let mut instance = Sandbox::new().start()?;
    /// instance.write("/tmp/count", "1\n")?;
    /// let forks = instance.checkpoint()?.fork(2)?;
    /// forks[0].run(["sh", "-c", "echo 2 >> /tmp/count"])?.exit_ok()?;
    /// assert_eq!(forks[0].read("/tmp/count", 100)?, b"1\n2\n");
    /// assert_eq!(forks[1].read("/tmp/count", 100)?, b"1\n");
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn fork(&self, n: usize) -> Result<Vec<Instance>> {
        let sandbox = self.sandbox();
        (0..n).map(|_| sandbox.start()).collect()
    }

    pub(crate) fn frozen(&self) -> &Arc<Frozen> {
        &self.frozen
    }
}

impl From<&Checkpoint> for Image {
    fn from(checkpoint: &Checkpoint) -> Image {
        Image::frozen(checkpoint.frozen().clone())
    }
}

impl From<Checkpoint> for Image {
    fn from(checkpoint: Checkpoint) -> Image {
        Image::from(&checkpoint)
    }
}
