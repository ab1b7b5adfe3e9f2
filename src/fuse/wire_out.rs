//! Answers as the kernel reads them (linux/fuse.h, protocol 7.45), written into a buffer of its own size.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::door;
use super::wire::{OUT_HEADER, rdev_out};
use crate::meta::{Attr, FileKind, Timestamp};
use crate::overlay::{DirItem, Entry, FsStat, NodeId};

/// Bytes of `struct fuse_entry_out`, and of `struct fuse_dirent` up to the name.
const ENTRY: usize = 128;
const DIRENT: usize = 24;

/// How long the kernel may keep a name and its attributes.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    pub entry: Duration,
    pub attr: Duration,
}

/// `struct fuse_out_header`. `error` is 0 or an errno, `len` the bytes of the answer behind the head.
pub fn head(unique: u64, error: i32, len: usize) -> [u8; OUT_HEADER] {
    let mut bytes = [0; OUT_HEADER];
    let total = (OUT_HEADER + len) as u32;
    bytes[..4].copy_from_slice(&total.to_ne_bytes());
    bytes[4..8].copy_from_slice(&(-error).to_ne_bytes());
    bytes[8..].copy_from_slice(&unique.to_ne_bytes());
    bytes
}

/// An answer being written. What has no room is not written at all, and said.
pub struct Out<'a> {
    room: &'a mut [u8],
    len: usize,
}

/// There was no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

type Put = Result<(), Full>;

impl<'a> Out<'a> {
    pub fn new(room: &'a mut [u8]) -> Self {
        Self { room, len: 0 }
    }

    /// Bytes written.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> Put {
        let room = self.room.get_mut(self.len..).ok_or(Full)?;
        let place = room.get_mut(..bytes.len()).ok_or(Full)?;
        place.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    fn u32(&mut self, value: u32) -> Put {
        self.bytes(&value.to_ne_bytes())
    }

    fn u64(&mut self, value: u64) -> Put {
        self.bytes(&value.to_ne_bytes())
    }

    /// `struct fuse_attr`
    fn inode(&mut self, node: NodeId, attr: &Attr) -> Put {
        self.u64(node.0)?;
        // The kernel takes a negative size for a broken reply.
        self.u64(attr.size.min(i64::MAX as u64))?;
        self.u64(attr.blocks)?;
        let times = [attr.atime, attr.mtime, attr.ctime];
        for time in times {
            self.u64(time.secs.cast_unsigned())?;
        }
        for time in times {
            self.u32(time.nanos.min(999_999_999))?;
        }
        self.u32(attr.mode())?;
        self.u32(attr.nlink)?;
        self.u32(attr.uid)?;
        self.u32(attr.gid)?;
        self.u32(rdev_out(attr.rdev))?;
        self.u32(attr.blksize)?;
        self.u32(0)
    }

    /// `struct fuse_entry_out`. A node's number never comes to mean another object while the kernel knows it, so its
    /// generation is always 0.
    fn node(&mut self, node: NodeId, attr: &Attr, keep: Lifetimes) -> Put {
        self.numbered(node.0, node, attr, keep)
    }

    /// The same where the number on the wire is another than the one that is shown.
    fn numbered(&mut self, number: u64, node: NodeId, attr: &Attr, keep: Lifetimes) -> Put {
        self.u64(number)?;
        self.u64(0)?;
        self.u64(keep.entry.as_secs())?;
        self.u64(keep.attr.as_secs())?;
        self.u32(keep.entry.subsec_nanos())?;
        self.u32(keep.attr.subsec_nanos())?;
        self.inode(node, attr)
    }

    pub fn entry(&mut self, entry: &Entry, keep: Lifetimes) -> Put {
        self.node(entry.node, &entry.attr, keep)
    }

    /// The merged root, found in the outer one.
    pub fn merged_root(&mut self, attr: &Attr, keep: Lifetimes) -> Put {
        self.numbered(door::INNER, NodeId::ROOT, attr, keep)
    }

    /// A name that is absent: node 0 with a lifetime is kept by the kernel as such.
    pub fn absent(&mut self, ttl: Duration) -> Put {
        let keep = Lifetimes {
            entry: ttl,
            attr: ttl,
        };
        self.node(NodeId(0), &bare(FileKind::Regular), keep)
    }

