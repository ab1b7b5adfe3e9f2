//! Images of several platforms, made by buildah: one is chosen, or all come along and the index comes back.

mod common;
mod image_support;

use std::fs;
use std::path::{Path, PathBuf};

use image_support::{OciBlobs, RawTar, run, store, temp};
use ovl::image::{
    Error, ExportFormat, ExportImage, ExportOptions, ExportTarget, ImportOptions, ImportedImage,
    KeepCompressed, Platform, Source, export, image_for, import,
};
use ovl::store::{Digest, Store};

const NAME: &str = "localhost/multi:1";
const PLATFORMS: [&str; 3] = ["linux/amd64", "linux/arm64", "linux/arm/v7"];

/// An archive of one image whose file `arch` says what it is for.
fn single(platform: &str) -> Vec<u8> {
    let platform: Platform = platform.parse().unwrap();
    let text = platform.to_string();
    let layer = RawTar::new().file("arch", text.as_bytes()).end();
    let mut blobs = OciBlobs::new();
    let layer_descriptor = blobs.add("application/vnd.oci.image.layer.v1.tar", &layer);
    let mut config = serde_json::json!({ "architecture": platform.architecture, "os": platform.os,
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] } });
    if let Some(variant) = &platform.variant {
        config["variant"] = variant.clone().into();
    }
    let config = config.to_string();
    let config = blobs.add(
        "application/vnd.oci.image.config.v1+json",
        config.as_bytes(),
    );
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config,
        "layers": [layer_descriptor] });
    let manifest = manifest.to_string();
    let manifest = blobs.add(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.as_bytes(),
    );
    blobs.finish(&serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] }))
}

