//! The merge engine: lower layers and one writable upper seen as one tree. No FUSE in it.
//!
//! SKELETON: the calls the transport builds on. All take `&self`, may be called from many threads at once, and never
//! panic on any argument. Every node handed out by `lookup`, `create`, `mkdir`, `mknod`, `symlink`, `link` and, when
//! `plus`, `read_dir` (except `.` and `..`) has its lookup count raised by one, to be given back by `forget`.
//! I/O is by node, not by handle: after copy-up every reader sees the new file, and OPEN may be answered ENOSYS.

use std::ffi::{OsStr, OsString};

use rustix::io::Errno;

use crate::meta::{Attr, FileKind, Timestamp};

pub type Result<T> = std::result::Result<T, Errno>;

/// Inode number in the mount, and name of the node towards the transport. Stable over copy-up, rename and remount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    pub const ROOT: Self = Self(1);
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// A found or made object. `st_ino` equals `node`, except for the root (node 1).
#[derive(Clone, Debug)]
pub struct Entry {
    pub node: NodeId,
    pub attr: Attr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(Timestamp),
}

/// What `setattr` changes; `None` leaves a field alone. `perm` are the low 12 bits.
#[derive(Clone, Debug, Default)]
pub struct SetAttr {
    pub perm: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub ctime: Option<Timestamp>,
}

/// `renameat2` flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    pub no_replace: bool,
    pub exchange: bool,
    pub whiteout: bool,
}

/// One item of `read_dir`.
pub struct DirItem<'a> {
    pub name: &'a OsStr,
    pub ino: NodeId,
    pub kind: FileKind,
    /// Give this back as `offset` to go on after this item.
    pub next_offset: u64,
    /// With `plus`: the looked-up entry (`None` for `.`, `..` and what could not be read).
    pub entry: Option<&'a Entry>,
}

#[derive(Clone, Copy, Debug)]
pub struct FsStat {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrSet {
    Any,
    /// `XATTR_CREATE`
    Create,
    /// `XATTR_REPLACE`
    Replace,
}

pub struct Overlay {}

#[allow(unused_variables)]
impl Overlay {
    /// `None`: no such name (may be cached as a negative entry).
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Option<Entry>> { unimplemented!() }
    pub fn forget(&self, node: NodeId, count: u64) { unimplemented!() }
    pub fn getattr(&self, node: NodeId) -> Result<Attr> { unimplemented!() }
    pub fn setattr(&self, caller: Caller, node: NodeId, set: &SetAttr) -> Result<Attr> { unimplemented!() }
    pub fn readlink(&self, node: NodeId) -> Result<OsString> { unimplemented!() }

