//! Reading directories: each layer's once, merged into a listing that is kept and follows changes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::io::Errno;

use super::engine::Overlay;
use super::listing::{self, InUpper, Item, Listing, Where};
use super::node::{Node, lock};
use super::{DirItem, NodeId, Result};
use crate::layer::{ObjectKey, Permissions, host, whiteout};
use crate::meta::FileKind;

/// As many look-ups as this are answered one by one before the whole directory is read for them.
const FEW_LOOKUPS: u32 = 4;
/// A directory whose listing was dropped is listed again after one look-up for so many of its names.
const NAMES_FOR_A_LOOKUP: u32 = 8;

/// What is known of a name while layers are merged.
struct Seen {
    ino: NodeId,
    kind: FileKind,
    place: Where,
    /// A lower hides what those below it have.
    closed: bool,
}

impl Seen {
    fn in_upper(ino: NodeId, kind: FileKind) -> Self {
        Self {
            ino,
            kind,
            place: Where::UPPER,
            closed: false,
        }
    }

    fn whiteout() -> Self {
        Self {
            ino: NodeId(0),
            kind: FileKind::CharDevice,
            place: Where {
                upper: InUpper::Whiteout,
                ..Where::UPPER
            },
            closed: false,
        }
    }
}

impl Overlay {
    /// Calls `sink` for each entry after `offset` (0: from the start) until it answers `false` (item not taken) or the
    /// directory ends. Entries neither made nor removed since offset 0 come exactly once. When `plus`, directories, and
    /// other files as far as they seem to be wanted (see `foresight`), are looked up; an item that `sink` refuses does not keep
    /// its lookup count.
    pub fn read_dir(
        &self,
        node: NodeId,
        offset: u64,
        plus: bool,
        sink: &mut dyn FnMut(DirItem<'_>) -> bool,
    ) -> Result<()> {
        let dir = self.table.get(node)?;
        let _names = dir.names_shared()?;
        let parent = dir
            .state()
            .links
            .first()
            .map_or(NodeId::ROOT, |l| l.parent.id);
        for (at, name, ino) in [
            (listing::DOT, ".", dir.id),
            (listing::DOT_DOT, "..", parent),
        ] {
            let item = DirItem {
                name: OsStr::new(name),
                ino,
                kind: FileKind::Directory,
                next_offset: at,
                entry: None,
            };
            if offset < at && !sink(item) {
                return Ok(());
            }
        }
        if dir.is_removed() {
            return Ok(());
        }
        let list = self.listing(&dir)?;
        let mut course = self.foresight.list(&dir.dir()?.left_out, offset == 0);
        for item in list.after(offset.max(listing::DOT_DOT)) {
            let is_dir = item.kind == FileKind::Directory;
            let entry = if !plus || !is_dir && !course.takes_next() {
                None
            } else if is_dir {
                self.list_entry(&dir, &item)
            } else {
                let begun = Instant::now();
                let entry = self.list_entry(&dir, &item);
                course.took(begun.elapsed());
                entry
            };
            let taken = sink(DirItem {
                name: item.name,
                ino: entry.as_ref().map_or(item.ino, |e| e.node),
                kind: item.kind,
                next_offset: item.at,
                entry: entry.as_ref(),
            });
            if !taken {
                if let Some(entry) = entry {
                    self.forget(entry.node, 1);
                }
                return Ok(());
            }
        }
        // Read to its end, one that is too large by itself need not be kept any longer.
        if list.cost() > self.listings.budget {
            *lock(&dir.dir()?.listing) = None;
        }
        Ok(())
    }

    /// The looked-up entry of a listed name; without one the kernel asks again when somebody wants it.
    fn list_entry(&self, dir: &Arc<Node>, item: &Item<'_>) -> Option<super::Entry> {
        let (node, attr) = match self.live(dir, item.name, item.ino) {
            Some(node) => self.named_attr(dir, item.name, &node),
            None => {
                let found = self.resolve_at(dir, item.name, Some(item.place)).ok()??;
                self.intern(dir, item.name, found)
            }
        }
        .ok()?;
        self.table.remember(&node);
        Some(super::Entry {
            node: node.id,
            attr,
        })
    }

    /// For a look-up: after a few of them the directory is read once, and its listing answers the others.
    pub(super) fn list_for_lookups(&self, dir: &Arc<Node>) -> Result<()> {
        let part = dir.dir()?;
        let inspects = self.upper.as_ref().is_some_and(|upper| upper.inspect);
        if inspects || lock(&part.listing).is_some() {
            return Ok(());
        }
        let asked = part.asked.fetch_add(1, Ordering::Relaxed);
        let size = part.size.load(Ordering::Relaxed);
        if asked >= FEW_LOOKUPS.max(size / NAMES_FOR_A_LOOKUP)
            && size as usize <= self.listings.budget
            && self.listing(dir).is_err()
        {
            // Names can be looked up in it all the same.
            part.size.store(u32::MAX, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The directory's merged listing. The caller holds its namespace lock.
    pub(super) fn listing(&self, dir: &Arc<Node>) -> Result<Arc<Listing>> {
        let part = dir.dir()?;
        if let Some(list) = &*lock(&part.listing) {
            return Ok(Arc::clone(list));
        }
        let list = Arc::new(self.merge(dir)?);
        let size = u32::try_from(list.cost()).unwrap_or(u32::MAX);
        part.size.store(size, Ordering::Relaxed);
        part.asked.store(0, Ordering::Relaxed);
        self.keep_listing(dir, list)
    }

    /// A directory that was just made has no names.
    pub(super) fn list_nothing(&self, dir: &Arc<Node>) -> Result<()> {
        let list = Arc::new(Listing::new(&self.listings.total, []));
        self.keep_listing(dir, list).map(drop)
    }

    fn keep_listing(&self, dir: &Arc<Node>, list: Arc<Listing>) -> Result<Arc<Listing>> {
        let part = dir.dir()?;
        *lock(&part.listing) = Some(Arc::clone(&list));
        self.listings.note(dir.id, |id| {
            let node = self.table.find(id);
            node.is_some_and(|n| n.dir().is_ok_and(|d| lock(&d.listing).is_some()))
        });
        self.drop_listings(dir);
        Ok(list)
    }

    /// Gives up the oldest listings, but not that of `dir`, if all together hold too many names. One may go at any
    /// time: it is made anew when it is asked for.
    fn drop_listings(&self, dir: &Node) {
        while self.listings.is_over()
            && let Some(id) = self.listings.oldest(dir.id)
        {
            if let Some(node) = self.table.find(id)
                && let Ok(part) = node.dir()
            {
                let dropped = lock(&part.listing).take();
                drop(dropped);
            }
        }
    }

    fn merge(&self, dir: &Arc<Node>) -> Result<Listing> {
        let below = dir.state().lowers.clone();
        let mut names: HashMap<OsString, Seen> = HashMap::new();
        if dir.in_upper() {
            self.read_upper(dir, !below.is_empty(), &mut names)?;
        }
        for (at, lower) in (0..).zip(below.iter()) {
            let entries = self.lowers.layer(lower.layer).read_dir(&lower.node)?;
            names.reserve(entries.len());
            for entry in entries {
                let target = entry
                    .target
                    .map(|(key, kind)| (self.lowers.ino_of(lower.layer, key), kind));
                match names.entry(entry.name) {
                    Entry::Vacant(vacant) => {
                        let (ino, kind) = target.unwrap_or((NodeId(0), FileKind::CharDevice));
                        vacant.insert(Seen {
                            ino,
                            kind,
                            place: Where {
                                upper: InUpper::Nothing,
                                lower: target.map(|_| at),
                                only: true,
                            },
                            closed: target.is_none(),
                        });
                    }
                    Entry::Occupied(mut seen) => {
                        let Seen { place, closed, .. } = seen.get_mut();
                        match (&place.lower, target) {
                            _ if *closed => {}
                            (None, Some(_)) => (place.lower, place.only) = (Some(at), true),
                            (None, None) => *closed = true,
                            (Some(_), _) => place.only = false,
                        }
                    }
                }
            }
        }
        if names.keys().map(|name| name.len()).sum::<usize>() > listing::MOST_NAMES {
            return Err(Errno::NOMEM);
        }
        let is_there = |seen: &Seen| seen.place.upper != InUpper::Nothing || !seen.closed;
        // Some file systems have longer names than a mount can have: nobody could look them up.
        let is_name = |name: &OsString| name.len() <= 255;
        let names = names
            .iter()
            .filter(|(name, seen)| is_name(name) && is_there(seen));
        let items = names.map(|(name, seen)| Item {
            at: listing::position(&self.hasher, name),
            name,
            ino: seen.ino,
            kind: seen.kind,
            place: seen.place,
        });
        Ok(Listing::new(&self.listings.total, items))
    }

    fn read_upper(
        &self,
        dir: &Arc<Node>,
        merged: bool,
        names: &mut HashMap<OsString, Seen>,
    ) -> Result<()> {
        let fd = self.upper_dir(dir)?;
        let dev = host::stat_fd(fd.as_fd())?.key.dev;
        let impure = merged || dir.dir()?.impure.load(std::sync::atomic::Ordering::Relaxed);
        let extra = libc::S_IRUSR | libc::S_IXUSR;
        let read = || host::read_dir(fd.as_fd());
        let upper = self.some_upper()?;
        for entry in upper.permitted(fd.as_fd(), extra, read)? {
            if upper.reserves(&entry.name) {
                if let whiteout::Aufs::Whiteout(name) = whiteout::aufs_name(&entry.name) {
                    names
                        .entry(name.to_os_string())
                        .or_insert_with(Seen::whiteout);
                }
                continue;
            }
            // Only what may be a whiteout, or may show another's inode number, needs a closer look.
            let plain = match entry.kind {
                Some(FileKind::Regular) if self.permissions != Permissions::Inode => None,
                Some(kind) if !impure && kind != FileKind::CharDevice => Some(kind),
                _ => None,
            };
            let seen = match plain {
                Some(kind) => Seen::in_upper(
                    self.lowers.host_ino(ObjectKey {
                        dev,
                        ino: entry.ino,
                    }),
                    kind,
                ),
                None => match self.resolve_at(dir, &entry.name, None) {
                    Ok(Some(found)) => Seen::in_upper(found.id, found.kind),
                    Ok(None) => Seen::whiteout(),
                    // A broken entry is listed all the same: whoever touches it gets the error.
                    Err(Errno::ACCESS) if entry.kind == Some(FileKind::CharDevice) => {
                        Seen::whiteout()
                    }
                    Err(Errno::IO | Errno::STALE | Errno::ACCESS) => {
                        let ino = self.lowers.host_ino(ObjectKey {
                            dev,
                            ino: entry.ino,
                        });
                        Seen::in_upper(ino, entry.kind.unwrap_or(FileKind::Regular))
                    }
                    Err(e) => return Err(e),
                },
            };
            names.insert(entry.name, seen);
        }
        Ok(())
    }

    /// The upper has the name now: a kept listing follows. The caller owns the namespace.
    pub(super) fn list_add(&self, dir: &Arc<Node>, name: &OsStr, ino: NodeId, kind: FileKind) {
        if let Ok(part) = dir.dir() {
            let mut kept = lock(&part.listing);
            if let Some(list) = &mut *kept {
                let list = Arc::make_mut(list);
                let at = listing::position(&self.hasher, name);
                let known = list.get(at, name).map(|item| item.place);
                list.insert(&Item {
                    at,
                    name,
                    ino,
                    kind,
                    place: Where {
                        upper: InUpper::Object,
                        ..known.unwrap_or(Where::UPPER)
                    },
                });
                if list.is_full() {
                    *kept = None;
                }
            }
        }
        if self.listings.is_over() {
            self.drop_listings(dir);
        }
    }

    /// A name went, and a whiteout came if the lowers have it: a kept listing follows. The caller owns the namespace.
    pub(super) fn list_remove(&self, dir: &Arc<Node>, name: &OsStr) {
        if let Ok(part) = dir.dir()
            && let Some(list) = &mut *lock(&part.listing)
        {
            Arc::make_mut(list).remove(listing::position(&self.hasher, name), name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Options, Stack};
    use super::*;
    use crate::layer::DirLayer;

    fn engine(lower: &Path, budget: usize) -> Overlay {
        let stack = Stack {
            lowers: vec![Arc::new(DirLayer::open(lower).unwrap())],
            upper: None,
        };
        let mut overlay = Overlay::new(stack, &Options::default()).unwrap();
        overlay.listings.budget = budget;
        overlay
    }

    fn names(overlay: &Overlay, dir: NodeId, at_once: usize) -> usize {
        let (mut offset, mut seen) = (0, 0);
        loop {
            let mut taken = 0;
            overlay
                .read_dir(dir, offset, true, &mut |item| {
                    if taken == at_once {
                        return false;
                    }
                    offset = item.next_offset;
                    taken += 1;
                    true
                })
                .unwrap();
            seen += taken;
            if taken < at_once {
                return seen;
            }
        }
    }

    #[test]
    fn listings_stay_within_their_budget() {
        let tmp = tempfile::tempdir().unwrap();
        for dir in 0..20 {
            let dir = tmp.path().join(dir.to_string());
            std::fs::create_dir(&dir).unwrap();
            for file in 0..10 {
                std::fs::write(dir.join(file.to_string()), "").unwrap();
            }
        }
        let overlay = engine(tmp.path(), 50);
        let kept = || overlay.listings.total.load(Ordering::Relaxed);
        for _ in 0..3 {
            for dir in 0..20 {
                let name = dir.to_string();
                let dir = overlay.lookup(NodeId::ROOT, OsStr::new(&name)).unwrap();
                let dir = dir.unwrap().node;
                assert_eq!(names(&overlay, dir, 3), 12);
                assert!(kept() <= 50, "{} names kept", kept());
                let inner = overlay.lookup(dir, OsStr::new("7")).unwrap();
                assert!(inner.is_some());
                assert!(overlay.lookup(dir, OsStr::new("none")).unwrap().is_none());
            }
        }
        // One that is too large by itself is kept while it is read.
        let overlay = engine(&tmp.path().join("1"), 5);
        assert_eq!(names(&overlay, NodeId::ROOT, 4), 12);
        assert_eq!(overlay.listings.total.load(Ordering::Relaxed), 0);
    }
}
