//! Reading a gzip blob once for both: its plain bytes for whoever reads them, and how it is made for whoever keeps it.
//!
//! Source: RFC 1952. Members may follow each other; anything else after one is an error. Checksums are compared.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use super::bits::BitReader;
use super::deflate::{Block, Coding};
use super::inflate::{Inflater, Invalid, LOOK_AHEAD, Matches, Plain, ROOM, Stop};
use super::model::PIECE;
use super::unit::{self, Unit};

/// Bytes read at a time.
pub const READ: usize = 256 << 10;
/// Plain bytes made at a time, few enough to be in the cache when they are copied.
const STEP: usize = 64 << 10;
/// A unit ends where it can after so many plain bytes.
const UNIT_PLAIN: usize = 1 << 20;
/// Fewer plain bytes are no unit, unless the stream ends.
const MIN_UNIT: usize = 512;
/// Plain bytes, compressed bytes and blocks of a unit at most. The encoder that units are for makes no more.
const MAX_UNIT_PLAIN: usize = UNIT_PLAIN + 4 * PIECE;
const MAX_UNIT: usize = 2 << 20;
const MAX_BLOCKS: usize = 8 << 10;
const _: () = assert!(MAX_UNIT_PLAIN <= unit::MAX_PLAIN);
/// What an encoder leaves of the block before, for the next: the dictionary of parallel gzip.
const DICTIONARY: usize = 16 << 10;
/// Plain bytes at hand to begin with: those before, most units, and what comes until one can end.
const BUFFER: usize = super::deflate::WINDOW + UNIT_PLAIN + 2 * PIECE + ROOM;
/// A header longer than that is none.
const MAX_HEADER: usize = 256 << 10;

/// What whoever keeps a blob is told of it, in order. All raw bytes together are the blob.
pub enum Message {
    /// Bytes of the blob.
    Raw(Vec<u8>),
    /// A DEFLATE stream begins.
    Begin,
    /// A part of a stream, taken apart.
    Unit(Box<TakenApart>),
    /// The stream is at its end.
    End,
    /// The blob is. Without it, it is not whole.
    Done,
}

pub struct TakenApart {
    pub unit: Unit,
    /// Its bytes: those that end in it, so that one which is not complete at its end is with the next unit.
    pub raw: Vec<u8>,
    /// Bits of its first byte that belong to what comes before, and how many.
    pub begun: (u8, u32),
    /// The same of the first byte after it.
    pub next: (u8, u32),
}

/// The way to whoever keeps the blob.
#[derive(Clone)]
pub struct Listener {
    pub to: SyncSender<Message>,
    /// It wants no more at all.
    pub stopped: Arc<AtomicBool>,
    /// It wants the stream as raw bytes.
    pub raw_only: Arc<AtomicBool>,
}

impl Listener {
    pub fn tell(&self, message: Message) {
        if !self.stopped() && self.to.send(message).is_err() {
            self.stopped.store(true, Ordering::Relaxed);
        }
    }

    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Header { first: bool },
    Stream,
    Trailer,
    Over,
}

/// A unit being read.
struct Telling {
    matches: Matches,
    blocks: Vec<Block>,
    /// Plain bytes of the blocks that have ended, and matches in them.
    ended: usize,
    ended_matches: usize,
    reset: bool,
    dictionary: usize,
    /// Plain bytes from the reset to this unit.
    since_reset: usize,
    begun: (u8, u32),
}

/// The plain bytes of a gzip blob.
pub struct Gunzip<R> {
    input: R,
    /// Bytes of the blob from the one that was not passed on yet, then zeros when all are there.
    raw: Vec<u8>,
    /// How many are of the blob.
    raw_len: usize,
    all_read: bool,
    /// Where it stands in `raw`.
    bit: usize,
    /// Plain bytes as far back as matches reach, or since the unit began.
    data: Vec<u8>,
    at: usize,
    /// How much was given to the reader.
    given: usize,
    inflater: Inflater,
    checksum: flate2::Crc,
    place: Place,
    /// How the last block that ended cuts the stream.
    cut: Option<Cut>,
    telling: Option<Telling>,
    listener: Option<Listener>,
}

