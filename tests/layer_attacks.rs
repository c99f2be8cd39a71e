//! Layers: what adversaries put into archives, and trees that are hard to remove.

mod support;

use std::fs::{self, File};
use std::io::BufReader;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cofferdam::ErrorKind;
use cofferdam::internals::layers::{Unpack, remove_tree, unpack};
use support::trees::{apply, archive, flat, merged, names, overlay, python};
use support::{Need, fresh_dir};

fn main() {
    const PYTHON: Need = Need::Tool("python3");
    support::main(vec![
        test!(damaged_streams_are_refused, PYTHON),
        test!(nothing_outside_is_touched, PYTHON),
        test!(a_parent_that_was_replaced_is_looked_up_again, PYTHON),
        test!(links_that_lead_nowhere_end, PYTHON),
        test!(bombs_are_refused, PYTHON),
        test!(memory_is_bounded, root, PYTHON),
        test!(two_may_remove_one_tree),
        test!(deep_trees_are_removed),
    ]);
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
    let zeros = "import gzip\nsys.stdout.buffer.write(gzip.compress(bytes(100 << 20), 9)); sys.exit(0)";
    refused(zeros, &flat(), "100 times its size");
}

fn memory_is_bounded() {
    support::host::alone("memory_is_bounded", || {
        let script = "import os, zlib\nblock = os.urandom(1 << 20)\nfor i in range(150): f('d%d/f%d' % (i % 7, i), block[:1 << 19] + bytes(1 << 19))";
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
