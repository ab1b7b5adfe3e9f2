//! T25: layers with a table of contents (zstd:chunked, eStargz). ovl reads every layer whole and believes no table, so one that
//! lies changes nothing; a layer is what its bytes hash to, never what something in it claims.

mod image_support;

use std::fs;
use std::io::Write;
use std::path::Path;

use image_support::fixture::Fixture;
use image_support::*;
use ovl::image::{ImportOptions, Source, import};
use ovl::store::Digest;
use serde_json::{Value, json};

const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CHUNKED_TOC: &str = "io.github.containers.zstd-chunked.manifest-checksum";
const CHUNKED_POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
const STARGZ_TOC: &str = "containerd.io/snapshot/stargz/toc.digest";

fn honest() -> Vec<u8> {
    RawTar::new()
        .dir("etc")
        .file("etc/passwd", b"root:x:0:0")
        .file("bin", b"honest")
        .end()
}

/// A table that tells of other files, of overlapping offsets and of a layer that this is not.
fn lying_table(diff_id: &Digest) -> String {
    json!({
        "version": 1,
        "tarSplitDigest": diff_id.to_string(),
        "entries": [
            { "type": "reg", "name": "etc/shadow", "size": 5, "offset": 0, "endOffset": 90, "digest": Digest::of(b"evil!").to_string() },
            { "type": "reg", "name": "bin", "mode": 0o4755, "size": 5, "offset": 10, "endOffset": 20, "digest": Digest::of(b"evil!").to_string() },
            { "type": "chunk", "name": "bin", "offset": 5, "chunkOffset": 0, "chunkSize": 1u64 << 40 },
            { "type": "symlink", "name": "../up", "linkName": "/etc" },
        ],
    })
    .to_string()
}

/// A zstd layer with such a table in skippable frames behind it (containers/storage, docs/containers-storage-zstd-chunked.md).
fn chunked(layer: &[u8], table: &[u8]) -> Vec<u8> {
    let skippable = |bytes: &[u8]| {
        [
            &0x184d_2a50u32.to_le_bytes()[..],
            &(bytes.len() as u32).to_le_bytes(),
            bytes,
        ]
        .concat()
    };
    let (one, two) = layer.split_at(layer.len() / 2);
    let compress = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    [
        compress(one),
        compress(two),
        skippable(&compress(table)),
        skippable(b"\0\0\0\0\0\0\0\0GNUlInUx"),
    ]
    .concat()
}

/// A gzip layer with the table as the tar's last file and in a member of its own (stargz-snapshotter, docs/estargz.md); gives
/// the blob and its tar.
fn stargz(entries: &[u8], table: &str) -> (Vec<u8>, Vec<u8>) {
    let gzip = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let tail = RawTar::new()
        .file("stargz.index.json", table.as_bytes())
        .end();
    let landmark = RawTar::new().file(".prefetch.landmark", b"\x0f").bytes;
    let parts = [entries, &landmark, &tail];
    (parts.map(gzip).concat(), parts.concat())
}

/// An OCI archive of one layer: the blob as it is, its diff ID as claimed, annotations on its descriptor.
fn archive(blob: &[u8], kind: &str, claimed: &Digest, annotations: &[(&str, &str)]) -> Vec<u8> {
    let mut blobs = OciBlobs::new();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [claimed.to_string()] },
    });
    let config = blobs.add(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let mut layer = blobs.add(&format!("{OCI_LAYER}+{kind}"), blob);
    layer["annotations"] = annotations
        .iter()
        .map(|(k, v)| ((*k).to_owned(), Value::from(*v)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    let mut manifest = blobs.add(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "localhost/test:1" });
    blobs.finish(&json!({ "schemaVersion": 2, "manifests": [manifest] }))
}

#[test]
fn t25_a_lying_table_changes_nothing() {
    let (layer, diff_id) = (honest(), Digest::of(&honest()));
    let other = Digest::of(b"another layer");
    let table = lying_table(&other);
    let blob = chunked(&layer, table.as_bytes());
    let checksum = Digest::of(&zstd::encode_all(table.as_bytes(), 3).unwrap()).to_string();
    let wrong = other.to_string();
    let (gz, gz_tar) = stargz(
        &RawTar::new().dir("etc").file("etc/passwd", b"x").bytes,
        &table,
    );
    let position = "100:200:300:1";
    let plain = ["", "bin", "etc", "etc/passwd"].map(str::to_owned).to_vec();
    let in_tar = [
        "",
        ".prefetch.landmark",
        "etc",
        "etc/passwd",
        "stargz.index.json",
    ]
    .map(str::to_owned)
    .to_vec();
    type Case<'a> = (
        &'a str,
        &'a [u8],
        &'a str,
        &'a [u8],
        Vec<(&'a str, &'a str)>,
        &'a Vec<String>,
    );
    let cases: [Case<'_>; 6] = [
        (
            "chunked, announced",
            &blob,
            "zstd",
            &layer,
            vec![(CHUNKED_TOC, &checksum), (CHUNKED_POSITION, position)],
            &plain,
        ),
        (
            "chunked, the table's digest wrong",
            &blob,
            "zstd",
            &layer,
            vec![(CHUNKED_TOC, &wrong), (CHUNKED_POSITION, "9:9:9:9")],
            &plain,
        ),
        (
            "chunked, the annotation missing",
            &blob,
            "zstd",
            &layer,
            vec![],
            &plain,
        ),
        (
            "chunked, the annotation garbage",
            &blob,
            "zstd",
            &layer,
            vec![(CHUNKED_TOC, "../../x")],
            &plain,
        ),
        (
            "eStargz, announced",
            &gz,
            "gzip",
            &gz_tar,
            vec![(STARGZ_TOC, &wrong)],
            &in_tar,
        ),
        (
            "eStargz, the annotation missing",
            &gz,
            "gzip",
            &gz_tar,
            vec![],
            &in_tar,
        ),
    ];
    for (what, blob, kind, tar, annotations, want) in cases {
        let bytes = archive(blob, kind, &Digest::of(tar), &annotations);
        for pipe in [false, true] {
            let f = Fixture::new();
            let images = if pipe {
                f.pipe(&bytes)
            } else {
                f.import(&bytes)
            };
            let images = images.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(images[0].layers, [Digest::of(tar)], "{what}");
            assert!(layer_tar(&f.store, &images[0].layers[0]) == tar, "{what}");
            let tree = stored_tree(&f.store, &images[0].layers[0]);
            assert_eq!(&fixture::paths(&tree), want, "{what}");
            assert_eq!(
                f.store.layers().unwrap().len(),
                1,
                "{what}: a layer that the table claims"
            );
        }
    }
    assert_eq!(diff_id, Digest::of(&layer));
}

