//! Mount options, one by one, on the engine by itself.

mod engine_support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use engine_support::{Bench, ROOT};
use ovl::layer::Permissions;
use ovl::meta::FileKind;
use ovl::overlay::{Aufs, Caller, IdMap, IdRange, Options, Redirect, SetAttr, XattrSet};
use rustix::io::Errno;

const BIG: usize = 300_000;

fn metacopy() -> Options {
    Options {
        metacopy: true,
        ..Options::default()
    }
}

fn chmod(b: &Bench, path: &str, perm: u32) {
    b.overlay
        .setattr(
            ROOT,
            b.get(path).node,
            &SetAttr {
                perm: Some(perm),
                ..SetAttr::default()
            },
        )
        .unwrap();
}

#[test]
fn metacopy_leaves_data_below_until_it_is_written() {
    let mut b = Bench::with(metacopy(), |one, _| {
        fs::create_dir(one.join("d")).unwrap();
        fs::write(one.join("d/big"), vec![7; BIG]).unwrap();
        fs::write(one.join("d/cut"), vec![8; BIG]).unwrap();
    });
    let node = b.get("d/big").node;
    chmod(&b, "d/big", 0o640);
    b.overlay
        .setxattr(node, OsStr::new("user.a"), b"1", XattrSet::Any)
        .unwrap();
    for _ in 0..2 {
        let meta = fs::metadata(b.upper("d/big")).unwrap();
        assert_eq!(
            (meta.size(), meta.permissions().mode() & 0o7777),
            (BIG as u64, 0o640)
        );
        assert!(
            meta.blocks() <= 8,
            "no data was copied, but {} blocks",
            meta.blocks()
        );
        let entry = b.get("d/big");
        assert_eq!(
            (entry.node, entry.attr.perm, entry.attr.size),
            (node, 0o640, BIG as u64)
        );
        assert!(
            entry.attr.blocks * 512 >= BIG as u64,
            "what is shown is the lower's allocation"
        );
        assert_eq!(b.read("d/big"), vec![7; BIG]);
        b.remount();
    }
    // The name moves and doubles; the data is still found.
    b.rename("d/big", "moved").unwrap();
    b.link("moved", "d/second").unwrap();
    b.remount();
    assert_eq!(b.read("moved"), vec![7; BIG]);
    assert_eq!(b.read("d/second"), vec![7; BIG]);
    b.write("moved", 5, b"!!!");
    let mut want = vec![7; BIG];
    want[5..8].copy_from_slice(b"!!!");
    for _ in 0..2 {
        assert_eq!(b.read("d/second"), want);
        assert_eq!(b.get("moved").attr.perm, 0o640);
        b.remount();
    }
    assert!(fs::metadata(b.upper("moved")).unwrap().blocks() * 512 >= BIG as u64);
    chmod(&b, "d/cut", 0o600);
    let cut = b.get("d/cut").node;
    b.overlay
        .setattr(
            ROOT,
            cut,
            &SetAttr {
                size: Some(3),
                ..SetAttr::default()
            },
        )
        .unwrap();
    assert_eq!(b.read("d/cut"), [8, 8, 8]);
}

/// With the option off nothing is left below; what an earlier mount left there is found all the same.
#[test]
fn metacopy_written_once_is_read_always() {
    let mut b = Bench::with(metacopy(), |one, _| {
        fs::write(one.join("f"), vec![7; BIG]).unwrap()
    });
    chmod(&b, "f", 0o600);
    b.set_options(Options::default());
    b.remount();
    assert_eq!(b.read("f"), vec![7; BIG]);
    // Below it is gone: an error, never zeros.
    fs::remove_file(b.tmp.path().join("lower1/f")).unwrap();
    b.remount();
    let mut buf = [1; 10];
    assert!(
        b.find("f")
            .and_then(|e| b.overlay.read(e.unwrap().node, 0, &mut buf))
            .is_err()
    );
}

