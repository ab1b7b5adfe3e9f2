//! The disk as a mounted file system.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::mount::{MountFlags, UnmountFlags};

use super::tree::{Node, Op, Tree};

/// Nothing is kept by the kernel: what the disk was set to is what is seen.
const TTL: Duration = Duration::ZERO;

/// Which requests count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// EIO: anything that reaches the medium.
    Io,
    /// EIO: only what reads file contents from it.
    Read,
    /// ENOSPC: what takes room.
    Space,
    /// EACCES: what needs a permission.
    Access,
}

/// What shall fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// The how manieth request of that kind, from 0.
    pub nth: u64,
    /// And all after it.
    pub for_good: bool,
}

#[derive(Default)]
struct Faults {
    armed: Option<Fault>,
    seen: u64,
    struck: bool,
}

pub struct State {
    pub tree: Tree,
    pub log: Vec<Op>,
    faults: Faults,
}

impl State {
    fn change(&mut self, op: Op) {
        self.tree.apply(&op);
        self.log.push(op);
    }

    /// Whether a request of these kinds fails, and how.
    fn strike(&mut self, kinds: &[Kind]) -> Result<(), Errno> {
        let Some(fault) = self
            .faults
            .armed
            .filter(|fault| kinds.contains(&fault.kind))
        else {
            return Ok(());
        };
        let number = self.faults.seen;
        self.faults.seen += 1;
        if number == fault.nth || (fault.for_good && number > fault.nth) {
            self.faults.struck = true;
            return Err(match fault.kind {
                Kind::Io | Kind::Read => Errno::EIO,
                Kind::Space => Errno::ENOSPC,
                Kind::Access => Errno::EACCES,
            });
        }
        Ok(())
    }
}

/// A mounted disk. Unmounted when dropped.
pub struct Disk {
    state: Arc<Mutex<State>>,
    mount: std::path::PathBuf,
    session: Option<fuser::BackgroundSession>,
}

