//! Owner, mode and type kept in an xattr instead of the inode (`xattr_permissions`): for users who may not chown, and for
//! stores on file systems that know no owners.
//!
//! | written and read | value |
//! |---|---|
//! | `user.containers.override_stat` | `uid:gid:MODE[:type]`, MODE in octal; type `file`, `dir`, `symlink`, `pipe`, `socket`, `block-MAJ-MIN` or `char-MAJ-MIN` |
//! | `security.fuseoverlayfs.override_stat` | the same |
//! | `user.fuseoverlayfs.override_stat` (read only) | `uid:gid:MODE`, MODE being the whole `st_mode` |
//!
//! Type counts for regular files only, which may stand for pipes, sockets and devices; everything else is what it is on disk.
//! Owner and mode count for everything that can carry the xattr.
//!
//! Source: fuse-overlayfs(1), "xattr_permissions", and containers/storage's `ForceMask`.

use std::ffi::OsStr;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Result;
use crate::meta::{Attr, FileKind};

/// Where an object's owner, mode and type are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permissions {
    /// In the inode, as usual.
    #[default]
    Inode,
    /// In `security.fuseoverlayfs.override_stat` (`xattr_permissions=1`).
    SecurityXattr,
    /// In `user.containers.override_stat` (`xattr_permissions=2`).
    UserXattr,
}

const SECURITY: &str = "security.fuseoverlayfs.override_stat";
const USER: &str = "user.containers.override_stat";
const OLD: &str = "user.fuseoverlayfs.override_stat";

