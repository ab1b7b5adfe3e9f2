//! Transport: kernel requests to engine calls and back. The only room that names `fuser`.
//!
//! Two ways lead here: `/dev/fuse` (`device`) and the kernel's io_uring queues (`ring`). Both have a request's bytes decoded,
//! answered and the answer encoded (`wire`, `dispatch`, `wire_out`). `answers` makes one call of
//! [`crate::overlay::Overlay`] for each request, and decides what the kernel may keep (entries, attributes, negative
//! look-ups, directories, symlinks, data) from one fact: nobody but this daemon changes what the mount shows. Where files
//! are passed through (`passthrough`) the kernel changes some of them itself, and tells most of it.
//!
//! Invariants:
//! - A panic in the engine costs the request that met it an EIO, never the mount.
//! - fuser greets the kernel on an open, mounted `/dev/fuse`, and tells it things unasked. It never mounts, never unmounts and
//!   serves no request: it has one number for an inode and for the kernel's reference to it, so its directory listings cannot
//!   leave attributes out.
//! - No handler answers ENOSYS for the engine: the kernel takes it to mean "never ask again" for the whole mount.
//! - No handler waits for another request of the same mount, save on the [`seek`] thread, which serves none.
//! - Never requested of the kernel, since nothing here honours them: `SETXATTR_EXT`, `ALLOW_IDMAP`, `SECURITY_CTX`,
//!   `CREATE_SUPP_GROUP`, `HAS_INODE_DAX`, `SUBMOUNTS`, `MAP_ALIGNMENT`, `HAS_RESEND`, `REQUEST_TIMEOUT`.

mod answers;
mod device;
mod dispatch;
mod door;
mod init;
mod ioctl;
#[doc(hidden)]
pub mod offline;
mod passthrough;
mod ring;
mod seek;
mod wire;
mod wire_out;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use answers::Answers;
use door::Door;
use init::Greeting;

use crate::overlay::Overlay;

/// For as long as the kernel likes: about 30 years, the word of fuse-overlayfs for "for ever".
pub const FOREVER: Duration = Duration::from_secs(1_000_000_000);

/// Which directory reads also look their entries up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadDirPlus {
    /// All of them: one request lists a directory and fills the kernel's caches.
    #[default]
    Always,
    /// The first of a directory, and those after which the kernel sees entries looked up.
    Adaptive,
    Never,
}

/// Whether requests come by io_uring rather than by `/dev/fuse`. Linux 6.14 can, where its administrator has set
/// `/sys/module/fuse/parameters/enable_uring`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoUring {
    #[default]
    Off,
    /// A warning is given where it cannot be had.
    On,
    /// Where it can be had.
    Auto,
}

/// By what requests come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Read from `/dev/fuse`.
    #[default]
    Device,
    IoUring,
}

/// By what way data is to go between programs and files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoMode {
    /// Through the page cache of the mount, filled and emptied by requests.
    #[default]
    Cached,
    /// The kernel reads and writes the files behind the mount itself, where they are files of the host.
    Passthrough {
        /// Without it there is no mount; else a warning is given where it cannot be had.
        required: bool,
    },
    /// Whichever is better for most: [`IoMode::Cached`], see docs/io.md.
    Auto,
}

/// By what way data goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Io {
    #[default]
    Cached,
    Passthrough,
}

/// How the transport behaves. `default()` is right where only this mount changes the upper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long the kernel may keep a name.
    pub entry_ttl: Duration,
    /// How long the kernel may keep attributes.
    pub attr_ttl: Duration,
    /// How long the kernel may keep that a name is absent; zero: not at all.
    pub negative_ttl: Duration,
    /// Answer OPEN, OPENDIR and CREATE with ENOSYS: the kernel then opens without asking, and makes files by MKNOD.
    pub no_open: bool,
    /// The kernel gathers writes in its page cache and keeps size and times of files being written itself.
    /// Never used on a read-only mount, nor beside passthrough.
    pub writeback: bool,
    pub readdirplus: ReadDirPlus,
    /// The kernel finds nodes by their names only: to it they have no file handles. An overlay on this mount would else keep
    /// handles of what it copied up, and what it finds by them (`fuse_get_dentry`) is ESTALE at the next look (Linux 6.16).
    pub no_handles: bool,
    /// Let the kernel judge by POSIX ACLs.
    pub acl: bool,
    /// What is mounted may be an entry of the FUSE root, of which the kernel keeps the ACL; the mount table then shows
    /// `/merged` for the mount's root. See [`Session::enter`].
    pub own_root: bool,
    /// Threads that read `/dev/fuse`.
    pub threads: usize,
    pub io_uring: IoUring,
    /// With passthrough every OPEN is answered, whatever `no_open` says.
    pub io: IoMode,
    /// Largest write request, bytes.
    pub max_write: u32,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            entry_ttl: FOREVER,
            attr_ttl: FOREVER,
            negative_ttl: FOREVER,
            no_open: true,
            writeback: true,
            readdirplus: ReadDirPlus::default(),
            no_handles: false,
            acl: true,
            own_root: true,
            threads: cores.clamp(2, 4),
            io_uring: IoUring::default(),
            io: IoMode::default(),
            max_write: 1 << 20,
        }
    }
}

