//! Passthrough (Linux 6.9): files that the kernel reads and writes itself, through a file of ours that stands behind them.
//!
//! The kernel lets all opens of a node be passed through to one and the same file, or none: one that breaks the rule is
//! EIO for whoever opens. So each open is counted before it is answered, and until the kernel says it is closed: it has left
//! the mode by itself when it tells, so these counts never fall below its own. A node that is open passed through is so
//! for everybody else, too; one that is open through the page cache of the mount stays there until all have closed it.
//!
//! Invariants:
//! - All opens of a node at a time have one backing, which is given back with the last of them.
//! - A node that has once been passed through is never again open through the page cache of the mount: mappings of the
//!   file behind it may live on without an open, and what they change would not be seen there. It holds since a file of
//!   the upper stays one, and a file that is refused once is always.
//! - Attributes of a file that somebody may have mapped to write are never left to the kernel: it is not told of such changes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use crate::overlay::{NodeId, OpenHow, Overlay, Result};
use crate::sys::fuse_device;

/// `FOPEN_KEEP_CACHE`, `FOPEN_NOFLUSH`, `FOPEN_PASSTHROUGH` of linux/fuse.h.
const FOPEN_KEEP_CACHE: u32 = 1 << 1;
const FOPEN_NOFLUSH: u32 = 1 << 5;
const FOPEN_PASSTHROUGH: u32 = 1 << 7;

const SHARDS: usize = 16;

/// A file as the kernel knows it, by number `id` of the connection that `device` leads to; it forgets it when this is dropped.
#[derive(Debug)]
pub struct Backing {
    device: Arc<OwnedFd>,
    id: u32,
}

impl Backing {
    pub fn open(device: &Arc<OwnedFd>, file: BorrowedFd<'_>) -> Result<Self> {
        let id = fuse_device::know(device.as_fd(), file)?;
        Ok(Self {
            device: Arc::clone(device),
            id,
        })
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Err(error) = fuse_device::forget(self.device.as_fd(), self.id) {
            tracing::debug!(%error, "a backing file was not given back");
        }
    }
}

/// What an open was answered with, as the kernel gives it back with RELEASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Cached,
    Reader,
    Writer,
}

impl Mode {
    const fn handle(self) -> u64 {
        match self {
            Self::Cached => 0,
            Self::Reader => 1,
            Self::Writer => 2,
        }
    }

    const fn of(handle: u64) -> Option<Self> {
        match handle {
            0 => Some(Self::Cached),
            1 => Some(Self::Reader),
            2 => Some(Self::Writer),
            _ => None,
        }
    }
}

/// An answer to OPEN.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The kernel's name of the open file from now on.
    pub handle: u64,
    /// `FOPEN_*`, without `FOPEN_PASSTHROUGH`.
    flags: u32,
    /// The file to be passed through to.
    backing: Option<Arc<Backing>>,
}

impl Opened {
    /// Nothing is kept of it.
    pub const PLAIN: Self = Self {
        handle: Mode::Cached.handle(),
        flags: FOPEN_KEEP_CACHE,
        backing: None,
    };

    /// All `FOPEN_*`, and the number of the backing file or 0.
    pub fn on_the_wire(&self) -> (u32, u32) {
        match &self.backing {
            None => (self.flags, 0),
            Some(backing) => (self.flags | FOPEN_PASSTHROUGH, backing.id),
        }
    }
}

/// What is known of one node.
#[derive(Default)]
struct State {
    cached: u64,
    readers: u64,
    writers: u64,
    /// While there are readers or writers.
    backing: Option<Arc<Backing>>,
    /// Has been open, passed through, so that it could be mapped to be written.
    mappable: bool,
}

impl State {
    fn is_open(&self) -> bool {
        self.cached + self.readers + self.writers > 0
    }

    fn count(&mut self, mode: Mode) -> &mut u64 {
        match mode {
            Mode::Cached => &mut self.cached,
            Mode::Reader => &mut self.readers,
            Mode::Writer => &mut self.writers,
        }
    }
}

