//! One handler per request: decode, one engine call, encode.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, FopenFlags, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert::{
    attr_out, bare_attr, errno_out, kind_out, rdev_in, rename_flags_in, set_time_in, time_in,
};
use super::init::{Negotiated, negotiate};
use super::{Config, Counters, ioctl, seek};
use crate::meta::FileKind;
use crate::overlay::{Caller, Entry, NodeId, Overlay, Result, SetAttr, XattrSet};

/// A node's number never comes to mean another object while the kernel knows it.
const GENERATION: Generation = Generation(0);
/// Nothing is kept per open file.
const NO_HANDLE: FileHandle = FileHandle(0);
/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of linux/limits.h.
const XATTR_MAX: usize = 65_536;
/// Bytes of one copy_file_range request; callers go on after a short count.
const COPY_CHUNK: u64 = 64 << 20;
/// Larger reads are not asked for (`max_pages` times the page size).
const READ_MAX: usize = 16 << 20;

pub struct Transport {
    engine: Arc<Overlay>,
    config: Config,
    negotiated: Negotiated,
    counters: Arc<Counters>,
    seek: Sender<seek::Request>,
}

thread_local! {
    /// Where reads land before they are sent: one buffer per serving thread, kept.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs one engine call. A panic becomes EIO, is told once for each request it ends, and counted.
pub fn guarded<T>(
    counters: &Counters,
    op: &'static str,
    call: impl FnOnce() -> Result<T>,
) -> std::result::Result<T, fuser::Errno> {
    counters.requests.fetch_add(1, Ordering::Relaxed);
    let outcome = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        tracing::error!(op, "request ended by a bug: {}", panic_text(&*panic));
        counters.count_panic();
        Err(rustix::io::Errno::IO)
    });
    outcome.map_err(|errno| {
        counters.errors.fetch_add(1, Ordering::Relaxed);
        errno_out(errno)
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without words")
}

/// Answers `reply` with `error` or hands the value on.
macro_rules! ok_or_reply {
    ($outcome:expr, $reply:ident) => {
        match $outcome {
            Ok(value) => value,
            Err(errno) => return $reply.error(errno),
        }
    };
}

const fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        pid: req.pid(),
    }
}

impl Transport {
    pub fn new(
        engine: Arc<Overlay>,
        config: &Config,
        counters: Arc<Counters>,
        seek: Sender<seek::Request>,
    ) -> Self {
        Self {
            engine,
            config: config.clone(),
            negotiated: Negotiated::default(),
            counters,
            seek,
        }
    }

    pub fn writeback(&self) -> bool {
        self.config.writeback && !self.engine.is_read_only()
    }

    fn call<T>(
        &self,
        op: &'static str,
        call: impl FnOnce(&Overlay) -> Result<T>,
    ) -> std::result::Result<T, fuser::Errno> {
        guarded(&self.counters, op, || call(&self.engine))
    }

