//! Root file systems.

mod host;

use std::path::{Path, PathBuf};

pub(crate) use host::{HostLayout, USER_HOME, hosts};

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
}

impl Image {
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
