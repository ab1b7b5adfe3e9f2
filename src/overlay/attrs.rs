//! Attributes: read from where the object is, changed in the upper.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::copyup::Extent;
use super::engine::{OpenFile, Overlay};
use super::node::Node;
use super::{Caller, FsStat, NodeId, Result, SetAttr, SetTime};
use crate::layer::{LayerFile, host};
use crate::meta::{Attr, FileKind, Timestamp};
use crate::sys::{self, FsXattr};

/// Mark on an indexed inode: how its link count in the mount differs from the real one, as the kernel keeps it:
/// `U+N` from the upper inode's, `L+N` from the lower's.
pub(super) const NLINK_MARK: &str = "nlink";

impl Overlay {
    pub fn getattr(&self, node: NodeId) -> Result<Attr> {
        self.attr_of(&self.table.get(node)?)
    }

    pub(super) fn attr_of(&self, node: &Arc<Node>) -> Result<Attr> {
        let mut attr = if let Some(fd) = self.open_upper(node) {
            self.stat(fd.as_fd())?.attr
        } else if node.in_upper() {
            self.upper_object(node, OFlags::PATH | OFlags::NOFOLLOW)?
                .1
                .attr
        } else {
            let lowers = node.state().lowers.clone();
            let lower = self.lowers.spokesman(&lowers)?;
            self.lowers.layer(lower.layer).attr(&lower.node)?
        };
        if node.in_upper() && !node.data_in_upper() {
            let lower = node.state().lowers.first().cloned();
            if let Some(lower) = lower {
                attr.blocks = self.lowers.layer(lower.layer).attr(&lower.node)?.blocks;
            }
        }
        self.finish_attr(node, &mut attr)?;
        Ok(attr)
    }

    /// Attributes of a node by a name it is known by, whose directory is locked: no name can move meanwhile.
    pub(super) fn named_attr(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        node: &Arc<Node>,
    ) -> Result<(Arc<Node>, Attr)> {
        let key = node.state().upper.as_ref().map(|upper| upper.key);
        let named = node.has_link(dir, name).is_some_and(|link| link.in_upper);
        if let Some(key) = key
            && named
            && node.data_in_upper()
        {
            let fd = self.upper_dir(dir)?;
            if let Some(mut stat) = host::stat_at(fd.as_fd(), name)?
                && stat.key == key
            {
                self.show_at(fd.as_fd(), name, &mut stat.attr)?;
                self.finish_attr(node, &mut stat.attr)?;
                return Ok((Arc::clone(node), stat.attr));
            }
        }
        Ok((Arc::clone(node), self.attr_of(node)?))
    }

    /// Turns a layer's attributes into the mount's: link counts and, with a mapping, owners differ.
    pub(super) fn finish_attr(&self, node: &Arc<Node>, attr: &mut Attr) -> Result<()> {
        self.ids.show(attr);
        if node.is_dir() && self.static_nlink {
            attr.nlink = 1;
        } else if node.is_dir() {
            let merged = node.state().lowers.len() + usize::from(node.in_upper()) > 1;
            if merged {
                // As the kernel's overlayfs: counting the subdirectories of a merged directory would mean reading it.
                attr.nlink = 1;
            }
        } else if node.in_upper() {
            if node
                .state()
                .upper
                .as_ref()
                .is_some_and(|u| u.index.is_some())
            {
                attr.nlink = self.indexed_nlink(node)?;
            }
        } else if node.is_removed() {
            attr.nlink = 0;
        }
        Ok(())
    }

    /// Link count of a file whose names are partly in the lower.
    pub(super) fn indexed_nlink(&self, node: &Arc<Node>) -> Result<u32> {
        let (fd, stat) = self.upper_object(node, OFlags::PATH | OFlags::NOFOLLOW)?;
        let mark = self.some_upper()?.mark_of(fd.as_fd(), NLINK_MARK)?;
        let Some((base, offset)) = mark.as_deref().and_then(parse_nlink) else {
            return Ok(stat.attr.nlink);
        };
        let real = match base {
            NlinkBase::Upper => stat.attr.nlink,
            NlinkBase::Lower => {
                let lower = node.state().lowers.first().cloned();
                match lower {
                    Some(lower) => self.lowers.layer(lower.layer).attr(&lower.node)?.nlink,
                    // Without the lower the true count is not known; one too many never loses the file.
                    None => stat.attr.nlink,
                }
            }
        };
        Ok(u32::try_from(i64::from(real) + offset).unwrap_or(0))
    }

    /// Before a name of an indexed file comes or goes in the upper: from now on the mount's link count follows the
    /// upper inode's.
    pub(super) fn base_nlink_on_upper(&self, node: &Arc<Node>) -> Result<()> {
        let now = self.indexed_nlink(node)?;
        let (fd, stat) = self.upper_object(node, OFlags::PATH | OFlags::NOFOLLOW)?;
        let offset = i64::from(now) - i64::from(stat.attr.nlink);
        self.writable()?
            .mark(fd.as_fd(), NLINK_MARK, format!("U{offset:+}").as_bytes())
    }