impl Config {
    /// The default, with what the variables `OVL_IO_URING` (`on`, `off` or `auto`) and `OVL_IO` (`cached`, `passthrough` or
    /// `auto`) say.
    pub fn from_environment() -> Self {
        let io_uring = match std::env::var("OVL_IO_URING").as_deref() {
            Ok("on") => IoUring::On,
            Ok("auto") => IoUring::Auto,
            Ok("off" | "") | Err(std::env::VarError::NotPresent) => IoUring::Off,
            Ok(_) | Err(std::env::VarError::NotUnicode(_)) => {
                tracing::warn!("OVL_IO_URING is neither on, off nor auto: taken for off");
                IoUring::Off
            }
        };
        let io = match std::env::var("OVL_IO").as_deref() {
            Ok("passthrough") => IoMode::Passthrough { required: false },
            Ok("auto") => IoMode::Auto,
            Ok("cached" | "") | Err(std::env::VarError::NotPresent) => IoMode::Cached,
            Ok(_) | Err(std::env::VarError::NotUnicode(_)) => {
                tracing::warn!("OVL_IO is neither cached, passthrough nor auto: taken for cached");
                IoMode::Cached
            }
        };
        Self {
            io_uring,
            io,
            ..Self::default()
        }
    }
}

/// What happened on a mount since it was made.
#[derive(Default)]
pub struct Counters {
    requests: AtomicU64,
    errors: AtomicU64,
    panics: AtomicU64,
    on_panic: OnceLock<OnPanic>,
}

/// Told how many panics there have been.
type OnPanic = Box<dyn Fn(u64) + Send + Sync>;

impl Counters {
    /// Requests that reached the engine.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Of these, answered with an error (most are harmless: no such attribute, file exists).
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Of these, ended by a panic: each is a bug.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Has `tell` called with the count after each panic, by the thread that met it. The first to ask is told.
    pub fn on_panic(&self, tell: impl Fn(u64) + Send + Sync + 'static) {
        let _ = self.on_panic.set(Box::new(tell));
    }

    fn count_panic(&self) {
        let panics = self.panics.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(tell) = self.on_panic.get() {
            tell(panics);
        }
    }
}

/// A mounted engine whose kernel has been greeted; what comes by `/dev/fuse` waits until [`Session::run`].
pub struct Session {
    greeted: fuser::Session<Greeting>,
    ring: Option<ring::Serving>,
    io: Io,
    counters: Arc<Counters>,
    answers: Arc<Answers>,
    device: Arc<OwnedFd>,
}

