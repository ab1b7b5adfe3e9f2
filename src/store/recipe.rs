//! The tar recipe: what, besides contents, gives a layer's tar back bit for bit.
//!
//! A recipe is a row of segments. Each holds operations and the literal bytes they use up in order. Form of an
//! operation: varint `count << 1 | is_content`; for a content also the signed difference of its reference to the
//! previous one of the same segment. `count` is the number of tar bytes: of a content, its data without holes, which is
//! how every sparse format of tar stores it. Literals are one zstd frame per segment: a 512-byte header costs some
//! thirty bytes.

use super::varint::{self, Cursor};
use super::{ContentRef, Error, Result};

/// A segment is closed when its literals or operations reach this many bytes, so memory stays bounded.
pub(super) const SEGMENT_LITERALS: usize = 512 << 10;
const SEGMENT_OPS: usize = 64 << 10;
/// No segment's operations are longer, bytes: references to contents that another import had stored already may each take
/// nine bytes more than those they were written with.
const MAX_OPS: usize = 16 * SEGMENT_OPS;
/// zstd level of the literals.
const LEVEL: i32 = 3;

/// One step of writing the tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Copy so many of the segment's literal bytes.
    Literal(u64),
    /// Copy all data bytes of a content; `len` must be their number.
    Content { content: ContentRef, len: u64 },
}

/// A segment as stored.
pub(super) struct Segment {
    pub(super) ops: Vec<u8>,
    /// Length of the literals before compression.
    pub(super) raw_len: u64,
    pub(super) literals: Vec<u8>,
}

pub(super) fn encode_ops(ops: impl IntoIterator<Item = Op>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut previous = 0;
    for op in ops {
        encode_op(&mut out, op, &mut previous);
    }
    out
}

fn encode_op(out: &mut Vec<u8>, op: Op, previous: &mut i64) {
    match op {
        Op::Literal(len) => varint::put(out, len << 1),
        Op::Content { content, len } => {
            varint::put(out, len << 1 | 1);
            varint::put_signed(out, content.0 - *previous);
            *previous = content.0;
        }
    }
}

/// Reads operations that may be damaged or crafted, one at a time: a row of a crafted store may be 32 MiB long, and a step
/// in memory takes many times what it takes on the disk.
pub(super) fn decode_ops(ops: &[u8]) -> Result<Ops<'_>> {
    if ops.len() > MAX_OPS {
        return Err(senseless());
    }
    Ok(Ops {
        cursor: Some(Cursor::new(ops)),
        previous: 0,
    })
}

/// The operations of a segment; the last item is an error if they make no sense from there on.
pub(super) struct Ops<'a> {
    cursor: Option<Cursor<'a>>,
    previous: i64,
}

impl Iterator for Ops<'_> {
    type Item = Result<Op>;

    fn next(&mut self) -> Option<Result<Op>> {
        let cursor = self.cursor.as_mut()?;
        if cursor.is_empty() {
            return None;
        }
        let previous = &mut self.previous;
        let mut parse = || {
            let head = cursor.unsigned()?;
            if head & 1 == 0 {
                return Some(Op::Literal(head >> 1));
            }
            *previous = previous.checked_add(cursor.signed()?)?;
            Some(Op::Content {
                content: ContentRef::stored(*previous).ok()?,
                len: head >> 1,
            })
        };
        let op = parse();
        if op.is_none() {
            self.cursor = None;
        }
        Some(op.ok_or_else(senseless))
    }
}

fn senseless() -> Error {
    Error::Corrupt("a tar recipe makes no sense".to_owned())
}

/// Unpacks a segment's literals, at most as many as a segment may hold.
pub(super) fn decode_literals(raw_len: i64, literals: &[u8]) -> Result<Vec<u8>> {
    let damaged = || Error::Corrupt("a tar recipe's headers cannot be unpacked".to_owned());
    let raw_len = usize::try_from(raw_len)
        .ok()
        .filter(|len| *len <= SEGMENT_LITERALS)
        .ok_or_else(damaged)?;
    let raw = if raw_len == 0 {
        Vec::new()
    } else {
        super::pack::unzstd(literals, raw_len)?.ok_or_else(damaged)?
    };
    if raw.len() == raw_len {
        Ok(raw)
    } else {
        Err(damaged())
    }
}

/// Gathers a recipe in stream order and gives full segments.
pub(super) struct RecipeBuilder {
    ops: Vec<u8>,
    literals: Vec<u8>,
    /// Literal bytes not yet covered by an operation.
    run: u64,
    previous: i64,
    compressor: zstd::bulk::Compressor<'static>,
}

