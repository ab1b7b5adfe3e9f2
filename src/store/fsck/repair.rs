//! Repair: everything that is bad goes, everything that hangs together stays, in one transaction.
//!
//! The check ran without a lock, so under the write lock the rows are looked at once more, and what was said to be bad
//! bytes is hashed again. Nothing happens while something is imported, or while a living lease needs a layer that must
//! go. Before the transaction is committed the rows must check clean; otherwise nothing was done.

use std::sync::Arc;

use rusqlite::{Connection, TransactionBehavior};

use super::super::db::Durability;
use super::super::schema::Sequence;
use super::super::{Error, Result, Shared, blobs, export, images, layers, leases};
use super::images::names_of;
use super::{Check, Damage, FsckOptions, bytes, rows, trees};

/// Rows that refer to something that is not there.
const ORPHANS: [(&str, &str); 7] = [
    (
        "names of missing images",
        "DELETE FROM name WHERE name = '' OR image NOT IN (SELECT id FROM image)",
    ),
    (
        "layer lists of missing images",
        "DELETE FROM image_layer WHERE image NOT IN (SELECT id FROM image)",
    ),
    (
        "leases that make no sense",
        "DELETE FROM lease WHERE kind NOT IN (1, 2, 3)",
    ),
    (
        "leases of missing layers",
        "DELETE FROM lease_layer WHERE lease NOT IN (SELECT id FROM lease) OR layer NOT IN (SELECT id FROM layer)",
    ),
    (
        "lists of missing contents",
        "DELETE FROM extent WHERE content NOT IN (SELECT id FROM content)",
    ),
    (
        "links of missing images or blobs",
        "DELETE FROM image_blob WHERE image NOT IN (SELECT id FROM image) OR blob NOT IN (SELECT id FROM blob)",
    ),
    (
        "indexes of missing names or documents",
        "DELETE FROM name_index WHERE name NOT IN (SELECT name FROM name) OR name IN
            (SELECT name FROM name_index WHERE document NOT IN (SELECT sha256 FROM document))",
    ),
];

/// Gives what was done, in words.
pub(super) fn repair(
    shared: &Arc<Shared>,
    options: &FsckOptions<'_>,
    found: &Damage,
) -> Result<Vec<String>> {
    let run = || {
        let mut conn = shared.database.writer(Durability::Durable)?;
        let _turn = shared.database.write_turn();
        let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        leases::lapse(&transaction)?;
        refuse_imports(&transaction)?;
        let mut done = Vec::new();
        if found.database {
            transaction.execute_batch("REINDEX")?;
            done.push("made the indexes anew".to_owned());
        }
        let damage = look_again(shared, &transaction, options, found)?;
        apply(&transaction, &damage, &mut done)?;
        prove(&transaction, options)?;
        transaction.commit()?;
        Ok(done)
    };
    run().map_err(|error| shared.database.explain(error))
}

fn refuse_imports(conn: &Connection) -> Result<()> {
    let imports = leases::describe_imports(conn)?;
    if imports.is_empty() {
        return Ok(());
    }
    Err(Error::Busy(format!(
        "no repair while something is being imported ({}); nothing was changed, try again when it is done",
        imports.join(", ")
    )))
}

/// What is bad now, under the write lock.
fn look_again(
    shared: &Arc<Shared>,
    conn: &Connection,
    options: &FsckOptions<'_>,
    found: &Damage,
) -> Result<Damage> {
    let mut check = Check::new(options, &|_| {});
    for chunk in &found.chunk_list {
        if let Err(Error::Corrupt(_)) = bytes::verify(conn, *chunk) {
            check.damage.chunk(*chunk);
        }
    }
    if !found.blobs.is_empty() {
        check.blobs(conn, !options.fast)?;
    }
    check.rows(conn)?;
    let mut damage = check.damage;
    for (layer, diff_id) in &found.layers {
        // Not bad by its rows: then its tar was, if it still is.
        if !options.fast
            && !damage.layers.contains_key(layer)
            && let Err(Error::Corrupt(_)) =
                export::write_layer_tar(shared, diff_id, &mut std::io::sink())
        {
            damage.layers.insert(*layer, *diff_id);
        }
    }
    Ok(damage)
}

