//! What the programs are told: each of their formats with each tree that it can hold.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::image_support::run;

/// Arguments, and the trees that fit.
type Format = (&'static [&'static str], &'static [&'static str]);

const PLAIN: &[&str] = &["plain", "links", "holes"];
const USTAR: &[&str] = &["plain", "links", "special", "holes"];
const GNU: &[&str] = &["plain", "links", "special", "names", "times", "holes"];
const ALL: &[&str] = &[
    "plain",
    "links",
    "special",
    "names",
    "times",
    "holes",
    "attributes",
];
const HOLES: &[&str] = &["holes", "links"];

/// GNU tar, every format, then every way to be sparse, then single features.
const GNU_TAR: &[Format] = &[
    (&["--format=v7"], PLAIN),
    (&["--format=oldgnu"], GNU),
    (&["--format=gnu"], GNU),
    (&["--format=ustar"], USTAR),
    (&["--format=posix"], ALL),
    (&["--format=oldgnu", "--sparse"], HOLES),
    (&["--format=gnu", "--sparse"], HOLES),
    (&["--format=gnu", "--sparse", "--hole-detection=raw"], HOLES),
    (
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        HOLES,
    ),
    (
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        HOLES,
    ),
    (
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        HOLES,
    ),
    (
        &["--format=posix", "--xattrs", "--xattrs-include=*"],
        &["attributes"],
    ),
    (&["--format=posix", "--acls"], &["attributes", "plain"]),
    (
        &["--format=posix", "--xattrs", "--xattrs-include=*", "--acls"],
        &["attributes"],
    ),
    (
        &[
            "--format=posix",
            "--pax-option=globexthdr.name=g,comment=all",
        ],
        &["names", "plain"],
    ),
    (
        &["--format=posix", "--pax-option=delete=atime,delete=ctime"],
        &["times"],
    ),
    (
        &["--format=posix", "--pax-option=exthdr.name=%d/x/%f"],
        &["names"],
    ),
    (&["--format=gnu", "--label=a volume"], &["plain"]),
    (&["--format=gnu", "--hard-dereference"], &["links"]),
    (
        &[
            "--format=gnu",
            "--owner=root:4294967295",
            "--group=root:2097152",
        ],
        &["plain"],
    ),
    (&["--format=gnu", "--mtime=@-77"], &["special"]),
    (&["--format=posix", "--mtime=@77.75"], &["special"]),
    (&["--format=oldgnu", "--mtime=@8589934592"], &["plain"]),
    (
        &["--format=gnu", "--transform=s,^./,/,", "-P"],
        &["names", "links"],
    ),
    (
        &["--format=ustar", "--sort=name", "--no-recursion"],
        &["plain"],
    ),
];

const BSDTAR: &[Format] = &[
    (&["--format=v7"], PLAIN),
    (&["--format=ustar"], USTAR),
    (
        &["--format=gnutar"],
        &["plain", "links", "special", "names", "holes"],
    ),
    (&["--format=pax"], &["plain", "links", "special", "holes"]),
    (&["--format=pax", "--options=hdrcharset=BINARY"], &["names"]),
    (&["--format=pax", "--read-sparse"], HOLES),
    (
        &["--format=pax", "--xattrs", "--acls"],
        &["attributes", "plain"],
    ),
];

/// Blocks to a record: how far the end is padded.
const BLOCKING: &[&str] = &["1", "20"];

