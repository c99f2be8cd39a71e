//! Files in and out of a live sandbox, also against a workload that races.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command as Host;
use std::time::Duration;

use cofferdam::{Child, Command, EntryKind, ErrorKind, Instance, MIB, Sandbox};
use support::{Need, compile_c, fresh_dir};

const LONG: Duration = Duration::from_secs(120);

fn start() -> Instance {
    Sandbox::new().wall_time(LONG).start().expect("it starts")
}

fn sh(instance: &Instance, script: &str) -> String {
    instance.run(["sh", "-c", script]).expect("it runs").exit_ok().expect("success").text().into_owned()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("it's there").permissions().mode() & 0o7777
}

fn what_is_written_is_read() {
    for instance in [start(), Sandbox::new().user(1, 1).start().expect("it starts")] {
        instance.write("/tmp/a/b/file", "contents").expect("a file");
        instance.write("/tmp/a/b/file", "others").expect("replaced");
        assert_eq!(
            sh(&instance, "cat /tmp/a/b/file; stat -c ' %a %u' /tmp/a/b/file; id -u"),
            sh(&instance, "echo \"others 644 $(id -u)\"; id -u")
        );
        assert_eq!(instance.read("/tmp/a/b/file", 6).expect("a file"), b"others");
        sh(&instance, "printf more >>/tmp/a/b/file");
        assert_eq!(instance.read("/tmp/a/b/file", 100).expect("a file"), b"othersmore");
        instance.write_mode("/tmp/run", "#!/bin/sh\necho ran\n", 0o755).expect("a program");
        assert_eq!(instance.run("/tmp/run").expect("it runs").text(), "ran\n");
        let big = vec![7; 3 * MIB as usize];
        instance.write("/tmp/big", &big).expect("a large file");
        assert!(instance.read("/tmp/big", 4 * MIB).expect("a file") == big);
    }
}

fn what_cannot_be_read_says_why() {
    let instance = start();
    sh(&instance, "cd /tmp; mkdir d; mkfifo fifo; ln -s /etc/passwd link; ln -s loop loop; truncate -s 100M sparse; printf 12345 >five");
    let kind = |path: &str| instance.read(path, 4).expect_err(path).kind();
    let cases = [
        ("/tmp/nothing", ErrorKind::NotFound),
        ("/tmp/five/x", ErrorKind::Io),
        ("/tmp/d", ErrorKind::IsADirectory),
        ("/tmp/fifo", ErrorKind::NotAFile),
        ("/dev/null", ErrorKind::NotAFile),
        ("/tmp/link", ErrorKind::FilesystemLoop),
        ("/tmp/loop/x", ErrorKind::FilesystemLoop),
        ("/tmp/five", ErrorKind::FileTooLarge),
        ("/tmp/sparse", ErrorKind::FileTooLarge),
        ("relative", ErrorKind::Invalid),
        ("/", ErrorKind::Invalid),
        ("/tmp/..", ErrorKind::Invalid),
    ];
    for (path, wanted) in cases {
        assert_eq!(kind(path), wanted, "{path}");
    }
    let error = instance.read("/tmp/nothing", 4).expect_err("nothing there");
    assert_eq!(error.to_string(), "cannot open /tmp/nothing: No such file or directory");
    assert_eq!(instance.write("/tmp/d", "").expect_err("a directory").kind(), ErrorKind::IsADirectory);
    assert_eq!(instance.write("/usr/x", "").expect_err("read-only").kind(), ErrorKind::PermissionDenied);
    assert_eq!(instance.write_mode("/tmp/x", "", 0o4755).expect_err("set-user-ID").kind(), ErrorKind::Invalid);
}

fn a_file_that_is_written_replaces_what_is_there_and_follows_nothing() {
    let instance = start();
    sh(&instance, "cd /tmp; echo kept >target; ln -s target link; mkfifo fifo");
    for name in ["link", "fifo"] {
        instance.write(format!("/tmp/{name}"), "new").expect("a file");
        assert_eq!(instance.read(format!("/tmp/{name}"), 10).expect("a file"), b"new");
    }
    assert_eq!(instance.read("/tmp/target", 10).expect("a file"), b"kept\n");
}

