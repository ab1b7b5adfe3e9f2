//! Damaged and crafted databases: an error with the right words, never wrong data, never a panic, never a loop.

mod store_support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use ovl::store::{Error, LayerInfo, LayerReader, ROOT_INODE, Store};
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

    fn database(&self) -> PathBuf {
        self.root.join("store.db")
    }

    fn sql(&self, sql: &str) {
        rusqlite::Connection::open(self.database())
            .unwrap()
            .execute_batch(sql)
            .unwrap();
    }
}

/// A store with one layer: `d/f` of one chunk, `d/big` of many, `l` a symlink.
fn filled() -> (Place, LayerInfo) {
    let place = Place::new();
    let info = fill(&Store::open(&place.root).unwrap());
    (place, info)
}

fn fill(store: &Store) -> LayerInfo {
    let mut tar = Tar::new(store);
    tar.dir("d");
    tar.file("d/f", b"some words, some words, some words");
    tar.file("d/big", &noise(1_000_000, 1));
    tar.sparse("d/sparse", &[Err(1000), Ok(b"x")]);
    tar.symlink("l", "d/f");
    tar.finish().0
}

/// Reads everything of a layer; gives the first error.
fn read_all(store: &Store, info: &LayerInfo) -> Result<u64, Error> {
    let mut read = 0;
    // Two readers: one keeps what it has read.
    let readers = [
        store.open_layer(&info.diff_id)?,
        store.open_layer(&info.diff_id)?,
    ];
    walk(&readers, ROOT_INODE, 0, &mut read)?;
    read += store.write_layer_tar(&info.diff_id, &mut Vec::new())?;
    Ok(read)
}

