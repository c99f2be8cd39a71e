//! The JSON of images: OCI image-spec and Docker's schema 2, read strictly.
//!
//! Unknown members are ignored, `null` is absent, and a member that we use may not
//! stand twice: programs disagree about which of the two counts. What reads as
//! two things at once is refused (CVE-2021-41190).

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use super::digest::Digest;
use super::platform::Platform;
use crate::error::{Error, ErrorKind, Result};

/// The most bytes of an index, manifest or configuration: what registries take
/// (OCI distribution-spec, "Pushing Manifests").
pub(crate) const MAX_JSON: u64 = 4 << 20;
/// The most layers of an image: what overlayfs stacks.
pub(crate) const MAX_LAYERS: usize = 500;

/// Parses a document, named in errors as `what`.
pub(crate) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| refused(format!("{what} is not as the specification says: {error}")))
}

pub(crate) fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Image, message)
}

/// A JSON object of strings, without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Strings(pub(crate) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Strings, D::Error> {
        let entries: Entries<Option<String>> = Entries::deserialize(deserializer)?;
        Ok(Strings(entries.0.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect()))
    }
}

/// A JSON object whose keys count, such as `Volumes`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Keys(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Keys, D::Error> {
        let entries: Entries<de::IgnoredAny> = Entries::deserialize(deserializer)?;
        Ok(Keys(entries.0.into_keys().collect()))
    }
}

struct Entries<V>(BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Entries<V>, D::Error> {
        struct Reader<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Reader<V> {
            type Value = Entries<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Entries<V>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = access.next_entry::<String, V>()? {
                    if entries.insert(key.clone(), value).is_some() {
                        return Err(de::Error::custom(format_args!("{key:?} stands twice")));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Reader(std::marker::PhantomData))
    }
}

/// "Content Descriptors" of the image-spec.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    media_type: Option<String>,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    annotations: Option<Strings>,
    platform: Option<PlatformJson>,
}

#[derive(Clone, Debug, Deserialize)]
struct PlatformJson {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

impl Descriptor {
    pub(crate) fn media_type(&self) -> &str {
        self.media_type.as_deref().unwrap_or_default()
    }

    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.0.get(name).map(String::as_str)
    }

    pub(crate) fn platform(&self) -> Option<Platform> {
        let platform = self.platform.as_ref()?;
        let (os, architecture) = (platform.os.as_deref()?, platform.architecture.as_deref()?);
        Some(Platform::of(os, architecture, platform.variant.as_deref()))
    }

    /// Provenance and other attestations stand beside the images that they are about.
    pub(crate) fn is_attestation(&self) -> bool {
        let unknown = self.platform().is_some_and(|p| p.os() == "unknown" && p.architecture() == "unknown");
        unknown || self.annotation("vnd.docker.reference.type").is_some()
    }
}

const INDEXES: [&str; 2] = ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] = ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// An index or a manifest.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<de::IgnoredAny>,
}

impl Document {
    /// Parses what a descriptor of type `declared` (or nothing, if that's empty) named.
    pub(crate) fn parse(bytes: &[u8], declared: &str, what: &str) -> Result<Document> {
        let known = |media_type: &str| INDEXES.contains(&media_type) || MANIFESTS.contains(&media_type);
        if !declared.is_empty() && !known(declared) {
            return Err(refused(format!("{what} has the type {}, which is no image", shown(declared))));
        }
        let body: Body = parse(bytes, what)?;
        if body.schema_version == Some(1) || body.fs_layers.is_some() {
            return Err(refused(format!(
                "{what} is of Docker's schema 1, which no program writes any more (pull and save the image anew)"
            )));
        }
        if body.schema_version != Some(2) {
            return Err(refused(format!("{what} has no schemaVersion 2")));
        }
        let own = body.media_type.as_deref().unwrap_or_default();
        if !own.is_empty() && (!known(own) || (!declared.is_empty() && own != declared)) {
            return Err(refused(format!("{what} says that it is {}, and its descriptor {}", shown(own), shown(declared))));
        }
        let media_type = if declared.is_empty() { own } else { declared };
        match body {
            Body { manifests: Some(manifests), layers: None, config: None, .. } if !MANIFESTS.contains(&media_type) => {
                Ok(Document::Index(manifests))
            }
            Body { manifests: None, config: Some(config), layers, .. } if !INDEXES.contains(&media_type) => {
                let layers = layers.unwrap_or_default();
                if !CONFIGS.contains(&config.media_type()) {
                    let kind = shown(config.media_type());
                    return Err(refused(format!("{what} is no image but an artifact (its configuration is {kind})")));
                }
                if layers.len() > MAX_LAYERS {
                    return Err(refused(format!("{what} has {} layers; {MAX_LAYERS} are possible", layers.len())));
                }
                Ok(Document::Manifest { config, layers })
            }
            Body { manifests: Some(_), .. } => Err(refused(format!("{what} reads as an index and as a manifest at once"))),
            _ => Err(refused(format!("{what} is neither an index nor a manifest"))),
        }
    }
}

