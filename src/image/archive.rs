//! Archives of images that can be read at any place: a plain tar file, indexed once by seeking from header to header,
//! or an OCI layout directory.
//!
//! Names from documents are looked up among the archive's members only. Symlink members lead to members, never to the
//! host; in a directory no symlink is followed at all.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::limits::Limits;
use super::tar::{Entry, Kind, TarError, TarReader};
use super::{Error, Result};

/// Bytes of member names that are kept.
const MAX_NAMES: usize = 16 << 20;
/// Symlinks in a row that are followed within an archive.
const MAX_LINKS: usize = 8;

/// Where a member's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// Symlink or hard link to another member.
    Link(Vec<u8>),
}

impl Member {
    /// What an entry is, if it can be read as a member; its body begins at `offset`.
    pub fn of(entry: &Entry, offset: u64) -> Option<Self> {
        match entry.kind {
            Kind::Regular if entry.extents.is_none() => Some(Self::File {
                offset,
                size: entry.stored,
            }),
            Kind::Symlink => symlink_target(&entry.path, &entry.link).map(Self::Link),
            Kind::HardLink => member_path(&entry.link).map(Self::Link),
            _ => None,
        }
    }
}

/// The members of a tar by normalised path; of members of one name the last counts, as in any tar.
#[derive(Default)]
pub struct Members {
    by_path: HashMap<Vec<u8>, Member>,
    /// A document that decides what the archive is was there twice.
    pub twice: Option<&'static str>,
    /// Some member looks like part of an archive of images.
    pub image_like: bool,
    pub any: bool,
    /// Some member lies in a directory that root file systems have.
    system_like: bool,
    /// Bytes of the names and link targets in `by_path`.
    names: usize,
    /// More members than an archive of images may have: only documents are kept.
    overflow: bool,
}

impl Members {
    /// Notes a member; ordinary files of a root file system are not worth keeping once there are many.
    pub fn insert(&mut self, path: &[u8], member: Member, limits: &Limits) {
        self.any = true;
        let Some(path) = member_path(path) else {
            return;
        };
        let decisive = ["manifest.json", "index.json", "oci-layout"]
            .into_iter()
            .find(|name| name.as_bytes() == path);
        self.image_like |= is_image_like(&path);
        self.system_like |= is_system_like(&path);
        self.names += path.len();
        if let Member::Link(target) = &member {
            self.names += target.len();
        }
        let full = self.by_path.len() >= limits.members || self.names > MAX_NAMES;
        if decisive.is_none() && full {
            self.overflow = true;
            return;
        }
        if self.by_path.insert(path, member).is_some() {
            self.twice = self.twice.or(decisive);
        }
    }

    /// Follows links to the file a name stands for.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<(Vec<u8>, u64, u64)>> {
        let mut path = member_path(path).ok_or_else(|| outside(path))?;
        for _ in 0..MAX_LINKS {
            match self.by_path.get(&path) {
                None => return Ok(None),
                Some(&Member::File { offset, size }) => return Ok(Some((path, offset, size))),
                Some(Member::Link(target)) => path = target.clone(),
            }
        }
        Err(Error::document(
            path.escape_ascii().to_string(),
            "symlinks in a circle within the archive",
        ))
    }

    /// Whether it looks like the tar of a root file system.
    pub fn has_directories_of_a_system(&self) -> bool {
        self.system_like
    }

    /// Whether members were left out.
    pub fn overflow(&self) -> bool {
        self.overflow
    }
}

fn outside(path: &[u8]) -> Error {
    Error::document(
        path.escape_ascii().to_string(),
        "a name that leads out of the archive",
    )
}

/// Target of a symlink member, relative to the member's directory; `None` if it leads out of the archive.
fn symlink_target(member: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    if target.starts_with(b"/") {
        return None;
    }
    let member = member_path(member)?;
    let dir = member
        .iter()
        .rposition(|&b| b == b'/')
        .map_or(&b""[..], |slash| &member[..slash]);
    member_path(&[dir, b"/", target].concat())
}

/// A member's path: `.` and empty components dropped, `..` resolved; `None` if that leads out.
pub fn member_path(raw: &[u8]) -> Option<Vec<u8>> {
    let mut path: Vec<&[u8]> = Vec::new();
    for component in raw.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                path.pop()?;
            }
            name => path.push(name),
        }
    }
    Some(path.join(&b'/'))
}

/// Whether a member's name is one that archives of images have and root file systems have not.
pub fn is_image_like(path: &[u8]) -> bool {
    let hex = |name: &[u8]| {
        name.len() == 64
            && name
                .iter()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    };
    let stem = path.strip_prefix(b"sha256:").unwrap_or(path);
    let stem = stem
        .split(|&b| b == b'/' || b == b'.')
        .next()
        .unwrap_or_default();
    path == b"oci-layout" || path.starts_with(b"blobs/sha256") || hex(stem)
}

/// Whether a member's name begins like those of root file systems do.
pub fn is_system_like(path: &[u8]) -> bool {
    const TOP: [&str; 22] = [
        "bin",
        "boot",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "media",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "sbin",
        "srv",
        "sys",
        "tmp",
        "usr",
        "var",
        "nix",
        ".dockerenv",
    ];
    let top = path.split(|&b| b == b'/').next().unwrap_or_default();
    TOP.iter().any(|name| name.as_bytes() == top)
}

/// A seekable tar file.
pub struct TarFile {
    file: Arc<File>,
    what: String,
    pub members: Members,
}

