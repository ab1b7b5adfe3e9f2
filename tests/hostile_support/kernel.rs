//! The other end of `/dev/fuse`, played by the test: it can ask what no kernel asks. A socket takes the device's place; one
//! packet is one request, as one read of the device is.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use ovl::fuse::{Config, Counters, Session};
use ovl::overlay::Overlay;

/// Numbers of linux/fuse.h.
pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const READDIRPLUS: u32 = 44;
const INIT: u32 = 26;
const DESTROY: u32 = 38;

/// A request's body, field by field.
#[derive(Clone, Default)]
pub struct Body(pub Vec<u8>);

impl Body {
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// Bytes with a NUL behind them.
    pub fn name(mut self, name: &[u8]) -> Self {
        self.0.extend(name);
        self.0.push(0);
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

/// What came back: an errno (0: none) and the rest of the reply.
pub type Reply = (i32, Vec<u8>);

pub struct Kernel {
    socket: OwnedFd,
    unique: u64,
    server: Option<JoinHandle<std::io::Result<()>>>,
    pub counters: Arc<Counters>,
    /// Who asks from now on.
    pub uid: u32,
}

fn option(socket: &OwnedFd, name: i32, value: &[u8]) {
    // SAFETY: `value` is as long as it says, and read only.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

impl Kernel {
    /// Greets a transport over `engine`, which serves from then on.
    pub fn new(engine: Arc<Overlay>, config: &Config) -> Self {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket pair");
        for end in [&ours, &theirs] {
            option(end, libc::SO_SNDBUFFORCE, &(4_i32 << 20).to_ne_bytes());
        }
        // Far beyond what any answer takes: a request without one ends the test here.
        let wait = [60_i64.to_ne_bytes(), 0_i64.to_ne_bytes()].concat();
        option(&ours, libc::SO_RCVTIMEO, &wait);
        let mut kernel = Self {
            socket: ours,
            unique: 0,
            server: None,
            counters: Arc::default(),
            uid: 0,
        };
        let config = Config {
            // More would need a device that can be cloned.
            threads: 1,
            ..config.clone()
        };
        let (counters, told) = std::sync::mpsc::channel();
        kernel.server = Some(std::thread::spawn(move || {
            let session = Session::start(engine, theirs, &config)?;
            counters.send(session.counters()).expect("the test waits");
            session.run()
        }));
        // Version 7.42 with everything this kernel could do.
        let init = Body::default()
            .u32(7)
            .u32(42)
            .u32(1 << 20)
            .u32(u32::MAX)
            .u32(u32::MAX)
            .bytes(&[0; 44]);
        let (errno, _) = kernel.ask(INIT, 0, &init);
        assert_eq!(errno, 0, "INIT is answered");
        kernel.counters = told.recv().expect("a session");
        kernel
    }

    /// Sends a request without waiting; its number.
    pub fn send(&mut self, opcode: u32, node: u64, body: &Body) -> u64 {
        self.unique += 2;
        let head = Body::default()
            .u32(40 + body.0.len() as u32)
            .u32(opcode)
            .u64(self.unique)
            .u64(node)
            .u32(self.uid)
            .u32(self.uid)
            .u32(std::process::id())
            .u32(0);
        let packet = [&head.0[..], &body.0].concat();
        let sent = rustix::io::write(&self.socket, &packet);
        assert_eq!(sent, Ok(packet.len()), "request {opcode}");
        self.unique
    }

    /// Asks and waits for the answer.
    pub fn ask(&mut self, opcode: u32, node: u64, body: &Body) -> Reply {
        let number = self.send(opcode, node, body);
        let mut packet = vec![0; 1 << 21];
        loop {
            let length = rustix::io::read(&self.socket, &mut packet)
                .unwrap_or_else(|e| panic!("no answer to request {opcode}: {e}"));
            assert!(length >= 16, "request {opcode} ended the session");
            let word = |at: usize| -> [u8; 4] { packet[at..at + 4].try_into().unwrap() };
            let unique = u64::from_ne_bytes(packet[8..16].try_into().unwrap());
            // Notifications have no number.
            if unique == number {
                assert_eq!(u32::from_ne_bytes(word(0)) as usize, length);
                return (-i32::from_ne_bytes(word(4)), packet[16..length].to_vec());
            }
            assert_eq!(unique, 0, "an answer to what was not asked");
        }
    }

    /// The node of a name, from its LOOKUP.
    pub fn lookup(&mut self, node: u64, name: &[u8]) -> Option<u64> {
        let (errno, entry) = self.ask(LOOKUP, node, &Body::default().name(name));
        let found = entry.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        found.filter(|found| errno == 0 && *found != 0)
    }

    /// The end of a mount.
    pub fn end(mut self) {
        self.ask(DESTROY, 0, &Body::default());
        let server = self.server.take().expect("it serves");
        server.join().expect("no panic").expect("a session's end");
    }
}
