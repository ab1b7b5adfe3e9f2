//! A second opinion on an archive: Python's tarfile lists its entries, and what they make of a tree is worked out here by the
//! rules of layers.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use ovl::meta::FileKind;
use ovl::store::{Digest, LayerReader, ROOT_INODE, Store};
use serde::Deserialize;

use super::image_support::{content, run};

#[derive(Clone, Deserialize)]
struct Entry {
    name: String,
    link: String,
    kind: String,
    perm: u32,
    uid: u32,
    gid: u32,
    mtime: f64,
    size: u64,
    sha256: String,
    device: Option<(u32, u32)>,
    xattrs: BTreeMap<String, String>,
    acl: bool,
}

/// The entries of one archive, in order.
pub struct Listing(Vec<Entry>);

/// Lists archives, all in one go.
pub fn of(tars: &[PathBuf]) -> Vec<Listing> {
    let script = super::generated("list.py");
    let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&script];
    args.extend(tars.iter().map(|tar| tar as &dyn AsRef<std::ffi::OsStr>));
    let lines = String::from_utf8(run("python3", &args)).unwrap();
    let listings: Vec<Listing> = lines
        .lines()
        .map(|line| Listing(serde_json::from_str(line).unwrap()))
        .collect();
    assert_eq!(listings.len(), tars.len());
    listings
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |b: u8| (b as char).to_digit(16).unwrap() as u8;
    text.as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

/// Without empty components and dots; empty for the root.
fn path(text: &str) -> Vec<u8> {
    let raw = unhex(text);
    let names = raw
        .split(|b| *b == b'/')
        .filter(|name| !matches!(*name, b"" | b"."));
    names.collect::<Vec<_>>().join(&b'/')
}

/// A tree: names stand for nodes, several perhaps for one.
#[derive(Default)]
struct Expected {
    names: BTreeMap<Vec<u8>, usize>,
    /// `None`: a directory that no entry names.
    nodes: Vec<Option<Entry>>,
}

impl Expected {
    fn is_dir(&self, path: &[u8]) -> bool {
        let node = self.names.get(path).map(|node| &self.nodes[*node]);
        node.is_some_and(|node| node.as_ref().is_none_or(|entry| entry.kind == "dir"))
    }

    fn remove(&mut self, path: &[u8]) {
        let below = [path, b"/"].concat();
        self.names
            .retain(|name, _| name != path && !name.starts_with(&below));
    }

    fn put(&mut self, path: Vec<u8>, node: Option<Entry>) {
        self.remove(&path);
        self.nodes.push(node);
        self.names.insert(path, self.nodes.len() - 1);
    }

    fn parents(&mut self, path: &[u8]) {
        for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            if !self.is_dir(&path[..at]) {
                self.put(path[..at].to_vec(), None);
            }
        }
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> bool {
        let Some(node) = self.names.get(target).copied() else {
            return false;
        };
        self.remove(path);
        self.names.insert(path.to_vec(), node);
        true
    }

    fn of(entries: &[Entry]) -> Self {
        let mut tree = Self::default();
        let mut later: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for entry in entries {
            let path = path(&entry.name);
            tree.parents(&path);
            later.retain(|(waiting, _)| *waiting != path);
            match entry.kind.as_str() {
                "dir" if tree.is_dir(&path) => {
                    let node = tree.names[&path];
                    tree.nodes[node] = Some(entry.clone());
                }
                "link" => {
                    let target = self::path(&entry.link);
                    if !tree.link(&path, &target) {
                        later.push((path, target));
                    }
                }
                _ => tree.put(path, Some(entry.clone())),
            }
        }
        for (path, target) in later {
            assert!(
                tree.link(&path, &target),
                "a link to nothing: {}",
                path.escape_ascii()
            );
        }
        tree
    }
}

