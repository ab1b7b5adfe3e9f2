//! Connections to `store.db`: how they are opened, hardened and pooled.
//!
//! Readers are read-only, pooled and shared by all threads of the process, one at a time each; WAL mode means no writer
//! ever blocks them. Writers are opened for one job and closed. Connections do not survive a fork (POSIX locks belong to
//! a process), so a store opened before a fork refuses to work after it instead of damaging itself. A read that the disk
//! fails is an I/O error, and never told as damage.

use std::ffi::CStr;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::checkpoint::{Checkpointer, LogGrowth};
use super::damage::Noted;
use super::place::Place;
use super::schema::{self, Found};
use super::{Error, Result};
use crate::sys::sqlite;

const _: () = assert!(schema::PAGE_SIZE == sqlite::PAGE as i64);

/// How long a writer waits for another, unless [`BUSY_VARIABLE`] says otherwise. Batches hold the lock for well under a
/// second; only publishing a layer of millions of entries, or a repair, takes longer.
const BUSY_SECONDS: u64 = 60;
/// Seconds to wait for other writers.
const BUSY_VARIABLE: &str = "OVL_BUSY_SECONDS";
/// Idle readers kept; more are opened when more threads read at once, and closed afterwards.
const IDLE_READERS: usize = 8;
/// Largest row or value, bytes: well above an 8 MiB config document, well below what could hurt.
pub(super) const MAX_VALUE: i32 = 32 << 20;
/// Bytes of database pages each kind of connection may cache. Packs have their own cache.
const READER_CACHE: i64 = 1 << 20;
const WRITER_CACHE: i64 = 8 << 20;
/// The log is written back to the database when it reaches this size.
const WAL_LIMIT: i64 = 32 << 20;
/// Small transactions leave it to others up to this size.
const LOG_TOLERATED: i64 = 8 * WAL_LIMIT;
/// A larger log is emptied when the store is closed, bytes.
const LOG_KEPT: u64 = 256 << 10;

/// One open database.
pub(super) struct Database {
    pub(super) place: Place,
    pid: u32,
    /// Device and inode number of the database file, since it was first opened.
    file: OnceLock<(u64, u64)>,
    readers: Mutex<Vec<Connection>>,
    turn: Mutex<()>,
    pub(super) noted: Noted,
    /// Started by the first import.
    checkpointer: Mutex<Option<Checkpointer>>,
}

/// How hard a writer's commits are pressed to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// In order, but a power cut may lose the last commits: for chunks that nothing refers to yet.
    Ordered,
    /// On the disk, together with everything committed before, when the commit returns.
    Durable,
}

