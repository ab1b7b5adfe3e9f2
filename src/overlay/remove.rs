//! Names that go: unlink and rmdir.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::copyup::Extent;
use super::engine::{Overlay, check_name};
use super::node::{Node, lock, own_all};
use super::resolve::Listed;
use super::{NodeId, Result};
use crate::layer::host;

impl Overlay {
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        check_name(name)?;
        self.writable()?;
        let dir = self.table.get(parent)?;
        self.copy_up(&dir, Extent::All)?;
        loop {
            let names = dir.names_owned()?;
            let node = self.child(&dir, name)?;
            if node.is_dir() {
                return Err(Errno::ISDIR);
            }
            if self.needs_inode_in_upper(&node)? {
                // Its other names live on: from now on the index counts them.
                drop(names);
                self.copy_up(&node, Extent::Metadata)?;
                continue;
            }
            self.prepare_goodbye(&node, &dir, name)?;
            self.erase(&dir, name, &node)?;
            return self.after_goodbye(&node, &dir, name);
        }
    }

    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        check_name(name)?;
        self.writable()?;
        let dir = self.table.get(parent)?;
        self.copy_up(&dir, Extent::All)?;
        loop {
            let node = {
                let _names = dir.names_shared()?;
                self.child(&dir, name)?
            };
            if !node.is_dir() {
                return Err(Errno::NOTDIR);
            }
            let _names = own_all(&[&dir, &node])?;
            if node.has_link(&dir, name).is_none() {
                continue;
            }
            if !self.listing(&node)?.is_empty() {
                return Err(Errno::NOTEMPTY);
            }
            self.prepare_goodbye(&node, &dir, name)?;
            self.erase(&dir, name, &node)?;
            return self.after_goodbye(&node, &dir, name);
        }
    }

    /// The node behind a name, or ENOENT. The caller holds the namespace.
    pub(super) fn child(&self, dir: &Arc<Node>, name: &OsStr) -> Result<Arc<Node>> {
        self.child_if_any(dir, name)?.ok_or(Errno::NOENT)
    }

    /// The same; `None`: there is nothing of this name.
    pub(super) fn child_if_any(&self, dir: &Arc<Node>, name: &OsStr) -> Result<Option<Arc<Node>>> {
        self.list_for_lookups(dir)?;
        if let Listed::Known { ino, .. } = self.listed(dir, name)?
            && let Some(node) = self.live(dir, name, ino)
        {
            return Ok(Some(node));
        }
        match self.resolve(dir, name)? {
            Some(found) => Ok(Some(self.intern(dir, name, found)?.0)),
            None => Ok(None),
        }
    }

    /// A lower file with several names that is not in the upper yet.
    pub(super) fn needs_inode_in_upper(&self, node: &Arc<Node>) -> Result<bool> {
        if node.in_upper() || node.is_dir() {
            return Ok(false);
        }
        let lower = node.state().lowers.first().cloned().ok_or(Errno::STALE)?;
        Ok(self.lowers.layer(lower.layer).attr(&lower.node)?.nlink > 1)
    }

    /// Before a name goes: keeps the object reachable, and the link count of an indexed file true.
    pub(super) fn prepare_goodbye(
        &self,
        node: &Arc<Node>,
        dir: &Arc<Node>,
        name: &OsStr,
    ) -> Result<()> {
        if !node.in_upper() {
            return Ok(());
        }
        let (last, indexed) = {
            let state = node.state();
            let others = state
                .links
                .iter()
                .any(|l| l.in_upper && !(Arc::ptr_eq(&l.parent, dir) && *l.name == *name));
            let upper = state.upper.as_ref().ok_or(Errno::STALE)?;
            (!others && upper.pinned.is_none(), upper.index.is_some())
        };
        if indexed {
            if !node.has_link(dir, name).is_some_and(|l| l.in_upper) {
                self.link_alias(node, dir, name)?;
            }
            self.base_nlink_on_upper(node)?;
        }
        if last {
            let fd = self.held_fd(node, dir, name)?;
            if let Some(upper) = &mut node.state_mut().upper {
                upper.pinned = Some(fd);
            }
        }
        Ok(())
    }

    /// Takes the name out of the upper, and hides it if the lowers have it.
    fn erase(&self, dir: &Arc<Node>, name: &OsStr, node: &Arc<Node>) -> Result<()> {
        let upper = self.writable()?;
        let fd = self.upper_dir(dir)?;
        let hide = self.lowers_show(dir, name)?;
        let in_upper = node.has_link(dir, name).is_some_and(|l| l.in_upper);
        match (in_upper, hide) {
            (true, true) => {
                upper.replace_by_whiteout(std::os::fd::AsFd::as_fd(&fd), name, node.is_dir())
            }
            (false, _) => upper.make_whiteout(std::os::fd::AsFd::as_fd(&fd), name),
            (true, false) if !node.is_dir() => rustix::fs::unlinkat(&*fd, name, AtFlags::empty()),
            (true, false) => match rustix::fs::unlinkat(&*fd, name, AtFlags::REMOVEDIR) {
                // Whiteouts inside, of what it was merged with.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    let temp = upper.temp_name();
                    rustix::fs::renameat(&*fd, name, upper.work(), temp.as_os_str())?;
                    let _ = upper.remove_work(&temp);
                    Ok(())
                }
                other => other,
            },
        }
    }

    /// The last name of an object without a mark is gone: its number in the upper may come to be another's.
    fn forget_unmarked(&self, node: &Node) {
        let state = node.state();
        let Some(upper) = &state.upper else {
            return;
        };
        let own = self.lowers.host_ino(upper.key);
        let mut unmarked = lock(&self.unmarked);
        if !unmarked.contains_key(&own) {
            return;
        }
        // What was pinned had no other name that is known, but may have one that nobody has looked up.
        let nameless =
            |pin: &Arc<OwnedFd>| host::stat_fd(pin.as_fd()).is_ok_and(|s| s.attr.nlink == 0);
        if upper.pinned.as_ref().is_some_and(nameless) {
            unmarked.remove(&own);
        }
    }

    /// The name is gone: node, listing and index follow.
    pub(super) fn after_goodbye(
        &self,
        node: &Arc<Node>,
        dir: &Arc<Node>,
        name: &OsStr,
    ) -> Result<()> {
        self.list_remove(dir, name);
        let link = node.remove_link(dir, name);
        drop(link);
        if node.is_dir() {
            self.dirs.remove(&node.id.0);
            return Ok(());
        }
        self.forget_unmarked(node);
        let index = node.state().upper.as_ref().and_then(|u| u.index.clone());
        if let Some(index) = index
            && self.indexed_nlink(node)? == 0
        {
            let upper = self.writable()?;
            // The last name is gone: what keeps it open now is the pin.
            let pin = self.upper_path(node)?;
            if let Some(state) = &mut node.state_mut().upper {
                state.pinned.get_or_insert_with(|| Arc::new(pin));
                state.index = None;
            }
            rustix::fs::unlinkat(upper.index(), index.as_os_str(), AtFlags::empty())?;
            self.index_names_mut().remove(&index);
        }
        Ok(())
    }
}
