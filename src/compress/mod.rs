//! Compressed streams, told by what they begin with.
//!
//! What an image says about its own compression is often wrong, so the first bytes
//! decide. A stream is read to its end and all of its checks are made: CRC and
//! length of each gzip member, checksums of zstd frames and xz blocks. One that is cut
//! short, or goes on with something else, is an error, never a short read.
//!
//! No other program is started for this: an `xz` helper that ran as root has
//! been a hole before (CVE-2014-9357).

mod ahead;
mod gzip;

use std::io::{self, BufRead, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};

pub(crate) use ahead::ahead;

/// What decompressing may cost. A stream that wants more fails while it's read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Bytes of output for each byte of input, after the first `slack`. 100: text
    /// reaches 20, zeros 1,000 with gzip and 20,000 with zstd.
    pub(crate) ratio: u64,
    /// Bytes of output that any stream may have. 64 MiB.
    pub(crate) slack: u64,
    /// The largest window of a zstd frame, in bytes; it's memory. 32 MiB; `zstd -19`
    /// takes 8, `--long` takes 128.
    pub(crate) zstd_window: u64,
    /// Memory for xz, in bytes: by default enough for a dictionary of 64 MiB, as `xz -9`
    /// makes it.
    pub(crate) xz_memory: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { ratio: 100, slack: 64 << 20, zstd_window: 32 << 20, xz_memory: 66 << 20 }
    }
}

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
}

impl Compression {
    /// By the first bytes of a stream; fewer than six only if it has no more.
    fn of(start: &[u8]) -> Result<Compression> {
        Ok(match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // A frame, or one to be skipped, with which some writers begin.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => {
                return Err(Error::new(ErrorKind::Image, "cannot read the archive: it's compressed by bzip2 (gzip, zstd and xz are read)"));
            }
            _ => Compression::None,
        })
    }
}

/// What `inner` holds, decompressed. Errors of the stream come out of
/// [`read`](Read::read); [`Error::from_stream`] makes ours of them again.
pub(crate) fn reader<'a>(mut inner: impl BufRead + Send + 'a, bounds: &Bounds) -> Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let failed = |error| Error::from_stream(error, 0);
    let mut start = Vec::new();
    (&mut inner).take(6).read_to_end(&mut start).map_err(failed)?;
    let compression = Compression::of(&start)?;
    let count = Arc::new(AtomicU64::new(0));
    let whole = Counted { inner: Cursor::new(start).chain(inner), count: Arc::clone(&count) };
    let decoder: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => return Ok((compression, Box::new(whole))),
        Compression::Gzip => Box::new(gzip::Members::new(whole)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole).map_err(failed)?;
            // The largest power of two that isn't larger; zstd's own least is 2^10.
            decoder.window_log_max(bounds.zstd_window.max(1 << 10).ilog2().min(31)).map_err(failed)?;
            Box::new(decoder)
        }
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(bounds.xz_memory, liblzma::stream::CONCATENATED);
            Box::new(liblzma::bufread::XzDecoder::new_stream(whole, stream.map_err(|error| failed(error.into()))?))
        }
    };
    Ok((compression, Box::new(Bounded { decoder, compression, input: count, output: 0, bounds: bounds.clone() })))
}

/// Counts what a decoder takes.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        self.inner.consume(count);
    }
}

/// A decoder that may not make too much out of too little.
struct Bounded<'a> {
    decoder: Box<dyn Read + Send + 'a>,
    compression: Compression,
    input: Arc<AtomicU64>,
    output: u64,
    bounds: Bounds,
}

impl Read for Bounded<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(into).map_err(|error| self.explained(error))?;
        self.output += count as u64;
        let allowed = self.input.load(Ordering::Relaxed).saturating_mul(self.bounds.ratio).saturating_add(self.bounds.slack);
        if self.output > allowed {
            let Bounds { ratio, slack, .. } = self.bounds;
            let text = format!(
                "cannot decompress the archive: it grows to more than {ratio} times its size, and {} MiB (allow a larger ratio if it's known to be good)",
                slack >> 20
            );
            return Err(Error::new(ErrorKind::Image, text).into());
        }
        Ok(count)
    }
}

impl Bounded<'_> {
    /// What a decoder says, in our words and with what can be done.
    fn explained(&self, error: io::Error) -> io::Error {
        if error.raw_os_error().is_some() || error.kind() == io::ErrorKind::Interrupted {
            return error;
        }
        let text = error.to_string();
        let Bounds { zstd_window, xz_memory, .. } = self.bounds;
        let (name, window) = match self.compression {
            Compression::Gzip => ("gzip", false),
            Compression::Zstd => ("zstd", text.contains("too much memory")),
            Compression::Xz => ("xz", text.contains("emory")),
            Compression::None => ("", false),
        };
        let text = match (self.compression, window) {
            (Compression::Zstd, true) => {
                format!("cannot decompress the archive: its zstd window is larger than {} MiB (allow a larger one)", zstd_window >> 20)
            }
            (Compression::Xz, true) => {
                format!("cannot decompress the archive: xz needs more than {} MiB of memory for it (allow more)", xz_memory >> 20)
            }
            _ if error.kind() == io::ErrorKind::UnexpectedEof => format!("cannot decompress the archive: its {name} stream is cut short"),
            _ => format!("cannot decompress the archive: its {name} stream is corrupt: {text}"),
        };
        Error::new(ErrorKind::Image, text).into()
    }
}

#[cfg(test)]
mod tests;
