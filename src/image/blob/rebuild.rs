//! Making a blob again out of its segments and its layer's tar.

use std::io::{BufRead, BufReader, Cursor as Bytes, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use preflate_rs::RecreateStreamProcessor;
use sha2::{Digest as _, Sha256};

use crate::store::varint::Cursor;
use crate::store::{self, BlobParts, Digest, Store};

use super::super::pump::{self, pump};
use super::super::{Error, Result};
use super::bits::BitWriter;
use super::unit::{self, State};
use super::{AS_IT_IS, METHOD, PREFLATE, UNIT};

/// Plain bytes of a segment at most; what claims more is damage.
const MAX_SEGMENT: u64 = 64 << 20;

/// Writes the blob `digest` to `out`.
///
/// # Errors
/// [`store::Error::NotFound`] if it is not kept, [`store::Error::Corrupt`] if what comes out is not the blob, and those of
/// `out` as [`Error::Output`].
pub fn rebuild(store: &Store, digest: &Digest, out: &mut dyn Write) -> Result<()> {
    let parts = store.blob_parts(digest)?;
    let info = parts.info();
    if info.method != METHOD {
        return Err(damaged(
            digest,
            "it was kept in a way this program does not know",
        ));
    }
    let (mut to, from) = pump();
    std::thread::scope(|scope| {
        let tar = scope.spawn(move || {
            let written = store.write_layer_tar(&info.diff_id, &mut to);
            written.and_then(|_| to.finish().map_err(store::Error::Output))
        });
        let mut rebuilder = Rebuilder {
            digest,
            expected: info.size,
            plain: BufReader::new(from),
            out,
            hash: Sha256::new(),
            size: 0,
            bits: BitWriter::default(),
            state: State::new(),
            before: Vec::new(),
            recreator: RecreateStreamProcessor::new(),
        };
        let made = rebuilder.run(parts);
        let (found, size) = (rebuilder.hash.clone().finalize(), rebuilder.size);
        drop(rebuilder);
        let tar = tar
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match tar {
            // Not all of the tar was wanted, or this side stopped first and knows why.
            Err(store::Error::Output(error)) if pump::is_reader_gone(&error) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => {}
        }
        made?;
        if Digest::from_bytes(found.into()) != *digest || size != info.size {
            tracing::error!(blob = %digest, "a blob made again does not hash to its name");
            return Err(damaged(digest, "what is made of it is not the blob"));
        }
        Ok(())
    })
}

fn damaged(digest: &Digest, what: &str) -> Error {
    store::Error::Corrupt(format!("the recipe of blob {digest}: {what}")).into()
}

struct Rebuilder<'a, R> {
    digest: &'a Digest,
    /// Size of the blob.
    expected: u64,
    plain: R,
    out: &'a mut dyn Write,
    hash: Sha256,
    size: u64,
    bits: BitWriter,
    state: State,
    /// The plain bytes before, as far as the next unit may need them.
    before: Vec<u8>,
    recreator: RecreateStreamProcessor,
}

impl<R: BufRead> Rebuilder<'_, R> {
    fn run(&mut self, mut parts: BlobParts) -> Result<()> {
        while let Some(part) = parts.next_part()? {
            self.segment(&part)?;
        }
        Ok(())
    }

    fn segment(&mut self, part: &[u8]) -> Result<()> {
        let digest = *self.digest;
        let bad = || damaged(&digest, "a part makes no sense");
        let (kind, rest) = part.split_first().ok_or_else(bad)?;
        let mut cursor = Cursor::new(rest);
        let len = cursor
            .unsigned()
            .filter(|len| *len <= MAX_SEGMENT)
            .ok_or_else(bad)?;
        let payload = cursor.rest();
        match *kind {
            AS_IT_IS => {
                self.bits.drop_pending();
                self.state = State::new();
                self.before.clear();
                self.write(payload)
            }
            UNIT => {
                let before = self.before.len();
                let mut data = std::mem::take(&mut self.before);
                data.append(&mut self.take(len)?);
                let unpacked = unit::unpack(payload).map_err(|source| {
                    if !store::lacked_memory(&source) {
                        return bad();
                    }
                    let path = "zstd".into();
                    store::Error::Io { path, source }.into()
                })?;
                let made = unit::decode(&unpacked, data, before, &mut self.state)
                    .filter(|unit| unit.write(&mut self.bits).is_some())
                    .ok_or_else(bad)?;
                let gone = made.data.len() - unit::kept_before(made.data.len());
                self.before = made.data;
                self.before.drain(..gone);
                let bytes = std::mem::take(&mut self.bits.bytes);
                self.write(&bytes)
            }
            PREFLATE => {
                let (first, corrections) = payload.split_first().ok_or_else(bad)?;
                if *first == 1 {
                    self.recreator = RecreateStreamProcessor::new();
                }
                let plain = self.take(len)?;
                let recreator = &mut self.recreator;
                let made = catch_unwind(AssertUnwindSafe(|| {
                    recreator.recompress(&mut Bytes::new(plain), corrections)
                }));
                let (bytes, _) = made.map_err(|_| bad())?.map_err(|_| bad())?;
                self.write(&bytes)
            }
            _ => Err(bad()),
        }
    }

    /// The next bytes of the tar.
    fn take(&mut self, len: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.plain.by_ref().take(len).read_to_end(&mut bytes);
        // The writer of the tar knows better what is wrong.
        if read.is_err() || bytes.len() as u64 != len {
            return Err(damaged(self.digest, "the layer ends before it"));
        }
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        // Whoever takes it has made room for that much, and would complain of us instead.
        if self.size > self.expected {
            return Err(damaged(self.digest, "what is made of it is not the blob"));
        }
        self.out.write_all(bytes).map_err(Error::Output)
    }
}
