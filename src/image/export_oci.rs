//! Export in OCI form: manifests, configurations and blobs, as they came where that can be.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::store::{self, Digest, ImageRecord};

use super::blob::rebuild;
use super::compress::Compression;
use super::documents::{
    self, CONTAINERD_NAME, Descriptor, Document, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, REF_NAME,
};
use super::export::{ExportedImage, Exporter, Sink, Written};
use super::{Error, Result};

/// Where the blob of a digest lies.
fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A document and its media type.
type Typed = (Vec<u8>, String);

/// Whether an image can be given as it came.
enum Original {
    /// Its manifest, and the blobs of its layers.
    Possible(Typed, Vec<Descriptor>),
    /// Why not.
    No(String),
}

/// The index a name came with, all of whose images are here.
struct WholeIndex {
    document: Typed,
    digest: Digest,
    /// Indexes within.
    others: Vec<Vec<u8>>,
    images: Vec<ImageRecord>,
}

impl Exporter<'_> {
    pub(super) fn oci(&self, sink: &mut dyn Sink) -> Result<Vec<ExportedImage>> {
        sink.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut written = Written::default();
        let (mut entries, mut exported) = (Vec::new(), Vec::new());
        let entry = |(bytes, media_type): &Typed| {
            documents::descriptor(media_type, &Digest::of(bytes), bytes.len() as u64)
        };
        for (record, names) in &self.images {
            let mut single = None;
            for name in *names {
                let name = name.to_string();
                let descriptor = match self.whole_index(&name)? {
                    Some(index) => {
                        self.index(sink, &index, &mut written)?;
                        exported.push(ExportedImage {
                            manifest: Some(index.digest),
                            new_because: None,
                        });
                        entry(&index.document)
                    }
                    None => {
                        if single.is_none() {
                            single = Some(self.image(sink, record, &mut written)?);
                        }
                        single
                            .as_ref()
                            .map(|(manifest, _)| entry(manifest))
                            .unwrap_or_default()
                    }
                };
                let mut named = descriptor;
                named["annotations"] = json!({ REF_NAME: name, CONTAINERD_NAME: name });
                entries.push(named);
            }
            if names.is_empty() {
                let (manifest, because) = self.image(sink, record, &mut written)?;
                entries.push(entry(&manifest));
                single = Some((manifest, because));
            }
            if let Some(((manifest, _), new_because)) = single {
                exported.push(ExportedImage {
                    manifest: Some(Digest::of(&manifest)),
                    new_because,
                });
            }
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
        sink.bytes("index.json", index.to_string().as_bytes())?;
        Ok(exported)
    }

    fn blob(&self, sink: &mut dyn Sink, bytes: &[u8], written: &mut Written) -> Result<()> {
        let path = blob_path(&Digest::of(bytes));
        if written.first_time(&path) {
            sink.bytes(&path, bytes)?;
        }
        Ok(())
    }

    /// Writes an image, as it came if possible. Gives its manifest, and why that is a new one.
    fn image(
        &self,
        sink: &mut dyn Sink,
        record: &ImageRecord,
        written: &mut Written,
    ) -> Result<(Typed, Option<String>)> {
        let (manifest, because) = match self.original(record)? {
            Original::Possible(manifest, layers) => {
                for (descriptor, diff_id) in layers.iter().zip(&record.layers) {
                    self.original_layer(sink, descriptor, diff_id, written)?;
                }
                (manifest, None)
            }
            Original::No(because) => {
                let mut layers = Vec::new();
                for diff_id in &record.layers {
                    layers.push(self.new_layer(sink, diff_id, written)?);
                }
                let own = self.document(&record.manifest)?;
                let manifest = self.new_manifest(record, &own, &layers)?;
                let changed = manifest.0 != own;
                (manifest, changed.then_some(because))
            }
        };
        self.blob(sink, &self.document(&record.config)?, written)?;
        self.blob(sink, &manifest.0, written)?;
        Ok((manifest, because))
    }

    fn original(&self, record: &ImageRecord) -> Result<Original> {
        let bytes = self.document(&record.manifest)?;
        let parsed = Document::parse(
            &record.manifest.to_string(),
            &bytes,
            &record.manifest_media_type,
        )?;
        let Document::Manifest { layers, .. } = parsed else {
            return Ok(Original::No("its manifest is an index".to_owned()));
        };
        if layers.len() != record.layers.len() {
            return Ok(Original::No("its manifest lists other layers".to_owned()));
        }
        for (descriptor, diff_id) in layers.iter().zip(&record.layers) {
            let digest = descriptor.digest()?;
            let plain = digest == *diff_id;
            if let Some(wanted) = self.options.compression
                && !(plain && wanted == Compression::None)
            {
                let because = format!("layers are written anew: {}", wanted.name());
                return Ok(Original::No(because));
            }
            let kept = self.store.blob(&digest)?;
            if !plain && kept.is_none_or(|kept| kept.diff_id != *diff_id) {
                return Ok(Original::No(
                    "its compressed layers were not kept when it was imported".to_owned(),
                ));
            }
        }
        let manifest = (bytes, record.manifest_media_type.clone());
        Ok(Original::Possible(manifest, layers))
    }

    fn original_layer(
        &self,
        sink: &mut dyn Sink,
        descriptor: &Descriptor,
        diff_id: &Digest,
        written: &mut Written,
    ) -> Result<()> {
        let digest = descriptor.digest()?;
        if !written.first_time(&blob_path(&digest)) {
            return Ok(());
        }
        let size = if digest == *diff_id {
            self.tar_size(diff_id)?
        } else {
            descriptor.size
        };
        sink.stream(&blob_path(&digest), size, &mut |out| {
            if digest == *diff_id {
                self.store.write_layer_tar(diff_id, out)?;
                Ok(())
            } else {
                rebuild(self.store, &digest, out)
            }
        })
    }

    /// Writes a layer's blob and gives its descriptor.
    fn new_layer(
        &self,
        sink: &mut dyn Sink,
        diff_id: &Digest,
        written: &mut Written,
    ) -> Result<Value> {
        let known = written.layer(diff_id);
        let (digest, size) = match known {
            Some(known) => known,
            None => self.layer(sink, diff_id, blob_path)?,
        };
        written.keep_layer(diff_id, (digest, size));
        written.first_time(&blob_path(&digest));
        let suffix = match self.options.compression.unwrap_or_default() {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        Ok(documents::descriptor(
            &format!("{OCI_LAYER}{suffix}"),
            &digest,
            size,
        ))
    }

    /// A manifest of the layers as they are written here, with what the image's own says besides.
    fn new_manifest(&self, record: &ImageRecord, own: &[u8], layers: &[Value]) -> Result<Typed> {
        let name = record.manifest.to_string();
        let config = self.document(&record.config)?;
        let bad = |error| Error::document(&name, error);
        let mut manifest: Value =
            serde_json::from_slice(&documents::manifest(&config, layers)).map_err(bad)?;
        let own: Value = serde_json::from_slice(own).map_err(bad)?;
        if let Some(annotations) = own.get("annotations") {
            manifest["annotations"] = annotations.clone();
        }
        Ok((manifest.to_string().into_bytes(), OCI_MANIFEST.to_owned()))
    }

    // --- images of several platforms

    /// The index that `name` came with, if all that it lists is here and can be given as it came.
    fn whole_index(&self, name: &str) -> Result<Option<WholeIndex>> {
        let known = self.store.name_indexes(name)?;
        let Some(digest) = known.first().copied() else {
            return Ok(None);
        };
        let bytes = self.document(&digest)?;
        let media_type = media_type(&bytes);
        let mut index = WholeIndex {
            document: (bytes, media_type),
            digest,
            others: Vec::new(),
            images: Vec::new(),
        };
        let (mut waiting, mut seen) = (vec![index.document.0.clone()], HashSet::new());
        while let Some(bytes) = waiting.pop() {
            let Document::Index { manifests } = Document::parse(name, &bytes, "")? else {
                return Ok(None);
            };
            for child in manifests {
                let child = child.digest()?;
                if !seen.insert(child) {
                    continue;
                }
                if let Some(record) = self.store.image(&child)? {
                    if !matches!(self.original(&record)?, Original::Possible(..)) {
                        return Ok(None);
                    }
                    index.images.push(record);
                } else if known.contains(&child) {
                    let bytes = self.document(&child)?;
                    index.others.push(bytes.clone());
                    waiting.push(bytes);
                } else {
                    // Of another platform, or a note about an image: it did not come along.
                    return Ok(None);
                }
            }
        }
        Ok(Some(index))
    }

    fn index(&self, sink: &mut dyn Sink, index: &WholeIndex, written: &mut Written) -> Result<()> {
        let layers: Vec<Digest> = index
            .images
            .iter()
            .flat_map(|record| record.layers.clone())
            .collect();
        let _lease: store::Lease = self.store.lease(&layers, "export")?;
        for record in &index.images {
            self.image(sink, record, written)?;
        }
        for document in index.others.iter().chain([&index.document.0]) {
            self.blob(sink, document, written)?;
        }
        Ok(())
    }
}

/// What an index says it is.
fn media_type(index: &[u8]) -> String {
    let value: Value = serde_json::from_slice(index).unwrap_or_default();
    value["mediaType"].as_str().unwrap_or(OCI_INDEX).to_owned()
}
