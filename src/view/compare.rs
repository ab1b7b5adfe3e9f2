//! What two trees differ in.
//!
//! Both are walked together, name by name. Where the two show the very same object of the same layer (all the directories
//! merged to one, or one file), nothing below it can differ and nothing is read: images that share layers are compared by
//! what they do not share. Contents that the store knows to be one are equal without being read.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::vec;

use rustix::io::Errno;

use super::{Error, Node, Result, View, reading};
use crate::meta::FileKind;
use crate::overlay::{ChangeKind, NodeId, Overlay};
use crate::store::ContentRef;

/// What is different about something that both trees have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// Another kind of file.
    Type,
    /// Bytes of a file, target of a symlink, number of a device.
    Content,
    /// Permission, set-id and sticky bits.
    Mode,
    /// User or group.
    Owner,
    /// Extended attributes, ACLs and capabilities among them.
    Xattr,
    /// Time of the last change of the content.
    Time,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub kind: ChangeKind,
    /// From the root, without a leading slash; empty for the root itself.
    pub path: OsString,
    /// In the order of [`Aspect`]. Of a directory none, if only what is in it differs; of what is added or deleted none.
    pub aspects: Vec<Aspect>,
}

/// Tells what of `before` is otherwise in `after`: parents before children, siblings in byte order of their names. Parents of
/// differences are told as changed; of a deleted directory, or one that became something else, only itself is told.
pub fn compare<E: From<Error>>(
    before: &View,
    after: &View,
    sink: &mut dyn FnMut(&Difference) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut walk = Walk {
        before,
        after,
        seen: HashSet::new(),
        levels: Vec::new(),
        untold: Vec::new(),
    };
    let roots = (Node::root(&before.engine)?, Node::root(&after.engine)?);
    walk.changed(roots.0, roots.1, sink)?;
    while let Some(level) = walk.levels.last_mut() {
        if let Some(name) = level.names.next() {
            walk.name(&name, sink)?;
        } else {
            walk.levels.pop();
            walk.untold.truncate(walk.levels.len());
        }
    }
    Ok(())
}

/// A directory in the walk: in `after`, and in `before` if it is one there.
struct Level<'a> {
    before: Option<Node<'a>>,
    after: Node<'a>,
    names: vec::IntoIter<OsString>,
}

struct Walk<'a> {
    before: &'a View,
    after: &'a View,
    /// Directories of `after` gone into: a tree has each once.
    seen: HashSet<NodeId>,
    levels: Vec<Level<'a>>,
    /// Per level: the directory is not different by itself, and has not been told yet.
    untold: Vec<bool>,
}

type Sink<'s, E> = &'s mut dyn FnMut(&Difference) -> std::result::Result<(), E>;

impl<'a> Walk<'a> {
    fn name<E: From<Error>>(
        &mut self,
        name: &OsStr,
        sink: Sink<'_, E>,
    ) -> std::result::Result<(), E> {
        let Some(level) = self.levels.last() else {
            return Ok(());
        };
        let before = match &level.before {
            Some(dir) => dir.child(name)?,
            None => None,
        };
        match (before, level.after.child(name)?) {
            (Some(before), Some(after)) => self.changed(before, after, sink),
            (Some(before), None) => self.tell(ChangeKind::Deleted, &before.path, Vec::new(), sink),
            (None, Some(after)) => {
                self.tell(ChangeKind::Added, &after.path, Vec::new(), sink)?;
                Ok(self.enter(None, after, false)?)
            }
            // A name that is listed but not found: the trees are damaged.
            (None, None) => Err(reading(&super::join(&level.after.path, name))(Errno::IO).into()),
        }
    }

    /// Something that both have.
    fn changed<E: From<Error>>(
        &mut self,
        before: Node<'a>,
        after: Node<'a>,
        sink: Sink<'_, E>,
    ) -> std::result::Result<(), E> {
        if self.same_object(&before, &after)? {
            return Ok(());
        }
        let known = match (before.attr.kind, after.attr.kind) {
            (FileKind::Regular, FileKind::Regular) => {
                let content = (self.before.content(&before)?, self.after.content(&after)?);
                (content.0.is_some() && content.0 == content.1).then_some(true)
            }
            _ => None,
        };
        let aspects = differing(&before, &after, known)?;
        let both_dirs = before.attr.kind.is_dir() && after.attr.kind.is_dir();
        let quiet = aspects.is_empty();
        if !quiet {
            self.tell(ChangeKind::Changed, &after.path, aspects, sink)?;
        }
        Ok(self.enter(both_dirs.then_some(before), after, quiet)?)
    }

    /// Goes into a directory; `quiet`: it is told only if something in it is.
    fn enter(&mut self, before: Option<Node<'a>>, after: Node<'a>, quiet: bool) -> Result<()> {
        if !after.attr.kind.is_dir() {
            return Ok(());
        }
        if !self.seen.insert(after.id) {
            return Err(Error::Loop {
                path: after.path.clone(),
            });
        }
        let mut names = after.names()?;
        if let Some(before) = &before {
            names.extend(before.names()?);
            names.sort_unstable();
            names.dedup();
        }
        self.levels.push(Level {
            before,
            after,
            names: names.into_iter(),
        });
        self.untold.push(quiet);
        Ok(())
    }

