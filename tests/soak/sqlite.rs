//! SQLite: transactions of several rows, with what each row must hold kept beside them.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::{Connection, params};

use crate::{Load, Outcome, Rng};

const ROWS: i64 = 600;
const ROW_BYTES: usize = 1500;

pub struct Sqlite {
    rng: Rng,
    /// Committed transactions, and which of them wrote each row.
    last: i64,
    rows: HashMap<i64, i64>,
    /// The one under way.
    pending: Vec<i64>,
}

fn filler(row: i64, by: i64) -> Vec<u8> {
    Rng((row << 32 | by) as u64).bytes(ROW_BYTES)
}

fn said<T>(what: &str, result: rusqlite::Result<T>) -> Outcome<T> {
    result.map_err(|e| format!("{what}: {e}"))
}

impl Sqlite {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            last: 0,
            rows: HashMap::new(),
            pending: Vec::new(),
        }
    }

    fn open(dir: &Path) -> Outcome<Connection> {
        let db = said("open", Connection::open(dir.join("data.db")))?;
        said("synchronous", db.pragma_update(None, "synchronous", "FULL"))?;
        Ok(db)
    }

    fn transaction(&mut self, db: &mut Connection) -> rusqlite::Result<()> {
        let number = self.last + 1;
        let rows: Vec<_> = (0..5)
            .map(|_| self.rng.below(ROWS as usize) as i64)
            .collect();
        self.pending.clone_from(&rows);
        let all = db.transaction()?;
        for row in &rows {
            all.execute(
                "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)",
                params![row, number, filler(*row, number)],
            )?;
        }
        all.execute("UPDATE state SET n = ?", [number])?;
        all.commit()?;
        self.done(number);
        Ok(())
    }

    fn done(&mut self, number: i64) {
        self.last = number;
        for row in std::mem::take(&mut self.pending) {
            self.rows.insert(row, number);
        }
    }

    fn sound(dir: &Path) -> Outcome<(Connection, i64)> {
        let db = Self::open(dir)?;
        let sound: String = said(
            "check",
            db.query_row("PRAGMA integrity_check", [], |r| r.get(0)),
        )?;
        if sound != "ok" {
            return Err(format!("integrity_check: {sound}"));
        }
        let n = said(
            "state",
            db.query_row("SELECT n FROM state", [], |r| r.get(0)),
        )?;
        Ok((db, n))
    }
}

impl Load for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn prepare(&mut self, dir: &Path) -> Outcome {
        let mut db = Self::open(dir)?;
        let made = db.execute_batch(
            "CREATE TABLE state (n INTEGER); INSERT INTO state VALUES (0);
             CREATE TABLE rows (id INTEGER PRIMARY KEY, n INTEGER, filler BLOB);",
        );
        said("create", made)?;
        for _ in 0..200 {
            said("transaction", self.transaction(&mut db))?;
        }
        Ok(())
    }

    fn work(&mut self, dir: &Path) -> Outcome {
        let mut db = Self::open(dir)?;
        let journal = if self.rng.below(2) == 0 {
            "WAL"
        } else {
            "DELETE"
        };
        said(
            "journal_mode",
            db.pragma_update(None, "journal_mode", journal),
        )?;
        for _ in 0..20 {
            said("transaction", self.transaction(&mut db))?;
        }
        Ok(())
    }

    fn check(&mut self, dir: &Path) -> Outcome {
        let (db, n) = Self::sound(dir)?;
        if n != self.last {
            return Err(format!("{n} transactions, not {}", self.last));
        }
        let mut query = said("rows", db.prepare("SELECT id, n, filler FROM rows"))?;
        let rows = query.query_map([], |row| {
            let filler: Vec<u8> = row.get(2)?;
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, filler))
        });
        let rows = said(
            "rows",
            rows.and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>),
        )?;
        if rows.len() != self.rows.len() {
            return Err(format!("{} rows, not {}", rows.len(), self.rows.len()));
        }
        for (id, by, bytes) in rows {
            if self.rows.get(&id) != Some(&by) || bytes != filler(id, by) {
                return Err(format!("row {id} is of {by}, not {:?}", self.rows.get(&id)));
            }
        }
        Ok(())
    }

    fn recover(&mut self, dir: &Path) -> Outcome {
        let (_, n) = Self::sound(dir)?;
        // The commit that was under way may have made it.
        if n == self.last + 1 && !self.pending.is_empty() {
            self.done(n);
        }
        self.pending.clear();
        self.check(dir)
    }
}