impl Disk {
    /// Mounts a disk with `tree` on it on an empty directory.
    pub fn mount(tree: Tree, at: &Path) -> Self {
        let state = Arc::new(Mutex::new(State {
            tree,
            log: Vec::new(),
            faults: Faults::default(),
        }));
        let device = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .expect("/dev/fuse");
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount(
            "disk",
            at,
            "fuse.test-disk",
            MountFlags::NOSUID | MountFlags::NODEV,
            options.as_c_str(),
        )
        .expect("mounting the test disk");
        let mut config = fuser::Config::default();
        config.n_threads = Some(1);
        let session = fuser::Session::from_fd(
            DiskFs(Arc::clone(&state)),
            device.into(),
            fuser::SessionACL::All,
            config,
        )
        .expect("greeting the kernel");
        Self {
            state,
            mount: at.to_owned(),
            session: Some(session.spawn().expect("a thread for the test disk")),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes requests fail from now on.
    pub fn arm(&self, fault: Fault) {
        self.state().faults = Faults {
            armed: Some(fault),
            ..Faults::default()
        };
    }

    /// Requests of the armed kind so far.
    pub fn seen(&self) -> u64 {
        self.state().faults.seen
    }

    /// Ends that; whether anything did fail.
    pub fn disarm(&self) -> bool {
        std::mem::take(&mut self.state().faults).struck
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.mount, UnmountFlags::DETACH);
        if let Some(session) = self.session.take() {
            let _ = session.join();
        }
    }
}

struct DiskFs(Arc<Mutex<State>>);

impl DiskFs {
    fn with<T>(&self, job: impl FnOnce(&mut State) -> Result<T, Errno>) -> Result<T, Errno> {
        job(&mut self.0.lock().unwrap())
    }
}

fn attr(state: &State, ino: u64) -> Result<FileAttr, Errno> {
    let (mode, node) = state.tree.nodes.get(&ino).ok_or(Errno::ENOENT)?;
    let (kind, size) = match node {
        Node::Dir(_) => (FileType::Directory, 0),
        Node::File(data) => (FileType::RegularFile, data.len() as u64),
    };
    Ok(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: *mode as u16,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

fn find(state: &mut State, dir: u64, name: &OsStr) -> Result<u64, Errno> {
    let entries = state.tree.dir(dir).ok_or(Errno::ENOTDIR)?;
    entries.get(name).copied().ok_or(Errno::ENOENT)
}

fn make(
    state: &mut State,
    dir: u64,
    name: &OsStr,
    mode: u32,
    is_dir: bool,
) -> Result<FileAttr, Errno> {
    state.strike(&[Kind::Io, Kind::Space, Kind::Access])?;
    if find(state, dir, name).is_ok() {
        return Err(Errno::EEXIST);
    }
    let ino = state.tree.next;
    state.change(Op::Make {
        dir,
        name: name.to_owned(),
        ino,
        mode: mode & 0o7777,
        is_dir,
    });
    attr(state, ino)
}

/// Whether a file is the memory that processes share. A page of it that cannot be read is a SIGBUS, on any file system;
/// so reading it never fails here.
fn is_shared_memory(state: &State, ino: u64) -> bool {
    state.tree.nodes.values().any(|(_, node)| match node {
        Node::Dir(entries) => entries
            .iter()
            .any(|(name, at)| *at == ino && name.to_string_lossy().ends_with("-shm")),
        Node::File(_) => false,
    })
}

fn remove(state: &mut State, dir: u64, name: &OsStr) -> Result<(), Errno> {
    state.strike(&[Kind::Io, Kind::Access])?;
    find(state, dir, name)?;
    state.change(Op::Remove {
        dir,
        name: name.to_owned(),
    });
    Ok(())
}

impl Filesystem for DiskFs {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.with(|state| {
            let ino = find(state, parent.0, name)?;
            attr(state, ino)
        });
        match found {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(|state| attr(state, ino.0)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.with(|state| {
            if let Some(mode) = mode {
                state.strike(&[Kind::Io, Kind::Access])?;
                state.change(Op::Mode {
                    ino: ino.0,
                    mode: mode & 0o7777,
                });
            }
            if let Some(len) = size {
                state.strike(&[Kind::Io, Kind::Space])?;
                state.change(Op::Truncate { ino: ino.0, len });
            }
            attr(state, ino.0)
        });
        match changed {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        match self.with(|state| make(state, parent.0, name, mode & !umask, true)) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.with(|state| remove(state, parent.0, name)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.with(|state| remove(state, parent.0, name)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.with(|state| {
            state.strike(&[Kind::Io, Kind::Space, Kind::Access])?;
            find(state, parent.0, name)?;
            state.change(Op::Rename {
                from: (parent.0, name.to_owned()),
                to: (to.0, new.to_owned()),
            });
            Ok(())
        });
        match renamed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.with(|state| make(state, parent.0, name, mode & !umask, false)) {
            Ok(attr) => reply.created(
                &TTL,
                &attr,
                Generation(0),
                FileHandle(0),
                FopenFlags::empty(),
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.with(|state| state.strike(&[Kind::Io, Kind::Access])) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.with(|state| {
            if !is_shared_memory(state, ino.0) {
                state.strike(&[Kind::Io, Kind::Read])?;
            }
            let file = state.tree.file(ino.0).ok_or(Errno::EISDIR)?;
            let start = (offset as usize).min(file.len());
            let end = (start + size as usize).min(file.len());
            Ok(file[start..end].to_vec())
        });
        match read {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.with(|state| {
            state.strike(&[Kind::Io, Kind::Space])?;
            state.change(Op::Write {
                ino: ino.0,
                at: offset,
                data: data.to_vec(),
            });
            Ok(())
        });
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        sync(self, ino, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        sync(self, ino, reply);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = self.with(|state| {
            let entries = state.tree.dir(ino.0).ok_or(Errno::ENOTDIR)?.clone();
            Ok::<Vec<(OsString, u64)>, Errno>(entries.into_iter().collect())
        });
        let Ok(entries) = entries else {
            return reply.error(Errno::ENOTDIR);
        };
        for (index, (name, child)) in entries.into_iter().enumerate().skip(offset as usize) {
            let is_dir = self.with(|state| Ok(state.tree.dir(child).is_some())) == Ok(true);
            let kind = if is_dir {
                FileType::Directory
            } else {
                FileType::RegularFile
            };
            if reply.add(INodeNo(child), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // Plenty, until a write has failed for want of it: the store looks before it writes.
        let full = self.with(|state| {
            let faults = &state.faults;
            Ok(faults.struck && faults.armed.is_some_and(|fault| fault.kind == Kind::Space))
        });
        let free = if full == Ok(true) { 0 } else { 1 << 22 };
        reply.statfs(1 << 22, free, free, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}

fn sync(fs: &DiskFs, ino: INodeNo, reply: ReplyEmpty) {
    let synced = fs.with(|state| {
        state.strike(&[Kind::Io, Kind::Space])?;
        state.log.push(Op::Sync(ino.0));
        Ok(())
    });
    match synced {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
