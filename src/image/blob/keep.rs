//! Keeping a blob: reads its bytes once, finds out which encoder made them, and gives segments.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use preflate_rs::{ExitCode, PreflateConfig, PreflateError, PreflateStreamProcessor};

use crate::store::{self, BlobWriter, MAX_PART, varint};

use super::bits::BitWriter;
use super::deflate::{self, Stop};
use super::unit::{self, Luck, MAX_PLAIN, State, Unit};
use super::{AS_IT_IS, PREFLATE, UNIT};

/// Bytes read at a time.
const READ: usize = 256 << 10;
/// Bytes kept as they are, at most, in a segment.
const WHOLE: usize = 1 << 20;
/// A unit ends where it can after so many plain bytes.
const UNIT_PLAIN: usize = 1 << 20;
/// What an encoder leaves of the block before, for the next: the dictionary of parallel gzip.
const DICTIONARY: usize = 16 << 10;
/// Plain bytes of a stretch at most, and compressed bytes looked at for it.
const STRETCH_PLAIN: usize = 24 << 20;
const STRETCH: usize = 2 << 20;
/// The crate counts plain bytes in 31 bits.
const PREFLATE_MAX: u64 = 1 << 30;
/// Blobs up to this size, bytes, are kept whatever it takes.
const SMALL: u64 = 64 << 10;
/// Under `auto`, streams of zlib and its kind are looked at in blobs up to this size, bytes: a stream of level 6 takes some
/// ten seconds of a processor for each 32 MiB.
const AUTO_STRETCHES: u64 = 16 << 20;

/// Whether layers' compressed blobs are kept, so that an image can be given back with its own manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeepCompressed {
    /// Where it costs at most an eighth of the blob, and not much time.
    #[default]
    Auto,
    /// Whatever it costs.
    Always,
    Never,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The parts are in the writer.
    Whole,
    /// It would cost more than the policy allows.
    TooDear,
}

/// Why keeping ended early.
enum End {
    TooDear,
    Read(io::Error),
    Store(store::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl From<store::Error> for End {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

/// Reads a compressed blob, of `size` bytes if that is known, to its end and gives its segments to `writer`. Of one that
/// is too dear no more is read than it takes to know.
///
/// # Errors
/// Those of reading, as the outer error, and of the store.
pub fn keep(
    blob: &mut dyn Read,
    size: Option<u64>,
    policy: KeepCompressed,
    writer: &mut BlobWriter,
) -> io::Result<Result<Kept, store::Error>> {
    let mut keeper = Keeper {
        input: Input {
            blob,
            buffer: Vec::new(),
            ended: false,
            read: 0,
        },
        size,
        policy,
        writer,
    };
    let end = match keeper.run() {
        Ok(()) => return Ok(Ok(Kept::Whole)),
        Err(end) => end,
    };
    match end {
        End::Read(error) => Err(error),
        End::Store(error) => Ok(Err(error)),
        End::TooDear => Ok(Ok(Kept::TooDear)),
    }
}

/// The blob's bytes from where they are not yet used.
struct Input<'a> {
    blob: &'a mut dyn Read,
    buffer: Vec<u8>,
    ended: bool,
    read: u64,
}

impl Input<'_> {
    /// Has at least `len` bytes at hand, fewer only at the end.
    fn at_least(&mut self, len: usize) -> io::Result<&[u8]> {
        while self.buffer.len() < len && !self.ended {
            self.more()?;
        }
        Ok(&self.buffer)
    }

    fn more(&mut self) -> io::Result<()> {
        let before = self.buffer.len();
        self.blob.take(READ as u64).read_to_end(&mut self.buffer)?;
        self.read += (self.buffer.len() - before) as u64;
        self.ended = self.buffer.len() - before < READ;
        Ok(())
    }

    fn drop(&mut self, len: usize) {
        self.buffer.drain(..len);
    }
}

struct Keeper<'a> {
    input: Input<'a>,
    size: Option<u64>,
    policy: KeepCompressed,
    writer: &'a mut BlobWriter,
}

