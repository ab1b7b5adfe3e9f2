//! A unit: a stretch of a DEFLATE stream, from one place where its encoder may have begun afresh to the next, told by what
//! the model cannot foretell.
//!
//! Form: varint flags (1: the model is reset first), varint length of the dictionary it then takes (the plain bytes just
//! before), varint number of blocks, varint number of pieces; then the blocks: varint `kind << 1 | last` (kind 0 stored, 1
//! fixed, 2 dynamic); for a stored block varint length, else varint number of tokens, for a dynamic one also varint bits and
//! bytes of its header; then per piece a varint: 0 the tokens are those the model foretells, 1 all bytes are literals, 2 the
//! piece lies in stored blocks, 3 tokens follow: varint count, and each as a varint, which is the byte, or
//! `256 + (length - 3) + 256 * (distance - 1)`. The whole is one zstd frame.

use std::io;

use crate::store;
use crate::store::varint::{self, Cursor};

use super::bits::BitWriter;
use super::deflate::{Block, Coding, Match, Unwritten, WINDOW};
use super::model::{Model, PIECE};

/// Plain bytes of a unit at most, and so what it takes to make one again.
pub const MAX_PLAIN: usize = 3 << 20;
/// Bytes of a unit before they are packed, at most.
const MAX_RAW: usize = 16 << 20;
const LEVEL: i32 = 3;

const FORETOLD: u64 = 0;
const LITERALS: u64 = 1;
const STORED: u64 = 2;
const TOLD: u64 = 3;

/// What both sides know when a unit begins.
pub struct State {
    model: Model,
    /// Plain bytes since the model was last reset.
    since_reset: usize,
    /// How many bytes lie between where the data of the last unit began and where that of the next does.
    gone: usize,
}

/// How many of `len` plain bytes must be at hand for the next unit.
pub fn kept_before(len: usize) -> usize {
    len.min(WINDOW)
}

