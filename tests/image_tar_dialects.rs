//! Every dialect of tar that the usual programs write: the tree must be the one that was packed, and the layer must come
//! back bit for bit.

mod image_support;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use image_support::*;
use ovl::image::{ImportOptions, Source, import};
use ovl::store::{Digest, Store};

/// Imports the tar of a root file system and gives its only layer.
#[track_caller]
fn import_rootfs(store: &Store, tar: &Path, what: &str) -> Digest {
    let source = Source::parse(tar.as_os_str()).unwrap();
    let images = import(store, &source, &ImportOptions::default(), &())
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].layers.len(), 1);
    images[0].layers[0]
}

/// Times to whole seconds, for dialects that keep no more.
fn whole_seconds(mut tree: Tree) -> Tree {
    for seen in tree.values_mut() {
        seen.mtime.1 = 0;
    }
    tree
}

struct Case {
    name: &'static str,
    program: &'static str,
    args: &'static [&'static str],
    odd: bool,
    fractions: bool,
}

const CASES: &[Case] = &[
    Case {
        name: "gnu-v7",
        program: "tar",
        args: &["--format=v7"],
        odd: false,
        fractions: false,
    },
    Case {
        name: "gnu-oldgnu",
        program: "tar",
        args: &["--format=oldgnu", "--sparse"],
        odd: true,
        fractions: false,
    },
    Case {
        name: "gnu-gnu",
        program: "tar",
        args: &["--format=gnu", "--sparse"],
        odd: true,
        fractions: false,
    },
    Case {
        name: "gnu-ustar",
        program: "tar",
        args: &["--format=ustar"],
        odd: false,
        fractions: false,
    },
    Case {
        name: "gnu-posix",
        program: "tar",
        args: &["--format=posix"],
        odd: true,
        fractions: true,
    },
    Case {
        name: "gnu-posix-sparse-0.0",
        program: "tar",
        args: &["--format=posix", "--sparse", "--sparse-version=0.0"],
        odd: true,
        fractions: true,
    },
    Case {
        name: "gnu-posix-sparse-0.1",
        program: "tar",
        args: &["--format=posix", "--sparse", "--sparse-version=0.1"],
        odd: true,
        fractions: true,
    },
    Case {
        name: "gnu-posix-sparse-1.0",
        program: "tar",
        args: &["--format=posix", "--sparse", "--sparse-version=1.0"],
        odd: true,
        fractions: true,
    },
    Case {
        name: "gnu-small-records",
        program: "tar",
        args: &["--format=gnu", "-b1"],
        odd: true,
        fractions: false,
    },
    Case {
        name: "bsd-ustar",
        program: "bsdtar",
        args: &["--format=ustar"],
        odd: false,
        fractions: false,
    },
    Case {
        name: "bsd-pax",
        program: "bsdtar",
        args: &["--format=pax"],
        odd: true,
        fractions: true,
    },
    Case {
        name: "bsd-gnutar",
        program: "bsdtar",
        args: &["--format=gnutar"],
        odd: true,
        fractions: false,
    },
    Case {
        name: "bsd-v7",
        program: "bsdtar",
        args: &["--format=v7"],
        odd: false,
        fractions: false,
    },
];

#[test]
fn every_dialect_round_trips() {
    let dir = temp();
    let store = store(dir.path());
    for odd in [false, true] {
        let root = dir.path().join(format!("root-{odd}"));
        fs::create_dir(&root).unwrap();
        make_rootfs(&root, odd);
        let want = host_tree(&root);
        for case in CASES.iter().filter(|case| case.odd == odd) {
            let tar = dir.path().join(case.name);
            let mut args: Vec<&dyn AsRef<OsStr>> =
                case.args.iter().map(|a| a as &dyn AsRef<OsStr>).collect();
            let rest: [&dyn AsRef<OsStr>; 5] = [&"-cf", &tar, &"-C", &root, &"."];
            args.extend(rest);
            let mut expect = want.clone();
            if case.name.ends_with("v7") {
                // V7 knows neither FIFOs nor devices; both programs leave them out and say so by their exit code.
                for lost in ["tmp/fifo", "tmp/null", "tmp/block"] {
                    expect.remove(OsStr::new(lost));
                }
                args.insert(0, &"--exclude=./tmp/?*");
            }
            if case.name == "bsd-gnutar" {
                // libarchive writes times before 1970 as 0 in this dialect.
                expect.get_mut(OsStr::new("etc/empty")).unwrap().mtime = (0, 0);
            }
            if case.name == "bsd-pax" {
                // libarchive writes the fraction of a negative time counted forward, as "-43200.25" for what is
                // -43199.75; every reader (its own too) takes that for -43200.25.
                expect.get_mut(OsStr::new("etc/empty")).unwrap().mtime = (-43_201, 750_000_000);
            }
            run(case.program, &args);
            let layer = import_rootfs(&store, &tar, case.name);
            let raw = fs::read(&tar).unwrap();
            assert_eq!(layer, Digest::of(&raw), "{}", case.name);
            assert!(
                layer_tar(&store, &layer) == raw,
                "{}: not bit for bit",
                case.name
            );
            let got = stored_tree(&store, &layer);
            if case.fractions {
                assert_same(&expect, &got, case.name);
            } else {
                assert_same(&whole_seconds(expect), &whole_seconds(got), case.name);
            }
        }
    }
}

