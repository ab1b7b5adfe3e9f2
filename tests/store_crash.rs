//! What a power cut leaves: the database with any part of its log.
//!
//! A layer's chunks are committed before its rows, in commits that are not pressed to the disk one by one. If their
//! order could be lost, a layer could be there whose chunks are not. So the log is cut at every place in turn, as if
//! nothing behind it had reached the disk, and what opens must be whole.

mod store_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use ovl::store::{NewImage, Store};
use store_support::{Tar, noise};

#[test]
fn any_prefix_of_the_log_is_a_whole_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let store = Store::open(&root).unwrap();
    for n in 0..3u64 {
        let mut tar = Tar::new(&store);
        tar.file("small", &noise(1_000, n));
        tar.file("list", &noise(150_000, 10 + n));
        let (info, _) = tar.finish();
        let image = NewImage {
            manifest: &n.to_le_bytes(),
            manifest_media_type: "m",
            config: b"c",
            layers: &[info.diff_id],
            names: &["moving".to_owned(), format!("n{n}")],
        };
        store.put_image(&image).unwrap();
    }
    // The store stays open, so that nothing empties the log.
    let database = fs::read(root.join("store.db")).unwrap();
    let log = fs::read(root.join("store.db-wal")).unwrap();
    assert!(
        log.len() > 400_000,
        "the log holds all of it: {} bytes",
        log.len()
    );

    let (mut seen, mut last) = (Vec::new(), 0);
    let copy = dir.path().join("copy");
    // A frame is a page and its 24 bytes of header, behind the log's 32: on, within and behind the borders of frames.
    let frames = (32..=log.len()).step_by(4096 + 24);
    for (index, border) in frames.enumerate() {
        let cut = (border + [0, 7, 2_000][index % 3]).min(log.len());
        fs::create_dir(&copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(copy.join("store.db"), &database).unwrap();
        fs::write(copy.join("store.db-wal"), &log[..cut]).unwrap();
        for file in ["store.db", "store.db-wal"] {
            fs::set_permissions(copy.join(file), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let store = Store::open(&copy).unwrap();
        let layers = store.layers().unwrap();
        for layer in &layers {
            let len = store
                .write_layer_tar(&layer.diff_id, &mut std::io::sink())
                .unwrap();
            assert_eq!(len, layer.tar_size, "log cut at {cut}");
        }
        let images = store.images().unwrap();
        for image in &images {
            assert!(
                image
                    .layers
                    .iter()
                    .all(|id| layers.iter().any(|layer| layer.diff_id == *id)),
                "log cut at {cut}"
            );
            assert!(
                store.document(&image.manifest).unwrap().is_some(),
                "log cut at {cut}"
            );
        }
        assert!(
            layers.len() >= last,
            "what was there stays: log cut at {cut}"
        );
        last = layers.len();
        seen.push((layers.len(), images.len()));
        drop(store);
        fs::remove_dir_all(&copy).unwrap();
    }
    seen.dedup();
    assert_eq!(
        seen,
        [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]
    );
}
