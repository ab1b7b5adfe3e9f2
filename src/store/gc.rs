//! Garbage collection: finding what nothing needs any more, and giving its space back to the file system.
//!
//! 1. In one transaction: leases of dead processes lapse; layers that no image and no lease has go; the contents and
//!    chunks that the remaining layers use are marked, the others go, and with them the packs that hold nothing else.
//!    While an import runs this is not done at all, for it may be about to use what looks unused.
//! 2. In bounded transactions: packs that are mostly dead are replaced by new ones with the living chunks.
//! 3. Free pages are moved to the end of the file and cut off, and the log is emptied.
//!
//! Whatever cannot be read is kept: a damaged store loses nothing here.

use std::collections::HashMap;

use rusqlite::{Connection, TransactionBehavior};

use super::content::{ContentKind, ContentRef};
use super::db::{Database, Durability};
use super::extents::{self, Extent};
use super::idset::IdSet;
use super::pack::{self, Location, Pack, RawPack, StoredPack};
use super::recipe::{self, Op};
use super::schema::Sequence;
use super::{Error, Result, blobs, layers, leases, space};

/// Rows looked at, or removed, by one statement.
const PAGE: i64 = 4096;
/// Raw bytes rewritten in one transaction.
const REWRITE_BATCH: u64 = 32 << 20;
/// Pages given back in one transaction, and so written to the log; fewer where there is little room for that.
const VACUUM_PAGES: i64 = 4096;
const VACUUM_PAGES_TIGHT: i64 = 32;
const TIGHT: u64 = 128 << 20;

/// What a garbage collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Layers removed.
    pub layers: u64,
    /// Chunks removed.
    pub chunks: u64,
    /// By how much the store's files shrank, bytes.
    pub freed_bytes: u64,
}

/// What the layers that stay make use of.
#[derive(Default)]
pub(super) struct Marked {
    pub(super) chunks: IdSet,
    pub(super) contents: IdSet,
}

pub(super) fn collect(database: &Database) -> Result<GcReport> {
    let before = database.place.disk_bytes()?;
    let mut conn = database.writer(Durability::Durable)?;
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    leases::lapse(&transaction)?;
    let imports = leases::describe_imports(&transaction)?;
    if !imports.is_empty() {
        let who = imports.join(", ");
        return Err(Error::Busy(format!(
            "not while something is being imported ({who}); try again when it is done"
        )));
    }
    let mut report = GcReport::default();
    for layer in layers::unneeded(&transaction)? {
        layers::remove(&transaction, layer)?;
        report.layers += 1;
    }
    blobs::sweep(&transaction)?;
    let marked = mark(&transaction, &IdSet::default())?;
    sweep_contents(&transaction, &marked)?;
    let living = sweep_chunks(&transaction, &marked, &mut report.chunks)?;
    let sparse = sweep_packs(&transaction, &living)?;
    transaction.commit()?;

    rewrite(&mut conn, &sparse)?;
    give_back(database, &conn)?;
    report.freed_bytes = before.saturating_sub(database.place.disk_bytes()?);
    Ok(report)
}

/// Marks what layers other than `without` use.
pub(super) fn mark(conn: &Connection, without: &IdSet) -> Result<Marked> {
    let mut marked = Marked::default();
    let mut nodes = conn.prepare("SELECT content FROM inode WHERE layer = ?1 AND content != 0")?;
    // A recipe also uses contents whose file was replaced by a later entry of the same layer.
    let mut recipes = conn.prepare("SELECT ops FROM recipe WHERE layer = ?1")?;
    for (layer, _) in layers::all(conn)? {
        if without.contains(layer) {
            continue;
        }
        let mut rows = nodes.query([layer])?;
        while let Some(row) = rows.next()? {
            mark_content(conn, ContentRef::stored(row.get(0)?)?, &mut marked)?;
        }
        let mut rows = recipes.query([layer])?;
        while let Some(row) = rows.next()? {
            for op in recipe::decode_ops(&row.get::<_, Vec<u8>>(0)?)? {
                if let Op::Content { content, .. } = op {
                    mark_content(conn, content, &mut marked)?;
                }
            }
        }
    }
    Ok(marked)
}

