//! Whom the files of images belong to, inside and in what is made of a run.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cofferdam::{ChangeKind, CommitOptions, Image, ImageFormat, Layer, LayerState, Sandbox, Store};
use serde_json::json;
use support::image::{Entry, Layout, busybox, dir, file, hard_link, listing, symlink, tar};
use support::{Need, ORDINARY, fresh_dir, is_root};

fn store() -> Store {
    Store::open(fresh_dir("store-").join("store")).expect("a store").without_sync()
}

fn open(store: &Store, path: &Path) -> Image {
    Image::options().store(store).open(path).expect("an image")
}

#[track_caller]
fn prints(image: &Image, script: &str) -> String {
    let out = Sandbox::new().rootfs(image).run(["sh", "-c", script]).unwrap_or_else(|error| panic!("{script}: {error}"));
    assert!(out.success(), "{script}: {out}: {}", String::from_utf8_lossy(&out.stderr));
    out.text().into_owned()
}

/// Whether this user's sandboxes have more than one id.
fn has_ids() -> bool {
    is_root() || *Sandbox::new().check().expect("a report").state(Layer::SubordinateIds) == LayerState::Works
}

/// A mail directory, a web server's files, and a directory that is closed to all but its
/// owner.
fn files() -> Vec<Entry> {
    let files = vec![
        dir("mail/").mode(0o2775).owner(8),
        dir("www/").owner(33),
        file("www/page", "hello").mode(0o640).owner(33),
        hard_link("www/again", "www/page"),
        symlink("www/link", "page").owner(33),
        Entry { kind: b'6', ..file("www/pipe", "") }.owner(33),
        file("set", "").mode(0o6755).owner(100),
        dir("closed/").mode(0o700).owner(42),
        file("closed/key", "secret").mode(0o600).owner(42),
        file("nobody", "").owner(65534),
        file("last", "").owner(65535),
        file("root", ""),
    ];
    // What stands where something else stood has its own owner.
    let replaced = vec![file("twice", "").owner(33), file("twice", ""), dir("dir/").owner(33), file("dir", "")];
    [busybox(), files, replaced].concat()
}

const LIST: &str =
    "cd /; stat -c '%n %u:%g %a' mail www www/page www/again www/link www/pipe set nobody last root twice dir closed; stat -c %h www/page";

/// What it says; to a user with one id all is that one's.
fn listed() -> String {
    let list = "mail 8:8 2775\nwww 33:33 755\nwww/page 33:33 640\nwww/again 33:33 640\nwww/link 33:33 777\nwww/pipe 33:33 644\n\
        set 100:100 6755\nnobody 65534:65534 644\nlast 65535:65535 644\nroot 0:0 644\ntwice 0:0 644\ndir 0:0 644\nclosed 42:42 700\n2\n";
    if has_ids() {
        return list.into();
    }
    let line = |line: &str| {
        let mut words: Vec<&str> = line.split(' ').collect();
        if let Some(owner) = words.get_mut(1) {
            *owner = "0:0";
        }
        words.join(" ") + "\n"
    };
    list.lines().map(line).collect()
}

fn files_have_the_owners_that_the_image_says() {
    let layers = [tar(&files()), tar(&[file("www/more", "more").owner(33)])];
    let store = store();
    let image = open(&store, &Layout::of(&layers, json!({})).path);
    assert_eq!(prints(&image, LIST), listed());
    let web = if has_ids() { 33 } else { 0 };
    let out = Sandbox::new().rootfs(&image).user(web, web).run(["sh", "-c", "cat /www/link /www/more"]).expect("it runs");
    assert_eq!(out.text(), "hellomore");
    // The file in the closed directory is read by its owner, and by nobody else.
    let as_user = |user| Sandbox::new().rootfs(&image).user(user, user).run(["sh", "-c", "cat /closed/key; echo x > /mail/x"]);
    if has_ids() {
        assert_eq!(as_user(42).expect("it runs").text(), "secret");
        assert!(!as_user(33).expect("it runs").text().contains("secret"));
        let script = "echo x > /mail/x && stat -c %u:%g /mail/x; touch /www/y 2>/dev/null || echo no";
        let out = Sandbox::new().rootfs(&image).user(33, 8).run(["sh", "-c", script]).expect("it runs");
        assert_eq!(out.text(), "33:8\n");
        let out = Sandbox::new().rootfs(&image).user(34, 8).run(["sh", "-c", script]).expect("it runs");
        assert_eq!(out.text(), "34:8\nno\n");
    }
    // All in one tree too: a hard link to a lower layer takes one.
    let layers = [tar(&files()), tar(&[hard_link("linked", "www/page"), file("closed/more", "").owner(42), file("set", "")])];
    let image = open(&store, &Layout::of(&layers, json!({})).path);
    let expected = listed().replace("set 100:100 6755", "set 0:0 644").replace("set 0:0 6755", "set 0:0 644").replace("\n2\n", "\n3\n");
    assert_eq!(prints(&image, LIST), expected);
}

