//! Known damage: what a read or a check has found bad, the next import of the same layer puts right, in place, and without
//! a repair before it.

mod store_support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use ovl::store::{Error, FsckOptions, LayerInfo, NewImage, ROOT_INODE, Store};
use store_support::{Tar, noise};

struct Place {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            root: dir.path().join("s"),
            _dir: dir,
        }
    }

    fn store(&self) -> Store {
        Store::open(&self.root).unwrap()
    }

    fn sql(&self, sql: &str) {
        let database = rusqlite::Connection::open(self.root.join("store.db")).unwrap();
        assert!(database.execute(sql, []).unwrap() > 0, "{sql}");
    }

    fn notes(&self) -> Option<String> {
        fs::read_to_string(self.root.join("store.damage")).ok()
    }
}

/// A layer with `big`, of many chunks, and small files that share a pack.
fn fill(store: &Store) -> LayerInfo {
    let mut tar = Tar::new(store);
    tar.file("big", &noise(1_000_000, 1));
    for n in 0..50 {
        tar.file(&format!("small-{n}"), &noise(3000, 100 + n));
    }
    tar.finish().0
}

/// Reads one file of a layer.
fn read(store: &Store, layer: &LayerInfo, name: &str) -> Result<Vec<u8>, Error> {
    let layer = store.open_layer(&layer.diff_id)?;
    let entry = layer.lookup(ROOT_INODE, name.as_ref())?.unwrap();
    let inode = layer.inode(entry.target.unwrap().0)?;
    let mut bytes = vec![0; inode.size as usize];
    let content = layer.open_content(inode.content)?;
    let len = content.read_at(0, &mut bytes)?;
    assert_eq!(len, bytes.len());
    Ok(bytes)
}

fn problems(store: &Store, fast: bool) -> usize {
    let options = FsckOptions {
        fast,
        ..FsckOptions::default()
    };
    store.fsck(&options, &|_| {}).unwrap().problems.len()
}

/// What can become of bytes, and whether a look at the rows alone would find it.
const DAMAGE: [(&str, &str, bool); 6] = [
    (
        "flipped",
        "UPDATE pack SET data = zeroblob(length(data))",
        false,
    ),
    ("of an unknown codec", "UPDATE pack SET codec = 9", true),
    ("packs missing", "DELETE FROM pack", true),
    (
        "one pack missing",
        "DELETE FROM pack WHERE id = (SELECT max(id) FROM pack)",
        true,
    ),
    (
        "outside their pack",
        "UPDATE chunk SET offset = 1 << 30",
        true,
    ),
    ("of the wrong length", "UPDATE chunk SET len = 1", false),
];

#[test]
fn what_a_check_found_the_next_import_puts_right() {
    for (what, sql, by_rows) in DAMAGE {
        for fast in [false, true] {
            let place = Place::new();
            let store = place.store();
            let info = fill(&store);
            assert_eq!(problems(&store, false), 0);
            place.sql(sql);
            assert!(!store.needs_healing(&info.diff_id).unwrap(), "{what}");
            // Not before it is known: an import believes what is stored.
            fill(&store);
            if fast && !by_rows {
                // Nothing of it shows in the rows alone, unless their lengths do.
                problems(&store, true);
                continue;
            }
            assert!(problems(&store, fast) > 0, "{what}");
            assert!(store.needs_healing(&info.diff_id).unwrap(), "{what}");
            let mode = fs::metadata(place.root.join("store.damage")).unwrap();
            assert_eq!(mode.permissions().mode() & 0o777, 0o600);
            assert_eq!(fill(&store), info);
            assert_eq!(problems(&store, false), 0, "{what}, fast: {fast}");
            assert_eq!(read(&store, &info, "big").unwrap(), noise(1_000_000, 1));
            assert_eq!(read(&store, &info, "small-7").unwrap(), noise(3000, 107));
            assert_eq!(place.notes(), None, "{what}: all is well");
            // What took the place of the old packs is not swept away with them.
            store.gc().unwrap();
            assert_eq!(problems(&store, false), 0, "{what}");
        }
    }
}

