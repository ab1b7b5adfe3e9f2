//! What people do in a container, done in a chroot on a mounted image: a package is installed, git works, python runs, a
//! program is compiled. And the daemon is killed in the middle of it.

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Sandbox, command, images, require_mounting};

/// The five-layer image, mounted writable.
fn mounted() -> Sandbox {
    require_mounting();
    let sandbox = Sandbox::new();
    sandbox.mkdir("mnt");
    sandbox.run([
        "import".as_ref(),
        images("five").join("v1.docker.tar").as_os_str(),
    ]);
    sandbox.run(["mount", "localhost/five:1", "upper", "mnt"]);
    sandbox
}

fn chroot(sandbox: &Sandbox, script: &str) -> Command {
    let mut command = Command::new("chroot");
    command
        .arg(sandbox.path("mnt"))
        .args(["/bin/sh", "-euc", script]);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LC_ALL", "C");
    command
}

fn run(sandbox: &Sandbox, script: &str) -> String {
    let output = chroot(sandbox, script).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}: {stderr}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the package `tool` with 200 files.
const PACKAGE: &str = "
    mkdir -p /tmp/tool/DEBIAN /tmp/tool/usr/share/tool && cd /tmp
    printf 'Package: tool\\nVersion: 1\\nArchitecture: all\\nMaintainer: nobody <n@example.org>\\nDescription: a test\\n' \
        > tool/DEBIAN/control
    for i in $(seq 200); do echo file $i > tool/usr/share/tool/$i; done
    dpkg-deb --root-owner-group --build tool > /dev/null
";

#[test]
fn packages_git_python_and_compilers_work() {
    let sandbox = mounted();
    run(&sandbox, PACKAGE);
    run(
        &sandbox,
        "dpkg -i /tmp/tool.deb && dpkg -V tool && dpkg --audit",
    );
    assert_eq!(
        run(&sandbox, "dpkg-query -W -f '${Status}' tool"),
        "install ok installed"
    );
    assert_eq!(
        run(
            &sandbox,
            "dpkg -r less > /dev/null && test ! -e /usr/bin/less && dpkg --audit"
        ),
        ""
    );

    let git = "
        git config --global user.email t@example.org && git config --global user.name t && cd /root
        git init -q one && cd one && cp -r /usr/share/tool . && git add . && git commit -qm first
        git clone -q /root/one /root/two && cd /root/two && echo more >> tool/7 && git commit -qam second
        git fsck --strict 2>&1 && git status --porcelain && git log --format=%s
    ";
    assert_eq!(run(&sandbox, git), "second\nfirst\n");

    let sum = (1..=400).sum::<i32>();
    assert_eq!(run(&sandbox, "/usr/local/bin/app"), format!("{sum}\n"));
    assert_eq!(
        run(
            &sandbox,
            "python3 -c 'import numpy; print(numpy.arange(10).sum())'"
        ),
        "45\n"
    );

    let compile = r#"
        mkdir /root/c && cd /root/c && printf '#include <stdio.h>\nint main(void){puts("compiled");return 0;}\n' > a.c
        printf 'a: a.c\n\tgcc -O1 -o $@ $<\n' > Makefile && make -s && ./a && make
    "#;
    assert_eq!(
        run(&sandbox, compile),
        "compiled\nmake: 'a' is up to date.\n"
    );

    // All of it is in an image made of the mount.
    sandbox.run(["commit", "mnt", "worked"]);
    sandbox.run(["umount", "mnt"]);
    sandbox.run(["mount", "--read-only", "worked", "mnt"]);
    assert_eq!(
        run(
            &sandbox,
            "/root/c/a && cd /root/two && git status --porcelain"
        ),
        "compiled\n"
    );
    assert_eq!(
        run(
            &sandbox,
            "dpkg -V tool && dpkg --audit; ls /usr/bin/less 2> /dev/null || echo gone"
        ),
        "gone\n"
    );
}

/// A daemon that dies takes no more with it than what was not yet synced: dpkg, which syncs, finds its database whole.
#[test]
fn a_killed_daemon_leaves_a_consistent_upper() {
    let sandbox = mounted();
    run(&sandbox, PACKAGE);
    run(&sandbox, "dpkg -i /tmp/tool.deb && sync");
    for delay in [300, 700, 1100] {
        let mut busy = chroot(
            &sandbox,
            "while :; do dpkg -r tool; dpkg -i /tmp/tool.deb; done",
        );
        let busy = Busy(
            busy.stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        std::thread::sleep(Duration::from_millis(delay));
        kill_daemon(&sandbox);
        drop(busy);
        sandbox.run(["umount", "--lazy", "mnt"]);
        sandbox.run(["mount", "localhost/five:1", "upper", "mnt"]);
        // Every object can be looked at, every file read.
        command(
            "tar",
            [
                "-C",
                sandbox.path("mnt").to_str().unwrap(),
                "-cf",
                "/dev/null",
                ".",
            ],
        );
        run(
            &sandbox,
            "dpkg --configure -a && dpkg -i /tmp/tool.deb && dpkg -V tool && dpkg --audit",
        );
    }
}

/// A process group that is ended with the test.
struct Busy(Child);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn kill_daemon(sandbox: &Sandbox) {
    let mounts: serde_json::Value =
        serde_json::from_str(&sandbox.run(["mounts", "--format", "json"])).unwrap();
    let pid = mounts[0]["Pid"].as_u64().expect("a daemon");
    command("kill", ["-9", &pid.to_string()]);
    while Path::new(&format!("/proc/{pid}/root")).exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
}
