//! The JSON documents of images: what we read out of them, and which we refuse.
//!
//! Originals are kept as bytes by digest; these types are only views of them, tolerant of fields we have no use for.
//! Sources: OCI image specification 1.1 (manifest.md, image-index.md, config.md, descriptor.md); Docker's image manifest
//! version 2, schema 2; `docker save`'s manifest.json.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::store::Digest;

use super::{Error, Result, json};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Annotations that name an image.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Annotations of a layer that has a table of contents: zstd:chunked (containers/storage; its older and its newer name), and
/// eStargz (stargz-snapshotter).
const CHUNKED_TABLE: [&str; 2] = [
    "io.containers.zstd-chunked.manifest-checksum",
    "io.github.containers.zstd-chunked.manifest-checksum",
];
const STARGZ_TABLE: [&str; 1] = ["containerd.io/snapshot/stargz/toc.digest"];

/// One image of `docker save`'s manifest.json.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SavedImage {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub layers: Option<Vec<String>>,
}

pub fn parse_saved_images(bytes: &[u8]) -> Result<Vec<SavedImage>> {
    let images: Vec<SavedImage> =
        json::parse(bytes).map_err(|error| Error::document("manifest.json", error))?;
    if images.is_empty() {
        return Err(Error::document("manifest.json", "it lists no image"));
    }
    Ok(images)
}

/// A content descriptor.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub platform: Option<PlatformView>,
}

impl Descriptor {
    /// The digest, checked; `sha512` and others are refused.
    pub fn digest(&self) -> Result<Digest> {
        self.digest
            .parse()
            .map_err(|error| Error::document("descriptor", error))
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Provenance and the like: listed among images, but none.
    pub fn is_attestation(&self) -> bool {
        let unknown = |p: &PlatformView| p.os == "unknown" && p.architecture == "unknown";
        self.annotation("vnd.docker.reference.type").is_some()
            || self.platform.as_ref().is_some_and(unknown)
    }
}

/// Operating system and processor of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PlatformView {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

/// A manifest or an index.
#[derive(Clone, Debug)]
pub enum Document {
    Manifest {
        config: Descriptor,
        layers: Vec<Descriptor>,
        media_type: String,
    },
    Index {
        manifests: Vec<Descriptor>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u64,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Parses `bytes`. `claimed` is the media type of the descriptor that led here ("" if there was none); a document that
    /// could be taken for both kinds, or is of another kind than claimed, is refused (CVE-2021-41190).
    pub fn parse(name: &str, bytes: &[u8], claimed: &str) -> Result<Self> {
        let bad = |reason: &str| Err(Error::document(name, reason));
        let raw: RawDocument = json::parse(bytes).map_err(|error| Error::document(name, error))?;
        if raw.schema_version != 2 {
            return bad(
                "schemaVersion is not 2; Docker schema 1 images must be converted first (skopeo copy)",
            );
        }
        let stated = raw.media_type.as_deref().unwrap_or_default();
        for media_type in [stated, claimed] {
            if !matches!(
                media_type,
                "" | OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_LIST
            ) {
                return bad(&format!(
                    "media type {media_type:?} is neither an image manifest nor an index"
                ));
            }
        }
        if !stated.is_empty() && !claimed.is_empty() && stated != claimed {
            return bad("its media type differs from the one it was announced with");
        }
        let media_type = if stated.is_empty() { claimed } else { stated };
        let index_type = matches!(media_type, OCI_INDEX | DOCKER_LIST);
        let manifest_type = matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST);
        match (raw.config, raw.layers, raw.manifests) {
            (_, Some(_), Some(_)) | (Some(_), _, Some(_)) => {
                bad("it has both layers and manifests")
            }
            (None, None, Some(_)) if manifest_type => bad("an index announced as a manifest"),
            (None, None, Some(manifests)) => Ok(Self::Index { manifests }),
            (Some(_), Some(_), None) if index_type => bad("a manifest announced as an index"),
            (Some(config), Some(layers), None) => {
                let media_type = if media_type.is_empty() {
                    OCI_MANIFEST
                } else {
                    media_type
                }
                .to_owned();
                Ok(Self::Manifest {
                    config,
                    layers,
                    media_type,
                })
            }
            _ => bad("it has neither config and layers nor manifests"),
        }
    }
}

/// Refuses manifests of things that are no container images: their layers are no tars.
pub fn check_image_types(name: &str, config: &Descriptor, layers: &[Descriptor]) -> Result<()> {
    if !matches!(config.media_type.as_str(), "" | OCI_CONFIG | DOCKER_CONFIG) {
        let reason = format!(
            "an artifact with config type {:?}, not a container image",
            config.media_type
        );
        return Err(Error::document(name, reason));
    }
    for layer in layers {
        // We read layers whole and believe no table of contents; of those who do, one would see this file tree and one that.
        let has = |keys: &[&str]| keys.iter().any(|key| layer.annotation(key).is_some());
        if has(&CHUNKED_TABLE) && has(&STARGZ_TABLE) {
            let reason = format!(
                "layer {} has two tables of contents, zstd:chunked and eStargz, which need not agree",
                layer.digest
            );
            return Err(Error::document(name, reason));
        }
        let kind = layer.media_type.as_str();
        let kind = kind
            .replace(".nondistributable.", ".")
            .replace(".foreign.", ".");
        let base = kind
            .split_once('+')
            .map_or(kind.as_str(), |(base, _)| base)
            .trim_end_matches(".gzip");
        let suffix = kind.split_once('+').map_or("", |(_, suffix)| suffix);
        let known =
            matches!(base, "" | OCI_LAYER | DOCKER_LAYER) && matches!(suffix, "" | "gzip" | "zstd");
        if !known {
            return Err(Error::document(
                name,
                format!("layer type {:?} is not supported", layer.media_type),
            ));
        }
    }
    Ok(())
}

/// What we need of an image configuration.
#[derive(Clone, Debug)]
pub struct ConfigView {
    pub diff_ids: Vec<Digest>,
    pub platform: PlatformView,
}

impl ConfigView {
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Raw {
            rootfs: RawRootfs,
            #[serde(flatten)]
            platform: PlatformView,
        }
        #[derive(Deserialize)]
        struct RawRootfs {
            r#type: String,
            #[serde(default)]
            diff_ids: Option<Vec<String>>,
        }
        let bad = |reason: String| Error::document(name, reason);
        let raw: Raw = json::parse(bytes).map_err(|error| bad(error.to_string()))?;
        if raw.rootfs.r#type != "layers" {
            return Err(bad(format!(
                "rootfs type {:?} is not \"layers\"",
                raw.rootfs.r#type
            )));
        }
        let ids = raw.rootfs.diff_ids.unwrap_or_default();
        let diff_ids = ids
            .iter()
            .map(|id| id.parse::<Digest>())
            .collect::<std::result::Result<_, _>>();
        Ok(Self {
            diff_ids: diff_ids.map_err(|error| bad(error.to_string()))?,
            platform: raw.platform,
        })
    }
}

