//! rename(2) with all its flags, for files and directories of any layer.
//!
//! A directory that shows lowers keeps them when it moves: `overlay.redirect` on its upper says where they are, as the
//! kernel's overlayfs writes it. So nothing is ever EXDEV within a mount.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::RenameFlags as SysFlags;
use rustix::io::Errno;

use super::copyup::Extent;
use super::engine::{Overlay, check_name};
use super::node::{Node, is_inside, lock, own_all};
use super::resolve::UpperName;
use super::{NodeId, Redirect, RenameFlags, Result};
use crate::layer::host;

/// Is it one inode for several names of a lower file?
fn indexed(node: &Node) -> bool {
    let state = node.state();
    state.upper.as_ref().is_some_and(|u| u.index.is_some())
}

/// One side of a rename.
struct Side<'a> {
    dir: &'a Arc<Node>,
    name: &'a OsStr,
}

impl Overlay {
    pub fn rename(
        &self,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        if flags.exchange && (flags.no_replace || flags.whiteout) {
            return Err(Errno::INVAL);
        }
        self.writable()?;
        let from_dir = self.table.get(parent)?;
        let to_dir = self.table.get(new_parent)?;
        from_dir.dir()?;
        to_dir.dir()?;
        self.copy_up(&from_dir, Extent::All)?;
        self.copy_up(&to_dir, Extent::All)?;
        let from = Side {
            dir: &from_dir,
            name,
        };
        let to = Side {
            dir: &to_dir,
            name: new_name,
        };
        // Directories that change parents move one at a time: so no two can end up inside each other.
        let _moves = (!Arc::ptr_eq(&from_dir, &to_dir)).then(|| lock(&self.dir_moves));
        while !self.try_rename(&from, &to, flags)? {}
        Ok(())
    }

    /// `false`: something had to be copied up first; try again.
    fn try_rename(&self, from: &Side<'_>, to: &Side<'_>, flags: RenameFlags) -> Result<bool> {
        let (source, target) = {
            let _a = own_all(&[from.dir, to.dir])?;
            let source = self.child(from.dir, from.name)?;
            (source, self.child_if_any(to.dir, to.name)?)
        };
        let mut locked = vec![from.dir, to.dir];
        locked.extend(target.as_ref().filter(|t| t.is_dir()));
        let _names = own_all(&locked)?;
        let still =
            |node: &Arc<Node>, side: &Side<'_>| node.has_link(side.dir, side.name).is_some();
        if !still(&source, from) || !target.as_ref().is_none_or(|t| still(t, to)) {
            return Ok(false);
        }
        if target.is_none() && self.resolve(to.dir, to.name)?.is_some() {
            return Ok(false);
        }
        if to.dir.is_removed() {
            return Err(Errno::NOENT);
        }
        self.check_reserved(to.name)?;
        if let Some(target) = &target {
            if flags.no_replace {
                return Err(Errno::EXIST);
            }
            if Arc::ptr_eq(&source, target) {
                // Two names of one file: POSIX leaves both.
                return Ok(true);
            }
        } else if flags.exchange {
            return Err(Errno::NOENT);
        }
        if source.is_dir() && is_inside(to.dir, &source)? {
            return Err(Errno::INVAL);
        }
        if flags.exchange
            && let Some(target) = target.as_ref().filter(|t| t.is_dir())
            && is_inside(from.dir, target)?
        {
            return Err(Errno::INVAL);
        }
        if !flags.exchange
            && let Some(target) = &target
        {
            match (source.is_dir(), target.is_dir()) {
                (false, true) => return Err(Errno::ISDIR),
                (true, false) => return Err(Errno::NOTDIR),
                (true, true) if !self.listing(target)?.is_empty() => return Err(Errno::NOTEMPTY),
                _ => {}
            }
        }
        let mut waits = Vec::new();
        if !source.in_upper() {
            waits.push((&source, Extent::Metadata));
        } else if self.data_by_name(&source)? {
            waits.push((&source, Extent::All));
        }
        if let Some(target) = &target
            && (flags.exchange && !target.in_upper() || self.needs_inode_in_upper(target)?)
        {
            waits.push((target, Extent::Metadata));
        } else if let Some(target) = target.as_ref().filter(|_| flags.exchange)
            && self.data_by_name(target)?
        {
            waits.push((target, Extent::All));
        }
        if !waits.is_empty() {
            drop(_names);
            for (node, extent) in waits {
                self.copy_up(node, extent)?;
            }
            return Ok(false);
        }
        self.move_in_upper(from, to, &source, target.as_ref(), flags)?;
        Ok(true)
    }

