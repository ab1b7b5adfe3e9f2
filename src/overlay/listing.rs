//! A directory's merged listing, with positions that survive changes.
//!
//! An entry's position is a keyed hash of its name, so it does not depend on what else is in the directory or on the
//! listing being kept: one may be dropped at any time and made anew, and a reader that goes on sees each entry that
//! stayed exactly once. The key is drawn per mount, so nobody can prepare names that collide.
//!
//! As long as it is kept, it is also what answers whether a name is there, and which layer has it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::NodeId;
use super::node::lock;
use crate::meta::FileKind;

/// Positions of `.` and `..`.
pub(super) const DOT: u64 = 1;
pub(super) const DOT_DOT: u64 = 2;

/// What the upper directory itself has of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InUpper {
    Nothing,
    /// A whiteout.
    Whiteout,
    Object,
}

/// Which layers have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Where {
    pub upper: InUpper,
    /// Of the directory's lowers, the first one in which the name shows: its place among them.
    pub lower: Option<u16>,
    /// None below that one says anything of the name.
    pub only: bool,
}

impl Where {
    pub const UPPER: Self = Self {
        upper: InUpper::Object,
        lower: None,
        only: false,
    };

    const fn is_shown(self) -> bool {
        match self.upper {
            InUpper::Nothing => self.lower.is_some(),
            InUpper::Whiteout => false,
            InUpper::Object => true,
        }
    }
}

/// A name, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a> {
    /// Position, above `DOT_DOT` and within `i64`.
    pub at: u64,
    pub name: &'a OsStr,
    /// 0 for a whiteout.
    pub ino: NodeId,
    pub kind: FileKind,
    pub place: Where,
}

/// An item as it is kept.
#[derive(Clone, Copy, Debug)]
struct Kept {
    ino: u64,
    /// Where its name begins.
    name: u32,
    len: u8,
    kind: FileKind,
    place: u16,
}

const PLACE_WHITEOUT: u16 = 1 << 15;
const PLACE_UPPER: u16 = 1 << 14;
const PLACE_ONLY: u16 = 1 << 13;
/// The lower's place, counted from 1. There are never that many layers.
const PLACE_LOWER: u16 = PLACE_ONLY - 1;

fn packed(place: Where) -> u16 {
    let upper = match place.upper {
        InUpper::Nothing => 0,
        InUpper::Whiteout => PLACE_WHITEOUT,
        InUpper::Object => PLACE_UPPER,
    };
    let only = if place.only { PLACE_ONLY } else { 0 };
    upper | only | place.lower.map_or(0, |at| (at + 1) & PLACE_LOWER)
}

fn unpacked(place: u16) -> Where {
    Where {
        upper: match place & (PLACE_WHITEOUT | PLACE_UPPER) {
            0 => InUpper::Nothing,
            PLACE_UPPER => InUpper::Object,
            _ => InUpper::Whiteout,
        },
        lower: (place & PLACE_LOWER).checked_sub(1),
        only: place & PLACE_ONLY != 0,
    }
}

/// All names of a directory that its layers show or hide in the upper, by rising position. Names come and go in the time it
/// takes to find them, however many there are: a large directory is emptied name by name.
#[derive(Debug)]
pub(super) struct Listing {
    items: BTreeMap<u64, Kept>,
    /// Items whose position another one has. 62 bits of a keyed hash: there are none, but a name must not get lost.
    twins: Vec<(u64, Kept)>,
    /// The bytes of all names, one after another, and of some that are gone.
    names: Vec<u8>,
    /// Bytes of those that are gone.
    stale: usize,
    /// Names that are seen.
    shown: usize,
    /// Names in all listings of the mount.
    total: Arc<AtomicUsize>,
}

impl Clone for Listing {
    fn clone(&self) -> Self {
        Self::new(&self.total, self.all())
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.total.fetch_sub(self.cost(), Ordering::Relaxed);
    }
}

