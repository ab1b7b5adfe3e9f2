//! T35: somebody else's `store.db`, each sub-case through the program: every verb ends, with an error in words where it needs
//! what is wrong, and a mount answers EIO. What the library says to each row is in `store_damage.rs`.

mod common;
mod image_support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Sandbox, command, require_mounting};
use image_support::{RawTar, docker_archive};

/// A store with one image, `localhost/test:1`: `d/e/f` and `d/e/g` of one chunk each, `d/big` of several, `l` a symlink.
fn filled() -> Sandbox {
    let sandbox = Sandbox::new();
    let big: Vec<u8> = (0..400_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 9) as u8)
        .collect();
    let layer = RawTar::new()
        .dir("d")
        .dir("d/e")
        .file("d/e/f", b"some words, some words")
        .file("d/e/g", b"other words, other words")
        .header(b"d/big", b'0', big.len() as u64, b"")
        .body(&big)
        .symlink("l", "d/e/f")
        .end();
    let archive = sandbox.write("image.tar", docker_archive(&[layer]));
    sandbox.run(["import".as_ref(), archive.as_os_str()]);
    sandbox
}

fn sql(sandbox: &Sandbox, statement: &str) {
    rusqlite::Connection::open(sandbox.root().join("store.db"))
        .unwrap()
        .execute_batch(statement)
        .unwrap_or_else(|e| panic!("{statement}: {e}"));
}

const IMAGE: &str = "localhost/test:1";

/// Verbs that look at everything there is.
const VERBS: &[&[&str]] = &[
    &["images"],
    &["inspect", IMAGE],
    &["history", IMAGE],
    &["tree", IMAGE, "--format", "json"],
    &["cat", IMAGE, "d/e/f", "d/e/g", "d/big"],
    &["diff", IMAGE, IMAGE],
    &["export", IMAGE, "docker-archive:out.tar"],
    &["df"],
    &["fsck"],
    &["gc"],
];

/// Runs every verb; gives those that failed. None may crash, go on for ever, or fail without a word.
fn failures(sandbox: &Sandbox, what: &str) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for verb in VERBS {
        let _ = std::fs::remove_file(sandbox.path("out.tar"));
        // Far beyond what any of them takes: a loop ends here.
        let output = sandbox
            .ovl(*verb)
            .timeout(Duration::from_secs(120))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        assert!(
            matches!(code, Some(0 | 1 | 4 | 5)),
            "{what}: {verb:?}: {code:?} {stderr}"
        );
        assert!(!stderr.contains("panicked"), "{what}: {verb:?}: {stderr}");
        if code != Some(0) {
            assert!(
                stderr.lines().any(|line| line.starts_with("ovl: ")),
                "{what}: {verb:?}: {stderr}"
            );
            failed.push(verb[0]);
        }
    }
    failed
}

#[test]
fn t35_views_and_triggers_on_our_names() {
    for statement in [
        "ALTER TABLE name RENAME TO n; CREATE VIEW name AS SELECT * FROM n",
        "CREATE TRIGGER t AFTER DELETE ON lease BEGIN DELETE FROM image; END",
        "CREATE TABLE more (x)",
    ] {
        let sandbox = filled();
        sql(&sandbox, statement);
        assert_eq!(
            failures(&sandbox, statement).len(),
            VERBS.len(),
            "{statement}"
        );
        let line = sandbox.fail(1, ["images"]);
        assert!(line.contains("unexpected"), "{line}");
    }
}

#[test]
fn t35_another_application_or_version() {
    for (statement, word) in [
        ("PRAGMA application_id = 7", "some other program's"),
        ("PRAGMA user_version = 4711", "newer than this program"),
        ("PRAGMA user_version = 0", "not an ovl store"),
        ("PRAGMA user_version = -5", "not an ovl store"),
    ] {
        let sandbox = filled();
        sql(&sandbox, statement);
        assert_eq!(
            failures(&sandbox, statement).len(),
            VERBS.len(),
            "{statement}"
        );
        let line = sandbox.fail(1, ["images"]);
        assert!(line.contains(word), "{statement}: {line}");
    }
}

