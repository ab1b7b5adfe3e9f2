//! Hostile archives, numbered as in the project's list of hostile cases. An import never unpacks anything, so what is
//! checked is: the error and that nothing was recorded, or the tree that the store now holds.

mod image_support;

use std::ffi::OsStr;
use std::fs;
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::symlink;

use image_support::*;
use ovl::image::{Error, ImportOptions, ImportedImage, Limits, Source, import, import_stream};
use ovl::meta::FileKind;
use ovl::store::{Digest, Store};

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
    /// Images that were imported on purpose.
    known: std::cell::Cell<usize>,
}

impl Fixture {
    fn new() -> Self {
        let dir = temp();
        let store = store(dir.path());
        Self {
            dir,
            store,
            known: std::cell::Cell::new(0),
        }
    }

    fn file(&self, bytes: &[u8]) -> Source {
        let path = self.dir.path().join("archive");
        fs::write(&path, bytes).unwrap();
        Source::parse(path.as_os_str()).unwrap()
    }

    fn import_with(
        &self,
        bytes: &[u8],
        options: &ImportOptions,
    ) -> Result<Vec<ImportedImage>, Error> {
        import(&self.store, &self.file(bytes), options, &())
    }

    fn import(&self, bytes: &[u8]) -> Result<Vec<ImportedImage>, Error> {
        self.import_with(bytes, &ImportOptions::default())
    }

    fn pipe(&self, bytes: &[u8]) -> Result<Vec<ImportedImage>, Error> {
        let stream = Box::new(Cursor::new(bytes.to_vec()));
        import_stream(&self.store, stream, &ImportOptions::default(), &())
    }

    /// A layer alone must be refused, as a tar, within an archive, and through a pipe.
    #[track_caller]
    fn refused(&self, layer: &[u8], reason: &str) {
        for (form, bytes) in [
            ("rootfs", layer.to_vec()),
            ("docker", docker_archive(&[layer.to_vec()])),
        ] {
            for (way, result) in [("file", self.import(&bytes)), ("pipe", self.pipe(&bytes))] {
                let error = result.expect_err(reason);
                let text = error.to_string();
                assert!(
                    text.contains(reason),
                    "{form} {way}: {reason:?} not in {text:?}"
                );
                assert!(!text.contains('\n'), "{text}");
                self.untouched();
            }
        }
    }

    #[track_caller]
    fn untouched(&self) {
        assert_eq!(
            self.store.images().unwrap().len(),
            self.known.get(),
            "an image was recorded"
        );
    }

    /// The tree of the only layer; the layer must come back bit for bit.
    #[track_caller]
    fn tree(&self, layer: &[u8]) -> Tree {
        let images = self.import(layer).unwrap_or_else(|e| panic!("{e}"));
        self.known.set(self.store.images().unwrap().len());
        let id = images[0].layers[0];
        assert!(layer_tar(&self.store, &id) == layer, "not bit for bit");
        stored_tree(&self.store, &id)
    }

    /// Trees of the layers of an image.
    #[track_caller]
    fn trees(&self, layers: &[Vec<u8>]) -> Vec<Tree> {
        let archive = docker_archive(layers);
        let images = self.import(&archive).unwrap_or_else(|e| panic!("{e}"));
        images[0]
            .layers
            .iter()
            .map(|id| stored_tree(&self.store, id))
            .collect()
    }
}

fn paths(tree: &Tree) -> Vec<&str> {
    tree.keys().map(|path| path.to_str().unwrap()).collect()
}

#[test]
fn t01_paths_that_climb() {
    let f = Fixture::new();
    for path in [
        "../canary",
        "../../canary",
        "a/../../canary",
        "a/..",
        "..",
        "/../x",
        "./../x",
    ] {
        f.refused(&RawTar::new().file(path, b"x").end(), "\"..\"");
        f.refused(&RawTar::new().dir(path).end(), "\"..\"");
        f.refused(
            &RawTar::new().file("a", b"").hard_link("b", path).end(),
            "\"..\"",
        );
    }
    let tree = f.tree(
        &RawTar::new()
            .file("/abs/canary", b"x")
            .file("//./b//c/", b"y")
            .end(),
    );
    assert_eq!(paths(&tree), ["", "abs", "abs/canary", "b", "b/c"]);
}

#[test]
fn t02_writing_through_a_symlink() {
    let f = Fixture::new();
    let probe = f.dir.path().join("probe");
    fs::create_dir(&probe).unwrap();
    let target = probe.to_str().unwrap();
    let tree = f.tree(
        &RawTar::new()
            .symlink("etc", target)
            .file("etc/x", b"x")
            .end(),
    );
    assert_eq!(tree[OsStr::new("etc")].kind, FileKind::Directory);
    let trees = f.trees(&[
        RawTar::new().symlink("etc", target).end(),
        RawTar::new().file("etc/x", b"x").end(),
    ]);
    assert_eq!(trees[0][OsStr::new("etc")].kind, FileKind::Symlink);
    assert_eq!(trees[1][OsStr::new("etc/x")].kind, FileKind::Regular);
    assert_eq!(fs::read_dir(&probe).unwrap().count(), 0);
}

