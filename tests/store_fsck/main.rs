//! fsck: what is damaged is found and named, a repair takes it and nothing else, and another import brings it back.

mod cases;
#[path = "../store_support/mod.rs"]
mod store_support;

use std::path::PathBuf;

use cases::CASES;
use cases::Fate::{self, Goes};
use ovl::store::{Digest, Error, FsckOptions, FsckReport, LayerInfo, NewImage, Origin, Store};
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
        let bad = bad_layer(&store).diff_id;
        blob(&store, &bad);
        image(&store, "bad", &[shared.diff_id, bad]);
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
    let blobs = [Digest::of(b"blob")];
    let indexes = [b"an index".to_vec()];
    let origin = match name {
        "bad" => Origin {
            blobs: &blobs,
            indexes: &indexes,
        },
        _ => Origin::default(),
    };
    store.put_image_from(&image, &origin).unwrap();
}

/// A compressed blob that the image `bad` came with.
fn blob(store: &Store, layer: &Digest) {
    let mut blob = store.blob_writer().unwrap();
    blob.part(vec![1; 1000]).unwrap();
    blob.part(vec![2; 1000]).unwrap();
    blob.finish(&Digest::of(b"blob"), 4, 1, layer).unwrap();
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

#[test]
fn damage_is_found_and_repaired() {
    let (first, second) = CASES.split_at(CASES.len() / 2);
    std::thread::scope(|scope| {
        for part in [first, second] {
            scope.spawn(move || {
                for (sql, in_rows, fate) in part {
                    damage(sql, *in_rows, *fate);
                }
            });
        }
    });
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