#[test]
fn t35_corrupted_pages() {
    let sandbox = filled();
    sql(
        &sandbox,
        "PRAGMA wal_checkpoint(TRUNCATE); VACUUM; PRAGMA wal_checkpoint(TRUNCATE)",
    );
    let database = sandbox.root().join("store.db");
    let whole = std::fs::read(&database).unwrap();
    let pages = whole.len() / 4096;
    let mut failed = 0;
    for (n, byte) in (0..pages)
        .step_by(9)
        .zip([0u8, 0xff, 0x5a].into_iter().cycle())
    {
        let mut bytes = whole.clone();
        bytes[n * 4096..][..4096].fill(byte);
        for file in ["store.db", "store.db-wal", "store.db-shm"] {
            let _ = std::fs::remove_file(sandbox.root().join(file));
        }
        std::fs::write(&database, bytes).unwrap();
        let mut permissions = std::fs::metadata(&database).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
        std::fs::set_permissions(&database, permissions).unwrap();
        failed += usize::from(!failures(&sandbox, &format!("page {n}")).is_empty());
    }
    assert!(failed > 3, "only {failed} of {pages} pages are needed");
}

/// Rows that no import writes: who walks the tree, or reads what the row is about, says so; the rest goes on.
#[test]
fn t35_rows_that_no_import_writes() {
    let d = "(SELECT ino FROM dentry WHERE name = x'64')";
    let cases: &[(&str, String, &[&str])] = &[
        ("cyclic dentries", format!("UPDATE dentry SET ino = {d} WHERE name = x'65'"), &["tree"]),
        ("a parent loop", "UPDATE dentry SET ino = 1 WHERE name = x'65'".into(), &["tree"]),
        ("a directory twice", format!("INSERT INTO dentry SELECT layer, 1, x'7a', ino, kind FROM dentry WHERE name = x'65' AND parent = {d}"), &["tree"]),
        ("a name with NUL", "UPDATE dentry SET name = x'6600' WHERE name = x'66'".into(), &["tree", "cat"]),
        ("a name with /", "UPDATE dentry SET name = x'2e2e2f66' WHERE name = x'66'".into(), &["tree", "cat"]),
        ("a name ..", "UPDATE dentry SET name = x'2e2e' WHERE name = x'66'".into(), &["tree", "cat"]),
        ("a name of 300 bytes", "UPDATE dentry SET name = zeroblob(300) WHERE name = x'66'".into(), &["tree", "cat"]),
        ("a negative size", "UPDATE inode SET size = -1 WHERE size = 22".into(), &["tree", "cat"]),
        ("a size of 2^62", "UPDATE inode SET size = 1 << 62, data_size = NULL WHERE size = 22".into(), &["cat"]),
        ("a content of 2^62", "UPDATE content SET size = 1 << 62".into(), &["cat"]),
        ("a pack said to be huge", "UPDATE pack SET raw_len = 1 << 40".into(), &["cat", "export"]),
        ("a pack that unpacks to more", "UPDATE pack SET raw_len = 1".into(), &["cat", "export"]),
        ("a chunk said to be huge", "UPDATE chunk SET len = 1 << 40".into(), &["cat", "export"]),
        ("chunks that overlap", "UPDATE chunk SET offset = offset - 1 WHERE offset > 0; UPDATE chunk SET offset = 1 WHERE offset = 0".into(), &["cat", "export"]),
        ("a list with its chunks twice", "UPDATE extent SET list = CAST(list || list AS BLOB)".into(), &["cat"]),
        ("a recipe said to be huge", "UPDATE recipe SET raw_len = 1 << 50".into(), &["export"]),
        ("a recipe that repeats itself", "INSERT INTO recipe SELECT layer, seq + 1, ops, raw_len, literals FROM recipe".into(), &["export"]),
        ("a config that is none", "UPDATE document SET data = zeroblob(length(data))".into(), &["images", "inspect", "history"]),
    ];
    for (what, statement, must_fail) in cases {
        let sandbox = filled();
        sql(&sandbox, statement);
        let failed = failures(&sandbox, what);
        for verb in *must_fail {
            assert!(
                failed.contains(verb),
                "{what}: {verb} takes it; {failed:?} do not"
            );
        }
    }
}

