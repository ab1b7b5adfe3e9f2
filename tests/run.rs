//! `ovl run` with real runtimes: what goes in and out of a container, what stays of it, and who takes it away.

mod common;
mod run_support;

use std::io::{Read, Write};
use std::process::Stdio;

use run_support::{RUNTIMES, Room, eventually, told};
use rustix::process::{Pid, Signal, kill_process};

fn signal(pid: u64, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    kill_process(pid, signal).expect("kill");
}

#[test]
fn streams_and_exit_codes() {
    let room = Room::new();
    for runtime in RUNTIMES {
        let run = |words: &[&'static str]| [&["run", "--rm", "--runtime", runtime], words].concat();
        let output = room.output(&run(&[
            "busybox",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 7",
        ]));
        assert_eq!(output.status.code(), Some(7), "{}", told(&output));
        assert_eq!(output.stdout, b"out\n");
        assert!(String::from_utf8_lossy(&output.stderr).ends_with("err\n"));

        // The caller's stdin only for who asks for it.
        for (words, expected) in [
            (&["-i", "busybox", "cat"][..], "typed"),
            (&["busybox", "cat"], ""),
        ] {
            let mut command = room.command(run(words));
            let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().expect("ovl runs");
            let _ = child.stdin.take().expect("a pipe").write_all(b"typed");
            let output = child.wait_with_output().expect("its end");
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                expected,
                "{words:?}"
            );
        }

        for (code, words) in [
            (
                137,
                &["busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"][..],
            ),
            (126, &["busybox", "/etc/motd"]),
            (126, &["busybox", "/etc"]),
            (127, &["busybox", "no-such-command"]),
            (127, &["busybox", "/no/such/command"]),
            (125, &["no-such-image", "true"]),
            (125, &["--user", "nobody-at-all", "busybox", "true"]),
            (125, &["--no-such-option", "busybox", "true"]),
            (125, &["-v", "name:/data", "busybox", "true"]),
            (125, &["-v", "/no/such/dir:/data", "busybox", "true"]),
        ] {
            let said = room.fail(code, &run(words));
            assert!(code == 137 || said.contains("ovl: "), "{words:?}: {said}");
        }
    }
    room.fail(
        125,
        &["run", "--runtime", "no-such-runtime", "busybox", "true"],
    );
    assert_eq!(
        room.containers(),
        Vec::<serde_json::Value>::new(),
        "--rm, and failed starts"
    );
    room.assert_nothing_runs();
}

/// T29: whatever descriptors the caller had open without asking for their end, the container has three.
#[test]
fn t29_no_descriptor_of_ours_reaches_the_container() {
    let room = Room::new();
    let list = "for i in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 20 30 99; do [ -e /proc/$$/fd/$i ] && echo $i; done; true";
    for runtime in RUNTIMES {
        let script = format!(
            "exec 5</ 7</etc 9>/dev/null; exec \"$@\" run --rm --runtime {runtime} busybox sh -c '{list}'"
        );
        let mut command = std::process::Command::new("bash");
        command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_ovl")]);
        room.prepare(&mut command);
        let output = command.output().expect("bash runs");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "0\n1\n2\n",
            "{}",
            told(&output)
        );

        room.run(&[
            "run",
            "-d",
            "--name",
            runtime,
            "--runtime",
            runtime,
            "busybox",
            "sleep",
            "100",
        ]);
        let listed = room.run(&["exec", runtime, "sh", "-c", list]);
        assert_eq!(listed, "0\n1\n2\n");
        let log = room.run(&["exec", runtime, "sh", "-c", "ls /proc/1/fd"]);
        assert_eq!(log, "0\n1\n2\n", "in the background");
    }
}

