//! What a mount's upper changed against its lowers.
//!
//! The walk goes where the upper has something: a directory that shows the lowers of its own path is compared by the
//! upper's entries alone; one that moved here (redirect) or replaced what was here (opaque) is compared name by name.
//! When hard-linked lower files were copied up, their other names changed too without being in the upper: then the
//! whole tree is walked.

use std::collections::{BTreeSet, btree_set};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::engine::Overlay;
use super::node::{LowerRef, Node};
use super::{Entry, Result};
use crate::layer::host;
use crate::meta::{Attr, FileKind};

/// As `docker diff` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    Added,
    Changed,
    Deleted,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    pub kind: ChangeKind,
    /// From the mount's root, without a leading slash; empty for the root itself.
    pub path: OsString,
    /// What is there now (`None` for `Deleted`), usable with the engine's other calls while the sink runs.
    pub entry: Option<Entry>,
    /// A directory under which nothing of the lowers' directory of the same path shows through.
    pub opaque: bool,
}

struct Walk<'a> {
    overlay: &'a Overlay,
    out: Vec<Change>,
    /// Some lower file has names that changed without being in the upper.
    aliases: bool,
}

impl Overlay {
    /// Tells what differs from the lowers: parents before children, siblings in byte order of their names. Parents of
    /// changes are changes. Reads only; a mount being written to at the same time gives a mixture of before and after.
    pub fn changes(&self, sink: &mut dyn FnMut(&Change) -> io::Result<()>) -> io::Result<()> {
        let aliases = !self.index_names().is_empty();
        let mut walk = Walk {
            overlay: self,
            out: Vec::new(),
            aliases,
        };
        let base = self.lowers.roots()?;
        let walked = if self.upper.is_some() {
            walk.root(&self.root, &base)
                .and_then(|()| walk.tree(&self.root, base))
        } else {
            Ok(())
        };
        let mut told = walked.map_err(io::Error::from);
        for change in &walk.out {
            if told.is_ok() {
                told = sink(change);
            }
            if let Some(entry) = &change.entry {
                self.forget(entry.node, 1);
            }
        }
        told
    }
}

fn same(a: &[LowerRef], b: &[LowerRef]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| a.layer == b.layer && a.node.key == b.node.key)
}

/// Do the attributes that a layer records differ?
fn differ(a: &Attr, b: &Attr) -> bool {
    (a.kind, a.perm, a.uid, a.gid, a.mtime, a.rdev)
        != (b.kind, b.perm, b.uid, b.gid, b.mtime, b.rdev)
}

/// A directory being walked.
struct Level {
    dir: Arc<Node>,
    path: OsString,
    /// The directories the lowers show at this path, empty if none.
    base: Vec<LowerRef>,
    names: btree_set::IntoIter<OsString>,
    /// Its place in what is told, if it is told only for what is in it.
    mark: Option<usize>,
}

