//! A directory of the host as an image: everything in it comes along, the same tree gives the same image, and what a layer
//! cannot say is refused.

mod image_support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use image_support::*;
use ovl::image::{Error, ImportOptions, ImportedImage, Source, import};
use ovl::store::Store;

fn take(store: &Store, what: &str) -> Result<ImportedImage, Error> {
    let source = Source::parse(what.as_ref()).unwrap();
    import(store, &source, &ImportOptions::default(), &()).map(|mut images| images.remove(0))
}

fn dir_of(path: &Path) -> String {
    format!("dir:{}", path.display())
}

#[test]
fn everything_comes_along() {
    let dir = temp();
    let store = store(dir.path());
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    make_rootfs(&root, true);
    run(
        "setfattr",
        &[
            &"-n",
            &"user.note",
            &"-v",
            &"hello",
            &root.join("etc/passwd"),
        ],
    );
    run("setfacl", &[&"-m", &"u:1234:rw", &root.join("etc/passwd")]);
    run("setfacl", &[&"-d", &"-m", &"g:77:rx", &root.join("usr")]);
    run(
        "setfattr",
        &[
            &"-h",
            &"-n",
            &"trusted.of-a-link",
            &"-v",
            &"x",
            &root.join("bin/sh"),
        ],
    );
    run(
        "python3",
        &[
            &"-c",
            &"import socket,sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])",
            &root.join("tmp/socket"),
        ],
    );
    run(
        "touch",
        &[
            &"-h",
            &"-d",
            &"2031-02-03 04:05:06.789 UTC",
            &root.join("bin/sh"),
        ],
    );
    let image = take(&store, &dir_of(&root)).unwrap();
    let mut want = host_tree(&root);
    want.remove("tmp/socket".as_ref() as &std::ffi::OsStr)
        .unwrap();
    assert_same(
        &want,
        &stored_tree(&store, &image.layers[0]),
        "host directory",
    );

    let layer = store.open_layer(&image.layers[0]).unwrap();
    let find = |path: &str| {
        let mut ino = ovl::store::ROOT_INODE;
        for name in path.split('/') {
            ino = layer
                .lookup(ino, name.as_ref())
                .unwrap()
                .unwrap()
                .target
                .unwrap()
                .0;
        }
        ino
    };
    let xattr = |path: &str, name: &str| {
        let xattrs = layer.xattrs(find(path)).unwrap();
        xattrs
            .into_iter()
            .find(|(have, _)| have == name)
            .map(|(_, value)| value)
    };
    assert_eq!(xattr("etc/passwd", "user.note").unwrap(), b"hello");
    assert!(xattr("etc/passwd", "system.posix_acl_access").is_some());
    assert!(xattr("usr", "system.posix_acl_default").is_some());
    assert_eq!(xattr("bin/sh", "trusted.of-a-link").unwrap(), b"x");
    // Two names of one file, and holes that stay holes.
    assert_eq!(find("etc/passwd"), find("etc/passwd.link"));
    let sparse = layer.inode(find("usr/lib/sparse")).unwrap();
    let blocks = root.join("usr/lib/sparse").metadata().unwrap().blocks();
    assert_eq!(sparse.size, 9_000_000);
    assert!(sparse.data_size <= blocks * 512, "{sparse:?}");
    assert!(layer.info().tar_size < 8_000_000, "{:?}", layer.info());
    assert_eq!(layer.inode(find("usr/lib/hole")).unwrap().data_size, 0);

    // What the layer says, others read the same.
    let tar = dir.path().join("layer.tar");
    fs::write(&tar, layer_tar(&store, &image.layers[0])).unwrap();
    let again = dir.path().join("again");
    fs::create_dir(&again).unwrap();
    run(
        "tar",
        &[
            &"-xpf",
            &tar,
            &"--numeric-owner",
            &"--xattrs",
            &"--xattrs-include=*",
            &"-C",
            &again,
        ],
    );
    assert_same(&want, &host_tree(&again), "unpacked by GNU tar");
    // And that is the same image again, though every inode and the order of entries are others.
    let same = take(&store, &dir_of(&again)).unwrap();
    assert_eq!(same, image);
    // A change of the smallest kind is another image.
    run("touch", &[&"-d", &"@1.000000001", &again.join("etc/empty")]);
    assert_ne!(take(&store, &dir_of(&again)).unwrap().layers, image.layers);
}

