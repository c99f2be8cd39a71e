//! Layers: what becomes of archives that tools and adversaries make.

mod support;

use std::fs::{self, File};
use std::io::BufReader;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use cofferdam::ErrorKind;
use cofferdam::internals::layers::{Unpack, changes, pack, remove_tree, unpack};
use support::trees::{FACTS, apply, archive, facts, flat, merged, names, overlay, python};
use support::{Need, fresh_dir, is_root};

fn main() {
    const PYTHON: Need = Need::Tool("python3");
    support::main(vec![
        // What most implementations get wrong.
        test!(whiteouts_spare_what_their_own_layer_adds, PYTHON),
        test!(a_whiteout_and_a_new_directory_hide_the_old_children, PYTHON),
        test!(an_opaque_root_hides_everything_below, PYTHON),
        test!(whiteouts_are_only_made_where_something_can_be_below, PYTHON),
        test!(implied_parents_keep_what_lower_layers_say, PYTHON),
        test!(parents_that_are_links_below_are_followed, PYTHON),
        test!(an_entry_for_a_directory_replaces_all_of_its_attributes, PYTHON),
        test!(attributes_of_overlayfs_and_rootless_engines_are_dropped, PYTHON),
        test!(a_stream_is_read_to_its_end, PYTHON),
        test!(damaged_streams_are_refused, PYTHON),
        // The rest of the rules.
        test!(opaque_directories_hide_in_any_order, PYTHON),
        test!(whiteouts_go_through_links_and_remove_links, PYTHON),
        test!(markers_of_nothing_are_refused, PYTHON),
        test!(one_kind_of_file_replaces_another, PYTHON),
        test!(hard_links_are_one_file, PYTHON),
        test!(hard_links_to_lower_files_are_questions, PYTHON),
        test!(directories_have_their_own_times_in_the_end, PYTHON),
        test!(the_root_has_an_entry_too, PYTHON),
        test!(links_say_what_they_say, PYTHON),
        test!(an_ordinary_users_layer_remembers_owners, PYTHON),
        test!(devices_are_roots, PYTHON),
        // Other programs.
        test!(gnu_tar_unpacks_the_same, PYTHON),
        test!(gnu_tar_unpacks_roots_files_the_same, root, PYTHON, Need::Tool("setcap")),
        test!(a_debian_root_is_unpacked_as_by_gnu_tar, root, PYTHON, Need::DebianRoot),
        test!(umoci_unpacks_the_same, root, PYTHON, Need::Tool("umoci")),
        test!(overlayfs_shows_what_a_flat_tree_has, root, PYTHON),
        test!(a_packed_upper_layer_is_what_overlayfs_showed, root, PYTHON),
        // Hostile archives.
        test!(nothing_outside_is_touched, PYTHON),
        test!(a_parent_that_was_replaced_is_looked_up_again, PYTHON),
        test!(links_that_lead_nowhere_end, PYTHON),
        test!(bombs_are_refused, PYTHON),
        test!(memory_is_bounded, root, PYTHON),
        // From a directory to an archive.
        test!(a_tree_survives_packing, PYTHON),
        test!(equal_trees_are_equal_archives, PYTHON),
        test!(ids_are_mapped_when_packing, root),
        test!(deep_trees_are_removed),
        test!(two_may_remove_one_tree),
    ]);
}

