//! Many threads at once, and layers that take their time.

mod engine_support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::Duration;

use engine_support::{Bench, ROOT};
use ovl::layer::{
    DirLayer, Identity, Layer, LayerDirent, LayerEntry, LayerFile, LayerNode, Result,
};
use ovl::meta::Attr;
use ovl::overlay::{NodeId, Options, Overlay, RenameFlags, Stack, UpperDirs};
use ovl::sys::FileHandle;
use rustix::io::Errno;

/// A directory whose file `slow` is opened only when the gate is.
struct Gated {
    inner: DirLayer,
    gate: Arc<(Mutex<bool>, Condvar)>,
    slow: Mutex<Option<LayerNode>>,
    opened: AtomicUsize,
}

impl Layer for Gated {
    fn identity(&self) -> Identity {
        self.inner.identity()
    }
    fn root(&self) -> Result<LayerNode> {
        self.inner.root()
    }
    fn lookup(&self, dir: &LayerNode, name: &OsStr) -> Result<Option<LayerEntry>> {
        let found = self.inner.lookup(dir, name)?;
        if let (true, Some(LayerEntry::Node { node, .. })) = (name == "slow", &found) {
            *self.slow.lock().unwrap() = Some(node.clone());
        }
        Ok(found)
    }
    fn read_dir(&self, dir: &LayerNode) -> Result<Vec<LayerDirent>> {
        self.inner.read_dir(dir)
    }
    fn is_opaque(&self, dir: &LayerNode) -> Result<bool> {
        self.inner.is_opaque(dir)
    }
    fn redirect(&self, dir: &LayerNode) -> Result<Option<OsString>> {
        self.inner.redirect(dir)
    }
    fn attr(&self, node: &LayerNode) -> Result<Attr> {
        self.inner.attr(node)
    }
    fn read_link(&self, node: &LayerNode) -> Result<OsString> {
        self.inner.read_link(node)
    }
    fn open(&self, node: &LayerNode) -> Result<LayerFile> {
        if self
            .slow
            .lock()
            .unwrap()
            .as_ref()
            .is_some_and(|slow| slow.key == node.key)
        {
            self.opened.fetch_add(1, Ordering::SeqCst);
            let (open, opened) = &*self.gate;
            let _open = opened
                .wait_while(open.lock().unwrap(), |open| !*open)
                .unwrap();
        }
        self.inner.open(node)
    }
    fn open_flags(&self, node: &LayerNode) -> Result<Option<OwnedFd>> {
        self.inner.open_flags(node)
    }
    fn file_handle(&self, node: &LayerNode) -> Option<FileHandle> {
        self.inner.file_handle(node)
    }
    fn xattr_names(&self, node: &LayerNode) -> Result<Vec<OsString>> {
        self.inner.xattr_names(node)
    }
    fn xattr(&self, node: &LayerNode, name: &OsStr) -> Result<Option<Vec<u8>>> {
        self.inner.xattr(node, name)
    }
}

/// fuse-overlayfs holds one lock over everything: while a big file is copied up the whole mount stands still.
#[test]
fn nobody_waits_for_the_copy_up_of_another_file() {
    let tmp = tempfile::tempdir().unwrap();
    for dir in ["lower", "upper", "work"] {
        fs::create_dir(tmp.path().join(dir)).unwrap();
    }
    for name in ["slow", "quick", "gone"] {
        fs::write(tmp.path().join("lower").join(name), "below").unwrap();
    }
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let layer = Arc::new(Gated {
        inner: DirLayer::open(&tmp.path().join("lower")).unwrap(),
        gate: Arc::clone(&gate),
        slow: Mutex::default(),
        opened: AtomicUsize::new(0),
    });
    let upper = UpperDirs {
        upper: tmp.path().join("upper"),
        work: tmp.path().join("work"),
    };
    let stack = Stack {
        lowers: vec![Arc::clone(&layer) as Arc<dyn Layer>],
        upper: Some(upper),
    };
    let overlay = Overlay::new(stack, &Options::default()).unwrap();
    let find = |name: &str| {
        overlay
            .lookup(NodeId::ROOT, OsStr::new(name))
            .unwrap()
            .unwrap()
            .node
    };
    let slow = find("slow");
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|i| {
                scope.spawn({
                    let overlay = &overlay;
                    move || overlay.write(slow, i, b"X", false)
                })
            })
            .collect();
        while layer.opened.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        // The copy is under way and goes nowhere. Everything else does, in the same directory too.
        overlay.write(find("quick"), 0, b"ABOVE", false).unwrap();
        overlay.unlink(NodeId::ROOT, OsStr::new("gone")).unwrap();
        overlay
            .create(ROOT, NodeId::ROOT, OsStr::new("new"), 0o100_644, 0)
            .unwrap();
        overlay
            .rename(
                NodeId::ROOT,
                OsStr::new("new"),
                NodeId::ROOT,
                OsStr::new("newer"),
                RenameFlags::default(),
            )
            .unwrap();
        assert_eq!(overlay.getattr(slow).unwrap().size, 5);
        let mut listed = 0;
        overlay
            .read_dir(NodeId::ROOT, 0, true, &mut |_| {
                listed += 1;
                true
            })
            .unwrap();
        assert_eq!(listed, 5, "., .., slow, quick, newer");
        assert!(writers.iter().all(|w| !w.is_finished()));
        // Its name may even change meanwhile: the copy finds its place.
        let (open, opened) = &*gate;
        *open.lock().unwrap() = true;
        opened.notify_all();
        for writer in writers {
            assert_eq!(writer.join().unwrap(), Ok(1));
        }
    });
    assert_eq!(
        layer.opened.load(Ordering::SeqCst),
        1,
        "copied once, whoever came"
    );
    assert_eq!(fs::read(tmp.path().join("upper/slow")).unwrap(), b"XXXXw");
    overlay.shutdown();
}

