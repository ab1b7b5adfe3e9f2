//! Hostile archives of images, T21 to T30: digests, ambiguous and oversized documents, members that point outside, names
//! that are taken; and what is no archive at all. See `hostile_image.rs`.

mod image_support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;

use image_support::fixture::*;
use image_support::*;
use ovl::image::{Error, ImportOptions, Platform, Source, import};
use ovl::store::Digest;

fn manifest_json(config: &str, layers: &[&str]) -> Vec<u8> {
    serde_json::json!([{ "Config": config, "RepoTags": ["a:1"], "Layers": layers }])
        .to_string()
        .into_bytes()
}

/// An image of one layer in OCI form; `change` may spoil the manifest and the config.
fn oci(
    layer: &[u8],
    change: impl FnOnce(&mut serde_json::Value, &mut serde_json::Value),
) -> Vec<u8> {
    let mut blobs = OciBlobs::new();
    let layer_descriptor = blobs.add("application/vnd.oci.image.layer.v1.tar", layer);
    let mut config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(layer).to_string()] },
    });
    let mut manifest = serde_json::json!({ "schemaVersion": 2, "layers": [layer_descriptor] });
    change(&mut manifest, &mut config);
    let config = blobs.add(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    if manifest.get("config").is_none() {
        manifest["config"] = config;
    }
    let manifest = blobs.add(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    blobs.finish(&serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] }))
}

#[test]
fn t21_digests_and_sizes() {
    let f = Fixture::new();
    let layer = RawTar::new().file("x", b"x").end();
    let wrong = Digest::of(b"wrong").to_string();
    type Change = Box<dyn Fn(&mut serde_json::Value, &mut serde_json::Value)>;
    let set = |pointer: &'static str, value: serde_json::Value| -> Change {
        Box::new(move |manifest, _| *manifest.pointer_mut(pointer).unwrap() = value.clone())
    };
    let cases: Vec<(&str, Change, i32)> = vec![
        (
            "missing from the archive",
            set("/layers/0/digest", wrong.clone().into()),
            1,
        ),
        ("bytes, but should have", set("/layers/0/size", 1.into()), 5),
        (
            "bytes, but should have",
            set("/layers/0/size", 1_000_000.into()),
            5,
        ),
        (
            "not a sha256 digest",
            set("/layers/0/digest", "sha256:../../../etc/passwd".into()),
            1,
        ),
        (
            "not a sha256 digest",
            set("/layers/0/digest", wrong.to_uppercase().into()),
            1,
        ),
        (
            "not a sha256 digest",
            set(
                "/layers/0/digest",
                format!("sha512:{}", "0".repeat(128)).into(),
            ),
            1,
        ),
        ("invalid value", set("/layers/0/size", (-1).into()), 1),
        (
            "has digest",
            Box::new({
                let wrong = wrong.clone();
                move |_, config| config["rootfs"]["diff_ids"][0] = wrong.clone().into()
            }),
            5,
        ),
        (
            "diff IDs",
            Box::new(|_, config| config["rootfs"]["diff_ids"] = serde_json::json!([])),
            1,
        ),
    ];
    for (reason, change, code) in cases {
        let archive = oci(&layer, change);
        for result in [f.import(&archive), f.pipe(&archive)] {
            let error = result.expect_err(reason);
            assert!(
                error.to_string().contains(reason),
                "{reason:?} not in {error}"
            );
            assert_eq!(error.exit_code(), code, "{error}");
            f.untouched();
        }
    }
    // A blob that is not what its name says.
    let digest = Digest::of(&layer).hex();
    let mut archive = oci(&layer, |_, _| ());
    let at = archive
        .windows(1)
        .enumerate()
        .position(|(i, _)| archive[i..].starts_with(digest.as_bytes()))
        .unwrap();
    archive[at + 512] ^= 1;
    for way in [Fixture::import, Fixture::pipe] {
        // A store that does not have the layer already: else it would not be read.
        let f = Fixture::new();
        let error = way(&f, &archive).unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
        f.untouched();
    }
    assert!(f.import(&oci(&layer, |_, _| ())).is_ok());
}

