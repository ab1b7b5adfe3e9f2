//! Compressed blobs: what gives back, bit for bit, the bytes a layer came in, and which images need them.
//!
//! A blob belongs to the layer it unpacks to and is kept as a row of parts. The store does not know what is in a part:
//! whoever kept the blob makes it out of the parts and the layer's tar, and proves it by its digest. What the store proves
//! is that the parts are those that were written.
//!
//! Invariants: parts are written before the blob's row, and nothing refers to them before; a blob appears whole, in one
//! transaction with the end of its lease. A blob goes with its layer, or when no image and no living process needs it.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use sha2::{Digest as _, Sha256};

use super::db::{Database, Durability};
use super::leases::{self, Lease};
use super::schema::Sequence;
use super::{Digest, Error, Result, Shared, space};

/// Largest part, bytes.
pub const MAX_PART: usize = 4 << 20;
/// Parts are committed when so many bytes of them wait.
const BATCH: usize = 8 << 20;

/// A blob of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    pub digest: Digest,
    /// Of the layer it unpacks to.
    pub diff_id: Digest,
    /// Size of the blob, bytes.
    pub size: u64,
    /// How the parts give the blob; the store does not look at it.
    pub method: u32,
    /// Size of the parts, bytes.
    pub stored: u64,
}

/// Takes one blob in. Dropped without [`Self::finish`], nothing of it stays.
pub struct BlobWriter {
    database: Arc<Database>,
    id: i64,
    parts: i64,
    waiting: Vec<(i64, Vec<u8>)>,
    waiting_bytes: usize,
    committed: bool,
    hash: Sha256,
    stored: u64,
    // Declared last: `gc` may come only when the parts are gone or owned.
    _lease: Lease,
}

impl BlobWriter {
    pub(super) fn new(database: &Arc<Database>) -> Result<Self> {
        let (lease, id) = Lease::import(database, |tx| Sequence::Blob.take(tx, 1))?;
        Ok(Self {
            database: Arc::clone(database),
            id,
            parts: 0,
            waiting: Vec::new(),
            waiting_bytes: 0,
            committed: false,
            hash: Sha256::new(),
            stored: 0,
            _lease: lease,
        })
    }

    /// Bytes of parts taken so far.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// The next part: 1 to [`MAX_PART`] bytes.
    pub fn part(&mut self, data: Vec<u8>) -> Result<()> {
        if data.is_empty() || data.len() > MAX_PART {
            return Err(Error::Misuse("a part of a blob is empty or too large"));
        }
        self.hash.update(&data);
        self.stored += data.len() as u64;
        self.waiting_bytes += data.len();
        self.waiting.push((self.parts, data));
        self.parts += 1;
        if self.waiting_bytes >= BATCH {
            let run = || {
                let mut conn = self.database.writer(Durability::Ordered)?;
                space::ensure(&self.database.place, &conn, self.waiting_bytes as u64)?;
                let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
                insert_parts(&transaction, self.id, &self.waiting)?;
                Ok(transaction.commit()?)
            };
            run().map_err(|error| self.database.explain(error))?;
            self.committed = true;
            self.waiting.clear();
            self.waiting_bytes = 0;
        }
        Ok(())
    }

    /// Makes the blob appear, on the disk when this returns. Its layer must be there ([`Error::NotFound`] otherwise). A
    /// blob that is there already is left as it is.
    pub fn finish(self, digest: &Digest, size: u64, method: u32, diff_id: &Digest) -> Result<()> {
        self.publish(digest, size, method, diff_id, Durability::Durable)
    }

    /// The same without waiting for the disk, as [`super::LayerWriter::finish_in_order`].
    pub fn finish_in_order(
        self,
        digest: &Digest,
        size: u64,
        method: u32,
        diff_id: &Digest,
    ) -> Result<()> {
        self.publish(digest, size, method, diff_id, Durability::Ordered)
    }

    fn publish(
        mut self,
        digest: &Digest,
        size: u64,
        method: u32,
        diff_id: &Digest,
        durability: Durability,
    ) -> Result<()> {
        let parts = std::mem::take(&mut self.waiting);
        let parts_hash: [u8; 32] = self.hash.clone().finalize().into();
        let (id, stored, count) = (self.id, self.stored, self.parts);
        let kept = self.database.write_with(durability, |tx| {
            let layer = leases::find_layer(tx, diff_id)?;
            if find(tx, digest)?.is_some() {
                return Ok(false);
            }
            insert_parts(tx, id, &parts)?;
            tx.execute(
                "INSERT INTO blob (id, digest, layer, size, method, parts, stored, parts_sha256)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                (
                    id,
                    digest.as_bytes(),
                    layer,
                    size as i64,
                    method,
                    count,
                    stored as i64,
                    parts_hash,
                ),
            )?;
            Ok(true)
        })?;
        // What was committed on the way has an owner now.
        self.committed &= !kept;
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if self.committed {
            let id = self.id;
            let removed = self
                .database
                .write(|tx| Ok(tx.execute("DELETE FROM blob_part WHERE blob = ?1", [id])?));
            if let Err(error) = removed {
                tracing::debug!("parts of an unfinished blob wait for gc: {error}");
            }
        }
    }
}