#[test]
fn t03_a_root_that_is_no_directory() {
    let f = Fixture::new();
    for name in [".", "/.", "./", "/", "././/"] {
        f.refused(
            &RawTar::new().symlink(name, "/").file("x", b"").end(),
            "root of the layer",
        );
        f.refused(&RawTar::new().file(name, b"").end(), "root of the layer");
        f.refused(
            &RawTar::new().file("a", b"").hard_link(name, "a").end(),
            "root of the layer",
        );
    }
    f.refused(&RawTar::new().symlink("", "/").end(), "name is empty");
}

#[test]
fn t04_hard_links() {
    let f = Fixture::new();
    f.refused(
        &RawTar::new().hard_link("a", "etc/shadow").end(),
        "neither in this layer",
    );
    f.refused(
        &RawTar::new().hard_link("a", "/etc/shadow").end(),
        "neither in this layer",
    );
    f.refused(&RawTar::new().hard_link("a", "a").end(), "to itself");
    f.refused(&RawTar::new().hard_link("a", "./a").end(), "to itself");
    f.refused(
        &RawTar::new().dir("d").hard_link("a", "d").end(),
        "directory",
    );
    f.refused(
        &RawTar::new().dir("d").hard_link("a", ".").end(),
        "directory",
    );
    f.refused(
        &RawTar::new().hard_link("a", "b").hard_link("b", "a").end(),
        "neither in this layer",
    );
    f.refused(
        &RawTar::new().hard_link("a", "b").hard_link("b", "c").end(),
        "neither in this layer",
    );
    let links: Vec<u8> = (0..10_001)
        .fold(RawTar::new(), |tar, i| {
            tar.hard_link(&format!("l{i}"), "nowhere")
        })
        .end();
    f.refused(&links, "too many hard links");
    // To a symlink: the symlink gets another name, wherever it points.
    let tree = f.tree(
        &RawTar::new()
            .symlink("s", "/etc/shadow")
            .hard_link("l", "s")
            .end(),
    );
    assert_eq!(
        (tree[OsStr::new("l")].kind, tree[OsStr::new("l")].nlink),
        (FileKind::Symlink, 2)
    );
    // To an entry that comes later.
    let tree = f.tree(
        &RawTar::new()
            .hard_link("l", "later")
            .file("later", b"x")
            .end(),
    );
    assert_eq!(tree[OsStr::new("l")], tree[OsStr::new("later")]);
    assert_eq!(tree[OsStr::new("l")].nlink, 2);
}

#[test]
fn t04_hard_links_into_lower_layers() {
    let lower = RawTar::new()
        .dir("d")
        .file("d/f", b"lower")
        .file("gone", b"x")
        .symlink("up", "d")
        .end();
    let hide = RawTar::new().file(".wh.gone", b"").end();
    let f = Fixture::new();
    let upper = RawTar::new()
        .hard_link("copy", "d/f")
        .hard_link("second", "copy")
        .hard_link("replaced", "d/f")
        .file("replaced", b"later")
        .hard_link("became", "d/f")
        .file("became/dir", b"x")
        .end();
    for way in ["file", "pipe"] {
        let f = Fixture::new();
        let archive = docker_archive(&[lower.clone(), hide.clone(), upper.clone()]);
        let images = if way == "file" {
            f.import(&archive)
        } else {
            f.pipe(&archive)
        };
        let images = images.unwrap_or_else(|e| panic!("{way}: {e}"));
        let tree = stored_tree(&f.store, &images[0].layers[2]);
        let copy = &tree[OsStr::new("copy")];
        assert_eq!(
            (copy.content.clone(), copy.nlink),
            (Digest::of(b"lower").to_string(), 2),
            "{way}"
        );
        assert_eq!(&tree[OsStr::new("second")], copy);
        assert_eq!(
            tree[OsStr::new("replaced")].content,
            Digest::of(b"later").to_string()
        );
        assert_eq!(tree[OsStr::new("became")].kind, FileKind::Directory);
        assert!(layer_tar(&f.store, &images[0].layers[2]) == upper);
    }
    for (link, reason) in [
        // Hidden by the whiteout between.
        (
            RawTar::new().hard_link("a", "gone"),
            "neither in this layer",
        ),
        (
            RawTar::new().hard_link("a", "d"),
            "hard link to the directory",
        ),
        // Symlinks in a target are not followed.
        (
            RawTar::new().hard_link("a", "up/f"),
            "neither in this layer",
        ),
    ] {
        for way in ["file", "pipe"] {
            let archive = docker_archive(&[lower.clone(), hide.clone(), link.clone().end()]);
            let error = if way == "file" {
                f.import(&archive)
            } else {
                f.pipe(&archive)
            }
            .unwrap_err();
            assert!(error.to_string().contains(reason), "{way}: {error}");
            f.untouched();
        }
    }
}

