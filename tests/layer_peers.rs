//! Layers beside other programs: GNU tar, umoci and overlayfs make the same of an archive,
//! and read what we make of a tree.

mod support;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use cofferdam::internals::layers::{changes, pack};
use support::gnu_tar::{Comparison, compare};
use support::trees::{FACTS, apply, archive, facts, flat, merged, overlay, python};
use support::{Need, fresh_dir, is_root};

fn main() {
    const PYTHON: Need = Need::Tool("python3");
    support::main(vec![
        test!(gnu_tar_unpacks_the_same, PYTHON),
        test!(damaged_archives_that_are_taken_mean_the_same_to_gnu_tar),
        test!(gnu_tar_unpacks_roots_files_the_same, root, PYTHON, Need::Tool("setcap")),
        test!(a_debian_root_is_unpacked_as_by_gnu_tar, root, PYTHON, Need::DebianRoot),
        test!(umoci_unpacks_the_same, root, PYTHON, Need::Tool("umoci")),
        test!(overlayfs_shows_what_a_flat_tree_has, root, PYTHON),
        test!(a_packed_upper_layer_is_what_overlayfs_showed, root, PYTHON),
        test!(a_tree_survives_packing, PYTHON),
        test!(equal_trees_are_equal_archives, PYTHON),
        test!(ids_are_mapped_when_packing, root),
    ]);
}

/// A tree with one of everything that its user can make.
fn sample() -> PathBuf {
    let root = fresh_dir("sample-");
    fs::create_dir_all(root.join("dir/sub")).expect("directories");
    fs::write(root.join("dir/file"), "data").expect("a file");
    fs::write(root.join("dir/empty"), "").expect("a file");
    fs::hard_link(root.join("dir/file"), root.join("hard")).expect("a link");
    symlink("dir/file", root.join("link")).expect("a link");
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not \xff utf-8\n")), "x").expect("a file");
    let long = root.join("n".repeat(200)).join("m".repeat(200));
    fs::create_dir_all(&long).expect("directories");
    fs::write(long.join("f"), "deep").expect("a file");
    symlink("t".repeat(300), root.join("long link")).expect("a link");
    let sparse = File::create(root.join("sparse")).expect("a file");
    sparse.set_len(40 << 20).expect("a hole");
    use std::os::unix::fs::FileExt;
    for at in 0..30 {
        sparse.write_all_at(b"data", at << 20).expect("data");
    }
    fs::set_permissions(root.join("dir/sub"), fs::Permissions::from_mode(0o1750)).expect("a mode");
    fs::set_permissions(root.join("dir/file"), fs::Permissions::from_mode(0o4711)).expect("a mode");
    let old = UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    File::open(root.join("dir/empty")).expect("a file").set_modified(old).expect("a time");
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let script = "import os, sys\nos.setxattr(sys.argv[1] + '/dir/empty', 'user.a=b%', b'x\\n\\0=')\nos.setxattr(sys.argv[1] + '/dir', 'user.empty', b'')";
    python(script, &[&root]);
    root
}

