//! `--merge kernel`: the kernel's overlayfs merges, and takes what is written; ovl serves what only it can read.
//!
//! Lowers that are all host directories are handed to overlayfs as they are, and no process stays behind. Otherwise a
//! FUSE mount that lies nowhere shows all lowers as one read-only tree, and overlayfs holds the only way to it: with the
//! overlay's last user the FUSE mount goes, and with it the daemon. The upper is prepared by the engine, so that what
//! it finds wrong with an upper is told in the same words, and the engine can read afterwards what the kernel wrote.
//!
//! Must never open anything on the mount it serves: it would wait for itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::MountSpec;
use super::bdi;
use super::error::{Error, Result};
use super::kernel::{self, Flags, Target};
use super::mountinfo::{self, MountInfo};
use super::overlayfs;
use super::spec::CheckedUpper;
use crate::fuse::{self, IoMode};
use crate::layer::{Identity, Layer, Permissions};
use crate::overlay::{Aufs, IdMap, Marks, Overlay, Stack, Xattrs};

/// Who merges the layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Merge {
    /// Our own engine, through FUSE.
    #[default]
    Fuse,
    /// The kernel's overlayfs.
    Kernel,
    /// The kernel's where it can do what is asked for and lets us, else ours. A mount that is there never says this.
    Auto,
}

/// An overlay of the kernel's, mounted.
pub struct KernelMount {
    pub info: MountInfo,
    /// What its lower is served by, if anything.
    pub server: Option<Server>,
}

/// Serves the lower until the overlay is gone.
pub struct Server {
    pub engine: Arc<Overlay>,
    pub counters: Arc<fuse::Counters>,
    pub transport: fuse::Transport,
    thread: JoinHandle<io::Result<()>>,
}

impl Server {
    /// Waits for the end.
    pub fn wait(self) -> io::Result<()> {
        let bug = |_| Err(io::Error::other("the serving thread met a bug"));
        self.thread.join().unwrap_or_else(bug)
    }
}

/// An error if the kernel is to merge and cannot do what else is asked for.
pub fn check(spec: &MountSpec) -> Result<()> {
    match only_engine(spec) {
        Some(what) if spec.merge == Merge::Kernel => Err(Error::Usage(format!(
            "{what} needs ovl's own merge: leave out merge=kernel, or say merge=auto"
        ))),
        _ => Ok(()),
    }
}

/// Is the kernel to merge, if it lets us? Without an upper our own mount is all there is to it.
pub fn wanted(spec: &MountSpec) -> bool {
    spec.merge != Merge::Fuse && spec.upper.is_some() && only_engine(spec).is_none()
}

/// The first thing asked for that the kernel's overlayfs does not do.
fn only_engine(spec: &MountSpec) -> Option<&'static str> {
    let asked = &spec.overlay;
    let kept = fuse::Config::default().entry_ttl;
    [
        (asked.ids != IdMap::default(), "mapping or squashing ids"),
        (asked.permissions != Permissions::Inode, "xattr_permissions"),
        (asked.ino32, "ino32_t"),
        (asked.static_nlink, "static_nlink"),
        (asked.xattrs == Xattrs::NoAcl, "noacl"),
        (asked.xattrs == Xattrs::Nothing, "noxattrs"),
        // What a volatile overlay does.
        (asked.no_fsync && !asked.volatile, "fsync=0"),
        (asked.aufs == Aufs::Write, "writing AUFS whiteouts"),
        // The upper may be one that an archive with such names was unpacked to.
        (
            asked.aufs == Aufs::Read && spec.merge == Merge::Auto,
            "reading AUFS whiteouts",
        ),
        (spec.fuse.entry_ttl != kept, "timeout"),
        (!spec.fuse.writeback, "writeback=0"),
        // What is written goes by the kernel alone as it is, and what is left to serve is in the store.
        (
            spec.fuse.io == IoMode::Passthrough { required: true },
            "io=passthrough",
        ),
    ]
    .into_iter()
    .find_map(|(asked, what)| asked.then_some(what))
}

