//! Files that never had a name (O_TMPFILE), through real mounts, and what becomes of them when they get one.

mod mode_support;
mod mount_support;
mod setting_support;
mod uring_support;

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use setting_support::on_each_setting;

fn unnamed(dir: &Path, flags: OFlags, mode: u32) -> File {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | flags;
    let made = rustix::fs::open(dir, flags, Mode::from_raw_mode(mode));
    made.expect("O_TMPFILE").into()
}

fn link(file: &File, path: &Path) -> Result<(), Errno> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

fn names(dir: &Path) -> Vec<String> {
    let entry = |e: std::io::Result<fs::DirEntry>| e.expect("an entry").file_name();
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("a directory")
        .map(|e| entry(e).into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_without_a_name_can_be_used_and_named() {
    on_each_setting(|site, mnt| {
        let sub = mnt.join("sub");
        let before = names(&sub);
        let file = unnamed(&sub, OFlags::empty(), 0o640);
        let data: Vec<u8> = (0..300_000_u32).map(|n| (n / 7) as u8).collect();
        file.write_all_at(&data, 0).expect("write");
        file.sync_all().expect("fsync");
        let meta = file.metadata().expect("fstat");
        assert_eq!(
            (meta.nlink(), meta.mode(), meta.len()),
            (0, 0o100_640, 300_000)
        );
        assert_eq!(names(&sub), before);
        let mut read = vec![0; data.len()];
        file.read_exact_at(&mut read, 0).expect("read");
        assert!(read == data);

        link(&file, &sub.join("named")).expect("linkat");
        let named = fs::metadata(sub.join("named")).expect("stat");
        assert_eq!((named.nlink(), named.ino()), (1, meta.ino()));
        assert!(fs::read(sub.join("named")).expect("read") == data);
        assert!(fs::read(site.path("upper/sub/named")).expect("read") == data);
        file.write_all_at(b"changed", 0).expect("write");
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .expect("fchmod");
        assert_eq!(&fs::read(sub.join("named")).expect("read")[..7], b"changed");
        fs::hard_link(sub.join("named"), mnt.join("second")).expect("link");
        fs::remove_file(sub.join("named")).expect("unlink");
        let second = fs::metadata(mnt.join("second")).expect("stat");
        let is = (second.nlink(), second.ino(), second.mode());
        assert_eq!(is, (1, meta.ino(), 0o100_600));
        assert_eq!(names(&sub), before);
        drop(file);
        assert_eq!(
            &fs::read(mnt.join("second")).expect("read")[..7],
            b"changed"
        );

        let never = unnamed(mnt, OFlags::EXCL, 0o600);
        assert_eq!(link(&never, &mnt.join("never")), Err(Errno::NOENT));
        let taken = unnamed(mnt, OFlags::empty(), 0o600);
        assert_eq!(link(&taken, &mnt.join("hello")), Err(Errno::EXIST));
        // Over a whiteout.
        fs::remove_file(mnt.join("hello")).expect("unlink");
        taken.write_all_at(b"mine", 0).expect("write");
        link(&taken, &mnt.join("hello")).expect("linkat");
        assert_eq!(fs::read(mnt.join("hello")).expect("read"), b"mine");
    });
}

/// Many at once, each its own, and none left behind.
#[test]
fn they_are_many_and_leave_nothing() {
    on_each_setting(|site, mnt| {
        for round in 0..3_u8 {
            let files: Vec<File> = (0..100)
                .map(|_| unnamed(mnt, OFlags::empty(), 0o600))
                .collect();
            for (n, file) in files.iter().enumerate() {
                file.write_all_at(&[round, n as u8], 0).expect("write");
            }
            let mut numbers = std::collections::BTreeSet::new();
            for (n, file) in files.iter().enumerate() {
                let mut read = [0; 2];
                file.read_exact_at(&mut read, 0).expect("read");
                assert_eq!(read, [round, n as u8]);
                numbers.insert(file.metadata().expect("fstat").ino());
            }
            assert_eq!(numbers.len(), files.len());
        }
        let work = site.path(".upper.ovl-work/work");
        assert_eq!(names(&work), Vec::<String>::new());
        assert_eq!(names(&site.path("upper")), Vec::<String>::new());
    });
}

/// Owner, group, mode and ACL are those of any new file there.
#[test]
fn what_it_gets_from_its_directory_and_its_maker() {
    on_each_setting(|_, mnt| {
        let dir = mnt.join("shared");
        fs::create_dir(&dir).expect("mkdir");
        std::os::unix::fs::chown(&dir, None, Some(1234)).expect("chown");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o2777)).expect("chmod");
        let like = File::create(dir.join("like")).expect("create");
        let mut one = unnamed(&dir, OFlags::empty(), 0o666);
        let facts = |file: &File| {
            let meta = file.metadata().expect("fstat");
            let mut acl = [0; 200];
            let acl = rustix::fs::fgetxattr(file.as_fd(), c"system.posix_acl_access", &mut acl)
                .map(|len| acl[..len].to_vec());
            (meta.uid(), meta.gid(), meta.mode(), acl)
        };
        assert_eq!(facts(&one), facts(&like));
        assert_eq!(one.metadata().expect("fstat").gid(), 1234);
        let set = Command::new("setfacl")
            .args(["-d", "-m", "u:77:rwx,g::r,o::-"])
            .arg(&dir)
            .status();
        assert!(set.expect("setfacl").success());
        let like = File::create(dir.join("like it")).expect("create");
        one = unnamed(&dir, OFlags::empty(), 0o666);
        assert_eq!(facts(&one), facts(&like));
        assert!(facts(&one).3.is_ok(), "an ACL was inherited");

        let script = "import os,sys; f = os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR, 0o600); s = os.fstat(f); \
                      os.write(f, b'theirs'); print(s.st_uid, oct(s.st_mode)); os.link(f'/proc/self/fd/{f}', sys.argv[1] + '/theirs', src_dir_fd=os.open('/', 0))";
        let mut python = Command::new("setpriv");
        python.args([
            "--reuid",
            "4321",
            "--regid",
            "4321",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            script,
        ]);
        let output = python.arg(&dir).output().expect("setpriv");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.stdout, b"4321 0o100600\n", "{said}");
        let theirs = fs::metadata(dir.join("theirs"));
        assert_eq!(theirs.expect("it was named").uid(), 4321, "{said}");
    });
}
