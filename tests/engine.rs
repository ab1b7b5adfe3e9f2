//! The merge engine by itself, without FUSE: each test tells one thing the overlay must keep.

mod engine_support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use engine_support::{Bench, ROOT};
use ovl::layer::DirLayer;
use ovl::meta::FileKind;
use ovl::overlay::{NodeId, Options, Overlay, RenameFlags, SetAttr, Stack, UpperDirs, XattrSet};
use rustix::io::Errno;

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|m| m.mode() & libc::S_IFMT == libc::S_IFCHR && m.rdev() == 0)
}

#[test]
fn layers_merge_top_first() {
    let b = Bench::new(|one, two| {
        fs::create_dir_all(one.join("d/sub")).unwrap();
        fs::write(one.join("d/a"), "low a").unwrap();
        fs::write(one.join("d/b"), "low b").unwrap();
        fs::write(one.join("file-then-dir"), "x").unwrap();
        fs::create_dir_all(two.join("d")).unwrap();
        fs::write(two.join("d/a"), "high a").unwrap();
        fs::create_dir(two.join("file-then-dir")).unwrap();
    });
    assert_eq!(b.ls("/"), ["d", "file-then-dir"]);
    assert_eq!(b.ls("d"), ["a", "b", "sub"]);
    assert_eq!(b.read("d/a"), b"high a");
    assert_eq!(b.read("d/b"), b"low b");
    assert_eq!(b.ls("file-then-dir"), [""; 0]);
    assert!(b.find("d/none").unwrap().is_none());
}

#[test]
fn whiteouts_of_every_form_hide() {
    let b = Bench::new(|one, two| {
        for name in ["kernel", "aufs", "kept"] {
            fs::write(one.join(name), "x").unwrap();
        }
        fs::create_dir(one.join("opq")).unwrap();
        fs::write(one.join("opq/old"), "x").unwrap();
        fs::create_dir(one.join("aufsopq")).unwrap();
        fs::write(one.join("aufsopq/old"), "x").unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            two.join("kernel"),
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::empty(),
            0,
        )
        .unwrap();
        fs::write(two.join(".wh.aufs"), "").unwrap();
        fs::create_dir(two.join("opq")).unwrap();
        fs::write(two.join("opq/new"), "x").unwrap();
        rustix::fs::setxattr(
            two.join("opq"),
            "trusted.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        fs::create_dir(two.join("aufsopq")).unwrap();
        fs::write(two.join("aufsopq/.wh..wh..opq"), "").unwrap();
    });
    assert_eq!(b.ls("/"), ["aufsopq", "kept", "opq"]);
    assert_eq!(b.ls("opq"), ["new"]);
    assert_eq!(b.ls("aufsopq"), [""; 0]);
    for gone in ["kernel", "aufs", ".wh.aufs", "opq/old", "aufsopq/old"] {
        assert!(b.find(gone).unwrap().is_none(), "{gone}");
    }
}

/// The kernel's overlayfs cannot tell a device 0:0 from a whiteout: what mknod made is gone at once.
#[test]
fn a_users_own_device_zero_is_no_whiteout() {
    let mut b = Bench::new(|one, _| fs::write(one.join("f"), "x").unwrap());
    b.unlink("f").unwrap();
    for name in ["f", "new"] {
        let (dir, name) = b.parent(name);
        b.overlay
            .mknod(ROOT, dir, name, libc::S_IFCHR | 0o600, 0, 0)
            .unwrap();
    }
    for _ in 0..2 {
        assert_eq!(b.ls("/"), ["f", "new"]);
        assert_eq!(b.get("new").attr.kind, FileKind::CharDevice);
        b.remount();
    }
    b.unlink("f").unwrap();
    b.unlink("new").unwrap();
    b.remount();
    assert_eq!(b.ls("/"), [""; 0]);
}

