//! What a layer is: a read-only tree of files, whether a host directory or a layer of the store.
//!
//! The overlay engine sees layers only through [`Layer`]. Whiteouts and opaque marks of every written form
//! (kernel character device 0:0, xattrs, AUFS names) are recognised here and nowhere above.

mod dir;
mod file;
pub mod host;
pub mod override_stat;
mod stored;
pub mod whiteout;

pub use dir::DirLayer;
pub use file::LayerFile;
pub use override_stat::Permissions;
pub use stored::StoredLayer;

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use crate::meta::{Attr, FileKind};
use crate::store::Digest;
use crate::sys::FileHandle;

/// Engine errors are errnos, ready for the kernel.
pub type Result<T> = std::result::Result<T, Errno>;

/// Identity of an object within the whole set of layers: two names with the same key are the same inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// `st_dev` of a host object; 0 for a stored one, whose `ino` is unique only within its layer.
    pub dev: u64,
    pub ino: u64,
}

/// An object found in a layer. Cheap to clone; valid as long as the layer is unchanged underneath.
#[derive(Clone, Debug)]
pub struct LayerNode {
    pub key: ObjectKey,
    pub kind: FileKind,
    /// Host layers: path from the layer's root of the directory it is or is in, "" for the root. Stored layers: empty.
    pub(in crate::layer) dir: Arc<OsStr>,
    /// Host layers: its name, unless it is a directory.
    pub(in crate::layer) name: Option<Arc<OsStr>>,
}

impl LayerNode {
    /// Its own copy of `name`, if it keeps one.
    pub fn name_if(&self, name: &OsStr) -> Option<Arc<OsStr>> {
        self.name.clone().filter(|own| **own == *name)
    }
}

/// What a directory of one layer says of one name.
#[derive(Clone, Debug)]
pub enum LayerEntry {
    Node {
        node: LayerNode,
        /// Its attributes, where finding it brought them along.
        attr: Option<Attr>,
        /// Of a directory, what [`Layer::is_opaque`] says, where finding it brought that along.
        opaque: Option<bool>,
    },
    /// The name is absent from this layer down.
    Whiteout,
}

/// One entry of [`Layer::read_dir`].
#[derive(Clone, Debug)]
pub struct LayerDirent {
    pub name: OsString,
    /// `None`: a whiteout.
    pub target: Option<(ObjectKey, FileKind)>,
}

/// What tells one layer's inode numbers from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A host file system: device of the root, and its UUID (zero where it has none).
    Host { dev: u64, uuid: [u8; 16] },
    /// A layer of the store.
    Stored { diff_id: Digest },
}

/// A read-only tree. Implementations are usable from any thread and hold no lock while doing I/O.
pub trait Layer: Send + Sync {
    fn identity(&self) -> Identity;
    /// May keep so many directories open. Without having been told, it keeps none.
    fn keep_open(&self, _directories: usize) {}
    fn root(&self) -> Result<LayerNode>;
    /// `None`: this layer says nothing of the name.
    fn lookup(&self, dir: &LayerNode, name: &OsStr) -> Result<Option<LayerEntry>>;
    /// Entries and whiteouts of a directory; no `.` and `..`; internal AUFS files left out.
    fn read_dir(&self, dir: &LayerNode) -> Result<Vec<LayerDirent>>;
    /// The directory hides everything below it.
    fn is_opaque(&self, dir: &LayerNode) -> Result<bool>;
    /// Where the layers below have this directory, if it says that they have it elsewhere (`overlay.redirect`).
    fn redirect(&self, dir: &LayerNode) -> Result<Option<OsString>>;
    /// The layer holds things in the directory without naming the directory itself: its attributes are made up, and those
    /// of the same directory in a lower layer hold.
    fn is_implied(&self, _dir: &LayerNode) -> Result<bool> {
        Ok(false)
    }
    fn attr(&self, node: &LayerNode) -> Result<Attr>;
    fn read_link(&self, node: &LayerNode) -> Result<OsString>;
    fn open(&self, node: &LayerNode) -> Result<LayerFile>;
    /// A descriptor to ask for inode flags (chattr), of a file or directory; `None` where there are no such flags.
    fn open_flags(&self, node: &LayerNode) -> Result<Option<OwnedFd>>;
    /// The host file system's persistent handle of the object; `None` where there is none.
    fn file_handle(&self, node: &LayerNode) -> Option<FileHandle>;
    /// All xattrs by name, internal ones included.
    fn xattr_names(&self, node: &LayerNode) -> Result<Vec<OsString>>;
    /// `None`: no such attribute.
    fn xattr(&self, node: &LayerNode, name: &OsStr) -> Result<Option<Vec<u8>>>;
    /// Those xattrs whose names are `wanted`, with their values. `_open` is the object, if it is open already.
    fn xattrs(
        &self,
        node: &LayerNode,
        _open: Option<&LayerFile>,
        wanted: &dyn Fn(&OsStr) -> bool,
    ) -> Result<Vec<(OsString, Vec<u8>)>> {
        let mut found = Vec::new();
        for name in self.xattr_names(node)? {
            if wanted(&name)
                && let Some(value) = self.xattr(node, &name)?
            {
                found.push((name, value));
            }
        }
        Ok(found)
    }
}