impl Listing {
    /// Compares the tree these entries make with a stored layer.
    pub fn compare(&self, store: &Store, layer: &Digest, archive: &str) {
        let mut want = Expected::of(&self.0);
        if !want.names.contains_key(&b""[..]) {
            want.put(Vec::new(), None);
        }
        let layer = store.open_layer(layer).unwrap();
        let mut seen = BTreeMap::new();
        walk(&layer, ROOT_INODE, Vec::new(), &mut seen);
        let names = |list: Vec<&Vec<u8>>| {
            list.iter()
                .map(|n| n.escape_ascii().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(seen.keys().collect()),
            names(want.names.keys().collect()),
            "{archive}"
        );
        // One node here is one inode there.
        let mut inodes: HashMap<usize, u64> = HashMap::new();
        for (path, node) in &want.names {
            let what = format!("{archive}: {}", path.escape_ascii());
            let ino = seen[path];
            assert_eq!(
                *inodes.entry(*node).or_insert(ino),
                ino,
                "{what}: another inode"
            );
            if let Some(entry) = &want.nodes[*node] {
                same(entry, &layer, ino, &what);
            }
        }
        let distinct: std::collections::HashSet<u64> = inodes.values().copied().collect();
        assert_eq!(
            distinct.len(),
            inodes.len(),
            "{archive}: one inode for several files"
        );
    }
}

fn walk(layer: &LayerReader, ino: u64, path: Vec<u8>, seen: &mut BTreeMap<Vec<u8>, u64>) {
    seen.insert(path.clone(), ino);
    if !layer.inode(ino).unwrap().kind.is_dir() {
        return;
    }
    for entry in layer.read_dir(ino).unwrap() {
        let mut below = path.clone();
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend_from_slice(entry.name.as_bytes());
        walk(
            layer,
            entry.target.expect("no whiteouts here").0,
            below,
            seen,
        );
    }
}

fn same(want: &Entry, layer: &LayerReader, ino: u64, what: &str) {
    let inode = layer.inode(ino).unwrap();
    let kind = match want.kind.as_str() {
        "file" => FileKind::Regular,
        "dir" => FileKind::Directory,
        "symlink" => FileKind::Symlink,
        "char" => FileKind::CharDevice,
        "block" => FileKind::BlockDevice,
        "fifo" => FileKind::Fifo,
        other => panic!("{what}: kind {other}"),
    };
    assert_eq!(
        (inode.kind, inode.perm, inode.uid, inode.gid),
        (kind, want.perm, want.uid, want.gid),
        "{what}"
    );
    // Python keeps times as floating point numbers.
    let time = inode.mtime.secs as f64 + f64::from(inode.mtime.nanos) / 1e9;
    assert!(
        (time - want.mtime).abs() < 1e-5,
        "{what}: time {time}, not {}",
        want.mtime
    );
    match inode.kind {
        FileKind::Regular => {
            assert_eq!(inode.size, want.size, "{what}");
            let digest = Digest::of(&content(layer, ino));
            assert_eq!(digest.hex(), want.sha256, "{what}: content");
        }
        FileKind::Symlink => {
            let target = layer.symlink_target(ino).unwrap();
            assert_eq!(target.as_bytes(), unhex(&want.link), "{what}: target");
        }
        FileKind::CharDevice | FileKind::BlockDevice => {
            let (major, minor) = want.device.expect("a device's numbers");
            assert_eq!(inode.rdev, libc::makedev(major, minor), "{what}: device");
        }
        _ => {}
    }
    let have = layer.xattrs(ino).unwrap();
    for (name, value) in &want.xattrs {
        let (name, value) = (unhex(name), unhex(value));
        let found = have.iter().find(|(have, _)| have.as_bytes() == name);
        let found = found.map(|(_, value)| value.escape_ascii().to_string());
        assert_eq!(
            found,
            Some(value.escape_ascii().to_string()),
            "{what}: {}",
            name.escape_ascii()
        );
    }
    let acl = have
        .iter()
        .any(|(name, _)| name.as_bytes().starts_with(b"system.posix_acl_"));
    assert!(!want.acl || acl, "{what}: an ACL was lost");
}