fn insert_parts(conn: &Connection, blob: i64, parts: &[(i64, Vec<u8>)]) -> Result<()> {
    let mut insert =
        conn.prepare_cached("INSERT INTO blob_part (blob, seq, data) VALUES (?1, ?2, ?3)")?;
    for (seq, data) in parts {
        insert.execute((blob, seq, data))?;
    }
    Ok(())
}

struct BlobRow {
    id: i64,
    parts: i64,
    parts_hash: Digest,
    info: BlobInfo,
}

fn find(conn: &Connection, digest: &Digest) -> Result<Option<BlobRow>> {
    let row = conn
        .prepare_cached(
            "SELECT b.id, b.parts, b.parts_sha256, l.diff_id, b.size, b.method, b.stored
             FROM blob AS b JOIN layer AS l ON l.id = b.layer WHERE b.digest = ?1",
        )?
        .query_row([digest.as_bytes()], |row| {
            Ok(BlobRow {
                id: row.get(0)?,
                parts: row.get(1)?,
                parts_hash: Digest::from_bytes(row.get(2)?),
                info: BlobInfo {
                    digest: *digest,
                    diff_id: Digest::from_bytes(row.get(3)?),
                    size: row.get::<_, i64>(4)?.max(0) as u64,
                    method: row.get(5)?,
                    stored: row.get::<_, i64>(6)?.max(0) as u64,
                },
            })
        })
        .optional()?;
    Ok(row)
}

/// What is known of a blob; `None` if it is not here.
pub(super) fn info(conn: &Connection, digest: &Digest) -> Result<Option<BlobInfo>> {
    Ok(find(conn, digest)?.map(|row| row.info))
}

/// The parts of one blob, in order, read one at a time. The last call proves that they are those that were written.
pub struct BlobParts {
    shared: Arc<Shared>,
    row: BlobRow,
    next: i64,
    hash: Sha256,
}

impl BlobParts {
    pub(super) fn open(shared: &Arc<Shared>, digest: &Digest) -> Result<Self> {
        let row = shared
            .database
            .read(|conn| find(conn, digest))?
            .ok_or_else(|| Error::NotFound(format!("blob {digest} is not in the store")))?;
        Ok(Self {
            shared: Arc::clone(shared),
            row,
            next: 0,
            hash: Sha256::new(),
        })
    }

    pub fn info(&self) -> BlobInfo {
        self.row.info
    }

    /// The next part; `None` after the last. [`Error::Corrupt`] for parts that are missing or not as they were.
    pub fn next_part(&mut self) -> Result<Option<Vec<u8>>> {
        if self.next >= self.row.parts {
            return self.end().map(|()| None);
        }
        let part = self
            .shared
            .database
            .read(|conn| part(conn, self.row.id, self.next))?;
        let part = part.ok_or_else(|| damaged(&self.row.info.digest, "a part is missing"))?;
        self.hash.update(&part);
        self.next += 1;
        Ok(Some(part))
    }

    fn end(&self) -> Result<()> {
        let found = Digest::from_bytes(self.hash.clone().finalize().into());
        if found == self.row.parts_hash {
            Ok(())
        } else {
            Err(damaged(&self.row.info.digest, "its parts have changed"))
        }
    }
}

fn part(conn: &Connection, blob: i64, seq: i64) -> Result<Option<Vec<u8>>> {
    Ok(conn
        .prepare_cached("SELECT data FROM blob_part WHERE blob = ?1 AND seq = ?2")?
        .query_row((blob, seq), |row| row.get(0))
        .optional()?)
}

fn damaged(digest: &Digest, what: &str) -> Error {
    Error::Corrupt(format!("the recipe of blob {digest}: {what}"))
}

/// Says that `image` came with these blobs, those of them that are here.
pub(super) fn link(conn: &Connection, image: i64, blobs: &[Digest]) -> Result<()> {
    let mut insert = conn.prepare_cached(
        "INSERT OR IGNORE INTO image_blob (image, blob) SELECT ?1, id FROM blob WHERE digest = ?2",
    )?;
    for digest in blobs {
        insert.execute((image, digest.as_bytes()))?;
    }
    Ok(())
}

/// An image is gone.
pub(super) fn unlink(conn: &Connection, image: i64) -> Result<()> {
    conn.execute("DELETE FROM image_blob WHERE image = ?1", [image])?;
    Ok(())
}

