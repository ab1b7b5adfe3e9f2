//! A directory's merged listing, with positions that survive changes.
//!
//! An entry's position is a keyed hash of its name, so it does not depend on what else is in the directory or on the
//! listing being kept: one may be dropped at any time and made anew, and a reader that goes on sees each entry that
//! stayed exactly once. The key is drawn per mount, so nobody can prepare names that collide.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::NodeId;
use super::node::lock;
use crate::meta::FileKind;

/// Positions of `.` and `..`.
pub(super) const DOT: u64 = 1;
pub(super) const DOT_DOT: u64 = 2;

#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Position, above `DOT_DOT` and within `i64`.
    pub at: u64,
    pub name: OsString,
    pub ino: NodeId,
    pub kind: FileKind,
}

/// All visible names of a directory, by rising position. Names come and go in the time it takes to find them, however
/// many there are: a large directory is emptied name by name.
#[derive(Debug)]
pub(super) struct Listing {
    items: BTreeMap<u64, Item>,
    /// Items whose position another one has. 62 bits of a keyed hash: there are none, but a name must not get lost.
    twins: Vec<Item>,
    /// Names in all listings of the mount.
    total: Arc<AtomicUsize>,
}

impl Clone for Listing {
    fn clone(&self) -> Self {
        Self::new(&self.total, self.items().cloned())
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.total.fetch_sub(self.len(), Ordering::Relaxed);
    }
}

/// Position of a name.
pub(super) fn position(hasher: &RandomState, name: &OsStr) -> u64 {
    DOT_DOT + 1 + (hasher.hash_one(name) >> 2)
}

impl Listing {
    /// `total` is kept at the number of names in all listings that it is given to.
    pub fn new(total: &Arc<AtomicUsize>, items: impl IntoIterator<Item = Item>) -> Self {
        let mut list = Self {
            items: BTreeMap::new(),
            twins: Vec::new(),
            total: Arc::clone(total),
        };
        for item in items {
            list.insert(item);
        }
        list
    }

    pub fn get(&self, at: u64, name: &OsStr) -> Option<&Item> {
        let first = self.items.get(&at)?;
        if first.name == name {
            return Some(first);
        }
        self.twins.iter().find(|i| i.at == at && i.name == name)
    }

    pub fn insert(&mut self, item: Item) {
        let before = self.len();
        self.put(item);
        self.total.fetch_add(self.len() - before, Ordering::Relaxed);
    }

    fn put(&mut self, item: Item) {
        match self.items.entry(item.at) {
            Entry::Vacant(place) => {
                place.insert(item);
            }
            Entry::Occupied(mut place) if place.get().name == item.name => {
                place.insert(item);
            }
            Entry::Occupied(_) => {
                let same = |i: &Item| i.at == item.at && i.name == item.name;
                self.twins.retain(|i| !same(i));
                self.twins.push(item);
            }
        }
    }

    pub fn remove(&mut self, at: u64, name: &OsStr) {
        let before = self.len();
        self.take(at, name);
        self.total.fetch_sub(before - self.len(), Ordering::Relaxed);
    }

    fn take(&mut self, at: u64, name: &OsStr) {
        if self.items.get(&at).is_some_and(|first| first.name == name) {
            self.items.remove(&at);
            if let Some(twin) = self.twins.iter().position(|i| i.at == at) {
                self.items.insert(at, self.twins.swap_remove(twin));
            }
        } else {
            self.twins.retain(|i| i.at != at || i.name != name);
        }
    }

    /// Items behind position `at`.
    pub fn after(&self, at: u64) -> impl Iterator<Item = &Item> {
        let twins = |item: &Item| {
            let at = item.at;
            self.twins.iter().filter(move |t| t.at == at)
        };
        let behind = (Bound::Excluded(at), Bound::Unbounded);
        self.items
            .range(behind)
            .flat_map(move |(_, item)| std::iter::once(item).chain(twins(item)))
    }

    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.after(0)
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.items.len() + self.twins.len()
    }
}

/// Names that all listings of a mount may hold together, beyond that of one directory: some 30 MB.
const BUDGET: usize = 1 << 18;

