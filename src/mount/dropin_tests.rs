//! Tables of command lines as podman, mount(8), mount.fuse3 and people write them.

use std::time::Duration;

use super::*;

fn call(name: &'static str, words: &[&str]) -> Call {
    match parse(name, words.iter().map(OsString::from)) {
        Ok(Order::Mount(call)) => *call,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn refusal(name: &'static str, words: &[&str]) -> String {
    match parse(name, words.iter().map(OsString::from)) {
        Err(error) => error.to_string(),
        other => panic!("{words:?}: {other:?}"),
    }
}

#[test]
fn names() {
    for (program, name) in [
        ("fuse-overlayfs", Some("fuse-overlayfs")),
        ("/usr/local/bin/fuse-overlayfs", Some("fuse-overlayfs")),
        ("./ovl-fuse", Some("ovl-fuse")),
        ("/sbin/mount.fuse.ovl", Some("mount.fuse.ovl")),
        ("ovl", None),
        ("/usr/bin/ovl", None),
        ("fuse-overlayfs.bak", None),
        ("", None),
        ("/", None),
    ] {
        assert_eq!(called_as(OsStr::new(program)), name, "{program}");
    }
}

#[test]
fn command_lines() {
    let fo = "fuse-overlayfs";
    // (name, words, source, mount point, foreground, debug)
    type Row<'a> = (
        &'static str,
        &'a [&'a str],
        Option<&'a str>,
        &'a str,
        bool,
        bool,
    );
    let table: &[Row<'_>] = &[
        (
            fo,
            &["-o", "lowerdir=/l", "/merged"],
            None,
            "/merged",
            false,
            false,
        ),
        (fo, &["-olowerdir=/l", "m"], None, "m", false, false),
        (
            fo,
            &["overlay", "/m", "-o", "lowerdir=/l"],
            Some("overlay"),
            "/m",
            false,
            false,
        ),
        (
            fo,
            &["-f", "-o", "lowerdir=/l", "src", "/m"],
            Some("src"),
            "/m",
            true,
            false,
        ),
        (fo, &["-d", "-olowerdir=/l", "/m"], None, "/m", true, true),
        (
            fo,
            &["--debug", "-olowerdir=/l", "/m"],
            None,
            "/m",
            true,
            true,
        ),
        (
            fo,
            &["-o", "debug,lowerdir=/l", "/m"],
            None,
            "/m",
            true,
            true,
        ),
        (
            fo,
            &["-s", "-olowerdir=/l", "--", "-m"],
            None,
            "-m",
            false,
            false,
        ),
        (
            "mount.fuse.ovl",
            &[
                "src",
                "/m",
                "-n",
                "-s",
                "-v",
                "-o",
                "rw,lowerdir=/l",
                "-t",
                "fuse.ovl",
            ],
            Some("src"),
            "/m",
            false,
            false,
        ),
    ];
    for (name, words, source, mount_point, foreground, debug) in table {
        let call = call(name, words);
        assert_eq!(call.source.as_deref(), source.map(OsStr::new), "{words:?}");
        assert_eq!(call.mount_point, Path::new(mount_point), "{words:?}");
        assert_eq!(
            (call.foreground, call.debug),
            (*foreground, *debug),
            "{words:?}"
        );
        assert_eq!(call.options.lowers, [PathBuf::from("/l")], "{words:?}");
        assert_eq!(call.warnings, Vec::<String>::new(), "{words:?}");
    }
}

#[test]
fn several_lists_add_up_and_unknown_words_are_told() {
    let words = [
        "--bogus",
        "-x",
        "-o",
        "lowerdir=/l,timeout=2,new_thing",
        "-otimeout=3,,",
        "/m",
    ];
    let call = call("fuse-overlayfs", &words);
    assert_eq!(call.options.timeout, Some(Duration::from_secs(3)));
    assert_eq!(
        call.warnings,
        ["--bogus", "-x", "new_thing"].map(|word| format!("unknown argument ignored: {word}"))
    );
}