/// Has the kernel know a file.
pub type Register<'a> = &'a dyn Fn(BorrowedFd<'_>) -> io::Result<Backing>;

/// What is to become of an open.
pub enum Decision {
    Answer {
        opened: Opened,
        /// From now on the kernel must not keep the node's attributes, but may have some.
        forget_attributes: bool,
    },
    /// The node has got a file of its own meanwhile: open it once more.
    Again,
}

/// The open files of a mount.
pub struct Opens {
    shards: [Mutex<HashMap<NodeId, State>>; SHARDS],
    /// It was told that some file cannot be passed through.
    told: AtomicBool,
}

impl Opens {
    pub fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            told: AtomicBool::new(false),
        }
    }

    fn shard(&self, node: NodeId) -> MutexGuard<'_, HashMap<NodeId, State>> {
        // The low bits of host inode numbers are as good as any hash.
        let shard = &self.shards[node.0 as usize % SHARDS];
        // Each change is one step, so that what a panic leaves is sound.
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an open of `node`. `file` is what can be passed through to; where there is none, `has_own` tells whether there
    /// would be one by now.
    pub fn open(
        &self,
        node: NodeId,
        how: OpenHow,
        file: Option<BorrowedFd<'_>>,
        has_own: impl FnOnce() -> bool,
        register: Register<'_>,
    ) -> Result<Decision> {
        let mut shard = self.shard(node);
        let known = shard.get(&node);
        let cached = known.is_some_and(|state| state.cached > 0);
        let backing = match (known.and_then(|state| state.backing.clone()), file) {
            (Some(backing), _) => Some(backing),
            (None, Some(file)) if !cached => self.register(node, file, register)?,
            // Whoever copied it up may have closed it already, and left it mapped.
            (None, None) if !cached && has_own() => return Ok(Decision::Again),
            (None, _) => None,
        };
        let mode = match &backing {
            None => Mode::Cached,
            Some(_) if how.write => Mode::Writer,
            Some(_) => Mode::Reader,
        };
        let state = shard.entry(node).or_default();
        *state.count(mode) += 1;
        state.backing.clone_from(&backing);
        let mappable = mode == Mode::Writer && how.read;
        let forget_attributes = mappable && !state.mappable;
        state.mappable |= mappable;
        let opened = match backing {
            None => Opened::PLAIN,
            backing => Opened {
                handle: mode.handle(),
                flags: FOPEN_NOFLUSH,
                backing,
            },
        };
        Ok(Decision::Answer {
            opened,
            forget_attributes,
        })
    }

    /// `None`: the file cannot be passed through, now or ever.
    fn register(
        &self,
        node: NodeId,
        file: BorrowedFd<'_>,
        register: Register<'_>,
    ) -> Result<Option<Arc<Backing>>> {
        let error = match register(file) {
            Ok(backing) => return Ok(Some(Arc::new(backing))),
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            Some(Errno::LOOP | Errno::INVAL | Errno::OPNOTSUPP) => {
                if self.told.swap(true, Ordering::Relaxed) {
                    tracing::debug!(node = node.0, %error, "a file is not passed through");
                } else {
                    tracing::warn!(node = node.0, %error, "some files are not passed through");
                }
                Ok(None)
            }
            errno => Err(errno.unwrap_or(Errno::IO)),
        }
    }

    /// An open that was answered with `handle` has ended.
    pub fn release(&self, node: NodeId, handle: u64) {
        let mut last = None;
        let mut shard = self.shard(node);
        if let (Some(mode), Entry::Occupied(mut entry)) = (Mode::of(handle), shard.entry(node)) {
            let state = entry.get_mut();
            let count = state.count(mode);
            *count = count.saturating_sub(1);
            if state.readers + state.writers == 0 {
                last = state.backing.take();
            }
            if !state.is_open() && !state.mappable {
                entry.remove();
            }
        }
        drop(shard);
        // A system call, outside the lock.
        drop(last);
    }

    /// Is it open, passed through, to be written?
    pub fn is_written(&self, node: NodeId) -> bool {
        self.shard(node).get(&node).is_some_and(|s| s.writers > 0)
    }

    /// May the file change without the kernel's telling itself?
    pub fn is_mappable(&self, node: NodeId) -> bool {
        self.shard(node).get(&node).is_some_and(|s| s.mappable)
    }

    /// The kernel does not know the node any more.
    pub fn forget(&self, node: NodeId) {
        let mut shard = self.shard(node);
        if let Entry::Occupied(mut entry) = shard.entry(node) {
            if entry.get().is_open() {
                entry.get_mut().mappable = false;
            } else {
                entry.remove();
            }
        }
    }

    /// Nodes of which anything is known.
    #[cfg(test)]
    fn len(&self) -> usize {
        (0..SHARDS as u64)
            .map(|shard| self.shard(NodeId(shard)).len())
            .sum()
    }
}

