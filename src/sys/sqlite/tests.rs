//! Databases that such connections write hold what the standard VFS would have put into them, at every moment at which
//! somebody else could look.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{PAGE, gathering};

type Rows = BTreeMap<i64, Vec<u8>>;

struct Random(u64);

impl Random {
    /// Knuth's MMIX generator.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = match self.below(3) {
            0 => self.below(100),
            1 => self.below(9_000),
            _ => self.below(200_000),
        };
        let seed = self.below(256) as u8;
        (0..len)
            .map(|n| (n as u8).wrapping_mul(31) ^ seed)
            .collect()
    }
}

fn standard(path: &Path) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    conn
}

fn gatherer(path: &Path) -> Connection {
    let vfs = gathering().expect("the standard VFS is as expected");
    let conn = Connection::open_with_flags_and_vfs(path, OpenFlags::default(), vfs).unwrap();
    conn.pragma_update(None, "page_size", PAGE as i64).unwrap();
    conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")
        .unwrap();
    conn.pragma_update(None, "journal_mode", "WAL").unwrap();
    conn.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    // As an import has it: a commit does not sync the log.
    conn.pragma_update(None, "synchronous", "NORMAL").unwrap();
    // So small that transactions spill into the log.
    conn.pragma_update(None, "cache_size", 20).unwrap();
    conn
}

fn rows(conn: &Connection) -> Rows {
    let mut all = conn.prepare("SELECT id, data FROM t").unwrap();
    all.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

fn checked(conn: &Connection) -> Rows {
    let check: String = conn
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    rows(conn)
}

/// What a crash of all processes would leave just now.
fn after_a_crash(path: &Path) -> Rows {
    let dir = tempfile::tempdir().unwrap();
    for end in ["", "-wal"] {
        let name = format!("{}{end}", path.file_name().unwrap().to_str().unwrap());
        fs::copy(path.with_file_name(&name), dir.path().join(name)).unwrap();
    }
    checked(&standard(&dir.path().join(path.file_name().unwrap())))
}

fn change(conn: &Connection, rows: &mut Rows, random: &mut Random) {
    let id = random.below(40) as i64;
    match random.below(5) {
        0 => {
            conn.execute("DELETE FROM t WHERE id = ?1", [id]).unwrap();
            rows.remove(&id);
        }
        1 => {
            conn.execute_batch("PRAGMA incremental_vacuum(20)").unwrap();
        }
        _ => {
            let data = random.bytes();
            conn.execute(
                "INSERT OR REPLACE INTO t (id, data) VALUES (?1, ?2)",
                (id, &data),
            )
            .unwrap();
            rows.insert(id, data);
        }
    }
}

/// A transaction with savepoints, which is committed or not.
fn transaction(conn: &Connection, rows: &mut Rows, random: &mut Random) {
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut new = rows.clone();
    for _ in 0..random.below(4) {
        change(conn, &mut new, random);
        if random.below(3) == 0 {
            let kept = new.clone();
            conn.execute_batch("SAVEPOINT s").unwrap();
            for _ in 0..=random.below(4) {
                change(conn, &mut new, random);
            }
            if random.below(2) == 0 {
                conn.execute_batch("ROLLBACK TO s").unwrap();
                new = kept;
            }
            conn.execute_batch("RELEASE s").unwrap();
        }
    }
    if random.below(4) == 0 {
        conn.execute_batch("ROLLBACK").unwrap();
    } else {
        conn.execute_batch("COMMIT").unwrap();
        *rows = new;
    }
}

fn checkpoint(conn: &Connection, mode: &str) {
    conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
        .unwrap();
}

/// Connections with this VFS and the standard one change a database in turns; readers stay at what they saw; the log is
/// written back in whole and in part.
#[test]
fn everybody_sees_what_was_committed() {
    for seed in 1..=6 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("test.db");
        let ours = [gatherer(&path), gatherer(&path)];
        ours[0]
            .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
            .unwrap();
        let (theirs, reader, checkpointer) = (standard(&path), standard(&path), gatherer(&path));
        let (mut random, mut want, mut seen) = (Random(seed), Rows::new(), None::<Rows>);
        for step in 0..40 {
            let writer = match random.below(4) {
                0 => &theirs,
                1 => &ours[1],
                _ => &ours[0],
            };
            transaction(writer, &mut want, &mut random);
            if random.below(2) == 0 {
                assert_eq!(after_a_crash(&path), want, "seed {seed}, step {step}");
            }
            match random.below(6) {
                0 => match seen.take() {
                    Some(old) => {
                        assert_eq!(rows(&reader), old, "seed {seed}, step {step}");
                        reader.execute_batch("COMMIT").unwrap();
                    }
                    None => {
                        reader.execute_batch("BEGIN").unwrap();
                        seen = Some(rows(&reader));
                    }
                },
                1 | 2 => checkpoint(&checkpointer, "PASSIVE"),
                3 if seen.is_none() => checkpoint(&ours[0], "TRUNCATE"),
                _ => {}
            }
            assert_eq!(rows(&theirs), want, "seed {seed}, step {step}");
            assert_eq!(after_a_crash(&path), want, "seed {seed}, step {step}");
        }
        drop((reader, theirs, checkpointer, ours));
        assert!(!path.with_file_name("test.db-wal").exists());
        assert_eq!(checked(&standard(&path)), want, "seed {seed}");
    }
}

