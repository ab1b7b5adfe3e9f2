//! What programs see through the real kernel must be right whichever way the transport is set: with and without
//! write-back, with OPEN answered or refused, through /dev/fuse and io_uring, with files passed through.

mod mode_support;
mod mount_support;
mod setting_support;
mod uring_support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use mount_support::Site;
use ovl::fuse::Io;
use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;
use setting_support::on_each_setting;

fn errno<T>(result: Result<T, Errno>) -> Option<Errno> {
    result.err()
}

#[test]
fn times_of_all_ages() {
    on_each_setting(|site, mnt| {
        fs::write(mnt.join("f"), "x").expect("write");
        for (secs, nanos) in [
            (0, 0),
            (0, 999_999_999),
            (1_700_000_000, 123_456_789),
            (-1, 0),
            (-1, 1),
            (-1, 750_000_000),
            (-2, 250_000_000),
            (-86_400 * 365 * 60, 5),
        ] {
            let time = Timespec {
                tv_sec: secs,
                tv_nsec: nanos,
            };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            rustix::fs::utimensat(CWD, mnt.join("f"), &times, AtFlags::empty()).expect("utimensat");
            for path in [mnt.join("f"), site.path("upper/f")] {
                let meta = fs::metadata(&path).expect("stat");
                assert_eq!(
                    (meta.mtime(), meta.mtime_nsec()),
                    (secs, nanos),
                    "{}",
                    path.display()
                );
                assert_eq!(
                    (meta.atime(), meta.atime_nsec()),
                    (secs, nanos),
                    "{}",
                    path.display()
                );
            }
        }
        // What ext4 cannot hold is its affair; the daemon must live.
        for secs in [
            i64::MIN,
            i64::MIN + 1,
            i64::MAX,
            i64::MAX - 1,
            1 << 40,
            -(1 << 40),
        ] {
            for nanos in [0, 999_999_999] {
                let time = Timespec {
                    tv_sec: secs,
                    tv_nsec: nanos,
                };
                let times = Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                let _ = rustix::fs::utimensat(CWD, mnt.join("f"), &times, AtFlags::empty());
                fs::metadata(mnt.join("f")).expect("stat");
                fs::metadata(mnt.join("hello")).expect("stat");
            }
        }
    });
}

/// The kernel passes SEEK_DATA on without writing its dirty pages out first: data just written looked like a hole, and
/// a copy of such a file lost it.
#[test]
fn data_just_written_is_no_hole() {
    on_each_setting(|_, mnt| {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mnt.join("sparse"))
            .expect("create");
        let at = |pos| rustix::fs::seek(&file, pos);
        file.set_len(8 << 20).expect("truncate");
        file.write_all_at(&[7; 4096], 4 << 20).expect("write");
        assert_eq!(at(rustix::fs::SeekFrom::Data(0)), Ok(4 << 20));
        assert_eq!(
            at(rustix::fs::SeekFrom::Hole(4 << 20)),
            Ok((4 << 20) + 4096)
        );
        file.write_all_at(&[7; 4096], 0).expect("write");
        assert_eq!(at(rustix::fs::SeekFrom::Data(0)), Ok(0));
        file.write_all_at(&[7; 10], 9 << 20)
            .expect("write beyond the end");
        assert_eq!(at(rustix::fs::SeekFrom::Data(5 << 20)), Ok(9 << 20));
        assert_eq!(
            errno(at(rustix::fs::SeekFrom::Data(10 << 20))),
            Some(Errno::NXIO)
        );
        drop(file);
        let copied = Command::new("cp")
            .args(["--sparse=always", "sparse", "copy"])
            .current_dir(mnt)
            .status()
            .expect("cp");
        assert!(copied.success());
        assert!(
            fs::read(mnt.join("copy")).expect("read")
                == fs::read(mnt.join("sparse")).expect("read")
        );
    });
}