/// What a layer's media type says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerType {
    /// Its contents may lie elsewhere.
    pub(crate) foreign: bool,
}

/// Refuses a layer that is no tar archive.
pub(crate) fn layer_type(media_type: &str) -> Result<LayerType> {
    let tars = [
        ("application/vnd.oci.image.layer.v1.tar", false),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", true),
        ("application/vnd.docker.image.rootfs.diff.tar", false),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", true),
    ];
    for (tar, foreign) in tars {
        match media_type.strip_prefix(tar) {
            Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd") => return Ok(LayerType { foreign }),
            Some(_) if media_type.ends_with("+encrypted") => {
                return Err(refused("it is encrypted (decrypt the image with `skopeo copy --decryption-key`)"));
            }
            _ => {}
        }
    }
    Err(refused(format!("its type {} is no layer", shown(media_type))))
}

fn shown(media_type: &str) -> String {
    if media_type.is_empty() { "of no type".into() } else { media_type.chars().take(120).flat_map(char::escape_default).collect() }
}

/// An image's configuration document: the parts that we use.
#[derive(Debug, Deserialize)]
pub(crate) struct ConfigDocument {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    pub(crate) created: Option<String>,
    pub(crate) config: Option<RunConfig>,
    rootfs: Option<RootFs>,
}

/// "Properties" of the image-spec's configuration, as Docker spells them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RunConfig {
    pub(crate) user: Option<String>,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) volumes: Option<Keys>,
    pub(crate) working_dir: Option<String>,
    pub(crate) labels: Option<Strings>,
    pub(crate) stop_signal: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<Vec<Digest>>,
}

impl ConfigDocument {
    pub(crate) fn parse(bytes: &[u8]) -> Result<ConfigDocument> {
        let config: ConfigDocument = parse(bytes, "the image's configuration")?;
        if let Some(kind) = config.rootfs.as_ref().and_then(|r| r.kind.as_deref())
            && kind != "layers"
        {
            return Err(refused("the root file system of the image's configuration isn't made of layers"));
        }
        if config.diff_ids().len() > MAX_LAYERS {
            return Err(refused(format!("the image has {} layers; {MAX_LAYERS} are possible", config.diff_ids().len())));
        }
        Ok(config)
    }

    pub(crate) fn diff_ids(&self) -> &[Digest] {
        self.rootfs.as_ref().and_then(|r| r.diff_ids.as_deref()).unwrap_or_default()
    }

    pub(crate) fn platform(&self) -> Option<Platform> {
        let (os, architecture) = (self.os.as_deref()?, self.architecture.as_deref()?);
        (!os.is_empty() && !architecture.is_empty()).then(|| Platform::of(os, architecture, self.variant.as_deref()))
    }
}

/// An entry of `manifest.json` in an archive of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    pub(crate) config: String,
    pub(crate) repo_tags: Option<Vec<String>>,
    pub(crate) layers: Option<Vec<String>>,
}

