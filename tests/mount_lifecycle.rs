//! Mounts come, are used and go: from outside, by signal, by `kill -9`; and leave nothing behind.

mod mount_support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use mount_support::{Site, complaint, kill, wait_gone, wait_until};
use ovl::mount::{How, unmount};
use rustix::mount::UnmountFlags;
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn mounts_shows_and_keeps_changes() {
    let site = Site::new();
    let record = site.mount();
    let mnt = site.path("mnt");
    assert_eq!(fs::read(mnt.join("hello")).expect("read"), b"from below");
    fs::write(mnt.join("hello"), "changed").expect("copy up");
    fs::write(mnt.join("new"), "made").expect("create");
    fs::remove_dir_all(mnt.join("sub")).expect("remove");
    assert!(!record.read_only);
    unmount(&site.run_dir(), &mnt, How::default()).expect("unmount");
    assert_eq!(
        record.daemon.is_alive(),
        Some(false),
        "the daemon still runs"
    );
    assert!(site.run_dir().all().expect("records").is_empty());
    assert_eq!(
        fs::read(site.path("lower/hello")).expect("read"),
        b"from below"
    );
    assert_eq!(
        fs::read(site.path("upper/hello")).expect("read"),
        b"changed"
    );
    site.mount();
    assert_eq!(fs::read(mnt.join("hello")).expect("read"), b"changed");
    assert_eq!(fs::read(mnt.join("new")).expect("read"), b"made");
    assert!(!mnt.join("sub").exists());
}

/// Programs like podman unmount from outside and mount the same upper and path again at once.
#[test]
fn fifty_times_on_the_same_path() {
    let site = Site::new();
    let mnt = site.path("mnt");
    for round in 0..50 {
        site.mount();
        fs::write(mnt.join(format!("file-{round}")), [b'x'; 5000]).expect("write");
        assert_eq!(fs::read_dir(&mnt).expect("list").count(), 3 + round);
        rustix::mount::unmount(&mnt, UnmountFlags::empty()).expect("umount");
    }
    assert!(!site.is_mounted("mnt"));
    let gone = || site.run_dir().all().expect("records").is_empty();
    assert!(
        wait_until(PATIENCE, gone),
        "daemons stay: {:?}",
        site.run_dir().all()
    );
}

#[test]
fn a_moved_mount_point_is_found_and_its_old_name_is_free() {
    let site = Site::new();
    let mount = |upper| {
        fs::create_dir_all(site.path("place/mnt")).expect("mkdir");
        let mut task = site.task();
        task.upper = Some(site.path(upper));
        task.mount_point = site.path("place/mnt");
        let output = site.try_mount(&task);
        assert!(output.status.success(), "{}", complaint(&output));
        let record = ovl::mount::find(&site.run_dir(), &site.path("place/mnt"));
        record.expect("find").expect("a record")
    };
    let first = mount("upper");
    fs::rename(site.path("place"), site.path("moved")).expect("rename");
    assert_eq!(
        fs::read(site.path("moved/mnt/hello")).expect("read"),
        b"from below"
    );
    mount("upper2");
    // The first daemon must take down its own mount, not the one at the path it was made on.
    kill(first.daemon.pid, Signal::TERM);
    assert!(wait_gone(first.daemon.pid, PATIENCE));
    assert!(!site.is_mounted("moved/mnt"));
    assert!(site.is_mounted("place/mnt"));
    assert_eq!(
        fs::read(site.path("place/mnt/hello")).expect("read"),
        b"from below"
    );
}