#[test]
fn what_a_layer_cannot_say_is_refused() {
    let cases: [(&str, &str, &str); 6] = [
        (
            "a name that is a whiteout",
            "touch d/.wh.x",
            "whiteout in a layer",
        ),
        (
            "an opaque mark",
            "touch d/.wh..wh..opq",
            "whiteout in a layer",
        ),
        (
            "a whiteout of an upper",
            "mknod d/gone c 0 0",
            "whiteout of an overlay",
        ),
        (
            "an opaque directory of an upper",
            "setfattr -n trusted.overlay.opaque -v y d",
            "upper directory",
        ),
        (
            "a redirect",
            "setfattr -n user.overlay.redirect -v /etc d",
            "upper directory",
        ),
        (
            "an opaque directory of fuse-overlayfs",
            "setfattr -n user.fuseoverlayfs.opaque -v y d",
            "upper directory",
        ),
    ];
    for (what, script, reason) in cases {
        let dir = temp();
        let store = store(dir.path());
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("d")).unwrap();
        run(
            "sh",
            &[&"-c", &format!("cd '{}' && {script}", root.display())],
        );
        let error = take(&store, &dir_of(&root)).expect_err(what).to_string();
        assert!(
            error.contains(reason) && error.contains("/d"),
            "{what}: {error}"
        );
        assert!(store.images().unwrap().is_empty(), "{what}");
        assert!(store.layers().unwrap().is_empty(), "{what}");
    }
}

#[test]
fn directories_are_told_apart() {
    let dir = temp();
    let store = store(dir.path());
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    // Files of these names alone do not make an image of a tree.
    fs::write(root.join("version"), "12").unwrap();
    fs::write(root.join("manifest.json"), "{}").unwrap();
    let tree = take(&store, &dir_of(&root)).unwrap();
    assert_eq!(
        take(&store, &format!("rootfs:{}", root.display())).unwrap(),
        tree
    );
    // Without a word, a directory must be an image.
    let error = take(&store, root.to_str().unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("dir:PATH"), "{error}");

    // What skopeo writes to its dir: is an image, unless a tree is asked for.
    let archive = dir.path().join("image.tar");
    let layer = RawTar::new().dir("etc/").file("etc/x", b"x").end();
    fs::write(&archive, docker_archive(&[layer])).unwrap();
    let flat = dir.path().join("flat");
    let from = format!("docker-archive:{}", archive.display());
    run("skopeo", &[&"copy", &"-q", &from, &dir_of(&flat)]);
    let image = take(&store, &dir_of(&flat)).unwrap();
    assert_eq!(take(&store, flat.to_str().unwrap()).unwrap(), image);
    assert_eq!(
        take(&store, archive.to_str().unwrap()).unwrap().config,
        image.config
    );
    let tree = take(&store, &format!("rootfs:{}", flat.display())).unwrap();
    assert_ne!(tree.config, image.config);

    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    for (what, code) in [
        (dir_of(&file), 1),
        (dir_of(&dir.path().join("nothing")), 4),
        (format!("oci:{}", root.display()), 1),
        (format!("docker-archive:{}", root.display()), 1),
    ] {
        let error = take(&store, &what).unwrap_err();
        assert_eq!(error.exit_code(), code, "{what}: {error}");
    }
}

/// Symlinks are data, wherever they point, and nothing waits for the other end of a FIFO.
#[test]
fn nothing_outside_is_read() {
    let dir = temp();
    let store = store(dir.path());
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("d")).unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "not for you").unwrap();
    symlink(&outside, root.join("d/dir")).unwrap();
    symlink(outside.join("secret"), root.join("d/file")).unwrap();
    symlink("../../outside/secret", root.join("d/relative")).unwrap();
    run("mkfifo", &[&root.join("fifo")]);
    let image = take(&store, &dir_of(&root)).unwrap();
    let tar = layer_tar(&store, &image.layers[0]);
    assert_same(
        &host_tree(&root),
        &stored_tree(&store, &image.layers[0]),
        "links",
    );
    assert!(!tar.windows(11).any(|bytes| bytes == b"not for you"));
}
