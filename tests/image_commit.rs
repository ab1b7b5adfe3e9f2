//! Commit: a layer written by us goes into the store as what it says, unpacks with GNU tar to the same tree, and the new
//! image is one that others run.

mod image_support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use image_support::*;
use ovl::image::{
    CommitOptions, Compression, ConfigChanges, EntryKind, Error, ExportFormat, ExportImage,
    ExportOptions, ExportTarget, LayerEntry, LayerTarWriter, NodeContent, commit, export,
};
use ovl::meta::{Attr, FileKind, Timestamp};

fn attr_of(path: &Path) -> Attr {
    let meta = path.symlink_metadata().unwrap();
    let time = |secs, nanos: i64| Timestamp::new(secs, nanos as u32);
    Attr {
        kind: FileKind::from_mode(meta.mode()).unwrap(),
        perm: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        size: meta.size(),
        blocks: meta.blocks(),
        nlink: meta.nlink() as u32,
        rdev: meta.rdev(),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        blksize: 4096,
    }
}

/// Writes a host tree, in byte order of its paths, hard links as such.
fn write_tree(root: &Path, tar: &mut LayerTarWriter<'_>) -> io::Result<()> {
    let mut paths: Vec<PathBuf> = walkdir::WalkDir::new(root)
        .into_iter()
        .map(|e| e.unwrap().into_path())
        .collect();
    paths.sort_by_key(|path| path.as_os_str().as_bytes().to_vec());
    let mut inodes = std::collections::HashMap::<u64, OsString>::new();
    for path in paths {
        let name = path.strip_prefix(root).unwrap();
        let attr = attr_of(&path);
        let inode = path.symlink_metadata().unwrap().ino();
        let xattrs = xattrs_of(&path);
        if !attr.kind.is_dir() && attr.nlink > 1 {
            if let Some(target) = inodes.get(&inode) {
                tar.append(LayerEntry {
                    path: name.as_os_str(),
                    kind: EntryKind::HardLink {
                        target,
                        attr: &attr,
                        xattrs: &xattrs,
                    },
                })?;
                continue;
            }
            inodes.insert(inode, name.as_os_str().to_owned());
        }
        let target;
        let mut file;
        let content = match attr.kind {
            FileKind::Symlink => {
                target = fs::read_link(&path)?;
                NodeContent::Target(target.as_os_str())
            }
            FileKind::Regular => {
                file = fs::File::open(&path)?;
                NodeContent::Data(&mut file)
            }
            _ => NodeContent::None,
        };
        tar.append(LayerEntry {
            path: name.as_os_str(),
            kind: EntryKind::Node {
                attr: &attr,
                xattrs: &xattrs,
                content,
            },
        })?;
    }
    Ok(())
}

fn xattrs_of(path: &Path) -> Vec<(OsString, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..len]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty());
    let value = |name: &OsStr| {
        let mut value = vec![0; 65536];
        let len = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        value.truncate(len);
        value
    };
    names
        .map(OsStr::from_bytes)
        .map(|name| (name.to_owned(), value(name)))
        .collect()
}

fn fixed() -> CommitOptions {
    CommitOptions {
        created: Some(Timestamp::new(1_700_000_000, 0)),
        ..CommitOptions::default()
    }
}