#[test]
fn signals_unmount_and_busy_needs_two() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let site = Site::new();
        let record = site.mount();
        kill(record.daemon.pid, signal);
        assert!(wait_gone(record.daemon.pid, PATIENCE), "{signal:?}");
        assert!(!site.is_mounted("mnt"), "{signal:?}");
        assert!(
            site.run_dir().all().expect("records").is_empty(),
            "{signal:?}"
        );
    }
    let site = Site::new();
    let record = site.mount();
    let open = fs::File::open(site.path("mnt/hello")).expect("open");
    kill(record.daemon.pid, Signal::TERM);
    assert!(!wait_gone(record.daemon.pid, Duration::from_millis(200)));
    assert_eq!(
        fs::read(site.path("mnt/sub/inner")).expect("still serves"),
        b"deep"
    );
    kill(record.daemon.pid, Signal::TERM);
    assert!(wait_until(PATIENCE, || !site.is_mounted("mnt")));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut &open, &mut text).expect("read after detaching");
    assert_eq!(text, "from below");
    drop(open);
    assert!(wait_gone(record.daemon.pid, PATIENCE));
}

#[test]
fn a_killed_daemon_can_be_unmounted_and_mounted_anew() {
    let site = Site::new();
    let mnt = site.path("mnt");
    for _ in 0..3 {
        let record = site.mount();
        fs::write(mnt.join("kept"), "data").expect("write");
        let file = fs::File::open(mnt.join("kept")).expect("open");
        file.sync_all().expect("sync");
        kill(record.daemon.pid, Signal::KILL);
        assert!(wait_gone(record.daemon.pid, PATIENCE));
        let error = fs::read(mnt.join("hello")).expect_err("nobody serves");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
        unmount(&site.run_dir(), &mnt, How::default()).expect("unmount though busy");
        assert!(!site.is_mounted("mnt"));
        assert!(site.run_dir().all().expect("records").is_empty());
    }
    site.mount();
    assert_eq!(fs::read(mnt.join("kept")).expect("read"), b"data");
}

#[test]
fn a_busy_mount_names_who_holds_it() {
    let site = Site::new();
    let record = site.mount();
    let mut sleeper = std::process::Command::new("sleep")
        .arg("60")
        .current_dir(site.path("mnt/sub"))
        .spawn()
        .expect("sleep");
    let error = unmount(&site.run_dir(), Path::new(&record.id), How::default()).expect_err("busy");
    let text = error.to_string();
    assert_eq!(error.exit_code(), 75, "{text}");
    assert!(
        text.contains(&format!("sleep (pid {}, working directory)", sleeper.id())),
        "{text}"
    );
    let lazy = How {
        lazy: true,
        ..How::default()
    };
    unmount(&site.run_dir(), Path::new(&record.id), lazy).expect("lazily");
    assert!(!site.is_mounted("mnt"));
    sleeper.kill().expect("kill");
    sleeper.wait().expect("wait");
    assert!(wait_gone(record.daemon.pid, PATIENCE));
}

/// A container started meanwhile has a copy of every mount: the unmount cannot reach it, and the upper is still in use.
#[test]
fn a_copy_in_another_mount_namespace_is_named() {
    let site = Site::new();
    let record = site.mount();
    let ready = site.path("ready");
    let mut other = std::process::Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c"])
        .arg(format!("touch {}; exec sleep 60", ready.display()))
        .spawn()
        .expect("unshare");
    assert!(wait_until(PATIENCE, || ready.exists()));
    let how = How {
        timeout: Duration::from_millis(300),
        ..How::default()
    };
    let error = unmount(&site.run_dir(), &site.path("mnt"), how).expect_err("still there");
    assert!(!site.is_mounted("mnt"));
    let text = error.to_string();
    assert_eq!(error.exit_code(), 75, "{text}");
    let named = format!(
        "(pid {}, in a mount namespace with a copy of it)",
        other.id()
    );
    assert!(text.contains(&named), "{text}");
    other.kill().expect("kill");
    other.wait().expect("wait");
    assert!(wait_gone(record.daemon.pid, PATIENCE));
}

