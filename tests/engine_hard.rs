//! What goes wrong between two steps, at odd sizes and at great depth.

mod engine_support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use engine_support::{Bench, ROOT};
use ovl::overlay::{NodeId, Options, RenameFlags, SetAttr, XattrSet};
use rustix::io::Errno;

fn metacopy() -> Options {
    Options {
        metacopy: true,
        ..Options::default()
    }
}

/// Xattrs that do not fit the inode take a block of their own, which the file system counts among the file's.
#[test]
fn a_small_file_without_data_is_known_by_its_mark() {
    let mut b = Bench::with(metacopy(), |one, _| {
        fs::write(one.join("small"), "data").unwrap();
    });
    let node = b.get("small").node;
    b.overlay
        .setxattr(node, OsStr::new("user.long"), &[7; 1000], XattrSet::Any)
        .unwrap();
    assert_eq!(b.read("small"), b"data");
    b.remount();
    assert_eq!(b.read("small"), b"data");
    b.write("small", 0, b"D");
    b.remount();
    assert_eq!(b.read("small"), b"Data");
}

/// Directories thousands of levels deep are opened step by step, not by recursion.
#[test]
fn depth_costs_no_stack() {
    const DEPTH: usize = 6000;
    let b = Bench::new(|_, _| {});
    let work = || {
        let mut at = NodeId::ROOT;
        for _ in 0..DEPTH {
            at = b
                .overlay
                .mkdir(ROOT, at, OsStr::new("d"), 0o755, 0)
                .unwrap()
                .node;
        }
        // Other directories take the kept descriptors.
        for i in 0..2000 {
            let name = format!("other{i}");
            let dir = b
                .overlay
                .mkdir(ROOT, NodeId::ROOT, OsStr::new(&name), 0o755, 0)
                .unwrap();
            for _ in 0..2 {
                assert!(
                    b.overlay
                        .lookup(dir.node, OsStr::new("x"))
                        .unwrap()
                        .is_none()
                );
            }
        }
        let made = b.overlay.mkdir(ROOT, at, OsStr::new("last"), 0o755, 0);
        assert!(made.is_ok(), "{made:?}");
        let changes = b.changes();
        assert_eq!(changes.len(), DEPTH + 2000 + 1);
        b.overlay.shutdown();
    };
    std::thread::scope(|s| {
        std::thread::Builder::new()
            .stack_size(512 << 10)
            .spawn_scoped(s, work)
            .unwrap()
            .join()
            .unwrap();
    });
}

/// Whoever uses a file while it is renamed finds it.
#[test]
fn a_file_on_the_move_is_never_stale() {
    let b = Bench::new(|_, _| {});
    let node = b.create("a", b"x").node;
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let lookers: Vec<_> = (0..2)
            .map(|_| {
                s.spawn(|| {
                    let mut asked = 0;
                    while !done.load(Ordering::Relaxed) {
                        b.overlay.getattr(node).unwrap();
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        for _ in 0..10_000 {
            b.rename("a", "b").unwrap();
            b.rename("b", "a").unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for looker in lookers {
            assert!(looker.join().unwrap() > 0);
        }
    });
}

/// All names of a hard-linked lower file are one node, also for those who look while it is being copied up.
#[test]
fn names_stay_one_node_while_the_file_is_copied_up() {
    const FILES: usize = 300;
    let b = Bench::new(|one, _| {
        fs::create_dir(one.join("a")).unwrap();
        fs::create_dir(one.join("b")).unwrap();
        for i in 0..FILES {
            fs::write(one.join(format!("a/{i}")), "x").unwrap();
            fs::hard_link(one.join(format!("a/{i}")), one.join(format!("b/{i}"))).unwrap();
        }
    });
    let other = b.get("b").node;
    for i in 0..FILES {
        let node = b.get(&format!("a/{i}")).node;
        let name = i.to_string();
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            let looker = s.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let seen = b.overlay.lookup(other, OsStr::new(&name)).unwrap().unwrap();
                    assert_eq!(seen.node, node, "file {i}");
                }
            });
            b.overlay.write(node, 0, b"y", false).unwrap();
            done.store(true, Ordering::Relaxed);
            looker.join().unwrap();
        });
    }
}

