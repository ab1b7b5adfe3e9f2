//! `/proc/self/mountinfo` (proc_pid_mountinfo(5)): what is mounted where, by mount id.
//!
//! Nothing here asks a file system anything, so a hung or dead mount hangs nobody.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use serde::{Deserialize, Serialize};

/// The kernel's number of one mount. It means no other while that one is there, and soon another once it is gone: what
/// is kept for later is a [`MountKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MountId(pub u64);

/// A mount, told apart from those that come after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountKey {
    pub id: MountId,
    /// `st_dev` of what it shows. Not given anew while the file system is served, in use, or mounted elsewhere.
    pub major: u32,
    pub minor: u32,
    /// The kernel's number that is never given again (Linux 6.8).
    pub unique: Option<u64>,
}

impl MountKey {
    pub fn of(mount: &MountInfo) -> Self {
        Self {
            id: mount.id,
            major: mount.major,
            minor: mount.minor,
            unique: unique_id(mount),
        }
    }

    /// Where the mount is now; `None` if it is gone, or not in this namespace.
    pub fn find(&self) -> io::Result<Option<MountInfo>> {
        Ok(by_id(self.id)?.filter(|mount| self.means(mount)))
    }

    /// Waits until the mount is gone from this mount namespace.
    pub fn wait_gone(&self) -> io::Result<()> {
        /// The kernel tells of each change; this only bounds the harm if it should not.
        const LOOK_AGAIN: Duration = Duration::from_secs(60);
        let table = std::fs::File::open("/proc/self/mountinfo")?;
        while self.find()?.is_some() {
            crate::sys::wait_mounts_changed(table.as_fd(), LOOK_AGAIN)?;
        }
        Ok(())
    }

    pub fn means(&self, mount: &MountInfo) -> bool {
        (self.id, self.major, self.minor) == (mount.id, mount.major, mount.minor)
            && match (self.unique, unique_id(mount)) {
                (Some(then), Some(now)) => then == now,
                _ => true,
            }
    }
}

/// `None` before Linux 6.8, and for a mount covered by another.
fn unique_id(mount: &MountInfo) -> Option<u64> {
    /// `STATX_MNT_ID_UNIQUE` of linux/stat.h
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let fd = open_path(&mount.mount_point).ok()?;
    if mount_of(&fd).ok()? != mount.id {
        return None;
    }
    // The daemon, perhaps hung, is not to be asked.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(&fd, "", flags, UNIQUE).ok()?;
    (found.stx_mask & UNIQUE.bits() != 0).then_some(found.stx_mnt_id)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    pub id: MountId,
    pub major: u32,
    pub minor: u32,
    pub mount_point: PathBuf,
    pub fstype: OsString,
    pub source: OsString,
}

/// All mounts of this mount namespace that are below the process's root, oldest first.
pub fn all() -> io::Result<Vec<MountInfo>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// The mount of `key` as a process of another mount namespace sees it; `None` if it is not there.
pub fn seen_by(pid: u32, key: &MountKey) -> Option<MountInfo> {
    let text = std::fs::read(format!("/proc/{pid}/mountinfo")).ok()?;
    text.split(|b| *b == b'\n')
        .filter_map(parse)
        .find(|m| (m.id, m.major, m.minor) == (key.id, key.major, key.minor))
}

/// Name of the mount namespace of a process, as `mnt:[4026531841]`.
pub fn namespace_of(process: &str) -> Option<String> {
    let name = std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok()?;
    name.into_os_string().into_string().ok()
}

