//! Keeping a blob while its layer is read, or afterwards when the layer is in the store already.

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;
use std::thread::{Scope, ScopedJoinHandle};

use sha2::{Digest as _, Sha256};

use crate::store::{self, BlobWriter, Digest, Store};

use super::super::compress::{self, Compression, Sniffed};
use super::super::ingest::{self, Expected, LayerFacts, Unpublished};
use super::super::limits::Limits;
use super::super::pump::PIECE;
use super::super::{Error, Result};
use super::METHOD;
use super::gunzip::{Gunzip, Listener, Message};
use super::keep::{KeepCompressed, Kept, keep};

/// Messages waiting at most, most of them units of a MiB.
const DEPTH: usize = 2;

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

/// A thread that keeps what it is told of.
pub struct Keeper<'scope> {
    listener: Listener,
    thread: ScopedJoinHandle<'scope, (BlobWriter, std::result::Result<Kept, store::Error>)>,
}

impl<'scope> Keeper<'scope> {
    fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        store: &Store,
        size: Option<u64>,
        policy: KeepCompressed,
    ) -> Result<Self> {
        let mut writer = store.blob_writer()?;
        let (to, told) = sync_channel(DEPTH);
        let raw_only = Arc::new(AtomicBool::new(false));
        let listener = Listener {
            to,
            stopped: Arc::default(),
            raw_only: Arc::clone(&raw_only),
        };
        let thread = scope.spawn(move || {
            let outcome = keep(told, raw_only, size, policy, &mut writer);
            (writer, outcome)
        });
        Ok(Self { listener, thread })
    }

    /// Decompresses `blob`, of which it tells the thread.
    pub fn decoder<'a, R: Read + Send + 'a>(
        &self,
        blob: R,
        compression: Compression,
        limits: &Limits,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        let listener = self.listener.clone();
        if compression == Compression::Gzip {
            return Ok(Box::new(Gunzip::new(blob, Some(listener))));
        }
        let tee = Tee {
            input: blob,
            listener,
        };
        let input = BufReader::with_capacity(PIECE, tee);
        compress::decoder(input, compression, limits)
    }

    /// The blob is whole.
    fn finish(self) -> Result<KeptBlob> {
        let Self { listener, thread } = self;
        listener.tell(Message::Done);
        drop(listener);
        let (writer, outcome) = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match outcome? {
            Kept::Whole => Ok(KeptBlob(Some(writer))),
            Kept::TooDear => Ok(KeptBlob::NOTHING),
        }
    }
}

/// Passes on what is read, and tells of it.
struct Tee<R> {
    input: R,
    listener: Listener,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        if !self.listener.stopped() && n > 0 {
            self.listener.tell(Message::Raw(buf[..n].to_vec()));
        }
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
            return ingest::ingest(store, what, input, expected, limits, progress, None);
        }
        std::thread::scope(|scope| {
            let keeper = Keeper::start(scope, store, expected.blob_size, self.policy)?;
            let keep = Some(&keeper);
            let mut layer = ingest::ingest(store, what, input, expected, limits, progress, keep)?;
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
            let keeper = Keeper::start(scope, store, size, self.policy)?;
            let stopped = || keeper.listener.stopped();
            let mut counted = Counted {
                input,
                hash: Sha256::new(),
                progress,
            };
            let mut tar = Sha256::new();
            let unpacked = (|| {
                let mut input = keeper.decoder(&mut counted, compression, limits)?;
                let mut piece = vec![0; PIECE];
                let mut left = expected.tar_size;
                loop {
                    let n = input.read(&mut piece)?;
                    if n == 0 || stopped() {
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
            if stopped() {
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