fn ids_that_no_sandbox_has_are_nobodys() {
    let image = open(&store(), &Layout::of(&[tar(&[busybox(), vec![file("far", "").owner(100_000)]].concat())], json!({})).path);
    assert_eq!(prints(&image, "stat -c %u:%g /far"), if has_ids() { "65534:65534\n" } else { "0:0\n" });
}

/// An image without an entry for a directory asks what the layers below have, which only
/// that directory's owner may know.
fn closed_directories_are_looked_into() {
    let upper = [file("closed/new", "new").owner(42), file(".wh.root", ""), file("closed/.wh.key", "")];
    let image = open(&store(), &Layout::of(&[tar(&files()), tar(&upper)], json!({})).path);
    let list = "stat -c '%n %u:%g %a' /closed /closed/new; ls /closed; ls /root 2>/dev/null || true";
    let owner = if has_ids() { "42:42" } else { "0:0" };
    let out = Sandbox::new().rootfs(&image).user(if has_ids() { 42 } else { 0 }, 0).run(["sh", "-c", list]).expect("it runs");
    assert_eq!(out.text(), format!("/closed {owner} 700\n/closed/new {owner} 644\nnew\n"));
}

fn what_a_run_leaves_has_the_owners_that_it_had() {
    let layout = Layout::of(&[tar(&files())], json!({}));
    let image = open(&store(), &layout.path);
    let recipe = Sandbox::new().rootfs(&image).keep_changes(true).capabilities(cofferdam::Capability::DOCKER);
    let script = "mkdir -m 700 /mine && echo a > /mine/a && chmod 600 /mine/a && ln -s a /mine/l && touch /mine/x
        chown 33:8 /mine /mine/a /mine/x && chown -h 33:8 /mine/l && rm -rf /closed && mkdir -m 700 /closed && echo n > /closed/n && chown 42:42 /closed
        chown 8:33 /www && echo more >> /www/page && rm /www/pipe && touch -d @1000000000 /mine /www";
    let single =
        script.replace("chown 33:8", "echo").replace("chown -h 33:8", "echo").replace("chown 42:42", "echo").replace("chown 8:33", "echo");
    let out = recipe.run(["sh", "-ec", if has_ids() { script } else { &single }]).expect("it runs");
    assert!(out.success(), "{out}: {}", String::from_utf8_lossy(&out.stderr));
    let changes = out.changes().expect("changes");
    let list: Vec<(&str, ChangeKind)> = changes.iter().map(|c| (c.path.to_str().expect("a text"), c.kind)).collect();
    use ChangeKind::{Added, Deleted, Modified};
    let mut expected = vec![
        ("closed/key", Deleted),
        ("closed/n", Added),
        ("mine", Added),
        ("mine/a", Added),
        ("mine/l", Added),
        ("mine/x", Added),
        ("www", Modified),
        ("www/again", Modified),
        ("www/page", Modified),
        ("www/pipe", Deleted),
    ];
    if !has_ids() {
        expected.retain(|(path, _)| *path != "www");
    }
    let list: Vec<_> = list.into_iter().filter(|(path, _)| *path != "www/again").collect();
    expected.retain(|(path, _)| *path != "www/again");
    assert_eq!(list, expected);

    let look = "cd /; stat -c '%n %u:%g %a' mine mine/a mine/l closed closed/n www www/page; cat mine/a closed/n";
    let expected =
        "mine 33:8 700\nmine/a 33:8 600\nmine/l 33:8 777\nclosed 42:42 700\nclosed/n 0:0 644\nwww 8:33 755\nwww/page 33:33 640\na\nn\n";
    let (expected, ids) = match has_ids() {
        true => (expected.to_string(), "33:8"),
        false => (expected.replace("33:8", "0:0").replace("42:42", "0:0").replace("8:33", "0:0").replace("33:33", "0:0"), "0:0"),
    };
    let committed = out.commit(&CommitOptions::new()).expect("an image");
    let seen = |image: &Image| {
        let out = Sandbox::new().rootfs(image).capabilities(cofferdam::Capability::DOCKER).run(["sh", "-c", look]).expect("it runs");
        assert!(out.success(), "{}", String::from_utf8_lossy(&out.stderr));
        out.text().into_owned()
    };
    assert_eq!(seen(&committed), expected);
    // What is saved has the image's ids, too, whoever opens it.
    let saved = fresh_dir("saved-").join("image.tar");
    committed.save(&saved, ImageFormat::OciArchive, "mine").expect("saved");
    assert_eq!(seen(&open(&store(), &saved)), expected);
    // And so has a live sandbox's.
    let instance = Sandbox::new().rootfs(&image).capabilities(cofferdam::Capability::DOCKER).start().expect("it starts");
    assert!(instance.run(["sh", "-ec", if has_ids() { script } else { &single }]).expect("it runs").success());
    let live = instance.commit(&CommitOptions::new()).expect("an image");
    assert_eq!(seen(&live), expected);
    let archive = instance.run(["sh", "-c", "stat -c %u:%g /mine"]).expect("it runs");
    assert_eq!(archive.text(), format!("{ids}\n"));
}

