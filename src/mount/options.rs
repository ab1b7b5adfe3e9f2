//! The `-o` words of fuse-overlayfs, of the kernel's overlayfs and of mount(8), as podman, buildah and mount write them.
//!
//! Pure: words in, a [`Options`] out; no file is looked at. Grammar: options are separated by `,`; empty ones mean
//! nothing; `\` takes the meaning from the character behind it; a value that begins with `"` lasts to the next `"`.
//! A later word overrides an earlier one. What is unknown is told and left out, as fuse-overlayfs does.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use super::error::{Error, Result};
use super::kernel_merge::Merge;
use super::spec::split_dirs;

/// A range of ids: `len` ids from `inside` (as the mount shows them) are those from `outside` on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub len: u32,
}

/// Where owner and mode are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrPermissions {
    /// In the inode.
    #[default]
    Off,
    /// `security.fuseoverlayfs.override_stat`
    Security,
    /// `user.containers.override_stat`
    User,
}

/// A word of the kernel's overlayfs that is `on`, `off`, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    On,
    Off,
    Auto,
}

/// By what way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    Cached,
    Passthrough,
    Auto,
}

/// The kernel's `redirect_dir`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectDir {
    On,
    Off,
    Follow,
    NoFollow,
}

/// All words understood; `None` and `false` where nothing was said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Topmost first.
    pub lowers: Vec<PathBuf>,
    pub upper: Option<PathBuf>,
    pub work: Option<PathBuf>,
    pub uid_mapping: Vec<IdRange>,
    pub gid_mapping: Vec<IdRange>,
    pub squash_to_root: bool,
    /// Beats `squash_to_root`.
    pub squash_to_uid: Option<u32>,
    /// Beats `squash_to_root`.
    pub squash_to_gid: Option<u32>,
    pub xattr_permissions: XattrPermissions,
    pub static_nlink: bool,
    pub noacl: bool,
    pub noxattrs: bool,
    pub xino: Option<Switch>,
    pub ino32: bool,
    /// Lifetime of entries and attributes in the kernel.
    pub timeout: Option<Duration>,
    pub writeback: Option<bool>,
    /// fsync is answered without work (`fsync=0`, `sync=0`).
    pub no_fsync: bool,
    /// As `no_fsync`, and the work directory is marked.
    pub volatile: bool,
    pub redirect_dir: Option<RedirectDir>,
    pub metacopy: Option<bool>,
    pub index: Option<bool>,
    pub userxattr: bool,
    pub merge: Option<Merge>,
    pub io_uring: Option<Switch>,
    pub io: Option<Io>,
    pub debug: bool,
    pub fsname: Option<OsString>,
    pub read_only: bool,
    pub allow_other: Option<bool>,
    pub suid: Option<bool>,
    pub dev: Option<bool>,
    pub exec: Option<bool>,
    pub atime: Option<bool>,
}

/// Options, and what to tell the user about words left out, one line each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    pub options: Options,
    pub warnings: Vec<String>,
}

/// Understands the arguments of all `-o`, in order.
pub fn parse<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Parsed> {
    let mut parsed = Parsed::default();
    for argument in arguments {
        for word in split(argument.as_ref().as_bytes()) {
            if !word.is_empty() {
                parsed.take(word)?;
            }
        }
    }
    Ok(parsed)
}