#[test]
fn t05_whiteouts_that_escape() {
    let f = Fixture::new();
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", "a/.wh..."] {
        f.refused(&RawTar::new().file(name, b"").end(), "whiteout");
    }
    f.refused(
        &RawTar::new().file(".wh.a/b", b"").end(),
        "below a whiteout",
    );
    f.refused(
        &RawTar::new()
            .symlink("etc", "/probe")
            .file("etc/../.wh.x", b"")
            .end(),
        "\"..\"",
    );
    // AUFS' own files say nothing, nor does what lies below them.
    let tree = f.tree(
        &RawTar::new()
            .file(".wh..wh.foo", b"junk")
            .dir(".wh..wh.plnk")
            .file(".wh..wh.plnk/123.456", b"x")
            .hard_link(".wh..wh.aufs2", ".wh..wh.plnk/123.456")
            .file("a", b"")
            .end(),
    );
    assert_eq!(paths(&tree), ["", "a"]);
    // A whiteout and an opaque mark below a symlink of the same layer act on the layer's own tree.
    let tree = f.tree(
        &RawTar::new()
            .symlink("etc", "/probe")
            .file("etc/.wh.victim", b"")
            .symlink("o", "/x")
            .file("o/.wh..wh..opq", b"")
            .end(),
    );
    assert_eq!(paths(&tree), ["", "etc", "etc/victim(whiteout)", "o"]);
    assert_eq!(
        (
            tree[OsStr::new("o")].kind,
            tree[OsStr::new("o")].content.as_str()
        ),
        (FileKind::Directory, "(opaque)")
    );
    // AUFS wrote whiteouts as hard links to one file.
    let tree = f.tree(&RawTar::new().hard_link("a/.wh.x", ".wh..wh.aufs").end());
    assert_eq!(paths(&tree), ["", "a", "a/x(whiteout)"]);
}

#[test]
fn t06_order_within_a_layer_does_not_matter() {
    let parts: [fn(RawTar) -> RawTar; 4] = [
        |t| t.file("d/.wh..wh..opq", b""),
        |t| t.file("d/sibling", b"s"),
        |t| t.file(".wh.x", b""),
        |t| t.file("x", b"new"),
    ];
    let mut trees = Vec::new();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 0, 3, 1]] {
        let tar = order.iter().fold(RawTar::new(), |tar, &i| parts[i](tar));
        trees.push(Fixture::new().tree(&tar.end()));
    }
    assert!(
        trees.windows(2).all(|pair| pair[0] == pair[1]),
        "{trees:#?}"
    );
    let tree = &trees[0];
    assert_eq!(paths(tree), ["", "d", "d/sibling", "x"]);
    assert_eq!(tree[OsStr::new("d")].content, "(opaque)");
    // A whiteout of a parent, then an entry below it: the parent is there, and hides what was below.
    let tree = Fixture::new().tree(&RawTar::new().file(".wh.d", b"").file("d/new", b"").end());
    assert_eq!(tree[OsStr::new("d")].content, "(opaque)");
    assert!(tree.contains_key(OsStr::new("d/new")));
}

#[test]
fn t07_t08_t09_later_entries_win() {
    let f = Fixture::new();
    let tree = f.tree(&RawTar::new().symlink("foo", "/probe").dir("foo").end());
    assert_eq!(tree[OsStr::new("foo")].kind, FileKind::Directory);
    let tree = f.tree(&RawTar::new().symlink("foo", "/probe").dir("foo/.").end());
    assert_eq!(tree[OsStr::new("foo")].kind, FileKind::Directory);
    let tree = f.tree(
        &RawTar::new()
            .dir("d")
            .file("d/x", b"")
            .file("d", b"file")
            .end(),
    );
    assert_eq!(paths(&tree), ["", "d"]);
    let tree = f.tree(&RawTar::new().file("f", b"x").file("f/below", b"").end());
    assert_eq!(paths(&tree), ["", "f", "f/below"]);
    let tree = f.tree(
        &RawTar::new()
            .file("a", b"1")
            .file("a", b"22")
            .symlink("b", "x")
            .file("b", b"3")
            .end(),
    );
    assert_eq!(
        (tree[OsStr::new("a")].size, tree[OsStr::new("b")].kind),
        (2, FileKind::Regular)
    );
}

#[test]
fn t10_t11_pax_sizes_rule() {
    let f = Fixture::new();
    // The hidden header is the file's data.
    let hidden = RawTar::new().file("evil", b"evil").bytes;
    let size = hidden.len().to_string();
    for claimed in [0, 7, 512] {
        let tar = RawTar::new()
            .pax(&[("size", size.as_bytes())])
            .header(b"outer", b'0', claimed, b"")
            .body(&hidden)
            .file("after", b"")
            .end();
        let tree = f.tree(&tar);
        assert_eq!(paths(&tree), ["", "after", "outer"]);
        assert_eq!(tree[OsStr::new("outer")].size, hidden.len() as u64);
    }
    // Links and directories have no body, whatever their size says.
    let tree = f.tree(
        &RawTar::new()
            .header(b"d", b'5', 512, b"")
            .file("x", b"")
            .header(b"s", b'2', 99, b"t")
            .end(),
    );
    assert_eq!(paths(&tree), ["", "d", "s", "x"]);
}

#[test]
fn t12_extension_headers() {
    let f = Fixture::new();
    let long = "n".repeat(150);
    let name = [long.as_bytes(), b"\0"].concat();
    let tree = f.tree(
        &RawTar::new()
            .pax(&[("mtime", b"5.25")])
            .extension(b'L', &name)
            .extension(b'K', b"target\0")
            .header(b"short", b'2', 0, b"ignored")
            .end(),
    );
    let seen = &tree[OsStr::new(&long)];
    assert_eq!(
        (seen.mtime, seen.content.as_str()),
        ((5, 250_000_000), "\"target\"")
    );
    f.refused(
        &RawTar::new()
            .pax(&[("path", b"a")])
            .pax(&[("path", b"b")])
            .file("x", b"")
            .end(),
        "two extension",
    );
    f.refused(
        &RawTar::new()
            .extension(b'L', b"a")
            .extension(b'L', b"b")
            .file("x", b"")
            .end(),
        "two extension",
    );
    f.refused(
        &RawTar::new().file("x", b"").pax(&[("path", b"a")]).end(),
        "without an entry",
    );
    f.refused(
        &RawTar::new().file("x", b"").extension(b'L', b"a").bytes,
        "without an entry",
    );
    for key in ["path", "size", "linkpath"] {
        let body = pax_record(key, b"7");
        f.refused(
            &RawTar::new().extension(b'g', &body).file("x", b"").end(),
            "global",
        );
    }
    let body = [
        pax_record("comment", b"c"),
        pax_record("mtime", b"99"),
        pax_record("uid", b"99"),
    ]
    .concat();
    let tree = f.tree(&RawTar::new().extension(b'g', &body).file("x", b"").end());
    assert_eq!(
        (tree[OsStr::new("x")].mtime.0, tree[OsStr::new("x")].uid),
        (15, 0)
    );
}

