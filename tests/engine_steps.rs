//! What takes several steps on disk: what others see in between, and a crash would leave.

mod engine_support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use engine_support::{Bench, ROOT};
use ovl::overlay::{Caller, RenameFlags, SetAttr, XattrSet};
use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// Runs `act` while another thread looks at the upper again and again; `wrong` says what it must never see.
fn watched(wrong: impl Fn() -> Option<String> + Sync, act: impl FnOnce()) {
    /// Ends the looking whatever happens.
    struct Ended<'a>(&'a AtomicBool);
    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if let Some(seen) = wrong() {
                    panic!("{seen}");
                }
            }
        });
        let _ended = Ended(&stop);
        act();
    });
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The kernel keeps what it was told of a new object for ever: it was told the ctime from before the object was moved
/// to its place, and another one after its caches had been dropped.
#[test]
fn a_new_object_is_described_as_it_is() {
    let b = Bench::new(|one, _| {
        for i in 0..200 {
            fs::write(one.join(format!("f{i}")), "x").unwrap();
        }
    });
    for i in 0..200 {
        let name = format!("f{i}");
        b.unlink(&name).unwrap();
        let (dir, file) = b.parent(&name);
        let made = match i % 3 {
            0 => b.overlay.create(ROOT, dir, file, libc::S_IFREG | 0o644, 0),
            1 => b.overlay.mkdir(ROOT, dir, file, 0o755, 0),
            _ => b
                .overlay
                .mknod(ROOT, dir, file, libc::S_IFCHR | 0o600, 0, 0),
        };
        let made = made.unwrap();
        let now = b.overlay.getattr(made.node).unwrap();
        assert_eq!(made.attr.ctime, now.ctime, "{name}");
        assert_eq!(made.attr.mtime, now.mtime, "{name}");
    }
}

/// A file system that knows no RENAME_WHITEOUT, nor whiteouts that are devices: the kernel's overlayfs.
struct Overlayfs {
    bench: Bench,
    _below: tempfile::TempDir,
}

impl Overlayfs {
    fn new(fill: impl FnOnce(&Path)) -> Self {
        let below = tempfile::tempdir().unwrap();
        for dir in ["lower", "upper", "work"] {
            fs::create_dir(below.path().join(dir)).unwrap();
        }
        let bench = Bench::new(|one, _| {
            let base = one.parent().unwrap();
            let options = format!(
                "lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work",
                below.path().display()
            );
            let mounted = Command::new("mount")
                .args(["-t", "overlay", "overlay", "-o", &options])
                .arg(base)
                .status();
            assert!(mounted.unwrap().success());
            for dir in ["lower1", "lower2", "upper", "work"] {
                fs::create_dir(base.join(dir)).unwrap();
            }
            fill(&base.join("lower1"));
        });
        Self {
            bench,
            _below: below,
        }
    }
}

impl Drop for Overlayfs {
    fn drop(&mut self) {
        self.bench.close();
        let base = self.bench.tmp.path();
        // Lazily: a process that another test is just starting holds copies of our files until exec closes them.
        let _ = Command::new("umount").arg("-l").arg(base).status();
    }
}

