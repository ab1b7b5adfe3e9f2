//! Taking a layer in: the tar's bytes in stream order, and the tree they describe.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use rusqlite::OptionalExtension;

use super::checkpoint;
use super::chunker::{self, Chunker};
use super::damage;
use super::db::{Database, Durability};
use super::extents::{Extent, ListBuilder, MAX_SIZE};
use super::fsck::Verifier;
use super::leases::Lease;
use super::pack::{self, RawPack};
use super::pipeline::{self, Pipeline};
use super::recipe::{RecipeBuilder, Segment};
use super::schema::Sequence;
use super::tree::{Row, Tree};
use super::{ContentRef, Digest, Error, LayerInfo, LayerReader, Result, xattrs};
use crate::meta::{FileKind, Timestamp};
use crate::sys::sha256::Sha256;

/// Chunk ids reserved at a time.
const CHUNK_IDS: i64 = 1 << 16;
/// Content ids reserved at a time.
const CONTENT_IDS: i64 = 1 << 10;
/// Chunks of this import remembered by digest, so that most repetitions need no look-up in the database.
const REMEMBERED: usize = 1 << 18;
/// `PATH_MAX` less the NUL: no symlink can be longer on Linux.
const TARGET_MAX: usize = 4095;

/// Attributes of a new tree node (no ctime/atime: a layer has none).
#[derive(Clone, Debug)]
pub struct NodeMeta {
    /// The low 12 bits of `st_mode`; others are ignored.
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// What a new tree node is.
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
pub struct ContentToken {
    content: ContentRef,
    size: u64,
    data_size: u64,
}

/// Takes one layer in: the tar's bytes in stream order (`literal`, `data`), and the tree those bytes describe (`add…`).
///
/// Paths are relative, `/`-separated, normalised by the caller (no empty, `.` or `..` component); "" is the root.
/// Missing parents are made as 0755 root:root directories with mtime 0 and marked [`super::Inode::implicit`]. A later
/// entry replaces an earlier one (directory over directory: only attributes change; directory over anything else: it
/// becomes opaque, for what stood there hid the lower layers); a non-directory parent is replaced by a directory.
///
/// After an error the writer can only be dropped.
pub struct LayerWriter {
    chunks: ChunkSink,
    chunker: Chunker,
    content: Option<ListBuilder>,
    /// Size of the content as announced; 0 if unknown, or once data or a hole came.
    announced: u64,
    tree: Tree,
    recipe: RecipeBuilder,
    segments: i64,
    tar_size: u64,
    content_ids: std::ops::Range<i64>,
    /// Chunks were found bad before.
    heal: bool,
    // Declared last: dropped last, when nothing of the import runs any more.
    lease: Lease,
}

impl LayerWriter {
    pub(super) fn new(database: &Arc<Database>) -> Result<Self> {
        let (lease, (chunk_id, content_id)) = Lease::import(database, |tx| {
            Ok((
                Sequence::Chunk.take(tx, CHUNK_IDS)?,
                Sequence::Content.take(tx, CONTENT_IDS)?,
            ))
        })?;
        let heal = !damage::known(&database.place).is_empty();
        let chunk_ids = chunk_id..chunk_id + CHUNK_IDS;
        let conn = database.writer(Durability::Ordered)?;
        checkpoint::leave_to_checkpointer(&conn)?;
        conn.execute_batch(super::publish::TABLES)?;
        Ok(Self {
            chunks: ChunkSink::new(Arc::clone(database), chunk_ids, heal)?,
            chunker: Chunker::new(),
            content: None,
            announced: 0,
            tree: Tree::new(conn)?,
            recipe: RecipeBuilder::new()?,
            segments: 0,
            tar_size: 0,
            content_ids: content_id..content_id + CONTENT_IDS,
            heal,
            lease,
        })
    }

    /// Tar bytes that are no file content: headers, padding, end-of-archive, trailing bytes.
    pub fn literal(&mut self, bytes: &[u8]) -> Result<()> {
        if self.content.is_some() {
            return Err(Error::Misuse("literal bytes within a content"));
        }
        self.tar_size += bytes.len() as u64;
        self.chunks.tar.update(bytes);
        let (tree, segments) = (&self.tree, &mut self.segments);
        self.recipe
            .literal(bytes, &mut |segment| keep_segment(tree, segments, &segment))
    }

