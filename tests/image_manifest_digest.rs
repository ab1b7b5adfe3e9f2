//! An image comes back as it went in: the same manifest, the same configuration, the same compressed blobs, whoever made
//! them; and where that cannot be, the export says so.

mod common;
mod image_support;

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image_support::{run, store, temp};
use ovl::image::{
    Compression, ExportFormat, ExportImage, ExportOptions, ExportTarget, ExportedImage,
    ImportOptions, ImportedImage, KeepCompressed, Source, export, import, import_stream,
};
use ovl::store::{Digest, Store};

fn options(keep_compressed: KeepCompressed) -> ImportOptions {
    ImportOptions {
        keep_compressed,
        ..Default::default()
    }
}

fn take(store: &Store, path: &Path, keep: KeepCompressed) -> Vec<ImportedImage> {
    let source = Source::parse(path.as_os_str()).unwrap();
    import(store, &source, &options(keep), &())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Exports to a layout directory.
fn give(store: &Store, manifest: Digest, out: &Path, how: Option<Compression>) -> ExportedImage {
    let image = ExportImage {
        manifest,
        names: Vec::new(),
    };
    let options = ExportOptions {
        format: ExportFormat::OciDir,
        compression: how,
    };
    export(store, &[image], options, ExportTarget::Path(out))
        .unwrap()
        .remove(0)
}

/// Every blob a manifest names lies in the layout, and is what its name says.
fn assert_whole(layout: &Path, manifest: &[u8]) {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    for descriptor in layers.iter().chain([&manifest["config"]]) {
        let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
        let bytes = fs::read(layout.join("blobs/sha256").join(digest.hex())).unwrap();
        assert_eq!(Digest::of(&bytes), digest);
        assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().unwrap());
    }
}

fn raw_manifest(location: &str) -> Vec<u8> {
    run("skopeo", &[&"inspect", &"--raw", &location])
}

#[test]
fn images_of_every_program_keep_their_manifest() {
    let small = common::images("small");
    for (file, transport) in [
        ("podman.oci.tar", "oci-archive"),
        ("podman.oci", "oci"),
        ("skopeo.oci", "oci"),
        ("skopeo-zstd.oci.tar", "oci-archive"),
        ("umoci.oci", "oci"),
        ("podman.dir", "dir"),
    ] {
        let path = small.join(file);
        let dir = temp();
        let store = store(dir.path());
        let images = take(&store, &path, KeepCompressed::Always);
        for (i, image) in images.iter().enumerate() {
            assert!(image.restorable, "{file}");
            let out = dir.path().join(format!("out-{i}"));
            let exported = give(&store, image.manifest, &out, None);
            assert_eq!(exported.manifest, Some(image.manifest), "{file}");
            assert_eq!(exported.new_because, None, "{file}");
            let raw = raw_manifest(&format!("oci:{}", out.display()));
            assert_eq!(Digest::of(&raw), image.manifest, "{file}");
            assert_whole(&out, &raw);
        }
        if images.len() == 1 {
            let theirs = raw_manifest(&format!("{transport}:{}", path.display()));
            assert_eq!(Digest::of(&theirs), images[0].manifest, "{file}");
        }
        // The same through a pipe.
        if path.is_file() {
            let again = temp();
            let store = image_support::store(again.path());
            let stream = Box::new(Cursor::new(fs::read(&path).unwrap()));
            let piped =
                import_stream(&store, stream, &options(KeepCompressed::Always), &()).unwrap();
            assert_eq!(piped, images, "{file}");
            let out = again.path().join("out");
            let exported = give(&store, images[0].manifest, &out, None);
            assert_eq!(exported.new_because, None, "{file}");
        }
    }
}

/// The default keeps what container tools write, at next to no cost.
#[test]
fn layers_of_container_tools_cost_next_to_nothing() {
    let small = common::images("small");
    for file in ["podman.oci.tar", "umoci.oci", "skopeo.oci"] {
        let dir = temp();
        let store = store(dir.path());
        let images = take(&store, &small.join(file), KeepCompressed::Auto);
        assert!(images.iter().all(|image| image.restorable), "{file}");
        let mut blobs = 0;
        for image in &images {
            let manifest = store.document(&image.manifest).unwrap().unwrap();
            let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
            for layer in manifest["layers"].as_array().unwrap() {
                blobs += layer["size"].as_u64().unwrap();
            }
        }
        let kept = store.blob_bytes().unwrap();
        assert!(kept * 50 < blobs, "{file}: {kept} bytes kept for {blobs}");
    }
}

