//! How much of a finished copy must be on disk before a name shows it.
//!
//! After a crash a name shows the old object or the whole copy, never a part of it. An fsync of each copy gives that, as in
//! the kernel's overlayfs; but it also commits the journal and empties the disk's cache, which takes milliseconds, for
//! each file. Where a file system's changes become durable strictly in the order they were made, waiting until the data
//! is written is enough. There fsync is two steps: write the data and wait for it; then have the journal committed up to
//! the last change of the file (its blocks, its size). After the first step these changes have been made, or belong to a
//! transaction that the name cannot come before; so whatever commits the name has committed them, and the commit empties
//! the disk's cache first. docs/upper-format.md says which file systems these are, and why.

use std::os::fd::BorrowedFd;

use rustix::fs::FsWord;
use rustix::io::Errno;

use super::Result;
use crate::sys;

const EXT4_MAGIC: FsWord = 0xef53;
const XFS_MAGIC: FsWord = 0x5846_5342;
/// Files made in this directory have their data on a realtime device, whose cache the log does not empty
/// (`FS_XFLAG_RTINHERIT`, linux/fs.h).
const REALTIME_INHERITED: u32 = 0x100;
/// This file's are (`FS_XFLAG_REALTIME`).
const REALTIME: u32 = 0x1;

/// What is done with a copy before it gets its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settle {
    /// Nothing: the mount was asked not to sync.
    Not,
    /// Its data is written and waited for, unless it is on a realtime device, which it can be on XFS.
    Written { xfs: bool },
    /// All of it is made durable.
    Synced,
}

impl Settle {
    /// What a file system needs on which `dir`, open for reading, is.
    pub fn on(dir: BorrowedFd<'_>) -> Self {
        of_file_system(dir).unwrap_or(Self::Synced)
    }

    /// To be called when the data of `file` is complete: what will be waited for starts now. An error is the file's end:
    /// ext4 may have thrown the data away, and would not tell again.
    pub fn begin(self, file: BorrowedFd<'_>) -> Result<()> {
        match self {
            Self::Not | Self::Synced => Ok(()),
            Self::Written { .. } => sys::start_writing(file).or_else(unless_forbidden),
        }
    }

    /// To be called when data and metadata of `file` are complete, before it gets its name. `has_data`: that some was
    /// written.
    pub fn settle(self, file: BorrowedFd<'_>, has_data: bool) -> Result<()> {
        match self {
            Self::Not => Ok(()),
            Self::Written { .. } if !has_data => Ok(()),
            // Since the mount began the work directory may have been told to put its files on a realtime device.
            Self::Written { xfs: true } if !flags(file).is_ok_and(|all| all & REALTIME == 0) => {
                rustix::fs::fsync(file)
            }
            Self::Written { .. } => match sys::write_out(file) {
                Err(error) => {
                    unless_forbidden(error)?;
                    rustix::fs::fsync(file)
                }
                done => done,
            },
            Self::Synced => rustix::fs::fsync(file),
        }
    }
}

/// A seccomp filter that knows fsync only forbids the other call.
fn unless_forbidden(error: Errno) -> Result<()> {
    match error {
        Errno::NOSYS | Errno::PERM => Ok(()),
        error => Err(error),
    }
}

/// `fsx_xflags` of an object open for reading.
fn flags(file: BorrowedFd<'_>) -> Result<u32> {
    let raw = sys::fsxattr(file)?;
    raw.first_chunk()
        .map(|first| u32::from_ne_bytes(*first))
        .ok_or(Errno::IO)
}

fn of_file_system(dir: BorrowedFd<'_>) -> Result<Settle> {
    let (in_order, xfs) = match rustix::fs::fstatfs(dir)?.f_type {
        EXT4_MAGIC => (is_ordered_ext4(&block_device(dir)?), false),
        XFS_MAGIC => (flags(dir)? & REALTIME_INHERITED == 0, true),
        _ => (false, false),
    };
    Ok(if in_order {
        Settle::Written { xfs }
    } else {
        Settle::Synced
    })
}

/// The kernel's name of the device below the file system of `dir`.
fn block_device(dir: BorrowedFd<'_>) -> Result<String> {
    let dev = rustix::fs::fstat(dir)?.st_dev;
    let link = format!(
        "/sys/dev/block/{}:{}",
        rustix::fs::major(dev),
        rustix::fs::minor(dev)
    );
    let path = rustix::fs::readlink(link, Vec::new())?;
    let path = path.to_str().map_err(|_| Errno::ILSEQ)?;
    Ok(path.rsplit('/').next().unwrap_or(path).to_owned())
}

/// Data before metadata (`data=ordered`), and a journal inside the file system: with one elsewhere the commit would empty
/// the cache of the wrong disk. Neither changes while it is mounted. What cannot be read does not count.
fn is_ordered_ext4(device: &str) -> bool {
    let options = std::fs::read_to_string(format!("/proc/fs/ext4/{device}/options"));
    let inside = |name: &str| {
        name.strip_prefix(device)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|inode| inode.parse::<u32>().is_ok())
    };
    options.is_ok_and(|all| all.lines().any(|option| option == "data=ordered"))
        && std::fs::read_dir("/proc/fs/jbd2").is_ok_and(|journals| {
            journals
                .filter_map(std::result::Result::ok)
                .any(|journal| journal.file_name().to_str().is_some_and(inside))
        })
}
