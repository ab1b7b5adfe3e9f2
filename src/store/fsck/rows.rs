//! The database itself, and the tables that hold bytes: packs, chunks, contents and their lists.

use rusqlite::{Connection, OptionalExtension};

use super::super::chunker;
use super::super::extents::{self, BuiltList, Extent, ListBuilder};
use super::super::pack::{self, Location};
use super::super::schema::Sequence;
use super::super::{Digest, Error, Result};
use super::{Check, Cure, bytes, problem};

/// Complaints of SQLite that are told one by one.
const COMPLAINTS: i64 = 100;

impl Check<'_> {
    /// SQLite's own check: pages, cells, types; with all bytes asked for also that indexes agree with their tables.
    pub(super) fn database(&mut self, conn: &Connection) -> Result<()> {
        let pragma = if self.options.fast {
            "quick_check"
        } else {
            "integrity_check"
        };
        let mut statement = conn.prepare(&format!("PRAGMA {pragma}({COMPLAINTS})"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let line: String = row.get(0)?;
            if line != "ok" {
                self.damage.database = true;
                self.found(problem("database", line, Cure::Reindex));
            }
        }
        Ok(())
    }

    /// Ids that were given out are below their counters, or they would be given out twice.
    pub(super) fn counters(&mut self, conn: &Connection) -> Result<()> {
        for sequence in Sequence::ALL {
            let name = sequence.name();
            let (next, highest) = counter(conn, sequence)?;
            match next {
                Some(next) if next > highest.max(0) && next <= i64::MAX / 4 => {}
                Some(next) => self.found(problem(
                    format!("counter of {name} ids"),
                    format!("it stands at {next}, and {highest} is in use"),
                    Cure::Recount,
                )),
                None => self.found(problem(
                    format!("counter of {name} ids"),
                    "it is missing",
                    Cure::Recount,
                )),
            }
        }
        Ok(())
    }

    pub(super) fn packs(&mut self, conn: &Connection) -> Result<()> {
        let mut statement =
            conn.prepare("SELECT id, raw_len, codec, length(data) FROM pack ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            self.report.packs += 1;
            if !is_possible(row.get(1)?, row.get(2)?, row.get(3)?) {
                self.damage.packs.insert(id);
            }
        }
        Ok(())
    }

    /// Every chunk lies within its pack. Two chunks on the same bytes cannot both be right, unless they hash to their
    /// names all the same.
    pub(super) fn chunks(&mut self, conn: &Connection) -> Result<()> {
        let mut statement = conn.prepare(
            "SELECT c.id, c.sha256, c.pack, c.offset, c.len, p.raw_len
             FROM chunk AS c LEFT JOIN pack AS p ON p.id = c.pack ORDER BY c.pack, c.offset",
        )?;
        let mut rows = statement.query([])?;
        let (mut last, mut last_pack, mut end) = (0, 0, 0);
        while let Some(row) = rows.next()? {
            let (id, sha256, pack): (i64, Vec<u8>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let (offset, len): (i64, i64) = (row.get(3)?, row.get(4)?);
            let raw_len: Option<i64> = row.get(5)?;
            self.report.chunks += 1;
            if self.damage.chunks.contains(id) {
                continue;
            }
            let sound = (1..=chunker::MAX as i64).contains(&len)
                && (0..=i64::from(u32::MAX)).contains(&offset);
            let name = match <[u8; 32]>::try_from(sha256.as_slice()) {
                Ok(sha256) => format!("chunk {}", Digest::from_bytes(sha256)),
                Err(_) => format!("chunk {id}"),
            };
            let why = match raw_len {
                _ if sha256.len() != 32 => Some("its name is no SHA-256".to_owned()),
                _ if id < 1 => Some("its id is not a positive number".to_owned()),
                None => Some(format!("the pack it is in ({pack}) is missing")),
                Some(_) if self.damage.packs.contains(pack) => {
                    Some(format!("the pack it is in ({pack}) cannot be unpacked"))
                }
                Some(raw_len) if !sound || offset + len > raw_len => {
                    Some("it lies outside its pack".to_owned())
                }
                Some(_) => None,
            };
            if let Some(why) = why {
                self.bad_chunk(id, &name, &why);
                continue;
            }
            if pack == last_pack && offset < end {
                for id in [last, id] {
                    if !self.damage.chunks.contains(id) && !hashes_to_its_name(conn, id)? {
                        let why = "it lies on another chunk and does not hash to its name";
                        self.bad_chunk(id, &format!("chunk {id}"), why);
                    }
                }
            }
            if pack != last_pack || offset + len > end {
                (last, last_pack, end) = (id, pack, offset + len);
            }
        }
        Ok(())
    }

    pub(super) fn bad_chunk(&mut self, id: i64, name: &str, why: &str) {
        self.damage.chunk(id);
        self.found(problem(name, why, Cure::RemoveBytes));
    }

    /// The lists of a content follow each other without gap, add up to its size, name chunks that are there, and hash to
    /// its name.
    pub(super) fn contents(&mut self, conn: &Connection) -> Result<()> {
        let mut statement =
            conn.prepare("SELECT id, digest, size, data_size FROM content ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let digest: Vec<u8> = row.get(1)?;
            let (size, data_size): (i64, i64) = (row.get(2)?, row.get(3)?);
            self.report.contents += 1;
            match self.list(conn, id) {
                Ok(Some(list)) => {
                    let why = if id < 1 {
                        "its id is not a positive number"
                    } else if (list.size as i64, list.data_size as i64) != (size, data_size) {
                        "its size is not that of its list of chunks"
                    } else if list.digest.as_bytes() != digest.as_slice() {
                        "its list of chunks does not hash to its name"
                    } else {
                        continue;
                    };
                    self.bad_content(id, why);
                }
                // Told with the chunk, and with the files that need it.
                Ok(None) => self.damage.content(id),
                Err(Error::Corrupt(why)) => self.bad_content(id, &why),
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    fn bad_content(&mut self, id: i64, why: &str) {
        self.damage.content(id);
        self.found(problem(format!("content {id}"), why, Cure::RemoveBytes));
    }

    /// What a content's lists add up to; `None` if one of its chunks is known to be bad.
    fn list(&self, conn: &Connection, id: i64) -> Result<Option<BuiltList>> {
        let mut statement = conn
            .prepare_cached("SELECT start, list FROM extent WHERE content = ?1 ORDER BY start")?;
        let mut rows = statement.query([id])?;
        let mut built = ListBuilder::new();
        while let Some(row) = rows.next()? {
            let start: i64 = row.get(0)?;
            if u64::try_from(start) != Ok(built.size()) {
                return Err(Error::Corrupt(format!(
                    "its list of chunks has a gap or an overlap at byte {}",
                    built.size()
                )));
            }
            let list = extents::decode(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)?;
            if list.is_empty() {
                return Err(Error::Corrupt("a list of its chunks is empty".to_owned()));
            }
            for extent in list {
                let digest = match extent {
                    Extent::Hole { .. } => None,
                    Extent::Data { chunk, .. } if self.damage.chunks.contains(chunk) => {
                        return Ok(None);
                    }
                    Extent::Data { chunk, len } => {
                        let at = Location::must_find(conn, chunk)?;
                        if at.len != len {
                            return Err(Error::Corrupt(format!(
                                "chunk {} is {} bytes long, not {len}",
                                at.digest, at.len
                            )));
                        }
                        Some(at.digest)
                    }
                };
                built
                    .push(extent, digest.as_ref())
                    .ok_or_else(|| Error::Corrupt("it is impossibly large".to_owned()))?;
            }
        }
        Ok(Some(built.finish()))
    }
}

fn hashes_to_its_name(conn: &Connection, chunk: i64) -> Result<bool> {
    match bytes::verify(conn, chunk) {
        Ok(()) => Ok(true),
        Err(Error::Corrupt(_)) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Whether a pack's row says something that can be.
fn is_possible(raw_len: i64, codec: i64, stored: i64) -> bool {
    (1..=pack::MAX_RAW as i64).contains(&raw_len)
        && match codec {
            pack::CODEC_RAW => stored == raw_len,
            pack::CODEC_ZSTD => stored > 0,
            _ => false,
        }
}

/// Where a counter of ids stands (`None`: it is missing), and the highest id in use.
fn counter(conn: &Connection, sequence: Sequence) -> Result<(Option<i64>, i64)> {
    let name = sequence.name();
    let next = conn
        .query_row("SELECT next FROM sequence WHERE name = ?1", [name], |row| {
            row.get(0)
        })
        .optional()?;
    let highest = conn.query_row(
        &format!("SELECT coalesce(max(id), 0) FROM {name}"),
        [],
        |row| row.get(0),
    )?;
    Ok((next, highest))
}

/// Sets a counter of ids right; `false` if it was.
pub(super) fn mend_counter(conn: &Connection, sequence: Sequence) -> Result<bool> {
    let (next, highest) = counter(conn, sequence)?;
    let highest = highest.max(0);
    if next.is_some_and(|next| next > highest && next <= i64::MAX / 4) {
        return Ok(false);
    }
    conn.execute(
        "INSERT INTO sequence (name, next) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET next = excluded.next",
        (sequence.name(), highest + 1),
    )?;
    Ok(true)
}
