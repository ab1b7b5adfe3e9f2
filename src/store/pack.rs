//! Packs: consecutive new chunks compressed together, and the cache of unpacked ones that reads go through.
//!
//! Small files compress far better together than alone, and fewer, larger blobs waste less of SQLite's pages. A pack
//! is never changed; `gc` replaces it under a new id. A chunk is verified the first time it is read from an unpacked
//! pack, so bytes that do not hash to their name never leave this file.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use quick_cache::Weighter;
use rusqlite::{Connection, OptionalExtension};

use super::chunker;
use super::db::Database;
use super::schema;
use super::{Digest, Error, Result};

/// A pack of small chunks is closed when it holds this many raw bytes.
pub(super) const TARGET: usize = 128 << 10;
/// A chunk of this size or more, bytes, has a pack of its own: it gains little from company, and a random read of a
/// large file then unpacks one chunk, not several.
pub(super) const ALONE: usize = 32 << 10;
/// How packs are compressed, in zstd's terms: level 2 with a hash table twice as large and matches of five bytes and
/// more. Chosen by the table in `docs/store-format.md`.
const LEVEL: i32 = 2;
const HASH_LOG: u32 = 16;
const MIN_MATCH: u32 = 5;
/// No pack of any writer of this format unpacks to more, bytes. What claims more is damage.
pub(super) const MAX_RAW: usize = 4 << 20;
/// Unpacked packs kept per store, bytes.
const CACHE_BYTES: u64 = 12 << 20;

pub(super) const CODEC_RAW: i64 = 0;
pub(super) const CODEC_ZSTD: i64 = 1;

/// A chunk's place within a pack that is being made.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedChunk {
    pub(super) id: i64,
    pub(super) digest: Digest,
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// New chunks gathered for one pack.
#[derive(Default)]
pub(super) struct RawPack {
    pub(super) raw: Vec<u8>,
    pub(super) chunks: Vec<PackedChunk>,
}

impl RawPack {
    /// An empty pack in a buffer that did its work for another.
    pub(super) fn within(buffer: Vec<u8>) -> Self {
        Self {
            raw: buffer,
            chunks: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, id: i64, digest: Digest, bytes: &[u8]) {
        // Both fit: a pack is shorter than TARGET when a chunk of at most MAX joins it.
        let (offset, len) = (self.raw.len() as u32, bytes.len() as u32);
        self.chunks.push(PackedChunk {
            id,
            digest,
            offset,
            len,
        });
        self.raw.extend_from_slice(bytes);
    }

    pub(super) fn is_full(&self) -> bool {
        self.raw.len() >= TARGET
    }
}

/// A pack ready to be stored.
pub(super) struct StoredPack {
    raw_len: usize,
    codec: i64,
    data: Vec<u8>,
    pub(super) chunks: Vec<PackedChunk>,
}

impl StoredPack {
    /// Compresses; keeps the raw bytes where that does not make them smaller.
    pub(super) fn compress(
        pack: RawPack,
        compressor: &mut zstd::bulk::Compressor<'_>,
    ) -> Result<Self> {
        Self::compress_with(pack, compressor, &Buffers::default())
    }

    /// The same, with buffers taken from and left to those that follow.
    pub(super) fn compress_with(
        pack: RawPack,
        compressor: &mut zstd::bulk::Compressor<'_>,
        buffers: &Buffers,
    ) -> Result<Self> {
        let RawPack { raw, chunks } = pack;
        let raw_len = raw.len();
        let mut packed = buffers.take(zstd::zstd_safe::compress_bound(raw_len));
        compressor
            .compress_to_buffer(&raw, &mut packed)
            .map_err(zstd_failed)?;
        let (codec, data, idle) = if packed.len() < raw_len {
            (CODEC_ZSTD, packed, raw)
        } else {
            (CODEC_RAW, raw, packed)
        };
        buffers.give(idle);
        Ok(Self {
            raw_len,
            codec,
            data,
            chunks,
        })
    }

    pub(super) fn raw_len(&self) -> usize {
        self.raw_len
    }

    /// The pack's buffer, once it is stored.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.data
    }

    /// Room that pack and chunk rows take, bytes, generously.
    pub(super) fn disk_bytes(&self) -> u64 {
        (self.data.len() + schema::PAGE_SIZE as usize + self.chunks.len() * 150) as u64
    }

