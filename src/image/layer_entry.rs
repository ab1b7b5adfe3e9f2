//! What a tar entry means for a layer's tree.
//!
//! Pure: names and attributes in, an [`Action`] out. Names are data here; nothing is ever resolved on the host. A path
//! that is absolute is taken from the layer's root; one with a `..` component is refused, wherever it would lead.
//!
//! Whiteouts follow the OCI image specification (layer.md, "Whiteouts"): `.wh.NAME`, `.wh..wh..opq`. Other names that
//! begin with `.wh..wh.` are AUFS' own bookkeeping and say nothing. A character device 0:0 is a device, never a whiteout.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::meta::FileKind;
use crate::store::NodeMeta;

use super::acl;
use super::limits::Limits;
use super::tar::{Entry, Kind};

/// Longest name of a directory entry (`NAME_MAX`).
const NAME_MAX: usize = 255;
/// Longest symlink target the kernel takes (`PATH_MAX` less its NUL).
const TARGET_MAX: usize = 4095;
/// Longest xattr value the kernel takes (`XATTR_SIZE_MAX`).
const XATTR_VALUE_MAX: usize = 65536;
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// What to do to the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing: the entry is not about the tree.
    Ignore,
    /// A file, directory, symlink or special file.
    Node {
        path: OsString,
        kind: FileKind,
    },
    HardLink {
        path: OsString,
        target: OsString,
    },
    Whiteout {
        path: OsString,
    },
    /// The directory hides what is below it.
    Opaque {
        dir: OsString,
    },
}

/// Why an entry was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    #[error("a path with \"..\" in it could lead out of the layer")]
    ParentComponent,
    #[error("the name is empty or holds a NUL byte")]
    BadName,
    #[error("the root of the layer must be a directory")]
    RootNotDirectory,
    #[error("a component of the path has more than 255 bytes")]
    NameTooLong,
    #[error("the path has more than {0} bytes")]
    PathTooLong(usize),
    #[error("the path has more than {0} components")]
    TooDeep(usize),
    #[error("a whiteout of nothing, of \".\" or of \"..\"")]
    BadWhiteout,
    #[error("an entry below a whiteout")]
    BelowWhiteout,
    #[error("the symlink's target is empty or longer than 4095 bytes")]
    BadTarget,
    #[error("a hard link to itself")]
    LinkToItself,
    #[error("a hard link to the directory \"{}\"", .0.as_bytes().escape_ascii())]
    LinkToDirectory(OsString),
    #[error("a hard link to \"{}\", which is neither in this layer nor in those below", .0.as_bytes().escape_ascii())]
    LinkToNothing(OsString),
    #[error("too many hard links to files of lower layers (limit {0})")]
    TooManyForeignLinks(usize),
    #[error("xattr \"{}\" has an empty or overlong name, or more than 64 KiB", .0.escape_ascii())]
    BadXattr(Vec<u8>),
    #[error("xattrs of more than {0} bytes")]
    XattrsTooLarge(usize),
}

/// Decides what `entry` means.
pub fn action(entry: &Entry, limits: &Limits) -> Result<Action, EntryFault> {
    let kind = match entry.kind {
        Kind::Note => return Ok(Action::Ignore),
        Kind::HardLink => None,
        Kind::Regular => Some(FileKind::Regular),
        Kind::Symlink => Some(FileKind::Symlink),
        Kind::CharDevice => Some(FileKind::CharDevice),
        Kind::BlockDevice => Some(FileKind::BlockDevice),
        Kind::Directory => Some(FileKind::Directory),
        Kind::Fifo => Some(FileKind::Fifo),
    };
    let path = normalise(&entry.path, limits)?;
    let (dir, name) = split(&path);
    if name.is_empty() {
        return match kind {
            Some(kind @ FileKind::Directory) => Ok(Action::Node {
                path: OsString::new(),
                kind,
            }),
            _ => Err(EntryFault::RootNotDirectory),
        };
    }
    if let Some(action) = whiteout(dir, name)? {
        return Ok(action);
    }
    let path = OsString::from_vec(path);
    let Some(kind) = kind else {
        let target = OsString::from_vec(normalise(&entry.link, limits)?);
        if target.is_empty() {
            return Err(EntryFault::LinkToDirectory(target));
        }
        if target == path {
            return Err(EntryFault::LinkToItself);
        }
        return Ok(Action::HardLink { path, target });
    };
    let link = &entry.link;
    if kind == FileKind::Symlink
        && (link.is_empty() || link.len() > TARGET_MAX || link.contains(&0))
    {
        return Err(EntryFault::BadTarget);
    }
    Ok(Action::Node { path, kind })
}

