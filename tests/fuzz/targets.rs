//! What each fuzz target does with its input: bytes in, and what must hold whatever they are. The targets of cargo-fuzz and
//! the test that replays the corpus share these functions.
#![allow(dead_code, reason = "each fuzz target uses one of them")]

#[path = "engine.rs"]
mod engine;
#[path = "marks.rs"]
mod marks;
#[path = "model.rs"]
mod model;
#[path = "wire.rs"]
mod wire;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io::{self, Cursor, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ovl::image::parsers::{self, Understood};
use ovl::image::tar::{PaxHeader, TarError, TarReader, parse_global};
use ovl::image::{Compression, ImportOptions, Limits, Reference, import_stream};
use ovl::meta::FileKind;
use ovl::store::{Digest, LayerReader, ROOT_INODE, Store};
use sha2::{Digest as _, Sha256};

pub use engine::engine;
pub use marks::marks;
pub use wire::wire;

/// What is fuzzed.
pub type Target = fn(&[u8]);

/// Every target by name, for the replay.
pub const ALL: [(&str, Target); 11] = [
    ("tar", tar),
    ("pax", pax),
    ("compressed", compressed),
    ("documents", documents),
    ("reference", reference),
    ("options", options),
    ("import", import),
    ("store", store),
    ("marks", marks),
    ("engine", engine),
    ("wire", wire),
];

/// A tar stream: whatever the reader makes of it, the bytes it gives out are those that came in, in their order.
pub fn tar(data: &[u8]) {
    let limits = Limits::default();
    let mut reader = TarReader::new(data, parsers::tar_limits(&limits));
    let mut out = Vec::with_capacity(data.len());
    let read = (|| -> Result<(), TarError> {
        while let Some(entry) = reader.next(&mut |bytes| keep(&mut out, bytes))? {
            let _ = parsers::entry(&entry, &limits);
            let mut data_bytes = 0;
            for extent in entry.extents.iter().flatten() {
                assert!(
                    extent.offset + extent.len <= entry.size,
                    "data beyond the file's end"
                );
                data_bytes += extent.len;
            }
            if entry.extents.is_some() {
                assert_eq!(data_bytes, entry.stored, "a map that does not fit the body");
            }
            // A body may be longer than any input; what there is of it must come.
            reader.body(entry.stored, &mut |bytes| keep(&mut out, bytes))?;
        }
        reader.trailer(&mut |bytes| keep(&mut out, bytes))
    })();
    match read {
        Ok(()) => assert!(out == data, "bytes were lost or changed"),
        Err(_) => assert!(data.starts_with(&out), "bytes were changed"),
    }
}

fn keep(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), TarError> {
    out.extend_from_slice(bytes);
    Ok(())
}

/// The body of a PAX header.
pub fn pax(data: &[u8]) {
    let global = parse_global(data);
    let Ok(header) = PaxHeader::parse(data) else {
        return;
    };
    for (n, (name, _)) in header.xattrs.iter().enumerate() {
        assert!(
            header.xattrs[..n].iter().all(|(other, _)| other != name),
            "an attribute twice"
        );
    }
    for name in [&header.path, &header.link].into_iter().flatten() {
        assert!(!name.contains(&0), "a name with a NUL byte");
    }
    if let Some(time) = header.mtime {
        assert!(time.nanos < 1_000_000_000);
    }
    // Records are records, wherever they stand; only some keys are refused in a global header.
    if let Err(fault) = global {
        let text = fault.to_string();
        let keys = ["path", "linkpath", "size", "GNU.sparse."];
        assert!(keys.iter().any(|key| text.contains(key)), "{text}");
    }
}

/// A compressed stream, and the round trip of any bytes.
pub fn compressed(data: &[u8]) {
    const MAX: u64 = 1 << 20;
    let limits = Limits {
        zstd_window: 8 << 20,
        ..Limits::default()
    };
    if let Ok(Some(plain)) = parsers::decompress(data, &limits, MAX) {
        assert!(plain.len() as u64 <= MAX);
    }
    let gzip = matches!(data, [0x1f, 0x8b, ..]);
    let zlib = gzip.then(|| parsers::decompress(data, &limits, u64::MAX));
    for in_units in [true, false] {
        // It takes what zlib takes, and nothing of the blob is lost on the way.
        match (parsers::apart_and_together(data, in_units), &zlib) {
            (Ok((plain, made)), Some(Ok(Some(expected)))) => {
                assert!(made == data, "another blob");
                assert!(plain == *expected, "other bytes than zlib's");
            }
            (Err(_), Some(Err(_) | Ok(None)) | None) => {}
            (own, zlib) => panic!("{:?} where zlib has {zlib:?}", own.map(|(plain, _)| plain)),
        }
    }
    for compression in [Compression::Gzip, Compression::Zstd] {
        let packed = parsers::compress(data, compression).expect("compressing to memory");
        let plain = parsers::decompress(&packed, &limits, MAX).expect("our own stream");
        assert!(plain.as_deref() == Some(&data[..data.len().min(MAX as usize)]));
        // A stream that lacks its end is an error, not a shorter file.
        if data.len() < MAX as usize {
            assert!(parsers::decompress(&packed[..packed.len() - 1], &limits, MAX).is_err());
        }
    }
}

/// Manifests, indexes, configurations, `manifest.json`.
pub fn documents(data: &[u8]) {
    let value: Option<serde_json::Value> = serde_json::from_slice(data).ok();
    for claimed in [
        "",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ] {
        let Ok(understood) = parsers::document(data, claimed) else {
            continue;
        };
        let value = value.as_ref().expect("what was understood is JSON");
        let has = |key: &str| value.get(key).is_some_and(|v| !v.is_null());
        match understood {
            Understood::Manifest { layers } => {
                assert!(!has("manifests") && !claimed.contains("index"), "ambiguous");
                assert_eq!(value["layers"].as_array().map(Vec::len), Some(layers));
            }
            Understood::Index { manifests } => {
                assert!(!has("layers") && !has("config"), "ambiguous");
                assert!(!claimed.contains("manifest."), "not what was announced");
                assert_eq!(value["manifests"].as_array().map(Vec::len), Some(manifests));
            }
        }
    }
    if parsers::configuration(data).is_ok() || parsers::saved_images(data).is_ok() {
        assert!(value.is_some(), "what was understood is JSON");
    }
}

/// A name of an image: what is taken means the same when it is written out, in full or in short.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(name) = text.parse::<Reference>() else {
        return;
    };
    assert_eq!(
        name.to_string().parse().as_ref(),
        Ok(&name),
        "{text:?} in full"
    );
    assert_eq!(
        name.familiar().parse().as_ref(),
        Ok(&name),
        "{text:?} in short"
    );
    assert!(name.tag().is_some() || name.digest().is_some());
    assert!(!name.repository().contains(".."), "{text:?}");
}

