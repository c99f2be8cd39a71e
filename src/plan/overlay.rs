//! Steps that stack an image's layers and the writable one.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::files::{BASE, FSCONFIG_CMD_CREATE, HERE, Owners, SCRATCH, display, scratch_into, set_attributes, set_options};
use super::message::Report;
use super::scratch::{Below, Kept, LOWER, make_directory, scratch, shared_memory, show_directory};
use super::wire::{op, slot};
use super::{Area, Arg, Draft, Mark, again};
use crate::image::{Image, Root};
use crate::probe::Layer;
use crate::sandbox::Sandbox;
use crate::store::Chain;
use crate::sys::{self, mount::Context};

/// The read-only side of an overlay: a base with checkpoints on it, of which the host's
/// root has none at first.
pub(super) struct Lower<'a> {
    base: Option<Base<'a>>,
    /// How many lie on the base.
    checkpoints: usize,
}

struct Base<'a> {
    /// The layer itself or, with a chain, the store that holds it.
    path: &'a Path,
    chain: Option<&'a Chain>,
}

impl<'a> Lower<'a> {
    /// What a root has below its writable layer; the host's has nothing.
    pub(super) fn of(image: &'a Image) -> Option<Lower<'a>> {
        let base = match image.base() {
            Root::Dir(path) => Some(Base { path, chain: None }),
            Root::Layers(image) => Some(Base { path: image.store_path(), chain: Some(image.chain()) }),
            Root::Host(_) | Root::Checkpoint(_) => None,
        };
        let checkpoints = image.checkpoint().map_or(0, |frozen| frozen.depth);
        (base.is_some() || checkpoints > 0).then_some(Lower { base, checkpoints })
    }

    /// There's no checkpoint in it.
    pub(super) fn is_base(&self) -> bool {
        self.checkpoints == 0
    }

    pub(super) fn name(&self) -> String {
        match &self.base {
            Some(base) if self.is_base() => display(base.path),
            _ => "the checkpoint".into(),
        }
    }

    /// A detached, read-only mount of the base. It's one mount for however many layers a
    /// store has: overlayfs takes directories in it as layers, and each has its id map.
    /// With a checkpoint there's nothing to open: it has all that lies below it.
    pub(super) fn open(&self, draft: &mut Draft) -> Option<u8> {
        let base = self.base.as_ref().filter(|_| self.is_base())?;
        let directory = draft.temporary();
        let path = draft.text(base.path.as_os_str().as_bytes());
        // Not O_PATH: a directory that this user can't read is told here.
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        draft.step(libc::SYS_openat, &[HERE, path, flags.into()], "open the root file system", self.name()).keep_in(directory);
        let tree = draft.temporary();
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
        draft
            .step(libc::SYS_open_tree, &[Arg::Slot(directory), Draft::EMPTY, flags.into()], "open the root file system", self.name())
            .keep_in(tree);
        set_attributes(draft, tree, BASE | libc::MOUNT_ATTR_RDONLY, self.name());
        draft.close(directory);
        Some(tree)
    }

    /// Below this many checkpoints, the topmost first, from [`SCRATCH`].
    fn below(checkpoints: usize) -> String {
        vec![LOWER; checkpoints + 1].join("/")
    }

    /// Enters the directory that has the layers under their [`names`](Self::names).
    fn enter(&self, draft: &mut Draft) {
        let mut directory = Lower::below(self.checkpoints);
        match &self.base {
            Some(Base { chain: Some(chain), .. }) => directory = format!("{directory}/{}", chain.directory),
            Some(_) => {}
            None => return,
        }
        let path = draft.text(directory);
        draft.step(libc::SYS_chdir, &[path], "find the layers of", self.name());
    }

    /// Value of the option `lowerdir`, the topmost layer first. mount(2) takes 4,095
    /// bytes of options: 500 layers, the most that overlayfs stacks, need 1,889 of them,
    /// and as many checkpoints as are possible 2,063.
    fn names(&self) -> String {
        let checkpoints = (0..self.checkpoints).map(|i| format!("{SCRATCH}/{}/upper", Lower::below(i)));
        let base = self.base.iter().flat_map(|base| match base.chain {
            None => vec![".".into()],
            Some(chain) => (0..chain.layers).map(|i| i.to_string()).collect(),
        });
        checkpoints.chain(base).collect::<Vec<_>>().join(":")
    }

    /// The layers as directories below a base's mount, the topmost first; none for the mount
    /// itself.
    fn directories(&self) -> Vec<String> {
        let chain = self.base.as_ref().and_then(|base| base.chain);
        chain.map_or(Vec::new(), |chain| (0..chain.layers).map(|i| format!("{}/{i}", chain.directory)).collect())
    }

    /// The one of them that says how the new one is to look.
    fn top(&self) -> Option<String> {
        let chain = self.base.as_ref().and_then(|base| base.chain)?;
        Some(format!("{}/{}", chain.directory, chain.root))
    }

    /// How many [`names`](Self::names) there are; 0 for the directory itself.
    fn count(&self) -> usize {
        self.base.as_ref().and_then(|base| base.chain).map_or(0, |chain| chain.layers)
    }

    /// The layer whose root directory says how the new one is to look.
    fn pattern(&self) -> String {
        match &self.base {
            _ if !self.is_base() => format!("{SCRATCH}/{}/upper", Lower::below(0)),
            Some(Base { chain: Some(chain), .. }) => chain.root.to_string(),
            _ => ".".into(),
        }
    }
}

/// An image may carry overlayfs's own attributes. Redirects among them could lead into
/// directories that its layers keep closed (many kernels follow them unless told
/// otherwise).
const OWN_MARKS: [(&str, &str); 3] = [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")];

/// The scratch and the overlay of it over what is in the mount `tree`; returns
/// `/dev/shm`. If the kernel takes layers from `anywhere`, they needn't be attached.
pub(super) fn overlay(draft: &mut Draft, sandbox: &Sandbox, lower: &Lower<'_>, tree: u8, owners: Owners, kept: Kept, anywhere: bool) -> u8 {
    let as_it_is = owners.substitute.is_none() && !owners.ordinary && !sandbox.copies_layers() && !sandbox.serves_again;
    if anywhere && as_it_is && kept == Kept::No && lower.is_base() && lower.count() <= LAYERS {
        return detached(draft, sandbox, lower, tree);
    }
    // overlayfs wants its layers attached in the caller's mount namespace
    // (before Linux 6.15), so this child takes a copy of init's small one.
    draft.area(Area::Overlay);
    let copies = kept == Kept::No && sandbox.copies_layers();
    let below = Below { tree, name: lower.name() };
    let scratch = scratch(draft, sandbox, Some(&below), owners, kept, 0o755);
    let upper = draft.temporary();
    let path = draft.text("upper");
    draft.step(libc::SYS_openat, &[HERE, path, (libc::O_DIRECTORY | libc::O_CLOEXEC).into()], "open", "the writable layer").keep_in(upper);
    if owners.ordinary {
        draft.area(Area::UserXattr);
        draft.step(op::USER_XATTR, &[Arg::Slot(upper)], "keep overlayfs attributes in", "a tmpfs").layer(Layer::Overlay, copies);
        draft.area(Area::Overlay);
    }
    if let Some(root) = owners.substitute {
        // Directories whose owner doesn't exist inside can be neither written nor
        // copied up. So those that every run writes to stand in the upper layer from
        // the start, owned by the sandbox's root; overlayfs merges them with the
        // image's.
        for (directory, mode) in [("upper", None), ("upper/etc", Some(0o755)), ("upper/tmp", Some(0o1777))] {
            if let Some(mode) = mode {
                make_directory(draft, directory, mode);
            }
            let path = draft.text(directory);
            draft.step(libc::SYS_fchownat, &[HERE, path, root.into(), root.into(), 0.into()], "own", "the writable layer");
        }
    }
    lower.enter(draft);
    let (pattern, path) = (draft.temporary(), draft.text(lower.pattern()));
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    draft.step(libc::SYS_openat, &[HERE, path, flags.into()], "open the root directory of", lower.name()).keep_in(pattern);
    let same_owner = u32::from(owners.substitute.is_none());
    draft.step(op::LIKE, &[Arg::Slot(pattern), Arg::Slot(upper), same_owner.into()], "copy the owner and mode of", lower.name());
    let mut options = format!("lowerdir={},upperdir={SCRATCH}/upper,workdir={SCRATCH}/work", lower.names());
    if owners.ordinary {
        options.push_str(",userxattr");
    } else {
        OWN_MARKS.iter().for_each(|(key, value)| options.push_str(&format!(",{key}={value}")));
    }
    let (name, place, text) = (draft.text("overlay"), draft.text(SCRATCH), draft.text(&options));
    let flags = libc::MS_NOSUID | libc::MS_NODEV | again::mount_flags(sandbox);
    // By mount(2), because fsconfig(2) takes 255 bytes of a value, which are some 80
    // layers, and several values only from Linux 6.7 on (`lowerdir+`).
    draft.step(libc::SYS_mount, &[name, place, name, flags.into(), text], "mount", "the overlay").layer(Layer::Overlay, copies);
    let args = [place, Layer::Overlay.bit().into(), Arg::Slot(upper), lower.count().into()];
    draft.step(op::STACK, &args, "open", "the overlay").keep_in(slot::ROOT);
    draft.step(libc::SYS_fchdir, &[Arg::Slot(scratch)], "enter", "the writable layer");
    let shm = shared_memory(draft);
    if kept == Kept::Changes {
        show_directory(draft, "upper", Report::UPPER);
    }
    for slot in [tree, pattern, scratch, upper] {
        draft.close(slot);
    }
    shm
}

/// The most layers that are opened one by one.
const LAYERS: usize = 16;

/// The same from descriptors, so that nothing has to be attached anywhere, and there's no
/// mount namespace to be made for it and taken apart.
fn detached(draft: &mut Draft, sandbox: &Sandbox, lower: &Lower<'_>, tree: u8) -> u8 {
    draft.area(Area::Overlay);
    let scratch = draft.temporary();
    scratch_into(draft, scratch, sandbox, "755");
    draft.step(libc::SYS_fchdir, &[Arg::Slot(scratch)], "enter", "the writable layer");
    for (directory, mode) in [("upper", 0o755), ("work", 0o700), ("shm", 0o1777)] {
        make_directory(draft, directory, mode);
    }
    let [upper, work] = ["upper", "work"].map(|name| {
        let slot = draft.temporary();
        open_directory(draft, slot, HERE, name, "the writable layer".into());
        slot
    });
    let directories = lower.directories();
    let context = draft.temporary();
    let (name, top) = (draft.text("overlay"), lower.top());
    draft.step(libc::SYS_fsopen, &[name, libc::FSOPEN_CLOEXEC.into()], "use file system", "overlay").keep_in(context);
    if directories.is_empty() {
        draft.step(op::LIKE, &[Arg::Slot(tree), Arg::Slot(upper), 1.into()], "copy the owner and mode of", lower.name());
        set(draft, context, "lowerdir+", tree);
    }
    let layer = draft.temporary();
    for directory in directories {
        open_directory(draft, layer, Arg::Slot(tree), &directory, lower.name());
        if top.as_ref() == Some(&directory) {
            draft.step(op::LIKE, &[Arg::Slot(layer), Arg::Slot(upper), 1.into()], "copy the owner and mode of", lower.name());
        }
        set(draft, context, "lowerdir+", layer);
        draft.close(layer);
    }
    set(draft, context, "upperdir", upper);
    set(draft, context, "workdir", work);
    // What mount(8) shows.
    set_options(draft, context, "overlay", &[("source", "overlay")]);
    set_options(draft, context, "overlay", &OWN_MARKS);
    let create = [Arg::Slot(context), FSCONFIG_CMD_CREATE.into(), 0.into(), 0.into(), 0.into()];
    draft.step(libc::SYS_fsconfig, &create, "mount", "the overlay").layer(Layer::Overlay, false);
    let args = [Arg::Slot(context), libc::FSMOUNT_CLOEXEC.into(), BASE.into()];
    draft.step(libc::SYS_fsmount, &args, "mount", "the overlay").keep_in(slot::ROOT).layer(Layer::Overlay, false);
    let shm = shared_memory(draft);
    for slot in [tree, context, scratch, upper, work] {
        draft.close(slot);
    }
    shm
}

fn open_directory(draft: &mut Draft, slot: u8, at: Arg, name: &str, object: String) {
    let path = draft.text(name);
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    draft.step(libc::SYS_openat, &[at, path, flags.into()], "open the root directory of", object).keep_in(slot);
}

/// Sets an option to a file.
fn set(draft: &mut Draft, context: u8, key: &str, file: u8) {
    const FSCONFIG_SET_FD: u32 = 5;
    let name = draft.text(key);
    let args = [Arg::Slot(context), FSCONFIG_SET_FD.into(), name, 0.into(), Arg::Slot(file)];
    draft.step(libc::SYS_fsconfig, &args, "set", format!("overlay option {key}")).layer(Layer::Overlay, false);
}

/// Whether this kernel makes an overlay of directories that are attached nowhere: tried.
pub(crate) fn takes_layers_from_anywhere() -> bool {
    let attempt = || -> std::io::Result<()> {
        let scratch = Context::open(c"tmpfs").and_then(|tmpfs| tmpfs.create().and_then(|()| tmpfs.mount()))?;
        let context = Context::open(c"overlay")?;
        // A mount that nobody holds is gone.
        let mut layers = Vec::new();
        for (option, name) in [(c"lowerdir+", "lower"), (c"upperdir", "upper"), (c"workdir", "work")] {
            mkdirat(&scratch, name, Mode::S_IRWXU)?;
            let mut directory = openat(&scratch, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
            if name == "lower" {
                directory = sys::mount::cloned(directory.as_fd())?;
            }
            context.set(option, directory.as_fd())?;
            layers.push(directory);
        }
        context.create()
    };
    attempt().is_ok()
}