    fn tell<E: From<Error>>(
        &mut self,
        kind: ChangeKind,
        path: &OsStr,
        aspects: Vec<Aspect>,
        sink: Sink<'_, E>,
    ) -> std::result::Result<(), E> {
        for (level, untold) in self.levels.iter().zip(&mut self.untold) {
            // The root has no name to tell.
            if std::mem::take(untold) && !level.after.path.is_empty() {
                sink(&Difference {
                    kind: ChangeKind::Changed,
                    path: level.after.path.clone(),
                    aspects: Vec::new(),
                })?;
            }
        }
        sink(&Difference {
            kind,
            path: path.to_owned(),
            aspects,
        })
    }

    /// Do both trees show the same objects of the same layers here?
    fn same_object(&self, before: &Node<'_>, after: &Node<'_>) -> Result<bool> {
        let of = |view: &View, node: &Node<'_>| {
            let sources = view.engine.sources(node.id).map_err(reading(&node.path))?;
            let name = |source: &crate::overlay::Source| {
                (view.layers[source.layer].info().diff_id, source.key.ino)
            };
            Ok::<_, Error>(sources.iter().map(name).collect::<Vec<_>>())
        };
        Ok(of(self.before, before)? == of(self.after, after)?)
    }
}

impl View {
    /// The store's name for a file's bytes.
    fn content(&self, file: &Node<'_>) -> Result<Option<ContentRef>> {
        let sources = self.engine.sources(file.id).map_err(reading(&file.path))?;
        let Some(source) = sources.first() else {
            return Ok(None);
        };
        let inode = self.layers[source.layer].inode(source.key.ino)?;
        Ok(Some(inode.content))
    }
}

/// What differs between what `before` and `after` have at `path` (symlinks not followed): `None` if one of them has nothing.
/// For any two engines, so also for a mount and the layers below it.
pub fn aspects(before: &Overlay, after: &Overlay, path: &OsStr) -> Result<Option<Vec<Aspect>>> {
    let find = |engine| match super::find::find(engine, path, false) {
        Ok(node) => Ok(Some(node)),
        Err(Error::NotFound { .. } | Error::NotDirectory { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    match (find(before)?, find(after)?) {
        (Some(before), Some(after)) => differing(&before, &after, None).map(Some),
        _ => Ok(None),
    }
}

/// `same_content`: whether the bytes are the same, if that is known without reading.
fn differing(
    before: &Node<'_>,
    after: &Node<'_>,
    same_content: Option<bool>,
) -> Result<Vec<Aspect>> {
    let (old, new) = (&before.attr, &after.attr);
    let mut aspects = Vec::new();
    if old.kind != new.kind {
        aspects.push(Aspect::Type);
    } else {
        let same = match (old.kind, same_content) {
            (_, Some(known)) => known,
            (FileKind::Regular, None) => old.size == new.size && same_bytes(before, after)?,
            (FileKind::Symlink, None) => before.target()? == after.target()?,
            (_, None) => old.rdev == new.rdev,
        };
        if !same {
            aspects.push(Aspect::Content);
        }
    }
    // All symlinks have the same permissions, whatever an archive says.
    if old.perm != new.perm && new.kind != FileKind::Symlink {
        aspects.push(Aspect::Mode);
    }
    if (old.uid, old.gid) != (new.uid, new.gid) {
        aspects.push(Aspect::Owner);
    }
    if before.xattrs()? != after.xattrs()? {
        aspects.push(Aspect::Xattr);
    }
    if old.mtime != new.mtime {
        aspects.push(Aspect::Time);
    }
    Ok(aspects)
}

/// Compares files of one size. Holes that both have are not read, and a hole is as good as zeros.
fn same_bytes(before: &Node<'_>, after: &Node<'_>) -> Result<bool> {
    let (mut one, mut other) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    let mut at = 0;
    while at < before.attr.size {
        let starts = (next_data(before, at)?, next_data(after, at)?);
        at = match starts {
            (None, None) => return Ok(true),
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) | (None, Some(a)) => a,
        };
        let got = (read(before, at, &mut one)?, read(after, at, &mut other)?);
        if one[..got.0] != other[..got.1] {
            return Ok(false);
        }
        if got.0 == 0 {
            return Ok(true);
        }
        at += got.0 as u64;
    }
    Ok(true)
}

fn next_data(file: &Node<'_>, at: u64) -> Result<Option<u64>> {
    match file.engine.lseek(file.id, at, libc::SEEK_DATA as u32) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(reading(&file.path)(error)),
    }
}

fn read(file: &Node<'_>, at: u64, buffer: &mut [u8]) -> Result<usize> {
    file.engine
        .read(file.id, at, buffer)
        .map_err(reading(&file.path))
}
