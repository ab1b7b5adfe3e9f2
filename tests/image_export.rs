//! What we export, others must load: skopeo reads every form, podman loads it into an empty storage, and importing it
//! again gives the image we had.

mod image_support;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use image_support::*;
use ovl::image::{
    Compression, Error, ExportFormat, ExportImage, ExportOptions, ExportTarget, ImportOptions,
    Reference, Source, export, import,
};
use ovl::store::{Digest, Store};

/// A store with one image `localhost/app:1`, made of a small root file system; its manifest.
fn prepared(dir: &Path) -> (Store, Digest) {
    let store = store(dir);
    let root = dir.join("rootfs");
    fs::create_dir(&root).unwrap();
    make_rootfs(&root, true);
    let tar = dir.join("rootfs.tar");
    run(
        "tar",
        &[
            &"--format=posix",
            &"--sparse",
            &"-cf",
            &tar,
            &"-C",
            &root,
            &".",
        ],
    );
    let options = ImportOptions {
        tags: vec!["localhost/app:1".parse().unwrap()],
        ..Default::default()
    };
    let images = import(
        &store,
        &Source::parse(tar.as_os_str()).unwrap(),
        &options,
        &(),
    )
    .unwrap();
    (store, images[0].manifest)
}

fn image(manifest: Digest) -> ExportImage {
    ExportImage {
        manifest,
        names: vec!["localhost/app:1".parse::<Reference>().unwrap()],
    }
}

#[test]
fn others_load_what_we_export() {
    let dir = temp();
    let (store, manifest) = prepared(dir.path());
    let record = store.image(&manifest).unwrap().unwrap();
    let cases = [
        (
            ExportFormat::DockerArchive,
            Compression::None,
            "docker-archive",
        ),
        (
            ExportFormat::DockerArchive,
            Compression::Gzip,
            "docker-archive",
        ),
        (ExportFormat::OciArchive, Compression::None, "oci-archive"),
        (ExportFormat::OciArchive, Compression::Gzip, "oci-archive"),
        (ExportFormat::OciArchive, Compression::Zstd, "oci-archive"),
        (ExportFormat::OciDir, Compression::None, "oci"),
        (ExportFormat::OciDir, Compression::Gzip, "oci"),
    ];
    for (i, (format, compression, transport)) in cases.into_iter().enumerate() {
        let what = format!("{format:?} {compression:?}");
        let out = dir.path().join(format!("out-{i}"));
        let options = ExportOptions {
            format,
            compression: Some(compression),
        };
        export(
            &store,
            &[image(manifest)],
            options,
            ExportTarget::Path(&out),
        )
        .unwrap();
        let location = format!("{transport}:{}", out.display());
        let inspected = run("skopeo", &[&"inspect", &"--config", &location]);
        let config: serde_json::Value = serde_json::from_slice(&inspected).unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            record.layers[0].to_string(),
            "{what}"
        );

        // podman unpacks the layer and checks it against the diff ID.
        let (root, runroot) = (
            dir.path().join(format!("root-{i}")),
            dir.path().join(format!("run-{i}")),
        );
        let storage: [&dyn AsRef<OsStr>; 6] = [
            &"--root",
            &root,
            &"--runroot",
            &runroot,
            &"--storage-driver",
            &"vfs",
        ];
        if format == ExportFormat::OciDir {
            let to = format!(
                "containers-storage:[vfs@{}+{}]localhost/app:1",
                root.display(),
                runroot.display()
            );
            run("skopeo", &[&"copy", &"-q", &location, &to]);
        } else {
            run(
                "podman",
                &[&storage[..], &[&"load", &"-q", &"-i", &out]].concat(),
            );
        }
        let listed = run(
            "podman",
            &[
                &storage[..],
                &[&"images", &"--no-trunc", &"--format", &"{{.ID}} {{.Names}}"],
            ]
            .concat(),
        );
        let listed = String::from_utf8(listed).unwrap();
        assert!(listed.contains("localhost/app:1"), "{what}: {listed}");
        assert!(
            listed.starts_with(&record.config.to_string()),
            "{what}: {listed}"
        );

        // Back into another store.
        let again = temp();
        let other = image_support::store(again.path());
        let source = Source::parse(out.as_os_str()).unwrap();
        let back = import(&other, &source, &ImportOptions::default(), &()).unwrap();
        assert_eq!(back[0].layers, record.layers, "{what}");
        assert_eq!(back[0].config, record.config, "{what}");
        assert_eq!(back[0].names, ["localhost/app:1"], "{what}");
        // Its layers are plain in its own manifest: uncompressed, it keeps its digest.
        let keeps = compression == Compression::None || format == ExportFormat::DockerArchive;
        assert_eq!(back[0].manifest == manifest, keeps, "{what}");
    }
    let leftovers: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains(".part"))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

