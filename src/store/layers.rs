//! The list of layers: one row each, named by diff ID.

use rusqlite::{Connection, OptionalExtension, Row};

use super::{Digest, Result};
use crate::meta::Timestamp;

/// What the store knows of a layer as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    pub diff_id: Digest,
    /// Size of the uncompressed tar, bytes.
    pub tar_size: u64,
    /// Sum of the sizes of its regular files (each inode once), bytes.
    pub files_size: u64,
    /// Number of directory entries, whiteouts included.
    pub entries: u64,
    pub created: Timestamp,
}

const COLUMNS: &str = "id, diff_id, tar_size, files_size, entries, created_s, created_ns";

fn from_row(row: &Row<'_>) -> rusqlite::Result<(i64, LayerInfo)> {
    let count = |index| row.get::<_, i64>(index).map(|n| n.max(0) as u64);
    let info = LayerInfo {
        diff_id: Digest::from_bytes(row.get(1)?),
        tar_size: count(2)?,
        files_size: count(3)?,
        entries: count(4)?,
        created: Timestamp::new(row.get(5)?, row.get::<_, u32>(6)?.min(999_999_999)),
    };
    Ok((row.get(0)?, info))
}

/// Row id and info of a layer.
pub(super) fn find(conn: &Connection, diff_id: &Digest) -> Result<Option<(i64, LayerInfo)>> {
    Ok(conn
        .prepare_cached(&format!("SELECT {COLUMNS} FROM layer WHERE diff_id = ?1"))?
        .query_row([diff_id.as_bytes()], from_row)
        .optional()?)
}

pub(super) fn all(conn: &Connection) -> Result<Vec<(i64, LayerInfo)>> {
    let mut statement = conn.prepare_cached(&format!("SELECT {COLUMNS} FROM layer ORDER BY id"))?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn insert(conn: &Connection, id: i64, info: &LayerInfo) -> Result<()> {
    conn.execute(
        "INSERT INTO layer (id, diff_id, tar_size, files_size, entries, created_s, created_ns)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (
            id,
            info.diff_id.as_bytes(),
            info.tar_size as i64,
            info.files_size as i64,
            info.entries as i64,
            info.created.secs,
            info.created.nanos,
        ),
    )?;
    Ok(())
}

/// Removes a layer: from now on it is not there. The rows of its tree, its recipe and its blobs' bytes, of which there may
/// be millions, stay for `gc` like its contents.
pub(super) fn remove(conn: &Connection, id: i64) -> Result<()> {
    super::blobs::remove_of_layer(conn, id)?;
    for sql in [
        "DELETE FROM lease_layer WHERE layer = ?1",
        "DELETE FROM layer WHERE id = ?1",
    ] {
        conn.execute(sql, [id])?;
    }
    Ok(())
}

/// Layers that no image has and no living process holds.
pub(super) fn unneeded(conn: &Connection) -> Result<Vec<i64>> {
    let leased = super::leases::leased_layers(conn)?;
    let mut statement = conn.prepare(
        "SELECT id FROM layer WHERE id NOT IN (SELECT layer FROM image_layer) ORDER BY id",
    )?;
    let ids: Vec<i64> = statement
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(ids.into_iter().filter(|id| !leased.contains(id)).collect())
}