    fn move_in_upper(
        &self,
        from: &Side<'_>,
        to: &Side<'_>,
        source: &Arc<Node>,
        target: Option<&Arc<Node>>,
        flags: RenameFlags,
    ) -> Result<()> {
        let upper = self.writable()?;
        let from_fd = self.upper_dir(from.dir)?;
        let to_fd = self.upper_dir(to.dir)?;
        let mut held = Vec::new();
        for (node, side, new_dir) in [
            (Some(source), from, to.dir),
            (target.filter(|_| flags.exchange), to, from.dir),
        ] {
            let Some(node) = node else { continue };
            // Every name that moves is a real one in the upper.
            if !node
                .has_link(side.dir, side.name)
                .is_some_and(|l| l.in_upper)
            {
                self.link_alias(node, side.dir, side.name)?;
            } else if indexed(node) {
                // By its new name the lower's count is not found.
                self.base_nlink_on_upper(node)?;
            }
            held.push(self.hold(node, side.dir, side.name)?);
            let key = node.state().upper.as_ref().map(|u| u.key);
            if key.is_some_and(|key| self.lowers.host_ino(key) != node.id) {
                self.mark_impure(new_dir)?;
            }
        }
        let shows = |side: &Side<'_>| self.lowers_show(side.dir, side.name);
        let (from_shows, to_shows) = (shows(from)?, shows(to)?);
        self.prepare_dir(source, from, to, to_shows)?;
        if flags.exchange
            && let Some(target) = target
        {
            self.prepare_dir(target, to, from, from_shows)?;
            rustix::fs::renameat_with(&*from_fd, from.name, &*to_fd, to.name, SysFlags::EXCHANGE)?;
            self.list_add(to.dir, to.name, source.id, source.kind);
            self.list_add(from.dir, from.name, target.id, target.kind);
            self.relink(source, from, to);
            self.relink(target, to, from);
            return Ok(());
        }
        // A whiteout that was asked for is a device its maker can see. It takes the place of the hidden kind.
        let device = match flags.whiteout {
            true => Some(self.make_device()?),
            false => None,
        };
        let mut cleared = None;
        if let Some(target) = target {
            self.prepare_goodbye(target, to.dir, to.name)?;
            if target.is_dir() && target.in_upper() {
                // Its whiteouts must not outlive it, nor go before it does.
                let old = self.upper_path(target)?;
                let twin = self.make_empty_twin(old.as_fd())?;
                rustix::fs::renameat_with(
                    upper.work(),
                    twin.as_os_str(),
                    &*to_fd,
                    to.name,
                    SysFlags::EXCHANGE,
                )?;
                cleared = Some(twin);
            }
        }
        let hide = from_shows || flags.whiteout;
        let moved = self.move_name(source, from, to, hide);
        if let Some(old) = cleared {
            if moved.is_err() {
                // The old target comes back.
                let (work, old) = (upper.work(), old.as_os_str());
                rustix::fs::renameat_with(work, old, &*to_fd, to.name, SysFlags::EXCHANGE)?;
            }
            // What cannot be removed goes with the next mount.
            let _ = upper.remove_work(&old);
        }
        if let (Err(e), Some(device)) = (moved, &device) {
            let _ = upper.remove_work(device);
            return Err(e);
        }
        moved?;
        if let Some(target) = target {
            self.after_goodbye(target, to.dir, to.name)?;
        }
        self.list_remove(from.dir, from.name);
        self.list_add(to.dir, to.name, source.id, source.kind);
        self.relink(source, from, to);
        if let Some(device) = device {
            let made = host::stat_at(upper.work(), &device)?.ok_or(Errno::STALE)?;
            rustix::fs::renameat(upper.work(), device.as_os_str(), &*from_fd, from.name)?;
            let id = self.lowers.host_ino(made.key);
            self.list_add(from.dir, from.name, id, made.attr.kind);
        }
        Ok(())
    }

    fn move_name(
        &self,
        source: &Arc<Node>,
        from: &Side<'_>,
        to: &Side<'_>,
        hide: bool,
    ) -> Result<()> {
        let from_fd = self.upper_dir(from.dir)?;
        let to_fd = self.upper_dir(to.dir)?;
        let over_whiteout =
            source.is_dir() && matches!(self.upper_name(to.dir, to.name)?, UpperName::Whiteout);
        if over_whiteout {
            // A directory cannot replace a device, but they can change places.
            rustix::fs::renameat_with(&*from_fd, from.name, &*to_fd, to.name, SysFlags::EXCHANGE)?;
            if !hide {
                // It hides nothing, so it may as well stay.
                let _ = rustix::fs::unlinkat(&*from_fd, from.name, rustix::fs::AtFlags::empty());
            }
            Ok(())
        } else if hide {
            let (old, new) = ((from_fd.as_fd(), from.name), (to_fd.as_fd(), to.name));
            self.move_and_hide(source.is_dir(), old, new)
        } else {
            rustix::fs::renameat(&*from_fd, from.name, &*to_fd, to.name)
        }
    }

