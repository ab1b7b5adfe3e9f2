//! Images and their names. Manifests and configs are kept verbatim, by digest.

use rusqlite::{Connection, OptionalExtension};

use super::db::MAX_VALUE;
use super::{Digest, Error, Result, blobs, layers, leases};
use crate::meta::Timestamp;

/// An image to be recorded.
pub struct NewImage<'a> {
    pub manifest: &'a [u8],
    pub manifest_media_type: &'a str,
    pub config: &'a [u8],
    /// Diff IDs, bottom first. A layer may come more than once.
    pub layers: &'a [Digest],
    /// Names that shall point at it, whatever they pointed at before.
    pub names: &'a [String],
}

/// What else is known of where an image came from, so that it can be given back as it was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin<'a> {
    /// Digests of the blobs its layers came in, in any order. Those that are in the store are kept for the image.
    pub blobs: &'a [Digest],
    /// The documents its names stand for besides the image: indexes over it and images of other platforms, the outermost
    /// first.
    pub indexes: &'a [Vec<u8>],
}

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    pub manifest: Digest,
    pub manifest_media_type: String,
    pub config: Digest,
    /// Diff IDs, bottom first.
    pub layers: Vec<Digest>,
    /// In byte order.
    pub names: Vec<String>,
    /// When it came into this store.
    pub imported: Timestamp,
    /// Sum of `files_size` of its layers.
    pub size: u64,
}

/// An image whose own rows make no sense: it cannot be used, but must not keep the others from being listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedImage {
    /// Digest of its manifest, hex digits only (fewer or more than 64 if that is what is damaged).
    pub manifest: String,
    /// Digest of its configuration, as above.
    pub config: String,
    /// In byte order.
    pub names: Vec<String>,
    pub why: String,
}

impl DamagedImage {
    /// What to call it: its names, or the digest of its manifest.
    pub fn called(&self) -> String {
        match self.names.as_slice() {
            [] => format!("sha256:{}", self.manifest),
            names => names.join(", "),
        }
    }
}

/// A manifest or config by digest, proven.
pub(super) fn document(conn: &Connection, digest: &Digest) -> Result<Option<Vec<u8>>> {
    let data: Option<Vec<u8>> = conn
        .prepare_cached("SELECT data FROM document WHERE sha256 = ?1")?
        .query_row([digest.as_bytes()], |row| row.get(0))
        .optional()?;
    match data {
        Some(data) if Digest::of(&data) != *digest => {
            tracing::error!(document = %digest, "a document does not hash to its name: the store is damaged");
            Err(Error::Corrupt(format!(
                "document {digest} does not hash to its name"
            )))
        }
        other => Ok(other),
    }
}

fn put_document(conn: &Connection, data: &[u8]) -> Result<Digest> {
    if data.len() > MAX_VALUE as usize / 2 {
        return Err(Error::Conflict(format!(
            "a document of {} bytes is too large for the store",
            data.len()
        )));
    }
    let digest = Digest::of(data);
    conn.execute(
        "INSERT INTO document (sha256, data) VALUES (?1, ?2) ON CONFLICT (sha256) DO NOTHING",
        (digest.as_bytes(), data),
    )?;
    Ok(digest)
}

