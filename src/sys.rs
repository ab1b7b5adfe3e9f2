//! System calls that std and rustix do not offer safely, and what the processor offers only that way. All `unsafe` of the
//! crate lives here.
#![allow(
    unsafe_code,
    reason = "here and below only; each block says why it is sound"
)]

pub mod fuse_device;
pub mod sha256;
pub mod sqlite;
pub mod uring;

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

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

/// The handle of an open object (`O_PATH` will do), or of `name` in an open directory, of a symlink itself. EOPNOTSUPP where
/// the file system has none.
pub fn file_handle(fd: BorrowedFd<'_>, name: Option<&OsStr>) -> Result<FileHandle, Errno> {
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
    let path = CString::new(name.map_or(&b""[..], OsStr::as_bytes)).map_err(|_| Errno::INVAL)?;
    let flags = match name {
        Some(_) => 0,
        None => libc::AT_EMPTY_PATH,
    };
    // SAFETY: `path` ends in NUL; `raw` has the layout of struct file_handle with `len` bytes of room behind its head, as the
    // call demands.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            path.as_ptr(),
            &raw mut raw,
            &raw mut mount_id,
            flags,
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

/// `struct fsxattr` (linux/fs.h): inode flags in XFS's form, extent sizes, project id. We only hand it on.
pub type FsXattr = [u8; 28];

/// `FS_IOC_FSGETXATTR` of an object open for reading; ENOTTY or EOPNOTSUPP where the file system has no such thing.
pub fn fsxattr(fd: BorrowedFd<'_>) -> Result<FsXattr, Errno> {
    /// `_IOR('X', 31, struct fsxattr)`
    const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
    let mut raw = [0; _];
    // SAFETY: the ioctl writes one struct fsxattr, 28 bytes without padding.
    match unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut raw) } {
        0 => Ok(raw),
        _ => Err(last_errno()),
    }
}

/// `FS_IOC_FSSETXATTR` of an object open for reading.
pub fn set_fsxattr(fd: BorrowedFd<'_>, value: &FsXattr) -> Result<(), Errno> {
    /// `_IOW('X', 32, struct fsxattr)`
    const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820_u32 as libc::Ioctl;
    // SAFETY: the ioctl reads one struct fsxattr, 28 bytes without padding.
    match unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const *value) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Has the data of an open file that is only in memory written to the device, without waiting for it
/// (`sync_file_range(2)`).
pub fn start_writing(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    sync_file_range(fd, libc::SYNC_FILE_RANGE_WRITE)
}

/// The same, and waits until the device has taken it all. Nothing else of the file is made durable, nor is the device's own
/// cache emptied.
pub fn write_out(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(fd, all)
}

fn sync_file_range(fd: BorrowedFd<'_>, flags: libc::c_uint) -> Result<(), Errno> {
    loop {
        // SAFETY: it takes numbers only; an open descriptor is borrowed for the call. A length of 0 is to the end.
        match unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, flags) } {
            0 => return Ok(()),
            _ => match last_errno() {
                Errno::INTR => {}
                error => return Err(error),
            },
        }
    }
}

fn last_errno() -> Errno {
    Errno::from_raw_os_error(
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    )
}

/// Which side of [`fork`] this is.
pub enum Fork {
    Parent { child: rustix::process::Pid },
    Child,
}

/// Duplicates the process. Refused (EBUSY) unless it has a single thread: the child of a process with threads may find
/// locks held by threads that do not exist in it.
pub fn fork() -> Result<Fork, Errno> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(|_| Errno::NOSYS)?;
    if threads.count() != 1 {
        return Err(Errno::BUSY);
    }
    // SAFETY: the process has one thread, so its copy is whole.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent {
            child: rustix::process::Pid::from_raw(pid).ok_or(Errno::SRCH)?,
        }),
    }
}

/// Makes `target` (0, 1 or 2) another name of what `fd` is.
pub fn replace_stdio(fd: BorrowedFd<'_>, target: u8) -> Result<(), Errno> {
    if target > 2 {
        return Err(Errno::BADF);
    }
    // SAFETY: dup2 onto a standard descriptor, which no owning type of this crate holds.
    let rc = unsafe { libc::dup2(fd.as_raw_fd(), i32::from(target)) };
    if rc < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Closes every descriptor above 2 but those of `keep`. For a freshly forked child only, which uses nothing else.
pub fn close_inherited(keep: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut kept: Vec<u32> = keep
        .iter()
        .map(|fd| fd.as_raw_fd() as u32)
        .filter(|fd| *fd > 2)
        .collect();
    kept.sort_unstable();
    let mut first = 3;
    for end in kept.into_iter().chain([u32::MAX]) {
        if first < end
            // SAFETY: per this function's contract nothing in this process uses these descriptors any more.
            && unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0_u32) } != 0
        {
            return Err(last_errno());
        }
        first = end.saturating_add(1);
    }
    Ok(())
}

/// Has every descriptor above 2 closed when this process runs another program, also those it was itself started with.
pub fn close_on_exec() -> Result<(), Errno> {
    // SAFETY: the call changes a flag of descriptors and closes none.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Gives this thread a mount namespace of its own, a copy of the one it is in.
pub fn unshare_mounts() -> Result<(), Errno> {
    unshare(libc::CLONE_NEWNS)
}

/// Gives this process, which must have one thread, a user namespace of its own, without mappings yet, and in it a mount
/// namespace.
pub fn unshare_user_and_mounts() -> Result<(), Errno> {
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)
}

