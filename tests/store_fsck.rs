//! fsck: what is damaged is found and named, a repair takes it and nothing else, and another import brings it back.

mod store_support;

use std::path::PathBuf;

use ovl::store::{Digest, Error, FsckOptions, FsckReport, LayerInfo, NewImage, Store};
use store_support::{Tar, noise};

const FAST: FsckOptions<'_> = FsckOptions {
    fast: true,
    repair: false,
    documents: None,
};
const FULL: FsckOptions<'_> = FsckOptions {
    fast: false,
    ..FAST
};
const REPAIR: FsckOptions<'_> = FsckOptions {
    repair: true,
    ..FULL
};

struct Place {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Place {
    /// A store with an image `good` and an image `bad`, which share one layer besides having one of their own.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self {
            root: dir.path().join("s"),
            _dir: dir,
        };
        let store = place.store();
        let shared = shared_layer(&store);
        image(
            &store,
            "good",
            &[shared.diff_id, good_layer(&store).diff_id],
        );
        image(&store, "bad", &[shared.diff_id, bad_layer(&store).diff_id]);
        place
    }

    fn store(&self) -> Store {
        Store::open(&self.root).unwrap()
    }

    fn database(&self) -> rusqlite::Connection {
        let db = rusqlite::Connection::open(self.root.join("store.db")).unwrap();
        // Ids are given out by the thousand to each layer, so this tells the last layer's rows.
        db.execute_batch(
            "CREATE TEMP VIEW bad_chunk AS SELECT * FROM chunk WHERE id > 131072;
             CREATE TEMP VIEW bad_pack AS SELECT pack AS id FROM bad_chunk;
             CREATE TEMP VIEW bad_content AS SELECT * FROM content WHERE id > 2048;",
        )
        .unwrap();
        db
    }

    fn sql(&self, sql: &str) {
        self.database()
            .execute_batch(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

fn shared_layer(store: &Store) -> LayerInfo {
    let mut tar = Tar::new(store);
    tar.file("shared", b"in both images");
    tar.finish().0
}

fn good_layer(store: &Store) -> LayerInfo {
    let mut tar = Tar::new(store);
    tar.file("good", &noise(300_000, 7));
    tar.finish().0
}

fn bad_layer(store: &Store) -> LayerInfo {
    let mut tar = Tar::new(store);
    tar.dir("d");
    tar.dir("d/e");
    tar.file("d/f", b"some words, some words, some words");
    tar.file("d/big", &noise(1_000_000, 1));
    tar.sparse("d/sparse", &[Err(1000), Ok(b"x")]);
    tar.symlink("l", "d/f");
    tar.writer
        .add_hard_link("d/e/h".as_ref(), "d/f".as_ref())
        .unwrap();
    tar.writer.add_whiteout("gone".as_ref()).unwrap();
    tar.finish().0
}

fn image(store: &Store, name: &str, layers: &[Digest]) {
    let config = format!("config of {name}");
    let image = NewImage {
        manifest: name.as_bytes(),
        manifest_media_type: "m",
        config: config.as_bytes(),
        layers,
        names: &[name.to_owned()],
    };
    store.put_image(&image).unwrap();
}

fn fsck(store: &Store, options: &FsckOptions<'_>) -> Result<FsckReport, Error> {
    store.fsck(options, &|_| {})
}

fn names(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = store
        .images()
        .unwrap()
        .into_iter()
        .flat_map(|image| image.names)
        .collect();
    names.sort();
    names
}

#[test]
fn a_sound_store_is_found_sound() {
    let place = Place::new();
    let store = place.store();
    for options in [FAST, FULL, REPAIR] {
        let report = fsck(&store, &options).unwrap();
        assert_eq!(report.problems, []);
        assert!(report.is_sound() && report.repaired.is_empty());
        assert_eq!((report.images, report.layers, report.contents), (2, 3, 3));
        assert!(report.chunks > 10 && report.packs > 3);
        assert_eq!(report.bytes > 2_600_000, !options.fast, "{}", report.bytes);
    }
}

/// What interrupted work leaves is no damage.
#[test]
fn leftovers_are_no_damage() {
    let place = Place::new();
    let store = place.store();
    let mut tar = Tar::new(&store);
    tar.file("abandoned", &noise(20_000_000, 3));
    drop(tar);
    store.remove_image(&Digest::of(b"bad")).unwrap();
    place.sql(
        "INSERT INTO lease VALUES (900, 2, 1, 1, 'another boot', 1, 'import', 5);
         UPDATE sequence SET next = 1000 WHERE name = 'lease'",
    );
    let report = fsck(&store, &FULL).unwrap();
    assert_eq!(report.problems, []);
    assert!(report.bytes > 15_000_000);
}

/// What a case must do to the image `bad`.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Goes,
    Stays,
}
use Fate::{Goes, Stays};

/// Damage, whether rows alone tell of it, and what a repair must do.
const CASES: &[(&str, bool, Fate)] = &[
    // Bytes.
    (
        "UPDATE pack SET data = zeroblob(length(data)) WHERE id = (SELECT min(id) FROM bad_pack)",
        false,
        Goes,
    ),
    (
        "UPDATE pack SET data = randomblob(length(data)) WHERE id IN (SELECT id FROM bad_pack)",
        false,
        Goes,
    ),
    (
        "UPDATE chunk SET pack = (SELECT min(id) FROM bad_pack), offset = 0, len = 34 \
      WHERE id = (SELECT id FROM bad_chunk WHERE len = 34)",
        true,
        Goes,
    ),
    (
        "UPDATE recipe SET literals = zeroblob(length(literals)) WHERE layer = 3",
        false,
        Goes,
    ),
    (
        "UPDATE recipe SET literals = (SELECT literals FROM recipe WHERE layer = 1) WHERE layer = 3",
        false,
        Goes,
    ),
    // Packs and chunks.
    (
        "DELETE FROM pack WHERE id = (SELECT max(id) FROM bad_pack)",
        true,
        Goes,
    ),
    ("UPDATE pack SET codec = 9 WHERE id IN bad_pack", true, Goes),
    (
        "UPDATE pack SET raw_len = 1 << 40 WHERE id IN bad_pack",
        true,
        Goes,
    ),
    (
        "UPDATE pack SET raw_len = -1 WHERE id IN bad_pack",
        true,
        Goes,
    ),
    (
        "DELETE FROM chunk WHERE id = (SELECT max(id) FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "DELETE FROM chunk WHERE id IN (SELECT id FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "UPDATE chunk SET offset = 1 << 31 WHERE id = (SELECT max(id) FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "UPDATE chunk SET offset = -1 WHERE id = (SELECT max(id) FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "UPDATE chunk SET len = 0 WHERE id = (SELECT max(id) FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "UPDATE chunk SET len = len - 1 WHERE id = (SELECT max(id) FROM bad_chunk WHERE len > 16384)",
        true,
        Goes,
    ),
    (
        "UPDATE chunk SET sha256 = x'00' WHERE id = (SELECT max(id) FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "UPDATE chunk SET sha256 = zeroblob(32) WHERE id = (SELECT id FROM bad_chunk WHERE len = 34)",
        false,
        Goes,
    ),
    // Contents.
    (
        "DELETE FROM content WHERE id IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE content SET size = -5 WHERE id IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE content SET size = size + 1 WHERE id IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE content SET data_size = data_size - 1 WHERE id IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE content SET digest = zeroblob(32) WHERE id = (SELECT max(id) FROM bad_content)",
        true,
        Goes,
    ),
    (
        "DELETE FROM extent WHERE content IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE extent SET list = x'' WHERE content IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE extent SET list = x'ffff' WHERE content IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE extent SET start = 1 WHERE content IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    // Trees.
    ("DELETE FROM inode WHERE layer = 3 AND ino > 1", true, Goes),
    ("DELETE FROM inode WHERE layer = 3 AND ino = 1", true, Goes),
    (
        "UPDATE inode SET kind = 42 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET kind = 2 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET size = -1 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET size = size + 1 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET data_size = -1 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET mtime_ns = 1000000000 WHERE layer = 3",
        true,
        Goes,
    ),
    ("UPDATE inode SET uid = -1 WHERE layer = 3", true, Goes),
    (
        "UPDATE inode SET content = -1 WHERE layer = 3 AND content > 0",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET content = 0 WHERE layer = 3 AND content > 0",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET content = 1 << 60 WHERE layer = 3 AND content > 0",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET content = 6 WHERE layer = 3 AND kind = 3",
        true,
        Goes,
    ),
    ("UPDATE inode SET target = NULL WHERE layer = 3", true, Goes),
    (
        "UPDATE inode SET target = x'610061' WHERE layer = 3 AND kind = 3",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET target = x'61' WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET xattrs = x'ff' WHERE layer = 3",
        true,
        Goes,
    ),
    ("UPDATE inode SET flags = 64 WHERE layer = 3", true, Goes),
    (
        "UPDATE dentry SET name = x'2e2e' WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET name = x'2e' WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET name = x'612f62' WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET name = x'6100' WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET name = x'' WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET name = zeroblob(300) WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    ("UPDATE dentry SET kind = 99 WHERE layer = 3", true, Goes),
    (
        "UPDATE dentry SET kind = 1 WHERE layer = 3 AND kind = 3",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET kind = 0 WHERE layer = 3 AND kind = 3",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET ino = 99 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET ino = -1 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET parent = 99 WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET parent = (SELECT ino FROM inode WHERE layer = 3 AND kind = 3) \
      WHERE layer = 3 AND name = x'66'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET ino = parent WHERE layer = 3 AND name = x'65'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET parent = ino WHERE layer = 3 AND name = x'65'",
        true,
        Goes,
    ),
    (
        "INSERT INTO dentry SELECT layer, 1, x'7a', ino, kind FROM dentry WHERE layer = 3 AND name = x'65'",
        true,
        Goes,
    ),
    (
        "DELETE FROM dentry WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "DELETE FROM dentry WHERE layer = 3 AND kind = 0",
        true,
        Goes,
    ),
    // Recipes.
    ("DELETE FROM recipe WHERE layer = 3", true, Goes),
    ("UPDATE recipe SET ops = x'ff' WHERE layer = 3", true, Goes),
    (
        "UPDATE recipe SET ops = x'feffffff0f' WHERE layer = 3",
        true,
        Goes,
    ),
    (
        "UPDATE recipe SET raw_len = raw_len + 1 WHERE layer = 3",
        true,
        Goes,
    ),
    ("UPDATE recipe SET seq = 5 WHERE layer = 3", true, Goes),
    (
        "UPDATE layer SET tar_size = tar_size + 1 WHERE id = 3",
        true,
        Goes,
    ),
    (
        "UPDATE layer SET entries = entries + 1 WHERE id = 3",
        true,
        Goes,
    ),
    (
        "UPDATE layer SET diff_id = zeroblob(32) WHERE id = 3",
        false,
        Goes,
    ),
    // Images.
    ("DELETE FROM layer WHERE id = 3", true, Goes),
    (
        "UPDATE image_layer SET position = 7 WHERE layer = 3",
        true,
        Goes,
    ),
    (
        "UPDATE image_layer SET layer = 77 WHERE layer = 3",
        true,
        Goes,
    ),
    (
        "DELETE FROM document WHERE data = CAST('bad' AS BLOB)",
        true,
        Goes,
    ),
    (
        "UPDATE document SET data = x'00' WHERE data = CAST('config of bad' AS BLOB)",
        true,
        Goes,
    ),
    ("UPDATE image SET config = x'00' WHERE id = 2", true, Goes),
    ("DELETE FROM image WHERE id = 2", true, Goes),
    // What can be put right.
    ("UPDATE inode SET nlink = 7 WHERE layer = 3", true, Stays),
    (
        "UPDATE inode SET nlink = 9 WHERE layer = 1 AND ino = 1; UPDATE layer SET files_size = 1",
        true,
        Stays,
    ),
    ("UPDATE sequence SET next = 1", true, Stays),
    (
        "UPDATE sequence SET next = -9 WHERE name = 'chunk'",
        true,
        Stays,
    ),
    ("DELETE FROM sequence", true, Stays),
    ("INSERT INTO name VALUES ('nowhere', 99)", true, Stays),
    ("INSERT INTO image_layer VALUES (99, 0, 1)", true, Stays),
    (
        "INSERT INTO lease VALUES (1, 77, 1, 1, '', 1, '', 1)",
        true,
        Stays,
    ),
    (
        "INSERT INTO lease_layer VALUES (55, 1), (55, 99)",
        true,
        Stays,
    ),
    (
        "INSERT INTO document VALUES (99, zeroblob(32), x'01')",
        true,
        Stays,
    ),
];

#[test]
fn damage_is_found_and_repaired() {
    for (sql, in_rows, fate) in CASES {
        damage(sql, *in_rows, *fate);
    }
}

fn damage(sql: &str, in_rows: bool, fate: Fate) {
    let place = Place::new();
    place.sql(sql);
    let store = place.store();
    let fast = fsck(&store, &FAST).unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert_eq!(
        fast.problem_count > 0,
        in_rows,
        "{sql}: {:?}",
        fast.problems
    );
    let full = fsck(&store, &FULL).unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert!(full.problem_count > 0 && !full.is_sound(), "{sql}");
    let suffers = |name: &str| {
        full.problems
            .iter()
            .any(|problem| problem.images.iter().any(|image| image == name))
    };
    if fate == Goes && !sql.contains("DELETE FROM image ") {
        assert!(suffers("bad"), "{sql}: {:?}", full.problems);
        assert!(!suffers("good"), "{sql}: {:?}", full.problems);
    }

    let repaired = fsck(&store, &REPAIR).unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert!(
        !repaired.repaired.is_empty() && repaired.is_sound(),
        "{sql}"
    );
    let again = fsck(&store, &FULL).unwrap();
    assert_eq!(again.problems, [], "{sql}");
    let want: &[&str] = if fate == Goes {
        &["good"]
    } else {
        &["bad", "good"]
    };
    assert_eq!(names(&store), want, "{sql}: {:?}", repaired.repaired);

    // The same things imported again are whole, without a trace of the damage.
    let shared = shared_layer(&store);
    image(
        &store,
        "good",
        &[shared.diff_id, good_layer(&store).diff_id],
    );
    image(&store, "bad", &[shared.diff_id, bad_layer(&store).diff_id]);
    let healed = fsck(&store, &FULL).unwrap();
    assert_eq!((healed.problems, healed.images), (Vec::new(), 2), "{sql}");
    store.gc().unwrap();
    assert_eq!(fsck(&store, &FULL).unwrap().problems, [], "{sql}");
    assert_eq!(names(&store), ["bad", "good"], "{sql}");
}

#[test]
fn problems_name_the_file_that_suffers() {
    let place = Place::new();
    place.sql("DELETE FROM chunk WHERE id IN (SELECT id FROM bad_chunk WHERE len = 34)");
    let report = fsck(&place.store(), &FAST).unwrap();
    let mut paths: Vec<_> = report
        .problems
        .iter()
        .filter_map(|problem| Some((problem.path.as_ref()?.to_str()?, problem.images.clone())))
        .collect();
    paths.sort();
    assert_eq!(paths[0].1, ["bad"]);
    assert!(["d/f", "d/e/h"].contains(&paths[0].0), "{paths:?}");
}

/// A shared layer that is damaged takes both images.
#[test]
fn every_image_of_a_damaged_layer_is_named() {
    let place = Place::new();
    place.sql("UPDATE dentry SET name = x'2f' WHERE layer = 1");
    let store = place.store();
    let report = fsck(&store, &REPAIR).unwrap();
    assert_eq!(report.problems[0].images, ["good", "bad"]);
    assert_eq!(names(&store), [""; 0]);
    assert_eq!(fsck(&store, &FULL).unwrap().problems, []);
}

#[test]
fn a_repair_waits_for_mounts_and_imports() {
    let place = Place::new();
    let store = place.store();
    let image = store.image(&Digest::of(b"bad")).unwrap().unwrap();
    let layer = image.layers[1];
    place.sql("UPDATE dentry SET name = x'2f' WHERE layer = 3 AND name = x'6c'");

    let import = store.layer_writer().unwrap();
    let error = fsck(&store, &REPAIR).unwrap_err();
    assert_eq!(error.exit_code(), 75, "{error}");
    assert!(
        error
            .to_string()
            .contains(&format!("import by process {}", std::process::id())),
        "{error}"
    );
    drop(import);

    let lease = store.lease(&[layer], "mount at /m").unwrap();
    let error = fsck(&store, &REPAIR).unwrap_err();
    assert_eq!(error.exit_code(), 75, "{error}");
    assert!(
        error.to_string().contains("mount at /m by process"),
        "{error}"
    );
    assert_eq!(names(&store), ["bad", "good"], "nothing was changed");
    drop(lease);

    assert!(fsck(&store, &REPAIR).unwrap().is_sound());
    assert_eq!(names(&store), ["good"]);
}

/// An index that disagrees with its table is made anew; nothing has to go.
#[test]
fn a_broken_index_is_made_anew() {
    let place = Place::new();
    let store = place.store();
    store.gc().unwrap();
    drop(store);
    let db = place.database();
    let root: i64 = db
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_name_1' OR name = 'sqlite_autoindex_image_1'", [], |row| row.get(0))
        .unwrap();
    db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(db);
    let path = place.root.join("store.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // The last byte of a key of the index of manifests, on its only page.
    let page = (root as usize - 1) * 4096;
    let cell = page + usize::from(u16::from_be_bytes([bytes[page + 8], bytes[page + 9]]));
    bytes[cell + 10] ^= 0x55;
    std::fs::write(&path, bytes).unwrap();
    let store = place.store();
    assert_eq!(
        fsck(&store, &FAST).unwrap().problem_count,
        0,
        "only the index is wrong"
    );
    assert!(fsck(&store, &FULL).unwrap().problem_count > 0);
    let report = fsck(&store, &REPAIR).unwrap();
    assert_eq!(report.repaired, ["made the indexes anew"]);
    assert_eq!(fsck(&store, &FULL).unwrap().problems, []);
    assert_eq!(names(&store), ["bad", "good"]);
}
