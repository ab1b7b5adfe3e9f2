//! The disk under a mount fails, one system call at a time or altogether, becomes read-only, or has no room for another name: a
//! request gets its errno, a change is done or not done, and what was synced is there afterwards.

mod mount_support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mount_support::{Site, complaint};
use ovl::mount::{How, unmount};
use rustix::fs::XattrFlags;
use rustix::mount::UnmountFlags;

/// Has each call of `syscall` of process `pid` fail the `nth` time a thread makes it, until [`Injection::end`].
struct Injection {
    strace: Child,
    trace: PathBuf,
}

impl Injection {
    fn start(site: &Site, pid: u32, syscall: &str, error: &str, when: &str) -> Self {
        let trace = site.path("trace");
        let _ = fs::remove_file(&trace);
        let mut strace = Command::new("strace")
            .args(["-f", "-e", &format!("trace={syscall}"), "-e"])
            .arg(format!("inject={syscall}:error={error}:when={when}"))
            .arg("-o")
            .arg(&trace)
            .args(["-p", &pid.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("this test needs the program strace: {e}"));
        let mut line = String::new();
        let mut said = BufReader::new(strace.stderr.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "{line}");
        // It would end by a closed pipe.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { strace, trace }
    }

    /// Lets the process go; how many calls failed.
    fn end(mut self) -> usize {
        mount_support::kill(self.strace.id(), rustix::process::Signal::INT);
        self.strace.wait().unwrap();
        let trace = fs::read_to_string(&self.trace).unwrap();
        trace.matches("(INJECTED)").count()
    }
}

/// A change of a case's own directory, and what may be seen of it: before, and after.
struct Change {
    what: &'static str,
    act: fn(&Path) -> std::io::Result<()>,
    look: fn(&Path) -> String,
    states: [&'static str; 2],
}

fn content(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| format!("({:?})", e.kind()))
}

fn list(path: &Path) -> String {
    let Ok(dir) = fs::read_dir(path) else {
        return "(no directory)".into();
    };
    let mut names: Vec<String> = dir
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names.join(" ")
}

const CHANGES: &[Change] = &[
    Change {
        what: "write and fsync",
        act: |dir| {
            let file = fs::File::options().write(true).open(dir.join("file"))?;
            file.write_all_at(b"FROM", 0)?;
            file.sync_all()
        },
        look: |dir| content(&dir.join("file")),
        states: ["from below", "FROM below"],
    },
    Change {
        what: "chmod",
        act: |dir| fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o600)),
        look: |dir| {
            let mode = dir
                .join("file")
                .metadata()
                .map(|m| m.permissions().mode() & 0o7777);
            format!("{:o} {}", mode.unwrap_or(0), content(&dir.join("file")))
        },
        states: ["644 from below", "600 from below"],
    },
    Change {
        what: "setxattr",
        act: |dir| {
            rustix::fs::setxattr(dir.join("file"), "user.a", b"1", XattrFlags::empty())?;
            Ok(())
        },
        look: |dir| {
            let mut value = [0; 8];
            let has = rustix::fs::getxattr(dir.join("file"), "user.a", &mut value[..]).is_ok();
            format!("{has} {}", content(&dir.join("file")))
        },
        states: ["false from below", "true from below"],
    },
    Change {
        what: "unlink",
        act: |dir| fs::remove_file(dir.join("file")),
        look: list,
        states: ["again empty file sub", "again empty sub"],
    },
    Change {
        what: "rename a file",
        act: |dir| fs::rename(dir.join("file"), dir.join("moved")),
        look: |dir| list(dir) + " " + &content(&dir.join("moved")),
        states: [
            "again empty file sub (NotFound)",
            "again empty moved sub from below",
        ],
    },
    Change {
        what: "rename a directory",
        act: |dir| fs::rename(dir.join("sub"), dir.join("moved")),
        look: |dir| list(dir) + " " + &list(&dir.join("sub")) + &list(&dir.join("moved")),
        states: [
            "again empty file sub inner(no directory)",
            "again empty file moved (no directory)inner",
        ],
    },
    Change {
        what: "link",
        act: |dir| fs::hard_link(dir.join("again"), dir.join("linked")),
        look: list,
        states: ["again empty file sub", "again empty file linked sub"],
    },
    Change {
        what: "rmdir",
        act: |dir| fs::remove_dir(dir.join("empty")),
        look: list,
        states: ["again empty file sub", "again file sub"],
    },
    Change {
        what: "mkdir",
        act: |dir| fs::create_dir(dir.join("made")),
        look: list,
        states: ["again empty file sub", "again empty file made sub"],
    },
    Change {
        what: "symlink",
        act: |dir| std::os::unix::fs::symlink("target", dir.join("made")),
        look: list,
        states: ["again empty file sub", "again empty file made sub"],
    },
];

