//! T17 to T19, T32: what nobody may gain by an overlay. Set-id files and capabilities of lowers, device nodes, marks of overlays
//! forged through the mount or in a layer, and who may come in at all.

mod common;
mod image_support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use common::{Sandbox, require_mounting};
use image_support::{RawTar, checksum, docker_archive, header};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// A user of no account.
const NOBODY: u32 = 65534;

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).expect("lsetxattr");
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 4096];
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(length) => Some(value[..length].to_vec()),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => None,
        Err(e) => panic!("{}: {name}: {e}", path.display()),
    }
}

/// struct vfs_cap_data, revision 2: cap_net_raw permitted and effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A lower with a set-user-ID shell of root's and a file with a capability; the directory belongs to `NOBODY`, who so may
/// rename and remove what is in it.
fn tempting() -> Sandbox {
    require_mounting();
    let sandbox = Sandbox::new();
    fs::set_permissions(sandbox.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    let lower = sandbox.mkdir("lower");
    // It tells who runs it.
    fs::copy("/usr/bin/id", lower.join("su")).expect("coreutils");
    fs::write(lower.join("capable"), "x").unwrap();
    fs::set_permissions(lower.join("su"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(lower.join("capable"), fs::Permissions::from_mode(0o777)).unwrap();
    set_xattr(&lower.join("capable"), "security.capability", &CAPABILITY);
    // Their own, so that it can be copied up.
    fs::write(lower.join("own"), "x").unwrap();
    std::os::unix::fs::chown(lower.join("own"), Some(NOBODY), Some(NOBODY)).unwrap();
    set_xattr(&lower.join("own"), "security.capability", &CAPABILITY);
    // Where everybody can reach it, wherever the checkout is.
    let program = Path::new(env!("CARGO_BIN_EXE_ovl"));
    fs::hard_link(program, sandbox.path("ovl"))
        .or_else(|_| fs::copy(program, sandbox.path("ovl")).map(drop))
        .unwrap();
    let null = lower.join("null");
    common::command(
        "mknod",
        ["-m", "666", null.to_str().unwrap(), "c", "1", "3"],
    );
    sandbox.write("lower/open", "as it was\n");
    fs::set_permissions(lower.join("open"), fs::Permissions::from_mode(0o666)).unwrap();
    let user = sandbox.mkdir("user");
    for dir in [&lower, &user] {
        std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    sandbox
}

/// Runs a script as `NOBODY` in `user`, with a `/dev/fuse` that everybody may open; `wrap` are words before the shell.
fn as_nobody(sandbox: &Sandbox, wrap: &str, script: &str) -> Output {
    let device = sandbox.path("fuse");
    let outer = format!(
        "set -e; mount --make-rprivate /; [ -e '{0}' ] || mknod -m 666 '{0}' c 10 229; mount --bind '{0}' /dev/fuse; cd user; \
         exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups {wrap} sh -uc \"$1\"",
        device.display()
    );
    let script = format!("ovl() {{ ../ovl \"$@\"; }}; {script}");
    Command::new("unshare")
        .args(["-m", "sh", "-c", &outer, "sh", &script])
        .current_dir(sandbox.path("."))
        .env("OVL_RUN", sandbox.path("user/run"))
        .env("OVL_ROOT", sandbox.path("user/store"))
        .output()
        .expect("this test needs unshare and setpriv")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// In the upper nothing is root's, and no file gives more than its user has.
fn assert_harmless(upper: &Path) {
    for entry in walkdir::WalkDir::new(upper) {
        let path = entry.unwrap().into_path();
        let meta = path.symlink_metadata().unwrap();
        assert_eq!(meta.uid(), NOBODY, "{}", path.display());
        let set_id = meta.is_file() && meta.mode() & 0o6000 != 0;
        assert!(!set_id || meta.uid() == NOBODY, "{}", path.display());
        // Of the third revision, bound to the user's own namespace, or none: byte 3 is the revision.
        if let Some(value) = xattr(&path, "security.capability") {
            assert_eq!(value[3], 3, "{}: {value:02x?}", path.display());
            let root = u32::from_le_bytes(value[20..24].try_into().unwrap());
            assert_eq!(root, NOBODY, "{}", path.display());
        }
    }
}

/// CVE-2023-0386: a set-user-ID file of root's in a lower must not become one in the upper of a user who could not have made
/// it.
#[test]
fn t18_set_user_id_files_of_others_are_not_copied_up() {
    let sandbox = tempting();
    let script = "mkdir up mnt; ovl mount ../lower ./up ./mnt || exit 9
for words in 'chmod 4777' 'chown 0' 'touch' 'mv -T mnt/../mnt/su'; do
    case $words in mv*) mv mnt/su mnt/moved ;; *) $words mnt/su ;; esac && echo \"done: $words\"
done
ln mnt/su mnt/linked && echo done: ln
sh -c 'echo more >> mnt/su' && echo done: write
mnt/su -u
cat mnt/null && echo done: device
stat -c '%u %a' mnt/su
mv mnt/own mnt/own2; chmod 4755 mnt/own2; ls -ln mnt
ovl umount mnt";
    let output = as_nobody(&sandbox, "unshare --user --map-root-user --mount", script);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("done:"), "{said}");
    assert!(said.contains("Value too large"), "EOVERFLOW: {said}");
    assert!(said.contains("65534 4755"), "{said}");
    let upper = sandbox.path("user/up");
    assert!(!upper.join("su").exists() && !upper.join("moved").exists());
    assert!(upper.join("own2").exists(), "its own is copied up: {said}");
    assert_harmless(&upper);
    // What is in the lower is as it was.
    let su = sandbox.path("lower/su").metadata().unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid()), (0o4755, 0));
}

