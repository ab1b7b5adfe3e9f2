//! Upper objects opened: by their names, which may change while we look, by the index, or by a kept descriptor.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::engine::Overlay;
use super::node::{Climb, Node};
use super::{NodeId, Result};
use crate::layer::ObjectKey;
use crate::layer::host::{self, Stat};

/// How often an object that moved while we opened it is looked for again.
const RETRIES: usize = 16;

/// See [`Overlay::hold`].
pub(super) struct Held<'a> {
    node: &'a Arc<Node>,
    ours: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.ours
            && let Some(upper) = &mut self.node.state_mut().upper
        {
            upper.pinned = None;
        }
    }
}

impl Overlay {
    /// A directory's descriptor that is open already.
    fn dir_at_hand(&self, node: &Node) -> Result<Option<Arc<OwnedFd>>> {
        if node.id == NodeId::ROOT {
            return Ok(Some(Arc::clone(self.some_upper()?.root())));
        }
        Ok(self.dirs.get(&node.id.0))
    }

    /// Descriptor (`O_PATH`) of a directory in the upper.
    pub(super) fn upper_dir(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.dir_at_hand(node)? {
            return Ok(fd);
        }
        // Up to a directory that is open, then down again: in loops, since paths can be thousands of names deep.
        let mut path = Vec::new();
        let mut near = None;
        let mut at = Arc::clone(node);
        let mut climb = Climb::from(node);
        loop {
            let Some(up) = at.state().parent_in_upper() else {
                break;
            };
            climb.step(&up)?;
            path.push(std::mem::replace(&mut at, up));
            if let Some(fd) = self.dir_at_hand(&at)? {
                near = Some((Arc::clone(&at), fd));
                break;
            }
        }
        if near.is_none() {
            path.push(at);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        while let Some(at) = path.pop() {
            let fd = Arc::new(self.upper_object_near(&at, flags, near.as_ref())?.0);
            self.dirs.insert(at.id.0, Arc::clone(&fd));
            near = Some((at, fd));
        }
        near.map(|(_, fd)| fd).ok_or(Errno::STALE)
    }

    /// Opens a node's upper object, and makes sure it is that very object: names move while we look.
    pub(super) fn upper_object(&self, node: &Arc<Node>, flags: OFlags) -> Result<(OwnedFd, Stat)> {
        self.upper_object_near(node, flags, None)
    }

    /// The same; `near` is a directory, perhaps the node's parent, whose descriptor is at hand.
    fn upper_object_near(
        &self,
        node: &Arc<Node>,
        flags: OFlags,
        near: Option<&(Arc<Node>, Arc<OwnedFd>)>,
    ) -> Result<(OwnedFd, Stat)> {
        enum Place {
            Fd(Arc<OwnedFd>),
            Name(Arc<Node>, Arc<OsStr>),
            Index(OsString),
        }
        if node.id == NodeId::ROOT {
            let fd = host::open_at(self.some_upper()?.root().as_fd(), OsStr::new("."), flags)?;
            let stat = self.stat(fd.as_fd())?;
            return Ok((fd, stat));
        }
        for attempt in 0..RETRIES {
            let (place, key): (Place, ObjectKey) = {
                let state = node.state();
                let upper = state.upper.as_ref().ok_or(Errno::STALE)?;
                let place = if let Some(fd) = &upper.pinned {
                    Place::Fd(Arc::clone(fd))
                } else if let Some(link) = state.link_in_upper(attempt) {
                    Place::Name(Arc::clone(&link.parent), Arc::clone(&link.name))
                } else if let Some(index) = &upper.index {
                    Place::Index(index.clone())
                } else {
                    return Err(Errno::STALE);
                };
                (place, upper.key)
            };
            let opened = match place {
                Place::Fd(fd) if flags.contains(OFlags::PATH) => fd
                    .try_clone()
                    .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO)),
                Place::Fd(fd) => host::reopen(fd.as_fd(), flags - OFlags::NOFOLLOW),
                Place::Name(parent, name) => {
                    let dir = match near {
                        Some((dir, fd)) if Arc::ptr_eq(dir, &parent) => Arc::clone(fd),
                        _ => self.upper_dir(&parent)?,
                    };
                    // Nobody may go through the directory any more, but the node was reached before.
                    self.some_upper()?
                        .permitted(dir.as_fd(), libc::S_IXUSR, || {
                            host::open_at(dir.as_fd(), &name, flags)
                        })
                }
                Place::Index(name) => host::open_at(self.some_upper()?.index(), &name, flags),
            };
            match opened {
                Ok(fd) => {
                    let stat = self.stat(fd.as_fd())?;
                    if stat.key == key {
                        return Ok((fd, stat));
                    }
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR) => {}
                Err(e) => return Err(e),
            }
            std::thread::yield_now();
        }
        Err(Errno::STALE)
    }

    /// An `O_PATH` descriptor of a node's upper object.
    pub(super) fn upper_path(&self, node: &Arc<Node>) -> Result<OwnedFd> {
        Ok(self.upper_object(node, OFlags::PATH | OFlags::NOFOLLOW)?.0)
    }

    /// A descriptor of a node's upper object, to keep it in reach without its name; the caller owns `dir`, in which it is
    /// `name`. One that is open already will do.
    pub(super) fn held_fd(
        &self,
        node: &Arc<Node>,
        dir: &Arc<Node>,
        name: &OsStr,
    ) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = &node.state().upper.as_ref().ok_or(Errno::STALE)?.pinned {
            return Ok(Arc::clone(fd));
        }
        if node.is_dir() {
            return self.upper_dir(node);
        }
        if let Some(open) = self.open_upper(node) {
            return Ok(open);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        if !node.has_link(dir, name).is_some_and(|link| link.in_upper) {
            return Ok(Arc::new(self.upper_object(node, flags)?.0));
        }
        let parent = self.upper_dir(dir)?;
        let open = || host::open_at(parent.as_fd(), name, flags);
        let fd = self
            .some_upper()?
            .permitted(parent.as_fd(), libc::S_IXUSR, open)?;
        Ok(Arc::new(fd))
    }

    /// Keeps a node of the upper in reach while its name changes: whoever has it open meanwhile must not find it gone. The
    /// caller owns `dir`, in which it is `name`.
    pub(super) fn hold<'a>(
        &self,
        node: &'a Arc<Node>,
        dir: &Arc<Node>,
        name: &OsStr,
    ) -> Result<Held<'a>> {
        let fd = self.held_fd(node, dir, name)?;
        let mut state = node.state_mut();
        let upper = state.upper.as_mut().ok_or(Errno::STALE)?;
        let ours = upper.pinned.is_none();
        if ours {
            upper.pinned = Some(fd);
        }
        drop(state);
        Ok(Held { node, ours })
    }

    /// A file without data of its own whose data is found by the file's name: it must not get another one so.
    pub(super) fn data_by_name(&self, node: &Arc<Node>) -> Result<bool> {
        if !node.in_upper() || node.data_in_upper() {
            return Ok(false);
        }
        let redirect = self
            .some_upper()?
            .mark_of(self.upper_path(node)?.as_fd(), "redirect")?;
        Ok(redirect.is_none_or(|path| path.first() != Some(&b'/')))
    }

    /// Remembers whether the upper directory carries the `impure` mark.
    pub(super) fn note_impure(&self, node: &Arc<Node>, fd: BorrowedFd<'_>) {
        if let (Ok(dir), Some(upper)) = (node.dir(), &self.upper) {
            let marked = matches!(upper.mark_of(fd, "impure"), Ok(Some(v)) if v == b"y");
            dir.impure.store(marked, Ordering::Relaxed);
        }
    }

    /// An entry with another's inode number is coming into `dir`: the mark tells readers of the upper to look at origins.
    pub(super) fn mark_impure(&self, dir: &Arc<Node>) -> Result<()> {
        let part = dir.dir()?;
        if !part.impure.load(Ordering::Relaxed) {
            let fd = self.upper_dir(dir)?;
            self.writable()?.mark(fd.as_fd(), "impure", b"y")?;
            part.impure.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}
