//! An upper written by a released version of ovl shows the same tree under this one: docs/upper-format.md is kept.
//!
//! `fixtures/upper/vN.tar` holds the upper and work directory as version N of the format left them over the busybox
//! image; `fixtures/upper/make.sh` made it.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use common::{Sandbox, require_mounting};

fn opened(version: u32) -> Sandbox {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    let archive =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/upper/v{version}.tar"));
    let unpacked = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(archive)
        .current_dir(sandbox.path("."))
        .status()
        .unwrap();
    assert!(unpacked.success());
    sandbox.mkdir("mnt");
    sandbox
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn version_1() {
    let sandbox = opened(1);
    // Twice: opening it must not change what it means.
    for _ in 0..2 {
        sandbox.run(["mount", "busybox", "upper", "mnt"]);
        let at = |path: &str| sandbox.path("mnt").join(path);
        let meta =
            |path: &str| fs::symlink_metadata(at(path)).unwrap_or_else(|e| panic!("{path}: {e}"));

        let motd = fs::read_to_string(at("etc/motd")).unwrap();
        assert!(
            motd.lines().count() == 2 && motd.ends_with("appended\n"),
            "{motd}"
        );
        assert_eq!(
            (meta("root/motd").ino(), meta("etc/motd").nlink()),
            (meta("etc/motd").ino(), 2)
        );
        assert_eq!(names(&at("etc")), ["group", "motd"]);
        assert_eq!(names(&at("var")), ["journal"]);
        assert_eq!(names(&at("var/journal")), ["empty"]);
        assert_eq!(names(&at("home/kept.d")), ["shown"]);
        assert_eq!(names(&at("usr")), [""; 0]);
        assert!(!at("bin/vi").is_symlink() && at("bin/ls").is_symlink());
        assert!(meta("dev/zero-zero").file_type().is_char_device());

        let busybox = meta("bin/busybox");
        assert_eq!(
            (busybox.mode() & 0o7777, busybox.nlink()),
            (0o711, 1),
            "its other name went with usr"
        );
        let lower = sandbox.path("below");
        fs::create_dir_all(&lower).unwrap();
        sandbox.run([
            "mount".as_ref(),
            "--read-only".as_ref(),
            "busybox".as_ref(),
            lower.as_os_str(),
        ]);
        assert!(
            fs::read(at("bin/busybox")).unwrap() == fs::read(lower.join("bin/busybox")).unwrap()
        );
        assert_eq!(
            meta("bin/busybox").ino(),
            fs::metadata(lower.join("bin/busybox")).unwrap().ino()
        );
        sandbox.run(["umount".as_ref(), lower.as_os_str()]);
        let mut note = [0; 16];
        let len = rustix::fs::getxattr(at("root"), "user.note", &mut note).unwrap();
        assert_eq!(&note[..len], b"hello");
        sandbox.run(["umount", "mnt"]);
    }
}