fn walk(readers: &[LayerReader; 2], dir: u64, depth: u32, read: &mut u64) -> Result<(), Error> {
    let [layer, finder] = readers;
    if depth > 5 {
        return Ok(()); // A directory within itself: every single call still ends.
    }
    for entry in layer.read_dir(dir)? {
        finder.lookup(dir, &entry.name)?;
        let (_, found) = finder.find(dir, &entry.name)?.expect("it was listed");
        let Some((ino, _)) = entry.target else {
            continue;
        };
        let inode = layer.inode(ino)?;
        assert_eq!(found.as_ref(), Some(&inode));
        layer.xattrs(ino)?;
        match inode.kind {
            ovl::meta::FileKind::Directory => walk(readers, ino, depth + 1, read)?,
            ovl::meta::FileKind::Symlink => *read += layer.symlink_target(ino)?.len() as u64,
            ovl::meta::FileKind::Regular => {
                let content = layer.open_content(inode.content)?;
                content.next_data(0)?;
                content.next_hole(0)?;
                let mut buf = vec![0; content.size().min(2_000_000) as usize];
                *read += content.read_at(0, &mut buf)? as u64;
            }
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn an_undamaged_store_reads_to_the_end() {
    let (place, info) = filled();
    assert_eq!(
        read_all(&Store::open(&place.root).unwrap(), &info).unwrap(),
        34 + 1_000_000 + 1001 + 3 + info.tar_size
    );
}

#[test]
fn rows_that_make_no_sense_are_damage() {
    let cases = [
        (
            "pack bytes flipped",
            "UPDATE pack SET data = zeroblob(length(data))",
        ),
        (
            "packs exchanged",
            "UPDATE chunk SET pack = 3 - pack WHERE pack < 3",
        ),
        ("pack missing", "DELETE FROM pack"),
        ("pack of unknown codec", "UPDATE pack SET codec = 9"),
        ("pack of absurd size", "UPDATE pack SET raw_len = 1 << 40"),
        ("pack of negative size", "UPDATE pack SET raw_len = -1"),
        ("chunk missing", "DELETE FROM chunk"),
        (
            "chunk outside its pack",
            "UPDATE chunk SET offset = 1 << 31",
        ),
        ("chunk at a negative offset", "UPDATE chunk SET offset = -1"),
        ("chunk of no length", "UPDATE chunk SET len = 0"),
        ("chunk of absurd length", "UPDATE chunk SET len = 1 << 40"),
        (
            "chunk shorter than the list says",
            "UPDATE chunk SET len = len - 1 WHERE len > 16384",
        ),
        (
            "chunk's name of the wrong length",
            "UPDATE chunk SET sha256 = x'00' WHERE id = 1",
        ),
        ("content missing", "DELETE FROM content"),
        ("content of negative size", "UPDATE content SET size = -5"),
        (
            "content longer than its list",
            "UPDATE content SET size = size + 1",
        ),
        (
            "content shorter than its list",
            "UPDATE content SET size = size - 1",
        ),
        ("list missing", "DELETE FROM extent"),
        ("list empty", "UPDATE extent SET list = x''"),
        (
            "list of garbage",
            "UPDATE extent SET list = x'ffffffffffffffffffff'",
        ),
        ("list at a negative offset", "UPDATE extent SET start = -1"),
        ("list starts late", "UPDATE extent SET start = 1"),
        ("inodes missing", "DELETE FROM inode WHERE ino > 1"),
        ("unknown kind", "UPDATE inode SET kind = 42"),
        ("negative size", "UPDATE inode SET size = -1"),
        ("negative data size", "UPDATE inode SET data_size = -1"),
        (
            "absurd nanoseconds",
            "UPDATE inode SET mtime_ns = 1000000000",
        ),
        ("negative owner", "UPDATE inode SET uid = -1"),
        ("owner beyond 32 bits", "UPDATE inode SET gid = 1 << 32"),
        ("negative link count", "UPDATE inode SET nlink = -1"),
        (
            "negative content",
            "UPDATE inode SET content = -1 WHERE content > 0",
        ),
        (
            "no content",
            "UPDATE inode SET content = 0 WHERE content > 0",
        ),
        (
            "content of nobody",
            "UPDATE inode SET content = 1 << 60 WHERE content > 0",
        ),
        ("no target", "UPDATE inode SET target = NULL"),
        ("empty target", "UPDATE inode SET target = x''"),
        ("NUL in target", "UPDATE inode SET target = x'610061'"),
        ("garbage attributes", "UPDATE inode SET xattrs = x'ff'"),
        (
            "name ..",
            "UPDATE dentry SET name = x'2e2e' WHERE name = x'6c'",
        ),
        (
            "name with /",
            "UPDATE dentry SET name = x'612f62' WHERE name = x'6c'",
        ),
        (
            "name with NUL",
            "UPDATE dentry SET name = x'6100' WHERE name = x'6c'",
        ),
        (
            "empty name",
            "UPDATE dentry SET name = x'' WHERE name = x'6c'",
        ),
        (
            "name too long",
            "UPDATE dentry SET name = zeroblob(300) WHERE name = x'6c'",
        ),
        ("name of unknown kind", "UPDATE dentry SET kind = 99"),
        ("negative inode", "UPDATE dentry SET ino = -1"),
        ("whiteout with an inode", "UPDATE dentry SET kind = 0"),
        (
            "layer of another name",
            "UPDATE layer SET tar_size = tar_size + 1",
        ),
        ("recipe missing", "DELETE FROM recipe"),
        ("recipe of garbage", "UPDATE recipe SET ops = x'ff'"),
        (
            "recipe with too many headers",
            "UPDATE recipe SET ops = x'feffffff0f'",
        ),
        (
            "recipe of another length",
            "UPDATE recipe SET raw_len = raw_len + 1",
        ),
        (
            "recipe of absurd length",
            "UPDATE recipe SET raw_len = 1 << 50",
        ),
        (
            "headers of garbage",
            "UPDATE recipe SET literals = zeroblob(100)",
        ),
    ];
    for (what, sql) in cases {
        let (place, info) = filled();
        place.sql(sql);
        let store = Store::open(&place.root).unwrap();
        let error = read_all(&store, &info).expect_err(what);
        assert_eq!(error.exit_code(), 5, "{what}: {error}");
    }
}

/// No call follows more than one step of a tree, so a circle can trap no one here; whoever walks must mind it himself.
#[test]
fn a_directory_within_itself_traps_no_call() {
    let (place, info) = filled();
    place.sql("UPDATE dentry SET ino = parent, kind = 2");
    read_all(&Store::open(&place.root).unwrap(), &info).unwrap();
}

/// One byte of a stored pack changes: the reader must get an error for what it holds, and everything else unharmed.
#[test]
fn a_flipped_byte_is_never_served() {
    let (place, info) = filled();
    let db = rusqlite::Connection::open(place.database()).unwrap();
    let packs: Vec<(i64, Vec<u8>)> = db
        .prepare("SELECT id, data FROM pack")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    for (id, good) in packs {
        for at in (0..good.len()).step_by(good.len() / 7 + 1) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            db.execute("UPDATE pack SET data = ?2 WHERE id = ?1", (id, &bad))
                .unwrap();
            let store = Store::open(&place.root).unwrap();
            let error = read_all(&store, &info).unwrap_err();
            assert!(
                matches!(error, Error::Corrupt(_)),
                "byte {at} of pack {id}: {error}"
            );
            let error = store
                .write_layer_tar(&info.diff_id, &mut Vec::new())
                .unwrap_err();
            assert!(
                matches!(error, Error::Corrupt(_)),
                "byte {at} of pack {id}: {error}"
            );
        }
        db.execute("UPDATE pack SET data = ?2 WHERE id = ?1", (id, &good))
            .unwrap();
    }
    read_all(&Store::open(&place.root).unwrap(), &info).unwrap();
}

/// The garbage collector must not take for garbage what it cannot read.
#[test]
fn a_damaged_store_loses_nothing_to_gc() {
    for (what, sql) in [
        ("recipe of garbage", "UPDATE recipe SET ops = x'ff'"),
        ("list of garbage", "UPDATE extent SET list = x'ff'"),
        (
            "negative content",
            "UPDATE inode SET content = -1 WHERE content > 0",
        ),
    ] {
        let (place, _) = filled();
        place.sql(sql);
        let store = Store::open(&place.root).unwrap();
        let before = store.usage().err().map(|error| error.exit_code());
        let error = store.gc().unwrap_err();
        assert_eq!((before, error.exit_code()), (Some(5), 5), "{what}: {error}");
        let db = rusqlite::Connection::open(place.database()).unwrap();
        let chunks: i64 = db
            .query_row("SELECT count(*) FROM chunk", [], |row| row.get(0))
            .unwrap();
        assert!(chunks > 5, "{what}");
    }
}

#[test]
fn what_is_no_store_is_left_alone() {
    type Make = fn(&Path);
    let cases: [(&str, Make, &str); 8] = [
        (
            "another program's database",
            |db| sqlite(db, "CREATE TABLE t (x)"),
            "some other program's database",
        ),
        (
            "another application id",
            |db| sqlite(db, "PRAGMA application_id = 5"),
            "some other program's database",
        ),
        (
            "a newer store",
            |db| {
                sqlite(
                    db,
                    "PRAGMA application_id = 0x6f766c31; PRAGMA user_version = 99",
                )
            },
            "format 99, newer than this program knows",
        ),
        (
            "our id but not our tables",
            |db| {
                sqlite(
                    db,
                    "PRAGMA application_id = 0x6f766c31; PRAGMA user_version = 1",
                )
            },
            "tables are missing",
        ),
        (
            "garbage",
            |db| fs::write(db, noise(9_000, 1)).unwrap(),
            "not an ovl store",
        ),
        (
            "text",
            |db| fs::write(db, "hello").unwrap(),
            "not an ovl store",
        ),
        (
            "a directory",
            |db| fs::create_dir(db).unwrap(),
            "not a regular file",
        ),
        (
            "a symlink",
            |db| symlink("/dev/null", db).unwrap(),
            "not a regular file",
        ),
    ];
    for (what, make, want) in cases {
        let place = Place::new();
        fs::create_dir(&place.root).unwrap();
        make(&place.database());
        let before = fs::read(place.database()).ok();
        for error in [
            Store::open(&place.root).err(),
            Store::open_existing(&place.root).err(),
        ] {
            let error = error.expect(what);
            assert!(error.to_string().contains(want), "{what}: {error}");
            assert_eq!(error.exit_code(), 1, "{what}");
        }
        assert_eq!(fs::read(place.database()).ok(), before, "{what}: changed");
    }
}

fn sqlite(path: &Path, sql: &str) {
    rusqlite::Connection::open(path)
        .unwrap()
        .execute_batch(sql)
        .unwrap();
}

#[test]
fn stores_with_views_and_triggers_are_refused() {
    for sql in [
        "CREATE TRIGGER t AFTER INSERT ON name BEGIN DELETE FROM image; END",
        "ALTER TABLE chunk RENAME TO c; CREATE VIEW chunk AS SELECT * FROM c",
        "CREATE TABLE extra (x)",
        "CREATE INDEX extra ON chunk (len)",
    ] {
        let (place, _) = filled();
        place.sql(sql);
        let error = Store::open(&place.root).err().expect(sql);
        assert!(
            error
                .to_string()
                .contains("is not an ovl store: it holds an unexpected"),
            "{sql}: {error}"
        );
    }
}

#[test]
fn a_file_cut_short_is_an_error() {
    let (place, info) = filled();
    let whole = fs::read(place.database()).unwrap();
    for keep in [
        0,
        1,
        100,
        512,
        4096,
        5000,
        8192,
        whole.len() / 2,
        whole.len() - 4096,
        whole.len() - 1,
    ] {
        for file in fs::read_dir(&place.root).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        fs::write(place.database(), &whole[..keep]).unwrap();
        match Store::open_existing(&place.root) {
            Ok(None) => assert_eq!(keep, 0, "an empty file is a store not made yet"),
            Ok(Some(store)) => {
                let read = read_all(&store, &info);
                // SQLite takes what is missing of a last page for zeros, which it may be.
                if whole[keep..].iter().any(|byte| *byte != 0) {
                    read.expect_err(&format!("{keep} of {} bytes", whole.len()));
                }
            }
            Err(error) => assert!(
                matches!(error, Error::NotAStore { .. }),
                "{keep} bytes: {error}"
            ),
        }
    }
}

/// Every page in turn is overwritten with noise: opening or reading fails, or does not need the page; it never panics.
#[test]
fn any_page_may_be_garbage() {
    let (place, info) = filled();
    let whole = fs::read(place.database()).unwrap();
    let page = usize::from(u16::from_be_bytes([whole[16], whole[17]]));
    let mut failed = 0;
    for at in (0..whole.len()).step_by(page) {
        let mut bytes = whole.clone();
        bytes[at..at + page].copy_from_slice(&noise(page, at as u64));
        for file in fs::read_dir(&place.root).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        fs::write(place.database(), bytes).unwrap();
        match Store::open(&place.root) {
            Ok(store) => failed += u32::from(read_all(&store, &info).is_err()),
            Err(_) => failed += 1,
        }
    }
    assert!(
        failed as usize > whole.len() / page / 2,
        "{failed} of {} pages were missed",
        whole.len() / page
    );
}

#[test]
fn the_directory_is_private_whatever_the_umask() {
    const ROLE: &str = "OVL_TEST_UMASK";
    let Some(umask) = std::env::var_os(ROLE) else {
        // The umask belongs to the process, so each gets one of its own.
        for umask in ["0", "63", "191"] {
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "the_directory_is_private_whatever_the_umask",
                    "--nocapture",
                ])
                .env(ROLE, umask)
                .status()
                .unwrap();
            assert!(status.success(), "umask {umask}");
        }
        return;
    };
    let place = Place::new();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(
        umask.to_str().unwrap().parse().unwrap(),
    ));
    let store = Store::open(&place.root).unwrap();
    let _open = Tar::new(&store);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&place.root), 0o700);
    let files: Vec<PathBuf> = fs::read_dir(&place.root)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    assert_eq!(files.len(), 3, "database, log and index");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[test]
