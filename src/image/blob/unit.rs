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
use super::deflate::{self, Block, Coding, Token, WINDOW};
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
    /// The plain bytes before the unit, a window of them.
    before: Vec<u8>,
    /// Plain bytes since the model was last reset.
    since_reset: usize,
}

impl State {
    pub fn new() -> Self {
        Self {
            model: Model::new(),
            before: Vec::new(),
            since_reset: 0,
        }
    }

    pub fn before(&self) -> &[u8] {
        &self.before
    }

    /// Plain bytes since the encoder began afresh.
    pub fn since_reset(&self) -> usize {
        self.since_reset
    }

    fn begin(&mut self, reset: bool, dictionary: usize) -> Option<()> {
        if reset {
            let from = self.before.len().checked_sub(dictionary)?;
            self.model.reset(&self.before[from..]);
            self.since_reset = 0;
        }
        Some(())
    }

    fn end(&mut self, plain: &[u8]) {
        self.before.extend_from_slice(plain);
        let gone = self.before.len().saturating_sub(WINDOW);
        self.before.drain(..gone);
        self.since_reset += plain.len();
    }

    /// Where the pieces of a unit of `len` bytes end.
    fn pieces(&self, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let first = PIECE - self.since_reset % PIECE;
        let mut at = 0;
        std::iter::from_fn(move || {
            let end = if at == 0 { first } else { at + PIECE }.min(len);
            let piece = at..end;
            at = end;
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// Whether a unit may end after `len` more bytes without a reset.
    pub fn is_boundary(&self, len: usize) -> bool {
        (self.since_reset + len).is_multiple_of(PIECE)
    }
}

/// How much of a unit was foretold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Luck {
    pub foretold: usize,
    pub told: usize,
}

/// What a unit is made of.
pub struct Unit<'a> {
    pub reset: bool,
    pub dictionary: usize,
    pub blocks: &'a [Block],
    pub tokens: &'a [Token],
    pub plain: &'a [u8],
}

/// Encodes a unit. `None` if it is not cut into pieces as the model expects.
pub fn encode(unit: &Unit<'_>, state: &mut State) -> Option<(Vec<u8>, Luck)> {
    let mut out = Vec::new();
    let pieces: Vec<_> = {
        state.begin(unit.reset, unit.dictionary)?;
        state.pieces(unit.plain.len()).collect()
    };
    for number in [
        u64::from(unit.reset),
        unit.dictionary as u64,
        unit.blocks.len() as u64,
        pieces.len() as u64,
    ] {
        varint::put(&mut out, number);
    }
    let mut stored = Vec::new();
    let (mut at, mut rest) = (0, unit.tokens);
    for block in unit.blocks {
        let (tokens, later) = rest.split_at_checked(block.tokens)?;
        rest = later;
        put_block(&mut out, block);
        match block.coding {
            Coding::Stored { len } => {
                stored.push(at..at + len);
                at += len;
            }
            _ => at += tokens.iter().map(|token| token.len()).sum::<usize>(),
        }
    }
    let mut luck = Luck::default();
    let (mut rest, mut foretold) = (unit.tokens, Vec::new());
    for piece in pieces {
        foretold.clear();
        state.model.piece(&unit.plain[piece.clone()], &mut foretold);
        if stored
            .iter()
            .any(|s| s.start <= piece.start && piece.end <= s.end)
        {
            varint::put(&mut out, STORED);
            continue;
        }
        if stored
            .iter()
            .any(|s| s.start < piece.end && piece.start < s.end)
        {
            return None;
        }
        let (mut count, mut len) = (0, 0);
        while len < piece.len() {
            len += rest.get(count)?.len();
            count += 1;
        }
        if len != piece.len() {
            return None;
        }
        let (own, later) = rest.split_at(count);
        rest = later;
        if own == foretold {
            varint::put(&mut out, FORETOLD);
            luck.foretold += piece.len();
        } else if count == piece.len() {
            varint::put(&mut out, LITERALS);
            luck.foretold += piece.len();
        } else {
            luck.told += piece.len();
            varint::put(&mut out, TOLD);
            varint::put(&mut out, count as u64);
            for token in own {
                varint::put(
                    &mut out,
                    match token.as_match() {
                        None => u64::from(token.0),
                        Some((length, distance)) => {
                            256 + (length as u64 - 3) + 256 * (distance as u64 - 1)
                        }
                    },
                );
            }
        }
    }
    state.end(unit.plain);
    let packed = zstd::bulk::compress(&out, LEVEL).ok()?;
    (out.len() <= MAX_RAW && packed.len() < store::MAX_PART - 64).then_some((packed, luck))
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

/// Makes the unit again out of what [`encode`] gave, unpacked, and its plain bytes. `None` if they do not fit together.
pub fn decode(bytes: &[u8], plain: &[u8], state: &mut State, out: &mut BitWriter) -> Option<()> {
    let mut cursor = Cursor::new(bytes);
    let reset = cursor.unsigned()? == 1;
    let dictionary = usize::try_from(cursor.unsigned()?).ok()?;
    let (blocks, pieces) = (cursor.unsigned()?, cursor.unsigned()?);
    let blocks = (0..blocks)
        .map(|_| get_block(&mut cursor))
        .collect::<Option<Vec<_>>>()?;
    state.begin(reset, dictionary)?;
    let mut tokens = Vec::new();
    let mut count = 0;
    for piece in state.pieces(plain.len()) {
        count += 1;
        let piece = &plain[piece];
        let before = tokens.len();
        state.model.piece(piece, &mut tokens);
        let told = cursor.unsigned()?;
        if told != FORETOLD {
            tokens.truncate(before);
        }
        match told {
            FORETOLD | STORED => {}
            LITERALS => tokens.extend(piece.iter().copied().map(Token::literal)),
            TOLD => {
                for _ in 0..cursor.unsigned()? {
                    let number = cursor.unsigned()?;
                    tokens.push(match number.checked_sub(256) {
                        None => Token::literal(number as u8),
                        Some(rest) if rest / 256 < WINDOW as u64 => {
                            Token::of_match((rest % 256) as usize + 3, (rest / 256) as usize + 1)
                        }
                        Some(_) => return None,
                    });
                }
            }
            _ => return None,
        }
    }
    if count != pieces || !cursor.is_empty() {
        return None;
    }
    let (mut at, mut rest) = (0, tokens.as_slice());
    for block in &blocks {
        let (own, later) = rest.split_at_checked(block.tokens)?;
        deflate::write(block, own, plain.get(at..)?, out)?;
        rest = later;
        at += match block.coding {
            Coding::Stored { len } => len,
            _ => own.iter().map(|token| token.len()).sum(),
        };
    }
    if at != plain.len() || !rest.is_empty() {
        return None;
    }
    if blocks.last().is_some_and(|block| block.last) {
        out.align();
    }
    state.end(plain);
    Some(())
}