/// Position of a name.
pub(super) fn position(hasher: &RandomState, name: &OsStr) -> u64 {
    DOT_DOT + 1 + (hasher.hash_one(name) >> 2)
}

impl Listing {
    /// `total` is kept at what all listings that it is given to cost.
    pub fn new<'a>(total: &Arc<AtomicUsize>, items: impl IntoIterator<Item = Item<'a>>) -> Self {
        let mut list = Self {
            items: BTreeMap::new(),
            twins: Vec::new(),
            names: Vec::new(),
            stale: 0,
            shown: 0,
            total: Arc::clone(total),
        };
        // In order, since a tree that is made at once from what is sorted is full.
        let mut sorted = Vec::new();
        for item in items {
            let kept = list.keep(&item);
            sorted.push((item.at, kept));
        }
        sorted.sort_by_key(|(at, _)| *at);
        let mut last = None;
        let (firsts, twins) = sorted
            .into_iter()
            .partition::<Vec<_>, _>(|(at, _)| last.replace(*at) != Some(*at));
        list.items = firsts.into_iter().collect();
        list.twins = twins;
        list.names.shrink_to_fit();
        list.total.fetch_add(list.cost(), Ordering::Relaxed);
        list
    }

    /// Takes in an item's name, and counts it.
    fn keep(&mut self, item: &Item<'_>) -> Kept {
        let name = item.name.as_bytes();
        let begin = self.names.len();
        self.names.extend_from_slice(name);
        self.shown += usize::from(item.place.is_shown());
        Kept {
            ino: item.ino.0,
            // 4 GiB of names are more than a directory can have: its names differ in position long before.
            name: begin as u32,
            len: name.len() as u8,
            kind: item.kind,
            place: packed(item.place),
        }
    }

    fn name_of(&self, kept: &Kept) -> &OsStr {
        let begin = kept.name as usize;
        OsStr::from_bytes(&self.names[begin..begin + usize::from(kept.len)])
    }

    fn item(&self, at: u64, kept: &Kept) -> Item<'_> {
        Item {
            at,
            name: self.name_of(kept),
            ino: NodeId(kept.ino),
            kind: kept.kind,
            place: unpacked(kept.place),
        }
    }

    fn find(&self, at: u64, name: &OsStr) -> Option<&Kept> {
        let first = self.items.get(&at)?;
        if self.name_of(first) == name {
            return Some(first);
        }
        let mut twins = self.twins.iter();
        let twin = twins.find(|(there, kept)| *there == at && self.name_of(kept) == name);
        twin.map(|(_, kept)| kept)
    }

    /// What is known of a name, shown or not.
    pub fn get(&self, at: u64, name: &OsStr) -> Option<Item<'_>> {
        self.find(at, name).map(|kept| self.item(at, kept))
    }

    /// Puts an item in, in place of that of its name.
    pub fn insert(&mut self, item: &Item<'_>) {
        let before = self.cost();
        if let Some(old) = self.find(item.at, item.name).copied() {
            let new = Kept {
                ino: item.ino.0,
                kind: item.kind,
                place: packed(item.place),
                ..old
            };
            self.shown -= usize::from(unpacked(old.place).is_shown());
            self.shown += usize::from(item.place.is_shown());
            match self.items.get_mut(&item.at) {
                Some(first) if first.name == old.name => *first = new,
                _ => self
                    .twins
                    .iter_mut()
                    .filter(|(at, kept)| *at == item.at && kept.name == old.name)
                    .for_each(|(_, kept)| *kept = new),
            }
            return;
        }
        let kept = self.keep(item);
        match self.items.entry(item.at) {
            Entry::Vacant(place) => {
                place.insert(kept);
            }
            Entry::Occupied(_) => self.twins.push((item.at, kept)),
        }
        self.count(before);
    }

    /// The name is not in the upper any more; if the lowers have it, a whiteout is there now.
    pub fn remove(&mut self, at: u64, name: &OsStr) {
        let Some(old) = self.get(at, name) else {
            return;
        };
        if old.place.lower.is_some() {
            let place = Where {
                upper: InUpper::Whiteout,
                ..old.place
            };
            let gone = Item {
                at,
                name,
                ino: NodeId(0),
                place,
                kind: FileKind::CharDevice,
            };
            return self.insert(&gone);
        }
        let before = self.cost();
        let shown = usize::from(old.place.is_shown());
        self.shown -= shown;
        self.stale += name.len();
        let first = self
            .items
            .get(&at)
            .is_some_and(|first| self.name_of(first) == name);
        let twin = self
            .twins
            .iter()
            .position(|(there, kept)| *there == at && (first || self.name_of(kept) == name));
        match twin.map(|twin| self.twins.swap_remove(twin)) {
            Some((_, heir)) if first => {
                self.items.insert(at, heir);
            }
            None if first => {
                self.items.remove(&at);
            }
            _ => {}
        }
        if self.stale > self.names.len() / 2 && self.stale > WORTH_PACKING {
            self.pack();
        }
        self.count(before);
    }

    /// Leaves out the names that are gone.
    fn pack(&mut self) {
        let old = std::mem::take(&mut self.names);
        let mut names = Vec::with_capacity(old.len() - self.stale);
        let twins = self.twins.iter_mut().map(|(_, kept)| kept);
        for kept in self.items.values_mut().chain(twins) {
            let begin = kept.name as usize;
            kept.name = names.len() as u32;
            names.extend_from_slice(&old[begin..begin + usize::from(kept.len)]);
        }
        self.names = names;
        self.stale = 0;
    }

    fn count(&self, before: usize) {
        // Wraps round, and back, where it falls.
        let change = self.cost().wrapping_sub(before);
        self.total.fetch_add(change, Ordering::Relaxed);
    }

    /// Everything behind position `at`, shown or not.
    fn all_after(&self, at: u64) -> impl Iterator<Item = Item<'_>> {
        let twins = |at: u64| self.twins.iter().filter(move |(there, _)| *there == at);
        let behind = (Bound::Excluded(at), Bound::Unbounded);
        self.items.range(behind).flat_map(move |(at, first)| {
            let twins = twins(*at).map(|(_, kept)| kept);
            std::iter::once(first)
                .chain(twins)
                .map(|kept| self.item(*at, kept))
        })
    }

    fn all(&self) -> impl Iterator<Item = Item<'_>> {
        self.all_after(0)
    }

    /// Shown items behind position `at`.
    pub fn after(&self, at: u64) -> impl Iterator<Item = Item<'_>> {
        self.all_after(at).filter(|item| item.place.is_shown())
    }

    /// All that are shown.
    pub fn items(&self) -> impl Iterator<Item = Item<'_>> {
        self.after(0)
    }

    /// Nothing is shown.
    pub fn is_empty(&self) -> bool {
        self.shown == 0
    }

    /// Of the budget: one for a name, and more where names are long.
    pub fn cost(&self) -> usize {
        self.items.len() + self.twins.len() + self.names.len() / LONG
    }

    /// No more names can be told apart by where they begin.
    pub fn is_full(&self) -> bool {
        self.names.len() > MOST_NAMES
    }
}