impl Permissions {
    /// The xattr that is written; `None`: the inode is.
    pub fn xattr(self) -> Option<&'static OsStr> {
        match self {
            Self::Inode => None,
            Self::SecurityXattr => Some(OsStr::new(SECURITY)),
            Self::UserXattr => Some(OsStr::new(USER)),
        }
    }

    /// Is this an xattr that stands for owner and mode here, and so is nobody's to see?
    pub fn hides(self, name: &OsStr) -> bool {
        self != Self::Inode && [SECURITY, USER, OLD].iter().any(|own| name == *own)
    }

    /// Puts what is kept in an xattr over what the inode says. `read` gives an xattr's value by name.
    pub fn show(
        self,
        attr: &mut Attr,
        read: impl Fn(&OsStr) -> Result<Option<Vec<u8>>>,
    ) -> Result<()> {
        let Some(own) = self.xattr() else {
            return Ok(());
        };
        // Symlinks cannot carry user xattrs: theirs is the inode.
        for name in [own, OsStr::new(USER), OsStr::new(OLD)] {
            let value = match read(name) {
                Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => None,
                other => other?,
            };
            if let Some(value) = value {
                let kept = parse(&value).ok_or(Errno::IO)?;
                attr.uid = kept.uid;
                attr.gid = kept.gid;
                attr.perm = kept.perm;
                // Only a file can stand for something else, and for nothing that has contents of another kind.
                if let Some(kind) = kept.kind.filter(|kind| stands_for(attr.kind, *kind)) {
                    attr.kind = kind;
                    attr.rdev = kept.rdev;
                }
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Can an object that is `real` on disk be shown as `kept`? A list tells so from the directory's entries, which know only
/// what is real, without a look at each.
fn stands_for(real: FileKind, kept: FileKind) -> bool {
    real == FileKind::Regular && !matches!(kept, FileKind::Directory | FileKind::Symlink)
}

#[derive(Debug, PartialEq, Eq)]
struct Kept {
    uid: u32,
    gid: u32,
    perm: u32,
    kind: Option<FileKind>,
    rdev: u64,
}

fn parse(value: &[u8]) -> Option<Kept> {
    let mut fields = std::str::from_utf8(value)
        .ok()?
        .trim_end_matches('\0')
        .splitn(4, ':');
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
    let (mut kind, mut rdev) = (FileKind::from_mode(mode), 0);
    if let Some(word) = fields.next() {
        let mut parts = word.split('-');
        kind = Some(match parts.next()? {
            "file" => FileKind::Regular,
            "dir" => FileKind::Directory,
            "symlink" => FileKind::Symlink,
            "pipe" => FileKind::Fifo,
            "socket" => FileKind::Socket,
            device @ ("block" | "char") => {
                rdev =
                    rustix::fs::makedev(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
                if device == "char" {
                    FileKind::CharDevice
                } else {
                    FileKind::BlockDevice
                }
            }
            _ => return None,
        });
        if parts.next().is_some() {
            return None;
        }
    }
    Some(Kept {
        uid,
        gid,
        perm: mode & 0o7777,
        kind,
        rdev,
    })
}

/// The value that keeps `attr`'s owner, mode and type.
pub fn format(attr: &Attr) -> String {
    let device = |word: &str| {
        format!(
            "{word}-{}-{}",
            rustix::fs::major(attr.rdev),
            rustix::fs::minor(attr.rdev)
        )
    };
    let kind = match attr.kind {
        FileKind::Regular => "file".to_owned(),
        FileKind::Directory => "dir".to_owned(),
        FileKind::Symlink => "symlink".to_owned(),
        FileKind::Fifo => "pipe".to_owned(),
        FileKind::Socket => "socket".to_owned(),
        FileKind::CharDevice => device("char"),
        FileKind::BlockDevice => device("block"),
    };
    format!(
        "{}:{}:{:04o}:{kind}",
        attr.uid,
        attr.gid,
        attr.perm & 0o7777
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Timestamp;

    #[test]
    fn only_a_file_is_shown_as_something_else() {
        use FileKind::{CharDevice, Directory, Fifo, Regular, Socket, Symlink};
        let time = Timestamp::default();
        let null = rustix::fs::makedev(1, 3);
        for (real, kept, kind, rdev) in [
            (Regular, "char-1-3", CharDevice, null),
            (Regular, "pipe", Fifo, 0),
            (Regular, "socket", Socket, 0),
            (Regular, "dir", Regular, 0),
            (Regular, "symlink", Regular, 0),
            (Directory, "char-1-3", Directory, 0),
            (Directory, "file", Directory, 0),
            (Fifo, "file", Fifo, 0),
            (Symlink, "file", Symlink, 0),
        ] {
            let mut attr = Attr {
                kind: real,
                perm: 0o755,
                uid: 0,
                gid: 0,
                size: 0,
                blocks: 0,
                nlink: 1,
                rdev: 0,
                atime: time,
                mtime: time,
                ctime: time,
                blksize: 4096,
            };
            let value = format!("5:6:0640:{kept}");
            Permissions::UserXattr
                .show(&mut attr, |_| Ok(Some(value.clone().into_bytes())))
                .unwrap();
            assert_eq!((attr.kind, attr.rdev), (kind, rdev), "{real:?} as {kept}");
            assert_eq!((attr.uid, attr.gid, attr.perm), (5, 6, 0o640), "{value}");
        }
    }

    #[test]
    fn every_written_form_is_read() {
        let kept = |uid, gid, perm, kind, rdev| {
            Some(Kept {
                uid,
                gid,
                perm,
                kind,
                rdev,
            })
        };
        for (text, want) in [
            ("0:0:0755", kept(0, 0, 0o755, None, 0)),
            (
                "1000:5:4755:file",
                kept(1000, 5, 0o4755, Some(FileKind::Regular), 0),
            ),
            ("1:2:100644", kept(1, 2, 0o644, Some(FileKind::Regular), 0)),
            (
                "0:0:0666:char-1-3",
                kept(
                    0,
                    0,
                    0o666,
                    Some(FileKind::CharDevice),
                    rustix::fs::makedev(1, 3),
                ),
            ),
            (
                "0:6:0660:block-8-0",
                kept(
                    0,
                    6,
                    0o660,
                    Some(FileKind::BlockDevice),
                    rustix::fs::makedev(8, 0),
                ),
            ),
            (
                "0:0:0755:dir\0",
                kept(0, 0, 0o755, Some(FileKind::Directory), 0),
            ),
            ("", None),
            ("0:0", None),
            ("0:0:9", None),
            ("-1:0:755", None),
            ("4294967296:0:755", None),
            ("0:0:755:char", None),
            ("0:0:755:char-1", None),
            ("0:0:755:char-1-2-3", None),
            ("0:0:755:door", None),
        ] {
            assert_eq!(parse(text.as_bytes()), want, "{text}");
        }
    }
}
