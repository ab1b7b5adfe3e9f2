//! Values of the engine to values of fuser and back. Pure; total: no value panics.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use crate::meta::{Attr, FileKind, Timestamp};
use crate::overlay::{NodeId, SetTime};

const NANOS_PER_SEC: u32 = 1_000_000_000;

/// A time as fuser hands it in. Before 1970 fuser takes the kernel's nanoseconds, which count forward, to count
/// backward from the second, so `-2 s + 0.25` arrives as `-2.25 s`: magnitude and nanoseconds are the kernel's own.
pub fn time_in(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp::new(
            i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            after.subsec_nanos(),
        ),
        Err(before) => {
            let before = before.duration();
            let secs = 0_i64.checked_sub_unsigned(before.as_secs());
            Timestamp::new(secs.unwrap_or(i64::MIN), before.subsec_nanos())
        }
    }
}

/// A time as fuser takes it out, which it does rightly. Clamped to what `SystemTime` holds.
pub fn time_out(time: Timestamp) -> SystemTime {
    let nanos = time.nanos.min(NANOS_PER_SEC - 1);
    let result = if time.secs >= 0 {
        UNIX_EPOCH.checked_add(Duration::new(time.secs.unsigned_abs(), nanos))
    } else if nanos == 0 {
        UNIX_EPOCH.checked_sub(Duration::new(time.secs.unsigned_abs(), 0))
    } else {
        let whole = (time.secs + 1).unsigned_abs();
        UNIX_EPOCH.checked_sub(Duration::new(whole, NANOS_PER_SEC - nanos))
    };
    // Only reached on a platform whose SystemTime is narrower than 64-bit seconds.
    result.unwrap_or(UNIX_EPOCH)
}

pub fn set_time_in(time: fuser::TimeOrNow) -> SetTime {
    match time {
        fuser::TimeOrNow::Now => SetTime::Now,
        fuser::TimeOrNow::SpecificTime(time) => SetTime::At(time_in(time)),
    }
}

/// The kernel's 32-bit form of a device number (`new_encode_dev` in linux/kdev_t.h) to `dev_t`.
pub fn rdev_in(rdev: u32) -> u64 {
    let major = (rdev & 0x000f_ff00) >> 8;
    let minor = (rdev & 0xff) | ((rdev >> 12) & 0x000f_ff00);
    libc::makedev(major, minor)
}

/// `dev_t` to the kernel's 32-bit form. Majors above 12 bits and minors above 20 do not exist in Linux; cut.
pub fn rdev_out(rdev: u64) -> u32 {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0x000f_ff00) << 12)
}

pub const fn kind_out(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

pub fn attr_out(node: NodeId, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(node.0),
        // The kernel takes a negative size for a broken reply.
        size: attr.size.min(i64::MAX as u64),
        blocks: attr.blocks,
        atime: time_out(attr.atime),
        mtime: time_out(attr.mtime),
        ctime: time_out(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind_out(attr.kind),
        perm: (attr.perm & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: rdev_out(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Attributes of which the kernel looks only at number and type.
pub fn bare_attr(node: NodeId, kind: FileKind) -> FileAttr {
    FileAttr {
        ino: INodeNo(node.0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: kind_out(kind),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u32 = 500_000_000;

    /// What fuser 0.18 makes of the kernel's `(secs, nanos)`.
    fn fuser_in(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs as u64, nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.wrapping_neg() as u64, nanos)
        }
    }

    /// What fuser 0.18 tells the kernel of a time.
    fn fuser_out(time: SystemTime) -> (i64, u32) {
        match time.duration_since(UNIX_EPOCH) {
            Ok(d) => (d.as_secs() as i64, d.subsec_nanos()),
            Err(e) => {
                let d = e.duration();
                match (d.as_secs(), d.subsec_nanos()) {
                    (secs, 0) => ((secs as i64).wrapping_neg(), 0),
                    (secs, nanos) => (-(secs as i64) - 1, NANOS_PER_SEC - nanos),
                }
            }
        }
    }

    #[test]
    fn times_survive_both_ways() {
        // The kernel clamps to these ends and then sets the nanoseconds to 0.
        let table = [
            (0, 0),
            (0, 1),
            (0, 999_999_999),
            (1, HALF),
            (1_700_000_000, 123_456_789),
            (-1, 0),
            (-1, 1),
            (-1, HALF),
            (-1, 999_999_999),
            (-2, 250_000_000),
            (-86_400, 0),
            (-86_400, 1),
            (-2_208_988_800, 999_999_999),
            (i64::from(i32::MIN), HALF),
            (i64::from(i32::MAX), HALF),
            (1 << 40, HALF),
            (-(1 << 40), HALF),
            (i64::MAX, 0),
            (i64::MAX, 999_999_999),
            (i64::MIN + 1, 0),
            (i64::MIN + 1, HALF),
            (i64::MIN, 0),
        ];
        for (secs, nanos) in table {
            let time = Timestamp::new(secs, nanos);
            assert_eq!(time_in(fuser_in(secs, nanos)), time, "in: {secs} {nanos}");
            assert_eq!(
                fuser_out(time_out(time)),
                (secs, nanos),
                "out: {secs} {nanos}"
            );
        }
    }

    #[test]
    fn broken_nanoseconds_do_not_panic() {
        for secs in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
            for nanos in [NANOS_PER_SEC, u32::MAX] {
                let clamped = Timestamp::new(secs, NANOS_PER_SEC - 1);
                assert_eq!(time_out(Timestamp::new(secs, nanos)), time_out(clamped));
            }
        }
    }

    #[test]
    fn device_numbers() {
        // (major, minor, as the kernel writes it on the wire)
        let table = [
            (0, 0, 0),
            (1, 3, 0x103),
            (5, 1, 0x501),
            (8, 255, 0x8ff),
            (8, 256, 0x0010_0800),
            (259, 65_537, 0x1001_0301),
            (0xfff, 0xf_ffff, 0xffff_ffff),
        ];
        for (major, minor, wire) in table {
            let dev = libc::makedev(major, minor);
            assert_eq!(rdev_out(dev), wire, "{major}:{minor}");
            assert_eq!(rdev_in(wire), dev, "{wire:#x}");
        }
    }
}