/// The documents we make, read by an independent reader of the specification.
#[test]
fn documents_follow_the_specification() {
    use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest, MediaType};
    let dir = temp();
    let (store, manifest) = prepared(dir.path());
    for compression in [Compression::None, Compression::Zstd] {
        let out = dir.path().join(format!("layout-{compression:?}"));
        let options = ExportOptions {
            format: ExportFormat::OciDir,
            compression: Some(compression),
        };
        export(
            &store,
            &[image(manifest)],
            options,
            ExportTarget::Path(&out),
        )
        .unwrap();
        let blob =
            |digest: &oci_spec::image::Digest| out.join("blobs/sha256").join(digest.digest());
        let index = ImageIndex::from_file(out.join("index.json")).unwrap();
        let entry = &index.manifests()[0];
        assert_eq!(entry.media_type(), &MediaType::ImageManifest);
        let manifest = ImageManifest::from_file(blob(entry.digest())).unwrap();
        assert_eq!(manifest.schema_version(), 2);
        let layer = &manifest.layers()[0];
        let want = match compression {
            Compression::Zstd => MediaType::ImageLayerZstd,
            _ => MediaType::ImageLayer,
        };
        assert_eq!(layer.media_type(), &want);
        assert_eq!(
            fs::metadata(blob(layer.digest())).unwrap().len(),
            layer.size()
        );
        let config = ImageConfiguration::from_file(blob(manifest.config().digest())).unwrap();
        assert_eq!(config.rootfs().diff_ids().len(), 1);
    }
}

#[test]
fn exports_are_deterministic_and_stream_the_same_bytes() {
    let dir = temp();
    let (store, manifest) = prepared(dir.path());
    for format in [ExportFormat::DockerArchive, ExportFormat::OciArchive] {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let options = ExportOptions {
                format,
                compression: Some(compression),
            };
            let mut streamed = Vec::new();
            export(
                &store,
                &[image(manifest)],
                options,
                ExportTarget::Stream(&mut streamed),
            )
            .unwrap();
            let path = dir.path().join("out");
            // An existing file is replaced.
            export(
                &store,
                &[image(manifest)],
                options,
                ExportTarget::Path(&path),
            )
            .unwrap();
            assert!(
                fs::read(&path).unwrap() == streamed,
                "{format:?} {compression:?}"
            );
        }
    }
}

#[test]
fn several_images_share_their_layers() {
    let dir = temp();
    let (store, manifest) = prepared(dir.path());
    let options = ExportOptions {
        format: ExportFormat::DockerArchive,
        compression: Some(Compression::None),
    };
    let mut one = Vec::new();
    export(
        &store,
        &[image(manifest)],
        options,
        ExportTarget::Stream(&mut one),
    )
    .unwrap();
    let second = ExportImage {
        manifest,
        names: vec!["localhost/other:2".parse().unwrap()],
    };
    let path = dir.path().join("two");
    export(
        &store,
        &[image(manifest), second],
        options,
        ExportTarget::Path(&path),
    )
    .unwrap();
    assert!(fs::metadata(&path).unwrap().len() < one.len() as u64 + 4096);
    let again = temp();
    let other = image_support::store(again.path());
    let images = import(
        &other,
        &Source::parse(path.as_os_str()).unwrap(),
        &ImportOptions::default(),
        &(),
    );
    let names: Vec<_> = images.unwrap().into_iter().flat_map(|i| i.names).collect();
    assert_eq!(names, ["localhost/app:1", "localhost/other:2"]);
    // One of them can be chosen.
    let source = format!("docker-archive:{}:localhost/other:2", path.display());
    let chosen = import(
        &other,
        &Source::parse(OsStr::new(&source)).unwrap(),
        &ImportOptions::default(),
        &(),
    );
    assert_eq!(chosen.unwrap()[0].names, ["localhost/other:2"]);
    let source = format!("docker-archive:{}:nobody", path.display());
    let none = import(
        &other,
        &Source::parse(OsStr::new(&source)).unwrap(),
        &ImportOptions::default(),
        &(),
    );
    assert!(matches!(none, Err(Error::NoSuchImage { .. })), "{none:?}");
}