#[test]
fn the_configuration_of_the_image_and_of_the_command_line() {
    let room = Room::new();
    room.change(
        "busybox",
        "configured",
        &[
            "ENV GREETING=hello",
            "ENV HOME=/srv/home",
            "WORKDIR /srv/work",
            "USER nobody",
            r#"ENTRYPOINT ["echo", "entry"]"#,
            r#"CMD ["point"]"#,
            "STOPSIGNAL SIGINT",
        ],
    );
    let show = "id -u; id -g; pwd; echo $GREETING $HOME $EXTRA; grep CapEff /proc/self/status";
    for runtime in RUNTIMES {
        let run = |words: &[&str]| room.run_with(runtime, words);
        assert_eq!(run(&["configured"]), "entry point\n");
        assert_eq!(run(&["configured", "words"]), "entry words\n");
        assert_eq!(run(&["--entrypoint", "pwd", "configured"]), "/srv/work\n");
        assert_eq!(
            run(&["--entrypoint", r#"["echo","a b"]"#, "configured", "c"]),
            "a b c\n"
        );
        let shell = ["--entrypoint", "", "configured", "sh", "-c", show];
        assert_eq!(
            run(&shell),
            "65534\n65534\n/srv/work\nhello /srv/home\nCapEff:\t0000000000000000\n"
        );
        let other = [
            "-u",
            "0:7",
            "-w",
            "/new/dir",
            "-e",
            "GREETING=hi",
            "-e",
            "EXTRA=x=y",
        ];
        assert_eq!(
            run(&[&other[..], &shell].concat()),
            "0\n7\n/new/dir\nhi /srv/home x=y\nCapEff:\t00000000800405fb\n"
        );
        // Private namespaces, a loopback device, a name; none of the host's processes.
        assert_eq!(
            run(&[
                "busybox",
                "sh",
                "-c",
                "ls -d /proc/[0-9]* | wc -l; grep -c : /proc/net/dev"
            ])
            .lines()
            .nth(1),
            Some("1")
        );
        assert_eq!(
            run(&["busybox", "sh", "-c", "cat /etc/hosts"])
                .lines()
                .next()
                .map(|l| l.starts_with("127.0.0.1 localhost ")),
            Some(true)
        );
        let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        assert_eq!(
            run(&["--net", "host", "busybox", "cat", "/etc/resolv.conf"]),
            host
        );
        let own_name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
        assert_eq!(
            run(&[
                "--net",
                "host",
                "busybox",
                "cat",
                "/proc/sys/kernel/hostname"
            ]),
            own_name
        );
        room.fail(
            1,
            &[
                "run",
                "--rm",
                "--runtime",
                runtime,
                "--read-only",
                "busybox",
                "touch",
                "/x",
            ],
        );
        // A device made or shipped opens nothing.
        room.fail(
            1,
            &[
                "run",
                "--rm",
                "--runtime",
                runtime,
                "busybox",
                "mknod",
                "/dev/x",
                "b",
                "8",
                "0",
            ],
        );
    }
}

#[test]
fn volumes() {
    let room = Room::new();
    room.sandbox.mkdir("host/sub");
    room.sandbox.write("host/file", "below\n");
    let file = || std::fs::read_to_string(room.path("host/file")).expect("the host's file");
    for runtime in RUNTIMES {
        let run = |words: &[&str]| room.run_with(runtime, words);
        room.sandbox.write("host/file", "below\n");
        room.fail(
            1,
            &[
                "run",
                "--rm",
                "--runtime",
                runtime,
                "-v",
                "./host:/data:ro",
                "busybox",
                "touch",
                "/data/new",
            ],
        );
        let change = [
            "busybox",
            "sh",
            "-c",
            "echo above > /data/file; rmdir /data/sub; cat /data/file",
        ];
        assert_eq!(
            run(&[&["-v", "./host:/data:O"], &change[..]].concat()),
            "above\n"
        );
        assert!(
            file() == "below\n" && room.path("host/sub").is_dir(),
            "an overlay"
        );
        assert!(!room.sandbox.root().join("kept").exists(), "thrown away");

        let mut keep = room.command(
            [
                &[
                    "run",
                    "--rm",
                    "--runtime",
                    runtime,
                    "--keep",
                    "-v",
                    "./host:/data:O",
                ],
                &change[..],
            ]
            .concat(),
        );
        let output = keep.output().expect("ovl runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let kept = said
            .lines()
            .find_map(|line| line.strip_prefix("ovl: kept: "))
            .expect(&said);
        assert_eq!(
            std::fs::read_to_string(format!("{kept}/file")).expect("kept"),
            "above\n"
        );
        assert_eq!(file(), "below\n");
        std::fs::remove_dir_all(room.sandbox.root().join("kept")).expect("rm");

        // A file, a directory, one in the other, a symlink of the image on the way.
        let words = [
            "-v",
            "./host:/data",
            "-v",
            "./host/file:/data/sub/inner",
            "-v",
            "./host/file:/etc/one",
        ];
        let script = "cat /data/sub/inner /etc/one; echo changed > /data/file";
        assert_eq!(
            run(&[&words[..], &["busybox", "sh", "-c", script]].concat()),
            "below\nbelow\n"
        );
        assert_eq!(file(), "changed\n");
        let _ = std::fs::remove_file(room.path("host/sub/inner"));
        for twice in ["./host:/srv/../data", "./host:/data/"] {
            room.fail(
                125,
                &[
                    "run",
                    "--rm",
                    "--runtime",
                    runtime,
                    "-v",
                    "./host:/data",
                    "-v",
                    twice,
                    "busybox",
                    "true",
                ],
            );
        }
    }

    room.change(
        "busybox",
        "with-volume",
        &["VOLUME /etc/old.d", "VOLUME /fresh"],
    );
    for runtime in RUNTIMES {
        let script = "cat /etc/old.d/shown; echo mine > /etc/old.d/shown; echo x > /fresh/x; echo y > /root/y; cat /etc/old.d/shown";
        let printed = room.run(&[
            "run",
            "--name",
            runtime,
            "--runtime",
            runtime,
            "--read-only",
            "-v",
            "./host:/root",
            "with-volume",
            "sh",
            "-c",
            script,
        ]);
        assert_eq!(printed, "from the second layer\nmine\n");
        assert_eq!(
            room.run(&["diff", runtime]),
            "",
            "volumes are not the container's changes"
        );
    }
    room.assert_nothing_runs();
}

#[test]
fn what_a_container_changed_stays_until_it_is_removed() {
    let room = Room::new();
    for runtime in RUNTIMES {
        let script =
            "echo x > /root/new; rm /etc/motd; chmod 711 /home; mkdir /srv; ln -s new /root/link";
        room.run(&[
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
        room.assert_nothing_runs();
        let difference =
            "C /etc\nD /etc/motd\nC /home\nC /root\nA /root/link\nA /root/new\nA /srv\n";
        assert_eq!(room.run(&["diff", runtime]), difference);
        let id = room.container(runtime)["ID"]
            .as_str()
            .expect("an ID")
            .to_owned();
        assert_eq!(
            room.run(&["diff", &id[..8]]),
            difference,
            "by the beginning of its ID"
        );
        let name = format!("changed:{runtime}");
        room.run(&["commit", runtime, &name, "--change", "CMD cat /root/link"]);
        assert_eq!(room.run_with(runtime, &[&name]), "x\n");
        let listed = room.run_with(runtime, &[&name, "sh", "-c", "ls /etc; stat -c %a /home"]);
        assert!(
            !listed.contains("motd") && listed.ends_with("711\n"),
            "{listed}"
        );

        assert!(
            room.fail(125, &["run", "--name", runtime, "busybox", "true"])
                .contains("already")
        );
        assert_eq!(room.run(&["rm", runtime]), format!("{runtime}\n"));
        room.fail(4, &["rm", runtime]);
        room.fail(4, &["diff", runtime]);
    }
    assert_eq!(room.run(&["ps", "-aq"]), "");
}

#[test]
fn in_the_background() {
    let room = Room::new();
    for runtime in RUNTIMES {
        let script = "trap 'echo got it; exit 5' TERM; echo started; while :; do sleep 0.05; done";
        let id = room.run(&[
            "run",
            "-d",
            "--name",
            runtime,
            "--runtime",
            runtime,
            "-e",
            "A=1",
            "busybox",
            "sh",
            "-c",
            script,
        ]);
        let container = room.container(runtime);
        assert_eq!(container["ID"].as_str(), Some(id.trim()));
        assert_eq!(container["State"], "running");
        assert!(room.run(&["ps"]).contains("Up "));

        assert_eq!(
            room.run(&["exec", runtime, "sh", "-c", "echo $A > /new; cat /new"]),
            "1\n"
        );
        assert_eq!(
            room.run(&[
                "exec",
                "-u",
                "nobody",
                "-w",
                "/etc",
                "-e",
                "A=2",
                runtime,
                "sh",
                "-c",
                "id -u; pwd; echo $A"
            ]),
            "65534\n/etc\n2\n"
        );
        for (code, words) in [
            (9, &["sh", "-c", "exit 9"][..]),
            (126, &["/etc/motd"]),
            (127, &["no-such-command"]),
        ] {
            room.fail(code, &[&["exec", runtime], words].concat());
        }
        room.fail(125, &["exec", "-w", "/proc/self/fd/3", runtime, "true"]);
        room.fail(125, &["exec", "nobody", "true"]);
        assert!(
            room.run(&["diff", runtime]).contains("A /new\n"),
            "while it runs"
        );
        assert!(room.fail(3, &["rm", runtime]).contains("running"));

        signal(container["Pid"].as_u64().expect("a pid"), Signal::TERM);
        eventually("it ends", || room.container(runtime)["State"] == "exited");
        assert_eq!(room.container(runtime)["ExitCode"], 5);
        let log = container["Log"].as_str().expect("a path");
        assert_eq!(
            std::fs::read_to_string(log).expect("a log"),
            "started\ngot it\n"
        );
        assert!(
            room.fail(125, &["exec", runtime, "true"])
                .contains("not running")
        );
        assert_eq!(
            room.run(&["diff", runtime]),
            "A /new\n",
            "the mount points ovl made are gone"
        );

        room.run(&[
            "run",
            "-d",
            "--rm",
            "--name",
            "other",
            "--runtime",
            runtime,
            "busybox",
            "sleep",
            "100",
        ]);
        assert_eq!(room.run(&["rm", "-f", "other"]), "other\n");
        room.assert_nothing_runs();
        let said = room.fail(
            127,
            &[
                "run",
                "-d",
                "--rm",
                "--runtime",
                runtime,
                "busybox",
                "no-such-command",
            ],
        );
        assert!(said.contains("no-such-command"), "{said}");
    }
}

#[test]
fn signals_are_passed_on() {
    let room = Room::new();
    for runtime in RUNTIMES {
        let script =
            "trap 'exit 5' USR1; trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done";
        for (sent, code) in [(Signal::USR1, 5), (Signal::TERM, 6)] {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ovl"));
            command.args([
                "run",
                "--rm",
                "--runtime",
                runtime,
                "busybox",
                "sh",
                "-c",
                script,
            ]);
            room.prepare(&mut command);
            let mut child = command.stdout(Stdio::piped()).spawn().expect("ovl runs");
            let mut ready = [0; 6];
            child
                .stdout
                .as_mut()
                .expect("a pipe")
                .read_exact(&mut ready)
                .expect("a word");
            signal(child.id().into(), sent);
            assert_eq!(
                child.wait().expect("its end").code(),
                Some(code),
                "{runtime} {sent:?}"
            );
        }
    }
    room.assert_nothing_runs();
}

#[test]
fn terminals() {
    let room = Room::new();
    let script = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo terminal $TERM; stty size; read word; echo got $word; exit 3";
    for runtime in RUNTIMES {
        // One of ours, where the caller has none.
        let mut command = room.command([
            "run",
            "--rm",
            "-it",
            "--runtime",
            runtime,
            "busybox",
            "sh",
            "-c",
            "[ -t 0 ] && echo terminal $TERM; read word; echo got $word; exit 3",
        ]);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("ovl runs");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(b"typed\n")
            .expect("a reader");
        let output = child.wait_with_output().expect("its end");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            printed.contains("terminal xterm\r\n") && printed.contains("got typed\r\n"),
            "{printed:?}"
        );
        assert_eq!(output.status.code(), Some(3));

        // The caller's own, passed on by the runtime.
        let ovl = env!("CARGO_BIN_EXE_ovl");
        let line = format!(
            "stty rows 33 cols 44; {ovl} run --rm -it --runtime {runtime} busybox sh -c '{}'",
            script.replace("stty size; ", "")
        );
        let mut command = std::process::Command::new("timeout");
        command.args(["60", "script", "-qefc", &line, "/dev/null"]);
        room.prepare(&mut command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(b"typed\n").expect("a reader");
        let output = child.wait_with_output().expect("its end");
        drop(stdin);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            printed.contains("terminal xterm\r\n") && printed.contains("got typed\r\n"),
            "{printed:?}"
        );
        assert_eq!(output.status.code(), Some(3), "{printed:?}");

        // One for a command of a running container.
        room.run(&[
            "run",
            "-d",
            "--name",
            runtime,
            "--runtime",
            runtime,
            "busybox",
            "sleep",
            "100",
        ]);
        assert_eq!(
            room.run(&["exec", "-t", runtime, "sh", "-c", "[ -t 1 ] && echo yes"]),
            "yes\r\n"
        );
    }
}

/// Whoever is killed, what is left can be seen, used and removed; and what nobody uses is put away by looking.
#[test]
fn killed_processes_leave_nothing_that_stays() {
    let room = Room::new();
    for runtime in RUNTIMES {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ovl"));
        command.args([
            "run",
            "--name",
            runtime,
            "--runtime",
            runtime,
            "busybox",
            "sh",
            "-c",
            "echo kept > /new; echo ready; sleep 100",
        ]);
        room.prepare(&mut command);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("ovl runs");
        let mut ready = [0; 6];
        child
            .stdout
            .as_mut()
            .expect("a pipe")
            .read_exact(&mut ready)
            .expect("a word");
        eventually("it is seen to run", || {
            room.container(runtime)["State"] == "running"
        });
        child.kill().expect("kill");
        child.wait().expect("its end");

        // The container goes on.
        assert_eq!(room.container(runtime)["State"], "running");
        assert_eq!(room.run(&["exec", runtime, "cat", "/new"]), "kept\n");
        room.fail(3, &["rm", runtime]);
        signal(
            room.container(runtime)["Pid"].as_u64().expect("a pid"),
            Signal::KILL,
        );
        eventually("it ends", || room.container(runtime)["State"] == "exited");
        room.assert_nothing_runs();
        assert!(room.run(&["diff", runtime]).contains("A /new\n"));
        room.run(&["rm", runtime]);

        // Everybody at once, as by a power cut.
        for (name, kept) in [("stays", 1), ("goes", 0)] {
            let mut words = vec!["run", "-d", "--name", name, "--runtime", runtime];
            words.extend((kept == 0).then_some("--rm"));
            words.extend(["busybox", "sleep", "100"]);
            let id = room.run(&words);
            let record = room
                .sandbox
                .root()
                .join(format!("containers/{}/record.json", id.trim()));
            let record: serde_json::Value =
                serde_json::from_slice(&std::fs::read(record).expect("a record")).expect("JSON");
            for pid in [
                &record["monitor"],
                &record["mount"]["daemon"],
                &record["init"],
            ] {
                signal(pid["pid"].as_u64().expect("a pid"), Signal::KILL);
            }
            eventually("all is put away", || {
                room.containers()
                    .iter()
                    .filter(|c| c["State"] == "running")
                    .count()
                    == 0
            });
            assert_eq!(room.containers().len(), kept, "{name}");
            room.assert_nothing_runs();
        }
        room.run(&["rm", "stays"]);

        // Killed before there was a record.
        std::fs::create_dir(room.sandbox.root().join("containers/0123456789ab")).expect("mkdir");
        assert_eq!(room.run(&["ps", "-aq"]), "");
        assert!(!room.sandbox.root().join("containers/0123456789ab").exists());
    }
    // Nobody holds the layers any more.
    room.run(&["rmi", "busybox"]);
    room.run(&["gc"]);
    assert!(
        room.run(&["df", "--format", "json"])
            .contains("\"Layers\": 0"),
        "leases lapse"
    );
}

#[test]
fn a_real_system() {
    let room = Room::new();
    let base = common::images("base").join("base.tar");
    room.run(&["import", base.to_str().expect("UTF-8"), "--tag", "debian"]);
    let script = "set -e; dpkg -s dpkg > /dev/null; apt-get -qq check; dpkg --purge --force-all tzdata > /dev/null 2>&1; useradd -m me;
        su me -c 'id -un; echo mine > ~/file'; perl -e 'print \"$$\\n\"' > /dev/null; cat /etc/hostname | wc -l";
    for runtime in RUNTIMES {
        let printed = room.run(&[
            "run",
            "--name",
            runtime,
            "--runtime",
            runtime,
            "debian",
            "bash",
            "-c",
            script,
        ]);
        assert_eq!(printed, "me\n1\n");
        let changed = room.run(&["diff", runtime]);
        assert!(
            changed.contains("A /home/me/file\n") && changed.contains("C /etc/passwd\n"),
            "{changed}"
        );
        assert!(!changed.contains("/etc/resolv.conf"), "{changed}");
        room.run(&[
            "commit",
            runtime,
            "debian:me",
            "--replace",
            "--change",
            "USER me",
        ]);
        assert_eq!(
            room.run_with(runtime, &["debian:me", "sh", "-c", "cat ~/file"]),
            "mine\n"
        );
        room.run(&["rm", runtime]);
    }
}
