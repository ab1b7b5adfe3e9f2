//! Leases: what keeps layers from `gc` while somebody uses them.
//!
//! Three kinds. A *layer* lease is taken by a mount for its layers. An *import* lease is held by every
//! [`super::LayerWriter`]: while one lives, chunks nothing refers to may be about to be used, so `gc` waits. A *fresh*
//! lease comes with every published layer, until an image takes the layer or the process ends. A lease lapses when its
//! process is gone; nothing has to be cleaned up after a crash.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction};

use super::db::Database;
use super::process::{self, ProcessIdentity};
use super::schema::Sequence;
use super::{Digest, Error, Result};
use crate::meta::Timestamp;

const KIND_LAYERS: i64 = 1;
const KIND_IMPORT: i64 = 2;
const KIND_FRESH: i64 = 3;
/// Stands for a lease on a store that cannot be written to, and needs none.
const NO_LEASE: i64 = 0;

/// Keeps layers from being removed. Unregisters itself when dropped.
pub struct Lease {
    database: Arc<Database>,
    id: i64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.id == NO_LEASE {
            return;
        }
        // A child of fork must not end its parent's lease, and cannot: `write` refuses. If writing fails for another
        // reason, or is lost with the power, the lease lapses with the process.
        if let Err(error) = self.database.write_ordered(|tx| remove(tx, self.id)) {
            tracing::debug!(
                lease = self.id,
                "a lease could not be removed and lapses with this process: {error}"
            );
        }
    }
}

impl Lease {
    /// Takes a lease on layers that must be there.
    pub(super) fn take(database: &Arc<Database>, layers: &[Digest], purpose: &str) -> Result<Self> {
        if database.place.read_only {
            // Nobody can remove anything.
            database.read(|conn| {
                layers
                    .iter()
                    .try_for_each(|id| find_layer(conn, id).map(drop))
            })?;
            return Ok(Self {
                database: Arc::clone(database),
                id: NO_LEASE,
            });
        }
        // What a power cut loses is the lease of a process that the power cut ends: nothing has to reach the disk, and a
        // mount waits for none.
        let id = database.write_ordered(|tx| {
            let id = insert(tx, KIND_LAYERS, purpose)?;
            for diff_id in layers {
                let layer = find_layer(tx, diff_id)?;
                tx.execute(
                    "INSERT OR IGNORE INTO lease_layer (lease, layer) VALUES (?1, ?2)",
                    (id, layer),
                )?;
            }
            Ok(id)
        })?;
        Ok(Self {
            database: Arc::clone(database),
            id,
        })
    }