/// The caller reads its child's stderr to the end; a daemon that kept it open would hang the caller.
#[test]
fn the_daemon_gives_up_what_it_inherited() {
    let site = Site::new();
    let (reader, writer) = std::io::pipe().expect("pipe");
    rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty()).expect("inheritable");
    let output = site.try_mount(&site.task());
    assert!(output.status.success(), "{}", complaint(&output));
    drop(writer);
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut &reader, &mut text).expect("end of the inherited pipe");

    let record = site.record().expect("record");
    let fds = format!("/proc/{}/fd", record.daemon.pid);
    let target = |fd: &str| fs::read_link(Path::new(&fds).join(fd)).expect(fd);
    assert_eq!(target("0"), Path::new("/dev/null"));
    assert_eq!(target("1"), Path::new("/dev/null"));
    assert!(
        target("2").ends_with(format!("run/log/{}.log", record.id)),
        "{:?}",
        target("2")
    );
    for entry in fs::read_dir(&fds).expect("fds") {
        let target: PathBuf = fs::read_link(entry.expect("fd").path()).expect("target");
        assert_ne!(
            target,
            site.path("mnt"),
            "the covered directory is held open"
        );
        let text = target.to_string_lossy().into_owned();
        assert!(
            !text.starts_with("pipe:") && !text.starts_with("socket:"),
            "{text}"
        );
    }
    let stat = fs::read_to_string(format!("/proc/{}/stat", record.daemon.pid)).expect("stat");
    let parent = stat
        .rsplit(") ")
        .next()
        .and_then(|t| t.split(' ').nth(1))
        .expect("parent");
    assert_ne!(parent, std::process::id().to_string(), "nobody's child");
    let cwd = fs::read_link(format!("/proc/{}/cwd", record.daemon.pid)).expect("cwd");
    assert_eq!(cwd, Path::new("/"));
    let log = record.log.expect("a log").0;
    unmount(&site.run_dir(), &site.path("mnt"), How::default()).expect("unmount");
    assert!(!log.exists(), "an empty log was left: {}", log.display());
}

#[test]
fn the_foreground_serves_until_unmounted() {
    let site = Site::new();
    let mut task = site.task();
    task.words = vec!["--foreground"];
    let mut server = site
        .command(&task)
        .stdout(Stdio::null())
        .spawn()
        .expect("spawn");
    assert!(wait_until(PATIENCE, || site.record().is_some()));
    assert_eq!(site.record().expect("record").daemon.pid, server.id());
    assert_eq!(
        fs::read(site.path("mnt/hello")).expect("read"),
        b"from below"
    );
    rustix::mount::unmount(site.path("mnt"), UnmountFlags::empty()).expect("umount");
    assert!(server.wait().expect("wait").success());
    assert!(site.run_dir().all().expect("records").is_empty());
}

/// The limits of the shell a mount was made in are not those of the mount's users.
#[test]
fn a_limit_on_file_sizes_does_not_end_the_daemon() {
    const LIMIT: u64 = 64 << 10;
    for hard in [false, true] {
        let site = Site::new();
        let command = site.command(&site.task());
        let limit = if hard { "" } else { "-S" };
        let mounted = Command::new("sh")
            .args(["-c", &format!("ulimit {limit} -f 128; exec \"$0\" \"$@\"")])
            .arg(command.get_program())
            .args(command.get_args())
            .envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))))
            .output()
            .expect("run");
        assert!(mounted.status.success(), "{}", complaint(&mounted));
        let big = fs::File::create(site.path("mnt/big")).expect("create");
        let written = std::os::unix::fs::FileExt::write_all_at(&big, b"far out", LIMIT * 4)
            .and_then(|()| big.sync_all());
        assert_eq!(written.is_err(), hard, "{written:?}");
        fs::write(site.path("mnt/small"), "x").expect("the daemon lives");
    }
}