impl Keeper<'_> {
    fn run(&mut self) -> Result<(), End> {
        // Members of gzip, one after the other; what is none is kept as it is.
        while let Some(header) = gzip_header(self.input.at_least(READ)?) {
            self.as_it_is(header)?;
            if !self.member()? {
                break;
            }
            let trailer = self.input.at_least(8)?.len().min(8);
            self.as_it_is(trailer)?;
        }
        while !self.input.at_least(1)?.is_empty() {
            let len = self.input.at_least(WHOLE)?.len().min(WHOLE);
            self.as_it_is(len)?;
        }
        Ok(())
    }

    /// The DEFLATE stream of a member. `false`: from here on, bytes must be kept as they are.
    fn member(&mut self) -> Result<bool, End> {
        match self.units()? {
            Units::Done => Ok(true),
            Units::Broken => Ok(false),
            Units::Foreign => self.stretches(),
        }
    }

    fn put(&mut self, kind: u8, plain: usize, payload: &[u8]) -> Result<(), End> {
        let mut part = vec![kind];
        varint::put(&mut part, plain as u64);
        part.extend_from_slice(payload);
        self.writer.part(part)?;
        let allowed = match self.policy {
            KeepCompressed::Auto => (self.input.read / 8).max(SMALL),
            KeepCompressed::Always | KeepCompressed::Never => u64::MAX,
        };
        if self.writer.stored() > allowed {
            return Err(End::TooDear);
        }
        Ok(())
    }

    fn as_it_is(&mut self, len: usize) -> Result<(), End> {
        if len > 0 {
            let bytes: Vec<u8> = self.input.buffer.drain(..len).collect();
            self.put(AS_IT_IS, 0, &bytes)?;
        }
        Ok(())
    }

    // --- Go's encoder

    fn units(&mut self) -> Result<Units, End> {
        let (mut state, mut out) = (State::new(), BitWriter::default());
        let (mut reset, mut dictionary, mut bit) = (true, 0, 0);
        let (mut luck, mut first) = (Luck::default(), true);
        loop {
            let Some(read) = self.read_unit(&state, bit)? else {
                return Ok(if first { Units::Foreign } else { Units::Broken });
            };
            let plain = &read.plain[state.before().len()..];
            let (next, len) = (read.next(&state, plain.len()), plain.len());
            let unit = Unit {
                reset,
                dictionary,
                blocks: &read.blocks,
                tokens: &read.tokens,
                plain,
            };
            let encoded = unit::encode(&unit, &mut state);
            let Some((packed, lucky)) = encoded else {
                return Ok(if first { Units::Foreign } else { Units::Broken });
            };
            luck.foretold += lucky.foretold;
            luck.told += lucky.told;
            if first && luck.told > luck.foretold {
                return Ok(Units::Foreign);
            }
            // What would come back must be what is here.
            let (mut at, mut rest) = (0, read.tokens.as_slice());
            for block in &read.blocks {
                let (own, later) = rest.split_at(block.tokens);
                if deflate::write(block, own, &plain[at..], &mut out).is_none() {
                    return Ok(if first { Units::Foreign } else { Units::Broken });
                }
                rest = later;
                at += match block.coding {
                    deflate::Coding::Stored { len } => len,
                    _ => own.iter().map(|token| token.len()).sum(),
                };
            }
            if read.last {
                out.align();
            }
            let made = out.bytes.len();
            if self.input.buffer.get(..made) != Some(&out.bytes) {
                return Ok(if first { Units::Foreign } else { Units::Broken });
            }
            out.bytes.clear();
            self.put(UNIT, len, &packed)?;
            self.input.drop(made);
            if read.last {
                return Ok(Units::Done);
            }
            bit = read.end - made * 8;
            (reset, dictionary) = next;
            first = false;
        }
    }

    /// Takes blocks apart up to where a unit can end. `None`: that is nowhere, or it is no DEFLATE.
    fn read_unit(&mut self, state: &State, bit: usize) -> Result<Option<ReadUnit>, End> {
        let before = state.before().len();
        let mut unit = ReadUnit {
            plain: state.before().to_vec(),
            tokens: Vec::new(),
            blocks: Vec::new(),
            end: bit,
            last: false,
            flushed: false,
        };
        self.input.at_least(2 * READ)?;
        loop {
            let parsed = deflate::parse(
                &self.input.buffer,
                unit.end,
                before + MAX_PLAIN,
                &mut unit.plain,
                &mut unit.tokens,
            );
            let (block, end) = match parsed {
                Ok(parsed) => parsed,
                Err(Stop::Short) if !self.input.ended => {
                    // No block that fits a unit is longer.
                    if self.input.buffer.len() - unit.end / 8 > 2 * MAX_PLAIN {
                        return Ok(None);
                    }
                    self.input.more()?;
                    continue;
                }
                Err(_) => return Ok(None),
            };
            unit.end = end;
            unit.last = block.last;
            unit.flushed = matches!(block.coding, deflate::Coding::Stored { len: 0 });
            unit.blocks.push(block);
            let len = unit.plain.len() - before;
            if len > MAX_PLAIN || unit.blocks.len() > MAX_PLAIN / 64 {
                return Ok(None);
            }
            let boundary = len >= UNIT_PLAIN && state.is_boundary(len);
            if unit.last || boundary || unit.flushed && self.ends_with_flush(&unit)? {
                return Ok(Some(unit));
            }
        }
    }

    /// Whether the encoder begins afresh here: not if only the end of the stream is left.
    fn ends_with_flush(&mut self, unit: &ReadUnit) -> Result<bool, End> {
        let at = unit.end / 8;
        let bytes = self.input.at_least(at + 16)?;
        // An empty last block, stored or fixed, and the trailer.
        let rest = &bytes[at..];
        Ok(!(rest.len() < 16 && rest.first().is_some_and(|byte| byte & 1 == 1)))
    }

    // --- zlib and its kind

    fn stretches(&mut self) -> Result<bool, End> {
        let small = self.size.is_some_and(|size| size <= AUTO_STRETCHES);
        if !small && self.policy != KeepCompressed::Always {
            return Ok(false);
        }
        let config = PreflateConfig {
            max_chain_length: match self.policy {
                KeepCompressed::Always => 4096,
                KeepCompressed::Auto | KeepCompressed::Never => 256,
            },
            plain_text_limit: STRETCH_PLAIN,
            verify_compression: true,
        };
        let mut processor = PreflateStreamProcessor::new(&config);
        let (mut first, mut wanted, mut plain) = (true, STRETCH, 0u64);
        while !processor.is_done() {
            self.input.at_least(wanted)?;
            // It was made for streams of any origin, but must not end an import whatever comes.
            let attempt = catch_unwind(AssertUnwindSafe(|| {
                processor.decompress(&self.input.buffer)
            }));
            let result = match attempt.unwrap_or_else(|_| {
                Err(PreflateError::new(ExitCode::GeneralFailure, "it panicked"))
            }) {
                Ok(result)
                    if result.compressed_size > 0
                        && result.corrections.len() < MAX_PART - 64
                        && plain < PREFLATE_MAX =>
                {
                    result
                }
                Err(error)
                    if error.exit_code() == ExitCode::ShortRead
                        && !self.input.ended
                        && wanted < 2 * STRETCH =>
                {
                    wanted *= 2;
                    continue;
                }
                _ => return Ok(false),
            };
            let len = processor.plain_text().text().len();
            plain += len as u64;
            let mut payload = vec![u8::from(first)];
            payload.extend_from_slice(&result.corrections);
            self.put(PREFLATE, len, &payload)?;
            self.input.drop(result.compressed_size);
            processor.shrink_to_dictionary();
            (first, wanted) = (false, STRETCH);
        }
        Ok(true)
    }
}