fn nothing_is_left_of_files_of_other_owners() {
    let layout = Layout::of(&[tar(&files())], json!({}));
    let store = store();
    let image = open(&store, &layout.path);
    let id = image.id().expect("an id").to_string();
    drop(image);
    store.remove(&id).expect("removed");
    store.prune().expect("pruned");
    for directory in ["layers", "chains", "blobs", "tmp", "trash"] {
        let left: Vec<_> = fs::read_dir(store.path().join(directory)).expect("a directory").flatten().map(|e| e.file_name()).collect();
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
    // Nor of an image that turns out to be damaged behind such files.
    let mut damaged = tar(&files());
    damaged.extend(b"x".repeat(512));
    let layout = Layout::of(&[tar(&files()), damaged.clone()], json!({}));
    let blob = layout.blob_path(&support::image::sha256(&damaged));
    fs::write(&blob, b"x".repeat(damaged.len())).expect("damaged");
    Image::options().store(&store).open(&layout.path).expect_err("damaged");
    assert!(fs::read_dir(store.path().join("tmp")).expect("a directory").next().is_none());
}

const STORE: &str = "COFFERDAM_TEST_STORE";
const IMAGE: &str = "COFFERDAM_TEST_IMAGE";

/// An ordinary user's store from before that user had subordinate ids.
fn a_store_serves_those_with_other_ids() {
    let name = "a_store_serves_those_with_other_ids";
    if let Some(path) = std::env::var_os(STORE) {
        let store = Store::open(path).expect("a store");
        match std::env::var_os(IMAGE) {
            Some(layout) => {
                let told = Arc::new(AtomicUsize::new(0));
                let count = told.clone();
                let options = Image::options().store(&store).progress(move |_| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
                let image = options.open(layout).expect("an image");
                assert_eq!(prints(&image, LIST), listed());
                store.tag(image.id().expect("an id"), "kept").expect("tagged");
            }
            // From what the store has of it.
            None => assert_eq!(prints(&store.image("kept").expect("an image"), LIST), listed()),
        }
        return;
    }
    let layout = Layout::of(&[tar(&files())], json!({}));
    let home = fresh_dir("home-");
    chown(&home, Some(ORDINARY), Some(ORDINARY)).expect("root may");
    let store = home.join("store");
    let run = |subordinate: bool, image: bool| {
        let mut variables = vec![(STORE, store.as_os_str())];
        variables.extend(image.then_some((IMAGE, layout.path.as_os_str())));
        support::as_user(name, subordinate, &variables);
    };
    run(false, true);
    run(true, false);
    run(false, false);
    run(true, true);
    let trees = fs::read_dir(store.join("layers")).expect("layers").flatten().next().expect("a layer").path();
    let mut names: Vec<String> =
        fs::read_dir(&trees).expect("it").flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["fs", "fs-200000-200000-65535", "layer.json"]);
    assert_eq!(fs::metadata(trees.join("fs-200000-200000-65535/closed")).expect("it").permissions().mode() & 0o7777, 0o700);
    assert!(listing(&trees.join("fs")).len() > 10);
}

fn main() {
    support::main_with_subordinate_ids(vec![
        test!(files_have_the_owners_that_the_image_says, Need::Tool("busybox"), Need::Overlay),
        test!(ids_that_no_sandbox_has_are_nobodys, Need::Tool("busybox"), Need::Overlay),
        test!(closed_directories_are_looked_into, Need::Tool("busybox"), Need::Overlay),
        test!(what_a_run_leaves_has_the_owners_that_it_had, Need::Tool("busybox"), Need::Overlay),
        test!(nothing_is_left_of_files_of_other_owners, Need::Tool("busybox")),
        test!(a_store_serves_those_with_other_ids, root, Need::Tool("newuidmap"), Need::Tool("busybox"), Need::UsersOverlay),
    ])
}