/// Removes the blobs of a layer that is being removed.
pub(super) fn remove_of_layer(conn: &Connection, layer: i64) -> Result<()> {
    let ids: Vec<i64> = conn
        .prepare_cached("SELECT id FROM blob WHERE layer = ?1")?
        .query_map([layer], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    ids.into_iter().try_for_each(|id| remove(conn, id))
}

/// Forgets a blob; its parts, which may be many, stay for `gc`.
fn remove(conn: &Connection, id: i64) -> Result<()> {
    for sql in [
        "DELETE FROM image_blob WHERE blob = ?1",
        "DELETE FROM blob WHERE id = ?1",
    ] {
        conn.prepare_cached(sql)?.execute([id])?;
    }
    Ok(())
}

/// The blobs that no image has and whose layer no living process holds, with the bytes of their parts.
pub(super) fn unneeded(conn: &Connection) -> Result<Vec<(i64, u64)>> {
    let leased = leases::leased_layers(conn)?;
    let candidates: Vec<(i64, i64, i64)> = conn
        .prepare(
            "SELECT id, layer, stored FROM blob
             WHERE id NOT IN (SELECT blob FROM image_blob) OR layer NOT IN (SELECT id FROM layer)",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(candidates
        .into_iter()
        .filter(|(_, layer, _)| !leased.contains(layer))
        .map(|(id, _, stored)| (id, stored.max(0) as u64))
        .collect())
}

/// Forgets the blobs that nobody needs. For `gc`, in its transaction and while no import runs.
pub(super) fn sweep(conn: &Connection) -> Result<()> {
    for (id, _) in unneeded(conn)? {
        remove(conn, id)?;
    }
    Ok(())
}

/// Of each blob of an image, the bytes of its parts and how many images have it.
pub(super) fn of_image(conn: &Connection, manifest: &Digest) -> Result<Vec<(u64, u64)>> {
    let rows = conn
        .prepare_cached(
            "SELECT b.stored, (SELECT count(*) FROM image_blob AS o WHERE o.blob = b.id) FROM image AS i
             JOIN image_blob AS ib ON ib.image = i.id JOIN blob AS b ON b.id = ib.blob WHERE i.manifest = ?1",
        )?
        .query_map([manifest.as_bytes()], |row| {
            Ok((row.get::<_, i64>(0)?.max(0) as u64, row.get::<_, i64>(1)?.max(0) as u64))
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(rows)
}

/// Bytes of parts in the store.
pub(super) fn stored_bytes(conn: &Connection) -> Result<u64> {
    let mut stored = conn.prepare_cached("SELECT stored FROM blob")?;
    let sizes = stored.query_map([], |row| row.get::<_, i64>(0))?;
    sizes.into_iter().try_fold(
        0u64,
        |sum, size| Ok(sum.saturating_add(size?.max(0) as u64)),
    )
}

/// Checks every blob and gives what is wrong with which; with `parts`, the parts are hashed, too. For `fsck`.
pub(super) fn verify(conn: &Connection, parts: bool) -> Result<Vec<(Digest, String)>> {
    let rows: Vec<([u8; 32], i64)> = conn
        .prepare("SELECT digest, layer FROM blob ORDER BY id")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut faults = Vec::new();
    for (digest, layer) in rows {
        let digest = Digest::from_bytes(digest);
        let Some(row) = find(conn, &digest)? else {
            faults.push((digest, format!("its layer {layer} is not there")));
            continue;
        };
        let fault = if parts {
            check_parts(conn, &row)?
        } else {
            let there: i64 = conn
                .prepare_cached("SELECT count(*) FROM blob_part WHERE blob = ?1")?
                .query_row([row.id], |row| row.get(0))?;
            (there != row.parts).then_some("a part is missing")
        };
        faults.extend(fault.map(|fault| (digest, fault.to_owned())));
    }
    Ok(faults)
}

fn check_parts(conn: &Connection, row: &BlobRow) -> Result<Option<&'static str>> {
    let mut hash = Sha256::new();
    for seq in 0..row.parts {
        match part(conn, row.id, seq)? {
            Some(part) => hash.update(&part),
            None => return Ok(Some("a part is missing")),
        }
    }
    let found = Digest::from_bytes(hash.finalize().into());
    Ok((found != row.parts_hash).then_some("its parts have changed"))
}

/// Removes one blob, for whoever found it damaged: its images then lose their original manifest, not their content.
pub(super) fn discard(conn: &Connection, digest: &Digest) -> Result<bool> {
    let id: Option<i64> = conn
        .prepare_cached("SELECT id FROM blob WHERE digest = ?1")?
        .query_row([digest.as_bytes()], |row| row.get(0))
        .optional()?;
    match id {
        Some(id) => remove(conn, id).map(|()| true),
        None => Ok(false),
    }
}
