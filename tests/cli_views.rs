//! `ovl tree`, `ovl cat`, `ovl diff` of images, and what `inspect` and `history` tell of layers.

mod common;
mod image_support;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use common::{Sandbox, command, require_mounting};
use image_support::{RawTar, docker_archive, pax_record};
use ovl::store::Digest;
use serde_json::{Value, json};

/// A sandbox with an image of these layers, bottom first, as `localhost/test:1`.
fn with_layers(layers: &[Vec<u8>]) -> Sandbox {
    let sandbox = Sandbox::new();
    import(&sandbox, "test:1", layers);
    sandbox
}

fn import(sandbox: &Sandbox, name: &str, layers: &[Vec<u8>]) {
    let archive = sandbox.write("image.tar", docker_archive(layers));
    sandbox.run([
        "import".as_ref(),
        "--tag".as_ref(),
        name.as_ref(),
        archive.as_os_str(),
    ]);
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What `tree` tells is what a mount shows.
#[test]
fn a_tree_is_what_a_mount_shows() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    let more = [
        RawTar::new()
            .dir("d")
            .file("d/hidden", b"x")
            .file("d/gone", b"x")
            .hard_link("d/twin", "d/gone")
            .header(b"pipe", b'6', 0, b"")
            .extension(b'x', &pax_record("SCHILY.xattr.user.note", b"a\xff"))
            .file("noted", b"text")
            .end(),
        RawTar::new()
            .file("d/.wh..wh..opq", b"")
            .file("d/new", b"new")
            .symlink("link", "/d/new")
            .end(),
    ];
    import(&sandbox, "more:1", &more);
    for image in ["busybox", "more:1"] {
        let mount = sandbox.mkdir("mnt");
        sandbox.run(["mount", "--read-only", image, "mnt"]);
        let mut want = Vec::new();
        for entry in walkdir::WalkDir::new(&mount).sort_by_file_name() {
            let entry = entry.unwrap();
            let meta = entry.path().symlink_metadata().unwrap();
            let path = entry.path().strip_prefix(&mount).unwrap();
            let mut row = json!({
                "Path": format!("/{}", path.display()),
                "Mode": format!("{:04o}", meta.mode() & 0o7777),
                "Uid": meta.uid(), "Gid": meta.gid(), "Size": meta.size(), "Links": meta.nlink(),
            });
            if meta.is_symlink() {
                let target = std::fs::read_link(entry.path()).unwrap();
                row["Target"] = target.to_str().unwrap().into();
            }
            want.push(row);
        }
        let mut got = parsed(&sandbox.run(["tree", image, "--format", "json"]));
        for row in got.as_array_mut().unwrap() {
            let row = row.as_object_mut().unwrap();
            row.remove("Type");
            row.remove("Modified");
            row.remove("Xattrs");
        }
        assert_eq!(got, Value::Array(want), "{image}");
        sandbox.run(["umount", "mnt"]);
    }
    let rows = parsed(&sandbox.run(["tree", "more:1", "noted", "--format", "json"]));
    assert_eq!(rows[0]["Xattrs"], json!({ "user.note": "a\\xff" }));
}

#[test]
fn a_tree_for_people() {
    let sandbox = with_layers(&[RawTar::new()
        .dir("a")
        .dir("a/b")
        .file("a/b/deep", b"deep")
        .header(b"a/bell\x07\xff", b'0', 0, b"")
        .symlink("a/link", "b\n")
        .header(b"z", b'6', 0, b"")
        .end()]);
    let whole = "\
/
├── a/
│   ├── b/
│   │   └── deep
│   ├── bell\\x07\\xff
│   └── link -> b\\n
└── z
";
    assert_eq!(sandbox.run(["tree", "test:1"]), whole);
    assert_eq!(
        sandbox.run(["tree", "image:test:1", "-L1"]),
        "/\n├── a/\n└── z\n"
    );
    assert_eq!(sandbox.run(["tree", "test:1", "-L0"]), "/\n");
    assert_eq!(sandbox.run(["tree", "test:1", "a/b/deep"]), "/a/b/deep\n");
    assert_eq!(
        sandbox.run(["tree", "test:1", "/a/./b/", "--long"]),
        "drwxr-xr-x 0:0                  - 1970-01-01T00:00:15Z  /a/b/\n\
         -rwxr-xr-x 0:0                  4 1970-01-01T00:00:15Z  └── deep\n"
    );
    for (code, path, word) in [
        (4, "/nope", "/nope"),
        (4, "/a/nope/x", "/a/nope/x"),
        (2, "/z/x", "/z is no directory"),
        (2, "/a/b/deep/", "no directory"),
    ] {
        assert!(
            sandbox.fail(code, ["tree", "test:1", path]).contains(word),
            "{path}"
        );
    }
    sandbox.fail(4, ["tree", "no-such-image"]);
}