impl Walk<'_> {
    /// The root itself, if its owner, mode or xattrs changed. That something in it changed is not told of it.
    fn root(&mut self, root: &Arc<Node>, base: &[LowerRef]) -> Result<()> {
        let mut attr = self.overlay.attr_of(root)?;
        let now = attr.mtime;
        if !base.is_empty() {
            let below = self.overlay.lowers.spokesman(base)?;
            let layer = self.overlay.lowers.layer(below.layer);
            attr.mtime = layer.attr(&below.node)?.mtime;
        }
        if self.attributes_changed(root, &attr, base)? {
            attr.mtime = now;
            let path = OsString::new();
            self.push(ChangeKind::Changed, path, root, attr, false);
        }
        Ok(())
    }

    /// A loop, since paths can be thousands of names deep.
    fn tree(&mut self, root: &Arc<Node>, base: Vec<LowerRef>) -> Result<()> {
        let names = self.names(root, &base)?.into_iter();
        let mut levels = vec![Level {
            dir: Arc::clone(root),
            path: OsString::new(),
            base,
            names,
            mark: None,
        }];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.names.next() {
                let mut at = level.path.clone();
                if !at.is_empty() {
                    at.push("/");
                }
                at.push(&name);
                let below = self.name(&level.dir, &name, at, &level.base)?;
                levels.extend(below);
            } else if let Some(done) = levels.pop()
                && done.mark.is_some_and(|mark| self.out.len() == mark + 1)
            {
                // Copied up, but nothing came of it.
                self.out.pop();
                self.overlay.forget(done.dir.id, 1);
            }
        }
        Ok(())
    }

    /// What may have changed in a directory.
    fn names(&self, dir: &Arc<Node>, base: &[LowerRef]) -> Result<BTreeSet<OsString>> {
        let lowers = dir.state().lowers.clone();
        let in_place = same(&lowers, base);
        let mut names = BTreeSet::new();
        if in_place && !self.aliases {
            if !dir.in_upper() {
                return Ok(names);
            }
            let fd = self.overlay.upper_dir(dir)?;
            names.extend(self.overlay.names_in_upper(fd.as_fd())?);
        } else {
            let _names = dir.names_shared()?;
            names.extend(
                self.overlay
                    .listing(dir)?
                    .items()
                    .map(|i| i.name.to_owned()),
            );
            for lower in base {
                let entries = self
                    .overlay
                    .lowers
                    .layer(lower.layer)
                    .read_dir(&lower.node)?;
                names.extend(
                    entries
                        .into_iter()
                        .filter(|e| e.target.is_some())
                        .map(|e| e.name),
                );
            }
        }
        Ok(names)
    }

    /// Tells of one name. If it is a directory, what is in it is next.
    fn name(
        &mut self,
        dir: &Arc<Node>,
        name: &OsStr,
        path: OsString,
        base: &[LowerRef],
    ) -> Result<Option<Level>> {
        let overlay = self.overlay;
        let before = overlay.lowers.lookup(base, name)?.found;
        let found = {
            let _names = dir.names_shared()?;
            match overlay.resolve(dir, name)? {
                None => None,
                Some(found) => {
                    let changed = found.upper.is_some();
                    Some((overlay.intern(dir, name, found)?, changed))
                }
            }
        };
        let Some(((node, attr), in_upper)) = found else {
            if !before.is_empty() {
                self.out.push(Change {
                    kind: ChangeKind::Deleted,
                    path,
                    entry: None,
                    opaque: false,
                });
            }
            return Ok(None);
        };
        let was_dir = before
            .first()
            .is_some_and(|b| b.node.kind == FileKind::Directory);
        let kind = if before.is_empty() {
            ChangeKind::Added
        } else {
            ChangeKind::Changed
        };
        if !node.is_dir() {
            let moved_here = || !same(&node.state().lowers, &before);
            if kind == ChangeKind::Added || in_upper || moved_here() {
                self.push(kind, path, &node, attr, false);
            }
            return Ok(None);
        }
        let base: Vec<LowerRef> = if was_dir { before.into() } else { Vec::new() };
        let lowers = node.state().lowers.clone();
        let opaque = was_dir && !same(&lowers, &base);
        let mark = self.out.len();
        let itself = kind == ChangeKind::Added
            || opaque
            || !was_dir
            || self.attributes_changed(&node, &attr, &base)?;
        self.push(kind, path.clone(), &node, attr, opaque);
        let names = self.names(&node, &base)?.into_iter();
        Ok(Some(Level {
            dir: node,
            path,
            base,
            names,
            mark: (!itself).then_some(mark),
        }))
    }

    fn push(
        &mut self,
        kind: ChangeKind,
        path: OsString,
        node: &Arc<Node>,
        attr: Attr,
        opaque: bool,
    ) {
        self.overlay.table.remember(node);
        self.out.push(Change {
            kind,
            path,
            entry: Some(Entry {
                node: node.id,
                attr,
            }),
            opaque,
        });
    }

    /// Has a merged directory other attributes or xattrs than its topmost lower?
    fn attributes_changed(&self, node: &Arc<Node>, attr: &Attr, base: &[LowerRef]) -> Result<bool> {
        if base.is_empty() || !node.in_upper() {
            return Ok(false);
        }
        let lower = self.overlay.lowers.spokesman(base)?;
        let layer = self.overlay.lowers.layer(lower.layer);
        let mut below = layer.attr(&lower.node)?;
        self.overlay.ids.show(&mut below);
        if differ(attr, &below) {
            return Ok(true);
        }
        let mut names: Vec<_> = layer.xattr_names(&lower.node)?;
        names.retain(|n| !super::upper::is_internal_xattr(n));
        let mut now: Vec<_> = host::xattr_names_fd(self.overlay.upper_path(node)?.as_fd())?;
        now.retain(|n| !super::upper::is_internal_xattr(n) && !self.overlay.permissions.hides(n));
        names.sort();
        now.sort();
        if names != now {
            return Ok(true);
        }
        let fd = self.overlay.upper_path(node)?;
        for name in names {
            if host::xattr_fd(fd.as_fd(), &name)? != layer.xattr(&lower.node, &name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
