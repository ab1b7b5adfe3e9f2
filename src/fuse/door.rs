//! The merged root by a number that is not the kernel's first.
//!
//! The inode of a FUSE mount's own root is made before the kernel has been greeted, hence before it knows that it may judge
//! by POSIX ACLs, and so it never keeps that inode's ACL (`ACL_DONT_CACHE`, `fuse_init_inode` in fs/fuse/inode.c). Whoever
//! does not own the root then has it asked for again with every path that leads through it: a request for each `stat("/x")`
//! of a container's program that is not root's. So the merged root is an entry of the FUSE root, the outer one, and what is
//! mounted is that entry: an inode like all others.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::mount::OpenTreeFlags;

use super::answers::Answers;
use super::device::{Served, Server};
use crate::overlay::{NOBODYS, NodeId};

/// The merged root's name in the outer root, which mountinfo(5) shows as the mount's root.
const NAME: &str = "merged";

/// `FUSE_ROOT_ID`
const OUTER: u64 = 1;
/// The merged root's number on the wire. What is shown as its inode number is 1, as if it were the outer root.
pub const INNER: u64 = NOBODYS;

/// A way that is not found by then is not found at all: somebody who should answer does not.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What the outer root is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Door {
    /// It is the merged root itself.
    #[default]
    None,
    /// The merged root is being looked for in it.
    Open,
    /// The merged root was found in it, and is what is mounted. Only who makes up a file handle comes to the outer root.
    Behind,
}

impl Door {
    pub const fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Open,
            2 => Self::Behind,
            _ => Self::None,
        }
    }

    /// The node that the kernel means by a number.
    pub const fn node(self, number: u64) -> NodeId {
        match (number, self) {
            (INNER, _) => NodeId::ROOT,
            // Nobody has that number in the engine: ESTALE.
            (OUTER, Self::Behind) => NodeId(NOBODYS),
            _ => NodeId(number),
        }
    }

    /// Is it the way to the merged root? `number` is the directory's on the wire.
    pub fn leads_in(self, number: u64, name: &OsStr) -> bool {
        self != Self::None && number == OUTER && name == NAME
    }
}

/// Finds the merged root in `outer`, a mount whose kernel has been greeted, and gives back a mount of it that lies nowhere.
/// What the kernel asks meanwhile by `device` is answered here; nothing else may read from it. EINVAL: Linux before 6.15
/// does so only for a mount that lies somewhere. After `TimedOut` this process can do nothing better than end.
pub fn enter(
    answers: &Answers,
    device: &Arc<OwnedFd>,
    outer: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(device)?;
    // A request that is withdrawn between poll and read is not to be waited for.
    rustix::fs::fcntl_setfl(device, flags | OFlags::NONBLOCK)?;
    let entered = walk_and_serve(answers, device, outer);
    rustix::fs::fcntl_setfl(device, flags)?;
    entered
}

fn walk_and_serve(
    answers: &Answers,
    device: &Arc<OwnedFd>,
    outer: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let outer = outer.try_clone_to_owned()?;
    let (over, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    // Not a scoped thread: one that waits for an answer that does not come cannot be waited for.
    let walker = std::thread::Builder::new().name("ovl-door".into());
    walker.spawn(move || {
        let tree = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let found = rustix::mount::open_tree(&outer, NAME, tree);
        drop(outer);
        let _ = tell.send(found);
        drop(end);
    })?;
    let mut server = Server::new(answers, Arc::clone(device));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match told.try_recv() {
            Ok(found) => return Ok(found?),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err(io::Error::other("the search for the root ended by a bug"));
            }
        }
        if Instant::now() > deadline {
            let why = "the kernel's look for the mount's root does not come to its end";
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        if is_asked(device.as_fd(), over.as_fd()) {
            match server.one() {
                Ok(Served::One | Served::None) => {}
                // The walk meets it too, if it is not its end.
                other => {
                    tracing::debug!(?other, "no request");
                    std::thread::sleep(LOOK_AGAIN);
                }
            }
        }
    }
}

/// Waits for a request, or the end of the walk, for a short while. Is there a request?
fn is_asked(device: BorrowedFd<'_>, over: BorrowedFd<'_>) -> bool {
    let mut fds = [
        PollFd::from_borrowed_fd(device, PollFlags::IN),
        PollFd::from_borrowed_fd(over, PollFlags::empty()),
    ];
    let moment = Timespec {
        tv_sec: 0,
        tv_nsec: LOOK_AGAIN.as_nanos() as i64,
    };
    let polled = rustix::event::poll(&mut fds, Some(&moment));
    polled.is_ok() && !fds[0].revents().is_empty()
}