/// Symlinks of an image lead nowhere on this machine, whatever they say.
#[test]
fn symlinks_stay_in_the_image() {
    let sandbox = Sandbox::new();
    let canary = sandbox.write("canary", "of the host");
    let canary = canary.to_str().unwrap();
    let up = format!("{}{canary}", "../".repeat(30));
    let layer = RawTar::new()
        .dir("dir")
        .file("dir/file", b"of the image")
        .symlink("absolute", "/dir/file")
        .symlink("up", "../../../dir/../../dir/file")
        .symlink("dir/here", "./file")
        .symlink("chain", "absolute")
        .symlink("round", "round")
        .symlink("todir", "/dir/")
        .symlink("host", canary)
        .symlink("host-up", &up)
        .header(b"null", b'3', 0, b"")
        .end();
    import(&sandbox, "test:1", &[layer]);
    for path in [
        "dir/file",
        "/dir/file",
        "//dir/./file",
        "absolute",
        "up",
        "dir/here",
        "chain",
        "todir/file",
        "todir/../absolute",
        "../../dir/file",
    ] {
        assert_eq!(
            sandbox.run(["cat", "test:1", path]),
            "of the image",
            "{path}"
        );
    }
    assert_eq!(
        sandbox.run(["cat", "test:1", "absolute", "dir/file"]),
        "of the imageof the image"
    );
    for (code, path, word) in [
        (4, canary, canary),
        (4, "host", "/host"),
        (4, "host-up", "/host-up"),
        (2, "round", "40 symlinks"),
        (2, "dir", "is a directory, not a file"),
        (2, "todir", "is a directory"),
        (2, "/", "is a directory"),
        (2, "null", "is a character device"),
        (2, "absolute/", "is no directory"),
        (2, "absolute/x", "is no directory"),
    ] {
        let line = sandbox.fail(code, ["cat", "test:1", path]);
        assert!(line.contains(word), "{path}: {line}");
    }
    // Nothing is written if any of the words is a mistake.
    sandbox.fail(2, ["cat", "test:1", "dir/file", "dir"]);
    sandbox.fail(2, ["cat", "test:1", &"x".repeat(256)]);
}

