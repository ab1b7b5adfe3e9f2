//! Requests as the kernel writes them (linux/fuse.h, protocol 7.45): a head, the words of one operation, and names or
//! data behind them. Bytes in, values out; total: whatever the bytes are, the outcome is a value or `None`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::door::Door;
use crate::meta::Timestamp;
use crate::overlay::{Caller, NodeId, SetAttr, SetTime};

/// Bytes of `struct fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// Bytes of `struct fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// Bytes of the largest structure of an operation ([`Head::words`]).
pub const MOST_WORDS: usize = 88;

const NANOS_PER_SEC: u32 = 1_000_000_000;

/// `enum fuse_opcode`: those that are known here.
mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
}

/// `FATTR_*`: which fields of a SETATTR count.
mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
}

/// `FUSE_FSYNC_FDATASYNC`
const FSYNC_FDATASYNC: u32 = 1 << 0;

/// Who asks for what, of which node.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub opcode: u32,
    /// The request's own number, to be given back.
    pub unique: u64,
    /// The node's number on the wire.
    pub number: u64,
    pub node: NodeId,
    pub caller: Caller,
}

impl Head {
    /// The node is what it is where the outer root is the merged one: see [`Head::behind`].
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let _len = fields.u32()?;
        let opcode = fields.u32()?;
        let unique = fields.u64()?;
        let number = fields.u64()?;
        let caller = Caller {
            uid: fields.u32()?,
            gid: fields.u32()?,
            pid: fields.u32()?,
        };
        // Lengths of extensions, of which none is negotiated.
        fields.u32()?;
        Some(Self {
            opcode,
            unique,
            number,
            node: Door::None.node(number),
            caller,
        })
    }

    /// As a mount's door wants its numbers understood.
    pub fn behind(self, door: Door) -> Self {
        Self {
            node: door.node(self.number),
            ..self
        }
    }

    /// Is it one that the thread which takes it does not answer itself?
    pub const fn is_answered_later(&self) -> bool {
        self.opcode == opcode::LSEEK
    }

    pub const fn wants_no_answer(&self) -> bool {
        matches!(self.opcode, opcode::FORGET | opcode::BATCH_FORGET)
    }

    /// The kernel takes leave.
    pub const fn is_the_last(&self) -> bool {
        self.opcode == opcode::DESTROY
    }

    /// Bytes of the operation's own structure, between the head and the rest.
    pub const fn words(&self) -> usize {
        match self.opcode {
            opcode::FORGET
            | opcode::MKDIR
            | opcode::RENAME
            | opcode::LINK
            | opcode::OPEN
            | opcode::SETXATTR
            | opcode::GETXATTR
            | opcode::LISTXATTR
            | opcode::OPENDIR
            | opcode::BATCH_FORGET => 8,
            opcode::GETATTR
            | opcode::MKNOD
            | opcode::RENAME2
            | opcode::FSYNC
            | opcode::FSYNCDIR
            | opcode::CREATE
            | opcode::TMPFILE => 16,
            opcode::RELEASE | opcode::RELEASEDIR | opcode::LSEEK => 24,
            opcode::IOCTL | opcode::FALLOCATE => 32,
            opcode::READ | opcode::WRITE | opcode::READDIR | opcode::READDIRPLUS => 40,
            opcode::COPY_FILE_RANGE => 56,
            opcode::SETATTR => 88,
            _ => 0,
        }
    }
}

/// What is asked for.
#[derive(Debug)]
pub enum Op<'a> {
    Lookup {
        name: &'a OsStr,
    },
    Forget {
        count: u64,
    },
    Forgets(Forgets<'a>),
    GetAttr,
    SetAttr(SetAttr),
    ReadLink,
    Symlink {
        name: &'a OsStr,
        target: &'a OsStr,
    },
    MkNod {
        mode: u32,
        umask: u32,
        /// In the kernel's 32-bit form.
        rdev: u32,
        name: &'a OsStr,
    },
    MkDir {
        mode: u32,
        umask: u32,
        name: &'a OsStr,
    },
    Unlink {
        name: &'a OsStr,
    },
    RmDir {
        name: &'a OsStr,
    },
    Rename {
        name: &'a OsStr,
        new_parent: NodeId,
        new_name: &'a OsStr,
        flags: u32,
    },
    /// The head's node is the directory.
    Link {
        node: NodeId,
        name: &'a OsStr,
    },
    Open {
        /// As for open(2).
        flags: u32,
    },
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        flags: u32,
        data: &'a [u8],
    },
    StatFs,
    Release {
        handle: u64,
    },
    /// RELEASEDIR and DESTROY: there is nothing to let go.
    Nothing,
    FSync {
        datasync: bool,
    },
    FSyncDir {
        datasync: bool,
    },
    SetXattr {
        name: &'a OsStr,
        value: &'a [u8],
        flags: i32,
    },
    GetXattr {
        name: &'a OsStr,
        room: u32,
    },
    ListXattr {
        room: u32,
    },
    RemoveXattr {
        name: &'a OsStr,
    },
    OpenDir,
    ReadDir {
        offset: u64,
        size: u32,
        plus: bool,
    },
    Create {
        /// As for open(2).
        flags: u32,
        mode: u32,
        umask: u32,
        name: &'a OsStr,
    },
    /// A file without a name.
    TmpFile {
        flags: u32,
        mode: u32,
        umask: u32,
    },
    Ioctl {
        cmd: u32,
        data: &'a [u8],
    },
    FAllocate {
        mode: u32,
        offset: u64,
        length: u64,
    },
    LSeek {
        offset: i64,
        whence: i32,
    },
    CopyFileRange {
        from_offset: u64,
        to: NodeId,
        to_offset: u64,
        len: u64,
        flags: u64,
    },
    /// What this side does not do.
    Unknown,
}

