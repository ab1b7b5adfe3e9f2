//! What an export holds on to: the documents of its images, and the indexes that their names came with.
//!
//! A lease keeps layers and blobs, but an image that is removed takes its documents along. They are small, so they are
//! read when the export begins. Beyond [`HELD_BYTES`], which no image made by a builder needs, the rest is read when its
//! turn comes, and an image removed before that is told as such.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::store::{self, Digest, ImageRecord, Lease, Store};

use super::documents::{Document, OCI_INDEX};
use super::export::Exporter;
use super::export_oci::{Original, Typed};
use super::{Error, Result};

/// Bytes of documents held at most.
const HELD_BYTES: usize = 64 << 20;

/// Documents in memory.
#[derive(Default)]
pub(super) struct Held {
    documents: HashMap<Digest, Vec<u8>>,
    bytes: usize,
}

impl Held {
    fn keep(&mut self, digest: &Digest, bytes: Vec<u8>) {
        if self.bytes + bytes.len() <= HELD_BYTES && !self.documents.contains_key(digest) {
            self.bytes += bytes.len();
            self.documents.insert(*digest, bytes);
        }
    }

    /// Takes hold of an image's manifest and configuration.
    ///
    /// # Errors
    /// [`store::Error::NotFound`] if the image was removed just now.
    pub(super) fn take_documents_of(&mut self, store: &Store, record: &ImageRecord) -> Result<()> {
        for digest in [&record.manifest, &record.config] {
            match store.document(digest)? {
                Some(bytes) => self.keep(digest, bytes),
                None if store.image(&record.manifest)?.is_none() => {
                    return Err(gone(&record.manifest).into());
                }
                None => return Err(missing(digest).into()),
            }
        }
        Ok(())
    }

    pub(super) fn document(&self, store: &Store, digest: &Digest) -> Result<Vec<u8>> {
        if let Some(bytes) = self.documents.get(digest) {
            return Ok(bytes.clone());
        }
        Ok(store.document(digest)?.ok_or_else(|| missing(digest))?)
    }
}

/// An image that is not there, or not any more.
pub(super) fn gone(manifest: &Digest) -> store::Error {
    store::Error::NotFound(format!("image {manifest} is not in the store"))
}

fn missing(digest: &Digest) -> store::Error {
    store::Error::Corrupt(format!("document {digest} is missing"))
}

/// The index a name came with, all of whose images are here.
pub(super) struct WholeIndex {
    pub(super) document: Typed,
    pub(super) digest: Digest,
    /// What it lists besides images, in no order.
    pub(super) others: Vec<Other>,
    pub(super) images: Vec<ImageRecord>,
    /// Keeps the layers of all of them.
    _lease: Lease,
}

/// A document under an index.
pub(super) enum Other {
    /// An index within, or the manifest of an attestation.
    Manifest(Digest),
    /// What such a manifest names.
    Blob(Digest),
}

/// An index as far as it has been followed.
#[derive(Default)]
struct Found {
    others: Vec<Other>,
    held: Held,
    images: Vec<ImageRecord>,
}

impl Exporter<'_> {
    /// Finds the indexes that the names came with, and takes hold of all they list.
    pub(super) fn find_indexes(&mut self) -> Result<()> {
        let names: Vec<String> = self
            .images
            .iter()
            .flat_map(|(_, names)| names.iter().map(ToString::to_string))
            .collect();
        for name in names {
            let known = self.store.name_indexes(&name)?;
            let Some(digest) = known.first().copied() else {
                continue;
            };
            let found = match self.follow(&name, &known) {
                // The name has moved on: it stands for its image alone.
                Err(_) if self.store.name_indexes(&name)? != known => continue,
                other => other?,
            };
            let Some((document, found)) = found else {
                continue;
            };
            let layers: Vec<Digest> = found
                .images
                .iter()
                .flat_map(|record| record.layers.iter().copied())
                .collect();
            let lease = match self.store.lease(&layers, "export") {
                // One of its images was removed just now.
                Err(store::Error::NotFound(_)) => continue,
                other => other?,
            };
            let held = found
                .images
                .iter()
                .try_for_each(|record| self.held.take_documents_of(self.store, record));
            match held {
                Err(Error::Store(store::Error::NotFound(_))) => continue,
                other => other?,
            }
            for (digest, bytes) in found.held.documents {
                self.held.keep(&digest, bytes);
            }
            let index = WholeIndex {
                document,
                digest,
                others: found.others,
                images: found.images,
                _lease: lease,
            };
            self.indexes.insert(name, index);
        }
        Ok(())
    }

    /// Follows the index that a name came with, `known` being all its documents; `None` if not all that it lists is here
    /// and can be given as it came.
    fn follow(&self, name: &str, known: &[Digest]) -> Result<Option<(Typed, Found)>> {
        let bytes = self.document(&known[0])?;
        let document = (bytes.clone(), media_type(&bytes));
        let mut found = Found::default();
        let (mut waiting, mut seen) = (vec![bytes], HashSet::new());
        while let Some(bytes) = waiting.pop() {
            let listed = match Document::parse(name, &bytes, "")? {
                Document::Index { manifests } => manifests,
                // An attestation: a manifest, though of no image.
                Document::Manifest { config, layers, .. } => {
                    for part in layers.iter().chain([&config]) {
                        let digest = part.digest()?;
                        if !known.contains(&digest) {
                            return Ok(None);
                        }
                        if seen.insert(digest) {
                            found.held.keep(&digest, self.document(&digest)?);
                            found.others.push(Other::Blob(digest));
                        }
                    }
                    continue;
                }
            };
            for child in listed {
                let child = child.digest()?;
                if !seen.insert(child) {
                    continue;
                }
                if let Some(record) = self.store.image(&child)? {
                    match self.original(&record) {
                        Ok(Original::Possible(..)) => {}
                        Ok(Original::No(_)) => return Ok(None),
                        // Removed just now.
                        Err(_) if self.store.image(&child)?.is_none() => return Ok(None),
                        Err(error) => return Err(error),
                    }
                    found.images.push(record);
                } else if known.contains(&child) {
                    let bytes = self.document(&child)?;
                    found.held.keep(&child, bytes.clone());
                    found.others.push(Other::Manifest(child));
                    waiting.push(bytes);
                } else {
                    // Of another platform, or a note about an image: it did not come along.
                    return Ok(None);
                }
            }
        }
        Ok(Some((document, found)))
    }
}

/// What an index says it is.
fn media_type(index: &[u8]) -> String {
    let value: Value = serde_json::from_slice(index).unwrap_or_default();
    value["mediaType"].as_str().unwrap_or(OCI_INDEX).to_owned()
}
