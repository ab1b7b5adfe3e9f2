//! Extended attributes. Those that overlays keep for themselves are never shown; an overlay running on top of this one
//! has its own stored one level deeper (`trusted.overlay.overlay.*`), as the kernel does, so that nesting works.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::engine::Overlay;
use super::node::Node;
use super::upper::INTERNAL_PREFIXES;
use super::{Marks, NodeId, Result, XattrSet, Xattrs, acl};
use crate::layer::{Permissions, host};

/// Namespaces that can be nested.
const NESTABLE: [&str; 2] = [INTERNAL_PREFIXES[0], INTERNAL_PREFIXES[1]];

/// The stored name of an xattr, as the mount's users call it. `None`: theirs to see never.
fn stored_name(name: &OsStr) -> Option<Cow<'_, OsStr>> {
    for prefix in NESTABLE {
        if let Some(rest) = name.as_bytes().strip_prefix(prefix.as_bytes()) {
            let mut stored = OsString::from(prefix);
            stored.push("overlay.");
            stored.push(OsStr::from_bytes(rest));
            return Some(stored.into());
        }
    }
    (!super::upper::is_internal_xattr(name)).then_some(name.into())
}

/// The shown name of a stored xattr; `None` for internal ones.
fn shown_name(name: &OsStr) -> Option<Cow<'_, OsStr>> {
    for prefix in NESTABLE {
        if let Some(rest) = name.as_bytes().strip_prefix(prefix.as_bytes()) {
            let inner = rest.strip_prefix(b"overlay.")?;
            let mut shown = OsString::from(prefix);
            shown.push(OsStr::from_bytes(inner));
            return Some(shown.into());
        }
    }
    (!super::upper::is_internal_xattr(name)).then_some(name.into())
}

/// Is it of a namespace that xattrs can be in (xattr(7))? The layers say of all others only that they have none.
fn is_known(name: &OsStr) -> bool {
    ["user.", "trusted.", "security.", "system.posix_acl_"]
        .iter()
        .any(|namespace| name.as_bytes().starts_with(namespace.as_bytes()))
}

impl Marks {
    fn prefix(self) -> &'static str {
        match self {
            Self::Trusted => INTERNAL_PREFIXES[0],
            Self::User => INTERNAL_PREFIXES[1],
        }
    }

    /// Does `name` look like a mark? `Some(true)`: like one of an overlay further up, which is no mark here.
    fn nested(self, name: &OsStr) -> Option<bool> {
        let rest = name.as_bytes().strip_prefix(self.prefix().as_bytes())?;
        Some(rest.starts_with(b"overlay."))
    }
}

impl Overlay {
    /// EOPNOTSUPP for an xattr that the mount was told not to have.
    fn offered(&self, name: &OsStr) -> Result<()> {
        match self.xattrs {
            Xattrs::All => Ok(()),
            Xattrs::NoAcl if !acl::is_acl(name) => Ok(()),
            Xattrs::NoAcl | Xattrs::Nothing => Err(Errno::OPNOTSUPP),
        }
    }

