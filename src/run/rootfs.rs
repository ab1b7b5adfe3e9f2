//! Paths inside a container's root: followed by descriptors, one component at a time, never out of it.
//!
//! An image may hold any symlink, and a path from its configuration any word. A path is walked from the root's descriptor:
//! each component is opened beneath the one before without following, a symlink's target is walked the same way, `..`
//! stops at the root, and magic links (those of /proc) are refused. What comes out is the directory reached, held open,
//! and its name without symlinks, fit for the runtime. Nothing here blocks on what an image put there, or believes its size.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, Timestamps};
use rustix::io::Errno;

use super::error::{Error, Result};

/// As many symlinks as the kernel follows in one path.
const MAX_LINKS: u32 = 40;
/// As many components as an import lets a path have.
const MAX_COMPONENTS: usize = 1024;

/// What to make where there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    Nothing,
    Directory,
    /// An empty file, in a directory made if need be.
    File,
}

/// An object of the root that was made for the container to start, and what its directory's time was before.
#[derive(Debug)]
pub struct Made {
    parent: PathBuf,
    name: OsString,
    directory: bool,
    before: Timestamps,
    after: Timestamps,
}

/// Where a path leads.
#[derive(Debug)]
pub struct Place {
    /// From the container's root, absolute, without symlinks.
    pub path: PathBuf,
    /// `None`: nothing there, and nothing was to be made.
    pub object: Option<(OwnedFd, Stat)>,
}

impl Place {
    pub fn is_dir(&self) -> bool {
        self.kind() == Some(FileType::Directory)
    }

    pub fn kind(&self) -> Option<FileType> {
        let (_, stat) = self.object.as_ref()?;
        Some(FileType::from_raw_mode(stat.st_mode))
    }
}

/// An open root directory.
pub struct Rootfs {
    root: OwnedFd,
    host_path: PathBuf,
}

/// A walk under way.
struct Walk<'a> {
    rootfs: &'a Rootfs,
    /// The directories from the root (not included) to where the walk is.
    dirs: Vec<(OwnedFd, OsString)>,
    /// Still to go, first one first.
    ahead: VecDeque<OsString>,
    links: u32,
}

impl Rootfs {
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| Error::io("opening the root of the container", path, e))?;
        Ok(Self {
            root,
            host_path: path.to_owned(),
        })
    }

    /// Where `path` leads. What is made on the way is noted in `made`, in that order.
    pub fn place(&self, path: &OsStr, make: Make, made: &mut Vec<Made>) -> Result<Place> {
        let fail = |e: Errno| Error::io("resolving in the container", Path::new(path), e);
        let mut walk = Walk {
            rootfs: self,
            dirs: Vec::new(),
            ahead: VecDeque::new(),
            links: 0,
        };
        walk.queue(path).map_err(fail)?;
        while let Some(name) = walk.ahead.pop_front() {
            match name.as_bytes() {
                b"" | b"." => continue,
                b".." => {
                    walk.dirs.pop();
                    continue;
                }
                _ => {}
            }
            if walk.dirs.len() >= MAX_COMPONENTS {
                return Err(fail(Errno::NAMETOOLONG));
            }
            let last = walk
                .ahead
                .iter()
                .all(|name| matches!(name.as_bytes(), b"" | b"."));
            let (fd, stat) = match walk.open(&name) {
                Ok(found) => found,
                Err(Errno::NOENT) if make == Make::Nothing => {
                    // Nothing below can be a symlink: the rest is a matter of words.
                    return Ok(Place {
                        path: walk.rest_in_words(name),
                        object: None,
                    });
                }
                Err(Errno::NOENT) => {
                    let directory = !(last && make == Make::File);
                    made.push(walk.make(&name, directory).map_err(fail)?);
                    walk.open(&name).map_err(fail)?
                }
                Err(errno) => return Err(fail(errno)),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    walk.links += 1;
                    if walk.links > MAX_LINKS {
                        return Err(fail(Errno::LOOP));
                    }
                    let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(fail)?;
                    walk.queue(OsStr::from_bytes(target.as_bytes()))
                        .map_err(fail)?;
                }
                FileType::Directory => walk.dirs.push((fd, name)),
                _ if last => {
                    return Ok(Place {
                        path: walk.path().join(&name),
                        object: Some((fd, stat)),
                    });
                }
                _ => return Err(fail(Errno::NOTDIR)),
            }
        }
        let path = walk.path();
        let at = match walk.dirs.pop() {
            Some((fd, _)) => fd,
            None => rustix::io::fcntl_dupfd_cloexec(&self.root, 3).map_err(fail)?,
        };
        let stat = rustix::fs::fstat(&at).map_err(fail)?;
        Ok(Place {
            path,
            object: Some((at, stat)),
        })
    }

    /// The bytes of a regular file of at most `limit`. `None`: there is nothing of that name. Anything but a regular file is
    /// an error, found out without opening it.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let place = self.place(OsStr::new(path), Make::Nothing, &mut Vec::new())?;
        let Some((fd, stat)) = place.object else {
            return Ok(None);
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::Image(format!(
                "{path} of the image is not a regular file"
            )));
        }
        let fail = |e: std::io::Error| Error::io("reading in the container", Path::new(path), e);
        // The descriptor is known to be a regular file, and this opens that very file.
        let file = File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(fail)?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 > limit {
            return Err(Error::Image(format!(
                "{path} of the image is larger than {limit} bytes"
            )));
        }
        Ok(Some(bytes))
    }

    /// Takes away again what was made and is still empty, the last first; directories in which nothing else happened get
    /// their time back.
    pub fn unmake(&self, made: Vec<Made>) {
        for made in made.into_iter().rev() {
            if let Err(errno) = self.unmake_one(&made)
                && !matches!(errno, Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST)
            {
                tracing::debug!(path = %made.parent.join(&made.name).display(), %errno, "a mount point stays");
            }
        }
    }

    fn unmake_one(&self, made: &Made) -> std::result::Result<(), Errno> {
        let below = made.parent.strip_prefix("/").unwrap_or(&made.parent);
        let below = if below.as_os_str().is_empty() {
            Path::new(".")
        } else {
            below
        };
        // The container may have put a symlink in the way meanwhile.
        let parent = rustix::fs::openat2(
            &self.root,
            below,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            beneath() | ResolveFlags::NO_SYMLINKS,
        )?;
        let found = rustix::fs::statat(&parent, &made.name, AtFlags::SYMLINK_NOFOLLOW)?;
        let untouched =
            times(&rustix::fs::fstat(&parent)?).last_modification == made.after.last_modification;
        let kind = FileType::from_raw_mode(found.st_mode);
        match (made.directory, kind) {
            (true, FileType::Directory) => {
                rustix::fs::unlinkat(&parent, &made.name, AtFlags::REMOVEDIR)?
            }
            (false, FileType::RegularFile) if found.st_size == 0 => {
                rustix::fs::unlinkat(&parent, &made.name, AtFlags::empty())?
            }
            _ => return Ok(()),
        }
        if untouched {
            rustix::fs::futimens(&parent, &made.before)?;
        }
        Ok(())
    }

    /// The root as the host names it.
    pub fn host_path(&self) -> &Path {
        &self.host_path
    }
}

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS
}

