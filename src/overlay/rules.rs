//! What a directory of the upper gives to the objects that are made in it. Only we change directories, so it is read once.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::acl;
use super::engine::Overlay;
use super::node::{Node, lock};
use super::{Result, Xattrs};
use crate::meta::Attr;

pub(super) struct Rules {
    pub above: Attr,
    /// The directory's default ACL, as its xattr has it.
    pub default_acl: Option<Vec<u8>>,
}

/// Rules that were read, and how often they changed since the directory is known.
#[derive(Default)]
pub(super) struct Kept {
    rules: Option<Arc<Rules>>,
    changes: u64,
}

impl Overlay {
    /// The rules of a directory, open as `fd`.
    pub(super) fn rules(&self, dir: &Arc<Node>, fd: BorrowedFd<'_>) -> Result<Arc<Rules>> {
        let part = dir.dir()?;
        let changes = {
            let kept = lock(&part.rules);
            if let Some(rules) = &kept.rules {
                return Ok(Arc::clone(rules));
            }
            kept.changes
        };
        let rules = Arc::new(Rules {
            above: self.stat(fd)?.attr,
            default_acl: match self.xattrs {
                Xattrs::All => acl::default_of(fd)?,
                Xattrs::NoAcl | Xattrs::Nothing => None,
            },
        });
        let mut kept = lock(&part.rules);
        if kept.changes == changes {
            kept.rules = Some(Arc::clone(&rules));
        }
        Ok(rules)
    }

    /// Attributes or xattrs of the node changed. To be called afterwards.
    pub(super) fn rules_changed(&self, node: &Node) {
        if let Ok(part) = node.dir() {
            let mut kept = lock(&part.rules);
            kept.rules = None;
            kept.changes += 1;
        }
    }
}