    /// `struct fuse_attr_out`
    pub fn attr(&mut self, node: NodeId, attr: &Attr, ttl: Duration) -> Put {
        self.u64(ttl.as_secs())?;
        self.u32(ttl.subsec_nanos())?;
        self.u32(0)?;
        self.inode(node, attr)
    }

    /// `struct fuse_open_out`. `backing` is the number of the file to pass through to, or 0.
    pub fn open(&mut self, handle: u64, flags: u32, backing: u32) -> Put {
        self.u64(handle)?;
        self.u32(flags)?;
        self.u32(backing)
    }

    /// `struct fuse_write_out` and `struct fuse_getxattr_out`
    pub fn count(&mut self, count: u32) -> Put {
        self.u32(count)?;
        self.u32(0)
    }

    /// `struct fuse_lseek_out`
    pub fn offset(&mut self, offset: i64) -> Put {
        self.u64(offset.cast_unsigned())
    }

    /// `struct fuse_ioctl_out` and what the call gives back.
    pub fn ioctl(&mut self, data: &[u8]) -> Put {
        self.bytes(&[0; 16])?;
        self.bytes(data)
    }

    /// `struct fuse_statfs_out`
    pub fn statfs(&mut self, s: &FsStat) -> Put {
        for number in [s.blocks, s.bfree, s.bavail, s.files, s.ffree] {
            self.u64(number)?;
        }
        self.u32(s.bsize)?;
        self.u32(s.namelen)?;
        self.u32(s.frsize)?;
        self.bytes(&[0; 28])
    }

    /// One item of a directory: all of it, or nothing.
    pub fn item(&mut self, item: &DirItem<'_>, plus: Option<Lifetimes>) -> Put {
        let name = item.name.as_bytes();
        let head = if plus.is_some() { ENTRY } else { 0 };
        let len = (head + DIRENT + name.len()).next_multiple_of(8);
        if self.room.len() - self.len < len {
            return Err(Full);
        }
        let start = self.len;
        let mut ino = item.ino;
        if let Some(keep) = plus {
            match item.entry {
                Some(entry) => {
                    ino = entry.node;
                    self.entry(entry, keep)?;
                }
                // The kernel links nothing for `.` and `..`; for any other item, node 0 keeps it from linking.
                None => {
                    let node = if is_dots(item.name) { ino } else { NodeId(0) };
                    self.node(node, &bare(item.kind), keep)?;
                }
            }
        }
        self.u64(ino.0)?;
        self.u64(item.next_offset)?;
        self.u32(name.len() as u32)?;
        // `DT_*` are the kind's bits of a mode.
        self.u32(item.kind.mode_bits() >> 12)?;
        self.bytes(name)?;
        let padding = start + len - self.len;
        self.bytes(&[0; 8][..padding])
    }
}

fn is_dots(name: &OsStr) -> bool {
    name == "." || name == ".."
}