/// A rename that the upper refuses leaves both sides as they were.
#[test]
fn a_refused_rename_changes_nothing() {
    const IMMUTABLE: u32 = 0x10;
    let b = Bench::new(|_, _| {});
    b.mkdir("source").unwrap();
    b.mkdir("target").unwrap();
    let source = b.get("source").node;
    let target = b.get("target").node;
    b.overlay.set_flags(source, IMMUTABLE).unwrap();
    assert_eq!(b.rename("source", "target"), Err(Errno::PERM));
    // Whoever has the target open, as the kernel has, goes on using it.
    b.overlay
        .create(ROOT, target, OsStr::new("new"), libc::S_IFREG | 0o644, 0)
        .unwrap();
    assert_eq!(b.get("target").node, target);
    assert_eq!(b.ls("target"), ["new"]);
    b.overlay.set_flags(source, 0).unwrap();
    assert_eq!(b.rename("source", "target"), Err(Errno::NOTEMPTY));
    b.unlink("target/new").unwrap();
    b.rename("source", "target").unwrap();
    assert_eq!(b.get("target").node, source);
}

/// RENAME_WHITEOUT leaves a device 0:0 that its maker can see: an overlay on top of this one counts on it.
#[test]
fn a_whiteout_asked_for_is_there_to_be_seen() {
    let mut b = Bench::new(|one, _| {
        fs::write(one.join("low"), "x").unwrap();
        fs::create_dir(one.join("dir")).unwrap();
    });
    b.create("new", b"y");
    let flags = RenameFlags {
        whiteout: true,
        ..RenameFlags::default()
    };
    for name in ["low", "new", "dir"] {
        b.rename_with(name, &format!("{name}2"), flags).unwrap();
    }
    for _ in 0..2 {
        assert_eq!(b.ls("/"), ["dir", "dir2", "low", "low2", "new", "new2"]);
        for name in ["low", "new", "dir"] {
            let left = b.get(name).attr;
            assert_eq!(left.kind, ovl::meta::FileKind::CharDevice, "{name}");
            assert_eq!(left.rdev, 0);
        }
        b.remount();
    }
    b.unlink("low").unwrap();
    b.unlink("new").unwrap();
    b.remount();
    assert_eq!(b.ls("/"), ["dir", "dir2", "low2", "new2"]);
}

/// The kernel's overlayfs writes no redirect on a metacopy file that keeps its name.
#[test]
fn data_found_by_name_is_found_after_a_rename() {
    let mut b = Bench::with(metacopy(), |one, _| {
        for name in ["f", "g", "other"] {
            fs::write(one.join(name), format!("data of {name}")).unwrap();
        }
    });
    for name in ["f", "g"] {
        let set = SetAttr {
            perm: Some(0o600),
            ..SetAttr::default()
        };
        b.overlay.setattr(ROOT, b.get(name).node, &set).unwrap();
        rustix::fs::removexattr(b.upper(name), "trusted.overlay.redirect").unwrap();
    }
    b.remount();
    b.rename("f", "other").unwrap();
    b.link("g", "g2").unwrap();
    for _ in 0..2 {
        assert_eq!(b.read("other"), b"data of f");
        assert_eq!(b.read("g2"), b"data of g");
        b.remount();
    }
}

/// Runs a test of this file again in a process of its own; `true` there.
fn alone(test: &str, how: impl FnOnce(&mut Command)) -> bool {
    const MARK: &str = "OVL_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    // Where the other process may write, whoever it runs as.
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["--exact", "--nocapture", test])
        .current_dir("/")
        .env("TMPDIR", scratch.path())
        .env(MARK, "1");
    how(&mut command);
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    false
}

