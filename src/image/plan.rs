//! From the documents of an archive to the images it holds: which layers, where they lie, what they must hash to.
//!
//! Nothing here reads a layer. Every document that has a digest is checked against it.

use std::collections::HashSet;

use crate::store::Digest;

use super::documents::{
    self, CONTAINERD_NAME, ConfigView, Descriptor, Document, REF_NAME, SavedImage,
};
use super::limits::Limits;
use super::platform::Platform;
use super::reference::Reference;
use super::{Error, Result};

/// Something that has documents by member name.
pub trait Documents {
    /// For messages.
    fn name(&self) -> &str;
    /// The document at `path`, at most `max` bytes long; `None` if it is not there.
    fn document(&self, path: &[u8], max: u64) -> Result<Option<Vec<u8>>>;
}

/// Which set of documents describes the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `manifest.json` as written by `docker save`.
    DockerSave,
    /// `oci-layout` and `index.json`.
    Oci,
    /// One image's `manifest.json` beside its blobs, each named by its digest's digits: a directory as `skopeo copy
    /// dir:` writes it.
    FlatDir,
}

/// What the user wants of the archive.
pub struct Wish<'a> {
    pub select: Option<&'a str>,
    /// `None`: the host's, or whatever is there if there is only one.
    pub platform: Option<&'a Platform>,
    /// Also the images of other platforms that stand under the same index.
    pub all_platforms: bool,
    pub limits: &'a Limits,
}

#[derive(Clone, Debug)]
pub struct PlannedLayer {
    /// Member that holds the blob.
    pub path: Vec<u8>,
    pub diff_id: Digest,
    /// Digest and size of the blob, where a document states them.
    pub blob: Option<Digest>,
    pub blob_size: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct PlannedImage {
    /// The archive's own manifest and its media type, verbatim.
    pub manifest: Option<(Vec<u8>, String)>,
    pub config: Vec<u8>,
    pub layers: Vec<PlannedLayer>,
    /// Canonical names.
    pub names: Vec<String>,
    /// The indexes above it, the outermost first; what its names stand for beside it.
    pub indexes: Vec<Vec<u8>>,
    /// Came along as an image of another platform: names are for the one chosen.
    pub another_platform: bool,
}

/// The images of an archive that fit the wish.
pub fn plan(
    documents: &dyn Documents,
    dialect: Dialect,
    wish: &Wish<'_>,
) -> Result<Vec<PlannedImage>> {
    let planner = Planner {
        documents,
        wish,
        dialect,
    };
    match dialect {
        Dialect::DockerSave => planner.docker(),
        Dialect::Oci => planner.oci(),
        Dialect::FlatDir => planner.flat_dir(),
    }
}

/// Finds images by the documents of an archive.
pub(super) struct Planner<'a> {
    pub(super) documents: &'a dyn Documents,
    pub(super) wish: &'a Wish<'a>,
    pub(super) dialect: Dialect,
}

