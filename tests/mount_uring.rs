//! Mounts whose requests come by io_uring: that they do, what happens where they cannot, and that nothing is left behind
//! however such a mount ends.

#![allow(unsafe_code, reason = "what a child does between fork and exec")]

mod mount_support;
mod uring_support;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mount_support::{Site, Task, complaint, kill, wait_gone, wait_until};
use ovl::fuse::Transport;
use ovl::mount::Record;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::Signal;
use rustix::thread::CpuSet;
use uring_support::permit_io_uring;

fn task(site: &Site) -> Task {
    let mut task = site.task();
    task.words = vec!["-o", "io_uring"];
    task
}

fn mounted(site: &Site) -> Record {
    let output = site.try_mount(&task(site));
    assert!(output.status.success(), "{}", complaint(&output));
    site.record().expect("a record")
}

/// A mount over io_uring; `None` where the kernel has none.
fn over_io_uring(site: &Site) -> Option<Record> {
    if !permit_io_uring() {
        return None;
    }
    let record = mounted(site);
    assert_eq!(record.transport, Transport::IoUring);
    Some(record)
}

fn unmount(site: &Site, record: &Record) {
    rustix::mount::unmount(site.path("mnt"), UnmountFlags::empty()).expect("nobody is in there");
    let gone = wait_gone(record.daemon.pid, Duration::from_secs(20));
    assert!(gone, "the daemon lives on");
}

fn log(record: &Record) -> String {
    let log = record.log.as_ref().expect("a log");
    fs::read_to_string(&log.0).expect("the log")
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 7 + at / 251 + seed) as u8)
        .collect()
}

#[test]
fn it_is_used_and_told() {
    let site = Site::new();
    let Some(record) = over_io_uring(&site) else {
        return;
    };
    let mnt = site.path("mnt");
    assert_eq!(fs::read(mnt.join("hello")).unwrap(), b"from below");
    let listed = Command::new(env!("CARGO_BIN_EXE_ovl"))
        .args(["mounts", "--format", "json"])
        .env("OVL_RUN", site.path("run"))
        .output()
        .expect("ovl mounts");
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains(r#""Transport": "io_uring""#), "{listed}");
    let threads = fs::read_dir(format!("/proc/{}/task", record.daemon.pid)).unwrap();
    let rings = threads
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with("ovl-ring"))
        .count();
    assert!(rings >= 2, "{rings} threads");
    assert_eq!(log(&record), "");
    unmount(&site, &record);
}

/// What containers forbid by default: the mount is made all the same, and the reason is told.
#[test]
fn without_the_system_call_there_is_dev_fuse() {
    let site = Site::new();
    let mut command = site.command(&task(&site));
    // SAFETY: two prctl(2) calls in the child, on a program that lives until then.
    unsafe { command.pre_exec(forbid_io_uring) };
    let output = command.output().expect("ovl");
    assert!(output.status.success(), "{}", complaint(&output));
    let record = site.record().expect("a record");
    assert_eq!(record.transport, Transport::Device);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("io_uring is not used"), "{words}");
    assert!(words.contains("not permitted"), "{words}");
    fs::write(site.path("mnt/new"), "text").unwrap();
    assert_eq!(fs::read(site.path("upper/new")).unwrap(), b"text");
    unmount(&site, &record);
}

/// A filter that answers io_uring_setup(2) with EPERM.
fn forbid_io_uring() -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let mut steps = [
        step(LOAD, 0, 0),
        step(EQUAL, 1, libc::SYS_io_uring_setup as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: as prctl(2) has it.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) == 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[test]
fn no_locked_memory_is_needed() {
    if !permit_io_uring() {
        return;
    }
    let site = Site::new();
    let mut command = site.command(&task(&site));
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: one system call in the child.
    unsafe {
        command.pre_exec(
            move || match libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const none) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            },
        );
    }
    let output = command.output().expect("ovl");
    assert!(output.status.success(), "{}", complaint(&output));
    let record = site.record().expect("a record");
    assert_eq!(record.transport, Transport::IoUring);
    fs::write(site.path("mnt/new"), pattern(1 << 20, 3)).unwrap();
    unmount(&site, &record);
}

