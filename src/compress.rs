//! Streams that are compressed, by what they begin with.
use std::io::{BufRead, Read};

use crate::error::{Error, Result};

/// What decompressing may cost. A stream that wants more is an error while it's read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Output bytes for each input byte, beyond the first `slack` bytes of output. 100.
    pub(crate) ratio: u64,
    /// 64 MiB.
    pub(crate) slack: u64,
    /// The largest window of a zstd frame, in bytes. 32 MiB.
    pub(crate) zstd_window: u64,
    /// Memory for xz. 64 MiB.
    pub(crate) xz_memory: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { ratio: 100, slack: 64 << 20, zstd_window: 32 << 20, xz_memory: 64 << 20 }
    }
}

/// How a stream was compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
}

/// What `inner` holds, decompressed; all of it is checked, to its end.
pub(crate) fn reader<'a>(_inner: impl BufRead + Send + 'a, _bounds: &Bounds) -> Result<(Compression, Box<dyn Read + Send + 'a>)> {
    Err(Error::unsupported("not built yet"))
}

/// Reads `source` on a thread of its own, a bounded stretch ahead of `consume`.
pub(crate) fn ahead<T>(source: impl Read + Send, consume: impl FnOnce(&mut dyn BufRead) -> T) -> Result<T> {
    Ok(consume(&mut std::io::BufReader::new(source)))
}
