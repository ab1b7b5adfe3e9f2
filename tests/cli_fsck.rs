//! `fsck`, `gc --dry-run` and `df` as people and programs see them.

mod common;

use common::{Sandbox, busybox};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn damage(sandbox: &Sandbox, sql: &str) {
    let db = rusqlite::Connection::open(sandbox.root().join("store.db")).unwrap();
    assert!(db.execute(sql, []).unwrap() > 0, "{sql}");
}

#[test]
fn a_sound_store_is_one_line() {
    let sandbox = Sandbox::with_busybox();
    let line = sandbox.run(["fsck"]);
    assert!(
        line.starts_with("sound: 1 image, 2 layers, ") && line.trim_end().ends_with(" hashed"),
        "{line}"
    );
    assert!(!sandbox.run(["fsck", "--fast"]).contains("hashed"));
    let answer = json(&sandbox.run(["fsck", "--format", "json"]));
    assert_eq!(answer["Sound"], true);
    assert_eq!(answer["Problems"], Value::Array(Vec::new()));
    // No store is no damage, and none is made.
    let empty = Sandbox::new();
    empty.run(["fsck"]);
    assert!(!empty.root().exists());
}

#[test]
fn damage_is_told_repaired_and_imported_again() {
    let sandbox = Sandbox::with_busybox();
    damage(&sandbox, "UPDATE pack SET data = zeroblob(length(data))");
    sandbox.run(["fsck", "--fast"]);
    let output = sandbox.ovl(["fsck"]).output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(5), "{stdout}{stderr}");
    assert!(
        stderr.starts_with("ovl: the store at ") && stderr.lines().count() == 1,
        "{stderr}"
    );
    assert!(
        stdout.contains(" etc/motd: ") && stdout.contains("(image busybox:latest)"),
        "{stdout}"
    );
    let output = sandbox.ovl(["fsck", "--format", "json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    let answer = json(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(answer["Sound"], false);
    let told = answer["Problems"].as_array().unwrap();
    assert_eq!(answer["ProblemCount"], told.len());
    assert!(
        told.iter()
            .any(|row| row["Path"] == "etc/motd" && row["Images"][0] == "busybox:latest"),
        "{answer}"
    );

    let said = sandbox.run(["fsck", "--repair"]);
    assert!(
        said.contains("repaired: removed image docker.io/library/busybox:latest"),
        "{said}"
    );
    assert!(sandbox.run(["fsck"]).starts_with("sound: 0 images"));
    sandbox.run(["import".as_ref(), busybox().as_os_str()]);
    assert!(
        sandbox
            .run(["fsck"])
            .starts_with("sound: 1 image, 2 layers")
    );
    let out = sandbox.path("out.tar");
    sandbox.run(["export", "busybox", out.to_str().unwrap()]);
}

/// The file a mount shows cannot be taken from under it.
#[test]
fn importing_again_heals_what_was_found() {
    let sandbox = Sandbox::with_busybox();
    let images = sandbox.run(["images", "--digests", "--no-trunc"]);
    let import = |archive: &std::ffi::OsStr| {
        sandbox.run(["import".as_ref(), archive]);
    };
    let code = |args: &[&str]| sandbox.ovl(args).output().unwrap().status.code();
    damage(&sandbox, "UPDATE pack SET data = zeroblob(length(data))");
    // By a check, and by a program that reads.
    assert_eq!(code(&["fsck"]), Some(5));
    let stderr = sandbox.ovl(["fsck"]).output().unwrap().stderr;
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    assert!(stderr.contains("importing"), "{stderr}");
    import(busybox().as_os_str());
    assert!(
        sandbox
            .run(["fsck"])
            .starts_with("sound: 1 image, 2 layers")
    );
    damage(&sandbox, "UPDATE pack SET data = zeroblob(length(data))");
    assert_eq!(code(&["cat", "busybox", "etc/motd"]), Some(5));
    import(busybox().as_os_str());
    sandbox.run(["cat", "busybox", "etc/motd"]);
    assert!(
        sandbox
            .run(["fsck"])
            .starts_with("sound: 1 image, 2 layers")
    );
    // Through a pipe, too, and nothing was removed on the way.
    damage(&sandbox, "UPDATE pack SET codec = 7");
    assert_eq!(code(&["fsck", "--fast"]), Some(5));
    sandbox
        .ovl(["import", "-"])
        .write_stdin(std::fs::read(busybox()).unwrap())
        .assert()
        .success();
    assert!(
        sandbox
            .run(["fsck"])
            .starts_with("sound: 1 image, 2 layers")
    );
    let digests = |text: &str| -> Vec<String> {
        let cells = text.split_whitespace();
        cells
            .filter(|word| word.starts_with("sha256:"))
            .map(str::to_owned)
            .collect()
    };
    let now = sandbox.run(["images", "--digests", "--no-trunc"]);
    assert_eq!(digests(&now), digests(&images));
}

#[test]
fn what_a_mount_uses_is_not_repaired_away() {
    common::require_mounting();
    let sandbox = Sandbox::with_busybox();
    let [upper, mnt] = ["upper", "mnt"].map(|name| sandbox.mkdir(name));
    let words = [&upper, &mnt].map(|path| path.to_str().unwrap());
    sandbox.run(["mount", "busybox", words[0], words[1]]);
    damage(&sandbox, "UPDATE pack SET data = zeroblob(length(data))");
    let said = sandbox.fail(75, ["fsck", "--repair"]);
    let pid = common::daemon_of(&sandbox);
    assert!(
        said.contains("is in use by") && said.contains(&format!("process {pid}")),
        "{said}"
    );
    assert!(sandbox.run(["images"]).contains("busybox"));
    sandbox.run(["umount", words[1]]);
    sandbox.run(["fsck", "--repair"]);
    assert!(!sandbox.run(["images"]).contains("busybox"));
}

#[test]
fn df_and_a_dry_run_tell_what_gc_would_free() {
    let sandbox = Sandbox::with_busybox();
    sandbox.run(["tag", "busybox", "other:1"]);
    let df = json(&sandbox.run(["df", "--format", "json"]));
    let image = &df["PerImage"][0];
    assert_eq!(image["Shared"], 0, "{df}");
    assert_eq!(image["Private"], image["Stored"]);
    assert_eq!(image["Raw"], df["Raw"]);
    assert!(sandbox.run(["df"]).contains("\nbusybox:latest other:1 "));
    let would = json(&sandbox.run(["gc", "--dry-run", "--format", "json"]));
    assert_eq!(
        (&would["Chunks"], &would["KeptBy"]),
        (&0.into(), &Value::Array(Vec::new()))
    );
    sandbox.run(["rmi", "--force", "busybox", "other:1"]);
    let would = json(&sandbox.run(["gc", "--dry-run", "--format", "json"]));
    let did = json(&sandbox.run(["gc", "--format", "json"]));
    assert!(would["Chunks"].as_u64().unwrap() > 0, "{would}");
    assert_eq!(would["Chunks"], did["Chunks"]);
    assert!(did["Freed"].as_u64().unwrap() > 500_000, "{did}");
}
