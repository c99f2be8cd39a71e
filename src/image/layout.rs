//! OCI image layouts (image-spec, "Image Layout"): from `index.json` to one image.

use super::digest::Digest;
use super::files::{Files, blob_path};
use super::json::{ConfigDocument, Descriptor, Document, MAX_JSON, check_layout, layer_type, refused};
use super::platform::Platform;
use super::source::{LayerSource, Source};
use crate::error::Result;

/// How deep indexes may lie in one another.
const MAX_DEPTH: usize = 4;
/// How many documents are read on the way to an image.
const MAX_DOCUMENTS: usize = 64;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Whether there's a layout here.
pub(crate) fn is_layout(files: &Files) -> Result<bool> {
    Ok(files.open("oci-layout")?.is_some())
}

/// Reads a layout as far as the configuration of the image that's asked for.
pub(crate) fn read(files: Files, reference: Option<&str>, platform: Option<&Platform>) -> Result<Source> {
    let marker = files.read("oci-layout", 4096)?.ok_or_else(|| refused("there's no oci-layout, so this is no OCI layout"))?;
    check_layout(&marker)?;
    let index = files.read("index.json", MAX_JSON)?.ok_or_else(|| refused("the OCI layout has no index.json"))?;
    let Document::Index(manifests) = Document::parse(&index, "", "index.json")? else {
        return Err(refused("index.json is a manifest, not an index"));
    };
    let manifests: Vec<Descriptor> = manifests.into_iter().filter(|d| !d.is_attestation()).collect();
    let chosen = by_name(&manifests, reference)?;
    let name = chosen.first().and_then(|d| own_name(d)).map(String::from);
    let mut search = Search { files: &files, found: Vec::new(), documents: 0 };
    for descriptor in &chosen {
        search.walk(descriptor, None, 0)?;
    }
    let Candidate { config, layers, .. } = by_platform(search.found, platform)?;
    let bytes = files.document(&config, "the configuration")?;
    let document = ConfigDocument::parse(&bytes)?;
    if layers.len() != document.diff_ids().len() {
        let (layers, ids) = (layers.len(), document.diff_ids().len());
        return Err(refused(format!("the manifest has {layers} layers, and the configuration names {ids}")));
    }
    let mut sources = Vec::with_capacity(layers.len());
    for (i, (layer, diff_id)) in layers.iter().zip(document.diff_ids()).enumerate() {
        let kind = layer_type(layer.media_type()).map_err(|e| refused(format!("layer {} can't be used: {e}", i + 1)))?;
        sources.push(LayerSource {
            diff_id: diff_id.clone(),
            blob: Some((layer.digest.clone(), layer.size)),
            path: blob_path(&layer.digest),
            foreign: kind.foreign,
        });
    }
    let source = Source { files, id: config.digest, config: bytes, document, layers: sources, name };
    source.check(platform)?;
    Ok(source)
}

fn own_name(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotation(CONTAINERD_NAME).or_else(|| descriptor.annotation(REF_NAME))
}

/// The entries of index.json of one name: variants of an image for several platforms.
fn by_name<'a>(manifests: &'a [Descriptor], reference: Option<&str>) -> Result<Vec<&'a Descriptor>> {
    let mut names: Vec<Option<&str>> = manifests.iter().map(own_name).collect();
    names.sort_unstable();
    names.dedup();
    let listed = || {
        let shown: Vec<String> = names.iter().flatten().take(50).map(|n| n.chars().take(200).collect()).collect();
        if shown.is_empty() { "none has a name".into() } else { shown.join(", ") }
    };
    let chosen: Vec<&Descriptor> = match reference {
        Some(reference) => {
            let digest = Digest::parse(reference);
            let named = |d: &&Descriptor| {
                digest.as_ref() == Some(&d.digest) || [REF_NAME, CONTAINERD_NAME].iter().any(|name| d.annotation(name) == Some(reference))
            };
            manifests.iter().filter(named).collect()
        }
        None if names.len() > 1 => {
            return Err(refused(format!("the layout holds {} images; name one of: {}", names.len(), listed())));
        }
        None => manifests.iter().collect(),
    };
    match reference {
        _ if manifests.is_empty() => Err(refused("the layout holds no image")),
        Some(reference) if chosen.is_empty() => Err(refused(format!("the layout has no image {reference:?}; there are: {}", listed()))),
        _ => Ok(chosen),
    }
}

/// A manifest that was found.
#[derive(Clone, Debug)]
struct Candidate {
    digest: Digest,
    config: Descriptor,
    layers: Vec<Descriptor>,
    platform: Option<Platform>,
}

struct Search<'a> {
    files: &'a Files,
    found: Vec<Candidate>,
    documents: usize,
}

impl Search<'_> {
    /// Collects the manifests that a descriptor leads to.
    fn walk(&mut self, descriptor: &Descriptor, outer: Option<&Platform>, depth: usize) -> Result<()> {
        if depth >= MAX_DEPTH {
            return Err(refused(format!("indexes lie in one another more than {MAX_DEPTH} deep")));
        }
        self.documents += 1;
        if self.documents > MAX_DOCUMENTS {
            return Err(refused(format!("more than {MAX_DOCUMENTS} manifests would have to be read; name an image")));
        }
        let what = "the manifest";
        let bytes = self.files.document(descriptor, what)?;
        let platform = descriptor.platform().or_else(|| outer.cloned());
        match Document::parse(&bytes, descriptor.media_type(), what)? {
            Document::Index(manifests) => {
                manifests.iter().filter(|d| !d.is_attestation()).try_for_each(|d| self.walk(d, platform.as_ref(), depth + 1))
            }
            Document::Manifest { config, layers } => {
                self.found.push(Candidate { digest: descriptor.digest.clone(), config, layers, platform });
                Ok(())
            }
        }
    }
}

/// The manifest that fits best. One that names no platform fits if it's the only one:
/// its configuration is asked afterwards.
fn by_platform(mut found: Vec<Candidate>, wanted: Option<&Platform>) -> Result<Candidate> {
    found.dedup_by(|a, b| a.digest == b.digest);
    if found.len() == 1 && found[0].platform.is_none() {
        return found.pop().ok_or_else(|| refused("the layout holds no image"));
    }
    let host = Platform::host();
    let wanted = wanted.unwrap_or(&host);
    let distance = |candidate: &Candidate| candidate.platform.as_ref().and_then(|p| wanted.distance(p));
    let best = found.iter().filter_map(distance).min();
    let mut fitting = found.iter().filter(|c| distance(c).is_some() && distance(c) == best);
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one.clone()),
        (Some(one), Some(other)) => {
            Err(refused(format!("two images are for {wanted}: {} and {} (name one by its digest)", one.digest, other.digest)))
        }
        (None, _) => {
            let mut offered: Vec<String> =
                found.iter().map(|c| c.platform.as_ref().map_or("one that names none".into(), Platform::to_string)).collect();
            offered.sort();
            offered.dedup();
            let offered = if offered.is_empty() { "there is none at all".into() } else { format!("there are: {}", offered.join(", ")) };
            Err(refused(format!("no image is for {wanted}; {offered}")))
        }
    }
}
