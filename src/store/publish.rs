//! The last step of an import: everything the layer consists of, in one transaction.
//!
//! Before it the store holds nothing of the layer but chunks that nothing refers to; after it the layer is complete. There
//! is no state between.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::db::{Durability, set_durability};
use super::extents::{self, Extent};
use super::layers;
use super::pipeline::Aliases;
use super::place::Place;
use super::recipe::{self, Op};
use super::schema::{PAGE_SIZE, Sequence};
use super::{ContentRef, Digest, LayerInfo, Result, kind, leases, space};
use crate::meta::{FileKind, Timestamp};

/// Where contents and recipe wait for the end of the import.
pub(super) const TABLES: &str = "
    CREATE TEMP TABLE t_content (id INTEGER PRIMARY KEY, digest BLOB UNIQUE, size INTEGER, data_size INTEGER) STRICT;
    CREATE TEMP TABLE t_extent (content INTEGER, start INTEGER, list BLOB, PRIMARY KEY (content, start))
        STRICT, WITHOUT ROWID;
    CREATE TEMP TABLE t_recipe (seq INTEGER PRIMARY KEY, ops BLOB, raw_len INTEGER, literals BLOB) STRICT;
    CREATE TEMP TABLE t_alias (old INTEGER PRIMARY KEY, new INTEGER) STRICT;
";

/// Moves the layer out of the temporary tables of `conn` (in whose open transaction they were filled).
pub(super) fn publish(
    place: &Place,
    conn: &Connection,
    durability: Durability,
    diff_id: &Digest,
    tar_size: u64,
    aliases: &Aliases,
) -> Result<LayerInfo> {
    conn.execute_batch("COMMIT")?;
    set_durability(conn, durability)?;
    let pages: i64 = conn.pragma_query_value(Some("temp"), "page_count", |row| row.get(0))?;
    space::ensure(place, conn, (pages * PAGE_SIZE) as u64)?;
    let transaction = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    if let Some((layer, info)) = layers::find(&transaction, diff_id)? {
        // Its importer may end, and `gc` come, before our caller has an image that needs it.
        leases::keep_fresh(&transaction, layer)?;
        transaction.commit()?;
        return Ok(info);
    }
    let contents = publish_contents(&transaction, aliases)?;
    let mut renamed: HashMap<ContentRef, ContentRef> = aliases
        .iter()
        .map(|(ours, theirs)| (ContentRef::chunk(*ours), ContentRef::chunk(*theirs)))
        .collect();
    renamed.extend(contents);
    rename_contents(&transaction, &renamed)?;

    let layer = Sequence::Layer.take(&transaction, 1)?;
    transaction.execute(
        "INSERT INTO main.inode (layer, ino, kind, perm, uid, gid, mtime_s, mtime_ns, size, data_size, nlink, rdev,
            flags, content, target, xattrs)
         SELECT ?1, ino, kind, perm, uid, gid, mtime_s, mtime_ns, size, data_size, nlink, rdev, flags, content, target,
            xattrs FROM t_inode ORDER BY ino",
        [layer],
    )?;
    let entries = transaction.execute(
        "INSERT INTO main.dentry (layer, parent, name, ino, kind)
         SELECT ?1, parent, name, ino, kind FROM t_dentry ORDER BY parent, name",
        [layer],
    )?;
    transaction.execute(
        "INSERT INTO main.recipe (layer, seq, ops, raw_len, literals)
         SELECT ?1, seq, ops, raw_len, literals FROM t_recipe ORDER BY seq",
        [layer],
    )?;
    // Summed in halves: sparse files may claim more than 63 bits together.
    let (high, low): (i64, i64) = transaction.query_row(
        "SELECT coalesce(sum(size >> 32), 0), coalesce(sum(size & 0xffffffff), 0) FROM t_inode WHERE kind = ?1",
        [kind::code(FileKind::Regular)],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let files_size = ((i128::from(high) << 32) + i128::from(low)).min(i128::from(i64::MAX));
    let info = LayerInfo {
        diff_id: *diff_id,
        tar_size,
        files_size: files_size as u64,
        entries: entries as u64,
        created: Timestamp::now(),
    };
    layers::insert(&transaction, layer, &info)?;
    leases::keep_fresh(&transaction, layer)?;
    transaction.commit()?;
    Ok(info)
}

