//! One mount from layers to the last request, in the process that serves it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::bdi;
use super::error::{Error, Result};
use super::kernel::{self, Mount, Target};
use super::kernel_merge::{self, Merge};
use super::mountinfo::{self, MountKey};
use super::process::Process;
use super::registry::{self, EscapedPath, Record, RecordedLower, RunDir};
use super::spec::{self, CheckedUpper, Lower};
use super::{MountSpec, signals};
use crate::fuse;
use crate::layer::{DirLayer, Layer, StoredLayer};
use crate::overlay::{self, Overlay, Stack, UpperDirs};
use crate::store::{Digest, Lease, Store};

/// How long a mount waits for the daemon before it on the same upper, unmounted already, to finish.
const HANDOVER: Duration = Duration::from_secs(10);

/// The lowers, opened.
struct Opened {
    layers: Vec<Arc<dyn Layer>>,
    recorded: Vec<RecordedLower>,
    /// Host directories among them, without symlinks.
    dirs: Vec<PathBuf>,
    /// Keeps gc from the stored layers.
    lease: Option<Lease>,
}

/// Mounts and serves until the mount is gone. `ready` is called once it is visible.
pub fn serve(
    spec: &MountSpec,
    id: &str,
    log: Option<&Path>,
    ready: impl FnOnce(&Record) -> io::Result<()>,
) -> Result<()> {
    let here = |e: io::Error| Error::io("preparing the mount on", &spec.mount_point, e);
    kernel_merge::check(spec)?;
    let signals = signals::block().map_err(here)?;
    raise_limits();
    // The engine gives every object its mode itself.
    rustix::process::umask(Mode::empty());

    let target = Target::open(&spec.mount_point)?;
    let opened = open_lowers(spec)?;
    let upper = match &spec.upper {
        Some(upper) => Some(spec::check_upper(upper, &opened.dirs)?),
        None => None,
    };
    let lock = match &upper {
        Some(dirs) => Some(lock(dirs, &spec.run_dir)?),
        None => None,
    };
    let made = match by_kernel(spec, id, &target, &opened, upper.as_ref())? {
        Some(made) => made,
        None => by_engine(spec, id, &target, &opened, upper.as_ref())?,
    };
    let Made {
        flags,
        key,
        mount,
        merge,
        engine,
        counters,
        transport,
        io,
        serve,
    } = made;
    // Here the engine, which locks it for itself, is not on the work directory.
    let work_lock = match (&upper, merge) {
        (Some(dirs), Merge::Kernel) => Some(lock_dir(&dirs.work, &spec.run_dir)?),
        _ => None,
    };
    // The directory below the mount is nobody's concern any more: an open one would keep its file system busy.
    let mount_point = target.path().to_owned();
    drop(target);

    let daemon = match &serve {
        Some(_) => Process::current().map_err(here)?,
        None => Process::nobody(),
    };
    let alone = serve.is_none();
    let record = Record {
        id: id.to_owned(),
        daemon,
        merge,
        namespace: mountinfo::namespace_of("self"),
        mount_point: EscapedPath(mount_point.clone()),
        mount: key,
        lowers: opened.recorded,
        upper: upper.as_ref().map(|u| EscapedPath(u.upper.clone())),
        work: upper.as_ref().map(|u| EscapedPath(u.work.clone())),
        read_only: flags.read_only,
        options: spec.describe(),
        engine: spec.overlay.clone(),
        store_root: EscapedPath(spec.store_root.clone()),
        transport,
        io,
        started: crate::meta::Timestamp::now().secs,
        log: log
            .filter(|_| !alone)
            .map(|path| EscapedPath(path.to_owned())),
        panics: 0,
    };
    if let Err(error) = spec.run_dir.write(&record) {
        // The mount can be used and unmounted all the same.
        tracing::warn!(%error, "the mount is not listed");
    }
    // A log of the caller's choice is the caller's.
    let own_log = log.filter(|_| spec.log_file.is_none()).map(Path::to_owned);
    let Some(serve) = serve else {
        ready(&record).map_err(here)?;
        mount.keep();
        if let Some(log) = own_log {
            drop_empty_log(&log);
        }
        return Ok(());
    };
    let cleanup = {
        let (engine, run) = (engine.clone(), spec.run_dir.clone());
        let id = record.id.clone();
        move || {
            // First: whoever wants the upper next sees from it that this mount is on its way out.
            let _ = run.remove(&id);
            if let Some(engine) = &engine {
                engine.shutdown();
            }
            if let Some(log) = own_log {
                drop_empty_log(&log);
            }
        }
    };
    tell_of_panics(&counters, &record, &spec.run_dir);
    let counters = {
        let engine = engine.clone();
        move || {
            format!(
                "# NODES: {}\n# REQUESTS: {}\n# ERRORS: {}\n# PANICS: {}\n",
                engine.as_ref().map_or(0, |engine| engine.node_count()),
                counters.requests(),
                counters.errors(),
                counters.panics()
            )
        }
    };
    let outcome = signals::watch(signals, key, cleanup.clone(), counters)
        .and_then(|()| ready(&record))
        .and_then(|()| {
            mount.keep();
            serve()
        });
    if let (Some(dirs), Merge::Kernel, true) = (&upper, merge, spec.overlay.volatile)
        && !spec.overlay.no_fsync
        && matches!(key.find(), Ok(None))
    {
        kernel_merge::end_volatile(&dirs.work);
    }
    cleanup();
    drop((lock, work_lock, opened.lease));
    outcome.map_err(|e| Error::io("serving the mount on", &mount_point, e))
}

