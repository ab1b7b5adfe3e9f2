//! A host directory as a layer.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use quick_cache::sync::Cache;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::host::{self, Stat};
use super::whiteout::{self, Aufs};
use super::{
    Identity, Layer, LayerDirent, LayerEntry, LayerFile, LayerNode, ObjectKey, Permissions, Result,
};
use crate::meta::{Attr, FileKind};
use crate::sys::{self, FileHandle};

/// A host directory. Holds a descriptor of its root, and of directories used last if it is told to.
pub struct DirLayer {
    root: Arc<OwnedFd>,
    open: OnceLock<Cache<Arc<OsStr>, Arc<OwnedFd>>>,
    key: ObjectKey,
    uuid: [u8; 16],
    permissions: Permissions,
}

impl DirLayer {
    /// Opens `path`. Where we may, a private clone of its mount is used, as the kernel's overlayfs does: what
    /// somebody mounts below `path` later, or has mounted there before, is not part of the layer.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Self::open_with(path, Permissions::Inode)
    }

    /// The same for a directory in which owners and modes are kept elsewhere than in the inodes.
    pub fn open_with(path: &Path, permissions: Permissions) -> std::io::Result<Self> {
        let plain = || {
            rustix::fs::open(
                path,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let opened = plain()?;
        let clone = rustix::mount::open_tree(
            &opened,
            c"",
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH,
        );
        let root = clone.unwrap_or(opened);
        let key = host::stat_fd(root.as_fd())?.key;
        let uuid = host::open_beneath(
            root.as_fd(),
            OsStr::new(""),
            OFlags::RDONLY | OFlags::DIRECTORY,
        )
        .ok()
        .and_then(|fd| sys::fs_uuid(fd.as_fd()))
        .unwrap_or_default();
        Ok(Self {
            root: Arc::new(root),
            open: OnceLock::new(),
            key,
            uuid,
            permissions,
        })
    }

    /// The root's descriptor (`O_PATH`).
    pub fn root_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Puts what is kept in xattrs over the attributes of `name` in `dir`.
    fn show_at(&self, dir: BorrowedFd<'_>, name: &OsStr, attr: &mut Attr) -> Result<()> {
        if self.permissions == Permissions::Inode {
            return Ok(());
        }
        let path = host::proc_child(dir, name);
        self.permissions
            .show(attr, |xattr| host::xattr_at(path.as_slice(), xattr))
    }

    /// The directory at this path, from a descriptor that is kept if there is one.
    fn dir_at(&self, path: &Arc<OsStr>) -> Result<Arc<OwnedFd>> {
        if path.is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        if let Some(fd) = self.open.get().and_then(|open| open.get(path)) {
            return Ok(fd);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let fd = Arc::new(host::open_beneath(self.root.as_fd(), path, flags)?);
        if let Some(open) = self.open.get() {
            open.insert(Arc::clone(path), Arc::clone(&fd));
        }
        Ok(fd)
    }

    fn dir(&self, node: &LayerNode) -> Result<Arc<OwnedFd>> {
        match node.kind {
            FileKind::Directory => self.dir_at(&node.dir),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Opens an object anew.
    fn open_with_flags(&self, node: &LayerNode, flags: OFlags) -> Result<OwnedFd> {
        let dir = self.dir_at(&node.dir)?;
        let name = node.name.as_deref().unwrap_or(OsStr::new("."));
        host::open_at(dir.as_fd(), name, flags)
    }

    /// A descriptor (`O_PATH`) of an object.
    fn object(&self, node: &LayerNode) -> Result<Arc<OwnedFd>> {
        match node.kind {
            FileKind::Directory => self.dir_at(&node.dir),
            _ => self
                .open_with_flags(node, OFlags::PATH | OFlags::NOFOLLOW)
                .map(Arc::new),
        }
    }

    /// Is this stat'ed object a whiteout in kernel form?
    fn is_whiteout(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> Result<bool> {
        if stat.is_whiteout() {
            return Ok(!whiteout::is_device(dir, name)?);
        }
        if stat.attr.kind != FileKind::Regular || stat.attr.size != 0 {
            return Ok(false);
        }
        Ok(whiteout::has_whiteout_xattr(dir, name)? && whiteout::holds_xattr_whiteouts(dir)?)
    }
}

fn join(parent: &OsStr, name: &OsStr) -> Arc<OsStr> {
    if parent.is_empty() {
        return name.into();
    }
    let mut path = Vec::with_capacity(parent.len() + 1 + name.len());
    path.extend_from_slice(parent.as_bytes());
    path.push(b'/');
    path.extend_from_slice(name.as_bytes());
    OsString::from_vec(path).into()
}

impl Layer for DirLayer {
    fn identity(&self) -> Identity {
        Identity::Host {
            dev: self.key.dev,
            uuid: self.uuid,
        }
    }

    fn keep_open(&self, directories: usize) {
        // The first to use the layer decides how many. Who uses it from now on shall see what is there now.
        self.open.get_or_init(|| Cache::new(directories)).clear();
    }

    fn root(&self) -> Result<LayerNode> {
        Ok(LayerNode {
            key: self.key,
            kind: FileKind::Directory,
            dir: OsStr::new("").into(),
            name: None,
        })
    }

    fn lookup(&self, dir: &LayerNode, name: &OsStr) -> Result<Option<LayerEntry>> {
        if whiteout::is_aufs_name(name) {
            return Ok(None);
        }
        let fd = self.dir(dir)?;
        let Some(mut stat) = host::stat_at(fd.as_fd(), name)? else {
            let hidden = whiteout::aufs_marks(fd.as_fd(), name)?;
            return Ok(hidden.then_some(LayerEntry::Whiteout));
        };
        if Self::is_whiteout(fd.as_fd(), name, &stat)? {
            return Ok(Some(LayerEntry::Whiteout));
        }
        self.show_at(fd.as_fd(), name, &mut stat.attr)?;
        let is_dir = stat.attr.kind.is_dir();
        let node = LayerNode {
            key: stat.key,
            kind: stat.attr.kind,
            dir: if is_dir {
                join(&dir.dir, name)
            } else {
                Arc::clone(&dir.dir)
            },
            name: (!is_dir).then(|| name.into()),
        };
        Ok(Some(LayerEntry::Node {
            node,
            attr: Some(stat.attr),
            opaque: None,
        }))
    }

    fn read_dir(&self, dir: &LayerNode) -> Result<Vec<LayerDirent>> {
        let fd = self.dir(dir)?;
        let xattr_whiteouts = whiteout::holds_xattr_whiteouts(fd.as_fd())?;
        let mut out = Vec::new();
        let mut hidden = Vec::new();
        for entry in host::read_dir(fd.as_fd())? {
            match whiteout::aufs_name(&entry.name) {
                Aufs::Internal => continue,
                Aufs::Whiteout(name) => {
                    hidden.push(name.to_os_string());
                    continue;
                }
                Aufs::Ordinary => {}
            }
            // What getdents says suffices, unless the entry may be a whiteout.
            let (key, kind) = match entry.kind {
                Some(FileKind::CharDevice) | None => {
                    let Some(mut stat) = host::stat_at(fd.as_fd(), &entry.name)? else {
                        continue;
                    };
                    if stat.is_whiteout() && !whiteout::is_device(fd.as_fd(), &entry.name)? {
                        out.push(LayerDirent {
                            name: entry.name,
                            target: None,
                        });
                        continue;
                    }
                    self.show_at(fd.as_fd(), &entry.name, &mut stat.attr)?;
                    (stat.key, stat.attr.kind)
                }
                // A device may be kept as a file.
                Some(FileKind::Regular) if self.permissions != Permissions::Inode => {
                    let Some(mut stat) = host::stat_at(fd.as_fd(), &entry.name)? else {
                        continue;
                    };
                    self.show_at(fd.as_fd(), &entry.name, &mut stat.attr)?;
                    (stat.key, stat.attr.kind)
                }
                Some(kind) => (
                    ObjectKey {
                        dev: self.key.dev,
                        ino: entry.ino,
                    },
                    kind,
                ),
            };
            let whiteout = xattr_whiteouts
                && kind == FileKind::Regular
                && whiteout::has_whiteout_xattr(fd.as_fd(), &entry.name)?;
            out.push(LayerDirent {
                name: entry.name,
                target: (!whiteout).then_some((key, kind)),
            });
        }
        if !hidden.is_empty() {
            // A name beside its own AUFS whiteout stays: the whiteout means the layers below.
            let shown: HashSet<_> = out.iter().map(|e| e.name.clone()).collect();
            hidden.retain(|name| !shown.contains(name));
            out.extend(
                hidden
                    .into_iter()
                    .map(|name| LayerDirent { name, target: None }),
            );
        }
        Ok(out)
    }

    fn is_opaque(&self, dir: &LayerNode) -> Result<bool> {
        let fd = self.dir(dir)?;
        if whiteout::is_opaque(fd.as_fd())? {
            return Ok(true);
        }
        // `.wh.NAME` beside a directory NAME: the directory replaced what was below.
        let beside = match dir.dir.as_bytes().iter().rposition(|b| *b == b'/') {
            None if dir.dir.is_empty() => false,
            None => whiteout::aufs_marks(self.root.as_fd(), &dir.dir)?,
            Some(cut) => {
                let (parent, name) = dir.dir.as_bytes().split_at(cut);
                let parent = self.dir_at(&OsStr::from_bytes(parent).into())?;
                whiteout::aufs_marks(parent.as_fd(), OsStr::from_bytes(&name[1..]))?
            }
        };
        // Unless it moved there, and shows what is below elsewhere.
        Ok(beside && self.redirect(dir)?.is_none())
    }

    fn redirect(&self, dir: &LayerNode) -> Result<Option<OsString>> {
        let fd = self.dir(dir)?;
        let names = host::xattr_names_fd(fd.as_fd())?;
        for name in ["trusted.overlay.redirect", "user.overlay.redirect"] {
            if names.iter().any(|has| has == name)
                && let Some(path) = host::xattr_fd(fd.as_fd(), OsStr::new(name))?
            {
                return Ok(Some(OsString::from_vec(path)));
            }
        }
        Ok(None)
    }

    fn attr(&self, node: &LayerNode) -> Result<Attr> {
        let dir = self.dir_at(&node.dir)?;
        let mut stat = match &node.name {
            Some(name) => host::stat_at(dir.as_fd(), name)?.ok_or(Errno::NOENT)?,
            None => host::stat_fd(dir.as_fd())?,
        };
        if self.permissions != Permissions::Inode {
            let fd = self.object(node)?;
            self.permissions
                .show(&mut stat.attr, |name| host::xattr_fd(fd.as_fd(), name))?;
        }
        // Changed underneath: another object took the place.
        if stat.attr.kind != node.kind {
            Err(Errno::STALE)
        } else {
            Ok(stat.attr)
        }
    }

    fn read_link(&self, node: &LayerNode) -> Result<OsString> {
        host::read_link_fd(self.object(node)?.as_fd())
    }

    fn open(&self, node: &LayerNode) -> Result<LayerFile> {
        if node.kind != FileKind::Regular {
            return Err(Errno::INVAL);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        // O_NOATIME keeps the lower untouched, but only owners may ask for it.
        let open = |extra| self.open_with_flags(node, flags | extra);
        let fd = match open(OFlags::NOATIME) {
            Err(Errno::PERM) => open(OFlags::empty())?,
            other => other?,
        };
        if whiteout::is_metacopy(fd.as_fd())? {
            tracing::error!(dir = ?node.dir, name = ?node.name, "has its data in another layer (metacopy): such lowers are not supported");
            return Err(Errno::IO);
        }
        Ok(LayerFile::Fd(Arc::new(fd)))
    }

    fn open_flags(&self, node: &LayerNode) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        self.open_with_flags(node, flags).map(Some)
    }

    fn file_handle(&self, node: &LayerNode) -> Option<FileHandle> {
        let dir = self.dir_at(&node.dir).ok()?;
        sys::file_handle(dir.as_fd(), node.name.as_deref()).ok()
    }

    fn xattr_names(&self, node: &LayerNode) -> Result<Vec<OsString>> {
        let dir = self.dir_at(&node.dir)?;
        let mut names = match &node.name {
            Some(name) => host::xattr_names_at(dir.as_fd(), name)?,
            None => host::xattr_names_fd(dir.as_fd())?,
        };
        names.retain(|name| !self.permissions.hides(name));
        Ok(names)
    }

    fn xattr(&self, node: &LayerNode, name: &OsStr) -> Result<Option<Vec<u8>>> {
        if self.permissions.hides(name) {
            return Ok(None);
        }
        let dir = self.dir_at(&node.dir)?;
        match &node.name {
            Some(own) => host::xattr_at(host::proc_child(dir.as_fd(), own).as_slice(), name),
            None => host::xattr_fd(dir.as_fd(), name),
        }
    }

    fn xattrs(
        &self,
        node: &LayerNode,
        open: Option<&LayerFile>,
        wanted: &dyn Fn(&OsStr) -> bool,
    ) -> Result<Vec<(OsString, Vec<u8>)>> {
        let object = match open {
            Some(LayerFile::Fd(fd)) => Arc::clone(fd),
            _ => self.object(node)?,
        };
        let mut found = Vec::new();
        for name in host::xattr_names_fd(object.as_fd())? {
            if !self.permissions.hides(&name)
                && wanted(&name)
                && let Some(value) = host::xattr_fd(object.as_fd(), &name)?
            {
                found.push((name, value));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::XattrFlags;

    use super::*;

    /// What is asked by name in a directory and what is asked of an open object is the same, a symlink's own among them.
    #[test]
    fn xattrs_and_handles_by_name_are_those_of_the_object() {
        let tmp = tempfile::tempdir().unwrap();
        let sub = tmp.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        std::fs::write(sub.join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", sub.join("link")).unwrap();
        let layer = DirLayer::open(tmp.path()).unwrap();
        let find = |dir: &LayerNode, name: &str| match layer.lookup(dir, OsStr::new(name)) {
            Ok(Some(LayerEntry::Node { node, .. })) => node,
            other => panic!("{name}: {other:?}"),
        };
        let dir = find(&layer.root().unwrap(), "sub");
        let nodes = [find(&dir, "file"), find(&dir, "link"), dir];
        for (n, node) in nodes.iter().enumerate() {
            let object = layer.object(node).unwrap();
            for (name, value) in [
                ("trusted.kept", vec![n as u8; 300]),
                ("trusted.not", vec![]),
            ] {
                let (fd, name) = (object.as_fd(), OsStr::new(name));
                host::set_xattr_fd(fd, name, &value, XattrFlags::empty()).unwrap();
            }
        }
        for (n, node) in nodes.iter().enumerate() {
            let kept = OsStr::new("trusted.kept");
            let names = layer.xattr_names(node).unwrap();
            assert!(names.len() >= 2 && names.iter().any(|name| name == kept));
            let value = Some(vec![n as u8; 300]);
            assert_eq!(layer.xattr(node, kept).unwrap(), value);
            assert_eq!(layer.xattr(node, OsStr::new("trusted.none")), Ok(None));
            let open = layer.open(node).ok();
            assert_eq!(open.is_some(), n == 0);
            for open in [None, open.as_ref()] {
                let wanted = |name: &OsStr| name == kept;
                let found = layer.xattrs(node, open, &wanted).unwrap();
                assert_eq!(found, [(kept.to_owned(), vec![n as u8; 300])]);
            }
            let object = layer.object(node).unwrap();
            let of_object = sys::file_handle(object.as_fd(), None).ok();
            assert!(of_object.is_some() && layer.file_handle(node) == of_object);
        }
    }
}
