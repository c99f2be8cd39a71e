//! An image's files in a directory, without a store.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use super::digest::Hasher;
use super::files::Member;
use super::json::refused;
use super::options::{ImageOptions, Opened};
use super::source::Source;
use crate::error::{Error, Result};
use crate::layer::{self, Form, Owners, PackOptions};
use crate::store::stream::{self, Shared};
use crate::store::teller;
use crate::sys;

impl ImageOptions {
    /// Unpacks the files of an image, all its layers merged, into a directory that is
    /// empty or missing. It takes what [`Image::open`](crate::Image::open) takes, needs no
    /// store and keeps nothing but these files: with their owners as root, else as the
    /// caller's.
    ///
    /// # Errors
    /// As [`open`](Self::open). What was unpacked until then is removed.
    pub fn unpack(&self, path: impl AsRef<Path>, directory: impl AsRef<Path>) -> Result<()> {
        let (path, directory) = (path.as_ref(), directory.as_ref());
        self.unpack_any(path, directory).map_err(|error| error.within(&format!("cannot unpack the image {}", path.display())))
    }

    fn unpack_any(&self, path: &Path, directory: &Path) -> Result<()> {
        let failed = |e| Error::io("unpack into", &directory.to_string_lossy(), e);
        let made = match DirBuilder::new().mode(0o755).create(directory) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        if fs::read_dir(directory).map_err(failed)?.next().is_some() {
            return Err(refused(format!("{} isn't empty", directory.display())));
        }
        let root = File::open(directory).map_err(failed)?;
        let unpacked = self.fill(path, directory, &root);
        if unpacked.is_err() {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            for name in entries.map(|entry| entry.file_name()).collect::<Vec<_>>() {
                let _ = layer::remove_tree(root.as_fd(), &name);
            }
            if made {
                let _ = fs::remove_dir(directory);
            }
        }
        unpacked
    }

    fn fill(&self, path: &Path, directory: &Path, root: &File) -> Result<()> {
        let owners = if nix::unistd::geteuid().is_root() { Owners::Real } else { Owners::Single };
        let shared = Shared::new(layer::Options { form: Form::Flat, owners, limits: self.limits.clone() });
        match self.look(path, &|| Ok(directory.to_path_buf()))? {
            Opened::Image(source) => self.layers(&source, root, &shared),
            Opened::Archive(file) => {
                let size = file.metadata().map_err(|e| Error::io("look at", "the archive", e))?.len();
                let none = super::digest::Digest::of(b"");
                let tell = teller(self.progress.as_deref(), 0, 1, &none);
                let member = Member::new(Arc::new(file), 0, size);
                stream::unpack(member, Hasher::sha256(), root.as_fd(), None, &shared, &|read| tell(read, size)).map(drop)
            }
            Opened::Directory => copy(path, root, &shared),
        }
    }

    fn layers(&self, source: &Source, root: &File, shared: &Shared) -> Result<()> {
        for (i, wanted) in source.layers.iter().enumerate() {
            let tell = teller(self.progress.as_deref(), i, source.layers.len(), &wanted.diff_id);
            stream::layer(source, wanted, root.as_fd(), None, shared, &tell)
                .map_err(|error| error.within(&format!("layer {} ({}) can't be used", i + 1, wanted.diff_id)))?;
        }
        Ok(())
    }
}

/// A tree that is one already: through an archive, as anything else.
fn copy(path: &Path, root: &File, shared: &Shared) -> Result<()> {
    let from = File::open(path).map_err(|e| Error::io("open", &path.to_string_lossy(), e))?;
    let (reader, writer) = io::pipe().map_err(|e| Error::io("make", "a pipe", e))?;
    let writer = BufWriter::with_capacity(64 << 10, Pipe(File::from(OwnedFd::from(writer))));
    let options = PackOptions { root_entry: true, ..PackOptions::default() };
    thread::scope(|scope| {
        let packing = scope.spawn(move || layer::pack(from.as_fd(), writer, &options));
        let applied = layer::apply(BufReader::new(reader), root.as_fd(), &shared.options);
        let packed = packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // The one that failed second only saw the pipe's end.
        match packed {
            Err(error) if !is_broken_pipe(&error) => Err(error),
            _ => applied.map(drop),
        }
    })
}

fn is_broken_pipe(error: &Error) -> bool {
    use std::error::Error as _;
    error.source().and_then(|source| source.downcast_ref::<io::Error>()).is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// A pipe whose reader may go without ending our program.
struct Pipe(File);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        sys::write::unharmed(|| self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