/// A descriptor as it goes into a new manifest.
pub fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

/// A new OCI manifest; the same input gives the same bytes.
pub fn manifest(config: &[u8], layers: &[Value]) -> Vec<u8> {
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, &Digest::of(config), config.len() as u64),
        "layers": layers,
    });
    manifest.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = r#"{"mediaType":"","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1}"#;

    #[test]
    fn ambiguous_documents_are_refused() {
        let cases = [
            (
                format!(r#"{{"schemaVersion":2,"config":{D},"layers":[]}}"#),
                "",
                true,
            ),
            (
                format!(r#"{{"schemaVersion":2,"config":{D},"layers":[]}}"#),
                OCI_MANIFEST,
                true,
            ),
            (
                format!(r#"{{"schemaVersion":2,"config":{D},"layers":[]}}"#),
                OCI_INDEX,
                false,
            ),
            (
                format!(r#"{{"schemaVersion":2,"manifests":[{D}]}}"#),
                OCI_INDEX,
                true,
            ),
            (
                format!(r#"{{"schemaVersion":2,"manifests":[{D}]}}"#),
                DOCKER_MANIFEST,
                false,
            ),
            (
                format!(r#"{{"schemaVersion":2,"config":{D},"layers":[],"manifests":[]}}"#),
                "",
                false,
            ),
            (
                r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#.to_owned(),
                "",
                false,
            ),
            (
                format!(r#"{{"schemaVersion":2,"config":{D},"manifests":[]}}"#),
                "",
                false,
            ),
            (
                format!(r#"{{"schemaVersion":1,"config":{D},"layers":[]}}"#),
                "",
                false,
            ),
            (
                format!(
                    r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","config":{D},"layers":[]}}"#
                ),
                "",
                false,
            ),
            (
                format!(
                    r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{D},"layers":[]}}"#
                ),
                OCI_MANIFEST,
                false,
            ),
            (r#"{"schemaVersion":2}"#.to_owned(), "", false),
            (r#"[]"#.to_owned(), "", false),
            (String::new(), "", false),
            ("[".repeat(100_000), "", false),
        ];
        for (text, claimed, ok) in cases {
            let got = Document::parse("test", text.as_bytes(), claimed);
            assert_eq!(
                got.is_ok(),
                ok,
                "{} as {claimed:?}: {got:?}",
                &text[..text.len().min(200)]
            );
        }
    }

    #[test]
    fn digests_and_types() {
        let descriptor = |media_type: &str, digest: &str| Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_owned(),
            size: 0,
            annotations: None,
            platform: None,
        };
        for bad in [
            "",
            "sha256:",
            "sha512:00",
            "sha1:00",
            "sha256:../../../etc/passwd",
            "SHA256:00",
        ] {
            assert!(descriptor("", bad).digest().is_err(), "{bad}");
        }
        let config = descriptor(OCI_CONFIG, "");
        for (layer, ok) in [
            (OCI_LAYER, true),
            ("application/vnd.oci.image.layer.v1.tar+gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+zstd", true),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                true,
            ),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                true,
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                false,
            ),
            ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", false),
        ] {
            assert_eq!(
                check_image_types("m", &config, &[descriptor(layer, "")]).is_ok(),
                ok,
                "{layer}"
            );
        }
        let artifact = descriptor("application/vnd.oci.empty.v1+json", "");
        assert!(check_image_types("m", &artifact, &[]).is_err());
    }
}
