//! Packs: those without a living chunk go, those that are less than half alive are replaced by fuller ones.
//!
//! Safe beside imports and other collections: a chunk gets its pack when both are stored, in one transaction and under a
//! new pack id, and only a collection, or an import that replaces bad bytes, moves it, to a pack of a new id again. So a pack that is there and has no chunk
//! will never have one.

use std::collections::HashMap;

use rusqlite::Connection;

use super::super::idset::IdSet;
use super::super::pack::{self, Location, Pack, RawPack, StoredPack};
use super::super::schema::Sequence;
use super::super::{Error, Result};
use super::{Collector, each_row};

/// Raw bytes rewritten in one transaction.
const REWRITE: u64 = 8 << 20;
/// Stored bytes removed in one transaction.
const REMOVE: u64 = 32 << 20;

/// What is to be done about packs.
#[derive(Default)]
struct Plan {
    /// Id and stored bytes.
    dead: Vec<(i64, u64)>,
    sparse: IdSet,
    /// Living chunks of sparse packs.
    members: HashMap<i64, Vec<i64>>,
}

impl Collector<'_> {
    pub(super) fn packs(&mut self) -> Result<()> {
        let plan = self.database.read(|conn| {
            // One snapshot, or a pack stored between two queries would look dead.
            let snapshot = conn.unchecked_transaction()?;
            plan(&snapshot)
        })?;
        let dead = plan.dead.iter().map(|(_, bytes)| bytes).sum();
        self.phase("empty packs", dead, true);
        let mut packs = plan.dead.into_iter().peekable();
        while packs.peek().is_some() {
            let (mut bytes, mut removed) = (0, 0);
            self.transaction(|tx| {
                let mut remove = tx.prepare_cached("DELETE FROM pack WHERE id = ?1")?;
                while bytes < REMOVE
                    && let Some((id, stored)) = packs.next()
                {
                    removed += remove.execute([id])? as u64;
                    bytes += stored;
                }
                Ok(())
            })?;
            self.report.packs += removed;
            self.advance(bytes);
        }
        self.rewrite(plan.members)
    }

    /// Replaces packs by fuller ones.
    fn rewrite(&mut self, members: HashMap<i64, Vec<i64>>) -> Result<()> {
        self.phase("half-empty packs", members.len() as u64, false);
        let mut packs: Vec<_> = members.into_iter().collect();
        packs.sort_unstable_by_key(|(pack, _)| *pack);
        let mut compressor = pack::compressor()?;
        let mut packs = packs.into_iter().peekable();
        while packs.peek().is_some() {
            let (mut raw, mut bytes, mut rewritten) = (RawPack::default(), 0, 0);
            self.transaction(|tx| {
                while bytes < REWRITE
                    && let Some((id, chunks)) = packs.next()
                {
                    bytes += move_chunks(tx, id, &chunks, &mut raw)?;
                    rewritten += 1;
                    if raw.is_full() {
                        store(tx, std::mem::take(&mut raw), &mut compressor)?;
                    }
                }
                store(tx, std::mem::take(&mut raw), &mut compressor)
            })?;
            self.report.rewritten += rewritten;
            self.advance(rewritten);
        }
        Ok(())
    }
}

fn plan(conn: &Connection) -> Result<Plan> {
    let mut living: HashMap<i64, i64> = HashMap::new();
    let mut plan = Plan::default();
    each_row(
        conn,
        "SELECT id, pack, len FROM chunk WHERE id > ?1 ORDER BY id LIMIT ?2",
        |_, pack, len| {
            let bytes = living.entry(pack).or_default();
            *bytes = bytes.saturating_add(len.max(0));
            Ok(())
        },
    )?;
    each_row(
        conn,
        "SELECT id, raw_len, length(data) FROM pack WHERE id > ?1 ORDER BY id LIMIT ?2",
        |id, raw_len, stored| {
            match living.get(&id) {
                None => plan.dead.push((id, stored.max(0) as u64)),
                Some(bytes) if *bytes < raw_len / 2 => {
                    plan.sparse.insert(id);
                }
                Some(_) => {}
            }
            Ok(())
        },
    )?;
    each_row(
        conn,
        "SELECT id, pack, 0 FROM chunk WHERE id > ?1 ORDER BY id LIMIT ?2",
        |id, pack, _| {
            if plan.sparse.contains(pack) {
                plan.members.entry(pack).or_default().push(id);
            }
            Ok(())
        },
    )?;
    Ok(plan)
}

/// Takes the chunks of a pack over into `raw` and removes the pack; gives the raw bytes read.
fn move_chunks(conn: &Connection, id: i64, chunks: &[i64], raw: &mut RawPack) -> Result<u64> {
    let loaded = match Pack::load(conn, id) {
        // Logged; what is damaged stays as it is.
        Err(Error::Corrupt(_)) => return Ok(0),
        other => other?,
    };
    // Another collection was faster.
    let Some(old) = loaded else { return Ok(0) };
    let mut moved = Vec::new();
    for chunk in chunks {
        match Location::find(conn, *chunk)? {
            Some(at) if at.pack == id => match old.verified(*chunk, &at) {
                Ok(range) => moved.push((*chunk, at.digest, range)),
                Err(_) => return Ok(0),
            },
            _ => {}
        }
    }
    for (chunk, digest, range) in moved {
        raw.push(chunk, digest, &old.bytes()[range]);
    }
    conn.prepare_cached("DELETE FROM pack WHERE id = ?1")?
        .execute([id])?;
    Ok(old.bytes().len() as u64)
}

fn store(
    conn: &Connection,
    raw: RawPack,
    compressor: &mut zstd::bulk::Compressor<'_>,
) -> Result<()> {
    if raw.chunks.is_empty() {
        return Ok(());
    }
    let (id, pack) = (
        Sequence::Pack.take(conn, 1)?,
        StoredPack::compress(raw, compressor)?,
    );
    pack.insert(conn, id)?;
    let mut update =
        conn.prepare_cached("UPDATE chunk SET pack = ?2, offset = ?3 WHERE id = ?1")?;
    for chunk in &pack.chunks {
        update.execute((chunk.id, id, chunk.offset))?;
    }
    Ok(())
}