/// Which directories have a listing, oldest first, and how many names those hold.
pub(super) struct Kept {
    pub total: Arc<AtomicUsize>,
    queue: Mutex<VecDeque<NodeId>>,
    pub budget: usize,
}

impl Kept {
    pub fn new() -> Self {
        Self {
            total: Arc::default(),
            queue: Mutex::default(),
            budget: BUDGET,
        }
    }

    pub fn is_over(&self) -> bool {
        self.total.load(Ordering::Relaxed) > self.budget
    }

    /// `dir` has a listing now. `is_kept` tells whether another directory still has one.
    pub fn note(&self, dir: NodeId, is_kept: impl Fn(NodeId) -> bool) {
        let mut queue = lock(&self.queue);
        // Directories the kernel has forgotten are swept out before the queue grows.
        if queue.len() == queue.capacity() {
            queue.retain(|id| is_kept(*id));
        }
        queue.push_back(dir);
    }

    /// The directory whose listing is to be given up next: never `but`, which is in use.
    pub fn oldest(&self, but: NodeId) -> Option<NodeId> {
        let mut queue = lock(&self.queue);
        loop {
            let id = queue.pop_front()?;
            if id != but {
                return Some(id);
            }
            if queue.iter().all(|other| *other == but) {
                queue.clear();
                queue.push_back(but);
                return None;
            }
            queue.push_back(but);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_do_not_move() {
        let hasher = RandomState::new();
        let item = |n: &str| Item {
            at: position(&hasher, OsStr::new(n)),
            name: n.into(),
            ino: NodeId(7),
            kind: FileKind::Regular,
        };
        let names: Vec<String> = (0..500).map(|i| format!("f{i}")).collect();
        let mut list = Listing::new(&Arc::default(), names.iter().map(|n| item(n)));
        let items: Vec<_> = list.items().cloned().collect();
        let (first, middle) = items.split_at(250);
        let seen: Vec<_> = first.iter().map(|i| i.name.clone()).collect();
        let stop = first.last().expect("250 items").at;
        let rest: Vec<_> = middle.iter().map(|i| i.name.clone()).collect();
        // Half of what was read goes away, new names come.
        for n in &seen[..125] {
            list.remove(position(&hasher, n), n);
        }
        list.insert(item("new"));
        let went_on: Vec<_> = list
            .after(stop)
            .map(|i| i.name.clone())
            .filter(|n| n != "new")
            .collect();
        assert_eq!(went_on, rest);
        assert!(
            list.get(position(&hasher, OsStr::new("new")), OsStr::new("new"))
                .is_some()
        );
        assert!(
            list.items()
                .all(|i| i.at > DOT_DOT && i64::try_from(i.at).is_ok())
        );
    }

    #[test]
    fn names_at_one_position_are_all_kept() {
        let item = |name: &str, at: u64| Item {
            at,
            name: name.into(),
            ino: NodeId(7),
            kind: FileKind::Regular,
        };
        let total = Arc::default();
        let items = [item("b", 5), item("a", 5), item("z", 9), item("c", 5)];
        let mut list = Listing::new(&total, items);
        list.insert(item("c", 5));
        let names = |list: &Listing| {
            let all = list.items().map(|i| i.name.to_str().unwrap().to_owned());
            all.collect::<Vec<_>>().join(" ")
        };
        assert_eq!((names(&list).as_str(), list.len()), ("b a c z", 4));
        assert_eq!(total.load(Ordering::Relaxed), 4);
        for gone in ["b", "c", "none"] {
            list.remove(5, OsStr::new(gone));
            assert!(list.get(5, OsStr::new(gone)).is_none());
        }
        assert_eq!(names(&list), "a z");
        assert!(list.get(5, OsStr::new("a")).is_some());
        list.remove(5, OsStr::new("a"));
        assert_eq!(names(&list), "z");
        assert_eq!(total.load(Ordering::Relaxed), 1);
        let copy = list.clone();
        assert_eq!(total.load(Ordering::Relaxed), 2);
        drop((list, copy));
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }
}
