//! What work is done with: root file systems, a store, a directory to write to.

use std::fs;
use std::path::{Path, PathBuf};

use cofferdam::{Image, Layer, LayerState, MIB, Sandbox, Store};
use nix::sys::resource::{Resource, getrlimit};

use crate::support::{self, fresh_dir, is_root};

/// In the environment of a host.
pub(crate) const PLACE: &str = "COFFERDAM_SOAK_PLACE";

/// Everything that hosts need and don't change.
pub(crate) fn prepare() -> PathBuf {
    let place = fresh_dir("place-");
    let root = support::busybox_root();
    let tar = std::process::Command::new("tar").arg("-cf").arg(place.join("image.tar")).arg("-C").arg(&root).arg(".").status();
    assert!(tar.expect("tar runs").success());
    std::os::unix::fs::symlink(root, place.join("root")).expect("a link");
    fs::create_dir(place.join("data")).expect("a directory");
    place
}

/// A store lies on a small file system of its own, where this host can have one.
pub(crate) struct Place {
    pub(crate) root: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) store: Store,
    pub(crate) image: Image,
    /// Where that file system is.
    pub(crate) small: Option<PathBuf>,
    /// Memory and CPU time can be limited.
    pub(crate) groups: bool,
    /// RLIMIT_NOFILE at first.
    pub(crate) descriptors: u64,
}

impl Place {
    /// That of this host, with a small file system for its temporary files.
    pub(crate) fn open() -> Place {
        let prepared = PathBuf::from(std::env::var_os(PLACE).expect("a place"));
        let small = small_file_system();
        Place { small: small.clone(), ..Place::with_store(&prepared, &small.unwrap_or_else(std::env::temp_dir).join("store")) }
    }

    /// With a store that hosts share.
    pub(crate) fn at(prepared: &Path) -> Place {
        Place::with_store(prepared, &prepared.join("store"))
    }

    fn with_store(prepared: &Path, store: &Path) -> Place {
        let store = Store::open(store).expect("a store").without_sync();
        let image = Image::options().store(&store).open(prepared.join("image.tar")).expect("an image");
        let report = Sandbox::new().memory(64 * MIB).cpu_time(std::time::Duration::from_secs(1)).check().expect("a report");
        let groups = [Layer::MemoryLimit, Layer::CpuAccount].iter().all(|layer| *report.state(*layer) == LayerState::Works);
        let root = fs::canonicalize(prepared.join("root")).expect("a root");
        Place {
            root,
            data: prepared.join("data"),
            store,
            image,
            small: None,
            groups,
            descriptors: getrlimit(Resource::RLIMIT_NOFILE).expect("a limit").0,
        }
    }

    /// Removes what work has made on purpose, and what calamities have kept it from
    /// removing.
    pub(crate) fn tidy(&self) {
        for image in self.store.images().expect("a list") {
            if Some(image.id()) != self.image.id() {
                self.store.remove(image.id()).expect("removed");
            }
        }
        self.store.prune().expect("pruned");
        for entry in fs::read_dir(&self.data).expect("a directory").flatten() {
            fs::remove_file(entry.path()).expect("removed");
        }
        let count = |directory: &str| fs::read_dir(self.store.path().join(directory)).expect("a directory").count();
        assert_eq!(["layers", "tmp", "trash"].map(count), [1, 0, 0], "layers of images that have been removed, and what isn't finished");
    }
}

/// One over the directory for temporary files, of this process's mount namespace only.
fn small_file_system() -> Option<PathBuf> {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    if !is_root() {
        return None;
    }
    let directory = std::env::temp_dir();
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("private mounts");
    mount(Some("small"), &directory, Some("tmpfs"), MsFlags::empty(), Some("size=24m,mode=755")).expect("a tmpfs");
    Some(directory)
}
