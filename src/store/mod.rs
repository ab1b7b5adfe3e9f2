//! The content-addressed store: chunks, contents, layers, images, names, leases.
//!
//! One SQLite database, `store.db`, is the truth; `docs/store-format.md` describes it byte by byte. This is the only
//! room that names `rusqlite`; it knows layers and documents, but nothing of OCI, mounts or FUSE.
//!
//! Invariants:
//! - A chunk is immutable and named by the SHA-256 of its bytes; bytes that do not hash to their name never leave the
//!   room ([`Error::Corrupt`]).
//! - Chunks are stored before anything refers to them; a layer appears whole, in one transaction, or not at all. What a
//!   finished call reported survives a power cut.
//! - Nothing is removed that an image, a living lease or a running import needs.
//! - Readers never wait for writers (WAL).
//! - Every value read from the database is checked before it is used.

mod blobs;
mod checkpoint;
mod chunker;
mod content;
mod damage;
mod db;
mod digest;
mod error;
mod export;
mod extents;
mod fsck;
mod gc;
mod holders;
mod idset;
mod images;
mod kind;
mod layers;
mod leases;
mod pack;
mod pipeline;
mod place;
mod process;
mod progress;
mod publish;
mod reader;
mod recipe;
mod schema;
mod space;
mod tree;
mod usage;
pub(crate) mod varint;
mod writer;
mod xattrs;

pub use blobs::{BlobInfo, BlobParts, BlobWriter, MAX_PART};
pub use content::{ContentReader, ContentRef};
pub use digest::{Digest, ParseDigestError};
pub use error::{Error, Result};
pub use fsck::{Cure, DocumentCheck, FsckOptions, FsckReport, Problem};
pub use gc::GcReport;
pub use images::{DamagedImage, ImageRecord, NewImage, Origin};
pub use layers::LayerInfo;
pub use leases::Lease;
pub use pack::lacked_memory;
pub use progress::Progress;
pub use reader::{Dirent, Inode, LayerReader, ROOT_INODE};
pub use usage::{ImageUsage, Usage};
pub use writer::{ContentToken, LayerWriter, NewNode, NodeMeta};

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use db::Database;
use pack::{ChunkBytes, PackCache};
use place::Place;

/// One open store; cheap to clone, usable from any thread. Not across a fork: open it anew in the child.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What all handles of one open store share.
struct Shared {
    database: Arc<Database>,
    packs: PackCache,
}

impl Shared {
    /// A verified chunk, which must be `len` bytes long; `known`: where it was.
    fn chunk(&self, chunk: i64, len: u32, known: Option<pack::Location>) -> Result<ChunkBytes> {
        let bytes = self.packs.chunk_at(&self.database, chunk, known)?;
        if bytes.len() == len as usize {
            Ok(bytes)
        } else {
            Err(Error::Corrupt(format!(
                "chunk {chunk} is {} bytes long, not {len}",
                bytes.len()
            )))
        }
    }
}

impl Store {
    /// Opens the store below `root`, creating directory (0700) and database if missing.
    pub fn open(root: &Path) -> Result<Self> {
        let place = Place::create(root)?;
        let path = place.database.clone();
        let database = Database::open(place, true)?.ok_or_else(|| Error::NotAStore {
            path,
            reason: "it could not be made one".to_owned(),
        })?;
        Ok(Self::over(database))
    }

    /// Opens an existing store; `None` if there is none. For verbs that only read.
    pub fn open_existing(root: &Path) -> Result<Option<Self>> {
        let Some(place) = Place::existing(root)? else {
            return Ok(None);
        };
        Ok(Database::open(place, false)?.map(Self::over))
    }

    fn over(database: Database) -> Self {
        Self {
            shared: Arc::new(Shared {
                database: Arc::new(database),
                packs: PackCache::new(),
            }),
        }
    }

    /// The directory of the store, absolute.
    pub fn root(&self) -> &Path {
        &self.shared.database.place.root
    }

    // --- layers

    /// What is known of a layer; `None` if it is not here.
    pub fn layer(&self, diff_id: &Digest) -> Result<Option<LayerInfo>> {
        self.shared
            .database
            .read(|conn| Ok(layers::find(conn, diff_id)?.map(|(_, info)| info)))
    }