/// Has the kernel merge. `prepared` is an engine on the very layers and upper, which ends here. `Ok(None)`: the kernel will
/// not, and `auto` was said.
pub fn mount(
    spec: &MountSpec,
    id: &str,
    target: &Target,
    layers: &[Arc<dyn Layer>],
    upper: &CheckedUpper,
    prepared: Overlay,
) -> Result<Option<KernelMount>> {
    let mounted = try_mount(spec, id, target, layers, upper, prepared);
    match mounted {
        Err(error) if spec.merge == Merge::Auto => {
            tracing::debug!(%error, "the kernel does not merge this");
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn try_mount(
    spec: &MountSpec,
    id: &str,
    target: &Target,
    layers: &[Arc<dyn Layer>],
    upper: &CheckedUpper,
    prepared: Overlay,
) -> Result<KernelMount> {
    let far = layers
        .iter()
        .any(|layer| matches!(layer.identity(), Identity::Stored { .. }));
    let marks = prepared.marks().unwrap_or(Marks::Trusted);
    if let Some(why) = unreadable(spec, &prepared, marks, far, upper) {
        return Err(target.refused(why));
    }
    prepared.shutdown();
    drop(prepared);
    // One that is empty may have been made for another upper, which the kernel minds.
    let _ = std::fs::remove_dir(upper.work.join("index"));
    let open = |path: &Path| mountinfo::open_path(path).map_err(|e| Error::io("opening", path, e));
    let (upper_fd, work_fd) = (open(&upper.upper)?, open(&upper.work)?);
    let job = Job {
        target,
        flags: &spec.flags,
        upper: &upper_fd,
        work: &work_fd,
        work_path: &upper.work,
        // What a FUSE mount shows has no handles, by which the kernel would keep the names of a file together.
        words: overlayfs::words(&spec.overlay, marks, !far, far),
        without_index: overlayfs::words(&spec.overlay, marks, false, far),
    };
    if far {
        return over_fuse(spec, id, &job, layers, marks);
    }
    let mut lowers = Vec::new();
    for path in spec.lowers.iter().filter_map(|lower| match lower {
        super::Lower::Dir(path) => Some(path),
        super::Lower::Image(_) => None,
    }) {
        lowers.push(open(path)?);
    }
    let mounted = job.mount(&lowers);
    Ok(KernelMount {
        info: job.identified(mounted)?,
        server: None,
    })
}

/// What the upper holds that the kernel would show otherwise than the engine does, in words for people.
fn unreadable(
    spec: &MountSpec,
    upper: &Overlay,
    marks: Marks,
    far: bool,
    dirs: &CheckedUpper,
) -> Option<String> {
    let index = if far {
        upper.has_index()
    } else {
        upper.has_own_index()
    };
    if index {
        return Some(
            "hard-linked files of the lowers were changed with ovl's own merge, which the kernel's cannot show: \
             mount with --merge fuse"
                .into(),
        );
    }
    if marks == Marks::User && spec.overlay.metacopy {
        return Some("metacopy=on needs trusted.* xattrs with --merge kernel".into());
    }
    if marks == Marks::User && holds_redirect(&dirs.upper) {
        return Some(
            "directories of the lowers were renamed with ovl's own merge, which the kernel's follows only with \
             privileges: mount with --merge fuse"
                .into(),
        );
    }
    None
}

/// Is there a directory in the upper that shows a lower one from elsewhere?
fn holds_redirect(upper: &Path) -> bool {
    let mut value = [0_u8; 1];
    let mut dirs = vec![upper.to_owned()];
    while let Some(dir) = dirs.pop() {
        let found = rustix::fs::lgetxattr(&dir, "user.overlay.redirect", &mut value[..]);
        if matches!(found, Ok(_) | Err(Errno::RANGE)) {
            return true;
        }
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        dirs.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    false
}

/// An overlay to be made, but for its lowers.
struct Job<'a> {
    target: &'a Target,
    flags: &'a Flags,
    upper: &'a OwnedFd,
    work: &'a OwnedFd,
    work_path: &'a Path,
    words: Vec<overlayfs::Word>,
    without_index: Vec<overlayfs::Word>,
}

impl Job<'_> {
    fn mount(&self, lowers: &[OwnedFd]) -> std::result::Result<mountinfo::MountId, Errno> {
        let layers = overlayfs::Layers {
            lowers: lowers.iter().map(AsFd::as_fd).collect(),
            upper: self.upper.as_fd(),
            work: self.work.as_fd(),
        };
        let mark = self.work_path.join("work/incompat");
        let attempt = |words: &[overlayfs::Word]| {
            let was_marked = mark.exists();
            overlayfs::mount(self.target, self.flags, &layers, words).inspect_err(|_| {
                // The mark of a volatile mount that did not come to be.
                if !was_marked {
                    let _ = std::fs::remove_dir_all(&mark);
                }
            })
        };
        match attempt(&self.words) {
            // An index belongs to the lowers it was made over; without it names of one file part when it is changed.
            Err(errno @ (Errno::STALE | Errno::OPNOTSUPP)) if self.index_is_empty() => {
                attempt(&self.without_index).map_err(|_| errno)
            }
            outcome => outcome,
        }
    }

    fn index_is_empty(&self) -> bool {
        let entry = |entry: io::Result<std::fs::DirEntry>| {
            // Those that begin so the kernel is only making.
            entry.is_ok_and(|entry| !entry.file_name().as_bytes().starts_with(b"#"))
        };
        std::fs::read_dir(self.work_path.join("index")).map_or(true, |mut all| !all.any(entry))
    }

    fn identified(
        &self,
        mounted: std::result::Result<mountinfo::MountId, Errno>,
    ) -> Result<MountInfo> {
        let id = mounted.map_err(|errno| {
            let why = io::Error::from(errno);
            self.target.refused(match errno {
                Errno::PERM => format!("--merge kernel needs root or a user namespace: {why}"),
                Errno::NODEV => format!("this kernel has no overlayfs: {why}"),
                _ => format!(
                    "the kernel's overlayfs refuses: {why} (dmesg tells more); --merge fuse may do"
                ),
            })
        })?;
        match mountinfo::by_id(id) {
            Ok(Some(info)) => Ok(info),
            Ok(None) => Err(self.target.refused("the mount vanished at once")),
            Err(e) => Err(Error::io("reading", Path::new("/proc/self/mountinfo"), e)),
        }
    }
}

fn over_fuse(
    spec: &MountSpec,
    id: &str,
    job: &Job<'_>,
    layers: &[Arc<dyn Layer>],
    marks: Marks,
) -> Result<KernelMount> {
    let failed = |errno: Errno| job.identified(Err(errno)).err();
    let refuse =
        |errno| failed(errno).unwrap_or_else(|| Error::io("mounting on", job.target.path(), errno));
    let device = kernel::open_device().map_err(refuse)?;
    // Only overlayfs will reach it, as us.
    let flags = Flags {
        source: spec.flags.source.clone(),
        read_only: true,
        suid: true,
        dev: true,
        exec: true,
        atime: false,
        allow_other: true,
    };
    let lower = kernel::unattached(&flags, device.as_fd()).map_err(refuse)?;
    let stack = Stack {
        lowers: layers.to_vec(),
        upper: None,
    };
    let mut options = spec.overlay.clone();
    options.volatile = false;
    options.beneath = Some(marks);
    let engine = Arc::new(Overlay::new(stack, &options)?);
    let here = |e: io::Error| Error::io("serving the lowers of", job.target.path(), e);
    let transport = fuse::Config {
        no_handles: true,
        io: IoMode::Cached,
        ..spec.fuse.clone()
    };
    let session = fuse::Session::start(Arc::clone(&engine), device, &transport).map_err(here)?;
    let (counters, by) = (session.counters(), session.transport());
    // Overlayfs asks before it is mounted.
    let thread = std::thread::Builder::new()
        .name("ovl-serve".into())
        .spawn(move || session.run())
        .map_err(here)?;
    let server = Server {
        engine,
        counters,
        transport: by,
        thread,
    };
    bdi::raise_limits_of(lower.as_fd());
    let lowers = [lower];
    let mounted = job.mount(&lowers).or_else(|errno| match errno {
        // Linux before 6.15 takes only what lies somewhere.
        Errno::INVAL => {
            let place = spec.run_dir.path().join(format!("lower-{id}"));
            kernel::while_at(&place, &lowers[0], || Ok(job.mount(&lowers)?))
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
        errno => Err(errno),
    });
    // With this our own way to it is gone: the overlay's is the last.
    drop(lowers);
    match job.identified(mounted) {
        Ok(info) => Ok(KernelMount {
            info,
            server: Some(server),
        }),
        Err(error) => {
            let _ = server.wait();
            Err(error)
        }
    }
}

/// Takes the mark of a volatile overlay off that has come to its end, once its upper is on disk.
pub fn end_volatile(work: &Path) {
    let mark = work.join("work/incompat");
    let done = std::fs::File::open(work)
        .and_then(|dir| Ok(rustix::fs::syncfs(&dir)?))
        .and_then(|()| std::fs::remove_dir_all(&mark));
    if let Err(error) = done {
        tracing::warn!(%error, path = %mark.display(), "the upper stays marked as incomplete");
    }
}
