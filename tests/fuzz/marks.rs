//! Layers that somebody else wrote: names and xattrs that mean something to an overlay (whiteouts, opaque marks, redirects,
//! metacopy, origins, AUFS forms, kept owners), in every spelling, with any value. Whatever they are, a list and a look-up say
//! the same, nothing outside the layers is reached, and where nothing points elsewhere the tree is what a plain merge gives.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ovl::layer::whiteout::{self, aufs_mark, aufs_name};
use ovl::layer::{DirLayer, Layer, Permissions, override_stat};
use ovl::meta::{Attr, FileKind, Timestamp};
use ovl::overlay::{
    Caller, NodeId, Options, Overlay, Redirect, RenameFlags, SetAttr, Stack, UpperDirs, XattrSet,
};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use rustix::io::Errno;

const NAMES: [&str; 12] = [
    "a",
    "d",
    "e",
    "x",
    ".wh.a",
    ".wh.d",
    ".wh.e",
    ".wh..wh.opq",
    ".wh..wh..opq",
    ".wh.",
    ".wh..wh.plnk",
    "b",
];
/// Where objects are put.
const PLACES: [&str; 5] = ["", "d", "d/e", "e", "d/e/d"];
const PREFIXES: [&str; 3] = ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."];
const MARKS: [&str; 12] = [
    "opaque",
    "redirect",
    "metacopy",
    "origin",
    "ovl.origin",
    "whiteout",
    "nlink",
    "impure",
    "overlay.opaque",
    "ovl.device",
    "upper",
    "uuid",
];
const KEPT: [&str; 3] = [
    "user.containers.override_stat",
    "user.fuseoverlayfs.override_stat",
    "security.fuseoverlayfs.override_stat",
];
const VALUES: [&[u8]; 16] = [
    b"y",
    b"x",
    b"n",
    b"",
    b"/",
    b"/d",
    b"/d/e",
    b"/e",
    b"d",
    b"e",
    b"../canary",
    b"/../canary",
    b"d/e",
    b".",
    b"0:0:0644",
    b"7:8:20644:char-0-0",
];
const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};
const CANARY: &[u8] = b"what lies beside the layers";
/// Objects and marks taken from one input, objects looked at, and changes made afterwards.
const MOST: usize = 60;
const BUDGET: usize = 600;
const CHANGES: usize = 30;

/// Directories that are filled anew for each input. They stay, since opening a layer clones a mount, which the kernel takes its
/// time to give up.
struct Site {
    scratch: tempfile::TempDir,
    dirs: [PathBuf; 4],
    /// Of the first three directories: with permissions in the inode, and in an xattr.
    open: Vec<[Arc<dyn Layer>; 2]>,
}

impl Site {
    fn new() -> Self {
        let scratch = super::scratch();
        fs::write(scratch.path().join("canary"), CANARY).expect("a file");
        let dirs = ["lower0", "lower1", "upper", "work"].map(|name| scratch.path().join(name));
        for dir in &dirs {
            fs::create_dir(dir).expect("a directory");
        }
        let open = |dir: &PathBuf| {
            [Permissions::Inode, Permissions::UserXattr].map(|permissions| {
                let layer = DirLayer::open_with(dir, permissions).expect("a lower");
                Arc::new(layer) as Arc<dyn Layer>
            })
        };
        Self {
            open: dirs[..3].iter().map(open).collect(),
            scratch,
            dirs,
        }
    }