/// What can be asked of a kernel that passes through.
pub struct Prepared {
    device: Arc<OwnedFd>,
    sample: OwnedFd,
}

impl Prepared {
    /// Looks whether this process may have files passed through, and this mount has any. In words for people, if not.
    pub fn new(engine: &Overlay, device: OwnedFd) -> std::result::Result<Self, String> {
        if !is_privileged() {
            return Err(
                "it needs CAP_SYS_ADMIN in the first user namespace: root, outside of rootless containers".into(),
            );
        }
        let failed = |what: &str, e: Errno| format!("{what}: {}", io::Error::from(e));
        let sample = match engine.backing_sample() {
            Ok(Some(file)) => file,
            // Any regular file tells what is permitted.
            Ok(None) => rustix::fs::memfd_create("ovl", MemfdFlags::CLOEXEC)
                .map_err(|e| failed("no file to try it with", e))?,
            Err(Errno::NODATA) => {
                return Err(
                    "there is nothing to pass through: the mount is read-only, and its layers are in the store".into(),
                );
            }
            Err(e) => return Err(failed("no file to try it with in the work directory", e)),
        };
        if is_overlay(sample.as_fd()) {
            return Err(STACKED.into());
        }
        Ok(Self {
            device: Arc::new(device),
            sample,
        })
    }

    /// Tries it, once the kernel has agreed.
    pub fn try_out(self) -> std::result::Result<Arc<OwnedFd>, String> {
        match Backing::open(&self.device, self.sample.as_fd()) {
            Ok(own) => {
                drop(own);
                Ok(self.device)
            }
            Err(Errno::LOOP) => Err(STACKED.into()),
            Err(e) => Err(format!("the kernel refuses: {}", io::Error::from(e))),
        }
    }
}

const STACKED: &str = "the upper directory is on a stacked file system (overlayfs): the kernel passes nothing through to one";

/// Has this process CAP_SYS_ADMIN where the kernel asks for it?
fn is_privileged() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    /// `PROC_USER_INIT_INO` of linux/proc_ns.h.
    const FIRST: u64 = 0xefff_fffd;
    let first = rustix::fs::stat("/proc/self/ns/user").is_ok_and(|stat| stat.st_ino == FIRST);
    first && capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

