//! Owners as the mount shows them, and as they are on disk: `uidmapping`, `gidmapping` and `squash_*` of fuse-overlayfs.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Result;
use crate::meta::Attr;

/// What is shown for an id without a mapping, as the kernel's `overflowuid`.
const NOBODY: u32 = 65534;

/// `len` ids from `inside`, as the mount shows them, are those from `outside` on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub len: u32,
}

/// How ids are translated. Empty ranges: not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    pub uids: Vec<IdRange>,
    pub gids: Vec<IdRange>,
    /// Everything belongs to this user, whatever it says on disk.
    pub squash_uid: Option<u32>,
    /// The same for the group.
    pub squash_gid: Option<u32>,
}

fn shown(ranges: &[IdRange], squash: Option<u32>, id: u32) -> u32 {
    if let Some(id) = squash {
        return id;
    }
    if ranges.is_empty() {
        return id;
    }
    let found = ranges
        .iter()
        .find(|r| id.checked_sub(r.outside).is_some_and(|at| at < r.len));
    found.map_or(NOBODY, |r| r.inside + (id - r.outside))
}

fn stored(ranges: &[IdRange], squash: Option<u32>, id: u32) -> Result<u32> {
    let id = squash.unwrap_or(id);
    if ranges.is_empty() {
        return Ok(id);
    }
    let found = ranges
        .iter()
        .find(|r| id.checked_sub(r.inside).is_some_and(|at| at < r.len));
    found
        .map(|r| r.outside + (id - r.inside))
        .ok_or(Errno::OVERFLOW)
}

impl IdMap {
    /// Turns the owner on disk into the one shown.
    pub fn show(&self, attr: &mut Attr) {
        attr.uid = shown(&self.uids, self.squash_uid, attr.uid);
        attr.gid = shown(&self.gids, self.squash_gid, attr.gid);
    }

    /// The user on disk for one in the mount; EOVERFLOW without a mapping.
    pub fn uid_on_disk(&self, uid: u32) -> Result<u32> {
        stored(&self.uids, self.squash_uid, uid)
    }

    /// The group on disk for one in the mount; EOVERFLOW without a mapping.
    pub fn gid_on_disk(&self, gid: u32) -> Result<u32> {
        stored(&self.gids, self.squash_gid, gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_both_ways() {
        // As podman gives them: 0:1000:1:1:100000:65536
        let ranges = [
            IdRange {
                inside: 0,
                outside: 1000,
                len: 1,
            },
            IdRange {
                inside: 1,
                outside: 100_000,
                len: 65_536,
            },
        ];
        for (inside, outside) in [(0, 1000), (1, 100_000), (65_536, 165_535)] {
            assert_eq!(shown(&ranges, None, outside), inside);
            assert_eq!(stored(&ranges, None, inside), Ok(outside));
        }
        for outside in [0, 999, 1001, 99_999, 165_536, u32::MAX] {
            assert_eq!(shown(&ranges, None, outside), NOBODY);
        }
        assert_eq!(stored(&ranges, None, 65_537), Err(Errno::OVERFLOW));
        assert_eq!(shown(&[], None, 7), 7);
        assert_eq!(shown(&ranges, Some(5), 7), 5);
        assert_eq!(stored(&ranges, Some(0), 42), Ok(1000));
    }
}
