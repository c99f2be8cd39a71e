//! The store: shared by threads and processes, and whole whatever ends them.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cofferdam::{ErrorKind, Image, Sandbox, Store};
use serde_json::json;
use support::host::{Host, inside, say};
use support::image::{Entry, Layout, busybox, dir, file, tar};
use support::{Need, emulation, fresh_dir};

const STORE: &str = "COFFERDAM_TEST_STORE";
const IMAGE: &str = "COFFERDAM_TEST_IMAGE";

/// An image with so many layers of so many files each.
fn layout(layers: usize, files: usize) -> Layout {
    let mut all = vec![tar(&busybox())];
    for i in 1..layers {
        let mut entries = vec![dir(&format!("l{i}/")).owner(33)];
        entries.extend((0..files).map(|n| file(&format!("l{i}/{n}"), format!("{i}-{n}").repeat(50)).owner(33)));
        all.push(tar(&entries));
    }
    Layout::of(&all, json!({}))
}

/// In a host process: opens the image and says how many layers it had to unpack.
fn open_as_host() {
    let (store, image) = (std::env::var_os(STORE).expect("a store"), std::env::var_os(IMAGE).expect("an image"));
    let unpacked = Arc::new(AtomicUsize::new(0));
    let counter = unpacked.clone();
    let options = Image::options().store(&Store::open(store).expect("a store").without_sync()).progress(move |progress| {
        if progress.read == progress.total {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    say("begins");
    let image = options.open(image).expect("an image");
    say(&format!("unpacked {}", unpacked.load(Ordering::Relaxed)));
    assert!(image.id().is_some());
}

fn host(name: &str, store: &Path, image: &Path) -> Host {
    let mut command = std::process::Command::new(std::env::current_exe().expect("a path of our own"));
    command.args([name, "--exact", "--test-threads=1", "--nocapture"]).env(STORE, store).env(IMAGE, image);
    Host::start_command(command)
}

fn entries(store: &Path, directory: &str) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(store.join(directory)).expect("a directory").flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn two_hundred_processes_unpack_once() {
    if inside() {
        return open_as_host();
    }
    let layout = layout(4, 200);
    let store = fresh_dir("store-").join("store");
    let processes = if emulation() > 1 { 20 } else { 200 };
    let mut hosts: Vec<Host> = (0..processes).map(|_| host("two_hundred_processes_unpack_once", &store, &layout.path)).collect();
    let unpacked: usize = hosts.iter_mut().map(|host| host.hear("unpacked ").parse::<usize>().expect("a number")).sum();
    for host in hosts {
        host.success();
    }
    assert_eq!(unpacked, 4, "each layer by one process");
    assert_eq!(entries(&store, "layers").len(), 4);
    for directory in ["tmp", "leases"] {
        assert_eq!(entries(&store, directory), [""; 0], "{directory}");
    }
}

fn killed_processes_leave_a_usable_store() {
    if inside() {
        return open_as_host();
    }
    let layout = layout(4, 300);
    let path = fresh_dir("store-").join("store");
    let store = Store::open(&path).expect("a store").without_sync();
    // How long it takes, to spread the moments over it.
    let begun = Instant::now();
    host("killed_processes_leave_a_usable_store", &path, &layout.path).success();
    let whole = begun.elapsed();
    let expected = entries(&path, "layers");
    // A hundred of them, root and the ordinary user together.
    let rounds = if emulation() > 1 { 10 } else { 50 };
    for round in 0..rounds {
        for (id, _) in store.images().expect("a list").iter().map(|image| (image.id().to_string(), ())) {
            store.remove(&id).expect("removed");
        }
        store.prune().expect("pruned");
        for directory in ["layers", "chains", "blobs", "tmp", "trash", "leases", "images", "configs", "refs"] {
            assert_eq!(entries(&path, directory), [""; 0], "round {round}: prune leaves {directory}");
        }
        let mut host = host("killed_processes_leave_a_usable_store", &path, &layout.path);
        // No synchronization: any moment must do, and these are spread evenly.
        std::thread::sleep(whole * (round * 37 % rounds) / rounds);
        host.kill();
        // Every image that is listed works.
        for image in store.images().expect("a list") {
            assert_eq!(entries(&path, "layers"), expected, "round {round}");
            store.image(image.id()).expect("it opens");
        }
        if round % 10 == 0 {
            let image = Image::options().store(&store).open(&layout.path).expect("an image");
            assert_eq!(entries(&path, "layers"), expected, "round {round}");
            drop(image);
        }
    }
}

fn layers_in_use_stay() {
    let layout = layout(2, 3);
    let store = Store::open(fresh_dir("store-").join("store")).expect("a store").without_sync();
    let image = Image::options().store(&store).open(&layout.path).expect("an image");
    let recipe = Sandbox::new().rootfs(&image);
    let mut child = recipe.spawn(["sh", "-c", "sleep 0.1; cat /l1/2"]).expect("it starts");
    store.remove("one").expect("removed");
    // The image is gone, what uses it isn't.
    assert_eq!(store.images().expect("a list").len(), 0);
    drop(image);
    drop(recipe);
    assert_eq!(store.prune().expect("pruned").layers, 0, "the sandbox is live");
    assert!(child.wait().expect("an end").success());
    drop(child);
    let pruned = store.prune().expect("pruned");
    assert_eq!(pruned.layers, 2);
    assert!(pruned.bytes > 0);
    for directory in ["layers", "chains", "blobs", "tmp", "trash", "leases", "images", "configs", "refs"] {
        assert_eq!(entries(store.path(), directory), [""; 0], "{directory}");
    }
}

fn layers_are_shared() {
    let layers = [tar(&busybox()), tar(&[file("a", "a")]), tar(&[file("b", "b")])];
    let store = Store::open(fresh_dir("store-").join("store")).expect("a store").without_sync();
    for (i, chosen) in [[0, 1], [0, 2], [0, 1]].iter().enumerate() {
        let layers: Vec<Vec<u8>> = chosen.iter().map(|n| layers[*n].clone()).collect();
        let layout = Layout::of(&layers, json!({"Labels": {"n": i.to_string()}}));
        Image::options().store(&store).open(&layout.path).expect("an image");
    }
    assert_eq!((store.images().expect("a list").len(), entries(store.path(), "layers").len()), (3, 3));
    // The three are all called "one": the last has the name.
    let images = store.images().expect("a list");
    assert_eq!(images.iter().map(|image| image.names().len()).sum::<usize>(), 1);
    store.tag(images[0].id(), "kept").expect("named");
    for image in &images[1..] {
        store.remove(image.id()).expect("removed");
    }
    store.prune().expect("pruned");
    assert_eq!(store.images().expect("a list")[0].names().last().map(String::as_str), Some("kept"));
    assert!(entries(store.path(), "layers").len() == 2 && store.image("kept").is_ok());
    assert_eq!(store.image("one-that-is-not-there").expect_err("none").kind(), ErrorKind::Image);
}

fn many_threads_share_a_store() {
    let layouts: Vec<Layout> = (2..6).map(|n| layout(n, 20)).collect();
    let path = fresh_dir("store-").join("store");
    std::thread::scope(|scope| {
        for i in 0..16usize {
            let (layouts, path) = (&layouts, &path);
            scope.spawn(move || {
                let store = Store::open(path).expect("a store").without_sync();
                for n in 0..8 {
                    Image::options().store(&store).open(&layouts[(i + n) % layouts.len()].path).expect("an image");
                    if (i + n) % 5 == 0 {
                        store.prune().expect("pruned");
                    }
                }
            });
        }
    });
    let store = Store::open(&path).expect("a store").without_sync();
    assert_eq!(store.images().expect("a list").len(), 4);
    assert_eq!(entries(&path, "layers").len(), 5);
    assert_eq!(entries(&path, "leases"), [""; 0]);
}

fn a_store_of_others_is_refused() {
    let open = fresh_dir("open-");
    let error = Store::open(&open).expect_err("others can read it");
    assert!(error.to_string().contains("0700"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Image);
    let path = fresh_dir("store-").join("deep/er");
    let store = Store::open(&path).expect("a store").without_sync();
    assert_eq!(fs::metadata(&path).expect("it").permissions().mode() & 0o777, 0o700);
    fs::write(path.join("format"), "cofferdam store 2\n").expect("written");
    let error = Store::open(&path).expect_err("of another version");
    assert!(error.to_string().contains("store 2"), "{error}");
    drop(store);
    let file = fresh_dir("file-").join("file");
    fs::write(&file, "").expect("written");
    assert!(Store::open(&file).is_err());
}

fn a_damaged_record_does_not_stop_the_rest() {
    let store = Store::open(fresh_dir("store-").join("store")).expect("a store").without_sync();
    let layout = layout(2, 1);
    let image = Image::options().store(&store).open(&layout.path).expect("an image");
    let chain: PathBuf = store.path().join("chains").join(&entries(store.path(), "chains")[0]);
    drop(image);
    // As after a crash of the machine. Its files may be somebody else's.
    let layer = store.path().join("layers").join(&entries(store.path(), "layers")[0]);
    fs::rename(layer, fresh_dir("lost-").join("layer")).expect("moved away");
    assert!(store.image("one").is_err(), "incomplete");
    let image = Image::options().store(&store).open(&layout.path).expect("made again");
    assert!(Sandbox::new().rootfs(&image).run(["sh", "-c", "cat /l1/0"]).expect("it runs").success());
    assert!(chain.exists());
}

/// Opening an image that the store has costs little more than reading its JSON. The bound
/// leaves room for a busy machine; `benches` measures.
fn an_image_that_is_there_opens_fast() {
    let layout = layout(20, 2);
    let store = Store::open(fresh_dir("store-").join("store")).expect("a store").without_sync();
    let open = || Image::options().store(&store).open(&layout.path).expect("an image");
    open();
    let time = |work: &dyn Fn()| {
        let begun = Instant::now();
        (0..100).for_each(|_| work());
        begun.elapsed() / 100
    };
    let opened = time(&|| drop(open()));
    let manifest = layout.blob_path(layout.index[0]["digest"].as_str().expect("a digest"));
    let read = time(&|| {
        for path in [layout.path.join("index.json"), manifest.clone(), layout.path.join("oci-layout")] {
            let value: serde_json::Value = serde_json::from_slice(&fs::read(path).expect("it")).expect("JSON");
            assert!(value.is_object());
        }
    });
    println!("an image of 20 layers that is there: {opened:?}; reading JSON: {read:?}");
    assert!(opened < Duration::from_millis(100), "{opened:?}");
}

/// Bytes that this thread has read, of whatever kind.
fn bytes_read() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/io").expect("it's there");
    text.strip_prefix("rchar: ").and_then(|rest| rest.lines().next()).expect("a line").parse().expect("a number")
}

fn an_archive_that_is_there_is_not_read_again() {
    let store = Store::open(fresh_dir("store-").join("store")).expect("a store").without_sync();
    let archive = fresh_dir("archive-").join("root.tar");
    let size = 4 << 20;
    let contents = |byte: u8| tar(&[busybox(), vec![file("large", vec![byte; size])]].concat());
    fs::write(&archive, contents(1)).expect("written");
    let open = || {
        let before = bytes_read();
        let id = Image::options().store(&store).open(&archive).expect("an image").id().expect("an id").to_string();
        (id, bytes_read() - before)
    };
    let (id, _) = open();
    // As long as a change might not show in the file's times it's read each time.
    let (again, read) = open();
    assert!(again == id && read > size as u64, "{read} bytes");
    let modified = fs::metadata(&archive).expect("it").modified().expect("a time");
    while modified.elapsed().expect("it's in the past") < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(open().0, id);
    let begun = Instant::now();
    let (again, read) = open();
    println!("an archive of 4 MiB that is there: {:?}, {read} bytes", begun.elapsed());
    assert!(again == id && read < 1 << 20, "{read} bytes");
    // Changed in its place, of the same length, and with the old time.
    fs::write(&archive, contents(2)).expect("written");
    fs::File::options().write(true).open(&archive).expect("it").set_modified(modified).expect("its time");
    let (other, read) = open();
    assert!(other != id && read > size as u64, "{read} bytes");
    assert_eq!(open().0, other);
    // What prune removes of it is only read once more.
    store.prune().expect("pruned");
    assert_eq!(open().0, other);
}

/// Two layers at a time, with the largest window that zstd takes without being asked.
fn importing_takes_little_memory() {
    if inside() {
        let peak = support::processes::peak_during(open_as_host);
        return say(&format!("peak {peak}"));
    }
    let import = |layout: &Layout| -> u64 {
        let store = fresh_dir("store-").join("store");
        let mut host = host("importing_takes_little_memory", &store, &layout.path);
        let peak = host.hear("peak ").parse().expect("a number");
        host.success();
        peak
    };
    // Half of it can't be compressed.
    let mut seed = 1u32;
    let mut half = |length: usize| -> Vec<u8> {
        let mut bytes = vec![0; length];
        bytes[..length / 2].fill_with(|| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        });
        bytes
    };
    let large: Vec<Vec<u8>> = (0..3).map(|i| tar(&[file(&format!("large{i}"), half(48 << 20))])).collect();
    for arguments in ["gzip -1", "zstd -q -1 --zstd=wlog=23"] {
        let layout = Layout::of_packed(&large, arguments);
        let peak = import(&layout);
        println!("{arguments}: {peak} KiB");
        assert!(peak < 64 << 10, "{arguments}: {peak} KiB");
    }
    // What has to be remembered of a layer until its end.
    let hiding = |i: usize| -> Vec<Entry> { (0..20_000).map(|n| file(&format!("d{i}/.wh.{}{n}", "x".repeat(70)), "")).collect() };
    let peak = import(&Layout::of(&[tar(&hiding(0)), tar(&hiding(1))], json!({})));
    assert!(peak < 64 << 10, "whiteouts: {peak} KiB");
}

fn main() {
    let tests = vec![
        test!(two_hundred_processes_unpack_once, Need::Tool("busybox")),
        test!(killed_processes_leave_a_usable_store, Need::Tool("busybox")),
        test!(layers_in_use_stay, Need::Tool("busybox"), Need::Overlay),
        test!(layers_are_shared, Need::Tool("busybox")),
        test!(many_threads_share_a_store, Need::Tool("busybox")),
        test!(a_store_of_others_is_refused),
        test!(a_damaged_record_does_not_stop_the_rest, Need::Tool("busybox"), Need::Overlay),
        test!(an_image_that_is_there_opens_fast, Need::Tool("busybox")),
        test!(an_archive_that_is_there_is_not_read_again, Need::Tool("busybox")),
        test!(importing_takes_little_memory, root, Need::Tool("zstd")),
    ];
    support::main_with_subordinate_ids(tests)
}