fn content(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("it's there").permissions().mode() & 0o7777
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let name = if is_root() { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
    facts_of(path).contains(&format!("('{name}', b'y')"))
}

fn facts_of(path: &Path) -> String {
    let script = FACTS.replace("if len(sys.argv) > 2: fact(root, b\"\")\nwalk(root, b\"\")", "fact(root, b\"\")");
    String::from_utf8(python(&script, &[path])).expect("ASCII")
}

/// Two layers, in both forms: the flat tree, and the upper layer for an overlay.
fn two(lower: &str, upper: &str) -> (PathBuf, PathBuf) {
    let (lower, upper) = (archive(lower), archive(upper));
    let layer = fresh_dir("overlay-");
    apply(&upper, &layer, &overlay()).expect("a layer");
    (merged(&[lower, upper]), layer)
}

fn whiteouts_spare_what_their_own_layer_adds() {
    for upper in ["f('a', b'new'); wh('.wh.a'); wh('.wh.b')", "wh('.wh.a'); f('a', b'new'); wh('.wh.b')"] {
        let (flat, layer) = two("f('a', b'old'); f('b'); f('c')", upper);
        assert_eq!(names(&flat), ["a", "c"], "{upper}");
        assert_eq!(content(&flat, "a"), "new");
        assert_eq!(content(&layer, "a"), "new");
        assert!(is_whiteout(&layer.join("b")), "{upper}");
    }
}

fn a_whiteout_and_a_new_directory_hide_the_old_children() {
    for upper in ["d('a'); f('a/new'); wh('.wh.a')", "wh('.wh.a'); d('a'); f('a/new')", "wh('.wh.a'); f('a/new')"] {
        let (flat, layer) = two("d('a', mode=0o700); f('a/old'); d('a/d'); f('a/d/old')", upper);
        assert_eq!(names(&flat), ["a/", "a/new"], "{upper}");
        assert_eq!(mode(&flat.join("a")), 0o755, "{upper}");
        assert_eq!(names(&layer), ["a/", "a/new"], "{upper}");
        assert!(is_opaque(&layer.join("a")), "{upper}");
    }
}

fn an_opaque_root_hides_everything_below() {
    for upper in ["wh('.wh..wh..opq'); f('new')", "f('new'); wh('.wh..wh..opq')"] {
        let (flat, layer) = two("d('a'); f('a/b'); f('new', b'old')", upper);
        assert_eq!(names(&flat), ["new"]);
        assert_eq!(names(&layer), ["new"]);
        let again = fresh_dir("overlay-");
        assert!(apply(&archive(upper), &again, &overlay()).expect("a layer").opaque_root);
    }
}

fn whiteouts_are_only_made_where_something_can_be_below() {
    let layer = fresh_dir("overlay-");
    let script =
        "d('a'); wh('a/.wh..wh..opq'); wh('a/.wh.x'); wh('a/b/.wh.y'); f('c'); wh('c/.wh.z'); wh('.wh.d'); wh('d/.wh.e'); wh('p/.wh.q')";
    let unpacked = apply(&archive(script), &layer, &overlay()).expect("a layer");
    let mut kinds = unpacked.questions.iter().map(|(path, kind)| format!("{} {kind}", path.display())).collect::<Vec<_>>();
    kinds.sort();
    // What's left is for whoever knows the layers below.
    assert_eq!(kinds, ["d whiteout", "p implied", "p/q whiteout"]);
    assert!(!layer.join("a/x").exists() && names(&layer).contains(&"d".to_string()));
    assert!(is_whiteout(&layer.join("d")) && is_whiteout(&layer.join("p/q")) && is_opaque(&layer.join("a")));
    // On an empty directory there's nothing to hide.
    assert_eq!(names(&merged(&[archive("f('a'); wh('.wh.b'); wh('c/.wh.d')")])), ["a"]);
}

fn implied_parents_keep_what_lower_layers_say() {
    let upper = "f('private/sub/new', b'x')";
    let lower = archive("d('private', mode=0o700, mtime=5)");
    let flat = merged(&[lower, archive(upper)]);
    let private = fs::metadata(flat.join("private")).expect("it's there");
    assert_eq!((private.mode() & 0o7777, mode(&flat.join("private/sub"))), (0o700, 0o755));
    let layer = fresh_dir("overlay-");
    let unpacked = apply(&archive(upper), &layer, &overlay()).expect("a layer");
    let expected = ["private", "private/sub"].map(|path| (PathBuf::from(path), "implied".to_string()));
    assert_eq!(unpacked.questions, expected);
}

fn parents_that_are_links_below_are_followed() {
    let lower = archive(
        "d('usr'); d('usr/lib'); s('lib', 'usr/lib'); s('abs', '/usr/lib'); s('up', '../../usr/./lib'); s('dangling', 'new/place')",
    );
    let upper = archive("f('lib/a'); f('abs/b'); f('up/c'); f('dangling/d')");
    let flat = merged(&[lower, upper]);
    assert!(fs::symlink_metadata(flat.join("lib")).expect("it's there").is_symlink());
    assert_eq!(names(&flat.join("usr/lib")), ["a", "b", "c"]);
    assert_eq!(names(&flat.join("new")), ["place/", "place/d"]);
    // An entry for the directory itself replaces the link.
    let lower = archive("d('usr'); d('usr/lib'); f('usr/lib/x'); s('lib', 'usr/lib')");
    let flat = merged(&[lower, archive("d('lib'); f('lib/a')")]);
    assert_eq!(names(&flat), ["lib/", "lib/a", "usr/", "usr/lib/", "usr/lib/x"]);
}

fn an_entry_for_a_directory_replaces_all_of_its_attributes() {
    let lower = archive("d('a', mode=0o700, pax={'SCHILY.xattr.user.old': 'x', 'SCHILY.xattr.user.both': '1'}); f('a/f')");
    let upper = archive("d('a', mode=0o751, mtime=77, pax={'SCHILY.xattr.user.both': '2'})");
    let flat = merged(&[lower, upper]);
    let all = facts(&flat);
    let line = all.lines().next().expect("a line");
    assert!(line.contains("[('user.both', b'2')]") && line.contains(" 751 ") && line.contains(" 77000000000 "), "{line}");
}

fn attributes_of_overlayfs_and_rootless_engines_are_dropped() {
    let names = [
        "user.overlay.opaque",
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "user.overlay.whiteout",
        "user.containers.override_stat",
        "user.rootlesscontainers",
        "user.fuseoverlayfs.opaque",
        "security.selinux",
        "security.ima",
        "system.posix_acl_access",
        "system.nfs4_acl",
    ];
    let pax: Vec<String> = names.iter().map(|name| format!("'SCHILY.xattr.{name}': 'y'")).collect();
    let pax = format!("{{{}, 'SCHILY.xattr.user.kept': 'a\\nb=c'}}", pax.join(", "));
    let flat = merged(&[archive(&format!("d('d', pax={pax}); f('f', pax={pax})"))]);
    for line in facts(&flat).lines() {
        assert!(line.ends_with("[('user.kept', b'a\\nb=c')]"), "{line}");
    }
}

fn a_stream_is_read_to_its_end() {
    let mut bytes = archive("f('a')");
    bytes.extend_from_slice(&[7; 100_000]);
    let file = fresh_dir("stream-").join("a");
    fs::write(&file, &bytes).expect("a file");
    let stream = File::open(&file).expect("a file");
    let root = fresh_dir("flat-");
    let directory = File::open(&root).expect("a directory");
    unpack(BufReader::new(&stream), directory.as_fd(), &flat()).expect("a layer");
    assert_eq!(std::io::Seek::stream_position(&mut &stream).expect("a position"), bytes.len() as u64);
    assert_eq!(names(&root), ["a"]);
    // And that has the limit of the data.
    let how = Unpack { max_bytes: Some(50_000), ..flat() };
    let error = apply(&bytes, &fresh_dir("flat-"), &how).expect_err("too much");
    assert!(error.to_string().contains("after its end"), "{error}");
}

fn damaged_streams_are_refused() {
    let bytes = archive("f('a', bytes(range(256)) * 50)");
    for program in ["gzip", "zstd", "xz"] {
        if support::which(program).is_none() {
            continue;
        }
        let file = fresh_dir("stream-").join("a");
        fs::write(&file, &bytes).expect("a file");
        let compressed = Command::new(program).arg("-c").arg(&file).output().expect("it runs").stdout;
        assert_eq!(
            names(&{
                let root = fresh_dir("flat-");
                apply(&compressed, &root, &flat()).expect("right");
                root
            }),
            ["a"]
        );
        for cut in [compressed.len() / 2, compressed.len() - 1] {
            let error = apply(&compressed[..cut], &fresh_dir("flat-"), &flat()).expect_err("cut");
            assert_eq!(error.kind(), ErrorKind::Image);
            assert!(error.to_string().contains("cut short"), "{program}: {error}");
        }
    }
    let error = apply(&bytes[..1000], &fresh_dir("flat-"), &flat()).expect_err("cut");
    assert!(error.to_string().starts_with("cannot read the archive: it ends in the middle"), "{error}");
}

fn opaque_directories_hide_in_any_order() {
    for upper in
        ["d('a'); wh('a/.wh..wh..opq'); f('a/new')", "d('a'); f('a/new'); wh('a/.wh..wh..opq')", "f('a/new'); wh('a/.wh..wh..opq')"]
    {
        let (flat, layer) = two("d('a'); f('a/old'); d('a/d'); f('a/d/f')", upper);
        assert_eq!(names(&flat), ["a/", "a/new"], "{upper}");
        assert!(is_opaque(&layer.join("a")), "{upper}");
    }
    // Deep below, and for a directory that only lower layers name.
    let (flat, _) = two("d('a'); d('a/b'); f('a/b/old'); f('a/keep')", "wh('a/b/.wh..wh..opq')");
    assert_eq!(names(&flat), ["a/", "a/b/", "a/keep"]);
}

fn whiteouts_go_through_links_and_remove_links() {
    let (flat, _) = two(
        "d('d'); f('d/x'); f('d/y'); s('l', 'd'); s('gone', 'd')",
        "wh('l/.wh.x'); wh('.wh.gone'); wh('.wh.missing'); wh('no/.wh.where')",
    );
    assert_eq!(names(&flat), ["d/", "d/y", "l"]);
}

fn markers_of_nothing_are_refused() {
    for script in ["wh('.wh.')", "wh('a/.wh..')", "wh('a/.wh...')", "f('.wh.etc/passwd')", "d('.wh.d')"] {
        for how in [flat(), overlay()] {
            let root = fresh_dir("flat-");
            let error = apply(&archive(script), &root, &how).expect_err(script);
            assert_eq!(error.kind(), ErrorKind::Image, "{error}");
            assert!(names(&root).is_empty());
        }
    }
    assert_eq!(
        names(&merged(&[archive("f('.whx'); f('.wh'); f('x.wh.y'); f('.wh..wh.plnk/1.2'); d('.wh..wh.aufs')")])),
        [".wh", ".whx", "x.wh.y"]
    );
}

fn one_kind_of_file_replaces_another() {
    let kinds = ["f('x', b'file')", "d('x')", "s('x', '/etc')", "n('x', FIFOTYPE)", "f('y', b'file'); h('x', 'y')"];
    for old in kinds {
        for new in kinds {
            // In one layer, and from one to the next.
            let deep = if old == "d('x')" { "; f('x/a'); d('x/b'); f('x/b/c')" } else { "" };
            for archives in [vec![archive(&format!("{old}{deep}; {new}"))], vec![archive(&format!("{old}{deep}")), archive(new)]] {
                let root = merged(&archives);
                let found = fs::symlink_metadata(root.join("x")).expect("it's there").file_type();
                let right = match &new[..1] {
                    "d" => found.is_dir() && (old != "d('x')" || root.join("x/b/c").exists()),
                    "s" => found.is_symlink(),
                    "n" => found.is_fifo(),
                    _ => found.is_file() && content(&root, "x") == "file",
                };
                assert!(right, "{old} then {new}: {found:?}");
            }
        }
    }
    // A file in the way of a directory's children gives way, too.
    assert_eq!(names(&merged(&[archive("f('a')"), archive("f('a/b')")])), ["a/", "a/b"]);
}

fn hard_links_are_one_file() {
    let script = "f('a', b'x', mode=0o640); d('d'); s('l', '/d'); h('d/1', 'a'); h('2', './a'); h('3', '/d/1'); h('l/4', 'a'); \
                  s('sym', 'a'); h('sym2', 'sym'); n('p', FIFOTYPE); h('p2', 'p'); h('2', 'a', mode=0o777)";
    let root = merged(&[archive(script)]);
    let inode = |name: &str| fs::symlink_metadata(root.join(name)).expect(name).ino();
    for name in ["d/1", "2", "3", "d/4"] {
        assert_eq!(inode(name), inode("a"), "{name}");
    }
    assert_eq!((inode("sym2"), inode("p2")), (inode("sym"), inode("p")));
    assert!(fs::symlink_metadata(root.join("sym2")).expect("it's there").is_symlink());
    // Its own mode says nothing about the file.
    assert_eq!(mode(&root.join("a")), 0o640);
    for script in ["h('a', 'missing'); f('missing')", "d('d'); h('a', 'd')", "f('a'); h('a', 'a')", "h('a', '../x')", "h('a', '/')"] {
        let error = apply(&archive(script), &fresh_dir("flat-"), &flat()).expect_err(script);
        assert_eq!(error.kind(), ErrorKind::Image, "{error}");
    }
}

fn hard_links_to_lower_files_are_questions() {
    let (lower, upper) = (archive("f('a', b'x')"), archive("h('b', 'a')"));
    let root = merged(&[lower, upper.clone()]);
    assert_eq!(fs::metadata(root.join("a")).expect("a").ino(), fs::metadata(root.join("b")).expect("b").ino());
    let unpacked = apply(&upper, &fresh_dir("overlay-"), &overlay()).expect("a layer");
    assert_eq!(unpacked.questions, [(PathBuf::from("b"), "link to a".to_string())]);
    // A whiteout of the old name leaves the new one.
    let root = merged(&[archive("f('a', b'x')"), archive("h('b', 'a'); wh('.wh.a')")]);
    assert_eq!(names(&root), ["b"]);
}

fn directories_have_their_own_times_in_the_end() {
    let lower = archive(
        "d('early', mtime=1000, mode=0o555); f('early/f'); f('late/f'); d('late', mtime=-2000); d('kept', mtime=3000); d('kept/sub', mtime=4000); f('kept/old')",
    );
    let upper = archive("f('kept/new'); f('kept/sub/x'); wh('kept/.wh.old'); f('early/g', mtime=1.5, pax={'mtime': '1.25'})");
    let root = merged(&[lower, upper]);
    let time = |name: &str| {
        let metadata = fs::metadata(root.join(name)).expect(name);
        (metadata.mtime(), metadata.mtime_nsec())
    };
    for (name, seconds) in [("early", 1000), ("late", -2000), ("kept", 3000), ("kept/sub", 4000)] {
        assert_eq!(time(name), (seconds, 0), "{name}");
    }
    assert_eq!(time("early/g"), (1, 250_000_000));
    assert_eq!(mode(&root.join("early")), 0o555);
}

fn the_root_has_an_entry_too() {
    let root = fresh_dir("flat-");
    let unpacked = apply(&archive("d('./', mode=0o711, mtime=9); f('a')"), &root, &flat()).expect("a layer");
    assert!(unpacked.root_entry);
    assert_eq!((mode(&root), fs::metadata(&root).expect("it's there").mtime()), (0o711, 9));
    for script in ["f('.')", "s('.', '/etc')", "s('/', '/etc')", "h('.', 'a')"] {
        assert!(apply(&archive(script), &fresh_dir("flat-"), &flat()).is_err(), "{script}");
    }
    let layer = fresh_dir("overlay-");
    assert!(!apply(&archive("f('a')"), &layer, &overlay()).expect("a layer").root_entry);
    assert_eq!(mode(&layer), 0o755);
}

fn links_say_what_they_say() {
    let targets = ["/etc/passwd", "../../../../x", "dangling", "./a//b/", &"t".repeat(4095)];
    let script: String = targets.iter().enumerate().map(|(i, target)| format!("s('{i}', '{target}', mtime={i});")).collect();
    let root = merged(&[archive(&script)]);
    for (i, target) in targets.iter().enumerate() {
        assert_eq!(fs::read_link(root.join(i.to_string())).expect("a link").as_os_str().as_bytes(), target.as_bytes());
        assert_eq!(fs::symlink_metadata(root.join(i.to_string())).expect("a link").mtime(), i as i64);
    }
    assert!(apply(&archive("s('a', 't' * 4096)"), &fresh_dir("flat-"), &flat()).is_err());
}

fn an_ordinary_users_layer_remembers_owners() {
    let script = "f('a', uid=1000, gid=7); f('b'); d('d', uid=33, gid=0); s('s', 'x', gid=5)";
    let single = Unpack { single: true, ..Unpack::default() };
    let root = fresh_dir("flat-");
    let unpacked = apply(&archive(script), &root, &single).expect("a layer");
    assert_eq!(unpacked.owners, [("a".into(), 1000, 7), ("d".into(), 33, 0), ("s".into(), 0, 5)]);
    let own = fs::metadata(&root).expect("it's there").uid();
    assert_eq!(fs::metadata(root.join("a")).expect("it's there").uid(), own);
    let real = apply(&archive(script), &fresh_dir("flat-"), &Unpack::default());
    match is_root() {
        true => assert!(real.expect("root may").owners.is_empty()),
        false => assert!(real.expect_err("only root may").to_string().starts_with("cannot give to 1000:7 a: Operation not permitted (")),
    }
}

fn devices_are_roots() {
    let root = fresh_dir("flat-");
    let script = "n('c', CHRTYPE, 1, 3, mode=0o666); n('b', BLKTYPE, 4095, 1048575); n('p', FIFOTYPE, mode=0o622); f('after')";
    let unpacked = apply(&archive(script), &root, &flat()).expect("a layer");
    if is_root() && unpacked.notes.is_empty() {
        let device = fs::metadata(root.join("c")).expect("it's there");
        assert_eq!((device.rdev(), mode(&root.join("c")), mode(&root.join("p"))), (0x103, 0o666, 0o622));
    } else {
        assert_eq!(unpacked.notes, ["this user can't make devices: c"]);
        assert_eq!(names(&root), ["after", "p"]);
    }
    for script in ["n('w', CHRTYPE, 0, 0)", "n('w', CHRTYPE, 4096, 0)", "n('w', BLKTYPE, 0, 1048576)"] {
        assert!(apply(&archive(script), &fresh_dir("flat-"), &flat()).is_err(), "{script}");
    }
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

/// Archives that want out, each with how it's meant.
const ESCAPES: &[&str] = &[
    "f('../evil')",
    "f('a/../../evil')",
    "f('/../evil')",
    "s('l', '/'); f('l/OUTSIDE/evil')",
    "s('l', '..'); f('l/evil')",
    "s('l', '../../../../../../..'); f('l/OUTSIDE/evil')",
    "s('l', 'OUTSIDE'); f('l/evil')",
    "s('l', 'OUTSIDE/sentinel'); f('l', b'evil')",
    "s('l', 'OUTSIDE'); d('l', mode=0o777)",
    "s('l', 'OUTSIDE'); d('l/', mode=0o777, uid=5)",
    "s('a', 'b'); s('b', 'OUTSIDE'); f('a/evil')",
    "d('a'); s('a/l', '../../OUTSIDE'); f('a/l/evil')",
    "h('l', '../OUTSIDE/sentinel')",
    "h('l', 'OUTSIDE/sentinel'); f('l', b'evil')",
    "s('d', 'OUTSIDE'); h('l', 'd/sentinel')",
    "s('l', 'OUTSIDE/sentinel'); h('h', 'l'); f('h', b'evil')",
    "s('l', '/proc/self/cwd'); f('l/evil')",
    "s('l', '/proc/self/root'); f('l/OUTSIDE/evil')",
    "s('d', 'OUTSIDE'); wh('d/.wh.sentinel')",
    "s('d', 'OUTSIDE'); wh('d/.wh..wh..opq')",
    "wh('../.wh.OUTSIDE')",
    "s('d', '..'); wh('d/.wh.x')",
    "s('d', 'OUTSIDE'); n('d/p', FIFOTYPE)",
    "d('a'); f('a/x'); s('a', 'OUTSIDE'); f('a/evil'); d('a/evil2')",
    "s('.', 'OUTSIDE'); f('evil')",
    "s('./', 'OUTSIDE'); f('evil')",
    "f('l', pax={'path': '../evil'})",
    "s('l', 'x', pax={'linkpath': 'OUTSIDE'}); f('l/evil')",
];

/// Name, inode number, mode, owner, time and contents.
type State = (String, u64, u32, u32, i64, i64, Vec<u8>);

/// All that an attack could change in a directory.
fn state(directory: &Path) -> Vec<State> {
    let one = |name: String, path: &Path| {
        let m = fs::symlink_metadata(path).expect("it's there");
        (name, m.ino(), m.mode(), m.uid(), m.mtime(), m.mtime_nsec(), fs::read(path).unwrap_or_default())
    };
    let mut all = vec![one(String::new(), directory)];
    all.extend(names(directory).into_iter().map(|name| one(name.clone(), &directory.join(&name))));
    all
}

fn nothing_outside_is_touched() {
    let outside = fresh_dir("outside-");
    fs::write(outside.join("sentinel"), "safe").expect("a file");
    fs::create_dir(outside.join("sub")).expect("a directory");
    let before = state(&outside);
    for script in ESCAPES {
        let bytes = archive(&script.replace("OUTSIDE", &outside.display().to_string()));
        for how in [flat(), overlay()] {
            let around = fresh_dir("around-");
            let root = around.join("root");
            fs::create_dir(&root).expect("a directory");
            // Refused, or done inside.
            let _ = apply(&bytes, &root, &how);
            assert_eq!(fs::read_dir(&around).expect("a directory").count(), 1, "{script}: {:?}", names(&around));
            assert_eq!(state(&outside), before, "{script}");
            // And on a second layer, when the links are there already.
            let _ = apply(&bytes, &root, &flat());
            assert_eq!(state(&outside), before, "{script}");
            remove_tree(File::open(&around).expect("a directory").as_fd(), "root".as_ref()).expect("it's removed");
            assert_eq!(state(&outside), before, "{script}: removal");
        }
    }
}

fn a_parent_that_was_replaced_is_looked_up_again() {
    let script = "d('a'); f('a/1'); d('b'); s('l', 'a'); f('l/2'); s('l', 'b'); f('l/3'); f('a', b'file'); d('a'); f('a/4')";
    assert_eq!(names(&merged(&[archive(script)])), ["a/", "a/4", "b/", "b/3", "l"]);
}

fn links_that_lead_nowhere_end() {
    let started = std::time::Instant::now();
    for script in [
        "s('a', 'a'); f('a/b')",
        "s('a', 'b'); s('b', 'a'); f('a/b')",
        "[s('l%d' % i, 'l%d' % (i + 1)) for i in range(50)]; f('l0/x')",
        // 2^40 steps for a resolver that doesn't count them.
        "d('d'); s('l0', 'd'); [s('l%d' % i, 'l%d/../l%d' % (i - 1, i - 1)) for i in range(1, 40)]; f('l39/x')",
        "s('a', 'x/' * 2000); s('b', 'a/' * 30); f('b/x')",
        "s('a', 'x/' * 300); f('a/b')",
    ] {
        let error = apply(&archive(script), &fresh_dir("flat-"), &flat()).expect_err(script);
        assert!(error.to_string().contains("links") || error.to_string().contains("below too many"), "{script}: {error}");
    }
    assert!(started.elapsed() < support::patience(Duration::from_secs(60)));
}

fn bombs_are_refused() {
    let refused = |script: &str, how: &Unpack, why: &str| {
        let error = apply(&archive(script), &fresh_dir("bomb-"), how).expect_err(why);
        assert!(error.to_string().contains(why), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    };
    let few = Unpack { max_inodes: Some(100), ..flat() };
    refused("[f('%d' % i) for i in range(101)]", &few, "more than 100 files");
    refused("[f('same') for i in range(101)]", &few, "more than 100 files");
    refused("[f('a%d/b/c' % i) for i in range(34)]", &few, "more than 100 files");
    refused("[wh('.wh.%d' % i) for i in range(101)]", &few, "more than 100 files");
    let small = Unpack { max_bytes: Some(1 << 20), ..flat() };
    refused("f('a', bytes(1 << 20)); f('b', b'x')", &small, "more than 1 MiB of files");
    let forgetful = Unpack { max_memory: Some(1 << 20), ..flat() };
    refused("[wh('d/.wh.%0200d' % i) for i in range(5000)]", &forgetful, "more than 1 MiB of memory");
    refused("[d('%d' % i) for i in range(20000)]", &forgetful, "more than 1 MiB of memory");
    refused("f('n' * 256)", &flat(), "longer than 255");
    refused("f('d/' * 300 + 'f')", &flat(), "too many directories");
    refused("f('d' * 200 + ('/' + 'd' * 200) * 20)", &flat(), "too long");
    refused("f('a\\nb/../c')", &flat(), "`..`");
    let zeros = "import gzip\nsys.stdout.buffer.write(gzip.compress(bytes(200 << 20), 9)); sys.exit(0)";
    refused(zeros, &flat(), "100 times its size");
}

fn memory_is_bounded() {
    support::host::alone("memory_is_bounded", || {
        let script = "import os, zlib\nblock = os.urandom(1 << 20)\nfor i in range(300): f('d%d/f%d' % (i % 7, i), block[:1 << 19] + bytes(1 << 19))";
        let file = fresh_dir("large-").join("a.tar");
        fs::write(&file, archive(script)).expect("a file");
        for program in ["gzip", "zstd"] {
            let packed = file.with_extension(program);
            let made = Command::new("sh").args(["-c", "\"$1\" -1 -c \"$2\" > \"$3\"", "sh", program]).arg(&file).arg(&packed).status();
            assert!(made.expect("it runs").success());
            let root = File::open(fresh_dir("flat-")).expect("a directory");
            let peak = support::processes::peak_during(|| {
                unpack(BufReader::new(File::open(&packed).expect("an archive")), root.as_fd(), &flat()).expect("it unpacks");
            });
            assert!(peak < 64 << 10, "{program}: {peak} KiB");
        }
    });
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

fn two_may_remove_one_tree() {
    let root = fresh_dir("both-");
    for i in 0..300 {
        fs::create_dir_all(root.join(format!("top/{}/{i}/x", i % 7))).expect("directories");
    }
    let parent = File::open(&root).expect("a directory");
    std::thread::scope(|scope| {
        let removers: Vec<_> = (0..4).map(|_| scope.spawn(|| remove_tree(parent.as_fd(), "top".as_ref()))).collect();
        for remover in removers {
            remover.join().expect("no panic").expect("it's removed");
        }
    });
    assert!(names(&root).is_empty());
}

fn deep_trees_are_removed() {
    let root = fresh_dir("deep-");
    let script = "import os, sys\nos.chdir(sys.argv[1])\nfor i in range(4000):\n os.mkdir('d' * 50); open('f', 'w').close(); os.chmod('f', 0); os.chdir('d' * 50)";
    let top = root.join("top");
    fs::create_dir(&top).expect("a directory");
    python(script, &[&top]);
    fs::set_permissions(&top, fs::Permissions::from_mode(0o500)).expect("a mode");
    let parent = File::open(&root).expect("a directory");
    remove_tree(parent.as_fd(), "top".as_ref()).expect("it's removed");
    assert!(names(&root).is_empty());
    remove_tree(parent.as_fd(), "top".as_ref()).expect("nothing there is fine");
    // A link isn't followed.
    fs::create_dir(root.join("kept")).expect("a directory");
    symlink("kept", root.join("link")).expect("a link");
    remove_tree(parent.as_fd(), "link".as_ref()).expect("it's removed");
    assert_eq!(names(&root), ["kept/"]);
}
