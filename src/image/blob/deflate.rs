//! DEFLATE blocks taken apart into tokens and put together again, bit for bit.
//!
//! Source: RFC 1951. What a block was coded with is kept as the very bits of its header, so nothing has to be known of
//! how its encoder chooses codes.

use super::bits::{BitReader, BitWriter};

/// The largest distance a match can reach back.
pub const WINDOW: usize = 32 << 10;
const MAX_LENGTH: usize = 258;
const END: usize = 256;

/// A literal byte or a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub u32);

impl Token {
    const MATCH: u32 = 1 << 31;

    pub const fn literal(byte: u8) -> Self {
        Self(byte as u32)
    }

    /// `length` 3 to 258, `distance` 1 to 32768.
    pub const fn of_match(length: usize, distance: usize) -> Self {
        Self(Self::MATCH | (length as u32 - 3) << 16 | (distance as u32 - 1))
    }

    /// Length and distance of a match.
    pub const fn as_match(self) -> Option<(usize, usize)> {
        if self.0 & Self::MATCH == 0 {
            return None;
        }
        let length = (self.0 >> 16 & 0xff) as usize + 3;
        Some((length, (self.0 & 0x7fff) as usize + 1))
    }

    /// Bytes it stands for.
    pub const fn len(self) -> usize {
        match self.as_match() {
            Some((length, _)) => length,
            None => 1,
        }
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

/// One block. Its tokens are elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub last: bool,
    pub coding: Coding,
    pub tokens: usize,
}

/// Why a block was not taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It goes on beyond the bytes at hand.
    Short,
    /// It is no DEFLATE, or not one that would come back.
    Unfit,
}

const ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];
const LENGTH_BASE: [u16; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
    163, 195, 227, 258,
];
const LENGTH_EXTRA: [u8; 29] = [
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
];

const fn distance_extra(symbol: usize) -> u32 {
    if symbol < 2 { 0 } else { symbol as u32 / 2 - 1 }
}

const fn distance_base(symbol: usize) -> usize {
    if symbol < 2 {
        symbol + 1
    } else {
        ((2 + symbol % 2) << distance_extra(symbol)) + 1
    }
}

/// Code lengths of the two alphabets of a block.
struct Lengths {
    literals: Vec<u8>,
    distances: Vec<u8>,
}

impl Lengths {
    fn fixed() -> Self {
        let literals = (0..288)
            .map(|symbol| match symbol {
                0..144 => 8,
                144..256 => 9,
                256..280 => 7,
                _ => 8,
            })
            .collect();
        Self {
            literals,
            distances: vec![5; 30],
        }
    }

    /// Reads the header of a dynamic block.
    fn read(reader: &mut BitReader<'_>) -> Option<Self> {
        let (literals, distances) = (reader.take(5) as usize + 257, reader.take(5) as usize + 1);
        let count = reader.take(4) as usize + 4;
        if literals > 286 || distances > 30 {
            return None;
        }
        let mut own = [0; 19];
        for symbol in &ORDER[..count] {
            own[*symbol] = reader.take(3) as u8;
        }
        let decoder = Decoder::new(&own)?;
        let mut lengths: Vec<u8> = Vec::with_capacity(literals + distances);
        while lengths.len() < literals + distances {
            let (value, repeat) = match decoder.next(reader)? {
                16 => (*lengths.last()?, 3 + reader.take(2)),
                17 => (0, 3 + reader.take(3)),
                18 => (0, 11 + reader.take(7)),
                length => (length as u8, 1),
            };
            lengths.extend(std::iter::repeat_n(value, repeat as usize));
        }
        if lengths.len() != literals + distances {
            return None;
        }
        let distances = lengths.split_off(literals);
        Some(Self {
            literals: lengths,
            distances,
        })
    }
}

/// Canonical codes, lowest bit first, of code lengths. `None`: more codes than there is room for.
fn codes(lengths: &[u8]) -> Option<Vec<u16>> {
    let mut count = [0u32; 16];
    for length in lengths {
        count[usize::from(*length)] += 1;
    }
    count[0] = 0;
    let (mut next, mut code) = ([0u32; 16], 0u32);
    for length in 1..16 {
        code = (code + count[length - 1]) << 1;
        next[length] = code;
        if code + count[length] > 1 << length {
            return None;
        }
    }
    let codes = lengths.iter().map(|length| match *length {
        0 => 0,
        length => {
            let code = &mut next[usize::from(length)];
            *code += 1;
            ((*code - 1) as u16).reverse_bits() >> (16 - length)
        }
    });
    Some(codes.collect())
}