#[test]
fn python_dialects_round_trip() {
    let dir = temp();
    let store = store(dir.path());
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    make_rootfs(&root, true);
    let want = host_tree(&root);
    for format in ["USTAR", "GNU", "PAX"] {
        let tar = dir.path().join(format);
        let script = format!(
            "import tarfile,sys\n\
             t=tarfile.open(sys.argv[2],'w',format=tarfile.{format}_FORMAT,errors='surrogateescape',encoding='utf-8')\n\
             def f(i):\n  i.name=i.name or '.'\n  return None if '{format}'=='USTAR' and ('dddd' in i.name or 'ttt' in i.linkname or i.mtime<0) else i\n\
             t.add(sys.argv[1],arcname='.',filter=f)\n\
             t.close()\n"
        );
        run("python3", &[&"-c", &script, &root, &tar]);
        let layer = import_rootfs(&store, &tar, format);
        let raw = fs::read(&tar).unwrap();
        assert!(
            layer_tar(&store, &layer) == raw,
            "{format}: not bit for bit"
        );
        let mut expect = want.clone();
        if format == "USTAR" {
            expect.retain(|path, seen| {
                let name = path.to_string_lossy();
                !name.contains("dddd") && !name.contains("long-target") && seen.mtime.0 >= 0
            });
        }
        assert_same(&near(expect), &near(stored_tree(&store, &layer)), format);
    }
}

/// Python keeps times as floating point numbers, good to about a microsecond.
fn near(mut tree: Tree) -> Tree {
    for seen in tree.values_mut() {
        seen.mtime.1 = 0;
        seen.mtime.0 = seen.mtime.0.max(0);
    }
    tree
}

#[test]
fn xattrs_and_acls_survive() {
    let dir = temp();
    let store = store(dir.path());
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let file = root.join("file");
    fs::write(&file, "x").unwrap();
    for (name, value) in [
        ("user.plain", &b"value"[..]),
        ("user.binary", b"\0\xff\n=\0"),
        ("trusted.t", b"t"),
        ("user.empty", b""),
    ] {
        rustix::fs::setxattr(&file, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    }
    let acl = [
        2u8, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 7, 0, 0x31, 0xd4, 0, 0, 4, 0, 4, 0,
        255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
    ];
    rustix::fs::setxattr(
        &file,
        "system.posix_acl_access",
        &acl,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let common: [(&str, &[u8]); 3] = [
        ("trusted.t", b"t"),
        ("user.binary", b"\0\xff\n=\0"),
        ("user.plain", b"value"),
    ];
    let pax: [&dyn AsRef<OsStr>; 2] = [&"--format=posix", &"--numeric-owner"];
    type Packed<'a> = (&'a str, &'a str, Vec<&'a dyn AsRef<OsStr>>, bool);
    let cases: [Packed<'_>; 3] = [
        (
            "gnu-xattrs",
            "tar",
            [
                &pax[..],
                &[
                    &"--xattrs",
                    &"--xattrs-include=user.*",
                    &"--xattrs-include=trusted.*",
                ],
            ]
            .concat(),
            false,
        ),
        (
            "gnu-acls",
            "tar",
            [
                &pax[..],
                &[
                    &"--acls",
                    &"--xattrs",
                    &"--xattrs-include=user.*",
                    &"--xattrs-include=trusted.*",
                ],
            ]
            .concat(),
            true,
        ),
        (
            "bsd",
            "bsdtar",
            vec![&"--format=pax", &"--xattrs", &"--acls"],
            true,
        ),
    ];
    for (name, program, mut args, acls) in cases {
        let tar = dir.path().join(name);
        let rest: [&dyn AsRef<OsStr>; 5] = [&"-cf", &tar, &"-C", &root, &"file"];
        args.extend(rest);
        run(program, &args);
        let layer = import_rootfs(&store, &tar, name);
        assert!(layer_tar(&store, &layer) == fs::read(&tar).unwrap());
        let reader = store.open_layer(&layer).unwrap();
        let entry = reader
            .lookup(ovl::store::ROOT_INODE, OsStr::new("file"))
            .unwrap()
            .unwrap();
        let mut got = reader.xattrs(entry.target.unwrap().0).unwrap();
        got.sort();
        for (key, value) in common {
            assert!(
                got.iter().any(|(k, v)| k == key && v == value),
                "{name}: {key} in {got:?}"
            );
        }
        let have = got
            .iter()
            .find(|(k, _)| k == "system.posix_acl_access")
            .map(|(_, v)| v.as_slice());
        assert_eq!(have, acls.then_some(&acl[..]), "{name}");
    }
}
