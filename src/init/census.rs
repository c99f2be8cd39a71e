//! What set-up has made in a sandbox, and whether it's still so.
//!
//! Everything that a command can leave in files lies in the file systems that were made for
//! its sandbox: the scratch, each tmpfs of the recipe, devpts. At the start each inode
//! of these is taken down, with a descriptor that can't be led elsewhere. A name that is made,
//! moved or removed changes its directory's ctime, and whatever changes an inode changes its
//! own; no call sets one. So if every record is bit for bit what it was, from the roots down,
//! there's nothing new, nothing is missing, and nothing has been changed.
//!
//! But for two things. The clock of ctime stands still for some milliseconds at a time, so a
//! command may only start when it shows more than the latest record ([`Census::is_ripe`]).
//! And a page of tmpfs that was mapped before it's first written is written without the
//! kernel's notice (shmem has no page_mkwrite), behind the file's end too. A file that
//! nobody may write can't be mapped so without a chmod(2); of the others the pages
//! themselves are compared, which bounds how many bytes they may have.
//!
//! A terminal leaves its directory's times alone: there the names are looked at.

use crate::arch::nr;
use crate::message::Report;
use crate::sys::*;

const INODES: usize = 96;
const ROOTS: usize = 24;
const FILES: usize = 32;
/// Words of all files that may be written.
const WORDS: usize = 64 * 1024 / 8;

const PAGE: usize = 4096;
const DIRECTORY: u64 = 0o040000;
const REGULAR: u64 = 0o100000;

/// What is known of the file systems, and of PID 1 itself.
pub struct Census {
    inodes: [Inode; INODES],
    count: usize,
    roots: [Root; ROOTS],
    rooted: usize,
    files: [Contents; FILES],
    filed: usize,
    copies: [u64; WORDS],
    copied: usize,
    /// The latest ctime, nanoseconds.
    latest: u64,
    /// What keeps it from being complete, or 0.
    problem: u32,
    own: Own,
}

/// struct statx up to the device numbers, in words: what of it tells of a change is bit for
/// bit the same as long as there's none.
type Record = [u64; 18];

#[derive(Clone, Copy)]
struct Inode {
    fd: i32,
    record: Record,
}

#[derive(Clone, Copy)]
struct Root {
    fd: i32,
    /// Blocks and inodes that are free: struct statfs from `f_bfree` on.
    free: [u64; 4],
    /// A descriptor that lists its names, or 0, and how many there are.
    listing: i32,
    names: usize,
}

/// A file that may be written: its pages as they are, and as they were.
#[derive(Clone, Copy)]
struct Contents {
    mapped: usize,
    copy: usize,
    words: usize,
}

/// What commands inherit of PID 1, and what can be sent to it. A process with its ids may
/// change the most of it from inside; the filters refuse that, and this is what it rests on.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Own {
    /// struct sched_attr: policy, nice value, priority, clamps.
    schedule: [u64; 7],
    affinity: [u64; 128],
    io: usize,
    limits: [[u64; 2]; 16],
    /// Signals that wait, without SIGCHLD.
    pending: u64,
}

impl Own {
    const NONE: Own = Own { schedule: [0; 7], affinity: [0; 128], io: 0, limits: [[0; 2]; 16], pending: 0 };

    fn look() -> Result<Own> {
        const IOPRIO_WHO_PROCESS: usize = 1;
        let mut own = Own::NONE;
        call(nr::SCHED_GETATTR, [0, own.schedule.as_mut_ptr() as usize, size_of_val(&own.schedule), 0, 0, 0])?;
        call(nr::SCHED_GETAFFINITY, [0, size_of_val(&own.affinity), own.affinity.as_mut_ptr() as usize, 0, 0, 0])?;
        own.io = call(nr::IOPRIO_GET, [IOPRIO_WHO_PROCESS, 0, 0, 0, 0, 0])?;
        for (resource, limit) in own.limits.iter_mut().enumerate() {
            call(nr::PRLIMIT64, [0, resource, 0, limit.as_mut_ptr() as usize, 0, 0])?;
        }
        call(nr::RT_SIGPENDING, [&raw mut own.pending as usize, 8, 0, 0, 0, 0])?;
        own.pending &= !(1 << (SIGCHLD - 1));
        Ok(own)
    }
}

/// Big, and of no use in most sandboxes: as long as nobody writes to it it costs nothing.
static mut CENSUS: Census = Census {
    inodes: [Inode { fd: 0, record: [0; 18] }; INODES],
    count: 0,
    roots: [Root { fd: 0, free: [0; 4], listing: 0, names: 0 }; ROOTS],
    rooted: 0,
    files: [Contents { mapped: 0, copy: 0, words: 0 }; FILES],
    filed: 0,
    copies: [0; WORDS],
    copied: 0,
    latest: 0,
    problem: 0,
    own: Own::NONE,
};

