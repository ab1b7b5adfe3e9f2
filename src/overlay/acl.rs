//! POSIX ACLs: what a new object inherits from its directory, and how an ACL and a mode that is kept elsewhere go together.
//!
//! The value of `system.posix_acl_access` and `system.posix_acl_default` is a `u32` version (2), then entries of `u16` tag, `u16` permissions, `u32`
//! id, all little-endian (linux/posix_acl_xattr.h). How a default ACL and a mode make the new object's ACL is in
//! POSIX.1e draft 17, section 23.1.2 "Object creation and default ACLs".

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Result;
use crate::layer::host;
use crate::meta::FileKind;

pub(super) const ACCESS: &str = "system.posix_acl_access";
pub(super) const DEFAULT: &str = "system.posix_acl_default";
const VERSION: u32 = 2;
const HEAD: usize = 4;
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// What a new object inherits.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Inherited {
    /// The low 12 bits of its mode.
    pub perm: u32,
    access: Option<Vec<u8>>,
    default: Option<Vec<u8>>,
}

impl Inherited {
    pub const fn has_acl(&self) -> bool {
        self.access.is_some() || self.default.is_some()
    }

    /// Sets the ACLs; `true` if there were any.
    pub fn apply(&self, fd: BorrowedFd<'_>) -> Result<bool> {
        for (name, acl) in [(ACCESS, &self.access), (DEFAULT, &self.default)] {
            if let Some(acl) = acl {
                host::set_xattr_fd(fd, OsStr::new(name), acl, XattrFlags::empty())?;
            }
        }
        Ok(self.has_acl())
    }
}

/// Takes an ACL off, if there is one.
pub(super) fn remove(from: BorrowedFd<'_>, name: &str) -> Result<()> {
    let name = OsStr::new(name);
    // Who may not take one off is told so even where there is none.
    match host::xattr_fd(from, name) {
        Ok(Some(_)) => host::remove_xattr_fd(from, name),
        Ok(None) | Err(_) => Ok(()),
    }
}

/// The default ACL of a directory.
pub(super) fn default_of(dir: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    host::xattr_fd(dir, OsStr::new(DEFAULT))
}

/// Mode and ACLs of an object of `kind` made with `mode` and `umask` in a directory of that default ACL.
pub(super) fn inherit(
    default: Option<&[u8]>,
    kind: FileKind,
    mode: u32,
    umask: u32,
) -> Result<Inherited> {
    match default.filter(|_| kind != FileKind::Symlink) {
        None => Ok(none(kind, mode, umask)),
        Some(acl) => from_default(acl, kind, mode).ok_or(Errno::IO),
    }
}

/// Mode of an object that inherits no ACL.
fn none(kind: FileKind, mode: u32, umask: u32) -> Inherited {
    Inherited {
        perm: match kind {
            FileKind::Symlink => 0o777,
            _ => mode & !(umask & 0o777),
        },
        ..Inherited::default()
    }
}

/// Is this xattr an ACL?
pub(super) fn is_acl(name: &OsStr) -> bool {
    name == ACCESS || name == DEFAULT
}

fn u16_at(entry: &[u8; ENTRY], at: usize) -> u16 {
    u16::from_le_bytes([entry[at], entry[at + 1]])
}

/// The entries of a value; `None` if it is none.
fn entries_mut(acl: &mut [u8]) -> Option<&mut [[u8; ENTRY]]> {
    let (head, entries) = acl.split_first_chunk_mut::<HEAD>()?;
    let (entries, rest) = entries.as_chunks_mut::<ENTRY>();
    (u32::from_le_bytes(*head) == VERSION && rest.is_empty()).then_some(entries)
}

/// Do the entries say more than a mode does?
fn is_extended(entries: &[[u8; ENTRY]]) -> bool {
    entries
        .iter()
        .any(|e| ![USER_OBJ, GROUP_OBJ, OTHER].contains(&u16_at(e, 0)))
}