#[derive(Clone, Copy)]
struct Cut {
    last: bool,
    flushed: bool,
}

impl<R: Read> Gunzip<R> {
    pub fn new(input: R, listener: Option<Listener>) -> Self {
        Self {
            input,
            raw: Vec::new(),
            raw_len: 0,
            all_read: false,
            bit: 0,
            data: vec![0; BUFFER],
            at: 0,
            given: 0,
            inflater: Inflater::new(),
            checksum: flate2::Crc::new(),
            place: Place::Header { first: true },
            cut: None,
            telling: None,
            listener,
        }
    }

    fn more(&mut self) -> io::Result<()> {
        self.let_go();
        let input = (&mut self.input).take(READ as u64);
        let n = { input }.read_to_end(&mut self.raw)?;
        self.raw_len += n;
        if n < READ {
            self.all_read = true;
            self.raw.resize(self.raw_len + LOOK_AHEAD, 0);
        }
        Ok(())
    }

    /// The bytes from where it stands, at least `len` unless the blob is at its end.
    fn at_least(&mut self, len: usize) -> io::Result<&[u8]> {
        while !self.all_read && self.raw_len < self.bit / 8 + len {
            self.more()?;
        }
        let from = (self.bit / 8).min(self.raw_len);
        Ok(&self.raw[from..self.raw_len])
    }

    /// Passes on what is read and no part of a unit.
    fn let_go(&mut self) {
        if self.telling.is_none() {
            let n = (self.bit / 8).min(self.raw_len);
            if n > 0 {
                let raw = self.take_raw(n);
                self.tell(Message::Raw(raw));
            }
        }
    }

    fn take_raw(&mut self, n: usize) -> Vec<u8> {
        let taken = match &self.listener {
            Some(listener) if !listener.stopped() => self.raw[..n].to_vec(),
            _ => Vec::new(),
        };
        self.raw.drain(..n);
        self.raw_len -= n;
        self.bit -= n * 8;
        taken
    }

    fn tell(&self, message: Message) {
        if let Some(listener) = &self.listener {
            listener.tell(message);
        }
    }

    /// Makes more plain bytes, if there are any.
    fn advance(&mut self) -> io::Result<()> {
        if let Some(cut) = self.cut.take() {
            self.end_block(cut)?;
        }
        while self.given == self.at {
            match self.place {
                Place::Header { first } => self.header(first)?,
                Place::Stream => self.stream()?,
                Place::Trailer => self.trailer()?,
                Place::Over => break,
            }
        }
        Ok(())
    }

    fn header(&mut self, first: bool) -> io::Result<()> {
        if self.at_least(1)?.is_empty() && !first {
            self.let_go();
            self.place = Place::Over;
            return Ok(());
        }
        let mut wanted = 32;
        let len = loop {
            let bytes = self.at_least(wanted)?;
            match header_len(bytes) {
                Header::Len(len) => break len,
                Header::Short if bytes.len() < wanted => return Err(cut_off()),
                Header::Short if bytes.len() < MAX_HEADER => wanted = bytes.len() + READ,
                Header::Short | Header::None => {
                    return Err(invalid("it is no gzip stream, or something follows one"));
                }
            }
        };
        self.bit += len * 8;
        self.let_go();
        self.tell(Message::Begin);
        (self.at, self.given) = (0, 0);
        self.inflater = Inflater::new();
        self.checksum = flate2::Crc::new();
        if let Some(listener) = &self.listener {
            let whole = !listener.stopped() && !listener.raw_only.load(Ordering::Relaxed);
            self.telling = whole.then(|| Telling::after(0, true, 0, 0, (0, 0)));
        }
        self.place = Place::Stream;
        Ok(())
    }

