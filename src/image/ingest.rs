//! One layer into the store: bytes in, verified, as a tree and a recipe.
//!
//! Two threads beside the store's own: a feeder reads and decompresses, and hashes a compressed blob (and tells of it if
//! it is to be kept); the caller parses the tar and hands literals, data and entries to the store's writer, which hashes
//! the tar. Memory is a few pieces of the stream, whatever the layer's size.
//!
//! Invariant: a layer is published only after its diff ID, and the digest and size of its blob, were compared with
//! everything that claimed to know them.

use std::ffi::OsString;
use std::io::{self, BufReader, Read};
use std::thread::{Scope, ScopedJoinHandle};

use sha2::{Digest as _, Sha256};

use crate::meta::{FileKind, Timestamp};
use crate::store::{self, Digest, LayerWriter, Lease, NewNode, Store};

use super::blob::{Keeper, KeptBlob};
use super::compress::{self, Compression, Sniffed};
use super::layer_entry::{self, Action, EntryFault};
use super::limits::Limits;
use super::links::ForeignLinks;
use super::pump::{self, PIECE, PumpReader, PumpWriter, pump};
use super::tar::{Entry, Kind, TarError, TarReader};
use super::{Error, Result};

/// What is already known of a layer; all of it is checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    pub diff_id: Option<Digest>,
    /// Digest and size of the blob as it lies in the archive, compressed or not.
    pub blob: Option<Digest>,
    pub blob_size: Option<u64>,
}

/// A layer that was read whole and found right.
#[derive(Clone, Copy, Debug)]
pub struct LayerFacts {
    pub diff_id: Digest,
    pub blob: Digest,
    pub blob_size: u64,
    pub tar_size: u64,
    pub entries: u64,
    /// Latest modification time of its entries.
    pub newest: Option<Timestamp>,
}

/// A layer whose bytes are in the store but which is not published yet.
pub struct Unpublished {
    what: String,
    writer: LayerWriter,
    links: ForeignLinks,
    pub facts: LayerFacts,
    /// The blob it came in, if that is kept.
    pub kept: KeptBlob,
}

impl Unpublished {
    /// Whether the layer can only be finished with the layers below it at hand.
    pub fn needs_lowers(&self) -> bool {
        !self.links.is_empty()
    }

    /// Resolves hard links into `lowers` (bottom first) and makes the layer visible. It is on the disk with the image that
    /// is recorded next.
    pub fn publish(mut self, store: &Store, lowers: &[Digest]) -> Result<LayerFacts> {
        if let Err((path, stop)) = self.links.resolve(&mut self.writer, store, lowers) {
            return Err(stop.at(&self.what, &path));
        }
        self.writer.finish_in_order(&self.facts.diff_id)?;
        self.kept.publish(&self.facts)?;
        Ok(self.facts)
    }
}

/// Finishes layers, one after the other, while the next is being read.
///
/// Bottom first: a layer's turn comes when the one before it is in the store, as its hard links may need it.
pub struct Publisher<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    store: &'env Store,
    pending: Option<(Digest, ScopedJoinHandle<'scope, Result<LayerFacts>>)>,
}

impl<'scope, 'env> Publisher<'scope, 'env> {
    pub fn new(scope: &'scope Scope<'scope, 'env>, store: &'env Store) -> Self {
        Self {
            scope,
            store,
            pending: None,
        }
    }

    /// Publishes `layer` over `lowers` (bottom first) in the background.
    ///
    /// # Errors
    /// Those of the layer before.
    pub fn publish(&mut self, layer: Unpublished, lowers: &[Digest]) -> Result<()> {
        self.finish()?;
        let (store, lowers) = (self.store, lowers.to_vec());
        let diff_id = layer.facts.diff_id;
        let thread = self.scope.spawn(move || layer.publish(store, &lowers));
        self.pending = Some((diff_id, thread));
        Ok(())
    }

    /// Holds a layer that is in the store, or is about to be, against `gc`; `None` if it is not there, or is known to be
    /// damaged, so that it must be read.
    pub fn hold(&mut self, diff_id: &Digest) -> Result<Option<Lease>> {
        if matches!(&self.pending, Some((pending, _)) if pending == diff_id) {
            self.finish()?;
        }
        if self.store.needs_healing(diff_id)? {
            return Ok(None);
        }
        hold(self.store, diff_id)
    }

