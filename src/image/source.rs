//! What an image was found to be, whatever its format.

use super::digest::Digest;
use super::files::{Files, Member};
use super::json::{ConfigDocument, refused};
use super::platform::Platform;
use crate::error::Result;

/// An image that was read as far as its configuration.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) files: Files,
    /// Digest of the configuration, which names the contents of all layers.
    pub(crate) id: Digest,
    pub(crate) config: Vec<u8>,
    pub(crate) document: ConfigDocument,
    /// From the lowest to the topmost.
    pub(crate) layers: Vec<LayerSource>,
    /// What the image calls itself.
    pub(crate) name: Option<String>,
}

/// A layer that isn't read yet.
#[derive(Clone, Debug)]
pub(crate) struct LayerSource {
    /// Digest of the tar archive without compression.
    pub(crate) diff_id: Digest,
    /// Digest and size of what is stored, where the image says so.
    pub(crate) blob: Option<(Digest, u64)>,
    pub(crate) path: String,
    pub(crate) foreign: bool,
}

impl Source {
    /// Opens a layer.
    pub(crate) fn open_layer(&self, layer: &LayerSource) -> Result<Member> {
        match self.files.open(&layer.path)? {
            Some(member) => Ok(member),
            None if layer.foreign => {
                Err(refused("it is a foreign layer, which the image only points to (pull it with `skopeo copy` and its layers)"))
            }
            None => Err(refused(format!("{} isn't in the image", layer.path))),
        }
    }

    /// Checks what holds for every format.
    pub(crate) fn check(&self, wanted: Option<&Platform>) -> Result<()> {
        let (ids, layers) = (self.document.diff_ids().len(), self.layers.len());
        if ids != layers {
            return Err(refused(format!("the image has {layers} layers, and its configuration names {ids}")));
        }
        if let (Some(wanted), Some(own)) = (wanted, self.document.platform())
            && wanted.distance(&own).is_none()
        {
            return Err(refused(format!("the image is for {own}, not for {wanted}")));
        }
        Ok(())
    }
}