/// Attributes of which the kernel looks only at the type.
fn bare(kind: FileKind) -> Attr {
    Attr {
        kind,
        perm: 0,
        uid: 0,
        gid: 0,
        size: 0,
        blocks: 0,
        nlink: 1,
        rdev: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        blksize: 4096,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Lifetimes = Lifetimes {
        entry: Duration::new(7, 8),
        attr: Duration::new(9, 10),
    };

    fn file() -> Entry {
        Entry {
            node: NodeId(42),
            attr: Attr {
                perm: 0o4755,
                uid: 1,
                gid: 2,
                size: u64::MAX,
                blocks: 3,
                nlink: 4,
                rdev: libc::makedev(8, 1),
                atime: Timestamp::new(-2, 250_000_000),
                mtime: Timestamp::new(5, u32::MAX),
                ctime: Timestamp::new(6, 7),
                ..bare(FileKind::BlockDevice)
            },
        }
    }

    fn written(write: impl FnOnce(&mut Out<'_>) -> Put) -> Vec<u8> {
        let mut room = [0xff; 4096];
        let mut out = Out::new(&mut room);
        write(&mut out).expect("room");
        let len = out.len();
        room[..len].to_vec()
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    #[test]
    fn sizes_are_those_of_the_protocol() {
        // The kernel takes no other ones.
        let stat = FsStat {
            blocks: 1,
            bfree: 2,
            bavail: 3,
            files: 4,
            ffree: 5,
            bsize: 6,
            namelen: 7,
            frsize: 8,
        };
        assert_eq!(written(|o| o.entry(&file(), KEEP)).len(), 128);
        assert_eq!(written(|o| o.absent(Duration::ZERO)).len(), 128);
        let attr = written(|o| o.attr(NodeId(1), &file().attr, KEEP.attr));
        assert_eq!(attr.len(), 104);
        assert_eq!(written(|o| o.open(1, 2, 3)).len(), 16);
        assert_eq!(written(|o| o.count(1)).len(), 8);
        assert_eq!(written(|o| o.offset(-1)).len(), 8);
        assert_eq!(written(|o| o.ioctl(b"abcd")).len(), 20);
        assert_eq!(written(|o| o.statfs(&stat)).len(), 80);
    }

    #[test]
    fn fields_lie_where_the_kernel_looks() {
        let entry = written(|o| o.entry(&file(), KEEP));
        assert_eq!(u64_at(&entry, 0), 42);
        assert_eq!((u64_at(&entry, 16), u32_at(&entry, 32)), (7, 8));
        assert_eq!((u64_at(&entry, 24), u32_at(&entry, 36)), (9, 10));
        let attr = &entry[40..];
        assert_eq!(u64_at(attr, 0), 42);
        assert_eq!(u64_at(attr, 8), i64::MAX as u64);
        assert_eq!(u64_at(attr, 24).cast_signed(), -2);
        assert_eq!(u32_at(attr, 48), 250_000_000);
        assert_eq!(u32_at(attr, 52), 999_999_999);
        assert_eq!(u32_at(attr, 60), libc::S_IFBLK | 0o4755);
        assert_eq!(u32_at(attr, 76), 0x801);
        assert_eq!(u32_at(attr, 80), 4096);
        let opened = written(|o| o.open(1 << 40, 0xa0, 7));
        assert_eq!(u64_at(&opened, 0), 1 << 40);
        assert_eq!((u32_at(&opened, 8), u32_at(&opened, 12)), (0xa0, 7));
        let broken = head(77, libc::ENOENT, 0);
        assert_eq!(u32_at(&broken, 0), 16);
        assert_eq!(u32_at(&broken, 4).cast_signed(), -libc::ENOENT);
        assert_eq!(u64_at(&broken, 8), 77);
    }

    #[test]
    fn items_of_directories() {
        let entry = file();
        let item = |name, entry| DirItem {
            name: OsStr::new(name),
            ino: NodeId(42),
            kind: FileKind::BlockDevice,
            next_offset: 5,
            entry,
        };
        let plain = written(|o| o.item(&item("abc", None), None));
        assert_eq!(plain.len(), 32);
        assert_eq!((u64_at(&plain, 0), u64_at(&plain, 8)), (42, 5));
        assert_eq!((u32_at(&plain, 16), u32_at(&plain, 20)), (3, 6));
        assert_eq!(&plain[24..], b"abc\0\0\0\0\0");
        let linked = written(|o| o.item(&item("abcdefgh", Some(&entry)), Some(KEEP)));
        assert_eq!(linked.len(), 160);
        assert_eq!((u64_at(&linked, 0), u64_at(&linked, 128)), (42, 42));
        let unlinked = written(|o| o.item(&item("abc", None), Some(KEEP)));
        assert_eq!((u64_at(&unlinked, 0), u64_at(&unlinked, 128)), (0, 42));
        let dots = written(|o| o.item(&item("..", None), Some(KEEP)));
        assert_eq!(u64_at(&dots, 0), 42);
    }

    #[test]
    fn no_room_writes_nothing() {
        let entry = file();
        for room in 0..160 {
            let mut room = vec![0xff; room];
            let mut out = Out::new(&mut room);
            let item = DirItem {
                name: OsStr::new("abc"),
                ino: NodeId(42),
                kind: FileKind::Regular,
                next_offset: 5,
                entry: Some(&entry),
            };
            let fits = out.item(&item, Some(KEEP)).is_ok();
            assert_eq!((fits, out.len()), (false, 0));
            assert!(room.iter().all(|byte| *byte == 0xff));
        }
        let mut room = [0; 7];
        assert_eq!(Out::new(&mut room).count(1), Err(Full));
        assert_eq!(Out::new(&mut []).bytes(b"a"), Err(Full));
    }
}