    /// Waits for what is under way.
    pub fn finish(&mut self) -> Result<()> {
        match self.pending.take() {
            Some((_, thread)) => thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map(drop),
            None => Ok(()),
        }
    }
}

/// Reads one layer from `blob` into `store`. `what` names it in messages; `progress` is told how many bytes of the blob
/// were read since it was last told. `keeper` is told of a compressed blob.
pub fn ingest(
    store: &Store,
    what: &str,
    blob: impl Read + Send,
    expected: Expected,
    limits: &Limits,
    progress: &(dyn Fn(u64) + Sync),
    keeper: Option<&Keeper<'_>>,
) -> Result<Unpublished> {
    let (to, from) = pump();
    let (fed, parsed) = std::thread::scope(|scope| {
        let feeder = scope.spawn(move || feed(what, blob, expected, limits, progress, keeper, to));
        let parsed = parse(store, from, limits);
        (
            feeder
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            parsed,
        )
    });
    // Whoever failed first explains it: a feeder told that its reader stopped only repeats the parser's failure, and a
    // parser whose stream broke off only the feeder's.
    let ((tree, diff_id), fed) = match (parsed, fed) {
        (Ok(parsed), Ok(fed)) => (parsed, fed),
        (_, Err(Feed::Failed(error))) => return Err(error),
        (Err((path, stop)), _) => return Err(stop.at(what, &path)),
        (Ok(_), Err(Feed::ReaderStopped)) => {
            unreachable!("the parser reads to the end of the stream or fails")
        }
    };
    let check = |what: String, expected: Option<Digest>, actual| match expected {
        Some(expected) if expected != actual => Err(Error::DigestMismatch {
            what,
            expected,
            actual,
        }),
        _ => Ok(()),
    };
    // A plain tar is its own blob: one hash serves both.
    let blob = fed.blob.unwrap_or(diff_id);
    check(what.to_owned(), expected.blob, blob)?;
    check(format!("{what}, uncompressed,"), expected.diff_id, diff_id)?;
    let facts = LayerFacts {
        diff_id,
        blob,
        blob_size: fed.blob_size,
        tar_size: fed.tar_size,
        entries: tree.entries,
        newest: tree.newest,
    };
    Ok(Unpublished {
        what: what.to_owned(),
        writer: tree.writer,
        links: tree.links,
        facts,
        kept: KeptBlob::NOTHING,
    })
}