enum Units {
    /// The stream is at its end.
    Done,
    /// Not what the model knows; nothing was kept of it yet.
    Foreign,
    /// Some was kept; from here on it does not go on so.
    Broken,
}

struct ReadUnit {
    /// What comes before, and the unit's own bytes.
    plain: Vec<u8>,
    tokens: Vec<deflate::Token>,
    blocks: Vec<deflate::Block>,
    /// Where it ends, bits into the input.
    end: usize,
    last: bool,
    flushed: bool,
}

impl ReadUnit {
    /// How the unit after this one begins: with a reset, and with how large a dictionary.
    fn next(&self, state: &State, len: usize) -> (bool, usize) {
        if !self.flushed {
            return (false, 0);
        }
        let since = state.since_reset() + len;
        (true, if since > DICTIONARY { DICTIONARY } else { 0 })
    }
}

/// Length of the gzip header at the beginning of `bytes`; `None` if there is none.
fn gzip_header(bytes: &[u8]) -> Option<usize> {
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const CHECK: u8 = 2;
    let [0x1f, 0x8b, 8, flags, _, _, _, _, _, _, ..] = bytes else {
        return None;
    };
    let mut at = 10;
    if flags & EXTRA != 0 {
        let len = bytes.get(at..at + 2)?;
        at += 2 + usize::from(u16::from_le_bytes([len[0], len[1]]));
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            at += bytes.get(at..)?.iter().position(|byte| *byte == 0)? + 1;
        }
    }
    if flags & CHECK != 0 {
        at += 2;
    }
    (at <= bytes.len()).then_some(at)
}