    /// Takes everything away again.
    fn clear(&self) {
        for dir in &self.dirs {
            for entry in fs::read_dir(dir).expect("a layer") {
                let path = entry.expect("an entry").path();
                let is_dir = fs::symlink_metadata(&path).expect("an object").is_dir();
                let removed = if is_dir {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                removed.expect("an empty layer");
            }
            let mut names = vec![0; 65536];
            let len = rustix::fs::listxattr(dir, names.as_mut_slice()).expect("a list");
            for name in names[..len]
                .split(|b| *b == 0)
                .filter(|name| !name.is_empty())
            {
                rustix::fs::removexattr(dir, OsStr::from_bytes(name)).expect("a mark gone");
            }
        }
    }
}

thread_local! {
    static SITE: std::cell::RefCell<Option<Site>> = const { std::cell::RefCell::new(None) };
}

/// Layers and marks made as the input says, and some changes.
pub fn marks(data: &[u8]) {
    pure(data);
    let Some((&setting, rest)) = data.split_first() else {
        return;
    };
    SITE.with_borrow_mut(|slot| {
        // Not one that a failure was found in.
        let site = slot.take().unwrap_or_else(Site::new);
        merge(&site, setting, rest);
        site.clear();
        *slot = Some(site);
    });
}

fn merge(site: &Site, setting: u8, rest: &[u8]) {
    let dirs = &site.dirs;
    let mut input = Input(rest);
    for _ in 0..MOST {
        if !input.put(&dirs[..3]) {
            break;
        }
    }
    let options = Options {
        no_fsync: true,
        userxattr: Some(setting & 1 != 0),
        metacopy: setting & 2 != 0,
        redirect: [
            Redirect::Upper,
            Redirect::All,
            Redirect::Off,
            Redirect::Ignore,
        ][usize::from(setting >> 2 & 3)],
        permissions: [Permissions::Inode, Permissions::UserXattr][usize::from(setting >> 4 & 1)],
        ..Options::default()
    };
    // The upper as one more lower, which is read in every spelling; or as an upper.
    let as_upper = setting & 0x20 != 0;
    let below = if as_upper { &dirs[..2] } else { &dirs[..3] };
    let layers = site.open[..below.len()].iter().rev();
    let layer = |open: &[Arc<dyn Layer>; 2]| Arc::clone(&open[usize::from(setting >> 4 & 1)]);
    let stack = Stack {
        lowers: layers.map(layer).collect(),
        upper: as_upper.then(|| UpperDirs {
            upper: dirs[2].clone(),
            work: dirs[3].clone(),
        }),
    };
    let Ok(overlay) = Overlay::new(stack, &options) else {
        return;
    };
    let plain = !as_upper && options.redirect != Redirect::All;
    if plain && options.permissions == Permissions::Inode {
        let merged: Vec<_> = below.iter().rev().cloned().collect();
        compare(&overlay, NodeId::ROOT, &merged, dirs);
    }
    let mut seen = walk(&overlay);
    if as_upper {
        for _ in 0..CHANGES {
            if input.0.is_empty() {
                break;
            }
            input.change(&overlay, &seen);
            seen = walk(&overlay);
        }
        let _ = overlay.changes(&mut |_| Ok(()));
    }
    overlay.shutdown();
    let beside = site.scratch.path();
    let canary = fs::read(beside.join("canary")).expect("the canary");
    assert!(canary == CANARY, "what lies outside was changed");
    assert_eq!(fs::read_dir(beside).expect("ours").count(), 5);
}

/// What needs no file system: names, and values of kept owners.
fn pure(data: &[u8]) {
    let name = OsStr::from_bytes(data);
    match aufs_name(name) {
        whiteout::Aufs::Ordinary => assert!(!data.starts_with(b".wh.")),
        whiteout::Aufs::Whiteout(hidden) => {
            assert!(!whiteout::is_aufs_name(hidden), "a mark that hides a mark");
            let mark = aufs_mark(hidden);
            assert!(mark.as_deref() == Some(name) || data.len() > 255);
        }
        whiteout::Aufs::Internal => assert!(data.starts_with(b".wh.")),
    }
    let time = Timestamp::default();
    let mut attr = Attr {
        kind: FileKind::Regular,
        perm: 0,
        uid: 0,
        gid: 0,
        size: 0,
        blocks: 0,
        nlink: 1,
        rdev: 0,
        atime: time,
        mtime: time,
        ctime: time,
        blksize: 4096,
    };
    if Permissions::UserXattr.show(&mut attr, |_| Ok(Some(data.to_vec()))) == Ok(()) {
        let again = override_stat::format(&attr);
        let mut back = attr.clone();
        let read = Permissions::UserXattr.show(&mut back, |_| Ok(Some(again.clone().into_bytes())));
        assert_eq!(read, Ok(()), "{again}");
        assert_eq!(back, attr, "{again}");
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> usize {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                usize::from(*byte)
            }
            None => 0,
        }
    }