#[test]
fn cat_gives_large_files_and_odd_names() {
    let data: Vec<u8> = (0..3_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 9) as u8)
        .collect();
    let sandbox = with_layers(&[
        RawTar::new()
            .file("large", b"an older one")
            .file("gone", b"x")
            .end(),
        RawTar::new()
            .header(b"large", b'0', data.len() as u64, b"")
            .body(&data)
            .header(b"odd\xff", b'0', 1, b"")
            .body(b"o")
            .file(".wh.gone", b"")
            .end(),
    ]);
    let got = sandbox.ovl(["cat", "test:1", "large"]).output().unwrap();
    assert!(got.status.success() && got.stdout == data);
    let odd = [
        OsStr::new("cat"),
        OsStr::new("test:1"),
        OsStr::from_bytes(b"odd\xff"),
    ];
    assert_eq!(sandbox.run(odd), "o");
    sandbox.fail(4, ["cat", "test:1", "gone"]);
    // A reader that goes away ends the command quietly.
    let script = format!(
        "'{}' --root '{}' cat test:1 large | head -c1 | wc -c; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_ovl"),
        sandbox.root().display()
    );
    let output = command("bash", ["-c", &script]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n0\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// An entry with other attributes than the helpers give.
fn entry(path: &str, kind: u8, data: &[u8], set: &[(&str, &str)]) -> RawTar {
    let records: Vec<(&str, &[u8])> = set
        .iter()
        .map(|(key, value)| (*key, value.as_bytes()))
        .collect();
    let tar = if records.is_empty() {
        RawTar::new()
    } else {
        RawTar::new().pax(&records)
    };
    tar.header(path.as_bytes(), kind, data.len() as u64, b"")
        .body(data)
}

fn with_mode(mut tar: RawTar, mode: u32) -> RawTar {
    let at = tar.bytes.len() - 512;
    tar.bytes[at + 100..at + 108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    let block: &mut [u8; 512] = (&mut tar.bytes[at..]).try_into().unwrap();
    image_support::checksum(block);
    tar
}

fn base() -> RawTar {
    let tar = RawTar::new()
        .dir("same")
        .file("same/file", b"same")
        .file("content", b"one")
        .file("length", b"one")
        .header(b"mode", b'0', 0, b"")
        .header(b"owner", b'0', 0, b"")
        .header(b"xattr", b'0', 0, b"")
        .header(b"time", b'0', 0, b"")
        .symlink("target", "old")
        .header(b"node", b'3', 0, b"")
        .file("becomes-dir", b"x")
        .dir("becomes-file")
        .file("becomes-file/in", b"x")
        .dir("dir")
        .file("dir/stays", b"x")
        .file("dir/goes", b"x")
        .dir("dirmode")
        .dir("gone")
        .file("gone/in", b"x")
        .file("first", b"name");
    tar.hard_link("second", "first")
}

fn changed() -> Vec<u8> {
    let mut node = RawTar::new().header(b"node", b'3', 0, b"");
    node.bytes[337..345].copy_from_slice(b"0000007\0");
    let block: &mut [u8; 512] = (&mut node.bytes[..]).try_into().unwrap();
    image_support::checksum(block);
    [
        RawTar::new()
            .file("content", b"two")
            .file("length", b"longer"),
        with_mode(RawTar::new().header(b"mode", b'0', 0, b""), 0o4711),
        entry("owner", b'0', b"", &[("uid", "7")]),
        entry("xattr", b'0', b"", &[("SCHILY.xattr.user.a", "b")]),
        entry("time", b'0', b"", &[("mtime", "15.5")]),
        RawTar::new().symlink("target", "new"),
        node,
        RawTar::new()
            .dir("becomes-dir")
            .file("becomes-dir/in", b"x"),
        RawTar::new().file("becomes-file", b""),
        RawTar::new()
            .file("dir/.wh.goes", b"")
            .file("dir/comes", b"x"),
        with_mode(RawTar::new().dir("dirmode"), 0o700),
        RawTar::new().file(".wh.gone", b""),
        RawTar::new()
            .dir("added")
            .dir("added/dir")
            .file("added/dir/file", b"x"),
    ]
    .into_iter()
    .fold(RawTar::new(), |all, one| all.raw(&one.bytes))
    .end()
}

const DIFFERENCE: &str = "\
A /added
A /added/dir
A /added/dir/file
C /becomes-dir
A /becomes-dir/in
C /becomes-file
C /content
C /dir
A /dir/comes
D /dir/goes
C /dirmode
D /gone
C /length
C /mode
C /node
C /owner
C /target
C /time
C /xattr
";

#[test]
fn a_difference_of_images() {
    let sandbox = Sandbox::new();
    import(&sandbox, "old:1", &[base().end()]);
    import(&sandbox, "new:1", &[base().end(), changed()]);
    assert_eq!(sandbox.run(["diff", "old:1", "image:new:1"]), DIFFERENCE);
    let rows = parsed(&sandbox.run(["diff", "old:1", "new:1", "--format", "json"]));
    let what = |path: &str| {
        let row = rows
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["Path"] == path);
        row.unwrap_or_else(|| panic!("{path} in {rows}"))["What"].clone()
    };
    for (path, want) in [
        ("/content", json!(["Content"])),
        ("/length", json!(["Content"])),
        ("/mode", json!(["Mode"])),
        ("/owner", json!(["Owner"])),
        ("/xattr", json!(["Xattr"])),
        ("/time", json!(["Time"])),
        ("/target", json!(["Content"])),
        ("/node", json!(["Content"])),
        ("/becomes-dir", json!(["Type"])),
        ("/becomes-file", json!(["Type"])),
        ("/dirmode", json!(["Mode"])),
        ("/dir", Value::Null),
        ("/added", Value::Null),
        ("/gone", Value::Null),
    ] {
        assert_eq!(what(path), want, "{path}");
    }
    // The other way round: what was added is deleted.
    let back = sandbox.run(["diff", "new:1", "old:1"]);
    for line in [
        "D /added\n",
        "A /gone\n",
        "A /gone/in\n",
        "C /content\n",
        "D /dir/comes\n",
    ] {
        assert!(back.contains(line), "{line:?} in {back}");
    }
    assert!(
        !back.contains("/added/dir") && !back.contains("/same"),
        "{back}"
    );
    assert_eq!(sandbox.run(["diff", "new:1", "new:1"]), "");
    assert_eq!(
        sandbox.run(["diff", "new:1", "new:1", "--format", "json"]),
        "[]\n"
    );
    sandbox.fail(4, ["diff", "new:1", "none:1"]);
    sandbox.fail(4, ["diff", "new:1"]);
}

/// The same files in other layers: what the store holds once is equal without a byte of it being read.
#[test]
fn equal_contents_are_not_read() {
    let sandbox = Sandbox::new();
    let data: Vec<u8> = (0..500_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect();
    let files = |tar: RawTar| {
        tar.header(b"large", b'0', data.len() as u64, b"")
            .body(&data)
            .file("small", b"small")
    };
    import(&sandbox, "one:1", &[files(RawTar::new()).end()]);
    import(
        &sandbox,
        "two:1",
        &[
            RawTar::new().file("small", b"old").end(),
            files(RawTar::new()).file("new", b"x").end(),
        ],
    );
    let ruin = "UPDATE pack SET codec = 0, data = zeroblob(1)";
    command(
        "sqlite3",
        [sandbox.root().join("store.db").as_os_str(), ruin.as_ref()],
    );
    assert_eq!(sandbox.run(["diff", "one:1", "two:1"]), "A /new\n");
    let output = sandbox.ovl(["cat", "one:1", "small"]).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
}

/// Zeros that were written and zeros that are a hole are the same bytes, and terabytes of hole take no time.
#[test]
fn holes_are_zeros() {
    let sandbox = Sandbox::new();
    let sparse = |size: u64, data: &[u8]| {
        let map = format!("1\n0\n{}\n", data.len());
        let mut body = map.into_bytes();
        body.resize(512, 0);
        body.extend_from_slice(data);
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"file"),
            ("GNU.sparse.realsize", &size.to_string().into_bytes()),
        ];
        RawTar::new()
            .pax(&records)
            .header(b"s", b'0', body.len() as u64, b"")
            .body(&body)
            .end()
    };
    let mut written = b"data".to_vec();
    written.resize(100_000, 0);
    import(&sandbox, "hole:1", &[sparse(100_000, b"data")]);
    import(
        &sandbox,
        "zeros:1",
        &[RawTar::new().file("file", &written).end()],
    );
    let rows = parsed(&sandbox.run(["diff", "hole:1", "zeros:1", "--format", "json"]));
    assert_eq!(rows, json!([]));
    let terabytes = 8 << 40;
    import(&sandbox, "huge:1", &[sparse(terabytes, b"data")]);
    import(&sandbox, "huge:2", &[sparse(terabytes, b"date")]);
    import(&sandbox, "huge:3", &[sparse(terabytes, b"data\0\0")]);
    assert_eq!(sandbox.run(["diff", "huge:1", "huge:2"]), "C /file\n");
    assert_eq!(sandbox.run(["diff", "huge:1", "huge:3"]), "");
}