/// System calls by which the daemon changes and looks at trees.
const CALLS: &[&str] = &[
    "openat2",
    "openat",
    "statx",
    "renameat2",
    "renameat",
    "linkat",
    "unlinkat",
    "mkdirat",
    "mknodat",
    "symlinkat",
    "fchownat",
    "fchmodat",
    "utimensat",
    "setxattr",
    "fsync",
    "pwrite64",
    "copy_file_range",
    "getdents64",
    "getxattr",
    "lgetxattr",
    "listxattr",
];

#[test]
fn every_system_call_on_the_trees_fails_once() {
    let site = Site::new();
    // Each case has a directory of its own, never looked at before.
    let cases: Vec<(&Change, &str, &str, &str)> = CHANGES
        .iter()
        .flat_map(|change| CALLS.iter().map(move |call| (change, *call)))
        .flat_map(|(change, call)| {
            [("EIO", "1"), ("ENOSPC", "1+")].map(|(error, when)| (change, call, error, when))
        })
        .collect();
    let lower = site.path("lower");
    for n in 0..cases.len() {
        let dir = lower.join(format!("c{n}"));
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::create_dir(dir.join("empty")).unwrap();
        for name in ["file", "sub/inner"] {
            fs::write(dir.join(name), "from below").unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o644)).unwrap();
        }
        // A name in another directory, so that the link counts go up and down here alone.
        fs::write(dir.join("again"), "from below").unwrap();
    }
    let record = site.mount();
    let mnt = site.path("mnt");
    let (mut hit, mut refused) = (0, 0);
    for (n, (change, call, error, when)) in cases.iter().enumerate() {
        let dir = mnt.join(format!("c{n}"));
        let what = format!("{}: {call} fails with {error} ({when})", change.what);
        let injection = Injection::start(&site, record.daemon.pid, call, error, when);
        let done = (change.act)(&dir);
        let failed = injection.end();
        hit += usize::from(failed > 0);
        let seen = (change.look)(&dir);
        match done {
            Ok(()) => assert_eq!(seen, change.states[1], "{what}"),
            Err(e) => {
                refused += 1;
                assert!(failed > 0, "{what}: {e}, though nothing failed");
                // The kernel keeps what it has to write until it can be written.
                let late = change.what == "write and fsync";
                assert!(
                    change.states[..if late { 2 } else { 1 }].contains(&seen.as_str()),
                    "{what}: {e}, and then {seen:?}"
                );
                // It is not for good.
                if !late {
                    (change.act)(&dir).unwrap_or_else(|e| panic!("{what}: again: {e}"));
                    assert_eq!((change.look)(&dir), change.states[1], "{what}: again");
                }
            }
        }
        let alive = record.daemon.is_alive();
        assert_eq!(alive, Some(true), "{what}: the daemon ended");
    }
    println!(
        "{} cases, {hit} met a failing call, {refused} were refused",
        cases.len()
    );
    assert!(hit > CHANGES.len() * 5 && refused > CHANGES.len() * 2);
    assert_eq!(site.record().unwrap().panics, 0);
    unmount(&site.run_dir(), &mnt, How::default()).unwrap();
    // What is on disk is the same.
    site.mount();
    for (n, (change, call, error, when)) in cases.iter().enumerate() {
        let seen = (change.look)(&mnt.join(format!("c{n}")));
        let late = change.what == "write and fsync";
        assert!(
            change.states[usize::from(!late)..].contains(&seen.as_str()),
            "{}: {call} {error} ({when}), mounted again: {seen:?}",
            change.what
        );
        let below = CHANGES
            .iter()
            .map(|c| (c.look)(&lower.join(format!("c{n}"))));
        let first = CHANGES.iter().map(|c| c.states[0].to_owned());
        assert!(below.eq(first), "the lower has changed");
    }
}