fn whiteout(dir: &[u8], name: &[u8]) -> Result<Option<Action>, EntryFault> {
    let os = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    for component in dir.split(|&b| b == b'/') {
        if component.starts_with(AUFS_PREFIX) {
            return Ok(Some(Action::Ignore));
        }
        if component.starts_with(WHITEOUT_PREFIX) {
            return Err(EntryFault::BelowWhiteout);
        }
    }
    let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) else {
        return Ok(None);
    };
    if name == OPAQUE_NAME {
        return Ok(Some(Action::Opaque { dir: os(dir) }));
    }
    if name.starts_with(AUFS_PREFIX) {
        return Ok(Some(Action::Ignore));
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(EntryFault::BadWhiteout);
    }
    let path = if dir.is_empty() {
        os(hidden)
    } else {
        os(&[dir, b"/", hidden].concat())
    };
    Ok(Some(Action::Whiteout { path }))
}

/// Path from the layer's root: no leading, doubled or trailing slash, no `.`; "" is the root.
pub fn normalise(raw: &[u8], limits: &Limits) -> Result<Vec<u8>, EntryFault> {
    if raw.contains(&0) {
        return Err(EntryFault::BadName);
    }
    let mut path = Vec::with_capacity(raw.len());
    let mut components = 0;
    for component in raw.split(|&b| b == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(EntryFault::ParentComponent),
            _ => {}
        }
        if component.len() > NAME_MAX {
            return Err(EntryFault::NameTooLong);
        }
        if components > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(component);
        components += 1;
    }
    if raw.is_empty() {
        return Err(EntryFault::BadName);
    }
    if path.len() > limits.path {
        return Err(EntryFault::PathTooLong(limits.path));
    }
    if components > limits.components {
        return Err(EntryFault::TooDeep(limits.components));
    }
    Ok(path)
}

/// Directory and last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Attributes of the node an entry makes.
pub fn node_meta(entry: &Entry, limits: &Limits) -> Result<NodeMeta, EntryFault> {
    Ok(NodeMeta {
        perm: entry.perm,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: xattrs(entry, limits)?,
    })
}

/// The xattrs that reach the tree: those of the entry, less what would steer an overlay, plus its ACLs.
fn xattrs(entry: &Entry, limits: &Limits) -> Result<Vec<(OsString, Vec<u8>)>, EntryFault> {
    let mut out: Vec<(OsString, Vec<u8>)> = Vec::new();
    let mut total = 0;
    let acls = [
        (
            "system.posix_acl_access",
            entry
                .acl_access
                .as_deref()
                .and_then(|text| acl::to_xattr(text).flatten()),
        ),
        (
            "system.posix_acl_default",
            entry.acl_default.as_deref().and_then(acl::default_to_xattr),
        ),
    ];
    for (name, value) in &entry.xattrs {
        if name.is_empty()
            || name.len() > NAME_MAX
            || name.contains(&0)
            || value.len() > XATTR_VALUE_MAX
        {
            return Err(EntryFault::BadXattr(name.clone()));
        }
        total += name.len() + value.len();
        if total > limits.xattrs {
            return Err(EntryFault::XattrsTooLarge(limits.xattrs));
        }
        if !steers_an_overlay(name) {
            out.push((OsStr::from_bytes(name).to_owned(), value.clone()));
        }
    }
    // An archive may hold an ACL in both forms; the binary one needs no interpretation.
    for (name, value) in acls {
        if let Some(value) = value.filter(|_| !out.iter().any(|(have, _)| have == name)) {
            out.push((name.into(), value));
        }
    }
    Ok(out)
}