#[test]
fn copy_up_keeps_everything_and_the_lower_untouched() {
    let mut b = Bench::new(|one, _| {
        fs::create_dir_all(one.join("d/e")).unwrap();
        fs::write(one.join("d/e/f"), "0123456789").unwrap();
        fs::set_permissions(one.join("d/e/f"), fs::Permissions::from_mode(0o4751)).unwrap();
        std::os::unix::fs::chown(one.join("d/e/f"), Some(12), Some(34)).unwrap();
        fs::set_permissions(one.join("d/e/f"), fs::Permissions::from_mode(0o4751)).unwrap();
        rustix::fs::setxattr(
            one.join("d/e/f"),
            "user.color",
            b"blue",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        fs::set_permissions(one.join("d/e"), fs::Permissions::from_mode(0o710)).unwrap();
    });
    let before = b.get("d/e/f");
    let dir = b.get("d/e");
    b.write("d/e/f", 3, b"ABC");
    let after = b.get("d/e/f");
    assert_eq!(after.node, before.node);
    assert_eq!(b.read("d/e/f"), b"012ABC6789");
    assert_eq!(
        (after.attr.perm, after.attr.uid, after.attr.gid),
        (0o4751, 12, 34)
    );
    assert_eq!(
        b.overlay
            .getxattr(after.node, OsStr::new("user.color"))
            .unwrap(),
        b"blue"
    );
    assert_eq!(b.overlay.listxattr(after.node).unwrap(), b"user.color\0");
    assert_eq!(
        fs::read(b.tmp.path().join("lower1/d/e/f")).unwrap(),
        b"0123456789"
    );
    let dir_after = b.get("d/e");
    assert_eq!((dir_after.node, dir_after.attr.perm), (dir.node, 0o710));
    assert_eq!(
        dir_after.attr.mtime, dir.attr.mtime,
        "a copy-up is no change of the directory"
    );
    b.remount();
    assert_eq!(
        b.get("d/e/f").node,
        before.node,
        "the inode number outlives the mount"
    );
    assert_eq!(b.get("d/e").node, dir.node);
    assert_eq!(b.ls("d/e"), ["f"]);
    assert_eq!(b.read("d/e/f"), b"012ABC6789");
}

#[test]
fn sparse_files_stay_sparse() {
    let b = Bench::new(|one, _| {
        let f = fs::File::create(one.join("sparse")).unwrap();
        f.set_len(64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&f, b"end", (64 << 20) - 3).unwrap();
    });
    b.write("sparse", 0, b"x");
    let meta = fs::metadata(b.upper("sparse")).unwrap();
    assert_eq!(meta.size(), 64 << 20);
    assert!(meta.blocks() < 64, "{} blocks", meta.blocks());
    let mut tail = [0; 3];
    b.overlay
        .read(b.get("sparse").node, (64 << 20) - 3, &mut tail)
        .unwrap();
    assert_eq!(&tail, b"end");
}

#[test]
fn truncation_copies_only_what_stays() {
    let b = Bench::new(|one, _| fs::write(one.join("f"), vec![7; 100_000]).unwrap());
    let node = b.get("f").node;
    let attr = b
        .overlay
        .setattr(
            ROOT,
            node,
            &SetAttr {
                size: Some(3),
                ..SetAttr::default()
            },
        )
        .unwrap();
    assert_eq!(attr.size, 3);
    assert_eq!(b.read("f"), [7, 7, 7]);
    let attr = b
        .overlay
        .setattr(
            ROOT,
            node,
            &SetAttr {
                size: Some(5),
                ..SetAttr::default()
            },
        )
        .unwrap();
    assert_eq!(attr.size, 5);
    assert_eq!(b.read("f"), [7, 7, 7, 0, 0]);
}

#[test]
fn deleted_and_made_again() {
    let mut b = Bench::new(|one, _| {
        fs::write(one.join("f"), "old").unwrap();
        fs::create_dir_all(one.join("d/sub")).unwrap();
        fs::write(one.join("d/x"), "old").unwrap();
    });
    b.unlink("f").unwrap();
    assert!(is_whiteout(&b.upper("f")));
    assert_eq!(b.ls("/"), ["d"]);
    assert_eq!(b.rmdir("d"), Err(Errno::NOTEMPTY));
    b.unlink("d/x").unwrap();
    b.rmdir("d/sub").unwrap();
    b.rmdir("d").unwrap();
    assert!(is_whiteout(&b.upper("d")));
    assert_eq!(b.ls("/"), [""; 0]);
    b.mkdir("d").unwrap();
    assert_eq!(b.ls("d"), [""; 0]);
    b.create("f", b"new");
    assert_eq!(b.read("f"), b"new");
    b.remount();
    assert_eq!(b.ls("/"), ["d", "f"]);
    assert_eq!(b.ls("d"), [""; 0]);
    assert_eq!(b.changes(), ["C d (opaque)", "D d/sub", "D d/x", "C f"]);
}

/// fuse-overlayfs lost what was written by one name of a hard-linked lower file when it was read by another after a
/// remount: each name got a copy of its own.
#[test]
fn hard_links_of_a_lower_file_stay_one_file() {
    let mut b = Bench::new(|one, _| {
        fs::write(one.join("a"), "shared").unwrap();
        fs::hard_link(one.join("a"), one.join("b")).unwrap();
        fs::create_dir(one.join("d")).unwrap();
        fs::hard_link(one.join("a"), one.join("d/c")).unwrap();
    });
    let (a, c) = (b.get("a"), b.get("d/c"));
    assert_eq!((a.node, a.attr.nlink), (c.node, 3));
    b.write("a", 0, b"SH");
    assert_eq!(b.read("d/c"), b"SHared");
    for _ in 0..2 {
        for name in ["a", "b", "d/c"] {
            let e = b.get(name);
            assert_eq!((e.node, e.attr.nlink), (a.node, 3), "{name}");
            assert_eq!(b.read(name), b"SHared", "{name}");
        }
        b.remount();
    }
    assert_eq!(b.changes(), ["C a", "C b", "C d", "C d/c"]);
    b.unlink("b").unwrap();
    assert_eq!(b.get("a").attr.nlink, 2);
    b.link("d/c", "e").unwrap();
    assert_eq!(b.get("a").attr.nlink, 3);
    b.remount();
    assert_eq!((b.get("e").node, b.get("e").attr.nlink), (a.node, 3));
    assert_eq!(b.ls("/"), ["a", "d", "e"]);
    for name in ["a", "e", "d/c"] {
        b.unlink(name).unwrap();
    }
    assert_eq!(
        fs::read_dir(b.tmp.path().join("work/index"))
            .unwrap()
            .count(),
        0,
        "the last name takes the index along"
    );
    b.remount();
    assert_eq!(b.ls("/"), ["d"]);
}

#[test]
fn unlink_of_one_name_before_any_copy_up() {
    let mut b = Bench::new(|one, _| {
        fs::write(one.join("a"), "shared").unwrap();
        fs::hard_link(one.join("a"), one.join("b")).unwrap();
    });
    b.unlink("a").unwrap();
    assert_eq!(b.get("b").attr.nlink, 1);
    b.remount();
    assert_eq!(b.get("b").attr.nlink, 1);
    assert_eq!(b.read("b"), b"shared");
}

#[test]
fn directories_of_the_lower_can_be_renamed() {
    let mut b = Bench::new(|one, two| {
        fs::create_dir_all(one.join("d/sub/deep")).unwrap();
        fs::write(one.join("d/sub/f"), "one").unwrap();
        fs::create_dir_all(two.join("d/sub")).unwrap();
        fs::write(two.join("d/sub/g"), "two").unwrap();
        fs::create_dir(one.join("other")).unwrap();
        fs::create_dir(one.join("empty")).unwrap();
    });
    let node = b.get("d/sub").node;
    b.rename("d", "moved").unwrap();
    assert_eq!(b.ls("moved/sub"), ["deep", "f", "g"]);
    b.rename("moved/sub", "other/sub2").unwrap();
    for _ in 0..2 {
        assert_eq!(b.ls("/"), ["empty", "moved", "other"]);
        assert_eq!(b.ls("moved"), [""; 0]);
        assert_eq!(b.ls("other/sub2"), ["deep", "f", "g"]);
        assert_eq!(b.read("other/sub2/f"), b"one");
        assert_eq!(b.get("other/sub2").node, node);
        b.remount();
    }
    b.rename("other/sub2", "empty").unwrap();
    b.unlink("empty/f").unwrap();
    b.remount();
    assert_eq!(b.ls("empty"), ["deep", "g"]);
    b.rename("empty", "d").unwrap();
    b.rename("d", "moved/sub").unwrap();
    b.rename("moved", "d").unwrap();
    b.remount();
    assert_eq!(b.ls("d/sub"), ["deep", "g"]);
    assert_eq!(b.ls("/"), ["d", "other"]);
    assert_eq!(b.rename("d", "d/sub/deep/x"), Err(Errno::INVAL));
    assert_eq!(b.rename("other", "d"), Err(Errno::NOTEMPTY));
}

#[test]
fn exchange_noreplace_and_whiteout() {
    let mut b = Bench::new(|one, _| {
        fs::create_dir(one.join("d")).unwrap();
        fs::write(one.join("d/f"), "x").unwrap();
        fs::write(one.join("f"), "file").unwrap();
    });
    let exchange = RenameFlags {
        exchange: true,
        ..RenameFlags::default()
    };
    let no_replace = RenameFlags {
        no_replace: true,
        ..RenameFlags::default()
    };
    assert_eq!(b.rename_with("f", "d", no_replace), Err(Errno::EXIST));
    assert_eq!(b.rename_with("f", "none", exchange), Err(Errno::NOENT));
    b.rename_with("f", "d", exchange).unwrap();
    for _ in 0..2 {
        assert_eq!(b.read("d"), b"file");
        assert_eq!(b.ls("f"), ["f"]);
        assert_eq!(b.ls("/"), ["d", "f"]);
        b.remount();
    }
    b.create("up", b"1");
    b.rename_with(
        "up",
        "up2",
        RenameFlags {
            whiteout: true,
            ..RenameFlags::default()
        },
    )
    .unwrap();
    // What it leaves can be seen, see `engine_hard`.
    assert_eq!(b.ls("/"), ["d", "f", "up", "up2"]);
    assert_eq!(b.rename_with("up2", "up", no_replace), Err(Errno::EXIST));
    b.unlink("up").unwrap();
    b.rename_with("up2", "up", no_replace).unwrap();
    assert_eq!(b.read("up"), b"1");
}

#[test]
fn unlinked_files_live_until_forgotten() {
    let b = Bench::new(|one, _| {
        fs::write(one.join("low"), "lower").unwrap();
    });
    let low = b.get("low");
    let up = b.create("up", b"upper");
    b.unlink("low").unwrap();
    b.unlink("up").unwrap();
    for (entry, text) in [(&low, "lower"), (&up, "upper")] {
        assert_eq!(b.overlay.getattr(entry.node).unwrap().nlink, 0);
        b.overlay.write(entry.node, 0, b"XY", false).unwrap();
        let mut buf = [0; 5];
        assert_eq!(b.overlay.read(entry.node, 0, &mut buf).unwrap(), 5);
        assert_eq!(&buf[..2], b"XY");
        assert_eq!(&buf[2..], &text.as_bytes()[2..]);
        assert_eq!(b.overlay.getattr(entry.node).unwrap().nlink, 0);
    }
    let again = b.create("up", b"new");
    assert_ne!(
        again.node, up.node,
        "a number is not given away while somebody may ask for it"
    );
    b.overlay.forget(low.node, 1);
    b.overlay.forget(up.node, 1);
    assert_eq!(b.overlay.getattr(up.node), Err(Errno::STALE));
    assert!(
        fs::read_dir(b.tmp.path().join("work/work"))
            .unwrap()
            .count()
            <= 1,
        "only the whiteout template is left"
    );
}

#[test]
fn a_reader_sees_each_entry_once_while_others_change() {
    let b = Bench::new(|one, _| {
        for i in 0..300 {
            fs::write(one.join(format!("f{i}")), "").unwrap();
        }
    });
    let mut seen = std::collections::BTreeMap::new();
    let (mut at, mut round) = (0, 0);
    loop {
        let mut got = Vec::new();
        b.overlay
            .read_dir(NodeId::ROOT, at, true, &mut |item| {
                if got.len() == 20 {
                    return false;
                }
                got.push((item.name.to_str().unwrap().to_owned(), item.next_offset));
                true
            })
            .unwrap();
        let Some((_, last)) = got.last() else { break };
        at = *last;
        for (name, _) in got {
            if name.starts_with('f') {
                // rm -rf reads and removes in turns.
                b.unlink(&name).unwrap();
            }
            *seen.entry(name).or_insert(0) += 1;
        }
        round += 1;
        b.create(&format!("new{round}"), b"");
    }
    assert!(seen.values().all(|n| *n == 1));
    assert_eq!(seen.keys().filter(|n| n.starts_with('f')).count(), 300);
}

#[test]
fn changes_are_told_like_docker_diff() {
    let b = Bench::new(|one, _| {
        fs::create_dir_all(one.join("etc/deep")).unwrap();
        fs::write(one.join("etc/motd"), "x").unwrap();
        fs::write(one.join("etc/gone"), "x").unwrap();
        fs::write(one.join("etc/deep/kept"), "x").unwrap();
        fs::create_dir_all(one.join("usr/share")).unwrap();
        fs::write(one.join("usr/share/f"), "x").unwrap();
    });
    assert_eq!(b.changes(), [""; 0]);
    b.write("etc/motd", 0, b"hi");
    b.unlink("etc/gone").unwrap();
    b.mkdir("new").unwrap();
    b.create("new/f", b"1");
    b.create("tmp", b"1");
    b.unlink("tmp").unwrap();
    assert_eq!(
        b.changes(),
        ["C etc", "D etc/gone", "C etc/motd", "A new", "A new/f"]
    );
    b.rename("usr", "new/usr").unwrap();
    assert_eq!(
        b.changes(),
        [
            "C etc",
            "D etc/gone",
            "C etc/motd",
            "A new",
            "A new/f",
            "A new/usr",
            "A new/usr/share",
            "A new/usr/share/f",
            "D usr"
        ]
    );
}

#[test]
fn internal_xattrs_stay_hidden_and_nest() {
    let b = Bench::new(|one, _| {
        fs::create_dir(one.join("d")).unwrap();
        fs::write(one.join("d/f"), "x").unwrap();
    });
    b.write("d/f", 0, b"y");
    let d = b.get("d").node;
    assert_eq!(b.overlay.listxattr(d).unwrap(), b"");
    let opaque = OsStr::new("trusted.overlay.opaque");
    assert_eq!(b.overlay.getxattr(d, opaque), Err(Errno::NODATA));
    b.overlay
        .setxattr(d, opaque, b"y", XattrSet::Create)
        .unwrap();
    assert_eq!(b.overlay.getxattr(d, opaque).unwrap(), b"y");
    assert_eq!(b.overlay.listxattr(d).unwrap(), b"trusted.overlay.opaque\0");
    assert_eq!(b.ls("d"), ["f"]);
    b.overlay.removexattr(d, opaque).unwrap();
    assert_eq!(b.overlay.removexattr(d, opaque), Err(Errno::NODATA));
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    let tmp = tempfile::tempdir().unwrap();
    fs::write(tmp.path().join("f"), "x").unwrap();
    symlink("f", tmp.path().join("l")).unwrap();
    let o = Overlay::new(
        Stack {
            lowers: vec![Arc::new(DirLayer::open(tmp.path()).unwrap())],
            upper: None,
        },
        &Options::default(),
    )
    .unwrap();
    let f = o
        .lookup(NodeId::ROOT, OsStr::new("f"))
        .unwrap()
        .unwrap()
        .node;
    let l = o.lookup(NodeId::ROOT, OsStr::new("l")).unwrap().unwrap();
    assert_eq!(
        (l.attr.kind, o.readlink(l.node).unwrap()),
        (FileKind::Symlink, "f".into())
    );
    let name = OsStr::new("f");
    assert_eq!(o.write(f, 0, b"x", false), Err(Errno::ROFS));
    assert_eq!(o.unlink(NodeId::ROOT, name), Err(Errno::ROFS));
    assert_eq!(o.setattr(ROOT, f, &SetAttr::default()), Err(Errno::ROFS));
    assert_eq!(
        o.mkdir(ROOT, NodeId::ROOT, OsStr::new("d"), 0o755, 0).err(),
        Some(Errno::ROFS)
    );
    assert_eq!(
        o.rename(
            NodeId::ROOT,
            name,
            NodeId::ROOT,
            OsStr::new("g"),
            RenameFlags::default()
        ),
        Err(Errno::ROFS)
    );
    assert_eq!(
        o.setxattr(f, OsStr::new("user.a"), b"", XattrSet::Any),
        Err(Errno::ROFS)
    );
    assert_eq!(o.open(f, true), Err(Errno::ROFS));
    assert_eq!(o.open(f, false), Ok(()));
}

#[test]
fn two_engines_never_share_a_workdir() {
    let b = Bench::new(|_, _| {});
    let upper = UpperDirs {
        upper: b.upper(""),
        work: b.tmp.path().join("work"),
    };
    let second = Overlay::new(
        Stack {
            lowers: Vec::new(),
            upper: Some(upper),
        },
        &Options::default(),
    );
    assert!(matches!(second, Err(ovl::overlay::OpenError::Busy(_))));
}