/// See [`crate::wire::op::CENSUS`]. What can't be taken down is no failure of the set-up: the
/// sandbox just can't serve again.
pub fn take(root: i32, names: bool) -> Result<usize> {
    let census = Census::get();
    if let Err(problem) = census.below(root, names)
        && census.problem == 0
    {
        census.problem = problem;
    }
    Ok(0)
}

impl Census {
    /// The only one.
    pub fn get() -> &'static mut Census {
        let place = &raw mut CENSUS;
        // SAFETY: this program has no threads, and no caller keeps the reference over a
        // call of another function that takes it.
        unsafe { &mut *place }
    }

    fn below(&mut self, root: i32, names: bool) -> core::result::Result<(), u32> {
        let first = self.count;
        let fd = open(root, c".".as_ptr().cast(), O_PATH | O_DIRECTORY).map_err(|_| Report::UNSEEN)?;
        self.add(fd, root, c".".as_ptr().cast())?;
        let mut listing = 0;
        if names {
            listing = open(fd, c".".as_ptr().cast(), O_RDONLY | O_DIRECTORY).map_err(|_| Report::UNSEEN)?;
        }
        let place = self.roots.get_mut(self.rooted).ok_or(Report::TOO_MANY_FILES)?;
        *place = Root { fd, free: [0; 4], listing, names: 0 };
        self.rooted += 1;
        let mut at = first;
        while at < self.count {
            if self.inodes[at].mode() & 0o170000 == DIRECTORY {
                self.enter(at)?;
            }
            at += 1;
        }
        Ok(())
    }

    /// Takes down what is in a directory.
    fn enter(&mut self, at: usize) -> core::result::Result<(), u32> {
        let Inode { fd, .. } = self.inodes[at];
        let directory = match open(fd, c".".as_ptr().cast(), O_RDONLY | O_DIRECTORY) {
            // The kernel's own, in an overlay's working directory: nobody may enter it.
            Err(EACCES) if self.inodes[at].mode() & 0o777 == 0 => return Ok(()),
            other => other.map_err(|_| Report::UNSEEN)?,
        };
        let mut problem = 0;
        let walked = each_name(directory, &mut [0u64; 256], |name| {
            let opened = open(directory, name.as_ptr(), O_PATH | O_NOFOLLOW)?;
            self.add(opened, directory, name.as_ptr()).map_err(|found| {
                problem = found;
                EINVAL
            })
        });
        close(directory);
        walked.map_err(|_| if problem == 0 { Report::UNSEEN } else { problem })
    }

    /// Takes down an inode, which is called `name` in a directory.
    fn add(&mut self, fd: i32, directory: i32, name: *const u8) -> core::result::Result<(), u32> {
        let place = self.inodes.get_mut(self.count).ok_or(Report::TOO_MANY_FILES)?;
        *place = Inode { fd, record: record(fd).map_err(|_| Report::UNSEEN)? };
        let inode = *place;
        self.count += 1;
        let (kind, may_be_written) = (inode.mode() & 0o170000, inode.mode() & 0o222 != 0);
        if kind == REGULAR && may_be_written && inode.size() > 0 { self.copy(&inode, directory, name) } else { Ok(()) }
    }

    fn copy(&mut self, inode: &Inode, directory: i32, name: *const u8) -> core::result::Result<(), u32> {
        const MAP_SHARED: usize = 1;
        const PROT_READ: usize = 1;
        const MADV_DONTFORK: usize = 10;
        let bytes = (inode.size() as usize).next_multiple_of(PAGE);
        let words = bytes / 8;
        if self.filed == FILES || words > WORDS - self.copied {
            return Err(Report::TOO_LONG_FILES);
        }
        let file = open(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK).map_err(|_| Report::UNSEEN)?;
        let mapped = call(nr::MMAP, [0, bytes, PROT_READ, MAP_SHARED, file as usize, 0]);
        close(file);
        let mapped = mapped.map_err(|_| Report::UNSEEN)?;
        let _ = call(nr::MADVISE, [mapped, bytes, MADV_DONTFORK, 0, 0, 0]);
        let contents = Contents { mapped, copy: self.copied, words };
        self.copies[self.copied..][..words].copy_from_slice(contents.now());
        self.files[self.filed] = contents;
        self.filed += 1;
        self.copied += words;
        Ok(())
    }

    /// Everything has been taken down: from here on it has to stay as it is. What the sandbox
    /// is then, as [`Report::detail`] has it.
    pub fn seal(&mut self) -> u32 {
        if self.problem == 0 && self.record_all().is_err() {
            self.problem = Report::UNSEEN;
        }
        if self.problem == 0 { Report::UNTOUCHED } else { self.problem }
    }

    fn record_all(&mut self) -> Result<()> {
        for inode in &mut self.inodes[..self.count] {
            inode.record = record(inode.fd)?;
            self.latest = self.latest.max(inode.changed());
        }
        for root in &mut self.roots[..self.rooted] {
            (root.free, root.names) = (free(root.fd)?, names(root.listing)?);
        }
        self.own = Own::look()?;
        Ok(())
    }

    /// Whatever happens from now on gets another ctime than what has been taken down.
    pub fn is_ripe(&self) -> bool {
        const CLOCK_REALTIME_COARSE: usize = 5;
        clock(CLOCK_REALTIME_COARSE) > self.latest
    }

    /// Nothing has changed. Nobody else is in the sandbox.
    pub fn holds(&self) -> bool {
        let inodes = &self.inodes[..self.count];
        // Sizes among it: the pages are there.
        inodes.iter().all(|inode| record(inode.fd) == Ok(inode.record))
            && self.roots[..self.rooted].iter().all(|root| free(root.fd) == Ok(root.free) && names(root.listing) == Ok(root.names))
            && self.files[..self.filed].iter().all(|file| same(file.now(), &self.copies[file.copy..][..file.words]))
            && Own::look() == Ok(self.own)
    }

    /// The descriptors that PID 1 keeps for it.
    pub fn kept(&self, keep: &mut [i32]) -> usize {
        let listings = self.roots[..self.rooted].iter().map(|root| root.listing).filter(|fd| *fd > 0);
        let fds = self.inodes[..self.count].iter().map(|inode| inode.fd).chain(listings);
        keep.iter_mut().zip(fds).map(|(place, fd)| *place = fd).count()
    }

    /// The most of them.
    pub const KEPT: usize = INODES + ROOTS;
}

