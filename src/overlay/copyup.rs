//! Copy-up: an object of a lower gets its own copy in the upper, before its first change.
//!
//! The copy is made in the workdir under a temporary name and moved into place in one step, so that at every moment,
//! also after a crash, the name shows either the old object or the whole new one. The data is copied without any
//! directory's lock: only those who want to change the same file wait.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::Result;
use super::acl;
use super::attrs::{self, NLINK_MARK};
use super::bytes::copy_data;
use super::engine::{OpenFile, Overlay};
use super::node::{Climb, Link, LowerRef, Node, UpperObject, lock};
use super::origin::Origin;
use super::resolve::METACOPY_MARK;
use super::upper::is_internal_xattr;
use crate::layer::{LayerFile, ObjectKey, Permissions, host};
use crate::meta::{Attr, FileKind};

/// What putting a copy into a directory takes there: changing a file does not ask for a writable directory.
const PASS_AND_WRITE: u32 = libc::S_IXUSR | libc::S_IWUSR;

/// How much of a file's data the copy needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    All,
    /// None, if the mount keeps data below (`metacopy`); else all.
    Metadata,
    /// The rest is about to be cut off.
    UpTo(u64),
}

impl Extent {
    /// For a mount or a file that keeps no data below.
    fn or_all(self) -> Self {
        if self == Self::Metadata {
            Self::All
        } else {
            self
        }
    }
}

/// A finished copy under its temporary name in the workdir; removed unless published.
struct Copy<'a> {
    overlay: &'a Overlay,
    name: Option<OsString>,
    /// Of a regular file, open for reading and writing; of anything else `O_PATH`.
    fd: Arc<OwnedFd>,
    key: ObjectKey,
    data_below: bool,
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        if let (Some(name), Some(upper)) = (&self.name, &self.overlay.upper) {
            let _ = upper.remove_work(name);
        }
    }
}

impl Overlay {
    /// Makes sure the node has an object in the upper; all its parents get one too.
    pub(super) fn copy_up(&self, node: &Arc<Node>, extent: Extent) -> Result<()> {
        self.copy_up_open(node, extent).map(drop)
    }

    /// The same for who changes the object itself (not its data): gives a descriptor of what is in the upper then.
    pub(super) fn copied_up(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        match self.copy_up_open(node, Extent::Metadata)? {
            Some(made) => Ok(made),
            None => self.open_upper_or_path(node),
        }
    }

    /// [`Self::copy_up`]; gives the copy's descriptor if it made one.
    fn copy_up_open(&self, node: &Arc<Node>, extent: Extent) -> Result<Option<Arc<OwnedFd>>> {
        self.writable()?;
        if node.data_in_upper() || extent == Extent::Metadata && node.in_upper() {
            return Ok(None);
        }
        // Ancestors first, from the top; a loop, since paths can be thousands of names deep.
        let mut missing = Vec::new();
        let mut at = node.state().links.first().map(|l| Arc::clone(&l.parent));
        let mut climb = Climb::from(node);
        while let Some(dir) = at.filter(|d| !d.in_upper()) {
            climb.step(&dir)?;
            at = dir.state().links.first().map(|l| Arc::clone(&l.parent));
            missing.push(dir);
        }
        while let Some(dir) = missing.pop() {
            self.copy_up_one(&dir, Extent::All)?;
        }
        self.copy_up_one(node, extent)
    }