#[test]
fn t22_ambiguous_and_oversized_documents() {
    let f = Fixture::new();
    let layer = RawTar::new().file("x", b"x").end();
    let both = oci(&layer, |manifest, _| {
        manifest["manifests"] = serde_json::json!([])
    });
    assert!(
        f.import(&both)
            .unwrap_err()
            .to_string()
            .contains("both layers and manifests")
    );
    let lies = oci(&layer, |manifest, _| {
        manifest["mediaType"] = "application/vnd.oci.image.index.v1+json".into()
    });
    assert!(
        f.import(&lies)
            .unwrap_err()
            .to_string()
            .contains("media type differs")
    );
    let artifact = oci(&layer, |manifest, _| {
        manifest["config"] = serde_json::json!({
            "mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2,
        });
    });
    assert!(
        f.import(&artifact)
            .unwrap_err()
            .to_string()
            .contains("artifact")
    );
    f.untouched();

    // Indexes within indexes, down to a good manifest.
    for (depth, ok) in [(0, true), (4, true), (5, false), (30, false)] {
        let mut blobs = OciBlobs::new();
        let layer_descriptor = blobs.add("application/vnd.oci.image.layer.v1.tar", &layer);
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] },
        });
        let config = blobs.add(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [layer_descriptor] });
        let mut top = blobs.add(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        );
        for _ in 0..depth {
            let index = serde_json::json!({ "schemaVersion": 2, "manifests": [top] });
            top = blobs.add(
                "application/vnd.oci.image.index.v1+json",
                index.to_string().as_bytes(),
            );
        }
        let f = Fixture::new();
        let archive = blobs.finish(&serde_json::json!({ "schemaVersion": 2, "manifests": [top] }));
        for result in [f.import(&archive), f.pipe(&archive)] {
            assert_eq!(result.is_ok(), ok, "{depth}: {result:?}");
        }
    }

    // Documents beyond the caps, and ten thousand manifests of other platforms.
    let huge = format!("[{}]", " ".repeat(5 << 20));
    let archive = RawTar::new()
        .file("manifest.json", huge.as_bytes())
        .file("repositories", b"{}")
        .end();
    for result in [f.import(&archive), f.pipe(&archive)] {
        assert!(matches!(result, Err(Error::Limit { .. })), "{result:?}");
    }
    let config = format!("{{\"a\":\"{}\"}}", "x".repeat(9 << 20));
    let archive = docker_archive_with(&[layer], &config);
    for result in [f.import(&archive), f.pipe(&archive)] {
        assert!(matches!(result, Err(Error::Limit { .. })), "{result:?}");
    }
    let other = serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(b"").to_string(), "size": 0,
        "platform": { "os": "plan9", "architecture": "mips" },
    });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": vec![other; 10_000] });
    let error = f.import(&OciBlobs::new().finish(&index)).unwrap_err();
    assert!(matches!(error, Error::NoPlatform { .. }), "{error}");
    f.untouched();
}

