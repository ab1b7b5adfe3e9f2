//! The numbers that stand for file kinds in the database.

use crate::meta::FileKind;

/// In `dentry.kind`: the name is absent from this layer down.
pub(super) const WHITEOUT: i64 = 0;
pub(super) const DIRECTORY: i64 = 2;

pub(super) const fn code(kind: FileKind) -> i64 {
    match kind {
        FileKind::Regular => 1,
        FileKind::Directory => DIRECTORY,
        FileKind::Symlink => 3,
        FileKind::CharDevice => 4,
        FileKind::BlockDevice => 5,
        FileKind::Fifo => 6,
        FileKind::Socket => 7,
    }
}

pub(super) const fn from_code(code: i64) -> Option<FileKind> {
    Some(match code {
        1 => FileKind::Regular,
        DIRECTORY => FileKind::Directory,
        3 => FileKind::Symlink,
        4 => FileKind::CharDevice,
        5 => FileKind::BlockDevice,
        6 => FileKind::Fifo,
        7 => FileKind::Socket,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_both_ways() {
        for n in -1..10 {
            assert!(from_code(n).is_none_or(|kind| code(kind) == n), "{n}");
        }
        assert_eq!((0..10).filter_map(from_code).count(), 7);
    }
}
