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