/// The mount with this id; `None` if it is gone, or not in this namespace.
pub fn by_id(id: MountId) -> io::Result<Option<MountInfo>> {
    Ok(all()?.into_iter().find(|m| m.id == id))
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw`
fn parse(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let _parent = fields.next()?;
    let dev = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = dev.split_once(':')?;
    let _root = fields.next()?;
    let mount_point = PathBuf::from(unescape(fields.next()?));
    let mut fields = fields.skip_while(|f| *f != b"-").skip(1);
    Some(MountInfo {
        id: MountId(id),
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        mount_point,
        fstype: unescape(fields.next()?),
        source: unescape(fields.next()?),
    })
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Undoes the octal escapes (`\040` for a blank) of mount tables.
fn unescape(text: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| {
            first == b'\\' && d[0] <= b'3' && d.iter().all(|c| (b'0'..=b'7').contains(c))
        });
        match octal {
            Some(d) => {
                out.push((d[0] - b'0') << 6 | (d[1] - b'0') << 3 | (d[2] - b'0'));
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Opens a path (following symlinks) only to name it: works on dead and hung mounts, too.
pub fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// The mount an open file is on.
pub fn mount_of(fd: impl AsFd) -> io::Result<MountId> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .and_then(|id| id.trim().parse().ok())
        .map(MountId)
        .ok_or_else(|| io::Error::other("/proc/self/fdinfo tells no mount id"))
}

/// The path of an open file as the kernel sees it now: absolute, no symlinks.
pub fn path_of(fd: impl AsFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// The mount whose root `path` leads to; `None` when it leads to something inside a mount.
pub fn mounted_at(path: &Path) -> io::Result<Option<MountInfo>> {
    let fd = open_path(path)?;
    let here = path_of(&fd)?;
    Ok(by_id(mount_of(&fd)?)?.filter(|m| m.mount_point == here))
}

/// A mount that ovl (or another program by its name) made.
pub fn is_ours(mount: &MountInfo) -> bool {
    mount.fstype == OsStr::from_bytes(super::kernel::FSTYPE)
        || (mount.fstype == super::overlayfs::FSTYPE && mount.source == "ovl")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = br"36 35 98:17 / /mnt/a\040b\134\011c rw,noatime master:1 shared:2 - fuse.ovl o\040vl rw,user_id=0";
        let mount = parse(line).expect("a mount line");
        assert_eq!(mount.id, MountId(36));
        assert_eq!((mount.major, mount.minor), (98, 17));
        assert_eq!(mount.mount_point, Path::new("/mnt/a b\\\tc"));
        assert_eq!(mount.fstype, "fuse.ovl");
        assert_eq!(mount.source, "o vl");
        let bare = parse(b"1 0 0:1 / / rw - rootfs none rw").expect("no optional fields");
        assert_eq!(bare.mount_point, Path::new("/"));
    }

    #[test]
    fn broken_lines_are_left_out() {
        for line in [
            &b""[..],
            b"x",
            b"1 2",
            b"a 0 0:1 / / rw - rootfs none rw",
            b"1 0 01 / / rw - rootfs none rw",
            b"1 0 0:1 / / rw rootfs none rw",
            b"1 0 0:1 / / rw -",
        ] {
            assert_eq!(parse(line), None, "{:?}", line.escape_ascii().to_string());
        }
    }

    #[test]
    fn escapes() {
        for (text, plain) in [
            (&br"a\040b"[..], &b"a b"[..]),
            (br"\377", b"\xff"),
            (br"\400", br"\400"),
            (br"\04", br"\04"),
            (br"\", br"\"),
            (br"\\040", b"\\ "),
        ] {
            assert_eq!(unescape(text).as_bytes(), plain);
        }
    }

    #[test]
    fn a_key_means_one_mount_only() {
        let root = mounted_at(Path::new("/"))
            .expect("mountinfo")
            .expect("a root mount");
        let key = MountKey::of(&root);
        assert_eq!(key.find().expect("find"), Some(root));
        for other in [
            MountKey {
                id: MountId(key.id.0 + 1_000_000),
                ..key
            },
            MountKey {
                minor: key.minor + 1,
                ..key
            },
            MountKey {
                unique: Some(1),
                ..key
            },
        ] {
            // Without unique numbers the kernel cannot tell the last one.
            if key.unique.is_some() || other.unique.is_none() {
                assert_eq!(other.find().expect("find"), None, "{other:?}");
            }
        }
    }

    #[test]
    fn the_root_is_mounted() {
        let root = mounted_at(Path::new("/"))
            .expect("mountinfo")
            .expect("a root mount");
        assert_eq!(root.mount_point, Path::new("/"));
        assert_eq!(
            mounted_at(Path::new("/proc/self/")).expect("mountinfo"),
            None
        );
        let missing = mounted_at(Path::new("/nowhere/at/all")).expect_err("no such path");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
