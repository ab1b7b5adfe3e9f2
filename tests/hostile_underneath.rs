//! T34: lower, upper and store change under a live mount: swapped for symlinks, moved, removed, replaced. What comes of it is an
//! errno for what is concerned; nothing outside is read or written, and the mount lives and ends like any other.

mod common;
mod engine_support;
mod image_support;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Sandbox, require_mounting};
use engine_support::{Bench, ROOT};
use image_support::{RawTar, docker_archive};
use ovl::overlay::{NodeId, RenameFlags};
use rustix::fs::{CWD, RenameFlags as Exchange};
use rustix::io::Errno;

/// Rounds of each race.
const ROUNDS: u64 = 10_000;

/// Swaps `one` and `two`, over and over, while `act` runs.
fn swapping(one: &Path, two: &Path, act: impl FnOnce(&AtomicU64)) {
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, one, CWD, two, Exchange::EXCHANGE).expect("a swap");
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&swaps)));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
}

/// What a racing request may be told. EIO and the like would be a bug's.
fn is_told(errno: Errno) -> bool {
    [
        Errno::NOENT,
        Errno::STALE,
        Errno::NOTDIR,
        Errno::LOOP,
        Errno::XDEV,
        Errno::EXIST,
        Errno::INVAL,
    ]
    .contains(&errno)
}

#[test]
fn t34_a_directory_of_a_lower_swapped_for_a_symlink() {
    let mut b = Bench::new(|one, _| {
        let outside = one.parent().unwrap().join("outside");
        fs::create_dir_all(outside.join("deep")).unwrap();
        fs::create_dir_all(one.join("d/deep")).unwrap();
        for (dir, text) in [(&outside, "outside"), (&one.join("d"), "inside")] {
            fs::write(dir.join("f"), text).unwrap();
            fs::write(dir.join("deep/f"), text).unwrap();
        }
        std::os::unix::fs::symlink(&outside, one.join("swap")).unwrap();
    });
    let lower = b.tmp.path().join("lower1");
    let (mut read, mut refused) = (0, 0);
    swapping(&lower.join("d"), &lower.join("swap"), |swaps| {
        for round in 0..ROUNDS {
            // A directory that was found once stays the same, by its descriptor.
            if round % 100 == 0 {
                b.remount();
            }
            let path = ["d/f", "d/deep/f"][round as usize % 2];
            let mut buf = [0; 16];
            let mut entry = None;
            let found = b.find(path).and_then(|found| {
                let node = found.ok_or(Errno::NOENT)?.node;
                entry = Some(node);
                b.overlay.read(node, 0, &mut buf)
            });
            match found {
                Ok(length) => {
                    assert_eq!(&buf[..length], b"inside", "round {round}");
                    read += 1;
                }
                Err(e) => {
                    assert!(is_told(e), "round {round}: {e}");
                    refused += 1;
                }
            }
            if let Ok(Some(dir)) = b.find("d") {
                let listed = b.overlay.read_dir(dir.node, 0, true, &mut |_| true);
                assert!(listed.is_ok() || listed.is_err_and(is_told), "{listed:?}");
            }
            // Forgotten, so that the next round looks again.
            if let Some(node) = entry {
                b.overlay.forget(node, u64::MAX);
            }
        }
        println!(
            "{read} read, {refused} refused, {} swaps",
            swaps.load(Ordering::Relaxed)
        );
    });
    assert!(
        read > 0 && refused > 0,
        "{read} read, {refused} refused: no race"
    );
}