/// The words after `-o`: one line is one word.
pub fn options(data: &[u8]) {
    let words: Vec<_> = data
        .split(|byte| *byte == b'\n')
        .map(|word| OsStr::from_bytes(word).to_owned())
        .collect();
    let one = ovl::mount::options::parse(&words);
    let again = ovl::mount::options::parse(&words);
    match (one, again) {
        (Ok(one), Ok(again)) => assert_eq!(one.options, again.options),
        (Err(one), Err(again)) => assert_eq!(one.to_string(), again.to_string()),
        _ => panic!("the same words mean different things"),
    }
}

/// Where a target may write: in memory if there is such a place.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("ovl-fuzz-");
    if memory.is_dir() {
        builder.tempdir_in(memory)
    } else {
        builder.tempdir()
    }
    .expect("a scratch directory")
}

/// A store that many inputs are imported into, until it is large.
struct Imports {
    dir: tempfile::TempDir,
    store: Store,
    imports: u32,
}

impl Imports {
    fn new() -> Self {
        let dir = scratch();
        let store = Store::open(&dir.path().join("store")).expect("a new store");
        Self {
            dir,
            store,
            imports: 0,
        }
    }
}

/// Imports done with one store.
const IMPORTS: u32 = 500;

thread_local! {
    static TARGET: RefCell<Option<Imports>> = const { RefCell::new(None) };
}

/// An archive of images, or the tar of a root file system, plain or compressed: imported whole or not at all, and each layer
/// comes back bit for bit.
pub fn import(data: &[u8]) {
    TARGET.with_borrow_mut(|slot| {
        if slot
            .as_ref()
            .is_some_and(|target| target.imports >= IMPORTS)
        {
            *slot = None;
        }
        let target = slot.get_or_insert_with(Imports::new);
        target.imports += 1;
        import_into(&target.store, data);
    });
}

