//! The content-addressed store: chunks, contents, layers, images, names, leases.
//!
//! SKELETON: signatures other rooms build on.

mod digest;

pub use digest::{Digest, ParseDigestError};

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::meta::{FileKind, Timestamp};

/// Errors of the store. `exit_code()` maps them (1 failure, 3 conflict, 4 not found, 5 integrity, 75 busy).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("database: {0}")]
    Sqlite(String),
    #[error("store is damaged: {0}")]
    Corrupt(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{path:?}: {reason}")]
    InvalidEntry { path: OsString, reason: String },
}
pub type Result<T> = std::result::Result<T, Error>;

/// One open store; cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Store {}

impl Store {
    /// Opens the store below `root`, creating directory (0700) and database if missing.
    pub fn open(root: &Path) -> Result<Self> {
        let _ = root;
        unimplemented!()
    }
    /// Opens an existing store; `None` if there is none. For verbs that only read.
    pub fn open_existing(root: &Path) -> Result<Option<Self>> {
        let _ = root;
        unimplemented!()
    }

    // --- layers
    pub fn layer(&self, diff_id: &Digest) -> Result<Option<LayerInfo>> {
        let _ = diff_id;
        unimplemented!()
    }
    pub fn layers(&self) -> Result<Vec<LayerInfo>> {
        unimplemented!()
    }
    /// Starts a new layer. Dropping the writer without `finish` leaves at most unreachable chunks.
    pub fn layer_writer(&self) -> Result<LayerWriter> {
        unimplemented!()
    }
    /// Opens a layer's tree for reading. `Error::NotFound` if it is not there.
    pub fn open_layer(&self, diff_id: &Digest) -> Result<LayerReader> {
        let _ = diff_id;
        unimplemented!()
    }
    /// Writes the layer's tar, bit for bit, and proves it: fails with `Corrupt` if it does not hash to `diff_id`.
    pub fn write_layer_tar(&self, diff_id: &Digest, out: &mut dyn Write) -> Result<u64> {
        let _ = (diff_id, out);
        unimplemented!()
    }

    // --- documents: manifests, configs, indexes, verbatim by digest
    pub fn document(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let _ = digest;
        unimplemented!()
    }

    // --- images and names
    /// Records an image (documents, layer list, names) in one transaction. Every layer must be present.
    pub fn put_image(&self, image: &NewImage<'_>) -> Result<()> {
        let _ = image;
        unimplemented!()
    }
    pub fn image(&self, manifest: &Digest) -> Result<Option<ImageRecord>> {
        let _ = manifest;
        unimplemented!()
    }
    /// All images, newest first, each with its names (possibly none).
    pub fn images(&self) -> Result<Vec<ImageRecord>> {
        unimplemented!()
    }
    pub fn resolve_name(&self, name: &str) -> Result<Option<Digest>> {
        let _ = name;
        unimplemented!()
    }
    /// Points `name` at an image; gives back what it pointed at before.
    pub fn set_name(&self, name: &str, manifest: &Digest) -> Result<Option<Digest>> {
        let _ = (name, manifest);
        unimplemented!()
    }
    pub fn remove_name(&self, name: &str) -> Result<bool> {
        let _ = name;
        unimplemented!()
    }
    /// Removes an image and all its names; layers no other image or lease needs go too, their space is reclaimed by `gc`.
    pub fn remove_image(&self, manifest: &Digest) -> Result<()> {
        let _ = manifest;
        unimplemented!()
    }

    // --- leases
    /// Keeps layers while the calling process lives (pid + start time; leases of dead processes lapse) or until dropped.
    pub fn lease(&self, layers: &[Digest], purpose: &str) -> Result<Lease> {
        let _ = (layers, purpose);
        unimplemented!()
    }

    pub fn usage(&self) -> Result<Usage> {
        unimplemented!()
    }
    pub fn gc(&self) -> Result<GcReport> {
        unimplemented!()
    }
}

pub struct LayerInfo {
    pub diff_id: Digest,
    /// Size of the uncompressed tar, bytes.
    pub tar_size: u64,
    /// Sum of the sizes of its regular files (each inode once), bytes.
    pub files_size: u64,
    /// Number of directory entries.
    pub entries: u64,
    pub created: Timestamp,
}

pub struct NewImage<'a> {
    pub manifest: &'a [u8],
    pub manifest_media_type: &'a str,
    pub config: &'a [u8],
    pub layers: &'a [Digest],
    pub names: &'a [String],
}

pub struct ImageRecord {
    pub manifest: Digest,
    pub manifest_media_type: String,
    pub config: Digest,
    /// Diff IDs, bottom first.
    pub layers: Vec<Digest>,
    pub names: Vec<String>,
    /// When it came into this store.
    pub imported: Timestamp,
    /// Sum of `files_size` of its layers.
    pub size: u64,
}

/// Unregisters the lease when dropped.
pub struct Lease {}

pub struct Usage {
    pub images: u64,
    pub layers: u64,
    /// Sum over layers of their tar sizes.
    pub raw_bytes: u64,
    /// Sum of distinct chunk bytes.
    pub unique_bytes: u64,
    /// Bytes of chunk data as stored (compressed).
    pub stored_bytes: u64,
    /// Size of the database files on disk.
    pub disk_bytes: u64,
    /// What gc would free (estimate, stored bytes).
    pub reclaimable_bytes: u64,
}

pub struct GcReport {
    pub layers: u64,
    pub chunks: u64,
    pub freed_bytes: u64,
}

