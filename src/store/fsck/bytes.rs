//! The bytes: every chunk unpacked and hashed, every layer's tar made and compared with its name.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use super::super::db::Database;
use super::super::pack::{self, Location};
use super::super::{Digest, Error, Result, Shared, export, layers};
use super::{Check, Cure};

/// Chunks looked at under one snapshot.
const PAGE: usize = 256;

impl Check<'_> {
    /// Hashes all chunks, in the order of their ids, which is nearly that of their packs.
    pub(super) fn chunk_bytes(&mut self, database: &Database) -> Result<()> {
        let total: i64 = database.read(|conn| {
            Ok(
                // Bounded, for a crafted table may hold lengths that no sum can.
                conn.query_row(
                    "SELECT coalesce(sum(len & 0xffffffff), 0) FROM chunk",
                    [],
                    |row| row.get(0),
                )?,
            )
        })?;
        self.phase("chunks", total.max(0) as u64, true);
        let mut verifier = Verifier::default();
        let mut after = 0i64;
        loop {
            let page = database.read(|conn| {
                // One snapshot, or `gc` could move a chunk between the two look-ups.
                let snapshot = conn.unchecked_transaction()?;
                let ids: Vec<i64> = snapshot
                    .prepare_cached("SELECT id FROM chunk WHERE id > ?1 ORDER BY id LIMIT ?2")?
                    .query_map((after, PAGE as i64), |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                ids.into_iter()
                    .map(|id| match verifier.verify(&snapshot, id) {
                        Ok(len) => Ok((id, Ok(len))),
                        Err(Error::Corrupt(why)) => Ok((id, Err(why))),
                        Err(other) => Err(other),
                    })
                    .collect::<Result<Vec<_>>>()
            });
            let page = match page {
                // The table itself cannot be read: the rows' turn will tell.
                Err(Error::Corrupt(_)) => return Ok(()),
                other => other?,
            };
            // Rows out of order would lead round in circles: what else is wrong with such a table, their turn will tell.
            let Some((last, _)) = page.last().filter(|(last, _)| *last > after) else {
                return Ok(());
            };
            after = *last;
            let mut done = 0;
            for (id, result) in page {
                match result {
                    Ok(len) => done += u64::from(len),
                    Err(why) => self.bad_chunk(id, &format!("chunk {id}"), &why),
                }
            }
            self.report.bytes += done;
            self.advance(done);
        }
    }

    /// Makes every layer's tar that is not known to be bad.
    pub(super) fn layer_tars(&mut self, shared: &Arc<Shared>) -> Result<()> {
        let all = shared.database.read(layers::all)?;
        let sizes = all.iter().map(|(_, info)| info.tar_size);
        let total = sizes.fold(0, u64::saturating_add);
        self.phase("layer tars", total, true);
        for (id, info) in all {
            if self.damage.layers.contains_key(&id) {
                self.advance(info.tar_size);
                continue;
            }
            let mut counter = Counter {
                check: self,
                counted: 0,
            };
            let made = export::write_layer_tar(shared, &info.diff_id, &mut counter);
            let counted = counter.counted;
            self.report.bytes += counted;
            match made {
                Ok(_) => {}
                // Removed meanwhile.
                Err(Error::NotFound(_)) => {}
                Err(Error::Corrupt(why)) => shared.database.read(|conn| {
                    self.found_in_layer(conn, (id, info.diff_id), None, why, Cure::RemoveLayer)
                })?,
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }
}

/// Takes the tar, and tells how it gets on.
struct Counter<'a, 'b> {
    check: &'a Check<'b>,
    counted: u64,
}

impl Write for Counter<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.counted += bytes.len() as u64;
        self.check.advance(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Packs kept unpacked: neighbours by id are in few packs at a time.
const PACKS: usize = 8;

/// Hashes chunks, each pack unpacked once where chunks come in order.
#[derive(Default)]
pub(in crate::store) struct Verifier {
    packs: VecDeque<(i64, Option<Vec<u8>>)>,
}

impl Verifier {
    /// Length of a chunk that hashes to its name; [`Error::Corrupt`] if it does not, or cannot be had at all.
    pub(in crate::store) fn verify(&mut self, conn: &Connection, chunk: i64) -> Result<u32> {
        let at = Location::must_find(conn, chunk)?;
        let damaged = |what: &str| Err(Error::Corrupt(format!("chunk {}: {what}", at.digest)));
        if !self.packs.iter().any(|(id, _)| *id == at.pack) {
            if self.packs.len() == PACKS {
                self.packs.pop_front();
            }
            self.packs.push_back((at.pack, load(conn, at.pack)?));
        }
        let pack = self.packs.iter().find(|(id, _)| *id == at.pack);
        match pack.and_then(|(_, raw)| raw.as_deref()) {
            None => damaged("the pack it is in is missing or cannot be unpacked"),
            Some(raw) => match raw.get(at.range()) {
                None => damaged("it lies outside its pack"),
                Some(bytes) if Digest::of(bytes) != at.digest => {
                    damaged("its bytes do not hash to its name")
                }
                Some(_) => Ok(at.len),
            },
        }
    }
}

/// Whether one chunk hashes to its name, as [`Error::Corrupt`] if not.
pub(super) fn verify(conn: &Connection, chunk: i64) -> Result<()> {
    Verifier::default().verify(conn, chunk).map(drop)
}

/// The raw bytes of a pack, if it is there and can be unpacked.
fn load(conn: &Connection, id: i64) -> Result<Option<Vec<u8>>> {
    let raw: Option<Result<Option<Vec<u8>>>> = conn
        .prepare_cached("SELECT raw_len, codec, data FROM pack WHERE id = ?1")?
        .query_row([id], |row| {
            let (raw_len, codec): (i64, i64) = (row.get(0)?, row.get(1)?);
            Ok(pack::unpack(raw_len, codec, row.get_ref(2)?.as_blob()?))
        })
        .optional()?;
    Ok(raw.transpose()?.flatten())
}
