//! Images as other tools write them: buildah makes one of two layers; podman, skopeo and umoci save it in every form
//! they know. Whatever the form, the same layers must arrive, whole, and come back bit for bit.

mod image_support;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use image_support::*;
use ovl::image::{
    ImportOptions, ImportProgress, ImportedImage, LayerOutcome, Source, import, import_stream,
};
use ovl::store::{Digest, Store};

/// A scratch containers-storage with an image `localhost/app:1` of two layers, the second with a whiteout.
struct Built {
    dir: tempfile::TempDir,
}

impl Built {
    fn new() -> Self {
        let this = Self { dir: temp() };
        let root = this.path("rootfs");
        fs::create_dir(&root).unwrap();
        make_rootfs(&root, true);
        let second = this.path("second");
        fs::create_dir_all(second.join("etc")).unwrap();
        fs::write(second.join("etc/motd"), "hello\n").unwrap();
        let name = this.buildah(&[&"from", &"scratch"]);
        let name = String::from_utf8(name).unwrap().trim().to_owned();
        this.buildah(&[&"add", &"-q", &name, &root, &"/"]);
        this.buildah(&[&"config", &"--env", &"A=b", &"--cmd", &"/bin/sh", &name]);
        this.buildah(&[&"commit", &"-q", &name, &"localhost/app:base"]);
        this.buildah(&[&"rm", &name]);
        let name = this.buildah(&[&"from", &"--pull=never", &"localhost/app:base"]);
        let name = String::from_utf8(name).unwrap().trim().to_owned();
        this.buildah(&[&"add", &"-q", &name, &second, &"/"]);
        let mount = String::from_utf8(this.buildah(&[&"mount", &name])).unwrap();
        fs::remove_file(Path::new(mount.trim()).join("etc/passwd.link")).unwrap();
        this.buildah(&[&"umount", &name]);
        this.buildah(&[&"commit", &"-q", &name, &"localhost/app:1"]);
        this.buildah(&[&"rm", &name]);
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn storage(&self) -> [String; 6] {
        let (root, run) = (self.path("root"), self.path("run"));
        let s = |p: PathBuf| p.to_str().unwrap().to_owned();
        [
            "--root".into(),
            s(root),
            "--runroot".into(),
            s(run),
            "--storage-driver".into(),
            "vfs".into(),
        ]
    }

    #[track_caller]
    fn with_storage(&self, program: &str, args: &[&dyn AsRef<OsStr>]) -> Vec<u8> {
        let storage = self.storage();
        let mut all: Vec<&dyn AsRef<OsStr>> =
            storage.iter().map(|s| s as &dyn AsRef<OsStr>).collect();
        all.extend(args);
        run(program, &all)
    }

    #[track_caller]
    fn buildah(&self, args: &[&dyn AsRef<OsStr>]) -> Vec<u8> {
        self.with_storage("buildah", args)
    }

    /// Saves the image with podman or skopeo under `name`.
    #[track_caller]
    fn podman_save(&self, name: &str, format: &str) -> PathBuf {
        let out = self.path(name);
        self.with_storage(
            "podman",
            &[
                &"save",
                &"-q",
                &"--format",
                &format,
                &"-o",
                &out,
                &"localhost/app:1",
            ],
        );
        out
    }

    #[track_caller]
    fn skopeo(&self, name: &str, transport: &str, suffix: &str, extra: &[&str]) -> PathBuf {
        let out = self.path(name);
        let storage = self.storage();
        let from = format!(
            "containers-storage:[vfs@{}+{}]localhost/app:1",
            storage[1], storage[3]
        );
        let to = format!("{transport}:{}{suffix}", out.display());
        let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"copy", &"-q"];
        args.extend(extra.iter().map(|a| a as &dyn AsRef<OsStr>));
        args.extend([&from as &dyn AsRef<OsStr>, &to]);
        run("skopeo", &args);
        out
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        // vfs containers leave nothing mounted; storage itself goes with the directory.
        let _ = std::process::Command::new("buildah")
            .args(self.storage())
            .args(["rm", "-a"])
            .output();
    }
}

#[derive(Default)]
struct Watch(Mutex<Vec<(usize, LayerOutcome)>>);