#[test]
fn command_line_and_archive() {
    let sandbox = common::Sandbox::new();
    let archive = common::images("small").join("podman.oci.tar");
    sandbox.run(["import".as_ref(), archive.as_os_str()]);
    sandbox.run(["export", "localhost/small:1", "oci-archive:out.tar"]);
    let out = format!("oci-archive:{}", sandbox.path("out.tar").display());
    let ours = raw_manifest(&out);
    assert!(ours == raw_manifest(&format!("oci-archive:{}", archive.display())));
    let listed = sandbox.run(["images", "--digests"]);
    let digest = Digest::of(&ours).to_string();
    assert!(listed.contains(&digest), "{listed}");
}

/// An OCI layout of one layer, compressed as given.
fn layout(dir: &Path, tar: &[u8], blob: &[u8], suffix: &str) -> PathBuf {
    let layout = dir.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        (digest, bytes.len())
    };
    let descriptor = |kind: &str, (digest, size): (Digest, usize)| {
        serde_json::json!({ "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": digest.to_string(), "size": size })
    };
    let config = serde_json::json!({ "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(tar).to_string()] } });
    let config = put(config.to_string().as_bytes());
    let manifest = serde_json::json!({ "schemaVersion": 2,
        "config": descriptor("config.v1+json", config),
        "layers": [descriptor(&format!("layer.v1.tar{suffix}"), put(blob))] });
    let manifest = put(manifest.to_string().as_bytes());
    let index = serde_json::json!({ "schemaVersion": 2,
        "manifests": [descriptor("manifest.v1+json", manifest)] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    layout
}

/// A tar of programs: what layers are made of.
fn programs(dir: &Path) -> Vec<u8> {
    let tar = dir.join("layer.tar");
    run(
        "tar",
        &[
            &"--numeric-owner",
            &"-chf",
            &tar,
            &"-C",
            &"/usr/bin",
            &"busybox",
            &"tar",
            &"bash",
            &"awk",
        ],
    );
    fs::read(tar).unwrap()
}

fn shell(dir: &Path, script: &str) -> Vec<u8> {
    run(
        "sh",
        &[&"-c", &format!("cd '{}' && {script}", dir.display())],
    )
}

/// Every encoder's blob comes back. The last column: whether no more than a twentieth of it is kept for that.
#[test]
fn blobs_of_every_encoder_come_back() {
    let dir = temp();
    let tar = programs(dir.path());
    let python = |level: u32| {
        format!(
            "python3 -c \"import sys,zlib; c=zlib.compressobj({level},8,31); d=open('layer.tar','rb').read(); \
             sys.stdout.buffer.write(c.compress(d)+c.flush())\""
        )
    };
    for (script, suffix, small) in [
        ("gzip -1 -c layer.tar".to_owned(), "+gzip", true),
        ("gzip -6 -c layer.tar".to_owned(), "+gzip", true),
        ("gzip -n -6 < layer.tar".to_owned(), "+gzip", true),
        (python(1), "+gzip", true),
        (python(6), "+gzip", true),
        (python(0), "+gzip", true),
        // Several members, some of them empty.
        (
            "head -c 1000000 layer.tar | gzip -6; gzip -c < /dev/null; tail -c +1000001 layer.tar | gzip -2".to_owned(),
            "+gzip",
            true,
        ),
        ("zstd -q -c layer.tar".to_owned(), "+zstd", false),
        (
            "printf 'P*M\\030\\003\\0\\0\\0abc'; head -c 1000000 layer.tar | zstd -q -1 -c; \
             printf 'P*M\\030\\0\\0\\0\\0'; tail -c +1000001 layer.tar | zstd -q -9 --no-check -c"
                .to_owned(),
            "+zstd",
            false,
        ),
    ] {
        let place = temp();
        let blob = shell(dir.path(), &script);
        let layout = layout(place.path(), &tar, &blob, suffix);
        let store = store(place.path());
        let image = take(&store, &layout, KeepCompressed::Always).remove(0);
        let kept = store.blob_bytes().unwrap();
        let ratio = kept as f64 / blob.len() as f64;
        assert_eq!(ratio < 0.05, small, "{script}: {kept} of {}", blob.len());
        let out = place.path().join("out");
        let exported = give(&store, image.manifest, &out, None);
        assert_eq!(exported.new_because, None, "{script}");
        let back = fs::read(out.join("blobs/sha256").join(Digest::of(&blob).hex())).unwrap();
        assert!(back == blob, "{script}");
    }
}

#[test]
fn what_is_not_kept_is_told_and_can_be_kept_later() {
    let dir = temp();
    let tar = programs(dir.path());
    let blob = shell(dir.path(), "zstd -q -c layer.tar");
    let layout = layout(dir.path(), &tar, &blob, "+zstd");
    let store = store(dir.path());
    // By wish, and because it would cost as much as the blob.
    for (i, keep) in [KeepCompressed::Never, KeepCompressed::Auto]
        .into_iter()
        .enumerate()
    {
        let image = take(&store, &layout, keep).remove(0);
        assert!(!image.restorable, "{keep:?}");
        assert_eq!(store.blob_bytes().unwrap(), 0, "{keep:?}");
        let out = dir.path().join(format!("new-{i}"));
        let exported = give(&store, image.manifest, &out, None);
        assert_ne!(exported.manifest, Some(image.manifest));
        let because = exported.new_because.unwrap();
        assert!(because.contains("not kept"), "{because}");
    }
    // The layer is there; its blob comes in now.
    let image = take(&store, &layout, KeepCompressed::Always).remove(0);
    assert!(image.restorable);
    let exported = give(&store, image.manifest, &dir.path().join("same"), None);
    assert_eq!(exported.manifest, Some(image.manifest));
    store.gc().unwrap();
    // Another compression on request is another manifest.
    let exported = give(
        &store,
        image.manifest,
        &dir.path().join("gzip"),
        Some(Compression::Gzip),
    );
    assert!(exported.new_because.unwrap().contains("gzip"));
    // Imported again, nothing changes.
    assert_eq!(take(&store, &layout, KeepCompressed::Auto)[0], image);
    store.remove_image(&image.manifest).unwrap();
    assert_eq!(store.blob_bytes().unwrap(), 0);
}

/// Counts the bytes of blobs that an import reads.
#[derive(Default)]
struct Counting(std::sync::atomic::AtomicU64);

impl ovl::image::ImportProgress for Counting {
    fn layer_bytes(&self, _: usize, bytes: u64) {
        self.0
            .fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    }
}

/// A blob that will not be kept is known as such by its beginning: importing its image again reads no more of it.
#[test]
fn what_is_too_dear_is_not_read_to_its_end_again() {
    let dir = temp();
    // Bytes that nothing compresses, and more of them than are on their way at a time.
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
    .take(12 << 20)
    .collect();
    let tar = image_support::RawTar::new().file("noise", &noise).end();
    fs::write(dir.path().join("layer.tar"), &tar).unwrap();
    for (script, suffix, policy, whole) in [
        ("zstd -q -c layer.tar", "+zstd", KeepCompressed::Auto, false),
        (
            "zstd -q -c layer.tar",
            "+zstd",
            KeepCompressed::Always,
            true,
        ),
        ("gzip -c layer.tar", "+gzip", KeepCompressed::Auto, true),
    ] {
        let blob = shell(dir.path(), script);
        let place = temp();
        let store = store(place.path());
        let layout = layout(place.path(), &tar, &blob, suffix);
        // Not kept at first, whatever it is.
        take(&store, &layout, KeepCompressed::Never);
        let source = Source::parse(layout.as_os_str()).unwrap();
        let counting = Counting::default();
        let image = import(&store, &source, &options(policy), &counting).unwrap();
        let read = counting.0.into_inner();
        assert_eq!(image[0].restorable, whole, "{script}");
        if whole {
            assert_eq!(read, blob.len() as u64, "{script}");
        } else {
            assert!(read < blob.len() as u64 / 2, "{script}: {read}");
        }
        assert_eq!(store.images().unwrap().len(), 1);
    }
}

/// A blob that is said to be of a layer in the store is only kept if it is.
#[test]
fn a_blob_of_another_layer_is_refused() {
    let dir = temp();
    let tar = programs(dir.path());
    let store = store(dir.path());
    let plain = layout(&dir.path().join("a"), &tar, &tar, "");
    take(&store, &plain, KeepCompressed::Auto);
    let mut other = tar.clone();
    other[3000] ^= 1;
    fs::write(dir.path().join("other.tar"), &other).unwrap();
    for script in [
        "gzip -c other.tar",
        "cat layer.tar other.tar | gzip -c",
        "head -c 100000 layer.tar | gzip -c",
        "gzip -c layer.tar | head -c 100000",
    ] {
        let blob = shell(dir.path(), script);
        let place = temp();
        let wrong = layout(place.path(), &tar, &blob, "+gzip");
        let source = Source::parse(wrong.as_os_str()).unwrap();
        let error = import(&store, &source, &options(KeepCompressed::Always), &()).unwrap_err();
        assert_eq!(error.exit_code(), 5, "{script}: {error}");
        assert_eq!(store.blob_bytes().unwrap(), 0, "{script}");
        assert_eq!(store.images().unwrap().len(), 1, "{script}");
    }
}

/// What is made of a damaged recipe is not given out for the blob.
#[test]
fn a_damaged_recipe_fails_the_export() {
    let dir = temp();
    let tar = programs(dir.path());
    let blob = shell(dir.path(), "gzip -6 -c layer.tar");
    let layout = layout(dir.path(), &tar, &blob, "+gzip");
    for sql in [
        "UPDATE blob_part SET data = CAST(substr(data, 1, 20) AS BLOB) WHERE seq = 1",
        "UPDATE blob_part SET data = CAST(x'ff00' || data AS BLOB) WHERE seq = 1",
        "UPDATE blob_part SET data = x'0000aabb' WHERE seq = 0",
        "UPDATE blob_part SET data = CAST(x'01' || substr(data, 2) AS BLOB) WHERE seq = 1",
        "DELETE FROM blob_part WHERE seq = 1",
        "UPDATE blob SET method = 77",
        "UPDATE blob SET size = size + 1",
    ] {
        let place = temp();
        let store = store(place.path());
        let image = take(&store, &layout, KeepCompressed::Always).remove(0);
        run("sqlite3", &[&place.path().join("store/store.db"), &sql]);
        let wanted = ExportImage {
            manifest: image.manifest,
            names: Vec::new(),
        };
        let options = ExportOptions {
            format: ExportFormat::OciArchive,
            compression: None,
        };
        let out = place.path().join("out.tar");
        let error = export(&store, &[wanted], options, ExportTarget::Path(&out)).unwrap_err();
        // A size that does not fit the descriptor's shows in the archive before the blob is complete.
        assert!(matches!(error.exit_code(), 1 | 5), "{sql}: {error}");
        assert!(
            error.exit_code() == 5 || sql.contains("size"),
            "{sql}: {error}"
        );
        assert!(!out.exists(), "{sql}");
    }
}

/// Parts that are as they were written, but make no sense: an error, not a panic, and no end of memory.
#[test]
fn senseless_recipes_are_damage() {
    let dir = temp();
    let tar = programs(dir.path());
    let blob = shell(dir.path(), "gzip -1 -c layer.tar");
    let layout = layout(dir.path(), &tar, &blob, "+gzip");
    let plain_mib = [0x80, 0x80, 0x40];
    let part = |kind: u8, payload: &[u8]| [&[kind], &plain_mib[..], payload].concat();
    let zeros = zstd_of(&vec![0; 1 << 20]);
    let bomb = zstd_of(&vec![0; 200 << 20]);
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("nothing", vec![vec![0, 0]]),
        ("only a kind", vec![vec![1]]),
        ("unknown kind", vec![part(9, b"")]),
        (
            "absurd length",
            vec![vec![1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]],
        ),
        ("not zstd", vec![part(1, b"garbage")]),
        ("zeros", vec![part(1, &zeros)]),
        ("bomb", vec![part(1, &bomb)]),
        ("no corrections", vec![part(2, b"")]),
        (
            "garbage corrections",
            vec![part(2, b"\x01garbage garbage garbage")],
        ),
        (
            "corrections without a beginning",
            vec![part(2, b"\x00\x12\x34\x56\x78")],
        ),
        ("more tar than there is", vec![part(2, b"\x00"); 100]),
        ("bytes of something else", vec![part(0, b"something else")]),
    ];
    for (what, parts) in cases {
        let place = temp();
        let store = store(place.path());
        let image = take(&store, &layout, KeepCompressed::Never).remove(0);
        let mut writer = store.blob_writer().unwrap();
        parts
            .into_iter()
            .for_each(|part| writer.part(part).unwrap());
        let size = blob.len() as u64;
        writer
            .finish(&Digest::of(&blob), size, 1, &image.layers[0])
            .unwrap();
        let wanted = ExportImage {
            manifest: image.manifest,
            names: Vec::new(),
        };
        let options = ExportOptions {
            format: ExportFormat::OciDir,
            compression: None,
        };
        let out = place.path().join("out");
        let error = export(&store, &[wanted], options, ExportTarget::Path(&out)).unwrap_err();
        assert_eq!(error.exit_code(), 5, "{what}: {error}");
        assert!(!out.exists(), "{what}");
    }
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    let dir = temp();
    let path = dir.path().join("x");
    fs::write(&path, bytes).unwrap();
    run("zstd", &[&"-q", &"-c", &path])
}