fn unshare(flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: descriptors and memory stay shared; only namespaces are replaced.
    let rc = unsafe { libc::unshare(flags) };
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Blocks `signals` in this thread, and those it starts later, and gives a descriptor to read them from
/// ([`read_signal`]).
pub fn signal_fd(signals: &[libc::c_int]) -> Result<OwnedFd, Errno> {
    // SAFETY: sigset_t is plain data that sigemptyset initialises; the calls get pointers to it for their duration, and
    // the descriptor is new and owned by nobody else.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => {}
            code => return Err(Errno::from_raw_os_error(code)),
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) {
            -1 => Err(last_errno()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// A signal as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedSignal {
    pub number: libc::c_int,
    /// From the kernel (a key on the terminal, which goes to all processes in its foreground), not from a process.
    pub by_kernel: bool,
}

/// Waits for a signal on a descriptor of [`signal_fd`].
pub fn read_signal(fd: BorrowedFd<'_>) -> Result<libc::c_int, Errno> {
    Ok(read_signal_info(fd)?.number)
}

/// The same, and where it comes from.
pub fn read_signal_info(fd: BorrowedFd<'_>) -> Result<ReceivedSignal, Errno> {
    let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
    loop {
        match rustix::io::read(fd, &mut info) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            // The first fields are `ssi_signo`, `ssi_errno` and `ssi_code`, of four bytes each.
            Ok(_) => {
                let field = |at: usize| {
                    i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]])
                };
                return Ok(ReceivedSignal {
                    number: field(0),
                    by_kernel: field(8) == libc::SI_KERNEL,
                });
            }
        }
    }
}

/// Ignores SIGPIPE: writing to a closed pipe is then an error like any other.
pub fn ignore_sigpipe() {
    // SAFETY: SIG_IGN runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Ignores SIGXFSZ: writing beyond the limit on file sizes is then EFBIG, not the end of the process.
pub fn ignore_sigxfsz() {
    // SAFETY: SIG_IGN runs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Waits until `fd` can be read (for a pidfd: the process has ended); `false` when `timeout` ran out first.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: std::time::Duration) -> Result<bool, Errno> {
    wait_event(fd, libc::POLLIN, timeout)
}

/// Waits until a mount is made or goes in the mount namespace whose open `mountinfo` is `fd` (proc_pid_mounts(5)); `false`
/// when `timeout` ran out first.
pub fn wait_mounts_changed(
    fd: BorrowedFd<'_>,
    timeout: std::time::Duration,
) -> Result<bool, Errno> {
    wait_event(fd, libc::POLLPRI, timeout)
}

fn wait_event(
    fd: BorrowedFd<'_>,
    events: libc::c_short,
    timeout: std::time::Duration,
) -> Result<bool, Errno> {
    let deadline = std::time::Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events,
            revents: 0,
        };
        // SAFETY: one pollfd, as the count says.
        match unsafe { libc::poll(&raw mut poll, 1, millis) } {
            -1 if last_errno() == Errno::INTR => {}
            -1 => return Err(last_errno()),
            0 => return Ok(false),
            _ => return Ok(true),
        }
    }
}

/// Gives memory that the allocator holds but nobody uses back to the system, where the C library can (`malloc_trim(3)`).
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes SQLite tell a read that the disk failed as an I/O error, in this process from now on; whether that could be done.
///
/// Its own `unixRead` takes EIO and ENXIO of a read for a sign of a damaged file system (`SQLITE_IOERR_CORRUPTFS`), and its
/// interface then turns that into `SQLITE_CORRUPT`: a word that is also said of a database that is damaged itself, and so
/// of no use to tell a failing disk from that. Any other errno stays `SQLITE_IOERR`. Replacing the calls SQLite makes is
/// part of its interface (`xSetSystemCall` of <https://www.sqlite.org/c3ref/vfs.html>).
pub fn tell_failed_reads_of_sqlite() -> bool {
    use rusqlite::ffi;
    static DONE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let replace = || {
        // SAFETY: the standard VFS is static, as are its methods. What takes the place of pread(2) there has its signature
        // (SQLite is compiled with a 64-bit off_t), and is only ever called as such.
        unsafe {
            let vfs = ffi::sqlite3_vfs_find(std::ptr::null());
            let Some(methods) = vfs.as_ref().filter(|methods| methods.iVersion >= 3) else {
                return false;
            };
            let (Some(get), Some(set)) = (methods.xGetSystemCall, methods.xSetSystemCall) else {
                return false;
            };
            let call = std::mem::transmute::<Pread, unsafe extern "C" fn()>(pread_or_remote);
            // Which of the two it was compiled for; the other is null there.
            [c"pread", c"pread64"]
                .iter()
                .filter(|name| get(vfs, name.as_ptr()).is_some())
                .map(|name| set(vfs, name.as_ptr(), Some(call)))
                .any(|code| code == ffi::SQLITE_OK)
        }
    };
    *DONE.get_or_init(replace)
}

type Pread = unsafe extern "C" fn(
    libc::c_int,
    *mut libc::c_void,
    libc::size_t,
    libc::off64_t,
) -> libc::ssize_t;

/// pread(2), whose EIO and ENXIO become EREMOTEIO.
unsafe extern "C" fn pread_or_remote(
    fd: libc::c_int,
    buffer: *mut libc::c_void,
    len: libc::size_t,
    at: libc::off64_t,
) -> libc::ssize_t {
    // SAFETY: the caller's promises are those of pread(2); errno is this thread's own.
    unsafe {
        let got = libc::pread64(fd, buffer, len, at);
        if got < 0 && matches!(*libc::__errno_location(), libc::EIO | libc::ENXIO) {
            *libc::__errno_location() = libc::EREMOTEIO;
        }
        got
    }
}
