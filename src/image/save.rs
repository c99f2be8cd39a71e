//! Images as files that other programs load.
//!
//! Equal images become equal bytes: members are in a fixed order, belong to root and
//! are from 1970, and JSON has its keys sorted.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Image;
use super::digest::Digest;
use super::files::blob_path;
use super::json::refused;
use crate::error::{Error, Result};
use crate::store::{Imported, Stored};
use crate::tar;

/// How [`Image::save`] writes an image.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// An OCI image layout in a directory, which must be empty or missing.
    OciDirectory,
    /// An OCI image layout in a tar archive.
    OciArchive,
    /// An archive as `docker save` writes it since Docker 25: an OCI image layout with
    /// the `manifest.json` that older versions, podman and skopeo look for.
    DockerArchive,
}

impl Image {
    /// Writes the image to a file or directory that skopeo, umoci, podman and docker
    /// load. Layers are written as they came, so their digests stay what they were. The
    /// image is called `name` there.
    ///
    /// A file is written beside its place and renamed, so that nobody sees half of one.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for a root file system that isn't
    /// in a store.
    pub fn save(&self, path: impl AsRef<Path>, format: ImageFormat, name: &str) -> Result<()> {
        let path = path.as_ref();
        let Some(imported) = self.layers() else {
            return Err(Error::invalid("only an image that was opened from an archive or a layout can be saved"));
        };
        if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Error::invalid(format!("{name:?} can't be the name of an image")));
        }
        save(imported, path, format, name).map_err(|error| error.within(&format!("cannot save the image to {}", path.display())))
    }
}

/// A member of a layout.
struct Member {
    name: String,
    contents: Contents,
}

enum Contents {
    Directory,
    Bytes(Vec<u8>),
    File { path: PathBuf, size: u64 },
}

fn save(imported: &Imported, path: &Path, format: ImageFormat, name: &str) -> Result<()> {
    let members = members(&imported.stored()?, format, name)?;
    if format == ImageFormat::OciDirectory {
        return to_directory(&members, path);
    }
    let mut new = path.as_os_str().to_os_string();
    new.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(new);
    let written =
        to_archive(&members, &new).and_then(|()| fs::rename(&new, path).map_err(|e| Error::io("rename", &new.to_string_lossy(), e)));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// The files of a layout, directories before what is in them.
fn members(stored: &Stored, format: ImageFormat, name: &str) -> Result<Vec<Member>> {
    const OCI: &str = "application/vnd.oci.image";
    let mut blobs: Vec<(Digest, Contents)> = Vec::new();
    let mut layers = Vec::new();
    for layer in &stored.layers {
        let media_type = match magic(&layer.path)? {
            [0x1f, 0x8b, ..] => format!("{OCI}.layer.v1.tar+gzip"),
            [0x28, 0xb5, 0x2f, 0xfd] => format!("{OCI}.layer.v1.tar+zstd"),
            // A skippable frame, with which zstd:chunked may begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18] => format!("{OCI}.layer.v1.tar+zstd"),
            _ => format!("{OCI}.layer.v1.tar"),
        };
        layers.push(descriptor(&media_type, &layer.digest, layer.size));
        blobs.push((layer.digest.clone(), Contents::File { path: layer.path.clone(), size: layer.size }));
    }
    let config = stored.config.clone();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": format!("{OCI}.manifest.v1+json"),
        "config": descriptor(&format!("{OCI}.config.v1+json"), &stored.id, config.len() as u64),
        "layers": layers,
    });
    let manifest = manifest.to_string().into_bytes();
    let digest = Digest::of(&manifest);
    let mut entry = descriptor(&format!("{OCI}.manifest.v1+json"), &digest, manifest.len() as u64);
    let short = name.rsplit_once(':').map_or(name, |(_, tag)| tag);
    entry["annotations"] = match format {
        ImageFormat::DockerArchive => json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": short}),
        _ => json!({"org.opencontainers.image.ref.name": name}),
    };
    if let Some(platform) = stored.platform()? {
        entry["platform"] = json!({"architecture": platform.architecture(), "os": platform.os()});
        if let Some(variant) = platform.variant() {
            entry["platform"]["variant"] = variant.into();
        }
    }
    let index = json!({"schemaVersion": 2, "mediaType": format!("{OCI}.index.v1+json"), "manifests": [entry]});
    let docker = json!([{
        "Config": blob_path(&stored.id),
        "RepoTags": [if name.contains(':') { name.to_string() } else { format!("{name}:latest") }],
        "Layers": stored.layers.iter().map(|layer| blob_path(&layer.digest)).collect::<Vec<_>>(),
    }]);

    blobs.push((stored.id.clone(), Contents::Bytes(config)));
    blobs.push((digest, Contents::Bytes(manifest)));
    // A layer may stand twice.
    blobs.sort_by(|a, b| a.0.cmp(&b.0));
    blobs.dedup_by(|a, b| a.0 == b.0);
    let directory = |name: &str| Member { name: name.into(), contents: Contents::Directory };
    let bytes = |name: &str, value: Value| Member { name: name.into(), contents: Contents::Bytes(value.to_string().into_bytes()) };
    let mut members = vec![directory("blobs")];
    let mut algorithms: Vec<&str> = blobs.iter().map(|(digest, _)| digest.algorithm()).collect();
    algorithms.dedup();
    members.extend(algorithms.iter().map(|algorithm| directory(&format!("blobs/{algorithm}"))));
    members.extend(blobs.into_iter().map(|(digest, contents)| Member { name: blob_path(&digest), contents }));
    members.push(bytes("index.json", index));
    if format == ImageFormat::DockerArchive {
        members.push(bytes("manifest.json", docker));
    }
    members.push(bytes("oci-layout", json!({"imageLayoutVersion": "1.0.0"})));
    Ok(members)
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest.as_str(), "size": size})
}

