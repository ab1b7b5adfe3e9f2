//! What the tests of the daemon under fire share: a layer that misbehaves on demand, and a kernel that says what it likes.
#![allow(dead_code)] // each test file uses its part

pub mod kernel;
pub mod requests;

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;

use ovl::layer::{
    DirLayer, Identity, Layer, LayerDirent, LayerEntry, LayerFile, LayerNode, Result,
};
use ovl::meta::Attr;
use ovl::sys::FileHandle;

/// Called before each call of a layer with what is called: it may fail it, or panic.
pub type Meddler = Box<dyn Fn(&'static str) -> Result<()> + Send + Sync>;

/// A host directory with somebody in between.
pub struct Meddled {
    pub inner: DirLayer,
    pub before: Meddler,
}

impl Layer for Meddled {
    fn identity(&self) -> Identity {
        self.inner.identity()
    }
    fn root(&self) -> Result<LayerNode> {
        self.inner.root()
    }
    fn lookup(&self, dir: &LayerNode, name: &OsStr) -> Result<Option<LayerEntry>> {
        (self.before)("lookup")?;
        self.inner.lookup(dir, name)
    }
    fn read_dir(&self, dir: &LayerNode) -> Result<Vec<LayerDirent>> {
        (self.before)("read_dir")?;
        self.inner.read_dir(dir)
    }
    fn is_opaque(&self, dir: &LayerNode) -> Result<bool> {
        (self.before)("is_opaque")?;
        self.inner.is_opaque(dir)
    }
    fn redirect(&self, dir: &LayerNode) -> Result<Option<OsString>> {
        (self.before)("redirect")?;
        self.inner.redirect(dir)
    }
    fn attr(&self, node: &LayerNode) -> Result<Attr> {
        (self.before)("attr")?;
        self.inner.attr(node)
    }
    fn read_link(&self, node: &LayerNode) -> Result<OsString> {
        (self.before)("read_link")?;
        self.inner.read_link(node)
    }
    fn open(&self, node: &LayerNode) -> Result<LayerFile> {
        (self.before)("open")?;
        self.inner.open(node)
    }
    fn open_flags(&self, node: &LayerNode) -> Result<Option<OwnedFd>> {
        (self.before)("open_flags")?;
        self.inner.open_flags(node)
    }
    fn file_handle(&self, node: &LayerNode) -> Option<FileHandle> {
        self.inner.file_handle(node)
    }
    fn xattr_names(&self, node: &LayerNode) -> Result<Vec<OsString>> {
        (self.before)("xattr_names")?;
        self.inner.xattr_names(node)
    }
    fn xattr(&self, node: &LayerNode, name: &OsStr) -> Result<Option<Vec<u8>>> {
        (self.before)("xattr")?;
        self.inner.xattr(node, name)
    }
}