#[test]
fn set_id_bits_go_when_an_ordinary_user_writes() {
    on_each_setting(|site, mnt| {
        let as_user = |script: &str| {
            let status = Command::new("sh")
                .args(["-c", script])
                .current_dir(mnt)
                .uid(1234)
                .gid(1234)
                .status()
                .expect("sh");
            assert!(status.success(), "{script}");
        };
        let mode = |name: &str| {
            let shown = fs::metadata(mnt.join(name)).expect("stat").mode() & 0o7777;
            let kept = fs::metadata(site.path("upper").join(name))
                .expect("stat")
                .mode()
                & 0o7777;
            assert_eq!(shown, kept, "{name}: shown and kept modes differ");
            shown
        };
        let make = |name: &str| {
            fs::write(mnt.join(name), "x").expect("write");
            fs::set_permissions(mnt.join(name), fs::Permissions::from_mode(0o6777)).expect("chmod");
        };
        for (name, script) in [
            ("append", "echo y >> append"),
            ("truncate", "true > truncate"),
            ("dd", "echo z | dd of=dd conv=notrunc 2>/dev/null"),
        ] {
            make(name);
            as_user(script);
            assert_eq!(mode(name), 0o777, "{name}");
        }
        make("chown");
        std::os::unix::fs::chown(mnt.join("chown"), Some(5), Some(6)).expect("chown");
        assert_eq!(mode("chown"), 0o777);
        // Root keeps them, as on any file system.
        make("root");
        let mut file = OpenOptions::new()
            .append(true)
            .open(mnt.join("root"))
            .expect("open");
        file.write_all(b"more").expect("write");
        file.sync_all().expect("sync");
        assert_eq!(mode("root"), 0o6777);
    });
}

