//! DEFLATE blocks put together again, bit for bit.
//!
//! Source: RFC 1951. What a block was coded with is kept as the very bits of its header, so nothing has to be known of
//! how its encoder chooses codes.

use super::bits::{BitReader, BitWriter};
use super::codes::{self, END, Lengths, MAX_LENGTH};

/// The largest distance a match can reach back.
pub const WINDOW: usize = 32 << 10;

/// A match; what is not matched is literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Where it begins, counted from where the plain bytes at hand do.
    pub at: u32,
    what: u32,
}

impl Match {
    /// `length` 3 to 258, `distance` 1 to 32768.
    #[inline(always)]
    pub const fn new(at: usize, length: usize, distance: usize) -> Self {
        Self {
            at: at as u32,
            what: (length as u32 - 3) << 16 | (distance as u32 - 1),
        }
    }

    pub const fn length(self) -> usize {
        (self.what >> 16) as usize + 3
    }

    pub const fn distance(self) -> usize {
        (self.what & 0x7fff) as usize + 1
    }

    /// Where what comes after it begins.
    pub const fn end(self) -> usize {
        self.at as usize + self.length()
    }
}

/// How a block is coded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coding {
    Stored {
        len: usize,
    },
    Fixed,
    /// The bits of the header after the block's type, and how many.
    Dynamic {
        header: Vec<u8>,
        bits: usize,
    },
}

/// One block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub last: bool,
    pub coding: Coding,
    /// Literals and matches in it.
    pub tokens: usize,
}

/// Some bits of `input`, the first one lowest.
pub fn copy_bits(input: &[u8], start: usize, bits: usize) -> Vec<u8> {
    let mut reader = BitReader::at(input, start);
    let mut writer = BitWriter::default();
    for _ in 0..bits / 32 {
        writer.put(u64::from(reader.take(32)), 32);
    }
    writer.put(u64::from(reader.take(bits as u32 % 32)), bits as u32 % 32);
    writer.align();
    writer.bytes
}

/// The bytes and matches of blocks that are not written yet.
pub struct Unwritten<'a> {
    pub plain: &'a [u8],
    /// How much of it is written.
    pub at: usize,
    pub matches: &'a [Match],
}

impl Unwritten<'_> {
    pub fn is_empty(&self) -> bool {
        self.at == self.plain.len() && self.matches.is_empty()
    }

    /// Writes the next block. `None` if it does not fit what is there.
    pub fn write(&mut self, block: &Block, out: &mut BitWriter) -> Option<()> {
        out.put(u64::from(block.last), 1);
        let lengths = match &block.coding {
            Coding::Stored { len } => {
                out.put(0, 2);
                out.align();
                let short = u16::try_from(*len).ok()?;
                out.put(u64::from(short) | u64::from(!short) << 16, 32);
                let end = self.at + len;
                out.bytes.extend_from_slice(self.plain.get(self.at..end)?);
                self.at = end;
                return Some(());
            }
            Coding::Fixed => {
                out.put(1, 2);
                Lengths::fixed()
            }
            Coding::Dynamic { header, bits } => {
                if header.len() != bits.div_ceil(8) {
                    return None;
                }
                out.put(2, 2);
                let mut reader = BitReader::at(header, 0);
                for _ in 0..bits / 32 {
                    out.put(u64::from(reader.take(32)), 32);
                }
                out.put(u64::from(reader.take(*bits as u32 % 32)), *bits as u32 % 32);
                let mut reader = BitReader::at(header, 0);
                let lengths = Lengths::read(&mut reader)?;
                if reader.position() != *bits {
                    return None;
                }
                lengths
            }
        };
        self.tokens(block.tokens, &Codes::new(&lengths)?, out)
    }

    fn tokens(&mut self, count: usize, codes: &Codes, out: &mut BitWriter) -> Option<()> {
        let mut left = count;
        // Bits of a symbol that has no code.
        let mut without = false;
        loop {
            let next = self.matches.first();
            let until = next.map_or(self.plain.len(), |next| next.at as usize);
            let run = until.checked_sub(self.at)?.min(left);
            let literals = self.plain.get(self.at..self.at + run)?;
            for three in literals.chunks(3) {
                for byte in three {
                    let code = codes.literals[usize::from(*byte)];
                    without |= code.n == 0;
                    out.push(u64::from(code.bits), u32::from(code.n));
                }
                out.flush();
            }
            self.at += run;
            left -= run;
            if left == 0 {
                break;
            }
            let next = next?;
            let length = codes.lengths[next.length() - 3];
            let (symbol, extra, n) = codes::of_distance(next.distance());
            let code = codes.distances[symbol & 31];
            without |= length.n == 0 || code.n == 0;
            out.push(u64::from(length.bits), u32::from(length.n));
            out.push(u64::from(code.bits), u32::from(code.n));
            out.push(u64::from(extra), n);
            out.flush();
            self.at += next.length();
            self.matches = &self.matches[1..];
            left -= 1;
        }
        let end = codes.end;
        out.put(u64::from(end.bits), u32::from(end.n));
        (!without && end.n > 0).then_some(())
    }
}

#[derive(Clone, Copy, Default)]
struct Code {
    bits: u32,
    n: u8,
}

/// What is written for each literal, length and distance.
struct Codes {
    literals: [Code; 256],
    end: Code,
    /// From 3 on, with their extra bits.
    lengths: [Code; MAX_LENGTH - 2],
    distances: [Code; 32],
}

impl Codes {
    fn new(lengths: &Lengths) -> Option<Self> {
        let both = |lengths: &[u8]| -> Option<Vec<Code>> {
            let codes = codes::codes(lengths)?.into_iter().zip(lengths);
            let code = |(bits, n): (u16, &u8)| Code {
                bits: u32::from(bits),
                n: *n,
            };
            Some(codes.map(code).collect())
        };
        let (literals, distances) = (both(&lengths.literals)?, both(&lengths.distances)?);
        let mut all = Self {
            literals: [Code::default(); 256],
            end: *literals.get(END)?,
            lengths: [Code::default(); MAX_LENGTH - 2],
            distances: [Code::default(); 32],
        };
        all.literals.copy_from_slice(literals.get(..256)?);
        for (i, slot) in all.lengths.iter_mut().enumerate() {
            let (symbol, extra, n) = codes::of_length(i + 3);
            if let Some(code) = literals.get(symbol).filter(|code| code.n > 0) {
                *slot = Code {
                    bits: code.bits | extra << code.n,
                    n: code.n + n as u8,
                };
            }
        }
        for (slot, code) in all.distances.iter_mut().zip(&distances) {
            *slot = *code;
        }
        Some(all)
    }
}
