//! How much the store holds, what each image has of it, and what could go.

use std::collections::HashMap;

use rusqlite::Connection;

use super::db::Database;
use super::gc::{Marked, each_row};
use super::idset::IdSet;
use super::{Digest, GcReport, Result, blobs, images, layers, leases};

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

/// What one image has of the store, bytes. What it is stored in is `shared_bytes + private_bytes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUsage {
    pub manifest: Digest,
    pub config: Digest,
    /// In byte order.
    pub names: Vec<String>,
    /// Sum over its layers of their tar sizes.
    pub raw_bytes: u64,
    /// Sum of its distinct chunk bytes.
    pub unique_bytes: u64,
    /// Stored bytes of chunks and compressed blobs that other images have as well.
    pub shared_bytes: u64,
    /// Stored bytes of those that no other image has: what removing it alone would free.
    pub private_bytes: u64,
}

pub(super) fn measure(database: &Database) -> Result<Usage> {
    let disk_bytes = database.place.disk_bytes()?;
    database.read(|conn| {
        // One snapshot for all queries.
        let snapshot = conn.unchecked_transaction()?;
        let (mut usage, _) = survey(&snapshot)?;
        usage.disk_bytes = disk_bytes;
        Ok(usage)
    })
}

/// What `gc` would do now if it were not kept from it, and who would keep it from some of that.
pub(super) fn preview(database: &Database) -> Result<(GcReport, Vec<String>)> {
    database.read(|conn| {
        let snapshot = conn.unchecked_transaction()?;
        let (usage, mut report) = survey(&snapshot)?;
        report.freed_bytes = usage.reclaimable_bytes;
        Ok((report, leases::describe_imports(&snapshot)?))
    })
}

fn survey(conn: &Connection) -> Result<(Usage, GcReport)> {
    let mut usage = Usage {
        images: images::count(conn)?,
        ..Usage::default()
    };
    let mut report = GcReport::default();
    for (_, info) in layers::all(conn)? {
        usage.layers += 1;
        usage.raw_bytes = usage.raw_bytes.saturating_add(info.tar_size);
    }
    let mut unneeded = IdSet::default();
    for layer in layers::unneeded(conn)? {
        unneeded.insert(layer);
        report.layers += 1;
    }
    let mut marked = Marked::default();
    marked.extend(conn, &unneeded, || ())?;
    let mut living: HashMap<i64, u64> = HashMap::new();
    each_row(
        conn,
        "SELECT id, pack, len FROM chunk WHERE id > ?1 ORDER BY id LIMIT ?2",
        |id, pack, len| {
            let len = len.max(0) as u64;
            usage.unique_bytes = usage.unique_bytes.saturating_add(len);
            if marked.chunks.contains(id) {
                let bytes = living.entry(pack).or_default();
                *bytes = bytes.saturating_add(len);
            } else {
                report.chunks += 1;
            }
            Ok(())
        },
    )?;
    each_pack(conn, |id, raw, stored| {
        usage.stored_bytes = usage.stored_bytes.saturating_add(stored);
        let alive = living.get(&id).copied().unwrap_or(0);
        let dead = raw.saturating_sub(alive);
        // A pack is rewritten only when less than half of it lives.
        if alive == 0 {
            report.packs += 1;
        } else if dead > raw / 2 {
            report.rewritten += 1;
        } else {
            return;
        }
        usage.reclaimable_bytes = usage
            .reclaimable_bytes
            .saturating_add(part(stored, dead, raw));
    })?;
    for (_, stored) in blobs::unneeded(conn)? {
        usage.reclaimable_bytes = usage.reclaimable_bytes.saturating_add(stored);
    }
    let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let free = pragma("freelist_count")?.max(0) as u64 * pragma("page_size")?.max(0) as u64;
    usage.reclaimable_bytes = usage.reclaimable_bytes.saturating_add(free);
    Ok((usage, report))
}

/// Each image's share, newest first. Memory: an eighth of a byte for each image and chunk id ever given out.
pub(super) fn of_images(database: &Database) -> Result<Vec<ImageUsage>> {
    database.read(|conn| {
        let snapshot = conn.unchecked_transaction()?;
        share_out(&snapshot)
    })
}

fn share_out(conn: &Connection) -> Result<Vec<ImageUsage>> {
    let mut packs: HashMap<i64, (u64, u64)> = HashMap::new();
    each_pack(conn, |id, raw, stored| {
        packs.insert(id, (raw, stored));
    })?;
    let mut list = Vec::new();
    for record in images::all(conn)?.0 {
        let mut marked = Marked::default();
        let mut usage = ImageUsage {
            manifest: record.manifest,
            config: record.config,
            names: record.names,
            raw_bytes: 0,
            unique_bytes: 0,
            shared_bytes: 0,
            private_bytes: 0,
        };
        for (stored, owners) in blobs::of_image(conn, &record.manifest)? {
            let sum = match owners {
                1 => &mut usage.private_bytes,
                _ => &mut usage.shared_bytes,
            };
            *sum = sum.saturating_add(stored);
        }
        for diff_id in &record.layers {
            if let Some((layer, info)) = layers::find(conn, diff_id)? {
                marked.layer(conn, layer)?;
                usage.raw_bytes = usage.raw_bytes.saturating_add(info.tar_size);
            }
        }
        list.push((usage, marked.chunks));
    }
    each_row(
        conn,
        "SELECT id, pack, len FROM chunk WHERE id > ?1 ORDER BY id LIMIT ?2",
        |id, pack, len| {
            let len = len.max(0) as u64;
            let (raw, stored) = packs.get(&pack).copied().unwrap_or((1, 0));
            let stored = part(stored, len, raw);
            let owners = list
                .iter()
                .filter(|(_, chunks)| chunks.contains(id))
                .take(2)
                .count();
            for (usage, _) in list.iter_mut().filter(|(_, chunks)| chunks.contains(id)) {
                usage.unique_bytes = usage.unique_bytes.saturating_add(len);
                let sum = match owners {
                    1 => &mut usage.private_bytes,
                    _ => &mut usage.shared_bytes,
                };
                *sum = sum.saturating_add(stored);
            }
            Ok(())
        },
    )?;
    Ok(list.into_iter().map(|(usage, _)| usage).collect())
}

/// Gives id, raw and stored bytes of every pack. The length of a blob is known without reading it.
fn each_pack(conn: &Connection, mut visit: impl FnMut(i64, u64, u64)) -> Result<()> {
    each_row(
        conn,
        "SELECT id, raw_len, length(data) FROM pack WHERE id > ?1 ORDER BY id LIMIT ?2",
        |id, raw, stored| {
            visit(id, raw.max(1) as u64, stored.max(0) as u64);
            Ok(())
        },
    )
}

/// What `part` of `whole` bytes are of `stored` ones.
fn part(stored: u64, part: u64, whole: u64) -> u64 {
    (u128::from(stored) * u128::from(part) / u128::from(whole.max(1))) as u64
}
