//! System calls that std and rustix do not offer safely. All `unsafe` of the crate lives here.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Largest handle the kernel makes (`MAX_HANDLE_SZ`).
const MAX_HANDLE: usize = 128;

/// A file handle as `name_to_handle_at(2)` makes it: the file system's own, persistent name of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    /// `fid_type`, see `enum fid_type` in linux/exportfs.h.
    pub kind: i32,
    pub bytes: Vec<u8>,
}

/// The handle of an open object (`O_PATH` will do). EOPNOTSUPP where the file system has none.
pub fn file_handle(fd: BorrowedFd<'_>) -> Result<FileHandle, Errno> {
    #[repr(C)]
    struct Raw {
        len: libc::c_uint,
        kind: libc::c_int,
        bytes: [u8; MAX_HANDLE],
    }
    let mut raw = Raw {
        len: MAX_HANDLE as libc::c_uint,
        kind: 0,
        bytes: [0; MAX_HANDLE],
    };
    let mut mount_id: libc::c_int = 0;
    // SAFETY: `raw` has the layout of struct file_handle with `len` bytes of room behind its head, as the call demands.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut raw,
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    if rc != 0 {
        return Err(last_errno());
    }
    let len = (raw.len as usize).min(MAX_HANDLE);
    Ok(FileHandle {
        kind: raw.kind,
        bytes: raw.bytes[..len].to_vec(),
    })
}

/// UUID of the file system `fd` is on (`FS_IOC_GETFSUUID`, Linux 6.9); `None` where it has or tells none.
/// `fd` must be open for reading (not `O_PATH`).
pub fn fs_uuid(fd: BorrowedFd<'_>) -> Option<[u8; 16]> {
    #[repr(C)]
    struct Raw {
        len: u8,
        uuid: [u8; 16],
    }
    /// `_IOR(0x15, 0, struct fsuuid2)`
    const FS_IOC_GETFSUUID: libc::Ioctl = 0x8011_1500_u32 as libc::Ioctl;
    let mut raw = Raw {
        len: 0,
        uuid: [0; 16],
    };
    // SAFETY: the ioctl writes one struct fsuuid2, whose layout `Raw` has.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut raw) };
    (rc == 0 && raw.len == 16).then_some(raw.uuid)
}

fn last_errno() -> Errno {
    Errno::from_raw_os_error(
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    )
}