#[test]
fn capabilities_go_when_anybody_writes() {
    on_each_setting(|_, mnt| {
        // struct vfs_cap_data, revision 2: cap_net_raw permitted.
        let capability = [
            1_u8, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        fs::write(mnt.join("f"), "x").expect("write");
        let name = "security.capability";
        rustix::fs::setxattr(mnt.join("f"), name, &capability, XattrFlags::empty())
            .expect("setcap");
        let mut value = [0_u8; 64];
        assert_eq!(
            rustix::fs::getxattr(mnt.join("f"), name, &mut value[..]),
            Ok(capability.len())
        );
        let mut file = OpenOptions::new()
            .append(true)
            .open(mnt.join("f"))
            .expect("open");
        file.write_all(b"more").expect("write");
        drop(file);
        let gone = rustix::fs::getxattr(mnt.join("f"), name, &mut value[..]);
        assert_eq!(errno(gone), Some(Errno::NODATA));
    });
}

#[test]
fn xattr_sizes() {
    on_each_setting(|_, mnt| {
        let path = mnt.join("hello");
        let value = vec![b'v'; 2000];
        rustix::fs::setxattr(&path, "user.a", &value, XattrFlags::CREATE).expect("set");
        let again = rustix::fs::setxattr(&path, "user.a", b"", XattrFlags::CREATE);
        assert_eq!(errno(again), Some(Errno::EXIST));
        let none = rustix::fs::setxattr(&path, "user.b", b"", XattrFlags::REPLACE);
        assert_eq!(errno(none), Some(Errno::NODATA));
        let mut room = vec![0_u8; 4096];
        assert_eq!(rustix::fs::getxattr_query(&path, "user.a"), Ok(2000));
        let small = rustix::fs::getxattr(&path, "user.a", &mut room[..1999]);
        assert_eq!(errno(small), Some(Errno::RANGE));
        assert_eq!(
            rustix::fs::getxattr(&path, "user.a", &mut room[..]),
            Ok(2000)
        );
        assert!(room[..2000] == value[..]);
        assert_eq!(rustix::fs::listxattr_query(&path), Ok(7));
        assert_eq!(
            errno(rustix::fs::listxattr(&path, &mut room[..6])),
            Some(Errno::RANGE)
        );
        assert_eq!(rustix::fs::listxattr(&path, &mut room[..]), Ok(7));
        assert_eq!(&room[..7], b"user.a\0");
        let large = rustix::fs::setxattr(&path, "user.c", &[0; 65_537], XattrFlags::empty());
        assert_eq!(errno(large), Some(Errno::TOOBIG));
        rustix::fs::removexattr(&path, "user.a").expect("remove");
        assert_eq!(
            errno(rustix::fs::removexattr(&path, "user.a")),
            Some(Errno::NODATA)
        );
    });
}

#[test]
fn large_directories_list_each_name_once() {
    on_each_setting(|_, mnt| {
        const COUNT: usize = 3000;
        fs::create_dir(mnt.join("big")).expect("mkdir");
        for i in 0..COUNT {
            File::create(mnt.join("big").join(format!("a-rather-long-name-{i:05}")))
                .expect("create");
        }
        for pass in ["first", "cached"] {
            let mut names = Vec::new();
            for entry in fs::read_dir(mnt.join("big")).expect("list") {
                let entry = entry.expect("entry");
                let listed = std::os::unix::fs::DirEntryExt::ino(&entry);
                assert_eq!(listed, entry.metadata().expect("stat").ino(), "{pass}");
                names.push(entry.file_name());
            }
            names.sort();
            names.dedup();
            assert_eq!(names.len(), COUNT, "{pass}");
        }
        fs::remove_dir_all(mnt.join("big")).expect("remove while listing");
        assert!(!mnt.join("big").exists());
    });
}

#[test]
fn absent_names_are_found_once_made() {
    on_each_setting(|_, mnt| {
        let path = |name: &str| mnt.join(name);
        for _ in 0..2 {
            for name in ["file", "dir", "link", "hard", "moved", "node"] {
                assert!(!path(name).exists(), "{name}");
            }
            File::create(path("file")).expect("create");
            fs::create_dir(path("dir")).expect("mkdir");
            std::os::unix::fs::symlink("file", path("link")).expect("symlink");
            fs::hard_link(path("file"), path("hard")).expect("link");
            assert_eq!(fs::metadata(path("file")).expect("stat").nlink(), 2);
            fs::rename(path("file"), path("moved")).expect("rename");
            let device = rustix::fs::makedev(259, 65_537);
            rustix::fs::mknodat(
                CWD,
                path("node"),
                rustix::fs::FileType::CharacterDevice,
                Mode::RUSR,
                device,
            )
            .expect("mknod");
            assert_eq!(fs::metadata(path("node")).expect("stat").rdev(), device);
            assert!(!path("file").exists() && !path("link").exists());
            assert!(path("dir").is_dir() && path("hard").is_file() && path("moved").is_file());
            fs::remove_dir(path("dir")).expect("rmdir");
            for name in ["link", "hard", "moved", "node"] {
                fs::remove_file(path(name)).expect("unlink");
            }
        }
    });
}

#[test]
fn renames_with_flags() {
    on_each_setting(|_, mnt| {
        fs::write(mnt.join("new"), "new").expect("write");
        let rename = |from: &str, to: &str, flags| {
            rustix::fs::renameat_with(CWD, mnt.join(from), CWD, mnt.join(to), flags)
        };
        assert_eq!(
            errno(rename("new", "hello", RenameFlags::NOREPLACE)),
            Some(Errno::EXIST)
        );
        rename("new", "hello", RenameFlags::EXCHANGE).expect("exchange");
        assert_eq!(fs::read(mnt.join("hello")).expect("read"), b"new");
        assert_eq!(fs::read(mnt.join("new")).expect("read"), b"from below");
        let unknown = rename("new", "hello", RenameFlags::from_bits_retain(1 << 10));
        assert_eq!(errno(unknown), Some(Errno::INVAL));
        let both = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        assert_eq!(errno(rename("new", "hello", both)), Some(Errno::INVAL));
        rename("new", "sub/moved", RenameFlags::NOREPLACE).expect("no replace");
        rename("sub", "sub2", RenameFlags::empty()).expect("lower directory");
        assert_eq!(fs::read(mnt.join("sub2/inner")).expect("read"), b"deep");
    });
}

#[test]
fn locks_work_between_openers() {
    on_each_setting(|_, mnt| {
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(mnt.join("hello"))
                .expect("open")
        };
        let (one, two) = (open(), open());
        rustix::fs::flock(&one, FlockOperation::LockExclusive).expect("lock");
        let busy = rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(errno(busy), Some(Errno::WOULDBLOCK));
        drop(one);
        rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive).expect("free again");
        rustix::fs::fcntl_lock(&two, FlockOperation::NonBlockingLockExclusive)
            .expect("record lock");
        let contended = Command::new("python3")
            .args(["-c", "import fcntl,sys; f=open(sys.argv[1],'r+'); fcntl.lockf(f, fcntl.LOCK_EX|fcntl.LOCK_NB)"])
            .arg(mnt.join("hello"))
            .output()
            .expect("python3");
        let said = String::from_utf8_lossy(&contended.stderr);
        assert!(said.contains("BlockingIOError"), "{said}");
    });
}

