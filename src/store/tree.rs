//! Builds a layer's tree in temporary tables, one entry at a time, in any order, with memory bounded by SQLite's cache.
//!
//! Owns the rules of replacement: a later entry takes an earlier one's name; a directory on a directory changes its
//! attributes only; a directory that takes the place of something else, or of a whiteout, is opaque, because what lies
//! below the name in lower layers was hidden by what stood here before.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rusqlite::{Connection, OptionalExtension};

use super::kind::{self, DIRECTORY, WHITEOUT};
use super::{Error, ROOT_INODE, Result};
use crate::meta::{FileKind, Timestamp};

/// `inode.flags`: the directory hides lower layers.
pub(super) const FLAG_OPAQUE: i64 = 1;
/// `inode.flags`: the directory was never named by the layer, only needed as a parent.
pub(super) const FLAG_IMPLICIT: i64 = 2;

/// Directories whose inode is remembered by path; forgotten all at once when full.
const PATH_CACHE: usize = 4096;
const NAME_MAX: usize = 255;
/// How often the links that wait for later entries are gone through.
const LINK_PASSES: u32 = 16;

const TABLES: &str = "
    CREATE TEMP TABLE t_inode (ino INTEGER PRIMARY KEY, kind INTEGER, perm INTEGER, uid INTEGER, gid INTEGER,
        mtime_s INTEGER, mtime_ns INTEGER, size INTEGER, data_size INTEGER, nlink INTEGER, rdev INTEGER, flags INTEGER,
        content INTEGER, target BLOB, xattrs BLOB) STRICT;
    CREATE TEMP TABLE t_dentry (parent INTEGER, name BLOB, ino INTEGER, kind INTEGER, hides INTEGER,
        PRIMARY KEY (parent, name)) STRICT, WITHOUT ROWID;
    CREATE TEMP TABLE t_link (id INTEGER PRIMARY KEY, parent INTEGER, name BLOB, path BLOB, target BLOB,
        UNIQUE (parent, name)) STRICT;
    BEGIN;
";

/// A node to be put into the tree, as its row will hold it.
pub(super) struct Row {
    pub(super) kind: FileKind,
    pub(super) perm: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) size: u64,
    pub(super) data_size: u64,
    pub(super) rdev: u64,
    pub(super) content: i64,
    pub(super) target: Option<Vec<u8>>,
    pub(super) xattrs: Option<Vec<u8>>,
}

impl Row {
    fn implicit_directory() -> Self {
        Self {
            kind: FileKind::Directory,
            perm: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            size: 0,
            data_size: 0,
            rdev: 0,
            content: 0,
            target: None,
            xattrs: None,
        }
    }
}

struct Entry {
    /// 0: only a whiteout.
    ino: i64,
    kind: i64,
    /// The name hides lower layers even if a directory takes it.
    hides: bool,
}

pub(super) struct Tree {
    conn: Connection,
    next_ino: i64,
    directories: HashMap<Vec<u8>, i64>,
    /// The directory of the entry before: entries of a directory come together.
    last: (Vec<u8>, i64),
    pending_links: u64,
}

impl Tree {
    /// Starts with an empty root on a connection that may have temporary tables.
    pub(super) fn new(conn: Connection) -> Result<Self> {
        conn.execute_batch(TABLES)?;
        let root = ROOT_INODE as i64;
        let mut tree = Self {
            conn,
            next_ino: root,
            directories: HashMap::new(),
            last: (Vec::new(), root),
            pending_links: 0,
        };
        tree.insert_inode(&Row::implicit_directory(), FLAG_IMPLICIT)?;
        Ok(tree)
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.conn
    }

    /// Puts a node at `path`.
    pub(super) fn add(&mut self, path: &OsStr, row: &Row) -> Result<()> {
        let Some((parent, name)) = self.place(path)? else {
            if !row.kind.is_dir() {
                return Err(Error::entry(path, "only a directory can be the root"));
            }
            return self.update_directory(ROOT_INODE as i64, row);
        };
        let hid = self.forget_link(parent, name)?;
        if row.kind.is_dir() {
            if let Some(Entry {
                ino,
                kind: DIRECTORY,
                ..
            }) = self.entry(parent, name)?
            {
                return self.update_directory(ino, row);
            }
            self.make_directory(parent, name, row, hid, false)?;
        } else {
            let ino = self.insert_inode(row, 0)?;
            self.enter(parent, name, ino, kind::code(row.kind))?;
        }
        Ok(())
    }

