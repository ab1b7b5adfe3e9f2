//! Owner, mode and type of objects in the upper: kept in their inodes, or (`xattr_permissions`) in an xattr beside them.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Result;
use super::attrs::{set_owner, set_perm};
use super::engine::Overlay;
use crate::layer::host::{self, Stat};
use crate::layer::{Permissions, override_stat};
use crate::meta::{Attr, FileKind};

/// Mode of the inodes themselves when what is shown is kept elsewhere: the daemon can use them, whoever it runs as.
const PLAIN_MODE: u32 = 0o755;

impl Overlay {
    /// An open upper object as the mount shows it, but for link counts and id mapping.
    pub(super) fn stat(&self, fd: BorrowedFd<'_>) -> Result<Stat> {
        let mut stat = host::stat_fd(fd)?;
        self.permissions
            .show(&mut stat.attr, |name| host::xattr_fd(fd, name))?;
        Ok(stat)
    }

    /// Puts what is kept in xattrs over the attributes of `name` in the upper directory `dir`.
    pub(super) fn show_at(&self, dir: BorrowedFd<'_>, name: &OsStr, attr: &mut Attr) -> Result<()> {
        if self.permissions == Permissions::Inode {
            return Ok(());
        }
        let path = host::proc_child(dir, name);
        self.permissions
            .show(attr, |xattr| host::xattr_at(path.as_slice(), xattr))
    }

    /// Gives an object of `kind` owner and mode (`None`: as they are). chown takes set-id bits away, as it does on any file system.
    pub(super) fn give(
        &self,
        (fd, kind): (BorrowedFd<'_>, FileKind),
        uid: Option<u32>,
        gid: Option<u32>,
        perm: Option<u32>,
    ) -> Result<()> {
        if uid.is_none() && gid.is_none() && perm.is_none() {
            return Ok(());
        }
        if self.permissions == Permissions::Inode {
            set_owner(fd, uid, gid)?;
            return match perm.filter(|_| kind != FileKind::Symlink) {
                Some(perm) => self.writable()?.set_perm(fd, perm),
                None => Ok(()),
            };
        }
        if host::stat_fd(fd)?.attr.kind == FileKind::Symlink {
            // Its owner cannot be kept beside it.
            let _ = set_owner(fd, uid, gid);
            return Ok(());
        }
        let mut attr = self.stat(fd)?.attr;
        if (uid.is_some() || gid.is_some()) && !attr.kind.is_dir() {
            attr.perm &= !libc::S_ISUID;
            if attr.perm & libc::S_IXGRP != 0 {
                attr.perm &= !libc::S_ISGID;
            }
        }
        attr.uid = uid.unwrap_or(attr.uid);
        attr.gid = gid.unwrap_or(attr.gid);
        attr.perm = perm.unwrap_or(attr.perm);
        if attr.uid == u32::MAX || attr.gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        self.keep(fd, &attr)
    }

    /// Writes owner, mode and type of a new object, all at once.
    pub(super) fn keep(&self, fd: BorrowedFd<'_>, attr: &Attr) -> Result<()> {
        let real = host::stat_fd(fd)?.attr.kind;
        match self.permissions.xattr() {
            Some(name) if real != FileKind::Symlink => {
                set_perm(fd, PLAIN_MODE)?;
                host::set_xattr_fd(
                    fd,
                    name,
                    override_stat::format(attr).as_bytes(),
                    XattrFlags::empty(),
                )
            }
            Some(_) => Ok(()),
            None => {
                set_owner(fd, Some(attr.uid), Some(attr.gid))?;
                if real == FileKind::Symlink {
                    Ok(())
                } else {
                    self.writable()?.set_perm(fd, attr.perm)
                }
            }
        }
    }

    /// What an object of this kind is on disk. Where inodes are not used, what needs privileges to make (devices) or
    /// cannot carry `user.*` xattrs (pipes and sockets too) is an empty file.
    pub(super) fn kind_on_disk(&self, kind: FileKind) -> FileKind {
        match kind {
            FileKind::Regular | FileKind::Directory | FileKind::Symlink => kind,
            _ if self.permissions == Permissions::Inode => kind,
            _ => FileKind::Regular,
        }
    }
}