    fn pick<'b, T>(&mut self, of: &'b [T]) -> &'b T {
        &of[self.byte() % of.len()]
    }

    fn value(&mut self) -> &'a [u8] {
        match self.byte() {
            n @ 0..128 => VALUES[n % VALUES.len()],
            n => {
                let (value, rest) = self.0.split_at((n - 128).min(self.0.len()));
                self.0 = rest;
                value
            }
        }
    }

    /// One object or mark; `false` at the end of the list. What cannot be is left out.
    fn put(&mut self, layers: &[PathBuf]) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let what = self.byte();
        if what == 0xff {
            return false;
        }
        let layer = self.pick(layers);
        let dir = layer.join(self.pick(&PLACES));
        // A symlink among the parents would lead out of the layer.
        if fs::canonicalize(&dir).ok().as_ref() != Some(&dir) {
            return true;
        }
        let name = match self.byte() {
            n @ 0..240 => OsStr::new(NAMES[n % NAMES.len()]),
            _ => OsStr::from_bytes(self.value()),
        };
        if name.is_empty() || name == "." || name == ".." || name.as_bytes().contains(&b'/') {
            return true;
        }
        let path = dir.join(name);
        let node = |kind, device| {
            let _ = rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), device);
        };
        match what % 12 {
            0 | 1 => drop(fs::create_dir(&path)),
            2 if fs::symlink_metadata(&path).is_err() => drop(fs::write(&path, self.value())),
            3 => node(FileType::RegularFile, 0),
            4 => node(FileType::CharacterDevice, 0),
            5 => node(FileType::CharacterDevice, libc::makedev(1, 3)),
            6 => drop(symlink("../../canary", &path)),
            7 => {
                let _ = fs::hard_link(dir.join(self.pick(&NAMES)), &path);
            }
            8 => {
                let (name, value) = (*self.pick(&KEPT), self.value());
                let _ = rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty());
            }
            _ => {
                let name = format!("{}{}", self.pick(&PREFIXES), self.pick(&MARKS));
                let value = self.value();
                let at = if what & 0x80 != 0 { &dir } else { &path };
                let _ = rustix::fs::lsetxattr(at, name, value, XattrFlags::empty());
            }
        }
        true
    }

    /// One change to the mounted tree. It may fail; what must hold is looked at afterwards.
    fn change(&mut self, overlay: &Overlay, seen: &Seen) {
        let what = self.byte() % 10;
        let (node, _) = *self.pick(&seen.nodes);
        let dir = *self.pick(&seen.dirs);
        let name = OsStr::new(*self.pick(&NAMES));
        let _ = match what {
            0 => overlay.unlink(dir, name),
            1 => overlay.rmdir(dir, name),
            2..=4 => {
                let to = *self.pick(&seen.dirs);
                let flags = RenameFlags {
                    exchange: what == 4,
                    ..RenameFlags::default()
                };
                overlay.rename(dir, name, to, OsStr::new(*self.pick(&NAMES)), flags)
            }
            5 => overlay.link(node, dir, name).map(|_| ()),
            6 => overlay.mkdir(CALLER, dir, name, 0o755, 0).map(|_| ()),
            7 => overlay.write(node, 3, b"written", false).map(|_| ()),
            8 => {
                let set = SetAttr {
                    perm: Some(0o640),
                    ..SetAttr::default()
                };
                overlay.setattr(CALLER, node, &set).map(|_| ())
            }
            _ => {
                let name = format!("{}{}", self.pick(&PREFIXES), self.pick(&MARKS));
                overlay.setxattr(node, OsStr::new(&name), self.value(), XattrSet::Any)
            }
        };
    }
}