/// buildah's layout of an index over the three, and the digest of that index.
fn multi(dir: &Path) -> (PathBuf, Digest) {
    let (root, runroot) = (dir.join("storage"), dir.join("run"));
    let buildah = |args: &[&str]| {
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![
            &"--root",
            &root,
            &"--runroot",
            &runroot,
            &"--storage-driver",
            &"vfs",
        ];
        all.extend(args.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
        run("buildah", &all)
    };
    buildah(&["manifest", "create", "list"]);
    for (i, platform) in PLATFORMS.iter().enumerate() {
        let archive = dir.join(format!("single-{i}.tar"));
        fs::write(&archive, single(platform)).unwrap();
        let from = format!("oci-archive:{}", archive.display());
        buildah(&["manifest", "add", "list", &from]);
    }
    let layout = dir.join("layout");
    let to = format!("oci:{}:{NAME}", layout.display());
    buildah(&["manifest", "push", "--quiet", "--all", "list", &to]);
    let index = fs::read(layout.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    (layout, digest.parse().unwrap())
}

fn take(store: &Store, path: &Path, options: &ImportOptions) -> Result<Vec<ImportedImage>, Error> {
    import(
        store,
        &Source::parse(path.as_os_str()).unwrap(),
        options,
        &(),
    )
}

fn all() -> ImportOptions {
    ImportOptions {
        all_platforms: true,
        keep_compressed: KeepCompressed::Always,
        ..Default::default()
    }
}

fn give(store: &Store, manifest: Digest, out: &Path) -> Option<Digest> {
    let image = ExportImage {
        manifest,
        names: vec![NAME.parse().unwrap()],
    };
    let options = ExportOptions {
        format: ExportFormat::OciArchive,
        compression: None,
    };
    let exported = export(store, &[image], options, ExportTarget::Path(out)).unwrap();
    assert_eq!(exported.len(), 1);
    exported[0].manifest
}

#[test]
fn one_platform_is_chosen() {
    let dir = temp();
    let (layout, index) = multi(dir.path());
    for platform in PLATFORMS {
        let place = temp();
        let store = store(place.path());
        let options = ImportOptions {
            platform: Some(platform.parse().unwrap()),
            ..Default::default()
        };
        let images = take(&store, &layout, &options).unwrap();
        assert_eq!(images.len(), 1, "{platform}");
        assert_eq!(store.images().unwrap().len(), 1);
        let found = image_for(&store, NAME, &platform.parse().unwrap()).unwrap();
        assert_eq!(found.manifest, images[0].manifest);
        let other = image_for(&store, NAME, &"linux/s390x".parse().unwrap()).unwrap_err();
        assert!(other.to_string().contains(platform), "{other}");
        // Most of the index is not here: what comes back is the image alone.
        let exported = give(&store, images[0].manifest, &place.path().join("out.tar"));
        assert_eq!(exported, Some(images[0].manifest));
        assert_ne!(exported, Some(index));
    }
    let options = ImportOptions {
        platform: Some("linux/s390x".parse().unwrap()),
        ..Default::default()
    };
    let error = take(&store(dir.path()), &layout, &options).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
}

#[test]
fn all_platforms_come_along_and_the_index_comes_back() {
    let dir = temp();
    let (layout, index) = multi(dir.path());
    let store = store(dir.path());
    let images = take(&store, &layout, &all()).unwrap();
    assert_eq!(images.len(), 3);
    assert!(images.iter().all(|image| image.restorable));
    // The name is of the one for this machine.
    let host = image_for(&store, NAME, &Platform::host());
    assert_eq!(images[0].names, [NAME]);
    if let Ok(host) = host {
        assert_eq!(host.manifest, images[0].manifest);
    }
    assert!(images[1..].iter().all(|image| image.names.is_empty()));
    for platform in PLATFORMS {
        let found = image_for(&store, NAME, &platform.parse().unwrap()).unwrap();
        let tar = image_support::layer_tar(&store, &found.layers[0]);
        let text = platform.as_bytes();
        assert!(
            tar.windows(text.len()).any(|bytes| bytes == text),
            "{platform}"
        );
    }
    store.gc().unwrap();
    let out = dir.path().join("out.tar");
    assert_eq!(give(&store, images[0].manifest, &out), Some(index));
    let raw = |location: String| run("skopeo", &[&"inspect", &"--raw", &location]);
    let ours = raw(format!("oci-archive:{}", out.display()));
    assert!(ours == raw(format!("oci:{}", layout.display())));
    assert_eq!(Digest::of(&ours), index);
    // skopeo checks every blob of every platform.
    let (from, to) = (
        format!("oci-archive:{}", out.display()),
        format!("dir:{}", dir.path().join("flat").display()),
    );
    run("skopeo", &[&"copy", &"-q", &"--all", &from, &to]);

    // Imported again from what was exported: the same; and through a pipe.
    let place = temp();
    let other = image_support::store(place.path());
    assert_eq!(take(&other, &out, &all()).unwrap(), images);
    let stream = Box::new(fs::File::open(&out).unwrap());
    let piped = ovl::image::import_stream(&other, stream, &all(), &()).unwrap();
    assert_eq!(piped, images);

    // Without one of them, the index is not whole any more.
    store.remove_image(&images[2].manifest).unwrap();
    let exported = give(&store, images[0].manifest, &dir.path().join("less.tar"));
    assert_eq!(exported, Some(images[0].manifest));
}

/// Adds an image for a platform and gives its descriptor.
fn image(blobs: &mut OciBlobs, platform: &str) -> serde_json::Value {
    let platform: Platform = platform.parse().unwrap();
    let layer = RawTar::new()
        .file("arch", platform.to_string().as_bytes())
        .end();
    let layer_descriptor = blobs.add("application/vnd.oci.image.layer.v1.tar", &layer);
    let config = serde_json::json!({ "architecture": platform.architecture, "os": platform.os,
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] } });
    let config = blobs.add(CONFIG, config.to_string().as_bytes());
    let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": MANIFEST,
        "config": config, "layers": [layer_descriptor] });
    blobs.add(MANIFEST, manifest.to_string().as_bytes())
}