    /// Makes `path` another name of the node at `target`. `false`: it is not there yet; the link is kept until
    /// [`Tree::resolve_links`], unless something else takes `path` before.
    pub(super) fn add_hard_link(&mut self, path: &OsStr, target: &OsStr) -> Result<bool> {
        if path == target {
            return Err(Error::entry(path, "a hard link to itself"));
        }
        let Some((parent, name)) = self.place(path)? else {
            return Err(Error::entry(path, "a hard link cannot be the root"));
        };
        check_path(target)?;
        match self.find(target)? {
            Some((_, DIRECTORY)) => Err(Error::entry(
                path,
                format!("a hard link to the directory {target:?}"),
            )),
            Some((ino, kind)) => {
                self.forget_link(parent, name)?;
                self.link_to(parent, name, ino, kind)?;
                Ok(true)
            }
            None => {
                self.conn
                    .prepare_cached(
                        "INSERT OR REPLACE INTO t_link (parent, name, path, target) VALUES (?1, ?2, ?3, ?4)",
                    )?
                    .execute((parent, name, path.as_bytes(), target.as_bytes()))?;
                self.pending_links += 1;
                Ok(false)
            }
        }
    }

    pub(super) fn add_whiteout(&mut self, path: &OsStr) -> Result<()> {
        let Some((parent, name)) = self.place(path)? else {
            return Err(Error::entry(path, "the root cannot be removed"));
        };
        let sql = "INSERT INTO t_dentry (parent, name, ino, kind, hides) VALUES (?1, ?2, 0, 0, 1)
            ON CONFLICT DO UPDATE SET hides = 1 RETURNING ino, kind";
        let (ino, kind): (i64, i64) = self
            .conn
            .prepare_cached(sql)?
            .query_row((parent, name), |row| Ok((row.get(0)?, row.get(1)?)))?;
        if kind == DIRECTORY {
            self.set_opaque(ino)
        } else {
            Ok(())
        }
    }

    pub(super) fn add_opaque(&mut self, path: &OsStr) -> Result<()> {
        check_path(path)?;
        let ino = self.directory(path.as_bytes())?;
        self.set_opaque(ino)
    }

    /// Makes the links whose targets came later.
    pub(super) fn resolve_links(&mut self) -> Result<()> {
        // A link may wait for another that waits. No archiver writes even one; chains without end are an attack.
        let mut passes = 0..LINK_PASSES;
        loop {
            let last_pass = passes.next().is_none();
            let mut progress = false;
            let (mut after, mut missing) = (0i64, None);
            while let Some(link) = self.next_link(after)? {
                after = link.id;
                match self.find(&link.target)? {
                    Some((_, DIRECTORY)) => {
                        let reason = format!("a hard link to the directory {:?}", link.target);
                        return Err(Error::InvalidEntry {
                            path: link.path,
                            reason,
                        });
                    }
                    Some((ino, kind)) => {
                        self.conn
                            .prepare_cached("DELETE FROM t_link WHERE id = ?1")?
                            .execute([link.id])?;
                        self.link_to(link.parent, &link.name, ino, kind)?;
                        progress = true;
                    }
                    None => missing = Some(link),
                }
            }
            match missing {
                None => return Ok(()),
                Some(_) if progress && !last_pass => {}
                Some(link) => {
                    let reason = format!("a hard link to {:?}, which is not there", link.target);
                    return Err(Error::InvalidEntry {
                        path: link.path,
                        reason,
                    });
                }
            }
        }
    }

    /// Counts names and subdirectories into `nlink` of directories, ready to be copied out.
    pub(super) fn count_links(&self) -> Result<()> {
        self.conn.execute(
            "UPDATE t_inode SET nlink = 2 + d.n FROM
                (SELECT parent, count(*) AS n FROM t_dentry WHERE kind = ?1 GROUP BY parent) AS d
             WHERE t_inode.ino = d.parent",
            [DIRECTORY],
        )?;
        Ok(())
    }