    pub(super) fn insert(&self, conn: &Connection, id: i64) -> Result<()> {
        conn.prepare_cached("INSERT INTO pack (id, raw_len, codec, data) VALUES (?1, ?2, ?3, ?4)")?
            .execute((id, self.raw_len as i64, self.codec, &self.data))?;
        Ok(())
    }
}

/// Buffers that have done their work, for the next pack: memory the system has just taken back is dear to get again.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// What a committed batch sets free.
    const KEPT: usize = 192;
    /// Every buffer is made for the largest usual pack, so that any of them fits.
    const ROOM: usize = (TARGET + ALONE).next_power_of_two() + (4 << 10);

    /// An empty buffer with room for so many bytes.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        let mut buffer = self.list().pop().unwrap_or_default();
        buffer.reserve(bytes.max(Self::ROOM));
        buffer
    }

    pub(super) fn give(&self, mut buffer: Vec<u8>) {
        let mut list = self.list();
        if list.len() < Self::KEPT {
            buffer.clear();
            list.push(buffer);
        }
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn compressor() -> Result<zstd::bulk::Compressor<'static>> {
    use zstd::zstd_safe::{CParameter, Strategy};
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).map_err(zstd_failed)?;
    for parameter in [
        CParameter::Strategy(Strategy::ZSTD_fast),
        CParameter::HashLog(HASH_LOG),
        CParameter::MinMatch(MIN_MATCH),
        CParameter::TargetLength(0),
    ] {
        compressor.set_parameter(parameter).map_err(zstd_failed)?;
    }
    Ok(compressor)
}

/// zstd fails to compress only for want of memory.
pub(super) fn zstd_failed(source: io::Error) -> Error {
    Error::Io {
        path: "zstd".into(),
        source,
    }
}

/// Whether zstd failed for want of memory, which says nothing about its input.
pub fn lacked_memory(error: &io::Error) -> bool {
    use zstd::zstd_safe::{get_error_name, zstd_sys::ZSTD_ErrorCode};
    // The crate zstd keeps only the name of zstd's error; as a number it is the negative code.
    let code = ZSTD_ErrorCode::ZSTD_error_memory_allocation as usize;
    error.kind() == io::ErrorKind::OutOfMemory
        || error.to_string() == get_error_name(code.wrapping_neg())
}

/// Unpacks one zstd frame; `None` if it is damaged or unpacks to more than `len` bytes.
pub(super) fn unzstd(frame: &[u8], len: usize) -> Result<Option<Vec<u8>>> {
    thread_local! {
        static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    let unpacked = DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(zstd::bulk::Decompressor::new()?),
        };
        decompressor.decompress(frame, len)
    });
    match unpacked {
        Err(error) if lacked_memory(&error) => Err(zstd_failed(error)),
        unpacked => Ok(unpacked.ok()),
    }
}

/// An unpacked pack.
pub(super) struct Pack {
    raw: Vec<u8>,
    /// Ids of the chunks found to hash to their names, sorted.
    verified: Mutex<Vec<i64>>,
}

impl Pack {
    /// `Ok(None)`: there is no such pack (any more).
    pub(super) fn load(conn: &Connection, id: i64) -> Result<Option<Self>> {
        let mut statement =
            conn.prepare_cached("SELECT raw_len, codec, data FROM pack WHERE id = ?1")?;
        let raw = statement
            .query_row([id], |row| {
                let (raw_len, codec): (i64, i64) = (row.get(0)?, row.get(1)?);
                Ok(unpack(raw_len, codec, row.get_ref(2)?.as_blob()?))
            })
            .optional()?;
        let Some(raw) = raw else { return Ok(None) };
        let raw = raw?.ok_or_else(|| {
            tracing::error!(
                pack = id,
                "a pack of chunks cannot be unpacked: the store is damaged"
            );
            Error::Corrupt(format!("pack {id} cannot be unpacked"))
        })?;
        Ok(Some(Self {
            raw,
            verified: Mutex::default(),
        }))
    }

