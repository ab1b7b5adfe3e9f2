//! The tables of `store.db`, how they are made, and how an existing file is told to be ours.
//!
//! The text below is the format: a store's schema must equal it to the letter, so a crafted file with views, triggers or
//! altered tables is refused before anything else in it is read. `docs/store-format.md` explains every column.

use std::path::Path;

use rusqlite::Connection;

use super::{Error, Result};

/// `PRAGMA application_id`: "ovl1".
pub(super) const APPLICATION_ID: i64 = 0x6f76_6c31;
/// `PRAGMA user_version` of the newest format this program reads and writes.
pub(super) const VERSION: i64 = 2;
/// Bytes; fixed when the file is made. See the measurements in `docs/store-format.md`.
pub(super) const PAGE_SIZE: i64 = 4096;

/// Name and text of every table.
const TABLES: [(&str, &str); 19] = [
    (
        "sequence",
        "CREATE TABLE sequence (name TEXT PRIMARY KEY, next INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    ),
    (
        "pack",
        "CREATE TABLE pack (id INTEGER PRIMARY KEY, raw_len INTEGER NOT NULL, codec INTEGER NOT NULL, \
         data BLOB NOT NULL) STRICT",
    ),
    (
        "chunk",
        "CREATE TABLE chunk (id INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, pack INTEGER NOT NULL, \
         offset INTEGER NOT NULL, len INTEGER NOT NULL) STRICT",
    ),
    (
        "content",
        "CREATE TABLE content (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, \
         data_size INTEGER NOT NULL) STRICT",
    ),
    (
        "extent",
        "CREATE TABLE extent (content INTEGER NOT NULL, start INTEGER NOT NULL, list BLOB NOT NULL, \
         PRIMARY KEY (content, start)) STRICT, WITHOUT ROWID",
    ),
    (
        "layer",
        "CREATE TABLE layer (id INTEGER PRIMARY KEY, diff_id BLOB NOT NULL UNIQUE, tar_size INTEGER NOT NULL, \
         files_size INTEGER NOT NULL, entries INTEGER NOT NULL, created_s INTEGER NOT NULL, \
         created_ns INTEGER NOT NULL) STRICT",
    ),
    (
        "inode",
        "CREATE TABLE inode (layer INTEGER NOT NULL, ino INTEGER NOT NULL, kind INTEGER NOT NULL, \
         perm INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, mtime_s INTEGER NOT NULL, \
         mtime_ns INTEGER NOT NULL, size INTEGER NOT NULL, data_size INTEGER, nlink INTEGER NOT NULL, \
         rdev INTEGER NOT NULL, flags INTEGER NOT NULL, content INTEGER NOT NULL, target BLOB, xattrs BLOB, \
         PRIMARY KEY (layer, ino)) STRICT, WITHOUT ROWID",
    ),
    (
        "dentry",
        "CREATE TABLE dentry (layer INTEGER NOT NULL, parent INTEGER NOT NULL, name BLOB NOT NULL, \
         ino INTEGER NOT NULL, kind INTEGER NOT NULL, PRIMARY KEY (layer, parent, name)) STRICT, WITHOUT ROWID",
    ),
    (
        "recipe",
        "CREATE TABLE recipe (layer INTEGER NOT NULL, seq INTEGER NOT NULL, ops BLOB NOT NULL, \
         raw_len INTEGER NOT NULL, literals BLOB NOT NULL, PRIMARY KEY (layer, seq)) STRICT, WITHOUT ROWID",
    ),
    (
        "document",
        "CREATE TABLE document (id INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, data BLOB NOT NULL) STRICT",
    ),
    (
        "image",
        "CREATE TABLE image (id INTEGER PRIMARY KEY, manifest BLOB NOT NULL UNIQUE, media_type TEXT NOT NULL, \
         config BLOB NOT NULL, imported_s INTEGER NOT NULL, imported_ns INTEGER NOT NULL) STRICT",
    ),
    (
        "image_layer",
        "CREATE TABLE image_layer (image INTEGER NOT NULL, position INTEGER NOT NULL, layer INTEGER NOT NULL, \
         PRIMARY KEY (image, position)) STRICT, WITHOUT ROWID",
    ),
    (
        "name",
        "CREATE TABLE name (name TEXT PRIMARY KEY, image INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    ),
    (
        "lease",
        "CREATE TABLE lease (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, pid INTEGER NOT NULL, \
         start INTEGER NOT NULL, boot TEXT NOT NULL, pid_namespace INTEGER NOT NULL, purpose TEXT NOT NULL, \
         created_s INTEGER NOT NULL) STRICT",
    ),
    (
        "lease_layer",
        "CREATE TABLE lease_layer (lease INTEGER NOT NULL, layer INTEGER NOT NULL, \
         PRIMARY KEY (lease, layer)) STRICT, WITHOUT ROWID",
    ),
    (
        "blob",
        "CREATE TABLE blob (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, layer INTEGER NOT NULL, \
         size INTEGER NOT NULL, method INTEGER NOT NULL, parts INTEGER NOT NULL, stored INTEGER NOT NULL, \
         parts_sha256 BLOB NOT NULL) STRICT",
    ),
    (
        "blob_part",
        "CREATE TABLE blob_part (blob INTEGER NOT NULL, seq INTEGER NOT NULL, data BLOB NOT NULL, \
         PRIMARY KEY (blob, seq)) STRICT, WITHOUT ROWID",
    ),
    (
        "image_blob",
        "CREATE TABLE image_blob (image INTEGER NOT NULL, blob INTEGER NOT NULL, PRIMARY KEY (image, blob)) \
         STRICT, WITHOUT ROWID",
    ),
    (
        "name_index",
        "CREATE TABLE name_index (name TEXT NOT NULL, position INTEGER NOT NULL, document BLOB NOT NULL, \
         PRIMARY KEY (name, position)) STRICT, WITHOUT ROWID",
    ),
];

/// The id counters. Ids are never used twice, not even after `gc`: caches in other processes are keyed by them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sequence {
    Pack,
    Chunk,
    Content,
    Layer,
    Lease,
    Blob,
}

impl Sequence {
    pub(super) const ALL: [Self; 6] = [
        Self::Pack,
        Self::Chunk,
        Self::Content,
        Self::Layer,
        Self::Lease,
        Self::Blob,
    ];

    /// Also the name of the table whose ids it counts.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Chunk => "chunk",
            Self::Content => "content",
            Self::Layer => "layer",
            Self::Lease => "lease",
            Self::Blob => "blob",
        }
    }

    /// Takes `count` consecutive ids and gives the first. Must run in a transaction that will be committed.
    pub(super) fn take(self, conn: &Connection, count: i64) -> Result<i64> {
        let next: i64 = conn
            .prepare_cached("UPDATE sequence SET next = next + ?2 WHERE name = ?1 RETURNING next")?
            .query_row((self.name(), count), |row| row.get(0))
            .map_err(|error| match error {
                rusqlite::Error::QueryReturnedNoRows => {
                    Error::Corrupt(format!("the counter of {} ids is missing", self.name()))
                }
                other => other.into(),
            })?;
        // ContentRef doubles an id, so half the range must do.
        if next - count < 1 || next > i64::MAX / 4 {
            return Err(Error::Corrupt(format!(
                "the counter of {} ids stands at {next}",
                self.name()
            )));
        }
        Ok(next - count)
    }
}