/// Holds a layer that is in the store against `gc`; `None` if it is not there.
pub fn hold(store: &Store, diff_id: &Digest) -> Result<Option<Lease>> {
    match store.lease(&[*diff_id], "import") {
        Ok(lease) => Ok(Some(lease)),
        Err(store::Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

struct Fed {
    /// Of a compressed one.
    blob: Option<Digest>,
    blob_size: u64,
    tar_size: u64,
}

enum Feed {
    Failed(Error),
    ReaderStopped,
}

impl From<Error> for Feed {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The feeder: reads `blob` to its end, hashes and decompresses it, sends the tar to the parser.
fn feed(
    what: &str,
    blob: impl Read + Send,
    expected: Expected,
    limits: &Limits,
    progress: &(dyn Fn(u64) + Sync),
    keeper: Option<&Keeper<'_>>,
    mut to: PumpWriter,
) -> std::result::Result<Fed, Feed> {
    let reading = |source| Error::Read {
        what: what.to_owned(),
        source,
    };
    let (head, blob) = compress::peek(blob).map_err(reading)?;
    let sniffed = Sniffed::of(&head);
    let Some(compression) = sniffed.compression() else {
        let (what, hint) = (what.to_owned(), sniffed.complaint());
        // A member of an archive was said to be a layer; a file of its own may be anything.
        let error = match expected.blob_size {
            Some(_) => Error::NotALayer { what, hint },
            None => Error::UnknownFormat { what, hint },
        };
        return Err(error.into());
    };
    let hasher = (compression != Compression::None).then(Sha256::new);
    let mut counted = Counted {
        input: blob,
        hasher,
        size: 0,
        max: expected.blob_size,
        progress,
    };
    let mut tar_size = 0u64;
    let result = (|| {
        let mut input: Box<dyn Read + Send + '_> = match (compression, keeper) {
            // Pieces are as large as any buffer in between would be.
            (Compression::None, _) => Box::new(&mut counted),
            (_, Some(keeper)) => keeper.decoder(&mut counted, compression, limits)?,
            (_, None) => {
                let input = BufReader::with_capacity(PIECE, &mut counted);
                compress::decoder(input, compression, limits)?
            }
        };
        loop {
            let more = to.fill_from(&mut input, &mut |piece| {
                tar_size += piece.len() as u64;
                if tar_size > limits.layer_bytes {
                    return Err(io::Error::other(OverLimit));
                }
                Ok(())
            })?;
            if !more {
                return Ok(());
            }
        }
    })();
    let (hasher, blob_size) = (counted.hasher.take(), counted.size);
    if let Err(error) = result {
        return Err(explain(error, what, compression, limits, expected));
    }
    if let Some(size) = expected.blob_size.filter(|&size| size != blob_size) {
        let actual = blob_size.to_string();
        return Err(Error::SizeMismatch {
            what: what.to_owned(),
            expected: size,
            actual,
        }
        .into());
    }
    to.finish().map_err(|_| Feed::ReaderStopped)?;
    Ok(Fed {
        blob: hasher.map(|hasher| Digest::from_bytes(hasher.finalize().into())),
        blob_size,
        tar_size,
    })
}

#[derive(Debug, thiserror::Error)]
#[error("the layer is too large")]
struct OverLimit;

#[derive(Debug, thiserror::Error)]
#[error("more bytes than the descriptor says")]
struct OverSize;

fn explain(
    error: io::Error,
    what: &str,
    compression: Compression,
    limits: &Limits,
    expected: Expected,
) -> Feed {
    let what = what.to_owned();
    if error.get_ref().is_some_and(|inner| inner.is::<OverLimit>()) {
        let max = limits.layer_bytes;
        return Error::Limit {
            what,
            max,
            unit: "bytes uncompressed",
            flag: "--max-layer-size",
        }
        .into();
    }
    if error.get_ref().is_some_and(|inner| inner.is::<OverSize>()) {
        let expected = expected.blob_size.unwrap_or_default();
        return Error::SizeMismatch {
            what,
            expected,
            actual: "more".to_owned(),
        }
        .into();
    }
    if pump::is_reader_gone(&error) {
        return Feed::ReaderStopped;
    }
    // What was cut off outside the layer is no fault of its compression.
    let outside = error.get_ref().is_some_and(|inner| inner.is::<TarError>());
    if outside || compression == Compression::None {
        return Error::Read {
            what,
            source: error,
        }
        .into();
    }
    Error::Decompress {
        what,
        format: compression.name(),
        source: error,
    }
    .into()
}

/// Counts, hashes and bounds what is read through it.
struct Counted<'a, R> {
    input: R,
    hasher: Option<Sha256>,
    size: u64,
    max: Option<u64>,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        self.size += n as u64;
        if self.max.is_some_and(|max| self.size > max) {
            return Err(io::Error::other(OverSize));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        (self.progress)(n as u64);
        Ok(n)
    }
}

/// Why parsing stopped; [`Stop::at`] adds the layer and the entry.
pub enum Stop {
    Tar(TarError),
    Store(store::Error),
    Entry(EntryFault),
    TooManyEntries(u64),
}

impl From<TarError> for Stop {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

impl From<store::Error> for Stop {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl From<EntryFault> for Stop {
    fn from(fault: EntryFault) -> Self {
        Self::Entry(fault)
    }
}

impl Stop {
    pub fn at(self, what: &str, path: &[u8]) -> Error {
        let what = what.to_owned();
        match self {
            Self::Tar(source) => Error::Tar { what, source },
            Self::Store(error) => error.into(),
            Self::Entry(fault) => Error::Entry {
                what,
                path: path.to_vec(),
                fault,
            },
            Self::TooManyEntries(max) => Error::Limit {
                what,
                max,
                unit: "entries",
                flag: "--max-entries",
            },
        }
    }
}

struct Tree {
    writer: LayerWriter,
    links: ForeignLinks,
    entries: u64,
    newest: Option<Timestamp>,
}

/// The parser: the whole stream to the store's writer, the tree it describes and its digest.
fn parse(
    store: &Store,
    from: PumpReader,
    limits: &Limits,
) -> std::result::Result<(Tree, Digest), (Vec<u8>, Stop)> {
    let nowhere = |stop: Stop| (Vec::new(), stop);
    let mut reader = TarReader::new(from, limits.tar());
    let writer = store
        .layer_writer()
        .map_err(|error| nowhere(error.into()))?;
    let mut tree = Tree {
        writer,
        links: ForeignLinks::default(),
        entries: 0,
        newest: None,
    };
    loop {
        let writer = &mut tree.writer;
        let next = reader.next(&mut |bytes| writer.literal(bytes).map_err(Stop::from));
        let Some(entry) = next.map_err(nowhere)? else {
            break;
        };
        tree.entries += 1;
        if tree.entries > limits.entries {
            return Err(nowhere(Stop::TooManyEntries(limits.entries)));
        }
        tree.take(&mut reader, &entry, limits)
            .map_err(|stop| (entry.path.clone(), stop))?;
    }
    let writer = &mut tree.writer;
    reader
        .trailer(&mut |bytes| writer.literal(bytes).map_err(Stop::from))
        .map_err(nowhere)?;
    let diff_id = tree
        .writer
        .diff_id()
        .map_err(|error| nowhere(error.into()))?;
    Ok((tree, diff_id))
}

impl Tree {
    fn take(
        &mut self,
        reader: &mut TarReader<PumpReader>,
        entry: &Entry,
        limits: &Limits,
    ) -> std::result::Result<(), Stop> {
        if entry.kind != Kind::Note {
            self.newest = self.newest.max(Some(entry.mtime));
        }
        match layer_entry::action(entry, limits)? {
            Action::Ignore => Ok(()),
            Action::Node { path, kind } => self.node(reader, entry, path, kind, limits),
            Action::HardLink { path, target } => {
                self.links.made(&path, FileKind::Regular);
                if self.links.waits(&target) || !self.writer.add_hard_link(&path, &target)? {
                    self.links.wait_for(path, target)?;
                }
                Ok(())
            }
            Action::Whiteout { path } => Ok(self.writer.add_whiteout(&path)?),
            Action::Opaque { dir } => Ok(self.writer.add_opaque(&dir)?),
        }
    }

    fn node(
        &mut self,
        reader: &mut TarReader<PumpReader>,
        entry: &Entry,
        path: OsString,
        kind: FileKind,
        limits: &Limits,
    ) -> std::result::Result<(), Stop> {
        let meta = layer_entry::node_meta(entry, limits)?;
        let target;
        let node = match kind {
            FileKind::Regular => NewNode::Regular(self.content(reader, entry)?),
            FileKind::Directory => NewNode::Directory,
            FileKind::Symlink => {
                use std::os::unix::ffi::OsStrExt;
                target = std::ffi::OsStr::from_bytes(&entry.link);
                NewNode::Symlink(target)
            }
            FileKind::CharDevice | FileKind::BlockDevice => NewNode::Special {
                kind,
                rdev: libc::makedev(entry.device.0, entry.device.1),
            },
            FileKind::Fifo | FileKind::Socket => NewNode::Special { kind, rdev: 0 },
        };
        self.links.made(&path, kind);
        Ok(self.writer.add(&path, &meta, node)?)
    }

    fn content(
        &mut self,
        reader: &mut TarReader<PumpReader>,
        entry: &Entry,
    ) -> std::result::Result<store::ContentToken, Stop> {
        let writer = &mut self.writer;
        writer.begin_content(entry.size)?;
        match &entry.extents {
            None => reader.body(entry.stored, &mut |bytes| {
                writer.data(bytes).map_err(Stop::from)
            })?,
            Some(extents) => {
                let mut at = 0;
                for extent in extents {
                    if extent.offset > at {
                        writer.hole(extent.offset - at)?;
                    }
                    reader.body(extent.len, &mut |bytes| {
                        writer.data(bytes).map_err(Stop::from)
                    })?;
                    at = extent.offset + extent.len;
                }
                if entry.size > at {
                    writer.hole(entry.size - at)?;
                }
            }
        }
        Ok(writer.end_content()?)
    }
}
