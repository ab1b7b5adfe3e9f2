//! `ovl mount`: an image, or directories, writable at a mount point.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ovl::mount::{self, Flags, Lower, Merge, MountSpec, UpperSpec};
use ovl::{fuse, overlay};

use super::error::Failure;
use super::{Context, find};

/// Mount an image, or directories, writable
///
/// LOWER is an image, or a directory, or several joined by `:`, the topmost first; `image:` and `dir:` before it settle
/// doubt. Several LOWERs are stacked, the first on top. Changes go to the directory UPPER, which is made if its parent is
/// there. The mount is a process of its own; `ovl umount` ends it.
#[derive(Args)]
#[command(
    override_usage = "ovl mount [OPTIONS] LOWER... UPPER MOUNTPOINT\n       ovl mount [OPTIONS] --read-only LOWER... MOUNTPOINT"
)]
pub struct Mount {
    /// LOWER... UPPER MOUNTPOINT, without UPPER if read-only
    #[arg(required = true, num_args = 2.., value_name = "LOWER UPPER MOUNTPOINT")]
    words: Vec<OsString>,
    /// Mount without an upper directory: nothing can be changed
    #[arg(short, long, conflicts_with_all = ["workdir", "volatile"])]
    read_only: bool,
    /// Of an image of several platforms, mount the one for this
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Work directory, on the file system of UPPER [default: .NAME.ovl-work beside it]
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Let fsync do nothing: faster, and UPPER is worthless after a crash
    #[arg(long)]
    volatile: bool,
    /// Who merges: fuse (ovl itself), kernel (its overlayfs: native speed for changes; needs root or a user namespace), or auto
    /// (the kernel where that works)
    #[arg(long, value_enum, value_name = "WHO", hide_possible_values = true)]
    merge: Option<Who>,
    /// By what way data goes: cached (the default: files are opened without asking ovl), passthrough (the kernel reads and writes
    /// files of the upper itself: native speed for few, large files; every open takes longer; needs root), or auto (cached)
    #[arg(long, value_enum, value_name = "WAY", hide_possible_values = true)]
    io: Option<Way>,
    /// Stay in the foreground, until unmounted or SIGTERM
    #[arg(short, long)]
    foreground: bool,
    /// Options of mount(8), the kernel's overlayfs and fuse-overlayfs, joined by commas: ro, nosuid, nodev, noexec, atime,
    /// allow_other, workdir=DIR, volatile, metacopy=on, redirect_dir=on|follow|off|nofollow, userxattr, uidmapping=…,
    /// gidmapping=…, squash_to_root, squash_to_uid=N, squash_to_gid=N, xattr_permissions=1|2, static_nlink, ino32_t, timeout=SECONDS,
    /// writeback=0, fsname=NAME, merge=fuse|kernel|auto, io=cached|passthrough|auto, io_uring=on|auto
    #[arg(short, long, value_name = "OPTION,…")]
    options: Vec<OsString>,
}

/// [`Merge`] on the command line.
#[derive(Clone, Copy, ValueEnum)]
pub enum Who {
    Fuse,
    Kernel,
    Auto,
}

impl From<Who> for Merge {
    fn from(who: Who) -> Self {
        match who {
            Who::Fuse => Self::Fuse,
            Who::Kernel => Self::Kernel,
            Who::Auto => Self::Auto,
        }
    }
}

/// [`fuse::IoMode`] on the command line.
#[derive(Clone, Copy, ValueEnum)]
enum Way {
    Cached,
    Passthrough,
    Auto,
}

impl From<Way> for fuse::IoMode {
    fn from(way: Way) -> Self {
        match way {
            Way::Cached => Self::Cached,
            Way::Passthrough => Self::Passthrough { required: true },
            Way::Auto => Self::Auto,
        }
    }
}

impl Mount {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let spec = self.spec(context)?;
        Ok(mount::run(&spec, |_| ())?)
    }

    fn spec(mut self, context: &Context) -> anyhow::Result<MountSpec> {
        let parsed = mount::options::parse(&self.options)?;
        for warning in &parsed.warnings {
            tracing::warn!("{warning}");
        }
        let words = parsed.options;
        if !words.lowers.is_empty() || words.upper.is_some() {
            return Err(Failure::usage(
                "-o lowerdir and upperdir are not for this command: give directories as LOWER and UPPER",
            ));
        }
        let missing = || {
            Failure::usage(
                "mount wants LOWER, UPPER and a mount point, or --read-only with LOWER and a mount point",
            )
        };
        let mount_point = self.words.pop().ok_or_else(missing)?;
        let upper = match self.read_only || words.read_only {
            true => None,
            false => Some(UpperSpec {
                upper: self.words.pop().ok_or_else(missing)?.into(),
                work: self.workdir.or_else(|| words.work.clone()),
                create: true,
            }),
        };
        if self.words.is_empty() {
            return Err(missing());
        }
        let mut lowers: Vec<Lower> = Vec::new();
        for word in &self.words {
            lowers.extend(mount::parse_lowers(word)?);
        }
        if let Some(platform) = &self.platform {
            let platform = platform.parse()?;
            for lower in &mut lowers {
                if let Lower::Image(words) = lower {
                    *words = context.find_for(words, &platform)?;
                }
            }
        }
        let mut spec = MountSpec {
            lowers,
            upper,
            mount_point: mount_point.into(),
            store_root: context.root.clone(),
            resolve_image: find::manifest_of,
            merge: Merge::default(),
            run_dir: super::mounts::run_dir()?,
            flags: Flags::default(),
            fuse: fuse::Config::from_environment(),
            overlay: overlay::Options {
                volatile: self.volatile,
                ..overlay::Options::default()
            },
            foreground: self.foreground,
            log_file: None,
        };
        words.apply(&mut spec);
        if let Some(who) = self.merge {
            spec.merge = who.into();
        }
        if let Some(way) = self.io {
            spec.fuse.io = way.into();
        }
        Ok(spec)
    }
}
