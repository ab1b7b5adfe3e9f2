//! Reading a layer's tree. Every value is checked on its way in: a crafted row is an error, never a panic.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::{Arc, LazyLock};

use rusqlite::{OptionalExtension, Row};

use super::content::ContentReader;
use super::extents::MAX_SIZE;
use super::tree::{FLAG_IMPLICIT, FLAG_OPAQUE, is_name};
use super::{ContentRef, Digest, Error, LayerInfo, Result, Shared, kind, layers, xattrs};
use crate::meta::{FileKind, Timestamp};

/// Inode number of every layer's root.
pub const ROOT_INODE: u64 = 1;

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
        })
    }

    /// What is known of the layer as a whole.
    pub fn info(&self) -> &LayerInfo {
        &self.info
    }

    /// One name of a directory; `None`: this layer says nothing of it.
    pub fn lookup(&self, dir: u64, name: &OsStr) -> Result<Option<Dirent>> {
        let found: Option<(i64, i64)> = self.shared.database.read(|conn| {
            Ok(conn
                .prepare_cached(
                    "SELECT ino, kind FROM dentry WHERE layer = ?1 AND parent = ?2 AND name = ?3",
                )?
                .query_row((self.layer, dir as i64, name.as_bytes()), |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?)
        })?;
        found
            .map(|(ino, kind)| self.dirent(name.as_bytes(), ino, kind))
            .transpose()
    }

    /// The same with its attributes, which are `None` for a whiteout and where they are damaged: asked for by
    /// [`Self::inode`] they are an error.
    pub fn lookup_with_inode(
        &self,
        dir: u64,
        name: &OsStr,
    ) -> Result<Option<(Dirent, Option<Inode>)>> {
        let found = self.shared.database.read(|conn| {
            let mut statement = conn.prepare_cached(&LOOKUP_WITH_INODE)?;
            let row = statement.query_row((self.layer, dir as i64, name.as_bytes()), |row| {
                let (ino, kind): (i64, i64) = (row.get(13)?, row.get(14)?);
                Ok((ino, kind, inode_from(ino as u64, row).ok()))
            });
            Ok(row.optional()?)
        })?;
        found
            .map(|(ino, kind, inode)| {
                let dirent = self.dirent(name.as_bytes(), ino, kind)?;
                let inode = inode.filter(|inode| dirent.target == Some((inode.ino, inode.kind)));
                Ok((dirent, inode))
            })
            .transpose()
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
        self.shared.database.read(|conn| {
            conn.prepare_cached(&INODE)?
                .query_row((self.layer, ino as i64), |row| Ok(inode_from(ino, row)))
                .optional()?
                .ok_or_else(|| self.damaged(&format!("there is no inode {ino}")))?
                .map_err(|error| match error {
                    Error::Corrupt(why) => self.damaged(&format!("inode {ino}: {why}")),
                    other => other,
                })
        })
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

/// A name of a directory with its inode: the columns that [`inode_from`] reads, then those of the name.
static LOOKUP_WITH_INODE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {INODE_COLUMNS}, entry_ino, entry_kind
         FROM (SELECT layer AS of_layer, ino AS entry_ino, kind AS entry_kind FROM dentry
               WHERE layer = ?1 AND parent = ?2 AND name = ?3)
         LEFT JOIN inode ON layer = of_layer AND ino = entry_ino"
    )
});

/// Reads and checks a row of [`INODE_COLUMNS`].
pub(super) fn inode_from(ino: u64, row: &Row<'_>) -> Result<Inode> {
    let damaged = |what: &str| Error::Corrupt(format!("it has an impossible {what}"));
    let size = |index| {
        let value: i64 = row.get(index)?;
        u64::try_from(value)
            .ok()
            .filter(|size| *size <= MAX_SIZE)
            .ok_or_else(|| damaged("size"))
    };
    let small = |index, what| u32::try_from(row.get::<_, i64>(index)?).map_err(|_| damaged(what));
    let kind = kind::from_code(row.get(0)?).ok_or_else(|| damaged("kind"))?;
    let flags: i64 = row.get(10)?;
    let total = size(6)?;
    let data_size = if row.get::<_, Option<i64>>(7)?.is_some() {
        size(7)?
    } else {
        total
    };
    let nanos = small(5, "time")?;
    if nanos >= 1_000_000_000 || data_size > total {
        return Err(damaged("time or size"));
    }
    let content = match (kind, row.get(11)?) {
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
        mtime: Timestamp::new(row.get(4)?, nanos),
        size: total,
        data_size,
        nlink: small(8, "link count")?,
        rdev: row.get::<_, i64>(9)? as u64,
        opaque: flags & FLAG_OPAQUE != 0,
        implicit: flags & FLAG_IMPLICIT != 0,
        has_xattrs: row.get(12)?,
        content,
    })
}
