//! Marking: which contents and chunks the layers make use of.

use rusqlite::Connection;

use super::super::content::{ContentKind, ContentRef};
use super::super::extents::{self, Extent};
use super::super::idset::IdSet;
use super::super::recipe::{self, Op};
use super::super::{Result, layers};

/// What the layers looked at so far make use of. Only ever grows: a layer that goes meanwhile costs space, not data.
#[derive(Default)]
pub(in crate::store) struct Marked {
    layers: IdSet,
    pub(in crate::store) contents: IdSet,
    pub(in crate::store) chunks: IdSet,
}

impl Marked {
    /// Marks what those layers use that were not marked before, but for `without`. An error leaves a layer unmarked.
    pub(in crate::store) fn extend(
        &mut self,
        conn: &Connection,
        without: &IdSet,
        mut each: impl FnMut(),
    ) -> Result<()> {
        for (layer, _) in layers::all(conn)? {
            if !without.contains(layer) && !self.layers.contains(layer) {
                self.layer(conn, layer)?;
            }
            each();
        }
        Ok(())
    }

    /// Marks what one layer uses.
    pub(in crate::store) fn layer(&mut self, conn: &Connection, layer: i64) -> Result<()> {
        let mut nodes =
            conn.prepare_cached("SELECT content FROM inode WHERE layer = ?1 AND content != 0")?;
        let mut rows = nodes.query([layer])?;
        while let Some(row) = rows.next()? {
            self.content(conn, ContentRef::stored(row.get(0)?)?)?;
        }
        // A recipe also uses contents whose file was replaced by a later entry of the same layer.
        let mut recipes = conn.prepare_cached("SELECT ops FROM recipe WHERE layer = ?1")?;
        let mut rows = recipes.query([layer])?;
        while let Some(row) = rows.next()? {
            for op in recipe::decode_ops(&row.get::<_, Vec<u8>>(0)?)? {
                if let Op::Content { content, .. } = op? {
                    self.content(conn, content)?;
                }
            }
        }
        self.layers.insert(layer);
        Ok(())
    }

    fn content(&mut self, conn: &Connection, content: ContentRef) -> Result<()> {
        match content.kind() {
            ContentKind::Empty => {}
            ContentKind::Chunk(chunk) => {
                self.chunks.insert(chunk);
            }
            ContentKind::List(id) => {
                if self.contents.insert(id) {
                    let mut lists =
                        conn.prepare_cached("SELECT list FROM extent WHERE content = ?1")?;
                    let mut rows = lists.query([id])?;
                    while let Some(row) = rows.next()? {
                        for extent in extents::decode(&row.get::<_, Vec<u8>>(0)?)? {
                            if let Extent::Data { chunk, .. } = extent {
                                self.chunks.insert(chunk);
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