/// Moves the lists of chunks; gives the contents that another import had stored meanwhile.
fn publish_contents(conn: &Connection, aliases: &Aliases) -> Result<Vec<(ContentRef, ContentRef)>> {
    let mut renamed = Vec::new();
    let mut contents = conn.prepare("SELECT id, digest FROM t_content ORDER BY id")?;
    let mut rows = contents.query([])?;
    let mut insert = conn.prepare(
        "INSERT INTO main.content (id, digest, size, data_size)
         SELECT id, digest, size, data_size FROM t_content WHERE id = ?1",
    )?;
    let mut lists =
        conn.prepare("SELECT start, list FROM t_extent WHERE content = ?1 ORDER BY start")?;
    let mut insert_list =
        conn.prepare("INSERT INTO main.extent (content, start, list) VALUES (?1, ?2, ?3)")?;
    while let Some(row) = rows.next()? {
        let (id, digest): (i64, [u8; 32]) = (row.get(0)?, row.get(1)?);
        if let Some(theirs) = find_content(conn, &Digest::from_bytes(digest))? {
            renamed.push((ContentRef::list(id), ContentRef::list(theirs)));
            continue;
        }
        insert.execute([id])?;
        let mut lists = lists.query([id])?;
        while let Some(row) = lists.next()? {
            let (start, list): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            insert_list.execute((id, start, rename_chunks(list, aliases)?))?;
        }
    }
    Ok(renamed)
}

fn rename_chunks(list: Vec<u8>, aliases: &Aliases) -> Result<Vec<u8>> {
    if aliases.is_empty() {
        return Ok(list);
    }
    let mut extents = extents::decode(&list)?;
    for extent in &mut extents {
        if let Extent::Data { chunk, .. } = extent
            && let Some(theirs) = aliases.get(chunk)
        {
            *chunk = *theirs;
        }
    }
    Ok(extents::encode(&extents))
}

/// Puts other references in the place of those that turned out to be stored already.
fn rename_contents(conn: &Connection, renamed: &HashMap<ContentRef, ContentRef>) -> Result<()> {
    if renamed.is_empty() {
        return Ok(());
    }
    let mut insert = conn.prepare("INSERT INTO t_alias (old, new) VALUES (?1, ?2)")?;
    for (old, new) in renamed {
        insert.execute((old.0, new.0))?;
    }
    conn.execute(
        "UPDATE t_inode SET content = a.new FROM t_alias AS a WHERE t_inode.content = a.old AND t_inode.kind = ?1",
        [kind::code(FileKind::Regular)],
    )?;
    let mut after = -1;
    loop {
        let segment: Option<(i64, Vec<u8>)> = conn
            .prepare_cached("SELECT seq, ops FROM t_recipe WHERE seq > ?1 ORDER BY seq LIMIT 1")?
            .query_row([after], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((seq, ops)) = segment else {
            return Ok(());
        };
        let ops = recipe::decode_ops(&ops)?
            .map(|op| {
                Ok(match op? {
                    Op::Content { content, len } => Op::Content {
                        content: *renamed.get(&content).unwrap_or(&content),
                        len,
                    },
                    literal @ Op::Literal(_) => literal,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        conn.prepare_cached("UPDATE t_recipe SET ops = ?2 WHERE seq = ?1")?
            .execute((seq, recipe::encode_ops(ops)))?;
        after = seq;
    }
}

/// Id of a stored list of chunks.
pub(super) fn find_content(conn: &Connection, digest: &Digest) -> Result<Option<i64>> {
    Ok(conn
        .prepare_cached("SELECT id FROM main.content WHERE digest = ?1")?
        .query_row([digest.as_bytes()], |row| row.get(0))
        .optional()?)
}
