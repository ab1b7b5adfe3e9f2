//! The overlay engine without FUSE: operations taken from the input are done to it and to a model, over one of a few stacks of
//! layers, with remounts in between. Every answer and every tree must be the model's; the lowers must stay as they were.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use ovl::layer::{DirLayer, Layer, Permissions};
use ovl::meta::FileKind;
use ovl::overlay::{
    Aufs, Caller, ChangeKind, Entry, NodeId, Options, Overlay, RenameFlags, SetAttr, Stack,
    UpperDirs, XattrSet,
};
use rustix::fs::{FileType, Mode, XattrFlags};
use rustix::io::Errno;

use super::model::{Errors, Id, Model, NAMES, ROOT};

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};
/// Operations taken from one input.
const MOST: usize = 80;
const XATTRS: [&str; 4] = [
    "user.a",
    "user.b",
    "trusted.c",
    "trusted.overlay.opaque", // one of an overlay further up
];
const OFFSETS: [usize; 8] = [0, 1, 10, 511, 4095, 4096, 5000, 9000];
const LENGTHS: [usize; 8] = [0, 1, 2, 100, 511, 4096, 4097, 6000];

/// What one layer has, by path: applied to a model from the bottom up, and written to a directory each.
enum Has {
    Dir(&'static str),
    File(&'static str, usize),
    Symlink(&'static str),
    /// Another name of the first, which the same layer has.
    Link(&'static str, &'static str),
    Whiteout(&'static str),
    AufsWhiteout(&'static str),
    /// A directory that hides what is below.
    Opaque(&'static str),
    AufsOpaque(&'static str),
}
use Has::{AufsOpaque, AufsWhiteout, Dir, File, Link, Opaque, Symlink, Whiteout};

const BOTTOM: &[Has] = &[
    Dir("a"),
    File("a/a", 10),
    File("a/b", 5000),
    Dir("a/c"),
    File("a/c/a", 1),
    Dir("a/c/d"),
    File("b", 9000),
    Symlink("c"),
    File("d", 100),
    Link("d", "e"),
    Link("d", "a/d"),
    Dir("f"),
];
const TOP: &[Has] = &[
    Dir("a"),
    File("a/b", 20),
    Opaque("a/c"),
    File("a/c/b", 4096),
    Whiteout("c"),
    Dir("g"),
    File("g/a", 3),
    Link("g/a", "g/b"),
];
const TOP_AUFS: &[Has] = &[
    Dir("a"),
    AufsWhiteout("a/a"),
    AufsOpaque("a/c"),
    AufsWhiteout("b"),
    Dir("f"),
    File("f/a", 7),
    AufsWhiteout("f/b"),
];
/// Stacks, from the bottom up.
const STACKS: [&[&[Has]]; 4] = [
    &[BOTTOM],
    &[BOTTOM, TOP],
    &[BOTTOM, TOP_AUFS],
    &[BOTTOM, TOP, TOP_AUFS],
];

fn filled(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + len) as u8).collect()
}

/// Directory and name of a path in a model.
fn place<'a>(model: &Model, path: &'a str) -> (Id, &'a str) {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    (at(model, dir).expect("a layer names its directories"), name)
}

fn at(model: &Model, path: &str) -> Option<Id> {
    path.split('/')
        .filter(|name| !name.is_empty())
        .try_fold(ROOT, |dir, name| model.child(dir, name))
}

fn lay(model: &mut Model, has: &Has) {
    let mut put = |path: &str, kind, data: &[u8], opaque: bool| {
        let (dir, name) = place(model, path);
        let merges = |id: Id| kind == FileKind::Directory && model.is_dir(id) && !opaque;
        if !model.child(dir, name).is_some_and(merges) {
            model.hide(dir, name);
            let perm = match kind {
                FileKind::Directory => 0o755,
                FileKind::Symlink => 0o777,
                _ => 0o644,
            };
            assert!(model.make(dir, name, kind, perm, data).is_ok());
        }
    };
    match has {
        Dir(path) => put(path, FileKind::Directory, b"", false),
        Opaque(path) | AufsOpaque(path) => put(path, FileKind::Directory, b"", true),
        File(path, len) => put(path, FileKind::Regular, &filled(*len), false),
        Symlink(path) => put(path, FileKind::Symlink, b"a/c", false),
        Link(old, new) => {
            let id = at(model, old).expect("the layer's own");
            let (dir, name) = place(model, new);
            assert!(model.link(id, dir, name).is_ok());
        }
        Whiteout(path) | AufsWhiteout(path) => {
            let (dir, name) = place(model, path);
            model.hide(dir, name);
        }
    }
}

fn write_out(dir: &Path, has: &Has) -> std::io::Result<()> {
    let beside = |path: &str, name: String| dir.join(path).with_file_name(name);
    match has {
        Dir(path) => fs::create_dir(dir.join(path)),
        Opaque(path) => {
            fs::create_dir(dir.join(path))?;
            let mark = "trusted.overlay.opaque";
            Ok(rustix::fs::setxattr(
                dir.join(path),
                mark,
                b"y",
                XattrFlags::empty(),
            )?)
        }
        AufsOpaque(path) => {
            fs::create_dir(dir.join(path))?;
            fs::write(dir.join(path).join(".wh..wh..opq"), "")
        }
        File(path, len) => fs::write(dir.join(path), filled(*len)),
        Symlink(path) => std::os::unix::fs::symlink("a/c", dir.join(path)),
        Link(old, new) => fs::hard_link(dir.join(old), dir.join(new)),
        Whiteout(path) => Ok(rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.join(path),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )?),
        AufsWhiteout(path) => {
            let name = path.rsplit('/').next().unwrap_or(path);
            fs::write(beside(path, format!(".wh.{name}")), "")
        }
    }
}

/// What the process keeps from input to input: the lowers. Opening one clones a mount, which the kernel takes its time to give up.
struct Lowers {
    dir: tempfile::TempDir,
    /// By stack and by where permissions are kept.
    open: HashMap<(usize, bool), Vec<Arc<dyn Layer>>>,
    runs: u64,
    before: Vec<String>,
}

impl Lowers {
    fn new() -> Self {
        // Modes are part of what is compared.
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let dir = super::scratch();
        for (stack, layers) in STACKS.iter().enumerate() {
            for (n, layer) in layers.iter().enumerate() {
                let lower = dir.path().join(format!("stack{stack}-{n}"));
                fs::create_dir(&lower).expect("a lower");
                for has in *layer {
                    write_out(&lower, has).expect("root and a file system with xattrs");
                }
            }
        }
        let before = fingerprint(dir.path());
        Self {
            dir,
            open: HashMap::new(),
            runs: 0,
            before,
        }
    }

    fn of(&mut self, stack: usize, permissions: Permissions) -> Vec<Arc<dyn Layer>> {
        let key = (stack, permissions == Permissions::Inode);
        let open = self.open.entry(key).or_insert_with(|| {
            let layers = (0..STACKS[stack].len()).rev();
            let open = |n| {
                let dir = self.dir.path().join(format!("stack{stack}-{n}"));
                let layer = DirLayer::open_with(&dir, permissions).expect("a lower");
                Arc::new(layer) as Arc<dyn Layer>
            };
            layers.map(open).collect()
        });
        open.clone()
    }
}

/// All that must not change in the lowers.
fn fingerprint(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut out = Vec::new();
    let mut ahead = vec![dir.to_owned()];
    while let Some(path) = ahead.pop() {
        let meta = fs::symlink_metadata(&path).expect("a lower's object");
        let data = meta.is_file().then(|| fs::read(&path).expect("a file"));
        out.push(format!(
            "{} {:o} {} {:?} {data:?}",
            path.display(),
            meta.mode(),
            meta.nlink(),
            meta.modified()
        ));
        if meta.is_dir() {
            let list = fs::read_dir(&path).expect("a directory");
            ahead.extend(list.map(|entry| entry.expect("an entry").path()));
        }
    }
    out.sort();
    out
}

thread_local! {
    static LOWERS: std::cell::RefCell<Option<Lowers>> = const { std::cell::RefCell::new(None) };
}

/// An engine and its model.
struct Run {
    model: Model,
    overlay: Option<Overlay>,
    stack: usize,
    lowers: Vec<Arc<dyn Layer>>,
    upper: UpperDirs,
    options: Options,
    names: usize,
    /// Which number each inode of the model had when it was first met.
    numbers: HashMap<Id, NodeId>,
    owed: BTreeMap<NodeId, u64>,
    /// Objects somebody has open: they live on when their names go.
    held: Vec<(Id, NodeId)>,
    /// What was done, for the reader of a failure.
    trace: Vec<String>,
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("stack {}, {:?}", self.stack, self.options);
            self.trace.iter().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// Operations on the engine. The first byte chooses layers and options, the others are operations with their arguments.
pub fn engine(data: &[u8]) {
    let Some((&setting, ops)) = data.split_first() else {
        return;
    };
    LOWERS.with_borrow_mut(|slot| {
        let lowers = slot.get_or_insert_with(Lowers::new);
        lowers.runs += 1;
        run(lowers, setting, ops);
        if lowers.runs.is_power_of_two() || lowers.runs.is_multiple_of(1024) {
            assert_eq!(
                fingerprint(lowers.dir.path()),
                lowers.before,
                "a lower changed"
            );
        }
    });
}

fn run(lowers: &mut Lowers, setting: u8, ops: &[u8]) {
    let stack = usize::from(setting & 3);
    let mut model = Model::new();
    for layer in STACKS[stack] {
        layer.iter().for_each(|has| lay(&mut model, has));
    }
    let aufs =
        [Aufs::Ordinary, Aufs::Ordinary, Aufs::Read, Aufs::Write][usize::from(setting >> 2 & 3)];
    let options = Options {
        // Nothing here outlives the process.
        no_fsync: true,
        metacopy: setting & 0x10 != 0,
        userxattr: Some(setting & 0x20 != 0),
        permissions: [Permissions::Inode, Permissions::UserXattr][usize::from(setting >> 6 & 1)],
        ino32: setting & 0x80 != 0,
        aufs,
        ..Options::default()
    };
    let dir = super::scratch();
    let upper = UpperDirs {
        upper: dir.path().join("upper"),
        work: dir.path().join("work"),
    };
    fs::create_dir(&upper.upper).expect("an upper");
    fs::create_dir(&upper.work).expect("a work directory");
    let mut run = Run {
        model,
        overlay: None,
        stack,
        lowers: lowers.of(stack, options.permissions),
        upper,
        options,
        // Names that are marks in the upper are nobody's to make there.
        names: if aufs == Aufs::Ordinary {
            NAMES.len()
        } else {
            7
        },
        numbers: HashMap::new(),
        owed: BTreeMap::new(),
        held: Vec::new(),
        trace: Vec::new(),
    };
    run.mount();
    let mut input = Input(ops);
    for _ in 0..MOST {
        if input.0.is_empty() {
            break;
        }
        run.step(&mut input);
    }
    run.compare();
    run.mount();
    run.compare();
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> usize {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                usize::from(*byte)
            }
            None => 0,
        }
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.byte() % of.len()]
    }
}

/// A directory and a name in it.
#[derive(Debug)]
struct Spot {
    dir: Id,
    node: NodeId,
    name: &'static str,
}

impl Run {
    fn engine(&self) -> &Overlay {
        self.overlay.as_ref().expect("mounted")
    }

