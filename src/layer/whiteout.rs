//! The written forms of "this name is gone" and "nothing below this directory shows through".
//!
//! | form | whiteout | opaque directory |
//! |---|---|---|
//! | kernel overlayfs | character device 0:0 | xattr `trusted.overlay.opaque` = `y` |
//! | the same, `userxattr` | character device 0:0 | xattr `user.overlay.opaque` = `y` |
//! | kernel >= 6.8, no mknod | empty file with xattr `overlay.whiteout`, in a directory whose `overlay.opaque` is `x` | |
//! | fuse-overlayfs, rootless | character device 0:0 | xattr `user.fuseoverlayfs.opaque` = `y` |
//! | AUFS (OCI layers unpacked as they are) | file `.wh.NAME` | file `.wh..wh..opq` |
//!
//! Source: Linux Documentation/filesystems/overlayfs.rst; OCI image spec, layer.md.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

use super::{Result, host};

const AUFS_PREFIX: &[u8] = b".wh.";
/// File in an opaque directory.
pub const AUFS_OPAQUE: &str = ".wh..wh..opq";
const OPAQUE_XATTRS: [&str; 3] = [
    "trusted.overlay.opaque",
    "user.overlay.opaque",
    "user.fuseoverlayfs.opaque",
];
/// On a character device 0:0 that a user made: no whiteout, but the device itself. The kernel cannot tell them apart.
pub const DEVICE_XATTR: &str = "trusted.overlay.ovl.device";
const WHITEOUT_XATTRS: [&str; 2] = ["trusted.overlay.whiteout", "user.overlay.whiteout"];

/// What a name means in AUFS style.
#[derive(Debug, PartialEq, Eq)]
pub enum Aufs<'a> {
    Ordinary,
    /// Hides this name in the layers below.
    Whiteout(&'a OsStr),
    /// Housekeeping (`.wh..wh.*`): shown to nobody.
    Internal,
}

/// Classifies a name.
pub fn aufs_name(name: &OsStr) -> Aufs<'_> {
    match name.as_bytes().strip_prefix(AUFS_PREFIX) {
        None => Aufs::Ordinary,
        Some(rest)
            if rest.is_empty()
                || rest == b"."
                || rest == b".."
                || rest.starts_with(AUFS_PREFIX) =>
        {
            Aufs::Internal
        }
        Some(rest) => Aufs::Whiteout(OsStr::from_bytes(rest)),
    }
}

/// Is the name an AUFS mark of either kind?
pub fn is_aufs_name(name: &OsStr) -> bool {
    name.as_bytes().starts_with(AUFS_PREFIX)
}

/// The mark that hides `name`; `None` if it would be too long for a name, or mean something else.
pub fn aufs_mark(name: &OsStr) -> Option<OsString> {
    let mut mark = OsString::from(OsStr::from_bytes(AUFS_PREFIX));
    mark.push(name);
    (mark.len() <= 255 && aufs_name(&mark) == Aufs::Whiteout(name)).then_some(mark)
}

/// Does `dir` hold `.wh.NAME`?
pub fn aufs_marks(dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    let mut mark = AUFS_PREFIX.to_vec();
    mark.extend_from_slice(name.as_bytes());
    // `.wh.` and a name of over 251 bytes exceed NAME_MAX: no such file can be.
    match host::stat_at(dir, OsStr::from_bytes(&mark)) {
        Ok(found) => Ok(found.is_some()),
        Err(Errno::NAMETOOLONG) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Has the directory an opaque mark of any form?
pub fn is_opaque(dir: BorrowedFd<'_>) -> Result<bool> {
    let names = host::xattr_names_fd(dir)?;
    for name in OPAQUE_XATTRS {
        if names.iter().any(|has| has == name)
            && readable(host::xattr_fd(dir, OsStr::new(name)))?.as_deref() == Some(b"y")
        {
            return Ok(true);
        }
    }
    Ok(host::stat_at(dir, OsStr::new(AUFS_OPAQUE))?.is_some())
}

/// May the directory hold whiteouts written as xattrs?
pub fn holds_xattr_whiteouts(dir: BorrowedFd<'_>) -> Result<bool> {
    for name in &OPAQUE_XATTRS[..2] {
        if readable(host::xattr_fd(dir, OsStr::new(name)))?.as_deref() == Some(b"x") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Is this character device 0:0 a user's own?
pub fn is_device(dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    let path = host::proc_child(dir, name);
    Ok(readable(host::xattr_at(path.as_slice(), OsStr::new(DEVICE_XATTR)))?.is_some())
}

/// Is this a file whose data is in another layer (`overlay.metacopy`)? Its own is a hole.
pub fn is_metacopy(file: BorrowedFd<'_>) -> Result<bool> {
    let marks = ["trusted.overlay.metacopy", "user.overlay.metacopy"];
    let names = host::xattr_names_fd(file)?;
    Ok(names
        .iter()
        .any(|name| marks.iter().any(|mark| name == mark)))
}

/// Carries the file the mark of an xattr whiteout?
pub fn has_whiteout_xattr(dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    let path = host::proc_child(dir, name);
    for mark in WHITEOUT_XATTRS {
        if readable(host::xattr_at(path.as_slice(), OsStr::new(mark)))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `trusted.*` without CAP_SYS_ADMIN reads as absent on most file systems, as EPERM on some.
fn readable(r: Result<Option<Vec<u8>>>) -> Result<Option<Vec<u8>>> {
    match r {
        Err(Errno::PERM | Errno::ACCESS) => Ok(None),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aufs_names() {
        let cases: [(&str, Aufs<'_>); 9] = [
            ("a", Aufs::Ordinary),
            (".wh", Aufs::Ordinary),
            ("x.wh.a", Aufs::Ordinary),
            (".wh.a", Aufs::Whiteout(OsStr::new("a"))),
            (".wh..a", Aufs::Whiteout(OsStr::new(".a"))),
            (".wh.", Aufs::Internal),
            (".wh..", Aufs::Internal),
            (".wh..wh..opq", Aufs::Internal),
            (".wh..wh.plnk", Aufs::Internal),
        ];
        for (name, want) in cases {
            assert_eq!(aufs_name(OsStr::new(name)), want, "{name}");
        }
    }
}