    /// Begins a file's content. `size` is a hint (0 if unknown).
    pub fn begin_content(&mut self, size: u64) -> Result<()> {
        if self.content.is_some() {
            return Err(Error::Misuse("a content within a content"));
        }
        self.content = Some(ListBuilder::new());
        self.announced = size;
        Ok(())
    }

    /// File bytes as they stand in the tar: appended to the content, and to the recipe as a reference.
    pub fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let list = self
            .content
            .as_mut()
            .ok_or(Error::Misuse("data outside a content"))?;
        self.tar_size += bytes.len() as u64;
        let chunks = &mut self.chunks;
        let announced = std::mem::take(&mut self.announced);
        if announced > 0 && bytes.len() as u64 == announced {
            // All of it at once: what the chunker would give, without a copy.
            return chunker::cut_whole(bytes, &mut |chunk| chunks.add(chunk, list));
        }
        self.chunker
            .feed(bytes, &mut |chunk| chunks.add(chunk, list))
    }

    /// A hole in the content (sparse formats); nothing in the tar.
    pub fn hole(&mut self, len: u64) -> Result<()> {
        let list = self
            .content
            .as_mut()
            .ok_or(Error::Misuse("a hole outside a content"))?;
        if len == 0 {
            return Ok(());
        }
        self.announced = 0;
        let chunks = &mut self.chunks;
        self.chunker.finish(&mut |chunk| chunks.add(chunk, list))?;
        list.push(Extent::Hole { len }, None).ok_or_else(too_large)
    }

    /// Ends the content and gives what to put into the tree.
    pub fn end_content(&mut self) -> Result<ContentToken> {
        let mut list = self
            .content
            .take()
            .ok_or(Error::Misuse("the end of a content that was not begun"))?;
        let chunks = &mut self.chunks;
        self.chunker
            .finish(&mut |chunk| chunks.add(chunk, &mut list))?;
        let (size, data_size) = (list.size(), list.data_size());
        let content = if size == 0 {
            ContentRef::EMPTY
        } else if let Some(chunk) = list.single_chunk() {
            ContentRef::chunk(chunk)
        } else {
            self.list_content(list)?
        };
        if data_size > 0 {
            let (tree, segments) = (&self.tree, &mut self.segments);
            self.recipe.content(content, data_size, &mut |segment| {
                keep_segment(tree, segments, &segment)
            })?;
        }
        Ok(ContentToken {
            content,
            size,
            data_size,
        })
    }

