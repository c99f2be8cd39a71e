//! Trees in and out of a live sandbox as tar streams.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::FileStat;

use super::Instance;
use super::copy::Batch;
use super::inside::inside;
use super::walk::{DEPTH, Found, Walk, special};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{self, IdMap};
use crate::tar::{Entry, Kind, Reader, Segment, Time, Writer, shown};

/// Bytes of files that wait to go in together.
const WAITING: u64 = 8 << 20;

impl Instance {
    /// Unpacks a tar stream into a directory of the sandbox, which is made if it's missing.
    /// As with [`copy_in`](Self::copy_in) modes are kept, but for set-ID bits, everything
    /// belongs to the run's user, files replace what is there, and directories are merged.
    ///
    /// The stream isn't compressed; pax, ustar, GNU and sparse archives are read. Names are
    /// taken as relative to `directory`. `..` in a name, entries below a link that the
    /// archive itself has, devices and FIFOs are refused, and so is what is
    /// larger, in bytes or in files, than the recipe's scratch layer
    /// ([`FileTooLarge`](ErrorKind::FileTooLarge)). What was unpacked until an error
    /// remains. On its way each file is in the host program's memory as a whole.
    ///
    /// ```
    /// use cofferdam::Sandbox;
    ///
    /// let (from, to) = (Sandbox::new().start()?, Sandbox::new().start()?);
    /// from.write("/tmp/d/file", "contents")?;
    /// let mut tar = Vec::new();
    /// from.tar_out("/tmp/d", &mut tar)?;
    /// to.tar_in(&tar[..], "/tmp/copy")?;
    /// assert_eq!(to.read("/tmp/copy/file", 100)?, b"contents");
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn tar_in(&self, tar: impl Read, directory: impl AsRef<Path>) -> Result<()> {
        let directory = inside(directory.as_ref())?;
        let sandbox = self.session.sandbox();
        let mut unpacking = Unpacking {
            directory,
            batch: Batch::new(self),
            links: HashSet::new(),
            bytes: sandbox.writable,
            files: sandbox.writable_files,
            waiting: 0,
        };
        unpacking.batch.directory(directory, 0o755)?;
        let mut tar = Reader::new(BufReader::with_capacity(64 << 10, tar));
        while let Some(entry) = tar.next_entry()? {
            unpacking.entry(&entry, &mut tar)?;
        }
        unpacking.batch.send()
    }

    /// Writes a file or a tree of the sandbox as a tar stream (pax), names below `path` and
    /// sorted, owners as they are inside. What is refused, and the limits, are
    /// [`copy_out`](Self::copy_out)'s. A file that becomes shorter while it's read is an
    /// error; it's read as long as it was at first.
    pub fn tar_out(&self, path: impl AsRef<Path>, out: impl Write) -> Result<()> {
        let path = inside(path.as_ref())?;
        let source = self.open(path, 0)?;
        let mut packing = Packing { walk: Walk::new(self, path), out: Writer::new(out), ids: self.session.id_map() };
        match packing.walk.start(source)? {
            Found::Directory(source, _) => {
                let top = packing.walk.enter(source, path.to_path_buf())?;
                let mut levels = vec![(top, Vec::new())];
                while let Some((level, prefix)) = levels.last_mut() {
                    let Some(name) = level.names.pop() else {
                        levels.pop();
                        continue;
                    };
                    let path = [&prefix[..], name.to_bytes()].concat();
                    let depth = levels.len() - 1;
                    match packing.walk.find(&levels[depth].0, &name, depth)? {
                        Some(Found::Directory(source, stat)) => {
                            let path = [&path[..], b"/"].concat();
                            packing.header(Entry { kind: Kind::Directory, ..packing.entry(path.clone(), &stat) })?;
                            let place = levels[depth].0.at(&name);
                            levels.push((packing.walk.enter(source, place)?, path));
                        }
                        Some(Found::File(source, stat)) => packing.file(path, source, &stat)?,
                        Some(Found::Link(link, stat)) => {
                            let link = link.into_os_string().into_vec();
                            packing.header(Entry { kind: Kind::Symlink, link, ..packing.entry(path, &stat) })?;
                        }
                        None => {}
                    }
                }
            }
            Found::File(source, stat) => {
                let name = path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
                packing.file(name, source, &stat)?;
            }
            Found::Link(..) => return Err(special(path)),
        }
        packing.out.finish().map(drop).map_err(cannot_write)
    }
}

fn cannot_write(error: io::Error) -> Error {
    Error::io("write", "the archive", error)
}

fn refused(name: &[u8], why: &str) -> Error {
    Error::new(ErrorKind::NotAFile, format!("cannot unpack {}: {why}", shown(name)))
}

