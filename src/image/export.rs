//! Export: images from the store as archives that other tools load.
//!
//! The store keeps layers as tars, not as the compressed blobs they may have come in. So:
//! - `docker-archive` carries the configuration verbatim (the image ID stays); it has no OCI manifest.
//! - OCI forms carry the image's manifest verbatim, so that its digest stays, if every blob it names can be given as it
//!   was: layers wanted uncompressed, and plain in the manifest too. Otherwise the manifest is made anew from the
//!   same configuration with descriptors of the blobs written here; its digest changes, the image ID does not.
//!
//! Every layer is proven against its diff ID while it is written; a failure leaves no output.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::store::{self, Digest, ImageRecord, Store};

use super::compress::{Compression, Encoder};
use super::documents::{
    self, CONTAINERD_NAME, Document, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, REF_NAME,
};
use super::layer_tar::LayerTarWriter;
use super::output::{OutputDir, OutputFile};
use super::reference::Reference;
use super::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// As `docker save` writes it; one file.
    DockerArchive,
    /// An OCI layout in a tar; one file.
    OciArchive,
    /// An OCI layout directory, which must not exist yet.
    OciDir,
}

#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    pub format: ExportFormat,
    /// Of each layer within the archive. (podman and skopeo do not read a docker-archive compressed as a whole.)
    pub compression: Compression,
}

/// An image to export, and the names it shall have there (possibly none).
#[derive(Clone, Debug)]
pub struct ExportImage {
    pub manifest: Digest,
    pub names: Vec<Reference>,
}