#[test]
fn t23_docker_archives_that_point_outside() {
    let f = Fixture::new();
    let layer = RawTar::new().file("x", b"x").end();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] },
    })
    .to_string();
    let archive = |config_path: &str, layers: &[&str], more: fn(RawTar) -> RawTar| {
        more(
            RawTar::new()
                .file("c.json", config.as_bytes())
                .file("l/layer.tar", &layer),
        )
        .file("manifest.json", &manifest_json(config_path, layers))
        .end()
    };
    let plain: fn(RawTar) -> RawTar = |t| t;
    for (what, bytes, reason) in [
        (
            "config outside",
            archive("../../etc/passwd", &["l/layer.tar"], plain),
            "out of the archive",
        ),
        (
            "config absolute",
            archive("/etc/passwd", &["l/layer.tar"], plain),
            "missing from the archive",
        ),
        (
            "layer outside",
            archive("c.json", &["../../etc/shadow"], plain),
            "out of the archive",
        ),
        (
            "layer absolute",
            archive("c.json", &["/etc/shadow"], plain),
            "missing from the archive",
        ),
        (
            "symlink out",
            archive("c.json", &["s"], |t| t.symlink("s", "/etc/shadow")),
            "missing from the archive",
        ),
        (
            "symlink up",
            archive("c.json", &["s"], |t| t.symlink("s", "../../etc/shadow")),
            "missing from the archive",
        ),
        (
            "symlinks in a circle",
            archive("c.json", &["s"], |t| t.symlink("s", "r").symlink("r", "s")),
            "circle",
        ),
        (
            "two manifests",
            archive("c.json", &["l/layer.tar"], |t| {
                t.file("./manifest.json", b"[]")
            }),
            "two members",
        ),
        (
            "config not hashing to its name",
            archive(
                "0000000000000000000000000000000000000000000000000000000000000000.json",
                &["l/layer.tar"],
                |t| {
                    t.file(
                        "0000000000000000000000000000000000000000000000000000000000000000.json",
                        b"{}",
                    )
                },
            ),
            "has digest",
        ),
    ] {
        for result in [f.import(&bytes), f.pipe(&bytes)] {
            let error = result.expect_err(what);
            assert!(
                error.to_string().contains(reason),
                "{what}: {reason:?} not in {error}"
            );
            f.untouched();
        }
    }
    for tags in [r#"["../../x:1"]"#, r#"["UPPER:1"]"#, r#"["a:b:c"]"#] {
        let manifest =
            format!(r#"[{{"Config":"c.json","RepoTags":{tags},"Layers":["l/layer.tar"]}}]"#);
        let bytes = RawTar::new()
            .file("c.json", config.as_bytes())
            .file("l/layer.tar", &layer)
            .file("manifest.json", manifest.as_bytes())
            .end();
        assert!(
            matches!(f.import(&bytes), Err(Error::Reference(_))),
            "{tags}"
        );
        f.untouched();
    }
    // A symlink to a member is how old archives share layers.
    let shared = archive("c.json", &["s/layer.tar"], |t| {
        t.symlink("s/layer.tar", "../l/layer.tar")
    });
    assert!(f.import(&shared).is_ok());
    let f = Fixture::new();
    assert!(f.pipe(&shared).is_ok());
}

#[test]
fn t24_oci_layouts_on_disk() {
    let f = Fixture::new();
    let layer = RawTar::new().file("x", b"x").end();
    let spoil = |name: &str, how: &dyn Fn(&std::path::Path)| {
        let layout = f.dir.path().join(name);
        fs::create_dir(&layout).unwrap();
        let tar = f.dir.path().join("layout.tar");
        fs::write(&tar, oci(&layer, |_, _| ())).unwrap();
        run("tar", &[&"-xf", &tar, &"-C", &layout]);
        how(&layout);
        import(
            &f.store,
            &Source::parse(layout.as_os_str()).unwrap(),
            &ImportOptions::default(),
            &(),
        )
    };
    let outside = f.dir.path().join("outside");
    fs::write(&outside, &layer).unwrap();
    let blob = format!("blobs/sha256/{}", Digest::of(&layer).hex());
    let moved = |path: &std::path::Path| {
        let away = f.dir.path().join(format!(
            "away-{}",
            fs::read_dir(f.dir.path()).unwrap().count()
        ));
        fs::rename(path, &away).unwrap();
        symlink(&away, path).unwrap();
    };
    for (name, path, reason) in [
        ("a", blob.as_str(), "symlinks are not followed"),
        ("c", "blobs", "symlinks are not followed"),
    ] {
        let error = spoil(name, &|layout| {
            moved(&layout.join(path));
        })
        .unwrap_err();
        assert!(error.to_string().contains(reason), "{name}: {error}");
        f.untouched();
    }
    let error = spoil("b", &|layout| moved(&layout.join("index.json"))).unwrap_err();
    assert!(matches!(error, Error::MissingManifest { .. }), "{error}");
    let fifo = spoil("d", &|layout| {
        fs::remove_file(layout.join(&blob)).unwrap();
        run("mkfifo", &[&layout.join(&blob)]);
    });
    assert!(fifo.unwrap_err().to_string().contains("not a regular file"));
    let other = spoil("e", &|layout| {
        fs::write(layout.join(&blob), RawTar::new().file("y", b"y").end()).unwrap()
    });
    assert_eq!(other.unwrap_err().exit_code(), 5);
    f.untouched();
    // `urls` and `data` of descriptors are ignored.
    let ignored = oci(&layer, |manifest, _| {
        manifest["layers"][0]["urls"] = serde_json::json!(["file:///etc/shadow"]);
        manifest["layers"][0]["data"] = "A".repeat(100_000).into();
    });
    assert!(f.import(&ignored).is_ok());
    let f = Fixture::new();
    let absent = oci(&layer, |manifest, _| {
        manifest["layers"][0]["urls"] = serde_json::json!(["https://example.invalid/x"]);
        manifest["layers"][0]["digest"] = Digest::of(b"elsewhere").to_string().into();
    });
    assert!(matches!(
        f.import(&absent),
        Err(Error::MissingMember { .. })
    ));
    f.untouched();
}