#[test]
fn open_flags_and_sizes() {
    on_each_setting(|site, mnt| {
        let path = mnt.join("hello");
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .expect("O_TRUNC");
        assert_eq!(fs::metadata(&path).expect("stat").len(), 0);
        let exclusive = OpenOptions::new().write(true).create_new(true).open(&path);
        assert_eq!(
            exclusive.expect_err("there").raw_os_error(),
            Some(libc::EEXIST)
        );
        let mut one = OpenOptions::new().append(true).open(&path).expect("open");
        let mut two = OpenOptions::new().append(true).open(&path).expect("open");
        for _ in 0..100 {
            one.write_all(b"one").expect("append");
            two.write_all(b"two").expect("append");
        }
        let text = fs::read(&path).expect("read");
        assert!(text == b"onetwo".repeat(100), "{} bytes", text.len());
        let meta = fs::metadata(&path).expect("stat");
        assert_eq!(meta.len(), 600);
        drop((one, two));
        let meta = fs::metadata(&path).expect("stat");
        assert!(meta.blocks() > 0, "a closed file with data has blocks");
        let kept = fs::metadata(site.path("upper/hello")).expect("stat");
        assert_eq!((kept.len(), kept.blocks()), (600, meta.blocks()));
        assert_eq!(
            (kept.mtime(), kept.mtime_nsec()),
            (meta.mtime(), meta.mtime_nsec())
        );
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path);
        let mut start = [0; 3];
        let direct = direct.expect("O_DIRECT").read(&mut start);
        if site.record().expect("a record").io == Io::Passthrough {
            // Whether it must be aligned is up to the file system of the upper.
            let mut own = [0; 3];
            let same = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECT)
                .open(site.path("upper/hello"))
                .expect("O_DIRECT")
                .read(&mut own);
            let said = |read: std::io::Result<usize>| read.map_err(|e| e.raw_os_error());
            assert_eq!((said(direct), start), (said(same), own));
        } else {
            assert_eq!((direct.expect("read"), &start), (3, b"one"));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("open");
        let far = i64::MAX as u64;
        assert_eq!(file.read_at(&mut start, far - 3).expect("read far out"), 0);
        // Under write-back the error comes when the pages are written.
        let failed = file.write_at(b"x", far - 1).and_then(|_| file.sync_all());
        let error = failed.expect_err("too far out");
        assert!(
            matches!(
                error.raw_os_error(),
                Some(libc::EFBIG | libc::EINVAL | libc::ENOSPC)
            ),
            "{error}"
        );
        let long = "n".repeat(256);
        let error = fs::metadata(mnt.join(long)).expect_err("a name too long");
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    });
}

