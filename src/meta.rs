//! The vocabulary every room shares: kinds, times, attributes.
//!
//! Names and xattr names are [`std::ffi::OsStr`]: any bytes, never `String`.

use std::fmt;

/// Type of a file, the `S_IFMT` part of `st_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl FileKind {
    /// From the `S_IFMT` bits of a mode; `None` when they name no known type.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFREG => Self::Regular,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFCHR => Self::CharDevice,
            libc::S_IFBLK => Self::BlockDevice,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            _ => return None,
        })
    }

    /// The `S_IFMT` bits.
    pub const fn mode_bits(self) -> u32 {
        match self {
            Self::Regular => libc::S_IFREG,
            Self::Directory => libc::S_IFDIR,
            Self::Symlink => libc::S_IFLNK,
            Self::CharDevice => libc::S_IFCHR,
            Self::BlockDevice => libc::S_IFBLK,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
        }
    }

    pub const fn is_dir(self) -> bool {
        matches!(self, Self::Directory)
    }

    pub const fn is_device(self) -> bool {
        matches!(self, Self::CharDevice | Self::BlockDevice)
    }
}

/// A point in time: seconds since the epoch (may be negative) plus `0..1_000_000_000` nanoseconds,
/// always counted forward, as in `struct timespec`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    pub secs: i64,
    pub nanos: u32,
}

impl Timestamp {
    pub const fn new(secs: i64, nanos: u32) -> Self {
        Self { secs, nanos }
    }

    /// The wall clock's time now.
    pub fn now() -> Self {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Self::new(t.tv_sec, t.tv_nsec as u32)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.secs, self.nanos)
    }
}

/// What `stat` tells of an object, except its inode number, which each room has its own kind of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    pub kind: FileKind,
    /// The low 12 bits of `st_mode`: permissions, set-id and sticky bits.
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes; for a symlink the length of its target.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    pub nlink: u32,
    /// Device number of a device node, as the kernel's `dev_t` (`libc::makedev`), else 0.
    pub rdev: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub blksize: u32,
}

impl Attr {
    /// `st_mode`: kind and permissions.
    pub const fn mode(&self) -> u32 {
        self.kind.mode_bits() | (self.perm & 0o7777)
    }
}
