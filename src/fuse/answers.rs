//! What each request is answered with, whatever brings it: one engine call, and what the kernel may keep of it.

use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::io::Errno;

use super::door::Door;
use super::init::{Negotiated, Wish};
use super::passthrough::{Backing, Decision, Opened, Opens};
use super::wire_out::Lifetimes;
use super::{Config, Counters, ioctl, seek};
use crate::meta::{Attr, FileKind};
use crate::overlay::{
    Caller, DirItem, Entry, FsStat, NodeId, OpenHow, Overlay, RenameFlags, Result, SetAttr,
    XattrSet,
};

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of linux/limits.h.
const XATTR_MAX: usize = 65_536;
/// Bytes of one copy_file_range request; callers go on after a short count.
const COPY_CHUNK: u64 = 64 << 20;

/// `FUSE_WRITE_CACHE`, `FUSE_WRITE_KILL_SUIDGID` of linux/fuse.h.
const WRITE_CACHE: u32 = 1 << 0;
const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FOPEN_KEEP_CACHE`, `FOPEN_CACHE_DIR` of linux/fuse.h.
const FOPEN_KEEP_CACHE: u32 = 1 << 1;
const FOPEN_CACHE_DIR: u32 = 1 << 3;

/// An errno the kernel may be told: 1 to 511.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(i32);

impl Code {
    pub const ENOENT: Self = Self(libc::ENOENT);
    pub const EIO: Self = Self(libc::EIO);
    pub const EINVAL: Self = Self(libc::EINVAL);
    /// For the kernel: never ask again. Only a transport may say so, never the engine.
    pub const ENOSYS: Self = Self(libc::ENOSYS);

    pub const fn get(self) -> i32 {
        self.0
    }
}

/// An engine's error as the kernel may be told it: ENOSYS would switch the request off for the whole mount, and the
/// kernel throws away a reply with an errno it does not know, which would leave the caller waiting.
impl From<Errno> for Code {
    fn from(errno: Errno) -> Self {
        match errno.raw_os_error() {
            libc::ENOSYS => Self(libc::EOPNOTSUPP),
            code @ 1..512 => Self(code),
            _ => Self::EIO,
        }
    }
}

pub type Answer<T> = std::result::Result<T, Code>;

/// Runs one engine call. A panic becomes EIO, is told once for each request it ends, and counted.
pub fn guarded<T>(
    counters: &Counters,
    op: &'static str,
    call: impl FnOnce() -> Result<T>,
) -> Answer<T> {
    counters.requests.fetch_add(1, Ordering::Relaxed);
    let outcome = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        tracing::error!(op, "request ended by a bug: {}", panic_text(&*panic));
        counters.count_panic();
        Err(Errno::IO)
    });
    outcome.map_err(|errno| {
        counters.errors.fetch_add(1, Ordering::Relaxed);
        errno.into()
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without words")
}

/// What an extended attribute's value, or a list of names, is answered with.
pub enum XattrAnswer {
    /// Nothing but the size was wanted.
    Size(u32),
    Data(Vec<u8>),
}

/// What the kernel can be told and asked besides its requests, once it has been greeted.
pub struct Kernel {
    /// An open `/dev/fuse` of the mount.
    pub device: Arc<OwnedFd>,
    pub notifier: fuser::Notifier,
}

/// Everything the transports share.
pub struct Answers {
    engine: Arc<Overlay>,
    config: Config,
    negotiated: OnceLock<Negotiated>,
    counters: Arc<Counters>,
    seek: Sender<seek::Request>,
    /// Used where passthrough was agreed on.
    opens: Opens,
    /// There where passthrough was agreed on.
    kernel: OnceLock<Kernel>,
    /// A [`Door`].
    door: AtomicU8,
}

impl Answers {
    pub fn new(
        engine: Arc<Overlay>,
        config: &Config,
        counters: Arc<Counters>,
        seek: Sender<seek::Request>,
    ) -> Self {
        Self {
            engine,
            config: config.clone(),
            negotiated: OnceLock::new(),
            counters,
            seek,
            opens: Opens::new(),
            kernel: OnceLock::new(),
            door: AtomicU8::new(Door::None as u8),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What is to be asked of the kernel; `ring` and `passthrough`: everything for them is there.
    pub fn wish(&self, ring: bool, passthrough: bool) -> Wish {
        Wish {
            writeback: self.config.writeback && !self.engine.is_read_only(),
            ring,
            passthrough,
        }
    }

    /// To be told before the first request.
    pub fn agree(&self, negotiated: Negotiated) {
        let first = self.negotiated.set(negotiated);
        debug_assert!(first.is_ok(), "the kernel greets once");
    }

    pub fn negotiated(&self) -> Negotiated {
        self.negotiated.get().copied().unwrap_or_default()
    }

    /// To be told before the first request, where passthrough was agreed on.
    pub fn connect(&self, kernel: Kernel) {
        let first = self.kernel.set(kernel);
        debug_assert!(first.is_ok(), "there is one kernel");
    }

    /// What the outer root is good for from now on.
    pub fn set_door(&self, door: Door) {
        self.door.store(door as u8, Ordering::Relaxed);
    }

    pub fn door(&self) -> Door {
        Door::from_u8(self.door.load(Ordering::Relaxed))
    }

    /// Its name in the outer root is looked up again whenever somebody comes by there: it may be gone, if that is mounted
    /// after all.
    pub fn lifetimes_of_merged_root(&self) -> Lifetimes {
        Lifetimes {
            entry: Duration::ZERO,
            ..self.lifetimes(NodeId::ROOT)
        }
    }

    /// How long the kernel may keep what it is told of a node.
    pub fn lifetimes(&self, node: NodeId) -> Lifetimes {
        self.lifetimes_if(self.negotiated().passthrough && self.opens.is_mappable(node))
    }

    /// The same for an answer that the kernel takes as the latest, whatever it has heard since the question.
    pub fn lifetimes_after(&self, attr: &Attr) -> Lifetimes {
        self.lifetimes_if(self.negotiated().passthrough && attr.kind == FileKind::Regular)
    }

    const fn lifetimes_if(&self, changing: bool) -> Lifetimes {
        Lifetimes {
            entry: self.config.entry_ttl,
            attr: if changing {
                Duration::ZERO
            } else {
                self.config.attr_ttl
            },
        }
    }

    fn call<T>(&self, op: &'static str, call: impl FnOnce(&Overlay) -> Result<T>) -> Answer<T> {
        guarded(&self.counters, op, || call(&self.engine))
    }

    /// `None`: absent, and the kernel may keep that for the lifetime that [`Self::absent_for`] tells.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Answer<Option<Entry>> {
        match self.call("lookup", |e| e.lookup(parent, name))? {
            None if self.absent_for().is_zero() => Err(Code::ENOENT),
            found => Ok(found),
        }
    }

    pub fn absent_for(&self) -> Duration {
        self.config.negative_ttl
    }

    pub fn forget(&self, node: NodeId, count: u64) {
        // No reply, so an error could not be told; a panic is counted and logged.
        let _ = self.call("forget", |e| {
            if e.forget(node, count) && self.negotiated().passthrough {
                self.opens.forget(node);
            }
            Ok(())
        });
    }

    pub fn getattr(&self, node: NodeId) -> Answer<Attr> {
        self.call("getattr", |e| e.getattr(node))
    }

    pub fn setattr(&self, caller: Caller, node: NodeId, set: &SetAttr) -> Answer<Attr> {
        self.call("setattr", |e| {
            // Nothing to be set: before a write that is passed through, set-id bits are to go. So is chown(2) to nobody,
            // by anybody: only a file that somebody writes loses them.
            if *set == SetAttr::default() && self.opens.is_written(node) {
                e.drop_privileges(node)?;
            }
            e.setattr(caller, node, set)
        })
    }

    pub fn readlink(&self, node: NodeId) -> Answer<OsString> {
        self.call("readlink", |e| e.readlink(node))
    }

    /// `rdev` is a `dev_t`.
    pub fn mknod(
        &self,
        caller: Caller,
        (parent, name): (NodeId, &OsStr),
        mode: u32,
        umask: u32,
        rdev: u64,
    ) -> Answer<Entry> {
        // The kernel's way to create a file while CREATE is answered ENOSYS.
        if FileKind::from_mode(mode) == Some(FileKind::Regular) {
            return self.call("create", |e| e.create(caller, parent, name, mode, umask));
        }
        self.call("mknod", |e| {
            e.mknod(caller, parent, name, mode, umask, rdev)
        })
    }

    pub fn mkdir(
        &self,
        caller: Caller,
        (parent, name): (NodeId, &OsStr),
        mode: u32,
        umask: u32,
    ) -> Answer<Entry> {
        self.call("mkdir", |e| e.mkdir(caller, parent, name, mode, umask))
    }

    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Answer<()> {
        self.call("unlink", |e| e.unlink(parent, name))
    }

    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Answer<()> {
        self.call("rmdir", |e| e.rmdir(parent, name))
    }

    pub fn symlink(
        &self,
        caller: Caller,
        (parent, name): (NodeId, &OsStr),
        target: &OsStr,
    ) -> Answer<Entry> {
        self.call("symlink", |e| e.symlink(caller, parent, name, target))
    }

    /// `flags` are those of renameat2(2).
    pub fn rename(
        &self,
        (parent, name): (NodeId, &OsStr),
        (new_parent, new_name): (NodeId, &OsStr),
        flags: u32,
    ) -> Answer<()> {
        let flags = rename_flags(flags).ok_or(Code::EINVAL)?;
        self.call("rename", |e| {
            e.rename(parent, name, new_parent, new_name, flags)
        })
    }

    pub fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Answer<Entry> {
        self.call("link", |e| e.link(node, parent, name))
    }

    /// `flags` are those of open(2).
    pub fn open(&self, caller: Caller, node: NodeId, flags: u32) -> Answer<Opened> {
        let agreed = self.negotiated();
        if agreed.no_open {
            return Err(Code::ENOSYS);
        }
        let how = OpenHow::from_flags(flags);
        self.call("open", |e| {
            if agreed.passthrough {
                self.open_through(e, caller, node, how)
            } else {
                e.open(node, how.write)?;
                Ok(Opened::PLAIN)
            }
        })
    }

    fn open_through(
        &self,
        engine: &Overlay,
        caller: Caller,
        node: NodeId,
        mut how: OpenHow,
    ) -> Result<Opened> {
        let register = |file: BorrowedFd<'_>| self.register(file);
        loop {
            let file = engine.open_backing(caller, node, how)?;
            let file = file.as_ref().map(AsFd::as_fd);
            let has_own = || engine.is_in_upper(node);
            let (opened, forget_attributes) =
                match self.opens.open(node, how, file, has_own, &register)? {
                    Decision::Answer {
                        opened,
                        forget_attributes,
                    } => (opened, forget_attributes),
                    Decision::Again => {
                        how.truncate = false;
                        continue;
                    }
                };
            if let (true, Some(kernel)) = (forget_attributes, self.kernel.get()) {
                // Attributes alone, which waits for nobody. A node that was made just now has none there yet.
                let told = kernel.notifier.inval_inode(fuser::INodeNo(node.0), -1, 0);
                if let Err(error) = told {
                    tracing::debug!(node = node.0, %error, "nothing to be forgotten");
                }
            }
            return Ok(opened);
        }
    }

    /// Has the kernel know a file, by the mount's own `/dev/fuse`.
    fn register(&self, file: BorrowedFd<'_>) -> std::io::Result<Backing> {
        let kernel = self.kernel.get().ok_or(Errno::NOTCONN)?;
        Ok(Backing::open(&kernel.device, file)?)
    }

    /// The end of an open that was answered with `handle`.
    pub fn release(&self, node: NodeId, handle: u64) {
        if self.negotiated().passthrough {
            // No error could be told; a panic is counted and logged.
            let _ = self.call("release", |_| {
                self.opens.release(node, handle);
                Ok(())
            });
        }
    }

    pub fn opendir(&self) -> Answer<u32> {
        if self.negotiated().no_opendir {
            return Err(Code::ENOSYS);
        }
        Ok(FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE)
    }

    /// A new file, open. `flags` are those of open(2).
    pub fn create(
        &self,
        caller: Caller,
        (parent, name): (NodeId, &OsStr),
        (mode, umask): (u32, u32),
        flags: u32,
    ) -> Answer<(Entry, Opened)> {
        let agreed = self.negotiated();
        // MKNOD does the same and is not followed by a RELEASE.
        if agreed.no_open {
            return Err(Code::ENOSYS);
        }
        self.call("create", |e| {
            let made = e.create(caller, parent, name, mode, umask)?;
            self.opened_new(e, caller, made, flags)
        })
    }

    /// A new file without a name, open. `flags` are those of open(2). There is no other way to make one, so it is answered
    /// where CREATE is not.
    pub fn tmpfile(
        &self,
        caller: Caller,
        parent: NodeId,
        (mode, umask): (u32, u32),
        flags: u32,
    ) -> Answer<(Entry, Opened)> {
        self.call("tmpfile", |e| {
            let made = e.tmpfile(caller, parent, mode, umask)?;
            self.opened_new(e, caller, made, flags)
        })
    }

    /// A file just made is opened.
    fn opened_new(
        &self,
        engine: &Overlay,
        caller: Caller,
        made: Entry,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        if !self.negotiated().passthrough {
            return Ok((made, Opened::PLAIN));
        }
        let how = OpenHow {
            truncate: false,
            ..OpenHow::from_flags(flags)
        };
        match self.open_through(engine, caller, made.node, how) {
            Ok(opened) => Ok((made, opened)),
            Err(errno) => {
                // The kernel will not hear of it.
                engine.forget(made.node, 1);
                Err(errno)
            }
        }
    }

    pub fn read(&self, node: NodeId, offset: u64, buffer: &mut [u8]) -> Answer<usize> {
        self.call("read", |e| e.read(node, offset, buffer))
    }

    /// `flags` are `FUSE_WRITE_*`.
    pub fn write(&self, node: NodeId, offset: u64, data: &[u8], flags: u32) -> Answer<u32> {
        let kill = flags & WRITE_KILL_SUIDGID != 0;
        let kept_back = self.negotiated().writeback && flags & WRITE_CACHE != 0;
        let written = self.call("write", |e| {
            if kept_back {
                e.write_back(node, offset, data, kill)
            } else {
                e.write(node, offset, data, kill)
            }
        })?;
        Ok(written as u32)
    }

    pub fn fsync(&self, node: NodeId, datasync: bool) -> Answer<()> {
        self.call("fsync", |e| e.fsync(node, datasync))
    }

    pub fn fsyncdir(&self, node: NodeId, datasync: bool) -> Answer<()> {
        self.call("fsyncdir", |e| e.fsync(node, datasync))
    }

    /// Hands items to `add` until it says that one has no room. What was listed before an error is told, since the next
    /// request meets the error at once; and looked-up entries have their counts raised, so they must arrive.
    pub fn read_dir(
        &self,
        node: NodeId,
        offset: u64,
        plus: bool,
        add: &mut dyn FnMut(DirItem<'_>) -> bool,
    ) -> Answer<()> {
        let op = if plus { "readdirplus" } else { "readdir" };
        let mut taken = false;
        let done = self.call(op, |e| {
            e.read_dir(node, offset, plus, &mut |item| {
                let added = add(item);
                taken |= added;
                added
            })
        });
        if taken { Ok(()) } else { done }
    }

    pub fn statfs(&self) -> Answer<FsStat> {
        self.call("statfs", Overlay::statfs)
    }

    /// `flags` are those of setxattr(2).
    pub fn setxattr(&self, node: NodeId, name: &OsStr, value: &[u8], flags: i32) -> Answer<()> {
        let how = match flags {
            0 => XattrSet::Any,
            libc::XATTR_CREATE => XattrSet::Create,
            libc::XATTR_REPLACE => XattrSet::Replace,
            _ => return Err(Code::EINVAL),
        };
        self.call("setxattr", |e| e.setxattr(node, name, value, how))
    }

    pub fn getxattr(&self, node: NodeId, name: &OsStr, room: u32) -> Answer<XattrAnswer> {
        xattr(room, self.call("getxattr", |e| e.getxattr(node, name))?)
    }

    pub fn listxattr(&self, node: NodeId, room: u32) -> Answer<XattrAnswer> {
        xattr(room, self.call("listxattr", |e| e.listxattr(node))?)
    }

    pub fn removexattr(&self, node: NodeId, name: &OsStr) -> Answer<()> {
        self.call("removexattr", |e| e.removexattr(node, name))
    }

    pub fn ioctl(&self, node: NodeId, cmd: u32, data: &[u8]) -> Answer<Vec<u8>> {
        self.call("ioctl", |e| ioctl::answer(e, node, cmd, data))
    }

    /// `mode` is that of fallocate(2).
    pub fn fallocate(
        &self,
        caller: Caller,
        node: NodeId,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> Answer<()> {
        self.call("fallocate", |e| {
            e.fallocate(caller, node, mode, offset, length)
        })
    }

    /// Answered later, from the thread of [`seek`], unless the question is wrong.
    pub fn lseek(&self, node: NodeId, offset: i64, whence: i32, reply: seek::Reply) {
        let Ok(whence) = u32::try_from(whence) else {
            return reply(Err(Code::EINVAL));
        };
        let Ok(offset) = u64::try_from(offset) else {
            // What every file system of Linux says of a place before the beginning.
            return reply(Err(Errno::NXIO.into()));
        };
        let request = seek::Request {
            node,
            offset,
            whence,
            reply,
        };
        if let Err(unsent) = self.seek.send(request) {
            (unsent.0.reply)(Err(Code::EIO));
        }
    }

    /// `flags` are those of copy_file_range(2): none are known.
    pub fn copy_file_range(
        &self,
        caller: Caller,
        from: (NodeId, u64),
        to: (NodeId, u64),
        len: u64,
        flags: u64,
    ) -> Answer<u32> {
        if flags != 0 {
            return Err(Code::EINVAL);
        }
        let len = len.min(COPY_CHUNK);
        let copied = self.call("copy_file_range", |e| {
            e.copy_file_range(caller, from, to, len)
        })?;
        Ok(copied as u32)
    }
}

fn xattr(room: u32, value: Vec<u8>) -> Answer<XattrAnswer> {
    match (room as usize, value.len()) {
        (_, len) if len > XATTR_MAX => Err(Errno::TOOBIG.into()),
        (0, len) => Ok(XattrAnswer::Size(len as u32)),
        (room, len) if len > room => Err(Errno::RANGE.into()),
        _ => Ok(XattrAnswer::Data(value)),
    }
}

/// `renameat2` flags; `None` when there are some we do not know.
fn rename_flags(bits: u32) -> Option<RenameFlags> {
    if bits & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT) != 0 {
        return None;
    }
    Some(RenameFlags {
        no_replace: bits & libc::RENAME_NOREPLACE != 0,
        exchange: bits & libc::RENAME_EXCHANGE != 0,
        whiteout: bits & libc::RENAME_WHITEOUT != 0,
    })
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