fn places_that_others_can_write_to_are_refused() {
    for mode in [0o777, 0o770, 0o1777, 0o702] {
        let place = Place::new();
        fs::create_dir(&place.root).unwrap();
        fs::set_permissions(&place.root, fs::Permissions::from_mode(mode)).unwrap();
        let error = Store::open(&place.root).err().unwrap();
        assert!(matches!(error, Error::Unsafe { .. }), "{mode:o}: {error}");
        assert_eq!(fs::read_dir(&place.root).unwrap().count(), 0);
    }
    let (place, _) = filled();
    fs::set_permissions(place.database(), fs::Permissions::from_mode(0o666)).unwrap();
    assert!(matches!(
        Store::open(&place.root).err().unwrap(),
        Error::Unsafe { .. }
    ));
    let file = Place::new();
    fs::write(&file.root, "x").unwrap();
    assert!(matches!(
        Store::open(&file.root).err().unwrap(),
        Error::NotAStore { .. }
    ));
    assert!(matches!(
        Store::open_existing(&file.root).err().unwrap(),
        Error::NotAStore { .. }
    ));
}

#[test]
fn a_missing_store_is_none_and_stays_missing() {
    let place = Place::new();
    assert!(Store::open_existing(&place.root).unwrap().is_none());
    assert!(!place.root.exists());
    fs::create_dir(&place.root).unwrap();
    assert!(Store::open_existing(&place.root).unwrap().is_none());
    fs::write(place.database(), "").unwrap();
    assert!(
        Store::open_existing(&place.root).unwrap().is_none(),
        "making it was interrupted"
    );
    Store::open(&place.root).unwrap();
    assert!(Store::open_existing(&place.root).unwrap().is_some());
    let deep = place.root.join("a/b/c");
    Store::open(&deep).unwrap();
}