#[test]
fn t13_malformed_pax() {
    let f = Fixture::new();
    for body in [
        &b"x\n"[..],
        b"5 a=b\n",
        b"7 a=b\n",
        b"6 a=bc",
        b"99 path=a\n",
        b"-6 a=b\n",
        b"18446744073709551622 a=b\n",
        b"5 ab\n",
        b"6 \xff=b\n",
        b"11 size=-1\n",
        b"29 size=18446744073709551616\n",
        b"12 path=a\0b\n",
        b"12 mtime=1x\n",
        b"18 uid=4294967296\n",
        b"6 a=b\n\0\0\0\0",
    ] {
        let layer = RawTar::new().extension(b'x', body).file("x", b"").end();
        for result in [
            f.import(&layer),
            f.pipe(&layer),
            f.import(&docker_archive(&[layer.clone()])),
        ] {
            let error = result.expect_err(&body.escape_ascii().to_string());
            assert!(matches!(error, Error::Tar { .. }), "{error}");
            assert_eq!(error.exit_code(), 5);
            f.untouched();
        }
    }
}

#[test]
fn t14_sparse_maps() {
    let f = Fixture::new();
    let pax10 = |map: &[u8], real: &str, stored: u64| {
        RawTar::new()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"s"),
                ("GNU.sparse.realsize", real.as_bytes()),
            ])
            .header(b"x", b'0', stored, b"")
            .body(map)
            .raw(&vec![7; stored.saturating_sub(512) as usize])
            .end()
    };
    let tree = f.tree(&pax10(b"2\n0\n512\n1048576\n512\n", "2000000", 1536));
    assert_eq!(tree[OsStr::new("s")].size, 2_000_000);
    for (map, real, stored) in [
        (&b"1000000000\n"[..], "10", 512),
        (b"2\n0\n512\n100\n512\n", "2000", 1536),
        (b"2\n1024\n512\n0\n512\n", "2000", 1536),
        (b"1\n18446744073709551615\n2\n", "2000", 1024),
        (b"1\n0\n512\n", "100", 1024),
        (b"1\n0\n512\n", "99999999999999999999", 1024),
        (b"1\n0\n1\n", "512", 1024),
        (b"1\n0\n", "512", 512),
    ] {
        f.refused(&pax10(map, real, stored), "");
    }
    let pax01 = |records: &[(&str, &[u8])]| {
        RawTar::new()
            .pax(records)
            .header(b"s", b'0', 512, b"")
            .body(&[1; 512])
            .end()
    };
    f.refused(
        &pax01(&[
            ("GNU.sparse.map", b"0,512,0,512"),
            ("GNU.sparse.size", b"4096"),
        ]),
        "overlap",
    );
    f.refused(&pax01(&[("GNU.sparse.map", b"0,512")]), "size is missing");
    f.refused(
        &pax01(&[("GNU.sparse.map", b"0,512,"), ("GNU.sparse.size", b"4096")]),
        "map",
    );
    f.refused(
        &pax01(&[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"4096")]),
        "version",
    );
    // 8 EiB of hole around one byte.
    let huge = (i64::MAX as u64).to_string();
    f.refused(
        &pax01(&[
            ("GNU.sparse.map", b"0,512"),
            ("GNU.sparse.size", huge.as_bytes()),
        ]),
        "limit",
    );
    // An old GNU map that never ends takes no memory: its blocks must come from the archive.
    let mut block = header(b"s", b'S', 0, b"");
    block[257..265].copy_from_slice(b"ustar  \0");
    block[482] = 1;
    checksum(&mut block);
    let mut more = [0; 512];
    more[504] = 1;
    let endless = RawTar::new().raw(&block).raw(&more.repeat(2000));
    f.refused(&endless.bytes, "cut off");
}

