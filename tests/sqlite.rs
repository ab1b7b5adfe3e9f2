//! A 90 MB SQLite database that lies in the lower is written page by page through the mount while the daemon is killed
//! again and again. After each new mount the database is sound and every transaction that was committed is there.
//!
//! `OVL_SQLITE_ROUNDS` sets how often; `make torture` does it 100 times.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Sandbox, require_mounting};
use rusqlite::{Connection, params};

const ROWS: i64 = 23_000;
const ROW_BYTES: usize = 3_900;

fn make(path: &Path) {
    let mut db = Connection::open(path).unwrap();
    db.execute_batch(
        "PRAGMA page_size = 4096; CREATE TABLE state (n INTEGER); INSERT INTO state VALUES (0);",
    )
    .unwrap();
    db.execute_batch("CREATE TABLE rows (id INTEGER PRIMARY KEY, n INTEGER, filler BLOB);")
        .unwrap();
    let all = db.transaction().unwrap();
    {
        let mut insert = all.prepare("INSERT INTO rows VALUES (?, 0, ?)").unwrap();
        for id in 0..ROWS {
            insert
                .execute(params![id, vec![id as u8; ROW_BYTES]])
                .unwrap();
        }
    }
    all.commit().unwrap();
}

/// Commits transactions until the mount is gone; the number of the last one whose commit came back.
fn write(path: &Path, wal: bool, from: i64, salt: i64) -> i64 {
    let mut last = from;
    let outcome: rusqlite::Result<()> = (|| {
        let mut db = Connection::open(path)?;
        db.pragma_update(None, "journal_mode", if wal { "WAL" } else { "DELETE" })?;
        db.pragma_update(None, "synchronous", "FULL")?;
        loop {
            let next = last + 1;
            let all = db.transaction()?;
            for i in 0..10 {
                let id = (next * 7919 + i * 104_729 + salt) % ROWS;
                all.execute(
                    "UPDATE rows SET n = ?, filler = ? WHERE id = ?",
                    params![next, vec![next as u8; ROW_BYTES], id],
                )?;
            }
            all.execute("UPDATE state SET n = ?", [next])?;
            all.commit()?;
            last = next;
        }
    })();
    let error = outcome.expect_err("the loop ends with the mount only");
    assert!(
        last > from || !error.to_string().contains("malformed"),
        "{error}"
    );
    last
}

fn state(path: &Path) -> i64 {
    let db = Connection::open(path).unwrap();
    let sound: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(sound, "ok");
    let sizes: i64 = db
        .query_row(
            "SELECT count(*) FROM rows WHERE length(filler) = ?",
            [ROW_BYTES as i64],
            |r| r.get(0),
        )
        .unwrap();
    assert_eq!(sizes, ROWS);
    db.query_row("SELECT n FROM state", [], |row| row.get(0))
        .unwrap()
}

#[test]
fn a_database_survives_its_file_system() {
    require_mounting();
    let rounds: i64 = std::env::var("OVL_SQLITE_ROUNDS")
        .ok()
        .map_or(4, |v| v.parse().expect("a number"));
    let sandbox = Sandbox::new();
    let lower = sandbox.mkdir("lower");
    let (upper, mnt) = (sandbox.path("upper"), sandbox.mkdir("mnt"));
    make(&lower.join("data.db"));
    let mount = || {
        sandbox.run([
            "mount".as_ref(),
            lower.as_os_str(),
            upper.as_os_str(),
            mnt.as_os_str(),
        ])
    };
    let db = mnt.join("data.db");
    let mut committed = 0;
    mount();
    for round in 0..rounds {
        let pid = common::daemon_of(&sandbox);
        let last = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(&db, round % 2 == 1, committed, round));
            // The first round must get past the copy-up.
            std::thread::sleep(Duration::from_millis(if round == 0 {
                1500
            } else {
                150 + (round as u64 * 97) % 400
            }));
            let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            writer.join().unwrap()
        });
        assert!(
            Command::new("umount")
                .arg("-l")
                .arg(&mnt)
                .status()
                .unwrap()
                .success()
        );
        mount();
        let found = state(&db);
        // The one under way when the daemon died may have made it.
        assert!(
            (last..=last + 1).contains(&found),
            "round {round}: committed {last}, found {found}"
        );
        committed = found;
    }
    assert!(committed > 0, "no transaction ever got through");
    sandbox.run(["umount".as_ref(), mnt.as_os_str()]);
}
