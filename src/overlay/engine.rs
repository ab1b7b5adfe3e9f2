//! The engine itself: its parts, its beginning and end, and the nodes it hands out.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::hash::RandomState;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::io::Errno;

use super::few::Few;
use super::foresight::Foresight;
use super::listing;
use super::node::{Link, Node, State, Table, UpperObject, is_inside, lock};
use super::origin;
use super::resolve::{Found, Listed};
use super::stack::Lowers;
use super::upper::Upper;
use super::{Entry, IdMap, Marks, NodeId, OpenError, Options, Redirect, Result, Stack, Xattrs};
use crate::layer::host;
use crate::layer::{LayerFile, ObjectKey, Permissions};
use crate::meta::{Attr, FileKind};

/// Most open files, directories of the upper, and directories of the lowers kept open for reuse.
const KEPT_EACH: u64 = 512;

/// Numbers with this bit are of no file system and no layer.
const SECOND_WITH_A_NUMBER: u64 = 1 << 62;

/// A merged tree being served. See the module for its calls' rules.
pub struct Overlay {
    pub(super) lowers: Lowers,
    pub(super) upper: Option<Upper>,
    pub(super) metacopy: bool,
    pub(super) redirect: Redirect,
    pub(super) static_nlink: bool,
    pub(super) ids: IdMap,
    pub(super) permissions: Permissions,
    pub(super) xattrs: Xattrs,
    pub(super) beneath: Option<Marks>,
    pub(super) table: Arc<Table>,
    pub(super) root: Arc<Node>,
    /// Key of listing positions.
    pub(super) hasher: RandomState,
    pub(super) listings: listing::Listings,
    pub(super) foresight: Foresight,
    /// Names in the index, so that most look-ups need not ask for them.
    index: RwLock<HashSet<OsString>>,
    /// Copied-up objects that cannot carry the mark of their origin (without privilege, symlinks and devices), by the
    /// number their copy has of itself: the number they go by until the next mount.
    pub(super) unmarked: Mutex<HashMap<NodeId, NodeId>>,
    /// Held while a directory moves to another parent, so that none becomes its own ancestor.
    pub(super) dir_moves: Mutex<()>,
    /// Held for a moment while a known directory's node gets another parent, by a rename or because a look-up found it
    /// elsewhere: of two at once neither would see the circle they make.
    pub(super) dir_links: Mutex<()>,
    pub(super) files: quick_cache::sync::Cache<u64, OpenFile>,
    pub(super) dirs: quick_cache::sync::Cache<u64, Arc<OwnedFd>>,
    /// Origin marks of our own form may be about.
    pub(super) own_origins: bool,
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

pub(super) fn check_name(name: &OsStr) -> Result<()> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL),
        n if n.len() > 255 => Err(Errno::NAMETOOLONG),
        n if n.contains(&b'/') || n.contains(&0) => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

/// Is this in the index, but no entry: something that the kernel was making there, or keeps to make whiteouts of?
fn is_temporary(name: &OsStr) -> bool {
    name.as_bytes().first() == Some(&b'#')
}