impl ImportProgress for Watch {
    fn layer_done(&self, index: usize, outcome: LayerOutcome) {
        self.0.lock().unwrap().push((index, outcome));
    }
}

#[track_caller]
fn import_from(store: &Store, source: &str) -> ImportedImage {
    let source = Source::parse(OsStr::new(source)).unwrap();
    let images = import(store, &source, &ImportOptions::default(), &());
    let mut images = images.unwrap_or_else(|e| panic!("{source:?}: {e}"));
    assert_eq!(images.len(), 1, "{source:?}");
    images.remove(0)
}

#[track_caller]
fn check(store: &Store, image: &ImportedImage, want: Option<&ImportedImage>, what: &str) {
    for layer in &image.layers {
        assert_eq!(Digest::of(&layer_tar(store, layer)), *layer, "{what}");
    }
    if let Some(want) = want {
        assert_eq!(image.layers, want.layers, "{what}");
        assert_eq!(image.config, want.config, "{what}");
    }
    let record = store.image(&image.manifest).unwrap().expect(what);
    assert_eq!(record.layers, image.layers);
    for name in &image.names {
        assert_eq!(
            store.resolve_name(name).unwrap(),
            Some(image.manifest),
            "{what}"
        );
    }
}

#[test]
fn every_form_brings_the_same_layers() {
    let built = Built::new();
    let docker = built.podman_save("podman-docker", "docker-archive");
    let oci = built.podman_save("podman-oci", "oci-archive");
    let sk_docker = built.skopeo("skopeo-docker", "docker-archive", ":localhost/app:1", &[]);
    let sk_oci = built.skopeo("skopeo-oci", "oci-archive", ":localhost/app:1", &[]);
    let layout = built.skopeo("skopeo-layout", "oci", ":v1", &[]);
    let zstd = built.skopeo(
        "skopeo-zstd",
        "oci-archive",
        ":v1",
        &["--dest-compress-format", "zstd", "--dest-compress"],
    );
    let schema2 = built.skopeo("skopeo-v2s2", "oci", ":v1", &["--format", "oci"]);

    let flat = built.skopeo("skopeo-dir", "dir", "", &[]);
    let flat_v2s2 = built.skopeo("skopeo-dir-v2s2", "dir", "", &["--format", "v2s2"]);

    let mut reference: Option<ImportedImage> = None;
    for (transport, path) in [
        ("", &docker),
        ("docker-archive:", &docker),
        ("", &sk_docker),
        ("", &oci),
        ("oci-archive:", &oci),
        ("", &sk_oci),
        ("", &layout),
        ("oci:", &layout),
        ("", &zstd),
        ("", &schema2),
        ("", &flat),
        ("", &flat_v2s2),
    ] {
        let what = format!("{transport}{}", path.display());
        let dir = temp();
        let store = store(dir.path());
        let image = import_from(&store, &what);
        // docker-archive has its own config format (and so another image ID).
        let same_config = reference.as_ref().filter(|r| r.config == image.config);
        check(&store, &image, same_config, &what);
        match &reference {
            Some(reference) => assert_eq!(image.layers, reference.layers, "{what}"),
            None => reference = Some(image.clone()),
        }
        // Through a pipe the same image must come.
        if path.is_file() {
            for compress in ["", "gzip", "zstd"] {
                let bytes = match compress {
                    "" => fs::read(path).unwrap(),
                    program => run(program, &[&"-c", path]),
                };
                let dir = temp();
                let store = image_support::store(dir.path());
                let stream = Box::new(std::io::Cursor::new(bytes));
                let images = import_stream(&store, stream, &ImportOptions::default(), &());
                let images = images.unwrap_or_else(|e| panic!("{what} through {compress}: {e}"));
                assert_eq!(
                    images,
                    std::slice::from_ref(&image),
                    "{what} through {compress}"
                );
                check(&store, &images[0], Some(&image), &what);
            }
        }
        // A second time, no layer is read.
        let watch = Watch::default();
        let again = import(
            &store,
            &Source::parse(OsStr::new(&what)).unwrap(),
            &ImportOptions::default(),
            &watch,
        );
        assert_eq!(again.unwrap(), [image]);
        let seen = watch.0.into_inner().unwrap();
        assert!(
            seen.iter()
                .all(|(_, outcome)| *outcome == LayerOutcome::Present),
            "{what}: {seen:?}"
        );
    }
    assert_eq!(reference.unwrap().layers.len(), 2);
}

