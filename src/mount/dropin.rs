//! The command line of fuse-overlayfs, as podman, buildah, mount(8) and mount.fuse3 call it:
//! `NAME [-f] [-d] [-h] [-V] [-o OPT[,OPT…]]… [SOURCE] MOUNTPOINT`.
//!
//! Pure: words in, an [`Order`] out; no file is looked at. The last word that is no option is the mount point. What is
//! unknown is told and left out, since callers pass words of programs newer than this one.
//!
//! Source: fuse-overlayfs(1), mount(8) ("EXTERNAL HELPERS"), fuse(8).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::options::{self, Options};
use super::{Flags, Merge, MountSpec, RunDir};
use crate::overlay::{self, Aufs};
use crate::{fuse, store};

/// Names under which the program speaks this language.
pub const NAMES: [&str; 3] = ["fuse-overlayfs", "ovl-fuse", MOUNT_HELPER];

/// mount(8) looks for this one when it is asked for type `fuse.ovl`.
const MOUNT_HELPER: &str = "mount.fuse.ovl";

/// Set (to anything) in the environment: new whiteouts are `.wh.NAME` files.
const AUFS_WHITEOUTS: &str = "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT";

/// The newest fuse-overlayfs whose options are understood, for callers that look at the number.
const AS_FUSE_OVERLAYFS: &str = "1.16";

/// Which of [`NAMES`] the program was called by; `None`: by none of them.
pub fn called_as(program: &OsStr) -> Option<&'static str> {
    let name = Path::new(program).file_name()?;
    NAMES.into_iter().find(|known| name == *known)
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Order {
    /// Text for stdout.
    Say(String),
    Mount(Box<Call>),
}

/// A mount as asked for.
#[derive(Debug, PartialEq)]
pub struct Call {
    pub options: Options,
    /// One line each for stderr.
    pub warnings: Vec<String>,
    /// First column of the mount table.
    pub source: Option<OsString>,
    pub mount_point: PathBuf,
    pub foreground: bool,
    /// Log every request's failure; in the foreground.
    pub debug: bool,
    /// mount(8) asks. It knows what is mounted again, for `mount -a`, by the root `/` in the mount table.
    pub by_mount: bool,
}

/// Understands the words behind the program's name.
pub fn parse(name: &'static str, words: impl IntoIterator<Item = OsString>) -> Result<Order> {
    let by_mount = name == MOUNT_HELPER;
    let mut words = words.into_iter();
    let mut lists = Vec::new();
    let mut plain = Vec::new();
    let mut warnings = Vec::new();
    let (mut foreground, mut debug, mut only_plain) = (false, false, false);
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if only_plain || bytes == b"-" || bytes.first() != Some(&b'-') {
            plain.push(word);
            continue;
        }
        match bytes {
            b"--" => only_plain = true,
            b"-h" | b"--help" => return Ok(Order::Say(help(name))),
            b"-V" | b"--version" => return Ok(Order::Say(version())),
            // As mount(8) means it: do all but the mount.
            b"-f" if by_mount => return Ok(Order::Say(String::new())),
            b"-f" | b"--foreground" => foreground = true,
            b"-d" | b"--debug" => debug = true,
            // libfuse's "one thread", mount(8)'s "sloppy", "no mtab" and "verbose".
            b"-s" => {}
            b"-n" | b"-v" if by_mount => {}
            b"-o" => lists.push(value(&mut words, "-o")?),
            // The type, which is known, and a namespace, which mount(8) has entered already.
            b"-t" | b"-N" if by_mount => {
                value(&mut words, if bytes == b"-t" { "-t" } else { "-N" })?;
            }
            joined if joined.starts_with(b"-o") => {
                lists.push(OsStr::from_bytes(&joined[2..]).to_owned());
            }
            _ => warnings.push(options::unknown(bytes)),
        }
    }
    let parsed = options::parse(&lists)?;
    warnings.extend(parsed.warnings);
    debug |= parsed.options.debug;
    let missing = || Error::Usage("no mount point given; see --help".into());
    let mount_point = plain.pop().filter(|word| !word.is_empty());
    Ok(Order::Mount(Box::new(Call {
        options: parsed.options,
        warnings,
        mount_point: mount_point.ok_or_else(missing)?.into(),
        source: plain.pop(),
        foreground: foreground || debug,
        debug,
        by_mount,
    })))
}

