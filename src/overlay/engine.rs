//! The engine itself: its parts, and how a name becomes a node.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::hash::RandomState;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::listing;
use super::node::{LowerRef, Node, State, Table, UpperObject, lock};
use super::origin::{self, Origin};
use super::stack::Lowers;
use super::upper::Upper;
use super::{Entry, IdMap, NodeId, OpenError, Options, Redirect, Result, Stack};
use crate::layer::host::{self, Stat};
use crate::layer::{LayerFile, ObjectKey, Permissions, whiteout};
use crate::meta::{Attr, FileKind};

/// Most open files and most directory descriptors kept for reuse.
const KEPT_EACH: u64 = 512;
/// How often an object that moved while we opened it is looked for again.
const RETRIES: usize = 16;

/// Mark of a file whose data is still the lower's.
pub(super) const METACOPY_MARK: &str = "metacopy";

/// A merged tree being served. See the module for its calls' rules.
pub struct Overlay {
    pub(super) lowers: Lowers,
    pub(super) upper: Option<Upper>,
    pub(super) metacopy: bool,
    pub(super) redirect: Redirect,
    pub(super) static_nlink: bool,
    pub(super) ids: IdMap,
    pub(super) permissions: Permissions,
    pub(super) table: Arc<Table>,
    pub(super) root: Arc<Node>,
    /// Key of listing positions.
    pub(super) hasher: RandomState,
    pub(super) listings: listing::Kept,
    /// Names in the index, so that most look-ups need not ask for them.
    pub(super) index: RwLock<HashSet<OsString>>,
    /// Held while a directory moves to another parent, so that none becomes its own ancestor.
    pub(super) dir_moves: Mutex<()>,
    pub(super) files: quick_cache::sync::Cache<u64, OpenFile>,
    pub(super) dirs: quick_cache::sync::Cache<u64, Arc<OwnedFd>>,
    /// Origin marks of our own form may be about.
    own_origins: bool,
    closed: AtomicBool,
}

/// An open file kept for the next request.
#[derive(Clone)]
pub(super) struct OpenFile {
    pub file: LayerFile,
    /// Opened in the upper; a lower's file is stale once the data is copied up.
    pub upper: bool,
    pub writable: bool,
}

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

/// What a name in a directory turned out to be.
pub(super) struct Found {
    pub id: NodeId,
    pub kind: FileKind,
    /// The object in the upper: by this name, or by its index entry.
    pub upper: Option<(Stat, Option<OsString>)>,
    /// The upper has this very name.
    pub name_in_upper: bool,
    /// The upper's object has no data of its own (`metacopy`).
    pub data_below: bool,
    pub lowers: Vec<LowerRef>,
    pub lower_path: Option<Arc<OsStr>>,
    /// Of the lower object, where known.
    pub lower_attr: Option<Attr>,
}

/// What `name` is in the upper directory alone.
pub(super) enum UpperName {
    Absent,
    Whiteout,
    Present(Stat),
}

pub(super) fn check_name(name: &OsStr) -> Result<()> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL),
        n if n.len() > 255 => Err(Errno::NAMETOOLONG),
        n if n.contains(&b'/') || n.contains(&0) => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

/// Half of the descriptors this process may have, at most, are kept for reuse: the others are for what is in use.
fn kept_each() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(KEPT_EACH, |all| (all / 4).clamp(8, KEPT_EACH)) as usize
}

fn join(parent: &OsStr, name: &OsStr) -> Arc<OsStr> {
    let mut path = parent.to_os_string();
    if !path.is_empty() {
        path.push("/");
    }
    path.push(name);
    path.into()
}

