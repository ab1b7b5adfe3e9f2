//! The layers: their trees, their recipes, and what the rows of `layer` say of both.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use rusqlite::{Connection, OptionalExtension};

use super::super::content::{ContentKind, ContentRef};
use super::super::idset::IdSet;
use super::super::pack::Location;
use super::super::reader::{self, ROOT_INODE};
use super::super::recipe::{self, Op};
use super::super::tree::{FLAG_IMPLICIT, FLAG_OPAQUE, is_name};
use super::super::{Error, LayerInfo, Result, kind, layers, xattrs};
use super::{Check, Cure, TOLD};
use crate::meta::FileKind;

/// Paths looked up for one layer; what else is bad in it is told without.
const PATHS: usize = 100;
/// `PATH_MAX`: longer paths are told by their end.
const PATH_MAX: usize = 4096;

/// What is wrong with one layer, by inode where it has one.
#[derive(Default)]
struct Faults(Vec<(Option<i64>, String, Cure)>);

impl Faults {
    fn layer(&mut self, why: impl Into<String>) {
        self.0.push((None, why.into(), Cure::RemoveLayer));
    }

    fn inode(&mut self, ino: i64, why: impl Into<String>) {
        self.0.push((Some(ino), why.into(), Cure::RemoveLayer));
    }

    fn count(&mut self, ino: Option<i64>, why: impl Into<String>) {
        self.0.push((ino, why.into(), Cure::Recount));
    }
}