/// What a database file turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No tables and no application id: a file whose making was interrupted, or an empty one.
    Empty,
    /// A store of the current version.
    Store,
    /// A store of an older version; [`migrate`] brings it up to date.
    Older(i64),
}

fn pragma(conn: &Connection, name: &str) -> Result<i64> {
    Ok(conn.pragma_query_value(None, name, |row| row.get(0))?)
}

/// Tells what `conn` has open, refusing what is no store of ours.
pub(super) fn identify(conn: &Connection, path: &Path) -> Result<Found> {
    let not_ours = |reason: &str| Error::NotAStore {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    // Another process may be making the tables just now: the length comes first, the rest is one snapshot.
    let len = std::fs::metadata(path).map_or(0, |meta| meta.len());
    let conn = &*conn.unchecked_transaction()?;
    let (application, version) = (
        pragma(conn, "application_id")?,
        pragma(conn, "user_version")?,
    );
    // What was cut off in the making, SQLite has rolled back by now, to nothing.
    let still = || std::fs::metadata(path).map_or(0, |meta| meta.len());
    if len > 0 && pragma(conn, "page_count")? == 0 && still() > 0 {
        // SQLite takes less than a page for an empty database, and would write over it.
        return Err(not_ours("it is no database, or was cut short"));
    }
    if application == 0 && version == 0 {
        let objects: i64 =
            conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        return if objects == 0 {
            Ok(Found::Empty)
        } else {
            Err(not_ours("it is some other program's database"))
        };
    }
    if application != APPLICATION_ID {
        return Err(not_ours("it is some other program's database"));
    }
    match version {
        VERSION => check_tables(conn, path, VERSION).map(|()| Found::Store),
        v if v > VERSION => Err(Error::NewerFormat {
            path: path.to_owned(),
            found: v,
            known: VERSION,
        }),
        v if v > 0 => Ok(Found::Older(v)),
        _ => Err(not_ours("its format version is not a positive number")),
    }
}

/// Tables that version 1 had not.
const SINCE_2: [&str; 4] = ["blob", "blob_part", "image_blob", "name_index"];

/// The tables of a version.
fn tables_of(version: i64) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    TABLES
        .iter()
        .filter(move |(name, _)| version >= 2 || !SINCE_2.contains(name))
}