/// Adds an attestation of an image as docker buildx makes it, and gives its descriptor.
fn attestation(blobs: &mut OciBlobs, of: &serde_json::Value) -> serde_json::Value {
    let statement = serde_json::json!({ "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": "https://slsa.dev/provenance/v0.2", "subject": [{ "name": of["digest"] }] });
    let statement = statement.to_string();
    let mut layer = blobs.add("application/vnd.in-toto+json", statement.as_bytes());
    layer["annotations"] =
        serde_json::json!({ "in-toto.io/predicate-type": "https://slsa.dev/provenance/v0.2" });
    let config = serde_json::json!({ "architecture": "unknown", "os": "unknown",
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] } });
    let config = blobs.add(CONFIG, config.to_string().as_bytes());
    let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": MANIFEST,
        "config": config, "layers": [layer] });
    let mut descriptor = blobs.add(MANIFEST, manifest.to_string().as_bytes());
    descriptor["platform"] = serde_json::json!({ "architecture": "unknown", "os": "unknown" });
    descriptor["annotations"] = serde_json::json!({ "vnd.docker.reference.digest": of["digest"],
        "vnd.docker.reference.type": "attestation-manifest" });
    descriptor
}

fn for_platform(mut descriptor: serde_json::Value, platform: &str) -> serde_json::Value {
    let platform: Platform = platform.parse().unwrap();
    descriptor["platform"] =
        serde_json::json!({ "architecture": platform.architecture, "os": platform.os });
    descriptor
}

/// Adds an index and gives its descriptor.
fn index(blobs: &mut OciBlobs, manifests: &[serde_json::Value]) -> serde_json::Value {
    let index =
        serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    blobs.add(INDEX, index.to_string().as_bytes())
}