    fn stream(&mut self) -> io::Result<()> {
        if !self.wants_units() {
            self.tell_no_more();
        }
        self.make_room();
        let (before, from) = (self.bit, self.at);
        let stop = self.inflater.run(
            &self.raw,
            &mut self.bit,
            Plain {
                bytes: &mut self.data,
                at: &mut self.at,
                until: from + STEP,
            },
            self.telling.as_mut().map(|telling| &mut telling.matches),
        );
        let cut_short = self.all_read && self.bit > self.raw_len * 8;
        match stop {
            _ if cut_short => return Err(cut_off()),
            Err(Invalid) => return Err(invalid("the DEFLATE stream is damaged")),
            Ok(Stop::Input) if self.all_read => return Err(cut_off()),
            Ok(Stop::Input) => self.more()?,
            Ok(Stop::Room) => debug_assert!(self.bit > before || self.at > from),
            Ok(Stop::Block { last }) => {
                let flushed = *self.inflater.coding() == Coding::Stored { len: 0 };
                self.cut = Some(Cut { last, flushed });
                if last {
                    self.bit = self.bit.next_multiple_of(8);
                    self.place = Place::Trailer;
                }
            }
        }
        self.checksum.update(&self.data[from..self.at]);
        if self.given == self.at
            && let Some(cut) = self.cut.take()
        {
            self.end_block(cut)?;
        }
        Ok(())
    }

    fn wants_units(&self) -> bool {
        self.listener.as_ref().is_some_and(|listener| {
            !listener.stopped() && !listener.raw_only.load(Ordering::Relaxed)
        })
    }

    /// From here on, and for what was read of this unit, the stream is told as raw bytes.
    fn tell_no_more(&mut self) {
        if self.telling.take().is_some() {
            self.let_go();
        }
    }

    fn make_room(&mut self) {
        if self.at + STEP + ROOM <= self.data.len() {
            return;
        }
        let before = match &self.telling {
            Some(telling) if self.at - telling.matches.start <= MAX_UNIT_PLAIN => {
                self.data.resize(self.data.len() + 2 * PIECE, 0);
                return;
            }
            _ => unit::kept_before(self.at),
        };
        self.tell_no_more();
        self.data.copy_within(self.at - before..self.at, 0);
        (self.at, self.given) = (before, before);
    }

    /// The block that was read is at its end, and all its bytes were given.
    fn end_block(&mut self, cut: Cut) -> io::Result<()> {
        let Some(telling) = &mut self.telling else {
            if cut.last {
                self.let_go();
                self.tell(Message::End);
            }
            return Ok(());
        };
        telling.end_block(cut.last, self.inflater.coding(), self.at);
        let len = telling.ended;
        let too_much = len > MAX_UNIT_PLAIN
            || telling.blocks.len() > MAX_BLOCKS
            || self.bit / 8 > MAX_UNIT
            || telling.matches.odd;
        if too_much {
            self.tell_no_more();
            if cut.last {
                self.let_go();
                self.tell(Message::End);
            }
            return Ok(());
        }
        let boundary = len >= UNIT_PLAIN && unit::is_boundary(telling.since_reset + len);
        let flushed = cut.flushed && len >= MIN_UNIT && self.goes_on()?;
        if cut.last || boundary || flushed {
            self.end_unit(cut.last, flushed);
        }
        Ok(())
    }

    /// Whether the encoder begins afresh here, after a flush: not if only the end of the stream is left.
    fn goes_on(&mut self) -> io::Result<bool> {
        let rest = self.at_least(16)?;
        // An empty last block, stored or fixed, and the trailer.
        Ok(!(rest.len() < 16 && rest.first().is_some_and(|byte| byte & 1 == 1)))
    }

    fn end_unit(&mut self, last: bool, flushed: bool) {
        let Some(telling) = self.telling.take() else {
            return;
        };
        let left = (self.bit % 8) as u32;
        let begun = BitReader::at(&self.raw, self.bit / 8 * 8).take(left) as u8;
        let next = (begun, left);
        let raw = self.take_raw(self.bit / 8);
        let before = unit::kept_before(self.at);
        let mut data = vec![0; BUFFER];
        data[..before].copy_from_slice(&self.data[self.at - before..self.at]);
        std::mem::swap(&mut data, &mut self.data);
        data.truncate(self.at);
        (self.at, self.given) = (before, before);
        let since_reset = telling.since_reset + telling.ended;
        self.tell(Message::Unit(Box::new(TakenApart {
            unit: Unit {
                reset: telling.reset,
                dictionary: telling.dictionary,
                blocks: telling.blocks,
                matches: telling.matches.list,
                data,
                before: telling.matches.start,
            },
            raw,
            begun: telling.begun,
            next,
        })));
        if last {
            self.tell(Message::End);
            return;
        }
        let dictionary = if flushed && since_reset > DICTIONARY {
            DICTIONARY
        } else {
            0
        };
        let since_reset = if flushed { 0 } else { since_reset };
        let next = Telling::after(before, flushed, dictionary, since_reset, next);
        self.telling = Some(next);
    }