#[test]
fn t34_a_directory_of_the_upper_swapped_for_a_symlink() {
    let b = Bench::new(|one, _| {
        let outside = one.parent().unwrap().join("outside");
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("f"), "outside").unwrap();
        fs::write(outside.join("victim"), "outside").unwrap();
        fs::create_dir(one.join("d")).unwrap();
        for n in 0..200 {
            fs::write(one.join(format!("d/f{n}")), "inside").unwrap();
        }
    });
    b.mkdir("d/made").unwrap();
    let upper = b.tmp.path().join("upper");
    let outside = b.tmp.path().join("outside");
    std::os::unix::fs::symlink(&outside, upper.join("swap")).unwrap();
    // As whoever owns the upper could; the engine is not to follow.
    let dir = b.get("d").node;
    let mut done = 0;
    swapping(&upper.join("d"), &upper.join("swap"), |_| {
        for round in 0..ROUNDS / 5 {
            let name = format!("n{round}");
            let name = OsStr::new(&name);
            let lower = format!("f{}", round % 200);
            let results = [
                b.overlay.create(ROOT, dir, name, 0o100_644, 0).map(|e| {
                    let _ = b.overlay.write(e.node, 0, b"x", false);
                    b.overlay.forget(e.node, 1);
                }),
                b.overlay
                    .rename(dir, name, dir, OsStr::new("last"), RenameFlags::default()),
                b.overlay.unlink(dir, OsStr::new("victim")),
                b.overlay.lookup(dir, OsStr::new(&lower)).and_then(|entry| {
                    let node = entry.ok_or(Errno::NOENT)?.node;
                    b.overlay.write(node, 0, b"I", false).map(drop)
                }),
                b.overlay
                    .mkdir(ROOT, dir, OsStr::new("sub"), 0o755, 0)
                    .map(drop),
                b.overlay.rmdir(dir, OsStr::new("sub")),
            ];
            for (n, result) in results.into_iter().enumerate() {
                match result {
                    Ok(()) => done += 1,
                    Err(e) => assert!(is_told(e) || e == Errno::IO, "round {round}.{n}: {e}"),
                }
            }
        }
    });
    assert!(done > 100, "only {done} changes were made");
    let mut names: Vec<_> = fs::read_dir(&outside)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["f", "victim"]);
    for name in ["f", "victim"] {
        assert_eq!(fs::read(outside.join(name)).unwrap(), b"outside");
    }
    assert!(b.find("d").is_ok());
    assert!(b.overlay.getattr(NodeId::ROOT).is_ok());
}

fn mounted() -> Sandbox {
    require_mounting();
    let sandbox = Sandbox::new();
    for dir in ["lower/d", "upper", "mnt", "outside"] {
        sandbox.mkdir(dir);
    }
    for n in 0..20 {
        sandbox.write(&format!("lower/d/f{n}"), format!("below {n}"));
        sandbox.write(&format!("lower/g{n}"), format!("below {n}"));
    }
    sandbox.run(["mount", "./lower", "./upper", "./mnt"]);
    sandbox
}

/// The mount lives: it answers, nothing was a bug, and it ends in order.
fn assert_lives(sandbox: &Sandbox) {
    let mounts: serde_json::Value =
        serde_json::from_str(&sandbox.run(["mounts", "--format", "json"])).unwrap();
    assert_eq!(mounts[0]["Panics"], 0, "{mounts}");
    assert_eq!(mounts[0]["Broken"], false, "{mounts}");
    sandbox.run(["umount", "mnt"]);
    assert_eq!(sandbox.run(["mounts", "-q"]), "");
}

#[test]
fn t34_the_lower_is_moved_and_removed() {
    let sandbox = mounted();
    let mnt = sandbox.path("mnt");
    assert_eq!(fs::read(mnt.join("d/f0")).unwrap(), b"below 0");
    fs::rename(sandbox.path("lower"), sandbox.path("elsewhere")).unwrap();
    // Another takes its name: it is no layer of this mount.
    sandbox.mkdir("lower/d");
    sandbox.write("lower/d/f1", "forged");
    assert_eq!(fs::read(mnt.join("d/f1")).unwrap(), b"below 1");
    fs::write(mnt.join("d/f2"), "changed").unwrap();
    fs::remove_file(sandbox.path("elsewhere/d/f3")).unwrap();
    fs::remove_dir_all(sandbox.path("elsewhere/d")).unwrap();
    for name in ["d/f3", "d/f4"] {
        let error = fs::read(mnt.join(name))
            .expect_err("it is gone")
            .raw_os_error();
        assert!(
            matches!(error, Some(libc::ENOENT | libc::ESTALE)),
            "{name}: {error:?}"
        );
    }
    assert_eq!(fs::read(mnt.join("g5")).unwrap(), b"below 5");
    assert_eq!(fs::read(mnt.join("d/f2")).unwrap(), b"changed");
    // A file becomes a directory, and the other way round.
    fs::remove_file(sandbox.path("elsewhere/g6")).unwrap();
    sandbox.mkdir("elsewhere/g6");
    let _ = fs::read(mnt.join("g6")).map(|_| panic!("a directory was read"));
    fs::remove_dir_all(sandbox.path("elsewhere")).unwrap();
    let error = fs::read(mnt.join("g7"))
        .expect_err("all is gone")
        .raw_os_error();
    assert!(
        matches!(error, Some(libc::ENOENT | libc::ESTALE)),
        "{error:?}"
    );
    assert_eq!(fs::read(mnt.join("d/f2")).unwrap(), b"changed");
    fs::write(mnt.join("own"), "still writable").unwrap();
    let _ = walkdir::WalkDir::new(&mnt).into_iter().count();
    assert_lives(&sandbox);
    assert_eq!(
        fs::read(sandbox.path("upper/own")).unwrap(),
        b"still writable"
    );
}