/// Calls something once, after so many bytes.
struct Meanwhile<F> {
    after: usize,
    then: Option<F>,
    out: Vec<u8>,
}

impl<F: FnOnce()> std::io::Write for Meanwhile<F> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        if self.out.len() >= self.after
            && let Some(then) = self.then.take()
        {
            then();
        }
        self.out.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is exported is held: an image that is removed meanwhile, with all its documents, still comes out whole.
#[test]
fn an_image_removed_meanwhile_comes_out_whole() {
    for format in [ExportFormat::DockerArchive, ExportFormat::OciArchive] {
        let dir = temp();
        let (store, manifest) = prepared(dir.path());
        // The second is reached long after the first has been written.
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "of another image").unwrap();
        let mut source = std::ffi::OsString::from("dir:");
        source.push(&other);
        let options = ImportOptions {
            tags: vec!["localhost/other:1".parse().unwrap()],
            ..Default::default()
        };
        let source = Source::parse(&source).unwrap();
        let second = import(&store, &source, &options, &()).unwrap().remove(0);
        let images = [
            image(manifest),
            ExportImage {
                manifest: second.manifest,
                names: vec!["localhost/other:1".parse().unwrap()],
            },
        ];
        let options = ExportOptions {
            format,
            compression: None,
        };
        let undisturbed = {
            let mut out = Vec::new();
            export(&store, &images, options, ExportTarget::Stream(&mut out)).unwrap();
            out
        };
        let remove = || {
            for manifest in [manifest, second.manifest] {
                store.remove_image(&manifest).unwrap();
            }
            store.gc().unwrap();
            assert!(store.images().unwrap().is_empty());
            assert!(store.document(&second.config).unwrap().is_none());
        };
        let mut out = Meanwhile {
            after: 0,
            then: Some(remove),
            out: Vec::new(),
        };
        export(&store, &images, options, ExportTarget::Stream(&mut out)).unwrap();
        assert!(out.then.is_none(), "it was removed on the way");
        assert!(out.out == undisturbed, "{format:?}");
        // And afterwards it is gone.
        let mut after = Vec::new();
        let error = export(&store, &images, options, ExportTarget::Stream(&mut after));
        assert_eq!(error.unwrap_err().exit_code(), 4);
        store.gc().unwrap();
        assert!(store.layers().unwrap().is_empty());
    }
}

#[test]
fn failures_leave_nothing_behind() {
    let dir = temp();
    let (store, manifest) = prepared(dir.path());
    let out = dir.path().join("target");
    fs::create_dir(&out).unwrap();
    let before: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    let missing = ExportImage {
        manifest: Digest::of(b"nothing"),
        names: Vec::new(),
    };
    for format in [
        ExportFormat::DockerArchive,
        ExportFormat::OciArchive,
        ExportFormat::OciDir,
        ExportFormat::SkopeoDir,
    ] {
        let options = ExportOptions {
            format,
            compression: Some(Compression::None),
        };
        let path = out.join("x");
        let error = export(
            &store,
            std::slice::from_ref(&missing),
            options,
            ExportTarget::Path(&path),
        );
        assert_eq!(error.unwrap_err().exit_code(), 4);
        // A file system that is full, seen from the writer.
        struct Full(usize);
        impl std::io::Write for Full {
            fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
                self.0 = self
                    .0
                    .checked_sub(buf.len())
                    .ok_or(std::io::ErrorKind::StorageFull)?;
                Ok(buf.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let error = export(
            &store,
            &[image(manifest)],
            options,
            ExportTarget::Stream(&mut Full(500_000)),
        );
        assert_eq!(
            error.unwrap_err().exit_code(),
            match format {
                ExportFormat::OciDir | ExportFormat::SkopeoDir => 2,
                _ => 1,
            }
        );
    }
    fs::write(out.join("y"), "").unwrap();
    let options = ExportOptions {
        format: ExportFormat::OciDir,
        compression: Some(Compression::None),
    };
    for existing in [out.clone(), out.join("y")] {
        let error = export(
            &store,
            &[image(manifest)],
            options,
            ExportTarget::Path(&existing),
        )
        .unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    assert_eq!(before.len(), fs::read_dir(dir.path()).unwrap().count());
}