/// The same words for a mount: what of a file was changed.
#[test]
fn a_mounts_difference_tells_what() {
    require_mounting();
    let sandbox = Sandbox::new();
    import(&sandbox, "old:1", &[base().end()]);
    sandbox.mkdir("mnt");
    sandbox.run(["mount", "old:1", "upper", "mnt"]);
    let mnt = sandbox.path("mnt");
    let script = "echo twx > content; chmod 600 mode; touch -d @99 time; chown 7 owner; rm target; mkdir target; \
                  touch -r same/file content mode owner; echo x > dir/new";
    let script = format!("cd '{}'; {script}", mnt.display());
    command("sh", ["-euc", &script]);
    let rows = parsed(&sandbox.run(["diff", "mnt", "--format", "json"]));
    for (path, want) in [
        ("/content", json!(["Content"])),
        ("/mode", json!(["Mode"])),
        ("/owner", json!(["Owner"])),
        ("/time", json!(["Time"])),
        ("/dir", json!(["Time"])),
        ("/dir/new", Value::Null),
    ] {
        let row = rows
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["Path"] == path);
        assert_eq!(
            row.unwrap_or_else(|| panic!("{path} in {rows}"))["What"],
            want,
            "{path}"
        );
    }
    sandbox.run(["umount", "mnt"]);
}

