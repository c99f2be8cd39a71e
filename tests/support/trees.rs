//! Archives made by Python's tarfile, and what a tree looks like.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cofferdam::internals::layers::{Unpack, Unpacked, unpack};

use super::{fresh_dir, is_root};

/// Helpers for scripts that write an archive: `d` a directory, `f` a file, `s` a
/// symbolic link, `h` a hard link, `n` a device or FIFO, `raw` a header.
const ARCHIVE: &str = r#"
import io, sys, tarfile
from tarfile import BLKTYPE, CHRTYPE, DIRTYPE, FIFOTYPE, LNKTYPE, REGTYPE, SYMTYPE, TarInfo
out = tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT)
def put(name, kind, data=b"", link="", mode=0o644, uid=0, gid=0, mtime=1600000000, pax=None, device=(0, 0), format=None, size=None):
    t = TarInfo(name)
    t.type, t.linkname, t.mode, t.uid, t.gid, t.mtime = kind, link, mode, uid, gid, mtime
    t.devmajor, t.devminor = device
    t.size = len(data) if size is None else size
    t.pax_headers = pax or {}
    out.addfile(t, io.BytesIO(data) if data else None)
def d(name, **k): put(name, DIRTYPE, mode=k.pop("mode", 0o755), **k)
def f(name, data=b"", **k): put(name, REGTYPE, data, **k)
def s(name, link, **k): put(name, SYMTYPE, link=link, mode=0o777, **k)
def h(name, link, **k): put(name, LNKTYPE, link=link, **k)
def n(name, kind, major=0, minor=0, **k): put(name, kind, device=(major, minor), **k)
def wh(name): f(name)
"#;

/// The archive that a script writes.
#[track_caller]
pub fn archive(script: &str) -> Vec<u8> {
    python(&format!("{ARCHIVE}\n{script}\nout.close()"), &[])
}

/// What a Python script prints.
#[track_caller]
pub fn python(script: &str, arguments: &[&Path]) -> Vec<u8> {
    let mut command = Command::new("python3");
    let mut child = command.arg("-").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    let script = script.as_bytes().to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&script));
    let output = child.wait_with_output().expect("python3 ends");
    writer.join().expect("it wrote").expect("it was read");
    assert!(output.status.success(), "the script failed");
    output.stdout
}

/// The script that prints a line for each thing in a tree: name, kind, mode, owner,
/// size, time, device, target or contents, the first of its names, attributes.
pub const FACTS: &str = r#"
import hashlib, os, stat, sys
root = os.fsencode(sys.argv[1])
first, lines = {}, []
def fact(path, name):
    st = os.lstat(path)
    kind = stat.S_IFMT(st.st_mode)
    what = ""
    if kind == stat.S_IFLNK: what = repr(os.readlink(path))
    if kind == stat.S_IFREG: what = "%d %s" % (st.st_size, hashlib.sha1(open(path, "rb").read() if st.st_size < 1 << 28 else b"").hexdigest())
    group = first.setdefault((st.st_dev, st.st_ino), name) if kind != stat.S_IFDIR else name
    try: names = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError: names = []
    names = [n for n in names if n != "security.selinux" and not n.startswith("system.")]
    attributes = [(n, os.getxattr(path, n, follow_symlinks=False)) for n in names]
    mode = stat.S_IMODE(st.st_mode) if kind != stat.S_IFLNK else 0o777
    device = st.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    lines.append("%r %o %o %d:%d %d %x %s %r %r" % (name, kind, mode, st.st_uid, st.st_gid, st.st_mtime_ns, device, what, group, attributes))
def walk(path, name):
    for entry in sorted(os.listdir(path)):
        below, at = os.path.join(path, entry), (name + b"/" + entry if name else entry)
        fact(below, at)
        if stat.S_ISDIR(os.lstat(below).st_mode): walk(below, at)
if len(sys.argv) > 2: fact(root, b"")
walk(root, b"")
print("\n".join(lines))
"#;

/// What's in a tree, a line each.
#[track_caller]
pub fn facts(root: &Path) -> String {
    String::from_utf8(python(FACTS, &[root])).expect("ASCII")
}

/// Names in a tree, with a slash after directories.
pub fn names(root: &Path) -> Vec<String> {
    fn walk(directory: &Path, name: &str, into: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry")).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let is_dir = entry.file_type().expect("a kind").is_dir();
            let name = format!("{name}{}{}", entry.file_name().to_string_lossy(), if is_dir { "/" } else { "" });
            into.push(name.clone());
            if is_dir {
                walk(&entry.path(), &name, into);
            }
        }
    }
    let mut into = Vec::new();
    walk(root, "", &mut into);
    into
}

/// As whoever runs the test can have it.
pub fn flat() -> Unpack {
    Unpack { single: !is_root(), ..Unpack::default() }
}

pub fn overlay() -> Unpack {
    Unpack { overlay: Some(!is_root()), ..flat() }
}

pub fn apply(archive: &[u8], root: &Path, how: &Unpack) -> cofferdam::Result<Unpacked> {
    let root = File::open(root).expect("a directory");
    unpack(io::BufReader::new(archive), root.as_fd(), how)
}

/// Unpacks archives on top of each other into a fresh directory.
#[track_caller]
pub fn merged(archives: &[Vec<u8>]) -> PathBuf {
    let root = fresh_dir("flat-");
    for archive in archives {
        apply(archive, &root, &flat()).expect("a layer");
    }
    root
}
