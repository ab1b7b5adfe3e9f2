//! The life of containers under `ovl run`: in the background, under signals, at terminals, and when somebody is killed.

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

fn pid_in_record(room: &Room, id: &str, who: &str) -> u64 {
    let record = room
        .sandbox
        .root()
        .join(format!("containers/{}/record.json", id.trim()));
    let text = std::fs::read(record).expect("a record");
    let record: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    record[who]["pid"].as_u64().expect("a pid")
}

#[test]
fn a_record_that_cannot_be_read_costs_nobody_their_changes() {
    let room = Room::new();
    let words = [
        "run",
        "--name",
        "c",
        "busybox",
        "sh",
        "-c",
        "echo mine > /new",
    ];
    room.run(&words);
    let id = room.container("c")["ID"]
        .as_str()
        .expect("an ID")
        .to_owned();
    let dir = room.sandbox.root().join("containers").join(id);
    let good = std::fs::read(dir.join("record.json")).expect("a record");
    for broken in [&b""[..], b"{\"id\":\"of another version\"}"] {
        std::fs::write(dir.join("record.json"), broken).expect("write");
        assert_eq!(room.run(&["ps", "-aq"]), "");
        assert_eq!(
            std::fs::read(dir.join("upper/new")).expect("kept"),
            b"mine\n"
        );
    }
    std::fs::write(dir.join("record.json"), good).expect("write");
    assert!(room.run(&["diff", "c"]).contains("A /new\n"));
}

/// Who changes a terminal's modes from its background is stopped by the kernel.
#[test]
fn in_the_background_of_a_terminal() {
    let room = Room::new();
    let ovl = env!("CARGO_BIN_EXE_ovl");
    for option in ["", "-i"] {
        let line = format!(
            "bash -c 'set -m; {ovl} run --rm {option} busybox true & wait $!; echo code $?'"
        );
        let mut command = std::process::Command::new("timeout");
        command.args(["-k", "5", "60", "script", "-qefc", &line, "/dev/null"]);
        room.prepare(&mut command);
        let output = command.output().expect("script runs");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(printed.contains("code 0"), "{option:?}: {printed}");
    }
    room.assert_nothing_runs();
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

        // A reader that goes away ends what prints without end, as SIGPIPE does without a terminal.
        let mut command = room.command([
            "run",
            "--rm",
            "-t",
            "--runtime",
            runtime,
            "busybox",
            "sh",
            "-c",
            "while :; do echo line; done",
        ]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("ovl runs");
        let mut line = [0; 6];
        let mut stdout = child.stdout.take().expect("a pipe");
        stdout.read_exact(&mut line).expect("a line");
        drop(stdout);
        assert_eq!(child.wait().expect("its end").code(), Some(137));
        let left = room.containers();
        assert!(left.iter().all(|c| c["Command"][0] != "sh"), "{left:?}");

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
        // It lingers: crun 1.8 may lose the last words of a command that ends at once, and runc 1.1 may end lines with two
        // carriage returns (docs/run.md).
        let words = "[ -t 1 ] && echo yes; sleep 0.3";
        let printed = room.run(&["exec", "-t", runtime, "sh", "-c", words]);
        assert_eq!(printed.trim_end(), "yes", "{printed:?}");
    }
}

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

        // One that nobody looks after is ended by force.
        let words = [
            "run",
            "-d",
            "--name",
            runtime,
            "--runtime",
            runtime,
            "busybox",
            "sleep",
            "100",
        ];
        let id = room.run(&words);
        signal(pid_in_record(&room, &id, "monitor"), Signal::KILL);
        room.fail(3, &["rm", runtime]);
        room.run(&["rm", "-f", runtime]);
        assert_eq!(room.run(&["ps", "-aq"]), "");
        room.assert_nothing_runs();

        // The runtime's own process: its container does not outlive it unseen.
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ovl"));
        command.args([
            "run",
            "--name",
            runtime,
            "--runtime",
            runtime,
            "busybox",
            "sleep",
            "100",
        ]);
        room.prepare(&mut command);
        let mut child = command.spawn().expect("ovl runs");
        eventually("it is seen to run", || {
            let all = room.containers();
            all.iter()
                .any(|c| c["Name"] == runtime && c["State"] == "running")
        });
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let children = std::fs::read_to_string(children).expect("a list");
        let program = children.split_ascii_whitespace().find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.contains("--pid-file"))
        });
        signal(
            program.expect("the runtime").parse().expect("a pid"),
            Signal::KILL,
        );
        assert_eq!(child.wait().expect("its end").code(), Some(137));
        assert_eq!(room.container(runtime)["State"], "exited");
        room.assert_nothing_runs();
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
            let left = room.containers();
            let left = left.iter().filter(|c| c["Name"] == name).count();
            assert_eq!(left, kept, "{name}");
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