fn apply(conn: &Connection, damage: &Damage, done: &mut Vec<String>) -> Result<()> {
    for (layer, diff_id) in &damage.layers {
        let holders = leases::describe_holders(conn, *layer)?;
        if !holders.is_empty() {
            return Err(Error::Busy(format!(
                "layer {diff_id} is damaged and must go, but is in use by {}; nothing was changed, try again when it \
                 is free",
                holders.join(", ")
            )));
        }
    }
    let mut doomed = damage.images.clone();
    for layer in damage.layers.keys() {
        let mut statement =
            conn.prepare_cached("SELECT image FROM image_layer WHERE layer = ?1")?;
        for image in statement.query_map([layer], |row| row.get(0))? {
            doomed.insert(image?);
        }
    }
    for image in doomed {
        let names = names_of(conn, image)?;
        images::forget(conn, image)?;
        done.push(format!("removed image {}", names.join(", ")));
    }
    for (layer, diff_id) in &damage.layers {
        layers::remove(conn, *layer)?;
        done.push(format!("removed layer {diff_id}"));
    }
    for content in &damage.content_list {
        conn.execute("DELETE FROM extent WHERE content = ?1", [content])?;
        conn.execute("DELETE FROM content WHERE id = ?1", [content])?;
    }
    for chunk in &damage.chunk_list {
        conn.execute("DELETE FROM chunk WHERE id = ?1", [chunk])?;
    }
    for (count, what) in [
        (damage.content_list.len(), "contents"),
        (damage.chunk_list.len(), "chunks"),
    ] {
        if count > 0 {
            done.push(format!("forgot {count} damaged {what}"));
        }
    }
    for document in &damage.documents {
        conn.execute("DELETE FROM document WHERE id = ?1", [document])?;
        done.push("removed a damaged document".to_owned());
    }
    for blob in &damage.blobs {
        blobs::discard(conn, blob)?;
        done.push(format!("forgot the compressed blob {blob}"));
    }
    for (what, sql) in ORPHANS {
        let count = conn.execute(sql, [])?;
        if count > 0 {
            done.push(format!("removed {count} {what}"));
        }
    }
    images::drop_documents(conn)?;
    recount(conn, done)
}

/// Sets counts and counters to what is there.
fn recount(conn: &Connection, done: &mut Vec<String>) -> Result<()> {
    let mut counted = 0;
    for (layer, _) in layers::all(conn)? {
        let (_, files_size) = trees::counts(conn, layer)?;
        counted += conn.execute(
            "UPDATE layer SET files_size = ?2 WHERE id = ?1 AND files_size != ?2",
            (layer, files_size as i64),
        )?;
        counted += conn.execute(
            "UPDATE inode SET nlink = d.names FROM
                (SELECT ino, count(*) AS names FROM dentry WHERE layer = ?1 AND ino != 0 GROUP BY ino) AS d
             WHERE inode.layer = ?1 AND inode.ino = d.ino AND inode.kind != 2 AND inode.nlink != d.names",
            [layer],
        )?;
        counted += conn.execute(
            "UPDATE inode SET nlink = 2 + d.dirs FROM
                (SELECT i.ino AS ino, (SELECT count(*) FROM dentry AS e
                    WHERE e.layer = ?1 AND e.parent = i.ino AND e.kind = 2) AS dirs
                 FROM inode AS i WHERE i.layer = ?1 AND i.kind = 2) AS d
             WHERE inode.layer = ?1 AND inode.ino = d.ino AND inode.nlink != 2 + d.dirs",
            [layer],
        )?;
    }
    for sequence in Sequence::ALL {
        counted += usize::from(rows::mend_counter(conn, sequence)?);
    }
    if counted > 0 {
        done.push(format!("corrected {counted} counts"));
    }
    Ok(())
}

/// The rows must be clean now.
fn prove(conn: &Connection, options: &FsckOptions<'_>) -> Result<()> {
    let mut check = Check::new(options, &|_| {});
    check.rows(conn)?;
    match check.report.problems.first() {
        None => Ok(()),
        Some(left) => Err(Error::Corrupt(format!(
            "it cannot be repaired and nothing was changed, for this would be left: {}: {}; export what can be \
             exported, and import it into a new store",
            left.what, left.why
        ))),
    }
}