/// Compares the schema with that of `version`, to the letter.
fn check_tables(conn: &Connection, path: &Path, version: i64) -> Result<()> {
    let damaged = |what: String| Error::NotAStore {
        path: path.to_owned(),
        reason: what,
    };
    let mut seen = 0;
    let mut statement = conn.prepare("SELECT type, name, sql FROM sqlite_schema")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, name, sql): (String, String, Option<String>) =
            (row.get(0)?, row.get(1)?, row.get(2)?);
        match tables_of(version).find(|(table, _)| *table == name) {
            Some((_, expected)) if kind == "table" && sql.as_deref() == Some(*expected) => {
                seen += 1
            }
            // Indexes that UNIQUE implies have no text of their own.
            None if kind == "index" && sql.is_none() && name.starts_with("sqlite_autoindex_") => {}
            _ => return Err(damaged(format!("it holds an unexpected {kind} {name:?}"))),
        }
    }
    if seen == tables_of(version).count() {
        Ok(())
    } else {
        Err(damaged("tables are missing".to_owned()))
    }
}

/// Makes the tables in an empty database. Safe against another process doing the same.
pub(super) fn create(conn: &mut Connection) -> Result<()> {
    let transaction = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    if pragma(&transaction, "user_version")? == 0 {
        for (_, sql) in TABLES {
            transaction.execute(sql, [])?;
        }
        for sequence in Sequence::ALL {
            transaction.execute(
                "INSERT INTO sequence (name, next) VALUES (?1, 1)",
                [sequence.name()],
            )?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()?;
    Ok(())
}

/// A step of the migration ladder: brings a store from version `from` to `from + 1` inside a transaction.
type Step = fn(&Connection) -> Result<()>;

/// `LADDER[n]` leads from version `n + 1` to `n + 2`.
const LADDER: [Step; (VERSION - 1) as usize] = [to_version_2];

/// Version 2 keeps the compressed blobs that layers came in, and the indexes that names came with.
fn to_version_2(conn: &Connection) -> Result<()> {
    for (_, sql) in TABLES.iter().filter(|(name, _)| SINCE_2.contains(name)) {
        conn.execute(sql, [])?;
    }
    conn.execute("INSERT INTO sequence (name, next) VALUES ('blob', 1)", [])?;
    Ok(())
}

/// Brings an older store up to date, all steps in one transaction.
pub(super) fn migrate(conn: &mut Connection, path: &Path) -> Result<()> {
    let transaction = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version = pragma(&transaction, "user_version")?;
    check_tables(&transaction, path, version)?;
    for step in LADDER
        .iter()
        .skip(version.saturating_sub(1).try_into().unwrap_or(usize::MAX))
    {
        step(&transaction)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    check_tables(&transaction, path, VERSION)?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Connection {
        let mut conn = Connection::open_in_memory().unwrap();
        assert_eq!(identify(&conn, Path::new("x")).unwrap(), Found::Empty);
        create(&mut conn).unwrap();
        conn
    }

    #[test]
    fn what_create_makes_identify_knows() {
        let mut conn = fresh();
        assert_eq!(identify(&conn, Path::new("x")).unwrap(), Found::Store);
        create(&mut conn).unwrap();
        assert_eq!(identify(&conn, Path::new("x")).unwrap(), Found::Store);
    }

    #[test]
    fn foreign_newer_and_tampered_databases_are_refused() {
        for (sql, want) in [
            ("PRAGMA application_id = 7", "some other program's database"),
            (
                "PRAGMA application_id = 0; PRAGMA user_version = 0",
                "some other program's database",
            ),
            ("PRAGMA user_version = 3", "use a newer ovl"),
            ("PRAGMA user_version = -1", "not a positive number"),
            ("CREATE VIEW v AS SELECT 1", "unexpected view \"v\""),
            (
                "CREATE TRIGGER t AFTER INSERT ON name BEGIN DELETE FROM name; END",
                "unexpected trigger \"t\"",
            ),
            ("CREATE INDEX i ON chunk (pack)", "unexpected index \"i\""),
            ("DROP TABLE name", "tables are missing"),
            (
                "ALTER TABLE pack ADD COLUMN x INTEGER",
                "unexpected table \"pack\"",
            ),
        ] {
            let conn = fresh();
            conn.execute_batch(sql).unwrap();
            let error = identify(&conn, Path::new("x")).unwrap_err().to_string();
            assert!(error.contains(want), "{sql}: {error}");
        }
    }

    /// As version 1 made it.
    fn version_1() -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        for (_, sql) in tables_of(1) {
            conn.execute(sql, []).unwrap();
        }
        for sequence in &Sequence::ALL[..5] {
            conn.execute("INSERT INTO sequence VALUES (?1, 7)", [sequence.name()])
                .unwrap();
        }
        conn.pragma_update(None, "application_id", APPLICATION_ID)
            .unwrap();
        conn.pragma_update(None, "user_version", 1).unwrap();
        conn
    }

    #[test]
    fn an_older_store_is_brought_up_to_date() {
        let (mut conn, path) = (version_1(), Path::new("x"));
        assert_eq!(identify(&conn, path).unwrap(), Found::Older(1));
        migrate(&mut conn, path).unwrap();
        assert_eq!(identify(&conn, path).unwrap(), Found::Store);
        assert_eq!(Sequence::Blob.take(&conn, 1).unwrap(), 1);
        assert_eq!(Sequence::Layer.take(&conn, 1).unwrap(), 7);
        // Another process was faster.
        migrate(&mut conn, path).unwrap();
        assert_eq!(identify(&conn, path).unwrap(), Found::Store);
    }

    #[test]
    fn a_tampered_older_store_is_refused_as_it_is() {
        for (sql, want) in [
            ("CREATE VIEW v AS SELECT 1", "unexpected view \"v\""),
            ("DROP TABLE sequence", "tables are missing"),
            (
                "CREATE TABLE blob (id INTEGER) STRICT",
                "unexpected table \"blob\"",
            ),
        ] {
            let mut conn = version_1();
            conn.execute_batch(sql).unwrap();
            let error = migrate(&mut conn, Path::new("x")).unwrap_err().to_string();
            assert!(error.contains(want), "{sql}: {error}");
            assert_eq!(pragma(&conn, "user_version").unwrap(), 1, "{sql}");
        }
    }

    #[test]
    fn ids_are_consecutive_and_a_wild_counter_is_damage() {
        let conn = fresh();
        assert_eq!(Sequence::Chunk.take(&conn, 10).unwrap(), 1);
        assert_eq!(Sequence::Chunk.take(&conn, 1).unwrap(), 11);
        for wild in [0, -5, i64::MAX / 2] {
            conn.execute("UPDATE sequence SET next = ?1", [wild])
                .unwrap();
            assert!(
                matches!(Sequence::Chunk.take(&conn, 1), Err(Error::Corrupt(_))),
                "{wild}"
            );
        }
    }
}