impl Check<'_> {
    pub(super) fn layers(&mut self, conn: &Connection) -> Result<()> {
        let all = layers::all(conn)?;
        self.phase("layers", all.len() as u64, false);
        for (id, info) in all {
            self.report.layers += 1;
            let mut faults = Faults::default();
            for step in [Self::nodes, Self::names, Self::shape, Self::recipe] {
                match step(self, conn, id, &info, &mut faults) {
                    Err(Error::Corrupt(why)) => faults.layer(why),
                    other => other?,
                }
            }
            let paths = paths(conn, id, &faults)?;
            for (ino, why, cure) in faults.0 {
                let path = ino.and_then(|ino| paths.get(&ino).cloned());
                let why = match ino {
                    Some(ino) if path.is_none() => format!("inode {ino}: {why}"),
                    _ => why,
                };
                self.found_in_layer(conn, (id, info.diff_id), path, why, cure)?;
            }
            self.advance(1);
        }
        Ok(())
    }

    /// Each node has possible attributes, and the bytes that its size says.
    fn nodes(
        &mut self,
        conn: &Connection,
        layer: i64,
        _: &LayerInfo,
        faults: &mut Faults,
    ) -> Result<()> {
        let mut statement = conn.prepare_cached(&format!(
            "SELECT {}, ino, target, xattrs FROM inode WHERE layer = ?1 ORDER BY ino",
            reader::INODE_COLUMNS
        ))?;
        let mut rows = statement.query([layer])?;
        while let Some(row) = rows.next()? {
            let ino: i64 = row.get("ino")?;
            let node = match reader::inode_from(ino as u64, row, 0) {
                Ok(node) => node,
                Err(Error::Corrupt(why)) => {
                    faults.inode(ino, why);
                    continue;
                }
                Err(other) => return Err(other),
            };
            if let Err(Error::Corrupt(why)) = xattrs::decode(
                row.get::<_, Option<Vec<u8>>>("xattrs")?
                    .as_deref()
                    .unwrap_or(&[]),
            ) {
                faults.inode(ino, why);
            }
            let target: Option<Vec<u8>> = row.get("target")?;
            let flags: i64 = row.get("flags")?;
            let content: i64 = row.get("content")?;
            let is_target = |target: &[u8]| !target.is_empty() && !target.contains(&0);
            if ino < 1 {
                faults.inode(ino, "its number is not positive");
            }
            if (node.kind == FileKind::Symlink) != target.is_some()
                || !target.as_deref().is_none_or(is_target)
            {
                faults.inode(ino, "its kind and its symlink target do not agree");
            }
            if flags & !(FLAG_OPAQUE | FLAG_IMPLICIT) != 0 || (flags != 0 && !node.kind.is_dir()) {
                faults.inode(ino, "it has impossible flags");
            }
            if node.kind != FileKind::Regular {
                if content != 0 {
                    faults.inode(ino, "it has a content but is no regular file");
                }
                continue;
            }
            match self.measure(conn, node.content) {
                Ok(measured) if measured == (node.size, node.data_size) => {}
                Ok(_) => faults.inode(ino, "its size is not that of its content"),
                Err(Error::Corrupt(why)) => faults.inode(ino, why),
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// Size and data size of a content that must be there and sound.
    fn measure(&self, conn: &Connection, content: ContentRef) -> Result<(u64, u64)> {
        match content.kind() {
            ContentKind::Empty => Ok((0, 0)),
            ContentKind::Chunk(chunk) => {
                if self.damage.chunks.contains(chunk) {
                    return Err(Error::Corrupt("its content (one chunk) is bad".to_owned()));
                }
                let len = u64::from(Location::must_find(conn, chunk)?.len);
                Ok((len, len))
            }
            ContentKind::List(id) => {
                if self.damage.contents.contains(id) {
                    return Err(Error::Corrupt(format!("its content ({id}) is bad")));
                }
                let found: Option<(i64, i64)> = conn
                    .prepare_cached("SELECT size, data_size FROM content WHERE id = ?1")?
                    .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                let (size, data) = found
                    .ok_or_else(|| Error::Corrupt(format!("its content ({id}) is missing")))?;
                Ok((size.max(0) as u64, data.max(0) as u64))
            }
        }
    }

    /// Each name is possible, stands in a directory, and for a node of the kind it says.
    fn names(
        &mut self,
        conn: &Connection,
        layer: i64,
        _: &LayerInfo,
        faults: &mut Faults,
    ) -> Result<()> {
        let mut statement = conn.prepare_cached(
            "SELECT d.parent, d.name, d.ino, d.kind, i.kind, p.kind FROM dentry AS d
             LEFT JOIN inode AS i ON i.layer = d.layer AND i.ino = d.ino
             LEFT JOIN inode AS p ON p.layer = d.layer AND p.ino = d.parent
             WHERE d.layer = ?1 ORDER BY d.parent, d.name",
        )?;
        let mut rows = statement.query([layer])?;
        while let Some(row) = rows.next()? {
            let (parent, ino, kind): (i64, i64, i64) = (row.get(0)?, row.get(2)?, row.get(3)?);
            let (node, dir): (Option<i64>, Option<i64>) = (row.get(4)?, row.get(5)?);
            let name = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            let told = || OsString::from_vec(name.to_vec());
            if !is_name(name) {
                faults.inode(parent, format!("it holds an impossible name, {:?}", told()));
            }
            match dir {
                Some(kind::DIRECTORY) => {}
                Some(_) => faults.inode(parent, "it holds names but is no directory"),
                None => faults.layer(format!(
                    "the name {:?} is in a directory that is missing (inode {parent})",
                    told()
                )),
            }
            let agrees = match (ino, kind) {
                (0, kind::WHITEOUT) => true,
                (0, _) | (_, kind::WHITEOUT) => false,
                _ => node == Some(kind),
            };
            if !agrees {
                let what = match node {
                    None if ino != 0 => "that is missing",
                    _ => "of another kind",
                };
                faults.inode(
                    parent,
                    format!("its name {:?} stands for a node {what}", told()),
                );
            }
        }
        Ok(())
    }

    /// The directories are one tree, and the counts are right.
    fn shape(
        &mut self,
        conn: &Connection,
        layer: i64,
        info: &LayerInfo,
        faults: &mut Faults,
    ) -> Result<()> {
        let each = |sql: &str, visit: &mut dyn FnMut(i64, i64)| -> Result<()> {
            let mut statement = conn.prepare_cached(sql)?;
            let mut rows = statement.query([layer])?;
            while let Some(row) = rows.next()? {
                visit(row.get(0)?, row.get(1)?);
            }
            Ok(())
        };
        let root: Option<i64> = conn
            .prepare_cached("SELECT kind FROM inode WHERE layer = ?1 AND ino = ?2")?
            .query_row((layer, ROOT_INODE as i64), |row| row.get(0))
            .optional()?;
        if root != Some(kind::DIRECTORY) {
            faults.layer("its root is missing or no directory");
        }
        each(
            "SELECT ino, count(*) FROM dentry WHERE layer = ?1 AND kind = 2
             GROUP BY ino HAVING count(*) > 1 OR ino = 1",
            &mut |ino, _| faults.inode(ino, "this directory has a second name"),
        )?;
        each(
            "WITH RECURSIVE reached (ino) AS (
                SELECT 1 UNION
                SELECT d.ino FROM reached AS r JOIN dentry AS d ON d.layer = ?1 AND d.parent = r.ino AND d.kind = 2)
             SELECT ino, 0 FROM inode WHERE layer = ?1 AND kind = 2 AND ino NOT IN (SELECT ino FROM reached)",
            &mut |ino, _| faults.inode(ino, "this directory cannot be reached from the root"),
        )?;
        each(
            "SELECT ino, 0 FROM inode WHERE layer = ?1 AND kind != 2
             AND ino NOT IN (SELECT ino FROM dentry WHERE layer = ?1)",
            &mut |ino, _| faults.inode(ino, "nothing names this node"),
        )?;
        each(
            "SELECT i.ino, d.names FROM inode AS i JOIN (
                SELECT ino, count(*) AS names FROM dentry WHERE layer = ?1 AND ino != 0 GROUP BY ino) AS d
                ON d.ino = i.ino
             WHERE i.layer = ?1 AND i.kind != 2 AND i.nlink != d.names",
            &mut |ino, names| faults.count(Some(ino), format!("its link count is not {names}")),
        )?;
        each(
            "SELECT i.ino, coalesce(d.dirs, 0) FROM inode AS i LEFT JOIN (
                SELECT parent, count(*) AS dirs FROM dentry WHERE layer = ?1 AND kind = 2 GROUP BY parent) AS d
                ON d.parent = i.ino
             WHERE i.layer = ?1 AND i.kind = 2 AND i.nlink != 2 + coalesce(d.dirs, 0)",
            &mut |ino, dirs| faults.count(Some(ino), format!("its link count is not {}", 2 + dirs)),
        )?;
        let (entries, files_size) = counts(conn, layer)?;
        if info.entries != entries {
            // Not just a wrong count: a lost whiteout would be seen nowhere else.
            faults.layer(format!(
                "it should have {} names, and has {entries}",
                info.entries
            ));
        }
        if info.files_size != files_size {
            faults.count(
                None,
                format!(
                    "it says its files have {} bytes, and they have {files_size}",
                    info.files_size
                ),
            );
        }
        Ok(())
    }

    /// The segments of the recipe follow each other, use up their literals, name sound contents, and add up to the tar.
    fn recipe(
        &mut self,
        conn: &Connection,
        layer: i64,
        info: &LayerInfo,
        faults: &mut Faults,
    ) -> Result<()> {
        let mut statement = conn
            .prepare_cached("SELECT seq, ops, raw_len FROM recipe WHERE layer = ?1 ORDER BY seq")?;
        let mut rows = statement.query([layer])?;
        let (mut expected, mut total) = (0, 0u64);
        while let Some(row) = rows.next()? {
            let (seq, raw_len): (i64, i64) = (row.get(0)?, row.get(2)?);
            if seq != expected {
                faults.layer(format!("segment {expected} of its recipe is missing"));
            }
            expected = seq.saturating_add(1);
            let ops =
                recipe::decode_ops(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)?;
            let mut literals = 0u64;
            for op in ops {
                if faults.0.len() >= TOLD {
                    return Ok(());
                }
                match op? {
                    Op::Literal(len) => {
                        literals = literals.saturating_add(len);
                        total = total.saturating_add(len);
                    }
                    Op::Content { content, len } => {
                        total = total.saturating_add(len);
                        match self.measure(conn, content) {
                            Ok((_, data)) if data == len => {}
                            Ok(_) => faults.layer("its recipe has a content of another length"),
                            Err(Error::Corrupt(why)) => faults.layer(format!("its recipe: {why}")),
                            Err(other) => return Err(other),
                        }
                    }
                }
            }
            if u64::try_from(raw_len) != Ok(literals) || literals > recipe::SEGMENT_LITERALS as u64
            {
                faults.layer(format!(
                    "segment {seq} of its recipe has too many or too few headers"
                ));
            }
        }
        if total != info.tar_size {
            faults.layer(format!(
                "its recipe makes {total} bytes of tar, not {}",
                info.tar_size
            ));
        }
        Ok(())
    }
}