#[test]
fn found_by_any_path_that_leads_there() {
    let site = Site::new();
    let record = site.mount();
    std::os::unix::fs::symlink("mnt", site.path("link")).expect("symlink");
    let run = site.run_dir();
    let find = |p: &Path| ovl::mount::find(&run, p).expect("find").map(|r| r.id);
    for path in [
        site.path("mnt"),
        site.path("link"),
        site.path("mnt/sub/.."),
        site.path("lower/../mnt/."),
        record.id.clone().into(),
    ] {
        assert_eq!(find(&path), Some(record.id.clone()), "{}", path.display());
    }
    assert_eq!(find(&site.path("mnt/sub")), None);
    assert_eq!(find(&site.path("lower")), None);
    let meta = fs::metadata(site.path("mnt")).expect("stat");
    assert_eq!(
        (libc::major(meta.dev()), libc::minor(meta.dev())),
        (record.mount.major, record.mount.minor)
    );
    unmount(&run, &site.path("link"), How::default()).expect("through a symlink");
}

#[test]
fn refusals_say_why_and_leave_nothing() {
    let site = Site::new();
    fs::write(site.path("file"), "").expect("write");
    fs::create_dir(site.path("mnt2")).expect("mkdir");
    fs::create_dir_all(site.path("other/x")).expect("mkdir");
    site.mount();
    let lower = |l: PathBuf| move |t: &mut mount_support::Task| t.lower = l.into();
    let upper = |u: PathBuf| move |t: &mut mount_support::Task| t.upper = Some(u);
    let at = |m: PathBuf| move |t: &mut mount_support::Task| t.mount_point = m;
    type Change = Box<dyn FnOnce(&mut mount_support::Task)>;
    let table: Vec<(&str, Change, i32, &str)> = vec![
        ("same mount point", Box::new(|_| ()), 75, "already a mount"),
        ("same upper", Box::new(at(site.path("mnt2"))), 75, "in use"),
        (
            "no mount point",
            Box::new(at(site.path("none"))),
            4,
            "does not exist",
        ),
        (
            "file as mount point",
            Box::new(at(site.path("file"))),
            2,
            "not a directory",
        ),
        (
            "no lower",
            Box::new(lower(site.path("none"))),
            4,
            "does not exist",
        ),
        (
            "file as lower",
            Box::new(lower(site.path("file"))),
            2,
            "not a directory",
        ),
        (
            "no image",
            Box::new(|t| t.lower = "no-such:image".into()),
            4,
            "no-such:image",
        ),
        (
            "upper in lower",
            Box::new(upper(site.path("lower/sub"))),
            2,
            "inside",
        ),
        (
            "lower in upper",
            Box::new(lower(site.path("other/x"))),
            2,
            "inside",
        ),
        (
            "unwritable upper",
            Box::new(upper("/proc/self/new".into())),
            1,
            "cannot be written",
        ),
    ];
    for (name, change, code, words) in table {
        let mut task = site.task();
        if !matches!(name, "same mount point" | "same upper") {
            task.mount_point = site.path("mnt2");
            task.upper = Some(site.path("other"));
        }
        change(&mut task);
        let output = site.try_mount(&task);
        let said = complaint(&output);
        assert_eq!(output.status.code(), Some(code), "{name}: {said}");
        assert!(
            said.contains(words) && !said.contains('\n'),
            "{name}: {said}"
        );
        assert!(!site.is_mounted("mnt2"), "{name}: left mounted");
        assert_eq!(
            site.run_dir().all().expect("records").len(),
            1,
            "{name}: left a record"
        );
    }
    let logs = fs::read_dir(site.path("run/log")).expect("logs").count();
    assert_eq!(logs, 1, "logs of refused mounts were left");
    let nothing = unmount(&site.run_dir(), &site.path("mnt2"), How::default());
    assert_eq!(nothing.expect_err("not mounted").exit_code(), 4);
    let nowhere = unmount(&site.run_dir(), &site.path("none"), How::default());
    assert_eq!(nowhere.expect_err("no such path").exit_code(), 4);
}