/// Codes up to this long, which are most that come, are found in the beginning of a table: what is near stays in the cache.
const SHORT: u32 = 10;

/// Looks a symbol up by the bits that come.
struct Decoder {
    /// `symbol << 4 | length` of each pattern of `bits` bits; 0 where there is no code.
    table: Vec<u16>,
    bits: u32,
}

impl Decoder {
    fn new(lengths: &[u8]) -> Option<Self> {
        let bits = u32::from(lengths.iter().copied().max().unwrap_or(0)).max(1);
        let mut table = vec![0; 1 << bits];
        for (symbol, (code, length)) in codes(lengths)?.into_iter().zip(lengths).enumerate() {
            if *length > 0 {
                let entry = (symbol as u16) << 4 | u16::from(*length);
                let step = 1 << length;
                table[usize::from(code)..]
                    .iter_mut()
                    .step_by(step)
                    .for_each(|slot| *slot = entry);
            }
        }
        Some(Self { table, bits })
    }

    fn next(&self, reader: &mut BitReader<'_>) -> Option<usize> {
        let come = reader.peek();
        let find = |bits: u32| self.table[(come & ((1 << bits) - 1)) as usize];
        let mut entry = find(self.bits.min(SHORT));
        if entry == 0 || u32::from(entry & 15) > SHORT {
            entry = find(self.bits);
            if entry == 0 {
                return None;
            }
        }
        reader.skip(u32::from(entry & 15));
        Some(usize::from(entry >> 4))
    }
}

/// Takes apart the block that begins `bit` bits into `input`: appends its tokens, and its bytes to `plain`, which begins
/// with what matches may refer to. Gives the block and where it ends. A block that makes `plain` longer than `max` is
/// [`Stop::Unfit`]: a few bytes of input may stand for a thousand times as many.
pub fn parse(
    input: &[u8],
    bit: usize,
    max: usize,
    plain: &mut Vec<u8>,
    tokens: &mut Vec<Token>,
) -> Result<(Block, usize), Stop> {
    let (plain_before, tokens_before) = (plain.len(), tokens.len());
    let mut reader = BitReader::at(input, bit);
    let parsed = parse_from(&mut reader, input, max, plain, tokens);
    // What comes from beyond the end may look like anything.
    let result = if reader.overrun() {
        Err(Stop::Short)
    } else {
        parsed
    };
    let (last, coding, end) = result.inspect_err(|_| {
        plain.truncate(plain_before);
        tokens.truncate(tokens_before);
    })?;
    let block = Block {
        last,
        coding,
        tokens: tokens.len() - tokens_before,
    };
    Ok((block, end))
}

fn parse_from(
    reader: &mut BitReader<'_>,
    input: &[u8],
    max: usize,
    plain: &mut Vec<u8>,
    tokens: &mut Vec<Token>,
) -> Result<(bool, Coding, usize), Stop> {
    let last = reader.take(1) == 1;
    let (lengths, coding) = match reader.take(2) {
        0 => return stored(reader, input, plain).map(|(coding, end)| (last, coding, end)),
        1 => (Lengths::fixed(), Coding::Fixed),
        2 => {
            let start = reader.position();
            let lengths = Lengths::read(reader).ok_or(Stop::Unfit)?;
            let bits = reader.position() - start;
            if reader.overrun() {
                return Err(Stop::Short);
            }
            let header = copy_bits(input, start, bits);
            (lengths, Coding::Dynamic { header, bits })
        }
        _ => return Err(Stop::Unfit),
    };
    let literals = Decoder::new(&lengths.literals).ok_or(Stop::Unfit)?;
    let distances = Decoder::new(&lengths.distances).ok_or(Stop::Unfit)?;
    loop {
        if reader.overrun() {
            return Err(Stop::Short);
        }
        if plain.len() > max {
            return Err(Stop::Unfit);
        }
        let symbol = literals.next(reader).ok_or(Stop::Unfit)?;
        if symbol < END {
            plain.push(symbol as u8);
            tokens.push(Token::literal(symbol as u8));
            continue;
        }
        if symbol == END {
            return Ok((last, coding, reader.position()));
        }
        let index = symbol - END - 1;
        let base = *LENGTH_BASE.get(index).ok_or(Stop::Unfit)?;
        let length = usize::from(base) + reader.take(u32::from(LENGTH_EXTRA[index])) as usize;
        let symbol = distances.next(reader).ok_or(Stop::Unfit)?;
        let distance = distance_base(symbol) + reader.take(distance_extra(symbol)) as usize;
        if length > MAX_LENGTH || distance > WINDOW || distance > plain.len() {
            return Err(Stop::Unfit);
        }
        // The one length that can be said in two ways, of which we write the usual one.
        if length == MAX_LENGTH && index != 28 {
            return Err(Stop::Unfit);
        }
        tokens.push(Token::of_match(length, distance));
        let from = plain.len() - distance;
        if distance >= length {
            plain.extend_from_within(from..from + length);
        } else {
            for at in from..from + length {
                plain.push(plain[at]);
            }
        }
    }
}