/// Records an image, or only its names and origin if it is there.
pub(super) fn put(conn: &Connection, image: &NewImage<'_>, origin: &Origin<'_>) -> Result<()> {
    let layer_ids = image
        .layers
        .iter()
        .map(|id| leases::find_layer(conn, id))
        .collect::<Result<Vec<_>>>()?;
    let (manifest, config) = (
        put_document(conn, image.manifest)?,
        put_document(conn, image.config)?,
    );
    let id = match find(conn, &manifest)? {
        Some(id) => {
            if layers_of(conn, id)? != image.layers {
                return Err(Error::Conflict(format!(
                    "image {manifest} is in the store with other layers"
                )));
            }
            // Layers and chunks that an import just mended went to the log without waiting for the disk. A transaction that
            // changes nothing would not wait either.
            conn.execute("UPDATE image SET manifest = manifest WHERE id = ?1", [id])?;
            id
        }
        None => {
            let now = Timestamp::now();
            conn.execute(
                "INSERT INTO image (manifest, media_type, config, imported_s, imported_ns) VALUES (?1, ?2, ?3, ?4, ?5)",
                (manifest.as_bytes(), image.manifest_media_type, config.as_bytes(), now.secs, now.nanos),
            )?;
            let id = conn.last_insert_rowid();
            for (position, layer) in (0i64..).zip(&layer_ids) {
                conn.execute(
                    "INSERT INTO image_layer (image, position, layer) VALUES (?1, ?2, ?3)",
                    (id, position, layer),
                )?;
            }
            id
        }
    };
    blobs::link(conn, id, origin.blobs)?;
    let mut left_behind = false;
    for name in image.names {
        left_behind |= point(conn, name, id)?;
        for (position, index) in (0i64..).zip(origin.indexes) {
            conn.execute(
                "INSERT INTO name_index (name, position, document) VALUES (?1, ?2, ?3)",
                (name, position, put_document(conn, index)?.as_bytes()),
            )?;
        }
    }
    if left_behind {
        drop_documents(conn)?;
    }
    leases::end_fresh(conn, &layer_ids)
}

fn find(conn: &Connection, manifest: &Digest) -> Result<Option<i64>> {
    Ok(conn
        .prepare_cached("SELECT id FROM image WHERE manifest = ?1")?
        .query_row([manifest.as_bytes()], |row| row.get(0))
        .optional()?)
}

fn must_find(conn: &Connection, manifest: &Digest) -> Result<i64> {
    find(conn, manifest)?
        .ok_or_else(|| Error::NotFound(format!("image {manifest} is not in the store")))
}

/// Points a name at an image. What it stood for before is forgotten; `true` if that leaves documents behind, for
/// [`drop_documents`] to look at.
fn point(conn: &Connection, name: &str, image: i64) -> Result<bool> {
    let forgotten = conn.execute("DELETE FROM name_index WHERE name = ?1", [name])?;
    conn.execute(
        "INSERT INTO name (name, image) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET image = excluded.image",
        (name, image),
    )?;
    Ok(forgotten > 0)
}

fn layers_of(conn: &Connection, image: i64) -> Result<Vec<Digest>> {
    let mut statement = conn.prepare_cached(
        "SELECT l.diff_id FROM image_layer AS il LEFT JOIN layer AS l ON l.id = il.layer
         WHERE il.image = ?1 ORDER BY il.position",
    )?;
    let rows = statement.query_map([image], |row| row.get::<_, Option<[u8; 32]>>(0))?;
    rows.map(|id| {
        id?.map(Digest::from_bytes)
            .ok_or_else(|| Error::Corrupt("an image has a layer that is not there".to_owned()))
    })
    .collect()
}

