//! The verbs that work on images, on the checked-in busybox image: what they print, and what they leave in the store.

mod common;

use common::{Sandbox, busybox, command};
use serde_json::Value;

/// What `fixtures/images/busybox.sh` says of the image it makes.
const CONFIG: &str = "sha256:c6a0fa9743f4c376b45063581d2849bf41126345beb9d20ff15ec3aecd0877a6";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn import_prints_the_image_id_and_says_the_rest_on_stderr() {
    let sandbox = Sandbox::new();
    let assert = sandbox
        .ovl(["import".as_ref(), busybox().as_os_str()])
        .assert()
        .success();
    let output = assert.get_output();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("{CONFIG}\n")
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("busybox:latest") && stderr.contains("2 layers"),
        "{stderr}"
    );
}

#[test]
fn import_reads_a_pipe_and_names_what_it_reads() {
    let sandbox = Sandbox::new();
    let archive = std::fs::read(busybox()).unwrap();
    sandbox
        .ovl(["import", "-", "--tag", "app:1", "--tag", "other/app"])
        .write_stdin(archive)
        .assert()
        .success();
    let names = sandbox.run(["images", "--format", "json"]);
    let mut names: Vec<String> = json(&names)
        .as_array()
        .unwrap()
        .iter()
        .map(|row| format!("{}:{}", text(&row["Repository"]), text(&row["Tag"])))
        .collect();
    names.sort();
    assert_eq!(names, ["app:1", "other/app:latest"]);
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("not a string: {value}"))
}

#[test]
fn a_name_is_not_taken_from_another_image_by_accident() {
    let sandbox = Sandbox::with_busybox();
    sandbox.mkdir("root");
    sandbox.write("root/file", "x");
    command(
        "tar",
        [
            "-C",
            sandbox.path("root").to_str().unwrap(),
            "-cf",
            sandbox.path("root.tar").to_str().unwrap(),
            ".",
        ],
    );
    let line = sandbox.fail(3, ["import", "root.tar", "--tag", "busybox", "-q"]);
    assert!(line.contains("busybox"), "{line}");
    assert_eq!(
        sandbox.run(["images", "-q", "--no-trunc", "busybox"]),
        format!("{CONFIG}\n")
    );
    let id = sandbox.run(["import", "root.tar", "--tag", "busybox", "--replace"]);
    assert_eq!(sandbox.run(["images", "-q", "--no-trunc", "busybox"]), id);
}

#[test]
fn importing_twice_stores_once() {
    let sandbox = Sandbox::with_busybox();
    let before = json(&sandbox.run(["df", "--format", "json"]));
    sandbox.run(["import".as_ref(), busybox().as_os_str()]);
    let after = json(&sandbox.run(["df", "--format", "json"]));
    for what in ["Images", "Layers", "Raw", "Unique", "Stored"] {
        assert_eq!(before[what], after[what], "{what}");
    }
    assert_eq!((&after["Images"], &after["Layers"]), (&1.into(), &2.into()));
}

#[test]
fn a_failed_import_tells_of_the_layers_that_stay() {
    let sandbox = Sandbox::new();
    let mut archive = std::fs::read(busybox()).unwrap();
    // In the middle of the upper of two layers, behind its header.
    let name = b"two.tar.gz\0";
    let header = archive
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    archive[header + 512 + 100] ^= 1;
    let path = sandbox.write("damaged.tar", archive);
    let stderr = sandbox.fail(5, ["import".as_ref(), path.as_os_str()]);
    assert!(
        stderr.contains("1 layer of it found right so far: kept for another try, until ovl gc"),
        "{stderr}"
    );
    let usage = json(&sandbox.run(["df", "--format", "json"]));
    assert_eq!((&usage["Images"], &usage["Layers"]), (&0.into(), &1.into()));
    sandbox.run(["gc"]);
    let usage = json(&sandbox.run(["df", "--format", "json"]));
    assert_eq!(usage["Layers"], 0);
}

#[test]
fn images_lists_the_rest_when_one_is_damaged() {
    let sandbox = Sandbox::with_busybox();
    let mut rootfs = std::ffi::OsString::from("rootfs:");
    rootfs.push(busybox());
    sandbox.run([
        "import".as_ref(),
        "--tag=good:1".as_ref(),
        rootfs.as_os_str(),
    ]);
    let db = rusqlite::Connection::open(sandbox.root().join("store.db")).unwrap();
    let config = "(SELECT i.config FROM image AS i JOIN name AS n ON n.image = i.id WHERE n.name LIKE '%busybox%')";
    let sql = format!("UPDATE document SET data = x'7b' WHERE sha256 = {config}");
    assert_eq!(db.execute(&sql, []).unwrap(), 1);
    drop(db);
    let output = sandbox.ovl(["images"]).output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(5), "{stdout}{stderr}");
    assert!(
        stdout.contains("good") && !stdout.contains("busybox"),
        "{stdout}"
    );
    assert!(
        stderr.contains("busybox:latest") && stderr.contains("ovl fsck"),
        "{stderr}"
    );
}