#[test]
fn an_unlinked_file_lives_while_open() {
    on_each_setting(|_, mnt| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(mnt.join("hello"))
            .expect("open");
        fs::remove_file(mnt.join("hello")).expect("unlink");
        assert!(!mnt.join("hello").exists());
        file.write_all_at(b"FROM", 0).expect("write");
        file.sync_all().expect("sync");
        let mut text = [0; 10];
        file.read_exact_at(&mut text, 0).expect("read");
        assert_eq!(&text, b"FROM below");
        file.set_len(4).expect("truncate");
        let meta = file.metadata().expect("fstat");
        assert_eq!((meta.len(), meta.nlink()), (4, 0));
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .expect("fchmod");
        assert_eq!(file.metadata().expect("fstat").mode() & 0o777, 0o600);
    });
}

#[test]
fn copies_inside_the_kernel() {
    on_each_setting(|_, mnt| {
        let from = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mnt.join("from"))
            .expect("create");
        from.write_all_at(&vec![b'a'; 300_000], 0).expect("write");
        let to = File::create_new(mnt.join("to")).expect("create");
        let (mut read, mut write) = (0, 0);
        loop {
            let n =
                rustix::fs::copy_file_range(&from, Some(&mut read), &to, Some(&mut write), 1 << 30)
                    .expect("copy");
            if n == 0 {
                break;
            }
        }
        assert!(fs::read(mnt.join("to")).expect("read") == vec![b'a'; 300_000]);
        let fill = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&from, fill, 0, 4096).expect("punch");
        let mut start = vec![1; 8192];
        from.read_exact_at(&mut start, 0).expect("read");
        assert!(start[..4096].iter().all(|b| *b == 0) && start[4096..].iter().all(|b| *b == b'a'));
    });
}

#[test]
fn the_file_system_says_what_it_is() {
    on_each_setting(|site, mnt| {
        let shown = rustix::fs::statfs(mnt).expect("statfs");
        let upper = rustix::fs::statfs(site.path("upper")).expect("statfs");
        assert_eq!(
            shown.f_type as u64, 0x6573_5546,
            "clients look for the FUSE magic"
        );
        assert_eq!(
            (shown.f_blocks, shown.f_files),
            (upper.f_blocks, upper.f_files)
        );
        assert_eq!(shown.f_namelen, 255);
    });
}

#[test]
fn a_mount_without_upper_is_read_only() {
    let site = Site::new();
    let mut task = site.task();
    task.upper = None;
    let output = site.try_mount(&task);
    assert!(
        output.status.success(),
        "{}",
        mount_support::complaint(&output)
    );
    assert!(site.record().expect("record").read_only);
    let mnt = site.path("mnt");
    assert_eq!(fs::read(mnt.join("sub/inner")).expect("read"), b"deep");
    for error in [
        fs::write(mnt.join("hello"), "x").expect_err("write"),
        fs::create_dir(mnt.join("d")).expect_err("mkdir"),
        fs::remove_file(mnt.join("hello")).expect_err("unlink"),
    ] {
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
    }
    let unnamed = rustix::fs::open(&mnt, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR);
    assert_eq!(errno(unnamed), Some(Errno::ROFS));
}

#[test]
fn shared_mappings_are_written_back() {
    let site = Site::new();
    site.mount();
    let script = "
import mmap, os, sys
path = sys.argv[1]
with open(path, 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:
    m[0:4] = b'FROM'
    assert open(path, 'rb').read() == b'FROM below'
    os.pwrite(f.fileno(), b'BELOW', 5)
    assert m[:] == b'FROM BELOW', m[:]
    m.flush()
";
    let path = site.path("mnt/hello");
    let done = Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .output()
        .expect("python3");
    assert!(done.status.success(), "{}", mount_support::complaint(&done));
    assert_eq!(
        fs::read(site.path("upper/hello")).expect("read"),
        b"FROM BELOW"
    );
    assert_eq!(
        fs::read(site.path("lower/hello")).expect("read"),
        b"from below"
    );
}
