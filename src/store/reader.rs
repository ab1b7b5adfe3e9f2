//! Reading a layer's tree. Every value is checked on its way in: a crafted row is an error, never a panic.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::{Arc, LazyLock};

use quick_cache::sync::Cache;
use rusqlite::{OptionalExtension, Row};

use super::content::ContentReader;
use super::extents::MAX_SIZE;
use super::tree::{FLAG_IMPLICIT, FLAG_OPAQUE, is_name};
use super::{ContentRef, Digest, Error, LayerInfo, Result, Shared, kind, layers, xattrs};
use crate::meta::{FileKind, Timestamp};

/// Inode number of every layer's root.
pub const ROOT_INODE: u64 = 1;
/// Inodes kept by each reader of a layer: who looks a name up mostly asks more of it soon.
const INODES_KEPT: usize = 256;

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent {
    pub name: OsString,
    /// What the name stands for; `None` is a whiteout.
    pub target: Option<(u64, FileKind)>,
}

/// Attributes of a node of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    pub ino: u64,
    pub kind: FileKind,
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub size: u64,
    /// Allocated bytes a directory copy would take: size less its holes.
    pub data_size: u64,
    /// Names in this layer; of a directory, 2 and its subdirectories.
    pub nlink: u32,
    /// As `libc::makedev`; 0 for what is no device.
    pub rdev: u64,
    pub opaque: bool,
    /// A directory that the layer never names, only things in it: its attributes are made up, and where a lower layer
    /// has the directory, its attributes are the right ones.
    pub implicit: bool,
    pub has_xattrs: bool,
    /// Regular files: what to give to `open_content`.
    pub content: ContentRef,
}

/// One layer's tree. Usable from many threads at once.
#[derive(Clone)]
pub struct LayerReader {
    shared: Arc<Shared>,
    layer: i64,
    info: Arc<LayerInfo>,
    /// Those read last. A layer in the store does not change, but for what a repair puts right.
    inodes: Arc<Cache<u64, Inode>>,
}

impl LayerReader {
    pub(super) fn open(shared: &Arc<Shared>, diff_id: &Digest) -> Result<Self> {
        let (layer, info) = shared
            .database
            .read(|conn| layers::find(conn, diff_id))?
            .ok_or_else(|| Error::NotFound(format!("layer {diff_id} is not in the store")))?;
        Ok(Self {
            shared: Arc::clone(shared),
            layer,
            info: Arc::new(info),
            inodes: Arc::new(Cache::new(INODES_KEPT)),
        })
    }

    /// What is known of the layer as a whole.
    pub fn info(&self) -> &LayerInfo {
        &self.info
    }

    /// One name of a directory; `None`: this layer says nothing of it.
    pub fn lookup(&self, dir: u64, name: &OsStr) -> Result<Option<Dirent>> {
        Ok(self.find(dir, name)?.map(|(dirent, _)| dirent))
    }

    /// The same with the node itself, which is `None` for a whiteout, and where it is damaged.
    pub fn find(&self, dir: u64, name: &OsStr) -> Result<Option<(Dirent, Option<Inode>)>> {
        let found: Option<(i64, i64, Result<Inode>)> = self.shared.database.read(|conn| {
            Ok(conn
                .prepare_cached(&FIND)?
                .query_row((self.layer, dir as i64, name.as_bytes()), |row| {
                    let (ino, kind): (i64, i64) = (row.get(0)?, row.get(1)?);
                    Ok((ino, kind, inode_from(ino as u64, row, 2)))
                })
                .optional()?)
        })?;
        let Some((ino, kind, inode)) = found else {
            return Ok(None);
        };
        let dirent = self.dirent(name.as_bytes(), ino, kind)?;
        let inode = inode.ok().filter(|_| dirent.target.is_some());
        if let Some(inode) = &inode {
            self.inodes.insert(inode.ino, inode.clone());
        }
        Ok(Some((dirent, inode)))
    }

