//! The greeting: what is asked of the kernel, and how much.

use fuser::{InitFlags, KernelConfig};

use super::{Config, ReadDirPlus};

/// Requests the kernel may have under way that nobody waits for (read-ahead, write-back).
const MAX_BACKGROUND: u16 = 64;

/// What we would like. Left to the kernel on purpose: locks (one kernel sees all users of a mount). HANDLE_KILLPRIV_V2
/// spares a GETXATTR of `security.capability` before every write(2), which costs more than the write: the kernel then
/// asks once per inode. In return set-id bits are ours to clear when an ordinary user changes a file. WRITE says so by a
/// flag; the flag of SETATTR does not come through fuser, so truncation, fallocate and copy_file_range go by the
/// caller's user id. ATOMIC_O_TRUNC must stay off while OPEN is answered ENOSYS: O_TRUNC then comes as SETATTR.
fn wanted(config: &Config, writeback: bool, ring: bool) -> InitFlags {
    let mut flags = InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_ASYNC_DIO
        | InitFlags::FUSE_DONT_MASK
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2
        | InitFlags::FUSE_NO_OPEN_SUPPORT
        | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
    match config.readdirplus {
        ReadDirPlus::Always => flags |= InitFlags::FUSE_DO_READDIRPLUS,
        ReadDirPlus::Adaptive => {
            flags |= InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO;
        }
        ReadDirPlus::Never => {}
    }
    if config.acl {
        flags |= InitFlags::FUSE_POSIX_ACL;
    }
    if config.no_handles {
        flags |= InitFlags::FUSE_NO_EXPORT_SUPPORT;
    }
    if writeback {
        flags |= InitFlags::FUSE_WRITEBACK_CACHE;
    }
    if ring {
        flags |= InitFlags::FUSE_OVER_IO_URING;
    }
    flags
}

/// Fills in the answer to INIT. `ring`: everything for io_uring is there. `no_open` of the result: the kernel can do
/// without OPEN and OPENDIR.
pub fn negotiate(
    config: &Config,
    writeback: bool,
    ring: bool,
    kernel: &mut KernelConfig,
) -> Negotiated {
    let offered = kernel.capabilities();
    let agreed = wanted(config, writeback, ring) & offered;
    let added = kernel.add_capabilities(agreed);
    debug_assert!(added.is_ok(), "only what is offered is asked for");
    // These setters refuse with the nearest value they take.
    let mut max_write = config.max_write;
    if let Err(nearest) = kernel.set_max_write(max_write) {
        let _ = kernel.set_max_write(nearest);
        max_write = nearest;
    }
    let mut max_readahead = 0;
    if let Err(most) = kernel.set_max_readahead(u32::MAX) {
        let _ = kernel.set_max_readahead(most);
        max_readahead = most;
    }
    let _ = kernel.set_max_background(MAX_BACKGROUND);
    Negotiated {
        no_open: config.no_open && agreed.contains(InitFlags::FUSE_NO_OPEN_SUPPORT),
        no_opendir: config.no_open && agreed.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
        ring: agreed.contains(InitFlags::FUSE_OVER_IO_URING),
        payload: (max_write.max(max_readahead) as usize)
            .next_multiple_of(rustix::param::page_size()),
    }
}

/// What the kernel's answer leaves us with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Negotiated {
    pub no_open: bool,
    pub no_opendir: bool,
    /// The kernel waits for the queues of [`super::ring`].
    pub ring: bool,
    /// The most bytes of a request or answer behind its own words.
    pub payload: usize,
}
