//! The codes of DEFLATE blocks (RFC 1951, 3.2): read from a block's header, built, looked up.

use super::bits::BitReader;

pub const MAX_LENGTH: usize = 258;
/// Ends a block.
pub const END: usize = 256;

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

/// The symbol of a match of `length`, 3 to 258, its extra bits and how many.
pub fn of_length(length: usize) -> (usize, u32, u32) {
    const INDEX: [u8; MAX_LENGTH + 1] = {
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
    let index = usize::from(INDEX[length]);
    let extra = length as u32 - u32::from(LENGTH_BASE[index]);
    (END + 1 + index, extra, u32::from(LENGTH_EXTRA[index]))
}

/// The symbol of a `distance`, 1 to 32768, its extra bits and how many.
pub fn of_distance(distance: usize) -> (usize, u32, u32) {
    let at = distance - 1;
    if at < 4 {
        return (at, 0, 0);
    }
    let top = at.ilog2() as usize;
    let symbol = 2 * top + (at >> (top - 1) & 1);
    let extra = (distance - distance_base(symbol)) as u32;
    (symbol, extra, top as u32 - 1)
}

/// Code lengths of the two alphabets of a block.
pub struct Lengths {
    pub literals: Vec<u8>,
    pub distances: Vec<u8>,
}

impl Lengths {
    pub fn fixed() -> Self {
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
            distances: vec![5; 32],
        }
    }

    /// Reads the header of a dynamic block. It must be one that zlib takes.
    pub fn read(reader: &mut BitReader<'_>) -> Option<Self> {
        let (literals, distances) = (reader.take(5) as usize + 257, reader.take(5) as usize + 1);
        let count = reader.take(4) as usize + 4;
        if literals > 286 || distances > 30 {
            return None;
        }
        let mut own = [0; 19];
        for symbol in &ORDER[..count] {
            own[*symbol] = reader.take(3) as u8;
        }
        let table = header_table(&own)?;
        let mut lengths: Vec<u8> = Vec::with_capacity(literals + distances + 138);
        while lengths.len() < literals + distances {
            let (symbol, bits) = table[(reader.peek() & 127) as usize];
            reader.skip(u32::from(bits));
            let (value, repeat) = match symbol {
                16 => (*lengths.last()?, 3 + reader.take(2)),
                17 => (0, 3 + reader.take(3)),
                18 => (0, 11 + reader.take(7)),
                length => (length, 1),
            };
            lengths.extend(std::iter::repeat_n(value, repeat as usize));
        }
        if lengths.len() != literals + distances || lengths[END] == 0 {
            return None;
        }
        let distances = lengths.split_off(literals);
        Some(Self {
            literals: lengths,
            distances,
        })
    }
}

/// Symbol and bits of each pattern of seven; the code must be complete.
fn header_table(lengths: &[u8; 19]) -> Option<[(u8, u8); 128]> {
    let mut table = [(0, 0); 128];
    for (symbol, (code, length)) in codes(lengths)?.into_iter().zip(lengths).enumerate() {
        if *length > 0 {
            let same = table[usize::from(code)..].iter_mut();
            same.step_by(1 << length)
                .for_each(|slot| *slot = (symbol as u8, *length));
        }
    }
    table.iter().all(|(_, bits)| *bits > 0).then_some(table)
}

