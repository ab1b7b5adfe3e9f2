//! Export in OCI form, and as skopeo's directory: manifests, configurations and blobs, as they came where that can be.

use serde_json::{Value, json};

use crate::store::{Digest, ImageRecord};

use super::blob::rebuild;
use super::compress::Compression;
use super::documents::{
    self, CONTAINERD_NAME, Descriptor, Document, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, REF_NAME,
};
use super::export::{ExportFormat, ExportedImage, Exporter, Sink, Written};
use super::export_index::{Other, WholeIndex};
use super::{Error, Result};

/// Where the blob of a digest lies in an OCI layout.
fn oci_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Where it lies in a directory of skopeo's.
fn skopeo_path(digest: &Digest) -> String {
    digest.hex()
}

/// A document and its media type.
pub(super) type Typed = (Vec<u8>, String);

/// Whether an image can be given as it came.
pub(super) enum Original {
    /// Its manifest, and the blobs of its layers.
    Possible(Typed, Vec<Descriptor>),
    /// Why not.
    No(String),
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
                let descriptor = match self.indexes.get(&name) {
                    Some(index) => {
                        self.index(sink, index, &mut written)?;
                        self.manifest(sink, &index.document.0, &mut written)?;
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

    /// Writes what skopeo's `dir:` holds: the image's manifest, or the index that its name came with, and the blobs.
    pub(super) fn skopeo_dir(&self, sink: &mut dyn Sink) -> Result<Vec<ExportedImage>> {
        sink.bytes("version", b"Directory Transport Version: 1.1\n")?;
        let mut written = Written::default();
        let mut exported = Vec::new();
        for (record, names) in &self.images {
            let index = names
                .iter()
                .find_map(|name| self.indexes.get(&name.to_string()));
            let (manifest, new_because) = match index {
                Some(index) => {
                    self.index(sink, index, &mut written)?;
                    (index.document.0.clone(), None)
                }
                None => {
                    let ((manifest, _), because) = self.parts(sink, record, &mut written)?;
                    (manifest, because)
                }
            };
            sink.bytes("manifest.json", &manifest)?;
            exported.push(ExportedImage {
                manifest: Some(Digest::of(&manifest)),
                new_because,
            });
        }
        Ok(exported)
    }

    /// Where blobs lie in the form that is written.
    fn blob_path(&self) -> fn(&Digest) -> String {
        match self.options.format {
            ExportFormat::SkopeoDir => skopeo_path,
            _ => oci_path,
        }
    }

    fn blob(&self, sink: &mut dyn Sink, bytes: &[u8], written: &mut Written) -> Result<()> {
        let path = self.blob_path()(&Digest::of(bytes));
        if written.first_time(&path) {
            sink.bytes(&path, bytes)?;
        }
        Ok(())
    }

    /// A manifest, or an index, that is not the outermost document.
    fn manifest(&self, sink: &mut dyn Sink, bytes: &[u8], written: &mut Written) -> Result<()> {
        if self.options.format != ExportFormat::SkopeoDir {
            return self.blob(sink, bytes, written);
        }
        let path = format!("{}.manifest.json", Digest::of(bytes).hex());
        if written.first_time(&path) {
            sink.bytes(&path, bytes)?;
        }
        Ok(())
    }

    /// Writes what stands below an index that came with a name.
    fn index(&self, sink: &mut dyn Sink, index: &WholeIndex, written: &mut Written) -> Result<()> {
        for record in &index.images {
            self.image(sink, record, written)?;
        }
        for other in &index.others {
            match other {
                Other::Manifest(digest) => self.manifest(sink, &self.document(digest)?, written)?,
                Other::Blob(digest) => self.blob(sink, &self.document(digest)?, written)?,
            }
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
        let (manifest, because) = self.parts(sink, record, written)?;
        self.manifest(sink, &manifest.0, written)?;
        Ok((manifest, because))
    }

    /// The same, without writing the manifest.
    fn parts(
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
        Ok((manifest, because))
    }

    pub(super) fn original(&self, record: &ImageRecord) -> Result<Original> {
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
        let path = self.blob_path()(&digest);
        if !written.first_time(&path) {
            return Ok(());
        }
        let size = if digest == *diff_id {
            self.tar_size(diff_id)?
        } else {
            descriptor.size
        };
        sink.stream(&path, size, &mut |out| {
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
            None => self.layer(sink, diff_id, self.blob_path())?,
        };
        written.keep_layer(diff_id, (digest, size));
        written.first_time(&self.blob_path()(&digest));
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
}