/// Bytes of names that cost as much as one more name.
const LONG: usize = 64;
/// Fewer bytes of names that are gone are left where they are.
const WORTH_PACKING: usize = 4096;
/// Bytes of names that one listing can have.
pub(super) const MOST_NAMES: usize = u32::MAX as usize - 255;

/// What all listings of a mount may cost together, beyond that of one directory: 8 to 25 MB, by the length of names.
const BUDGET: usize = 1 << 18;

/// Which directories have a listing, oldest first, and what those cost.
pub(super) struct Listings {
    pub total: Arc<AtomicUsize>,
    queue: Mutex<VecDeque<NodeId>>,
    pub budget: usize,
}

impl Listings {
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

    fn item(name: &str, at: u64) -> Item<'_> {
        Item {
            at,
            name: OsStr::new(name),
            ino: NodeId(7),
            kind: FileKind::Regular,
            place: Where::UPPER,
        }
    }

    #[test]
    fn positions_do_not_move() {
        let hasher = RandomState::new();
        let names: Vec<String> = (0..500).map(|i| format!("f{i}")).collect();
        let at = |n: &str| position(&hasher, OsStr::new(n));
        let mut list = Listing::new(&Arc::default(), names.iter().map(|n| item(n, at(n))));
        let items: Vec<_> = list.items().map(|i| (i.at, i.name.to_owned())).collect();
        let (first, middle) = items.split_at(250);
        let seen: Vec<_> = first.iter().map(|(_, name)| name.clone()).collect();
        let stop = first.last().expect("250 items").0;
        let rest: Vec<_> = middle.iter().map(|(_, name)| name.clone()).collect();
        // Half of what was read goes away, new names come.
        for n in &seen[..125] {
            list.remove(position(&hasher, n), n);
        }
        list.insert(&item("new", at("new")));
        let went_on: Vec<_> = list
            .after(stop)
            .map(|i| i.name.to_owned())
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
        let total = Arc::default();
        let items = [item("b", 5), item("a", 5), item("z", 9), item("c", 5)];
        let mut list = Listing::new(&total, items);
        list.insert(&item("c", 5));
        let names = |list: &Listing| {
            let all = list.items().map(|i| i.name.to_str().unwrap().to_owned());
            all.collect::<Vec<_>>().join(" ")
        };
        assert_eq!((names(&list).as_str(), list.shown), ("b a c z", 4));
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

    #[test]
    fn a_name_that_goes_stays_known_where_the_lowers_have_it() {
        for (at, only) in [(0, true), (499, false)] {
            let place = Where {
                upper: InUpper::Nothing,
                lower: Some(at),
                only,
            };
            let below = Item {
                place,
                ..item("below", 3)
            };
            let whiteout = Item {
                place: Where {
                    upper: InUpper::Whiteout,
                    lower: None,
                    only: false,
                },
                ..item("nothing", 4)
            };
            let total = Arc::default();
            let mut list = Listing::new(&total, [below, whiteout, item("above", 5)]);
            let place_of = |list: &Listing, at, name: &str| {
                list.get(at, OsStr::new(name)).map(|item| item.place)
            };
            assert_eq!(place_of(&list, 3, "below"), Some(place));
            assert_eq!((list.shown, list.items().count()), (2, 2));
            list.remove(3, OsStr::new("below"));
            list.remove(5, OsStr::new("above"));
            let gone = Where {
                upper: InUpper::Whiteout,
                ..place
            };
            assert_eq!(place_of(&list, 3, "below"), Some(gone));
            assert_eq!(place_of(&list, 5, "above"), None);
            assert_eq!(place_of(&list, 4, "nothing"), Some(whiteout.place));
            assert!(list.is_empty() && list.items().next().is_none());
            assert_eq!(total.load(Ordering::Relaxed), 2);
        }
    }

    #[test]
    fn names_that_are_gone_take_no_room() {
        let total = Arc::default();
        let mut list = Listing::new(&total, []);
        let name = |n: u64| format!("a-name-of-usual-length-{n}");
        for n in 0..100_000 {
            list.insert(&item(&name(n), 3 + n));
            if n >= 10 {
                list.remove(n - 7, OsStr::new(&name(n - 10)));
            }
        }
        assert_eq!(list.shown, 10);
        assert!(
            list.names.len() < 2 * WORTH_PACKING + 1000,
            "{}",
            list.names.len()
        );
        let left: Vec<_> = list.items().map(|i| i.name.to_owned()).collect();
        let want: Vec<_> = (99_990..100_000)
            .map(|n| name(n).into())
            .collect::<Vec<std::ffi::OsString>>();
        assert_eq!(left, want);
        assert_eq!(total.load(Ordering::Relaxed), list.cost());
        drop(list);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }
}
