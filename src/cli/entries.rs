//! From what an engine shows to the entries of a layer: a mount's changes, or its whole tree.
//!
//! Several names of one inode become one entry and hard links to it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use ovl::image::{EntryKind, EntrySink, LayerEntry, NodeContent};
use ovl::meta::FileKind;
use ovl::overlay::{Entry, NodeId, Overlay};

/// Writes a layer from an engine's nodes.
pub struct LayerFrom<'a> {
    engine: &'a Overlay,
    out: &'a mut dyn EntrySink,
    /// First path written of each inode that has several names.
    seen: HashMap<NodeId, OsString>,
}

impl<'a> LayerFrom<'a> {
    pub fn new(engine: &'a Overlay, out: &'a mut dyn EntrySink) -> Self {
        Self {
            engine,
            out,
            seen: HashMap::new(),
        }
    }

    /// What the upper changed. Below an opaque directory there are no whiteouts: it hides what they would, and the
    /// kernel's overlayfs would show them there as devices.
    pub fn changes(mut self) -> io::Result<()> {
        let engine = self.engine;
        let mut opaque: Option<OsString> = None;
        engine.changes(&mut |change| {
            let path = change.path.as_os_str();
            let hidden = opaque.as_deref().is_some_and(|dir| is_below(path, dir));
            match &change.entry {
                None if hidden => Ok(()),
                None => self.append(path, EntryKind::Whiteout),
                Some(entry) => {
                    self.node(path, entry)?;
                    if change.opaque && !hidden {
                        opaque = Some(path.to_owned());
                    }
                    if change.opaque {
                        self.append(path, EntryKind::Opaque)
                    } else {
                        Ok(())
                    }
                }
            }
        })
    }

    /// The root itself, and everything below it.
    pub fn with_root(mut self, root: &Entry) -> io::Result<()> {
        self.node(OsStr::new(""), root)?;
        self.whole()
    }

    /// Everything below the root.
    pub fn whole(mut self) -> io::Result<()> {
        self.directory(NodeId::ROOT, OsStr::new(""))
    }

    fn directory(&mut self, dir: NodeId, path: &OsStr) -> io::Result<()> {
        let mut names: Vec<OsString> = Vec::new();
        self.engine.read_dir(dir, 0, false, &mut |item| {
            if item.name != "." && item.name != ".." {
                names.push(item.name.to_owned());
            }
            true
        })?;
        names.sort();
        for name in names {
            let mut at = path.to_owned();
            if !at.is_empty() {
                at.push("/");
            }
            at.push(&name);
            let Some(entry) = self.engine.lookup(dir, &name)? else {
                continue;
            };
            let written = self.node(&at, &entry).and_then(|()| match entry.attr.kind {
                FileKind::Directory => self.directory(entry.node, &at),
                _ => Ok(()),
            });
            self.engine.forget(entry.node, 1);
            written?;
        }
        Ok(())
    }

    fn node(&mut self, path: &OsStr, entry: &Entry) -> io::Result<()> {
        let Entry { node, attr } = entry;
        let engine = self.engine;
        let xattrs = xattrs(engine, *node)?;
        if !attr.kind.is_dir() && attr.nlink > 1 {
            if let Some(target) = self.seen.get(node).cloned() {
                return self.append(
                    path,
                    EntryKind::HardLink {
                        target: &target,
                        attr,
                        xattrs: &xattrs,
                    },
                );
            }
            self.seen.insert(*node, path.to_owned());
        }
        let target;
        let mut data = Contents {
            engine,
            node: *node,
            offset: 0,
        };
        let content = match attr.kind {
            FileKind::Symlink => {
                target = engine.readlink(*node)?;
                NodeContent::Target(&target)
            }
            FileKind::Regular if attr.size > 0 => NodeContent::Data(&mut data),
            _ => NodeContent::None,
        };
        self.append(
            path,
            EntryKind::Node {
                attr,
                xattrs: &xattrs,
                content,
            },
        )
    }

    fn append<'e>(&mut self, path: &'e OsStr, kind: EntryKind<'e>) -> io::Result<()> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("/{}: {error}", path.display()))
        };
        self.out.append(LayerEntry { path, kind }).map_err(named)
    }
}

fn is_below(path: &OsStr, dir: &OsStr) -> bool {
    path.as_bytes()
        .strip_prefix(dir.as_bytes())
        .is_some_and(|rest| rest.starts_with(b"/"))
}

fn xattrs(engine: &Overlay, node: NodeId) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let names = engine.listxattr(node)?;
    let names = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(OsStr::from_bytes);
    names
        .map(|name| Ok((name.to_owned(), engine.getxattr(node, name)?)))
        .collect()
}

/// A file's bytes from front to back.
struct Contents<'a> {
    engine: &'a Overlay,
    node: NodeId,
    offset: u64,
}

impl Read for Contents<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.engine.read(self.node, self.offset, buf)?;
        self.offset += got as u64;
        Ok(got)
    }
}