impl Overlay {
    /// Opens the upper, empties a stale workdir, and is ready to serve. The error's text is for people.
    pub fn new(stack: Stack, options: &Options) -> std::result::Result<Self, OpenError> {
        let upper = match &stack.upper {
            Some(dirs) => Some(Upper::open(dirs, options)?),
            None => None,
        };
        if stack.lowers.is_empty() && upper.is_none() {
            return Err(OpenError::Refused(
                "nothing to mount: no lower and no upper".into(),
            ));
        }
        let lowers = Lowers::new(
            stack.lowers,
            upper.as_ref().map(|u| u.key.dev),
            options.redirect == Redirect::All,
            options.ino32,
        );
        let own_origins = upper.is_some() && !lowers.is_empty();
        let roots = lowers
            .roots()
            .map_err(|e| OpenError::Refused(format!("cannot read a lower's root: {e}")))?;
        let index = match &upper {
            Some(upper) => host::read_dir(upper.index())
                .map_err(|e| {
                    OpenError::Refused(format!("cannot read the index in the work directory: {e}"))
                })?
                .into_iter()
                .map(|e| e.name)
                .collect(),
            None => HashSet::new(),
        };
        let table = Table::new();
        let root = table.intern(NodeId::ROOT, FileKind::Directory, || State {
            links: Vec::new(),
            upper: upper.as_ref().map(|u| UpperObject {
                key: u.key,
                pinned: None,
                index: None,
                data_below: false,
            }),
            lower_path: (!roots.is_empty()).then(|| OsStr::new("").into()),
            lowers: roots,
        });
        table.remember(&root);
        let overlay = Self {
            lowers,
            upper,
            metacopy: options.metacopy,
            redirect: options.redirect,
            static_nlink: options.static_nlink,
            ids: options.ids.clone(),
            permissions: options.permissions,
            table,
            root,
            hasher: RandomState::new(),
            listings: listing::Kept::new(),
            index: RwLock::new(index),
            dir_moves: Mutex::default(),
            files: quick_cache::sync::Cache::new(kept_each()),
            dirs: quick_cache::sync::Cache::new(kept_each()),
            own_origins,
            closed: AtomicBool::new(false),
        };
        if let Some(upper) = &overlay.upper {
            let opaque = upper.mark_of(upper.root().as_fd(), "opaque");
            if matches!(opaque, Ok(Some(v)) if v == b"y") {
                let mut state = overlay.root.state_mut();
                state.lowers.clear();
                state.lower_path = None;
            }
            overlay.note_impure(&overlay.root, upper.root().as_fd());
        }
        Ok(overlay)
    }

    /// The transport is going: what is on its way is flushed, everything is given up. Later calls find nothing.
    pub fn shutdown(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(upper) = &self.upper {
            upper.close();
        }
        self.files.clear();
        self.dirs.clear();
        self.table.clear();
    }

    pub fn is_read_only(&self) -> bool {
        self.writable().is_err()
    }

    /// Number of objects held in memory.
    pub fn node_count(&self) -> usize {
        self.table.len()
    }