fn a_full_scratch_layer_is_told() {
    let instance = Sandbox::new().writable(MIB).start().expect("it starts");
    let error = instance.write("/tmp/big", vec![0; 2 * MIB as usize]).expect_err("no room");
    assert!(error.to_string().contains("No space left on device (the writable layer is full"), "{error}");
}

fn a_directory_is_listed() {
    let instance = start();
    sh(&instance, "mkdir /tmp/x; cd /tmp/x; printf 123 >file; chmod 640 file; mkdir dir; ln -s file link; mkfifo fifo");
    let entries = instance.list("/tmp/x").expect("a list");
    let brief: Vec<_> = entries.iter().map(|e| (e.name.to_str().expect("a name"), e.kind)).collect();
    let wanted = [("dir", EntryKind::Directory), ("fifo", EntryKind::Special), ("file", EntryKind::File), ("link", EntryKind::Link)];
    assert_eq!(brief, wanted);
    assert_eq!((entries[2].size, entries[2].mode), (3, 0o640));
    assert!(instance.list("/").expect("a list").iter().any(|e| e.name == Path::new("usr")));
    assert_eq!(instance.list("/tmp/x/file").expect_err("no directory").kind(), ErrorKind::Io);
}

fn trees_go_in_and_come_out_as_they_are() {
    let from = fresh_dir("tree-");
    fs::create_dir_all(from.join("a/b")).expect("directories");
    for i in 0..100 {
        fs::write(from.join(format!("a/{i}")), format!("{i}")).expect("a file");
    }
    fs::write(from.join("a/b/program"), "#!/bin/sh\n").expect("a file");
    for (path, mode) in [("a/b/program", 0o755), ("a/7", 0o600), ("a/b", 0o750)] {
        fs::set_permissions(from.join(path), fs::Permissions::from_mode(mode)).expect("a mode");
    }
    symlink("../7", from.join("a/b/link")).expect("a link");
    for instance in [start(), Sandbox::new().user(1, 1).start().expect("it starts")] {
        instance.copy_in(&from, "/tmp/in").expect("a copy");
        assert_eq!(sh(&instance, "cat /tmp/in/a/b/link; /tmp/in/a/b/program; find /tmp/in | wc -l"), "7105\n");
        let to = fresh_dir("out-").join("tree");
        instance.copy_out("/tmp/in", &to).expect("a copy");
        let same = Host::new("diff").args(["-r", "--no-dereference"]).args([&from, &to]).status().expect("diff runs");
        assert!(same.success());
        assert_eq!((mode(&to.join("a/b/program")), mode(&to.join("a/7")), mode(&to.join("a/b"))), (0o755, 0o600, 0o750));
        assert_eq!(fs::read_link(to.join("a/b/link")).expect("a link"), Path::new("../7"));
        let one = fresh_dir("one-").join("file");
        instance.copy_out("/tmp/in/a/42", &one).expect("a copy");
        assert_eq!(fs::read(&one).expect("a file"), b"42");
        instance.copy_out("/tmp/in/a/42", &one).expect_err("it's there already");
        instance.copy_in(&one, "/tmp/one").expect("a copy");
        assert_eq!(instance.read("/tmp/one", 2).expect("a file"), b"42");
    }
}

