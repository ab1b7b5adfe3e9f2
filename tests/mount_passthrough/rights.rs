//! Rights: the kernel writes with those of the daemon, and must all the same take from a file what a write by an ordinary
//! user takes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::data::same_attributes;
use super::mode_support::PASSTHROUGH;
use super::mount_support::{Site, complaint};
use super::{both, on_each};

const NOBODY: u32 = 65_534;

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// A shell of an ordinary user.
fn shell(script: &str, file: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-euc", script, "sh"])
        .arg(file)
        .uid(NOBODY)
        .gid(NOBODY)
        .stdin(Stdio::piped());
    command
}

/// One that has the file open and writes when it is told.
fn waiting_writer(file: &Path) -> Child {
    let mut child = shell("exec 3<>\"$1\"; echo open; read -r go; printf x >&3", file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut open = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut open).unwrap();
    assert_eq!(&open, b"open\n");
    child
}

fn go(mut writer: Child) {
    writer.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(writer.wait().unwrap().success());
}

#[test]
fn a_write_takes_set_id_bits() {
    on_each(
        |_| (),
        |site, _| {
            for name in ["hello", "new"] {
                let (shown, kept) = (site.path("mnt").join(name), site.path("upper").join(name));
                if name == "new" {
                    fs::write(&shown, "text").unwrap();
                }
                // Bits that were there when it was opened; sgid without group execute means locking and stays.
                for (bits, left) in [(0o6777, 0o777), (0o6767, 0o2767), (0o4766, 0o766)] {
                    chmod(&shown, bits);
                    assert!(
                        shell("printf x >>\"$1\"", &shown)
                            .status()
                            .unwrap()
                            .success()
                    );
                    assert_eq!((mode(&shown), mode(&kept)), (left, left), "{bits:o}");
                    chmod(&shown, bits);
                    assert!(shell(":>\"$1\"", &shown).status().unwrap().success());
                    assert_eq!((mode(&shown), mode(&kept)), (left, left), "{bits:o}");
                }
                // That came while it was open.
                chmod(&shown, 0o777);
                let writer = waiting_writer(&shown);
                chmod(&shown, 0o6777);
                assert_eq!(mode(&shown), 0o6777);
                go(writer);
                assert_eq!((mode(&shown), mode(&kept)), (0o777, 0o777));
                // Root may keep them.
                chmod(&shown, 0o6777);
                let file = both().open(&shown).unwrap();
                file.write_all_at(b"root", 0).unwrap();
                assert_eq!((mode(&shown), mode(&kept)), (0o6777, 0o6777));
                same_attributes(&shown, &kept);
            }
        },
    );
}

#[test]
fn a_write_takes_capabilities() {
    on_each(
        |_| (),
        |site, _| {
            let (shown, kept) = (site.path("mnt/new"), site.path("upper/new"));
            fs::write(&shown, "text").unwrap();
            chmod(&shown, 0o777);
            let name = "security.capability";
            // VFS_CAP_REVISION_2, cap_net_raw.
            let value = [
                1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ];
            let give = || rustix::fs::setxattr(&shown, name, &value, XattrFlags::empty()).unwrap();
            let has = |path: &Path| rustix::fs::getxattr(path, name, &mut [0; 64]);
            give();
            assert_eq!(has(&shown), Ok(value.len()));
            both().open(&shown).unwrap().write_all_at(b"x", 0).unwrap();
            assert_eq!(
                (has(&shown), has(&kept)),
                (Err(Errno::NODATA), Err(Errno::NODATA))
            );
            let writer = waiting_writer(&shown);
            give();
            go(writer);
            assert_eq!(
                (has(&shown), has(&kept)),
                (Err(Errno::NODATA), Err(Errno::NODATA))
            );
        },
    );
}

/// chown(2) to nobody asks the same of us as the kernel before a write: nobody may take a program's bits who does not write it.
#[test]
fn nobody_disarms_programs() {
    on_each(
        |_| (),
        |site, _| {
            let shown = site.path("mnt/new");
            fs::write(&shown, "text").unwrap();
            chmod(&shown, 0o4755);
            let script =
                "python3 -c 'import os, sys; os.chown(sys.argv[1], -1, -1)' \"$1\" || true";
            assert!(shell(script, &shown).status().unwrap().success());
            assert_eq!(mode(&shown), 0o4755);
        },
    );
}

/// The kernel judges by what the mount shows, not by what the file behind it has.
#[test]
fn who_may_is_judged_by_the_mount() {
    on_each(
        |_| (),
        |site, _| {
            let shown = site.path("mnt/new");
            fs::write(&shown, "text").unwrap();
            chmod(&shown, 0o600);
            assert!(!shell("cat \"$1\" 2>&-", &shown).status().unwrap().success());
            chmod(&shown, 0o444);
            assert!(
                shell("cat \"$1\"", &shown)
                    .stdout(Stdio::null())
                    .status()
                    .unwrap()
                    .success()
            );
            assert!(
                !shell("(printf x >>\"$1\") 2>&-", &shown)
                    .status()
                    .unwrap()
                    .success()
            );
        },
    );
}

/// Owners that are others on disk: the bytes go the same way.
#[test]
fn squashed_and_mapped() {
    if !PASSTHROUGH.is_here() {
        return;
    }
    for words in [
        "squash_to_root,io=passthrough",
        "uidmapping=0:100000:65536,gidmapping=0:100000:65536,io=passthrough",
        "xattr_permissions=2,io=passthrough",
    ] {
        let site = Site::new();
        chmod(&site.path("."), 0o755);
        for name in ["upper", "lower", "lower/hello"] {
            if words.starts_with("uid") {
                std::os::unix::fs::chown(site.path(name), Some(100_000), Some(100_000)).unwrap();
            }
        }
        let mut task = site.task();
        task.words = vec!["-o", words];
        let output = site.try_mount(&task);
        assert!(output.status.success(), "{}", complaint(&output));
        let shown = site.path("mnt/hello");
        chmod(&shown, 0o666);
        assert!(
            shell("printf x >>\"$1\"", &shown)
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(fs::read(&shown).unwrap(), b"from belowx");
        assert_eq!(fs::metadata(&shown).unwrap().uid(), 0, "{words}");
        assert_eq!(mode(&shown), 0o666, "{words}");
        fs::write(site.path("mnt/new"), "text").unwrap();
        let file = both().open(site.path("mnt/new")).unwrap();
        file.write_all_at(b"T", 0).unwrap();
        assert_eq!(
            fs::read(site.path("upper/new")).unwrap(),
            b"Text",
            "{words}"
        );
    }
}

/// As on the upper's own file system: refused when it is opened, and who only appends may.
#[test]
fn immutable_and_append_only() {
    on_each(
        |_| (),
        |site, _| {
            let shown = site.path("mnt/new");
            fs::write(&shown, "text").unwrap();
            let flag = |flag: &str| {
                let done = Command::new("chattr").arg(flag).arg(&shown).status();
                assert!(done.unwrap().success(), "{flag}");
            };
            let open = || both().open(&shown).map(drop).map_err(|e| e.raw_os_error());
            flag("+i");
            assert_eq!(open(), Err(Some(libc::EPERM)));
            assert_eq!(fs::read(&shown).unwrap(), b"text");
            flag("-i");
            flag("+a");
            assert_eq!(open(), Err(Some(libc::EPERM)));
            let mut end = fs::OpenOptions::new().append(true).open(&shown).unwrap();
            end.write_all(b" more").unwrap();
            assert_eq!(fs::read(&shown).unwrap(), b"text more");
            flag("-a");
            assert_eq!(open(), Ok(()));
        },
    );
}
