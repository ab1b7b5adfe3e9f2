//! A directory of the host as the layer of a new image: what is in it, in byte order of names, as a tar.
//!
//! Whoever may write there may change it meanwhile, so everything is reached from descriptors of directories with
//! `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)`; symlinks are data, devices and FIFOs are never
//! opened for reading. What changes while it is read is an error or one of its states, never something from elsewhere.
//!
//! The same tree gives the same bytes: owners, modes, modification times with fractions, xattrs and ACLs, hard links and
//! holes are kept; inode numbers, access times and the order of directory entries leave no trace. Sockets are left out.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, SeekFrom, Statx, StatxFlags};
use rustix::io::Errno;

use crate::meta::{Attr, FileKind, Timestamp};

use super::import::{ImportedImage, Importer};
use super::layer_tar::{EntryKind, LayerEntry, LayerTarWriter, NodeContent};
use super::limits::Limits;
use super::pump::{self, pump};
use super::{Error, Result};

/// Stretches of data of one file told apart; a file with more is written with its zeros.
const MAX_EXTENTS: usize = 100_000;

/// Writes what lies below `path` to `tar`.
///
/// # Errors
/// [`Error::Io`] with the path of what could not be read, [`Error::Unsupported`] for what a layer cannot say: names that
/// would be whiteouts, and the marks of an overlay's upper directory.
pub fn write(path: &Path, limits: &Limits, tar: &mut LayerTarWriter<'_>) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).map_err(at(path))?;
    let mut walk = Walk {
        root: path.to_owned(),
        limits,
        tar,
        seen: HashMap::new(),
    };
    let stat = stat(&root).map_err(at(path))?;
    walk.node(&root, &stat, OsStr::new(""))?;
    walk.directory(&root, &mut OsString::new(), 0)
}

fn at(path: &Path) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |errno| Error::io(path)(errno.into())
}

impl Importer<'_> {
    /// The directory `path` as a root file system.
    pub(super) fn host_directory(&self, path: &Path) -> Result<Vec<ImportedImage>> {
        let (mut to, from) = pump();
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let mut tar = LayerTarWriter::new(&mut to);
                write(path, &self.options.limits, &mut tar)?;
                tar.finish().map_err(Error::Output)?;
                to.finish().map_err(Error::Output)
            });
            let imported = self.rootfs(from);
            let written = writer
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // If the tree did not fail, whoever read what was made of it knows more.
            if tree_failed(&written) {
                written?;
            }
            imported
        })
    }
}

/// Whether it was the tree that failed, not the one who reads what is made of it.
fn tree_failed(written: &Result<()>) -> bool {
    match written {
        Ok(()) => false,
        Err(Error::Output(error) | Error::Io { source: error, .. }) => !pump::is_reader_gone(error),
        Err(_) => true,
    }
}

struct Walk<'a, 'o> {
    root: PathBuf,
    limits: &'a Limits,
    tar: &'a mut LayerTarWriter<'o>,
    /// Files of several names, and the first of them.
    seen: HashMap<(u32, u32, u64), OsString>,
}

impl Walk<'_, '_> {
    fn host(&self, path: &OsStr) -> PathBuf {
        self.root.join(path)
    }

    fn unsupported(&self, path: &OsStr, reason: &str) -> Error {
        Error::Unsupported {
            what: self.host(path).display().to_string(),
            reason: reason.to_owned(),
        }
    }

    fn directory(&mut self, dir: &OwnedFd, path: &mut OsString, depth: usize) -> Result<()> {
        if depth > self.limits.components {
            return Err(self.unsupported(path, "directories are nested too deep"));
        }
        for name in self.names(dir, path)? {
            let len = path.len();
            if len > 0 {
                path.push("/");
            }
            path.push(OsStr::from_bytes(name.as_bytes()));
            self.entry(dir, &name, path, depth)?;
            let mut bytes = std::mem::take(path).into_vec();
            bytes.truncate(len);
            *path = OsString::from_vec(bytes);
        }
        Ok(())
    }

