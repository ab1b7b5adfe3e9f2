//! The transport by fuser: decode, one call of [`Answers`], encode.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, FopenFlags, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::answers::{Answer, Answers, Code, READ_MAX, XattrAnswer};
use super::convert::{attr_out, bare_attr, kind_out, rdev_in, set_time_in, time_in};
use super::door;
use super::init::negotiate;
use super::passthrough::{Backing, Opened};
use super::wire_out::Lifetimes;
use crate::meta::FileKind;
use crate::overlay::{Caller, Entry, NodeId, SetAttr};

/// A node's number never comes to mean another object while the kernel knows it.
const GENERATION: Generation = Generation(0);
/// Nothing is kept per open directory.
const NO_HANDLE: FileHandle = FileHandle(0);

/// `ring`: requests may come by io_uring instead. `passthrough`: files may be passed through.
pub struct Transport {
    pub answers: Arc<Answers>,
    pub ring: bool,
    pub passthrough: bool,
}

thread_local! {
    /// Where reads land before they are sent: one buffer per serving thread, kept.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl From<Code> for fuser::Errno {
    fn from(code: Code) -> Self {
        Self::from_i32(code.get())
    }
}

/// Answers `reply` with `error` or hands the value on.
macro_rules! ok_or_reply {
    ($outcome:expr, $reply:ident) => {
        match $outcome {
            Ok(value) => value,
            Err(code) => return $reply.error(code.into()),
        }
    };
}

fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        pid: req.pid(),
    }
}

fn empty(reply: ReplyEmpty, done: Answer<()>) {
    ok_or_reply!(done, reply);
    reply.ok();
}

fn xattr(reply: ReplyXattr, answer: Answer<XattrAnswer>) {
    match ok_or_reply!(answer, reply) {
        XattrAnswer::Size(size) => reply.size(size),
        XattrAnswer::Data(data) => reply.data(&data),
    }
}

const fn handle_and_flags(opened: &Opened) -> (FileHandle, FopenFlags) {
    let flags = FopenFlags::from_bits_retain(opened.flags);
    (FileHandle(opened.handle), flags)
}

impl Transport {
    /// Where fuser has one lifetime for a name and its attributes.
    fn one_lifetime(&self, node: NodeId) -> Duration {
        let keep = self.answers.lifetimes(node);
        keep.entry.min(keep.attr)
    }

    fn entry(&self, reply: ReplyEntry, found: Answer<Entry>) {
        let entry = ok_or_reply!(found, reply);
        let keep = self.answers.lifetimes(entry.node);
        Self::kept_entry(reply, &entry, keep);
    }

    fn kept_entry(reply: ReplyEntry, entry: &Entry, keep: Lifetimes) {
        let attr = attr_out(entry.node, &entry.attr);
        reply.entry_with_ttls(&keep.attr, &keep.entry, &attr, GENERATION);
    }

    fn node(&self, ino: INodeNo) -> NodeId {
        self.answers.door().node(ino.0)
    }

    /// The merged root, to who comes from the outer one.
    fn merged_root(&self, reply: ReplyEntry) {
        let attr = ok_or_reply!(self.answers.getattr(NodeId::ROOT), reply);
        // fuser takes the inode number that is shown for the number on the wire: it is to be asked for again.
        let attr = attr_out(NodeId(door::INNER), &attr);
        reply.entry_with_ttls(&Duration::ZERO, &Duration::ZERO, &attr, GENERATION);
    }

    /// A name that is absent: node 0 with a lifetime is kept by the kernel as such.
    fn absent(&self, reply: ReplyEntry) {
        let ttl = self.answers.absent_for();
        reply.entry_with_ttls(
            &ttl,
            &ttl,
            &bare_attr(NodeId(0), FileKind::Regular),
            GENERATION,
        );
    }
}

