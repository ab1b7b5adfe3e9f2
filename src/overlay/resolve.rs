//! What a name in a merged directory is: the upper first, then each lower, with whiteouts, opaque marks, redirects,
//! origins and the index.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::engine::{Overlay, check_name};
use super::few::Few;
use super::listing::{self, InUpper, Item, Where};
use super::node::{LowerRef, Node, lock};
use super::origin::{self, Origin};
use super::upper::Marks;
use super::{Aufs, NodeId, Redirect, Result};
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
    /// A directory of the upper carries the mark of that name, or does not; `None`: not known.
    pub impure: Option<bool>,
    pub lowers: Few<LowerRef>,
    pub lower_path: Option<Arc<OsStr>>,
    /// Of the lower object, where known.
    pub lower_attr: Option<Attr>,
}

/// What a directory's listing says of a name.
pub(super) enum Listed {
    /// There is no listing.
    Unknown,
    Absent,
    /// Shown, or hidden by a whiteout in the upper.
    Known {
        ino: NodeId,
        place: Where,
    },
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
        match self.listed(dir, name)? {
            Listed::Unknown => self.upper_name_at(dir, name, None),
            Listed::Absent => Ok(UpperName::Absent),
            Listed::Known { place, .. } => self.upper_name_at(dir, name, Some(place)),
        }
    }

    /// The same where the listing told the name's place, if it did.
    fn upper_name_at(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        place: Option<Where>,
    ) -> Result<UpperName> {
        if !dir.in_upper() {
            return Ok(UpperName::Absent);
        }
        let upper = self.some_upper()?;
        // A mark and a whiteout are one to the listing.
        let place = place.filter(|_| upper.aufs == Aufs::Ordinary);
        match place.map(|place| place.upper) {
            Some(InUpper::Nothing) => return Ok(UpperName::Absent),
            Some(InUpper::Whiteout) => return Ok(UpperName::Whiteout),
            Some(InUpper::Object) | None => {}
        }
        if upper.reserves(name) {
            return Ok(UpperName::Absent);
        }
        let fd = self.upper_dir(dir)?;
        let Some(mut stat) = host::stat_at(fd.as_fd(), name)? else {
            return Ok(match upper.is_marked(fd.as_fd(), name)? {
                true => UpperName::Marked,
                false => UpperName::Absent,
            });
        };
        let whiteout = place.is_none()
            && ((stat.is_whiteout() && !whiteout::is_device(fd.as_fd(), name)?)
                || (stat.attr.kind == FileKind::Regular
                    && stat.attr.size == 0
                    && upper.mark_at(fd.as_fd(), name, "whiteout")?.is_some()));
        if whiteout {
            return Ok(UpperName::Whiteout);
        }
        self.show_at(fd.as_fd(), name, &mut stat.attr)?;
        Ok(UpperName::Present(stat))
    }

    /// What the directory's listing says of a name, if there is one. The caller holds the namespace lock.
    pub(super) fn listed(&self, dir: &Arc<Node>, name: &OsStr) -> Result<Listed> {
        let listing = lock(&dir.dir()?.listing);
        let Some(list) = &*listing else {
            return Ok(Listed::Unknown);
        };
        let at = listing::position(&self.hasher, name);
        Ok(match list.get(at, name) {
            None => Listed::Absent,
            Some(Item { ino, place, .. }) => Listed::Known { ino, place },
        })
    }

    /// The node of a listed name, if it is known by that name.
    pub(super) fn live(&self, dir: &Arc<Node>, name: &OsStr, ino: NodeId) -> Option<Arc<Node>> {
        let node = self.table.find(ino)?;
        node.has_link(dir, name).is_some().then_some(node)
    }

    /// Do the lowers have the name?
    pub(super) fn lowers_show(&self, dir: &Arc<Node>, name: &OsStr) -> Result<bool> {
        match self.listed(dir, name)? {
            Listed::Absent => Ok(false),
            Listed::Known { place, .. } => Ok(place.lower.is_some()),
            Listed::Unknown => {
                let below = dir.state().lowers.clone();
                self.lowers.shows(&below, name)
            }
        }
    }

    /// What a name is in the merged directory. The caller holds the directory's namespace lock.
    pub(super) fn resolve(&self, dir: &Arc<Node>, name: &OsStr) -> Result<Option<Found>> {
        match self.listed(dir, name)? {
            Listed::Unknown => self.resolve_at(dir, name, None),
            Listed::Absent => Ok(None),
            Listed::Known { place, .. } => self.resolve_at(dir, name, Some(place)),
        }
    }

    /// The same where the listing told the name's place, if it did.
    pub(super) fn resolve_at(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        place: Option<Where>,
    ) -> Result<Option<Found>> {
        let below = dir.state().lowers.clone();
        let parent_path = dir.dir()?.lower_path();
        let lower_path = || parent_path.as_ref().map(|p| join(p, name));
        // Only where it is said to be need be looked.
        let near = match place.map(|place| (place.lower.map(usize::from), place.only)) {
            None => &below[..],
            Some((None, _)) => &[],
            Some((Some(at), true)) if !self.lowers.follow => below.get(at..=at).unwrap_or_default(),
            Some((Some(at), _)) => below.get(at..).unwrap_or_default(),
        };
        match self.upper_name_at(dir, name, place)? {
            UpperName::Whiteout | UpperName::Marked => Ok(None),
            UpperName::Absent => {
                let hit = self.lowers.lookup(near, name)?;
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
                    impure: None,
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
                .resolve_upper_dir(dir, name, stat, (&below, near), lower_path())
                .map(Some),
            UpperName::Present(stat) => {
                let fd = self.upper_dir(dir)?;
                let marks = self.some_upper()?.marks_at(fd.as_fd(), name)?;
                let (id, index) = self.upper_ino(fd.as_fd(), name, &stat, &marks)?;
                // The link count of an indexed file may be kept relative to its lower's.
                let mut lowers = if index.is_some() {
                    self.lowers.lookup(near, name)?.found
                } else {
                    Few::None
                };
                lowers.retain(|l| self.lowers.ino(l) == id);
                // No telling from the blocks: xattrs may have one, and a copy that was cut short has many.
                let data_below = stat.attr.kind == FileKind::Regular && marks.has(METACOPY_MARK);
                if data_below {
                    lowers = self.data_of(fd.as_fd(), name, (&below, near))?;
                }
                Ok(Some(Found {
                    id,
                    kind: stat.attr.kind,
                    upper: Some((stat, index)),
                    name_in_upper: true,
                    data_below,
                    impure: None,
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
        (below, near): (&[LowerRef], &[LowerRef]),
    ) -> Result<Few<LowerRef>> {
        let mut found = match self.some_upper()?.mark_at(dir, name, "redirect")? {
            Some(path) if path.first() == Some(&b'/') => {
                self.lowers.find(OsStr::from_bytes(&path[1..]))?
            }
            Some(other) if check_name(OsStr::from_bytes(&other)).is_ok() => {
                self.lowers.lookup(below, OsStr::from_bytes(&other))?.found
            }
            Some(_) => Few::None,
            None => self.lowers.lookup(near, name)?.found,
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

    /// A directory in the upper, whose name is to be looked for in the lowers `near`: merged with what it covers, unless
    /// opaque, or with what its redirect names.
    fn resolve_upper_dir(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        stat: Stat,
        (below, near): (&[LowerRef], &[LowerRef]),
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
            impure: None,
            lowers: Few::None,
            lower_path: None,
            lower_attr: None,
        };
        let marks = upper.marks_at(fd.as_fd(), name)?;
        if !marks.has("impure") {
            found.impure = Some(false);
        }
        if self.lowers.is_empty() {
            return Ok(found);
        }
        if upper.is_opaque_at(fd.as_fd(), name, &marks)? {
            if let Some(id) = self.origin_of(fd.as_fd(), name, &marks)? {
                found.id = id;
            }
            return Ok(found);
        }
        let redirect = match self.redirect {
            Redirect::Ignore => None,
            _ if !marks.has("redirect") => None,
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
            Some(_) => (Few::None, None),
            None => (self.lowers.lookup(near, name)?.found, lower_path),
        };
        if dirs.first().is_some_and(|d| d.node.kind.is_dir()) {
            found.id = self.lowers.ino(&dirs[0]);
            found.lowers = dirs;
            found.lower_path = path;
        } else if let Some(id) = self.origin_of(fd.as_fd(), name, &marks)? {
            found.id = id;
        }
        Ok(found)
    }

    /// Inode number an upper object keeps from where it was copied from.
    fn origin_of(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        marks: &Marks,
    ) -> Result<Option<NodeId>> {
        if !self.own_origins {
            return Ok(None);
        }
        let upper = self.some_upper()?;
        for mark in [origin::KERNEL_MARK, origin::OWN_MARK] {
            if marks.has(mark)
                && let Some(value) = upper.mark_at(dir, name, mark)?
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
        marks: &Marks,
    ) -> Result<(NodeId, Option<OsString>)> {
        let own = self.lowers.host_ino(stat.key);
        if !self.own_origins {
            return Ok((own, None));
        }
        let upper = self.some_upper()?;
        for mark in [origin::KERNEL_MARK, origin::OWN_MARK] {
            if !marks.has(mark) {
                continue;
            }
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