fn tar(arguments: &[&str], root: &Path) -> Vec<u8> {
    let output = Command::new("tar").args(arguments).args(["--sort=name", "-cf", "-", "-C"]).arg(root).arg(".").output().expect("tar runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What GNU tar makes of an archive.
fn untar(bytes: &[u8]) -> PathBuf {
    let root = fresh_dir("tar-");
    let file = fresh_dir("archive-").join("a.tar");
    fs::write(&file, bytes).expect("a file");
    let mut command = Command::new("tar");
    command.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"]).arg(&file).arg("-C").arg(&root);
    assert!(command.status().expect("tar runs").success());
    root
}

fn gnu_tar_unpacks_the_same() {
    let sample = sample();
    let formats: &[&[&str]] = &[
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=oldgnu", "--sparse"],
        &["--format=posix"],
        &["--format=posix", "--xattrs"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0", "--xattrs"],
        &["--format=gnu", "--label=label"],
    ];
    for format in formats {
        let bytes = tar(format, &sample);
        let ours = merged(std::slice::from_ref(&bytes));
        assert_eq!(facts(&ours), facts(&untar(&bytes)), "{format:?}");
        if format.contains(&"--sparse") {
            let blocks = fs::metadata(ours.join("sparse")).expect("it's there").blocks();
            assert!(blocks < 10_000, "{format:?}: holes are holes: {blocks} blocks");
        }
    }
    for format in ["--format=v7", "--format=ustar"] {
        let bytes = tar(&[format], &sample.join("dir"));
        assert_eq!(facts(&merged(std::slice::from_ref(&bytes))), facts(&untar(&bytes)), "{format}");
    }
}

/// Numbers that look like chance and are the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// A header's checksum, and where it stands.
fn checksum(block: &[u8]) -> String {
    let sum: u32 = block.iter().enumerate().map(|(i, byte)| if (148..156).contains(&i) { 32 } else { u32::from(*byte) }).sum();
    format!("{sum:06o}\0 ")
}

/// Damages an archive as adversaries do, who make the checksums right again.
fn damaged(archive: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = archive.to_vec();
    for _ in 0..=chance.below(3) {
        let blocks: Vec<usize> = (0..bytes.len() / 512).filter(|i| bytes[i * 512..][..512] != [0; 512]).collect();
        let at = chance.of(&blocks) * 512;
        let block = &mut bytes[at..at + 512];
        let header = block[148..154] == checksum(block).as_bytes()[..6];
        // Names, numbers, the kind, and anywhere.
        let place = match chance.below(6) {
            0 => chance.below(100),
            1 => 100 + chance.below(24),
            2 => 124 + chance.below(24),
            3 => 156,
            4 => 157 + chance.below(100),
            _ => chance.below(512),
        };
        block[place] = match chance.below(4) {
            0 => chance.of(b"01234567"),
            1 => chance.of(b"x g\0LKSVD/.9\x80\xff="),
            2 => block[place] ^ (1 << chance.below(8)),
            _ => chance.below(256) as u8,
        };
        if header {
            let sum = checksum(block);
            block[148..156].copy_from_slice(sum.as_bytes());
        }
        match chance.below(12) {
            0 => bytes.truncate(512 * chance.below(bytes.len() / 512)),
            1 => {
                let copy = bytes[at..at + 512].to_vec();
                bytes.splice(at..at, copy);
            }
            2 => drop(bytes.splice(at..at + 512, [])),
            _ => {}
        }
        if bytes.iter().all(|byte| *byte == 0) {
            break;
        }
    }
    bytes
}

/// Whoever reads an archive otherwise than the tool that everybody has is the one who can
/// be deceived. What we refuse is nobody's loss.
fn damaged_archives_that_are_taken_mean_the_same_to_gnu_tar() {
    let tree = fresh_dir("small-");
    fs::create_dir(tree.join("dir")).expect("a directory");
    for (name, length) in [("a", 3), ("dir/b", 700), ("dir/c", 0), (&*"n".repeat(120), 20)] {
        fs::write(tree.join(name), "x".repeat(length)).expect("a file");
    }
    symlink("dir/b", tree.join("link")).expect("a link");
    fs::hard_link(tree.join("a"), tree.join("z")).expect("a link");
    File::create(tree.join("holes")).and_then(|file| file.set_len(40 << 10)).expect("a hole");
    let archives = ["gnu", "oldgnu", "posix"].map(|format| tar(&[&format!("--format={format}"), "--sparse"], &tree));
    let mut chance = Chance(0x636f_6666_6572_6461);
    let (mut taken, mut refused, mut unsaid, mut differences) = (0, 0, 0, Vec::new());
    let around = fresh_dir("compared-");
    while taken < 400 {
        assert!(refused < 20_000, "hardly anything is taken: {taken}");
        let which = chance.below(archives.len());
        let bytes = damaged(&archives[which], &mut chance);
        match compare(&bytes, &around, &flat(), is_root()) {
            Comparison::Refused => refused += 1,
            Comparison::Same => taken += 1,
            Comparison::Complaint => (taken, unsaid) = (taken + 1, unsaid + 1),
            Comparison::Different(how) => {
                taken += 1;
                differences.push(format!("archive {which}: {how}"));
            }
        }
    }
    println!("{taken} taken, {refused} refused; {unsaid} of those taken GNU tar complains about");
    assert!(unsaid < taken / 10);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn gnu_tar_unpacks_roots_files_the_same() {
    let root = sample();
    fs::write(root.join("cap"), "x").expect("a file");
    let set = Command::new("setcap").arg("cap_net_raw,cap_chown=ep").arg(root.join("cap")).status().expect("setcap runs");
    assert!(set.success());
    let script = "import os, sys\nr = sys.argv[1]\nos.mknod(r + '/c', 0o20666, os.makedev(1, 3))\nos.chown(r + '/dir/file', 1000, 70000)\nos.chmod(r + '/dir/file', 0o6711)\nos.chown(r + '/link', 5, 6, follow_symlinks=False)\nos.chown(r + '/dir/sub', 4294967294, 2097152)";
    python(script, &[&root]);
    for format in ["--format=gnu", "--format=posix"] {
        let bytes = tar(&[format, "--xattrs", "--xattrs-include=*"], &root);
        let ours = merged(std::slice::from_ref(&bytes));
        assert_eq!(facts(&ours), facts(&untar(&bytes)), "{format}");
        if format == "--format=posix" {
            assert!(facts(&ours).contains("security.capability"));
        }
    }
}

fn a_debian_root_is_unpacked_as_by_gnu_tar() {
    let root = support::debian_root().expect("it was needed");
    let bytes = tar(&["--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner"], &root);
    assert_eq!(facts(&merged(std::slice::from_ref(&bytes))), facts(&untar(&bytes)));
}

/// Layers on top of each other that use all rules on which umoci agrees.
fn stack() -> Vec<Vec<u8>> {
    [
        "d('./', mode=0o755); d('etc'); f('etc/passwd', b'root'); d('usr'); d('usr/lib', uid=3); f('usr/lib/a', b'a', uid=1000, gid=1000); s('lib', 'usr/lib'); \
         d('gone'); f('gone/x'); d('opaque', mode=0o700); f('opaque/old'); d('again', mode=0o711); f('again/old'); f('hard', b'h'); h('usr/hard', 'hard'); f('file'); d('tree'); d('tree/a'); f('tree/a/b')",
        "d('etc', mode=0o750); f('etc/group', b'g', mode=0o4755); wh('.wh.gone'); d('opaque'); f('opaque/new'); wh('opaque/.wh..wh..opq'); wh('.wh.again'); d('again'); f('again/new'); \
         d('file'); f('file/inside'); f('tree', b'now a file'); n('null', CHRTYPE, 1, 3)",
        "d('etc', mode=0o750); d('usr'); d('usr/lib', pax={'SCHILY.xattr.user.x': 'y'}); f('usr/lib/b', b'b', pax={'mtime': '12.5'}); f('after', b'1'); wh('.wh.after'); h('usr/lib/c', 'usr/lib/b'); wh('etc/.wh.passwd')",
    ]
    .map(archive)
    .to_vec()
}

fn umoci_unpacks_the_same() {
    let work = fresh_dir("umoci-");
    let image = format!("{}:a", work.join("oci").display());
    let umoci = |arguments: &[&str]| {
        let output = Command::new("umoci").args(arguments).output().expect("umoci runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    umoci(&["init", "--layout", &work.join("oci").display().to_string()]);
    umoci(&["new", "--image", &image]);
    let layers = stack();
    for (i, layer) in layers.iter().enumerate() {
        let file = work.join(i.to_string());
        fs::write(&file, layer).expect("a file");
        umoci(&["raw", "add-layer", "--image", &image, &file.display().to_string()]);
    }
    let theirs = work.join("root");
    umoci(&["raw", "unpack", "--image", &image, &theirs.display().to_string()]);
    assert_eq!(facts(&merged(&layers)), facts(&theirs));
}

/// Runs a script in a mount namespace where directories are stacked on `/mnt`.
fn in_overlay(directories: &[&Path], upper: Option<&Path>, script: &str, arguments: &[&Path]) -> String {
    let lower: Vec<String> = directories.iter().map(|d| d.display().to_string()).collect();
    let mut options = format!("lowerdir={}", lower.join(":"));
    if let Some(upper) = upper {
        let work = upper.with_extension("work");
        fs::create_dir(&work).expect("a directory");
        options.push_str(&format!(",upperdir={},workdir={}", upper.display(), work.display()));
    }
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", "mount -t overlay overlay -o \"$1\" /mnt; shift; exec \"$@\"", "sh", &options]);
    let output = command.arg("python3").arg("-c").arg(script).args(arguments).output().expect("unshare runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("ASCII")
}

/// A list of facts without what overlayfs can't keep: the names of hard links that
/// were copied up, and times of directories that an unpacker has to guess.
fn overlay_facts(layers: &[PathBuf]) -> String {
    let directories: Vec<&Path> = layers.iter().rev().map(PathBuf::as_path).collect();
    in_overlay(&directories, None, FACTS, &[Path::new("/mnt")])
}

fn overlayfs_shows_what_a_flat_tree_has() {
    let archives = stack();
    let layers: Vec<PathBuf> = archives
        .iter()
        .map(|archive| {
            let layer = fresh_dir("overlay-");
            apply(archive, &layer, &overlay()).expect("a layer");
            layer
        })
        .collect();
    assert_eq!(overlay_facts(&layers), facts(&merged(&archives)));
}

fn a_packed_upper_layer_is_what_overlayfs_showed() {
    // On a tmpfs, because the tests' directory may be an overlay itself.
    let script = r#"
import os, shutil
os.chdir('/mnt')
open('new', 'w').write('new'); os.link('new', 'new2')
os.remove('null'); shutil.rmtree('usr/lib'); os.mkdir('usr/lib', 0o711); open('usr/lib/fresh', 'w').write('f')
shutil.rmtree('opaque'); os.remove('lib'); os.mkdir('lib'); os.symlink('x', 'lib/y')
open('hard', 'a').write('more'); os.chmod('etc', 0o700); os.chown('etc/group', 7, 8)
os.mkfifo('pipe'); os.setxattr('new', 'user.x', b'1'); os.mkdir('a'); os.mkdir('a/b')
with open('holes', 'wb') as f: f.truncate(64 << 20); f.seek(32 << 20); f.write(b'x')
"#;
    let archives = stack();
    let base = merged(&archives);
    let upper = fresh_dir("upper-");
    let script = format!("{script}\nimport sys\n{}", FACTS);
    let shown = in_overlay(&[&base], Some(&upper), &script, &[Path::new("/mnt")]);
    let mut packed = Vec::new();
    pack(File::open(&upper).expect("a directory").as_fd(), &mut packed, true, None, &[]).expect("it packs");
    let mut again = archives.clone();
    again.push(packed.clone());
    assert_eq!(facts(&merged(&again)), shown);

    let base = File::open(&base).expect("a directory");
    let found = changes(File::open(&upper).expect("a directory").as_fd(), &[base.as_fd()], &[]).expect("changes");
    let found: Vec<String> = found.iter().map(|(letter, path)| format!("{letter} {}", path.display())).collect();
    let expected = [
        "A a",
        "A a/b",
        "C etc",
        "C etc/group",
        "C hard",
        "A holes",
        "C lib",
        "A lib/y",
        "A new",
        "A new2",
        "D null",
        "D opaque",
        "A pipe",
        "C usr/lib",
        "D usr/lib/a",
        "D usr/lib/b",
        "D usr/lib/c",
        "A usr/lib/fresh",
    ];
    assert_eq!(found, expected);
}

fn packed(root: &Path, latest: Option<u64>) -> Vec<u8> {
    let mut out = Vec::new();
    let latest = latest.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    pack(File::open(root).expect("a directory").as_fd(), &mut out, false, latest, &[]).expect("it packs");
    out
}

fn a_tree_survives_packing() {
    let sample = sample();
    fs::set_permissions(sample.join("dir/empty"), fs::Permissions::from_mode(0o000)).expect("a mode");
    let how_read = if is_root() { 0 } else { 0o400 };
    let bytes = packed(&sample, None);
    let ours = merged(std::slice::from_ref(&bytes));
    for root in [&sample, &ours] {
        fs::set_permissions(root.join("dir/empty"), fs::Permissions::from_mode(how_read)).expect("a mode");
    }
    assert_eq!(facts(&ours), facts(&sample));
    assert!(fs::metadata(ours.join("sparse")).expect("it's there").blocks() < 10_000);
    // Others read it alike; an ordinary user's tar can't set attributes of a file that it may not write.
    if is_root() {
        assert_eq!(facts(&untar(&bytes)), facts(&ours));
    }
}

fn equal_trees_are_equal_archives() {
    let made = |order: [&str; 3]| {
        let root = fresh_dir("equal-");
        for name in order {
            fs::create_dir_all(root.join(name)).expect("a directory");
            fs::write(root.join(name).join("f"), name).expect("a file");
        }
        fs::hard_link(root.join("b/f"), root.join("a/z")).expect("a link");
        let hole = File::create(root.join("zeros")).expect("a file");
        match order[0] {
            "a" => hole.set_len(9 << 20).expect("a hole"),
            _ => std::io::Write::write_all(&mut &hole, &vec![0; 9 << 20]).expect("zeros"),
        }
        packed(&root, Some(1000))
    };
    let (one, other) = (made(["a", "b", "c"]), made(["c", "b", "a"]));
    assert!(one == other);
    let file = fresh_dir("archive-").join("a");
    fs::write(&file, &one).expect("a file");
    let list = Command::new("tar").arg("-tvf").arg(&file).env("TZ", "UTC").output().expect("tar runs");
    let text = String::from_utf8(list.stdout).expect("text");
    assert!(text.lines().all(|line| line.contains("1970-01-01 00:16")), "{text}");
}

fn ids_are_mapped_when_packing() {
    let root = fresh_dir("ids-");
    for (name, id) in [("a", 1_000_000), ("b", 1_000_033), ("c", 5)] {
        fs::write(root.join(name), "").expect("a file");
        std::os::unix::fs::chown(root.join(name), Some(id), Some(id)).expect("root may");
    }
    let mut out = Vec::new();
    pack(File::open(&root).expect("a directory").as_fd(), &mut out, false, None, &[(1_000_000, 0, 65_536)]).expect("it packs");
    let again = merged(&[out]);
    let id = |name: &str| fs::metadata(again.join(name)).expect(name).uid();
    assert_eq!((id("a"), id("b"), id("c")), (0, 33, 65534));
}
