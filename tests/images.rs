//! Container images: what opens, what is refused, how it's run.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command as Program;

use cofferdam::{ChangeKind, Command, CommitOptions, ErrorKind, Image, ImageFormat, Layer, LayerState, Platform, Sandbox, Store};
use serde_json::json;
use support::image::{Entry, INDEX, LAYER, Layout, busybox, dir, file, hard_link, listing, sha256, symlink, tar};
use support::{Need, fresh_dir, is_root};

fn store() -> Store {
    Store::open(fresh_dir("store-").join("store")).expect("a store").without_sync()
}

fn open(store: &Store, path: &Path) -> cofferdam::Result<Image> {
    Image::options().store(store).open(path)
}

/// What a shell script prints in an image.
#[track_caller]
fn prints(image: &Image, script: &str) -> String {
    let out = Sandbox::new().rootfs(image).run(["sh", "-c", script]).unwrap_or_else(|error| panic!("{script}: {error}"));
    assert!(out.success(), "{script}: {out}: {}", String::from_utf8_lossy(&out.stderr));
    out.text().into_owned()
}

/// Nothing is left of an import that failed.
#[track_caller]
fn assert_empty(store: &Store) {
    for directory in ["layers", "chains", "images", "configs", "refs", "blobs", "tmp", "leases"] {
        let left: Vec<_> = fs::read_dir(store.path().join(directory)).expect("a directory").flatten().map(|e| e.file_name()).collect();
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
}

#[track_caller]
fn tool(program: &str, arguments: &[&str]) {
    let output =
        Program::new(program).args(arguments).env("HOME", fresh_dir("home-")).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a text")
}

/// Three layers: a base, one that changes it, one that hides some of it.
fn three_layers() -> Vec<Vec<u8>> {
    let base = [busybox(), vec![dir("data/"), file("data/a", "a1"), file("data/b", "b1"), dir("gone/"), file("gone/x", "x")]].concat();
    vec![
        tar(&base),
        tar(&[dir("data/"), file("data/a", "a2"), file("data/c", "c2"), file(".wh.gone", "")]),
        tar(&[dir("data/"), file("data/.wh.b", ""), file("data/d", "d3")]),
    ]
}

const SCRIPT: &str = "cd /data; for f in *; do echo $f $(cat $f); done; ls -d /gone 2>/dev/null || true";
const EXPECTED: &str = "a a2\nc c2\nd d3\n";

fn layers_are_stacked() {
    let layout = Layout::of(&three_layers(), json!({}));
    let store = store();
    let image = open(&store, &layout.path).expect("an image");
    assert_eq!(prints(&image, SCRIPT), EXPECTED);
    // What a run writes is gone with it.
    assert_eq!(prints(&image, "echo new > /data/a; rm /data/c; cat /data/*"), "new\nd3");
    assert_eq!(prints(&image, SCRIPT), EXPECTED);
    // The second time nothing is read but JSON.
    for blob in fs::read_dir(layout.path.join("blobs/sha256")).expect("blobs").flatten() {
        if blob.metadata().expect("a blob").len() > 10_000 {
            fs::remove_file(blob.path()).expect("removed");
        }
    }
    let again = open(&store, &layout.path).expect("it's in the store");
    assert_eq!((again.id(), prints(&again, SCRIPT)), (image.id(), EXPECTED.into()));
    // Also by name and id, without the layout.
    let id = image.id().expect("an id").to_string();
    for reference in ["one", &id, &id[7..20]] {
        assert_eq!(store.image(reference).expect("it's there").id(), image.id(), "{reference}");
    }
}

fn every_format_of_an_image_is_the_same_image() {
    let layout = Layout::of(&three_layers(), json!({"Env": ["WHO=me"]}));
    let directory = fresh_dir("formats-");
    let path = |name: &str| directory.join(name);
    tool("tar", &["-C", text(&layout.path), "-cf", text(&path("layout.tar")), "."]);
    tool("tar", &["-C", text(&layout.path), "-czf", text(&path("layout.tar.gz")), "blobs", "index.json", "oci-layout"]);
    tool("tar", &["-C", text(&layout.path), "--zstd", "-cf", text(&path("layout.tar.zst")), "oci-layout", "index.json", "blobs"]);
    tool("tar", &["-C", text(&layout.path), "-cJf", text(&path("layout.tar.xz")), "oci-layout", "index.json", "blobs"]);
    let from = format!("oci:{}:one", text(&layout.path));
    for (transport, name) in [("oci", "copied"), ("oci-archive", "copied.tar"), ("docker-archive", "docker.tar")] {
        let to = format!("{transport}:{}:one:latest", text(&path(name)));
        tool("skopeo", &["--insecure-policy", "copy", "-q", &from, &to]);
    }
    let store = store();
    let mut ids = Vec::new();
    for entry in fs::read_dir(&directory).expect("formats").flatten() {
        let image = open(&store, &entry.path()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(prints(&image, &format!("echo $WHO; {SCRIPT}")), format!("me\n{EXPECTED}"), "{:?}", entry.file_name());
        ids.push(image.id().expect("an id").to_string());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 1, "one image, whatever it's packed in: {ids:?}");
    assert_eq!(store.images().expect("a list").len(), 1);
}

fn root_file_system_archives_open() {
    let root = fresh_dir("rootfs-");
    let archive = root.join("root.tar");
    fs::write(&archive, tar(&busybox())).expect("written");
    for (program, arguments) in [("gzip", ["-k", "-n"]), ("xz", ["-k", "-0"]), ("zstd", ["-q", "-k"])] {
        tool(program, &[&arguments[..], &[text(&archive)]].concat());
    }
    let store = store();
    let mut ids = Vec::new();
    for name in ["root.tar", "root.tar.gz", "root.tar.xz", "root.tar.zst", "root.tar"] {
        let image = open(&store, &root.join(name)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(prints(&image, "cat /etc/group"), "root:x:0:\nstaff:x:50:\n", "{name}");
        ids.push(image.id().map(String::from));
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(store.images().expect("a list")[0].names(), ["root"]);
    // One that is unpacked isn't copied.
    let unpacked = root.join("unpacked");
    Image::options().unpack(&archive, &unpacked).expect("unpacked");
    let image = open(&store, &unpacked).expect("a directory");
    assert!(image.id().is_none() && image.store().is_none());
    assert_eq!(prints(&image, "cat /etc/group"), "root:x:0:\nstaff:x:50:\n");
    // To tar an empty file is an archive of nothing.
    let empty = root.join("empty.tar");
    fs::write(&empty, "").expect("written");
    let error = open(&store, &empty).expect_err("a download that failed");
    assert!(error.to_string().ends_with("it is empty"), "{error}");
}

fn one_of_several_images_is_named() {
    let mut layout = Layout::new();
    for name in ["first:1", "second:2"] {
        let manifest = layout.manifest(&[tar(&[busybox(), vec![file("name", name)]].concat())], json!({}));
        layout.add(manifest, name);
    }
    let store = store();
    let error = open(&store, &layout.path).expect_err("two images");
    assert_eq!(error.kind(), ErrorKind::Image);
    assert!(error.to_string().contains("first:1, second:2"), "{error}");
    assert_empty(&store);
    for name in ["first:1", "second:2"] {
        let image = Image::options().store(&store).reference(name).open(&layout.path).expect("an image");
        assert_eq!(prints(&image, "cat /name"), name);
    }
    let error = Image::options().store(&store).reference("third").open(&layout.path).expect_err("no such image");
    assert!(error.to_string().contains("first:1, second:2"), "{error}");
    let digest = layout.index[1]["digest"].as_str().expect("a digest");
    assert_eq!(prints(&Image::options().store(&store).reference(digest).open(&layout.path).expect("by digest"), "cat /name"), "second:2");
}

fn the_platform_is_chosen() {
    let mut layout = Layout::new();
    let mut inner = Vec::new();
    for (os, architecture, variant) in [("linux", "amd64", ""), ("linux", "arm", "v6"), ("linux", "arm", "v7"), ("unknown", "unknown", "")]
    {
        let name = format!("{os}/{architecture}/{variant}");
        let mut manifest =
            layout.manifest(&[tar(&[busybox(), vec![file("platform", name)]].concat())], json!({"Labels": {"p": architecture}}));
        manifest["platform"] = json!({"os": os, "architecture": architecture});
        if !variant.is_empty() {
            manifest["platform"]["variant"] = variant.into();
        }
        inner.push(manifest);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": inner});
    let index = layout.blob(INDEX, index.to_string().as_bytes());
    layout.add(index, "many");
    let store = store();
    let dest = fresh_dir("platforms-");
    for (i, (wanted, got)) in [
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/amd64", "linux/amd64/"),
        ("linux/arm/v8", "linux/arm/v7"),
    ]
    .into_iter()
    .enumerate()
    {
        let platform: Platform = wanted.parse().expect("a platform");
        // The configurations all say amd64, so only unpacking shows what was chosen.
        let to = dest.join(i.to_string());
        let options = Image::options().store(&store).platform(platform);
        match options.unpack(&layout.path, &to) {
            Ok(()) => assert_eq!(fs::read_to_string(to.join("platform")).expect("it"), got),
            Err(error) => assert!(wanted.contains("arm") && error.to_string().contains("the image is for linux/amd64"), "{error}"),
        }
    }
    let error = Image::options().store(&store).platform("linux/s390x".parse().expect("one")).open(&layout.path).expect_err("none fits");
    assert!(error.to_string().contains("linux/amd64, linux/arm/v6, linux/arm/v7"), "{error}");
    assert_empty(&store);
}

fn the_configuration_is_followed() {
    let config = json!({
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["pwd; id -u; id -g; echo $A $HOME; ls -d /srv/data"],
        "Env": ["A=1", "PATH=/bin"],
        "WorkingDir": "/work/deep",
        "User": "web:staff",
        "Volumes": {"/srv/data": {}},
        "StopSignal": "SIGUSR1",
        "Labels": {"k": "v"},
    });
    let layout = Layout::of(&[tar(&busybox())], config);
    let store = store();
    let image = open(&store, &layout.path).expect("an image");
    let config = image.config().expect("a configuration");
    assert_eq!((config.user(), config.labels()["k"].as_str()), ("web:staff", "v"));
    let recipe = Sandbox::new().rootfs(&image);
    let run = |recipe: &Sandbox, command: Command| {
        let out = recipe.run(command).expect("it runs");
        assert!(out.success(), "{out}: {}", String::from_utf8_lossy(&out.stderr));
        out.text().into_owned()
    };
    assert_eq!(run(&recipe, Command::of_image()), "/work/deep\n33\n50\n1 /srv\n/srv/data\n");
    assert_eq!(run(&recipe, Command::new("echo $0 $A")), "/bin/sh 1\n", "arguments of the entrypoint");
    assert_eq!(run(&recipe.clone().entrypoint([""; 0]), Command::new("pwd").current_dir("/").env("A", "2")), "/\n");
    assert_eq!(run(&recipe.clone().entrypoint(["echo", "x"]), Command::of_image()), "x\n", "an entrypoint clears the command");
    assert_eq!(run(&recipe.clone().user(7, 8), Command::of_image()), "/work/deep\n7\n8\n1 /\n/srv/data\n");
    let mut child = recipe.clone().entrypoint(["sh", "-c"]).spawn("trap 'exit 9' USR1; while :; do sleep 0.01; done").expect("it starts");
    // Before the shell has got to its trap the signal ends it.
    std::thread::sleep(std::time::Duration::from_millis(300));
    child.stop(std::time::Duration::from_secs(20)).expect("told");
    assert!(matches!(child.wait().expect("an end"), cofferdam::Exit::Code(9) | cofferdam::Exit::Signal(10)));
}

fn a_user_is_in_the_groups_that_the_image_says() {
    let groups = "root:x:0:\nstaff:x:50:web\nsecret:x:60:root,web\nother:x:70:root\n";
    let layer = [busybox(), vec![file("etc/group", groups), file("secret", "told").mode(0o640).owner(60)]].concat();
    let image = |user: &str| open(&store(), &Layout::of(&[tar(&layer)], json!({ "User": user })).path).expect("an image");
    let says = |recipe: &Sandbox| recipe.run(["sh", "-c", "id -G; cat /secret 2>/dev/null"]).expect("it runs").text().into_owned();
    let web = Sandbox::new().rootfs(image("web"));
    // One id has no groups to be in.
    if web.check().expect("a report").state(Layer::SubordinateIds) == &LayerState::Works || is_root() {
        assert_eq!(says(&web), "34 50 60\ntold");
        assert_eq!(says(&Sandbox::new().rootfs(image("web:staff"))), "50\n", "who names a group is in that one");
        assert_eq!(says(&web.user(33, 34)), "34\n", "and so is whom the recipe names");
    }
}

fn unknown_users_are_refused_by_name() {
    for (user, passwd, word) in [
        ("ghost", file("etc/passwd", "root:x:0:0::/:\n"), "ghost"),
        ("web", symlink("etc/passwd", "/etc/shadow"), "web"),
        ("web", Entry { kind: b'6', ..file("etc/passwd", "") }, "no regular file"),
        ("web", file("etc/passwd", vec![b'x'; (1 << 20) + 1]), "larger"),
    ] {
        let layout = Layout::of(&[tar(&busybox()), tar(&[dir("etc/"), passwd])], json!({"User": user}));
        let image = open(&store(), &layout.path).expect("an image");
        let error = Sandbox::new().rootfs(&image).run(["sh", "-c", "true"]).expect_err("nobody");
        assert!(error.to_string().contains(word), "{error}");
        // Whoever names a user needs no name.
        assert!(Sandbox::new().rootfs(&image).user(0, 0).run(["sh", "-c", "true"]).expect("it runs").success());
    }
    // A link within the image is followed there and nowhere else.
    let layers = [
        tar(&busybox()),
        tar(&[dir("etc/"), symlink("etc/passwd", "../../../../lib/users"), dir("lib/"), file("lib/users", support::image::PASSWD)]),
    ];
    let image = open(&store(), &Layout::of(&layers, json!({"User": "web"})).path).expect("an image");
    assert_eq!(prints(&image, "id -u"), "33\n");
}

fn what_only_lower_layers_know_is_asked_of_them() {
    let base =
        [busybox(), vec![dir("usr/"), dir("usr/lib/"), symlink("lib", "usr/lib"), dir("private/").mode(0o700), file("private/key", "k")]]
            .concat();
    let upper = [
        // Behind the link, not in its place.
        file("lib/new.so", "new"),
        // Without an entry for the directory it stays closed.
        file("private/more", "m"),
        hard_link("key2", "private/key"),
    ];
    let layout = Layout::of(&[tar(&base), tar(&upper)], json!({}));
    let store = store();
    let image = open(&store, &layout.path).expect("an image");
    let script = "stat -c '%N %a' /lib /private; cat /usr/lib/new.so; echo; ls /private; cat /key2; stat -c %h /key2";
    assert_eq!(prints(&image, script), "'/lib' -> 'usr/lib' 777\n/private 700\nnew\nkey\nmore\nk2\n");
    let dest = fresh_dir("flat-").join("dest");
    Image::options().store(&store).unpack(&layout.path, &dest).expect("unpacked");
    assert_eq!(fs::read_link(dest.join("lib")).expect("a link"), Path::new("usr/lib"));
    assert_eq!(fs::metadata(dest.join("private")).expect("it").permissions().mode() & 0o7777, 0o700);
}

fn a_layer_that_hides_everything_ends_the_stack() {
    let layers = [tar(&[dir("old/"), file("old/x", "x")]), tar(&[busybox(), vec![file(".wh..wh..opq", "")]].concat())];
    let image = open(&store(), &Layout::of(&layers, json!({})).path).expect("an image");
    assert_eq!(prints(&image, "ls -d /old 2>/dev/null; ls /bin/sh"), "/bin/sh\n");
}

fn a_layer_that_stands_twice_counts_twice() {
    let layers = three_layers();
    let layers = [layers[0].clone(), layers[1].clone(), layers[2].clone(), layers[1].clone()];
    let image = open(&store(), &Layout::of(&layers, json!({})).path).expect("an image");
    assert_eq!(prints(&image, SCRIPT), EXPECTED);
}

fn many_layers_are_stacked() {
    let mut layers = vec![tar(&[busybox(), vec![dir("n/")]].concat())];
    for i in 1..200 {
        layers.push(tar(&[dir("n/"), file(&format!("n/{i}"), i.to_string()), file("last", i.to_string())]));
    }
    let store = store();
    // A few are opened one by one, where the kernel takes them so.
    for count in [1, 5, 6, 7, 8, 9, 15, 16, 17, 18] {
        let image = open(&store, &Layout::of(&layers[..count], json!({})).path).expect("an image");
        let newest = if count == 1 { String::new() } else { (count - 1).to_string() };
        assert_eq!(prints(&image, "cat /last 2>/dev/null; ls /n | wc -l").trim(), format!("{newest}{}", count - 1), "{count} layers");
    }
    let image = open(&store, &Layout::of(&layers, json!({})).path).expect("an image");
    assert_eq!(
        prints(&image, "ls /n | sort -n | tail -n 1 2>/dev/null || ls /n | sort | sh -c 'cat > /dev/null'; cat /last; cat /n/1")
            .trim_start_matches("199\n"),
        "1991"
    );
    // The most that a manifest may have.
    while layers.len() < 500 {
        layers.push(tar(&[file(&format!("more{}", layers.len()), "")]));
    }
    let image = open(&store, &Layout::of(&layers, json!({})).path).expect("an image of 500 layers");
    assert_eq!(prints(&image, "cat /last; test -e /more499"), "199");
    layers.push(tar(&[]));
    let error = open(&store, &Layout::of(&layers, json!({})).path).expect_err("too many");
    assert!(error.to_string().contains("500"), "{error}");
}

/// Damage of every kind is told, and nothing stays of it.
fn damaged_images_are_refused() {
    type Damage = fn(&mut Layout);
    fn layer_blob(layout: &Layout) -> PathBuf {
        let largest =
            fs::read_dir(layout.path.join("blobs/sha256")).expect("blobs").flatten().max_by_key(|e| e.metadata().map_or(0, |m| m.len()));
        largest.expect("a blob").path()
    }
    fn manifest_blob(layout: &Layout) -> PathBuf {
        layout.blob_path(layout.index[0]["digest"].as_str().expect("a digest"))
    }
    fn again(layout: &mut Layout, layers: &[serde_json::Value], ids: &[String]) {
        let manifest = layout.manifest_of(layers, ids, json!({}));
        layout.index.clear();
        layout.add(manifest, "one");
    }
    let cases: &[(&str, &str, Damage)] = &[
        ("a flipped bit in a layer", "damaged", |layout| {
            let path = layer_blob(layout);
            let mut bytes = fs::read(&path).expect("it");
            // In a file's contents, where no parser sees it.
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            fs::write(path, bytes).expect("written");
        }),
        ("a layer cut off", "bytes", |layout| {
            let path = layer_blob(layout);
            let bytes = fs::read(&path).expect("it");
            fs::write(path, &bytes[..bytes.len() / 2]).expect("written");
        }),
        ("a missing layer", "isn't in the image", |layout| fs::remove_file(layer_blob(layout)).expect("removed")),
        ("a layer that is a FIFO", "FIFO", |layout| {
            let path = layer_blob(layout);
            fs::remove_file(&path).expect("removed");
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        }),
        ("a layer that is a link", "symbolic link", |layout| {
            let path = layer_blob(layout);
            let moved = layout.path.join("moved");
            fs::rename(&path, &moved).expect("moved");
            std::os::unix::fs::symlink(&moved, &path).expect("a link");
        }),
        ("a directory of blobs that is a link", "symbolic link", |layout| {
            fs::rename(layout.path.join("blobs"), layout.path.join("moved")).expect("moved");
            std::os::unix::fs::symlink("moved", layout.path.join("blobs")).expect("a link");
        }),
        ("a flipped bit in the manifest", "damaged", |layout| {
            let path = manifest_blob(layout);
            let text = fs::read_to_string(&path).expect("it").replace("\"schemaVersion\":2", "\"schemaVersion\":3");
            fs::write(path, text).expect("written");
        }),
        ("a manifest of another size", "descriptor says", |layout| {
            layout.index[0]["size"] = json!(7);
            layout.write();
        }),
        ("a huge manifest", "are possible", |layout| {
            layout.index[0]["size"] = json!(1u64 << 40);
            layout.write();
        }),
        ("a digest that is a path", "no digest", |layout| {
            layout.index[0]["digest"] = json!("sha256:../../../../etc/passwd");
            layout.write();
        }),
        ("no index", "index.json", |layout| fs::remove_file(layout.path.join("index.json")).expect("removed")),
        ("an index without images", "no image", |layout| {
            layout.index.clear();
            layout.write();
        }),
        ("an unknown layout", "version", |layout| {
            fs::write(layout.path.join("oci-layout"), r#"{"imageLayoutVersion":"9"}"#).expect("written");
        }),
        ("a wrong diff id", "configuration doesn't name", |layout| {
            let layer = layout.blob(LAYER, &tar(&busybox()));
            again(layout, &[layer], &[sha256(b"something else")]);
        }),
        ("more diff ids than layers", "names 2", |layout| {
            let bytes = tar(&busybox());
            let layer = layout.blob(LAYER, &bytes);
            again(layout, &[layer], &[sha256(&bytes), sha256(b"")]);
        }),
        ("a layer of an unknown type", "no layer", |layout| {
            let bytes = tar(&busybox());
            let layer = layout.blob("application/x-something", &bytes);
            again(layout, &[layer], &[sha256(&bytes)]);
        }),
        ("an encrypted layer", "encrypted", |layout| {
            let bytes = tar(&busybox());
            let layer = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", &bytes);
            again(layout, &[layer], &[sha256(&bytes)]);
        }),
        ("a foreign layer that isn't there", "foreign", |layout| {
            let bytes = tar(&busybox());
            let mut layer = layout.blob("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", &bytes);
            layer["urls"] = json!(["http://127.0.0.1:1/layer"]);
            fs::remove_file(layout.blob_path(layer["digest"].as_str().expect("one"))).expect("removed");
            again(layout, &[layer], &[sha256(&bytes)]);
        }),
        ("a layer that is no archive", "", |layout| {
            let bytes = vec![0x55; 100_000];
            let layer = layout.blob(LAYER, &bytes);
            again(layout, &[layer], &[sha256(&bytes)]);
        }),
        ("a layer that climbs out", "", |layout| {
            let bytes = tar(&[file("../../escaped", "x")]);
            let layer = layout.blob(LAYER, &bytes);
            again(layout, &[layer], &[sha256(&bytes)]);
        }),
        ("an artifact", "artifact", |layout| {
            let config = layout.blob("application/vnd.oci.empty.v1+json", b"{}");
            let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
            let manifest = layout.blob(support::image::MANIFEST, manifest.to_string().as_bytes());
            layout.index.clear();
            layout.add(manifest, "one");
        }),
    ];
    for (what, word, damage) in cases {
        let store = store();
        let mut layout = Layout::of(&[tar(&busybox()), tar(&[file("x", "x")])], json!({}));
        damage(&mut layout);
        let error = open(&store, &layout.path).expect_err(what);
        assert!(matches!(error.kind(), ErrorKind::Image), "{what}: {error:?}");
        assert!(error.to_string().contains(word), "{what}: {error}");
        assert!(!error.to_string().contains('\n'), "{what}: one line: {error}");
        assert_empty(&store);
        let dest = fresh_dir("refused-").join("dest");
        let error = Image::options().store(&store).unpack(&layout.path, &dest).expect_err(what);
        assert!(matches!(error.kind(), ErrorKind::Image), "{what}: {error:?}");
        assert!(!dest.exists(), "{what}: nothing is left");
    }
}

fn limits_hold() {
    let layout = Layout::of(&[tar(&[busybox(), vec![file("big", vec![0; 3 << 20])]].concat())], json!({}));
    let store = store();
    let error = Image::options().store(&store).max_bytes(1 << 20).open(&layout.path).expect_err("too large");
    assert!(error.to_string().contains("more than 1 MiB"), "{error}");
    assert_empty(&store);
    let error = Image::options().store(&store).max_inodes(5).open(&layout.path).expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::Image, "{error}");
    assert_empty(&store);
    assert!(open(&store, &layout.path).is_ok());
}

fn archives_of_docker_save_open() {
    let root = fresh_dir("docker-");
    let layers = three_layers();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh", "-c", SCRIPT]},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| sha256(l)).collect::<Vec<_>>()}})
    .to_string();
    let id = sha256(config.as_bytes())[7..].to_string();
    let names: Vec<String> = (0..3).map(|i| sha256(&[i as u8])[7..].to_string()).collect();
    let manifest = json!([{"Config": format!("{id}.json"), "RepoTags": ["app:1"], "Layers": names.iter().map(|n| format!("{n}/layer.tar")).collect::<Vec<_>>()}]);
    let mut entries = vec![file(&format!("{id}.json"), &config)];
    for (name, layer) in names.iter().zip(&layers) {
        entries.extend([dir(&format!("{name}/")), file(&format!("{name}/VERSION"), "1.0"), file(&format!("{name}/json"), "{}")]);
        entries.push(file(&format!("{name}/layer.tar"), layer));
    }
    // As Docker did it where two layers are the same.
    let linked = "ab".repeat(32);
    entries.extend([dir(&format!("{linked}/")), symlink(&format!("{linked}/layer.tar"), &format!("../{}/layer.tar", names[2]))]);
    let manifest = manifest.to_string().replace(&names[2], &linked);
    entries.extend([file("manifest.json", manifest), file("repositories", "{}")]);
    let archive = root.join("old.tar");
    fs::write(&archive, tar(&entries)).expect("written");
    let store = store();
    for reference in [None, Some("app:1"), Some("docker.io/library/app:1")] {
        let options = Image::options().store(&store);
        let image = reference.map_or_else(|| options.clone(), |r| options.clone().reference(r)).open(&archive).expect("an image");
        assert_eq!(image.id(), Some(format!("sha256:{id}").as_str()));
        let out = Sandbox::new().rootfs(&image).run(Command::of_image()).expect("it runs");
        assert_eq!(out.text(), EXPECTED, "{}", String::from_utf8_lossy(&out.stderr));
    }
    let error = Image::options().store(&store).reference("other").open(&archive).expect_err("no such image");
    assert!(error.to_string().contains("app:1"), "{error}");
    for (name, changed) in [("climbs.tar", "../../../etc/passwd"), ("gone.tar", "nothing/layer.tar")] {
        let entries: Vec<Entry> = entries
            .iter()
            .map(|e| match e.path.as_str() {
                "manifest.json" => {
                    file("manifest.json", String::from_utf8_lossy(&e.contents).replace(&format!("{linked}/layer.tar"), changed))
                }
                _ => e.clone(),
            })
            .collect();
        let store = Store::open(root.join(format!("{name}.store"))).expect("a store");
        fs::write(root.join(name), tar(&entries)).expect("written");
        assert_eq!(open(&store, &root.join(name)).expect_err("refused").kind(), ErrorKind::Image);
        assert_empty(&store);
    }
}

fn a_run_is_committed_and_saved() {
    let layout = Layout::of(&three_layers(), json!({"Cmd": ["cat", "/data/new"], "Volumes": {"/vol": {}}}));
    let store = store();
    let image = open(&store, &layout.path).expect("an image");
    let recipe = Sandbox::new().rootfs(&image).keep_changes(true);
    let script = "echo new > /data/new; echo more >> /data/a; rm /data/c; chmod 600 /data/d; mkdir -p /fresh/deep; touch /vol/data; ln /data/new /data/link; touch -d @1000000000 /data/new";
    let out = recipe.run(["sh", "-c", script]).expect("it runs");
    assert!(out.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let changes = out.changes().expect("changes");
    let list: Vec<(&str, ChangeKind)> = changes.iter().map(|c| (c.path.to_str().expect("a text"), c.kind)).collect();
    let expected = [
        ("data/a", ChangeKind::Modified),
        ("data/c", ChangeKind::Deleted),
        ("data/d", ChangeKind::Modified),
        ("data/link", ChangeKind::Added),
        ("data/new", ChangeKind::Added),
        ("fresh", ChangeKind::Added),
        ("fresh/deep", ChangeKind::Added),
    ];
    assert_eq!(list, expected);
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    let options = CommitOptions::new().time(time).name("mine:1").comment("by a test");
    let committed = out.commit(&options).expect("an image");
    assert_ne!(committed.id(), image.id());
    assert_eq!(
        prints(&committed, "cat /data/a; ls /data /fresh; stat -c '%a %h' /data/d /data/new; test ! -e /vol/data"),
        "a2more\na\nd\nlink\nnew\ndeep\n600 1\n644 2\n"
            .replace("\n/", "/")
            .replace("a\nd\nlink\nnew\ndeep\n", "/data:\na\nd\nlink\nnew\n\n/fresh:\ndeep\n")
    );
    assert_eq!(out.commit(&options).expect("again").id(), committed.id(), "equal changes, equal image");
    assert_eq!(store.image("mine:1").expect("by name").id(), committed.id());
    // The first run's image is as it was.
    assert_eq!(prints(&image, SCRIPT), EXPECTED);

    let root = fresh_dir("saved-");
    let path = |name: &str| root.join(name);
    committed.save(path("dir"), ImageFormat::OciDirectory, "mine").expect("saved");
    committed.save(path("oci.tar"), ImageFormat::OciArchive, "mine").expect("saved");
    committed.save(path("docker.tar"), ImageFormat::DockerArchive, "mine:1").expect("saved");
    committed.save(path("again.tar"), ImageFormat::OciArchive, "mine").expect("saved");
    assert_eq!(fs::read(path("oci.tar")).expect("it"), fs::read(path("again.tar")).expect("it"), "byte for byte");
    for (i, from) in ["oci:dir:mine", "oci-archive:oci.tar:mine", "docker-archive:docker.tar:mine:1"].iter().enumerate() {
        let (transport, rest) = from.split_once(':').expect("two parts");
        let from = format!("{transport}:{}/{rest}", text(&root));
        let to = format!("oci:{}:back", text(&path(&format!("back{i}"))));
        tool("skopeo", &["--insecure-policy", "copy", "-q", &from, &to]);
        let back = Image::options()
            .store(&Store::open(path(&format!("store{i}"))).expect("a store"))
            .open(path(&format!("back{i}")))
            .expect("an image");
        // From Docker's form skopeo makes a configuration of its own.
        assert!(back.id() == committed.id() || transport == "docker-archive", "{from}");
        assert_eq!(Sandbox::new().rootfs(&back).run(Command::of_image()).expect("it runs").text(), "new\n");
    }
    let rootless: &[&str] = if is_root() { &[] } else { &["--rootless"] };
    tool("umoci", &[&["unpack"], rootless, &["--image", &format!("{}:mine", text(&path("dir"))), text(&path("bundle"))]].concat());
    let ours = path("ours");
    Image::options().store(&store).unpack(path("oci.tar"), &ours).expect("unpacked");
    assert_eq!(listing(&ours), listing(&path("bundle/rootfs")));
    assert!(committed.save(path("dir"), ImageFormat::OciDirectory, "mine").is_err(), "it isn't empty");
}

/// Looks at everything in an image, but for what lies in mounts.
const EVERYTHING: &str = "find / -xdev ! -path '/proc*' ! -path '/dev*' | sort | while read -r f; do stat -c '%n %a %u %g %F' \"$f\"; done; stat -c %Y /data /data/* /was/it; cat /data/*";

fn an_image_is_copied_where_overlayfs_is_missing() {
    let mut layers = three_layers();
    layers.push(tar(&[
        dir("data/").mode(0o2750),
        file("data/set", "s").mode(0o4711).owner(33),
        dir("opaque/"),
        file("opaque/old", "o"),
        symlink("link", "../../data/a"),
        file("was", "a file"),
    ]));
    layers.push(tar(&[
        dir("opaque/"),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/new", "n"),
        dir("was/"),
        file("was/it", "x"),
        file(".wh.link", ""),
    ]));
    let image = open(&store(), &Layout::of(&layers, json!({})).path).expect("an image");
    let recipe = Sandbox::new().rootfs(&image);
    // Without its name the kernel knows no such file system.
    let without = recipe.clone().with_bits_cleared("mount the overlay", 0, u64::MAX);
    let error = without.run(["true"]).expect_err("there's no overlayfs");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("prefer(Layer::Overlay)"), "{error}");

    let copied = without.prefer(Layer::Overlay);
    let look = |recipe: &Sandbox| recipe.run(["sh", "-c", EVERYTHING]).expect("it runs");
    let (copy, overlay) = (look(&copied), look(&recipe));
    assert_eq!((copy.missing.as_slice(), overlay.missing.contains(&Layer::Overlay)), (&[Layer::Overlay][..], false));
    let lines = |text: &str| text.lines().map(String::from).collect::<Vec<_>>();
    assert_eq!(lines(&copy.text()), lines(&overlay.text()));
    assert!(copy.text().contains("/opaque/new") && !copy.text().contains("/opaque/old"), "{copy}");
    // It can be written to, and what is written is gone with the run.
    let written =
        copied.run(["sh", "-c", "echo 1 > /data/a; mv /opaque /o; rm -r /bin/ls; echo 2 > /new; cat /data/a /new"]).expect("it runs");
    assert_eq!(written.text(), "1\n2\n", "{written}");
    assert_eq!(lines(&look(&copied).text()), lines(&copy.text()));
    // The disk limit counts it.
    let error = copied.clone().writable(1 << 20).run(["true"]).expect_err("busybox is larger");
    assert!(error.to_string().contains("doesn't fit"), "{error}");
    // And all of it would be changes.
    assert!(copied.keep_changes(true).run(["true"]).is_err());
}

fn changes_are_only_kept_on_request() {
    let store = store();
    let image = open(&store, &Layout::of(&[tar(&busybox())], json!({})).path).expect("an image");
    let out = Sandbox::new().rootfs(&image).run(["sh", "-c", "true"]).expect("it runs");
    assert_eq!(out.changes().expect_err("not kept").kind(), ErrorKind::Invalid);
    let out = Sandbox::new().rootfs(&image).keep_changes(true).run(["sh", "-c", "true"]).expect("it runs");
    assert_eq!(out.changes().expect("kept"), [], "what we put there ourselves doesn't count");
    let error = Sandbox::new().keep_changes(true).run("true").expect_err("the host's root");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

/// Two images, the second on the first, in every form that buildah writes.
const BUILDAH: &str = r#"
b() { buildah --root "$PWD/root" --runroot "$PWD/run" --storage-driver vfs "$@"; }
c=$(b from scratch)
b copy -q "$c" "$1" /bin/busybox
b run --isolation chroot "$c" /bin/busybox --install -s /bin
b config --env WHO=buildah --workingdir /data --entrypoint '["cat"]' --cmd a --label l=1 "$c"
b run --isolation chroot "$c" sh -c 'mkdir /gone; echo x > /gone/x; echo a1 > a; ln a hard; chown 33:34 a; chmod 4755 a; mkfifo p'
b commit -q "$c" base
d=$(b from --pull-never base)
b run --isolation chroot "$d" sh -c 'rm -r /gone; echo a2 >> a; mkdir /new; ln -s ../data /new/l'
b commit -q "$d" second
b push -q second "oci:$PWD/oci:two"
b push -q second "oci-archive:$PWD/oci.tar:two"
b push -q second "docker-archive:$PWD/docker.tar:two:latest"
b push -q --compression-format zstd second "oci:$PWD/zstd:two"
b push -q --compression-format zstd:chunked second "oci:$PWD/chunked:two"
b rm -a > /dev/null; b rmi -a > /dev/null"#;

fn images_of_buildah_open() {
    let directory = fresh_dir("buildah-");
    let busybox = support::which("busybox").expect("busybox");
    let output = Program::new("sh").args(["-ec", BUILDAH, "sh", text(&busybox)]).current_dir(&directory).output().expect("sh runs");
    assert!(output.status.success(), "buildah: {}", String::from_utf8_lossy(&output.stderr));
    // What umoci makes of it.
    let theirs = directory.join("theirs");
    tool("umoci", &["raw", "unpack", "--image", &format!("{}:two", text(&directory.join("oci"))), text(&theirs)]);
    // No layer has an entry for the root, whose time is then anybody's guess.
    let below_root = |directory: &Path| listing(directory).into_iter().filter(|line| !line.starts_with(' ')).collect::<Vec<_>>();
    for form in ["oci", "oci.tar", "docker.tar", "zstd", "chunked"] {
        let path = directory.join(form);
        let ours = fresh_dir("ours-");
        Image::options().unpack(&path, &ours).unwrap_or_else(|error| panic!("{form}: {error}"));
        assert_eq!(below_root(&ours), below_root(&theirs), "{form}");
        let image = open(&store(), &path).unwrap_or_else(|error| panic!("{form}: {error}"));
        let config = image.config().expect("it has one");
        assert_eq!(config.labels().get("l").map(String::as_str), Some("1"), "{form}");
        let recipe = Sandbox::new().rootfs(&image);
        assert_eq!(recipe.run(Command::of_image()).expect("it runs").text(), "a1\na2\n", "{form}");
        let recipe = recipe.entrypoint(["sh", "-c"]);
        let out = recipe.run(["echo $WHO; pwd; stat -c '%a %u %g %h %F' a p; ls -d /gone; cat /new/l/hard"]).expect("it runs");
        assert_eq!(out.text(), "buildah\n/data\n4755 33 34 2 regular file\n644 0 0 1 fifo\na1\na2\n", "{form}: {out}");
    }
}

/// What the tools make, with more in it than tests make up.
fn a_debian_image_works() {
    let debian = support::debian_root().expect("looked into before");
    let root = fresh_dir("debian-");
    let archive = root.join("debian.tar");
    tool("tar", &["-C", text(&debian), "--xattrs", "--xattrs-include=*", "-cf", text(&archive), "."]);
    let store = store();
    let image = open(&store, &archive).expect("an image");
    assert!(prints(&image, "cat /etc/os-release").contains("Debian"));
    assert_eq!(prints(&image, "dpkg --verify && echo verified"), "verified\n");
    // Four layers more, by successive changes.
    let mut image = image;
    for i in 1..5 {
        let recipe = Sandbox::new().rootfs(&image).keep_changes(true).capabilities(cofferdam::Capability::DOCKER);
        let script = format!(
            "echo {i} > /etc/changed-{i}; rm -f /etc/changed-$(({i} - 2)); chown 3:4 /etc/changed-{i}; adduser --version > /dev/null 2>&1; true"
        );
        let out = recipe.run(["sh", "-c", &script]).expect("it runs");
        assert!(out.success(), "{out}");
        image = out.commit(&CommitOptions::new()).expect("an image");
    }
    assert_eq!(prints(&image, "dpkg --verify && cat /etc/changed-* && stat -c %u:%g /etc/changed-4"), "3\n4\n3:4\n");
    assert_eq!(prints(&image, "apt-get --version | head -c 3; perl -e 'print 6*7'"), "apt42");
}

/// Packages are installed into an image from the network, by apt and dpkg as they are,
/// and the image that comes of it is whole.
fn packages_are_installed_in_a_debian_image() {
    let store = store();
    let archive = fresh_dir("debian-").join("debian.tar");
    let debian = support::debian_root().expect("looked into before");
    tool("tar", &["-C", text(&debian), "--xattrs", "--xattrs-include=*", "-cf", text(&archive), "."]);
    let image = open(&store, &archive).expect("an image");
    let resolver = fs::read("/etc/resolv.conf").unwrap_or_default();
    let recipe = |image: &Image| {
        Sandbox::new()
            .rootfs(image)
            .network(cofferdam::Network::Host)
            .capabilities(cofferdam::Capability::DOCKER)
            .file("/etc/resolv.conf", resolver.clone())
            .writable(2 << 30)
            .keep_changes(true)
    };
    let installed = |image: &Image, script: &str| {
        let out = recipe(image).run(["sh", "-ec", script]).expect("it runs");
        assert!(out.success(), "{script}: {out}: {}{}", out.text(), String::from_utf8_lossy(&out.stderr));
        out.commit(&CommitOptions::new()).expect("an image")
    };
    let python = installed(
        &image,
        "apt-get -q update; DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends python3 python3-yaml; apt-get clean",
    );
    assert_eq!(prints(&python, "dpkg --verify && dpkg -s python3-yaml | grep -c '^Status: install ok installed'"), "1\n");
    let script = "python3 -c 'import yaml, ssl, sqlite3, json; print(json.dumps(yaml.safe_load(\"a: [1, 2]\")))'";
    assert_eq!(prints(&python, script), "{\"a\": [1, 2]}\n");
    // And removed again: whiteouts where there were files.
    let without = installed(&python, "dpkg --purge python3-yaml");
    assert_eq!(prints(&without, "dpkg --verify; python3 -c 'import yaml' 2>&1 | tail -n 1 | cut -d: -f1"), "ModuleNotFoundError\n");
    assert_eq!(prints(&python, script), "{\"a\": [1, 2]}\n");
}

fn main() {
    support::main_with_subordinate_ids(vec![
        test!(layers_are_stacked, Need::Tool("busybox"), Need::Overlay),
        test!(every_format_of_an_image_is_the_same_image, Need::Tool("busybox"), Need::Tool("skopeo"), Need::Tool("zstd"), Need::Overlay),
        test!(root_file_system_archives_open, Need::Tool("busybox"), Need::Tool("zstd"), Need::Overlay),
        test!(one_of_several_images_is_named, Need::Tool("busybox"), Need::Overlay),
        test!(the_platform_is_chosen, Need::Tool("busybox")),
        test!(the_configuration_is_followed, Need::Tool("busybox"), Need::Overlay),
        test!(a_user_is_in_the_groups_that_the_image_says, Need::Tool("busybox"), Need::Overlay),
        test!(unknown_users_are_refused_by_name, Need::Tool("busybox"), Need::Overlay),
        test!(what_only_lower_layers_know_is_asked_of_them, Need::Tool("busybox"), Need::Overlay),
        test!(a_layer_that_hides_everything_ends_the_stack, Need::Tool("busybox"), Need::Overlay),
        test!(a_layer_that_stands_twice_counts_twice, Need::Tool("busybox"), Need::Overlay),
        test!(many_layers_are_stacked, Need::Tool("busybox"), Need::Overlay),
        test!(damaged_images_are_refused, Need::Tool("busybox")),
        test!(limits_hold, Need::Tool("busybox")),
        test!(archives_of_docker_save_open, Need::Tool("busybox"), Need::Overlay),
        test!(a_run_is_committed_and_saved, Need::Tool("busybox"), Need::Tool("skopeo"), Need::Tool("umoci"), Need::Overlay),
        test!(an_image_is_copied_where_overlayfs_is_missing, Need::Tool("busybox"), Need::Overlay),
        test!(changes_are_only_kept_on_request, Need::Tool("busybox"), Need::Overlay),
        test!(images_of_buildah_open, root, Need::Tool("buildah"), Need::Tool("busybox"), Need::Tool("umoci"), Need::Overlay),
        test!(a_debian_image_works, root, Need::DebianRoot),
        test!(packages_are_installed_in_a_debian_image, root, Need::DebianRoot, Need::DebianMirror),
    ])
}