#[test]
fn t30_names_are_not_moved() {
    let f = Fixture::new();
    let first = docker_archive(&[RawTar::new().file("x", b"1").end()]);
    let second = docker_archive(&[RawTar::new().file("x", b"2").end()]);
    let kept = f.import(&first).unwrap()[0].manifest;
    for result in [f.import(&second), f.pipe(&second)] {
        let error = result.unwrap_err();
        assert!(
            matches!(error, Error::Conflict { .. }) && error.exit_code() == 3,
            "{error}"
        );
        assert_eq!(
            f.store.resolve_name("localhost/test:1").unwrap(),
            Some(kept)
        );
        assert_eq!(f.store.images().unwrap().len(), 1);
    }
    let options = ImportOptions {
        tags: vec!["other".parse().unwrap()],
        ..ImportOptions::default()
    };
    let other = f.import_with(&second, &options).unwrap();
    assert_eq!(other[0].names, ["docker.io/library/other:latest"]);
    let options = ImportOptions {
        replace_names: true,
        ..ImportOptions::default()
    };
    let moved = f.import_with(&second, &options).unwrap();
    assert_eq!(
        f.store.resolve_name("localhost/test:1").unwrap(),
        Some(moved[0].manifest)
    );
}

#[test]
fn unknown_formats_are_told() {
    let f = Fixture::new();
    for (bytes, reason) in [
        (b"".to_vec(), "empty"),
        (b"hello world".to_vec(), "unknown format"),
        (vec![0xff; 4096], "unknown format"),
        (b"{\"a\":1}".to_vec(), "JSON"),
        (b"\xfd7zXZ\0rest".to_vec(), "xz"),
        (b"BZh91AY".to_vec(), "bzip2"),
        (b"PK\x03\x04".to_vec(), "zip"),
        (b"hsqs0000".to_vec(), "squashfs"),
        (vec![0; 10240], "empty"),
        (b"\x1f\x8b".to_vec(), "gzip"),
        (vec![0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (
            RawTar::new().file("oci-layout", b"{}").end(),
            "neither manifest.json nor index.json",
        ),
        (
            RawTar::new()
                .file("0/x", b"")
                .file("manifest.json", b"{")
                .file("repositories", b"{}")
                .end(),
            "manifest.json",
        ),
    ] {
        for result in [f.import(&bytes), f.pipe(&bytes)] {
            let error = result.expect_err(reason);
            assert!(
                error.to_string().contains(reason),
                "{reason:?} not in {error}"
            );
            f.untouched();
        }
    }
    let missing = import(
        &f.store,
        &Source::parse(OsStr::new("/nowhere/x")).unwrap(),
        &ImportOptions::default(),
        &(),
    );
    assert_eq!(missing.unwrap_err().exit_code(), 4);
    let dir = Source::parse(f.dir.path().as_os_str()).unwrap();
    let error = import(&f.store, &dir, &ImportOptions::default(), &()).unwrap_err();
    assert!(matches!(error, Error::MissingManifest { .. }), "{error}");
}

/// `docker save` since 25: one archive in both forms. The image keeps its own manifest and takes its name from
/// manifest.json.
#[test]
fn an_archive_of_both_forms_keeps_its_manifest() {
    let layer = RawTar::new().file("x", b"x").end();
    let mut blobs = OciBlobs::new();
    let descriptor = blobs.add("application/vnd.oci.image.layer.v1.tar", &layer);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] },
    })
    .to_string();
    let config_descriptor = blobs.add(
        "application/vnd.oci.image.config.v1+json",
        config.as_bytes(),
    );
    let manifest = serde_json::json!({
        "schemaVersion": 2, "config": config_descriptor, "layers": [descriptor], "annotations": { "own": "yes" },
    })
    .to_string();
    let manifest_descriptor = blobs.add(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.as_bytes(),
    );
    // Another platform, listed but not there.
    let absent = serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(b"absent").to_string(), "size": 6,
    });
    let index =
        serde_json::json!({ "schemaVersion": 2, "manifests": [absent, manifest_descriptor] });
    let top = blobs.add(
        "application/vnd.oci.image.index.v1+json",
        index.to_string().as_bytes(),
    );
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let saved = manifest_json(&path(config.as_bytes()), &[&path(&layer)]);
    blobs.tar = blobs.tar.file("manifest.json", &saved);
    let archive = blobs.finish(&serde_json::json!({ "schemaVersion": 2, "manifests": [top] }));
    for way in [Fixture::import, Fixture::pipe] {
        let f = Fixture::new();
        let images = way(&f, &archive).unwrap();
        assert_eq!(images[0].manifest, Digest::of(manifest.as_bytes()));
        assert_eq!(images[0].names, ["docker.io/library/a:1"]);
    }
}