impl Database {
    /// Opens the database at `place`, making or migrating its tables if `make`. `Ok(None)`: there is no store yet.
    pub(super) fn open(place: Place, make: bool) -> Result<Option<Self>> {
        let database = Self {
            place,
            pid: std::process::id(),
            file: OnceLock::new(),
            readers: Mutex::default(),
            turn: Mutex::default(),
            noted: Noted::default(),
            checkpointer: Mutex::default(),
        };
        let in_store = |error: Error| match error {
            Error::Corrupt(reason) => Error::NotAStore {
                path: database.place.database.clone(),
                reason,
            },
            other => other.in_store(&database.place.root),
        };
        let path = &database.place.database;
        let access = if database.place.read_only {
            OpenFlags::SQLITE_OPEN_READ_ONLY
        } else {
            OpenFlags::SQLITE_OPEN_READ_WRITE
        };
        let mut conn = database.connect(access, None).map_err(in_store)?;
        match schema::identify(&conn, path).map_err(in_store)? {
            Found::Store => {}
            Found::Older(_) => schema::migrate(&mut conn, path).map_err(in_store)?,
            Found::Empty if !make => return Ok(None),
            Found::Empty => {
                let made = (|| {
                    conn.pragma_update(None, "page_size", schema::PAGE_SIZE)?;
                    conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
                    let mode: String =
                        conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| {
                            row.get(0)
                        })?;
                    if mode != "wal" {
                        let message = format!(
                            "this file system cannot hold a write-ahead log (got mode {mode})"
                        );
                        return Err(Error::Sqlite {
                            root: database.place.root.clone(),
                            message,
                        });
                    }
                    conn.pragma_update(None, "synchronous", "FULL")?;
                    schema::create(&mut conn)
                })();
                made.map_err(|error| error.in_store(&database.place.root))?;
            }
        }
        // Closing the only connection would write the log back, remove it, and wait for the disk three times, for the next
        // one to make it anew.
        drop(database.reader().map_err(in_store)?);
        Ok(Some(database))
    }

    /// With a VFS of this name, or the standard one.
    fn connect(&self, access: OpenFlags, vfs: Option<&CStr>) -> Result<Connection> {
        if std::process::id() != self.pid {
            return Err(Error::Misuse(
                "a store opened before a fork cannot be used after it; open it again",
            ));
        }
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        if !crate::sys::tell_failed_reads_of_sqlite() {
            tracing::debug!("SQLite will tell a read that fails as damage");
        }
        let conn = if self.place.read_only && self.place.log_bytes()? == 0 {
            // SQLite cannot make the files beside it, and without a log needs none. What it is told is true as long as
            // nobody writes through another mount of the same file system.
            let flags = flags | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(immutable_uri(&self.place.database), flags)?
        } else if let Some(vfs) = vfs {
            Connection::open_with_flags_and_vfs(&self.place.database, flags, vfs)?
        } else {
            Connection::open_with_flags(&self.place.database, flags)?
        };
        self.must_be_the_same()?;
        conn.busy_timeout(busy_timeout())?;
        for (option, value) in [
            (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
            (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
            (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
            (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
            (DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false),
            (DbConfig::SQLITE_DBCONFIG_DQS_DML, false),
            (DbConfig::SQLITE_DBCONFIG_DQS_DDL, false),
            (DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_CREATE, false),
            (DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE, false),
            // Else a statement whose plan could depend on what is bound to it is prepared anew for each value.
            (DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true),
        ] {
            conn.set_db_config(option, value)?;
        }
        for (limit, value) in [
            (Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE),
            (Limit::SQLITE_LIMIT_SQL_LENGTH, 1 << 16),
            (Limit::SQLITE_LIMIT_ATTACHED, 0),
            (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
            (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
            (Limit::SQLITE_LIMIT_EXPR_DEPTH, 50),
        ] {
            conn.set_limit(limit, value)?;
        }
        conn.pragma_update(None, "cell_size_check", true)?;
        // A database file cut short under a memory map would be SIGBUS instead of an error.
        conn.pragma_update(None, "mmap_size", 0)?;
        conn.set_prepared_statement_cache_capacity(64);
        Ok(conn)
    }

    /// Row numbers, leases among them, mean other things in another store: one that has taken this one's path while it is
    /// in use is an error.
    fn must_be_the_same(&self) -> Result<()> {
        let path = &self.place.database;
        let meta = std::fs::metadata(path).map_err(Error::io(path))?;
        let found = (meta.dev(), meta.ino());
        if *self.file.get_or_init(|| found) == found {
            return Ok(());
        }
        let why = "another store has taken its place while it was in use";
        Err(Error::io(path)(std::io::Error::other(why)))
    }

    /// A pooled read-only connection.
    pub(super) fn reader(&self) -> Result<Reader<'_>> {
        let idle = self
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let conn = match idle {
            Some(conn) if std::process::id() == self.pid => conn,
            // Closing it here would drop the parent's locks: leave it be.
            Some(conn) => {
                std::mem::forget(conn);
                return Err(Error::Misuse(
                    "a store opened before a fork cannot be used after it; open it again",
                ));
            }
            None => {
                let conn = self.connect(OpenFlags::SQLITE_OPEN_READ_ONLY, None)?;
                conn.pragma_update(None, "cache_size", -(READER_CACHE >> 10))?;
                conn
            }
        };
        Ok(Reader {
            database: self,
            conn: Some(conn),
        })
    }

    /// A connection that may write.
    pub(super) fn writer(&self, durability: Durability) -> Result<Connection> {
        self.place.must_be_writable()?;
        let vfs = sqlite::gathering();
        if vfs.is_none() {
            tracing::debug!("SQLite's small writes will not be gathered");
        }
        let conn = self.connect(OpenFlags::SQLITE_OPEN_READ_WRITE, vfs)?;
        conn.pragma_update(None, "cache_size", -(WRITER_CACHE >> 10))?;
        conn.pragma_update(None, "temp_store", "FILE")?;
        conn.pragma_update(None, "wal_autocheckpoint", WAL_LIMIT / schema::PAGE_SIZE)?;
        // After a checkpoint the log file is cut back to this.
        conn.pragma_update(None, "journal_size_limit", WAL_LIMIT)?;
        set_durability(&conn, durability)?;
        Ok(conn)
    }

    /// Held by a thread of this process for one write transaction. SQLite admits one writer, too, but lets the others
    /// sleep and ask again; this wakes them.
    pub(super) fn write_turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a writer that leaves the log to the thread that writes it back.
    pub(super) fn log_growth(&self) -> Result<LogGrowth> {
        let mut checkpointer = self
            .checkpointer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let checkpointer = match &mut *checkpointer {
            Some(running) => running,
            none => none.insert(Checkpointer::start(self)?),
        };
        Ok(checkpointer.growth())
    }

    /// Runs `change` in one durable write transaction; an error undoes all of it.
    pub(super) fn write<T>(&self, change: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        self.write_with(Durability::Durable, change)
    }

    /// The same, without waiting for the disk: for what no longer matters after a power cut.
    pub(super) fn write_ordered<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        self.write_with(Durability::Ordered, change)
    }

    pub(super) fn write_with<T>(
        &self,
        durability: Durability,
        change: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let run = || {
            let mut conn = self.writer(durability)?;
            // A few rows should not have to write back what an import beside them left in the log.
            conn.pragma_update(
                None,
                "wal_autocheckpoint",
                LOG_TOLERATED / schema::PAGE_SIZE,
            )?;
            let _turn = self.write_turn();
            let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(|error| self.explain(error))
    }

    /// Runs `query` on a reader.
    pub(super) fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        self.reader()
            .and_then(|reader| query(&reader))
            .map_err(|error| error.in_store(&self.place.root))
    }

    /// Adds to an error what the store knows: its place, and who holds it.
    pub(super) fn explain(&self, error: Error) -> Error {
        match error {
            // Said by us, with the reason.
            Error::Busy(reason) if reason != super::error::BUSY => Error::Busy(reason),
            Error::Busy(_) => {
                let mut holders = super::holders::of_write_lock(&self.place.beside("-shm"));
                if holders.is_empty() {
                    let imports = self
                        .reader()
                        .and_then(|reader| super::leases::describe_imports(&reader));
                    holders = imports.unwrap_or_default();
                }
                let who = match holders.as_slice() {
                    [] => String::new(),
                    list => format!(" ({})", list.join("; ")),
                };
                Error::Busy(format!(
                    "the store at {} was busy for {} s: another process is writing to it{who}; try again",
                    self.place.root.display(),
                    busy_timeout().as_secs()
                ))
            }
            other => other.in_store(&self.place.root),
        }
    }
}

/// A database that never changes, as <https://www.sqlite.org/uri.html> has it.
fn immutable_uri(path: &Path) -> String {
    use std::fmt::Write;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte));
            }
            // Writing to a string cannot fail.
            byte => drop(write!(uri, "%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    uri
}

/// How long a writer waits for another.
pub(super) fn busy_timeout() -> Duration {
    let wanted = std::env::var(BUSY_VARIABLE).ok();
    let seconds = wanted.and_then(|text| text.parse::<u32>().ok());
    Duration::from_secs(seconds.map_or(BUSY_SECONDS, |seconds| u64::from(seconds.min(86_400))))
}

pub(super) fn set_durability(conn: &Connection, durability: Durability) -> Result<()> {
    let level = match durability {
        Durability::Ordered => "NORMAL",
        Durability::Durable => "FULL",
    };
    Ok(conn.pragma_update(None, "synchronous", level)?)
}

impl Drop for Database {
    fn drop(&mut self) {
        let readers = std::mem::take(
            self.readers
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let checkpointer = self
            .checkpointer
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if std::process::id() != self.pid {
            // Closing them would drop the locks of the process that opened them. And the thread is not in this one.
            std::mem::forget((readers, checkpointer));
            return;
        }
        drop((readers, checkpointer));
        // Read-only connections leave the log as it is, whatever its size. Not worth failing for: nothing is lost.
        if !self.place.read_only && self.place.log_bytes().is_ok_and(|bytes| bytes > LOG_KEPT) {
            let emptied = self
                .writer(Durability::Ordered)
                .and_then(|conn| super::space::empty_log_within(&conn, Duration::ZERO));
            if let Err(error) = emptied {
                tracing::debug!(
                    "the log of {} could not be emptied: {error}",
                    self.place.database.display()
                );
            }
        }
    }
}

/// A reader on loan from the pool.
pub(super) struct Reader<'a> {
    database: &'a Database,
    conn: Option<Connection>,
}

impl Deref for Reader<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.conn.as_ref().expect("present until dropped")
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            let mut idle = self
                .database
                .readers
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_READERS {
                idle.push(conn);
            }
        }
    }
}