fn what_leads_out_of_a_tree_or_is_no_file_is_not_copied() {
    let instance = start();
    for (i, make) in ["ln -s /etc/passwd x", "ln -s ../../etc x", "mkfifo x", "ln -s .. x", "mkdir -p d/e; mkfifo d/e/x"].iter().enumerate()
    {
        sh(&instance, &format!("mkdir /tmp/{i}; cd /tmp/{i}; {make}"));
        let error = instance.copy_out(format!("/tmp/{i}"), fresh_dir("out-").join("x")).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::NotAFile, "{error}");
        let place = if make.contains("d/e") { format!("/tmp/{i}/d/e/x") } else { format!("/tmp/{i}/x") };
        assert!(error.to_string().contains(&place), "{error}");
    }
    let from = fresh_dir("fifo-");
    nix::unistd::mkfifo(&from.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    assert_eq!(instance.copy_in(&from, "/tmp/in").expect_err("refused").kind(), ErrorKind::NotAFile);
    assert_eq!(instance.copy_in(from.join("none"), "/tmp/in").expect_err("nothing there").kind(), ErrorKind::Io);
}

fn copies_are_bounded() {
    let instance = Sandbox::new().wall_time(LONG).writable(4 * MIB).writable_files(200).start().expect("it starts");
    sh(&instance, "mkdir /tmp/a; truncate -s 100M /tmp/a/sparse");
    let kind = |path: &str| instance.copy_out(path, fresh_dir("out-").join("x")).expect_err(path).kind();
    assert_eq!(kind("/tmp/a"), ErrorKind::FileTooLarge);
    assert_eq!(kind("/tmp/a/sparse"), ErrorKind::FileTooLarge);
    sh(&instance, "mkdir /tmp/deep; cd /tmp/deep; for i in $(seq 70); do mkdir d; cd d; done");
    assert_eq!(kind("/tmp/deep"), ErrorKind::FileTooLarge);
    assert_eq!(kind("/usr"), ErrorKind::FileTooLarge, "more files than the scratch layer holds");
}

fn swapping(instance: &Instance) -> Child {
    let program = compile_c("swapper", include_str!("programs/swapper.c"), &[]);
    instance.copy_in(&program, "/tmp/swapper").expect("a copy");
    let child = instance.spawn(Command::new("/tmp/swapper").wall_time(LONG)).expect("it starts");
    while !instance.list("/tmp/x").is_ok_and(|entries| entries.len() >= 6) {}
    child
}

/// What the workload may not have either: readable outside, a directory closed to it.
fn with_a_secret() -> Instance {
    let secret = fresh_dir("secret-");
    fs::write(secret.join("file"), "the secret").expect("a file");
    fs::set_permissions(secret.join("file"), fs::Permissions::from_mode(0o600)).expect("a mode");
    // Inside, the path exists for those who may see it; outside it doesn't.
    Sandbox::new().wall_time(LONG).bind(&secret, "/secret").user(1, 1).start().expect("it starts")
}

fn copies_race_with_a_workload_that_swaps_files() {
    let instance = with_a_secret();
    let child = swapping(&instance);
    let to = fresh_dir("out-");
    let (mut right, mut refused) = (0, 0);
    for round in 0..10_000 {
        let target = to.join("y");
        match round % 4 {
            0..3 => match instance.read("/tmp/x/y", 1000) {
                Ok(contents) => {
                    assert!(contents == b"inside", "{}", String::from_utf8_lossy(&contents));
                    right += 1;
                }
                Err(_) => refused += 1,
            },
            _ => {
                match instance.copy_out("/tmp/x", &target) {
                    Ok(()) => right += 1,
                    Err(_) => refused += 1,
                }
                for entry in walk(&target) {
                    let found = fs::symlink_metadata(&entry).expect("it's there");
                    assert!(found.is_file() || found.is_dir() || found.is_symlink(), "{entry:?}");
                    if found.is_file() {
                        let contents = fs::read(&entry).expect("a file");
                        // Empty: refused in the middle.
                        assert!(contents == b"inside" || contents.is_empty(), "{entry:?}: {}", String::from_utf8_lossy(&contents));
                    }
                }
                let _ = fs::remove_dir_all(&target);
            }
        }
    }
    println!("{right} right, {refused} refused");
    assert!(right > 0 && refused > 0, "{right} right, {refused} refused: no race");
    drop(child);
}