/// Without any namespace: fusermount3 mounts, always with nosuid and nodev.
#[test]
fn t18_a_plain_users_mount_gives_nobody_rights() {
    let sandbox = tempting();
    let script = "mkdir up mnt; ovl mount ../lower ./up ./mnt || exit 9
grep \" $PWD/mnt \" /proc/self/mounts
mnt/su -u
cat mnt/null && echo done: device
mv mnt/su mnt/moved && echo done: mv
sh -c 'echo more >> mnt/open' && echo done: write
cat mnt/open
sh -c 'echo more >> mnt/capable'; ovl umount mnt";
    let output = as_nobody(&sandbox, "", script);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("nosuid,nodev"), "{said}");
    assert!(said.lines().any(|line| line == "65534"), "id -u: {said}");
    assert!(!said.lines().any(|line| line == "0"), "root: {said}");
    assert!(!said.contains("done:"), "{said}");
    let upper = sandbox.path("user/up");
    for entry in fs::read_dir(&upper).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        assert_eq!(meta.uid(), NOBODY, "{}", path.display());
        assert_eq!(xattr(&path, "security.capability"), None);
    }
}

/// Writing and giving away take capabilities, also of a lower's file, also where the writer is root.
#[test]
fn t18_capabilities_of_a_lower_go_with_the_first_change() {
    let sandbox = tempting();
    sandbox.mkdir("mnt");
    sandbox.run(["mount", "./lower", "./upper", "./mnt"]);
    let mnt = sandbox.path("mnt");
    let capability = |name: &str| xattr(&mnt.join(name), "security.capability");
    assert_eq!(capability("own").as_deref(), Some(&CAPABILITY[..]));
    // A change of times takes nothing.
    let now = std::time::SystemTime::now();
    fs::File::open(mnt.join("own"))
        .unwrap()
        .set_modified(now)
        .unwrap();
    assert_eq!(capability("own").as_deref(), Some(&CAPABILITY[..]));
    std::os::unix::fs::chown(mnt.join("own"), Some(5), Some(5)).unwrap();
    assert_eq!(capability("own"), None, "after chown");
    let mut file = fs::File::options()
        .append(true)
        .open(mnt.join("capable"))
        .unwrap();
    std::io::Write::write_all(&mut file, b"more").unwrap();
    drop(file);
    assert_eq!(capability("capable"), None, "after write");
    // A write of somebody else takes the set-id bit too.
    fs::set_permissions(mnt.join("su"), fs::Permissions::from_mode(0o6777)).unwrap();
    let script = "echo more >> mnt/su";
    let status = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "sh",
            "-c",
            script,
        ])
        .current_dir(sandbox.path("."))
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(fs::metadata(mnt.join("su")).unwrap().mode() & 0o7777, 0o777);
    sandbox.run(["umount", "mnt"]);
    assert_eq!(
        fs::metadata(sandbox.path("upper/su")).unwrap().mode() & 0o7777,
        0o777
    );
    assert_eq!(
        xattr(&sandbox.path("upper/own"), "security.capability"),
        None
    );
}

