//! What the kernel allows a mount that its memory keeps data of (`/sys/class/bdi`, sysfs-class-bdi of the kernel's documents).

use std::os::fd::BorrowedFd;

/// Tells the kernel to be less careful with us than with any daemon: to read ahead further than the 128 KiB fuser can ask for, and
/// to let a fifth of the data that may wait for being written be ours, instead of a hundredth (what a program writes to a file
/// again and again is else written as often). Not all of it: the file systems below need some to take it. Best effort: needs a
/// writable /sys.
pub fn raise_limits(major: u32, minor: u32) {
    const LIMITS: [(&str, &str); 2] = [("read_ahead_kb", "1024"), ("max_ratio", "20")];
    for (limit, value) in LIMITS {
        let knob = format!("/sys/class/bdi/{major}:{minor}/{limit}");
        if let Err(error) = std::fs::write(&knob, value) {
            tracing::debug!(%knob, %error, "stays at the kernel's default");
        }
    }
}

/// The same for the file system that an open object is on.
pub fn raise_limits_of(object: BorrowedFd<'_>) {
    if let Ok(stat) = rustix::fs::fstat(object) {
        let (major, minor) = (
            rustix::fs::major(stat.st_dev),
            rustix::fs::minor(stat.st_dev),
        );
        raise_limits(major, minor);
    }
}
