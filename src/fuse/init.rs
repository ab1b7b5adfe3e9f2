//! The greeting: what is asked of the kernel, and how much.

use std::io;
use std::sync::Arc;

use fuser::{InitFlags, KernelConfig, Request};

use super::answers::Answers;
use super::{Config, ReadDirPlus};

/// Requests the kernel may have under way that nobody waits for (read-ahead, write-back).
const MAX_BACKGROUND: u16 = 64;

/// Files passed through must not be on a stacked file system, so that ours can be the lower or upper of one.
const STACK_DEPTH: u32 = 1;

/// What we would like. Left to the kernel on purpose: locks (one kernel sees all users of a mount). HANDLE_KILLPRIV_V2
/// spares a GETXATTR of `security.capability` before every write(2), which costs more than the write: the kernel then
/// asks once per inode. In return set-id bits are ours to clear when an ordinary user changes a file. WRITE says so by a
/// flag; that of SETATTR is not looked at, so truncation, fallocate and copy_file_range go by the caller's user id. ATOMIC_O_TRUNC must stay off: O_TRUNC then comes as SETATTR, also where OPEN is answered ENOSYS, and
/// after the kernel has looked whether the file is a running program, which `O_RDONLY | O_TRUNC` would else empty.
fn wanted(config: &Config, wish: Wish) -> InitFlags {
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
    if wish.writeback {
        flags |= InitFlags::FUSE_WRITEBACK_CACHE;
    }
    if wish.ring {
        flags |= InitFlags::FUSE_OVER_IO_URING;
    }
    if wish.passthrough {
        flags |= InitFlags::FUSE_PASSTHROUGH;
    }
    flags
}

/// What fuser is given for a file system: it greets the kernel, and serves nothing.
pub struct Greeting {
    pub answers: Arc<Answers>,
    /// Requests may come by io_uring instead.
    pub ring: bool,
    /// Files may be passed through.
    pub passthrough: bool,
}

impl fuser::Filesystem for Greeting {
    fn init(&mut self, _request: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
        let wish = self.answers.wish(self.ring, self.passthrough);
        let agreed = negotiate(self.answers.config(), wish, kernel);
        self.answers.agree(agreed);
        Ok(())
    }
}

/// What depends on more than the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub writeback: bool,
    /// Everything for io_uring is there.
    pub ring: bool,
    /// Where the kernel has it, instead of write-back: it does not do both.
    pub passthrough: bool,
}

/// Fills in the answer to INIT. `no_open` of the result: the kernel can do without OPEN and OPENDIR.
pub fn negotiate(config: &Config, mut wish: Wish, kernel: &mut KernelConfig) -> Negotiated {
    let offered = kernel.capabilities();
    wish.passthrough &= offered.contains(InitFlags::FUSE_PASSTHROUGH)
        && kernel.set_max_stack_depth(STACK_DEPTH).is_ok();
    wish.writeback &= !wish.passthrough;
    let agreed = wanted(config, wish) & offered;
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
        no_open: config.no_open
            && !wish.passthrough
            && agreed.contains(InitFlags::FUSE_NO_OPEN_SUPPORT),
        no_opendir: config.no_open && agreed.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
        writeback: agreed.contains(InitFlags::FUSE_WRITEBACK_CACHE),
        passthrough: wish.passthrough,
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
    pub writeback: bool,
    pub passthrough: bool,
    /// The kernel waits for the queues of [`super::ring`].
    pub ring: bool,
    /// The most bytes of a request or answer behind its own words.
    pub payload: usize,
}
