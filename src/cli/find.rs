//! From the words a person uses for an image to its record, and from a record to its configuration document.

use std::ffi::OsStr;
use std::str::FromStr;

use anyhow::Context as _;
use ovl::image::{Platform, Reference, image_for};
use ovl::meta::Timestamp;
use ovl::store::{self, DamagedImage, Digest, ImageRecord, Store};
use ovl::view::View;
use serde_json::Value;

use super::Context;
use super::error::{Failure, escape};
use super::time::parse_rfc3339;

/// An image found, and the store that holds it.
pub struct Found {
    pub store: Store,
    pub record: ImageRecord,
    /// The name it was found by; `None` if by ID or digest.
    pub name: Option<Reference>,
}

impl Context {
    /// The merged tree of the image that a word names. `image:` before it is taken as elsewhere.
    pub fn view(&self, word: &OsStr, purpose: &str) -> anyhow::Result<View> {
        let words = image_words(word)?;
        let found = self.find(words)?;
        let view = View::open(&found.store, &found.record.layers, purpose);
        view.with_context(|| format!("image {words}"))
    }

    /// Finds an image by name, by `NAME@DIGEST`, or by (the beginning of) its ID or its manifest's digest. A name wins over
    /// an ID that looks like it.
    pub fn find(&self, words: &str) -> anyhow::Result<Found> {
        if let Some(store) = self.existing_store()?
            && let Some((record, name)) = look_up(&store, words)?
        {
            return Ok(Found {
                store,
                record,
                name,
            });
        }
        if !looks_like_id(words) {
            Reference::from_str(words)?;
        }
        Err(Failure::not_found(format!(
            "no image {words} in {}; see: ovl images",
            self.root.display()
        )))
    }
}

/// The reference in a word of the command line, without the `image:` that settles doubt.
fn image_words(word: &OsStr) -> anyhow::Result<&str> {
    let words = word
        .to_str()
        .ok_or_else(|| Failure::usage(format!("not an image name: {}", word.display())))?;
    Ok(words.strip_prefix("image:").unwrap_or(words))
}

impl Context {
    /// Finds an image for a platform; gives the digest of its manifest.
    pub fn find_for(&self, words: &str, platform: &Platform) -> anyhow::Result<String> {
        let found = self.find(words)?;
        let manifest = match found.name.filter(|name| name.digest().is_none()) {
            Some(name) => image_for(&found.store, &name.to_string(), platform)?.manifest,
            None => found.record.manifest,
        };
        Ok(manifest.to_string())
    }
}

/// The manifest of the image that `words` mean: what a mount asks of the command line.
pub fn manifest_of(store: &Store, words: &str) -> store::Result<Option<Digest>> {
    Ok(look_up(store, words)?.map(|(record, _)| record.manifest))
}

fn look_up(store: &Store, words: &str) -> store::Result<Option<(ImageRecord, Option<Reference>)>> {
    if let Ok(name) = Reference::from_str(words) {
        let manifest = match name.digest() {
            Some(digest) => Some(*digest),
            None => store.resolve_name(&name.to_string())?,
        };
        if let Some(record) = manifest
            .map(|digest| store.image(&digest))
            .transpose()?
            .flatten()
        {
            return Ok(Some((record, Some(name))));
        }
    }
    Ok(if looks_like_id(words) {
        by_id(store, words)?.map(|record| (record, None))
    } else {
        None
    })
}

fn looks_like_id(words: &str) -> bool {
    let hex = words.strip_prefix("sha256:").unwrap_or(words);
    hex.len() >= 2 && hex.len() <= 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn by_id(store: &Store, words: &str) -> store::Result<Option<ImageRecord>> {
    let hex = words.strip_prefix("sha256:").unwrap_or(words);
    let matches = |record: &ImageRecord| {
        record.config.hex().starts_with(hex) || record.manifest.hex().starts_with(hex)
    };
    let (images, damaged) = store.list_images()?;
    let mut found: Vec<ImageRecord> = images.into_iter().filter(matches).collect();
    if found.is_empty()
        && let Some(image) = damaged
            .iter()
            .find(|image| image.config.starts_with(hex) || image.manifest.starts_with(hex))
    {
        return Err(store::Error::Corrupt(format!(
            "image {}: {}; see: ovl fsck",
            image.called(),
            image.why
        )));
    }
    // One configuration may come with several manifests (compressed in other ways); the newest stands for them.
    if found.iter().any(|record| record.config != found[0].config) {
        return Err(store::Error::Conflict(format!(
            "{words} is the beginning of several image IDs; give more digits"
        )));
    }
    Ok((!found.is_empty()).then(|| found.swap_remove(0)))
}

/// The names of an image as people write them.
pub fn familiar_names(record: &ImageRecord) -> Vec<String> {
    record.names.iter().map(|name| familiar(name)).collect()
}

/// A name of the store as people write it: without what Docker's rules add.
pub fn familiar(name: &str) -> String {
    Reference::from_str(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

/// A damaged image and what is wrong with it, for a message.
pub fn damaged_words(image: &DamagedImage) -> String {
    let names: Vec<String> = image.names.iter().map(|name| familiar(name)).collect();
    let called = match names.as_slice() {
        [] => image.called(),
        names => names.join(", "),
    };
    escape(&format!("image {called}: {}", image.why))
}

/// A list left these out.
pub fn not_listed(damaged: impl IntoIterator<Item = String>) -> anyhow::Error {
    let damaged: Vec<String> = damaged.into_iter().collect();
    Failure::damage(format!(
        "damaged and not listed: {}; see: ovl fsck",
        damaged.join("; ")
    ))
}

/// An image's configuration document.
pub fn configuration(store: &Store, record: &ImageRecord) -> anyhow::Result<Value> {
    let digest: &Digest = &record.config;
    let bytes = store
        .document(digest)?
        .with_context(|| format!("the store lacks the configuration {digest}"))?;
    serde_json::from_slice(&bytes).with_context(|| format!("reading the configuration {digest}"))
}

/// When an image says it was made; if it does not say, when it was imported.
pub fn created(configuration: &Value, record: &ImageRecord) -> Timestamp {
    configuration["created"]
        .as_str()
        .and_then(parse_rfc3339)
        .unwrap_or(record.imported)
}