impl Planner<'_> {
    fn required(&self, path: &[u8], max: u64) -> Result<Vec<u8>> {
        let found = self.documents.document(path, max)?;
        found.ok_or_else(|| Error::MissingMember {
            what: path.escape_ascii().to_string(),
        })
    }

    fn nothing_selected(&self, wanted: &str, available: Vec<String>) -> Error {
        let available = if available.is_empty() {
            "no named image".to_owned()
        } else {
            available.join(", ")
        };
        Error::NoSuchImage {
            what: self.documents.name().to_owned(),
            wanted: wanted.to_owned(),
            available,
        }
    }

    // --- docker save

    fn docker(&self) -> Result<Vec<PlannedImage>> {
        let manifest = self.required(b"manifest.json", self.wish.limits.manifest)?;
        let mut images = documents::parse_saved_images(&manifest)?;
        if let Some(select) = self.wish.select {
            let tags: Vec<String> = images
                .iter()
                .flat_map(|i| i.repo_tags.clone().unwrap_or_default())
                .collect();
            images.retain(|image| {
                image
                    .repo_tags
                    .iter()
                    .flatten()
                    .any(|tag| same_name(tag, select))
            });
            if images.is_empty() {
                return Err(self.nothing_selected(select, tags));
            }
        }
        let images = images.iter().map(|image| self.docker_image(image));
        let mut images = images.collect::<Result<Vec<_>>>()?;
        self.adopt_manifests(&mut images)?;
        Ok(images)
    }

    fn docker_image(&self, image: &SavedImage) -> Result<PlannedImage> {
        let config = self.required(image.config.as_bytes(), self.wish.limits.config)?;
        if let Some(expected) = digest_in_name(&image.config) {
            check_digest(&image.config, &config, &expected)?;
        }
        let view = ConfigView::parse(&image.config, &config)?;
        let paths = image.layers.as_deref().unwrap_or_default();
        check_counts(&image.config, paths.len(), &view)?;
        let layers = paths
            .iter()
            .zip(&view.diff_ids)
            .map(|(path, diff_id)| PlannedLayer {
                path: path.as_bytes().to_vec(),
                diff_id: *diff_id,
                blob: path
                    .strip_prefix("blobs/sha256/")
                    .and_then(|hex| Digest::from_hex(hex).ok()),
                blob_size: None,
            });
        let names = image
            .repo_tags
            .iter()
            .flatten()
            .map(|tag| Ok(tag.parse::<Reference>()?.to_string()));
        Ok(PlannedImage {
            manifest: None,
            layers: layers.collect(),
            names: names.collect::<Result<_>>()?,
            indexes: Vec::new(),
            another_platform: false,
            config,
        })
    }

    /// Docker since 25 writes an OCI index beside its manifest.json. Where that has a manifest of the very same blobs it
    /// is the image's own, and its digest the one registries know.
    fn adopt_manifests(&self, images: &mut [PlannedImage]) -> Result<()> {
        let limits = self.wish.limits;
        let Some(index) = self.documents.document(b"index.json", limits.manifest)? else {
            return Ok(());
        };
        let Document::Index { manifests } = Document::parse("index.json", &index, "")? else {
            return Ok(());
        };
        let mut waiting: Vec<(Descriptor, usize)> = manifests.into_iter().map(|d| (d, 0)).collect();
        let mut seen = HashSet::new();
        while let Some((descriptor, depth)) = waiting.pop() {
            if descriptor.is_attestation() || !seen.insert(descriptor.digest.clone()) {
                continue;
            }
            // An index may list what was left out of the archive: other platforms.
            let Ok(bytes) = self.blob(&descriptor, limits.manifest) else {
                continue;
            };
            match Document::parse(&descriptor.digest, &bytes, &descriptor.media_type)? {
                Document::Index { manifests } if depth < limits.index_depth => {
                    waiting.extend(manifests.into_iter().map(|d| (d, depth + 1)));
                }
                Document::Index { .. } => {}
                Document::Manifest {
                    config,
                    layers,
                    media_type,
                } => {
                    let config = config.digest()?;
                    let blobs = layers
                        .iter()
                        .map(Descriptor::digest)
                        .collect::<Result<Vec<_>>>()?;
                    for image in images.iter_mut() {
                        let own = image.layers.iter().map(|layer| layer.blob);
                        let same = own.eq(blobs.iter().copied().map(Some));
                        if same && Digest::of(&image.config) == config {
                            image.manifest = Some((bytes.clone(), media_type.clone()));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    // --- OCI

    fn oci(&self) -> Result<Vec<PlannedImage>> {
        let index = self.required(b"index.json", self.wish.limits.manifest)?;
        let Document::Index { manifests } = Document::parse("index.json", &index, "")? else {
            return Err(Error::document(
                "index.json",
                "it is a manifest, not an index",
            ));
        };
        let mut entries: Vec<&Descriptor> =
            manifests.iter().filter(|d| !d.is_attestation()).collect();
        if let Some(select) = self.wish.select {
            let named: Vec<String> = entries
                .iter()
                .filter_map(|d| d.annotation(REF_NAME))
                .map(str::to_owned)
                .collect();
            entries.retain(|descriptor| is_selected(descriptor, select));
            if entries.is_empty() {
                return Err(self.nothing_selected(select, named));
            }
        }
        if entries.is_empty() {
            return Err(Error::document("index.json", "it lists no image"));
        }
        // Entries of one name are one image for several platforms.
        let mut groups: Vec<(Option<&str>, Vec<&Descriptor>)> = Vec::new();
        for descriptor in entries {
            let name = descriptor
                .annotation(CONTAINERD_NAME)
                .or_else(|| descriptor.annotation(REF_NAME));
            match groups.iter_mut().find(|(have, _)| *have == name) {
                Some((_, group)) => group.push(descriptor),
                None => groups.push((name, vec![descriptor])),
            }
        }
        let mut images = Vec::new();
        for (name, group) in groups {
            let mut chosen = self.for_platform(&group)?;
            let mut seen = HashSet::new();
            chosen.retain(|d| seen.insert(&d.digest));
            if name.is_some() {
                chosen = vec![self.prefer(&chosen)?];
            }
            for descriptor in chosen {
                let mut found = self.oci_images(descriptor)?;
                found[0].names = name_of(descriptor)?.into_iter().collect();
                images.append(&mut found);
            }
            if self.wish.all_platforms && name.is_some() {
                for descriptor in group.iter().filter(|d| seen.insert(&d.digest)) {
                    let mut found = self.oci_images(descriptor)?;
                    found.iter_mut().for_each(|i| i.another_platform = true);
                    images.append(&mut found);
                }
            }
        }
        Ok(images)
    }

    // --- skopeo's directories

    fn flat_dir(&self) -> Result<Vec<PlannedImage>> {
        let bytes = self.required(b"manifest.json", self.wish.limits.manifest)?;
        if let Some(select) = self.wish.select {
            return Err(self.nothing_selected(select, Vec::new()));
        }
        self.under("manifest.json", bytes, "")
    }

    /// Where the blob of this digest lies.
    pub(super) fn blob_path(&self, digest: &Digest) -> Vec<u8> {
        match self.dialect {
            Dialect::FlatDir => digest.hex().into_bytes(),
            Dialect::DockerSave | Dialect::Oci => {
                format!("blobs/sha256/{}", digest.hex()).into_bytes()
            }
        }
    }

    /// Those of `entries` that suit the platform; never empty.
    pub(super) fn for_platform<'d>(
        &self,
        entries: &[&'d Descriptor],
    ) -> Result<Vec<&'d Descriptor>> {
        let host = Platform::host();
        if self.wish.platform.is_none() && entries.len() == 1 {
            return Ok(entries.to_vec());
        }
        let wanted = self.wish.platform.unwrap_or(&host);
        // Descriptors that tell no platform are taken as they are; their configuration is checked later.
        let fits = |d: &&&Descriptor| {
            d.platform
                .as_ref()
                .is_none_or(|platform| wanted.matches(platform))
        };
        let chosen: Vec<&Descriptor> = entries.iter().filter(fits).copied().collect();
        if !chosen.is_empty() {
            return Ok(chosen);
        }
        let available = entries
            .iter()
            .filter_map(|d| d.platform.as_ref())
            .map(|p| Platform::from(p).to_string());
        Err(self.no_platform(wanted, available.collect::<Vec<_>>().join(", ")))
    }

    fn no_platform(&self, wanted: &Platform, available: String) -> Error {
        Error::NoPlatform {
            what: self.documents.name().to_owned(),
            wanted: wanted.to_string(),
            available,
        }
    }

    /// The image a descriptor leads to, and after it those of other platforms, if wanted.
    fn oci_images(&self, descriptor: &Descriptor) -> Result<Vec<PlannedImage>> {
        let bytes = self.blob(descriptor, self.wish.limits.manifest)?;
        self.under(&descriptor.digest, bytes, &descriptor.media_type)
    }

    /// The image that a manifest describes. `chosen`: it must be for the platform that was asked for.
    pub(super) fn oci_document(
        &self,
        name: &str,
        bytes: Vec<u8>,
        document: Document,
        chosen: bool,
    ) -> Result<PlannedImage> {
        let limits = self.wish.limits;
        match document {
            Document::Index { .. } => Err(Error::document(name, "it is an index, not a manifest")),
            Document::Manifest {
                config,
                layers,
                media_type,
            } => {
                documents::check_image_types(name, &config, &layers)?;
                let config_bytes = self.blob(&config, limits.config)?;
                let view = ConfigView::parse(&config.digest, &config_bytes)?;
                if let Some(wanted) = self
                    .wish
                    .platform
                    .filter(|wanted| chosen && !wanted.matches(&view.platform))
                {
                    return Err(
                        self.no_platform(wanted, Platform::from(&view.platform).to_string())
                    );
                }
                check_counts(&config.digest, layers.len(), &view)?;
                let layers = layers.iter().zip(&view.diff_ids).map(|(layer, diff_id)| {
                    let blob = layer.digest()?;
                    Ok(PlannedLayer {
                        path: self.blob_path(&blob),
                        diff_id: *diff_id,
                        blob: Some(blob),
                        blob_size: Some(layer.size),
                    })
                });
                Ok(PlannedImage {
                    layers: layers.collect::<Result<_>>()?,
                    manifest: Some((bytes, media_type)),
                    config: config_bytes,
                    names: Vec::new(),
                    indexes: Vec::new(),
                    another_platform: false,
                })
            }
        }
    }

    /// The document a descriptor points to, checked against it.
    pub(super) fn blob(&self, descriptor: &Descriptor, max: u64) -> Result<Vec<u8>> {
        let digest = descriptor.digest()?;
        super::archive::check_document_size(|| descriptor.digest.clone(), descriptor.size, max)?;
        let bytes = self.required(&self.manifest_path(&digest, max)?, max)?;
        if bytes.len() as u64 != descriptor.size {
            return Err(Error::SizeMismatch {
                what: descriptor.digest.clone(),
                expected: descriptor.size,
                actual: bytes.len().to_string(),
            });
        }
        check_digest(&descriptor.digest, &bytes, &digest)?;
        Ok(bytes)
    }
}

fn check_digest(what: &str, bytes: &[u8], expected: &Digest) -> Result<()> {
    let actual = Digest::of(bytes);
    if actual != *expected {
        return Err(Error::DigestMismatch {
            what: what.to_owned(),
            expected: *expected,
            actual,
        });
    }
    Ok(())
}

fn check_counts(config: &str, layers: usize, view: &ConfigView) -> Result<()> {
    let diff_ids = view.diff_ids.len();
    if layers != diff_ids {
        return Err(Error::document(
            config,
            format!("it lists {diff_ids} diff IDs for {layers} layers"),
        ));
    }
    Ok(())
}

/// The digest that a member's name spells, as in `<hex>.json`, `sha256:<hex>`, `blobs/sha256/<hex>`, `<hex>.tar`.
pub fn digest_in_name(path: &str) -> Option<Digest> {
    let last = path.rsplit('/').next()?;
    let last = last.strip_prefix("sha256:").unwrap_or(last);
    Digest::from_hex(last.split('.').next()?).ok()
}

fn same_name(tag: &str, wanted: &str) -> bool {
    match (tag.parse::<Reference>(), wanted.parse::<Reference>()) {
        (Ok(tag), Ok(wanted)) => tag == wanted,
        _ => false,
    }
}

fn is_selected(descriptor: &Descriptor, wanted: &str) -> bool {
    let names = [REF_NAME, CONTAINERD_NAME].map(|key| descriptor.annotation(key));
    names
        .into_iter()
        .flatten()
        .any(|name| name == wanted || same_name(name, wanted))
}

/// The canonical name an index entry gives its image. A ref name without `/` and `:` is only a tag, not a name.
fn name_of(descriptor: &Descriptor) -> Result<Option<String>> {
    let ref_name = descriptor
        .annotation(REF_NAME)
        .filter(|name| name.contains(['/', ':']));
    let Some(name) = descriptor.annotation(CONTAINERD_NAME).or(ref_name) else {
        return Ok(None);
    };
    Ok(Some(name.parse::<Reference>()?.to_string()))
}
