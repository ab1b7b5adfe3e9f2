//! Mounts whose files the kernel reads and writes itself: that it does, what happens where it cannot, and that programs see
//! the same as on a plain file system in whatever order they open, map, change and close files.

#![allow(unsafe_code, reason = "mmap(2)")]

#[path = "../common/mod.rs"]
mod common;
mod data;
#[path = "../mode_support/mod.rs"]
mod mode_support;
#[path = "../mount_support/mod.rs"]
mod mount_support;
mod names;
mod orders;
mod rights;
#[path = "../uring_support/mod.rs"]
mod uring_support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::time::Duration;

use common::Sandbox;
use mode_support::{BOTH, Mode, PASSTHROUGH};
use mount_support::{Site, complaint, kill, wait_gone, wait_until};
use ovl::fuse::{Io, Transport};
use ovl::mount::Record;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::Signal;

/// Runs `check` on a fresh mount by each transport, with what `prepare` puts into the lower; afterwards the mount must come
/// down without force, its log empty.
fn on_each(prepare: impl Fn(&Site), check: impl Fn(&Site, &Record)) {
    for mode in [PASSTHROUGH, BOTH] {
        if !mode.is_here() {
            continue;
        }
        uring_support::permit_io_uring();
        println!("mode: {}", mode.name);
        let site = Site::new();
        // Other users must be able to get here.
        fs::set_permissions(site.path("."), fs::Permissions::from_mode(0o755)).unwrap();
        prepare(&site);
        let record = mounted(&site, mode, true);
        check(&site, &record);
        unmount(&site, &record);
    }
}

fn mounted(site: &Site, mode: Mode, writable: bool) -> Record {
    let mut task = site.task();
    task.words = mode.words.to_vec();
    if !writable {
        task.upper = None;
    }
    let output = site.try_mount(&task);
    assert!(output.status.success(), "{}", complaint(&output));
    let record = site.record().expect("a record");
    assert_eq!(record.io, Io::Passthrough);
    assert_eq!(record.transport == Transport::IoUring, mode == BOTH);
    record
}

fn unmount(site: &Site, record: &Record) {
    let mut done = Ok(());
    // A process that another test is just starting holds copies of our files until exec closes them.
    let free = wait_until(Duration::from_secs(10), || {
        done = rustix::mount::unmount(site.path("mnt"), UnmountFlags::empty());
        done != Err(Errno::BUSY)
    });
    assert!(free && done.is_ok(), "somebody is in there: {done:?}");
    let log = record.log.as_ref().expect("a log");
    let said = fs::read_to_string(&log.0).unwrap_or_default();
    let gone = wait_gone(record.daemon.pid, Duration::from_secs(20));
    assert!(gone, "the daemon lives on");
    assert_eq!(said, "");
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 7 + at / 251 + seed) as u8)
        .collect()
}

fn both() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

/// What `act` does while the daemon sleeps: all of it must be the kernel's own work.
fn without_daemon<T: Send>(record: &Record, act: impl FnOnce() -> T + Send) -> T {
    kill(record.daemon.pid, Signal::STOP);
    std::thread::scope(|scope| {
        let (done, outcome) = mpsc::channel();
        scope.spawn(move || done.send(act()));
        let outcome = outcome.recv_timeout(Duration::from_secs(20));
        kill(record.daemon.pid, Signal::CONT);
        outcome.expect("done without the daemon")
    })
}

fn ovl(site: &Site, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ovl"))
        .args(words)
        .env("OVL_RUN", site.path("run"))
        .env("OVL_ROOT", site.path("store"))
        .output()
        .expect("ovl")
}

