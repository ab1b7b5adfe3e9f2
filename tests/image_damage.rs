//! Every byte of a small archive flipped, and the archive cut at every length: each import must end in an error and
//! leave no image, or give the very image (a flipped bit in padding changes nothing that counts). No panic, no hang.

mod image_support;

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use image_support::*;
use ovl::image::{Error, ImportOptions, ImportedImage, Source, import, import_stream};
use ovl::store::{Digest, Store};

fn small_layer() -> Vec<u8> {
    RawTar::new()
        .dir("etc/")
        .pax(&[("SCHILY.xattr.user.a", b"b"), ("mtime", b"1.5")])
        .file("etc/f", b"some text")
        .hard_link("etc/g", "etc/f")
        .end()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn oci_archive(blob: &[u8], layer: &[u8]) -> Vec<u8> {
    let mut blobs = OciBlobs::new();
    let descriptor = blobs.add("application/vnd.oci.image.layer.v1.tar+gzip", blob);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(layer).to_string()] },
    });
    let config = blobs.add(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let manifest =
        serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [descriptor] });
    let manifest = blobs.add(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    blobs.finish(&serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] }))
}

struct Run {
    store: Store,
    _dir: tempfile::TempDir,
    scratch: std::path::PathBuf,
    accepted: usize,
}

impl Run {
    fn new() -> Self {
        // In memory where possible: thousands of imports.
        let base = if Path::new("/dev/shm").is_dir() {
            Path::new("/dev/shm")
        } else {
            Path::new("/tmp")
        };
        let dir = tempfile::Builder::new()
            .prefix("ovl-damage-")
            .tempdir_in(base)
            .unwrap();
        Self {
            store: store(dir.path()),
            scratch: dir.path().join("archive"),
            _dir: dir,
            accepted: 0,
        }
    }

    fn import(&self, bytes: &[u8], pipe: bool) -> Result<Vec<ImportedImage>, Error> {
        if pipe {
            import_stream(
                &self.store,
                Box::new(Cursor::new(bytes.to_vec())),
                &ImportOptions::default(),
                &(),
            )
        } else {
            fs::write(&self.scratch, bytes).unwrap();
            import(
                &self.store,
                &Source::parse(self.scratch.as_os_str()).unwrap(),
                &ImportOptions::default(),
                &(),
            )
        }
    }

    /// Imports damaged bytes and checks what the module's first sentence says.
    fn check(&mut self, bytes: &[u8], pipe: bool, good: &ImportedImage, what: &str) {
        match self.import(bytes, pipe) {
            Err(error) => {
                let text = error.to_string();
                assert!(!text.is_empty() && !text.contains('\n'), "{what}: {text}");
                assert!(
                    [1, 2, 3, 4, 5].contains(&error.exit_code()),
                    "{what}: {text}"
                );
                assert!(
                    self.store.images().unwrap().is_empty(),
                    "{what}: half visible after {text}"
                );
            }
            Ok(images) => {
                self.accepted += 1;
                assert_eq!(images.len(), 1, "{what}");
                assert_eq!(images[0].layers, good.layers, "{what}");
                for layer in &images[0].layers {
                    assert_eq!(Digest::of(&layer_tar(&self.store, layer)), *layer, "{what}");
                }
                // Away with it, or its layers would not be read the next time.
                self.store.remove_image(&images[0].manifest).unwrap();
                assert!(
                    self.store.layer(&good.layers[0]).unwrap().is_none(),
                    "{what}"
                );
            }
        }
    }
}

fn damage(form: &str, bytes: &[u8], pipe: bool) {
    let mut run = Run::new();
    let good = run
        .import(bytes, pipe)
        .unwrap_or_else(|e| panic!("{form}: {e}"))
        .remove(0);
    run.store.remove_image(&good.manifest).unwrap();
    let mut damaged = bytes.to_vec();
    for at in 0..bytes.len() {
        // One bit, another one at every byte.
        damaged[at] ^= 1 << (at % 8);
        let what = format!("{form}: bit {} of byte {at} flipped", at % 8);
        run.check(&damaged, pipe, &good, &what);
        damaged[at] = bytes[at];
    }
    // Almost every byte counts in some checksum, digest or grammar; what does not is padding and a few names.
    let flips = run.accepted;
    assert!(flips < bytes.len() / 2, "{form}: {flips}");
    for len in 0..bytes.len() {
        run.check(
            &bytes[..len],
            pipe,
            &good,
            &format!("{form}: cut to {len} bytes"),
        );
    }
    println!(
        "{form}: {} bytes, {flips} flips and {} cuts changed nothing that counts",
        bytes.len(),
        run.accepted - flips
    );
}

#[test]
fn a_damaged_docker_archive() {
    damage("docker-archive", &docker_archive(&[small_layer()]), false);
}

#[test]
fn a_damaged_docker_archive_through_a_pipe() {
    damage(
        "docker-archive through a pipe",
        &docker_archive(&[small_layer()]),
        true,
    );
}

#[test]
fn a_damaged_compressed_docker_archive() {
    let docker = docker_archive(&[small_layer()]);
    damage("docker-archive in gzip", &gzip(&docker), true);
    damage(
        "docker-archive in zstd",
        &zstd::encode_all(&docker[..], 3).unwrap(),
        true,
    );
}

#[test]
fn a_damaged_oci_archive() {
    let layer = small_layer();
    damage(
        "oci-archive with a gzip layer",
        &oci_archive(&gzip(&layer), &layer),
        false,
    );
}

#[test]
fn a_damaged_oci_archive_through_a_pipe() {
    let layer = small_layer();
    let blob = zstd::encode_all(&layer[..], 3).unwrap();
    damage(
        "oci-archive with a zstd layer",
        &oci_archive(&blob, &layer),
        true,
    );
}

/// Whether a tar cut to `len` lacks nothing but padding behind the last file it holds: some programs write none there.
fn in_padding(tar: &[u8], len: usize) -> bool {
    let limits = ovl::image::parsers::tar_limits(&Default::default());
    let mut reader = ovl::image::tar::TarReader::new(tar, limits);
    let mut ignore = |_: &[u8]| Ok::<(), ovl::image::tar::TarError>(());
    while let Some(entry) = reader.next(&mut ignore).unwrap() {
        let end = (reader.offset() + entry.stored) as usize;
        if (end..end.next_multiple_of(512)).contains(&len) {
            return true;
        }
    }
    false
}

/// A plain tar has no checksum over its data: what is accepted must be stored as it is.
#[test]
fn a_damaged_rootfs_tar_is_refused_or_kept_bit_for_bit() {
    let layer = small_layer();
    let mut run = Run::new();
    let mut damaged = layer.clone();
    for pipe in [false, true] {
        for at in 0..layer.len() {
            damaged[at] ^= 1 << (at % 8);
            if let Ok(images) = run.import(&damaged, pipe) {
                run.accepted += 1;
                assert!(
                    layer_tar(&run.store, &images[0].layers[0]) == damaged,
                    "byte {at}"
                );
                run.store.remove_image(&images[0].manifest).unwrap();
            }
            assert!(run.store.images().unwrap().is_empty());
            damaged[at] = layer[at];
        }
        for len in 0..layer.len() {
            if let Ok(images) = run.import(&layer[..len], pipe) {
                assert!(len % 512 == 0 || in_padding(&layer, len), "cut to {len}");
                assert!(
                    layer_tar(&run.store, &images[0].layers[0]) == layer[..len],
                    "cut to {len}"
                );
                run.store.remove_image(&images[0].manifest).unwrap();
            }
        }
    }
    assert!(run.accepted > 0, "flips in padding must be accepted");
}
