//! Looking into images without mounting them: paths, listings, file contents, and what two images differ in.
//!
//! For: `ovl tree`, `ovl cat`, `ovl diff`, and anything else that reads an image's merged tree in its own process. The
//! merging is the overlay engine's, asked without an upper: what is seen here is what a mount shows.
//! Owns: how a path is walked (symlinks lead from the image's root, never to the host), the order of listings, what counts
//! as a difference.
//! Never: writes, reads a path of the host, trusts a stored tree to be one (a directory met twice ends the walk).
//!
//! Invariants: the layers looked at are leased while a [`View`] lives, so `gc` leaves them alone; memory is bounded by one
//! directory per level of depth, and by one number per directory, whatever the size of the image.

mod compare;
mod find;
mod list;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::sync::Arc;

use rustix::io::Errno;

use crate::layer::{Layer, StoredLayer};
use crate::meta::{Attr, FileKind};
use crate::overlay::{NodeId, OpenError, Options, Overlay, Stack};
use crate::store::{self, Digest, LayerReader, Lease, Store};

pub use compare::{Aspect, Difference, aspects, compare};
pub use list::Listed;

pub type Result<T> = std::result::Result<T, Error>;

/// Why an image cannot be looked into. Paths are from the image's root, without a leading slash.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no /{} in the image", .path.display())]
    NotFound { path: OsString },
    #[error("/{} is no directory", .path.display())]
    NotDirectory { path: OsString },
    #[error("/{} is {}, not a file", .path.display(), a(.kind))]
    NotRegular { path: OsString, kind: FileKind },
    #[error("/{}: more than {} symlinks on the way", .path.display(), find::MAX_LINKS)]
    TooManyLinks { path: OsString },
    #[error("/{}: a name of more than 255 bytes, or with a NUL byte in it", .path.display())]
    BadName { path: OsString },
    #[error("the image has no layers, so it holds no files")]
    NoLayers,
    /// The tree is none: only a damaged or crafted store holds this.
    #[error("/{}: the directory is in the tree twice; the store is damaged", .path.display())]
    Loop { path: OsString },
    #[error("reading /{}: {source}", .path.display())]
    Read { path: OsString, source: Errno },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("writing the output: {0}")]
    Output(std::io::Error),
}

impl Error {
    /// The process exit code: 1 failure, 2 usage, 4 not found, 5 integrity.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 4,
            Self::NotDirectory { .. }
            | Self::NotRegular { .. }
            | Self::TooManyLinks { .. }
            | Self::BadName { .. } => 2,
            // Stored layers answer EIO for rows and chunks that are not what they must be.
            Self::Loop { .. } | Self::Read { .. } => 5,
            Self::Store(error) => error.exit_code(),
            Self::NoLayers | Self::Open(_) | Self::Output(_) => 1,
        }
    }
}

fn a(kind: &FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "a regular file",
        FileKind::Directory => "a directory",
        FileKind::Symlink => "a symlink",
        FileKind::CharDevice => "a character device",
        FileKind::BlockDevice => "a block device",
        FileKind::Fifo => "a FIFO",
        FileKind::Socket => "a socket",
    }
}

/// The merged tree of some layers of a store.
pub struct View {
    engine: Overlay,
    /// Topmost first, as in the engine's stack.
    layers: Vec<LayerReader>,
    _lease: Lease,
}

impl View {
    /// Opens the tree of `layers`, bottom first as images list them. `purpose` names the lease.
    pub fn open(store: &Store, layers: &[Digest], purpose: &str) -> Result<Self> {
        if layers.is_empty() {
            return Err(Error::NoLayers);
        }
        let lease = store.lease(layers, purpose)?;
        let layers = layers.iter().rev().map(|id| store.open_layer(id));
        let layers: Vec<LayerReader> = layers.collect::<store::Result<_>>()?;
        let lowers = layers
            .iter()
            .map(|layer| Arc::new(StoredLayer::new(layer.clone())) as Arc<dyn Layer>);
        let stack = Stack {
            lowers: lowers.collect(),
            upper: None,
        };
        Ok(Self {
            engine: Overlay::new(stack, &Options::default())?,
            layers,
            _lease: lease,
        })
    }

    /// The engine that merges the layers.
    pub fn engine(&self) -> &Overlay {
        &self.engine
    }

