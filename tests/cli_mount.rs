//! The main job through the real /dev/fuse: import, mount, run in it, see the difference, keep it, export it.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Sandbox, command, mounts_below, require_mounting};
use serde_json::Value;

fn chroot(root: &Path, script: &str) -> String {
    let output = command(
        "chroot",
        [
            root.as_os_str(),
            "/bin/sh".as_ref(),
            "-euc".as_ref(),
            script.as_ref(),
        ],
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A sandbox with busybox mounted writable at `mnt`, its changes in `upper`.
fn mounted() -> Sandbox {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    sandbox.mkdir("mnt");
    sandbox.mkdir("upper");
    assert_eq!(sandbox.run(["mount", "busybox", "upper", "mnt"]), "");
    sandbox
}

/// What all scripts here do to the image: each kind of change there is.
const CHANGES: &str = "
    cat /etc/motd
    echo changed > /etc/motd
    rm /etc/group
    mkdir -p /srv/new/dir && echo data > /srv/new/dir/file && chmod 640 /srv/new/dir/file
    ln /srv/new/dir/file /srv/hard && ln -s /srv/hard /srv/soft
    rm -r /etc/old.d && mkdir /etc/old.d && echo new > /etc/old.d/new
    touch -d '2001-02-03 04:05:06' /srv/old
    mknod /srv/pipe p
";

const DIFFERENCE: &str = "\
C /etc
D /etc/group
C /etc/motd
C /etc/old.d
A /etc/old.d/new
D /etc/old.d/shown
A /srv
A /srv/hard
A /srv/new
A /srv/new/dir
A /srv/new/dir/file
A /srv/old
A /srv/pipe
A /srv/soft
";

#[test]
fn the_main_job() {
    let sandbox = mounted();
    let mnt = sandbox.path("mnt");
    assert_eq!(chroot(&mnt, CHANGES), "from the second layer\n");

    assert_eq!(sandbox.run(["diff", "mnt"]), DIFFERENCE);
    let json: Value =
        serde_json::from_str(&sandbox.run(["diff", "mnt", "--format", "json"])).unwrap();
    assert_eq!(
        json[1],
        serde_json::json!({ "Kind": "D", "Path": "/etc/group" })
    );

    let id = sandbox.run(["commit", "mnt", "busybox:changed"]);
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(
        sandbox.run(["images", "-q", "--no-trunc", "busybox:changed"]),
        id
    );
    let again = sandbox.run(["diff", "mnt"]);
    assert_eq!(again, DIFFERENCE, "a commit leaves the mount as it was");

    sandbox.run(["umount", "mnt"]);
    assert_eq!(mounts_below(&mnt), Vec::<std::path::PathBuf>::new());
    assert_eq!(sandbox.run(["mounts", "-q"]), "");

    // The new image holds what the mount showed.
    sandbox.run(["mount", "--read-only", "busybox:changed", "mnt"]);
    assert_eq!(
        std::fs::read_to_string(mnt.join("etc/motd")).unwrap(),
        "changed\n"
    );
    assert!(!mnt.join("etc/group").exists() && !mnt.join("etc/old.d/shown").exists());
    assert_eq!(
        std::fs::read_to_string(mnt.join("etc/old.d/new")).unwrap(),
        "new\n"
    );
    let (file, hard) = (
        mnt.join("srv/new/dir/file").metadata().unwrap(),
        mnt.join("srv/hard").metadata().unwrap(),
    );
    assert_eq!(
        (file.ino(), file.nlink(), file.mode() & 0o7777),
        (hard.ino(), 2, 0o640)
    );
    assert_eq!(
        std::fs::read_link(mnt.join("srv/soft")).unwrap(),
        Path::new("/srv/hard")
    );
    assert_eq!(mnt.join("srv/old").metadata().unwrap().mtime(), 981_173_106);
    let refused = std::fs::write(mnt.join("etc/motd"), "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    sandbox.run(["umount", "mnt"]);

    for transport in ["docker-archive", "oci-archive"] {
        let file = sandbox.path(format!("{transport}.tar"));
        sandbox.run([
            "export",
            "busybox:changed",
            &format!("{transport}:{}", file.display()),
        ]);
        let raw = command(
            "skopeo",
            [
                "inspect",
                "--config",
                &format!("{transport}:{}", file.display()),
            ],
        );
        let config: Value = serde_json::from_slice(&raw.stdout).unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"].as_array().map(Vec::len),
            Some(3)
        );
        assert_eq!(config["history"].as_array().map(Vec::len), Some(3));
        assert_eq!(config["config"]["Cmd"], serde_json::json!(["sh"]));
    }
    podman_shows_the_same(&sandbox);
}

/// podman takes the exported image and unpacks it itself: the reference for what a layer means.
fn podman_shows_the_same(sandbox: &Sandbox) {
    let podman = |args: &[&str]| {
        let (storage, run) = (sandbox.path("podman"), sandbox.path("pr"));
        let global = [
            "--root",
            storage.to_str().unwrap(),
            "--runroot",
            run.to_str().unwrap(),
        ];
        String::from_utf8(command("podman", global.iter().chain(args)).stdout)
            .unwrap()
            .trim()
            .to_owned()
    };
    podman(&[
        "load",
        "--quiet",
        "--input",
        sandbox.path("oci-archive.tar").to_str().unwrap(),
    ]);
    let image = podman(&["images", "--quiet"]);
    let root = podman(&["image", "mount", &image]);
    let root = Path::new(&root);
    assert_eq!(
        std::fs::read_to_string(root.join("etc/motd")).unwrap(),
        "changed\n"
    );
    assert!(!root.join("etc/group").exists());
    let in_old: Vec<_> = std::fs::read_dir(root.join("etc/old.d"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(in_old, ["new"]);
    assert_eq!(root.join("srv/hard").metadata().unwrap().nlink(), 2);
    podman(&["image", "unmount", "--all"]);
}

#[test]
fn committing_the_same_change_twice_gives_the_same_layer() {
    let sandbox = mounted();
    chroot(&sandbox.path("mnt"), CHANGES);
    sandbox.run(["commit", "mnt", "one"]);
    sandbox.run(["commit", "mnt", "two"]);
    let layers = |name: &str| {
        let answer: Value = serde_json::from_str(&sandbox.run(["inspect", name])).unwrap();
        answer[0]["RootFS"]["Layers"].clone()
    };
    assert_eq!(layers("one"), layers("two"));
}

#[test]
fn nothing_changed_is_no_difference() {
    let sandbox = mounted();
    chroot(
        &sandbox.path("mnt"),
        "cat /etc/passwd; ls -lR /; stat /etc/motd",
    );
    assert_eq!(sandbox.run(["diff", "mnt"]), "");
}

#[test]
fn mounts_lists_what_is_mounted() {
    let sandbox = mounted();
    let mnt = sandbox.path("mnt").canonicalize().unwrap();
    assert_eq!(
        sandbox.run(["mounts", "-q"]),
        format!("{}\n", mnt.display())
    );
    let table = sandbox.run(["mounts"]);
    assert!(
        table.contains("MOUNT POINT")
            && table.contains("busybox")
            && table.contains(mnt.to_str().unwrap()),
        "{table}"
    );
    let json: Value = serde_json::from_str(&sandbox.run(["mounts", "--format", "json"])).unwrap();
    assert_eq!(json[0]["MountPoint"], mnt.to_str().unwrap());
    assert!(
        json[0]["Pid"]
            .as_u64()
            .is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()),
        "{json}"
    );
}

/// Nobody in the mount gets rights by an ACL of the directory that upper and work directory happen to be made in.
#[test]
fn a_new_upper_has_no_acl_of_where_it_lies() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    let (mnt, place) = (sandbox.mkdir("mnt"), sandbox.mkdir("place"));
    sandbox.mkdir("low");
    let acl = ["-d", "-m", "u:7:rwx"].map(std::ffi::OsStr::new);
    command("setfacl", acl.into_iter().chain([place.as_os_str()]));
    for lower in ["busybox", "dir:low"] {
        sandbox.run(["mount", lower, "place/upper", "mnt"]);
        std::fs::write(mnt.join("new"), "x").unwrap();
        std::fs::create_dir_all(mnt.join("etc/sub")).unwrap();
        let listed = command("getfacl", ["-Rps".as_ref(), mnt.as_os_str()]);
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.is_empty(), "{lower}: {listed}");
        sandbox.run(["umount", "mnt"]);
        for dir in ["place/upper", "place/.upper.ovl-work"] {
            std::fs::remove_dir_all(sandbox.path(dir)).unwrap();
        }
    }
}

#[test]
fn directories_are_lowers_too() {
    require_mounting();
    let sandbox = Sandbox::new();
    for (dir, file) in [("top", "same"), ("bottom", "same"), ("bottom", "only")] {
        sandbox.mkdir(dir);
        sandbox.write(&format!("{dir}/{file}"), dir);
    }
    sandbox.mkdir("upper");
    let mnt = sandbox.mkdir("mnt");
    let show = || ["same", "only"].map(|name| std::fs::read_to_string(mnt.join(name)).unwrap());

    sandbox.run(["mount", "./top:./bottom", "upper", "mnt"]);
    assert_eq!(show(), ["top", "bottom"]);
    std::fs::remove_file(mnt.join("same")).unwrap();
    std::fs::set_permissions(mnt.join("only"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(sandbox.run(["diff", "mnt"]), "C /only\nD /same\n");
    sandbox.run(["umount", "mnt"]);
    assert_eq!(
        std::fs::read_to_string(sandbox.path("top/same")).unwrap(),
        "top",
        "lowers stay as they are"
    );

    sandbox.run(["mount", "--read-only", "dir:bottom", "mnt"]);
    assert_eq!(show(), ["bottom", "bottom"]);
}

#[test]
fn a_mounted_image_survives_rmi_and_gc() {
    let sandbox = mounted();
    let _ = sandbox.ovl(["rmi", "--force", "busybox"]).assert();
    sandbox.run(["gc"]);
    assert_eq!(
        chroot(&sandbox.path("mnt"), "cat /etc/motd"),
        "from the second layer\n"
    );
}

#[test]
fn a_read_only_mount_has_no_difference_to_show() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    sandbox.mkdir("mnt");
    sandbox.run(["mount", "--read-only", "busybox", "mnt"]);
    for args in [vec!["diff", "mnt"], vec!["commit", "mnt", "x"]] {
        assert!(sandbox.fail(2, &args).contains("read-only"), "{args:?}");
    }
}

#[test]
fn a_mount_in_use_is_busy_and_says_by_whom() {
    let sandbox = mounted();
    let held = std::fs::File::open(sandbox.path("mnt/etc/motd")).unwrap();
    let line = sandbox.fail(75, ["umount", "mnt"]);
    assert!(
        line.contains(&format!("pid {}", std::process::id())),
        "{line}"
    );
    drop(held);
    sandbox.run(["umount", "mnt"]);
}

#[test]
fn options_of_mount_are_honoured() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    let mnt = sandbox.mkdir("mnt");
    sandbox.run([
        "mount",
        "-o",
        "nosuid,nodev,noexec,atime",
        "-o",
        "fsname=mine",
        "busybox",
        "upper",
        "mnt",
    ]);
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table
        .lines()
        .find(|line| line.contains(mnt.to_str().unwrap()))
        .expect("our mount");
    for word in ["nosuid", "nodev", "noexec", "fuse.ovl mine "] {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert!(!line.contains("noatime"), "{line}");
    sandbox.run(["umount", "mnt"]);
    sandbox.run(["mount", "-o", "ro", "busybox", "mnt"]);
    assert!(std::fs::write(mnt.join("x"), "").is_err());
}

#[test]
fn mistakes_leave_nothing_mounted() {
    let sandbox = mounted();
    sandbox.mkdir("other");
    sandbox.write("file", "");
    for (code, args, names) in [
        (75, "mount busybox upper2 mnt", "mnt"),
        (4, "mount busybox upper2 missing", "missing"),
        (2, "mount busybox upper2 file", "file"),
        (4, "mount missing-dir/ upper2 other", "missing-dir"),
        (75, "mount busybox upper other", "upper"),
        (2, "mount --read-only other", "mount"),
        (2, "mount -o timeout=soon busybox upper2 other", "timeout"),
        (2, "mount -o plugins=x busybox upper2 other", "plugins"),
        (2, "mount -o lowerdir=/ busybox upper2 other", "lowerdir"),
        (2, "mount ./other other/upper2 mnt2", "other"),
        (
            2,
            "mount --read-only --volatile busybox other",
            "--volatile",
        ),
    ] {
        sandbox.mkdir("upper2");
        sandbox.mkdir("mnt2");
        let line = sandbox.fail(code, args.split(' '));
        assert!(line.contains(names), "ovl {args}: {line}");
    }
    assert_eq!(
        mounts_below(&sandbox.path("")).len(),
        1,
        "only the first mount is there"
    );
}

/// The options say what the upper means, so whoever looks at it beside the mount must know them.
#[test]
fn a_commit_sees_what_the_mount_shows() {
    require_mounting();
    let sandbox = Sandbox::new();
    let lower = sandbox.mkdir("lower");
    for (name, size) in [("big", 300_000), ("left", 10)] {
        let path = sandbox.write(&format!("lower/{name}"), vec![7; size]);
        std::os::unix::fs::chown(path, Some(1000), Some(1000)).unwrap();
    }
    std::fs::create_dir(lower.join("dir")).unwrap();
    sandbox.mkdir("mnt");
    sandbox.run([
        "mount",
        "-o",
        "metacopy=on,uidmapping=0:1000:1:1:0:1,gidmapping=0:1000:1:1:0:1",
        "lower",
        "upper",
        "mnt",
    ]);
    let big = sandbox.path("mnt/big");
    std::fs::set_permissions(&big, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    std::fs::rename(sandbox.path("mnt/dir"), sandbox.path("mnt/moved")).unwrap();
    assert_eq!(
        sandbox.run(["diff", "mnt"]),
        "C big\nD dir\nA moved\n".replace(' ', " /")
    );
    sandbox.run(["commit", "mnt", "mapped:1"]);
    sandbox.run(["umount", "mnt"]);
    sandbox.run(["mount", "--read-only", "mapped:1", "mnt"]);
    let meta = std::fs::metadata(&big).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (0, 0, 0o640)
    );
    assert_eq!(std::fs::read(&big).unwrap(), vec![7; 300_000]);
    assert_eq!(
        std::fs::metadata(sandbox.path("mnt/left")).unwrap().uid(),
        0
    );
    sandbox.run(["umount", "mnt"]);
}
