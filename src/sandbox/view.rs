//! A recipe as the rest of the crate sees it.

use std::path::Path;

use super::{FileSpec, Mount, MountKind, Sandbox};
use crate::capability::Capability;
use crate::cgroup::Limits;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{HostLayout, ImageConfig, Root, USER_HOME, User, hosts};
use crate::outcome::Values;
use crate::probe::Layer;
use crate::volume::Hold;

impl Sandbox {
    pub(crate) fn validate(&self) -> Result<()> {
        if let Some(problem) = &self.problem {
            return Err(Error::invalid(problem.clone()));
        }
        if self.keep_changes && matches!(self.root.root, Root::Host(_)) {
            return Err(Error::invalid(
                "there are no changes to keep of the host's root, which isn't written to; give an image, or a checkpoint",
            ));
        }
        match self.root.config().map(ImageConfig::account) {
            Some(Err(why)) if self.user.is_none() => {
                Err(Error::new(ErrorKind::Image, format!("{why} (name a user with `user`, who counts instead)")))
            }
            _ => Ok(()),
        }
    }

    /// User and group of the command.
    pub(crate) fn account(&self) -> (u32, u32) {
        let of_image = || self.root.config().and_then(|config| config.account().as_ref().ok()).map(|user| (user.uid, user.gid));
        self.user.or_else(of_image).unwrap_or((0, 0))
    }

    /// Supplementary groups of the command: those of the image's user.
    pub(crate) fn groups(&self) -> &[u32] {
        match self.root.config().map(ImageConfig::account) {
            Some(Ok(account)) if self.user.is_none() => &account.groups,
            _ => &[],
        }
    }

    /// The command line as docker run would have it.
    pub(crate) fn complete(&self, command: Command) -> Result<Command> {
        command.in_image(self.root.config(), self.entrypoint.as_deref())
    }

    pub(crate) fn prefers(&self, layer: Layer) -> bool {
        self.prefer & layer.bit() != 0
    }

    /// Whether there's anything that [`hold_volumes`](Self::hold_volumes) may wait for.
    pub(crate) fn has_volumes(&self) -> bool {
        !self.volumes.is_empty()
    }

    /// Locks its volumes.
    pub(crate) fn hold_volumes(&self) -> Result<Hold> {
        Hold::take(&self.volumes)
    }

    /// For an attempt that no workload will see.
    pub(crate) fn without_locks(mut self) -> Sandbox {
        self.volumes.clear();
        self
    }

    /// Where there's no overlayfs the image is copied. Then all of it would be a change,
    /// so whoever keeps those is refused, and whoever has.
    pub(crate) fn copies_layers(&self) -> bool {
        self.prefers(Layer::Overlay) && !self.keep_changes && self.root.checkpoint().is_none()
    }

    pub(crate) fn without_preferences(mut self) -> Sandbox {
        self.prefer = 0;
        self
    }

    /// See the field.
    pub(crate) fn with_borrowed_proc(mut self) -> Sandbox {
        self.borrowed_proc = true;
        self
    }

    pub(crate) fn requires(&self, layer: Layer) -> bool {
        self.require & layer.bit() != 0
    }

    pub(crate) fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    pub(crate) fn files(&self) -> &[FileSpec] {
        &self.files
    }

    /// Without the files that went into the root file system itself.
    pub(crate) fn without_written_files(mut self) -> Sandbox {
        let files = std::mem::take(&mut self.files);
        self.files = files.into_iter().filter(|file| self.covers(&file.inside)).collect();
        self
    }

    /// Whether it's a recipe for the same, if the root is.
    pub(crate) fn is_like_but_for_its_root(&self, other: &Sandbox) -> bool {
        let Sandbox {
            root: _,
            mounts,
            volumes,
            files,
            writable,
            writable_files,
            user,
            entrypoint,
            hostname,
            network,
            syscalls,
            nesting,
            speculation,
            aslr,
            capabilities,
            rlimits,
            limits,
            cpu_time,
            idle_time,
            reuse_network,
            wall_time,
            output,
            keep_output,
            keep_tail,
            id_base,
            borrowed_proc,
            keep_changes,
            require,
            prefer,
            changes,
            problem,
            serves_again,
        } = self;
        (mounts, files, user, entrypoint, hostname) == (&other.mounts, &other.files, &other.user, &other.entrypoint, &other.hostname)
            && (writable, writable_files, network, syscalls) == (&other.writable, &other.writable_files, &other.network, &other.syscalls)
            && (nesting, speculation, aslr, capabilities) == (&other.nesting, &other.speculation, &other.aslr, &other.capabilities)
            && (rlimits, limits, cpu_time, idle_time) == (&other.rlimits, &other.limits, &other.cpu_time, &other.idle_time)
            && (reuse_network, wall_time, output) == (&other.reuse_network, &other.wall_time, &other.output)
            && (keep_output, keep_tail, id_base) == (&other.keep_output, &other.keep_tail, &other.id_base)
            && (borrowed_proc, keep_changes, require, prefer) == (&other.borrowed_proc, &other.keep_changes, &other.require, &other.prefer)
            && *serves_again == other.serves_again
            // Of these nobody asks for more than whether there are any.
            && volumes.is_empty() && other.volumes.is_empty()
            && changes.is_empty() && other.changes.is_empty()
            && problem.is_none() && other.problem.is_none()
    }

