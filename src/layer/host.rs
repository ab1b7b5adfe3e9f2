//! Objects of the host's file systems, reached only through descriptors.
//!
//! Everything below a layer's root is opened with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)`:
//! whoever swaps a directory for a symlink while we serve gets ESTALE or ENOENT, never a file outside the tree.
//! Calls that exist only by path (xattrs, chmod of an `O_PATH` descriptor) go through `/proc/self/fd`.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags, XattrFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use super::{ObjectKey, Result};
use crate::meta::{Attr, FileKind, Timestamp};

/// How far one `openat2` goes; longer paths are walked in pieces (`PATH_MAX` is 4096).
const STEP: usize = 3072;
/// Largest value or name list the kernel's xattr calls carry (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_MAX: usize = 64 * 1024;

/// Attributes and identity of a host object.
#[derive(Clone, Debug)]
pub struct Stat {
    pub key: ObjectKey,
    pub attr: Attr,
}

impl Stat {
    /// A character device 0:0: the kernel's whiteout.
    pub fn is_whiteout(&self) -> bool {
        self.attr.kind == FileKind::CharDevice && self.attr.rdev == 0
    }
}

fn from_statx(sx: &Statx) -> Result<Stat> {
    let time = |t: rustix::fs::StatxTimestamp| Timestamp::new(t.tv_sec, t.tv_nsec);
    let mode = u32::from(sx.stx_mode);
    Ok(Stat {
        key: ObjectKey {
            dev: rustix::fs::makedev(sx.stx_dev_major, sx.stx_dev_minor),
            ino: sx.stx_ino,
        },
        attr: Attr {
            kind: FileKind::from_mode(mode).ok_or(Errno::IO)?,
            perm: mode & 0o7777,
            uid: sx.stx_uid,
            gid: sx.stx_gid,
            size: sx.stx_size,
            blocks: sx.stx_blocks,
            nlink: sx.stx_nlink,
            rdev: rustix::fs::makedev(sx.stx_rdev_major, sx.stx_rdev_minor),
            atime: time(sx.stx_atime),
            mtime: time(sx.stx_mtime),
            ctime: time(sx.stx_ctime),
            blksize: sx.stx_blksize,
        },
    })
}

