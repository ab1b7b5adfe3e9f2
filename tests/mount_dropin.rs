//! ovl by the name of fuse-overlayfs: every option of that program's table, its signals and its ways to end.

mod common;
mod podman_support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Sandbox, command, mounts_below, require_mounting};
use podman_support::{Driver, Station};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Lowers, an upper and a mount point, and the program by its other name.
struct Place {
    sandbox: Sandbox,
}

const MIMED: &str = "user.mime_type";
const ACL: &str = "system.posix_acl_access";

impl Place {
    fn new() -> Self {
        require_mounting();
        let place = Self {
            sandbox: Sandbox::new(),
        };
        place.renew();
        symlink(env!("CARGO_BIN_EXE_ovl"), place.at("fuse-overlayfs")).unwrap();
        for dir in ["top", "low/dir/sub", "low/acl", "mnt"] {
            place.sandbox.mkdir(dir);
        }
        for (file, text) in [
            ("top/file", "from the top"),
            ("low/file", "from below"),
            ("low/one", "two names"),
            ("low/dir/inner", "inner"),
        ] {
            place.sandbox.write(file, text);
        }
        place.sandbox.write("low/big", vec![1; 200_000]);
        fs::hard_link(place.at("low/one"), place.at("low/two")).unwrap();
        for owned in ["top/file", "low/big"] {
            chown(place.at(owned), Some(1000), Some(100_004)).unwrap();
        }
        rustix::fs::setxattr(place.at("low/big"), MIMED, b"a/b", XattrFlags::empty()).unwrap();
        let acl = place.at("low/acl");
        command(
            "setfacl",
            ["-m", "u:7:rwx,d:u:8:rwx", acl.to_str().unwrap()],
        );
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.sandbox.path(name)
    }

    fn mnt(&self, name: &str) -> PathBuf {
        self.at("mnt").join(name)
    }

    fn renew(&self) {
        for dir in ["upper", "work"] {
            let _ = fs::remove_dir_all(self.at(dir));
            self.sandbox.mkdir(dir);
        }
    }

    fn program(&self) -> Command {
        let mut program = Command::new(self.at("fuse-overlayfs"));
        program
            .current_dir(self.at(""))
            .env("OVL_RUN", self.at("run"))
            .env_remove("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT")
            .stdin(Stdio::null());
        program
    }

    /// Calls it as podman does: stderr is a pipe that is read to its end.
    fn call(&self, words: &[&str]) -> Output {
        self.program().args(words).output().expect("it runs")
    }