/// The object was moved first and its old name hidden afterwards: a crash in between brought the lower's object back,
/// under the old name.
#[test]
fn a_rename_in_steps_never_shows_the_lower_again() {
    const COUNT: usize = 150;
    let fs_ = Overlayfs::new(|one| {
        for i in 0..COUNT {
            fs::write(one.join(format!("f{i}")), "below").unwrap();
            fs::create_dir(one.join(format!("d{i}"))).unwrap();
            fs::write(one.join(format!("d{i}/in")), "below").unwrap();
        }
    });
    let b = &fs_.bench;
    let now = std::sync::atomic::AtomicUsize::new(0);
    let wrong = || {
        let i = now.load(Ordering::SeqCst);
        for kind in ["f", "d"] {
            let (old, new) = (format!("{kind}{i}"), format!("new-{kind}{i}"));
            // The new name first: once it is there, the old one stays hidden.
            if exists(&b.upper(&new)) && !is_whiteout(&b.upper(&new)) && !exists(&b.upper(&old)) {
                return Some(format!("{new} is there, and nothing hides {old}"));
            }
            if is_whiteout(&b.upper(&old)) && !exists(&b.upper(&new)) {
                return Some(format!("{old} is gone, and {new} is not there"));
            }
        }
        let target = b.upper(&format!("target{i}"));
        (i > 0 && !exists(&target)).then(|| format!("{} is gone", target.display()))
    };
    watched(wrong, || {
        for i in 0..COUNT {
            b.create(&format!("target{i}"), b"old");
            now.store(i, Ordering::SeqCst);
            b.rename(&format!("f{i}"), &format!("new-f{i}")).unwrap();
            b.rename(&format!("d{i}"), &format!("new-d{i}")).unwrap();
            b.create(&format!("f{i}"), b"again");
            b.rename(&format!("f{i}"), &format!("target{i}")).unwrap();
        }
    });
    for i in 0..COUNT {
        assert_eq!(b.find(&format!("f{i}")).unwrap().map(|_| ()), None);
        assert_eq!(b.find(&format!("d{i}")).unwrap().map(|_| ()), None);
        assert_eq!(b.read(&format!("new-f{i}")), b"below");
        assert_eq!(b.read(&format!("new-d{i}/in")), b"below");
        assert_eq!(b.read(&format!("target{i}")), b"again");
        assert_eq!(b.get(&format!("target{i}")).attr.nlink, 1);
    }
}

/// An xattr whiteout, which is what can be made on the kernel's overlayfs.
fn is_whiteout(path: &Path) -> bool {
    let mut value = [0; 8];
    rustix::fs::lgetxattr(path, "trusted.overlay.whiteout", &mut value[..]).is_ok()
}

/// Directories too, over an empty one that shows a lower's, and with the flags that such a file system has.
#[test]
fn renames_in_steps_end_as_others_do() {
    let mut fs_ = Overlayfs::new(|one| {
        for dir in ["full", "empty", "other"] {
            fs::create_dir(one.join(dir)).unwrap();
        }
        fs::write(one.join("full/in"), "below").unwrap();
        fs::write(one.join("other/in"), "other").unwrap();
        fs::write(one.join("file"), "file").unwrap();
        fs::hard_link(one.join("file"), one.join("hard")).unwrap();
    });
    let b = &mut fs_.bench;
    b.rename("full", "empty").unwrap();
    b.rename("hard", "moved").unwrap();
    b.rename_with(
        "empty",
        "other",
        RenameFlags {
            exchange: true,
            ..RenameFlags::default()
        },
    )
    .unwrap();
    for _ in 0..2 {
        assert_eq!(b.ls("/"), ["empty", "file", "moved", "other"]);
        assert_eq!(b.read("other/in"), b"below");
        assert_eq!(b.read("empty/in"), b"other");
        assert_eq!(b.get("moved").node, b.get("file").node);
        assert_eq!(b.get("moved").attr.nlink, 2);
        b.remount();
    }
}