#[test]
fn images_lists_the_rest_when_a_layer_is_missing() {
    let sandbox = Sandbox::with_busybox();
    let small = sandbox.mkdir("small");
    std::fs::write(small.join("file"), "words").unwrap();
    let mut dir = std::ffi::OsString::from("dir:");
    dir.push(&small);
    sandbox.run(["import".as_ref(), "--tag=good:1".as_ref(), dir.as_os_str()]);
    let id = json(&sandbox.run(["images", "busybox", "--format", "json"]))[0]["ID"].clone();
    let db = rusqlite::Connection::open(sandbox.root().join("store.db")).unwrap();
    let layers = "(SELECT il.layer FROM image_layer AS il JOIN name AS n ON n.image = il.image \
                   WHERE n.name LIKE '%busybox%')";
    let sql = format!("DELETE FROM layer WHERE id IN {layers}");
    assert_eq!(db.execute(&sql, []).unwrap(), 2);
    drop(db);
    for verb in [
        &["images"][..],
        &["images", "-q"],
        &["df"],
        &["images", "--format", "json"],
    ] {
        let output = sandbox.ovl(verb).output().unwrap();
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert_eq!(output.status.code(), Some(5), "{verb:?} {stdout}{stderr}");
        assert!(
            verb.contains(&"-q") || stdout.contains("good") && !stdout.contains("busybox"),
            "{verb:?} {stdout}"
        );
        assert!(
            stderr.contains("busybox:latest") && stderr.contains("ovl fsck"),
            "{verb:?} {stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{verb:?} {stderr}");
    }
    // The others are found by their ID, and it is told what is wrong with this one.
    let output = sandbox.ovl(["images", "-q", "good:1"]).output().unwrap();
    let good = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    sandbox.run(["inspect", &good]);
    let id = id.as_str().unwrap().trim_start_matches("sha256:");
    let output = sandbox.ovl(["inspect", &id[..12]]).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("layer that is not there"), "{stderr}");
    // Put right, and listed again.
    sandbox.run(["fsck", "--repair"]);
    sandbox.run(["import".as_ref(), busybox().as_os_str()]);
    assert!(sandbox.run(["images"]).contains("busybox"));
}

/// The archive has room for what the store promised: what does not fit is the store's fault, not the output's.
#[test]
fn a_layer_longer_than_it_was_is_damage_and_leaves_no_output() {
    let sandbox = Sandbox::with_busybox();
    let db = rusqlite::Connection::open(sandbox.root().join("store.db")).unwrap();
    db.execute("UPDATE layer SET tar_size = tar_size - 512", [])
        .unwrap();
    drop(db);
    for format in ["docker-archive", "oci-archive"] {
        let out = sandbox.path(format);
        let format = format!("--format={format}");
        let output = sandbox
            .ovl(["export", &format, "busybox"])
            .arg(&out)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{format}: {stderr}");
        assert!(!out.exists());
    }
}

#[test]
fn images_has_dockers_columns() {
    let sandbox = Sandbox::with_busybox();
    let table = sandbox.run(["images"]);
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| {
            line.split("   ")
                .map(str::trim)
                .filter(|c| !c.is_empty())
                .collect()
        })
        .collect();
    assert_eq!(
        rows[0],
        ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]
    );
    assert_eq!(rows[1][..3], ["busybox", "latest", &CONFIG[7..19]]);
    assert!(
        rows[1][3].ends_with(" ago") && rows[1][4].ends_with("MB"),
        "{table}"
    );
    assert_eq!(rows.len(), 2);
}

#[test]
fn images_options() {
    let sandbox = Sandbox::with_busybox();
    sandbox.run(["tag", "busybox", "example.org/team/app:2"]);
    let short = &CONFIG[7..19];
    for (args, want) in [
        (vec!["images", "-q"], format!("{short}\n")),
        (vec!["images", "-q", "--no-trunc"], format!("{CONFIG}\n")),
        (
            vec!["images", "-q", "-f", "reference=*/team/*"],
            format!("{short}\n"),
        ),
        (
            vec!["images", "-q", "-f", "reference=nothing*"],
            String::new(),
        ),
        (vec!["images", "-q", "-f", "dangling=true"], String::new()),
        (vec!["images", "-q", "busybox"], format!("{short}\n")),
        (vec!["images", "-q", "busybox:1"], String::new()),
    ] {
        assert_eq!(sandbox.run(&args), want, "ovl {}", args.join(" "));
    }
    let digests = sandbox.run(["images", "--digests"]);
    assert!(
        digests.lines().next().unwrap().contains("DIGEST") && digests.contains("sha256:"),
        "{digests}"
    );
    assert_eq!(
        digests.lines().count(),
        3,
        "one line for each name: {digests}"
    );
}