#[test]
fn t15_bombs_meet_limits() {
    let f = Fixture::new();
    let limits = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        ImportOptions {
            limits,
            ..ImportOptions::default()
        }
    };
    let zeros = {
        let tar = RawTar::new()
            .header(b"zeros", b'0', 64 << 20, b"")
            .raw(&vec![0; 64 << 20])
            .end();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        gzip.finish().unwrap()
    };
    let cases: [(&str, Vec<u8>, ImportOptions); 5] = [
        (
            "bytes uncompressed",
            zeros,
            limits(|l| l.layer_bytes = 1 << 20),
        ),
        (
            "entries",
            (0..100)
                .fold(RawTar::new(), |t, i| t.file(&i.to_string(), b""))
                .end(),
            limits(|l| l.entries = 99),
        ),
        (
            "components",
            RawTar::new()
                .pax(&[("path", "a/".repeat(1025).as_bytes())])
                .file("x", b"")
                .end(),
            limits(|_| ()),
        ),
        (
            "255 bytes",
            RawTar::new()
                .pax(&[("path", "a".repeat(256).as_bytes())])
                .file("x", b"")
                .end(),
            limits(|_| ()),
        ),
        (
            "4096",
            RawTar::new()
                .pax(&[("path", "ab/".repeat(2000).as_bytes())])
                .file("x", b"")
                .end(),
            limits(|_| ()),
        ),
    ];
    for (reason, bytes, options) in cases {
        let error = f.import_with(&bytes, &options).expect_err(reason);
        assert!(
            error.to_string().contains(reason),
            "{reason:?} not in {error}"
        );
        f.untouched();
    }
    // Xattrs beyond the limits: one value, all values, and the header that holds them.
    let value = vec![b'x'; 65537];
    f.refused(
        &RawTar::new()
            .pax(&[("SCHILY.xattr.user.a", &value)])
            .file("x", b"")
            .end(),
        "64 KiB",
    );
    let value = &value[..60_000];
    let names: Vec<String> = (0..20).map(|i| format!("SCHILY.xattr.user.{i}")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), value)).collect();
    f.refused(
        &RawTar::new().pax(&many).file("x", b"").end(),
        "xattrs of more than",
    );
    let head = RawTar::new().header(b"x", b'x', 1 << 30, b"").bytes;
    f.refused(&head, "extension header");
    // gzip within gzip is no tar.
    let once = f.dir.path().join("nested");
    fs::write(&once, RawTar::new().file("x", b"").end()).unwrap();
    let twice = {
        let mut first = Vec::new();
        flate2::read::GzEncoder::new(fs::File::open(&once).unwrap(), flate2::Compression::fast())
            .read_to_end(&mut first)
            .unwrap();
        let mut second = Vec::new();
        flate2::read::GzEncoder::new(&first[..], flate2::Compression::fast())
            .read_to_end(&mut second)
            .unwrap();
        second
    };
    let error = f.import(&twice).unwrap_err();
    assert!(error.to_string().contains("not a tar"), "{error}");
    f.untouched();
}

#[test]
fn t16_ends_of_archives() {
    let base = RawTar::new().file("x", b"x").bytes;
    for (what, tail, ok) in [
        ("no end at all", vec![], true),
        ("one zero block", vec![0; 512], true),
        ("two zero blocks", vec![0; 1024], true),
        ("a record of 10 KiB", vec![0; 8192], true),
        (
            "bytes after the end",
            [vec![0; 1024], b"trailing junk".to_vec()].concat(),
            true,
        ),
        (
            "a file after the end",
            [vec![0; 1024], base.clone()].concat(),
            true,
        ),
        (
            "a lone zero block",
            [vec![0; 512], base.clone()].concat(),
            false,
        ),
        ("half a block", vec![0; 100], false),
    ] {
        let f = Fixture::new();
        let layer = [base.clone(), tail].concat();
        let archive = docker_archive(&[layer.clone()]);
        for result in [
            f.import(&layer),
            f.pipe(&layer),
            f.import(&archive),
            f.pipe(&archive),
        ] {
            assert_eq!(result.is_ok(), ok, "{what}: {result:?}");
        }
        if ok {
            // Every byte counts, those after the end too.
            assert!(layer_tar(&f.store, &Digest::of(&layer)) == layer, "{what}");
            assert_eq!(
                paths(&stored_tree(&f.store, &Digest::of(&layer))),
                ["", "x"],
                "{what}"
            );
        } else {
            f.untouched();
        }
    }
    let f = Fixture::new();
    let big = RawTar::new().file("x", &[1; 2000]).bytes;
    for cut in [1, 511, 513, 1000, big.len() - 1] {
        f.refused(&big[..cut], "");
    }
}

#[test]
fn t17_t19_what_steers_overlays_stays_in_the_recipe() {
    let f = Fixture::new();
    let mut device = header(b"dev", b'3', 0, b"");
    device[329..337].copy_from_slice(b"0000000\0");
    device[337..345].copy_from_slice(b"0000000\0");
    checksum(&mut device);
    let steering = [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.overlay.overlay.opaque",
        "user.overlay.whiteout",
        "user.fuseoverlayfs.opaque",
        "user.fuseoverlayfs.override_stat",
        "security.fuseoverlayfs.override_stat",
        "user.containers.override_stat",
    ];
    let keys: Vec<String> = steering
        .iter()
        .map(|name| format!("SCHILY.xattr.{name}"))
        .collect();
    let mut records: Vec<(&str, &[u8])> =
        keys.iter().map(|key| (key.as_str(), &b"y"[..])).collect();
    records.push(("LIBARCHIVE.xattr.trusted%2eoverlay.opaque", b"eQ"));
    records.push(("SCHILY.xattr.user.kept", b"v"));
    let layer = RawTar::new().raw(&device).pax(&records).dir("d").end();
    let tree = f.tree(&layer);
    // A device 0:0 is a device.
    assert_eq!(
        (tree[OsStr::new("dev")].kind, tree[OsStr::new("dev")].rdev),
        (FileKind::CharDevice, 0)
    );
    assert_eq!(tree[OsStr::new("d")].content, "");
    let reader = f.store.open_layer(&Digest::of(&layer)).unwrap();
    let d = reader
        .lookup(1, OsStr::new("d"))
        .unwrap()
        .unwrap()
        .target
        .unwrap()
        .0;
    assert_eq!(
        reader.xattrs(d).unwrap(),
        [("user.kept".into(), b"v".to_vec())]
    );
}

