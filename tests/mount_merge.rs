//! `--merge kernel`: the kernel's overlayfs over what ovl serves, told beside ovl's own merge. What one writes, the other
//! and `diff` and `commit` understand; and mounts end, break and are refused in good order.

mod common;
mod real_support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Sandbox, command, daemon_of, require_mounting};
use real_support::{Tree, assert_same, chroot, tree};
use serde_json::Value;

const EPOCH: &str = "1700000000";

/// One change of every kind, in the directory given as `$1`.
const CHANGES: &str = r#"
    cd "$1"
    echo more >> etc/passwd
    rm etc/motd
    mkdir -p new/deep && echo text > new/deep/file && ln new/deep/file new/other
    ln -s /etc/passwd new/link && mkfifo new/pipe && mknod new/null c 1 3
    setfattr -n user.note -v seen new/deep/file
    mv usr/share usr/moved
    rm -r tmp && mkdir tmp && chmod 1777 tmp && echo opaque > tmp/kept
    rm etc/group && mkdir etc/group
    echo long > new/gone && rm new/gone
    chmod 600 etc/shadow 2> /dev/null || chmod 600 etc/passwd
    mkdir etc/empty && rmdir etc/empty
"#;

fn shell(script: &str, at: &Path) {
    command(
        "sh",
        [
            "-euc".as_ref(),
            script.as_ref(),
            "sh".as_ref(),
            at.as_os_str(),
        ],
    );
}

fn mounts(sandbox: &Sandbox) -> Value {
    serde_json::from_str(&sandbox.run(["mounts", "--format", "json"])).unwrap()
}

fn merge_of(sandbox: &Sandbox) -> String {
    mounts(sandbox)[0]["Merge"].as_str().unwrap().to_owned()
}

fn gone(pid: u32) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    while Path::new(&format!("/proc/{pid}")).exists() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// The store's image with every directory that the changes need.
fn with_image() -> Sandbox {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    sandbox.mkdir("mnt");
    for script in [
        "mkdir -p usr/share/a && echo a > usr/share/a/file",
        "mkdir -p tmp && echo b > tmp/old",
    ] {
        sandbox.run(["mount", "busybox", "base", "mnt"]);
        shell(&format!("cd \"$1\"; {script}"), &sandbox.path("mnt"));
        sandbox.run(["commit", "--replace", "mnt", "busybox"]);
        sandbox.run(["umount", "mnt"]);
        fs::remove_dir_all(sandbox.path("base")).unwrap();
    }
    sandbox
}

/// Gives all that changed one time, so that what is committed depends on nothing else.
fn same_times(sandbox: &Sandbox, mnt: &Path) -> String {
    let difference = sandbox.run(["diff", mnt.to_str().unwrap()]);
    for line in difference.lines().filter(|line| !line.starts_with('D')) {
        let path = mnt.join(line[2..].trim_start_matches('/'));
        command(
            "touch",
            [
                "-h".as_ref(),
                "-d".as_ref(),
                format!("@{EPOCH}").as_ref(),
                path.as_os_str(),
            ],
        );
    }
    difference
}

/// Layers say nothing of the root; its time moved.
fn without_root_time(mut tree: Tree) -> Tree {
    tree.get_mut(Path::new("")).unwrap().mtime = (0, 0);
    tree
}