    /// `mode` is the whole `st_mode` with the umask already applied by the kernel (or to be applied: `umask`, when the
    /// directory has no default ACL). `rdev` as `dev_t`.
    pub fn mknod(&self, caller: Caller, parent: NodeId, name: &OsStr, mode: u32, umask: u32, rdev: u64) -> Result<Entry> { unimplemented!() }
    /// Makes a regular file; fails with EEXIST if the name is there.
    pub fn create(&self, caller: Caller, parent: NodeId, name: &OsStr, mode: u32, umask: u32) -> Result<Entry> { unimplemented!() }
    pub fn mkdir(&self, caller: Caller, parent: NodeId, name: &OsStr, mode: u32, umask: u32) -> Result<Entry> { unimplemented!() }
    pub fn symlink(&self, caller: Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry> { unimplemented!() }
    pub fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> { unimplemented!() }
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> { unimplemented!() }
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> { unimplemented!() }
    pub fn rename(&self, parent: NodeId, name: &OsStr, new_parent: NodeId, new_name: &OsStr, flags: RenameFlags) -> Result<()> { unimplemented!() }

    /// Checks that the node can be opened so (EROFS on a read-only mount, EISDIR, …). Copies nothing up.
    pub fn open(&self, node: NodeId, write: bool) -> Result<()> { unimplemented!() }
    /// Bytes at `offset`; short only at end of file.
    pub fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> { unimplemented!() }
    /// Copies up if need be. `kill_priv`: clear suid, sgid and capabilities, as after a write by an ordinary user.
    pub fn write(&self, node: NodeId, offset: u64, data: &[u8], kill_priv: bool) -> Result<usize> { unimplemented!() }
    pub fn fsync(&self, node: NodeId, datasync: bool) -> Result<()> { unimplemented!() }
    /// `mode`: `FALLOC_FL_*` bits.
    pub fn fallocate(&self, node: NodeId, mode: u32, offset: u64, len: u64) -> Result<()> { unimplemented!() }
    /// `whence`: `SEEK_DATA` or `SEEK_HOLE` (others EINVAL).
    pub fn lseek(&self, node: NodeId, offset: u64, whence: u32) -> Result<u64> { unimplemented!() }
    pub fn copy_file_range(&self, from: NodeId, from_offset: u64, to: NodeId, to_offset: u64, len: u64) -> Result<usize> { unimplemented!() }

    /// Calls `sink` for each entry after `offset` (0: from the start) until it answers `false` (item not taken) or the
    /// directory ends. Entries neither made nor removed since offset 0 come exactly once. When `plus`, an item that
    /// `sink` refuses does not keep its lookup count.
    pub fn read_dir(&self, node: NodeId, offset: u64, plus: bool, sink: &mut dyn FnMut(DirItem<'_>) -> bool) -> Result<()> { unimplemented!() }

    pub fn getxattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>> { unimplemented!() }
    /// Names, each followed by NUL, as `listxattr(2)`.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> { unimplemented!() }
    pub fn setxattr(&self, node: NodeId, name: &OsStr, value: &[u8], how: XattrSet) -> Result<()> { unimplemented!() }
    pub fn removexattr(&self, node: NodeId, name: &OsStr) -> Result<()> { unimplemented!() }

    pub fn statfs(&self) -> Result<FsStat> { unimplemented!() }
    /// The transport is going: flush what must be (syncfs unless volatile), give up everything.
    pub fn shutdown(&self) { unimplemented!() }
    pub fn is_read_only(&self) -> bool { unimplemented!() }
}

/// How a mount behaves. Words as in the kernel's overlayfs and fuse-overlayfs options.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// fsync and syncfs are answered without work; the workdir is marked `incompat/volatile` as the kernel does.
    pub volatile: bool,
    /// Use `user.overlay.*` instead of `trusted.overlay.*` (default: by privilege).
    pub userxattr: Option<bool>,
}

/// What to merge.
pub struct Stack {
    /// Topmost first.
    pub lowers: Vec<std::sync::Arc<dyn crate::layer::Layer>>,
    pub upper: Option<UpperDirs>,
}

/// The writable part. Both on one file system; `workdir` empty or left by an earlier mount.
#[derive(Clone, Debug)]
pub struct UpperDirs {
    pub upper: std::path::PathBuf,
    pub work: std::path::PathBuf,
}

impl Overlay {
    /// Opens the upper, empties a stale workdir, and is ready to serve. The error's text is for people.
    pub fn new(stack: Stack, options: &Options) -> std::result::Result<Self, OpenError> { let _ = (stack, options); unimplemented!() }
}

/// Why a stack of layers cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{what} {path}: {source}", path = path.display())]
    Io { what: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("{0}")]
    Refused(String),
}

/// One change of the upper against the lowers, as `docker diff` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    Added,
    Changed,
    Deleted,
}

#[derive(Clone, Debug)]
pub struct Change {
    pub kind: ChangeKind,
    /// From the mount's root, without a leading slash.
    pub path: OsString,
    /// What is there now (`None` for `Deleted`); its lookup count is held until the walk moves on.
    pub entry: Option<Entry>,
    /// A directory that hides everything of the lowers (it replaced what was there).
    pub opaque: bool,
}

impl Overlay {
    /// What differs from the lowers, parents before children, siblings in byte order, a whiteout before its siblings'
    /// contents in order too. Reads upper and lowers; changes nothing.
    pub fn changes(&self, sink: &mut dyn FnMut(&Change) -> std::io::Result<()>) -> std::io::Result<()> { let _ = sink; unimplemented!() }
}
