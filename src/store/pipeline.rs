//! The machinery behind an import: packs are compressed on some threads and stored by another while the caller's thread
//! reads on.
//!
//! Caller -> (bounded) -> compressors -> (bounded) -> one writer thread with its own connection. Packs travel several at a
//! time: waking a thread for each would cost as much as a tenth of its compression. The writer collects packs until a batch is full and only then takes the database's write lock, so that other processes wait for one
//! short transaction, not for an import. Meanwhile a third kind of thread writes the log back to the database
//! ([`super::checkpoint`]). The queue before the writer is long: while it commits, the compressors go on. Dropping the
//! pipeline abandons what is not yet stored.
//!
//! Ids of chunks are chosen by the caller before the chunk is stored. If another process stores the same chunk first,
//! the database keeps theirs and ours becomes an alias, which publishing the layer resolves.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::checkpoint::{self, LogGrowth};
use super::damage;
use super::db::{Database, Durability};
use super::fsck::Verifier;
use super::pack::{self, Buffers, RawPack, StoredPack};
use super::schema::Sequence;
use super::{Error, Result, space};

const COMPRESSORS: usize = 2;
/// Raw bytes of packs that travel together.
const TOGETHER: usize = 512 << 10;
/// Such groups waiting for a compressor.
const RAW_QUEUE: usize = 3;
/// Groups waiting for the writer: about as many as are compressed in the time of a commit.
const STORE_QUEUE: usize = 20;
/// A batch is committed when it holds this many raw bytes.
const BATCH: usize = 16 << 20;

const PANICKED: &str = "a thread of the import panicked";

/// Chunk ids that turned out to be stored already under another id: ours -> theirs.
pub(super) type Aliases = HashMap<i64, i64>;

enum Message {
    Packs(Vec<StoredPack>),
    Failed(Error),
    /// Commit once so many packs have arrived, then answer.
    Flush {
        after: u64,
        done: SyncSender<()>,
    },
}

pub(super) struct Pipeline {
    jobs: Option<SyncSender<Vec<RawPack>>>,
    /// What travels next, and its raw bytes.
    group: Vec<RawPack>,
    group_bytes: usize,
    messages: Option<SyncSender<Message>>,
    compressors: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<Result<Aliases>>>,
    buffers: Arc<Buffers>,
    abandoned: Arc<AtomicBool>,
    sent: u64,
}

impl Pipeline {
    /// With `heal`, chunks that are stored already get the new bytes if those they have are bad.
    pub(super) fn start(database: Arc<Database>, heal: bool) -> Result<Self> {
        let (jobs, job_queue) = sync_channel::<Vec<RawPack>>(RAW_QUEUE);
        let (messages, message_queue) = sync_channel::<Message>(STORE_QUEUE);
        let job_queue = Arc::new(Mutex::new(job_queue));
        let spawned = |name: &str| thread::Builder::new().name(name.to_owned());
        let failed = |source| Error::Io {
            path: "starting a thread".into(),
            source,
        };
        let mut pipeline = Self {
            jobs: Some(jobs),
            group: Vec::new(),
            group_bytes: 0,
            messages: Some(messages.clone()),
            compressors: Vec::new(),
            writer: None,
            buffers: Arc::default(),
            abandoned: Arc::default(),
            sent: 0,
        };
        for _ in 0..COMPRESSORS {
            let (queue, messages) = (Arc::clone(&job_queue), messages.clone());
            let buffers = Arc::clone(&pipeline.buffers);
            let handle = spawned("ovl-compress")
                .spawn(move || telling(&messages, || compress(&queue, &messages, &buffers)))
                .map_err(failed)?;
            pipeline.compressors.push(handle);
        }
        let conn = database.writer(Durability::Ordered)?;
        checkpoint::leave_to_checkpointer(&conn)?;
        let log = database.log_growth()?;
        let buffers = Arc::clone(&pipeline.buffers);
        let abandoned = Arc::clone(&pipeline.abandoned);
        let writer = spawned("ovl-store").spawn(move || {
            let run = Writer {
                database: &database,
                conn,
                log,
                buffers: &buffers,
                batch: Vec::new(),
                raw: 0,
                aliases: Aliases::new(),
                heal,
                abandoned,
            };
            run.run(&message_queue)
                .map_err(|error| database.explain(error))
        });
        pipeline.writer = Some(writer.map_err(failed)?);
        Ok(pipeline)
    }

