//! A tree written to a directory of the host, or as the tar of a root file system.
//!
//! What is written comes from an image, so its names are not trusted: every parent is reached from the new directory with
//! `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)`, every object is made new, and owner, mode, times and
//! xattrs are set on descriptors, or on a last name that is not followed. Nobody else can look in before all is done: the
//! directory is 0700 until then, and appears under its name whole or not at all.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags,
};

use crate::meta::{Attr, FileKind};

use super::layer_tar::{EntryKind, EntrySink, LayerEntry, LayerTarWriter, NodeContent};
use super::output::{OutputDir, OutputFile};
use super::{Error, ExportTarget, Result};

/// Zeros in a row that become a hole, bytes.
const HOLE: usize = 4096;

/// Writes what `entries` gives as a tar.
///
/// # Errors
/// Those of `entries` ([`Error::Changes`]) and of the output. A failure leaves no file.
pub fn export_rootfs(
    target: ExportTarget<'_>,
    entries: impl FnOnce(&mut dyn EntrySink) -> io::Result<()>,
) -> Result<()> {
    let write = |out: &mut dyn Write| {
        let mut out = io::BufWriter::with_capacity(256 << 10, out);
        let mut tar = LayerTarWriter::new(&mut out);
        entries(&mut tar).map_err(Error::Changes)?;
        tar.finish().map_err(Error::Output)
    };
    match target {
        ExportTarget::Stream(out) => write(out),
        ExportTarget::Path(path) => {
            let mut file = OutputFile::create(path)?;
            write(file.writer())?;
            file.publish()
        }
    }
}

/// Writes what `entries` gives, a whole tree with parents before what is in them, to the directory `path`, which must not
/// be there, or be empty.
///
/// # Errors
/// [`Error::Unsupported`] unless root, [`Error::Exists`], those of `entries` ([`Error::Changes`]) and of the file system. A
/// failure leaves nothing.
pub fn export_tree(
    path: &Path,
    entries: impl FnOnce(&mut dyn EntrySink) -> io::Result<()>,
) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Unsupported {
            what: path.display().to_string(),
            reason: "only root can give files to their owners; export to rootfs:FILE, or mount the image"
                .to_owned(),
        });
    }
    let mut dir = OutputDir::create(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(dir.path(), flags, Mode::empty());
    let root = opened.map_err(|errno| Error::io(path)(errno.into()))?;
    rustix::fs::fchmod(&root, Mode::RWXU).map_err(|errno| Error::io(path)(errno.into()))?;
    let mut tree = TreeWriter {
        root,
        directories: Vec::new(),
    };
    entries(&mut tree).map_err(Error::Changes)?;
    tree.finish().map_err(Error::io(path))?;
    dir.publish()
}

struct TreeWriter {
    root: OwnedFd,
    /// What directories shall be when nothing is put into them any more.
    directories: Vec<(OsString, Attr, Xattrs)>,
}

type Xattrs = Vec<(OsString, Vec<u8>)>;

