//! Nodes: what the engine keeps in memory of each object the transport knows, and the table of them.
//!
//! A node lives while the kernel remembers it (lookup count), a child node names it as parent, or an operation holds
//! it. Dropping the last reference removes it from the table.
//!
//! Locks, in this order: the engine's directory-rename lock; `DirState::namespace` of the directories concerned, by
//! rising node id; the engine's lock of directories' links, held only to check and change one; then a node's `state`,
//! held only to read or change its fields, never over I/O. `copy_up` of one node is taken before any namespace lock, and no operation waits for it while it holds one.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use rustix::io::Errno;

use super::few::Few;
use super::foresight::LeftOut;
use super::listing::Listing;
use super::rules::Kept as KeptRules;
use super::{NodeId, Result};
use crate::layer::{LayerNode, ObjectKey};
use crate::meta::FileKind;

/// Position in the stack of lowers, 0 on top.
pub(super) type LayerIndex = u16;

/// An object in one lower layer.
#[derive(Clone, Debug)]
pub(super) struct LowerRef {
    pub layer: LayerIndex,
    pub node: LayerNode,
}

/// One name of a node that we know of.
#[derive(Clone)]
pub(super) struct Link {
    pub parent: Arc<Node>,
    pub name: Arc<OsStr>,
    /// The upper has this name (else it shows through from a lower).
    pub in_upper: bool,
}

/// Where a node's object is in the upper.
#[derive(Clone, Debug)]
pub(super) struct UpperObject {
    /// The real identity, checked whenever the object is opened by name.
    pub key: ObjectKey,
    /// Keeps an object without a known name reachable, and its inode number from being given to another.
    pub pinned: Option<Arc<OwnedFd>>,
    /// Its entry in the index: the file is the one inode of all names of a hard-linked lower file.
    pub index: Option<OsString>,
    /// `metacopy`: only owner, mode, times and xattrs are in the upper, the data is still the lower's.
    pub data_below: bool,
}

/// The changing part of a node.
pub(super) struct State {
    pub links: Few<Link>,
    pub upper: Option<Box<UpperObject>>,
    /// Directories: all merged lower directories, topmost first. Others: the lower object shown, or the origin of the
    /// upper one where it is known.
    pub lowers: Few<LowerRef>,
}

impl State {
    /// One of the names in the upper: the `n`th, counted round.
    pub fn link_in_upper(&self, n: usize) -> Option<&Link> {
        let links = || self.links.iter().filter(|l| l.in_upper);
        links().nth(n % links().count().max(1))
    }

    /// The directory that the upper object is opened from; `None` where none is needed.
    pub fn parent_in_upper(&self) -> Option<Arc<Node>> {
        let pinned = self.upper.as_ref().is_some_and(|u| u.pinned.is_some());
        let link = self.link_in_upper(0).filter(|_| !pinned)?;
        Some(Arc::clone(&link.parent))
    }
}

/// What only directories have.
pub(super) struct DirState {
    /// Guards the directory's names: lookups and reads share it, changes own it.
    pub namespace: RwLock<()>,
    pub listing: Mutex<Option<Arc<Listing>>>,
    /// The upper directory carries the `impure` mark: some entry's inode number is not its own.
    pub impure: AtomicBool,
    /// With lowers: the path those have in their layers.
    pub lower_path: Mutex<Option<Arc<OsStr>>>,
    /// What is made in it gets these.
    pub rules: Mutex<KeptRules>,
    /// Look-ups since there was a listing.
    pub asked: AtomicU32,
    /// Names it had when it was last listed; 0 if it never was.
    pub size: AtomicU32,
    pub left_out: LeftOut,
}

impl DirState {
    pub fn lower_path(&self) -> Option<Arc<OsStr>> {
        lock(&self.lower_path).clone()
    }
}

pub(super) struct Node {
    pub id: NodeId,
    pub kind: FileKind,
    state: RwLock<State>,
    /// Held by whoever copies this node up; afterwards, while a write puts the time back that it moved.
    pub copy_up: Mutex<()>,
    in_upper: AtomicBool,
    data_below: AtomicBool,
    dir: Option<Box<DirState>>,
    table: Weak<Table>,
}

/// A poisoned lock means a panic elsewhere; what it guards is changed in single steps, so it is still sound.
fn unpoison<T>(r: std::result::Result<T, std::sync::PoisonError<T>>) -> T {
    r.unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    unpoison(m.lock())
}

