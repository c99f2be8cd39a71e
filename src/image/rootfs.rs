//! A root file system in one tar archive, made an image of one layer.

use super::digest::Digest;
use super::json::ConfigDocument;
use super::platform::Platform;
use super::source::{LayerSource, Source};
use super::{Archive, Files};
use crate::error::Result;

/// The image of one layer: of this machine's platform, with nothing else in its
/// configuration, so that equal archives are the same image.
pub(crate) fn source(diff_id: &Digest, name: String) -> Result<Source> {
    let platform = Platform::host();
    let config = serde_json::json!({
        "architecture": platform.architecture(),
        "config": {},
        "os": platform.os(),
        "rootfs": {"diff_ids": [diff_id.as_str()], "type": "layers"},
    });
    let config = config.to_string().into_bytes();
    let document = ConfigDocument::parse(&config)?;
    let layer = LayerSource { diff_id: diff_id.clone(), blob: None, path: String::new(), foreign: false };
    let id = Digest::of(&config);
    Ok(Source { files: Files::Archive(Archive::empty()?), id, config, document, layers: vec![layer], name: Some(name) })
}
