//! Layers: the rules, also those that most implementations get wrong.

mod support;

use std::fs::{self, File};
use std::io::BufReader;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cofferdam::ErrorKind;
use cofferdam::internals::layers::{Unpack, unpack};
use support::trees::{FACTS, apply, archive, facts, flat, merged, names, overlay, python};
use support::{Need, fresh_dir, is_root};

fn main() {
    const PYTHON: Need = Need::Tool("python3");
    support::main(vec![
        test!(whiteouts_spare_what_their_own_layer_adds, PYTHON),
        test!(a_whiteout_and_a_new_directory_hide_the_old_children, PYTHON),
        test!(an_opaque_root_hides_everything_below, PYTHON),
        test!(whiteouts_are_only_made_where_something_can_be_below, PYTHON),
        test!(implied_parents_keep_what_lower_layers_say, PYTHON),
        test!(parents_that_are_links_below_are_followed, PYTHON),
        test!(an_entry_for_a_directory_replaces_all_of_its_attributes, PYTHON),
        test!(attributes_of_overlayfs_and_rootless_engines_are_dropped, PYTHON),
        test!(a_stream_is_read_to_its_end, PYTHON),
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
    let upper = kinds.map(archive);
    for old in kinds {
        let deep = if old == "d('x')" { "; f('x/a'); d('x/b'); f('x/b/c')" } else { "" };
        let lower = archive(&format!("{old}{deep}"));
        for (new, upper) in kinds.iter().zip(&upper) {
            // In one layer, and from one to the next.
            for archives in [vec![archive(&format!("{old}{deep}; {new}"))], vec![lower.clone(), upper.clone()]] {
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
    let script = "f('a', uid=9); f('a', uid=1000, gid=7); f('b', uid=8); f('b'); d('d', uid=33, gid=0); s('s', 'x', gid=5)";
    let single = Unpack { single: true, ..Unpack::default() };
    let root = fresh_dir("flat-");
    let unpacked = apply(&archive(script), &root, &single).expect("a layer");
    let owner = |name: &str| {
        let inode = fs::symlink_metadata(root.join(name)).expect("it's there").ino();
        unpacked.owners.iter().find(|(of, ..)| *of == inode).map(|(_, uid, gid)| (*uid, *gid))
    };
    assert_eq!(["a", "b", "d", "s"].map(owner), [Some((1000, 7)), None, Some((33, 0)), Some((0, 5))]);
    let own = fs::metadata(&root).expect("it's there").uid();
    assert_eq!(fs::metadata(root.join("a")).expect("it's there").uid(), own);
    let real = apply(&archive(script), &fresh_dir("flat-"), &Unpack::default());
    match is_root() {
        true => assert!(real.expect("root may").owners.is_empty()),
        false => assert!(real.expect_err("only root may").to_string().starts_with("cannot give to 9:0 a: Operation not permitted (")),
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
