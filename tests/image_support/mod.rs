//! What the tests of the image room share: a small root file system with odd files in it, other people's tools run so
//! that a missing one fails the test, and a look at a stored tree.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod fixture;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ovl::meta::FileKind;
use ovl::store::{Digest, LayerReader, ROOT_INODE, Store};

/// Runs a program that must be there and must succeed; gives its output.
#[track_caller]
pub fn run(program: &str, args: &[&dyn AsRef<OsStr>]) -> Vec<u8> {
    let mut command = Command::new(program);
    for arg in args {
        command.arg(arg);
    }
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("this test needs the program {program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {:?} failed:\n{}{}",
        args.iter().map(|a| a.as_ref()).collect::<Vec<_>>(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

pub fn temp() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("ovl-image-")
        .tempdir()
        .unwrap()
}

pub fn store(dir: &Path) -> Store {
    Store::open(&dir.join("store")).unwrap()
}

/// A small root file system. `odd` adds what not every tar dialect can say.
pub fn make_rootfs(root: &Path, odd: bool) {
    let dir = |p: &str| fs::create_dir_all(root.join(p)).unwrap();
    for d in ["bin", "etc/deep/er", "usr/lib", "tmp", "empty"] {
        dir(d);
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("this test needs busybox-static");
    symlink("busybox", root.join("bin/sh")).unwrap();
    symlink("/usr/lib", root.join("lib")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/empty"), "").unwrap();
    fs::hard_link(root.join("etc/passwd"), root.join("etc/passwd.link")).unwrap();
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(root.join("bin/su"), "x").unwrap();
    fs::set_permissions(root.join("bin/su"), fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(root.join("etc/deep"), Some(1000), Some(1001)).unwrap();
    let data: Vec<u8> = (0..300_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(root.join("usr/lib/data"), &data).unwrap();
    run("mkfifo", &[&root.join("tmp/fifo")]);
    run("mknod", &[&root.join("tmp/null"), &"c", &"1", &"3"]);
    run("mknod", &[&root.join("tmp/block"), &"b", &"259", &"7"]);
    if odd {
        let long = format!("etc/{}/{}", "d".repeat(120), "f".repeat(200));
        fs::create_dir(root.join(&long).parent().unwrap()).unwrap();
        fs::write(root.join(&long), "long name").unwrap();
        symlink("t".repeat(180), root.join("etc/long-target")).unwrap();
        fs::write(
            root.join(OsStr::from_bytes(b"etc/not-utf8-\xff\xfe")),
            "odd",
        )
        .unwrap();
        fs::write(root.join("etc/new\nline = %41 \"'"), "odd").unwrap();
        let sparse = fs::File::create(root.join("usr/lib/sparse")).unwrap();
        sparse.set_len(9_000_000).unwrap();
        sparse.write_all_at(b"middle", 1_234_567).unwrap();
        sparse.write_all_at(&[7; 5000], 5_000_000).unwrap();
        let hole = fs::File::create(root.join("usr/lib/hole")).unwrap();
        hole.set_len(1_000_000).unwrap();
        run(
            "touch",
            &[
                &"-d",
                &"1969-12-31 12:00:00.25 UTC",
                &root.join("etc/empty"),
            ],
        );
    }
}

/// One path as it is seen, for comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: FileKind,
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub size: u64,
    pub nlink: u32,
    pub rdev: u64,
    /// Target of a symlink, or digest of a file.
    pub content: String,
}

pub type Tree = BTreeMap<OsString, Seen>;

/// A directory of this machine.
pub fn host_tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        let meta = entry.path().symlink_metadata().unwrap();
        let kind = FileKind::from_mode(meta.mode()).unwrap();
        let content = match kind {
            FileKind::Regular => Digest::of(&fs::read(entry.path()).unwrap()).to_string(),
            FileKind::Symlink => format!("{:?}", fs::read_link(entry.path()).unwrap()),
            _ => String::new(),
        };
        let dir = kind.is_dir();
        let seen = Seen {
            kind,
            perm: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), meta.mtime_nsec() as u32),
            size: if dir { 0 } else { meta.size() },
            nlink: if dir { 0 } else { meta.nlink() as u32 },
            rdev: if kind.is_device() { meta.rdev() } else { 0 },
            content,
        };
        tree.insert(
            entry
                .path()
                .strip_prefix(root)
                .unwrap()
                .as_os_str()
                .to_owned(),
            seen,
        );
    }
    tree
}

/// A layer of the store; whiteouts as paths with "(whiteout)" after them.
pub fn stored_tree(store: &Store, layer: &Digest) -> Tree {
    let reader = store.open_layer(layer).unwrap();
    let mut tree = Tree::new();
    walk(&reader, ROOT_INODE, PathBuf::new(), &mut tree);
    tree
}

fn walk(reader: &LayerReader, ino: u64, path: PathBuf, tree: &mut Tree) {
    let inode = reader.inode(ino).unwrap();
    let dir = inode.kind.is_dir();
    let content = match inode.kind {
        FileKind::Regular => Digest::of(&content(reader, ino)).to_string(),
        FileKind::Symlink => format!("{:?}", reader.symlink_target(ino).unwrap()),
        _ => String::new(),
    };
    let seen = Seen {
        kind: inode.kind,
        perm: inode.perm,
        uid: inode.uid,
        gid: inode.gid,
        mtime: (inode.mtime.secs, inode.mtime.nanos),
        size: if dir { 0 } else { inode.size },
        nlink: if dir { 0 } else { inode.nlink },
        rdev: inode.rdev,
        content: if inode.opaque {
            "(opaque)".to_owned()
        } else {
            content
        },
    };
    tree.insert(path.as_os_str().to_owned(), seen.clone());
    if !dir {
        return;
    }
    for entry in reader.read_dir(ino).unwrap() {
        let path = path.join(&entry.name);
        match entry.target {
            Some((ino, _)) => walk(reader, ino, path, tree),
            None => {
                let mut name = path.into_os_string();
                name.push("(whiteout)");
                tree.insert(name, seen.clone());
            }
        }
    }
}

/// Bytes of a stored file.
pub fn content(reader: &LayerReader, ino: u64) -> Vec<u8> {
    let open = reader
        .open_content(reader.inode(ino).unwrap().content)
        .unwrap();
    let mut bytes = vec![0; open.size() as usize];
    assert_eq!(open.read_at(0, &mut bytes).unwrap(), bytes.len());
    bytes
}

/// The layer's tar as the store gives it back.
pub fn layer_tar(store: &Store, layer: &Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.write_layer_tar(layer, &mut bytes).unwrap();
    bytes
}

/// Compares two trees and names the first difference.
#[track_caller]
pub fn assert_same(want: &Tree, got: &Tree, what: &str) {
    for (path, want) in want {
        assert_eq!(got.get(path), Some(want), "{what}: {path:?}");
    }
    let extra: Vec<_> = got
        .keys()
        .filter(|path| !want.contains_key(*path))
        .collect();
    assert!(extra.is_empty(), "{what}: {extra:?} should not be there");
}

/// Builds tars byte by byte, well-formed or not.
#[derive(Clone, Default)]
pub struct RawTar {
    pub bytes: Vec<u8>,
}

impl RawTar {
    pub fn new() -> Self {
        Self::default()
    }

    /// A ustar header with a right checksum. `size` is what the size field says, whatever follows.
    pub fn header(mut self, name: &[u8], typeflag: u8, size: u64, link: &[u8]) -> Self {
        let block = header(name, typeflag, size, link);
        self.bytes.extend_from_slice(&block);
        self
    }

    /// Body bytes and padding.
    pub fn body(mut self, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn raw(mut self, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(data);
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.header(name.as_bytes(), b'0', data.len() as u64, b"")
            .body(data)
    }

    pub fn dir(self, name: &str) -> Self {
        self.header(name.as_bytes(), b'5', 0, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.header(name.as_bytes(), b'2', 0, target.as_bytes())
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.header(name.as_bytes(), b'1', 0, target.as_bytes())
    }

    /// A PAX header of these records (`key=value`, lengths are added).
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| pax_record(key, value))
            .collect();
        self.extension(b'x', &body)
    }

    /// An extension header with this body.
    pub fn extension(self, typeflag: u8, body: &[u8]) -> Self {
        self.header(b"extension", typeflag, body.len() as u64, b"")
            .body(body)
    }

    /// Two zero blocks.
    pub fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes
    }
}