/// Splits at `,`; escapes and quotes are kept for [`text`] and [`split_dirs`].
fn split(list: &[u8]) -> Vec<&[u8]> {
    let mut words = Vec::new();
    let (mut start, mut at, mut quoted) = (0, 0, false);
    while at < list.len() {
        match list[at] {
            b'\\' if !quoted => at += 1,
            b'"' if quoted => quoted = false,
            // Only at the start of a value: a quote inside a path is a character of it.
            b'"' if at > start && list[at - 1] == b'=' => quoted = true,
            b',' if !quoted => {
                words.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    words.push(&list[start..]);
    words
}

/// A value as meant: quotes and escapes taken off.
fn text(value: &[u8]) -> Vec<u8> {
    if let Some(quoted) = value.strip_prefix(b"\"") {
        return quoted.strip_suffix(b"\"").unwrap_or(quoted).to_vec();
    }
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(&byte) = bytes.next() {
        out.push(match byte {
            b'\\' => *bytes.next().unwrap_or(&b'\\'),
            byte => byte,
        });
    }
    out
}

fn path(value: &[u8]) -> PathBuf {
    OsString::from_vec(text(value)).into()
}

/// What is said of a word that means nothing to us.
pub(super) fn unknown(word: &[u8]) -> String {
    let word = String::from_utf8_lossy(word);
    format!("unknown argument ignored: {}", word.escape_debug())
}

impl Parsed {
    fn take(&mut self, word: &[u8]) -> Result<()> {
        let known = match word.iter().position(|b| *b == b'=') {
            Some(at) => self.take_pair(&word[..at], &word[at + 1..])?,
            None => self.take_flag(word)?,
        };
        if !known {
            self.warnings.push(unknown(word));
        }
        Ok(())
    }

    fn take_flag(&mut self, word: &[u8]) -> Result<bool> {
        let o = &mut self.options;
        match word {
            b"squash_to_root" => o.squash_to_root = true,
            b"static_nlink" => o.static_nlink = true,
            b"noacl" => o.noacl = true,
            b"noxattrs" => o.noxattrs = true,
            b"ino32_t" => o.ino32 = true,
            b"volatile" => o.volatile = true,
            b"userxattr" => o.userxattr = true,
            b"io_uring" => o.io_uring = Some(Switch::On),
            b"debug" => o.debug = true,
            b"ro" => o.read_only = true,
            b"rw" => o.read_only = false,
            b"allow_other" => o.allow_other = Some(true),
            b"suid" => o.suid = Some(true),
            b"nosuid" => o.suid = Some(false),
            b"dev" => o.dev = Some(true),
            b"nodev" => o.dev = Some(false),
            b"exec" => o.exec = Some(true),
            b"noexec" => o.exec = Some(false),
            b"atime" | b"relatime" | b"strictatime" => o.atime = Some(true),
            b"noatime" => o.atime = Some(false),
            // The kernel cannot let in root alone; letting in everybody instead would be wrong.
            b"allow_root" => self
                .warnings
                .push("allow_root is not supported, allow_other is".into()),
            // Always so, or without a meaning here.
            b"default_permissions"
            | b"diratime"
            | b"nodiratime"
            | b"kernel_cache"
            | b"auto_cache"
            | b"lazytime"
            | b"nolazytime"
            | b"private"
            | b"rprivate"
            | b"slave"
            | b"rslave"
            | b"shared"
            | b"rshared"
            | b"defaults"
            | b"async"
            | b"auto"
            | b"noauto"
            | b"nofail"
            | b"user"
            | b"users"
            | b"nouser"
            | b"owner"
            | b"group"
            | b"_netdev"
            | b"nonempty"
            | b"auto_unmount"
            | b"clone_fd"
            | b"threaded" => {}
            word if word.starts_with(b"splice_") || word.starts_with(b"no_splice_") => {}
            // Notes of other programs in fstab: mount(8), "comment" and "x-*".
            word if word.starts_with(b"x-") || word.starts_with(b"X-") => {}
            b"remount" => {
                return Err(Error::Usage(
                    "a mount's options cannot be changed: unmount it and mount it anew".into(),
                ));
            }
            // Words with a value, without one.
            b"lowerdir" | b"upperdir" | b"workdir" | b"uidmapping" | b"gidmapping"
            | b"squash_to_uid" | b"squash_to_gid" | b"timeout" | b"xattr_permissions" | b"io" => {
                return Err(Error::Usage(format!(
                    "option {} wants a value",
                    String::from_utf8_lossy(word)
                )));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take_pair(&mut self, key: &[u8], value: &[u8]) -> Result<bool> {
        let o = &mut self.options;
        let bad = |wants: &str| bad_value(key, value, wants);
        match key {
            b"lowerdir" => {
                let value = value
                    .strip_prefix(b"\"")
                    .map_or(value, |quoted| quoted.strip_suffix(b"\"").unwrap_or(quoted));
                o.lowers = split_dirs(value)?;
            }
            b"upperdir" => o.upper = some_path(key, value)?,
            b"workdir" => o.work = some_path(key, value)?,
            b"uidmapping" => o.uid_mapping = mapping(key, value)?,
            b"gidmapping" => o.gid_mapping = mapping(key, value)?,
            b"squash_to_uid" => {
                o.squash_to_uid = Some(number(value).ok_or_else(|| bad("a user id"))?)
            }
            b"squash_to_gid" => {
                o.squash_to_gid = Some(number(value).ok_or_else(|| bad("a group id"))?)
            }
            b"xattr_permissions" => {
                o.xattr_permissions = match value {
                    b"0" => XattrPermissions::Off,
                    b"1" => XattrPermissions::Security,
                    b"2" => XattrPermissions::User,
                    _ => return Err(bad("0, 1 or 2")),
                }
            }
            b"static_nlink" => o.static_nlink = truth(value).ok_or_else(|| bad("0 or 1"))?,
            b"noacl" => o.noacl = truth(value).ok_or_else(|| bad("0 or 1"))?,
            b"noxattrs" => o.noxattrs = truth(value).ok_or_else(|| bad("0 or 1"))?,
            b"xino" => {
                o.xino = Some(switch(value).ok_or_else(|| bad("on, off or auto"))?);
            }
            b"io_uring" => {
                o.io_uring = Some(switch(value).ok_or_else(|| bad("on, off or auto"))?);
            }
            b"io" => {
                o.io = Some(match value {
                    b"cached" => Io::Cached,
                    b"passthrough" => Io::Passthrough,
                    b"auto" => Io::Auto,
                    _ => return Err(bad("cached, passthrough or auto")),
                });
            }
            b"timeout" => o.timeout = Some(seconds(value).ok_or_else(|| bad("seconds"))?),
            b"writeback" => o.writeback = Some(truth(value).ok_or_else(|| bad("0 or 1"))?),
            b"fsync" | b"sync" => o.no_fsync = !truth(value).ok_or_else(|| bad("0 or 1"))?,
            b"redirect_dir" => {
                o.redirect_dir = Some(match value {
                    b"on" => RedirectDir::On,
                    b"off" => RedirectDir::Off,
                    b"follow" => RedirectDir::Follow,
                    b"nofollow" => RedirectDir::NoFollow,
                    _ => return Err(bad("on, off, follow or nofollow")),
                });
            }
            b"metacopy" => o.metacopy = Some(truth(value).ok_or_else(|| bad("on or off"))?),
            b"index" => o.index = Some(truth(value).ok_or_else(|| bad("on or off"))?),
            b"merge" => {
                o.merge = Some(match value {
                    b"fuse" => Merge::Fuse,
                    b"kernel" => Merge::Kernel,
                    b"auto" => Merge::Auto,
                    _ => return Err(bad("fuse, kernel or auto")),
                });
            }
            b"fsname" => o.fsname = Some(OsString::from_vec(text(value))),
            b"plugins" => {
                if !value.is_empty() {
                    return Err(Error::Usage("plugins are not supported".into()));
                }
            }
            // Without a meaning here. SELinux labels are the host's to give.
            b"context"
            | b"fscontext"
            | b"defcontext"
            | b"rootcontext"
            | b"subtype"
            | b"threaded"
            | b"fast_ino"
            | b"fast_ino_check"
            | b"max_write"
            | b"max_read"
            | b"max_background"
            | b"congestion_threshold"
            | b"max_idle_threads"
            | b"io_uring_q_depth"
            | b"uuid"
            | b"nfs_export"
            | b"verity"
            | b"comment"
            | b"user" => {}
            key if key.starts_with(b"x-") || key.starts_with(b"X-") => {}
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn bad_value(key: &[u8], value: &[u8], wants: &str) -> Error {
    Error::Usage(format!(
        "option {} wants {wants}, not {:?}",
        String::from_utf8_lossy(key),
        String::from_utf8_lossy(value)
    ))
}

fn some_path(key: &[u8], value: &[u8]) -> Result<Option<PathBuf>> {
    let path = path(value);
    if path.as_os_str().is_empty() {
        return Err(bad_value(key, value, "a directory"));
    }
    Ok(Some(path))
}

fn number(value: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(value).ok()?;
    // `parse` would take a sign.
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

fn truth(value: &[u8]) -> Option<bool> {
    match value {
        b"1" | b"on" | b"true" | b"yes" => Some(true),
        b"0" | b"off" | b"false" | b"no" => Some(false),
        _ => None,
    }
}

fn switch(value: &[u8]) -> Option<Switch> {
    match value {
        b"on" => Some(Switch::On),
        b"off" => Some(Switch::Off),
        b"auto" => Some(Switch::Auto),
        _ => None,
    }
}

/// A float; more than the kernel can count is as good as for ever.
fn seconds(value: &[u8]) -> Option<Duration> {
    let seconds: f64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    if seconds.is_nan() || seconds < 0.0 {
        return None;
    }
    let longest = crate::fuse::FOREVER;
    Some(Duration::try_from_secs_f64(seconds).map_or(longest, |d| d.min(longest)))
}

/// Triples `inside:outside:length` joined by `:`. podman puts a colon before the first.
fn mapping(key: &[u8], value: &[u8]) -> Result<Vec<IdRange>> {
    let bad = |wants: &str| bad_value(key, value, wants);
    let numbers: Option<Vec<u32>> = value
        .split(|b| *b == b':')
        .filter(|part| !part.is_empty())
        .map(number)
        .collect();
    let numbers = numbers.ok_or_else(|| bad("numbers below 2^32"))?;
    if numbers.is_empty() || !numbers.len().is_multiple_of(3) {
        return Err(bad("triples inside:outside:length"));
    }
    let ranges = numbers.chunks_exact(3).map(|triple| IdRange {
        inside: triple[0],
        outside: triple[1],
        len: triple[2],
    });
    let fits = |start: u32, len: u32| start.checked_add(len - 1).is_some();
    ranges
        .map(|r| {
            if r.len > 0 && fits(r.inside, r.len) && fits(r.outside, r.len) {
                Ok(r)
            } else {
                Err(bad("lengths of at least 1 that end below 2^32"))
            }
        })
        .collect()
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