    fn stored<'a>(&self, name: &'a OsStr) -> Option<Cow<'a, OsStr>> {
        let stored = match self.beneath.and_then(|marks| marks.nested(name)) {
            Some(nested) => nested.then_some(name.into()),
            None => stored_name(name),
        };
        stored.filter(|_| !self.permissions.hides(name))
    }

    fn shown<'a>(&self, name: &'a OsStr) -> Option<Cow<'a, OsStr>> {
        match self.beneath.and_then(|marks| marks.nested(name)) {
            Some(nested) => nested.then_some(name.into()),
            None => shown_name(name),
        }
    }

    pub fn getxattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        let node = self.table.get(node)?;
        self.offered(name)?;
        let stored = self.stored(name).ok_or(Errno::NODATA)?;
        let value = self.raw_xattr(&node, &stored)?.ok_or(if is_known(name) {
            Errno::NODATA
        } else {
            Errno::OPNOTSUPP
        })?;
        if name == acl::ACCESS && self.permissions != Permissions::Inode {
            let perm = self.attr_of(&node)?.perm;
            return acl::with_mode(value, perm).ok_or(Errno::IO);
        }
        Ok(value)
    }

    fn raw_xattr(&self, node: &Arc<Node>, name: &OsStr) -> Result<Option<Vec<u8>>> {
        if node.in_upper() {
            let fd = self.open_upper_or_path(node)?;
            return host::xattr_fd(fd.as_fd(), name);
        }
        let lowers = node.state().lowers.clone();
        let lower = self.lowers.spokesman(&lowers)?;
        self.lowers.layer(lower.layer).xattr(&lower.node, name)
    }

    /// Names, each followed by NUL, as `listxattr(2)`.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        let node = self.table.get(node)?;
        if self.xattrs == Xattrs::Nothing {
            return Err(Errno::OPNOTSUPP);
        }
        let names = if node.in_upper() {
            host::xattr_names_fd(self.upper_path(&node)?.as_fd())?
        } else {
            let lowers = node.state().lowers.clone();
            let lower = self.lowers.spokesman(&lowers)?;
            self.lowers.layer(lower.layer).xattr_names(&lower.node)?
        };
        let mut list = Vec::new();
        for name in names
            .iter()
            .filter(|n| !self.permissions.hides(n) && self.offered(n).is_ok())
            .filter_map(|n| self.shown(n))
        {
            list.extend_from_slice(name.as_bytes());
            list.push(0);
        }
        Ok(list)
    }

    pub fn setxattr(&self, node: NodeId, name: &OsStr, value: &[u8], how: XattrSet) -> Result<()> {
        let node = self.table.get(node)?;
        self.writable()?;
        self.offered(name)?;
        let stored = self.stored(name).ok_or(Errno::PERM)?;
        let flags = match how {
            XattrSet::Any => XattrFlags::empty(),
            XattrSet::Create => XattrFlags::CREATE,
            XattrSet::Replace => XattrFlags::REPLACE,
        };
        let fd = self.copied_up(&node)?;
        let set = if name == acl::ACCESS && self.permissions != Permissions::Inode {
            self.set_acl(fd.as_fd(), name, value)
        } else {
            host::set_xattr_fd(fd.as_fd(), &stored, value, flags)
        };
        self.rules_changed(&node);
        set
    }

    /// An ACL is a mode too. Where that is kept in an xattr, what the ACL says of owner, mask and others goes there, and
    /// is taken from there whenever the ACL is read: on disk these entries are the daemon's, as the inode's mode is.
    fn set_acl(&self, fd: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> Result<()> {
        let (bits, extended) = acl::mode_of(value).ok_or(Errno::INVAL)?;
        let mut attr = self.stat(fd)?.attr;
        attr.perm = attr.perm & 0o7000 | bits;
        if extended {
            host::set_xattr_fd(fd, name, value, XattrFlags::empty())?;
        } else {
            match host::remove_xattr_fd(fd, name) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        self.keep(fd, &attr)
    }

    pub fn removexattr(&self, node: NodeId, name: &OsStr) -> Result<()> {
        let node = self.table.get(node)?;
        self.writable()?;
        self.offered(name)?;
        let stored = self.stored(name).ok_or(Errno::PERM)?;
        if !node.in_upper() && self.raw_xattr(&node, &stored)?.is_none() {
            return Err(Errno::NODATA);
        }
        let removed = host::remove_xattr_fd(self.copied_up(&node)?.as_fd(), &stored);
        self.rules_changed(&node);
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_nest_and_internals_stay_hidden() {
        for (shown, stored) in [
            ("user.mime", Some("user.mime")),
            (
                "trusted.overlay.opaque",
                Some("trusted.overlay.overlay.opaque"),
            ),
            (
                "trusted.overlay.overlay.opaque",
                Some("trusted.overlay.overlay.overlay.opaque"),
            ),
            (
                "user.overlay.redirect",
                Some("user.overlay.overlay.redirect"),
            ),
            ("user.fuseoverlayfs.opaque", None),
            ("security.capability", Some("security.capability")),
        ] {
            let got = stored_name(OsStr::new(shown));
            assert_eq!(got.as_deref(), stored.map(OsStr::new), "{shown}");
            if let Some(stored) = stored {
                assert_eq!(
                    shown_name(OsStr::new(stored)).as_deref(),
                    Some(OsStr::new(shown))
                );
            }
        }
        for internal in [
            "trusted.overlay.opaque",
            "user.overlay.origin",
            "user.fuseoverlayfs.opaque",
        ] {
            assert_eq!(shown_name(OsStr::new(internal)), None, "{internal}");
        }
    }
}