/// Whatever a crash or somebody else left in the workdir: fuse-overlayfs once took such a file for its own copy.
#[test]
fn leftovers_in_the_workdir_never_show() {
    let mut b = Bench::new(|one, _| fs::write(one.join("f"), "lower").unwrap());
    b.close();
    let work = b.tmp.path().join("work/work");
    for i in 0..20 {
        fs::write(work.join(format!("#{i:x}")), "someone else's").unwrap();
    }
    fs::create_dir_all(work.join("#dir/with/depth")).unwrap();
    std::os::unix::fs::symlink("/etc", work.join("#link")).unwrap();
    b.remount();
    assert_eq!(fs::read_dir(&work).unwrap().count(), 0);
    assert!(
        fs::metadata("/etc/passwd").is_ok(),
        "the link went, not what it led to"
    );
    b.write("f", 0, b"L");
    assert_eq!(b.read("f"), b"Lower");
}

#[test]
fn threads_share_a_directory() {
    const THREADS: usize = 8;
    let b = Bench::new(|one, _| {
        for t in 0..THREADS {
            fs::create_dir(one.join(format!("d{t}"))).unwrap();
            for i in 0..20 {
                fs::write(one.join(format!("d{t}/f{i}")), "x").unwrap();
            }
        }
    });
    let start = Barrier::new(THREADS);
    let find = |dir: NodeId, name: &str| {
        b.overlay
            .lookup(dir, OsStr::new(name))
            .map(|e| e.unwrap().node)
    };
    std::thread::scope(|scope| {
        for t in 0..THREADS {
            let (b, start, find) = (&b, &start, &find);
            scope.spawn(move || {
                start.wait();
                let own = find(NodeId::ROOT, &format!("d{t}")).unwrap();
                let next = find(NodeId::ROOT, &format!("d{}", (t + 1) % THREADS)).unwrap();
                for i in 0..20 {
                    let name = format!("f{i}");
                    let moved = format!("t{t}-{i}");
                    let node = find(own, &name).unwrap();
                    b.overlay.write(node, 0, &[t as u8], false).unwrap();
                    // Crosswise between directories, each thread in another order of them.
                    b.overlay
                        .rename(
                            own,
                            OsStr::new(&name),
                            next,
                            OsStr::new(&moved),
                            RenameFlags::default(),
                        )
                        .unwrap();
                    b.overlay
                        .link(node, own, OsStr::new(&format!("again{i}")))
                        .unwrap();
                    if i % 3 == 0 {
                        b.overlay.unlink(next, OsStr::new(&moved)).unwrap();
                    }
                    let mut count = 0;
                    b.overlay
                        .read_dir(next, 0, false, &mut |_| {
                            count += 1;
                            true
                        })
                        .unwrap();
                    assert!(count > 2);
                }
            });
        }
    });
    for t in 0..THREADS {
        let from = (t + THREADS - 1) % THREADS;
        let mut want: Vec<String> = (0..20).map(|i| format!("again{i}")).collect();
        want.extend(
            (0..20)
                .filter(|i| i % 3 != 0)
                .map(|i| format!("t{from}-{i}")),
        );
        want.sort();
        assert_eq!(b.ls(&format!("d{t}")), want);
        for i in 0..20 {
            let entry = b.get(&format!("d{t}/again{i}"));
            assert_eq!(entry.attr.nlink, if i % 3 == 0 { 1 } else { 2 });
            assert_eq!(b.read(&format!("d{t}/again{i}")), [t as u8]);
        }
    }
}

/// A full disk in the middle of a copy-up leaves what was there, and the mount alive.
#[test]
fn no_space_in_the_middle_of_a_copy_up() {
    let b = Bench::new(|one, _| fs::write(one.join("big"), vec![7; 3 << 20]).unwrap());
    let small = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(small.path())
        .status()
        .unwrap();
    assert!(mounted.success());
    let outcome = std::panic::catch_unwind(|| {
        for dir in ["upper", "work"] {
            fs::create_dir(small.path().join(dir)).unwrap();
        }
        let upper = UpperDirs {
            upper: small.path().join("upper"),
            work: small.path().join("work"),
        };
        let lower = Arc::new(DirLayer::open(&b.tmp.path().join("lower1")).unwrap());
        let overlay = Overlay::new(
            Stack {
                lowers: vec![lower],
                upper: Some(upper),
            },
            &Options::default(),
        )
        .unwrap();
        let big = overlay
            .lookup(NodeId::ROOT, OsStr::new("big"))
            .unwrap()
            .unwrap()
            .node;
        assert_eq!(overlay.write(big, 0, b"!", false), Err(Errno::NOSPC));
        let mut buf = [0; 4];
        assert_eq!(overlay.read(big, 0, &mut buf), Ok(4));
        assert_eq!(buf, [7; 4]);
        assert_eq!(fs::read_dir(small.path().join("upper")).unwrap().count(), 0);
        assert_eq!(
            fs::read_dir(small.path().join("work/work"))
                .unwrap()
                .count(),
            0,
            "the piece is given back"
        );
        // There is room for small things again.
        overlay
            .create(ROOT, NodeId::ROOT, OsStr::new("small"), 0o100_644, 0)
            .unwrap();
        assert_eq!(
            fs::metadata(small.path().join("upper/small"))
                .unwrap()
                .size(),
            0
        );
        overlay.shutdown();
    });
    assert!(
        std::process::Command::new("umount")
            .arg("-l")
            .arg(small.path())
            .status()
            .unwrap()
            .success()
    );
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