/// Huge values are refused by their size. SQLite itself holds one whole where it compares keys of the table that it is in, so
/// the bound is that, and little more.
#[test]
fn t35_huge_blobs() {
    for statement in [
        "UPDATE recipe SET literals = zeroblob(64 << 20)",
        "UPDATE inode SET xattrs = zeroblob(64 << 20) WHERE size = 22",
        "UPDATE document SET data = zeroblob(64 << 20)",
        "UPDATE pack SET data = zeroblob(64 << 20)",
    ] {
        let sandbox = filled();
        sql(&sandbox, statement);
        for verb in [
            ["tree", IMAGE],
            ["cat", IMAGE],
            ["inspect", IMAGE],
            ["export", IMAGE],
        ] {
            let mut words = verb.to_vec();
            match verb[0] {
                "cat" => words.push("d/e/f"),
                "export" => words.push("docker-archive:out.tar"),
                "tree" => words.extend(["--format", "json"]),
                _ => {}
            }
            let _ = std::fs::remove_file(sandbox.path("out.tar"));
            let reads = match verb[0] {
                "tree" => statement.contains("xattrs"),
                "inspect" => statement.contains("document"),
                "cat" => statement.contains("pack") || statement.contains("xattrs"),
                _ => !statement.contains("xattrs"),
            };
            let peak = image_support::peak_memory(&sandbox.root(), &sandbox.path("."), &words);
            assert_eq!(
                peak.code != 0,
                reads,
                "{statement}: {words:?}: {}",
                peak.stderr
            );
            assert!(
                peak.megabytes < 64 + 64,
                "{statement}: {words:?}: {} MiB",
                peak.megabytes
            );
        }
    }
}

/// A recipe of a great many steps, each of which takes a byte or two here and many in memory.
#[test]
fn t35_a_recipe_of_many_steps() {
    for step in ["'00'", "'0102'"] {
        let sandbox = filled();
        let ops = format!("unhex(replace(hex(zeroblob(15 << 20)), '00', {step}))");
        sql(&sandbox, &format!("UPDATE recipe SET ops = {ops}"));
        for words in [
            &["export", IMAGE, "docker-archive:out.tar"][..],
            &["fsck"],
            &["df"],
        ] {
            let peak = image_support::peak_memory(&sandbox.root(), &sandbox.path("."), words);
            assert_eq!(peak.code, 5, "{step}: {words:?}: {}", peak.stderr);
            assert!(
                peak.megabytes < 64 + 64,
                "{step}: {words:?}: {} MiB",
                peak.megabytes
            );
        }
    }
}

/// Mounted: the file or directory concerned cannot be read, everything else can, and the mount ends like any other.
#[test]
fn t35_a_mount_over_a_crafted_tree() {
    require_mounting();
    let walk = |mnt: &Path| {
        let output = Command::new("timeout")
            .args(["60", "find"])
            .arg(mnt)
            .output()
            .expect("find");
        assert_ne!(
            output.status.code(),
            Some(124),
            "find does not come to an end"
        );
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    for statement in [
        "UPDATE dentry SET ino = (SELECT ino FROM dentry WHERE name = x'64') WHERE name = x'65'",
        "UPDATE dentry SET ino = 1 WHERE name = x'65'",
        "UPDATE dentry SET name = x'2e2e' WHERE name = x'66'",
        "UPDATE inode SET size = -1 WHERE size = 22",
        "UPDATE dentry SET ino = 99999 WHERE name = x'66'",
    ] {
        let sandbox = filled();
        sql(&sandbox, statement);
        let mnt = sandbox.mkdir("mnt");
        sandbox.run(["mount", "--read-only", IMAGE, "mnt"]);
        let seen = walk(&mnt);
        assert!((3..100).contains(&seen), "{statement}: {seen} names");
        assert_eq!(
            std::fs::metadata(mnt.join("d/big")).unwrap().len(),
            400_000,
            "{statement}"
        );
        assert_eq!(
            std::fs::read(mnt.join("d/big")).unwrap().len(),
            400_000,
            "{statement}"
        );
        sandbox.run(["umount", "mnt"]);
    }
    // Chunks that are not what they are named after.
    let sandbox = filled();
    sql(
        &sandbox,
        "UPDATE pack SET codec = 0, data = zeroblob(raw_len)",
    );
    let mnt = sandbox.mkdir("mnt");
    sandbox.run(["mount", "--read-only", IMAGE, "mnt"]);
    let error = std::fs::read(mnt.join("d/e/f")).expect_err("damaged data");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(walk(&mnt), 7);
    command("umount", [&mnt]);
}
