//! The program against itself: several processes at work on one store, and processes that are killed at any moment.
//!
//! `OVL_KILL_ROUNDS` sets how many are killed.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Sandbox, busybox, require_mounting};
use ovl::image::check_documents;
use ovl::store::{FsckOptions, FsckReport, Store};

type Names = BTreeMap<String, String>;

fn fsck(root: &Path, fast: bool) -> FsckReport {
    let store = Store::open_existing(root).unwrap().expect("a store");
    let options = FsckOptions {
        fast,
        documents: Some(&check_documents),
        ..FsckOptions::default()
    };
    store.fsck(&options, &|_| {}).unwrap()
}

fn names(root: &Path) -> Names {
    let mut names = Names::new();
    if let Some(store) = Store::open_existing(root).unwrap() {
        for image in store.images().unwrap() {
            for name in image.names {
                names.insert(name, image.manifest.to_string());
            }
        }
    }
    names
}

/// Numbers that are the same every time (Knuth's MMIX constants).
struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

/// A tar of a root file system with so many bytes like no others.
fn rootfs(sandbox: &Sandbox, name: &str, bytes: usize) -> PathBuf {
    let mut rng = Rng(name.len() as u64 + bytes as u64);
    let dir = sandbox.mkdir(&format!("{name}.d/etc"));
    let noise: Vec<u8> = (0..bytes).map(|_| rng.below(256) as u8).collect();
    std::fs::write(dir.join(name), noise).unwrap();
    let tar = sandbox.path(format!("{name}.tar"));
    let words =
        [tar.as_path(), dir.parent().unwrap()].map(|path| path.to_str().unwrap().to_owned());
    common::command(
        "tar",
        ["--sort=name", "-cf", &words[0], "-C", &words[1], "."],
    );
    tar
}

/// Whatever a command was doing when it was killed, the store is as before or as after it, and sound.
#[test]
fn killed_at_any_moment() {
    let rounds: u64 = std::env::var("OVL_KILL_ROUNDS").map_or(40, |n| n.parse().expect("a number"));
    let sandbox = Sandbox::new();
    let root = sandbox.root();
    let tars = [
        rootfs(&sandbox, "a", 3_000_000),
        rootfs(&sandbox, "bb", 600_000),
    ];
    let tars: Vec<&str> = tars.iter().map(|path| path.to_str().unwrap()).collect();
    let busybox = busybox();
    let busybox = busybox.to_str().unwrap();
    let commands: [&[&str]; 9] = [
        &["import", busybox],
        &["import", tars[0], "--tag", "a:1"],
        &["import", tars[1], "--tag", "bb:1"],
        &["tag", "busybox", "copy:1"],
        &["rmi", "--force", "a:1"],
        &["rmi", "--force", "busybox", "copy:1"],
        &["gc"],
        &["fsck", "--repair"],
        &["rmi", "--force", "bb:1"],
    ];
    sandbox.run(["import", busybox]);
    let mut rng = Rng(7);
    let (mut killed, mut ended) = (0, 0);
    // How long each command takes is this machine's matter: one lap shows it, in microseconds; and one that had ended all
    // the same is killed sooner next time.
    let mut patience = commands.map(|args| {
        let start = Instant::now();
        sandbox.run(args);
        start.elapsed().as_micros() as u64
    });
    sandbox.run(["import", busybox]);
    for round in 0..rounds {
        let which = rng.below(commands.len() as u64) as usize;
        let args = commands[which];
        let before = names(&root);
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("ovl"));
        command
            .args(args)
            .env("OVL_ROOT", &root)
            .env("OVL_RUN", sandbox.path("run"));
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(rng.below(patience[which])));
        child.kill().unwrap();
        if child.wait().unwrap().code().is_some() {
            ended += 1;
            patience[which] = (patience[which] * 2 / 3).max(1_500);
        } else {
            killed += 1;
            patience[which] = (patience[which] * 5 / 4).min(60_000);
        }
        let now = names(&root);
        let told = format!("round {round}, {args:?}: {before:?} became {now:?}");
        // No command takes or gives more than the names it was told; nothing else may change.
        for (name, image) in &before {
            let mentioned = args.iter().any(|arg| {
                name.ends_with(&format!("/{arg}")) || name.ends_with(&format!("/{arg}:latest"))
            });
            assert!(
                now.get(name) == Some(image) || (args[0] != "import" && mentioned),
                "{told}"
            );
        }
        for name in now.keys() {
            let given = before.contains_key(name)
                || match args {
                    ["import", path, ..] if *path == busybox => name.ends_with("busybox:latest"),
                    ["import", _, _, tag] => name.ends_with(tag),
                    ["tag", ..] => name.ends_with("copy:1"),
                    _ => false,
                };
            assert!(given, "{told}");
        }
        let report = fsck(&root, round % 10 != 0);
        assert_eq!(report.problems, [], "{told}");
    }
    println!("{killed} killed, {ended} had ended before");
    assert!(
        killed * 4 > rounds,
        "only {killed} of {rounds} were killed in time"
    );
    sandbox.run(["gc"]);
    for image in [busybox, tars[0], tars[1]] {
        sandbox.run(["import", image, "--tag", "again:1", "--replace"]);
    }
    assert_eq!(fsck(&root, false).problems, []);
}