    /// A move that leaves the old name hidden: by a mark beside it, or by a whiteout in its place.
    fn move_and_hide(
        &self,
        is_dir: bool,
        (from, name): (BorrowedFd<'_>, &OsStr),
        (to, new_name): (BorrowedFd<'_>, &OsStr),
    ) -> Result<()> {
        let upper = self.writable()?;
        if let Some(new_mark) = upper.mark_hidden(from, name)? {
            let moved = rustix::fs::renameat(from, name, to, new_name);
            if moved.is_err() && new_mark {
                upper.unmark_hidden(from, name)?;
            }
            return moved;
        }
        match rustix::fs::renameat_with(from, name, to, new_name, SysFlags::WHITEOUT) {
            Err(Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP) => {
                self.move_in_steps(is_dir, (from, name), (to, new_name))
            }
            other => other,
        }
    }

    /// A move that leaves a whiteout, where the upper's file system has no such call. After each step, so after a crash
    /// too, the old name shows the object or is hidden, never what the lowers have there; and the new name shows what it
    /// did or the object.
    fn move_in_steps(
        &self,
        is_dir: bool,
        (from, name): (BorrowedFd<'_>, &OsStr),
        (to, new_name): (BorrowedFd<'_>, &OsStr),
    ) -> Result<()> {
        let upper = self.writable()?;
        if !is_dir {
            // Under both names first.
            let temp = upper.temp_name();
            let flags = rustix::fs::AtFlags::empty();
            match rustix::fs::linkat(from, name, upper.work(), temp.as_os_str(), flags) {
                Ok(()) => {
                    let moved = rustix::fs::renameat(upper.work(), temp.as_os_str(), to, new_name);
                    if moved.is_err() {
                        let _ = upper.remove_work(&temp);
                    }
                    return moved.and_then(|()| upper.replace_by_whiteout(from, name, false));
                }
                Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        // What it changes places with hides, or is made to.
        match upper.make_whiteout(to, new_name) {
            Ok(()) => {
                upper.expect_xattr_whiteouts(from)?;
                let flags = SysFlags::EXCHANGE;
                let moved = rustix::fs::renameat_with(from, name, to, new_name, flags);
                if moved.is_err() {
                    let _ = rustix::fs::unlinkat(to, new_name, rustix::fs::AtFlags::empty());
                }
                moved
            }
            Err(Errno::EXIST) => {
                let flags = SysFlags::EXCHANGE;
                rustix::fs::renameat_with(from, name, to, new_name, flags)?;
                upper.replace_by_whiteout(from, name, is_dir)
            }
            Err(e) => Err(e),
        }
    }

    /// Before a directory moves: its upper says where its lowers are, or that it has none to be merged with.
    fn prepare_dir(
        &self,
        node: &Arc<Node>,
        from: &Side<'_>,
        to: &Side<'_>,
        to_shows: bool,
    ) -> Result<()> {
        if !node.is_dir() {
            return Ok(());
        }
        let upper = self.writable()?;
        let (merged, path) = {
            let lowers = !node.state().lowers.is_empty();
            (lowers, node.dir()?.lower_path())
        };
        if !merged {
            if to_shows {
                upper.make_opaque(self.upper_dir(node)?.as_fd())?;
            }
            return Ok(());
        }
        if matches!(self.redirect, Redirect::Off | Redirect::Ignore) {
            return Err(Errno::XDEV);
        }
        let path = path.ok_or(Errno::STALE)?;
        let base = to.dir.dir()?.lower_path();
        // Within one directory the old name is enough, as long as that directory's lowers are where the name counts from.
        let cut = path.as_bytes().iter().rposition(|b| *b == b'/');
        let (parent, last) = match cut {
            Some(cut) => (&path.as_bytes()[..cut], &path.as_bytes()[cut + 1..]),
            None => (&b""[..], path.as_bytes()),
        };
        let relative = Arc::ptr_eq(from.dir, to.dir)
            && base.as_deref().is_some_and(|b| b.as_bytes() == parent);
        let redirect = if relative {
            last.to_vec()
        } else {
            [b"/", path.as_bytes()].concat()
        };
        upper
            .mark(self.upper_dir(node)?.as_fd(), "redirect", &redirect)
            .map_err(|e| match e {
                // The path is longer than the file system's xattrs. As the kernel's overlayfs: programs that move
                // directories then copy them.
                Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::NAMETOOLONG => Errno::XDEV,
                e => e,
            })
    }
    /// The node follows a name that moved.
    fn relink(&self, node: &Arc<Node>, from: &Side<'_>, to: &Side<'_>) {
        let old = node.remove_link(from.dir, from.name);
        if node.is_dir() {
            // A look-up may have moved a directory meanwhile, if the layers were changed below us: then the next look-up
            // finds this one again.
            let _links = lock(&self.dir_links);
            if matches!(is_inside(to.dir, node), Ok(false)) {
                node.add_link(to.dir, to.name, true);
            }
        } else {
            node.add_link(to.dir, to.name, true);
        }
        drop(old);
    }
}
