//! Known damage: chunks that a check or a read found bad, so that the next import of them brings them anew.
//!
//! A file beside the database, `store.damage`, with a line `sha256:HEX` for each such chunk. It is a hint and no more: an
//! import that finds one looks at every stored chunk it is about to use again, instead of believing that it is as it was
//! stored, and reads layers that need one that is bad although they are here. A chunk that turns out to be bad gets
//! good bytes under its old id, so everything that refers to it is whole again. Nothing is lost with the file, and
//! nothing in it is believed: it costs a sound store one look for a file that is not there.
//!
//! It is no table, for a read that fails must not wait for the database's write lock.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension};

use super::db::Database;
use super::fsck::Verifier;
use super::gc::Marked;
use super::pipeline::find_chunk;
use super::place::Place;
use super::{Digest, Error, Result, layers};

const FILE: &str = "store.damage";
/// Bytes of it that are read, and written, at most: some sixty thousand chunks.
const MAX_BYTES: u64 = 4 << 20;
/// Bytes of a line.
const LINE: usize = 72;
/// Chunks looked at under one snapshot.
const PAGE: usize = 256;

/// Chunks that this process has noted already.
#[derive(Default)]
pub(super) struct Noted(Mutex<HashSet<Digest>>);

impl Noted {
    /// Notes a chunk that was found bad by a read. Whether that works is of no consequence for the reader.
    pub(super) fn note(&self, place: &Place, chunk: Digest) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !noted.insert(chunk) || place.read_only {
            return;
        }
        if let Err(error) = append(place, chunk) {
            tracing::debug!(%chunk, "that it is damaged could not be noted: {error}");
        }
    }
}

fn path(place: &Place) -> PathBuf {
    place.root.join(FILE)
}

fn open(place: &Place, options: &mut OpenOptions) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let file = options.mode(0o600).custom_flags(flags).open(path(place))?;
    // As SQLite does with its files: root looks after the stores of others, too.
    let (made, owner) = (file.metadata()?, std::fs::metadata(&place.database)?);
    if (made.uid(), made.gid()) != (owner.uid(), owner.gid()) {
        fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(file)
}

fn append(place: &Place, chunk: Digest) -> io::Result<()> {
    let mut file = open(place, OpenOptions::new().append(true).create(true))?;
    if file.metadata()?.len() >= MAX_BYTES {
        return Ok(());
    }
    // One write, or lines of several processes could mix.
    file.write_all(format!("{chunk}\n").as_bytes())
}

/// The chunks that are known to be bad; none if that cannot be read.
pub(super) fn known(place: &Place) -> HashSet<Digest> {
    let read = || {
        let mut text = Vec::new();
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path(place))?
            .take(MAX_BYTES)
            .read_to_end(&mut text)?;
        Ok::<_, io::Error>(text)
    };
    let text = read().unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::debug!("what is known of damage could not be read: {error}");
        }
        Vec::new()
    });
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| Digest::from_str(line).ok())
        .collect()
}

/// Writes down what is known to be bad now, instead of what was.
pub(super) fn replace(place: &Place, chunks: &HashSet<Digest>) {
    let write = || {
        if chunks.is_empty() {
            return match std::fs::remove_file(path(place)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
        }
        let mut file = open(
            place,
            OpenOptions::new().write(true).create(true).truncate(true),
        )?;
        let mut text = String::new();
        for chunk in chunks.iter().take(MAX_BYTES as usize / LINE) {
            text.push_str(&format!("{chunk}\n"));
        }
        file.write_all(text.as_bytes())
    };
    if place.read_only {
        return;
    }
    if let Err(error) = write() {
        tracing::debug!("what is known of damage could not be written down: {error}");
    }
}

/// Whether a stored chunk is as it should be.
pub(super) fn is_sound(verifier: &mut Verifier, conn: &Connection, chunk: i64) -> Result<bool> {
    match verifier.verify(conn, chunk) {
        Ok(_) => Ok(true),
        Err(Error::Corrupt(_)) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Whether a layer of the store needs a chunk that is bad. Only where damage is known are the layer's bytes looked at: what
/// broke one pack may have broken more.
pub(super) fn harms(database: &Database, diff_id: &Digest) -> Result<bool> {
    let known = known(&database.place);
    if known.is_empty() {
        return Ok(false);
    }
    let needed = database.read(|conn| {
        let snapshot = conn.unchecked_transaction()?;
        let Some((layer, _)) = layers::find(&snapshot, diff_id)? else {
            return Ok(Some(Vec::new()));
        };
        let mut marked = Marked::default();
        match marked.layer(&snapshot, layer) {
            Ok(()) => {}
            // Its rows are bad, too. That is for a repair; its chunks are put right all the same.
            Err(Error::Corrupt(_)) => return Ok(None),
            Err(other) => return Err(other),
        }
        for digest in &known {
            if let Some(chunk) = find_chunk(&snapshot, digest.as_bytes())?
                && marked.chunks.contains(chunk)
            {
                return Ok(None);
            }
        }
        Ok(Some(marked.chunks.in_order()))
    })?;
    let Some(needed) = needed else {
        return Ok(true);
    };
    let mut verifier = Verifier::default();
    for page in needed.chunks(PAGE) {
        let sound = database.read(|conn| {
            // One snapshot, or `gc` could move a chunk between two look-ups; a short one, for it keeps the log as it is.
            let snapshot = conn.unchecked_transaction()?;
            for chunk in page {
                if !is_sound(&mut verifier, &snapshot, *chunk)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        if !sound {
            return Ok(true);
        }
    }
    Ok(false)
}

/// After an import: forgets what is sound now, or gone. What others noted while it went on is looked at, too.
pub(super) fn settle(database: &Database) -> Result<()> {
    let known = known(&database.place);
    let mut verifier = Verifier::default();
    let left = database.read(|conn| {
        let snapshot = conn.unchecked_transaction()?;
        let mut left = HashSet::new();
        for digest in &known {
            if let Some(chunk) = find_chunk(&snapshot, digest.as_bytes())?
                && !is_sound(&mut verifier, &snapshot, chunk)?
            {
                left.insert(*digest);
            }
        }
        Ok(left)
    })?;
    if left.len() < known.len() {
        tracing::info!(
            healed = known.len() - left.len(),
            left = left.len(),
            "damaged chunks are whole again"
        );
        replace(&database.place, &left);
    }
    Ok(())
}

/// After a check: what it found. One that looked at rows only has not proven that the rest is sound.
pub(super) fn found(database: &Database, chunks: &[i64], all_bytes: bool) -> Result<()> {
    let before = known(&database.place);
    let mut now = match all_bytes {
        true => HashSet::new(),
        false => before.clone(),
    };
    database.read(|conn| {
        let mut name = conn.prepare_cached("SELECT sha256 FROM chunk WHERE id = ?1")?;
        for chunk in chunks {
            let digest: Option<Vec<u8>> = name.query_row([chunk], |row| row.get(0)).optional()?;
            // A name that is none is for a repair.
            if let Some(digest) = digest.and_then(|it| <[u8; 32]>::try_from(it).ok()) {
                now.insert(Digest::from_bytes(digest));
            }
        }
        Ok(())
    })?;
    let nonsense = || now.is_empty() && path(&database.place).symlink_metadata().is_ok();
    if now != before || nonsense() {
        replace(&database.place, &now);
    }
    Ok(())
}
