//! An engine over directories of its own, addressed by path.
#![allow(dead_code)] // each test file uses its part

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ovl::layer::{DirLayer, Layer};
use ovl::overlay::{
    Caller, Change, ChangeKind, Entry, NodeId, OpenError, Options, Overlay, RenameFlags, Stack,
    UpperDirs,
};
use rustix::io::Errno;

pub const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};

/// A lower, an upper and a workdir in a temporary directory, and an engine over them, addressed by path.
pub struct Bench {
    pub tmp: tempfile::TempDir,
    pub overlay: Overlay,
    options: Options,
}

fn open(base: &Path, options: &Options) -> Result<Overlay, OpenError> {
    let lowers = ["lower2", "lower1"].map(|n| {
        Arc::new(DirLayer::open_with(&base.join(n), options.permissions).unwrap()) as Arc<dyn Layer>
    });
    let upper = UpperDirs {
        upper: base.join("upper"),
        work: base.join("work"),
    };
    Overlay::new(
        Stack {
            lowers: lowers.to_vec(),
            upper: Some(upper),
        },
        options,
    )
}

impl Bench {
    /// `fill` makes the content of `lower1` (bottom) and `lower2` (above it).
    pub fn new(fill: impl FnOnce(&Path, &Path)) -> Self {
        Self::with(Options::default(), fill)
    }

    pub fn with(options: Options, fill: impl FnOnce(&Path, &Path)) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        for dir in ["lower1", "lower2", "upper", "work"] {
            fs::create_dir(tmp.path().join(dir)).unwrap();
        }
        fill(&tmp.path().join("lower1"), &tmp.path().join("lower2"));
        let overlay = open(tmp.path(), &options).unwrap();
        Self {
            tmp,
            overlay,
            options,
        }
    }

    /// For the next `remount`.
    pub fn set_options(&mut self, options: Options) {
        self.options = options;
    }

    /// Gives the upper up, as an unmount does.
    pub fn close(&mut self) {
        self.overlay.shutdown();
        // The old engine holds the workdir's lock as long as it lives.
        let lower = Arc::new(DirLayer::open(&self.tmp.path().join("lower1")).unwrap());
        self.overlay = Overlay::new(
            Stack {
                lowers: vec![lower],
                upper: None,
            },
            &Options::default(),
        )
        .unwrap();
    }

    pub fn try_open(&self) -> Result<Overlay, OpenError> {
        open(self.tmp.path(), &self.options)
    }

    pub fn remount(&mut self) {
        self.close();
        // A process that another test is just starting holds a copy of the old engine's lock until exec closes it.
        for _ in 0..100 {
            match self.try_open() {
                Err(OpenError::Busy(_)) => std::thread::sleep(std::time::Duration::from_millis(10)),
                opened => {
                    self.overlay = opened.unwrap();
                    return;
                }
            }
        }
        panic!("the work directory stays locked");
    }

    pub fn upper(&self, path: &str) -> PathBuf {
        self.tmp.path().join("upper").join(path)
    }

    pub fn find(&self, path: &str) -> Result<Option<Entry>, Errno> {
        let mut at = Entry {
            node: NodeId::ROOT,
            attr: self.overlay.getattr(NodeId::ROOT)?,
        };
        for name in path.split('/').filter(|n| !n.is_empty()) {
            match self.overlay.lookup(at.node, OsStr::new(name))? {
                Some(entry) => at = entry,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    pub fn get(&self, path: &str) -> Entry {
        self.find(path)
            .unwrap()
            .unwrap_or_else(|| panic!("{path} is not there"))
    }

    pub fn parent<'a>(&self, path: &'a str) -> (NodeId, &'a OsStr) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.get(dir).node, OsStr::new(name))
    }

    pub fn read(&self, path: &str) -> Vec<u8> {
        let entry = self.get(path);
        let mut buf = vec![0; entry.attr.size as usize + 10];
        let n = self.overlay.read(entry.node, 0, &mut buf).unwrap();
        buf.truncate(n);
        buf
    }

    pub fn write(&self, path: &str, offset: u64, data: &[u8]) {
        assert_eq!(
            self.overlay
                .write(self.get(path).node, offset, data, false)
                .unwrap(),
            data.len()
        );
    }

    pub fn create(&self, path: &str, data: &[u8]) -> Entry {
        let (dir, name) = self.parent(path);
        let entry = self
            .overlay
            .create(ROOT, dir, name, libc::S_IFREG | 0o644, 0o022)
            .unwrap();
        self.overlay.write(entry.node, 0, data, false).unwrap();
        entry
    }

    pub fn mkdir(&self, path: &str) -> Result<Entry, Errno> {
        self.mkdir_as(ROOT, path)
    }

    pub fn mkdir_as(&self, caller: Caller, path: &str) -> Result<Entry, Errno> {
        let (dir, name) = self.parent(path);
        self.overlay.mkdir(caller, dir, name, 0o755, 0o022)
    }

    pub fn unlink(&self, path: &str) -> Result<(), Errno> {
        let (dir, name) = self.parent(path);
        self.overlay.unlink(dir, name)
    }

    pub fn rmdir(&self, path: &str) -> Result<(), Errno> {
        let (dir, name) = self.parent(path);
        self.overlay.rmdir(dir, name)
    }

    pub fn link(&self, from: &str, to: &str) -> Result<Entry, Errno> {
        let (dir, name) = self.parent(to);
        self.overlay.link(self.get(from).node, dir, name)
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        self.rename_with(from, to, RenameFlags::default())
    }

    pub fn rename_with(&self, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
        let (a, an) = self.parent(from);
        let (b, bn) = self.parent(to);
        self.overlay.rename(a, an, b, bn, flags)
    }

    /// Names of a directory, sorted; each listed inode number must be the one a look-up gives.
    pub fn ls(&self, path: &str) -> Vec<String> {
        let mut names = Vec::new();
        let dir = self.get(path).node;
        self.overlay
            .read_dir(dir, 0, false, &mut |item| {
                names.push((item.name.to_str().unwrap().to_owned(), item.ino, item.kind));
                true
            })
            .unwrap();
        let mut out = Vec::new();
        for (name, ino, kind) in names {
            if name == "." || name == ".." {
                continue;
            }
            let entry = self
                .overlay
                .lookup(dir, OsStr::new(&name))
                .unwrap()
                .unwrap();
            assert_eq!((entry.node, entry.attr.kind), (ino, kind), "{path}/{name}");
            out.push(name);
        }
        out.sort();
        out
    }

    pub fn changes(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.overlay
            .changes(&mut |c: &Change| {
                let letter = match c.kind {
                    ChangeKind::Added => 'A',
                    ChangeKind::Changed => 'C',
                    ChangeKind::Deleted => 'D',
                };
                let opaque = if c.opaque { " (opaque)" } else { "" };
                out.push(format!("{letter} {}{opaque}", c.path.to_str().unwrap()));
                Ok(())
            })
            .unwrap();
        out
    }
}
