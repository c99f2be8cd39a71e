//! Volumes of a store.
//!
//! ```text
//! STORE/volumes/NAME/      0700
//!   contents/              0777: what sandboxes see
//!   use, writer            see hold.rs
//! STORE/volumes/.PID-TIME  one that is being removed
//! ```

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Volume;
use super::hold::{USE, WRITER, busy, open};
use crate::capability::Capability;
use crate::error::{Error, ErrorKind, Result};
use crate::layer;
use crate::sandbox::Sandbox;
use crate::store::{Store, list, make_directory, unique};

pub(super) const CONTENTS: &str = "contents";
const VOLUMES: &str = "volumes";

impl Store {
    /// The volume of that name in this store, which is made if it's missing. A name has 1
    /// to 64 ASCII letters, digits, `-`, `_` and `.`, and begins with a letter or a digit.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let home = self.home(name)?;
        let _names = self.lock_names()?;
        make_directory(&self.path().join(VOLUMES))?;
        make_directory(&home)?;
        let failed = |error| Error::io("make the volume", &home.to_string_lossy(), error);
        for lock in [USE, WRITER] {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            options.open(home.join(lock)).map_err(failed)?;
        }
        let contents = home.join(CONTENTS);
        if !contents.exists() {
            // Which user a sandbox will have isn't known; on the host nobody else gets here.
            make_directory(&contents)?;
            fs::set_permissions(&contents, Permissions::from_mode(0o777)).map_err(failed)?;
        }
        Ok(Volume::at(home))
    }

    /// The names of all volumes of this store, sorted.
    pub fn volumes(&self) -> Result<Vec<String>> {
        let directory = self.path().join(VOLUMES);
        if !directory.exists() {
            return Ok(Vec::new());
        }
        let mut names = list(&directory)?;
        names.retain(|name| is_name(name));
        names.sort();
        Ok(names)
    }

    /// Removes a volume with all that is in it. One that a live sandbox has is
    /// [`ErrorKind::Busy`]; one that there isn't is [`ErrorKind::NotFound`].
    ///
    /// An ordinary user may not touch what a sandbox's users other than 0 have made:
    /// that's removed in a sandbox, by the host's `rm`.
    pub fn remove_volume(&self, name: &str) -> Result<()> {
        let home = self.home(name)?;
        let removed = {
            let _names = self.lock_names()?;
            if !home.join(USE).exists() {
                let text = format!("cannot remove the volume {name}: there's none in {}", self.path().display());
                return Err(Error::new(ErrorKind::NotFound, text));
            }
            let alone = open(&home.join(USE))?;
            alone.try_lock().map_err(|_| busy(&home, "a live sandbox has it"))?;
            let removed = self.path().join(VOLUMES).join(format!(".{}", unique()));
            fs::rename(&home, &removed).map_err(|e| Error::io("remove", &home.to_string_lossy(), e))?;
            removed
        };
        clear(&removed)
    }

    fn home(&self, name: &str) -> Result<PathBuf> {
        if is_name(name) {
            return Ok(self.path().join(VOLUMES).join(name));
        }
        let rule = "1 to 64 letters, digits, `-`, `_` or `.`, the first one a letter or a digit";
        Err(Error::invalid(format!("{name:?} can't be a volume's name: {rule}")))
    }
}

/// Removes what killed processes have not removed to its end.
pub(crate) fn sweep(store: &Path) -> Result<u64> {
    let directory = store.join(VOLUMES);
    if !directory.exists() {
        return Ok(0);
    }
    let mut removed = 0;
    for name in list(&directory)?.iter().filter(|name| name.starts_with('.')) {
        clear(&directory.join(name))?;
        removed += 1;
    }
    Ok(removed)
}

fn is_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Removes a volume's directory, whoever owns what is in it.
fn clear(home: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (home.parent(), home.file_name()) else { return Ok(()) };
    let parent = File::open(parent).map_err(|e| Error::io("open", &parent.to_string_lossy(), e))?;
    match layer::remove_tree(parent.as_fd(), name) {
        Err(error) if is_denied(&error) && !nix::unistd::geteuid().is_root() => {
            // Root of the user namespace that has the subordinate ids may.
            let may = [Capability::DacOverride, Capability::Fowner];
            let sandbox = Sandbox::new().capabilities(may).bind_rw(home, "/volume");
            let out = sandbox.run(["rm", "-rf", &format!("/volume/{CONTENTS}")])?;
            out.exit_ok().map_err(|e| e.within(&format!("cannot remove {}", home.display())))?;
            layer::remove_tree(parent.as_fd(), name)
        }
        other => other,
    }
}

fn is_denied(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<io::Error>());
    matches!(source.and_then(io::Error::raw_os_error), Some(libc::EACCES | libc::EPERM))
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn names_are_plain() {
        for good in ["a", "cargo-registry", "0.1_x", &"a".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "-x", "a/b", "a b", "a\0", "ä", "a\n", &"a".repeat(65)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
