//! Archives of images that can be read only once, from front to back: pipes and compressed files.
//!
//! Layers go into the store as they come by, before anyone knows which image they belong to; documents are kept in
//! memory; what fits together is decided at the end. A layer whose member is named after a digest that the store has is
//! not read. When not even the kind of the stream can be told from its beginning, it is spooled to a file first.

use std::collections::HashMap;
use std::io::Read;

use crate::store::{Digest, Lease};

use super::archive::{self, Member, Members};
use super::blob::{KeepCompressed, Keeping};
use super::compress::{self, Sniffed};
use super::ingest::{Expected, LayerFacts, Publisher, Unpublished};
use super::limits::Limits;
use super::plan::{Documents, digest_in_name};
use super::progress::{Bar, ImportProgress, LayerOutcome};
use super::pump::PumpReader;
use super::tar::{TarError, TarReader};
use super::{Error, Result};

/// Documents kept of one stream, bytes in all.
const MAX_DOCUMENTS: u64 = 64 << 20;
/// Layers that may wait, each half written, for the layers below them.
const MAX_UNPUBLISHED: usize = 32;

/// What the beginning of a tar stream says the whole is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// An archive of images.
    Images,
    /// The tar of a root file system.
    Rootfs,
    /// Could be either.
    Unclear,
}

impl Beginning {
    /// Judges by the first member whose name tells, as far as `head` (the first piece of the stream) shows members.
    pub fn of(head: &[u8], limits: &Limits) -> Self {
        let mut reader = TarReader::new(head, limits.tar());
        // What is wrong with a member is better told by those who read the whole.
        while let Ok(Some(entry)) = reader.next::<TarError>(&mut |_| Ok(())) {
            let path = archive::member_path(&entry.path).unwrap_or_default();
            if archive::is_image_like(&path) || path == b"manifest.json" || path == b"index.json" {
                return Self::Images;
            }
            if archive::is_system_like(&path) {
                return Self::Rootfs;
            }
        }
        Self::Unclear
    }
}

/// A layer that came by.
pub enum StreamLayer {
    /// Its name says that the store has it; held against `gc`.
    Present(Digest, Lease),
    /// Read and in the store, at the latest when the stream has ended.
    Published(LayerFacts),
    /// Read, but it cannot be finished before the layers below it are known.
    Unpublished(Box<Unpublished>),
    /// It could not be read; that matters only if an image needs it.
    Failed(Error),
}

/// A stream read to its end.
pub struct StreamArchive {
    what: String,
    members: Members,
    documents: HashMap<Vec<u8>, Option<Vec<u8>>>,
    layers: HashMap<Vec<u8>, StreamLayer>,
}

/// A stream being read.
struct Reading<'a, 'scope> {
    keeping: &'a Keeping<'a>,
    publisher: Publisher<'scope, 'a>,
    limits: &'a Limits,
    progress: &'a dyn ImportProgress,
    archive: StreamArchive,
    /// Bytes of documents kept.
    kept: u64,
    /// Layers seen.
    index: usize,
    /// Layers that wait for those below.
    unpublished: usize,
}

impl Reading<'_, '_> {
    fn document(&mut self, path: Vec<u8>, size: u64, mut body: impl Read) -> Result<()> {
        let document = if size <= self.limits.config.max(self.limits.manifest) {
            self.kept += size;
            archive::check_document_size(|| self.archive.what.clone(), self.kept, MAX_DOCUMENTS)?;
            let mut bytes = Vec::new();
            let what = || path.escape_ascii().to_string();
            let read = body.read_to_end(&mut bytes);
            read.map_err(|source| Error::Read {
                what: what(),
                source,
            })?;
            Some(bytes)
        } else {
            None
        };
        self.archive.documents.insert(path, document);
        Ok(())
    }

    fn layer(&mut self, path: Vec<u8>, size: u64, body: impl Read + Send) -> Result<()> {
        let name = path.escape_ascii().to_string();
        let bar = Bar::start(self.progress, self.index, None, &name, Some(size));
        self.index += 1;
        let held = match digest_in_name(&name) {
            Some(diff_id) => self.publisher.hold(&diff_id)?.map(|lease| (diff_id, lease)),
            None => None,
        };
        let layer = match held {
            Some((diff_id, lease)) => {
                bar.done(LayerOutcome::Present);
                StreamLayer::Present(diff_id, lease)
            }
            None => {
                let expected = Expected {
                    blob_size: Some(size),
                    ..Expected::default()
                };
                // A blob that is kept already need not be looked at again; whether it is the one its name says shows
                // when the documents ask for it.
                let mut keeping = *self.keeping;
                if !keeping.wants(digest_in_name(&name).as_ref())? {
                    keeping.policy = KeepCompressed::Never;
                }
                let report = |n| bar.bytes(n);
                match keeping.ingest(&name, body, expected, &report) {
                    Ok(layer) => {
                        let tar_size = layer.facts.tar_size;
                        let layer = self.keep(layer)?;
                        bar.done(LayerOutcome::New { tar_size });
                        layer
                    }
                    // The store's failures are not the member's fault and would only repeat.
                    Err(error @ (Error::Store(_) | Error::Limit { .. })) => return Err(error),
                    Err(error) => StreamLayer::Failed(error),
                }
            }
        };
        self.archive.layers.insert(path, layer);
        Ok(())
    }

