//! Import: from a source to images in the store.
//!
//! Order of events: documents first where the source allows it, then layers bottom up, then names and images in the
//! store's own transactions. Until those, a failed import has left nothing but unreferenced layers and chunks, which no
//! listing of images shows and `gc` takes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::store::{Digest, Lease, Store};

use super::archive::{Archive, LayoutDir, Members, TarFile};
use super::blob::{KeepCompressed, Keeping};
use super::compress::{self, Sniffed};
use super::ingest::{self, Expected, LayerFacts, Publisher};
use super::limits::Limits;
use super::plan::{Dialect, Documents, PlannedImage, PlannedLayer, Wish, plan};
use super::platform::Platform;
use super::progress::{Bar, ImportProgress, LayerOutcome};
use super::record::rootfs_config;
use super::reference::Reference;
use super::source::{Location, Source, Transport};
use super::{Error, Result};

#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Names for the image, instead of the archive's own.
    pub tags: Vec<Reference>,
    /// `None`: this machine's, or the only one there is.
    pub platform: Option<Platform>,
    /// Take the images of all platforms that an index lists. Names point to the one of `platform`.
    pub all_platforms: bool,
    /// Move names that point to other images; without it that is a conflict.
    pub replace_names: bool,
    pub keep_compressed: KeepCompressed,
    pub limits: Limits,
}

/// An image that is now in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedImage {
    pub manifest: Digest,
    /// The image ID.
    pub config: Digest,
    /// Diff IDs, bottom first.
    pub layers: Vec<Digest>,
    /// Canonical names it was given.
    pub names: Vec<String>,
    /// Whether an export can give it back with this manifest: every blob that the manifest names can be made again.
    pub restorable: bool,
}

/// Imports every image of `source` (or the one it selects).
///
/// # Errors
/// Anything wrong with the source or the store. No image is recorded and no name moved then.
pub fn import(
    store: &Store,
    source: &Source,
    options: &ImportOptions,
    progress: &dyn ImportProgress,
) -> Result<Vec<ImportedImage>> {
    let importer = Importer {
        store,
        source,
        options,
        progress,
        what: source.display(),
    };
    match &source.location {
        Location::Stdin => importer.stream(Box::new(io::stdin())),
        Location::Path(path) => {
            let file = File::open(path).map_err(Error::io(path))?;
            let meta = file.metadata().map_err(Error::io(path))?;
            if meta.is_dir() {
                importer.directory(path)
            } else if matches!(
                source.transport,
                Transport::Directory | Transport::SkopeoDir
            ) {
                Err(importer.unlike("it is no directory"))
            } else if meta.is_file() {
                importer.file(file)
            } else {
                importer.stream(Box::new(file))
            }
        }
    }
}

/// Imports an archive of images, or the tar of a root file system, from a stream that is read once.
pub fn import_stream(
    store: &Store,
    stream: Box<dyn Read + Send>,
    options: &ImportOptions,
    progress: &dyn ImportProgress,
) -> Result<Vec<ImportedImage>> {
    let source = Source {
        transport: Transport::Auto,
        location: Location::Stdin,
        select: None,
    };
    Importer {
        store,
        source: &source,
        options,
        progress,
        what: "the stream".to_owned(),
    }
    .stream(stream)
}

/// One import under way.
pub(super) struct Importer<'a> {
    pub(super) store: &'a Store,
    pub(super) source: &'a Source,
    pub(super) options: &'a ImportOptions,
    pub(super) progress: &'a dyn ImportProgress,
    pub(super) what: String,
}