    /// Stores a list of chunks, or finds the same one stored already.
    fn list_content(&mut self, list: ListBuilder) -> Result<ContentRef> {
        let list = list.finish();
        let conn = self.tree.connection();
        let here: Option<i64> = conn
            .prepare_cached("SELECT id FROM t_content WHERE digest = ?1")?
            .query_row([list.digest.as_bytes()], |row| row.get(0))
            .optional()?;
        let known = match here {
            Some(id) => Some(id),
            None => self
                .chunks
                .database
                .read(|conn| super::publish::find_content(conn, &list.digest))?,
        };
        if let Some(id) = known {
            return Ok(ContentRef::list(id));
        }
        let id = match self.content_ids.next() {
            Some(id) => id,
            None => {
                let first = self
                    .chunks
                    .database
                    .write_ordered(|tx| Sequence::Content.take(tx, CONTENT_IDS))?;
                self.content_ids = first + 1..first + CONTENT_IDS;
                first
            }
        };
        conn.prepare_cached(
            "INSERT INTO t_content (id, digest, size, data_size) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute((
            id,
            list.digest.as_bytes(),
            list.size as i64,
            list.data_size as i64,
        ))?;
        let mut insert =
            conn.prepare_cached("INSERT INTO t_extent (content, start, list) VALUES (?1, ?2, ?3)")?;
        for (start, extents) in &list.lists {
            insert.execute((id, *start as i64, extents))?;
        }
        Ok(ContentRef::list(id))
    }

    /// Puts a node at `path`.
    pub fn add(&mut self, path: &OsStr, meta: &NodeMeta, node: NewNode<'_>) -> Result<()> {
        if meta.mtime.nanos >= 1_000_000_000 {
            return Err(Error::entry(
                path,
                "a time with more than a second of nanoseconds",
            ));
        }
        let mut row = Row {
            kind: FileKind::Directory,
            perm: meta.perm,
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            size: 0,
            data_size: 0,
            rdev: 0,
            content: 0,
            target: None,
            xattrs: xattrs::encode(path, &meta.xattrs)?,
        };
        match node {
            NewNode::Directory => {}
            NewNode::Regular(token) => {
                row.kind = FileKind::Regular;
                (row.size, row.data_size, row.content) =
                    (token.size, token.data_size, token.content.0);
            }
            NewNode::Symlink(target) => {
                let target = target.as_bytes();
                if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) {
                    return Err(Error::entry(
                        path,
                        "the target of a symlink is empty, too long or holds a NUL",
                    ));
                }
                row.kind = FileKind::Symlink;
                (row.size, row.data_size) = (target.len() as u64, target.len() as u64);
                row.target = Some(target.to_vec());
            }
            NewNode::Special { kind, rdev } => {
                if !(kind.is_device() || matches!(kind, FileKind::Fifo | FileKind::Socket)) {
                    return Err(Error::Misuse(
                        "a special file must be a device, a fifo or a socket",
                    ));
                }
                row.kind = kind;
                row.rdev = if kind.is_device() { rdev } else { 0 };
            }
        }
        self.tree.add(path, &row)
    }

    /// A hard link to another entry of this layer that is no directory.
    ///
    /// `Ok(false)`: `target` is not in this layer yet. The link is kept and made at `finish` (which fails if the target
    /// never came), unless something else is put at `path` before: so a caller who finds the target in a lower layer
    /// goes on with [`Self::add_copy`], and one who does not need do nothing.
    pub fn add_hard_link(&mut self, path: &OsStr, target: &OsStr) -> Result<bool> {
        self.tree.add_hard_link(path, target)
    }

    /// Copies a non-directory node of another stored layer: what a hard link into a lower layer means.
    pub fn add_copy(&mut self, path: &OsStr, from: &LayerReader, inode: u64) -> Result<()> {
        let node = from.inode(inode)?;
        if node.kind.is_dir() {
            return Err(Error::entry(
                path,
                "a hard link to a directory of a lower layer",
            ));
        }
        let target = match node.kind {
            FileKind::Symlink => Some(from.symlink_target(inode)?.into_vec()),
            _ => None,
        };
        let row = Row {
            kind: node.kind,
            perm: node.perm,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            size: node.size,
            data_size: node.data_size,
            rdev: node.rdev,
            content: node.content.0,
            target,
            xattrs: xattrs::encode(path, &from.xattrs(inode)?)?,
        };
        self.tree.add(path, &row)
    }

    /// The name is absent from here down. Order within the layer does not matter: an entry of the same name in the
    /// same layer stays visible (and, a directory, becomes opaque).
    pub fn add_whiteout(&mut self, path: &OsStr) -> Result<()> {
        self.tree.add_whiteout(path)
    }

    /// The directory hides what lies below it in lower layers. Made if it is not there.
    pub fn add_opaque(&mut self, path: &OsStr) -> Result<()> {
        self.tree.add_opaque(path)
    }

    /// SHA-256 of all bytes given by `literal` and `data`: the layer's diff ID, once all of it was given.
    pub fn diff_id(&self) -> Result<Digest> {
        if self.content.is_some() {
            return Err(Error::Misuse("a diff ID asked for within a content"));
        }
        Ok(Digest::from_bytes(self.chunks.tar.clone().finish()))
    }

    /// Publishes the layer under `diff_id` (which the caller has compared with [`Self::diff_id`]), in one transaction, on
    /// the disk when this returns. If the layer is already there, the new one is dropped and the old one's info returned.
    pub fn finish(self, diff_id: &Digest) -> Result<LayerInfo> {
        self.publish(diff_id, Durability::Durable)
    }

    /// The same without waiting for the disk: a power cut may take the layer, but never with a later change left. For a
    /// layer that is worth nothing without the image that is recorded after it.
    pub fn finish_in_order(self, diff_id: &Digest) -> Result<LayerInfo> {
        self.publish(diff_id, Durability::Ordered)
    }

    fn publish(mut self, diff_id: &Digest, durability: Durability) -> Result<LayerInfo> {
        if self.content.is_some() {
            return Err(Error::Misuse("the end of a layer within a content"));
        }
        let database = Arc::clone(&self.chunks.database);
        let mut run = || {
            self.tree.resolve_links()?;
            self.tree.count_links()?;
            if let Some(segment) = self.recipe.finish()? {
                keep_segment(&self.tree, &mut self.segments, &segment)?;
            }
            let aliases = self.chunks.finish()?;
            let _turn = database.write_turn();
            super::publish::publish(
                &database.place,
                self.tree.connection(),
                durability,
                diff_id,
                self.tar_size,
                &aliases,
            )
        };
        let info = run().map_err(|error| database.explain(error))?;
        if self.heal {
            damage::settle(&database)?;
        }
        drop(self.lease);
        Ok(info)
    }
}

