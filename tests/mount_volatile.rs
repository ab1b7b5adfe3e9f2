//! Volatile uppers that the kernel's overlayfs has: marked while nobody sees to it that they are on disk.

mod common;

use std::fs;
use std::path::Path;

use common::{Sandbox, command, require_mounting};
use serde_json::Value;

/// fsync does nothing, the upper is marked meanwhile, and the mark goes with an orderly end.
#[test]
fn volatile_uppers_are_marked_until_they_are_on_disk() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    let mnt = sandbox.mkdir("mnt");
    sandbox.mkdir("low");
    for lower in ["busybox", "dir:low"] {
        let mount = [
            "mount",
            "--merge",
            "kernel",
            "--volatile",
            lower,
            "upper",
            "mnt",
        ];
        let mark = sandbox.path(".upper.ovl-work/work/incompat/volatile");
        sandbox.run(mount);
        fs::write(mnt.join("new"), "data").unwrap();
        assert!(mark.exists(), "{lower}");
        assert_eq!(sandbox.run(["diff", "mnt"]), "A /new\n");
        sandbox.run(["umount", "mnt"]);
        assert!(!mark.exists(), "{lower}: {}", mark.display());
        sandbox.run(mount);
        assert_eq!(fs::read(mnt.join("new")).unwrap(), b"data");
        sandbox.run(["umount", "mnt"]);
        fs::remove_dir_all(sandbox.path("upper")).unwrap();
    }
    // Nobody saw to it that this one is on disk.
    sandbox.run([
        "mount",
        "--merge",
        "kernel",
        "--volatile",
        "dir:low",
        "upper",
        "mnt",
    ]);
    command("umount", [&mnt]);
    for merge in ["kernel", "fuse"] {
        let line = sandbox.fail(1, ["mount", "--merge", merge, "dir:low", "upper", "mnt"]);
        assert!(line.contains("volatile"), "{line}");
    }
}

/// With `fsync=0` nobody ever sees to it, and the mark stays.
#[test]
fn what_is_never_synced_stays_marked() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    let mnt = sandbox.mkdir("mnt");
    sandbox.mkdir("low");
    for lower in ["busybox", "dir:low"] {
        let mount = |options: &str| {
            let words = ["mount", "-o", options, lower, "upper", "mnt"];
            words.map(str::to_owned)
        };
        sandbox.run(mount("volatile,fsync=0,merge=kernel"));
        fs::write(mnt.join("new"), "data").unwrap();
        sandbox.run(["umount", "mnt"]);
        let mark = sandbox.path(".upper.ovl-work/work/incompat/volatile");
        assert!(mark.exists(), "{lower}");
        let line = sandbox.fail(1, mount("merge=kernel"));
        assert!(line.contains("volatile"), "{line}");
        for dir in ["upper", ".upper.ovl-work"] {
            fs::remove_dir_all(sandbox.path(dir)).unwrap();
        }
        let line = sandbox.fail(2, mount("fsync=0,merge=kernel"));
        assert!(line.contains("fsync=0"), "{line}");
    }
}

/// The kernel marks the work directory before it finds that it cannot: that must keep nobody else from it.
#[test]
fn what_the_kernel_refuses_leaves_no_mark() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    for dir in ["low", "one", "two", "mnt"] {
        sandbox.mkdir(dir);
    }
    fs::write(sandbox.path("low/file"), "below").unwrap();
    sandbox.run(["mount", "--merge", "kernel", "dir:low", "up1", "one"]);
    sandbox.run(["mount", "--merge", "kernel", "dir:one", "up2", "two"]);
    // It stacks overlays two deep only.
    let words = ["--volatile", "dir:two", "upper", "mnt"];
    let line = sandbox.fail(1, [&["mount", "--merge", "kernel"], &words[..]].concat());
    assert!(line.contains("overlayfs refuses"), "{line}");
    assert!(!sandbox.path(".upper.ovl-work/work/incompat").exists());
    sandbox.run([&["mount", "--merge", "auto"], &words[..]].concat());
    let all: Vec<Value> =
        serde_json::from_str(&sandbox.run(["mounts", "--format", "json"])).unwrap();
    let merge_at = |name: &str| {
        let here = |mount: &&Value| {
            mount["MountPoint"].as_str().map(Path::new) == Some(&sandbox.path(name))
        };
        all.iter().find(here).map(|mount| mount["Merge"].clone())
    };
    assert_eq!(merge_at("two"), Some("kernel".into()));
    assert_eq!(merge_at("mnt"), Some("fuse".into()));
    assert_eq!(fs::read(sandbox.path("mnt/file")).unwrap(), b"below");
    for name in ["mnt", "two", "one"] {
        sandbox.run(["umount", name]);
    }
}