fn stored(
    reader: &mut BitReader<'_>,
    input: &[u8],
    plain: &mut Vec<u8>,
) -> Result<(Coding, usize), Stop> {
    let padding = (8 - reader.position() % 8) % 8;
    if reader.take(padding as u32) != 0 {
        return Err(Stop::Unfit);
    }
    let (len, check) = (reader.take(16), reader.take(16));
    if reader.overrun() {
        return Err(Stop::Short);
    }
    if len ^ check != 0xffff {
        return Err(Stop::Unfit);
    }
    let (from, len) = (reader.position() / 8, len as usize);
    plain.extend_from_slice(input.get(from..from + len).ok_or(Stop::Short)?);
    Ok((Coding::Stored { len }, (from + len) * 8))
}

fn copy_bits(input: &[u8], start: usize, bits: usize) -> Vec<u8> {
    let mut reader = BitReader::at(input, start);
    let mut writer = BitWriter::default();
    for _ in 0..bits / 8 {
        writer.put(u64::from(reader.take(8)), 8);
    }
    writer.put(u64::from(reader.take(bits as u32 % 8)), bits as u32 % 8);
    writer.align();
    writer.bytes
}

/// Writes a block. `plain` gives the bytes of a stored one. `None` if block and tokens do not fit together.
pub fn write(block: &Block, tokens: &[Token], plain: &[u8], out: &mut BitWriter) -> Option<()> {
    out.put(u64::from(block.last), 1);
    let lengths = match &block.coding {
        Coding::Stored { len } => {
            out.put(0, 2);
            out.align();
            let short = u16::try_from(*len).ok()?;
            out.put(u64::from(short) | u64::from(!short) << 16, 32);
            out.bytes.extend_from_slice(plain.get(..*len)?);
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
            for _ in 0..bits / 8 {
                out.put(u64::from(reader.take(8)), 8);
            }
            out.put(u64::from(reader.take(*bits as u32 % 8)), *bits as u32 % 8);
            let mut reader = BitReader::at(header, 0);
            let lengths = Lengths::read(&mut reader)?;
            if reader.position() != *bits {
                return None;
            }
            lengths
        }
    };
    let both = |lengths: &[u8]| -> Option<Vec<(u16, u8)>> {
        Some(
            codes(lengths)?
                .into_iter()
                .zip(lengths.iter().copied())
                .collect(),
        )
    };
    let (literals, distances) = (both(&lengths.literals)?, both(&lengths.distances)?);
    let code = |codes: &[(u16, u8)], symbol: usize| {
        let (bits, length) = codes.get(symbol).copied().filter(|code| code.1 > 0)?;
        Some((u64::from(bits), u32::from(length)))
    };
    for token in tokens {
        let Some((length, distance)) = token.as_match() else {
            let (bits, n) = code(&literals, token.0 as usize)?;
            out.put(bits, n);
            continue;
        };
        let index = length_index(length);
        let (mut bits, mut n) = code(&literals, END + 1 + index)?;
        bits |= ((length - usize::from(LENGTH_BASE[index])) as u64) << n;
        n += u32::from(LENGTH_EXTRA[index]);
        let symbol = distance_symbol(distance);
        let (more, m) = code(&distances, symbol)?;
        bits |= more << n;
        n += m;
        bits |= ((distance - distance_base(symbol)) as u64) << n;
        n += distance_extra(symbol);
        out.put(bits, n);
    }
    let (bits, n) = code(&literals, END)?;
    out.put(bits, n);
    Some(())
}

