//! Walking a path inside a tree, as `chroot` into it would.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::{Error, Node, Result};
use crate::meta::FileKind;
use crate::overlay::Overlay;

/// Symlinks followed for one path, as in the kernel (`MAXSYMLINKS`).
pub(super) const MAX_LINKS: u32 = 40;

/// Finds `path` from the tree's root. `last`: follow a symlink at the end, too.
pub(super) fn find<'a>(engine: &'a Overlay, path: &OsStr, last: bool) -> Result<Node<'a>> {
    let asked = || {
        let text = path.as_bytes();
        let start = text.iter().position(|b| *b != b'/').unwrap_or(text.len());
        OsStr::from_bytes(&text[start..]).to_owned()
    };
    // Directories gone through, the root first: what `..` goes back to.
    let mut above: Vec<Node<'a>> = Vec::new();
    let mut at = Node::root(engine)?;
    // Names still to be walked, the next one at the end.
    let mut ahead = components(path.as_bytes());
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if !at.attr.kind.is_dir() {
            return Err(Error::NotDirectory {
                path: at.path.clone(),
            });
        }
        match name.as_bytes() {
            b"." => continue,
            b".." => {
                if let Some(up) = above.pop() {
                    at = up;
                }
                continue;
            }
            bytes if bytes.len() > 255 || bytes.contains(&0) => {
                return Err(Error::BadName { path: asked() });
            }
            _ => {}
        }
        let child = at
            .child(&name)?
            .ok_or_else(|| Error::NotFound { path: asked() })?;
        if child.attr.kind != FileKind::Symlink || (ahead.is_empty() && !last) {
            above.push(std::mem::replace(&mut at, child));
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Error::TooManyLinks { path: asked() });
        }
        let target = child.target()?;
        if target.as_bytes().first() == Some(&b'/') {
            at = Node::root(engine)?;
            above.clear();
        }
        ahead.extend(components(target.as_bytes()));
    }
    Ok(at)
}

/// The names of a path, the last one first. A slash at the end asks for a directory: as `.` does.
fn components(path: &[u8]) -> Vec<OsString> {
    let mut names: Vec<OsString> = path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect();
    if path.ends_with(b"/") {
        names.push(".".into());
    }
    names.reverse();
    names
}
