//! A directory's merged listing, with positions that survive changes.
//!
//! An entry's position is a keyed hash of its name, so it does not depend on what else is in the directory or on the
//! listing being kept: one may be dropped at any time and made anew, and a reader that goes on sees each entry that
//! stayed exactly once. The key is drawn per mount, so nobody can prepare names that collide.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};

use super::NodeId;
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

/// All visible names of a directory, by rising position.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    items: Vec<Item>,
}

/// Position of a name.
pub(super) fn position(hasher: &RandomState, name: &OsStr) -> u64 {
    DOT_DOT + 1 + (hasher.hash_one(name) >> 2)
}

impl Listing {
    pub fn new(mut items: Vec<Item>) -> Self {
        items.sort_unstable_by(|a, b| (a.at, &a.name).cmp(&(b.at, &b.name)));
        Self { items }
    }

    fn find(&self, at: u64, name: &OsStr) -> Result<usize, usize> {
        self.items
            .binary_search_by(|i| (i.at, i.name.as_os_str()).cmp(&(at, name)))
    }

    pub fn get(&self, at: u64, name: &OsStr) -> Option<&Item> {
        self.find(at, name).ok().map(|i| &self.items[i])
    }

    pub fn insert(&mut self, item: Item) {
        match self.find(item.at, &item.name) {
            Ok(i) => self.items[i] = item,
            Err(i) => self.items.insert(i, item),
        }
    }

    pub fn remove(&mut self, at: u64, name: &OsStr) {
        if let Ok(i) = self.find(at, name) {
            self.items.remove(i);
        }
    }

    /// Items behind position `at`.
    pub fn after(&self, at: u64) -> &[Item] {
        &self.items[self.items.partition_point(|i| i.at <= at)..]
    }

    pub fn items(&self) -> &[Item] {
        &self.items
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
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
        let mut list = Listing::new(names.iter().map(|n| item(n)).collect());
        let (first, middle) = list.items().split_at(250);
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
            .iter()
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
                .iter()
                .all(|i| i.at > DOT_DOT && i64::try_from(i.at).is_ok())
        );
    }
}
