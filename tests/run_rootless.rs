//! `ovl run` for a user who is not root: in a user namespace, with ranges of ids and without.

mod common;
mod run_support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use run_support::{RUNTIMES, Room, told};

const USER: &str = "4242";

/// A room whose `ovl` is another user's, who has /dev/fuse and may have a range of ids. All of it in the mount namespace of
/// the room.
struct Rootless {
    room: Room,
    home: PathBuf,
}

impl Rootless {
    fn new(ranges: bool) -> Self {
        let room = Room::new();
        let device = room.path("fuse");
        common::command(
            "mknod",
            [
                "-m".as_ref(),
                "666".as_ref(),
                device.as_os_str(),
                "c".as_ref(),
                "10".as_ref(),
                "229".as_ref(),
            ],
        );
        let passwd = std::fs::read_to_string("/etc/passwd").expect("users");
        let passwd = room.sandbox.write(
            "passwd",
            format!("{passwd}runner:x:{USER}:{USER}::/:/bin/sh\n"),
        );
        let range = room
            .sandbox
            .write("range", if ranges { "runner:500000:65536\n" } else { "" });
        for (ours, theirs) in [
            (&device, "/dev/fuse"),
            (&passwd, "/etc/passwd"),
            (&range, "/etc/subuid"),
            (&range, "/etc/subgid"),
        ] {
            common::command(
                "mount",
                ["--bind".as_ref(), ours.as_os_str(), theirs.as_ref()],
            );
        }
        std::fs::set_permissions(
            room.path(""),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .expect("chmod");
        let home = room.sandbox.mkdir("home");
        // The program may be where this user cannot reach it.
        std::fs::copy(env!("CARGO_BIN_EXE_ovl"), home.join("ovl")).expect("copy");
        common::command("chown", ["-R".as_ref(), USER.as_ref(), home.as_os_str()]);
        let rootless = Self { room, home };
        let archive = rootless.home.join("busybox.tar");
        std::fs::copy(common::busybox(), &archive).expect("copy");
        rootless.run(&["import", archive.to_str().expect("UTF-8")]);
        rootless
    }

    fn output(&self, words: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args([
            "-k",
            "5",
            "60",
            "setpriv",
            "--reuid",
            USER,
            "--regid",
            USER,
            "--clear-groups",
        ]);
        command.arg(self.home.join("ovl")).args(words);
        self.room.prepare(&mut command);
        command
            .current_dir(&self.home)
            .env("OVL_ROOT", self.home.join("store"))
            .env("OVL_RUN", self.home.join("run"));
        command.output().expect("ovl runs")
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{words:?}: {}",
            told(&output)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    #[track_caller]
    fn fail(&self, code: i32, words: &[&str]) -> String {
        let output = self.output(words);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{words:?}: {}",
            told(&output)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn bundles(&self) -> usize {
        std::fs::read_dir(self.home.join("run/containers"))
            .expect("bundles")
            .count()
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        for id in String::from_utf8_lossy(&self.output(&["ps", "-aq"]).stdout).lines() {
            let _ = self.output(&["rm", "-f", id]);
        }
        for path in ["/dev/fuse", "/etc/passwd", "/etc/subuid", "/etc/subgid"] {
            let _ = Command::new("umount").arg(path).status();
        }
    }
}

fn owner(path: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).expect("stat").uid()
}

#[test]
fn with_a_range_of_ids() {
    let user = Rootless::new(true);
    let host = user.home.join("host");
    std::fs::create_dir(&host).expect("mkdir");
    std::fs::write(host.join("file"), "below\n").expect("write");
    common::command("chown", ["-R".as_ref(), USER.as_ref(), host.as_os_str()]);
    // The kernel's overlayfs copies nothing up that belongs to a group without an id here.
    let theirs = user.home.join("theirs");
    std::fs::create_dir(&theirs).expect("mkdir");
    std::fs::write(theirs.join("file"), "below\n").expect("write");
    let both = format!("{USER}:{USER}");
    common::command("chown", ["-R".as_ref(), both.as_ref(), theirs.as_os_str()]);
    for runtime in RUNTIMES {
        for net in ["none", "host"] {
            let script = "id -u; chown 33:44 /etc/motd; stat -c '%u %g' /etc/motd; grep -c : /proc/net/dev > /dev/null";
            let printed = user.run(&[
                "run",
                "--rm",
                "--runtime",
                runtime,
                "--net",
                net,
                "busybox",
                "sh",
                "-c",
                script,
            ]);
            assert_eq!(printed, "0\n33 44\n", "{net}");
        }
        user.fail(
            7,
            &[
                "run",
                "--rm",
                "--runtime",
                runtime,
                "-u",
                "nobody",
                "busybox",
                "sh",
                "-c",
                "exit 7",
            ],
        );
        user.fail(
            127,
            &[
                "run",
                "--rm",
                "--runtime",
                runtime,
                "busybox",
                "no-such-command",
            ],
        );

        let script = "echo x > /tmp/new; sleep 100";
        user.run(&[
            "run",
            "-d",
            "--name",
            runtime,
            "--runtime",
            runtime,
            "-u",
            "nobody",
            "busybox",
            "sh",
            "-c",
            script,
        ]);
        assert!(user.run(&["ps"]).contains("Up "));
        assert_eq!(
            user.run(&[
                "exec",
                runtime,
                "sh",
                "-c",
                "id -u; sleep 0.1; cat /tmp/new"
            ]),
            "65534\nx\n"
        );
        assert_eq!(
            user.run(&[
                "exec",
                "-u",
                "root",
                runtime,
                "sh",
                "-c",
                "mkdir -m 700 /private; echo y > /private/file; chown 5 /private; id -u"
            ]),
            "0\n"
        );
        user.fail(3, &["exec", runtime, "sh", "-c", "exit 3"]);
        let changed = user.run(&["diff", runtime]);
        assert!(
            changed.contains("A /private/file\n") && changed.contains("A /tmp/new\n"),
            "{changed}"
        );
        user.fail(3, &["rm", runtime]);
        user.run(&["commit", runtime, &format!("changed:{runtime}")]);
        let printed = user.run(&[
            "run",
            "--name",
            "second",
            "--runtime",
            runtime,
            &format!("changed:{runtime}"),
            "sh",
            "-c",
            "stat -c %u /private /tmp/new; rm -r /private; cat /tmp/new",
        ]);
        assert_eq!(printed, "5\n65534\nx\n");
        assert_eq!(user.run(&["diff", "second"]), "D /private\n");
        user.run(&["rm", "-f", runtime, "second"]);

        for merge in ["kernel", "auto"] {
            let script = "chown 33:44 /etc/motd; stat -c '%u %g' /etc/motd; echo z > /data/file; cat /data/file; echo x > /new; \
                          grep -c ' overlay ' /proc/mounts";
            let words = [
                "run",
                "--name",
                "merged",
                "--merge",
                merge,
                "--runtime",
                runtime,
            ];
            let more = ["-v", "./theirs:/data:O", "busybox", "sh", "-c", script];
            let printed = user.run(&[&words[..], &more].concat());
            assert_eq!(printed, "33 44\nz\n2\n", "{merge}: root and volume");
            let changed = user.run(&["diff", "merged"]);
            let both = changed.contains("C /etc/motd\n") && changed.contains("A /new\n");
            assert!(both && !changed.contains("data/"), "{merge}: {changed}");
            user.run(&["rm", "merged"]);
        }
        for (merge, expected) in [("kernel", "0 65534 below\n"), ("fuse", "0 65534 z\n")] {
            let script =
                "echo z > /data/file; echo $(stat -c '%u %g' /data/file) $(cat /data/file)";
            let words = ["run", "--rm", "--merge", merge, "--runtime", runtime];
            let more = ["-v", "./host:/data:O", "busybox", "sh", "-c", script];
            let printed = user.run(&[&words[..], &more].concat());
            assert_eq!(printed, expected, "{merge}: a group without an id here");
        }

        // What is in the overlay belongs to the user's ids.
        let output = user.output(&[
            "run",
            "--rm",
            "--keep",
            "--runtime",
            runtime,
            "-v",
            "./host:/data:O",
            "busybox",
            "sh",
            "-c",
            "echo above > /data/file; echo z > /data/new; chown 9 /data/new",
        ]);
        let said = String::from_utf8_lossy(&output.stderr);
        let kept = said
            .lines()
            .find_map(|line| line.strip_prefix("ovl: kept: "))
            .expect(&said);
        assert_eq!(owner(&Path::new(kept).join("new")), 500_008);
        assert_eq!(owner(&Path::new(kept).join("file")).to_string(), USER);
        assert_eq!(
            std::fs::read_to_string(host.join("file")).expect("read"),
            "below\n"
        );
    }
    assert_eq!(user.run(&["ps", "-aq"]), "");
    assert_eq!(user.bundles(), 0);
}

#[test]
fn without_a_range_there_is_one_user() {
    let user = Rootless::new(false);
    for runtime in RUNTIMES {
        let script = "id -u; echo x > /root/new; cat /proc/self/uid_map | wc -l";
        let printed = user.run(&[
            "run",
            "--name",
            runtime,
            "--runtime",
            runtime,
            "busybox",
            "sh",
            "-c",
            script,
        ]);
        assert_eq!(printed, "0\n1\n");
        assert_eq!(user.run(&["diff", runtime]), "C /root\nA /root/new\n");
        user.run(&["rm", runtime]);
        let said = user.fail(
            125,
            &[
                "run",
                "--rm",
                "--runtime",
                runtime,
                "-u",
                "nobody",
                "busybox",
                "true",
            ],
        );
        assert!(said.contains("/etc/subuid"), "{said}");
    }
    assert_eq!(user.bundles(), 0);
}
