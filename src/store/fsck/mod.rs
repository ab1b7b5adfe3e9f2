//! Checking a whole store, and curing it of what is bad.
//!
//! For: `ovl fsck`. Three passes: the bytes of all chunks ([`bytes`], only when asked for all), the rows of every table
//! and what they refer to ([`rows`], [`trees`], [`images`]), and the tar of every layer ([`bytes`] again). The first
//! comes first, so that the second can tell which files, layers and images suffer from a chunk that is bad.
//! Owns: what is damage. Rows that nothing refers to are none: an interrupted import, removal or `gc` leaves them, and the
//! next `gc` takes them.
//! Never: changes anything unless asked to repair ([`repair`]); holds a snapshot while it reads bytes, which would keep
//! the log from being written back.
//!
//! A new table needs: a check of its rows beside those of the table that refers to it, and a line in [`repair`] if rows
//! of it can be orphans.

mod bytes;
mod images;
mod repair;
mod rows;
mod trees;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::sync::Arc;

use rusqlite::Connection;

pub(super) use bytes::Verifier;

use super::damage;
use super::idset::IdSet;
use super::progress::Progress;
use super::{Digest, Error, ImageRecord, Result, Shared};

/// Problems told one by one; more are only counted.
const TOLD: usize = 1000;

/// What to do.
#[derive(Clone, Copy, Default)]
pub struct FsckOptions<'a> {
    /// Rows and references only; no pack is unpacked, no tar made.
    pub fast: bool,
    /// Remove what is bad, and put right what can be.
    pub repair: bool,
    /// What else must hold of an image's documents, which the store itself does not understand.
    pub documents: Option<&'a DocumentCheck<'a>>,
}

/// Looks at an image with its manifest and config; the reason if they make no sense.
pub type DocumentCheck<'a> =
    dyn Fn(&ImageRecord, &[u8], &[u8]) -> std::result::Result<(), String> + 'a;

/// What `--repair` does about a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cure {
    /// Indexes are made anew.
    Reindex,
    /// A count or counter is set to what is there.
    Recount,
    /// Rows that refer to nothing are removed.
    RemoveRows,
    /// The chunk or content is forgotten, with every layer that needs it.
    RemoveBytes,
    /// The layer is removed, with every image that has it.
    RemoveLayer,
    /// The image is removed with its names.
    RemoveImage,
    /// The compressed blob is forgotten; its layer and images stay, but are exported with another manifest.
    RemoveBlob,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is bad: a chunk, a layer, an image, a table.
    pub what: String,
    pub why: String,
    /// The layer that suffers.
    pub layer: Option<Digest>,
    /// The path in the layer that suffers.
    pub path: Option<OsString>,
    /// Names (or, without one, manifests) of the images that suffer.
    pub images: Vec<String>,
    pub cure: Cure,
}

/// What a check found, and what a repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    pub images: u64,
    pub layers: u64,
    pub contents: u64,
    pub chunks: u64,
    pub packs: u64,
    /// Bytes that were hashed; 0 if only rows were looked at.
    pub bytes: u64,
    /// The first problems, in the order they were found.
    pub problems: Vec<Problem>,
    /// How many there are altogether.
    pub problem_count: u64,
    /// What was done about them, in words; empty if nothing was.
    pub repaired: Vec<String>,
}

impl FsckReport {
    /// Whether the store is as it should be, now.
    pub fn is_sound(&self) -> bool {
        self.problem_count == 0 || !self.repaired.is_empty()
    }
}

/// What must go or be put right.
#[derive(Default)]
struct Damage {
    /// SQLite's own structures are.
    database: bool,
    /// Packs that cannot be what they say they are.
    packs: IdSet,
    chunks: IdSet,
    chunk_list: Vec<i64>,
    contents: IdSet,
    content_list: Vec<i64>,
    layers: BTreeMap<i64, Digest>,
    images: BTreeSet<i64>,
    /// Documents that do not hash to their names, by id.
    documents: Vec<i64>,
    blobs: BTreeSet<Digest>,
}

impl Damage {
    fn chunk(&mut self, id: i64) {
        if self.chunks.insert(id) {
            self.chunk_list.push(id);
        }
    }