#[test]
fn words_that_only_say_something() {
    let said = |name, word: &str| match parse(name, [OsString::from(word)]) {
        Ok(Order::Say(text)) => text,
        other => panic!("{word}: {other:?}"),
    };
    for name in NAMES {
        for word in ["-h", "--help"] {
            assert!(said(name, word).starts_with(&format!("usage: {name} [options]")));
        }
        for word in ["-V", "--version"] {
            let text = said(name, word);
            assert!(text.starts_with("fuse-overlayfs: version 1."), "{text}");
            assert!(text.contains("ovl: version "), "{text}");
        }
    }
    // mount -f: everything but the mount.
    assert_eq!(said("mount.fuse.ovl", "-f"), "");
}

#[test]
fn refusals() {
    for (words, part) in [
        (&[][..], "mount point"),
        (&["-o", "lowerdir=/l"], "mount point"),
        (&["-o", "lowerdir=/l", ""], "mount point"),
        (&["/m", "-o"], "-o wants a value"),
        (&["-o", "plugins=a.so", "/m"], "plugins"),
        (&["-o", "uidmapping=0:1", "/m"], "uidmapping"),
        (&["-o", "remount,ro", "/m"], "anew"),
    ] {
        let text = refusal("fuse-overlayfs", words);
        assert!(
            text.contains(part) && !text.contains('\n'),
            "{words:?}: {text}"
        );
    }
    let run = tempfile::tempdir().expect("temporary directory");
    for (list, part) in [
        ("", "lowerdir"),
        ("upperdir=/u,workdir=/w", "lowerdir"),
        ("lowerdir=/l,upperdir=/u", "workdir"),
    ] {
        let run = RunDir::at(&run.path().join("run")).expect("run directory");
        let error = call("ovl-fuse", &["-o", list, "/m"])
            .spec(run, "/store".into())
            .expect_err(list);
        assert!(error.to_string().contains(part), "{list}: {error}");
        assert_eq!(exit_code("ovl-fuse", &error), 1);
        assert_eq!(exit_code("mount.fuse.ovl", &error), 1);
    }
    let gone = Error::NotMounted { path: "/m".into() };
    assert_eq!(exit_code("fuse-overlayfs", &gone), 1);
    assert_eq!(exit_code("mount.fuse.ovl", &gone), 32);
}

#[test]
fn defaults_of_root_and_others() {
    let run = tempfile::tempdir().expect("temporary directory");
    let run = RunDir::at(&run.path().join("run")).expect("run directory");
    let spec = |words: &[&str]| {
        call("fuse-overlayfs", words)
            .spec(run.clone(), "/store".into())
            .expect("a mount")
    };
    let root = rustix::process::geteuid().is_root();
    let plain = spec(&["-olowerdir=/l", "/m"]);
    let flags = plain.flags;
    assert_eq!((flags.suid, flags.allow_other), (root, root));
    assert_eq!(
        (flags.dev, flags.atime, flags.exec, flags.read_only),
        (false, false, true, false)
    );
    assert_eq!(plain.fuse.entry_ttl, fuse::FOREVER);
    assert_eq!(plain.overlay.aufs, Aufs::Read);
    assert!(plain.upper.is_none() && plain.lowers.len() == 1);

    let told = spec(&[
        "-olowerdir=/l,upperdir=u,workdir=w,nosuid,dev,noexec,atime,ro",
        "src",
        "/m",
    ]);
    let flags = told.flags;
    assert_eq!(
        (
            flags.suid,
            flags.dev,
            flags.exec,
            flags.atime,
            flags.read_only
        ),
        (false, true, false, true, true)
    );
    assert_eq!(flags.source, "src");
    let upper = told.upper.expect("an upper, though read-only");
    assert_eq!(upper.work.as_deref(), Some(Path::new("w")));
    assert!(!upper.create, "directories are made by the caller");
}
