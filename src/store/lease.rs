//! Leases: what is in use although no image of the store needs it any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::record::{list, unique};
use crate::error::{Error, Result};

/// Keeps a chain and its layers in the store. Every [`Image`](crate::Image) of a store
/// has one, and with it every sandbox on that image; a flock tells that its process is
/// alive.
#[derive(Debug)]
pub(crate) struct Lease {
    path: PathBuf,
    _file: File,
    owner: u32,
}

impl Lease {
    /// For somebody who has the shared lock, so that the collector sees all of it or nothing.
    pub(super) fn take(store: &Path, chain: &str) -> Result<Lease> {
        let path = store.join("leases").join(unique());
        let attempt = || -> io::Result<File> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.lock()?;
            file.write_all(chain.as_bytes())?;
            Ok(file)
        };
        match attempt() {
            Ok(file) => Ok(Lease { path, _file: file, owner: std::process::id() }),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(Error::io("make the lease", &path.to_string_lossy(), error))
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A forked child's copy must not end its parent's.
        if self.owner == std::process::id() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The chains that live leases name; dead leases are removed. For the collector.
pub(super) fn live(store: &Path) -> Result<Vec<String>> {
    let mut chains = Vec::new();
    for name in list(&store.join("leases"))? {
        let path = store.join("leases").join(name);
        let Ok(mut file) = File::open(&path) else { continue };
        if file.try_lock().is_ok() {
            let _ = fs::remove_file(&path);
            continue;
        }
        let mut chain = String::new();
        file.read_to_string(&mut chain).map_err(|e| Error::io("read", &path.to_string_lossy(), e))?;
        chains.push(chain);
    }
    Ok(chains)
}