/// Attributes by which overlay file systems mark whiteouts, opaque directories, redirects and faked owners. From a layer
/// they would let an image hide, move or re-own files, so they never reach the tree (HOSTILE T19).
fn steers_an_overlay(name: &[u8]) -> bool {
    const PREFIXES: [&[u8]; 5] = [
        b"trusted.overlay.",
        b"user.overlay.",
        b"user.fuseoverlayfs.",
        b"security.fuseoverlayfs.",
        b"user.containers.override_",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Timestamp;

    fn entry(kind: Kind, path: &str, link: &str) -> Entry {
        Entry {
            path: path.into(),
            link: link.into(),
            kind,
            perm: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp::new(0, 0),
            device: (0, 0),
            size: 0,
            xattrs: Vec::new(),
            acl_access: None,
            acl_default: None,
            extents: None,
            stored: 0,
        }
    }

    #[test]
    fn what_entries_mean() {
        let node = |path: &str, kind| {
            Ok(Action::Node {
                path: path.into(),
                kind,
            })
        };
        let whiteout = |path: &str| Ok(Action::Whiteout { path: path.into() });
        let opaque = |dir: &str| Ok(Action::Opaque { dir: dir.into() });
        let cases = [
            (Kind::Directory, "./", "", node("", FileKind::Directory)),
            (
                Kind::Directory,
                "/a//b/.",
                "",
                node("a/b", FileKind::Directory),
            ),
            (Kind::Regular, "a", "", node("a", FileKind::Regular)),
            (Kind::Symlink, "a", "../../x", node("a", FileKind::Symlink)),
            (Kind::CharDevice, "a", "", node("a", FileKind::CharDevice)),
            (Kind::Note, "../x", "", Ok(Action::Ignore)),
            (Kind::Regular, "d/.wh.x", "", whiteout("d/x")),
            (Kind::HardLink, ".wh.x", ".wh..wh.aufs", whiteout("x")),
            (Kind::Regular, ".wh.....", "", whiteout("....")),
            (Kind::Regular, ".wh.wh.x", "", whiteout("wh.x")),
            (Kind::Regular, "d/.wh..wh..opq", "", opaque("d")),
            (Kind::Regular, ".wh..wh..opq", "", opaque("")),
            (Kind::Regular, ".wh..wh..opq2", "", Ok(Action::Ignore)),
            (Kind::Regular, ".wh..wh.plnk/x", "", Ok(Action::Ignore)),
            (Kind::Regular, ".whx", "", node(".whx", FileKind::Regular)),
            (Kind::Regular, ".wh.", "", Err(EntryFault::BadWhiteout)),
            (Kind::Regular, ".wh..", "", Err(EntryFault::BadWhiteout)),
            (Kind::Regular, ".wh...", "", Err(EntryFault::BadWhiteout)),
            (Kind::Regular, ".wh.d/x", "", Err(EntryFault::BelowWhiteout)),
            (
                Kind::Regular,
                "a/../b",
                "",
                Err(EntryFault::ParentComponent),
            ),
            (Kind::Regular, "a\0b", "", Err(EntryFault::BadName)),
            (Kind::Regular, "", "", Err(EntryFault::BadName)),
            (Kind::Symlink, "/", "/", Err(EntryFault::RootNotDirectory)),
            (Kind::Symlink, "a", "", Err(EntryFault::BadTarget)),
            (
                Kind::HardLink,
                "a",
                "/",
                Err(EntryFault::LinkToDirectory("".into())),
            ),
            (Kind::HardLink, "a", "./a", Err(EntryFault::LinkToItself)),
            (
                Kind::HardLink,
                "a",
                "../b",
                Err(EntryFault::ParentComponent),
            ),
            (
                Kind::HardLink,
                "a",
                "/b//c",
                Ok(Action::HardLink {
                    path: "a".into(),
                    target: "b/c".into(),
                }),
            ),
        ];
        for (kind, path, link, want) in cases {
            let got = action(&entry(kind, path, link), &Limits::default());
            assert_eq!(got, want, "{kind:?} {path:?} -> {link:?}");
        }
    }

    #[test]
    fn a_binary_acl_wins_over_its_text() {
        let mut entry = entry(Kind::Regular, "a", "");
        entry.acl_access = Some(b"user::rw-,user:7:r--,group::r--,mask::r--,other::---".to_vec());
        let xattrs = |entry: &Entry| node_meta(entry, &Limits::default()).unwrap().xattrs;
        assert_eq!(xattrs(&entry)[0].0, "system.posix_acl_access");
        assert_eq!(xattrs(&entry)[0].1.len(), 4 + 5 * 8);
        entry
            .xattrs
            .push((b"system.posix_acl_access".to_vec(), b"binary".to_vec()));
        assert_eq!(
            xattrs(&entry),
            [("system.posix_acl_access".into(), b"binary".to_vec())]
        );
    }
}
