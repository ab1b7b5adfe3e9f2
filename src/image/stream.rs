//! Archives of images that can be read only once, from front to back: pipes and compressed files.
//!
//! Layers go into the store as they come by, before anyone knows which image they belong to; documents are kept in
//! memory; what fits together is decided at the end. A layer whose member is named after a digest that the store has is
//! not read. When not even the kind of the stream can be told from its beginning, it is spooled to a file first.

use std::collections::HashMap;
use std::io::Read;

use crate::store::{Digest, Lease, Store};

use super::archive::{self, Member, Members, symlink_target};
use super::compress::{self, Sniffed};
use super::ingest::{self, Expected, LayerFacts, Unpublished};
use super::limits::Limits;
use super::plan::{Documents, digest_in_name};
use super::progress::{Bar, ImportProgress, LayerOutcome};
use super::pump::PumpReader;
use super::tar::{Entry, Kind, TarError, TarReader};
use super::{Error, Result};

/// Documents kept of one stream, bytes in all.
const MAX_DOCUMENTS: u64 = 64 << 20;

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
    /// Read and already in the store.
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

impl StreamArchive {
    /// Reads the whole stream.
    pub fn read(
        store: &Store,
        what: &str,
        mut tar: TarReader<PumpReader>,
        limits: &Limits,
        progress: &dyn ImportProgress,
    ) -> Result<Self> {
        let located = |source| Error::Tar {
            what: what.to_owned(),
            source,
        };
        let mut this = Self {
            what: what.to_owned(),
            members: Members::default(),
            documents: HashMap::new(),
            layers: HashMap::new(),
        };
        let mut kept = 0;
        let mut index = 0;
        while let Some(entry) = tar.next(&mut |_| Ok(())).map_err(located)? {
            let path = archive::member_path(&entry.path).unwrap_or_default();
            let member = match entry.kind {
                Kind::Regular if entry.extents.is_none() => Some(Member::File {
                    offset: tar.offset(),
                    size: entry.stored,
                }),
                Kind::Symlink => symlink_target(&entry.path, &entry.link).map(Member::Link),
                Kind::HardLink => archive::member_path(&entry.link).map(Member::Link),
                _ => None,
            };
            let Some(member) = member else { continue };
            let is_file = matches!(member, Member::File { .. });
            this.members.insert(&path, member, limits);
            if this.members.overflow() {
                let max = limits.members as u64;
                return Err(Error::Limit {
                    what: this.what,
                    max,
                    unit: "members",
                    flag: "--max-members",
                });
            }
            if is_file {
                this.take(
                    store, &mut tar, &entry, path, limits, progress, &mut kept, &mut index,
                )?;
            }
        }
        tar.trailer(&mut |_| Ok(())).map_err(located)?;
        Ok(this)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one step of `read`, with its loop variables"
    )]
    fn take(
        &mut self,
        store: &Store,
        tar: &mut TarReader<PumpReader>,
        entry: &Entry,
        path: Vec<u8>,
        limits: &Limits,
        progress: &dyn ImportProgress,
        kept: &mut u64,
        index: &mut usize,
    ) -> Result<()> {
        let name = path.escape_ascii().to_string();
        let reading = |source| Error::Read {
            what: name.clone(),
            source,
        };
        let (head, mut body) = compress::peek(tar.body_reader()).map_err(reading)?;
        match Sniffed::of(&head) {
            Sniffed::Json => {
                let document = if entry.stored <= limits.config.max(limits.manifest) {
                    *kept += entry.stored;
                    archive::check_document_size(|| self.what.clone(), *kept, MAX_DOCUMENTS)?;
                    let mut bytes = Vec::new();
                    body.read_to_end(&mut bytes).map_err(reading)?;
                    Some(bytes)
                } else {
                    None
                };
                self.documents.insert(path, document);
            }
            Sniffed::Tar | Sniffed::Gzip | Sniffed::Zstd => {
                let bar = Bar::start(progress, *index, None, &name, Some(entry.stored));
                *index += 1;
                let named = digest_in_name(&name);
                if let Some(diff_id) = named
                    && let Some(lease) = ingest::hold(store, &diff_id)?
                {
                    bar.done(LayerOutcome::Present);
                    self.layers
                        .insert(path, StreamLayer::Present(diff_id, lease));
                    return Ok(());
                }
                let expected = Expected {
                    blob_size: Some(entry.stored),
                    ..Expected::default()
                };
                let layer =
                    match ingest::ingest(store, &name, body, expected, limits, &|n| bar.bytes(n)) {
                        Ok(layer) => {
                            let outcome = LayerOutcome::New {
                                tar_size: layer.facts.tar_size,
                            };
                            let layer = if layer.needs_lowers() {
                                StreamLayer::Unpublished(Box::new(layer))
                            } else {
                                StreamLayer::Published(layer.publish(store, &[])?)
                            };
                            bar.done(outcome);
                            layer
                        }
                        // The store's failures are not the member's fault and would only repeat.
                        Err(error @ (Error::Store(_) | Error::Limit { .. })) => return Err(error),
                        Err(error) => StreamLayer::Failed(error),
                    };
                self.layers.insert(path, layer);
            }
            Sniffed::Empty | Sniffed::Other(_) => {}
        }
        Ok(())
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