#[test]
fn sixty_four_at_once() {
    let site = Site::new();
    let Some(record) = over_io_uring(&site) else {
        return;
    };
    let mnt = site.path("mnt");
    std::thread::scope(|scope| {
        for client in 0..64 {
            let mnt = &mnt;
            scope.spawn(move || busy(mnt, client));
        }
    });
    assert_eq!(log(&record), "");
    unmount(&site, &record);
    for client in 0..64 {
        let file = site.path(&format!("upper/c{client}/kept"));
        assert_eq!(fs::read(file).unwrap(), pattern(9000, client));
    }
}

/// Makes, writes, reads, renames, lists and deletes in a directory of its own.
fn busy(mnt: &Path, client: usize) {
    let dir = mnt.join(format!("c{client}"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("kept"), pattern(9000, client)).unwrap();
    for round in 0..10 {
        let (one, two) = (dir.join("one"), dir.join("two"));
        let bytes = pattern(3000 + round, client);
        let mut file = File::create_new(&one).unwrap();
        file.write_all(&bytes).unwrap();
        file.sync_all().unwrap();
        fs::rename(&one, &two).unwrap();
        assert_eq!(fs::read(&two).unwrap(), bytes);
        let mut names: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["kept", "two"]);
        fs::remove_file(&two).unwrap();
        assert_eq!(fs::read(mnt.join("sub/inner")).unwrap(), b"deep");
    }
}

/// Each of these questions waits for writes of the same file, asked from the same processor: more of them than there are
/// threads must not keep the writes from being served.
#[test]
fn questions_for_holes_never_wait_for_each_other() {
    let site = Site::new();
    let Some(record) = over_io_uring(&site) else {
        return;
    };
    let mnt = site.path("mnt");
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let first = (0..CpuSet::MAX_CPU)
        .find(|cpu| allowed.is_set(*cpu))
        .expect("a processor");
    std::thread::scope(|scope| {
        for client in 0..16_u64 {
            let mnt = &mnt;
            scope.spawn(move || {
                let mut only = CpuSet::new();
                only.set(first);
                rustix::thread::sched_setaffinity(None, &only).unwrap();
                let file = File::create_new(mnt.join(format!("holes{client}"))).unwrap();
                file.set_len(1 << 30).unwrap();
                for round in 0..20 {
                    let at = (round * 16 + client) << 20;
                    file.write_all_at(&[1; 4096], at).unwrap();
                    let data = rustix::fs::seek(&file, SeekFrom::Data(at)).unwrap();
                    assert_eq!(data, at, "what was just written is no hole");
                    let hole = rustix::fs::seek(&file, SeekFrom::Hole(at)).unwrap();
                    assert_eq!(hole, at + 4096);
                }
                let none = rustix::fs::seek(&file, SeekFrom::Data(1 << 30));
                assert_eq!(none, Err(Errno::NXIO));
            });
        }
    });
    unmount(&site, &record);
}

#[test]
fn large_requests_arrive_whole() {
    let site = Site::new();
    let bytes = pattern(5 << 20, 1);
    fs::write(site.path("lower/big"), &bytes).unwrap();
    let Some(record) = over_io_uring(&site) else {
        return;
    };
    let mnt = site.path("mnt");
    assert!(fs::read(mnt.join("big")).unwrap() == bytes);
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(mnt.join("direct"))
        .unwrap();
    // Aligned by hand: O_DIRECT wants it where the mount passes it on.
    let mut room = vec![0_u8; (5 << 20) + 4096];
    let at = room.as_ptr().align_offset(4096);
    room[at..at + bytes.len()].copy_from_slice(&bytes);
    for start in (0..bytes.len()).step_by(1 << 20) {
        let part = &room[at + start..at + start + (1 << 20)];
        direct.write_all_at(part, start as u64).unwrap();
    }
    room.fill(0);
    for start in (0..bytes.len()).step_by(1 << 20) {
        let part = &mut room[at + start..at + start + (1 << 20)];
        direct.read_exact_at(part, start as u64).unwrap();
    }
    assert!(room[at..at + bytes.len()] == bytes);
    drop(direct);
    let mut buffered = File::create(mnt.join("buffered")).unwrap();
    for part in bytes.chunks(1 << 20) {
        buffered.write_all(part).unwrap();
    }
    buffered.sync_all().unwrap();
    drop(buffered);
    let value = pattern(60_000, 2);
    let name = "user.large";
    let set = rustix::fs::setxattr(
        mnt.join("buffered"),
        name,
        &value,
        rustix::fs::XattrFlags::empty(),
    );
    // The upper's own file system may have less room.
    if set.is_ok() {
        let mut read = vec![0; value.len()];
        let len = rustix::fs::getxattr(mnt.join("buffered"), name, &mut read).unwrap();
        assert!(read[..len] == value);
    }
    unmount(&site, &record);
    for name in ["direct", "buffered"] {
        assert!(fs::read(site.path("upper").join(name)).unwrap() == bytes);
    }
}