fn keep_segment(tree: &Tree, segments: &mut i64, segment: &Segment) -> Result<()> {
    tree.connection()
        .prepare_cached(
            "INSERT INTO t_recipe (seq, ops, raw_len, literals) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute((
            *segments,
            &segment.ops,
            segment.raw_len as i64,
            &segment.literals,
        ))?;
    *segments += 1;
    Ok(())
}

fn too_large() -> Error {
    Error::entry(
        OsStr::new("content"),
        format!("larger than {MAX_SIZE} bytes"),
    )
}

/// Turns chunks into ids, storing each once.
struct ChunkSink {
    /// Over the whole tar. Here, because a chunk's bytes are hashed into it and into the chunk's digest in one go.
    tar: Sha256,
    database: Arc<Database>,
    pipeline: Option<Pipeline>,
    pack: RawPack,
    ids: std::ops::Range<i64>,
    remembered: HashMap<Digest, i64>,
    /// Looks at stored chunks before they are used again: some are known to be bad.
    verifier: Option<Verifier>,
}

impl ChunkSink {
    fn new(database: Arc<Database>, ids: std::ops::Range<i64>, heal: bool) -> Result<Self> {
        let pipeline = Some(Pipeline::start(Arc::clone(&database), heal)?);
        Ok(Self {
            tar: Sha256::new(),
            database,
            pipeline,
            pack: RawPack::default(),
            ids,
            remembered: HashMap::new(),
            verifier: heal.then(Verifier::default),
        })
    }

    fn add(&mut self, bytes: &[u8], list: &mut ListBuilder) -> Result<()> {
        let mut hash = Sha256::new();
        self.tar.update_both(&mut hash, bytes);
        let digest = Digest::from_bytes(hash.finish());
        let chunk = self.id_of(digest, bytes)?;
        list.push(
            Extent::Data {
                chunk,
                len: bytes.len() as u32,
            },
            Some(&digest),
        )
        .ok_or_else(too_large)
    }

    fn id_of(&mut self, digest: Digest, bytes: &[u8]) -> Result<i64> {
        if let Some(id) = self.remembered.get(&digest) {
            return Ok(*id);
        }
        if self.remembered.len() >= REMEMBERED {
            // Forgetting is safe only for what the database can be asked about.
            self.send()?;
            self.pipeline()?.flush()?;
            self.remembered.clear();
        }
        let verifier = &mut self.verifier;
        let stored = self.database.read(|conn| {
            let stored = pipeline::find_chunk(conn, digest.as_bytes())?;
            match (stored, verifier) {
                (Some(id), Some(verifier)) => {
                    Ok(damage::is_sound(verifier, conn, id)?.then_some(id))
                }
                _ => Ok(stored),
            }
        })?;
        let id = match stored {
            Some(id) => id,
            None => {
                let id = self.next_id()?;
                if bytes.len() >= pack::ALONE {
                    let mut alone = self.pipeline()?.new_pack();
                    alone.push(id, digest, bytes);
                    self.pipeline()?.send(alone)?;
                } else {
                    self.pack.push(id, digest, bytes);
                    if self.pack.is_full() {
                        self.send()?;
                    }
                }
                id
            }
        };
        self.remembered.insert(digest, id);
        Ok(id)
    }

    fn next_id(&mut self) -> Result<i64> {
        if let Some(id) = self.ids.next() {
            return Ok(id);
        }
        let first = self
            .database
            .write_ordered(|tx| Sequence::Chunk.take(tx, CHUNK_IDS))?;
        self.ids = first + 1..first + CHUNK_IDS;
        Ok(first)
    }

    fn send(&mut self) -> Result<()> {
        if self.pack.chunks.is_empty() {
            return Ok(());
        }
        let next = self.pipeline()?.new_pack();
        let pack = std::mem::replace(&mut self.pack, next);
        self.pipeline()?.send(pack)
    }

    fn pipeline(&mut self) -> Result<&mut Pipeline> {
        self.pipeline
            .as_mut()
            .ok_or(Error::Misuse("an import that has ended was continued"))
    }

    fn finish(&mut self) -> Result<pipeline::Aliases> {
        self.send()?;
        self.pipeline
            .take()
            .ok_or(Error::Misuse("an import that has ended was continued"))?
            .finish()
    }
}