/// Packs every tree in every way.
pub fn pack(trees: &Path, out: &Path) -> Vec<PathBuf> {
    let mut running: Vec<(Child, String)> = Vec::new();
    let mut tars = Vec::new();
    for (program, formats) in [("tar", GNU_TAR), ("bsdtar", BSDTAR)] {
        for (number, (args, fitting)) in formats.iter().enumerate() {
            for (tree, blocking) in fitting
                .iter()
                .flat_map(|tree| BLOCKING.iter().map(move |b| (tree, b)))
            {
                let tar = out.join(format!("{program}-{number:02}-{tree}-b{blocking}.tar"));
                let mut command = Command::new(program);
                command
                    .args(*args)
                    .arg("-b")
                    .arg(blocking)
                    .arg("--numeric-owner")
                    .arg("-cf")
                    .arg(&tar);
                command
                    .arg("-C")
                    .arg(trees.join(tree))
                    .arg(".")
                    .stdin(Stdio::null());
                // Names that are not UTF-8 are what they are.
                command.env("LC_ALL", "C");
                let child = command
                    .spawn()
                    .unwrap_or_else(|e| panic!("this test needs {program}: {e}"));
                running.push((child, format!("{command:?}")));
                tars.push(tar);
                if running.len() >= 4 {
                    finish(running.remove(0));
                }
            }
        }
    }
    running.into_iter().for_each(finish);
    tars.extend(appended(trees, out));
    tars
}

fn finish((mut child, command): (Child, String)) {
    let status = child.wait().unwrap();
    assert!(status.success(), "{command}: {status}");
}

/// Archives that got more later: the same names twice, and one archive behind another.
fn appended(trees: &Path, out: &Path) -> Vec<PathBuf> {
    let mut tars = Vec::new();
    for format in ["gnu", "ustar", "posix"] {
        let (twice, joined) = (
            out.join(format!("twice-{format}.tar")),
            out.join(format!("joined-{format}.tar")),
        );
        let format = format!("--format={format}");
        let plain = trees.join("plain");
        run("tar", &[&format, &"-cf", &twice, &"-C", &plain, &"."]);
        run(
            "tar",
            &[
                &format,
                &"-rf",
                &twice,
                &"--mode=0700",
                &"-C",
                &plain,
                &"d",
                &"mode-0400",
            ],
        );
        run(
            "tar",
            &[
                &format,
                &"-cf",
                &joined,
                &"-C",
                &trees.join("special"),
                &".",
            ],
        );
        run("tar", &[&"-Af", &joined, &twice]);
        tars.extend([twice, joined]);
    }
    tars
}

/// OCI layouts by umoci: each tree a layer, inserted one after another.
pub fn umoci(trees: &Path, dir: &Path) -> Vec<PathBuf> {
    let layout = dir.join("umoci");
    run("umoci", &[&"init", &"--layout", &layout]);
    let mut image = layout.clone().into_os_string();
    image.push(":latest");
    run("umoci", &[&"new", &"--image", &image]);
    for (n, tree) in ["plain", "links", "special", "names", "attributes", "times"]
        .iter()
        .enumerate()
    {
        let target = format!("/{tree}");
        // A tree put over itself: whiteouts and replaced directories, too.
        let opaque: &[&dyn AsRef<std::ffi::OsStr>] = if n % 2 == 0 { &[] } else { &[&"--opaque"] };
        let source = trees.join(tree);
        let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"insert", &"--image", &image];
        args.extend(opaque);
        args.extend([&source as &dyn AsRef<std::ffi::OsStr>, &target]);
        run("umoci", &args);
    }
    run(
        "umoci",
        &[&"insert", &"--image", &image, &"--whiteout", &"/plain/d"],
    );
    vec![layout]
}

/// Formats of bsdtar that are no tar, and what is said of each.
pub const OTHER_FORMATS: &[(&str, &[&str], &str)] = &[
    (
        "cpio",
        &["--format=cpio"],
        "neither a tar archive nor gzip or zstd",
    ),
    (
        "newc",
        &["--format=newc"],
        "neither a tar archive nor gzip or zstd",
    ),
    (
        "ar",
        &["--format=shar"],
        "neither a tar archive nor gzip or zstd",
    ),
    (
        "mtree",
        &["--format=mtree"],
        "neither a tar archive nor gzip or zstd",
    ),
    ("zip", &["--format=zip"], "a zip file"),
    ("xz", &["--format=pax", "--xz"], "compressed with xz"),
    (
        "bzip2",
        &["--format=pax", "--bzip2"],
        "compressed with bzip2",
    ),
    ("lz4", &["--format=pax", "--lz4"], "compressed with lz4"),
];