#[test]
fn the_kernel_reads_our_metacopy_and_we_read_the_kernels() {
    let mut b = Bench::with(metacopy(), |one, _| {
        fs::write(one.join("ours"), vec![7; BIG]).unwrap();
        fs::write(one.join("theirs"), vec![8; BIG]).unwrap();
    });
    chmod(&b, "ours", 0o604);
    b.close();
    let base = b.tmp.path().display().to_string();
    fs::create_dir(b.tmp.path().join("mnt")).unwrap();
    let options = format!(
        "lowerdir={base}/lower2:{base}/lower1,upperdir={base}/upper,workdir={base}/work,redirect_dir=on,index=on,metacopy=on"
    );
    let script = format!(
        "mount -t overlay overlay -o {options} {base}/mnt && cmp {base}/mnt/ours {base}/lower1/ours && \
         test $(stat -c %a {base}/mnt/ours) = 604 && chmod 600 {base}/mnt/theirs; r=$?; umount {base}/mnt; exit $r"
    );
    let done = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .status()
        .unwrap();
    assert!(done.success());
    b.remount();
    assert_eq!(b.get("theirs").attr.perm, 0o600);
    assert!(fs::metadata(b.upper("theirs")).unwrap().blocks() <= 8);
    assert_eq!(b.read("theirs"), vec![8; BIG]);
}

#[test]
fn redirect_dir_off_is_the_kernels_exdev() {
    for redirect in [Redirect::Off, Redirect::Ignore] {
        let b = Bench::with(
            Options {
                redirect,
                ..Options::default()
            },
            |one, _| {
                fs::create_dir(one.join("d")).unwrap();
                fs::write(one.join("f"), "x").unwrap();
            },
        );
        assert_eq!(b.rename("d", "e"), Err(Errno::XDEV));
        b.mkdir("new").unwrap();
        b.rename("new", "new2").unwrap();
        b.rename("f", "g").unwrap();
        assert_eq!(b.ls("/"), ["d", "g", "new2"]);
    }
}

/// A lower that was once an upper has redirects of its own. They could point anywhere within the layers below, so they
/// count only when asked for.
#[test]
fn redirects_in_lowers_count_only_when_asked_for() {
    for (redirect, want) in [(Redirect::Upper, &[""; 0][..]), (Redirect::All, &["f"][..])] {
        let b = Bench::with(
            Options {
                redirect,
                ..Options::default()
            },
            |one, two| {
                fs::create_dir_all(one.join("old/place")).unwrap();
                fs::write(one.join("old/place/f"), "x").unwrap();
                fs::create_dir(two.join("new")).unwrap();
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(
                    two.join("new"),
                    "trusted.overlay.redirect",
                    b"/old/place",
                    flags,
                )
                .unwrap();
            },
        );
        assert_eq!(b.ls("new"), want, "{redirect:?}");
    }
}

#[test]
fn thirty_two_bits_are_enough_when_asked_for() {
    let b = Bench::with(
        Options {
            ino32: true,
            ..Options::default()
        },
        |one, _| {
            fs::create_dir(one.join("d")).unwrap();
            for i in 0..50 {
                fs::write(one.join(format!("d/f{i}")), "x").unwrap();
            }
        },
    );
    b.create("d/new", b"");
    let mut seen = std::collections::HashSet::new();
    for name in b.ls("d") {
        let ino = b.get(&format!("d/{name}")).node.0;
        assert!(
            u32::try_from(ino).is_ok() && seen.insert(ino),
            "{name}: {ino}"
        );
    }
}