/// What never had a name leaves nothing; what got one is there after a remount, its own number among it.
#[test]
fn a_file_without_a_name_gets_one_or_goes() {
    let mut b = Bench::new(|one, _| {
        fs::create_dir(one.join("d")).unwrap();
        fs::write(one.join("d/old"), "old").unwrap();
    });
    let dir = b.get("d").node;
    let make = |b: &Bench, mode| b.overlay.tmpfile(ROOT, dir, mode, 0o027).unwrap();
    let (kept, lost) = (
        make(&b, libc::S_IFREG | 0o666),
        make(&b, libc::S_IFREG | 0o600),
    );
    assert_eq!(
        (kept.attr.nlink, kept.attr.perm, lost.attr.nlink),
        (0, 0o640, 0)
    );
    for (entry, text) in [(&kept, &b"kept"[..]), (&lost, b"lost")] {
        b.overlay.write(entry.node, 0, text, false).unwrap();
    }
    assert_eq!(b.changes(), Vec::<String>::new());
    assert_eq!(
        b.overlay.link(kept.node, dir, OsStr::new("old")).err(),
        Some(Errno::EXIST)
    );
    b.unlink("d/old").unwrap();
    for name in ["old", "again"] {
        let entry = b.overlay.link(kept.node, dir, OsStr::new(name)).unwrap();
        assert_eq!(entry.node, kept.node);
    }
    b.overlay.forget(lost.node, 1);
    assert_eq!(b.overlay.getattr(lost.node).err(), Some(Errno::STALE));
    for _ in 0..2 {
        assert_eq!(b.ls("d"), ["again", "old"]);
        assert_eq!(b.read("d/old"), b"kept");
        let entry = b.get("d/again");
        assert_eq!((entry.node, entry.attr.nlink), (kept.node, 2));
        b.remount();
    }
    b.rmdir("d").unwrap_err();
    for name in ["d/old", "d/again"] {
        b.unlink(name).unwrap();
    }
    let gone = b.get("d").node;
    b.rmdir("d").unwrap();
    let made = b.overlay.tmpfile(ROOT, gone, libc::S_IFREG | 0o600, 0);
    assert_eq!(made.err(), Some(Errno::NOENT));
}

/// What is made in the work directory, and comes from there to its place, has nothing of where the work directory lies, nor
/// has the root of an upper made for this mount.
#[test]
fn no_acl_comes_from_the_work_directory() {
    let b = Bench::new(|one, _| {
        fs::create_dir_all(one.join("plain/gone dir")).unwrap();
        for name in ["changed", "gone"] {
            fs::write(one.join("plain").join(name), "x").unwrap();
        }
        let set = Command::new("setfacl")
            .args(["-d", "-m", "u:7:rwx"])
            .args(["work", "upper"].map(|dir| one.with_file_name(dir)))
            .status();
        assert!(set.unwrap().success());
    });
    b.overlay.dress_root().unwrap();
    b.create("in the root", b"");
    let dir = b.get("plain").node;
    let made = b
        .overlay
        .tmpfile(ROOT, dir, libc::S_IFREG | 0o660, 0)
        .unwrap();
    b.overlay
        .link(made.node, dir, OsStr::new("unnamed"))
        .unwrap();
    b.write("plain/changed", 0, b"y");
    b.unlink("plain/gone").unwrap();
    b.create("plain/gone", b"over a whiteout");
    b.rmdir("plain/gone dir").unwrap();
    b.mkdir("plain/gone dir").unwrap();
    let own = Caller {
        uid: 1001,
        gid: 1002,
        pid: 1,
    };
    b.mkdir_as(own, "plain/theirs").unwrap();
    let in_plain = ["", "unnamed", "changed", "gone", "gone dir", "theirs"];
    let paths = in_plain.map(|name| b.upper("plain").join(name));
    for path in paths.iter().chain(&[b.upper(""), b.upper("in the root")]) {
        for acl in ["system.posix_acl_access", "system.posix_acl_default"] {
            let mut value = [0; 200];
            let found = rustix::fs::lgetxattr(path, acl, &mut value);
            assert_eq!(found.err(), Some(Errno::NODATA), "{acl} of {path:?}");
        }
    }
}

