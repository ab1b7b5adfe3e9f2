//! FUSE's commands of an io_uring (linux/fuse.h: `fuse_uring_cmd`; Linux 6.14): a ring owns the buffers the kernel writes
//! requests into and reads answers from.
//!
//! The kernel touches the buffers of a slot only in calls of [`Ring::submit`] and [`Ring::wait`], and only from
//! [`Ring::register`] or [`Ring::commit`] of that slot until an event tells that a request is in it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// `struct fuse_uring_req_header`: the head of request or answer, the operation's words, and the ring's own.
const IN_OUT: usize = 128;
const WORDS: usize = 128;
const HEADS: usize = IN_OUT + WORDS + 32;
/// In the ring's own words (`struct fuse_uring_ent_in_out`).
const COMMIT_ID: usize = IN_OUT + WORDS + 8;
const PAYLOAD_LEN: usize = IN_OUT + WORDS + 16;

const CMD_REGISTER: u32 = 1;
const CMD_COMMIT_AND_FETCH: u32 = 2;

/// Where `len` is in a submission (`struct io_uring_sqe`); `io-uring` does not set it for commands.
const SQE_LEN: usize = 24;
const PAGE: usize = 4096;
/// `user_data` of an event that is about no slot.
const WATCHED: u64 = u64::MAX;

/// What [`Ring::wait`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request is in the slot; or why none ever will be (an errno).
    Slot(usize, Result<(), i32>),
    /// What was watched can be read; the watch has ended.
    Watched,
}

/// One io_uring, for one thread: that which enables it.
pub struct Ring {
    // Before the buffers: nothing is under way any more when those go.
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    slots: Vec<Slot>,
    device: Arc<OwnedFd>,
}

struct Slot {
    queue: u16,
    buffers: Buffers,
    /// Read by the kernel while the slot is being registered.
    vectors: Box<[libc::iovec; 2]>,
}

// SAFETY: the pointers lead to memory that the slot owns.
unsafe impl Send for Slot {}

impl Ring {
    /// For about `slots` slots on `device`, an open and mounted `/dev/fuse`.
    pub fn new(slots: u32, device: Arc<OwnedFd>) -> io::Result<Self> {
        let ring = IoUring::builder()
            // The thread that will use it is not this one.
            .setup_r_disabled()
            .setup_single_issuer()
            // The kernel hands a request over when this thread asks for it, not in the middle of something else.
            .setup_defer_taskrun()
            .setup_clamp()
            .build((slots + 2).next_power_of_two())?;
        Ok(Self {
            ring,
            slots: Vec::new(),
            device,
        })
    }

    /// From here on this thread alone may use it.
    pub fn enable(&self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()
    }

    /// Makes a new slot, which takes requests of `queue` with up to `payload` bytes once this is submitted.
    pub fn register(&mut self, queue: u16, payload: usize) -> io::Result<usize> {
        let buffers = Buffers::new(PAGE + payload)?;
        let vector = |at, len| libc::iovec {
            iov_base: buffers.at(at).cast(),
            iov_len: len,
        };
        let vectors = Box::new([vector(0, HEADS), vector(PAGE, payload)]);
        let index = self.slots.len();
        self.slots.push(Slot {
            queue,
            buffers,
            vectors,
        });
        self.command(index, CMD_REGISTER)?;
        Ok(index)
    }

    /// Sends the answer in `slot`, `len` bytes of payload behind `head`, and takes the next request.
    pub fn commit(&mut self, slot: usize, head: &[u8], len: usize) -> io::Result<()> {
        let memory = self.slots[slot].buffers.bytes_mut();
        memory[..head.len()].copy_from_slice(head);
        let len = (len as u32).to_ne_bytes();
        memory[PAYLOAD_LEN..PAYLOAD_LEN + len.len()].copy_from_slice(&len);
        self.command(slot, CMD_COMMIT_AND_FETCH)
    }