pub fn header(name: &[u8], typeflag: u8, size: u64, link: &[u8]) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000755\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000017\0");
    block[156] = typeflag;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    checksum(&mut block);
    block
}

pub fn checksum(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let len = (rest + 1..)
        .find(|len| rest + len.to_string().len() == *len)
        .unwrap();
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A docker-archive of these layers, named `localhost/test:1`.
pub fn docker_archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::of(layer).to_string())
        .collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": ids },
    })
    .to_string();
    docker_archive_with(layers, &config)
}

pub fn docker_archive_with(layers: &[Vec<u8>], config: &str) -> Vec<u8> {
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let mut tar = RawTar::new().file(&config_name, config.as_bytes());
    let mut names = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let name = format!("{i}/layer.tar");
        tar = tar.file(&name, layer);
        names.push(name);
    }
    let manifest = serde_json::json!([
        { "Config": config_name, "RepoTags": ["localhost/test:1"], "Layers": names }
    ]);
    tar.file("manifest.json", manifest.to_string().as_bytes())
        .end()
}

/// Blobs of an OCI archive by hand: documents and layers, and an index over `entries`.
pub struct OciBlobs {
    pub tar: RawTar,
}

impl OciBlobs {
    pub fn new() -> Self {
        Self {
            tar: RawTar::new().file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        }
    }

    /// Adds a blob and gives its descriptor.
    pub fn add(&mut self, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        let digest = Digest::of(bytes);
        let tar = std::mem::take(&mut self.tar);
        self.tar = tar.file(&format!("blobs/sha256/{}", digest.hex()), bytes);
        serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    }

    pub fn finish(self, index: &serde_json::Value) -> Vec<u8> {
        self.tar
            .file("index.json", index.to_string().as_bytes())
            .end()
    }
}

/// How a run of `ovl` went.
pub struct Peak {
    pub code: i32,
    pub stderr: String,
    /// Largest resident size the process ever had, MiB.
    pub megabytes: u64,
}

/// Runs `ovl` in `dir` on the store at `root`, and measures its memory.
pub fn peak_memory(root: &Path, dir: &Path, args: &[&str]) -> Peak {
    // Linux tells a parent of the largest of its children (getrusage(2)), so each run has a parent of its own.
    const PARENT: &str = "import resource, subprocess, sys\n\
        run = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)\n\
        print(run.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)";
    let output = Command::new("python3")
        .args(["-c", PARENT, env!("CARGO_BIN_EXE_ovl")])
        .args(args)
        .current_dir(dir)
        .env("OVL_ROOT", root)
        .output()
        .unwrap_or_else(|e| panic!("this test needs python3: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let numbers = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Vec<i64> = numbers
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    let [code, kilobytes] = numbers[..] else {
        panic!("python3 failed: {stderr}");
    };
    Peak {
        code: code as i32,
        stderr,
        megabytes: kilobytes as u64 >> 10,
    }
}