    /// Where `path` goes: inode of its directory (made if missing) and its last name; `None` is the root.
    fn place<'a>(&mut self, path: &'a OsStr) -> Result<Option<(i64, &'a [u8])>> {
        check_path(path)?;
        let bytes = path.as_bytes();
        if bytes.is_empty() {
            return Ok(None);
        }
        let (parent, name) = split(bytes);
        Ok(Some((self.directory(parent)?, name)))
    }

    /// Inode of the directory at `path`, made (with its parents) where it is not.
    fn directory(&mut self, path: &[u8]) -> Result<i64> {
        if self.last.0 == path {
            return Ok(self.last.1);
        }
        // The nearest remembered ancestor, then down from there.
        let mut known = path.len();
        let mut ino = loop {
            if known == 0 {
                break ROOT_INODE as i64;
            }
            if let Some(ino) = self.directories.get(&path[..known]) {
                break *ino;
            }
            known = path[..known].iter().rposition(|b| *b == b'/').unwrap_or(0);
        };
        while known < path.len() {
            let start = if known == 0 { 0 } else { known + 1 };
            let end = path[start..]
                .iter()
                .position(|b| *b == b'/')
                .map_or(path.len(), |n| start + n);
            let name = &path[start..end];
            ino = match self.entry(ino, name)? {
                Some(Entry {
                    ino,
                    kind: DIRECTORY,
                    ..
                }) => ino,
                _ => {
                    let hid = self.forget_link(ino, name)?;
                    self.make_directory(ino, name, &Row::implicit_directory(), hid, true)?
                }
            };
            known = end;
            if self.directories.len() >= PATH_CACHE {
                self.directories.clear();
            }
            self.directories.insert(path[..end].to_vec(), ino);
        }
        self.last.0.clear();
        self.last.0.extend_from_slice(path);
        self.last.1 = ino;
        Ok(ino)
    }

    /// Looks a path up without making anything.
    fn find(&self, path: &OsStr) -> Result<Option<(i64, i64)>> {
        let mut at = (ROOT_INODE as i64, DIRECTORY);
        if path.is_empty() {
            return Ok(Some(at));
        }
        let bytes = path.as_bytes();
        let (parent, name) = split(bytes);
        if self.last.0 == parent {
            at.0 = self.last.1;
        } else if let Some(ino) = self.directories.get(parent) {
            at.0 = *ino;
        } else {
            for name in parent.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
                match self.entry(at.0, name)? {
                    Some(Entry {
                        ino,
                        kind: DIRECTORY,
                        ..
                    }) => at.0 = ino,
                    _ => return Ok(None),
                }
            }
        }
        Ok(self
            .entry(at.0, name)?
            .filter(|entry| entry.ino != 0)
            .map(|entry| (entry.ino, entry.kind)))
    }

    fn entry(&self, parent: i64, name: &[u8]) -> Result<Option<Entry>> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT ino, kind, hides FROM t_dentry WHERE parent = ?1 AND name = ?2",
            )?
            .query_row((parent, name), |row| {
                Ok(Entry {
                    ino: row.get(0)?,
                    kind: row.get(1)?,
                    hides: row.get(2)?,
                })
            })
            .optional()?)
    }

    fn insert_inode(&mut self, row: &Row, flags: i64) -> Result<i64> {
        let ino = self.next_ino;
        self.next_ino += 1;
        let data_size = (row.data_size != row.size).then_some(row.data_size as i64);
        self.conn
            .prepare_cached(
                "INSERT INTO t_inode (ino, kind, perm, uid, gid, mtime_s, mtime_ns, size, data_size, nlink, rdev, flags,
                    content, target, xattrs)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            )?
            .execute(rusqlite::params![
                ino,
                kind::code(row.kind),
                row.perm & 0o7777,
                row.uid,
                row.gid,
                row.mtime.secs,
                row.mtime.nanos,
                row.size as i64,
                data_size,
                if row.kind.is_dir() { 2 } else { 1 },
                row.rdev as i64,
                flags,
                row.content,
                row.target,
                row.xattrs,
            ])?;
        Ok(ino)
    }

    fn update_directory(&mut self, ino: i64, row: &Row) -> Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE t_inode SET perm = ?2, uid = ?3, gid = ?4, mtime_s = ?5, mtime_ns = ?6, xattrs = ?7,
                    flags = flags & ~?8 WHERE ino = ?1",
            )?
            .execute(rusqlite::params![
                ino,
                row.perm & 0o7777,
                row.uid,
                row.gid,
                row.mtime.secs,
                row.mtime.nanos,
                row.xattrs,
                FLAG_IMPLICIT,
            ])?;
        Ok(())
    }

    fn set_opaque(&mut self, ino: i64) -> Result<()> {
        self.conn
            .prepare_cached("UPDATE t_inode SET flags = flags | ?2 WHERE ino = ?1")?
            .execute((ino, FLAG_OPAQUE))?;
        Ok(())
    }

    /// Makes a directory at a name that holds none.
    fn make_directory(
        &mut self,
        parent: i64,
        name: &[u8],
        row: &Row,
        hid: bool,
        implicit: bool,
    ) -> Result<i64> {
        let ino = self.insert_inode(row, if implicit { FLAG_IMPLICIT } else { 0 })?;
        if self.enter(parent, name, ino, DIRECTORY)? || hid {
            self.set_opaque(ino)?;
        }
        Ok(ino)
    }

    /// Gives a name to an inode, removing what had it. `true` if something, or a whiteout, had it.
    fn enter(&mut self, parent: i64, name: &[u8], ino: i64, kind: i64) -> Result<bool> {
        let inserted = self
            .conn
            .prepare_cached(
                "INSERT INTO t_dentry (parent, name, ino, kind, hides) VALUES (?1, ?2, ?3, ?4, 0) ON CONFLICT DO NOTHING",
            )?
            .execute((parent, name, ino, kind))?;
        if inserted == 1 {
            return Ok(false);
        }
        let old = self.entry(parent, name)?;
        match &old {
            Some(Entry { ino: 0, .. }) | None => {}
            Some(Entry {
                ino,
                kind: DIRECTORY,
                ..
            }) => self.remove_directory(*ino)?,
            Some(Entry { ino, .. }) => self.drop_name(*ino)?,
        }
        self.conn
            .prepare_cached(
                "UPDATE t_dentry SET ino = ?3, kind = ?4 WHERE parent = ?1 AND name = ?2",
            )?
            .execute((parent, name, ino, kind))?;
        Ok(old.is_some_and(|old| old.hides || old.ino != 0))
    }

    fn link_to(&mut self, parent: i64, name: &[u8], ino: i64, kind: i64) -> Result<()> {
        // Counted first: what `enter` removes may be a directory that holds the only other name.
        self.conn
            .prepare_cached("UPDATE t_inode SET nlink = nlink + 1 WHERE ino = ?1")?
            .execute([ino])?;
        self.enter(parent, name, ino, kind)?;
        Ok(())
    }

    fn drop_name(&mut self, ino: i64) -> Result<()> {
        let left: i64 = self
            .conn
            .prepare_cached("UPDATE t_inode SET nlink = nlink - 1 WHERE ino = ?1 RETURNING nlink")?
            .query_row([ino], |row| row.get(0))?;
        if left == 0 {
            self.conn
                .prepare_cached("DELETE FROM t_inode WHERE ino = ?1")?
                .execute([ino])?;
        }
        Ok(())
    }

    /// Removes a directory and all below it, a bounded number of entries at a time.
    fn remove_directory(&mut self, top: i64) -> Result<()> {
        self.directories.clear();
        self.last = (Vec::new(), ROOT_INODE as i64);
        let mut stack = vec![top];
        while let Some(directory) = stack.pop() {
            loop {
                let children: Vec<(Vec<u8>, i64, i64)> = self
                    .conn
                    .prepare_cached("SELECT name, ino, kind FROM t_dentry WHERE parent = ?1 ORDER BY name LIMIT 1024")?
                    .query_map([directory], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                    .collect::<rusqlite::Result<_>>()?;
                let Some((last, ..)) = children.last() else {
                    break;
                };
                self.conn
                    .prepare_cached("DELETE FROM t_dentry WHERE parent = ?1 AND name <= ?2")?
                    .execute((directory, last))?;
                for (_, ino, kind) in children {
                    match kind {
                        WHITEOUT => {}
                        DIRECTORY => stack.push(ino),
                        _ => self.drop_name(ino)?,
                    }
                }
            }
            if self.pending_links > 0 {
                self.conn
                    .prepare_cached("DELETE FROM t_link WHERE parent = ?1")?
                    .execute([directory])?;
            }
            self.conn
                .prepare_cached("DELETE FROM t_inode WHERE ino = ?1")?
                .execute([directory])?;
        }
        Ok(())
    }

    /// Drops a link that waits for its target at this name. `true` if there was one.
    fn forget_link(&mut self, parent: i64, name: &[u8]) -> Result<bool> {
        if self.pending_links == 0 {
            return Ok(false);
        }
        let dropped = self
            .conn
            .prepare_cached("DELETE FROM t_link WHERE parent = ?1 AND name = ?2")?
            .execute((parent, name))?;
        Ok(dropped > 0)
    }

    fn next_link(&self, after: i64) -> Result<Option<PendingLink>> {
        if self.pending_links == 0 {
            return Ok(None);
        }
        Ok(self
            .conn
            .prepare_cached("SELECT id, parent, name, path, target FROM t_link WHERE id > ?1 ORDER BY id LIMIT 1")?
            .query_row([after], |row| {
                Ok(PendingLink {
                    id: row.get(0)?,
                    parent: row.get(1)?,
                    name: row.get(2)?,
                    path: OsString::from_vec(row.get(3)?),
                    target: OsString::from_vec(row.get(4)?),
                })
            })
            .optional()?)
    }
}

struct PendingLink {
    id: i64,
    parent: i64,
    name: Vec<u8>,
    path: OsString,
    target: OsString,
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Whether `name` can be the name of a directory entry.
pub(super) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= NAME_MAX
        && !name.iter().any(|b| matches!(b, b'/' | 0))
}

fn check_path(path: &OsStr) -> Result<()> {
    let bytes = path.as_bytes();
    if bytes.is_empty() || bytes.split(|b| *b == b'/').all(is_name) {
        Ok(())
    } else {
        Err(Error::entry(
            path,
            "a component of the path is empty, `.`, `..`, longer than 255 bytes or holds a NUL",
        ))
    }
}