/// The diff ID of a layer that everybody has, with other content: proven over the whole stream, so never registered.
#[test]
fn t25_a_claimed_diff_id_must_be_proven() {
    let popular = honest();
    let evil = RawTar::new().file("bin", b"evil").end();
    let table = lying_table(&Digest::of(&popular));
    let blob = chunked(&evil, table.as_bytes());
    let bytes = archive(
        &blob,
        "zstd",
        &Digest::of(&popular),
        &[(CHUNKED_TOC, &Digest::of(table.as_bytes()).to_string())],
    );
    for pipe in [false, true] {
        let f = Fixture::new();
        let result = if pipe {
            f.pipe(&bytes)
        } else {
            f.import(&bytes)
        };
        let error = result.expect_err("a layer that is not what it claims");
        assert_eq!(error.exit_code(), 5, "{error}");
        f.untouched();
        assert!(f.store.layer(&Digest::of(&popular)).unwrap().is_none());
        // The honest layer comes in under that ID afterwards.
        let images = f
            .import(&docker_archive(std::slice::from_ref(&popular)))
            .unwrap();
        assert!(layer_tar(&f.store, &images[0].layers[0]) == popular);
    }
}

/// A blob that holds nothing but tables is no layer.
#[test]
fn t25_a_table_alone_is_no_layer() {
    let table = lying_table(&Digest::of(&honest()));
    let blob = chunked(b"", table.as_bytes());
    let bytes = archive(
        &blob,
        "zstd",
        &Digest::of(&honest()),
        &[(CHUNKED_TOC, &Digest::of(table.as_bytes()).to_string())],
    );
    let f = Fixture::new();
    assert_eq!(f.import(&bytes).expect_err("no layer").exit_code(), 5);
    f.untouched();
    assert!(f.store.layers().unwrap().is_empty());
}

/// With two tables, two readers would see two images.
#[test]
fn t25_both_tables_are_refused() {
    let layer = honest();
    let table = lying_table(&Digest::of(&layer));
    let digest = Digest::of(table.as_bytes()).to_string();
    let both = [
        (CHUNKED_TOC, digest.as_str()),
        (STARGZ_TOC, digest.as_str()),
    ];
    for (blob, kind) in [
        (chunked(&layer, table.as_bytes()), "zstd"),
        (stargz(&layer, &table).0, "gzip"),
    ] {
        let bytes = archive(&blob, kind, &Digest::of(&layer), &both);
        for pipe in [false, true] {
            let f = Fixture::new();
            let result = if pipe {
                f.pipe(&bytes)
            } else {
                f.import(&bytes)
            };
            let error = result.expect_err("two tables").to_string();
            assert!(error.contains("two tables of contents"), "{error}");
            f.untouched();
        }
    }
}

/// What skopeo makes of an image as zstd:chunked is the image it was, or refused: some versions drop zeros at a layer's end,
/// and the layer they write is another than its diff ID says.
#[test]
fn t25_what_skopeo_writes_is_proven() {
    let f = Fixture::new();
    let busybox = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images/busybox.tar");
    let plain = f.import(&fs::read(&busybox).unwrap()).unwrap();
    let target = f.dir.path().join("chunked");
    let from = format!("docker-archive:{}", busybox.display());
    let to = format!("oci:{}:1", target.display());
    let format = "--dest-compress-format";
    run(
        "skopeo",
        &[&"copy", &"--quiet", &format, &"zstd:chunked", &from, &to],
    );
    let blobs = fs::read_dir(target.join("blobs/sha256")).unwrap();
    let blobs: Vec<Vec<u8>> = blobs
        .map(|blob| fs::read(blob.unwrap().path()).unwrap())
        .collect();
    let table = b"zstd-chunked.manifest-checksum";
    let announced = |blob: &Vec<u8>| blob.windows(table.len()).any(|word| word == table);
    assert!(blobs.iter().any(announced), "skopeo wrote no table");
    let layers: Vec<Digest> = blobs
        .iter()
        .filter(|blob| blob.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]))
        .map(|blob| Digest::of(&zstd::decode_all(&blob[..]).unwrap()))
        .collect();
    let honest = plain[0].layers.iter().all(|layer| layers.contains(layer));
    let chunked = Fixture::new();
    let source = Source::parse(target.as_os_str()).unwrap();
    match import(&chunked.store, &source, &ImportOptions::default(), &()) {
        Ok(images) => {
            assert!(honest, "taken, but not what it claims");
            assert_eq!(images[0].layers, plain[0].layers);
            for layer in &images[0].layers {
                assert_eq!(Digest::of(&layer_tar(&chunked.store, layer)), *layer);
            }
        }
        Err(error) => {
            assert!(!honest, "{error}");
            assert_eq!(error.exit_code(), 5, "{error}");
            chunked.untouched();
        }
    }
}
