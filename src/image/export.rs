//! Export: images from the store as archives that other tools load.
//!
//! - `docker-archive` carries the configuration verbatim (the image ID stays); it has no OCI manifest.
//! - OCI forms carry the image's manifest verbatim, so that its digest stays, if every blob it names can be given as it
//!   was: plain, or made again from what the import kept. Otherwise, or if another compression is asked for, the
//!   manifest is made anew from the same configuration with descriptors of the blobs written here; its digest changes, the
//!   image ID does not.
//!
//! - The directory form of skopeo holds one image, or the index it came with, under the same rules.
//!
//! Whatever is exported is held from the beginning: layers and blobs by a lease, documents in memory. So an image that is
//! removed meanwhile still comes out whole. Every layer is proven against its diff ID, every blob against its digest while it is written; a failure leaves no
//! output.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::store::{self, Digest, ImageRecord, Store};

use super::compress::{Compression, Encoder};
use super::export_index::{Held, WholeIndex, gone};
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
    /// A directory as `skopeo copy` writes it to its `dir:`, of one image; it must not exist yet.
    SkopeoDir,
}

impl ExportFormat {
    fn is_directory(self) -> bool {
        matches!(self, Self::OciDir | Self::SkopeoDir)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    pub format: ExportFormat,
    /// Of each layer within the archive. (podman and skopeo do not read a docker-archive compressed as a whole.) `None`: as
    /// they came, where that can be made again, else plain.
    pub compression: Option<Compression>,
}

/// What was written of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedImage {
    /// Digest of its manifest, or of the index it is in, where the format has them.
    pub manifest: Option<Digest>,
    /// Why that is not the manifest it was imported with.
    pub new_because: Option<String>,
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
    /// Not for formats that are directories.
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
) -> Result<Vec<ExportedImage>> {
    let exporter = Exporter::new(store, images, options)?;
    match (options.format, target) {
        (format, ExportTarget::Path(path)) if format.is_directory() => {
            let mut dir = OutputDir::create(path)?;
            let exported = exporter.members(&mut DirSink {
                root: dir.path().to_owned(),
            })?;
            dir.publish().map(|()| exported)
        }
        (format, ExportTarget::Stream(_)) if format.is_directory() => Err(Error::Usage(
            "a directory cannot be written to standard output".to_owned(),
        )),
        (_, ExportTarget::Stream(out)) => exporter.archive(out),
        (_, ExportTarget::Path(path)) => {
            let mut file = OutputFile::create(path)?;
            let exported = exporter.archive(file.writer())?;
            file.publish().map(|()| exported)
        }
    }
}

pub(super) struct Exporter<'a> {
    pub(super) store: &'a Store,
    pub(super) images: Vec<(ImageRecord, &'a [Reference])>,
    pub(super) options: ExportOptions,
    pub(super) held: Held,
    /// The indexes that names came with and that can be given whole, by name.
    pub(super) indexes: HashMap<String, WholeIndex>,
    /// Keeps the layers, and so their compressed blobs, until the export is over.
    _lease: store::Lease,
}

impl<'a> Exporter<'a> {
    fn new(store: &'a Store, images: &'a [ExportImage], options: ExportOptions) -> Result<Self> {
        if options.format == ExportFormat::SkopeoDir && images.len() != 1 {
            return Err(Error::Usage("skopeo-dir: takes one image".to_owned()));
        }
        let mut records = Vec::new();
        for image in images {
            let record = store.image(&image.manifest)?;
            records.push((
                record.ok_or_else(|| gone(&image.manifest))?,
                image.names.as_slice(),
            ));
        }
        let layers: Vec<Digest> = records
            .iter()
            .flat_map(|(record, _)| record.layers.clone())
            .collect();
        let lease = store.lease(&layers, "export")?;
        let mut exporter = Self {
            store,
            images: records,
            options,
            held: Held::default(),
            indexes: HashMap::new(),
            _lease: lease,
        };
        for (record, _) in &exporter.images {
            exporter.held.take_documents_of(store, record)?;
        }
        if options.format != ExportFormat::DockerArchive {
            exporter.find_indexes()?;
        }
        Ok(exporter)
    }

    /// A document of what is being exported.
    pub(super) fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.held.document(self.store, digest)
    }

    pub(super) fn tar_size(&self, diff_id: &Digest) -> Result<u64> {
        let layer = self.store.layer(diff_id)?;
        Ok(layer
            .ok_or_else(|| store::Error::NotFound(format!("layer {diff_id} is not in the store")))?
            .tar_size)
    }

    /// One of the two archive formats to a stream.
    fn archive(&self, out: &mut dyn Write) -> Result<Vec<ExportedImage>> {
        let mut out = BufWriter::with_capacity(256 << 10, out);
        let mut sink = TarSink {
            tar: LayerTarWriter::new(&mut out),
        };
        let exported = self.members(&mut sink)?;
        sink.tar.finish().map_err(Error::Output)?;
        Ok(exported)
    }

    fn members(&self, sink: &mut dyn Sink) -> Result<Vec<ExportedImage>> {
        match self.options.format {
            ExportFormat::DockerArchive => self.docker(sink),
            ExportFormat::OciArchive | ExportFormat::OciDir => self.oci(sink),
            ExportFormat::SkopeoDir => self.skopeo_dir(sink),
        }
    }

    fn docker(&self, sink: &mut dyn Sink) -> Result<Vec<ExportedImage>> {
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
        )?;
        let nothing = ExportedImage {
            manifest: None,
            new_because: None,
        };
        Ok(vec![nothing; self.images.len()])
    }

    /// Writes a layer at the path that `path` makes of its blob's digest, and gives that digest and the blob's size.
    pub(super) fn layer(
        &self,
        sink: &mut dyn Sink,
        diff_id: &Digest,
        path: impl Fn(&Digest) -> String,
    ) -> Result<(Digest, u64)> {
        let compression = self.options.compression.unwrap_or_default();
        if compression == Compression::None {
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
        let mut encoder = Encoder::new(out, compression).map_err(Error::io(&dir))?;
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
}

/// What `RepoTags` can hold: a name with a tag, without digest.
fn tagged(name: &Reference) -> Option<String> {
    name.tag().map(|tag| format!("{}:{tag}", name.repository()))
}

/// Members already written: images share layers.
#[derive(Default)]
pub(super) struct Written {
    paths: HashSet<String>,
    /// Layers compressed here, and what became of them.
    layers: HashMap<Digest, (Digest, u64)>,
}

impl Written {
    pub(super) fn first_time(&mut self, path: &str) -> bool {
        self.paths.insert(path.to_owned())
    }

    pub(super) fn layer(&self, diff_id: &Digest) -> Option<(Digest, u64)> {
        self.layers.get(diff_id).copied()
    }

    pub(super) fn keep_layer(&mut self, diff_id: &Digest, blob: (Digest, u64)) {
        self.layers.insert(*diff_id, blob);
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

pub(super) type Producer<'p> = &'p mut dyn FnMut(&mut dyn Write) -> Result<()>;

/// Takes the members of an archive.
pub(super) trait Sink {
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
