//! Several writers and readers at once, in one process and in several.

mod store_support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use ovl::store::{ROOT_INODE, Store};
use store_support::{Tar, noise};

const ROLE: &str = "OVL_TEST_STORE_ROOT";

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    (dir, store)
}

/// Runs the test `name` of this binary once more, in a process of its own that does the child's part.
fn child(name: &str, store: &Store) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ROLE, store.root())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn big_layer(store: &Store) -> Tar {
    let mut tar = Tar::new(store);
    for n in 0..40 {
        tar.file(&format!("f{n}"), &noise(1_000_000, n));
        tar.file(&format!("s{n}"), &noise(1_000, 1_000 + n));
    }
    tar
}

/// Several processes import the same layer at the same time. Before there were aliases, the loser of the race for a
/// chunk failed with a constraint error, or its layer referred to ids that were never stored.
#[test]
fn processes_import_the_same_layer() {
    if let Some(root) = std::env::var_os(ROLE) {
        big_layer(&Store::open(Path::new(&root)).unwrap()).finish();
        return;
    }
    let (_dir, store) = store();
    let mut children: Vec<Child> = (0..3)
        .map(|_| child("processes_import_the_same_layer", &store))
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let layers = store.layers().unwrap();
    assert_eq!(layers.len(), 1);
    assert_eq!(store.usage().unwrap().unique_bytes, 40 * 1_001_000);
    assert_eq!(
        store
            .write_layer_tar(&layers[0].diff_id, &mut std::io::sink())
            .unwrap(),
        layers[0].tar_size
    );
}

/// Two layers with the same files are written in step, so that each finds chunks and lists that the other has chosen
/// ids for but not stored: the second to publish must be pointed at the first one's.
#[test]
fn what_another_import_stored_meanwhile_is_used() {
    let (_dir, store) = store();
    let write = |head: &[u8]| {
        let mut tar = Tar::new(&store);
        tar.literal(head);
        tar.file("small", &noise(5_000, 1));
        tar.file("list", &noise(900_000, 2));
        tar.sparse(
            "sparse",
            &[Ok(&noise(5_000, 1)), Err(4096), Ok(&noise(300_000, 3))],
        );
        tar.file("small", &noise(7_000, 4));
        tar
    };
    let (first, second) = (write(b"first"), write(b"second"));
    let ((first, first_bytes), (second, second_bytes)) = (first.finish(), second.finish());
    assert_eq!(store.layers().unwrap().len(), 2);
    for (info, bytes) in [(&first, &first_bytes), (&second, &second_bytes)] {
        let mut out = Vec::new();
        store.write_layer_tar(&info.diff_id, &mut out).unwrap();
        assert!(out == *bytes);
        let layer = store.open_layer(&info.diff_id).unwrap();
        let ino = layer
            .lookup(ROOT_INODE, "list".as_ref())
            .unwrap()
            .unwrap()
            .target
            .unwrap()
            .0;
        let content = layer
            .open_content(layer.inode(ino).unwrap().content)
            .unwrap();
        let mut buf = vec![0; 900_000];
        content.read_at(0, &mut buf).unwrap();
        assert!(buf == noise(900_000, 2));
    }
    let content_of = |info: &ovl::store::LayerInfo, name: &str| {
        let layer = store.open_layer(&info.diff_id).unwrap();
        let ino = layer
            .lookup(ROOT_INODE, name.as_ref())
            .unwrap()
            .unwrap()
            .target
            .unwrap()
            .0;
        layer.inode(ino).unwrap().content
    };
    for name in ["small", "list", "sparse"] {
        assert_eq!(
            content_of(&first, name),
            content_of(&second, name),
            "{name} is stored once"
        );
    }
    let usage = store.usage().unwrap();
    assert_eq!(usage.unique_bytes, 5_000 + 900_000 + 300_000 + 7_000);
    assert!(
        usage.stored_bytes < usage.unique_bytes + 10_000,
        "no pack twice: {usage:?}"
    );
}

#[test]
fn readers_do_not_wait_for_imports() {
    let (_dir, store) = store();
    let mut tar = Tar::new(&store);
    tar.file("f", &noise(2_000_000, 1));
    let (info, _) = tar.finish();
    let (started, mut slowest) = (Barrier::new(2), Duration::ZERO);
    std::thread::scope(|scope| {
        let import = scope.spawn(|| {
            let mut tar = Tar::new(&store);
            started.wait();
            for n in 0..30 {
                tar.file(&format!("f{n}"), &noise(3_000_000, 50 + n));
            }
            tar.finish()
        });
        started.wait();
        let mut reads = 0;
        while !import.is_finished() {
            let begin = Instant::now();
            let layer = store.open_layer(&info.diff_id).unwrap();
            let ino = layer
                .lookup(ROOT_INODE, "f".as_ref())
                .unwrap()
                .unwrap()
                .target
                .unwrap()
                .0;
            let content = layer
                .open_content(layer.inode(ino).unwrap().content)
                .unwrap();
            content
                .read_at((reads * 70_000) % 1_900_000, &mut [0; 4096])
                .unwrap();
            slowest = slowest.max(begin.elapsed());
            reads += 1;
        }
        import.join().unwrap();
        assert!(reads > 20, "only {reads} reads during the import");
    });
    assert!(slowest < Duration::from_secs(2), "a read took {slowest:?}");
}

/// Killed in the middle of an import, again and again: the store opens, holds only whole layers, and a later import and
/// collection leave nothing behind.
#[test]
fn killed_imports_leave_only_garbage() {
    if let Some(root) = std::env::var_os(ROLE) {
        let store = Store::open(Path::new(&root)).unwrap();
        for round in 0.. {
            let mut tar = big_layer(&store);
            tar.literal(format!("round {round} of {}", std::process::id()).as_bytes());
            tar.file(
                "own",
                &noise(5_000_000, u64::from(std::process::id()) << 20 | round),
            );
            tar.finish();
        }
    }
    let (_dir, store) = store();
    for round in 0..6 {
        let mut child = child("killed_imports_leave_only_garbage", &store);
        std::thread::sleep(Duration::from_millis(150 + round * 130));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(store.root()).unwrap();
        for layer in store.layers().unwrap() {
            let len = store
                .write_layer_tar(&layer.diff_id, &mut std::io::sink())
                .unwrap();
            assert_eq!(len, layer.tar_size, "round {round}");
        }
        if round % 2 == 1 {
            store.gc().unwrap();
        }
    }
    store.gc().unwrap();
    let usage = store.usage().unwrap();
    assert_eq!(
        (usage.layers, usage.unique_bytes),
        (0, 0),
        "no image had them and their makers are dead: {usage:?}"
    );
    let (info, _) = big_layer(&store).finish();
    store
        .write_layer_tar(&info.diff_id, &mut std::io::sink())
        .unwrap();
    let database = store.root().join("store.db");
    drop(store);
    let db = rusqlite::Connection::open(database).unwrap();
    let verdict: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(verdict, "ok");
}

/// Whoever comes first makes the tables; nobody fails.
#[test]
fn many_opens_at_once_make_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("new");
    std::thread::scope(|scope| {
        let opens: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| Store::open(&root).unwrap().layers().unwrap().len()))
            .collect();
        for open in opens {
            assert_eq!(open.join().unwrap(), 0);
        }
    });
}
