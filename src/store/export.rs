//! Giving a layer's tar back, bit for bit, and proving it.

use std::io::Write;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use rusqlite::OptionalExtension;
use sha2::{Digest as _, Sha256};

use super::content::ContentReader;
use super::pack::ChunkBytes;
use super::recipe::{self, Op};
use super::{Digest, Error, Result, Shared, layers};

/// Writes the tar and gives its length. Fails with [`Error::Corrupt`] at the end if it does not hash to `diff_id`.
pub(super) fn write_layer_tar(
    shared: &Arc<Shared>,
    diff_id: &Digest,
    out: &mut dyn Write,
) -> Result<u64> {
    let (layer, info) = shared
        .database
        .read(|conn| layers::find(conn, diff_id))?
        .ok_or_else(|| Error::NotFound(format!("layer {diff_id} is not in the store")))?;
    // The other thread reads, unpacks and verifies chunks; this one hashes the whole and writes.
    let (to, pieces) = sync_channel(AHEAD);
    let mut sink = Sink {
        diff_id,
        expected: info.tar_size,
        out,
        hash: Sha256::new(),
        len: 0,
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || produce(shared, layer, diff_id, &to));
        // Leaving the loop early drops the queue, which ends the reader.
        let written = pieces
            .into_iter()
            .try_for_each(|piece: Piece| sink.write(&piece));
        let read = reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(read)
    })?;
    let found = Digest::from_bytes(sink.hash.finalize().into());
    if found != *diff_id || sink.len != info.tar_size {
        tracing::error!(layer = %diff_id, %found, "the tar made from the store does not hash to its layer's name");
        return Err(damaged(diff_id, &format!("the tar hashes to {found}")));
    }
    Ok(sink.len)
}

/// Pieces read ahead of the writing: a few packs.
const AHEAD: usize = 64;

/// Bytes of the tar, in order.
enum Piece {
    Literal(Vec<u8>),
    Chunk(ChunkBytes),
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Literal(bytes) => bytes,
            Self::Chunk(bytes) => bytes,
        }
    }
}

/// Follows the recipe of a layer. Ends quietly when nobody listens any more: the listener knows why.
fn produce(
    shared: &Arc<Shared>,
    layer: i64,
    diff_id: &Digest,
    to: &SyncSender<Piece>,
) -> Result<()> {
    let mut after = -1i64;
    while let Some((seq, ops, raw_len, literals)) = segment(shared, layer, after)? {
        let literals = recipe::decode_literals(raw_len, &literals)?;
        let mut rest = literals.as_slice();
        for op in recipe::decode_ops(&ops)? {
            match op? {
                Op::Literal(len) => {
                    let (now, later) = usize::try_from(len)
                        .ok()
                        .and_then(|len| rest.split_at_checked(len))
                        .ok_or_else(|| damaged(diff_id, "it uses more headers than it has"))?;
                    if to.send(Piece::Literal(now.to_vec())).is_err() {
                        return Ok(());
                    }
                    rest = later;
                }
                Op::Content { content, len } => {
                    let wrong = || damaged(diff_id, "a content has the wrong length");
                    let (mut given, mut heard) = (0, true);
                    let all = ContentReader::each_chunk_of(shared, content, |bytes| {
                        given += bytes.len() as u64;
                        if given > len {
                            return Err(wrong());
                        }
                        heard = to.send(Piece::Chunk(bytes)).is_ok();
                        if heard { Ok(()) } else { Err(wrong()) }
                    });
                    if !heard {
                        return Ok(());
                    }
                    all?;
                    if given != len {
                        return Err(wrong());
                    }
                }
            }
        }
        if seq <= after {
            return Err(damaged(diff_id, "its parts are out of order"));
        }
        after = seq;
    }
    Ok(())
}

type SegmentRow = (i64, Vec<u8>, i64, Vec<u8>);

fn segment(shared: &Shared, layer: i64, after: i64) -> Result<Option<SegmentRow>> {
    shared.database.read(|conn| {
        Ok(conn
            .prepare_cached(
                "SELECT seq, ops, raw_len, literals FROM recipe WHERE layer = ?1 AND seq > ?2 ORDER BY seq LIMIT 1",
            )?
            .query_row((layer, after), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .optional()?)
    })
}

fn damaged(diff_id: &Digest, what: &str) -> Error {
    Error::Corrupt(format!("layer {diff_id}: {what}"))
}

struct Sink<'a> {
    diff_id: &'a Digest,
    expected: u64,
    out: &'a mut dyn Write,
    hash: Sha256,
    len: u64,
}

impl Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        // Whoever takes it has made room for that much, and would complain of us instead.
        if self.len > self.expected {
            return Err(damaged(self.diff_id, "the tar is longer than it was"));
        }
        self.out.write_all(bytes).map_err(Error::Output)
    }
}
