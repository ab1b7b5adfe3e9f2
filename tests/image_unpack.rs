//! An image's files as a directory and as a tar: what went in comes out, and nothing outside is touched, whatever the
//! layers say.

mod common;
mod image_support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::Sandbox;
use image_support::{RawTar, assert_same, docker_archive, host_tree, make_rootfs, run, temp};

#[test]
fn files_come_out_as_they_went_in() {
    let sandbox = Sandbox::new();
    let root = sandbox.mkdir("root");
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
    run("setcap", &[&"cap_net_raw+ep", &root.join("bin/busybox")]);
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
        "touch",
        &[
            &"-h",
            &"-d",
            &"2031-02-03 04:05:06.789 UTC",
            &root.join("bin/sh"),
        ],
    );
    run("chmod", &[&"751", &root]);
    sandbox.run(["import", "--tag", "tree:1", "dir:root"]);

    sandbox.run(["export", "tree:1", "dir:out"]);
    let want = host_tree(&root);
    assert_same(&want, &host_tree(&sandbox.path("out")), "directory");
    let getfattr = |dir: &str| {
        let script = format!(
            "cd '{}' && getfattr -hRd -m - --absolute-names . && getcap -r . && getfacl -R .",
            sandbox.path(dir).display()
        );
        String::from_utf8_lossy(&run("sh", &[&"-c", &script])).into_owned()
    };
    assert_eq!(getfattr("out"), getfattr("root"));
    let blocks = |dir: &str| {
        sandbox
            .path(dir)
            .join("usr/lib/sparse")
            .metadata()
            .unwrap()
            .blocks()
    };
    assert!(blocks("out") <= blocks("root") + 64, "holes stay holes");
    assert_eq!(
        sandbox.path("out").metadata().unwrap().mode() & 0o7777,
        0o751
    );

    // As a tar, to a file and to standard output: the same bytes, and the same image again.
    sandbox.run(["export", "tree:1", "rootfs:out.tar"]);
    let piped = sandbox
        .ovl(["export", "tree:1", "rootfs:-"])
        .output()
        .unwrap();
    assert!(piped.status.success());
    assert!(piped.stdout == fs::read(sandbox.path("out.tar")).unwrap());
    let again = sandbox.mkdir("again");
    let tar = sandbox.path("out.tar");
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
    assert_same(&want, &host_tree(&again), "tar");

    // A directory that holds something is left alone, an empty one is filled.
    let message = sandbox.fail(3, ["export", "tree:1", "dir:out"]);
    assert!(message.contains("already exists"), "{message}");
    sandbox.mkdir("empty");
    sandbox.run(["export", "tree:1", "dir:empty"]);
    assert_same(
        &want,
        &host_tree(&sandbox.path("empty")),
        "into an empty directory",
    );
    let left: Vec<_> = fs::read_dir(sandbox.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains(".part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn layers_are_merged_and_nothing_outside_is_touched() {
    let sandbox = Sandbox::new();
    let canary = temp();
    fs::write(canary.path().join("file"), "canary").unwrap();
    fs::set_permissions(canary.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let before = host_tree(canary.path());
    let outside = canary.path().to_str().unwrap();
    let layers = [
        RawTar::new()
            .symlink("a", outside)
            .symlink("b", outside)
            .file("gone", b"gone")
            .dir("hidden/")
            .file("hidden/below", b"below")
            .file("/abs", b"abs")
            .end(),
        // Through the links of the layer below: a file, a directory with another mode, a hard link, a whiteout.
        RawTar::new()
            .file("a/file", b"through")
            .dir("b/")
            .file("b/file", b"through")
            .hard_link("b/link", "b/file")
            .file(".wh.gone", b"")
            .file("hidden/.wh..wh..opq", b"")
            .file("hidden/new", b"new")
            .end(),
    ];
    let archive = sandbox.write("image.tar", docker_archive(&layers));
    sandbox.run(["import".as_ref(), archive.as_os_str()]);
    sandbox.run(["export", "localhost/test:1", "dir:out"]);
    let out = sandbox.path("out");
    assert_eq!(fs::read(out.join("a/file")).unwrap(), b"through");
    assert!(out.join("a").symlink_metadata().unwrap().is_dir());
    assert_eq!(fs::read(out.join("b/link")).unwrap(), b"through");
    assert_eq!(out.join("b/link").metadata().unwrap().nlink(), 2);
    assert_eq!(fs::read(out.join("abs")).unwrap(), b"abs");
    assert!(!out.join("gone").exists() && !out.join("hidden/below").exists());
    assert_eq!(fs::read(out.join("hidden/new")).unwrap(), b"new");
    assert_same(&before, &host_tree(canary.path()), "outside");
}

#[test]
fn wrong_uses_are_told() {
    let sandbox = Sandbox::with_busybox();
    let message = sandbox.fail(2, ["export", "busybox", "busybox", "dir:out"]);
    assert!(message.contains("one image"), "{message}");
    let message = sandbox.fail(2, ["export", "--compress", "gzip", "busybox", "rootfs:x"]);
    assert!(message.contains("--compress"), "{message}");
    sandbox.fail(4, ["export", "nothing", "dir:out"]);
    assert!(!sandbox.path("out").exists());
}
