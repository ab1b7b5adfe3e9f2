//! The merge engine: lower layers and one writable upper seen as one tree. No FUSE in it.
//!
//! All calls take `&self`, may be called from many threads at once, and never
//! panic on any argument. Every node handed out by `lookup`, `create`, `mkdir`, `mknod`, `symlink`, `link` and, when
//! `plus`, `read_dir` (except `.` and `..`) has its lookup count raised by one, to be given back by `forget`.
//! I/O is by node, not by handle: after copy-up every reader sees the new file, and OPEN may be answered ENOSYS.

mod acl;
mod attrs;
mod aufs;
mod backing;
mod bytes;
mod changes;
mod copyup;
mod create;
mod engine;
mod few;
mod foresight;
mod ids;
mod io;
mod listing;
mod node;
mod origin;
mod owner;
mod reach;
mod readdir;
mod remove;
mod rename;
mod resolve;
mod rules;
mod settle;
mod sources;
mod stack;
mod upper;
mod xattr;

pub use aufs::Aufs;
pub use backing::OpenHow;
pub use changes::{Change, ChangeKind};
pub use engine::Overlay;
pub use ids::{IdMap, IdRange};
pub use sources::Source;
pub use stack::NOBODYS;

use std::ffi::OsStr;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::layer::Permissions;
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// How a mount behaves. Words as in the kernel's overlayfs and fuse-overlayfs options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// fsync and syncfs are answered without work; the workdir is marked `incompat/volatile` as the kernel does.
    pub volatile: bool,
    /// The same without the mark: a crash may leave an incomplete upper that looks like a good one. Nor is the upper synced
    /// when the mount ends. With `volatile` too the mark is there, and stays: for an upper that is to be thrown away.
    pub no_fsync: bool,
    /// Use `user.overlay.*` instead of `trusted.overlay.*` (default: by privilege).
    pub userxattr: Option<bool>,
    /// Only look at the upper, which may be a live mount's: it is not locked, the work directory is not emptied, and
    /// every change is answered EROFS.
    pub inspect: bool,
    /// chmod, chown and the like copy no data up (`metacopy`); what was written so can be read in any case.
    pub metacopy: bool,
    pub redirect: Redirect,
    /// Inode numbers fit 32 bits, for programs that cannot take more. They are then not always the same after a remount.
    pub ino32: bool,
    /// All directories show one link.
    pub static_nlink: bool,
    pub ids: IdMap,
    /// Where owners and modes are kept, in the upper and in host directories below.
    pub permissions: Permissions,
    /// What `.wh.` names in the upper are.
    pub aufs: Aufs,
    pub xattrs: Xattrs,
    /// The kernel's overlayfs lies on this mount and keeps its marks so: xattrs of that name are left for it to unescape
    /// (`overlay.overlay.`), so that none that came with a layer can act as a mark.
    pub beneath: Option<Marks>,
}

/// In which xattrs an overlay keeps its marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Marks {
    /// `trusted.overlay.*`
    Trusted,
    /// `user.overlay.*`
    User,
}

/// Which extended attributes the mount has for its users. What it keeps in xattrs itself, and what is copied up, does not
/// depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Xattrs {
    #[default]
    All,
    /// No POSIX ACLs (`noacl`): those of the layers are neither shown nor inherited.
    NoAcl,
    /// None at all (`noxattrs`): EOPNOTSUPP.
    Nothing,
}

/// What becomes of renamed directories that show lowers (`redirect_dir`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Redirect {
    /// They can be renamed; redirects of the upper are followed.
    #[default]
    Upper,
    /// Besides, redirects found in lower host directories are followed (`redirect_dir=on` or `follow`, said aloud).
    All,
    /// EXDEV as from the kernel with `redirect_dir=off`; redirects of the upper are followed.
    Off,
    /// EXDEV, and no redirect is followed.
    Ignore,
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

/// Why a stack of layers cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{what} {path}: {source}", path = path.display())]
    Io {
        what: &'static str,
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    #[error("{0}")]
    Refused(String),
    /// In use by another mount.
    #[error("{0}")]
    Busy(String),
}
