//! How much the store holds, and what of it could go.

use rusqlite::Connection;

use super::db::Database;
use super::gc::{self, each_row};
use super::idset::IdSet;
use super::{Result, images, layers};

/// Counts and sizes of a whole store, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub images: u64,
    pub layers: u64,
    /// Sum over layers of their tar sizes.
    pub raw_bytes: u64,
    /// Sum of distinct chunk bytes.
    pub unique_bytes: u64,
    /// Bytes of chunk data as stored (compressed).
    pub stored_bytes: u64,
    /// Size of the database files on disk.
    pub disk_bytes: u64,
    /// What gc would free (estimate, stored bytes).
    pub reclaimable_bytes: u64,
}

pub(super) fn measure(database: &Database) -> Result<Usage> {
    let disk_bytes = database.place.disk_bytes()?;
    database.read(|conn| {
        // One snapshot for all queries.
        let snapshot = conn.unchecked_transaction()?;
        let mut usage = count(&snapshot)?;
        usage.disk_bytes = disk_bytes;
        Ok(usage)
    })
}

fn count(conn: &Connection) -> Result<Usage> {
    let mut usage = Usage {
        images: images::count(conn)?,
        ..Usage::default()
    };
    for (_, info) in layers::all(conn)? {
        usage.layers += 1;
        usage.raw_bytes = usage.raw_bytes.saturating_add(info.tar_size);
    }
    let mut unneeded = IdSet::default();
    for layer in layers::unneeded(conn)? {
        unneeded.insert(layer);
    }
    let marked = gc::mark(conn, &unneeded)?;
    let mut living = std::collections::HashMap::new();
    each_row(
        conn,
        "SELECT id, pack, len FROM chunk WHERE id > ?1 ORDER BY id LIMIT ?2",
        |id, pack, len| {
            let len = len.max(0) as u64;
            usage.unique_bytes = usage.unique_bytes.saturating_add(len);
            if marked.chunks.contains(id) {
                let bytes = living.entry(pack).or_insert(0u64);
                *bytes = bytes.saturating_add(len);
            }
            Ok(())
        },
    )?;
    // The length of a blob is known without reading it.
    each_row(
        conn,
        "SELECT id, raw_len, length(data) FROM pack WHERE id > ?1 ORDER BY id LIMIT ?2",
        |id, raw, stored| {
            let (raw, stored) = (raw.max(1) as u64, stored.max(0) as u64);
            usage.stored_bytes = usage.stored_bytes.saturating_add(stored);
            let dead = raw.saturating_sub(living.get(&id).copied().unwrap_or(0));
            // A pack is rewritten only when less than half of it lives.
            if dead > raw / 2 {
                let share = u128::from(stored) * u128::from(dead) / u128::from(raw);
                usage.reclaimable_bytes = usage.reclaimable_bytes.saturating_add(share as u64);
            }
            Ok(())
        },
    )?;
    let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let free = pragma("freelist_count")?.max(0) as u64 * pragma("page_size")?.max(0) as u64;
    usage.reclaimable_bytes = usage.reclaimable_bytes.saturating_add(free);
    Ok(usage)
}