/// Everything at once, for a while: nobody fails but for a reason that is told, and the store is sound in the end.
#[test]
fn everything_at_once() {
    require_mounting();
    let sandbox = Sandbox::new();
    let tar = rootfs(&sandbox, "a", 2_000_000);
    let (tar, busybox) = (tar.to_str().unwrap().to_owned(), busybox());
    let busybox = busybox.to_str().unwrap();
    sandbox.run(["import", busybox]);
    sandbox.run(["tag", "busybox", "kept:1"]);
    let jobs: [&[&[&str]]; 5] = [
        &[
            &["import", &tar, "--tag", "a:1", "--replace"],
            &["rmi", "--force", "a:1"],
        ],
        &[
            &["import", busybox, "--tag", "b:1", "--replace"],
            &["tag", "b:1", "c:1"],
            &["untag", "c:1"],
        ],
        &[&["gc"], &["df"], &["gc", "--dry-run"]],
        &[&["fsck", "--fast"], &["fsck"], &["images"]],
        &[&["mount"], &["umount"]],
    ];
    std::thread::scope(|scope| {
        for (number, job) in jobs.iter().enumerate() {
            let sandbox = &sandbox;
            scope.spawn(move || {
                for _ in 0..4 {
                    for args in *job {
                        at_once(sandbox, number, args);
                    }
                }
            });
        }
    });
    assert!(
        names(&sandbox.root())
            .keys()
            .any(|name| name.ends_with("kept:1"))
    );
    assert_eq!(fsck(&sandbox.root(), false).problems, []);
    sandbox.run(["gc"]);
    assert_eq!(fsck(&sandbox.root(), false).problems, []);
}

fn at_once(sandbox: &Sandbox, number: usize, args: &[&str]) {
    let [upper, mnt] = ["upper", "mnt"].map(|name| sandbox.mkdir(&format!("{name}{number}")));
    let words: Vec<&str> = match args {
        ["mount"] => vec![
            "mount",
            "kept:1",
            upper.to_str().unwrap(),
            mnt.to_str().unwrap(),
        ],
        ["umount"] => {
            let busybox = std::fs::read(mnt.join("bin/busybox"));
            assert!(
                busybox.is_ok_and(|bytes| bytes.len() > 100_000),
                "a mount reads on"
            );
            vec!["umount", mnt.to_str().unwrap()]
        }
        args => args.to_vec(),
    };
    let output = sandbox.ovl(&words).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    // 75: gc beside an import. 3 and 4: another took the name away or gave it.
    let allowed: &[i32] = match args[0] {
        "gc" => &[0, 75],
        "rmi" | "tag" | "untag" => &[0, 3, 4],
        _ => &[0],
    };
    assert!(
        code.is_some_and(|code| allowed.contains(&code)),
        "{words:?}: {code:?}: {stderr}"
    );
}

/// Waiting has an end, and then it is told who was in the way, with what, and for how long.
#[test]
fn a_busy_store_says_who_holds_it() {
    const HOLD: &str = "OVL_TEST_HOLD";
    if let Some(path) = std::env::var_os(HOLD) {
        let db = rusqlite::Connection::open(path).unwrap();
        db.execute_batch("BEGIN IMMEDIATE").unwrap();
        println!("held");
        // Until it is killed.
        std::io::Read::read(&mut std::io::stdin(), &mut [0]).unwrap();
        return;
    }
    let sandbox = Sandbox::with_busybox();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_busy_store_says_who_holds_it", "--nocapture"])
        .env(HOLD, sandbox.root().join("store.db"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(holder.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("held") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut out, &mut line).unwrap() > 0);
    }
    for args in [&["tag", "busybox", "x:1"][..], &["gc"], &["rmi", "busybox"]] {
        let output = sandbox
            .ovl(args)
            .env("OVL_BUSY_SECONDS", "1")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{args:?}: {stderr}");
        let who = format!("process {}: ", holder.id());
        assert!(
            stderr.contains("was busy for 1 s")
                && stderr.contains(&who)
                && stderr.contains("running for"),
            "{args:?}: {stderr}"
        );
    }
    // Readers do not wait.
    sandbox.run(["images"]);
    sandbox.run(["fsck"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    sandbox.run(["tag", "busybox", "x:1"]);
}

/// What only reads works on a store that cannot be written to; what writes says why it does not.
#[test]
fn a_store_on_a_read_only_file_system() {
    require_mounting();
    const ROLE: &str = "OVL_TEST_READ_ONLY";
    if std::env::var_os(ROLE).is_none() {
        let status = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "a_store_on_a_read_only_file_system",
                "--nocapture",
            ])
            .env(ROLE, "1")
            .status()
            .expect("unshare(1) of util-linux");
        assert!(status.success());
        return;
    }
    let sandbox = Sandbox::with_busybox();
    let before = sandbox.run(["images"]);
    let root = sandbox.root();
    let root = root.to_str().unwrap();
    common::command("mount", ["--bind", root, root]);
    common::command("mount", ["-o", "remount,bind,ro", root]);
    assert_eq!(sandbox.run(["images"]), before);
    sandbox.run(["inspect", "busybox"]);
    sandbox.run(["fsck"]);
    sandbox.run(["df"]);
    sandbox.run([
        "export",
        "busybox",
        sandbox.path("out.tar").to_str().unwrap(),
    ]);
    let [upper, mnt] = ["upper", "mnt"].map(|name| sandbox.mkdir(name));
    sandbox.run([
        "mount",
        "busybox",
        upper.to_str().unwrap(),
        mnt.to_str().unwrap(),
    ]);
    assert!(std::fs::read(mnt.join("bin/busybox")).unwrap().len() > 100_000);
    sandbox.run(["umount", mnt.to_str().unwrap()]);
    for args in [&["tag", "busybox", "x:1"][..], &["gc"], &["rmi", "busybox"]] {
        let said = sandbox.fail(1, args);
        assert!(said.contains("Read-only file system"), "{said}");
    }
}
