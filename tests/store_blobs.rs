//! Compressed blobs in the store: kept with the images that came in them, given back part by part, gone with the last
//! image, and never half there. And stores of format 2, which brought them.

mod store_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use ovl::store::{Digest, Error, LayerInfo, NewImage, Origin, Store};
use store_support::{Tar, noise};

fn layer(store: &Store, seed: u64) -> LayerInfo {
    let mut tar = Tar::new(store);
    tar.file("own", &noise(1000, seed));
    tar.finish().0
}

/// Keeps `parts` as the blob of a layer; gives the blob's digest.
fn keep(store: &Store, layer: &LayerInfo, parts: &[Vec<u8>]) -> Digest {
    let whole = parts.concat();
    let mut writer = store.blob_writer().unwrap();
    for part in parts {
        writer.part(part.clone()).unwrap();
    }
    assert_eq!(writer.stored(), whole.len() as u64);
    let digest = Digest::of(&whole);
    writer
        .finish(&digest, whole.len() as u64, 1, &layer.diff_id)
        .unwrap();
    digest
}

fn read(store: &Store, blob: &Digest) -> Result<Vec<u8>, Error> {
    let mut parts = store.blob_parts(blob)?;
    let mut whole = Vec::new();
    while let Some(part) = parts.next_part()? {
        whole.extend(part);
    }
    Ok(whole)
}

fn image(store: &Store, manifest: &str, layer: &LayerInfo, blobs: &[Digest]) -> Digest {
    let new = NewImage {
        manifest: manifest.as_bytes(),
        manifest_media_type: "application/x",
        config: b"config",
        layers: &[layer.diff_id],
        names: &[],
    };
    let origin = Origin {
        blobs,
        indexes: &[],
    };
    store.put_image_from(&new, &origin).unwrap();
    Digest::of(manifest.as_bytes())
}

fn sqlite(root: &Path, sql: &str) -> String {
    let output = Command::new("sqlite3")
        .arg(root.join("store.db"))
        .arg(sql)
        .output()
        .expect("this test needs sqlite3");
    assert!(output.status.success(), "{sql}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn parts_in(root: &Path) -> String {
    sqlite(root, "SELECT count(*) FROM blob_part")
        .trim()
        .to_owned()
}

#[test]
fn blobs_come_back_and_go_with_their_images() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let store = Store::open(&root).unwrap();
    let one = layer(&store, 1);
    // The second is larger than what waits in memory.
    let small = vec![noise(10, 2), noise(20, 3)];
    let large: Vec<Vec<u8>> = (0..5).map(|i| noise(3 << 20, 10 + i)).collect();
    let (a, b) = (keep(&store, &one, &small), keep(&store, &one, &large));
    let (x, y) = (
        image(&store, "x", &one, &[a, Digest::of(b"not here")]),
        image(&store, "y", &one, &[b]),
    );
    // Kept a second time: nothing changes.
    assert_eq!(keep(&store, &one, &small), a);
    assert_eq!(parts_in(&root), "7");
    let info = store.blob(&b).unwrap().unwrap();
    assert_eq!(
        (
            info.digest,
            info.diff_id,
            info.size,
            info.method,
            info.stored
        ),
        (b, one.diff_id, 15 << 20, 1, 15 << 20)
    );
    store.gc().unwrap();
    assert!(read(&store, &a).unwrap() == small.concat());
    assert!(read(&store, &b).unwrap() == large.concat());
    assert_eq!(store.blob_bytes().unwrap(), (15 << 20) + 30);
    assert_eq!(store.damaged_blobs(true).unwrap(), []);

    // The layer stays for the other image; the blob does not.
    store.remove_image(&y).unwrap();
    store.gc().unwrap();
    assert_eq!(store.blob(&b).unwrap(), None);
    assert!(matches!(read(&store, &b), Err(Error::NotFound(_))));
    assert!(read(&store, &a).unwrap() == small.concat());
    // With the layer the blob goes at once, and its parts with the next collection.
    store.remove_image(&x).unwrap();
    assert_eq!(store.blob(&a).unwrap(), None);
    store.gc().unwrap();
    assert_eq!(parts_in(&root), "0");
}