/// Half of the descriptors this process may have, at most, are kept for reuse: the others are for what is in use.
fn kept_each() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(KEPT_EACH, |all| (all / 8).clamp(8, KEPT_EACH)) as usize
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
            kept_each(),
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
                .filter(|name| !is_temporary(name))
                .collect(),
            None => HashSet::new(),
        };
        let table = Table::new();
        let root = table.intern(NodeId::ROOT, FileKind::Directory, || {
            let path = (!roots.is_empty()).then(|| OsStr::new("").into());
            let state = State {
                links: Few::None,
                upper: upper.as_ref().map(|u| {
                    Box::new(UpperObject {
                        key: u.key,
                        pinned: None,
                        index: None,
                        data_below: false,
                    })
                }),
                lowers: roots.into(),
            };
            (state, path)
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
            xattrs: options.xattrs,
            beneath: options.beneath,
            table,
            root,
            hasher: RandomState::new(),
            listings: listing::Listings::new(),
            foresight: Foresight::default(),
            index: RwLock::new(index),
            unmarked: Mutex::default(),
            dir_moves: Mutex::default(),
            dir_links: Mutex::default(),
            files: quick_cache::sync::Cache::new(kept_each()),
            dirs: quick_cache::sync::Cache::new(kept_each()),
            own_origins,
            closed: AtomicBool::new(false),
        };
        if let Some(upper) = &overlay.upper {
            if upper.is_root_opaque() {
                overlay.root.state_mut().lowers.clear();
                if let Ok(part) = overlay.root.dir() {
                    *lock(&part.lower_path) = None;
                }
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

    /// Where the upper's marks are; `None` without an upper.
    pub fn marks(&self) -> Option<Marks> {
        self.upper.as_ref().map(Upper::marks)
    }

    /// The upper holds inodes for several names of a lower file each, not all of which need be in it.
    pub fn has_index(&self) -> bool {
        !self.index_names().is_empty()
    }

    /// Some of these are named in a form that only we read.
    pub fn has_own_index(&self) -> bool {
        let own = origin::OWN_INDEX.as_bytes();
        self.index_names()
            .iter()
            .any(|n| n.as_bytes().starts_with(own))
    }

    pub fn is_read_only(&self) -> bool {
        self.writable().is_err()
    }

    /// Names in the index, to look at.
    pub(super) fn index_names(&self) -> RwLockReadGuard<'_, HashSet<OsString>> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names in the index, to change.
    pub(super) fn index_names_mut(&self) -> RwLockWriteGuard<'_, HashSet<OsString>> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
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
        self.list_for_lookups(&dir)?;
        let live = match self.listed(&dir, name)? {
            Listed::Known { ino, .. } => self.live(&dir, name, ino),
            Listed::Absent => return Ok(None),
            Listed::Unknown => None,
        };
        let (node, attr) = match live {
            Some(node) => self.named_attr(&dir, name, &node)?,
            None => match self.resolve(&dir, name)? {
                Some(found) => self.intern(&dir, name, found)?,
                None => return Ok(None),
            },
        };
        self.table.remember(&node);
        if !node.is_dir() {
            self.foresight.asked(&dir.dir()?.left_out);
        }
        Ok(Some(Entry {
            node: node.id,
            attr,
        }))
    }

    /// The transport gives back `count` references to a node; `true` when it has no more.
    pub fn forget(&self, node: NodeId, count: u64) -> bool {
        let last = node != NodeId::ROOT && self.table.forget(node, count);
        if last {
            self.files.remove(&node.0);
            self.dirs.remove(&node.0);
            self.table.give_back();
        }
        last
    }

    /// The node for what was found, with its attributes; made if it is new. The caller holds the namespace lock.
    pub(super) fn intern(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        mut found: Found,
    ) -> Result<(Arc<Node>, Attr)> {
        let upper_key = found.upper.as_ref().map(|(stat, _)| stat.key);
        if let Some(key) = upper_key
            && self.is_of_another(found.id, key)
        {
            // Two upper objects claim one origin (an upper written without an index, or copied with its xattrs): the
            // one met later goes by its own number.
            found.id = match found.lowers.is_empty() {
                true => self.free_number(key),
                false => self.lowers.host_ino(key),
            };
        }
        let Found {
            id,
            kind,
            upper,
            name_in_upper,
            data_below,
            impure,
            lowers,
            lower_path,
            lower_attr,
        } = found;
        let known = upper.as_ref().map(|(stat, index)| {
            Box::new(UpperObject {
                key: stat.key,
                pinned: None,
                index: index.clone(),
                data_below,
            })
        });
        let origin = if kind.is_dir() {
            None
        } else {
            lowers.first().cloned()
        };
        let mut is_new = false;
        let node = self.table.intern(id, kind, || {
            is_new = true;
            let state = State {
                links: Few::None,
                upper: known,
                lowers,
            };
            (state, lower_path)
        });
        if origin.is_some() && node.state().lowers.is_empty() {
            node.state_mut().lowers.extend(origin);
        }
        if node.kind != kind {
            // The same between objects of lowers.
            return Err(Errno::STALE);
        }
        let fresh = node.state().links.is_empty();
        if kind.is_dir() && !is_new {
            self.link_known_dir(&node, (dir, name), name_in_upper, upper_key)?;
        } else {
            node.add_link(dir, name, name_in_upper);
        }
        let mut attr = match (upper, lower_attr) {
            (Some(_), _) if data_below => return Ok((Arc::clone(&node), self.attr_of(&node)?)),
            (Some((stat, _)), _) => stat.attr,
            (None, Some(attr)) => attr,
            (None, None) => return Ok((Arc::clone(&node), self.attr_of(&node)?)),
        };
        if fresh && node.is_dir() && node.in_upper() && impure != Some(false) {
            let fd = self.upper_dir(&node)?;
            self.note_impure(&node, fd.as_fd());
        }
        self.finish_attr(&node, &mut attr)?;
        Ok((node, attr))
    }

    /// The number of an object of the upper that has none of a lower's. Something of a lower may have been removed below us,
    /// and the file system have given its number to this object while the kernel still knows the old one.
    pub(super) fn free_number(&self, key: ObjectKey) -> NodeId {
        let own = self.lowers.host_ino(key);
        match self.is_of_another(own, key) {
            true => NodeId(own.0 ^ SECOND_WITH_A_NUMBER),
            false => own,
        }
    }

    /// Whether a live node with this number has another object in the upper than that, or none.
    fn is_of_another(&self, id: NodeId, key: ObjectKey) -> bool {
        self.table
            .find(id)
            .is_some_and(|live| live.state().upper.as_ref().is_none_or(|u| u.key != key))
    }

    /// A directory that is known already was found as `name` in `dir`, with that object in the upper. Elsewhere than
    /// before it moves there, as a dentry does: an upper's redirects may lead to one directory of the lowers by several
    /// ways, and somebody may have moved it below us.
    ///
    /// # Errors
    /// ESTALE, as in the kernel's overlayfs, where it is not the same merged directory: another object in the upper, or
    /// the bare origin of a redirected one. ELOOP if it would be inside itself, as `d_splice_alias` answers.
    fn link_known_dir(
        &self,
        node: &Arc<Node>,
        (dir, name): (&Arc<Node>, &OsStr),
        in_upper: bool,
        upper_key: Option<ObjectKey>,
    ) -> Result<()> {
        {
            let state = node.state();
            let known_key = state.upper.as_ref().map(|u| u.key);
            let is_here = |l: &Link| Arc::ptr_eq(&l.parent, dir) && *l.name == *name;
            let here = state.links.iter().any(is_here);
            let elsewhere = !here && !state.links.is_empty();
            let other = upper_key.is_some() && upper_key != known_key;
            let bare = upper_key.is_none() && known_key.is_some() && elsewhere;
            if other || bare {
                return Err(Errno::STALE);
            }
        }
        let _links = lock(&self.dir_links);
        if node.has_link(dir, name).is_none() && is_inside(dir, node)? {
            return Err(Errno::LOOP);
        }
        node.add_link(dir, name, in_upper);
        Ok(())
    }
}