/// Canonical codes, lowest bit first, of code lengths. `None`: more codes than there is room for.
pub fn codes(lengths: &[u8]) -> Option<Vec<u16>> {
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

/// What a pattern of bits stands for. The lowest byte says how many bits, the next has flags or a number of extra bits, the
/// upper half a value.
#[derive(Clone, Copy, Default)]
pub struct Entry(u32);

impl Entry {
    const LITERAL: u32 = 1 << 31;
    const OTHER: u32 = 1 << 15;
    const LINK: u32 = 1 << 14;
    const STOP: u32 = 1 << 13;
    /// No code.
    const NONE: Self = Self(Self::OTHER);

    fn literal_or_length(symbol: usize) -> Self {
        if symbol < END {
            return Self(Self::LITERAL | (symbol as u32) << 16);
        }
        if symbol == END {
            return Self(Self::OTHER | Self::STOP);
        }
        let index = symbol - END - 1;
        match LENGTH_BASE.get(index) {
            Some(base) => Self(u32::from(*base) << 16 | u32::from(LENGTH_EXTRA[index]) << 8),
            None => Self::NONE,
        }
    }

    fn distance(symbol: usize) -> Self {
        if symbol < 30 {
            Self((distance_base(symbol) as u32) << 16 | distance_extra(symbol) << 8)
        } else {
            Self::NONE
        }
    }

    pub const fn is_literal(self) -> bool {
        self.0 & Self::LITERAL != 0
    }

    /// Neither a literal nor a length or distance.
    pub const fn is_other(self) -> bool {
        self.0 & Self::OTHER != 0
    }

    const fn is_link(self) -> bool {
        self.0 & Self::LINK != 0
    }

    pub const fn is_end(self) -> bool {
        self.0 & Self::STOP != 0
    }

    /// Bits of the code.
    pub const fn bits(self) -> u32 {
        self.0 & 0x1f
    }

    /// Of a length or distance: extra bits.
    pub const fn extra(self) -> u32 {
        self.0 >> 8 & 0x1f
    }

    pub const fn byte(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The least length or distance; of a link where its table begins.
    pub const fn base(self) -> usize {
        (self.0 >> 16 & 0x7fff) as usize
    }
}

/// Codes up to this long are found at the first look.
const FIRST: u32 = 11;

/// Looks codes up by the bits that come.
pub struct Table {
    entries: Vec<Entry>,
}

impl Table {
    pub fn of_literals(lengths: &[u8]) -> Option<Self> {
        Self::new(lengths, Entry::literal_or_length)
    }

    pub fn of_distances(lengths: &[u8]) -> Option<Self> {
        Self::new(lengths, Entry::distance)
    }

    /// `None`: no code that zlib takes, which is one with a code for each pattern or with one code at most, of one bit.
    fn new(lengths: &[u8], entry: fn(usize) -> Entry) -> Option<Self> {
        let codes = codes(lengths)?;
        let longest = u32::from(lengths.iter().copied().max().unwrap_or(0));
        let filled: u32 = lengths
            .iter()
            .filter(|length| **length > 0)
            .map(|length| 1 << (15 - length))
            .sum();
        if filled < 1 << 15 && longest > 1 {
            return None;
        }
        let mut entries = vec![Entry::NONE; 1 << FIRST];
        // For each beginning that longer codes have, how many more bits they need.
        let mut more = [0u8; 1 << FIRST];
        if longest > FIRST {
            for (code, length) in codes.iter().zip(lengths) {
                if u32::from(*length) > FIRST {
                    let more = &mut more[usize::from(*code) & ((1 << FIRST) - 1)];
                    *more = (*more).max(length - FIRST as u8);
                }
            }
        }
        for (symbol, (code, length)) in codes.into_iter().zip(lengths).enumerate() {
            let (code, length) = (usize::from(code), u32::from(*length));
            if length == 0 {
                continue;
            }
            let what = entry(symbol).0 | length;
            if length <= FIRST {
                let same = entries[code..1 << FIRST].iter_mut().step_by(1 << length);
                same.for_each(|slot| *slot = Entry(what));
                continue;
            }
            let first = code & ((1 << FIRST) - 1);
            let bits = u32::from(more[first]);
            if !entries[first].is_link() {
                let link = Entry::OTHER | Entry::LINK | (entries.len() as u32) << 16 | bits;
                entries[first] = Entry(link);
                entries.resize(entries.len() + (1 << bits), Entry::NONE);
            }
            let start = entries[first].base();
            let same = entries[start + (code >> FIRST)..start + (1 << bits)].iter_mut();
            same.step_by(1 << (length - FIRST))
                .for_each(|slot| *slot = Entry(what));
        }
        Some(Self { entries })
    }

    /// What the lowest bits of `come` stand for.
    #[inline(always)]
    pub fn find(&self, come: u64) -> Entry {
        let entry = self.first(come);
        if entry.is_link() {
            let at = (come >> FIRST) as usize & ((1 << entry.bits()) - 1);
            return self
                .entries
                .get(entry.base() + at)
                .copied()
                .unwrap_or(Entry::NONE);
        }
        entry
    }

    #[inline(always)]
    fn first(&self, come: u64) -> Entry {
        match self.entries.first_chunk::<{ 1 << FIRST }>() {
            Some(first) => first[come as usize & ((1 << FIRST) - 1)],
            None => Entry::NONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_cover_all_lengths_and_distances() {
        for length in 3..=MAX_LENGTH {
            let (symbol, extra, bits) = of_length(length);
            let entry = Entry::literal_or_length(symbol);
            assert_eq!(
                (entry.base() + extra as usize, entry.extra()),
                (length, bits)
            );
            assert!(extra < 1 << bits, "{length}");
        }
        for distance in 1..=32 << 10 {
            let (symbol, extra, bits) = of_distance(distance);
            let entry = Entry::distance(symbol);
            assert_eq!(
                (entry.base() + extra as usize, entry.extra()),
                (distance, bits)
            );
            assert!(symbol < 30 && extra < 1 << bits, "{distance}");
        }
    }

    #[test]
    fn every_pattern_finds_the_code_it_begins_with() {
        // Lengths that fill the room, from one bit to fifteen.
        let mut lengths: Vec<u8> = (1..=15).collect();
        lengths.push(15);
        let table = Table::of_literals(&lengths).unwrap();
        let codes = codes(&lengths).unwrap();
        for come in 0..1u64 << 15 {
            let entry = table.find(come);
            let symbol = usize::from(entry.byte());
            assert!(entry.is_literal() && !entry.is_other());
            assert_eq!(entry.bits(), u32::from(lengths[symbol]));
            assert_eq!(come & ((1 << entry.bits()) - 1), u64::from(codes[symbol]));
        }
    }

    #[test]
    fn only_codes_that_zlib_takes() {
        for (lengths, good) in [
            (&[1, 1][..], true),
            (&[1], true),
            (&[0, 0], true),
            (&[1, 1, 1], false),
            (&[2, 2, 2], false),
            (&[2], false),
            (&[1, 15], false),
        ] {
            assert_eq!(Table::of_distances(lengths).is_some(), good, "{lengths:?}");
        }
    }
}
