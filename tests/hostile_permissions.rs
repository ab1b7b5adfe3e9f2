//! T31: what ovl makes for itself is nobody else's to read, whatever the umask: store, run state, logs, work directory, leases'
//! files, all of them, after everything that makes any.

mod common;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use common::{Sandbox, busybox, require_mounting};

/// Runs a script with umask 0 in which `ovl` is ours.
fn unmasked(sandbox: &Sandbox, script: &str) {
    let ovl = env!("CARGO_BIN_EXE_ovl");
    let script = format!("umask 0; ovl() {{ '{ovl}' \"$@\"; }}; {script}");
    let output = Command::new("sh")
        .args(["-euc", &script])
        .current_dir(sandbox.path("."))
        .env("OVL_ROOT", sandbox.root())
        .env("OVL_RUN", sandbox.path("state"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Every file and directory from `top` down: what is wrong with its permissions.
fn open_to_others(top: &Path, wrong: &mut Vec<String>) -> usize {
    let mut seen = 0;
    for entry in walkdir::WalkDir::new(top) {
        let entry = entry.unwrap();
        let meta = entry.path().symlink_metadata().unwrap();
        let want = match meta.file_type() {
            kind if kind.is_dir() => 0o700,
            kind if kind.is_file() || kind.is_socket() || kind.is_fifo() => 0o600,
            kind => panic!("{}: {kind:?}", entry.path().display()),
        };
        if meta.mode() & 0o7777 != want {
            wrong.push(format!(
                "{} {:o}",
                entry.path().display(),
                meta.mode() & 0o7777
            ));
        }
        seen += 1;
    }
    seen
}

#[test]
fn t31_everything_is_private_under_umask_0() {
    require_mounting();
    let sandbox = Sandbox::new();
    sandbox.mkdir("mnt");
    let mut wrong = Vec::new();
    let archive = busybox();
    unmasked(
        &sandbox,
        &format!(
            "ovl import '{}'; ovl tag busybox other:1; ovl mount busybox upper mnt",
            archive.display()
        ),
    );
    // While it is mounted: record, log, lease, database with its log.
    let seen = open_to_others(&sandbox.root(), &mut wrong)
        + open_to_others(&sandbox.path("state"), &mut wrong);
    assert!(seen >= 6, "only {seen} files and directories");
    unmasked(
        &sandbox,
        "echo x > mnt/new; cp mnt/bin/busybox mnt/suid; chmod 4755 mnt/suid; ovl diff mnt; ovl commit mnt kept:1",
    );
    open_to_others(&sandbox.root(), &mut wrong);
    open_to_others(&sandbox.path("state"), &mut wrong);
    // The work directory holds half-made copies of files, set-id bits and all. What is in it has the modes of the files.
    let work = sandbox.path(".upper.ovl-work");
    let mode = work.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o700, "the work directory");
    // The upper is the user's, as the root of the tree that is seen; but nobody else may change it.
    let upper = sandbox
        .path("upper")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(upper & 0o022, 0, "the upper directory: {upper:o}");
    unmasked(
        &sandbox,
        "ovl umount mnt; ovl export kept:1 out.tar; ovl rmi kept:1; ovl gc; ovl df; ovl tree busybox",
    );
    open_to_others(&sandbox.root(), &mut wrong);
    open_to_others(&sandbox.path("state"), &mut wrong);
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Another user gets nowhere, not even to a set-id file whose path he knows.
#[test]
fn t31_others_cannot_get_in() {
    require_mounting();
    let sandbox = Sandbox::new();
    std::fs::set_permissions(sandbox.path("."), std::fs::Permissions::from_mode(0o755)).unwrap();
    sandbox.mkdir("mnt");
    unmasked(
        &sandbox,
        &format!(
            "ovl import '{}'; ovl mount busybox upper mnt",
            busybox().display()
        ),
    );
    let as_nobody = |script: &str| {
        let status = Command::new("setpriv")
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "sh",
                "-c",
                script,
            ])
            .current_dir(sandbox.path("."))
            .output()
            .expect("this test needs setpriv");
        status.status.success()
    };
    assert!(as_nobody("ls . > /dev/null"), "the way there is open");
    for denied in [
        "ls store",
        "cat store/store.db",
        "ls state",
        "ls state/mounts",
        "ls .upper.ovl-work",
        "touch upper/x",
    ] {
        assert!(!as_nobody(denied), "{denied}");
    }
    unmasked(&sandbox, "ovl umount mnt");
}