fn manifest_json(config: &str, layers: &[&str]) -> Vec<u8> {
    serde_json::json!([{ "Config": config, "RepoTags": ["a:1"], "Layers": layers }])
        .to_string()
        .into_bytes()
}

/// An image of one layer in OCI form; `change` may spoil the manifest and the config.
fn oci(
    layer: &[u8],
    change: impl FnOnce(&mut serde_json::Value, &mut serde_json::Value),
) -> Vec<u8> {
    let mut blobs = OciBlobs::new();
    let layer_descriptor = blobs.add("application/vnd.oci.image.layer.v1.tar", layer);
    let mut config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(layer).to_string()] },
    });
    let mut manifest = serde_json::json!({ "schemaVersion": 2, "layers": [layer_descriptor] });
    change(&mut manifest, &mut config);
    let config = blobs.add(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    if manifest.get("config").is_none() {
        manifest["config"] = config;
    }
    let manifest = blobs.add(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    blobs.finish(&serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] }))
}

#[test]
fn t21_digests_and_sizes() {
    let f = Fixture::new();
    let layer = RawTar::new().file("x", b"x").end();
    let wrong = Digest::of(b"wrong").to_string();
    type Change = Box<dyn Fn(&mut serde_json::Value, &mut serde_json::Value)>;
    let set = |pointer: &'static str, value: serde_json::Value| -> Change {
        Box::new(move |manifest, _| *manifest.pointer_mut(pointer).unwrap() = value.clone())
    };
    let cases: Vec<(&str, Change, i32)> = vec![
        (
            "missing from the archive",
            set("/layers/0/digest", wrong.clone().into()),
            1,
        ),
        ("bytes, but should have", set("/layers/0/size", 1.into()), 5),
        (
            "bytes, but should have",
            set("/layers/0/size", 1_000_000.into()),
            5,
        ),
        (
            "not a sha256 digest",
            set("/layers/0/digest", "sha256:../../../etc/passwd".into()),
            1,
        ),
        (
            "not a sha256 digest",
            set("/layers/0/digest", wrong.to_uppercase().into()),
            1,
        ),
        (
            "not a sha256 digest",
            set(
                "/layers/0/digest",
                format!("sha512:{}", "0".repeat(128)).into(),
            ),
            1,
        ),
        ("invalid value", set("/layers/0/size", (-1).into()), 1),
        (
            "has digest",
            Box::new({
                let wrong = wrong.clone();
                move |_, config| config["rootfs"]["diff_ids"][0] = wrong.clone().into()
            }),
            5,
        ),
        (
            "diff IDs",
            Box::new(|_, config| config["rootfs"]["diff_ids"] = serde_json::json!([])),
            1,
        ),
    ];
    for (reason, change, code) in cases {
        let archive = oci(&layer, change);
        for result in [f.import(&archive), f.pipe(&archive)] {
            let error = result.expect_err(reason);
            assert!(
                error.to_string().contains(reason),
                "{reason:?} not in {error}"
            );
            assert_eq!(error.exit_code(), code, "{error}");
            f.untouched();
        }
    }
    // A blob that is not what its name says.
    let digest = Digest::of(&layer).hex();
    let mut archive = oci(&layer, |_, _| ());
    let at = archive
        .windows(1)
        .enumerate()
        .position(|(i, _)| archive[i..].starts_with(digest.as_bytes()))
        .unwrap();
    archive[at + 512] ^= 1;
    for way in [Fixture::import, Fixture::pipe] {
        // A store that does not have the layer already: else it would not be read.
        let f = Fixture::new();
        let error = way(&f, &archive).unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
        f.untouched();
    }
    assert!(f.import(&oci(&layer, |_, _| ())).is_ok());
}