fn device(name: &str, major: u32, minor: u32) -> [u8; 512] {
    let mut block = header(name.as_bytes(), b'3', 0, b"");
    block[329..337].copy_from_slice(format!("{major:07o}\0").as_bytes());
    block[337..345].copy_from_slice(format!("{minor:07o}\0").as_bytes());
    checksum(&mut block);
    block
}

/// A layer's device 0:0 hides nothing, and its xattrs are no marks: looked at through the mount.
#[test]
fn t17_t19_marks_in_a_layer_are_none() {
    require_mounting();
    let sandbox = Sandbox::new();
    let bottom = RawTar::new()
        .file("hidden", b"below")
        .dir("d")
        .file("d/inner", b"below")
        .dir("victim")
        .file("victim/secret", b"below")
        .end();
    let forged = [
        ("SCHILY.xattr.trusted.overlay.opaque", &b"y"[..]),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.fuseoverlayfs.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/victim"),
        ("SCHILY.xattr.user.overlay.redirect", b"/victim"),
        ("SCHILY.xattr.trusted.overlay.overlay.opaque", b"y"),
    ];
    let records: Vec<(&str, &[u8])> = forged.to_vec();
    let stat: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.user.containers.override_stat", b"0:0:4755"),
        ("SCHILY.xattr.trusted.overlay.metacopy", b""),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/victim/secret"),
    ];
    let top = RawTar::new()
        .raw(&device("hidden", 0, 0))
        .raw(&device("null", 1, 3))
        .pax(&records)
        .dir("d")
        .pax(&stat)
        .file("f", b"own")
        .end();
    let archive = sandbox.write("image.tar", docker_archive(&[bottom, top]));
    sandbox.run(["import".as_ref(), archive.as_os_str()]);
    sandbox.mkdir("mnt");
    let mnt = sandbox.path("mnt");
    for words in [
        &["mount"][..],
        &["mount", "-o", "redirect_dir=on,metacopy=on"],
        &["mount", "-o", "xattr_permissions=2"],
    ] {
        let what = format!("{words:?}");
        let mut words = words.to_vec();
        words.extend(["localhost/test:1", "./upper", "./mnt"]);
        sandbox.run(words);
        let hidden = mnt.join("hidden").symlink_metadata().expect("no whiteout");
        assert!(
            hidden.file_type().is_char_device() && hidden.rdev() == 0,
            "{what}"
        );
        assert_eq!(
            fs::read(mnt.join("d/inner")).unwrap(),
            b"below",
            "{what}: opaque"
        );
        assert!(!mnt.join("d/secret").exists(), "{what}: redirect");
        assert_eq!(fs::read(mnt.join("f")).unwrap(), b"own", "{what}: metacopy");
        assert_eq!(
            fs::metadata(mnt.join("f")).unwrap().mode() & 0o7777,
            0o755,
            "{what}"
        );
        let names = fs::read_dir(&mnt).unwrap().count();
        assert_eq!(names, 5, "{what}");
        sandbox.run(["umount", "mnt"]);
        fs::remove_dir_all(sandbox.path("upper")).unwrap();
        fs::remove_dir_all(sandbox.path(".upper.ovl-work")).unwrap();
    }
    // Devices of an image do not work where the mount says so.
    sandbox.run([
        "mount",
        "-o",
        "nodev,nosuid",
        "localhost/test:1",
        "./upper",
        "./mnt",
    ]);
    let error = fs::File::open(mnt.join("null")).expect_err("nodev");
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    sandbox.run(["umount", "mnt"]);
}