/// An ext4 of its own, in a file of `site`, mounted on `disk`; lower and upper lie on it.
fn disk(site: &Site, options: &[&str]) -> PathBuf {
    let (image, at) = (site.path("image"), site.path("disk"));
    fs::File::create(&image).unwrap().set_len(48 << 20).unwrap();
    fs::create_dir(&at).unwrap();
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F"]).args(options).arg(&image);
    assert!(make.status().expect("this test needs mkfs.ext4").success());
    attach(site);
    for dir in ["lower/sub", "upper"] {
        fs::create_dir_all(at.join(dir)).unwrap();
    }
    fs::write(at.join("lower/hello"), "from below").unwrap();
    fs::write(at.join("lower/other"), "from below").unwrap();
    fs::write(at.join("lower/sub/inner"), "deep").unwrap();
    rustix::fs::syncfs(fs::File::open(&at).unwrap()).unwrap();
    at
}

fn attach(site: &Site) {
    let mut mount = Command::new("mount");
    mount
        .args(["-o", "loop"])
        .arg(site.path("image"))
        .arg(site.path("disk"));
    assert!(
        mount.status().unwrap().success(),
        "this test needs loop devices"
    );
}

fn mount_on(site: &Site) -> ovl::mount::Record {
    let mut task = site.task();
    task.lower = site.path("disk/lower").into();
    task.upper = Some(site.path("disk/upper"));
    let output = site.try_mount(&task);
    assert!(output.status.success(), "{}", complaint(&output));
    site.record().expect("a record")
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

#[test]
fn the_disk_becomes_read_only_and_writable_again() {
    let site = Site::new();
    let at = disk(&site, &[]);
    let record = mount_on(&site);
    let mnt = site.path("mnt");
    assert_eq!(content(&mnt.join("hello")), "from below");
    let remount = |how: &str| {
        let done = Command::new("mount").args(["-o", how]).arg(&at).status();
        assert!(done.unwrap().success(), "{how}");
    };
    remount("remount,ro");
    for (what, done) in [
        ("create", fs::write(mnt.join("new"), "x")),
        (
            "copy up",
            fs::set_permissions(mnt.join("hello"), fs::Permissions::from_mode(0o600)),
        ),
        ("unlink", fs::remove_file(mnt.join("hello"))),
        ("rename", fs::rename(mnt.join("sub"), mnt.join("sub2"))),
        ("mkdir", fs::create_dir(mnt.join("dir"))),
    ] {
        assert_eq!(errno(done), Some(libc::EROFS), "{what}");
    }
    assert_eq!(list(&mnt), "hello other sub");
    assert_eq!(content(&mnt.join("hello")), "from below");
    assert_eq!(content(&mnt.join("sub/inner")), "deep");
    remount("remount,rw");
    fs::write(mnt.join("hello"), "changed").unwrap();
    fs::rename(mnt.join("sub"), mnt.join("sub2")).unwrap();
    assert_eq!(list(&mnt), "hello other sub2");
    assert_eq!(site.record().unwrap().panics, 0);
    assert_eq!(record.daemon.is_alive(), Some(true));
    unmount(&site.run_dir(), &mnt, How::default()).unwrap();
    rustix::mount::unmount(&at, UnmountFlags::empty()).unwrap();
}

/// The file system below shuts down, as it does when its disk goes away: EIO for all that is not in memory, an orderly end, and
/// after a repair all that was synced.
#[test]
fn the_disk_goes_away() {
    let site = Site::new();
    let at = disk(&site, &[]);
    let record = mount_on(&site);
    let mnt = site.path("mnt");
    let kept = fs::File::create(mnt.join("kept")).unwrap();
    kept.write_all_at(&vec![7; 1 << 20], 0).unwrap();
    kept.sync_all().unwrap();
    let changed = fs::File::options()
        .write(true)
        .open(mnt.join("other"))
        .unwrap();
    changed.write_all_at(b"FROM", 0).unwrap();
    changed.sync_all().unwrap();
    fs::File::open(&mnt).unwrap().sync_all().unwrap();
    fs::write(mnt.join("unsynced"), "x").unwrap();
    // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH (linux/ext4.h).
    const SHUTDOWN: libc::c_ulong = 0x8004_587d;
    let how: u32 = 2;
    let root = fs::File::open(&at).unwrap();
    // SAFETY: the call reads an integer that lives as long as it.
    let rc = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const how) };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    drop((root, kept, changed));
    for (what, done) in [
        ("mkdir", fs::create_dir(mnt.join("dir"))),
        (
            "copy up",
            fs::set_permissions(mnt.join("hello"), fs::Permissions::from_mode(0o600)),
        ),
        ("rename", fs::rename(mnt.join("sub"), mnt.join("sub2"))),
        ("unlink", fs::remove_file(mnt.join("hello"))),
        (
            "write",
            fs::File::options()
                .append(true)
                .open(mnt.join("kept"))
                .and_then(|file| {
                    file.write_all_at(b"x", 1 << 20)?;
                    file.sync_all()
                }),
        ),
        ("read", fs::read(mnt.join("sub/inner")).map(drop)),
    ] {
        let code = errno(done);
        let told = [libc::EIO, libc::EROFS, libc::ESHUTDOWN].map(Some);
        assert!(
            code.is_some() && told.contains(&code) || what == "read",
            "{what}: {code:?}"
        );
    }
    assert_eq!(record.daemon.is_alive(), Some(true));
    let _ = fs::read_dir(&mnt).map(Iterator::count);
    assert_eq!(site.record().unwrap().panics, 0);
    unmount(&site.run_dir(), &mnt, How::default()).unwrap();
    assert!(site.run_dir().all().unwrap().is_empty());
    rustix::mount::unmount(&at, UnmountFlags::empty()).unwrap();
    let checked = Command::new("e2fsck")
        .args(["-f", "-p"])
        .arg(site.path("image"))
        .output();
    assert!(checked.unwrap().status.code().is_some_and(|code| code <= 1));
    attach(&site);
    mount_on(&site);
    assert!(fs::read(mnt.join("kept")).unwrap() == vec![7; 1 << 20]);
    assert_eq!(content(&mnt.join("other")), "FROM below");
    assert_eq!(content(&mnt.join("hello")), "from below");
    assert_eq!(content(&mnt.join("sub/inner")), "deep");
    unmount(&site.run_dir(), &mnt, How::default()).unwrap();
    rustix::mount::unmount(&at, UnmountFlags::empty()).unwrap();
}