    /// Anew, if it is mounted.
    fn mount(&mut self) {
        self.trace.push("mount".into());
        if let Some(old) = self.overlay.take() {
            old.shutdown();
        }
        self.owed.clear();
        self.held.clear();
        if self.options.ino32 {
            // Those are the same only while it is mounted.
            self.numbers.clear();
        }
        if self.options.userxattr == Some(true) {
            // Only files and directories can have `user.` xattrs, and with them say which number they came with.
            let marked = |id: &Id| {
                matches!(
                    self.model.inodes[*id].kind,
                    FileKind::Regular | FileKind::Directory
                )
            };
            self.numbers.retain(|id, _| marked(id));
        }
        let stack = Stack {
            lowers: self.lowers.clone(),
            upper: Some(self.upper.clone()),
        };
        self.overlay = Some(Overlay::new(stack, &self.options).expect("an engine"));
    }

    /// An entry handed out by the engine: counted, and its number the object's one.
    fn met(&mut self, id: Id, entry: &Entry) {
        *self.owed.entry(entry.node).or_default() += 1;
        let number = *self.numbers.entry(id).or_insert(entry.node);
        assert_eq!(number, entry.node, "an inode number changed");
        self.check(id, entry);
    }

    fn check(&self, id: Id, entry: &Entry) {
        let inode = &self.model.inodes[id];
        assert_eq!(entry.attr.kind, inode.kind);
        assert_eq!(entry.attr.perm, inode.perm, "{:?}'s mode", inode.kind);
        if !inode.kind.is_dir() {
            assert_eq!(entry.attr.size, inode.data.len() as u64, "size of {id}");
            assert_eq!(entry.attr.nlink, inode.names, "link count of {id}");
        }
    }

