//! Going down an index: the image for the platform that is wanted, those of others, and what is said about them.
//!
//! Indexes may nest (to a limit). Beside images they list attestations, as docker buildx makes them:
//! manifests for the platform `unknown/unknown` whose layers are statements in JSON. Those are no images. With all platforms
//! wanted they come along as documents, so that the index can be given back whole; otherwise they stay behind.

use std::collections::HashSet;

use crate::store::Digest;

use super::documents::{ConfigView, Descriptor, Document};
use super::plan::{Dialect, PlannedImage, Planner};
use super::platform::Platform;
use super::{Error, Result};

/// Images taken of one index at most: every platform there is, several times over.
const MAX_PLATFORMS: usize = 256;
/// Bytes of attestations kept with one name at most.
const MAX_NOTES: usize = 32 << 20;

/// What stands below a document.
#[derive(Default)]
struct Tree {
    images: Vec<PlannedImage>,
    indexes: Vec<Vec<u8>>,
    /// Attestations: their manifests, and what these name.
    notes: Vec<Vec<u8>>,
    seen: HashSet<Digest>,
}

impl Planner<'_> {
    /// The images of a manifest or of an index over manifests: first the one chosen.
    pub(super) fn under(
        &self,
        name: &str,
        bytes: Vec<u8>,
        claimed: &str,
    ) -> Result<Vec<PlannedImage>> {
        let mut tree = Tree::default();
        self.descend(name, bytes, claimed, 0, true, &mut tree)?;
        let Tree {
            mut images,
            mut indexes,
            notes,
            ..
        } = tree;
        // The one chosen is the first that was found as such.
        let chosen = images.iter().position(|image| !image.another_platform);
        let Some(chosen) = chosen else {
            return Err(Error::document(name, "the index lists no image"));
        };
        images.swap(0, chosen);
        indexes.extend(notes);
        images[0].indexes = indexes;
        Ok(images)
    }

    /// Goes down from a document. `chosen`: an image found here is the one wanted, not only along with it.
    fn descend(
        &self,
        name: &str,
        bytes: Vec<u8>,
        claimed: &str,
        depth: usize,
        chosen: bool,
        tree: &mut Tree,
    ) -> Result<()> {
        let limits = self.wish.limits;
        match Document::parse(name, &bytes, claimed)? {
            Document::Index { .. } if depth >= limits.index_depth => Err(Error::document(
                name,
                format!("indexes nest more than {} deep", limits.index_depth),
            )),
            Document::Index { manifests } => {
                tree.indexes.push(bytes);
                let (notes, entries): (Vec<&Descriptor>, Vec<&Descriptor>) =
                    manifests.iter().partition(|d| d.is_attestation());
                if entries.is_empty() {
                    return Err(Error::document(name, "the index lists no image"));
                }
                let first = match chosen {
                    true => Some(self.prefer(&self.for_platform(&entries)?)?),
                    false => None,
                };
                for descriptor in entries {
                    let chosen = first.is_some_and(|first| first.digest == descriptor.digest);
                    if !chosen && !self.wish.all_platforms {
                        continue;
                    }
                    if !tree.seen.insert(descriptor.digest()?) {
                        continue;
                    }
                    if tree.seen.len() > MAX_PLATFORMS {
                        let reason = format!("it lists more than {MAX_PLATFORMS} images");
                        return Err(Error::document(name, reason));
                    }
                    // An archive may leave out other platforms.
                    let digest = descriptor.digest()?;
                    if !chosen && !self.is_there(&digest, limits.manifest)? {
                        continue;
                    }
                    let bytes = self.blob(descriptor, limits.manifest)?;
                    let (name, claimed) = (&descriptor.digest, &descriptor.media_type);
                    self.descend(name, bytes, claimed, depth + 1, chosen, tree)?;
                }
                if self.wish.all_platforms {
                    for descriptor in notes {
                        self.attestation(descriptor, tree)?;
                    }
                }
                Ok(())
            }
            document => {
                let mut image = self.oci_document(name, bytes, document, chosen)?;
                image.another_platform = !chosen;
                tree.images.push(image);
                Ok(())
            }
        }
    }

    /// Where a manifest or an index lies.
    pub(super) fn manifest_path(&self, digest: &Digest, max: u64) -> Result<Vec<u8>> {
        if self.dialect == Dialect::FlatDir {
            // What is not the outermost document has a name of its own there.
            let own = format!("{}.manifest.json", digest.hex()).into_bytes();
            if self.documents.document(&own, max)?.is_some() {
                return Ok(own);
            }
        }
        Ok(self.blob_path(digest))
    }

    fn is_there(&self, digest: &Digest, max: u64) -> Result<bool> {
        let path = self.manifest_path(digest, max)?;
        Ok(self.documents.document(&path, max)?.is_some())
    }

    /// Of descriptors that suit the platform as far as they tell, the first that leads to an image for it. (Those of indexes
    /// tell no platform.) If none does, the first: going there will say why.
    pub(super) fn prefer<'d>(&self, candidates: &[&'d Descriptor]) -> Result<&'d Descriptor> {
        if candidates.len() > 1 {
            let mut seen = HashSet::new();
            for candidate in candidates {
                if candidate.platform.is_some() || self.suits(candidate, 0, &mut seen)? {
                    return Ok(candidate);
                }
            }
        }
        Ok(candidates[0])
    }

    /// Whether a document is, or leads to, an image for the platform. What cannot be told does not.
    fn suits(
        &self,
        descriptor: &Descriptor,
        depth: usize,
        seen: &mut HashSet<Digest>,
    ) -> Result<bool> {
        let limits = self.wish.limits;
        let digest = descriptor.digest()?;
        if depth > limits.index_depth || seen.len() > MAX_PLATFORMS || !seen.insert(digest) {
            return Ok(false);
        }
        if !self.is_there(&digest, limits.manifest)? {
            return Ok(false);
        }
        let bytes = self.blob(descriptor, limits.manifest)?;
        let Ok(document) = Document::parse(&descriptor.digest, &bytes, &descriptor.media_type)
        else {
            return Ok(false);
        };
        let host = Platform::host();
        let wanted = self.wish.platform.unwrap_or(&host);
        match document {
            Document::Manifest { config, .. } => {
                let Ok(config) = self.blob(&config, limits.config) else {
                    return Ok(false);
                };
                let view = ConfigView::parse(&descriptor.digest, &config);
                Ok(view.is_ok_and(|view| wanted.matches(&view.platform)))
            }
            Document::Index { manifests } => {
                for child in manifests.iter().filter(|d| !d.is_attestation()) {
                    let fits = match &child.platform {
                        Some(platform) => wanted.matches(platform),
                        None => self.suits(child, depth + 1, seen)?,
                    };
                    if fits {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// Takes an attestation along, whole or, if it is not all here or too large, not at all.
    fn attestation(&self, descriptor: &Descriptor, tree: &mut Tree) -> Result<()> {
        let limits = self.wish.limits;
        let kept: usize = tree.notes.iter().map(Vec::len).sum();
        let room = (MAX_NOTES - kept) as u64;
        let part = |part: &Descriptor, max: u64| {
            if part.size > max.min(room) {
                return Ok(None);
            }
            match self.blob(part, max) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error @ (Error::DigestMismatch { .. } | Error::SizeMismatch { .. })) => {
                    Err(error)
                }
                // An archive may leave it out, and a stream keeps nothing but JSON.
                Err(_) => Ok(None),
            }
        };
        if tree.seen.len() > MAX_PLATFORMS || !tree.seen.insert(descriptor.digest()?) {
            return Ok(());
        }
        let Some(manifest) = part(descriptor, limits.manifest)? else {
            return Ok(());
        };
        let parsed = Document::parse(&descriptor.digest, &manifest, &descriptor.media_type);
        let Ok(Document::Manifest { config, layers, .. }) = parsed else {
            return Ok(());
        };
        let mut notes = vec![manifest];
        for of in layers.iter().chain([&config]) {
            match part(of, limits.config)? {
                Some(bytes) => notes.push(bytes),
                None => return Ok(()),
            }
        }
        let bytes: usize = notes.iter().map(Vec::len).sum();
        if kept + bytes <= MAX_NOTES && tree.notes.len() + notes.len() <= 4 * MAX_PLATFORMS {
            tree.notes.extend(notes);
        }
        Ok(())
    }
}
