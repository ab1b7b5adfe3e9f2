//! Random access to one content, verified chunk by chunk.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::OptionalExtension;

use super::extents::{self, Extent, MAX_SIZE};
use super::pack::{ChunkBytes, Location};
use super::{Error, Result, Shared};

/// Names a content inside the store: nothing (an empty file), one chunk, or a list of chunks and holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentRef(pub(super) i64);

/// What a [`ContentRef`] refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentKind {
    Empty,
    Chunk(i64),
    List(i64),
}

impl ContentRef {
    /// The content of an empty file.
    pub(super) const EMPTY: Self = Self(0);

    pub(super) const fn chunk(id: i64) -> Self {
        Self(id << 1)
    }

    pub(super) const fn list(id: i64) -> Self {
        Self(id << 1 | 1)
    }

    /// From the database; refuses what no writer writes.
    pub(super) fn stored(raw: i64) -> Result<Self> {
        if raw >= 1 {
            Ok(Self(raw))
        } else {
            Err(Error::Corrupt("a reference to no content".to_owned()))
        }
    }

    pub(super) const fn kind(self) -> ContentKind {
        match (self.0, self.0 & 1) {
            (0, _) => ContentKind::Empty,
            (_, 0) => ContentKind::Chunk(self.0 >> 1),
            _ => ContentKind::List(self.0 >> 1),
        }
    }
}

/// A list of extents with the offset each starts at.
struct Segment {
    start: u64,
    end: u64,
    extents: Vec<(u64, Extent)>,
}

impl Segment {
    fn extent_at(&self, offset: u64) -> (u64, Extent) {
        // `offset` lies within the segment, and a segment holds at least one extent and starts with it.
        self.extents[self.extents.partition_point(|(start, _)| *start <= offset) - 1]
    }
}

/// Random access to one content. Verified: a chunk that does not hash to its name is [`Error::Corrupt`].
pub struct ContentReader {
    shared: Arc<Shared>,
    kind: ContentKind,
    size: u64,
    /// Where the only chunk was when the content was opened.
    place: Option<Location>,
    /// The segment last used: reads are mostly in order.
    recent: Mutex<Option<Arc<Segment>>>,
}

impl ContentReader {
    pub(super) fn open(shared: &Arc<Shared>, content: ContentRef) -> Result<Self> {
        let kind = content.kind();
        let (mut recent, mut place) = (None, None);
        let size = match kind {
            ContentKind::Empty => 0,
            ContentKind::Chunk(chunk) => {
                let at = shared
                    .database
                    .read(|conn| Location::must_find(conn, chunk))?;
                let len = at.len;
                place = Some(at);
                let extents = vec![(0, Extent::Data { chunk, len })];
                recent = Some(Arc::new(Segment {
                    start: 0,
                    end: u64::from(len),
                    extents,
                }));
                u64::from(len)
            }
            ContentKind::List(id) => {
                let size: Option<i64> = shared.database.read(|conn| {
                    Ok(conn
                        .prepare_cached("SELECT size FROM content WHERE id = ?1")?
                        .query_row([id], |row| row.get(0))
                        .optional()?)
                })?;
                size.and_then(|size| u64::try_from(size).ok())
                    .filter(|size| *size <= MAX_SIZE)
                    .ok_or_else(|| Error::Corrupt(format!("content {id} is missing")))?
            }
        };
        Ok(Self {
            shared: Arc::clone(shared),
            kind,
            size,
            place,
            recent: Mutex::new(recent),
        })
    }