#[test]
fn a_blob_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let store = Store::open(&root).unwrap();
    let one = layer(&store, 1);
    let mut writer = store.blob_writer().unwrap();
    for i in 0..3 {
        writer.part(noise(4 << 20, i)).unwrap();
    }
    assert_ne!(parts_in(&root), "0", "some parts are on their way");
    let busy = store.gc().unwrap_err();
    assert_eq!(busy.exit_code(), 75, "{busy}");
    drop(writer);
    assert_eq!(parts_in(&root), "0");
    // Nobody to belong to.
    let mut writer = store.blob_writer().unwrap();
    writer.part(vec![1]).unwrap();
    let error = writer
        .finish(&Digest::of(&[1]), 1, 1, &Digest::of(b"nothing"))
        .unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
    for bad in [Vec::new(), vec![0; ovl::store::MAX_PART + 1]] {
        assert!(store.blob_writer().unwrap().part(bad).is_err());
    }
    // What a crash left behind goes with the next collection, and so does a blob that no image came to need.
    sqlite(&root, "INSERT INTO blob_part VALUES (999, 0, x'00')");
    let blob = keep(&store, &one, &[vec![1, 2, 3]]);
    store.gc().unwrap();
    assert!(
        store.blob(&blob).unwrap().is_some(),
        "its layer is still held by this process"
    );
    assert_eq!(parts_in(&root), "1");
    let manifest = image(&store, "without", &one, &[]);
    store.gc().unwrap();
    assert_eq!(store.blob(&blob).unwrap(), None);
    assert_eq!(parts_in(&root), "0");
    store.remove_image(&manifest).unwrap();
}

#[test]
fn damage_is_an_error_and_is_found() {
    for (sql, fast) in [
        ("UPDATE blob_part SET data = x'00' WHERE seq = 1", false),
        ("DELETE FROM blob_part WHERE seq = 1", true),
        ("UPDATE blob SET parts = 1 << 40", true),
        ("UPDATE blob SET parts = -1", true),
        ("UPDATE blob SET parts_sha256 = zeroblob(32)", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        let store = Store::open(&root).unwrap();
        let one = layer(&store, 1);
        let blob = keep(&store, &one, &[noise(5, 1), noise(6, 2)]);
        image(&store, "x", &one, &[blob]);
        sqlite(&root, sql);
        let error = read(&store, &blob).expect_err(sql);
        assert_eq!(error.exit_code(), 5, "{sql}: {error}");
        assert_eq!(
            store.damaged_blobs(false).unwrap().len(),
            usize::from(fast),
            "{sql}"
        );
        let found = store.damaged_blobs(true).unwrap();
        assert_eq!(found.len(), 1, "{sql}");
        assert_eq!(found[0].0, blob);
        assert!(store.discard_blob(&blob).unwrap());
        assert!(!store.discard_blob(&blob).unwrap());
        assert_eq!(store.damaged_blobs(true).unwrap(), []);
        store.gc().unwrap();
        assert_eq!(parts_in(&root), "0", "{sql}");
    }
}

#[test]
fn a_name_keeps_its_indexes_until_it_moves() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    let one = layer(&store, 1);
    let put = |manifest: &str, names: &[&str], indexes: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let indexes: Vec<Vec<u8>> = indexes.iter().map(|i| i.as_bytes().to_vec()).collect();
        let new = NewImage {
            manifest: manifest.as_bytes(),
            manifest_media_type: "application/x",
            config: b"config",
            layers: &[one.diff_id],
            names: &names,
        };
        let origin = Origin {
            blobs: &[],
            indexes: &indexes,
        };
        store.put_image_from(&new, &origin).unwrap();
        Digest::of(manifest.as_bytes())
    };
    let there = |text: &str| {
        store
            .document(&Digest::of(text.as_bytes()))
            .unwrap()
            .is_some()
    };
    put("a", &["n:1", "n:2"], &["outer", "inner"]);
    let both = [Digest::of(b"outer"), Digest::of(b"inner")];
    assert_eq!(store.name_indexes("n:1").unwrap(), both);
    let b = put("b", &["n:1"], &[]);
    assert_eq!(store.name_indexes("n:1").unwrap(), []);
    assert_eq!(store.name_indexes("n:2").unwrap(), both);
    assert!(there("outer") && there("inner"));
    store.set_name("n:2", &Digest::of(b"a")).unwrap();
    assert_eq!(store.name_indexes("n:2").unwrap(), both, "it did not move");
    store.set_name("n:2", &b).unwrap();
    assert_eq!(store.name_indexes("n:2").unwrap(), []);
    assert!(
        !there("outer") && !there("inner"),
        "nobody came with them any more"
    );
    // Moved by an import; those that are still wanted stay.
    put("a", &["n:1"], &["outer", "inner"]);
    put("b", &["n:1"], &["outer"]);
    assert!(there("outer") && !there("inner"));
    put("b", &["n:1"], &["another"]);
    assert!(!there("outer") && there("another") && there("a") && there("b"));
    assert_eq!(store.name_indexes("n:1").unwrap(), [Digest::of(b"another")]);
    put("a", &["n:3"], &["outer"]);
    store.remove_name("n:3").unwrap();
    assert_eq!(store.name_indexes("n:3").unwrap(), []);
    assert!(!there("outer"));
    let c = put("c", &["n:4"], &["outer"]);
    store.remove_image(&c).unwrap();
    assert!(!there("outer"));
}