impl Walk<'_> {
    /// Puts a path before what is still ahead.
    fn queue(&mut self, path: &OsStr) -> std::result::Result<(), Errno> {
        let bytes = path.as_bytes();
        if bytes.is_empty() {
            return Err(Errno::NOENT);
        }
        if bytes.contains(&0) {
            return Err(Errno::INVAL);
        }
        if bytes[0] == b'/' {
            self.dirs.clear();
        }
        let parts: Vec<&[u8]> = bytes.split(|b| *b == b'/').collect();
        if parts.len() + self.ahead.len() > 4 * MAX_COMPONENTS {
            return Err(Errno::NAMETOOLONG);
        }
        for part in parts.into_iter().rev().filter(|part| !part.is_empty()) {
            self.ahead.push_front(OsString::from_vec(part.to_vec()));
        }
        Ok(())
    }

    fn here(&self) -> &OwnedFd {
        self.dirs.last().map_or(&self.rootfs.root, |(fd, _)| fd)
    }

    fn path(&self) -> PathBuf {
        let mut path = PathBuf::from("/");
        path.extend(self.dirs.iter().map(|(_, name)| name));
        path
    }

    /// The path from here through `name`, which does not exist.
    fn rest_in_words(&mut self, name: OsString) -> PathBuf {
        let mut names: Vec<OsString> = self.dirs.drain(..).map(|(_, name)| name).collect();
        names.push(name);
        for name in self.ahead.drain(..) {
            match name.as_bytes() {
                b"" | b"." => {}
                b".." => drop(names.pop()),
                _ => names.push(name),
            }
        }
        let mut path = PathBuf::from("/");
        path.extend(names);
        path
    }

    fn open(&self, name: &OsStr) -> std::result::Result<(OwnedFd, Stat), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(self.here(), name, flags, Mode::empty(), beneath())?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok((fd, stat))
    }

    fn make(&self, name: &OsStr, directory: bool) -> std::result::Result<Made, Errno> {
        let here = self.here().as_fd();
        let stat = rustix::fs::fstat(here)?;
        if directory {
            rustix::fs::mkdirat(here, name, Mode::from_raw_mode(0o755))?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(here, name, flags, Mode::from_raw_mode(0o644))?;
        }
        Ok(Made {
            parent: self.path(),
            name: name.to_owned(),
            directory,
            before: times(&stat),
            after: times(&rustix::fs::fstat(here)?),
        })
    }
}

fn times(stat: &Stat) -> Timestamps {
    let time = |tv_sec, tv_nsec| rustix::fs::Timespec { tv_sec, tv_nsec };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    }
}

/// A path with `.` and `..` taken out by words alone; absolute.
pub fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(clean.pop()),
            part => clean.push(part),
        }
    }
    clean
}