    /// A pack to be filled.
    pub(super) fn new_pack(&self) -> RawPack {
        RawPack::within(self.buffers.take(0))
    }

    /// Hands a pack over; waits while the queues are full.
    pub(super) fn send(&mut self, pack: RawPack) -> Result<()> {
        self.group_bytes += pack.raw.len();
        self.group.push(pack);
        self.sent += 1;
        if self.group_bytes < TOGETHER {
            return Ok(());
        }
        self.send_group()
    }

    fn send_group(&mut self) -> Result<()> {
        self.group_bytes = 0;
        let group = std::mem::take(&mut self.group);
        if group.is_empty() {
            return Ok(());
        }
        let sent = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(group).is_ok());
        if sent { Ok(()) } else { Err(self.failure()) }
    }

    /// Waits until everything sent so far is committed.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.send_group()?;
        let (done, answer) = sync_channel(1);
        let message = Message::Flush {
            after: self.sent,
            done,
        };
        let flushed = self
            .messages
            .as_ref()
            .is_some_and(|messages| messages.send(message).is_ok())
            && answer.recv().is_ok();
        if flushed { Ok(()) } else { Err(self.failure()) }
    }

    /// Stores everything that was sent.
    pub(super) fn finish(mut self) -> Result<Aliases> {
        self.send_group()?;
        self.close()
            .unwrap_or(Err(Error::Misuse("an import that failed was continued")))
    }

    /// Lets the threads run out of work; gives what the writer says.
    fn close(&mut self) -> Option<Result<Aliases>> {
        self.jobs = None;
        for compressor in self.compressors.drain(..) {
            // It tells the writer if it panics, so that joining it has nothing to add.
            drop(compressor.join());
        }
        self.messages = None;
        let writer = self.writer.take()?;
        Some(match writer.join() {
            Ok(result) if !self.abandoned.load(Ordering::Relaxed) => result,
            Ok(Err(error)) => Err(error),
            _ => Err(Error::Misuse(PANICKED)),
        })
    }

    fn failure(&mut self) -> Error {
        match self.close() {
            Some(Err(error)) => error,
            _ => Error::Misuse("an import that failed was continued"),
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
        drop(self.close());
    }
}

/// Runs `work`, and sends the writer a failure if it panics: the packs that are lost with it would else be waited for.
fn telling(messages: &SyncSender<Message>, work: impl FnOnce()) {
    // What it leaves half done is its own and goes with it.
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        // Nobody is left to be told only if the writer has failed itself.
        let _ = messages.send(Message::Failed(Error::Misuse(PANICKED)));
    }
}

fn compress(
    queue: &Mutex<Receiver<Vec<RawPack>>>,
    messages: &SyncSender<Message>,
    buffers: &Buffers,
) {
    let mut compressor = match pack::compressor() {
        Ok(compressor) => compressor,
        Err(error) => return drop(messages.send(Message::Failed(error))),
    };
    loop {
        // Held while waiting: the other compressor waits for the lock instead of the queue, which is the same.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(group) = next else { return };
        let stored = group
            .into_iter()
            .map(|raw| StoredPack::compress_with(raw, &mut compressor, buffers));
        let message = match stored.collect() {
            Ok(stored) => Message::Packs(stored),
            Err(error) => Message::Failed(error),
        };
        if messages.send(message).is_err() {
            return;
        }
    }
}

struct Writer<'a> {
    database: &'a Database,
    conn: Connection,
    log: LogGrowth,
    buffers: &'a Buffers,
    batch: Vec<StoredPack>,
    raw: usize,
    aliases: Aliases,
    heal: bool,
    abandoned: Arc<AtomicBool>,
}

