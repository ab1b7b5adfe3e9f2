//! The transport by `/dev/fuse`: read(2) a request, answer it in the same buffer, write(2) the answer.
//!
//! Each thread has a descriptor of its own for the connection where one can be had: for each of them the kernel keeps a list of
//! what was asked by it and is not answered yet, under a lock of its own. An answer must go by the descriptor that the question
//! came by.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::answers::{Answer, Answers, Code};
use super::dispatch::{self, Outcome};
use super::seek;
use super::wire::{Head, IN_HEADER, MOST_WORDS, OUT_HEADER};
use super::wire_out;
use crate::sys::fuse_device;

/// Bytes of a request besides the data of a WRITE, and of an answer besides that of a READ: those with the value of an extended
/// attribute have up to 64 KiB; listings end where the room does.
const REST: usize = 128 << 10;
const WAIT_FOR_MEMORY: Duration = Duration::from_millis(10);

/// One thread's descriptor and buffer.
pub struct Server<'a> {
    answers: &'a Answers,
    device: Arc<OwnedFd>,
    room: Vec<u8>,
}

/// What became of waiting for a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Served {
    /// One was answered, or will be.
    One,
    /// The one that was there has been withdrawn.
    None,
    /// There will be no more: the mount is gone.
    End,
}

/// Serves with so many threads until the mount is gone: unmounted, or aborted.
pub fn serve(answers: &Answers, device: &Arc<OwnedFd>, threads: usize) -> io::Result<()> {
    std::thread::scope(|scope| {
        let mut started = Vec::new();
        for number in 0..threads.max(1) {
            let device = match number {
                0 => Arc::clone(device),
                _ => another(device),
            };
            let thread = std::thread::Builder::new().name(format!("ovl-fuse-{number}"));
            match thread.spawn_scoped(scope, || Server::new(answers, device).run()) {
                Ok(thread) => started.push(thread),
                Err(error) if started.is_empty() => return Err(error),
                Err(error) => tracing::warn!(%error, "fewer threads serve the mount"),
            }
        }
        let mut done = Ok(());
        for thread in started {
            let panicked = |_| Err(io::Error::other("a thread of /dev/fuse panicked"));
            done = done.and(thread.join().unwrap_or_else(panicked));
        }
        done
    })
}

/// One more descriptor of a connection; the same where none can be had.
fn another(device: &Arc<OwnedFd>) -> Arc<OwnedFd> {
    let joined = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map(OwnedFd::from)
        .and_then(|new| Ok(fuse_device::join(new.as_fd(), device.as_fd()).map(|()| new)?));
    match joined {
        Ok(new) => Arc::new(new),
        Err(error) => {
            tracing::debug!(%error, "threads share one descriptor of /dev/fuse");
            Arc::clone(device)
        }
    }
}

impl<'a> Server<'a> {
    pub fn new(answers: &'a Answers, device: Arc<OwnedFd>) -> Self {
        let payload = answers.negotiated().payload.max(REST);
        Self {
            answers,
            device,
            room: vec![0; IN_HEADER + MOST_WORDS + payload],
        }
    }

    fn run(mut self) -> io::Result<()> {
        while self.one()? != Served::End {}
        Ok(())
    }

    /// Waits for a request and answers it.
    pub fn one(&mut self) -> io::Result<Served> {
        match rustix::io::read(&*self.device, self.room.as_mut_slice()) {
            Ok(len) => Ok(self.request(len)),
            // ENOENT: it was withdrawn while it was read.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => Ok(Served::None),
            Err(Errno::NODEV) => Ok(Served::End),
            // The request has been answered for us, by an error; there may be memory for the next.
            Err(Errno::NOMEM) => {
                tracing::warn!("no memory to take a request");
                std::thread::sleep(WAIT_FOR_MEMORY);
                Ok(Served::None)
            }
            Err(error) => {
                tracing::error!(%error, "a thread of /dev/fuse ends");
                Err(error.into())
            }
        }
    }

    /// Answers what the first `len` bytes are.
    fn request(&mut self, len: usize) -> Served {
        let Some(head) = Head::parse(&self.room[..len]) else {
            // Nobody could be answered.
            tracing::warn!(len, "a request without a head");
            return Served::None;
        };
        let at = IN_HEADER + head.words();
        let (front, payload) = self.room.split_at_mut(at);
        let later = || {
            let (device, unique) = (Arc::clone(&self.device), head.unique);
            let reply = move |found: Answer<i64>| {
                let mut out = [0; OUT_HEADER + 8];
                let done = dispatch::sought(found, &mut out[OUT_HEADER..]);
                reply(device.as_fd(), unique, done, &mut out);
            };
            Box::new(reply) as seek::Reply
        };
        let outcome = match len.checked_sub(at) {
            Some(rest) => {
                let words = &front[IN_HEADER..];
                let answer = || dispatch::answer(self.answers, &head, words, payload, rest, later);
                // The engine's panics are caught and counted where it is called.
                catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|_| {
                    tracing::error!(opcode = head.opcode, "a request ended by a panic");
                    Outcome::Done(Err(Code::EIO))
                })
            }
            None => Outcome::Done(Err(Code::EIO)),
        };
        if let Outcome::Done(done) = outcome
            && !head.wants_no_answer()
        {
            // The head of the answer takes the place of what was before its body.
            let out = &mut self.room[at - OUT_HEADER..];
            reply(self.device.as_fd(), head.unique, done, out);
        }
        if head.is_the_last() {
            Served::End
        } else {
            Served::One
        }
    }
}