fn walk(path: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries.flatten().flat_map(|e| if e.file_type().is_ok_and(|t| t.is_dir()) { walk(&e.path()) } else { vec![e.path()] }).collect()
}

fn tar_streams_go_in_and_come_out_as_they_are() {
    let tree = fresh_dir("tree-");
    let script = "mkdir -p d/empty && echo one > d/one && ln -s one d/link && echo two > two && chmod 4755 two &&
        ln two d/again && head -c 200000 /dev/urandom > big && truncate -s 6M sparse && echo end >> sparse && touch -d @1700000000 d/one";
    assert!(Host::new("sh").args(["-c", script]).current_dir(&tree).status().expect("sh runs").success());
    let pack = |arguments: &[&str]| {
        Host::new("tar").arg("-C").arg(&tree).args(arguments).args(["-cf", "-", "."]).output().expect("tar runs").stdout
    };
    for tar in [pack(&["--format=pax"]), pack(&["--format=gnu", "--sparse"]), pack(&["--format=ustar"])] {
        let instance = start();
        sh(&instance, "mkdir -p /tmp/in/d; echo old > /tmp/in/d/one; echo kept > /tmp/in/kept");
        instance.tar_in(&tar[..], "/tmp/in").expect("it's unpacked");
        let look = "cd /tmp/in; cat d/one d/link d/again; stat -c '%n %a' d two kept d/empty; ls -A d; tail -c 4 sparse; stat -c %s sparse";
        assert_eq!(
            sh(&instance, look),
            "one\none\ntwo\nd 755\ntwo 755\nkept 644\nd/empty 755\nagain\nempty\nlink\none\nend\n6291460\n",
            "set-ID bits don't go in"
        );
        assert!(instance.read("/tmp/in/big", MIB).expect("a file") == fs::read(tree.join("big")).expect("a file"));
        sh(&instance, "touch -d @1700000000 /tmp/in/d/one; chmod 6755 /tmp/in/two");
        let mut out = Vec::new();
        instance.tar_out("/tmp/in", &mut out).expect("it's packed");
        let back = fresh_dir("back-");
        let mut unpack =
            Host::new("tar").arg("-C").arg(&back).args(["-xpf", "-"]).stdin(std::process::Stdio::piped()).spawn().expect("tar runs");
        std::io::Write::write_all(&mut unpack.stdin.take().expect("a pipe"), &out).expect("it reads");
        assert!(unpack.wait().expect("its end").success());
        let script = "find . | sort; cat d/one two; readlink d/link; stat -c '%a %Y' d/one; stat -c %a two d";
        let found = Host::new("sh").args(["-c", script]).current_dir(&back).output().expect("sh runs");
        assert_eq!(
            String::from_utf8_lossy(&found.stdout),
            ".\n./big\n./d\n./d/again\n./d/empty\n./d/link\n./d/one\n./kept\n./sparse\n./two\none\ntwo\none\n644 1700000000\n755\n755\n"
        );
        let mut single = Vec::new();
        instance.tar_out("/tmp/in/two", &mut single).expect("a file");
        let other = start();
        other.tar_in(&single[..], "/tmp/new/place").expect("it's unpacked");
        assert_eq!(other.read("/tmp/new/place/two", 10).expect("a file"), b"two\n");
    }
}

