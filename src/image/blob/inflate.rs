//! A decoder of DEFLATE streams that can tell how they are made: their blocks and matches.
//!
//! Source: RFC 1951. It takes what zlib takes. It can be stopped anywhere, in want of input or of room, and goes on from
//! there, so no block is too large for it.

use super::bits::BitReader;
use super::codes::{Lengths, MAX_LENGTH, Table};
use super::deflate::{Coding, Match, copy_bits};

/// Bytes that it may want to see at once: what the header of a block takes at most (17 bits, 19 lengths of code lengths,
/// 316 of them with 14 bits), more than what a match does. At the end of the input so many zeros must follow it.
pub const LOOK_AHEAD: usize = 640;
/// Room that it needs to go on: the largest match, and what is written beyond it for speed.
pub const ROOM: usize = MAX_LENGTH + 32;

/// Why it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Fewer than [`LOOK_AHEAD`] bytes are at hand.
    Input,
    /// Less room than [`ROOM`].
    Room,
    /// A block is at its end.
    Block { last: bool },
}

/// It is no DEFLATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

enum State {
    /// Before a block.
    Between,
    Stored {
        left: usize,
    },
    Coded {
        literals: Box<Table>,
        distances: Box<Table>,
    },
}

pub struct Inflater {
    state: State,
    last: bool,
    coding: Coding,
}

/// Where the plain bytes go: behind those before, as far as matches reach.
pub struct Plain<'a> {
    pub bytes: &'a mut [u8],
    pub at: &'a mut usize,
    /// Stop here at the latest, or a bit later.
    pub until: usize,
}

impl Inflater {
    pub fn new() -> Self {
        Self {
            state: State::Between,
            last: false,
            coding: Coding::Fixed,
        }
    }

    /// How the block that has ended was coded.
    pub fn coding(&self) -> &Coding {
        &self.coding
    }

    /// Goes on, `bit` bits into `input`, until it must stop; says where in `input` that is. Matches are told to `matches`.
    ///
    /// What it says was read may lie in the zeros after the end of the input: then the stream is cut off.
    pub fn run(
        &mut self,
        input: &[u8],
        bit: &mut usize,
        plain: Plain<'_>,
        matches: Option<&mut Matches>,
    ) -> Result<Stop, Invalid> {
        let mut reader = BitReader::at(input, *bit);
        let result = self.go_on(&mut reader, input, plain, matches);
        *bit = reader.position();
        result
    }

    fn go_on<'a>(
        &mut self,
        reader: &mut BitReader<'a>,
        input: &'a [u8],
        plain: Plain<'_>,
        mut matches: Option<&mut Matches>,
    ) -> Result<Stop, Invalid> {
        if matches!(self.state, State::Between) {
            if reader.position() / 8 + LOOK_AHEAD > input.len() {
                return Ok(Stop::Input);
            }
            let odd = self.header(reader, input)?;
            if let Some(matches) = &mut matches {
                matches.odd |= odd;
            }
        }
        let stop = match &mut self.state {
            State::Between => Stop::Input,
            State::Stored { left } => stored(left, reader, input, plain),
            State::Coded {
                literals,
                distances,
            } => match matches {
                Some(matches) => coded::<true>(literals, distances, reader, input, plain, matches)?,
                None => {
                    let mut none = Matches::default();
                    coded::<false>(literals, distances, reader, input, plain, &mut none)?
                }
            },
        };
        if let Stop::Block { .. } = stop {
            self.state = State::Between;
            return Ok(Stop::Block { last: self.last });
        }
        Ok(stop)
    }

    /// Says whether there is anything in it that is no matter of the block's coding.
    fn header(&mut self, reader: &mut BitReader<'_>, input: &[u8]) -> Result<bool, Invalid> {
        self.last = reader.take(1) == 1;
        let lengths = match reader.take(2) {
            0 => {
                let padding = (8 - reader.position() % 8) % 8;
                let odd = reader.take(padding as u32) != 0;
                let (len, check) = (reader.take(16), reader.take(16));
                if len ^ check != 0xffff {
                    return Err(Invalid);
                }
                let len = len as usize;
                self.coding = Coding::Stored { len };
                self.state = State::Stored { left: len };
                return Ok(odd);
            }
            1 => {
                self.coding = Coding::Fixed;
                Lengths::fixed()
            }
            2 => {
                let start = reader.position();
                let lengths = Lengths::read(reader).ok_or(Invalid)?;
                let bits = reader.position() - start;
                let header = copy_bits(input, start, bits);
                self.coding = Coding::Dynamic { header, bits };
                lengths
            }
            _ => return Err(Invalid),
        };
        self.state = State::Coded {
            literals: Table::of_literals(&lengths.literals).ok_or(Invalid)?.into(),
            distances: Table::of_distances(&lengths.distances)
                .ok_or(Invalid)?
                .into(),
        };
        Ok(false)
    }
}