    /// All entries, in name (byte) order.
    pub fn read_dir(&self, dir: u64) -> Result<Vec<Dirent>> {
        self.shared.database.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT name, ino, kind FROM dentry WHERE layer = ?1 AND parent = ?2 ORDER BY name",
            )?;
            let mut rows = statement.query((self.layer, dir as i64))?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                let name = row
                    .get_ref(0)?
                    .as_blob()
                    .map_err(|_| self.damaged("a name is no blob"))?;
                entries.push(self.dirent(name, row.get(1)?, row.get(2)?)?);
            }
            Ok(entries)
        })
    }

    /// Attributes of a node.
    pub fn inode(&self, ino: u64) -> Result<Inode> {
        if let Some(known) = self.inodes.get(&ino) {
            return Ok(known);
        }
        let inode = self.shared.database.read(|conn| {
            conn.prepare_cached(&INODE)?
                .query_row((self.layer, ino as i64), |row| Ok(inode_from(ino, row, 0)))
                .optional()?
                .ok_or_else(|| self.damaged(&format!("there is no inode {ino}")))?
                .map_err(|error| match error {
                    Error::Corrupt(why) => self.damaged(&format!("inode {ino}: {why}")),
                    other => other,
                })
        })?;
        self.inodes.insert(ino, inode.clone());
        Ok(inode)
    }

    /// Where a symlink points.
    pub fn symlink_target(&self, ino: u64) -> Result<OsString> {
        let target: Option<Vec<u8>> = self.shared.database.read(|conn| {
            Ok(conn
                .prepare_cached("SELECT target FROM inode WHERE layer = ?1 AND ino = ?2")?
                .query_row((self.layer, ino as i64), |row| row.get(0))
                .optional()?
                .flatten())
        })?;
        match target {
            Some(target) if !target.is_empty() && !target.contains(&0) => {
                Ok(OsString::from_vec(target))
            }
            _ => Err(self.damaged(&format!("inode {ino} has no symlink target"))),
        }
    }

    /// Extended attributes, in name order.
    pub fn xattrs(&self, ino: u64) -> Result<Vec<(OsString, Vec<u8>)>> {
        self.shared.database.read(|conn| {
            let mut statement =
                conn.prepare_cached("SELECT xattrs FROM inode WHERE layer = ?1 AND ino = ?2")?;
            let mut rows = statement.query((self.layer, ino as i64))?;
            match rows.next()? {
                None => Err(self.damaged(&format!("there is no inode {ino}"))),
                Some(row) => match row.get_ref(0)?.as_blob_or_null() {
                    Ok(None) => Ok(Vec::new()),
                    Ok(Some(blob)) => xattrs::decode(blob),
                    Err(_) => {
                        Err(self.damaged(&format!("inode {ino} has attributes that are no blob")))
                    }
                },
            }
        })
    }

    /// Opens a regular file's bytes.
    pub fn open_content(&self, content: ContentRef) -> Result<ContentReader> {
        ContentReader::open(&self.shared, content)
    }

    fn dirent(&self, name: &[u8], ino: i64, kind: i64) -> Result<Dirent> {
        let target = match (ino, kind) {
            (0, kind::WHITEOUT) => None,
            (1.., _) => {
                let kind = kind::from_code(kind)
                    .ok_or_else(|| self.damaged("a name stands for an unknown kind"))?;
                Some((ino as u64, kind))
            }
            _ => return Err(self.damaged("a name stands for an impossible inode")),
        };
        if !is_name(name) {
            return Err(self.damaged("a directory holds an impossible name"));
        }
        Ok(Dirent {
            name: OsString::from_vec(name.to_vec()),
            target,
        })
    }

    fn damaged(&self, what: &str) -> Error {
        Error::Corrupt(format!("layer {}: {what}", self.info.diff_id))
    }
}

/// What [`inode_from`] reads, in its order.
pub(super) const INODE_COLUMNS: &str = "kind, perm, uid, gid, mtime_s, mtime_ns, size, data_size, nlink, rdev, flags, \
    content, xattrs IS NOT NULL";

static INODE: LazyLock<String> =
    LazyLock::new(|| format!("SELECT {INODE_COLUMNS} FROM inode WHERE layer = ?1 AND ino = ?2"));

static FIND: LazyLock<String> = LazyLock::new(|| {
    let columns: Vec<String> = INODE_COLUMNS
        .split(", ")
        .map(|column| format!("i.{column}"))
        .collect();
    format!(
        "SELECT d.ino, d.kind, {} FROM dentry d LEFT JOIN inode i ON i.layer = d.layer AND i.ino = d.ino \
         WHERE d.layer = ?1 AND d.parent = ?2 AND d.name = ?3",
        columns.join(", ")
    )
});

/// Reads and checks a row of [`INODE_COLUMNS`], which begin with column `first`.
pub(super) fn inode_from(ino: u64, row: &Row<'_>, first: usize) -> Result<Inode> {
    let damaged = |what: &str| Error::Corrupt(format!("it has an impossible {what}"));
    let size = |index| {
        let value: i64 = row.get(first + index)?;
        u64::try_from(value)
            .ok()
            .filter(|size| *size <= MAX_SIZE)
            .ok_or_else(|| damaged("size"))
    };
    let small =
        |index, what| u32::try_from(row.get::<_, i64>(first + index)?).map_err(|_| damaged(what));
    let kind = kind::from_code(row.get(first)?).ok_or_else(|| damaged("kind"))?;
    let flags: i64 = row.get(first + 10)?;
    let total = size(6)?;
    let data_size = if row.get::<_, Option<i64>>(first + 7)?.is_some() {
        size(7)?
    } else {
        total
    };
    let nanos = small(5, "time")?;
    if nanos >= 1_000_000_000 || data_size > total {
        return Err(damaged("time or size"));
    }
    let content = match (kind, row.get(first + 11)?) {
        (FileKind::Regular, 0) if total == 0 => ContentRef::EMPTY,
        (FileKind::Regular, raw) => ContentRef::stored(raw).map_err(|_| damaged("content"))?,
        _ => ContentRef::EMPTY,
    };
    Ok(Inode {
        ino,
        kind,
        perm: small(1, "mode")? & 0o7777,
        uid: small(2, "owner")?,
        gid: small(3, "group")?,
        mtime: Timestamp::new(row.get(first + 4)?, nanos),
        size: total,
        data_size,
        nlink: small(8, "link count")?,
        rdev: row.get::<_, i64>(first + 9)? as u64,
        opaque: flags & FLAG_OPAQUE != 0,
        implicit: flags & FLAG_IMPLICIT != 0,
        has_xattrs: row.get(first + 12)?,
        content,
    })
}