    /// Mounts, which must work; what was said on stderr.
    fn mount(&self, options: &str) -> String {
        let all = format!("lowerdir=top:low,upperdir=upper,workdir=work,{options}");
        let output = self.call(&["-o", &all, "mnt"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{options}: {said}");
        assert_eq!(mounts_below(&self.at("mnt")).len(), 1, "{options}");
        said
    }

    /// From outside, as podman does.
    fn unmount(&self) {
        command("fusermount3", ["-u", self.at("mnt").to_str().unwrap()]);
        assert_eq!(mounts_below(&self.at("mnt")).len(), 0);
        self.wait_for_daemons();
    }

    fn wait_for_daemons(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while fs::read_dir(self.at("run/mounts")).unwrap().count() > 0 {
            assert!(Instant::now() < deadline, "a daemon stays");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The line of the mount table.
    fn line(&self) -> String {
        let mnt = format!(" {} ", self.at("mnt").display());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains(&mnt));
        line.expect("a mount").to_owned()
    }

    fn owner(&self, name: &str) -> (u32, u32) {
        let meta = self.at(name).symlink_metadata().unwrap();
        (meta.uid(), meta.gid())
    }
}

fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value)?;
    value.truncate(length);
    Ok(value)
}

type Check = fn(&Place);

/// Options, and what is true of the mount that has them. Nothing is said on stderr.
const TABLE: &[(&str, Check)] = &[
    ("", |p| {
        assert_eq!(fs::read(p.mnt("file")).unwrap(), b"from the top");
        assert_eq!(fs::read(p.mnt("dir/inner")).unwrap(), b"inner");
        fs::write(p.mnt("dir/inner"), "changed").unwrap();
        assert_eq!(fs::read(p.at("upper/dir/inner")).unwrap(), b"changed");
        assert_eq!(fs::read(p.at("low/dir/inner")).unwrap(), b"inner");
        let line = p.line();
        assert!(line.contains(" rw,nodev,noatime "), "{line}");
        assert!(line.contains("default_permissions,allow_other"), "{line}");
        let magic = rustix::fs::statfs(p.at("mnt")).unwrap().f_type;
        assert_eq!(magic, 0x6573_5546, "FUSE_SUPER_MAGIC");
    }),
    (",,", |_| ()),
    ("uidmapping=:0:1000:1:1:100000:65536:65537:0:1", |p| {
        assert_eq!(p.owner("mnt/file"), (0, 100_004));
        fs::write(p.mnt("new"), "").unwrap();
        assert_eq!(p.owner("upper/new"), (1000, 0));
        chown(p.mnt("new"), Some(5), None).unwrap();
        assert_eq!(p.owner("upper/new").0, 100_004);
    }),
    ("gidmapping=0:0:1:1:100000:65536", |p| {
        assert_eq!(p.owner("mnt/file"), (1000, 5));
        chown(p.mnt("file"), None, Some(7)).unwrap();
        assert_eq!(p.owner("upper/file"), (1000, 100_006));
    }),
    ("squash_to_root", |p| {
        assert_eq!(p.owner("mnt/file"), (0, 0))
    }),
    ("squash_to_root,squash_to_uid=7", |p| {
        assert_eq!(p.owner("mnt/file"), (7, 0));
        fs::write(p.mnt("new"), "").unwrap();
        assert_eq!(p.owner("upper/new"), (7, 0));
    }),
    ("squash_to_gid=8", |p| {
        assert_eq!(p.owner("mnt/file"), (1000, 8))
    }),
    ("xattr_permissions=0", |p| {
        chown(p.mnt("file"), Some(3), Some(4)).unwrap();
        assert_eq!(p.owner("upper/file"), (3, 4));
    }),
    ("xattr_permissions=1", |p| {
        kept_in(p, "security.fuseoverlayfs.override_stat");
    }),
    ("xattr_permissions=2", |p| {
        kept_in(p, "user.containers.override_stat");
    }),
    ("static_nlink", |p| {
        assert_eq!(p.mnt("dir").metadata().unwrap().nlink(), 1);
    }),
    ("", |p| {
        assert_eq!(p.mnt("dir").metadata().unwrap().nlink(), 3)
    }),
    ("", |p| {
        assert!(xattr(&p.mnt("acl"), ACL).is_ok());
        fs::write(p.mnt("acl/new"), "").unwrap();
        assert!(xattr(&p.at("upper/acl/new"), ACL).is_ok(), "inherited");
    }),
    ("noacl", |p| {
        assert_eq!(xattr(&p.mnt("acl"), ACL), Err(Errno::OPNOTSUPP));
        assert_eq!(xattr(&p.mnt("big"), MIMED).unwrap(), b"a/b");
        fs::write(p.mnt("acl/new"), "").unwrap();
        let mode = p.mnt("acl/new").metadata().unwrap().mode();
        assert_eq!(mode & 0o777, 0o644, "by the umask");
        assert!(
            xattr(&p.at("upper/acl"), ACL).is_ok(),
            "copied up all the same"
        );
    }),
    ("noxattrs=1", |p| {
        assert_eq!(xattr(&p.mnt("big"), MIMED), Err(Errno::OPNOTSUPP));
        let set = rustix::fs::setxattr(p.mnt("big"), MIMED, b"x", XattrFlags::empty());
        assert_eq!(set, Err(Errno::OPNOTSUPP));
        let list = rustix::fs::listxattr(p.mnt("big"), &mut [0_u8; 256]);
        assert_eq!(list, Err(Errno::OPNOTSUPP));
        fs::write(p.mnt("big"), "x").unwrap();
        assert_eq!(xattr(&p.at("upper/big"), MIMED).unwrap(), b"a/b");
    }),
    ("noxattrs=0", |p| {
        assert_eq!(xattr(&p.mnt("big"), MIMED).unwrap(), b"a/b");
    }),
    ("xino=off", numbers_are_constant),
    ("xino=auto", numbers_are_constant),
    ("xino=on", numbers_are_constant),
    ("ino32_t", |p| {
        numbers_are_constant(p);
        let ino = p.mnt("file").metadata().unwrap().ino();
        assert!(u32::try_from(ino).is_ok(), "{ino}");
    }),
    ("timeout=0", |p| {
        assert_eq!(p.mnt("dir/inner").metadata().unwrap().mode() & 0o777, 0o644);
        fs::set_permissions(p.at("low/dir/inner"), PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(p.mnt("dir/inner").metadata().unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(p.at("low/dir/inner"), PermissionsExt::from_mode(0o644)).unwrap();
    }),
    (
        "timeout=1000000000.0,threaded=1,fast_ino=1,fast_ino_check=0,writeback=0,plugins=",
        |p| {
            fs::write(p.mnt("new"), "written").unwrap();
            assert_eq!(
                fs::read(p.at("upper/new")).unwrap(),
                b"written",
                "not held back"
            );
        },
    ),
    ("fsync=0", |p| fsync_without_mark(p)),
    ("sync=0", |p| fsync_without_mark(p)),
    ("fsync=1,sync=1", |p| fsync_without_mark(p)),
    ("volatile", |p| {
        fs::File::create(p.mnt("new")).unwrap().sync_all().unwrap();
        assert!(p.at("work/work/incompat/volatile").exists());
    }),
    ("redirect_dir=off", |p| cannot_rename(p)),
    ("redirect_dir=nofollow", |p| cannot_rename(p)),
    ("redirect_dir=on", |p| {
        fs::rename(p.mnt("dir"), p.mnt("moved")).unwrap();
        assert_eq!(
            xattr(&p.at("upper/moved"), "trusted.overlay.redirect").unwrap(),
            b"dir"
        );
        assert_eq!(fs::read(p.mnt("moved/inner")).unwrap(), b"inner");
    }),
    ("metacopy=on", |p| {
        fs::set_permissions(p.mnt("big"), PermissionsExt::from_mode(0o600)).unwrap();
        assert!(xattr(&p.at("upper/big"), "trusted.overlay.metacopy").is_ok());
        assert_eq!(fs::read(p.mnt("big")).unwrap(), vec![1; 200_000]);
    }),
    ("metacopy=off", |p| {
        fs::set_permissions(p.mnt("big"), PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(fs::read(p.at("upper/big")).unwrap(), vec![1; 200_000]);
    }),
    ("index=on", |p| {
        fs::write(p.mnt("one"), "changed").unwrap();
        assert_eq!(fs::read(p.mnt("two")).unwrap(), b"changed");
    }),
    ("userxattr", |p| {
        fs::rename(p.mnt("dir"), p.mnt("moved")).unwrap();
        assert_eq!(
            xattr(&p.at("upper/moved"), "user.overlay.redirect").unwrap(),
            b"dir"
        );
    }),
    (
        r#"context="system_u:object_r:container_file_t:s0:c1,c2",nosuid"#,
        |p| {
            assert!(p.line().contains("nosuid"), "{}", p.line());
        },
    ),
    ("fsname=my name,subtype=other", |p| {
        assert!(
            p.line().contains(r" - fuse.ovl my\040name "),
            "{}",
            p.line()
        );
    }),
    ("allow_other,default_permissions", |p| {
        assert!(p.line().contains("allow_other"), "{}", p.line());
    }),
    ("nosuid,nodev,noexec,noatime", |p| {
        assert!(
            p.line().contains(" rw,nosuid,nodev,noexec,noatime "),
            "{}",
            p.line()
        );
    }),
    ("suid,dev,exec,atime", |p| {
        assert!(p.line().contains(" rw,relatime "), "{}", p.line());
    }),
    (
        "diratime,nodiratime,kernel_cache,max_write=65536,splice_read,splice_write,splice_move,lazytime,rw,noauto,x-note=1",
        |p| assert!(p.line().contains(" rw,nodev,noatime "), "{}", p.line()),
    ),
    ("private,rprivate,slave,shared", |_| ()),
    ("ro", |p| {
        fs::write(p.mnt("new"), "").expect_err("read-only");
        assert!(p.line().contains(" ro,"), "{}", p.line());
    }),
];

fn kept_in(p: &Place, name: &str) {
    chown(p.mnt("file"), Some(3), Some(4)).unwrap();
    fs::set_permissions(p.mnt("file"), PermissionsExt::from_mode(0o4750)).unwrap();
    assert_eq!(p.owner("mnt/file"), (3, 4));
    assert_eq!(xattr(&p.at("upper/file"), name).unwrap(), b"3:4:4750:file");
    assert_eq!(
        p.at("upper/file").metadata().unwrap().mode() & 0o7777,
        0o755
    );
    assert_eq!(
        xattr(&p.mnt("file"), name),
        Err(Errno::NODATA),
        "nobody's to see"
    );
}

fn numbers_are_constant(p: &Place) {
    let number = || p.mnt("dir/inner").metadata().unwrap().ino();
    let before = number();
    fs::write(p.mnt("dir/inner"), "copied up").unwrap();
    assert_eq!(number(), before);
}

fn fsync_without_mark(p: &Place) {
    fs::File::create(p.mnt("new")).unwrap().sync_all().unwrap();
    assert!(!p.at("work/work/incompat").exists());
}

fn cannot_rename(p: &Place) {
    let error = fs::rename(p.mnt("dir"), p.mnt("moved")).expect_err("merged");
    assert_eq!(error.raw_os_error(), Some(libc::EXDEV));
}

#[test]
fn every_option_means_what_it_says() {
    let place = Place::new();
    for (options, check) in TABLE {
        println!("-o {options}");
        place.renew();
        assert_eq!(place.mount(options), "", "{options}");
        check(&place);
        place.unmount();
    }
}

#[test]
fn unknown_words_are_told_and_left_out() {
    let place = Place::new();
    let said = place.mount("nonsense,what=ever,allow_root");
    assert_eq!(
        said,
        "unknown argument ignored: nonsense\nunknown argument ignored: what=ever\n\
         allow_root is not supported, allow_other is\n"
    );
    place.unmount();
    let output = place.call(&["--new-flag", "-o", "lowerdir=low", "mnt"]);
    assert!(output.status.success());
    assert_eq!(output.stderr, b"unknown argument ignored: --new-flag\n");
    place.unmount();
}

#[test]
fn lowers_of_many_kinds_and_five_hundred_of_them() {
    let place = Place::new();
    place.sandbox.mkdir("real");
    place.sandbox.mkdir("l");
    place.sandbox.mkdir("a:b,c");
    place.sandbox.write("a:b,c/colon", "");
    place.sandbox.write("real/linked", "");
    symlink("../real", place.at("l/ABC")).unwrap();
    let absolute = place.at("low");
    let options = format!(r"lowerdir=l/ABC:a\:b\,c:{},", absolute.display());
    let output = place.call(&[&format!("-o{options}"), "source", "mnt"]);
    assert!(output.status.success(), "{output:?}");
    for name in ["linked", "colon", "dir/inner"] {
        assert!(place.mnt(name).exists(), "{name}");
    }
    let line = place.line();
    assert!(
        line.contains(" ro,") && line.contains(" fuse.ovl source "),
        "{line}"
    );
    place.unmount();

    let mut lowers = Vec::new();
    for number in 0..500 {
        let name = format!("n/{number}");
        place.sandbox.mkdir(&name);
        place.sandbox.write(&format!("{name}/in-{number}"), "");
        place
            .sandbox
            .write(&format!("{name}/same"), number.to_string());
        lowers.push(name);
    }
    let options = format!("lowerdir={},upperdir=upper,workdir=work", lowers.join(":"));
    let output = place.call(&["-o", &options, "mnt"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_dir(place.at("mnt")).unwrap().count(), 501);
    assert_eq!(fs::read(place.mnt("same")).unwrap(), b"0");
    place.unmount();
}

#[test]
fn a_work_directory_is_emptied() {
    let place = Place::new();
    fs::create_dir_all(place.at("work/work/#5/deep")).unwrap();
    place.mount("");
    assert!(!place.at("work/work/#5").exists());
    place.unmount();
}

/// The environment asks for whiteouts that are plain files, and they are understood in any case.
#[test]
fn whiteouts_as_plain_files() {
    let place = Place::new();
    let options = "lowerdir=top:low,upperdir=upper,workdir=work";
    let mut program = place.program();
    let with = program.env("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT", "1");
    let output = with.args(["-o", options, "mnt"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::remove_file(place.mnt("file")).unwrap();
    fs::remove_dir_all(place.mnt("dir")).unwrap();
    fs::rename(place.mnt("big"), place.mnt("small")).unwrap();
    fs::remove_dir_all(place.mnt("acl")).unwrap();
    fs::create_dir(place.mnt("acl")).unwrap();
    fs::write(place.mnt("one"), "again").unwrap();
    fs::remove_file(place.mnt("one")).unwrap();
    fs::write(place.mnt("one"), "and again").unwrap();
    let denied = fs::write(place.mnt(".wh.two"), "").expect_err("it would hide a file");
    assert_eq!(denied.raw_os_error(), Some(libc::EPERM));
    let names = |dir: &str| {
        let entries = fs::read_dir(place.at(dir)).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("mnt"), ["acl", "one", "small", "two"]);
    place.unmount();
    let marks = [".wh.acl", ".wh.big", ".wh.dir", ".wh.file", ".wh.one"];
    assert_eq!(
        names("upper"),
        [&marks[..], &["acl", "one", "small"]].concat()
    );
    for mark in marks {
        let meta = place.at("upper").join(mark).metadata().unwrap();
        assert!(meta.is_file() && meta.len() == 0, "{mark}");
    }
    // Without the word, the same is read.
    place.mount("");
    assert_eq!(names("mnt"), ["acl", "one", "small", "two"]);
    assert_eq!(fs::read_dir(place.mnt("acl")).unwrap().count(), 0);
    assert_eq!(fs::read(place.mnt("one")).unwrap(), b"and again");
    // A directory moved to a hidden name still shows what it showed.
    fs::create_dir(place.mnt("dir")).unwrap();
    fs::write(place.mnt("dir/mine"), "").unwrap();
    assert_eq!(names("mnt/dir"), ["mine"]);
    fs::rename(place.mnt("dir"), place.mnt("file")).unwrap();
    place.unmount();
    place.mount("");
    assert_eq!(names("mnt/file"), ["mine"]);
    assert!(!place.mnt("dir").exists());
    place.unmount();
}

#[test]
fn failures_say_why_and_leave_nothing() {
    let place = Place::new();
    place.sandbox.write("plain", "");
    let good = "lowerdir=low,upperdir=upper,workdir=work";
    for (words, part) in [
        (&["-o", good][..], "no mount point"),
        (&["-o", good, "missing"], "missing does not exist"),
        (&["-o", good, "plain"], "plain is not a directory"),
        (&["-o", "upperdir=upper,workdir=work", "mnt"], "lowerdir"),
        (&["-o", "lowerdir=low,upperdir=upper", "mnt"], "workdir"),
        (&["-o", "lowerdir=none", "mnt"], "none does not exist"),
        (
            &["-o", "lowerdir=low,upperdir=none,workdir=work", "mnt"],
            "none does not exist",
        ),
        (&["-o", "lowerdir=low,plugins=a.so", "mnt"], "plugins"),
        (&["-o", "lowerdir=low,uidmapping=0:1", "mnt"], "uidmapping"),
        (
            &["-o", "lowerdir=low,gidmapping=a:b:c", "mnt"],
            "gidmapping",
        ),
        (&["mnt", "-o"], "-o wants a value"),
    ] {
        let output = place.call(words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        assert!(
            said.starts_with("fuse-overlayfs: ") && said.contains(part),
            "{words:?}: {said}"
        );
        assert_eq!(said.matches('\n').count(), 1, "{said}");
        assert_eq!(mounts_below(&place.at("")).len(), 0, "{words:?}");
    }
    for word in ["--help", "-V"] {
        let output = place.call(&[word]);
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{word}"
        );
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .contains("fuse-overlayfs")
        );
    }
}

/// Ends a process of the test whatever happens.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn in_the_foreground_it_counts_raises_its_limit_and_ends_with_the_mount() {
    let place = Place::new();
    let script = "ulimit -S -n 128; exec ./fuse-overlayfs -f -o lowerdir=low src mnt";
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script])
        .current_dir(place.at(""))
        .env("OVL_RUN", place.at("run"));
    let mut server = Ended(
        shell
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let deadline = Instant::now() + Duration::from_secs(20);
    while mounts_below(&place.at("mnt")).is_empty() || !place.mnt("one").exists() {
        assert!(Instant::now() < deadline, "no mount");
        std::thread::sleep(Duration::from_millis(5));
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.0.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "soft and hard: {line}");
    let pid = rustix::process::Pid::from_raw(server.0.id().cast_signed()).unwrap();
    let mut stderr = server.0.stderr.take().unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    let mut said = String::new();
    while !said.contains("# PANICS: 0\n") {
        let mut bytes = [0; 256];
        let length = stderr.read(&mut bytes).unwrap();
        assert!(length > 0, "it ended: {said}");
        said.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
    }
    for word in ["# NODES: ", "# REQUESTS: ", "# ERRORS: "] {
        assert!(said.contains(word), "{said}");
    }
    command("umount", [place.at("mnt")]);
    assert!(server.0.wait().unwrap().success());
}

/// mount(8) finds `/sbin/mount.fuse.ovl` for type `fuse.ovl`, also from /etc/fstab.
#[test]
fn mount_and_fstab_know_the_type() {
    let station = Station::new(Driver::Ovl(""));
    let at = |name: &str| station.sandbox.path(name).display().to_string();
    for dir in ["sbin", "low", "upper", "work", "mnt"] {
        station.sandbox.mkdir(dir);
    }
    station.sandbox.write("low/file", "below");
    symlink(
        env!("CARGO_BIN_EXE_ovl"),
        station.sandbox.path("sbin/mount.fuse.ovl"),
    )
    .unwrap();
    let sbin = fs::canonicalize("/sbin").unwrap();
    let with = format!("lowerdir={}:{}", at("sbin"), sbin.display());
    let words = ["-t", "overlay", "none", "-o", &with, sbin.to_str().unwrap()];
    station.run("mount", words);

    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("low"),
        at("upper"),
        at("work")
    );
    station.run(
        "mount",
        ["-t", "fuse.ovl", "-o", &options, "my-source", &at("mnt")],
    );
    let seen = station.see(at("mnt"));
    assert_eq!(fs::read(seen.join("file")).unwrap(), b"below");
    fs::write(seen.join("new"), "").unwrap();
    let lines = station.live_mounts();
    assert!(
        lines.len() == 1 && lines[0].contains("my-source"),
        "{lines:?}"
    );
    station.run("umount", [at("mnt")]);
    assert!(station.sandbox.path("upper/new").exists());

    let fstab = format!(
        "from-fstab {} fuse.ovl ro,noauto,x-note,{options} 0 0\n",
        at("mnt")
    );
    let fstab = station.sandbox.write("fstab", fstab);
    station.run(
        "mount",
        ["--fstab".as_ref(), fstab.as_os_str(), at("mnt").as_ref()],
    );
    let lines = station.live_mounts();
    assert!(
        lines[0].contains("from-fstab") && lines[0].contains(" ro,"),
        "{lines:?}"
    );
    assert!(station.see(at("mnt")).join("new").exists());
    // What is mounted already is left alone, without a word.
    let all = fs::read_to_string(&fstab).unwrap().replace("noauto,", "");
    fs::write(&fstab, all).unwrap();
    let output = station.output(
        "mount",
        ["--fstab".as_ref(), fstab.as_os_str(), "-a".as_ref()],
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "{said}");
    station.run("umount", [at("mnt")]);

    // A failure is mount's own exit code for it, with the reason.
    let output = station.output(
        "mount",
        ["-t", "fuse.ovl", "-o", "lowerdir=/none", "x", &at("mnt")],
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(32), "{said}");
    assert!(
        said.starts_with("mount.fuse.ovl: ") && said.contains("/none"),
        "{said}"
    );
}
