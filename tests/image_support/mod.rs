//! What the tests of the image room share: a small root file system with odd files in it, other people's tools run so
//! that a missing one fails the test, and a look at a stored tree.
#![allow(dead_code, reason = "each test binary uses a part")]

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