/// No inode is left: nothing can be made, deleted lower names among it; what there is stays, and with room it goes on.
#[test]
fn no_room_for_another_inode() {
    let site = Site::new();
    let at = disk(&site, &["-N", "64"]);
    mount_on(&site);
    let mnt = site.path("mnt");
    let mut made = 0;
    let full = loop {
        match fs::write(mnt.join(format!("n{made}")), "") {
            Ok(()) => made += 1,
            Err(e) => break e,
        }
        assert!(made < 100);
    };
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    for (what, done) in [
        ("unlink of a lower's", fs::remove_file(mnt.join("hello"))),
        (
            "copy up",
            fs::set_permissions(mnt.join("hello"), fs::Permissions::from_mode(0o600)),
        ),
        ("mkdir", fs::create_dir(mnt.join("dir"))),
        ("copy up of a directory", fs::write(mnt.join("sub/new"), "")),
    ] {
        assert_eq!(errno(done), Some(libc::ENOSPC), "{what}");
    }
    assert_eq!(content(&mnt.join("hello")), "from below");
    assert_eq!(content(&mnt.join("sub/inner")), "deep");
    for n in 0..5 {
        fs::remove_file(mnt.join(format!("n{n}"))).unwrap();
    }
    fs::remove_file(mnt.join("hello")).unwrap();
    fs::write(mnt.join("sub/new"), "").unwrap();
    assert!(!mnt.join("hello").exists());
    assert_eq!(site.record().unwrap().panics, 0);
    unmount(&site.run_dir(), &mnt, How::default()).unwrap();
    rustix::mount::unmount(&at, UnmountFlags::empty()).unwrap();
}