/// A store made by the first version, kept in the repository: newer programs must read it.
#[test]
fn a_store_of_version_1_opens_and_reads() {
    let place = Place::new();
    fs::create_dir(&place.root).unwrap();
    fs::copy(
        concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/store/v1.db"),
        place.database(),
    )
    .unwrap();
    fs::set_permissions(place.database(), fs::Permissions::from_mode(0o600)).unwrap();
    let store = Store::open_existing(&place.root).unwrap().unwrap();
    let images = store.images().unwrap();
    assert_eq!(images[0].names, ["fixture:v1"]);
    assert_eq!(
        store.document(&images[0].manifest).unwrap().unwrap(),
        b"fixture manifest"
    );
    let layers = store.layers().unwrap();
    assert_eq!(images[0].layers, [layers[0].diff_id]);
    assert_eq!(layers[0].entries, 8);
    read_all(&store, &layers[0]).unwrap();
    let layer = store.open_layer(&layers[0].diff_id).unwrap();
    let dir = layer
        .lookup(ROOT_INODE, "d".as_ref())
        .unwrap()
        .unwrap()
        .target
        .unwrap()
        .0;
    let names: Vec<_> = layer
        .read_dir(dir)
        .unwrap()
        .into_iter()
        .map(|e| e.name.into_string().unwrap())
        .collect();
    assert_eq!(names, ["big", "f", "gone", "link", "sparse"]);
    let big = layer
        .lookup(dir, "big".as_ref())
        .unwrap()
        .unwrap()
        .target
        .unwrap()
        .0;
    let content = layer
        .open_content(layer.inode(big).unwrap().content)
        .unwrap();
    let mut buf = vec![0; 200_000];
    assert_eq!(content.read_at(0, &mut buf).unwrap(), 200_000);
    assert!(
        buf.chunks(7)
            .all(|seven| *seven == b"fixture"[..seven.len()])
    );
    store.gc().unwrap();
    read_all(&store, &layers[0]).unwrap();
}