/// Of a match of `length`, 3 to 258.
fn length_index(length: usize) -> usize {
    const OF_LENGTH: [u8; MAX_LENGTH + 1] = {
        let (mut table, mut index, mut length) = ([0; MAX_LENGTH + 1], 0, 3);
        while length <= MAX_LENGTH {
            if index < 28 && LENGTH_BASE[index + 1] as usize == length {
                index += 1;
            }
            table[length] = index as u8;
            length += 1;
        }
        table
    };
    usize::from(OF_LENGTH[length])
}

fn distance_symbol(distance: usize) -> usize {
    let at = distance - 1;
    if at < 4 {
        return at;
    }
    let top = at.ilog2() as usize;
    2 * top + (at >> (top - 1) & 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn data() -> Vec<u8> {
        let mut data: Vec<u8> = (0..200_000u32)
            .map(|i| (i.wrapping_mul(i) >> 7) as u8)
            .collect();
        data.extend(std::iter::repeat_n(7, 100_000));
        data.extend_from_within(0..150_000);
        data
    }

    fn deflated(data: &[u8], level: u32) -> Vec<u8> {
        let mut encoder =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(level));
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn blocks_come_apart_and_together() {
        let data = data();
        for level in [0, 1, 6, 9] {
            let packed = deflated(&data, level);
            let (mut plain, mut out, mut at) = (Vec::new(), BitWriter::default(), 0);
            loop {
                let (mut tokens, from) = (Vec::new(), plain.len());
                let (block, end) = parse(&packed, at, usize::MAX, &mut plain, &mut tokens).unwrap();
                assert_eq!(block.tokens, tokens.len());
                write(&block, &tokens, &plain[from..], &mut out).unwrap();
                at = end;
                if block.last {
                    break;
                }
            }
            out.align();
            assert!(plain == data, "level {level}");
            assert!(out.bytes == packed, "level {level}");
        }
    }

    #[test]
    fn a_block_cut_short_is_short_and_leaves_nothing() {
        let packed = deflated(&data(), 6);
        for cut in (0..packed.len().min(3000)).step_by(37) {
            let (mut plain, mut tokens) = (vec![1, 2, 3], Vec::new());
            let stop = parse(&packed[..cut], 0, usize::MAX, &mut plain, &mut tokens).unwrap_err();
            assert_eq!(stop, Stop::Short, "{cut}");
            assert_eq!((plain.len(), tokens.len()), (3, 0));
        }
    }

    /// One block that never ends: what is taken apart must not grow with what it claims to hold.
    #[test]
    fn a_block_larger_than_wanted_is_left_early() {
        let mut bomb = BitWriter::default();
        bomb.put(0, 1);
        bomb.put(1, 2);
        // Fixed codes (RFC 1951, 3.2.6): the literal 0, then matches of 258 bytes, one byte back.
        bomb.put(u64::from(0x30u8.reverse_bits()), 8);
        for _ in 0..100_000 {
            bomb.put(u64::from(0xc5u8.reverse_bits()), 8);
            bomb.put(0, 5);
        }
        bomb.align();
        let (mut plain, mut tokens) = (Vec::new(), Vec::new());
        let stop = parse(&bomb.bytes, 0, 10_000, &mut plain, &mut tokens).unwrap_err();
        assert_eq!((stop, plain.len(), tokens.len()), (Stop::Unfit, 0, 0));
        assert!(plain.capacity() < 100_000, "{}", plain.capacity());
        let stop = parse(&bomb.bytes, 0, usize::MAX, &mut plain, &mut tokens).unwrap_err();
        assert_eq!(stop, Stop::Short);
    }

    #[test]
    fn symbols_cover_all_lengths_and_distances() {
        for length in 3..=MAX_LENGTH {
            let index = length_index(length);
            let extra = length - usize::from(LENGTH_BASE[index]);
            assert!(extra < 1 << LENGTH_EXTRA[index], "{length}");
        }
        for distance in 1..=WINDOW {
            let symbol = distance_symbol(distance);
            let extra = distance - distance_base(symbol);
            assert!(
                symbol < 30 && extra < 1 << distance_extra(symbol),
                "{distance}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_refused_or_come_back(bytes: Vec<u8>) {
            let (mut plain, mut tokens) = (Vec::new(), Vec::new());
            if let Ok((block, end)) = parse(&bytes, 0, usize::MAX, &mut plain, &mut tokens) {
                let mut out = BitWriter::default();
                write(&block, &tokens, &plain, &mut out).unwrap();
                out.align();
                let whole = end / 8;
                proptest::prop_assert_eq!(&out.bytes[..whole], &bytes[..whole]);
            }
        }
    }
}
