//! Sweeping: rows of layers that are gone, blobs that no image has, contents and chunks that no layer uses.

use rusqlite::{Connection, OptionalExtension};

use super::super::{Result, blobs, leases};
use super::Collector;
use super::mark::Marked;

/// Rows removed in one transaction. Chunks lie scattered over the index of their names, so each may cost a page.
const ROWS: usize = 2048;
/// Rows looked at by one statement.
const PAGE: usize = 4096;
/// Parts of blobs removed in one transaction; each may be 4 MiB.
const PARTS: i64 = 8;

/// What belongs to a layer by its id: the table, and for a bounded removal the statement that gives the key of the row
/// behind the first so many, and the one that removes what lies before such a key.
struct Owned {
    table: &'static str,
    border: &'static str,
    before: &'static str,
}

const OWNED: [Owned; 3] = [
    Owned {
        table: "dentry",
        border: "SELECT parent, name FROM dentry WHERE layer = ?1 ORDER BY parent, name LIMIT 1 OFFSET ?2",
        before: "DELETE FROM dentry WHERE layer = ?1 AND (parent, name) < (?2, ?3)",
    },
    Owned {
        table: "inode",
        border: "SELECT ino, NULL FROM inode WHERE layer = ?1 ORDER BY ino LIMIT 1 OFFSET ?2",
        before: "DELETE FROM inode WHERE layer = ?1 AND ino < ?2 AND ?3 IS NULL",
    },
    Owned {
        table: "recipe",
        border: "SELECT seq, NULL FROM recipe WHERE layer = ?1 ORDER BY seq LIMIT 1 OFFSET ?2",
        before: "DELETE FROM recipe WHERE layer = ?1 AND seq < ?2 AND ?3 IS NULL",
    },
];

/// A table whose rows layers share: which of them are used, and what removes one by its id.
struct Sweep {
    table: &'static str,
    used: fn(&Marked, i64) -> bool,
    remove: &'static [&'static str],
}

const SWEEPS: [Sweep; 2] = [
    Sweep {
        table: "content",
        used: |marked, id| marked.contents.contains(id),
        remove: &[
            "DELETE FROM extent WHERE content = ?1",
            "DELETE FROM content WHERE id = ?1",
        ],
    },
    // After contents, which refer to them.
    Sweep {
        table: "chunk",
        used: |marked, id| marked.chunks.contains(id),
        remove: &["DELETE FROM chunk WHERE id = ?1"],
    },
];