pub(super) fn record(conn: &Connection, id: i64) -> Result<ImageRecord> {
    let (manifest, manifest_media_type, config, imported) = conn
        .prepare_cached(
            "SELECT manifest, media_type, config, imported_s, imported_ns FROM image WHERE id = ?1",
        )?
        .query_row([id], |row| {
            let imported = Timestamp::new(row.get(3)?, row.get::<_, u32>(4)?.min(999_999_999));
            Ok((
                Digest::from_bytes(row.get(0)?),
                row.get(1)?,
                Digest::from_bytes(row.get(2)?),
                imported,
            ))
        })?;
    let names = conn
        .prepare_cached("SELECT name FROM name WHERE image = ?1 ORDER BY name")?
        .query_map([id], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let layers = layers_of(conn, id)?;
    let mut size = 0u64;
    for layer in &layers {
        size =
            size.saturating_add(layers::find(conn, layer)?.map_or(0, |(_, info)| info.files_size));
    }
    Ok(ImageRecord {
        manifest,
        manifest_media_type,
        config,
        layers,
        names,
        imported,
        size,
    })
}

pub(super) fn get(conn: &Connection, manifest: &Digest) -> Result<Option<ImageRecord>> {
    find(conn, manifest)?.map(|id| record(conn, id)).transpose()
}

/// All images, newest first, and those whose rows are damaged.
pub(super) fn all(conn: &Connection) -> Result<(Vec<ImageRecord>, Vec<DamagedImage>)> {
    let mut statement =
        conn.prepare("SELECT id FROM image ORDER BY imported_s DESC, imported_ns DESC, id DESC")?;
    let ids: Vec<i64> = statement
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let (mut sound, mut damaged) = (Vec::new(), Vec::new());
    for id in ids {
        match record(conn, id) {
            Ok(record) => sound.push(record),
            Err(Error::Corrupt(why)) => damaged.push(damaged_image(conn, id, why)?),
            Err(other) => return Err(other),
        }
    }
    Ok((sound, damaged))
}

fn damaged_image(conn: &Connection, id: i64, why: String) -> Result<DamagedImage> {
    let manifest = conn
        .prepare_cached("SELECT hex(manifest), hex(config) FROM image WHERE id = ?1")?
        .query_row([id], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
    let names = conn
        .prepare_cached("SELECT name FROM name WHERE image = ?1 ORDER BY name")?
        .query_map([id], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(DamagedImage {
        manifest: manifest.0.to_lowercase(),
        config: manifest.1.to_lowercase(),
        names,
        why,
    })
}

pub(super) fn count(conn: &Connection) -> Result<u64> {
    Ok(conn
        .query_row("SELECT count(*) FROM image", [], |row| row.get::<_, i64>(0))?
        .max(0) as u64)
}

pub(super) fn resolve(conn: &Connection, name: &str) -> Result<Option<Digest>> {
    Ok(conn
        .prepare_cached(
            "SELECT i.manifest FROM name AS n JOIN image AS i ON i.id = n.image WHERE n.name = ?1",
        )?
        .query_row([name], |row| row.get(0).map(Digest::from_bytes))
        .optional()?)
}

pub(super) fn set_name(conn: &Connection, name: &str, manifest: &Digest) -> Result<Option<Digest>> {
    let before = resolve(conn, name)?;
    let image = must_find(conn, manifest)?;
    // A name that stays where it is keeps the indexes it came with.
    if before != Some(*manifest) && point(conn, name, image)? {
        drop_documents(conn)?;
    }
    Ok(before)
}

pub(super) fn remove_name(conn: &Connection, name: &str) -> Result<bool> {
    conn.execute("DELETE FROM name_index WHERE name = ?1", [name])?;
    drop_documents(conn)?;
    Ok(conn.execute("DELETE FROM name WHERE name = ?1", [name])? > 0)
}

/// Digests of the indexes a name came with, the outermost first.
pub(super) fn indexes(conn: &Connection, name: &str) -> Result<Vec<Digest>> {
    Ok(conn
        .prepare_cached("SELECT document FROM name_index WHERE name = ?1 ORDER BY position")?
        .query_map([name], |row| row.get(0).map(Digest::from_bytes))?
        .collect::<rusqlite::Result<_>>()?)
}

/// Removes the documents that nothing refers to.
pub(super) fn drop_documents(conn: &Connection) -> Result<()> {
    conn.execute(
        "DELETE FROM document WHERE sha256 NOT IN
         (SELECT manifest FROM image UNION SELECT config FROM image UNION SELECT document FROM name_index)",
        [],
    )?;
    Ok(())
}

/// Removes an image, its names, its documents and the layers that nobody else needs.
pub(super) fn remove(conn: &Connection, manifest: &Digest) -> Result<()> {
    forget(conn, must_find(conn, manifest)?)?;
    drop_documents(conn)?;
    for layer in layers::unneeded(conn)? {
        layers::remove(conn, layer)?;
    }
    Ok(())
}

/// Removes the rows of an image, and nothing that others may need as well.
pub(super) fn forget(conn: &Connection, id: i64) -> Result<()> {
    blobs::unlink(conn, id)?;
    for sql in [
        "DELETE FROM name_index WHERE name IN (SELECT name FROM name WHERE image = ?1)",
        "DELETE FROM name WHERE image = ?1",
        "DELETE FROM image_layer WHERE image = ?1",
        "DELETE FROM image WHERE id = ?1",
    ] {
        conn.execute(sql, [id])?;
    }
    Ok(())
}