/// The `oci-layout` file.
pub(crate) fn check_layout(bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layout {
        image_layout_version: Option<String>,
    }
    let layout: Layout = parse(bytes, "oci-layout")?;
    match layout.image_layout_version.as_deref() {
        Some(version) if version == "1.0" || version.starts_with("1.0.") => Ok(()),
        Some(version) => Err(refused(format!("the OCI layout has version {}; 1.0 is known", shown(version)))),
        None => Err(refused("oci-layout names no version")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":0}}"#)
    }

    fn document(json: &str, declared: &str) -> Result<Document> {
        Document::parse(json.as_bytes(), declared, "the manifest")
    }

    #[test]
    fn manifests_and_indexes_of_both_families_are_read() {
        let config = descriptor(CONFIGS[1]);
        for (own, declared) in [(MANIFESTS[0], MANIFESTS[0]), (MANIFESTS[1], ""), (MANIFESTS[1], MANIFESTS[1])] {
            let json = format!(r#"{{"schemaVersion":2,"mediaType":"{own}","config":{config},"layers":null,"annotations":null}}"#);
            assert!(matches!(document(&json, declared), Ok(Document::Manifest { .. })), "{own} {declared}");
        }
        let json = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptor(MANIFESTS[0]));
        assert!(matches!(document(&json, ""), Ok(Document::Index(list)) if list.len() == 1));
    }

    #[test]
    fn what_reads_in_two_ways_is_refused() {
        let config = descriptor(CONFIGS[0]);
        let manifest = format!(r#""schemaVersion":2,"config":{config},"layers":[]"#);
        let many = vec![descriptor("x"); MAX_LAYERS + 1].join(",");
        let cases = [
            (format!("{{{manifest},\"manifests\":[]}}"), "", "at once"),
            (format!("{{{manifest}}}"), INDEXES[0], "neither"),
            (format!("{{{manifest},\"mediaType\":\"{}\"}}", INDEXES[0]), MANIFESTS[0], "says that it is"),
            (format!("{{{manifest},\"layers\":[]}}"), "", "duplicate field"),
            (format!("{{{manifest},\"schemaVersion\":2}}"), "", "duplicate field"),
            (format!("{{{manifest}}} trailing"), "", "trailing"),
            (r#"{"schemaVersion":2,"manifests":[]}"#.into(), MANIFESTS[0], "at once"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.into(), "", "schema 1"),
            (r#"{"manifests":[]}"#.into(), "", "schemaVersion"),
            (r#"{"schemaVersion":3,"manifests":[]}"#.into(), "", "schemaVersion"),
            (r#"{"schemaVersion":2}"#.into(), "", "neither"),
            (format!("{{{manifest}}}"), "application/vnd.docker.distribution.manifest.v1+prettyjws", "no image"),
            (
                format!(r#"{{"schemaVersion":2,"config":{},"layers":[]}}"#, descriptor("application/vnd.cncf.helm.config.v1+json")),
                "",
                "artifact",
            ),
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{many}]}}"#), "", "500 are possible"),
            (manifest.replace(DIGEST, "sha256:../../x").replacen("\"schema", "{\"schema", 1) + "}", "", "no digest"),
            (format!("{{{}}}", manifest.replace("\"size\":0", "\"size\":-1")), "", "invalid value"),
            (format!("{{{}}}", manifest.replace("\"size\":0", "\"size\":1e30")), "", "invalid type"),
            ("[".repeat(100_000), "", "invalid type"),
            (format!(r#"{{"schemaVersion":2,"x":{}"#, "[".repeat(100_000)), "", "EOF"),
            (String::new(), "", "EOF"),
        ];
        for (json, declared, word) in cases {
            let error = document(&json, declared).expect_err(&json);
            assert_eq!(error.kind(), ErrorKind::Image);
            assert!(error.to_string().contains(word), "{json:.200}: {error}");
        }
    }

    #[test]
    fn layers_are_tar_archives() {
        for good in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ] {
            assert_eq!(layer_type(good).ok(), Some(LayerType { foreign: false }), "{good}");
        }
        assert_eq!(layer_type("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip").ok(), Some(LayerType { foreign: true }));
        for (bad, word) in [
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
            ("application/vnd.in-toto+json", "no layer"),
            ("", "no layer"),
            ("application/vnd.oci.image.layer.v1.tarball", "no layer"),
        ] {
            assert!(layer_type(bad).expect_err(bad).to_string().contains(word), "{bad}");
        }
    }

    #[test]
    fn nulls_are_empty_and_doubles_refused() {
        let json = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Volumes":{"/v":{}},"Labels":null},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = ConfigDocument::parse(json.as_bytes()).expect("a configuration");
        assert_eq!(config.platform().map(|p| p.to_string()).as_deref(), Some("linux/amd64"));
        assert!(config.diff_ids().is_empty());
        assert_eq!(config.config.expect("it").volumes.expect("them").0, ["/v"]);
        for double in [r#"{"config":{"User":"a","User":"b"}}"#, r#"{"config":{"Labels":{"a":"1","a":"2"}}}"#] {
            assert!(ConfigDocument::parse(double.as_bytes()).is_err(), "{double}");
        }
        assert!(ConfigDocument::parse(br#"{"rootfs":{"type":"vm"}}"#).is_err());
    }

    #[test]
    fn attestations_are_known_by_annotation_or_platform() {
        let read = |json: &str| serde_json::from_str::<Descriptor>(json).expect("a descriptor").is_attestation();
        let with = |more: &str| format!(r#"{{"mediaType":"x","digest":"{DIGEST}","size":0{more}}}"#);
        assert!(read(&with(r#","platform":{"os":"unknown","architecture":"unknown"}"#)));
        assert!(read(&with(r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#)));
        assert!(!read(&with("")));
    }

    #[test]
    fn layouts_of_version_1_0_are_known() {
        assert!(check_layout(br#"{"imageLayoutVersion":"1.0.0"}"#).is_ok());
        assert!(check_layout(br#"{"imageLayoutVersion":"1.0.5"}"#).is_ok());
        for bad in [&br#"{"imageLayoutVersion":"2.0.0"}"#[..], b"{}", b"", br#"{"imageLayoutVersion":"1.00"}"#] {
            assert!(check_layout(bad).is_err());
        }
    }
}
