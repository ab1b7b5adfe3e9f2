//! Keeping a blob: is told of it as it is read, finds out which encoder made it, and gives segments.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

use preflate_rs::{ExitCode, PreflateConfig, PreflateError, PreflateStreamProcessor};

use crate::store::{self, BlobWriter, MAX_PART, varint};

use super::gunzip::Message;
use super::makers::Makers;
use super::unit::Luck;
use super::{AS_IT_IS, PREFLATE, UNIT};

/// Bytes kept as they are, at most, in a segment.
const WHOLE: usize = 1 << 20;
/// Plain bytes of a stretch at most, and compressed bytes looked at for it.
const STRETCH_PLAIN: usize = 24 << 20;
const STRETCH: usize = 2 << 20;
/// At first, as the crate guesses from what it sees then how all of the stream was made.
const FIRST_STRETCH: usize = 13 << 18;
/// Bytes that the crate wants to see behind a stream; in a blob there are as many of a trailer.
const BEHIND: usize = 8;
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
    /// Nobody tells any more.
    Alone,
    Store(store::Error),
}

impl From<store::Error> for End {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

/// Takes in what is told of a blob, of `size` bytes if that is known, and gives its segments to `writer`. Of one that is
/// too dear no more is taken than it takes to know. `raw_only` is set while a stream is wanted as raw bytes.
///
/// # Errors
/// Those of the store.
pub fn keep(
    told: Receiver<Message>,
    raw_only: Arc<AtomicBool>,
    size: Option<u64>,
    policy: KeepCompressed,
    writer: &mut BlobWriter,
) -> Result<Kept, store::Error> {
    let ended = std::thread::scope(|scope| {
        let mut keeper = Keeper {
            told,
            raw_only,
            makers: Makers::new(scope),
            buffer: Vec::new(),
            read: 0,
            ended: false,
            size,
            policy,
            writer,
        };
        keeper.run()
    });
    match ended {
        Ok(()) => Ok(Kept::Whole),
        Err(End::TooDear | End::Alone) => Ok(Kept::TooDear),
        Err(End::Store(error)) => Err(error),
    }
}

struct Keeper<'a, 'scope, 'env> {
    told: Receiver<Message>,
    raw_only: Arc<AtomicBool>,
    makers: Makers<'scope, 'env>,
    /// Bytes of the blob that wait to be kept.
    buffer: Vec<u8>,
    read: u64,
    /// The stream is at its end, or all is.
    ended: bool,
    size: Option<u64>,
    policy: KeepCompressed,
    writer: &'a mut BlobWriter,
}