/// The archive of one name over an index, as buildx writes it; and the digest of that index.
fn archive(dir: &Path, blobs: OciBlobs, mut top: serde_json::Value) -> (PathBuf, Digest) {
    let digest = top["digest"].as_str().unwrap().parse().unwrap();
    top["annotations"] = serde_json::json!({ "io.containerd.image.name": NAME,
        "org.opencontainers.image.ref.name": "1" });
    let path = dir.join("archive.tar");
    let bytes = blobs.finish(&serde_json::json!({ "schemaVersion": 2, "manifests": [top] }));
    fs::write(&path, bytes).unwrap();
    (path, digest)
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Two images with an attestation each, under one index or under one each.
fn buildx(dir: &Path, nested: bool) -> (PathBuf, Digest) {
    let mut blobs = OciBlobs::new();
    let mut entries = Vec::new();
    let mut notes = Vec::new();
    for platform in ["linux/s390x", "linux/amd64"] {
        let image = image(&mut blobs, platform);
        notes.push(attestation(&mut blobs, &image));
        entries.push(for_platform(image, platform));
    }
    let top = if nested {
        // An index in an index, neither of which says what it is for.
        let inner: Vec<_> = entries
            .iter()
            .zip(&notes)
            .map(|(entry, note)| index(&mut blobs, &[entry.clone(), note.clone()]))
            .collect();
        index(&mut blobs, &inner)
    } else {
        entries.append(&mut notes);
        index(&mut blobs, &entries)
    };
    archive(dir, blobs, top)
}

fn export_to(store: &Store, manifest: Digest, format: ExportFormat, out: &Path) -> Option<Digest> {
    let image = ExportImage {
        manifest,
        names: vec![NAME.parse().unwrap()],
    };
    let options = ExportOptions {
        format,
        compression: None,
    };
    let exported = export(store, &[image], options, ExportTarget::Path(out)).unwrap();
    exported[0].manifest
}

#[test]
fn attestations_are_no_images_and_come_along_with_all() {
    for nested in [false, true] {
        let dir = temp();
        let (path, index) = buildx(dir.path(), nested);
        let what = format!("nested: {nested}");
        for platform in ["linux/amd64", "linux/s390x"] {
            let place = temp();
            let one = store(place.path());
            let options = ImportOptions {
                platform: Some(platform.parse().unwrap()),
                ..Default::default()
            };
            let images = take(&one, &path, &options).unwrap();
            assert_eq!(images.len(), 1, "{what} {platform}");
            image_for(&one, NAME, &platform.parse().unwrap()).unwrap();
            let exported = give(&one, images[0].manifest, &place.path().join("one.tar"));
            assert_eq!(exported, Some(images[0].manifest), "{what} {platform}");
        }
        let options = ImportOptions {
            platform: Some("linux/arm64".parse().unwrap()),
            ..Default::default()
        };
        let error = take(&store(temp().path()), &path, &options).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{what}: {error}");

        let place = temp();
        let all_here = store(place.path());
        let options = ImportOptions {
            platform: Some("linux/amd64".parse().unwrap()),
            ..all()
        };
        let images = take(&all_here, &path, &options).unwrap();
        assert_eq!(images.len(), 2, "{what}");
        for platform in ["linux/amd64", "linux/s390x"] {
            image_for(&all_here, NAME, &platform.parse().unwrap()).unwrap();
        }
        all_here.gc().unwrap();
        let sound = all_here.fsck(&Default::default(), &|_| {}).unwrap();
        assert_eq!(sound.problems, [], "{what}");

        // As an archive, as a layout, and through a pipe: the same index, statements and all.
        let (archive, layout) = (place.path().join("out.tar"), place.path().join("layout"));
        let to = |format, out| export_to(&all_here, images[0].manifest, format, out);
        assert_eq!(
            to(ExportFormat::OciArchive, &archive),
            Some(index),
            "{what}"
        );
        assert_eq!(to(ExportFormat::OciDir, &layout), Some(index), "{what}");
        let statements = fs::read_dir(layout.join("blobs/sha256"))
            .unwrap()
            .filter(|entry| {
                let bytes = fs::read(entry.as_ref().unwrap().path()).unwrap();
                bytes.starts_with(b"{\"_type\":\"https://in-toto.io")
            });
        assert_eq!(statements.count(), 2, "{what}");
        for (again, from) in [(0, &archive), (1, &layout), (2, &archive)] {
            let other = temp();
            let other_store = store(other.path());
            let found = match again {
                2 => {
                    let stream = Box::new(fs::File::open(from).unwrap());
                    ovl::image::import_stream(&other_store, stream, &options, &()).unwrap()
                }
                _ => take(&other_store, from, &options).unwrap(),
            };
            assert_eq!(found, images, "{what} {again}");
            let out = other.path().join("again.tar");
            let exported = export_to(
                &other_store,
                images[0].manifest,
                ExportFormat::OciArchive,
                &out,
            );
            assert_eq!(exported, Some(index), "{what} {again}");
            assert!(
                fs::read(&out).unwrap() == fs::read(&archive).unwrap(),
                "{what} {again}"
            );
        }
        // With the name, everything that only it stood for goes.
        for image in &images {
            all_here.remove_image(&image.manifest).unwrap();
        }
        assert!(all_here.document(&index).unwrap().is_none(), "{what}");
    }
}

/// What is left out of the archive cannot come along; the images do.
#[test]
fn an_attestation_that_is_not_whole_stays_behind() {
    let dir = temp();
    let mut blobs = OciBlobs::new();
    let one = image(&mut blobs, "linux/amd64");
    let mut elsewhere = OciBlobs::new();
    let note = attestation(&mut elsewhere, &one);
    let entry = for_platform(one, "linux/amd64");
    let top = index(&mut blobs, &[note, entry]);
    let (path, index) = archive(dir.path(), blobs, top);
    let store = store(dir.path());
    let options = ImportOptions {
        platform: Some("linux/amd64".parse().unwrap()),
        ..all()
    };
    let images = take(&store, &path, &options).unwrap();
    assert_eq!(images.len(), 1);
    let exported = give(&store, images[0].manifest, &dir.path().join("out.tar"));
    assert_eq!(exported, Some(images[0].manifest));
    assert_ne!(exported, Some(index));
}

/// An index of nothing but attestations has no image, and says so.
#[test]
fn an_index_without_an_image_is_refused() {
    let dir = temp();
    let mut blobs = OciBlobs::new();
    let of = serde_json::json!({ "digest": Digest::of(b"gone").to_string() });
    let note = attestation(&mut blobs, &of);
    let top = index(&mut blobs, &[note]);
    let (path, _) = archive(dir.path(), blobs, top);
    for options in [ImportOptions::default(), all()] {
        let error = take(&store(dir.path()), &path, &options).unwrap_err();
        assert!(error.to_string().contains("lists no image"), "{error}");
    }
}

/// Directories as skopeo writes and reads them, of one image and of all platforms.
#[test]
fn skopeo_directories_go_both_ways() {
    let dir = temp();
    let (path, index) = buildx(dir.path(), false);
    let options = ImportOptions {
        platform: Some("linux/amd64".parse().unwrap()),
        ..all()
    };
    let ours = store(dir.path());
    let images = take(&ours, &path, &options).unwrap();
    let flat = dir.path().join("flat");
    let exported = export_to(&ours, images[0].manifest, ExportFormat::SkopeoDir, &flat);
    assert_eq!(exported, Some(index));
    // skopeo reads all of it, and checks every blob; what it writes, we read.
    let theirs = dir.path().join("theirs");
    let (from, to) = (
        format!("dir:{}", flat.display()),
        format!("dir:{}", theirs.display()),
    );
    run("skopeo", &[&"copy", &"-q", &"--all", &from, &to]);
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&flat), names(&theirs));
    for name in names(&flat) {
        let read = |dir: &Path| fs::read(dir.join(&name)).unwrap();
        assert!(read(&flat) == read(&theirs), "{name:?}");
    }
    for (place, word) in [
        (&theirs, "dir"),
        (&theirs, "skopeo-dir"),
        (&flat, "skopeo-dir"),
    ] {
        let other = temp();
        let store = store(other.path());
        let source = format!("{word}:{}", place.display());
        let named = ImportOptions {
            tags: vec![NAME.parse().unwrap()],
            ..options.clone()
        };
        let source = Source::parse(source.as_ref()).unwrap();
        let found = import(&store, &source, &named, &()).unwrap();
        assert_eq!(found, images, "{word}");
        let again = other.path().join("again");
        let exported = export_to(&store, images[0].manifest, ExportFormat::SkopeoDir, &again);
        assert_eq!(exported, Some(index), "{word}");
    }

    // One image: its manifest is the outermost document.
    let place = temp();
    let one = store(place.path());
    let options = ImportOptions {
        platform: Some("linux/amd64".parse().unwrap()),
        ..Default::default()
    };
    let images = take(&one, &path, &options).unwrap();
    let single = place.path().join("single");
    let exported = export_to(&one, images[0].manifest, ExportFormat::SkopeoDir, &single);
    assert_eq!(exported, Some(images[0].manifest));
    let manifest = fs::read(single.join("manifest.json")).unwrap();
    assert_eq!(Digest::of(&manifest), images[0].manifest);
    let raw = run(
        "skopeo",
        &[&"inspect", &"--raw", &format!("dir:{}", single.display())],
    );
    assert!(raw == manifest);
    let root = dir.path().join("plain");
    fs::create_dir(&root).unwrap();
    let source = Source::parse(format!("skopeo-dir:{}", root.display()).as_ref()).unwrap();
    let error = import(&one, &source, &options, &()).unwrap_err();
    assert!(error.to_string().contains("skopeo"), "{error}");
}

#[test]
fn a_mount_takes_the_platform_asked_for() {
    common::require_mounting();
    let sandbox = common::Sandbox::new();
    let dir = temp();
    let (layout, _) = multi(dir.path());
    let ids = sandbox.run([
        "import".as_ref(),
        "--all-platforms".as_ref(),
        layout.as_os_str(),
        "--quiet".as_ref(),
    ]);
    assert_eq!(ids.lines().count(), 3, "{ids}");
    sandbox.mkdir("mnt");
    for platform in PLATFORMS {
        sandbox.run(["mount", "--platform", platform, "--read-only", NAME, "mnt"]);
        let arch = fs::read_to_string(sandbox.path("mnt/arch")).unwrap();
        sandbox.run(["umount", "mnt"]);
        assert_eq!(arch, platform);
    }
}