/// Where the pieces of a unit of `len` bytes end.
fn pieces(since_reset: usize, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let first = PIECE - since_reset % PIECE;
    let mut at = 0;
    std::iter::from_fn(move || {
        let end = if at == 0 { first } else { at + PIECE }.min(len);
        let piece = at..end;
        at = end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Whether a unit may end without a reset, so many plain bytes after the last one.
pub fn is_boundary(since_reset: usize) -> bool {
    since_reset.is_multiple_of(PIECE)
}

impl State {
    pub fn new() -> Self {
        Self {
            model: Model::new(),
            since_reset: 0,
            gone: 0,
        }
    }

    fn begin(&mut self, reset: bool, dictionary: usize, before: &[u8]) -> Option<()> {
        if reset {
            self.model
                .reset(before, before.len().checked_sub(dictionary)?);
            self.since_reset = 0;
        } else {
            self.model.shift(self.gone);
        }
        Some(())
    }

    fn end(&mut self, data: &[u8], plain: usize) {
        self.gone = data.len() - kept_before(data.len());
        self.since_reset += plain;
    }
}

/// How much of a unit was foretold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Luck {
    pub foretold: usize,
    pub told: usize,
}

/// What a unit is made of.
pub struct Unit {
    pub reset: bool,
    pub dictionary: usize,
    pub blocks: Vec<Block>,
    pub matches: Vec<Match>,
    /// The plain bytes before it as far as matches reach, and its own.
    pub data: Vec<u8>,
    /// How many are before it.
    pub before: usize,
}

impl Unit {
    pub fn plain(&self) -> &[u8] {
        &self.data[self.before..]
    }

    /// Writes its blocks. `None` if they do not fit its bytes.
    pub fn write(&self, out: &mut BitWriter) -> Option<()> {
        let mut unwritten = Unwritten {
            plain: self.plain(),
            at: 0,
            matches: &self.matches,
        };
        for block in &self.blocks {
            unwritten.write(block, out)?;
        }
        if self.blocks.last().is_some_and(|block| block.last) {
            out.align();
        }
        unwritten.is_empty().then_some(())
    }
}

/// Encodes a unit. `None` if it is not cut into pieces as the model expects.
pub fn encode(unit: &Unit, state: &mut State) -> Option<(Vec<u8>, Luck)> {
    let mut out = Vec::new();
    let (before, plain) = unit.data.split_at(unit.before);
    state.begin(unit.reset, unit.dictionary, before)?;
    for number in [
        usize::from(unit.reset),
        unit.dictionary,
        unit.blocks.len(),
        pieces(state.since_reset, plain.len()).count(),
    ] {
        varint::put(&mut out, number as u64);
    }
    let stored = stored_places(&unit.blocks, plain.len(), &unit.matches);
    unit.blocks
        .iter()
        .for_each(|block| put_block(&mut out, block));
    let mut luck = Luck::default();
    let (mut rest, mut foretold) = (unit.matches.as_slice(), Vec::new());
    for piece in pieces(state.since_reset, plain.len()) {
        foretold.clear();
        let (start, end) = (unit.before + piece.start, unit.before + piece.end);
        let data = &unit.data[..end];
        state.model.piece(data, start, unit.before, &mut foretold);
        let mut over = stored
            .iter()
            .filter(|s| s.start < piece.end && piece.start < s.end);
        if let Some(stored) = over.next() {
            if stored.start > piece.start || piece.end > stored.end {
                return None;
            }
            varint::put(&mut out, STORED);
            continue;
        }
        let count = rest.partition_point(|next| (next.at as usize) < piece.end);
        let (own, later) = rest.split_at(count);
        rest = later;
        if own.last().is_some_and(|last| last.end() > piece.end) {
            return None;
        }
        if own.is_empty() {
            varint::put(&mut out, LITERALS);
            luck.foretold += piece.len();
        } else if own == foretold {
            varint::put(&mut out, FORETOLD);
            luck.foretold += piece.len();
        } else {
            luck.told += piece.len();
            varint::put(&mut out, TOLD);
            tell(&mut out, own, plain, piece);
        }
    }
    state.end(&unit.data, plain.len());
    let packed = zstd::bulk::compress(&out, LEVEL).ok()?;
    (out.len() <= MAX_RAW && packed.len() < store::MAX_PART - 64).then_some((packed, luck))
}

/// Where there are stored bytes.
fn stored_places(
    blocks: &[Block],
    len: usize,
    mut matches: &[Match],
) -> Vec<std::ops::Range<usize>> {
    let (mut at, mut stored) = (0, Vec::new());
    for block in blocks {
        if let Coding::Stored { len } = block.coding {
            if len > 0 {
                stored.push(at..at + len);
            }
            at += len;
            continue;
        }
        // Each token is a byte, but for matches, which are as many more as they are long.
        let mut left = block.tokens;
        while left > 0 {
            let next = matches.first().filter(|next| next.at as usize - at < left);
            let Some(next) = next else {
                at += left;
                break;
            };
            left -= next.at as usize - at + 1;
            at = next.end();
            matches = &matches[1..];
        }
        at = at.min(len);
    }
    stored
}

/// All tokens of a piece.
fn tell(out: &mut Vec<u8>, own: &[Match], plain: &[u8], piece: std::ops::Range<usize>) {
    let more: usize = own.iter().map(|next| next.length() - 1).sum();
    varint::put(out, (piece.len() - more) as u64);
    let mut at = piece.start;
    for next in own {
        for byte in &plain[at..next.at as usize] {
            varint::put(out, u64::from(*byte));
        }
        let (length, distance) = (next.length() as u64, next.distance() as u64);
        varint::put(out, 256 + (length - 3) + 256 * (distance - 1));
        at = next.end();
    }
    for byte in &plain[at..piece.end] {
        varint::put(out, u64::from(*byte));
    }
}

/// The matches of what [`tell`] told.
fn told(
    cursor: &mut Cursor<'_>,
    plain: &[u8],
    piece: std::ops::Range<usize>,
    matches: &mut Vec<Match>,
) -> Option<()> {
    let mut at = piece.start;
    for _ in 0..cursor.unsigned()? {
        let number = cursor.unsigned()?;
        let Some(rest) = number.checked_sub(256) else {
            // No literal but the byte that is there.
            if at >= piece.end || u64::from(plain[at]) != number {
                return None;
            }
            at += 1;
            continue;
        };
        if rest / 256 >= WINDOW as u64 {
            return None;
        }
        let (length, distance) = ((rest % 256) as usize + 3, (rest / 256) as usize + 1);
        matches.push(Match::new(at, length, distance));
        at += length;
        if at > piece.end {
            return None;
        }
    }
    (at == piece.end).then_some(())
}

fn put_block(out: &mut Vec<u8>, block: &Block) {
    let kind = match block.coding {
        Coding::Stored { .. } => 0,
        Coding::Fixed => 1,
        Coding::Dynamic { .. } => 2,
    };
    varint::put(out, kind << 1 | u64::from(block.last));
    match &block.coding {
        Coding::Stored { len } => varint::put(out, *len as u64),
        Coding::Fixed => varint::put(out, block.tokens as u64),
        Coding::Dynamic { header, bits } => {
            varint::put(out, block.tokens as u64);
            varint::put(out, *bits as u64);
            out.extend_from_slice(header);
        }
    }
}

fn get_block(cursor: &mut Cursor<'_>) -> Option<Block> {
    let head = cursor.unsigned()?;
    let count = usize::try_from(cursor.unsigned()?).ok()?;
    let (tokens, coding) = match head >> 1 {
        0 => (0, Coding::Stored { len: count }),
        1 => (count, Coding::Fixed),
        2 => {
            let bits = usize::try_from(cursor.unsigned()?).ok()?;
            let header = cursor.bytes(bits.div_ceil(8))?.to_vec();
            (count, Coding::Dynamic { header, bits })
        }
        _ => return None,
    };
    Some(Block {
        last: head & 1 == 1,
        coding,
        tokens,
    })
}

/// Unpacks what [`encode`] gave, for [`decode`].
pub fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::decompress(packed, MAX_RAW)
}

/// Makes the unit again out of what [`encode`] gave, unpacked, and its plain bytes, `data[before..]`. `None` if they do not
/// fit together.
pub fn decode(bytes: &[u8], data: Vec<u8>, before: usize, state: &mut State) -> Option<Unit> {
    let mut cursor = Cursor::new(bytes);
    let reset = cursor.unsigned()? == 1;
    let dictionary = usize::try_from(cursor.unsigned()?).ok()?;
    let (blocks, count) = (cursor.unsigned()?, cursor.unsigned()?);
    let blocks = (0..blocks)
        .map(|_| get_block(&mut cursor))
        .collect::<Option<Vec<_>>>()?;
    let (window, plain) = data.split_at_checked(before)?;
    state.begin(reset, dictionary, window)?;
    let mut matches = Vec::new();
    if count != pieces(state.since_reset, plain.len()).count() as u64 {
        return None;
    }
    for piece in pieces(state.since_reset, plain.len()) {
        let known = matches.len();
        let (start, end) = (before + piece.start, before + piece.end);
        state.model.piece(&data[..end], start, before, &mut matches);
        match cursor.unsigned()? {
            FORETOLD if matches.len() > known => {}
            LITERALS | STORED => matches.truncate(known),
            TOLD => {
                matches.truncate(known);
                told(&mut cursor, plain, piece, &mut matches)?;
            }
            _ => return None,
        }
    }
    state.end(&data, plain.len());
    cursor.is_empty().then_some(Unit {
        reset,
        dictionary,
        blocks,
        matches,
        data,
        before,
    })
}