#[test]
fn it_is_used_and_told() {
    on_each(
        |_| (),
        |site, record| {
            let mnt = site.path("mnt");
            let bytes = pattern(300_000, 1);
            fs::write(mnt.join("new"), &bytes).unwrap();
            let file = both().open(mnt.join("new")).unwrap();
            // Before the first write the kernel asks whether there are capabilities to be taken away.
            file.write_all_at(b"x", 0).unwrap();
            without_daemon(record, || {
                file.write_all_at(b"awake", 1000).unwrap();
                let mut read = vec![0; bytes.len()];
                file.read_exact_at(&mut read, 0).unwrap();
                assert!(read[..1000] == [b"x", &bytes[1..1000]].concat());
                assert!(read[1000..] == [b"awake", &bytes[1005..]].concat());
            });
            drop(file);
            let listed = ovl(site, &["mounts", "--format", "json"]);
            let listed = String::from_utf8(listed.stdout).unwrap();
            assert!(listed.contains(r#""Io": "passthrough""#), "{listed}");
            let listed = ovl(site, &["mounts"]);
            let listed = String::from_utf8(listed.stdout).unwrap();
            let ring = record.transport == Transport::IoUring;
            let words = if ring {
                "fuse (io_uring, passthrough)"
            } else {
                "fuse (passthrough)"
            };
            assert!(listed.contains(words), "{listed}");
        },
    );
}

/// Files of the lowers cannot get another place there, so all are passed through.
#[test]
fn read_only_mounts_pass_the_lowers_through() {
    for mode in [PASSTHROUGH, BOTH] {
        if !mode.is_here() {
            continue;
        }
        uring_support::permit_io_uring();
        let site = Site::new();
        let bytes = pattern(300_000, 2);
        fs::write(site.path("lower/big"), &bytes).unwrap();
        let record = mounted(&site, mode, false);
        let mnt = site.path("mnt");
        let file = File::open(mnt.join("big")).unwrap();
        let again = File::open(mnt.join("big")).unwrap();
        without_daemon(&record, || {
            let mut read = vec![0; bytes.len()];
            again.read_exact_at(&mut read, 0).unwrap();
            assert!(read == bytes);
            file.read_exact_at(&mut read, 0).unwrap();
            assert!(read == bytes);
        });
        let refused = both().open(mnt.join("big")).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        drop((file, again));
        unmount(&site, &record);
    }
}

#[test]
fn the_default_and_auto_are_cached() {
    for words in [
        &[][..],
        &["--io", "auto"],
        &["-o", "io=auto"],
        &["--io", "cached"],
    ] {
        let site = Site::new();
        let mut task = site.task();
        task.words = words.to_vec();
        let output = site.try_mount(&task);
        assert!(output.status.success(), "{}", complaint(&output));
        assert_eq!(site.record().expect("a record").io, Io::Cached, "{words:?}");
    }
}

/// The variable is for mounts that have no word for it, and what cannot be had is told.
#[test]
fn the_variable_asks_where_nothing_is_said() {
    if !PASSTHROUGH.is_here() {
        return;
    }
    let table: [(&str, &[&str], Io); 5] = [
        ("passthrough", &[], Io::Passthrough),
        ("passthrough", &["--io", "cached"], Io::Cached),
        ("passthrough", &["-o", "io=auto"], Io::Cached),
        ("cached", &["-o", "io=passthrough"], Io::Passthrough),
        ("auto", &[], Io::Cached),
    ];
    for (variable, words, found) in table {
        let site = Site::new();
        let mut task = site.task();
        task.words = words.to_vec();
        let output = site
            .command(&task)
            .env("OVL_IO", variable)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", complaint(&output));
        assert_eq!(output.stderr, b"", "{variable} {words:?}");
        let record = site.record().expect("a record");
        assert_eq!(record.io, found, "{variable} {words:?}");
    }
    let s = Sandbox::with_busybox();
    let mnt = s.mkdir("mnt");
    let mut command = s.ovl([
        "mount".as_ref(),
        "-r".as_ref(),
        "busybox".as_ref(),
        mnt.as_os_str(),
    ]);
    let output = command.env("OVL_IO", "passthrough").output().unwrap();
    assert!(output.status.success(), "{}", complaint(&output));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        words.contains("passthrough is not used: there is nothing to pass"),
        "{words}"
    );
    assert!(mnt.join("bin/busybox").exists());
    s.run(["umount".as_ref(), mnt.as_os_str()]);
}

/// Asked for on the command line it is a condition: no mount without it.
#[test]
fn where_it_cannot_be_had_there_is_no_mount() {
    let s = Sandbox::with_busybox();
    let (lower, mnt) = (s.mkdir("lower"), s.mkdir("mnt"));
    let mount = |words: &[&str]| -> Vec<std::ffi::OsString> {
        let words = ["mount", "--io", "passthrough"].iter().chain(words);
        words.map(Into::into).chain([mnt.clone().into()]).collect()
    };
    let nothing = s.fail(1, mount(&["-r", "busybox"]));
    assert!(nothing.contains("nothing to pass through"), "{nothing}");
    let upper = s.mkdir("upper");
    let merged = s.fail(
        2,
        mount(&[
            "--merge",
            "kernel",
            lower.to_str().unwrap(),
            upper.to_str().unwrap(),
        ]),
    );
    assert!(
        merged.contains("io=passthrough needs ovl's own merge"),
        "{merged}"
    );
    assert!(common::mounts_below(&mnt).is_empty());

    // Changes of an image are files of the host.
    if PASSTHROUGH.is_here() {
        s.run(mount(&[
            "--merge",
            "auto",
            "busybox",
            upper.to_str().unwrap(),
        ]));
        let told = s.run(["mounts"]);
        assert!(told.contains("fuse (passthrough)"), "{told}");
        s.run(["umount".as_ref(), mnt.as_os_str()]);
    }
}

#[test]
fn neither_for_other_users_nor_over_stacked_files() {
    if !PASSTHROUGH.is_here() {
        return;
    }
    let site = Site::new();
    let try_mount = |words: &[&str], before: &str| {
        let script = format!(
            "{before}\n{} mount --io passthrough lower upper mnt; code=$?\ngrep -c ' mnt ' /proc/mounts\nexit $code",
            env!("CARGO_BIN_EXE_ovl")
        );
        Command::new("unshare")
            .args(words)
            .args(["sh", "-c", &script])
            .current_dir(site.path("."))
            .env("OVL_RUN", site.path("run"))
            .output()
            .unwrap()
    };
    let refused = try_mount(&["--user", "--map-root-user", "--mount"], "");
    let words = complaint(&refused);
    assert!(words.starts_with("Some(1): ovl: "), "{words}");
    assert!(
        words.contains("CAP_SYS_ADMIN in the first user namespace"),
        "{words}"
    );
    assert!(words.contains("io=passthrough cannot be had"), "{words}");
    assert_eq!(refused.stdout, b"0\n", "a mount was left");

    let stacked = "mkdir a b c o && mount -t overlay overlay -o lowerdir=a,upperdir=b,workdir=c o && mkdir o/upper o/work
        && rmdir upper && ln -s o/upper upper"
        .replace('\n', " ");
    let refused = try_mount(&["--mount", "--propagation", "private"], &stacked);
    let words = complaint(&refused);
    assert!(words.starts_with("Some(1): ovl: "), "{words}");
    assert!(words.contains("stacked file system"), "{words}");
    assert_eq!(refused.stdout, b"0\n", "a mount was left");
}

/// Clients get an error and do not hang, and the place can be used again.
#[test]
fn a_killed_daemon_hangs_nobody() {
    for mode in [PASSTHROUGH, BOTH] {
        if !mode.is_here() {
            continue;
        }
        uring_support::permit_io_uring();
        let site = Site::new();
        let record = mounted(&site, mode, true);
        let mnt = site.path("mnt");
        let file = both().create_new(true).open(mnt.join("new")).unwrap();
        file.write_all_at(b"before", 0).unwrap();
        kill(record.daemon.pid, Signal::KILL);
        assert!(wait_gone(record.daemon.pid, Duration::from_secs(20)));
        // What it says is the kernel's choice.
        let _ = file.write_at(b"after", 100);
        assert!(File::open(mnt.join("new")).is_err());
        drop(file);
        let done = ovl(&site, &["umount", mnt.to_str().unwrap()]);
        assert!(done.status.success(), "{}", complaint(&done));
        let record = mounted(&site, mode, true);
        let bytes = fs::read(mnt.join("new")).unwrap();
        assert_eq!(bytes[..6], *b"before");
        unmount(&site, &record);
    }
}

fn same_file(shown: &Path, kept: &Path) {
    assert!(fs::read(shown).unwrap() == fs::read(kept).unwrap());
}
