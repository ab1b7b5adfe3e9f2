//! The list of chunks and holes that makes up one content, and its compact form in `extent.list`.
//!
//! Form: per extent one varint `length << 1 | is_hole`, and for data the signed difference of the chunk's id to the
//! previous one of the same list (starting from 0). A long content is several lists, each with the offset it starts at.

use sha2::{Digest as _, Sha256};

use super::chunker;
use super::varint::{self, Cursor};
use super::{Digest, Error, Result};

/// Extents in one list; more go to the next, so that opening or reading a huge content decodes little.
pub(super) const LIST_LEN: usize = 1024;
/// Contents are smaller than this, holes included (the largest file offset Linux knows).
pub(super) const MAX_SIZE: u64 = i64::MAX as u64;

/// A stretch of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// The whole of a chunk.
    Data { chunk: i64, len: u32 },
    /// Zeros that take no space.
    Hole { len: u64 },
}

impl Extent {
    pub(super) fn len(&self) -> u64 {
        match *self {
            Self::Data { len, .. } => u64::from(len),
            Self::Hole { len } => len,
        }
    }
}

pub(super) fn encode(extents: &[Extent]) -> Vec<u8> {
    let mut out = Vec::with_capacity(extents.len() * 5);
    let mut previous = 0;
    for extent in extents {
        match *extent {
            Extent::Data { chunk, len } => {
                varint::put(&mut out, u64::from(len) << 1);
                varint::put_signed(&mut out, chunk - previous);
                previous = chunk;
            }
            Extent::Hole { len } => varint::put(&mut out, len << 1 | 1),
        }
    }
    out
}

/// Reads a list that may be damaged or crafted: every length is positive and bounded, every chunk id positive.
pub(super) fn decode(list: &[u8]) -> Result<Vec<Extent>> {
    let parse = || {
        let mut cursor = Cursor::new(list);
        let mut extents = Vec::new();
        let (mut previous, mut total) = (0i64, 0u64);
        while !cursor.is_empty() {
            let head = cursor.unsigned()?;
            let extent = if head & 1 == 1 {
                Extent::Hole { len: head >> 1 }
            } else {
                previous = previous.checked_add(cursor.signed()?)?;
                Extent::Data {
                    chunk: previous,
                    len: u32::try_from(head >> 1).ok()?,
                }
            };
            total = total.checked_add(extent.len())?;
            let sound = match extent {
                Extent::Data { chunk, len } => {
                    chunk > 0 && (1..=chunker::MAX).contains(&(len as usize))
                }
                Extent::Hole { len } => len > 0,
            };
            if !sound || total > MAX_SIZE || extents.len() == LIST_LEN {
                return None;
            }
            extents.push(extent);
        }
        Some(extents)
    };
    parse().ok_or_else(|| Error::Corrupt("a content's list of chunks makes no sense".to_owned()))
}

/// Gathers the extents of one content as it is written, and its name: the SHA-256 over kinds, lengths and chunk digests.
///
/// The name is not the hash of the file's bytes. Those are already hashed chunk by chunk, so another pass over them would
/// prove nothing more, and for a file that claims exabytes of hole it would take years.
pub(super) struct ListBuilder {
    name: Sha256,
    lists: Vec<(u64, Vec<u8>)>,
    tail: Vec<Extent>,
    tail_start: u64,
    size: u64,
    data_size: u64,
    count: u64,
}

/// A finished list.
pub(super) struct BuiltList {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) data_size: u64,
    /// Start offset and encoded form of each list.
    pub(super) lists: Vec<(u64, Vec<u8>)>,
}