#[test]
fn a_tree_survives_commit_and_unpacking() {
    let dir = temp();
    let store = store(dir.path());
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    make_rootfs(&root, true);
    let file = root.join("etc/passwd");
    for (name, value) in [
        ("user.a", &b"v\n="[..]),
        ("user.od=d", b"\0\xff"),
        ("user.non-utf8-\u{fe}", b""),
    ] {
        rustix::fs::setxattr(&file, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    }
    let want = host_tree(&root);
    let committed = commit(&store, None, |tar| write_tree(&root, tar), &fixed()).unwrap();
    let layer = committed.layer.unwrap();
    assert_same(&want, &stored_tree(&store, &layer), "stored");
    // The same changes give the same image.
    assert_eq!(
        commit(&store, None, |tar| write_tree(&root, tar), &fixed()).unwrap(),
        committed
    );

    let tar = dir.path().join("layer.tar");
    fs::write(&tar, layer_tar(&store, &layer)).unwrap();
    let unpacked = dir.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    run(
        "tar",
        &[
            &"--xattrs",
            &"--numeric-owner",
            &"-xpf",
            &tar,
            &"-C",
            &unpacked,
        ],
    );
    assert_same(&want, &host_tree(&unpacked), "unpacked by GNU tar");
    let reader = store.open_layer(&layer).unwrap();
    let dir_ino = reader
        .lookup(1, OsStr::new("etc"))
        .unwrap()
        .unwrap()
        .target
        .unwrap()
        .0;
    let ino = reader
        .lookup(dir_ino, OsStr::new("passwd"))
        .unwrap()
        .unwrap()
        .target
        .unwrap()
        .0;
    let mut stored = reader.xattrs(ino).unwrap();
    stored.sort();
    let mut host = xattrs_of(&file);
    host.sort();
    assert_eq!(stored, host);
}

#[test]
fn awkward_values_are_carried() {
    let dir = temp();
    let store = store(dir.path());
    let mut attr = attr_of(Path::new("/etc/passwd"));
    let cases = [
        (0, Timestamp::new(0, 0)),
        (u32::MAX - 1, Timestamp::new(-1, 999_999_999)),
        (2_097_152, Timestamp::new(i64::from(u32::MAX) * 3, 1)),
        (2_097_151, Timestamp::new(-12_345, 0)),
        (1, Timestamp::new(8_589_934_591, 0)),
        (1, Timestamp::new(8_589_934_592, 0)),
        (7, Timestamp::new(i64::MAX, 999_999_999)),
    ];
    let paths: Vec<String> = vec![
        "a".repeat(100),
        format!("{}/{}", "d".repeat(155), "n".repeat(100)),
        format!("{}/{}", "d".repeat(156), "n".repeat(100)),
        format!("{}/{}", "d".repeat(100), "n".repeat(101)),
        ["c".repeat(200).as_str(); 15].join("/"),
        "trailing space ".to_owned(),
        "é\u{1}\n".to_owned(),
    ];
    attr.size = 0;
    let committed = commit(
        &store,
        None,
        |tar| {
            for ((id, mtime), path) in cases.iter().zip(&paths) {
                (attr.uid, attr.gid, attr.mtime) = (*id, *id, *mtime);
                let kind = EntryKind::Node {
                    attr: &attr,
                    xattrs: &[],
                    content: NodeContent::None,
                };
                tar.append(LayerEntry {
                    path: OsStr::new(path),
                    kind,
                })?;
            }
            Ok(())
        },
        &fixed(),
    )
    .unwrap();
    let tree = stored_tree(&store, &committed.layer.unwrap());
    for ((id, mtime), path) in cases.iter().zip(&paths) {
        let seen = &tree[OsStr::new(path)];
        assert_eq!(
            (seen.uid, seen.mtime),
            (*id, (mtime.secs, mtime.nanos)),
            "{path}"
        );
    }
}

#[test]
fn changes_stack_on_a_parent_and_load_elsewhere() {
    let dir = temp();
    let store = store(dir.path());
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    make_rootfs(&root, false);
    let name = |text: &str| vec![text.parse().unwrap()];
    let options = CommitOptions {
        names: name("localhost/app:base"),
        ..fixed()
    };
    let base = commit(&store, None, |tar| write_tree(&root, tar), &options).unwrap();
    let parent = store.image(&base.manifest).unwrap().unwrap();

    let changes = ConfigChanges {
        env: vec![("PATH".into(), "/bin".into()), ("A".into(), "1".into())],
        cmd: Some(vec!["/bin/sh".into()]),
        labels: vec![("k".into(), "v".into())],
        workdir: Some("/tmp".into()),
        exposed: vec!["80/tcp".into()],
        ..ConfigChanges::default()
    };
    let options = CommitOptions {
        names: name("localhost/app:changed"),
        message: Some("two files less".into()),
        author: Some("me".into()),
        changes,
        ..fixed()
    };
    let attr = Attr {
        size: 6,
        ..attr_of(&root.join("etc/passwd"))
    };
    let write = |tar: &mut LayerTarWriter<'_>| {
        let entry = |path: &'static str, kind| LayerEntry {
            path: OsStr::new(path),
            kind,
        };
        let directory = attr_of(&root.join("etc"));
        let node = EntryKind::Node {
            attr: &directory,
            xattrs: &[],
            content: NodeContent::None,
        };
        tar.append(entry("etc", node))?;
        let mut data = &b"hello\n"[..];
        let content = NodeContent::Data(&mut data);
        tar.append(entry(
            "etc/motd",
            EntryKind::Node {
                attr: &attr,
                xattrs: &[],
                content,
            },
        ))?;
        tar.append(entry(
            "etc/motd2",
            EntryKind::HardLink {
                target: OsStr::new("etc/motd"),
                attr: &attr,
                xattrs: &[],
            },
        ))?;
        tar.append(entry("etc/passwd", EntryKind::Whiteout))?;
        tar.append(entry("usr", EntryKind::Opaque))?;
        assert_eq!(tar.entries(), 5);
        Ok(())
    };
    let changed = commit(&store, Some(&parent), write, &options).unwrap();
    let tree = stored_tree(&store, &changed.layer.unwrap());
    assert!(
        tree.contains_key(OsStr::new("etc/passwd(whiteout)")),
        "{tree:#?}"
    );
    assert_eq!(tree[OsStr::new("usr")].content, "(opaque)");
    assert_eq!(tree[OsStr::new("etc/motd2")].nlink, 2);

    let config: serde_json::Value =
        serde_json::from_slice(&store.document(&changed.config).unwrap().unwrap()).unwrap();
    assert_eq!(
        config["config"]["Env"],
        serde_json::json!(["PATH=/bin", "A=1"])
    );
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["/bin/sh"]));
    assert_eq!(
        config["config"]["ExposedPorts"],
        serde_json::json!({"80/tcp": {}})
    );
    assert_eq!(config["history"].as_array().unwrap().len(), 2);
    assert_eq!(config["history"][1]["comment"], "two files less");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);

    // No change: no layer, one more line of history.
    let parent = store.image(&changed.manifest).unwrap().unwrap();
    let nothing = commit(&store, Some(&parent), |_| Ok(()), &fixed()).unwrap();
    assert_eq!(nothing.layer, None);
    let record = store.image(&nothing.manifest).unwrap().unwrap();
    assert_eq!(record.layers, parent.layers);
    let config: serde_json::Value =
        serde_json::from_slice(&store.document(&nothing.config).unwrap().unwrap()).unwrap();
    assert_eq!(config["history"][2]["empty_layer"], true);

    let out = dir.path().join("out.tar");
    let image = ExportImage {
        manifest: nothing.manifest,
        names: name("localhost/app:changed"),
    };
    let form = ExportOptions {
        format: ExportFormat::OciArchive,
        compression: Some(Compression::Gzip),
    };
    export(&store, &[image], form, ExportTarget::Path(&out)).unwrap();
    let (podman_root, run_root) = (dir.path().join("podman"), dir.path().join("run"));
    let storage: [&dyn AsRef<OsStr>; 6] = [
        &"--root",
        &podman_root,
        &"--runroot",
        &run_root,
        &"--storage-driver",
        &"vfs",
    ];
    run(
        "podman",
        &[&storage[..], &[&"load", &"-q", &"-i", &out]].concat(),
    );
    let mounted = run(
        "podman",
        &[
            &storage[..],
            &[&"image", &"mount", &"localhost/app:changed"],
        ]
        .concat(),
    );
    let mounted = PathBuf::from(String::from_utf8(mounted).unwrap().trim());
    let seen = host_tree(&mounted);
    run(
        "podman",
        &[&storage[..], &[&"image", &"umount", &"-a"]].concat(),
    );
    assert!(seen.contains_key(OsStr::new("etc/motd2")));
    assert!(!seen.contains_key(OsStr::new("etc/passwd")));
    assert!(!seen.contains_key(OsStr::new("usr/lib")));
}