#[test]
fn both_merges_give_the_same_difference_and_the_same_image() {
    let sandbox = with_image();
    let mnt = sandbox.path("mnt");
    let mut told = Vec::new();
    for merge in ["fuse", "kernel"] {
        let upper = format!("upper-{merge}");
        sandbox.run(["mount", "--merge", merge, "busybox", &upper, "mnt"]);
        assert_eq!(merge_of(&sandbox), merge);
        shell(CHANGES, &mnt);
        let difference = same_times(&sandbox, &mnt);
        let mut commit = sandbox.ovl(["commit", "mnt", &format!("made-by-{merge}")]);
        let id = commit.env("SOURCE_DATE_EPOCH", EPOCH).assert().success();
        let id = String::from_utf8(id.get_output().stdout.clone()).unwrap();
        let shown = without_root_time(tree(&mnt));
        sandbox.run(["umount", "mnt"]);
        told.push((difference, id, shown));
    }
    let (by_kernel, by_fuse) = (told.pop().unwrap(), told.pop().unwrap());
    for line in [
        "C /etc/passwd",
        "D /etc/motd",
        "A /usr/moved/a/file",
        "D /usr/share",
        "D /tmp/old",
    ] {
        assert!(
            by_fuse.0.lines().any(|l| l == line),
            "no {line} in {}",
            by_fuse.0
        );
    }
    assert_eq!(by_kernel.0, by_fuse.0, "differences");
    assert_same("trees", &by_kernel.2, &by_fuse.2);
    assert_eq!(by_kernel.1, by_fuse.1, "image IDs");
}

/// An upper goes from one to the other and back, each going on where the other ended.
#[test]
fn an_upper_is_handed_to_and_fro() {
    let sandbox = with_image();
    let mnt = sandbox.path("mnt");
    let mut before: Option<Tree> = None;
    for (round, merge) in ["kernel", "fuse", "kernel", "fuse"].into_iter().enumerate() {
        sandbox.run(["mount", "--merge", merge, "busybox", "upper", "mnt"]);
        if let Some(before) = &before {
            assert_same(&format!("round {round}, {merge}"), &tree(&mnt), before);
        }
        let script = format!(
            "cd \"$1\"; mkdir -p etc/d{round} && echo {round} > etc/d{round}/f && echo {round} >> etc/passwd
             [ ! -e etc/motd ] || rm etc/motd
             for d in usr*; do mv $d usr{round}; done; echo {round} > usr{round}/share/a/new{round}
             [ {round} != 2 ] || {{ rm -r etc/d0 && mkdir etc/d0; }}"
        );
        shell(&script, &mnt);
        before = Some(tree(&mnt));
        sandbox.run(["umount", "mnt"]);
    }
    let shown = before.unwrap();
    let paths = [
        "etc/d0",
        "etc/d3/f",
        "usr3/share/a/file",
        "usr3/share/a/new0",
    ];
    for path in paths {
        assert!(shown.contains_key(Path::new(path)), "{path}");
    }
    assert!(
        !shown.contains_key(Path::new("etc/d0/f")) && !shown.contains_key(Path::new("etc/motd"))
    );
}

#[test]
fn host_directories_need_no_process() {
    require_mounting();
    let sandbox = Sandbox::new();
    let mnt = sandbox.mkdir("mnt");
    for dir in ["top", "low/sub"] {
        sandbox.mkdir(dir);
    }
    sandbox.write("top/one", "top");
    sandbox.write("low/two", "low");
    fs::hard_link(sandbox.path("low/two"), sandbox.path("low/sub/again")).unwrap();

    sandbox.run(["mount", "--merge", "kernel", "./top:./low", "upper", "mnt"]);
    let table = sandbox.run(["mounts"]);
    let line = table.lines().nth(1).expect("a mount");
    assert!(line.contains(" kernel ") && line.contains(" - "), "{table}");
    assert_eq!(mounts(&sandbox)[0]["Pid"], Value::Null);
    // Names of one inode stay together, as with our own merge.
    fs::write(mnt.join("two"), "changed").unwrap();
    assert_eq!(fs::read(mnt.join("sub/again")).unwrap(), b"changed");
    fs::rename(mnt.join("sub"), mnt.join("moved")).unwrap();
    let difference = sandbox.run(["diff", "mnt"]);
    assert_eq!(difference, "A /moved\nA /moved/again\nD /sub\nC /two\n");
    sandbox.run(["commit", "mnt", "whole"]);
    let shown = tree(&mnt);

    // The kernel takes no lock that the engine would see.
    sandbox.mkdir("other");
    for merge in ["fuse", "kernel"] {
        let line = sandbox.fail(75, ["mount", "--merge", merge, "dir:low", "upper", "other"]);
        assert!(line.contains("in use by another mount (on "), "{line}");
    }
    let held = fs::File::open(mnt.join("one")).unwrap();
    let line = sandbox.fail(75, ["umount", "mnt"]);
    assert!(
        line.contains(&format!("pid {}", std::process::id())),
        "{line}"
    );
    drop(held);
    sandbox.run(["umount", "mnt"]);
    assert_eq!(mounts(&sandbox), Value::Array(Vec::new()));

    sandbox.run(["mount", "--merge", "fuse", "./top:./low", "upper", "mnt"]);
    assert_same("our own merge", &tree(&mnt), &shown);
    fs::write(mnt.join("moved/again"), "by us").unwrap();
    sandbox.run(["umount", "mnt"]);
    sandbox.run(["mount", "--merge", "kernel", "./top:./low", "upper", "mnt"]);
    assert_eq!(fs::read(mnt.join("two")).unwrap(), b"by us");
    // Unmounted by somebody else: the record is found out.
    command("umount", [&mnt]);
    assert_eq!(mounts(&sandbox), Value::Array(Vec::new()));
    sandbox.run(["mount", "--merge", "fuse", "./top:./low", "upper", "mnt"]);
}