    fn copy_up_one(&self, node: &Arc<Node>, extent: Extent) -> Result<Option<Arc<OwnedFd>>> {
        let _alone = lock(&node.copy_up);
        if node.in_upper() {
            if !node.data_in_upper() && extent != Extent::Metadata {
                self.copy_up_data(node, extent)?;
            }
            return Ok(None);
        }
        let lowers = node.state().lowers.clone();
        let origin = Origin::of(&self.lowers, lowers.first().ok_or(Errno::STALE)?);
        let lower = self.lowers.spokesman(&lowers)?;
        let attr = self.lowers.layer(lower.layer).attr(&lower.node)?;
        let indexed = !node.is_dir() && attr.nlink > 1;
        let path = (extent == Extent::Metadata)
            .then(|| self.lower_path_of(node, &attr))
            .flatten();
        let for_data = extent != Extent::Metadata;
        let extent = if path.is_some() {
            extent
        } else {
            extent.or_all()
        };
        let mut copy = self.make_copy(lower, &attr, extent)?;
        let upper = self.writable()?;
        if let Some(path) = path {
            upper.mark(copy.fd.as_fd(), "redirect", path.as_bytes())?;
            upper.mark(copy.fd.as_fd(), METACOPY_MARK, b"")?;
            copy.data_below = true;
        }
        // Not before the data is settled: on ext4 it also keeps the copy out of fast commits, which have an order of their own.
        let (mark, value) = origin.mark();
        // User xattrs cannot be on symlinks and devices: those then keep their number only until the next mount.
        match upper.mark(copy.fd.as_fd(), mark, value) {
            Ok(()) => {}
            Err(Errno::PERM | Errno::OPNOTSUPP) => {
                let own = self.lowers.host_ino(copy.key);
                lock(&self.unmarked).insert(own, node.id);
            }
            Err(e) => return Err(e),
        }
        if indexed {
            match upper.mark(copy.fd.as_fd(), NLINK_MARK, b"L+0") {
                Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        let index = indexed.then(|| origin.index_name());
        loop {
            let link = node.state().links.first().cloned();
            let done = match link {
                Some(link) => {
                    self.copy_up(&link.parent, Extent::All)?;
                    self.publish(node, &mut copy, &link, index.as_deref())?
                }
                None => self.publish_nameless(node, &mut copy)?,
            };
            if done {
                break;
            }
        }
        // Who had it copied up is about to write. For others it is not kept open: an inode flag they are about to set would not
        // bind who writes through it.
        if for_data && lower.node.kind == FileKind::Regular {
            let open = OpenFile {
                file: LayerFile::Fd(Arc::clone(&copy.fd)),
                upper: true,
                writable: true,
            };
            self.files.insert(node.id.0, open);
        } else {
            self.files.remove(&node.id.0);
        }
        Ok(Some(Arc::clone(&copy.fd)))
    }

    /// Makes a copy of a lower object in the workdir, complete, and (unless volatile) safe to be shown.
    fn make_copy(&self, lower: &LowerRef, attr: &Attr, extent: Extent) -> Result<Copy<'_>> {
        let upper = self.writable()?;
        let layer = self.lowers.layer(lower.layer);
        let name = upper.temp_name();
        let work = upper.work();
        let temp = name.as_os_str();
        let on_disk = self.kind_on_disk(attr.kind);
        let removed = |_: &Errno| {
            let _ = upper.remove_work(temp);
        };
        let path =
            || host::open_at(work, temp, OFlags::PATH | OFlags::NOFOLLOW).inspect_err(removed);
        let made = match on_disk {
            FileKind::Regular => rustix::fs::openat(
                work,
                temp,
                OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC,
                Mode::RUSR | Mode::WUSR,
            )?,
            FileKind::Directory => {
                rustix::fs::mkdirat(work, temp, Mode::RWXU)?;
                path()?
            }
            FileKind::Symlink => {
                rustix::fs::symlinkat(layer.read_link(&lower.node)?, work, temp)?;
                path()?
            }
            kind => {
                rustix::fs::mknodat(
                    work,
                    temp,
                    FileType::from_raw_mode(kind.mode_bits()),
                    Mode::RUSR | Mode::WUSR,
                    attr.rdev,
                )?;
                path()?
            }
        };
        let stat = host::stat_fd(made.as_fd()).inspect_err(removed)?;
        let copy = Copy {
            overlay: self,
            name: Some(name.clone()),
            fd: Arc::new(made),
            key: stat.key,
            data_below: false,
        };
        let fd = copy.fd.as_fd();
        let keep = match extent {
            _ if on_disk != FileKind::Regular => 0,
            Extent::Metadata => 0,
            Extent::All => attr.size,
            Extent::UpTo(size) => size.min(attr.size),
        };
        let mut from = None;
        if keep > 0 {
            let file = layer.open(&lower.node)?;
            copy_data(&file, &copy.fd, keep, attr.size)?;
            upper.settle.begin(fd)?;
            from = Some(file);
        }
        if extent == Extent::Metadata && on_disk == FileKind::Regular {
            rustix::fs::ftruncate(fd, attr.size)?;
        }
        if on_disk == FileKind::CharDevice && attr.rdev == 0 {
            super::create::mark_device(fd)?;
        }
        self.dress((fd, &stat.attr), lower, from.as_ref(), attr)?;
        self.copy_flags(lower, from, &copy)?;
        if on_disk == FileKind::Regular {
            upper.settle.settle(fd, keep > 0)?;
        }
        Ok(copy)
    }

    /// The inode flags that say how an object is used go with it, as far as the upper's file system has them. Those that
    /// forbid changes do not: the copy is about to be changed. `file` is the lower one, if it was opened.
    fn copy_flags(&self, lower: &LowerRef, file: Option<LayerFile>, copy: &Copy<'_>) -> Result<()> {
        if !matches!(lower.node.kind, FileKind::Regular | FileKind::Directory) {
            return Ok(());
        }
        let from = match file {
            Some(LayerFile::Fd(fd)) => fd,
            Some(LayerFile::Stored(_)) => return Ok(()),
            None => match self.lowers.layer(lower.layer).open_flags(&lower.node)? {
                Some(fd) => Arc::new(fd),
                None => return Ok(()),
            },
        };
        let kept = IFlags::NOATIME | IFlags::NODUMP | IFlags::SYNC | IFlags::DIRSYNC;
        let flags = rustix::fs::ioctl_getflags(from).map_or(IFlags::empty(), |all| all & kept);
        if !flags.is_empty() {
            let to = host::reopen(copy.fd.as_fd(), OFlags::RDONLY)?;
            let own = rustix::fs::ioctl_getflags(&to).unwrap_or(IFlags::empty());
            match rustix::fs::ioctl_setflags(&to, own | flags) {
                Ok(()) | Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Gives an object of the upper, and what it has so far, what a lower's has: owner, xattrs, permissions, times. `file` is
    /// the lower one, if it was opened.
    fn dress(
        &self,
        (fd, own): (BorrowedFd<'_>, &Attr),
        lower: &LowerRef,
        file: Option<&LayerFile>,
        attr: &Attr,
    ) -> Result<()> {
        let layer = self.lowers.layer(lower.layer);
        // chown takes capabilities away, so it comes before them.
        if self.permissions == Permissions::Inode && (own.uid, own.gid) != (attr.uid, attr.gid) {
            attrs::set_owner(fd, Some(attr.uid), Some(attr.gid))?;
        }
        let wanted = |name: &OsStr| !is_internal_xattr(name) || is_nested(name);
        for (name, value) in layer.xattrs(&lower.node, file, &wanted)? {
            // An ACL set just before may already forbid it.
            let set = self.writable()?.permitted(fd, libc::S_IWUSR, || {
                host::set_xattr_fd(fd, &name, &value, XattrFlags::empty())
            });
            match set {
                Ok(()) => {}
                // What the upper's file system or our privilege cannot hold is no reason to refuse the write.
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL) if may_be_lost(&name) => {}
                Err(e) => return Err(e),
            }
        }
        if self.permissions != Permissions::Inode {
            self.keep(fd, attr)?;
        } else if attr.kind != FileKind::Symlink {
            attrs::set_perm(fd, attr.perm)?;
        }
        attrs::set_times(fd, attrs::at(attr.atime), attrs::at(attr.mtime))
    }

    /// Makes the root look as in the lowers. For an upper directory that was just made for this mount: one that was there
    /// before shows its own attributes, as in the kernel's overlayfs.
    pub fn dress_root(&self) -> Result<()> {
        let root = self.writable()?.root().as_fd();
        for inherited in [acl::DEFAULT, acl::ACCESS] {
            acl::remove(root, inherited)?;
        }
        let lowers = self.root.state().lowers.clone();
        if lowers.is_empty() {
            return Ok(());
        }
        let lower = self.lowers.spokesman(&lowers)?;
        let mut attr = self.lowers.layer(lower.layer).attr(&lower.node)?;
        let own = host::stat_fd(root)?.attr;
        match self.dress((root, &own), lower, None, &attr) {
            // An ordinary user cannot give the directory away, and so keeps it.
            Err(Errno::PERM) => {
                (attr.uid, attr.gid) = (own.uid, own.gid);
                self.dress((root, &own), lower, None, &attr)
            }
            other => other,
        }
    }

    /// Where a file copied up without its data says that is: its path in the lowers, from the root. `None`: the data
    /// is to be copied, since `metacopy` is off, there is nothing to save, or the path does not fit an xattr.
    fn lower_path_of(&self, node: &Arc<Node>, attr: &Attr) -> Option<OsString> {
        if !self.metacopy || attr.kind != FileKind::Regular || attr.size == 0 {
            return None;
        }
        let link = node.state().links.first().cloned()?;
        let parent = link.parent.dir().ok()?.lower_path()?;
        let mut path = OsString::from("/");
        if !parent.is_empty() {
            path.push(&*parent);
            path.push("/");
        }
        path.push(&link.name);
        (path.len() < 4096).then_some(path)
    }

    /// A file copied up without its data gets it, in place: until the mark is gone readers look below. The caller holds
    /// the node's copy-up lock.
    fn copy_up_data(&self, node: &Arc<Node>, extent: Extent) -> Result<()> {
        let upper = self.writable()?;
        let lower = node.state().lowers.first().cloned().ok_or(Errno::IO)?;
        let to = self.upper_file(node, OFlags::RDWR | OFlags::NOFOLLOW)?;
        let stat = host::stat_fd(to.as_fd())?;
        let keep = match extent {
            Extent::UpTo(size) => size.min(stat.attr.size),
            Extent::All | Extent::Metadata => stat.attr.size,
        };
        if keep > 0 {
            let from = self.lowers.layer(lower.layer).open(&lower.node)?;
            copy_data(&from, &to, keep, stat.attr.size)?;
        } else {
            // Without the mark the hole would be zeros.
            rustix::fs::ftruncate(&to, 0)?;
        }
        upper.settle.settle(to.as_fd(), keep > 0)?;
        attrs::set_times(to.as_fd(), attrs::OMIT, attrs::at(stat.attr.mtime))?;
        for mark in [METACOPY_MARK, "redirect"] {
            match upper.unmark(to.as_fd(), mark) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(e) => return Err(e),
            }
        }
        let mut state = node.state_mut();
        if let Some(mut object) = state.upper.clone() {
            object.data_below = false;
            node.set_upper(&mut state, *object);
        }
        drop(state);
        self.files.remove(&node.id.0);
        Ok(())
    }

    /// Moves the copy to its place. `false`: the name is gone or another's by now, choose again.
    fn publish(
        &self,
        node: &Arc<Node>,
        copy: &mut Copy<'_>,
        link: &Link,
        index: Option<&OsStr>,
    ) -> Result<bool> {
        let upper = self.writable()?;
        let parent = &link.parent;
        let _names = parent.names_owned()?;
        if node.has_link(parent, &link.name).is_none() || !parent.in_upper() {
            return Ok(false);
        }
        self.mark_impure(parent)?;
        let dir = self.upper_dir(parent)?;
        let before = host::stat_fd(dir.as_fd())?.attr.mtime;
        let temp = copy.name.clone().ok_or(Errno::STALE)?;
        let object = UpperObject {
            key: copy.key,
            pinned: None,
            index: index.map(OsStr::to_os_string),
            data_below: copy.data_below,
        };
        if let Some(index) = index {
            rustix::fs::renameat(upper.work(), temp.as_os_str(), upper.index(), index)?;
            copy.name = None;
            // Before it can be found by another name, whose directory is not locked: it must be this node then.
            node.set_upper(&mut node.state_mut(), object.clone());
            self.index_names_mut().insert(index.to_os_string());
            upper.permitted(dir.as_fd(), PASS_AND_WRITE, || {
                let flags = AtFlags::empty();
                rustix::fs::linkat(upper.index(), index, &*dir, &*link.name, flags)
            })?;
        } else {
            // A directory that moves is written to: its `..` changes.
            let places = [
                (dir.as_fd(), PASS_AND_WRITE),
                (copy.fd.as_fd(), libc::S_IWUSR),
            ];
            let places = if node.is_dir() {
                &places[..]
            } else {
                &places[..1]
            };
            upper.all_permitted(places, || {
                let flags = RenameFlags::NOREPLACE;
                rustix::fs::renameat_with(upper.work(), &temp, &*dir, &*link.name, flags)
            })?;
            copy.name = None;
        }
        let mut state = node.state_mut();
        for known in &mut *state.links {
            if Arc::ptr_eq(&known.parent, parent) && known.name == link.name {
                known.in_upper = true;
            }
        }
        if index.is_none() {
            node.set_upper(&mut state, object);
        }
        drop(state);
        self.list_add(parent, &link.name, node.id, node.kind);
        attrs::restore_mtime(dir.as_fd(), before)?;
        Ok(true)
    }

    /// The object has no name any more, but is still open: its copy lives by descriptor alone.
    fn publish_nameless(&self, node: &Arc<Node>, copy: &mut Copy<'_>) -> Result<bool> {
        let upper = self.writable()?;
        let pin = Arc::clone(&copy.fd);
        let key = copy.key;
        let mut state = node.state_mut();
        if !state.links.is_empty() {
            return Ok(false);
        }
        if let Some(name) = copy.name.take() {
            upper.remove_work(&name)?;
        }
        node.set_upper(
            &mut state,
            UpperObject {
                key,
                pinned: Some(pin),
                index: None,
                data_below: copy.data_below,
            },
        );
        Ok(true)
    }

    /// Gives an indexed file the name `link` in the upper too, where so far it shows through from the lower. The
    /// caller owns the parent's namespace.
    pub(super) fn link_alias(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Result<()> {
        let upper = self.writable()?;
        let Some(index) = node.state().upper.as_ref().and_then(|u| u.index.clone()) else {
            return Err(Errno::STALE);
        };
        self.mark_impure(parent)?;
        self.base_nlink_on_upper(node)?;
        let dir = self.upper_dir(parent)?;
        let before = host::stat_fd(dir.as_fd())?.attr.mtime;
        rustix::fs::linkat(
            upper.index(),
            index.as_os_str(),
            &*dir,
            name,
            AtFlags::empty(),
        )?;
        // One more real link for a name that was counted already. A crash before this counts it twice, which is safe.
        self.uncount(node)?;
        attrs::restore_mtime(dir.as_fd(), before)?;
        node.add_link(parent, name, true);
        self.list_add(parent, name, node.id, node.kind);
        Ok(())
    }

    fn uncount(&self, node: &Arc<Node>) -> Result<()> {
        let now = i64::from(self.indexed_nlink(node)?) - 1;
        let (fd, stat) = self.upper_object(node, OFlags::PATH | OFlags::NOFOLLOW)?;
        let offset = now - i64::from(stat.attr.nlink);
        self.writable()?
            .mark(fd.as_fd(), NLINK_MARK, format!("U{offset:+}").as_bytes())
    }
}

/// `overlay.overlay.*`: the internal xattr of an overlay on top of this one, which we only pass on.
fn is_nested(name: &OsStr) -> bool {
    [&b"trusted.overlay.overlay."[..], b"user.overlay.overlay."]
        .iter()
        .any(|p| name.as_bytes().starts_with(p))
}

/// ACLs, capabilities and labels decide who may do what: losing one is worse than a failed write.
fn may_be_lost(name: &OsStr) -> bool {
    !name.as_bytes().starts_with(b"system.posix_acl") && name != "security.capability"
}