    /// The bytes of a chunk, once they are known to hash to its name.
    pub(super) fn verified(&self, chunk: i64, at: &Location) -> Result<Range<usize>> {
        let damaged = |what: &str| {
            tracing::error!(chunk = %at.digest, pack = at.pack, "{what}: the store is damaged");
            Error::Corrupt(format!("chunk {}: {what}", at.digest))
        };
        let range = at.range();
        let Some(bytes) = self.raw.get(range.clone()) else {
            return Err(damaged("it lies outside its pack"));
        };
        let verified = || self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified().binary_search(&chunk).is_ok() {
            return Ok(range);
        }
        if Digest::of(bytes) != at.digest {
            return Err(damaged("its bytes do not hash to its name"));
        }
        let mut verified = verified();
        if let Err(place) = verified.binary_search(&chunk) {
            verified.insert(place, chunk);
        }
        Ok(range)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.raw
    }
}

/// The raw bytes of a stored pack; `None` if it cannot be unpacked to exactly `raw_len` bytes.
pub(super) fn unpack(raw_len: i64, codec: i64, data: &[u8]) -> Result<Option<Vec<u8>>> {
    let wanted = usize::try_from(raw_len)
        .ok()
        .filter(|len| (1..=MAX_RAW).contains(len));
    let raw = match (codec, wanted) {
        (CODEC_RAW, Some(_)) => Some(data.to_vec()),
        (CODEC_ZSTD, Some(len)) => unzstd(data, len)?,
        _ => None,
    };
    Ok(raw.filter(|raw| Some(raw.len()) == wanted))
}

/// Where a chunk's bytes are, and what they must hash to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Location {
    pub(super) pack: i64,
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) digest: Digest,
}

impl Location {
    pub(super) fn range(&self) -> Range<usize> {
        self.offset as usize..self.offset as usize + self.len as usize
    }

    /// `Ok(None)`: there is no such chunk.
    pub(super) fn find(conn: &Connection, chunk: i64) -> Result<Option<Self>> {
        let damaged = || Error::Corrupt(format!("chunk {chunk} has an impossible place"));
        let row: Option<([u8; 32], i64, i64, i64)> = conn
            .prepare_cached("SELECT sha256, pack, offset, len FROM chunk WHERE id = ?1")?
            .query_row([chunk], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((digest, pack, offset, len)) = row else {
            return Ok(None);
        };
        let len = u32::try_from(len)
            .ok()
            .filter(|len| (1..=chunker::MAX).contains(&(*len as usize)));
        Ok(Some(Self {
            pack,
            offset: u32::try_from(offset).map_err(|_| damaged())?,
            len: len.ok_or_else(damaged)?,
            digest: Digest::from_bytes(digest),
        }))
    }

    /// The place of a chunk that something refers to.
    pub(super) fn must_find(conn: &Connection, chunk: i64) -> Result<Self> {
        Self::find(conn, chunk)?.ok_or_else(|| Error::Corrupt(format!("chunk {chunk} is missing")))
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<i64, Arc<Pack>> for ByBytes {
    fn weight(&self, _: &i64, pack: &Arc<Pack>) -> u64 {
        pack.raw.len() as u64 + 128
    }
}

/// Unpacked packs, bounded by bytes. Threads that want the same pack unpack it once.
pub(super) struct PackCache(quick_cache::sync::Cache<i64, Arc<Pack>, ByBytes>);

/// A verified chunk.
pub(super) struct ChunkBytes {
    pack: Arc<Pack>,
    range: Range<usize>,
}

impl std::ops::Deref for ChunkBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pack.bytes()[self.range.clone()]
    }
}

impl PackCache {
    pub(super) fn new() -> Self {
        Self(quick_cache::sync::Cache::with_weighter(
            (CACHE_BYTES / TARGET as u64) as usize,
            CACHE_BYTES,
            ByBytes,
        ))
    }

    /// Reads and verifies a chunk. One that is bad is noted for the next import.
    pub(super) fn chunk(&self, database: &Database, chunk: i64) -> Result<ChunkBytes> {
        self.chunk_at(database, chunk, None)
    }

    /// The same where its place was looked up before.
    pub(super) fn chunk_at(
        &self,
        database: &Database,
        chunk: i64,
        known: Option<Location>,
    ) -> Result<ChunkBytes> {
        let mut name = None;
        let read = self.read(database, chunk, known, &mut name);
        if let (Err(Error::Corrupt(_)), Some(name)) = (&read, name) {
            database.noted.note(&database.place, name);
        }
        read
    }