impl RecipeBuilder {
    pub(super) fn new() -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(LEVEL).map_err(super::pack::zstd_failed)?;
        Ok(Self {
            ops: Vec::new(),
            literals: Vec::new(),
            run: 0,
            previous: 0,
            compressor,
        })
    }

    pub(super) fn literal(
        &mut self,
        mut bytes: &[u8],
        sink: &mut impl FnMut(Segment) -> Result<()>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            let take = bytes.len().min(SEGMENT_LITERALS - self.literals.len());
            self.literals.extend_from_slice(&bytes[..take]);
            self.run += take as u64;
            bytes = &bytes[take..];
            if self.literals.len() == SEGMENT_LITERALS {
                sink(self.close()?)?;
            }
        }
        Ok(())
    }

    pub(super) fn content(
        &mut self,
        content: ContentRef,
        len: u64,
        sink: &mut impl FnMut(Segment) -> Result<()>,
    ) -> Result<()> {
        self.end_run();
        encode_op(
            &mut self.ops,
            Op::Content { content, len },
            &mut self.previous,
        );
        if self.ops.len() >= SEGMENT_OPS {
            sink(self.close()?)?;
        }
        Ok(())
    }

    /// The last segment, if anything is left for one.
    pub(super) fn finish(&mut self) -> Result<Option<Segment>> {
        self.end_run();
        if self.ops.is_empty() {
            Ok(None)
        } else {
            self.close().map(Some)
        }
    }

    fn end_run(&mut self) {
        if self.run > 0 {
            encode_op(&mut self.ops, Op::Literal(self.run), &mut self.previous);
            self.run = 0;
        }
    }

    fn close(&mut self) -> Result<Segment> {
        self.end_run();
        let raw_len = self.literals.len() as u64;
        let literals = if raw_len == 0 {
            Vec::new()
        } else {
            self.compressor
                .compress(&self.literals)
                .map_err(super::pack::zstd_failed)?
        };
        self.literals.clear();
        self.previous = 0;
        Ok(Segment {
            ops: std::mem::take(&mut self.ops),
            raw_len,
            literals,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..1u64 << 62).prop_map(Op::Literal),
            (1..i64::MAX / 4, 0..1u64 << 62).prop_map(|(id, len)| Op::Content {
                content: ContentRef(id),
                len
            }),
        ]
    }

    fn all(ops: &[u8]) -> Result<Vec<Op>> {
        decode_ops(ops)?.collect()
    }

    #[test]
    fn a_segment_longer_than_any_is_refused_unread() {
        assert_eq!(all(&vec![0; MAX_OPS]).unwrap().len(), MAX_OPS);
        assert!(matches!(
            decode_ops(&vec![0; MAX_OPS + 1]),
            Err(Error::Corrupt(_))
        ));
    }

    /// A writer's fullest segment, each of its references replaced by the longest there is.
    #[test]
    fn renamed_contents_stay_within_the_bound() {
        let op = |id| Op::Content {
            content: ContentRef(id),
            len: 1,
        };
        let short = encode_ops((1..=SEGMENT_OPS as i64 / 2).map(op));
        let far = |n: i64| op(if n % 2 == 0 { 1 } else { i64::MAX });
        let long = encode_ops((1..=SEGMENT_OPS as i64 / 2).map(far));
        assert!(short.len() <= SEGMENT_OPS + 20, "{}", short.len());
        assert!(long.len() < MAX_OPS, "{}", long.len());
        assert_eq!(all(&long).unwrap().len(), SEGMENT_OPS / 2);
    }

    #[test]
    fn what_follows_nonsense_is_not_read() {
        let mut ops = decode_ops(&[2, 1, 1, 2]).unwrap();
        assert_eq!(ops.next().unwrap().unwrap(), Op::Literal(1));
        assert!(ops.next().unwrap().is_err(), "a reference to no content");
        assert!(ops.next().is_none());
    }

    proptest! {
        #[test]
        fn ops_round_trip(ops in prop::collection::vec(op(), 0..200)) {
            prop_assert_eq!(all(&encode_ops(ops.iter().copied())).unwrap(), ops);
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes: Vec<u8>) {
            if let Ok(ops) = all(&bytes) {
                prop_assert_eq!(encode_ops(ops), bytes);
            }
        }

        #[test]
        fn a_stream_comes_back(pieces in prop::collection::vec((0..200_000usize, 1..50i64), 0..30)) {
            let mut builder = RecipeBuilder::new().unwrap();
            let (mut segments, mut want, mut literal) = (Vec::new(), Vec::new(), Vec::new());
            for (len, id) in pieces {
                let bytes = vec![id as u8; len];
                builder.literal(&bytes, &mut |s| { segments.push(s); Ok(()) }).unwrap();
                builder.content(ContentRef(id), 7, &mut |s| { segments.push(s); Ok(()) }).unwrap();
                literal.extend_from_slice(&bytes);
                want.push(ContentRef(id));
            }
            segments.extend(builder.finish().unwrap());
            let (mut got, mut bytes) = (Vec::new(), Vec::new());
            for segment in &segments {
                let mut covered = 0;
                for op in decode_ops(&segment.ops).unwrap() {
                    match op.unwrap() {
                        Op::Literal(len) => covered += len,
                        Op::Content { content, len: 7 } => got.push(content),
                        Op::Content { .. } => panic!("wrong length"),
                    }
                }
                prop_assert_eq!(covered, segment.raw_len);
                bytes.extend(decode_literals(segment.raw_len as i64, &segment.literals).unwrap());
            }
            prop_assert_eq!(got, want);
            prop_assert_eq!(bytes, literal);
        }
    }

    #[test]
    fn literals_that_do_not_unpack_to_their_length_are_refused() {
        let packed = zstd::bulk::compress(b"header", 3).unwrap();
        assert_eq!(decode_literals(6, &packed).unwrap(), b"header");
        for (what, len, bytes) in [
            ("longer", 5, packed.as_slice()),
            ("shorter", 7, &packed),
            ("negative", -1, &packed),
            ("beyond any segment", SEGMENT_LITERALS as i64 + 1, &packed),
            ("garbage", 6, b"garbage"),
        ] {
            assert!(
                matches!(decode_literals(len, bytes), Err(Error::Corrupt(_))),
                "{what}"
            );
        }
    }
}