impl Node {
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        unpoison(self.state.read())
    }

    pub fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        unpoison(self.state.write())
    }

    /// Has an object in the upper. Once true it stays true.
    pub fn in_upper(&self) -> bool {
        self.in_upper.load(Ordering::Acquire)
    }

    /// Has its data in the upper. Once true it stays true.
    pub fn data_in_upper(&self) -> bool {
        self.in_upper() && !self.data_below.load(Ordering::Acquire)
    }

    /// Tells the node it now has an upper object, or more of it.
    pub fn set_upper(&self, state: &mut State, upper: UpperObject) {
        self.data_below.store(upper.data_below, Ordering::Release);
        state.upper = Some(Box::new(upper));
        self.in_upper.store(true, Ordering::Release);
    }

    pub fn is_dir(&self) -> bool {
        self.dir.is_some()
    }

    /// The directory's part; ENOTDIR for all others.
    pub fn dir(&self) -> Result<&DirState> {
        self.dir.as_deref().ok_or(Errno::NOTDIR)
    }

    pub fn names_shared(&self) -> Result<RwLockReadGuard<'_, ()>> {
        Ok(unpoison(self.dir()?.namespace.read()))
    }

    pub fn names_owned(&self) -> Result<RwLockWriteGuard<'_, ()>> {
        Ok(unpoison(self.dir()?.namespace.write()))
    }

    /// A directory that was removed, or any object without a name left.
    pub fn is_removed(&self) -> bool {
        self.id != NodeId::ROOT && self.state().links.is_empty()
    }

    /// Records that the object is reachable as `name` in `parent`.
    pub fn add_link(&self, parent: &Arc<Self>, name: &OsStr, in_upper: bool) {
        let mut state = self.state_mut();
        let State { links, lowers, .. } = &mut *state;
        match links
            .iter_mut()
            .find(|l| Arc::ptr_eq(&l.parent, parent) && *l.name == *name)
        {
            Some(link) => link.in_upper |= in_upper,
            None => {
                if self.is_dir() {
                    links.clear();
                }
                // Mostly the name it has in its layer: one copy will do for both.
                let kept = lowers.first().and_then(|lower| lower.node.name_if(name));
                links.push(Link {
                    parent: Arc::clone(parent),
                    name: kept.unwrap_or_else(|| name.into()),
                    in_upper,
                });
            }
        }
    }

    /// Forgets a name. Gives the link back so that the parent is released outside the lock.
    pub fn remove_link(&self, parent: &Arc<Self>, name: &OsStr) -> Option<Link> {
        let mut state = self.state_mut();
        let at = state
            .links
            .iter()
            .position(|l| Arc::ptr_eq(&l.parent, parent) && *l.name == *name)?;
        state.links.swap_remove(at)
    }

    /// The link of this name, if known.
    pub fn has_link(&self, parent: &Arc<Self>, name: &OsStr) -> Option<Link> {
        self.state()
            .links
            .iter()
            .find(|l| Arc::ptr_eq(&l.parent, parent) && *l.name == *name)
            .cloned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            table.remove_dead(self.id);
        }
        // Parents that go with it go one by one: a recursion as deep as the path would take all of the stack.
        let take = |node: &mut Self| std::mem::take(&mut unpoison(node.state.get_mut()).links);
        let mut links = Vec::from(take(self));
        while let Some(link) = links.pop() {
            if let Some(mut parent) = Arc::into_inner(link.parent) {
                links.extend(Vec::from(take(&mut parent)));
            }
        }
    }
}

/// Guards a walk up over parents. Names change while we walk, and others may have changed the layers below: a walk that
/// comes round again ends, with ELOOP (Brent's way to find a cycle: the mark moves on at each power of two).
pub(super) struct Climb {
    mark: Arc<Node>,
    steps: usize,
    limit: usize,
}

impl Climb {
    pub fn from(start: &Arc<Node>) -> Self {
        Self {
            mark: Arc::clone(start),
            steps: 0,
            limit: 1,
        }
    }

    /// The walk has come to the parent `at`.
    pub fn step(&mut self, at: &Arc<Node>) -> Result<()> {
        if Arc::ptr_eq(at, &self.mark) {
            return Err(Errno::LOOP);
        }
        self.steps += 1;
        if self.steps == self.limit {
            self.mark = Arc::clone(at);
            self.steps = 0;
            self.limit *= 2;
        }
        Ok(())
    }
}

/// Is `dir` the directory `top` or below it? ELOOP where the parents form a circle.
pub(super) fn is_inside(dir: &Arc<Node>, top: &Node) -> Result<bool> {
    let mut at = Arc::clone(dir);
    let mut climb = Climb::from(dir);
    loop {
        if std::ptr::eq(&raw const *at, top) {
            return Ok(true);
        }
        let Some(up) = at.state().links.first().map(|l| Arc::clone(&l.parent)) else {
            return Ok(false);
        };
        climb.step(&up)?;
        at = up;
    }
}

/// Locks the namespaces of several directories without deadlock: by rising id, each once.
pub(super) fn own_all<'a>(dirs: &[&'a Arc<Node>]) -> Result<Vec<RwLockWriteGuard<'a, ()>>> {
    let mut sorted: Vec<_> = dirs.to_vec();
    sorted.sort_by_key(|n| n.id);
    sorted.dedup_by_key(|n| n.id);
    sorted.into_iter().map(|n| n.names_owned()).collect()
}