#[test]
fn t22_ambiguous_and_oversized_documents() {
    let f = Fixture::new();
    let layer = RawTar::new().file("x", b"x").end();
    let both = oci(&layer, |manifest, _| {
        manifest["manifests"] = serde_json::json!([])
    });
    assert!(
        f.import(&both)
            .unwrap_err()
            .to_string()
            .contains("both layers and manifests")
    );
    let lies = oci(&layer, |manifest, _| {
        manifest["mediaType"] = "application/vnd.oci.image.index.v1+json".into()
    });
    assert!(
        f.import(&lies)
            .unwrap_err()
            .to_string()
            .contains("media type differs")
    );
    let artifact = oci(&layer, |manifest, _| {
        manifest["config"] = serde_json::json!({
            "mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2,
        });
    });
    assert!(
        f.import(&artifact)
            .unwrap_err()
            .to_string()
            .contains("artifact")
    );
    f.untouched();

    // Indexes within indexes, down to a good manifest.
    for (depth, ok) in [(0, true), (4, true), (5, false), (30, false)] {
        let mut blobs = OciBlobs::new();
        let layer_descriptor = blobs.add("application/vnd.oci.image.layer.v1.tar", &layer);
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] },
        });
        let config = blobs.add(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [layer_descriptor] });
        let mut top = blobs.add(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        );
        for _ in 0..depth {
            let index = serde_json::json!({ "schemaVersion": 2, "manifests": [top] });
            top = blobs.add(
                "application/vnd.oci.image.index.v1+json",
                index.to_string().as_bytes(),
            );
        }
        let f = Fixture::new();
        let archive = blobs.finish(&serde_json::json!({ "schemaVersion": 2, "manifests": [top] }));
        for result in [f.import(&archive), f.pipe(&archive)] {
            assert_eq!(result.is_ok(), ok, "{depth}: {result:?}");
        }
    }

    // Documents beyond the caps, and ten thousand manifests of other platforms.
    let huge = format!("[{}]", " ".repeat(5 << 20));
    let archive = RawTar::new()
        .file("manifest.json", huge.as_bytes())
        .file("repositories", b"{}")
        .end();
    for result in [f.import(&archive), f.pipe(&archive)] {
        assert!(matches!(result, Err(Error::Limit { .. })), "{result:?}");
    }
    let config = format!("{{\"a\":\"{}\"}}", "x".repeat(9 << 20));
    let archive = docker_archive_with(&[layer], &config);
    for result in [f.import(&archive), f.pipe(&archive)] {
        assert!(matches!(result, Err(Error::Limit { .. })), "{result:?}");
    }
    let other = serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(b"").to_string(), "size": 0,
        "platform": { "os": "plan9", "architecture": "mips" },
    });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": vec![other; 10_000] });
    let error = f.import(&OciBlobs::new().finish(&index)).unwrap_err();
    assert!(matches!(error, Error::NoPlatform { .. }), "{error}");
    f.untouched();
}

#[test]
fn t23_docker_archives_that_point_outside() {
    let f = Fixture::new();
    let layer = RawTar::new().file("x", b"x").end();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] },
    })
    .to_string();
    let archive = |config_path: &str, layers: &[&str], more: fn(RawTar) -> RawTar| {
        more(
            RawTar::new()
                .file("c.json", config.as_bytes())
                .file("l/layer.tar", &layer),
        )
        .file("manifest.json", &manifest_json(config_path, layers))
        .end()
    };
    let plain: fn(RawTar) -> RawTar = |t| t;
    for (what, bytes, reason) in [
        (
            "config outside",
            archive("../../etc/passwd", &["l/layer.tar"], plain),
            "out of the archive",
        ),
        (
            "config absolute",
            archive("/etc/passwd", &["l/layer.tar"], plain),
            "missing from the archive",
        ),
        (
            "layer outside",
            archive("c.json", &["../../etc/shadow"], plain),
            "out of the archive",
        ),
        (
            "layer absolute",
            archive("c.json", &["/etc/shadow"], plain),
            "missing from the archive",
        ),
        (
            "symlink out",
            archive("c.json", &["s"], |t| t.symlink("s", "/etc/shadow")),
            "missing from the archive",
        ),
        (
            "symlink up",
            archive("c.json", &["s"], |t| t.symlink("s", "../../etc/shadow")),
            "missing from the archive",
        ),
        (
            "symlinks in a circle",
            archive("c.json", &["s"], |t| t.symlink("s", "r").symlink("r", "s")),
            "circle",
        ),
        (
            "two manifests",
            archive("c.json", &["l/layer.tar"], |t| {
                t.file("./manifest.json", b"[]")
            }),
            "two members",
        ),
        (
            "config not hashing to its name",
            archive(
                "0000000000000000000000000000000000000000000000000000000000000000.json",
                &["l/layer.tar"],
                |t| {
                    t.file(
                        "0000000000000000000000000000000000000000000000000000000000000000.json",
                        b"{}",
                    )
                },
            ),
            "has digest",
        ),
    ] {
        for result in [f.import(&bytes), f.pipe(&bytes)] {
            let error = result.expect_err(what);
            assert!(
                error.to_string().contains(reason),
                "{what}: {reason:?} not in {error}"
            );
            f.untouched();
        }
    }
    for tags in [r#"["../../x:1"]"#, r#"["UPPER:1"]"#, r#"["a:b:c"]"#] {
        let manifest =
            format!(r#"[{{"Config":"c.json","RepoTags":{tags},"Layers":["l/layer.tar"]}}]"#);
        let bytes = RawTar::new()
            .file("c.json", config.as_bytes())
            .file("l/layer.tar", &layer)
            .file("manifest.json", manifest.as_bytes())
            .end();
        assert!(
            matches!(f.import(&bytes), Err(Error::Reference(_))),
            "{tags}"
        );
        f.untouched();
    }
    // A symlink to a member is how old archives share layers.
    let shared = archive("c.json", &["s/layer.tar"], |t| {
        t.symlink("s/layer.tar", "../l/layer.tar")
    });
    assert!(f.import(&shared).is_ok());
    let f = Fixture::new();
    assert!(f.pipe(&shared).is_ok());
}

