//! `ovl run` with real runtimes: what goes in and out of a container, what stays of it.

mod common;
mod run_support;

use std::io::Write;
use std::process::Stdio;

use run_support::{RUNTIMES, Room, told};

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
            room.fail(3, &["rmi", "busybox"]).contains(runtime),
            "a container is of it"
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

/// The container's root by the kernel's overlayfs: the same goes in, and the same comes out.
#[test]
fn the_kernel_may_merge() {
    let room = Room::new();
    let host = room.sandbox.mkdir("host");
    std::fs::write(host.join("theirs"), "theirs\n").expect("write");
    let volume = format!("{}:/data:O", host.display());
    let merges = || {
        let json = room.run(&["mounts", "--format", "json"]);
        let all: Vec<serde_json::Value> = serde_json::from_str(&json).expect("JSON");
        let word = |mount: &serde_json::Value| mount["Merge"].as_str().map(str::to_owned);
        all.iter().map(word).collect::<Option<Vec<_>>>()
    };
    for runtime in RUNTIMES {
        for (merge, expected) in [("kernel", "kernel"), ("auto", "kernel"), ("fuse", "fuse")] {
            let name = format!("{runtime}-{merge}");
            let script = "echo x > /root/new; rm /etc/motd; mv /home /moved; echo x > /data/theirs; sleep 100";
            let words = ["run", "-d", "--name", &name, "--merge", merge];
            let more = ["--runtime", runtime, "-v", &volume, "busybox"];
            room.run(&[&words[..], &more, &["sh", "-c", script]].concat());
            run_support::eventually("the script is done", || {
                room.run(&["exec", &name, "cat", "/data/theirs"]) == "x\n"
            });
            let both = vec![expected.to_owned(); 2];
            assert_eq!(merges(), Some(both), "{name}: root and volume");
            room.run(&["commit", &name, &format!("{name}:1")]);
            room.run(&["rm", "-f", &name]);

            let script = "cat /root/new; ls /etc; ls -d /moved /home 2>&1; true";
            let image = format!("{name}:1");
            let words = ["--merge", merge, &image, "sh", "-c", script];
            let seen = room.run_with(runtime, &words);
            assert!(seen.starts_with("x\n") && !seen.contains("motd"), "{seen}");
            assert!(
                seen.contains("/moved\n") && seen.contains("/home: No"),
                "{seen}"
            );
            let theirs = std::fs::read(host.join("theirs")).expect("read");
            assert_eq!(theirs, b"theirs\n");
            room.assert_nothing_runs();
        }
    }
    let said = room.fail(125, &["run", "--merge", "nobody", "busybox", "true"]);
    assert!(said.contains("nobody"), "{said}");
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