impl<'a> Op<'a> {
    /// `words` begins with the operation's own structure (what lies behind it means nothing), `rest` is all that follows
    /// it. `None`: not what the protocol says it looks like.
    pub fn parse(opcode: u32, words: &[u8], rest: &'a [u8]) -> Option<Self> {
        let mut words = Fields(words);
        Some(match opcode {
            opcode::LOOKUP => Self::Lookup { name: name(rest)? },
            opcode::FORGET => Self::Forget {
                count: words.u64()?,
            },
            opcode::BATCH_FORGET => {
                let count = words.u32()? as usize;
                (rest.len() == count.checked_mul(Forgets::EACH)?)
                    .then_some(Self::Forgets(Forgets(rest)))?
            }
            opcode::GETATTR => Self::GetAttr,
            opcode::SETATTR => Self::SetAttr(set_attr(&mut words)?),
            opcode::READLINK => Self::ReadLink,
            opcode::SYMLINK => {
                let (name, target) = two_names(rest)?;
                Self::Symlink { name, target }
            }
            opcode::MKNOD => Self::MkNod {
                mode: words.u32()?,
                rdev: words.u32()?,
                umask: words.u32()?,
                name: name(rest)?,
            },
            opcode::MKDIR => Self::MkDir {
                mode: words.u32()?,
                umask: words.u32()?,
                name: name(rest)?,
            },
            opcode::UNLINK => Self::Unlink { name: name(rest)? },
            opcode::RMDIR => Self::RmDir { name: name(rest)? },
            opcode::RENAME | opcode::RENAME2 => {
                let new_parent = Door::None.node(words.u64()?);
                let flags = match opcode {
                    opcode::RENAME2 => words.u32()?,
                    _ => 0,
                };
                let (name, new_name) = two_names(rest)?;
                Self::Rename {
                    name,
                    new_parent,
                    new_name,
                    flags,
                }
            }
            opcode::LINK => Self::Link {
                node: Door::None.node(words.u64()?),
                name: name(rest)?,
            },
            opcode::OPEN => Self::Open {
                flags: words.u32()?,
            },
            opcode::READ | opcode::READDIR | opcode::READDIRPLUS => {
                let _handle = words.u64()?;
                let offset = words.u64()?;
                let size = words.u32()?;
                match opcode {
                    opcode::READ => Self::Read { offset, size },
                    opcode => Self::ReadDir {
                        offset,
                        size,
                        plus: opcode == opcode::READDIRPLUS,
                    },
                }
            }
            opcode::WRITE => {
                let _handle = words.u64()?;
                let offset = words.u64()?;
                let size = words.u32()? as usize;
                let flags = words.u32()?;
                (size == rest.len()).then_some(Self::Write {
                    offset,
                    flags,
                    data: rest,
                })?
            }
            opcode::STATFS => Self::StatFs,
            opcode::RELEASE => Self::Release {
                handle: words.u64()?,
            },
            opcode::RELEASEDIR | opcode::DESTROY => Self::Nothing,
            opcode::FSYNC | opcode::FSYNCDIR => {
                let _handle = words.u64()?;
                let datasync = words.u32()? & FSYNC_FDATASYNC != 0;
                match opcode {
                    opcode::FSYNC => Self::FSync { datasync },
                    _ => Self::FSyncDir { datasync },
                }
            }
            opcode::SETXATTR => {
                let size = words.u32()? as usize;
                let flags = words.u32()?.cast_signed();
                let (name, value) = name_and_rest(rest)?;
                (size == value.len()).then_some(Self::SetXattr { name, value, flags })?
            }
            opcode::GETXATTR => Self::GetXattr {
                room: words.u32()?,
                name: name(rest)?,
            },
            opcode::LISTXATTR => Self::ListXattr { room: words.u32()? },
            opcode::REMOVEXATTR => Self::RemoveXattr { name: name(rest)? },
            opcode::OPENDIR => Self::OpenDir,
            opcode::CREATE => {
                let flags = words.u32()?;
                Self::Create {
                    flags,
                    mode: words.u32()?,
                    umask: words.u32()?,
                    name: name(rest)?,
                }
            }
            opcode::TMPFILE => {
                let _stand_in = name(rest)?;
                Self::TmpFile {
                    flags: words.u32()?,
                    mode: words.u32()?,
                    umask: words.u32()?,
                }
            }
            opcode::IOCTL => {
                let _handle = words.u64()?;
                let _flags = words.u32()?;
                let cmd = words.u32()?;
                let _pointer = words.u64()?;
                let size = words.u32()? as usize;
                (size == rest.len()).then_some(Self::Ioctl { cmd, data: rest })?
            }
            opcode::FALLOCATE => {
                let _handle = words.u64()?;
                Self::FAllocate {
                    offset: words.u64()?,
                    length: words.u64()?,
                    mode: words.u32()?,
                }
            }
            opcode::LSEEK => {
                let _handle = words.u64()?;
                Self::LSeek {
                    offset: words.u64()?.cast_signed(),
                    whence: words.u32()?.cast_signed(),
                }
            }
            opcode::COPY_FILE_RANGE => {
                let _handle = words.u64()?;
                let from_offset = words.u64()?;
                let to = Door::None.node(words.u64()?);
                let _handle = words.u64()?;
                Self::CopyFileRange {
                    from_offset,
                    to,
                    to_offset: words.u64()?,
                    len: words.u64()?,
                    flags: words.u64()?,
                }
            }
            _ => Self::Unknown,
        })
    }
}