impl fuser::Filesystem for Transport {
    fn init(&mut self, _req: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
        let answers = &self.answers;
        let wish = answers.wish(self.ring, self.passthrough);
        let agreed = negotiate(answers.config(), wish, kernel);
        self.answers.agree(agreed);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if self.answers.door().leads_in(parent.0, name) {
            return self.merged_root(reply);
        }
        match ok_or_reply!(self.answers.lookup(self.node(parent), name), reply) {
            Some(entry) => self.entry(reply, Ok(entry)),
            None => self.absent(reply),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.answers.forget(self.node(ino), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let attr = ok_or_reply!(self.answers.getattr(self.node(ino)), reply);
        let keep = self.answers.lifetimes(self.node(ino));
        reply.attr(&keep.attr, &attr_out(self.node(ino), &attr));
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
        let attr = ok_or_reply!(
            self.answers.setattr(caller(req), self.node(ino), &set),
            reply
        );
        let keep = self.answers.lifetimes_after(&attr);
        reply.attr(&keep.attr, &attr_out(self.node(ino), &attr));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let target = ok_or_reply!(self.answers.readlink(self.node(ino)), reply);
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
        let place = (self.node(parent), name);
        let made = self
            .answers
            .mknod(caller(req), place, mode, umask, rdev_in(rdev));
        self.entry(reply, made);
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
        let made = self
            .answers
            .mkdir(caller(req), (self.node(parent), name), mode, umask);
        self.entry(reply, made);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.answers.unlink(self.node(parent), name));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.answers.rmdir(self.node(parent), name));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let place = (self.node(parent), name);
        let made = self.answers.symlink(caller(req), place, target.as_os_str());
        self.entry(reply, made);
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
        let (from, to) = ((self.node(parent), name), (self.node(new_parent), new_name));
        empty(reply, self.answers.rename(from, to, flags.bits()));
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let made = self
            .answers
            .link(self.node(ino), self.node(new_parent), new_name);
        let entry = ok_or_reply!(made, reply);
        let keep = self.answers.lifetimes_after(&entry.attr);
        Self::kept_entry(reply, &entry, keep);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let flags = flags.0.cast_unsigned();
        let register = |file: BorrowedFd<'_>| reply.open_backing(file).map(Backing::Fuser);
        let opened = self
            .answers
            .open(caller(req), self.node(ino), flags, &register);
        let opened = ok_or_reply!(opened, reply);
        let (handle, flags) = handle_and_flags(&opened);
        match opened.backing.as_deref() {
            None => reply.opened(handle, flags),
            Some(Backing::Fuser(id)) => reply.opened_passthrough(handle, flags, id),
            Some(Backing::Ours(_)) => {
                self.answers.undo_open(self.node(ino), &opened);
                reply.error(fuser::Errno::EIO);
            }
        }
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.answers.release(self.node(ino), fh.0);
        reply.ok();
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
            let read = ok_or_reply!(self.answers.read(self.node(ino), offset, buffer), reply);
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
        let done = self
            .answers
            .write(self.node(ino), offset, data, write_flags.bits());
        let written = ok_or_reply!(done, reply);
        reply.written(written);
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
        empty(reply, self.answers.fsync(self.node(ino), datasync));
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let flags = ok_or_reply!(self.answers.opendir(), reply);
        reply.opened(NO_HANDLE, FopenFlags::from_bits_retain(flags));
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let done = self
            .answers
            .read_dir(self.node(ino), offset, false, &mut |item| {
                let kind = kind_out(item.kind);
                !reply.add(INodeNo(item.ino.0), item.next_offset, kind, item.name)
            });
        ok_or_reply!(done, reply);
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let done = self
            .answers
            .read_dir(self.node(ino), offset, true, &mut |item| {
                // The kernel links nothing for `.` and `..`. For any other item without attributes, node 0 keeps it
                // from linking; fuser then sends 0 for the inode number too.
                let dots = item.name == "." || item.name == "..";
                let attr = match item.entry {
                    Some(entry) => attr_out(entry.node, &entry.attr),
                    None if dots => bare_attr(item.ino, item.kind),
                    None => bare_attr(NodeId(0), item.kind),
                };
                let ttl = self.one_lifetime(NodeId(attr.ino.0));
                !reply.add(
                    attr.ino,
                    item.next_offset,
                    item.name,
                    &ttl,
                    &attr,
                    GENERATION,
                )
            });
        ok_or_reply!(done, reply);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.answers.fsyncdir(self.node(ino), datasync));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let s = ok_or_reply!(self.answers.statfs(), reply);
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
        empty(
            reply,
            self.answers.setxattr(self.node(ino), name, value, flags),
        );
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        xattr(reply, self.answers.getxattr(self.node(ino), name, size));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(reply, self.answers.listxattr(self.node(ino), size));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.answers.removexattr(self.node(ino), name));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let register = |file: BorrowedFd<'_>| reply.open_backing(file).map(Backing::Fuser);
        let place = (self.node(parent), name);
        let flags = flags.cast_unsigned();
        let made = self
            .answers
            .create(caller(req), place, (mode, umask), flags, &register);
        let (entry, opened) = ok_or_reply!(made, reply);
        let ttl = self.one_lifetime(entry.node);
        let attr = attr_out(entry.node, &entry.attr);
        let (handle, flags) = handle_and_flags(&opened);
        match opened.backing.as_deref() {
            None => reply.created(&ttl, &attr, GENERATION, handle, flags),
            Some(Backing::Fuser(id)) => {
                reply.created_passthrough(&ttl, &attr, GENERATION, handle, flags, id);
            }
            Some(Backing::Ours(_)) => {
                self.answers.undo_open(entry.node, &opened);
                self.answers.forget(entry.node, 1);
                reply.error(fuser::Errno::EIO);
            }
        }
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
        let data = ok_or_reply!(self.answers.ioctl(self.node(ino), cmd, in_data), reply);
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
        let done = self
            .answers
            .fallocate(caller(req), self.node(ino), mode as u32, offset, length);
        empty(reply, done);
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
        let reply = move |found: Answer<i64>| match found {
            Ok(found) => reply.offset(found),
            Err(code) => reply.error(code.into()),
        };
        self.answers
            .lseek(self.node(ino), offset, whence, Box::new(reply));
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
        let (from, to) = ((self.node(from), from_offset), (self.node(to), to_offset));
        let done = self
            .answers
            .copy_file_range(caller(req), from, to, len, flags.bits());
        let written = ok_or_reply!(done, reply);
        reply.written(written);
    }

    // access: never asked under default_permissions. bmap, poll: the default answer, ENOSYS, leaves them to the kernel.
    // Locks are the kernel's while POSIX_LOCKS and FLOCK_LOCKS are not requested. releasedir has nothing to let go.
}