impl Writer<'_> {
    fn run(mut self, messages: &Receiver<Message>) -> Result<Aliases> {
        let (mut arrived, mut flush) = (0u64, None);
        while let Ok(message) = messages.recv() {
            if self.abandoned.load(Ordering::Relaxed) {
                return Ok(self.aliases);
            }
            match message {
                Message::Packs(packs) => {
                    arrived += packs.len() as u64;
                    self.raw += packs.iter().map(StoredPack::raw_len).sum::<usize>();
                    self.batch.extend(packs);
                    if self.raw >= BATCH {
                        self.commit()?;
                    }
                }
                Message::Failed(error) => return Err(error),
                Message::Flush { after, done } => flush = Some((after, done)),
            }
            if let Some((_, done)) = flush.take_if(|(after, _)| arrived >= *after) {
                self.commit()?;
                // Nobody listens any more only if the import was abandoned.
                let _ = done.send(());
            }
        }
        if !self.abandoned.load(Ordering::Relaxed) {
            self.commit()?;
        }
        Ok(self.aliases)
    }

    fn commit(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let bytes = self.batch.iter().map(StoredPack::disk_bytes).sum();
        let turn = self.database.write_turn();
        space::ensure(&self.database.place, &self.conn, bytes)?;
        let transaction = self
            .conn
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let first = Sequence::Pack.take(&transaction, self.batch.len() as i64)?;
        for (id, pack) in (first..).zip(self.batch.drain(..)) {
            if insert_chunks(&transaction, &pack, id, &mut self.aliases, self.heal)? {
                pack.insert(&transaction, id)?;
            }
            self.buffers.give(pack.into_buffer());
        }
        transaction.commit()?;
        drop(turn);
        self.log.grew(bytes);
        self.raw = 0;
        Ok(())
    }
}

/// Records the chunks of a pack; `false` if all of them were stored already, so that the pack is not needed.
fn insert_chunks(
    conn: &Connection,
    pack: &StoredPack,
    pack_id: i64,
    aliases: &mut Aliases,
    heal: bool,
) -> Result<bool> {
    let mut insert = conn.prepare_cached(
        "INSERT INTO chunk (id, sha256, pack, offset, len) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (sha256) DO NOTHING",
    )?;
    let mut needed = false;
    for chunk in &pack.chunks {
        if insert.execute((
            chunk.id,
            chunk.digest.as_bytes(),
            pack_id,
            chunk.offset,
            chunk.len,
        ))? == 1
        {
            needed = true;
        } else {
            let theirs = find_chunk(conn, chunk.digest.as_bytes())?.ok_or_else(|| {
                Error::Corrupt(format!(
                    "chunk {} is in the index but not in the table",
                    chunk.digest
                ))
            })?;
            aliases.insert(chunk.id, theirs);
            if heal && !damage::is_sound(&mut Verifier::default(), conn, theirs)? {
                conn.prepare_cached(
                    "UPDATE chunk SET pack = ?2, offset = ?3, len = ?4 WHERE id = ?1",
                )?
                .execute((theirs, pack_id, chunk.offset, chunk.len))?;
                needed = true;
            }
        }
    }
    Ok(needed)
}

/// Id of a stored chunk.
pub(super) fn find_chunk(conn: &Connection, digest: &[u8; 32]) -> Result<Option<i64>> {
    Ok(conn
        .prepare_cached("SELECT id FROM chunk WHERE sha256 = ?1")?
        .query_row([digest], |row| row.get(0))
        .optional()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn a_flush_does_not_wait_for_packs_that_a_panic_took_along() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let mut pipeline = Pipeline::start(Arc::clone(&store.shared.database), false).unwrap();
        // It stands in for a compressor: a pack counts as sent, and is lost.
        pipeline.sent += 1;
        let messages = pipeline.messages.clone().unwrap();
        let panics = thread::spawn(move || telling(&messages, || panic!("as asked for")));
        let error = pipeline.flush().unwrap_err();
        assert!(matches!(error, Error::Misuse(PANICKED)), "{error}");
        panics.join().unwrap();
    }
}