/// Where to.
pub enum ExportTarget<'a> {
    /// Written beside and renamed when complete. An existing file is replaced, an existing directory is not.
    Path(&'a Path),
    /// Not for [`ExportFormat::OciDir`].
    Stream(&'a mut dyn Write),
}

/// Writes `images` to `target`.
///
/// # Errors
/// [`store::Error::NotFound`] for an image that is not there, [`store::Error::Corrupt`] for a layer that does not come
/// out as it went in, [`Error::Exists`], or those of the output.
pub fn export(
    store: &Store,
    images: &[ExportImage],
    options: ExportOptions,
    target: ExportTarget<'_>,
) -> Result<()> {
    let exporter = Exporter::new(store, images, options)?;
    match (options.format, target) {
        (ExportFormat::OciDir, ExportTarget::Path(path)) => {
            let mut dir = OutputDir::create(path)?;
            exporter.oci(&mut DirSink {
                root: dir.path().to_owned(),
            })?;
            dir.publish()
        }
        (ExportFormat::OciDir, ExportTarget::Stream(_)) => Err(Error::Usage(
            "an OCI layout directory cannot be written to standard output".to_owned(),
        )),
        (_, ExportTarget::Stream(out)) => exporter.archive(out),
        (_, ExportTarget::Path(path)) => {
            let mut file = OutputFile::create(path)?;
            exporter.archive(file.writer())?;
            file.publish()
        }
    }
}

struct Exporter<'a> {
    store: &'a Store,
    images: Vec<(ImageRecord, &'a [Reference])>,
    options: ExportOptions,
    /// Keeps the layers until the export is over.
    _lease: store::Lease,
}

impl<'a> Exporter<'a> {
    fn new(store: &'a Store, images: &'a [ExportImage], options: ExportOptions) -> Result<Self> {
        let mut records = Vec::new();
        for image in images {
            let record = store.image(&image.manifest)?;
            let missing =
                || store::Error::NotFound(format!("image {} is not in the store", image.manifest));
            records.push((record.ok_or_else(missing)?, image.names.as_slice()));
        }
        let layers: Vec<Digest> = records
            .iter()
            .flat_map(|(record, _)| record.layers.clone())
            .collect();
        let lease = store.lease(&layers, "export")?;
        Ok(Self {
            store,
            images: records,
            options,
            _lease: lease,
        })
    }

    fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let found = self.store.document(digest)?;
        Ok(found.ok_or_else(|| store::Error::Corrupt(format!("document {digest} is missing")))?)
    }

    fn tar_size(&self, diff_id: &Digest) -> Result<u64> {
        let layer = self.store.layer(diff_id)?;
        Ok(layer
            .ok_or_else(|| store::Error::NotFound(format!("layer {diff_id} is not in the store")))?
            .tar_size)
    }

    /// One of the two archive formats to a stream.
    fn archive(&self, out: &mut dyn Write) -> Result<()> {
        let mut out = BufWriter::with_capacity(256 << 10, out);
        let mut sink = TarSink {
            tar: LayerTarWriter::new(&mut out),
        };
        if self.options.format == ExportFormat::OciArchive {
            self.oci(&mut sink)?;
        } else {
            self.docker(&mut sink)?;
        }
        sink.tar.finish().map_err(Error::Output)
    }

    fn docker(&self, sink: &mut dyn Sink) -> Result<()> {
        let mut written = Written::default();
        let mut manifest = Vec::new();
        for (record, names) in &self.images {
            let config_path = format!("{}.json", record.config.hex());
            if written.first_time(&config_path) {
                sink.bytes(&config_path, &self.document(&record.config)?)?;
            }
            let mut layers = Vec::new();
            for diff_id in &record.layers {
                let path = format!("{}.tar", diff_id.hex());
                if written.first_time(&path) {
                    self.layer(sink, diff_id, |_| path.clone())?;
                }
                layers.push(path);
            }
            let tags: Vec<String> = names.iter().filter_map(tagged).collect();
            manifest.push(json!({ "Config": config_path, "RepoTags": tags, "Layers": layers }));
        }
        sink.bytes(
            "manifest.json",
            Value::from(manifest).to_string().as_bytes(),
        )
    }

    fn oci(&self, sink: &mut dyn Sink) -> Result<()> {
        sink.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut written = Written::default();
        let mut blobs = std::collections::HashMap::new();
        let mut entries = Vec::new();
        for (record, names) in &self.images {
            let mut layers = Vec::new();
            for diff_id in &record.layers {
                let descriptor = match blobs.get(diff_id) {
                    Some(descriptor) => Value::clone(descriptor),
                    None => self.oci_layer(sink, diff_id)?,
                };
                blobs.insert(*diff_id, descriptor.clone());
                layers.push(descriptor);
            }
            let (manifest, media_type) = self.oci_manifest(record, &layers)?;
            for blob in [&self.document(&record.config)?, &manifest] {
                let path = format!("blobs/sha256/{}", Digest::of(blob).hex());
                if written.first_time(&path) {
                    sink.bytes(&path, blob)?;
                }
            }
            let entry =
                documents::descriptor(&media_type, &Digest::of(&manifest), manifest.len() as u64);
            if names.is_empty() {
                entries.push(entry.clone());
            }
            for name in *names {
                let mut entry = entry.clone();
                entry["annotations"] =
                    json!({ REF_NAME: name.to_string(), CONTAINERD_NAME: name.to_string() });
                entries.push(entry);
            }
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
        sink.bytes("index.json", index.to_string().as_bytes())
    }

    /// The image's own manifest where it is true of the blobs written here, else a new one.
    fn oci_manifest(&self, record: &ImageRecord, layers: &[Value]) -> Result<(Vec<u8>, String)> {
        let own = self.document(&record.manifest)?;
        let name = record.manifest.to_string();
        let parsed = Document::parse(&name, &own, &record.manifest_media_type)?;
        if let Document::Manifest {
            layers: descriptors,
            ..
        } = &parsed
        {
            let own_digests = descriptors.iter().map(|d| Value::from(d.digest.as_str()));
            if own_digests.eq(layers.iter().map(|layer| layer["digest"].clone())) {
                return Ok((own, record.manifest_media_type.clone()));
            }
        }
        let mut manifest: Value = serde_json::from_slice(&documents::manifest(
            &self.document(&record.config)?,
            layers,
        ))
        .map_err(|error| Error::document(&name, error))?;
        let own: Value =
            serde_json::from_slice(&own).map_err(|error| Error::document(&name, error))?;
        if let Some(annotations) = own.get("annotations") {
            manifest["annotations"] = annotations.clone();
        }
        Ok((manifest.to_string().into_bytes(), OCI_MANIFEST.to_owned()))
    }

    /// Writes a layer at the path that `path` makes of its blob's digest, and gives that digest and the blob's size.
    fn layer(
        &self,
        sink: &mut dyn Sink,
        diff_id: &Digest,
        path: impl Fn(&Digest) -> String,
    ) -> Result<(Digest, u64)> {
        if self.options.compression == Compression::None {
            let size = self.tar_size(diff_id)?;
            sink.stream(&path(diff_id), size, &mut |out| {
                self.store.write_layer_tar(diff_id, out)?;
                Ok(())
            })?;
            return Ok((*diff_id, size));
        }
        // A tar member's size comes before its bytes, so what is compressed must be complete first.
        let (dir, spool) = super::spool_file()?;
        let out = Hashing {
            out: BufWriter::new(spool),
            hasher: Sha256::new(),
            size: 0,
        };
        let mut encoder = Encoder::new(out, self.options.compression).map_err(Error::io(&dir))?;
        self.store.write_layer_tar(diff_id, &mut encoder)?;
        let Hashing { out, hasher, size } = encoder.finish().map_err(Error::io(&dir))?;
        let mut spool = out
            .into_inner()
            .map_err(|error| Error::io(&dir)(error.into_error()))?;
        spool.seek(SeekFrom::Start(0)).map_err(Error::io(&dir))?;
        let digest = Digest::from_bytes(hasher.finalize().into());
        sink.stream(&path(&digest), size, &mut |out| {
            io::copy(&mut spool, out).map_err(Error::Output)?;
            Ok(())
        })?;
        Ok((digest, size))
    }

    /// Writes a layer's blob and gives its descriptor.
    fn oci_layer(&self, sink: &mut dyn Sink, diff_id: &Digest) -> Result<Value> {
        let (digest, size) =
            self.layer(sink, diff_id, |blob| format!("blobs/sha256/{}", blob.hex()))?;
        let suffix = match self.options.compression {
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
}

/// What `RepoTags` can hold: a name with a tag, without digest.
fn tagged(name: &Reference) -> Option<String> {
    name.tag().map(|tag| format!("{}:{tag}", name.repository()))
}

/// Members already written: images share layers.
#[derive(Default)]
struct Written(std::collections::HashSet<String>);

impl Written {
    fn first_time(&mut self, path: &str) -> bool {
        self.0.insert(path.to_owned())
    }
}

struct Hashing<W> {
    out: W,
    hasher: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

type Producer<'p> = &'p mut dyn FnMut(&mut dyn Write) -> Result<()>;

/// Takes the members of an archive.
trait Sink {
    fn stream(&mut self, path: &str, size: u64, write: Producer<'_>) -> Result<()>;

    fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.stream(path, bytes.len() as u64, &mut |out| {
            out.write_all(bytes).map_err(Error::Output)
        })
    }
}

struct TarSink<'o> {
    tar: LayerTarWriter<'o>,
}

impl Sink for TarSink<'_> {
    fn stream(&mut self, path: &str, size: u64, write: Producer<'_>) -> Result<()> {
        /// Tells the archive's own failures from those of the producer.
        enum Failure {
            Own(io::Error),
            Producer(Error),
        }
        impl From<io::Error> for Failure {
            fn from(error: io::Error) -> Self {
                Self::Own(error)
            }
        }
        let written = self
            .tar
            .member(path, size, |out| write(out).map_err(Failure::Producer));
        written.map_err(|failure| match failure {
            Failure::Own(error) => Error::Output(error),
            Failure::Producer(error) => error,
        })
    }
}

struct DirSink {
    root: PathBuf,
}

impl Sink for DirSink {
    fn stream(&mut self, path: &str, _size: u64, write: Producer<'_>) -> Result<()> {
        let path = self.root.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        }
        let file = File::create_new(&path).map_err(Error::io(&path))?;
        let mut out = BufWriter::with_capacity(256 << 10, file);
        write(&mut out)?;
        let file = out
            .into_inner()
            .map_err(|error| Error::io(&path)(error.into_error()))?;
        file.sync_all().map_err(Error::io(&path))
    }
}