#[test]
fn names_are_not_taken_from_other_images() {
    let dir = temp();
    let store = store(dir.path());
    let options = CommitOptions {
        names: vec!["app:1".parse().unwrap()],
        ..fixed()
    };
    let first = commit(&store, None, |_| Ok(()), &options).unwrap();
    let other = CommitOptions {
        message: Some("other".into()),
        ..options.clone()
    };
    let refused = commit(&store, None, |_| Ok(()), &other).unwrap_err();
    assert!(
        matches!(refused, Error::Conflict { .. }) && refused.exit_code() == 3,
        "{refused}"
    );
    assert_eq!(
        store.resolve_name(&first.names[0]).unwrap(),
        Some(first.manifest)
    );
    let forced = CommitOptions {
        replace_names: true,
        ..other
    };
    let second = commit(&store, None, |_| Ok(()), &forced).unwrap();
    assert_eq!(
        store.resolve_name(&first.names[0]).unwrap(),
        Some(second.manifest)
    );
}

#[test]
fn failures_record_nothing() {
    let dir = temp();
    let store = store(dir.path());
    let attr = Attr {
        size: 1 << 20,
        ..attr_of(Path::new("/etc/passwd"))
    };
    fn file<'a>(attr: &'a Attr, data: &'a mut dyn Read) -> LayerEntry<'a> {
        let kind = EntryKind::Node {
            attr,
            xattrs: &[],
            content: NodeContent::Data(data),
        };
        LayerEntry {
            path: OsStr::new("file"),
            kind,
        }
    }
    // A file that shrinks while it is read.
    let shrinks = commit(
        &store,
        None,
        |tar| {
            let mut data = io::repeat(1).take(1000);
            tar.append(file(&attr, &mut data))
        },
        &fixed(),
    );
    assert!(matches!(shrinks, Err(Error::Changes(_))), "{shrinks:?}");
    // A caller that gives up.
    let gives_up = commit(
        &store,
        None,
        |tar| {
            let mut data = io::repeat(1);
            tar.append(file(&attr, &mut data))?;
            Err(io::Error::other("no more"))
        },
        &fixed(),
    );
    assert!(matches!(gives_up, Err(Error::Changes(_))), "{gives_up:?}");
    // An entry that the ingest refuses: its reason is told, not that of the broken pipe.
    let refused = commit(
        &store,
        None,
        |tar| {
            let kind = EntryKind::HardLink {
                target: OsStr::new("nowhere"),
                attr: &attr,
                xattrs: &[],
            };
            tar.append(LayerEntry {
                path: OsStr::new("link"),
                kind,
            })?;
            tar.append(LayerEntry {
                path: OsStr::new("../up"),
                kind: EntryKind::Whiteout,
            })?;
            for _ in 0..100 {
                let mut data = io::repeat(1);
                tar.append(file(&attr, &mut data))?;
            }
            Ok(())
        },
        &fixed(),
    );
    assert!(matches!(refused, Err(Error::Entry { .. })), "{refused:?}");
    assert!(store.images().unwrap().is_empty() && store.layers().unwrap().is_empty());
}