    /// The upper, to read from.
    pub(super) fn some_upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Errno::STALE)
    }

    /// The writable part, or EROFS.
    pub(super) fn writable(&self) -> Result<&Upper> {
        self.upper
            .as_ref()
            .filter(|upper| !upper.inspect)
            .ok_or(Errno::ROFS)
    }

    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Option<Entry>> {
        check_name(name)?;
        let dir = self.table.get(parent)?;
        let _names = dir.names_shared()?;
        // The whiteouts of a directory went with it: its lowers would show again.
        if dir.is_removed() {
            return Ok(None);
        }
        let Some(found) = self.resolve(&dir, name)? else {
            return Ok(None);
        };
        let (node, attr) = self.intern(&dir, name, found)?;
        self.table.remember(&node);
        Ok(Some(Entry {
            node: node.id,
            attr,
        }))
    }

    pub fn forget(&self, node: NodeId, count: u64) {
        if node != NodeId::ROOT && self.table.forget(node, count) {
            self.files.remove(&node.0);
            self.dirs.remove(&node.0);
        }
    }

    /// What the upper directory alone says of a name.
    pub(super) fn upper_name(&self, dir: &Arc<Node>, name: &OsStr) -> Result<UpperName> {
        if !dir.in_upper() {
            return Ok(UpperName::Absent);
        }
        let fd = self.upper_dir(dir)?;
        let Some(mut stat) = host::stat_at(fd.as_fd(), name)? else {
            return Ok(UpperName::Absent);
        };
        let upper = self.some_upper()?;
        let whiteout = (stat.is_whiteout() && !whiteout::is_device(fd.as_fd(), name)?)
            || (stat.attr.kind == FileKind::Regular
                && stat.attr.size == 0
                && upper.mark_at(fd.as_fd(), name, "whiteout")?.is_some());
        if whiteout {
            return Ok(UpperName::Whiteout);
        }
        self.show_at(fd.as_fd(), name, &mut stat.attr)?;
        Ok(UpperName::Present(stat))
    }

    /// What a name is in the merged directory. The caller holds the directory's namespace lock.
    pub(super) fn resolve(&self, dir: &Arc<Node>, name: &OsStr) -> Result<Option<Found>> {
        if let Some(listing) = &*lock(&dir.dir()?.listing)
            && listing
                .get(listing::position(&self.hasher, name), name)
                .is_none()
        {
            return Ok(None);
        }
        let (below, parent_path) = {
            let state = dir.state();
            (state.lowers.clone(), state.lower_path.clone())
        };
        let lower_path = || parent_path.as_ref().map(|p| join(p, name));
        match self.upper_name(dir, name)? {
            UpperName::Whiteout => Ok(None),
            UpperName::Absent => {
                let hit = self.lowers.lookup(&below, name)?;
                let Some(first) = hit.found.first() else {
                    return Ok(None);
                };
                let kind = first.node.kind;
                let id = self.lowers.ino(first);
                let mut found = Found {
                    id,
                    kind,
                    upper: None,
                    name_in_upper: false,
                    data_below: false,
                    lower_path: if kind.is_dir() { lower_path() } else { None },
                    lowers: hit.found,
                    lower_attr: hit.attr,
                };
                if !kind.is_dir() {
                    self.find_indexed(&mut found)?;
                }
                Ok(Some(found))
            }
            UpperName::Present(stat) if stat.attr.kind.is_dir() => self
                .resolve_upper_dir(dir, name, stat, &below, lower_path())
                .map(Some),
            UpperName::Present(stat) => {
                let fd = self.upper_dir(dir)?;
                let (id, index) = self.upper_ino(fd.as_fd(), name, &stat)?;
                // The link count of an indexed file may be kept relative to its lower's.
                let mut lowers = if index.is_some() {
                    self.lowers.lookup(&below, name)?.found
                } else {
                    Vec::new()
                };
                lowers.retain(|l| self.lowers.ino(l) == id);
                let data_below = self.is_metacopy(fd.as_fd(), name, &stat)?;
                if data_below {
                    lowers = self.data_of(fd.as_fd(), name, &below)?;
                }
                Ok(Some(Found {
                    id,
                    kind: stat.attr.kind,
                    upper: Some((stat, index)),
                    name_in_upper: true,
                    data_below,
                    lowers,
                    lower_path: None,
                    lower_attr: None,
                }))
            }
        }
    }

    /// Has the upper's file only its metadata? The kernel's `overlay.metacopy` says so.
    fn is_metacopy(&self, dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> Result<bool> {
        // No telling from the blocks: xattrs may have one, and a copy that was cut short has many.
        if stat.attr.kind != FileKind::Regular {
            return Ok(false);
        }
        Ok(self
            .some_upper()?
            .mark_at(dir, name, METACOPY_MARK)?
            .is_some())
    }

    /// The lower file that a file without data shows: of the same name, or where its redirect says. Empty if there is
    /// none: then reading is an error, not a file of zeros.
    fn data_of(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        below: &[LowerRef],
    ) -> Result<Vec<LowerRef>> {
        let mut found = match self.some_upper()?.mark_at(dir, name, "redirect")? {
            Some(path) if path.first() == Some(&b'/') => {
                self.lowers.find(OsStr::from_bytes(&path[1..]))?
            }
            Some(other) if !other.contains(&b'/') => {
                self.lowers.lookup(below, OsStr::from_bytes(&other))?.found
            }
            Some(_) => Vec::new(),
            None => self.lowers.lookup(below, name)?.found,
        };
        found.retain(|l| l.node.kind == FileKind::Regular);
        Ok(found)
    }

    /// A lower file with several names may have been copied up by another of them: then the index has it.
    fn find_indexed(&self, found: &mut Found) -> Result<()> {
        let Some(upper) = &self.upper else {
            return Ok(());
        };
        if self
            .index
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .is_empty()
        {
            return Ok(());
        }
        let lower = &found.lowers[0];
        let attr = match found.lower_attr.take() {
            Some(attr) => attr,
            None => self.lowers.layer(lower.layer).attr(&lower.node)?,
        };
        let linked = attr.nlink > 1;
        found.lower_attr = Some(attr);
        if !linked {
            return Ok(());
        }
        let name = Origin::of(&self.lowers, lower).index_name();
        if !self
            .index
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .contains(&name)
        {
            return Ok(());
        }
        if let Some(mut stat) = host::stat_at(upper.index(), &name)? {
            self.show_at(upper.index(), &name, &mut stat.attr)?;
            found.data_below = self.is_metacopy(upper.index(), &name, &stat)?;
            found.upper = Some((stat, Some(name)));
        }
        Ok(())
    }

    /// A directory in the upper: merged with what it covers, unless opaque, or with what its redirect names.
    fn resolve_upper_dir(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        stat: Stat,
        below: &[LowerRef],
        lower_path: Option<Arc<OsStr>>,
    ) -> Result<Found> {
        let upper = self.some_upper()?;
        let fd = self.upper_dir(dir)?;
        let mut found = Found {
            id: self.lowers.host_ino(stat.key),
            kind: FileKind::Directory,
            upper: Some((stat, None)),
            name_in_upper: true,
            data_below: false,
            lowers: Vec::new(),
            lower_path: None,
            lower_attr: None,
        };
        if self.lowers.is_empty() {
            return Ok(found);
        }
        if upper.mark_at(fd.as_fd(), name, "opaque")?.as_deref() == Some(b"y") {
            if let Some(id) = self.origin_of(fd.as_fd(), name)? {
                found.id = id;
            }
            return Ok(found);
        }
        let redirect = match self.redirect {
            Redirect::Ignore => None,
            _ => upper.mark_at(fd.as_fd(), name, "redirect")?,
        };
        let (dirs, path) = match redirect {
            Some(redirect) if redirect.first() == Some(&b'/') => {
                let path: Arc<OsStr> = OsStr::from_bytes(&redirect[1..]).into();
                (self.lowers.walk(&path)?, Some(path))
            }
            Some(redirect) if !redirect.is_empty() && !redirect.contains(&b'/') => {
                let target = OsStr::from_bytes(&redirect);
                let parent = lower_path
                    .as_deref()
                    .map(OsStr::as_bytes)
                    .unwrap_or_default();
                let parent = parent
                    .iter()
                    .rposition(|b| *b == b'/')
                    .map_or(&b""[..], |cut| &parent[..cut]);
                let path = join(OsStr::from_bytes(parent), target);
                (self.lowers.lookup(below, target)?.found, Some(path))
            }
            Some(_) => (Vec::new(), None),
            None => (self.lowers.lookup(below, name)?.found, lower_path),
        };
        if dirs.first().is_some_and(|d| d.node.kind.is_dir()) {
            found.id = self.lowers.ino(&dirs[0]);
            found.lowers = dirs;
            found.lower_path = path;
        } else if let Some(id) = self.origin_of(fd.as_fd(), name)? {
            found.id = id;
        }
        Ok(found)
    }

    /// Inode number an upper object keeps from where it was copied from.
    fn origin_of(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<NodeId>> {
        if !self.own_origins {
            return Ok(None);
        }
        let upper = self.some_upper()?;
        for mark in [origin::KERNEL_MARK, origin::OWN_MARK] {
            if let Some(value) = upper.mark_at(dir, name, mark)?
                && let Some(id) = origin::decode(&self.lowers, mark, &value)
            {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Inode number of a file in the upper, and its index entry if it has one.
    fn upper_ino(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
    ) -> Result<(NodeId, Option<OsString>)> {
        let own = self.lowers.host_ino(stat.key);
        if !self.own_origins {
            return Ok((own, None));
        }
        let upper = self.some_upper()?;
        for mark in [origin::KERNEL_MARK, origin::OWN_MARK] {
            let Some(value) = upper.mark_at(dir, name, mark)? else {
                continue;
            };
            let Some(id) = origin::decode(&self.lowers, mark, &value) else {
                continue;
            };
            if stat.attr.nlink == 1 {
                return Ok((id, None));
            }
            let kind = if mark == origin::KERNEL_MARK {
                Origin::Kernel(value)
            } else {
                Origin::Own(value)
            };
            let entry = kind.index_name();
            let indexed = self
                .index
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .contains(&entry);
            return Ok((id, indexed.then_some(entry)));
        }
        Ok((own, None))
    }

    /// The node for what was found, with its attributes; made if it is new. The caller holds the namespace lock.
    pub(super) fn intern(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        mut found: Found,
    ) -> Result<(Arc<Node>, Attr)> {
        let upper_key = found.upper.as_ref().map(|(stat, _)| stat.key);
        if let (Some(live), Some(key)) = (self.table.find(found.id), upper_key)
            && live.state().upper.as_ref().is_none_or(|u| u.key != key)
        {
            // Two upper objects claim one origin (an upper written without an index, or copied with its xattrs): the
            // one met later goes by its own number.
            found.id = self.lowers.host_ino(key);
        }
        let Found {
            id,
            kind,
            upper,
            name_in_upper,
            data_below,
            lowers,
            lower_path,
            lower_attr,
        } = found;
        let known = upper.as_ref().map(|(stat, index)| UpperObject {
            key: stat.key,
            pinned: None,
            index: index.clone(),
            data_below,
        });
        let origin = if kind.is_dir() {
            None
        } else {
            lowers.first().cloned()
        };
        let node = self.table.intern(id, kind, || State {
            links: Vec::new(),
            upper: known,
            lowers,
            lower_path,
        });
        if origin.is_some() && node.state().lowers.is_empty() {
            node.state_mut().lowers.extend(origin);
        }
        if node.kind != kind {
            // The file system below gave the number to another object while the kernel still knew the old one.
            return Err(Errno::STALE);
        }
        let fresh = node.state().links.is_empty();
        node.add_link(dir, name, name_in_upper);
        let mut attr = match (upper, lower_attr) {
            (Some(_), _) if data_below => return Ok((Arc::clone(&node), self.attr_of(&node)?)),
            (Some((stat, _)), _) => stat.attr,
            (None, Some(attr)) => attr,
            (None, None) => return Ok((Arc::clone(&node), self.attr_of(&node)?)),
        };
        if fresh && node.is_dir() && node.in_upper() {
            let fd = self.upper_dir(&node)?;
            self.note_impure(&node, fd.as_fd());
        }
        self.finish_attr(&node, &mut attr)?;
        Ok((node, attr))
    }

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
        loop {
            let Some(up) = at.state().parent_in_upper() else {
                break;
            };
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
            Name(Arc<Node>, OsString),
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
                    Place::Name(Arc::clone(&link.parent), link.name.clone())
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

    /// Keeps a node of the upper in reach while its name changes: whoever has it open meanwhile must not find it gone.
    pub(super) fn hold<'a>(&self, node: &'a Arc<Node>) -> Result<Held<'a>> {
        let fd = self.upper_path(node)?;
        let mut state = node.state_mut();
        let upper = state.upper.as_mut().ok_or(Errno::STALE)?;
        let ours = upper.pinned.is_none();
        if ours {
            upper.pinned = Some(Arc::new(fd));
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
    fn note_impure(&self, node: &Arc<Node>, fd: BorrowedFd<'_>) {
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