/// `lstat` of `name` in `dir`; `None` when there is none.
pub fn stat_at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Stat>> {
    match rustix::fs::statx(
        dir,
        name,
        AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT,
        StatxFlags::BASIC_STATS,
    ) {
        Ok(sx) => from_statx(&sx).map(Some),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// `fstat`; `O_PATH` descriptors too.
pub fn stat_fd(fd: BorrowedFd<'_>) -> Result<Stat> {
    from_statx(&rustix::fs::statx(
        fd,
        c"",
        AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS,
    )?)
}

fn open_once(dir: BorrowedFd<'_>, path: &OsStr, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // A symlink itself may be opened (O_PATH | O_NOFOLLOW), and NO_SYMLINKS would forbid just that.
    let how = if flags.contains(OFlags::PATH | OFlags::NOFOLLOW) && !path.as_bytes().contains(&b'/')
    {
        ResolveFlags::BENEATH
    } else {
        how
    };
    loop {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, mode, how) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Opens `path` (relative, "" is `root` itself) without leaving `root` or following any symlink.
pub fn open_beneath(root: BorrowedFd<'_>, path: &OsStr, flags: OFlags) -> Result<OwnedFd> {
    let mut rest = path.as_bytes();
    if rest.is_empty() {
        return open_once(root, OsStr::new("."), flags, Mode::empty());
    }
    let mut at: Option<OwnedFd> = None;
    // The last component is opened on its own: it alone may be a symlink.
    while let Some(cut) = rest.iter().take(STEP).rposition(|b| *b == b'/') {
        let (head, tail) = (&rest[..cut], &rest[cut + 1..]);
        let base = at.as_ref().map_or(root, AsFd::as_fd);
        let dir = open_once(
            base,
            OsStr::from_bytes(head),
            OFlags::PATH | OFlags::DIRECTORY,
            Mode::empty(),
        )?;
        at = Some(dir);
        rest = tail;
    }
    open_once(
        at.as_ref().map_or(root, AsFd::as_fd),
        OsStr::from_bytes(rest),
        flags,
        Mode::empty(),
    )
}

/// Opens one name in `dir`.
pub fn open_at(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> Result<OwnedFd> {
    open_once(dir, name, flags, Mode::empty())
}

/// The object behind an `O_PATH` descriptor, opened for I/O.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(proc_path(fd), flags | OFlags::CLOEXEC, Mode::empty())
}

/// `/proc/self/fd/N`, which names the open object itself, whatever its path is by now.
pub fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// `/proc/self/fd/N/NAME`, for calls without an `at` form; use with calls that do not follow a final symlink.
pub fn proc_child(dir: BorrowedFd<'_>, name: &OsStr) -> Vec<u8> {
    let mut path = proc_path(dir).into_bytes();
    path.push(b'/');
    path.extend_from_slice(name.as_bytes());
    path
}

fn grow(first: usize, mut call: impl FnMut(&mut Vec<u8>) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buf = Vec::with_capacity(first);
    loop {
        match call(&mut buf) {
            Ok(_) => return Ok(buf),
            Err(Errno::RANGE) if buf.capacity() < XATTR_MAX => buf.reserve(XATTR_MAX),
            Err(e) => return Err(e),
        }
    }
}

fn absent_is_none(r: Result<Vec<u8>>) -> Result<Option<Vec<u8>>> {
    match r {
        Ok(v) => Ok(Some(v)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// One xattr of the object at `path` (no final symlink followed); `None` when it has none of that name.
pub fn xattr_at<P: Arg + Copy>(path: P, name: &OsStr) -> Result<Option<Vec<u8>>> {
    absent_is_none(grow(256, |buf| {
        rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(buf))
    }))
}

/// By the descriptor itself, or by its path where it is `O_PATH`, with which some calls can do nothing: that they say at once.
pub fn by_fd_or_path<T>(
    fd: BorrowedFd<'_>,
    by_fd: impl FnOnce() -> Result<T>,
    by_path: impl FnOnce(&str) -> Result<T>,
) -> Result<T> {
    match by_fd() {
        Err(Errno::BADF) => by_path(&proc_path(fd)),
        done => done,
    }
}

/// One xattr of an open object, `O_PATH` or not.
pub fn xattr_fd(fd: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Vec<u8>>> {
    use rustix::buffer::spare_capacity;
    absent_is_none(by_fd_or_path(
        fd,
        || {
            grow(256, |buf| {
                rustix::fs::fgetxattr(fd, name, spare_capacity(buf))
            })
        },
        |path| {
            grow(256, |buf| {
                rustix::fs::getxattr(path, name, spare_capacity(buf))
            })
        },
    ))
}

/// All xattr names of an open object, `O_PATH` or not.
pub fn xattr_names_fd(fd: BorrowedFd<'_>) -> Result<Vec<OsString>> {
    use rustix::buffer::spare_capacity;
    names_of(by_fd_or_path(
        fd,
        || grow(256, |buf| rustix::fs::flistxattr(fd, spare_capacity(buf))),
        |path| grow(256, |buf| rustix::fs::listxattr(path, spare_capacity(buf))),
    ))
}

/// All xattr names of `name` in `dir`, of a symlink itself.
pub fn xattr_names_at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Vec<OsString>> {
    let path = proc_child(dir, name);
    names_of(grow(256, |buf| {
        rustix::fs::llistxattr(path.as_slice(), rustix::buffer::spare_capacity(buf))
    }))
}

fn names_of(list: Result<Vec<u8>>) -> Result<Vec<OsString>> {
    Ok(absent_is_none(list)?
        .unwrap_or_default()
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(|n| OsString::from_vec(n.to_vec()))
        .collect())
}

/// Sets an xattr of an open object.
pub fn set_xattr_fd(
    fd: BorrowedFd<'_>,
    name: &OsStr,
    value: &[u8],
    flags: XattrFlags,
) -> Result<()> {
    by_fd_or_path(
        fd,
        || rustix::fs::fsetxattr(fd, name, value, flags),
        |path| rustix::fs::setxattr(path, name, value, flags),
    )
}

/// Removes an xattr of an open object.
pub fn remove_xattr_fd(fd: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    by_fd_or_path(
        fd,
        || rustix::fs::fremovexattr(fd, name),
        |path| rustix::fs::removexattr(path, name),
    )
}

/// One entry as `getdents64` tells it.
#[derive(Clone, Debug)]
pub struct RawEntry {
    pub name: OsString,
    pub ino: u64,
    /// `None` when the file system does not say.
    pub kind: Option<FileKind>,
}

/// All entries of an open directory but `.` and `..`, in the order of the file system.
pub fn read_dir(dir: BorrowedFd<'_>) -> Result<Vec<RawEntry>> {
    use rustix::fs::FileType;
    let fd = open_once(
        dir,
        OsStr::new("."),
        OFlags::RDONLY | OFlags::DIRECTORY,
        Mode::empty(),
    )?;
    let mut buf = vec![MaybeUninit::uninit(); 64 * 1024];
    let mut iter = rustix::fs::RawDir::new(fd, &mut buf);
    let mut out = Vec::new();
    while let Some(entry) = iter.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        out.push(RawEntry {
            name: OsString::from_vec(name.to_vec()),
            ino: entry.ino(),
            kind: match entry.file_type() {
                FileType::RegularFile => Some(FileKind::Regular),
                FileType::Directory => Some(FileKind::Directory),
                FileType::Symlink => Some(FileKind::Symlink),
                FileType::CharacterDevice => Some(FileKind::CharDevice),
                FileType::BlockDevice => Some(FileKind::BlockDevice),
                FileType::Fifo => Some(FileKind::Fifo),
                FileType::Socket => Some(FileKind::Socket),
                FileType::Unknown => None,
            },
        });
    }
    Ok(out)
}

/// A symlink's target, by an `O_PATH` descriptor of the symlink.
pub fn read_link_fd(fd: BorrowedFd<'_>) -> Result<OsString> {
    Ok(OsString::from_vec(
        rustix::fs::readlinkat(fd, c"", Vec::new())?.into_bytes(),
    ))
}
