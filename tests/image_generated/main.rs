//! Hundreds of archives by GNU tar, bsdtar, Python's tarfile, umoci and buildah, with every feature of tar that layers are
//! known to have: each comes back bit for bit, and shows the tree that another reader reads out of it. What is no layer, or
//! is none any more, is refused with the reason.

#[path = "../image_support/mod.rs"]
mod image_support;
mod invalid;
mod listing;
mod programs;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use image_support::*;
use ovl::image::{ImportOptions, Source, import, import_stream};
use ovl::store::{Digest, Store};

fn generated(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/image_generated")
        .join(file)
}

/// Imports the tar of a root file system.
fn import_rootfs(store: &Store, tar: &Path) -> ovl::image::Result<Digest> {
    let mut source = OsString::from("rootfs:");
    source.push(tar);
    let images = import(
        store,
        &Source::parse(&source)?,
        &ImportOptions::default(),
        &(),
    )?;
    assert_eq!((images.len(), images[0].layers.len()), (1, 1));
    Ok(images[0].layers[0])
}

/// Imports each of `tars`, proves that it comes back, and compares its tree with what Python reads.
fn round_trip(store: &Store, tars: &[PathBuf]) {
    let listings = listing::of(tars);
    for (tar, listing) in tars.iter().zip(listings) {
        let name = tar.file_name().unwrap().to_string_lossy().into_owned();
        let layer = import_rootfs(store, tar).unwrap_or_else(|e| panic!("{name}: {e}"));
        let raw = fs::read(tar).unwrap();
        assert_eq!(layer, Digest::of(&raw), "{name}");
        assert!(layer_tar(store, &layer) == raw, "{name}: not bit for bit");
        listing.compare(store, &layer, &name);
    }
}

/// Archives of one Python format; `OVL_TAR_SEEDS` makes more.
fn seeds() -> usize {
    std::env::var("OVL_TAR_SEEDS")
        .map_or(30, |text| text.parse().expect("OVL_TAR_SEEDS is a number"))
}

#[test]
fn archives_of_tar_programs() {
    let dir = temp();
    let store = store(dir.path());
    let (trees, out) = (dir.path().join("trees"), dir.path().join("out"));
    fs::create_dir(&trees).unwrap();
    fs::create_dir(&out).unwrap();
    run("sh", &[&generated("trees.sh"), &trees]);
    let tars = programs::pack(&trees, &out);
    assert!(tars.len() >= 100, "only {} archives", tars.len());
    round_trip(&store, &tars);
}

#[test]
fn archives_of_python() {
    let dir = temp();
    let store = store(dir.path());
    let (out, seeds) = (dir.path().join("out"), seeds());
    fs::create_dir(&out).unwrap();
    run(
        "python3",
        &[&generated("make.py"), &out, &seeds.to_string()],
    );
    let mut tars: Vec<PathBuf> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    tars.sort();
    assert_eq!(tars.len(), 3 * seeds);
    round_trip(&store, &tars);
}

/// Layers as umoci and buildah make them, and as podman and skopeo copied them on: every layer's tar comes back, whatever it
/// was compressed with.
#[test]
fn layers_of_image_programs() {
    let dir = temp();
    let trees = dir.path().join("trees");
    fs::create_dir(&trees).unwrap();
    run("sh", &[&generated("trees.sh"), &trees]);
    let mut sources = programs::umoci(&trees, dir.path());
    let made = run(
        "sh",
        &[
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images.sh"),
            &"small",
        ],
    );
    let made = PathBuf::from(String::from_utf8(made).unwrap().trim_end());
    for name in [
        "buildah.docker.tar",
        "podman.oci.tar",
        "podman.docker.tar",
        "skopeo-zstd.oci.tar",
        "umoci.oci",
    ] {
        sources.push(made.join(name));
    }
    let store = store(dir.path());
    let mut layers = 0;
    for source in &sources {
        let name = source.file_name().unwrap().to_string_lossy().into_owned();
        let parsed = Source::parse(source.as_os_str()).unwrap();
        let options = ImportOptions {
            replace_names: true,
            ..ImportOptions::default()
        };
        let images =
            import(&store, &parsed, &options, &()).unwrap_or_else(|e| panic!("{name}: {e}"));
        for layer in images.iter().flat_map(|image| &image.layers) {
            assert_eq!(Digest::of(&layer_tar(&store, layer)), *layer, "{name}");
            layers += 1;
        }
    }
    assert!(layers >= 15, "only {layers} layers in {sources:?}");
}

/// What the programs also write, and no layer can be.
#[test]
fn other_formats_are_refused_by_name() {
    let dir = temp();
    let store = store(dir.path());
    let trees = dir.path().join("trees");
    fs::create_dir(&trees).unwrap();
    run("sh", &[&generated("trees.sh"), &trees]);
    for (name, args, reason) in programs::OTHER_FORMATS {
        let file = dir.path().join(name);
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = args.iter().map(|arg| arg as _).collect();
        let plain = trees.join("plain");
        let rest: [&dyn AsRef<std::ffi::OsStr>; 5] = [&"-cf", &file, &"-C", &plain, &"d"];
        all.extend(rest);
        run("bsdtar", &all);
        let error = import_rootfs(&store, &file).expect_err(name).to_string();
        assert!(error.contains(reason), "{name}: {error}");
    }
    assert!(store.images().unwrap().is_empty() && store.layers().unwrap().is_empty());
}

#[test]
fn invalid_archives_are_refused_with_a_reason() {
    let dir = temp();
    let store = store(dir.path());
    let cases = invalid::cases();
    assert!(cases.len() >= 50, "only {} cases", cases.len());
    let mut wrong = Vec::new();
    for (name, tar, reason) in cases {
        let stream = Box::new(std::io::Cursor::new(tar));
        match import_stream(&store, stream, &ImportOptions::default(), &()) {
            Ok(_) => wrong.push(format!("{name}: taken")),
            Err(error) if !error.to_string().contains(reason) => {
                wrong.push(format!("{name}: {error} (want {reason:?})"));
            }
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(store.images().unwrap().is_empty());
    assert!(store.layers().unwrap().is_empty());
}