/// What a broken layer may be answered with.
fn excused(error: Errno) -> bool {
    matches!(error, Errno::IO | Errno::STALE)
}

struct Seen {
    nodes: Vec<(NodeId, FileKind)>,
    dirs: Vec<NodeId>,
}

/// Looks at everything, within a budget: marks can make a tree that contains itself.
fn walk(overlay: &Overlay) -> Seen {
    let mut seen = Seen {
        nodes: vec![(NodeId::ROOT, FileKind::Directory)],
        dirs: vec![NodeId::ROOT],
    };
    let mut known = BTreeSet::from([NodeId::ROOT]);
    let mut next = 0;
    while next < seen.nodes.len() && next < BUDGET {
        let (node, kind) = seen.nodes[next];
        next += 1;
        look(overlay, node, kind);
        if kind != FileKind::Directory {
            continue;
        }
        let mut names = Vec::new();
        let listed = overlay.read_dir(node, 0, false, &mut |item| {
            if item.name != "." && item.name != ".." {
                names.push((item.name.to_os_string(), item.ino, item.kind));
            }
            true
        });
        if let Err(e) = listed {
            assert!(excused(e), "a list: {e}");
            continue;
        }
        let distinct: BTreeSet<_> = names.iter().map(|(name, ..)| name.clone()).collect();
        assert_eq!(distinct.len(), names.len(), "a name twice");
        for (name, ino, kind) in &names {
            match overlay.lookup(node, name) {
                Ok(Some(entry)) => {
                    assert_eq!(entry.attr.kind, *kind, "{name:?}");
                    assert_eq!(entry.node, *ino, "{name:?}");
                    if known.insert(entry.node) {
                        seen.nodes.push((entry.node, *kind));
                        if kind.is_dir() {
                            seen.dirs.push(entry.node);
                        }
                    }
                }
                Ok(None) => panic!("{name:?} is listed and not there"),
                Err(e) => assert!(excused(e), "{name:?}: {e}"),
            }
        }
        for name in NAMES {
            if !distinct.contains(OsStr::new(name)) {
                match overlay.lookup(node, OsStr::new(name)) {
                    Ok(None) => {}
                    Ok(Some(_)) => panic!("{name} is there and not listed"),
                    Err(e) => assert!(excused(e), "{name}: {e}"),
                }
            }
        }
    }
    seen
}

/// One object, as a user would see it.
fn look(overlay: &Overlay, node: NodeId, kind: FileKind) {
    if let Err(e) = overlay.getattr(node) {
        assert!(excused(e), "{e}");
    }
    let mut buffer = [0; 4096];
    match kind {
        FileKind::Regular => match overlay.read(node, 0, &mut buffer) {
            Ok(n) => {
                let canary = buffer[..n].windows(CANARY.len()).any(|w| w == CANARY);
                assert!(!canary, "read from outside the layers");
            }
            Err(e) => assert!(excused(e), "{e}"),
        },
        FileKind::Symlink => drop(overlay.readlink(node)),
        _ => {}
    }
    let Ok(list) = overlay.listxattr(node) else {
        return;
    };
    for name in list.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        match overlay.getxattr(node, name) {
            Ok(_) => {}
            Err(e) => assert!(excused(e), "{name:?} is listed: {e}"),
        }
        assert!(
            !name.as_bytes().starts_with(b"user.fuseoverlayfs."),
            "{name:?}"
        );
    }
}

