//! What a name in a merged directory is: the upper first, then each lower, with whiteouts, opaque marks, redirects,
//! origins and the index.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::engine::{Overlay, check_name};
use super::listing;
use super::node::{LowerRef, Node, lock};
use super::origin::{self, Origin};
use super::{NodeId, Redirect, Result};
use crate::layer::host::{self, Stat};
use crate::layer::whiteout;
use crate::meta::{Attr, FileKind};

/// Mark of a file whose data is still the lower's.
pub(super) const METACOPY_MARK: &str = "metacopy";

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
    /// An object that is a whiteout has the name.
    Whiteout,
    /// Nothing has the name, but a mark beside it hides it.
    Marked,
    Present(Stat),
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
    /// What the upper directory alone says of a name.
    pub(super) fn upper_name(&self, dir: &Arc<Node>, name: &OsStr) -> Result<UpperName> {
        if !dir.in_upper() {
            return Ok(UpperName::Absent);
        }
        let fd = self.upper_dir(dir)?;
        let upper = self.some_upper()?;
        if upper.reserves(name) {
            return Ok(UpperName::Absent);
        }
        let Some(mut stat) = host::stat_at(fd.as_fd(), name)? else {
            return Ok(match upper.is_marked(fd.as_fd(), name)? {
                true => UpperName::Marked,
                false => UpperName::Absent,
            });
        };
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
            UpperName::Whiteout | UpperName::Marked => Ok(None),
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
            Some(other) if check_name(OsStr::from_bytes(&other)).is_ok() => {
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
        if self.index_names().is_empty() {
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
        if !self.index_names().contains(&name) {
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
        if upper.is_opaque_at(fd.as_fd(), name)? {
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
            // `..` is no name: it would lead out of the layer.
            Some(redirect) if check_name(OsStr::from_bytes(&redirect)).is_ok() => {
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
            let indexed = self.index_names().contains(&entry);
            return Ok((id, indexed.then_some(entry)));
        }
        let known = lock(&self.unmarked).get(&own).copied();
        Ok((known.unwrap_or(own), None))
    }
}
