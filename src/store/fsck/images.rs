//! Images, their documents and names, and leases.

use rusqlite::{Connection, OptionalExtension};

use super::super::{Digest, Error, ImageRecord, Result, blobs, images, leases};
use super::{Check, Cure, Problem, problem};

impl Check<'_> {
    /// Documents hash to their names; images have their documents and layers, in unbroken order; names stand for images.
    pub(super) fn images(&mut self, conn: &Connection) -> Result<()> {
        self.documents(conn)?;
        let mut statement = conn.prepare("SELECT id, manifest, config FROM image ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let (manifest, config): (Vec<u8>, Vec<u8>) = (row.get(1)?, row.get(2)?);
            self.report.images += 1;
            if let Some(why) = self.image(conn, id, &manifest, &config)? {
                self.damage.images.insert(id);
                let names = names_of(conn, id)?;
                self.found(Problem {
                    images: names,
                    ..problem(
                        format!("image {}", digest_or_hex(&manifest)),
                        why,
                        Cure::RemoveImage,
                    )
                });
            }
        }
        for (sql, what) in [
            (
                "SELECT name FROM name WHERE image NOT IN (SELECT id FROM image)",
                "it stands for an image that is missing",
            ),
            ("SELECT name FROM name WHERE name = ''", "it is empty"),
            (
                "SELECT DISTINCT name FROM name_index WHERE name NOT IN (SELECT name FROM name)",
                "it is missing, and has an index",
            ),
            (
                "SELECT DISTINCT name FROM name_index WHERE document NOT IN (SELECT sha256 FROM document)",
                "the index it came with is missing",
            ),
        ] {
            let mut statement = conn.prepare(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let name: String = row.get(0)?;
                self.found(problem(format!("name {name:?}"), what, Cure::RemoveRows));
            }
        }
        self.orphans(
            conn,
            "image_layer",
            "image NOT IN (SELECT id FROM image)",
            "of images that are missing",
        )
    }

    /// Compressed blobs have a layer and all their parts, which with `parts` are hashed.
    pub(super) fn blobs(&mut self, conn: &Connection, parts: bool) -> Result<()> {
        for (digest, why) in blobs::verify(conn, parts)? {
            if self.damage.blobs.insert(digest) {
                self.found(problem(format!("blob {digest}"), why, Cure::RemoveBlob));
            }
        }
        if parts {
            return Ok(());
        }
        self.orphans(
            conn,
            "image_blob",
            "image NOT IN (SELECT id FROM image) OR blob NOT IN (SELECT id FROM blob)",
            "of images or blobs that are missing",
        )
    }

    /// `None`: the image is sound.
    fn image(
        &mut self,
        conn: &Connection,
        id: i64,
        manifest: &[u8],
        config: &[u8],
    ) -> Result<Option<String>> {
        let mut positions = conn.prepare_cached(
            "SELECT il.position, il.layer, l.id FROM image_layer AS il LEFT JOIN layer AS l ON l.id = il.layer
             WHERE il.image = ?1 ORDER BY il.position",
        )?;
        let mut rows = positions.query([id])?;
        let mut expected = 0;
        while let Some(row) = rows.next()? {
            if row.get::<_, i64>(0)? != expected {
                return Ok(Some(format!("layer {expected} of its list is missing")));
            }
            expected += 1;
            let (layer, there): (i64, Option<i64>) = (row.get(1)?, row.get(2)?);
            if there.is_none() {
                return Ok(Some(format!(
                    "its layer {expected} is not in the store (it was number {layer})"
                )));
            }
        }
        let mut read = Vec::new();
        for (what, digest) in [("manifest", manifest), ("config", config)] {
            let Ok(digest) = <[u8; 32]>::try_from(digest) else {
                return Ok(Some(format!("the name of its {what} is no SHA-256")));
            };
            match images::document(conn, &Digest::from_bytes(digest)) {
                Ok(Some(data)) => read.push(data),
                Ok(None) => return Ok(Some(format!("its {what} is missing"))),
                Err(Error::Corrupt(why)) => return Ok(Some(why)),
                Err(other) => return Err(other),
            }
        }
        let Some(check) = self.options.documents else {
            return Ok(None);
        };
        let record: ImageRecord = match images::record(conn, id) {
            Err(Error::Corrupt(why)) => return Ok(Some(why)),
            other => other?,
        };
        Ok(check(&record, &read[0], &read[1]).err())
    }

    fn documents(&mut self, conn: &Connection) -> Result<()> {
        let mut statement = conn.prepare("SELECT sha256, data, id FROM document ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let sha256: Vec<u8> = row.get(0)?;
            let data = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            if Digest::of(data).as_bytes() != sha256.as_slice() {
                self.damage.documents.push(row.get(2)?);
                self.found(problem(
                    format!("document {}", digest_or_hex(&sha256)),
                    "it does not hash to its name",
                    Cure::RemoveRows,
                ));
            }
        }
        Ok(())
    }

    /// A lease that nobody could have written would keep layers for ever.
    pub(super) fn leases(&mut self, conn: &Connection) -> Result<()> {
        for lease in leases::unknown(conn)? {
            self.found(problem(
                format!("lease {lease}"),
                "it is of an unknown kind",
                Cure::RemoveRows,
            ));
        }
        self.orphans(
            conn,
            "lease_layer",
            "lease NOT IN (SELECT id FROM lease) OR layer NOT IN (SELECT id FROM layer)",
            "of leases or layers that are missing",
        )
    }

    fn orphans(&mut self, conn: &Connection, table: &str, which: &str, why: &str) -> Result<()> {
        let count: i64 = conn.query_row(
            &format!("SELECT count(*) FROM {table} WHERE {which}"),
            [],
            |row| row.get(0),
        )?;
        if count > 0 {
            self.found(problem(
                format!("table {table}"),
                format!("{count} of its rows are {why}"),
                Cure::RemoveRows,
            ));
        }
        Ok(())
    }
}

/// Names (or, without one, the manifest) of every image that has a layer.
pub(super) fn that_have(conn: &Connection, layer: i64) -> Result<Vec<String>> {
    let ids: Vec<i64> = conn
        .prepare_cached("SELECT DISTINCT image FROM image_layer WHERE layer = ?1 ORDER BY image")?
        .query_map([layer], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut names = Vec::new();
    for id in ids {
        names.extend(names_of(conn, id)?);
    }
    Ok(names)
}

/// Names of an image, or its manifest's digest.
pub(super) fn names_of(conn: &Connection, image: i64) -> Result<Vec<String>> {
    let names: Vec<String> = conn
        .prepare_cached("SELECT name FROM name WHERE image = ?1 ORDER BY name")?
        .query_map([image], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    if !names.is_empty() {
        return Ok(names);
    }
    let manifest: Option<Vec<u8>> = conn
        .prepare_cached("SELECT manifest FROM image WHERE id = ?1")?
        .query_row([image], |row| row.get(0))
        .optional()?;
    Ok(manifest.iter().map(|it| digest_or_hex(it)).collect())
}

fn digest_or_hex(bytes: &[u8]) -> String {
    match <[u8; 32]>::try_from(bytes) {
        Ok(digest) => Digest::from_bytes(digest).to_string(),
        Err(_) => format!(
            "x'{}'",
            bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()
        ),
    }
}