#[test]
fn umoci_layouts_are_read() {
    let dir = temp();
    let layout = dir.path().join("layout");
    let image = format!("{}:v1", layout.display());
    run("umoci", &[&"init", &"--layout", &layout]);
    run("umoci", &[&"new", &"--image", &image]);
    let bundle = dir.path().join("bundle");
    run("umoci", &[&"unpack", &"--image", &image, &bundle]);
    make_rootfs(&bundle.join("rootfs"), true);
    let want = host_tree(&bundle.join("rootfs"));
    run(
        "umoci",
        &[&"repack", &"--refresh-bundle", &"--image", &image, &bundle],
    );
    fs::remove_file(bundle.join("rootfs/etc/passwd")).unwrap();
    fs::remove_dir(bundle.join("rootfs/empty")).unwrap();
    run("umoci", &[&"repack", &"--image", &image, &bundle]);

    let store = store(dir.path());
    let imported = import_from(&store, &format!("oci:{image}"));
    check(&store, &imported, None, "umoci");
    assert_eq!(imported.layers.len(), 2);
    let mut first = stored_tree(&store, &imported.layers[0]);
    // umoci does not pack the root itself.
    first.insert("".into(), want[OsStr::new("")].clone());
    // It rounds times to whole seconds, up or down.
    let untimed = |mut tree: Tree| {
        tree.values_mut().for_each(|seen| seen.mtime = (0, 0));
        tree
    };
    assert_same(&untimed(want), &untimed(first), "umoci");
    let second = stored_tree(&store, &imported.layers[1]);
    assert!(
        second.contains_key(OsStr::new("etc/passwd(whiteout)")),
        "{second:#?}"
    );
    assert!(
        second.contains_key(OsStr::new("empty(whiteout)")),
        "{second:#?}"
    );
}

/// Two imports of one image at the same time: both succeed, everything is stored once.
#[test]
fn imports_at_once() {
    let dir = temp();
    let store = store(dir.path());
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    make_rootfs(&root, true);
    let tar = dir.path().join("root.tar");
    run("tar", &[&"-cf", &tar, &"-C", &root, &"."]);
    let archive = dir.path().join("archive");
    fs::write(
        &archive,
        docker_archive(&[fs::read(&tar).unwrap(), RawTar::new().file("x", b"x").end()]),
    )
    .unwrap();
    let source = Source::parse(archive.as_os_str()).unwrap();
    let images: Vec<_> = std::thread::scope(|scope| {
        let once = || import(&store, &source, &ImportOptions::default(), &()).unwrap();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(once)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(store.images().unwrap().len(), 1);
    assert_eq!(store.layers().unwrap().len(), 2);
    check(&store, &images[0][0], None, "at once");
}

/// A store on a file system of a few megabytes: the import fails with a clear word, what was there stays, and a small
/// image still fits.
#[test]
fn a_full_file_system() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            run("umount", &[&self.0]);
        }
    }
    let dir = temp();
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    run(
        "mount",
        &[&"-t", &"tmpfs", &"-o", &"size=6m", &"ovl-test", &small],
    );
    let mounted = Mounted(small.clone());
    {
        let store = store(&small);
        let mut noise = vec![0; 24 << 20];
        let mut state = 1u64;
        for bytes in noise.chunks_mut(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            bytes.copy_from_slice(&(state ^ state >> 29).to_le_bytes());
        }
        let archive = dir.path().join("archive");
        fs::write(
            &archive,
            docker_archive(&[RawTar::new().file("noise", &noise).end()]),
        )
        .unwrap();
        let source = Source::parse(archive.as_os_str()).unwrap();
        let error = import(&store, &source, &ImportOptions::default(), &()).unwrap_err();
        assert!(error.to_string().contains("no space"), "{error}");
        assert_eq!(error.exit_code(), 1);
        assert!(store.images().unwrap().is_empty());
        assert!(store.layers().unwrap().is_empty());
        fs::write(
            &archive,
            docker_archive(&[RawTar::new().file("x", b"x").end()]),
        )
        .unwrap();
        let image = import_from(&store, archive.to_str().unwrap());
        check(&store, &image, None, "after a full file system");
    }
    drop(mounted);
}
