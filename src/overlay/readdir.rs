//! Reading directories: each layer's once, merged into a listing that is kept and follows changes.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::engine::Overlay;
use super::listing::{self, Item, Listing};
use super::node::{Node, lock};
use super::{DirItem, NodeId, Result};
use crate::layer::{ObjectKey, host};
use crate::meta::FileKind;

/// What is known of a name while layers are merged.
enum Seen {
    Hidden,
    Shown(NodeId, FileKind),
}

impl Overlay {
    /// Calls `sink` for each entry after `offset` (0: from the start) until it answers `false` (item not taken) or the
    /// directory ends. Entries neither made nor removed since offset 0 come exactly once. When `plus`, an item that
    /// `sink` refuses does not keep its lookup count.
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
        for item in list.after(offset.max(listing::DOT_DOT)) {
            let entry = if plus {
                self.list_entry(&dir, item)
            } else {
                None
            };
            let taken = sink(DirItem {
                name: &item.name,
                ino: entry.as_ref().map_or(item.ino, |e| e.node),
                kind: item.kind,
                next_offset: item.at,
                entry: entry.as_ref(),
            });
            if !taken {
                if let Some(entry) = entry {
                    self.forget(entry.node, 1);
                }
                break;
            }
        }
        Ok(())
    }

    /// The looked-up entry of a listed name; without one the kernel asks again when somebody wants it.
    fn list_entry(&self, dir: &Arc<Node>, item: &Item) -> Option<super::Entry> {
        let found = self.resolve(dir, &item.name).ok()??;
        let (node, attr) = self.intern(dir, &item.name, found).ok()?;
        self.table.remember(&node);
        Some(super::Entry {
            node: node.id,
            attr,
        })
    }

    /// The directory's merged listing. The caller holds its namespace lock.
    pub(super) fn listing(&self, dir: &Arc<Node>) -> Result<Arc<Listing>> {
        let part = dir.dir()?;
        if let Some(list) = &*lock(&part.listing) {
            return Ok(Arc::clone(list));
        }
        let list = Arc::new(self.merge(dir)?);
        *lock(&part.listing) = Some(Arc::clone(&list));
        Ok(list)
    }

    fn merge(&self, dir: &Arc<Node>) -> Result<Listing> {
        let below = dir.state().lowers.clone();
        let mut names: HashMap<OsString, Seen> = HashMap::new();
        if dir.in_upper() {
            self.read_upper(dir, !below.is_empty(), &mut names)?;
        }
        for lower in &below {
            let entries = self.lowers.layer(lower.layer).read_dir(&lower.node)?;
            names.reserve(entries.len());
            for entry in entries {
                names
                    .entry(entry.name)
                    .or_insert_with(|| match entry.target {
                        None => Seen::Hidden,
                        Some((key, kind)) => {
                            Seen::Shown(self.lowers.ino_of(lower.layer, key), kind)
                        }
                    });
            }
        }
        let items = names.into_iter().filter_map(|(name, seen)| match seen {
            Seen::Hidden => None,
            Seen::Shown(ino, kind) => Some(Item {
                at: listing::position(&self.hasher, &name),
                name,
                ino,
                kind,
            }),
        });
        Ok(Listing::new(items.collect()))
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
        for entry in self.some_upper()?.permitted(fd.as_fd(), extra, read)? {
            // Only what may be a whiteout, or may show another's inode number, needs a closer look.
            let plain = match entry.kind {
                Some(kind) if !impure && kind != FileKind::CharDevice => Some(kind),
                _ => None,
            };
            let seen = match plain {
                Some(kind) => Seen::Shown(
                    self.lowers.host_ino(ObjectKey {
                        dev,
                        ino: entry.ino,
                    }),
                    kind,
                ),
                None => match self.resolve(dir, &entry.name) {
                    Ok(Some(found)) => Seen::Shown(found.id, found.kind),
                    Ok(None) => Seen::Hidden,
                    // A broken entry is listed all the same: whoever touches it gets the error.
                    Err(Errno::IO | Errno::STALE) => {
                        let ino = self.lowers.host_ino(ObjectKey {
                            dev,
                            ino: entry.ino,
                        });
                        Seen::Shown(ino, entry.kind.unwrap_or(FileKind::Regular))
                    }
                    Err(e) => return Err(e),
                },
            };
            names.insert(entry.name, seen);
        }
        Ok(())
    }

    /// A name came: a kept listing follows. The caller owns the namespace.
    pub(super) fn list_add(&self, dir: &Arc<Node>, name: &OsStr, ino: NodeId, kind: FileKind) {
        if let Ok(part) = dir.dir()
            && let Some(list) = &mut *lock(&part.listing)
        {
            let at = listing::position(&self.hasher, name);
            Arc::make_mut(list).insert(Item {
                at,
                name: name.to_os_string(),
                ino,
                kind,
            });
        }
    }

    /// A name went: a kept listing follows. The caller owns the namespace.
    pub(super) fn list_remove(&self, dir: &Arc<Node>, name: &OsStr) {
        if let Ok(part) = dir.dir()
            && let Some(list) = &mut *lock(&part.listing)
        {
            Arc::make_mut(list).remove(listing::position(&self.hasher, name), name);
        }
    }
}
