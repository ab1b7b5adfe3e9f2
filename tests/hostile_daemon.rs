//! T33, T39, T40: the daemon under fire. A bug in a handler, every signal, a stopped daemon, few descriptors, thousands of open
//! directories, notifications in masses: a request may fail, the mount lives.

mod hostile_support;
mod mount_support;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hostile_support::Meddled;
use mount_support::{Site, complaint, kill, wait_gone, wait_until};
use ovl::fuse::{Config, Session};
use ovl::layer::DirLayer;
use ovl::mount::{How, unmount};
use ovl::overlay::{Options, Overlay, Stack};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(30);

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

/// A bug in the engine, in each of its calls: EIO for the request, counted, told, and all else goes on.
#[test]
fn t39_a_panic_costs_one_request() {
    let site = Site::new();
    let armed = Arc::new(std::sync::Mutex::new(None::<&'static str>));
    let trap = Arc::clone(&armed);
    let layer = Meddled {
        inner: DirLayer::open(&site.path("lower")).unwrap(),
        before: Box::new(move |call| {
            // The lock must not be held over the panic.
            let hit = *trap.lock().unwrap() == Some(call);
            assert!(!hit, "a bug in {call}, on purpose");
            Ok(())
        }),
    };
    let stack = Stack {
        lowers: vec![Arc::new(layer)],
        upper: None,
    };
    let engine = Arc::new(Overlay::new(stack, &Options::default()).unwrap());
    let device = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).unwrap();
    let mnt = site.path("mnt");
    rustix::mount::mount(
        "ovl",
        &mnt,
        "fuse.ovl",
        MountFlags::RDONLY,
        options.as_c_str(),
    )
    .unwrap();
    // Nothing is kept by the kernel, so that each look arrives.
    let config = Config {
        entry_ttl: Duration::ZERO,
        attr_ttl: Duration::ZERO,
        negative_ttl: Duration::ZERO,
        ..Config::default()
    };
    let session = Session::start(engine, device.into(), &config).unwrap();
    let counters = session.counters();
    let told = Arc::new(AtomicU64::new(0));
    let tell = Arc::clone(&told);
    counters.on_panic(move |panics| {
        tell.fetch_max(panics, Ordering::SeqCst);
    });
    let server = std::thread::spawn(|| session.run());

    type Look = fn(&Path) -> std::io::Result<()>;
    let looks: [(&str, Look); 5] = [
        ("lookup", |mnt| mnt.join("fresh").metadata().map(drop)),
        ("read_dir", |mnt| {
            fs::read_dir(mnt.join("sub"))?.try_for_each(|e| e.map(drop))
        }),
        ("attr", |mnt| mnt.join("sub/inner").metadata().map(drop)),
        ("open", |mnt| fs::read(mnt.join("hello")).map(drop)),
        ("read_link", |mnt| fs::read_link(mnt.join("link")).map(drop)),
    ];
    std::os::unix::fs::symlink("target", site.path("lower/link")).unwrap();
    fs::write(site.path("lower/fresh"), "x").unwrap();
    // Known before, so that it is the attribute that is asked for.
    mnt.join("sub/inner").metadata().unwrap();
    let mut hits = 0;
    for (call, look) in looks {
        *armed.lock().unwrap() = Some(call);
        for _ in 0..20 {
            // Whatever the caller sees, it gets an answer; of those that met the bug it is EIO.
            let seen = counters.panics();
            let result = look(&mnt);
            if counters.panics() > seen {
                hits += 1;
                if call != "attr" {
                    assert_eq!(errno(result), Some(libc::EIO), "{call}");
                }
            }
        }
        assert!(hits > 0, "{call} was never called");
        *armed.lock().unwrap() = None;
        look(&mnt).unwrap_or_else(|e| panic!("after a bug in {call}: {e}"));
    }
    assert_eq!(told.load(Ordering::SeqCst), counters.panics());
    assert!(counters.panics() >= 20, "{}", counters.panics());
    rustix::mount::unmount(&mnt, UnmountFlags::empty()).unwrap();
    server.join().unwrap().unwrap();
}

/// What a bug leaves is shown by `ovl mounts`, by number; the log has the words.
#[test]
fn t39_bugs_are_shown() {
    let site = Site::new();
    let mut record = site.mount();
    let mounts = |format: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ovl"));
        command
            .args(["mounts", "--format", format])
            .env("OVL_RUN", site.path("run"));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let json: serde_json::Value = serde_json::from_str(&mounts("json")).unwrap();
    assert_eq!(json[0]["Panics"], 0);
    assert!(!mounts("table").contains("bugs"));
    record.panics = 3;
    site.run_dir().write(&record).unwrap();
    let json: serde_json::Value = serde_json::from_str(&mounts("json")).unwrap();
    assert_eq!(json[0]["Panics"], 3);
    let words = format!("{} (bugs: 3)", record.daemon.pid);
    assert!(mounts("table").contains(&words), "{}", mounts("table"));
}

/// Signals that mean nothing to a mount do nothing to it, in the background and in the foreground.
#[test]
fn t40_stray_signals_end_no_mount() {
    for foreground in [false, true] {
        let site = Site::new();
        let mut task = site.task();
        let mut child = None;
        if foreground {
            task.words.push("--foreground");
            let mut command = site.command(&task);
            command.stderr(Stdio::null()).process_group(0);
            child = Some(command.spawn().unwrap());
            assert!(wait_until(PATIENCE, || site.record().is_some()));
        } else {
            let output = site.try_mount(&task);
            assert!(output.status.success(), "{}", complaint(&output));
        }
        let pid = site.record().expect("a record").daemon.pid;
        for round in 0..3 {
            for signal in [
                Signal::PIPE,
                Signal::USR1,
                Signal::USR2,
                Signal::XFSZ,
                Signal::CHILD,
                Signal::URG,
                Signal::WINCH,
                Signal::CONT,
            ] {
                kill(pid, signal);
                assert_eq!(
                    fs::read(site.path("mnt/sub/inner")).unwrap(),
                    b"deep",
                    "{signal:?} {round}"
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        fs::write(site.path("mnt/hello"), "changed").unwrap();
        let alive = site.record().expect("still mounted");
        assert_eq!((alive.daemon.is_alive(), alive.panics), (Some(true), 0));
        unmount(&site.run_dir(), &site.path("mnt"), How::default()).unwrap();
        if let Some(mut child) = child {
            assert!(child.wait().unwrap().success());
        }
        assert_eq!(fs::read(site.path("upper/hello")).unwrap(), b"changed");
    }
}

/// Stops all threads. What one of them has taken already its user has to wait for, even to be killed.
fn stop(pid: u32) {
    kill(pid, Signal::STOP);
    let all_stopped = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        tasks.flatten().all(|task| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            status.contains("State:\tT")
        })
    };
    assert!(wait_until(PATIENCE, all_stopped));
}

/// A daemon that stands still holds up its own mount and nothing else: users can be killed, the list is there, and when it
/// goes on all is as before.
#[test]
fn t40_a_stopped_daemon() {
    let site = Site::new();
    let record = site.mount();
    stop(record.daemon.pid);
    let mut user = Command::new("cat")
        .arg(site.path("mnt/sub/inner"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(user.try_wait().unwrap(), None, "nobody answers");
    let start = Instant::now();
    let mut list = Command::new("timeout");
    list.args(["20", env!("CARGO_BIN_EXE_ovl"), "mounts"])
        .env("OVL_RUN", site.path("run"));
    let listed = list.output().unwrap();
    assert!(
        listed.status.success(),
        "{listed:?} after {:?}",
        start.elapsed()
    );
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&record.id));
    user.kill().unwrap();
    let ended = wait_until(PATIENCE, || user.try_wait().unwrap().is_some());
    if !ended {
        kill(record.daemon.pid, Signal::CONT);
        panic!("a user cannot be killed");
    }
    let waiting = Command::new("cat")
        .arg(site.path("mnt/hello"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    kill(record.daemon.pid, Signal::CONT);
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"from below");
    // Stopped for good, it can be detached and killed.
    stop(record.daemon.pid);
    rustix::mount::unmount(site.path("mnt"), UnmountFlags::DETACH).unwrap();
    kill(record.daemon.pid, Signal::KILL);
    assert!(wait_gone(record.daemon.pid, PATIENCE));
    site.mount();
    assert_eq!(fs::read(site.path("mnt/hello")).unwrap(), b"from below");
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// What is open in the mount takes nothing of the daemon's: 10,000 directories, and a thousand files.
#[test]
fn t40_ten_thousand_open_directories() {
    const MANY: usize = 10_000;
    let site = Site::new();
    for n in 0..MANY {
        let dir = site.path("lower").join(format!("d{n}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("f"), "x").unwrap();
    }
    let record = site.mount();
    // In a process of its own, whose limit is its own.
    let script = "import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (12000, max(12000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
os.chdir(sys.argv[1])
held, files = [], []
for n in range(int(sys.argv[2])):
    held.append(os.open('d%d' % n, os.O_RDONLY | os.O_DIRECTORY))
    if os.listdir(held[-1]) != ['f']: sys.exit(3)
    if n % 10 == 0: files.append(os.open('d%d/f' % n, os.O_RDONLY))
print('open', flush=True)
sys.stdin.read()
for fd in files:
    if os.pread(fd, 10, 0) != b'x': sys.exit(5)
";
    let mut user = Command::new("python3")
        .args(["-c", script])
        .arg(site.path("mnt"))
        .arg(MANY.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("this test needs python3: {e}"));
    let mut line = [0; 5];
    user.stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .expect("all are open");
    let open = descriptors(record.daemon.pid);
    assert!(open < 1200, "{open} descriptors of the daemon");
    drop(user.stdin.take());
    assert!(user.wait().unwrap().success());
    assert_eq!(site.record().unwrap().panics, 0);
}

/// With few descriptors some requests fail with EMFILE; then there are enough again, and nothing was lost.
#[test]
fn t40_the_limit_of_descriptors_is_reached() {
    let site = Site::new();
    for n in 0..200 {
        let dir = site.path("lower").join(format!("d{n}/deep"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("f"), vec![b'x'; 100_000]).unwrap();
    }
    let task = site.task();
    let plain = site.command(&task);
    let mut command = Command::new("prlimit");
    command
        .arg("--nofile=40:40")
        .arg(plain.get_program())
        .args(plain.get_args());
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap());
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", complaint(&output));
    let mnt = site.path("mnt");
    let failed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (mnt, failed) = (&mnt, &failed);
            scope.spawn(move || {
                for n in (thread..200).step_by(4) {
                    let file = mnt.join(format!("d{n}/deep/f"));
                    let done = fs::read(&file).and_then(|_| {
                        fs::write(mnt.join(format!("d{n}/deep/own{thread}")), "y")?;
                        fs::OpenOptions::new()
                            .append(true)
                            .open(&file)?
                            .write_all(b"more")
                    });
                    match errno(done) {
                        None => {}
                        Some(libc::EMFILE | libc::ENFILE) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                        Some(other) => panic!("{}: errno {other}", file.display()),
                    }
                }
            });
        }
    });
    println!(
        "{} of 800 rounds met the limit",
        failed.load(Ordering::Relaxed)
    );
    for n in 0..200 {
        let bytes = fs::read(mnt.join(format!("d{n}/deep/f"))).unwrap();
        assert!(bytes.len() >= 100_000 && bytes[..100_000].iter().all(|b| *b == b'x'));
    }
    let record = site.record().expect("still mounted");
    assert_eq!((record.daemon.is_alive(), record.panics), (Some(true), 0));
    unmount(&site.run_dir(), &mnt, How::default()).unwrap();
}

/// Each SEEK_DATA under write-back makes the daemon tell the kernel to drop pages, which makes it write, which the daemon must
/// answer meanwhile: they never wait for each other.
#[test]
fn t40_notifications_in_masses_do_not_lock_up() {
    let site = Site::new();
    site.mount();
    let path = site.path("mnt/busy");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let stop = AtomicBool::new(false);
    let seeks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (path, stop, seeks) = (&path, &stop, &seeks);
            scope.spawn(move || {
                let mut file = fs::File::options()
                    .read(true)
                    .write(true)
                    .open(path)
                    .unwrap();
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    file.seek(SeekFrom::Start(
                        (thread * 300_000 + round * 4096) % (1 << 20),
                    ))
                    .unwrap();
                    file.write_all(&[2; 4096]).unwrap();
                    let whence = if round.is_multiple_of(2) {
                        libc::SEEK_DATA
                    } else {
                        libc::SEEK_HOLE
                    };
                    // SAFETY: a plain system call on an open descriptor.
                    let found = unsafe { libc::lseek(file.as_raw_fd(), 0, whence) };
                    assert!(found >= 0);
                    seeks.fetch_add(1, Ordering::Relaxed);
                    round += 1;
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            let before = seeks.load(Ordering::Relaxed);
            let moves = wait_until(PATIENCE, || seeks.load(Ordering::Relaxed) > before);
            if !moves {
                // The threads wait for the daemon: without it they end.
                kill(site.record().expect("a record").daemon.pid, Signal::KILL);
                panic!("locked up after {before} seeks");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{} seeks", seeks.load(Ordering::Relaxed));
    assert!(fs::read(&path).unwrap().len() >= 1 << 20);
}

/// The mount point's name comes to mean something else: what lies there is not unmounted, ours is still found by its id.
#[test]
fn t33_the_mount_point_replaced_by_a_symlink() {
    let site = Site::new();
    fs::create_dir_all(site.path("place/mnt")).unwrap();
    fs::create_dir(site.path("victim")).unwrap();
    rustix::mount::mount(
        "tmpfs",
        site.path("victim"),
        "tmpfs",
        MountFlags::empty(),
        c"size=1m",
    )
    .unwrap();
    let mut task = site.task();
    task.mount_point = site.path("place/mnt");
    let output = site.try_mount(&task);
    assert!(output.status.success(), "{}", complaint(&output));
    let record = site.run_dir().all().unwrap().pop().expect("a record");
    fs::rename(site.path("place"), site.path("moved")).unwrap();
    fs::create_dir(site.path("place")).unwrap();
    std::os::unix::fs::symlink(site.path("victim"), site.path("place/mnt")).unwrap();
    for how in [
        How::default(),
        How {
            lazy: true,
            ..How::default()
        },
    ] {
        assert!(unmount(&site.run_dir(), &site.path("place/mnt"), how).is_err());
        assert!(site.is_mounted("victim") && site.is_mounted("moved/mnt"));
    }
    assert_eq!(
        fs::read(site.path("moved/mnt/hello")).unwrap(),
        b"from below"
    );
    // Nor by the daemon when it ends.
    kill(record.daemon.pid, Signal::TERM);
    assert!(wait_gone(record.daemon.pid, PATIENCE));
    assert!(site.is_mounted("victim") && !site.is_mounted("moved/mnt"));
    // By its id.
    let mut task = site.task();
    task.mount_point = site.path("moved/mnt");
    assert!(site.try_mount(&task).status.success());
    let record = site.run_dir().all().unwrap().pop().expect("a record");
    fs::rename(site.path("moved"), site.path("away")).unwrap();
    unmount(&site.run_dir(), Path::new(&record.id), How::default()).unwrap();
    assert!(site.is_mounted("victim") && !site.is_mounted("away/mnt"));
    rustix::mount::unmount(site.path("victim"), UnmountFlags::empty()).unwrap();
}

/// While somebody swaps the mount point's path for a symlink, over and over: a mount lies where it was made, is listed there,
/// and goes from there.
#[test]
fn t33_the_mount_point_swapped_during_the_mount() {
    let site = Site::new();
    for dir in ["real", "other"] {
        fs::create_dir(site.path(dir)).unwrap();
        fs::write(site.path(dir).join("own"), dir).unwrap();
    }
    let path = site.path("swapped");
    std::os::unix::fs::symlink(site.path("real"), &path).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let next = site.path("next");
            let mut turn = 0;
            while !stop.load(Ordering::Relaxed) {
                let target = ["other", "real"][turn % 2];
                std::os::unix::fs::symlink(site.path(target), &next).unwrap();
                fs::rename(&next, &path).unwrap();
                turn += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..15 {
                let mut task = site.task();
                task.mount_point.clone_from(&path);
                let output = site.try_mount(&task);
                assert!(output.status.success(), "{}", complaint(&output));
                let record = site.run_dir().all().unwrap().pop().expect("a record");
                let mounted: Vec<&str> = ["real", "other"]
                    .into_iter()
                    .filter(|dir| site.is_mounted(dir))
                    .collect();
                assert_eq!(mounted.len(), 1, "round {round}: {mounted:?}");
                assert_eq!(record.mount_point.0, site.path(mounted[0]), "round {round}");
                unmount(&site.run_dir(), Path::new(&record.id), How::default()).unwrap();
                assert!(!site.is_mounted("real") && !site.is_mounted("other"));
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
    for dir in ["real", "other"] {
        assert_eq!(fs::read_to_string(site.path(dir).join("own")).unwrap(), dir);
    }
}
