//! The files behind nodes, for a transport that has the kernel read and write them without asking.
//!
//! Such a file must stay the one behind its node for as long as the node lives. One of the upper does: nothing ever puts
//! another inode in its place. One of a lower does only where nothing can be copied up.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::copyup::Extent;
use super::engine::Overlay;
use super::{Caller, NodeId, Result};
use crate::layer::{Identity, LayerFile};
use crate::meta::FileKind;

/// What a file is opened for, as open(2) has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenHow {
    pub read: bool,
    pub write: bool,
    pub append: bool,
    pub truncate: bool,
}

impl OpenHow {
    /// `flags` are those of open(2).
    pub const fn from_flags(flags: u32) -> Self {
        let flags = flags.cast_signed();
        let access = flags & libc::O_ACCMODE;
        Self {
            read: access != libc::O_WRONLY,
            write: access != libc::O_RDONLY,
            append: flags & libc::O_APPEND != 0,
            truncate: flags & libc::O_TRUNC != 0,
        }
    }
}

impl Overlay {
    /// Opens a node. What is to be written or cut off is copied up now: whoever writes does not tell us. The file that
    /// will be behind the node from now on; `None` where it has none, or may get another one.
    ///
    /// # Errors
    /// As of open(2) on the file itself: EROFS, ETXTBSY, and EPERM for one that is immutable or append-only.
    pub fn open_backing(
        &self,
        caller: Caller,
        node: NodeId,
        how: OpenHow,
    ) -> Result<Option<Arc<OwnedFd>>> {
        self.open(node, how.write || how.truncate)?;
        let node = self.table.get(node)?;
        if node.kind != FileKind::Regular {
            return Ok(None);
        }
        if (how.write || how.truncate) && node.in_upper() {
            refuse_marked(self.open_upper_or_path(&node)?.as_fd(), how)?;
        }
        if how.truncate {
            self.copy_up(&node, Extent::UpTo(0))?;
            let open = self.open_file(&node, true)?;
            self.changed_by(caller, &node)?;
            rustix::fs::ftruncate(open.file.fd().ok_or(Errno::BADF)?, 0)?;
        } else if how.write {
            self.copy_up(&node, Extent::All)?;
        }
        if !node.data_in_upper() && !self.is_read_only() {
            return Ok(None);
        }
        let open = match self.open_file(&node, how.write) {
            Ok(open) => open,
            Err(Errno::PERM) if how.write && how.append => {
                let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW;
                return Ok(Some(Arc::new(self.upper_file(&node, flags)?)));
            }
            Err(e) => return Err(e),
        };
        Ok(match open.file {
            LayerFile::Fd(fd) => Some(fd),
            LayerFile::Stored(_) => None,
        })
    }

    /// Are the node's bytes in the upper? Once they are they stay there.
    pub fn is_in_upper(&self, node: NodeId) -> bool {
        self.table.find(node).is_some_and(|n| n.data_in_upper())
    }

    /// A file that is open for writing is about to be changed by somebody who may not keep its set-id bits.
    pub fn drop_privileges(&self, node: NodeId) -> Result<()> {
        let node = self.table.get(node)?;
        self.copy_up(&node, Extent::All)?;
        self.kill_priv(&node)
    }

    /// A file without a name on the upper's file system, to try out what can be done with the files there. `None`: there is
    /// no upper, but host directories.
    ///
    /// # Errors
    /// ENODATA: no layer has files of its own.
    pub fn backing_sample(&self) -> Result<Option<OwnedFd>> {
        let Some(upper) = self.upper.as_ref().filter(|_| !self.is_read_only()) else {
            let host = |identity: &Identity| matches!(identity, Identity::Host { .. });
            let any = self.lowers.all().any(|(_, lower)| host(&lower.identity));
            return if any { Ok(None) } else { Err(Errno::NODATA) };
        };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let (name, mode) = (upper.temp_name(), Mode::RUSR | Mode::WUSR);
        let file = rustix::fs::openat(upper.work().as_fd(), name.as_os_str(), flags, mode)?;
        upper.remove_work(&name)?;
        Ok(Some(file))
    }
}

/// What open(2) refuses of a file marked immutable or append-only (chattr +i, +a): one that is open already does not tell,
/// nor does the kernel when it writes to one.
fn refuse_marked(file: BorrowedFd<'_>, how: OpenHow) -> Result<()> {
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    let marks = stat.stx_attributes;
    let only_appends = how.append && !how.truncate;
    let refused = marks.contains(StatxAttributes::IMMUTABLE)
        || marks.contains(StatxAttributes::APPEND) && !only_appends;
    if refused { Err(Errno::PERM) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_open() {
        let how = |flags: i32| OpenHow::from_flags(flags.cast_unsigned());
        let read = OpenHow {
            read: true,
            ..OpenHow::default()
        };
        let write = OpenHow {
            write: true,
            ..OpenHow::default()
        };
        assert_eq!(how(libc::O_RDONLY | libc::O_DIRECT), read);
        assert_eq!(how(libc::O_WRONLY), write);
        let both = OpenHow {
            read: true,
            ..write
        };
        assert_eq!(how(libc::O_RDWR), both);
        assert_eq!(
            how(libc::O_RDWR | libc::O_APPEND | libc::O_TRUNC),
            OpenHow {
                append: true,
                truncate: true,
                ..both
            }
        );
        // "Neither read nor write, but ioctl": the kernel asks for both permissions.
        assert_eq!(how(libc::O_ACCMODE), both);
    }
}