/// Each panic is told in the list of mounts, besides the log.
fn tell_of_panics(counters: &fuse::Counters, record: &Record, run: &RunDir) {
    let (told, run) = (Mutex::new(record.clone()), run.clone());
    counters.on_panic(move |panics| {
        let mut record = told.lock().unwrap_or_else(PoisonError::into_inner);
        record.panics = record.panics.max(panics);
        if let Err(error) = run.write(&record) {
            tracing::warn!(%error, "the list of mounts does not tell of the bug");
        }
    });
}

/// A mount just made, not yet told of.
struct Made {
    flags: kernel::Flags,
    key: MountKey,
    mount: Unmounter,
    merge: Merge,
    /// What answers requests, if any come.
    engine: Option<Arc<Overlay>>,
    counters: Arc<fuse::Counters>,
    transport: fuse::Transport,
    io: fuse::Io,
    /// Serves it until it is gone. `None`: nobody has to.
    serve: Option<Box<dyn FnOnce() -> io::Result<()>>>,
}

/// An engine on the layers, with a new upper's root like that of the lowers.
fn engine(
    opened: &Opened,
    upper: Option<&CheckedUpper>,
    options: &overlay::Options,
) -> Result<Overlay> {
    let stack = Stack {
        lowers: opened.layers.clone(),
        upper: upper.map(|dirs| UpperDirs {
            upper: dirs.upper.clone(),
            work: dirs.work.clone(),
        }),
    };
    let engine = Overlay::new(stack, options)?;
    if let Some(dirs) = upper.filter(|dirs| dirs.fresh) {
        engine
            .dress_root()
            .map_err(|e| Error::io("giving the lowers' attributes to", &dirs.upper, e))?;
    }
    Ok(engine)
}

fn by_engine(
    spec: &MountSpec,
    id: &str,
    target: &Target,
    opened: &Opened,
    upper: Option<&CheckedUpper>,
) -> Result<Made> {
    let engine = Arc::new(engine(opened, upper, &spec.overlay)?);
    let mut flags = spec.flags.clone();
    flags.read_only |= engine.is_read_only();
    let kernel::Mounted { device, mount } = kernel::mount(target, &flags)?;
    let lying = |info: &mountinfo::MountInfo| Unmounter(MountKey::of(info));
    let unmounter = match &mount {
        Mount::Free(_) => None,
        Mount::Lying(info) => Some(lying(info)),
    };
    let transport = fuse::Config {
        writeback: spec.fuse.writeback && may_give_away(),
        ..spec.fuse.clone()
    };
    let session = fuse::Session::start(Arc::clone(&engine), device, &transport)
        .map_err(|e| Error::io("preparing the mount on", &spec.mount_point, e))?;
    let info = match mount {
        Mount::Free(outer) => {
            let aside = spec.run_dir.path().join(format!("outer-{id}"));
            kernel::place(target, outer, &aside, |outer| session.enter(outer))?
        }
        Mount::Lying(info) => info,
    };
    bdi::raise_limits(info.major, info.minor);
    Ok(Made {
        flags,
        key: MountKey::of(&info),
        mount: unmounter.unwrap_or_else(|| lying(&info)),
        merge: Merge::Fuse,
        engine: Some(engine),
        counters: session.counters(),
        transport: session.transport(),
        io: session.io(),
        serve: Some(Box::new(|| session.run())),
    })
}