    fn empty(
        &self,
        op: &'static str,
        reply: ReplyEmpty,
        call: impl FnOnce(&Overlay) -> Result<()>,
    ) {
        match self.call(op, call) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn entry(
        &self,
        op: &'static str,
        reply: ReplyEntry,
        call: impl FnOnce(&Overlay) -> Result<Entry>,
    ) {
        match self.call(op, call) {
            Ok(entry) => self.found(reply, &entry),
            Err(errno) => reply.error(errno),
        }
    }

    fn found(&self, reply: ReplyEntry, entry: &Entry) {
        let attr = attr_out(entry.node, &entry.attr);
        reply.entry_with_ttls(
            &self.config.attr_ttl,
            &self.config.entry_ttl,
            &attr,
            GENERATION,
        );
    }

    /// A name that is absent: node 0 with a lifetime is kept by the kernel as such.
    fn absent(&self, reply: ReplyEntry) {
        let ttl = self.config.negative_ttl;
        if ttl.is_zero() {
            return reply.error(fuser::Errno::ENOENT);
        }
        reply.entry_with_ttls(
            &ttl,
            &ttl,
            &bare_attr(NodeId(0), FileKind::Regular),
            GENERATION,
        );
    }

    fn xattr(&self, reply: ReplyXattr, room: u32, value: &[u8]) {
        match (room as usize, value.len()) {
            (_, len) if len > XATTR_MAX => reply.error(fuser::Errno::E2BIG),
            (0, len) => reply.size(len as u32),
            (room, len) if len > room => reply.error(fuser::Errno::ERANGE),
            _ => reply.data(value),
        }
    }

    fn open_flags(&self) -> FopenFlags {
        FopenFlags::FOPEN_KEEP_CACHE
    }
}

impl fuser::Filesystem for Transport {
    fn init(&mut self, _req: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
        self.negotiated = negotiate(&self.config, self.writeback(), kernel);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.call("lookup", |e| e.lookup(node(parent), name)) {
            Ok(Some(entry)) => self.found(reply, &entry),
            Ok(None) => self.absent(reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        // No reply, so an error could not be told; a panic is counted and logged.
        let _ = self.call("forget", |e| {
            e.forget(node(ino), nlookup);
            Ok(())
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let attr = ok_or_reply!(self.call("getattr", |e| e.getattr(node(ino))), reply);
        reply.attr(&self.config.attr_ttl, &attr_out(node(ino), &attr));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            perm: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(set_time_in),
            mtime: mtime.map(set_time_in),
            ctime: ctime.map(time_in),
        };
        let done = self.call("setattr", |e| e.setattr(caller(req), node(ino), &set));
        let attr = ok_or_reply!(done, reply);
        reply.attr(&self.config.attr_ttl, &attr_out(node(ino), &attr));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let target = ok_or_reply!(self.call("readlink", |e| e.readlink(node(ino))), reply);
        reply.data(target.as_bytes());
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        // The kernel's way to create a file while CREATE is answered ENOSYS.
        if FileKind::from_mode(mode) == Some(FileKind::Regular) {
            return self.entry("create", reply, |e| {
                e.create(caller(req), node(parent), name, mode, umask)
            });
        }
        self.entry("mknod", reply, |e| {
            e.mknod(caller(req), node(parent), name, mode, umask, rdev_in(rdev))
        });
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.entry("mkdir", reply, |e| {
            e.mkdir(caller(req), node(parent), name, mode, umask)
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty("unlink", reply, |e| e.unlink(node(parent), name));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty("rmdir", reply, |e| e.rmdir(node(parent), name));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.entry("symlink", reply, |e| {
            e.symlink(caller(req), node(parent), name, target.as_os_str())
        });
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(flags) = rename_flags_in(flags) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        self.empty("rename", reply, |e| {
            e.rename(node(parent), name, node(new_parent), new_name, flags)
        });
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        self.entry("link", reply, |e| {
            e.link(node(ino), node(new_parent), new_name)
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.negotiated.no_open {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let write = flags.acc_mode() != OpenAccMode::O_RDONLY;
        ok_or_reply!(self.call("open", |e| e.open(node(ino), write)), reply);
        reply.opened(NO_HANDLE, self.open_flags());
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = (size as usize).min(READ_MAX);
        READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let buffer = &mut buffer[..size];
            let read = self.call("read", |e| e.read(node(ino), offset, buffer));
            let read = ok_or_reply!(read, reply);
            reply.data(&buffer[..read]);
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let kept_back = self.writeback() && write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let done = self.call("write", |e| {
            if kept_back {
                e.write_back(node(ino), offset, data, kill)
            } else {
                e.write(node(ino), offset, data, kill)
            }
        });
        let written = ok_or_reply!(done, reply);
        reply.written(written as u32);
    }

    /// Nothing is kept back here, so close needs no request.
    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.empty("fsync", reply, |e| e.fsync(node(ino), datasync));
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.negotiated.no_opendir {
            return reply.error(fuser::Errno::ENOSYS);
        }
        reply.opened(
            NO_HANDLE,
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        );
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut taken = false;
        let done = self.call("readdir", |e| {
            e.read_dir(node(ino), offset, false, &mut |item| {
                let kind = kind_out(item.kind);
                let full = reply.add(INodeNo(item.ino.0), item.next_offset, kind, item.name);
                taken |= !full;
                !full
            })
        });
        match done {
            // What was listed before an error is told; the next request meets the error at once.
            Err(errno) if !taken => reply.error(errno),
            _ => reply.ok(),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        // fuser has one lifetime for both here.
        let ttl = self.config.entry_ttl.min(self.config.attr_ttl);
        let mut taken = false;
        let done = self.call("readdirplus", |e| {
            e.read_dir(node(ino), offset, true, &mut |item| {
                // The kernel links nothing for `.` and `..`. For any other item without attributes, node 0 keeps it
                // from linking; fuser then sends 0 for the inode number too.
                let dots = item.name == "." || item.name == "..";
                let attr = match item.entry {
                    Some(entry) => attr_out(entry.node, &entry.attr),
                    None if dots => bare_attr(item.ino, item.kind),
                    None => bare_attr(NodeId(0), item.kind),
                };
                let full = reply.add(
                    attr.ino,
                    item.next_offset,
                    item.name,
                    &ttl,
                    &attr,
                    GENERATION,
                );
                taken |= !full;
                !full
            })
        });
        match done {
            // As above; and entries already taken have their lookup counts raised, so they must arrive.
            Err(errno) if !taken => reply.error(errno),
            _ => reply.ok(),
        }
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.empty("fsyncdir", reply, |e| e.fsync(node(ino), datasync));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let s = ok_or_reply!(self.call("statfs", Overlay::statfs), reply);
        reply.statfs(
            s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
        );
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let how = match flags {
            0 => XattrSet::Any,
            libc::XATTR_CREATE => XattrSet::Create,
            libc::XATTR_REPLACE => XattrSet::Replace,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        self.empty("setxattr", reply, |e| {
            e.setxattr(node(ino), name, value, how)
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = ok_or_reply!(
            self.call("getxattr", |e| e.getxattr(node(ino), name)),
            reply
        );
        self.xattr(reply, size, &value);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = ok_or_reply!(self.call("listxattr", |e| e.listxattr(node(ino))), reply);
        self.xattr(reply, size, &names);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty("removexattr", reply, |e| e.removexattr(node(ino), name));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        // MKNOD does the same and is not followed by a RELEASE.
        if self.negotiated.no_open {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let made = self.call("create", |e| {
            e.create(caller(req), node(parent), name, mode, umask)
        });
        let entry = ok_or_reply!(made, reply);
        let ttl = self.config.entry_ttl.min(self.config.attr_ttl);
        let attr = attr_out(entry.node, &entry.attr);
        reply.created(&ttl, &attr, GENERATION, NO_HANDLE, self.open_flags());
    }

    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let answer = self.call("ioctl", |e| ioctl::answer(e, node(ino), cmd, in_data));
        let data = ok_or_reply!(answer, reply);
        reply.ioctl(0, &data);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.empty("fallocate", reply, |e| {
            e.fallocate(caller(req), node(ino), mode as u32, offset, length)
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(whence) = u32::try_from(whence) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        let Ok(offset) = u64::try_from(offset) else {
            // What every file system of Linux says of a place before the beginning.
            return reply.error(fuser::Errno::ENXIO);
        };
        let request = seek::Request {
            node: node(ino),
            offset,
            whence,
            reply,
        };
        if let Err(unsent) = self.seek.send(request) {
            unsent.0.reply.error(fuser::Errno::EIO);
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        from: INodeNo,
        _from_fh: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _to_fh: FileHandle,
        to_offset: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if !flags.is_empty() {
            return reply.error(fuser::Errno::EINVAL);
        }
        let len = len.min(COPY_CHUNK);
        let done = self.call("copy_file_range", |e| {
            e.copy_file_range(
                caller(req),
                (node(from), from_offset),
                (node(to), to_offset),
                len,
            )
        });
        let written = ok_or_reply!(done, reply);
        reply.written(written as u32);
    }

    // access: never asked under default_permissions. bmap, poll: the default answer, ENOSYS, leaves them to the kernel.
    // Locks are the kernel's while POSIX_LOCKS and FLOCK_LOCKS are not requested. release and releasedir have nothing to
    // let go.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_io_error_and_counted() {
        let counters = Counters::default();
        let fine = guarded(&counters, "test", || Ok(7));
        assert_eq!(fine, Ok(7));
        let failed = guarded::<()>(&counters, "test", || Err(rustix::io::Errno::EXIST));
        assert_eq!(failed, Err(fuser::Errno::EEXIST));
        let panicked = guarded::<()>(&counters, "test", || panic!("on purpose"));
        assert_eq!(panicked, Err(fuser::Errno::EIO));
        assert_eq!(
            (counters.requests(), counters.errors(), counters.panics()),
            (3, 2, 1)
        );
    }
}