impl Session {
    /// Agrees with the kernel on the protocol. `dev_fuse` is an open `/dev/fuse` that is mounted already.
    pub fn start(engine: Arc<Overlay>, dev_fuse: OwnedFd, config: &Config) -> io::Result<Self> {
        let counters = Arc::new(Counters::default());
        // The kernel checks who may come in (owner only, or allow_other), before a request is made.
        let acl = fuser::SessionACL::All;
        let (seek, seeker) = seek::channel();
        let answers = Arc::new(Answers::new(
            Arc::clone(&engine),
            config,
            Arc::clone(&counters),
            seek,
        ));
        let device = Arc::new(dev_fuse.try_clone()?);
        let prepared = match config.io_uring {
            IoUring::Off => None,
            asked => ring::Prepared::new(dev_fuse.try_clone()?)
                .inspect_err(|error| without_ring(asked, &error.to_string()))
                .ok(),
        };
        let passthrough = prepare_passthrough(&engine, config.io, &dev_fuse)?;
        let greeting = Greeting {
            answers: Arc::clone(&answers),
            ring: prepared.is_some(),
            passthrough: passthrough.is_some(),
        };
        let greeted = fuser::Session::from_fd(greeting, dev_fuse, acl, fuser::Config::default())?;
        let agreed = answers.negotiated();
        let notifier = agreed.writeback.then(|| greeted.notifier());
        seeker.start(engine, notifier, Arc::clone(&counters))?;
        match passthrough {
            Some(prepared) if agreed.passthrough => {
                let device = prepared.try_out().map_err(not_passed)?;
                let notifier = greeted.notifier();
                answers.connect(answers::Kernel { device, notifier });
            }
            Some(_) => {
                let needs = "the kernel does not offer it (Linux 6.9 does, with FUSE_PASSTHROUGH)";
                without_passthrough(config.io, needs.to_owned())?;
            }
            None => {}
        }
        let io = if agreed.passthrough {
            Io::Passthrough
        } else {
            Io::Cached
        };
        let ring = match prepared {
            Some(prepared) if agreed.ring => {
                let serving = prepared.start(&answers, agreed.payload)?;
                if !serving.is_complete() {
                    without_ring(config.io_uring, "the kernel refused some of its queues");
                }
                Some(serving)
            }
            Some(_) => {
                let needs = "the kernel does not offer it (Linux 6.14 does, with Y in \
                             /sys/module/fuse/parameters/enable_uring)";
                without_ring(config.io_uring, needs);
                None
            }
            None => None,
        };
        Ok(Self {
            greeted,
            ring,
            io,
            counters,
            answers,
            device,
        })
    }

    /// A mount of the merged root, lying nowhere, of which the kernel keeps ACLs as of everything else; `outer` is the mount
    /// that `/dev/fuse` was opened for, and may then go. To be asked before [`Session::run`], while nobody else reaches the
    /// mount. EINVAL: `outer` must lie somewhere (Linux before 6.15).
    ///
    /// `Unsupported`: the configuration says no.
    pub fn enter(&self, outer: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        if !self.answers.config().own_root {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.answers.set_door(Door::Open);
        let entered = door::enter(&self.answers, &self.device, outer);
        self.answers.set_door(match entered {
            Ok(_) => Door::Behind,
            Err(_) => Door::None,
        });
        entered
    }

    /// What [`Session::enter`] found will not be used.
    #[cfg(test)]
    pub(crate) fn leave(&self) {
        self.answers.set_door(Door::None);
    }

    /// By what way data goes.
    pub fn io(&self) -> Io {
        self.io
    }

    /// By what requests come, save those that only `/dev/fuse` takes.
    pub fn transport(&self) -> Transport {
        match &self.ring {
            Some(ring) if ring.is_complete() => Transport::IoUring,
            _ => Transport::Device,
        }
    }

    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Serves until the mount is gone: unmounted by anyone, the last user of a lazily unmounted one gone, or aborted.
    pub fn run(self) -> io::Result<()> {
        let Self {
            greeted,
            ring,
            answers,
            device,
            ..
        } = self;
        let serve = move || {
            let served = device::serve(&answers, &device, answers.config().threads);
            drop(greeted);
            served
        };
        match ring {
            None => serve(),
            Some(ring) => ring.run(serve),
        }
    }
}

/// `None`: nobody asked, or it cannot be had and need not.
fn prepare_passthrough(
    engine: &Overlay,
    asked: IoMode,
    dev_fuse: &OwnedFd,
) -> io::Result<Option<passthrough::Prepared>> {
    if !matches!(asked, IoMode::Passthrough { .. }) {
        return Ok(None);
    }
    match passthrough::Prepared::new(engine, dev_fuse.try_clone()?) {
        Ok(prepared) => Ok(Some(prepared)),
        Err(why) => without_passthrough(asked, why).map(|()| None),
    }
}

/// An error where it was a condition.
fn without_passthrough(asked: IoMode, why: String) -> io::Result<()> {
    if asked == (IoMode::Passthrough { required: true }) {
        return Err(not_passed(why));
    }
    tracing::warn!("passthrough is not used: {why}");
    Ok(())
}

fn not_passed(why: String) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("io=passthrough cannot be had: {why}; io=cached can"),
    )
}

fn without_ring(asked: IoUring, why: &str) {
    let words = "io_uring is not used, /dev/fuse is";
    if asked == IoUring::On {
        tracing::warn!("{words}: {why}");
    } else {
        tracing::debug!("{words}: {why}");
    }
}
