//! Keeping a blob while its layer is read, or afterwards when the layer is in the store already.

use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use sha2::{Digest as _, Sha256};

use crate::store::{self, BlobWriter, Digest, Store};

use super::super::compress::{self, Compression, Sniffed};
use super::super::ingest::{self, Expected, LayerFacts, Unpublished};
use super::super::limits::Limits;
use super::super::pump::{PIECE, PumpWriter, pump};
use super::super::{Error, Result};
use super::METHOD;
use super::keep::{KeepCompressed, Kept, keep};

/// A blob whose parts are in the store, but which has no name yet. Dropped, it is forgotten.
pub struct KeptBlob(Option<BlobWriter>);

impl KeptBlob {
    pub const NOTHING: Self = Self(None);

    /// Makes the blob appear; its layer must be published. On the disk with the image that is recorded next.
    pub fn publish(self, facts: &LayerFacts) -> Result<()> {
        if let Some(writer) = self.0 {
            writer.finish_in_order(&facts.blob, facts.blob_size, METHOD, &facts.diff_id)?;
        }
        Ok(())
    }
}

type Outcome = (
    BlobWriter,
    io::Result<std::result::Result<Kept, store::Error>>,
);

/// A thread that keeps what is written to it.
struct Keeper<'scope> {
    to: Option<PumpWriter>,
    /// It wants no more of the blob.
    stopped: Arc<AtomicBool>,
    thread: ScopedJoinHandle<'scope, Outcome>,
}

impl<'scope> Keeper<'scope> {
    fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        store: &Store,
        size: Option<u64>,
        policy: KeepCompressed,
    ) -> Result<Self> {
        let mut writer = store.blob_writer()?;
        let (to, mut from) = pump();
        let thread = scope.spawn(move || {
            let outcome = keep(&mut from, size, policy, &mut writer);
            (writer, outcome)
        });
        Ok(Self {
            to: Some(to),
            stopped: Arc::default(),
            thread,
        })
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(to) = &mut self.to
            && to.write_all(bytes).is_err()
        {
            // It stopped, and says why at the end.
            self.to = None;
            self.stopped.store(true, Ordering::Relaxed);
        }
    }

    /// The blob is whole.
    fn finish(mut self) -> Result<KeptBlob> {
        let ended = self.to.take().is_some_and(|to| to.finish().is_ok());
        let (writer, outcome) = self
            .thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match outcome {
            Ok(Ok(Kept::Whole)) if ended => Ok(KeptBlob(Some(writer))),
            Ok(Err(error)) => Err(error.into()),
            _ => Ok(KeptBlob::NOTHING),
        }
    }
}

/// Passes on what is read, and gives it to the keeper.
struct Tee<'a, 'scope, R> {
    input: R,
    keeper: &'a mut Keeper<'scope>,
}

impl<R: Read> Read for Tee<'_, '_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        self.keeper.write(&buf[..n]);
        Ok(n)
    }
}

/// What an import is to do with blobs.
#[derive(Clone, Copy)]
pub struct Keeping<'a> {
    pub store: &'a Store,
    pub limits: &'a Limits,
    pub policy: KeepCompressed,
}

impl Keeping<'_> {
    /// Whether a blob should be looked at at all.
    pub fn wants(&self, blob: Option<&Digest>) -> Result<bool> {
        let known = match blob {
            Some(blob) => self.store.blob(blob)?.is_some(),
            None => false,
        };
        Ok(self.policy != KeepCompressed::Never && !known)
    }

    /// Reads a layer, see [`ingest::ingest`], and keeps its blob if it is compressed.
    pub fn ingest(
        &self,
        what: &str,
        blob: impl Read + Send,
        expected: Expected,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Unpublished> {
        let Self { store, limits, .. } = *self;
        let reading = |source| Error::Read {
            what: what.to_owned(),
            source,
        };
        let (head, input) = compress::peek(blob).map_err(reading)?;
        let compressed = matches!(Sniffed::of(&head), Sniffed::Gzip | Sniffed::Zstd);
        if !compressed || !self.wants(expected.blob.as_ref())? {
            return ingest::ingest(store, what, input, expected, limits, progress);
        }
        std::thread::scope(|scope| {
            let mut keeper = Keeper::start(scope, store, expected.blob_size, self.policy)?;
            let tee = Tee {
                input,
                keeper: &mut keeper,
            };
            let mut layer = ingest::ingest(store, what, tee, expected, limits, progress)?;
            layer.kept = keeper.finish()?;
            Ok(layer)
        })
    }

    /// Keeps the blob of a layer that is in the store. It is unpacked, to be sure that it is one of that layer; what will not
    /// be kept is read no further.
    pub fn keep(
        &self,
        what: &str,
        blob: impl Read + Send,
        expected: &LayerFacts,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let Self { store, limits, .. } = *self;
        let reading = |source| Error::Read {
            what: what.to_owned(),
            source,
        };
        let (head, input) = compress::peek(blob).map_err(reading)?;
        let Some(compression @ (Compression::Gzip | Compression::Zstd)) =
            Sniffed::of(&head).compression()
        else {
            return Ok(());
        };
        std::thread::scope(|scope| {
            let size = Some(expected.blob_size);
            let mut keeper = Keeper::start(scope, store, size, self.policy)?;
            let stopped = Arc::clone(&keeper.stopped);
            let mut counted = Counted {
                input: Tee {
                    input,
                    keeper: &mut keeper,
                },
                hash: Sha256::new(),
                progress,
            };
            let mut tar = Sha256::new();
            let unpacked = (|| {
                let input = BufReader::with_capacity(PIECE, &mut counted);
                let mut input = compress::decoder(input, compression, limits)?;
                let mut piece = vec![0; PIECE];
                let mut left = expected.tar_size;
                loop {
                    let n = input.read(&mut piece)?;
                    if n == 0 || stopped.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    // More than the layer has: the digest will not fit, so why read on.
                    let Some(less) = left.checked_sub(n as u64) else {
                        return Ok(());
                    };
                    left = less;
                    tar.update(&piece[..n]);
                }
            })();
            unpacked.map_err(|source| Error::Decompress {
                what: what.to_owned(),
                format: compression.name(),
                source,
            })?;
            if stopped.load(Ordering::Relaxed) {
                // Too dear, or the store has failed.
                return keeper.finish().map(drop);
            }
            let blob = Digest::from_bytes(counted.hash.finalize().into());
            let check = |what: String, expected, actual| {
                if expected == actual {
                    return Ok(());
                }
                Err(Error::DigestMismatch {
                    what,
                    expected,
                    actual,
                })
            };
            let diff_id = Digest::from_bytes(tar.finalize().into());
            check(format!("{what}, uncompressed,"), expected.diff_id, diff_id)?;
            check(what.to_owned(), expected.blob, blob)?;
            keeper.finish()?.publish(expected)
        })
    }
}

struct Counted<'a, R> {
    input: R,
    hash: Sha256,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        self.hash.update(&buf[..n]);
        (self.progress)(n as u64);
        Ok(n)
    }
}