impl Collector<'_> {
    /// Removes the rows of layers that are gone. A layer's id never comes back, so they cannot become anybody's.
    pub(super) fn rows_of_gone_layers(&mut self) -> Result<()> {
        for owned in OWNED {
            let gone = self
                .database
                .read(|conn| gone(conn, owned.table, "layer", "layer"))?;
            for layer in gone {
                loop {
                    let more = self.transaction(|tx| {
                        // Recipes hold much in few rows.
                        let rows = if owned.table == "recipe" { 32 } else { ROWS };
                        let border: Option<(i64, Option<Vec<u8>>)> = tx
                            .prepare_cached(owned.border)?
                            .query_row((layer, rows as i64), |row| Ok((row.get(0)?, row.get(1)?)))
                            .optional()?;
                        let removed = match &border {
                            Some((key, name)) => tx
                                .prepare_cached(owned.before)?
                                .execute((layer, key, name))?,
                            None => tx.execute(
                                &format!("DELETE FROM {} WHERE layer = ?1", owned.table),
                                [layer],
                            )?,
                        };
                        if removed == 0 && border.is_some() {
                            return Err(super::out_of_order());
                        }
                        Ok(border.is_some())
                    })?;
                    if !more {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes blobs that no image has, and parts that belong to no blob: those an import has written have none yet, so
    /// `false` if one came.
    pub(super) fn blobs(&mut self, marked: &mut Marked) -> Result<bool> {
        let swept = self.transaction(|tx| {
            let may = may_sweep(tx, marked)?;
            if may {
                blobs::sweep(tx)?;
            }
            Ok(may)
        })?;
        if !swept {
            return Ok(false);
        }
        let gone = self
            .database
            .read(|conn| gone(conn, "blob_part", "blob", "blob"))?;
        for blob in gone {
            loop {
                let removed = self.transaction(|tx| {
                    if !may_sweep(tx, marked)? {
                        return Ok(None);
                    }
                    let removed = tx
                        .prepare_cached(
                            "DELETE FROM blob_part WHERE blob = ?1 AND NOT EXISTS (SELECT 1 FROM blob WHERE id = ?1)
                             AND seq IN (SELECT seq FROM blob_part WHERE blob = ?1 ORDER BY seq LIMIT ?2)",
                        )?
                        .execute((blob, PARTS))?;
                    Ok(Some(removed))
                })?;
                match removed {
                    None => return Ok(false),
                    Some(0) => break,
                    Some(_) => {}
                }
            }
        }
        Ok(true)
    }

    /// Removes contents, then chunks, that no layer uses. `false`: an import came, and the rest stays for next time.
    pub(super) fn unused(&mut self, marked: &mut Marked) -> Result<bool> {
        for Sweep {
            table,
            used,
            remove,
        } in SWEEPS
        {
            let mut after = i64::MIN;
            loop {
                let (unused, last) = self
                    .database
                    .read(|conn| unused(conn, table, after, |id| used(marked, id)))?;
                if !unused.is_empty() {
                    let removed = self.transaction(|tx| {
                        if !may_sweep(tx, marked)? {
                            return Ok(None);
                        }
                        let mut removed = 0;
                        for id in unused.iter().filter(|id| !used(marked, **id)) {
                            for sql in remove {
                                removed += tx.prepare_cached(sql)?.execute([id])?;
                            }
                        }
                        Ok(Some(removed as u64))
                    })?;
                    match removed {
                        None => return Ok(false),
                        Some(removed) if table == "chunk" => self.report.chunks += removed,
                        Some(_) => {}
                    }
                }
                match last {
                    Some(last) => after = last,
                    None => break,
                }
            }
        }
        Ok(true)
    }
}

/// Under the write lock: whether what is unmarked is unused. It is if no import is running, for only an import knows of
/// rows that no layer has yet, and if every layer there is has been marked.
fn may_sweep(conn: &Connection, marked: &mut Marked) -> Result<bool> {
    if !leases::describe_imports(conn)?.is_empty() {
        return Ok(false);
    }
    marked.extend(conn, &Default::default(), || ())?;
    Ok(true)
}

/// What `table` has rows of, by `column`, and that is not in `owners`.
fn gone(conn: &Connection, table: &str, column: &str, owners: &str) -> Result<Vec<i64>> {
    let mut gone = Vec::new();
    let mut next = conn.prepare(&format!(
        "SELECT min({column}) FROM {table} WHERE {column} > ?1"
    ))?;
    let mut there = conn.prepare(&format!("SELECT count(*) > 0 FROM {owners} WHERE id = ?1"))?;
    let mut after = i64::MIN;
    while let Some(owner) = next.query_row([after], |row| row.get::<_, Option<i64>>(0))? {
        if owner <= after {
            return Err(super::out_of_order());
        }
        if !there.query_row([owner], |row| row.get::<_, bool>(0))? {
            gone.push(owner);
        }
        after = owner;
    }
    Ok(gone)
}

/// The next ids of a table that are not used, at most [`ROWS`], and how far that looked (`None`: to the end).
fn unused(
    conn: &Connection,
    table: &str,
    mut after: i64,
    used: impl Fn(i64) -> bool,
) -> Result<(Vec<i64>, Option<i64>)> {
    let mut page = conn.prepare_cached(&format!(
        "SELECT id FROM {table} WHERE id > ?1 ORDER BY id LIMIT ?2"
    ))?;
    let mut found = Vec::new();
    loop {
        let ids: Vec<i64> = page
            .query_map((after, PAGE as i64), |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        if ids.is_empty() {
            return Ok((found, None));
        }
        for id in ids {
            if id <= after {
                return Err(super::out_of_order());
            }
            if !used(id) {
                found.push(id);
            }
            after = id;
            if found.len() == ROWS {
                return Ok((found, Some(after)));
            }
        }
    }
}
