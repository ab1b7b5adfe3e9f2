//! What must hold of a stored image's documents: they parse, and say of config and layers what the store says.

use crate::store::ImageRecord;

use super::documents::{ConfigView, Document};

/// For [`crate::store::FsckOptions::documents`]. The reason if the documents are not those of the image.
pub fn check_documents(image: &ImageRecord, manifest: &[u8], config: &[u8]) -> Result<(), String> {
    let name = image.manifest.to_string();
    let parsed = Document::parse(&name, manifest, &image.manifest_media_type);
    let Document::Manifest {
        config: described,
        layers,
        ..
    } = parsed.map_err(|error| error.to_string())?
    else {
        return Err("its manifest is an index".to_owned());
    };
    if described.digest().map_err(|error| error.to_string())? != image.config {
        return Err("its manifest names another config".to_owned());
    }
    let view =
        ConfigView::parse(&image.config.to_string(), config).map_err(|error| error.to_string())?;
    if view.diff_ids != image.layers || layers.len() != image.layers.len() {
        return Err("its documents name other layers than it has".to_owned());
    }
    Ok(())
}