/// A new object was made in its place and given to its owner afterwards: a crash in between left it root's, and whoever
/// looked saw it so.
#[test]
fn a_new_object_is_its_owners_from_the_start() {
    let b = Bench::new(|one, _| {
        fs::create_dir(one.join("acl")).unwrap();
        fs::create_dir(one.join("plain")).unwrap();
        let made = Command::new("setfacl")
            .args(["-d", "-m", "u:7:rwx"])
            .arg(one.join("acl"))
            .status();
        assert!(made.unwrap().success());
    });
    let caller = Caller {
        uid: 1001,
        gid: 1002,
        pid: 1,
    };
    for dir in ["acl", "plain"] {
        b.create(&format!("{dir}/first"), b"");
    }
    let now = std::sync::atomic::AtomicUsize::new(0);
    let wrong = || {
        let i = now.load(Ordering::SeqCst);
        for name in [
            format!("plain/f{i}"),
            format!("plain/d{i}"),
            format!("acl/f{i}"),
        ] {
            let Ok(meta) = b.upper(&name).symlink_metadata() else {
                continue;
            };
            let owner = (meta.uid(), meta.gid());
            if owner != (1001, 1002) {
                return Some(format!("{name} is {owner:?}'s"));
            }
            if meta.mode() & 0o7000 != 0o4000 && meta.is_file() {
                return Some(format!("{name} has mode {:o}", meta.mode()));
            }
        }
        None
    };
    watched(wrong, || {
        for i in 0..300 {
            now.store(i, Ordering::SeqCst);
            for name in [format!("plain/f{i}"), format!("acl/f{i}")] {
                let (dir, name) = b.parent(&name);
                let made = b
                    .overlay
                    .create(caller, dir, name, libc::S_IFREG | 0o4755, 0o022);
                assert_eq!(made.unwrap().attr.perm & 0o4000, 0o4000);
            }
            b.mkdir_as(caller, &format!("plain/d{i}")).unwrap();
        }
    });
    let work = fs::read_dir(b.tmp.path().join("work/work")).unwrap();
    assert_eq!(work.count(), 0, "nothing is left in the workdir");
}

/// Where a directory's old path does not fit an xattr the answer was ENOSPC, which mv(1) gives up on. It is the
/// kernel's EXDEV, at which it copies.
#[test]
fn a_path_too_long_for_a_redirect() {
    const NAME: &str = "a-name-of-a-directory-that-is-quite-long-so-that-not-too-many-are-needed";
    let path = [NAME; 70].join("/");
    let b = Bench::new(|one, _| {
        let mut at = rustix::fs::open(one, OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..70 {
            rustix::fs::mkdirat(&at, NAME, Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, NAME, OFlags::PATH, Mode::empty()).unwrap();
        }
        rustix::fs::mkdirat(&at, "moving", Mode::RWXU).unwrap();
        rustix::fs::mkdirat(&at, "moving/inner", Mode::RWXU).unwrap();
    });
    let from = format!("{path}/moving");
    assert!(from.len() > 4096);
    assert_eq!(b.rename(&from, "top"), Err(Errno::XDEV));
    assert!(b.find("top").unwrap().is_none());
    assert_eq!(b.ls(&from), ["inner"]);
    // Beside its old place a name is enough.
    let beside = format!("{path}/beside");
    b.rename(&from, &beside).unwrap();
    assert_eq!(b.ls(&beside), ["inner"]);
}

/// A chmod of the root was shown, but no diff told of it and no commit kept it.
#[test]
fn changes_of_the_root_are_told() {
    let mut b = Bench::new(|one, two| {
        fs::write(one.join("f"), "x").unwrap();
        for dir in [one, two] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
    });
    let root = b.get("").node;
    let chmod = |b: &Bench, perm| {
        let set = SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        };
        b.overlay.setattr(ROOT, root, &set).unwrap();
    };
    chmod(&b, 0o755);
    assert_eq!(b.changes(), [""; 0]);
    b.create("new", b"");
    assert_eq!(b.changes(), ["A new"], "its time alone is no change");
    chmod(&b, 0o700);
    assert_eq!(b.changes(), ["C ", "A new"]);
    b.remount();
    assert_eq!(b.changes(), ["C ", "A new"]);
    chmod(&b, 0o755);
    assert_eq!(b.changes(), ["A new"]);
    b.overlay
        .setxattr(root, OsStr::new("user.a"), b"v", XattrSet::Any)
        .unwrap();
    assert_eq!(b.changes(), ["C ", "A new"]);
    // Without an upper, or with the same xattr below, nothing changed.
    rustix::fs::setxattr(
        b.tmp.path().join("lower2"),
        "user.a",
        b"v",
        XattrFlags::empty(),
    )
    .unwrap();
    b.remount();
    assert_eq!(b.changes(), ["A new"]);
}