/// The matches of a stretch of plain bytes.
#[derive(Default)]
pub struct Matches {
    pub list: Vec<Match>,
    /// The place in the plain bytes from which the places of matches are counted.
    pub start: usize,
    /// Something was said in a way that [`super::deflate::write`] would not choose.
    pub odd: bool,
}

fn stored<'a>(
    left: &mut usize,
    reader: &mut BitReader<'a>,
    input: &'a [u8],
    plain: Plain<'_>,
) -> Stop {
    // A header ends with a whole byte, and so does what is copied.
    let from = reader.position() / 8;
    let rest = input.get(from..).unwrap_or_default();
    let room = plain.bytes.len().saturating_sub(*plain.at + ROOM);
    let n = (*left).min(rest.len()).min(room);
    plain.bytes[*plain.at..*plain.at + n].copy_from_slice(&rest[..n]);
    *plain.at += n;
    *left -= n;
    *reader = BitReader::at(input, (from + n) * 8);
    match *left {
        0 => Stop::Block { last: false },
        _ if n == room => Stop::Room,
        _ => Stop::Input,
    }
}

/// Codes until the block's end, or until there is no room or input for more.
fn coded<const TELL: bool>(
    literals: &Table,
    distances: &Table,
    reader: &mut BitReader<'_>,
    input: &[u8],
    plain: Plain<'_>,
    matches: &mut Matches,
) -> Result<Stop, Invalid> {
    let bytes = plain.bytes;
    let mut at = *plain.at;
    let until = plain.until.min(bytes.len().saturating_sub(ROOM));
    // Eight bytes are read twice before the next look, the second time up to 13 bytes ahead.
    let end = input.len().saturating_sub(32) * 8;
    let result = loop {
        if at > until {
            break Ok(Stop::Room);
        }
        if reader.position() > end {
            break Ok(Stop::Input);
        }
        let mut entry = literals.find(reader.peek());
        // Up to three literals, of the 56 bits that are there at least; what comes then is looked up already.
        if entry.is_literal() {
            reader.skip(entry.bits());
            bytes[at] = entry.byte();
            at += 1;
            entry = literals.find(reader.held());
            if entry.is_literal() {
                reader.skip(entry.bits());
                bytes[at] = entry.byte();
                at += 1;
                entry = literals.find(reader.held());
                if entry.is_literal() {
                    reader.skip(entry.bits());
                    bytes[at] = entry.byte();
                    at += 1;
                    continue;
                }
            }
        }
        reader.skip(entry.bits());
        if entry.is_other() {
            if entry.is_end() {
                break Ok(Stop::Block { last: false });
            }
            break Err(Invalid);
        }
        let come = reader.peek();
        let length = entry.base() + (come & ((1 << entry.extra()) - 1)) as usize;
        reader.skip(entry.extra());
        if length == MAX_LENGTH && entry.extra() > 0 {
            // The one length that can be said in two ways.
            matches.odd = true;
        }
        // A length has taken 5 bits at most, a distance takes 28.
        let entry = distances.find(reader.held());
        reader.skip(entry.bits());
        if entry.is_other() {
            break Err(Invalid);
        }
        let distance = entry.base() + (reader.held() & ((1 << entry.extra()) - 1)) as usize;
        reader.skip(entry.extra());
        if distance > at {
            break Err(Invalid);
        }
        if TELL {
            matches
                .list
                .push(Match::new(at - matches.start, length, distance));
        }
        copy_match(bytes, at, length, distance);
        at += length;
    };
    *plain.at = at;
    result
}

/// Repeats `length` bytes from `distance` before `at`. Some bytes behind may be written, too.
#[inline(always)]
fn copy_match(bytes: &mut [u8], at: usize, length: usize, distance: usize) {
    const STEP: usize = 16;
    let from = at - distance;
    let Some(bytes) = bytes.get_mut(from..at + length + STEP) else {
        return;
    };
    if distance >= STEP {
        let mut done = 0;
        while done < length {
            let mut step = [0; STEP];
            step.copy_from_slice(&bytes[done..done + STEP]);
            bytes[done + distance..done + distance + STEP].copy_from_slice(&step);
            done += STEP;
        }
    } else if distance == 1 {
        let byte = bytes[0];
        bytes[1..=length].fill(byte);
    } else {
        for i in 0..length {
            bytes[distance + i] = bytes[i];
        }
    }
}