impl TarFile {
    /// Reads the headers of the whole archive.
    pub fn index(file: File, what: &str, limits: &Limits) -> Result<Self> {
        let located = |source: TarError| Error::Tar {
            what: what.to_owned(),
            source,
        };
        let file = Arc::new(file);
        let len = file.metadata().map_err(Error::io(what))?.len();
        let mut members = Members::default();
        let mut input = BufReader::with_capacity(4096, &*file);
        input.seek(SeekFrom::Start(0)).map_err(Error::io(what))?;
        let mut tar = TarReader::new(input, limits.tar());
        while let Some(entry) = tar.next(&mut |_| Ok(())).map_err(located)? {
            let member = Member::of(&entry, tar.offset());
            members.any = true;
            if let Some(member) = member {
                members.insert(&entry.path, member, limits);
            }
            tar.skip_body(len, |input, skip| {
                input.seek_relative(i64::try_from(skip).map_err(io::Error::other)?)
            })
            .map_err(located)?;
        }
        Ok(Self {
            file,
            what: what.to_owned(),
            members,
        })
    }

    /// The bytes of a member.
    fn open(&self, path: &[u8]) -> Result<Option<(Section, u64)>> {
        let found = self.members.resolve(path)?;
        Ok(found.map(|(_, at, size)| {
            (
                Section {
                    file: self.file.clone(),
                    at,
                    end: at + size,
                },
                size,
            )
        }))
    }
}

/// A range of a file as a stream of its own position.
pub struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let want = buf.len().min(left);
        if want == 0 {
            return Ok(0);
        }
        match self.file.read_at(&mut buf[..want], self.at)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.at += n as u64;
                Ok(n)
            }
        }
    }
}

/// An OCI layout directory.
pub struct LayoutDir {
    dir: File,
    what: String,
}

impl LayoutDir {
    pub fn open(path: &Path) -> Result<Self> {
        let dir = File::open(path).map_err(Error::io(path))?;
        Ok(Self {
            dir,
            what: path.display().to_string(),
        })
    }

    pub fn has(&self, name: &str) -> bool {
        matches!(self.open_file(name.as_bytes()), Ok(Some(_)))
    }

    /// Whether it is what `skopeo copy` writes to its `dir:`: one image, blobs by the digits of their digests.
    pub fn is_skopeo_dir(&self) -> bool {
        let mut head = [0; 27];
        let version = self.open_file(b"version").ok().flatten();
        version.is_some_and(|(mut file, _)| file.read_exact(&mut head).is_ok())
            && head == *b"Directory Transport Version"
            && self.has("manifest.json")
    }

    fn open_file(&self, path: &[u8]) -> Result<Option<(File, u64)>> {
        let name = || format!("{}/{}", self.what, path.escape_ascii());
        // Never blocks on a FIFO, follows no symlink, stays beneath.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = match rustix::fs::openat2(
            &self.dir,
            OsStr::from_bytes(path),
            flags,
            Mode::empty(),
            resolve,
        ) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::XDEV) => {
                return Err(Error::document(
                    name(),
                    "symlinks are not followed in an image directory",
                ));
            }
            Err(error) => return Err(Error::io(name())(error.into())),
        };
        let meta = file.metadata().map_err(Error::io(name()))?;
        if !meta.is_file() {
            return Err(Error::document(name(), "not a regular file"));
        }
        Ok(Some((file, meta.size())))
    }
}

/// An archive open for random access.
pub enum Archive {
    Tar(TarFile),
    Dir(LayoutDir),
}

impl Archive {
    /// Opens the member `path`, if it is there, with its size.
    pub fn open(&self, path: &[u8]) -> Result<Option<(Box<dyn Read + Send>, u64)>> {
        Ok(match self {
            Self::Tar(tar) => tar
                .open(path)?
                .map(|(section, size)| (Box::new(section) as _, size)),
            Self::Dir(dir) => dir
                .open_file(path)?
                .map(|(file, size)| (Box::new(file) as _, size)),
        })
    }

    /// A whole document of at most `max` bytes.
    pub fn document(&self, path: &[u8], max: u64) -> Result<Option<Vec<u8>>> {
        let Some((reader, size)) = self.open(path)? else {
            return Ok(None);
        };
        let what = || format!("{} in {}", path.escape_ascii(), self.what());
        check_document_size(what, size, max)?;
        let mut bytes = Vec::new();
        reader
            .take(max)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Read {
                what: what(),
                source,
            })?;
        Ok(Some(bytes))
    }

    fn what(&self) -> &str {
        match self {
            Self::Tar(tar) => &tar.what,
            Self::Dir(dir) => &dir.what,
        }
    }
}

pub fn check_document_size(what: impl FnOnce() -> String, size: u64, max: u64) -> Result<()> {
    if size > max {
        return Err(Error::Limit {
            what: what(),
            max,
            unit: "bytes for a document",
            flag: "--max-document-size",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for (raw, want) in [
            ("a/b", Some("a/b")),
            ("./a//b/", Some("a/b")),
            ("/etc/shadow", Some("etc/shadow")),
            ("a/../b", Some("b")),
            ("../b", None),
            ("a/../../b", None),
        ] {
            assert_eq!(
                member_path(raw.as_bytes()).as_deref(),
                want.map(str::as_bytes),
                "{raw}"
            );
        }
        assert_eq!(
            symlink_target(b"x/layer.tar", b"../y.tar").as_deref(),
            Some(&b"y.tar"[..])
        );
        assert_eq!(symlink_target(b"x/layer.tar", b"../../y.tar"), None);
        assert_eq!(symlink_target(b"x/layer.tar", b"/etc/shadow"), None);
    }
}