impl ListBuilder {
    pub(super) fn new() -> Self {
        Self {
            name: Sha256::new_with_prefix(b"ovl content 1\0"),
            lists: Vec::new(),
            tail: Vec::new(),
            tail_start: 0,
            size: 0,
            data_size: 0,
            count: 0,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn data_size(&self) -> u64 {
        self.data_size
    }

    /// The only extent, if it is one chunk and nothing else: such a content needs no list.
    pub(super) fn single_chunk(&self) -> Option<i64> {
        match (self.count, self.tail.as_slice()) {
            (1, [Extent::Data { chunk, .. }]) => Some(*chunk),
            _ => None,
        }
    }

    /// `digest` names the bytes of a data extent. `None` if the content would become too large.
    pub(super) fn push(&mut self, extent: Extent, digest: Option<&Digest>) -> Option<()> {
        if self.tail.len() == LIST_LEN {
            self.lists.push((self.tail_start, encode(&self.tail)));
            self.tail.clear();
            self.tail_start = self.size;
        }
        self.size = self
            .size
            .checked_add(extent.len())
            .filter(|size| *size <= MAX_SIZE)?;
        self.name.update([u8::from(digest.is_none())]);
        self.name.update(extent.len().to_le_bytes());
        if let Some(digest) = digest {
            self.name.update(digest.as_bytes());
            self.data_size += extent.len();
        }
        self.tail.push(extent);
        self.count += 1;
        Some(())
    }

    pub(super) fn finish(mut self) -> BuiltList {
        if !self.tail.is_empty() {
            self.lists.push((self.tail_start, encode(&self.tail)));
        }
        let digest = Digest::from_bytes(self.name.finalize().into());
        BuiltList {
            digest,
            size: self.size,
            data_size: self.data_size,
            lists: self.lists,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent() -> impl Strategy<Value = Extent> {
        prop_oneof![
            (1..i64::MAX / 4, 1..=chunker::MAX as u32)
                .prop_map(|(chunk, len)| Extent::Data { chunk, len }),
            (1..1u64 << 50).prop_map(|len| Extent::Hole { len }),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(list in prop::collection::vec(extent(), 0..LIST_LEN)) {
            prop_assert_eq!(decode(&encode(&list)).unwrap(), list);
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes: Vec<u8>) {
            if let Ok(list) = decode(&bytes) {
                prop_assert_eq!(encode(&list), bytes);
            }
        }
    }

    #[test]
    fn senseless_lists_are_refused() {
        let data = |chunk, len| Extent::Data { chunk, len };
        for (what, list) in [
            ("no length", vec![data(1, 0)]),
            ("no id", vec![data(0, 1)]),
            ("negative id", vec![data(5, 1), data(-5, 1)]),
            (
                "longer than any chunk",
                vec![data(1, chunker::MAX as u32 + 1)],
            ),
            ("empty hole", vec![Extent::Hole { len: 0 }]),
            (
                "larger than any file",
                vec![Extent::Hole { len: MAX_SIZE }, data(1, 1)],
            ),
            ("too many", vec![data(1, 1); LIST_LEN + 1]),
        ] {
            assert!(
                matches!(decode(&encode(&list)), Err(Error::Corrupt(_))),
                "{what}"
            );
        }
    }

    #[test]
    fn long_lists_are_split_and_names_tell_holes_from_data() {
        let mut builder = ListBuilder::new();
        let digest = Digest::of(b"x");
        for n in 0..LIST_LEN as i64 + 1 {
            builder
                .push(
                    Extent::Data {
                        chunk: n + 1,
                        len: 10,
                    },
                    Some(&digest),
                )
                .unwrap();
        }
        assert_eq!(builder.single_chunk(), None);
        let built = builder.finish();
        assert_eq!(
            built
                .lists
                .iter()
                .map(|(start, _)| *start)
                .collect::<Vec<_>>(),
            [0, LIST_LEN as u64 * 10]
        );
        assert_eq!((built.size, built.data_size), (10_250, 10_250));

        let name = |extents: &[(Extent, Option<&Digest>)]| {
            let mut builder = ListBuilder::new();
            extents
                .iter()
                .for_each(|(extent, digest)| builder.push(*extent, *digest).unwrap());
            builder.finish().digest
        };
        let (hole, chunk) = (Extent::Hole { len: 10 }, Extent::Data { chunk: 1, len: 10 });
        assert_ne!(name(&[(hole, None)]), name(&[(chunk, Some(&digest))]));
        assert_ne!(
            name(&[(hole, None), (chunk, Some(&digest))]),
            name(&[(chunk, Some(&digest)), (hole, None)])
        );
        let mut huge = ListBuilder::new();
        huge.push(Extent::Hole { len: MAX_SIZE }, None).unwrap();
        assert_eq!(huge.push(Extent::Hole { len: 1 }, None), None);
    }
}