    /// All layers, oldest first.
    pub fn layers(&self) -> Result<Vec<LayerInfo>> {
        self.shared.database.read(|conn| {
            Ok(layers::all(conn)?
                .into_iter()
                .map(|(_, info)| info)
                .collect())
        })
    }

    /// Whether a layer of the store needs bytes that are damaged. Written again by [`Self::layer_writer`], they are put right.
    /// It is looked into only if a read or a check has found damage before.
    pub fn needs_healing(&self, diff_id: &Digest) -> Result<bool> {
        damage::harms(&self.shared.database, diff_id)
    }

    /// Starts a new layer. Dropping the writer without `finish` leaves at most unreachable chunks.
    ///
    /// The finished layer is kept for as long as this process lives, or until an image takes it.
    pub fn layer_writer(&self) -> Result<LayerWriter> {
        let database = &self.shared.database;
        LayerWriter::new(database).map_err(|error| database.explain(error))
    }

    /// Opens a layer's tree for reading. [`Error::NotFound`] if it is not there.
    pub fn open_layer(&self, diff_id: &Digest) -> Result<LayerReader> {
        LayerReader::open(&self.shared, diff_id)
    }

    /// Writes the layer's tar, bit for bit, and proves it: fails with [`Error::Corrupt`] if it does not hash to
    /// `diff_id`. Gives its length.
    pub fn write_layer_tar(&self, diff_id: &Digest, out: &mut dyn Write) -> Result<u64> {
        export::write_layer_tar(&self.shared, diff_id, out)
    }

    // --- compressed blobs

    /// Starts keeping the compressed blob of a layer. Its layer need not be there before the end.
    pub fn blob_writer(&self) -> Result<BlobWriter> {
        BlobWriter::new(&self.shared.database)
    }

    /// What is known of a compressed blob; `None` if it is not here.
    pub fn blob(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        self.shared.database.read(|conn| blobs::info(conn, digest))
    }

    /// The parts of a compressed blob. [`Error::NotFound`] if it is not there.
    pub fn blob_parts(&self, digest: &Digest) -> Result<BlobParts> {
        BlobParts::open(&self.shared, digest)
    }

    /// Bytes that compressed blobs take.
    pub fn blob_bytes(&self) -> Result<u64> {
        self.shared.database.read(blobs::stored_bytes)
    }

    /// Compressed blobs that are damaged, and what is wrong with each; with `parts`, their bytes are read and hashed.
    pub fn damaged_blobs(&self, parts: bool) -> Result<Vec<(Digest, String)>> {
        self.shared.database.read(|conn| blobs::verify(conn, parts))
    }

    /// Removes a compressed blob, not its layer. `false`: there was no such blob.
    pub fn discard_blob(&self, digest: &Digest) -> Result<bool> {
        self.shared.database.write(|tx| blobs::discard(tx, digest))
    }

    // --- documents: manifests, configs, indexes, verbatim by digest

    /// A manifest or config as it came, proven against its digest.
    pub fn document(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        self.shared
            .database
            .read(|conn| images::document(conn, digest))
    }

    // --- images and names

    /// Records an image (documents, layer list, names) in one transaction. Every layer must be present
    /// ([`Error::NotFound`] otherwise). An image that is there already only gets the names.
    pub fn put_image(&self, image: &NewImage<'_>) -> Result<()> {
        self.put_image_from(image, &Origin::default())
    }

    /// Like [`Self::put_image`], with what is known of where the image came from.
    pub fn put_image_from(&self, image: &NewImage<'_>, origin: &Origin<'_>) -> Result<()> {
        self.put_images_from(&[(image, origin)])
    }

    /// Like [`Self::put_image_from`] for several images: all of them, or none.
    pub fn put_images_from(&self, images: &[(&NewImage<'_>, &Origin<'_>)]) -> Result<()> {
        self.shared.database.write(|tx| {
            images
                .iter()
                .try_for_each(|(image, origin)| images::put(tx, image, origin))
        })
    }

    /// How many layers this process has published that no image has yet.
    pub fn layers_without_image(&self) -> Result<u64> {
        self.shared.database.read(leases::fresh_without_image)
    }