#[test]
fn what_a_read_found_the_next_import_puts_right() {
    let place = Place::new();
    let store = place.store();
    let info = fill(&store);
    // Two stores open, as a mount and an import would be.
    let mount = place.store();
    place.sql("UPDATE pack SET data = zeroblob(length(data))");
    let error = read(&mount, &info, "small-7").unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    let notes = place.notes().expect("a note of the chunk");
    assert_eq!(notes.lines().count(), 1, "{notes}");
    let again = read(&mount, &info, "small-7").unwrap_err();
    assert!(matches!(again, Error::Corrupt(_)));
    assert_eq!(place.notes().as_ref(), Some(&notes), "noted once");
    assert!(store.needs_healing(&info.diff_id).unwrap());

    // One chunk was read; all that the layer needs is looked at, and any other layer that is imported.
    let mut other = Tar::new(&mount);
    other.file("other", &noise(100_000, 77));
    let (other, _) = other.finish();
    assert!(!store.needs_healing(&other.diff_id).unwrap());
    place
        .sql("UPDATE pack SET data = zeroblob(length(data)) WHERE id = (SELECT max(id) FROM pack)");
    assert!(store.needs_healing(&other.diff_id).unwrap());
    let mut again = Tar::new(&mount);
    again.file("other", &noise(100_000, 77));
    again.finish();
    assert!(!store.needs_healing(&other.diff_id).unwrap());
    fill(&store);
    assert_eq!(read(&mount, &info, "small-7").unwrap(), noise(3000, 107));
    assert_eq!(read(&mount, &info, "small-8").unwrap(), noise(3000, 108));
    assert_eq!(read(&mount, &info, "big").unwrap(), noise(1_000_000, 1));
    assert_eq!(place.notes(), None);
    assert_eq!(problems(&store, false), 0);
}

#[test]
fn an_import_of_something_else_leaves_the_rest_noted() {
    let place = Place::new();
    let store = place.store();
    let info = fill(&store);
    let mut other = Tar::new(&store);
    other.file("other", &noise(500_000, 9));
    let (other, _) = other.finish();
    place.sql("UPDATE pack SET data = zeroblob(length(data)) WHERE id = 1");
    assert!(problems(&store, false) > 0);
    assert!(store.needs_healing(&info.diff_id).unwrap());
    assert!(!store.needs_healing(&other.diff_id).unwrap());
    let mut third = Tar::new(&store);
    third.file("third", &noise(500_000, 10));
    third.finish();
    assert!(store.needs_healing(&info.diff_id).unwrap());
    fill(&store);
    assert_eq!(place.notes(), None);
    assert_eq!(problems(&store, false), 0);
}

#[test]
fn a_repair_leaves_nothing_noted() {
    let place = Place::new();
    let store = place.store();
    let info = fill(&store);
    // Until an image has it, the layer is held by who imported it.
    let image = NewImage {
        manifest: b"manifest",
        manifest_media_type: "application/x",
        config: b"config",
        layers: &[info.diff_id],
        names: &[],
    };
    store.put_image(&image).unwrap();
    place.sql("UPDATE pack SET data = zeroblob(length(data))");
    assert!(problems(&store, false) > 0);
    assert!(place.notes().is_some());
    let repair = FsckOptions {
        repair: true,
        ..FsckOptions::default()
    };
    store.fsck(&repair, &|_| {}).unwrap();
    assert_eq!(place.notes(), None);
    assert!(store.layer(&info.diff_id).unwrap().is_none());
    fill(&store);
    assert_eq!(problems(&store, false), 0);
}

/// The file is a hint: nothing in it is believed, and an import works whatever it holds or is.
#[test]
fn a_note_of_nothing_does_no_harm() {
    let place = Place::new();
    let store = place.store();
    let info = fill(&store);
    let file = place.root.join("store.damage");
    let stranger = format!("sha256:{}\n", "ab".repeat(32));
    for text in [
        Vec::new(),
        b"\xff\x00 nonsense\n\n".to_vec(),
        stranger.clone().into_bytes(),
        stranger.repeat(100_000).into_bytes(),
        vec![b'x'; 8 << 20],
    ] {
        fs::write(&file, &text).unwrap();
        assert!(!store.needs_healing(&info.diff_id).unwrap());
        fill(&store);
        let mut tar = Tar::new(&store);
        tar.file("new", &noise(20_000, text.len() as u64));
        tar.finish();
        assert_eq!(problems(&store, false), 0);
        assert_eq!(place.notes(), None, "a check knows better");
    }
    // Followed nowhere, and no reason to fail.
    let elsewhere = place.root.join("elsewhere");
    fs::write(&elsewhere, &stranger).unwrap();
    symlink(&elsewhere, &file).unwrap();
    place.sql("UPDATE pack SET data = zeroblob(length(data)) WHERE id = 1");
    assert!(problems(&store, false) > 0);
    fill(&store);
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), stranger);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(problems(&store, false) > 0);
    fill(&store);
    fs::remove_dir(&file).unwrap();
    assert!(problems(&store, false) > 0);
    fill(&store);
    assert_eq!(problems(&store, false), 0);
}