    /// Tells `gc` that chunks without an owner are about to get one. Runs `more` in the same transaction.
    pub(super) fn import<T>(
        database: &Arc<Database>,
        more: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<(Self, T)> {
        // A power cut ends the process, too, and what it stores under ids that `more` takes is in the log behind this.
        let (id, value) =
            database.write_ordered(|tx| Ok((insert(tx, KIND_IMPORT, "import")?, more(tx)?)))?;
        Ok((
            Self {
                database: Arc::clone(database),
                id,
            },
            value,
        ))
    }
}

/// Keeps a layer that was just published until an image has it.
pub(super) fn keep_fresh(conn: &Connection, layer: i64) -> Result<()> {
    let id = insert(conn, KIND_FRESH, "imported layer")?;
    conn.execute(
        "INSERT INTO lease_layer (lease, layer) VALUES (?1, ?2)",
        (id, layer),
    )?;
    Ok(())
}

/// An image has these layers now: their fresh leases of this process have done their work.
pub(super) fn end_fresh(conn: &Connection, layers: &[i64]) -> Result<()> {
    let me = ProcessIdentity::current();
    for layer in layers {
        let ids: Vec<i64> = conn
            .prepare_cached(
                "SELECT l.id FROM lease AS l JOIN lease_layer AS ll ON ll.lease = l.id
                 WHERE ll.layer = ?1 AND l.kind = ?2 AND l.pid = ?3 AND l.start = ?4",
            )?
            .query_map((layer, KIND_FRESH, me.pid, me.start), |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for id in ids {
            remove(conn, id)?;
        }
    }
    Ok(())
}

/// How many layers this process keeps fresh that no image has.
pub(super) fn fresh_without_image(conn: &Connection) -> Result<u64> {
    let me = ProcessIdentity::current();
    let count: i64 = conn
        .prepare_cached(
            "SELECT count(DISTINCT ll.layer) FROM lease AS l JOIN lease_layer AS ll ON ll.lease = l.id
             WHERE l.kind = ?1 AND l.pid = ?2 AND l.start = ?3 AND ll.layer NOT IN (SELECT layer FROM image_layer)",
        )?
        .query_row((KIND_FRESH, me.pid, me.start), |row| row.get(0))?;
    Ok(count.max(0) as u64)
}

/// Removes the leases of processes that are gone.
pub(super) fn lapse(conn: &Connection) -> Result<()> {
    let me = ProcessIdentity::current();
    for lease in all(conn)? {
        if lease.holder.is_dead(&me) {
            remove(conn, lease.id)?;
        }
    }
    Ok(())
}

/// Layers that living processes hold.
pub(super) fn leased_layers(conn: &Connection) -> Result<HashSet<i64>> {
    let me = ProcessIdentity::current();
    let mut layers = HashSet::new();
    for lease in all(conn)? {
        if !lease.holder.is_dead(&me) {
            let mut statement =
                conn.prepare_cached("SELECT layer FROM lease_layer WHERE lease = ?1")?;
            for layer in statement.query_map([lease.id], |row| row.get(0))? {
                layers.insert(layer?);
            }
        }
    }
    Ok(layers)
}

/// The imports that are running, for people: one line for each process, since its first.
pub(super) fn describe_imports(conn: &Connection) -> Result<Vec<String>> {
    let me = ProcessIdentity::current();
    let imports = all(conn)?;
    let living = imports
        .iter()
        .filter(|lease| lease.kind == KIND_IMPORT && !lease.holder.is_dead(&me));
    Ok(describe(living))
}

/// The living processes that keep a layer, for people.
pub(super) fn describe_holders(conn: &Connection, layer: i64) -> Result<Vec<String>> {
    let me = ProcessIdentity::current();
    let mut holding = Vec::new();
    for lease in all(conn)? {
        let holds: bool = conn
            .prepare_cached("SELECT count(*) > 0 FROM lease_layer WHERE lease = ?1 AND layer = ?2")?
            .query_row((lease.id, layer), |row| row.get(0))?;
        if holds && !lease.holder.is_dead(&me) {
            holding.push(lease);
        }
    }
    Ok(describe(holding.iter()))
}

/// Ids of leases of a kind that no program of this format takes.
pub(super) fn unknown(conn: &Connection) -> Result<Vec<i64>> {
    let unknown = |lease: &Row| !(KIND_LAYERS..=KIND_FRESH).contains(&lease.kind);
    Ok(all(conn)?
        .into_iter()
        .filter(unknown)
        .map(|lease| lease.id)
        .collect())
}

fn describe<'a>(leases: impl Iterator<Item = &'a Row>) -> Vec<String> {
    let mut first: BTreeMap<(i64, &str), i64> = BTreeMap::new();
    for lease in leases {
        let since = first
            .entry((lease.holder.pid, &lease.purpose))
            .or_insert(lease.since);
        *since = lease.since.min(*since);
    }
    let now = Timestamp::now().secs;
    first
        .into_iter()
        .map(|((pid, purpose), since)| {
            let time = process::duration(now.saturating_sub(since));
            format!("{purpose} by process {pid}, for {time}")
        })
        .collect()
}

/// A row of `lease`.
struct Row {
    id: i64,
    holder: ProcessIdentity,
    kind: i64,
    purpose: String,
    /// Seconds since the epoch.
    since: i64,
}

fn all(conn: &Connection) -> Result<Vec<Row>> {
    let mut statement = conn.prepare_cached(
        "SELECT id, pid, start, boot, pid_namespace, kind, purpose, created_s FROM lease ORDER BY id",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(Row {
            id: row.get(0)?,
            holder: ProcessIdentity {
                pid: row.get(1)?,
                start: row.get(2)?,
                boot: row.get(3)?,
                pid_namespace: row.get(4)?,
            },
            kind: row.get(5)?,
            purpose: row.get(6)?,
            since: row.get(7)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn insert(conn: &Connection, kind: i64, purpose: &str) -> Result<i64> {
    let (me, id) = (ProcessIdentity::current(), Sequence::Lease.take(conn, 1)?);
    conn.execute(
        "INSERT INTO lease (id, kind, pid, start, boot, pid_namespace, purpose, created_s)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        (
            id,
            kind,
            me.pid,
            me.start,
            me.boot,
            me.pid_namespace,
            purpose,
            Timestamp::now().secs,
        ),
    )?;
    Ok(id)
}

fn remove(conn: &Connection, id: i64) -> Result<()> {
    conn.execute("DELETE FROM lease_layer WHERE lease = ?1", [id])?;
    conn.execute("DELETE FROM lease WHERE id = ?1", [id])?;
    Ok(())
}

/// Row id of a layer that must be there.
pub(super) fn find_layer(conn: &Connection, diff_id: &Digest) -> Result<i64> {
    conn.prepare_cached("SELECT id FROM layer WHERE diff_id = ?1")?
        .query_row([diff_id.as_bytes()], |row| row.get(0))
        .optional()?
        .ok_or_else(|| Error::NotFound(format!("layer {diff_id} is not in the store")))
}