#[test]
fn names_are_set_moved_and_removed() {
    let sandbox = Sandbox::with_busybox();
    sandbox.run(["tag", "busybox", "app:1"]);
    sandbox.run(["tag", &CONFIG[7..15], "app:2"]);
    assert_eq!(sandbox.run(["rmi", "app:1"]).trim(), "Untagged: app:1");
    assert!(sandbox.fail(4, ["inspect", "app:1"]).contains("app:1"));
    assert!(
        sandbox.fail(3, ["rmi", &CONFIG[7..19]]).contains("2 names"),
        "an ID with several names wants --force"
    );
    sandbox.run(["rmi", "app:2"]);
    let last = sandbox.run(["rmi", "busybox"]);
    assert!(
        last.contains("Untagged: busybox:latest") && last.contains(&format!("Deleted: {CONFIG}")),
        "{last}"
    );
    assert_eq!(sandbox.run(["images", "-q"]), "");
    sandbox.run(["gc"]);
    let after = json(&sandbox.run(["df", "--format", "json"]));
    assert_eq!((&after["Layers"], &after["Stored"]), (&0.into(), &0.into()));
}

#[test]
fn inspect_tells_what_docker_inspect_tells() {
    let sandbox = Sandbox::with_busybox();
    for name in [
        "busybox",
        "busybox:latest",
        "docker.io/library/busybox",
        CONFIG,
        &CONFIG[7..19],
    ] {
        let answer = json(&sandbox.run(["inspect", name]));
        let image = &answer[0];
        assert_eq!(image["Id"], CONFIG, "by {name}");
        assert_eq!(image["RepoTags"], serde_json::json!(["busybox:latest"]));
        assert_eq!(image["Created"], "2023-11-14T22:13:20Z");
        assert_eq!(
            (&image["Architecture"], &image["Os"]),
            (&"amd64".into(), &"linux".into())
        );
        assert_eq!(image["Config"]["Cmd"], serde_json::json!(["sh"]));
        assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn history_pairs_steps_with_layers() {
    let sandbox = Sandbox::with_busybox();
    let table = sandbox.run(["history", "busybox"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("IMAGE"), "{table}");
    assert!(
        lines[1].contains("a second layer") && lines[1].starts_with(&CONFIG[7..19]),
        "{table}"
    );
    assert!(
        lines[2].contains("busybox-static") && lines[2].contains("MB"),
        "{table}"
    );
}

#[test]
fn exported_layers_are_the_imported_ones_to_the_byte() {
    let sandbox = Sandbox::with_busybox();
    sandbox.run(["export", "busybox", "out.tar"]);
    let layers = |archive: &std::path::Path| -> Vec<String> {
        let source = format!("docker-archive:{}", archive.display());
        let raw = command("skopeo", ["inspect", "--config", "--raw", &source]);
        let config = json(&String::from_utf8(raw.stdout).unwrap());
        config["rootfs"]["diff_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| text(id).to_owned())
            .collect()
    };
    assert_eq!(layers(&sandbox.path("out.tar")), layers(&busybox()));
    // And a store that knows nothing of it proves each layer against its diff ID.
    let other = Sandbox::new();
    assert_eq!(
        other.run(["import".as_ref(), sandbox.path("out.tar").as_os_str()]),
        format!("{CONFIG}\n")
    );
}

#[test]
fn exports_go_where_skopeo_finds_them() {
    let sandbox = Sandbox::with_busybox();
    for (target, source) in [
        ("docker-archive:d.tar", "docker-archive:d.tar"),
        ("oci-archive:o.tar", "oci-archive:o.tar"),
        ("oci:layout", "oci:layout"),
        ("skopeo-dir:flat", "dir:flat"),
    ] {
        sandbox.run(["export", "busybox", target]);
        let (transport, path) = source.split_once(':').unwrap();
        command(
            "skopeo",
            [
                "inspect",
                &format!("{transport}:{}", sandbox.path(path).display()),
            ],
        );
        let other = Sandbox::new();
        other.run(["import".as_ref(), sandbox.path(path).as_os_str()]);
        assert_eq!(
            other.run(["images", "-q", "--no-trunc"]),
            format!("{CONFIG}\n"),
            "{target}"
        );
    }
    let piped = sandbox
        .ovl(["export", "busybox", "-"])
        .assert()
        .success()
        .get_output()
        .stdout
        .clone();
    assert_eq!(
        piped,
        std::fs::read(sandbox.path("d.tar")).unwrap(),
        "a pipe gets the same bytes as a file"
    );
}

#[test]
fn a_reader_that_goes_away_ends_a_list_quietly() {
    let sandbox = Sandbox::with_busybox();
    let ovl = assert_cmd::cargo::cargo_bin("ovl");
    let script = format!(
        "'{}' --root '{}' inspect busybox busybox | true; echo ${{PIPESTATUS[0]}}",
        ovl.display(),
        sandbox.root().display()
    );
    let output = command("bash", ["-c", &script]);
    assert_eq!(
        (
            String::from_utf8_lossy(&output.stdout).as_ref(),
            String::from_utf8_lossy(&output.stderr).as_ref()
        ),
        ("0\n", "")
    );
}