    /// The object at `path`, symlinks followed on the way and at the end. They lead from the image's root: `/` is that, and
    /// `..` of it is itself.
    pub fn find(&self, path: &OsStr) -> Result<Node<'_>> {
        find::find(&self.engine, path, true)
    }

    /// The same, but a symlink at the end is what is found.
    pub fn find_itself(&self, path: &OsStr) -> Result<Node<'_>> {
        find::find(&self.engine, path, false)
    }

    /// Tells of everything below a directory, to `depth` levels: parents before children, siblings in byte order of their
    /// names. Anything else but a directory has nothing below it. `sink` may fail to end the walk.
    pub fn list<E: From<Error>>(
        &self,
        top: &Node<'_>,
        depth: usize,
        sink: &mut dyn FnMut(&Listed<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        list::list(&self.engine, top, depth, sink)
    }

    /// Writes the bytes of a regular file, each chunk proven first.
    pub fn copy(&self, file: &Node<'_>, out: &mut dyn Write) -> Result<()> {
        let path = || file.path.clone();
        if file.attr.kind != FileKind::Regular {
            return Err(Error::NotRegular {
                path: path(),
                kind: file.attr.kind,
            });
        }
        let sources = self.engine.sources(file.id).map_err(reading(&file.path))?;
        let source = sources.first().ok_or(Error::Read {
            path: path(),
            source: Errno::STALE,
        })?;
        let layer = &self.layers[source.layer];
        let content = layer.open_content(layer.inode(source.key.ino)?.content)?;
        let mut buffer = vec![0; 256 << 10];
        let mut at = 0;
        loop {
            let got = content.read_at(at, &mut buffer)?;
            if got == 0 {
                return Ok(());
            }
            out.write_all(&buffer[..got]).map_err(Error::Output)?;
            at += got as u64;
        }
    }
}

/// An object of a merged tree, held until dropped.
pub struct Node<'a> {
    engine: &'a Overlay,
    pub id: NodeId,
    pub attr: Attr,
    /// From the root, without a leading slash, symlinks resolved.
    pub path: OsString,
}

impl<'a> Node<'a> {
    fn root(engine: &'a Overlay) -> Result<Self> {
        let attr = engine
            .getattr(NodeId::ROOT)
            .map_err(reading(OsStr::new("")))?;
        Ok(Self {
            engine,
            id: NodeId::ROOT,
            attr,
            path: OsString::new(),
        })
    }

    /// One name of this directory.
    fn child(&self, name: &OsStr) -> Result<Option<Self>> {
        let path = join(&self.path, name);
        let found = self.engine.lookup(self.id, name).map_err(reading(&path))?;
        Ok(found.map(|entry| Self {
            engine: self.engine,
            id: entry.node,
            attr: entry.attr,
            path,
        }))
    }

    /// Names of this directory, in byte order.
    fn names(&self) -> Result<Vec<OsString>> {
        let mut names = Vec::new();
        let read = self.engine.read_dir(self.id, 0, false, &mut |item| {
            if item.name != "." && item.name != ".." {
                names.push(item.name.to_owned());
            }
            true
        });
        read.map_err(reading(&self.path))?;
        names.sort_unstable();
        Ok(names)
    }

    /// Where this symlink points.
    pub fn target(&self) -> Result<OsString> {
        self.engine.readlink(self.id).map_err(reading(&self.path))
    }

    /// Extended attributes, sorted by name.
    pub fn xattrs(&self) -> Result<Vec<(OsString, Vec<u8>)>> {
        use std::os::unix::ffi::OsStrExt;
        let list = self
            .engine
            .listxattr(self.id)
            .map_err(reading(&self.path))?;
        let names = list
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty());
        let mut all = Vec::new();
        for name in names.map(OsStr::from_bytes) {
            let value = self.engine.getxattr(self.id, name);
            all.push((name.to_owned(), value.map_err(reading(&self.path))?));
        }
        all.sort_unstable();
        Ok(all)
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        self.engine.forget(self.id, 1);
    }
}

/// Names the object that an errno is about.
fn reading(path: &OsStr) -> impl Fn(Errno) -> Error {
    let path = path.to_owned();
    move |source| Error::Read {
        path: path.clone(),
        source,
    }
}

fn join(dir: &OsStr, name: &OsStr) -> OsString {
    let mut path = OsString::with_capacity(dir.len() + 1 + name.len());
    if !dir.is_empty() {
        path.push(dir);
        path.push("/");
    }
    path.push(name);
    path
}