impl EntrySink for TreeWriter {
    fn append(&mut self, entry: LayerEntry<'_>) -> io::Result<()> {
        let (attr, xattrs, content) = match entry.kind {
            EntryKind::Node {
                attr,
                xattrs,
                content,
            } => (attr, xattrs, content),
            EntryKind::HardLink { target, .. } => return self.link(target, entry.path),
            // A merged tree has neither.
            EntryKind::Whiteout | EntryKind::Opaque => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        };
        if attr.kind == FileKind::Directory {
            if !entry.path.is_empty() {
                let (parent, name) = self.place(entry.path)?;
                rustix::fs::mkdirat(&parent, &name, Mode::RWXU)?;
            }
            let wanted = (entry.path.to_owned(), attr.clone(), xattrs.to_vec());
            self.directories.push(wanted);
            return Ok(());
        }
        let (parent, name) = self.place(entry.path)?;
        match (attr.kind, content) {
            (FileKind::Regular, content) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let mode = Mode::RUSR | Mode::WUSR;
                let file = rustix::fs::openat(&parent, &name, flags | OFlags::CLOEXEC, mode)?;
                let file = std::fs::File::from(file);
                if let NodeContent::Data(data) = content {
                    copy(data, &file, attr.size)?;
                }
                return describe(&file.into(), attr, xattrs);
            }
            (FileKind::Symlink, NodeContent::Target(target)) => {
                rustix::fs::symlinkat(target, &parent, &name)?;
            }
            (kind, _) => {
                let file_type = match kind {
                    FileKind::CharDevice => FileType::CharacterDevice,
                    FileKind::BlockDevice => FileType::BlockDevice,
                    FileKind::Fifo => FileType::Fifo,
                    FileKind::Socket => FileType::Socket,
                    _ => return Err(io::ErrorKind::InvalidInput.into()),
                };
                let mode = Mode::RUSR | Mode::WUSR;
                rustix::fs::mknodat(&parent, &name, file_type, mode, attr.rdev)?;
            }
        }
        let made = rustix::fs::openat2(
            &parent,
            &name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            beneath(),
        )?;
        describe(&made, attr, xattrs)
    }
}

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

impl TreeWriter {
    fn directory(&self, path: &OsStr) -> io::Result<OwnedFd> {
        let path = if path.is_empty() {
            OsStr::new(".")
        } else {
            path
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(
            &self.root,
            path,
            flags,
            Mode::empty(),
            beneath(),
        )?)
    }

    /// The directory a path is in, and its last name.
    fn place(&self, path: &OsStr) -> io::Result<(OwnedFd, CString)> {
        let bytes = path.as_bytes();
        let (parent, name) = match bytes.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&bytes[..slash], &bytes[slash + 1..]),
            None => (&b""[..], bytes),
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok((
            self.directory(OsStr::from_bytes(parent))?,
            CString::new(name)?,
        ))
    }

    fn link(&self, target: &OsStr, path: &OsStr) -> io::Result<()> {
        let (from, old) = self.place(target)?;
        let (to, new) = self.place(path)?;
        Ok(rustix::fs::linkat(
            &from,
            &old,
            &to,
            &new,
            AtFlags::empty(),
        )?)
    }

    /// Gives the directories what they shall have, the innermost first.
    fn finish(self) -> io::Result<()> {
        for (path, attr, xattrs) in self.directories.iter().rev() {
            describe(&self.directory(path)?, attr, xattrs)?;
        }
        Ok(rustix::fs::syncfs(&self.root)?)
    }
}

/// Owner, xattrs, mode and time of what was made, in the order in which none undoes another.
fn describe(fd: &OwnedFd, attr: &Attr, xattrs: &[(OsString, Vec<u8>)]) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(attr.uid), Gid::from_raw(attr.gid));
    rustix::fs::chownat(fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    // A descriptor's own name: the only one that reaches a symlink or a device without opening it.
    let own = format!("/proc/self/fd/{}", fd.as_raw_fd());
    for (name, value) in xattrs {
        rustix::fs::setxattr(own.as_str(), name.as_os_str(), value, XattrFlags::empty())?;
    }
    if attr.kind != FileKind::Symlink {
        rustix::fs::chmod(own.as_str(), Mode::from_raw_mode(attr.perm & 0o7777))?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: attr.mtime.secs,
            tv_nsec: attr.mtime.nanos.into(),
        },
    };
    Ok(rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?)
}

/// Copies exactly `size` bytes; long stretches of zeros become holes.
fn copy(data: &mut dyn Read, file: &std::fs::File, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    let mut at = 0;
    while at < size {
        let want = buffer
            .len()
            .min(usize::try_from(size - at).unwrap_or(usize::MAX));
        let mut piece = data.take(want as u64);
        let mut filled = 0;
        while filled < want {
            match piece.read(&mut buffer[filled..want])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => filled += n,
            }
        }
        for (i, block) in buffer[..filled].chunks(HOLE).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, at + (i * HOLE) as u64)?;
            }
        }
        at += filled as u64;
    }
    file.set_len(size)
}