/// Makes a directory of ours, which may be there.
pub fn private_dir(path: &Path) -> Result<()> {
    match rustix::fs::mkdirat(CWD, path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Error::io("making", path, errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Rootfs) {
        let temp = tempfile::tempdir().expect("temporary directory");
        let root = temp.path().join("root");
        std::fs::create_dir_all(root.join("etc/deep")).expect("mkdir");
        std::fs::write(root.join("etc/file"), "text").expect("write");
        std::fs::create_dir(temp.path().join("outside")).expect("mkdir");
        for (target, name) in [
            ("/etc", "abs"),
            ("../../../..", "up"),
            ("/../outside", "out"),
            ("loop", "loop"),
            ("/proc/self/fd/3", "magic"),
            ("etc/deep/../file", "chain"),
            ("nowhere/below", "dangling"),
        ] {
            symlink(target, root.join(name)).expect("symlink");
        }
        let rootfs = Rootfs::open(&root).expect("open");
        (temp, rootfs)
    }

    #[test]
    fn paths_stay_inside() {
        let (_temp, root) = root();
        for (path, leads, exists) in [
            ("/", "/", true),
            ("", "", false),
            ("/../..", "/", true),
            ("etc/./deep/", "/etc/deep", true),
            ("/abs/deep/../file", "/etc/file", true),
            ("/up/etc", "/etc", true),
            ("/out", "/outside", false),
            ("/magic/x", "/proc/self/fd/3/x", false),
            ("/chain", "/etc/file", true),
            ("/dangling", "/nowhere/below", false),
            ("/none/../../a/b", "/a/b", false),
        ] {
            let place = root.place(OsStr::new(path), Make::Nothing, &mut Vec::new());
            if leads.is_empty() {
                assert!(place.is_err(), "{path:?}");
                continue;
            }
            let place = place.unwrap_or_else(|e| panic!("{path:?}: {e}"));
            assert_eq!(
                (place.path.as_path(), place.object.is_some()),
                (Path::new(leads), exists),
                "{path:?}"
            );
        }
        for path in ["/loop", "/etc/file/x", "/etc/\0", &"x/".repeat(5000)] {
            root.place(OsStr::new(path), Make::Directory, &mut Vec::new())
                .expect_err(&path[..path.len().min(20)]);
        }
    }

    #[test]
    fn what_was_made_goes_again_if_untouched() {
        let (temp, root) = root();
        let etc = temp.path().join("root/etc");
        let mut made = Vec::new();
        for (path, make) in [
            ("/abs/hosts", Make::File),
            ("/abs/a/b", Make::Directory),
            ("/dangling/c", Make::Directory),
            ("/abs/used", Make::File),
            ("/abs/swapped/in", Make::Directory),
        ] {
            let place = root.place(OsStr::new(path), make, &mut made).expect(path);
            assert_eq!(place.is_dir(), make == Make::Directory, "{path}");
        }
        assert!(temp.path().join("root/nowhere/below/c").is_dir());
        std::fs::write(etc.join("used"), "now").expect("write");
        std::fs::rename(etc.join("swapped"), temp.path().join("outside/kept")).expect("rename");
        symlink("../../outside/kept", etc.join("swapped")).expect("symlink");
        root.unmake(made);
        for gone in ["etc/hosts", "etc/a", "nowhere"] {
            assert!(!temp.path().join("root").join(gone).exists(), "{gone}");
        }
        assert_eq!(std::fs::read(etc.join("used")).expect("read"), b"now");
        assert!(
            temp.path().join("outside/kept/in").is_dir(),
            "not ours to follow"
        );
        drop(temp);

        let (temp, root) = self::root();
        let mut made = Vec::new();
        root.place(OsStr::new("/etc/hosts"), Make::File, &mut made)
            .expect("make");
        let etc = temp.path().join("root/etc");
        let before = made[0].before.last_modification;
        assert_ne!(made[0].after.last_modification, before);
        root.unmake(made);
        let after = rustix::fs::stat(&etc).expect("stat");
        assert_eq!(times(&after).last_modification, before);
    }

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let (temp, root) = root();
        let dir = temp.path().join("root");
        rustix::fs::mknodat(
            CWD,
            dir.join("fifo"),
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .expect("mkfifo");
        symlink("/fifo", dir.join("to-fifo")).expect("symlink");
        std::fs::write(dir.join("big"), vec![b'x'; 101]).expect("write");
        assert_eq!(
            root.read("/chain", 100).expect("read"),
            Some(b"text".to_vec())
        );
        assert_eq!(root.read("/out", 100).expect("nothing"), None);
        for path in ["/fifo", "/to-fifo", "/etc", "/big"] {
            assert!(root.read(path, 100).is_err(), "{path}");
        }
        assert_eq!(
            root.read("/big", 101).expect("read").map(|b| b.len()),
            Some(101)
        );
    }

    #[test]
    fn words_alone() {
        for (path, cleaned) in [("a//b/../c/.", "/a/c"), ("/../..", "/"), ("", "/")] {
            assert_eq!(clean(path), Path::new(cleaned));
        }
    }
}