/// CVE-2021-3493, CVE-2023-2640: the marks of overlays cannot be set, read or removed through the mount, not even by root.
#[test]
fn t19_marks_cannot_be_forged_through_the_mount() {
    require_mounting();
    let sandbox = Sandbox::new();
    for dir in ["lower/d", "lower/other", "mnt"] {
        sandbox.mkdir(dir);
    }
    sandbox.write("lower/d/inner", "below");
    sandbox.write("lower/other/secret", "below");
    sandbox.write("lower/f", "below");
    sandbox.run(["mount", "./lower", "./upper", "./mnt"]);
    let (mnt, upper) = (sandbox.path("mnt"), sandbox.path("upper"));
    // Made opaque and redirected by us, so that there are marks to find.
    fs::rename(mnt.join("other"), mnt.join("renamed")).unwrap();
    assert!(xattr(&upper.join("renamed"), "trusted.overlay.redirect").is_some());
    assert_eq!(
        xattr(&mnt.join("renamed"), "trusted.overlay.redirect"),
        None
    );
    let mut names = [0; 4096];
    let length = rustix::fs::listxattr(mnt.join("renamed"), &mut names[..]).unwrap();
    assert_eq!(length, 0, "{}", names[..length].escape_ascii());
    assert_eq!(
        rustix::fs::removexattr(mnt.join("renamed"), "trusted.overlay.redirect"),
        Err(Errno::NODATA)
    );
    for name in [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.overlay.metacopy",
        "trusted.overlay.origin",
        "trusted.overlay.ovl.device",
        "user.overlay.opaque",
        "user.overlay.whiteout",
        "user.overlay.redirect",
    ] {
        // They are taken one level deeper, where an overlay on top of this one has its own.
        set_xattr(&mnt.join("d"), name, b"/other");
        assert_eq!(xattr(&mnt.join("d"), name).as_deref(), Some(&b"/other"[..]));
        assert_eq!(
            xattr(&upper.join("d"), name).filter(|v| v == b"/other"),
            None,
            "{name}"
        );
    }
    for name in [
        "user.fuseoverlayfs.opaque",
        "user.fuseoverlayfs.override_stat",
    ] {
        let set = rustix::fs::setxattr(mnt.join("d"), name, b"y", XattrFlags::empty());
        assert_eq!(set, Err(Errno::PERM), "{name}");
        assert_eq!(xattr(&mnt.join("d"), name), None);
    }
    sandbox.run(["umount", "mnt"]);
    for options in ["rw", "redirect_dir=on", "metacopy=on", "userxattr"] {
        // The marks of root's mount are not those of `userxattr`, which is about the forged ones.
        sandbox.run(["mount", "-o", options, "./lower", "./upper", "./mnt"]);
        assert_eq!(
            fs::read(mnt.join("d/inner")).unwrap(),
            b"below",
            "{options}"
        );
        assert!(!mnt.join("d/secret").exists(), "{options}");
        sandbox.run(["umount", "mnt"]);
    }
    // Where owners and modes are kept in an xattr, that is out of reach too.
    let output = sandbox
        .ovl([
            "mount",
            "-o",
            "xattr_permissions=2",
            "./lower",
            "./upper2",
            "./mnt",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::write(mnt.join("new"), "x").unwrap();
    for name in [
        "user.containers.override_stat",
        "user.fuseoverlayfs.override_stat",
    ] {
        let set =
            rustix::fs::setxattr(mnt.join("new"), name, b"0:0:4755:file", XattrFlags::empty());
        assert_eq!(set, Err(Errno::PERM), "{name}");
        assert_eq!(xattr(&mnt.join("new"), name), None, "{name}");
    }
    assert_eq!(fs::metadata(mnt.join("new")).unwrap().mode() & 0o4000, 0);
    sandbox.run(["umount", "mnt"]);
}

/// The same by a user who is root in a namespace of his own.
#[test]
fn t19_nor_from_a_user_namespace() {
    let sandbox = tempting();
    fs::create_dir(sandbox.path("lower/d")).unwrap();
    std::os::unix::fs::chown(sandbox.path("lower/d"), Some(NOBODY), Some(NOBODY)).unwrap();
    let script = "mkdir up mnt; ovl mount ../lower ./up ./mnt || exit 9
for name in trusted.overlay.opaque user.overlay.opaque user.fuseoverlayfs.opaque security.capability; do
    setfattr -n $name -v y mnt/d && echo \"set: $name\"
done
ovl umount mnt";
    let output = as_nobody(&sandbox, "unshare --user --map-root-user --mount", script);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let set: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("set: "))
        .collect();
    assert_eq!(set, ["set: user.overlay.opaque"], "{said}");
    let upper = sandbox.path("user/up/d");
    assert_eq!(xattr(&upper, "user.overlay.opaque"), None);
    assert_eq!(
        xattr(&upper, "user.overlay.overlay.opaque").as_deref(),
        Some(&b"y"[..])
    );
    assert_harmless(&sandbox.path("user/up"));
}

/// Permissions are the kernel's to check wherever somebody else may come in; and without `allow_other` nobody else may, not
/// even root.
#[test]
fn t32_who_may_come_in() {
    let sandbox = tempting();
    sandbox.mkdir("mnt");
    sandbox.write("lower/private", "mine");
    fs::set_permissions(
        sandbox.path("lower/private"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    sandbox.mkdir("lower/shut");
    fs::set_permissions(
        sandbox.path("lower/shut"),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    for merge in ["fuse", "kernel"] {
        sandbox.run(["mount", "--merge", merge, "./lower", "./upper", "./mnt"]);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mnt = sandbox.path("mnt").display().to_string();
        let line = table
            .lines()
            .find(|line| line.split(' ').nth(4) == Some(&mnt))
            .unwrap();
        assert!(
            merge == "kernel"
                || line.contains("default_permissions") && line.contains("allow_other"),
            "{line}"
        );
        for denied in [
            "cat mnt/private",
            "ls mnt/shut",
            "touch mnt/private",
            "echo >> mnt/su",
        ] {
            let status = Command::new("setpriv")
                .args([
                    "--reuid=1234",
                    "--regid=1234",
                    "--clear-groups",
                    "sh",
                    "-c",
                    denied,
                ])
                .current_dir(sandbox.path("."))
                .output()
                .unwrap();
            assert!(!status.status.success(), "{merge}: {denied}");
        }
        sandbox.run(["umount", "mnt"]);
    }
    // A user's own mount: others, and root too, do not get in; `allow_other` needs the administrator's leave.
    let script = "mkdir up mnt; ovl mount ../lower ./up ./mnt || exit 9
grep \" $PWD/mnt \" /proc/self/mounts; : > ready; cat > /dev/null; ovl umount mnt";
    let device = sandbox.path("fuse");
    let outer = format!(
        "set -e; mount --make-rprivate /; mknod -m 666 '{0}' c 10 229; mount --bind '{0}' /dev/fuse; cd user; \
         exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups sh -uc \"$1\"",
        device.display()
    );
    let script = format!("ovl() {{ ../ovl \"$@\"; }}; {script}");
    let mut child = Command::new("unshare")
        .args(["-m", "sh", "-c", &outer, "sh", &script])
        .current_dir(sandbox.path("."))
        .env("OVL_RUN", sandbox.path("user/run"))
        .env("OVL_ROOT", sandbox.path("user/store"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !sandbox.path("user/ready").exists() {
        assert!(std::time::Instant::now() < deadline, "no mount");
        assert_eq!(child.try_wait().unwrap(), None, "the mount failed");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // From here it is seen through the process that has it in its namespace.
    let inside = Path::new("/proc").join(child.id().to_string()).join("root");
    let seen = inside.join(sandbox.path("user/mnt").strip_prefix("/").unwrap());
    let error = fs::read_dir(&seen).expect_err("root is not the user");
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("default_permissions") && !said.contains("allow_other"),
        "{said}"
    );
}