#[test]
fn inspect_and_history_tell_of_layers() {
    let sandbox = Sandbox::with_busybox();
    let image = &parsed(&sandbox.run(["inspect", "busybox", "--format", "json"]))[0];
    let layers = image["Layers"].as_array().unwrap();
    let ids: Vec<&Value> = layers.iter().map(|layer| &layer["DiffId"]).collect();
    assert_eq!(
        Value::from_iter(ids.into_iter().cloned()),
        image["RootFS"]["Layers"]
    );
    let sum: u64 = layers
        .iter()
        .map(|layer| layer["Size"].as_u64().unwrap())
        .sum();
    assert_eq!(image["Size"], sum);
    for (layer, described) in layers
        .iter()
        .zip(image["Manifest"]["layers"].as_array().unwrap())
    {
        assert_eq!(layer["Blob"]["Digest"], described["digest"]);
        assert_eq!(layer["Blob"]["Size"], described["size"]);
        assert_eq!(
            layer["TarSize"], described["size"],
            "the layers of this image are plain tars"
        );
        assert!(layer["Entries"].as_u64().unwrap() > 0);
    }
    let table = sandbox.run(["inspect", "busybox", "--format", "table"]);
    for word in [
        "busybox:latest",
        "linux/amd64",
        "1.98MB",
        "DIFF ID",
        "97e1c2f26cfb",
    ] {
        assert!(table.contains(word), "{word} in {table}");
    }
    let steps = parsed(&sandbox.run(["history", "busybox", "--format", "json"]));
    assert_eq!(steps[0]["Layer"], layers[1]["DiffId"]);
    assert_eq!(steps[0]["TarSize"], layers[1]["TarSize"]);
    let digest: Digest = steps[1]["Layer"].as_str().unwrap().parse().unwrap();
    assert_eq!(layers[0]["DiffId"], digest.to_string());
}

/// Colours are for terminals, and not for everyone.
#[test]
fn colours_are_for_terminals() {
    let sandbox = Sandbox::with_busybox();
    let on_terminal = |no_color: &str, term: &str| {
        let ovl = format!(
            "NO_COLOR={no_color} TERM={term} '{}' --root '{}' tree busybox /bin -L1",
            env!("CARGO_BIN_EXE_ovl"),
            sandbox.root().display()
        );
        let output = command("script", ["-qec", &ovl, "/dev/null"]);
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(on_terminal("", "xterm").contains("\x1b[36mash\x1b[0m -> busybox"));
    for plain in [
        on_terminal("1", "xterm"),
        on_terminal("", "dumb"),
        sandbox.run(["tree", "busybox", "/bin"]),
    ] {
        assert!(
            plain.contains("ash -> busybox") && !plain.contains('\x1b'),
            "{plain}"
        );
    }
}
