//! Writes the log back to the database while an import goes on.
//!
//! Left to itself, SQLite does this within the commit that makes the log too long: the writer then copies, and waits for
//! the disk twice, while everything behind it stands still. Here a thread with a connection of its own does it as soon as
//! enough has gathered; it never makes a writer or reader wait (`wal_checkpoint(PASSIVE)`). If it has caught up when the
//! writer begins a batch, the log starts anew from its beginning, in memory that is at hand; so it tries again what came
//! meanwhile. Else the log grows, at most to the size of what the import stores, and is emptied when the store is closed.
//!
//! Durability is not touched: SQLite syncs the log before it copies from it, and the database before the log is reused.

use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use rusqlite::{Connection, ErrorCode};

use super::db::{Database, Durability};
use super::{Error, Result};

/// The thread is woken when the log has grown by this, bytes: a page changed in several batches is then written back once.
const STRETCH: u64 = 16 << 20;
/// How often the thread goes after what was written while it wrote back, before it sleeps.
const ROUNDS: usize = 4;

/// Tells a writer's connection not to write the log back itself.
pub(super) fn leave_to_checkpointer(conn: &Connection) -> Result<()> {
    Ok(conn.pragma_update(None, "wal_autocheckpoint", 0)?)
}

/// The thread, one for all imports of an open store; dropping it waits for what it is doing.
pub(super) struct Checkpointer {
    wake: SyncSender<Wake>,
    thread: Option<JoinHandle<()>>,
}

enum Wake {
    WriteBack,
    End,
}

/// A writer's end: how much it has added to the log.
pub(super) struct LogGrowth {
    wake: SyncSender<Wake>,
    bytes: u64,
}

impl Checkpointer {
    pub(super) fn start(database: &Database) -> Result<Self> {
        let conn = database.writer(Durability::Ordered)?;
        let (wake, woken) = sync_channel(1);
        let run = move || {
            while let Ok(Wake::WriteBack) = woken.recv() {
                for _ in 0..ROUNDS {
                    if caught_up(&conn) {
                        break;
                    }
                }
            }
        };
        let thread = thread::Builder::new()
            .name("ovl-log".to_owned())
            .spawn(run)
            .map_err(|source| Error::Io {
                path: "starting a thread".into(),
                source,
            })?;
        Ok(Self {
            wake,
            thread: Some(thread),
        })
    }

    pub(super) fn growth(&self) -> LogGrowth {
        LogGrowth {
            wake: self.wake.clone(),
            bytes: 0,
        }
    }
}

/// Writes back what is in the log. `false`: more came meanwhile.
fn caught_up(conn: &Connection) -> bool {
    // Another process may be at it just now, and what is not copied now is copied later. A full disk is found by the writer;
    // that the disk fails is told only once, here.
    let copied = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        let [busy, logged, copied] = [row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?];
        Ok(busy != 0 || logged == copied)
    });
    copied.unwrap_or_else(|error| {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy) => {
                tracing::debug!("the log was not written back during an import: {error}");
            }
            _ => tracing::warn!("the log was not written back during an import: {error}"),
        }
        true
    })
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        // It holds nothing that a panic of its could leave half done, and then hears nothing either.
        let _ = self.wake.send(Wake::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl LogGrowth {
    /// A transaction of so many bytes was committed.
    pub(super) fn grew(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes >= STRETCH {
            match self.wake.try_send(Wake::WriteBack) {
                // Full: it has been told already and will come by.
                Ok(()) | Err(TrySendError::Full(_)) => self.bytes = 0,
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
    }
}