/// An archive on its way in.
struct Unpacking<'a> {
    directory: &'a Path,
    batch: Batch<'a>,
    /// Symbolic links that it has made.
    links: HashSet<PathBuf>,
    /// What it may still take.
    bytes: u64,
    files: u64,
    /// Bytes in the batch.
    waiting: u64,
}

impl Unpacking<'_> {
    fn entry(&mut self, entry: &Entry, tar: &mut Reader<impl io::BufRead>) -> Result<()> {
        self.files = self.files.checked_sub(1).ok_or_else(|| too_large("files"))?;
        let path = self.place(&entry.path)?;
        let mode = entry.mode & 0o777;
        match entry.kind {
            Kind::Directory => self.batch.directory(&path, mode),
            _ if path == self.directory => Err(refused(&entry.path, "it would replace the directory itself")),
            Kind::File => {
                let contents = self.contents(entry, tar)?;
                self.batch.file(&path, contents.into(), mode)?;
                if self.waiting > WAITING {
                    self.waiting = 0;
                    self.batch.send()?;
                }
                // A file takes the place of a link.
                self.links.remove(&path);
                Ok(())
            }
            Kind::Symlink => {
                self.batch.link(&path, &entry.link)?;
                self.links.insert(path);
                Ok(())
            }
            Kind::HardLink => {
                let target = self.place(&entry.link)?;
                self.batch.hard_link(&path, &target)
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => Err(refused(&entry.path, "it's a FIFO or a device")),
        }
    }

    /// Where a name of the archive's leads.
    fn place(&self, name: &[u8]) -> Result<PathBuf> {
        let limits = layer::Limits { depth: DEPTH, ..layer::Limits::default() };
        let clean = layer::clean(name, &limits).map_err(|why| refused(name, why))?;
        let path = self.directory.join(OsString::from_vec(clean));
        let linked = path.ancestors().skip(1).any(|above| self.links.contains(above));
        if linked { Err(refused(name, "a link of the archive's own is on the way")) } else { Ok(path) }
    }

    /// The data of an entry, in a file without a name.
    fn contents(&mut self, entry: &Entry, tar: &mut Reader<impl io::BufRead>) -> Result<File> {
        self.bytes = self.bytes.checked_sub(entry.size).ok_or_else(|| too_large("bytes"))?;
        self.waiting += entry.size;
        let failed = |e| Error::io("make", "a file in memory", e);
        let memory: File = memfd_create(c"cofferdam-file", MFdFlags::MFD_CLOEXEC).map_err(|e| failed(e.into()))?.into();
        memory.set_len(entry.size).map_err(failed)?;
        let whole = [Segment { offset: 0, length: entry.size }];
        for segment in entry.sparse.as_deref().unwrap_or(&whole) {
            let (mut at, end) = (segment.offset, segment.offset + segment.length);
            while at < end {
                let bytes = tar.data()?;
                if bytes.is_empty() {
                    return Err(refused(&entry.path, "it has less data than it says"));
                }
                let count = usize::try_from(end - at).unwrap_or(usize::MAX).min(bytes.len());
                crate::sys::write::unharmed(|| memory.write_all_at(&bytes[..count], at)).map_err(failed)?;
                tar.consume(count);
                at += count as u64;
            }
        }
        Ok(memory)
    }
}

fn too_large(what: &str) -> Error {
    Error::new(ErrorKind::FileTooLarge, format!("the archive holds more {what} than the recipe's scratch layer"))
}

/// An archive on its way out.
struct Packing<'a, W> {
    walk: Walk<'a>,
    out: Writer<W>,
    /// How ids are called inside.
    ids: IdMap,
}

impl<W: Write> Packing<'_, W> {
    fn entry(&self, path: Vec<u8>, stat: &FileStat) -> Entry {
        let (uid, gid) = self.ids.owner(stat.st_uid, stat.st_gid);
        Entry {
            path,
            mode: stat.st_mode & 0o777,
            uid,
            gid,
            mtime: Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
            ..Entry::default()
        }
    }

    fn header(&mut self, entry: Entry) -> Result<()> {
        self.out.entry(&entry).map_err(cannot_write)
    }

    fn file(&mut self, path: Vec<u8>, mut source: File, stat: &FileStat) -> Result<()> {
        let size = stat.st_size as u64;
        self.walk.take(size)?;
        let entry = Entry { size, ..self.entry(path, stat) };
        self.out.entry(&entry).map_err(cannot_write)?;
        let (mut left, mut buffer) = (size, vec![0; size.min(64 << 10) as usize]);
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match source.read(&mut buffer[..most]) {
                Ok(0) => return Err(Error::new(ErrorKind::Io, format!("cannot copy {}: it became shorter", shown(&entry.path)))),
                Ok(count) => {
                    self.out.data(&buffer[..count]).map_err(cannot_write)?;
                    left -= count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("copy", &shown(&entry.path), error)),
            }
        }
        Ok(())
    }
}