/// ext4 gives the numbers of what is removed below a mount to what is made through it next.
#[test]
fn t34_numbers_of_a_removed_lower_are_given_anew() {
    require_mounting();
    let sandbox = Sandbox::new();
    let image = sandbox.write("image", "");
    fs::File::options()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(64 << 20))
        .unwrap();
    let volume = sandbox.mkdir("volume");
    for (program, words, last) in [
        ("mkfs.ext4", vec!["-q"], None),
        ("mount", vec!["-o", "loop"], Some(&volume)),
    ] {
        let mut command = std::process::Command::new(program);
        let status = command.args(words).arg(&image).args(last).status();
        assert!(status.expect("started").success(), "{command:?}");
    }
    let (lower, upper) = (sandbox.mkdir("volume/lower"), sandbox.mkdir("volume/upper"));
    let mnt = sandbox.mkdir("mnt");
    for n in 0..20 {
        fs::write(lower.join(format!("f{n}")), "below").unwrap();
        fs::create_dir(lower.join(format!("d{n}"))).unwrap();
    }
    sandbox.run([
        "mount".as_ref(),
        lower.as_os_str(),
        upper.as_os_str(),
        mnt.as_os_str(),
    ]);
    let numbers = |dir: &Path| -> std::collections::BTreeSet<u64> {
        use std::os::unix::fs::MetadataExt;
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| entry.metadata().unwrap().ino())
            .collect()
    };
    let known = numbers(&lower);
    assert_eq!(numbers(&mnt).len(), 40);
    fs::remove_dir_all(&lower).unwrap();
    // Files come where directories were, and the other way round.
    for n in 0..30 {
        let file = mnt.join(format!("new{n}"));
        fs::write(&file, format!("content {n}")).unwrap();
        fs::create_dir(mnt.join(format!("dir{n}"))).unwrap();
        fs::write(mnt.join(format!("dir{n}/inner")), "inner").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("content {n}"));
    }
    rustix::fs::syncfs(fs::File::open(&mnt).unwrap()).unwrap();
    let again = numbers(&upper).intersection(&known).count();
    assert!(again > 10, "only {again} numbers were given anew");
    for n in 0..30 {
        let own = upper.join(format!("new{n}"));
        assert_eq!(fs::read_to_string(own).unwrap(), format!("content {n}"));
        assert!(upper.join(format!("dir{n}/inner")).is_file());
    }
    sandbox.run(["umount".as_ref(), mnt.as_os_str()]);
}