    fn command(&mut self, index: usize, command: u32) -> io::Result<()> {
        let slot = &self.slots[index];
        let mut words = [0; 80];
        if command == CMD_COMMIT_AND_FETCH {
            let id = &slot.buffers.bytes()[COMMIT_ID..COMMIT_ID + 8];
            words[8..16].copy_from_slice(id);
        }
        words[16..18].copy_from_slice(&slot.queue.to_ne_bytes());
        let vectors = slot.vectors.as_ptr();
        let mut entry = opcode::UringCmd80::new(types::Fd(self.device.as_raw_fd()), command)
            .cmd(words)
            .addr(Some(vectors as u64))
            .build()
            .user_data(index as u64);
        let count = slot.vectors.len() as u32;
        // SAFETY: an entry is a `struct io_uring_sqe` and 64 more bytes, in which `len` has its place and alignment.
        unsafe {
            (&raw mut entry)
                .cast::<u8>()
                .add(SQE_LEN)
                .cast::<u32>()
                .write(count);
        }
        self.push(&entry)
    }

    /// Tells once, by [`Event::Watched`], that `fd` can be read. It must stay open until then.
    pub fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), libc::POLLIN as u32)
            .build()
            .user_data(WATCHED);
        self.push(&entry.into())
    }

    fn push(&mut self, entry: &squeue::Entry128) -> io::Result<()> {
        loop {
            // SAFETY: whatever an entry points to is memory of `self.slots`, which goes after the ring.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
    }

    /// Has the kernel take what was registered, committed and watched.
    pub fn submit(&self) -> io::Result<()> {
        retried(|| self.ring.submit())
    }

    /// The same, and waits until there is an event.
    pub fn wait(&self) -> io::Result<()> {
        retried(|| self.ring.submit_and_wait(1))
    }

    /// The next of the events that are there.
    pub fn event(&mut self) -> Option<Event> {
        let entry = self.ring.completion().next()?;
        Some(match entry.user_data() {
            WATCHED => Event::Watched,
            slot => Event::Slot(
                slot as usize,
                if entry.result() < 0 {
                    Err(-entry.result())
                } else {
                    Ok(())
                },
            ),
        })
    }

    pub fn queue(&self, slot: usize) -> u16 {
        self.slots[slot].queue
    }

    /// The request in `slot`: its head, the operation's words, and the payload with how much of it is the request's. In
    /// the payload there is room for the answer.
    pub fn request(&mut self, slot: usize) -> (&[u8], &[u8], &mut [u8], usize) {
        let memory = self.slots[slot].buffers.bytes_mut();
        let (heads, payload) = memory.split_at_mut(PAGE);
        let len = heads[PAYLOAD_LEN..PAYLOAD_LEN + 4]
            .first_chunk()
            .map_or(0, |bytes| u32::from_ne_bytes(*bytes) as usize)
            .min(payload.len());
        (
            &heads[..IN_OUT],
            &heads[IN_OUT..IN_OUT + WORDS],
            payload,
            len,
        )
    }
}

/// What says "again" is done again.
fn retried(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<()> {
    loop {
        match call().map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) => return Ok(()),
            Err((Some(libc::EINTR | libc::EAGAIN | libc::EBUSY), _)) => {}
            Err((_, error)) => return Err(error),
        }
    }
}

/// Memory that the kernel writes to, too, between our looks at it.
struct Buffers {
    start: NonNull<u8>,
    layout: Layout,
}

impl Buffers {
    fn new(len: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(len, PAGE).map_err(io::Error::other)?;
        // SAFETY: the layout is not of size 0: a page is in it at least.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        let start = start.ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, layout })
    }

    fn at(&self, at: usize) -> *mut u8 {
        self.start.as_ptr().wrapping_add(at)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: initialized memory of that length, of which there is no mutable view while `self` is borrowed; the
        // kernel does not write to it now (see the head of this file).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for this view alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
