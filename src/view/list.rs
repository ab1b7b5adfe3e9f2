//! Walking a whole tree.

use std::collections::HashSet;
use std::ffi::OsString;
use std::vec;

use super::{Error, Node, reading};
use crate::overlay::Overlay;
use rustix::io::Errno;

/// One object of a listing.
pub struct Listed<'a> {
    pub node: &'a Node<'a>,
    /// For each directory on the way down to this, from the top: does it hold more after what leads here?
    pub more: &'a [bool],
}

struct Level<'a> {
    dir: Node<'a>,
    names: vec::IntoIter<OsString>,
}

/// See [`super::View::list`].
pub(super) fn list<E: From<Error>>(
    engine: &Overlay,
    top: &Node<'_>,
    depth: usize,
    sink: &mut dyn FnMut(&Listed<'_>) -> Result<(), E>,
) -> Result<(), E> {
    if !top.attr.kind.is_dir() || depth == 0 {
        return Ok(());
    }
    // A name stands for a directory of its own in every tree that an import makes.
    let mut seen = HashSet::from([top.id]);
    let dir = again(engine, top)?;
    let names = dir.names()?.into_iter();
    // A loop, since paths can be thousands of names deep.
    let mut levels = vec![Level { dir, names }];
    let mut more = vec![false];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            levels.pop();
            more.pop();
            continue;
        };
        if let Some(last) = more.last_mut() {
            *last = level.names.len() > 0;
        }
        let node = level.dir.child(&name)?;
        let node = node.ok_or_else(|| reading(&super::join(&level.dir.path, &name))(Errno::IO))?;
        sink(&Listed {
            node: &node,
            more: &more,
        })?;
        if !node.attr.kind.is_dir() {
            continue;
        }
        if !seen.insert(node.id) {
            let path = node.path.clone();
            return Err(Error::Loop { path }.into());
        }
        if levels.len() < depth {
            let names = node.names()?.into_iter();
            levels.push(Level { dir: node, names });
            more.push(false);
        }
    }
    Ok(())
}

/// The same node held once more.
fn again<'a>(engine: &'a Overlay, node: &Node<'_>) -> super::Result<Node<'a>> {
    super::find::find(engine, &node.path, false)
}