#[test]
fn owners_are_mapped_both_ways_and_squashed() {
    let ids = IdMap {
        uids: vec![
            IdRange {
                inside: 0,
                outside: 1000,
                len: 1,
            },
            IdRange {
                inside: 1,
                outside: 100_000,
                len: 65_536,
            },
        ],
        gids: vec![IdRange {
            inside: 0,
            outside: 2000,
            len: 10,
        }],
        ..IdMap::default()
    };
    let fill = |one: &std::path::Path, _: &std::path::Path| {
        fs::write(one.join("f"), "x").unwrap();
        std::os::unix::fs::chown(one.join("f"), Some(100_004), Some(2003)).unwrap();
        fs::write(one.join("foreign"), "x").unwrap();
    };
    let b = Bench::with(
        Options {
            ids,
            ..Options::default()
        },
        fill,
    );
    let owner = |b: &Bench, path: &str| (b.get(path).attr.uid, b.get(path).attr.gid);
    let on_disk = |b: &Bench, path: &str| {
        let meta = fs::metadata(b.upper(path)).unwrap();
        (meta.uid(), meta.gid())
    };
    assert_eq!(owner(&b, "f"), (5, 3));
    assert_eq!(owner(&b, "foreign"), (65534, 65534));
    b.create("new", b"");
    assert_eq!(
        (owner(&b, "new"), on_disk(&b, "new")),
        ((0, 0), (1000, 2000))
    );
    let chown = |uid, gid| {
        b.overlay.setattr(
            ROOT,
            b.get("f").node,
            &SetAttr {
                uid: Some(uid),
                gid: Some(gid),
                ..SetAttr::default()
            },
        )
    };
    chown(7, 9).unwrap();
    assert_eq!(
        (owner(&b, "f"), on_disk(&b, "f")),
        ((7, 9), (100_006, 2009))
    );
    assert_eq!(chown(7, 10).err(), Some(Errno::OVERFLOW));
    let (dir, name) = b.parent("by-nobody");
    let stranger = Caller {
        uid: 70_000,
        gid: 0,
        pid: 1,
    };
    assert_eq!(
        b.overlay.create(stranger, dir, name, 0o100_644, 0).err(),
        Some(Errno::OVERFLOW)
    );

    let ids = IdMap {
        squash_uid: Some(0),
        squash_gid: Some(0),
        ..IdMap::default()
    };
    let b = Bench::with(
        Options {
            ids,
            ..Options::default()
        },
        fill,
    );
    assert_eq!(owner(&b, "f"), (0, 0));
    let (dir, name) = b.parent("new");
    b.overlay
        .create(
            Caller {
                uid: 42,
                gid: 42,
                pid: 1,
            },
            dir,
            name,
            0o100_644,
            0,
        )
        .unwrap();
    assert_eq!((owner(&b, "new"), on_disk(&b, "new")), ((0, 0), (0, 0)));
}

#[test]
fn static_nlink_is_one() {
    let b = Bench::with(
        Options {
            static_nlink: true,
            ..Options::default()
        },
        |_, _| {},
    );
    b.mkdir("d").unwrap();
    b.mkdir("d/sub").unwrap();
    assert_eq!(b.get("d").attr.nlink, 1);
}

#[test]
fn volatile_is_marked_and_an_unclean_one_refused() {
    let volatile = Options {
        volatile: true,
        ..Options::default()
    };
    let mut b = Bench::with(volatile, |one, _| fs::write(one.join("f"), "x").unwrap());
    let mark = b.tmp.path().join("work/work/incompat/volatile/dirty");
    assert!(mark.is_dir());
    b.write("f", 0, b"y");
    b.overlay.fsync(b.get("f").node, false).unwrap();
    b.close();
    assert!(!mark.exists(), "unmounted in order, the upper is synced");
    // As a crash leaves it.
    fs::create_dir_all(&mark).unwrap();
    let refused = b.try_open();
    let text = refused
        .err()
        .expect("an upper of unknown state is refused")
        .to_string();
    assert!(
        text.contains("volatile") && text.contains("incompat"),
        "{text}"
    );
}

/// What is to be thrown away need not reach the disk, not even at its end: then nobody may take it for whole.
#[test]
fn volatile_and_never_synced_keeps_its_mark() {
    let options = Options {
        volatile: true,
        no_fsync: true,
        ..Options::default()
    };
    let mut b = Bench::with(options, |one, _| fs::write(one.join("f"), "x").unwrap());
    b.write("f", 0, b"y");
    b.close();
    let mark = b.tmp.path().join("work/work/incompat/volatile/dirty");
    assert!(mark.is_dir());
    assert!(b.try_open().is_err(), "nobody knows what is on the disk");
}

