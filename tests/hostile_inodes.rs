//! T40: a million inodes looked up and forgotten, in bounded memory. Alone in its process, whose memory it looks at.

mod hostile_support;

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hostile_support::kernel::{Body, GETATTR, Kernel};
use ovl::layer::{
    DirLayer, Identity, Layer, LayerDirent, LayerEntry, LayerFile, LayerNode, ObjectKey, Result,
};
use ovl::meta::{Attr, FileKind};
use ovl::overlay::{NodeId, Options, Overlay, Stack};
use ovl::sys::FileHandle;

const MANY: u64 = 1_000_000;

/// A directory in which every number is the name of a file of its own.
struct Endless(DirLayer);

impl Layer for Endless {
    fn identity(&self) -> Identity {
        self.0.identity()
    }
    fn root(&self) -> Result<LayerNode> {
        self.0.root()
    }
    fn lookup(&self, dir: &LayerNode, name: &OsStr) -> Result<Option<LayerEntry>> {
        let number: u64 = name.to_str().and_then(|n| n.parse().ok()).unwrap_or(0);
        let found = self.0.lookup(dir, OsStr::new("file"))?;
        Ok(found.map(|entry| match entry {
            LayerEntry::Node {
                mut node,
                attr,
                opaque,
            } => {
                node.key.ino = (1 << 32) + number;
                LayerEntry::Node { node, attr, opaque }
            }
            LayerEntry::Whiteout => LayerEntry::Whiteout,
        }))
    }
    fn read_dir(&self, dir: &LayerNode) -> Result<Vec<LayerDirent>> {
        let entry = |number: u64| LayerDirent {
            name: number.to_string().into(),
            target: Some((
                ObjectKey {
                    dev: dir.key.dev,
                    ino: (1 << 32) + number,
                },
                FileKind::Regular,
            )),
        };
        Ok((0..MANY).map(entry).collect())
    }
    fn is_opaque(&self, dir: &LayerNode) -> Result<bool> {
        self.0.is_opaque(dir)
    }
    fn redirect(&self, dir: &LayerNode) -> Result<Option<OsString>> {
        self.0.redirect(dir)
    }
    fn attr(&self, node: &LayerNode) -> Result<Attr> {
        self.0.attr(node)
    }
    fn read_link(&self, node: &LayerNode) -> Result<OsString> {
        self.0.read_link(node)
    }
    fn open(&self, node: &LayerNode) -> Result<LayerFile> {
        self.0.open(node)
    }
    fn open_flags(&self, node: &LayerNode) -> Result<Option<OwnedFd>> {
        self.0.open_flags(node)
    }
    fn file_handle(&self, node: &LayerNode) -> Option<FileHandle> {
        self.0.file_handle(node)
    }
    fn xattr_names(&self, node: &LayerNode) -> Result<Vec<OsString>> {
        self.0.xattr_names(node)
    }
    fn xattr(&self, node: &LayerNode, name: &OsStr) -> Result<Option<Vec<u8>>> {
        self.0.xattr(node, name)
    }
}

/// Resident MiB of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() >> 10
}

#[test]
fn t40_a_million_inodes_are_known_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    let stack = Stack {
        lowers: vec![Arc::new(Endless(DirLayer::open(dir.path()).unwrap()))],
        upper: None,
    };
    let engine = Arc::new(Overlay::new(stack, &Options::default()).unwrap());
    let mut kernel = Kernel::new(Arc::clone(&engine), &ovl::fuse::Config::default());
    let before = resident();
    let mut nodes = Vec::with_capacity(MANY as usize);
    let held = (MANY * 8) >> 20;
    for number in 0..MANY {
        let name = number.to_string();
        let found = engine.lookup(NodeId::ROOT, OsStr::new(&name));
        nodes.push(found.unwrap().expect("every number is a name").node);
    }
    assert_eq!(engine.node_count() as u64, MANY + 1);
    let known = resident();
    // The kernel gives them back a thousand at a time.
    for some in nodes.chunks(1000) {
        let mut body = Body::default().u32(some.len() as u32).u32(0);
        for node in some {
            body = body.u64(node.0).u64(1);
        }
        kernel.send(42, 0, &body);
    }
    // And more than there are, and some that it never had.
    let body = Body::default().u32(3).u32(0);
    let body = body
        .u64(nodes[0].0)
        .u64(u64::MAX)
        .u64(77)
        .u64(1)
        .u64(u64::MAX)
        .u64(u64::MAX);
    kernel.send(42, 0, &body);
    let (errno, _) = kernel.ask(GETATTR, 1, &Body::default().u64(0).u64(0));
    assert_eq!(errno, 0);
    assert_eq!(engine.node_count(), 1);
    let after = resident();
    println!("{before} MiB, {known} with {MANY} inodes known, {after} afterwards");
    assert_eq!(kernel.counters.panics(), 0);
    assert!(known - before < held + 700, "{known} MiB for {MANY} inodes");
    assert!(
        after < before + held + 64,
        "{after} MiB are kept, {before} before"
    );
    kernel.end();
}