    /// One image by the digest of its manifest.
    pub fn image(&self, manifest: &Digest) -> Result<Option<ImageRecord>> {
        self.shared
            .database
            .read(|conn| images::get(conn, manifest))
    }

    /// All images, newest first, each with its names (possibly none). [`Error::Corrupt`] if one of them is damaged.
    pub fn images(&self) -> Result<Vec<ImageRecord>> {
        match self.list_images()? {
            (images, damaged) if damaged.is_empty() => Ok(images),
            (_, damaged) => Err(Error::Corrupt(format!(
                "image {}: {}",
                damaged[0].called(),
                damaged[0].why
            ))),
        }
    }

    /// All images that are sound, newest first, and those that are not.
    pub fn list_images(&self) -> Result<(Vec<ImageRecord>, Vec<DamagedImage>)> {
        self.shared.database.read(images::all)
    }

    /// What a name points at.
    pub fn resolve_name(&self, name: &str) -> Result<Option<Digest>> {
        self.shared
            .database
            .read(|conn| images::resolve(conn, name))
    }

    /// Digests of the indexes a name came with, the outermost first; the documents are there. Empty for a name that
    /// stands for its image alone.
    pub fn name_indexes(&self, name: &str) -> Result<Vec<Digest>> {
        self.shared
            .database
            .read(|conn| images::indexes(conn, name))
    }

    /// Points `name` at an image; gives back what it pointed at before.
    pub fn set_name(&self, name: &str, manifest: &Digest) -> Result<Option<Digest>> {
        self.shared
            .database
            .write(|tx| images::set_name(tx, name, manifest))
    }

    /// Removes a name, not the image. `false`: there was no such name.
    pub fn remove_name(&self, name: &str) -> Result<bool> {
        self.shared
            .database
            .write(|tx| images::remove_name(tx, name))
    }

    /// Removes an image and all its names; layers no other image or lease needs go too, their space is reclaimed by
    /// [`Self::gc`]. A layer under lease stays until the lease has ended and `gc` comes by.
    pub fn remove_image(&self, manifest: &Digest) -> Result<()> {
        self.shared
            .database
            .write(|tx| images::remove(tx, manifest))
    }

    // --- leases

    /// Keeps layers while the calling process lives (pid + start time; leases of dead processes lapse) or until the
    /// lease is dropped. [`Error::NotFound`] if a layer is not there.
    pub fn lease(&self, layers: &[Digest], purpose: &str) -> Result<Lease> {
        Lease::take(&self.shared.database, layers, purpose)
    }

    // --- soundness

    /// Checks the whole store, and repairs it if asked to; `notify` hears how it gets on. What is found is no error, but
    /// in the report. [`Error::Busy`] if a repair would take something from an import or a living lease; then, and after
    /// any other error, nothing was changed.
    pub fn fsck(&self, options: &FsckOptions<'_>, notify: &dyn Fn(Progress)) -> Result<FsckReport> {
        fsck::run(&self.shared, options, notify)
    }

    // --- space

    /// How much the store holds.
    pub fn usage(&self) -> Result<Usage> {
        usage::measure(&self.shared.database)
    }

    /// What each image that is not damaged has of that, newest first.
    pub fn image_usage(&self) -> Result<Vec<ImageUsage>> {
        usage::of_images(&self.shared.database)
    }

    /// What [`Self::gc`] would do (its freed bytes are an estimate), and the imports that would keep it from removing
    /// chunks, if any.
    pub fn gc_preview(&self) -> Result<(GcReport, Vec<String>)> {
        usage::preview(&self.shared.database)
    }

    /// Removes what nothing needs and gives the space back to the file system, in short transactions that let others
    /// work. [`Error::Busy`] if an import kept it from removing unused data; all else was done.
    pub fn gc(&self) -> Result<GcReport> {
        self.gc_telling(&|_| {})
    }

    /// As [`Self::gc`]; `notify` hears how it gets on.
    pub fn gc_telling(&self, notify: &dyn Fn(Progress)) -> Result<GcReport> {
        let database = &self.shared.database;
        gc::collect(database, notify).map_err(|error| database.explain(error))
    }
}