/// What a reader must not see yet lies in the log right behind what may be written back, for the pages right behind it.
#[test]
fn a_reader_of_old_pages_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let (ours, checkpointer, reader) = (gatherer(&path), gatherer(&path), standard(&path));
    ours.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
        .unwrap();
    let set = |ids: std::ops::Range<i64>, byte: u8| {
        ours.execute_batch("BEGIN IMMEDIATE").unwrap();
        for id in ids {
            // One to a page.
            ours.execute(
                "INSERT OR REPLACE INTO t VALUES (?1, ?2)",
                (id, vec![byte; 3_500]),
            )
            .unwrap();
        }
        ours.execute_batch("COMMIT").unwrap();
    };
    set(1..101, 1);
    checkpoint(&checkpointer, "PASSIVE");
    for start in (10..80).step_by(5) {
        set(start..start + 5, 2);
        // A cache of its own that holds nothing yet.
        let reader = standard(&path);
        reader.execute_batch("BEGIN").unwrap();
        let count: i64 = reader
            .query_row("SELECT count(*) FROM t WHERE id = 1", [], |row| row.get(0))
            .unwrap();
        assert_eq!(count, 1);
        set(start + 5..start + 20, 2);
        checkpoint(&checkpointer, "PASSIVE");
        for (id, data) in rows(&reader) {
            let new = (10..start + 5).contains(&id);
            let byte = if new { 2 } else { 1 };
            assert_eq!(data, vec![byte; 3_500], "row {id} from {start} on");
        }
        reader.execute_batch("COMMIT").unwrap();
        set(start + 5..start + 20, 1);
        checkpoint(&checkpointer, "PASSIVE");
    }
    checked(&reader);
}

/// While one thread writes, another writes back, as an import has it; readers see whole transactions only.
#[test]
fn writing_and_writing_back_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let writer = gatherer(&path);
    writer
        .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
        .unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let ended = || done.load(std::sync::atomic::Ordering::Acquire);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let checkpointer = gatherer(&path);
            while !ended() {
                checkpoint(&checkpointer, "PASSIVE");
            }
        });
        scope.spawn(|| {
            let reader = standard(&path);
            while !ended() {
                // Ten rows a transaction, all the same.
                let odd: i64 = reader
                    .query_row("SELECT count(*) % 10 FROM t", [], |row| row.get(0))
                    .unwrap();
                assert_eq!(odd, 0);
            }
        });
        for batch in 0..150i64 {
            writer.execute_batch("BEGIN IMMEDIATE").unwrap();
            for n in 0..10 {
                let data = vec![batch as u8; 20_000];
                writer
                    .execute(
                        "INSERT INTO t (id, data) VALUES (?1, ?2)",
                        (batch * 10 + n, data),
                    )
                    .unwrap();
            }
            writer.execute_batch("COMMIT").unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Release);
    });
    let all = checked(&writer);
    assert_eq!(all.len(), 1_500);
    for (id, data) in all {
        assert_eq!(data, vec![(id / 10) as u8; 20_000]);
    }
}

/// Another page size than the one that is gathered for.
#[test]
fn other_pages_go_through_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let large = standard(&path);
    large.pragma_update(None, "page_size", 8192).unwrap();
    large.pragma_update(None, "journal_mode", "WAL").unwrap();
    large
        .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
        .unwrap();
    drop(large);
    let (conn, mut random, mut want) = (gatherer(&path), Random(5), Rows::new());
    for _ in 0..30 {
        transaction(&conn, &mut want, &mut random);
        assert_eq!(after_a_crash(&path), want);
    }
    checkpoint(&conn, "PASSIVE");
    assert_eq!(checked(&conn), want);
}
