//! Archives of `docker save`: `manifest.json` lists images, each a configuration and
//! layers by the names of members.

use super::digest::Digest;
use super::files::Files;
use super::json::{ConfigDocument, DockerImage, MAX_JSON, MAX_LAYERS, parse, refused};
use super::platform::Platform;
use super::source::{LayerSource, Source};
use crate::error::Result;

/// The most bytes of `manifest.json`.
const MAX_MANIFEST: u64 = 1 << 20;

/// Reads an archive as far as the configuration of the image that's asked for.
pub(crate) fn read(files: Files, reference: Option<&str>, platform: Option<&Platform>) -> Result<Source> {
    let bytes = files.read("manifest.json", MAX_MANIFEST)?.ok_or_else(|| refused("the archive has no manifest.json"))?;
    let images: Vec<DockerImage> = parse(&bytes, "manifest.json")?;
    let image = choose(&images, reference)?;
    let config = files.read(&image.config, MAX_JSON)?;
    let config = config.ok_or_else(|| refused(format!("the configuration {:.200} isn't in the archive", image.config)))?;
    let document = ConfigDocument::parse(&config)?;
    let paths = image.layers.as_deref().unwrap_or_default();
    if paths.len() > MAX_LAYERS || paths.len() != document.diff_ids().len() {
        let (layers, ids) = (paths.len(), document.diff_ids().len());
        return Err(refused(format!("manifest.json has {layers} layers, and the configuration names {ids}")));
    }
    let layer =
        |(path, diff_id): (&String, &Digest)| LayerSource { diff_id: diff_id.clone(), blob: None, path: path.clone(), foreign: false };
    let layers = paths.iter().zip(document.diff_ids()).map(layer).collect();
    let name = image.tags().first().cloned();
    // The id is computed: what the file is called says nothing.
    let source = Source { files, id: Digest::of(&config), config, document, layers, name };
    source.check(platform)?;
    Ok(source)
}

impl DockerImage {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

fn choose<'a>(images: &'a [DockerImage], reference: Option<&str>) -> Result<&'a DockerImage> {
    let listed = || {
        let tags: Vec<&str> = images.iter().flat_map(DockerImage::tags).take(50).map(|t| t.get(..200).unwrap_or(t)).collect();
        if tags.is_empty() { "none has a name".to_string() } else { tags.join(", ") }
    };
    let mut chosen = images.iter().filter(|image| reference.is_none_or(|r| image.tags().iter().any(|tag| full_name(tag) == full_name(r))));
    match (chosen.next(), chosen.next(), reference) {
        (Some(one), None, _) => Ok(one),
        (Some(_), Some(_), Some(reference)) => Err(refused(format!("two images of the archive are called {reference:?}"))),
        (Some(_), Some(_), None) => Err(refused(format!("the archive holds {} images; name one of: {}", images.len(), listed()))),
        (None, _, Some(reference)) => Err(refused(format!("the archive has no image {reference:?}; there are: {}", listed()))),
        (None, ..) => Err(refused("the archive holds no image")),
    }
}

/// A name as Docker completes it: registry, `library/`, `:latest`.
fn full_name(name: &str) -> String {
    let (first, rest) = name.split_once('/').unwrap_or(("", name));
    let registry = first.contains(['.', ':']) || first == "localhost";
    let path = match (registry, first) {
        (true, "index.docker.io" | "docker.io") if !rest.contains('/') => format!("docker.io/library/{rest}"),
        (true, "index.docker.io") => format!("docker.io/{rest}"),
        (true, _) => name.to_string(),
        (false, "") => format!("docker.io/library/{name}"),
        (false, _) => format!("docker.io/{name}"),
    };
    let last = path.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) { path } else { format!("{path}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        for (short, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3", "docker.io/library/alpine:3"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("me/app:1", "docker.io/me/app:1"),
            ("localhost/app", "localhost/app:latest"),
            ("host:5000/app", "host:5000/app:latest"),
            ("a.b/c/d@sha256:00", "a.b/c/d@sha256:00"),
        ] {
            assert_eq!(full_name(short), full);
        }
    }

    #[test]
    fn one_image_is_chosen_or_none() {
        let json = r#"[{"Config":"a.json","RepoTags":["a:1","a:2"],"Layers":[]},{"Config":"b.json","RepoTags":null,"Layers":null}]"#;
        let images: Vec<DockerImage> = serde_json::from_str(json).expect("a list");
        assert_eq!(choose(&images, Some("a:2")).expect("it").config, "a.json");
        assert_eq!(choose(&images, Some("docker.io/library/a:1")).expect("it").config, "a.json");
        for reference in [None, Some("a")] {
            let error = choose(&images, reference).expect_err("not one").to_string();
            assert!(error.contains("a:1, a:2"), "{error}");
        }
        assert_eq!(choose(&images[1..], None).expect("it").config, "b.json");
    }
}