fn opened(fixture: &str) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    let database = root.join("store.db");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/store");
    fs::copy(from.join(fixture), &database).unwrap();
    fs::set_permissions(&database, fs::Permissions::from_mode(0o600)).unwrap();
    let store = Store::open_existing(&root).unwrap().unwrap();
    (dir, store)
}

/// Format 1 had no blobs; a store of it takes them after it was opened once.
#[test]
fn a_store_of_version_1_is_brought_up_to_date() {
    let (dir, store) = opened("v1.db");
    let root = dir.path().join("s");
    assert_eq!(sqlite(&root, "PRAGMA user_version").trim(), "2");
    let info = store.layers().unwrap().remove(0);
    let blob = keep(&store, &info, &[b"compressed".to_vec()]);
    let before = store.images().unwrap();
    let config = store.document(&before[0].config).unwrap().unwrap();
    let new = NewImage {
        manifest: b"fixture manifest",
        manifest_media_type: &before[0].manifest_media_type,
        config: &config,
        layers: &before[0].layers,
        names: &[],
    };
    let origin = Origin {
        blobs: &[blob],
        indexes: &[],
    };
    store.put_image_from(&new, &origin).unwrap();
    store.gc().unwrap();
    assert_eq!(read(&store, &blob).unwrap(), b"compressed");
    assert_eq!(store.images().unwrap().len(), before.len());
    let mut tar = Vec::new();
    store.write_layer_tar(&info.diff_id, &mut tar).unwrap();
    assert_eq!(Digest::of(&tar), info.diff_id);
}

/// A store made by the first program that wrote format 2, kept in the repository: newer programs must read it.
#[test]
fn a_store_of_version_2_opens_and_reads() {
    let (_dir, store) = opened("v2.db");
    let images = store.images().unwrap();
    assert_eq!(images[0].names, ["fixture:v2"]);
    assert_eq!(
        store.name_indexes("fixture:v2").unwrap(),
        [Digest::of(b"fixture index")]
    );
    for text in [b"fixture manifest".as_slice(), b"fixture index"] {
        assert_eq!(store.document(&Digest::of(text)).unwrap().unwrap(), text);
    }
    let blob = Digest::of(b"fixture blob");
    let info = store.blob(&blob).unwrap().unwrap();
    assert_eq!((info.size, info.method), (12, 1));
    assert_eq!(info.diff_id, images[0].layers[0]);
    assert_eq!(read(&store, &blob).unwrap(), b"fixture blob");
    store.gc().unwrap();
    assert_eq!(read(&store, &blob).unwrap(), b"fixture blob");
    let mut tar = Vec::new();
    store
        .write_layer_tar(&images[0].layers[0], &mut tar)
        .unwrap();
    assert_eq!(Digest::of(&tar), images[0].layers[0]);
}