impl Importer<'_> {
    pub(super) fn limits(&self) -> &Limits {
        &self.options.limits
    }

    fn directory(&self, path: &Path) -> Result<Vec<ImportedImage>> {
        let dir = LayoutDir::open(path)?;
        let layout = dir.has("oci-layout") && dir.has("index.json");
        let flat = dir.is_skopeo_dir();
        let dialect = match self.source.transport {
            Transport::Auto | Transport::OciLayout if layout => Dialect::Oci,
            Transport::Auto | Transport::Directory | Transport::SkopeoDir if flat => {
                Dialect::FlatDir
            }
            Transport::Directory | Transport::Rootfs => return self.host_directory(path),
            Transport::Auto => {
                return Err(Error::MissingManifest {
                    what: self.what.clone(),
                    reason: "it is a directory, but no OCI layout; dir:PATH imports it as a root file system",
                });
            }
            Transport::OciLayout => {
                return Err(Error::MissingManifest {
                    what: self.what.clone(),
                    reason: "it has no oci-layout and index.json",
                });
            }
            Transport::SkopeoDir => {
                return Err(Error::MissingManifest {
                    what: self.what.clone(),
                    reason: "it has no version and manifest.json, as skopeo copy writes them",
                });
            }
            Transport::DockerArchive | Transport::OciArchive => {
                return Err(self.unlike("it is a directory"));
            }
        };
        self.random_access(&Archive::Dir(dir), dialect)
    }

    fn file(&self, mut file: File) -> Result<Vec<ImportedImage>> {
        let reading = |source| Error::Read {
            what: self.what.clone(),
            source,
        };
        let (head, _) = compress::peek(&mut file).map_err(reading)?;
        file.seek(SeekFrom::Start(0)).map_err(reading)?;
        match Sniffed::of(&head) {
            Sniffed::Tar if self.source.transport == Transport::Rootfs => self.rootfs(file),
            Sniffed::Tar => self.seekable(file),
            _ => self.stream(Box::new(file)),
        }
    }

    pub(super) fn seekable(&self, file: File) -> Result<Vec<ImportedImage>> {
        let again = file.try_clone().map_err(|source| Error::Read {
            what: self.what.clone(),
            source,
        })?;
        let tar = TarFile::index(file, &self.what, self.limits())?;
        match self.dialect(&tar.members)? {
            Some(dialect) => self.random_access(&Archive::Tar(tar), dialect),
            None => {
                let mut file = again;
                file.seek(SeekFrom::Start(0))
                    .map_err(|source| Error::Read {
                        what: self.what.clone(),
                        source,
                    })?;
                self.rootfs(file)
            }
        }
    }

    /// What the members make of a tar: a set of documents, or (`None`) a root file system.
    pub(super) fn dialect(&self, members: &Members) -> Result<Option<Dialect>> {
        if let Some(name) = members.twice {
            return Err(Error::document(
                name,
                "the archive has two members of this name",
            ));
        }
        let has = |name: &str| matches!(members.resolve(name.as_bytes()), Ok(Some(_)));
        let docker = has("manifest.json");
        let oci = has("oci-layout") && has("index.json");
        let missing = |reason| {
            Err(Error::MissingManifest {
                what: self.what.clone(),
                reason,
            })
        };
        let dialect = match self.source.transport {
            Transport::Rootfs | Transport::Directory | Transport::SkopeoDir => None,
            Transport::DockerArchive if docker => Some(Dialect::DockerSave),
            Transport::DockerArchive => return missing("it has no manifest.json"),
            Transport::OciArchive | Transport::OciLayout if oci => Some(Dialect::Oci),
            Transport::OciArchive | Transport::OciLayout => {
                return missing("it has no oci-layout and index.json");
            }
            // Newer `docker save` writes both; what `docker load` reads is the manifest.json.
            Transport::Auto
                if docker && (members.image_like || !members.has_directories_of_a_system()) =>
            {
                Some(Dialect::DockerSave)
            }
            Transport::Auto if oci => Some(Dialect::Oci),
            Transport::Auto if members.image_like => {
                return missing(
                    "it looks like an archive of images, but has neither manifest.json nor index.json",
                );
            }
            Transport::Auto if !members.any => return missing("the tar archive is empty"),
            Transport::Auto => None,
        };
        if dialect.is_some() && members.overflow() {
            let max = self.limits().members as u64;
            return Err(Error::Limit {
                what: self.what.clone(),
                max,
                unit: "members",
                flag: "--max-members",
            });
        }
        Ok(dialect)
    }

    pub(super) fn keeping(&self) -> Keeping<'_> {
        Keeping {
            store: self.store,
            limits: self.limits(),
            policy: self.options.keep_compressed,
        }
    }

    pub(super) fn unlike(&self, reason: &str) -> Error {
        Error::UnknownFormat {
            what: self.what.clone(),
            hint: reason.to_owned(),
        }
    }

    pub(super) fn wish(&self) -> Wish<'_> {
        Wish {
            select: self.source.select.as_deref(),
            platform: self.options.platform.as_ref(),
            all_platforms: self.options.all_platforms,
            limits: self.limits(),
        }
    }

    // --- sources that can be read at any place

    fn random_access(&self, archive: &Archive, dialect: Dialect) -> Result<Vec<ImportedImage>> {
        let images = plan(
            &Named {
                archive,
                what: &self.what,
            },
            dialect,
            &self.wish(),
        )?;
        let images = self.name(images)?;
        let of = images.iter().map(|image| image.layers.len()).sum();
        let mut index = 0;
        let mut ready = Vec::new();
        // What was there before stays there until the images need it.
        let mut held = Vec::new();
        std::thread::scope(|scope| {
            let mut publisher = Publisher::new(scope, self.store);
            for image in images {
                let own = image.manifest.is_some();
                let mut lowers = Vec::new();
                for layer in &image.layers {
                    held.extend(self.read_layer(
                        &mut publisher,
                        archive,
                        layer,
                        own,
                        &lowers,
                        (index, of),
                    )?);
                    lowers.push(layer.diff_id);
                    index += 1;
                }
                publisher.finish()?;
                ready.push(self.ready(image)?);
            }
            Ok::<_, Error>(())
        })?;
        self.record(ready)
    }

    fn read_layer(
        &self,
        publisher: &mut Publisher<'_, '_>,
        archive: &Archive,
        layer: &PlannedLayer,
        own_manifest: bool,
        lowers: &[Digest],
        (index, of): (usize, usize),
    ) -> Result<Option<Lease>> {
        let name = format!("layer {}", layer.path.escape_ascii());
        let (blob, size) = archive
            .open(&layer.path)?
            .ok_or_else(|| Error::MissingMember { what: name.clone() })?;
        check_size(&name, layer, size)?;
        let bar = Bar::start(self.progress, index, Some(of), &name, Some(size));
        // Without a manifest that names it, nobody will ask for the blob.
        let mut keeping = self.keeping();
        if !own_manifest || layer.blob.is_none() {
            keeping.policy = KeepCompressed::Never;
        }
        if let Some(lease) = publisher.hold(&layer.diff_id)? {
            if let Some(digest) = layer.blob.filter(|blob| *blob != layer.diff_id)
                && keeping.wants(Some(&digest))?
                && let Some(info) = self.store.layer(&layer.diff_id)?
            {
                let facts = LayerFacts {
                    diff_id: layer.diff_id,
                    blob: digest,
                    blob_size: size,
                    tar_size: info.tar_size,
                    entries: info.entries,
                    newest: None,
                };
                keeping.keep(&name, blob, &facts, &|n| bar.bytes(n))?;
            }
            bar.done(LayerOutcome::Present);
            return Ok(Some(lease));
        }
        let expected = Expected {
            diff_id: Some(layer.diff_id),
            blob: layer.blob,
            blob_size: Some(size),
        };
        let unpublished = keeping.ingest(&name, blob, expected, &|n| bar.bytes(n))?;
        let tar_size = unpublished.facts.tar_size;
        publisher.publish(unpublished, lowers)?;
        bar.done(LayerOutcome::New { tar_size });
        Ok(None)
    }

    // --- a root file system

    pub(super) fn rootfs(&self, tar: impl Read + Send) -> Result<Vec<ImportedImage>> {
        if self.source.select.is_some() {
            return Err(
                self.unlike("the tar of a root file system holds no named images to select from")
            );
        }
        let bar = Bar::start(self.progress, 0, Some(1), &self.what, None);
        let read = ingest::ingest(
            self.store,
            &self.what,
            tar,
            Expected::default(),
            self.limits(),
            &|n| bar.bytes(n),
            None,
        )?;
        if read.facts.entries == 0 {
            let reason = "the tar archive is empty";
            return Err(Error::MissingManifest {
                what: self.what.clone(),
                reason,
            });
        }
        let config = rootfs_config(&read.facts, self.options.platform.as_ref());
        let diff_id = read.facts.diff_id;
        let image = PlannedImage {
            manifest: None,
            config,
            layers: vec![PlannedLayer {
                path: Vec::new(),
                diff_id,
                blob: None,
                blob_size: None,
            }],
            names: Vec::new(),
            indexes: Vec::new(),
            another_platform: false,
        };
        let mut images = self.name(vec![image])?;
        let present = self.store.layer(&diff_id)?.is_some();
        let facts = read.publish(self.store, &[])?;
        let new = LayerOutcome::New {
            tar_size: facts.tar_size,
        };
        bar.done(if present { LayerOutcome::Present } else { new });
        self.record(vec![self.ready(images.remove(0))?])
    }
}

pub(super) fn check_size(what: &str, layer: &PlannedLayer, actual: u64) -> Result<()> {
    match layer.blob_size {
        Some(expected) if expected != actual => Err(Error::SizeMismatch {
            what: what.to_owned(),
            expected,
            actual: actual.to_string(),
        }),
        _ => Ok(()),
    }
}

/// An archive as a source of documents.
struct Named<'a> {
    archive: &'a Archive,
    what: &'a str,
}

impl Documents for Named<'_> {
    fn name(&self) -> &str {
        self.what
    }

    fn document(&self, path: &[u8], max: u64) -> Result<Option<Vec<u8>>> {
        self.archive.document(path, max)
    }
}
