//! Manifests and image indexes: what a body references, and what it must not be.
//!
//! A manifest's bytes are kept as they came; this is only what Berth has to know of them. Everything that a
//! body can hold is bounded here, before a rule looks at it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Digest;

/// The largest manifest, in bytes (distribution-spec, "Pushing manifests": at least 4 MiB must be taken).
pub const MAX_MANIFEST: usize = 4 << 20;

/// The most things that one manifest may reference: far beyond any real image (Docker's own limit is 127
/// layers), and small enough that a batch of the index stays small.
pub const MAX_REFERENCES: usize = 4096;

/// `application/vnd.oci.image.manifest.v1+json`
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// `application/vnd.oci.image.index.v1+json`
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's image manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A descriptor, as far as Berth looks into it (image-spec, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type of what it points at.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    #[serde(default)]
    pub size: u64,
}

impl Descriptor {
    /// Whether a registry may lack what this points at: Docker's foreign layers and OCI's non-distributable
    /// ones were never meant to be pushed.
    fn is_foreign(&self) -> bool {
        self.media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
            || self.media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
    }
}

/// What Berth knows of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its own media type, from its bytes.
    pub media_type: String,
    /// `artifactType`, or the config's media type where an image manifest has none: what referrers show.
    pub artifact_type: Option<String>,
    /// What it refers to, if it is a referrer.
    pub subject: Option<Digest>,
    /// Its annotations: what referrers show.
    pub annotations: BTreeMap<String, String>,
    /// Config and layers that its repository must have, each digest once.
    pub needs: Vec<Digest>,
    /// What an image index points at: manifests, or blobs (BuildKit's cache), which may be missing.
    pub children: Vec<Digest>,
    /// The sum of the sizes that its descriptors name, in bytes.
    pub content_size: u64,
}

/// Why a body is refused, in a sentence for the one who pushed it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidManifest(String);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
    subject: Option<Descriptor>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Manifest {
    /// Reads `bytes`, which came (or were stored) with the media type `content_type`, if with any.
    ///
    /// A body that could be read as two kinds at once is refused (GHSA-qq97-vm5h-rrhg), and so is a
    /// `content_type` that says another kind than the body does.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, InvalidManifest> {
        let body: Body = serde_json::from_slice(bytes)
            .map_err(|error| InvalidManifest(format!("the manifest is not the JSON of one: {error}")))?;
        if body.fs_layers.is_some() || body.schema_version == Some(1) {
            return invalid("Docker schema 1 manifests are not accepted; push schema 2 or OCI");
        }
        if body.schema_version != Some(2) {
            return invalid("schemaVersion must be 2");
        }
        let is_index = body.manifests.is_some();
        if is_index && (body.layers.is_some() || body.config.is_some()) {
            return invalid("a manifest can't have both manifests and config or layers");
        }
        let media_type = body.kind(is_index)?;
        if let Some(content_type) = content_type.map(essence).filter(|essence| !essence.is_empty())
            && !content_type.eq_ignore_ascii_case(&media_type)
        {
            return invalid(format!("the Content-Type is {content_type}, but the manifest is {media_type}"));
        }
        body.checked(media_type)
    }
}

impl Body {
    /// The media type that the body has by its own words, else by its shape.
    fn kind(&self, is_index: bool) -> Result<String, InvalidManifest> {
        let Some(named) = self.media_type.clone() else {
            return Ok(if is_index { OCI_INDEX } else { OCI_MANIFEST }.to_owned());
        };
        let named_index = match named.as_str() {
            OCI_INDEX | DOCKER_LIST => true,
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            other => {
                return invalid(format!(
                    "mediaType {other:?} is not one of {OCI_MANIFEST}, {OCI_INDEX}, {DOCKER_MANIFEST}, {DOCKER_LIST}"
                ));
            }
        };
        if named_index != is_index {
            return invalid(format!("mediaType says {named}, but the manifest has the shape of the other kind"));
        }
        Ok(named)
    }

    fn checked(self, media_type: String) -> Result<Manifest, InvalidManifest> {
        let is_index = self.manifests.is_some();
        if !is_index && self.config.is_none() {
            return invalid("an image manifest needs a config");
        }
        let children = self.manifests.unwrap_or_default();
        let layers = self.layers.unwrap_or_default();
        if children.len() + layers.len() + 1 > MAX_REFERENCES {
            return invalid(format!("a manifest may reference {MAX_REFERENCES} things at most"));
        }
        let content_size =
            self.config.iter().chain(&layers).chain(&children).fold(0_u64, |sum, to| sum.saturating_add(to.size));
        let artifact_type = self
            .artifact_type
            .filter(|kind| !kind.is_empty())
            .or_else(|| self.config.as_ref().map(|config| config.media_type.clone()))
            .filter(|kind| !kind.is_empty());
        let needs = self.config.into_iter().chain(layers).filter(|to| !to.is_foreign());
        Ok(Manifest {
            media_type,
            artifact_type,
            subject: self.subject.map(|subject| subject.digest),
            annotations: self.annotations.unwrap_or_default(),
            needs: each_once(needs.map(|to| to.digest)),
            children: each_once(children.into_iter().map(|to| to.digest)),
            content_size,
        })
    }
}

fn each_once(digests: impl Iterator<Item = Digest>) -> Vec<Digest> {
    let mut seen = std::collections::HashSet::new();
    digests.filter(|digest| seen.insert(digest.clone())).collect()
}

/// A media type without its parameters.
fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

fn invalid<T>(why: impl Into<String>) -> Result<T, InvalidManifest> {
    Err(InvalidManifest(why.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    fn parse(text: &str, content_type: Option<&str>) -> Result<Manifest, InvalidManifest> {
        Manifest::parse(text.as_bytes(), content_type)
    }

    #[test]
    fn an_image_manifest_names_its_config_and_layers_once() {
        let (a, b) = (digest('a'), digest('b'));
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x/y","digest":"{a}","size":3}},
               "layers":[{{"digest":"{b}","size":4}},{{"digest":"{b}","size":4}},
               {{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"{}","size":9}}],"extra":[1]}}"#,
            digest('c')
        );
        let manifest = parse(&text, Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8")).expect("valid");
        assert_eq!(manifest.needs.iter().map(Digest::as_str).collect::<Vec<_>>(), [a, b]);
        assert_eq!(manifest.artifact_type.as_deref(), Some("x/y"));
        assert_eq!((manifest.media_type.as_str(), manifest.content_size), (OCI_MANIFEST, 20));
    }

    #[test]
    fn a_body_that_is_two_kinds_at_once_is_refused() {
        let a = digest('a');
        let config = format!(r#""config":{{"digest":"{a}"}}"#);
        for bad in [
            r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#.to_owned(),
            format!(r#"{{"schemaVersion":2,{config},"manifests":[]}}"#),
            format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}",{config}}}"#),
            format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#),
            format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","mediaType":"{OCI_INDEX}",{config}}}"#),
            r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
            format!(r#"{{{config}}}"#),
            r#"{"schemaVersion":2}"#.to_owned(),
            "[]".to_owned(),
            String::new(),
        ] {
            assert!(parse(&bad, None).is_err(), "{bad}");
        }
        let manifest = format!(r#"{{"schemaVersion":2,{config}}}"#);
        assert!(parse(&manifest, Some(OCI_INDEX)).is_err());
        assert!(parse(&manifest, Some(OCI_MANIFEST)).is_ok());
        assert!(parse(&manifest, Some("")).is_ok());
    }
}