fn import_into(store: &Store, data: &[u8]) {
    let options = ImportOptions {
        limits: Limits {
            layer_bytes: 1 << 20,
            entries: 500,
            zstd_window: 1 << 20,
            ..Limits::default()
        },
        replace_names: true,
        ..ImportOptions::default()
    };
    let before = store.images().expect("the store's images").len();
    let stream = Box::new(Cursor::new(data.to_vec()));
    match import_stream(store, stream, &options, &()) {
        Err(_) => {
            let after = store.images().expect("the store's images").len();
            assert_eq!(before, after, "a failed import recorded an image");
        }
        Ok(images) => {
            for image in images {
                let record = store.image(&image.manifest).expect("the store answers");
                let record = record.expect("what was imported is there");
                assert_eq!(record.layers, image.layers);
                for layer in &image.layers {
                    let mut hash = Hash(Sha256::new());
                    store
                        .write_layer_tar(layer, &mut hash)
                        .expect("the layer comes back");
                    assert_eq!(Digest::from_bytes(hash.0.finalize().into()), *layer);
                    walk(&store.open_layer(layer).expect("the layer opens"), true);
                }
            }
        }
    }
}

struct Hash(Sha256);

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Goes through a tree and reads the beginning of each file. `sound`: nothing may fail.
fn walk(layer: &LayerReader, sound: bool) {
    let mut ahead = vec![ROOT_INODE];
    let mut budget = 2000;
    let mut buffer = [0; 4096];
    while let (Some(ino), 1..) = (ahead.pop(), budget) {
        budget -= 1;
        let inode = match layer.inode(ino) {
            Ok(inode) => inode,
            Err(error) => {
                assert!(!sound, "{error}");
                continue;
            }
        };
        let read = match inode.kind {
            FileKind::Directory => layer.read_dir(ino).map(|list| {
                for entry in list {
                    let name = entry.name.as_bytes();
                    assert!(!name.is_empty() && name.len() <= 255, "an impossible name");
                    assert!(
                        !name.contains(&b'/')
                            && !name.contains(&0)
                            && name != b"."
                            && name != b".."
                    );
                    ahead.extend(entry.target.map(|(ino, _)| ino));
                }
            }),
            FileKind::Symlink => layer.symlink_target(ino).map(|_| ()),
            FileKind::Regular => layer.open_content(inode.content).and_then(|content| {
                content.read_at(0, &mut buffer)?;
                content.read_at(content.size().saturating_sub(100), &mut buffer)?;
                content.next_data(1)?;
                content.next_hole(1).map(|_| ())
            }),
            _ => Ok(()),
        };
        let read = read.and_then(|()| layer.xattrs(ino).map(|_| ()));
        if let Err(error) = read {
            assert!(!sound, "{error}");
        }
    }
}

/// The file of a store: what is read from it is checked, never believed. Input that is no SQLite file is a list of changes to a
/// sound one: three bytes of offset, one of length, and as many bytes.
pub fn store(data: &[u8]) {
    const SOUND: &[u8] = include_bytes!("../../fixtures/store/v1.db");
    let file = if data.starts_with(b"SQLite format 3\0") {
        data.to_vec()
    } else {
        let mut file = SOUND.to_vec();
        let mut rest = data;
        while let [a, b, c, len, after @ ..] = rest {
            let at = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            let (patch, next) = after.split_at(usize::from(*len).min(after.len()));
            let at = at % file.len();
            let fits = patch.len().min(file.len() - at);
            file[at..at + fits].copy_from_slice(&patch[..fits]);
            rest = next;
        }
        file
    };
    let dir = scratch();
    let root = dir.path().join("store");
    write_store(&root, &file);
    let Ok(Some(store)) = Store::open_existing(&root) else {
        return;
    };
    let layers = store.layers().unwrap_or_default();
    for info in layers.iter().take(4) {
        if let Ok(layer) = store.open_layer(&info.diff_id) {
            walk(&layer, false);
        }
        let mut out = Bounded(1 << 22);
        let _ = store.write_layer_tar(&info.diff_id, &mut out);
    }
    for image in store.images().unwrap_or_default().iter().take(4) {
        if let Ok(Some(bytes)) = store.document(&image.config) {
            assert_eq!(Digest::of(&bytes), image.config);
        }
        for name in &image.names {
            let _ = store.resolve_name(name);
        }
    }
    let _ = store.usage();
    let _ = store.gc();
}

fn write_store(root: &PathBuf, file: &[u8]) {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(root)
        .expect("a directory");
    let mut options = std::fs::OpenOptions::new();
    let opened = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(root.join("store.db"));
    opened
        .and_then(|mut out| out.write_all(file))
        .expect("a file");
}

/// Takes so many bytes: a crafted recipe may have no end.
struct Bounded(usize);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self
            .0
            .checked_sub(bytes.len())
            .ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