/// Attributes of a new tree node (no ctime/atime: a layer has none).
#[derive(Clone, Debug)]
pub struct NodeMeta {
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

pub enum NewNode<'a> {
    Regular(ContentToken),
    Directory,
    Symlink(&'a OsStr),
    /// Char, block, fifo or socket; `rdev` as `libc::makedev`.
    Special {
        kind: FileKind,
        rdev: u64,
    },
}

/// A content written to the writer that gave it; meaningless elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentToken(u64);

/// Takes one layer in: the tar's bytes in stream order (`literal`, `data`), and the tree those bytes describe (`add…`).
/// Paths are relative, `/`-separated, normalised by the caller (no empty, `.` or `..` component); "" is the root.
/// Missing parents are made as 0755 root:root directories with mtime 0. A later entry replaces an earlier one
/// (directory over directory: only attributes change); a non-directory parent is replaced by a directory.
pub struct LayerWriter {}

impl LayerWriter {
    /// Tar bytes that are no file content: headers, padding, end-of-archive, trailing bytes.
    pub fn literal(&mut self, bytes: &[u8]) -> Result<()> {
        let _ = bytes;
        unimplemented!()
    }
    /// Begins a file's content. `size` is a hint (0 if unknown).
    pub fn begin_content(&mut self, size: u64) -> Result<()> {
        let _ = size;
        unimplemented!()
    }
    /// File bytes as they stand in the tar: appended to the content, and to the recipe as a reference.
    pub fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let _ = bytes;
        unimplemented!()
    }
    /// A hole in the content (sparse formats); nothing in the tar.
    pub fn hole(&mut self, len: u64) -> Result<()> {
        let _ = len;
        unimplemented!()
    }
    pub fn end_content(&mut self) -> Result<ContentToken> {
        unimplemented!()
    }

    pub fn add(&mut self, path: &OsStr, meta: &NodeMeta, node: NewNode<'_>) -> Result<()> {
        let _ = (path, meta, node);
        unimplemented!()
    }
    /// A hard link to an earlier (or later, resolved at `finish`) entry of this layer that is no directory.
    /// `Ok(false)` if `target` is not (yet) in this layer.
    pub fn add_hard_link(&mut self, path: &OsStr, target: &OsStr) -> Result<bool> {
        let _ = (path, target);
        unimplemented!()
    }
    /// Copies a non-directory node of another stored layer: what a hard link into a lower layer means.
    pub fn add_copy(&mut self, path: &OsStr, from: &LayerReader, inode: u64) -> Result<()> {
        let _ = (path, from, inode);
        unimplemented!()
    }
    /// The name is absent from here down. Order within the layer does not matter: an entry of the same name in the
    /// same layer stays visible (and, a directory, becomes opaque).
    pub fn add_whiteout(&mut self, path: &OsStr) -> Result<()> {
        let _ = path;
        unimplemented!()
    }
    /// The directory hides what lies below it in lower layers.
    pub fn add_opaque(&mut self, path: &OsStr) -> Result<()> {
        let _ = path;
        unimplemented!()
    }

    /// Publishes the layer under `diff_id` (SHA-256 of all bytes given by `literal` and `data`, hashed by the caller),
    /// in one transaction. If the layer is already there, the new one is dropped and the old one's info returned.
    pub fn finish(self, diff_id: &Digest) -> Result<LayerInfo> {
        let _ = diff_id;
        unimplemented!()
    }
}

/// One layer's tree. Usable from many threads at once.
#[derive(Clone)]
pub struct LayerReader {}

/// Inode number of every layer's root.
pub const ROOT_INODE: u64 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent {
    pub name: OsString,
    /// What the name stands for; `None` is a whiteout.
    pub target: Option<(u64, FileKind)>,
}

#[derive(Clone, Debug)]
pub struct Inode {
    pub ino: u64,
    pub kind: FileKind,
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub size: u64,
    /// Allocated bytes a directory copy would take: size less its holes.
    pub data_size: u64,
    pub nlink: u32,
    pub rdev: u64,
    pub opaque: bool,
    pub has_xattrs: bool,
    /// Regular files: what to give to `open_content`.
    pub content: ContentRef,
}

/// Names a content inside the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentRef(i64);

impl LayerReader {
    pub fn info(&self) -> &LayerInfo {
        unimplemented!()
    }
    pub fn lookup(&self, dir: u64, name: &OsStr) -> Result<Option<Dirent>> {
        let _ = (dir, name);
        unimplemented!()
    }
    /// All entries, in name (byte) order.
    pub fn read_dir(&self, dir: u64) -> Result<Vec<Dirent>> {
        let _ = dir;
        unimplemented!()
    }
    pub fn inode(&self, ino: u64) -> Result<Inode> {
        let _ = ino;
        unimplemented!()
    }
    pub fn symlink_target(&self, ino: u64) -> Result<OsString> {
        let _ = ino;
        unimplemented!()
    }
    pub fn xattrs(&self, ino: u64) -> Result<Vec<(OsString, Vec<u8>)>> {
        let _ = ino;
        unimplemented!()
    }
    pub fn open_content(&self, content: ContentRef) -> Result<ContentReader> {
        let _ = content;
        unimplemented!()
    }
}

/// Random access to one content. Verified: a chunk that does not hash to its name is `Error::Corrupt`.
pub struct ContentReader {}

impl ContentReader {
    pub fn size(&self) -> u64 {
        unimplemented!()
    }
    /// Fills `buf` from `offset`; short only at the end of the content. Holes read as zeros.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let _ = (offset, buf);
        unimplemented!()
    }
    /// First data byte at or after `offset` (`None`: only hole up to the end).
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        let _ = offset;
        unimplemented!()
    }
    /// First hole at or after `offset`; the end of the content counts as one.
    pub fn next_hole(&self, offset: u64) -> Result<u64> {
        let _ = offset;
        unimplemented!()
    }
}