struct Slot {
    node: Weak<Node>,
    /// Held while the kernel remembers the node.
    known: Option<Arc<Node>>,
    lookups: u64,
}

/// All live nodes by id, in shards so that no lock is shared by all.
pub(super) struct Table {
    shards: [Mutex<HashMap<u64, Slot>>; SHARDS],
    hasher: RandomState,
    live: AtomicUsize,
    /// As many were live since memory was last given back.
    most: AtomicUsize,
}

const SHARDS: usize = 32;
/// Fewer nodes than these are not worth giving back: some three megabytes.
const WORTH_GIVING_BACK: usize = 4096;

impl Table {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            live: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }

    fn shard(&self, id: NodeId) -> MutexGuard<'_, HashMap<u64, Slot>> {
        lock(&self.shards[self.hasher.hash_one(id.0) as usize % SHARDS])
    }

    /// The node of this id, if alive. ESTALE when the transport names one we do not know.
    pub fn get(&self, id: NodeId) -> Result<Arc<Node>> {
        self.find(id).ok_or(Errno::STALE)
    }

    pub fn find(&self, id: NodeId) -> Option<Arc<Node>> {
        self.shard(id)
            .get(&id.0)
            .and_then(|slot| slot.node.upgrade())
    }

    /// The live node of this id, or a new one, with the path of its lowers if it is a directory.
    pub fn intern(
        self: &Arc<Self>,
        id: NodeId,
        kind: FileKind,
        state: impl FnOnce() -> (State, Option<Arc<OsStr>>),
    ) -> Arc<Node> {
        let mut shard = self.shard(id);
        if let Some(node) = shard.get(&id.0).and_then(|slot| slot.node.upgrade()) {
            return node;
        }
        let (state, lower_path) = state();
        let node = Arc::new(Node {
            id,
            kind,
            in_upper: AtomicBool::new(state.upper.is_some()),
            data_below: AtomicBool::new(state.upper.as_ref().is_some_and(|u| u.data_below)),
            state: RwLock::new(state),
            copy_up: Mutex::default(),
            dir: kind.is_dir().then(|| {
                Box::new(DirState {
                    namespace: RwLock::default(),
                    listing: Mutex::default(),
                    impure: AtomicBool::new(false),
                    lower_path: Mutex::new(lower_path),
                    rules: Mutex::default(),
                    asked: AtomicU32::new(0),
                    size: AtomicU32::new(0),
                    left_out: LeftOut::default(),
                })
            }),
            table: Arc::downgrade(self),
        });
        let replaced = shard.insert(
            id.0,
            Slot {
                node: Arc::downgrade(&node),
                known: None,
                lookups: 0,
            },
        );
        if replaced.is_none() {
            let live = self.live.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(live, Ordering::Relaxed);
        }
        node
    }

    /// One more reference of the kernel's.
    pub fn remember(&self, node: &Arc<Node>) {
        if let Some(slot) = self.shard(node.id).get_mut(&node.id.0) {
            slot.lookups += 1;
            slot.known.get_or_insert_with(|| Arc::clone(node));
        }
    }

    /// The kernel gives back `count` references; `true` when it had no more.
    pub fn forget(&self, id: NodeId, count: u64) -> bool {
        let released = {
            let mut shard = self.shard(id);
            let Some(slot) = shard.get_mut(&id.0) else {
                return true;
            };
            slot.lookups = slot.lookups.saturating_sub(count);
            if slot.lookups > 0 {
                return false;
            }
            slot.known.take()
        };
        // Dropped outside the shard's lock: dropping a node takes it.
        drop(released);
        true
    }

    /// Another node may have taken the dead one's place meanwhile.
    fn remove_dead(&self, id: NodeId) {
        let mut shard = self.shard(id);
        if shard
            .get(&id.0)
            .is_some_and(|slot| slot.node.strong_count() == 0)
        {
            shard.remove(&id.0);
            self.live.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// When more than half of many nodes have gone, their memory goes back to the system: the allocator would keep it.
    pub fn give_back(&self) {
        let (live, most) = (self.len(), self.most.load(Ordering::Relaxed));
        if most.saturating_sub(live) < WORTH_GIVING_BACK.max(most / 2) {
            return;
        }
        let ours = self
            .most
            .compare_exchange(most, live, Ordering::Relaxed, Ordering::Relaxed);
        if ours.is_ok() {
            self.shards
                .iter()
                .for_each(|shard| lock(shard).shrink_to_fit());
            crate::sys::trim_heap();
        }
    }

    /// Number of nodes in memory.
    pub fn len(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Drops what the kernel remembered: the mount is gone.
    pub fn clear(&self) {
        for shard in &self.shards {
            let released: Vec<_> = lock(shard)
                .values_mut()
                .filter_map(|slot| slot.known.take())
                .collect();
            drop(released);
        }
    }
}