/// Those entries that a mode shows, each with where its three bits are in the mode: the mask, if there is one, stands for
/// the owning group.
fn classes(entries: &mut [[u8; ENTRY]]) -> impl Iterator<Item = (&mut [u8; ENTRY], u32)> {
    let has_mask = entries.iter().any(|e| u16_at(e, 0) == MASK);
    entries.iter_mut().filter_map(move |entry| {
        let shift = match u16_at(entry, 0) {
            USER_OBJ => 6,
            MASK => 3,
            GROUP_OBJ if !has_mask => 3,
            OTHER => 0,
            _ => return None,
        };
        Some((entry, shift))
    })
}

/// The low nine bits of the mode that goes with an ACL, and whether the ACL says more than they do.
pub(super) fn mode_of(acl: &[u8]) -> Option<(u32, bool)> {
    let mut acl = acl.to_vec();
    let entries = entries_mut(&mut acl)?;
    let extended = is_extended(entries);
    let bits = classes(entries).map(|(e, shift)| u32::from(u16_at(e, 2) & 7) << shift);
    Some((bits.fold(0, |all, bit| all | bit), extended))
}

/// The ACL as a chmod to `perm` leaves it.
pub(super) fn with_mode(mut acl: Vec<u8>, perm: u32) -> Option<Vec<u8>> {
    for (entry, shift) in classes(entries_mut(&mut acl)?) {
        entry[2..4].copy_from_slice(&((perm >> shift & 7) as u16).to_le_bytes());
    }
    Some(acl)
}

fn from_default(default: &[u8], kind: FileKind, mode: u32) -> Option<Inherited> {
    let mut access = default.to_vec();
    let entries = entries_mut(&mut access)?;
    let extended = is_extended(entries);
    let mut perm = mode & 0o7000;
    for (entry, shift) in classes(entries) {
        let kept = u16_at(entry, 2) & (mode >> shift & 7) as u16;
        entry[2..4].copy_from_slice(&kept.to_le_bytes());
        perm |= u32::from(kept) << shift;
    }
    Some(Inherited {
        perm,
        access: extended.then_some(access),
        default: kind.is_dir().then(|| default.to_vec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&perm.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    #[test]
    fn default_acl_beats_umask_and_mask_takes_the_groups_place() {
        let none = u32::MAX;
        let minimal = acl(&[(USER_OBJ, 7, none), (GROUP_OBJ, 5, none), (OTHER, 0, none)]);
        let got = from_default(&minimal, FileKind::Regular, 0o666).expect("valid");
        assert_eq!((got.perm, got.access, got.default), (0o640, None, None));

        let named = acl(&[
            (USER_OBJ, 7, none),
            (2, 7, 1000),
            (GROUP_OBJ, 5, none),
            (MASK, 7, none),
            (OTHER, 4, none),
        ]);
        let got = from_default(&named, FileKind::Directory, 0o2751).expect("valid");
        assert_eq!(got.perm, 0o2750);
        let want = acl(&[
            (USER_OBJ, 7, none),
            (2, 7, 1000),
            (GROUP_OBJ, 5, none),
            (MASK, 5, none),
            (OTHER, 0, none),
        ]);
        assert_eq!(got.access, Some(want));
        assert_eq!(got.default, Some(named));
    }

    #[test]
    fn mode_and_acl_go_together() {
        let none = u32::MAX;
        let named = |mask, other| {
            acl(&[
                (USER_OBJ, 6, none),
                (2, 7, 1000),
                (GROUP_OBJ, 5, none),
                (MASK, mask, none),
                (OTHER, other, none),
            ])
        };
        assert_eq!(mode_of(&named(4, 1)), Some((0o641, true)));
        assert_eq!(with_mode(named(4, 1), 0o4627), Some(named(2, 7)));
        let minimal = acl(&[(USER_OBJ, 7, none), (GROUP_OBJ, 5, none), (OTHER, 0, none)]);
        assert_eq!(mode_of(&minimal), Some((0o750, false)));
        assert_eq!(mode_of(b"\x02\0\0"), None);
        assert_eq!(with_mode(vec![1, 0, 0, 0], 0o644), None);
    }

    #[test]
    fn garbage_is_refused() {
        for bad in [&b""[..], &[2, 0, 0], &[1, 0, 0, 0], &[2, 0, 0, 0, 1]] {
            assert_eq!(from_default(bad, FileKind::Regular, 0o644), None, "{bad:?}");
        }
    }
}