    /// How many bytes its files have that are given by their contents.
    pub(crate) fn size_of_files(&self) -> usize {
        self.files.iter().map(|file| file.contents.len()).sum()
    }

    /// Whether nothing but its root is the host's.
    pub(crate) fn has_own_files_only(&self) -> bool {
        self.volumes.is_empty() && self.mounts.iter().all(|mount| matches!(mount.kind, MountKind::Tmpfs { .. }))
    }

    /// Parents before what lies in them.
    pub(crate) fn sorted_mounts(&self) -> Vec<&Mount> {
        let mut mounts: Vec<&Mount> = self.mounts.iter().collect();
        mounts.sort_by_key(|m| m.inside.components().count());
        mounts
    }

    /// Synthetic files first, so that the caller's replace them.
    pub(crate) fn all_files(&self) -> Vec<FileSpec> {
        let ours = |(inside, contents): (&str, String)| FileSpec {
            inside: inside.into(),
            contents: contents.into_bytes().into(),
            mode: 0o644,
            ours: true,
        };
        let synthetic = match self.root.base() {
            // It has them, and what the workload made of them.
            _ if self.root.checkpoint().is_some_and(|frozen| self.is_known_in(&frozen.recipe)) => Vec::new(),
            Root::Host(_) => HostLayout::files(&self.hostname, self.account().0, self.account().1),
            _ => vec![("/etc/hosts", hosts(&self.hostname)), ("/etc/hostname", format!("{}\n", self.hostname))],
        };
        let synthetic = synthetic.into_iter().map(ours).filter(|file| !self.covers(&file.inside));
        synthetic.chain(self.files.iter().cloned()).collect()
    }

    /// Whether files of ours about names are the same with another recipe.
    fn is_known_in(&self, other: &Sandbox) -> bool {
        (&self.hostname, self.account()) == (&other.hostname, other.account())
    }

    /// Whether a path lies in one of the recipe's mounts, or where we mount something.
    pub(crate) fn covers(&self, path: &Path) -> bool {
        path.starts_with("/dev/shm") || self.mounts.iter().any(|m| path.starts_with(&m.inside))
    }

    /// Whether a mount's place may lie in another mount: one of the recipe's or of ours
    /// lies on the way to it by name. The host's own tree has links into `/usr`, none of
    /// which leads to what can be written.
    pub(crate) fn mounts_within(&self, mount: &Mount) -> bool {
        let ours = ["/dev", "/proc"].iter().any(|place| mount.inside.starts_with(place));
        let others = self.mounts.iter().filter(|other| !std::ptr::eq(*other, mount));
        matches!(self.root.root, Root::Host(_)) || ours || others.map(|other| &other.inside).any(|place| mount.inside.starts_with(place))
    }

    /// Bytes that the workload's files in memory can take.
    pub(crate) fn files_in_memory(&self) -> u64 {
        let tmpfs = self.mounts.iter().map(|mount| if let MountKind::Tmpfs { bytes } = mount.kind { bytes } else { 0 });
        tmpfs.fold(self.writable, u64::saturating_add)
    }

    /// Home directory of the run's user.
    pub(crate) fn home(&self) -> &str {
        let (uid, _) = self.account();
        if let Some(Ok(User { uid: own, home: Some(home), .. })) = self.root.config().map(ImageConfig::account)
            && *own == uid
        {
            return home;
        }
        match (self.root.base(), uid) {
            (_, 0) => "/root",
            (Root::Host(_), _) => USER_HOME,
            _ => "/",
        }
    }

    /// The host's root, for a user other than root, who needs a home.
    pub(crate) fn makes_home(&self) -> bool {
        matches!(self.root.base(), Root::Host(_)) && self.account().0 != 0
    }

    /// Directories that the image's configuration needs.
    pub(crate) fn image_directories(&self) -> impl Iterator<Item = &Path> {
        self.root.config().into_iter().flat_map(|config| config.working_dir().into_iter().chain(config.volumes()))
    }

    /// Something of the recipe must be idmapped when root runs it.
    pub(crate) fn maps_owners(&self) -> bool {
        let binds = self.mounts.iter().any(|m| matches!(m.kind, MountKind::Bind { .. }));
        binds || !matches!(self.root.root, Root::Host(_))
    }

    pub(crate) fn limit_values(&self) -> Values {
        Values {
            output: self.output,
            memory: self.limits.memory,
            cpu_time: self.cpu_time,
            wall_time: self.wall_time,
            idle_time: self.idle_time,
        }
    }

    /// The limits that a control group is to have.
    pub(crate) fn group_limits(&self) -> Limits {
        let user_can_change = self.capabilities & (1 << Capability::Setuid.number()) != 0;
        let in_reach = self.nesting || self.syscalls.may_mount() || self.prefers(Layer::SyscallFilter);
        let cpu_account = self.cpu_time.is_some() || self.idle_time.is_some();
        Limits { cpu_account, strict_processes: user_can_change, in_reach, ..self.limits }
    }

    /// The capabilities that the command gets.
    pub(crate) fn kept_capabilities(&self) -> u64 {
        let setfcap = 1 << Capability::Setfcap.number();
        let refused = if self.writes_to_host() && !self.syscalls.is_unfiltered() { setfcap } else { 0 };
        self.capabilities & !refused
    }

    pub(crate) fn writes_to_host(&self) -> bool {
        self.mounts.iter().any(|m| matches!(m.kind, MountKind::Bind { writable: true, .. }))
    }
}