#[test]
fn t24_oci_layouts_on_disk() {
    let f = Fixture::new();
    let layer = RawTar::new().file("x", b"x").end();
    let spoil = |name: &str, how: &dyn Fn(&std::path::Path)| {
        let layout = f.dir.path().join(name);
        fs::create_dir(&layout).unwrap();
        let tar = f.dir.path().join("layout.tar");
        fs::write(&tar, oci(&layer, |_, _| ())).unwrap();
        run("tar", &[&"-xf", &tar, &"-C", &layout]);
        how(&layout);
        import(
            &f.store,
            &Source::parse(layout.as_os_str()).unwrap(),
            &ImportOptions::default(),
            &(),
        )
    };
    let outside = f.dir.path().join("outside");
    fs::write(&outside, &layer).unwrap();
    let blob = format!("blobs/sha256/{}", Digest::of(&layer).hex());
    let moved = |path: &std::path::Path| {
        let away = f.dir.path().join(format!(
            "away-{}",
            fs::read_dir(f.dir.path()).unwrap().count()
        ));
        fs::rename(path, &away).unwrap();
        symlink(&away, path).unwrap();
    };
    for (name, path, reason) in [
        ("a", blob.as_str(), "symlinks are not followed"),
        ("c", "blobs", "symlinks are not followed"),
    ] {
        let error = spoil(name, &|layout| {
            moved(&layout.join(path));
        })
        .unwrap_err();
        assert!(error.to_string().contains(reason), "{name}: {error}");
        f.untouched();
    }
    let error = spoil("b", &|layout| moved(&layout.join("index.json"))).unwrap_err();
    assert!(matches!(error, Error::MissingManifest { .. }), "{error}");
    let fifo = spoil("d", &|layout| {
        fs::remove_file(layout.join(&blob)).unwrap();
        run("mkfifo", &[&layout.join(&blob)]);
    });
    assert!(fifo.unwrap_err().to_string().contains("not a regular file"));
    let other = spoil("e", &|layout| {
        fs::write(layout.join(&blob), RawTar::new().file("y", b"y").end()).unwrap()
    });
    assert_eq!(other.unwrap_err().exit_code(), 5);
    f.untouched();
    // `urls` and `data` of descriptors are ignored.
    let ignored = oci(&layer, |manifest, _| {
        manifest["layers"][0]["urls"] = serde_json::json!(["file:///etc/shadow"]);
        manifest["layers"][0]["data"] = "A".repeat(100_000).into();
    });
    assert!(f.import(&ignored).is_ok());
    let f = Fixture::new();
    let absent = oci(&layer, |manifest, _| {
        manifest["layers"][0]["urls"] = serde_json::json!(["https://example.invalid/x"]);
        manifest["layers"][0]["digest"] = Digest::of(b"elsewhere").to_string().into();
    });
    assert!(matches!(
        f.import(&absent),
        Err(Error::MissingMember { .. })
    ));
    f.untouched();
}

#[test]
fn t30_names_are_not_moved() {
    let f = Fixture::new();
    let first = docker_archive(&[RawTar::new().file("x", b"1").end()]);
    let second = docker_archive(&[RawTar::new().file("x", b"2").end()]);
    let kept = f.import(&first).unwrap()[0].manifest;
    for result in [f.import(&second), f.pipe(&second)] {
        let error = result.unwrap_err();
        assert!(
            matches!(error, Error::Conflict { .. }) && error.exit_code() == 3,
            "{error}"
        );
        assert_eq!(
            f.store.resolve_name("localhost/test:1").unwrap(),
            Some(kept)
        );
        assert_eq!(f.store.images().unwrap().len(), 1);
    }
    let options = ImportOptions {
        tags: vec!["other".parse().unwrap()],
        ..ImportOptions::default()
    };
    let other = f.import_with(&second, &options).unwrap();
    assert_eq!(other[0].names, ["docker.io/library/other:latest"]);
    let options = ImportOptions {
        replace_names: true,
        ..ImportOptions::default()
    };
    let moved = f.import_with(&second, &options).unwrap();
    assert_eq!(
        f.store.resolve_name("localhost/test:1").unwrap(),
        Some(moved[0].manifest)
    );
}

#[test]
fn unknown_formats_are_told() {
    let f = Fixture::new();
    for (bytes, reason) in [
        (b"".to_vec(), "empty"),
        (b"hello world".to_vec(), "unknown format"),
        (vec![0xff; 4096], "unknown format"),
        (b"{\"a\":1}".to_vec(), "JSON"),
        (b"\xfd7zXZ\0rest".to_vec(), "xz"),
        (b"BZh91AY".to_vec(), "bzip2"),
        (b"PK\x03\x04".to_vec(), "zip"),
        (b"hsqs0000".to_vec(), "squashfs"),
        (vec![0; 10240], "empty"),
        (b"\x1f\x8b".to_vec(), "gzip"),
        (vec![0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (
            RawTar::new().file("oci-layout", b"{}").end(),
            "neither manifest.json nor index.json",
        ),
        (
            RawTar::new()
                .file("0/x", b"")
                .file("manifest.json", b"{")
                .file("repositories", b"{}")
                .end(),
            "manifest.json",
        ),
    ] {
        for result in [f.import(&bytes), f.pipe(&bytes)] {
            let error = result.expect_err(reason);
            assert!(
                error.to_string().contains(reason),
                "{reason:?} not in {error}"
            );
            f.untouched();
        }
    }
    let missing = import(
        &f.store,
        &Source::parse(OsStr::new("/nowhere/x")).unwrap(),
        &ImportOptions::default(),
        &(),
    );
    assert_eq!(missing.unwrap_err().exit_code(), 4);
    let dir = Source::parse(f.dir.path().as_os_str()).unwrap();
    let error = import(&f.store, &dir, &ImportOptions::default(), &()).unwrap_err();
    assert!(matches!(error, Error::MissingManifest { .. }), "{error}");
}