    /// The engine's node of a path.
    fn find(&mut self, path: &str) -> NodeId {
        let (mut id, mut node) = (ROOT, NodeId::ROOT);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            id = self.model.child(id, name).expect("a path of the model");
            let found = self.engine().lookup(node, OsStr::new(name));
            let entry = found
                .unwrap_or_else(|e| panic!("{path}: {name}: {e}"))
                .unwrap_or_else(|| panic!("{path}: {name} is not there"));
            self.met(id, &entry);
            node = entry.node;
        }
        node
    }

    /// A directory, live or held.
    fn dir(&mut self, input: &mut Input<'_>) -> (Id, NodeId) {
        let live = self.model.directories();
        let held = self.held.iter().copied();
        let held: Vec<_> = held.filter(|(id, _)| self.model.is_dir(*id)).collect();
        let choice = input.byte() % (live.len() + held.len());
        match live.get(choice) {
            Some((path, id)) => (*id, self.find(path)),
            None => held[choice - live.len()],
        }
    }

    fn spot(&mut self, input: &mut Input<'_>) -> Spot {
        let (dir, node) = self.dir(input);
        let name = NAMES[input.byte() % self.names];
        let there = self.model.child(dir, name);
        self.trace
            .push(format!("  {name} in {dir} ({node:?}): {there:?}"));
        Spot { dir, node, name }
    }