impl Keeper<'_, '_, '_> {
    fn run(&mut self) -> Result<(), End> {
        // Members of gzip, one after the other; what is none is kept as it is.
        let mut apart = true;
        loop {
            match self.next()? {
                Message::Raw(raw) => self.buffer.extend(raw),
                Message::Begin if apart => {
                    self.as_it_is(0)?;
                    apart = self.stream()?;
                }
                Message::Unit(taken) => self.buffer.extend(taken.raw),
                Message::Begin | Message::End => {}
                Message::Done => return self.as_it_is(0),
            }
            if !apart {
                self.raw_only.store(true, Ordering::Relaxed);
            }
            self.as_it_is(WHOLE)?;
        }
    }

    fn next(&mut self) -> Result<Message, End> {
        let message = self.told.recv().map_err(|_| End::Alone)?;
        self.read += match &message {
            Message::Raw(raw) => raw.len() as u64,
            Message::Unit(taken) => taken.raw.len() as u64,
            _ => 0,
        };
        Ok(message)
    }

    fn put(&mut self, kind: u8, plain: usize, payload: &[u8]) -> Result<(), End> {
        let mut part = vec![kind];
        varint::put(&mut part, plain as u64);
        part.extend_from_slice(payload);
        self.writer.part(part)?;
        let allowed = match self.policy {
            KeepCompressed::Auto => (self.read / 8).max(SMALL),
            KeepCompressed::Always | KeepCompressed::Never => u64::MAX,
        };
        if self.writer.stored() > allowed {
            return Err(End::TooDear);
        }
        Ok(())
    }

    /// Keeps what waits if it is more than `len` bytes.
    fn as_it_is(&mut self, len: usize) -> Result<(), End> {
        if self.buffer.len() > len {
            let buffer = std::mem::take(&mut self.buffer);
            for bytes in buffer.chunks(WHOLE) {
                self.put(AS_IT_IS, 0, bytes)?;
            }
        }
        Ok(())
    }

    /// The DEFLATE stream of a member. `false`: from here on, bytes must be kept as they are.
    fn stream(&mut self) -> Result<bool, End> {
        let (mut luck, mut first) = (Luck::default(), true);
        let (mut rest, mut fits) = (Vec::new(), true);
        self.ended = false;
        while fits && !self.ended {
            match self.next()? {
                Message::Unit(taken) => {
                    self.makers.give(taken);
                    if !self.makers.are_busy() {
                        continue;
                    }
                }
                Message::End => self.ended = true,
                Message::Raw(raw) => (rest, fits) = (raw, false),
                // Neither comes within a stream.
                Message::Begin | Message::Done => return Err(End::Alone),
            }
            // One of many, or all that are left.
            while let Some((taken, made)) = self.makers.take() {
                let made = made.filter(|(_, lucky)| {
                    luck.foretold += lucky.foretold;
                    luck.told += lucky.told;
                    !first || luck.told <= luck.foretold
                });
                let Some((packed, _)) = made else {
                    // It is not what the model knows, or does not go on so.
                    fits = false;
                    let mut raw = taken.raw;
                    while let Some((taken, _)) = self.makers.take() {
                        raw.extend(taken.raw);
                    }
                    raw.append(&mut rest);
                    rest = raw;
                    break;
                };
                self.put(UNIT, taken.unit.plain().len(), &packed)?;
                first = false;
                if fits && !self.ended {
                    break;
                }
            }
        }
        if fits {
            return Ok(true);
        }
        self.buffer = rest;
        if first { self.stretches() } else { Ok(false) }
    }

    // --- zlib and its kind

    /// Has at least `len` raw bytes of the stream at hand, fewer only at its end.
    fn at_least(&mut self, len: usize) -> Result<(), End> {
        while self.buffer.len() < len && !self.ended {
            match self.next()? {
                Message::Raw(raw) => self.buffer.extend(raw),
                Message::Unit(taken) => self.buffer.extend(taken.raw),
                Message::End => self.ended = true,
                Message::Begin | Message::Done => return Err(End::Alone),
            }
        }
        Ok(())
    }

    fn stretches(&mut self) -> Result<bool, End> {
        let small = self.size.is_some_and(|size| size <= AUTO_STRETCHES);
        if !small && self.policy != KeepCompressed::Always {
            return Ok(false);
        }
        self.raw_only.store(true, Ordering::Relaxed);
        let done = self.stretch_by_stretch()?;
        if done {
            // To its end, which has been seen if it is where the crate says.
            while !self.ended {
                self.at_least(self.buffer.len() + 1)?;
            }
            self.as_it_is(0)?;
        }
        self.raw_only.store(!done, Ordering::Relaxed);
        Ok(done)
    }

    fn stretch_by_stretch(&mut self) -> Result<bool, End> {
        let config = PreflateConfig {
            max_chain_length: match self.policy {
                KeepCompressed::Always => 4096,
                KeepCompressed::Auto | KeepCompressed::Never => 256,
            },
            plain_text_limit: STRETCH_PLAIN,
            verify_compression: true,
        };
        let mut processor = PreflateStreamProcessor::new(&config);
        let (mut first, mut wanted, mut plain) = (true, FIRST_STRETCH, 0u64);
        while !processor.is_done() {
            self.at_least(wanted)?;
            let at_hand = self.buffer.len();
            if self.ended {
                self.buffer.resize(at_hand + BEHIND, 0);
            }
            // It was made for streams of any origin, but must not end an import whatever comes.
            let attempt = catch_unwind(AssertUnwindSafe(|| processor.decompress(&self.buffer)));
            self.buffer.truncate(at_hand);
            let result = match attempt.unwrap_or_else(|_| {
                Err(PreflateError::new(ExitCode::GeneralFailure, "it panicked"))
            }) {
                Ok(result)
                    if (1..=at_hand).contains(&result.compressed_size)
                        && result.corrections.len() < MAX_PART - 64
                        && plain < PREFLATE_MAX =>
                {
                    result
                }
                Err(error)
                    if error.exit_code() == ExitCode::ShortRead
                        && !self.ended
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
            self.buffer.drain(..result.compressed_size);
            processor.shrink_to_dictionary();
            (first, wanted) = (false, STRETCH);
        }
        Ok(true)
    }
}