    /// Bytes, holes included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buf` from `offset`; short only at the end of the content. Holes read as zeros.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let wanted = usize::try_from(self.size.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let (mut offset, mut rest) = (offset, &mut buf[..wanted]);
        while !rest.is_empty() {
            let (start, extent) = self.segment(offset)?.extent_at(offset);
            let within = offset - start;
            let take = usize::try_from(extent.len() - within)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (now, later) = rest.split_at_mut(take);
            match extent {
                Extent::Hole { .. } => now.fill(0),
                Extent::Data { chunk, len } => {
                    let bytes = self.shared.chunk(chunk, len, self.place)?;
                    let within = within as usize;
                    now.copy_from_slice(&bytes[within..within + take]);
                }
            }
            offset += take as u64;
            rest = later;
        }
        Ok(wanted)
    }

    /// First data byte at or after `offset` (`None`: only hole up to the end).
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        self.next(offset, |extent| matches!(extent, Extent::Data { .. }))
    }

    /// First hole at or after `offset`; the end of the content counts as one.
    pub fn next_hole(&self, offset: u64) -> Result<u64> {
        Ok(self
            .next(offset, |extent| matches!(extent, Extent::Hole { .. }))?
            .unwrap_or(self.size))
    }

    fn next(&self, mut offset: u64, wanted: impl Fn(&Extent) -> bool) -> Result<Option<u64>> {
        while offset < self.size {
            let (start, extent) = self.segment(offset)?.extent_at(offset);
            if wanted(&extent) {
                return Ok(Some(offset));
            }
            offset = start + extent.len();
        }
        Ok(None)
    }

    /// Gives all data of a content to `sink`, chunk by chunk, verified.
    pub(super) fn each_chunk_of(
        shared: &Arc<Shared>,
        content: ContentRef,
        mut sink: impl FnMut(ChunkBytes) -> Result<()>,
    ) -> Result<()> {
        match content.kind() {
            ContentKind::Empty => Ok(()),
            // Its length is what its row says: there is nothing to compare it with.
            ContentKind::Chunk(chunk) => sink(shared.packs.chunk(&shared.database, chunk)?),
            ContentKind::List(_) => Self::open(shared, content)?
                .each_chunk(|chunk, len| sink(shared.chunk(chunk, len, None)?)),
        }
    }

    /// Gives every data extent in order to `sink`, as `(chunk, length)`.
    pub(super) fn each_chunk(&self, mut sink: impl FnMut(i64, u32) -> Result<()>) -> Result<()> {
        let mut offset = 0;
        while offset < self.size {
            let segment = self.segment(offset)?;
            for (_, extent) in &segment.extents {
                if let Extent::Data { chunk, len } = *extent {
                    sink(chunk, len)?;
                }
            }
            offset = segment.end;
        }
        Ok(())
    }

    /// The segment that holds `offset`, which lies within the content.
    fn segment(&self, offset: u64) -> Result<Arc<Segment>> {
        let recent = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(segment) = recent()
            .as_ref()
            .filter(|s| (s.start..s.end).contains(&offset))
        {
            return Ok(Arc::clone(segment));
        }
        let ContentKind::List(id) = self.kind else {
            return Err(Error::Corrupt("a content ends before its size".to_owned()));
        };
        let segment = Arc::new(self.load(id, offset)?);
        *recent() = Some(Arc::clone(&segment));
        Ok(segment)
    }

    fn load(&self, id: i64, offset: u64) -> Result<Segment> {
        let damaged = |what: &str| Error::Corrupt(format!("content {id}: {what}"));
        let row: Option<(i64, Vec<u8>)> = self.shared.database.read(|conn| {
            Ok(conn
                .prepare_cached(
                    "SELECT start, list FROM extent WHERE content = ?1 AND start <= ?2 ORDER BY start DESC LIMIT 1",
                )?
                .query_row((id, offset as i64), |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?)
        })?;
        let (start, list) = row.ok_or_else(|| damaged("part of its list of chunks is missing"))?;
        let start =
            u64::try_from(start).map_err(|_| damaged("a list starts before the content"))?;
        let mut end = start;
        let mut extents = Vec::new();
        for extent in extents::decode(&list)? {
            extents.push((end, extent));
            end += extent.len();
        }
        if end > self.size || !(start..end).contains(&offset) {
            return Err(damaged("its list of chunks does not fit its size"));
        }
        Ok(Segment {
            start,
            end,
            extents,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_tell_what_they_refer_to() {
        for (reference, kind) in [
            (ContentRef::EMPTY, ContentKind::Empty),
            (ContentRef::chunk(7), ContentKind::Chunk(7)),
            (ContentRef::list(7), ContentKind::List(7)),
        ] {
            assert_eq!(reference.kind(), kind);
        }
        for wild in [0, -1, i64::MIN] {
            assert!(ContentRef::stored(wild).is_err(), "{wild}");
        }
        assert_eq!(
            ContentRef::stored(1).unwrap().kind(),
            ContentKind::List(0),
            "found missing when opened"
        );
    }
}