/// An index of several platforms: the host's is taken, another on request, and one that is not there is told.
#[test]
fn platforms_are_chosen() {
    let mut blobs = OciBlobs::new();
    let mut entries = Vec::new();
    for architecture in ["amd64", "arm64", "riscv64"] {
        let layer = RawTar::new().file(architecture, b"").end();
        let descriptor = blobs.add("application/vnd.oci.image.layer.v1.tar", &layer);
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] },
        });
        let config = blobs.add(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let manifest =
            serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [descriptor] });
        let mut entry = blobs.add(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        );
        entry["platform"] = serde_json::json!({ "os": "linux", "architecture": architecture });
        entries.push(entry);
    }
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": entries });
    let top = blobs.add(
        "application/vnd.oci.image.index.v1+json",
        index.to_string().as_bytes(),
    );
    let archive = blobs.finish(&serde_json::json!({ "schemaVersion": 2, "manifests": [top] }));
    for (wanted, has) in [
        (None, Some(Platform::host().architecture)),
        (Some("linux/arm64"), Some("arm64".to_owned())),
        (Some("linux/riscv64"), Some("riscv64".to_owned())),
        (Some("linux/s390x"), None),
        (Some("windows/amd64"), None),
    ] {
        let f = Fixture::new();
        let platform = wanted.map(|text| text.parse().unwrap());
        let options = ImportOptions {
            platform,
            ..ImportOptions::default()
        };
        match (f.import_with(&archive, &options), has) {
            (Ok(images), Some(architecture)) => {
                assert_eq!(images.len(), 1);
                let tree = stored_tree(&f.store, &images[0].layers[0]);
                assert_eq!(paths(&tree), ["", &architecture]);
            }
            (Err(Error::NoPlatform { available, .. }), None) => {
                assert_eq!(available, "linux/amd64, linux/arm64, linux/riscv64");
            }
            (result, has) => panic!("{wanted:?}: {result:?}, wanted {has:?}"),
        }
    }
}
