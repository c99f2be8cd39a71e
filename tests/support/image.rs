//! Images made byte by byte, also such as no tool would make.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{fresh_dir, which};

/// An entry of a tar archive.
#[derive(Clone, Debug)]
pub struct Entry {
    pub path: String,
    pub kind: u8,
    pub mode: u32,
    pub owner: u32,
    pub link: String,
    pub contents: Vec<u8>,
}

fn entry(path: &str, kind: u8, mode: u32) -> Entry {
    Entry { path: path.into(), kind, mode, owner: 0, link: String::new(), contents: Vec::new() }
}

pub fn dir(path: &str) -> Entry {
    entry(path, b'5', 0o755)
}

pub fn file(path: &str, contents: impl AsRef<[u8]>) -> Entry {
    Entry { contents: contents.as_ref().to_vec(), ..entry(path, b'0', 0o644) }
}

pub fn symlink(path: &str, target: &str) -> Entry {
    Entry { link: target.into(), ..entry(path, b'2', 0o777) }
}

pub fn hard_link(path: &str, target: &str) -> Entry {
    Entry { link: target.into(), ..entry(path, b'1', 0o644) }
}

impl Entry {
    pub fn mode(mut self, mode: u32) -> Entry {
        self.mode = mode;
        self
    }

    pub fn owner(mut self, owner: u32) -> Entry {
        self.owner = owner;
        self
    }
}

/// A ustar archive with the usual end.
pub fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let mut header = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(entry.path.len() <= 100 && entry.link.len() <= 100, "a short name");
        put(0, entry.path.as_bytes());
        put(100, format!("{:07o}\0", entry.mode).as_bytes());
        put(108, format!("{:07o}\0{:07o}\0", entry.owner, entry.owner).as_bytes());
        put(124, format!("{:011o}\0{:011o}\0", entry.contents.len(), 1_700_000_000).as_bytes());
        put(148, b"        ");
        put(156, &[entry.kind]);
        put(157, entry.link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(header);
        out.extend(&entry.contents);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An OCI image layout that is being written.
pub struct Layout {
    pub path: PathBuf,
    pub index: Vec<Value>,
}

impl Default for Layout {
    fn default() -> Layout {
        Layout::new()
    }
}

impl Layout {
    pub fn new() -> Layout {
        let path = fresh_dir("layout-");
        fs::create_dir_all(path.join("blobs/sha256")).expect("directories");
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("oci-layout");
        Layout { path, index: Vec::new() }
    }

    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.path.join("blobs").join(digest.replace(':', "/"))
    }

    /// Writes a blob; its descriptor.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = sha256(bytes);
        fs::write(self.blob_path(&digest), bytes).expect("a blob");
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// A manifest for these layers; its descriptor.
    pub fn manifest(&self, layers: &[Vec<u8>], config: Value) -> Value {
        let ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
        let blobs: Vec<Value> = layers.iter().map(|layer| self.blob(LAYER, layer)).collect();
        self.manifest_of(&blobs, &ids, config)
    }

    /// A manifest that says what it's told to.
    pub fn manifest_of(&self, layers: &[Value], diff_ids: &[String], config: Value) -> Value {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    /// Adds a descriptor to the index, under a name.
    pub fn add(&mut self, mut descriptor: Value, name: &str) -> &mut Layout {
        if !name.is_empty() {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        self.index.push(descriptor);
        self.write();
        self
    }

    pub fn write(&self) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.index});
        fs::write(self.path.join("index.json"), index.to_string()).expect("index.json");
    }

    /// A layout of one image, its layers packed by a program with these arguments.
    pub fn of_packed(layers: &[Vec<u8>], program: &str) -> Layout {
        let mut layout = Layout::new();
        let ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
        let media_type = format!("{LAYER}+{}", program.split(' ').next().expect("a name"));
        let blobs: Vec<Value> = layers.iter().map(|layer| layout.blob(&media_type, &filtered(program, layer))).collect();
        let manifest = layout.manifest_of(&blobs, &ids, json!({}));
        layout.add(manifest, "one");
        layout
    }

    /// A layout of one image.
    pub fn of(layers: &[Vec<u8>], config: Value) -> Layout {
        let mut layout = Layout::new();
        let manifest = layout.manifest(layers, config);
        layout.add(manifest, "one");
        layout
    }
}

/// What a program makes of these bytes.
fn filtered(program: &str, bytes: &[u8]) -> Vec<u8> {
    let input = fresh_dir("packed-").join("input");
    fs::write(&input, bytes).expect("written");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("exec {program} -c")]).stdin(fs::File::open(input).expect("a file"));
    let output = command.output().expect("sh runs");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A layer with busybox and what it's usually called.
pub fn busybox() -> Vec<Entry> {
    let program = fs::read(which("busybox").expect("busybox")).expect("busybox");
    let mut entries = vec![dir("./"), dir("bin/"), file("bin/busybox", program).mode(0o755)];
    for name in
        ["sh", "cat", "ls", "echo", "id", "stat", "rm", "mkdir", "touch", "pwd", "env", "find", "test", "sleep", "ln", "chmod", "sort"]
    {
        entries.push(symlink(&format!("bin/{name}"), "busybox"));
    }
    entries.extend([dir("etc/"), file("etc/passwd", PASSWD), file("etc/group", "root:x:0:\nstaff:x:50:\n"), dir("tmp/").mode(0o1777)]);
    entries
}

pub const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n";

/// Everything in a tree that counts, in lines: for a comparison of two.
pub fn listing(root: &Path) -> Vec<String> {
    let format = "%P %y %m %U:%G %s %l %T@ %n\\n";
    let output = std::process::Command::new("find").arg(root).args(["-printf", format]).output().expect("find runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // A directory's size says nothing, and the root's time is when it was made.
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            let mut words: Vec<&str> = line.split(' ').collect();
            if words.get(1) == Some(&"d") {
                words[4] = "";
                let last = words.len() - 1;
                words[last] = "";
            }
            words.join(" ")
        })
        .collect();
    lines.sort();
    lines
}