/// The first bytes of a file, zeros where it has fewer.
fn magic(path: &Path) -> Result<[u8; 4]> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4).read_to_end(&mut bytes));
    read.map_err(|e| Error::io("read", &path.to_string_lossy(), e))?;
    bytes.resize(4, 0);
    Ok([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn to_directory(members: &[Member], path: &Path) -> Result<()> {
    let failed = |path: &Path, e| Error::io("write", &path.to_string_lossy(), e);
    let mut builder = DirBuilder::new();
    builder.mode(0o755);
    match builder.create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(path, error)),
        _ => {}
    }
    if fs::read_dir(path).map_err(|e| failed(path, e))?.next().is_some() {
        return Err(refused("it isn't empty"));
    }
    for member in members {
        let place = path.join(&member.name);
        match &member.contents {
            Contents::Directory => builder.create(&place),
            Contents::Bytes(bytes) => fs::write(&place, bytes),
            Contents::File { path, .. } => fs::copy(path, &place).map(|_| ()).and_then(|()| {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(&place, fs::Permissions::from_mode(0o644))
            }),
        }
        .map_err(|e| failed(&place, e))?;
    }
    Ok(())
}

fn to_archive(members: &[Member], path: &Path) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let mut writer = tar::Writer::new(BufWriter::with_capacity(128 << 10, File::create(path)?));
        for member in members {
            let (name, kind, mode, size) = match &member.contents {
                Contents::Directory => (format!("{}/", member.name), tar::Kind::Directory, 0o755, 0),
                Contents::Bytes(bytes) => (member.name.clone(), tar::Kind::File, 0o644, bytes.len() as u64),
                Contents::File { size, .. } => (member.name.clone(), tar::Kind::File, 0o644, *size),
            };
            writer.entry(&tar::Entry { path: name.into_bytes(), kind, mode, size, ..tar::Entry::default() })?;
            match &member.contents {
                Contents::Directory => {}
                Contents::Bytes(bytes) => writer.data(bytes)?,
                Contents::File { path, size } => {
                    let (mut file, mut buffer, mut left) = (File::open(path)?, vec![0; 128 << 10], *size);
                    while left > 0 {
                        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                        let count = file.read(&mut buffer[..most])?;
                        if count == 0 {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        writer.data(&buffer[..count])?;
                        left -= count as u64;
                    }
                }
            }
        }
        writer.finish()?.flush()
    };
    attempt().map_err(|e| Error::io("write", &path.to_string_lossy(), e))
}
