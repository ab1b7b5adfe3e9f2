//! The end of an import: names are given, manifests made where there are none, images recorded.

use std::collections::HashMap;

use crate::meta::Timestamp;
use crate::store::{Digest, NewImage, Origin, Store};

use super::documents::{self, OCI_LAYER, OCI_MANIFEST};
use super::import::{ImportedImage, Importer};
use super::ingest::LayerFacts;
use super::plan::PlannedImage;
use super::platform::Platform;
use super::reference::Reference;
use super::timestamp;
use super::{Error, Result};

/// An image whose layers are all in the store.
pub(super) struct Ready {
    manifest: Vec<u8>,
    media_type: String,
    config: Vec<u8>,
    layers: Vec<Digest>,
    /// Digests of the blobs that an own manifest names, in the order of the layers.
    blobs: Vec<Digest>,
    indexes: Vec<Vec<u8>>,
    names: Vec<String>,
}

impl Importer<'_> {
    /// Gives the images the names they shall have, and refuses at once what would be refused at the end.
    pub(super) fn name(&self, mut images: Vec<PlannedImage>) -> Result<Vec<PlannedImage>> {
        let tags = &self.options.tags;
        if !tags.is_empty() {
            let count = images.iter().filter(|i| !i.another_platform).count();
            let mut named = images.iter_mut().filter(|i| !i.another_platform);
            let (Some(image), 1) = (named.next(), count) else {
                return Err(Error::SeveralImages {
                    what: self.what.clone(),
                    count,
                });
            };
            image.names = tags.iter().map(Reference::to_string).collect();
        }
        let mut seen = HashMap::new();
        for image in &mut images {
            let config = Digest::of(&image.config);
            image.names.sort();
            image.names.dedup();
            for name in &image.names {
                if *seen.entry(name.clone()).or_insert(config) != config {
                    return Err(Error::document(
                        name,
                        "two different images of the archive have this name",
                    ));
                }
                self.check_name(name, &config)?;
            }
        }
        Ok(images)
    }

    /// A name may be new, or already point to an image of the same configuration.
    fn check_name(&self, name: &str, config: &Digest) -> Result<()> {
        let Some(present) = self
            .store
            .resolve_name(name)?
            .filter(|_| !self.options.replace_names)
        else {
            return Ok(());
        };
        match self.store.image(&present)? {
            Some(image) if image.config != *config => Err(Error::Conflict {
                name: name.to_owned(),
                present: image.config,
                new: *config,
            }),
            _ => Ok(()),
        }
    }

    pub(super) fn ready(&self, image: PlannedImage) -> Result<Ready> {
        let layers: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
        let mut blobs = Vec::new();
        let (manifest, media_type) = match image.manifest {
            Some(own) => {
                blobs = image.layers.iter().filter_map(|layer| layer.blob).collect();
                own
            }
            None => {
                match self.present_manifest(&image.names, &Digest::of(&image.config), &layers)? {
                    Some(present) => present,
                    None => (
                        plain_manifest(self.store, &image.config, &layers)?,
                        OCI_MANIFEST.to_owned(),
                    ),
                }
            }
        };
        Ok(Ready {
            manifest,
            media_type,
            config: image.config,
            layers,
            blobs,
            indexes: image.indexes,
            names: image.names,
        })
    }

    /// The manifest of the same image under one of these names: an archive without manifest brings nothing better, and
    /// a second manifest would leave the first one nameless.
    fn present_manifest(
        &self,
        names: &[String],
        config: &Digest,
        layers: &[Digest],
    ) -> Result<Option<(Vec<u8>, String)>> {
        for name in names {
            let Some(digest) = self.store.resolve_name(name)? else {
                continue;
            };
            let Some(image) = self.store.image(&digest)? else {
                continue;
            };
            if image.config != *config || image.layers != layers {
                continue;
            }
            if let Some(manifest) = self.store.document(&digest)? {
                return Ok(Some((manifest, image.manifest_media_type)));
            }
        }
        Ok(None)
    }

    pub(super) fn record(&self, images: Vec<Ready>) -> Result<Vec<ImportedImage>> {
        for image in &images {
            for name in &image.names {
                self.check_name(name, &Digest::of(&image.config))?;
            }
        }
        let new = images.iter().map(|image| NewImage {
            manifest: &image.manifest,
            manifest_media_type: &image.media_type,
            config: &image.config,
            layers: &image.layers,
            names: &image.names,
        });
        let origins = images.iter().map(|image| Origin {
            blobs: &image.blobs,
            indexes: &image.indexes,
        });
        let new: Vec<_> = new.zip(origins).collect();
        let new: Vec<_> = new.iter().map(|(image, origin)| (image, origin)).collect();
        // All of them at once: an index with half of its images is not what was asked for.
        self.store.put_images_from(&new)?;
        let mut imported = Vec::new();
        for image in images {
            let mut restorable = true;
            for (blob, diff_id) in image.blobs.iter().zip(&image.layers) {
                restorable &= blob == diff_id || self.store.blob(blob)?.is_some();
            }
            imported.push(ImportedImage {
                manifest: Digest::of(&image.manifest),
                config: Digest::of(&image.config),
                layers: image.layers,
                names: image.names,
                restorable,
            });
        }
        Ok(imported)
    }
}