/// podman's `force_mask`: the files on disk belong to whoever runs the daemon, owners and modes are in xattrs.
#[test]
fn owners_and_modes_can_be_kept_in_xattrs() {
    let options = Options {
        permissions: Permissions::UserXattr,
        ..Options::default()
    };
    let set = |path: &std::path::Path, value: &str| {
        let name = "user.containers.override_stat";
        rustix::fs::setxattr(
            path,
            name,
            value.as_bytes(),
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    };
    let mut b = Bench::with(options, |one, _| {
        for name in ["f", "null", "old"] {
            fs::write(one.join(name), if name == "f" { "text" } else { "" }).unwrap();
        }
        set(&one.join("f"), "5:6:4711:file");
        set(&one.join("null"), "0:0:0666:char-1-3");
        let old = "user.fuseoverlayfs.override_stat";
        rustix::fs::setxattr(
            one.join("old"),
            old,
            b"7:8:100640",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    });
    let seen = |b: &Bench, path: &str| {
        let attr = b.get(path).attr;
        (attr.uid, attr.gid, attr.perm, attr.kind)
    };
    let on_disk = |b: &Bench, path: &str| {
        let meta = fs::symlink_metadata(b.upper(path)).unwrap();
        let mut value = [0; 64];
        let name = "user.containers.override_stat";
        let len = rustix::fs::lgetxattr(b.upper(path), name, &mut value).unwrap();
        (
            meta.uid(),
            String::from_utf8(value[..len].to_vec()).unwrap(),
        )
    };
    assert_eq!(seen(&b, "f"), (5, 6, 0o4711, FileKind::Regular));
    assert_eq!(seen(&b, "old"), (7, 8, 0o640, FileKind::Regular));
    assert_eq!(b.ls("/"), ["f", "null", "old"]);
    assert_eq!(
        (b.get("null").attr.kind, b.get("null").attr.rdev),
        (FileKind::CharDevice, libc::makedev(1, 3))
    );

    // Copied up, changed, made: always the same owner on disk, and the wanted one in the xattr.
    b.write("f", 0, b"TEXT");
    assert_eq!(on_disk(&b, "f"), (0, "5:6:4711:file".into()));
    let f = b.get("f").node;
    b.overlay
        .setattr(
            ROOT,
            f,
            &SetAttr {
                uid: Some(50),
                ..SetAttr::default()
            },
        )
        .unwrap();
    assert_eq!(
        on_disk(&b, "f"),
        (0, "50:6:0711:file".into()),
        "chown takes set-id bits away"
    );
    chmod(&b, "f", 0o600);
    let (dir, name) = b.parent("made");
    b.overlay
        .mkdir(
            Caller {
                uid: 42,
                gid: 43,
                pid: 1,
            },
            dir,
            name,
            0o2750,
            0,
        )
        .unwrap();
    assert_eq!(on_disk(&b, "made"), (0, "42:43:2750:dir".into()));
    let (dir, name) = b.parent("made/file");
    b.overlay
        .create(
            Caller {
                uid: 9,
                gid: 9,
                pid: 1,
            },
            dir,
            name,
            0o100_664,
            0o002,
        )
        .unwrap();
    let (dir, name) = b.parent("made/zero");
    b.overlay
        .mknod(ROOT, dir, name, libc::S_IFCHR | 0o600, 0, 0)
        .unwrap();
    chmod(&b, "null", 0o600);
    for _ in 0..2 {
        assert_eq!(seen(&b, "f"), (50, 6, 0o600, FileKind::Regular));
        assert_eq!(b.read("f"), b"TEXT");
        assert_eq!(seen(&b, "made"), (42, 43, 0o2750, FileKind::Directory));
        assert_eq!(
            seen(&b, "made/file"),
            (9, 43, 0o664, FileKind::Regular),
            "the group is the directory's"
        );
        assert_eq!(b.ls("made"), ["file", "zero"]);
        assert_eq!(seen(&b, "made/zero"), (0, 43, 0o600, FileKind::CharDevice));
        assert_eq!(seen(&b, "null"), (0, 0, 0o600, FileKind::CharDevice));
        assert!(
            fs::symlink_metadata(b.upper("null")).unwrap().is_file(),
            "a device takes no privilege"
        );
        assert_eq!(
            b.overlay.listxattr(f).unwrap(),
            b"",
            "nobody sees how it is kept"
        );
        let name = OsStr::new("user.containers.override_stat");
        assert_eq!(
            b.overlay.setxattr(f, name, b"0:0:4755:file", XattrSet::Any),
            Err(Errno::PERM)
        );
        b.remount();
    }
}

/// Found by fuzzing: a symlink cannot carry a `user.` mark of its origin, and the next look-up after its copy-up gave it another
/// number, so a second node, though it was to keep its number until the next mount.
#[test]
fn a_symlink_without_a_mark_keeps_its_number_while_mounted() {
    let options = Options {
        userxattr: Some(true),
        ..Options::default()
    };
    let b = Bench::with(options, |one, _| {
        std::os::unix::fs::symlink("x", one.join("l")).unwrap();
    });
    let before = b.get("l");
    let set = SetAttr {
        uid: Some(5),
        ..SetAttr::default()
    };
    b.overlay.setattr(ROOT, before.node, &set).unwrap();
    assert_eq!(b.get("l").node, before.node);
    assert_eq!(b.get("l").attr.uid, 5);
    b.overlay.forget(before.node, 3);
    assert_eq!(b.get("l").node, before.node, "after the kernel forgot it");
    b.rename("l", "m").unwrap();
    assert_eq!(b.get("m").node, before.node);
    assert_eq!(b.ls("/"), ["m"]);
    b.unlink("m").unwrap();
    assert_eq!(b.ls("/"), [""; 0]);
}

/// Found by fuzzing: such a symlink was given another number once a second name of it had gone, if the first was not known
/// any more.
#[test]
fn a_symlink_without_a_mark_keeps_its_number_when_another_name_goes() {
    let options = Options {
        userxattr: Some(true),
        ..Options::default()
    };
    let b = Bench::with(options, |one, _| {
        std::os::unix::fs::symlink("x", one.join("l")).unwrap();
    });
    let before = b.get("l").node;
    b.link("l", "m").unwrap();
    b.overlay.forget(before, 3);
    assert_eq!(b.get("m").node, before);
    b.unlink("m").unwrap();
    b.overlay.forget(before, 1);
    assert_eq!(b.get("l").node, before);
    b.unlink("l").unwrap();
    assert_eq!(b.ls("/"), [""; 0]);
}

/// Found by fuzzing: a directory took no emptied one's place where whiteouts are AUFS's, since the mark that was left of what
/// the lowers have there counted as something in it.
#[test]
fn a_directory_takes_the_place_of_an_emptied_one_with_aufs_marks() {
    let options = Options {
        aufs: Aufs::Write,
        ..Options::default()
    };
    let mut b = Bench::with(options, |one, _| {
        fs::create_dir(one.join("d")).unwrap();
        fs::write(one.join("d/x"), "x").unwrap();
    });
    b.unlink("d/x").unwrap();
    assert!(b.upper("d/.wh.x").exists());
    b.mkdir("n").unwrap();
    b.mkdir("n/inside").unwrap();
    b.rename("n", "d").unwrap();
    for _ in 0..2 {
        assert_eq!(b.ls("/"), ["d"]);
        assert_eq!(b.ls("d"), ["inside"]);
        assert!(b.upper("d/.wh..wh..opq").exists());
        b.remount();
    }
}
