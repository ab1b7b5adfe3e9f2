//! The room's parsers as plain functions of bytes, for fuzzing and for replaying what fuzzing found. Not part of the
//! library's face: hidden from its documentation, and free to change.

use std::io::{self, Read};

use super::Result;
pub use super::blob::apart_and_together;
use super::compress::{self, Compression, Encoder, Sniffed};
use super::documents::{self, ConfigView, Document};
use super::layer_entry::{self, EntryFault};
use super::limits::Limits;
use super::tar::{Entry, TarLimits};

/// What an import bounds tar entries by.
pub fn tar_limits(limits: &Limits) -> TarLimits {
    limits.tar()
}

/// Whether an entry would be taken into a tree.
pub fn entry(entry: &Entry, limits: &Limits) -> std::result::Result<(), EntryFault> {
    layer_entry::action(entry, limits)?;
    layer_entry::node_meta(entry, limits)?;
    Ok(())
}

/// What a stream decompresses to, `max` bytes of it at most; `None` if it is nothing that could be a layer.
pub fn decompress(stream: &[u8], limits: &Limits, max: u64) -> io::Result<Option<Vec<u8>>> {
    let (head, whole) = compress::peek(stream)?;
    let Some(compression) = Sniffed::of(&head).compression() else {
        return Ok(None);
    };
    let mut out = Vec::new();
    compress::decoder(io::BufReader::new(whole), compression, limits)?
        .take(max)
        .read_to_end(&mut out)?;
    Ok(Some(out))
}

/// The other way.
pub fn compress(bytes: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
    let mut encoder = Encoder::new(Vec::new(), compression)?;
    io::Write::write_all(&mut encoder, bytes)?;
    encoder.finish()
}

/// What a document was understood as.
#[derive(Debug, PartialEq, Eq)]
pub enum Understood {
    Manifest { layers: usize },
    Index { manifests: usize },
}

/// A manifest or an index, announced with a media type.
pub fn document(bytes: &[u8], claimed: &str) -> Result<Understood> {
    match Document::parse("document", bytes, claimed)? {
        Document::Manifest { config, layers, .. } => {
            documents::check_image_types("document", &config, &layers)?;
            for descriptor in layers.iter().chain([&config]) {
                descriptor.digest()?;
            }
            let layers = layers.len();
            Ok(Understood::Manifest { layers })
        }
        Document::Index { manifests } => {
            for descriptor in &manifests {
                descriptor.digest()?;
                descriptor.is_attestation();
            }
            let manifests = manifests.len();
            Ok(Understood::Index { manifests })
        }
    }
}

/// An image's configuration; the number of its layers.
pub fn configuration(bytes: &[u8]) -> Result<usize> {
    Ok(ConfigView::parse("configuration", bytes)?.diff_ids.len())
}

/// `manifest.json` of `docker save`; the number of images.
pub fn saved_images(bytes: &[u8]) -> Result<usize> {
    Ok(documents::parse_saved_images(bytes)?.len())
}