/// May this process make a copy of somebody else's file? Where it may not, a write to one must fail at once: under write-back
/// the kernel would take it, and only fsync would tell that it is lost.
fn may_give_away() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::CHOWN))
}

/// `None`: the kernel is not to merge, or will not.
fn by_kernel(
    spec: &MountSpec,
    id: &str,
    target: &Target,
    opened: &Opened,
    upper: Option<&CheckedUpper>,
) -> Result<Option<Made>> {
    let Some(dirs) = upper.filter(|_| kernel_merge::wanted(spec)) else {
        return Ok(None);
    };
    // Overlayfs puts that mark itself, and refuses where it is already.
    let unmarked = overlay::Options {
        volatile: false,
        ..spec.overlay.clone()
    };
    let prepared = engine(opened, upper, &unmarked)?;
    let mounted = kernel_merge::mount(spec, id, target, &opened.layers, dirs, prepared)?;
    let Some(mounted) = mounted else {
        return Ok(None);
    };
    let key = MountKey::of(&mounted.info);
    let mount = Unmounter(key);
    let (engine, counters, transport) = match &mounted.server {
        Some(server) => (
            Some(Arc::clone(&server.engine)),
            Arc::clone(&server.counters),
            server.transport,
        ),
        None => (None, Arc::default(), fuse::Transport::default()),
    };
    let serve: Option<Box<dyn FnOnce() -> io::Result<()>>> = match mounted.server {
        Some(server) => Some(Box::new(|| server.wait())),
        None if spec.foreground => Some(Box::new(move || key.wait_gone())),
        None => None,
    };
    Ok(Some(Made {
        flags: spec.flags.clone(),
        key,
        mount,
        merge: Merge::Kernel,
        engine,
        counters,
        transport,
        io: fuse::Io::Cached,
        serve,
    }))
}

/// Takes a mount away again that could not be brought into service.
struct Unmounter(MountKey);

impl Unmounter {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unmounter {
    fn drop(&mut self) {
        // Lazily: nobody serves it, so nobody may be waited for.
        if let Err(error) = kernel::unmount(&self.0, true) {
            tracing::warn!(%error, "a mount that failed to start could not be taken away");
        }
    }
}

pub fn drop_empty_log(log: &Path) {
    if std::fs::metadata(log).is_ok_and(|meta| meta.is_file() && meta.len() == 0) {
        let _ = std::fs::remove_file(log);
    }
}

/// Lifts soft limits to the hard ones: of open files, since directories and open files each take one; and of file sizes,
/// since the kernel holds each writer to its own, and ours would be everybody's.
fn raise_limits() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    for resource in [Resource::Nofile, Resource::Fsize] {
        let mut limit = getrlimit(resource);
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(resource, limit) {
            tracing::debug!(?resource, %error, "a limit stays");
        }
    }
    crate::sys::ignore_sigxfsz();
}