    fn read(
        &self,
        database: &Database,
        chunk: i64,
        mut known: Option<Location>,
        name: &mut Option<Digest>,
    ) -> Result<ChunkBytes> {
        // `gc` may move a chunk to another pack after it was looked up; its new place is found the second time.
        for _ in 0..2 + u8::from(known.is_some()) {
            let at = match known.take() {
                Some(at) => at,
                None => database.read(|conn| Location::must_find(conn, chunk))?,
            };
            *name = Some(at.digest);
            let pack = self.0.get_or_insert_with(&at.pack, || {
                database
                    .read(|conn| Pack::load(conn, at.pack))
                    .map_err(Some)?
                    .map(Arc::new)
                    .ok_or(None)
            });
            match pack {
                Ok(pack) => {
                    let range = pack.verified(chunk, &at)?;
                    return Ok(ChunkBytes { pack, range });
                }
                Err(Some(error)) => return Err(error),
                Err(None) => {}
            }
        }
        tracing::error!(
            chunk,
            "the pack that holds a chunk is missing: the store is damaged"
        );
        Err(Error::Corrupt(format!(
            "the pack that holds chunk {chunk} is missing"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(chunks: &[&[u8]]) -> StoredPack {
        let mut pack = RawPack::default();
        for (id, bytes) in (1..).zip(chunks) {
            pack.push(id, Digest::of(bytes), bytes);
        }
        StoredPack::compress(pack, &mut compressor().unwrap()).unwrap()
    }

    #[test]
    fn compresses_only_where_that_helps() {
        let text = stored(&[&[b'a'; 5000], &[b'b'; 5000]]);
        assert_eq!(text.codec, CODEC_ZSTD);
        assert_eq!(
            unpack(10_000, text.codec, &text.data).unwrap().unwrap(),
            [[b'a'; 5000], [b'b'; 5000]].concat()
        );
        let tiny = stored(&[b"x"]);
        assert_eq!((tiny.codec, tiny.data.as_slice()), (CODEC_RAW, &b"x"[..]));
    }

    #[test]
    fn damaged_packs_do_not_unpack() {
        let good = stored(&[&[7; 9000]]);
        for (what, raw_len, codec, data) in [
            ("longer than it says", 8999, CODEC_ZSTD, good.data.clone()),
            ("shorter than it says", 9001, CODEC_ZSTD, good.data.clone()),
            ("unknown codec", 9000, 2, good.data.clone()),
            ("nothing", 0, CODEC_RAW, vec![]),
            ("negative", -1, CODEC_RAW, vec![]),
            (
                "beyond any pack",
                MAX_RAW as i64 + 1,
                CODEC_ZSTD,
                good.data.clone(),
            ),
            (
                "cut off",
                9000,
                CODEC_ZSTD,
                good.data[..good.data.len() / 2].to_vec(),
            ),
        ] {
            assert_eq!(unpack(raw_len, codec, &data).unwrap(), None, "{what}");
        }
    }

    #[test]
    fn want_of_memory_is_no_damage() {
        let named = |code: usize| {
            let name = zstd::zstd_safe::get_error_name(code.wrapping_neg());
            io::Error::other(name)
        };
        // Numbers of zstd_errors.h: memory_allocation and corruption_detected.
        assert!(lacked_memory(&named(64)));
        assert!(!lacked_memory(&named(20)));
        assert!(lacked_memory(&io::ErrorKind::OutOfMemory.into()));
        let damaged = zstd::bulk::decompress(b"no frame", 10).unwrap_err();
        assert!(!lacked_memory(&damaged));
    }

    #[test]
    fn a_chunk_is_what_its_name_says_or_an_error() {
        let pack = Pack {
            raw: b"hello world".to_vec(),
            verified: Mutex::default(),
        };
        let at = |offset, len, bytes: &[u8]| Location {
            pack: 1,
            offset,
            len,
            digest: Digest::of(bytes),
        };
        assert_eq!(pack.verified(1, &at(0, 5, b"hello")).unwrap(), 0..5);
        assert_eq!(
            pack.verified(1, &at(0, 5, b"hello")).unwrap(),
            0..5,
            "the second time without hashing"
        );
        assert!(matches!(
            pack.verified(2, &at(6, 5, b"hello")),
            Err(Error::Corrupt(_))
        ));
        assert!(matches!(
            pack.verified(3, &at(6, 6, b"world!")),
            Err(Error::Corrupt(_))
        ));
        assert!(matches!(
            pack.verified(4, &at(u32::MAX, u32::MAX, b"")),
            Err(Error::Corrupt(_))
        ));
    }
}