/// What a plain merge says: the tables of the formats, written down once more, over std.
fn merged(dirs: &[PathBuf]) -> BTreeMap<OsString, Vec<PathBuf>> {
    let mut names = BTreeSet::new();
    for dir in dirs {
        let list = fs::read_dir(dir).expect("a layer's directory");
        names.extend(list.map(|entry| entry.expect("an entry").file_name()));
    }
    let mut tree = BTreeMap::new();
    for name in names {
        if name.as_bytes().starts_with(b".wh.") {
            continue;
        }
        let mut found: Vec<PathBuf> = Vec::new();
        for dir in dirs {
            let path = dir.join(&name);
            let Ok(meta) = fs::symlink_metadata(&path) else {
                if beside(&path) {
                    break;
                }
                continue;
            };
            let device = meta.file_type().is_char_device() && meta.rdev() == 0;
            let emptied = meta.is_file()
                && meta.len() == 0
                && has(&path, "whiteout").is_some()
                && marked(dir, &PREFIXES[..2], b"x");
            if emptied || device && xattr(&path, "trusted.overlay.ovl.device").is_none() {
                break;
            }
            if !meta.is_dir() {
                if found.is_empty() {
                    found.push(path);
                }
                break;
            }
            let opaque = marked(&path, &PREFIXES, b"y")
                || fs::symlink_metadata(path.join(".wh..wh..opq")).is_ok()
                || beside(&path) && has(&path, "redirect").is_none();
            found.push(path);
            if opaque {
                break;
            }
        }
        if !found.is_empty() {
            tree.insert(name, found);
        }
    }
    tree
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let len = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(len);
    Some(value)
}

fn has(path: &Path, mark: &str) -> Option<Vec<u8>> {
    (PREFIXES[..2].iter()).find_map(|prefix| xattr(path, &format!("{prefix}{mark}")))
}

fn marked(path: &Path, prefixes: &[&str], value: &[u8]) -> bool {
    let opaque = |prefix: &&str| xattr(path, &format!("{prefix}opaque"));
    prefixes
        .iter()
        .any(|prefix| opaque(prefix).as_deref() == Some(value))
}

/// Is there `.wh.NAME` beside NAME?
fn beside(path: &Path) -> bool {
    let mut mark = OsString::from(".wh.");
    mark.push(path.file_name().expect("a name"));
    fs::symlink_metadata(path.with_file_name(mark)).is_ok()
}

fn compare(overlay: &Overlay, node: NodeId, dirs: &[PathBuf], layers: &[PathBuf]) {
    // The roots can be opaque too.
    let root_opaque = |dir: &PathBuf| {
        layers.contains(dir)
            && (marked(dir, &PREFIXES, b"y")
                || fs::symlink_metadata(dir.join(".wh..wh..opq")).is_ok())
    };
    let last = dirs
        .iter()
        .position(root_opaque)
        .map_or(dirs.len(), |n| n + 1);
    let tree = merged(&dirs[..last]);
    let mut names = BTreeSet::new();
    let listed = overlay.read_dir(node, 0, false, &mut |item| {
        if item.name != "." && item.name != ".." {
            names.insert(item.name.to_os_string());
        }
        true
    });
    listed.expect("a list");
    let expected: BTreeSet<_> = tree.keys().cloned().collect();
    assert_eq!(names, expected, "{dirs:?}");
    for (name, found) in tree {
        let entry = overlay
            .lookup(node, &name)
            .expect("a look-up")
            .expect("listed");
        let meta = fs::symlink_metadata(&found[0]).expect("an object");
        assert_eq!(entry.attr.mode(), meta.mode(), "{name:?}");
        if meta.is_dir() {
            compare(overlay, entry.node, &found, layers);
        } else if meta.is_file() && has(&found[0], "metacopy").is_none() {
            let mut buffer = vec![0; meta.len() as usize + 1];
            let n = overlay.read(entry.node, 0, &mut buffer).expect("reading");
            assert!(
                buffer[..n] == fs::read(&found[0]).expect("a file"),
                "{name:?}"
            );
        }
    }
}
