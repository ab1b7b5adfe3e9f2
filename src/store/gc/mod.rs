//! Garbage collection: finding what nothing needs any more, and giving its space back to the file system.
//!
//! 1. Leases of dead processes lapse; layers that no image and no lease has go.
//! 2. The rows of layers that are gone go ([`sweep`]).
//! 3. What the layers use is marked ([`mark`]) on a snapshot, without a lock; other contents and chunks go, and before
//!    them the compressed blobs that no image has.
//! 4. Packs without a living chunk go, and those that are mostly dead are replaced ([`packs`]).
//! 5. Free pages are moved to the end of the file and cut off, and the log is emptied.
//!
//! Each step is a run of short write transactions with a pause for others in between, and each transaction leaves a
//! store in which everything that is left means the same as before. So mounts and imports go on, and a collection that is
//! killed is continued by the next one, which finds the rest for itself: nothing is written down about it.
//!
//! Step 3 alone cannot run beside an import, which may be about to use what looks unused. It asks before each
//! transaction, under the write lock, and leaves off when an import has come; the other steps are done all the same.
//! Whatever cannot be read is kept: a damaged store loses nothing here.
//!
//! A new table needs: an entry in `OWNED` of [`sweep`] if its rows belong to a layer, a sweep like that of contents if
//! they are shared, and a mark for what they refer to.

mod mark;
mod packs;
mod sweep;

pub(super) use mark::Marked;

use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::db::{Database, Durability};
use super::idset::IdSet;
use super::progress::Progress;
use super::{Error, Result, layers, leases, space};

/// Rows looked at by one statement.
const PAGE: i64 = 4096;
/// Pages given back in one transaction, and so written to the log; fewer where there is little room for that.
const VACUUM_PAGES: i64 = 2048;
const VACUUM_PAGES_TIGHT: i64 = 32;
const TIGHT: u64 = 128 << 20;
/// The pause after a transaction, as a part of the time it took, and at most: a writer who waits asks every tenth of a
/// second, and must now and then find the lock free.
const PAUSE_PART: u32 = 4;
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// How long the end of a collection waits, in short turns, for the log to be emptied.
const LOG_PATIENCE: Duration = Duration::from_secs(5);

/// What a garbage collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Layers removed.
    pub layers: u64,
    /// Chunks removed.
    pub chunks: u64,
    /// Packs removed because nothing in them was alive.
    pub packs: u64,
    /// Packs replaced because less than half of them was alive.
    pub rewritten: u64,
    /// By how much the store's files shrank, bytes.
    pub freed_bytes: u64,
}

/// A collection under way.
struct Collector<'a> {
    database: &'a Database,
    conn: Connection,
    notify: &'a dyn Fn(Progress),
    report: GcReport,
}

pub(super) fn collect(database: &Database, notify: &dyn Fn(Progress)) -> Result<GcReport> {
    let before = database.place.disk_bytes()?;
    let mut collector = Collector {
        database,
        // What a power cut takes back was garbage: it is found again.
        conn: database.writer(Durability::Ordered)?,
        notify,
        report: GcReport::default(),
    };
    collector.unneeded_layers()?;
    collector.rows_of_gone_layers()?;
    let swept = collector.mark_and_sweep()?;
    collector.packs()?;
    collector.give_back()?;
    collector.report.freed_bytes = before.saturating_sub(database.place.disk_bytes()?);
    if swept {
        return Ok(collector.report);
    }
    let imports = database.read(leases::describe_imports)?;
    let who = match imports.as_slice() {
        [] => String::new(),
        list => format!(" ({})", list.join(", ")),
    };
    Err(Error::Busy(format!(
        "unused data stays while something is being imported{who}; {} bytes were freed, run gc again when it is done",
        collector.report.freed_bytes
    )))
}

impl Collector<'_> {
    /// One short write transaction, and a pause after it.
    fn transaction<T>(&mut self, change: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let turn = self.database.write_turn();
        let transaction = self
            .conn
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let begun = Instant::now();
        let value = change(&transaction)?;
        transaction.commit()?;
        drop(turn);
        std::thread::sleep((begun.elapsed() / PAUSE_PART).min(PAUSE_MAX));
        Ok(value)
    }

    fn phase(&self, name: &'static str, total: u64, bytes: bool) {
        (self.notify)(Progress::Phase { name, total, bytes });
    }

    fn advance(&self, units: u64) {
        (self.notify)(Progress::Advance(units));
    }

    fn unneeded_layers(&mut self) -> Result<()> {
        let removed = self.transaction(|tx| {
            leases::lapse(tx)?;
            let unneeded = layers::unneeded(tx)?;
            for layer in &unneeded {
                layers::remove(tx, *layer)?;
            }
            Ok(unneeded.len())
        })?;
        self.report.layers = removed as u64;
        Ok(())
    }

    /// `false`: not, or not all, because of an import.
    fn mark_and_sweep(&mut self) -> Result<bool> {
        if !self.database.read(leases::describe_imports)?.is_empty() {
            return Ok(false);
        }
        let layers = self.database.read(layers::all)?.len() as u64;
        self.phase("marking", layers, false);
        let mut marked = Marked::default();
        self.database.read(|conn| {
            let snapshot = conn.unchecked_transaction()?;
            marked.extend(&snapshot, &IdSet::default(), || self.advance(1))
        })?;
        self.phase("sweeping", 0, false);
        Ok(self.blobs(&mut marked)? && self.unused(&mut marked)?)
    }

    /// Shrinks the files.
    fn give_back(&mut self) -> Result<()> {
        let conn = &self.conn;
        let free =
            || Ok::<i64, Error>(conn.pragma_query_value(None, "freelist_count", |row| row.get(0))?);
        let mut left = free()?;
        self.phase("giving back", left.max(0) as u64, false);
        while left > 0 {
            let tight = space::free(&self.database.place.root)? < TIGHT;
            let pages = if tight {
                VACUUM_PAGES_TIGHT
            } else {
                VACUUM_PAGES
            };
            let begun = Instant::now();
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
            self.advance((left - now) as u64);
            left = now;
            std::thread::sleep((begun.elapsed() / PAUSE_PART).min(PAUSE_MAX));
        }
        // Busy readers may keep the log from being emptied, and so does whoever just writes it back: that takes a moment.
        let deadline = Instant::now() + LOG_PATIENCE;
        while !space::empty_log(conn)? && Instant::now() < deadline {
            std::thread::sleep(PAUSE_MAX);
        }
        Ok(())
    }
}

/// A crafted table may hold its rows in any order: who goes on after the last one would go round in circles.
fn out_of_order() -> Error {
    Error::Corrupt("rows are out of order".to_owned())
}

/// Runs through a table by its first column, the id, a page at a time. `sql` selects the id and two more integers of
/// rows after `?1`, at most `?2` of them.
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
        if *last <= after {
            return Err(out_of_order());
        }
        after = *last;
        for (id, first, second) in page {
            visit(id, first, second)?;
        }
    }
}
