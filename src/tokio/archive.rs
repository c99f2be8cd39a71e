//! Trees in and out of a live sandbox as tar streams, for tasks.
//!
//! A blocking thread of the runtime packs and unpacks; between it and the task is a pipe.

use std::future::poll_fn;
use std::io::{self, Write};
use std::path::Path;
use std::pin::Pin;

use ::tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ::tokio::task::spawn_blocking;

use super::streams::{PipeReader, PipeWriter};
use super::{Instance, joined};
use crate::error::{Error, Result};
use crate::sys;

/// What is copied at once.
const ROOM: usize = 64 * 1024;

impl Instance {
    /// Unpacks a tar stream: [`Instance::tar_in`](crate::Instance::tar_in). If the future is
    /// dropped, the stream ends there; what was unpacked remains.
    pub async fn tar_in(&self, tar: impl AsyncRead + Unpin, directory: impl AsRef<Path>) -> Result<()> {
        let (reader, writer) = pipe()?;
        let (inner, directory) = (self.inner.clone(), directory.as_ref().to_owned());
        let unpacked = spawn_blocking(move || inner.tar_in(reader, directory));
        let fed = copy(tar, PipeWriter::new(writer)?).await;
        // Why it read no further is what matters.
        joined(unpacked.await)?;
        match fed {
            Err(Failed::Reading(error)) => Err(Error::io("read", "the archive", error)),
            // It had its end before the stream had.
            Err(Failed::Writing(_)) | Ok(()) => Ok(()),
        }
    }

    /// Packs a directory or a file as a tar stream:
    /// [`Instance::tar_out`](crate::Instance::tar_out). The stream isn't shut down at its end.
    pub async fn tar_out(&self, path: impl AsRef<Path>, out: impl AsyncWrite + Unpin) -> Result<()> {
        let (reader, writer) = pipe()?;
        let (inner, path) = (self.inner.clone(), path.as_ref().to_owned());
        let packed = spawn_blocking(move || inner.tar_out(path, Unharmed(writer)));
        let taken = copy(PipeReader::new(reader)?, out).await;
        let packed = joined(packed.await);
        match taken {
            // Then the packing failed too, for want of a reader.
            Err(Failed::Writing(error)) => Err(Error::io("write", "the archive", error)),
            Err(Failed::Reading(error)) => Err(Error::io("read", "the archive", error)),
            Ok(()) => packed,
        }
    }
}

fn pipe() -> Result<(io::PipeReader, io::PipeWriter)> {
    io::pipe().map_err(|e| Error::io("make", "a pipe", e))
}

/// A pipe whose reader may go without harm to the program.
struct Unharmed(io::PipeWriter);

impl Write for Unharmed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        sys::write::unharmed(|| self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

/// To the end of the first, which is flushed into the second; both are dropped then.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> std::result::Result<(), Failed> {
    let mut bytes = vec![0; ROOM];
    loop {
        let mut buffer = ReadBuf::new(&mut bytes);
        poll_fn(|cx| Pin::new(&mut from).poll_read(cx, &mut buffer)).await.map_err(Failed::Reading)?;
        let mut rest = buffer.filled();
        if rest.is_empty() {
            return poll_fn(|cx| Pin::new(&mut to).poll_flush(cx)).await.map_err(Failed::Writing);
        }
        while !rest.is_empty() {
            match poll_fn(|cx| Pin::new(&mut to).poll_write(cx, rest)).await.map_err(Failed::Writing)? {
                0 => return Err(Failed::Writing(io::ErrorKind::WriteZero.into())),
                count => rest = &rest[count..],
            }
        }
    }
}
