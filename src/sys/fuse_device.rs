//! What `/dev/fuse` is asked for by ioctl(2) (linux/fuse.h: `FUSE_DEV_IOC_*`): files that the kernel reads and writes itself in
//! place of a FUSE server, and further descriptors of a connection.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::last_errno;

/// Makes `new`, a `/dev/fuse` that is open but used by nobody yet, one more descriptor of the connection that `device` leads to.
/// An answer must go by the descriptor that gave the request.
pub fn join(new: BorrowedFd<'_>, device: BorrowedFd<'_>) -> Result<(), Errno> {
    /// `_IOR(229, 0, uint32_t)`
    const FUSE_DEV_IOC_CLONE: libc::Ioctl = 0x8004_e500_u32 as libc::Ioctl;
    let device = device.as_raw_fd().cast_unsigned();
    // SAFETY: the ioctl reads one uint32_t.
    match unsafe { libc::ioctl(new.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const device) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Has the FUSE connection of `device` know the file that is open as `file`: its number there, never 0. The kernel holds
/// the file until [`forget`], and goes by the privileges that this thread has now.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN in the first user namespace or where passthrough was not agreed on; ELOOP where the file
/// is on a stacked file system; EINVAL or EISDIR where it is no regular file.
pub fn know(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32, Errno> {
    /// `struct fuse_backing_map`
    #[repr(C)]
    struct Map {
        fd: i32,
        flags: u32,
        padding: u64,
    }
    /// `_IOW(229, 1, struct fuse_backing_map)`
    const FUSE_DEV_IOC_BACKING_OPEN: libc::Ioctl = 0x4010_e501_u32 as libc::Ioctl;
    let map = Map {
        fd: file.as_raw_fd(),
        flags: 0,
        padding: 0,
    };
    // SAFETY: the ioctl reads one struct fuse_backing_map, whose layout `Map` has.
    let id = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            FUSE_DEV_IOC_BACKING_OPEN,
            &raw const map,
        )
    };
    u32::try_from(id).map_err(|_| last_errno())
}

/// Gives a number of [`know`] back. Whoever has the file open through it keeps it.
pub fn forget(device: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    /// `_IOW(229, 2, uint32_t)`
    const FUSE_DEV_IOC_BACKING_CLOSE: libc::Ioctl = 0x4004_e502_u32 as libc::Ioctl;
    // SAFETY: the ioctl reads one uint32_t.
    match unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            FUSE_DEV_IOC_BACKING_CLOSE,
            &raw const id,
        )
    } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}