    fn trailer(&mut self) -> io::Result<()> {
        let bytes = self.at_least(8)?;
        let Some([c0, c1, c2, c3, s0, s1, s2, s3]) = bytes.first_chunk().copied() else {
            return Err(cut_off());
        };
        let checksum = u32::from_le_bytes([c0, c1, c2, c3]);
        let size = u32::from_le_bytes([s0, s1, s2, s3]);
        if (checksum, size) != (self.checksum.sum(), self.checksum.amount()) {
            return Err(invalid("the gzip stream does not have its checksum"));
        }
        self.bit += 64;
        self.place = Place::Header { first: false };
        Ok(())
    }
}

impl Telling {
    fn after(
        before: usize,
        reset: bool,
        dictionary: usize,
        since_reset: usize,
        begun: (u8, u32),
    ) -> Self {
        let matches = Matches {
            start: before,
            ..Matches::default()
        };
        Self {
            matches,
            blocks: Vec::new(),
            ended: 0,
            ended_matches: 0,
            reset,
            dictionary,
            since_reset,
            begun,
        }
    }

    /// Notes a block that ends at `at`.
    fn end_block(&mut self, last: bool, coding: &Coding, at: usize) {
        let len = at - self.matches.start - self.ended;
        let own = &self.matches.list[self.ended_matches..];
        let tokens = match coding {
            Coding::Stored { .. } => 0,
            // A byte each, but for matches, which are as many more as they are long.
            _ => len - own.iter().map(|next| next.length() - 1).sum::<usize>(),
        };
        self.ended += len;
        self.ended_matches = self.matches.list.len();
        self.blocks.push(Block {
            last,
            coding: coding.clone(),
            tokens,
        });
    }
}

impl<R: Read> Read for Gunzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.given == self.at {
            self.advance()?;
        }
        let n = buf.len().min(self.at - self.given);
        buf[..n].copy_from_slice(&self.data[self.given..self.given + n]);
        self.given += n;
        Ok(n)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the gzip stream is cut off")
}

enum Header {
    Len(usize),
    /// There may be one, but it is not whole.
    Short,
    None,
}

/// Looks at the gzip header at the beginning of `bytes`.
fn header_len(bytes: &[u8]) -> Header {
    const CHECK: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const RESERVED: u8 = 0xe0;
    let begins = [0x1f, 0x8b, 8];
    let known = bytes.len().min(begins.len());
    if bytes[..known] != begins[..known] {
        return Header::None;
    }
    let Some(flags) = bytes.get(3) else {
        return Header::Short;
    };
    if flags & RESERVED != 0 {
        return Header::None;
    }
    let mut at = 10;
    if flags & EXTRA != 0 {
        let Some([low, high]) = bytes.get(at..at + 2) else {
            return Header::Short;
        };
        at += 2 + usize::from(u16::from_le_bytes([*low, *high]));
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let rest = bytes.get(at..).unwrap_or_default();
            match rest.iter().position(|byte| *byte == 0) {
                Some(len) => at += len + 1,
                None => return Header::Short,
            }
        }
    }
    if flags & CHECK != 0 {
        let Some([low, high]) = bytes.get(at..at + 2) else {
            return Header::Short;
        };
        let mut checksum = flate2::Crc::new();
        checksum.update(&bytes[..at]);
        if checksum.sum() as u16 != u16::from_le_bytes([*low, *high]) {
            return Header::None;
        }
        at += 2;
    }
    if at <= bytes.len() {
        Header::Len(at)
    } else {
        Header::Short
    }
}

#[cfg(test)]
#[path = "gunzip_tests.rs"]
mod tests;
