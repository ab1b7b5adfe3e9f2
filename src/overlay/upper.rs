//! The writable part: the upper directory, its workdir, and how things are written there.
//!
//! Layout (docs/upper-format.md), as the kernel's overlayfs has it: `UPPER/` holds the changed files themselves;
//! `WORK/work/` holds what is being made, emptied at every mount; `WORK/index/` holds the one inode of each hard-linked
//! lower file that was copied up. Nothing of ours is ever put into `UPPER` but whiteouts and xattrs.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::acl;
use super::settle::Settle;
use super::{Aufs, OpenError, Options, Result, UpperDirs};
use crate::layer::{ObjectKey, host};

/// Of internal xattrs, where `trusted.*` is not for us.
const USER_PREFIX: &str = "user.overlay.";

/// Directory that marks an upper as not synced, named as the kernel's overlayfs names it.
const VOLATILE_MARK: &str = "incompat/volatile/dirty";

pub(super) struct Upper {
    root: Arc<OwnedFd>,
    pub key: ObjectKey,
    /// `WORK` itself, locked as long as we live.
    base: OwnedFd,
    work: OwnedFd,
    index: OwnedFd,
    /// `trusted.overlay.` or `user.overlay.`
    prefix: &'static str,
    /// Marked as such in the work directory as long as it is mounted.
    volatile: bool,
    /// What is written need not reach the disk before it is asked for.
    pub unsynced: bool,
    /// What a copy needs before it is shown.
    pub settle: Settle,
    synced_at_end: bool,
    /// Nothing may be changed: see [`Options::inspect`].
    pub inspect: bool,
    pub aufs: Aufs,
    /// Whiteouts cannot be made with mknod here.
    xattr_whiteouts: AtomicBool,
    next_temp: AtomicU64,
    /// User and group of this process.
    pub ids: (u32, u32),
    /// Held while a mode is changed, where modes bind us too: see [`Self::permitted`].
    modes: std::sync::Mutex<()>,
    /// Name in `work` of a whiteout to make links of.
    template: std::sync::Mutex<Option<OsString>>,
}

/// Names of the internal xattrs of one object, without their prefix.
pub(super) struct Marks(Vec<Vec<u8>>);

