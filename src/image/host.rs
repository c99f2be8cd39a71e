//! The host's /usr as a root file system: what is taken, what is made up.

use std::fs;
use std::path::Path;

/// A directory or file of the host's, shown read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) host: String,
    pub(crate) inside: String,
}

/// How the host's root is put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostLayout {
    pub(crate) parts: Vec<Part>,
    /// Name (without slash) and target of links in the root.
    pub(crate) links: Vec<(String, String)>,
    /// Fresh directories, parents first, with their modes.
    pub(crate) directories: Vec<(&'static str, u32)>,
}

/// Of `/etc`, what toolchains look up: a directory whose name starts so.
const CONFIGURATION: &[&str] = &["alternatives", "java"];

impl HostLayout {
    pub(crate) fn look() -> HostLayout {
        let mut layout = HostLayout {
            directories: vec![
                ("etc", 0o755),
                ("home", 0o755),
                ("root", 0o700),
                ("run", 0o755),
                ("var", 0o755),
                ("var/tmp", 0o1777),
                ("usr", 0o755),
            ],
            ..HostLayout::default()
        };
        layout.add("/usr");
        // Merged /usr: links that lead into it. Else directories of their own.
        for name in ["bin", "lib", "lib32", "lib64", "libx32", "sbin"] {
            let path = format!("/{name}");
            match fs::read_link(&path) {
                Ok(target) => layout.links.push((name.to_string(), target.to_string_lossy().into_owned())),
                Err(_) if Path::new(&path).is_dir() => layout.add(&path),
                Err(_) => {}
            }
        }
        if Path::new("/etc/ld.so.cache").is_file() {
            layout.add("/etc/ld.so.cache");
        }
        let mut names: Vec<String> =
            fs::read_dir("/etc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| CONFIGURATION.iter().any(|c| name == c || name.starts_with(&format!("{c}-"))));
        names.sort();
        for name in names {
            let path = format!("/etc/{name}");
            if Path::new(&path).is_dir() {
                layout.add(&path);
            }
        }
        layout
    }

    fn add(&mut self, path: &str) {
        self.parts.push(Part { host: path.to_string(), inside: path.to_string() });
    }

    /// Contents of the synthetic `/etc`.
    pub(crate) fn files(hostname: &str, uid: u32, gid: u32) -> Vec<(&'static str, String)> {
        let mut passwd = String::from("root:x:0:0:root:/root:/bin/sh\n");
        let mut group = String::from("root:x:0:\ntty:x:5:\n");
        if uid != 0 && uid != 65534 {
            passwd.push_str(&format!("user:x:{uid}:{gid}::{USER_HOME}:/bin/sh\n"));
        }
        if gid != 0 && gid != 5 && gid != 65534 {
            group.push_str(&format!("user:x:{gid}:\n"));
        }
        passwd.push_str("nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n");
        group.push_str("nogroup:x:65534:\n");
        vec![
            ("/etc/passwd", passwd),
            ("/etc/group", group),
            (
                "/etc/nsswitch.conf",
                "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nservices: files\nprotocols: files\n".into(),
            ),
            ("/etc/hosts", hosts(hostname)),
            ("/etc/hostname", format!("{hostname}\n")),
        ]
    }
}

/// Home of the run's user if it isn't root.
pub(crate) const USER_HOME: &str = "/home/user";

/// `/etc/hosts`: without the host's own name in it, Java waits for a resolver.
pub(crate) fn hosts(hostname: &str) -> String {
    format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n")
}