    /// The names in a directory, in byte order.
    fn names(&self, dir: &OwnedFd, path: &OsStr) -> Result<Vec<CString>> {
        let host = self.host(path);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir).map_err(at(&host))? {
            let entry = entry.map_err(at(&host))?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &CStr,
        path: &mut OsString,
        depth: usize,
    ) -> Result<()> {
        let host = self.host(path);
        if name.to_bytes().starts_with(b".wh.") {
            let reason = "a name that begins with .wh. is a whiteout in a layer and cannot be kept";
            return Err(self.unsupported(path, reason));
        }
        let place = open(dir, name, OFlags::PATH).map_err(at(&host))?;
        let stat = stat(&place).map_err(at(&host))?;
        let kind = FileKind::from_mode(u32::from(stat.stx_mode));
        if kind.is_some_and(FileKind::is_dir) {
            let inner = open(dir, name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(at(&host))?;
            let stat = self::stat(&inner).map_err(at(&host))?;
            self.node(&inner, &stat, path)?;
            return self.directory(&inner, path, depth + 1);
        }
        if kind == Some(FileKind::Regular) {
            let file = open(dir, name, OFlags::RDONLY | OFlags::NONBLOCK).map_err(at(&host))?;
            let stat = self::stat(&file).map_err(at(&host))?;
            return self.node(&file, &stat, path);
        }
        self.node(&place, &stat, path)
    }

    /// Writes one entry; `fd` is open for reading if it is a file.
    fn node(&mut self, fd: &OwnedFd, stat: &Statx, path: &OsStr) -> Result<()> {
        let host = self.host(path);
        let Some(attr) = attr(stat) else {
            return Err(self.unsupported(path, "a file of unknown type"));
        };
        if attr.kind == FileKind::CharDevice && attr.rdev == 0 {
            let reason =
                "it is a whiteout of an overlay; use ovl commit for what a mount has changed";
            return Err(self.unsupported(path, reason));
        }
        let xattrs = xattrs(fd).map_err(|error| Error::io(&host)(error))?;
        if let Some((name, _)) = xattrs.iter().find(|(name, _)| steers_an_overlay(name)) {
            let reason = format!(
                "its xattr {} is a mark of an overlay's upper directory; use ovl commit for what a mount has changed",
                name.display()
            );
            return Err(self.unsupported(path, &reason));
        }
        let several = stat.stx_nlink > 1 && !attr.kind.is_dir();
        if several {
            let id = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
            if let Some(target) = self.seen.get(&id) {
                let kind = EntryKind::HardLink {
                    target,
                    attr: &attr,
                    xattrs: &xattrs,
                };
                let entry = LayerEntry { path, kind };
                return self.tar.append(entry).map_err(Error::io(&host));
            }
            self.seen.insert(id, path.to_owned());
        }
        let node = |content| LayerEntry {
            path,
            kind: EntryKind::Node {
                attr: &attr,
                xattrs: &xattrs,
                content,
            },
        };
        let written = match attr.kind {
            FileKind::Symlink => {
                let target = rustix::fs::readlinkat(fd, c"", Vec::new()).map_err(at(&host))?;
                let target = OsStr::from_bytes(target.to_bytes());
                self.tar.append(node(NodeContent::Target(target)))
            }
            FileKind::Regular => {
                let file = File::from(fd.try_clone().map_err(Error::io(&host))?);
                let dense = stat.stx_blocks.saturating_mul(512) >= attr.size;
                let holes = if dense {
                    None
                } else {
                    extents(&file, attr.size)
                };
                let whole = [(0, attr.size)];
                let mut data = Stretches {
                    file: &file,
                    extents: holes.as_deref().unwrap_or(&whole),
                    done: 0,
                };
                self.tar.append(node(match &holes {
                    Some(extents) => NodeContent::Sparse(&mut data, extents),
                    None => NodeContent::Data(&mut data),
                }))
            }
            _ => self.tar.append(node(NodeContent::None)),
        };
        written.map_err(Error::io(&host))
    }
}

fn open(dir: &OwnedFd, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The kernel gives up when the tree is being renamed at the wrong moment.
    for _ in 0..64 {
        match rustix::fs::openat2(dir, name, flags, Mode::empty(), how) {
            Err(Errno::AGAIN) => continue,
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

fn stat(fd: &OwnedFd) -> rustix::io::Result<Statx> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
}

fn attr(stat: &Statx) -> Option<Attr> {
    let time = |time: rustix::fs::StatxTimestamp| Timestamp::new(time.tv_sec, time.tv_nsec);
    let kind = FileKind::from_mode(u32::from(stat.stx_mode))?;
    Some(Attr {
        kind,
        perm: u32::from(stat.stx_mode) & 0o7777,
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: if kind.is_device() {
            libc::makedev(stat.stx_rdev_major, stat.stx_rdev_minor)
        } else {
            0
        },
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        blksize: stat.stx_blksize,
        atime: time(stat.stx_atime),
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
    })
}

/// All xattrs that this process may see, in name order.
fn xattrs(fd: &OwnedFd) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    // The only name of what is open as a place, be it a symlink or a device.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let names = match grown(|buffer| rustix::fs::listxattr(path.as_str(), buffer)) {
        Ok(names) => names,
        Err(Errno::NOTSUP | Errno::PERM) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut xattrs = Vec::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        // A label belongs to the machine, not to the tree.
        if name == b"security.selinux" {
            continue;
        }
        match grown(|buffer| rustix::fs::getxattr(path.as_str(), name, buffer)) {
            Ok(value) => xattrs.push((OsString::from_vec(name.to_vec()), value)),
            // Gone meanwhile, or not for us.
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

/// Calls with larger buffers until the answer fits.
fn grown(
    mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1024];
    loop {
        match call(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(error) => return Err(error),
        }
    }
}

fn steers_an_overlay(name: &OsStr) -> bool {
    let name = name.as_bytes();
    [
        b"trusted.overlay.".as_slice(),
        b"user.overlay.",
        b"user.fuseoverlayfs.",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

/// Where a file has data. `None`: it cannot be told, or in too many places.
fn extents(file: &File, size: u64) -> Option<Vec<(u64, u64)>> {
    let (mut extents, mut at) = (Vec::new(), 0);
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))
            .ok()?
            .min(size);
        if end <= start || extents.len() == MAX_EXTENTS {
            return None;
        }
        extents.push((start, end - start));
        at = end;
    }
    Some(extents)
}

/// Reads stretches of a file one after the other.
struct Stretches<'a> {
    file: &'a File,
    extents: &'a [(u64, u64)],
    /// Bytes read of the first.
    done: u64,
}

impl Read for Stretches<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(((offset, len), rest)) = self.extents.split_first() {
            let left = len - self.done;
            if left == 0 {
                (self.extents, self.done) = (rest, 0);
                continue;
            }
            let want = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = self.file.read_at(&mut buf[..want], offset + self.done)?;
            self.done += got as u64;
            return Ok(got);
        }
        Ok(0)
    }
}