#[test]
fn t34_the_upper_is_moved_and_removed() {
    let sandbox = mounted();
    let mnt = sandbox.path("mnt");
    fs::write(mnt.join("before"), "x").unwrap();
    fs::rename(sandbox.path("upper"), sandbox.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(sandbox.path("outside"), sandbox.path("upper")).unwrap();
    fs::write(mnt.join("after"), "y").unwrap();
    fs::write(mnt.join("d/f1"), "changed").unwrap();
    assert_eq!(fs::read(sandbox.path("elsewhere/after")).unwrap(), b"y");
    assert_eq!(fs::read_dir(sandbox.path("outside")).unwrap().count(), 0);
    // Somebody takes files and directories away.
    fs::remove_file(sandbox.path("elsewhere/before")).unwrap();
    fs::remove_dir_all(sandbox.path("elsewhere/d")).unwrap();
    // The kernel may have kept the bytes; a new look is told.
    let _ = fs::write(mnt.join("before"), "again");
    let _ = fs::write(mnt.join("d/f3"), "changed");
    let _ = fs::rename(mnt.join("d"), mnt.join("e"));
    fs::write(mnt.join("own"), "still writable").unwrap();
    // And the work directory.
    fs::remove_dir_all(sandbox.path(".upper.ovl-work")).unwrap();
    let copied = fs::write(mnt.join("g1"), "changed");
    assert!(copied.is_err(), "a copy is made in the work directory");
    assert_eq!(fs::read(mnt.join("g2")).unwrap(), b"below 2");
    fs::remove_dir_all(sandbox.path("elsewhere")).unwrap();
    assert!(fs::write(mnt.join("new"), "x").is_err());
    assert_eq!(fs::read(mnt.join("g3")).unwrap(), b"below 3");
    let _ = walkdir::WalkDir::new(&mnt).into_iter().count();
    assert_lives(&sandbox);
    assert_eq!(fs::read_dir(sandbox.path("outside")).unwrap().count(), 0);
    for n in 0..20 {
        let below = fs::read(sandbox.path(format!("lower/g{n}"))).unwrap();
        assert_eq!(below, format!("below {n}").as_bytes());
    }
}

/// A store of one image of 60 files, each full of `word`.
fn fill(sandbox: &Sandbox, word: &str) {
    let layer = (0..60).fold(RawTar::new(), |tar, n| {
        tar.file(
            &format!("f{n}"),
            format!("{word} {n} ").repeat(3000).as_bytes(),
        )
    });
    let archive = sandbox.write("image.tar", docker_archive(&[layer.end()]));
    sandbox.run(["import".as_ref(), archive.as_os_str()]);
}

#[test]
fn t34_the_store_is_replaced_and_removed() {
    require_mounting();
    let sandbox = Sandbox::new();
    fill(&sandbox, "first");
    sandbox.mkdir("mnt");
    let mnt = sandbox.path("mnt");
    sandbox.run(["mount", "localhost/test:1", "./upper", "./mnt"]);
    let read = |n: usize, may_fail: bool| match fs::read(mnt.join(format!("f{n}"))) {
        Ok(bytes) => assert!(
            bytes == format!("first {n} ").repeat(3000).as_bytes(),
            "f{n}"
        ),
        Err(e) => assert!(may_fail && e.raw_os_error() == Some(libc::EIO), "f{n}: {e}"),
    };
    read(0, false);
    // Another store under the same path, with another image under the same name, in rows of the same numbers.
    fs::rename(sandbox.root(), sandbox.path("away")).unwrap();
    fill(&sandbox, "other");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let read = &read;
            scope.spawn(move || (0..40).for_each(|n| read((n + thread * 5) % 40, true)));
        }
    });
    fs::write(mnt.join("f1"), "changed").unwrap();
    // Both stores are deleted.
    for store in [sandbox.root(), sandbox.path("away")] {
        fs::remove_dir_all(store).unwrap();
    }
    for n in 2..60 {
        read(n, true);
    }
    assert_eq!(fs::read(mnt.join("f1")).unwrap(), b"changed");
    fs::write(mnt.join("own"), "still writable").unwrap();
    let _ = walkdir::WalkDir::new(&mnt).into_iter().count();
    assert_lives(&sandbox);
    assert_eq!(
        fs::read(sandbox.path("upper/own")).unwrap(),
        b"still writable"
    );
}

/// The clock was, or will be, elsewhere: what ovl wrote with another time is shown and collected all the same.
#[test]
fn times_of_another_clock() {
    require_mounting();
    for time in [i64::MIN, -1, 1 << 40, i64::MAX] {
        let sandbox = Sandbox::new();
        fill(&sandbox, "x");
        sandbox.mkdir("mnt");
        sandbox.run(["mount", "localhost/test:1", "./upper", "./mnt"]);
        let sql = format!(
            "UPDATE image SET created_s = {time}; UPDATE layer SET created_s = {time}; \
             UPDATE lease SET created_s = {time}; UPDATE inode SET mtime_s = {time}"
        );
        let store = rusqlite::Connection::open(sandbox.root().join("store.db")).unwrap();
        let statements = sql
            .split("; ")
            .filter(|statement| store.execute_batch(statement).is_ok())
            .count();
        assert!(statements >= 3, "{statements} tables have times");
        drop(store);
        let record = fs::read_dir(sandbox.path("run/mounts"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let text = fs::read_to_string(&record).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["started"] = time.into();
        fs::write(&record, json.to_string()).unwrap();
        for verb in [
            &["mounts"][..],
            &["mounts", "--format", "json"],
            &["images"],
            &["images", "--format", "json"],
            &["history", "localhost/test:1"],
            &["inspect", "localhost/test:1"],
            &["tree", "localhost/test:1", "--format", "json"],
            &["df"],
            &["gc"],
            &["fsck"],
        ] {
            let output = sandbox.ovl(verb).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains("panicked"), "{time}: {verb:?}: {said}");
            // A time that no date has may be refused; in words.
            let code = output.status.code();
            assert!(
                matches!(code, Some(0 | 1 | 5)),
                "{time}: {verb:?}: {code:?} {said}"
            );
        }
        // The lease holds whatever its time: gc took nothing of what is mounted.
        let bytes = fs::read(sandbox.path("mnt/f3")).unwrap();
        assert_eq!(bytes.len(), "x 3 ".len() * 3000, "{time}");
        sandbox.run(["umount", "mnt"]);
    }
}