    fn content(&mut self, id: i64) {
        if self.contents.insert(id) {
            self.content_list.push(id);
        }
    }
}

/// Checks, and repairs if asked to.
pub(super) fn run(
    shared: &Arc<Shared>,
    options: &FsckOptions<'_>,
    notify: &dyn Fn(Progress),
) -> Result<FsckReport> {
    let mut check = Check::new(options, notify);
    if !options.fast {
        check.chunk_bytes(&shared.database)?;
        check.attempt("blobs", |check| {
            shared.database.read(|conn| check.blobs(conn, true))
        })?;
    }
    shared.database.read(|conn| {
        // One snapshot: what is removed meanwhile is still whole in it.
        let snapshot = conn.unchecked_transaction()?;
        snapshot.pragma_update(None, "temp_store", "FILE")?;
        check.rows(&snapshot)
    })?;
    if !options.fast {
        check.layer_tars(shared)?;
    }
    if options.repair && check.report.problem_count > 0 {
        check.report.repaired = repair::repair(shared, options, &check.damage)?;
    }
    damage::found(&shared.database, &check.damage.chunk_list, !options.fast)?;
    Ok(check.report)
}

/// A check under way.
struct Check<'a> {
    options: &'a FsckOptions<'a>,
    notify: &'a dyn Fn(Progress),
    damage: Damage,
    report: FsckReport,
    /// Who has a layer, looked up once.
    images_of: BTreeMap<i64, Vec<String>>,
}

impl<'a> Check<'a> {
    fn new(options: &'a FsckOptions<'a>, notify: &'a dyn Fn(Progress)) -> Self {
        Self {
            options,
            notify,
            damage: Damage::default(),
            report: FsckReport::default(),
            images_of: BTreeMap::new(),
        }
    }

    /// Everything that can be told without unpacking.
    fn rows(&mut self, conn: &Connection) -> Result<()> {
        self.attempt("database", |check| check.database(conn))?;
        self.attempt("table sequence", |check| check.counters(conn))?;
        self.attempt("table pack", |check| check.packs(conn))?;
        self.attempt("table chunk", |check| check.chunks(conn))?;
        self.attempt("table content", |check| check.contents(conn))?;
        self.attempt("layers", |check| check.layers(conn))?;
        self.attempt("images", |check| check.images(conn))?;
        self.attempt("blobs", |check| check.blobs(conn, false))?;
        self.attempt("leases", |check| check.leases(conn))
    }

    /// A step that cannot be finished for damage is a problem itself; any other failure ends the check.
    fn attempt(&mut self, what: &str, step: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        match step(self) {
            Err(Error::Corrupt(why)) => {
                self.damage.database = true;
                self.found(problem(what, why, Cure::Reindex));
                Ok(())
            }
            other => other,
        }
    }

    fn phase(&self, name: &'static str, total: u64, bytes: bool) {
        (self.notify)(Progress::Phase { name, total, bytes });
    }

    fn advance(&self, units: u64) {
        (self.notify)(Progress::Advance(units));
    }

    fn found(&mut self, problem: Problem) {
        self.report.problem_count += 1;
        if self.report.problems.len() < TOLD {
            self.report.problems.push(problem);
        }
    }

    /// A layer is bad, at a path if one is known.
    fn found_in_layer(
        &mut self,
        conn: &Connection,
        layer: (i64, Digest),
        path: Option<OsString>,
        why: impl Into<String>,
        cure: Cure,
    ) -> Result<()> {
        if cure == Cure::RemoveLayer {
            self.damage.layers.insert(layer.0, layer.1);
        }
        let images = match self.images_of.get(&layer.0) {
            Some(images) => images.clone(),
            None => {
                let images = images::that_have(conn, layer.0)?;
                self.images_of.insert(layer.0, images.clone());
                images
            }
        };
        self.found(Problem {
            what: format!("layer {}", layer.1),
            why: why.into(),
            layer: Some(layer.1),
            path,
            images,
            cure,
        });
        Ok(())
    }
}

/// A problem that no layer or image is known to suffer from yet.
fn problem(what: impl Into<String>, why: impl Into<String>, cure: Cure) -> Problem {
    Problem {
        what: what.into(),
        why: why.into(),
        layer: None,
        path: None,
        images: Vec::new(),
        cure,
    }
}