/// Permissions bind an ordinary user's daemon too, but not what it does for those who opened a file before.
#[test]
fn files_their_owner_may_not_read_or_write() {
    const NOBODY: u32 = 65534;
    if !alone("files_their_owner_may_not_read_or_write", |command| {
        command.uid(NOBODY).gid(NOBODY);
    }) {
        return;
    }
    let me = ovl::overlay::Caller {
        uid: NOBODY,
        gid: NOBODY,
        pid: 1,
    };
    let mut b = Bench::new(|one, _| {
        fs::create_dir(one.join("d")).unwrap();
        fs::write(one.join("d/ro"), "data").unwrap();
        fs::set_permissions(one.join("d/ro"), fs::Permissions::from_mode(0o444)).unwrap();
        fs::write(one.join("twice"), "data").unwrap();
        fs::hard_link(one.join("twice"), one.join("again")).unwrap();
        fs::set_permissions(one.join("twice"), fs::Permissions::from_mode(0o400)).unwrap();
        fs::create_dir(one.join("fixed")).unwrap();
        fs::write(one.join("fixed/f"), "data").unwrap();
        fs::set_permissions(one.join("fixed"), fs::Permissions::from_mode(0o555)).unwrap();
    });
    let chmod = |b: &Bench, path: &str, perm: u32| {
        let set = SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        };
        b.overlay.setattr(me, b.get(path).node, &set).unwrap();
    };
    let node = b.get("d/ro").node;
    chmod(&b, "d/ro", 0o440);
    b.write("twice", 0, b"D");
    let made = b
        .overlay
        .create(
            me,
            NodeId::ROOT,
            OsStr::new("made"),
            libc::S_IFREG | 0o444,
            0,
        )
        .unwrap();
    b.overlay.write(made.node, 0, b"more", false).unwrap();
    for (name, data) in [("shut", &b"x"[..]), ("empty", b"")] {
        let made = b
            .overlay
            .create(me, NodeId::ROOT, OsStr::new(name), libc::S_IFREG | 0o644, 0)
            .unwrap();
        b.overlay.write(made.node, 0, data, false).unwrap();
        chmod(&b, name, 0);
    }
    b.write("fixed/f", 0, b"D");
    // Written back by the kernel after its directory was shut.
    b.mkdir_as(me, "closed").unwrap();
    let closed = b.get("closed").node;
    let late = b
        .overlay
        .create(me, closed, OsStr::new("late"), libc::S_IFREG | 0o644, 0)
        .unwrap();
    chmod(&b, "closed", 0);
    b.overlay.write(late.node, 0, b"late", false).unwrap();
    let all = [
        "again", "closed", "d", "empty", "fixed", "made", "shut", "twice",
    ];
    for _ in 0..2 {
        assert_eq!(b.ls("/"), all);
        assert_eq!(b.read("fixed/f"), b"Data");
        assert_eq!(b.get("fixed").attr.perm, 0o555);
        assert_eq!(b.get("closed").attr.perm, 0);
        assert_eq!(b.get("d/ro").node, node);
        assert_eq!(b.get("d/ro").attr.perm, 0o440);
        assert_eq!(b.get("made").attr.perm, 0o444);
        assert_eq!(b.read("made"), b"more");
        assert_eq!(b.read("again"), b"Data");
        assert_eq!(b.get("shut").attr.perm, 0);
        b.remount();
    }
    b.unlink("shut").unwrap();
    b.unlink("empty").unwrap();
    chmod(&b, "closed", 0o700);
    assert_eq!(b.read("closed/late"), b"late");
    b.unlink("closed/late").unwrap();
    chmod(&b, "closed", 0);
    b.rmdir("closed").unwrap();
    assert_eq!(b.ls("/"), ["again", "d", "fixed", "made", "twice"]);
}

/// What is kept open for the next request must leave descriptors for this one.
#[test]
fn few_descriptors_are_enough() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    if !alone("few_descriptors_are_enough", |_| {}) {
        return;
    }
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(256);
    setrlimit(Resource::Nofile, limit).unwrap();
    let b = Bench::new(|_, _| {});
    for i in 0..600 {
        b.mkdir(&format!("d{i}")).unwrap();
        b.create(&format!("d{i}/f"), b"x");
        assert_eq!(b.read(&format!("d{i}/f")), b"x");
    }
}

/// Found by fuzzing: the link count was kept relative to the lower file's, which is not found by the new name.
#[test]
fn a_renamed_hard_link_counts_all_its_names() {
    let mut b = Bench::new(|one, _| {
        fs::create_dir(one.join("d")).unwrap();
        fs::write(one.join("a"), "x").unwrap();
        fs::hard_link(one.join("a"), one.join("b")).unwrap();
        fs::hard_link(one.join("a"), one.join("d/c")).unwrap();
    });
    b.rename("a", "new").unwrap();
    for _ in 0..2 {
        for name in ["new", "d/c", "b"] {
            assert_eq!(b.get(name).attr.nlink, 3, "{name}");
        }
        b.remount();
    }
    b.unlink("b").unwrap();
    b.remount();
    assert_eq!(b.get("new").attr.nlink, 2);
}

/// Found by fuzzing: `..` in a relative redirect led out of the directory it stands in, and out of the layer at its root; a NUL
/// byte was EINVAL for whoever looked.
#[test]
fn a_redirect_that_is_no_name_leads_nowhere() {
    for redirect in [&b".."[..], b".", b"a\0b", b"", b"x/y", &[b'n'; 300]] {
        let mut b = Bench::new(|one, _| {
            fs::create_dir_all(one.join("d/e")).unwrap();
            fs::write(one.join("d/inner"), "x").unwrap();
        });
        b.close();
        for dir in ["new", "d", "d/new"] {
            fs::create_dir(b.upper(dir)).unwrap();
            if dir != "d" {
                rustix::fs::setxattr(
                    b.upper(dir),
                    "trusted.overlay.redirect",
                    redirect,
                    rustix::fs::XattrFlags::empty(),
                )
                .unwrap();
            }
        }
        b.remount();
        assert_eq!(b.ls("new"), [""; 0], "{redirect:?}");
        assert_eq!(b.ls("d/new"), [""; 0], "{redirect:?}");
        assert_eq!(b.ls("d"), ["e", "inner", "new"], "{redirect:?}");
    }
}
