//! Room on the file system: looked for before it is used, so that a full disk is an error and not a trap.
//!
//! What a transaction commits is written twice, to the log and later to the database. If the log holds more than the file
//! system has room for, it can neither be written back nor dropped, and even `gc` cannot write any more. So a large
//! transaction begins only if both copies fit, and a reserve is left alone for `gc` to work in.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use super::place::Place;
use super::{Error, Result};

/// Left for `gc`, bytes: at least this, and this part of the database (the map of its pages is a seventh of a percent).
const RESERVE: u64 = 384 << 10;
const RESERVE_PART: u64 = 512;
/// How long emptying the log may wait for readers and writers.
const LOG_WAIT: Duration = Duration::from_millis(500);

/// Fails with [`Error::NoSpace`] if a transaction of `bytes` could fill the file system up. Must run outside of one.
pub(super) fn ensure(place: &Place, conn: &Connection, bytes: u64) -> Result<()> {
    let reserve = RESERVE.max(place.disk_bytes()? / RESERVE_PART);
    let need = bytes.saturating_mul(2).saturating_add(reserve);
    if free(&place.root)? >= need.saturating_add(place.log_bytes()?) {
        return Ok(());
    }
    // The log may be most of it.
    empty_log(conn)?;
    if free(&place.root)? >= need {
        Ok(())
    } else {
        Err(Error::NoSpace {
            root: place.root.clone(),
        })
    }
}

/// Writes the log back to the database and cuts it to nothing, as far as readers allow: waiting for one of them would
/// keep all writers waiting as well. `false`: somebody was in the way.
pub(super) fn empty_log(conn: &Connection) -> Result<bool> {
    empty_log_within(conn, LOG_WAIT)
}

/// As [`empty_log`], waiting so long.
pub(super) fn empty_log_within(conn: &Connection, wait: Duration) -> Result<bool> {
    conn.busy_timeout(wait)?;
    let emptied = conn
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
            row.get::<_, i64>(0)
        })
        .optional();
    conn.busy_timeout(super::db::busy_timeout())?;
    Ok(emptied? == Some(0))
}

/// Bytes that may still be written below `path`.
pub(super) fn free(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path).map_err(|errno| Error::io(path)(errno.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
