//! The merged root by a number that is not the kernel's first.
//!
//! The inode of a FUSE mount's own root is made before the kernel has been greeted, hence before it knows that it may judge
//! by POSIX ACLs, and so it never keeps that inode's ACL (`ACL_DONT_CACHE`, `fuse_init_inode` in fs/fuse/inode.c). Whoever
//! does not own the root then has it asked for again with every path that leads through it: a request for each `stat("/x")`
//! of a container's program that is not root's. So the merged root is an entry of the FUSE root, and what is mounted is
//! that entry: an inode like all others. Nothing else ever asks for the outer root.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::answers::{Answers, Code};
use super::dispatch::{self, Outcome};
use super::wire;
use super::wire_out;
use crate::overlay::NodeId;

/// The merged root's name in the outer root, which mountinfo(5) shows as the mount's root.
const NAME: &str = "merged";

/// `FUSE_ROOT_ID`
const OUTER: u64 = 1;
/// The merged root's number on the wire. What is shown as its inode number is 1, as if it were the outer root.
pub const INNER: u64 = crate::overlay::NOBODYS;

/// Bytes of a request that are no data.
const HEADS: usize = 8192;

/// The node the kernel means.
pub const fn node_in(number: u64) -> NodeId {
    match number {
        INNER => NodeId::ROOT,
        number => NodeId(number),
    }
}

/// Is it the way to the merged root? `number` is the directory's on the wire.
pub fn is_at(number: u64, name: &OsStr) -> bool {
    number == OUTER && name == NAME
}

/// Finds the merged root in `outer`, a mount whose kernel has been greeted, and gives back a mount of it that lies nowhere.
/// What the kernel asks meanwhile by `device` is answered here; nothing else may read from it. EINVAL: Linux before 6.15
/// does so only for a mount that lies somewhere.
pub fn enter(
    answers: &Answers,
    device: BorrowedFd<'_>,
    outer: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let (over, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let flags = rustix::fs::fcntl_getfl(device)?;
    // A request that is withdrawn between poll and read is not to be waited for.
    rustix::fs::fcntl_setfl(device, flags | OFlags::NONBLOCK)?;
    let entered = std::thread::scope(|scope| {
        let walker = scope.spawn(move || {
            let tree = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let found = rustix::mount::open_tree(outer, NAME, tree);
            drop(end);
            found
        });
        let served = serve(answers, device, over.as_fd());
        let found = walker
            .join()
            .map_err(|_| io::Error::other("the search for the root ended by a bug"))?;
        served.and(Ok(found?))
    });
    rustix::fs::fcntl_setfl(device, flags)?;
    entered
}

/// Answers what comes by `device` until `over` is closed at its other end.
fn serve(answers: &Answers, device: BorrowedFd<'_>, over: BorrowedFd<'_>) -> io::Result<()> {
    let mut room = vec![0; answers.config().max_write as usize + HEADS];
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(device, PollFlags::IN),
            PollFd::from_borrowed_fd(over, PollFlags::empty()),
        ];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [asked, ended] = fds.map(|fd| fd.revents());
        if !ended.is_empty() {
            return Ok(());
        }
        if asked.is_empty() {
            continue;
        }
        match rustix::io::read(device, room.as_mut_slice()) {
            Ok(len) => one(answers, device, &mut room[..len])?,
            // Withdrawn, or nobody's any more.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Answers one request.
fn one(answers: &Answers, device: BorrowedFd<'_>, request: &mut [u8]) -> io::Result<()> {
    let Some((head, words, rest)) = wire::split(request) else {
        return Err(io::Error::other("a request without a head"));
    };
    if head.wants_no_answer() {
        return Ok(());
    }
    let words = words.to_vec();
    let len = rest.len();
    let mut payload = vec![0; HEADS.max(len)];
    payload[..len].copy_from_slice(rest);
    // Nobody can have opened a file yet.
    let later = || -> super::seek::Reply { Box::new(|_| ()) };
    let done = match dispatch::answer(answers, &head, &words, &mut payload, len, later) {
        Outcome::Done(done) => done,
        Outcome::Later => Err(Code::EIO),
    };
    let (error, len) = match done {
        Ok(len) => (0, len),
        Err(code) => (code.get(), 0),
    };
    let out = [
        &wire_out::head(head.unique, error, len)[..],
        &payload[..len],
    ]
    .concat();
    match rustix::io::write(device, &out) {
        // The asker was interrupted.
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