    pub fn setattr(&self, caller: Caller, node: NodeId, set: &SetAttr) -> Result<Attr> {
        let node = self.table.get(node)?;
        self.writable()?;
        if let (
            SetAttr {
                perm: None,
                uid: None,
                gid: None,
                size: None,
                atime: None,
                ..
            },
            Some(SetTime::At(mtime)),
        ) = (set, set.mtime)
        {
            // With write-back the kernel tells the times of every file whose name came or went. They are mostly what they
            // were, and no reason to copy a file up, least of all one that was just removed.
            let attr = self.attr_of(&node)?;
            if attr.mtime == mtime {
                return Ok(attr);
            }
        }
        let fd = if let Some(size) = set.size {
            match node.kind {
                FileKind::Regular => {}
                FileKind::Directory => return Err(Errno::ISDIR),
                _ => return Err(Errno::INVAL),
            }
            if size > i64::MAX as u64 {
                return Err(Errno::FBIG);
            }
            // What is cut off need not be copied first.
            self.copy_up(&node, Extent::UpTo(size))?;
            let file = self.open_file(&node, true)?;
            self.changed_by(caller, &node)?;
            rustix::fs::ftruncate(file.file.fd().ok_or(Errno::BADF)?, size)?;
            self.open_upper_or_path(&node)?
        } else {
            self.copied_up(&node)?
        };
        let fd = fd.as_fd();
        let uid = set.uid.map(|uid| self.ids.uid_on_disk(uid)).transpose()?;
        let gid = set.gid.map(|gid| self.ids.gid_on_disk(gid)).transpose()?;
        let given = self.give((fd, node.kind), uid, gid, set.perm);
        self.rules_changed(&node);
        given?;
        if set.atime.is_some() || set.mtime.is_some() {
            set_times(fd, time_spec(set.atime), time_spec(set.mtime))?;
        }
        self.open_attr(&node, fd)
    }

    /// A descriptor of a node's upper object, if one is open.
    pub(super) fn open_upper(&self, node: &Arc<Node>) -> Option<Arc<OwnedFd>> {
        if node.is_dir() {
            return node.in_upper().then(|| self.upper_dir(node).ok()).flatten();
        }
        match self.files.get(&node.id.0)? {
            OpenFile {
                file: LayerFile::Fd(fd),
                upper: true,
                ..
            } => Some(fd),
            _ => None,
        }
    }

    /// The same; opened as an `O_PATH` descriptor if none is.
    pub(super) fn open_upper_or_path(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        match self.open_upper(node) {
            Some(open) => Ok(open),
            None => self.upper_path(node).map(Arc::new),
        }
    }

    /// Attributes of a node whose upper object is open as `fd`.
    fn open_attr(&self, node: &Arc<Node>, fd: BorrowedFd<'_>) -> Result<Attr> {
        if !node.data_in_upper() {
            return self.attr_of(node);
        }
        let mut attr = self.stat(fd)?.attr;
        self.finish_attr(node, &mut attr)?;
        Ok(attr)
    }

    /// Inode flags (`FS_*_FL`, chattr) of a file or directory. A stored lower has none.
    pub fn flags(&self, node: NodeId) -> Result<u32> {
        let node = self.table.get(node)?;
        let flags = match self.flagged(&node)? {
            Some(fd) => rustix::fs::ioctl_getflags(fd)?.bits(),
            None => 0,
        };
        Ok(flags)
    }

    /// Sets inode flags, as far as the upper's file system has them.
    pub fn set_flags(&self, node: NodeId, flags: u32) -> Result<()> {
        let node = self.table.get(node)?;
        self.writable()?;
        self.copy_up(&node, Extent::Metadata)?;
        let fd = self.flagged(&node)?.ok_or(Errno::NOTTY)?;
        rustix::fs::ioctl_setflags(fd, rustix::fs::IFlags::from_bits_retain(flags))
    }

    /// What `FS_IOC_FSGETXATTR` says. The kernel asks for it before it lets anybody set inode flags.
    pub fn fsxattr(&self, node: NodeId) -> Result<FsXattr> {
        let node = self.table.get(node)?;
        match self.flagged(&node)? {
            Some(fd) => sys::fsxattr(fd.as_fd()),
            None => Ok(FsXattr::default()),
        }
    }

    /// `FS_IOC_FSSETXATTR`, as far as the upper's file system can.
    pub fn set_fsxattr(&self, node: NodeId, value: &FsXattr) -> Result<()> {
        let node = self.table.get(node)?;
        self.writable()?;
        self.copy_up(&node, Extent::Metadata)?;
        let fd = self.flagged(&node)?.ok_or(Errno::NOTTY)?;
        sys::set_fsxattr(fd.as_fd(), value)
    }