/// Entries, and bytes of regular files, as the row of `layer` should have them.
pub(super) fn counts(conn: &Connection, layer: i64) -> Result<(u64, u64)> {
    let entries: i64 = conn
        .prepare_cached("SELECT count(*) FROM dentry WHERE layer = ?1")?
        .query_row([layer], |row| row.get(0))?;
    // Summed in halves: sparse files may claim more than 63 bits together.
    let (high, low): (i64, i64) = conn
        .prepare_cached(
            "SELECT coalesce(sum(size >> 32), 0), coalesce(sum(size & 0xffffffff), 0) FROM inode
             WHERE layer = ?1 AND kind = ?2",
        )?
        .query_row((layer, kind::code(FileKind::Regular)), |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let size = ((i128::from(high) << 32) + i128::from(low)).clamp(0, i128::from(i64::MAX));
    Ok((entries.max(0) as u64, size as u64))
}

/// Where the nodes are that something is wrong with: one walk over the layer.
fn paths(conn: &Connection, layer: i64, faults: &Faults) -> Result<BTreeMap<i64, OsString>> {
    let mut wanted: BTreeMap<i64, OsString> = BTreeMap::new();
    let mut missing = IdSet::default();
    for (ino, ..) in &faults.0 {
        if let Some(ino) = ino
            && wanted.len() < PATHS
        {
            missing.insert(*ino);
            wanted.insert(*ino, OsString::new());
        }
    }
    let mut found = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let mut statement =
        conn.prepare_cached("SELECT name, ino, kind FROM dentry WHERE layer = ?1 AND parent = ?2")?;
    let mut seen = IdSet::default();
    let mut todo = vec![(ROOT_INODE as i64, Vec::new())];
    if missing.contains(ROOT_INODE as i64) {
        found.insert(ROOT_INODE as i64, OsString::from("/"));
    }
    while let Some((dir, path)) = todo.pop() {
        if !seen.insert(dir) || found.len() == wanted.len() {
            continue;
        }
        let mut rows = statement.query((layer, dir))?;
        while let Some(row) = rows.next()? {
            let (Ok(name), Ok(ino), Ok(kind)) = (
                row.get::<_, Vec<u8>>(0),
                row.get::<_, i64>(1),
                row.get::<_, i64>(2),
            ) else {
                continue;
            };
            let mut path: Vec<u8> = path.clone();
            if path.len() < PATH_MAX {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&name);
            }
            if missing.contains(ino) {
                found
                    .entry(ino)
                    .or_insert_with(|| OsString::from_vec(path.clone()));
            }
            if kind == kind::DIRECTORY {
                todo.push((ino, path));
            }
        }
    }
    Ok(found)
}