/// In the foreground there is a process all the same, which lives as long as the mount.
#[test]
fn in_the_foreground_a_signal_unmounts() {
    require_mounting();
    for lower in ["dir:low", "busybox"] {
        let sandbox = Sandbox::with_busybox();
        let mnt = sandbox.mkdir("mnt");
        sandbox.mkdir("low");
        for ended_by_signal in [true, false] {
            let mut child = Command::new(env!("CARGO_BIN_EXE_ovl"))
                .args([
                    "mount",
                    "--foreground",
                    "--merge",
                    "kernel",
                    lower,
                    "upper",
                    "mnt",
                ])
                .current_dir(sandbox.path(""))
                .env("OVL_ROOT", sandbox.root())
                .env("OVL_RUN", sandbox.path("run"))
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            let end = Instant::now() + Duration::from_secs(10);
            while mounts(&sandbox).as_array().unwrap().is_empty() {
                assert!(Instant::now() < end, "{lower}: no mount");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(daemon_of(&sandbox), child.id());
            match ended_by_signal {
                true => kill(child.id(), rustix::process::Signal::TERM),
                false => drop(command("umount", [&mnt])),
            }
            assert!(child.wait().unwrap().success(), "{lower}");
            assert!(common::mounts_below(&mnt).is_empty(), "{lower}");
            assert_eq!(mounts(&sandbox), Value::Array(Vec::new()), "{lower}");
        }
    }
}

/// The overlay holds the only way to what the daemon serves: when it goes, also lazily, both go.
#[test]
fn the_daemon_ends_with_the_overlay() {
    let sandbox = with_image();
    let mnt = sandbox.path("mnt");
    let mount = || {
        sandbox.run(["mount", "--merge", "kernel", "busybox", "upper", "mnt"]);
        // Nothing of ours lies anywhere.
        assert_eq!(
            common::mounts_below(&sandbox.path("")),
            std::slice::from_ref(&mnt)
        );
        daemon_of(&sandbox)
    };
    let pid = mount();
    assert_eq!(chroot(&mnt, "cat /etc/motd"), "from the second layer\n");
    command("umount", [&mnt]);
    assert!(gone(pid), "unmounted by somebody");

    let pid = mount();
    let file = fs::File::open(mnt.join("etc/passwd")).unwrap();
    sandbox.run(["umount", "--lazy", "mnt"]);
    assert!(!gone_soon(pid), "it is still in use");
    let text = std::io::read_to_string(&file).expect("still served");
    assert!(text.contains("root"), "{text}");
    drop(file);
    assert!(gone(pid), "the last user is gone");

    let pid = mount();
    sandbox.run(["rmi", "--force", "busybox"]);
    sandbox.run(["gc"]);
    assert_eq!(chroot(&mnt, "cat /etc/motd"), "from the second layer\n");
    kill(pid, rustix::process::Signal::TERM);
    assert!(gone(pid), "told to end");
    assert!(common::mounts_below(&mnt).is_empty());
    let left = fs::read_dir(sandbox.path("run/log")).unwrap().count();
    assert_eq!(left, 0, "logs");
}

fn gone_soon(pid: u32) -> bool {
    std::thread::sleep(Duration::from_millis(200));
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_killed_daemon_is_told_of_and_can_be_unmounted() {
    let sandbox = with_image();
    let mnt = sandbox.path("mnt");
    sandbox.run(["mount", "--merge", "kernel", "busybox", "upper", "mnt"]);
    fs::write(mnt.join("etc/new"), "kept").unwrap();
    fs::write(mnt.join("new"), "kept").unwrap();
    let pid = daemon_of(&sandbox);
    kill(pid, rustix::process::Signal::KILL);
    assert!(gone(pid));
    let error = fs::read(mnt.join("etc/passwd")).expect_err("nobody serves it");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    assert_eq!(fs::read(mnt.join("new")).unwrap(), b"kept");
    let table = sandbox.run(["mounts"]);
    assert!(table.contains(&format!("{pid} (died)")), "{table}");
    assert_eq!(mounts(&sandbox)[0]["Broken"], true);
    // The kernel still has the upper.
    sandbox.mkdir("other");
    let line = sandbox.fail(75, ["mount", "busybox", "upper", "other"]);
    assert!(line.contains("in use by another mount"), "{line}");
    sandbox.run(["umount", "mnt"]);
    assert!(common::mounts_below(&mnt).is_empty());
    assert_eq!(mounts(&sandbox), Value::Array(Vec::new()));
    sandbox.run(["mount", "--merge", "kernel", "busybox", "upper", "mnt"]);
    assert_eq!(fs::read(mnt.join("etc/new")).unwrap(), b"kept");
    assert!(fs::read(mnt.join("etc/passwd")).is_ok());
}

#[test]
fn auto_takes_the_kernel_where_it_can_do_what_is_asked() {
    let sandbox = with_image();
    let mnt = sandbox.path("mnt");
    let table: &[(&[&str], &str)] = &[
        (&[], "kernel"),
        (&["-o", "nosuid,fsname=mine"], "kernel"),
        (&["-o", "metacopy=on"], "kernel"),
        (&["--volatile"], "kernel"),
        (&["-o", "squash_to_root"], "fuse"),
        (&["-o", "uidmapping=0:0:1"], "fuse"),
        (&["-o", "xattr_permissions=2"], "fuse"),
        (&["-o", "ino32_t"], "fuse"),
        (&["-o", "static_nlink"], "fuse"),
        (&["-o", "timeout=1"], "fuse"),
        (&["-o", "noacl"], "fuse"),
    ];
    for (words, merge) in table {
        let mount = |how: &str| {
            let mut args = vec!["mount", "-o", how];
            args.extend(*words);
            args.extend(["busybox", "upper", "mnt"]);
            args.iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        sandbox.run(mount("merge=auto"));
        assert_eq!(merge_of(&sandbox), *merge, "{words:?}");
        sandbox.run(["umount", "mnt"]);
        if *merge == "fuse" {
            let line = sandbox.fail(2, mount("merge=kernel"));
            assert!(line.contains("needs ovl's own merge"), "{line}");
            assert!(common::mounts_below(&mnt).is_empty(), "{words:?}");
        }
        fs::remove_dir_all(sandbox.path("upper")).unwrap();
    }
    // Without an upper there is nothing to merge for.
    sandbox.run([
        "mount",
        "--merge",
        "kernel",
        "--read-only",
        "busybox",
        "mnt",
    ]);
    assert_eq!(merge_of(&sandbox), "fuse");
    assert!(fs::write(mnt.join("x"), "").is_err());
}

/// What the kernel would show wrongly, it is not given.
#[test]
fn an_upper_that_only_the_engine_reads_is_refused() {
    let sandbox = with_image();
    let mnt = sandbox.path("mnt");
    assert!(fs::metadata(sandbox.root()).is_ok());
    sandbox.run(["mount", "busybox", "upper", "mnt"]);
    let linked = mnt.join("bin/busybox");
    assert!(
        fs::metadata(&linked).unwrap().nlink() > 1,
        "the image has a hard link"
    );
    command("chmod", ["700".as_ref(), linked.as_os_str()]);
    sandbox.run(["umount", "mnt"]);
    let line = sandbox.fail(1, ["mount", "--merge", "kernel", "busybox", "upper", "mnt"]);
    assert!(
        line.contains("hard-linked") && line.contains("--merge fuse"),
        "{line}"
    );
    sandbox.run(["mount", "--merge", "auto", "busybox", "upper", "mnt"]);
    assert_eq!(merge_of(&sandbox), "fuse");
}

/// What was copied up is found again after the kernel forgot all names and inodes it could, in any order.
#[test]
fn changed_files_outlive_the_kernels_memory() {
    let sandbox = with_image();
    let mnt = sandbox.path("mnt");
    let forget = || fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    for _ in 0..2 {
        sandbox.run(["mount", "--merge", "kernel", "busybox", "upper", "mnt"]);
        let held = fs::File::open(mnt.join("etc/hosts")).ok();
        for name in ["etc/passwd", "usr/share/a/file", "bin/busybox"] {
            let path = mnt.join(name);
            let before = fs::read(&path).unwrap();
            forget();
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            std::io::Write::write_all(&mut file, b"more").unwrap();
            forget();
            let after = fs::read(&path).unwrap();
            assert_eq!(after, [&before[..], b"more"].concat(), "{name}");
            command("stat", [&path]);
        }
        forget();
        for entry in walkdir::WalkDir::new(&mnt) {
            entry
                .expect("every name leads to something")
                .metadata()
                .unwrap();
        }
        drop(held);
        sandbox.run(["umount", "mnt"]);
    }
}

/// What an overlay further up keeps in a lower (`overlay.overlay.*`) shows as with our own merge, and is no mark of the
/// kernel's overlay on top of what we serve.
#[test]
fn marks_of_other_overlays_are_data() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    let mnt = sandbox.mkdir("mnt");
    let root = sandbox.mkdir("root");
    for dir in ["opaque", "moved", "plain"] {
        sandbox.mkdir(&format!("root/{dir}"));
        sandbox.write(&format!("root/{dir}/file"), dir);
    }
    sandbox.write("root/opaque/empty", "");
    for (path, name, value) in [
        ("", "trusted.overlay.overlay.opaque", "x"),
        ("opaque", "trusted.overlay.overlay.opaque", "x"),
        ("opaque", "trusted.overlay.overlay.overlay.opaque", "y"),
        ("opaque/empty", "trusted.overlay.overlay.whiteout", "y"),
        ("moved", "trusted.overlay.overlay.redirect", "/plain"),
        ("plain/file", "trusted.overlay.overlay.metacopy", "0"),
        ("plain/file", "user.overlay.overlay.note", "nested"),
        ("plain/file", "user.note", "kept"),
    ] {
        let path = root.join(path);
        let words = ["-n", name, "-v", value].map(std::ffi::OsStr::new);
        command("setfattr", words.into_iter().chain([path.as_os_str()]));
    }
    let show = |merge: &str, options: &str| {
        let words = ["mount", "--merge", merge, "-o", options];
        sandbox.run(
            words
                .into_iter()
                .chain(["dir:root", "busybox", "upper", "mnt"]),
        );
        let shown = without_root_time(tree(&mnt));
        sandbox.run(["umount", "mnt"]);
        fs::remove_dir_all(sandbox.path("upper")).unwrap();
        shown
    };
    let ours = show("fuse", "metacopy=on");
    let nested = &ours[Path::new("moved")].xattrs;
    let shown = nested.get(std::ffi::OsStr::new("trusted.overlay.redirect"));
    assert_eq!(shown.map(Vec::as_slice), Some(&b"/plain"[..]));
    assert_same("by the kernel", &show("kernel", "metacopy=on"), &ours);
    // The new upper's root has what the lowers' has, and there the kernel leaves trusted.* as it is then.
    let [kernel, user] = ["kernel", "fuse"].map(|merge| {
        let mut shown = show(merge, "userxattr");
        shown.remove(Path::new(""));
        shown
    });
    assert_same("by the kernel, in user.*", &kernel, &user);
}

/// In a user namespace overlayfs keeps its marks in `user.overlay.*`; nothing else is needed.
#[test]
fn a_user_namespace_is_enough() {
    let sandbox = with_image();
    let script = r#"
        ovl=$1
        "$ovl" mount --merge kernel busybox upper mnt
        "$ovl" mounts | grep -q ' kernel '
        [ "$(cat mnt/etc/motd)" = 'from the second layer' ]
        echo changed > mnt/etc/motd
        rm -r mnt/tmp
        mkdir mnt/tmp
        rm mnt/etc/group
        ! mv mnt/usr mnt/usr2 2> error; grep -q 'cross-device' error || [ -d mnt/usr2 ]
        "$ovl" diff mnt > difference
        "$ovl" umount mnt
        "$ovl" mount --merge fuse busybox upper mnt
        [ "$(cat mnt/etc/motd)" = changed ]
        [ ! -e mnt/etc/group ]
        [ ! -e mnt/tmp/old ]
        "$ovl" diff mnt | cmp - difference
        mv mnt/bin mnt/bin2
        "$ovl" umount mnt
        # The kernel follows no redirect that a user may have made.
        if "$ovl" mount --merge kernel busybox upper mnt 2> error; then exit 1; fi
        grep -q renamed error
        "$ovl" mount --merge auto busybox upper mnt
        "$ovl" mounts | grep -q ' fuse '
        "$ovl" umount mnt
    "#;
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-euxc",
            script,
            "sh",
        ])
        .arg(env!("CARGO_BIN_EXE_ovl"))
        .current_dir(sandbox.path(""))
        .env("OVL_ROOT", sandbox.root())
        .env("OVL_RUN", sandbox.path("run"))
        .output()
        .expect("unshare of util-linux");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// A record without a process, of another mount namespace, stays as long as that does.
#[test]
fn a_mount_of_another_namespace_is_listed_while_it_is_there() {
    require_mounting();
    let sandbox = Sandbox::new();
    for dir in ["low", "mnt"] {
        sandbox.mkdir(dir);
    }
    let script = "\"$1\" mount --merge kernel dir:low upper mnt && touch ready && exec sleep 60";
    let mut other = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-euc",
            script,
            "sh",
        ])
        .arg(env!("CARGO_BIN_EXE_ovl"))
        .current_dir(sandbox.path(""))
        .env("OVL_ROOT", sandbox.root())
        .env("OVL_RUN", sandbox.path("run"))
        .spawn()
        .expect("unshare of util-linux");
    let end = Instant::now() + Duration::from_secs(10);
    while !sandbox.path("ready").exists() {
        assert!(Instant::now() < end, "no mount");
        std::thread::sleep(Duration::from_millis(5));
    }
    let listed = mounts(&sandbox);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    let id = listed[0]["ID"].as_str().unwrap();
    let line = sandbox.fail(75, ["umount", id]);
    assert!(
        line.contains(&format!("that of pid {}", other.id())),
        "{line}"
    );
    let line = sandbox.fail(75, ["mount", "dir:low", "upper", "mnt"]);
    assert!(line.contains("in use by another mount"), "{line}");
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(mounts(&sandbox), Value::Array(Vec::new()));
    sandbox.run(["mount", "dir:low", "upper", "mnt"]);
}
