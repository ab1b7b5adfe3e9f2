//! Data. I/O is by node: the file behind it is opened when first needed and kept for the next request; once a node is
//! copied up nobody reads the old file any more.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::attrs;
use super::bytes::write_all;
use super::copyup::Extent;
use super::engine::{OpenFile, Overlay};
use super::node::{Node, lock};
use super::{Caller, NodeId, Result};
use crate::layer::{LayerFile, host};
use crate::meta::FileKind;

/// Most one `copy_file_range` moves when it goes through memory.
const COPY_BUFFER: usize = 1 << 20;

impl Overlay {
    fn regular(&self, node: NodeId) -> Result<Arc<Node>> {
        let node = self.table.get(node)?;
        match node.kind {
            FileKind::Regular => Ok(node),
            FileKind::Directory => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    /// Checks that the node can be opened so (EROFS on a read-only mount, ESTALE if unknown). Copies nothing up.
    pub fn open(&self, node: NodeId, write: bool) -> Result<()> {
        let node = self.table.get(node)?;
        if write {
            self.writable()?;
            if node.is_dir() {
                return Err(Errno::ISDIR);
            }
        }
        Ok(())
    }

    /// The file behind a node; with `write` the node is in the upper already.
    pub(super) fn open_file(&self, node: &Arc<Node>, write: bool) -> Result<OpenFile> {
        if let Some(open) = self.files.get(&node.id.0)
            && open.upper == node.data_in_upper()
            && (open.writable || !write)
        {
            return Ok(open);
        }
        let upper = node.data_in_upper();
        let open = if upper {
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
            let (fd, writable) = match self.upper_file(node, OFlags::RDWR | flags) {
                Ok(fd) => (fd, true),
                // Immutable or append-only, or a program running straight from the upper.
                Err(Errno::PERM | Errno::ACCESS | Errno::TXTBSY | Errno::ROFS) if !write => {
                    (self.upper_file(node, OFlags::RDONLY | flags)?, false)
                }
                Err(e) => return Err(e),
            };
            OpenFile {
                file: LayerFile::Fd(Arc::new(fd)),
                upper,
                writable,
            }
        } else {
            let lower = node.state().lowers.first().cloned().ok_or(Errno::STALE)?;
            let file = self.lowers.layer(lower.layer).open(&lower.node)?;
            OpenFile {
                file,
                upper,
                writable: false,
            }
        };
        self.files.insert(node.id.0, open.clone());
        Ok(open)
    }

    /// A file of the upper opened for those who have it open in the mount already, whatever its mode is by now.
    pub(super) fn upper_file(&self, node: &Arc<Node>, flags: OFlags) -> Result<OwnedFd> {
        match self.upper_object(node, flags) {
            Ok((fd, _)) => return Ok(fd),
            Err(Errno::ACCESS) => {}
            Err(e) => return Err(e),
        }
        let path = self.upper_path(node)?;
        let extra = libc::S_IRUSR | libc::S_IWUSR;
        self.some_upper()?.permitted(path.as_fd(), extra, || {
            host::reopen(path.as_fd(), flags - OFlags::NOFOLLOW)
        })
    }

    fn writable_file(&self, node: &Arc<Node>) -> Result<OpenFile> {
        self.copy_up(node, Extent::All)?;
        self.open_file(node, true)
    }

    /// Bytes at `offset`; short only at end of file.
    pub fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let node = self.regular(node)?;
        self.open_file(&node, false)?.file.read_at(offset, buf)
    }

    /// Copies up if need be. `kill_priv`: clear suid, sgid and capabilities, as after a write by an ordinary user.
    pub fn write(&self, node: NodeId, offset: u64, data: &[u8], kill_priv: bool) -> Result<usize> {
        let node = self.regular(node)?;
        let open = self.writable_file(&node)?;
        let fd = open.file.fd().ok_or(Errno::BADF)?;
        if offset
            .checked_add(data.len() as u64)
            .is_none_or(|end| end > i64::MAX as u64)
        {
            return Err(Errno::FBIG);
        }
        write_all(fd, offset, data)?;
        if kill_priv {
            self.kill_priv(&node)?;
        }
        Ok(data.len())
    }

    /// Writes what the transport's cache kept back. There the file's time was set when the bytes were written, so it is not
    /// set again now: a file would otherwise get younger after its last change, and other than what its users were told.
    /// A newer time, if the cache has one, comes as `setattr` afterwards.
    pub fn write_back(
        &self,
        node: NodeId,
        offset: u64,
        data: &[u8],
        kill_priv: bool,
    ) -> Result<usize> {
        let inner = self.regular(node)?;
        let open = self.writable_file(&inner)?;
        let fd = open.file.fd().ok_or(Errno::BADF)?;
        // It has all its data here by now: nobody copies it up any more.
        let _alone = lock(&inner.copy_up);
        let before = host::stat_fd(fd)?.attr.mtime;
        let written = self.write(node, offset, data, kill_priv)?;
        match attrs::restore_mtime(fd, before) {
            // The data is what was asked for.
            Ok(()) | Err(Errno::PERM) => Ok(written),
            Err(e) => Err(e),
        }
    }

    /// Before a change that is not a write: an ordinary user's takes set-id bits along. Who may keep them (CAP_FSETID) is
    /// not told by the transport; root may.
    pub(super) fn changed_by(&self, caller: Caller, node: &Arc<Node>) -> Result<()> {
        if caller.uid == 0 {
            Ok(())
        } else {
            self.kill_priv(node)
        }
    }

    /// Takes from a changed file what would give its next caller rights: suid, sgid (unless it means locking: no group
    /// execute), capabilities.
    pub(super) fn kill_priv(&self, node: &Arc<Node>) -> Result<()> {
        let fd = self.upper_path(node)?;
        let perm = self.stat(fd.as_fd())?.attr.perm;
        let mut keep = perm & !libc::S_ISUID;
        if perm & libc::S_IXGRP != 0 {
            keep &= !libc::S_ISGID;
        }
        if keep != perm {
            self.give((fd.as_fd(), node.kind), None, None, Some(keep))?;
        }
        match host::remove_xattr_fd(fd.as_fd(), std::ffi::OsStr::new("security.capability")) {
            // Without privilege one is told EPERM before it is looked whether there are any; the file system below then
            // takes them from what we write.
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// On disk when it returns, unless the mount is volatile. What is only in a lower is there already.
    pub fn fsync(&self, node: NodeId, datasync: bool) -> Result<()> {
        let node = self.table.get(node)?;
        let Some(upper) = &self.upper else {
            return Ok(());
        };
        if upper.unsynced || !node.in_upper() {
            return Ok(());
        }
        match node.kind {
            FileKind::Regular => {
                let open;
                let own;
                let fd = if node.data_in_upper() {
                    open = self.open_file(&node, false)?;
                    open.file.fd().ok_or(Errno::BADF)?
                } else {
                    own = self.upper_file(&node, OFlags::RDONLY | OFlags::NOFOLLOW)?;
                    own.as_fd()
                };
                if datasync {
                    rustix::fs::fdatasync(fd)
                } else {
                    rustix::fs::fsync(fd)
                }
            }
            FileKind::Directory => rustix::fs::fsync(
                self.upper_object(&node, OFlags::RDONLY | OFlags::DIRECTORY)?
                    .0,
            ),
            _ => Ok(()),
        }
    }

    /// `mode`: `FALLOC_FL_*` bits.
    pub fn fallocate(
        &self,
        caller: Caller,
        node: NodeId,
        mode: u32,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let node = self.regular(node)?;
        let flags = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        let open = self.writable_file(&node)?;
        let fd = open.file.fd().ok_or(Errno::BADF)?;
        self.changed_by(caller, &node)?;
        loop {
            match rustix::fs::fallocate(fd, flags, offset, len) {
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// `whence`: `SEEK_DATA` or `SEEK_HOLE` (others EINVAL). ENXIO at or behind the end.
    pub fn lseek(&self, node: NodeId, offset: u64, whence: u32) -> Result<u64> {
        let node = self.regular(node)?;
        let size = self.attr_of(&node)?.size;
        if offset >= size {
            return Err(Errno::NXIO);
        }
        let file = self.open_file(&node, false)?.file;
        match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => file.next_data(offset)?.ok_or(Errno::NXIO),
            Ok(libc::SEEK_HOLE) => file.next_hole(offset),
            _ => Err(Errno::INVAL),
        }
    }

    /// Copies up to `len` bytes between files (or within one, if the ranges do not overlap); how many it did.
    pub fn copy_file_range(
        &self,
        caller: Caller,
        (from, from_offset): (NodeId, u64),
        (to, to_offset): (NodeId, u64),
        len: u64,
    ) -> Result<usize> {
        let from = self.regular(from)?;
        let to = self.regular(to)?;
        let target = self.writable_file(&to)?;
        self.changed_by(caller, &to)?;
        let source = self.open_file(&from, false)?;
        let target = target.file.fd().ok_or(Errno::BADF)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 30);
        if let Some(fd) = source.file.fd() {
            let (mut a, mut b) = (from_offset, to_offset);
            match rustix::fs::copy_file_range(fd, Some(&mut a), target, Some(&mut b), len) {
                Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS) => {}
                other => return other,
            }
        }
        let mut buf = vec![0; len.min(COPY_BUFFER)];
        let mut done = 0;
        while done < len {
            let want = (len - done).min(buf.len());
            let got = source
                .file
                .read_at(from_offset + done as u64, &mut buf[..want])?;
            if got == 0 {
                break;
            }
            write_all(target, to_offset + done as u64, &buf[..got])?;
            done += got;
        }
        Ok(done)
    }
}