fn mark_content(conn: &Connection, content: ContentRef, marked: &mut Marked) -> Result<()> {
    match content.kind() {
        ContentKind::Empty => {}
        ContentKind::Chunk(chunk) => {
            marked.chunks.insert(chunk);
        }
        ContentKind::List(id) => {
            if marked.contents.insert(id) {
                let mut lists =
                    conn.prepare_cached("SELECT list FROM extent WHERE content = ?1")?;
                let mut rows = lists.query([id])?;
                while let Some(row) = rows.next()? {
                    for extent in extents::decode(&row.get::<_, Vec<u8>>(0)?)? {
                        if let Extent::Data { chunk, .. } = extent {
                            marked.chunks.insert(chunk);
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

fn sweep_contents(conn: &Connection, marked: &Marked) -> Result<()> {
    each_row(
        conn,
        "SELECT id, 0, 0 FROM content WHERE id > ?1 ORDER BY id LIMIT ?2",
        |id, _, _| {
            if !marked.contents.contains(id) {
                conn.prepare_cached("DELETE FROM extent WHERE content = ?1")?
                    .execute([id])?;
                conn.prepare_cached("DELETE FROM content WHERE id = ?1")?
                    .execute([id])?;
            }
            Ok(())
        },
    )
}

/// Removes dead chunks; gives the living raw bytes of each pack.
fn sweep_chunks(
    conn: &Connection,
    marked: &Marked,
    removed: &mut u64,
) -> Result<HashMap<i64, i64>> {
    let mut living = HashMap::new();
    each_row(
        conn,
        "SELECT id, pack, len FROM chunk WHERE id > ?1 ORDER BY id LIMIT ?2",
        |id, pack, len| {
            if marked.chunks.contains(id) {
                let bytes = living.entry(pack).or_insert(0i64);
                *bytes = bytes.saturating_add(len.max(0));
            } else {
                conn.prepare_cached("DELETE FROM chunk WHERE id = ?1")?
                    .execute([id])?;
                *removed += 1;
            }
            Ok(())
        },
    )?;
    Ok(living)
}

/// Removes dead packs; gives those that are worth rewriting.
fn sweep_packs(conn: &Connection, living: &HashMap<i64, i64>) -> Result<IdSet> {
    let mut sparse = IdSet::default();
    each_row(
        conn,
        "SELECT id, raw_len, 0 FROM pack WHERE id > ?1 ORDER BY id LIMIT ?2",
        |id, raw_len, _| {
            match living.get(&id) {
                None => {
                    conn.prepare_cached("DELETE FROM pack WHERE id = ?1")?
                        .execute([id])?;
                }
                Some(bytes) if *bytes < raw_len / 2 => {
                    sparse.insert(id);
                }
                Some(_) => {}
            }
            Ok(())
        },
    )?;
    Ok(sparse)
}

/// Runs through a table by its first column, the id, a page at a time, so that rows may be removed on the way.
/// `sql` selects the id and two more integers of rows after `?1`, at most `?2` of them.
pub(super) fn each_row(
    conn: &Connection,
    sql: &str,
    mut visit: impl FnMut(i64, i64, i64) -> Result<()>,
) -> Result<()> {
    let mut after = i64::MIN;
    loop {
        let mut statement = conn.prepare_cached(sql)?;
        let page: Vec<(i64, i64, i64)> = statement
            .query_map([after, PAGE], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let Some((last, ..)) = page.last() else {
            return Ok(());
        };
        // A crafted table may hold its rows in any order.
        if *last <= after {
            return Err(Error::Corrupt("rows are out of order".to_owned()));
        }
        after = *last;
        for (id, first, second) in page {
            visit(id, first, second)?;
        }
    }
}

/// Replaces packs by fuller ones.
fn rewrite(conn: &mut Connection, sparse: &IdSet) -> Result<()> {
    let mut members: HashMap<i64, Vec<i64>> = HashMap::new();
    each_row(
        conn,
        "SELECT id, pack, 0 FROM chunk WHERE id > ?1 ORDER BY id LIMIT ?2",
        |id, pack, _| {
            if sparse.contains(pack) {
                members.entry(pack).or_default().push(id);
            }
            Ok(())
        },
    )?;
    let mut packs: Vec<_> = members.into_iter().collect();
    packs.sort_unstable_by_key(|(pack, _)| *pack);
    let mut compressor = pack::compressor()?;
    let mut packs = packs.into_iter().peekable();
    while packs.peek().is_some() {
        let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut raw = RawPack::default();
        let mut done = 0;
        while done < REWRITE_BATCH
            && let Some((id, chunks)) = packs.next()
        {
            done += move_chunks(&transaction, id, &chunks, &mut raw)?;
            if raw.is_full() {
                store(&transaction, std::mem::take(&mut raw), &mut compressor)?;
            }
        }
        store(&transaction, raw, &mut compressor)?;
        transaction.commit()?;
    }
    Ok(())
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

/// Shrinks the files.
fn give_back(database: &Database, conn: &Connection) -> Result<()> {
    let free =
        || Ok::<i64, Error>(conn.pragma_query_value(None, "freelist_count", |row| row.get(0))?);
    let mut left = free()?;
    while left > 0 {
        let tight = space::free(&database.place.root)? < TIGHT;
        let pages = if tight {
            VACUUM_PAGES_TIGHT
        } else {
            VACUUM_PAGES
        };
        let mut statement = conn.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        drop(rows);
        drop(statement);
        if tight {
            space::empty_log(conn)?;
        }
        let now = free()?;
        if now >= left {
            break;
        }
        left = now;
    }
    // Busy readers may keep the log from being emptied; the next writer does it then.
    space::empty_log(conn)
}