/// The OCI manifest of an image that came without one, or was made here: its layers as plain tars.
pub(super) fn plain_manifest(store: &Store, config: &[u8], layers: &[Digest]) -> Result<Vec<u8>> {
    let mut descriptors = Vec::with_capacity(layers.len());
    for diff_id in layers {
        let layer = store.layer(diff_id)?;
        let layer = layer.ok_or_else(|| Error::MissingMember {
            what: format!("layer {diff_id}"),
        })?;
        descriptors.push(documents::descriptor(OCI_LAYER, diff_id, layer.tar_size));
    }
    Ok(documents::manifest(config, &descriptors))
}

/// The configuration of an image made of one tar. It depends on the tar only, so that importing it again gives the same
/// image: "created" is the latest time in it.
pub(super) fn rootfs_config(facts: &LayerFacts, platform: Option<&Platform>) -> Vec<u8> {
    let host = Platform::host();
    let platform = platform.unwrap_or(&host);
    let created = timestamp::rfc3339(facts.newest.unwrap_or(Timestamp::new(0, 0)));
    let mut config = serde_json::json!({
        "created": created,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [facts.diff_id.to_string()] },
        "history": [{ "created": created, "created_by": "ovl import" }],
    });
    if let Some(variant) = &platform.variant {
        config["variant"] = variant.clone().into();
    }
    config.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images made of a tar get their identity from these bytes: a change of a library or of ours that writes them
    /// otherwise would make new images of old archives.
    #[test]
    fn documents_made_here_are_pinned() {
        let facts = LayerFacts {
            diff_id: Digest::of(b"layer"),
            blob: Digest::of(b"layer"),
            blob_size: 5,
            tar_size: 5,
            entries: 1,
            newest: Some(Timestamp::new(1_700_000_000, 500_000_000)),
        };
        let platform: Platform = "linux/arm/v7".parse().unwrap();
        let config = rootfs_config(&facts, Some(&platform));
        let id = facts.diff_id.to_string();
        let want = format!(
            concat!(
                r#"{{"architecture":"arm","config":{{}},"created":"2023-11-14T22:13:20.5Z","#,
                r#""history":[{{"created":"2023-11-14T22:13:20.5Z","created_by":"ovl import"}}],"os":"linux","#,
                r#""rootfs":{{"diff_ids":["{}"],"type":"layers"}},"variant":"v7"}}"#,
            ),
            id
        );
        assert_eq!(String::from_utf8(config.clone()).unwrap(), want);
        let manifest = documents::manifest(
            &config,
            &[documents::descriptor(OCI_LAYER, &facts.diff_id, 5)],
        );
        let want = format!(
            concat!(
                r#"{{"config":{{"digest":"{}","mediaType":"application/vnd.oci.image.config.v1+json","size":{}}},"#,
                r#""layers":[{{"digest":"{}","mediaType":"application/vnd.oci.image.layer.v1.tar","size":5}}],"#,
                r#""mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}}"#,
            ),
            Digest::of(&config),
            config.len(),
            id
        );
        assert_eq!(String::from_utf8(manifest).unwrap(), want);
    }
}
