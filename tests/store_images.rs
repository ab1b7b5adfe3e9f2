//! Images, names, leases and garbage collection: what is kept, what goes, and that space comes back.

mod store_support;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use ovl::store::{Digest, Error, LayerInfo, NewImage, ROOT_INODE, Store};
use store_support::{Tar, noise};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    (dir, store)
}

/// A layer with one file of its own and one that every layer has.
fn layer(store: &Store, seed: u64, len: usize) -> LayerInfo {
    let mut tar = Tar::new(store);
    tar.file("own", &noise(len, seed));
    tar.file("shared", &noise(300_000, 99));
    tar.finish().0
}

fn image(store: &Store, manifest: &str, layers: &[&LayerInfo], names: &[&str]) -> Digest {
    let layers: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let new = NewImage {
        manifest: manifest.as_bytes(),
        manifest_media_type: "application/x",
        config: b"config",
        layers: &layers,
        names: &names,
    };
    store.put_image(&new).unwrap();
    Digest::of(manifest.as_bytes())
}

fn can_read(store: &Store, layer: &LayerInfo) -> bool {
    let mut out = Vec::new();
    match store.write_layer_tar(&layer.diff_id, &mut out) {
        Ok(len) => len == layer.tar_size,
        Err(Error::NotFound(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn images_and_names() {
    let (_dir, store) = store();
    let (a, b) = (layer(&store, 1, 10), layer(&store, 2, 20));
    let one = image(&store, "one", &[&a, &b, &a], &["x:1", "x:latest"]);
    let two = image(&store, "two", &[&b], &["x:latest"]);
    let records = store.images().unwrap();
    assert_eq!(
        records.iter().map(|r| r.manifest).collect::<Vec<_>>(),
        [two, one],
        "newest first"
    );
    assert_eq!(records[1].names, ["x:1"]);
    assert_eq!(records[0].names, ["x:latest"]);
    assert_eq!(records[1].layers, [a.diff_id, b.diff_id, a.diff_id]);
    assert_eq!(records[1].size, 2 * a.files_size + b.files_size);
    assert_eq!(store.image(&one).unwrap().as_ref(), Some(&records[1]));
    assert_eq!(store.image(&Digest::of(b"?")).unwrap(), None);
    assert_eq!(store.document(&one).unwrap().unwrap(), b"one");
    assert_eq!(
        store.document(&Digest::of(b"config")).unwrap().unwrap(),
        b"config"
    );
    assert_eq!(store.document(&Digest::of(b"?")).unwrap(), None);

    assert_eq!(store.set_name("x:1", &two).unwrap(), Some(one));
    assert_eq!(store.set_name("new", &two).unwrap(), None);
    assert_eq!(store.resolve_name("x:1").unwrap(), Some(two));
    assert!(store.remove_name("x:1").unwrap());
    assert!(!store.remove_name("x:1").unwrap());
    assert_eq!(store.resolve_name("x:1").unwrap(), None);
    assert!(matches!(
        store.set_name("y", &Digest::of(b"?")),
        Err(Error::NotFound(_))
    ));

    // Again: only the names.
    assert_eq!(image(&store, "one", &[&a, &b, &a], &["again"]), one);
    assert_eq!(store.images().unwrap().len(), 2);
    let missing = Digest::of(b"no such layer");
    for (layers, conflict) in [(vec![a.diff_id], true), (vec![missing], false)] {
        let new = NewImage {
            manifest: b"one",
            manifest_media_type: "m",
            config: b"other config",
            layers: &layers,
            names: &["bad".to_owned()],
        };
        let error = store.put_image(&new).unwrap_err();
        assert_eq!(error.exit_code(), if conflict { 3 } else { 4 }, "{error}");
    }
    assert_eq!(
        store.resolve_name("bad").unwrap(),
        None,
        "nothing half-applied"
    );
    assert_eq!(
        store.document(&Digest::of(b"other config")).unwrap(),
        None,
        "nothing half-applied"
    );
}

#[test]
fn removing_an_image_keeps_what_others_need() {
    let (_dir, store) = store();
    let (a, b, c) = (
        layer(&store, 1, 1_000_000),
        layer(&store, 2, 1_000_000),
        layer(&store, 3, 1_000_000),
    );
    let one = image(&store, "one", &[&a, &b], &["one"]);
    let two = image(&store, "two", &[&b, &c], &["two"]);
    store.remove_image(&one).unwrap();
    assert!(matches!(store.remove_image(&one), Err(Error::NotFound(_))));
    assert_eq!(store.resolve_name("one").unwrap(), None);
    assert_eq!(store.document(&one).unwrap(), None);
    assert_eq!(
        store.document(&Digest::of(b"config")).unwrap().unwrap(),
        b"config",
        "image two has it too"
    );
    assert_eq!(store.layers().unwrap(), [b.clone(), c.clone()]);

    let before = store.usage().unwrap();
    assert!(before.reclaimable_bytes > 900_000, "{before:?}");
    let report = store.gc().unwrap();
    assert!(report.chunks > 0 && report.layers == 0, "{report:?}");
    assert!(report.freed_bytes > 900_000, "{report:?}");
    let after = store.usage().unwrap();
    assert!(
        after.disk_bytes + 900_000 < before.disk_bytes,
        "{before:?} {after:?}"
    );
    assert_eq!((after.images, after.layers), (1, 2));
    assert!(after.reclaimable_bytes < 100_000, "{after:?}");
    assert!(can_read(&store, &b) && can_read(&store, &c));

    store.remove_image(&two).unwrap();
    store.gc().unwrap();
    let empty = store.usage().unwrap();
    assert_eq!(
        (
            empty.images,
            empty.layers,
            empty.unique_bytes,
            empty.stored_bytes
        ),
        (0, 0, 0, 0)
    );
    assert!(empty.disk_bytes < 300_000, "{empty:?}");
}

#[test]
fn usage_adds_up() {
    let (_dir, store) = store();
    assert_eq!(store.usage().unwrap().layers, 0);
    let (a, b) = (layer(&store, 1, 200_000), layer(&store, 2, 200_000));
    image(&store, "one", &[&a, &b], &[]);
    let usage = store.usage().unwrap();
    assert_eq!(
        (usage.images, usage.layers, usage.raw_bytes),
        (1, 2, a.tar_size + b.tar_size)
    );
    assert_eq!(
        usage.unique_bytes,
        200_000 * 2 + 300_000,
        "the shared file once"
    );
    assert!(
        usage.stored_bytes >= usage.unique_bytes,
        "noise does not compress"
    );
    assert!(
        usage.stored_bytes < usage.unique_bytes + 1_000,
        "and is then kept as it is"
    );
    assert_eq!(usage.reclaimable_bytes, 0);
}

#[test]
fn leased_layers_stay_until_the_lease_ends() {
    let (_dir, store) = store();
    let a = layer(&store, 1, 1_000);
    let one = image(&store, "one", &[&a], &["one"]);
    let lease = store.lease(&[a.diff_id, a.diff_id], "test").unwrap();
    store.remove_image(&one).unwrap();
    assert!(can_read(&store, &a), "an image removed under a mount");
    store.gc().unwrap();
    assert!(can_read(&store, &a), "collected under a mount");
    drop(lease);
    assert_eq!(store.gc().unwrap().layers, 1);
    assert!(!can_read(&store, &a));
    assert!(matches!(
        store.lease(&[a.diff_id], "late"),
        Err(Error::NotFound(_))
    ));
}

#[test]
fn a_layer_without_image_is_kept_while_its_importer_lives() {
    let (dir, store) = store();
    let a = layer(&store, 1, 1_000);
    store.gc().unwrap();
    assert!(
        can_read(&store, &a),
        "an import of several layers would lose its first ones"
    );
    // The importer dies: same number, another start time.
    let db = rusqlite::Connection::open(dir.path().join("s/store.db")).unwrap();
    assert_eq!(
        db.execute("UPDATE lease SET start = start - 1", [])
            .unwrap(),
        1
    );
    assert_eq!(store.gc().unwrap().layers, 1);
    assert!(!can_read(&store, &a));
    let left: i64 = db
        .query_row("SELECT count(*) FROM lease", [], |row| row.get(0))
        .unwrap();
    assert_eq!(left, 0, "lapsed leases are cleared away");
}

#[test]
fn collection_waits_for_imports_and_clears_up_after_dropped_ones() {
    let (dir, store) = store();
    let mut tar = Tar::new(&store);
    tar.file("f", &noise(40_000_000, 4));
    let error = store.gc().unwrap_err();
    assert_eq!(error.exit_code(), 75, "{error}");
    assert!(
        error.to_string().contains(&std::process::id().to_string()),
        "says who: {error}"
    );
    drop(tar);
    let left = store.usage().unwrap();
    assert!(
        left.unique_bytes > 30_000_000 && left.reclaimable_bytes >= left.unique_bytes,
        "{left:?}"
    );
    let report = store.gc().unwrap();
    assert!(
        report.chunks > 100 && report.freed_bytes > 30_000_000,
        "{report:?}"
    );
    assert_eq!(store.usage().unwrap().unique_bytes, 0);
    drop(store);
    let files = walkdir::WalkDir::new(dir.path()).into_iter();
    let bytes: u64 = files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes < 2_000_000, "{bytes} bytes are left: {report:?}");
}

/// Only one file in five survives, so all packs are mostly dead and must be rewritten, not just kept.
#[test]
fn mostly_dead_packs_are_rewritten() {
    let (_dir, store) = store();
    let file = |n: u64| noise(3_000, 1000 + n);
    let mut all = Tar::new(&store);
    let mut some = Tar::new(&store);
    for n in 0..1_000 {
        all.file(&format!("{n}"), &file(n));
        if n % 5 == 0 {
            some.file(&format!("{n}"), &file(n));
        }
    }
    let (all, _) = all.finish();
    let (some, bytes) = some.finish();
    let reader = store.open_layer(&some.diff_id).unwrap();
    let ino = reader
        .lookup(ROOT_INODE, "5".as_ref())
        .unwrap()
        .unwrap()
        .target
        .unwrap()
        .0;
    let open = reader
        .open_content(reader.inode(ino).unwrap().content)
        .unwrap();

    let doomed = image(&store, "all", &[&all], &[]);
    image(&store, "some", &[&some], &[]);
    store.remove_image(&doomed).unwrap();
    let before = store.usage().unwrap();
    store.gc().unwrap();
    let after = store.usage().unwrap();
    assert_eq!(after.unique_bytes, 200 * 3_000);
    assert!(
        after.stored_bytes * 3 < before.stored_bytes,
        "{before:?} {after:?}"
    );
    let mut out = Vec::new();
    store.write_layer_tar(&some.diff_id, &mut out).unwrap();
    assert!(out == bytes);
    let mut buf = vec![0; 3_000];
    open.read_at(0, &mut buf).unwrap();
    assert!(buf == file(5), "a file that was open during the collection");
    assert_eq!(store.gc().unwrap().chunks, 0, "nothing left to do");
}

/// What a recipe uses is kept even if no file of the tree does: the first of two entries with one name.
#[test]
fn contents_that_only_the_recipe_uses_survive() {
    let (_dir, store) = store();
    let mut tar = Tar::new(&store);
    tar.file("f", &noise(10_000, 1));
    tar.file("g", &noise(400_000, 2));
    tar.file("f", b"later");
    tar.file("g", b"later");
    let (info, _) = tar.finish();
    image(&store, "m", &[&info], &[]);
    store.gc().unwrap();
    assert!(can_read(&store, &info));
}

#[test]
fn a_lease_of_a_dead_process_lapses() {
    const ROLE: &str = "OVL_TEST_LEASE_STORE";
    if let Some(root) = std::env::var_os(ROLE) {
        // The child: takes a lease and dies without a word.
        let store = Store::open(Path::new(&root)).unwrap();
        let layers: Vec<Digest> = store
            .layers()
            .unwrap()
            .iter()
            .map(|layer| layer.diff_id)
            .collect();
        std::mem::forget(store.lease(&layers, "to be orphaned").unwrap());
        std::process::abort();
    }
    let (_dir, store) = store();
    let a = layer(&store, 1, 1_000);
    let one = image(&store, "one", &[&a], &[]);
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_lease_of_a_dead_process_lapses", "--nocapture"])
        .env(ROLE, store.root())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(
        status.signal(),
        Some(libc::SIGABRT),
        "the child got as far as its end"
    );
    store.remove_image(&one).unwrap();
    assert_eq!(
        store.layers().unwrap(),
        [],
        "the child's lease holds nothing"
    );
}