fn open_lowers(spec: &MountSpec) -> Result<Opened> {
    if spec.lowers.is_empty() {
        return Err(Error::Usage("no lower directory and no image given".into()));
    }
    let mut opened = Opened {
        layers: Vec::new(),
        recorded: Vec::new(),
        dirs: Vec::new(),
        lease: None,
    };
    let mut store = None;
    let mut leased = Vec::new();
    for lower in &spec.lowers {
        match lower {
            Lower::Dir(path) => {
                let real = spec::check_lower(path)?;
                let layer = DirLayer::open_with(&real, spec.overlay.permissions)
                    .map_err(|e| Error::io("opening lower directory", path, e))?;
                opened.layers.push(Arc::new(layer));
                opened
                    .recorded
                    .push(RecordedLower::Dir(EscapedPath(path.clone())));
                opened.dirs.push(real);
            }
            Lower::Image(reference) => {
                if store.is_none() {
                    store = Store::open_existing(&spec.store_root)?;
                }
                let no_such = || Error::NoSuchLower {
                    lower: reference.clone(),
                };
                let store = store.as_ref().ok_or_else(no_such)?;
                let in_image = |source| Error::Image {
                    reference: reference.clone(),
                    source,
                };
                let manifest = (spec.resolve_image)(store, reference)
                    .map_err(in_image)?
                    .ok_or_else(no_such)?;
                let image = store
                    .image(&manifest)
                    .map_err(in_image)?
                    .ok_or_else(no_such)?;
                for diff_id in image.layers.iter().rev() {
                    let reader = store.open_layer(diff_id).map_err(in_image)?;
                    opened.layers.push(Arc::new(StoredLayer::new(reader)));
                }
                opened.recorded.push(RecordedLower::Image {
                    reference: reference.clone(),
                    manifest: manifest.to_string(),
                    layers: image.layers.iter().map(Digest::to_string).collect(),
                });
                leased.extend(image.layers);
            }
        }
    }
    if let (Some(store), false) = (&store, leased.is_empty()) {
        leased.sort_unstable();
        leased.dedup();
        let purpose = format!("mount {}", spec.mount_point.display());
        opened.lease = Some(store.lease(&leased, &purpose)?);
    }
    Ok(opened)
}

/// Keeps other mounts off the upper for as long as the file is open, also through `kill -9`. The work directory is the
/// engine's to lock, which does not wait: that it can be had is found out here.
fn lock(dirs: &CheckedUpper, run: &RunDir) -> Result<OwnedFd> {
    let upper = lock_dir(&dirs.upper, run)?;
    drop(lock_dir(&dirs.work, run)?);
    Ok(upper)
}

fn lock_dir(dir: &Path, run: &RunDir) -> Result<OwnedFd> {
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd =
        rustix::fs::open(dir, open, Mode::empty()).map_err(|e| Error::io("opening", dir, e))?;
    let deadline = Instant::now() + HANDOVER;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => match user_of(dir, run) {
                // The kernel's overlayfs takes no lock that we would see.
                Some(record) if record.merge == Merge::Kernel && record.is_mounted() => {
                    return Err(in_use(dir, Some(&record)));
                }
                _ => return Ok(fd),
            },
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(e) => return Err(Error::io("locking", dir, e)),
        }
        // The mount before this one may be gone already and its daemon on its way out.
        let user = user_of(dir, run);
        let leaving = user
            .as_ref()
            .is_none_or(|r| r.mount.find().is_ok_and(|m| m.is_none()));
        if !leaving || Instant::now() > deadline {
            return Err(in_use(dir, user.as_ref()));
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// The listed mount that has `dir` for its upper or work directory.
fn user_of(dir: &Path, run: &RunDir) -> Option<Record> {
    let uses = |record: &Record| {
        [&record.upper, &record.work]
            .into_iter()
            .flatten()
            .any(|path| path.0 == dir)
    };
    run.live().ok()?.into_iter().find(uses)
}

fn in_use(dir: &Path, by: Option<&Record>) -> Error {
    let words = |record: &Record| match record.daemon.is_nobody() {
        true => format!("on {}", record.mount_point.0.display()),
        false => format!(
            "on {}, pid {}",
            record.mount_point.0.display(),
            record.daemon.pid
        ),
    };
    Error::UpperInUse {
        path: dir.to_owned(),
        by: by.map(words),
    }
}

/// Makes sure that a path on the command line means the same after the daemon has gone to `/`.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("understanding", path, e))
}

/// A log file of the caller's must exist before anything else happens: an unwritable one is an error, not silence.
pub fn touch_log(path: &Path) -> Result<()> {
    File::options()
        .append(true)
        .create(true)
        .open(path)
        .map(drop)
        .map_err(|e| Error::io("opening the log", path, e))
}

/// A name for the mount to be.
pub fn new_id() -> Result<String> {
    registry::new_id().map_err(|e| Error::io("reading", Path::new("/dev/urandom"), e))
}