#[test]
fn a_directory_of_ten_thousand() {
    let site = Site::new();
    let many = site.path("lower/many");
    fs::create_dir(&many).unwrap();
    let name = |at: usize| format!("{at:05}-{}", "n".repeat(at % 200));
    for at in 0..10_000 {
        File::create_new(many.join(name(at))).unwrap();
    }
    let Some(record) = over_io_uring(&site) else {
        return;
    };
    let shown = site.path("mnt/many");
    let mut names: Vec<_> = fs::read_dir(&shown)
        .unwrap()
        .map(|entry| entry.unwrap())
        .inspect(|entry| assert!(entry.metadata().unwrap().is_file()))
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names == (0..10_000).map(name).collect::<Vec<_>>());
    unmount(&site, &record);
}

/// Clients get an error and do not hang, and the place can be used again.
#[test]
fn a_killed_daemon_hangs_nobody() {
    let site = Site::new();
    let Some(record) = over_io_uring(&site) else {
        return;
    };
    let mnt = site.path("mnt");
    let writers: Vec<_> = (0..8)
        .map(|client| {
            let dir = mnt.clone();
            std::thread::spawn(move || -> PathBuf {
                let path = dir.join(format!("w{client}"));
                while fs::write(&path, pattern(20_000, client)).is_ok() {}
                path
            })
        })
        .collect();
    let busy = wait_until(Duration::from_secs(10), || {
        site.path("upper/w7").exists() && site.path("upper/w0").exists()
    });
    assert!(busy, "the writers write");
    kill(record.daemon.pid, Signal::KILL);
    for writer in writers {
        writer.join().expect("a writer that was told");
    }
    let error = fs::read(mnt.join("hello")).expect_err("nobody answers");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
    let done = Command::new(env!("CARGO_BIN_EXE_ovl"))
        .arg("umount")
        .arg(&mnt)
        .env("OVL_RUN", site.path("run"))
        .output()
        .expect("ovl umount");
    assert!(done.status.success(), "{}", complaint(&done));
    let again = mounted(&site);
    assert_eq!(again.transport, Transport::IoUring);
    assert_eq!(fs::read(mnt.join("hello")).unwrap(), b"from below");
    unmount(&site, &again);
}

#[test]
fn every_ordinary_end_is_clean() {
    if !permit_io_uring() {
        return;
    }
    let site = Site::new();
    let mnt = site.path("mnt");

    // Somebody is in there: no; lazily: yes, and the daemon stays for as long as they do.
    let record = over_io_uring(&site).expect("as asked");
    let mut held = File::open(mnt.join("sub/inner")).unwrap();
    let refused = rustix::mount::unmount(&mnt, UnmountFlags::empty());
    assert_eq!(refused, Err(Errno::BUSY));
    rustix::mount::unmount(&mnt, UnmountFlags::DETACH).unwrap();
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "deep");
    assert!(Path::new(&format!("/proc/{}", record.daemon.pid)).exists());
    drop(held);
    assert!(wait_gone(record.daemon.pid, Duration::from_secs(20)));

    // The daemon is asked to end.
    let record = mounted(&site);
    fs::write(mnt.join("last"), "words").unwrap();
    kill(record.daemon.pid, Signal::TERM);
    assert!(wait_gone(record.daemon.pid, Duration::from_secs(20)));
    assert!(!site.is_mounted("mnt"));
    assert_eq!(fs::read(site.path("upper/last")).unwrap(), b"words");

    // Again and again.
    for round in 0..4 {
        let record = mounted(&site);
        assert_eq!(record.transport, Transport::IoUring, "round {round}");
        assert_eq!(fs::read(mnt.join("last")).unwrap(), b"words");
        unmount(&site, &record);
    }
}