impl Marks {
    pub fn has(&self, mark: &str) -> bool {
        self.0.iter().any(|name| name == mark.as_bytes())
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(Errno) -> OpenError {
    move |e| OpenError::Io {
        what,
        path: path.to_path_buf(),
        source: e.into(),
    }
}

fn dir_in(base: &OwnedFd, name: &str) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(base, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    host::open_at(
        base.as_fd(),
        OsStr::new(name),
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW,
    )
}

impl Upper {
    pub fn open(dirs: &UpperDirs, options: &Options) -> std::result::Result<Self, OpenError> {
        let open = |path: &Path, extra| {
            rustix::fs::open(
                path,
                OFlags::DIRECTORY | OFlags::CLOEXEC | extra,
                Mode::empty(),
            )
        };
        let root = open(&dirs.upper, OFlags::PATH)
            .map_err(failed("cannot open upper directory", &dirs.upper))?;
        let base = open(&dirs.work, OFlags::RDONLY)
            .map_err(failed("cannot open work directory", &dirs.work))?;
        let key = host::stat_fd(root.as_fd())
            .map_err(failed("cannot stat", &dirs.upper))?
            .key;
        let base_key = host::stat_fd(base.as_fd())
            .map_err(failed("cannot stat", &dirs.work))?
            .key;
        if key.dev != base_key.dev {
            return Err(OpenError::Refused(format!(
                "upper {} and work directory {} are on different file systems: choose a work directory beside the upper",
                dirs.upper.display(),
                dirs.work.display()
            )));
        }
        let lock = FlockOperation::NonBlockingLockExclusive;
        if !options.inspect && rustix::fs::flock(&base, lock).is_err() {
            return Err(OpenError::Busy(format!(
                "work directory {} is in use by another mount",
                dirs.work.display()
            )));
        }
        let work =
            dir_in(&base, "work").map_err(failed("cannot write to work directory", &dirs.work))?;
        let index =
            dir_in(&base, "index").map_err(failed("cannot write to work directory", &dirs.work))?;
        let unsynced = options.volatile || options.no_fsync;
        let settle = if unsynced {
            Settle::Not
        } else {
            Settle::on(work.as_fd())
        };
        let mut upper = Self {
            root: Arc::new(root),
            key,
            base,
            work,
            index,
            prefix: USER_PREFIX,
            volatile: options.volatile && !options.inspect,
            unsynced,
            settle,
            synced_at_end: !options.no_fsync,
            inspect: options.inspect,
            aufs: options.aufs,
            xattr_whiteouts: AtomicBool::new(false),
            next_temp: AtomicU64::new(0),
            ids: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
            modes: std::sync::Mutex::default(),
            template: std::sync::Mutex::default(),
        };
        if upper.inspect {
            let chosen =
                upper.choose_prefix(options, format!("#inspect-{}", std::process::id()).into());
            return chosen
                .map(|()| upper)
                .map_err(failed("cannot set xattrs in", &dirs.work));
        }
        if host::open_beneath(upper.work.as_fd(), OsStr::new(VOLATILE_MARK), OFlags::PATH).is_ok() {
            return Err(OpenError::Refused(format!(
                "upper {} was mounted volatile and not unmounted cleanly: its content may be incomplete; \
                 to use it all the same, remove {}/work/incompat",
                dirs.upper.display(),
                dirs.work.display()
            )));
        }
        upper
            .empty_work()
            .map_err(failed("cannot empty work directory", &dirs.work))?;
        // What is made there takes its ACL from where it will be, not from where the work directory lies.
        if let Err(error) = acl::remove(upper.work.as_fd(), acl::DEFAULT) {
            tracing::warn!(path = %dirs.work.display(), %error, "the default ACL of the work directory goes to what is made in it");
        }
        upper
            .choose_prefix(options, upper.temp_name())
            .map_err(failed("cannot set xattrs in", &dirs.work))?;
        upper.probe_write(&dirs.upper)?;
        if upper.volatile {
            let mut at = OsString::new();
            for part in VOLATILE_MARK.split('/') {
                if !at.is_empty() {
                    at.push("/");
                }
                at.push(part);
                rustix::fs::mkdirat(&upper.work, at.as_os_str(), Mode::RWXU)
                    .map_err(failed("cannot write to work directory", &dirs.work))?;
            }
        }
        Ok(upper)
    }

    /// A read-only file system or an upper we may not write to is told at mount time, not by the first write.
    fn probe_write(&self, path: &Path) -> std::result::Result<(), OpenError> {
        rustix::fs::accessat(
            &*self.root,
            c".",
            rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
            AtFlags::EACCESS,
        )
        .map_err(failed("cannot write to upper directory", path))
    }

    /// `trusted.*` where we may (it cannot be reached by users), else `user.*`.
    /// Tries them on a directory `temp` that it makes in `work` and removes.
    fn choose_prefix(&mut self, options: &Options, temp: OsString) -> Result<()> {
        rustix::fs::mkdirat(&self.work, temp.as_os_str(), Mode::RWXU)?;
        let fd = host::open_at(self.work.as_fd(), &temp, OFlags::PATH | OFlags::DIRECTORY)?;
        let works = |prefix: &str| {
            let name = format!("{prefix}opaque");
            host::set_xattr_fd(fd.as_fd(), OsStr::new(&name), b"n", XattrFlags::empty())
        };
        let chosen = match options.userxattr {
            Some(true) => works(USER_PREFIX).map(|()| USER_PREFIX),
            Some(false) => works("trusted.overlay.").map(|()| "trusted.overlay."),
            None => works("trusted.overlay.")
                .map(|()| "trusted.overlay.")
                .or_else(|_| works(USER_PREFIX).map(|()| USER_PREFIX)),
        };
        self.remove_work(&temp)?;
        self.prefix = chosen?;
        Ok(())
    }

    pub fn root(&self) -> &Arc<OwnedFd> {
        &self.root
    }

    pub fn work(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }

    pub fn index(&self) -> BorrowedFd<'_> {
        self.index.as_fd()
    }

    pub fn marks(&self) -> super::Marks {
        if self.prefix == USER_PREFIX {
            super::Marks::User
        } else {
            super::Marks::Trusted
        }
    }

    /// Full name of an internal xattr.
    pub fn xattr(&self, name: &str) -> OsString {
        format!("{}{name}", self.prefix).into()
    }

    /// Does `call` to the object behind `fd`, if need be while it has the permissions `extra` besides its own. An
    /// ordinary user's daemon is bound by the modes of its files, but neither those who opened a file before its mode
    /// changed (or made it read-only) nor the marks of the mount are.
    pub fn permitted<T>(
        &self,
        fd: BorrowedFd<'_>,
        extra: u32,
        call: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        self.all_permitted(&[(fd, extra)], call)
    }

    /// The same where several objects take part. Not to be nested.
    pub fn all_permitted<T>(
        &self,
        objects: &[(BorrowedFd<'_>, u32)],
        mut call: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        match call() {
            Err(Errno::ACCESS) if !self.inspect => {}
            other => return other,
        }
        let _alone = super::node::lock(&self.modes);
        let mut changed = Vec::new();
        for (fd, extra) in objects {
            let perm = host::stat_fd(*fd)?.attr.perm;
            // Only the owner may.
            if perm & extra != *extra && super::attrs::set_perm(*fd, perm | extra).is_ok() {
                changed.push((fd, perm));
            }
        }
        let done = call();
        for (fd, perm) in changed {
            super::attrs::set_perm(*fd, perm)?;
        }
        done
    }

    /// chmod of an open object.
    pub fn set_perm(&self, fd: BorrowedFd<'_>, perm: u32) -> Result<()> {
        let _alone = (self.prefix == USER_PREFIX).then(|| super::node::lock(&self.modes));
        super::attrs::set_perm(fd, perm)
    }

    /// Sets an internal xattr of an open object.
    pub fn mark(&self, fd: BorrowedFd<'_>, name: &str, value: &[u8]) -> Result<()> {
        let name = self.xattr(name);
        self.permitted(fd, libc::S_IWUSR, || {
            host::set_xattr_fd(fd, &name, value, XattrFlags::empty())
        })
    }

    /// Removes an internal xattr of an open object; ENODATA if it has none.
    pub fn unmark(&self, fd: BorrowedFd<'_>, name: &str) -> Result<()> {
        let name = self.xattr(name);
        self.permitted(fd, libc::S_IWUSR, || host::remove_xattr_fd(fd, &name))
    }

    /// Reads an internal xattr of an open object.
    pub fn mark_of(&self, fd: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>> {
        let name = self.xattr(name);
        self.permitted(fd, libc::S_IRUSR, || host::xattr_fd(fd, &name))
    }

    /// Reads an internal xattr of `name` in `dir` without opening it.
    pub fn mark_at(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        mark: &str,
    ) -> Result<Option<Vec<u8>>> {
        match host::xattr_at(host::proc_child(dir, name).as_slice(), &self.xattr(mark)) {
            Err(Errno::ACCESS) => {
                let fd = host::open_at(dir, name, OFlags::PATH | OFlags::NOFOLLOW)?;
                self.mark_of(fd.as_fd(), mark)
            }
            other => other,
        }
    }

    /// Which internal xattrs `name` in `dir` has: mostly none, and then none need be asked for.
    pub fn marks_at(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Marks> {
        let names = match host::xattr_names_at(dir, name) {
            Err(Errno::ACCESS) => {
                let fd = host::open_at(dir, name, OFlags::PATH | OFlags::NOFOLLOW)?;
                self.permitted(fd.as_fd(), libc::S_IRUSR, || {
                    host::xattr_names_fd(fd.as_fd())
                })?
            }
            other => other?,
        };
        let mark = |name: &OsString| {
            name.as_bytes()
                .strip_prefix(self.prefix.as_bytes())
                .map(<[u8]>::to_vec)
        };
        Ok(Marks(names.iter().filter_map(mark).collect()))
    }

    /// A name in `work` nobody has.
    pub fn temp_name(&self) -> OsString {
        format!("#{:x}", self.next_temp.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// Removes something from `work`, a whole tree if need be.
    pub fn remove_work(&self, name: &OsStr) -> Result<()> {
        remove_tree(self.work.as_fd(), name)
    }

    fn empty_work(&self) -> Result<()> {
        for entry in host::read_dir(self.work.as_fd())? {
            self.remove_work(&entry.name)?;
        }
        Ok(())
    }

    /// Makes a whiteout as `name` in `dir`; EEXIST if the name is there.
    pub fn make_whiteout(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        if self.mark_hidden(dir, name)?.is_some() {
            return Ok(());
        }
        self.make_object(dir, name)
    }

    /// Makes a whiteout that is an object of this name.
    fn make_object(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        if !self.xattr_whiteouts.load(Ordering::Relaxed) {
            let mut template = super::node::lock(&self.template);
            if let Some(source) = &*template {
                match rustix::fs::linkat(
                    &self.work,
                    source.as_os_str(),
                    dir,
                    name,
                    AtFlags::empty(),
                ) {
                    // The template has as many links as the file system allows: make a new one.
                    Err(Errno::MLINK | Errno::NOENT | Errno::XDEV | Errno::PERM) => {}
                    other => return other,
                }
            }
            let source = self.temp_name();
            match rustix::fs::mknodat(
                &self.work,
                source.as_os_str(),
                FileType::CharacterDevice,
                Mode::empty(),
                0,
            ) {
                Ok(()) => {
                    let made = rustix::fs::linkat(
                        &self.work,
                        source.as_os_str(),
                        dir,
                        name,
                        AtFlags::empty(),
                    );
                    if let Some(old) = template.replace(source) {
                        let _ = rustix::fs::unlinkat(&self.work, old.as_os_str(), AtFlags::empty());
                    }
                    return match made {
                        // No hard links to devices here: each whiteout is its own.
                        Err(Errno::PERM | Errno::MLINK) => rustix::fs::mknodat(
                            dir,
                            name,
                            FileType::CharacterDevice,
                            Mode::empty(),
                            0,
                        ),
                        other => other,
                    };
                }
                Err(Errno::PERM) => self.xattr_whiteouts.store(true, Ordering::Relaxed),
                Err(e) => return Err(e),
            }
        }
        // It must not be seen before it has its mark, nor in a directory that does not tell of such.
        let temp = self.temp_name();
        let fd = rustix::fs::openat(
            &self.work,
            temp.as_os_str(),
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )?;
        let made = self
            .mark(fd.as_fd(), "whiteout", b"y")
            .and_then(|()| self.expect_xattr_whiteouts(dir))
            .and_then(|()| {
                let how = RenameFlags::NOREPLACE;
                rustix::fs::renameat_with(&self.work, temp.as_os_str(), dir, name, how)
            });
        if made.is_err() {
            let _ = self.remove_work(&temp);
        }
        made
    }

    /// Where whiteouts are xattrs: tells readers of the directory that it may hold some.
    pub fn expect_xattr_whiteouts(&self, dir: BorrowedFd<'_>) -> Result<()> {
        if self.xattr_whiteouts.load(Ordering::Relaxed) && self.mark_of(dir, "opaque")?.is_none() {
            self.mark(dir, "opaque", b"x")?;
        }
        Ok(())
    }

    /// Puts a whiteout in place of whatever `name` in `dir` is now, in one step; what was there is gone.
    pub fn replace_by_whiteout(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        was_dir: bool,
    ) -> Result<()> {
        if self.mark_hidden(dir, name)?.is_some() {
            return self.drop_marked(dir, name, was_dir);
        }
        let temp = self.temp_name();
        self.make_object(self.work.as_fd(), &temp)?;
        let how = if was_dir {
            RenameFlags::EXCHANGE
        } else {
            RenameFlags::empty()
        };
        let moved = self
            .expect_xattr_whiteouts(dir)
            .and_then(|()| rustix::fs::renameat_with(&self.work, temp.as_os_str(), dir, name, how));
        // After an exchange the old directory is here; after a failure the whiteout is. What cannot be removed goes with
        // the next mount.
        if was_dir || moved.is_err() {
            let _ = self.remove_work(&temp);
        }
        moved
    }

    /// The mount ends in order: the upper is synced, and a volatile one loses its mark. Not so with `no_fsync`.
    pub fn close(&self) {
        if self.inspect {
            return;
        }
        if self.synced_at_end && rustix::fs::syncfs(&self.base).is_ok() && self.volatile {
            let _ = self.remove_work(OsStr::new("incompat"));
        }
        if let Some(name) = super::node::lock(&self.template).take() {
            let _ = self.remove_work(&name);
        }
    }
}

/// Removes `name` in `dir` with all it holds, never following a symlink.
pub(super) fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    let fd = host::open_at(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW,
    )?;
    for entry in host::read_dir(fd.as_fd())? {
        remove_tree(fd.as_fd(), &entry.name)?;
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Is this one of the xattrs overlays keep for themselves?
pub(super) fn is_internal_xattr(name: &OsStr) -> bool {
    INTERNAL_PREFIXES
        .iter()
        .any(|p| name.as_bytes().starts_with(p.as_bytes()))
}

/// Namespaces of internal xattrs; those of the first two can be nested (`overlay.overlay.`).
pub(super) const INTERNAL_PREFIXES: [&str; 3] =
    ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."];

#[cfg(test)]
mod tests {
    use super::*;

    /// Readers look for xattr whiteouts only in directories that say they hold some.
    #[test]
    fn a_directory_tells_of_the_xattr_whiteouts_put_in_it() {
        let tmp = tempfile::tempdir().unwrap();
        let dirs = UpperDirs {
            upper: tmp.path().join("upper"),
            work: tmp.path().join("work"),
        };
        for dir in [&dirs.upper, &dirs.work] {
            std::fs::create_dir(dir).unwrap();
        }
        for name in ["one", "two"] {
            std::fs::create_dir(dirs.upper.join(name)).unwrap();
            std::fs::write(dirs.upper.join(name).join("old"), "x").unwrap();
        }
        let upper = Upper::open(&dirs, &Options::default()).unwrap();
        upper.xattr_whiteouts.store(true, Ordering::Relaxed);
        let open = |name: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            host::open_at(upper.root().as_fd(), OsStr::new(name), flags).unwrap()
        };
        let (one, two) = (open("one"), open("two"));
        let (old, new) = (OsStr::new("old"), OsStr::new("new"));
        upper.replace_by_whiteout(one.as_fd(), old, false).unwrap();
        upper.make_whiteout(two.as_fd(), new).unwrap();
        let again = upper.make_whiteout(two.as_fd(), old);
        assert_eq!(again, Err(Errno::EXIST));
        for (dir, name) in [(&one, old), (&two, new)] {
            let mark = |r: Result<Option<Vec<u8>>>| r.unwrap();
            assert!(mark(upper.mark_at(dir.as_fd(), name, "whiteout")).is_some());
            assert_eq!(
                mark(upper.mark_of(dir.as_fd(), "opaque")),
                Some(b"x".to_vec())
            );
        }
        assert_eq!(std::fs::read(dirs.upper.join("two/old")).unwrap(), b"x");
    }
}
