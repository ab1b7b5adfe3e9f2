//! `Options::inspect`: a second engine looks at the upper of a live mount. It must see what was done, change nothing, and
//! leave the work directory, which is the first engine's, alone.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ovl::layer::{DirLayer, Layer};
use ovl::overlay::{
    Caller, ChangeKind, NodeId, OpenError, Options, Overlay, SetAttr, Stack, UpperDirs, XattrSet,
};
use rustix::io::Errno;

const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};

fn open(base: &Path, inspect: bool) -> Result<Overlay, OpenError> {
    let lower: Arc<dyn Layer> = Arc::new(DirLayer::open(&base.join("lower")).unwrap());
    let upper = Some(UpperDirs {
        upper: base.join("upper"),
        work: base.join("work"),
    });
    Overlay::new(
        Stack {
            lowers: vec![lower],
            upper,
        },
        &Options {
            inspect,
            ..Options::default()
        },
    )
}

fn dirs() -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    for dir in ["lower/dir", "upper", "work"] {
        std::fs::create_dir_all(base.path().join(dir)).unwrap();
    }
    std::fs::write(base.path().join("lower/dir/file"), "lower").unwrap();
    std::fs::write(base.path().join("lower/gone"), "").unwrap();
    base
}

/// Everything below a directory but its own times.
fn names(dir: &Path) -> Vec<PathBuf> {
    let walk = walkdir::WalkDir::new(dir).sort_by_file_name();
    walk.into_iter()
        .map(|entry| entry.unwrap().into_path())
        .collect()
}

#[test]
fn a_live_upper_can_be_looked_at_and_not_changed() {
    let base = dirs();
    let live = open(base.path(), false).unwrap();
    let dir = live
        .lookup(NodeId::ROOT, OsStr::new("dir"))
        .unwrap()
        .unwrap();
    let file = live.lookup(dir.node, OsStr::new("file")).unwrap().unwrap();
    live.write(file.node, 0, b"upper", false).unwrap();
    live.unlink(NodeId::ROOT, OsStr::new("gone")).unwrap();

    assert!(
        matches!(open(base.path(), false), Err(OpenError::Busy(_))),
        "two engines may not own one upper"
    );
    let before = (
        names(&base.path().join("upper")),
        names(&base.path().join("work")),
    );
    let looking = open(base.path(), true).unwrap();
    assert!(looking.is_read_only());

    let mut changes = Vec::new();
    looking
        .changes(&mut |change| {
            changes.push((change.kind, change.path.to_str().unwrap().to_owned()));
            Ok(())
        })
        .unwrap();
    let want = [
        (ChangeKind::Changed, "dir"),
        (ChangeKind::Changed, "dir/file"),
        (ChangeKind::Deleted, "gone"),
    ];
    assert_eq!(changes, want.map(|(kind, path)| (kind, path.to_owned())));

    let dir = looking
        .lookup(NodeId::ROOT, OsStr::new("dir"))
        .unwrap()
        .unwrap();
    let file = looking
        .lookup(dir.node, OsStr::new("file"))
        .unwrap()
        .unwrap();
    let mut bytes = [0; 5];
    assert_eq!(
        (looking.read(file.node, 0, &mut bytes), &bytes),
        (Ok(5), b"upper")
    );

    let (node, name) = (file.node, OsStr::new("new"));
    let chmod = SetAttr {
        perm: Some(0o600),
        ..SetAttr::default()
    };
    assert_eq!(looking.write(node, 0, b"x", false), Err(Errno::ROFS));
    assert_eq!(
        looking.setattr(ROOT, node, &chmod).map(drop),
        Err(Errno::ROFS)
    );
    assert_eq!(
        looking.create(ROOT, dir.node, name, 0o100_644, 0).map(drop),
        Err(Errno::ROFS)
    );
    assert_eq!(
        looking.mkdir(ROOT, dir.node, name, 0o755, 0).map(drop),
        Err(Errno::ROFS)
    );
    assert_eq!(
        looking.symlink(ROOT, dir.node, name, name).map(drop),
        Err(Errno::ROFS)
    );
    assert_eq!(
        looking.link(node, dir.node, name).map(drop),
        Err(Errno::ROFS)
    );
    assert_eq!(
        looking.unlink(dir.node, OsStr::new("file")),
        Err(Errno::ROFS)
    );
    assert_eq!(
        looking.rmdir(NodeId::ROOT, OsStr::new("dir")),
        Err(Errno::ROFS)
    );
    assert_eq!(
        looking.rename(
            dir.node,
            OsStr::new("file"),
            dir.node,
            name,
            Default::default()
        ),
        Err(Errno::ROFS)
    );
    assert_eq!(
        looking.setxattr(node, OsStr::new("user.x"), b"x", XattrSet::Any),
        Err(Errno::ROFS)
    );
    looking.shutdown();

    assert_eq!(
        (
            names(&base.path().join("upper")),
            names(&base.path().join("work"))
        ),
        before
    );
    live.write(file.node, 0, b"later", false).unwrap();
    live.shutdown();
}