impl Inode {
    // struct statx: mask, block size (u32 each), attributes, links, user, group (u32 each),
    // mode (u16), number, size, blocks, attributes' mask, and 16 bytes for each time.
    fn mode(&self) -> u64 {
        self.record[3] >> 32 & 0xffff
    }

    fn size(&self) -> u64 {
        self.record[5]
    }

    /// Its ctime, nanoseconds: the last moment for which it stands. Some file systems count
    /// seconds only (mqueue does).
    fn changed(&self) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        let part = match self.record[13] & 0xffff_ffff {
            0 => SECOND - 1,
            part => part,
        };
        self.record[12].wrapping_mul(SECOND).wrapping_add(part)
    }
}

impl Contents {
    /// May only be looked at as long as the file has the size that it had.
    fn now(&self) -> &[u64] {
        // SAFETY: the mapping has so many words and is never taken away; the file's size has
        // just been compared, and nobody else lives who could change it.
        unsafe { core::slice::from_raw_parts(self.mapped as *const u64, self.words) }
    }
}

/// Not as bytes, which would take eight times as long.
fn same(a: &[u64], b: &[u64]) -> bool {
    a.iter().zip(b).fold(0, |other, (a, b)| other | (a ^ b)) == 0
}

/// On the same file system, without following a link.
fn open(directory: i32, name: *const u8, flags: usize) -> Result<i32> {
    // RESOLVE_NO_XDEV, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH: openat2(2)
    let how = [(flags | O_CLOEXEC) as u64, 0, 0x01 | 0x04 | 0x08];
    call(nr::OPENAT2, [directory as usize, name as usize, how.as_ptr() as usize, size_of_val(&how), 0, 0]).map(|fd| fd as i32)
}

fn record(fd: i32) -> Result<Record> {
    const AT_EMPTY_PATH: usize = 0x1000;
    const STATX_BASIC_STATS: usize = 0x7ff;
    let mut buffer = [0u64; 32];
    call(nr::STATX, [fd as usize, c"".as_ptr() as usize, AT_EMPTY_PATH, STATX_BASIC_STATS, buffer.as_mut_ptr() as usize, 0])?;
    let mut record = [0; 18];
    record.copy_from_slice(&buffer[..18]);
    Ok(record)
}

fn free(fd: i32) -> Result<[u64; 4]> {
    let mut buffer = [0u64; 15];
    call(nr::FSTATFS, [fd as usize, buffer.as_mut_ptr() as usize, 0, 0, 0, 0])?;
    // struct statfs: type, bsize, blocks, bfree, bavail, files, ffree, ...
    Ok([buffer[3], buffer[4], buffer[5], buffer[6]])
}

/// How many names a directory has.
fn names(listing: i32) -> Result<usize> {
    let mut count = 0;
    if listing > 0 {
        call(nr::LSEEK, [listing as usize, 0, 0, 0, 0, 0])?;
        each_name(listing, &mut [0u64; 64], |_| {
            count += 1;
            Ok(())
        })?;
    }
    Ok(count)
}