fn set_attr(words: &mut Fields<'_>) -> Option<SetAttr> {
    let valid = words.u32()?;
    let _padding = words.u32()?;
    let _handle = words.u64()?;
    let size = words.u64()?;
    let _lock_owner = words.u64()?;
    let mut secs = [0; 3];
    for secs in &mut secs {
        *secs = words.u64()?.cast_signed();
    }
    let mut times = [Timestamp::default(); 3];
    for (time, secs) in times.iter_mut().zip(secs) {
        *time = Timestamp::new(secs, words.u32()?);
    }
    let mode = words.u32()?;
    words.u32()?;
    let uid = words.u32()?;
    let gid = words.u32()?;
    let given = |bit| valid & bit != 0;
    for (bit, time) in [fattr::ATIME, fattr::MTIME, fattr::CTIME]
        .iter()
        .zip(&times)
    {
        if given(*bit) && time.nanos >= NANOS_PER_SEC {
            return None;
        }
    }
    let [atime, mtime, ctime] = times;
    let set_time = |now, time| {
        if given(now) {
            SetTime::Now
        } else {
            SetTime::At(time)
        }
    };
    Some(SetAttr {
        perm: given(fattr::MODE).then_some(mode & 0o7777),
        uid: given(fattr::UID).then_some(uid),
        gid: given(fattr::GID).then_some(gid),
        size: given(fattr::SIZE).then_some(size),
        atime: given(fattr::ATIME).then(|| set_time(fattr::ATIME_NOW, atime)),
        mtime: given(fattr::MTIME).then(|| set_time(fattr::MTIME_NOW, mtime)),
        ctime: given(fattr::CTIME).then_some(ctime),
    })
}

/// The kernel's 32-bit form of a device number (`new_encode_dev` in linux/kdev_t.h) to `dev_t`.
pub fn rdev_in(rdev: u32) -> u64 {
    let major = (rdev & 0x000f_ff00) >> 8;
    let minor = (rdev & 0xff) | ((rdev >> 12) & 0x000f_ff00);
    libc::makedev(major, minor)
}

/// `dev_t` to the kernel's 32-bit form. Majors above 12 bits and minors above 20 do not exist in Linux; cut.
pub fn rdev_out(rdev: u64) -> u32 {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0x000f_ff00) << 12)
}

/// Numbers one after the other, in the machine's own order of bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*bytes))
    }
}

/// Of each node its number on the wire, and the look-ups given back.
#[derive(Clone, Copy, Debug)]
pub struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    /// Bytes of `struct fuse_forget_one`.
    const EACH: usize = 16;
}

impl Iterator for Forgets<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let (one, rest) = self.0.split_at_checked(Self::EACH)?;
        self.0 = rest;
        let mut one = Fields(one);
        Some((one.u64()?, one.u64()?))
    }
}

/// A name ended by a NUL, and what is behind that. Which names there can be, an empty one for instance, others decide.
fn name_and_rest(bytes: &[u8]) -> Option<(&OsStr, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((OsStr::from_bytes(&bytes[..end]), &bytes[end + 1..]))
}

/// Exactly one name.
fn name(bytes: &[u8]) -> Option<&OsStr> {
    let (name, rest) = name_and_rest(bytes)?;
    rest.is_empty().then_some(name)
}

fn two_names(bytes: &[u8]) -> Option<(&OsStr, &OsStr)> {
    let (first, rest) = name_and_rest(bytes)?;
    Some((first, name(rest)?))
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