/// Sends an answer whose body is in `out` behind the room for its head.
fn reply(device: BorrowedFd<'_>, unique: u64, done: Answer<usize>, out: &mut [u8]) {
    let (error, len) = match done {
        Ok(len) => (0, len),
        Err(code) => (code.get(), 0),
    };
    let head = |error, len| wire_out::head(unique, error, len);
    out[..OUT_HEADER].copy_from_slice(&head(error, len));
    match rustix::io::write(device, &out[..OUT_HEADER + len]) {
        Ok(_) => {}
        // Who asked was interrupted, and is gone.
        Err(Errno::NOENT) => {}
        Err(error) => {
            tracing::debug!(unique, %error, "an answer was not taken");
            let _ = rustix::io::write(device, &head(Code::EIO.get(), 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec};
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;
    use crate::fuse::{Config, Counters};
    use crate::layer::DirLayer;
    use crate::overlay::{Options, Overlay, Stack};

    const LOOKUP: u32 = 1;
    const GETATTR: u32 = 3;
    const FORGET: u32 = 2;
    const INTERRUPT: u32 = 36;
    const DESTROY: u32 = 38;
    const LSEEK: u32 = 46;

    /// A request as the kernel writes it, of node 1.
    fn request(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
        let len = (IN_HEADER + body.len()) as u32;
        [
            &len.to_ne_bytes()[..],
            &opcode.to_ne_bytes(),
            &unique.to_ne_bytes(),
            &1_u64.to_ne_bytes(),
            &[0; 16],
            body,
        ]
        .concat()
    }

    #[test]
    fn what_wants_an_answer_gets_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("file"), "text").expect("write");
        let stack = Stack {
            lowers: vec![Arc::new(DirLayer::open(dir.path()).expect("a layer"))],
            upper: None,
        };
        let engine = Arc::new(Overlay::new(stack, &Options::default()).expect("an engine"));
        let (sender, seeker) = seek::channel();
        let counters = Arc::new(Counters::default());
        let config = Config::default();
        let answers = Answers::new(Arc::clone(&engine), &config, Arc::clone(&counters), sender);
        seeker.start(engine, None, counters).expect("a thread");
        // What is written to one end is read from the other whole, as by /dev/fuse.
        let (kernel, device) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("two sockets");
        let mut server = Server::new(&answers, Arc::new(device));
        let is_answered = |seconds| {
            let within = Timespec {
                tv_sec: seconds,
                tv_nsec: 0,
            };
            let mut fds = [PollFd::new(&kernel, PollFlags::IN)];
            rustix::event::poll(&mut fds, Some(&within)).expect("poll") == 1
        };
        let mut ask = |request: &[u8]| -> (i32, u64, Vec<u8>) {
            rustix::io::write(&kernel, request).expect("a request");
            assert_eq!(server.one().expect("a request"), Served::One);
            assert!(is_answered(60));
            let mut room = vec![0; 4096];
            let len = rustix::io::read(&kernel, room.as_mut_slice()).expect("an answer");
            let word = |at: usize| *room[at..].first_chunk().expect("four bytes");
            assert_eq!(u32::from_ne_bytes(word(0)) as usize, len);
            let unique = u64::from_ne_bytes(*room[8..].first_chunk().expect("eight bytes"));
            let body = room[OUT_HEADER..len].to_vec();
            (-i32::from_ne_bytes(word(4)), unique, body)
        };
        let (error, unique, found) = ask(&request(LOOKUP, 10, b"file\0"));
        assert_eq!((error, unique, found.len()), (0, 10, 128));
        let (error, unique, attr) = ask(&request(GETATTR, 12, &[0; 16]));
        assert_eq!((error, unique, attr.len()), (0, 12, 104));
        for wrong in [
            request(LOOKUP, 14, b"no end"),
            request(GETATTR, 14, &[0; 8]),
        ] {
            let (error, unique, _) = ask(&wrong);
            assert_eq!((error, unique), (libc::EIO, 14));
        }
        // Told once, the kernel does not interrupt any more.
        let (error, ..) = ask(&request(INTERRUPT, 15, &[0; 8]));
        assert_eq!(error, libc::ENOSYS);
        // Of a directory: an error, but from the other thread.
        let (error, unique, _) = ask(&request(LSEEK, 16, &[0; 24]));
        assert_eq!((error != 0, unique), (true, 16));
        let forget = request(FORGET, 18, &1_u64.to_ne_bytes());
        let mut tell = |request: &[u8]| {
            rustix::io::write(&kernel, request).expect("a request");
            server.one().expect("a request")
        };
        assert_eq!(tell(&forget), Served::One);
        assert_eq!(tell(&forget[..20]), Served::None);
        assert!(!is_answered(0));
        assert_eq!(tell(&request(DESTROY, 20, &[])), Served::End);
    }

    #[test]
    fn all_that_the_kernel_can_write_has_room() {
        let config = Config {
            max_write: 4096,
            ..Config::default()
        };
        let dir = tempfile::tempdir().expect("temporary directory");
        let stack = Stack {
            lowers: vec![Arc::new(DirLayer::open(dir.path()).expect("a layer"))],
            upper: None,
        };
        let engine = Arc::new(Overlay::new(stack, &Options::default()).expect("an engine"));
        let (sender, _seeker) = seek::channel();
        let answers = Answers::new(engine, &config, Arc::default(), sender);
        let device = Arc::new(std::fs::File::open("/dev/null").expect("a file").into());
        // XATTR_SIZE_MAX, XATTR_NAME_MAX
        assert!(Server::new(&answers, device).room.len() > IN_HEADER + 8 + 65536 + 256);
    }
}
