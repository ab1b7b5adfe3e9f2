//! Mount lifecycle: from words to a served mount, the list of live mounts, and back down again.
//!
//! | file | holds |
//! |---|---|
//! | `spec` | what LOWER means; checks of upper and work directory |
//! | `dropin` | the command line of fuse-overlayfs |
//! | `options`, `apply` | the `-o` words of fuse-overlayfs and mount(8), and what they mean for a mount |
//! | `kernel` | the mount step itself, and unmounting by mount id |
//! | `kernel_merge`, `overlayfs` | mounts that the kernel's overlayfs merges |
//! | `mountinfo`, `process` | naming a mount and a process so that neither is taken for another |
//! | `serve` | layers, engine, mount, requests, in that order, in one process |
//! | `daemon`, `signals` | going into the background; being told to end |
//! | `registry`, `holders`, `unmount` | live mounts, who uses one, taking one down |
//!
//! Invariants:
//! - What is unmounted is the mount meant, known by its ids, never whatever lies at a path now.
//! - A daemon forks before it has threads, opens the store or mounts; it keeps nothing of its caller's open.
//! - The caller of a daemon returns when the mount is visible to it, or knows why it is not; a failed mount leaves
//!   nothing mounted and no record.
//! - Two live mounts never share an upper or work directory.

mod apply;
mod bdi;
mod daemon;
pub mod dropin;
mod error;
mod holders;
mod kernel;
mod kernel_merge;
mod mountinfo;
pub mod options;
mod overlayfs;
mod process;
mod registry;
mod serve;
mod signals;
mod spec;
mod unmount;

use std::io;
use std::path::{Path, PathBuf};

pub use error::{Error, Result};
pub use holders::Holder;
pub use kernel::Flags;
pub use kernel_merge::Merge;
pub use mountinfo::{MountId, MountKey};
pub use process::Process;
pub use registry::{EscapedPath, Record, RecordedLower, RunDir};
pub use spec::{Lower, UpperSpec, parse_lowers};
pub use unmount::{How, unmount};

use crate::fuse;
use crate::overlay;
use crate::store::{self, Digest, Store};

/// Finds the image a reference names. What references mean (`alpine` is `docker.io/library/alpine:latest`) is the image
/// room's to know; see [`exact_name`].
pub type ResolveImage = fn(&Store, &str) -> store::Result<Option<Digest>>;

/// Takes a reference for a name of the store as it stands, or a manifest digest.
pub fn exact_name(store: &Store, reference: &str) -> store::Result<Option<Digest>> {
    match reference.parse() {
        Ok(digest) => Ok(Some(digest)),
        Err(_) => store.resolve_name(reference),
    }
}

/// A mount to be made.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// Topmost first.
    pub lowers: Vec<Lower>,
    /// `None`: read-only.
    pub upper: Option<UpperSpec>,
    pub mount_point: PathBuf,
    /// Where images are; opened only when a lower is one.
    pub store_root: PathBuf,
    pub resolve_image: ResolveImage,
    pub merge: Merge,
    pub run_dir: RunDir,
    pub flags: Flags,
    pub fuse: fuse::Config,
    pub overlay: overlay::Options,
    /// Stay in the foreground and in this process.
    pub foreground: bool,
    /// Where the daemon's words go; `None`: `RUN/log/ID.log`, deleted at the end when empty.
    pub log_file: Option<PathBuf>,
}

impl MountSpec {
    /// Options of a mount that differ from the default, for people.
    fn describe(&self) -> Vec<String> {
        let defaults = fuse::Config::default();
        let mut words = Vec::new();
        for (set, word) in [
            (self.overlay.volatile, "volatile"),
            (self.overlay.no_fsync, "fsync=0"),
            (self.overlay.userxattr == Some(true), "userxattr"),
            (self.overlay.metacopy, "metacopy=on"),
            (
                self.overlay.redirect == overlay::Redirect::All,
                "redirect_dir=on",
            ),
            (
                self.overlay.redirect == overlay::Redirect::Off,
                "redirect_dir=off",
            ),
            (
                self.overlay.redirect == overlay::Redirect::Ignore,
                "redirect_dir=nofollow",
            ),
            (self.overlay.ino32, "ino32_t"),
            (self.overlay.static_nlink, "static_nlink"),
            (self.overlay.xattrs == overlay::Xattrs::NoAcl, "noacl"),
            (self.overlay.xattrs == overlay::Xattrs::Nothing, "noxattrs"),
            (
                self.overlay.permissions != crate::layer::Permissions::Inode,
                "xattr_permissions",
            ),
            (self.overlay.ids != overlay::IdMap::default(), "id mapping"),
            (self.flags.allow_other, "allow_other"),
            (!self.flags.suid, "nosuid"),
            (!self.flags.dev, "nodev"),
            (!self.flags.exec, "noexec"),
            (!self.fuse.writeback, "writeback=0"),
            (!self.fuse.no_open, "open"),
        ] {
            if set {
                words.push(word.to_owned());
            }
        }
        if self.fuse.entry_ttl != defaults.entry_ttl {
            words.push(format!("timeout={}", self.fuse.entry_ttl.as_secs_f64()));
        }
        words
    }

    fn with_absolute_paths(&self) -> Result<Self> {
        let mut spec = self.clone();
        for lower in &mut spec.lowers {
            if let Lower::Dir(path) = lower {
                *path = serve::absolute(path)?;
            }
        }
        if let Some(upper) = &mut spec.upper {
            upper.upper = serve::absolute(&upper.upper)?;
            if let Some(work) = &mut upper.work {
                *work = serve::absolute(work)?;
            }
        }
        spec.mount_point = serve::absolute(&spec.mount_point)?;
        spec.store_root = serve::absolute(&spec.store_root)?;
        if let Some(log) = &mut spec.log_file {
            *log = serve::absolute(log)?;
        }
        Ok(spec)
    }
}

/// Makes a mount. In the background (needs a process without threads): returns once it is visible. In the foreground:
/// calls `visible` then, and returns when the mount is gone.
pub fn run(spec: &MountSpec, visible: impl FnOnce(&Record)) -> Result<()> {
    let spec = spec.with_absolute_paths()?;
    let id = serve::new_id()?;
    if spec.foreground {
        return serve::serve(&spec, &id, None, |record| {
            visible(record);
            Ok(())
        });
    }
    let log = match &spec.log_file {
        Some(path) => {
            serve::touch_log(path)?;
            path.clone()
        }
        None => spec.run_dir.log_file(&id),
    };
    let own_log = spec.log_file.is_none().then_some(log.as_path());
    let launched = daemon::launch(&log, |ready| {
        serve::serve(&spec, &id, Some(&log), |record| ready.announce(record))
    });
    match launched {
        Ok(record) => {
            visible(&record);
            Ok(())
        }
        Err(error) => {
            if let Some(log) = own_log {
                serve::drop_empty_log(log);
            }
            Err(error)
        }
    }
}

/// Live mounts, oldest first.
pub fn list(run_dir: &RunDir) -> io::Result<Vec<Record>> {
    run_dir.live()
}

/// The live mount called `name`: its id, or a path that leads to its root.
pub fn find(run_dir: &RunDir, name: &Path) -> io::Result<Option<Record>> {
    run_dir.find_mount(name)
}
