//! Mistakes and their exit codes: one line on stderr that names the thing, nothing on stdout, the store as before.

mod common;

use common::{Sandbox, busybox};

#[test]
fn the_table_of_mistakes() {
    let sandbox = Sandbox::with_busybox();
    let archive = std::fs::read(busybox()).unwrap();
    sandbox.write("truncated.tar", &archive[..archive.len() / 2]);
    sandbox.write("text", "this is no archive\n");
    sandbox.write("empty", "");
    sandbox.mkdir("dir");
    sandbox.mkdir("mnt");
    let before = sandbox.run(["images", "--format", "json"]);

    for (code, args, names) in [
        (2, "", "Usage"),
        (2, "frobnicate", "frobnicate"),
        (2, "images --frobnicate", "--frobnicate"),
        (2, "import", "SOURCE"),
        (2, "images -f colour=green", "colour"),
        (2, "tag busybox app/UPPER", "app/UPPER"),
        (2, "tag busybox a:b:c", "a:b:c"),
        (2, "inspect bad..name//", "bad..name//"),
        (2, "mount only-one", "mount"),
        (4, "inspect nothing", "nothing"),
        (4, "inspect busybox:1.0", "busybox:1.0"),
        (
            4,
            "inspect sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "sha256:0000",
        ),
        (4, "history nothing", "nothing"),
        (4, "tag nothing app", "nothing"),
        (4, "rmi nothing", "nothing"),
        (4, "export nothing out.tar", "nothing"),
        (4, "import missing.tar", "missing.tar"),
        (4, "mount nothing upper mnt", "nothing"),
        (4, "umount mnt", "mnt"),
        (4, "diff mnt", "mnt"),
        (4, "commit mnt app", "mnt"),
        (1, "import text", "text"),
        (1, "import empty", "empty"),
    ] {
        let words: Vec<&str> = args.split_whitespace().collect();
        if names == "Usage" {
            sandbox.ovl(&words).assert().code(code);
            continue;
        }
        let line = sandbox.fail(code, &words);
        assert!(
            line.contains(names),
            "ovl {args}: says {line:?}, which does not name {names:?}"
        );
    }

    let truncated = sandbox.ovl(["import", "truncated.tar"]).assert().failure();
    assert!(matches!(truncated.get_output().status.code(), Some(1 | 5)));
    assert_eq!(
        sandbox.run(["images", "--format", "json"]),
        before,
        "a failed command changed the store"
    );
    assert!(
        !sandbox.path("out.tar").exists(),
        "a failed export left its file"
    );
}

#[test]
fn reading_where_no_store_is_makes_none() {
    let sandbox = Sandbox::new();
    assert_eq!(
        sandbox.run(["images"]),
        "REPOSITORY   TAG   IMAGE ID   CREATED   SIZE\n"
    );
    assert_eq!(sandbox.run(["images", "-q"]), "");
    assert_eq!(sandbox.run(["images", "--format", "json"]), "[]\n");
    sandbox.run(["df"]);
    sandbox.run(["gc"]);
    sandbox.run(["info"]);
    sandbox.fail(4, ["inspect", "x"]);
    sandbox.fail(4, ["rmi", "x"]);
    assert!(!sandbox.root().exists());
}

#[test]
fn a_store_that_cannot_be_is_named() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.root(), "in the way").unwrap();
    let line = sandbox.fail(1, ["import".as_ref(), busybox().as_os_str()]);
    assert!(line.contains("store"), "{line}");
}

#[test]
fn names_in_messages_cannot_drive_the_terminal() {
    let sandbox = Sandbox::new();
    let line = sandbox.fail(4, ["import", "no\x1b[31msuch\nfile"]);
    assert!(!line.contains('\x1b'), "{line:?}");
}