fn is_overlay(file: BorrowedFd<'_>) -> bool {
    /// linux/magic.h
    const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type as u64 == OVERLAYFS_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const NODE: NodeId = NodeId(42);

    const fn how(read: bool, write: bool) -> OpenHow {
        OpenHow {
            read,
            write,
            append: false,
            truncate: false,
        }
    }

    const READ: OpenHow = how(true, false);
    const WRITE: OpenHow = how(false, true);
    const BOTH: OpenHow = how(true, true);

    /// A kernel that takes everything.
    struct Kernel {
        opens: Opens,
        device: Arc<OwnedFd>,
        registered: Cell<u32>,
    }

    impl Kernel {
        fn new() -> Self {
            Self {
                opens: Opens::new(),
                device: Arc::new(std::fs::File::open("/dev/null").expect("a file").into()),
                registered: Cell::new(0),
            }
        }

        fn decide(&self, how: OpenHow, file: bool, has_own: bool) -> Result<Decision> {
            let file = file.then(|| self.device.as_fd());
            self.opens.open(NODE, how, file, || has_own, &|_| {
                self.registered.set(self.registered.get() + 1);
                Ok(Backing {
                    device: Arc::clone(&self.device),
                    id: self.registered.get(),
                })
            })
        }

        /// Handle, number of the backing (0: none), and whether attributes are to be forgotten.
        fn open(&self, how: OpenHow, file: bool) -> (u64, u32, bool) {
            match self.decide(how, file, false).expect("an answer") {
                Decision::Answer {
                    opened,
                    forget_attributes,
                } => {
                    let (flags, id) = opened.on_the_wire();
                    assert_eq!(flags & FOPEN_PASSTHROUGH != 0, id != 0);
                    (opened.handle, id, forget_attributes)
                }
                Decision::Again => panic!("an answer"),
            }
        }
    }

    #[test]
    fn one_backing_until_the_last_has_closed() {
        let kernel = Kernel::new();
        assert_eq!(kernel.open(READ, true), (1, 1, false));
        assert_eq!(kernel.open(WRITE, true), (2, 1, false));
        // Also for one who looked before there was a file.
        assert_eq!(kernel.open(READ, false), (1, 1, false));
        assert!(kernel.opens.is_written(NODE));
        for handle in [2, 1] {
            kernel.opens.release(NODE, handle);
        }
        assert!(!kernel.opens.is_written(NODE));
        assert_eq!(kernel.open(READ, true), (1, 1, false));
        for _ in 0..2 {
            kernel.opens.release(NODE, 1);
        }
        assert_eq!(kernel.opens.len(), 0);
        assert_eq!(kernel.open(READ, true), (1, 2, false));
    }

    #[test]
    fn cached_for_as_long_as_somebody_is() {
        let kernel = Kernel::new();
        assert_eq!(kernel.open(READ, false), (0, 0, false));
        assert_eq!(kernel.open(BOTH, true), (0, 0, false));
        kernel.opens.release(NODE, 0);
        assert_eq!(kernel.open(READ, true), (0, 0, false));
        kernel.opens.release(NODE, 0);
        kernel.opens.release(NODE, 0);
        assert_eq!(kernel.opens.len(), 0);
        assert_eq!(kernel.open(BOTH, true), (2, 1, true));
    }

    #[test]
    fn who_looked_too_early_looks_again() {
        let kernel = Kernel::new();
        let decision = kernel.decide(READ, false, true).expect("a decision");
        assert!(matches!(decision, Decision::Again));
        assert_eq!(kernel.opens.len(), 0);
    }

    #[test]
    fn what_could_be_mapped_is_remembered() {
        let kernel = Kernel::new();
        assert_eq!(kernel.open(WRITE, true), (2, 1, false));
        assert!(!kernel.opens.is_mappable(NODE));
        assert_eq!(kernel.open(BOTH, true), (2, 1, true));
        assert_eq!(kernel.open(BOTH, true), (2, 1, false));
        for _ in 0..3 {
            kernel.opens.release(NODE, 2);
        }
        assert!(kernel.opens.is_mappable(NODE));
        assert_eq!(kernel.open(READ, true), (1, 2, false));
        kernel.opens.forget(NODE);
        assert!(!kernel.opens.is_mappable(NODE));
        // It was open all the same: the one backing stays.
        assert_eq!(kernel.open(READ, true), (1, 2, false));
        kernel.opens.release(NODE, 1);
        kernel.opens.release(NODE, 1);
        assert_eq!(kernel.opens.len(), 0);
    }

    #[test]
    fn a_file_that_is_refused_is_cached_and_a_failure_is_told() {
        let kernel = Kernel::new();
        let open = |errno: Errno| {
            let file = Some(kernel.device.as_fd());
            let refuse = |_: BorrowedFd<'_>| Err(errno.into());
            kernel.opens.open(NODE, READ, file, || true, &refuse)
        };
        let refused = open(Errno::LOOP).expect("an answer");
        assert!(matches!(refused, Decision::Answer { opened, .. } if opened.backing.is_none()));
        kernel.opens.release(NODE, 0);
        assert_eq!(open(Errno::NOMEM).err(), Some(Errno::NOMEM));
        assert_eq!(kernel.opens.len(), 0);
    }

    #[test]
    fn what_was_not_open_is_not_closed() {
        let kernel = Kernel::new();
        for handle in [0, 1, 2, 3, u64::MAX] {
            kernel.opens.release(NODE, handle);
        }
        assert_eq!(kernel.open(READ, true), (1, 1, false));
        for handle in [0, 2, 3, u64::MAX] {
            kernel.opens.release(NODE, handle);
        }
        assert_eq!(kernel.open(READ, true), (1, 1, false));
    }
}