fn value(words: &mut impl Iterator<Item = OsString>, option: &str) -> Result<OsString> {
    words
        .next()
        .ok_or_else(|| Error::Usage(format!("{option} wants a value")))
}

impl Call {
    /// The mount that is meant, with fuse-overlayfs's defaults: for root `default_permissions,allow_other,suid,noatime`,
    /// for others `default_permissions,noatime`.
    pub fn spec(&self, run_dir: RunDir, store_root: PathBuf) -> Result<MountSpec> {
        let options = &self.options;
        if options.lowers.is_empty() {
            return Err(Error::Usage("no lowerdir given".into()));
        }
        match (&options.upper, &options.work) {
            (Some(_), None) => return Err(Error::Usage("upperdir wants a workdir, too".into())),
            (None, Some(_)) => tracing::debug!("a workdir without upperdir means nothing"),
            _ => {}
        }
        let default = Flags::default();
        let mut spec = MountSpec {
            lowers: Vec::new(),
            upper: None,
            mount_point: self.mount_point.clone(),
            store_root,
            resolve_image: |_: &store::Store, _: &str| Ok(None),
            merge: Merge::default(),
            run_dir,
            flags: Flags {
                source: self.source.clone().unwrap_or(default.source),
                dev: false,
                atime: false,
                ..default
            },
            fuse: fuse::Config {
                own_root: !self.by_mount,
                ..fuse::Config::from_environment()
            },
            overlay: overlay::Options {
                aufs: match std::env::var_os(AUFS_WHITEOUTS) {
                    Some(_) => Aufs::Write,
                    None => Aufs::Read,
                },
                ..overlay::Options::default()
            },
            foreground: self.foreground,
            log_file: None,
        };
        options.apply(&mut spec);
        Ok(spec)
    }
}

/// The exit code of a failure: 1 as of fuse-overlayfs; called by mount(8), its own 1 (usage) and 32 (mount failed).
pub fn exit_code(name: &str, error: &Error) -> u8 {
    if name == MOUNT_HELPER && !matches!(error, Error::Usage(_)) {
        32
    } else {
        1
    }
}

fn version() -> String {
    format!(
        "fuse-overlayfs: version {AS_FUSE_OVERLAYFS}\novl: version {}\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn help(name: &str) -> String {
    format!(
        "usage: {name} [options] [SOURCE] MOUNTPOINT

    -o OPT[,OPT...]        mount options, see below
    -f                     stay in the foreground
    -d, --debug            log what goes wrong in each request (implies -f)
    -h, --help             print this
    -V, --version          print the version

    lowerdir=DIR[:DIR...]  directories to show, the topmost first
    upperdir=DIR           where changes go; without it the mount is read-only
    workdir=DIR            empty directory on the file system of upperdir
    uidmapping=MAP, gidmapping=MAP
                           triples inside:outside:length joined by colons
    squash_to_root, squash_to_uid=N, squash_to_gid=N
                           everything belongs to that user or group
    xattr_permissions=1|2  keep owner and mode in xattrs
    volatile, fsync=0      let fsync do nothing
    noacl, noxattrs=1, static_nlink, ino32_t, timeout=SECONDS,
    redirect_dir=on|off|follow|nofollow, metacopy=on, userxattr, fsname=NAME,
    merge=fuse|kernel|auto, io=cached|passthrough|auto, io_uring=on|auto
                           as in ovl mount --help
    ro, [no]suid, [no]dev, [no]exec, [no]atime, allow_other
                           as in mount(8)

This is ovl {} by another name; ovl --help tells what else it does.
",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
#[path = "dropin_tests.rs"]
mod tests;
