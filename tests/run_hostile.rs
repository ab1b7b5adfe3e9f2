//! Hostile images against `ovl run`, with real runtimes: what an image says of users, directories and volumes is resolved
//! inside it or refused, and nothing of the host is touched or waited for.

mod common;
mod run_support;

use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use run_support::{RUNTIMES, Room};

/// A file of the host's that no container may reach.
fn canary(room: &Room) -> std::path::PathBuf {
    let path = room.sandbox.mkdir("outside");
    std::fs::write(path.join("canary"), "untouched").expect("write");
    path
}

#[track_caller]
fn assert_untouched(outside: &Path) {
    let names: Vec<_> = std::fs::read_dir(outside)
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, ["canary"]);
    let text = std::fs::read_to_string(outside.join("canary")).expect("the canary");
    assert_eq!(text, "untouched");
}

/// T26: user and group files that are FIFOs, symlinks out or huge are not waited for, followed or read.
#[test]
fn t26_user_files_of_the_image() {
    let room = Room::new();
    let outside = canary(&room);
    std::fs::write(outside.join("../passwd-outside"), "evil:x:0:0::/:/\n").expect("write");
    type Make<'m> = &'m dyn Fn(&Path);
    let make: [(&str, Make<'_>); 5] = [
        ("fifo", &|etc| {
            for name in ["passwd", "group"] {
                common::command("mkfifo", [etc.join(name)]);
            }
        }),
        ("link-to-fifo", &|etc| {
            common::command("mkfifo", [etc.join("pipe")]);
            symlink("/etc/pipe", etc.join("passwd")).expect("symlink");
            symlink("pipe", etc.join("group")).expect("symlink");
        }),
        ("link-out", &|etc| {
            let target = outside.join("../passwd-outside");
            let target = target.to_str().expect("UTF-8");
            symlink(
                format!("../../../../../../../..{target}"),
                etc.join("passwd"),
            )
            .expect("symlink");
            symlink(target, etc.join("group")).expect("symlink");
        }),
        ("link-to-stdin", &|etc| {
            symlink("/dev/stdin", etc.join("passwd")).expect("symlink");
            symlink("/proc/self/fd/0", etc.join("group")).expect("symlink");
        }),
        ("huge", &|etc| {
            for name in ["passwd", "group"] {
                let mut text = vec![b'#'; 1 << 20];
                text.extend(b"\nevil:x:0:0::/:/\n");
                std::fs::write(etc.join(name), text).expect("write");
            }
        }),
    ];
    for (name, make) in make {
        let tree = room.busybox_tree(name);
        for file in ["passwd", "group"] {
            std::fs::remove_file(tree.join("etc").join(file)).expect("rm");
        }
        make(&tree.join("etc"));
        room.image(name, &tree, &[]);
        for user in ["evil", "0:evil"] {
            let said = room.fail(125, &["run", "--rm", "-u", user, name, "true"]);
            let why = if name == "link-out" { "evil" } else { "/etc/" };
            assert!(said.contains(why), "{name}: {said}");
        }
        // A runtime opens them by itself, and would wait for ever; what leads out of the image is just not there.
        let numbers = ["-u", "12:34", name, "sh", "-c", "id -u; id -g"];
        for runtime in RUNTIMES {
            if name == "link-out" {
                assert_eq!(room.run_with(runtime, &numbers), "12\n34\n");
            } else {
                let words = [&["run", "--rm", "--runtime", runtime], &numbers[..]].concat();
                let said = room.fail(125, &words);
                assert!(said.contains("/etc/"), "{name}: {said}");
            }
        }
    }
    room.assert_nothing_runs();
}

/// T27: numbers beyond the range never become root.
#[test]
fn t27_users_out_of_range() {
    let room = Room::new();
    for (n, user) in [
        "2147483648",
        "4294967295:0",
        "4294967296",
        "-1",
        "0x0",
        "0:-1",
    ]
    .into_iter()
    .enumerate()
    {
        let option = format!("--user={user}");
        let said = room.fail(125, &["run", "--rm", &option, "busybox", "true"]);
        assert!(said.contains(user), "{said}");
        let name = format!("user{n}");
        room.change("busybox", &name, &[&format!("USER {user}")]);
        room.fail(125, &["run", "--rm", &name, "true"]);
    }
    for runtime in RUNTIMES {
        let highest = ["-u", "2147483647", "busybox", "id", "-u"];
        assert_eq!(room.run_with(runtime, &highest), "2147483647\n");
    }
}

/// T28: volumes whose path leads out, or to the root, by `..` and by symlinks.
#[test]
fn t28_volumes_of_the_image() {
    let room = Room::new();
    let outside = canary(&room);
    let tree = room.busybox_tree("tree");
    let out = format!("../../../../../../../..{}", outside.display());
    symlink(&out, tree.join("up")).expect("symlink");
    symlink(&outside, tree.join("absolute")).expect("symlink");
    symlink("/", tree.join("slash")).expect("symlink");
    for (n, volume) in ["/../../..", "/slash", "/", "/proc/1/root", "/etc/.."]
        .into_iter()
        .enumerate()
    {
        let name = format!("refused{n}");
        room.image(&name, &tree, &[&format!("VOLUME {volume}")]);
        let said = room.fail(125, &["run", "--rm", &name, "true"]);
        assert!(said.contains(volume), "{said}");
    }
    for (n, volume) in ["/up/data", "/absolute/data", "/../../up/data"]
        .into_iter()
        .enumerate()
    {
        let name = format!("inside{n}");
        room.image(&name, &tree, &[&format!("VOLUME {volume}")]);
        let script = format!("echo x > {}/data/file; ls {}", outside.display(), volume);
        for runtime in RUNTIMES {
            assert_eq!(
                room.run_with(runtime, &[&name, "sh", "-c", &script]),
                "file\n",
                "{volume}"
            );
        }
    }
    assert_untouched(&outside);
    room.assert_nothing_runs();
}

/// T29: mount destinations that are symlinks, working directories that are descriptors, /proc and /dev that are neither.
#[test]
fn t29_paths_of_the_image() {
    let room = Room::new();
    let outside = canary(&room);
    let host = room.sandbox.mkdir("host");
    std::fs::write(host.join("file"), "mine\n").expect("write");
    let tree = room.busybox_tree("tree");
    symlink(&outside, tree.join("absolute")).expect("symlink");
    symlink("../../../../../..", tree.join("up")).expect("symlink");
    symlink("/proc/self/fd/7", tree.join("leak")).expect("symlink");
    symlink(outside.join("hosts"), tree.join("etc/hosts")).expect("symlink");
    symlink("/proc/self/fd/0", tree.join("etc/resolv.conf")).expect("symlink");
    for name in ["null", "console"] {
        let _ = std::fs::remove_file(tree.join("dev").join(name));
        symlink(outside.join("canary"), tree.join("dev").join(name)).expect("symlink");
    }
    room.image("links", &tree, &[]);
    for runtime in RUNTIMES {
        for destination in [
            "/absolute",
            "/absolute/new",
            "/up/absolute/new/../new",
            "/up/srv",
        ] {
            let volume = format!("./host:{destination}");
            let printed = room.run_with(
                runtime,
                &[
                    "-v",
                    &volume,
                    "links",
                    "sh",
                    "-c",
                    &format!("cat {destination}/file"),
                ],
            );
            assert_eq!(printed, "mine\n", "{destination}");
        }
        // The descriptor 7 that this process has leads to the host; the container has none.
        for dir in [
            "/proc/self/fd/7",
            "/leak",
            "/proc/1/cwd",
            "/proc/./thread-self/fd/8",
        ] {
            let said = room.fail(
                125,
                &[
                    "run",
                    "--rm",
                    "--runtime",
                    runtime,
                    "-w",
                    dir,
                    "links",
                    "ls",
                ],
            );
            assert!(said.contains("/proc"), "{said}");
        }
        let script = "echo x > /dev/null; [ -c /dev/null ] && [ ! -L /dev/null ] && grep -c localhost /etc/hosts";
        let lines = room.run_with(runtime, &["links", "sh", "-c", script]);
        assert_eq!(
            lines, "2\n",
            "/etc/hosts where the image's symlink leads, inside"
        );
    }
    // Nor does what a container put there itself lead a later command.
    room.run(&["run", "-d", "--name", "c", "busybox", "sleep", "100"]);
    room.run(&["exec", "c", "ln", "-s", "/proc/self/fd/7", "/leak"]);
    for dir in ["/leak", "/proc/self/fd/7", "/bin/../leak/.."] {
        let said = room.fail(125, &["exec", "-w", dir, "c", "ls"]);
        assert!(said.contains("/proc"), "{said}");
    }
    room.fail(125, &["exec", "-w", "tmp", "c", "ls"]);
    room.run(&["rm", "-f", "c"]);
    for (n, dir) in ["/proc/self/fd/7", "/leak"].into_iter().enumerate() {
        let name = format!("workdir{n}");
        room.change("links", &name, &[&format!("WORKDIR {dir}")]);
        room.fail(125, &["run", "--rm", &name, "ls"]);
    }
    for (name, target) in [("proc", "/etc"), ("dev", "../.."), ("sys", "/tmp")] {
        std::fs::remove_dir_all(tree.join(name)).expect("rm");
        symlink(target, tree.join(name)).expect("symlink");
        room.image(&format!("no-{name}"), &tree, &[]);
        let said = room.fail(125, &["run", "--rm", &format!("no-{name}"), "true"]);
        assert!(said.contains(&format!("/{name}")), "{said}");
        std::fs::remove_file(tree.join(name)).expect("rm");
        std::fs::create_dir(tree.join(name)).expect("mkdir");
    }
    assert_untouched(&outside);
    room.assert_nothing_runs();
}

/// T30: labels reach the list of containers as data, the reserved ones not even that; the runtime sees none.
#[test]
fn t30_labels_of_the_image() {
    let room = Room::new();
    room.change(
        "busybox",
        "labelled",
        &[
            "LABEL version=1",
            "LABEL run.oci.handler=evil",
            "LABEL ovl.name=other",
            "LABEL containerd.io/snapshot/overlay.upperdir=/",
        ],
    );
    for runtime in RUNTIMES {
        room.run(&[
            "run",
            "-d",
            "--name",
            runtime,
            "--runtime",
            runtime,
            "labelled",
            "sleep",
            "100",
        ]);
        let container = room.container(runtime);
        assert_eq!(container["Labels"], serde_json::json!({ "version": "1" }));
        let id = container["ID"].as_str().expect("an ID");
        let config = std::fs::read(room.path(&format!("run/containers/{id}/config.json")))
            .expect("a bundle");
        let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
        assert_eq!(
            config["annotations"],
            serde_json::json!({ "io.ovl.container": id })
        );
    }
}

/// T31: whatever the umask, nobody else gets at a container's configuration, log or changes, nor to any socket of it.
#[test]
fn t31_what_containers_leave_is_out_of_reach() {
    let room = Room::new();
    let script = "umask 0; exec \"$0\" run -d --name c busybox sleep 100";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_ovl")]);
    room.prepare(&mut command);
    let output = command.output().expect("sh runs");
    assert!(output.status.success(), "{}", run_support::told(&output));
    for dir in [
        "store",
        "store/containers",
        "run/containers",
        "run/runtime",
        "run/mounts",
        "run/log",
    ] {
        let mode = room.path(dir).metadata().expect(dir).permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "{dir}");
    }
    let entries = walkdir::WalkDir::new(room.path("")).same_file_system(true);
    for entry in entries.into_iter().flatten() {
        if entry.file_type().is_socket() {
            let mode = entry.metadata().expect("stat").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
        }
    }
    room.run(&["rm", "-f", "c"]);
}