    fn keep(&mut self, layer: Unpublished) -> Result<StreamLayer> {
        if !layer.needs_lowers() {
            let facts = layer.facts;
            self.publisher.publish(layer, &[])?;
            return Ok(StreamLayer::Published(facts));
        }
        self.unpublished += 1;
        if self.unpublished > MAX_UNPUBLISHED {
            let reason = "too many of its layers hold hard links to lower layers for reading it as a stream; \
                          save it to an uncompressed file and import that";
            let what = self.archive.what.clone();
            return Err(Error::Unsupported {
                what,
                reason: reason.to_owned(),
            });
        }
        Ok(StreamLayer::Unpublished(Box::new(layer)))
    }
}

impl StreamArchive {
    /// Reads the whole stream.
    pub fn read(
        keeping: &Keeping<'_>,
        what: &str,
        tar: TarReader<PumpReader>,
        progress: &dyn ImportProgress,
    ) -> Result<Self> {
        std::thread::scope(|scope| {
            let publisher = Publisher::new(scope, keeping.store);
            Self::read_with(publisher, keeping, what, tar, progress)
        })
    }

    fn read_with<'a>(
        publisher: Publisher<'_, 'a>,
        keeping: &'a Keeping<'a>,
        what: &str,
        mut tar: TarReader<PumpReader>,
        progress: &'a dyn ImportProgress,
    ) -> Result<Self> {
        let limits = keeping.limits;
        let located = |source| Error::Tar {
            what: what.to_owned(),
            source,
        };
        let archive = Self {
            what: what.to_owned(),
            members: Members::default(),
            documents: HashMap::new(),
            layers: HashMap::new(),
        };
        let mut reading = Reading {
            keeping,

            publisher,
            limits,
            progress,
            archive,
            kept: 0,
            index: 0,
            unpublished: 0,
        };
        while let Some(entry) = tar.next(&mut |_| Ok(())).map_err(located)? {
            let path = archive::member_path(&entry.path).unwrap_or_default();
            let Some(member) = Member::of(&entry, tar.offset()) else {
                continue;
            };
            let is_file = matches!(member, Member::File { .. });
            reading.archive.members.insert(&path, member, limits);
            if reading.archive.members.overflow() {
                let (what, max) = (what.to_owned(), limits.members as u64);
                return Err(Error::Limit {
                    what,
                    max,
                    unit: "members",
                    flag: "--max-members",
                });
            }
            if !is_file {
                continue;
            }
            let peeked = compress::peek(tar.body_reader());
            let (head, body) = peeked.map_err(|source| Error::Read {
                what: what.to_owned(),
                source,
            })?;
            match Sniffed::of(&head) {
                Sniffed::Json => reading.document(path, entry.stored, body)?,
                Sniffed::Tar | Sniffed::Gzip | Sniffed::Zstd => {
                    reading.layer(path, entry.stored, body)?;
                }
                Sniffed::Empty | Sniffed::Other(_) => {}
            }
        }
        tar.trailer(&mut |_| Ok(())).map_err(located)?;
        reading.publisher.finish()?;
        Ok(reading.archive)
    }

    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Takes the layer at `path` out; links are followed. The size of the member is given, too; the layer only once.
    pub fn take_layer(&mut self, path: &[u8]) -> Result<Option<(u64, Option<StreamLayer>)>> {
        match self.members.resolve(path)? {
            Some((path, _, size)) => Ok(Some((size, self.layers.remove(&path)))),
            None => Ok(None),
        }
    }
}

impl Documents for StreamArchive {
    fn name(&self) -> &str {
        &self.what
    }

    fn document(&self, path: &[u8], max: u64) -> Result<Option<Vec<u8>>> {
        let Some((path, _, size)) = self.members.resolve(path)? else {
            return Ok(None);
        };
        let name = || path.escape_ascii().to_string();
        archive::check_document_size(name, size, max)?;
        match self.documents.get(&path) {
            Some(Some(bytes)) => Ok(Some(bytes.clone())),
            _ => Err(Error::document(name(), "it is not a JSON document")),
        }
    }
}