    /// A descriptor of the object that carries a node's inode flags.
    fn flagged(&self, node: &Arc<Node>) -> Result<Option<OwnedFd>> {
        if !matches!(node.kind, FileKind::Regular | FileKind::Directory) {
            return Err(Errno::NOTTY);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        if node.in_upper() {
            return Ok(Some(self.upper_object(node, flags)?.0));
        }
        let lower = node.state().lowers.first().cloned().ok_or(Errno::STALE)?;
        self.lowers.layer(lower.layer).open_flags(&lower.node)
    }

    pub fn readlink(&self, node: NodeId) -> Result<OsString> {
        let node = self.table.get(node)?;
        if node.kind != FileKind::Symlink {
            return Err(Errno::INVAL);
        }
        if node.in_upper() {
            return host::read_link_fd(self.upper_path(&node)?.as_fd());
        }
        let lower = node.state().lowers.first().cloned().ok_or(Errno::STALE)?;
        self.lowers.layer(lower.layer).read_link(&lower.node)
    }

    pub fn statfs(&self) -> Result<FsStat> {
        let Some(upper) = &self.upper else {
            // Nothing can be written: as full as a CD-ROM.
            return Ok(FsStat {
                blocks: 0,
                bfree: 0,
                bavail: 0,
                files: 0,
                ffree: 0,
                bsize: 4096,
                namelen: 255,
                frsize: 4096,
            });
        };
        let s = rustix::fs::fstatvfs(&**upper.root())?;
        Ok(FsStat {
            blocks: s.f_blocks,
            bfree: s.f_bfree,
            bavail: s.f_bavail,
            files: s.f_files,
            ffree: s.f_ffree,
            bsize: u32::try_from(s.f_bsize).unwrap_or(4096),
            namelen: 255,
            frsize: u32::try_from(s.f_frsize).unwrap_or(4096),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NlinkBase {
    Upper,
    Lower,
}

fn parse_nlink(value: &[u8]) -> Option<(NlinkBase, i64)> {
    let base = match value.first()? {
        b'U' => NlinkBase::Upper,
        b'L' => NlinkBase::Lower,
        _ => return None,
    };
    let offset: i64 = std::str::from_utf8(&value[1..]).ok()?.parse().ok()?;
    (offset.unsigned_abs() <= u64::from(u32::MAX)).then_some((base, offset))
}

/// chown of an open object, symlinks themselves.
pub(super) fn set_owner(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    // u32::MAX means "leave alone" to the system call: as an id it is invalid.
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::INVAL);
    }
    rustix::fs::chownat(
        fd,
        c"",
        uid.map(Uid::from_raw),
        gid.map(Gid::from_raw),
        AtFlags::EMPTY_PATH,
    )
}

/// chmod of an open object that is no symlink.
pub(super) fn set_perm(fd: BorrowedFd<'_>, perm: u32) -> Result<()> {
    let mode = Mode::from_raw_mode(perm & 0o7777);
    host::by_fd_or_path(
        fd,
        || rustix::fs::fchmod(fd, mode),
        |path| rustix::fs::chmod(path, mode),
    )
}

fn time_spec(set: Option<SetTime>) -> Timespec {
    match set {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        Some(SetTime::At(t)) => at(t),
    }
}

/// As the system calls want it.
pub(super) fn at(t: Timestamp) -> Timespec {
    Timespec {
        tv_sec: t.secs,
        tv_nsec: t.nanos.min(999_999_999).into(),
    }
}

/// Leaves a time as it is.
pub(super) const OMIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_OMIT,
};

/// utimens of an open object, symlinks themselves.
pub(super) fn set_times(fd: BorrowedFd<'_>, atime: Timespec, mtime: Timespec) -> Result<()> {
    let times = Timestamps {
        last_access: atime,
        last_modification: mtime,
    };
    match rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH) {
        // Kernels before 5.8 take no empty path here; the descriptor's own path never ends in a symlink to follow.
        Err(Errno::INVAL | Errno::NOENT) => rustix::fs::utimensat(
            rustix::fs::CWD,
            host::proc_path(fd),
            &times,
            AtFlags::empty(),
        ),
        other => other,
    }
}

/// Restores the modification time of a directory that got an entry without having changed for anyone.
pub(super) fn restore_mtime(dir: BorrowedFd<'_>, mtime: Timestamp) -> Result<()> {
    set_times(dir, OMIT, at(mtime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nlink_marks() {
        for (text, want) in [
            ("U+0", Some((NlinkBase::Upper, 0))),
            ("U-1", Some((NlinkBase::Upper, -1))),
            ("L+2", Some((NlinkBase::Lower, 2))),
            ("", None),
            ("U", None),
            ("X+1", None),
            ("U+99999999999", None),
            ("U+1x", None),
        ] {
            assert_eq!(parse_nlink(text.as_bytes()), want, "{text}");
        }
    }
}
