//! Files in and out of a live sandbox, by the runtime's blocking threads.

use std::path::Path;

use super::{Instance, blocking};
use crate::error::Result;
use crate::instance::Entry;

/// Files, as with [`cofferdam::Instance`](crate::Instance). As everywhere in tokio it's
/// blocking threads of the runtime that work on them: what has begun is done, even if the
/// future is dropped.
impl Instance {
    /// [`Instance::write`](crate::Instance::write).
    pub async fn write(&self, path: impl AsRef<Path>, contents: impl Into<Vec<u8>>) -> Result<()> {
        self.write_mode(path, contents, 0o644).await
    }

    /// [`Instance::write_mode`](crate::Instance::write_mode).
    pub async fn write_mode(&self, path: impl AsRef<Path>, contents: impl Into<Vec<u8>>, mode: u32) -> Result<()> {
        let (path, contents) = (path.as_ref().to_owned(), contents.into());
        self.with(move |instance| instance.write_mode(path, contents, mode)).await
    }

    /// [`Instance::read`](crate::Instance::read).
    pub async fn read(&self, path: impl AsRef<Path>, most: u64) -> Result<Vec<u8>> {
        let path = path.as_ref().to_owned();
        self.with(move |instance| instance.read(path, most)).await
    }

    /// [`Instance::list`](crate::Instance::list).
    pub async fn list(&self, path: impl AsRef<Path>) -> Result<Vec<Entry>> {
        let path = path.as_ref().to_owned();
        self.with(move |instance| instance.list(path)).await
    }

    /// [`Instance::copy_in`](crate::Instance::copy_in).
    pub async fn copy_in(&self, host: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let (host, path) = (host.as_ref().to_owned(), path.as_ref().to_owned());
        self.with(move |instance| instance.copy_in(host, path)).await
    }

    /// [`Instance::copy_out`](crate::Instance::copy_out).
    pub async fn copy_out(&self, path: impl AsRef<Path>, host: impl AsRef<Path>) -> Result<()> {
        let (path, host) = (path.as_ref().to_owned(), host.as_ref().to_owned());
        self.with(move |instance| instance.copy_out(path, host)).await
    }

    async fn with<T: Send + 'static>(&self, work: impl FnOnce(&crate::Instance) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await
    }
}
