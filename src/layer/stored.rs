//! A layer straight from the store, never unpacked.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::{Identity, Layer, LayerDirent, LayerEntry, LayerFile, LayerNode, ObjectKey, Result};
use crate::meta::{Attr, FileKind};
use crate::store::{self, LayerReader, ROOT_INODE};
use crate::sys::FileHandle;

/// A stored layer. Whiteouts and opaque marks are columns there, so no name or xattr of a layer can act as one.
pub struct StoredLayer {
    reader: LayerReader,
}

impl StoredLayer {
    pub fn new(reader: LayerReader) -> Self {
        Self { reader }
    }

    /// The store's reader behind it.
    pub fn reader(&self) -> &LayerReader {
        &self.reader
    }

    fn all_xattrs(&self, node: &LayerNode) -> Result<Vec<(OsString, Vec<u8>)>> {
        let ino = node.key.ino;
        // Mostly there are none, and that is known already.
        if !self.reader.inode(ino).map_err(errno)?.has_xattrs {
            return Ok(Vec::new());
        }
        self.reader.xattrs(ino).map_err(errno)
    }
}

/// A damaged or vanished row is EIO for that file; the mount lives on.
fn errno(e: store::Error) -> Errno {
    tracing::error!("stored layer: {e}");
    Errno::IO
}

const fn key(ino: u64) -> ObjectKey {
    ObjectKey { dev: 0, ino }
}

const fn attr_of(i: &store::Inode) -> Attr {
    Attr {
        kind: i.kind,
        perm: i.perm,
        uid: i.uid,
        gid: i.gid,
        size: i.size,
        blocks: i.data_size.div_ceil(512),
        nlink: i.nlink,
        rdev: i.rdev,
        atime: i.mtime,
        mtime: i.mtime,
        ctime: i.mtime,
        blksize: 4096,
    }
}

impl Layer for StoredLayer {
    fn identity(&self) -> Identity {
        Identity::Stored {
            diff_id: self.reader.info().diff_id,
        }
    }

    fn root(&self) -> Result<LayerNode> {
        Ok(LayerNode {
            key: key(ROOT_INODE),
            kind: FileKind::Directory,
            dir: OsStr::new("").into(),
            name: None,
        })
    }

    fn lookup(&self, dir: &LayerNode, name: &OsStr) -> Result<Option<LayerEntry>> {
        let found = self.reader.find(dir.key.ino, name).map_err(errno)?;
        let Some((dirent, inode)) = found else {
            return Ok(None);
        };
        let Some((ino, kind)) = dirent.target else {
            return Ok(Some(LayerEntry::Whiteout));
        };
        // What is damaged is an error for who asks for it.
        let inode = inode.filter(|i| i.kind == kind);
        Ok(Some(LayerEntry::Node {
            node: LayerNode {
                key: key(ino),
                kind,
                dir: Arc::clone(&dir.dir),
                name: None,
            },
            // Those of a lower layer's directory may be the right ones.
            attr: inode.as_ref().filter(|i| !i.implicit).map(attr_of),
            opaque: inode.map(|inode| inode.opaque),
        }))
    }

    fn read_dir(&self, dir: &LayerNode) -> Result<Vec<LayerDirent>> {
        let list = self.reader.read_dir(dir.key.ino).map_err(errno)?;
        Ok(list
            .into_iter()
            .map(|d| LayerDirent {
                name: d.name,
                target: d.target.map(|(ino, kind)| (key(ino), kind)),
            })
            .collect())
    }

    fn is_opaque(&self, dir: &LayerNode) -> Result<bool> {
        Ok(self.reader.inode(dir.key.ino).map_err(errno)?.opaque)
    }

    fn redirect(&self, _: &LayerNode) -> Result<Option<OsString>> {
        Ok(None)
    }

    fn is_implied(&self, dir: &LayerNode) -> Result<bool> {
        Ok(self.reader.inode(dir.key.ino).map_err(errno)?.implicit)
    }

    fn attr(&self, node: &LayerNode) -> Result<Attr> {
        let i = self.reader.inode(node.key.ino).map_err(errno)?;
        Ok(attr_of(&i))
    }

    fn read_link(&self, node: &LayerNode) -> Result<OsString> {
        self.reader.symlink_target(node.key.ino).map_err(errno)
    }

    fn open(&self, node: &LayerNode) -> Result<LayerFile> {
        let inode = self.reader.inode(node.key.ino).map_err(errno)?;
        let content = self.reader.open_content(inode.content).map_err(errno)?;
        Ok(LayerFile::Stored(Arc::new(content)))
    }

    fn open_flags(&self, _: &LayerNode) -> Result<Option<OwnedFd>> {
        Ok(None)
    }

    fn file_handle(&self, _: &LayerNode) -> Option<FileHandle> {
        None
    }

    fn xattr_names(&self, node: &LayerNode) -> Result<Vec<OsString>> {
        let all = self.all_xattrs(node)?;
        Ok(all.into_iter().map(|(name, _)| name).collect())
    }

    fn xattrs(
        &self,
        node: &LayerNode,
        _: Option<&LayerFile>,
        wanted: &dyn Fn(&OsStr) -> bool,
    ) -> Result<Vec<(OsString, Vec<u8>)>> {
        let mut all = self.all_xattrs(node)?;
        all.retain(|(name, _)| wanted(name));
        Ok(all)
    }

    fn xattr(&self, node: &LayerNode, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let all = self.all_xattrs(node)?;
        Ok(all
            .into_iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value))
    }
}