    /// Something that is there, or held.
    fn object(&mut self, input: &mut Input<'_>) -> (Id, NodeId) {
        let live = self.model.walk();
        let choice = input.byte() % (live.len() + self.held.len());
        let (id, node) = match live.get(choice) {
            Some((path, id)) => (*id, self.find(path)),
            None => self.held[choice - live.len()],
        };
        let path = live.get(choice).map(|(path, _)| path);
        self.trace.push(format!("  {path:?} is {id} ({node:?})"));
        (id, node)
    }

    /// A name that was made, or why not.
    fn made(&mut self, spot: &Spot, expected: Result<Id, Errors>, got: Result<Entry, Errno>) {
        match (expected, got) {
            (Ok(id), Ok(entry)) => self.met(id, &entry),
            (Err(errors), Err(e)) if errors.contains(&e) => {}
            (expected, got) => panic!("{}: {got:?}, not {expected:?}", spot.name),
        }
    }
}

fn same(what: &str, expected: Result<(), Errors>, got: Result<(), Errno>) {
    match (&expected, &got) {
        (Ok(()), Ok(())) => {}
        (Err(errors), Err(e)) if errors.contains(e) => {}
        _ => panic!("{what}: {got:?}, not {expected:?}"),
    }
}

fn unless(errors: Errors) -> Result<(), Errors> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

/// What `step` does.
const WORDS: [&str; 24] = [
    "create",
    "create",
    "mkdir",
    "mkdir",
    "mknod",
    "symlink",
    "link",
    "link",
    "unlink",
    "unlink",
    "rmdir",
    "rename",
    "rename",
    "rename",
    "write",
    "write",
    "truncate",
    "chmod",
    "xattr",
    "copy or punch",
    "hold or let go",
    "forget",
    "look",
    "compare, perhaps remount",
];