fn tar_streams_of_strangers_are_refused() {
    use support::image::{dir, file, hard_link, symlink, tar};
    let device = |kind: u8| support::image::Entry { kind, ..file("d/node", "") };
    let cases = [
        ("climbs", vec![file("../outside", "x")], ErrorKind::NotAFile),
        ("climbs later", vec![dir("d"), file("d/../../outside", "x")], ErrorKind::NotAFile),
        ("through its own link", vec![symlink("d", "/tmp"), file("d/outside", "x")], ErrorKind::NotAFile),
        ("makes a directory through it", vec![symlink("d", "/tmp"), dir("d/outside")], ErrorKind::NotAFile),
        ("links to what is beyond it", vec![symlink("d", "/tmp"), hard_link("x", "d/secret")], ErrorKind::NotAFile),
        ("a FIFO", vec![device(b'6')], ErrorKind::NotAFile),
        ("a device", vec![device(b'3')], ErrorKind::NotAFile),
        ("too large", vec![file("a", vec![0; MIB as usize]), file("b", vec![0; MIB as usize])], ErrorKind::FileTooLarge),
        ("too many", (0..300).map(|n| dir(&format!("{n}"))).collect(), ErrorKind::FileTooLarge),
    ];
    for (name, entries, kind) in cases {
        let instance = Sandbox::new().writable(2 * MIB - 1).writable_files(256).start().expect("it starts");
        sh(&instance, "echo secret > /tmp/secret");
        let error = instance.tar_in(&tar(&entries)[..], "/tmp/in").expect_err(name);
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert_eq!(sh(&instance, "ls /tmp/outside /tmp/in/x 2> /dev/null || true"), "", "{name}");
    }
    let instance = start();
    instance.tar_in(&b"this is no archive, but long enough to be looked at"[..], "/tmp/in").expect_err("no archive");
    instance.tar_in(&tar(&[file("a", "x")])[..300], "/tmp/in").expect_err("half of one");
    sh(&instance, "mkdir /tmp/out; ln -s /etc/passwd /tmp/out/link");
    assert_eq!(instance.tar_out("/tmp/out", Vec::new()).expect_err("a link out of it").kind(), ErrorKind::NotAFile);
    sh(&instance, "rm /tmp/out/link; truncate -s 200M /tmp/out/a /tmp/out/b");
    assert_eq!(instance.tar_out("/tmp/out", Vec::new()).expect_err("too large").kind(), ErrorKind::FileTooLarge);
}

/// Where the workload leads a write to, it could have written itself: not to a directory
/// of root's.
fn writes_are_led_nowhere_that_the_workload_cannot_go() {
    let bound = fresh_dir("bound-");
    fs::set_permissions(&bound, fs::Permissions::from_mode(0o755)).expect("a mode");
    let instance = Sandbox::new().bind_rw(&bound, "/bound").user(1000, 1000).start().expect("it starts");
    sh(&instance, "ln -s /bound /tmp/d");
    let error = instance.write("/tmp/d/file", "x").expect_err("the user may not write there");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert_eq!(fs::read_dir(&bound).expect("a directory").count(), 0);
}

/// Whoever has the run's id can't kill or stop what acts for the host.
fn a_workload_that_kills_everybody_does_not_hinder_copies() {
    let instance = start();
    let _child = instance.spawn(["bash", "-c", "while :; do kill -KILL -1; kill -STOP -1; done"]).expect("it starts");
    for i in 0..100 {
        instance.write("/tmp/file", i.to_string()).expect("a file");
        assert_eq!(instance.read("/tmp/file", 10).expect("a file"), i.to_string().as_bytes());
    }
}

fn main() {
    support::main(vec![
        test!(what_is_written_is_read, root),
        test!(what_cannot_be_read_says_why),
        test!(a_file_that_is_written_replaces_what_is_there_and_follows_nothing),
        test!(a_full_scratch_layer_is_told),
        test!(a_directory_is_listed),
        test!(trees_go_in_and_come_out_as_they_are),
        test!(what_leads_out_of_a_tree_or_is_no_file_is_not_copied),
        test!(copies_are_bounded),
        test!(tar_streams_go_in_and_come_out_as_they_are, Need::Tool("tar")),
        test!(tar_streams_of_strangers_are_refused),
        test!(copies_race_with_a_workload_that_swaps_files, Need::Program("swapper")),
        test!(writes_are_led_nowhere_that_the_workload_cannot_go, root),
        test!(a_workload_that_kills_everybody_does_not_hinder_copies, root),
    ]);
}
