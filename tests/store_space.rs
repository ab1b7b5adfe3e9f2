//! No space left: a clear error, nothing changed, and a store that works on.

mod store_support;

use std::path::Path;
use std::process::Command;

use ovl::store::{Error, LayerInfo, NewImage, Store};
use store_support::{Tar, noise};

const ROLE: &str = "OVL_TEST_SPACE_DIR";

/// The sizes make the import fail in different places: the first batch, a later one, the log's way back into the
/// database, the publishing. Runs in a mount namespace of its own, which takes the tmpfs with it when it ends.
#[test]
fn a_full_file_system() {
    if let Some(dir) = std::env::var_os(ROLE) {
        return on_small_file_systems(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let root = rustix::process::geteuid().is_root();
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .args(if root {
            &[][..]
        } else {
            &["--user", "--map-root-user"]
        })
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_full_file_system", "--nocapture"])
        .env(ROLE, dir.path())
        .status()
        .expect("unshare(1) of util-linux");
    assert!(status.success());
}

fn on_small_file_systems(dir: &Path) {
    for kib in [1_000, 1_500, 3_000, 6_000, 38_000, 60_000, 72_000] {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"])
            .arg(dir)
            .status()
            .unwrap();
        assert!(mounted.success());
        fill(&dir.join("s"), kib);
        assert!(Command::new("umount").arg(dir).status().unwrap().success());
    }
}

fn small(store: &Store, seed: u64) -> LayerInfo {
    let mut tar = Tar::new(store);
    tar.file("small", &noise(20_000, seed));
    tar.finish().0
}

fn fill(root: &Path, kib: u64) {
    let store = Store::open(root).unwrap();
    let first = small(&store, 1);
    let image = NewImage {
        manifest: b"m",
        manifest_media_type: "m",
        config: b"c",
        layers: &[first.diff_id],
        names: &["kept".to_owned()],
    };
    store.put_image(&image).unwrap();
    let intact = |store: &Store| {
        assert_eq!(
            store.layers().unwrap(),
            std::slice::from_ref(&first),
            "{kib} KiB"
        );
        assert_eq!(store.images().unwrap()[0].names, ["kept"]);
        let len = store
            .write_layer_tar(&first.diff_id, &mut std::io::sink())
            .unwrap();
        assert_eq!(len, first.tar_size);
    };

    for attempt in 0..3 {
        let mut tar = Tar::new(&store);
        let written =
            (0..90).try_for_each(|n| tar.try_file(&format!("f{n}"), &noise(1_000_000, 100 + n)));
        let error = match written {
            Err(error) => {
                drop(tar);
                error
            }
            Ok(()) => tar.try_finish().unwrap_err(),
        };
        assert!(
            matches!(error, Error::NoSpace { .. }),
            "{kib} KiB, attempt {attempt}: {error}"
        );
        assert!(
            error.to_string().starts_with(&format!(
                "no space left for the store at {}",
                root.display()
            )),
            "{error}"
        );
        intact(&store);
    }
    // In a process of its own a command would open the store anew.
    intact(&Store::open(root).unwrap());
    let store = Store::open_existing(root).unwrap().unwrap();
    store.gc().unwrap();
    intact(&store);
    let second = small(&store, 2);
    assert_eq!(
        store.layers().unwrap(),
        [first, second],
        "{kib} KiB: works on"
    );
}