impl Run {
    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte() % 24;
        self.trace.push(WORDS[what].into());
        match what {
            0 | 1 => {
                let spot = self.spot(input);
                let perm = *input.pick(&[0o644, 0o600, 0o755, 0o6711]) as u32;
                let (engine, name) = (self.engine(), OsStr::new(spot.name));
                let mode = libc::S_IFREG | perm;
                let got = match what {
                    0 => engine.create(CALLER, spot.node, name, mode, 0),
                    // The same in two steps.
                    _ => engine.tmpfile(CALLER, spot.node, mode, 0).and_then(|made| {
                        let named = engine.link(made.node, spot.node, name);
                        engine.forget(made.node, 1);
                        named
                    }),
                };
                let expected = (self.model).make(spot.dir, spot.name, FileKind::Regular, perm, b"");
                self.made(&spot, expected, got);
            }
            2 | 3 => {
                let spot = self.spot(input);
                let perm = *input.pick(&[0o755, 0o700, 0o1777]) as u32;
                let name = OsStr::new(spot.name);
                let got = self.engine().mkdir(CALLER, spot.node, name, perm, 0);
                let expected =
                    (self.model).make(spot.dir, spot.name, FileKind::Directory, perm, b"");
                self.made(&spot, expected, got);
            }
            4 => {
                let spot = self.spot(input);
                let (kind, rdev) = *input.pick(&[
                    (FileKind::Fifo, 0),
                    (FileKind::CharDevice, 0), // what a whiteout looks like
                    (FileKind::CharDevice, libc::makedev(1, 3)),
                    (FileKind::Socket, 0),
                ]);
                let name = OsStr::new(spot.name);
                let mode = kind.mode_bits() | 0o640;
                let got = (self.engine()).mknod(CALLER, spot.node, name, mode, 0, rdev);
                let expected = self.model.make(spot.dir, spot.name, kind, 0o640, b"");
                self.made(&spot, expected, got);
            }
            5 => {
                let spot = self.spot(input);
                let target = *input.pick(&["a", "../b", "/nowhere/at/all"]);
                let name = OsStr::new(spot.name);
                let got = (self.engine()).symlink(CALLER, spot.node, name, OsStr::new(target));
                let expected = (self.model).make(
                    spot.dir,
                    spot.name,
                    FileKind::Symlink,
                    0o777,
                    target.as_bytes(),
                );
                self.made(&spot, expected, got);
            }
            6 | 7 => {
                let (id, node) = self.object(input);
                let spot = self.spot(input);
                let got = (self.engine()).link(node, spot.node, OsStr::new(spot.name));
                let expected = self.model.link(id, spot.dir, spot.name).map(|()| id);
                self.made(&spot, expected, got);
            }
            8 | 9 => {
                let spot = self.spot(input);
                let got = self.engine().unlink(spot.node, OsStr::new(spot.name));
                same("unlink", self.model.unlink(spot.dir, spot.name), got);
            }
            10 => {
                let spot = self.spot(input);
                let got = self.engine().rmdir(spot.node, OsStr::new(spot.name));
                same("rmdir", self.model.rmdir(spot.dir, spot.name), got);
            }
            11..=13 => {
                let (from, to) = (self.spot(input), self.spot(input));
                let flags = *input.pick(&[0, 0, 0, 1, 2]);
                let flags = RenameFlags {
                    no_replace: flags == 1,
                    exchange: flags == 2,
                    whiteout: false,
                };
                let names = [from.name, to.name].map(OsStr::new);
                self.trace.push(format!("  {flags:?}"));
                let got = (self.engine()).rename(from.node, names[0], to.node, names[1], flags);
                let expected = self.model.rename(
                    (from.dir, from.name),
                    (to.dir, to.name),
                    flags.no_replace,
                    flags.exchange,
                );
                same("rename", expected, got);
            }
            14 | 15 => {
                let (id, node) = self.object(input);
                let (offset, len) = (*input.pick(&OFFSETS), *input.pick(&LENGTHS));
                let bytes = vec![input.byte() as u8; len];
                let got = self.engine().write(node, offset as u64, &bytes, false);
                let errors = self.model.regular(id);
                same(
                    "write",
                    unless(errors.clone()),
                    got.map(|n| assert_eq!(n, len)),
                );
                if errors.is_empty() && len > 0 {
                    self.model.write(id, offset, &bytes);
                }
            }
            16 => {
                let (id, node) = self.object(input);
                let size = *input.pick(&OFFSETS);
                let set = SetAttr {
                    size: Some(size as u64),
                    ..SetAttr::default()
                };
                let got = self.engine().setattr(CALLER, node, &set).map(|_| ());
                let errors = self.model.regular(id);
                same("truncate", unless(errors.clone()), got);
                if errors.is_empty() {
                    self.model.inodes[id].data.resize(size, 0);
                }
            }
            17 => {
                let (id, node) = self.object(input);
                let perm = *input.pick(&[0o400, 0o644, 0o755, 0o1777, 0o4755]) as u32;
                if self.model.inodes[id].kind != FileKind::Symlink {
                    let set = SetAttr {
                        perm: Some(perm),
                        ..SetAttr::default()
                    };
                    let attr = self.engine().setattr(CALLER, node, &set).expect("chmod");
                    assert_eq!(attr.perm, perm);
                    self.model.inodes[id].perm = perm;
                }
            }
            18 => self.xattr(input),
            19 => self.ranges(input),
            20 => {
                let (id, node) = self.object(input);
                if self.held.len() < 4 && self.model.inodes[id].names > 0 && id != ROOT {
                    self.held.push((id, node));
                } else if !self.held.is_empty() {
                    self.held.remove(0);
                }
            }
            21 => {
                // All but what is open.
                let held: Vec<_> = self.held.iter().map(|(_, node)| *node).collect();
                for (node, count) in std::mem::take(&mut self.owed) {
                    if held.contains(&node) {
                        self.owed.insert(node, count);
                    } else {
                        self.engine().forget(node, count);
                    }
                }
            }
            22 => {
                let (id, node) = self.object(input);
                self.compare_object("an object", id, node);
            }
            _ => {
                if input.byte().is_multiple_of(4) {
                    self.mount();
                }
                self.compare();
            }
        }
    }

    fn xattr(&mut self, input: &mut Input<'_>) {
        let (id, node) = self.object(input);
        let name = *input.pick(&XATTRS);
        let how = *input.pick(&[XattrSet::Any, XattrSet::Create, XattrSet::Replace]);
        let value = vec![b'y'; input.byte() % 3];
        let inode = &mut self.model.inodes[id];
        if !matches!(inode.kind, FileKind::Regular | FileKind::Directory) {
            return;
        }
        let engine = self.overlay.as_ref().expect("mounted");
        if value.is_empty() {
            let got = engine.removexattr(node, OsStr::new(name));
            let there = inode.xattrs.remove(name).is_some();
            let errors = if there { vec![] } else { vec![Errno::NODATA] };
            return same("removexattr", unless(errors), got);
        }
        let got = engine.setxattr(node, OsStr::new(name), &value, how);
        let errors = match (how, inode.xattrs.contains_key(name)) {
            (XattrSet::Create, true) => vec![Errno::EXIST],
            (XattrSet::Replace, false) => vec![Errno::NODATA],
            _ => {
                inode.xattrs.insert(name, value);
                vec![]
            }
        };
        same("setxattr", unless(errors), got);
    }

    /// Holes, and bytes from one file to another.
    fn ranges(&mut self, input: &mut Input<'_>) {
        let (from, to) = (self.object(input), self.object(input));
        let (a, b) = (*input.pick(&OFFSETS), *input.pick(&OFFSETS));
        let len = *input.pick(&LENGTHS);
        if from.0 == to.0 {
            const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let got = (self.engine()).fallocate(CALLER, to.1, PUNCH as u32, b as u64, len as u64);
            let mut errors = self.model.regular(to.0);
            if len == 0 {
                errors.push(Errno::INVAL);
            }
            if errors.is_empty() {
                let zeros = vec![0; self.model.range(to.0, b, len).len()];
                if !zeros.is_empty() {
                    self.model.write(to.0, b, &zeros);
                }
            }
            return same("punch", unless(errors), got);
        }
        let got = (self.engine()).copy_file_range(
            CALLER,
            (from.1, a as u64),
            (to.1, b as u64),
            len as u64,
        );
        let mut errors = self.model.regular(from.0);
        errors.extend(self.model.regular(to.0));
        let bytes = self.model.range(from.0, a, len).to_vec();
        let expected = bytes.len();
        let fine = errors.is_empty();
        same(
            "copy_file_range",
            unless(errors),
            got.map(|n| assert_eq!(n, expected)),
        );
        if fine && expected > 0 {
            self.model.write(to.0, b, &bytes);
        }
    }

    fn compare_object(&mut self, path: &str, id: Id, node: NodeId) {
        let engine = self.overlay.as_ref().expect("mounted");
        let attr = engine
            .getattr(node)
            .unwrap_or_else(|e| panic!("{path}: {e}"));
        self.check(id, &Entry { node, attr });
        let inode = &self.model.inodes[id];
        match inode.kind {
            FileKind::Regular => {
                let mut buffer = vec![0xff; inode.data.len() + 10];
                let n = engine.read(node, 0, &mut buffer).expect("reading");
                assert!(buffer[..n] == inode.data, "{path}: other bytes");
            }
            FileKind::Symlink => {
                let target = engine.readlink(node).expect("a symlink's target");
                assert_eq!(target.as_encoded_bytes(), inode.data, "{path}");
            }
            FileKind::Directory => self.compare_dir(path, id, node),
            _ => {}
        }
        let inode = &self.model.inodes[id];
        if matches!(inode.kind, FileKind::Regular | FileKind::Directory) {
            let list = self.engine().listxattr(node).expect("listxattr");
            let names = list.split(|b| *b == 0).filter(|name| !name.is_empty());
            let mut names: Vec<_> = names.map(<[u8]>::to_vec).collect();
            names.sort();
            let expected: Vec<_> = inode.xattrs.keys().map(|k| k.as_bytes().to_vec()).collect();
            assert_eq!(names, expected, "{path}: xattrs");
            for (name, value) in &inode.xattrs {
                let got = self.engine().getxattr(node, OsStr::new(name));
                assert_eq!(got.as_ref(), Ok(value), "{path}: {name}");
            }
        }
    }

    fn compare_dir(&self, path: &str, id: Id, node: NodeId) {
        let mut names = Vec::new();
        let mut dots = 0;
        let mut offset = 0;
        // A few at a time: going on where one stopped gives each name once.
        loop {
            let mut room = 3;
            let before = offset;
            let listed = self.engine().read_dir(node, offset, false, &mut |item| {
                if room == 0 {
                    return false;
                }
                room -= 1;
                offset = item.next_offset;
                if item.name == "." || item.name == ".." {
                    dots += 1;
                } else {
                    names.push((item.name.to_str().expect("ours").to_owned(), item.kind));
                }
                true
            });
            listed.unwrap_or_else(|e| panic!("{path}: {e}"));
            if offset == before {
                break;
            }
        }
        names.sort();
        let entries = self.model.inodes[id].entries.iter();
        let kind = |id: &Id| self.model.inodes[*id].kind;
        let expected: Vec<_> = entries.map(|(name, id)| (name.clone(), kind(id))).collect();
        assert_eq!(names, expected, "{path}: a list");
        if self.model.inodes[id].names > 0 {
            assert_eq!(dots, 2, "{path}");
        }
    }

    /// The whole tree, what is held, and the differences.
    fn compare(&mut self) {
        let tree = self.model.walk();
        let mut numbers: HashMap<NodeId, Id> = HashMap::new();
        for (path, id) in &tree {
            let node = self.find(path);
            assert_eq!(
                *numbers.entry(node).or_insert(*id),
                *id,
                "{path}: a number twice"
            );
            self.compare_object(path, *id, node);
        }
        for (id, node) in self.held.clone() {
            self.compare_object("held", id, node);
        }
        for (path, id) in &tree {
            if !self.model.is_dir(*id) {
                continue;
            }
            let node = self.find(path);
            for name in NAMES {
                if self.model.child(*id, name).is_none() {
                    let got = self.engine().lookup(node, OsStr::new(name));
                    assert!(matches!(got, Ok(None)), "{path}/{name}: {got:?}");
                }
            }
        }
        let there = |path: &Path| at(&self.model, path.to_str().expect("ours")).is_some();
        let told = self.engine().changes(&mut |change| {
            let path = Path::new(&change.path);
            match change.kind {
                ChangeKind::Deleted => assert!(!there(path), "{} is there", path.display()),
                _ => assert!(there(path), "{} is not there", path.display()),
            }
            Ok(())
        });
        told.expect("the differences");
    }
}
